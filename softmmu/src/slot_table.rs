//! The slots of an address space as a sorted table that is never changed: a change makes a new one that shares nearly all of the
//! old. A VM may have 32,764 slots, and vCPUs may look at the old table while the new one is made.
//!
//! Chunks of up to [`CHUNK`] slots, sorted by gfn, behind `Arc`s; the places of slot numbers likewise. A look-up is two binary
//! searches, a change copies one chunk and the list of chunks.
//!
//! Not here: which changes are allowed (`memslot`).

use crate::hva_index::{HvaIndex, HvaRange};
use crate::memslot::Memslot;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use x86_arch::Gfn;

/// Slots of a chunk at most.
const CHUNK: usize = 64;
/// Slot numbers of a group.
const GROUP: usize = 64;
/// No slot has this number.
const NONE: u64 = u64::MAX;

/// The slots of one address space, sorted by gfn.
#[derive(Default, Debug)]
pub struct Memslots {
    /// The first frame of each chunk; none is empty.
    firsts: Vec<u64>,
    chunks: Vec<Arc<Vec<Memslot>>>,
    /// The first frame of each slot, by number.
    numbers: Vec<Option<Arc<[u64; GROUP]>>>,
    count: usize,
    pages: u64,
    /// Where the last look-up hit, chunk and place: most come in runs.
    last: AtomicUsize,
    /// By hva; made when somebody first asks, and kept from then on.
    by_hva: OnceLock<HvaIndex>,
}

fn hva_range(slot: &Memslot) -> HvaRange {
    let start = slot.region.hva.0;
    HvaRange { start, first: slot.base_gfn().0, end: start + slot.region.size }
}

impl Clone for Memslots {
    fn clone(&self) -> Memslots {
        Memslots {
            firsts: self.firsts.clone(),
            chunks: self.chunks.clone(),
            numbers: self.numbers.clone(),
            count: self.count,
            pages: self.pages,
            last: AtomicUsize::new(0),
            by_hva: OnceLock::new(),
        }
    }
}

impl Memslots {
    /// The slots that `[start, end)` of the caller's memory touches.
    pub fn touching_hva(&self, start: u64, end: u64) -> impl Iterator<Item = &Memslot> {
        let index = self.by_hva.get_or_init(|| HvaIndex::new(self.iter().map(hva_range)));
        index.touching(start, end).filter_map(|range| {
            let (chunk, place) = self.before(Gfn(range.first))?;
            self.chunks[chunk].get(place)
        })
    }

    /// Takes an index over, changed, if there is one: a table that nobody asks does not pay for it.
    fn index_from(&mut self, old: &Memslots, change: impl FnOnce(&HvaIndex) -> HvaIndex) {
        self.by_hva = old.by_hva.get().map(change).map_or_else(OnceLock::new, OnceLock::from);
    }

    /// All of them, by gfn.
    pub fn iter(&self) -> impl Iterator<Item = &Memslot> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All frames together.
    pub fn total_pages(&self) -> u64 {
        self.pages
    }

    /// The last slot that begins at or before a frame: its chunk and its place there.
    fn before(&self, gfn: Gfn) -> Option<(usize, usize)> {
        let chunk = self.firsts.partition_point(|&first| first <= gfn.0).checked_sub(1)?;
        let place = self.chunks[chunk].partition_point(|slot| slot.base_gfn() <= gfn).checked_sub(1)?;
        Some((chunk, place))
    }

    /// The slot that holds a frame.
    #[inline]
    pub fn find(&self, gfn: Gfn) -> Option<&Memslot> {
        let last = self.last.load(Relaxed);
        let hit = self.chunks.get(last / CHUNK).and_then(|chunk| chunk.get(last % CHUNK));
        if let Some(slot) = hit.filter(|slot| slot.offset_of(gfn).is_some()) {
            return Some(slot);
        }
        let (chunk, place) = self.before(gfn)?;
        let slot = self.chunks[chunk].get(place).filter(|slot| slot.offset_of(gfn).is_some())?;
        self.last.store(chunk * CHUNK + place, Relaxed);
        Some(slot)
    }

    /// The slot with a number.
    pub fn by_id(&self, id: u32) -> Option<&Memslot> {
        let group = self.numbers.get(id as usize / GROUP)?.as_ref()?;
        let first = group[id as usize % GROUP];
        if first == NONE {
            return None;
        }
        let (chunk, place) = self.before(Gfn(first))?;
        self.chunks[chunk].get(place)
    }

    /// A slot that shares a frame with `[first, first + pages)`.
    pub fn overlapping(&self, first: Gfn, pages: u64) -> Option<&Memslot> {
        let end = Gfn(first.0.saturating_add(pages));
        if end <= first {
            return None;
        }
        // The last one that begins before the end is the only one that can.
        let (chunk, place) = self.before(Gfn(end.0 - 1))?;
        self.chunks[chunk].get(place).filter(|slot| slot.base_gfn().0 + slot.pages() > first.0)
    }

    fn set_number(&mut self, id: u32, first: u64) {
        let at = id as usize / GROUP;
        if self.numbers.len() <= at {
            self.numbers.resize(at + 1, None);
        }
        let group = self.numbers[at].get_or_insert_with(|| Arc::new([NONE; GROUP]));
        Arc::make_mut(group)[id as usize % GROUP] = first;
    }

    /// Without the slot of this number.
    pub(crate) fn without(&self, id: u32) -> Memslots {
        let mut new = self.clone();
        let Some(found) = self.by_id(id).and_then(|slot| self.before(slot.base_gfn())) else { return new };
        let (at, place) = found;
        let chunk = Arc::make_mut(&mut new.chunks[at]);
        let gone = chunk.remove(place);
        let range = hva_range(&gone);
        match chunk.first() {
            Some(slot) => new.firsts[at] = slot.base_gfn().0,
            None => {
                new.chunks.remove(at);
                new.firsts.remove(at);
            }
        }
        new.count -= 1;
        new.pages -= gone.pages();
        new.set_number(id, NONE);
        new.index_from(self, |index| index.without(range));
        new
    }

