//! Results that cannot agree though both machines completed the instruction. Faults are [`super::situations`]'.

use super::Mask;
use crate::case::Case;
use crate::image;
use crate::layout;
use crate::operand;
use crate::undefined::{self, ZF};
use iced_x86::{Instruction, Mnemonic};

const AX: usize = 0;
const CX: usize = 1;
const DX: usize = 2;
const BX: usize = 3;

/// What a row leaves out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// The low halves of EDX:EAX's registers.
    EdxEax,
    /// The low halves of RDX, RAX and RCX.
    EdxEaxEcx,
    /// The low halves of RAX, RBX, RCX and RDX.
    CpuidRegisters,
    /// The first operand, as wide as it is.
    Destination,
    /// The first operand, and CF, which says whether there was a number.
    DestinationAndCarry,
    /// The low half of the first operand's register.
    LowHalf,
    /// With ECX = 1: component bits of EDX:EAX.
    InUse,
    /// With the selector of a GDT descriptor that is the host kernel's own: ZF and the first operand.
    Selector,
    /// With the selector of a GDT descriptor that is the host kernel's own: ZF.
    SelectorFlag,
    /// XSTATE_BV bits, and with an optimization the bytes, of components that are asked for and in their initial state.
    Area,
}

/// Why an instruction's results cannot agree.
#[derive(Clone, Copy, Debug)]
pub struct Exemption {
    /// Of which instructions.
    pub mnemonics: &'static [Mnemonic],
    /// What is left out.
    pub what: What,
    /// Why.
    pub why: &'static str,
}

const fn row(mnemonics: &'static [Mnemonic], what: What, why: &'static str) -> Exemption {
    Exemption { mnemonics, what, why }
}

use Mnemonic as M;

/// All of them.
#[rustfmt::skip]
pub const RESULTS: &[Exemption] = &[
    row(&[M::Rdtsc], What::EdxEax, "the guest's time-stamp counter is its own"),
    row(&[M::Rdtscp], What::EdxEaxEcx, "the time-stamp counter, and IA32_TSC_AUX, which the host's kernel sets"),
    row(&[M::Rdpid], What::LowHalf, "IA32_TSC_AUX is the host kernel's"),
    row(&[M::Rdpmc], What::EdxEax, "a counter's value"),
    row(&[M::Rdpru], What::EdxEax, "MPERF and APERF count"),
    row(&[M::Cpuid], What::CpuidRegisters, "the guest has its own CPUID table"),
    row(&[M::Rdrand, M::Rdseed], What::DestinationAndCarry, "a random number, or none at the moment"),
    row(&[M::Xgetbv], What::InUse, "XINUSE may be set for a component in its initial state (SDM vol. 1, 13.6)"),
    row(&[M::Sgdt, M::Sidt, M::Sldt, M::Str, M::Smsw], What::Destination, "the host kernel's own tables, or its answer under UMIP"),
    row(&[M::Lar, M::Lsl], What::Selector, "the descriptor is the host kernel's"),
    row(&[M::Verr, M::Verw], What::SelectorFlag, "the descriptor is the host kernel's"),
    row(&[M::Xsave, M::Xsave64, M::Xsavec, M::Xsavec64, M::Xsaveopt, M::Xsaveopt64], What::Area, "XINUSE may be set for a component in its initial state (SDM vol. 1, 13.6)"),
];

/// Puts into the mask what a row leaves out.
pub(super) fn leave_out(what: What, case: &Case, insn: &Instruction, mask: &mut Mask) {
    match what {
        What::EdxEax => mask.low(&[AX, DX]),
        What::EdxEaxEcx => mask.low(&[AX, DX, CX]),
        What::CpuidRegisters => mask.low(&[AX, BX, CX, DX]),
        What::Destination => mask.destination(insn, case),
        What::DestinationAndCarry => {
            mask.destination(insn, case);
            mask.rflags |= undefined::CF;
        }
        What::LowHalf => mask.low(&[insn.op_register(0).full_register().number() & 15]),
        What::InUse => {
            if case.gpr[CX] as u32 == 1 {
                mask.gpr[AX] |= image::components() & 0xffff_ffff;
                mask.gpr[DX] |= image::components() >> 32;
            }
        }
        What::Selector | What::SelectorFlag => {
            let source = insn.op_count().saturating_sub(1);
            if operand::value(case, insn, source).is_some_and(|s| is_the_kernels(s as u16)) {
                mask.rflags |= ZF;
                if what == What::Selector {
                    mask.destination(insn, case);
                }
            }
        }
        What::Area => area(case, insn, mask),
    }
}

/// Whether a selector names a descriptor in the GDT that is not one of [`layout::DESCRIPTORS`], nor null.
fn is_the_kernels(selector: u16) -> bool {
    selector & 4 == 0 && selector > 3 && !layout::DESCRIPTORS.iter().any(|d| d.selector & !3 == selector & !3)
}

/// Masks for an XSAVE area (SDM vol. 1, 13.4, 13.7 to 13.10).
fn area(case: &Case, insn: &Instruction, mask: &mut Mask) {
    let Some(start) = operand::linear_address(case, insn, 0) else { return };
    let asked = (case.gpr[DX] << 32 | case.gpr[AX] & 0xffff_ffff) & image::components();
    let state = image::normalised(&case.xsave);
    let initial = (0..64).filter(|&n| asked >> n & 1 != 0 && image::is_initial(&state, n));
    let compact = matches!(insn.mnemonic(), M::Xsavec | M::Xsavec64);
    let optimizes = !matches!(insn.mnemonic(), M::Xsave | M::Xsave64);
    for number in initial {
        let at = start.wrapping_add(image::XSTATE_BV as u64 + u64::from(number) / 8);
        mask.memory.push((at, 1, 1 << (number % 8)));
        let Some((offset, size)) = image::component(number) else { continue };
        if !optimizes {
            continue;
        }
        let mut bytes = |at: usize, len: usize| mask.memory.push((start.wrapping_add(at as u64), len, 0xff));
        match number {
            // MXCSR stands between the x87 parts, and is saved with SSE or AVX.
            image::X87 => {
                bytes(0, image::MXCSR);
                bytes(image::ST, image::XMM - image::ST);
            }
            image::SSE => {
                bytes(image::XMM, 256);
                bytes(image::MXCSR, 8);
            }
            _ if compact => {
                if let Some(at) = image::compact_offset(asked, number) {
                    bytes(at, size);
                }
            }
            _ => bytes(offset, size),
        }
    }
}
