//! Faults on purpose: small mistakes in handlers and in re-encoded SIMD instructions, of the kind that people make.
//!
//! Only with the feature `fault-injection`, which tests turn on to see that the single-instruction differential finds
//! such mistakes. A fault that is turned on takes part when an instruction is decoded, or its stub made, from then on.

use crate::exit::Result;
use crate::interp::{self, Handler};
use crate::vcpu::Vcpu;
use decoder::Insn;
use iced_x86::{Code, Instruction, Mnemonic};
use std::sync::atomic::{AtomicU8, Ordering};
use x86_arch::{Gpr, Rflags};

/// The mistakes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Fault {
    /// ADC forgets the carry that comes in.
    AdcWithoutCarry = 1,
    /// IMUL of two operands leaves CF and OF as they were.
    ImulLeavesOverflow,
    /// CMPXCHG that finds another value does not load the accumulator.
    CmpxchgKeepsAccumulator,
    /// MOVS goes up though DF is set.
    MovsIgnoresDirection,
    /// LEA to a 32-bit register keeps the upper half.
    LeaKeepsUpperHalf,
    /// VSUBPS has its sources the other way round (VEX, 256 bits).
    VsubpsSwapsSources,
    /// VMULPS with zeroing is encoded with merging (EVEX, 512 bits).
    VmulpsMerges,
}

impl Fault {
    /// All of them, with the instruction that shows each.
    pub const ALL: [(Fault, Mnemonic); 7] = [
        (Fault::AdcWithoutCarry, Mnemonic::Adc),
        (Fault::ImulLeavesOverflow, Mnemonic::Imul),
        (Fault::CmpxchgKeepsAccumulator, Mnemonic::Cmpxchg),
        (Fault::MovsIgnoresDirection, Mnemonic::Movsb),
        (Fault::LeaKeepsUpperHalf, Mnemonic::Lea),
        (Fault::VsubpsSwapsSources, Mnemonic::Vsubps),
        (Fault::VmulpsMerges, Mnemonic::Vmulps),
    ];
}

static ACTIVE: AtomicU8 = AtomicU8::new(0);

/// Turns one fault on, and the one before it off; `None` turns all off.
pub fn inject(fault: Option<Fault>) {
    ACTIVE.store(fault.map_or(0, |f| f as u8), Ordering::Release);
}

fn active(fault: Fault) -> bool {
    ACTIVE.load(Ordering::Acquire) == fault as u8
}

/// The handler that makes the mistake, if this instruction shows the active one.
pub(crate) fn handler(i: &Insn) -> Option<Handler> {
    use Mnemonic as M;
    match i.code.mnemonic() {
        M::Adc if active(Fault::AdcWithoutCarry) => Some(adc),
        M::Imul if active(Fault::ImulLeavesOverflow) => Some(imul),
        M::Cmpxchg if active(Fault::CmpxchgKeepsAccumulator) => Some(cmpxchg),
        M::Movsb if active(Fault::MovsIgnoresDirection) => Some(movs),
        M::Lea if i.code == Code::Lea_r32_m && active(Fault::LeaKeepsUpperHalf) => Some(lea),
        _ => None,
    }
}

/// What becomes of an instruction before its stub is made.
pub(crate) fn encoding(insn: &mut Instruction) {
    match insn.code() {
        Code::VEX_Vsubps_ymm_ymm_ymmm256
            if active(Fault::VsubpsSwapsSources) && insn.op2_kind() == iced_x86::OpKind::Register =>
        {
            let (one, two) = (insn.op1_register(), insn.op2_register());
            insn.set_op1_register(two);
            insn.set_op2_register(one);
        }
        Code::EVEX_Vmulps_zmm_k1z_zmm_zmmm512b32_er if active(Fault::VmulpsMerges) => {
            insn.set_zeroing_masking(false);
        }
        _ => {}
    }
}

fn right(c: &mut Vcpu, i: &Insn) -> Result {
    interp::select_right(i)(c, i)
}

fn adc(c: &mut Vcpu, i: &Insn) -> Result {
    let carry = c.hot.rflags & Rflags::CF.bits();
    c.hot.rflags &= !carry;
    let done = right(c, i);
    if done.is_err() {
        c.hot.rflags |= carry;
    }
    done
}

fn imul(c: &mut Vcpu, i: &Insn) -> Result {
    let mask = (Rflags::CF | Rflags::OF).bits();
    let before = c.hot.rflags & mask;
    right(c, i)?;
    c.hot.rflags = c.hot.rflags & !mask | before;
    Ok(())
}

fn cmpxchg(c: &mut Vcpu, i: &Insn) -> Result {
    let before = c.hot.regs[Gpr::Rax as usize];
    right(c, i)?;
    c.hot.regs[Gpr::Rax as usize] = before;
    Ok(())
}

fn movs(c: &mut Vcpu, i: &Insn) -> Result {
    let direction = c.hot.rflags & Rflags::DF.bits();
    c.hot.rflags &= !direction;
    let done = right(c, i);
    c.hot.rflags |= direction;
    done
}

fn lea(c: &mut Vcpu, i: &Insn) -> Result {
    let to = i.r[0] as usize & 15;
    let before = c.hot.regs[to];
    right(c, i)?;
    if c.long64() {
        c.hot.regs[to] |= before & !0xffff_ffff;
    }
    Ok(())
}