    /// With one more slot, whose number and frames are free.
    pub(crate) fn with(&self, slot: Memslot) -> Memslots {
        let mut new = self.clone();
        let first = slot.base_gfn();
        new.count += 1;
        new.pages += slot.pages();
        new.set_number(slot.region.slot, first.0);
        new.index_from(self, |index| index.with(hva_range(&slot)));
        let at = self.firsts.partition_point(|&f| f <= first.0).saturating_sub(1);
        let Some(chunk) = new.chunks.get_mut(at) else {
            new.chunks.push(Arc::new(vec![slot]));
            new.firsts.push(first.0);
            return new;
        };
        let chunk = Arc::make_mut(chunk);
        chunk.insert(chunk.partition_point(|s| s.base_gfn() <= first), slot);
        new.firsts[at] = chunk[0].base_gfn().0;
        if chunk.len() > CHUNK {
            // Slots are mostly made in order: a split in the middle would leave half-full chunks behind.
            let keep = if at + 1 == self.chunks.len() { CHUNK } else { CHUNK / 2 };
            let rest = chunk.split_off(keep);
            new.firsts.insert(at + 1, rest[0].base_gfn().0);
            new.chunks.insert(at + 1, Arc::new(rest));
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memslot::{MemRegion, MemRegionFlags};
    use proptest::prelude::*;
    use x86_arch::{Gpa, Hva};

    fn region(id: u32, page: u64, pages: u64) -> MemRegion {
        let (gpa, size) = (Gpa(page << 12), pages << 12);
        // Slots may lie over each other in the caller's memory.
        let hva = Hva(0x10_0000 + (u64::from(id) << 12));
        MemRegion { slot: id, as_id: 0, gpa, size, hva, flags: MemRegionFlags::empty() }
    }

    proptest! {
        /// Against a plain list: creations (some refused), moves and deletions.
        #[test]
        fn as_a_list(steps in proptest::collection::vec((0u32..300, 0u64..2000, 1u64..6, 0u8..4), 1..600)) {
            let mut slots = Memslots::default();
            let mut list: Vec<MemRegion> = Vec::new();
            for (id, page, pages, kind) in steps {
                let old = list.iter().position(|r| r.slot == id);
                let wanted = match (old, kind) {
                    (Some(_), 0) => MemRegion { size: 0, ..region(id, page, pages) },
                    (Some(i), _) => MemRegion { gpa: Gpa(page << 12), ..list[i] },
                    (None, _) => region(id, page, pages),
                };
                let clash = wanted.size != 0 && list.iter().any(|r| {
                    r.slot != id && r.gpa.0 < wanted.gpa.0 + wanted.size && wanted.gpa.0 < r.gpa.0 + r.size
                });
                match slots.changed(wanted) {
                    Ok((new, _)) => {
                        prop_assert!(!clash);
                        slots = new;
                        list.retain(|r| r.slot != id);
                        if wanted.size != 0 {
                            list.push(wanted);
                        }
                    }
                    Err(_) => prop_assert!(clash),
                }
                prop_assert_eq!(slots.len(), list.len());
                for at in [page, page + pages, page.saturating_sub(1), u64::MAX] {
                    let found = slots.find(Gfn(at)).map(|s| s.region.slot);
                    let expected = list.iter().find(|r| at.wrapping_sub(r.gpa.0 >> 12) < r.size >> 12);
                    prop_assert_eq!(found, expected.map(|r| r.slot));
                }
                let hva = 0x10_0000 + (page << 9);
                let mut touching: Vec<u32> =
                    slots.touching_hva(hva, hva + (pages << 11)).map(|s| s.region.slot).collect();
                touching.sort_unstable();
                let mut expected: Vec<u32> = list
                    .iter()
                    .filter(|r| r.hva.0 < hva + (pages << 11) && hva < r.hva.0 + r.size)
                    .map(|r| r.slot)
                    .collect();
                expected.sort_unstable();
                prop_assert_eq!(touching, expected);
                prop_assert_eq!(slots.by_id(id).map(|s| s.region), list.iter().find(|r| r.slot == id).copied());
            }
            list.sort_by_key(|r| r.gpa);
            prop_assert_eq!(slots.iter().map(|s| s.region).collect::<Vec<_>>(), list.clone());
            prop_assert_eq!(slots.total_pages(), list.iter().map(|r| r.size >> 12).sum::<u64>());
        }
    }

    #[test]
    fn all_numbers_there_are() {
        let mut slots = Memslots::default();
        let all = crate::memslot::MAX_SLOTS;
        for id in 0..all {
            slots = slots.changed(region(id, u64::from(id) * 3, 2)).unwrap().0;
        }
        assert_eq!(slots.len(), all as usize);
        assert_eq!(slots.chunks.len(), (all as usize).div_ceil(CHUNK));
        for id in [0, 1, 77, 20_000, all - 1] {
            assert_eq!(slots.by_id(id).unwrap().base_gfn(), Gfn(u64::from(id) * 3));
            assert_eq!(slots.find(Gfn(u64::from(id) * 3 + 1)).unwrap().region.slot, id);
            assert!(slots.find(Gfn(u64::from(id) * 3 + 2)).is_none());
        }
        for id in 0..all {
            slots = slots.without(id);
        }
        assert!(slots.is_empty() && slots.chunks.is_empty() && slots.total_pages() == 0);
    }
}
