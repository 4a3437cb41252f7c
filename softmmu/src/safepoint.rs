//! Safe points: who runs, who asks whom for what, and exclusive sections.

use bitflags::bitflags;
use std::sync::Arc;
use std::time::Duration;

bitflags! {
    /// What a vCPU is asked to do at its next safe point.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Requests: u64 {
        /// Drop every TLB entry.
        const TLB_FLUSH = 1 << 0;
        /// The memory slots have changed.
        const MEMSLOTS = 1 << 1;
        /// The MMU has left messages for this vCPU (tags to drop).
        const MMU = 1 << 2;
        /// Decoded code was overwritten: see `VcpuMmu::take_code_writes`.
        const CODE = 1 << 3;
        /// Leave the run loop (KVM_RUN returns EINTR).
        const EXIT = 1 << 8;
        /// Look for an interrupt, NMI, SMI or INIT.
        const EVENT = 1 << 9;
        /// A timer has expired.
        const TIMER = 1 << 10;
        /// The clock's page is to be updated.
        const CLOCK = 1 << 11;
        /// The VM is dead.
        const DEAD = 1 << 12;
        /// An exclusive section begins: park. Set and cleared by `World` alone.
        const STOP = 1 << 63;
    }
}

/// Why [`VcpuGate::block`] came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockResult {
    /// A request is pending.
    Woken,
    /// The time has passed.
    TimedOut,
}

/// All vCPUs of one VM.
pub struct World {}

/// One vCPU's gate between its thread and the others'.
pub struct VcpuGate {}

/// Proof that every other vCPU of the VM is at a safe point.
pub struct Exclusive<'a> {
    _world: &'a World,
}

impl World {
    /// A world without vCPUs.
    pub fn new() -> Arc<World> {
        Arc::new(World {})
    }

    /// A new vCPU's gate; it is outside.
    pub fn register(self: &Arc<Self>) -> Arc<VcpuGate> {
        Arc::new(VcpuGate {})
    }

    /// Forgets a vCPU.
    pub fn unregister(&self, _gate: &Arc<VcpuGate>) {}

    /// Runs `f` with every other vCPU at a safe point. `me` is the caller's own gate if the caller is a vCPU
    /// (which must be at a safe point itself). Not to be nested.
    pub fn exclusive<R>(&self, _me: Option<&VcpuGate>, f: impl FnOnce(&Exclusive<'_>) -> R) -> R {
        f(&Exclusive { _world: self })
    }

    /// Sends requests to every vCPU.
    pub fn request_all(&self, _requests: Requests) {}
}

impl VcpuGate {
    /// Whether anything waits for this vCPU (requests, or an exclusive section): one relaxed load.
    #[inline(always)]
    pub fn pending(&self) -> bool {
        false
    }

    /// Begins to run. Waits while an exclusive section is on. Take the requests afterwards, before the first guest access.
    pub fn enter(&self) {}

    /// Stops running: the vCPU is outside.
    pub fn leave(&self) {}

    /// Waits for the end of an exclusive section, if there is one. A safe point.
    pub fn park_if_stopped(&self) {}

    /// Sends requests to this vCPU, and wakes it if it is blocked. Async-signal-safe.
    pub fn request(&self, _requests: Requests) {}

    /// The pending requests (without STOP), which are cleared.
    pub fn take_requests(&self) -> Requests {
        Requests::empty()
    }

    /// The pending requests, left as they are.
    pub fn peek_requests(&self) -> Requests {
        Requests::empty()
    }

    /// Sleeps (HLT) until a request comes or the time has passed. A safe point throughout.
    pub fn block(&self, _timeout: Option<Duration>) -> BlockResult {
        BlockResult::TimedOut
    }
}
