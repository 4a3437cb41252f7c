//! SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD (SDM vol. 2).
//!
//! The count is taken modulo 32, or 64 for 64-bit operands; a count of 0 leaves all flags alone. What the SDM
//! leaves undefined (AF, OF for counts above 1, 16-bit SHLD by more than 16) is as AMD's processors do it: the
//! tests compare with the host's where it is one.

use super::flags::{self, AF, CF, OF};
use super::operand::Int;
use super::{Handler, by_size};
use crate::exit::Result;
use crate::vcpu::Vcpu;
use decoder::{Form, Insn};
use iced_x86::Mnemonic;
use x86_arch::{Gpr, Rflags};

const STATUS: u64 = Rflags::STATUS.bits();
const CL: u8 = Gpr::Rcx as u8;

/// A shift or rotate by a masked count that is not 0.
trait Shift: 'static {
    /// The result, the flags that are written, and their values.
    fn apply<T: Int>(a: T, n: u32, old: u64) -> (T, u64, u64);
}

struct Shl;
struct Shr;
struct Sar;
struct Rol;
struct Ror;
struct Rcl;
struct Rcr;

#[inline(always)]
fn of_if(yes: bool) -> u64 {
    if yes { OF } else { 0 }
}

/// Bit `n` of `v`, which may lie above its width.
#[inline(always)]
fn bit(v: u64, n: u32) -> u64 {
    if n < 64 { v >> n & 1 } else { 0 }
}

/// Whether the two most significant bits differ: OF of a shift or rotate to the right.
#[inline(always)]
fn top_bits_differ<T: Int>(r: T) -> bool {
    bit(r.to_u64(), T::BITS - 1) != bit(r.to_u64(), T::BITS - 2)
}

impl Shift for Shl {
    #[inline(always)]
    fn apply<T: Int>(a: T, n: u32, _: u64) -> (T, u64, u64) {
        let a = a.to_u64();
        let r = T::from_u64(a << n);
        let carry = if n <= T::BITS { bit(a, T::BITS - n) } else { 0 };
        (r, STATUS, AF | flags::pzs(r) | carry | of_if((carry != 0) != r.sign()))
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn apply<T: Int>(a: T, n: u32, _: u64) -> (T, u64, u64) {
        let a = a.to_u64();
        let r = T::from_u64(a >> n);
        (r, STATUS, AF | flags::pzs(r) | bit(a, n - 1) | of_if(top_bits_differ(r)))
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn apply<T: Int>(a: T, n: u32, _: u64) -> (T, u64, u64) {
        let a = a.to_i64();
        let r = T::from_u64((a >> n) as u64);
        (r, STATUS, AF | flags::pzs(r) | bit(a as u64, n - 1))
    }
}

impl Shift for Rol {
    #[inline(always)]
    fn apply<T: Int>(a: T, n: u32, _: u64) -> (T, u64, u64) {
        let (a, n) = (a.to_u64(), n & (T::BITS - 1));
        let r = T::from_u64(if n == 0 { a } else { a << n | a >> (T::BITS - n) });
        let carry = r.to_u64() & 1;
        (r, CF | OF, carry | of_if((carry != 0) != r.sign()))
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn apply<T: Int>(a: T, n: u32, _: u64) -> (T, u64, u64) {
        let (a, n) = (a.to_u64(), n & (T::BITS - 1));
        let r = T::from_u64(if n == 0 { a } else { a >> n | a << (T::BITS - n) });
        (r, CF | OF, r.sign() as u64 | of_if(top_bits_differ(r)))
    }
}

/// Rotates the operand with CF above it, `T::BITS + 1` bits, to the left.
#[inline(always)]
fn through_carry<T: Int>(a: T, n: u32, old: u64) -> (T, u64) {
    let width = T::BITS + 1;
    let all = (1u128 << width) - 1;
    let v = (a.to_u64() as u128) | ((old & CF) as u128) << T::BITS;
    let v = if n == 0 { v } else { (v << n | v >> (width - n)) & all };
    (T::from_u64(v as u64), (v >> T::BITS) as u64 & 1)
}

impl Shift for Rcl {
    #[inline(always)]
    fn apply<T: Int>(a: T, n: u32, old: u64) -> (T, u64, u64) {
        let n = n % (T::BITS + 1);
        let (r, carry) = through_carry(a, n, old);
        (r, CF | OF, carry | of_if((carry != 0) != r.sign()))
    }
}

impl Shift for Rcr {
    #[inline(always)]
    fn apply<T: Int>(a: T, n: u32, old: u64) -> (T, u64, u64) {
        let width = T::BITS + 1;
        let n = n % width;
        let (r, carry) = through_carry(a, if n == 0 { 0 } else { width - n }, old);
        (r, CF | OF, carry | of_if(top_bits_differ(r)))
    }
}

/// The count as the processor takes it.
#[inline(always)]
fn masked<T: Int>(n: u64) -> u32 {
    n as u32 & if T::BITS == 64 { 63 } else { 31 }
}

#[inline(always)]
fn shift_r<O: Shift, T: Int>(c: &mut Vcpu, i: &Insn, n: u32) -> Result {
    let a = c.reg::<T>(i.r[0]);
    let old = c.hot.rflags;
    let (r, mask, f) = if n == 0 { (a, 0, 0) } else { O::apply(a, n, old) };
    // With a count of 0 a 32-bit register's upper half is cleared all the same.
    c.set_reg(i.r[0], r);
    c.hot.rflags = old & !mask | f;
    Ok(())
}

/// The operand is written back, and must be writable, even with a count of 0.
#[inline(always)]
fn shift_m<O: Shift, T: Int>(c: &mut Vcpu, i: &Insn, n: u32) -> Result {
    let old = c.hot.rflags;
    let (mut mask, mut f) = (0, 0);
    c.rmw_mem::<T>(i, |a| {
        if n == 0 {
            return a;
        }
        let r;
        (r, mask, f) = O::apply(a, n, old);
        r
    })?;
    c.hot.rflags = old & !mask | f;
    Ok(())
}

fn r_cl<O: Shift, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    shift_r::<O, T>(c, i, masked::<T>(c.reg::<u8>(CL) as u64))
}

fn r_imm<O: Shift, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    shift_r::<O, T>(c, i, masked::<T>(i.imm))
}

fn m_cl<O: Shift, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    shift_m::<O, T>(c, i, masked::<T>(c.reg::<u8>(CL) as u64))
}

