//! Dirty logs: what is equal to what.
//!
//! The unbroken run is asked for its log (KVM_GET_DIRTY_LOG) at each boundary at which a copy is lifted off, and once more at
//! its end. So it is known which pages it has written behind each of them, and a copy's log, from its first KVM_RUN to
//! its end, must have exactly these: not one less, which a migration would lose, nor one more. What KVM_SET
//! itself writes to memory, which is nothing, must not be in it.
//!
//! A slot that has its log from its creation counts a page too when it is first mapped so that it could be written
//! (docs/deviations.md), and a copy maps anew what the unbroken run had mapped before its page tables said so. So a copy may
//! count more, in KVM as here: of such a slot, the log at the save and the copy's together must have all that the unbroken run's has, as must the unbroken run's own in pieces.
//!
//! Not here: which pages the guest did write. That is `softmmu`'s to test; here memory that changed without a log shows.

use super::machine::Machine;

/// A set of pages, a bit each.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Pages(pub Vec<u64>);

impl Pages {
    /// Takes another set in.
    pub fn add(&mut self, other: &Pages) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(to, from)| *to |= from);
    }

    /// Puts one in.
    pub fn set(&mut self, page: usize) {
        self.0.resize(self.0.len().max(page / 64 + 1), 0);
        self.0[page / 64] |= 1 << (page % 64);
    }

    /// The same, of memory that lies behind so many pages, a multiple of 64.
    pub fn behind(self, pages: usize) -> Pages {
        let mut words = vec![0; pages / 64];
        words.extend(self.0);
        Pages(words)
    }

    /// Whether a page is in it.
    pub fn has(&self, page: usize) -> bool {
        self.0.get(page / 64).is_some_and(|w| w >> (page % 64) & 1 != 0)
    }

    /// Whether all of another set are in it.
    pub fn has_all(&self, other: &Pages) -> bool {
        other.numbers().into_iter().all(|n| self.has(n))
    }

    /// Their numbers.
    pub fn numbers(&self) -> Vec<usize> {
        (0..self.0.len() * 64).filter(|&n| self.has(n)).collect()
    }
}

/// A copy's log, for the end of the unbroken run.
struct Lifted {
    name: String,
    /// How many of the unbroken run's logs came before it.
    after: usize,
    log: Pages,
}

/// The unbroken run's logs, piece by piece, and the copies' logs.
#[derive(Default)]
pub struct Logs {
    pieces: Vec<Pages>,
    copies: Vec<Lifted>,
    born_logged: bool,
}

impl Logs {
    /// Of a plan with this [`born_logged`](super::machine::Plan::born_logged).
    pub fn new(born_logged: bool) -> Logs {
        Logs { born_logged, ..Logs::default() }
    }

    /// Asks the unbroken run for its log until here.
    pub fn take(&mut self, source: &Machine) {
        self.pieces.push(source.dirty());
    }

    /// A copy that was lifted off where [`Logs::take`] was called last has come to its end with this log.
    pub fn copy(&mut self, name: &str, log: Pages) {
        self.copies.push(Lifted { name: name.into(), after: self.pieces.len(), log });
    }

    /// Which copies' logs are not what the unbroken run wrote. `whole` is the log of a run that was never asked before its
    /// end; all pieces together must be the same.
    pub fn differences(&self, whole: &Pages) -> Vec<String> {
        let mut out = Vec::new();
        // Before the first piece, before the second, …
        let mut before = vec![Pages::default()];
        for piece in &self.pieces {
            let mut sum = before[before.len() - 1].clone();
            sum.add(piece);
            before.push(sum);
        }
        let mut behind = vec![Pages::default()];
        for piece in self.pieces.iter().rev() {
            let mut sum = behind[behind.len() - 1].clone();
            sum.add(piece);
            behind.push(sum);
        }
        behind.reverse();
        if self.born_logged && !behind[0].has_all(whole) || !self.born_logged && behind[0] != *whole {
            let (a, b) = (whole.numbers(), behind[0].numbers());
            out.push(format!("the dirty log of the whole run {a:x?} and of its pieces {b:x?}"));
        }
        for copy in &self.copies {
            let mut log = copy.log.clone();
            let wanted = &behind[copy.after];
            let good = if self.born_logged {
                log.add(&before[copy.after]);
                log.has_all(whole)
            } else {
                log == *wanted
            };
            if !good {
                let (a, b) = (wanted.numbers(), log.numbers());
                out.push(format!("{}: dirty log {a:x?} and {b:x?}", copy.name));
            }
        }
        out
    }
}
