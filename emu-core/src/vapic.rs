//! The task priority of guests that cannot reach it cheaply: reports of accesses to TPR (KVM_TPR_ACCESS_REPORTING),
//! so that user space may patch them, and the page that the patched code uses in place of the register
//! (KVM_SET_VAPIC_ADDR).
//!
//! Neither is state of the guest: user space asks for both, and asks again after a restore. The register itself is the
//! local APIC's ([`crate::irqchip::lapic`]).

use crate::io::Write;
use crate::vcpu::{ATTENTION_IO, Vcpu};
use x86_arch::Gpa;
use x86_arch::apic::APIC_TPR;

/// What user space has asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vapic {
    /// Each access to TPR is an exit after its instruction.
    pub reporting: bool,
    /// Where the page's word lies in guest-physical memory; 0: there is none.
    pub address: u64,
}

impl Vcpu {
    /// Whether an access there is one to the local APIC that must be followed.
    pub(crate) fn lapic_page(&self, gpa: Gpa) -> bool {
        (self.vapic.reporting || self.vapic.address != 0)
            && self.shared.irq.lapic().is_some_and(|l| l.mmio_base() == Some(gpa.page_base().0))
    }

    /// Before an access to a register of the local APIC through its page: `offset` is the register's.
    pub(crate) fn before_lapic_access(&mut self, offset: u64, write: bool) {
        self.vapic_from_guest();
        if !self.vapic.reporting || offset & !0xf != u64::from(APIC_TPR) {
            return;
        }
        let rip = self.rip().wrapping_sub(self.insn_len.into()) & self.hot.rip_mask;
        self.io.writes.push_back(Write::TprAccess { rip, write });
        self.attend(ATTENTION_IO);
    }

    /// Before the guest runs, and after it has written the register all the same: tells the page the task priority, the class in service and the highest vector requested.
    pub(crate) fn vapic_to_guest(&mut self) {
        if self.vapic.address == 0 {
            return;
        }
        let Some(word) = self.shared.irq.lapic().map(|l| {
            let in_service = l.highest_in_service().unwrap_or(0) & 0xf0;
            u32::from_le_bytes([l.tpr(), in_service, 0, l.highest_requested().unwrap_or(0)])
        }) else {
            return;
        };
        // A page that is gone is the guest's loss.
        let _ = self.mmu.mmu().guest_memory(0).write(Gpa(self.vapic.address), &word.to_le_bytes());
    }

    /// After the guest has run, and before the register is looked at: the task priority is what the guest has left in the page.
    pub(crate) fn vapic_from_guest(&mut self) {
        if self.vapic.address == 0 {
            return;
        }
        let mut tpr = [0];
        if self.mmu.mmu().guest_memory(0).read(Gpa(self.vapic.address), &mut tpr).is_err() {
            return;
        }
        if let Some(mut l) = self.shared.irq.lapic() {
            l.set_tpr(tpr[0]);
        }
    }
}
