//! x87, MMX, SSE, AVX and the XSAVE family under CR0.EM, TS, MP and NE, CR4.OSFXSR, OSXSAVE and OSXMMEXCPT, XCR0, and
//! mode: #UD and #NM, and which of them wins.

use super::Set::*;
use super::Want::*;
use super::*;
use x86_arch::cpuid;

const EM: Set = WithCr0(Cr0::EM);
const TS: Set = WithCr0(Cr0::TS);
const NO_MP: Set = NoCr0(Cr0::MP);
const NO_FXSR: Set = NoCr4(Cr4::OSFXSR);
const NO_OSXSAVE: Set = NoCr4(Cr4::OSXSAVE);
/// An unmasked invalid-operation exception is pending.
const PENDING: Set = Do(|r| {
    r.cpu().xsave.set_fcw(0x37e);
    r.cpu().xsave.set_fsw(0x8081);
});
const NO_NE: Set = NoCr0(Cr0::NE);
/// The operand is at DATA + 8.
const ASKEW: Set = Do(|r| {
    for g in [Gpr::Rbx, Gpr::Rdi] {
        let v = r.get(g);
        r.set(g, v + 8);
    }
});
const ALL_STATE: Set = Reg(Gpr::Rax, 3);

#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    // ---- x87: FLD1, FNINIT, FNSTSW AX, FLDCW, FNSTENV, FNOP
    (ALL, ANY, "D9 E8", &[], Done, "SDM vol. 2A, FLD1"),
    (ALL, ANY, "D9 E8", &[EM], NM, "SDM vol. 3A, table 9-3: EM"),
    (ALL, ANY, "D9 E8", &[TS], NM, "SDM vol. 3A, table 9-3: TS"),
    (ALL, ANY, "D9 E8", &[TS, NO_MP], NM, "SDM vol. 3A, table 9-3: TS without MP"),
    (ALL, ANY, "D9 E8", &[EM, PENDING], NM, "SDM vol. 3A, table 6-2: #NM before #MF"),
    (ALL, ANY, "D9 E8", &[PENDING], MF, "SDM vol. 2A, FLD1: #MF with NE"),
    (ALL, ANY, "D9 E8", &[NO_FXSR, NO_OSXSAVE, Xcr0Is(1)], Done, "SDM vol. 3A, 2.5: OSFXSR is not about x87"),
    (ALL, ANY, "DB E3", &[PENDING], Done, "SDM vol. 2A, FNINIT: does not wait"),
    (ALL, ANY, "DB E3", &[TS], NM, "SDM vol. 2A, FNINIT: #NM"),
    (ALL, ANY, "DB E3", &[EM], NM, "SDM vol. 2A, FNINIT: #NM"),
    (ALL, ANY, "DB E2", &[PENDING], Done, "SDM vol. 2A, FNCLEX: does not wait"),
    (ALL, ANY, "DB E2", &[TS], NM, "SDM vol. 2A, FNCLEX: #NM"),
    (ALL, ANY, "DF E0", &[PENDING], Is(|r| r.get(Gpr::Rax) == 0x8081), "SDM vol. 2A, FNSTSW: does not wait"),
    (ALL, ANY, "DF E0", &[EM], NM, "SDM vol. 2A, FNSTSW: #NM"),
    (ALL, ANY, "D9 2F", &[PENDING], MF, "SDM vol. 2A, FLDCW: #MF"),
    (ALL, ANY, "D9 2F", &[TS], NM, "SDM vol. 2A, FLDCW: #NM"),
    (ALL, ANY, "D9 3F", &[PENDING], Done, "SDM vol. 2A, FNSTCW: does not wait"),
    (ALL, ANY, "D9 3F", &[EM], NM, "SDM vol. 2A, FNSTCW: #NM"),
    (ALL, ANY, "D9 37", &[PENDING], Done, "SDM vol. 2A, FNSTENV: does not wait"),
    (ALL, ANY, "D9 37", &[TS], NM, "SDM vol. 2A, FNSTENV: #NM"),
    (ALL, ANY, "D9 27", &[PENDING], MF, "SDM vol. 2A, FLDENV: #MF"),
    (ALL, ANY, "D9 27", &[EM], NM, "SDM vol. 2A, FLDENV: #NM"),
    (ALL, ANY, "DD 37", &[TS], NM, "SDM vol. 2A, FNSAVE: #NM"),
    (ALL, ANY, "DD 27", &[TS], NM, "SDM vol. 2A, FRSTOR: #NM"),
    (ALL, ANY, "D9 D0", &[PENDING], MF, "SDM vol. 2A, FNOP: #MF"),
    (ALL, ANY, "F0 D9 E8", &[], UD, "SDM vol. 2A, FLD1: LOCK"),
    (ALL, ANY, "F0 D9 E8", &[EM], UD, "SDM vol. 3A, table 6-2: #UD before #NM"),
    // ---- WAIT
    (ALL, ANY, "9B", &[TS], NM, "SDM vol. 2C, WAIT: MP and TS"),
    (ALL, ANY, "9B", &[TS, NO_MP], Done, "SDM vol. 3A, table 9-3: TS without MP"),
    (ALL, ANY, "9B", &[EM], Done, "SDM vol. 3A, table 9-3: EM is not about WAIT"),
    (ALL, ANY, "9B", &[PENDING], MF, "SDM vol. 2C, WAIT: #MF"),
    (ALL, ANY, "9B", &[PENDING, TS], NM, "SDM vol. 3A, table 6-2: #NM before #MF"),
    (ALL, ANY, "F0 9B", &[], UD, "SDM vol. 2C, WAIT: LOCK"),
    // ---- MMX: PADDB MM0, MM1; MOVQ MM0, [DATA]; EMMS
    (ALL, ANY, "0F FC C1", &[], Done, "SDM vol. 2B, PADDB"),
    (ALL, ANY, "0F FC C1", &[EM], UD, "SDM vol. 3A, table 12-1: EM"),
    (ALL, ANY, "0F FC C1", &[TS], NM, "SDM vol. 3A, table 12-1: TS"),
    (ALL, ANY, "0F FC C1", &[EM, TS], UD, "SDM vol. 3A, table 12-1: EM before TS"),
    (ALL, ANY, "0F FC C1", &[PENDING], MF, "SDM vol. 3A, 12.5: #MF"),
    (ALL, ANY, "0F FC C1", &[TS, PENDING], NM, "SDM vol. 3A, table 6-2: #NM before #MF"),
    (ALL, ANY, "0F FC C1", &[NO_FXSR], Done, "SDM vol. 3A, 2.5: OSFXSR is not about MMX"),
    (ALL, ANY, "0F 6F 07", &[EM], UD, "SDM vol. 2B, MOVQ: EM"),
    (ALL, ANY, "0F 77", &[EM], UD, "SDM vol. 2A, EMMS: EM"),
    (ALL, ANY, "0F 77", &[TS], NM, "SDM vol. 2A, EMMS: TS"),
    (ALL, ANY, "0F 77", &[PENDING], MF, "SDM vol. 2A, EMMS: #MF"),
    (ALL, ANY, "0F FC C1", &[Lacks(cpuid::MMX)], UD, "SDM vol. 2B, PADDB: CPUID"),
    // ---- SSE on MMX registers, and between MMX and XMM
    (ALL, ANY, "0F DA C1", &[NO_FXSR], Done, "SDM vol. 2B, PMINUB: MMX registers alone"),
    (ALL, ANY, "0F DA C1", &[EM], UD, "SDM vol. 2B, PMINUB: EM"),
    (ALL, ANY, "0F 2A C1", &[NO_FXSR], UD, "SDM vol. 2A, CVTPI2PS: OSFXSR"),
    (ALL, ANY, "0F 2A C1", &[EM], UD, "SDM vol. 2A, CVTPI2PS: EM"),
    (ALL, ANY, "0F 2A C1", &[TS], NM, "SDM vol. 2A, CVTPI2PS: TS"),
    (ALL, ANY, "0F 2A C1", &[PENDING], MF, "SDM vol. 2A, CVTPI2PS: #MF"),
    (ALL, ANY, "0F 2D C1", &[NO_FXSR], UD, "SDM vol. 2A, CVTPS2PI: OSFXSR"),
    (ALL, ANY, "66 0F 2D C1", &[NO_FXSR], UD, "SDM vol. 2A, CVTPD2PI: OSFXSR"),
    (ALL, ANY, "F2 0F D6 C1", &[NO_FXSR], UD, "SDM vol. 2B, MOVDQ2Q: OSFXSR"),
    (ALL, ANY, "F3 0F D6 C1", &[NO_FXSR], UD, "SDM vol. 2B, MOVQ2DQ: OSFXSR"),
    (ALL, ANY, "F2 0F D6 C1", &[PENDING], MF, "SDM vol. 2B, MOVDQ2Q: #MF"),
    (ALL, ANY, "F3 0F D6 C1", &[TS], NM, "SDM vol. 2B, MOVQ2DQ: TS"),
    // ---- SSE: ADDPS, MOVAPS, LDMXCSR, STMXCSR
    (ALL, ANY, "0F 58 C1", &[], Done, "SDM vol. 2A, ADDPS"),
    (ALL, ANY, "0F 58 C1", &[EM], UD, "SDM vol. 3A, table 13-1: EM"),
    (ALL, ANY, "0F 58 C1", &[NO_FXSR], UD, "SDM vol. 3A, table 13-1: OSFXSR"),
    (ALL, ANY, "0F 58 C1", &[TS], NM, "SDM vol. 3A, table 13-1: TS"),
    (ALL, ANY, "0F 58 C1", &[TS, EM], UD, "SDM vol. 3A, table 13-1: EM before TS"),
    (ALL, ANY, "0F 58 C1", &[TS, NO_FXSR], UD, "SDM vol. 3A, table 13-1: OSFXSR before TS"),
    (ALL, ANY, "0F 58 C1", &[PENDING], Done, "SDM vol. 2A, ADDPS: no #MF"),
    (ALL, ANY, "0F 58 C1", &[NO_OSXSAVE, Xcr0Is(1)], Done, "SDM vol. 1, 13.2: XCR0 is not about SSE"),
    (ALL, ANY, "0F 28 07", &[ASKEW], GP0, "SDM vol. 2B, MOVAPS: alignment"),
    (ALL, ANY, "0F 28 07", &[ASKEW, TS], NM, "SDM vol. 3A, table 6-2: #NM before the operand's faults"),
    (ALL, ANY, "0F 10 07", &[ASKEW], Done, "SDM vol. 2B, MOVUPS: no alignment"),
    (ALL, ANY, "0F AE 17", &[Mem(&[0x80, 0x1f, 0, 0])], Done, "SDM vol. 2A, LDMXCSR"),
    (ALL, ANY, "0F AE 17", &[Mem(&[0x80, 0x1f, 1, 0])], GP0, "SDM vol. 2A, LDMXCSR: reserved bits"),
    (ALL, ANY, "0F AE 17", &[EM], UD, "SDM vol. 2A, LDMXCSR: EM"),
    (ALL, ANY, "0F AE 17", &[NO_FXSR], UD, "SDM vol. 2A, LDMXCSR: OSFXSR"),
    (ALL, ANY, "0F AE 17", &[TS], NM, "SDM vol. 2A, LDMXCSR: TS"),
    (ALL, ANY, "0F AE 1F", &[NO_FXSR], UD, "SDM vol. 2B, STMXCSR: OSFXSR"),
    (ALL, ANY, "0F AE 1F", &[TS], NM, "SDM vol. 2B, STMXCSR: TS"),
    (ALL, ANY, "F0 0F 58 C1", &[], UD, "SDM vol. 2A, ADDPS: LOCK"),
    // ---- what has no vector register needs none of it
    (ALL, ANY, "0F C3 0F", &[EM, TS, NO_FXSR], Done, "SDM vol. 2B, MOVNTI: no #NM"),
    (ALL, ANY, "0F 18 07", &[EM, TS, NO_FXSR], Done, "SDM vol. 2B, PREFETCHh: no #NM"),
    (ALL, ANY, "F3 0F B8 C1", &[EM, TS, NO_FXSR], Done, "SDM vol. 2B, POPCNT: no #NM"),
    (ALL, ANY, "F2 0F 38 F0 C1", &[EM, TS, NO_FXSR], Done, "SDM vol. 2A, CRC32: no #NM"),
    (ALL, ANY, "0F 38 F0 07", &[EM, TS, NO_FXSR], Done, "SDM vol. 2B, MOVBE: no #NM"),
    (ALL, ANY, "0F 38 F9 0F", &[EM, TS, NO_FXSR], Done, "SDM vol. 2B, MOVDIRI: no #NM"),
    (ALL, ANY, "66 0F 38 F8 07", &[EM, TS, Do(|r| { let b = r.get(Gpr::Rdi); r.set(Gpr::Rax, b) })], Done, "SDM vol. 2B, MOVDIR64B: no #NM"),
    (ALL, ANY, "66 0F 38 F8 07", &[Do(|r| { let b = r.get(Gpr::Rdi) + 8; r.set(Gpr::Rax, b) })], GP0, "SDM vol. 2B, MOVDIR64B: alignment"),
    // ---- FXSAVE, FXRSTOR
    (ALL, ANY, "0F AE 07", &[], Done, "SDM vol. 2A, FXSAVE"),
    (ALL, ANY, "0F AE 07", &[NO_FXSR], Done, "SDM vol. 2A, FXSAVE: OSFXSR=0 is no fault"),
    (ALL, ANY, "0F AE 07", &[EM], NM, "SDM vol. 2A, FXSAVE: EM"),
    (ALL, ANY, "0F AE 07", &[TS], NM, "SDM vol. 2A, FXSAVE: TS"),
    (ALL, ANY, "0F AE 07", &[PENDING], Done, "SDM vol. 2A, FXSAVE: no #MF"),
    (ALL, ANY, "0F AE 07", &[ASKEW], GP0, "SDM vol. 2A, FXSAVE: alignment"),
    (LONG, ANY, "48 0F AE 07", &[TS], NM, "SDM vol. 2A, FXSAVE64: TS"),
    (ALL, ANY, "0F AE 0F", &[], Done, "SDM vol. 2A, FXRSTOR"),
    (ALL, ANY, "0F AE 0F", &[TS], NM, "SDM vol. 2A, FXRSTOR: TS"),
    (ALL, ANY, "0F AE 0F", &[EM], NM, "SDM vol. 2A, FXRSTOR: EM"),
    (ALL, ANY, "0F AE 0F", &[ASKEW], GP0, "SDM vol. 2A, FXRSTOR: alignment"),
    (LONG, ANY, "48 0F AE 0F", &[EM], NM, "SDM vol. 2A, FXRSTOR64: EM"),
    (ALL, ANY, "F0 0F AE 07", &[], UD, "SDM vol. 2A, FXSAVE: LOCK"),
    (ALL, ANY, "F0 0F AE 0F", &[], UD, "SDM vol. 2A, FXRSTOR: LOCK"),
    // ---- XSAVE, XRSTOR, XSAVEOPT, XSAVEC
    (ALL, ANY, "0F AE 27", &[ALL_STATE], Done, "SDM vol. 2C, XSAVE"),
    (ALL, ANY, "0F AE 27", &[NO_OSXSAVE], UD, "SDM vol. 2C, XSAVE: OSXSAVE"),
    (ALL, ANY, "0F AE 27", &[TS], NM, "SDM vol. 2C, XSAVE: TS"),
    (ALL, ANY, "0F AE 27", &[TS, NO_OSXSAVE], UD, "SDM vol. 2C, XSAVE: #UD before #NM"),
    (ALL, ANY, "0F AE 27", &[EM, ALL_STATE], Done, "SDM vol. 2C, XSAVE: EM does not matter"),
    (ALL, ANY, "0F AE 27", &[ASKEW], GP0, "SDM vol. 2C, XSAVE: alignment"),
    (ALL, ANY, "0F AE 27", &[Lacks(cpuid::XSAVE)], UD, "SDM vol. 2C, XSAVE: CPUID"),
    (LONG, ANY, "48 0F AE 27", &[NO_OSXSAVE], UD, "SDM vol. 2C, XSAVE64: OSXSAVE"),
    (ALL, ANY, "0F AE 2F", &[ALL_STATE], Done, "SDM vol. 2C, XRSTOR: an empty header"),
    (ALL, ANY, "0F AE 2F", &[NO_OSXSAVE], UD, "SDM vol. 2C, XRSTOR: OSXSAVE"),
    (ALL, ANY, "0F AE 2F", &[TS], NM, "SDM vol. 2C, XRSTOR: TS"),
    (ALL, ANY, "0F AE 2F", &[ASKEW], GP0, "SDM vol. 2C, XRSTOR: alignment"),
    (LONG, ANY, "48 0F AE 2F", &[TS], NM, "SDM vol. 2C, XRSTOR64: TS"),
    (ALL, ANY, "0F AE 37", &[NO_OSXSAVE], UD, "SDM vol. 2C, XSAVEOPT: OSXSAVE"),
    (ALL, ANY, "0F AE 37", &[TS], NM, "SDM vol. 2C, XSAVEOPT: TS"),
    (ALL, ANY, "0F C7 27", &[NO_OSXSAVE], UD, "SDM vol. 2C, XSAVEC: OSXSAVE"),
    (ALL, ANY, "0F C7 27", &[TS], NM, "SDM vol. 2C, XSAVEC: TS"),
    (ALL, ANY, "F0 0F AE 27", &[], UD, "SDM vol. 2C, XSAVE: LOCK"),
    (ALL, ANY, "F0 0F AE 2F", &[], UD, "SDM vol. 2C, XRSTOR: LOCK"),
    // ---- XSAVES, XRSTORS
    (PE, OUTER, "0F C7 2F", &[Iopl(3)], GP0, "SDM vol. 2C, XSAVES: CPL>0"),
    (PE, OUTER, "0F C7 1F", &[Iopl(3)], GP0, "SDM vol. 2C, XRSTORS: CPL>0"),
    (LONG, OUTER, "48 0F C7 2F", &[], GP0, "SDM vol. 2C, XSAVES64: CPL>0"),
    (LONG, OUTER, "48 0F C7 1F", &[], GP0, "SDM vol. 2C, XRSTORS64: CPL>0"),
    (ALL, ANY, "0F C7 2F", &[NO_OSXSAVE], UD, "SDM vol. 2C, XSAVES: OSXSAVE"),
    (ALL, ANY, "0F C7 1F", &[NO_OSXSAVE], UD, "SDM vol. 2C, XRSTORS: OSXSAVE"),
    (REAL.or(PROTECTED), CPL0, "0F C7 2F", &[TS], NM, "SDM vol. 2C, XSAVES: TS"),
    (REAL.or(PROTECTED), CPL0, "0F C7 1F", &[TS], NM, "SDM vol. 2C, XRSTORS: TS"),
    (ALL, ANY, "0F C7 2F", &[Lacks(cpuid::XSAVES)], UD, "SDM vol. 2C, XSAVES: CPUID"),
    (ALL, ANY, "0F C7 1F", &[Lacks(cpuid::XSAVES)], UD, "SDM vol. 2C, XRSTORS: CPUID"),
    (ALL, ANY, "F0 0F C7 2F", &[], UD, "SDM vol. 2C, XSAVES: LOCK"),
    // ---- AVX: VADDPS XMM, VADDPS YMM, VZEROUPPER, VLDMXCSR
    (PROTECTED, ANY, "C5 F0 58 C2", &[NO_OSXSAVE], UD, "SDM vol. 2A, table 2-20: OSXSAVE"),
    (PROTECTED, ANY, "C5 F0 58 C2", &[Xcr0Is(3)], UD, "SDM vol. 2A, table 2-20: XCR0[2:1]"),
    (PROTECTED, ANY, "C5 F0 58 C2", &[Xcr0Is(1)], UD, "SDM vol. 2A, table 2-20: XCR0[2:1]"),
    (PROTECTED, ANY, "C5 F0 58 C2", &[Xcr0Is(7), TS], NM, "SDM vol. 2A, table 2-20: TS"),
    (PROTECTED, ANY, "C5 F0 58 C2", &[Xcr0Is(3), TS], UD, "SDM vol. 2A, table 2-20: #UD before #NM"),
    (PROTECTED, ANY, "C5 F8 77", &[Xcr0Is(7), EM, NO_FXSR], Done, "SDM vol. 2A, 2.4: EM and OSFXSR do not matter"),
    (PROTECTED, ANY, "C5 F8 77", &[Xcr0Is(3)], UD, "SDM vol. 2C, VZEROUPPER: XCR0[2:1]"),
    (PROTECTED, ANY, "C5 F8 77", &[Xcr0Is(7), TS], NM, "SDM vol. 2C, VZEROUPPER: TS"),
    (PROTECTED, ANY, "C5 F8 AE 17", &[Xcr0Is(3)], UD, "SDM vol. 2A, VLDMXCSR: XCR0[2:1]"),
    (PROTECTED, ANY, "C5 F8 AE 1F", &[Xcr0Is(7), TS], NM, "SDM vol. 2B, VSTMXCSR: TS"),
    (UNPROTECTED, ANY, "C5 F0 58 C2", &[Xcr0Is(7)], UD, "SDM vol. 2A, table 2-20: real and virtual-8086 mode"),
    (UNPROTECTED, ANY, "C5 F8 77", &[Xcr0Is(7)], UD, "SDM vol. 2A, table 2-20: real and virtual-8086 mode"),
    (PROTECTED, ANY, "66 C5 F0 58 C2", &[Xcr0Is(7)], UD, "SDM vol. 2A, 2.3.3: 66H before VEX"),
    (PROTECTED, ANY, "F3 C5 F0 58 C2", &[Xcr0Is(7)], UD, "SDM vol. 2A, 2.3.3: F3H before VEX"),
    (PROTECTED, ANY, "F0 C5 F0 58 C2", &[Xcr0Is(7)], UD, "SDM vol. 2A, 2.3.2: LOCK before VEX"),
    (LONG, ANY, "48 C5 F0 58 C2", &[Xcr0Is(7)], UD, "SDM vol. 2A, 2.3.4: REX before VEX"),
    // ---- VEX on general registers: ANDN ECX, EDX, EAX; BMI2's RORX
    (PROTECTED, ANY, "C4 E2 68 F2 C8", &[NO_OSXSAVE, TS, EM], Done, "SDM vol. 2A, table 2-29: no XCR0, no #NM"),
    (UNPROTECTED, ANY, "C4 E2 68 F2 C8", &[], UD, "SDM vol. 2A, table 2-29: real and virtual-8086 mode"),
    (PROTECTED, ANY, "C4 E3 7B F0 C8 05", &[NO_OSXSAVE, TS], Done, "SDM vol. 2A, table 2-29: no XCR0, no #NM"),
    (UNPROTECTED, ANY, "C4 E3 7B F0 C8 05", &[], UD, "SDM vol. 2A, table 2-29: real and virtual-8086 mode"),
    // ---- opmask: KMOVW K1, ECX; AVX-512: VADDPS ZMM
    (PROTECTED, ANY, "C5 F8 92 C9", &[NO_OSXSAVE], UD, "SDM vol. 2A, table 2-63: OSXSAVE"),
    (PROTECTED, ANY, "C5 F8 92 C9", &[Xcr0Is(7)], UD, "SDM vol. 2A, table 2-63: XCR0[7:5]"),
    (PROTECTED, ANY, "C5 F8 92 C9", &[Xcr0Is(0xe7), TS], NM, "SDM vol. 2A, table 2-63: TS"),
    (UNPROTECTED, ANY, "C5 F8 92 C9", &[Xcr0Is(0xe7)], UD, "SDM vol. 2A, table 2-63: real and virtual-8086 mode"),
    (PROTECTED, ANY, "62 F1 74 48 58 C2", &[NO_OSXSAVE], UD, "SDM vol. 2A, table 2-46: OSXSAVE"),
    (PROTECTED, ANY, "62 F1 74 48 58 C2", &[Xcr0Is(7)], UD, "SDM vol. 2A, table 2-46: XCR0[7:5]"),
    (PROTECTED, ANY, "62 F1 74 48 58 C2", &[Xcr0Is(0x27)], UD, "SDM vol. 2A, table 2-46: XCR0[7:5]"),
    (PROTECTED, ANY, "62 F1 74 48 58 C2", &[Xcr0Is(0xe7), TS], NM, "SDM vol. 2A, table 2-46: TS"),
    (UNPROTECTED, ANY, "62 F1 74 48 58 C2", &[Xcr0Is(0xe7)], UD, "SDM vol. 2A, table 2-46: real and virtual-8086 mode"),
    (PROTECTED, ANY, "66 62 F1 74 48 58 C2", &[Xcr0Is(0xe7)], UD, "SDM vol. 2A, 2.7.11: 66H before EVEX"),
    // ---- #XM or #UD: DIVPS 0/0 unmasked
    (ALL, ANY, "0F 5E C1", &[Do(|r| r.cpu().xsave.set_mxcsr(0x1f00))], Raise(Vector::Xm, 0), "SDM vol. 2A, DIVPS: #XM"),
    (ALL, ANY, "0F 5E C1", &[NoCr4(Cr4::OSXMMEXCPT), Do(|r| r.cpu().xsave.set_mxcsr(0x1f00))], UD, "SDM vol. 2A, DIVPS: OSXMMEXCPT=0"),
    // ---- FERR#: nothing is raised with NE=0
    (ALL, ANY, "D9 E8", &[PENDING, NO_NE], Done, "docs/deviations.md: CR0.NE=0"),
];

#[test]
fn table() {
    check(ROWS);
}
