//! A case in the making: registers, segments and memory that operands are put into. Who decides what is put there
//! are `operands`, `memory` and `implicit`.

use crate::coverage::Cell;
use crate::layout::{self, AREAS, DESCRIPTORS, Permission};
use crate::{Bits, Case};
use fastrand::Rng;
use iced_x86::{Instruction, Register};

use super::values::{chance, choose};

/// A case, its instruction before it is encoded, and the place of its memory operand.
pub struct Draft {
    /// The case.
    pub case: Case,
    /// What it shall be.
    pub cell: Cell,
    /// The instruction.
    pub instruction: Instruction,
    /// Linear address of the memory operand.
    pub target: Option<u64>,
    /// General registers that an address depends on: a bit each.
    pub fixed: u16,
}

/// RSP's number.
pub const RSP: usize = 4;

impl Draft {
    /// A general register's number, whatever part of it `register` is.
    pub fn number(register: Register) -> Option<usize> {
        let full = register.full_register();
        full.is_gpr64().then(|| full.number())
    }

    /// Sets the part of a general register that `register` is. An address's register stays.
    pub fn set(&mut self, register: Register, value: u64) {
        if let Some(n) = Draft::number(register)
            && self.fixed >> n & 1 == 0
        {
            self.force(register, value);
        }
    }

    /// Sets it even if an address depends on it.
    pub fn force(&mut self, register: Register, value: u64) {
        let Some(n) = Draft::number(register) else {
            return;
        };
        let high = (Register::AH..=Register::BH).contains(&register);
        let shift = if high { 8 } else { 0 };
        let mask = match register.size() {
            1 => 0xff << shift,
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        };
        let slot = &mut self.case.gpr[n];
        *slot = *slot & !mask | value << shift & mask;
        if self.case.bits != Bits::Bits64 {
            *slot &= 0xffff_ffff;
        }
    }

    /// As [`Draft::force`], and an address depends on it from now on.
    pub fn fix(&mut self, register: Register, value: u64) {
        self.force(register, value);
        if let Some(n) = Draft::number(register) {
            self.fixed |= 1 << n;
        }
    }

    /// What a general register, or a part of one, holds.
    pub fn get(&self, register: Register) -> u64 {
        let Some(n) = Draft::number(register) else {
            return 0;
        };
        let value = self.case.gpr[n];
        match register.size() {
            1 if (Register::AH..=Register::BH).contains(&register) => value >> 8 & 0xff,
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        }
    }

    /// The selector in a segment register.
    pub fn selector(&self, segment: Register) -> u16 {
        let n = (segment as usize).wrapping_sub(Register::ES as usize);
        self.case.selectors.get(n).copied().unwrap_or(0)
    }

    /// The base of a segment register.
    pub fn base(&self, segment: Register) -> u64 {
        match (self.case.bits, segment) {
            (Bits::Bits64, Register::FS) => self.case.fs_base,
            (Bits::Bits64, Register::GS) => self.case.gs_base,
            (Bits::Bits64, _) => 0,
            _ => descriptor_base(self.selector(segment)),
        }
    }

    /// Whether the stack pointer is SP (SS.B clear).
    pub fn narrow_stack(&self) -> bool {
        let wide = |d: &&layout::Descriptor| d.selector == self.selector(Register::SS) && d.big;
        self.case.bits != Bits::Bits64 && !DESCRIPTORS.iter().any(|d| wide(&d))
    }

    /// Puts bytes into memory, where it can be written beforehand: everywhere but in the code page.
    pub fn poke(&mut self, address: u64, bytes: &[u8]) {
        for area in AREAS.iter().filter(|area| area.permission != Permission::Execute) {
            let start = address.max(area.start);
            let end = address.saturating_add(bytes.len() as u64).min(area.end());
            if start < end {
                let part = &bytes[(start - address) as usize..(end - address) as usize];
                self.case.memory.push((start, part.to_vec()));
            }
        }
    }
}

/// The base of a descriptor; 0 for a null selector, or one that names nothing.
fn descriptor_base(selector: u16) -> u64 {
    DESCRIPTORS.iter().find(|d| d.selector == selector).map_or(0, |d| d.base.into())
}

/// A selector to load: mostly of a descriptor, else null, with another RPL, or of nothing.
pub fn selector(rng: &mut Rng) -> u16 {
    match rng.u32(..10) {
        0 => rng.u16(..4),
        1 => rng.u16(..64),
        2 => rng.u16(..),
        _ => choose(rng, &DESCRIPTORS).selector,
    }
}

