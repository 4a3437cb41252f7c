//! AAA, AAS, AAM, AAD, DAA, DAS (SDM vol. 2): decimal arithmetic, outside 64-bit mode.
//!
//! Flags that the SDM leaves undefined follow the result in AL, as on processors.

use super::Handler;
use super::flags::{self, AF, CF};
use crate::exit::{Result, Stop};
use crate::vcpu::Vcpu;
use decoder::Insn;
use iced_x86::Code;
use x86_arch::{Exception, Gpr, Vector};

const AL: u8 = Gpr::Rax as u8;
const AX: u8 = AL;

/// AAA and AAS.
fn ascii<const ADD: bool>(c: &mut Vcpu, _: &Insn) -> Result {
    let ax = c.reg::<u16>(AX);
    let adjust = ax & 0xf > 9 || c.hot.rflags & AF != 0;
    let r = match (adjust, ADD) {
        (false, _) => ax,
        (true, true) => ax.wrapping_add(0x106),
        (true, false) => ax.wrapping_sub(6).wrapping_sub(0x100),
    } & 0xff0f;
    c.set_reg(AX, r);
    c.set_status(flags::pzs(r as u8) | if adjust { AF | CF } else { 0 });
    Ok(())
}

/// DAA and DAS.
fn decimal<const ADD: bool>(c: &mut Vcpu, _: &Insn) -> Result {
    let al = c.reg::<u8>(AL);
    let old = c.hot.rflags;
    let low = al & 0xf > 9 || old & AF != 0;
    let high = al > 0x99 || old & CF != 0;
    // DAS: the borrow of the low correction alone sets CF too.
    let borrow = !ADD && low && al < 6;
    let correction = if low { 6u8 } else { 0 }.wrapping_add(if high { 0x60 } else { 0 });
    let r = if ADD { al.wrapping_add(correction) } else { al.wrapping_sub(correction) };
    c.set_reg(AL, r);
    c.set_status(flags::pzs(r) | if low { AF } else { 0 } | if high || borrow { CF } else { 0 });
    Ok(())
}

/// AAM: #DE if the base is 0.
fn aam(c: &mut Vcpu, i: &Insn) -> Result {
    let base = i.imm as u8;
    let al = c.reg::<u8>(AL);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(Stop::Exception(Exception::new(Vector::De)));
    };
    c.set_reg(AX, (high as u16) << 8 | low as u16);
    c.set_status(flags::pzs(low));
    Ok(())
}

fn aad(c: &mut Vcpu, i: &Insn) -> Result {
    let ax = c.reg::<u16>(AX);
    let (a, b) = (ax as u8, ((ax >> 8) as u8).wrapping_mul(i.imm as u8));
    let al = a.wrapping_add(b);
    c.set_reg(AX, al as u16);
    c.set_status(flags::pzs(al));
    Ok(())
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    Some(match i.code {
        Code::Aaa => ascii::<true>,
        Code::Aas => ascii::<false>,
        Code::Daa => decimal::<true>,
        Code::Das => decimal::<false>,
        Code::Aam_imm8 => aam,
        Code::Aad_imm8 => aad,
        _ => return None,
    })
}
