//! The hardware task switch (SDM vol. 3A, chapter 7): 16- and 32-bit TSS, by JMP, CALL, IRET and task gate.
//!
//! Up to the commit point a fault is the old task's, and nothing has changed; after it, it is the new
//! task's: the exception is raised and the switch counts as done. In IA-32e mode there is none of this.

#[cfg(test)]
mod tests;

use crate::exit::{Result, Stop};
use crate::inject::{Stack, fault, stack_mask_of};
use crate::segload::{CodeTarget, null_segment, v86_segment};
use crate::vcpu::{ATTENTION_EVENT, Vcpu};
use softmmu::{Access, AccessKind};
use x86_arch::control::{Cr0, Dr6, Dr7};
use x86_arch::segment::system_type;
use x86_arch::{Exception, PagingMode, Rflags, Seg, Segment, Selector, Vector};

/// What asked for the switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TaskCause {
    /// Far JMP: the old task is left idle.
    Jump,
    /// Far CALL: the old task stays busy and is linked to.
    Call,
    /// IRET with NT set.
    Iret,
    /// A task gate of the IDT.
    Gate {
        /// The EXT bit of error codes.
        ext: u32,
        /// Pushed on the new stack.
        error_code: Option<u32>,
    },
}

impl TaskCause {
    /// Far CALL or JMP.
    pub fn transfer(call: bool) -> TaskCause {
        if call { TaskCause::Call } else { TaskCause::Jump }
    }

    fn ext(self) -> u32 {
        match self {
            TaskCause::Gate { ext, .. } => ext,
            _ => 0,
        }
    }

    /// The new task is nested: link and NT.
    fn nests(self) -> bool {
        matches!(self, TaskCause::Call | TaskCause::Gate { .. })
    }
}

/// Where a TSS keeps things (SDM vol. 3A, figures 7-2 and 7-10).
struct Layout {
    /// Bytes of a register.
    width: u64,
    /// The instruction pointer; flags and the eight registers follow.
    ip: u64,
    /// ES; the other segments follow, `width` bytes apart.
    es: u64,
    /// Segment registers kept: four, or six.
    segments: usize,
    /// The LDT selector.
    ldt: u64,
    /// The smallest limit.
    limit: u32,
}

const TSS16: Layout = Layout { width: 2, ip: 0x0e, es: 0x22, segments: 4, ldt: 0x2a, limit: 0x2b };
const TSS32: Layout = Layout { width: 4, ip: 0x20, es: 0x48, segments: 6, ldt: 0x60, limit: 0x67 };

/// CR3's place in a 32-bit TSS.
const CR3: u64 = 0x1c;
/// The word with the T bit in a 32-bit TSS.
const TRAP: u64 = 0x64;

/// The order of the segments in a TSS.
const ORDER: [Seg; 6] = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs];

/// What a TSS says of its task.
struct Image {
    cr3: Option<u64>,
    ip: u64,
    flags: u64,
    gpr: [u64; 8],
    segments: [Selector; 6],
    ldt: Selector,
    trap: bool,
}

impl Vcpu {
    /// Switches to the task whose TSS `selector` names.
    pub(crate) fn task_switch(&mut self, selector: Selector, cause: TaskCause) -> Result {
        let ext = cause.ext();
        let code = selector.error_code() | ext;
        let iret = cause == TaskCause::Iret;
        let miss = if iret { Vector::Ts } else { Vector::Gp };
        if selector.is_ldt() {
            return fault(miss, code);
        }
        let Some((gva, d)) = self.descriptor(selector)? else { return fault(miss, code) };
        use system_type::*;
        let fits = match d.typ() {
            TSS16_AVAILABLE | TSS_AVAILABLE => !iret,
            TSS16_BUSY | TSS_BUSY => iret,
            _ => false,
        };
        if d.s() || !fits {
            return fault(miss, code);
        }
        if !d.present() {
            return fault(Vector::Np, code);
        }
        let layout = layout_of(d.typ());
        if d.limit() < layout.limit {
            return fault(Vector::Ts, code);
        }
        let base = d.base();
        let image = self.read_task(base, layout)?;
        let old = self.seg[Seg::Tr as usize];
        let write = Access::implicit(AccessKind::Write);
        let old_layout = layout_of(old.typ);
        let (from, to) = (old_layout.ip, old_layout.ldt);
        self.probe_lin(Seg::Ds as u8, old.base.wrapping_add(from) & 0xffff_ffff, to - from, write)?;
        if cause.nests() {
            self.probe_lin(Seg::Ds as u8, base, 2, write)?;
        }
        // The commit point: from here on memory changes.
        if !iret {
            self.change_descriptor_byte(gva.wrapping_add(5), 2, 0)?;
        }
        self.save_task(&old, iret)?;
        if cause.nests() {
            self.store_sys(base, old.selector.0)?;
        }
        if !cause.nests()
            && let Some(at) = self.descriptor_address(Selector(old.selector.0 & !4), 8)
        {
            self.change_descriptor_byte(at.wrapping_add(5), 0, 2)?;
        }
        let saved = Saved::of(self);
        let mut tr = Segment::from_descriptor(selector, d);
        tr.typ |= 2;
        match self.enter_task(&image, tr, cause) {
            Ok(()) => {}
            Err(Stop::Exception(e)) => self.raise(e),
            Err(stop) => {
                // Not the guest's fault: put all back, so that the switch can be begun again.
                saved.restore(self);
                if !iret {
                    self.change_descriptor_byte(gva.wrapping_add(5), 0, 2)?;
                }
                return Err(stop);
            }
        }
        self.events.entered_handler = true;
        if image.trap {
            self.events.debug_trap |= Dr6::BT.bits();
        }
        self.attend(ATTENTION_EVENT);
        Ok(())
    }

