//! Where slots lie in the caller's memory, sorted by address, for who unmaps something there. Slots may lie over each other.
//!
//! Like the table of slots (`slot_table`) never changed: a change makes a new one, which shares all chunks but the one that it
//! touches. So making 32,764 slots with a question after each costs no more than the table itself does.
//!
//! Not here: the slots; an entry names the first frame of one.

use std::sync::Arc;

/// Entries of a chunk at most.
const CHUNK: usize = 64;

/// One slot's place in the caller's memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct HvaRange {
    pub start: u64,
    /// The slot's first frame, by which it is found.
    pub first: u64,
    /// The first address behind it.
    pub end: u64,
}

/// The places of all slots of an address space.
#[derive(Clone, Default, Debug)]
pub(crate) struct HvaIndex {
    /// The first entry of each chunk; none is empty.
    firsts: Vec<HvaRange>,
    /// The greatest end in each chunk.
    ends: Vec<u64>,
    /// The greatest end in each chunk and all before it.
    reach: Vec<u64>,
    chunks: Vec<Arc<Vec<HvaRange>>>,
}

fn greatest_end(chunk: &[HvaRange]) -> u64 {
    chunk.iter().map(|range| range.end).max().unwrap_or(0)
}

impl HvaIndex {
    /// Of slots in any order.
    pub fn new(slots: impl Iterator<Item = HvaRange>) -> HvaIndex {
        let mut all: Vec<HvaRange> = slots.collect();
        all.sort_unstable();
        let chunks: Vec<_> = all.chunks(CHUNK).map(|chunk| Arc::new(chunk.to_vec())).collect();
        let (firsts, ends) = chunks.iter().map(|chunk| (chunk[0], greatest_end(chunk))).unzip();
        let mut new = HvaIndex { firsts, ends, reach: Vec::new(), chunks };
        new.reach();
        new
    }

    /// The entries that touch `[start, end)`.
    pub fn touching(&self, start: u64, end: u64) -> impl Iterator<Item = HvaRange> {
        let below = self.firsts.partition_point(|first| first.start < end);
        let near = (0..below).rev().take_while(move |&at| self.reach[at] > start);
        near.flat_map(move |at| {
            self.chunks[at].iter().filter(move |r| r.start < end && r.end > start).copied()
        })
    }

    fn reach(&mut self) {
        let mut reach = 0;
        self.reach.clear();
        self.reach.extend(self.ends.iter().map(|&end| {
            reach = reach.max(end);
            reach
        }));
    }

    /// The chunk where an entry is, or belongs.
    fn chunk_of(&self, range: &HvaRange) -> usize {
        self.firsts.partition_point(|first| first <= range).saturating_sub(1)
    }

    /// With one more slot.
    pub fn with(&self, range: HvaRange) -> HvaIndex {
        let mut new = self.clone();
        let at = self.chunk_of(&range);
        let Some(chunk) = new.chunks.get_mut(at) else {
            return HvaIndex::new(std::iter::once(range));
        };
        let chunk = Arc::make_mut(chunk);
        chunk.insert(chunk.partition_point(|r| *r < range), range);
        new.firsts[at] = chunk[0];
        new.ends[at] = new.ends[at].max(range.end);
        if chunk.len() > CHUNK {
            // Memory is mostly mapped in one direction.
            let keep = match at {
                _ if at + 1 == self.chunks.len() => CHUNK,
                0 => 1,
                _ => CHUNK / 2,
            };
            let rest = chunk.split_off(keep);
            new.ends[at] = greatest_end(chunk);
            new.firsts.insert(at + 1, rest[0]);
            new.ends.insert(at + 1, greatest_end(&rest));
            new.chunks.insert(at + 1, Arc::new(rest));
        }
        new.reach();
        new
    }

    /// Without a slot.
    pub fn without(&self, range: HvaRange) -> HvaIndex {
        let mut new = self.clone();
        let at = self.chunk_of(&range);
        let Some(chunk) = new.chunks.get_mut(at) else { return new };
        let Ok(place) = chunk.binary_search(&range) else { return new };
        let chunk = Arc::make_mut(chunk);
        chunk.remove(place);
        match chunk.first() {
            Some(first) => (new.firsts[at], new.ends[at]) = (*first, greatest_end(chunk)),
            None => {
                new.chunks.remove(at);
                new.ends.remove(at);
                new.firsts.remove(at);
            }
        }
        new.reach();
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn as_new(index: &HvaIndex) -> Vec<HvaRange> {
        index.chunks.iter().flat_map(|chunk| chunk.iter().copied()).collect()
    }

    proptest! {
        /// Against a plain list, of ranges that lie over each other, some of them long.
        #[test]
        fn as_a_list(steps in proptest::collection::vec((0u64..400, 1u64..4, 0u64..50, any::<bool>()), 1..700)) {
            let mut index = HvaIndex::default();
            let mut list: Vec<HvaRange> = Vec::new();
            for (n, (start, len, long, more)) in steps.into_iter().enumerate() {
                match (more || n < 200, list.is_empty()) {
                    (false, false) => {
                        let gone = list.swap_remove(start as usize % list.len());
                        index = index.without(gone);
                        // Not there any more: nothing happens.
                        index = index.without(gone);
                    }
                    _ => {
                        let end = start + if long == 0 { len * 100 } else { len };
                        let range = HvaRange { start, first: n as u64, end };
                        list.push(range);
                        index = index.with(range);
                    }
                }
                let (from, to) = (start, start + len);
                let mut touching: Vec<HvaRange> = index.touching(from, to).collect();
                touching.sort_unstable();
                let mut expected: Vec<HvaRange> =
                    list.iter().filter(|r| r.start < to && from < r.end).copied().collect();
                expected.sort_unstable();
                prop_assert_eq!(touching, expected);
            }
            list.sort_unstable();
            prop_assert_eq!(as_new(&index), list.clone());
            prop_assert_eq!(as_new(&HvaIndex::new(list.into_iter())), as_new(&index));
            for (at, chunk) in index.chunks.iter().enumerate() {
                prop_assert!(!chunk.is_empty() && chunk.len() <= CHUNK);
                prop_assert_eq!(index.firsts[at], chunk[0]);
                prop_assert_eq!(index.ends[at], greatest_end(chunk));
                let all = index.chunks[..=at].iter().map(|c| greatest_end(c)).max();
                prop_assert_eq!(Some(index.reach[at]), all);
            }
        }
    }

    /// Upwards and downwards, as memory is mapped: chunks are full, and a change shares all of them but one.
    #[test]
    fn made_in_one_direction_chunks_are_full() {
        let range = |n: u64| HvaRange { start: n << 12, first: n, end: (n + 1) << 12 };
        for down in [false, true] {
            let mut index = HvaIndex::default();
            for n in 0..6400 {
                index = index.with(range(if down { 6400 - n } else { n }));
            }
            assert!(index.chunks.len() <= 101, "{}", index.chunks.len());
            let next = index.with(range(7000));
            let shared =
                index.chunks.iter().filter(|c| next.chunks.iter().any(|d| Arc::ptr_eq(c, d))).count();
            assert!(shared + 1 >= index.chunks.len());
        }
    }
}
