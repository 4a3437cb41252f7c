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
    /// `retired` is the asking vCPU's count ([`crate::Vcpu::count`]); zero where no vCPU asks.
    fn tsc(&self, retired: u64) -> u64;

    /// Frequency of [`Host::tsc`] in kHz.
    fn tsc_khz(&self) -> u32;

    /// Nanoseconds of a monotonic clock that never stops (CLOCK_MONOTONIC).
    fn monotonic_ns(&self, retired: u64) -> u64;

    /// Nanoseconds since the epoch (CLOCK_REALTIME).
    fn realtime_ns(&self, retired: u64) -> u64;

    /// RDRAND and RDSEED: 64 random bits.
    fn random(&self) -> u64;

    /// A vCPU that has told `count` so far begins to run, or time was moved under it: the count that it goes on from.
    /// Real time does not follow the count.
    fn resume(&self, count: u64) -> u64 {
        count
    }

    /// Whether a timer fires at the very instruction at which it is due (counted time), and not when the loop looks next.
    fn exact(&self) -> bool {
        false
    }

    /// Where time is counted: now, in nanoseconds, and the state of the generator of random numbers.
    fn counted_time(&self) -> Option<(u64, u64)> {
        None
    }

    /// A count for one vCPU of how long it waited for a processor, made in the thread that makes the vCPU. `None`: nobody
    /// ever waits (counted time).
    fn run_delay(&self) -> Option<Box<dyn RunDelay>> {
        None
    }

    /// A halted vCPU has nothing to do before `deadline_ns` (of [`Host::monotonic_ns`]).
    /// Returns true if time was moved there at once (counted time); false if the caller should sleep.
    fn skip_to(&self, deadline_ns: u64) -> bool {
        let _ = deadline_ns;
        false
    }
}

/// How long the threads of a vCPU were ready to run and did not.
pub trait RunDelay: Send {
    /// Nanoseconds so far, counted in the calling thread up to now; never less than before. `began`: until now the thread
    /// may have slept of its own will.
    fn nanoseconds(&mut self, began: bool) -> u64;
}
