//! Memory slots: which gpa is which hva (KVM api 4.35, KVM_SET_USER_MEMORY_REGION).
//!
//! The slots of an address space are an immutable table behind an `Arc` (`slot_table`). A change makes a new table,
//! in an exclusive section; each vCPU takes the new one before it runs again. What outlives a change (dirty bitmap,
//! tracking counts) hangs off the slot by `Arc`s of its own.
//!
//! Not here: who is told of a change (`mmu`), and what is tracked (`page_track`, `dirty`).

use crate::dirty::DirtyBitmap;
use crate::host_mem::HostPtr;
use crate::page_track::SlotTracks;
pub use crate::slot_table::Memslots;
use bitflags::bitflags;
use std::sync::Arc;
use x86_arch::{Gfn, Gpa, Hva, PAGE_MASK, PAGE_SHIFT};

/// Address spaces: 0, and 1 for system-management mode.
pub const ADDRESS_SPACES: usize = 2;
/// Slot numbers are below this (KVM_CAP_NR_MEMSLOTS: today's kernels say SHRT_MAX - 3).
pub const MAX_SLOTS: u32 = 32764;
/// The end of what a 4-level host gives to processes.
const HVA_END: u64 = 0x7fff_ffff_f000;
/// Frames of the widest physical address.
const MAX_GFN: u64 = 1 << (52 - PAGE_SHIFT);
/// Pages of one slot at most, as in Linux.
const MAX_PAGES: u64 = (1 << 31) - 1;

bitflags! {
    /// Flags of a memory slot.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct MemRegionFlags: u32 {
        /// Writes are recorded in the slot's dirty bitmap.
        const LOG_DIRTY = 1 << 0;
        /// The guest's writes go to userspace as MMIO.
        const READONLY = 1 << 1;
    }
}

/// What a caller asks for: one slot of one address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemRegion {
    /// The slot's number.
    pub slot: u32,
    /// The address space: 0, or 1 for system-management mode.
    pub as_id: u16,
    /// Where it begins in the guest's physical memory.
    pub gpa: Gpa,
    /// Bytes; 0 deletes the slot.
    pub size: u64,
    /// Where it begins in the caller's memory.
    pub hva: Hva,
    /// Its flags.
    pub flags: MemRegionFlags,
}

impl MemRegion {
    /// Its frames.
    pub fn frames(&self) -> core::ops::Range<u64> {
        self.gpa.gfn().0..(self.gpa.0.wrapping_add(self.size)) >> PAGE_SHIFT
    }
}

/// Why a change of slots was refused; the names are the errnos'.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemslotError {
    /// EINVAL.
    #[error("invalid memory region")]
    Invalid,
    /// EEXIST: it overlaps another slot.
    #[error("memory region overlaps a slot")]
    Exists,
    /// ENOMEM.
    #[error("out of memory")]
    NoMemory,
    /// ENOENT: the slot has no dirty log, or does not exist.
    #[error("no such slot or dirty log")]
    NoEntry,
}

/// One slot in force.
#[derive(Clone, Debug)]
pub struct Memslot {
    /// As it was asked for.
    pub region: MemRegion,
    /// Which of its pages were written, with [`MemRegionFlags::LOG_DIRTY`].
    pub dirty: Option<Arc<DirtyBitmap>>,
    /// It has had its log from its creation: a page counts as dirty when it is first mapped where it could be
    /// written, as in KVM, which maps it writable then. In a slot that gets its log later only writes count.
    pub logs_mappings: bool,
    /// Who wants to know of writes to its pages.
    pub tracks: Arc<SlotTracks>,
}

impl Memslot {
    /// The first frame.
    pub fn base_gfn(&self) -> Gfn {
        self.region.gpa.gfn()
    }

    /// Frames.
    pub fn pages(&self) -> u64 {
        self.region.size >> PAGE_SHIFT
    }

    /// The frame's place in the slot, if it is in it.
    pub fn offset_of(&self, gfn: Gfn) -> Option<u64> {
        let offset = gfn.0.wrapping_sub(self.base_gfn().0);
        (offset < self.pages()).then_some(offset)
    }

    /// Where a byte of this slot is. For a gpa outside it, nothing.
    pub(crate) fn host_ptr(&self, gpa: Gpa) -> Option<HostPtr> {
        let offset = gpa.0.wrapping_sub(self.region.gpa.0);
        (offset < self.region.size).then(|| HostPtr::new(self.region.hva.0 + offset))
    }

    /// Whether the guest's writes are refused.
    pub fn read_only(&self) -> bool {
        self.region.flags.contains(MemRegionFlags::READONLY)
    }

    /// Whether the dirty log has yet to hear of writes to the page at `offset`.
    pub(crate) fn logged_clean(&self, offset: u64) -> bool {
        self.dirty.as_ref().is_some_and(|dirty| !dirty.is_dirty(offset))
    }

