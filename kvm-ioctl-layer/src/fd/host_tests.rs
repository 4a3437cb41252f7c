//! The software backend beside the host's own `/dev/kvm`, call by call, where there is one: same results, same errnos.
//! Where there is none, a printed skip.
//!
//! Test-only: `unsafe` gives memory to guests.

use kvm_api::uapi::*;
use vmm_sys_util::eventfd::EventFd;

fn host() -> Option<kvm_ioctls::Kvm> {
    match kvm_ioctls::Kvm::new() {
        Ok(k) => Some(k),
        Err(e) => {
            eprintln!("skip: no usable /dev/kvm ({e})");
            None
        }
    }
}

fn number<T>(r: Result<T, kvm_ioctls::Error>) -> i32 {
    r.map_or_else(|e| e.errno(), |_| 0)
}

/// Runs the same calls on both and compares the list of errnos (0: success).
macro_rules! both {
    ($name:ident, |$kvm:ident| $body:block) => {
        #[test]
        fn $name() {
            let Some(host) = host() else { return };
            let of_host: Vec<(&str, i32)> = {
                let $kvm = &host;
                $body
            };
            let soft = crate::Kvm::new().unwrap();
            let of_soft: Vec<(&str, i32)> = {
                let $kvm = &soft;
                $body
            };
            for (h, s) in of_host.iter().zip(&of_soft) {
                assert_eq!(h, s, "host, software");
            }
            assert_eq!(of_host.len(), of_soft.len());
        }
    };
}

both!(vm_calls_without_an_irqchip, |kvm| {
    let vm = kvm.create_vm().unwrap();
    let mut chip = kvm_irqchip::default();
    let e = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    vec![
        ("api version", kvm.get_api_version()),
        ("get_irqchip", number(vm.get_irqchip(&mut chip))),
        ("set_irqchip", number(vm.set_irqchip(&chip))),
        ("irq_line", number(vm.set_irq_line(4, true))),
        ("get_pit2", number(vm.get_pit2())),
        ("set_pit2", number(vm.set_pit2(&kvm_pit_state2::default()))),
        ("create_pit2", number(vm.create_pit2(kvm_pit_config::default()))),
        ("signal_msi", number(vm.signal_msi(kvm_msi::default()))),
        ("irqfd", number(vm.register_irqfd(&e, 4))),
        ("set_gsi_routing", number(vm.set_gsi_routing(&KvmIrqRouting::new(0).unwrap()))),
        ("set_tss", number(vm.set_tss_address(0xfffb_d000))),
        ("set_tss beyond 4 GiB", number(vm.set_tss_address(0xffff_e000))),
        ("identity map", number(vm.set_identity_map_address(0xfffb_c000))),
        ("enable_cap unknown", number(vm.enable_cap(&kvm_enable_cap { cap: 9999, ..Default::default() }))),
        ("dirty log of nothing", number(vm.get_dirty_log(3, 0x1000))),
        ("vcpu id too large", number(vm.create_vcpu(1 << 30))),
        ("vcpu 0", number(vm.create_vcpu(0))),
        ("vcpu 0 again", number(vm.create_vcpu(0))),
        ("irqchip after a vcpu", number(vm.create_irq_chip())),
    ]
});

