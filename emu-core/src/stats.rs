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
}
