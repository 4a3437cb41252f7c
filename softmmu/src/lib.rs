//! Guest memory, the guest page walker, the shadow MMU of KVM's mmu.txt, and the software TLB.
//!
//! The vocabulary is mmu.txt's and is not translated. This crate never decodes an
//! instruction, never reads a clock, and never names a `kvm_*` type.
//!
//! | module | what it is |
//! |---|---|
//! | [`host_mem`] | the only code that touches guest RAM |
//! | [`memslot`] | gpa to hva: the memory slots of each address space |
//! | [`guest_memory`] | access by gpa; the one write path |
//! | [`access`] | accesses, targets, faults: the words of this crate's interface |
//! | [`tlb`] | the software TLB, which an access meets first |
//! | [`safepoint`] | running vCPUs, requests to them, exclusive sections |
//! | [`mmu`] | the whole: [`mmu::Mmu`] for the VM, [`mmu::VcpuMmu`] for a vCPU |

pub mod access;
pub mod guest_memory;
pub mod host_mem;
pub mod memslot;
pub mod mmu;
pub mod safepoint;
pub mod tlb;

pub use access::{Access, AccessKind, MmuFault, Target, Tracked};
pub use guest_memory::{GuestMemory, GuestMemoryError};
pub use host_mem::{HostFault, HostPtr, Word};
pub use memslot::{MemRegion, MemRegionFlags, MemslotError};
pub use mmu::{CodeMark, CodeWrite, Mmu, MmuConfig, PagingRegisters, Peek, VcpuMmu};
pub use safepoint::{BlockResult, Exclusive, Requests, VcpuGate, World};
pub use tlb::View;
