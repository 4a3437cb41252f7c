//! Addresses, in the vocabulary of KVM's mmu.txt: gva, gpa, gfn, hva.

use core::fmt;

/// log2 of the size of a 4 KiB page.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a 4 KiB page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// The bits of an address within its 4 KiB page.
pub const PAGE_MASK: u64 = PAGE_SIZE - 1;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The offset within the 4 KiB page.
            #[inline(always)]
            pub const fn page_offset(self) -> u64 {
                self.0 & PAGE_MASK
            }

            /// The address of the 4 KiB page that holds this address.
            #[inline(always)]
            pub const fn page_base(self) -> Self {
                Self(self.0 & !PAGE_MASK)
            }

            /// The address `n` bytes further, modulo 2^64 (guest arithmetic wraps on purpose).
            #[inline(always)]
            pub const fn wrapping_add(self, n: u64) -> Self {
                Self(self.0.wrapping_add(n))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address!(
    /// Guest virtual address: what the SDM calls a linear address.
    Gva
);
address!(
    /// Guest physical address, in bytes.
    Gpa
);
address!(
    /// Host virtual address: an address in the process that uses KVM.
    Hva
);

/// Guest frame number: a guest physical address divided by 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Gfn(pub u64);

impl Gfn {
    /// The guest physical address of the frame's first byte.
    #[inline(always)]
    pub const fn base(self) -> Gpa {
        Gpa(self.0 << PAGE_SHIFT)
    }
}

impl fmt::Debug for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gfn({:#x})", self.0)
    }
}

impl Gpa {
    /// The frame that holds this address.
    #[inline(always)]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }
}

/// Whether `gva` is canonical with `bits` implemented linear-address bits (48, or 57 with CR4.LA57).
#[inline(always)]
pub const fn is_canonical(gva: u64, bits: u32) -> bool {
    let shift = 64 - bits;
    (((gva << shift) as i64) >> shift) as u64 == gva
}
