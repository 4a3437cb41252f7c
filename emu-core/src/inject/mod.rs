//! Delivery of interrupts and exceptions in each mode (SDM vol. 3A, 6.12 and 6.14; vol. 3A, 20.1.4).
//!
//! Here: the entry point, what a second fault makes of a first, and the push of a whole frame. The modes
//! are in `real` (and the redirected software interrupts of virtual-8086 mode), `protected` and
//! `long`; a task gate goes to [`crate::task`]. When an event is delivered is decided in [`crate::run`].
//!
//! Nothing is changed unless all can be: every push is probed before the first is made, and registers
//! are written last. (A task switch has the SDM's own point of commitment.)

mod long;
mod protected;
mod real;
#[cfg(test)]
mod tests;

pub(crate) use long::null_ss;
pub(crate) use protected::fault;

use crate::event::{Event, EventKind, Shadow};
use crate::exit::{Result, Stop};
use crate::vcpu::{ATTENTION_EVENT, Vcpu};
use softmmu::{Access, AccessKind, View, host_mem};
use x86_arch::exception::{Escalation, Vector, escalate};
use x86_arch::{Exception, Rflags, Seg, Segment};

/// An event on its way, with what the frame will hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    /// The event.
    pub event: Event,
    /// The instruction pointer to push.
    pub rip: u64,
    /// RFLAGS to push.
    pub flags: u64,
    /// INT n, INT3, INTO: the gate's DPL counts, and faults of the delivery have EXT clear.
    pub software: bool,
}

impl Delivery {
    /// The EXT bit of error codes about this delivery (SDM vol. 3A, 6.13).
    pub fn ext(&self) -> u32 {
        !self.software as u32
    }

    /// The error code that names the IDT entry.
    pub fn idt_code(&self) -> u32 {
        (self.event.vector as u32) << 3 | 2 | self.ext()
    }
}

/// The stack that a transfer pushes to; not always the current one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    /// The segment, for base and limit.
    pub ss: Segment,
    /// The stack pointer before the first push.
    pub sp: u64,
    /// Its width.
    pub mask: u64,
    /// The privilege level of the accesses.
    pub cpl: u8,
    /// 64-bit mode: no base, no limit.
    pub flat: bool,
}

/// Whether `size` bytes at `ea` lie within the limit (SDM vol. 3A, 5.3).
pub(crate) fn within_limit(s: &Segment, ea: u64, size: u64) -> bool {
    let last = ea.wrapping_add(size.saturating_sub(1));
    if last < ea {
        return false;
    }
    if s.is_expand_down() {
        let top = if s.db { u32::MAX as u64 } else { 0xffff };
        ea > s.limit as u64 && last <= top
    } else {
        last <= s.limit as u64
    }
}

/// The stack pointer mask of a segment outside 64-bit mode.
pub(crate) fn stack_mask_of(ss: &Segment) -> u64 {
    if ss.db { 0xffff_ffff } else { 0xffff }
}

impl Vcpu {
    /// Delivers an event through the IDT or the interrupt vector table. On `Err` nothing was changed; on
    /// `Ok` no exception is pending any more, but one that the first steps of a new task raised.
    pub fn inject(&mut self, event: Event) -> Result {
        let mut rip = self.rip();
        let mut flags = self.hot.rflags;
        let mut event = event;
        if event.kind == EventKind::Exception {
            match Vector::from_number(event.vector) {
                // #BP and #OF are traps of an instruction that has not been stepped over yet.
                Some(Vector::Bp | Vector::Of) => {
                    event.kind = EventKind::SoftwareException;
                    let len = self.int3_len().unwrap_or(self.insn_len);
                    rip = rip.wrapping_add(len.into()) & self.hot.rip_mask;
                }
                // SDM vol. 3A, 17.3.1.1: RF is set in the image for every fault but an instruction breakpoint.
                Some(Vector::Db | Vector::Nmi | Vector::Df | Vector::Mc) => {}
                _ => flags |= Rflags::RF.bits(),
            }
        }
        let software = matches!(event.kind, EventKind::SoftwareInterrupt | EventKind::SoftwareException);
        let d = Delivery { event, rip, flags, software };
        let raised = self.events.exception.take();
        let result = if self.real_mode() {
            self.inject_real(&d)
        } else if self.v86() && event.kind == EventKind::SoftwareInterrupt {
            self.inject_virtual8086_interrupt(&d)
        } else if self.long_mode() {
            self.inject_long(&d)
        } else {
            self.inject_protected(&d)
        };
        if result.is_err() {
            self.events.exception = raised;
            return result;
        }
        // SDM vol. 3A, 6.8.3: delivery ends the shadow.
        self.events.shadow = Shadow::None;
        self.attend(ATTENTION_EVENT);
        Ok(())
    }

