//! The dirty ring of a vCPU: pages that were written, in the order in which they were (KVM api 8.29, KVM_CAP_DIRTY_LOG_RING).
//!
//! A ring stands beside the slots' bitmaps, not in their place: a page enters a ring when its bit goes from clear to set, so that
//! a page has at most one entry, and taking the bit back (with the write protection) is what a reset does.
//!
//! The entries lie in memory that the caller sees and may scribble on. Nothing is read back from there but the flag that says
//! "harvested": which page an entry meant is remembered here.
//!
//! Not here: who is told that a ring is full (`mmu`), where the entries lie ([`RingEntries`]).

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// KVM_DIRTY_GFN_F_DIRTY: the entry holds a page.
pub const RING_ENTRY_DIRTY: u32 = 1 << 0;
/// KVM_DIRTY_GFN_F_RESET: the caller has taken the entry.
pub const RING_ENTRY_RESET: u32 = 1 << 1;
/// Entries that are kept free: a ring counts as full while so many are left, because a vCPU leaves at its next safe point and
/// not at once.
pub const RING_RESERVED: u32 = 64;

/// The entries of a ring (`struct kvm_dirty_gfn`), shared with the caller. An index wraps at the number of entries.
pub trait RingEntries: Send + Sync {
    /// How many there are: a power of two.
    fn count(&self) -> u32;
    /// The flags of an entry. An acquire load: what the caller did before it set them has happened.
    fn flags(&self, index: u32) -> u32;
    /// Fills an entry, and then its flags with [`RING_ENTRY_DIRTY`], by a release store.
    fn publish(&self, index: u32, slot: u32, offset: u64);
    /// Empties an entry: flags 0, by a release store.
    fn clear(&self, index: u32);
}

/// A page as a ring names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyPage {
    /// The slot, with its address space in bits 16 to 31.
    pub slot: u32,
    /// The page's place in the slot.
    pub offset: u64,
}

#[derive(Default)]
struct State {
    /// The next entry to fill; entries from `reset` on are in use.
    dirty: u32,
    /// What the entries in use mean, oldest first; the oldest is at `dirty - pages.len()`.
    pages: VecDeque<DirtyPage>,
    /// Pages that found no free entry. Only what one vCPU dirties between two safe points can come here.
    waiting: VecDeque<DirtyPage>,
}

/// One vCPU's ring.
pub struct DirtyRing {
    entries: Box<dyn RingEntries>,
    state: Mutex<State>,
    /// What [`DirtyRing::is_full`] says, for who asks between any two instructions.
    full: AtomicBool,
}

impl DirtyRing {
    /// An empty ring over `entries`, whose flags are all 0.
    pub fn new(entries: Box<dyn RingEntries>) -> DirtyRing {
        DirtyRing { entries, state: Mutex::default(), full: AtomicBool::new(false) }
    }

    /// Entries in use from which on the ring counts as full.
    pub fn soft_limit(&self) -> usize {
        self.entries.count().saturating_sub(RING_RESERVED).max(1) as usize
    }

    fn enter(&self, state: &mut State, page: DirtyPage) {
        if state.pages.len() >= self.entries.count() as usize {
            state.waiting.push_back(page);
            return;
        }
        self.entries.publish(state.dirty, page.slot, page.offset);
        state.dirty = state.dirty.wrapping_add(1);
        state.pages.push_back(page);
    }

    /// A page was written. True: the ring counts as full now.
    pub fn push(&self, page: DirtyPage) -> bool {
        let mut state = self.state.lock();
        self.enter(&mut state, page);
        self.judge(&state)
    }

    /// Whether the vCPU has to leave until the caller has reset some entries.
    pub fn is_full(&self) -> bool {
        self.full.load(Relaxed)
    }

    fn judge(&self, state: &State) -> bool {
        let full = state.pages.len() >= self.soft_limit();
        self.full.store(full, Relaxed);
        full
    }

