//! What KVM adds to the processor for guests that know of it (KVM cpuid.txt, msr.txt, hypercalls.txt): which of these
//! features this guest may use, and the state that is in no MSR.
//!
//! A file is a feature: [`steal_time`] (with the deferred TLB flush, which lives in its record), [`eoi`], [`ipi`],
//! [`async_pf`], [`clock_pairing`]. kvmclock is [`crate::vm_clock`]'s, the hypercalls' numbers are [`crate::hypercall`]'s. What CPUID offers is
//! in `cpuid::policy`.
//!
//! Guest memory is written through [`softmmu::GuestMemory`], in the address space that is not SMM's, by the vCPU's own
//! thread, and only while the MSR that names it is enabled: a guest that clears the MSR, a VMM that clears it and an INIT
//! each end every write.

pub mod async_pf;
pub mod clock_pairing;
pub mod eoi;
pub mod ipi;
pub mod steal_time;
#[cfg(test)]
mod tests;

use crate::cpuid::CpuidTable;
use crate::host::RunDelay;
use crate::vcpu::Vcpu;
use softmmu::GuestMemory;
use x86_arch::cpuid::{CpuidEntry, KVM_CPUID_FEATURES, KVM_CPUID_SIGNATURE, kvm};
use x86_arch::msr;

/// The MSRs of KVM's own, and the feature bit that each belongs to.
const MSRS: [(u32, u32); 10] = [
    (msr::KVM_WALL_CLOCK, kvm::FEATURE_CLOCKSOURCE),
    (msr::KVM_SYSTEM_TIME, kvm::FEATURE_CLOCKSOURCE),
    (msr::KVM_WALL_CLOCK_NEW, kvm::FEATURE_CLOCKSOURCE2),
    (msr::KVM_SYSTEM_TIME_NEW, kvm::FEATURE_CLOCKSOURCE2),
    (msr::KVM_ASYNC_PF_EN, kvm::FEATURE_ASYNC_PF),
    (msr::KVM_STEAL_TIME, kvm::FEATURE_STEAL_TIME),
    (msr::KVM_PV_EOI_EN, kvm::FEATURE_PV_EOI),
    (msr::KVM_POLL_CONTROL, kvm::FEATURE_POLL_CONTROL),
    (msr::KVM_ASYNC_PF_INT, kvm::FEATURE_ASYNC_PF_INT),
    (msr::KVM_ASYNC_PF_ACK, kvm::FEATURE_ASYNC_PF_INT),
];

/// Where a hypervisor's CPUID leaves may begin (KVM cpuid.txt: a multiple of 100H).
const BASES: core::ops::Range<u32> = KVM_CPUID_SIGNATURE..KVM_CPUID_SIGNATURE + 0x1_0000;

/// A vCPU's part of the paravirtual features. Nothing of it outlives KVM_RUN but what user space has set.
#[derive(Default)]
pub struct Pv {
    /// KVM_CAP_ENFORCE_PV_FEATURE_CPUID is on: these features exist, and no others.
    enforced: Option<u32>,
    /// A kick (KVM_HC_KICK_CPU) that no HLT has used up. As in KVM, it is not saved.
    pub unhalted: bool,
    /// The vector whose EOI the guest may give by clearing a bit.
    eoi_vector: Option<u8>,
    /// The steal-time record says that the vCPU does not run, or was never written.
    stale: bool,
    /// Counts how long the vCPU's threads waited for a processor.
    delay: Option<Box<dyn RunDelay>>,
    /// What the guest has been told of that.
    delay_told: u64,
    /// Retired instructions at which the record is looked at again.
    next_look: u64,
}

impl Pv {
    /// Features of a new vCPU.
    pub fn new(delay: Option<Box<dyn RunDelay>>) -> Pv {
        Pv { delay, ..Pv::default() }
    }
}

/// The feature bits that a CPUID table shows: EAX of the leaf behind KVM's signature.
pub fn features(table: &CpuidTable) -> Option<u32> {
    table.find(features_leaf(table.entries())?, 0).map(|r| r.eax)
}

/// KVM_FEATURE_PV_UNHALT goes from a table: nobody is kicked out of a HLT that user space never sees.
pub fn withhold_unhalt(rows: &mut [CpuidEntry]) {
    let leaf = features_leaf(rows);
    for row in rows.iter_mut().filter(|r| Some(r.leaf) == leaf) {
        row.result.eax &= !(1 << kvm::FEATURE_PV_UNHALT);
    }
}

/// The leaf of the features: behind KVM's signature.
fn features_leaf(rows: &[CpuidEntry]) -> Option<u32> {
    let word = |at: usize| {
        let b = kvm::SIGNATURE.get(at..at + 4).and_then(|b| b.try_into().ok()).unwrap_or_default();
        u32::from_le_bytes(b)
    };
    let signature = (word(0), word(4), word(8));
    let base = BASES.step_by(0x100).find(|&base| {
        let row = rows.iter().find(|r| r.leaf == base).map(|r| r.result);
        row.is_some_and(|r| (r.ebx, r.ecx, r.edx) == signature)
    })?;
    Some(base | (KVM_CPUID_FEATURES - KVM_CPUID_SIGNATURE))
}

impl Vcpu {
    /// Features of a CPUID leaf that cannot work in this VM, and that CPUID therefore does not show to its guest: interrupts and
    /// kicks by hypercall where the local APICs are user space's. Linux relies on the first when it is shown, and then hangs.
    pub(crate) fn pv_not_here(&self, leaf: u32) -> u32 {
        let of_the_apic = 1 << kvm::FEATURE_PV_SEND_IPI | 1 << kvm::FEATURE_PV_UNHALT;
        let ours = BASES.contains(&(leaf & !0xff))
            && !self.vm.has_irqchip()
            && Some(leaf) == features_leaf(self.cpuid.entries());
        if ours { of_the_apic } else { 0 }
    }

    /// Whether the guest may use a feature: all of them, unless user space wants CPUID to be the law
    /// (KVM_CAP_ENFORCE_PV_FEATURE_CPUID).
    pub fn pv_has(&self, feature: u32) -> bool {
        self.pv.enforced.is_none_or(|bits| bits >> feature & 1 != 0)
    }

    /// KVM_CAP_ENFORCE_PV_FEATURE_CPUID.
    pub fn enforce_pv_features(&mut self, on: bool) {
        self.pv.enforced = on.then(|| features(&self.cpuid).unwrap_or(0));
    }

    /// CPUID has changed.
    pub fn pv_cpuid_changed(&mut self) {
        self.enforce_pv_features(self.pv.enforced.is_some());
    }

    /// Whether an MSR does not exist for this guest because its feature does not. Then user space may write and read
    /// zero, as KVM lets it for what KVM_GET_MSR_INDEX_LIST names.
    pub(crate) fn pv_hides(&self, index: u32) -> bool {
        self.pv.enforced.is_some() && MSRS.iter().any(|&(msr, feature)| msr == index && !self.pv_has(feature))
    }

    /// The memory that the records lie in: never SMM's.
    fn pv_memory(&self) -> GuestMemory {
        self.vm.mmu.guest_memory(0)
    }

    /// Power-up and INIT: every record is the guest's own memory again.
    pub(crate) fn reset_pv(&mut self) {
        self.msr.steal_time = 0;
        self.msr.pv_eoi = 0;
        self.msr.async_pf_en = 0;
        self.msr.async_pf_int = 0;
        self.forget_kvmclock();
        self.clock.guest_stopped = false;
        self.pv.eoi_vector = None;
        self.pv.stale = false;
    }
}
