//! sigaction and its older relatives.

use super::c;
use crate::intercept::intercept;
use crate::raw::{KernelAction, SA_RESTORER, restorer};
use core::ffi::c_int;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

/// Signals whose handlers interrupt system calls (siginterrupt).
static INTERRUPTING: AtomicU64 = AtomicU64::new(0);

fn set(signal: c_int, new: Option<&KernelAction>, old: Option<&mut KernelAction>) -> i64 {
    // Two signals belong to the C library.
    if signal == 32 || signal == 33 {
        return -i64::from(libc::EINVAL);
    }
    let new = new.map_or(0, |n| core::ptr::from_ref(n) as u64);
    let old = old.map_or(0, |o| core::ptr::from_mut(o) as u64);
    // SAFETY: null or valid.
    unsafe { intercept(libc::SYS_rt_sigaction, [signal as u64, new, old, 8, 0, 0]) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    // SAFETY: null or valid, says C's caller; a sigset begins with the kernel's.
    let wanted = unsafe { new.as_ref() }.map(|n| KernelAction {
        handler: n.sa_sigaction as u64,
        flags: n.sa_flags as u32 as u64 | SA_RESTORER,
        restorer: restorer as *const () as u64,
        // SAFETY: as above.
        mask: unsafe { (&raw const n.sa_mask).cast::<u64>().read() },
    });
    let mut before = KernelAction::default();
    let r = set(signal, wanted.as_ref(), Some(&mut before));
    if r == 0 && !old.is_null() {
        // SAFETY: as above.
        unsafe {
            (&raw mut *old).write(core::mem::zeroed());
            (*old).sa_sigaction = before.handler as usize;
            (*old).sa_flags = before.flags as u32 as c_int;
            (&raw mut (*old).sa_mask).cast::<u64>().write(before.mask);
        }
    }
    c(r) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    // SAFETY: as C's caller promises.
    unsafe { sigaction(signal, new, old) }
}

fn simple(signal: c_int, handler: usize, flags: i32, mask: u64) -> usize {
    let new = KernelAction {
        handler: handler as u64,
        flags: flags as u32 as u64 | SA_RESTORER,
        restorer: restorer as *const () as u64,
        mask,
    };
    let mut old = KernelAction::default();
    match c(set(signal, Some(&new), Some(&mut old))) {
        0 => old.handler as usize,
        _ => libc::SIG_ERR,
    }
}

fn bit(signal: c_int) -> u64 {
    1u64.checked_shl(signal.wrapping_sub(1) as u32).unwrap_or(0)
}

fn bsd(signal: c_int, handler: usize) -> usize {
    let restart = if INTERRUPTING.load(Relaxed) & bit(signal) != 0 { 0 } else { libc::SA_RESTART };
    simple(signal, handler, restart, bit(signal))
}

#[unsafe(no_mangle)]
extern "C" fn signal(signal: c_int, handler: usize) -> usize {
    bsd(signal, handler)
}

#[unsafe(no_mangle)]
extern "C" fn bsd_signal(signal: c_int, handler: usize) -> usize {
    bsd(signal, handler)
}

#[unsafe(no_mangle)]
extern "C" fn ssignal(signal: c_int, handler: usize) -> usize {
    bsd(signal, handler)
}

#[unsafe(no_mangle)]
extern "C" fn sysv_signal(signal: c_int, handler: usize) -> usize {
    simple(signal, handler, libc::SA_RESETHAND | libc::SA_NODEFER, 0)
}

#[unsafe(no_mangle)]
extern "C" fn __sysv_signal(signal: c_int, handler: usize) -> usize {
    simple(signal, handler, libc::SA_RESETHAND | libc::SA_NODEFER, 0)
}

#[unsafe(no_mangle)]
extern "C" fn siginterrupt(signal: c_int, interrupt: c_int) -> c_int {
    let mut now = KernelAction::default();
    let r = c(set(signal, None, Some(&mut now)));
    if r != 0 {
        return r as c_int;
    }
    if interrupt != 0 {
        INTERRUPTING.fetch_or(bit(signal), SeqCst);
        now.flags &= !(libc::SA_RESTART as u64);
    } else {
        INTERRUPTING.fetch_and(!bit(signal), SeqCst);
        now.flags |= libc::SA_RESTART as u64;
    }
    c(set(signal, Some(&now), None)) as c_int
}
