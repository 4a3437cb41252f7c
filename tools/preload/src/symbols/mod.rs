//! The C library's functions that stand for system calls. Each only marshals into [`crate::intercept::intercept`].
//!
//! Variadic functions are declared with the arguments that they may have: on x86-64 both are passed alike. `C-unwind`: a
//! thread may be cancelled where its signals are let in, and leaves through these frames, which own nothing.

pub mod descriptors;
mod files;
mod processes;
mod signals;

use crate::intercept::intercept;
use core::ffi::{c_char, c_int, c_long, c_void};

/// A result as C has it: -1, and errno.
fn c(r: i64) -> c_long {
    if (-4095..0).contains(&r) {
        // SAFETY: this thread's errno.
        unsafe { *libc::__errno_location() = -r as c_int };
        return -1;
    }
    r
}

/// `fn NAME(ARGS) -> TYPE = NUMBER(ARGUMENTS);`
macro_rules! symbols {
    ($(fn $name:ident($($arg:ident: $t:ty),*) -> $r:ty = $nr:ident($($pass:expr),*);)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C-unwind" fn $name($($arg: $t),*) -> $r {
            let given = [$($pass as u64),*];
            let mut a = [0u64; 6];
            a[..given.len()].copy_from_slice(&given);
            // SAFETY: as C's caller promises.
            c(unsafe { intercept(libc::$nr, a) }) as $r
        }
    )* };
}
use symbols;

symbols! {
    fn ioctl(fd: c_int, request: u64, arg: u64) -> c_int = SYS_ioctl(fd, request, arg);
    fn close(fd: c_int) -> c_int = SYS_close(fd);
    fn __close(fd: c_int) -> c_int = SYS_close(fd);
    fn close_range(first: u32, last: u32, flags: c_int) -> c_int = SYS_close_range(first, last, flags);
    fn dup2(old: c_int, new: c_int) -> c_int = SYS_dup2(old, new);
    fn __dup2(old: c_int, new: c_int) -> c_int = SYS_dup2(old, new);
    fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int = SYS_dup3(old, new, flags);
    fn mmap(addr: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void = SYS_mmap(addr, len, prot, flags, fd, offset);
    fn mmap64(addr: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void = SYS_mmap(addr, len, prot, flags, fd, offset);
    fn munmap(addr: *mut c_void, len: usize) -> c_int = SYS_munmap(addr, len);
    fn mremap(addr: *mut c_void, len: usize, new: usize, flags: c_int, to: *mut c_void) -> *mut c_void = SYS_mremap(addr, len, new, flags, to);
    fn mprotect(addr: *mut c_void, len: usize, prot: c_int) -> c_int = SYS_mprotect(addr, len, prot);
    fn madvise(addr: *mut c_void, len: usize, advice: c_int) -> c_int = SYS_madvise(addr, len, advice);
    // The engine's own descriptors are made by these.
    fn memfd_create(name: *const c_char, flags: u32) -> c_int = SYS_memfd_create(name, flags);
    fn eventfd(initial: u32, flags: c_int) -> c_int = SYS_eventfd2(initial, flags);
    fn epoll_create1(flags: c_int) -> c_int = SYS_epoll_create1(flags);
    fn fcntl(fd: c_int, command: c_int, arg: u64) -> c_int = SYS_fcntl(fd, command, arg);
    fn prctl(option: c_int, a: u64, b: u64, c_: u64, d: u64) -> c_int = SYS_prctl(option, a, b, c_, d);
    fn fcntl64(fd: c_int, command: c_int, arg: u64) -> c_int = SYS_fcntl(fd, command, arg);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn closefrom(first: c_int) {
    let first = first.max(0) as u64;
    // SAFETY: numbers only.
    let r = unsafe { intercept(libc::SYS_close_range, [first, u64::from(u32::MAX), 0, 0, 0, 0]) };
    if r == -i64::from(libc::ENOSYS) {
        // Kernels before 5.9.
        for fd in first..65536 {
            // SAFETY: numbers only.
            unsafe { intercept(libc::SYS_close, [fd, 0, 0, 0, 0, 0]) };
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn syscall(nr: c_long, a: u64, b: u64, c_: u64, d: u64, e: u64, f: u64) -> c_long {
    // SAFETY: as C's caller promises.
    c(unsafe { intercept(nr, [a, b, c_, d, e, f]) })
}
