//! Delivery in IA-32e mode: 64-bit gates, IST, aligned stacks (SDM vol. 3A, 6.14).

use super::protected::fault;
use super::{Delivery, Stack};
use crate::exit::Result;
use crate::vcpu::Vcpu;
use x86_arch::segment::{Descriptor, system_type};
use x86_arch::{Exception, Gpr, Seg, Segment, Selector, Vector};

const RSP: usize = Gpr::Rsp as usize;

/// What a transfer to an inner level leaves in SS in IA-32e mode: null, with the new CPL as RPL.
pub(crate) fn null_ss(cpl: u8) -> Segment {
    Segment {
        selector: Selector(cpl as u16 & 3),
        typ: 3,
        s: true,
        dpl: cpl,
        unusable: true,
        ..Segment::default()
    }
}

impl Vcpu {
    /// EFER.LMA set: from 64-bit and from compatibility mode.
    pub(super) fn inject_long(&mut self, d: &Delivery) -> Result {
        let entry = (d.event.vector as u64) << 4;
        if entry + 15 > self.idtr.limit as u64 {
            return fault(Vector::Gp, d.idt_code());
        }
        let at = self.idtr.base.wrapping_add(entry);
        let gate = Descriptor(self.load_sys(at)?);
        let high: u64 = self.load_sys(at.wrapping_add(8))?;
        let known = matches!(gate.typ(), system_type::INTERRUPT_GATE | system_type::TRAP_GATE);
        if gate.s() || !known || (d.software && gate.dpl() < self.cpl) {
            return fault(Vector::Gp, d.idt_code());
        }
        if !gate.present() {
            return fault(Vector::Np, d.idt_code());
        }
        let code = self.gate_code(gate.gate_selector(), d.ext(), true)?;
        let offset = gate.gate_offset32() as u64 | high << 32;
        if !self.canonical(offset) {
            return fault(Vector::Gp, d.ext());
        }
        let inner = code.cpl < self.cpl;
        let ist = gate.gate_byte4() & 7;
        let sp = match ist {
            0 if inner => self.tss_rsp(4 + 8 * code.cpl as u64, d.ext())?,
            0 => self.hot.regs[RSP],
            n => self.tss_rsp(28 + 8 * n as u64, d.ext())?,
        };
        if !self.canonical(sp) {
            return fault(Vector::Ss, d.ext());
        }
        let ss = self.seg[Seg::Ss as usize];
        let cs = self.seg[Seg::Cs as usize];
        let stack = Stack { ss, sp: sp & !15, mask: u64::MAX, cpl: code.cpl, flat: true };
        let frame = [
            ss.selector.0 as u64,
            self.hot.regs[RSP],
            d.flags,
            cs.selector.0 as u64,
            d.rip,
            d.event.error_code.unwrap_or(0) as u64,
        ];
        let n = if d.event.error_code.is_some() { 6 } else { 5 };
        let new_sp = self.push_frame(&stack, 8, &frame[..n], Exception::with_code(Vector::Ss, d.ext()))?;
        self.set_accessed(&code)?;
        self.hot.regs[RSP] = new_sp;
        if inner {
            self.set_segment(Seg::Ss, null_ss(code.cpl));
        }
        self.commit_gate(&code, offset, gate.typ() & 1 == 0);
        Ok(())
    }

    /// A stack pointer at an offset of the 64-bit TSS.
    pub(crate) fn tss_rsp(&mut self, offset: u64, ext: u32) -> Result<u64> {
        let tr = self.seg[Seg::Tr as usize];
        if offset + 7 > tr.limit as u64 {
            return fault(Vector::Ts, tr.selector.error_code() | ext);
        }
        self.load_sys(tr.base.wrapping_add(offset))
    }
}
