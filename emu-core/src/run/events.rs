//! What is delivered between two instructions, in the SDM's order of priority (vol. 3A, table 6-2), and how an exception
//! becomes pending. How an event enters its handler is `inject`'s.

use super::Processor;
use crate::event::{Event, EventKind, PendingException, Shadow};
use crate::exit::{Exit, InternalError, Stop};
use crate::vcpu::{ATTENTION_EVENT, Vcpu};
use x86_arch::control::{Dr6, Dr7};
use x86_arch::{Exception, Rflags, Vector};

impl Processor {
    /// Delivers the event of highest priority that can be delivered now (SDM vol. 3A, table 6-2).
    pub(super) fn deliver_events(&mut self) -> Option<Exit> {
        let v = &mut self.vcpu;
        if v.events.triple_fault {
            v.events.triple_fault = false;
            return Some(Exit::Shutdown);
        }
        // An exception whose delivery was begun.
        if let Some(e) = v.events.exception {
            return self.deliver_exception(e);
        }
        let shadow = v.events.shadow;
        if v.events.debug_trap != 0 && shadow != Shadow::MovSs {
            let bits = core::mem::take(&mut v.events.debug_trap);
            v.raise_debug(bits);
            return self.deliver_pending_exception();
        }
        // KVM_GUESTDBG_BLOCKIRQ: nothing new from outside while the debugger steps.
        let blocked = v.debug.block_interrupts;
        if v.smi_deliverable() && !v.events.nmi_injected && !blocked {
            return self.take_smi(false);
        }
        if v.events.nmi_injected
            || (v.events.nmi_pending > 0 && !v.events.nmi_masked && shadow == Shadow::None && !blocked)
        {
            if !v.events.nmi_injected {
                v.events.nmi_pending -= 1;
                v.events.nmi_injected = true;
            }
            v.events.nmi_masked = true;
            let event = Event { vector: 2, kind: EventKind::Nmi, error_code: None };
            let exit = self.deliver(event);
            self.vcpu.events.nmi_injected = false;
            self.vcpu.stats.nmis += 1;
            return exit;
        }
        let v = &mut self.vcpu;
        let open = v.flag(Rflags::IF) && shadow == Shadow::None;
        if v.events.interrupt.is_none() && open && !blocked {
            v.events.interrupt = v.acknowledge_interrupt();
        }
        if let Some(vector) = v.events.interrupt
            && (open || v.events.interrupt_soft)
        {
            let event = Event { vector, kind: EventKind::External, error_code: None };
            v.stats.interrupts += 1;
            let exit = self.deliver(event);
            self.vcpu.events.interrupt = None;
            self.vcpu.events.interrupt_soft = false;
            return exit;
        }
        if self.request_interrupt_window && open && self.vcpu.events.interrupt.is_none() {
            return Some(Exit::IrqWindowOpen);
        }
        None
    }

    /// The SMI that waits. `halted`: it ends HLT.
    pub(super) fn take_smi(&mut self, halted: bool) -> Option<Exit> {
        match self.vcpu.enter_smm(halted) {
            Ok(()) => None,
            Err(Stop::HostFault) => Some(Exit::HostFault { hva: self.vcpu.host_fault }),
            Err(_) => {
                self.vcpu.events.smi_pending = false;
                Some(Exit::Shutdown)
            }
        }
    }

    fn deliver_pending_exception(&mut self) -> Option<Exit> {
        let e = self.vcpu.events.exception?;
        self.deliver_exception(e)
    }

    fn deliver_exception(&mut self, e: PendingException) -> Option<Exit> {
        let event = Event { vector: e.vector, kind: EventKind::Exception, error_code: e.error_code };
        self.vcpu.apply_payload(&e);
        let exit = self.deliver(event);
        self.vcpu.stats.exceptions += 1;
        exit
    }

    /// Delivers one event, exclusive sections and escalation included.
    fn deliver(&mut self, event: Event) -> Option<Exit> {
        let mut event = event;
        loop {
            self.vcpu.io.restart();
            match self.vcpu.inject(event) {
                Ok(()) => {
                    self.vcpu.io.commit();
                    self.vcpu.attend(ATTENTION_EVENT);
                    return None;
                }
                Err(Stop::Exception(second)) => match self.vcpu.escalate(event, second) {
                    Some(next) => event = next,
                    None => {
                        self.vcpu.events.exception = None;
                        return Some(Exit::Shutdown);
                    }
                },
                Err(Stop::Exclusive) => {
                    if let Err(stop) = self.exclusive(|_, _| Ok(())) {
                        return self.stopped(stop);
                    }
                }
                Err(Stop::Need) => {
                    // A stack or table in device memory: KVM cannot deliver through it either.
                    self.vcpu.io.request = None;
                    self.vcpu.io.commit();
                    return Some(self.internal(InternalError::Delivery));
                }
                Err(Stop::HostFault) => return Some(Exit::HostFault { hva: self.vcpu.host_fault }),
                Err(Stop::Shutdown) => return Some(Exit::Shutdown),
                Err(Stop::Internal(kind)) => return Some(self.internal(kind)),
            }
        }
    }
}

impl Vcpu {
    /// A processor-detected exception becomes pending.
    pub fn raise(&mut self, e: Exception) {
        let mut p: PendingException = e.into();
        if e.vector == Vector::Pf {
            p.payload = Some(self.fault_gva.0);
        } else if e.vector == Vector::Db {
            p.payload = Some(core::mem::take(&mut self.events.debug_fault));
        }
        self.events.exception = Some(p);
        self.attend(ATTENTION_EVENT);
    }

    /// A #DB with these DR6 bits becomes pending.
    pub fn raise_debug(&mut self, bits: u64) {
        let mut p: PendingException = Exception::new(Vector::Db).into();
        p.payload = Some(bits);
        self.events.exception = Some(p);
        self.attend(ATTENTION_EVENT);
    }

    /// Moves an exception's payload into CR2 or DR6, as delivery does.
    pub fn apply_payload(&mut self, e: &PendingException) {
        let Some(p) = e.payload else { return };
        match Vector::from_number(e.vector) {
            Some(Vector::Pf) => self.cr2 = p,
            Some(Vector::Db) => {
                self.dr6 = Dr6::from_bits_retain(self.dr6.bits() & !0xf | p | Dr6::FIXED.bits());
                // Delivery of #DB clears GD (SDM vol. 3A, 17.2.4).
                self.dr7.remove(Dr7::GD);
            }
            _ => {}
        }
        if let Some(pending) = &mut self.events.exception {
            pending.payload = None;
        }
    }
}