    /// Records a write to a frame of this slot, if the slot is logged. True: the page was clean before.
    pub(crate) fn mark_dirty(&self, gfn: Gfn) -> bool {
        match (&self.dirty, self.offset_of(gfn)) {
            (Some(dirty), Some(offset)) => dirty.mark(offset),
            _ => false,
        }
    }
}

/// What a change was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemslotChange {
    /// Nothing differs.
    None,
    /// A new slot.
    Create,
    /// A slot has gone.
    Delete,
    /// A slot has another gpa.
    Move,
    /// Only the flags differ.
    Flags,
}

impl Memslots {
    /// The slots after a change, by the rules of KVM_SET_USER_MEMORY_REGION; `self` stays as it is.
    pub fn changed(&self, region: MemRegion) -> Result<(Memslots, MemslotChange), MemslotError> {
        let end = region.hva.0.checked_add(region.size);
        if region.slot >= MAX_SLOTS
            || usize::from(region.as_id) >= ADDRESS_SPACES
            || (region.size | region.gpa.0 | region.hva.0) & PAGE_MASK != 0
            || end.is_none_or(|end| end > HVA_END)
            || region.gpa.0.checked_add(region.size).is_none()
            || region.size >> PAGE_SHIFT > MAX_PAGES
        {
            return Err(MemslotError::Invalid);
        }
        let old = self.by_id(region.slot);
        if region.size == 0 {
            if old.is_none() {
                return Err(MemslotError::Invalid);
            }
            return Ok((self.without(region.slot), MemslotChange::Delete));
        }
        let change = match old.map(|old| old.region) {
            None => MemslotChange::Create,
            // The memory behind a slot, its size and whether it can be written are for its lifetime.
            Some(old)
                if old.hva != region.hva
                    || old.size != region.size
                    || (old.flags ^ region.flags).contains(MemRegionFlags::READONLY) =>
            {
                return Err(MemslotError::Invalid);
            }
            Some(old) if old.gpa != region.gpa => MemslotChange::Move,
            Some(old) if old.flags != region.flags => MemslotChange::Flags,
            Some(_) => MemslotChange::None,
        };
        let pages = region.size >> PAGE_SHIFT;
        if matches!(change, MemslotChange::Create | MemslotChange::Move) {
            if (region.gpa.0 + region.size) >> PAGE_SHIFT > MAX_GFN {
                return Err(MemslotError::Invalid);
            }
            // A slot may move onto its own old place.
            let rest = old.map(|_| self.without(region.slot));
            if rest.as_ref().unwrap_or(self).overlapping(region.gpa.gfn(), pages).is_some() {
                return Err(MemslotError::Exists);
            }
        }
        let logged = region.flags.contains(MemRegionFlags::LOG_DIRTY);
        let dirty = logged.then(|| match old.and_then(|old| old.dirty.clone()) {
            Some(kept) => kept,
            None => Arc::new(DirtyBitmap::new(pages)),
        });
        let tracks = match old {
            Some(old) if change != MemslotChange::Move => Arc::clone(&old.tracks),
            _ => Arc::new(SlotTracks::new(pages)),
        };
        let logs_mappings = logged && old.is_none_or(|old| old.logs_mappings);
        let slot = Memslot { region, dirty, logs_mappings, tracks };
        let rest = match change {
            MemslotChange::Create => self.with(slot),
            _ => self.without(region.slot).with(slot),
        };
        Ok((rest, change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RO: MemRegionFlags = MemRegionFlags::READONLY;
    const LOG: MemRegionFlags = MemRegionFlags::LOG_DIRTY;
    const NONE: MemRegionFlags = MemRegionFlags::empty();

    fn region(slot: u32, gpa: u64, size: u64, hva: u64, flags: MemRegionFlags) -> MemRegion {
        MemRegion { slot, as_id: 0, gpa: Gpa(gpa), size, hva: Hva(hva), flags }
    }

    /// Slots 1 at 0x10000 (four pages) and 2 at 0x20000 (one page, read-only).
    fn two() -> Memslots {
        let (slots, _) = Memslots::default().changed(region(1, 0x1_0000, 0x4000, 0x70_0000, NONE)).unwrap();
        slots.changed(region(2, 0x2_0000, 0x1000, 0x80_0000, RO)).unwrap().0
    }

    #[test]
    fn the_rules_of_the_ioctl() {
        use MemslotChange as C;
        use MemslotError as E;
        let top = 1u64 << 52;
        for (what, region, expected) in [
            ("create", region(0, 0, 0x1_0000, 0x60_0000, NONE), Ok(C::Create)),
            ("create beside", region(3, 0x1_4000, 0x1000, 0x60_0000, NONE), Ok(C::Create)),
            ("one hva in two slots", region(3, 0x3_0000, 0x1000, 0x70_0000, NONE), Ok(C::Create)),
            ("gpa not aligned", region(3, 0x3_0001, 0x1000, 0x60_0000, NONE), Err(E::Invalid)),
            ("size not aligned", region(3, 0x3_0000, 0x1001, 0x60_0000, NONE), Err(E::Invalid)),
            ("hva not aligned", region(3, 0x3_0000, 0x1000, 0x60_0010, NONE), Err(E::Invalid)),
            ("slot number", region(MAX_SLOTS, 0x3_0000, 0x1000, 0x60_0000, NONE), Err(E::Invalid)),
            (
                "address space",
                MemRegion { as_id: 2, ..region(3, 0x3_0000, 0x1000, 0x60_0000, NONE) },
                Err(E::Invalid),
            ),
            ("gpa wraps", region(3, 0xffff_ffff_ffff_f000, 0x1000, 0x60_0000, NONE), Err(E::Invalid)),
            ("gpa too wide", region(3, top, 0x1000, 0x60_0000, NONE), Err(E::Invalid)),
            ("the last frame", region(3, top - 0x1000, 0x1000, 0x60_0000, NONE), Ok(C::Create)),
            ("hva of the kernel", region(3, 0x3_0000, 0x1000, 0xffff_8000_0000_0000, NONE), Err(E::Invalid)),
            ("too many pages", region(3, 0x3_0000, 1 << 43, 0x1000, NONE), Err(E::Invalid)),
            ("overlap at the end", region(3, 0x1_3000, 0x1000, 0x60_0000, NONE), Err(E::Exists)),
            ("overlap around", region(3, 0, 0x10_0000, 0x60_0000, NONE), Err(E::Exists)),
            ("delete", region(1, 0x1_0000, 0, 0x70_0000, NONE), Ok(C::Delete)),
            ("delete says nothing else", region(1, 0, 0, 0, LOG), Ok(C::Delete)),
            ("delete nothing", region(7, 0, 0, 0, NONE), Err(E::Invalid)),
            ("the same again", region(1, 0x1_0000, 0x4000, 0x70_0000, NONE), Ok(C::None)),
            ("move", region(1, 0x8_0000, 0x4000, 0x70_0000, NONE), Ok(C::Move)),
            ("move onto itself", region(1, 0x1_1000, 0x4000, 0x70_0000, NONE), Ok(C::Move)),
            ("move onto another", region(1, 0x1_d000, 0x4000, 0x70_0000, NONE), Err(E::Exists)),
            ("log", region(1, 0x1_0000, 0x4000, 0x70_0000, LOG), Ok(C::Flags)),
            ("another size", region(1, 0x1_0000, 0x3000, 0x70_0000, NONE), Err(E::Invalid)),
            ("another hva", region(1, 0x1_0000, 0x4000, 0x71_0000, NONE), Err(E::Invalid)),
            ("make read-only", region(1, 0x1_0000, 0x4000, 0x70_0000, RO), Err(E::Invalid)),
            ("make writable", region(2, 0x2_0000, 0x1000, 0x80_0000, NONE), Err(E::Invalid)),
        ] {
            assert_eq!(two().changed(region).map(|(_, change)| change), expected, "{what}");
        }
    }

    #[test]
    fn looking_up() {
        let slots = two();
        let found = |gfn| slots.find(Gfn(gfn)).map(|slot| slot.region.slot);
        for (gfn, slot) in [
            (0xf, None),
            (0x10, Some(1)),
            (0x20, Some(2)),
            (0x13, Some(1)),
            (0x14, None),
            (0x21, None),
            (u64::MAX, None),
            (0, None),
            (0x10, Some(1)),
        ] {
            assert_eq!(found(gfn), slot, "gfn {gfn:#x}");
        }
        assert_eq!(slots.total_pages(), 5);
        let slot = slots.by_id(1).unwrap();
        assert_eq!(slot.host_ptr(Gpa(0x1_0123)), Some(HostPtr::new(0x70_0123)));
        assert_eq!(slot.host_ptr(Gpa(0x1_4000)), None);
        assert_eq!(slot.host_ptr(Gpa(0xffff)), None);
    }

    #[test]
    fn what_outlives_a_change() {
        let logged = |slots: &Memslots| slots.by_id(1).unwrap().dirty.clone();
        let (slots, _) = two().changed(region(1, 0x1_0000, 0x4000, 0x70_0000, LOG)).unwrap();
        slots.by_id(1).unwrap().mark_dirty(Gfn(0x12));
        assert!(logged(&slots).unwrap().is_dirty(2));
        // Another slot comes: the bits stay. Logging ends and begins: they do not.
        let (more, _) = slots.changed(region(5, 0x5_0000, 0x1000, 0x90_0000, NONE)).unwrap();
        assert!(logged(&more).unwrap().is_dirty(2));
        let (off, _) = slots.changed(region(1, 0x1_0000, 0x4000, 0x70_0000, NONE)).unwrap();
        assert!(logged(&off).is_none());
        let (on, _) = off.changed(region(1, 0x1_0000, 0x4000, 0x70_0000, LOG)).unwrap();
        assert!(!logged(&on).unwrap().is_dirty(2));
    }
}
