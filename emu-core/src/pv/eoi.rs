//! PV EOI (MSR_KVM_PV_EOI_EN): the guest ends an interrupt by clearing a bit in its own memory, where that is enough
//! (KVM msr.txt).
//!
//! Between two stretches of instructions the bit is set if the end of the interrupt in service is nobody else's business:
//! no other request waits, and no IOAPIC pin has the vector. A guest that finds the bit set clears it and leaves the local
//! APIC alone; afterwards that is an EOI. Whoever looks at the local APIC (an event to deliver, a register access, the end
//! of KVM_RUN) settles the matter first: then either the EOI has happened, or the bit is clear and the guest will write the
//! register.

use crate::irqchip::lapic::{Eoi, LapicEffect};
use crate::vcpu::Vcpu;
use x86_arch::Gpa;

/// MSR bit 0: enabled.
const ENABLED: u64 = 1;
/// Of the other bits, bit 1 is reserved: the word is aligned to four bytes.
const RESERVED: u64 = 2;
/// In guest memory: the EOI may be given here.
const MAY_CLEAR: u8 = 1;

impl Vcpu {
    fn pv_eoi_record(&self) -> Option<Gpa> {
        (self.msr.pv_eoi & ENABLED != 0).then_some(Gpa(self.msr.pv_eoi & !ENABLED))
    }

    /// MSR_KVM_PV_EOI_EN. False: misaligned, or there is no memory to write.
    pub(crate) fn write_pv_eoi(&mut self, value: u64) -> bool {
        if value & RESERVED != 0 {
            return false;
        }
        self.settle_pv_eoi();
        if value & ENABLED != 0 && !self.pv_eoi_memory(Gpa(value & !ENABLED)) {
            return false;
        }
        self.msr.pv_eoi = value;
        true
    }

    /// Whether a byte can be written there. Nothing is: KVM_SET_MSRS must not put a page into the dirty log.
    fn pv_eoi_memory(&self, at: Gpa) -> bool {
        self.pv_memory().is_writable(at, 1)
    }

    /// Takes what the guest has said, before anything looks at the local APIC. An arrangement that the guest has not made
    /// use of stays.
    #[inline]
    pub(crate) fn take_pv_eoi(&mut self) {
        if self.pv.eoi_vector.is_some() && !self.pv_eoi_waits() {
            self.end_by_pv_eoi();
        }
    }

    /// As [`Vcpu::take_pv_eoi`], and ends the arrangement: the guest writes the register from now on.
    #[inline]
    pub(crate) fn settle_pv_eoi(&mut self) {
        if self.pv.eoi_vector.is_some() {
            if self.pv_eoi_waits() {
                self.withdraw_pv_eoi();
            } else {
                self.end_by_pv_eoi();
            }
        }
    }

    /// Whether the bit is still set. What cannot be read counts as set: then nothing is ended by mistake.
    fn pv_eoi_waits(&self) -> bool {
        let byte = self.pv_eoi_record().and_then(|at| self.pv_memory().load::<u8>(at).ok());
        byte.is_none_or(|b| b & MAY_CLEAR != 0)
    }

    fn withdraw_pv_eoi(&mut self) {
        self.pv.eoi_vector = None;
        if let Some(at) = self.pv_eoi_record() {
            let _ = self.pv_memory().store(at, 0u8);
        }
    }

    fn end_by_pv_eoi(&mut self) {
        self.pv.eoi_vector = None;
        let ended = self.shared.irq.lapic().and_then(|mut l| l.eoi());
        if let Some(eoi) = ended {
            self.apic_effect(LapicEffect::Eoi(eoi));
        }
    }

    /// The guest is about to run: lets it end the interrupt in service by clearing the bit, if that is enough.
    #[inline]
    pub(crate) fn offer_pv_eoi(&mut self) {
        if self.msr.pv_eoi & ENABLED == 0 {
            return;
        }
        let vector = self.pv_eoi_candidate();
        if vector == self.pv.eoi_vector {
            return;
        }
        match vector {
            None => self.withdraw_pv_eoi(),
            Some(_) => {
                if let Some(at) = self.pv_eoi_record()
                    && self.pv_memory().store(at, MAY_CLEAR).is_ok()
                {
                    self.pv.eoi_vector = vector;
                }
            }
        }
    }

    /// The interrupt whose end needs nothing but its bit in the ISR.
    fn pv_eoi_candidate(&self) -> Option<u8> {
        let eoi: Eoi = {
            let lapic = self.shared.irq.lapic()?;
            if lapic.highest_requested().is_some() {
                return None;
            }
            lapic.next_eoi()?
        };
        if self.pv.eoi_vector == Some(eoi.vector) {
            // Decided when it was offered.
            return Some(eoi.vector);
        }
        let others_wait = eoi.level || self.vm.with_irqchip(|c| c.waits_for_eoi(eoi.vector)) == Some(true);
        (!others_wait).then_some(eoi.vector)
    }
}
