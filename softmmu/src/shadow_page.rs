//! Shadow pages: mmu.txt's `struct kvm_mmu_page`, the arena of their spt arrays, and the hash that finds them.
//!
//! Two halves. [`SptArena`] is what the emulated hardware walks, without a lock: arrays of atomics that are never given back while the
//! VM lives, plus a generation which changes whenever a page is freed, so that a walk which met a page freed and used again
//! meanwhile can tell. [`Shadow`] is everything else, behind `mmu_lock`.
//!
//! Not here: how pages are filled (`fault`), written through (`sync`) and torn down (`zap`).

use crate::memslot::Memslot;
use crate::page_track::SlotTracks;
use crate::rmap::{PteList, Rmap, SpteRef};
use crate::role::Role;
use crate::spte::Spte;
use crate::stats::ShadowStats;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{
    AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release, Ordering::SeqCst, fence,
};
use std::sync::{Arc, OnceLock};
use x86_arch::Gfn;

/// Entries of an spt.
pub const SPT_ENTRIES: usize = 512;
/// 512 sptes: what mmu.txt calls `spt`.
type Spt = [AtomicU64; SPT_ENTRIES];
/// Spts of one allocation (256 KiB).
const CHUNK: usize = 64;
/// Chunks at most: 2^18 pages, 1 GiB of spts.
const CHUNKS: usize = 4096;

/// The spt arrays, by frame. Frame 0 is never used.
pub(crate) struct SptArena {
    chunks: Box<[OnceLock<Box<[Spt; CHUNK]>>; CHUNKS]>,
    /// Changes before a freed page is used again.
    generation: AtomicU64,
    /// Changes when a page that is some vCPU's root becomes invalid.
    root_generation: AtomicU64,
}

/// An array on the heap, made there.
fn boxed<T, const N: usize>(make: impl Fn() -> T) -> Box<[T; N]> {
    let made: Box<[T]> = (0..N).map(|_| make()).collect();
    match made.try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("N elements were made"),
    }
}

impl SptArena {
    fn new() -> SptArena {
        SptArena {
            chunks: boxed(OnceLock::new),
            generation: AtomicU64::new(0),
            root_generation: AtomicU64::new(0),
        }
    }

    #[inline]
    fn spt(&self, frame: u64) -> Option<&Spt> {
        let frame = frame as usize;
        Some(&self.chunks.get(frame / CHUNK)?.get()?[frame % CHUNK])
    }

    /// An entry, as the emulated hardware reads it.
    #[inline]
    pub fn read(&self, frame: u64, index: usize) -> Spte {
        self.spt(frame).map_or(Spte::EMPTY, |spt| Spte(spt[index % SPT_ENTRIES].load(Acquire)))
    }

    /// Sets an entry; under `mmu_lock` only.
    pub fn write(&self, at: SpteRef, spte: Spte) {
        if let Some(spt) = self.spt(u64::from(at.frame)) {
            spt[usize::from(at.index) % SPT_ENTRIES].store(spte.0, Release);
        }
    }

    /// Begins a walk without the lock.
    #[inline]
    pub fn begin(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// Whether nothing that the walk met was freed meanwhile.
    #[inline]
    pub fn still(&self, generation: u64) -> bool {
        fence(Acquire);
        self.generation.load(Relaxed) == generation
    }

    pub fn root_generation(&self) -> u64 {
        self.root_generation.load(Acquire)
    }

    pub fn invalidate_roots(&self) {
        self.root_generation.fetch_add(1, SeqCst);
    }

    /// A page was unlinked and is about to be free.
    fn bump(&self) {
        self.generation.fetch_add(1, SeqCst);
    }
}

/// One shadow page. The fields are mmu.txt's.
#[derive(Debug)]
pub(crate) struct ShadowPage {
    pub role: Role,
    /// The guest page table that this page shadows, or the first frame of a linear range (role.direct).
    pub gfn: Gfn,
    /// For each leaf spte the frame that it maps. Not for direct pages (it can be computed) and not above level 1 (no leaves there).
    gfns: Option<Box<[u64; SPT_ENTRIES]>>,
    /// Bit `n % 64` for each slot n that an spte here maps memory of.
    pub slot_bitmap: u64,
    /// How many vCPU roots point here.
    pub root_count: u32,
    /// The sptes that point here.
    pub parent_ptes: PteList,
    /// Writes to the guest's table since a fault last came through this page.
    pub write_flooding_count: u8,
    /// The count that keeps the guest's table write-protected.
    tracked: Option<(Arc<SlotTracks>, u64)>,
    /// Present sptes (leaf, nonleaf, MMIO).
    pub used: u32,
    /// Which life of the frame this is.
    serial: u64,
}

/// A frame that shall be shadowed as soon as every vCPU has dropped its write tags.
#[derive(Debug)]
struct Armed {
    epoch: u64,
    tracks: Arc<SlotTracks>,
    offset: u64,
    /// Writes since a fault last asked for it.
    writes: u8,
}

/// Armed frames at most; beyond this the oldest efforts are given up.
const MAX_ARMED: usize = 64;

/// Whether a guest page table can be shadowed now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protected {
    /// It is write-protected everywhere.
    Yes,
    /// Some vCPU may still hold a write tag; try at a later fault.
    NotYet,
}

