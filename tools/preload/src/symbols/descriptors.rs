//! Functions that take a descriptor, for [`crate::descriptors`].
//!
//! Those in which a thread can be cancelled go on to the C library's own when the descriptor is not ours. Which that is the
//! constructor asks the dynamic linker, because a signal handler, which may read and write, must not.

use super::{c, symbols};
use crate::descriptors::{answer, noted};
use crate::intercept::intercept;
use core::ffi::{CStr, c_int, c_void};
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::Relaxed;

symbols! {
    fn dup(fd: c_int) -> c_int = SYS_dup(fd);
    fn __dup(fd: c_int) -> c_int = SYS_dup(fd);
    fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64 = SYS_lseek(fd, offset, whence);
    fn lseek64(fd: c_int, offset: i64, whence: c_int) -> i64 = SYS_lseek(fd, offset, whence);
    fn __lseek(fd: c_int, offset: i64, whence: c_int) -> i64 = SYS_lseek(fd, offset, whence);
    fn ftruncate(fd: c_int, len: i64) -> c_int = SYS_ftruncate(fd, len);
    fn ftruncate64(fd: c_int, len: i64) -> c_int = SYS_ftruncate(fd, len);
    fn flock(fd: c_int, operation: c_int) -> c_int = SYS_flock(fd, operation);
    fn fstatfs(fd: c_int, buffer: *mut c_void) -> c_int = SYS_fstatfs(fd, buffer);
    fn fstatfs64(fd: c_int, buffer: *mut c_void) -> c_int = SYS_fstatfs(fd, buffer);
    fn readahead(fd: c_int, offset: i64, count: usize) -> isize = SYS_readahead(fd, offset, count);
    fn sendfile(to: c_int, from: c_int, offset: *mut i64, count: usize) -> isize = SYS_sendfile(to, from, offset, count);
    fn sendfile64(to: c_int, from: c_int, offset: *mut i64, count: usize) -> isize = SYS_sendfile(to, from, offset, count);
}

/// The error itself, as the functions of posix_ return it.
fn positive(r: i64) -> i64 {
    -r
}

/// `fn NAME(ARGS) -> TYPE = NUMBER(ARGUMENTS) if DESCRIPTORS, AS;`: the C library's own, unless a descriptor is noted and the
/// call has an answer.
macro_rules! passed_on {
    ($(fn $name:ident($($arg:ident: $t:ty),*) -> $r:ty = $nr:ident($($pass:expr),*) if $($fd:ident)|+, $as:ident;)*) => {
        /// Finds the functions behind ours.
        pub fn find() {
            $( nexts::$name(); )*
        }

        #[allow(non_snake_case)]
        mod nexts {
            use super::*;
            $(
                #[inline]
                pub fn $name() -> *mut c_void {
                    static NEXT: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
                    next(&NEXT, stringify!($name))
                }
            )*
        }

        $(
            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $name($($arg: $t),*) -> $r {
                // SAFETY: as C's caller promises.
                unsafe {
                    let given = [$($pass as u64),*];
                    let mut a = [0u64; 6];
                    a[..given.len()].copy_from_slice(&given);
                    let ours = $(noted($fd))||+;
                    if ours && !crate::inside::is_inside() && let Some(r) = answer(libc::$nr, a) {
                        return $as(r) as $r;
                    }
                    let f = nexts::$name();
                    if f.is_null() {
                        return $as(crate::raw::syscall(libc::$nr, a)) as $r;
                    }
                    core::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn($($t),*) -> $r>(f)($($arg),*)
                }
            }
        )*
    };
}

