//! What an access to a guest address is, what it finds, and how it fails.
//!
//! These are the words in which the rest of the system speaks to the MMU. Nothing here
//! reads memory; see `mmu` for the entry points and `perm` for the rules.

use crate::host_mem::{HostFault, HostPtr};
use x86_arch::{Gpa, Gva, PageFaultErrorCode};

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum AccessKind {
    /// A data read.
    Read,
    /// A data write, or a read-modify-write (which the processor checks as a write).
    Write,
    /// An instruction fetch.
    Execute,
}

/// One access, as the paging rules see it (SDM vol. 3A, 4.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Access {
    /// Read, write or fetch.
    pub kind: AccessKind,
    /// A user-mode access: CPL 3, and not [`implicit`](Self::implicit).
    pub user: bool,
    /// An implicit supervisor-mode access (descriptor tables, TSS): EFLAGS.AC does not lift SMAP.
    pub implicit: bool,
}

impl Access {
    /// An explicit data read at this privilege.
    pub const fn read(user: bool) -> Access {
        Access { kind: AccessKind::Read, user, implicit: false }
    }

    /// An explicit data write at this privilege.
    pub const fn write(user: bool) -> Access {
        Access { kind: AccessKind::Write, user, implicit: false }
    }

    /// An instruction fetch at this privilege.
    pub const fn execute(user: bool) -> Access {
        Access { kind: AccessKind::Execute, user, implicit: false }
    }

    /// An implicit supervisor-mode read or write, whatever the CPL.
    pub const fn implicit(kind: AccessKind) -> Access {
        Access { kind, user: false, implicit: true }
    }

    /// Whether this is a write.
    pub const fn is_write(self) -> bool {
        matches!(self.kind, AccessKind::Write)
    }

    /// Whether this is an instruction fetch.
    pub const fn is_execute(self) -> bool {
        matches!(self.kind, AccessKind::Execute)
    }
}

/// Where an access that the paging rules allow goes. One access never crosses a 4 KiB page here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Guest memory: use the pointer at once (it is good until the next safe point).
    Ram(HostPtr),
    /// Guest memory whose writes somebody wants to hear of (a guest page table, decoded code). Only for
    /// [`AccessKind::Write`]. Store through [`Tracked::host_ptr`], then call `VcpuMmu::after_write`.
    Tracked(Tracked),
    /// No memory, or a write to a read-only slot: a device's business.
    Mmio(Gpa),
}

/// A write target with bookkeeping: see [`Target::Tracked`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "the write must be reported with after_write"]
pub struct Tracked {
    pub(crate) ptr: HostPtr,
    pub(crate) gpa: Gpa,
}

impl Tracked {
    /// Where to store.
    #[inline(always)]
    pub const fn host_ptr(self) -> HostPtr {
        self.ptr
    }

    /// The guest physical address of the store.
    #[inline(always)]
    pub const fn gpa(self) -> Gpa {
        self.gpa
    }
}

/// Why an access failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MmuFault {
    /// A #PF to reflect to the guest.
    #[error("page fault at {gva:x}, error code {code:?}")]
    PageFault {
        /// What CR2 becomes.
        gva: Gva,
        /// The error code to push.
        code: PageFaultErrorCode,
    },
    /// The address is not canonical: #GP, or #SS for the stack.
    #[error("non-canonical address")]
    NonCanonical,
    /// The host's memory behind the address is gone: KVM_RUN reports EFAULT.
    #[error("host memory fault at {:x}", .0.hva)]
    Host(HostFault),
}

impl From<HostFault> for MmuFault {
    fn from(fault: HostFault) -> MmuFault {
        MmuFault::Host(fault)
    }
}
