//! SYSCALL, SYSRET, SYSENTER, SYSEXIT by mode, CPL, EFER.SCE and the vendor that CPUID names.

use super::Set::*;
use super::Want::*;
use super::*;
use x86_arch::cpuid;

/// STAR, LSTAR, CSTAR, FMASK and the SYSENTER registers.
const MSRS: Set = Do(|r| {
    let m = &mut r.cpu().msr;
    (m.star, m.lstar, m.cstar, m.fmask) =
        (0x0033_0008_1234_5678, 0xffff_8000_0000_1000, 0xffff_8000_0000_2000, 0x4_7700);
    (m.sysenter_cs, m.sysenter_eip, m.sysenter_esp) = (8, 0x1_2000, 0x3_9000);
});
const NO_CS: Set = Do(|r| r.cpu().msr.sysenter_cs = 3);
const SCE: Set = WithEfer(Efer::SCE);
const NO_SCE: Set = NoEfer(Efer::SCE);
const fn rcx(v: u64) -> Set {
    Reg(Gpr::Rcx, v)
}
const fn rdx(v: u64) -> Set {
    Reg(Gpr::Rdx, v)
}
const fn r11(v: u64) -> Set {
    Reg(Gpr::R11, v)
}
/// RIP, CPL, CS and SS.
fn at(r: &mut Rig) -> (u64, u8, u16, u16) {
    let c = r.cpu();
    (c.rip(), c.cpl, c.segment(Seg::Cs).selector.0, c.segment(Seg::Ss).selector.0)
}
fn sp(r: &mut Rig) -> u64 {
    r.get(Gpr::Rsp)
}

