//! Programs that the program starts: they inherit what `softkvm exec` put into the environment.
//!
//! A program that passes `environ` on passes ours on. One that makes an environment of its own gets our strings
//! added. The new list lies in a fresh mapping, because this may be a vfork child, where nothing may be allocated.

use crate::raw::{self, sys};
use core::ffi::{CStr, c_char};

/// execve or execveat, whose environment is the argument `at`.
///
/// # Safety
///
/// As the system call.
pub unsafe fn execve(nr: i64, mut a: [u64; 6], at: usize) -> i64 {
    // SAFETY: the program's environment, a list of C strings with a null at its end.
    a[at] = unsafe { with_ours(a[at] as *const *const c_char) } as u64;
    // SAFETY: as the caller promises.
    crate::signals::handing_on(|| unsafe { raw::syscall(nr, a) })
}

/// The environment with our strings, or as it is if it has them.
///
/// # Safety
///
/// `environment` is null or a list of C strings with a null at its end.
pub unsafe fn with_ours(environment: *const *const c_char) -> *const *const c_char {
    if !crate::environment::enabled() || environment.is_null() {
        return environment;
    }
    let mut count = 0;
    // SAFETY: up to the null.
    let has = |name: &str, n: usize| unsafe {
        (0..n).any(|k| {
            let text = CStr::from_ptr(*environment.add(k)).to_bytes();
            text.strip_prefix(name.as_bytes()).is_some_and(|t| t.first() == Some(&b'='))
        })
    };
    // SAFETY: as above.
    unsafe {
        while !(*environment.add(count)).is_null() {
            count += 1;
        }
    }
    // A program that has put something else into LD_PRELOAD knows what it does.
    if crate::environment::inherited().all(|(name, _)| has(name, count)) {
        return environment;
    }
    let bytes = (count + 8) * size_of::<*const c_char>();
    // SAFETY: a new mapping, with room for all.
    unsafe {
        let list = sys!(
            SYS_mmap,
            0,
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1i64,
            0
        );
        if list < 0 {
            return environment;
        }
        let list = list as usize as *mut *const c_char;
        core::ptr::copy_nonoverlapping(environment, list, count);
        let mut end = count;
        for (name, text) in crate::environment::inherited() {
            if !has(name, count) {
                *list.add(end) = text.as_ptr();
                end += 1;
            }
        }
        list
    }
}
