//! Exits about the task priority, the page that stands for it, and Xen's hypercalls, through the run page.
//! Test-only: `unsafe` reads the union of kvm_run.

use super::{Guest, RAM};
use kvm_api::backend::Vcpu;
use kvm_api::uapi::*;

const PAGE: u64 = 0x5000;

/// The vCPU with DS at the local APIC's page.
fn with_apic(code: &[u8]) -> Guest {
    let g = Guest::with(code, |vm| vm.create_irq_chip().unwrap());
    let mut s = g.vcpu.get_sregs().unwrap();
    s.ds.base = 0xfee0_0000;
    g.vcpu.set_sregs(&s).unwrap();
    // The APIC is enabled by software.
    let mut lapic = g.vcpu.get_lapic().unwrap();
    lapic.regs[0xf1] = 1;
    g.vcpu.set_lapic(&lapic).unwrap();
    g
}

fn backend<R>(g: &Guest, f: impl FnOnce(&mut dyn Vcpu) -> R) -> R {
    g.vcpu.with_backend(|v| f(v))
}

fn report(g: &Guest, enabled: u32) {
    let mut ctl = kvm_tpr_access_ctl { enabled, ..Default::default() };
    backend(g, |v| v.tpr_access_reporting(&mut ctl)).unwrap();
}

fn tpr(g: &Guest) -> u8 {
    g.vcpu.get_lapic().unwrap().regs[0x80] as u8
}

fn run(g: &mut Guest) -> u32 {
    g.vcpu.run().map(drop).unwrap();
    g.vcpu.get_kvm_run().exit_reason
}

/// `rip` and `is_write` of the exit.
#[allow(unsafe_code)]
fn access(g: &mut Guest) -> (u64, u32) {
    // SAFETY: plain integers at this place in the union, whatever was written there.
    let a = unsafe { g.vcpu.get_kvm_run().__bindgen_anon_1.tpr_access };
    (a.rip, a.is_write)
}

#[test]
fn tpr_accesses_are_exits() {
    // mov al, 30h; mov [80h], eax; mov eax, [80h]; mov eax, [20h]; out 10h, al
    let code = [0xb0, 0x30, 0x66, 0xa3, 0x80, 0, 0x66, 0xa1, 0x80, 0, 0x66, 0xa1, 0x20, 0, 0xe6, 0x10];
    let mut g = with_apic(&code);
    report(&g, 1);
    assert_eq!((run(&mut g), access(&mut g)), (KVM_EXIT_TPR_ACCESS, (0x1002, 1)));
    // The access is made, and the instruction over.
    assert_eq!((g.vcpu.get_regs().unwrap().rip, tpr(&g)), (0x1006, 0x30));
    assert_eq!((run(&mut g), access(&mut g)), (KVM_EXIT_TPR_ACCESS, (0x1006, 0)));
    assert_eq!(g.vcpu.get_regs().unwrap().rax as u8, 0x30);
    assert_eq!(run(&mut g), KVM_EXIT_IO);
    // Switched off, nothing is told.
    g.vcpu.set_regs(&kvm_regs { rip: 0x1000, rflags: 2, ..Default::default() }).unwrap();
    report(&g, 0);
    assert_eq!(run(&mut g), KVM_EXIT_IO);
    let mut flags = kvm_tpr_access_ctl { enabled: 1, flags: 1, ..Default::default() };
    assert_eq!(backend(&g, |v| v.tpr_access_reporting(&mut flags)), Err(kvm_api::errno::Errno::EINVAL));
}

