//! Asynchronous page faults, which are absent: their CPUID bits are not offered, and no event is ever sent.
//!
//! The MSRs exist all the same, as in KVM, where CPUID alone hides nothing, and refuse what KVM refuses: a guest that
//! uses them unasked loses nothing, because "page not present" never comes (KVM msr.txt, MSR_KVM_ASYNC_PF_EN).

use crate::vcpu::Vcpu;
use x86_arch::Gpa;
use x86_arch::cpuid::kvm;

/// Events may be delivered.
const ENABLED: u64 = 1 << 0;
/// "Page not present" may be a VM exit of a nested guest.
const AS_PF_VMEXIT: u64 = 1 << 2;
/// "Page ready" is the interrupt of MSR_KVM_ASYNC_PF_INT.
const AS_INT: u64 = 1 << 3;
/// Bits 5:4.
const RESERVED: u64 = 0x30;
/// The record's alignment is 64 bytes.
const ADDRESS: u64 = !0x3f;

impl Vcpu {
    /// MSR_KVM_ASYNC_PF_EN. False: refused.
    pub(crate) fn write_async_pf_en(&mut self, value: u64) -> bool {
        if value & RESERVED != 0
            || (value & AS_PF_VMEXIT != 0 && !self.pv_has(kvm::FEATURE_ASYNC_PF_VMEXIT))
            || (value & AS_INT != 0 && !self.pv_has(kvm::FEATURE_ASYNC_PF_INT))
        {
            return false;
        }
        if self.shared.irq.lapic().is_none() {
            return value == 0;
        }
        self.msr.async_pf_en = value;
        let on = value & ENABLED != 0 && value & AS_INT != 0;
        !on || self.pv_memory().host_ptr(Gpa(value & ADDRESS)).is_some()
    }

    /// MSR_KVM_ASYNC_PF_INT: a vector. False: refused.
    pub(crate) fn write_async_pf_int(&mut self, value: u64, host: bool) -> bool {
        // Where there is no local APIC inside, user space may restore what it read.
        if value >> 8 != 0 || (self.shared.irq.lapic().is_none() && !(host && value == 0)) {
            return false;
        }
        self.msr.async_pf_int = value;
        true
    }
}
