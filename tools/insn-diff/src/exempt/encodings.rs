//! Encodings that the SDM reserves and some processors take: whether an instruction is invalid for one of them and for
//! nothing else. Each is a row of docs/deviations.md.

use crate::case::{Bits, Case};
use crate::operand;
use iced_x86::{Instruction, Mnemonic};

/// VERW with LOCK (docs/deviations.md).
pub(super) fn locked_verw(case: &Case) -> bool {
    let mut without = case.clone();
    let locks = without.bytes.iter_mut().take_while(|byte| **byte != 0x0f).filter(|byte| **byte == 0xf0);
    // CS, which means nothing to the length.
    let count = locks.map(|byte| *byte = 0x2e).count();
    count != 0 && operand::decode(&without).mnemonic() == Mnemonic::Verw
}

/// Where a VEX or EVEX prefix may be: behind the prefixes that it allows, and a REX prefix that others follow, which means nothing
/// (SDM vol. 2A, 2.2.1).
fn vex_at(case: &Case) -> Option<usize> {
    let legacy = |byte: u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67);
    let rex = |byte: u8| case.bits == Bits::Bits64 && byte & 0xf0 == 0x40;
    let goes_on = |at: usize| case.bytes.get(at + 1).is_some_and(|&next| legacy(next) || rex(next));
    let means_nothing = |(at, &byte): (usize, &u8)| legacy(byte) || rex(byte) && goes_on(at);
    case.bytes.iter().enumerate().position(|at| !means_nothing(at))
}

/// Whether an instruction is invalid only for VEX.R, X, B or vvvv beside an opmask register, of which there are eight, or for
/// VEX.W (docs/deviations.md, "reserved VEX bits").
pub(super) fn reserved_vex_bit(case: &Case, insn: &Instruction) -> bool {
    let Some(at) = vex_at(case) else { return false };
    let with = |change: &dyn Fn(&mut [u8])| {
        let mut without = case.clone();
        change(&mut without.bytes[at..]);
        operand::decode(&without)
    };
    let opmask = |clean: &Instruction| (0..clean.op_count()).any(|n| clean.op_register(n).is_k());
    if !insn.is_invalid() || case.bytes.len() < at + 3 {
        return false;
    }
    match case.bytes[at] {
        0xc4 => {
            let wide = with(&|bytes| bytes[2] ^= 0x80);
            let clean = with(&|bytes| {
                bytes[1] |= 0xe0;
                bytes[2] |= 0x40;
            });
            opmask(&clean) || !wide.is_invalid()
        }
        0xc5 => opmask(&with(&|bytes| bytes[1] |= 0xc0)),
        _ => false,
    }
}

/// Whether an instruction is invalid for EVEX.V' = 0 outside 64-bit mode, for EVEX.b = 1 with a register in
/// ModRM.r/m where it means nothing, or for EVEX.z = 1 without a mask, and for nothing else (SDM vol. 2A, tables 2-36 and 2-39).
pub(super) fn reserved_evex_bit(case: &Case, insn: &Instruction) -> bool {
    const V: u8 = 1 << 3;
    const B: u8 = 1 << 4;
    const Z: u8 = 1 << 7;
    let Some(at) = vex_at(case) else { return false };
    let (Some(0x62), Some(p2), Some(modrm)) =
        (case.bytes.get(at), case.bytes.get(at + 3), case.bytes.get(at + 5))
    else {
        return false;
    };
    let candidates = [
        (V, case.bits != Bits::Bits64 && p2 & V == 0),
        (B, p2 & B != 0 && modrm >> 6 == 3),
        (Z, p2 & Z != 0 && p2 & 7 == 0),
    ];
    let reserved: u8 = candidates.iter().filter(|(_, set)| *set).map(|(bit, _)| bit).sum();
    // Some of them, or all: a bit may have a meaning beside another that has none.
    let subsets = (1..=u8::MAX).filter(|bits| bits & !reserved == 0);
    insn.is_invalid()
        && subsets.into_iter().any(|bits| {
            let mut without = case.clone();
            without.bytes[at + 3] ^= bits;
            !operand::decode(&without).is_invalid()
        })
}
