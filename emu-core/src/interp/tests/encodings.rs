//! Every encoding of a mnemonic in 64-bit mode: with registers, high bytes, one register for all, memory, LOCK.

use decoder::{Attr, attrs};
use iced_x86::{
    Code, Encoder, EncodingKind, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind as K, OpKind,
    Register,
};

/// One encoded form.
pub struct Encoding {
    /// Its code.
    pub code: Code,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether an operand is memory.
    pub memory: bool,
    /// What to say in a failure.
    pub text: String,
    /// The instruction.
    pub instruction: Instruction,
}

/// The displacement of the memory operand from RBX.
pub const DISPLACEMENT: i64 = 0x40;

/// Register numbers by operand position. RBX is the base of the memory operand, and RSP nobody's.
const ASSIGNMENTS: &[[usize; 4]] = &[[1, 6, 9, 10], [8, 0, 1, 2], [0, 0, 0, 0], [2, 15, 5, 7]];

const BYTES: [Register; 16] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::SPL,
    Register::BPL,
    Register::SIL,
    Register::DIL,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R12L,
    Register::R13L,
    Register::R14L,
    Register::R15L,
];

/// The register operand of this kind with number `n`, or `None` if the kind is no such register.
fn register(kind: K, n: usize, high: bool) -> Option<Register> {
    Some(match kind {
        K::r8_reg | K::r8_or_mem if high => [Register::AH, Register::CH, Register::DH, Register::AH][n & 3],
        K::r8_reg | K::r8_or_mem => BYTES[n & 15],
        K::r16_reg | K::r16_or_mem | K::r16_rm | K::r16_opcode => Register::AX + n as u32,
        K::r32_reg | K::r32_or_mem | K::r32_rm | K::r32_vvvv | K::r32_opcode => Register::EAX + n as u32,
        K::r64_reg | K::r64_or_mem | K::r64_rm | K::r64_vvvv | K::r64_opcode => Register::RAX + n as u32,
        K::al => Register::AL,
        K::cl => Register::CL,
        K::ax => Register::AX,
        K::eax => Register::EAX,
        K::rax => Register::RAX,
        _ => return None,
    })
}

fn is_memory(kind: K) -> bool {
    matches!(kind, K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::mem)
}

fn immediate(kind: K) -> Option<OpKind> {
    Some(match kind {
        K::imm8 => OpKind::Immediate8,
        K::imm8_const_1 => OpKind::Immediate8,
        K::imm16 => OpKind::Immediate16,
        K::imm32 => OpKind::Immediate32,
        K::imm64 => OpKind::Immediate64,
        K::imm8sex16 => OpKind::Immediate8to16,
        K::imm8sex32 => OpKind::Immediate8to32,
        K::imm8sex64 => OpKind::Immediate8to64,
        K::imm32sex64 => OpKind::Immediate32to64,
        _ => return None,
    })
}

/// Every form of these mnemonics that 64-bit mode has, with these immediates.
pub fn encodings(mnemonics: &[Mnemonic], immediates: &[u64]) -> Vec<Encoding> {
    let mut out = Vec::new();
    for code in Code::values().filter(|c| mnemonics.contains(&c.mnemonic())) {
        let info = code.op_code();
        // Knights Corner's encodings and XOP's went with the processors that had it.
        if !info.mode64()
            || !info.is_instruction()
            || info.encoding() == EncodingKind::XOP
            || format!("{code:?}").starts_with("VEX_KNC")
        {
            continue;
        }
        let kinds: Vec<K> = (0..info.op_count()).map(|n| info.op_kind(n)).collect();
        let has_imm = kinds.iter().any(|k| immediate(*k).is_some() && *k != K::imm8_const_1);
        let imms: &[u64] = if has_imm { immediates } else { &[1] };
        for memory in [false, true] {
            if memory && !kinds.iter().any(|k| is_memory(*k)) {
                continue;
            }
            for (row, numbers) in ASSIGNMENTS.iter().enumerate() {
                for high in [false, true] {
                    if high && !kinds.iter().any(|k| matches!(k, K::r8_reg | K::r8_or_mem)) {
                        continue;
                    }
                    for &imm in imms {
                        let Some(e) = encode(code, &kinds, memory, numbers, high, imm) else { continue };
                        // XCHG is locked without.
                        if memory && attrs(code).attr.contains(Attr::LOCKABLE) && imm == imms[0] {
                            out.push(locked(&e));
                        }
                        out.push(e);
                    }
                }
                // Without register operands one row says all.
                if memory && kinds.len() == 1 && row == 0 {
                    break;
                }
            }
        }
    }
    assert!(!out.is_empty(), "{mnemonics:?}");
    out
}

/// The same with a LOCK prefix.
fn locked(e: &Encoding) -> Encoding {
    let mut bytes = vec![0xf0];
    bytes.extend(&e.bytes);
    Encoding { bytes, text: format!("lock {}", e.text), ..*e }
}

fn encode(
    code: Code,
    kinds: &[K],
    memory: bool,
    numbers: &[usize; 4],
    high: bool,
    imm: u64,
) -> Option<Encoding> {
    let mut i = Instruction::new();
    i.set_code(code);
    let mut has_memory = false;
    for (at, &kind) in kinds.iter().enumerate() {
        let at32 = at as u32;
        if (memory && is_memory(kind)) || kind == K::mem {
            if !memory {
                return None;
            }
            has_memory = true;
            i.set_op_kind(at32, OpKind::Memory);
            let m = MemoryOperand::with_base_displ(Register::RBX, DISPLACEMENT);
            i.set_memory_base(m.base);
            i.set_memory_displ_size(1);
            i.set_memory_displacement64(DISPLACEMENT as u64);
            i.set_memory_index_scale(1);
        } else if let Some(r) = register(kind, *numbers.get(at)?, high) {
            i.set_op_kind(at32, OpKind::Register);
            i.set_op_register(at32, r);
        } else if let Some(k) = immediate(kind) {
            i.set_op_kind(at32, k);
            let v = if kind == K::imm8_const_1 { 1 } else { imm };
            match k {
                OpKind::Immediate8 => i.set_immediate8(v as u8),
                OpKind::Immediate16 => i.set_immediate16(v as u16),
                OpKind::Immediate32 => i.set_immediate32(v as u32),
                OpKind::Immediate64 => i.set_immediate64(v),
                OpKind::Immediate8to16 => i.set_immediate8to16(v as i8 as i16),
                OpKind::Immediate8to32 => i.set_immediate8to32(v as i8 as i32),
                OpKind::Immediate8to64 => i.set_immediate8to64(v as i8 as i64),
                _ => i.set_immediate32to64(v as i32 as i64),
            }
        } else {
            return None;
        }
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&i, 0).ok()?;
    let bytes = encoder.take_buffer();
    let text = format!("{i} {code:?} {bytes:02x?}");
    Some(Encoding { code, bytes, memory: has_memory, text, instruction: i })
}
