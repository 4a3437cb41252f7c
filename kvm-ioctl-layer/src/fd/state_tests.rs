//! The state list against the processor's own fields, and a stopped VM lifted out and set down in another.

use crate::soft::{convert, msr};
use crate::{EngineClock, Kvm, Options, VcpuFd, VmFd};
use kvm_api::backend::Vcpu;
use kvm_api::state::{ELEMENTS, Scope, Snapshot, StateId};
use kvm_api::uapi::*;
use std::sync::Arc;

fn core_vcpu() -> emu_core::Vcpu {
    let vm = emu_core::Vm::new(Arc::new(crate::host::CountedHost::new(0)));
    emu_core::Vcpu::new(&vm, 0, true)
}

/// Every field of the processor is shown by an element, or says why it need not be.
#[test]
fn every_field_has_a_home() {
    let v = core_vcpu();
    let homes = convert::home(&v);
    let shown: Vec<StateId> = homes
        .iter()
        .filter_map(|(_, h)| if let convert::Home::In(id) = h { Some(*id) } else { None })
        .chain(convert::clock(&v.clock).map(|c| c.0))
        .collect();
    for e in ELEMENTS.iter().filter(|e| e.scope == Scope::Vcpu) {
        // The MP state is part of the events there.
        let known = shown.contains(&e.id) || e.id == StateId::MpState;
        assert!(known, "{:?} shows no field of the processor", e.id);
    }
    let unfinished: Vec<_> = homes.iter().filter(|h| h.1 == convert::Home::Unfinished).collect();
    assert_eq!(unfinished.len(), 1, "only the queue of an unfinished exit outlives KVM_RUN: {unfinished:?}");
}

/// Every MSR that is kept can be read by the host, and is listed if it is state.
#[test]
fn every_kept_msr_has_an_index() {
    let mut v = core_vcpu();
    let state = v.msr.clone();
    let listed = msr::indices();
    // KVM lists neither: banks differ from vCPU to vCPU, and the capability is set by an ioctl of its own.
    let unlisted = ["mcg_cap", "mce_banks", "mci_ctl2"];
    for (field, index) in msr::home(&state) {
        assert!(msr::get(&mut v, index).is_some(), "{field}: {index:#x} cannot be read");
        assert!(listed.contains(&index) || unlisted.contains(&field), "{field}: {index:#x} is not listed");
    }
}

#[test]
fn every_listed_msr_reads_and_takes_its_own_value() {
    let mut v = core_vcpu();
    for index in msr::indices() {
        let value = msr::get(&mut v, index);
        assert!(value.is_some(), "{index:#x} does not read");
        assert!(msr::set(&mut v, index, value.unwrap_or(0)), "{index:#x} does not take {value:x?}");
    }
}

fn machine() -> (VmFd, VcpuFd) {
    let options = Options { engine_clock: EngineClock::Counted { seed: 1 }, ..Options::default() };
    let kvm = Kvm::with_options(options).unwrap();
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    vm.create_pit2(kvm_pit_config::default()).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
    (vm, vcpu)
}

fn save(vm: &VmFd, vcpu: &VcpuFd) -> Snapshot {
    vcpu.with_backend(|v| Snapshot::save(&**vm.backend(), &mut [v as &mut dyn Vcpu], &msr::indices()))
        .unwrap()
}

#[test]
fn a_snapshot_sets_down_what_it_lifted() {
    let (vm, vcpu) = machine();
    // Something in every element.
    vcpu.set_regs(&kvm_regs { rax: 1, rip: 0x1234, rflags: 0x202, ..Default::default() }).unwrap();
    let mut s = vcpu.get_sregs().unwrap();
    s.cr2 = 0x77;
    s.ds.base = 0x5000;
    vcpu.set_sregs(&s).unwrap();
    let mut fpu = vcpu.get_fpu().unwrap();
    fpu.xmm[3] = [3; 16];
    vcpu.set_fpu(&fpu).unwrap();
    let mut d = vcpu.get_debug_regs().unwrap();
    d.db[2] = 0x4444;
    vcpu.set_debug_regs(&d).unwrap();
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry(0x176, 0x1000), entry(0xc000_0082, 0x2000)]).unwrap();
    assert_eq!(vcpu.set_msrs(&msrs).unwrap(), 2);
    let mut e = vcpu.get_vcpu_events().unwrap();
    e.nmi.masked = 1;
    e.interrupt.shadow = KVM_X86_SHADOW_INT_STI as u8;
    vcpu.set_vcpu_events(&e).unwrap();
    vm.set_irq_line(9, true).unwrap();
    let mut lapic = vcpu.get_lapic().unwrap();
    lapic.regs[0x80] = 0x20;
    vcpu.set_lapic(&lapic).unwrap();

    let first = save(&vm, &vcpu);
    assert_eq!(first.vcpus[0].len(), ELEMENTS.iter().filter(|e| e.scope == Scope::Vcpu).count());
    assert_eq!(first.vm.len(), ELEMENTS.iter().filter(|e| e.scope == Scope::Vm).count());

    let (vm2, vcpu2) = machine();
    assert!(!first.diff(&save(&vm2, &vcpu2)).is_empty(), "a fresh machine differs");
    vcpu2.with_backend(|v| first.restore(&**vm2.backend(), &mut [v as &mut dyn Vcpu])).unwrap();
    assert_eq!(first.diff(&save(&vm2, &vcpu2)), []);
}
