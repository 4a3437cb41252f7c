//! exec and spawn: the environment that a child gets.

use super::{c, symbols};
use crate::children::with_ours;
use crate::intercept::intercept;
use core::ffi::{CStr, c_char, c_int, c_void};

type Strings = *const *const c_char;

symbols! {
    fn execve(path: *const c_char, argv: Strings, envp: Strings) -> c_int = SYS_execve(path, argv, envp);
    fn execveat(dir: c_int, path: *const c_char, argv: Strings, envp: Strings, flags: c_int) -> c_int = SYS_execveat(dir, path, argv, envp, flags);
    fn fexecve(fd: c_int, argv: Strings, envp: Strings) -> c_int = SYS_execveat(fd, c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH);
}

/// The C library's own function.
fn next<F: Copy>(name: &CStr) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: a C string; F is a function pointer's type, says the caller, and of its size.
    unsafe {
        let f = libc::dlsym(libc::RTLD_NEXT, name.as_ptr());
        (!f.is_null()).then(|| core::mem::transmute_copy::<*mut c_void, F>(&f))
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn execvpe(file: *const c_char, argv: Strings, envp: Strings) -> c_int {
    type Execvpe = unsafe extern "C" fn(*const c_char, Strings, Strings) -> c_int;
    let Some(f) = next::<Execvpe>(c"execvpe") else { return c(-i64::from(libc::ENOSYS)) as c_int };
    // SAFETY: as C's caller promises.
    unsafe { f(file, argv, with_ours(envp)) }
}

type Spawn =
    unsafe extern "C" fn(*mut c_int, *const c_char, *const c_void, *const c_void, Strings, Strings) -> c_int;

#[unsafe(no_mangle)]
unsafe extern "C" fn posix_spawn(
    pid: *mut c_int,
    path: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    argv: Strings,
    envp: Strings,
) -> c_int {
    let Some(f) = next::<Spawn>(c"posix_spawn") else { return libc::ENOSYS };
    // SAFETY: as C's caller promises.
    unsafe { f(pid, path, actions, attributes, argv, with_ours(envp)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn posix_spawnp(
    pid: *mut c_int,
    file: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    argv: Strings,
    envp: Strings,
) -> c_int {
    let Some(f) = next::<Spawn>(c"posix_spawnp") else { return libc::ENOSYS };
    // SAFETY: as C's caller promises.
    unsafe { f(pid, file, actions, attributes, argv, with_ours(envp)) }
}
