//! Every row read, written, and written wrongly.

use super::{List, REASON_FILTER, REASON_INVALID, REASON_UNKNOWN, ROWS, find, index_list};
use crate::cpuid::CpuidTable;
use crate::exit::Stop;
use crate::io::Request;
use crate::rig::{Mode, Rig};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use x86_arch::msr::*;
use x86_arch::{Exception, Gpr, Seg};

fn amd(r: &mut Rig) {
    let mut rows = r.cpu().cpuid.entries().to_vec();
    for row in rows.iter_mut().filter(|e| e.leaf == 0) {
        row.result.ebx = u32::from_le_bytes(*b"Auth");
    }
    r.cpu().cpuid = CpuidTable::new(rows);
}

#[test]
fn rows_are_in_order_and_do_not_overlap() {
    for pair in ROWS.windows(2) {
        assert!(pair[0].last < pair[1].first, "{} before {}", pair[0].name, pair[1].name);
    }
    for row in ROWS {
        assert!(row.first <= row.last, "{}", row.name);
        for index in [row.first, row.last] {
            assert_eq!(find(index).map(|r| r.name), Some(row.name));
        }
    }
    assert!(find(2).is_none() && find(u32::MAX).is_none());
}

/// The lists are what a VMM saves: each index in one, and each readable and writable back by the host.
#[test]
fn listed_registers_round_trip() {
    for vendor_amd in [false, true] {
        let mut r = Rig::new(Mode::Long);
        if vendor_amd {
            amd(&mut r);
        }
        let mut seen = BTreeSet::new();
        for list in [List::Save, List::Emulated, List::Feature] {
            for index in index_list(list) {
                assert!(seen.insert(index), "{index:#x} twice");
                let name = find(index).map_or("", |row| row.name);
                let v = r.cpu().read_msr(index, true);
                let v = v.unwrap_or_else(|| panic!("{name} cannot be read by the host"));
                // Without an MCG_CTL or APIC inside, zero is all that can be restored.
                let v = if index == IA32_MCG_CTL { 0 } else { v };
                assert!(r.cpu().write_msr(index, v, true), "{name} = {v:#x}");
            }
        }
        assert!(seen.contains(&IA32_EFER) && seen.contains(&IA32_KERNEL_GS_BASE));
    }
}

