//! Test-only: each encoding of the register and memory families against the host's processor, with all status
//! flags clear and all set before, on values at the edges and on drawn ones.
//!
//! What the SDM leaves undefined (`decoder::attrs` for the flags) is compared on AMD's processors only.
#![allow(unsafe_code)]

use super::encodings::{DISPLACEMENT, Encoding, encodings};
use crate::exit::Stop;
use crate::host_cpu;
use crate::oracle::{Native, State};
use crate::rig::{DATA, Mode, Rig};
use decoder::flag_use;
use iced_x86::Mnemonic as M;
use x86_arch::{Exception, Gpr, Rflags, Vector};

const STATUS: u64 = Rflags::STATUS.bits();
const RBX: usize = Gpr::Rbx as usize;
const RSP: usize = Gpr::Rsp as usize;

const EDGES: &[u64] = &[
    0,
    1,
    2,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    32,
    33,
    63,
    64,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    i64::MAX as u64,
    i64::MIN as u64,
    u64::MAX,
];

/// A plain generator: the same values in each run.
pub struct Draw(u64);

impl Draw {
    pub fn new(seed: u64) -> Draw {
        Draw(seed | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// An edge, an edge's neighbour, or anything.
    pub fn value(&mut self) -> u64 {
        let r = self.next();
        let edge = EDGES[(r >> 8) as usize % EDGES.len()];
        match r & 7 {
            0..=3 => edge,
            4 => edge.wrapping_neg(),
            5 => 1 << (r >> 16 & 63),
            _ => self.next(),
        }
    }
}

/// A line of the host's buffer, as aligned as CMPXCHG16B asks.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u64; 8]);

const BUFFER: usize = 4096;
/// Where RBX points to in the buffer: bit strings reach to both sides.
const MIDDLE: usize = 2048;

/// Compares `samples` executions of each form.
fn compare(mnemonics: &[M], immediates: &[u64], samples: u64) {
    let mut rig = Rig::new(Mode::Long);
    let mut host = vec![Line([0u64; 8]); BUFFER / 64];
    let amd = host_cpu::cpuid(0, 0).ebx == u32::from_le_bytes(*b"Auth");
    let mut failures = Vec::new();
    let mut draw = Draw::new(0x5eed);
    for e in encodings(mnemonics, immediates) {
        // SAFETY: these mnemonics neither branch nor use the stack; memory is `host`, through RBX; operands that
        // divide badly are filtered by `divides`.
        let native = unsafe { Native::new(&e.bytes) };
        let insn = rig.decode(&e.bytes);
        // A 16-bit SHLD or SHRD by more than 16 is undefined altogether (SDM vol. 2, SHLD).
        let beyond = matches!(e.code.mnemonic(), M::Shld | M::Shrd) && insn.op_size == 2;
        // The interpreter's choice for what is undefined is AMD's.
        let undefined = if amd { 0 } else { flag_use(&insn).undefined as u64 };
        for n in 0..samples {
            let flags = if n & 1 == 0 { 0 } else { STATUS };
            let mut gpr = [0; 16];
            gpr.iter_mut().for_each(|r| *r = draw.value());
            host.iter_mut().flat_map(|l| &mut l.0).for_each(|w| *w = draw.value());
            if e.memory {
                gpr[RBX] = DATA + MIDDLE as u64;
                bound_bit_offset(&e, &mut gpr);
            }
            let count = if insn.is_reg(2) { gpr[1] } else { insn.imm } & 31;
            if !amd && beyond && count > 16 {
                continue;
            }
            gpr[RSP] = crate::rig::STACK;
            let bytes: Vec<u8> = host.iter().flat_map(|l| l.0).flat_map(u64::to_le_bytes).collect();
            if !divides(&e, &gpr, &bytes) {
                rig.write(DATA, &bytes);
                load(&mut rig, &gpr, flags);
                let before = rig.registers();
                let de = Err(Stop::Exception(Exception::new(Vector::De)));
                assert_eq!(rig.step(&e.bytes), de, "{}", e.text);
                assert_eq!(rig.registers(), before, "{}", e.text);
                continue;
            }
            rig.write(DATA, &bytes);
            load(&mut rig, &gpr, flags);
            let result = rig.step(&e.bytes);
            let mut got = State { gpr: rig.registers().gpr, rflags: rig.flags() & STATUS };
            let mut got_memory = vec![0; BUFFER];
            rig.read(DATA, &mut got_memory);

            let mut state = State { gpr, rflags: flags };
            if e.memory {
                state.gpr[RBX] = host.as_mut_ptr() as u64 + MIDDLE as u64;
            }
            let mut expected = native.execute(state);
            let expected_memory: Vec<u8> = host.iter().flat_map(|l| l.0).flat_map(u64::to_le_bytes).collect();
            if e.memory {
                got.gpr[RBX] = 0;
                expected.gpr[RBX] = 0;
            }
            let mut mask = STATUS & !undefined;
            if beyond && count >= 16 {
                mask &= !Rflags::OF.bits();
            }
            expected.rflags &= mask;
            got.rflags &= mask;
            let fine = result == Ok(()) && got == expected && got_memory == expected_memory;
            if !fine {
                let at = got_memory.iter().zip(&expected_memory).position(|(a, b)| a != b);
                failures.push(format!(
                    "{}: {result:?}\n  before   {gpr:x?} {flags:x}\n  got      {:x?} {:x}\n  expected {:x?} {:x}\n  memory differs at {at:?}",
                    e.text, got.gpr, got.rflags, expected.gpr, expected.rflags
                ));
                break;
            }
        }
    }
    assert!(failures.is_empty(), "{} forms differ:\n{}", failures.len(), failures.join("\n"));
}

fn load(rig: &mut Rig, gpr: &[u64; 16], flags: u64) {
    rig.cpu().hot.regs[..16].copy_from_slice(gpr);
    rig.set_flags(Rflags::STATUS, flags);
}

/// A bit offset from a register reaches at most 128 bytes to each side.
fn bound_bit_offset(e: &Encoding, gpr: &mut [u64; 16]) {
    if matches!(e.code.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
        && e.instruction.op1_kind() == iced_x86::OpKind::Register
    {
        let r = &mut gpr
            [e.instruction.op1_register().full_register() as usize - iced_x86::Register::RAX as usize];
        *r = (*r as i64 % 1024) as u64;
    }
}

/// Whether DIV and IDIV have a quotient: computed with arithmetic wider than theirs.
fn divides(e: &Encoding, gpr: &[u64; 16], memory: &[u8]) -> bool {
    let signed = match e.code.mnemonic() {
        M::Div => false,
        M::Idiv => true,
        _ => return true,
    };
    let mut operand = [0u8; 8];
    let bits;
    if e.memory {
        bits = 8 * e.instruction.memory_size().size() as u32;
        let at = MIDDLE + DISPLACEMENT as usize;
        operand.copy_from_slice(&memory[at..at + 8]);
    } else {
        let r = e.instruction.op0_register();
        bits = 8 * r.size() as u32;
        let full = gpr[r.full_register() as usize - iced_x86::Register::RAX as usize];
        let high = matches!(
            r,
            iced_x86::Register::AH | iced_x86::Register::CH | iced_x86::Register::DH | iced_x86::Register::BH
        );
        operand = (full >> if high { 8 } else { 0 }).to_le_bytes();
    }
    let sign = |v: u128, bits: u32| (v << (128 - bits)) as i128 >> (128 - bits);
    let d = u64::from_le_bytes(operand) as u128 & (u128::MAX >> (128 - bits));
    let mask = u128::MAX >> (128 - bits);
    let n = if bits == 8 {
        gpr[0] as u128 & 0xffff
    } else {
        (gpr[2] as u128 & mask) << bits | gpr[0] as u128 & mask
    };
    if d == 0 {
        return false;
    }
    if !signed {
        return n / d <= mask;
    }
    let (n, d) = (sign(n, 2 * bits), sign(d, bits));
    if n == i128::MIN {
        // The only quotients of -2^127 that fit in 64 bits have a divisor beyond 64 bits.
        return false;
    }
    let q = n / d;
    q >= -(1i128 << (bits - 1)) && q < 1i128 << (bits - 1)
}

#[test]
fn arithmetic_and_logic() {
    compare(
        &[M::Add, M::Or, M::Adc, M::Sbb, M::And, M::Sub, M::Xor, M::Cmp, M::Test],
        &[0, 1, 0x7f, 0x80, 0xff, 0x8000_0000, 0xffff_ffff],
        60,
    );
    compare(&[M::Inc, M::Dec, M::Neg, M::Not], &[], 300);
}

#[test]
fn moves() {
    compare(&[M::Movzx, M::Movsx, M::Movsxd, M::Movbe, M::Bswap], &[], 60);
    compare(&[M::Cbw, M::Cwde, M::Cdqe, M::Cwd, M::Cdq, M::Cqo], &[], 60);
    compare(&[M::Cmovo, M::Cmovbe, M::Cmovl, M::Cmovg, M::Seto, M::Setbe, M::Setl, M::Setg], &[], 60);
    compare(&[M::Xchg], &[], 60);
}

#[test]
fn shifts_and_rotates() {
    let every: Vec<u64> = (0..=70).collect();
    let all = [M::Shl, M::Shr, M::Sar, M::Rol, M::Ror, M::Rcl, M::Rcr];
    compare(&all, &every, 30);
    compare(&all, &[1], 400);
}

#[test]
fn double_shifts() {
    let every: Vec<u64> = (0..=70).collect();
    compare(&[M::Shld, M::Shrd], &every, 30);
    compare(&[M::Shld, M::Shrd], &[1], 400);
}

#[test]
fn multiplication_and_division() {
    compare(&[M::Mul, M::Imul, M::Div, M::Idiv], &[0, 1, 0x7f, 0x80, 0xff, 0x8000_0000, 0xffff_ffff], 400);
}

#[test]
fn bits() {
    let every: Vec<u64> = (0..=70).collect();
    compare(&[M::Bt, M::Bts, M::Btr, M::Btc], &every, 12);
    compare(&[M::Bt, M::Bts, M::Btr, M::Btc], &[1], 400);
    compare(&[M::Bsf, M::Bsr, M::Popcnt], &[], 200);
    compare(&[M::Lzcnt, M::Tzcnt], &[], 200);
}

#[test]
fn bit_manipulation_extensions() {
    compare(
        &[M::Andn, M::Bextr, M::Blsi, M::Blsmsk, M::Blsr, M::Bzhi, M::Mulx, M::Pdep, M::Pext, M::Rorx],
        &[0, 1, 31, 32, 63, 64, 255],
        200,
    );
    compare(&[M::Sarx, M::Shlx, M::Shrx, M::Adcx, M::Adox, M::Crc32], &[], 200);
}

#[test]
fn exchange_and_add() {
    compare(&[M::Cmpxchg, M::Xadd], &[], 400);
    compare(&[M::Cmpxchg8b], &[], 200);
    compare(&[M::Cmpxchg16b], &[], 200);
}

#[test]
fn single_flags() {
    compare(&[M::Lahf, M::Sahf, M::Clc, M::Stc, M::Cmc], &[], 100);
}
