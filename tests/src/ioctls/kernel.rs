//! File descriptors of a kernel (or of the library that stands for one), and pages to point at.
//!
//! `unsafe`: open, ioctl, mmap and munmap as the system has them; the tests' native oracle. What an ioctl does to the
//! memory of its argument is between the argument's author and KVM: addresses here are of [`Pages`] or point nowhere.
#![allow(unsafe_code)]

use super::front::{Fd, Front};
use parking_lot::Mutex;
use std::collections::HashMap;

/// Bytes that KVM_GET_VCPU_MMAP_SIZE says on x86.
const RUN_SIZE: usize = 3 * 4096;

fn errno() -> i64 {
    i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// `/dev/kvm` by file descriptors.
#[derive(Default)]
pub struct Kernel {
    pages: Mutex<HashMap<Fd, u64>>,
}

impl Kernel {
    /// `None`: there is no `/dev/kvm` that this process may use.
    pub fn present() -> Option<Kernel> {
        let kernel = Kernel::default();
        let fd = kernel.open();
        (fd >= 0).then(|| {
            kernel.close(fd);
            kernel
        })
    }
}

impl Front for Kernel {
    fn open(&self) -> Fd {
        // SAFETY: a C string.
        unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) }
    }

    fn ioctl(&self, fd: Fd, nr: u32, arg: u64) -> i64 {
        // SAFETY: as the module says.
        let r = unsafe { libc::ioctl(fd, libc::c_ulong::from(nr), arg) };
        if r < 0 { -errno() } else { i64::from(r) }
    }

    fn run_page(&self, vcpu: Fd) -> u64 {
        *self.pages.lock().entry(vcpu).or_insert_with(|| {
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping, where the system likes.
            let at =
                unsafe { libc::mmap(core::ptr::null_mut(), RUN_SIZE, rights, libc::MAP_SHARED, vcpu, 0) };
            if at == libc::MAP_FAILED { 0 } else { at as u64 }
        })
    }

    fn close(&self, fd: Fd) {
        if let Some(at) = self.pages.lock().remove(&fd) {
            // SAFETY: the mapping made above, which nobody uses after its descriptor.
            unsafe { libc::munmap(at as *mut _, RUN_SIZE) };
        }
        // SAFETY: a number only.
        unsafe { libc::close(fd) };
    }
}

/// Pages to point ioctls at: a run of writable ones, a read-only one behind them, then one without rights.
#[derive(Debug)]
pub struct Pages {
    start: u64,
    writable: u64,
}

impl Pages {
    /// So many writable pages, zeroed.
    pub fn new(writable: u64) -> Pages {
        let len = (writable as usize + 2) * 4096;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping; its last two pages lose rights before anybody knows of them.
        let start = unsafe {
            let at = libc::mmap(core::ptr::null_mut(), len, rights, kind, -1, 0);
            assert_ne!(at, libc::MAP_FAILED, "memory");
            let behind = at.add(writable as usize * 4096);
            libc::mprotect(behind, 4096, libc::PROT_READ);
            libc::mprotect(behind.add(4096), 4096, libc::PROT_NONE);
            at as u64
        };
        Pages { start, writable }
    }

    /// The first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes that can be written.
    pub fn len(&self) -> u64 {
        self.writable * 4096
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The page that can only be read.
    pub fn read_only(&self) -> u64 {
        self.start + self.len()
    }

    /// The page that cannot even be read.
    pub fn forbidden(&self) -> u64 {
        self.read_only() + 4096
    }

    /// Takes the writable pages' rights, or gives them back.
    pub fn allow(&self, rights: bool) {
        let rights = if rights { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_NONE };
        // SAFETY: our own mapping, which Rust references never point into.
        unsafe { libc::mprotect(self.start as *mut _, self.len() as usize, rights) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping; who was given its addresses has to do with EFAULT.
        unsafe { libc::munmap(self.start as *mut _, (self.writable as usize + 2) * 4096) };
    }
}
