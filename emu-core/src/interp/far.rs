//! Far JMP, CALL and RET: direct, through memory, through call gates and task state segments
//! (SDM vol. 2A, JMP, CALL; vol. 2B, RET; vol. 3A, 5.8). IRET is in [`super::iret`].

#[cfg(test)]
mod tests;

use super::operand::Int;
use super::{Handler, by_size};
use crate::exit::Result;
use crate::inject::{Stack, fault, null_ss, stack_mask_of};
use crate::segload::CodeTarget;
use crate::task::TaskCause;
use crate::vcpu::{ATTENTION_EVENT, Vcpu};
use decoder::{Form, Insn};
use iced_x86::{Code, Mnemonic};
use x86_arch::segment::{Descriptor, system_type};
use x86_arch::{Exception, Gpr, Seg, Segment, Selector, Vector};

const RSP: usize = Gpr::Rsp as usize;

/// Most parameters that a call gate copies.
const MAX_PARAMETERS: usize = 31;

impl Vcpu {
    /// Far JMP or CALL to `selector:offset` with this operand size in bytes.
    fn far_transfer(&mut self, selector: Selector, offset: u64, size: u8, call: bool) -> Result {
        if !self.protected() {
            return self.far_real(selector, offset, size, call);
        }
        if selector.is_null() {
            return self.gp0();
        }
        let code = selector.error_code();
        let Some((gva, d)) = self.descriptor(selector)? else { return fault(Vector::Gp, code) };
        let segment = Segment::from_descriptor(selector, d);
        if segment.is_code() {
            let t = self.jump_target(selector, gva, segment)?;
            self.check_far_offset(&t, offset, 0)?;
            if call {
                self.push_return(&t, size as u64)?;
            }
            self.set_accessed(&t)?;
            return self.commit_far(&t, offset);
        }
        if segment.s {
            return fault(Vector::Gp, code);
        }
        let long = self.long_mode();
        let hidden = d.dpl() < self.cpl || d.dpl() < selector.rpl();
        use system_type::*;
        match d.typ() {
            CALL_GATE if long => self.call_gate(selector, gva, d, call),
            CALL_GATE | CALL_GATE16 if !long => self.call_gate(selector, gva, d, call),
            TASK_GATE if !long => {
                if hidden {
                    return fault(Vector::Gp, code);
                }
                if !d.present() {
                    return fault(Vector::Np, code);
                }
                self.task_switch(d.gate_selector(), TaskCause::transfer(call))
            }
            TSS_AVAILABLE | TSS16_AVAILABLE if !long => {
                if hidden {
                    return fault(Vector::Gp, code);
                }
                self.task_switch(selector, TaskCause::transfer(call))
            }
            _ => fault(Vector::Gp, code),
        }
    }

    fn far_real(&mut self, selector: Selector, offset: u64, size: u8, call: bool) -> Result {
        let cs = self.seg[Seg::Cs as usize];
        if offset > cs.limit as u64 {
            return self.gp0();
        }
        if call {
            let stack = self.current_stack();
            let frame = [cs.selector.0 as u64, self.rip()];
            let sp = self.push_frame(&stack, size as u64, &frame, Exception::SS0)?;
            self.set_rsp(sp);
        }
        self.set_segment(Seg::Cs, Segment::real_mode(selector.0, &cs));
        self.set_rip(offset);
        Ok(())
    }

    /// CS and the return address of a CALL, on the current stack.
    fn push_return(&mut self, t: &CodeTarget, width: u64) -> Result {
        let stack = self.current_stack();
        let frame = [self.seg[Seg::Cs as usize].selector.0 as u64, self.rip()];
        let sp = self.push_frame(&stack, width, &frame, Exception::SS0)?;
        self.set_accessed(t)?;
        self.set_rsp(sp);
        Ok(())
    }

    /// CS, CPL and RIP of a far transfer.
    pub(super) fn commit_far(&mut self, t: &CodeTarget, offset: u64) -> Result {
        self.set_cpl(t.cpl);
        self.set_segment(Seg::Cs, t.segment_at_cpl());
        self.set_rip(offset);
        self.attend(ATTENTION_EVENT);
        Ok(())
    }

