//! BT, BTS, BTR, BTC, BSF, BSR, LZCNT, TZCNT, POPCNT (SDM vol. 2).

use super::flags::{self, CF, OF, ZF};
use super::operand::Int;
use super::{Handler, by_size};
use crate::exit::Result;
use crate::vcpu::Vcpu;
use decoder::{Form, Insn};
use iced_x86::Mnemonic;

/// What becomes of the tested bit.
trait Change: 'static {
    /// BT writes nothing.
    const WRITES: bool = true;
    fn apply(v: u64, bit: u64) -> u64;
}

struct Test;
struct Set;
struct Reset;
struct Complement;

impl Change for Test {
    const WRITES: bool = false;
    fn apply(v: u64, _: u64) -> u64 {
        v
    }
}
impl Change for Set {
    fn apply(v: u64, bit: u64) -> u64 {
        v | bit
    }
}
impl Change for Reset {
    fn apply(v: u64, bit: u64) -> u64 {
        v & !bit
    }
}
impl Change for Complement {
    fn apply(v: u64, bit: u64) -> u64 {
        v ^ bit
    }
}

/// CF is the bit; the other flags stay (ZF by the SDM, the rest as processors do).
#[inline(always)]
fn set_carry<T: Int>(c: &mut Vcpu, v: T, n: u32) {
    c.hot.rflags = c.hot.rflags & !CF | v.to_u64() >> n & 1;
}

#[inline(always)]
fn in_register<O: Change, T: Int>(c: &mut Vcpu, i: &Insn, offset: u64) -> Result {
    let n = offset as u32 & (T::BITS - 1);
    let v = c.reg::<T>(i.r[0]);
    if O::WRITES {
        c.set_reg(i.r[0], T::from_u64(O::apply(v.to_u64(), 1 << n)));
    }
    set_carry(c, v, n);
    Ok(())
}

#[inline(always)]
fn in_memory<O: Change, T: Int>(c: &mut Vcpu, i: &Insn, ea: u64, n: u32) -> Result {
    let v = if O::WRITES {
        c.rmw::<T>(i.mem.seg, ea, i.lock(), |v| T::from_u64(O::apply(v.to_u64(), 1 << n)))?
    } else {
        c.load::<T>(i.mem.seg, ea)?
    };
    set_carry(c, v, n);
    Ok(())
}

fn rr<O: Change, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let offset = c.reg::<T>(i.r[1]).to_u64();
    in_register::<O, T>(c, i, offset)
}

fn ri<O: Change, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    in_register::<O, T>(c, i, i.imm)
}

/// A bit offset in a register is signed and reaches beyond the operand (SDM vol. 2, BT: bit strings).
fn mr<O: Change, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let offset = c.reg::<T>(i.r[1]).to_i64();
    let words = offset >> T::BITS.trailing_zeros();
    let ea = c.ea(i).wrapping_add((words as u64).wrapping_mul(T::BYTES)) & i.mem.mask();
    in_memory::<O, T>(c, i, ea, offset as u32 & (T::BITS - 1))
}

fn mi<O: Change, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let ea = c.ea(i);
    in_memory::<O, T>(c, i, ea, i.imm as u32 & (T::BITS - 1))
}

fn forms<O: Change>(i: &Insn) -> Option<Handler> {
    let s = i.op_size;
    Some(match i.form2() {
        Form::RR => by_size!(s, rr, O),
        Form::RI => by_size!(s, ri, O),
        Form::MR => by_size!(s, mr, O),
        Form::MI => by_size!(s, mi, O),
        _ => return None,
    })
}

#[inline(always)]
fn source<T: Int>(c: &mut Vcpu, i: &Insn) -> Result<T> {
    if i.is_mem(1) { c.load_mem(i) } else { Ok(c.reg(i.r[1])) }
}

/// BSF, BSR: with a source of 0 the destination stays, whole (SDM vol. 2: undefined; AMD APM vol. 3: unchanged).
fn scan<const FORWARD: bool, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = source::<T>(c, i)?.to_u64();
    if v == 0 {
        c.set_status(ZF | flags::PF);
        return Ok(());
    }
    let n = T::from_u64(if FORWARD { v.trailing_zeros() } else { 63 - v.leading_zeros() } as u64);
    c.set_reg(i.r[0], n);
    c.set_status(flags::pzs(n) & !ZF);
    Ok(())
}

/// LZCNT, TZCNT: CF says that the source is 0, ZF that the result is; OF (undefined) stays, as on AMD's processors.
fn count_zeros<const TRAILING: bool, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = source::<T>(c, i)?.to_u64();
    let n = if v == 0 {
        T::BITS
    } else if TRAILING {
        v.trailing_zeros()
    } else {
        v.leading_zeros() - (64 - T::BITS)
    };
    c.set_reg(i.r[0], T::from_u64(n as u64));
    let f = if v == 0 { CF } else { 0 } | if n == 0 { ZF } else { 0 };
    c.set_status(c.hot.rflags & OF | f);
    Ok(())
}

fn popcnt<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = source::<T>(c, i)?.to_u64();
    c.set_reg(i.r[0], T::from_u64(v.count_ones() as u64));
    c.set_status(if v == 0 { ZF } else { 0 });
    Ok(())
}

/// Picks a width of a handler with a constant parameter.
macro_rules! widths {
    ($size:expr, $f:ident, $k:literal) => {
        match $size {
            2 => $f::<$k, u16> as Handler,
            4 => $f::<$k, u32>,
            _ => $f::<$k, u64>,
        }
    };
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    let s = i.op_size;
    let two = matches!(i.form2(), Form::RR | Form::RM);
    Some(match i.code.mnemonic() {
        Mnemonic::Bt => return forms::<Test>(i),
        Mnemonic::Bts => return forms::<Set>(i),
        Mnemonic::Btr => return forms::<Reset>(i),
        Mnemonic::Btc => return forms::<Complement>(i),
        Mnemonic::Bsf if two => widths!(s, scan, true),
        Mnemonic::Bsr if two => widths!(s, scan, false),
        Mnemonic::Tzcnt if two => widths!(s, count_zeros, true),
        Mnemonic::Lzcnt if two => widths!(s, count_zeros, false),
        Mnemonic::Popcnt if two => by_size!(s, popcnt),
        _ => return None,
    })
}
