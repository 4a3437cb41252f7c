//! Shadow page-table entries: the bits, and what makes them.
//!
//! The format is PAE's, as a processor would walk it, with three of the bits that PAE leaves to software.
//! A leaf spte holds the *hva's* frame number: what the host maps there is the host's business. A nonleaf one holds the arena
//! frame of a shadow page, never a pointer.
//!
//! | bits | leaf | nonleaf |
//! |---|---|---|
//! | 0 | present | present |
//! | 1, 2, 63 | writable, user, no execute: the rights over all guest levels | set, set, clear |
//! | 8 | the guest's page is global | |
//! | 9 | the slot is writable | |
//! | 10 | the guest allows writes; if bit 1 is clear, something tracks the page | |
//! | 11 | with bit 0 clear: MMIO, and the frame is a gfn | |
//! | 51:12 | hva frame | arena frame |
//! | 62:59 | protection key | |

use crate::perm::PageRights;
use x86_arch::Gfn;
use x86_arch::paging::{PTE_G, PTE_NX, PTE_P, PTE_PKEY_SHIFT, PTE_U, PTE_W};

/// The slot of the page is writable.
pub const SPTE_HOST_WRITABLE: u64 = 1 << 9;
/// The guest's tables allow writes (and D is set).
pub const SPTE_MMU_WRITABLE: u64 = 1 << 10;
/// Not present, because there is no memory: an MMIO spte.
pub const SPTE_MMIO: u64 = 1 << 11;

const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// A shadow page-table entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Spte(pub u64);

/// What a leaf spte says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// hva >> 12.
    pub frame: u64,
    /// The rights over all guest levels (write: only with the dirty bit set).
    pub rights: PageRights,
    /// Global.
    pub global: bool,
    /// The slot is writable.
    pub host_writable: bool,
    /// Nobody tracks writes to the page.
    pub untracked: bool,
}

impl Spte {
    /// Nothing.
    pub const EMPTY: Spte = Spte(0);

    const fn rights_bits(rights: PageRights) -> u64 {
        (if rights.user { PTE_U } else { 0 })
            | (if rights.execute { 0 } else { PTE_NX })
            | (rights.pkey as u64 & 15) << PTE_PKEY_SHIFT
    }

    /// A translation.
    pub const fn leaf(leaf: Leaf) -> Spte {
        let writable = leaf.rights.write && leaf.host_writable;
        Spte(
            PTE_P
                | Self::rights_bits(leaf.rights)
                | (leaf.frame << 12) & FRAME
                | (if leaf.global { PTE_G } else { 0 })
                | (if leaf.host_writable { SPTE_HOST_WRITABLE } else { 0 })
                | (if writable { SPTE_MMU_WRITABLE } else { 0 })
                | (if writable && leaf.untracked { PTE_W } else { 0 }),
        )
    }

    /// A link to a shadow page.
    pub const fn nonleaf(frame: u32) -> Spte {
        Spte(PTE_P | PTE_W | PTE_U | (frame as u64) << 12)
    }

    /// No memory at `gfn`; the rights are those of the guest's tables.
    pub const fn mmio(gfn: Gfn, rights: PageRights) -> Spte {
        Spte(
            SPTE_MMIO
                | Self::rights_bits(rights)
                | (if rights.write { PTE_W } else { 0 })
                | (gfn.0 << 12) & FRAME,
        )
    }

    /// Present: a processor would use it.
    pub const fn is_present(self) -> bool {
        self.0 & PTE_P != 0
    }

    /// An MMIO spte.
    pub const fn is_mmio(self) -> bool {
        self.0 & (PTE_P | SPTE_MMIO) == SPTE_MMIO
    }

    /// Writable as it stands.
    pub const fn is_writable(self) -> bool {
        self.0 & PTE_W != 0
    }

    /// The same without write access: for those who track the page.
    #[must_use]
    pub const fn write_protected(self) -> Spte {
        Spte(self.0 & !PTE_W)
    }

    /// The hva's frame (leaf), the arena's frame (nonleaf) or the gfn (MMIO).
    pub const fn frame(self) -> u64 {
        (self.0 & FRAME) >> 12
    }

    /// The rights, as they stand.
    pub const fn rights(self) -> PageRights {
        PageRights {
            user: self.0 & PTE_U != 0,
            write: self.0 & PTE_W != 0,
            execute: self.0 & PTE_NX == 0,
            pkey: (self.0 >> PTE_PKEY_SHIFT) as u8 & 15,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_survive() {
        for bits in 0..8u8 {
            for pkey in 0..16 {
                let rights =
                    PageRights { user: bits & 1 != 0, write: bits & 2 != 0, execute: bits & 4 != 0, pkey };
                let leaf = Leaf {
                    frame: 0x7_ffff_ffff,
                    rights,
                    global: bits & 1 != 0,
                    host_writable: true,
                    untracked: true,
                };
                let spte = Spte::leaf(leaf);
                assert!(spte.is_present() && !spte.is_mmio());
                assert_eq!((spte.rights(), spte.frame()), (rights, leaf.frame));
                let read_only = PageRights { write: false, ..rights };
                assert_eq!(spte.write_protected().rights(), read_only);
                assert_eq!(Spte::leaf(Leaf { host_writable: false, ..leaf }).rights(), read_only);
                assert_eq!(Spte::leaf(Leaf { untracked: false, ..leaf }).rights(), read_only);
                let mmio = Spte::mmio(Gfn(0xfee00), rights);
                assert!(mmio.is_mmio() && !mmio.is_present());
                assert_eq!((mmio.rights(), mmio.frame()), (rights, 0xfee00));
            }
        }
        assert!(!Spte::EMPTY.is_present() && !Spte::EMPTY.is_mmio());
        assert_eq!(Spte::nonleaf(77).frame(), 77);
    }
}
