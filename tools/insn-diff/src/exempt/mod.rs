//! What the two machines cannot agree on, each with its reason: time, chance, identity, and what the host's kernel
//! does in the middle. A row leaves out as little as it can: bits of a register, not a case. What the SDM leaves
//! undefined is [`crate::undefined`]'s. Approximations are not here: both machines have the same silicon.
//!
//! | table | its rows |
//! |---|---|
//! | [`results::RESULTS`] | results of instructions that completed on both |
//! | [`situations::SITUATIONS`] | faults, prefixes and encodings: what both met, and of which host |

mod encodings;
pub mod results;
pub mod situations;

use crate::case::{Case, Outcome};
use crate::operand;
use crate::undefined::{self, Place};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// What is left out of one comparison.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Mask {
    /// Bits of the general registers.
    pub gpr: [u64; 16],
    /// Bits of RFLAGS.
    pub rflags: u64,
    /// Bits of FSW.
    pub fsw: u16,
    /// Bits of the error code.
    pub error_code: u32,
    /// RIP.
    pub rip: u64,
    /// Bits of CR2.
    pub cr2: u64,
    /// TOP and the tags.
    pub mmx: bool,
    /// Bytes of memory: linear address, how many, and which bits of each.
    pub memory: Vec<(u64, usize, u8)>,
    /// FOP, FIP and FDP.
    pub pointers: bool,
    /// Nothing can be compared, and why.
    pub everything: Option<&'static str>,
}

impl Mask {
    fn place(&mut self, place: Place) {
        match place {
            Place::Register(n, bits) => self.gpr[n & 15] |= bits,
            Place::Memory(address, len) => self.memory.push((address, len, 0xff)),
        }
    }

    /// The low half of RAX, RCX, RDX, RBX.
    fn low(&mut self, registers: &[usize]) {
        registers.iter().for_each(|&n| self.gpr[n] |= 0xffff_ffff);
    }

    /// The first operand, as wide as it is.
    fn destination(&mut self, insn: &Instruction, case: &Case) {
        let size = operand::size(insn, 0);
        match insn.op_kind(0) {
            OpKind::Register => {
                let bits = operand::truncate(u64::MAX, size);
                self.gpr[insn.op_register(0).full_register().number() & 15] |= bits;
            }
            OpKind::Memory => {
                self.memory
                    .extend(operand::linear_address(case, insn, 0).map(|address| (address, size, 0xff)));
            }
            _ => {}
        }
    }
}

/// Far JMP, CALL and RET, and IRET.
pub(crate) fn is_far(insn: &Instruction) -> bool {
    let far_pointer =
        insn.is_call_far() || insn.is_jmp_far() || insn.is_call_far_indirect() || insn.is_jmp_far_indirect();
    far_pointer
        || matches!(insn.mnemonic(), Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq)
}

/// #DB: the instruction was stepped over.
const DB: u8 = 1;
const UD: u8 = 6;
const TS: u8 = 10;
const GP: u8 = 13;
const PF: u8 = 14;
const AC: u8 = 17;

/// Whether the instruction completed: it was stepped over, or the trap behind it was met.
pub fn completed(case: &Case, insn: &Instruction, outcome: &Outcome) -> bool {
    let behind = case.rip().wrapping_add(insn.len() as u64);
    match outcome.vector {
        DB => true,
        // It fetched what lies behind it, on a page that is not there.
        PF if outcome.error_code & 0x10 != 0 => outcome.rip == behind,
        UD => outcome.rip != case.rip() && !insn.is_invalid() && outcome.rip == behind,
        _ => false,
    }
}

/// All that is left out of the comparison of two outcomes.
pub fn mask(case: &Case, insn: &Instruction, oracle: &Outcome, engine: &Outcome) -> Mask {
    let mut mask = Mask::default();
    let pair = situations::Pair { case, insn, oracle, engine };
    for row in situations::SITUATIONS {
        if row.host.is_this() && (row.applies)(&pair) {
            situations::leave_out(row, &pair, &mut mask);
        }
    }
    if pair.completed() {
        mask.rflags |= undefined::undefined_flags(insn, case);
        mask.fsw |= undefined::undefined_codes(insn, case);
        if let Some(place) = undefined::undefined_result(insn, case) {
            mask.place(place);
        }
        let rows = results::RESULTS.iter().filter(|row| row.mnemonics.contains(&insn.mnemonic()));
        rows.for_each(|row| results::leave_out(row.what, case, insn, &mut mask));
    }
    mask
}
