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

/// A statistics file: its header's numbers, and a look-up of values by name.
struct Stats(std::fs::File);

impl Stats {
    fn read(&self, at: u64, n: usize) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; n];
        self.0.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn word(&self, at: u64) -> u64 {
        u32::from_le_bytes(self.read(at, 4).try_into().unwrap()).into()
    }

    fn get(&self, name: &str) -> u64 {
        let (size, count, descriptors, data) = (self.word(4), self.word(8), self.word(16), self.word(20));
        for n in 0..count {
            let at = descriptors + n * (16 + size);
            let text = self.read(at + 16, size as usize);
            if text.split(|&b| b == 0).next() == Some(name.as_bytes()) {
                return u64::from_le_bytes(self.read(data + self.word(at + 8), 8).try_into().unwrap());
            }
        }
        panic!("no {name}");
    }
}

#[test]
fn statistics_are_as_they_are_now() {
    let mut g = Guest::new(WRITER, |_| {});
    let (vm, vcpu) = (Stats(g.vm.get_stats_fd().unwrap()), Stats(g.vcpu.get_stats_fd().unwrap()));
    let id = vcpu.read(vcpu.word(12), 48);
    assert!(id.starts_with(format!("kvm-{}/vcpu-0\0", std::process::id()).as_bytes()));
    assert_eq!((vcpu.get("insn_emulation"), vcpu.get("halt_exits")), (0, 0));
    assert_eq!(g.reason(), KVM_EXIT_HLT);
    let (once, taken) = (vcpu.get("insn_emulation"), vcpu.get("pf_taken"));
    assert_eq!(once, 1 + 5 * 224 + 1);
    assert!(taken >= 224 && vm.get("pages_4k") >= 224, "{taken}");
    assert_eq!(vcpu.get("halt_exits"), 1);
    let flushes = vm.get("remote_tlb_flush");
    g.vm.get_dirty_log(0, RAM).unwrap();
    assert_eq!(g.reason(), KVM_EXIT_HLT);
    assert_eq!(vcpu.get("host_state_reload"), 2);
    assert!(vcpu.get("insn_emulation") > once && vm.get("remote_tlb_flush") > flushes);
    // A second descriptor begins at the beginning, and none can be written or changes the others.
    use std::io::{Read, Write};
    let mut second = g.vcpu.get_stats_fd().unwrap();
    let mut head = [0; 8];
    second.read_exact(&mut head).unwrap();
    assert_eq!(head, [0, 0, 0, 0, 48, 0, 0, 0]);
    assert!(second.write(&[1]).is_err());
    // The file outlives what it is about.
    drop(g);
    assert_eq!(vcpu.get("host_state_reload"), 2);
}

#[test]
fn a_limit_of_shadow_pages_is_kept() {
    let mut g = Guest::new(WRITER, |_| {});
    assert_eq!(errno(g.vm.set_nr_mmu_pages(63)), libc::EINVAL);
    g.vm.set_nr_mmu_pages(64).unwrap();
    assert_eq!(g.vm.get_nr_mmu_pages().unwrap(), 64);
    g.vm.set_nr_mmu_pages(1000).unwrap();
    assert_eq!(g.vm.get_nr_mmu_pages().unwrap(), 1000);
    assert_eq!(g.reason(), KVM_EXIT_HLT);
}

#[test]
fn memory_that_goes_is_efault_and_told() {
    let mut g = Guest::new(WRITER, |_| {});
    // The guest's page at 80000h becomes inaccessible.
    let at = g.ram.as_mut_ptr() as usize + 0x8_0000;
    #[allow(unsafe_code)]
    let protect = |how| {
        // SAFETY: a page of the guest's own mapping, which Rust never references.
        assert_eq!(unsafe { libc::mprotect(at as *mut libc::c_void, 4096, how) }, 0);
    };
    protect(libc::PROT_NONE);
    assert_eq!(errno(g.vcpu.run()), libc::EFAULT);
    let run = g.vcpu.get_kvm_run();
    assert_eq!(run.exit_reason, KVM_EXIT_MEMORY_FAULT);
    #[allow(unsafe_code)]
    // SAFETY: plain old data of which every bit pattern is valid.
    let fault = unsafe { run.__bindgen_anon_1.memory_fault };
    assert_eq!((fault.flags, fault.gpa, fault.size), (0, 0x8_0000, 4096));
    assert_eq!(errno(g.vcpu.pre_fault_memory(0x8_0000, 4096)), libc::EFAULT);
    assert_eq!(g.vcpu.pre_fault_memory(0x7_f000, 8192).unwrap(), 4096, "as far as it goes");
    protect(libc::PROT_READ | libc::PROT_WRITE);
    assert_eq!(g.reason(), KVM_EXIT_HLT);
    for (gpa, size, expected) in [
        (0x8_0001, 4096, libc::EINVAL),
        (0x8_0000, 4095, libc::EINVAL),
        (0x8_0000, 0, libc::EINVAL),
        (0xffff_ffff_ffff_f000, 8192, libc::EINVAL),
        (0x10_0000, 4096, libc::ENOENT),
    ] {
        assert_eq!(errno(g.vcpu.pre_fault_memory(gpa, size)), expected, "{gpa:x} {size:x}");
    }
    assert_eq!(g.vcpu.pre_fault_memory(0xf_f000, 8192).unwrap(), 4096);
}

