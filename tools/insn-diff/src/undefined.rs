//! What the SDM leaves undefined after an instruction that completes: status flags in RFLAGS, condition codes in the x87
//! status word, and a few results. The tables are all that `compare` may leave out because of that; what cannot agree
//! for another reason is [`crate::exempt`]'s.
//!
//! A row says which bits, when, and where the SDM says so. Rows of one mnemonic add up. A flag that is defined
//! after some operands only (a shift's OF) has a row with a condition on the operands.

use crate::case::Case;
use crate::image;
use crate::operand;
use iced_x86::{Instruction, Mnemonic, OpKind};
use std::collections::HashMap;
use std::sync::LazyLock;

/// RFLAGS.CF.
pub const CF: u64 = 1 << 0;
/// RFLAGS.PF.
pub const PF: u64 = 1 << 2;
/// RFLAGS.AF.
pub const AF: u64 = 1 << 4;
/// RFLAGS.ZF.
pub const ZF: u64 = 1 << 6;
/// RFLAGS.SF.
pub const SF: u64 = 1 << 7;
/// RFLAGS.OF.
pub const OF: u64 = 1 << 11;
/// All six status flags.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// FSW.C0.
pub const C0: u16 = 1 << 8;
/// FSW.C1.
pub const C1: u16 = 1 << 9;
/// FSW.C2.
pub const C2: u16 = 1 << 10;
/// FSW.C3.
pub const C3: u16 = 1 << 14;

/// When a row holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// After each completion.
    Always,
    /// The masked shift or rotate count is not 0.
    CountNotZero,
    /// The masked count is above 1.
    CountAboveOne,
    /// The masked count is the operand's size in bits, or more.
    CountFromSize,
    /// The masked count is above the operand's size in bits.
    CountAboveSize,
    /// ST(0) is finite and not below 2^63 in magnitude: C2 becomes 1.
    OutOfRange,
    /// The source, which is the second operand, is 0.
    SourceZero,
    /// The operand has 16 bits.
    Operand16,
}

/// Undefined bits of RFLAGS.
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    /// Of which instructions.
    pub mnemonics: &'static [Mnemonic],
    /// The bits.
    pub flags: u64,
    /// The condition.
    pub when: When,
    /// Where the SDM says so.
    pub sdm: &'static str,
}

/// Undefined bits of FSW.
#[derive(Clone, Copy, Debug)]
pub struct Codes {
    /// Of which instructions.
    pub mnemonics: &'static [Mnemonic],
    /// The bits.
    pub codes: u16,
    /// The condition.
    pub when: When,
    /// Where the SDM says so.
    pub sdm: &'static str,
}

/// An undefined result: the instruction's first operand, as wide as the operand is.
#[derive(Clone, Copy, Debug)]
pub struct Results {
    /// Of which instructions.
    pub mnemonics: &'static [Mnemonic],
    /// Which bits of a register operand; of a memory operand all are.
    pub bits: u64,
    /// The condition.
    pub when: When,
    /// Where the SDM says so.
    pub sdm: &'static str,
}

use Mnemonic as M;
use When::*;

const fn flags(mnemonics: &'static [Mnemonic], flags: u64, when: When, sdm: &'static str) -> Flags {
    Flags { mnemonics, flags, when, sdm }
}

const fn codes(mnemonics: &'static [Mnemonic], codes: u16, when: When, sdm: &'static str) -> Codes {
    Codes { mnemonics, codes, when, sdm }
}

const fn result(mnemonics: &'static [Mnemonic], bits: u64, when: When, sdm: &'static str) -> Results {
    Results { mnemonics, bits, when, sdm }
}

