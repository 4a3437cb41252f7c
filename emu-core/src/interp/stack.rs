//! PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE, and the instructions on single flags: LAHF, SAHF, CLC,
//! STC, CMC, CLD, STD, CLI, STI, CLAC, STAC (SDM vol. 2).
//!
//! POP to a segment register is with the descriptor loads. The stack pointer's accessors are in [`super::branch`].

use super::flags::{AF, CF, PF, SF, ZF};
use super::operand::Int;
use super::{Handler, by_size};
use crate::event::Shadow;
use crate::exit::{Result, Stop};
use crate::vcpu::{ATTENTION_EVENT, ATTENTION_STEP, Vcpu};
use decoder::{Form, Insn, Vendor};
use iced_x86::{Code, Mnemonic};
use x86_arch::control::Cr4;
use x86_arch::{Gpr, Rflags, Seg};

const SS: u8 = Seg::Ss as u8;
const RBP: u8 = Gpr::Rbp as u8;
const RSP: usize = Gpr::Rsp as usize;

// ---- PUSH and POP --------------------------------------------------------------------------------

/// PUSH rSP pushes the value before.
fn push_r<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.reg::<T>(i.r[0]);
    c.push(v)
}

fn push_m<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.load_mem::<T>(i)?;
    c.push(v)
}

fn push_i<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    c.push(T::from_u64(i.imm))
}

/// With a 32-bit operand Intel's recent processors write the selector's two bytes only, others extend it with zeros
/// (SDM vol. 2B, PUSH).
fn push_seg<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let selector = c.seg[(i.r[0] & 7) as usize].selector.0;
    if T::BITS != 32 || c.cpuid.vendor() == Vendor::Amd {
        return c.push(T::from_u64(selector as u64));
    }
    let sp = c.rsp().wrapping_sub(4) & c.stack_mask();
    c.store(SS, sp, selector)?;
    c.set_rsp(sp);
    Ok(())
}

fn pop_r<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.peek_stack::<T>(0)?;
    c.set_rsp(c.rsp().wrapping_add(T::BYTES));
    c.set_reg(i.r[0], v);
    Ok(())
}

/// An address with rSP as its base is computed after the increment (SDM vol. 2, POP).
fn pop_m<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.peek_stack::<T>(0)?;
    let old = c.hot.regs[RSP];
    c.set_rsp(c.rsp().wrapping_add(T::BYTES));
    let stored = c.store_mem(i, v);
    if stored.is_err() {
        c.hot.regs[RSP] = old;
    }
    stored
}

/// Stores `values` below the stack pointer, the first one highest, all or none. The new stack pointer.
fn push_all<T: Int>(c: &mut Vcpu, values: &[T]) -> Result<u64> {
    let mask = c.stack_mask();
    let top = c.rsp();
    let size = T::BYTES * values.len() as u64;
    let bottom = top.wrapping_sub(size) & mask;
    c.check_operand_alignment(SS, top.wrapping_sub(T::BYTES) & mask, T::BYTES, T::BYTES)?;
    let possible = if bottom < top {
        c.probe_write(SS, bottom, size)
    } else {
        // The stack wraps around.
        (1..=values.len() as u64)
            .try_for_each(|k| c.probe_write(SS, top.wrapping_sub(k * T::BYTES) & mask, T::BYTES))
    };
    if !matches!(possible, Ok(()) | Err(Stop::Exception(_))) {
        return possible.map(|()| bottom);
    }
    let queued = c.io.writes.len();
    let mut sp = top;
    for &v in values {
        sp = sp.wrapping_sub(T::BYTES) & mask;
        if let Err(stop) = c.store(SS, sp, v) {
            // What was pushed before stays beyond the stack pointer, as on processors; but a device hears of nothing.
            c.io.writes.truncate(queued);
            return Err(stop);
        }
    }
    possible.map(|()| bottom)
}

fn pusha<T: Int>(c: &mut Vcpu, _: &Insn) -> Result {
    let mut values = [T::ZERO; 8];
    for (r, v) in values.iter_mut().enumerate() {
        *v = c.reg(r as u8);
    }
    let bottom = push_all(c, &values)?;
    c.set_rsp(bottom);
    Ok(())
}

