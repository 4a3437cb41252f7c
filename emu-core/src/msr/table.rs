//! The MSR table: a row for each register or range (SDM vol. 4, chapter 2; AMD APM vol. 2, appendix A;
//! KVM msr.txt). Where the manuals leave a choice, it is KVM's.
//!
//! A table; the helpers below it are the checks that several rows share.

use super::{MCE_BANKS, MTRR_FIXED};
use crate::irqchip::lapic::{ApicMode, apic_mode, checked_apic_base};
use crate::mce::{CTL2_CMCI_EN, MCG_CMCI_P};
use crate::vcpu::Vcpu;
use decoder::Vendor;
use std::sync::atomic::Ordering;
use x86_arch::cpuid;
use x86_arch::msr::*;
use x86_arch::{Seg, msr};

/// Which of KVM's lists has the register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum List {
    /// KVM_GET_MSR_INDEX_LIST: state to save and restore.
    Save,
    /// KVM_GET_MSR_INDEX_LIST's second half: emulated, KVM's own.
    Emulated,
    /// KVM_GET_MSR_FEATURE_INDEX_LIST, and saved too.
    Feature,
    /// None.
    None,
}

/// One register, or a range of the same kind.
pub struct Row {
    /// First index.
    pub first: u32,
    /// Last index.
    pub last: u32,
    /// The manual's name.
    pub name: &'static str,
    /// The list that has it.
    pub list: List,
    /// Whether this guest's processor has it.
    pub exists: fn(&Vcpu) -> bool,
    /// Reads: vCPU, index, from the host. `None`: refused.
    pub read: fn(&mut Vcpu, u32, bool) -> Option<u64>,
    /// Writes: vCPU, index, value, from the host. False: refused.
    pub write: fn(&mut Vcpu, u32, u64, bool) -> bool,
}

/// IA32_ARCH_CAPABILITIES as offered: RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO,
/// SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, GDS_NO, RFDS_NO. The guest's privilege levels share no hardware structure
/// that those attacks read across: its page tables are walked by software, and its kernel never runs at the host's CPL 0.
pub const ARCH_CAPABILITIES: u64 =
    1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 26 | 1 << 27;

/// IA32_SPEC_CTRL: the bits that a write may set (IBRS, STIBP, SSBD).
const SPEC_CTRL_BITS: u64 = 7;

fn always(_: &Vcpu) -> bool {
    true
}
fn intel(c: &Vcpu) -> bool {
    c.cpuid.vendor() == Vendor::Intel
}
fn amd(c: &Vcpu) -> bool {
    c.cpuid.vendor() == Vendor::Amd
}
fn never(_: &Vcpu) -> bool {
    false
}

/// A write that is refused.
fn read_only(_: &mut Vcpu, _: u32, _: u64, _: bool) -> bool {
    false
}
/// A write that does nothing.
fn ignored(_: &mut Vcpu, _: u32, _: u64, _: bool) -> bool {
    true
}
/// A register that reads as zero.
fn zero(_: &mut Vcpu, _: u32, _: bool) -> Option<u64> {
    Some(0)
}
/// A register that cannot be read.
fn write_only(_: &mut Vcpu, _: u32, _: bool) -> Option<u64> {
    None
}

macro_rules! has {
    ($($f:ident)|+) => { |c| $(c.cpuid.has(cpuid::$f))||+ };
}
macro_rules! get {
    ($field:ident) => {
        |c, _, _| Some(c.msr.$field)
    };
}
macro_rules! set {
    ($field:ident) => {
        set!($field, |_c, v, _host| Some(v))
    };
    // The closure gives what is stored, or `None` to refuse.
    ($field:ident, $check:expr) => {
        |c, _, v, host| {
            let check: fn(&Vcpu, u64, bool) -> Option<u64> = $check;
            match check(c, v, host) {
                Some(v) => {
                    c.msr.$field = v;
                    true
                }
                None => false,
            }
        }
    };
}
macro_rules! row {
    ($first:expr, $name:literal, $list:ident, $exists:expr, $read:expr, $write:expr) => {
        row!($first, $first, $name, $list, $exists, $read, $write)
    };
    ($first:expr, $last:expr, $name:literal, $list:ident, $exists:expr, $read:expr, $write:expr) => {
        Row {
            first: $first,
            last: $last,
            name: $name,
            list: List::$list,
            exists: $exists,
            read: $read,
            write: $write,
        }
    };
}

