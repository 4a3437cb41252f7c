//! Where a thread of the program is inside our code, and how it comes out of it.
//!
//! Inside, no handler of the program runs: [`crate::signals`] holds a signal back, and it is delivered when [`leave`]
//! opens the mask again, with nothing of ours on the stack but two frames that own nothing. That handler may call
//! ioctls, or never return. What the engine itself calls of the C library while a thread is inside goes to the kernel
//! as it is.

use crate::raw;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64};
use kvm_ioctl_layer::KickHandle;

/// A thread's part. Atomics, because a signal handler of the same thread looks at it.
pub struct Thread {
    depth: AtomicU32,
    /// Signals that were held back, by [`raw::bit`].
    held: AtomicU64,
    /// The vCPU whose KVM_RUN is on.
    kick: AtomicPtr<KickHandle>,
    /// The thread's own signal mask, outside.
    own_mask: AtomicU64,
    /// The thread's number, for who may not ask; 0: not known yet.
    number: AtomicI32,
}

thread_local! {
    static THREAD: Thread = const {
        Thread {
            depth: AtomicU32::new(0),
            held: AtomicU64::new(0),
            kick: AtomicPtr::new(core::ptr::null_mut()),
            own_mask: AtomicU64::new(0),
            number: AtomicI32::new(0),
        }
    };
}

fn thread<R>(f: impl FnOnce(&Thread) -> R) -> R {
    // No destructor: it is there as long as the thread is.
    THREAD.with(f)
}

/// The signals that a host instruction of ours may raise. They must not be blocked inside, or they would kill.
pub const FAULTS: u64 = raw::bit(libc::SIGSEGV) | raw::bit(libc::SIGBUS) | raw::bit(libc::SIGFPE);

/// Whether this thread is inside.
#[inline]
pub fn is_inside() -> bool {
    thread(|t| t.depth.load(Relaxed) != 0)
}

/// The signal mask to go back to.
pub struct Inside {
    mask: u64,
    /// The mask in force is not `mask`.
    changed: bool,
}

/// Goes inside.
pub fn enter() -> Inside {
    // First: a signal that is held back from here on is blocked in the mask that is in force.
    let mask = raw::sigmask(libc::SIG_UNBLOCK, FAULTS);
    thread(|t| {
        let depth = t.depth.load(Relaxed);
        if depth == 0 {
            t.own_mask.store(mask, Relaxed);
        }
        t.depth.store(depth + 1, SeqCst);
    });
    Inside { mask, changed: mask & FAULTS != 0 }
}

/// For a thread of the engine's, which never runs anything else.
pub fn stay() {
    thread(|t| t.depth.store(1, SeqCst));
}

/// Comes out, and takes the signals that were held back. Whoever calls this holds nothing: a handler may not return.
pub fn leave(inside: Inside) {
    let held = thread(|t| {
        t.depth.store(t.depth.load(Relaxed) - 1, SeqCst);
        t.held.swap(0, SeqCst)
    });
    if inside.changed || held != 0 {
        raw::sigmask(libc::SIG_SETMASK, inside.mask);
    }
}

/// Runs `f` inside.
pub fn within<R>(f: impl FnOnce() -> R) -> R {
    let inside = enter();
    let r = f();
    leave(inside);
    r
}

/// This thread's number, asked for once: a filter of system calls may come later.
pub fn number() -> i32 {
    thread(|t| match t.number.load(Relaxed) {
        0 => {
            let number = raw::gettid();
            t.number.store(number, Relaxed);
            number
        }
        number => number,
    })
}

/// In a child made by fork, whose one thread has a new number.
pub fn adopt() {
    thread(|t| t.number.store(0, Relaxed));
}

/// Whether the thread blocks a signal outside: it is open in here, or was, by KVM_SET_SIGNAL_MASK alone.
pub fn blocks_outside(signal: i32) -> bool {
    thread(|t| t.own_mask.load(Relaxed)) & raw::bit(signal) != 0
}

/// KVM_RUN: `f` runs with the mask of KVM_SET_SIGNAL_MASK, and a signal kicks the vCPU.
pub fn running<R>(inside: &mut Inside, mask: Option<u64>, kick: &KickHandle, f: impl FnOnce() -> R) -> R {
    number();
    // A kick that came too late for the last KVM_RUN has been answered: its handler ran.
    kick.withdraw();
    thread(|t| t.kick.store(core::ptr::from_ref(kick).cast_mut(), SeqCst));
    if let Some(mask) = mask {
        inside.changed = true;
        crate::signals::stand_in(inside.mask & !mask);
        raw::sigmask(libc::SIG_SETMASK, mask & !FAULTS);
    }
    if thread(|t| t.held.load(SeqCst)) != 0 {
        kick.kick();
    }
    let r = f();
    thread(|t| t.kick.store(core::ptr::null_mut(), SeqCst));
    r
}

/// A signal came while this thread was inside: remembered, and told to the vCPU. Async-signal-safe.
pub fn held_back(signal: i32) {
    thread(|t| {
        t.held.fetch_or(raw::bit(signal), SeqCst);
        let kick = t.kick.load(SeqCst);
        if !kick.is_null() {
            // SAFETY: `running` put the address of a handle there that outlives it, and takes it away before it ends.
            unsafe { (*kick).kick() };
        }
    });
}
