//! Memory slots and the dirty log of the software backend: argument checks, then `softmmu`.

use kvm_api::backend::{EXIT_UNION, RunPage};
use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;
use softmmu::{GuestMemory, GuestMemoryError, MemRegion, MemRegionFlags, MemslotError, Mmu};
use x86_arch::{Gpa, Hva, PAGE_MASK, PAGE_SIZE};

/// The errno of a refusal.
pub fn errno(e: MemslotError) -> Errno {
    match e {
        MemslotError::Invalid => Errno::EINVAL,
        MemslotError::Exists => Errno::EEXIST,
        MemslotError::NoMemory => Errno::ENOMEM,
        MemslotError::NoEntry => Errno::ENOENT,
    }
}

/// A slot's number and address space from KVM's `slot`.
fn split(slot: u32) -> (u32, u16) {
    (slot & 0xffff, (slot >> 16) as u16)
}

/// KVM_SET_USER_MEMORY_REGION(2) (KVM api 4.34 of 2010, 4.35 today). `spaces`: address spaces that this VM has.
/// `log_full`: a new dirty log begins with every bit set.
pub fn set_user_memory_region(
    mmu: &Mmu,
    r: &kvm_userspace_memory_region2,
    spaces: u16,
    log_full: bool,
) -> Result {
    // guest_memfd is not offered (KVM_CAP_GUEST_MEMFD is 0).
    let flags = MemRegionFlags::from_bits(r.flags).ok_or(Errno::EINVAL)?;
    let (slot, as_id) = split(r.slot);
    if as_id >= spaces {
        return Err(Errno::EINVAL);
    }
    let region = MemRegion {
        slot,
        as_id,
        gpa: Gpa(r.guest_phys_addr),
        size: r.memory_size,
        hva: Hva(r.userspace_addr),
        flags,
    };
    mmu.world()
        .exclusive(None, |ex| {
            let logged = mmu.dirty_log_pages(as_id, slot).is_some();
            mmu.set_memory_region(ex, region)?;
            if log_full && !logged && mmu.dirty_log_pages(as_id, slot).is_some() {
                mmu.fill_dirty_log(ex, as_id, slot)?;
            }
            Ok(())
        })
        .map_err(errno)
}

/// KVM_GET_DIRTY_LOG (4.7): the slot's bitmap, which is cleared, unless the caller does that by KVM_CLEAR_DIRTY_LOG.
pub fn get_dirty_log(mmu: &Mmu, slot: u32, spaces: u16, manual: bool) -> Result<Vec<u64>> {
    let (slot, as_id) = split(slot);
    if as_id >= spaces || slot >= 32767 {
        return Err(Errno::EINVAL);
    }
    if manual {
        return mmu.peek_dirty_log(as_id, slot).map_err(errno);
    }
    mmu.world().exclusive(None, |ex| mmu.get_dirty_log(ex, as_id, slot)).map_err(errno)
}

/// How many pages KVM_CLEAR_DIRTY_LOG speaks of, checked: a part of the slot that begins at a multiple of 64 pages and
/// ends at one, or at the slot's end.
pub fn check_clear(mmu: &Mmu, slot: u32, first: u64, pages: u64, spaces: u16) -> Result<()> {
    let (slot, as_id) = split(slot);
    if as_id >= spaces || slot >= 32767 || !first.is_multiple_of(64) {
        return Err(Errno::EINVAL);
    }
    let all = mmu.dirty_log_pages(as_id, slot).ok_or(Errno::ENOENT)?;
    let rest = all.checked_sub(first).ok_or(Errno::EINVAL)?;
    if pages > rest || (pages < rest && !pages.is_multiple_of(64)) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// KVM_CLEAR_DIRTY_LOG: the pages of `bits` from `first` on are clean, and writes to them are seen again.
pub fn clear_dirty_log(mmu: &Mmu, slot: u32, first: u64, bits: &[u64], spaces: u16) -> Result<()> {
    check_clear(mmu, slot, first, 0, spaces)?;
    let (slot, as_id) = split(slot);
    mmu.world().exclusive(None, |ex| mmu.clear_dirty_log(ex, as_id, slot, first, bits)).map_err(errno)
}

/// KVM_EXIT_MEMORY_FAULT beside EFAULT (KVM api 7.34): which page it was that the caller does not have any more.
pub fn tell_fault(memory: &GuestMemory, page: &dyn RunPage, hva: u64) {
    let Some(gpa) = memory.gpa_of(Hva(hva)) else { return };
    for (n, word) in [0, gpa.0 & !PAGE_MASK, PAGE_SIZE].into_iter().enumerate() {
        page.store(EXIT_UNION + 8 * n, &word.to_le_bytes());
    }
    page.set_exit_reason(KVM_EXIT_MEMORY_FAULT);
}

/// KVM_PRE_FAULT_MEMORY: reads each page once, so that the host brings it in. How many bytes were done, if any were.
pub fn pre_fault(memory: &GuestMemory, gpa: u64, size: u64) -> Result<u64> {
    if (gpa | size) & PAGE_MASK != 0 || size == 0 || gpa.checked_add(size).is_none() {
        return Err(Errno::EINVAL);
    }
    let mut done = 0;
    while done < size {
        match memory.load::<u8>(Gpa(gpa + done)) {
            Ok(_) => done += PAGE_SIZE,
            Err(_) if done != 0 => break,
            Err(GuestMemoryError::Host(_)) => return Err(Errno::EFAULT),
            Err(_) => return Err(Errno::ENOENT),
        }
    }
    Ok(done)
}

/// The caller's mappings of `[start, start + len)` have changed.
pub fn invalidate_hva(mmu: &Mmu, start: u64, len: u64) {
    let end = start.saturating_add(len);
    // A slot that comes meanwhile has no translation of what was there before.
    if mmu.has_hva(Hva(start)..Hva(end)) {
        mmu.world().exclusive(None, |ex| mmu.invalidate_hva(ex, Hva(start)..Hva(end)));
    }
}