both!(vm_calls_with_an_irqchip, |kvm| {
    let vm = kvm.create_vm().unwrap();
    let mut chip = kvm_irqchip { chip_id: 3, ..Default::default() };
    let (e, f) = (EventFd::new(libc::EFD_NONBLOCK).unwrap(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
    vec![
        ("create", number(vm.create_irq_chip())),
        ("create again", number(vm.create_irq_chip())),
        ("bad chip", number(vm.get_irqchip(&mut chip))),
        ("bad chip set", number(vm.set_irqchip(&chip))),
        ("pit", number(vm.create_pit2(kvm_pit_config::default()))),
        ("pit again", number(vm.create_pit2(kvm_pit_config::default()))),
        ("irq_line", number(vm.set_irq_line(4, true))),
        ("irqfd", number(vm.register_irqfd(&e, 4))),
        ("the same irqfd", number(vm.register_irqfd(&e, 5))),
        ("another", number(vm.register_irqfd(&f, 4))),
        ("unregister", number(vm.unregister_irqfd(&e, 4))),
        ("unregister what is not there", number(vm.unregister_irqfd(&e, 4))),
        ("resample", number(vm.register_irqfd_with_resample(&e, &f, 6))),
    ]
});

both!(ioeventfds, |kvm| {
    use kvm_ioctls::{IoEventAddress::*, NoDatamatch};
    let vm = kvm.create_vm().unwrap();
    let e = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    vec![
        ("pio", number(vm.register_ioevent(&e, &Pio(0xf4), NoDatamatch))),
        ("the same", number(vm.register_ioevent(&e, &Pio(0xf4), NoDatamatch))),
        ("with a match", number(vm.register_ioevent(&e, &Pio(0xf4), 1u32))),
        ("mmio", number(vm.register_ioevent(&e, &Mmio(0x1000), 1u64))),
        ("mmio, another match", number(vm.register_ioevent(&e, &Mmio(0x1000), 2u64))),
        ("mmio, the same match", number(vm.register_ioevent(&e, &Mmio(0x1000), 2u64))),
        ("unregister", number(vm.unregister_ioevent(&e, &Mmio(0x1000), 2u64))),
        ("unregister what is not there", number(vm.unregister_ioevent(&e, &Mmio(0x1000), 2u64))),
        ("past the end", number(vm.register_ioevent(&e, &Mmio(u64::MAX), 2u64))),
    ]
});

both!(vcpu_state, |kvm| {
    let vm = kvm.create_vm().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let sregs = vcpu.get_sregs().unwrap();
    let bad = |change: fn(&mut kvm_sregs)| {
        let mut s = sregs;
        change(&mut s);
        number(vcpu.set_sregs(&s))
    };
    let mut debug = vcpu.get_debug_regs().unwrap();
    debug.dr7 = 1 << 40;
    let mut flags = vcpu.get_debug_regs().unwrap();
    flags.flags = 1;
    let mut xcrs = vcpu.get_xcrs().unwrap();
    xcrs.xcrs[0].value = 0;
    let mut events = vcpu.get_vcpu_events().unwrap();
    events.flags = 1 << 20;
    let mut exception = vcpu.get_vcpu_events().unwrap();
    exception.exception.injected = 1;
    exception.exception.nr = 40;
    let unknown = Msrs::from_entries(&[kvm_msr_entry { index: 0x6666, ..Default::default() }]).unwrap();
    let r = vcpu.get_regs().unwrap();
    vec![
        ("sregs", bad(|_| ())),
        ("PG without PE", bad(|s| s.cr0 = 1 << 31)),
        ("NW without CD", bad(|s| s.cr0 = 1 << 29)),
        ("CR4 bit 63", bad(|s| s.cr4 = 1 << 63)),
        (
            "long mode without PAE",
            bad(|s| {
                s.cr0 |= 1 << 31 | 1;
                s.efer = 1 << 8 | 1 << 10;
            }),
        ),
        ("debugregs", number(vcpu.set_debug_regs(&debug))),
        ("debugregs flags", number(vcpu.set_debug_regs(&flags))),
        ("xcr0 of 0", number(vcpu.set_xcrs(&xcrs))),
        ("events", number(vcpu.set_vcpu_events(&events))),
        ("exception 40", number(vcpu.set_vcpu_events(&exception))),
        (
            "halted without an irqchip",
            number(vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_HALTED })),
        ),
        ("mp state 99", number(vcpu.set_mp_state(kvm_mp_state { mp_state: 99 }))),
        ("lapic without an irqchip", number(vcpu.get_lapic())),
        ("kvmclock_ctrl without a clock", number(vcpu.kvmclock_ctrl())),
        ("msrs written", vcpu.set_msrs(&unknown).unwrap() as i32),
        ("vcpu enable_cap", number(vcpu.enable_cap(&kvm_enable_cap { cap: 9999, ..Default::default() }))),
        ("cpuid: too little room", number(kvm.get_supported_cpuid(1))),
        (
            "guest debug",
            number(vcpu.set_guest_debug(&kvm_guest_debug { control: 1 << 12, ..Default::default() })),
        ),
        ("reset rip", r.rip as i32),
        ("reset rflags", r.rflags as i32),
        ("reset cs", sregs.cs.selector.into()),
        ("reset cs base", sregs.cs.base as i32),
        ("reset cr0", sregs.cr0 as i32),
        ("reset gdt limit", sregs.gdt.limit.into()),
        ("reset fcw", vcpu.get_fpu().unwrap().fcw.into()),
        ("reset xcr0", vcpu.get_xcrs().unwrap().xcrs[0].value as i32),
        ("reset dr6", vcpu.get_debug_regs().unwrap().dr6 as u32 as i32),
        ("reset dr7", vcpu.get_debug_regs().unwrap().dr7 as i32),
        ("mp state", vcpu.get_mp_state().unwrap().mp_state as i32),
    ]
});

