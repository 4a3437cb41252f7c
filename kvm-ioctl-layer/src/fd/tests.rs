//! Small guests through the public API, and the errno of each misuse.
//!
//! Test-only: `unsafe` gives memory to guests.

use crate::{Cap, Kvm, NoDatamatch, VcpuExit, VcpuFd, VmFd};
use kvm_api::uapi::*;
use kvm_bindings::CpuId;
use kvm_ioctls::IoEventAddress;
use memmap2::MmapRaw;
use vmm_sys_util::eventfd::EventFd;

/// A VM with 64 KiB of memory at 0 and a vCPU in real mode at 0x1000.
pub(super) struct Guest {
    pub(super) vcpu: VcpuFd,
    pub(super) vm: VmFd,
    ram: MmapRaw,
}

const RAM: usize = 0x10000;

impl Guest {
    pub(super) fn new(code: &[u8]) -> Guest {
        Guest::with(code, |_| {})
    }

    pub(super) fn with(code: &[u8], prepare: impl FnOnce(&VmFd)) -> Guest {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        prepare(&vm);
        let ram = MmapRaw::from(memmap2::MmapMut::map_anon(RAM).unwrap());
        let g = Guest { vcpu: vm.create_vcpu(0).unwrap(), vm, ram };
        g.poke(0x1000, code);
        g.slot(0, 0, RAM as u64, 0);
        let mut s = g.vcpu.get_sregs().unwrap();
        s.cs.base = 0;
        s.cs.selector = 0;
        g.vcpu.set_sregs(&s).unwrap();
        g.vcpu.set_regs(&kvm_regs { rip: 0x1000, rsp: 0x8000, rflags: 2, ..Default::default() }).unwrap();
        g
    }

    #[allow(unsafe_code)]
    pub(super) fn poke(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= RAM);
        // SAFETY: inside the mapping, and no vCPU runs.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ram.as_mut_ptr().add(at), bytes.len()) }
    }

    #[allow(unsafe_code)]
    fn peek(&self, at: usize) -> u8 {
        assert!(at < RAM);
        // SAFETY: inside the mapping.
        unsafe { self.ram.as_ptr().add(at).read_volatile() }
    }

    fn slot(&self, slot: u32, gpa: u64, size: u64, flags: u32) {
        self.try_slot(slot, gpa, size, flags).unwrap();
    }

    #[allow(unsafe_code)]
    fn try_slot(&self, slot: u32, gpa: u64, size: u64, flags: u32) -> crate::Result {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: self.ram.as_mut_ptr() as u64,
        };
        // SAFETY: the mapping is the guest's and lives as long as it.
        unsafe { self.vm.set_user_memory_region(region) }
    }
}

pub(super) fn errno<T: core::fmt::Debug>(r: crate::Result<T>) -> i32 {
    r.unwrap_err().errno()
}

mod bus_lock;
mod smm;
mod tpr_and_xen;

#[test]
fn memory_slots() {
    let g = Guest::new(&[0xf4]);
    assert_eq!(errno(g.try_slot(1, 0x1000, 0x1000, 0)), libc::EEXIST);
    assert_eq!(errno(g.try_slot(1, 0x1_0001, 0x1000, 0)), libc::EINVAL);
    assert_eq!(errno(g.try_slot(1, 0x10_0000, 0x1000, 1 << 5)), libc::EINVAL);
    assert_eq!(errno(g.try_slot(2 << 16, 0x10_0000, 0x1000, 0)), libc::EINVAL);
    g.slot(1, 0x10_0000, 0x1000, KVM_MEM_LOG_DIRTY_PAGES);
    assert_eq!(g.vm.get_dirty_log(1, 0x1000).unwrap(), [0]);
    assert_eq!(errno(g.vm.get_dirty_log(0, RAM)), libc::ENOENT);
    assert_eq!(errno(g.vm.get_dirty_log(7, RAM)), libc::ENOENT);
    assert_eq!(errno(g.vm.get_dirty_log(5 << 16, RAM)), libc::EINVAL);
}