#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    // ---- SYSCALL
    (LONG, ANY, "0F 05", &[MSRS], Is(|r| at(r) == (0xffff_8000_0000_1000, 0, 8, 0x10) && r.cpu().long64()), "SDM vol. 2B, SYSCALL"),
    (LONG, ANY, "0F 05", &[MSRS], Is(|r| r.get(Gpr::Rcx) == CODE + 2), "SDM vol. 2B, SYSCALL: RCX"),
    (LONG, ANY, "0F 05", &[MSRS, Flags(Rflags::CF.union(Rflags::IF).union(Rflags::RF))], Is(|r| r.get(Gpr::R11) == 0x203 && r.flags() == 3), "SDM vol. 2B, SYSCALL: R11, FMASK"),
    (LONG, ANY, "0F 05", &[MSRS, NO_SCE], UD, "SDM vol. 2B, SYSCALL: EFER.SCE=0"),
    (LONG, ANY, "0F 05", &[MSRS, Amd, NO_SCE], UD, "APM vol. 3, SYSCALL: EFER.SCE=0"),
    (LONG, ANY, "0F 05", &[MSRS, Lacks(cpuid::SYSCALL)], UD, "SDM vol. 2B, SYSCALL: CPUID"),
    (NOT64, ANY, "0F 05", &[MSRS, SCE], UD, "SDM vol. 2B, SYSCALL: not in 64-bit mode"),
    (COMPAT, ANY, "0F 05", &[MSRS, Amd], Is(|r| at(r) == (0xffff_8000_0000_2000, 0, 8, 0x10) && r.cpu().long64()), "APM vol. 3, SYSCALL: CSTAR in compatibility mode"),
    (LEGACY, ANY, "0F 05", &[MSRS, Amd, SCE], Is(|r| at(r) == (0x1234_5678, 0, 8, 0x10)), "APM vol. 3, SYSCALL: STAR[31:0] in legacy mode"),
    (LEGACY, ANY, "0F 05", &[MSRS, Amd], UD, "APM vol. 3, SYSCALL: EFER.SCE=0"),
    (ALL, ANY, "F0 0F 05", &[MSRS], UD, "SDM vol. 2B, SYSCALL: LOCK"),
    // ---- SYSRET
    (LONG, CPL0, "48 0F 07", &[MSRS, rcx(0x5000), r11(0x202)], Is(|r| at(r) == (0x5000, 3, 0x43, 0x3b) && r.cpu().long64()), "SDM vol. 2B, SYSRET: 64-bit"),
    (LONG, CPL0, "0F 07", &[MSRS, rcx(0xffff_ffff_0000_5000), r11(0x202)], Is(|r| at(r) == (0x5000, 3, 0x33, 0x3b) && !r.cpu().long64()), "SDM vol. 2B, SYSRET: 32-bit, ECX"),
    (LONG, CPL0, "48 0F 07", &[MSRS, rcx(1), r11(!0)], Is(|r| r.flags() == 0x3c_7fd7), "SDM vol. 2B, SYSRET: RF and VM are clear"),
    (LONG, CPL0, "48 0F 07", &[MSRS, rcx(1 << 47)], GP0, "SDM vol. 2B, SYSRET: RCX not canonical"),
    (LONG, CPL0, "0F 07", &[MSRS, rcx(1 << 47)], Is(|r| at(r).0 == 0), "SDM vol. 2B, SYSRET: 32-bit, ECX"),
    (LONG, CPL0, "48 0F 07", &[MSRS, Amd, rcx(1 << 47)], Is(|r| at(r).0 == 1 << 47 && r.cpu().cpl == 3), "APM vol. 3, SYSRET: the fetch that follows faults"),
    (LONG, OUTER, "48 0F 07", &[MSRS, rcx(0x5000)], GP0, "SDM vol. 2B, SYSRET: CPL>0"),
    (LONG, OUTER, "0F 07", &[MSRS, rcx(0x5000), Iopl(3)], GP0, "SDM vol. 2B, SYSRET: CPL>0"),
    (LONG, ANY, "48 0F 07", &[MSRS, NO_SCE], UD, "SDM vol. 2B, SYSRET: EFER.SCE=0"),
    (NOT64, ANY, "0F 07", &[MSRS, SCE], UD, "SDM vol. 2B, SYSRET: not in 64-bit mode"),
    (COMPAT, CPL0, "0F 07", &[MSRS, Amd, rcx(0x5000), r11(0x202)], Is(|r| at(r) == (0x5000, 3, 0x33, 0x3b)), "APM vol. 3, SYSRET: compatibility mode"),
    (LEGACY, CPL0, "0F 07", &[MSRS, Amd, SCE, rcx(0x5000)], Is(|r| at(r) == (0x5000, 3, 0x33, 0x3b) && r.flags() & 0x200 != 0), "APM vol. 3, SYSRET: legacy mode sets IF"),
    (LEGACY.or(COMPAT), OUTER, "0F 07", &[MSRS, Amd, SCE], GP0, "APM vol. 3, SYSRET: CPL>0"),
    (REAL, CPL0, "0F 07", &[MSRS, Amd, SCE], GP0, "APM vol. 3, SYSRET: real mode"),
    (V86, CPL3, "0F 07", &[MSRS, Amd, SCE], GP0, "APM vol. 3, SYSRET: virtual-8086 mode"),
    (LONG, ANY, "0F 07", &[MSRS, Lacks(cpuid::SYSCALL)], UD, "SDM vol. 2B, SYSRET: CPUID"),
    (ALL, ANY, "F0 0F 07", &[MSRS], UD, "SDM vol. 2B, SYSRET: LOCK"),
    // ---- SYSENTER
    (REAL, CPL0, "0F 34", &[MSRS], GP0, "SDM vol. 2B, SYSENTER: real mode"),
    (V86.or(LEGACY), ANY, "0F 34", &[MSRS, Flags(Rflags::IF)], Is(|r| at(r) == (0x1_2000, 0, 8, 0x10) && sp(r) == 0x3_9000 && r.flags() == 2), "SDM vol. 2B, SYSENTER"),
    (IA32E, ANY, "0F 34", &[MSRS], Is(|r| at(r) == (0x1_2000, 0, 8, 0x10) && r.cpu().long64()), "SDM vol. 2B, SYSENTER: into 64-bit mode"),
    (PE, ANY, "0F 34", &[MSRS, NO_CS], GP0, "SDM vol. 2B, SYSENTER: IA32_SYSENTER_CS[15:2]=0"),
    (PE, ANY, "0F 34", &[], GP0, "SDM vol. 2B, SYSENTER: IA32_SYSENTER_CS[15:2]=0"),
    (IA32E, ANY, "0F 34", &[MSRS, Amd], UD, "APM vol. 3, SYSENTER: not in long mode"),
    (V86.or(LEGACY), ANY, "0F 34", &[MSRS, Amd], Is(|r| at(r) == (0x1_2000, 0, 8, 0x10)), "APM vol. 3, SYSENTER: legacy mode"),
    (ALL, ANY, "0F 34", &[MSRS, Lacks(cpuid::SEP)], UD, "SDM vol. 2B, SYSENTER: CPUID"),
    (ALL, ANY, "F0 0F 34", &[MSRS], UD, "SDM vol. 2B, SYSENTER: LOCK"),
    // ---- SYSEXIT
    (REAL, CPL0, "0F 35", &[MSRS], GP0, "SDM vol. 2B, SYSEXIT: real mode"),
    (V86, CPL3, "0F 35", &[MSRS], GP0, "SDM vol. 2B, SYSEXIT: virtual-8086 mode"),
    (PROTECTED, OUTER, "0F 35", &[MSRS, Iopl(3)], GP0, "SDM vol. 2B, SYSEXIT: CPL>0"),
    (LONG, OUTER, "48 0F 35", &[MSRS], GP0, "SDM vol. 2B, SYSEXIT: CPL>0"),
    (PROTECTED, CPL0, "0F 35", &[MSRS, NO_CS], GP0, "SDM vol. 2B, SYSEXIT: IA32_SYSENTER_CS[15:2]=0"),
    (PROTECTED, CPL0, "0F 35", &[MSRS, rcx(0x3_7000), rdx(0x1_5000)], Is(|r| at(r) == (0x1_5000, 3, 0x1b, 0x23) && sp(r) == 0x3_7000 && !r.cpu().long64()), "SDM vol. 2B, SYSEXIT"),
    (LONG, CPL0, "48 0F 35", &[MSRS, rcx(1 << 46), rdx(1 << 45)], Is(|r| at(r) == (1 << 45, 3, 0x2b, 0x33) && sp(r) == 1 << 46 && r.cpu().long64()), "SDM vol. 2B, SYSEXIT: REX.W"),
    (LONG, CPL0, "48 0F 35", &[MSRS, rcx(0), rdx(1 << 47)], GP0, "SDM vol. 2B, SYSEXIT: RDX not canonical"),
    (LONG, CPL0, "48 0F 35", &[MSRS, rcx(1 << 47), rdx(0)], GP0, "SDM vol. 2B, SYSEXIT: RCX not canonical"),
    (LONG, CPL0, "0F 35", &[MSRS, rcx(1 << 47), rdx(1 << 47)], Is(|r| at(r).0 == 0 && sp(r) == 0), "SDM vol. 2B, SYSEXIT: 32-bit, EDX and ECX"),
    (IA32E, CPL0, "0F 35", &[MSRS, Amd], UD, "APM vol. 3, SYSEXIT: not in long mode"),
    (IA32E, OUTER, "0F 35", &[MSRS, Amd], GP0, "APM vol. 3, SYSEXIT: CPL>0, which a Zen 4 looks at first"),
    (ALL, ANY, "0F 35", &[MSRS, Lacks(cpuid::SEP)], UD, "SDM vol. 2B, SYSEXIT: CPUID"),
    (ALL, ANY, "F0 0F 35", &[MSRS], UD, "SDM vol. 2B, SYSEXIT: LOCK"),
];

#[test]
fn table() {
    check(ROWS);
}
