//! What depends on what came before: CPUID, KVM_RUN, the order of set-up.

use super::Session;
use super::vcpu::{offered_cpuid, set_cpuid};
use kvm_api::nr::*;
use kvm_api::uapi::*;
use kvm_ioctl_layer::user_mem::{OwnMemory, UserMemory};

fn table(rows: &[kvm_cpuid_entry2]) -> Vec<u8> {
    let mut b = (rows.len() as u32).to_le_bytes().to_vec();
    b.extend([0; 4]);
    for r in rows {
        b.extend(kvm_ioctl_layer::user_mem::bytes_of(r));
    }
    b
}

/// KVM_SET_CPUID2 and its older form.
pub fn cpuid(s: &mut Session<'_>) {
    let vm = s.vm();
    let vcpu = s.vcpu(vm, 0);
    for count in [256u32, 257, 1000, u32::MAX] {
        s.put(0, &[0; 16384]);
        s.pass_bytes(&format!("{count} rows"), vcpu, KVM_SET_CPUID2, &count.to_le_bytes());
        s.pass_bytes(&format!("{count} old rows"), vcpu, KVM_SET_CPUID, &count.to_le_bytes());
    }
    s.pass_bytes("no rows", vcpu, KVM_SET_CPUID2, &table(&[]));
    let widths = |eax| kvm_cpuid_entry2 { function: 0x8000_0008, eax, ..Default::default() };
    for eax in [0, 0x3028, 0x3030, 0x3928, 0x2f28, 0x4028, 0x0028, 0xff, 0x30ff, 0x3000] {
        s.pass_bytes(&format!("widths {eax:#x}"), vcpu, KVM_SET_CPUID2, &table(&[widths(eax)]));
    }
    let row = kvm_cpuid_entry2 { function: 1, ecx: u32::MAX, edx: u32::MAX, ..Default::default() };
    s.pass_bytes("every feature", vcpu, KVM_SET_CPUID2, &table(&[row]));
    s.pass_bytes("a row twice", vcpu, KVM_SET_CPUID2, &table(&[row, row]));
    let flags = kvm_cpuid_entry2 { flags: u32::MAX, padding: [7; 3], ..row };
    s.pass_bytes("flags and padding", vcpu, KVM_SET_CPUID2, &table(&[flags]));
    let mut back = table(&[kvm_cpuid_entry2::default(); 4]);
    let at = s.put(4096, &back);
    s.number("back", vcpu, KVM_GET_CPUID2, at);
    back = s.take(4096, back.len());
    s.observe("rows back", i64::from(back[0]));
    let beyond = s.pages.forbidden() - 8;
    s.number("rows that are not there", vcpu, KVM_SET_CPUID2, beyond);
    // A table can be replaced until the vCPU runs; then it can be set again, but not changed.
    set_cpuid(s, vcpu);
    s.run_at_once("run", vcpu);
    s.pass_bytes("another after a run that executed nothing", vcpu, KVM_SET_CPUID2, &table(&[row]));
    set_cpuid(s, vcpu);
}

/// Descriptors in each other's place and order.
pub fn order(s: &mut Session<'_>) {
    let vm = s.vm();
    let vcpu = s.vcpu(vm, 0);
    // The VM's descriptor goes; the vCPU keeps it.
    s.close(vm);
    s.number("registers without the VM's descriptor", vcpu, KVM_GET_TSC_KHZ, 1 << 40);
    let mut r = kvm_regs::default();
    s.fill("regs", vcpu, KVM_GET_REGS, &mut r);
    s.number("closed", vm, KVM_CHECK_EXTENSION, 0);
    s.number("minus one", -1, KVM_GET_API_VERSION, 0);

    // An irqchip between two vCPUs.
    let vm = s.vm();
    let first = s.vcpu(vm, 0);
    s.number("late irqchip", vm, KVM_CREATE_IRQCHIP, 0);
    let lapic = kvm_lapic_state::default();
    s.pass("lapic of the first", first, KVM_SET_LAPIC, &lapic);
    let second = s.vcpu(vm, 1);
    let mut m = kvm_mp_state::default();
    s.fill("mp state of the second", second, KVM_GET_MP_STATE, &mut m);
    s.pass(
        "x2apic api after vcpus",
        vm,
        KVM_ENABLE_CAP,
        &kvm_enable_cap { cap: KVM_CAP_X2APIC_API, args: [3, 0, 0, 0], ..Default::default() },
    );
    for cap in [
        KVM_CAP_EXCEPTION_PAYLOAD,
        KVM_CAP_X86_USER_SPACE_MSR,
        KVM_CAP_X86_DISABLE_EXITS,
        KVM_CAP_MAX_VCPU_ID,
        KVM_CAP_DIRTY_LOG_RING,
        KVM_CAP_PMU_CAPABILITY,
        KVM_CAP_VM_COPY_ENC_CONTEXT_FROM,
        KVM_CAP_X86_APIC_BUS_CYCLES_NS,
    ] {
        let e = kvm_enable_cap { cap, args: [1, 0, 0, 0], ..Default::default() };
        s.pass(&format!("capability {cap} after vcpus"), vm, KVM_ENABLE_CAP, &e);
    }
}

