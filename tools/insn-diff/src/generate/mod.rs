//! Cases: directed ones, for a cell of the denominator ([`Generator::case`]), and wild ones ([`Generator::wild`]).
//! Deterministic by seed, on a host: the XSAVE image's layout and a few encodings are the host's.
//!
//! A directed case begins with random registers. `operands` picks what the instruction names, `memory` solves
//! registers so that addresses lead where they shall, `implicit` sees to what it does not name; then iced's encoder
//! makes bytes of it, with `prefixes`. Whatever does not decode to its own cell is thrown away and tried again.
//!
//! No case knows of a linear address in the upper half, closes protection key 0, or enters the host's kernel.

mod draft;
mod image;
mod implicit;
mod memory;
mod operands;
mod prefixes;
mod values;
mod wild;

use crate::coverage::{Cell, classify, decode};
use crate::layout::PAGE;
use crate::{Bits, Case, End};
use draft::Draft;
use fastrand::Rng;
use iced_x86::{Code, Encoder, FlowControl, Instruction, MemorySize, OpKind, Register};
use image::Image;
use values::{Elements, chance};

/// How often a cell is tried before it is given up.
const ATTEMPTS: usize = 64;

/// Bytes of the longest instruction.
const LONGEST: usize = 15;

/// A source of cases.
pub struct Generator {
    bits: Bits,
    rng: Rng,
    encoder: Encoder,
    image: Image,
}

impl Generator {
    /// With a seed from the system.
    pub fn new(bits: Bits) -> Generator {
        Generator::with_seed(bits, fastrand::u64(..))
    }

    /// With a seed: the same calls give the same cases.
    pub fn with_seed(bits: Bits, seed: u64) -> Generator {
        Generator {
            bits,
            rng: Rng::with_seed(seed),
            encoder: Encoder::new(bits.number()),
            image: Image::of_host(),
        }
    }

    /// A case for a cell. None: the cell is another code size's, or no encoding of it was found.
    pub fn case(&mut self, cell: &Cell) -> Option<Case> {
        if cell.bits != self.bits {
            return None;
        }
        (0..ATTEMPTS).find_map(|_| self.attempt(cell).filter(|case| classify(case) == Some(*cell)))
    }

    /// Random registers, selectors that suit the cell, no instruction.
    fn blank(&mut self, cell: &Cell) -> Case {
        let (selectors, fs_base, gs_base) = draft::segments(&mut self.rng, cell);
        let mut gpr = [0; 16];
        let elements = self.elements(cell.code);
        let (registers, mask) = match self.bits {
            Bits::Bits64 => (16, u64::MAX),
            _ => (8, 0xffff_ffff),
        };
        for value in &mut gpr[..registers] {
            *value = match self.rng.u32(..4) {
                0 => self.rng.u64(..),
                1 => values::integer(&mut self.rng, 8),
                2 => values::element(&mut self.rng, elements),
                _ => values::integer(&mut self.rng, 4),
            } & mask;
        }
        Case {
            bits: self.bits,
            end: End::Trap,
            bytes: Vec::new(),
            code_offset: self.rng.u16(..PAGE as u16 - 64),
            gpr,
            rflags: self.flags(),
            selectors,
            fs_base,
            gs_base,
            xsave: self.image.random(&mut self.rng),
            memory: Vec::new(),
        }
    }

    /// Status flags at random; DF, ID, AC and NT sometimes.
    fn flags(&mut self) -> u64 {
        let mut flags = self.rng.u64(..) & 0x8d5 | 2;
        for (bit, percent) in [(10, 15), (21, 20), (18, 2), (14, 1)] {
            flags |= u64::from(chance(&mut self.rng, percent)) << bit;
        }
        flags
    }

    /// What the instruction takes its operands' elements for.
    fn elements(&mut self, code: Code) -> Elements {
        let size = code.op_code().memory_size();
        let element = size.element_type();
        let bytes = element.size().clamp(1, 8);
        let float = matches!(
            element,
            MemorySize::Float16 | MemorySize::Float32 | MemorySize::Float64 | MemorySize::BFloat16
        );
        if size == MemorySize::Unknown || chance(&mut self.rng, 15) {
            let bytes = 1 << self.rng.u32(..4);
            return if bytes > 1 && self.rng.bool() {
                Elements::Float(bytes)
            } else {
                Elements::Integer(bytes)
            };
        }
        if float { Elements::Float(bytes.max(2)) } else { Elements::Integer(bytes.next_power_of_two()) }
    }