#[test]
fn irqchip_calls_need_one() {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let mut chip = kvm_irqchip::default();
    assert_eq!(errno(vm.get_irqchip(&mut chip)), libc::ENXIO);
    assert_eq!(errno(vm.set_irqchip(&chip)), libc::ENXIO);
    assert_eq!(errno(vm.set_irq_line(4, true)), libc::ENXIO);
    assert_eq!(errno(vm.get_pit2()), libc::ENXIO);
    assert_eq!(errno(vm.set_pit2(&kvm_pit_state2::default())), libc::ENXIO);
    assert_eq!(errno(vm.create_pit2(kvm_pit_config::default())), libc::ENOENT);
    assert_eq!(errno(vm.signal_msi(kvm_msi::default())), libc::EINVAL);
    vm.create_irq_chip().unwrap();
    assert_eq!(errno(vm.create_irq_chip()), libc::EEXIST);
    vm.create_pit2(kvm_pit_config::default()).unwrap();
    assert_eq!(errno(vm.create_pit2(kvm_pit_config::default())), libc::EEXIST);
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] {
        chip.chip_id = chip_id;
        vm.get_irqchip(&mut chip).unwrap();
        vm.set_irqchip(&chip).unwrap();
    }
    chip.chip_id = 3;
    assert_eq!(errno(vm.get_irqchip(&mut chip)), libc::EINVAL);
    assert_eq!(errno(vm.set_irqchip(&chip)), libc::EINVAL);
    vm.set_irq_line(4, true).unwrap();
    let pit = vm.get_pit2().unwrap();
    vm.set_pit2(&pit).unwrap();
    let late = Kvm::new().unwrap().create_vm().unwrap();
    let _vcpu = late.create_vcpu(0).unwrap();
    assert_eq!(errno(late.create_irq_chip()), libc::EINVAL);
}

#[test]
fn vcpus_and_addresses() {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    vm.set_tss_address(0xfffb_d000).unwrap();
    assert_eq!(errno(vm.set_tss_address(0xffff_e000)), libc::EINVAL);
    vm.set_identity_map_address(0xfffb_c000).unwrap();
    vm.set_boot_cpu_id(1).unwrap();
    let _one = vm.create_vcpu(1).unwrap();
    assert_eq!(errno(vm.create_vcpu(1)), libc::EEXIST);
    assert_eq!(errno(vm.create_vcpu(1 << 20)), libc::EINVAL);
    assert_eq!(errno(vm.set_boot_cpu_id(0)), libc::EBUSY);
    assert_eq!(errno(vm.set_identity_map_address(0)), libc::EINVAL);
    assert_eq!(errno(Kvm::new().unwrap().create_vm_with_type(9)), libc::EINVAL);
}

#[test]
fn state_is_taken_as_it_was_given() {
    let g = Guest::new(&[0xf4]);
    let v = &g.vcpu;
    let regs =
        kvm_regs { rax: 1, rcx: 2, rbx: 3, rsp: 4, r15: 5, rip: 6, rflags: 0x246, ..Default::default() };
    v.set_regs(&regs).unwrap();
    assert_eq!(v.get_regs().unwrap(), regs);
    let sregs = v.get_sregs().unwrap();
    v.set_sregs(&sregs).unwrap();
    assert_eq!(v.get_sregs().unwrap(), sregs);
    let mut fpu = v.get_fpu().unwrap();
    fpu.fcw = 0x27f;
    fpu.fpr[7] = [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0];
    fpu.xmm[15] = [9; 16];
    v.set_fpu(&fpu).unwrap();
    assert_eq!(v.get_fpu().unwrap(), fpu);
    let x = v.get_xsave().unwrap();
    #[allow(unsafe_code)]
    // SAFETY: nothing is needed.
    unsafe {
        v.set_xsave(&x).unwrap()
    };
    assert_eq!(v.get_fpu().unwrap(), fpu);
    let mut d = v.get_debug_regs().unwrap();
    d.db = [1, 2, 3, 4];
    v.set_debug_regs(&d).unwrap();
    assert_eq!(v.get_debug_regs().unwrap(), d);
    d.dr7 = 1 << 32;
    assert_eq!(errno(v.set_debug_regs(&d)), libc::EINVAL);
    let xcrs = v.get_xcrs().unwrap();
    v.set_xcrs(&xcrs).unwrap();
    let mut bad = xcrs;
    bad.xcrs[0].value = 0;
    assert_eq!(errno(v.set_xcrs(&bad)), libc::EINVAL);
    let events = v.get_vcpu_events().unwrap();
    v.set_vcpu_events(&events).unwrap();
    let mut bad = events;
    bad.flags = 1 << 20;
    assert_eq!(errno(v.set_vcpu_events(&bad)), libc::EINVAL);
    assert_eq!(v.get_mp_state().unwrap().mp_state, KVM_MP_STATE_RUNNABLE);
    assert_eq!(errno(v.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_HALTED })), libc::EINVAL);
    assert_eq!(errno(v.get_lapic()), libc::EINVAL);
    assert_eq!(errno(v.kvmclock_ctrl()), libc::EINVAL);
}

