//! System calls without the C library: results as the kernel returns them, errno untouched.
//!
//! The library stands before the C library's functions, so it cannot call them for what it passes on; and much of
//! it runs in signal handlers, where errno belongs to somebody else. Structures are the kernel's, not libc's.

use core::arch::{asm, naked_asm};

/// A system call. An error is `-errno`.
///
/// # Safety
///
/// As the system call: `a` holds what the kernel expects of a caller.
#[inline]
pub unsafe fn syscall(nr: i64, a: [u64; 6]) -> i64 {
    let r: i64;
    // SAFETY: the kernel's calling convention; rcx and r11 are clobbered, memory may be written.
    unsafe {
        asm!("syscall", inlateout("rax") nr => r, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3],
            in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    r
}

/// [`syscall`] with the arguments that matter.
macro_rules! sys {
    ($nr:ident $(, $a:expr)*) => {{
        let given = [$($a as u64),*];
        let mut a = [0u64; 6];
        a[..given.len()].copy_from_slice(&given);
        $crate::raw::syscall(libc::$nr, a)
    }};
}
pub(crate) use sys;

/// The kernel's `struct sigaction` of x86-64.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct KernelAction {
    /// The handler, SIG_DFL or SIG_IGN.
    pub handler: u64,
    /// SA_*.
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: u64,
    /// Blocked while the handler runs.
    pub mask: u64,
}

/// The kernel's flag that says there is a restorer.
pub const SA_RESTORER: u64 = 0x0400_0000;

/// Where a handler of ours returns to. The bytes are the ones by which unwinders know a signal frame.
#[unsafe(naked)]
pub extern "C" fn restorer() {
    naked_asm!(".byte 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05");
}

/// Changes the calling thread's signal mask; the old one.
pub fn sigmask(how: i32, set: u64) -> u64 {
    let mut old = 0u64;
    // SAFETY: both pointers are to our own 8 bytes.
    unsafe { sys!(SYS_rt_sigprocmask, how, &raw const set, &raw mut old, 8) };
    old
}

/// The bit of a signal in a mask.
pub const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Sets and fetches what the kernel does with a signal.
pub fn sigaction(signal: i32, new: Option<&KernelAction>) -> Result<KernelAction, i64> {
    let mut old = KernelAction::default();
    let new = new.map_or(core::ptr::null(), |n| &raw const *n);
    // SAFETY: `new` is null or valid, `old` is ours.
    match unsafe { sys!(SYS_rt_sigaction, signal, new, &raw mut old, 8) } {
        0 => Ok(old),
        e => Err(e),
    }
}

/// Which file a descriptor stands for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

/// A descriptor's identity; `None` for a number that is no descriptor.
pub fn identity(fd: i32) -> Option<Identity> {
    let mut stat = core::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills the structure, whose layout on x86-64 is libc's.
    unsafe {
        (sys!(SYS_fstat, fd, stat.as_mut_ptr()) == 0).then(|| {
            let s = stat.assume_init_ref();
            Identity { dev: s.st_dev, ino: s.st_ino }
        })
    }
}

/// Where a link of /proc points, in `buffer`.
pub fn readlink<'a>(path: &core::ffi::CStr, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    // SAFETY: a C string, and a buffer with its length.
    let n = unsafe { sys!(SYS_readlinkat, libc::AT_FDCWD, path.as_ptr(), buffer.as_mut_ptr(), buffer.len()) };
    (n > 0 && (n as usize) < buffer.len()).then(|| &buffer[..n as usize])
}

/// `/proc/self/fd/N` without an allocation.
pub fn fd_path(fd: i32, buffer: &mut [u8; 32]) -> &core::ffi::CStr {
    use std::io::Write;
    *buffer = [0; 32];
    // 14 and at most 11 characters.
    let _ = write!(&mut buffer[..31], "/proc/self/fd/{fd}");
    core::ffi::CStr::from_bytes_until_nul(buffer).unwrap_or(c"")
}

/// Writes all of it, or as much as is taken.
pub fn write_all(fd: i32, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: a slice of ours.
        match unsafe { sys!(SYS_write, fd, bytes.as_ptr(), bytes.len()) } {
            n if n > 0 => bytes = &bytes[n as usize..],
            n if n == -i64::from(libc::EINTR) => {}
            _ => return,
        }
    }
}

/// The calling thread's number.
pub fn gettid() -> i32 {
    // SAFETY: no arguments.
    unsafe { sys!(SYS_gettid) as i32 }
}

/// The process's number.
pub fn getpid() -> i32 {
    // SAFETY: no arguments.
    unsafe { sys!(SYS_getpid) as i32 }
}
