//! Functions that take a path.

use super::{c, symbols};
use crate::facts;
use crate::intercept::intercept;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::Relaxed;

const CWD: c_int = libc::AT_FDCWD;

symbols! {
    fn open(path: *const c_char, flags: c_int, mode: u32) -> c_int = SYS_openat(CWD, path, flags, mode);
    fn open64(path: *const c_char, flags: c_int, mode: u32) -> c_int = SYS_openat(CWD, path, flags, mode);
    fn __open(path: *const c_char, flags: c_int, mode: u32) -> c_int = SYS_openat(CWD, path, flags, mode);
    fn __open64(path: *const c_char, flags: c_int, mode: u32) -> c_int = SYS_openat(CWD, path, flags, mode);
    fn __open_2(path: *const c_char, flags: c_int) -> c_int = SYS_openat(CWD, path, flags);
    fn __open64_2(path: *const c_char, flags: c_int) -> c_int = SYS_openat(CWD, path, flags);
    fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: u32) -> c_int = SYS_openat(dir, path, flags, mode);
    fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: u32) -> c_int = SYS_openat(dir, path, flags, mode);
    fn __openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int = SYS_openat(dir, path, flags);
    fn __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int = SYS_openat(dir, path, flags);
    fn creat(path: *const c_char, mode: u32) -> c_int = SYS_creat(path, mode);
    fn creat64(path: *const c_char, mode: u32) -> c_int = SYS_creat(path, mode);
    fn access(path: *const c_char, mode: c_int) -> c_int = SYS_access(path, mode);
    fn euidaccess(path: *const c_char, mode: c_int) -> c_int = SYS_faccessat2(CWD, path, mode, libc::AT_EACCESS);
    fn eaccess(path: *const c_char, mode: c_int) -> c_int = SYS_faccessat2(CWD, path, mode, libc::AT_EACCESS);
    fn stat(path: *const c_char, buffer: *mut c_void) -> c_int = SYS_newfstatat(CWD, path, buffer, 0);
    fn stat64(path: *const c_char, buffer: *mut c_void) -> c_int = SYS_newfstatat(CWD, path, buffer, 0);
    fn lstat(path: *const c_char, buffer: *mut c_void) -> c_int = SYS_newfstatat(CWD, path, buffer, libc::AT_SYMLINK_NOFOLLOW);
    fn lstat64(path: *const c_char, buffer: *mut c_void) -> c_int = SYS_newfstatat(CWD, path, buffer, libc::AT_SYMLINK_NOFOLLOW);
    fn fstat(fd: c_int, buffer: *mut c_void) -> c_int = SYS_newfstatat(fd, c"".as_ptr(), buffer, libc::AT_EMPTY_PATH);
    fn fstat64(fd: c_int, buffer: *mut c_void) -> c_int = SYS_newfstatat(fd, c"".as_ptr(), buffer, libc::AT_EMPTY_PATH);
    fn fstatat(dir: c_int, path: *const c_char, buffer: *mut c_void, flags: c_int) -> c_int = SYS_newfstatat(dir, path, buffer, flags);
    fn fstatat64(dir: c_int, path: *const c_char, buffer: *mut c_void, flags: c_int) -> c_int = SYS_newfstatat(dir, path, buffer, flags);
    fn __xstat(_version: c_int, path: *const c_char, buffer: *mut c_void) -> c_int = SYS_newfstatat(CWD, path, buffer, 0);
    fn __xstat64(_version: c_int, path: *const c_char, buffer: *mut c_void) -> c_int = SYS_newfstatat(CWD, path, buffer, 0);
    fn __lxstat(_version: c_int, path: *const c_char, buffer: *mut c_void) -> c_int = SYS_newfstatat(CWD, path, buffer, libc::AT_SYMLINK_NOFOLLOW);
    fn __lxstat64(_version: c_int, path: *const c_char, buffer: *mut c_void) -> c_int = SYS_newfstatat(CWD, path, buffer, libc::AT_SYMLINK_NOFOLLOW);
    fn __fxstat(_version: c_int, fd: c_int, buffer: *mut c_void) -> c_int = SYS_newfstatat(fd, c"".as_ptr(), buffer, libc::AT_EMPTY_PATH);
    fn __fxstat64(_version: c_int, fd: c_int, buffer: *mut c_void) -> c_int = SYS_newfstatat(fd, c"".as_ptr(), buffer, libc::AT_EMPTY_PATH);
    fn statx(dir: c_int, path: *const c_char, flags: c_int, mask: u32, buffer: *mut c_void) -> c_int = SYS_statx(dir, path, flags, mask, buffer);
    fn readlink(path: *const c_char, buffer: *mut c_char, len: usize) -> isize = SYS_readlink(path, buffer, len);
    fn __readlink_chk(path: *const c_char, buffer: *mut c_char, len: usize, _size: usize) -> isize = SYS_readlink(path, buffer, len);
    fn __readlinkat_chk(dir: c_int, path: *const c_char, buffer: *mut c_char, len: usize, _size: usize) -> isize = SYS_readlinkat(dir, path, buffer, len);
    fn readlinkat(dir: c_int, path: *const c_char, buffer: *mut c_char, len: usize) -> isize = SYS_readlinkat(dir, path, buffer, len);
}