#[test]
fn impossible_special_registers_are_refused() {
    let g = Guest::new(&[0xf4]);
    let good = g.vcpu.get_sregs().unwrap();
    type Change = fn(&mut kvm_sregs);
    let cases: [(&str, Change); 6] = [
        ("PG without PE", |s| s.cr0 = 1 << 31),
        ("NW without CD", |s| s.cr0 = 1 << 29),
        ("a bit that CR4 does not have", |s| s.cr4 = 1 << 63),
        ("64-bit code outside IA-32e mode", |s| s.cs.l = 1),
        ("LMA without paging", |s| s.efer = 1 << 10),
        ("IA-32e paging without PAE", |s| {
            s.cr0 = 1 << 31 | 1;
            s.efer = 1 << 8 | 1 << 10;
        }),
    ];
    for (name, change) in cases {
        let mut s = good;
        change(&mut s);
        assert_eq!(g.vcpu.set_sregs(&s).map_err(|e| e.errno()), Err(libc::EINVAL), "{name}");
        assert_eq!(g.vcpu.get_sregs().unwrap(), good, "{name}: nothing has changed");
    }
}

#[test]
fn msrs_stop_at_the_first_unknown() {
    let g = Guest::new(&[0xf4]);
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let list = Msrs::from_entries(&[entry(0x174, 0x10), entry(0x6666, 0), entry(0x175, 1)]).unwrap();
    assert_eq!(g.vcpu.set_msrs(&list).unwrap(), 1);
    let mut back = Msrs::from_entries(&[entry(0x174, 0), entry(0xc000_0082, 0), entry(0x6666, 0)]).unwrap();
    assert_eq!(g.vcpu.get_msrs(&mut back).unwrap(), 2);
    assert_eq!(back.as_slice()[0].data, 0x10);
    // Every listed MSR can be read.
    let kvm = Kvm::new().unwrap();
    for &index in kvm.get_msr_index_list().unwrap().as_slice() {
        if index == 0x6e0 {
            // The deadline is the local APIC's, which is not inside here.
            continue;
        }
        let mut one = Msrs::from_entries(&[entry(index, 0)]).unwrap();
        assert_eq!(g.vcpu.get_msrs(&mut one).unwrap(), 1, "{index:#x}");
    }
}

#[test]
fn cpuid_sizes() {
    let kvm = Kvm::new().unwrap();
    assert_eq!(errno(kvm.get_supported_cpuid(1)), libc::E2BIG);
    assert_eq!(errno(kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES + 1)), libc::ENOMEM);
    let all = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let g = Guest::new(&[0xf4]);
    g.vcpu.set_cpuid2(&all).unwrap();
    let back = g.vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
    // Sizes in leaf 0DH follow XCR0.
    let fixed = |c: &CpuId| c.as_slice().iter().filter(|e| e.function != 0xd).copied().collect::<Vec<_>>();
    assert_eq!(fixed(&back), fixed(&all));
    assert_eq!(errno(g.vcpu.get_cpuid2(1)), libc::E2BIG);
}