fn canonical(c: &Vcpu, v: u64, _: bool) -> Option<u64> {
    c.canonical(v).then_some(v)
}

/// IA32_SYSENTER_ESP and EIP: 32 bits wide on an AMD, canonical on an Intel.
fn sysenter(c: &Vcpu, v: u64, host: bool) -> Option<u64> {
    if host {
        // As KVM: made canonical, and no error.
        let shift = 64 - c.linear_bits();
        return Some(((v << shift).cast_signed() >> shift).cast_unsigned());
    }
    if amd(c) { Some(v & 0xffff_ffff) } else { canonical(c, v, host) }
}

/// Within the allowed bits.
macro_rules! bits {
    ($mask:expr) => {
        |_c, v, _host| (v & !($mask) == 0).then_some(v)
    };
}

/// Host writes anything, the guest nothing.
fn host_only(_: &Vcpu, v: u64, host: bool) -> Option<u64> {
    host.then_some(v)
}

fn memory_types(v: u64, valid: fn(u8) -> bool) -> bool {
    v.to_le_bytes().iter().all(|&t| valid(t))
}
fn pat_type(t: u8) -> bool {
    matches!(t, 0 | 1 | 4 | 5 | 6 | 7)
}
fn mtrr_type(t: u8) -> bool {
    matches!(t, 0 | 1 | 4 | 5 | 6)
}

fn mtrr_variable(c: &mut Vcpu, index: u32, v: u64, _: bool) -> bool {
    let high = if c.cpuid.maxphyaddr() < 64 { !0 << c.cpuid.maxphyaddr() } else { 0 };
    let ok =
        if index & 1 == 0 { mtrr_type(v as u8) && v & (high | 0xf00) == 0 } else { v & (high | 0x7ff) == 0 };
    let slot = c.msr.mtrr_variable.get_mut((index.wrapping_sub(IA32_MTRR_PHYSBASE0)) as usize);
    match slot {
        Some(slot) if ok => {
            *slot = v;
            true
        }
        _ => false,
    }
}

fn fixed_slot(index: u32) -> usize {
    match index {
        IA32_MTRR_FIX64K_00000 => 0,
        IA32_MTRR_FIX16K_80000 => 1,
        IA32_MTRR_FIX16K_A0000 => 2,
        _ => (3 + index.wrapping_sub(IA32_MTRR_FIX4K_C0000) as usize).min(MTRR_FIXED - 1),
    }
}
fn read_fixed(c: &mut Vcpu, index: u32, _: bool) -> Option<u64> {
    c.msr.mtrr_fixed.get(fixed_slot(index)).copied()
}
fn write_fixed(c: &mut Vcpu, index: u32, v: u64, _: bool) -> bool {
    match c.msr.mtrr_fixed.get_mut(fixed_slot(index)) {
        Some(slot) if memory_types(v, mtrr_type) => {
            *slot = v;
            true
        }
        _ => false,
    }
}

