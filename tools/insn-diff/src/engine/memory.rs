//! The guest's memory: one slot, and the only `unsafe` of the engine.
#![allow(unsafe_code)] // KVM_SET_USER_MEMORY_REGION takes a raw host address, which safe Rust cannot vouch for.

use super::EngineError;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctl_layer::VmFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Guest memory from guest-physical address 0.
pub(super) struct Memory(GuestMemoryMmap<()>);

impl Memory {
    /// `size` bytes, all zero.
    pub(super) fn new(size: usize) -> Result<Memory, EngineError> {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)])
            .map_err(|error| EngineError::Memory(error.to_string()))?;
        Ok(Memory(ram))
    }

    /// Gives it to `vm` as slot 0. The caller drops `vm` before this memory.
    pub(super) fn register(&self, vm: &VmFd, size: usize) -> Result<(), EngineError> {
        let host = self
            .0
            .get_host_address(GuestAddress(0))
            .map_err(|error| EngineError::Memory(error.to_string()))?;
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: size as u64,
            userspace_addr: host as u64,
        };
        // SAFETY: the mapping has `size` bytes, is used from Rust through vm-memory's volatile accessors only, and
        // outlives the VM (the order of `Engine`'s fields).
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(|e| EngineError::ioctl("KVM_SET_USER_MEMORY_REGION", e))
    }

    /// Writes at a guest-physical address.
    pub(super) fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), EngineError> {
        self.0.write_slice(bytes, GuestAddress(gpa)).map_err(|error| EngineError::Memory(error.to_string()))
    }

    /// Reads at a guest-physical address.
    pub(super) fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), EngineError> {
        self.0.read_slice(bytes, GuestAddress(gpa)).map_err(|error| EngineError::Memory(error.to_string()))
    }
}
