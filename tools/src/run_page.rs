//! The two things that need the run page itself: `immediate_exit` from a signal handler, and the details of an
//! internal error.
//!
//! A vCPU thread inside KVM_RUN is called out the way VMMs do it: the signal makes KVM_RUN return EINTR, and
//! its handler sets `immediate_exit`, so that a signal which arrives just before KVM_RUN is not lost
//! (KVM api 5, `immediate_exit`).
#![allow(unsafe_code)] // kvm_run is memory that KVM shares with us, and a handler reaches it through an address.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::kvm::VcpuFd;

thread_local! {
    /// Address of `immediate_exit` of the vCPU that this thread runs. A const initialiser and no destructor:
    /// safe to read in a signal handler.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// Says that this thread runs a vCPU; dropped when it no longer does.
pub struct OnVcpuThread(());

impl OnVcpuThread {
    /// Lets the kick signal find this vCPU's run page for as long as the returned value lives.
    pub fn enter(vcpu: &mut VcpuFd) -> OnVcpuThread {
        let field: *mut u8 = &raw mut vcpu.get_kvm_run().immediate_exit;
        IMMEDIATE_EXIT.set(field);
        OnVcpuThread(())
    }
}

impl Drop for OnVcpuThread {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
    }
}

extern "C" fn on_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let field = IMMEDIATE_EXIT.get();
    if !field.is_null() {
        // SAFETY: non-null only between `enter` and the drop of its guard, while the run page is mapped; one
        // byte is always aligned, and KVM reads it as a byte.
        unsafe { AtomicU8::from_ptr(field) }.store(1, Ordering::SeqCst);
    }
}

/// Installs the kick signal's handler. Once per process, before the first vCPU thread.
pub fn install() -> Result<(), String> {
    register_signal_handler(SIGRTMIN(), on_kick).map_err(|error| format!("sigaction: {error}"))
}

/// Sends the kick signal to a vCPU thread.
pub fn kick<T>(thread: &JoinHandle<T>) {
    // A thread that has ended is not an error: there is nothing left to kick.
    let _ = thread.kill(SIGRTMIN());
}

/// KVM_EXIT_INTERNAL_ERROR's suberror and data (KVM api 5, `internal`).
pub fn internal_error(vcpu: &mut VcpuFd) -> (u32, Vec<u64>) {
    let run = vcpu.get_kvm_run();
    // SAFETY: the caller has just seen KVM_EXIT_INTERNAL_ERROR, so `internal` is the member that KVM wrote; all
    // its fields are integers, for which any bytes are valid.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = (internal.ndata as usize).min(internal.data.len());
    (internal.suberror, internal.data[..count].to_vec())
}