#[test]
fn capabilities_and_clock() {
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    assert!(kvm.check_extension(Cap::Irqchip) && vm.check_extension(Cap::ImmediateExit));
    assert_eq!(kvm.check_extension_int(Cap::NestedState), 0);
    assert_eq!(kvm.check_extension_raw(u64::MAX), 0);
    let mut clock = vm.get_clock().unwrap();
    clock.clock = 1 << 40;
    clock.flags = 0;
    vm.set_clock(&clock).unwrap();
    assert!(vm.get_clock().unwrap().clock >= 1 << 40);
    clock.flags = 1 << 20;
    assert_eq!(errno(vm.set_clock(&clock)), libc::EINVAL);
    assert_eq!(errno(vm.enable_cap(&kvm_enable_cap { cap: 9999, ..Default::default() })), libc::EINVAL);
}
#[test]
fn a_dirty_log_that_the_caller_clears() {
    // mov byte [0x3000], 1; hlt; jmp to the start
    let mut g = Guest::new(&[0xc6, 0x06, 0x00, 0x30, 0x01, 0xf4, 0xeb, 0xf8]);
    let cap = |flags| kvm_enable_cap {
        cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        args: [flags, 0, 0, 0],
        ..Default::default()
    };
    assert_eq!(errno(g.vm.enable_cap(&cap(4))), libc::EINVAL);
    assert_eq!(errno(g.vm.enable_cap(&cap(2))), libc::EINVAL);
    g.vm.enable_cap(&cap(3)).unwrap();
    g.slot(0, 0, RAM as u64, KVM_MEM_LOG_DIRTY_PAGES);
    let all = (1u64 << (RAM / 4096)) - 1;
    assert_eq!(g.vm.get_dirty_log(0, RAM).unwrap(), [all]);
    assert_eq!(g.vm.get_dirty_log(0, RAM).unwrap(), [all]);
    let clear = |first_page: u64, pages: u32, bits: &[u64]| {
        let mut args = kvm_clear_dirty_log { slot: 0, num_pages: pages, first_page, ..Default::default() };
        crate::user_mem::set_member(&mut args, 16, &(bits.as_ptr() as u64));
        let at = (&raw const args) as u64;
        crate::dispatch::dispatch(
            crate::dispatch::Object::Vm(&g.vm),
            kvm_api::nr::KVM_CLEAR_DIRTY_LOG,
            at,
            &crate::user_mem::OwnMemory,
        )
        .map(|_| ())
    };
    for (first, pages) in [(1, 1), (64, 1), (0, 17), (0, 15), (0, u32::MAX)] {
        assert_eq!(clear(first, pages, &[0]), Err(kvm_api::Errno::EINVAL), "{first} {pages}");
    }
    clear(0, 16, &[all & !(1 << 5)]).unwrap();
    assert_eq!(g.vm.get_dirty_log(0, RAM).unwrap(), [1 << 5]);
    for _ in 0..2 {
        assert!(matches!(g.vcpu.run(), Ok(VcpuExit::Hlt)));
        assert_eq!(g.vm.get_dirty_log(0, RAM).unwrap(), [1 << 5 | 1 << 3]);
        let args = [1u64 << 3];
        let mut c = kvm_clear_dirty_log { slot: 0, num_pages: 16, first_page: 0, ..Default::default() };
        crate::user_mem::set_member(&mut c, 16, &(args.as_ptr() as u64));
        g.vm.backend().clear_dirty_log(0, 0, &args).unwrap();
        assert_eq!(g.vm.get_dirty_log(0, RAM).unwrap(), [1 << 5]);
    }
}

#[test]
fn dirty_log_knows_the_guests_stores() {
    // mov byte [0x3000], 1; hlt
    let mut g = Guest::new(&[0xc6, 0x06, 0x00, 0x30, 0x01, 0xf4]);
    g.slot(0, 0, RAM as u64, KVM_MEM_LOG_DIRTY_PAGES);
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
    assert_eq!(g.vm.get_dirty_log(0, RAM).unwrap(), [1 << 3]);
    assert_eq!(g.vm.get_dirty_log(0, RAM).unwrap(), [0]);
}

#[test]
fn halt_with_an_irqchip_waits_and_a_kick_ends_it() {
    let mut g = Guest::with(&[0xf4], |vm| vm.create_irq_chip().unwrap());
    let kick = g.vcpu.kick_handle();
    let t = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        kick.kick();
    });
    assert_eq!(errno(g.vcpu.run()), libc::EINTR);
    assert_eq!(g.vcpu.get_mp_state().unwrap().mp_state, KVM_MP_STATE_HALTED);
    t.join().unwrap();
}