/// Status flags that the SDM leaves undefined.
#[rustfmt::skip]
pub const FLAGS: &[Flags] = &[
    flags(&[M::Aaa], OF | SF | ZF | PF, Always, "vol. 2A, AAA, Flags Affected"),
    flags(&[M::Aas], OF | SF | ZF | PF, Always, "vol. 2A, AAS, Flags Affected"),
    flags(&[M::Aad], OF | AF | CF, Always, "vol. 2A, AAD, Flags Affected"),
    flags(&[M::Aam], OF | AF | CF, Always, "vol. 2A, AAM, Flags Affected"),
    flags(&[M::Daa], OF, Always, "vol. 2A, DAA, Flags Affected"),
    flags(&[M::Das], OF, Always, "vol. 2A, DAS, Flags Affected"),
    flags(&[M::And], AF, Always, "vol. 2A, AND, Flags Affected"),
    flags(&[M::Or], AF, Always, "vol. 2B, OR, Flags Affected"),
    flags(&[M::Xor], AF, Always, "vol. 2D, XOR, Flags Affected"),
    flags(&[M::Test], AF, Always, "vol. 2B, TEST, Flags Affected"),
    flags(&[M::Andn], AF | PF, Always, "vol. 2A, ANDN, Flags Affected"),
    flags(&[M::Bextr], AF | SF | PF, Always, "vol. 2A, BEXTR, Flags Affected"),
    flags(&[M::Blsi], AF | PF, Always, "vol. 2A, BLSI, Flags Affected"),
    flags(&[M::Blsmsk], AF | PF, Always, "vol. 2A, BLSMSK, Flags Affected"),
    flags(&[M::Blsr], AF | PF, Always, "vol. 2A, BLSR, Flags Affected"),
    flags(&[M::Bzhi], AF | PF, Always, "vol. 2A, BZHI, Flags Affected"),
    flags(&[M::Bsf], CF | OF | SF | AF | PF, Always, "vol. 2A, BSF, Flags Affected"),
    flags(&[M::Bsr], CF | OF | SF | AF | PF, Always, "vol. 2A, BSR, Flags Affected"),
    flags(&[M::Bt], OF | SF | AF | PF, Always, "vol. 2A, BT, Flags Affected"),
    flags(&[M::Btc], OF | SF | AF | PF, Always, "vol. 2A, BTC, Flags Affected"),
    flags(&[M::Btr], OF | SF | AF | PF, Always, "vol. 2A, BTR, Flags Affected"),
    flags(&[M::Bts], OF | SF | AF | PF, Always, "vol. 2A, BTS, Flags Affected"),
    flags(&[M::Lzcnt], OF | SF | PF | AF, Always, "vol. 2A, LZCNT, Flags Affected"),
    flags(&[M::Tzcnt], OF | SF | PF | AF, Always, "vol. 2B, TZCNT, Flags Affected"),
    flags(&[M::Mul], SF | ZF | AF | PF, Always, "vol. 2B, MUL, Flags Affected"),
    flags(&[M::Imul], SF | ZF | AF | PF, Always, "vol. 2A, IMUL, Flags Affected"),
    flags(&[M::Div], STATUS, Always, "vol. 2A, DIV, Flags Affected"),
    flags(&[M::Idiv], STATUS, Always, "vol. 2A, IDIV, Flags Affected"),
    flags(&[M::Rol, M::Ror, M::Rcl, M::Rcr], OF, CountAboveOne, "vol. 2B, RCL/RCR/ROL/ROR, Flags Affected"),
    flags(&[M::Shl, M::Sal, M::Shr, M::Sar], AF, CountNotZero, "vol. 2B, SAL/SAR/SHL/SHR, Flags Affected"),
    flags(&[M::Shl, M::Sal, M::Shr, M::Sar], OF, CountAboveOne, "vol. 2B, SAL/SAR/SHL/SHR, Flags Affected"),
    flags(&[M::Shl, M::Sal, M::Shr], CF, CountFromSize, "vol. 2B, SAL/SAR/SHL/SHR, Flags Affected: not SAR"),
    flags(&[M::Shld], AF, CountNotZero, "vol. 2B, SHLD, Flags Affected"),
    flags(&[M::Shld], OF, CountAboveOne, "vol. 2B, SHLD, Flags Affected"),
    flags(&[M::Shld], STATUS, CountAboveSize, "vol. 2B, SHLD, Flags Affected"),
    flags(&[M::Shrd], AF, CountNotZero, "vol. 2B, SHRD, Flags Affected"),
    flags(&[M::Shrd], OF, CountAboveOne, "vol. 2B, SHRD, Flags Affected"),
    flags(&[M::Shrd], STATUS, CountAboveSize, "vol. 2B, SHRD, Flags Affected"),
];

