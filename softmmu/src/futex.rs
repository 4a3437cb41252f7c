//! A futex: the one way in which a vCPU sleeps and is woken.
//!
//! A raw system call, because the waker may be a signal handler, where no library lock may be taken.
//! Not here: what is waited for. See `safepoint`.
//!
//! `unsafe` because the call takes addresses.
#![allow(unsafe_code)]

use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while `*word == expected`, at most for `timeout`. False: the time has passed. May come back early.
pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> bool {
    let timeout = timeout.map(|t| libc::timespec {
        tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(t.subsec_nanos()),
    });
    let timeout = timeout.as_ref().map_or(core::ptr::null(), |t| &raw const *t);
    // SAFETY: `word` outlives the call, and `timeout` is null or a valid relative timeout.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            expected,
            timeout,
        )
    };
    // SAFETY: reads this thread's errno.
    result == 0 || unsafe { *libc::__errno_location() } != libc::ETIMEDOUT
}

/// Wakes those who sleep on `word`. Async-signal-safe but for errno, which it preserves.
pub(crate) fn wake(word: &AtomicU32) {
    // SAFETY: the system call takes an address and changes nothing but errno, which is put back.
    unsafe {
        let errno = *libc::__errno_location();
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX);
        *libc::__errno_location() = errno;
    }
}
