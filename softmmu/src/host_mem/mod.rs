//! Guest RAM: the only code that touches it.
//!
//! Guest memory belongs to the caller and can change or vanish at any time, so it is never a
//! Rust reference. Each access is one `asm!` instruction listed in an exception table; a
//! SIGSEGV or SIGBUS at a listed instruction becomes `Err(HostFault)`.
//!
//! | module | what it holds |
//! |---|---|
//! | [`fault`] | the exception table, the signal handler |
//! | [`scalar`] | loads and stores of 1 to 64 bytes |
//! | [`atomic`] | LOCK-prefixed operations |
//! | [`bulk`] | copies, fills, comparisons within a page |
//!
//! Not here: which addresses are guest memory at all. A [`HostPtr`] is made only by the memory
//! slots and the TLB, and whoever holds one keeps it no longer than to the next safe point.
//!
//! `unsafe` because inline assembly and signal handlers are; no other file touches guest RAM.
#![allow(unsafe_code)]

pub mod atomic;
pub mod bulk;
pub mod fault;
pub mod scalar;

pub use atomic::{compare_exchange, exchange, fetch_add, fetch_and, fetch_or, fetch_xor};
pub use bulk::{compare, copy_from, copy_from_caller, copy_to, copy_to_caller, fill};
pub use fault::{HostFault, fixup_host_fault, install_fault_handler};
pub use scalar::{load, load32, load64, store, store32, store64};

use x86_arch::{Hva, PAGE_MASK};

/// The address of a byte of guest memory in this process. It cannot be made outside this crate.
///
/// It is good until the vCPU's next safe point: a memory slot's memory is given back only after
/// every vCPU has passed one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct HostPtr(u64);

impl HostPtr {
    /// Made from a slot's address or a TLB entry only.
    #[inline(always)]
    pub(crate) const fn new(address: u64) -> HostPtr {
        HostPtr(address)
    }

    /// The host virtual address.
    #[inline(always)]
    pub const fn hva(self) -> Hva {
        Hva(self.0)
    }

    /// The number of the host's 4 KiB frame: how decoded code is known.
    #[inline(always)]
    pub const fn frame(self) -> u64 {
        self.0 >> x86_arch::PAGE_SHIFT
    }

    /// The byte `n` further, wrapping within the same 4 KiB page.
    #[inline(always)]
    pub const fn within_page(self, n: u64) -> HostPtr {
        HostPtr((self.0 & !PAGE_MASK) | (self.0.wrapping_add(n) & PAGE_MASK))
    }

    /// Bytes from here to the end of the 4 KiB page (1 to 4096).
    #[inline(always)]
    pub const fn page_remainder(self) -> u64 {
        x86_arch::PAGE_SIZE - (self.0 & PAGE_MASK)
    }

    #[inline(always)]
    pub(crate) const fn address(self) -> u64 {
        self.0
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
    impl Sealed for u128 {}
}

/// An operand that is loaded or stored by one host instruction.
pub trait Word: Copy + Eq + sealed::Sealed + scalar::RawAccess + atomic::RawAtomic {
    /// Width in bytes.
    const SIZE: u64;
}

impl Word for u8 {
    const SIZE: u64 = 1;
}
impl Word for u16 {
    const SIZE: u64 = 2;
}
impl Word for u32 {
    const SIZE: u64 = 4;
}
impl Word for u64 {
    const SIZE: u64 = 8;
}
impl Word for u128 {
    const SIZE: u64 = 16;
}

#[cfg(test)]
mod tests;
