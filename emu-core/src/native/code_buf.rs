//! Memory for stubs: executable through one mapping, writable through another, never both.
//!
//! `unsafe` is needed to map memory and to copy machine code into it. One memfd is reserved for the whole
//! process and cut into slots, one a vCPU, so that the SIGFPE handler knows stubs by their address alone and a vCPU
//! that flushes its stubs disturbs nobody. The file is sparse: a slot costs what it uses.
#![allow(unsafe_code)]

use parking_lot::Mutex;
use std::sync::OnceLock;

/// Bytes of one vCPU's slot.
pub(super) const SLOT: usize = 1 << 20;
/// The most vCPUs of a process.
const SLOTS: usize = 1024;
/// Bytes at a slot's start that are data: the MXCSR of Rust code.
pub(super) const PROLOGUE: usize = 64;

struct Region {
    write: usize,
    execute: usize,
    free: Mutex<Vec<u16>>,
}

static REGION: OnceLock<Option<Region>> = OnceLock::new();

fn map() -> Option<Region> {
    let len = SLOT * SLOTS;
    // SAFETY: plain system calls on a descriptor of our own; the results are checked, and the mappings are
    // never unmapped, so their addresses stay valid for the process's life.
    unsafe {
        let fd = libc::memfd_create(c"softkvm-native".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return None;
        }
        let write = if libc::ftruncate(fd, len as libc::off_t) == 0 {
            let at = core::ptr::null_mut();
            let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
            let w = libc::mmap(at, len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0);
            let x = libc::mmap(at, len, libc::PROT_READ | libc::PROT_EXEC, flags, fd, 0);
            if w == libc::MAP_FAILED || x == libc::MAP_FAILED { None } else { Some((w, x)) }
        } else {
            None
        };
        libc::close(fd);
        let (write, execute) = write?;
        let free = Mutex::new((0..SLOTS as u16).rev().collect());
        Some(Region { write: write as usize, execute: execute as usize, free })
    }
}

fn region() -> Option<&'static Region> {
    REGION.get_or_init(map).as_ref()
}

/// Whether an address is in the executable mapping. Safe to call in a signal handler.
pub(super) fn contains(address: usize) -> bool {
    match REGION.get() {
        Some(Some(r)) => address.wrapping_sub(r.execute) < SLOT * SLOTS,
        _ => false,
    }
}

/// One vCPU's part of the code memory.
#[derive(Debug)]
pub(super) struct CodeBuf {
    slot: u16,
    used: usize,
}

impl CodeBuf {
    /// A slot, or `None` where the host gives no memory that can be executed, or all slots are taken.
    pub(super) fn new() -> Option<CodeBuf> {
        let slot = region()?.free.lock().pop()?;
        let mut buf = CodeBuf { slot, used: 0 };
        buf.clear();
        Some(buf)
    }

    /// Forgets all code. Nobody may be inside it.
    pub(super) fn clear(&mut self) {
        self.used = 0;
        let mut prologue = [0; PROLOGUE];
        prologue[..4].copy_from_slice(&x86_arch::xsave::MXCSR_INIT.to_le_bytes());
        self.append(&prologue);
        // Other bytes may have been executed at these addresses: a serializing instruction makes sure that none of
        // them is left in the pipeline (SDM vol. 3A, 8.1.3).
        core::arch::x86_64::__cpuid(0);
    }

    /// Where the prologue's data and the next appended code will be, for the one that executes it.
    pub(super) fn addresses(&self) -> (u64, u64) {
        let base = region().map_or(0, |r| r.execute) + self.slot as usize * SLOT;
        (base as u64, (base + self.used) as u64)
    }

    /// Copies code to the end. Returns where it is executed, or `None` if the slot is full.
    pub(super) fn append(&mut self, code: &[u8]) -> Option<usize> {
        let r = region()?;
        if code.len() > SLOT - self.used {
            return None;
        }
        let at = self.slot as usize * SLOT + self.used;
        // SAFETY: `at + code.len()` is within the region (checked above, and `slot < SLOTS`), which is mapped
        // writable at `write` for good; this slot belongs to `self` alone, and no stub in the part behind
        // `used` is known to anyone.
        unsafe { core::ptr::copy_nonoverlapping(code.as_ptr(), (r.write + at) as *mut u8, code.len()) };
        self.used = (self.used + code.len()).next_multiple_of(16).min(SLOT);
        Some(r.execute + at)
    }
}

impl Drop for CodeBuf {
    fn drop(&mut self) {
        if let Some(r) = region() {
            r.free.lock().push(self.slot);
        }
    }
}
