//! KVM_HC_CLOCK_PAIRING: the host's time of day and the guest's TSC at one moment (KVM hypercalls.txt).

use crate::vcpu::Vcpu;
use x86_arch::Gpa;

/// KVM_CLOCK_PAIRING_WALLCLOCK, the one clock.
const WALL_CLOCK: u64 = 0;
/// Bytes of `struct kvm_clock_pairing`.
const SIZE: usize = 64;
/// -KVM_EOPNOTSUPP.
const EOPNOTSUPP: u64 = -95i64 as u64;
/// -KVM_EFAULT.
const EFAULT: u64 = -14i64 as u64;
const NS_PER_SEC: u64 = 1_000_000_000;

impl Vcpu {
    /// Writes seconds, nanoseconds, TSC, and zeros to `gpa`; returns the hypercall's answer.
    pub(crate) fn clock_pairing(&mut self, gpa: u64, clock: u64) -> u64 {
        if clock != WALL_CLOCK {
            return EOPNOTSUPP;
        }
        let (ns, tsc) = (self.vm.host.realtime_ns(self.count()), self.guest_tsc());
        let mut bytes = [0; SIZE];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip([ns / NS_PER_SEC, ns % NS_PER_SEC, tsc])
        {
            *to = word.to_le_bytes();
        }
        if self.pv_memory().write(Gpa(gpa), &bytes).is_ok() { 0 } else { EFAULT }
    }
}
