//! SIGFPE at a stub: an SSE or AVX instruction raised an exception that the guest's MXCSR does not mask.
//!
//! `unsafe` is needed to install a signal handler and to change the interrupted context. A stub that runs under the
//! guest's MXCSR keeps the address of its own fault exit in R10; the handler resumes there, with the MXCSR that the
//! kernel saved, in which the processor has set the exception's flag. A SIGFPE from anywhere else goes to
//! the handler that was there before.
#![allow(unsafe_code)]

use super::code_buf;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use std::sync::Once;

struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);

// SAFETY: written once, by `install`, before the handler that reads it is in place.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::zeroed()));
static INSTALL: Once = Once::new();

/// Installs the handler, once.
pub(super) fn install() {
    INSTALL.call_once(|| {
        // SAFETY: sigaction with valid pointers; `PREVIOUS` has no reader yet, since only the handler reads it and
        // the first call only fetches the old action.
        unsafe {
            libc::sigaction(libc::SIGFPE, core::ptr::null(), (*PREVIOUS.0.get()).as_mut_ptr());
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(libc::SIGFPE, &action, core::ptr::null_mut());
        }
    });
}

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel calls this with a valid ucontext. R10 is the fault exit whenever RIP is in a stub that can
    // raise SIGFPE: the stub loads it before the guest's instruction, which cannot change it. `PREVIOUS` was
    // filled before this handler was installed, and its handler has the type that its flags say.
    unsafe {
        let gregs = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let (rip, exit) = (gregs[libc::REG_RIP as usize], gregs[libc::REG_R10 as usize]);
        if code_buf::contains(rip as usize) && code_buf::contains(exit as usize) {
            gregs[libc::REG_RIP as usize] = exit;
            return;
        }
        let previous = (*PREVIOUS.0.get()).assume_init_ref();
        match previous.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => {
                // The instruction faults again, now without us.
                libc::sigaction(libc::SIGFPE, previous, core::ptr::null_mut());
            }
            f if previous.sa_flags & libc::SA_SIGINFO != 0 => {
                let f: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = core::mem::transmute(f);
                f(signal, info, context);
            }
            f => {
                let f: extern "C" fn(i32) = core::mem::transmute(f);
                f(signal);
            }
        }
    }
}