passed_on! {
    fn read(fd: c_int, buffer: *mut c_void, len: usize) -> isize = SYS_read(fd, buffer, len) if fd, c;
    fn __read(fd: c_int, buffer: *mut c_void, len: usize) -> isize = SYS_read(fd, buffer, len) if fd, c;
    fn __read_chk(fd: c_int, buffer: *mut c_void, len: usize, size: usize) -> isize = SYS_read(fd, buffer, len.min(size)) if fd, c;
    fn write(fd: c_int, buffer: *const c_void, len: usize) -> isize = SYS_write(fd, buffer, len) if fd, c;
    fn __write(fd: c_int, buffer: *const c_void, len: usize) -> isize = SYS_write(fd, buffer, len) if fd, c;
    fn pread(fd: c_int, buffer: *mut c_void, len: usize, at: i64) -> isize = SYS_pread64(fd, buffer, len, at) if fd, c;
    fn pread64(fd: c_int, buffer: *mut c_void, len: usize, at: i64) -> isize = SYS_pread64(fd, buffer, len, at) if fd, c;
    fn __pread64(fd: c_int, buffer: *mut c_void, len: usize, at: i64) -> isize = SYS_pread64(fd, buffer, len, at) if fd, c;
    fn __pread_chk(fd: c_int, buffer: *mut c_void, len: usize, at: i64, size: usize) -> isize = SYS_pread64(fd, buffer, len.min(size), at) if fd, c;
    fn __pread64_chk(fd: c_int, buffer: *mut c_void, len: usize, at: i64, size: usize) -> isize = SYS_pread64(fd, buffer, len.min(size), at) if fd, c;
    fn pwrite(fd: c_int, buffer: *const c_void, len: usize, at: i64) -> isize = SYS_pwrite64(fd, buffer, len, at) if fd, c;
    fn pwrite64(fd: c_int, buffer: *const c_void, len: usize, at: i64) -> isize = SYS_pwrite64(fd, buffer, len, at) if fd, c;
    fn __pwrite64(fd: c_int, buffer: *const c_void, len: usize, at: i64) -> isize = SYS_pwrite64(fd, buffer, len, at) if fd, c;
    fn readv(fd: c_int, parts: *const c_void, count: c_int) -> isize = SYS_readv(fd, parts, count) if fd, c;
    fn writev(fd: c_int, parts: *const c_void, count: c_int) -> isize = SYS_writev(fd, parts, count) if fd, c;
    fn preadv(fd: c_int, parts: *const c_void, count: c_int, at: i64) -> isize = SYS_preadv(fd, parts, count, at) if fd, c;
    fn preadv64(fd: c_int, parts: *const c_void, count: c_int, at: i64) -> isize = SYS_preadv(fd, parts, count, at) if fd, c;
    fn preadv2(fd: c_int, parts: *const c_void, count: c_int, at: i64, flags: c_int) -> isize = SYS_preadv2(fd, parts, count, at, 0, flags) if fd, c;
    fn preadv64v2(fd: c_int, parts: *const c_void, count: c_int, at: i64, flags: c_int) -> isize = SYS_preadv2(fd, parts, count, at, 0, flags) if fd, c;
    fn pwritev(fd: c_int, parts: *const c_void, count: c_int, at: i64) -> isize = SYS_pwritev(fd, parts, count, at) if fd, c;
    fn pwritev64(fd: c_int, parts: *const c_void, count: c_int, at: i64) -> isize = SYS_pwritev(fd, parts, count, at) if fd, c;
    fn pwritev2(fd: c_int, parts: *const c_void, count: c_int, at: i64, flags: c_int) -> isize = SYS_pwritev2(fd, parts, count, at, 0, flags) if fd, c;
    fn pwritev64v2(fd: c_int, parts: *const c_void, count: c_int, at: i64, flags: c_int) -> isize = SYS_pwritev2(fd, parts, count, at, 0, flags) if fd, c;
    fn fsync(fd: c_int) -> c_int = SYS_fsync(fd) if fd, c;
    fn fdatasync(fd: c_int) -> c_int = SYS_fdatasync(fd) if fd, c;
    fn fallocate(fd: c_int, mode: c_int, at: i64, len: i64) -> c_int = SYS_fallocate(fd, mode, at, len) if fd, c;
    fn fallocate64(fd: c_int, mode: c_int, at: i64, len: i64) -> c_int = SYS_fallocate(fd, mode, at, len) if fd, c;
    fn posix_fallocate(fd: c_int, at: i64, len: i64) -> c_int = SYS_fallocate(fd, 0, at, len) if fd, positive;
    fn posix_fallocate64(fd: c_int, at: i64, len: i64) -> c_int = SYS_fallocate(fd, 0, at, len) if fd, positive;
    fn posix_fadvise(fd: c_int, at: i64, len: i64, advice: c_int) -> c_int = SYS_fadvise64(fd, at, len, advice) if fd, positive;
    fn posix_fadvise64(fd: c_int, at: i64, len: i64, advice: c_int) -> c_int = SYS_fadvise64(fd, at, len, advice) if fd, positive;
    fn sync_file_range(fd: c_int, at: i64, len: i64, flags: u32) -> c_int = SYS_sync_file_range(fd, at, len, flags) if fd, c;
    fn splice(from: c_int, from_at: *mut i64, to: c_int, to_at: *mut i64, len: usize, flags: u32) -> isize = SYS_splice(from, from_at, to, to_at, len, flags) if from | to, c;
    fn tee(from: c_int, to: c_int, len: usize, flags: u32) -> isize = SYS_tee(from, to, len, flags) if from | to, c;
    fn copy_file_range(from: c_int, from_at: *mut i64, to: c_int, to_at: *mut i64, len: usize, flags: u32) -> isize = SYS_copy_file_range(from, from_at, to, to_at, len, flags) if from | to, c;
}

/// The C library's own function of a name, found once.
#[inline]
fn next(cache: &AtomicPtr<c_void>, name: &'static str) -> *mut c_void {
    let f = cache.load(Relaxed);
    if f.is_null() { look_up(cache, name) } else { f }
}

#[cold]
fn look_up(cache: &AtomicPtr<c_void>, name: &'static str) -> *mut c_void {
    let mut text = [0u8; 32];
    // The longest name has 18 characters.
    if let Some(to) = text.get_mut(..name.len()) {
        to.copy_from_slice(name.as_bytes());
    }
    let Ok(name) = CStr::from_bytes_until_nul(&text) else { return core::ptr::null_mut() };
    // SAFETY: a C string.
    let f = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    cache.store(f, Relaxed);
    f
}
