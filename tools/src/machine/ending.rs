//! The one place where a guest's end is announced and awaited. The first announcement counts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::outcome::Outcome;

/// See the module.
#[derive(Debug, Default)]
pub struct Ending {
    reached: AtomicBool,
    outcome: Mutex<Option<Outcome>>,
    announced: Condvar,
}

impl Ending {
    /// Ends the guest, if nobody has before.
    pub fn announce(&self, outcome: Outcome) {
        let mut slot = self.slot();
        slot.get_or_insert(outcome);
        self.reached.store(true, Ordering::Release);
        self.announced.notify_all();
    }

    /// Whether the guest has ended.
    pub fn reached(&self) -> bool {
        self.reached.load(Ordering::Acquire)
    }

    /// How it ended.
    pub fn outcome(&self) -> Option<Outcome> {
        self.slot().clone()
    }

    /// Waits for the end; after `limit`, announces that the time is over.
    pub fn wait(&self, limit: Option<Duration>) -> Outcome {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut slot = self.slot();
        loop {
            if let Some(outcome) = &*slot {
                return outcome.clone();
            }
            slot = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => self.announced.wait(slot).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    drop(slot);
                    self.announce(Outcome::Timeout);
                    self.slot()
                }
                Some(left) => {
                    self.announced.wait_timeout(slot, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// The outcome is set in one step, so a thread that panicked has not left it half done.
    fn slot(&self) -> MutexGuard<'_, Option<Outcome>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_announcement_counts() {
        let ending = Ending::default();
        assert!(!ending.reached());
        ending.announce(Outcome::Reset);
        ending.announce(Outcome::PowerOff);
        assert!(ending.reached());
        assert_eq!(ending.wait(None), Outcome::Reset);
    }

    #[test]
    fn waiting_ends_with_the_time() {
        let ending = Ending::default();
        assert_eq!(ending.wait(Some(Duration::from_millis(5))), Outcome::Timeout);
        assert!(ending.reached());
    }
}
