//! Who answers a port or an MMIO address: one table row per device, in `port_read` and `port_write`.
//!
//! What KVM keeps in the kernel (PICs, PIT with port 0x61, IOAPIC, local APICs) never arrives here. A port that
//! nobody owns reads as all ones, as an empty bus does, and ignores writes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::layout::*;
use crate::devices::acpi_pm::AcpiPm;
use crate::devices::pci_host::PciHost;
use crate::devices::rtc::Rtc;
use crate::devices::serial::SerialPort;
use crate::devices::virtio_mmio::VirtioMmio;
use crate::outcome::Outcome;

/// Keyboard controller command port, and the command that pulses the processor's reset line.
const I8042_COMMAND: u16 = 0x64;
/// See [`I8042_COMMAND`].
const I8042_PULSE_RESET: u8 = 0xfe;
/// System control port A: bit 0 resets.
const SYSTEM_CONTROL_A: u16 = 0x92;
const CMOS_INDEX: u16 = 0x70;
const CMOS_DATA: u16 = 0x71;
const PCI_ADDRESS: u16 = 0xcf8;
const PCI_ADDRESS_LAST: u16 = 0xcfb;
const PCI_DATA: u16 = 0xcfc;
const PCI_DATA_LAST: u16 = 0xcff;
const UART_REGISTERS: u16 = 8;
const PM_LAST: u16 = PM_TIMER + 3;
const COM1: u16 = COM_PORTS[0];
const COM2: u16 = COM_PORTS[1];
const COM3: u16 = COM_PORTS[2];

/// The devices that this program emulates.
pub struct Ports {
    serial: [Option<Mutex<SerialPort>>; 3],
    rtc: Mutex<Rtc>,
    pm: Mutex<AcpiPm>,
    pci: Mutex<PciHost>,
    disk: Option<Mutex<VirtioMmio>>,
}

