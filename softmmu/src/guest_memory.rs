//! Access to guest memory by gpa: the one write path.
//!
//! For what is not a guest instruction's own operand access: A/D bits, descriptors' accessed bits, TSS, SMM's save area,
//! kvmclock, steal time, device models, ioctls. A write marks the dirty log, refuses read-only slots, and tells
//! those who track the page. The TLB's write tags are the only shortcut past it.
//!
//! Not here: translation of a gva (`fault`).

use crate::host_mem::{self, HostFault, HostPtr, Word};
use crate::memslot::{Memslot, Memslots};
use crate::mmu::Mmu;
use crate::shootdown::Peer;
use crate::walk::{EntryUpdate, TableMemory};
use std::sync::Arc;
use x86_arch::{Gpa, Hva, PAGE_SIZE};

/// Why an access by gpa failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GuestMemoryError {
    /// No slot holds (all of) it.
    #[error("no memory at {0:x}")]
    NoSlot(Gpa),
    /// A write to a read-only slot.
    #[error("read-only memory at {0:x}")]
    ReadOnly(Gpa),
    /// The host's memory is gone.
    #[error(transparent)]
    Host(#[from] HostFault),
}

/// One address space of guest memory, by gpa. Cheap to clone; reads the slots as they are at each access, and keeps them
/// from changing during it.
#[derive(Clone)]
pub struct GuestMemory {
    mmu: Arc<Mmu>,
    as_id: u16,
    /// The vCPU that writes.
    me: Option<Arc<Peer>>,
}

impl GuestMemory {
    pub(crate) fn new(mmu: Arc<Mmu>, as_id: u16) -> GuestMemory {
        GuestMemory { mmu, as_id, me: None }
    }

    /// For writes on behalf of a vCPU, which go to its dirty ring.
    pub(crate) fn of_vcpu(mmu: Arc<Mmu>, as_id: u16, me: Arc<Peer>) -> GuestMemory {
        GuestMemory { mmu, as_id, me: Some(me) }
    }

    fn written(&self, slot: &Memslot, gpa: Gpa, ptr: HostPtr, size: u64) {
        let dirtied_by = self.me.as_deref();
        self.mmu.mark_dirty(slot, gpa.gfn(), dirtied_by);
        self.mmu.written(self.as_id, slot, gpa, ptr, size, None);
    }

    /// The address space.
    pub fn as_id(&self) -> u16 {
        self.as_id
    }

    /// Reads `out.len()` bytes.
    pub fn read(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), GuestMemoryError> {
        let slots = self.mmu.lock_slots(self.as_id);
        let mut at = gpa;
        let mut rest = out;
        while !rest.is_empty() {
            let n = page_part(at, rest.len());
            let (part, tail) = rest.split_at_mut(n);
            host_mem::copy_from(readable(&slots, at, 1)?, part)?;
            at = at.wrapping_add(n as u64);
            rest = tail;
        }
        Ok(())
    }

