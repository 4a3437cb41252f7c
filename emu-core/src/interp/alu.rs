//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT (SDM vol. 2).

use super::flags::{self, CF};
use super::operand::Int;
use super::{Handler, by_size};
use crate::exit::Result;
use crate::vcpu::Vcpu;
use decoder::{Form, Insn};
use iced_x86::{Code, Mnemonic};
use x86_arch::Rflags;

/// A two-operand operation: result and status flags from operands and the old flags.
trait Op: 'static {
    /// CMP and TEST write flags only.
    const WRITES: bool = true;
    fn apply<T: Int>(a: T, b: T, old: u64) -> (T, u64);
}

macro_rules! op {
    ($name:ident $(, writes $w:literal)?: |$a:ident, $b:ident, $old:ident| $body:expr) => {
        struct $name;
        impl Op for $name {
            $(const WRITES: bool = $w;)?
            #[inline(always)]
            fn apply<T: Int>($a: T, $b: T, $old: u64) -> (T, u64) {
                $body
            }
        }
    };
}

#[inline(always)]
fn sum<T: Int>(a: T, b: T, carry: u64) -> (T, u64) {
    let r = T::from_u64(a.to_u64().wrapping_add(b.to_u64()).wrapping_add(carry));
    (r, flags::add(a, b, r))
}

#[inline(always)]
fn difference<T: Int>(a: T, b: T, borrow: u64) -> (T, u64) {
    let r = T::from_u64(a.to_u64().wrapping_sub(b.to_u64()).wrapping_sub(borrow));
    (r, flags::sub(a, b, r))
}

#[inline(always)]
fn logic<T: Int>(r: u64) -> (T, u64) {
    let r = T::from_u64(r);
    (r, flags::logic(r))
}

op!(Add: |a, b, _old| sum(a, b, 0));
op!(Adc: |a, b, old| sum(a, b, old & CF));
op!(Sub: |a, b, _old| difference(a, b, 0));
op!(Sbb: |a, b, old| difference(a, b, old & CF));
op!(Cmp, writes false: |a, b, _old| difference(a, b, 0));
op!(And: |a, b, _old| logic(a.to_u64() & b.to_u64()));
op!(Or: |a, b, _old| logic(a.to_u64() | b.to_u64()));
op!(Xor: |a, b, _old| logic(a.to_u64() ^ b.to_u64()));
op!(Test, writes false: |a, b, _old| logic(a.to_u64() & b.to_u64()));

fn rr<O: Op, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let (r, f) = O::apply(c.reg::<T>(i.r[0]), c.reg::<T>(i.r[1]), c.hot.rflags);
    if O::WRITES {
        c.set_reg(i.r[0], r);
    }
    c.set_status(f);
    Ok(())
}

fn rm<O: Op, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let b = c.load_mem::<T>(i)?;
    let (r, f) = O::apply(c.reg::<T>(i.r[0]), b, c.hot.rflags);
    if O::WRITES {
        c.set_reg(i.r[0], r);
    }
    c.set_status(f);
    Ok(())
}

fn ri<O: Op, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let (r, f) = O::apply(c.reg::<T>(i.r[0]), T::from_u64(i.imm), c.hot.rflags);
    if O::WRITES {
        c.set_reg(i.r[0], r);
    }
    c.set_status(f);
    Ok(())
}

#[inline(always)]
fn to_mem<O: Op, T: Int>(c: &mut Vcpu, i: &Insn, b: T) -> Result {
    let old = c.hot.rflags;
    let mut status = 0;
    if O::WRITES {
        c.rmw_mem::<T>(i, |a| {
            let (r, f) = O::apply(a, b, old);
            status = f;
            r
        })?;
    } else {
        let a = c.load_mem::<T>(i)?;
        status = O::apply(a, b, old).1;
    }
    c.set_status(status);
    Ok(())
}

fn mr<O: Op, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let b = c.reg::<T>(i.r[1]);
    to_mem::<O, T>(c, i, b)
}

fn mi<O: Op, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    to_mem::<O, T>(c, i, T::from_u64(i.imm))
}

fn forms<O: Op>(i: &Insn) -> Option<Handler> {
    let s = i.op_size;
    Some(match i.form2() {
        Form::RR => by_size!(s, rr, O),
        Form::RM => by_size!(s, rm, O),
        Form::RI => by_size!(s, ri, O),
        Form::MR => by_size!(s, mr, O),
        Form::MI => by_size!(s, mi, O),
        _ => return None,
    })
}

/// A one-operand operation.
trait Unary: 'static {
    /// The status flags that it writes; the others stay.
    const FLAGS: u64;
    fn apply<T: Int>(a: T) -> (T, u64);
}

macro_rules! unary {
    ($name:ident, $flags:expr, |$a:ident| $body:expr) => {
        struct $name;
        impl Unary for $name {
            const FLAGS: u64 = $flags;
            #[inline(always)]
            fn apply<T: Int>($a: T) -> (T, u64) {
                $body
            }
        }
    };
}

const STATUS: u64 = Rflags::STATUS.bits();

unary!(Inc, STATUS & !CF, |a| sum(a, T::from_u64(1), 0));
unary!(Dec, STATUS & !CF, |a| difference(a, T::from_u64(1), 0));
unary!(Neg, STATUS, |a| difference(T::ZERO, a, 0));
unary!(Not, 0, |a| (T::from_u64(!a.to_u64()), 0));

fn unary_r<O: Unary, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let (r, f) = O::apply(c.reg::<T>(i.r[0]));
    c.set_reg(i.r[0], r);
    c.hot.rflags = c.hot.rflags & !O::FLAGS | f & O::FLAGS;
    Ok(())
}

fn unary_m<O: Unary, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let mut status = 0;
    c.rmw_mem::<T>(i, |a| {
        let (r, f) = O::apply(a);
        status = f;
        r
    })?;
    c.hot.rflags = c.hot.rflags & !O::FLAGS | status & O::FLAGS;
    Ok(())
}

fn unary_forms<O: Unary>(i: &Insn) -> Option<Handler> {
    let s = i.op_size;
    Some(match i.form2() {
        Form::R => by_size!(s, unary_r, O),
        Form::M => by_size!(s, unary_m, O),
        _ => return None,
    })
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    // The vector and the mask-register instructions have mnemonics of their own.
    match i.code.mnemonic() {
        Mnemonic::Add => forms::<Add>(i),
        Mnemonic::Or => forms::<Or>(i),
        Mnemonic::Adc => forms::<Adc>(i),
        Mnemonic::Sbb => forms::<Sbb>(i),
        Mnemonic::And => forms::<And>(i),
        Mnemonic::Sub => forms::<Sub>(i),
        Mnemonic::Xor => forms::<Xor>(i),
        Mnemonic::Cmp => forms::<Cmp>(i),
        Mnemonic::Test => forms::<Test>(i),
        Mnemonic::Inc => unary_forms::<Inc>(i),
        Mnemonic::Dec => unary_forms::<Dec>(i),
        Mnemonic::Neg => unary_forms::<Neg>(i),
        Mnemonic::Not => unary_forms::<Not>(i),
        _ => None,
    }
    .filter(|_| i.code != Code::INVALID)
}
