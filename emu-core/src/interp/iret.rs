//! IRET, IRETD, IRETQ in every form (SDM vol. 2A, IRET; vol. 3A, 6.14.3 and 20.2.2).

#[cfg(test)]
mod tests;

use super::operand::Int;
use super::{Handler, by_size};
use crate::exit::Result;
use crate::segload::v86_segment;
use crate::task::TaskCause;
use crate::vcpu::{ATTENTION_EVENT, Vcpu};
use decoder::Insn;
use iced_x86::Mnemonic;
use x86_arch::control::Cr4;
use x86_arch::{Gpr, Rflags, Seg, Segment, Selector, Vector};

/// What IRET with a 16-bit operand may change.
const LOW: u64 = 0x7fd5;
/// What a 32-bit operand adds, whatever the privilege level.
const HIGH: u64 = Rflags::RF.bits() | Rflags::AC.bits() | Rflags::ID.bits();

fn iret<T: Int>(c: &mut Vcpu, _: &Insn) -> Result {
    // SDM vol. 3A, 6.7.1: NMIs are unblocked even if the IRET faults.
    if c.events.nmi_masked {
        c.events.nmi_masked = false;
        c.attend(ATTENTION_EVENT);
    }
    if c.real_mode() {
        return iret_real::<T>(c);
    }
    if c.v86() {
        return iret_v86::<T>(c);
    }
    if c.flag(Rflags::NT) {
        if c.long_mode() {
            return c.gp0();
        }
        return task_return(c);
    }
    let offset = c.peek_stack::<T>(0)?.to_u64();
    let selector = Selector(c.peek_stack::<T>(T::BYTES)?.to_u64() as u16);
    let flags = c.peek_stack::<T>(2 * T::BYTES)?.to_u64();
    if T::BYTES == 4 && flags & Rflags::VM.bits() != 0 && c.cpl == 0 && !c.long_mode() {
        return return_to_v86(c, offset, selector, flags);
    }
    let t = c.return_target(selector)?;
    // Which flags the old privilege level may change.
    let mut mask = LOW & !(Rflags::IF | Rflags::IOPL).bits();
    if T::BYTES > 2 {
        mask |= HIGH;
    }
    if c.cpl <= c.rflags().iopl() {
        mask |= Rflags::IF.bits();
    }
    if c.cpl == 0 {
        mask |= Rflags::IOPL.bits();
        if T::BYTES > 2 {
            mask |= (Rflags::VIF | Rflags::VIP).bits();
        }
    }
    let new_flags = c.hot.rflags & !mask | flags & mask;
    if t.cpl == c.cpl && !c.long64() {
        c.check_far_offset(&t, offset, 0)?;
        c.set_accessed(&t)?;
        c.set_rsp(c.rsp().wrapping_add(3 * T::BYTES));
        c.commit_far(&t, offset)?;
        set_flags_exactly(c, new_flags);
        return Ok(());
    }
    let sp = c.peek_stack::<T>(3 * T::BYTES)?.to_u64();
    let ss = Selector(c.peek_stack::<T>(4 * T::BYTES)?.to_u64() as u16);
    let ss = c.return_stack(&t, ss)?;
    c.check_far_offset(&t, offset, 0)?;
    c.set_accessed(&t)?;
    if !ss.segment.unusable {
        c.set_accessed(&ss)?;
    }
    let outer = t.cpl > c.cpl;
    c.commit_far(&t, offset)?;
    c.set_segment(Seg::Ss, Segment { typ: ss.segment.typ | 1, ..ss.segment });
    c.set_rsp(sp);
    set_flags_exactly(c, new_flags);
    if outer {
        c.null_inner_segments();
    }
    Ok(())
}

/// RFLAGS from the image. TF set here traps after the next instruction, not after the IRET.
fn set_flags_exactly(c: &mut Vcpu, flags: u64) {
    c.set_rflags(flags);
    c.attend(ATTENTION_EVENT);
}

