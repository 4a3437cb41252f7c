//! Segment descriptors: reading them, checking them, and what a load leaves in the hidden part
//! (SDM vol. 3A, 3.4 and 5.2 to 5.8).
//!
//! The checks only; the instructions that load are in [`crate::interp::segment`] (data segments, LDTR,
//! TR, tables), [`crate::interp::far`] and [`crate::interp::iret`] (CS), delivery in [`crate::inject`].

#[cfg(test)]
mod tests;

use crate::exit::Result;
use crate::inject::fault;
use crate::vcpu::Vcpu;
use softmmu::{Access, AccessKind, HostFault, HostPtr, Target, host_mem};
use x86_arch::segment::{Descriptor, system_type};
use x86_arch::{Gva, Seg, Segment, Selector, Vector};

/// A segment whose checks have passed, with the place of its descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodeTarget {
    /// Linear address of the descriptor.
    pub gva: u64,
    /// Selector and hidden part.
    pub segment: Segment,
    /// The privilege level after the transfer.
    pub cpl: u8,
}

impl CodeTarget {
    /// The segment as CS holds it: RPL is the CPL.
    pub fn segment_at_cpl(&self) -> Segment {
        let s = &self.segment;
        Segment { selector: s.selector.with_rpl(self.cpl), typ: s.typ | 1, ..*s }
    }
}

/// A segment register that holds a null selector.
pub(crate) fn null_segment(selector: Selector) -> Segment {
    Segment { selector, unusable: true, ..Segment::default() }
}

/// The hidden part that a load in virtual-8086 mode leaves (SDM vol. 3A, 20.2.1).
pub(crate) fn v86_segment(selector: u16) -> Segment {
    Segment {
        selector: Selector(selector),
        base: (selector as u64) << 4,
        limit: 0xffff,
        typ: 3,
        s: true,
        dpl: 3,
        present: true,
        ..Segment::default()
    }
}

impl Vcpu {
    /// Linear address of a selector's descriptor, if `size` bytes of it lie within its table.
    pub(crate) fn descriptor_address(&self, s: Selector, size: u64) -> Option<u64> {
        let (base, limit) = if s.is_ldt() {
            let ldt = &self.seg[Seg::Ldtr as usize];
            if ldt.unusable || !ldt.present {
                return None;
            }
            (ldt.base, ldt.limit as u64)
        } else {
            (self.gdtr.base, self.gdtr.limit as u64)
        };
        let offset = s.offset() as u64;
        (offset + size - 1 <= limit).then(|| base.wrapping_add(offset))
    }

    /// A descriptor and its linear address; `None` if the selector is beyond its table's limit.
    pub(crate) fn descriptor(&mut self, s: Selector) -> Result<Option<(u64, Descriptor)>> {
        let Some(gva) = self.descriptor_address(s, 8) else { return Ok(None) };
        Ok(Some((gva, Descriptor(self.load_sys(gva)?))))
    }

    /// Sets and clears bits of one byte of a descriptor, as a LOCKed access does.
    pub(crate) fn change_descriptor_byte(&mut self, gva: u64, set: u8, clear: u8) -> Result {
        let gva = if self.long_mode() { gva } else { gva & 0xffff_ffff };
        let access = Access::implicit(AccessKind::Write);
        let change = |p: HostPtr| -> core::result::Result<(), HostFault> {
            if set != 0 {
                host_mem::fetch_or::<u8>(p, set)?;
            }
            if clear != 0 {
                host_mem::fetch_and::<u8>(p, !clear)?;
            }
            Ok(())
        };
        match self.mmu.translate(Gva(gva), access, 1) {
            Ok(Target::Ram(p)) => change(p).map_err(|f| self.host_faulted(f)),
            Ok(Target::Tracked(t)) => {
                change(t.host_ptr()).map_err(|f| self.host_faulted(f))?;
                self.after_write(t, 1);
                Ok(())
            }
            // A table in ROM: the write is lost, as on a bus.
            Ok(Target::Mmio(_)) => Ok(()),
            Err(f) => Err(self.mmu_fault(Seg::Ds as u8, f)),
        }
    }

