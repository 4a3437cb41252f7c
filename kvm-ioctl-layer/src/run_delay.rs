//! How long a vCPU's threads waited for a processor: what steal time is made of.
//!
//! The kernel counts it for each thread; `/proc/thread-self/schedstat` has it as its second figure. The file is opened in the
//! thread that makes the vCPU, since a VMM's filter may forbid that later, and shared by all vCPUs that the thread makes. A vCPU
//! that runs in another thread is measured by that thread's clocks: time that passed in KVM_RUN, awake, and was not spent on
//! a processor.

use emu_core::host::RunDelay;
use emu_core::host_cpu;
use rustix::time::{ClockId, clock_gettime};
use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};

/// A reading is good for so many nanoseconds: an exit is cheaper than a look at the file.
const FRESH_NS: u64 = 100_000;

thread_local! {
    /// This thread's file, while a vCPU that it made has it. Weak, so that a thread that ends closes nothing.
    static SCHEDSTAT: RefCell<Weak<Schedstat>> = const { RefCell::new(Weak::new()) };
    /// Its address tells the threads apart.
    static HERE: u8 = const { 0 };
}

/// Tells a thread from every other that lives.
fn here() -> usize {
    HERE.with(|h| core::ptr::from_ref(h).addr())
}

struct Schedstat {
    thread: usize,
    file: File,
}

impl Schedstat {
    fn of_this_thread() -> Option<Arc<Schedstat>> {
        SCHEDSTAT.with(|shared| {
            let mut shared = shared.borrow_mut();
            if let Some(open) = shared.upgrade() {
                return Some(open);
            }
            let new =
                Arc::new(Schedstat { thread: here(), file: File::open("/proc/thread-self/schedstat").ok()? });
            *shared = Arc::downgrade(&new);
            Some(new)
        })
    }

    /// Nanoseconds that its thread has waited; `None` once that has ended.
    fn delay(&self) -> Option<u64> {
        let mut text = [0; 96];
        let n = self.file.read_at(&mut text, 0).ok()?;
        core::str::from_utf8(text.get(..n)?).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
    }
}

/// What the sum was last advanced by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    /// The file's figure.
    Counted(u64),
    /// A thread's clocks: real time, and its time on a processor.
    Clocks {
        thread: usize,
        wall: u64,
        processor: u64,
    },
}

/// The count for one vCPU.
pub struct ThreadDelay {
    schedstat: Option<Arc<Schedstat>>,
    total: u64,
    last: Last,
    read_at: u64,
    fresh: u64,
}

impl ThreadDelay {
    /// A count from zero, in the thread that makes the vCPU. `tsc_khz`: the host's.
    pub fn new(tsc_khz: u32) -> ThreadDelay {
        ThreadDelay {
            schedstat: Schedstat::of_this_thread(),
            total: 0,
            last: Last::Nothing,
            read_at: 0,
            fresh: u64::from(tsc_khz) * FRESH_NS / 1_000_000,
        }
    }

    fn sample(&self) -> Last {
        let thread = here();
        let file = self.schedstat.as_ref().filter(|s| s.thread == thread);
        match file.and_then(|s| s.delay()) {
            Some(ns) => Last::Counted(ns),
            None => Last::Clocks {
                thread,
                wall: nanoseconds(ClockId::Monotonic),
                processor: nanoseconds(ClockId::ThreadCPUTime),
            },
        }
    }
}

impl RunDelay for ThreadDelay {
    fn nanoseconds(&mut self, began: bool) -> u64 {
        let now = host_cpu::rdtsc();
        let clocks = matches!(self.last, Last::Clocks { .. });
        // Clocks must be read where the thread begins to want a processor.
        if now.wrapping_sub(self.read_at) < self.fresh && !(began && clocks) {
            return self.total;
        }
        self.read_at = now;
        let sample = self.sample();
        self.total = self.total.wrapping_add(waited(self.last, sample, began));
        self.last = sample;
        self.total
    }
}

/// What passed between two samples. Of another thread nothing is known, and of one that slept meanwhile only what is
/// counted for it.
fn waited(last: Last, sample: Last, began: bool) -> u64 {
    match (last, sample) {
        (Last::Counted(a), Last::Counted(b)) => b.saturating_sub(a),
        (Last::Clocks { thread: t, wall: w, processor: p }, Last::Clocks { thread, wall, processor })
            if t == thread && !began =>
        {
            wall.saturating_sub(w).saturating_sub(processor.saturating_sub(p))
        }
        _ => 0,
    }
}

fn nanoseconds(clock: ClockId) -> u64 {
    let t = clock_gettime(clock);
    // Both count from a start and are never negative.
    (t.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(t.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clocks(thread: usize, wall: u64, processor: u64) -> Last {
        Last::Clocks { thread, wall, processor }
    }

    #[test]
    fn what_counts() {
        let rows = [
            ("the first sample", Last::Nothing, Last::Counted(70), false, 0),
            ("the file's figure grows", Last::Counted(70), Last::Counted(95), false, 25),
            ("outside KVM_RUN too", Last::Counted(70), Last::Counted(95), true, 25),
            ("awake and not on a processor", clocks(1, 100, 40), clocks(1, 150, 60), false, 30),
            ("clocks that disagree", clocks(1, 100, 40), clocks(1, 150, 95), false, 0),
            ("it may have slept", clocks(1, 100, 40), clocks(1, 150, 60), true, 0),
            ("another thread", clocks(1, 100, 40), clocks(2, 150, 60), false, 0),
            ("from the file to clocks", Last::Counted(70), clocks(2, 150, 60), false, 0),
            ("and back", clocks(2, 150, 60), Last::Counted(95), false, 0),
        ];
        for (name, last, sample, began, want) in rows {
            assert_eq!(waited(last, sample, began), want, "{name}");
        }
    }

    #[test]
    fn vcpus_of_a_thread_share_its_file() {
        let (a, b) = (ThreadDelay::new(1_000_000), ThreadDelay::new(1_000_000));
        let (Some(x), Some(y)) = (&a.schedstat, &b.schedstat) else {
            eprintln!("skipped: no /proc/thread-self/schedstat here");
            return;
        };
        assert!(Arc::ptr_eq(x, y));
        assert_ne!(here(), std::thread::spawn(here).join().unwrap_or_default());
        let moved = std::thread::spawn(move || matches!(a.sample(), Last::Clocks { .. })).join();
        assert_eq!(moved.ok(), Some(true), "another thread's delay is not in this file");
        assert!(matches!(b.sample(), Last::Counted(_)));
        drop(b);
        let gone = SCHEDSTAT.with(|s| s.borrow().upgrade().is_none());
        assert!(gone, "the last vCPU closes the file");
    }

    #[test]
    fn a_reading_is_kept_for_a_while() {
        let mut slow = ThreadDelay { fresh: u64::MAX, read_at: 0, ..ThreadDelay::new(1_000_000) };
        slow.total = 5;
        slow.last = Last::Counted(0);
        assert_eq!(slow.nanoseconds(true), 5);
        assert!(slow.last == Last::Counted(0), "nothing was read");
    }
}
