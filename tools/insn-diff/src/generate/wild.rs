//! Wild cases: bytes that no table would give. Valid encodings with flipped bits, opcodes at random in every map,
//! prefixes in any order and number, noise. Directed cases are `Generator::case`'s.

use super::values::{chance, choose};
use super::{Generator, LONGEST};
use crate::coverage::{Cell, Denominator, Form, Mask, Rounding, avoided, decode};
use crate::layout::{self, PAGE};
use crate::{Bits, Case};
use iced_x86::{Code, Mnemonic, OpKind};
use std::sync::OnceLock;

/// The cells to mutate.
fn cells(bits: Bits) -> &'static [Cell] {
    static CELLS: [OnceLock<Vec<Cell>>; 3] = [const { OnceLock::new() }; 3];
    let n = match bits {
        Bits::Bits16 => 0,
        Bits::Bits32 => 1,
        Bits::Bits64 => 2,
    };
    CELLS[n].get_or_init(|| {
        let denominator = Denominator::of_host(bits);
        let mut cells = denominator.cells.clone();
        cells.retain(|cell| avoided(cell.code).is_none());
        cells
    })
}

/// Prefixes of legacy instructions.
const PREFIXES: [u8; 11] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];

impl Generator {
    /// A case whose bytes may be anything that does not leave for the host's kernel.
    pub fn wild(&mut self) -> Case {
        loop {
            let mut case = match self.rng.u32(..10) {
                0..5 => self.mutated(),
                5..8 => self.composed(),
                8 => self.prefixed(),
                _ => self.noisy(),
            };
            if case.bytes.is_empty() {
                continue;
            }
            let instruction = decode(&case);
            if leaves(&case) {
                continue;
            }
            case.end = self.end(&instruction);
            // What is not part of the instruction is not there; what is decodes as it did.
            if !instruction.is_invalid() {
                case.bytes.truncate(instruction.len());
            }
            if !(case.code_offset as usize + case.bytes.len()).is_multiple_of(2) {
                case.code_offset ^= 1;
            }
            if !leaves(&case) {
                return case;
            }
        }
    }

    /// Registers that mostly point into data.
    fn wild_blank(&mut self) -> Case {
        let cell = Cell {
            code: Code::Nopd,
            bits: self.bits,
            form: Form::Register,
            address: 0,
            mask: Mask::None,
            broadcast: false,
            rounding: Rounding::None,
        };
        let mut case = self.blank(&cell);
        let registers = if self.bits == Bits::Bits64 { 16 } else { 8 };
        for value in &mut case.gpr[..registers] {
            match self.rng.u32(..10) {
                0..5 => *value = layout::DATA + 0x100 + self.rng.u64(..0x1e00),
                5..7 => *value = self.rng.u64(..0x40),
                // The lower half, and what is in neither.
                _ => *value &= !(1 << 63),
            }
        }
        case.gpr[4] = layout::STACK + 0x100 + self.rng.u64(..0x3c0) * 8;
        case
    }

    /// A directed case with a few bits flipped.
    fn mutated(&mut self) -> Case {
        let cells = cells(self.bits);
        let cell = choose(&mut self.rng, cells);
        let Some(mut case) = self.attempt(&cell) else {
            return self.noisy();
        };
        let flips = 1 + self.rng.u32(..3);
        for _ in 0..flips {
            let at = self.rng.usize(..case.bytes.len().min(7));
            case.bytes[at] ^= 1 << self.rng.u32(..8);
        }
        if chance(&mut self.rng, 30) {
            let at = self.rng.usize(..=case.bytes.len().min(3));
            case.bytes.insert(at, choose(&mut self.rng, &PREFIXES));
        }
        // Immediates and displacements that an instruction has now.
        while case.bytes.len() < LONGEST {
            case.bytes.push(self.rng.u8(..));
        }
        case
    }