#[test]
fn immediate_exit_completes_the_pending_access() {
    // in al, 0x60; hlt
    let mut g = Guest::new(&[0xe4, 0x60, 0xf4]);
    match g.vcpu.run().unwrap() {
        VcpuExit::IoIn(_, data) => data[0] = 0x77,
        e => panic!("{e:?}"),
    }
    g.vcpu.set_kvm_immediate_exit(1);
    assert_eq!(errno(g.vcpu.run()), libc::EINTR);
    let r = g.vcpu.get_regs().unwrap();
    assert_eq!((r.rax & 0xff, r.rip), (0x77, 0x1002));
    // Without anything pending it returns before the first instruction.
    assert_eq!(errno(g.vcpu.run()), libc::EINTR);
    assert_eq!(g.vcpu.get_regs().unwrap().rip, 0x1002);
    g.vcpu.set_kvm_immediate_exit(0);
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
}

#[test]
fn in_takes_the_answer_from_the_page() {
    // in ax, 0x60; mov [0x3000], al; hlt
    let mut g = Guest::new(&[0xe5, 0x60, 0xa2, 0x00, 0x30, 0xf4]);
    match g.vcpu.run().unwrap() {
        VcpuExit::IoIn(0x60, data) => data.copy_from_slice(&[0x5a, 0xa5]),
        e => panic!("{e:?}"),
    }
    // Nothing is committed before the answer.
    assert_eq!(g.vcpu.get_regs().unwrap().rax & 0xffff, 0);
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
    assert_eq!(g.vcpu.get_regs().unwrap().rax & 0xffff, 0xa55a);
    assert_eq!(g.peek(0x3000), 0x5a);
}

#[test]
fn interrupt_and_its_window() {
    // sti; nop; l: jmp l ... handler at 0x2000: mov al, 0x99; out 0x80, al; hlt
    let mut g = Guest::new(&[0xfa, 0x90, 0xfb, 0x90, 0xeb, 0xfe]);
    g.poke(0x2000, &[0xb0, 0x99, 0xe6, 0x80, 0xf4]);
    g.poke(0x31 * 4, &[0x00, 0x20, 0x00, 0x00]);
    g.vcpu.get_kvm_run().request_interrupt_window = 1;
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::IrqWindowOpen));
    let run = g.vcpu.get_kvm_run();
    assert_eq!((run.ready_for_interrupt_injection, run.if_flag), (1, 1));
    run.request_interrupt_window = 0;
    g.vcpu.interrupt(0x31).unwrap();
    let sregs = g.vcpu.get_sregs().unwrap();
    assert_eq!(sregs.interrupt_bitmap, [1 << 0x31, 0, 0, 0]);
    match g.vcpu.run().unwrap() {
        VcpuExit::IoOut(0x80, data) => assert_eq!(data, [0x99]),
        e => panic!("{e:?}"),
    }
    assert_eq!(errno(g.vcpu.interrupt(256)), libc::EINVAL);
}

#[test]
fn ioeventfd_takes_the_write() {
    // mov al, 1; out 0x70, al; hlt
    let mut g = Guest::new(&[0xb0, 0x01, 0xe6, 0x70, 0xf4]);
    let e = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    g.vm.register_ioevent(&e, &IoEventAddress::Pio(0x70), NoDatamatch).unwrap();
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
    assert_eq!(e.read().unwrap(), 1);
    g.vm.unregister_ioevent(&e, &IoEventAddress::Pio(0x70), NoDatamatch).unwrap();
    assert_eq!(errno(g.vm.unregister_ioevent(&e, &IoEventAddress::Pio(0x70), NoDatamatch)), libc::ENOENT);
}

#[test]
fn memory_that_is_gone_is_efault() {
    let mut g = Guest::new(&[0xf4]);
    let hole = memmap2::MmapMut::map_anon(0x1000).unwrap();
    let address = hole.as_ptr() as u64;
    let region = kvm_userspace_memory_region {
        slot: 1,
        flags: 0,
        guest_phys_addr: 0x2_0000,
        memory_size: 0x1000,
        userspace_addr: address,
    };
    #[allow(unsafe_code)]
    // SAFETY: the memory is dropped next, which is the point.
    unsafe {
        g.vm.set_user_memory_region(region).unwrap()
    };
    drop(hole);
    // mov ax, 0x2000; mov ds, ax; mov al, [0]; hlt
    g.poke(0x1000, &[0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xa0, 0x00, 0x00, 0xf4]);
    match g.vcpu.run() {
        // Another thread of the tests may have got the same address meanwhile.
        Ok(VcpuExit::Hlt) => eprintln!("skip: the address was used again"),
        r => assert_eq!(errno(r), libc::EFAULT),
    }
}

