//! The descriptors that we need for ourselves: high numbers, close-on-exec, out of reach of close and close_range.
//!
//! Not here: the program's descriptors, see [`crate::registry`].

use crate::raw::sys;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

/// Numbers beyond this are not remembered, and not hidden.
const LIMIT: i32 = 1 << 16;
static BITS: [AtomicU64; (LIMIT / 64) as usize] = [const { AtomicU64::new(0) }; (LIMIT / 64) as usize];

fn word(fd: i32) -> Option<(&'static AtomicU64, u64)> {
    let fd = usize::try_from(fd).ok()?;
    Some((BITS.get(fd / 64)?, 1 << (fd % 64)))
}

/// The lowest number that our descriptors get.
pub fn base() -> i32 {
    let mut limit = libc::rlimit { rlim_cur: 1024, rlim_max: 1024 };
    // SAFETY: the structure is ours.
    unsafe { sys!(SYS_prlimit64, 0, libc::RLIMIT_NOFILE, 0, &raw mut limit) };
    (limit.rlim_cur.min(16384) / 4 * 3) as i32
}

/// Moves a descriptor out of the way, and remembers that it is ours.
pub fn hide(fd: i32) -> i32 {
    // SAFETY: numbers only.
    let high = unsafe { sys!(SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, base()) } as i32;
    let fd = if high < 0 {
        fd
    } else {
        // SAFETY: numbers only; `fd` has just been duplicated.
        unsafe { sys!(SYS_close, fd) };
        high
    };
    remember(fd);
    fd
}

/// Remembers that a descriptor is ours.
pub fn remember(fd: i32) {
    if let Some((w, bit)) = word(fd) {
        w.fetch_or(bit, SeqCst);
    }
}

/// Whether a descriptor is ours.
#[inline]
pub fn is(fd: i32) -> bool {
    word(fd).is_some_and(|(w, bit)| w.load(Relaxed) & bit != 0)
}

/// Closes one of ours.
pub fn close(fd: i32) -> i64 {
    if let Some((w, bit)) = word(fd) {
        w.fetch_and(!bit, SeqCst);
    }
    // SAFETY: numbers only.
    unsafe { sys!(SYS_close, fd) }
}

/// close_range without ours.
pub fn close_range(first: u64, last: u64, flags: u64) -> i64 {
    let (Ok(first), Ok(last)) = (u32::try_from(first), u32::try_from(last)) else { return -22 };
    let mut from = first;
    if first <= last {
        for fd in (first..=last.min(LIMIT as u32 - 1)).filter(|&fd| is(fd as i32)) {
            if fd > from {
                // SAFETY: numbers only.
                let r = unsafe { sys!(SYS_close_range, from, fd - 1, flags) };
                if r != 0 {
                    return r;
                }
            }
            from = fd + 1;
        }
        if from > last {
            return 0;
        }
    }
    // SAFETY: numbers only.
    unsafe { sys!(SYS_close_range, from, last, flags) }
}