/// Slots come, go, move and change under two vCPUs that run. Whatever the guest meets, it is an exit or an errno.
#[test]
fn slots_that_change_under_running_vcpus() {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    let g = Guest::new(WRITER, |_| {});
    let stop = AtomicBool::new(false);
    let second = g.vm.create_vcpu(1).unwrap();
    second.set_sregs(&g.vcpu.get_sregs().unwrap()).unwrap();
    second.set_regs(&g.vcpu.get_regs().unwrap()).unwrap();
    second.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
    // The second half of the memory in a slot of its own: gone half of the time.
    g.slot(0, 0, 0, 0, 0).unwrap();
    g.slot(0, 0, 0, RAM as u64 / 2, 0).unwrap();
    let Guest { vcpu, vm, ram } = g;
    let base = ram.as_mut_ptr() as u64;
    std::thread::scope(|s| {
        for mut vcpu in [vcpu, second] {
            let stop = &stop;
            s.spawn(move || {
                let mut halts = 0u64;
                while !stop.load(SeqCst) || halts == 0 {
                    match vcpu.run() {
                        Ok(VcpuExit::Hlt) => halts += 1,
                        Ok(VcpuExit::MmioRead(at, _) | VcpuExit::MmioWrite(at, _)) => assert!(at >= 0x8_0000),
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
        let set = |flags, gpa, size| {
            let region = kvm_userspace_memory_region {
                slot: 1,
                flags,
                guest_phys_addr: gpa,
                memory_size: size,
                userspace_addr: base + RAM as u64 / 2,
            };
            #[allow(unsafe_code)]
            // SAFETY: the mapping outlives the threads that run the guest.
            unsafe {
                vm.set_user_memory_region(region)
            }
        };
        let half = RAM as u64 / 2;
        for round in 0..300 {
            set(0, half, half).unwrap();
            assert_eq!(errno(set(0, 0x1000, half)), libc::EEXIST);
            set(KVM_MEM_LOG_DIRTY_PAGES, half, half).unwrap();
            vm.get_dirty_log(1, half as usize).unwrap();
            if round % 2 == 0 {
                set(0, half, half).unwrap();
            }
            set(0, 0x1000_0000, half).unwrap();
            assert_eq!(errno(set(KVM_MEM_READONLY, 0x1000_0000, half)), libc::EINVAL);
            set(0, 0, 0).unwrap();
            assert_eq!(errno(set(0, 0, 0)), libc::EINVAL);
            if round == 150 {
                let quirk = u64::from(KVM_X86_QUIRK_SLOT_ZAP_ALL);
                let mut cap = kvm_enable_cap { cap: KVM_CAP_DISABLE_QUIRKS2, ..Default::default() };
                cap.args[0] = quirk;
                vm.enable_cap(&cap).unwrap();
            }
        }
        stop.store(true, SeqCst);
    });
}

#[test]
fn as_many_slots_as_are_promised() {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let ram = MmapRaw::from(memmap2::MmapMut::map_anon(8192).unwrap());
    let n = vm.check_extension_raw(u64::from(KVM_CAP_NR_MEMSLOTS)) as u32;
    let set = |slot: u32, size: u64| {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: u64::from(slot) << 13,
            memory_size: size,
            userspace_addr: ram.as_mut_ptr() as u64,
        };
        #[allow(unsafe_code)]
        // SAFETY: no vCPU runs, and the mapping outlives the VM.
        unsafe {
            vm.set_user_memory_region(region)
        }
    };
    for slot in 0..n {
        set(slot, 8192).unwrap();
    }
    assert_eq!(errno(set(n, 8192)), libc::EINVAL);
    assert_eq!(errno(set(7, 4096)), libc::EINVAL, "another size");
    for slot in (0..n).rev() {
        set(slot, 0).unwrap();
    }
    drop(vm);
}

/// Long mode without paging is not there; the quirks are met from real mode.
#[test]
fn quirks_have_their_effects() {
    let disable = |vm: &VmFd, quirks: u32| {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_DISABLE_QUIRKS2, ..Default::default() };
        cap.args[0] = u64::from(quirks);
        vm.enable_cap(&cap)
    };
    // out 7eh, al; hlt
    let code = &[0xe6, 0x7e, 0xf4];
    for (quirks, rip) in [(0, 0x1002), (KVM_X86_QUIRK_OUT_7E_INC_RIP, 0x1000)] {
        let mut g = Guest::new(code, |vm| disable(vm, quirks).unwrap());
        assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::IoOut(0x7e, [0])));
        assert_eq!(g.vcpu.get_regs().unwrap().rip, rip);
        assert_eq!(g.reason(), KVM_EXIT_HLT, "once");
        assert_eq!(g.vcpu.get_regs().unwrap().rip, 0x1003);
    }
    // LINT0 at reset.
    for (quirks, lint0) in [(0, 0x700), (KVM_X86_QUIRK_LINT0_REENABLED, 0x1_0000)] {
        let g = Guest::new(code, |vm| {
            vm.create_irq_chip().unwrap();
            disable(vm, quirks).unwrap();
        });
        let lapic = g.vcpu.get_lapic().unwrap();
        let bytes: Vec<u8> = lapic.regs[0x350..0x354].iter().map(|b| *b as u8).collect();
        assert_eq!(u32::from_le_bytes(bytes.try_into().unwrap()), lint0);
    }
    // The other vendor's hypercall: patched and done, or #UD (a triple fault in real mode with a limit of 0).
    for quirks in [0, KVM_X86_QUIRK_FIX_HYPERCALL_INSN] {
        let mut g = Guest::new(&[0x0f, 0x01, 0xd9, 0xf4], |vm| disable(vm, quirks).unwrap());
        let mut s = g.vcpu.get_sregs().unwrap();
        s.idt.limit = 0;
        g.vcpu.set_sregs(&s).unwrap();
        let exit = g.vcpu.run().unwrap();
        assert_eq!(matches!(exit, VcpuExit::Shutdown), quirks != 0, "{exit:?}");
    }
    // mwait, which CPUID does not have
    for quirks in [0, KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS] {
        let mut g = Guest::new(&[0x0f, 0x01, 0xc9, 0xf4], |vm| disable(vm, quirks).unwrap());
        let mut s = g.vcpu.get_sregs().unwrap();
        s.idt.limit = 0;
        g.vcpu.set_sregs(&s).unwrap();
        let exit = g.vcpu.run().unwrap();
        assert_eq!(matches!(exit, VcpuExit::Shutdown), quirks != 0, "{exit:?}");
    }
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let all = vm.check_extension_raw(u64::from(KVM_CAP_DISABLE_QUIRKS2)) as u32;
    disable(&vm, all).unwrap();
    assert_eq!(errno(disable(&vm, all + 1)), libc::EINVAL);
}

#[test]
fn hlt_that_does_not_exit_waits_inside() {
    let mut g = Guest::new(&[0xf4, 0xf4], |vm| {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_DISABLE_EXITS, ..Default::default() };
        cap.args[0] = 1 << 4;
        assert_eq!(errno(vm.enable_cap(&cap)), libc::EINVAL);
        cap.args[0] = vm.check_extension_raw(u64::from(KVM_CAP_X86_DISABLE_EXITS)) as u64;
        vm.enable_cap(&cap).unwrap();
    });
    let kick = g.vcpu.kick_handle();
    std::thread::scope(|s| {
        s.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(30));
            kick.kick();
        });
        assert_eq!(errno(g.vcpu.run()), libc::EINTR);
    });
    assert_eq!(g.vcpu.get_regs().unwrap().rip, 0x1001);
}

