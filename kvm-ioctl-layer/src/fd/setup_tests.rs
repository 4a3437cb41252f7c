//! What a VMM says before its vCPUs run, and what of it may be said again afterwards.

use super::tests::{Guest, errno};
use crate::{Kvm, VcpuExit, VcpuFd};
use kvm_api::uapi::*;
use kvm_bindings::Msrs;

const IA32_TSC: u32 = 0x10;
const MSR_PLATFORM_INFO: u32 = 0xce;

fn cap(cap: u32, value: u64) -> kvm_enable_cap {
    kvm_enable_cap { cap, args: [value, 0, 0, 0], ..Default::default() }
}

fn set_msr(v: &VcpuFd, index: u32, data: u64) -> usize {
    v.set_msrs(&Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]).unwrap()).unwrap()
}

fn msr(v: &VcpuFd, index: u32) -> u64 {
    let mut list = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).unwrap();
    assert_eq!(v.get_msrs(&mut list).unwrap(), 1);
    list.as_slice()[0].data
}

#[test]
fn the_boot_processors_id() {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    assert_eq!(errno(vm.set_boot_cpu_id(crate::caps::MAX_VCPU_ID + 1)), libc::EINVAL);
    assert_eq!(errno(vm.set_boot_cpu_id(1 << 32)), libc::EINVAL);
    vm.enable_cap(&cap(KVM_CAP_MAX_VCPU_ID, 4)).unwrap();
    assert_eq!(errno(vm.set_boot_cpu_id(5)), libc::EINVAL);
    vm.set_boot_cpu_id(3).unwrap();
    // IA32_APIC_BASE tells, where the local APIC is user space's too.
    for (id, base) in [(0, 0xfee0_0800), (3, 0xfee0_0900), (1, 0xfee0_0800)] {
        assert_eq!(vm.create_vcpu(id).unwrap().get_sregs().unwrap().apic_base, base, "{id}");
    }
}

/// A vCPU that has run keeps its feature MSRs, but for the microcode's revision.
#[test]
fn features_are_fixed_once_run() {
    const IA32_BIOS_SIGN_ID: u32 = 0x8b;
    const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
    let mut g = Guest::new(&[0xf4]);
    assert_eq!(set_msr(&g.vcpu, IA32_ARCH_CAPABILITIES, 1), 1);
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
    assert_eq!(set_msr(&g.vcpu, IA32_ARCH_CAPABILITIES, 1), 1);
    assert_eq!(set_msr(&g.vcpu, IA32_ARCH_CAPABILITIES, 0), 0);
    assert_eq!(set_msr(&g.vcpu, IA32_BIOS_SIGN_ID, 7 << 32), 1);
}

/// vCPUs of a VM with a frequency of its own come out equal, whichever of them was written before the others existed.
#[test]
fn tscs_of_one_vm_agree() {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let host = vm.get_tsc_khz().unwrap();
    vm.set_tsc_khz(host - host / 7).unwrap();
    assert_eq!(vm.get_tsc_khz().unwrap(), host - host / 7);
    let first = vm.create_vcpu(0).unwrap();
    assert_eq!(errno(vm.set_tsc_khz(host)), libc::EINVAL);
    assert_eq!(set_msr(&first, IA32_TSC, 200_000_000), 1);
    let second = vm.create_vcpu(1).unwrap();
    assert_eq!(second.get_tsc_khz().unwrap(), host - host / 7);
    let (a, b, c) = (msr(&first, IA32_TSC), msr(&second, IA32_TSC), msr(&first, IA32_TSC));
    assert!(200_000_000 <= a && a <= b && b <= c, "{a} {b} {c}");
}