/// KVM_RUN: its argument, fields of the page that are checked, state that cannot run.
pub fn run(s: &mut Session<'_>) {
    let vm = s.vm();
    let vcpu = s.vcpu(vm, 0);
    for arg in [1, u64::MAX] {
        s.number(&format!("argument {arg:#x}"), vcpu, KVM_RUN, arg);
    }
    s.number("run of a VM", vm, KVM_RUN, 0);
    s.run_at_once("immediate_exit", vcpu);
    let page = s.run_page(vcpu);
    let field = |offset: usize, value: u64, len: usize| {
        OwnMemory.write(page + offset as u64, &value.to_le_bytes()[..len]).expect("the run page is mapped");
    };
    let valid = core::mem::offset_of!(kvm_run, kvm_valid_regs);
    let dirty = core::mem::offset_of!(kvm_run, kvm_dirty_regs);
    for bit in [0, 1, 2, 3, 4, 63] {
        field(valid, 1 << bit, 8);
        s.run_at_once(&format!("valid_regs bit {bit}"), vcpu);
        field(valid, 0, 8);
        field(dirty, 1 << bit, 8);
        s.run_at_once(&format!("dirty_regs bit {bit}"), vcpu);
        field(dirty, 0, 8);
    }
    let cr8 = core::mem::offset_of!(kvm_run, cr8);
    for value in [0, 15, 16, 1 << 63] {
        field(cr8, value, 8);
        s.run_at_once(&format!("cr8 {value:#x}"), vcpu);
    }
    field(cr8, 0, 8);
    let flags = core::mem::offset_of!(kvm_run, flags);
    field(flags, 0xffff, 2);
    s.run_at_once("flags", vcpu);
    for state in 0..10 {
        s.pass(&format!("mp state {state}"), vcpu, KVM_SET_MP_STATE, &kvm_mp_state { mp_state: state });
        s.run_at_once(&format!("with mp state {state}"), vcpu);
    }
    let exit = core::mem::offset_of!(kvm_run, exit_reason);
    let mut reason = [0; 4];
    OwnMemory.read(page + exit as u64, &mut reason).expect("the run page is mapped");
    s.observe("exit reason", i64::from(u32::from_le_bytes(reason)));

    // A program that ends: then CPUID is fixed.
    let vm = s.vm();
    s.memory(vm, 0, 4);
    let vcpu = s.vcpu(vm, 0);
    set_cpuid(s, vcpu);
    s.put(s.pages.len() - 4 * 4096 + 0x100, &[0xf4; 16]);
    let mut sregs: kvm_sregs = s.get(vcpu, KVM_GET_SREGS);
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    s.pass("sregs", vcpu, KVM_SET_SREGS, &sregs);
    s.pass("regs", vcpu, KVM_SET_REGS, &kvm_regs { rip: 0x100, rflags: 2, ..Default::default() });
    s.number("hlt", vcpu, KVM_RUN, 0);
    let page = s.run_page(vcpu);
    OwnMemory.read(page + exit as u64, &mut reason).expect("the run page is mapped");
    s.observe("exit reason", i64::from(u32::from_le_bytes(reason)));
    let row = kvm_cpuid_entry2 { function: 1, ecx: 1, ..Default::default() };
    s.pass_bytes("another CPUID", vcpu, KVM_SET_CPUID2, &table(&[row]));
    s.pass_bytes("another CPUID, old form", vcpu, KVM_SET_CPUID, &table(&[]));
    let at = offered_cpuid(s);
    s.number("the same CPUID", vcpu, KVM_SET_CPUID2, at);
    let list =
        [1u32.to_le_bytes().to_vec(), vec![0; 4], 0x10au32.to_le_bytes().to_vec(), vec![0; 12]].concat();
    s.pass_bytes("a feature msr after a run", vcpu, KVM_SET_MSRS, &list);
    s.number("tsc_khz after a run", vcpu, KVM_SET_TSC_KHZ, 1_000_000);
    let mce: u64 = 1 << 8 | 10;
    s.pass("mce after a run", vcpu, KVM_X86_SETUP_MCE, &mce);
}
