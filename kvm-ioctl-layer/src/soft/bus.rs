//! Devices that the VM has inside at the caller's wish: ioeventfds, and before an exit the coalesced zones
//! (`soft::coalesced`).
//!
//! The processor asks here after its own devices and before an exit. Not here: irqfds, which come from outside
//! (`soft::irqfd`).

use super::coalesced::Zones;
use crate::user_mem::{eventfd, eventfd_id};
use emu_core::vm::Bus;
use kvm_api::backend::RunPage;
use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;
use parking_lot::RwLock;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// One ioeventfd.
struct IoEvent {
    /// On another architecture's bus, where nobody writes here.
    ccw: bool,
    pio: bool,
    addr: u64,
    /// 0: any length (KVM_CAP_IOEVENTFD_ANY_LENGTH).
    len: u32,
    datamatch: Option<u64>,
    fd: EventFd,
    id: Option<u64>,
}

impl IoEvent {
    fn matches(&self, pio: bool, addr: u64, data: &[u8]) -> bool {
        !self.ccw
            && self.pio == pio
            && self.addr == addr
            && (self.len == 0 || self.len as usize == data.len())
            && self.datamatch.is_none_or(|want| {
                let mut b = [0; 8];
                let n = data.len().min(8);
                b[..n].copy_from_slice(&data[..n]);
                u64::from_le_bytes(b) == want
            })
    }

    /// Whether two registrations would both claim some access (EEXIST).
    fn collides(&self, o: &IoEvent) -> bool {
        (self.ccw, self.pio) == (o.ccw, o.pio)
            && self.addr == o.addr
            && (self.len == 0
                || o.len == 0
                || (self.len == o.len
                    && (self.datamatch.is_none() || o.datamatch.is_none() || self.datamatch == o.datamatch)))
    }
}

/// A VM's devices of this kind.
#[derive(Default)]
pub struct SoftBus {
    events: RwLock<Vec<IoEvent>>,
    zones: Zones,
}

impl SoftBus {
    /// KVM_IOEVENTFD.
    pub fn ioeventfd(&self, a: &kvm_ioeventfd) -> Result {
        const KNOWN: u32 = (1 << kvm_ioeventfd_flag_nr_max) - 1;
        let pio = a.flags & 1 << kvm_ioeventfd_flag_nr_pio != 0;
        let matching = a.flags & 1 << kvm_ioeventfd_flag_nr_datamatch != 0;
        let deassign = a.flags & 1 << kvm_ioeventfd_flag_nr_deassign != 0;
        // What is taken away only has to be there.
        let wrong = !matches!(a.len, 0 | 1 | 2 | 4 | 8)
            || a.addr.checked_add(u64::from(a.len)).is_none()
            || a.flags & !KNOWN != 0
            // A match needs a length to be compared over.
            || (a.len == 0 && matching);
        if wrong && !deassign {
            return Err(Errno::EINVAL);
        }
        let ccw = !pio && a.flags & 1 << kvm_ioeventfd_flag_nr_virtio_ccw_notify != 0;
        let fd = eventfd(a.fd)?;
        let id = eventfd_id(&fd);
        let datamatch = matching.then_some(a.datamatch);
        let event = IoEvent { ccw, pio, addr: a.addr, len: a.len, datamatch, fd, id };
        let mut events = self.events.write();
        if deassign {
            let at = events.iter().position(|e| {
                (e.ccw, e.pio) == (event.ccw, event.pio)
                    && e.addr == event.addr
                    && e.len == event.len
                    && e.datamatch == event.datamatch
                    && e.id == event.id
            });
            events.remove(at.ok_or(Errno::ENOENT)?);
        } else {
            if events.iter().any(|e| e.collides(&event)) {
                return Err(Errno::EEXIST);
            }
            events.push(event);
        }
        Ok(())
    }

    fn write(&self, pio: bool, addr: u64, data: &[u8]) -> bool {
        {
            let events = self.events.read();
            if let Some(e) = events.iter().find(|e| e.matches(pio, addr, data)) {
                // A counter at its maximum is signalled already.
                let _ = e.fd.write(1);
                return true;
            }
        }
        self.zones.write(pio, addr, data)
    }

    /// Where coalesced writes go.
    pub fn set_ring(&self, ring: Arc<dyn RunPage>) {
        self.zones.set_ring(ring);
    }

    /// KVM_(UN)REGISTER_COALESCED_MMIO.
    pub fn coalesced(&self, zone: &kvm_coalesced_mmio_zone, register: bool) -> Result {
        if register { self.zones.register(zone) } else { self.zones.unregister(zone) }
    }
}

impl Bus for SoftBus {
    fn pio_write(&self, port: u16, data: &[u8]) -> bool {
        self.write(true, u64::from(port), data)
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        self.write(false, gpa, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn args(fd: &EventFd, addr: u64, len: u32, flags: u32, datamatch: u64) -> kvm_ioeventfd {
        kvm_ioeventfd { datamatch, addr, len, fd: fd.as_raw_fd(), flags, ..Default::default() }
    }

    const PIO: u32 = 1 << kvm_ioeventfd_flag_nr_pio;
    const MATCH: u32 = 1 << kvm_ioeventfd_flag_nr_datamatch;
    const DEASSIGN: u32 = 1 << kvm_ioeventfd_flag_nr_deassign;

    #[test]
    fn matching() {
        let bus = SoftBus::default();
        let e = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        bus.ioeventfd(&args(&e, 0x70, 2, PIO | MATCH, 0x1234)).unwrap();
        assert!(!bus.pio_write(0x70, &[0x34, 0x13]));
        assert!(!bus.pio_write(0x70, &[0x34]));
        assert!(!bus.mmio_write(0x70, &[0x34, 0x12]));
        assert!(bus.pio_write(0x70, &[0x34, 0x12]));
        assert_eq!(e.read().unwrap(), 1);
        bus.ioeventfd(&args(&e, 0x70, 2, PIO | MATCH | DEASSIGN, 0x1234)).unwrap();
        assert!(!bus.pio_write(0x70, &[0x34, 0x12]));
    }

    #[test]
    fn any_length() {
        let bus = SoftBus::default();
        let e = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        bus.ioeventfd(&args(&e, 0xd000_0000, 0, 0, 0)).unwrap();
        assert!(bus.mmio_write(0xd000_0000, &[1, 2, 3, 4]));
        assert!(bus.mmio_write(0xd000_0000, &[1]));
    }

    #[test]
    fn errors() {
        let bus = SoftBus::default();
        let e = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let fail = |a| bus.ioeventfd(&a).unwrap_err();
        assert_eq!(fail(args(&e, 0, 3, 0, 0)), Errno::EINVAL);
        assert_eq!(fail(args(&e, 0, 0, MATCH, 0)), Errno::EINVAL);
        assert_eq!(fail(args(&e, u64::MAX, 8, 0, 0)), Errno::EINVAL);
        assert_eq!(fail(args(&e, 0, 4, 1 << 30, 0)), Errno::EINVAL);
        assert_eq!(fail(args(&e, 0, 4, DEASSIGN, 0)), Errno::ENOENT);
        let mut bad = args(&e, 0, 4, 0, 0);
        bad.fd = -1;
        assert_eq!(fail(bad), Errno::EBADF);
        bus.ioeventfd(&args(&e, 0, 4, 0, 0)).unwrap();
        assert_eq!(fail(args(&e, 0, 4, MATCH, 1)), Errno::EEXIST);
        bus.ioeventfd(&args(&e, 0, 2, 0, 0)).unwrap();
    }
}