/// How a caller of [`Shadow::protect`] takes write tags away: posts the shootdown (the returned number is its epoch).
pub(crate) trait Shootdown {
    /// Drops the caller's own write tags of the host frame, and asks the other vCPUs to.
    fn drop_write_tags(&mut self, hva_frame: u64) -> u64;
    /// Whether all others have, or will before they run again.
    fn quiesced(&self, epoch: u64) -> bool;
}

/// What `mmu_lock` protects.
pub(crate) struct Shadow {
    pub pages: Vec<Option<Box<ShadowPage>>>,
    free: Vec<u32>,
    /// By gfn and role; invalid pages are not in it.
    hash: HashMap<(Gfn, Role), u32>,
    /// The non-direct pages that shadow a gfn of an address space.
    by_gfn: HashMap<(u16, Gfn), Vec<u32>>,
    /// Oldest first; an element is stale if the frame's serial differs.
    active: VecDeque<(u32, u64)>,
    armed: HashMap<(u16, Gfn), Armed>,
    pub rmap: Rmap,
    /// Where MMIO sptes were set; some may have gone since.
    pub mmio_sptes: Vec<SpteRef>,
    /// From so many on, the list is looked through for those that have gone.
    mmio_limit: usize,
    pub stats: ShadowStats,
    pub limit: usize,
    next_serial: u64,
}

impl Shadow {
    /// No pages. The arena is made with it.
    pub fn new() -> (SptArena, Shadow) {
        let shadow = Shadow {
            // Frame 0 is "no page".
            pages: vec![None],
            free: Vec::new(),
            hash: HashMap::new(),
            by_gfn: HashMap::new(),
            active: VecDeque::new(),
            armed: HashMap::new(),
            rmap: Rmap::default(),
            mmio_sptes: Vec::new(),
            mmio_limit: MMIO_SPTES,
            stats: ShadowStats::default(),
            limit: MIN_PAGES,
            next_serial: 1,
        };
        (SptArena::new(), shadow)
    }

    pub fn page(&self, frame: u32) -> Option<&ShadowPage> {
        self.pages.get(frame as usize)?.as_deref()
    }

    pub fn page_mut(&mut self, frame: u32) -> Option<&mut ShadowPage> {
        self.pages.get_mut(frame as usize)?.as_deref_mut()
    }

    /// The pages in use.
    pub fn frames(&self) -> impl Iterator<Item = (u32, &ShadowPage)> {
        (0u32..).zip(&self.pages).filter_map(|(frame, page)| Some((frame, page.as_deref()?)))
    }

    /// The page for a gfn and role, if there is one.
    pub fn find(&self, gfn: Gfn, role: Role) -> Option<u32> {
        self.hash.get(&(gfn, role)).copied()
    }

    /// The pages that shadow this guest page table.
    pub fn shadows_of(&self, as_id: u16, gfn: Gfn) -> &[u32] {
        self.by_gfn.get(&(as_id, gfn)).map_or(&[], Vec::as_slice)
    }

