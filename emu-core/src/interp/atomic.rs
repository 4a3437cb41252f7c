//! CMPXCHG, CMPXCHG8B, CMPXCHG16B, XADD (SDM vol. 2).
//!
//! Atomicity under LOCK is [`Vcpu::rmw`]'s; CMPXCHG16B, whose operand is wider than a handler's width, is here.

use super::flags::{self, ZF};
use super::operand::Int;
use super::{Handler, by_size};
use crate::exit::Result;
use crate::vcpu::Vcpu;
use decoder::{Form, Insn};
use iced_x86::{Code, Mnemonic};
use softmmu::{Access, Target, host_mem};
use x86_arch::{Gpr, Gva};

const RAX: u8 = Gpr::Rax as u8;
const RCX: u8 = Gpr::Rcx as u8;
const RDX: u8 = Gpr::Rdx as u8;
const RBX: u8 = Gpr::Rbx as u8;

/// Flags of the comparison, and rAX where it failed.
#[inline(always)]
fn compared<T: Int>(c: &mut Vcpu, expected: T, old: T) {
    if old != expected {
        c.set_reg(RAX, old);
    }
    c.set_status(flags::sub(expected, old, expected.sub(old)));
}

fn cmpxchg_r<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let (expected, old) = (c.reg::<T>(RAX), c.reg::<T>(i.r[0]));
    let new = c.reg::<T>(i.r[1]);
    // A 32-bit destination that is not replaced keeps its upper half.
    if old == expected {
        c.set_reg(i.r[0], new);
    }
    compared(c, expected, old);
    Ok(())
}

/// The destination is written in either case (SDM vol. 2, CMPXCHG).
fn cmpxchg_m<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let (expected, new) = (c.reg::<T>(RAX), c.reg::<T>(i.r[1]));
    let old = c.rmw_mem::<T>(i, |old| if old == expected { new } else { old })?;
    compared(c, expected, old);
    Ok(())
}

fn cmpxchg8b(c: &mut Vcpu, i: &Insn) -> Result {
    let join = |high: u32, low: u32| (high as u64) << 32 | low as u64;
    let expected = join(c.reg(RDX), c.reg(RAX));
    let new = join(c.reg(RCX), c.reg(RBX));
    let old = c.rmw_mem::<u64>(i, |old| if old == expected { new } else { old })?;
    if old == expected {
        c.hot.rflags |= ZF;
    } else {
        c.set_reg(RAX, old as u32);
        c.set_reg(RDX, (old >> 32) as u32);
        c.hot.rflags &= !ZF;
    }
    Ok(())
}

/// #GP(0) if the operand is not 16-byte aligned. Always the host's LOCKed instruction: nothing is lost by it.
fn cmpxchg16b(c: &mut Vcpu, i: &Insn) -> Result {
    let join = |high: u64, low: u64| (high as u128) << 64 | low as u128;
    let expected = join(c.reg(RDX), c.reg(RAX));
    let new = join(c.reg(RCX), c.reg(RBX));
    let ea = c.ea(i);
    let gva = c.linear(i.mem.seg, ea, 16, true)?;
    if gva & 15 != 0 {
        return c.gp0();
    }
    let target = match c.mmu.tlb.lookup_write(gva, 16) {
        Some(p) if c.hot.watch == 0 => Target::Ram(p),
        _ => match c.mmu.translate(Gva(gva), Access::write(c.cpl == 3), 16) {
            Ok(t) => t,
            Err(f) => return Err(c.mmu_fault(i.mem.seg, f)),
        },
    };
    let p = match target {
        Target::Ram(p) => Some(p),
        Target::Tracked(t) => Some(t.host_ptr()),
        Target::Mmio(_) => None,
    };
    let old = if let Some(p) = p {
        match host_mem::compare_exchange::<u128>(p, expected, new).map_err(|f| c.host_faulted(f))? {
            Ok(old) | Err(old) => old,
        }
    } else {
        let mut bytes = [0; 16];
        c.read_bytes_lin(i.mem.seg, gva, &mut bytes)?;
        let old = u128::from_le_bytes(bytes);
        let stored = if old == expected { new } else { old };
        c.write_bytes_lin(i.mem.seg, gva, &stored.to_le_bytes())?;
        old
    };
    if let Target::Tracked(t) = target {
        c.after_write(t, 16);
    }
    c.watch_data(gva, 16, true);
    if old == expected {
        c.hot.rflags |= ZF;
    } else {
        c.set_reg(RAX, old as u64);
        c.set_reg(RDX, (old >> 64) as u64);
        c.hot.rflags &= !ZF;
    }
    Ok(())
}

fn xadd_r<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let (a, b) = (c.reg::<T>(i.r[0]), c.reg::<T>(i.r[1]));
    let sum = a.add(b);
    // The destination last: they may be the same register.
    c.set_reg(i.r[1], a);
    c.set_reg(i.r[0], sum);
    c.set_status(flags::add(a, b, sum));
    Ok(())
}

fn xadd_m<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let b = c.reg::<T>(i.r[1]);
    let old = c.rmw_mem::<T>(i, |a| a.add(b))?;
    c.set_reg(i.r[1], old);
    c.set_status(flags::add(old, b, old.add(b)));
    Ok(())
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    let s = i.op_size;
    Some(match (i.code.mnemonic(), i.form2()) {
        (Mnemonic::Cmpxchg, Form::RR) => by_size!(s, cmpxchg_r),
        (Mnemonic::Cmpxchg, Form::MR) => by_size!(s, cmpxchg_m),
        (Mnemonic::Xadd, Form::RR) => by_size!(s, xadd_r),
        (Mnemonic::Xadd, Form::MR) => by_size!(s, xadd_m),
        _ if i.code == Code::Cmpxchg8b_m64 => cmpxchg8b,
        _ if i.code == Code::Cmpxchg16b_m128 => cmpxchg16b,
        _ => return None,
    })
}
