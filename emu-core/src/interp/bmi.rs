//! ANDN, BEXTR, BLSI, BLSMSK, BLSR, BZHI, MULX, PDEP, PEXT, RORX, SARX, SHLX, SHRX, ADCX, ADOX, CRC32 (SDM vol. 2).
//!
//! The VEX-encoded ones have 32- and 64-bit operands only. Of the undefined flags
//! PF follows the result and AF is clear (BEXTR: set), as on AMD's processors.

use super::Handler;
use super::flags::{AF, CF, OF, PF, SF, ZF, pzs};
use super::operand::Int;
use crate::exit::Result;
use crate::vcpu::Vcpu;
use decoder::Insn;
use iced_x86::{Code, Mnemonic};
use x86_arch::Gpr;

const RDX: u8 = Gpr::Rdx as u8;

/// Operand `n`: a register, or memory.
#[inline(always)]
fn operand<T: Int>(c: &mut Vcpu, i: &Insn, n: usize) -> Result<T> {
    if i.is_mem(n) { c.load_mem(i) } else { Ok(c.reg(i.r[n & 3])) }
}

#[inline(always)]
fn carry_if(yes: bool) -> u64 {
    yes as u64
}

fn andn<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let b = operand::<T>(c, i, 2)?;
    let r = T::from_u64(!c.reg::<T>(i.r[1]).to_u64() & b.to_u64());
    c.set_reg(i.r[0], r);
    c.set_status(pzs(r));
    Ok(())
}

/// The lowest `n` bits of `v`, all of them if `n` reaches its width.
#[inline(always)]
fn low_bits(v: u64, n: u32) -> u64 {
    if n >= 64 { v } else { v & ((1 << n) - 1) }
}

fn bextr<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = operand::<T>(c, i, 1)?.to_u64();
    let control = c.reg::<T>(i.r[2]).to_u64();
    let (start, len) = (control as u32 & 0xff, control as u32 >> 8 & 0xff);
    let r = T::from_u64(low_bits(v.checked_shr(start).unwrap_or(0), len));
    c.set_reg(i.r[0], r);
    c.set_status(AF | pzs(r) & (ZF | PF));
    Ok(())
}

fn blsi<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = operand::<T>(c, i, 1)?;
    let r = T::from_u64(v.to_u64().wrapping_neg() & v.to_u64());
    c.set_reg(i.r[0], r);
    c.set_status(pzs(r) | carry_if(v != T::ZERO));
    Ok(())
}

fn blsmsk<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = operand::<T>(c, i, 1)?;
    let r = T::from_u64(v.to_u64().wrapping_sub(1) ^ v.to_u64());
    c.set_reg(i.r[0], r);
    c.set_status(pzs(r) & (SF | PF) | carry_if(v == T::ZERO));
    Ok(())
}

fn blsr<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = operand::<T>(c, i, 1)?;
    let r = T::from_u64(v.to_u64().wrapping_sub(1) & v.to_u64());
    c.set_reg(i.r[0], r);
    c.set_status(pzs(r) | carry_if(v == T::ZERO));
    Ok(())
}

fn bzhi<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = operand::<T>(c, i, 1)?;
    let n = c.reg::<T>(i.r[2]).to_u64() as u32 & 0xff;
    let r = T::from_u64(low_bits(v.to_u64(), n));
    c.set_reg(i.r[0], r);
    c.set_status(pzs(r) | carry_if(n >= T::BITS));
    Ok(())
}

/// No flags. If both destinations are one register it gets the upper half.
fn mulx<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let b = operand::<T>(c, i, 2)?;
    let p = c.reg::<T>(RDX).to_u64() as u128 * b.to_u64() as u128;
    c.set_reg(i.r[1], T::from_u64(p as u64));
    c.set_reg(i.r[0], T::from_u64((p >> T::BITS) as u64));
    Ok(())
}

fn pdep<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let mut mask = operand::<T>(c, i, 2)?.to_u64();
    let v = c.reg::<T>(i.r[1]).to_u64();
    let (mut r, mut from) = (0, 0);
    while mask != 0 {
        r |= (v >> from & 1) << mask.trailing_zeros();
        mask &= mask - 1;
        from += 1;
    }
    c.set_reg(i.r[0], T::from_u64(r));
    Ok(())
}

