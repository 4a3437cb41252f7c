//! exec and spawn: the environment that a child gets; threads that the engine starts.

use super::{c, symbols};
use crate::children::with_ours;
use crate::intercept::intercept;
use crate::{inside, raw, signals};
use core::ffi::{CStr, c_char, c_int, c_ulong, c_void};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicPtr};

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
    signals::handing_on(|| unsafe { f(pid, path, actions, attributes, argv, with_ours(envp)) })
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
    signals::handing_on(|| unsafe { f(pid, file, actions, attributes, argv, with_ours(envp)) })
}

type Start = extern "C" fn(*mut c_void) -> *mut c_void;
type Create = unsafe extern "C" fn(*mut c_ulong, *const c_void, Start, *mut c_void) -> c_int;

/// What a thread of the engine's begins with.
struct Engine {
    start: Start,
    argument: *mut c_void,
}

extern "C" fn engine_thread(engine: *mut c_void) -> *mut c_void {
    // SAFETY: the box that `pthread_create` made for this thread alone.
    let engine = unsafe { Box::from_raw(engine.cast::<Engine>()) };
    inside::stay();
    (engine.start)(engine.argument)
}

/// A thread that the engine starts is inside for ever, and takes no signals from its first instruction on.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut c_ulong,
    attributes: *const c_void,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    static NEXT: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
    let mut f = NEXT.load(Relaxed);
    if f.is_null() {
        // SAFETY: a C string.
        f = unsafe { libc::dlsym(libc::RTLD_NEXT, c"pthread_create".as_ptr()) };
        NEXT.store(f, Relaxed);
    }
    if f.is_null() {
        return libc::EAGAIN;
    }
    // SAFETY: the C library's function of this type.
    let f = unsafe { core::mem::transmute::<*mut c_void, Create>(f) };
    if !inside::is_inside() {
        // SAFETY: as C's caller promises.
        return unsafe { f(thread, attributes, start, argument) };
    }
    let engine = Box::into_raw(Box::new(Engine { start, argument }));
    let mask = raw::sigmask(libc::SIG_SETMASK, !inside::FAULTS);
    // SAFETY: as C's caller promises; the box is the thread's.
    let r = unsafe { f(thread, attributes, engine_thread, engine.cast()) };
    raw::sigmask(libc::SIG_SETMASK, mask);
    if r != 0 {
        // SAFETY: there is no thread that could have it.
        drop(unsafe { Box::from_raw(engine) });
    }
    r
}

extern "C" fn idle(_: *mut c_void) -> *mut c_void {
    loop {
        // SAFETY: a pointer to nothing; it sleeps until it is cancelled.
        unsafe { libc::pause() };
    }
}

/// The C library's handler is installed by the first call, and acts at once: so a thread of no importance is cancelled
/// first, and the handler taken over before it meets one that runs a vCPU.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn pthread_cancel(thread: c_ulong) -> c_int {
    type Cancel = unsafe extern "C-unwind" fn(c_ulong) -> c_int;
    static PREPARED: AtomicBool = AtomicBool::new(false);
    let Some(f) = next::<Cancel>(c"pthread_cancel") else { return libc::ENOSYS };
    if signals::is_active() && !PREPARED.swap(true, Relaxed) {
        // SAFETY: a thread of our own, which is cancelled and waited for.
        unsafe {
            let mut helper: libc::pthread_t = 0;
            if libc::pthread_create(&raw mut helper, core::ptr::null(), idle, core::ptr::null_mut()) == 0 {
                f(helper);
                libc::pthread_join(helper, core::ptr::null_mut());
            }
        }
        signals::take_cancellation();
    }
    // SAFETY: as C's caller promises.
    unsafe { f(thread) }
}
