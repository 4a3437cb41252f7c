//! Counters, for people and for tests.

/// Events in one VM's shadow pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShadowStats {
    /// Shadow pages in use now.
    pub pages: u64,
    /// Shadow pages made.
    pub created: u64,
    /// Shadow pages torn down.
    pub zapped: u64,
    /// Of those, for want of room.
    pub recycled: u64,
    /// Of those, because the guest kept writing to the table.
    pub flooded: u64,
    /// Leaf sptes set.
    pub mapped: u64,
    /// Leaf sptes dropped because their gpte was written.
    pub gpte_writes: u64,
    /// Times that a frame was write-protected for a shadow page.
    pub protected: u64,
    /// Times that a translation could not be entered yet, because another vCPU had to drop tags first.
    pub deferred: u64,
}

/// Events in one vCPU's MMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VcpuStats {
    /// Accesses that the TLB did not know.
    pub misses: u64,
    /// Of those, answered by the shadow tables.
    pub shadow_hits: u64,
    /// Of those, answered by the guest's tables.
    pub walks: u64,
    /// Of those, #PFs for the guest.
    pub page_faults: u64,
    /// Stores that somebody tracked.
    pub tracked_writes: u64,
}