fn m_imm<O: Shift, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    shift_m::<O, T>(c, i, masked::<T>(i.imm))
}

fn forms<O: Shift>(i: &Insn) -> Option<Handler> {
    let s = i.op_size;
    Some(match i.form2() {
        Form::RR => by_size!(s, r_cl, O),
        Form::RI => by_size!(s, r_imm, O),
        Form::MR => by_size!(s, m_cl, O),
        Form::MI => by_size!(s, m_imm, O),
        _ => return None,
    })
}

/// SHLD and SHRD, `n` not 0: the result and its status flags.
#[inline(always)]
fn double<const LEFT: bool, T: Int>(a: T, b: T, n: u32) -> (T, u64) {
    let (x, y, w) = (a.to_u64() as u128, b.to_u64() as u128, T::BITS);
    let (r, carry) = match (LEFT, w) {
        (true, 64) => (x << n | y >> (w - n), x >> (w - n)),
        (false, 64) => ((y << w | x) >> n, x >> (n - 1)),
        // A 16-bit operand shifted by more than 16 (undefined) takes the source's bits again and has no
        // carry, as on AMD's processors; Intel's take the destination's.
        (true, _) => {
            let line = x << (2 * w) | y << w | y;
            (line >> (2 * w - n), line >> (3 * w - n))
        }
        (false, _) => {
            let line = y << (2 * w) | y << w | x;
            (line >> n, line >> (n - 1))
        }
    };
    let carry = if n > w { 0 } else { carry as u64 & 1 };
    let r = T::from_u64(r as u64);
    let of = if LEFT { (carry != 0) != r.sign() } else { top_bits_differ(r) };
    (r, AF | flags::pzs(r) | carry | of_if(of))
}

#[inline(always)]
fn double_count<T: Int>(c: &Vcpu, i: &Insn) -> u32 {
    masked::<T>(if i.is_reg(2) { c.reg::<u8>(CL) as u64 } else { i.imm })
}

fn double_r<const LEFT: bool, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let n = double_count::<T>(c, i);
    let (a, b) = (c.reg::<T>(i.r[0]), c.reg::<T>(i.r[1]));
    if n == 0 {
        c.set_reg(i.r[0], a);
        return Ok(());
    }
    let (r, f) = double::<LEFT, T>(a, b, n);
    c.set_reg(i.r[0], r);
    c.set_status(f);
    Ok(())
}

fn double_m<const LEFT: bool, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let n = double_count::<T>(c, i);
    let b = c.reg::<T>(i.r[1]);
    let mut status = c.hot.rflags & STATUS;
    c.rmw_mem::<T>(i, |a| {
        if n == 0 {
            return a;
        }
        let r;
        (r, status) = double::<LEFT, T>(a, b, n);
        r
    })?;
    c.set_status(status);
    Ok(())
}

fn double_forms<const LEFT: bool>(i: &Insn) -> Option<Handler> {
    Some(match (i.form2(), i.op_size) {
        (Form::RR, 2) => double_r::<LEFT, u16>,
        (Form::RR, 4) => double_r::<LEFT, u32>,
        (Form::RR, _) => double_r::<LEFT, u64>,
        (Form::MR, 2) => double_m::<LEFT, u16>,
        (Form::MR, 4) => double_m::<LEFT, u32>,
        (Form::MR, _) => double_m::<LEFT, u64>,
        _ => return None,
    })
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    match i.code.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => forms::<Shl>(i),
        Mnemonic::Shr => forms::<Shr>(i),
        Mnemonic::Sar => forms::<Sar>(i),
        Mnemonic::Rol => forms::<Rol>(i),
        Mnemonic::Ror => forms::<Ror>(i),
        Mnemonic::Rcl => forms::<Rcl>(i),
        Mnemonic::Rcr => forms::<Rcr>(i),
        Mnemonic::Shld => double_forms::<true>(i),
        Mnemonic::Shrd => double_forms::<false>(i),
        _ => None,
    }
}
