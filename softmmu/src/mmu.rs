//! The VM's MMU: memory slots, trackers, and what concerns all vCPUs.
//!
//! | event | where |
//! |---|---|
//! | guest page fault | `fault` |
//! | invlpg, mov to cr3, cr0, cr4, efer | `invalidate` |
//! | guest write to a tracked page | `Mmu::written`, `sync` |
//! | memory slots, dirty log, host mappings change | here |

use crate::dirty_ring::DirtyPage;
use crate::guest_memory::GuestMemory;
use crate::host_mem::HostPtr;
use crate::memslot::{
    ADDRESS_SPACES, MemRegion, MemRegionFlags, Memslot, MemslotChange, MemslotError, Memslots,
};
use crate::page_track::{CodePages, granules};
use crate::safepoint::{Exclusive, Requests, World};
use crate::shadow_page::{MIN_PAGES, Shadow, SptArena, default_limit};
use crate::shootdown::{CodeWrite, Peer, Peers};
use crate::stats::{ShadowStats, StatsSink};
use core::ops::Range;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::sync::{Arc, OnceLock};
use x86_arch::{Gfn, Gpa, Hva, PAGE_SHIFT, PAGE_SIZE};

/// What a VM's MMU is made with.
#[derive(Clone, Copy, Debug, Default)]
pub struct MmuConfig {
    /// Shadow pages at most; 0 chooses by the size of memory, as KVM does (KVM api 4.44, KVM_SET_NR_MMU_PAGES).
    pub shadow_pages: usize,
}

/// One VM's MMU: memory slots, shadow pages, trackers.
pub struct Mmu {
    world: Arc<World>,
    slots: [RwLock<Arc<Memslots>>; ADDRESS_SPACES],
    pub(crate) code: CodePages,
    pub(crate) peers: Peers,
    /// The spt arrays, which are read without a lock.
    pub(crate) arena: SptArena,
    /// `mmu_lock`, and what it protects.
    pub(crate) shadow: Mutex<Shadow>,
    /// [`MmuConfig::shadow_pages`], as it is now.
    shadow_pages: AtomicUsize,
    /// Some vCPU has a dirty ring.
    dirty_rings: AtomicBool,
    zap_all_quirk: AtomicBool,
    stats_sink: OnceLock<StatsSink>,
}

impl Mmu {
    /// A VM's MMU, without memory. Installs the handler for host faults.
    pub fn new(world: Arc<World>, config: MmuConfig) -> Arc<Mmu> {
        crate::host_mem::install_fault_handler();
        let (arena, shadow) = Shadow::new();
        Arc::new(Mmu {
            world,
            slots: Default::default(),
            code: CodePages::new(),
            peers: Peers::default(),
            arena,
            shadow: Mutex::new(shadow),
            shadow_pages: AtomicUsize::new(config.shadow_pages),
            dirty_rings: AtomicBool::new(false),
            zap_all_quirk: AtomicBool::new(true),
            stats_sink: OnceLock::new(),
        })
    }

    /// The VM's vCPU gates.
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    fn space(&self, as_id: u16) -> &RwLock<Arc<Memslots>> {
        &self.slots[usize::from(as_id) % ADDRESS_SPACES]
    }