/// x87 condition codes that the SDM leaves undefined.
#[rustfmt::skip]
pub const CODES: &[Codes] = &[
    codes(&[M::F2xm1], C0 | C2 | C3, Always, "vol. 2A, F2XM1, FPU Flags Affected"),
    codes(&[M::Fabs], C0 | C2 | C3, Always, "vol. 2A, FABS, FPU Flags Affected"),
    codes(&[M::Fadd, M::Faddp, M::Fiadd], C0 | C2 | C3, Always, "vol. 2A, FADD/FADDP/FIADD, FPU Flags Affected"),
    codes(&[M::Fbld], C0 | C2 | C3, Always, "vol. 2A, FBLD, FPU Flags Affected"),
    codes(&[M::Fbstp], C0 | C2 | C3, Always, "vol. 2A, FBSTP, FPU Flags Affected"),
    codes(&[M::Fchs], C0 | C2 | C3, Always, "vol. 2A, FCHS, FPU Flags Affected"),
    codes(&[M::Fclex, M::Fnclex], C0 | C1 | C2 | C3, Always, "vol. 2A, FCLEX/FNCLEX, FPU Flags Affected"),
    codes(&[M::Fcmovb, M::Fcmovbe, M::Fcmove, M::Fcmovnb], C0 | C2 | C3, Always, "vol. 2A, FCMOVcc, FPU Flags Affected"),
    codes(&[M::Fcmovnbe, M::Fcmovne, M::Fcmovnu, M::Fcmovu], C0 | C2 | C3, Always, "vol. 2A, FCMOVcc, FPU Flags Affected"),
    codes(&[M::Fcos], C0 | C3, Always, "vol. 2A, FCOS, FPU Flags Affected"),
    codes(&[M::Fcos], C1, OutOfRange, "vol. 2A, FCOS, FPU Flags Affected: C1"),
    codes(&[M::Fdecstp], C0 | C2 | C3, Always, "vol. 2A, FDECSTP, FPU Flags Affected"),
    codes(&[M::Fdiv, M::Fdivp, M::Fidiv], C0 | C2 | C3, Always, "vol. 2A, FDIV/FDIVP/FIDIV, FPU Flags Affected"),
    codes(&[M::Fdivr, M::Fdivrp, M::Fidivr], C0 | C2 | C3, Always, "vol. 2A, FDIVR/FDIVRP/FIDIVR, FPU Flags Affected"),
    codes(&[M::Ffree], C0 | C1 | C2 | C3, Always, "vol. 2A, FFREE, FPU Flags Affected"),
    codes(&[M::Fild], C0 | C2 | C3, Always, "vol. 2A, FILD, FPU Flags Affected"),
    codes(&[M::Fincstp], C0 | C2 | C3, Always, "vol. 2A, FINCSTP, FPU Flags Affected"),
    codes(&[M::Fist, M::Fistp], C0 | C2 | C3, Always, "vol. 2A, FIST/FISTP, FPU Flags Affected"),
    codes(&[M::Fisttp], C0 | C2 | C3, Always, "vol. 2A, FISTTP, FPU Flags Affected"),
    codes(&[M::Fld], C0 | C2 | C3, Always, "vol. 2A, FLD, FPU Flags Affected"),
    codes(&[M::Fld1, M::Fldl2t, M::Fldl2e, M::Fldpi, M::Fldlg2, M::Fldln2, M::Fldz], C0 | C2 | C3, Always, "vol. 2A, FLD1/…/FLDZ, FPU Flags Affected"),
    codes(&[M::Fldcw], C0 | C1 | C2 | C3, Always, "vol. 2A, FLDCW, FPU Flags Affected"),
    codes(&[M::Fmul, M::Fmulp, M::Fimul], C0 | C2 | C3, Always, "vol. 2A, FMUL/FMULP/FIMUL, FPU Flags Affected"),
    codes(&[M::Fnop], C0 | C1 | C2 | C3, Always, "vol. 2A, FNOP, FPU Flags Affected"),
    codes(&[M::Fpatan], C0 | C2 | C3, Always, "vol. 2A, FPATAN, FPU Flags Affected"),
    codes(&[M::Fptan], C0 | C3, Always, "vol. 2A, FPTAN, FPU Flags Affected"),
    codes(&[M::Frndint], C0 | C2 | C3, Always, "vol. 2A, FRNDINT, FPU Flags Affected"),
    codes(&[M::Fscale], C0 | C2 | C3, Always, "vol. 2A, FSCALE, FPU Flags Affected"),
    codes(&[M::Fsin], C0 | C3, Always, "vol. 2A, FSIN, FPU Flags Affected"),
    codes(&[M::Fsincos], C0 | C3, Always, "vol. 2A, FSINCOS, FPU Flags Affected"),
    codes(&[M::Fsqrt], C0 | C2 | C3, Always, "vol. 2A, FSQRT, FPU Flags Affected"),
    codes(&[M::Fst, M::Fstp], C0 | C2 | C3, Always, "vol. 2A, FST/FSTP, FPU Flags Affected"),
    codes(&[M::Fstcw, M::Fnstcw], C0 | C1 | C2 | C3, Always, "vol. 2A, FSTCW/FNSTCW, FPU Flags Affected"),
    codes(&[M::Fstenv, M::Fnstenv], C0 | C1 | C2 | C3, Always, "vol. 2A, FSTENV/FNSTENV, FPU Flags Affected"),
    codes(&[M::Fstsw, M::Fnstsw], C0 | C1 | C2 | C3, Always, "vol. 2A, FSTSW/FNSTSW, FPU Flags Affected"),
    codes(&[M::Fsub, M::Fsubp, M::Fisub], C0 | C2 | C3, Always, "vol. 2A, FSUB/FSUBP/FISUB, FPU Flags Affected"),
    codes(&[M::Fsubr, M::Fsubrp, M::Fisubr], C0 | C2 | C3, Always, "vol. 2A, FSUBR/FSUBRP/FISUBR, FPU Flags Affected"),
    codes(&[M::Fxch], C0 | C2 | C3, Always, "vol. 2A, FXCH, FPU Flags Affected"),
    codes(&[M::Fxtract], C0 | C2 | C3, Always, "vol. 2A, FXTRACT, FPU Flags Affected"),
    codes(&[M::Fyl2x], C0 | C2 | C3, Always, "vol. 2A, FYL2X, FPU Flags Affected"),
    codes(&[M::Fyl2xp1], C0 | C2 | C3, Always, "vol. 2A, FYL2XP1, FPU Flags Affected"),
    codes(&[M::Wait], C0 | C1 | C2 | C3, Always, "vol. 2D, WAIT/FWAIT, FPU Flags Affected"),
];