#[test]
fn an_emulation_failure_is_told_with_its_bytes() {
    // fld dword [es:0] of memory that is not there; hlt
    let code = &[0xb8, 0x00, 0xf0, 0x8e, 0xc0, 0x26, 0xd9, 0x06, 0x00, 0x00, 0xf4];
    for on in [false, true] {
        let mut g = Guest::new(code, |vm| {
            let mut cap = kvm_enable_cap { cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE, ..Default::default() };
            cap.args[0] = u64::from(on);
            vm.enable_cap(&cap).unwrap();
            cap.args[0] = 2;
            assert_eq!(errno(vm.enable_cap(&cap)), libc::EINVAL);
        });
        g.slot(0, 0, 0, 0, 0).unwrap();
        g.slot(0, 0, 0, 0xf_0000, 0).unwrap();
        let exit = g.vcpu.run().unwrap();
        if !on {
            assert!(matches!(exit, VcpuExit::MmioRead(0xf_0000, [_, _, _, _])), "{exit:?}");
            continue;
        }
        assert!(matches!(exit, VcpuExit::InternalError), "{exit:?}");
        let run = g.vcpu.get_kvm_run();
        #[allow(unsafe_code)]
        // SAFETY: plain old data of which every bit pattern is valid.
        let (internal, failure) =
            unsafe { (run.__bindgen_anon_1.internal, run.__bindgen_anon_1.emulation_failure) };
        assert_eq!((internal.suberror, internal.ndata), (KVM_INTERNAL_ERROR_EMULATION, 3));
        #[allow(unsafe_code)]
        // SAFETY: as above.
        let (flags, bytes) = unsafe {
            let b = failure.__bindgen_anon_1.__bindgen_anon_1;
            (failure.flags, (b.insn_size, b.insn_bytes))
        };
        assert_eq!((flags, bytes.0), (1, 15));
        assert_eq!(bytes.1[..5], code[5..10]);
        let mut regs = g.vcpu.get_regs().unwrap();
        assert_eq!(regs.rip, 0x1005);
        regs.rip += 5;
        g.vcpu.set_regs(&regs).unwrap();
        assert_eq!(g.reason(), KVM_EXIT_HLT);
    }
}
