//! Paging modes, paging-structure entry bits and #PF error codes (SDM vol. 3A, chapter 4).

use crate::control::{Cr0, Cr4, Efer};
use bitflags::bitflags;

/// Present.
pub const PTE_P: u64 = 1 << 0;
/// Writable.
pub const PTE_W: u64 = 1 << 1;
/// User.
pub const PTE_U: u64 = 1 << 2;
/// Write-through.
pub const PTE_PWT: u64 = 1 << 3;
/// Cache disable.
pub const PTE_PCD: u64 = 1 << 4;
/// Accessed.
pub const PTE_A: u64 = 1 << 5;
/// Dirty.
pub const PTE_D: u64 = 1 << 6;
/// Page size: the entry maps a large page (level 2 and above).
pub const PTE_PS: u64 = 1 << 7;
/// Global.
pub const PTE_G: u64 = 1 << 8;
/// Bit 12 of a large page's entry is its PAT bit.
pub const PTE_PAT_LARGE: u64 = 1 << 12;
/// No execute.
pub const PTE_NX: u64 = 1 << 63;
/// Where an entry keeps its protection key.
pub const PTE_PKEY_SHIFT: u32 = 59;

/// How linear addresses become physical (SDM vol. 3A, 4.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum PagingMode {
    /// CR0.PG = 0.
    #[default]
    None,
    /// 32-bit paging: two levels of 4-byte entries.
    Bits32,
    /// PAE paging: four PDPTE registers and two levels of 8-byte entries.
    Pae,
    /// 4-level paging, 48-bit linear addresses.
    Level4,
    /// 5-level paging, 57-bit linear addresses.
    Level5,
}

impl PagingMode {
    /// The mode that these registers select.
    pub const fn of(cr0: Cr0, cr4: Cr4, efer: Efer) -> PagingMode {
        if !cr0.contains(Cr0::PG) {
            PagingMode::None
        } else if !cr4.contains(Cr4::PAE) {
            PagingMode::Bits32
        } else if !efer.contains(Efer::LMA) {
            PagingMode::Pae
        } else if !cr4.contains(Cr4::LA57) {
            PagingMode::Level4
        } else {
            PagingMode::Level5
        }
    }

    /// Levels of paging structures (PAE: three, the PDPTEs being the third).
    pub const fn levels(self) -> u8 {
        match self {
            PagingMode::None => 0,
            PagingMode::Bits32 => 2,
            PagingMode::Pae => 3,
            PagingMode::Level4 => 4,
            PagingMode::Level5 => 5,
        }
    }
}

bitflags! {
    /// The error code of a page fault (SDM vol. 3A, 4.7).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    #[repr(transparent)]
    pub struct PageFaultErrorCode: u32 {
        /// The fault was a protection violation, not a missing page.
        const P = 1 << 0;
        /// The access was a write.
        const W = 1 << 1;
        /// The access was made in user mode.
        const U = 1 << 2;
        /// A reserved bit was set in an entry.
        const RSVD = 1 << 3;
        /// The access was an instruction fetch (with NXE or SMEP).
        const I = 1 << 4;
        /// A protection key refused the access.
        const PK = 1 << 5;
    }
}
