//! Counters, for people and for tests.

/// Who wants to see the counters of a VM's shadow pages.
pub type StatsSink = Box<dyn Fn(&ShadowStats) + Send + Sync>;

macro_rules! stats {
    ($(#[$type_doc:meta])* $type:ident { $($(#[$doc:meta])* $name:ident),* $(,)? }) => {
        $(#[$type_doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct $type {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl $type {
            /// Name and value of every counter.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((concat!("mmu_", stringify!($name)), self.$name)),*]
            }
        }
    };
}

stats! {
    /// Events in one VM's shadow pages.
    ShadowStats {
        /// Shadow pages in use now.
        pages,
        /// Shadow pages made.
        created,
        /// Shadow pages torn down.
        zapped,
        /// Of those, for want of room.
        recycled,
        /// Of those, because the guest kept writing to the table.
        flooded,
        /// Leaf sptes set.
        mapped,
        /// Leaf sptes that map memory now.
        pages_4k,
        /// The most sptes that one frame ever had.
        rmap_peak,
        /// MMIO sptes set.
        mmio_sptes,
        /// Times that all vCPUs were asked to flush their TLBs.
        flushes,
        /// Of that, and of smaller requests to drop something from their TLBs.
        flush_requests,
        /// Writes to gptes whose sptes were dropped.
        gpte_writes,
        /// Times that a frame was write-protected for a shadow page.
        protected,
        /// Times that a translation could not be entered yet, because a vCPU had to drop tags first.
        deferred,
    }
}

stats! {
    /// Events in one vCPU's MMU.
    VcpuStats {
        /// Accesses that the TLB did not know.
        misses,
        /// Of those, answered by the shadow tables.
        shadow_hits,
        /// Of those, answered by the guest's tables.
        walks,
        /// Of those, #PFs for the guest.
        page_faults,
        /// Stores that somebody tracked.
        tracked_writes,
        /// Translations entered into the shadow tables, or found to be no memory.
        mapped,
        /// Accesses to what is no memory.
        mmio,
        /// Flushes of the TLB, or of a PCID's part.
        flushes,
        /// INVLPG and its like.
        invlpgs,
    }
}