fn iret_real<T: Int>(c: &mut Vcpu) -> Result {
    let ip = c.peek_stack::<T>(0)?.to_u64();
    let cs = c.peek_stack::<T>(T::BYTES)?.to_u64() as u16;
    let flags = c.peek_stack::<T>(2 * T::BYTES)?.to_u64();
    let old = c.seg[Seg::Cs as usize];
    if ip > old.limit as u64 {
        return c.gp0();
    }
    let mask = if T::BYTES == 2 { LOW } else { LOW | HIGH };
    c.set_rsp(c.rsp().wrapping_add(3 * T::BYTES));
    c.set_segment(Seg::Cs, Segment::real_mode(cs, &old));
    c.set_rip(ip);
    set_flags_exactly(c, c.hot.rflags & !mask | flags & mask);
    Ok(())
}

fn iret_v86<T: Int>(c: &mut Vcpu) -> Result {
    let iopl3 = c.rflags().iopl() == 3;
    let vme = c.cr4.contains(Cr4::VME) && T::BYTES == 2;
    if !iopl3 && !vme {
        return c.gp0();
    }
    let ip = c.peek_stack::<T>(0)?.to_u64();
    let cs = c.peek_stack::<T>(T::BYTES)?.to_u64() as u16;
    let flags = c.peek_stack::<T>(2 * T::BYTES)?.to_u64();
    let old = c.seg[Seg::Cs as usize];
    if ip > old.limit as u64 {
        return c.gp0();
    }
    let iopl = Rflags::IOPL.bits();
    let if_bit = Rflags::IF.bits();
    let new = if iopl3 {
        let mask = if T::BYTES == 2 { LOW } else { LOW | HIGH } & !iopl;
        c.hot.rflags & !mask | flags & mask
    } else {
        // SDM vol. 3A, 20.3.2: IF in the image becomes VIF.
        if flags & Rflags::TF.bits() != 0 || (flags & if_bit != 0 && c.flag(Rflags::VIP)) {
            return c.gp0();
        }
        let mask = LOW & !(iopl | if_bit) | Rflags::VIF.bits();
        let vif = if flags & if_bit != 0 { Rflags::VIF.bits() } else { 0 };
        c.hot.rflags & !mask | flags & mask & !Rflags::VIF.bits() | vif
    };
    c.set_rsp(c.rsp().wrapping_add(3 * T::BYTES));
    c.set_segment(Seg::Cs, Segment { typ: old.typ, ..v86_segment(cs) });
    c.set_rip(ip);
    set_flags_exactly(c, new);
    Ok(())
}

/// From ring 0 to virtual-8086 mode: nine doublewords (SDM vol. 3A, 20.2.2).
fn return_to_v86(c: &mut Vcpu, offset: u64, cs: Selector, flags: u64) -> Result {
    let mut v = [0u32; 6];
    for (n, v) in (3u64..).zip(v.iter_mut()) {
        *v = c.peek_stack::<u32>(4 * n)?;
    }
    if offset > 0xffff {
        return c.gp0();
    }
    let [esp, ss, es, ds, fs, gs] = v;
    c.set_rflags(flags & Rflags::WRITABLE.bits());
    c.set_cpl(3);
    c.set_segment(Seg::Cs, v86_segment(cs.0));
    for (s, v) in [(Seg::Ss, ss), (Seg::Es, es), (Seg::Ds, ds), (Seg::Fs, fs), (Seg::Gs, gs)] {
        c.set_segment(s, v86_segment(v as u16));
    }
    c.hot.regs[Gpr::Rsp as usize] = esp as u64;
    c.set_rip(offset);
    c.attend(ATTENTION_EVENT);
    Ok(())
}

/// NT: back to the task that the TSS's link names.
fn task_return(c: &mut Vcpu) -> Result {
    let tr = c.seg[Seg::Tr as usize];
    if tr.limit < 1 {
        return crate::inject::fault(Vector::Ts, tr.selector.error_code());
    }
    let link: u16 = c.load_sys(tr.base)?;
    c.task_switch(Selector(link), TaskCause::Iret)
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    match i.code.mnemonic() {
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => Some(by_size!(i.op_size, iret)),
        _ => None,
    }
}