/// The value for rSP is thrown away.
fn popa<T: Int>(c: &mut Vcpu, _: &Insn) -> Result {
    let mut values = [T::ZERO; 8];
    for (k, v) in values.iter_mut().enumerate() {
        *v = c.peek_stack(k as u64 * T::BYTES)?;
    }
    c.set_rsp(c.rsp().wrapping_add(8 * T::BYTES));
    for (k, &v) in values.iter().enumerate() {
        let r = 7 - k as u8;
        if r as usize != RSP {
            c.set_reg(r, v);
        }
    }
    Ok(())
}

// ---- ENTER and LEAVE -----------------------------------------------------------------------------

/// The frame pointers of outer levels are read before anything is written; where the reads would have met this
/// instruction's own writes, they do.
fn enter<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let mask = c.stack_mask();
    let size = i.imm & 0xffff;
    let level = (i.imm2 & 31) as usize;
    let top = c.rsp();
    let frame = top.wrapping_sub(T::BYTES) & mask;
    let mut values = [T::ZERO; 33];
    values[0] = c.reg(RBP);
    let mut count = 1;
    if level > 0 {
        let mut bp = c.hot.regs[RBP as usize];
        for _ in 1..level {
            bp = bp.wrapping_sub(T::BYTES) & mask;
            let mut v = match c.load::<T>(SS, bp) {
                Ok(v) => v.to_u64(),
                Err(stop @ Stop::Exception(_)) => {
                    // It comes after the pushes so far.
                    push_all(c, &values[..count])?;
                    return Err(stop);
                }
                Err(stop) => return Err(stop),
            };
            for byte in 0..T::BYTES {
                // Distance below the old stack pointer: 1 is the topmost byte pushed.
                let below = top.wrapping_sub(bp.wrapping_add(byte)) & mask;
                let slot = (below.wrapping_sub(1) / T::BYTES) as usize;
                if below != 0 && slot < count {
                    let at = (slot as u64 + 1) * T::BYTES - below;
                    let b = values[slot].to_u64() >> (8 * at) & 0xff;
                    v = v & !(0xff << (8 * byte)) | b << (8 * byte);
                }
            }
            values[count] = T::from_u64(v);
            count += 1;
        }
        // The frame pointer has the operand's size, and what a smaller stack does not hold of rBP.
        let whole = c.hot.regs[RSP] & !mask | frame;
        values[count] = T::from_u64(whole);
        count += 1;
    }
    let bottom = top.wrapping_sub(T::BYTES * count as u64).wrapping_sub(size) & mask;
    c.check_operand_alignment(SS, frame, T::BYTES, T::BYTES)?;
    // A write there must be possible, although none is made (SDM vol. 2, ENTER). If it is not, that is found after the
    // pushes, whose bytes stay beyond the stack pointer.
    let end = c
        .check_operand_alignment(SS, bottom, T::BYTES, T::BYTES)
        .and_then(|_| c.probe_write(SS, bottom, T::BYTES));
    if !matches!(end, Ok(_) | Err(Stop::Exception(_))) {
        return end.map(|_| ());
    }
    push_all(c, &values[..count])?;
    end?;
    c.set_reg(RBP, T::from_u64(c.hot.regs[RSP] & !mask | frame));
    c.set_rsp(bottom);
    Ok(())
}

fn leave<T: Int>(c: &mut Vcpu, _: &Insn) -> Result {
    let sp = c.hot.regs[RBP as usize] & c.stack_mask();
    let bp = c.load::<T>(SS, sp)?;
    c.set_rsp(sp.wrapping_add(T::BYTES));
    c.set_reg(RBP, bp);
    Ok(())
}

// ---- PUSHF and POPF ------------------------------------------------------------------------------

impl Vcpu {
    /// EFLAGS.IOPL.
    #[inline(always)]
    pub fn iopl(&self) -> u8 {
        self.rflags().iopl()
    }

    /// Virtual-8086 mode with IOPL below 3: the flag instructions are sensitive (SDM vol. 3A, 20.2.7).
    fn v86_sensitive(&self) -> bool {
        self.v86() && self.iopl() < 3
    }
}

fn pushf<T: Int>(c: &mut Vcpu, _: &Insn) -> Result {
    let mut f = c.hot.rflags;
    if c.v86_sensitive() {
        if !c.cr4.contains(Cr4::VME) || T::BITS != 16 {
            return c.gp0();
        }
        // SDM vol. 3B, 20.3: the image has VIF for IF, and IOPL 3.
        f &= !Rflags::IF.bits();
        if c.flag(Rflags::VIF) {
            f |= Rflags::IF.bits();
        }
        f |= Rflags::IOPL.bits();
    }
    f &= !(Rflags::VM | Rflags::RF).bits();
    c.push(T::from_u64(f))
}

