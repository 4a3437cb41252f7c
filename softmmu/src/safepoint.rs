//! Safe points: who runs, who asks whom for what, and exclusive sections.
//!
//! A vCPU passes a safe point between two instructions (interpreter) or blocks (translator). Others
//! send it requests, bits in one word that it tests there. An *exclusive section* runs while every
//! other vCPU is at a safe point: it sets STOP in their words, waits until none is Running, works, and lets
//! them go. Outside (not in KVM_RUN), Blocked (HLT) and Exiting (parked) vCPUs are at a safe point already.
//!
//! Why nothing is lost: a vCPU publishes its mode and then reads its word; whoever sends publishes the
//! word and then reads the mode; both sequentially consistent, so one of the two sees the other.
//!
//! The model checker loom walks through the interleavings of this file: `tests/safepoint_loom.rs` compiles it on its own
//! `primitives`.
//!
//! Not here: what the requests mean. See `mmu` and the run loop.

use crate::primitives::{AtomicU32, AtomicU64, Condvar, Mutex, futex};
use bitflags::bitflags;
use std::sync::Arc;
use std::sync::atomic::{Ordering::Relaxed, Ordering::SeqCst};
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
        /// The vCPU's dirty ring is full.
        const DIRTY_RING = 1 << 4;
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

const STOP: u64 = Requests::STOP.bits();

/// Where a vCPU is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Mode {
    /// Not in KVM_RUN.
    Outside = 0,
    /// Executing guest code: the one mode that is not a safe point.
    Running = 1,
    /// In KVM_RUN, parked at a safe point.
    Exiting = 2,
    /// In KVM_RUN, asleep (HLT).
    Blocked = 3,
}

/// Why [`VcpuGate::block`] came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockResult {
    /// A request is pending, or the sleep ended early for no reason: look again.
    Woken,
    /// The time has passed.
    TimedOut,
}

#[derive(Default)]
struct State {
    gates: Vec<Arc<VcpuGate>>,
    /// An exclusive section is on (or being prepared).
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A vCPU has reached a safe point.
    parked: Condvar,
    /// The exclusive section is over.
    resumed: Condvar,
}

/// All vCPUs of one VM.
pub struct World {
    shared: Arc<Shared>,
    /// Held for the length of an exclusive section.
    exclusive: Mutex<()>,
}

/// One vCPU's gate between its thread and the others'.
pub struct VcpuGate {
    /// Requests, and STOP.
    word: AtomicU64,
    mode: AtomicU32,
    /// Changes with each request: what a blocked vCPU sleeps on.
    wake: AtomicU32,
    shared: Arc<Shared>,
}

/// Proof that every other vCPU of the VM is at a safe point.
pub struct Exclusive<'a> {
    _world: &'a World,
}

impl World {
    /// A world without vCPUs.
    pub fn new() -> Arc<World> {
        Arc::new(World { shared: Arc::default(), exclusive: Mutex::new(()) })
    }

    /// A new vCPU's gate; it is outside.
    pub fn register(&self) -> Arc<VcpuGate> {
        let mut state = self.shared.state.lock();
        let gate = Arc::new(VcpuGate {
            word: AtomicU64::new(if state.stopped { STOP } else { 0 }),
            mode: AtomicU32::new(Mode::Outside as u32),
            wake: AtomicU32::new(0),
            shared: Arc::clone(&self.shared),
        });
        state.gates.push(Arc::clone(&gate));
        gate
    }

    /// Forgets a vCPU, which must be outside.
    pub fn unregister(&self, gate: &Arc<VcpuGate>) {
        self.shared.state.lock().gates.retain(|g| !Arc::ptr_eq(g, gate));
    }

