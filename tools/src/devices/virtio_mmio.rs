//! The virtio-mmio transport, version 2, with one queue and a block device behind it.
//!
//! A request is served in the thread of the vCPU that notified the queue; when that store completes, the
//! request has too. Virtio 1.2, section 4.2.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_superio::Trigger;

use super::block::DiskImage;
use super::irq_line::IrqLine;
use crate::guest_ram::GuestRam;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const DEVICE_BLOCK: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"SKVM");
const QUEUE_SIZE: u16 = 256;
const VIRTIO_F_VERSION_1: u64 = 1 << 32;
const VIRTIO_RING_F_INDIRECT_DESC: u64 = 1 << 28;
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_NEEDS_RESET: u32 = 0x40;
const INTERRUPT_USED_BUFFER: u32 = 1;
const CONFIG: u64 = 0x100;

/// Register offsets (4.2.2).
mod register {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
}

/// The device.
pub struct VirtioMmio<T: Trigger = IrqLine> {
    disk: DiskImage,
    ram: Arc<GuestRam>,
    irq: T,
    queue: Queue,
    status: u32,
    interrupt_status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
}

impl<T: Trigger> VirtioMmio<T> {
    /// A disk on the bus, at reset.
    pub fn new(disk: DiskImage, ram: Arc<GuestRam>, irq: T) -> VirtioMmio<T> {
        VirtioMmio {
            disk,
            ram,
            irq,
            queue: new_queue(),
            status: 0,
            interrupt_status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
        }
    }

    /// For `--stats`.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = self.disk.counters;
        vec![
            ("disk reads", counters.reads),
            ("disk writes", counters.writes),
            ("disk flushes", counters.flushes),
            ("disk errors", counters.errors),
        ]
    }

    fn features(&self) -> u64 {
        VIRTIO_F_VERSION_1 | VIRTIO_RING_F_INDIRECT_DESC | self.disk.features()
    }

    /// A load from the register window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            let config = self.disk.config();
            for (byte, at) in data.iter_mut().zip(at..) {
                *byte = usize::try_from(at).ok().and_then(|at| config.get(at)).copied().unwrap_or(0);
            }
            return;
        }
        // Registers are 32 bits wide and accessed so (4.2.2.2); anything else reads as 0.
        data.fill(0);
        if let (Ok(word), 0) = (<&mut [u8; 4]>::try_from(data), offset % 4) {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => DEVICE_BLOCK,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => half(self.features(), self.device_features_sel),
            register::QUEUE_NUM_MAX if self.queue_sel == 0 => QUEUE_SIZE.into(),
            register::QUEUE_READY if self.queue_sel == 0 => self.queue.ready().into(),
            register::INTERRUPT_STATUS => self.interrupt_status,
            register::STATUS => self.status,
            register::CONFIG_GENERATION => 0, // the configuration never changes
            _ => 0,
        }
    }

    /// A store to the register window.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(word) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(word);
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            register::DRIVER_FEATURES => match self.driver_features_sel {
                0 => self.driver_features = (self.driver_features & !0xffff_ffff) | u64::from(value),
                1 => self.driver_features = (self.driver_features & 0xffff_ffff) | (u64::from(value) << 32),
                _ => {}
            },
            register::QUEUE_SEL => self.queue_sel = value,
            register::QUEUE_NOTIFY if value == 0 => self.process_queue(),
            register::INTERRUPT_ACK => self.interrupt_status &= !value,
            register::STATUS if value == 0 => self.reset(),
            register::STATUS => self.status = value,
            _ if self.queue_sel == 0 && self.status & STATUS_DRIVER_OK == 0 => {
                self.set_up_queue(offset, value)
            }
            _ => {}
        }
    }

    fn set_up_queue(&mut self, offset: u64, value: u32) {
        let queue = &mut self.queue;
        match offset {
            // The crate refuses a size that is no power of two, or above the maximum.
            register::QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::QUEUE_READY => queue.set_ready(value & 1 != 0),
            register::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.queue = new_queue();
        self.status = 0;
        self.interrupt_status = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
    }

    fn process_queue(&mut self) {
        let ram = self.ram.clone();
        if self.status & STATUS_DRIVER_OK == 0 || !self.queue.is_valid(&*ram) {
            return;
        }
        let mut served = false;
        while let Some(chain) = self.queue.pop_descriptor_chain(&*ram) {
            let head = chain.head_index();
            let written = self.disk.serve(chain, &ram);
            served = true;
            if let Err(error) = self.queue.add_used(&*ram, head, written) {
                tracing::warn!("disk: the guest's used ring is unusable: {error}");
                self.status |= STATUS_NEEDS_RESET;
                break;
            }
        }
        if served && self.queue.needs_notification(&*ram).unwrap_or(true) {
            self.interrupt_status |= INTERRUPT_USED_BUFFER;
            if self.irq.trigger().is_err() {
                tracing::warn!("disk: its interrupt cannot be raised");
            }
        }
    }
}