fn popf<T: Int>(c: &mut Vcpu, _: &Insn) -> Result {
    let v = c.peek_stack_for_popf::<T>()?.to_u64();
    let old = c.hot.rflags;
    // What any privilege may change; the upper half needs an operand that has it.
    let low = Rflags::STATUS | Rflags::TF | Rflags::DF | Rflags::NT;
    let high = if T::BITS == 16 { Rflags::empty() } else { Rflags::AC | Rflags::ID };
    let mut mask = (low | high).bits();
    let mut new = v;
    if c.v86_sensitive() {
        let interruptible = v & Rflags::IF.bits() != 0;
        if c.flag(Rflags::VIP) && interruptible || v & Rflags::TF.bits() != 0 {
            return c.gp0();
        }
        mask |= Rflags::VIF.bits();
        new = new & !Rflags::VIF.bits() | if interruptible { Rflags::VIF.bits() } else { 0 };
    } else {
        if c.cpl <= c.iopl() || c.real_mode() || c.v86() {
            mask |= Rflags::IF.bits();
        }
        if c.cpl == 0 || c.real_mode() {
            mask |= Rflags::IOPL.bits();
        }
    }
    let mut f = old & !mask | new & mask;
    if T::BITS != 16 {
        f &= !Rflags::RF.bits();
    }
    c.set_rsp(c.rsp().wrapping_add(T::BYTES));
    c.set_rflags(f);
    if (old ^ f) & Rflags::TF.bits() != 0 {
        c.attend(ATTENTION_STEP);
    }
    Ok(())
}

impl Vcpu {
    /// What POPF pops, if it may pop at all.
    fn peek_stack_for_popf<T: Int>(&mut self) -> Result<T> {
        if self.v86_sensitive() && (!self.cr4.contains(Cr4::VME) || T::BITS != 16) {
            return self.gp0();
        }
        self.peek_stack(0)
    }
}

// ---- single flags --------------------------------------------------------------------------------

const AH: u8 = decoder::insn::HIGH_BYTE;

fn lahf(c: &mut Vcpu, _: &Insn) -> Result {
    let f = c.hot.rflags & (SF | ZF | AF | PF | CF) | Rflags::FIXED.bits();
    c.set_reg(AH, f as u8);
    Ok(())
}

fn sahf(c: &mut Vcpu, _: &Insn) -> Result {
    let mask = SF | ZF | AF | PF | CF;
    c.hot.rflags = c.hot.rflags & !mask | c.reg::<u8>(AH) as u64 & mask;
    Ok(())
}

/// SALC, which the SDM does not list: AL becomes all ones if CF is set, else 0.
fn salc(c: &mut Vcpu, _: &Insn) -> Result {
    let v = if c.hot.rflags & CF != 0 { 0xffu8 } else { 0 };
    c.set_reg(Gpr::Rax as u8, v);
    Ok(())
}

fn clc(c: &mut Vcpu, _: &Insn) -> Result {
    c.hot.rflags &= !CF;
    Ok(())
}

fn stc(c: &mut Vcpu, _: &Insn) -> Result {
    c.hot.rflags |= CF;
    Ok(())
}

fn cmc(c: &mut Vcpu, _: &Insn) -> Result {
    c.hot.rflags ^= CF;
    Ok(())
}

fn cld(c: &mut Vcpu, _: &Insn) -> Result {
    c.hot.rflags &= !Rflags::DF.bits();
    Ok(())
}

fn std(c: &mut Vcpu, _: &Insn) -> Result {
    c.hot.rflags |= Rflags::DF.bits();
    Ok(())
}

/// Which flag CLI and STI mean here: IF, VIF, or neither (SDM vol. 2, CLI, table 3-7).
fn interrupt_flag(c: &Vcpu) -> Result<Rflags> {
    if c.real_mode() || c.iopl() >= c.cpl {
        return Ok(Rflags::IF);
    }
    let virtual_flag = if c.v86() { Cr4::VME } else { Cr4::PVI };
    if c.cpl == 3 && c.cr4.contains(virtual_flag) { Ok(Rflags::VIF) } else { c.gp0() }
}

fn cli(c: &mut Vcpu, _: &Insn) -> Result {
    let flag = interrupt_flag(c)?;
    c.hot.rflags &= !flag.bits();
    Ok(())
}