/// Both run the same real-mode program, exit by exit.
#[test]
fn a_small_guest_exits_alike() {
    use kvm_ioctls::VcpuExit;
    let Some(host) = host() else { return };
    // mov dx, 0x3f8; add al, bl; add al, '0'; out dx, al; in al, 0x60; mov [0x2000], al; mov al, [0x8000]; hlt
    const CODE: &[u8] = &[
        0xba, 0xf8, 0x03, 0x00, 0xd8, 0x04, b'0', 0xee, 0xe4, 0x60, 0xa2, 0x00, 0x20, 0xa0, 0x00, 0x80, 0xf4,
    ];
    macro_rules! run {
        ($kvm:expr) => {{
            let vm = $kvm.create_vm().unwrap();
            let mut ram = memmap2::MmapMut::map_anon(0x4000).unwrap();
            ram[0x1000..0x1000 + CODE.len()].copy_from_slice(CODE);
            let region = kvm_userspace_memory_region {
                slot: 0,
                flags: 0,
                guest_phys_addr: 0,
                memory_size: 0x4000,
                userspace_addr: ram.as_mut_ptr() as u64,
            };
            #[allow(unsafe_code)]
            // SAFETY: the mapping outlives the vCPU's runs, and is read only after them.
            unsafe {
                vm.set_user_memory_region(region).unwrap()
            };
            let mut vcpu = vm.create_vcpu(0).unwrap();
            let mut s = vcpu.get_sregs().unwrap();
            s.cs.base = 0;
            s.cs.selector = 0;
            vcpu.set_sregs(&s).unwrap();
            vcpu.set_regs(&kvm_regs { rip: 0x1000, rax: 2, rbx: 2, rflags: 2, ..Default::default() })
                .unwrap();
            let mut log = Vec::new();
            loop {
                let exit = match vcpu.run().unwrap() {
                    VcpuExit::IoOut(port, data) => format!("out {port:#x} {data:?}"),
                    VcpuExit::IoIn(port, data) => {
                        data.fill(0x5a);
                        format!("in {port:#x} {}", data.len())
                    }
                    VcpuExit::MmioRead(gpa, data) => {
                        data.fill(0xa5);
                        format!("mmio read {gpa:#x} {}", data.len())
                    }
                    VcpuExit::Hlt => "hlt".into(),
                    e => format!("{e:?}"),
                };
                let r = vcpu.get_regs().unwrap();
                let done = exit == "hlt" || log.len() > 20;
                // RIP between an IN and its completion is the processor's business.
                let rip = if exit.starts_with("in ") || exit.starts_with("mmio") { 0 } else { r.rip };
                log.push(format!("{exit}: rip {rip:#x} rdx {:#x}", r.rdx));
                if done {
                    log.push(format!("rax {:#x} rflags {:#x} [2000] {:#x}", r.rax, r.rflags, ram[0x2000]));
                    break log;
                }
            }
        }};
    }
    let of_host = run!(host);
    let of_soft = run!(crate::Kvm::new().unwrap());
    assert_eq!(of_host, of_soft);
}