/// Before KVM_SET_CPUID2 whatever KVM offers can be set; afterwards what the guest's CPUID has.
#[test]
fn cr4_follows_what_is_offered() {
    const LA57: u64 = 1 << 12;
    const VMXE: u64 = 1 << 13;
    const SMEP: u64 = 1 << 20;
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let bit = |leaf: u32, f: fn(&kvm_cpuid_entry2) -> u32, n: u32| {
        supported.as_slice().iter().any(|e| e.function == leaf && e.index == 0 && f(e) >> n & 1 != 0)
    };
    let with = |bits: u64| {
        let mut s = vcpu.get_sregs().unwrap();
        s.cr4 = bits;
        vcpu.set_sregs(&s).map_err(|e| e.errno())
    };
    assert_eq!(with(0x7ff & !(1 << 5)), Ok(()), "the bits of old");
    assert_eq!(with(SMEP).is_ok(), bit(7, |e| e.ebx, 7));
    assert_eq!(with(LA57).is_ok(), bit(7, |e| e.ecx, 16));
    assert_eq!(with(VMXE), Err(libc::EINVAL));
    let mut poorer = supported.clone();
    for e in poorer.as_mut_slice().iter_mut().filter(|e| e.function == 7 && e.index == 0) {
        e.ebx &= !(1 << 7);
    }
    vcpu.set_cpuid2(&poorer).unwrap();
    assert_eq!(with(SMEP), Err(libc::EINVAL));
    assert_eq!(with(0x7ff & !(1 << 5)), Ok(()));
}

/// KVM_GET_CPUID2 shows what the guest would see, and may be handed back after KVM_RUN.
#[test]
fn cpuid_is_shown_as_the_guest_sees_it() {
    const OSXSAVE: u32 = 1 << 27;
    // mov eax, cr4; or eax, 40000h; mov cr4, eax; hlt
    let code = [0x0f, 0x20, 0xe0, 0x66, 0x0d, 0, 0, 4, 0, 0x0f, 0x22, 0xe0, 0xf4];
    let mut g = Guest::new(&code);
    let supported = Kvm::new().unwrap().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    g.vcpu.set_cpuid2(&supported).unwrap();
    let find = |c: &kvm_bindings::CpuId, leaf: u32| {
        *c.as_slice().iter().find(|e| e.function == leaf && e.index == 0).unwrap()
    };
    let before = g.vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
    assert_eq!(find(&before, 1).ecx & OSXSAVE, 0);
    // XCR0 is 1 at reset: the legacy area and the header.
    assert_eq!(find(&before, 0xd).ebx, 576);
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
    let after = g.vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
    assert_eq!(find(&after, 1).ecx & OSXSAVE, OSXSAVE);
    for same in [&supported, &before, &after] {
        g.vcpu.set_cpuid2(same).unwrap();
    }
    let mut other = after.clone();
    other.as_mut_slice().iter_mut().filter(|e| e.function == 1).for_each(|e| e.edx ^= 1 << 4);
    assert_eq!(errno(g.vcpu.set_cpuid2(&other)), libc::EINVAL);
}

#[test]
fn platform_info_can_be_kept_from_the_guest() {
    // mov ecx, 0CEh; rdmsr; hlt
    let mut g = Guest::new(&[0x66, 0xb9, 0xce, 0, 0, 0, 0x0f, 0x32, 0xf4]);
    // The handler of #GP at 1100h: hlt
    g.poke(13 * 4, &[0, 0x11, 0, 0]);
    g.poke(0x1100, &[0xf4]);
    assert_eq!(set_msr(&g.vcpu, MSR_PLATFORM_INFO, 0xff00 | 1 << 31), 1);
    let fresh = g.vcpu.get_regs().unwrap();
    for (readable, rip) in [(true, 0x1009), (false, 0x1101), (true, 0x1009)] {
        g.vm.enable_cap(&cap(KVM_CAP_MSR_PLATFORM_INFO, u64::from(readable))).unwrap();
        g.vcpu.set_regs(&fresh).unwrap();
        assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
        let r = g.vcpu.get_regs().unwrap();
        assert_eq!((r.rip, r.rax), (rip, if readable { 0x8000_ff00 } else { 0 }));
        assert_eq!(msr(&g.vcpu, MSR_PLATFORM_INFO), 0xff00 | 1 << 31, "the VMM reads it always");
    }
}
