//! Near JMP, CALL, RET, Jcc, LOOP, JCXZ (SDM vol. 2; vol. 1, 6.4). Far transfers are elsewhere.

use super::flags::condition;
use super::mov::{by_condition, cc_number};
use super::operand::Int;
use super::{Handler, by_size};
use crate::exit::Result;
use crate::vcpu::Vcpu;
use decoder::{CpuMode, Form, Insn};
use iced_x86::Mnemonic;
use x86_arch::{Gpr, Seg};

const RSP: usize = Gpr::Rsp as usize;

impl Vcpu {
    /// The stack pointer's mask: 64 bits, or by SS.B.
    #[inline(always)]
    pub fn stack_mask(&self) -> u64 {
        if self.mode == CpuMode::Bits64 {
            u64::MAX
        } else if self.seg[Seg::Ss as usize].db {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// Sets RSP within the stack's address size.
    #[inline(always)]
    pub fn set_rsp(&mut self, v: u64) {
        let m = self.stack_mask();
        let old = self.hot.regs[RSP];
        // A 32-bit stack pointer write clears the upper half, as any 32-bit register write.
        self.hot.regs[RSP] = if m == 0xffff { old & !m | v & m } else { v & m };
    }

    /// RSP within the stack's address size.
    #[inline(always)]
    pub fn rsp(&self) -> u64 {
        self.hot.regs[RSP] & self.stack_mask()
    }

    /// Stores below the stack pointer, then moves it.
    #[inline(always)]
    pub fn push<T: Int>(&mut self, v: T) -> Result {
        let sp = self.rsp().wrapping_sub(T::BYTES) & self.stack_mask();
        self.store(Seg::Ss as u8, sp, v)?;
        self.set_rsp(sp);
        Ok(())
    }

    /// Loads at the stack pointer plus `offset` bytes, without moving it.
    #[inline(always)]
    pub fn peek_stack<T: Int>(&mut self, offset: u64) -> Result<T> {
        let sp = self.rsp().wrapping_add(offset) & self.stack_mask();
        self.load(Seg::Ss as u8, sp)
    }

    /// Checks a near branch target: within CS's limit, or canonical in 64-bit mode; #GP(0) else.
    /// `size` is the operand size in bytes, which truncates the target.
    #[inline(always)]
    pub fn near_target(&self, target: u64, size: u8) -> Result<u64> {
        let t = match size {
            2 => target & 0xffff,
            4 => target & 0xffff_ffff,
            _ => target,
        };
        if self.mode == CpuMode::Bits64 {
            if !self.canonical(t) {
                return self.gp0();
            }
        } else if t > self.seg[Seg::Cs as usize].limit as u64 {
            return self.gp0();
        }
        Ok(t)
    }
}

fn jmp_near(c: &mut Vcpu, i: &Insn) -> Result {
    let t = c.near_target(c.rip().wrapping_add(i.imm), i.op_size)?;
    c.set_rip(t);
    Ok(())
}

fn jcc<const CC: u8>(c: &mut Vcpu, i: &Insn) -> Result {
    if condition(CC, c.hot.rflags) {
        return jmp_near(c, i);
    }
    Ok(())
}

fn jmp_r<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let t = c.reg::<T>(i.r[0]).to_u64();
    let t = c.near_target(t, T::BYTES as u8)?;
    c.set_rip(t);
    Ok(())
}

fn jmp_m<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let t = c.load_mem::<T>(i)?.to_u64();
    let t = c.near_target(t, T::BYTES as u8)?;
    c.set_rip(t);
    Ok(())
}

#[inline(always)]
fn call<T: Int>(c: &mut Vcpu, target: u64) -> Result {
    let t = match c.near_target(target, T::BYTES as u8) {
        Ok(t) => t,
        Err(stop) => {
            // A stack that cannot take the return address comes first.
            c.probe_write(Seg::Ss as u8, c.rsp().wrapping_sub(T::BYTES) & c.stack_mask(), T::BYTES)?;
            return Err(stop);
        }
    };
    let next = T::from_u64(c.rip());
    c.push(next)?;
    c.set_rip(t);
    Ok(())
}

fn call_near<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    call::<T>(c, c.rip().wrapping_add(i.imm))
}

fn call_r<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let t = c.reg::<T>(i.r[0]).to_u64();
    call::<T>(c, t)
}

fn call_m<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let t = c.load_mem::<T>(i)?.to_u64();
    call::<T>(c, t)
}

fn ret<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let t = c.peek_stack::<T>(0)?.to_u64();
    let t = c.near_target(t, T::BYTES as u8)?;
    // RET imm16 pops that many bytes more; the immediate is zero without one.
    c.set_rsp(c.rsp().wrapping_add(T::BYTES).wrapping_add(i.imm & 0xffff));
    c.set_rip(t);
    Ok(())
}

/// The count register of LOOP and JCXZ, by address size.
fn count(c: &Vcpu, i: &Insn) -> u64 {
    c.hot.regs[Gpr::Rcx as usize] & i.mem.mask()
}

/// LOOP, LOOPE, LOOPNE: the count is written only if the branch does not fault.
fn loop_cc(c: &mut Vcpu, i: &Insn) -> Result {
    let n = count(c, i).wrapping_sub(1) & i.mem.mask();
    let zf = c.hot.rflags & super::flags::ZF != 0;
    let wanted = match i.code.mnemonic() {
        Mnemonic::Loope => zf,
        Mnemonic::Loopne => !zf,
        _ => true,
    };
    if n != 0 && wanted {
        let t = c.near_target(c.rip().wrapping_add(i.imm), i.op_size)?;
        c.set_rip(t);
    }
    match i.mem.addr_size() {
        2 => c.set_reg(Gpr::Rcx as u8, n as u16),
        4 => c.set_reg(Gpr::Rcx as u8, n as u32),
        _ => c.set_reg(Gpr::Rcx as u8, n),
    }
    Ok(())
}

fn jcxz(c: &mut Vcpu, i: &Insn) -> Result {
    if count(c, i) == 0 {
        return jmp_near(c, i);
    }
    Ok(())
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    let s = i.op_size;
    let form = i.form2();
    if form == Form::Near
        && let Some(cc) = cc_number(i.code.condition_code())
        && !matches!(i.code.mnemonic(), Mnemonic::Loope | Mnemonic::Loopne)
    {
        return Some(by_condition!(cc, jcc));
    }
    Some(match (i.code.mnemonic(), form) {
        (Mnemonic::Jmp, Form::Near) => jmp_near,
        (Mnemonic::Jmp, Form::R) => by_size!(s, jmp_r),
        (Mnemonic::Jmp, Form::M) if !is_far_mem(i) => by_size!(s, jmp_m),
        (Mnemonic::Call, Form::Near) => by_size!(s, call_near),
        (Mnemonic::Call, Form::R) => by_size!(s, call_r),
        (Mnemonic::Call, Form::M) if !is_far_mem(i) => by_size!(s, call_m),
        (Mnemonic::Ret, _) => by_size!(s, ret),
        (Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne, _) => loop_cc,
        (Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz, _) => jcxz,
        _ => return None,
    })
}

fn is_far_mem(i: &Insn) -> bool {
    use iced_x86::Code::*;
    matches!(i.code, Jmp_m1616 | Jmp_m1632 | Jmp_m1664 | Call_m1616 | Call_m1632 | Call_m1664)
}
