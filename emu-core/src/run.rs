//! The run loop: events, execute, exit.
//!
//! [`Processor::run`] alternates two phases. *Between* instructions it takes
//! requests from other threads, drains queued writes, polls timers and delivers
//! at most one event, in the SDM's order of priority (vol. 3A, table 6-2).
//! *Inside*, it executes decoded blocks until something asks for attention.
//! Every exit passes here, and every safe point is the boundary between the two.
//! `run/events.rs` is the one phase, `run/execute.rs` the other.

mod debug;
mod events;
mod execute;

use crate::block::BlockCache;
use crate::event::Activity;
use crate::exit::{Direction, Exit, InternalError};
use crate::io::Write;
use crate::vcpu::*;
use softmmu::Requests;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

/// Timers that a halted vCPU under a bound sees fire without being woken, before its caller is asked.
const SKIPS: u32 = 64;

/// Where [`Processor::run`] stops at the latest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    /// After so many instructions; a repeated string instruction is one.
    Instructions(u64),
    /// After so many steps: an instruction, an iteration of a repeated one, or an exception raised and not delivered yet.
    /// Every boundary at which an event could be delivered can be reached in this way. Slow: no blocks.
    Steps(u64),
}

/// A vCPU with the engine that executes it.
pub struct Processor {
    /// The registers and all else that handlers see.
    pub vcpu: Vcpu,
    blocks: BlockCache,
    /// User space wants to know when an interrupt can be delivered.
    pub request_interrupt_window: bool,
    /// An instruction was interrupted by a request to the outside and must be restarted first.
    restarting: bool,
    /// The bound in `hot.retired`.
    limit: u64,
    /// Steps made under a bound in steps.
    steps: u64,
    /// The bound in `steps`; with one, instructions are executed one at a time.
    step_limit: Option<u64>,
    /// Asked between quanta and in HLT: whether the caller wants `run` to return ([`Exit::Interrupted`]).
    interrupted: Option<InterruptHook>,
}

/// A wish to leave `run` that does not come through the gate, such as a byte in memory shared with the caller.
pub type InterruptHook = Box<dyn Fn() -> bool + Send>;

/// How long HLT sleeps before it asks the hook again: the hook's wish may come without a wake-up.
const HOOK_PERIOD: std::time::Duration = std::time::Duration::from_millis(5);

impl Processor {
    /// An engine around a vCPU.
    pub fn new(vcpu: Vcpu) -> Processor {
        Processor {
            vcpu,
            blocks: BlockCache::new(),
            request_interrupt_window: false,
            restarting: false,
            limit: u64::MAX,
            steps: 0,
            step_limit: None,
            interrupted: None,
        }
    }

    /// Sets what is asked every few thousand instructions, and every few milliseconds in HLT.
    pub fn set_interrupt_hook(&mut self, hook: InterruptHook) {
        self.interrupted = Some(hook);
    }

    fn caller_wants_out(&self) -> bool {
        self.interrupted.as_ref().is_some_and(|hook| hook())
    }

    /// Executes the guest until something must be told to the caller. With `bound`, at most so many
    /// instructions are retired ([`Exit::Bound`] then).
    pub fn run(&mut self, bound: Option<u64>) -> Exit {
        self.set_bound(bound.map(Bound::Instructions));
        self.run_to_bound()
    }

    /// The bound from here on: [`Processor::complete_pending`] counts towards it, and [`Processor::run_to_bound`] stops at
    /// it.
    pub fn set_bound(&mut self, bound: Option<Bound>) {
        self.limit = u64::MAX;
        self.step_limit = None;
        match bound {
            Some(Bound::Instructions(n)) => self.limit = self.vcpu.hot.retired.saturating_add(n),
            Some(Bound::Steps(n)) => self.step_limit = Some(self.steps.saturating_add(n)),
            None => {}
        }
    }

