//! Signals around KVM_RUN.
//!
//! In the kernel a signal ends KVM_RUN with EINTR. In process KVM_RUN is a function: a handler runs inside it and
//! returns into it. How a vCPU is made to leave KVM_RUN, for a program written on this crate:
//!
//! - from any thread: [`crate::KickHandle::kick`], which is async-signal-safe and never lost: if no KVM_RUN is on, the
//!   next one returns EINTR at once;
//! - as programs on the crate `kvm-ioctls` do: a signal handler in the vCPU's thread sets `immediate_exit` in the run
//!   page. The engine looks at it every few thousand instructions, and every few milliseconds in HLT. The byte stays
//!   set until the program clears it, so it is not lost either.
//!
//! A handler that does neither does not end KVM_RUN. The shared library for unmodified programs interposes
//! `sigaction` and needs no cooperation.
//!
//! `unsafe` is needed for the signal mask of our own threads.
#![allow(unsafe_code)]

/// Blocks every signal in the calling thread: our own threads never run a program's handlers. Faults stay open, since
/// a guest's memory may be touched on behalf of a device, and so does what a filter of system calls raises.
pub fn block_all() {
    let mut set = core::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set; pthread_sigmask reads it and may leave the old set out.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS] {
            libc::sigdelset(set.as_mut_ptr(), fault);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), core::ptr::null_mut());
    }
}
