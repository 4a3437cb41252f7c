//! Explicit operands: from iced's operand kinds to registers, immediates and branch targets. Memory operands are
//! `memory`'s, what an instruction uses without naming it is `implicit`'s.

use super::Generator;
use super::draft::Draft;
use super::values::{chance, choose};
use crate::coverage::{Form, Mask, Rounding};
use crate::{Bits, layout};
use iced_x86::{EncodingKind, Instruction, OpCodeOperandKind, OpKind, Register, RoundingControl};

impl Generator {
    /// The number of a vector register that the encoding can name.
    pub fn vector_number(&mut self, draft: &Draft) -> u32 {
        let evex = draft.cell.code.op_code().encoding() == EncodingKind::EVEX;
        match (draft.case.bits, evex) {
            (Bits::Bits64, true) => self.rng.u32(..32),
            (Bits::Bits64, false) => self.rng.u32(..16),
            _ => self.rng.u32(..8),
        }
    }

    fn general(&mut self, draft: &Draft, first: Register) -> Register {
        let n = if draft.case.bits == Bits::Bits64 { self.rng.u32(..16) } else { self.rng.u32(..8) };
        first + n
    }

    /// An 8-bit register: AH to BH too, whose place SPL to DIL take with REX.
    fn byte(&mut self, draft: &Draft) -> Register {
        let n = if draft.case.bits == Bits::Bits64 { self.rng.u32(..20) } else { self.rng.u32(..8) };
        Register::AL + n
    }

    fn register_operand(&mut self, draft: &Draft, kind: OpCodeOperandKind) -> Option<Register> {
        use OpCodeOperandKind as K;
        let vector = |g: &mut Generator, first: Register| Some(first + g.vector_number(draft));
        Some(match kind {
            K::r8_or_mem | K::r8_reg | K::r8_opcode => self.byte(draft),
            K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => {
                self.general(draft, Register::AX)
            }
            K::r32_or_mem | K::r32_or_mem_mpx | K::r32_reg | K::r32_reg_mem | K::r32_rm => {
                self.general(draft, Register::EAX)
            }
            K::r32_opcode | K::r32_vvvv => self.general(draft, Register::EAX),
            K::r64_or_mem | K::r64_or_mem_mpx | K::r64_reg | K::r64_reg_mem | K::r64_rm => {
                self.general(draft, Register::RAX)
            }
            K::r64_opcode | K::r64_vvvv => self.general(draft, Register::RAX),
            K::mm_or_mem | K::mm_reg | K::mm_rm => Register::MM0 + self.rng.u32(..8),
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmmp3_vvvv => {
                return vector(self, Register::XMM0);
            }
            K::xmm_is4 | K::xmm_is5 => return vector(self, Register::XMM0),
            K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => {
                return vector(self, Register::YMM0);
            }
            K::zmm_or_mem | K::zmm_reg | K::zmm_rm | K::zmm_vvvv | K::zmmp3_vvvv => {
                return vector(self, Register::ZMM0);
            }
            K::k_or_mem | K::k_reg | K::kp1_reg | K::k_rm | K::k_vvvv => Register::K0 + self.rng.u32(..8),
            K::bnd_or_mem_mpx | K::bnd_reg => Register::BND0 + self.rng.u32(..4),
            K::tmm_reg | K::tmm_rm | K::tmm_vvvv => Register::TMM0 + self.rng.u32(..8),
            K::seg_reg => Register::ES + self.rng.u32(..6),
            K::cr_reg => choose(
                &mut self.rng,
                &[Register::CR0, Register::CR2, Register::CR3, Register::CR4, Register::CR8],
            ),
            K::dr_reg => Register::DR0 + self.rng.u32(..8),
            K::es => Register::ES,
            K::cs => Register::CS,
            K::ss => Register::SS,
            K::ds => Register::DS,
            K::fs => Register::FS,
            K::gs => Register::GS,
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            K::st0 => Register::ST0,
            K::sti_opcode => Register::ST0 + self.rng.u32(..8),
            _ => return None,
        })
    }

    /// An immediate of so many bits, sign-extended: random, small, or at an edge.
    fn immediate(&mut self, bits: u32) -> i64 {
        let rng = &mut self.rng;
        let value = match rng.u32(..8) {
            0 => rng.i64(-2..3),
            1 => rng.i64(0..64),
            2 => i64::MIN >> (64 - bits),
            3 => i64::MAX >> (64 - bits),
            _ => rng.i64(..),
        };
        value << (64 - bits) >> (64 - bits)
    }