/// Results that the SDM leaves undefined.
#[rustfmt::skip]
pub const RESULTS: &[Results] = &[
    result(&[M::Bsf], u64::MAX, SourceZero, "vol. 2A, BSF, Description"),
    result(&[M::Bsr], u64::MAX, SourceZero, "vol. 2A, BSR, Description"),
    result(&[M::Bswap], u64::MAX, Operand16, "vol. 2A, BSWAP, Description"),
    result(&[M::Lar], 0xf_0000, Always, "vol. 2A, LAR, Description: bits 19:16"),
    result(&[M::Shld], u64::MAX, CountAboveSize, "vol. 2B, SHLD, Description"),
    result(&[M::Shrd], u64::MAX, CountAboveSize, "vol. 2B, SHRD, Description"),
];

/// The count of a shift or rotate as the processor masks it: 6 bits with a 64-bit operand, else 5 (SDM vol. 2B, SAL/SAR/SHL/SHR).
fn count(insn: &Instruction, case: &Case) -> u64 {
    let last = insn.op_count().saturating_sub(1);
    let mask = if operand::size(insn, 0) == 8 { 0x3f } else { 0x1f };
    operand::value(case, insn, last).unwrap_or(0) & mask
}

/// Whether a condition holds for the case.
fn holds(when: When, insn: &Instruction, case: &Case) -> bool {
    let bits = operand::size(insn, 0) as u64 * 8;
    match when {
        Always => true,
        CountNotZero => count(insn, case) != 0,
        CountAboveOne => count(insn, case) > 1,
        CountFromSize => count(insn, case) >= bits,
        CountAboveSize => count(insn, case) > bits,
        SourceZero => operand::value(case, insn, 1) == Some(0),
        Operand16 => bits == 16,
        OutOfRange => {
            let st0 = image::st(&image::normalised(&case.xsave), 0);
            let exponent = u16::from_le_bytes([st0[8], st0[9]]) & 0x7fff;
            (0x3fff + 63..0x7fff).contains(&exponent)
        }
    }
}