    /// Sets the accessed bit of a code or data descriptor that was loaded (SDM vol. 3A, 3.4.5.1).
    pub(crate) fn set_accessed(&mut self, t: &CodeTarget) -> Result {
        if t.segment.typ & 1 == 0 { self.change_descriptor_byte(t.gva.wrapping_add(5), 1, 0) } else { Ok(()) }
    }

    /// The segment that a load of ES, SS, DS, FS or GS leaves, by the rules of the current mode.
    /// Sets the accessed bit; changes no register.
    pub(crate) fn load_data_segment(&mut self, s: Seg, selector: Selector) -> Result<Segment> {
        if self.real_mode() {
            return Ok(Segment::real_mode(selector.0, &self.seg[s as usize]));
        }
        if self.v86() {
            return Ok(v86_segment(selector.0));
        }
        let long64 = self.long64();
        if s == Seg::Ss {
            return self.check_stack_segment(selector, self.cpl, long64, Vector::Gp, 0);
        }
        if selector.is_null() {
            return Ok(null_segment(selector));
        }
        let code = selector.error_code();
        let Some((gva, d)) = self.descriptor(selector)? else { return fault(Vector::Gp, code) };
        let mut segment = Segment::from_descriptor(selector, d);
        if !segment.is_readable() {
            return fault(Vector::Gp, code);
        }
        if !segment.is_conforming() && selector.rpl().max(self.cpl) > segment.dpl {
            return fault(Vector::Gp, code);
        }
        if !segment.present {
            return fault(Vector::Np, code);
        }
        self.set_accessed(&CodeTarget { gva, segment, cpl: self.cpl })?;
        segment.typ |= 1;
        Ok(segment)
    }

    /// The checks on a stack segment for use at `cpl`. A refusal is `vector` (#GP or #TS), not present #SS.
    /// `null_ok`: 64-bit mode follows, where a null SS is allowed below CPL 3.
    pub(crate) fn check_stack_segment(
        &mut self,
        selector: Selector,
        cpl: u8,
        null_ok: bool,
        vector: Vector,
        ext: u32,
    ) -> Result<Segment> {
        let t = self.stack_target(selector, cpl, null_ok, vector, ext)?;
        if !t.segment.unusable {
            self.set_accessed(&t)?;
        }
        let mut segment = t.segment;
        segment.typ |= 1;
        Ok(segment)
    }

    /// As [`Vcpu::check_stack_segment`], but leaves the accessed bit to the caller.
    pub(crate) fn stack_target(
        &mut self,
        selector: Selector,
        cpl: u8,
        null_ok: bool,
        vector: Vector,
        ext: u32,
    ) -> Result<CodeTarget> {
        if selector.is_null() {
            if null_ok && cpl != 3 && selector.rpl() == cpl {
                return Ok(CodeTarget { gva: 0, segment: crate::inject::null_ss(cpl), cpl });
            }
            return fault(vector, ext);
        }
        let code = selector.error_code() | ext;
        let Some((gva, d)) = self.descriptor(selector)? else { return fault(vector, code) };
        let segment = Segment::from_descriptor(selector, d);
        if selector.rpl() != cpl || !segment.is_writable() || segment.dpl != cpl {
            return fault(vector, code);
        }
        if !segment.present {
            return fault(Vector::Ss, code);
        }
        Ok(CodeTarget { gva, segment, cpl })
    }

    /// The inner stack of a 16- or 32-bit TSS, checked: segment and stack pointer (SDM vol. 3A, 5.8.5).
    pub(crate) fn tss_stack(&mut self, cpl: u8, ext: u32) -> Result<(CodeTarget, u64)> {
        let tr = self.seg[Seg::Tr as usize];
        let wide = tr.typ & 8 != 0;
        let (at, len) = if wide { (4 + 8 * cpl as u64, 6) } else { (2 + 4 * cpl as u64, 4) };
        if tr.unusable || at + len - 1 > tr.limit as u64 {
            return fault(Vector::Ts, tr.selector.error_code() | ext);
        }
        let at = tr.base.wrapping_add(at);
        let (sp, ss) = if wide {
            (self.load_sys::<u32>(at)? as u64, self.load_sys::<u16>(at.wrapping_add(4))?)
        } else {
            (self.load_sys::<u16>(at)? as u64, self.load_sys::<u16>(at.wrapping_add(2))?)
        };
        Ok((self.stack_target(Selector(ss), cpl, false, Vector::Ts, ext)?, sp))
    }

