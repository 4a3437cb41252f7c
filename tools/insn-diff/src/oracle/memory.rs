//! The memory that parent and child share: one memfd with the backing (28 KiB, the layout's areas one behind
//! the other) and the mailbox. The parent maps it once, above 4 GiB; the child inherits that mapping and maps
//! the areas from it a second time, at their linear addresses and with their permissions.

use super::OracleError;
use super::mailbox::Mailbox;
use crate::layout::BACKING;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Bytes of the memfd.
const LEN: usize = BACKING + size_of::<Mailbox>();

/// The shared mapping. It lives as long as this value; a child keeps its own.
#[derive(Debug)]
pub struct Shared {
    fd: OwnedFd,
    start: NonNull<u8>,
}

// SAFETY: the mapping belongs to the process, not to a thread; `Shared` gives out raw pointers only.
unsafe impl Send for Shared {}

impl Shared {
    /// A new memfd, zero, and its mapping.
    pub fn new() -> Result<Shared, OracleError> {
        let system = |what| OracleError::System { what, source: io::Error::last_os_error() };
        // SAFETY: the name is a C string; nothing else is passed.
        let raw = unsafe { libc::memfd_create(c"softkvm-oracle".as_ptr(), libc::MFD_CLOEXEC) };
        if raw < 0 {
            return Err(system("memfd_create"));
        }
        // SAFETY: `raw` has just been made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: a call on our own fd, without pointers.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), LEN as libc::off_t) } != 0 {
            return Err(system("ftruncate of the memfd"));
        }
        // SAFETY: a new mapping where the kernel likes it: it replaces none.
        let start = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), LEN, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(system("mmap of the memfd"));
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| system("mmap of the memfd"))?;
        Ok(Shared { fd, start })
    }

    /// The memfd: the backing begins at its offset 0.
    pub fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// The first byte of the backing, of [`BACKING`] bytes.
    pub fn backing(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The mailbox. Its integers are valid whatever they hold.
    pub fn mailbox(&self) -> *mut Mailbox {
        const { assert!(BACKING.is_multiple_of(align_of::<Mailbox>())) };
        // SAFETY: the mapping has LEN bytes, so the offset is inside.
        unsafe { self.start.as_ptr().add(BACKING).cast() }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nobody holds a pointer into it beyond `self`'s life.
        unsafe { libc::munmap(self.start.as_ptr().cast(), LEN) };
    }
}