    fn read_word(&mut self, at: u64, width: u64) -> Result<u64> {
        if width == 2 { Ok(self.load_sys::<u16>(at)? as u64) } else { Ok(self.load_sys::<u32>(at)? as u64) }
    }

    fn read_task(&mut self, base: u64, l: &Layout) -> Result<Image> {
        let wide = l.width == 4;
        let at = |offset: u64| base.wrapping_add(offset);
        let mut gpr = [0; 8];
        for (n, r) in (2u64..).zip(gpr.iter_mut()) {
            *r = self.read_word(at(l.ip + n * l.width), l.width)?;
        }
        let mut segments = [Selector(0); 6];
        for (n, s) in (0u64..).zip(segments.iter_mut()).take(l.segments) {
            *s = Selector(self.load_sys::<u16>(at(l.es + n * l.width))?);
        }
        Ok(Image {
            cr3: if wide { Some(self.load_sys::<u32>(at(CR3))? as u64) } else { None },
            ip: self.read_word(at(l.ip), l.width)?,
            flags: self.read_word(at(l.ip + l.width), l.width)?,
            gpr,
            segments,
            ldt: Selector(self.load_sys::<u16>(at(l.ldt))?),
            trap: wide && self.load_sys::<u16>(at(TRAP))? & 1 != 0,
        })
    }

    /// Writes the old task's registers to its TSS, which was probed.
    fn save_task(&mut self, tr: &Segment, iret: bool) -> Result {
        let l = layout_of(tr.typ);
        let mut flags = self.hot.rflags;
        if iret {
            flags &= !Rflags::NT.bits();
        }
        let mut words = [0; 10];
        words[0] = self.rip();
        words[1] = flags;
        words[2..].copy_from_slice(&self.hot.regs[..8]);
        for (n, w) in (0u64..).zip(words) {
            let at = tr.base.wrapping_add(l.ip + n * l.width);
            if l.width == 2 { self.store_sys(at, w as u16)? } else { self.store_sys(at, w as u32)? }
        }
        for (n, s) in (0u64..).zip(ORDER).take(l.segments) {
            let selector = self.seg[s as usize].selector.0;
            self.store_sys(tr.base.wrapping_add(l.es + n * l.width), selector)?;
        }
        Ok(())
    }