/// Index, value, whether the guest's write is taken, what is read then.
const WRITES: &[(u32, u64, bool, u64)] = &[
    (IA32_SYSENTER_CS, 0x1_0008, true, 0x1_0008),
    (IA32_SYSENTER_ESP, 0xffff_8000_0000_0000, true, 0xffff_8000_0000_0000),
    (IA32_SYSENTER_EIP, 1 << 47, false, 0),
    (IA32_STAR, !0, true, !0),
    (IA32_LSTAR, 0xffff_ffff_8000_0000, true, 0xffff_ffff_8000_0000),
    (IA32_LSTAR, 1 << 60, false, 0),
    (IA32_CSTAR, 1 << 60, false, 0),
    (IA32_FMASK, 0x4_7700, true, 0x4_7700),
    (IA32_FMASK, 1 << 32, false, 0),
    (IA32_KERNEL_GS_BASE, 0xffff_8880_0000_0000, true, 0xffff_8880_0000_0000),
    (IA32_KERNEL_GS_BASE, 1 << 47, false, 0),
    (IA32_FS_BASE, 0x7fff_ffff_f000, true, 0x7fff_ffff_f000),
    (IA32_GS_BASE, 1 << 63, false, 0),
    (IA32_TSC_AUX, 0xffff_ffff, true, 0xffff_ffff),
    (IA32_TSC_AUX, 1 << 32, false, 0),
    (IA32_PAT, 0x0007_0106_0007_0406, true, 0x0007_0106_0007_0406),
    (IA32_PAT, 2, false, 0x0007_0406_0007_0406),
    (IA32_PAT, 8 << 56, false, 0x0007_0406_0007_0406),
    (IA32_MTRRCAP, 0, false, 0x508),
    (IA32_MTRR_DEF_TYPE, 0xc06, true, 0xc06),
    (IA32_MTRR_DEF_TYPE, 0xc02, false, 0),
    (IA32_MTRR_DEF_TYPE, 0x1006, false, 0),
    (IA32_MTRR_PHYSBASE0, 0xc000_0006, true, 0xc000_0006),
    (IA32_MTRR_PHYSBASE0, 0xc000_0106, false, 0),
    (IA32_MTRR_PHYSBASE0, 1 << 46, false, 0),
    (IA32_MTRR_PHYSBASE0 + 1, 0x3f_c000_0800, true, 0x3f_c000_0800),
    (IA32_MTRR_PHYSMASK7, 0x400, false, 0),
    (IA32_MTRR_FIX64K_00000, 0x0606_0606_0606_0606, true, 0x0606_0606_0606_0606),
    (IA32_MTRR_FIX16K_A0000, 0x0606_0606_0606_0603, false, 0),
    (IA32_MTRR_FIX4K_F8000, 0x0505_0505_0505_0505, true, 0x0505_0505_0505_0505),
    (IA32_MCG_CAP, 0, false, 32),
    (IA32_MCG_STATUS, 5, true, 5),
    (IA32_MC0_CTL, 0, true, 0),
    (IA32_MC0_CTL, !0, true, !0),
    (IA32_MC0_CTL, 5, false, 0),
    (IA32_MC0_CTL + 1, 0, true, 0),
    (IA32_MC0_CTL + 1, 1, false, 0),
    (IA32_MC0_CTL + 4 * 31 + 2, 0x1234, true, 0x1234),
    (IA32_MISC_ENABLE, 0x1800, true, 0x1800),
    (IA32_MISC_ENABLE, 1, false, 0x1801),
    (MSR_PLATFORM_INFO, 0, false, 1 << 31),
    (MSR_MISC_FEATURES_ENABLES, 1, true, 1),
    (MSR_MISC_FEATURES_ENABLES, 2, false, 0),
    (IA32_ARCH_CAPABILITIES, 0, false, super::table::ARCH_CAPABILITIES),
    (IA32_SPEC_CTRL, 7, true, 7),
    (IA32_SPEC_CTRL, 8, false, 0),
    (IA32_BIOS_SIGN_ID, 0x1234, true, 0x1_0000_0000),
    (IA32_FEATURE_CONTROL, 1, true, 1),
    (IA32_FEATURE_CONTROL, 4, false, 0),
    (IA32_DEBUGCTL, 1, true, 1),
    (IA32_DEBUGCTL, 4, false, 0),
    (IA32_PERF_STATUS, 0, false, 1000 | 4 << 40),
    (IA32_PERFEVTSEL0, 0x1234, true, 0),
    (IA32_XSS, 1, false, 0),
    (KVM_ASYNC_PF_EN, 0x10, false, 0),
    (KVM_STEAL_TIME, 0x1001, true, 0x1001),
    (KVM_STEAL_TIME, 0x1003, false, 0),
    (KVM_PV_EOI_EN, 0x1001, true, 0x1001),
    (KVM_POLL_CONTROL, 0, true, 0),
    (KVM_POLL_CONTROL, 2, false, 1),
    (IA32_TSC_ADJUST, 0x55, true, 0x55),
];

#[test]
fn guest_writes() {
    for &(index, value, taken, after) in WRITES {
        let mut r = Rig::new(Mode::Long);
        let name = find(index).map_or("no row", |row| row.name);
        assert_eq!(r.cpu().write_msr(index, value, false), taken, "{name} = {value:#x}");
        assert_eq!(r.cpu().read_msr(index, false), Some(after), "{name} after {value:#x}");
    }
}

/// The same registers through the instructions, and the registers' effects.
#[test]
fn through_the_instructions() {
    let mut r = Rig::new(Mode::Long);
    let (rdmsr, wrmsr) = ([0x0f, 0x32], [0x0f, 0x30]);
    r.set(Gpr::Rcx, IA32_GS_BASE as u64);
    r.set(Gpr::Rax, 0xffff_ffff_1234_5000);
    r.set(Gpr::Rdx, 0x7fff);
    assert_eq!(r.step(&wrmsr), Ok(()));
    assert_eq!(r.cpu().segment(Seg::Gs).base, 0x7fff_1234_5000);
    assert_eq!(r.cpu().seg_path[Seg::Gs as usize].base, 0x7fff_1234_5000);
    r.set(Gpr::Rax, !0);
    r.set(Gpr::Rdx, !0);
    assert_eq!(r.step(&rdmsr), Ok(()));
    assert_eq!((r.get(Gpr::Rdx), r.get(Gpr::Rax)), (0x7fff, 0x1234_5000));
    r.set(Gpr::Rcx, 0x1234_5678);
    assert_eq!(r.step(&rdmsr), Err(Stop::Exception(Exception::GP0)));
    assert_eq!(r.step(&wrmsr), Err(Stop::Exception(Exception::GP0)));
    assert_eq!((r.get(Gpr::Rdx), r.get(Gpr::Rax)), (0x7fff, 0x1234_5000));
}