    /// A place in the code page to go to, as an instruction pointer.
    pub fn code_target(&mut self, bits: Bits) -> u64 {
        let offset = self.rng.u64(..layout::PAGE);
        match bits {
            Bits::Bits16 => offset,
            _ => layout::CODE + offset,
        }
    }

    /// Gives the instruction its operands, masks and rounding. None: these do not go together, try others.
    pub fn operands(&mut self, draft: &mut Draft) -> Option<()> {
        let code = draft.cell.code;
        let info = code.op_code();
        draft.instruction = Instruction::default();
        draft.instruction.set_code(code);
        let mut immediates = 0;
        for (n, kind) in info.op_kinds().iter().enumerate() {
            let n = n as u32;
            let memory = crate::coverage::memory_only(*kind);
            let either = crate::coverage::register_or_memory(*kind);
            if memory || either && draft.cell.form == Form::Memory {
                self.memory_operand(draft, n, *kind)?;
            } else if let Some(register) = self.register_operand(draft, *kind) {
                draft.instruction.set_op_kind(n, OpKind::Register);
                draft.instruction.set_op_register(n, register);
            } else {
                self.immediate_operand(draft, n, *kind, immediates)?;
                immediates += 1;
            }
        }
        self.masks_and_rounding(draft);
        let repeat = draft.cell.form == Form::Memory;
        if repeat && info.can_use_rep_prefix() && chance(&mut self.rng, 40) {
            draft.instruction.set_has_rep_prefix(true);
        } else if repeat && info.can_use_repne_prefix() && chance(&mut self.rng, 30) {
            draft.instruction.set_has_repne_prefix(true);
        }
        if info.can_use_lock_prefix() && draft.cell.form == Form::Memory && chance(&mut self.rng, 25) {
            draft.instruction.set_has_lock_prefix(true);
        }
        distinct(&draft.instruction).then_some(())
    }

    fn immediate_operand(
        &mut self,
        draft: &mut Draft,
        n: u32,
        kind: OpCodeOperandKind,
        before: u32,
    ) -> Option<()> {
        use OpCodeOperandKind as K;
        let bits = draft.case.bits;
        let mut immediate = |g: &mut Generator, kind: OpKind, width: u32| {
            draft.instruction.set_op_kind(n, kind);
            let value = g.immediate(width);
            draft.instruction.set_immediate_i64(n, value);
        };
        match kind {
            K::imm8 | K::imm4_m2z => {
                let mut value = self.immediate(8) as u8;
                // INT 80H is the host's kernel's.
                if draft.cell.code == iced_x86::Code::Int_imm8 && value == 0x80 {
                    value = 3;
                }
                if kind == K::imm4_m2z {
                    value &= 15;
                }
                if before == 0 {
                    draft.instruction.set_op_kind(n, OpKind::Immediate8);
                    draft.instruction.set_immediate8(value);
                } else {
                    draft.instruction.set_op_kind(n, OpKind::Immediate8_2nd);
                    draft.instruction.set_immediate8_2nd(value);
                }
            }
            K::imm8_const_1 => {
                draft.instruction.set_op_kind(n, OpKind::Immediate8);
                draft.instruction.set_immediate8(1);
            }
            K::imm8sex16 => immediate(self, OpKind::Immediate8to16, 8),
            K::imm8sex32 => immediate(self, OpKind::Immediate8to32, 8),
            K::imm8sex64 => immediate(self, OpKind::Immediate8to64, 8),
            K::imm16 => {
                draft.instruction.set_op_kind(n, OpKind::Immediate16);
                let value = self.immediate(16) as u16;
                draft.instruction.set_immediate16(value);
            }
            K::imm32 => {
                draft.instruction.set_op_kind(n, OpKind::Immediate32);
                let value = self.immediate(32) as u32;
                draft.instruction.set_immediate32(value);
            }
            K::imm32sex64 => immediate(self, OpKind::Immediate32to64, 32),
            K::imm64 => immediate(self, OpKind::Immediate64, 64),
            K::br16_1 | K::br32_1 | K::br64_1 => {
                // Behind the instruction, so that a short displacement reaches it.
                let target = draft.case.rip().wrapping_add(self.rng.i64(-100..100) as u64);
                self.near_branch(draft, n, kind, target);
            }
            K::br16_2 | K::br32_4 | K::br64_4 | K::brdisp_2 | K::brdisp_4 => {
                let target = self.code_target(bits);
                self.near_branch(draft, n, kind, target);
            }
            K::xbegin_2 | K::xbegin_4 => {
                let kind = match bits {
                    Bits::Bits16 => OpKind::NearBranch16,
                    Bits::Bits32 => OpKind::NearBranch32,
                    Bits::Bits64 => OpKind::NearBranch64,
                };
                draft.instruction.set_op_kind(n, kind);
                let target = self.code_target(bits);
                draft.instruction.set_near_branch64(target);
            }
            K::farbr2_2 => {
                draft.instruction.set_op_kind(n, OpKind::FarBranch16);
                let (selector, target) = self.far_target(bits);
                draft.instruction.set_far_branch16(target as u16);
                draft.instruction.set_far_branch_selector(selector);
            }
            K::farbr4_2 => {
                draft.instruction.set_op_kind(n, OpKind::FarBranch32);
                let (selector, target) = self.far_target(bits);
                draft.instruction.set_far_branch32(target as u32);
                draft.instruction.set_far_branch_selector(selector);
            }
            _ => return None,
        }
        Some(())
    }