    /// Steps made so far under bounds in steps.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    fn bounded(&self) -> bool {
        self.limit != u64::MAX || self.step_limit.is_some()
    }

    fn bound_reached(&self) -> bool {
        self.vcpu.hot.retired >= self.limit || self.step_limit.is_some_and(|n| self.steps >= n)
    }

    /// Executes the guest until something must be told to the caller, or the bound is reached ([`Exit::Bound`]). A halted
    /// vCPU that nothing inside will wake returns so too.
    pub fn run_to_bound(&mut self) -> Exit {
        if self.vcpu.vm.dead.load(Ordering::Relaxed) {
            return defect();
        }
        let gate = self.vcpu.shared.gate.clone();
        gate.enter();
        self.vcpu.enter_from_outside();
        let exit = catch_unwind(AssertUnwindSafe(|| {
            self.vcpu.steal_time_begins();
            let exit = self.run_inside();
            self.vcpu.settle_pv_eoi();
            if exit == Exit::Interrupted {
                self.vcpu.steal_time_stops();
            }
            exit
        }))
        .unwrap_or_else(|_| {
            self.vcpu.vm.dead.store(true, Ordering::Relaxed);
            defect()
        });
        gate.leave();
        self.vcpu.stats.runs += 1;
        match exit {
            Exit::Interrupted => self.vcpu.stats.interrupted_exits += 1,
            Exit::IrqWindowOpen => self.vcpu.stats.irq_window_exits += 1,
            Exit::Io { .. } => self.vcpu.stats.io_exits += 1,
            Exit::MmioRead { .. } | Exit::MmioWrite { .. } => self.vcpu.stats.mmio_exits += 1,
            _ => {}
        }
        self.vcpu.show_stats(false);
        exit
    }

    /// Whether the last exit must be answered or drained before the state is consistent (KVM api, section 5, NOTE).
    pub fn has_pending_io(&self) -> bool {
        self.restarting || !self.vcpu.io.writes.is_empty() || self.vcpu.io.request.is_some()
    }

    /// The answer to [`Exit::Io`] (in) or [`Exit::MmioRead`]: the bytes read.
    pub fn complete_io(&mut self, data: &[u8]) {
        self.vcpu.io.answer(data);
    }

    /// The answer to [`Exit::MsrRead`], [`Exit::MsrWrite`], [`Exit::Hypercall`] and [`Exit::XenHypercall`]; `error` makes it #GP.
    pub fn complete_value(&mut self, value: u64, error: bool) {
        self.vcpu.io.msr_error = error;
        self.vcpu.io.answer(&value.to_le_bytes());
    }

    /// Completes what the last exit left: drains writes, executes the instruction whose answers are there,
    /// and nothing else (KVM_RUN with `immediate_exit`). `None`: nothing is left.
    pub fn complete_pending(&mut self) -> Option<Exit> {
        if !self.has_pending_io() {
            return self.debug_exit_due();
        }
        let gate = self.vcpu.shared.gate.clone();
        gate.enter();
        self.vcpu.enter_from_outside();
        let exact = self.vcpu.vm.host.exact();
        let exit = catch_unwind(AssertUnwindSafe(|| {
            while self.restarting || !self.vcpu.io.writes.is_empty() {
                if let Some(exit) = self.drain_writes() {
                    return Some(exit);
                }
                if self.restarting {
                    // One iteration of a repeated instruction is complete in itself.
                    self.vcpu.attend(ATTENTION_STEP);
                    if let Some(exit) = self.step() {
                        return Some(exit);
                    }
                }
            }
            if exact {
                self.vcpu.poll_timers();
            }
            self.debug_exit_due()
        }))
        .unwrap_or_else(|_| {
            self.vcpu.vm.dead.store(true, Ordering::Relaxed);
            Some(defect())
        });
        gate.leave();
        exit
    }

    /// Drops all decoded blocks (a snapshot was loaded, CPUID changed).
    pub fn forget_blocks(&mut self) {
        self.blocks.clear();
    }

    fn run_inside(&mut self) -> Exit {
        loop {
            self.vcpu.stats.exits += 1;
            self.vcpu.show_stats_sometimes();
            if let Some(exit) = self.between() {
                return exit;
            }
            let stepping = self.must_step();
            if stepping && !self.restarting && self.vcpu.hot.attention != 0 {
                // As in `execute`: an event that was delivered may have another behind it, before any instruction.
                continue;
            }
            self.vcpu.vapic_to_guest();
            let exit = if stepping { self.step() } else { self.execute() };
            self.vcpu.vapic_from_guest();
            if let Some(exit) = exit {
                return exit;
            }
        }
    }

    // ---- between instructions ----------------------------------------------------------------

    fn between(&mut self) -> Option<Exit> {
        let wanted_out = self.take_requests();
        let attention = core::mem::take(&mut self.vcpu.hot.attention);
        if attention & ATTENTION_CODE != 0 {
            self.drop_changed_code();
        }
        // What the instruction has done is told before a kick is obeyed: who is told EINTR may save the state.
        let told = self.drain_writes().or_else(|| self.debug_exit_due()).or_else(|| self.halt_exit_due());
        let told = told.or_else(|| self.vcpu.bus_locked.then_some(Exit::BusLock));
        if let Some(exit) = told {
            if wanted_out {
                self.vcpu.shared.gate.request(Requests::EXIT);
            }
            return Some(exit);
        }
        if self.restarting {
            // The instruction was begun before any event that arrived meanwhile.
            if wanted_out {
                self.vcpu.shared.gate.request(Requests::EXIT);
            }
            return None;
        }
        if wanted_out {
            return Some(Exit::Interrupted);
        }
        if self.bound_reached() {
            if self.vcpu.vm.host.exact() {
                // What is due at this boundary is so whether or not the caller stops here.
                self.vcpu.poll_timers();
            }
            return Some(Exit::Bound);
        }
        if self.caller_wants_out() {
            return Some(Exit::Interrupted);
        }
        if self.vcpu.mmu.dirty_ring_is_full() {
            return Some(Exit::DirtyRingFull);
        }
        self.vcpu.poll_timers();
        self.vcpu.take_apic_events();
        self.vcpu.take_pv_eoi();
        if (self.vcpu.events.activity != Activity::Runnable || self.vcpu.events.init_pending)
            && let Some(exit) = self.inactive()
        {
            return Some(exit);
        }
        let exit = self.deliver_events();
        if exit.is_none() {
            self.vcpu.offer_pv_eoi();
            self.vcpu.steal_time_goes_on();
        }
        exit
    }

    /// Takes requests from other threads; parks while an exclusive section is wanted. True: somebody wants `run` to
    /// return.
    fn take_requests(&mut self) -> bool {
        let v = &mut self.vcpu;
        if !v.shared.gate.pending() {
            return false;
        }
        let gate = v.shared.gate.clone();
        // A safe point: whoever wants an exclusive section has waited for it.
        gate.park_if_stopped();
        let bits = gate.take_requests();
        v.stats.requests += 1;
        v.mmu.apply_requests(bits);
        if bits.contains(Requests::CODE) {
            v.attend(ATTENTION_CODE);
        }
        if bits.contains(Requests::CLOCK) {
            v.update_all_kvmclocks();
        }
        if bits.contains(Requests::EVENT) {
            // Who sends an interrupt may have written code before it, behind our back.
            v.mmu.drop_exec_tags();
            v.attend(ATTENTION_EVENT);
        }
        bits.contains(Requests::EXIT)
    }

    fn drop_changed_code(&mut self) {
        for w in self.vcpu.mmu.take_code_writes() {
            self.vcpu.stats.blocks_invalidated += self.blocks.invalidate(w.frame, w.granules);
        }
    }

    /// One queued write, as an exit.
    fn drain_writes(&mut self) -> Option<Exit> {
        let w = self.vcpu.io.writes.pop_front()?;
        Some(match w {
            Write::Pio { port, size, count, data } => {
                Exit::Io { direction: Direction::Out, size, port, count, data }
            }
            Write::Mmio { gpa, data, len } => Exit::MmioWrite { gpa, data, len },
            Write::IoapicEoi { vector } => Exit::IoapicEoi { vector },
            Write::SetTpr => Exit::SetTpr,
            Write::TprAccess { rip, write } => Exit::TprAccess { rip, write },
        })
    }

    /// INIT, SIPI and HLT: waits until the vCPU is runnable, or says why it returns.
    fn inactive(&mut self) -> Option<Exit> {
        let mut skipped = 0;
        let uninitialized = self.vcpu.events.activity == Activity::Uninitialized;
        let mut slept = false;
        loop {
            let v = &mut self.vcpu;
            v.accept_init_and_sipi();
            if uninitialized && (v.events.activity != Activity::Uninitialized || v.wakes_from_halt()) {
                return Some(Exit::Woken);
            }
            match v.events.activity {
                Activity::Runnable => return None,
                Activity::Halted | Activity::ResetHold => {
                    if v.smi_deliverable() && v.events.exception.is_none() {
                        if slept {
                            v.steal_time_begins();
                        }
                        return self.take_smi(true);
                    }
                    if v.wakes_from_halt() {
                        v.stats.halt_wakeups += 1;
                        v.events.activity = Activity::Runnable;
                        v.pv.unhalted = false;
                        if slept {
                            v.steal_time_begins();
                        }
                        return None;
                    }
                    if !v.vm.has_irqchip() && !v.vm.choices.hlt_in_guest() {
                        // User space decides (KVM_EXIT_HLT); execution goes on behind the HLT.
                        v.events.activity = Activity::Runnable;
                        return Some(Exit::Hlt);
                    }
                }
                Activity::Uninitialized | Activity::InitReceived => {}
            }
            let deadline = v.next_deadline();
            // Skipped time wakes nobody where the timer's interrupt is held off: requests are looked at all the same.
            if self.bounded() && (deadline.is_none() || skipped >= SKIPS) {
                // The caller decides who runs when: nothing is waited for here.
                return Some(Exit::Bound);
            }
            let v = &mut self.vcpu;
            if deadline.is_some_and(|d| v.vm.host.skip_to(d)) {
                skipped += 1;
                v.resume_time();
            } else {
                v.steal_time_stops();
                slept = true;
                let gate = v.shared.gate.clone();
                let now = v.now_ns();
                let wait = deadline.map(|d| std::time::Duration::from_nanos(d.saturating_sub(now)));
                v.show_stats(true);
                gate.block(match &self.interrupted {
                    Some(_) => Some(wait.map_or(HOOK_PERIOD, |w| w.min(HOOK_PERIOD))),
                    None => wait,
                });
                self.vcpu.waited(now);
            }
            if self.take_requests() || self.caller_wants_out() {
                return Some(Exit::Interrupted);
            }
            self.vcpu.poll_timers();
        }
    }

    /// HLT where user space has the interrupt controllers: it is an exit, and no state to be seen.
    fn halt_exit_due(&mut self) -> Option<Exit> {
        let v = &mut self.vcpu;
        let outside = !v.vm.has_irqchip() && !v.vm.choices.hlt_in_guest();
        let due = v.events.activity == Activity::Halted && outside && !v.wakes_from_halt();
        due.then(|| {
            v.events.activity = Activity::Runnable;
            Exit::Hlt
        })
    }
}

fn defect() -> Exit {
    Exit::InternalError { kind: InternalError::Defect, detail: Vec::new() }
}