    /// Writes `bytes`. On an error the pages before the one that failed are written.
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), GuestMemoryError> {
        let slots = self.mmu.lock_slots(self.as_id);
        let mut at = gpa;
        let mut rest = bytes;
        while !rest.is_empty() {
            let n = page_part(at, rest.len());
            let (part, tail) = rest.split_at(n);
            let (slot, ptr) = writable(&slots, at, 1)?;
            let written = host_mem::copy_to(ptr, part);
            // Even a copy that stopped half-way has written something.
            self.written(slot, at, ptr, n as u64);
            written?;
            at = at.wrapping_add(n as u64);
            rest = tail;
        }
        Ok(())
    }

    /// Fills `len` bytes with one value.
    pub fn fill(&self, gpa: Gpa, byte: u8, len: u64) -> Result<(), GuestMemoryError> {
        let page = [byte; PAGE_SIZE as usize];
        let mut done = 0;
        while done < len {
            let at = gpa.wrapping_add(done);
            let n = page_part(at, usize::try_from(len - done).unwrap_or(usize::MAX));
            self.write(at, page.get(..n).unwrap_or(&page))?;
            done += n as u64;
        }
        Ok(())
    }

    /// Loads a word with one access. It must not cross a page.
    pub fn load<T: Word>(&self, gpa: Gpa) -> Result<T, GuestMemoryError> {
        let slots = self.mmu.lock_slots(self.as_id);
        Ok(host_mem::load(readable(&slots, gpa, T::SIZE)?)?)
    }

    /// Stores a word with one access. It must not cross a page.
    pub fn store<T: Word>(&self, gpa: Gpa, value: T) -> Result<(), GuestMemoryError> {
        let slots = self.mmu.lock_slots(self.as_id);
        let (slot, ptr) = writable(&slots, gpa, T::SIZE)?;
        host_mem::store(ptr, value)?;
        self.written(slot, gpa, ptr, T::SIZE);
        Ok(())
    }

    /// Whether `size` bytes there, within a page, are memory that may be written. Writes nothing.
    pub fn is_writable(&self, gpa: Gpa, size: u64) -> bool {
        writable(&self.mmu.lock_slots(self.as_id), gpa, size).is_ok()
    }

    /// `lock cmpxchg` on a word that does not cross a page: `Ok(Err(seen))` if it held something else.
    pub fn compare_exchange<T: Word>(
        &self,
        gpa: Gpa,
        old: T,
        new: T,
    ) -> Result<Result<T, T>, GuestMemoryError> {
        let slots = self.mmu.lock_slots(self.as_id);
        let (slot, ptr) = writable(&slots, gpa, T::SIZE)?;
        let result = host_mem::compare_exchange(ptr, old, new)?;
        if result.is_ok() {
            self.written(slot, gpa, ptr, T::SIZE);
        }
        Ok(result)
    }

    /// Which byte of the guest's lies at an address of the caller's; the first, if there are several.
    pub fn gpa_of(&self, hva: Hva) -> Option<Gpa> {
        let slots = self.mmu.lock_slots(self.as_id);
        let slot = slots.touching_hva(hva.0, hva.0.checked_add(1)?).next()?;
        Some(slot.region.gpa.wrapping_add(hva.0 - slot.region.hva.0))
    }

    /// Where a byte is, for reading at once.
    pub fn host_ptr(&self, gpa: Gpa) -> Option<HostPtr> {
        let slots = self.mmu.lock_slots(self.as_id);
        readable(&slots, gpa, 1).ok()
    }
}

/// How much of `len` lies in `gpa`'s page.
fn page_part(gpa: Gpa, len: usize) -> usize {
    len.min((PAGE_SIZE - gpa.page_offset()) as usize)
}

fn readable(slots: &Memslots, gpa: Gpa, size: u64) -> Result<HostPtr, GuestMemoryError> {
    let ptr = slots.find(gpa.gfn()).and_then(|slot| slot.host_ptr(gpa));
    // Slots are page-aligned at both ends and in both spaces, so an access within a page is within its slot.
    ptr.filter(|ptr| size <= ptr.page_remainder()).ok_or(GuestMemoryError::NoSlot(gpa))
}

fn writable(slots: &Memslots, gpa: Gpa, size: u64) -> Result<(&Memslot, HostPtr), GuestMemoryError> {
    let slot = slots.find(gpa.gfn()).ok_or(GuestMemoryError::NoSlot(gpa))?;
    if slot.read_only() {
        return Err(GuestMemoryError::ReadOnly(gpa));
    }
    let ptr = slot.host_ptr(gpa).filter(|ptr| size <= ptr.page_remainder());
    Ok((slot, ptr.ok_or(GuestMemoryError::NoSlot(gpa))?))
}

/// Guest page tables in a set of slots: what the walker reads on behalf of a vCPU.
pub(crate) struct SlotTables<'a> {
    pub mmu: &'a Mmu,
    pub as_id: u16,
    pub slots: &'a Memslots,
    /// The vCPU whose walk it is.
    pub peer: &'a Peer,
}

impl TableMemory for SlotTables<'_> {
    fn read_entry(&self, gpa: Gpa, wide: bool) -> Option<u64> {
        let ptr = readable(self.slots, gpa, if wide { 8 } else { 4 }).ok()?;
        if wide { host_mem::load::<u64>(ptr).ok() } else { host_mem::load::<u32>(ptr).ok().map(u64::from) }
    }

    fn update_entry(&self, gpa: Gpa, wide: bool, old: u64, new: u64) -> EntryUpdate {
        let size = if wide { 8 } else { 4 };
        let (slot, ptr) = match writable(self.slots, gpa, size) {
            Ok(found) => found,
            Err(GuestMemoryError::ReadOnly(_)) => return EntryUpdate::ReadOnly,
            Err(_) => return EntryUpdate::Failed,
        };
        let done = if wide {
            host_mem::compare_exchange(ptr, old, new).map(|r| r.is_ok())
        } else {
            // 4-byte entries were read as 4 bytes.
            host_mem::compare_exchange(ptr, old as u32, new as u32).map(|r| r.is_ok())
        };
        match done {
            Ok(true) => {
                self.mmu.table_bits_set(self.as_id, slot, gpa, ptr, size, self.peer);
                EntryUpdate::Done
            }
            Ok(false) => EntryUpdate::Changed,
            Err(_) => EntryUpdate::Failed,
        }
    }
}
