//! The VM's clocks: guest TSC per vCPU, kvmclock.

use crate::host::Host;
use crate::vcpu::Vcpu;

/// Clock parameters that the vCPUs share.
pub struct VmClock {
    /// The host's TSC frequency in kHz.
    pub host_khz: u32,
}

impl VmClock {
    /// Clocks that begin now.
    pub fn new(host: &dyn Host) -> VmClock {
        VmClock { host_khz: host.tsc_khz() }
    }
}

impl Vcpu {
    /// Nanoseconds of the monotonic clock, now.
    pub fn now_ns(&self) -> u64 {
        self.vm.host.monotonic_ns(self.hot.retired)
    }

    /// The guest's time-stamp counter, now.
    pub fn guest_tsc(&self) -> u64 {
        self.vm.host.tsc(self.hot.retired)
    }
}
