//! Who wants to know of writes to a page: guest page tables (by address space and gfn) and decoded code (by host frame).
//!
//! The dirty log is the third client; it lives in its slot (`dirty`). A page with a client gets no write tag in any TLB, so
//! that each store to it comes through the slow path, which tells the clients afterwards. A client is
//! registered *before* the page's content is relied on, and a writer looks for clients *after* its store: one of the two sees the other.
//!
//! Not here: getting rid of write tags that exist already (`mmu`, shootdown).

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering::SeqCst, fence};

const CHUNK: usize = 4096;

/// Counts of one memory slot, by frame. Chunks appear when first counted in.
#[derive(Debug)]
pub struct SlotTracks {
    page_tables: Box<[OnceLock<Box<[AtomicU16]>>]>,
}

impl SlotTracks {
    /// No counts.
    pub fn new(pages: u64) -> SlotTracks {
        let chunks = usize::try_from(pages).unwrap_or(usize::MAX).div_ceil(CHUNK);
        SlotTracks { page_tables: (0..chunks).map(|_| OnceLock::new()).collect() }
    }

    fn counter(&self, offset: u64, create: bool) -> Option<&AtomicU16> {
        let offset = usize::try_from(offset).ok()?;
        let chunk = self.page_tables.get(offset / CHUNK)?;
        let counters = match chunk.get() {
            Some(counters) => counters,
            None if create => chunk.get_or_init(|| (0..CHUNK).map(|_| AtomicU16::new(0)).collect()),
            None => return None,
        };
        counters.get(offset % CHUNK)
    }

    /// One more shadow page is made from this frame. True: it is the first.
    pub(crate) fn add_page_table(&self, offset: u64) -> bool {
        self.counter(offset, true).is_some_and(|count| count.fetch_add(1, SeqCst) == 0)
    }

    /// One shadow page less is made from this frame.
    pub(crate) fn remove_page_table(&self, offset: u64) {
        if let Some(count) = self.counter(offset, false) {
            let before = count.fetch_sub(1, SeqCst);
            debug_assert_ne!(before, 0, "unbalanced page-table count");
        }
    }

    /// How many shadow pages are made from this frame.
    pub(crate) fn page_tables(&self, offset: u64) -> u16 {
        self.counter(offset, false).map_or(0, |count| count.load(SeqCst))
    }

    /// Whether a shadow page is made from this frame.
    pub(crate) fn is_page_table(&self, offset: u64) -> bool {
        self.counter(offset, false).is_some_and(|count| count.load(SeqCst) != 0)
    }
}

/// Hash slots of the filter: a store to a page without code costs one load.
const FILTER: usize = 1 << 16;

/// Decoded code of one host frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodePage {
    /// Bit n: code was decoded from bytes `[64 * n, 64 * n + 64)`.
    pub granules: u64,
    /// The shootdown that took the write tags of this frame away.
    pub epoch: u64,
}

/// The host frames that hold decoded code.
pub(crate) struct CodePages {
    filter: Box<[AtomicU32]>,
    pages: Mutex<HashMap<u64, CodePage>>,
}

/// The granules that `[offset, offset + len)` touches.
pub(crate) fn granules(offset: u64, len: u64) -> u64 {
    if len == 0 {
        return 0;
    }
    let first = (offset / 64).min(63);
    let last = (offset.saturating_add(len - 1) / 64).min(63);
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

impl CodePages {
    pub fn new() -> CodePages {
        CodePages {
            filter: (0..FILTER).map(|_| AtomicU32::new(0)).collect(),
            pages: Mutex::new(HashMap::new()),
        }
    }

    fn filter(&self, frame: u64) -> &AtomicU32 {
        // A multiplicative hash; the array's length is a power of two, so the index is in bounds.
        &self.filter[(frame.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize & (FILTER - 1)]
    }

    /// Whether the frame may hold code. False is certain.
    #[inline]
    pub fn maybe(&self, frame: u64) -> bool {
        self.filter(frame).load(SeqCst) != 0
    }

    /// Whether the frame holds code.
    pub fn contains(&self, frame: u64) -> bool {
        self.maybe(frame) && self.pages.lock().contains_key(&frame)
    }

    /// Adds granules. For a new frame `shootdown` (which may not take this lock) is called once the frame counts as code; it returns the epoch.
    pub fn mark(&self, frame: u64, granules: u64, shootdown: impl FnOnce() -> u64) -> CodePage {
        let mut pages = self.pages.lock();
        if let Some(page) = pages.get_mut(&frame) {
            page.granules |= granules;
            return *page;
        }
        self.filter(frame).fetch_add(1, SeqCst);
        fence(SeqCst);
        let page = CodePage { granules, epoch: shootdown() };
        pages.insert(frame, page);
        page
    }

    /// Removes and returns the granules of `written` that held code: a store has changed them.
    pub fn overwrite(&self, frame: u64, written: u64) -> u64 {
        // The store comes before the look.
        fence(SeqCst);
        if !self.maybe(frame) {
            return 0;
        }
        let mut pages = self.pages.lock();
        let Some(page) = pages.get_mut(&frame) else { return 0 };
        let hit = page.granules & written;
        page.granules &= !hit;
        if page.granules == 0 {
            pages.remove(&frame);
            self.filter(frame).fetch_sub(1, SeqCst);
        }
        hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_of_a_range() {
        for (offset, len, expected) in [
            (0, 0, 0),
            (0, 1, 1),
            (63, 1, 1),
            (63, 2, 3),
            (64, 64, 2),
            (64, 65, 6),
            (0, 4096, u64::MAX),
            (4095, 1, 1 << 63),
            (4032, 64, 1 << 63),
        ] {
            assert_eq!(granules(offset, len), expected, "offset {offset} len {len}");
        }
    }

    #[test]
    fn code_is_forgotten_granule_by_granule() {
        let code = CodePages::new();
        assert!(!code.contains(7));
        assert_eq!(code.mark(7, 0b0110, || 3).epoch, 3);
        assert_eq!(code.mark(7, 0b1000, || unreachable!()).granules, 0b1110);
        assert!(code.contains(7));
        assert_eq!(code.overwrite(7, 0b0001), 0);
        assert_eq!(code.overwrite(7, 0b0011), 0b0010);
        assert_eq!(code.overwrite(7, 0b0010), 0, "a granule is reported once");
        assert_eq!(code.overwrite(7, u64::MAX), 0b1100);
        assert!(!code.contains(7) && !code.maybe(7));
    }

    #[test]
    fn counts_are_per_frame() {
        let tracks = SlotTracks::new(10_000);
        assert!(!tracks.is_page_table(5000));
        assert!(tracks.add_page_table(5000));
        assert!(!tracks.add_page_table(5000));
        assert!(tracks.is_page_table(5000) && !tracks.is_page_table(5001));
        tracks.remove_page_table(5000);
        assert!(tracks.is_page_table(5000));
        tracks.remove_page_table(5000);
        assert!(!tracks.is_page_table(5000));
    }
}