    fn attempt(&mut self, cell: &Cell) -> Option<Case> {
        let case = self.blank(cell);
        let mut draft =
            Draft { case, cell: *cell, instruction: Instruction::default(), target: None, fixed: 0 };
        if chance(&mut self.rng, 2) {
            // At the page's end: it just fits, or does not.
            let left = self.rng.u16(1..=12);
            draft.case.code_offset = PAGE as u16 - left;
        }
        self.operands(&mut draft)?;
        self.vectors(&mut draft);
        self.implicit(&mut draft);
        let prefixes = self.redundant_prefixes(&draft);
        self.ignored_fields();
        self.encode(&mut draft, &prefixes)?;
        if !prefixes.is_empty() && classify(&draft.case) != Some(*cell) {
            self.encode(&mut draft, &[])?;
        }
        let instruction = decode(&draft.case);
        draft.case.end = self.end(&instruction);
        Some(draft.case)
    }

    /// Encodes the instruction behind prefixes, at a place where UD2s stand behind it.
    fn encode(&mut self, draft: &mut Draft, prefixes: &[u8]) -> Option<()> {
        for _ in 0..2 {
            let rip = draft.case.rip().wrapping_add(prefixes.len() as u64);
            let mut buffer = std::mem::take(&mut draft.case.bytes);
            buffer.clear();
            buffer.extend_from_slice(prefixes);
            self.encoder.set_buffer(buffer);
            let len = self.encoder.encode(&draft.instruction, rip).ok()? + prefixes.len();
            draft.case.bytes = self.encoder.take_buffer();
            if len > LONGEST {
                return None;
            }
            if (draft.case.code_offset as usize + len).is_multiple_of(2) {
                return Some(());
            }
            // The page is full of UD2, two bytes each: the instruction ends where one of them begins.
            draft.case.code_offset ^= 1;
        }
        None
    }

    /// Contents of the vector, x87, MMX and opmask registers that the instruction names.
    fn vectors(&mut self, draft: &mut Draft) {
        let elements = self.elements(draft.cell.code);
        let mut last: Option<[u8; 64]> = None;
        for n in 0..draft.instruction.op_count() {
            if draft.instruction.op_kind(n) != OpKind::Register {
                continue;
            }
            let register = draft.instruction.op_register(n);
            if register.is_mm() || register.is_st() {
                let mut value = [0; 10];
                if register.is_mm() {
                    values::fill(&mut self.rng, elements, &mut value[..8]);
                    value[8..].copy_from_slice(&[0xff, 0xff]);
                } else {
                    value = values::extended(&mut self.rng);
                }
                self.image.set_st(&mut draft.case.xsave, register.number(), &value);
            }
            // A vector of indices has its contents.
            if !register.is_vector_register() || Some(register.number()) == vsib_number(&draft.instruction) {
                continue;
            }
            let mut value = [0; 64];
            match last {
                // Equal to another operand but for some elements, so that comparisons and subtractions see both.
                Some(other) if chance(&mut self.rng, 25) => {
                    value = other;
                    let at = self.rng.usize(..8) * 8;
                    values::fill(&mut self.rng, elements, &mut value[at..at + 8]);
                }
                _ if chance(&mut self.rng, 70) => values::fill(&mut self.rng, elements, &mut value),
                _ => values::noise(&mut self.rng, &mut value),
            }
            self.image.set_vector(&mut draft.case.xsave, register.number(), &value);
            last = Some(value);
        }
        if draft.instruction.op_mask() != Register::None {
            let mask = image::opmask(&mut self.rng);
            self.image.set_opmask(&mut draft.case.xsave, draft.instruction.op_mask().number(), mask);
        }
    }

    /// How a decoded instruction may end.
    fn end(&mut self, instruction: &Instruction) -> End {
        match instruction.flow_control() {
            FlowControl::Next => {}
            _ => return End::SingleStep,
        }
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let step = if repeated && instruction.is_string_instruction() { 15 } else { 50 };
        if chance(&mut self.rng, step) { End::SingleStep } else { End::Trap }
    }
}

/// The number of the vector of indices, if there is one.
fn vsib_number(instruction: &Instruction) -> Option<usize> {
    let index = instruction.memory_index();
    index.is_vector_register().then(|| index.number())
}

#[cfg(test)]
mod tests;