    /// JMP or CALL through a call gate (SDM vol. 3A, 5.8.3 to 5.8.5).
    fn call_gate(&mut self, gate_selector: Selector, gva: u64, gate: Descriptor, call: bool) -> Result {
        let long = self.long_mode();
        let gate_code = gate_selector.error_code();
        if gate.dpl() < self.cpl || gate.dpl() < gate_selector.rpl() {
            return fault(Vector::Gp, gate_code);
        }
        if !gate.present() {
            return fault(Vector::Np, gate_code);
        }
        let wide = gate.typ() & 8 != 0;
        let mut offset = if wide { gate.gate_offset32() } else { gate.gate_offset32() & 0xffff } as u64;
        if long {
            let Some(at) = self.descriptor_address(gate_selector, 16) else {
                return fault(Vector::Gp, gate_code);
            };
            debug_assert_eq!(at, gva);
            let high: u64 = self.load_sys(at.wrapping_add(8))?;
            if high >> 40 & 0x1f != 0 {
                return fault(Vector::Gp, gate_code);
            }
            offset |= high << 32;
        }
        let selector = gate.gate_selector();
        if selector.is_null() {
            return self.gp0();
        }
        let code = selector.error_code();
        let Some((code_gva, d)) = self.descriptor(selector)? else { return fault(Vector::Gp, code) };
        let segment = Segment::from_descriptor(selector, d);
        if !segment.is_code() || segment.dpl > self.cpl {
            return fault(Vector::Gp, code);
        }
        if long && (!segment.l || segment.db) {
            return fault(Vector::Gp, code);
        }
        let inner = call && !segment.is_conforming() && segment.dpl < self.cpl;
        if !call && !segment.is_conforming() && segment.dpl != self.cpl {
            return fault(Vector::Gp, code);
        }
        if !segment.present {
            return fault(Vector::Np, code);
        }
        let t = CodeTarget { gva: code_gva, segment, cpl: if inner { segment.dpl } else { self.cpl } };
        self.check_far_offset(&t, offset, 0)?;
        let width = if long {
            8
        } else if wide {
            4
        } else {
            2
        };
        if inner {
            return self.call_inner(&t, offset, width, gate);
        }
        if call {
            let mut stack = self.current_stack();
            // A 64-bit gate's frame is 64-bit even if the caller runs in compatibility mode.
            if long {
                stack = Stack { sp: self.hot.regs[RSP], mask: u64::MAX, flat: true, ..stack };
            }
            let frame = [self.seg[Seg::Cs as usize].selector.0 as u64, self.rip()];
            let sp = self.push_frame(&stack, width, &frame, Exception::SS0)?;
            self.set_accessed(&t)?;
            if long {
                self.hot.regs[RSP] = sp;
            } else {
                self.set_rsp(sp);
            }
        }
        self.set_accessed(&t)?;
        self.commit_far(&t, offset)
    }

    /// A CALL through a gate to an inner level: the stack is switched, parameters are copied.
    fn call_inner(&mut self, t: &CodeTarget, offset: u64, width: u64, gate: Descriptor) -> Result {
        let cs = self.seg[Seg::Cs as usize].selector.0 as u64;
        let old_ss = self.seg[Seg::Ss as usize].selector.0 as u64;
        if width == 8 {
            let sp = self.tss_rsp(4 + 8 * t.cpl as u64, 0)?;
            if !self.canonical(sp) {
                return fault(Vector::Ss, 0);
            }
            let stack = Stack { ss: null_ss(t.cpl), sp, mask: u64::MAX, cpl: t.cpl, flat: true };
            let frame = [old_ss, self.hot.regs[RSP], cs, self.rip()];
            let sp = self.push_frame(&stack, 8, &frame, Exception::SS0)?;
            self.set_accessed(t)?;
            self.hot.regs[RSP] = sp;
            self.set_segment(Seg::Ss, null_ss(t.cpl));
            return self.commit_far(t, offset);
        }
        let (ss, sp) = self.tss_stack(t.cpl, 0)?;
        let mask = stack_mask_of(&ss.segment);
        let stack = Stack { ss: ss.segment, sp: sp & mask, mask, cpl: t.cpl, flat: false };
        let count = (gate.gate_byte4() & 31) as usize;
        let mut frame = [0u64; 4 + MAX_PARAMETERS];
        frame[0] = old_ss;
        frame[1] = self.hot.regs[RSP];
        for n in 0..count {
            // The parameter pushed first has the highest address.
            let at = (count - 1 - n) as u64 * width;
            frame[2 + n] = match width {
                2 => self.peek_stack::<u16>(at)? as u64,
                _ => self.peek_stack::<u32>(at)? as u64,
            };
        }
        frame[2 + count] = cs;
        frame[3 + count] = self.rip();
        let refused = Exception::with_code(Vector::Ss, ss.segment.selector.error_code());
        let new_sp = self.push_frame(&stack, width, &frame[..4 + count], refused)?;
        self.set_accessed(t)?;
        self.set_accessed(&ss)?;
        self.set_segment(Seg::Ss, ss.segment);
        self.hot.regs[RSP] = sp & !mask | new_sp;
        self.commit_far(t, offset)
    }

