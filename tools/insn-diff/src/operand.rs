//! What an instruction's operands are before it runs, as far as `compare` must know: registers, addresses, memory.
//! It is a reader of the case; nothing is executed.

use crate::case::{Bits, Case};
use crate::layout;
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};
use std::sync::LazyLock;

/// Decodes the case's instruction. An invalid one has the code INVALID.
pub fn decode(case: &Case) -> Instruction {
    let bytes = &case.bytes[..case.bytes.len().min(15)];
    Decoder::with_ip(case.bits.number(), bytes, case.rip(), DecoderOptions::NONE).decode()
}

/// The template of the backing, made once.
pub fn template() -> &'static [u8] {
    static TEMPLATE: LazyLock<Vec<u8>> = LazyLock::new(layout::template);
    &TEMPLATE
}

/// A general register or a part of one; none for other registers.
pub fn register(case: &Case, register: Register) -> Option<u64> {
    let full = register.full_register();
    if !full.is_gpr() {
        return None;
    }
    let value = case.gpr[full.number() & 15];
    Some(match register {
        Register::AH | Register::CH | Register::DH | Register::BH => value >> 8 & 0xff,
        _ => truncate(value, register.size()),
    })
}

/// The low `size` bytes of a value.
pub fn truncate(value: u64, size: usize) -> u64 {
    if size >= 8 { value } else { value & ((1 << (size * 8)) - 1) }
}

/// A segment's base.
pub fn segment_base(case: &Case, segment: Register) -> u64 {
    let n = match segment {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::DS => 3,
        Register::FS => 4,
        Register::GS => 5,
        _ => return 0,
    };
    match (case.bits, n) {
        (Bits::Bits64, 4) => case.fs_base,
        (Bits::Bits64, 5) => case.gs_base,
        (Bits::Bits64, _) => 0,
        _ => layout::DESCRIPTORS
            .iter()
            .find(|d| d.selector == case.selectors[n])
            .map_or(0, |d| u64::from(d.base)),
    }
}

/// The linear address of a memory operand, or of nothing in particular for another one. Not for vector indices.
pub fn linear_address(case: &Case, insn: &Instruction, operand: u32) -> Option<u64> {
    if insn.op_kind(operand) == OpKind::Memory && insn.is_vsib() {
        return None;
    }
    let address = insn.virtual_address(operand, 0, |r, _, _| match r {
        _ if r.is_segment_register() => Some(segment_base(case, r)),
        _ => register(case, r),
    })?;
    Some(if case.bits == Bits::Bits64 { address } else { address & 0xffff_ffff })
}

/// Up to 8 bytes of memory as a number; none where a byte has no memory.
pub fn load(case: &Case, address: u64, len: usize) -> Option<u64> {
    let backing = case.backing(template());
    let mut value = 0;
    for n in (0..len.min(8)).rev() {
        value =
            value << 8 | u64::from(*backing.get(layout::backing_offset(address.wrapping_add(n as u64))?)?);
    }
    Some(value)
}

/// The value of a general-register, immediate or memory operand of at most 8 bytes.
pub fn value(case: &Case, insn: &Instruction, operand: u32) -> Option<u64> {
    match insn.op_kind(operand) {
        OpKind::Register => register(case, insn.op_register(operand)),
        OpKind::Memory => {
            load(case, linear_address(case, insn, operand)?, insn.memory_size().size().clamp(1, 8))
        }
        _ => insn.try_immediate(operand).ok(),
    }
}

/// Bytes of an operand; 0 for an immediate.
pub fn size(insn: &Instruction, operand: u32) -> usize {
    match insn.op_kind(operand) {
        OpKind::Register => insn.op_register(operand).size(),
        OpKind::Memory => insn.memory_size().size(),
        _ => 0,
    }
}