    /// The slots of an address space, which do not change while the guard lives. Recursive, so that a
    /// writer who waits cannot come between two looks of one thread.
    pub(crate) fn lock_slots(&self, as_id: u16) -> RwLockReadGuard<'_, Arc<Memslots>> {
        self.space(as_id).read_recursive()
    }

    /// The slots of an address space as they are now.
    pub fn slots(&self, as_id: u16) -> Arc<Memslots> {
        Arc::clone(&self.lock_slots(as_id))
    }

    /// Creates, deletes, moves or re-flags a slot (KVM api 4.35). The caller may give the memory of a deleted slot
    /// back when this has returned and the section has ended.
    pub fn set_memory_region(&self, _ex: &Exclusive<'_>, region: MemRegion) -> Result<(), MemslotError> {
        if usize::from(region.as_id) >= ADDRESS_SPACES {
            return Err(MemslotError::Invalid);
        }
        let old = self.slots(region.as_id);
        let old_frames = old.by_id(region.slot).map_or(0..0, |slot| slot.region.frames());
        let (slots, change) = old.changed(region)?;
        if change == MemslotChange::None {
            return Ok(());
        }
        // Waits for accesses by gpa that use the old slots.
        *self.space(region.as_id).write() = Arc::new(slots);
        let limit = self.limit();
        let mut shadow = self.shadow.lock();
        match change {
            // What was said to be no memory may have become some.
            MemslotChange::Create => shadow.zap_mmio(&self.arena),
            MemslotChange::Flags => {
                if region.flags.contains(MemRegionFlags::LOG_DIRTY) {
                    shadow.write_protect_range(&self.arena, region.as_id, region.frames());
                }
            }
            // KVM_X86_QUIRK_SLOT_ZAP_ALL: everything, or what the slot held.
            MemslotChange::Delete | MemslotChange::Move => {
                if self.zap_all_quirk.load(Relaxed) {
                    shadow.zap_all(&self.arena);
                } else {
                    shadow.zap_range(&self.arena, region.as_id, old_frames.clone());
                    shadow.zap_mmio(&self.arena);
                }
            }
            MemslotChange::None => {}
        }
        shadow.limit = limit;
        drop(shadow);
        self.peers.request_all(Requests::MEMSLOTS | Requests::TLB_FLUSH);
        Ok(())
    }

    /// Whether a slot's deletion or move tears down every shadow page (KVM_X86_QUIRK_SLOT_ZAP_ALL: it does by default), or
    /// only what has to do with the slot.
    pub fn set_zap_all_quirk(&self, on: bool) {
        self.zap_all_quirk.store(on, Relaxed);
    }

    fn limit(&self) -> usize {
        match self.shadow_pages.load(Relaxed) {
            0 => default_limit((0..ADDRESS_SPACES as u16).map(|as_id| self.slots(as_id).total_pages()).sum()),
            limit => limit.max(MIN_PAGES),
        }
    }

    /// Sets how many shadow pages there may be (KVM api 4.44, KVM_SET_NR_MMU_PAGES); 0 goes back to the size of memory. Tears
    /// down what is too much.
    pub fn set_shadow_page_limit(&self, pages: usize) {
        self.shadow_pages.store(pages, Relaxed);
        let limit = self.limit();
        let mut shadow = self.shadow.lock();
        shadow.limit = limit;
        shadow.make_room(&self.arena, 0);
    }

    /// How many shadow pages there may be (KVM_GET_NR_MMU_PAGES).
    pub fn shadow_page_limit(&self) -> usize {
        self.shadow.lock().limit
    }

    /// What happened to the shadow pages so far.
    pub fn stats(&self) -> ShadowStats {
        let (flushes, flush_requests) = self.peers.counts();
        ShadowStats { flushes, flush_requests, ..self.shadow.lock().stats }
    }

    /// Who wants to see the counters whenever they are worth it. Once; a second one is dropped.
    pub fn set_stats_sink(&self, sink: StatsSink) {
        let _ = self.stats_sink.set(sink);
        self.show_stats();
    }

    /// Shows the counters to whoever wants to see them.
    pub fn show_stats(&self) {
        if let Some(sink) = self.stats_sink.get() {
            sink(&self.stats());
        }
    }

    /// Takes write access from the sptes of the pages whose bits are set, so that the next write to each is seen.
    fn protect_logged(&self, slot: &Memslot, first: u64, bits: &[u64]) {
        let shadow = self.shadow.lock();
        for (word, &bits) in (first / 64..).zip(bits) {
            let mut rest = bits;
            while rest != 0 {
                let page = word * 64 + u64::from(rest.trailing_zeros());
                rest &= rest - 1;
                if page < slot.pages() {
                    shadow.write_protect(&self.arena, slot.region.as_id, Gfn(slot.base_gfn().0 + page));
                }
            }
        }
        self.peers.request_all(Requests::TLB_FLUSH);
    }

    fn logged_slot(&self, as_id: u16, slot: u32) -> Result<Memslot, MemslotError> {
        if usize::from(as_id) >= ADDRESS_SPACES {
            return Err(MemslotError::Invalid);
        }
        self.slots(as_id).by_id(slot).cloned().ok_or(MemslotError::NoEntry)
    }

    /// The slot's dirty bitmap, one bit a page, which is cleared (KVM api 4.8).
    pub fn get_dirty_log(
        &self,
        _ex: &Exclusive<'_>,
        as_id: u16,
        slot: u32,
    ) -> Result<Vec<u64>, MemslotError> {
        let slot = self.logged_slot(as_id, slot)?;
        let bits = slot.dirty.as_ref().ok_or(MemslotError::NoEntry)?.take();
        if bits.iter().any(|&word| word != 0) {
            self.protect_logged(&slot, 0, &bits);
        }
        Ok(bits)
    }

    /// The slot's dirty bitmap, left as it is (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2).
    pub fn peek_dirty_log(&self, as_id: u16, slot: u32) -> Result<Vec<u64>, MemslotError> {
        let slot = self.logged_slot(as_id, slot)?;
        Ok(slot.dirty.as_ref().ok_or(MemslotError::NoEntry)?.snapshot())
    }

    /// Pages of the slot, if it has a dirty log.
    pub fn dirty_log_pages(&self, as_id: u16, slot: u32) -> Option<u64> {
        Some(self.logged_slot(as_id, slot).ok()?.dirty.as_ref()?.pages())
    }

    /// Every page of the slot counts as written; writes need not be seen until its bits are cleared
    /// (KVM_DIRTY_LOG_INITIALLY_SET).
    pub fn fill_dirty_log(&self, _ex: &Exclusive<'_>, as_id: u16, slot: u32) -> Result<(), MemslotError> {
        self.logged_slot(as_id, slot)?.dirty.as_ref().ok_or(MemslotError::NoEntry)?.fill();
        Ok(())
    }

    /// Clears the bits of `mask` from page `first` on, a multiple of 64 (KVM_CLEAR_DIRTY_LOG).
    pub fn clear_dirty_log(
        &self,
        _ex: &Exclusive<'_>,
        as_id: u16,
        slot: u32,
        first: u64,
        mask: &[u64],
    ) -> Result<(), MemslotError> {
        let slot = self.logged_slot(as_id, slot)?;
        let dirty = slot.dirty.as_ref().ok_or(MemslotError::NoEntry)?;
        if !first.is_multiple_of(64) || first > dirty.pages() {
            return Err(MemslotError::Invalid);
        }
        dirty.clear(first, mask);
        self.protect_logged(&slot, first, mask);
        Ok(())
    }

    pub(crate) fn use_dirty_rings(&self) {
        self.dirty_rings.store(true, Relaxed);
    }

    /// A page is written: into the slot's bitmap, and if it was clean there, into the ring of the vCPU that writes.
    pub(crate) fn mark_dirty(&self, slot: &Memslot, gfn: Gfn, me: Option<&Peer>) {
        if slot.mark_dirty(gfn)
            && self.dirty_rings.load(Relaxed)
            && let Some(offset) = slot.offset_of(gfn)
        {
            let number = u32::from(slot.region.as_id) << 16 | slot.region.slot;
            self.peers.dirtied(DirtyPage { slot: number, offset }, me);
        }
    }

    /// Takes what the caller has harvested from all dirty rings; the next write to each of those pages is seen
    /// again. How many entries that were (KVM_RESET_DIRTY_RINGS).
    pub fn reset_dirty_rings(&self, _ex: &Exclusive<'_>) -> usize {
        let mut pages: Vec<DirtyPage> = Vec::new();
        for peer in self.peers.all() {
            pages.extend(peer.ring.get().into_iter().flat_map(|ring| ring.take_harvested()));
        }
        if pages.is_empty() {
            return 0;
        }
        let count = pages.len();
        // Slot by slot.
        pages.sort_unstable_by_key(|page| (page.slot, page.offset));
        let shadow = self.shadow.lock();
        for of_slot in pages.chunk_by(|a, b| a.slot == b.slot) {
            let as_id = (of_slot[0].slot >> 16) as u16;
            let slots = self.slots(as_id);
            // The slot may have gone, or have become another.
            let Some(slot) = slots.by_id(of_slot[0].slot & 0xffff) else { continue };
            let Some(dirty) = &slot.dirty else { continue };
            for page in of_slot.iter().filter(|page| page.offset < slot.pages()) {
                dirty.unmark(page.offset);
                shadow.write_protect(&self.arena, as_id, Gfn(slot.base_gfn().0 + page.offset));
            }
        }
        drop(shadow);
        self.peers.request_all(Requests::TLB_FLUSH);
        count
    }

    /// Whether any slot has memory there.
    pub fn has_hva(&self, range: Range<Hva>) -> bool {
        let touched = |as_id| self.slots(as_id).touching_hva(range.start.0, range.end.0).next().is_some();
        (0..ADDRESS_SPACES as u16).any(touched)
    }

    /// The caller's mappings in `range` have changed: drops every translation of them, found through the reverse map.
    ///
    /// An spte holds an hva's frame number, not a host physical one, so that nothing was wrong with it; but what
    /// was decoded from the memory may be, and is looked at again when the page is fetched from next.
    pub fn invalidate_hva(&self, _ex: &Exclusive<'_>, range: Range<Hva>) {
        let mut shadow = self.shadow.lock();
        let mut touched = false;
        for as_id in 0..ADDRESS_SPACES as u16 {
            for slot in self.slots(as_id).touching_hva(range.start.0, range.end.0) {
                let begin = slot.region.hva.0;
                let from = range.start.0.max(begin);
                let to = range.end.0.min(begin + slot.region.size);
                touched = true;
                let base = slot.base_gfn().0;
                let pages = (from - begin) >> PAGE_SHIFT..(to - begin).div_ceil(PAGE_SIZE);
                shadow.zap_frames(&self.arena, as_id, base + pages.start..base + pages.end);
            }
        }
        if touched {
            self.peers.request_all(Requests::TLB_FLUSH);
        }
    }

    /// Access by gpa to an address space.
    pub fn guest_memory(self: &Arc<Self>, as_id: u16) -> GuestMemory {
        GuestMemory::new(Arc::clone(self), as_id)
    }

    /// After a store of `size` bytes within a page: tells everyone who tracks it. True: decoded code has changed.
    pub(crate) fn written(
        &self,
        as_id: u16,
        slot: &Memslot,
        gpa: Gpa,
        ptr: HostPtr,
        size: u64,
        me: Option<&Peer>,
    ) -> bool {
        let gfn = gpa.gfn();
        self.mark_dirty(slot, gfn, me);
        // The store comes before the look at who tracks the page.
        fence(SeqCst);
        if slot.offset_of(gfn).is_some_and(|offset| slot.tracks.is_page_table(offset)) {
            self.shadow.lock().gpte_written(&self.arena, as_id, gpa, size);
        }
        self.code_written(ptr, size, me)
    }

    /// After the walker has set an accessed or dirty bit: sptes stay as they are (but see `narrow_bits_set`), the dirty log and
    /// decoded code do not.
    pub(crate) fn table_bits_set(
        &self,
        as_id: u16,
        slot: &Memslot,
        gpa: Gpa,
        ptr: HostPtr,
        size: u64,
        by: &Peer,
    ) {
        let gfn = gpa.gfn();
        self.mark_dirty(slot, gfn, Some(by));
        if size == 4 && slot.offset_of(gfn).is_some_and(|offset| slot.tracks.is_page_table(offset)) {
            self.shadow.lock().narrow_bits_set(&self.arena, as_id, gpa);
        }
        self.code_written(ptr, size, None);
    }

    fn code_written(&self, ptr: HostPtr, size: u64, me: Option<&Peer>) -> bool {
        let hit = self.code.overwrite(ptr.frame(), granules(ptr.hva().page_offset(), size));
        if hit != 0 {
            self.peers.code_written(CodeWrite { frame: ptr.frame(), granules: hit }, me);
        }
        hit != 0
    }
}
