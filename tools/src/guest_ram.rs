//! Guest RAM: reserved from the host, and handed to KVM as memory slots.
//!
//! Not the memory map's meaning (what lies where is `machine::layout`). RAM is one mapping below the MMIO hole
//! and, when there is more, one above 4 GiB.
#![allow(unsafe_code)] // KVM_SET_USER_MEMORY_REGION takes a raw host address, which safe Rust cannot vouch for.

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::kvm::VmFd;
use crate::machine::layout::{MMIO_HOLE_END, MMIO_HOLE_START};
use crate::outcome::Failure;

/// The guest's memory as the devices see it.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// The pieces of RAM, start and length, for `size` bytes in all.
pub fn ranges(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(MMIO_HOLE_START);
    let mut pieces = vec![(0, low)];
    if size > low {
        pieces.push((MMIO_HOLE_END, size - low));
    }
    pieces
}

/// Reserves `size` bytes of guest RAM. The host gives pages when they are first touched.
pub fn reserve(size: u64) -> Result<Arc<GuestRam>, Failure> {
    let refuse = |error: &dyn std::fmt::Display| {
        Failure::BadInput(format!("cannot reserve {size} bytes of guest memory: {error}"))
    };
    let mut regions = Vec::new();
    for (start, length) in ranges(size) {
        let length = usize::try_from(length).map_err(|error| refuse(&error))?;
        let mapping = MmapRegionBuilder::new(length)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| refuse(&error))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or_else(|| refuse(&"it would pass the end of the address space"))?;
        regions.push(region);
    }
    Ok(Arc::new(GuestRam::from_regions(regions).map_err(|error| refuse(&error))?))
}

/// Gives all of `ram` to `vm`, a memory slot for each piece (KVM api 4.35).
///
/// The caller keeps `ram` alive as long as `vm`: `machine::Machine` owns both and drops the VM first.
pub fn register(vm: &VmFd, ram: &GuestRam) -> Result<(), Failure> {
    for (slot, region) in (0u32..).zip(ram.iter()) {
        let host = region
            .get_host_address(vm_memory::MemoryRegionAddress(0))
            .map_err(|error| Failure::host("guest memory", error))?;
        let slot_of_ram = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the mapping is `region.len()` bytes from `host`, is owned by `ram`, and is used from Rust only
        // through vm-memory's volatile accessors, so a guest that writes it breaks no reference.
        unsafe { vm.set_user_memory_region(slot_of_ram) }
            .map_err(|error| Failure::host("KVM_SET_USER_MEMORY_REGION", error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_beyond_the_hole_continues_at_4_gib() {
        const GIB: u64 = 1 << 30;
        assert_eq!(ranges(GIB), [(0, GIB)]);
        assert_eq!(ranges(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(ranges(5 * GIB), [(0, 3 * GIB), (4 * GIB, 2 * GIB)]);
    }

    #[test]
    fn an_absurd_size_is_bad_input() {
        assert!(matches!(reserve(1 << 60), Err(Failure::BadInput(_))));
    }
}