    /// The checks of a far JMP or CALL to a code segment (SDM vol. 3A, 5.8.1).
    pub(crate) fn jump_target(
        &mut self,
        selector: Selector,
        gva: u64,
        segment: Segment,
    ) -> Result<CodeTarget> {
        let code = selector.error_code();
        if segment.is_conforming() {
            if segment.dpl > self.cpl {
                return fault(Vector::Gp, code);
            }
        } else if selector.rpl() > self.cpl || segment.dpl != self.cpl {
            return fault(Vector::Gp, code);
        }
        self.code_present(&segment, code)?;
        Ok(CodeTarget { gva, segment, cpl: self.cpl })
    }

    /// The checks of a far RET or IRET to a code segment (SDM vol. 3A, 5.8.6).
    pub(crate) fn return_target(&mut self, selector: Selector) -> Result<CodeTarget> {
        if selector.is_null() {
            return self.gp0();
        }
        let code = selector.error_code();
        let Some((gva, d)) = self.descriptor(selector)? else { return fault(Vector::Gp, code) };
        let segment = Segment::from_descriptor(selector, d);
        let rpl = selector.rpl();
        let fits = if segment.is_conforming() { segment.dpl <= rpl } else { segment.dpl == rpl };
        if !segment.is_code() || rpl < self.cpl || !fits {
            return fault(Vector::Gp, code);
        }
        self.code_present(&segment, code)?;
        Ok(CodeTarget { gva, segment, cpl: rpl })
    }

    /// L and D together are reserved in IA-32e mode; then the present bit.
    fn code_present(&self, segment: &Segment, code: u32) -> Result {
        if self.long_mode() && segment.l && segment.db {
            return fault(Vector::Gp, code);
        }
        if !segment.present { fault(Vector::Np, code) } else { Ok(()) }
    }

    /// Whether a far target lies in its segment: the limit, or canonical in 64-bit mode; #GP(`code`) else.
    pub(crate) fn check_far_offset(&self, t: &CodeTarget, offset: u64, code: u32) -> Result {
        let ok = if self.long_mode() && t.segment.l {
            self.canonical(offset)
        } else {
            offset <= t.segment.limit as u64
        };
        if ok { Ok(()) } else { fault(Vector::Gp, code) }
    }

    /// LDTR's or TR's new hidden part: the checks of LLDT and LTR. The caller sets the busy bit.
    pub(crate) fn system_segment(&mut self, s: Seg, selector: Selector, miss: Vector) -> Result<CodeTarget> {
        let code = selector.error_code();
        if selector.is_ldt() {
            return fault(miss, code);
        }
        let long = self.long_mode();
        let size = if long { 16 } else { 8 };
        let Some(gva) = self.descriptor_address(selector, size) else { return fault(miss, code) };
        let d = Descriptor(self.load_sys(gva)?);
        let mut segment = Segment::from_descriptor(selector, d);
        let fits = match s {
            Seg::Ldtr => d.typ() == system_type::LDT,
            _ => d.typ() == system_type::TSS_AVAILABLE || (!long && d.typ() == system_type::TSS16_AVAILABLE),
        };
        if d.s() || !fits {
            return fault(miss, code);
        }
        if long {
            let high: u64 = self.load_sys(gva.wrapping_add(8))?;
            segment.base |= high << 32;
            // Bits 8 to 12 of the last doubleword are a type of zero (SDM vol. 3A, 3.5.2).
            if high >> 40 & 0x1f != 0 || !self.canonical(segment.base) {
                return fault(miss, code);
            }
        }
        if !segment.present {
            return fault(Vector::Np, code);
        }
        Ok(CodeTarget { gva, segment, cpl: self.cpl })
    }
}