    /// What becomes of `second`, raised while `first` was being delivered. `None`: shutdown.
    pub fn escalate(&mut self, first: Event, second: Exception) -> Option<Event> {
        // SDM vol. 3A, table 6-5: interrupts (NMI among them) and software interrupts are benign.
        let vector = Vector::from_number(first.vector).filter(|_| first.kind == EventKind::Exception);
        let e = match vector.map_or(Escalation::Serial, |v| escalate(v, second.vector)) {
            Escalation::Shutdown => return None,
            Escalation::DoubleFault => Exception::new(Vector::Df),
            Escalation::Serial => second,
        };
        self.raise(e);
        let pending = self.events.exception?;
        self.apply_payload(&pending);
        Some(Event { vector: pending.vector, kind: EventKind::Exception, error_code: pending.error_code })
    }

    /// Pushes `values` in order, `width` bytes each, after probing every push. Returns the stack pointer
    /// after them. What the stack's limit or a non-canonical address refuses is `fault`.
    pub(crate) fn push_frame(
        &mut self,
        stack: &Stack,
        width: u64,
        values: &[u64],
        fault: Exception,
    ) -> Result<u64> {
        let access = Access { kind: AccessKind::Write, user: stack.cpl == 3, implicit: false };
        let at = |n: u64| stack.sp.wrapping_sub(n.wrapping_mul(width)) & stack.mask;
        let linear = |sp: u64| {
            if stack.flat { sp } else { stack.ss.base.wrapping_add(sp) & 0xffff_ffff }
        };
        let count = values.len() as u64;
        if stack.flat && stack.cpl < 3 && self.push_at_once(at(count), width, values)? {
            return Ok(at(count));
        }
        for n in 1..=count {
            let sp = at(n);
            if !stack.flat && !within_limit(&stack.ss, sp, width) {
                return Err(Stop::Exception(fault));
            }
            if stack.cpl == 3 {
                self.check_aligned(linear(sp), width, width)?;
            }
            self.probe_lin(Seg::Ss as u8, linear(sp), width, access).map_err(|s| stack_stop(s, fault))?;
        }
        for (n, &v) in (1..=count).zip(values) {
            let gva = linear(at(n));
            match width {
                2 => self.store_stack_as(stack.cpl, gva, v as u16),
                4 => self.store_stack_as(stack.cpl, gva, v as u32),
                _ => self.store_stack_as(stack.cpl, gva, v),
            }
            .map_err(|s| stack_stop(s, fault))?;
            self.watch_data(gva, width, true);
        }
        Ok(at(count))
    }

    /// The common case of [`Vcpu::push_frame`]: a supervisor's 64-bit frame in one page that the TLB knows.
    /// False: not that case, and nothing was done.
    fn push_at_once(&mut self, lowest: u64, width: u64, values: &[u64]) -> Result<bool> {
        let mut bytes = [0; 64];
        if width != 8 || self.hot.watch != 0 || 8 * values.len() > bytes.len() {
            return Ok(false);
        }
        let len = 8 * values.len();
        let Some(p) = self.mmu.tlb.lookup_write_in(View::Supervisor, lowest, len as u64) else {
            return Ok(false);
        };
        // The last push has the lowest address.
        for (slot, v) in bytes.chunks_exact_mut(8).zip(values.iter().rev()) {
            slot.copy_from_slice(&v.to_le_bytes());
        }
        host_mem::copy_to(p, &bytes[..len]).map_err(|f| self.host_faulted(f))?;
        Ok(true)
    }

    /// The current stack.
    pub(crate) fn current_stack(&self) -> Stack {
        Stack {
            ss: self.seg[Seg::Ss as usize],
            sp: self.rsp(),
            mask: self.stack_mask(),
            cpl: self.cpl,
            flat: self.long64(),
        }
    }
}

/// A stack fault gets the error code of the transfer that it belongs to.
fn stack_stop(stop: Stop, fault: Exception) -> Stop {
    match stop {
        Stop::Exception(e) if e.vector == Vector::Ss => Stop::Exception(fault),
        s => s,
    }
}