    fn near_branch(&mut self, draft: &mut Draft, n: u32, kind: OpCodeOperandKind, target: u64) {
        use OpCodeOperandKind as K;
        match kind {
            K::br16_1 | K::br16_2 | K::brdisp_2 => {
                draft.instruction.set_op_kind(n, OpKind::NearBranch16);
                draft.instruction.set_near_branch16(target as u16);
            }
            K::br32_1 | K::br32_4 | K::brdisp_4 => {
                draft.instruction.set_op_kind(n, OpKind::NearBranch32);
                draft.instruction.set_near_branch32(target as u32);
            }
            _ => {
                draft.instruction.set_op_kind(n, OpKind::NearBranch64);
                draft.instruction.set_near_branch64(target);
            }
        }
    }

    /// A far pointer: mostly to a code segment, with an instruction pointer in the code page.
    pub fn far_target(&mut self, bits: Bits) -> (u16, u64) {
        let selector = match self.rng.u32(..10) {
            0..5 => bits.code_selector(),
            5 => layout::CODE16,
            6 => layout::CODE32,
            7 => layout::CODE64,
            _ => super::draft::selector(&mut self.rng),
        };
        let target = match selector {
            layout::CODE16 => self.code_target(Bits::Bits16),
            _ => self.code_target(Bits::Bits32),
        };
        (selector, target)
    }

    fn masks_and_rounding(&mut self, draft: &mut Draft) {
        match draft.cell.mask {
            Mask::None => {}
            mask => {
                let k = Register::K1 + self.rng.u32(..7);
                draft.instruction.set_op_mask(k);
                draft.instruction.set_zeroing_masking(mask == Mask::Zero);
            }
        }
        draft.instruction.set_is_broadcast(draft.cell.broadcast);
        match draft.cell.rounding {
            Rounding::None => {}
            Rounding::Sae => draft.instruction.set_suppress_all_exceptions(true),
            Rounding::Nearest => draft.instruction.set_rounding_control(RoundingControl::RoundToNearest),
            Rounding::Down => draft.instruction.set_rounding_control(RoundingControl::RoundDown),
            Rounding::Up => draft.instruction.set_rounding_control(RoundingControl::RoundUp),
            Rounding::Zero => draft.instruction.set_rounding_control(RoundingControl::RoundTowardZero),
        }
    }
}

/// Whether the operands that must differ do. SDM vol. 2C, VGATHERDPS, VPGATHERDD and their like: #UD otherwise.
fn distinct(instruction: &Instruction) -> bool {
    let info = instruction.op_code();
    if !info.requires_unique_reg_nums() && !info.requires_unique_dest_reg_num() {
        return true;
    }
    let class = |r: Register| (r.is_vector_register(), r.is_tmm());
    let mut seen = Vec::with_capacity(4);
    for n in 0..instruction.op_count() {
        let register = match instruction.op_kind(n) {
            OpKind::Register => instruction.op_register(n),
            OpKind::Memory => instruction.memory_index(),
            _ => continue,
        };
        if class(register) != (false, false) {
            seen.push(register.number());
        }
    }
    let destination = seen.first().copied();
    let rest = seen.get(1..).unwrap_or(&[]);
    let unique = !rest.iter().any(|n| Some(*n) == destination);
    let all = (1..rest.len()).all(|n| !rest[..n].contains(&rest[n]));
    unique && (all || !info.requires_unique_reg_nums())
}
