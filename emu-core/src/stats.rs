//! Counters of one vCPU, for `--stats` and the binary statistics.

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters since the vCPU's creation.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// Name and value of every counter.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

stats! {
    /// Blocks entered.
    blocks,
    /// Blocks decoded.
    blocks_decoded,
    /// Instructions decoded.
    insns_decoded,
    /// Blocks dropped because their bytes changed.
    blocks_invalidated,
    /// Data accesses that missed the TLB.
    slow_accesses,
    /// Exceptions delivered.
    exceptions,
    /// External interrupts delivered.
    interrupts,
    /// NMIs delivered.
    nmis,
    /// Halts.
    halts,
    /// Exclusive sections entered for this vCPU.
    exclusives,
    /// Returns to the caller with port I/O.
    io_exits,
    /// Returns to the caller with MMIO.
    mmio_exits,
    /// Port and MMIO accesses that a device inside answered.
    device_accesses,
    /// Times that the execution of guest code was left, for whatever reason.
    exits,
    /// Returns to the caller because it asked for them.
    interrupted_exits,
    /// Returns to the caller because an interrupt can be taken.
    irq_window_exits,
    /// Returns to the caller with what the engine cannot execute.
    internal_errors,
    /// Calls of `run`.
    runs,
    /// Requests from other threads that were acted on.
    requests,
    /// Hypercalls.
    hypercalls,
    /// Halts that an event ended.
    halt_wakeups,
    /// Nanoseconds spent halted.
    halt_ns,
    /// Instructions retired when the counters were last shown ([`StatsSink`]).
    shown,
}

/// Buckets of [`HaltWaits`].
pub const HALT_BUCKETS: usize = 32;

/// How long halts lasted: bucket 0 is less than a nanosecond, bucket n from 2^(n-1) to 2^n, the last has no end.
#[derive(Clone, Copy, Debug, Default)]
pub struct HaltWaits(pub [u64; HALT_BUCKETS]);

impl HaltWaits {
    /// One more.
    pub fn add(&mut self, ns: u64) {
        let bucket = (u64::BITS - ns.leading_zeros()) as usize;
        self.0[bucket.min(HALT_BUCKETS - 1)] += 1;
    }
}

/// A vCPU's counters, as others are shown them.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// The vCPU's.
    pub stats: &'a Stats,
    /// Its MMU's.
    pub mmu: softmmu::stats::VcpuStats,
    /// Instructions retired.
    pub retired: u64,
    /// It is halted and waits.
    pub blocking: bool,
    /// How long its halts lasted.
    pub halt_waits: &'a HaltWaits,
}

/// Who wants to see a vCPU's counters: called in its thread, every few thousand instructions, before it sleeps, and whenever `run` returns.
pub type StatsSink = Box<dyn Fn(&Shown<'_>) + Send + Sync>;

/// Instructions between two times that the counters are shown.
const SHOW_EVERY: u64 = 4096;

impl crate::vcpu::Vcpu {
    /// Shows the counters to whoever wants to see them.
    pub fn show_stats(&mut self, blocking: bool) {
        if let Some(sink) = self.shared.stats_sink.get() {
            self.stats.shown = self.hot.retired;
            sink(&Shown {
                stats: &self.stats,
                mmu: self.mmu.stats(),
                retired: self.hot.retired,
                blocking,
                halt_waits: &self.shared.halt_waits.lock(),
            });
            self.vm.mmu.show_stats();
        }
    }

    /// A sleep that began at `since` is over.
    pub(crate) fn waited(&mut self, since: u64) {
        if self.events.activity == crate::event::Activity::Halted {
            let ns = self.now_ns().saturating_sub(since);
            self.stats.halt_ns += ns;
            self.shared.halt_waits.lock().add(ns);
        }
        self.show_stats(false);
    }

    /// [`show_stats`](Self::show_stats) from time to time.
    #[inline]
    pub fn show_stats_sometimes(&mut self) {
        if self.hot.retired.wrapping_sub(self.stats.shown) >= SHOW_EVERY
            && self.shared.stats_sink.get().is_some()
        {
            self.show_stats(false);
        }
    }
}
