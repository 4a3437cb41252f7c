//! Memory slots and dirty rings under running guests, through the public API.
//!
//! Test-only: `unsafe` gives memory to guests.

use crate::{Kvm, VcpuExit, VcpuFd, VmFd};
use kvm_api::uapi::*;
use memmap2::MmapRaw;
use std::collections::BTreeSet;

/// Writes a byte of each page from 64 KiB to 960 KiB, and halts; then again.
const WRITER: &[u8] = &[
    0xb8, 0x00, 0x10, // mov ax, 1000h
    0x8e, 0xc0, // l: mov es, ax
    0x26, 0xfe, 0x06, 0x00, 0x00, // inc byte [es:0]
    0x05, 0x00, 0x01, // add ax, 100h
    0x3d, 0x00, 0xf0, // cmp ax, f000h
    0x72, 0xf1, // jb l
    0xf4, // hlt
    0xeb, 0xeb, // jmp to the beginning
];
const FIRST: u64 = 0x10;
const LAST: u64 = 0xef;
const RAM: usize = 1 << 20;

struct Guest {
    vcpu: VcpuFd,
    vm: VmFd,
    ram: MmapRaw,
}

impl Guest {
    /// 1 MiB at 0 in slot 0 with dirty logging, and a vCPU in real mode at 1000h.
    fn new(code: &[u8], prepare: impl FnOnce(&VmFd)) -> Guest {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        prepare(&vm);
        let ram = MmapRaw::from(memmap2::MmapMut::map_anon(RAM).unwrap());
        let g = Guest { vcpu: vm.create_vcpu(0).unwrap(), vm, ram };
        g.poke(0x1000, code);
        g.slot(0, 0, 0, RAM as u64, KVM_MEM_LOG_DIRTY_PAGES).unwrap();
        let mut s = g.vcpu.get_sregs().unwrap();
        s.cs.base = 0;
        s.cs.selector = 0;
        g.vcpu.set_sregs(&s).unwrap();
        g.vcpu.set_regs(&kvm_regs { rip: 0x1000, rsp: 0x8000, rflags: 2, ..Default::default() }).unwrap();
        g
    }

    #[allow(unsafe_code)]
    fn poke(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= RAM);
        // SAFETY: inside the mapping, and no vCPU runs.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ram.as_mut_ptr().add(at), bytes.len()) }
    }

    #[allow(unsafe_code)]
    fn slot(&self, slot: u32, gpa: u64, at: usize, size: u64, flags: u32) -> crate::Result {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: self.ram.as_mut_ptr() as u64 + at as u64,
        };
        // SAFETY: the mapping is the guest's and lives as long as it.
        unsafe { self.vm.set_user_memory_region(region) }
    }

    fn reason(&mut self) -> u32 {
        match self.vcpu.run().unwrap() {
            VcpuExit::Hlt => KVM_EXIT_HLT,
            VcpuExit::Unsupported(reason) => reason,
            other => panic!("{other:?}"),
        }
    }
}

fn errno<T: core::fmt::Debug>(r: crate::Result<T>) -> i32 {
    r.unwrap_err().errno()
}

#[test]
fn a_ring_fills_is_harvested_and_tells_each_page_once() {
    let mut g = Guest::new(WRITER, |vm| vm.enable_dirty_log_ring(Some(4096)).unwrap());
    let ring = g.vcpu.dirty_ring().unwrap().clone();
    let mut next = 0;
    for pass in 0..3 {
        let mut seen = BTreeSet::new();
        // 224 pages, and room for 192 of 256.
        assert_eq!(g.reason(), KVM_EXIT_DIRTY_RING_FULL);
        let rip = g.vcpu.get_regs().unwrap().rip;
        assert_eq!(g.reason(), KVM_EXIT_DIRTY_RING_FULL, "until it is reset");
        assert_eq!(g.vcpu.get_regs().unwrap().rip, rip);
        let taken = ring.harvest(&mut next);
        assert!((192..=256).contains(&taken.len()), "{}", taken.len());
        let mut note = |pages: &[(u32, u64)]| {
            for &(slot, page) in pages {
                assert!(slot == 0 && seen.insert(page), "page {page} of slot {slot} twice");
            }
        };
        note(&taken);
        assert_eq!(g.reason(), KVM_EXIT_DIRTY_RING_FULL, "harvesting alone frees nothing");
        assert_eq!(g.vm.reset_dirty_rings().unwrap() as usize, taken.len());
        assert_eq!(g.vm.reset_dirty_rings().unwrap(), 0);
        assert_eq!(g.reason(), KVM_EXIT_HLT);
        let rest = ring.harvest(&mut next);
        note(&rest);
        // The page of the code counts when it is mapped, as in KVM.
        seen.remove(&1);
        assert_eq!(seen, (FIRST..=LAST).collect(), "pass {pass}");
        assert_eq!(g.vm.reset_dirty_rings().unwrap() as usize, rest.len());
    }
}

#[test]
fn a_ring_is_made_before_vcpus_and_takes_the_bitmaps_place() {
    let g = Guest::new(WRITER, |vm| {
        assert_eq!(errno(vm.reset_dirty_rings()), libc::EINVAL);
        vm.enable_dirty_log_ring(None).unwrap();
        assert_eq!(errno(vm.enable_dirty_log_ring(None)), libc::EINVAL);
        assert_eq!(vm.reset_dirty_rings().unwrap(), 0);
    });
    assert_eq!(g.vcpu.dirty_ring().unwrap().size(), 1 << 20);
    for slot in [0, 7] {
        assert_eq!(errno(g.vm.get_dirty_log(slot, RAM)), libc::ENXIO);
        assert_eq!(
            errno(g.vm.backend().check_clear_dirty_log(slot, 0, 64).map_err(crate::error)),
            libc::ENXIO
        );
    }
    let g = Guest::new(WRITER, |_| {});
    assert!(g.vcpu.dirty_ring().is_none());
    assert_eq!(errno(g.vm.enable_dirty_log_ring(None)), libc::EINVAL);
    g.vm.get_dirty_log(0, RAM).unwrap();
}

#[test]
fn entries_of_a_slot_that_has_gone_are_reset_too() {
    let mut g = Guest::new(WRITER, |vm| vm.enable_dirty_log_ring(None).unwrap());
    let ring = g.vcpu.dirty_ring().unwrap().clone();
    assert_eq!(g.reason(), KVM_EXIT_HLT);
    let mut next = 0;
    let pages = ring.harvest(&mut next).len();
    assert!(pages >= 224);
    g.slot(0, 0, 0, 0, 0).unwrap();
    // A smaller one under the same number.
    g.slot(0, 0, 0, 0x2000, KVM_MEM_LOG_DIRTY_PAGES).unwrap();
    assert_eq!(g.vm.reset_dirty_rings().unwrap() as usize, pages);
}
