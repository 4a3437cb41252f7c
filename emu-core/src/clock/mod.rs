//! The guest's clocks, as arithmetic: the TSC and kvmclock. Steal time is [`crate::pv::steal_time`]'s.
//!
//! Nothing here reads a clock. The caller samples time through the host trait and passes it in as nanoseconds or
//! host TSC ticks; what comes back is a value, or bytes for the caller to write to guest memory.
//!
//! - [`tsc`]: host TSC to guest TSC (ratio, offset, IA32_TSC_ADJUST, synchronisation of several vCPUs)
//! - [`kvmclock`]: the structures of KVM's msr.txt and their version protocol

pub mod kvmclock;
pub mod tsc;

/// One moment, as the devices of a vCPU see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Monotonic time in nanoseconds. Any base, as long as it is the same for all devices of a VM.
    pub ns: u64,
    /// The vCPU's guest TSC at that time.
    pub tsc: u64,
    /// The guest TSC's frequency in kHz (0: the TSC-deadline timer never fires by itself).
    pub tsc_khz: u32,
}

impl Now {
    /// A moment for code that has no use for the TSC.
    pub const fn at(ns: u64) -> Now {
        Now { ns, tsc: 0, tsc_khz: 0 }
    }
}