/// Selectors of data segments that a case may start with, by what lies at their base.
const DATA_SEGMENTS: [u16; 4] = [layout::DATA16, layout::DATA_SHORT, layout::DATA_DOWN, layout::DATA_RO];

/// Selectors for a case to start with, and the bases of FS and GS.
pub fn segments(rng: &mut Rng, cell: &Cell) -> ([u16; 6], u64, u64) {
    let bits = cell.bits;
    if bits == Bits::Bits64 {
        let data = |rng: &mut Rng| match rng.u32(..10) {
            0 => 0,
            1 => choose(rng, &DATA_SEGMENTS),
            _ => layout::FLAT,
        };
        let (es, ds) = (data(rng), data(rng));
        let base = |rng: &mut Rng| match rng.u32(..4) {
            0 => 0,
            1 => layout::DATA,
            _ => rng.u64(..0x1000_0000),
        };
        let (fs, gs) = (base(rng), base(rng));
        return ([es, bits.code_selector(), layout::FLAT, ds, 0, 0], fs, gs);
    }
    // A 16-bit address reaches nothing in a flat segment.
    let based = if cell.address == 16 || bits == Bits::Bits16 { 95 } else { 20 };
    let data = |rng: &mut Rng| match chance(rng, based) {
        true if chance(rng, 75) => layout::DATA16,
        true => choose(rng, &DATA_SEGMENTS),
        false if chance(rng, 2) => 0,
        false => layout::FLAT,
    };
    let (es, ds, fs, gs) = (data(rng), data(rng), data(rng), data(rng));
    let ss = match chance(rng, based) {
        true if chance(rng, 75) => layout::STACK16,
        true => choose(rng, &[layout::DATA16, layout::DATA_SHORT]),
        false => layout::FLAT,
    };
    ([es, bits.code_selector(), ss, ds, fs, gs], 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::{Form, Mask, Rounding};
    use iced_x86::Code;

    fn draft(bits: Bits) -> Draft {
        let cell = Cell {
            code: Code::Nopd,
            bits,
            form: Form::Register,
            address: 0,
            mask: Mask::None,
            broadcast: false,
            rounding: Rounding::None,
        };
        let case = Case {
            bits,
            end: crate::End::Trap,
            bytes: Vec::new(),
            code_offset: 0,
            gpr: [0; 16],
            rflags: 2,
            selectors: [layout::DATA16, 0, layout::STACK16, layout::FLAT, 0, 0],
            fs_base: 0x1000,
            gs_base: 0,
            xsave: Box::new([0; crate::case::XSAVE]),
            memory: Vec::new(),
        };
        Draft { case, cell, instruction: Instruction::default(), target: None, fixed: 0 }
    }

    #[test]
    fn parts_of_registers() {
        let mut d = draft(Bits::Bits64);
        d.set(Register::RBX, 0x1111_2222_3333_4444);
        d.set(Register::BH, 0xaa);
        d.set(Register::BL, 0x1bb);
        assert_eq!(d.get(Register::RBX), 0x1111_2222_3333_aabb);
        d.fix(Register::R9D, 5);
        d.set(Register::R9L, 6);
        assert_eq!((d.get(Register::R9), d.get(Register::BH)), (5, 0xaa));
    }

    #[test]
    fn memory_is_cut_at_the_edges() {
        let mut d = draft(Bits::Bits32);
        d.poke(layout::HOLE - 2, &[1; 4]);
        d.poke(layout::HOLE + layout::PAGE - 1, &[2; 4]);
        d.poke(layout::CODE, &[3]);
        d.poke(layout::DATA - 1, &[4; 2]);
        let expected =
            [(layout::HOLE - 2, vec![1, 1]), (layout::ISLAND, vec![2, 2, 2]), (layout::DATA, vec![4])];
        assert_eq!(d.case.memory, expected);
    }

    #[test]
    fn bases_follow_selectors() {
        let d = draft(Bits::Bits32);
        assert_eq!((d.base(Register::ES), d.base(Register::SS)), (layout::DATA, layout::STACK));
        assert_eq!((d.base(Register::DS), d.narrow_stack()), (0, true));
        assert_eq!(draft(Bits::Bits64).base(Register::FS), 0x1000);
    }
}
