//! What is known about an instruction from its [`Code`] alone: tables, computed once.
//!
//! Not here: what depends on operands of one decoded instruction ([`crate::insn`]), or on the mode and
//! CPUID ([`crate::validity`]).

use std::sync::LazyLock;

use iced_x86::{Code, OpCodeOperandKind};

static OP_SIZES: LazyLock<Vec<u8>> = LazyLock::new(|| Code::values().map(compute_op_size).collect());

/// The size in bytes of the main operation of `code`: 1, 2, 4 or 8 for an instruction on general registers, the
/// stack, the instruction pointer or a string; 0 where that has no meaning (vector and x87
/// instructions without an operand-size form).
///
/// In 64-bit mode a near branch is always 8: the operand-size prefix is ignored there, as on Intel
/// processors (SDM vol. 2A, JMP; AMD's truncate to 16 bits, APM vol. 3).
#[inline]
pub fn op_size(code: Code) -> u8 {
    OP_SIZES.get(code as usize).copied().unwrap_or(0)
}

fn compute_op_size(code: Code) -> u8 {
    let info = code.op_code();
    let bits = info.operand_size();
    if bits != 0 {
        return (bits / 8) as u8;
    }
    for i in 0..info.op_count() {
        match info.op_kind(i) {
            OpCodeOperandKind::r8_or_mem
            | OpCodeOperandKind::r8_reg
            | OpCodeOperandKind::r8_opcode
            | OpCodeOperandKind::al => return 1,
            OpCodeOperandKind::seg_rSI
            | OpCodeOperandKind::es_rDI
            | OpCodeOperandKind::mem
            | OpCodeOperandKind::mem_offs => {
                let size = info.memory_size().size();
                if size == 1 {
                    return 1;
                }
            }
            _ => {}
        }
    }
    0
}
