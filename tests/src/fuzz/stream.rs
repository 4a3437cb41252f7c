//! Random instructions: any code that the encoder has, with random operands that mostly point where memory is.

use super::environment::{CODE, DATA, DATA_SIZE, Mode, SLOTS};
use super::handlers::Handlers;
use super::random::Random;
use decoder::CpuMode;
use iced_x86::{Code, Encoder, Instruction, OpCodeOperandKind as K, OpKind, Register};

/// Bytes of a slot: the longest instruction and a NOP.
pub const SLOT: u64 = 16;

/// A case's code: slots, and a jump back to the first.
pub fn code(random: &mut Random, mode: Mode, handlers: &Handlers) -> Vec<u8> {
    let mut out = Vec::new();
    let size = mode.code_size();
    for n in 0..SLOTS {
        let at = n * SLOT;
        let mut bytes = if random.one_in(5) {
            let len = 1 + random.below(15);
            random.bytes(len)
        } else {
            handlers
                .pick(random, size)
                .and_then(|code| encode(code, size, random, mode.code_start() + at))
                .unwrap_or_else(|| random.bytes(6))
        };
        bytes.resize(SLOT as usize, 0x90);
        out.extend(bytes);
    }
    // jmp rel16 or rel32 to the first slot.
    let distance = -(out.len() as i64);
    out.push(0xe9);
    if size == CpuMode::Bits16 {
        out.extend(((distance - 3) as i16).to_le_bytes());
    } else {
        out.extend(((distance - 5) as i32).to_le_bytes());
    }
    out
}

/// Encodes `code` with random operands; a near branch goes to a slot. `None`: this form does not exist.
pub fn encode(code: Code, mode: CpuMode, random: &mut Random, at: u64) -> Option<Vec<u8>> {
    let info = code.op_code();
    let has = match mode {
        CpuMode::Bits64 => info.mode64(),
        CpuMode::Bits32 => info.mode32(),
        CpuMode::Bits16 => info.mode16(),
    };
    if !has || !info.is_instruction() {
        return None;
    }
    let mut insn = Instruction::default();
    insn.set_code(code);
    for (op, &kind) in info.op_kinds().iter().enumerate() {
        operand(&mut insn, op as u32, kind, mode, random, at)?;
    }
    if info.can_use_op_mask_register() && (info.require_op_mask_register() || random.one_in(2)) {
        insn.set_op_mask(Register::K1 + random.below(7) as u32);
        if info.can_use_zeroing_masking() && random.one_in(2) {
            insn.set_zeroing_masking(true);
        }
    }
    if info.can_broadcast() && random.one_in(3) {
        insn.set_is_broadcast(true);
    }
    if info.can_use_lock_prefix() && random.one_in(2) {
        insn.set_has_lock_prefix(true);
    }
    if info.can_use_rep_prefix() && random.one_in(2) {
        insn.set_has_rep_prefix(true);
    } else if info.can_use_repne_prefix() && random.one_in(3) {
        insn.set_has_repne_prefix(true);
    }
    let mut encoder = Encoder::new(mode.bitness());
    encoder.encode(&insn, at).ok()?;
    Some(encoder.take_buffer())
}

/// Near branches go to a slot of the code that `at` is in.
fn target(random: &mut Random, at: u64) -> u64 {
    (at & !(SLOTS * SLOT - 1)) + SLOT * random.below(SLOTS as usize) as u64
}

/// A register number: the stack pointer is left alone more often than not.
fn number(random: &mut Random, mode: CpuMode) -> u32 {
    let count = if mode == CpuMode::Bits64 { 16 } else { 8 };
    match random.below(count) as u32 {
        4 if !random.one_in(8) => 0,
        n => n,
    }
}

fn memory(insn: &mut Instruction, op: u32, mode: CpuMode, random: &mut Random, index: Option<Register>) {
    insn.set_op_kind(op, OpKind::Memory);
    if random.one_in(8) {
        insn.set_segment_prefix(random.pick(&[
            Register::ES,
            Register::CS,
            Register::SS,
            Register::DS,
            Register::FS,
            Register::GS,
        ]));
    }
    let displacement = random.pick(&[0, 0, 1, 8, 0x40, 0xff8, 0xffd, -8i32]);
    if mode == CpuMode::Bits16 && index.is_none() {
        let (base, more) = random.pick(&[
            (Register::BX, Register::SI),
            (Register::BP, Register::DI),
            (Register::SI, Register::None),
            (Register::BX, Register::None),
        ]);
        insn.set_memory_base(base);
        insn.set_memory_index(more);
        insn.set_memory_displ_size(2);
        insn.set_memory_displacement64(u64::from(displacement as u16));
        return;
    }
    let wide = mode == CpuMode::Bits64 && !random.one_in(8);
    if wide && index.is_none() && random.one_in(8) {
        // RIP-relative, into the data.
        insn.set_memory_base(Register::RIP);
        insn.set_memory_displ_size(8);
        insn.set_memory_displacement64(DATA + random.below(DATA_SIZE as usize) as u64);
        return;
    }
    let first = if wide { Register::RAX } else { Register::EAX };
    let base = if mode == CpuMode::Bits64 { random.below(16) } else { random.below(8) } as u32;
    insn.set_memory_base(first + base);
    if let Some(index) = index {
        insn.set_memory_index(index);
        insn.set_memory_index_scale(random.pick(&[1, 2, 4, 8]));
    } else if random.one_in(4) {
        // RCX is small.
        insn.set_memory_index(first + 1u32);
        insn.set_memory_index_scale(random.pick(&[1, 2, 4, 8]));
    }
    insn.set_memory_displ_size(if displacement == 0 {
        0
    } else if mode == CpuMode::Bits64 {
        8
    } else {
        4
    });
    let value = if wide { i64::from(displacement) as u64 } else { u64::from(displacement as u32) };
    insn.set_memory_displacement64(value);
}

