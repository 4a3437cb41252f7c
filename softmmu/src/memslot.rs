//! Memory slots: which gpa is which hva (KVM api 4.35, KVM_SET_USER_MEMORY_REGION).

use bitflags::bitflags;
use x86_arch::{Gpa, Hva};

bitflags! {
    /// Flags of a memory slot.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct MemRegionFlags: u32 {
        /// Writes are recorded in the slot's dirty bitmap.
        const LOG_DIRTY = 1 << 0;
        /// The guest's writes go to userspace as MMIO.
        const READONLY = 1 << 1;
    }
}

/// What a caller asks for: one slot of one address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemRegion {
    /// The slot's number.
    pub slot: u32,
    /// The address space: 0, or 1 for system-management mode.
    pub as_id: u16,
    /// Where it begins in the guest's physical memory.
    pub gpa: Gpa,
    /// Bytes; 0 deletes the slot.
    pub size: u64,
    /// Where it begins in the caller's memory.
    pub hva: Hva,
    /// Its flags.
    pub flags: MemRegionFlags,
}

/// Why a change of slots was refused; the names are the errnos'.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemslotError {
    /// EINVAL.
    #[error("invalid memory region")]
    Invalid,
    /// EEXIST: it overlaps another slot.
    #[error("memory region overlaps a slot")]
    Exists,
    /// ENOMEM.
    #[error("out of memory")]
    NoMemory,
    /// ENOENT: the slot has no dirty log, or does not exist.
    #[error("no such slot or dirty log")]
    NoEntry,
}