    /// An opcode at random in a map at random, with a ModRM byte and what may follow.
    fn composed(&mut self) -> Case {
        let mut case = self.wild_blank();
        let rng = &mut self.rng;
        let bytes = &mut case.bytes;
        for _ in 0..choose(rng, &[0, 0, 0, 1, 1, 2]) {
            bytes.push(choose(rng, &PREFIXES));
        }
        let wide = self.bits == Bits::Bits64;
        match rng.u32(..8) {
            0..2 => bytes.extend(rex(rng, wide)),
            2 => {
                bytes.extend(rex(rng, wide));
                bytes.push(0x0f);
            }
            3 => {
                bytes.extend(rex(rng, wide));
                bytes.extend([0x0f, choose(rng, &[0x38, 0x3a, 0x0f])]);
            }
            4 => {
                // VEX; outside 64-bit mode LDS and LES unless the top bits are set.
                let inverted = if wide { 0 } else { 0xc0 };
                if rng.bool() {
                    bytes.extend([0xc5, rng.u8(..) | inverted]);
                } else {
                    let map = if chance(rng, 90) { rng.u8(1..4) } else { rng.u8(..32) };
                    bytes.extend([0xc4, rng.u8(..) & 0xe0 | inverted | map, rng.u8(..)]);
                }
            }
            5 | 6 => {
                let inverted = if wide { 0 } else { 0xc0 };
                let map = if chance(rng, 90) { rng.u8(1..4) } else { rng.u8(..16) };
                // Bit 2 of the second payload byte is fixed to 1.
                let fixed = if chance(rng, 95) { 4 } else { 0 };
                let p0 = rng.u8(..) & 0xf0 | inverted | map;
                bytes.extend([0x62, p0, rng.u8(..) & 0xfb | fixed, rng.u8(..)]);
            }
            _ => bytes.extend([0x8f, rng.u8(..) & 0xe0 | rng.u8(8..11), rng.u8(..)]),
        }
        bytes.push(rng.u8(..));
        bytes.push(if chance(rng, 40) { rng.u8(0xc0..) } else { rng.u8(..0xc0) });
        while bytes.len() < LONGEST {
            bytes.push(match rng.u32(..4) {
                0 => 0,
                1 => rng.u8(..16),
                _ => rng.u8(..),
            });
        }
        case
    }

    /// A directed case behind prefixes that may be too many, and LOCK where it may not be.
    fn prefixed(&mut self) -> Case {
        let cells = cells(self.bits);
        let cell = choose(&mut self.rng, cells);
        let Some(mut case) = self.attempt(&cell) else {
            return self.noisy();
        };
        let many = match self.rng.u32(..4) {
            0 => LONGEST.saturating_sub(case.bytes.len()) + self.rng.usize(..3),
            1 => 1,
            _ => self.rng.usize(1..6),
        };
        let mut prefix = choose(&mut self.rng, &PREFIXES);
        for _ in 0..many {
            if self.rng.bool() {
                prefix = choose(&mut self.rng, &PREFIXES);
            }
            case.bytes.insert(0, prefix);
        }
        case
    }

    fn noisy(&mut self) -> Case {
        let mut case = self.wild_blank();
        let mut bytes = [0; LONGEST];
        super::values::noise(&mut self.rng, &mut bytes);
        case.bytes.extend_from_slice(&bytes);
        case.code_offset = self.rng.u16(..PAGE as u16 - 32);
        case
    }
}

fn rex(rng: &mut fastrand::Rng, wide: bool) -> Option<u8> {
    (wide && rng.bool()).then(|| 0x40 | rng.u8(..16))
}

/// Whether a case would leave for the host's kernel: however its bytes are read.
fn leaves(case: &Case) -> bool {
    let instruction = decode(case);
    if avoided(instruction.code()).is_some() {
        return true;
    }
    if instruction.mnemonic() == Mnemonic::Int && instruction.op0_kind() == OpKind::Immediate8 {
        return instruction.immediate8() == 0x80;
    }
    // Over-long instructions and illegal LOCKs have to be #UD or #GP on the host as they are here; but behind the
    // prefixes nothing may stand that a host could take for a way into its kernel.
    let body = case.bytes.iter().position(|b| !PREFIXES.contains(b) && b & 0xf0 != 0x40).unwrap_or(0);
    matches!(case.bytes.get(body..body + 2), Some([0x0f, 0x05 | 0x34] | [0xcd, 0x80]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::End;

    #[test]
    fn no_wild_case_enters_the_kernel() {
        for bits in [Bits::Bits16, Bits::Bits32, Bits::Bits64] {
            let mut generator = Generator::with_seed(bits, 5);
            for _ in 0..20_000 {
                let case = generator.wild();
                assert!(!leaves(&case), "{:x?}", case.bytes);
                assert!(super::super::tests::memory_is_inside(&case));
                assert!((1..=20).contains(&case.bytes.len()));
                let instruction = decode(&case);
                if !instruction.is_invalid() && case.end == End::Trap {
                    assert_eq!((case.code_offset as usize + case.bytes.len()) % 2, 0);
                }
            }
        }
    }

    #[test]
    fn wild_cases_are_of_all_kinds() {
        let mut generator = Generator::with_seed(Bits::Bits64, 6);
        let (mut valid, mut invalid, mut long) = (0, 0, 0);
        for _ in 0..5000 {
            let case = generator.wild();
            match decode(&case).is_invalid() {
                true => invalid += 1,
                false => valid += 1,
            }
            long += u32::from(case.bytes.len() > LONGEST);
        }
        assert!(valid > 1000 && invalid > 500 && long > 20, "{valid} {invalid} {long}");
    }
}