fn sti(c: &mut Vcpu, _: &Insn) -> Result {
    let flag = interrupt_flag(c)?;
    if flag == Rflags::VIF {
        if c.flag(Rflags::VIP) {
            return c.gp0();
        }
        c.hot.rflags |= flag.bits();
        return Ok(());
    }
    if !c.flag(Rflags::IF) {
        c.hot.rflags |= flag.bits();
        // SDM vol. 2, STI: interrupts are recognized behind the next instruction.
        c.events.shadow = Shadow::Sti;
        c.attend(ATTENTION_EVENT | ATTENTION_STEP);
    }
    Ok(())
}

/// CLAC and STAC: the data view of the TLB changes, nothing that a block was decoded under.
fn set_ac<const SET: bool>(c: &mut Vcpu, _: &Insn) -> Result {
    if c.cpl != 0 {
        return c.ud();
    }
    let ac = Rflags::AC.bits();
    c.hot.rflags = c.hot.rflags & !ac | if SET { ac } else { 0 };
    c.update_view();
    Ok(())
}

// ---- selection -----------------------------------------------------------------------------------

/// Picks a handler for an operand size of 2, 4 or 8 bytes.
macro_rules! stack_size {
    ($size:expr, $f:ident) => {
        match $size {
            2 => $f::<u16> as Handler,
            4 => $f::<u32>,
            _ => $f::<u64>,
        }
    };
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    let s = i.op_size;
    Some(match (i.code, i.code.mnemonic()) {
        (
            Code::Pushw_ES
            | Code::Pushw_CS
            | Code::Pushw_SS
            | Code::Pushw_DS
            | Code::Pushw_FS
            | Code::Pushw_GS,
            _,
        ) => push_seg::<u16>,
        (
            Code::Pushd_ES
            | Code::Pushd_CS
            | Code::Pushd_SS
            | Code::Pushd_DS
            | Code::Pushd_FS
            | Code::Pushd_GS,
            _,
        ) => push_seg::<u32>,
        (Code::Pushq_FS | Code::Pushq_GS, _) => push_seg::<u64>,
        (
            Code::Popw_ES
            | Code::Popw_CS
            | Code::Popw_SS
            | Code::Popw_DS
            | Code::Popw_FS
            | Code::Popw_GS
            | Code::Popd_ES
            | Code::Popd_SS
            | Code::Popd_DS
            | Code::Popd_FS
            | Code::Popd_GS
            | Code::Popq_FS
            | Code::Popq_GS,
            _,
        ) => return None,
        (_, Mnemonic::Push) => match i.form2() {
            Form::R => stack_size!(s, push_r),
            Form::M => stack_size!(s, push_m),
            Form::I => stack_size!(s, push_i),
            _ => return None,
        },
        (_, Mnemonic::Pop) => match i.form2() {
            Form::R => stack_size!(s, pop_r),
            Form::M => stack_size!(s, pop_m),
            _ => return None,
        },
        (_, Mnemonic::Pusha) => pusha::<u16>,
        (_, Mnemonic::Pushad) => pusha::<u32>,
        (_, Mnemonic::Popa) => popa::<u16>,
        (_, Mnemonic::Popad) => popa::<u32>,
        (_, Mnemonic::Pushf) => pushf::<u16>,
        (_, Mnemonic::Pushfd) => pushf::<u32>,
        (_, Mnemonic::Pushfq) => pushf::<u64>,
        (_, Mnemonic::Popf) => popf::<u16>,
        (_, Mnemonic::Popfd) => popf::<u32>,
        (_, Mnemonic::Popfq) => popf::<u64>,
        (_, Mnemonic::Enter) => by_size!(s, enter),
        (_, Mnemonic::Leave) => by_size!(s, leave),
        (_, Mnemonic::Lahf) => lahf,
        (_, Mnemonic::Sahf) => sahf,
        (_, Mnemonic::Salc) => salc,
        (_, Mnemonic::Clc) => clc,
        (_, Mnemonic::Stc) => stc,
        (_, Mnemonic::Cmc) => cmc,
        (_, Mnemonic::Cld) => cld,
        (_, Mnemonic::Std) => std,
        (_, Mnemonic::Cli) => cli,
        (_, Mnemonic::Sti) => sti,
        (_, Mnemonic::Clac) => set_ac::<false>,
        (_, Mnemonic::Stac) => set_ac::<true>,
        _ => return None,
    })
}