/// faccessat has flags that only faccessat2 takes.
#[unsafe(no_mangle)]
unsafe extern "C" fn faccessat(dir: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int {
    let a = [dir as u64, path as u64, mode as u64, flags as u64, 0, 0];
    let nr = if flags == 0 { libc::SYS_faccessat } else { libc::SYS_faccessat2 };
    // SAFETY: as C's caller promises.
    c(unsafe { intercept(nr, a) }) as c_int
}

/// The C library's own function of a name, found once.
fn next(cache: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let mut f = cache.load(Relaxed);
    if f.is_null() {
        // SAFETY: a C string.
        f = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
        cache.store(f, Relaxed);
    }
    f
}

type Realpath = unsafe extern "C" fn(*const c_char, *mut c_char) -> *mut c_char;

/// realpath looks inside the C library: it would not find a device that is not there.
#[unsafe(no_mangle)]
unsafe extern "C" fn realpath(path: *const c_char, resolved: *mut c_char) -> *mut c_char {
    static NEXT: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
    // SAFETY: as C's caller promises: room for PATH_MAX bytes, or null.
    unsafe {
        if facts::of(CWD, path) == Some(facts::Fact::Device) {
            return match resolved.is_null() {
                true => libc::strdup(c"/dev/kvm".as_ptr()),
                false => libc::strcpy(resolved, c"/dev/kvm".as_ptr()),
            };
        }
        let f = next(&NEXT, c"realpath");
        if f.is_null() {
            return core::ptr::null_mut();
        }
        core::mem::transmute::<*mut c_void, Realpath>(f)(path, resolved)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __realpath_chk(path: *const c_char, resolved: *mut c_char, _size: usize) -> *mut c_char {
    // SAFETY: as C's caller promises.
    unsafe { realpath(path, resolved) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn canonicalize_file_name(path: *const c_char) -> *mut c_char {
    // SAFETY: as C's caller promises.
    unsafe { realpath(path, core::ptr::null_mut()) }
}

type Fopen = unsafe extern "C" fn(*const c_char, *const c_char) -> *mut libc::FILE;

/// fopen opens inside the C library: paths of ours are opened here, and given to it.
///
/// # Safety
///
/// As fopen.
unsafe fn fopen_with(
    cache: &AtomicPtr<c_void>,
    name: &CStr,
    path: *const c_char,
    mode: *const c_char,
) -> *mut libc::FILE {
    // SAFETY: as C's caller promises.
    if unsafe { facts::of(CWD, path) }.is_some_and(|f| f != facts::Fact::Directory) {
        // SAFETY: as C's caller promises.
        unsafe {
            let text = CStr::from_ptr(mode).to_bytes();
            let mut flags = match text {
                _ if text.contains(&b'+') => libc::O_RDWR,
                [b'r', ..] => libc::O_RDONLY,
                _ => libc::O_WRONLY,
            };
            if text.contains(&b'e') {
                flags |= libc::O_CLOEXEC;
            }
            let fd = open(path, flags, 0);
            return if fd < 0 { core::ptr::null_mut() } else { libc::fdopen(fd, mode) };
        }
    }
    let f = next(cache, name);
    if f.is_null() {
        return core::ptr::null_mut();
    }
    // SAFETY: the C library's function of this type.
    unsafe { core::mem::transmute::<*mut c_void, Fopen>(f)(path, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fopen(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    static NEXT: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
    // SAFETY: as C's caller promises.
    unsafe { fopen_with(&NEXT, c"fopen", path, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fopen64(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    static NEXT: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
    // SAFETY: as C's caller promises.
    unsafe { fopen_with(&NEXT, c"fopen64", path, mode) }
}