/// The rows of each mnemonic.
type Rows = HashMap<Mnemonic, (Vec<Flags>, Vec<Codes>, Vec<Results>)>;

fn rows() -> &'static Rows {
    static ROWS: LazyLock<Rows> = LazyLock::new(|| {
        let mut rows = Rows::new();
        for row in FLAGS {
            row.mnemonics.iter().for_each(|&m| rows.entry(m).or_default().0.push(*row));
        }
        for row in CODES {
            row.mnemonics.iter().for_each(|&m| rows.entry(m).or_default().1.push(*row));
        }
        for row in RESULTS {
            row.mnemonics.iter().for_each(|&m| rows.entry(m).or_default().2.push(*row));
        }
        rows
    });
    &ROWS
}

/// The bits of RFLAGS that are undefined after the instruction, if it completes.
pub fn undefined_flags(insn: &Instruction, case: &Case) -> u64 {
    let Some((rows, _, _)) = rows().get(&insn.mnemonic()) else { return 0 };
    rows.iter().filter(|row| holds(row.when, insn, case)).fold(0, |bits, row| bits | row.flags)
}

/// The bits of FSW that are undefined after the instruction, if it completes.
pub fn undefined_codes(insn: &Instruction, case: &Case) -> u16 {
    let Some((_, rows, _)) = rows().get(&insn.mnemonic()) else { return 0 };
    rows.iter().filter(|row| holds(row.when, insn, case)).fold(0, |bits, row| bits | row.codes)
}

/// Where an undefined result is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Bits of a general register.
    Register(usize, u64),
    /// Bytes from a linear address.
    Memory(u64, usize),
}