    /// Makes a page. A non-direct one's `table` says in which slot the guest's table lies; it must have been
    /// [protected](Self::protect), and the protection passes to the page.
    pub fn create(&mut self, arena: &SptArena, gfn: Gfn, role: Role, table: Option<&Memslot>) -> Option<u32> {
        let frame = match self.free.pop() {
            Some(frame) => frame,
            None => {
                let frame = u32::try_from(self.pages.len()).ok()?;
                let chunk = arena.chunks.get(frame as usize / CHUNK)?;
                chunk.get_or_init(|| boxed(|| [const { AtomicU64::new(0) }; SPT_ENTRIES]));
                self.pages.push(None);
                frame
            }
        };
        let tracked = if role.direct() {
            None
        } else {
            let slot = table?;
            let offset = slot.offset_of(gfn)?;
            let key = (role.as_id(), gfn);
            // The count that arming took is the first page's; later pages add theirs.
            if self.armed.remove(&key).is_none() {
                slot.tracks.add_page_table(offset);
            }
            self.by_gfn.entry(key).or_default().push(frame);
            Some((Arc::clone(&slot.tracks), offset))
        };
        let serial = self.next_serial;
        self.next_serial += 1;
        let gfns = (!role.direct() && role.level() == 1).then(|| Box::new([0; SPT_ENTRIES]));
        let page = ShadowPage {
            role,
            gfn,
            gfns,
            slot_bitmap: 0,
            root_count: 0,
            parent_ptes: PteList::Empty,
            write_flooding_count: 0,
            tracked,
            used: 0,
            serial,
        };
        *self.pages.get_mut(frame as usize)? = Some(Box::new(page));
        self.hash.insert((gfn, role), frame);
        self.active.push_back((frame, serial));
        self.stats.created += 1;
        self.stats.pages += 1;
        if self.active.len() > 2 * self.pages.len() + MIN_PAGES {
            let pages = &self.pages;
            let lives = |frame: u32, serial: u64| {
                pages.get(frame as usize).and_then(Option::as_ref).is_some_and(|page| page.serial == serial)
            };
            self.active.retain(|&(frame, serial)| lives(frame, serial));
        }
        Some(frame)
    }

    /// Takes a page out of the hash and ends the write protection of its guest table.
    pub fn unhash(&mut self, frame: u32) {
        let Some(page) = self.page_mut(frame) else { return };
        let (gfn, role) = (page.gfn, page.role);
        if let Some((tracks, offset)) = page.tracked.take() {
            tracks.remove_page_table(offset);
        }
        if self.hash.get(&(gfn, role)) == Some(&frame) {
            self.hash.remove(&(gfn, role));
        }
        if let Some(list) = self.by_gfn.get_mut(&(role.as_id(), gfn)) {
            list.retain(|&f| f != frame);
            if list.is_empty() {
                self.by_gfn.remove(&(role.as_id(), gfn));
            }
        }
    }

    /// Gives back a page that nothing points at, whose sptes are empty.
    pub fn release(&mut self, arena: &SptArena, frame: u32) {
        // Before anyone can write its next content.
        arena.bump();
        if let Some(page) = self.pages.get_mut(frame as usize).and_then(Option::take) {
            debug_assert!(page.root_count == 0 && page.parent_ptes.as_slice().is_empty() && page.used == 0);
            self.free.push(frame);
            self.stats.pages -= 1;
        }
    }

    /// The oldest page that no root holds.
    pub fn oldest(&mut self) -> Option<u32> {
        for _ in 0..self.active.len() {
            let (frame, serial) = self.active.pop_front()?;
            let Some(page) = self.page(frame).filter(|page| page.serial == serial) else { continue };
            let pinned = page.root_count != 0;
            self.active.push_back((frame, serial));
            if !pinned {
                return Some(frame);
            }
        }
        None
    }

    /// Write-protects a guest page table so that it can be shadowed: everyone's sptes first, then everyone's TLB tags.
    pub fn protect(
        &mut self,
        arena: &SptArena,
        as_id: u16,
        gfn: Gfn,
        slot: &Memslot,
        shootdown: &mut impl Shootdown,
    ) -> Protected {
        if !self.shadows_of(as_id, gfn).is_empty() {
            return Protected::Yes;
        }
        let Some(offset) = slot.offset_of(gfn) else { return Protected::NotYet };
        let epoch = match self.armed.get_mut(&(as_id, gfn)) {
            Some(armed) => {
                armed.writes = 0;
                armed.epoch
            }
            None => {
                if self.armed.len() >= MAX_ARMED {
                    self.disarm_all();
                }
                slot.tracks.add_page_table(offset);
                self.write_protect(arena, as_id, gfn);
                let Some(ptr) = slot.host_ptr(gfn.base()) else { return Protected::NotYet };
                let epoch = shootdown.drop_write_tags(ptr.frame());
                self.stats.protected += 1;
                self.armed.insert(
                    (as_id, gfn),
                    Armed { epoch, tracks: Arc::clone(&slot.tracks), offset, writes: 0 },
                );
                epoch
            }
        };
        if shootdown.quiesced(epoch) {
            Protected::Yes
        } else {
            self.stats.deferred += 1;
            Protected::NotYet
        }
    }

