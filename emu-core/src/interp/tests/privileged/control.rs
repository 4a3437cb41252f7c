//! MOV to and from control registers, CLTS: privilege, each refused combination, and what a write leaves.

use super::Set::*;
use super::Want::*;
use super::*;
use x86_arch::cpuid;

const fn ax(v: u64) -> Set {
    Reg(Gpr::Rax, v)
}
/// What the rig's CR0 is under paging.
const CR0_ON: u64 = 0x8001_0033;
fn cr0(r: &mut Rig) -> u64 {
    r.cpu().cr0.bits()
}
fn cr4(r: &mut Rig) -> u64 {
    r.cpu().cr4.bits()
}
/// The rig's CR4 in IA-32e mode.
const CR4_ON: u64 = 0x5_0620;
const LME: Set = WithEfer(Efer::LME);
const PAE: Set = WithCr4(Cr4::PAE);
const PCIDE: Set = WithCr4(Cr4::PCIDE);

#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    // ---- privilege: 0F 20 reads, 0F 22 writes; ModRM.reg is the control register
    (PE, OUTER, "0F 20 C0", &[Iopl(3)], GP0, "SDM vol. 2B, MOV CR: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 20 D0", &[], GP0, "SDM vol. 2B, MOV CR: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 20 D8", &[], GP0, "SDM vol. 2B, MOV CR: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 20 E0", &[], GP0, "SDM vol. 2B, MOV CR: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 22 C0", &[ax(CR0_ON)], GP0, "SDM vol. 2B, MOV CR: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 22 D0", &[], GP0, "SDM vol. 2B, MOV CR: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 22 D8", &[ax(0x1000)], GP0, "SDM vol. 2B, MOV CR: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 22 E0", &[ax(0x620)], GP0, "SDM vol. 2B, MOV CR: CPL>0; virtual-8086 mode"),
    (LONG, OUTER, "44 0F 20 C0", &[], GP0, "SDM vol. 2B, MOV CR8: CPL>0"),
    (LONG, OUTER, "44 0F 22 C0", &[], GP0, "SDM vol. 2B, MOV CR8: CPL>0"),
    (PE, OUTER, "0F 06", &[WithCr0(Cr0::TS)], GP0, "SDM vol. 2A, CLTS: CPL>0; virtual-8086 mode"),
    (REAL.or(PROTECTED), CPL0, "0F 06", &[WithCr0(Cr0::TS)], Is(|r| cr0(r) & 8 == 0), "SDM vol. 2A, CLTS"),
    (ALL, ANY, "F0 0F 06", &[], UD, "SDM vol. 2A, CLTS: LOCK"),
    // ---- registers that do not exist, at any CPL
    (ALL, ANY, "0F 20 C8", &[], UD, "SDM vol. 2B, MOV CR1"),
    (ALL, ANY, "0F 20 E8", &[], UD, "SDM vol. 2B, MOV CR5"),
    (ALL, ANY, "0F 20 F0", &[], UD, "SDM vol. 2B, MOV CR6"),
    (ALL, ANY, "0F 20 F8", &[], UD, "SDM vol. 2B, MOV CR7"),
    (ALL, ANY, "0F 22 C8", &[], UD, "SDM vol. 2B, MOV CR1"),
    (ALL, ANY, "0F 22 E8", &[], UD, "SDM vol. 2B, MOV CR5"),
    (ALL, ANY, "0F 22 F0", &[], UD, "SDM vol. 2B, MOV CR6"),
    (ALL, ANY, "0F 22 F8", &[], UD, "SDM vol. 2B, MOV CR7"),
    (LONG, ANY, "44 0F 20 C8", &[], UD, "SDM vol. 2B, MOV CR9"),
    (LONG, ANY, "44 0F 22 F8", &[], UD, "SDM vol. 2B, MOV CR15"),
    (ALL, ANY, "F0 0F 20 D0", &[], UD, "SDM vol. 2B, MOV CR: LOCK"),
    (ALL, ANY, "F0 0F 22 D0", &[], UD, "SDM vol. 2B, MOV CR: LOCK"),
    // ---- reads
    (PROTECTED, CPL0, "0F 20 C0", &[ax(!0)], Get(Gpr::Rax, CR0_ON), "SDM vol. 2B, MOV CR"),
    (REAL, CPL0, "0F 20 C0", &[ax(!0)], Get(Gpr::Rax, 0x32), "SDM vol. 2B, MOV CR: 32 bits in every 16-bit mode"),
    (REAL.or(PROTECTED), CPL0, "66 0F 20 C0", &[ax(!0)], Is(|r| r.get(Gpr::Rax) == cr0(r)), "SDM vol. 2B, MOV CR: operand size has no effect"),
    (LONG, CPL0, "48 0F 20 C0", &[ax(!0)], Get(Gpr::Rax, CR0_ON), "SDM vol. 2B, MOV CR: REX.W has no effect"),
    (REAL.or(PROTECTED), CPL0, "0F 20 00", &[ax(!0)], Is(|r| r.get(Gpr::Rax) == cr0(r)), "SDM vol. 2B, MOV CR: mod is ignored"),
    (LONG, CPL0, "0F 20 D0", &[Do(|r| r.cpu().cr2 = 1 << 60)], Get(Gpr::Rax, 1 << 60), "SDM vol. 2B, MOV CR: 64 bits"),
    (LEGACY.or(COMPAT), CPL0, "0F 20 D8", &[ax(!0)], Get(Gpr::Rax, 0x1000), "SDM vol. 2B, MOV CR"),
    (IA32E, CPL0, "0F 20 E0", &[ax(!0)], Get(Gpr::Rax, CR4_ON), "SDM vol. 2B, MOV CR"),
    (LONG, CPL0, "44 0F 20 C0", &[ax(!0), Do(|r| r.cpu().cr8 = 5)], Get(Gpr::Rax, 5), "SDM vol. 2B, MOV CR8"),
    // ---- CR0
    (PROTECTED, CPL0, "0F 22 C0", &[ax(CR0_ON & !1)], GP0, "SDM vol. 2B, MOV CR: PG without PE"),
    (REAL, CPL0, "0F 22 C0", &[ax(0x8000_0032)], GP0, "SDM vol. 2B, MOV CR: PG without PE"),
    (PROTECTED, CPL0, "0F 22 C0", &[ax(CR0_ON | 1 << 29)], GP0, "SDM vol. 2B, MOV CR: NW without CD"),
    (REAL, CPL0, "0F 22 C0", &[ax(0x2000_0032)], GP0, "SDM vol. 2B, MOV CR: NW without CD"),
    (PROTECTED, CPL0, "0F 22 C0", &[ax(CR0_ON | 3 << 29)], Is(|r| cr0(r) == CR0_ON | 3 << 29), "SDM vol. 2B, MOV CR: NW with CD"),
    (PROTECTED, CPL0, "0F 22 C0", &[ax(CR0_ON | 1 << 30)], Is(|r| cr0(r) == CR0_ON | 1 << 30), "SDM vol. 2B, MOV CR: CD alone"),
    (LONG, CPL0, "0F 22 C0", &[ax(CR0_ON | 1 << 32)], GP0, "SDM vol. 2B, MOV CR: CR0[63:32]"),
    (LONG, CPL0, "0F 22 C0", &[ax(CR0_ON | 1 << 63)], GP0, "SDM vol. 2B, MOV CR: CR0[63:32]"),
    (LEGACY.or(COMPAT), CPL0, "0F 22 C0", &[ax(CR0_ON | 1 << 32)], Is(|r| cr0(r) == CR0_ON), "SDM vol. 2B, MOV CR: 32-bit operand"),
    (PROTECTED, CPL0, "0F 22 C0", &[ax(CR0_ON | 0x1ffa_ffc0)], Is(|r| cr0(r) == CR0_ON), "SDM vol. 2B, MOV CR: reserved bits of CR0 are ignored"),
    (PROTECTED, CPL0, "0F 22 C0", &[ax(CR0_ON & !0x10)], Is(|r| cr0(r) == CR0_ON), "SDM vol. 3A, 2.5: ET is 1"),
    (PROTECTED, CPL0, "0F 22 C0", &[ax(CR0_ON & !0x1_0000 | 0x4_000c)], Is(|r| cr0(r) == 0x8004_003f), "SDM vol. 3A, 2.5: AM, TS, EM, WP"),
    (LONG, CPL0, "0F 22 C0", &[ax(0x1_0033)], GP0, "SDM vol. 2B, MOV CR: PG cleared in 64-bit mode"),
    (COMPAT, CPL0, "0F 22 C0", &[ax(0x1_0033)], Is(|r| !r.cpu().long_mode() && r.cpu().efer.contains(Efer::LME)), "SDM vol. 3A, 9.8.5.4: leaving IA-32e mode"),
    (COMPAT, CPL0, "0F 22 C0", &[ax(0x1_0033), PCIDE], GP0, "SDM vol. 2B, MOV CR: PG cleared with CR4.PCIDE"),
    (LEGACY, CPL0, "0F 22 C0", &[ax(0x1_0033)], Is(|r| cr0(r) == 0x1_0033), "SDM vol. 2B, MOV CR: PG cleared"),
    (LEGACY, CPL0, "0F 22 C0", &[ax(0x32)], Is(|r| r.cpu().real_mode()), "SDM vol. 3A, 9.9.2"),
    (REAL, CPL0, "0F 22 C0", &[ax(0x33)], Is(|r| r.cpu().protected()), "SDM vol. 3A, 9.9.1"),
    (REAL, CPL0, "0F 22 C0", &[ax(0x8000_0033)], Is(|r| cr0(r) == 0x8000_0033), "SDM vol. 2B, MOV CR: PE and PG"),
    (REAL, CPL0, "0F 22 C0", &[ax(0x8000_0033), LME], GP0, "SDM vol. 2B, MOV CR: EFER.LME without CR4.PAE"),
    (REAL, CPL0, "0F 22 C0", &[ax(0x8000_0033), LME, PAE], Is(|r| r.cpu().long_mode()), "SDM vol. 3A, 9.8.5: LMA"),
    (REAL, CPL0, "0F 22 C0", &[ax(0x8000_0033), LME, PAE, Do(|r| r.cpu().seg[Seg::Cs as usize].l = true)], GP0, "SDM vol. 2B, MOV CR: CS.L set"),
    (REAL, CPL0, "0F 22 C0", &[ax(0x8000_0033), LME, PAE, Do(|r| r.cpu().seg[Seg::Tr as usize].typ = 3)], GP0, "SDM vol. 2B, MOV CR: TR is a 16-bit TSS"),
    (REAL, CPL0, "0F 22 C0", &[Amd, ax(0x8000_0033), LME, PAE, Do(|r| r.cpu().seg[Seg::Tr as usize].typ = 3)], Is(|r| r.cpu().long_mode()), "APM vol. 2, 14.6.1: no such check"),
    (P32, CPL0, "0F 22 C0", &[ax(CR0_ON | 1 << 30), PAE], GP0, "SDM vol. 3A, 4.4.1: reserved bits of the PDPTEs"),
    (P32, CPL0, "0F 22 C0", &[ax(CR0_ON | 1 << 30), PAE, Cr3(0x9000)], Is(|r| cr0(r) == CR0_ON | 1 << 30), "SDM vol. 3A, 4.4.1"),
    (P32, CPL0, "0F 22 C0", &[ax(CR0_ON | 8), PAE], Is(|r| cr0(r) == CR0_ON | 8), "SDM vol. 3A, 4.4.1: TS loads no PDPTEs"),
    // ---- CR2
    (REAL.or(PROTECTED), CPL0, "0F 22 D0", &[ax(0x1234_5678)], Is(|r| r.cpu().cr2 == 0x1234_5678), "SDM vol. 2B, MOV CR"),
    (LONG, CPL0, "0F 22 D0", &[ax(1 << 63)], Is(|r| r.cpu().cr2 == 1 << 63), "SDM vol. 2B, MOV CR: any value"),
    // ---- CR3
    (LONG, CPL0, "0F 22 D8", &[ax(0x1000 | 1 << 46)], GP0, "SDM vol. 3A, 4.5: bits above MAXPHYADDR"),
    (LONG, CPL0, "0F 22 D8", &[ax(0x1000 | 1 << 63)], GP0, "SDM vol. 2B, MOV CR: bit 63 without PCIDE"),
    (LONG, CPL0, "0F 22 D8", &[ax(0x1000 | 1 << 63), PCIDE], Is(|r| r.cpu().cr3 == 0x1000), "SDM vol. 2B, MOV CR: bit 63 with PCIDE"),
    (LONG, CPL0, "0F 22 D8", &[ax(0x1000 | 1 << 62), PCIDE], GP0, "SDM vol. 3A, 4.5: LAM_U48 is not offered"),
    (LONG, CPL0, "0F 22 D8", &[ax(0x1fff), PCIDE], Is(|r| r.cpu().cr3 == 0x1fff), "SDM vol. 3A, 4.10.1: PCID"),
    (LONG, CPL0, "0F 22 D8", &[ax(0x1018)], Is(|r| r.cpu().cr3 == 0x1018), "SDM vol. 3A, 2.5: PCD, PWT"),
    (P32, CPL0, "0F 22 D8", &[ax(0x8000_1018)], Is(|r| r.cpu().cr3 == 0x8000_1018), "SDM vol. 3A, 2.5"),
    (P32, CPL0, "0F 22 D8", &[ax(0x1000), PAE], GP0, "SDM vol. 3A, 4.4.1: reserved bits of the PDPTEs"),
    (P32, CPL0, "0F 22 D8", &[ax(0x9000), PAE], Is(|r| r.cpu().cr3 == 0x9000), "SDM vol. 3A, 4.4.1"),
    (REAL, CPL0, "0F 22 D8", &[ax(0x9000)], Is(|r| r.cpu().cr3 == 0x9000), "SDM vol. 2B, MOV CR"),
    // ---- CR4
    (REAL.or(PROTECTED), CPL0, "0F 22 E0", &[ax(0x5_0630 | 1 << 15)], GP0, "SDM vol. 3A, 2.5: reserved bit 15"),
    (REAL.or(PROTECTED), CPL0, "0F 22 E0", &[ax(0x5_0630 | 1 << 31)], GP0, "SDM vol. 3A, 2.5: reserved bit 31"),
    (REAL.or(PROTECTED), CPL0, "0F 22 E0", &[ax(0x5_0630 | 1 << 13)], GP0, "SDM vol. 3A, 2.5: VMXE is not offered"),
    (REAL.or(PROTECTED), CPL0, "0F 22 E0", &[ax(0x5_0630 | 1 << 14)], GP0, "SDM vol. 3A, 2.5: SMXE is not offered"),
    (REAL.or(PROTECTED), CPL0, "0F 22 E0", &[ax(0x5_0630 | 1 << 19)], GP0, "SDM vol. 3A, 2.5: KL is not offered"),
    (REAL.or(PROTECTED), CPL0, "0F 22 E0", &[ax(0x5_0630 | 1 << 23)], GP0, "SDM vol. 3A, 2.5: CET is not offered"),
    (REAL.or(PROTECTED), CPL0, "0F 22 E0", &[ax(0x5_0630 | 1 << 24)], GP0, "SDM vol. 3A, 2.5: PKS is not offered"),
    (REAL.or(PROTECTED), CPL0, "0F 22 E0", &[ax(0x5_0630 | 1 << 25)], GP0, "SDM vol. 3A, 2.5: UINTR is not offered"),
    (LONG, CPL0, "0F 22 E0", &[ax(CR4_ON | 1 << 32)], GP0, "SDM vol. 2B, MOV CR: CR4[63:32]"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON & !0x20)], GP0, "SDM vol. 2B, MOV CR: PAE cleared in IA-32e mode"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 1 << 12)], GP0, "SDM vol. 2B, MOV CR: LA57 changed in IA-32e mode"),
    (REAL, CPL0, "0F 22 E0", &[ax(0x1020)], Is(|r| cr4(r) == 0x1020), "SDM vol. 3A, 2.5: LA57 outside IA-32e mode"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 1 << 17)], Is(|r| cr4(r) == CR4_ON | 1 << 17), "SDM vol. 3A, 4.10.1: PCIDE"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 1 << 17), Cr3(0x1001)], GP0, "SDM vol. 2B, MOV CR: PCIDE with CR3[11:0]"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 1 << 17 | 1 << 2), PCIDE, Cr3(0x1001)], Done, "SDM vol. 2B, MOV CR: PCIDE was set before"),
    (REAL.or(LEGACY), CPL0, "0F 22 E0", &[ax(0x5_0630 | 1 << 17)], GP0, "SDM vol. 2B, MOV CR: PCIDE outside IA-32e mode"),
    (P32, CPL0, "0F 22 E0", &[ax(0x5_0630)], GP0, "SDM vol. 3A, 4.4.1: reserved bits of the PDPTEs"),
    (P32, CPL0, "0F 22 E0", &[ax(0x5_0630), Cr3(0x9000)], Is(|r| cr4(r) == 0x5_0630), "SDM vol. 3A, 4.4.1"),
    (P32, CPL0, "0F 22 E0", &[ax(0x5_06a0), PAE], GP0, "SDM vol. 3A, 4.4.1: PGE loads the PDPTEs"),
    (P32, CPL0, "0F 22 E0", &[ax(0x15_0620), PAE], GP0, "SDM vol. 3A, 4.4.1: SMEP loads the PDPTEs"),
    (P32, CPL0, "0F 22 E0", &[ax(0x5_0634), PAE, WithCr4(Cr4::PSE)], Is(|r| cr4(r) == 0x5_0634), "SDM vol. 3A, 4.4.1: TSD loads none"),
    (REAL.or(LONG), CPL0, "0F 22 E0", &[ax(0x75_0fef)], Is(|r| cr4(r) == 0x75_0fef), "SDM vol. 3A, 2.5: all that is offered"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 1), Lacks(cpuid::VME)], GP0, "SDM vol. 3A, 2.5: VME by CPUID"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 2), Lacks(cpuid::VME)], GP0, "SDM vol. 3A, 2.5: PVI by CPUID"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 4), Lacks(cpuid::TSC)], GP0, "SDM vol. 3A, 2.5: TSD by CPUID"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 8), Lacks(cpuid::DE)], GP0, "SDM vol. 3A, 2.5: DE by CPUID"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 1 << 4), Lacks(cpuid::PSE)], GP0, "SDM vol. 3A, 2.5: PSE by CPUID"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 1 << 6), Lacks(cpuid::MCE)], GP0, "SDM vol. 3A, 2.5: MCE by CPUID"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 1 << 7), Lacks(cpuid::PGE)], GP0, "SDM vol. 3A, 2.5: PGE by CPUID"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 1 << 11), Lacks(cpuid::UMIP)], GP0, "SDM vol. 3A, 2.5: UMIP by CPUID"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON), Lacks(cpuid::FSGSBASE)], GP0, "SDM vol. 3A, 2.5: FSGSBASE by CPUID"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 1 << 17), Lacks(cpuid::PCID)], GP0, "SDM vol. 3A, 2.5: PCIDE by CPUID"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON), Lacks(cpuid::XSAVE)], GP0, "SDM vol. 3A, 2.5: OSXSAVE by CPUID"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 1 << 20), Lacks(cpuid::SMEP)], GP0, "SDM vol. 3A, 2.5: SMEP by CPUID"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 1 << 21), Lacks(cpuid::SMAP)], GP0, "SDM vol. 3A, 2.5: SMAP by CPUID"),
    (IA32E, CPL0, "0F 22 E0", &[ax(CR4_ON | 1 << 22), Lacks(cpuid::PKU)], GP0, "SDM vol. 3A, 2.5: PKE by CPUID"),
    (REAL, CPL0, "0F 22 E0", &[ax(0x1000), Lacks(cpuid::LA57)], GP0, "SDM vol. 3A, 2.5: LA57 by CPUID"),
    // ---- CR8
    (LONG, CPL0, "44 0F 22 C0", &[ax(15)], Is(|r| r.cpu().cr8 == 15), "SDM vol. 2B, MOV CR8"),
    (LONG, CPL0, "44 0F 22 C0", &[ax(16)], GP0, "SDM vol. 2B, MOV CR8: reserved bits"),
    (LONG, CPL0, "44 0F 22 C0", &[ax(1 << 63)], GP0, "SDM vol. 2B, MOV CR8: reserved bits"),
];

#[test]
fn table() {
    check(ROWS);
}
