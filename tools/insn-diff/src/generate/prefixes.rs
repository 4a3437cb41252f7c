//! Prefixes that an instruction ignores, put before it. A prefix that makes another instruction of it is found by
//! decoding, and not used. LOCK, REP and segment overrides that mean something are `operands`' and `memory`'s.

use super::Generator;
use super::draft::Draft;
use super::values::{chance, choose};
use crate::Bits;
use crate::coverage::Form;
use iced_x86::{EncodingKind, Register};

impl Generator {
    /// Up to three prefixes.
    pub fn redundant_prefixes(&mut self, draft: &Draft) -> Vec<u8> {
        let percent = match draft.cell.code.op_code().encoding() {
            EncodingKind::Legacy | EncodingKind::D3NOW => 15,
            // Only segment overrides and an address size go before VEX (SDM vol. 2A, 2.3.2).
            _ => 5,
        };
        if !chance(&mut self.rng, percent) {
            return Vec::new();
        }
        let many = if chance(&mut self.rng, 70) { 1 } else { self.rng.usize(1..4) };
        (0..many).map(|_| self.redundant_prefix(draft)).collect()
    }

    fn redundant_prefix(&mut self, draft: &Draft) -> u8 {
        let rng = &mut self.rng;
        let free_segments: &[u8] = match (draft.case.bits, draft.cell.form) {
            // Without an effect in 64-bit mode (SDM vol. 1, 3.4.2.1).
            (Bits::Bits64, Form::Memory) => &[0x26, 0x2e, 0x36, 0x3e],
            (_, Form::Register) => &[0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65],
            _ => &[],
        };
        if draft.cell.code.op_code().encoding() != EncodingKind::Legacy {
            return choose(rng, if free_segments.is_empty() { &[0x67] } else { free_segments });
        }
        match rng.u32(..8) {
            0..2 => 0x66,
            2 => 0xf2,
            3 => 0xf3,
            4 => 0x67,
            5 if draft.case.bits == Bits::Bits64 => 0x40 | rng.u8(..16),
            _ if draft.instruction.segment_prefix() != Register::None => 0x66,
            _ => choose(rng, if free_segments.is_empty() { &[0x66] } else { free_segments }),
        }
    }

    /// The encoder's freedoms: fields that instructions ignore, the two-byte or three-byte form of VEX.
    pub fn ignored_fields(&mut self) {
        let wig = self.rng.u32(..2);
        let lig = u32::from(chance(&mut self.rng, 20));
        self.encoder.set_vex_wig(wig);
        self.encoder.set_evex_wig(wig);
        self.encoder.set_vex_lig(lig);
        // SDM vol. 2A, 2.7.10: L'L of 3 is reserved for some; that is for `wild`.
        let length = if chance(&mut self.rng, 20) { self.rng.u32(..3) } else { 0 };
        self.encoder.set_evex_lig(length);
        let prevent = chance(&mut self.rng, 30);
        self.encoder.set_prevent_vex2(prevent);
    }
}
