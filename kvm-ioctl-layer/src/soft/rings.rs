//! Dirty rings of the software backend (KVM api 8.29): who may switch them on, and the caller's pages as `softmmu` sees them.
//!
//! Not here: the ring itself (`softmmu::dirty_ring`), its memory (`run_page`), the bitmaps (`soft::memory`).

use super::vm::VmSettings;
use kvm_api::backend::{DIRTY_RING_MAX, DirtyRing};
use kvm_api::errno::{Errno, Result};
use softmmu::{Mmu, RingEntries};
use std::sync::Arc;

/// The smallest ring: a page.
const MIN_BYTES: u64 = 4096;

/// KVM_ENABLE_CAP of KVM_CAP_DIRTY_LOG_RING or _ACQ_REL, which are one on x86: once, before any vCPU, with a power of two.
pub fn enable(settings: &mut VmSettings, bytes: u64) -> Result {
    // A kernel keeps the size in 32 bits; what is above them is lost.
    let bytes = bytes & u64::from(u32::MAX);
    if !bytes.is_power_of_two() || bytes < MIN_BYTES {
        return Err(Errno::EINVAL);
    }
    if bytes > DIRTY_RING_MAX as u64 {
        return Err(Errno::E2BIG);
    }
    if settings.dirty_ring != 0 || !settings.vcpu_ids.is_empty() {
        return Err(Errno::EINVAL);
    }
    settings.dirty_ring = bytes as usize;
    Ok(())
}

/// The log is bitmaps, or those who ask for one get ENXIO.
pub fn not_in_use(settings: &VmSettings) -> Result {
    if settings.dirty_ring == 0 { Ok(()) } else { Err(Errno::ENXIO) }
}

/// KVM_RESET_DIRTY_RINGS.
pub fn reset(mmu: &Mmu, settings: &VmSettings) -> Result<u32> {
    if settings.dirty_ring == 0 {
        return Err(Errno::EINVAL);
    }
    Ok(mmu.world().exclusive(None, |ex| mmu.reset_dirty_rings(ex)) as u32)
}

/// The front end's entries for `softmmu`.
pub struct Entries(pub Arc<dyn DirtyRing>);

impl RingEntries for Entries {
    fn count(&self) -> u32 {
        self.0.count()
    }

    fn flags(&self, index: u32) -> u32 {
        self.0.flags(index)
    }

    fn publish(&self, index: u32, slot: u32, offset: u64) {
        self.0.publish(index, slot, offset);
    }

    fn clear(&self, index: u32) {
        self.0.clear(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_switch_them_on() {
        let e = |n: i32| Err(Errno(n));
        for (bytes, expected) in [
            (0, e(22)),
            (16, e(22)),
            (2048, e(22)),
            (4096, Ok(())),
            (4097, e(22)),
            (12288, e(22)),
            (1 << 20, Ok(())),
            (2 << 20, e(7)),
            (1 << 32, e(22)),
            (1 << 32 | 4096, Ok(())),
        ] {
            assert_eq!(enable(&mut VmSettings::default(), bytes), expected, "{bytes}");
        }
        let mut twice = VmSettings { dirty_ring: 4096, ..Default::default() };
        assert_eq!(enable(&mut twice, 8192), e(22));
        let mut late = VmSettings { vcpu_ids: vec![0], ..Default::default() };
        assert_eq!(enable(&mut late, 8192), e(22));
    }
}