/// Bank and register (CTL, STATUS, ADDR, MISC), if the processor has so many banks.
fn bank(c: &Vcpu, index: u32) -> Option<(usize, usize)> {
    let n = index.wrapping_sub(IA32_MC0_CTL) as usize;
    (n / 4 < (c.msr.mcg_cap & 0xff) as usize).then_some((n / 4, n % 4))
}
fn read_bank(c: &mut Vcpu, index: u32, _: bool) -> Option<u64> {
    let (b, r) = bank(c, index)?;
    Some(c.msr.mce_banks.get(b)?[r & 3])
}
fn write_bank(c: &mut Vcpu, index: u32, v: u64, host: bool) -> bool {
    let Some((b, r)) = bank(c, index) else { return false };
    // SDM vol. 3B, 15.3.2: CTL takes all zeros or all ones (AMD's BIOS clears bit 10 or bit 0 of bank 4);
    // STATUS only zero, unless HWCR.McStatusWrEn.
    let ok = match r {
        0 => v == 0 || v | 1 << 10 | 1 == !0,
        1 => host || v == 0 || (amd(c) && c.msr.hwcr >> 18 & 1 != 0),
        _ => true,
    };
    match c.msr.mce_banks.get_mut(b) {
        Some(bank) if ok => {
            bank[r & 3] = v;
            true
        }
        _ => false,
    }
}

/// IA32_MCi_CTL2 exists with MCG_CMCI_P; user space may read and write zero all the same.
fn read_ctl2(c: &mut Vcpu, index: u32, host: bool) -> Option<u64> {
    let n = index.wrapping_sub(IA32_MC0_CTL2) as usize;
    ((host || c.msr.mcg_cap & MCG_CMCI_P != 0) && n < (c.msr.mcg_cap & 0xff) as usize)
        .then(|| c.msr.mci_ctl2.get(n).copied())
        .flatten()
}
fn write_ctl2(c: &mut Vcpu, index: u32, v: u64, host: bool) -> bool {
    /// The threshold.
    const WRITABLE: u64 = CTL2_CMCI_EN | 0x7fff;
    if read_ctl2(c, index, host && v == 0).is_none() || v & !WRITABLE != 0 {
        return false;
    }
    match c.msr.mci_ctl2.get_mut(index.wrapping_sub(IA32_MC0_CTL2) as usize) {
        Some(slot) => {
            *slot = v;
            true
        }
        None => false,
    }
}

fn read_lapic(c: &mut Vcpu, index: u32, _: bool) -> Option<u64> {
    match c.lapic_msr_read(index) {
        Some(r) => r.ok(),
        // The local APIC is user space's.
        None => match index {
            IA32_APIC_BASE => Some(c.msr.apic_base),
            IA32_TSC_DEADLINE => Some(c.msr.tsc_deadline),
            _ => None,
        },
    }
}
fn write_lapic(c: &mut Vcpu, index: u32, v: u64, host: bool) -> bool {
    match c.lapic_msr_write(index, v, host) {
        Some(r) => r.is_ok(),
        None => match index {
            IA32_APIC_BASE => write_apic_base(c, v, host),
            IA32_TSC_DEADLINE => {
                c.msr.tsc_deadline = v;
                true
            }
            _ => false,
        },
    }
}

/// IA32_APIC_BASE where the local APIC is user space's: what is refused is the same.
fn write_apic_base(c: &mut Vcpu, v: u64, host: bool) -> bool {
    let new = checked_apic_base(v, c.cpuid.maxphyaddr(), c.cpuid.has(cpuid::X2APIC));
    let refused = match (apic_mode(c.msr.apic_base), new) {
        (_, None) => true,
        // SDM vol. 3A, 10.12.5: illegal transitions.
        (Some(ApicMode::X2Apic), Some(ApicMode::XApic)) => !host,
        (Some(ApicMode::Disabled), Some(ApicMode::X2Apic)) => !host,
        _ => false,
    };
    if !refused {
        c.msr.apic_base = v;
    }
    !refused
}

fn read_wall_clock(c: &mut Vcpu, _: u32, _: bool) -> Option<u64> {
    Some(c.vm.clock.wall_clock())
}
fn wall_clock(c: &mut Vcpu, _: u32, v: u64, host: bool) -> bool {
    c.kvmclock_write_wall_clock(v, host);
    true
}
fn system_time(c: &mut Vcpu, _: u32, v: u64, host: bool) -> bool {
    c.kvmclock_write_system_time(v, host);
    true
}