    /// Runs `f` with every other vCPU at a safe point. `me` is the caller's own gate if the caller is a vCPU
    /// (which must be at a safe point itself; while it waits, others may run their exclusive sections).
    /// Not to be nested, and not to be called with a lock held that a running vCPU may take.
    pub fn exclusive<R>(&self, me: Option<&VcpuGate>, f: impl FnOnce(&Exclusive<'_>) -> R) -> R {
        let was_running = me.is_some_and(|me| me.mode() == Mode::Running);
        if let Some(me) = me.filter(|_| was_running) {
            me.publish(Mode::Exiting);
        }
        let result = {
            let _turn = self.exclusive.lock();
            self.stop_others(me);
            // The resumption is in a destructor, so that a panic in `f` leaves nobody parked for ever.
            let _resume = Resume(&self.shared);
            f(&Exclusive { _world: self })
        };
        if let Some(me) = me.filter(|_| was_running) {
            me.enter();
        }
        result
    }

    fn stop_others(&self, me: Option<&VcpuGate>) {
        let is_me = |gate: &VcpuGate| me.is_some_and(|me| core::ptr::eq(me, gate));
        let mut state = self.shared.state.lock();
        state.stopped = true;
        for gate in state.gates.iter().filter(|gate| !is_me(gate)) {
            gate.word.fetch_or(STOP, SeqCst);
        }
        while state.gates.iter().any(|gate| !is_me(gate) && gate.mode() == Mode::Running) {
            self.shared.parked.wait(&mut state);
        }
    }

    /// Sends requests to every vCPU.
    pub fn request_all(&self, requests: Requests) {
        for gate in &self.shared.state.lock().gates {
            gate.request(requests);
        }
    }

    /// How many vCPUs there are.
    pub fn vcpu_count(&self) -> usize {
        self.shared.state.lock().gates.len()
    }
}

struct Resume<'a>(&'a Shared);

impl Drop for Resume<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.stopped = false;
        for gate in &state.gates {
            gate.word.fetch_and(!STOP, SeqCst);
        }
        self.0.resumed.notify_all();
    }
}

impl VcpuGate {
    /// Whether anything waits for this vCPU (requests, or an exclusive section): one relaxed load.
    #[inline(always)]
    pub fn pending(&self) -> bool {
        self.word.load(Relaxed) != 0
    }

    /// The word that [`pending`](Self::pending) tests, for translated code.
    pub fn pending_word(&self) -> *const u64 {
        self.word.as_ptr()
    }

    /// Where this vCPU is.
    pub fn mode(&self) -> Mode {
        match self.mode.load(SeqCst) {
            0 => Mode::Outside,
            1 => Mode::Running,
            2 => Mode::Exiting,
            _ => Mode::Blocked,
        }
    }

    /// Enters a mode that is a safe point, and tells whoever waits for one.
    fn publish(&self, mode: Mode) {
        self.mode.store(mode as u32, SeqCst);
        if self.word.load(SeqCst) & STOP != 0 {
            // Under the lock, so that it cannot fall between the waiter's look and its sleep.
            let _state = self.shared.state.lock();
            self.shared.parked.notify_all();
        }
    }

    /// Begins to run. Waits while an exclusive section is on. Take the requests afterwards, before the first guest access.
    pub fn enter(&self) {
        loop {
            self.mode.store(Mode::Running as u32, SeqCst);
            if self.word.load(SeqCst) & STOP == 0 {
                return;
            }
            self.publish(Mode::Exiting);
            let mut state = self.shared.state.lock();
            while self.word.load(SeqCst) & STOP != 0 {
                self.shared.resumed.wait(&mut state);
            }
        }
    }

    /// Stops running: the vCPU is outside.
    pub fn leave(&self) {
        self.publish(Mode::Outside);
    }

    /// Waits for the end of an exclusive section, if there is one. A safe point.
    #[inline]
    pub fn park_if_stopped(&self) {
        if self.word.load(SeqCst) & STOP != 0 {
            self.enter();
        }
    }

    /// Sends requests to this vCPU, and wakes it if it is blocked. Async-signal-safe.
    pub fn request(&self, requests: Requests) {
        self.word.fetch_or(requests.difference(Requests::STOP).bits(), SeqCst);
        self.wake.fetch_add(1, SeqCst);
        if self.mode() == Mode::Blocked {
            futex::wake(&self.wake);
        }
    }

    /// Takes requests back that nobody has acted on yet.
    pub fn withdraw(&self, requests: Requests) {
        self.word.fetch_and(!requests.difference(Requests::STOP).bits(), SeqCst);
    }

    /// The pending requests (without STOP), which are cleared.
    pub fn take_requests(&self) -> Requests {
        Requests::from_bits_retain(self.word.fetch_and(STOP, SeqCst) & !STOP)
    }

    /// The pending requests, left as they are.
    pub fn peek_requests(&self) -> Requests {
        Requests::from_bits_retain(self.word.load(SeqCst) & !STOP)
    }

    /// Sleeps (HLT) until a request comes or the time has passed. A safe point throughout; the vCPU is
    /// Running again afterwards, and must look at its requests.
    pub fn block(&self, timeout: Option<Duration>) -> BlockResult {
        self.publish(Mode::Blocked);
        let seen = self.wake.load(SeqCst);
        let woken = self.word.load(SeqCst) & !STOP != 0 || futex::wait(&self.wake, seen, timeout);
        self.enter();
        if woken { BlockResult::Woken } else { BlockResult::TimedOut }
    }
}
