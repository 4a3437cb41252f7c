//! Whose memory this is: the process that opened `/dev/kvm`, or a child that got a copy by fork.
//!
//! One page is marked MADV_WIPEONFORK: whatever way a child is made, in its copy the mark is gone. A vfork child, which
//! shares our memory until it executes another program, sees it. No call is needed to ask.

use crate::raw::sys;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, SeqCst};

const OURS: u32 = 1;
const ADOPTING: u32 = 2;

static MARK: AtomicPtr<AtomicU32> = AtomicPtr::new(core::ptr::null_mut());

fn mark() -> Option<&'static AtomicU32> {
    // SAFETY: null, or a page that is never unmapped, of which the first word is only used as an atomic.
    unsafe { MARK.load(Acquire).as_ref() }
}

/// Makes the mark. Once a process, before anything depends on it.
pub fn claim() {
    if mark().is_some() {
        return;
    }
    // SAFETY: a new anonymous page, which nobody else knows.
    let page = unsafe {
        let page = sys!(
            SYS_mmap,
            0,
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1i64,
            0
        );
        if page < 0 {
            return;
        }
        sys!(SYS_madvise, page, 4096, libc::MADV_WIPEONFORK);
        let page = page as usize as *mut AtomicU32;
        (*page).store(OURS, SeqCst);
        page
    };
    MARK.store(page, SeqCst);
}

/// Whether this memory is a copy that fork made, and nobody has called [`adopt`] yet.
#[inline]
pub fn forked() -> bool {
    mark().is_some_and(|m| m.load(Acquire) != OURS)
}

/// In a child made by fork: `f` makes the memory this process's own. Once; other threads wait.
pub fn adopt(f: impl FnOnce()) {
    let Some(m) = mark() else { return };
    match m.compare_exchange(0, ADOPTING, SeqCst, SeqCst) {
        Ok(_) => {
            f();
            m.store(OURS, SeqCst);
        }
        Err(_) => {
            while m.load(Acquire) == ADOPTING {
                core::hint::spin_loop();
            }
        }
    }
}