#[test]
fn vendors_and_cpuid_decide() {
    let mut r = Rig::new(Mode::Long);
    assert_eq!(r.cpu().read_msr(AMD_DE_CFG, false), None);
    // As in KVM, registers that old kernels access before they look are there for guests of both vendors.
    for index in [AMD_HWCR, AMD_SYSCFG, IA32_PLATFORM_ID, IA32_PERF_STATUS, 0x34, 0x1fc] {
        assert!(r.cpu().read_msr(index, false).is_some(), "{index:#x}");
    }
    amd(&mut r);
    for index in [AMD_HWCR, AMD_SYSCFG, IA32_PLATFORM_ID, IA32_PERF_STATUS, 0x34, 0x1fc] {
        assert!(r.cpu().read_msr(index, false).is_some(), "{index:#x}");
    }
    assert_eq!(r.cpu().read_msr(AMD_HWCR, false), Some(0));
    assert!(r.cpu().write_msr(AMD_HWCR, 1 << 24 | 1 << 3, false));
    assert_eq!(r.cpu().read_msr(AMD_HWCR, false), Some(1 << 24));
    assert!(!r.cpu().write_msr(AMD_HWCR, 1 << 30, false));
    assert_eq!(r.cpu().read_msr(AMD_DE_CFG, false), Some(2));
    assert_eq!(r.cpu().read_msr(IA32_BIOS_SIGN_ID, false), Some(0x0100_0065));
    assert_eq!(r.cpu().read_msr(IA32_FEATURE_CONTROL, false), None);
    // An AMD's SYSENTER registers have 32 bits.
    assert!(r.cpu().write_msr(IA32_SYSENTER_EIP, 0x1234_5678_9abc_def0, false));
    assert_eq!(r.cpu().read_msr(IA32_SYSENTER_EIP, false), Some(0x9abc_def0));
    // What CPUID hides is #GP for the guest, not for the host.
    r.cpu().cpuid = CpuidTable::new(Vec::new());
    for index in [IA32_TSC_AUX, IA32_PAT, IA32_MTRR_DEF_TYPE, IA32_SPEC_CTRL, IA32_STAR, AMD_OSVW_STATUS] {
        assert_eq!(r.cpu().read_msr(index, false), None, "{index:#x}");
        assert!(r.cpu().read_msr(index, true).is_some(), "{index:#x}");
    }
}

#[test]
fn user_space_decides() {
    let mut r = Rig::new(Mode::Long);
    r.set(Gpr::Rcx, 0x1234_5678);
    r.vm.msr_exits.store(REASON_UNKNOWN, Ordering::Relaxed);
    assert_eq!(r.step(&[0x0f, 0x32]), Err(Stop::Need));
    let request = Request::Msr { index: 0x1234_5678, reason: REASON_UNKNOWN };
    assert_eq!(r.cpu().io.request, Some(request));
    r.cpu().io.answer(&0x11_0000_0022u64.to_le_bytes());
    assert_eq!(r.step(&[0x0f, 0x32]), Ok(()));
    assert_eq!((r.get(Gpr::Rdx), r.get(Gpr::Rax)), (0x11, 0x22));
    // A refused write of a register that exists is another reason.
    r.set(Gpr::Rcx, IA32_PAT as u64);
    r.set(Gpr::Rax, 2);
    assert_eq!(r.step(&[0x0f, 0x30]), Err(Stop::Exception(Exception::GP0)));
    r.vm.msr_exits.store(REASON_INVALID, Ordering::Relaxed);
    assert_eq!(r.step(&[0x0f, 0x30]), Err(Stop::Need));
    r.cpu().io.msr_error = true;
    r.cpu().io.answer(&[0; 8]);
    assert_eq!(r.step(&[0x0f, 0x30]), Err(Stop::Exception(Exception::GP0)));
    r.cpu().io.commit();
    // The filter.
    struct NoPat;
    impl super::MsrFilter for NoPat {
        fn allows(&self, index: u32, write: bool) -> bool {
            index != IA32_PAT || write
        }
    }
    *r.vm.msr_filter.write() = Some(Arc::new(NoPat));
    assert_eq!(r.step(&[0x0f, 0x32]), Err(Stop::Exception(Exception::GP0)));
    r.vm.msr_exits.store(REASON_FILTER, Ordering::Relaxed);
    assert_eq!(r.step(&[0x0f, 0x32]), Err(Stop::Need));
}

#[test]
fn kvmclock_is_written() {
    for (time, wall) in [(KVM_SYSTEM_TIME, KVM_WALL_CLOCK), (KVM_SYSTEM_TIME_NEW, KVM_WALL_CLOCK_NEW)] {
        let mut r = Rig::new(Mode::Long);
        assert!(r.cpu().write_msr(time, crate::rig::DATA | 1, false));
        assert_eq!(r.cpu().read_msr(time, false), Some(crate::rig::DATA | 1));
        let version = r.read_u64(crate::rig::DATA) as u32;
        assert!(version != 0 && version & 1 == 0);
        assert!(r.cpu().write_msr(wall, crate::rig::DATA + 0x100, false));
        assert_ne!(r.read_u64(crate::rig::DATA + 0x100), 0);
    }
}
