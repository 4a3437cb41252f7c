//! Memory for tests: anonymous mappings that a test can protect or take away, and a VM made of them.
#![allow(unsafe_code)]

use crate::host_mem::HostPtr;
use crate::memslot::{MemRegion, MemRegionFlags};
use crate::mmu::{Mmu, MmuConfig};
use crate::safepoint::{VcpuGate, World};
use crate::vcpu::VcpuMmu;
use std::sync::Arc;
use x86_arch::{Gpa, Hva};

/// An anonymous mapping, gone with its owner.
pub(crate) struct TestRam {
    base: *mut libc::c_void,
    len: usize,
}

// SAFETY: an address range; it is accessed through `host_mem` only.
unsafe impl Send for TestRam {}
// SAFETY: as above.
unsafe impl Sync for TestRam {}

impl TestRam {
    pub fn new(len: usize) -> TestRam {
        // SAFETY: a fresh anonymous mapping.
        let base = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        TestRam { base, len }
    }

    /// A mapping of a file of `file_len` bytes, which may be shorter: beyond it is SIGBUS.
    pub fn of_file(len: usize, file_len: usize) -> TestRam {
        // SAFETY: a fresh memfd and a fresh mapping of it.
        let base = unsafe {
            let fd = libc::memfd_create(c"test-ram".as_ptr(), 0);
            assert!(fd >= 0);
            assert_eq!(libc::ftruncate(fd, file_len as i64), 0);
            let base = libc::mmap(
                core::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            );
            libc::close(fd);
            base
        };
        assert_ne!(base, libc::MAP_FAILED);
        TestRam { base, len }
    }

    pub fn hva(&self) -> Hva {
        Hva(self.base as u64)
    }

    pub fn ptr(&self, offset: u64) -> HostPtr {
        assert!(offset < self.len as u64);
        HostPtr::new(self.hva().0 + offset)
    }

    pub fn protect(&self, offset: usize, len: usize, prot: i32) {
        // SAFETY: within our own mapping, which Rust code never references.
        let result = unsafe { libc::mprotect(self.base.byte_add(offset), len, prot) };
        assert_eq!(result, 0);
    }

    pub fn punch(&self, offset: usize, len: usize) {
        // SAFETY: within our own mapping; it becomes inaccessible but stays reserved, so that nothing else moves in.
        let base = unsafe {
            libc::mmap(
                self.base.byte_add(offset),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
    }
}

impl Drop for TestRam {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.base, self.len) };
    }
}

/// A VM with one slot at gpa 0 and vCPUs on demand.
pub(crate) struct TestVm {
    pub ram: TestRam,
    pub world: Arc<World>,
    pub mmu: Arc<Mmu>,
}

impl TestVm {
    pub fn new(len: usize) -> TestVm {
        TestVm::with_config(len, MmuConfig::default())
    }

    pub fn with_config(len: usize, config: MmuConfig) -> TestVm {
        let world = World::new();
        let vm = TestVm { ram: TestRam::new(len), mmu: Mmu::new(Arc::clone(&world), config), world };
        vm.set_slot(0, Gpa(0), len as u64, vm.ram.hva(), MemRegionFlags::empty());
        vm
    }

    pub fn set_slot(&self, slot: u32, gpa: Gpa, size: u64, hva: Hva, flags: MemRegionFlags) {
        let region = MemRegion { slot, as_id: 0, gpa, size, hva, flags };
        self.world.exclusive(None, |ex| self.mmu.set_memory_region(ex, region)).expect("a valid slot");
    }

    pub fn vcpu(&self) -> (Arc<VcpuGate>, VcpuMmu) {
        let gate = self.world.register();
        (Arc::clone(&gate), VcpuMmu::new(Arc::clone(&self.mmu), gate))
    }
}
