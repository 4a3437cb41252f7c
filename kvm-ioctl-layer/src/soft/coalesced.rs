//! Coalesced writes: a write to a registered zone is queued in a ring that the VMM reads at its next exit, and causes none
//! itself (api.rst, KVM_REGISTER_COALESCED_MMIO).
//!
//! The ring is `struct kvm_coalesced_mmio_ring` in a page that the caller maps. Its indices are the caller's to write,
//! so each is read once and checked.

use crate::user_mem::bytes_of;
use kvm_api::backend::RunPage;
use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;

/// Zones that a VM may have: the kernel's limit on devices of a bus.
const MAX_ZONES: usize = 1000;
const HEADER: usize = 8;
const ENTRY: usize = size_of::<kvm_coalesced_mmio>();

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Zone {
    pio: bool,
    addr: u64,
    size: u64,
}

impl Zone {
    fn of(z: &kvm_coalesced_mmio_zone) -> Result<Zone> {
        let pio: u32 = crate::user_mem::member(z, 12);
        if pio > 1 {
            return Err(Errno::EINVAL);
        }
        Ok(Zone { pio: pio == 1, addr: z.addr, size: u64::from(z.size) })
    }

    fn covers(&self, pio: bool, addr: u64, len: u64) -> bool {
        let Some(from) = addr.checked_sub(self.addr) else { return false };
        self.pio == pio && len != 0 && from.checked_add(len).is_some_and(|end| end <= self.size)
    }
}

/// A VM's zones, and where their writes go.
#[derive(Default)]
pub(super) struct Zones {
    zones: RwLock<Vec<Zone>>,
    /// Writers take turns: two vCPUs may write at once.
    ring: Mutex<Option<Arc<dyn RunPage>>>,
}

impl Zones {
    pub(super) fn set_ring(&self, ring: Arc<dyn RunPage>) {
        *self.ring.lock() = Some(ring);
    }

    /// KVM_REGISTER_COALESCED_MMIO.
    pub(super) fn register(&self, zone: &kvm_coalesced_mmio_zone) -> Result {
        let zone = Zone::of(zone)?;
        let mut zones = self.zones.write();
        if zones.len() >= MAX_ZONES {
            return Err(Errno::ENOSPC);
        }
        zones.push(zone);
        Ok(())
    }

    /// KVM_UNREGISTER_COALESCED_MMIO: every zone that covers the one named; there need not be one.
    pub(super) fn unregister(&self, zone: &kvm_coalesced_mmio_zone) -> Result {
        let zone = Zone::of(zone)?;
        self.zones.write().retain(|z| !z.covers(zone.pio, zone.addr, zone.size));
        Ok(())
    }

    /// Queues a write; false if it is nobody's, or the ring is full.
    pub(super) fn write(&self, pio: bool, addr: u64, data: &[u8]) -> bool {
        if !self.zones.read().iter().any(|z| z.covers(pio, addr, data.len() as u64)) {
            return false;
        }
        let ring = self.ring.lock();
        let Some(ring) = ring.as_deref() else { return false };
        let entries = ((ring.size() - HEADER) / ENTRY) as u32;
        let word = |at: usize| {
            let mut b = [0; 4];
            ring.load(at, &mut b);
            u32::from_le_bytes(b)
        };
        let (first, last) = (word(0), word(4));
        // One place stays empty, to tell a full ring from an empty one.
        if last >= entries || (last + 1) % entries == first || data.len() > 8 {
            return false;
        }
        let mut entry = kvm_coalesced_mmio { phys_addr: addr, len: data.len() as u32, ..Default::default() };
        entry.data[..data.len()].copy_from_slice(data);
        crate::user_mem::set_member(&mut entry, 12, &u32::from(pio));
        // In order: the entry is there before `last` says so. The index fits in one byte.
        ring.store(HEADER + last as usize * ENTRY, bytes_of(&entry));
        ring.store(4, &((last + 1) % entries).to_le_bytes());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_page::RingMapping;

    fn zone(addr: u64, size: u32, pio: u32) -> kvm_coalesced_mmio_zone {
        let mut z = kvm_coalesced_mmio_zone { addr, size, ..Default::default() };
        crate::user_mem::set_member(&mut z, 12, &pio);
        z
    }

    fn zones() -> (Zones, Arc<RingMapping>) {
        let ring = Arc::new(RingMapping::new().unwrap());
        let zones = Zones::default();
        zones.set_ring(ring.clone());
        (zones, ring)
    }

    fn word(ring: &RingMapping, at: usize) -> u32 {
        let mut b = [0; 4];
        ring.load(at, &mut b);
        u32::from_le_bytes(b)
    }

    #[test]
    fn writes_inside_a_zone_are_queued() {
        let (zones, ring) = zones();
        zones.register(&zone(0x1000, 0x10, 0)).unwrap();
        zones.register(&zone(0x70, 2, 1)).unwrap();
        assert!(zones.write(false, 0x1004, &[1, 2, 3, 4]));
        assert!(zones.write(true, 0x71, &[9]));
        for (pio, addr, len) in
            [(false, 0xfff, 2), (false, 0x100e, 4), (true, 0x1004, 4), (false, 0x70, 1), (true, 0x71, 2)]
        {
            assert!(!zones.write(pio, addr, &[0; 8][..len]), "{addr:#x}");
        }
        assert_eq!((word(&ring, 0), word(&ring, 4)), (0, 2));
        let mut entry = [0; ENTRY];
        ring.load(HEADER, &mut entry);
        assert_eq!(entry[..16], [4, 0x10, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(entry[16..20], [1, 2, 3, 4]);
        ring.load(HEADER + ENTRY, &mut entry);
        assert_eq!((entry[0], entry[8], entry[12], entry[16]), (0x71, 1, 1, 9));
    }

    #[test]
    fn a_full_ring_and_a_wrong_one_are_exits() {
        let (zones, ring) = zones();
        zones.register(&zone(0, 8, 0)).unwrap();
        let queued = (0..1000).take_while(|_| zones.write(false, 0, &[1])).count();
        // KVM_COALESCED_MMIO_MAX, less the empty place.
        assert_eq!(queued, (4096 - 8) / 24 - 1);
        ring.store(0, &5u32.to_le_bytes());
        assert!(zones.write(false, 0, &[1]));
        ring.store(4, &u32::MAX.to_le_bytes());
        assert!(!zones.write(false, 0, &[1]));
    }

    #[test]
    fn zones_go_again() {
        let (zones, _ring) = zones();
        assert_eq!(zones.register(&zone(0, 8, 2)), Err(Errno::EINVAL));
        zones.register(&zone(0, 0x100, 0)).unwrap();
        zones.unregister(&zone(0x200, 8, 0)).unwrap();
        assert!(zones.write(false, 0, &[1]));
        zones.unregister(&zone(0, 0x100, 1)).unwrap();
        assert!(zones.write(false, 0, &[1]));
        zones.unregister(&zone(0, 0x100, 0)).unwrap();
        assert!(!zones.write(false, 0, &[1]));
        for _ in 0..MAX_ZONES {
            zones.register(&zone(0, 8, 0)).unwrap();
        }
        assert_eq!(zones.register(&zone(0, 8, 0)), Err(Errno::ENOSPC));
    }
}