fn tsc_aux(c: &Vcpu, v: u64, _: bool) -> Option<u64> {
    // SDM vol. 4: the upper half is reserved; on an AMD it is ignored.
    if amd(c) { Some(v & 0xffff_ffff) } else { (v >> 32 == 0).then_some(v) }
}

fn hwcr(c: &Vcpu, v: u64, _: bool) -> Option<u64> {
    // KVM ignores FFDIS, MONMWAIT_DIS and IGNNE emulation, keeps McStatusWrEn and TscFreqSel, and refuses the rest.
    let v = v & !(1 << 6 | 1 << 8 | 1 << 3);
    let _ = c;
    (v & !(1 << 18 | 1 << 24) == 0).then_some(v)
}

fn base(s: Seg) -> fn(&mut Vcpu, u64) -> bool {
    match s {
        Seg::Fs => |c, v| set_base(c, Seg::Fs, v),
        _ => |c, v| set_base(c, Seg::Gs, v),
    }
}
fn set_base(c: &mut Vcpu, s: Seg, v: u64) -> bool {
    let ok = c.canonical(v);
    if ok {
        c.set_segment_base(s, v);
    }
    ok
}

/// Every register that exists. As in KVM, most that one vendor alone has are there for guests of both: old kernels access
/// them before they look.
pub static ROWS: &[Row] = &[
    row!(0x0, 0x1, "IA32_P5_MC_ADDR, IA32_P5_MC_TYPE", None, has!(MCE), zero, read_only),
    row!(
        IA32_TSC,
        "IA32_TIME_STAMP_COUNTER",
        Save,
        has!(TSC),
        |c, _, _| Some(c.guest_tsc()),
        |c, _, v, host| {
            c.write_tsc(v, host);
            true
        }
    ),
    row!(KVM_WALL_CLOCK, "MSR_KVM_WALL_CLOCK", Emulated, always, read_wall_clock, wall_clock),
    row!(
        KVM_SYSTEM_TIME,
        "MSR_KVM_SYSTEM_TIME",
        Emulated,
        always,
        |c, _, _| Some(c.clock.system_time),
        system_time
    ),
    row!(IA32_PLATFORM_ID, "IA32_PLATFORM_ID", None, always, zero, read_only),
    row!(IA32_APIC_BASE, "IA32_APIC_BASE", Save, always, read_lapic, write_lapic),
    row!(0x2a, "MSR_EBL_CR_POWERON", None, always, zero, read_only),
    // KVM's answer for a Pentium 4 in the frequency field.
    row!(0x2c, "MSR_EBC_FREQUENCY_ID", None, always, |_, _, _| Some(1 << 24), read_only),
    row!(0x34, "MSR_SMI_COUNT", Emulated, always, get!(smi_count), set!(smi_count, host_only)),
    row!(
        IA32_FEATURE_CONTROL,
        "IA32_FEATURE_CONTROL",
        Save,
        intel,
        get!(feature_control),
        set!(feature_control, |c, v, host| {
            // Bit 0 locks it; LMCE (bit 20) exists with MCG_LMCE_P.
            let lmce = (c.msr.mcg_cap >> 27 & 1) << 20;
            let locked = c.msr.feature_control & 1 != 0 && !host;
            (v & !(1 | lmce) == 0 && !locked).then_some(v)
        })
    ),
    row!(
        IA32_TSC_ADJUST,
        "IA32_TSC_ADJUST",
        Save,
        has!(TSC_ADJUST),
        |c, _, _| Some(c.clock.tsc.adjust),
        |c, _, v, host| {
            if host {
                c.clock.tsc.set_adjust(v);
            } else {
                c.clock.tsc.write_adjust(v);
                c.update_kvmclock();
            }
            true
        }
    ),
    row!(
        IA32_SPEC_CTRL,
        "IA32_SPEC_CTRL",
        Save,
        has!(SPEC_CTRL | STIBP | SSBD | AMD_IBRS | AMD_STIBP | AMD_SSBD),
        get!(spec_ctrl),
        set!(spec_ctrl, bits!(SPEC_CTRL_BITS))
    ),
    row!(IA32_PRED_CMD, "IA32_PRED_CMD", None, has!(SPEC_CTRL | AMD_IBPB), write_only, |_, _, v, _| v & !1
        == 0),
    // Microcode updates are not ours to load: the write succeeds and changes nothing.
    row!(IA32_BIOS_UPDT_TRIG, "IA32_BIOS_UPDT_TRIG", None, always, write_only, ignored),
    row!(
        IA32_BIOS_SIGN_ID,
        "IA32_BIOS_SIGN_ID",
        Feature,
        always,
        |c, _, _| Some(match c.msr.bios_sign_id {
            0 if amd(c) => 0x0100_0065,
            0 => 0x1_0000_0000,
            v => v,
        }),
        // Linux writes zero before it asks CPUID and reads the revision back.
        |c, _, v, host| {
            if host {
                c.msr.bios_sign_id = v;
            }
            true
        }
    ),
    row!(
        IA32_SMBASE,
        "IA32_SMBASE",
        Emulated,
        never,
        |c, _, host| host.then_some(c.msr.smbase),
        set!(smbase, host_only)
    ),
    row!(0xc1, 0xc2, "IA32_PMC0, IA32_PMC1", None, always, zero, ignored),
    row!(0xcd, "MSR_FSB_FREQ", None, always, |_, _, _| Some(3), read_only),
    row!(
        MSR_PLATFORM_INFO,
        "MSR_PLATFORM_INFO",
        Emulated,
        always,
        |c, _, host| {
            let shown = host || c.vm.platform_info_readable.load(Ordering::Relaxed);
            shown.then_some(c.msr.platform_info)
        },
        // CPUID faulting that is on cannot be taken away.
        set!(platform_info, |c, v, host| {
            (host && (v >> 31 & 1 != 0 || c.msr.misc_features_enables & 1 == 0)).then_some(v)
        })
    ),
    row!(IA32_MTRRCAP, "IA32_MTRRCAP", None, has!(MTRR), |_, _, _| Some(0x508), read_only),
    row!(
        IA32_ARCH_CAPABILITIES,
        "IA32_ARCH_CAPABILITIES",
        Feature,
        has!(ARCH_CAPABILITIES),
        get!(arch_capabilities),
        set!(arch_capabilities, host_only)
    ),
    row!(IA32_FLUSH_CMD, "IA32_FLUSH_CMD", None, has!(FLUSH_L1D), write_only, |_, _, v, _| v & !1 == 0),
    row!(0x11e, "MSR_BBL_CR_CTL3", None, always, |_, _, _| Some(0xbe70_2111), ignored),
    row!(
        MSR_MISC_FEATURES_ENABLES,
        "MSR_MISC_FEATURES_ENABLES",
        Emulated,
        always,
        get!(misc_features_enables),
        set!(misc_features_enables, |c, v, _| {
            (v & !1 == 0 && (v == 0 || c.msr.platform_info >> 31 & 1 != 0)).then_some(v)
        })
    ),
    row!(IA32_SYSENTER_CS, "IA32_SYSENTER_CS", Save, has!(SEP), get!(sysenter_cs), set!(sysenter_cs)),
    row!(
        IA32_SYSENTER_ESP,
        "IA32_SYSENTER_ESP",
        Save,
        has!(SEP),
        get!(sysenter_esp),
        set!(sysenter_esp, sysenter)
    ),
    row!(
        IA32_SYSENTER_EIP,
        "IA32_SYSENTER_EIP",
        Save,
        has!(SEP),
        get!(sysenter_eip),
        set!(sysenter_eip, sysenter)
    ),
    row!(IA32_MCG_CAP, "IA32_MCG_CAP", None, has!(MCA), get!(mcg_cap), read_only),
    row!(IA32_MCG_STATUS, "IA32_MCG_STATUS", Emulated, has!(MCA), get!(mcg_status), set!(mcg_status)),
    row!(
        IA32_MCG_CTL,
        "IA32_MCG_CTL",
        Emulated,
        has!(MCA),
        |c, _, host| (host || c.msr.mcg_cap >> 8 & 1 != 0).then_some(c.msr.mcg_ctl),
        set!(mcg_ctl, |c, v, host| {
            let exists = c.msr.mcg_cap >> 8 & 1 != 0;
            ((v == 0 || v == !0) && (exists || v == 0 && host)).then_some(v)
        })
    ),
    row!(IA32_PERFEVTSEL0, 0x187, "IA32_PERFEVTSEL0, IA32_PERFEVTSEL1", None, always, zero, ignored),
    // KVM's answer: a fixed ratio.
    row!(IA32_PERF_STATUS, "IA32_PERF_STATUS", None, always, |_, _, _| Some(1000 | 4 << 40), read_only),
    row!(IA32_PERF_CTL, "IA32_PERF_CTL", None, always, zero, read_only),
    row!(
        IA32_MISC_ENABLE,
        "IA32_MISC_ENABLE",
        Emulated,
        always,
        get!(misc_enable),
        set!(misc_enable, |c, v, host| {
            // EMON, BTS and PEBS unavailability are facts.
            const FIXED: u64 = 1 << 7 | 1 << 11 | 1 << 12;
            // Bit 18 is CPUID's MONITOR then, which needs SSE3 beside it.
            let mwait = (v ^ c.msr.misc_enable) >> 18 & 1 != 0
                && !c.vm.choices.has(crate::quirks::Quirks::MISC_ENABLE_NO_MWAIT);
            let possible = !mwait || c.cpuid.has(x86_arch::cpuid::SSE3);
            (possible && (host || (v ^ c.msr.misc_enable) & FIXED == 0)).then_some(v)
        })
    ),
    row!(
        IA32_DEBUGCTL,
        "IA32_DEBUGCTL",
        Save,
        always,
        get!(debugctl),
        // LBR and BTF are kept. See docs/deviations.md.
        set!(debugctl, bits!(3))
    ),
    row!(0x1db, 0x1de, "MSR_LASTBRANCHFROMIP to MSR_LASTINTTOIP", None, always, zero, read_only),
    row!(0x1fc, "MSR_POWER_CTL", Emulated, always, get!(power_ctl), set!(power_ctl)),
    row!(
        IA32_MTRR_PHYSBASE0,
        IA32_MTRR_PHYSMASK7,
        "IA32_MTRR_PHYSBASE0 to IA32_MTRR_PHYSMASK7",
        Save,
        has!(MTRR),
        |c, index, _| c.msr.mtrr_variable.get(index.wrapping_sub(IA32_MTRR_PHYSBASE0) as usize).copied(),
        mtrr_variable
    ),
    row!(IA32_MTRR_FIX64K_00000, "IA32_MTRR_FIX64K_00000", Save, has!(MTRR), read_fixed, write_fixed),
    row!(
        IA32_MTRR_FIX16K_80000,
        IA32_MTRR_FIX16K_A0000,
        "IA32_MTRR_FIX16K_80000, IA32_MTRR_FIX16K_A0000",
        Save,
        has!(MTRR),
        read_fixed,
        write_fixed
    ),
    row!(
        IA32_MTRR_FIX4K_C0000,
        IA32_MTRR_FIX4K_F8000,
        "IA32_MTRR_FIX4K_C0000 to IA32_MTRR_FIX4K_F8000",
        Save,
        has!(MTRR),
        read_fixed,
        write_fixed
    ),
    row!(
        IA32_PAT,
        "IA32_PAT",
        Save,
        has!(PAT),
        get!(pat),
        set!(pat, |_c, v, _host| memory_types(v, pat_type).then_some(v))
    ),
    row!(
        IA32_MC0_CTL2,
        IA32_MC0_CTL2 + MCE_BANKS as u32 - 1,
        "IA32_MC0_CTL2 to IA32_MC31_CTL2",
        None,
        has!(MCA),
        read_ctl2,
        write_ctl2
    ),
    row!(
        IA32_MTRR_DEF_TYPE,
        "IA32_MTRR_DEF_TYPE",
        Save,
        has!(MTRR),
        get!(mtrr_def_type),
        set!(mtrr_def_type, |_c, v, _host| (v & !0xcff == 0 && mtrr_type(v as u8)).then_some(v))
    ),
    // No PMU: zero is all that there is, and all that can be restored.
    row!(IA32_PERF_CAPABILITIES, "IA32_PERF_CAPABILITIES", Feature, never, zero, |_, _, v, host| host
        && v == 0),
    row!(
        IA32_MC0_CTL,
        IA32_MC0_CTL + 4 * MCE_BANKS as u32 - 1,
        "IA32_MC0_CTL to IA32_MC31_MISC",
        None,
        has!(MCA),
        read_bank,
        write_bank
    ),
    row!(
        IA32_MCG_EXT_CTL,
        "IA32_MCG_EXT_CTL",
        Emulated,
        intel,
        // Firmware lets it be used by IA32_FEATURE_CONTROL bit 20 (SDM vol. 3B, 15.3.1.5).
        |c, _, host| (host || c.msr.feature_control >> 20 & 1 != 0).then_some(c.msr.mcg_ext_ctl),
        set!(mcg_ext_ctl, |c, v, host| {
            let there = host || c.msr.feature_control >> 20 & 1 != 0;
            (there && v & !1 == 0).then_some(v)
        })
    ),
    row!(0x606, "MSR_RAPL_POWER_UNIT", None, always, zero, read_only),
    row!(0x611, "MSR_PKG_ENERGY_STATUS", None, always, zero, read_only),
    row!(0x619, "MSR_DRAM_ENERGY_STATUS", None, always, zero, read_only),
    row!(0x639, "MSR_PP0_ENERGY_STATUS", None, always, zero, read_only),
    row!(0x641, "MSR_PP1_ENERGY_STATUS", None, always, zero, read_only),
    // KVM asks no CPUID bit here.
    row!(IA32_TSC_DEADLINE, "IA32_TSC_DEADLINE", Emulated, always, read_lapic, write_lapic),
    row!(X2APIC_FIRST, X2APIC_LAST, "x2APIC registers", None, has!(X2APIC), read_lapic, write_lapic),
    // No supervisor state component is offered.
    row!(IA32_XSS, "IA32_XSS", Save, has!(XSAVES), get!(xss), set!(xss, bits!(0))),
    row!(KVM_WALL_CLOCK_NEW, "MSR_KVM_WALL_CLOCK_NEW", Emulated, always, read_wall_clock, wall_clock),
    row!(
        KVM_SYSTEM_TIME_NEW,
        "MSR_KVM_SYSTEM_TIME_NEW",
        Emulated,
        always,
        |c, _, _| Some(c.clock.system_time),
        system_time
    ),
    row!(KVM_ASYNC_PF_EN, "MSR_KVM_ASYNC_PF_EN", Emulated, always, get!(async_pf_en), |c, _, v, _| c
        .write_async_pf_en(v)),
    row!(KVM_STEAL_TIME, "MSR_KVM_STEAL_TIME", Emulated, always, get!(steal_time), |c, _, v, host| c
        .write_steal_time(v, host)),
    row!(KVM_PV_EOI_EN, "MSR_KVM_PV_EOI_EN", Emulated, always, get!(pv_eoi), |c, _, v, _| c.write_pv_eoi(v)),
    row!(
        KVM_POLL_CONTROL,
        "MSR_KVM_POLL_CONTROL",
        Emulated,
        always,
        get!(poll_control),
        set!(poll_control, bits!(1))
    ),
    row!(KVM_ASYNC_PF_INT, "MSR_KVM_ASYNC_PF_INT", Emulated, always, get!(async_pf_int), |c, _, v, host| c
        .write_async_pf_int(v, host)),
    row!(KVM_ASYNC_PF_ACK, "MSR_KVM_ASYNC_PF_ACK", Emulated, always, zero, ignored),
    // MSR_KVM_MIGRATION_CONTROL is user space's, through its MSR filter (KVM msr.txt): no row.
    row!(IA32_EFER, "IA32_EFER", Save, always, |c, _, _| Some(c.efer.bits()), |c, _, v, host| c
        .write_efer(v, host)),
    row!(IA32_STAR, "IA32_STAR", Save, has!(SYSCALL), get!(star), set!(star)),
    row!(IA32_LSTAR, "IA32_LSTAR", Save, has!(SYSCALL), get!(lstar), set!(lstar, canonical)),
    row!(IA32_CSTAR, "IA32_CSTAR", Save, has!(SYSCALL), get!(cstar), set!(cstar, canonical)),
    row!(
        IA32_FMASK,
        "IA32_FMASK",
        Save,
        has!(SYSCALL),
        get!(fmask),
        set!(fmask, |c, v, _| {
            // The upper half is reserved; an AMD ignores it.
            if amd(c) { Some(v & 0xffff_ffff) } else { (v >> 32 == 0).then_some(v) }
        })
    ),
    row!(
        IA32_FS_BASE,
        "IA32_FS_BASE",
        Save,
        has!(LM),
        |c, _, _| Some(c.segment(Seg::Fs).base),
        |c, _, v, _| base(Seg::Fs)(c, v)
    ),
    row!(
        IA32_GS_BASE,
        "IA32_GS_BASE",
        Save,
        has!(LM),
        |c, _, _| Some(c.segment(Seg::Gs).base),
        |c, _, v, _| base(Seg::Gs)(c, v)
    ),
    row!(
        IA32_KERNEL_GS_BASE,
        "IA32_KERNEL_GS_BASE",
        Save,
        has!(LM),
        get!(kernel_gs_base),
        set!(kernel_gs_base, canonical)
    ),
    row!(IA32_TSC_AUX, "IA32_TSC_AUX", Save, has!(RDTSCP | RDPID), get!(tsc_aux), set!(tsc_aux, tsc_aux)),
    row!(0xc001_0000, 0xc001_0007, "PerfEvtSel0 to PerfCtr3", None, always, zero, ignored),
    row!(AMD_SYSCFG, "SYSCFG", None, always, zero, ignored),
    row!(AMD_HWCR, "HWCR", Save, always, get!(hwcr), set!(hwcr, hwcr)),
    row!(0xc001_001f, "NB_CFG", None, always, zero, ignored),
    row!(0xc001_0020, "PATCH_LOADER", None, always, write_only, ignored),
    row!(0xc001_0055, "INT_PENDING_MSG", None, always, zero, read_only),
    row!(0xc001_0058, "MMIO_CONF_BASE", None, always, zero, |_, _, v, _| v == 0),
    row!(0xc001_0112, 0xc001_0113, "TSEG_ADDR, TSEG_MASK", None, always, zero, read_only),
    row!(AMD_VM_HSAVE_PA, "VM_HSAVE_PA", None, always, zero, ignored),
    row!(
        AMD_OSVW_ID_LENGTH,
        "OSVW_ID_LENGTH",
        Save,
        has!(OSVW),
        get!(osvw_length),
        set!(osvw_length, host_only)
    ),
    row!(AMD_OSVW_STATUS, "OSVW_STATUS", Save, has!(OSVW), get!(osvw_status), set!(osvw_status, host_only)),
    row!(0xc001_1022, "DC_CFG", None, always, zero, ignored),
    row!(0xc001_1023, "TW_CFG", None, always, zero, ignored),
    row!(AMD_DE_CFG, "DE_CFG", Feature, amd, get!(de_cfg), set!(de_cfg, bits!(2))),
    row!(0xc001_102a, "BU_CFG2", None, always, zero, ignored),
    row!(0xc001_102c, "EX_CFG", None, always, zero, ignored),
];

const _: () = assert!(msr::IA32_MTRR_PHYSMASK7 - msr::IA32_MTRR_PHYSBASE0 == 15);