    /// The SS that a return to an outer level (or any IRET from 64-bit mode) loads, checked against the
    /// new code segment (SDM vol. 3A, 5.8.6, 6.14.3).
    pub(super) fn return_stack(&mut self, t: &CodeTarget, selector: Selector) -> Result<CodeTarget> {
        let to64 = self.long_mode() && t.segment.l;
        self.stack_target(selector, t.cpl, to64, Vector::Gp, 0)
    }

    /// Makes ES, DS, FS and GS null where the outer level may not use them (SDM vol. 3A, 5.8.6).
    pub(super) fn null_inner_segments(&mut self) {
        for s in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
            let v = self.seg[s as usize];
            if !v.unusable && v.dpl < self.cpl && !v.is_conforming() {
                self.set_segment(s, crate::segload::null_segment(Selector(0)));
            }
        }
    }
}

fn far_direct(c: &mut Vcpu, i: &Insn) -> Result {
    let call = i.code.mnemonic() == Mnemonic::Call;
    let size = if matches!(i.code, Code::Jmp_ptr1616 | Code::Call_ptr1616) { 2 } else { 4 };
    c.far_transfer(Selector(i.imm2), i.imm, size, call)
}

fn far_memory<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let call = i.code.mnemonic() == Mnemonic::Call;
    let ea = c.ea(i);
    let offset = c.load::<T>(i.mem.seg, ea)?.to_u64();
    let selector = c.load::<u16>(i.mem.seg, ea.wrapping_add(T::BYTES) & i.mem.mask())?;
    c.far_transfer(Selector(selector), offset, T::BYTES as u8, call)
}

fn far_ret<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let extra = i.imm & 0xffff;
    let offset = c.peek_stack::<T>(0)?.to_u64();
    let selector = Selector(c.peek_stack::<T>(T::BYTES)?.to_u64() as u16);
    let popped = 2 * T::BYTES + extra;
    if !c.protected() {
        let cs = c.seg[Seg::Cs as usize];
        if offset > cs.limit as u64 {
            return c.gp0();
        }
        c.set_rsp(c.rsp().wrapping_add(popped));
        c.set_segment(Seg::Cs, Segment::real_mode(selector.0, &cs));
        c.set_rip(offset);
        return Ok(());
    }
    let t = c.return_target(selector)?;
    if t.cpl == c.cpl {
        c.check_far_offset(&t, offset, 0)?;
        c.set_accessed(&t)?;
        c.set_rsp(c.rsp().wrapping_add(popped));
        return c.commit_far(&t, offset);
    }
    let sp = c.peek_stack::<T>(popped)?.to_u64();
    let ss = Selector(c.peek_stack::<T>(popped + T::BYTES)?.to_u64() as u16);
    let ss = c.return_stack(&t, ss)?;
    c.check_far_offset(&t, offset, 0)?;
    c.set_accessed(&t)?;
    if !ss.segment.unusable {
        c.set_accessed(&ss)?;
    }
    c.commit_far(&t, offset)?;
    c.set_segment(Seg::Ss, Segment { typ: ss.segment.typ | 1, ..ss.segment });
    c.set_rsp(sp.wrapping_add(extra));
    c.null_inner_segments();
    Ok(())
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    use Code::*;
    Some(match (i.code, i.form2()) {
        (_, Form::Far) => far_direct,
        (Jmp_m1616 | Call_m1616, _) => far_memory::<u16>,
        (Jmp_m1632 | Call_m1632, _) => far_memory::<u32>,
        (Jmp_m1664 | Call_m1664, _) => far_memory::<u64>,
        _ if i.code.mnemonic() == Mnemonic::Retf => by_size!(i.op_size, far_ret),
        _ => return None,
    })
}
