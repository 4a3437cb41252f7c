//! The flag instructions: CLI, STI, PUSHF, POPF under IOPL, CR4.VME and CR4.PVI; CLAC, STAC; LAHF and SAHF by mode.

use super::Set::*;
use super::Want::*;
use super::*;
use x86_arch::cpuid;

type F = Rflags;
const NONE: F = F::empty();

#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    // ---- CLI
    (REAL, CPL0, "FA", &[Flags(F::IF)], Flag(NONE, F::IF), "SDM vol. 2A, CLI, table 3-7: CR0.PE=0"),
    (REAL, CPL0, "FA", &[Flags(F::IF.union(F::VIF)), WithCr4(Cr4::VME), WithCr4(Cr4::PVI)], Flag(F::VIF, F::IF), "SDM vol. 2A, CLI, table 3-7"),
    (PROTECTED, CPL0, "FA", &[Iopl(0), Flags(F::IF)], Flag(NONE, F::IF), "SDM vol. 2A, CLI, table 3-7: IOPL>=CPL"),
    (PROTECTED, CPL0 | CPL1, "FA", &[Iopl(1), Flags(F::IF)], Flag(F::IOPL0, F::IF), "SDM vol. 2A, CLI, table 3-7: IOPL>=CPL"),
    (PROTECTED, CPL0 | CPL1 | CPL2, "FA", &[Iopl(2), Flags(F::IF)], Flag(F::IOPL1, F::IF), "SDM vol. 2A, CLI, table 3-7: IOPL>=CPL"),
    (PROTECTED, ANY, "FA", &[Iopl(3), Flags(F::IF), WithCr4(Cr4::PVI)], Flag(F::IOPL, F::IF), "SDM vol. 2A, CLI, table 3-7: IOPL>=CPL"),
    (PROTECTED, OUTER, "FA", &[Iopl(0), Flags(F::IF)], GP0, "SDM vol. 2A, CLI, table 3-7: IOPL<CPL, PVI=0"),
    (PROTECTED, CPL2 | CPL3, "FA", &[Iopl(1)], GP0, "SDM vol. 2A, CLI, table 3-7: IOPL<CPL, PVI=0"),
    (PROTECTED, CPL3, "FA", &[Iopl(2)], GP0, "SDM vol. 2A, CLI, table 3-7: IOPL<CPL, PVI=0"),
    (PROTECTED, CPL3, "FA", &[Iopl(0), WithCr4(Cr4::VME)], GP0, "SDM vol. 2A, CLI, table 3-7: VME is not PVI"),
    (PROTECTED, CPL1 | CPL2, "FA", &[Iopl(0), WithCr4(Cr4::PVI)], GP0, "SDM vol. 2A, CLI, table 3-7: PVI needs CPL=3"),
    (PROTECTED, CPL3, "FA", &[Iopl(0), WithCr4(Cr4::PVI), Flags(F::IF.union(F::VIF))], Flag(F::IF, F::VIF), "SDM vol. 2A, CLI, table 3-7: VIF=0"),
    (PROTECTED, CPL3, "FA", &[Iopl(2), WithCr4(Cr4::PVI), Flags(F::IF.union(F::VIF).union(F::VIP))], Flag(F::IF.union(F::VIP), F::VIF), "SDM vol. 2A, CLI, table 3-7: VIF=0"),
    (V86, CPL3, "FA", &[Iopl(3), Flags(F::IF.union(F::VIF)), WithCr4(Cr4::VME)], Flag(F::VIF, F::IF), "SDM vol. 2A, CLI, table 3-7: VM=1, IOPL=3"),
    (V86, CPL3, "FA", &[Iopl(3), Flags(F::IF)], Flag(NONE, F::IF), "SDM vol. 2A, CLI, table 3-7: VM=1, IOPL=3"),
    (V86, CPL3, "FA", &[Iopl(0), Flags(F::IF.union(F::VIF)), WithCr4(Cr4::VME)], Flag(F::IF, F::VIF), "SDM vol. 2A, CLI, table 3-7: VM=1, VME=1"),
    (V86, CPL3, "FA", &[Iopl(2), WithCr4(Cr4::PVI)], GP0, "SDM vol. 2A, CLI, table 3-7: VM=1, VME=0"),
    (V86, CPL3, "FA", &[Iopl(0)], GP0, "SDM vol. 2A, CLI, table 3-7: VM=1, VME=0"),
    (ALL, ANY, "F0 FA", &[Iopl(3)], UD, "SDM vol. 2A, CLI: LOCK"),
    // ---- STI
    (REAL, CPL0, "FB", &[], Flag(F::IF, NONE), "SDM vol. 2B, STI, table 4-19: CR0.PE=0"),
    (REAL, CPL0, "FB", &[Flags(F::VIP), WithCr4(Cr4::VME)], Flag(F::IF, F::VIF), "SDM vol. 2B, STI, table 4-19: CR0.PE=0"),
    (PROTECTED, CPL0, "FB", &[Iopl(0)], Flag(F::IF, NONE), "SDM vol. 2B, STI, table 4-19: IOPL>=CPL"),
    (PROTECTED, CPL0 | CPL1, "FB", &[Iopl(1), Flags(F::VIP)], Flag(F::IF, F::VIF), "SDM vol. 2B, STI, table 4-19: IOPL>=CPL"),
    (PROTECTED, CPL0 | CPL1 | CPL2, "FB", &[Iopl(2)], Flag(F::IF, NONE), "SDM vol. 2B, STI, table 4-19: IOPL>=CPL"),
    (PROTECTED, ANY, "FB", &[Iopl(3), WithCr4(Cr4::PVI), Flags(F::VIP)], Flag(F::IF, F::VIF), "SDM vol. 2B, STI, table 4-19: IOPL>=CPL"),
    (PROTECTED, OUTER, "FB", &[Iopl(0)], GP0, "SDM vol. 2B, STI, table 4-19: PVI=0"),
    (PROTECTED, CPL2 | CPL3, "FB", &[Iopl(1), WithCr4(Cr4::VME)], GP0, "SDM vol. 2B, STI, table 4-19: PVI=0"),
    (PROTECTED, CPL3, "FB", &[Iopl(2)], GP0, "SDM vol. 2B, STI, table 4-19: PVI=0"),
    (PROTECTED, CPL1 | CPL2, "FB", &[Iopl(0), WithCr4(Cr4::PVI)], GP0, "SDM vol. 2B, STI, table 4-19: PVI needs CPL=3"),
    (PROTECTED, CPL3, "FB", &[Iopl(0), WithCr4(Cr4::PVI)], Flag(F::VIF, F::IF), "SDM vol. 2B, STI, table 4-19: VIF=1"),
    (PROTECTED, CPL3, "FB", &[Iopl(2), WithCr4(Cr4::PVI)], Flag(F::VIF, F::IF), "SDM vol. 2B, STI, table 4-19: VIF=1"),
    (PROTECTED, CPL3, "FB", &[Iopl(0), WithCr4(Cr4::PVI), Flags(F::VIP)], GP0, "SDM vol. 2B, STI, table 4-19: VIP=1"),
    (V86, CPL3, "FB", &[Iopl(3), WithCr4(Cr4::VME), Flags(F::VIP)], Flag(F::IF, F::VIF), "SDM vol. 2B, STI, table 4-19: VM=1, IOPL=3"),
    (V86, CPL3, "FB", &[Iopl(0), WithCr4(Cr4::VME)], Flag(F::VIF, F::IF), "SDM vol. 2B, STI, table 4-19: VM=1, VME=1"),
    (V86, CPL3, "FB", &[Iopl(0), WithCr4(Cr4::VME), Flags(F::VIP)], GP0, "SDM vol. 2B, STI, table 4-19: VIP=1"),
    (V86, CPL3, "FB", &[Iopl(2), WithCr4(Cr4::PVI)], GP0, "SDM vol. 2B, STI, table 4-19: VM=1, VME=0"),
    (ALL, ANY, "F0 FB", &[Iopl(3)], UD, "SDM vol. 2B, STI: LOCK"),
    // ---- PUSHF
    (CODE16, ANY, "9C", &[Iopl(3), Flags(F::CF.union(F::IF))], Is(|r| stacked(r, 0, 2) == 0x3203 && sp_moved(r, 2)), "SDM vol. 2B, PUSHF"),
    (CODE16, ANY, "66 9C", &[Iopl(3), Flags(F::CF.union(F::RF).union(F::AC))], Is(|r| stacked(r, 0, 4) == 0x4_3003 && sp_moved(r, 4)), "SDM vol. 2B, PUSHFD: VM and RF are clear in the image"),
    (CODE32, ANY, "9C", &[Flags(F::CF.union(F::RF).union(F::AC).union(F::VIP))], Is(|r| stacked(r, 0, 4) == 0x14_0003 && sp_moved(r, 4)), "SDM vol. 2B, PUSHFD"),
    (CODE32.or(LONG), ANY, "66 9C", &[Flags(F::CF.union(F::ID))], Is(|r| stacked(r, 0, 2) == 3 && sp_moved(r, 2)), "SDM vol. 2B, PUSHF"),
    (LONG, ANY, "9C", &[Flags(F::CF.union(F::RF).union(F::ID))], Is(|r| stacked(r, 0, 8) == 0x20_0003 && sp_moved(r, 8)), "SDM vol. 2B, PUSHFQ"),
    (LONG, ANY, "48 9C", &[Flags(F::CF)], Is(|r| stacked(r, 0, 8) == 3 && sp_moved(r, 8)), "SDM vol. 2B, PUSHFQ"),
    (PROTECTED, CPL3, "9C", &[Iopl(0), WithCr4(Cr4::PVI), Flags(F::VIF)], Is(|r| stacked(r, 0, 2) == 2), "SDM vol. 3B, 20.4: PVI changes CLI and STI alone"),
    (V86, CPL3, "9C", &[Iopl(0)], GP0, "SDM vol. 2B, PUSHF: VM=1, IOPL<3, VME=0"),
    (V86, CPL3, "9C", &[Iopl(2), WithCr4(Cr4::PVI)], GP0, "SDM vol. 2B, PUSHF: VM=1, IOPL<3, VME=0"),
    (V86, CPL3, "66 9C", &[Iopl(2), WithCr4(Cr4::VME)], GP0, "SDM vol. 2B, PUSHF: VM=1, IOPL<3, 32-bit operand"),
    (V86, CPL3, "9C", &[Iopl(0), WithCr4(Cr4::VME), Flags(F::VIF)], Is(|r| stacked(r, 0, 2) == 0x3202), "SDM vol. 2B, PUSHF: VIF for IF, IOPL 3"),
    (V86, CPL3, "9C", &[Iopl(0), WithCr4(Cr4::VME), Flags(F::IF)], Is(|r| stacked(r, 0, 2) == 0x3002), "SDM vol. 2B, PUSHF: VIF for IF, IOPL 3"),
    // ---- POPF
    (REAL, CPL0, "9D", &[Stack(&[0xff, 0x7f])], Flag(F::IF.union(F::IOPL).union(F::NT).union(F::DF).union(F::STATUS), F::VM), "SDM vol. 2B, POPF, table 4-16"),
    (REAL, CPL0, "66 9D", &[Stack(&[0xff, 0x7f, 0x3f, 0])], Flag(F::IF.union(F::IOPL).union(F::AC).union(F::ID), F::VM.union(F::RF).union(F::VIF).union(F::VIP)), "SDM vol. 2B, POPFD, table 4-16"),
    (P16, CPL0, "9D", &[Stack(&[0xff, 0x7f])], Flag(F::IF.union(F::IOPL).union(F::NT), NONE), "SDM vol. 2B, POPF, table 4-16: CPL 0"),
    (CODE32.or(LONG), CPL0, "66 9D", &[Flags(F::AC), Stack(&[0xff, 0x7f])], Flag(F::IF.union(F::IOPL).union(F::NT).union(F::AC), NONE), "SDM vol. 2B, POPF, table 4-16: CPL 0"),
    (CODE32.or(LONG), CPL0, "9D", &[Stack(&[0xff, 0x7f, 0x3f, 0, 0, 0, 0, 0])], Flag(F::IF.union(F::IOPL).union(F::AC).union(F::ID), F::VM.union(F::RF).union(F::VIF).union(F::VIP)), "SDM vol. 2B, POPFD, table 4-16: CPL 0"),
    (CODE32.or(LONG), CPL0, "9D", &[Flags(F::VIF.union(F::VIP).union(F::AC)), Stack(&[2, 0, 0, 0, 0, 0, 0, 0])], Flag(F::VIF.union(F::VIP), F::AC), "SDM vol. 2B, POPFD, table 4-16: VIF and VIP are unaffected"),
    (LONG, CPL0, "48 9D", &[Stack(&[0xff, 0x7f, 0x3f, 0, 0xff, 0xff, 0xff, 0xff])], Flag(F::IF.union(F::IOPL).union(F::AC).union(F::ID), F::VM), "SDM vol. 2B, POPFQ"),
    (PROTECTED, OUTER, "9D", &[Iopl(0), Stack(&[0xff, 0x7f, 0x3f, 0, 0, 0, 0, 0])], Flag(F::NT.union(F::DF).union(F::STATUS), F::IF.union(F::IOPL).union(F::VM)), "SDM vol. 2B, POPF, table 4-16: CPL>IOPL"),
    (PROTECTED, OUTER, "9D", &[Iopl(0), Flags(F::IF), Stack(&[2, 0, 0, 0, 0, 0, 0, 0])], Flag(F::IF, NONE), "SDM vol. 2B, POPF, table 4-16: CPL>IOPL"),
    (PROTECTED, CPL1, "9D", &[Iopl(1), Stack(&[2, 0x32, 0, 0, 0, 0, 0, 0])], Flag(F::IF.union(F::IOPL0), F::IOPL1), "SDM vol. 2B, POPF, table 4-16: 0<CPL<=IOPL"),
    (PROTECTED, CPL1 | CPL2, "9D", &[Iopl(2), Stack(&[2, 0x32, 0, 0, 0, 0, 0, 0])], Flag(F::IF.union(F::IOPL1), F::IOPL0), "SDM vol. 2B, POPF, table 4-16: 0<CPL<=IOPL"),
    (PROTECTED, OUTER, "9D", &[Iopl(3), Flags(F::IF), Stack(&[2, 0, 0, 0, 0, 0, 0, 0])], Flag(F::IOPL, F::IF), "SDM vol. 2B, POPF, table 4-16: 0<CPL<=IOPL"),
    (PROTECTED, CPL3, "9D", &[Iopl(0), WithCr4(Cr4::PVI), Stack(&[2, 2, 0, 0, 0, 0, 0, 0])], Flag(NONE, F::IF.union(F::VIF)), "SDM vol. 3B, 20.4: PVI changes CLI and STI alone"),
    (V86, CPL3, "9D", &[Iopl(3), Stack(&[2, 2])], Flag(F::IF.union(F::IOPL).union(F::VM), NONE), "SDM vol. 2B, POPF, table 4-16: VM=1, IOPL=3"),
    (V86, CPL3, "66 9D", &[Iopl(3), Stack(&[2, 2, 0x3c, 0])], Flag(F::IF.union(F::IOPL).union(F::VM).union(F::AC).union(F::ID), F::VIF.union(F::VIP)), "SDM vol. 2B, POPFD, table 4-16: VM=1, IOPL=3"),
    (V86, CPL3, "9D", &[Iopl(0)], GP0, "SDM vol. 2B, POPF: VM=1, IOPL<3, VME=0"),
    (V86, CPL3, "66 9D", &[Iopl(0), WithCr4(Cr4::VME)], GP0, "SDM vol. 2B, POPFD: VM=1, IOPL<3"),
    (V86, CPL3, "9D", &[Iopl(0), WithCr4(Cr4::VME), Stack(&[2, 0x32])], Flag(F::VIF.union(F::VM), F::IF.union(F::IOPL)), "SDM vol. 2B, POPF: IF becomes VIF"),
    (V86, CPL3, "9D", &[Iopl(0), WithCr4(Cr4::VME), Flags(F::VIF.union(F::IF).union(F::VIP)), Stack(&[2, 0])], Flag(F::IF.union(F::VIP), F::VIF), "SDM vol. 2B, POPF: IF becomes VIF"),
    (V86, CPL3, "9D", &[Iopl(0), WithCr4(Cr4::VME), Flags(F::VIP), Stack(&[2, 2])], GP0, "SDM vol. 2B, POPF: VIP and IF"),
    (V86, CPL3, "9D", &[Iopl(0), WithCr4(Cr4::VME), Stack(&[2, 1])], GP0, "SDM vol. 2B, POPF: TF"),
    // ---- CLAC, STAC
    (ALL, CPL0, "0F 01 CA", &[Flags(F::AC)], Flag(NONE, F::AC), "SDM vol. 2A, CLAC"),
    (ALL, CPL0, "0F 01 CB", &[], Flag(F::AC, NONE), "SDM vol. 2B, STAC"),
    (PE, OUTER, "0F 01 CA", &[Iopl(3)], UD, "SDM vol. 2A, CLAC: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 01 CB", &[Iopl(3)], UD, "SDM vol. 2B, STAC: CPL>0; virtual-8086 mode"),
    (ALL, ANY, "0F 01 CA", &[Lacks(cpuid::SMAP)], UD, "SDM vol. 2A, CLAC: CPUID"),
    (ALL, ANY, "0F 01 CB", &[Lacks(cpuid::SMAP)], UD, "SDM vol. 2B, STAC: CPUID"),
    (ALL, CPL0 | CPL3, "F0 0F 01 CA", &[], UD, "SDM vol. 2A, CLAC: LOCK"),
    (ALL, CPL0 | CPL3, "F0 0F 01 CB", &[], UD, "SDM vol. 2B, STAC: LOCK"),
    (ALL, CPL0, "66 0F 01 CA", &[], UD, "SDM vol. 2A, CLAC: NP, no mandatory prefix"),
    (ALL, CPL0, "F3 0F 01 CB", &[], UD, "SDM vol. 2B, STAC: NP, no mandatory prefix"),
    // ---- LAHF, SAHF
    (ALL, ANY, "9F", &[Flags(F::CF)], Get(Gpr::Rax, 0x300), "SDM vol. 2A, LAHF"),
    (ALL, ANY, "9E", &[Reg(Gpr::Rax, 0x100)], Flag(F::CF, F::ZF), "SDM vol. 2B, SAHF"),
    (LONG, ANY, "9F", &[Lacks(cpuid::LAHF_LM)], UD, "SDM vol. 2A, LAHF: 64-bit mode, CPUID.80000001H:ECX[0]"),
    (LONG, ANY, "9E", &[Lacks(cpuid::LAHF_LM)], UD, "SDM vol. 2B, SAHF: 64-bit mode, CPUID.80000001H:ECX[0]"),
    (NOT64, ANY, "9F", &[Lacks(cpuid::LAHF_LM)], Done, "SDM vol. 2A, LAHF"),
    (NOT64, ANY, "9E", &[Lacks(cpuid::LAHF_LM)], Done, "SDM vol. 2B, SAHF"),
];

/// Whether the stack pointer is this much below where it was at first.
fn sp_moved(rig: &mut Rig, by: u64) -> bool {
    rig.cpu().rsp() & 0xffff == (STACK - by) & 0xffff
}

#[test]
fn table() {
    check(ROWS);
}
