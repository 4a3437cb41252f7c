//! The reverse map: from a gfn to every leaf spte that maps it, and from a shadow page to the sptes that point at it.
//!
//! mmu.txt: "a reverse mapping whereby all ptes mapping a page can be reached given its gfn"; parent_pte and
//! parent_ptes. Both are the same thing here, a [`PteList`], which allocates only from the second spte on.

use core::ops::Range;
use std::collections::HashMap;

/// Where an spte is: a shadow page's arena frame, and the index in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct SpteRef {
    /// The arena frame of the shadow page.
    pub frame: u32,
    /// 0 to 511.
    pub index: u16,
}

/// A set of sptes: mmu.txt's `parent_pte`/`parent_ptes` with `multimapped` as the discriminant.
#[derive(Clone, Default, Debug)]
pub enum PteList {
    /// None.
    #[default]
    Empty,
    /// One: not multimapped.
    One(SpteRef),
    /// Several, in no order.
    Many(Vec<SpteRef>),
}

impl PteList {
    /// Adds one that is not in it.
    pub fn add(&mut self, pte: SpteRef) {
        match self {
            PteList::Empty => *self = PteList::One(pte),
            PteList::One(first) => *self = PteList::Many(vec![*first, pte]),
            PteList::Many(list) => list.push(pte),
        }
    }

    /// Removes one. False: it was not there.
    pub fn remove(&mut self, pte: SpteRef) -> bool {
        match self {
            PteList::Empty => false,
            PteList::One(only) => {
                let found = *only == pte;
                if found {
                    *self = PteList::Empty;
                }
                found
            }
            PteList::Many(list) => {
                let Some(at) = list.iter().position(|&p| p == pte) else { return false };
                list.swap_remove(at);
                if let &[only] = list.as_slice() {
                    *self = PteList::One(only);
                }
                true
            }
        }
    }

    /// All of them.
    pub fn as_slice(&self) -> &[SpteRef] {
        match self {
            PteList::Empty => &[],
            PteList::One(pte) => core::slice::from_ref(pte),
            PteList::Many(list) => list,
        }
    }

    /// mmu.txt's `multimapped`.
    #[cfg(test)]
    pub fn multimapped(&self) -> bool {
        matches!(self, PteList::Many(_))
    }
}

const CHUNK: u64 = 512;

/// The leaf sptes of each frame of each slot. Chunks of 2 MiB of guest memory appear when first used.
#[derive(Default, Debug)]
pub struct Rmap {
    chunks: HashMap<(u16, u64), Box<[PteList]>>,
}

impl Rmap {
    /// The list of a frame of an address space.
    pub fn get(&self, as_id: u16, gfn: u64) -> &[SpteRef] {
        let list = self.chunks.get(&(as_id, gfn / CHUNK)).and_then(|chunk| chunk.get((gfn % CHUNK) as usize));
        list.map_or(&[], PteList::as_slice)
    }

    /// The sptes of a range of frames.
    pub fn within(&self, as_id: u16, frames: Range<u64>) -> Vec<SpteRef> {
        let mut found = Vec::new();
        if frames.is_empty() {
            return found;
        }
        let mut take = |chunk: u64, lists: &[PteList]| {
            let first = chunk * CHUNK;
            let (from, to) = (frames.start.max(first), frames.end.min(first + CHUNK));
            for list in lists.get((from - first) as usize..(to - first) as usize).unwrap_or_default() {
                found.extend_from_slice(list.as_slice());
            }
        };
        let chunks = frames.start / CHUNK..=(frames.end - 1) / CHUNK;
        // The fewer of the two: the chunks of the range, or those that exist.
        if chunks.end() - chunks.start() > self.chunks.len() as u64 {
            for (&(space, chunk), lists) in &self.chunks {
                if space == as_id && chunks.contains(&chunk) {
                    take(chunk, lists);
                }
            }
        } else {
            for chunk in chunks {
                if let Some(lists) = self.chunks.get(&(as_id, chunk)) {
                    take(chunk, lists);
                }
            }
        }
        found
    }

    /// Adds an spte.
    pub fn add(&mut self, as_id: u16, gfn: u64, pte: SpteRef) {
        let chunk = self
            .chunks
            .entry((as_id, gfn / CHUNK))
            .or_insert_with(|| (0..CHUNK).map(|_| PteList::Empty).collect());
        if let Some(list) = chunk.get_mut((gfn % CHUNK) as usize) {
            list.add(pte);
        }
    }

    /// Removes an spte. False: it was not there.
    pub fn remove(&mut self, as_id: u16, gfn: u64, pte: SpteRef) -> bool {
        self.chunks
            .get_mut(&(as_id, gfn / CHUNK))
            .and_then(|chunk| chunk.get_mut((gfn % CHUNK) as usize))
            .is_some_and(|list| list.remove(pte))
    }

    /// Forgets all, when no leaf spte is left.
    pub fn clear(&mut self) {
        self.chunks.clear();
    }

    /// Every frame with its sptes.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u64, &[SpteRef])> {
        self.chunks.iter().flat_map(|(&(as_id, chunk), lists)| {
            (chunk * CHUNK..).zip(lists).map(move |(gfn, list)| (as_id, gfn, list.as_slice()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_grow_and_shrink() {
        let pte = |n: u32| SpteRef { frame: n, index: n as u16 };
        let mut list = PteList::default();
        assert!(!list.remove(pte(1)));
        for n in 0..4 {
            list.add(pte(n));
            assert_eq!(list.multimapped(), n > 0);
        }
        assert!(list.remove(pte(1)) && !list.remove(pte(1)));
        let mut left: Vec<u32> = list.as_slice().iter().map(|p| p.frame).collect();
        left.sort_unstable();
        assert_eq!(left, [0, 2, 3]);
        assert!(list.remove(pte(0)) && list.remove(pte(3)) && !list.multimapped());
        assert!(list.remove(pte(2)) && list.as_slice().is_empty());
    }

    #[test]
    fn frames_are_apart() {
        let mut rmap = Rmap::default();
        let pte = SpteRef { frame: 3, index: 9 };
        rmap.add(0, 1000, pte);
        rmap.add(1, 1000, pte);
        assert_eq!(rmap.get(0, 1000), [pte]);
        assert_eq!(rmap.get(0, 1001), []);
        assert!(rmap.remove(0, 1000, pte) && !rmap.remove(0, 1000, pte));
        assert_eq!(rmap.get(1, 1000), [pte]);
        rmap.add(0, 70_000, pte);
        for (frames, expected) in [
            (0..1000, 0),
            (1000..1001, 1),
            (0..u64::MAX, 2),
            (1001..70_000, 0),
            (70_000..70_001, 1),
            (5..5, 0),
        ] {
            rmap.add(0, 1000, pte);
            assert_eq!(rmap.within(0, frames.clone()).len(), expected, "{frames:?}");
            rmap.remove(0, 1000, pte);
        }
    }
}