    /// Takes the entries that the caller has harvested, oldest first; they are free again.
    pub fn take_harvested(&self) -> Vec<DirtyPage> {
        let mut state = self.state.lock();
        let mut taken = Vec::new();
        while !state.pages.is_empty() {
            // A ring has far fewer than 2^32 entries.
            let oldest = state.dirty.wrapping_sub(state.pages.len() as u32);
            if self.entries.flags(oldest) & RING_ENTRY_RESET == 0 {
                break;
            }
            self.entries.clear(oldest);
            taken.extend(state.pages.pop_front());
        }
        while state.pages.len() < self.entries.count() as usize {
            let Some(page) = state.waiting.pop_front() else { break };
            self.enter(&mut state, page);
        }
        self.judge(&state);
        taken
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Arc;

    /// Entries in ordinary memory: flags, slot, offset.
    pub struct Entries(pub Mutex<Vec<(u32, u32, u64)>>);

    impl Entries {
        pub fn new(count: usize) -> Arc<Entries> {
            Arc::new(Entries(Mutex::new(vec![(0, 0, 0); count])))
        }

        /// What a caller does: takes `n` entries from `at` on.
        pub fn harvest(&self, at: &mut usize, n: usize) -> Vec<(u32, u64)> {
            let mut entries = self.0.lock();
            let count = entries.len();
            let mut found = Vec::new();
            while found.len() < n && entries[*at % count].0 == RING_ENTRY_DIRTY {
                let e = &mut entries[*at % count];
                e.0 = RING_ENTRY_RESET;
                found.push((e.1, e.2));
                *at += 1;
            }
            found
        }
    }

    impl RingEntries for Arc<Entries> {
        fn count(&self) -> u32 {
            self.0.lock().len() as u32
        }
        fn flags(&self, index: u32) -> u32 {
            let entries = self.0.lock();
            entries[index as usize % entries.len()].0
        }
        fn publish(&self, index: u32, slot: u32, offset: u64) {
            let mut entries = self.0.lock();
            let at = index as usize % entries.len();
            entries[at] = (RING_ENTRY_DIRTY, slot, offset);
        }
        fn clear(&self, index: u32) {
            let mut entries = self.0.lock();
            let at = index as usize % entries.len();
            entries[at].0 = 0;
        }
    }

    fn page(n: u64) -> DirtyPage {
        DirtyPage { slot: 1 << 16 | 3, offset: n }
    }

    #[test]
    fn full_before_the_end_and_in_order_around_it() {
        let memory = Entries::new(256);
        let ring = DirtyRing::new(Box::new(memory.clone()));
        let mut at = 0;
        let mut next = 0;
        let mut seen = 0;
        for round in 0..10 {
            while !ring.push(page(next)) {
                next += 1;
            }
            next += 1;
            assert!(ring.is_full(), "round {round}");
            let taken = memory.harvest(&mut at, 100);
            for (slot, offset) in taken {
                assert_eq!((slot, offset), (1 << 16 | 3, seen));
                seen += 1;
            }
            assert_eq!(ring.take_harvested().len(), 100);
            assert!(!ring.is_full());
        }
        assert_eq!(next, 192 + 9 * 100);
    }

    #[test]
    fn what_the_caller_scribbles_is_not_believed() {
        let memory = Entries::new(256);
        let ring = DirtyRing::new(Box::new(memory.clone()));
        ring.push(page(7));
        // Every entry is claimed to be harvested, with another page.
        for e in memory.0.lock().iter_mut() {
            *e = (RING_ENTRY_RESET, u32::MAX, u64::MAX);
        }
        assert_eq!(ring.take_harvested(), [page(7)]);
        assert_eq!(ring.take_harvested(), []);
    }

    #[test]
    fn nothing_is_lost_when_a_caller_does_not_harvest() {
        let memory = Entries::new(256);
        let ring = DirtyRing::new(Box::new(memory.clone()));
        for n in 0..1000 {
            ring.push(page(n));
        }
        let mut at = 0;
        let mut seen = Vec::new();
        while seen.len() < 1000 {
            let got = memory.harvest(&mut at, 50);
            assert!(!got.is_empty());
            assert_eq!(ring.take_harvested().len(), got.len());
            seen.extend(got.into_iter().map(|(_, offset)| offset));
        }
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    }
}
