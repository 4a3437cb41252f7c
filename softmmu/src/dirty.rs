//! The dirty log: which pages of a slot were written since somebody asked (KVM api 4.8, KVM_GET_DIRTY_LOG).
//!
//! Not here: the write protection that makes the vCPUs' direct stores come by (`mmu`).

use std::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Relaxed};

/// One bit a page.
#[derive(Debug)]
pub struct DirtyBitmap {
    words: Box<[AtomicU64]>,
    pages: u64,
}

impl DirtyBitmap {
    /// All clean.
    pub fn new(pages: u64) -> DirtyBitmap {
        let words = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        DirtyBitmap { words, pages }
    }

    /// Pages that it speaks of.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The page was written. Call it after the store (or in the same instruction, if an exclusive section cannot fall between).
    /// True: it was clean before.
    pub fn mark(&self, page: u64) -> bool {
        if let Some(word) = usize::try_from(page / 64).ok().and_then(|i| self.words.get(i)) {
            let bit = 1 << (page % 64);
            // Most marks are repeats; do not take the cache line for them.
            if word.load(Relaxed) & bit == 0 {
                return word.fetch_or(bit, AcqRel) & bit == 0;
            }
        }
        false
    }

    /// The page counts as clean.
    pub fn unmark(&self, page: u64) {
        if let Some(word) = usize::try_from(page / 64).ok().and_then(|i| self.words.get(i)) {
            word.fetch_and(!(1 << (page % 64)), AcqRel);
        }
    }

    /// Whether the page was written.
    pub fn is_dirty(&self, page: u64) -> bool {
        let word = usize::try_from(page / 64).ok().and_then(|i| self.words.get(i));
        word.is_some_and(|word| word.load(Relaxed) >> (page % 64) & 1 != 0)
    }

    /// Every page counts as written (KVM_DIRTY_LOG_INITIALLY_SET).
    pub fn fill(&self) {
        let mut left = self.pages;
        for word in &self.words {
            word.store(if left >= 64 { u64::MAX } else { (1 << left) - 1 }, Relaxed);
            left = left.saturating_sub(64);
        }
    }

    /// The bits, which are cleared.
    pub fn take(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.swap(0, AcqRel)).collect()
    }

    /// The bits, left as they are (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2).
    pub fn snapshot(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.load(Relaxed)).collect()
    }

    /// Clears the bits of `mask` from page `first` (a multiple of 64) on (KVM api 4.117, KVM_CLEAR_DIRTY_LOG).
    pub fn clear(&self, first: u64, mask: &[u64]) {
        let start = usize::try_from(first / 64).unwrap_or(usize::MAX);
        for (word, bits) in self.words.iter().skip(start).zip(mask) {
            word.fetch_and(!bits, AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_has_no_page_beyond_its_end() {
        for pages in [1, 63, 64, 65, 128] {
            let log = DirtyBitmap::new(pages);
            log.fill();
            let bits = log.snapshot();
            assert_eq!(bits.iter().map(|w| u64::from(w.count_ones())).sum::<u64>(), pages);
            assert!(log.is_dirty(pages - 1) && !log.is_dirty(pages));
        }
    }
}