/// A device is a state machine that is consistent between two accesses; one that panicked is still readable.
fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ports {
    /// Assembles the devices; a serial line that is `None` is not there.
    pub fn new(serial: [Option<SerialPort>; 3], disk: Option<VirtioMmio>) -> Ports {
        Ports {
            serial: serial.map(|port| port.map(Mutex::new)),
            rtc: Mutex::new(Rtc::new()),
            pm: Mutex::new(AcpiPm::new()),
            pci: Mutex::new(PciHost::default()),
            disk: disk.map(Mutex::new),
        }
    }

    /// Hands input to the first serial line.
    pub fn console_input(&self, bytes: &[u8]) {
        if let Some(port) = &self.serial[0] {
            lock(port).input(bytes);
        }
    }

    /// Flushes whatever the serial lines' sinks hold.
    pub fn flush(&self) {
        for port in self.serial.iter().flatten() {
            lock(port).flush();
        }
    }

    /// The disk's error count and the like, for `--stats`.
    pub fn disk_counters(&self) -> Vec<(&'static str, u64)> {
        self.disk.as_ref().map_or_else(Vec::new, |disk| lock(disk).counters())
    }

    fn serial_at(&self, port: u16) -> Option<(MutexGuard<'_, SerialPort>, u8)> {
        let (line, base) = COM_PORTS
            .iter()
            .enumerate()
            .find(|(_, base)| (**base..**base + UART_REGISTERS).contains(&port))?;
        let device = self.serial[line].as_ref()?;
        Some((lock(device), (port - base) as u8)) // below UART_REGISTERS
    }

    /// Answers IN. A byte-wide device is asked once for each byte, which is what a REP INSB wants.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        let mut bytewise = |read: &mut dyn FnMut() -> u8| data.iter_mut().for_each(|byte| *byte = read());
        match port {
            COM1..=0x3ff | COM2..=0x2ff | COM3..=0x3ef => match self.serial_at(port) {
                Some((mut device, register)) => bytewise(&mut || device.read(register)),
                None => data.fill(0xff),
            },
            CMOS_INDEX => bytewise(&mut || 0xff),
            CMOS_DATA => bytewise(&mut || lock(&self.rtc).read()),
            // An output buffer that is empty and an input buffer that takes commands.
            I8042_COMMAND => data.fill(0),
            PM1A_EVENT..=PM_LAST => lock(&self.pm).read(port, data),
            PCI_ADDRESS if data.len() == 4 => data.copy_from_slice(&lock(&self.pci).address().to_le_bytes()),
            PCI_DATA..=PCI_DATA_LAST => lock(&self.pci).read(port - PCI_DATA, data),
            _ => {
                tracing::trace!(
                    port = format_args!("{port:#x}"),
                    len = data.len(),
                    "read of a port that nobody owns"
                );
                data.fill(0xff);
            }
        }
    }

    /// Takes OUT. Returns the end of the guest if the write asks for it.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Option<Outcome> {
        match port {
            COM1..=0x3ff | COM2..=0x2ff | COM3..=0x3ef => {
                if let Some((mut device, register)) = self.serial_at(port) {
                    data.iter().for_each(|byte| device.write(register, *byte));
                }
            }
            CMOS_INDEX => data.iter().for_each(|byte| lock(&self.rtc).select(*byte)),
            CMOS_DATA => data.iter().for_each(|byte| lock(&self.rtc).write(*byte)),
            I8042_COMMAND if data.contains(&I8042_PULSE_RESET) => return Some(Outcome::Reset),
            SYSTEM_CONTROL_A if data.first().is_some_and(|byte| byte & 1 != 0) => {
                return Some(Outcome::Reset);
            }
            PM1A_EVENT..=PM_LAST => return lock(&self.pm).write(port, data).then_some(Outcome::PowerOff),
            RESET_CONTROL if data.len() == 1 => {
                // Bit 2 starts the reset, bit 1 says how thorough it is.
                return (data[0] & 0x04 != 0).then_some(Outcome::Reset);
            }
            PCI_ADDRESS..=PCI_ADDRESS_LAST => {
                if let Ok(address) = <[u8; 4]>::try_from(data) {
                    lock(&self.pci).select(u32::from_le_bytes(address));
                }
            }
            PCI_DATA..=PCI_DATA_LAST => {} // the host bridge has nothing to set
            _ => tracing::trace!(port = format_args!("{port:#x}"), ?data, "write to a port that nobody owns"),
        }
        None
    }

    fn disk_at(&self, address: u64) -> Option<(MutexGuard<'_, VirtioMmio>, u64)> {
        let offset = address.checked_sub(VIRTIO_DISK).filter(|offset| *offset < VIRTIO_DISK_SIZE)?;
        Some((lock(self.disk.as_ref()?), offset))
    }

    /// Answers a load from an address that is not RAM.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.disk_at(address) {
            Some((disk, offset)) => disk.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Takes a store to an address that is not RAM.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        match self.disk_at(address) {
            Some((mut disk, offset)) => disk.write(offset, data),
            None => tracing::trace!(address = format_args!("{address:#x}"), ?data, "store to nowhere"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_bus_reads_all_ones() {
        let ports = Ports::new([None, None, None], None);
        for (port, len) in [(0x3f8, 1), (0x2f8, 1), (0x1234, 4), (0xffff, 4), (0x3d4, 2)] {
            let mut data = vec![0; len];
            ports.port_read(port, &mut data);
            assert!(data.iter().all(|byte| *byte == 0xff), "{port:#x}");
            assert_eq!(ports.port_write(port, &data), None);
        }
        let mut data = [0; 8];
        ports.mmio_read(VIRTIO_DISK, &mut data);
        assert_eq!(data, [0xff; 8]);
    }

    #[test]
    fn the_ways_to_end_the_machine() {
        let ports = Ports::new([None, None, None], None);
        let cases: &[(u16, &[u8], Option<Outcome>)] = &[
            (0x64, &[0xfe], Some(Outcome::Reset)),
            (0x64, &[0xaa], None),
            (0x92, &[0x01], Some(Outcome::Reset)),
            (0x92, &[0x02], None),
            (0xcf9, &[0x06], Some(Outcome::Reset)),
            (0xcf9, &[0x02], None),
            (0x604, &[0x00, 0x34], Some(Outcome::PowerOff)),
            (0x604, &[0x00, 0x14], None),
        ];
        for (port, data, wanted) in cases {
            assert_eq!(ports.port_write(*port, data), *wanted, "{port:#x} {data:x?}");
        }
    }
}