    /// A frame that was being protected is written. Too often: it will not become a page table soon.
    pub fn armed_written(&mut self, as_id: u16, gfn: Gfn, too_often: u8) {
        let Some(armed) = self.armed.get_mut(&(as_id, gfn)) else { return };
        armed.writes += 1;
        if armed.writes >= too_often {
            armed.tracks.remove_page_table(armed.offset);
            self.armed.remove(&(as_id, gfn));
        }
    }

    /// Gives up all protection that no shadow page uses.
    pub fn disarm_all(&mut self) {
        for (_, armed) in self.armed.drain() {
            armed.tracks.remove_page_table(armed.offset);
        }
    }

    /// Frames that are armed, for the audit.
    pub fn is_armed(&self, as_id: u16, gfn: Gfn) -> bool {
        self.armed.contains_key(&(as_id, gfn))
    }

    /// Takes write access from every spte that maps the frame.
    pub fn write_protect(&self, arena: &SptArena, as_id: u16, gfn: Gfn) {
        for &at in self.rmap.get(as_id, gfn.0) {
            let spte = arena.read(u64::from(at.frame), usize::from(at.index));
            if spte.is_writable() {
                arena.write(at, spte.write_protected());
            }
        }
    }

    /// The frame that a leaf spte of this page maps.
    pub fn gfn_of(&self, at: SpteRef) -> Option<u64> {
        let page = self.page(at.frame)?;
        if page.role.direct() {
            Some(page.gfn.0 + (u64::from(at.index) << (9 * (u32::from(page.role.level()) - 1))))
        } else {
            page.gfns.as_ref().and_then(|gfns| gfns.get(usize::from(at.index))).copied()
        }
    }

    /// Sets a leaf (or MMIO) spte and its reverse mapping.
    pub fn set_leaf(&mut self, arena: &SptArena, at: SpteRef, spte: Spte, gfn: Gfn, slot: Option<u32>) {
        let old = arena.read(u64::from(at.frame), usize::from(at.index));
        if old == spte && (!spte.is_present() || self.gfn_of(at) == Some(gfn.0)) {
            return;
        }
        self.drop_spte(arena, at);
        let Some(page) = self.page_mut(at.frame) else { return };
        if let Some(entry) = page.gfns.as_mut().and_then(|gfns| gfns.get_mut(usize::from(at.index))) {
            *entry = gfn.0;
        }
        if let Some(slot) = slot {
            page.slot_bitmap |= 1 << (slot % 64);
        }
        page.used += 1;
        let as_id = page.role.as_id();
        if spte.is_present() {
            self.rmap.add(as_id, gfn.0, at);
            self.stats.pages_4k += 1;
            self.stats.rmap_peak = self.stats.rmap_peak.max(self.rmap.get(as_id, gfn.0).len() as u64);
        } else {
            self.stats.mmio_sptes += 1;
            if self.mmio_sptes.len() >= self.mmio_limit {
                let of = |at: &SpteRef| arena.read(u64::from(at.frame), usize::from(at.index));
                self.mmio_sptes.retain(|at| of(at).is_mmio());
                self.mmio_sptes.sort_unstable_by_key(|at| (at.frame, at.index));
                self.mmio_sptes.dedup();
                self.mmio_limit = MMIO_SPTES.max(2 * self.mmio_sptes.len());
            }
            self.mmio_sptes.push(at);
        }
        self.stats.mapped += 1;
        arena.write(at, spte);
    }

    /// Points an empty spte at a shadow page.
    pub fn link(&mut self, arena: &SptArena, at: SpteRef, child: u32) {
        if let Some(page) = self.page_mut(child) {
            page.parent_ptes.add(at);
        }
        if let Some(page) = self.page_mut(at.frame) {
            page.used += 1;
        }
        arena.write(at, Spte::nonleaf(child));
    }