#[test]
fn the_vapic_page() {
    let set = |g: &Guest, address| backend(g, |v| v.set_vapic_addr(address).map_err(|e| e.0));
    // No local APIC inside; no memory there.
    assert_eq!(set(&Guest::new(&[0xf4]), PAGE), Err(libc::EINVAL));
    // mov byte es:[5000h], 40h; out 10h, al; mov byte [80h], 55h (a doubleword); out 10h, al
    let code = [
        0x26, 0xc6, 0x06, 0x00, 0x50, 0x40, 0xe6, 0x10, 0x66, 0xc7, 0x06, 0x80, 0, 0x55, 0, 0, 0, 0xe6, 0x10,
    ];
    let mut g = with_apic(&code);
    assert_eq!(set(&g, RAM as u64), Err(libc::EINVAL));
    set(&g, PAGE).unwrap();
    // In service 31H, requested 72H; TPR as the APIC has it.
    let mut lapic = g.vcpu.get_lapic().unwrap();
    lapic.regs[0x80] = 0x70;
    lapic.regs[0x112] = 1 << 1;
    lapic.regs[0x232] = 1 << 2;
    g.vcpu.set_lapic(&lapic).unwrap();
    assert_eq!(run(&mut g), KVM_EXIT_IO);
    assert_eq!([g.peek(0x5001), g.peek(0x5002), g.peek(0x5003)], [0x30, 0, 0x72]);
    assert_eq!(tpr(&g), 0x40, "the guest's store");
    // The register itself is written: the page follows.
    assert_eq!(run(&mut g), KVM_EXIT_IO);
    assert_eq!((tpr(&g), g.peek(0x5000)), (0x55, 0x55));
    // Without the page the register is all.
    set(&g, 0).unwrap();
    g.vcpu.set_regs(&kvm_regs { rip: 0x1000, rflags: 2, ..Default::default() }).unwrap();
    assert_eq!(run(&mut g), KVM_EXIT_IO);
    assert_eq!(tpr(&g), 0x55);
}

#[test]
fn xen() {
    // wrmsr; vmcall; out 10h, al
    let mut g = Guest::new(&[0x0f, 0x30, 0x0f, 0x01, 0xc1, 0xe6, 0x10]);
    let config = |g: &Guest, c: kvm_xen_hvm_config| g.vm.backend().xen_hvm_config(&c).map_err(|e| e.0);
    let msr = 0x4000_0000;
    let intercept = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL;
    for bad in [
        kvm_xen_hvm_config { flags: 1 << 31, msr, ..Default::default() },
        kvm_xen_hvm_config { flags: KVM_XEN_HVM_CONFIG_HYPERCALL_MSR, msr, ..Default::default() },
        kvm_xen_hvm_config { flags: intercept, msr, blob_size_64: 1, ..Default::default() },
        kvm_xen_hvm_config { flags: intercept, msr, blob_addr_32: 1, ..Default::default() },
    ] {
        assert_eq!(config(&g, bad), Err(libc::EINVAL), "{bad:?}");
    }
    let registers = kvm_regs {
        rip: 0x1000,
        rsp: 0x8000,
        rflags: 2,
        rax: 0x6000,
        rbx: 7,
        rcx: msr.into(),
        ..Default::default()
    };

    // User space's own page.
    let blob = vec![0x77u8; 4096];
    let address = blob.as_ptr() as u64;
    config(&g, kvm_xen_hvm_config { msr, blob_addr_32: address, blob_size_32: 1, ..Default::default() })
        .unwrap();
    g.vcpu.set_regs(&registers).unwrap();
    assert_eq!(run(&mut g), KVM_EXIT_IO);
    assert_eq!((g.peek(0x6000), g.peek(0x6fff), g.peek(0x7000)), (0x77, 0x77, 0));

    // KVM's page, and the hypercall for user space.
    config(&g, kvm_xen_hvm_config { flags: intercept, msr, ..Default::default() }).unwrap();
    g.vcpu.set_regs(&registers).unwrap();
    assert_eq!(run(&mut g), KVM_EXIT_XEN);
    assert_eq!((g.peek(0x6000), g.peek(0x6021)), (0xb8, 1));
    let mut exit = kvm_xen_exit__bindgen_ty_1__bindgen_ty_1::default();
    hypercall(&mut g, |h| exit = *h);
    assert_eq!((exit.longmode, exit.cpl, exit.input), (0, 0, 0x6000));
    assert_eq!(exit.params[..2], [7, msr.into()]);
    hypercall(&mut g, |h| h.result = 0x1234);
    assert_eq!(run(&mut g), KVM_EXIT_IO);
    assert_eq!(g.vcpu.get_regs().unwrap().rax, 0x1234);
}

#[allow(unsafe_code)]
fn hypercall(g: &mut Guest, f: impl FnOnce(&mut kvm_xen_exit__bindgen_ty_1__bindgen_ty_1)) {
    // SAFETY: plain integers at this place in the union, whatever was written there.
    f(unsafe { &mut g.vcpu.get_kvm_run().__bindgen_anon_1.xen.u.hcall });
}