    /// Loads the new task. An exception from here is the new task's.
    fn enter_task(&mut self, image: &Image, tr: Segment, cause: TaskCause) -> Result {
        self.cr0 |= Cr0::TS;
        // SDM vol. 3A, 17.2.4: local breakpoints do not outlive their task.
        self.dr7 = Dr7::from_bits_retain(self.dr7.bits() & !0x155);
        self.seg[Seg::Tr as usize] = tr;
        let mut flags = image.flags;
        if cause.nests() {
            flags |= Rflags::NT.bits();
        }
        let v86 = flags & Rflags::VM.bits() != 0;
        let cpl = if v86 { 3 } else { image.segments[1].rpl() };
        for (r, v) in self.hot.regs.iter_mut().zip(image.gpr) {
            *r = v;
        }
        self.set_rip(image.ip);
        // All selectors are the new task's before any descriptor is looked at.
        for (s, selector) in ORDER.into_iter().zip(image.segments) {
            self.seg[s as usize] = if v86 { v86_segment(selector.0) } else { null_segment(selector) };
        }
        self.seg[Seg::Ldtr as usize] = null_segment(image.ldt);
        self.hot.rflags = flags & Rflags::WRITABLE.bits() | Rflags::FIXED.bits();
        self.cpl = cpl;
        self.update_mode();
        if let Some(cr3) = image.cr3
            && self.paging_mode() != PagingMode::None
            && cr3 != self.cr3
        {
            self.write_cr3(cr3)?;
        }
        if !image.ldt.is_null() {
            let code = image.ldt.error_code();
            let t = self.system_segment(Seg::Ldtr, image.ldt, Vector::Ts).map_err(|s| match s {
                Stop::Exception(e) if e.vector == Vector::Np => {
                    Stop::Exception(Exception::with_code(Vector::Ts, code))
                }
                s => s,
            })?;
            self.set_segment(Seg::Ldtr, t.segment);
        }
        if !v86 {
            self.load_task_segments(image, cpl)?;
        }
        if image.ip > self.seg[Seg::Cs as usize].limit as u64 {
            return self.gp0();
        }
        if let TaskCause::Gate { error_code: Some(error), .. } = cause {
            let ss = self.seg[Seg::Ss as usize];
            let mask = stack_mask_of(&ss);
            let stack = Stack { ss, sp: self.rsp(), mask, cpl, flat: false };
            let width = if tr.typ & 8 != 0 { 4 } else { 2 };
            let sp = self.push_frame(&stack, width, &[error as u64], Exception::SS0)?;
            self.set_rsp(sp);
        }
        Ok(())
    }

    /// SS, CS and the data segments of the new task (SDM vol. 3A, table 7-1).
    fn load_task_segments(&mut self, image: &Image, cpl: u8) -> Result {
        let [es, cs, ss, ds, fs, gs] = image.segments;
        let code = cs.error_code();
        if cs.is_null() {
            return fault(Vector::Ts, code);
        }
        let Some((gva, d)) = self.descriptor(cs)? else { return fault(Vector::Ts, code) };
        let segment = Segment::from_descriptor(cs, d);
        let fits = if segment.is_conforming() { segment.dpl <= cpl } else { segment.dpl == cpl };
        if !segment.is_code() || !fits {
            return fault(Vector::Ts, code);
        }
        if !segment.present {
            return fault(Vector::Np, code);
        }
        let t = CodeTarget { gva, segment, cpl };
        self.set_accessed(&t)?;
        self.set_segment(Seg::Cs, t.segment_at_cpl());
        let stack = self.check_stack_segment(ss, cpl, false, Vector::Ts, 0)?;
        self.set_segment(Seg::Ss, stack);
        for (s, selector) in [(Seg::Ds, ds), (Seg::Es, es), (Seg::Fs, fs), (Seg::Gs, gs)] {
            let v = self.load_data_segment(s, selector).map_err(|stop| match stop {
                Stop::Exception(e) if e.vector == Vector::Gp => {
                    Stop::Exception(Exception::with_code(Vector::Ts, e.error_code))
                }
                stop => stop,
            })?;
            self.set_segment(s, v);
        }
        Ok(())
    }
}

fn layout_of(typ: u8) -> &'static Layout {
    if typ & 8 != 0 { &TSS32 } else { &TSS16 }
}

/// The registers that a switch changes.
struct Saved {
    regs: [u64; 18],
    rflags: u64,
    seg: [Segment; 8],
    cr0: Cr0,
    cr3: u64,
    dr7: Dr7,
    cpl: u8,
}

impl Saved {
    fn of(c: &Vcpu) -> Saved {
        Saved {
            regs: c.hot.regs,
            rflags: c.hot.rflags,
            seg: c.seg,
            cr0: c.cr0,
            cr3: c.cr3,
            dr7: c.dr7,
            cpl: c.cpl,
        }
    }

    fn restore(self, c: &mut Vcpu) {
        c.hot.regs = self.regs;
        c.hot.rflags = self.rflags;
        c.seg = self.seg;
        c.cr0 = self.cr0;
        c.cr3 = self.cr3;
        c.dr7 = self.dr7;
        c.cpl = self.cpl;
        c.paging_changed();
        c.update_mode();
    }
}
