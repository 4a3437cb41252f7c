//! Delivery of interrupts and exceptions in each mode (SDM vol. 3A, 6.12 and 6.14; vol. 3A, 20.1.4).

use crate::event::{Event, EventKind};
use crate::exit::{Result, Stop};
use crate::vcpu::Vcpu;
use x86_arch::Exception;
use x86_arch::exception::{Escalation, Vector, escalate};

impl Vcpu {
    /// Delivers an event through the IDT or the interrupt vector table. On `Err` nothing was changed.
    pub fn inject(&mut self, _event: Event) -> Result {
        Err(Stop::Shutdown)
    }

    /// What becomes of `second`, raised while `first` was being delivered. `None`: shutdown.
    pub fn escalate(&mut self, first: Event, second: Exception) -> Option<Event> {
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
}
