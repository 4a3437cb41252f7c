//! What `softkvm exec` tells us, and how a program's children hear it too.
//!
//! The constructor copies a few strings of the environment, before the program can change it; without them the library
//! stays inert. It does nothing else, but for hosts that can fault on CPUID: a program that looks for VMX or SVM by
//! itself may do so before it opens anything (see [`crate::cpuid`]).

use crate::protocol::{BUILD_ID, CPUID, EXEC, MARK, PRELOAD, TRACE};
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::{Acquire, Release};

/// A note lies at a file's beginning, and is aligned to 4 bytes.
#[repr(C, align(4))]
struct Note([u8; MARK.len() + BUILD_ID.len()]);

/// By which `softkvm exec` knows a library of its own build.
#[used]
#[unsafe(link_section = ".note.softkvm")]
static MARKED_ID: Note = Note({
    let mut text = [0; MARK.len() + BUILD_ID.len()];
    let mut n = 0;
    while n < MARK.len() {
        text[n] = MARK[n];
        n += 1;
    }
    while n < text.len() {
        text[n] = BUILD_ID.as_bytes()[n - MARK.len()];
        n += 1;
    }
    text
});

const NAMES: [&str; 4] = [PRELOAD, EXEC, TRACE, CPUID];
/// Longer strings are not kept: a path has at most 4,096 bytes.
const LONGEST: usize = 4608;

/// Copies of `NAME=value`, with a zero at the end; empty where there is none.
struct Copies(UnsafeCell<[[u8; LONGEST]; 4]>);

// SAFETY: written by the constructor, when the process has one thread, and only read afterwards.
unsafe impl Sync for Copies {}

static COPIES: Copies = Copies(UnsafeCell::new([[0; LONGEST]; 4]));
static ENABLED: AtomicBool = AtomicBool::new(false);

#[cfg(not(test))]
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(i32, *const *const c_char, *const *const c_char) = constructor;

#[cfg_attr(test, allow(dead_code))]
extern "C" fn constructor(_: i32, _: *const *const c_char, environment: *const *const c_char) {
    let mut at = environment;
    // SAFETY: the C library passes constructors the environment, an array of C strings that ends with a null.
    // There is one thread.
    unsafe {
        while !at.is_null() && !(*at).is_null() {
            let text = CStr::from_ptr(*at).to_bytes();
            for (name, copy) in NAMES.iter().zip(&mut *COPIES.0.get()) {
                let hit = text.strip_prefix(name.as_bytes()).is_some_and(|t| t.first() == Some(&b'='));
                if hit && text.len() < LONGEST {
                    copy[..text.len()].copy_from_slice(text);
                }
            }
            at = at.add(1);
        }
    }
    let Some(id) = value(1) else { return };
    if id.to_bytes() != BUILD_ID.as_bytes() {
        crate::raw::write_all(
            2,
            b"softkvm: libsoftkvm.so is of another build than `softkvm exec`: not used\n",
        );
        return;
    }
    ENABLED.store(true, Release);
    #[cfg(not(test))]
    crate::symbols::descriptors::find();
    if value(3).is_some() {
        crate::cpuid::start();
    }
}

/// Whether `softkvm exec` started this program, or one of its parents.
#[inline]
pub fn enabled() -> bool {
    ENABLED.load(Acquire)
}

fn copy(n: usize) -> Option<&'static CStr> {
    // SAFETY: only read after the constructor.
    let copy = unsafe { &(&*COPIES.0.get())[n] };
    CStr::from_bytes_until_nul(copy).ok().filter(|c| !c.is_empty())
}

fn value(n: usize) -> Option<&'static CStr> {
    let text = copy(n)?.to_bytes_with_nul();
    CStr::from_bytes_with_nul(text.get(NAMES[n].len() + 1..)?).ok()
}

/// Where the trace goes.
pub fn trace() -> Option<&'static CStr> {
    value(2).filter(|v| !v.is_empty())
}

/// The strings `NAME=value` that a child's environment must have.
pub fn inherited() -> impl Iterator<Item = (&'static str, &'static CStr)> {
    (0..NAMES.len()).filter_map(|n| Some((NAMES[n], copy(n)?)))
}
