//! Guest memory, the guest page walker, the shadow MMU of KVM's mmu.txt, and the software TLB.
//!
//! The vocabulary is mmu.txt's and is not translated. This crate never decodes an
//! instruction, never reads a clock, and never names a `kvm_*` type.
//!
//! | module | what it is |
//! |---|---|
//! | [`host_mem`] | the only code that touches guest RAM |
//! | [`memslot`], `slot_table` | gpa to hva: the memory slots of each address space |
//! | [`guest_memory`] | access by gpa; the one write path |
//! | [`walk`] | the guest page walker |
//! | [`perm`] | WP, SMEP, SMAP, NX, protection keys: one table |
//! | [`page_track`] | who wants to know of writes: page tables, decoded code |
//! | [`dirty`], [`dirty_ring`] | the dirty log: a bitmap for each slot, a ring for each vCPU |
//! | [`access`] | accesses, targets, faults: the words of this crate's interface |
//! | [`tlb`] | the software TLB, which an access meets first |
//! | [`safepoint`] | running vCPUs, requests to them, exclusive sections |
//! | [`mmu`], [`vcpu`] | the whole: for the VM, and for a vCPU |
//! | `fault`, `invalidate` | reactions to events |
//! | `shootdown` | messages between the vCPUs' MMUs |

pub mod access;
mod audit;
pub mod dirty;
pub mod dirty_ring;
mod dump;
mod fault;
mod futex;
pub mod guest_memory;
pub mod host_mem;
mod hva_index;
mod invalidate;
pub mod memslot;
pub mod mmu;
#[cfg(test)]
mod naive;
pub mod page_track;
pub mod perm;
mod primitives;
mod rmap;
mod role;
mod root;
pub mod safepoint;
mod shadow_page;
mod shootdown;
mod slot_table;
mod spte;
pub mod stats;
mod sync;
#[cfg(test)]
mod test_ram;
#[cfg(test)]
mod tests;
pub mod tlb;
pub mod vcpu;
pub mod walk;
mod zap;

pub use access::{Access, AccessKind, MmuFault, Target, Tracked};
pub use dirty_ring::{DirtyRing, RingEntries};
pub use guest_memory::{GuestMemory, GuestMemoryError};
pub use host_mem::{HostFault, HostPtr, Word};
pub use memslot::{MemRegion, MemRegionFlags, MemslotError};
pub use mmu::{Mmu, MmuConfig};
pub use safepoint::{BlockResult, Exclusive, Mode, Requests, VcpuGate, World};
pub use shootdown::CodeWrite;
pub use tlb::View;
pub use vcpu::{CodeMark, PagingRegisters, Peek, VcpuMmu};
