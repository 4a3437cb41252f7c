//! Memory slots: which gpa is which hva (KVM api 4.35, KVM_SET_USER_MEMORY_REGION).
//!
//! The slots of an address space are an immutable sorted array behind an `Arc`. A change makes a new array,
//! in an exclusive section; each vCPU takes the new one before it runs again. What outlives a change (dirty bitmap,
//! tracking counts) hangs off the slot by `Arc`s of its own.
//!
//! Not here: who is told of a change (`mmu`), and what is tracked (`page_track`, `dirty`).

use crate::dirty::DirtyBitmap;
use crate::host_mem::HostPtr;
use crate::page_track::SlotTracks;
use bitflags::bitflags;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
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

    /// Records a write to a frame of this slot, if the slot is logged.
    pub(crate) fn mark_dirty(&self, gfn: Gfn) {
        if let (Some(dirty), Some(offset)) = (&self.dirty, self.offset_of(gfn)) {
            dirty.mark(offset);
        }
    }
}

/// The slots of one address space, sorted by gfn.
#[derive(Default, Debug)]
pub struct Memslots {
    slots: Box<[Memslot]>,
    /// Where the last look-up hit: most come in runs.
    last: AtomicUsize,
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
    fn new(mut slots: Vec<Memslot>) -> Memslots {
        slots.sort_by_key(|slot| slot.region.gpa);
        Memslots { slots: slots.into_boxed_slice(), last: AtomicUsize::new(0) }
    }

    /// All of them, by gfn.
    pub fn iter(&self) -> impl Iterator<Item = &Memslot> {
        self.slots.iter()
    }

    /// The slot that holds a frame.
    pub fn find(&self, gfn: Gfn) -> Option<&Memslot> {
        if let Some(slot) = self.slots.get(self.last.load(Relaxed)).filter(|s| s.offset_of(gfn).is_some()) {
            return Some(slot);
        }
        let at = self.slots.partition_point(|slot| slot.base_gfn() <= gfn).checked_sub(1)?;
        let slot = self.slots.get(at).filter(|slot| slot.offset_of(gfn).is_some())?;
        self.last.store(at, Relaxed);
        Some(slot)
    }

    /// The slot with a number.
    pub fn by_id(&self, id: u32) -> Option<&Memslot> {
        self.slots.iter().find(|slot| slot.region.slot == id)
    }

    /// All frames together.
    pub fn total_pages(&self) -> u64 {
        self.slots.iter().map(Memslot::pages).sum()
    }

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
        let others = || self.slots.iter().filter(|slot| slot.region.slot != region.slot);
        if region.size == 0 {
            if old.is_none() {
                return Err(MemslotError::Invalid);
            }
            return Ok((Memslots::new(others().cloned().collect()), MemslotChange::Delete));
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
        if matches!(change, MemslotChange::Create | MemslotChange::Move) {
            if (region.gpa.0 + region.size) >> PAGE_SHIFT > MAX_GFN {
                return Err(MemslotError::Invalid);
            }
            let overlaps = |slot: &Memslot| {
                slot.region.gpa.0 < region.gpa.0 + region.size
                    && region.gpa.0 < slot.region.gpa.0 + slot.region.size
            };
            if others().any(overlaps) {
                return Err(MemslotError::Exists);
            }
        }
        let logged = region.flags.contains(MemRegionFlags::LOG_DIRTY);
        let dirty = logged.then(|| match old.and_then(|old| old.dirty.clone()) {
            Some(kept) => kept,
            None => Arc::new(DirtyBitmap::new(region.size >> PAGE_SHIFT)),
        });
        let tracks = match old {
            Some(old) if change != MemslotChange::Move => Arc::clone(&old.tracks),
            _ => Arc::new(SlotTracks::new(region.size >> PAGE_SHIFT)),
        };
        let slot = Memslot { region, dirty, tracks };
        Ok((Memslots::new(others().cloned().chain([slot]).collect()), change))
    }
}