fn pext<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let mut mask = operand::<T>(c, i, 2)?.to_u64();
    let v = c.reg::<T>(i.r[1]).to_u64();
    let (mut r, mut to) = (0, 0);
    while mask != 0 {
        r |= (v >> mask.trailing_zeros() & 1) << to;
        mask &= mask - 1;
        to += 1;
    }
    c.set_reg(i.r[0], T::from_u64(r));
    Ok(())
}

fn rorx<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = operand::<T>(c, i, 1)?.to_u64();
    let n = i.imm as u32 & (T::BITS - 1);
    let r = if n == 0 { v } else { v >> n | v << (T::BITS - n) };
    c.set_reg(i.r[0], T::from_u64(r));
    Ok(())
}

fn count<T: Int>(c: &Vcpu, i: &Insn) -> u32 {
    c.reg::<T>(i.r[2]).to_u64() as u32 & (T::BITS - 1)
}

fn sarx<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let r = operand::<T>(c, i, 1)?.to_i64() >> count::<T>(c, i);
    c.set_reg(i.r[0], T::from_u64(r as u64));
    Ok(())
}

fn shlx<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let r = operand::<T>(c, i, 1)?.to_u64() << count::<T>(c, i);
    c.set_reg(i.r[0], T::from_u64(r));
    Ok(())
}

fn shrx<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let r = operand::<T>(c, i, 1)?.to_u64() >> count::<T>(c, i);
    c.set_reg(i.r[0], T::from_u64(r));
    Ok(())
}

/// ADCX (`FLAG` is CF) and ADOX (OF): no other flag is read or written.
fn add_with<const FLAG: u64, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let b = operand::<T>(c, i, 1)?.to_u64() as u128;
    let carry = (c.hot.rflags & FLAG != 0) as u128;
    let sum = c.reg::<T>(i.r[0]).to_u64() as u128 + b + carry;
    c.set_reg(i.r[0], T::from_u64(sum as u64));
    let out = if sum >> T::BITS != 0 { FLAG } else { 0 };
    c.hot.rflags = c.hot.rflags & !FLAG | out;
    Ok(())
}

/// One byte at a time, the polynomial 11EDC6F41H reflected. No flags.
fn crc32<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    const TABLE: [u32; 256] = {
        let mut t = [0; 256];
        let mut n = 0;
        while n < 256 {
            let mut v = n as u32;
            let mut k = 0;
            while k < 8 {
                v = v >> 1 ^ if v & 1 != 0 { 0x82f6_3b78 } else { 0 };
                k += 1;
            }
            t[n] = v;
            n += 1;
        }
        t
    };
    let v = operand::<T>(c, i, 1)?.to_u64();
    let mut crc = c.reg::<u32>(i.r[0]);
    for byte in &v.to_le_bytes()[..T::BYTES as usize] {
        crc = crc >> 8 ^ TABLE[((crc ^ *byte as u32) & 0xff) as usize];
    }
    c.set_reg(i.r[0], crc);
    Ok(())
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    // The width is the code's: a VEX instruction has W for it.
    macro_rules! wide {
        ($f:ident $(, $k:expr)*) => {
            if i.op_size == 8 { $f::<$({ $k },)* u64> as Handler } else { $f::<$({ $k },)* u32> }
        };
    }
    Some(match i.code.mnemonic() {
        Mnemonic::Andn => wide!(andn),
        Mnemonic::Bextr if i.is_reg(2) => wide!(bextr),
        Mnemonic::Blsi => wide!(blsi),
        Mnemonic::Blsmsk => wide!(blsmsk),
        Mnemonic::Blsr => wide!(blsr),
        Mnemonic::Bzhi => wide!(bzhi),
        Mnemonic::Mulx => wide!(mulx),
        Mnemonic::Pdep => wide!(pdep),
        Mnemonic::Pext => wide!(pext),
        Mnemonic::Rorx => wide!(rorx),
        Mnemonic::Sarx => wide!(sarx),
        Mnemonic::Shlx => wide!(shlx),
        Mnemonic::Shrx => wide!(shrx),
        Mnemonic::Adcx => wide!(add_with, CF),
        Mnemonic::Adox => wide!(add_with, OF),
        Mnemonic::Crc32 => match i.code {
            Code::Crc32_r32_rm8 | Code::Crc32_r64_rm8 => crc32::<u8>,
            Code::Crc32_r32_rm16 => crc32::<u16>,
            Code::Crc32_r32_rm32 => crc32::<u32>,
            Code::Crc32_r64_rm64 => crc32::<u64>,
            _ => return None,
        },
        _ => return None,
    })
}