    /// Empties an spte, whatever it is, and what hangs on it in the reverse maps.
    pub fn drop_spte(&mut self, arena: &SptArena, at: SpteRef) {
        let old = arena.read(u64::from(at.frame), usize::from(at.index));
        if old == Spte::EMPTY {
            return;
        }
        arena.write(at, Spte::EMPTY);
        let Some(page) = self.page_mut(at.frame) else { return };
        page.used -= 1;
        let (as_id, level) = (page.role.as_id(), page.role.level());
        if !old.is_present() {
            return;
        }
        if level > 1 {
            if let Some(child) = u32::try_from(old.frame()).ok().and_then(|child| self.page_mut(child)) {
                let removed = child.parent_ptes.remove(at);
                debug_assert!(removed, "a nonleaf spte without its parent_pte");
            }
        } else if let Some(gfn) = self.gfn_of(at) {
            let removed = self.rmap.remove(as_id, gfn, at);
            self.stats.pages_4k -= 1;
            debug_assert!(removed, "a leaf spte without its reverse mapping");
        }
    }
}

/// The list of MMIO sptes is not looked through before it has so many.
const MMIO_SPTES: usize = 4096;

/// KVM's least number of shadow pages.
pub(crate) const MIN_PAGES: usize = 64;

/// Shadow pages for this much memory: KVM's 2 %.
pub(crate) fn default_limit(memory_pages: u64) -> usize {
    let limit = usize::try_from(memory_pages / 50).unwrap_or(usize::MAX);
    limit.clamp(MIN_PAGES, CHUNK * CHUNKS / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perm::PageRights;
    use crate::spte::Leaf;

    /// A walk without the lock that holds a frame across its page's teardown and reuse notices.
    #[test]
    fn a_freed_page_is_noticed() {
        let (arena, mut shadow) = Shadow::new();
        let direct = Role::default().with_direct(true);
        let root = shadow.create(&arena, Gfn(0), direct.with_level(2), None).unwrap();
        let child = shadow.create(&arena, Gfn(0), direct.with_level(1), None).unwrap();
        shadow.link(&arena, SpteRef { frame: root, index: 7 }, child);
        let rights = PageRights::ALL;
        let leaf =
            |frame| Spte::leaf(Leaf { frame, rights, global: false, host_writable: true, untracked: true });
        let at = SpteRef { frame: child, index: 3 };
        shadow.set_leaf(&arena, at, leaf(0x111), Gfn(3), None);

        let walk = arena.begin();
        let link = arena.read(u64::from(root), 7);
        assert_eq!(arena.read(link.frame(), 3), leaf(0x111));
        assert!(arena.still(walk));

        // Torn down and made anew for something else, between the walk's two reads.
        let walk = arena.begin();
        let link = arena.read(u64::from(root), 7);
        shadow.zap_page(&arena, child);
        let other = shadow.create(&arena, Gfn(512), direct.with_level(1), None).unwrap();
        assert_eq!(other, child, "the frame is used again");
        shadow.set_leaf(&arena, SpteRef { frame: other, index: 3 }, leaf(0x222), Gfn(515), None);
        assert_eq!(arena.read(link.frame(), 3), leaf(0x222));
        assert!(!arena.still(walk));
        assert_eq!(arena.read(u64::from(root), 7), Spte::EMPTY);
        assert_eq!(shadow.rmap.get(0, 3), []);
    }

    #[test]
    fn a_root_outlives_its_teardown() {
        let (arena, mut shadow) = Shadow::new();
        let role = Role::default().with_direct(true).with_level(2);
        let root = shadow.create(&arena, Gfn(0), role, None).unwrap();
        shadow.pin(root);
        let generation = arena.root_generation();
        shadow.zap_page(&arena, root);
        assert_ne!(arena.root_generation(), generation);
        assert!(shadow.page(root).unwrap().role.invalid());
        assert_eq!(shadow.find(Gfn(0), role), None);
        assert_ne!(shadow.create(&arena, Gfn(0), role, None), Some(root));
        shadow.unpin(&arena, root);
        assert!(shadow.page(root).is_none());
    }

    #[test]
    fn the_limit_follows_memory() {
        for (pages, limit) in [(0, 64), (1000, 64), (131_072, 2621), (u64::MAX, CHUNK * CHUNKS / 2)] {
            assert_eq!(default_limit(pages), limit);
        }
    }
}