fn immediate(insn: &mut Instruction, op: u32, kind: OpKind, random: &mut Random) {
    insn.set_op_kind(op, kind);
    let small = random.below(64) as i64;
    let value = match kind {
        OpKind::Immediate8to16 | OpKind::Immediate8to32 | OpKind::Immediate8to64 => {
            i64::from(random.next() as i8)
        }
        OpKind::Immediate16 if random.one_in(2) => i64::from(random.next() as u16),
        OpKind::Immediate32to64 => i64::from(random.next() as i32),
        OpKind::Immediate32 if random.one_in(2) => i64::from(random.next() as i32),
        OpKind::Immediate64 => DATA as i64 + small,
        _ => small,
    };
    match kind {
        OpKind::Immediate16 => insn.set_immediate16(value as u16),
        OpKind::Immediate32 => insn.set_immediate32(value as u32),
        _ => insn.set_immediate_i64(op, value),
    }
}

fn operand(
    insn: &mut Instruction,
    op: u32,
    kind: K,
    mode: CpuMode,
    random: &mut Random,
    at: u64,
) -> Option<()> {
    let wide = mode == CpuMode::Bits64;
    let n = number(random, mode);
    let small = random.below(8) as u32;
    let vector = random.below(if wide { 16 } else { 8 }) as u32;
    let is_memory = random.one_in(2);
    let mut reg = |first: Register, number: u32| insn.set_op_register(op, first + number);
    match kind {
        K::None => {}
        K::al => reg(Register::AL, 0),
        K::cl => reg(Register::CL, 0),
        K::ax => reg(Register::AX, 0),
        K::dx => reg(Register::DX, 0),
        K::eax => reg(Register::EAX, 0),
        K::rax => reg(Register::RAX, 0),
        K::es => reg(Register::ES, 0),
        K::cs => reg(Register::CS, 0),
        K::ss => reg(Register::SS, 0),
        K::ds => reg(Register::DS, 0),
        K::fs => reg(Register::FS, 0),
        K::gs => reg(Register::GS, 0),
        K::st0 => reg(Register::ST0, 0),
        K::sti_opcode => reg(Register::ST0, small),
        // AL to BH: the numbers of the encoding without REX.
        K::r8_reg | K::r8_opcode => reg(Register::AL, small),
        K::r16_reg | K::r16_rm | K::r16_opcode | K::r16_reg_mem => reg(Register::AX, n),
        K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv | K::r32_reg_mem => reg(Register::EAX, n),
        K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv | K::r64_reg_mem => reg(Register::RAX, n),
        K::seg_reg => reg(Register::ES, random.below(6) as u32),
        K::cr_reg => reg(Register::CR0, random.pick(&[0, 2, 3, 4, if wide { 8 } else { 0 }])),
        K::dr_reg => reg(Register::DR0, small),
        K::tr_reg => reg(Register::TR0, small),
        K::bnd_reg => reg(Register::BND0, small & 3),
        K::k_reg | K::k_rm | K::k_vvvv => reg(Register::K0, small),
        K::kp1_reg => reg(Register::K0, small & 6),
        K::mm_reg | K::mm_rm => reg(Register::MM0, small),
        K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => reg(Register::XMM0, vector),
        K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => reg(Register::YMM0, vector),
        K::zmm_reg | K::zmm_rm | K::zmm_vvvv => reg(Register::ZMM0, vector),
        K::xmmp3_vvvv => reg(Register::XMM0, vector & !3),
        K::zmmp3_vvvv => reg(Register::ZMM0, vector & !3),
        K::tmm_reg | K::tmm_rm | K::tmm_vvvv => reg(Register::TMM0, small),
        K::farbr2_2 => {
            insn.set_op_kind(op, OpKind::FarBranch16);
            insn.set_far_branch16(target(random, at) as u16);
            insn.set_far_branch_selector(random.pick(&[8, 0x18, 0x20, 0x33, 0x43, 0, 0x58]));
        }
        K::farbr4_2 => {
            insn.set_op_kind(op, OpKind::FarBranch32);
            insn.set_far_branch32(target(random, at) as u32);
            insn.set_far_branch_selector(random.pick(&[8, 0x18, 0x20, 0x33, 0x43, 0, 0x58]));
        }
        K::br16_1 | K::br16_2 => {
            insn.set_op_kind(op, OpKind::NearBranch16);
            insn.set_near_branch16(target(random, at) as u16);
        }
        K::br32_1 | K::br32_4 => {
            insn.set_op_kind(op, OpKind::NearBranch32);
            insn.set_near_branch32(target(random, at) as u32);
        }
        K::br64_1 | K::br64_4 => {
            insn.set_op_kind(op, OpKind::NearBranch64);
            insn.set_near_branch64(target(random, at));
        }
        K::xbegin_2 | K::xbegin_4 | K::brdisp_2 | K::brdisp_4 => {
            insn.set_op_kind(op, if wide { OpKind::NearBranch64 } else { OpKind::NearBranch32 });
            insn.set_near_branch64(target(random, at));
        }
        K::imm8_const_1 => {
            insn.set_op_kind(op, OpKind::Immediate8);
            insn.set_immediate8(1);
        }
        K::imm8 | K::imm4_m2z => {
            // The second of two: EXTRQ, INSERTQ, ENTER.
            let before = op.checked_sub(1).map(|o| insn.op_kind(o));
            if matches!(before, Some(OpKind::Immediate8 | OpKind::Immediate16)) {
                insn.set_op_kind(op, OpKind::Immediate8_2nd);
                insn.set_immediate8_2nd(small as u8);
            } else {
                insn.set_op_kind(op, OpKind::Immediate8);
                insn.set_immediate8(if kind == K::imm8 { random.next() as u8 } else { small as u8 & 15 });
            }
        }
        K::imm8sex16 => immediate(insn, op, OpKind::Immediate8to16, random),
        K::imm8sex32 => immediate(insn, op, OpKind::Immediate8to32, random),
        K::imm8sex64 => immediate(insn, op, OpKind::Immediate8to64, random),
        K::imm16 => immediate(insn, op, OpKind::Immediate16, random),
        K::imm32 => immediate(insn, op, OpKind::Immediate32, random),
        K::imm32sex64 => immediate(insn, op, OpKind::Immediate32to64, random),
        K::imm64 => immediate(insn, op, OpKind::Immediate64, random),
        K::seg_rSI => insn.set_op_kind(
            op,
            by_mode(mode, [OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI]),
        ),
        K::es_rDI => insn
            .set_op_kind(op, by_mode(mode, [OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI])),
        K::seg_rDI => insn.set_op_kind(
            op,
            by_mode(mode, [OpKind::MemorySegDI, OpKind::MemorySegEDI, OpKind::MemorySegRDI]),
        ),
        K::seg_rBX_al => {
            insn.set_op_kind(op, OpKind::Memory);
            insn.set_memory_base(by_mode(mode, [Register::BX, Register::EBX, Register::RBX]));
            insn.set_memory_index(Register::AL);
        }
        K::mem_offs => {
            insn.set_op_kind(op, OpKind::Memory);
            insn.set_memory_displ_size(u32::from(mode.bitness() as u8) / 8);
            let offset = random.below(DATA_SIZE as usize) as u64;
            insn.set_memory_displacement64(if mode == CpuMode::Bits16 { offset } else { DATA + offset });
        }
        K::mem_vsib32x | K::mem_vsib64x => memory(insn, op, mode, random, Some(Register::XMM0 + vector)),
        K::mem_vsib32y | K::mem_vsib64y => memory(insn, op, mode, random, Some(Register::YMM0 + vector)),
        K::mem_vsib32z | K::mem_vsib64z => memory(insn, op, mode, random, Some(Register::ZMM0 + vector)),
        K::mem | K::mem_mpx | K::mem_mib | K::sibmem => memory(insn, op, mode, random, None),
        _ => {
            let (first, number) = match kind {
                K::r8_or_mem => (Register::AL, small),
                K::r16_or_mem => (Register::AX, n),
                K::r32_or_mem | K::r32_or_mem_mpx => (Register::EAX, n),
                K::r64_or_mem | K::r64_or_mem_mpx => (Register::RAX, n),
                K::mm_or_mem => (Register::MM0, small),
                K::xmm_or_mem => (Register::XMM0, vector),
                K::ymm_or_mem => (Register::YMM0, vector),
                K::zmm_or_mem => (Register::ZMM0, vector),
                K::bnd_or_mem_mpx => (Register::BND0, small & 3),
                K::k_or_mem => (Register::K0, small),
                _ => return None,
            };
            if is_memory {
                memory(insn, op, mode, random, None);
            } else {
                insn.set_op_register(op, first + number);
            }
        }
    }
    Some(())
}

fn by_mode<T: Copy>(mode: CpuMode, [b16, b32, b64]: [T; 3]) -> T {
    match mode {
        CpuMode::Bits16 => b16,
        CpuMode::Bits32 => b32,
        CpuMode::Bits64 => b64,
    }
}

/// Where the code is, for a target's slot arithmetic.
const _: () = assert!(CODE.is_multiple_of(SLOTS * SLOT));
