//! Delivery through a 16- or 32-bit gate of the IDT, in protected and virtual-8086 mode
//! (SDM vol. 3A, 6.12.1; vol. 2A, INT n). Task gates: [`crate::task`]; IA-32e mode: [`super::long`].

use super::{Delivery, Stack, stack_mask_of};
use crate::exit::{Result, Stop};
use crate::segload::CodeTarget;
use crate::task::TaskCause;
use crate::vcpu::Vcpu;
use x86_arch::segment::{Descriptor, system_type};
use x86_arch::{Exception, Rflags, Seg, Segment, Selector, Vector};

/// `Err` with this vector and error code.
pub(crate) fn fault<T>(vector: Vector, code: u32) -> Result<T> {
    Err(Stop::Exception(Exception::with_code(vector, code)))
}

impl Vcpu {
    /// Protected and virtual-8086 mode, EFER.LMA clear.
    pub(super) fn inject_protected(&mut self, d: &Delivery) -> Result {
        let entry = (d.event.vector as u64) << 3;
        if entry + 7 > self.idtr.limit as u64 {
            return fault(Vector::Gp, d.idt_code());
        }
        let gate = Descriptor(self.load_sys(self.idtr.base.wrapping_add(entry))?);
        let known = matches!(
            gate.typ(),
            system_type::TASK_GATE
                | system_type::INTERRUPT_GATE16
                | system_type::TRAP_GATE16
                | system_type::INTERRUPT_GATE
                | system_type::TRAP_GATE
        );
        if gate.s() || !known || (d.software && gate.dpl() < self.cpl) {
            return fault(Vector::Gp, d.idt_code());
        }
        if !gate.present() {
            return fault(Vector::Np, d.idt_code());
        }
        if gate.typ() == system_type::TASK_GATE {
            return self.inject_task_gate(d, gate.gate_selector());
        }
        let code = self.gate_code(gate.gate_selector(), d.ext(), false)?;
        let wide = gate.typ() & 8 != 0;
        let offset = if wide { gate.gate_offset32() } else { gate.gate_offset32() & 0xffff } as u64;
        if offset > code.segment.limit as u64 {
            return fault(Vector::Gp, d.ext());
        }
        if code.cpl < self.cpl {
            self.enter_inner(d, &code, wide, offset)?;
        } else {
            let frame = [d.flags, self.seg[Seg::Cs as usize].selector.0 as u64, d.rip];
            let stack = self.current_stack();
            let sp =
                self.push_with_error(&stack, wide, &frame, d, Exception::with_code(Vector::Ss, d.ext()))?;
            self.set_accessed(&code)?;
            self.set_rsp(sp);
        }
        self.commit_gate(&code, offset, gate.typ() & 1 == 0);
        Ok(())
    }

    /// The checks on the code segment that a gate names. The new CPL is the DPL, or the current for a
    /// conforming segment.
    pub(super) fn gate_code(&mut self, selector: Selector, ext: u32, long: bool) -> Result<CodeTarget> {
        if selector.is_null() {
            return fault(Vector::Gp, ext);
        }
        let code = selector.error_code() | ext;
        let Some((gva, d)) = self.descriptor(selector)? else { return fault(Vector::Gp, code) };
        let segment = Segment::from_descriptor(selector, d);
        if !segment.is_code() || segment.dpl > self.cpl {
            return fault(Vector::Gp, code);
        }
        if !segment.present {
            return fault(Vector::Np, code);
        }
        if long && (!segment.l || segment.db) {
            return fault(Vector::Gp, code);
        }
        let cpl = if segment.is_conforming() { self.cpl } else { segment.dpl };
        if self.v86() && cpl != 0 {
            return fault(Vector::Gp, code);
        }
        Ok(CodeTarget { gva, segment, cpl })
    }

    /// A more privileged handler: its stack is in the TSS; from virtual-8086 mode the data segments
    /// are pushed too and become null.
    fn enter_inner(&mut self, d: &Delivery, code: &CodeTarget, wide: bool, _offset: u64) -> Result {
        let (ss, sp) = self.tss_stack(code.cpl, d.ext())?;
        let ss_code = ss.segment.selector.error_code() | d.ext();
        let stack = Stack {
            ss: ss.segment,
            sp: sp & stack_mask_of(&ss.segment),
            mask: stack_mask_of(&ss.segment),
            cpl: code.cpl,
            flat: false,
        };
        let seg = |s: Seg| self.seg[s as usize].selector.0 as u64;
        let rsp = self.hot.regs[x86_arch::Gpr::Rsp as usize];
        let common = [seg(Seg::Ss), rsp, d.flags, seg(Seg::Cs), d.rip];
        let v86 = self.v86();
        let refused = Exception::with_code(Vector::Ss, ss_code);
        let new_sp = if v86 {
            let mut frame = [0; 9];
            frame[0] = seg(Seg::Gs);
            frame[1] = seg(Seg::Fs);
            frame[2] = seg(Seg::Ds);
            frame[3] = seg(Seg::Es);
            frame[4..].copy_from_slice(&common);
            self.push_with_error(&stack, wide, &frame, d, refused)?
        } else {
            self.push_with_error(&stack, wide, &common, d, refused)?
        };
        self.set_accessed(code)?;
        self.set_accessed(&ss)?;
        if v86 {
            self.set_rflags(self.hot.rflags & !Rflags::VM.bits());
            for s in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
                self.set_segment(s, Segment { unusable: true, ..Segment::default() });
            }
        }
        self.set_segment(Seg::Ss, ss.segment);
        self.hot.regs[x86_arch::Gpr::Rsp as usize] = sp & !stack.mask | new_sp;
        Ok(())
    }

    /// Pushes a frame and the event's error code.
    fn push_with_error(
        &mut self,
        stack: &Stack,
        wide: bool,
        frame: &[u64],
        d: &Delivery,
        refused: Exception,
    ) -> Result<u64> {
        let width = if wide { 4 } else { 2 };
        let mut all = [0; 10];
        let n = frame.len().min(9);
        all[..n].copy_from_slice(&frame[..n]);
        let n = match d.event.error_code {
            Some(e) => {
                all[n] = e as u64;
                n + 1
            }
            None => n,
        };
        self.push_frame(stack, width, &all[..n], refused)
    }

    /// CS, CPL, RIP and RFLAGS of the handler.
    pub(super) fn commit_gate(&mut self, code: &CodeTarget, offset: u64, interrupt_gate: bool) {
        let mut flags = self.hot.rflags & !(Rflags::TF | Rflags::NT | Rflags::VM | Rflags::RF).bits();
        if interrupt_gate {
            flags &= !Rflags::IF.bits();
        }
        self.set_rflags(flags);
        self.set_cpl(code.cpl);
        self.set_segment(Seg::Cs, code.segment_at_cpl());
        self.set_rip(offset);
    }

    /// Delivery through a task gate: a task switch that pushes the error code on the new stack.
    fn inject_task_gate(&mut self, d: &Delivery, tss: Selector) -> Result {
        let (rip, flags) = (self.rip(), self.hot.rflags);
        self.set_rip(d.rip);
        self.hot.rflags = d.flags;
        let result = self.task_switch(tss, TaskCause::Gate { ext: d.ext(), error_code: d.event.error_code });
        if result.is_err() {
            self.set_rip(rip);
            self.hot.rflags = flags;
        }
        result
    }
}