/// The result that is undefined after the instruction, if it completes.
pub fn undefined_result(insn: &Instruction, case: &Case) -> Option<Place> {
    let (_, _, rows) = rows().get(&insn.mnemonic())?;
    let row = rows.iter().find(|row| holds(row.when, insn, case))?;
    let size = operand::size(insn, 0);
    match insn.op_kind(0) {
        OpKind::Register => {
            // A 32-bit result is zero-extended, or the register stays: the upper half is undefined with the lower.
            let bits = if size == 2 { 0xffff } else { u64::MAX };
            Some(Place::Register(insn.op_register(0).full_register().number() & 15, bits & row.bits))
        }
        OpKind::Memory => Some(Place::Memory(operand::linear_address(case, insn, 0)?, size)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Bits;
    use iced_x86::{Code, OpCodeOperandKind, RflagsBits};

    /// Where iced's own list differs, and why.
    #[rustfmt::skip]
    const ICED: &[(&[Mnemonic], &str)] = &[
        (&[M::Mov], "to and from control and debug registers: privileged, so it never completes here"),
        (&[M::Blcfill, M::Blci, M::Blcic, M::Blcmsk, M::Blcs, M::Blsfill, M::Blsic, M::T1mskc, M::Tzmsk], "AMD's TBM: the SDM does not have it, nor has a processor with AVX-512"),
        (&[M::Tzcnti], "Knights Corner's"),
        (&[M::Fcos], "iced has no condition on operands: C1 is undefined out of range"),
        (&[M::Fnop, M::Wait], "iced takes them for instructions that leave all as it is; the SDM says undefined"),
        (&[M::Ffreep, M::Fstpnce, M::Fstdw, M::Fnstdw, M::Fstsg, M::Fnstsg, M::Frstpm, M::Frichop, M::Frinear, M::Frint2, M::Undoc], "the SDM does not have it"),
    ];

    /// iced's bits as ours.
    fn of_iced(bits: u32) -> (u64, u16) {
        let flags = [
            (RflagsBits::OF, OF),
            (RflagsBits::SF, SF),
            (RflagsBits::ZF, ZF),
            (RflagsBits::AF, AF),
            (RflagsBits::CF, CF),
            (RflagsBits::PF, PF),
        ];
        let codes = [(RflagsBits::C0, C0), (RflagsBits::C1, C1), (RflagsBits::C2, C2), (RflagsBits::C3, C3)];
        (
            flags.iter().filter(|(bit, _)| bits & bit != 0).fold(0, |all, (_, bit)| all | bit),
            codes.iter().filter(|(bit, _)| bits & bit != 0).fold(0, |all, (_, bit)| all | bit),
        )
    }

    /// The instruction with its implied operands, and 5 for every count: below every operand's size, above 1.
    fn instruction(code: Code) -> Instruction {
        let mut insn = Instruction::default();
        insn.set_code(code);
        for n in 0..code.op_code().op_count() {
            match code.op_code().op_kind(n) {
                OpCodeOperandKind::imm8 => {
                    insn.set_op_kind(n, OpKind::Immediate8);
                    insn.set_immediate8(5);
                }
                OpCodeOperandKind::imm8_const_1 => {
                    insn.set_op_kind(n, OpKind::Immediate8);
                    insn.set_immediate8(1);
                }
                OpCodeOperandKind::cl => insn.set_op_register(n, iced_x86::Register::CL),
                OpCodeOperandKind::r8_or_mem | OpCodeOperandKind::r8_reg => {
                    insn.set_op_register(n, iced_x86::Register::DL)
                }
                OpCodeOperandKind::r16_or_mem => insn.set_op_register(n, iced_x86::Register::DX),
                OpCodeOperandKind::r32_or_mem => insn.set_op_register(n, iced_x86::Register::EDX),
                OpCodeOperandKind::r64_or_mem => insn.set_op_register(n, iced_x86::Register::RDX),
                _ => {}
            }
        }
        insn
    }

    #[test]
    fn the_tables_agree_with_iced() {
        let mut case = Case::new(Bits::Bits64);
        case.gpr[1] = 5;
        image::put(&mut case.xsave, image::ST + 8, &(0x3fff_u16 + 64).to_le_bytes());
        image::set_xstate_bv(&mut case.xsave, 1);
        let mut differing = std::collections::BTreeSet::new();
        for code in Code::values().filter(|&c| c != Code::INVALID) {
            let insn = instruction(code);
            let ours = (undefined_flags(&insn, &case), undefined_codes(&insn, &case));
            if ours != of_iced(insn.rflags_undefined()) {
                differing.insert(code.mnemonic());
                let listed = ICED.iter().any(|(mnemonics, _)| mnemonics.contains(&code.mnemonic()));
                assert!(listed, "{code:?}: {ours:x?}, iced {:x?}", of_iced(insn.rflags_undefined()));
            }
        }
        for mnemonic in ICED.iter().flat_map(|(mnemonics, _)| *mnemonics) {
            assert!(differing.contains(mnemonic), "{mnemonic:?} agrees, and needs no reason");
        }
    }

    #[test]
    fn every_row_says_where_it_comes_from() {
        let sources = FLAGS
            .iter()
            .map(|r| r.sdm)
            .chain(CODES.iter().map(|r| r.sdm))
            .chain(RESULTS.iter().map(|r| r.sdm));
        for sdm in sources {
            assert!(sdm.starts_with("vol. 2"), "{sdm}");
        }
        assert!(FLAGS.iter().all(|r| r.flags & !STATUS == 0 && r.flags != 0));
    }
}