fn new_queue() -> Queue {
    Queue::new(QUEUE_SIZE).expect("a power of two")
}

/// The 32 bits of a 64-bit feature set that a selector names.
fn half(features: u64, selector: u32) -> u32 {
    match selector {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_ram;
    use std::cell::Cell;
    use vm_memory::{Bytes, GuestAddress};

    struct CountedIrq(Cell<u32>);

    impl Trigger for CountedIrq {
        type E = ();
        fn trigger(&self) -> Result<(), ()> {
            self.0.set(self.0.get() + 1);
            Ok(())
        }
    }

    const DESCRIPTORS: u64 = 0x1000;
    const AVAILABLE: u64 = 0x2000;
    const USED: u64 = 0x3000;
    const HEADER: u64 = 0x4000;
    const STATUS: u64 = 0x5000;
    const DATA: u64 = 0x6000;
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;

    /// A driver: an image of four sectors, a device with its queue set up, and the index of the next request.
    struct Driver {
        device: VirtioMmio<CountedIrq>,
        ram: Arc<GuestRam>,
        path: std::path::PathBuf,
        _directory: vmm_sys_util::tempdir::TempDir,
        index: u16,
    }

    impl Driver {
        fn new() -> Driver {
            let directory = vmm_sys_util::tempdir::TempDir::new().unwrap();
            let path = directory.as_path().join("disk.img");
            std::fs::write(&path, [0x11u8; 2048]).unwrap();
            let ram = guest_ram::reserve(1 << 20).unwrap();
            let device =
                VirtioMmio::new(DiskImage::open(&path).unwrap(), ram.clone(), CountedIrq(Cell::new(0)));
            let mut driver = Driver { device, ram, path, _directory: directory, index: 0 };
            for (offset, value) in [
                (register::STATUS, 3u32),
                (register::QUEUE_NUM, 16),
                (register::QUEUE_DESC_LOW, DESCRIPTORS as u32),
                (register::QUEUE_DRIVER_LOW, AVAILABLE as u32),
                (register::QUEUE_DEVICE_LOW, USED as u32),
                (register::QUEUE_READY, 1),
                (register::STATUS, 15),
            ] {
                driver.device.write(offset, &value.to_le_bytes());
            }
            driver
        }

        fn descriptor(&self, index: u64, address: u64, length: u32, flags: u16) {
            let at = GuestAddress(DESCRIPTORS + index * 16);
            self.ram.write_obj(address, at).unwrap();
            self.ram.write_obj(length, GuestAddress(at.0 + 8)).unwrap();
            self.ram.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
            self.ram.write_obj(index as u16 + 1, GuestAddress(at.0 + 14)).unwrap();
        }

        /// Sends the chain that starts at descriptor 0; returns the status byte.
        fn send(&mut self) -> u8 {
            self.ram.write_obj(0xeeu8, GuestAddress(STATUS)).unwrap();
            self.ram.write_obj(0u16, GuestAddress(AVAILABLE + 4 + u64::from(self.index % 16) * 2)).unwrap();
            self.index += 1;
            self.ram.write_obj(self.index, GuestAddress(AVAILABLE + 2)).unwrap();
            self.device.write(register::QUEUE_NOTIFY, &[0; 4]);
            self.ram.read_obj(GuestAddress(STATUS)).unwrap()
        }

        fn request(&mut self, kind: u32, sector: u64, data: u32) -> u8 {
            let mut header = [0u8; 16];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..].copy_from_slice(&sector.to_le_bytes());
            self.ram.write_slice(&header, GuestAddress(HEADER)).unwrap();
            self.descriptor(0, HEADER, 16, NEXT);
            self.descriptor(1, DATA, data, if kind == 1 { NEXT } else { NEXT | WRITE });
            self.descriptor(2, STATUS, 1, WRITE);
            self.send()
        }
    }

    #[test]
    fn the_identification_registers() {
        let driver = Driver::new();
        let mut word = [0; 4];
        for (offset, wanted) in
            [(0, 0x7472_6976), (4, 2), (8, 2), (0x34, 256), (0x100, 4), (0x104, 0), (0x114, 512)]
        {
            driver.device.read(offset, &mut word);
            assert_eq!(u32::from_le_bytes(word), wanted, "{offset:#x}");
        }
        let mut byte = [0xff];
        driver.device.read(1, &mut byte);
        assert_eq!(byte, [0]);
        driver.device.read(0xffc, &mut word);
    }

    #[test]
    fn write_read_and_flush() {
        let mut driver = Driver::new();
        driver.ram.write_slice(&[0xabu8; 512], GuestAddress(DATA)).unwrap();
        assert_eq!(driver.request(1, 2, 512), 0);
        assert_eq!(driver.request(4, 0, 0), 0);
        let image = std::fs::read(&driver.path).unwrap();
        assert!(image[..1024].iter().all(|byte| *byte == 0x11));
        assert!(image[1024..1536].iter().all(|byte| *byte == 0xab));
        assert_eq!(driver.request(0, 1, 1024), 0);
        let mut read = [0u8; 1024];
        driver.ram.read_slice(&mut read, GuestAddress(DATA)).unwrap();
        assert_eq!((read[0], read[511], read[512], read[1023]), (0x11, 0x11, 0xab, 0xab));
        let used: u32 = driver.ram.read_obj(GuestAddress(USED + 4 + 2 * 8 + 4)).unwrap();
        assert_eq!(used, 1025, "bytes written to the guest, status included");
        assert_eq!(driver.device.irq.0.get(), 3);
        let mut word = [0; 4];
        driver.device.read(register::INTERRUPT_STATUS, &mut word);
        assert_eq!(word[0], 1);
        driver.device.write(register::INTERRUPT_ACK, &1u32.to_le_bytes());
        driver.device.read(register::INTERRUPT_STATUS, &mut word);
        assert_eq!(word[0], 0);
    }

    #[test]
    fn requests_beyond_the_disk_fail_and_change_nothing() {
        let mut driver = Driver::new();
        for (kind, sector, length) in [
            (0, 4, 512),
            (1, 4, 512),
            (1, 3, 1024),
            (0, u64::MAX, 512),
            (0, u64::MAX / 512, 512),
            (1, 0, 100),
        ] {
            assert_eq!(driver.request(kind, sector, length), 1, "{kind} {sector} {length}");
        }
        assert_eq!(driver.request(77, 0, 512), 2);
        assert_eq!(std::fs::read(&driver.path).unwrap(), [0x11u8; 2048]);
        assert!(driver.device.counters().contains(&("disk errors", 6)));
    }

    #[test]
    fn broken_chains_do_not_panic() {
        let mut driver = Driver::new();
        driver.descriptor(0, HEADER, 16, 0); // no status
        assert_eq!(driver.send(), 0xee);
        driver.descriptor(0, HEADER, 3, NEXT); // short header
        driver.descriptor(1, STATUS, 1, WRITE);
        assert_eq!(driver.send(), 1);
        driver.descriptor(0, u64::MAX - 3, 16, NEXT); // outside RAM
        assert_eq!(driver.send(), 0xee);
        driver.descriptor(0, HEADER, 16, NEXT); // a loop
        driver.descriptor(1, STATUS, 1, WRITE | NEXT);
        driver.ram.write_obj(0u16, GuestAddress(DESCRIPTORS + 16 + 14)).unwrap();
        driver.send();
        driver.device.write(register::STATUS, &[0; 4]);
        driver.device.write(register::QUEUE_NOTIFY, &[0; 4]);
    }

    #[test]
    fn an_image_is_opened_once_and_must_be_whole_sectors() {
        let driver = Driver::new();
        let text = DiskImage::open(&driver.path).unwrap_err().to_string();
        assert!(text.contains("locked"), "{text}");
        let odd = driver.path.with_file_name("odd");
        std::fs::write(&odd, [0u8; 513]).unwrap();
        assert!(DiskImage::open(&odd).unwrap_err().to_string().contains("multiple of 512"));
        assert!(
            DiskImage::open(std::path::Path::new("/dev/null")).unwrap_err().to_string().contains("neither")
        );
        assert!(DiskImage::open(std::path::Path::new("/nonexistent")).is_err());
    }
}
