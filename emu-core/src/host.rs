//! Time, chance and the outside world, behind one trait.
//!
//! Nothing else in emu-core or softmmu may read a clock or draw randomness:
//! that is what makes counted time, recording and replaying possible without
//! new entry points. Answers to port, MMIO, MSR and hypercall exits enter by
//! [`crate::Processor::complete_io`] and its kin, interrupts by the VM's
//! injection calls; both are driven by the caller of `run`.

/// What the engine asks of the world outside the VM.
pub trait Host: Send + Sync {
    /// The host's TSC, or a counter that stands for it, in units of [`Host::tsc_khz`].
    /// `retired` is the asking vCPU's count of retired instructions.
    fn tsc(&self, retired: u64) -> u64;

    /// Frequency of [`Host::tsc`] in kHz.
    fn tsc_khz(&self) -> u32;

    /// Nanoseconds of a monotonic clock that never stops (CLOCK_MONOTONIC).
    fn monotonic_ns(&self, retired: u64) -> u64;

    /// Nanoseconds since the epoch (CLOCK_REALTIME).
    fn realtime_ns(&self, retired: u64) -> u64;

    /// RDRAND and RDSEED: 64 random bits.
    fn random(&self) -> u64;

    /// A halted vCPU has nothing to do before `deadline_ns` (of [`Host::monotonic_ns`]).
    /// Returns true if time was moved there at once (counted time); false if the caller should sleep.
    fn skip_to(&self, deadline_ns: u64) -> bool {
        let _ = deadline_ns;
        false
    }
}