#[test]
fn mmio_read_and_write() {
    // mov ax, 0x2000; mov ds, ax (base 0x20000: no slot); mov bx, [0x10]; mov [0x14], bl; hlt
    let mut g =
        Guest::new(&[0xb8, 0x00, 0x20, 0x8e, 0xd8, 0x8b, 0x1e, 0x10, 0x00, 0x88, 0x1e, 0x14, 0x00, 0xf4]);
    match g.vcpu.run().unwrap() {
        VcpuExit::MmioRead(0x20010, data) => data.copy_from_slice(&[0x34, 0x12]),
        e => panic!("{e:?}"),
    }
    match g.vcpu.run().unwrap() {
        VcpuExit::MmioWrite(0x20014, data) => assert_eq!(data, [0x34]),
        e => panic!("{e:?}"),
    }
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
    assert_eq!(g.vcpu.get_regs().unwrap().rbx & 0xffff, 0x1234);
}

#[test]
fn out_and_hlt() {
    // mov dx, 0x3f8; mov al, 'A'; out dx, al; hlt
    let mut g = Guest::new(&[0xba, 0xf8, 0x03, 0xb0, b'A', 0xee, 0xf4]);
    match g.vcpu.run().unwrap() {
        VcpuExit::IoOut(port, data) => assert_eq!((port, data), (0x3f8, &b"A"[..])),
        e => panic!("{e:?}"),
    }
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
    assert_eq!(g.vcpu.get_regs().unwrap().rip, 0x1007);
    let stats = g.vcpu.stats();
    assert!(stats.iter().any(|(n, v)| *n == "instructions" && *v == 4), "{stats:?}");
}

#[test]
fn register_sets_in_the_page() {
    use kvm_ioctls::SyncReg;
    // inc ax; hlt
    let mut g = Guest::new(&[0x40, 0xf4]);
    g.vcpu.set_sync_valid_reg(SyncReg::Register);
    let mut regs = g.vcpu.get_regs().unwrap();
    regs.rax = 41;
    g.vcpu.sync_regs_mut().regs = regs;
    g.vcpu.set_sync_dirty_reg(SyncReg::Register);
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
    assert_eq!(g.vcpu.sync_regs().regs.rax, 42);
    g.vcpu.get_kvm_run().kvm_valid_regs = 1 << 40;
    assert_eq!(errno(g.vcpu.run()), libc::EINVAL);
}

#[test]
fn a_kick_ends_a_loop_and_is_not_lost() {
    let mut g = Guest::new(&[0xeb, 0xfe]);
    let kick = g.vcpu.kick_handle();
    kick.kick();
    assert_eq!(errno(g.vcpu.run()), libc::EINTR);
    assert_eq!(g.vcpu.get_kvm_run().exit_reason, KVM_EXIT_INTR);
    let t = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        kick.kick();
    });
    assert_eq!(errno(g.vcpu.run()), libc::EINTR);
    t.join().unwrap();
}

#[test]
fn an_immediate_exit_byte_set_from_outside_ends_a_loop() {
    let mut g = Guest::new(&[0xeb, 0xfe]);
    let byte = &raw mut g.vcpu.get_kvm_run().immediate_exit as usize;
    let t = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        #[allow(unsafe_code)]
        // SAFETY: the vCPU, whose page this is, outlives the thread.
        unsafe {
            (byte as *mut u8).write_volatile(1)
        };
    });
    assert_eq!(errno(g.vcpu.run()), libc::EINTR);
    t.join().unwrap();
}

#[test]
fn the_largest_vcpu_id_can_be_told_once() {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let tell = |n| {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_MAX_VCPU_ID, ..Default::default() };
        cap.args[0] = n;
        vm.enable_cap(&cap).map_err(|e| e.errno())
    };
    assert_eq!(tell(crate::caps::MAX_VCPU_ID + 1), Err(libc::EINVAL));
    assert_eq!(tell(2), Ok(()));
    assert_eq!(tell(2), Ok(()));
    assert_eq!(tell(3), Err(libc::EINVAL));
    assert!(vm.create_vcpu(1).is_ok());
    assert_eq!(vm.create_vcpu(2).map(|_| ()).map_err(|e| e.errno()), Err(libc::EINVAL));
}
