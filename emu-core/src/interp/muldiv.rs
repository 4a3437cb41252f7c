//! MUL, IMUL, DIV, IDIV (SDM vol. 2).
//!
//! CF and OF of a product say whether its upper half matters. The flags that the SDM leaves undefined are as on
//! AMD's processors: a product leaves the others alone, a division clears SF, ZF and PF, and sets AF.

use super::flags::{AF, CF, OF, PF, SF, ZF};
use super::operand::Int;
use super::{Handler, by_size};
use crate::exit::{Result, Stop};
use crate::vcpu::Vcpu;
use decoder::{Form, Insn};
use iced_x86::Mnemonic;
use x86_arch::{Exception, Gpr, Vector};

const RAX: u8 = Gpr::Rax as u8;
const RDX: u8 = Gpr::Rdx as u8;

/// The one explicit operand.
#[inline(always)]
fn operand<T: Int>(c: &mut Vcpu, i: &Insn) -> Result<T> {
    if i.is_mem(0) { c.load_mem(i) } else { Ok(c.reg(i.r[0])) }
}

/// Writes a double-width result: AX, or rDX:rAX.
#[inline(always)]
fn set_pair<T: Int>(c: &mut Vcpu, low: T, high: T) {
    if T::BITS == 8 {
        c.set_reg(RAX, (high.to_u64() << 8 | low.to_u64()) as u16);
    } else {
        c.set_reg(RAX, low);
        c.set_reg(RDX, high);
    }
}

/// The dividend: AX, or rDX:rAX.
#[inline(always)]
fn pair<T: Int>(c: &Vcpu) -> u128 {
    if T::BITS == 8 {
        c.reg::<u16>(RAX) as u128
    } else {
        (c.reg::<T>(RDX).to_u64() as u128) << T::BITS | c.reg::<T>(RAX).to_u64() as u128
    }
}

/// CF and OF of a product.
#[inline(always)]
fn set_wide(c: &mut Vcpu, wide: bool) {
    c.hot.rflags = c.hot.rflags & !(CF | OF) | if wide { CF | OF } else { 0 };
}

/// The flags after a division, all of which are undefined.
#[inline(always)]
fn set_divided(c: &mut Vcpu) {
    c.hot.rflags = c.hot.rflags & !(SF | ZF | PF) | AF;
}

#[inline(always)]
fn multiply<const SIGNED: bool, T: Int>(a: T, b: T) -> (T, T, bool) {
    if SIGNED {
        let p = a.to_i64() as i128 * b.to_i64() as i128;
        let low = T::from_u64(p as u64);
        (low, T::from_u64((p >> T::BITS) as u64), p != low.to_i64() as i128)
    } else {
        let p = a.to_u64() as u128 * b.to_u64() as u128;
        let high = (p >> T::BITS) as u64;
        (T::from_u64(p as u64), T::from_u64(high), high != 0)
    }
}

/// MUL, and IMUL with one operand.
fn mul<const SIGNED: bool, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let b = operand::<T>(c, i)?;
    let (low, high, wide) = multiply::<SIGNED, T>(c.reg(RAX), b);
    set_pair(c, low, high);
    set_wide(c, wide);
    Ok(())
}

/// IMUL with two or three operands.
fn imul<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let b = if i.is_mem(1) { c.load_mem::<T>(i)? } else { c.reg::<T>(i.r[1]) };
    let a = if i.is_imm(2) { T::from_u64(i.imm) } else { c.reg::<T>(i.r[0]) };
    let (low, _, wide) = multiply::<true, T>(a, b);
    c.set_reg(i.r[0], low);
    set_wide(c, wide);
    Ok(())
}

/// #DE: a divisor of 0, or a quotient too large for its register.
#[cold]
fn divide_error<T>() -> Result<T> {
    Err(Stop::Exception(Exception::new(Vector::De)))
}

fn div<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let d = operand::<T>(c, i)?.to_u64() as u128;
    let n = pair::<T>(c);
    if d == 0 || n / d > T::MASK as u128 {
        return divide_error();
    }
    set_pair(c, T::from_u64((n / d) as u64), T::from_u64((n % d) as u64));
    set_divided(c);
    Ok(())
}

fn idiv<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let d = operand::<T>(c, i)?.to_i64() as i128;
    // Sign-extends the double-width dividend.
    let n = (pair::<T>(c) << (128 - 2 * T::BITS)) as i128 >> (128 - 2 * T::BITS);
    // None: the divisor is 0, or the quotient has no representation even here (-2^127 / -1).
    let (Some(q), Some(r)) = (n.checked_div(d), n.checked_rem(d)) else { return divide_error() };
    let quotient = T::from_u64(q as u64);
    if quotient.to_i64() as i128 != q {
        return divide_error();
    }
    set_pair(c, quotient, T::from_u64(r as u64));
    set_divided(c);
    Ok(())
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    let s = i.op_size;
    let one = matches!(i.form2(), Form::R | Form::M);
    Some(match i.code.mnemonic() {
        Mnemonic::Mul if one => match s {
            1 => mul::<false, u8>,
            2 => mul::<false, u16>,
            4 => mul::<false, u32>,
            _ => mul::<false, u64>,
        },
        Mnemonic::Imul if one => match s {
            1 => mul::<true, u8>,
            2 => mul::<true, u16>,
            4 => mul::<true, u32>,
            _ => mul::<true, u64>,
        },
        Mnemonic::Imul => by_size!(s, imul),
        Mnemonic::Div if one => by_size!(s, div),
        Mnemonic::Idiv if one => by_size!(s, idiv),
        _ => return None,
    })
}
