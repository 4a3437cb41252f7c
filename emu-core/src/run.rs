//! The run loop: events, execute, exit.
//!
//! [`Processor::run`] alternates two phases. *Between* instructions it takes
//! requests from other threads, drains queued writes, polls timers and delivers
//! at most one event, in the SDM's order of priority (vol. 3A, table 6-2).
//! *Inside*, it executes decoded blocks until something asks for attention.
//! Every exit passes here, and every safe point is the boundary between the two.

use crate::block::{BlockCache, BlockId};
use crate::event::{Activity, Event, EventKind, Shadow};
use crate::exit::{Direction, Exit, InternalError, Stop};
use crate::io::{Request, Write};
use crate::vcpu::*;
use softmmu::{Exclusive, Requests};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use x86_arch::control::{BreakpointKind, Dr6, Dr7};
use x86_arch::{Exception, Rflags, Seg, Vector};

/// Instructions between two looks at the clock when nothing else asks for attention.
const QUANTUM: u64 = 4096;

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
            self.vcpu.vapic_to_guest();
            let stepping = self.must_step();
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
            v.update_kvmclock();
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

    /// An exit that user space's debugging wants for the instruction just executed.
    fn debug_exit_due(&mut self) -> Option<Exit> {
        let e = &self.vcpu.events;
        if e.debug_trap == 0 || e.exception.is_some() || e.shadow == Shadow::MovSs {
            return None;
        }
        let exit = self.guest_debug_exit(e.debug_trap)?;
        self.vcpu.events.debug_trap = 0;
        Some(exit)
    }

    /// Delivers the event of highest priority that can be delivered now (SDM vol. 3A, table 6-2).
    fn deliver_events(&mut self) -> Option<Exit> {
        let v = &mut self.vcpu;
        if v.events.triple_fault {
            v.events.triple_fault = false;
            return Some(Exit::Shutdown);
        }
        // An exception whose delivery was begun.
        if let Some(e) = v.events.exception {
            return self.deliver_exception(e);
        }
        let shadow = v.events.shadow;
        if v.events.debug_trap != 0 && shadow != Shadow::MovSs {
            let bits = core::mem::take(&mut v.events.debug_trap);
            v.raise_debug(bits);
            return self.deliver_pending_exception();
        }
        // KVM_GUESTDBG_BLOCKIRQ: nothing new from outside while the debugger steps.
        let blocked = v.debug.block_interrupts;
        if v.smi_deliverable() && !v.events.nmi_injected && !blocked {
            return self.take_smi(false);
        }
        if v.events.nmi_injected
            || (v.events.nmi_pending > 0 && !v.events.nmi_masked && shadow == Shadow::None && !blocked)
        {
            if !v.events.nmi_injected {
                v.events.nmi_pending -= 1;
                v.events.nmi_injected = true;
            }
            v.events.nmi_masked = true;
            let event = Event { vector: 2, kind: EventKind::Nmi, error_code: None };
            let exit = self.deliver(event);
            self.vcpu.events.nmi_injected = false;
            self.vcpu.stats.nmis += 1;
            return exit;
        }
        let v = &mut self.vcpu;
        let open = v.flag(Rflags::IF) && shadow == Shadow::None;
        if v.events.interrupt.is_none() && open && !blocked {
            v.events.interrupt = v.acknowledge_interrupt();
        }
        if let Some(vector) = v.events.interrupt
            && (open || v.events.interrupt_soft)
        {
            let event = Event { vector, kind: EventKind::External, error_code: None };
            v.stats.interrupts += 1;
            let exit = self.deliver(event);
            self.vcpu.events.interrupt = None;
            self.vcpu.events.interrupt_soft = false;
            return exit;
        }
        if self.request_interrupt_window && open && self.vcpu.events.interrupt.is_none() {
            return Some(Exit::IrqWindowOpen);
        }
        None
    }

    /// The SMI that waits. `halted`: it ends HLT.
    fn take_smi(&mut self, halted: bool) -> Option<Exit> {
        match self.vcpu.enter_smm(halted) {
            Ok(()) => None,
            Err(Stop::HostFault) => Some(Exit::HostFault { hva: self.vcpu.host_fault }),
            Err(_) => {
                self.vcpu.events.smi_pending = false;
                Some(Exit::Shutdown)
            }
        }
    }

    fn deliver_pending_exception(&mut self) -> Option<Exit> {
        let e = self.vcpu.events.exception?;
        self.deliver_exception(e)
    }

    fn deliver_exception(&mut self, e: crate::event::PendingException) -> Option<Exit> {
        if self.vcpu.debug.software_breakpoints && e.vector == Vector::Bp as u8 {
            self.vcpu.events.exception = None;
            return Some(self.debug_exit(Vector::Bp as u8, 0));
        }
        let event = Event { vector: e.vector, kind: EventKind::Exception, error_code: e.error_code };
        self.vcpu.apply_payload(&e);
        let exit = self.deliver(event);
        self.vcpu.stats.exceptions += 1;
        exit
    }

    /// Delivers one event, exclusive sections and escalation included.
    fn deliver(&mut self, event: Event) -> Option<Exit> {
        let mut event = event;
        loop {
            self.vcpu.io.restart();
            match self.vcpu.inject(event) {
                Ok(()) => {
                    self.vcpu.io.commit();
                    self.vcpu.attend(ATTENTION_EVENT);
                    return None;
                }
                Err(Stop::Exception(second)) => match self.vcpu.escalate(event, second) {
                    Some(next) => event = next,
                    None => {
                        self.vcpu.events.exception = None;
                        return Some(Exit::Shutdown);
                    }
                },
                Err(Stop::Exclusive) => {
                    if let Err(stop) = self.exclusive(|_, _| Ok(())) {
                        return self.stopped(stop);
                    }
                }
                Err(Stop::Need) => {
                    // A stack or table in device memory: KVM cannot deliver through it either.
                    self.vcpu.io.request = None;
                    self.vcpu.io.commit();
                    return Some(self.internal(InternalError::Delivery));
                }
                Err(Stop::HostFault) => return Some(Exit::HostFault { hva: self.vcpu.host_fault }),
                Err(Stop::Shutdown) => return Some(Exit::Shutdown),
                Err(Stop::Internal(kind)) => return Some(self.internal(kind)),
            }
        }
    }

    // ---- debugging ---------------------------------------------------------------------------

    fn must_step(&self) -> bool {
        let v = &self.vcpu;
        self.restarting
            || self.step_limit.is_some()
            || v.events.shadow != Shadow::None
            || v.hot.rflags & (Rflags::TF | Rflags::RF).bits() != 0
            || self.vcpu.debug.single_step
    }

    fn code_breakpoints_armed(&self) -> bool {
        let dr7 = self.vcpu.effective_dr7();
        dr7.intersects(Dr7::ENABLES)
            && (0..4).any(|n| dr7.enabled(n) && dr7.kind(n) == BreakpointKind::Execute)
    }

    /// DR6 bits of instruction breakpoints at `pc`.
    fn code_breakpoint(&self, pc: u64) -> u64 {
        let (dr7, dr) = (self.vcpu.effective_dr7(), self.vcpu.effective_dr());
        (0..4)
            .filter(|&n| dr7.enabled(n) && dr7.kind(n) == BreakpointKind::Execute && dr[n] == pc)
            .fold(0, |bits, n| bits | 1 << n)
    }

    /// How many of a block's first `most` instructions come before one with a breakpoint. Code without one runs at its
    /// usual speed: a debugger's breakpoint is armed for a whole boot.
    fn before_breakpoint(&self, block: BlockId, most: usize) -> usize {
        let v = &self.vcpu;
        let mut rip = v.rip();
        let ops = self.blocks.ops(block).iter().take(most);
        ops.take_while(|op| {
            let pc = v.seg_path[Seg::Cs as usize].base.wrapping_add(rip) & v.hot.linear_mask;
            rip = rip.wrapping_add(op.insn.len as u64) & v.hot.rip_mask;
            self.code_breakpoint(pc) == 0
        })
        .count()
    }

    fn guest_debug_exit(&mut self, bits: u64) -> Option<Exit> {
        let step = self.vcpu.debug.single_step && bits & Dr6::BS.bits() != 0;
        let hit = self.vcpu.debug.hardware.is_some() && bits & 0xf != 0;
        (step || hit).then(|| self.debug_exit(Vector::Db as u8, bits))
    }

    fn debug_exit(&self, exception: u8, bits: u64) -> Exit {
        let v = &self.vcpu;
        let pc = v.seg_path[Seg::Cs as usize].base.wrapping_add(v.rip()) & v.hot.linear_mask;
        Exit::Debug { exception, pc, dr6: bits | Dr6::FIXED.bits(), dr7: self.vcpu.effective_dr7().bits() }
    }

    // ---- execution ---------------------------------------------------------------------------

    /// The bound in `hot.retired`, and before it the next timer's where that is exact.
    fn execution_limit(&self) -> u64 {
        let v = &self.vcpu;
        match v.vm.host.exact().then(|| v.next_deadline()).flatten() {
            Some(deadline) => {
                let wait = deadline.saturating_sub(v.now_ns()).max(1);
                self.limit.min(v.hot.retired.saturating_add(wait))
            }
            None => self.limit,
        }
    }

    /// Executes blocks until something asks for attention. `None`: look between.
    fn execute(&mut self) -> Option<Exit> {
        let limit = self.execution_limit();
        let quantum = self.vcpu.hot.retired.saturating_add(QUANTUM).min(limit);
        let gate = self.vcpu.shared.gate.clone();
        // Whoever changes a debug register asks for attention.
        let breakpoints = self.code_breakpoints_armed();
        while self.vcpu.hot.attention == 0 && !gate.pending() && self.vcpu.hot.retired < quantum {
            let (vcpu, blocks) = (&mut self.vcpu, &mut self.blocks);
            let block = match blocks.lookup(vcpu, None) {
                Ok(b) => b,
                Err(stop) => return self.stopped(stop),
            };
            vcpu.stats.blocks += 1;
            let inside = blocks.within_limit(vcpu, block);
            if inside == 0 {
                return self.stopped(Stop::Exception(Exception::GP0));
            }
            let mut left = (limit - vcpu.hot.retired).min(inside as u64) as usize;
            if breakpoints {
                left = self.before_breakpoint(block, left);
                if left == 0 {
                    return self.step();
                }
            }
            let (vcpu, blocks) = (&mut self.vcpu, &mut self.blocks);
            let mut failed = None;
            for op in blocks.ops(block).iter().take(left) {
                let start = vcpu.hot.regs[RIP];
                vcpu.hot.regs[RIP] = start.wrapping_add(op.insn.len as u64) & vcpu.hot.rip_mask;
                vcpu.insn_len = op.insn.len;
                match (op.handler)(vcpu, &op.insn) {
                    // Wraps: a REP that goes on took one away.
                    Ok(()) => vcpu.hot.retired = vcpu.hot.retired.wrapping_add(1),
                    Err(stop) => {
                        vcpu.hot.regs[RIP] = start;
                        failed = Some(stop);
                        break;
                    }
                }
                if vcpu.hot.attention != 0 {
                    vcpu.io.commit();
                    break;
                }
            }
            if let Some(stop) = failed {
                return self.stopped(stop);
            }
        }
        None
    }

    /// Executes exactly one instruction, with everything that the fast loop leaves out: breakpoints,
    /// single step, RF, interrupt shadow.
    fn step(&mut self) -> Option<Exit> {
        let v = &self.vcpu;
        if !v.flag(Rflags::RF) && !self.restarting && self.code_breakpoints_armed() {
            let pc = v.seg_path[Seg::Cs as usize].base.wrapping_add(v.rip()) & v.hot.linear_mask;
            let bits = self.code_breakpoint(pc);
            if bits != 0 {
                if self.vcpu.debug.hardware.is_some() {
                    return Some(self.debug_exit(Vector::Db as u8, bits));
                }
                self.vcpu.raise_debug(bits);
                return None;
            }
        }
        let exit = match self.step_once(None) {
            Ok(()) => None,
            Err(stop) => self.stopped(stop),
        };
        self.steps += exit.is_none() as u64;
        exit
    }

    /// One instruction and its traps. On `Err` RIP and the interrupt shadow are as before.
    fn step_once(&mut self, ex: Option<&Exclusive<'_>>) -> Result<(), Stop> {
        let rf = self.vcpu.flag(Rflags::RF);
        let tf = self.vcpu.flag(Rflags::TF);
        self.vcpu.io.restart();
        let (vcpu, blocks) = (&mut self.vcpu, &mut self.blocks);
        let block = blocks.lookup(vcpu, ex)?;
        if blocks.within_limit(vcpu, block) == 0 {
            return vcpu.gp0();
        }
        let Some(op) = blocks.ops(block).first() else {
            return Err(Stop::Internal(InternalError::Emulation));
        };
        let start = vcpu.hot.regs[RIP];
        let shadow = core::mem::take(&mut vcpu.events.shadow);
        vcpu.events.entered_handler = false;
        vcpu.hot.regs[RIP] = start.wrapping_add(op.insn.len as u64) & vcpu.hot.rip_mask;
        vcpu.insn_len = op.insn.len;
        if tf || vcpu.debug.single_step || self.step_limit.is_some() {
            // A REP traps after each iteration (SDM vol. 3B, 17.3.1.4): it stops at attention.
            vcpu.attend(ATTENTION_STEP);
        }
        if let Err(stop) = (op.handler)(vcpu, &op.insn) {
            vcpu.hot.regs[RIP] = start;
            vcpu.events.shadow = shadow;
            return Err(stop);
        }
        vcpu.hot.retired = vcpu.hot.retired.wrapping_add(1);
        vcpu.io.commit();
        self.restarting = false;
        // RF suppresses breakpoints for one instruction; what sets it (IRET, POPF) keeps it for the
        // next (SDM vol. 3A, 17.3.1.1).
        let goes_on = op.insn.rep() && vcpu.hot.regs[RIP] == start;
        if rf && !goes_on {
            vcpu.hot.rflags &= !Rflags::RF.bits();
        }
        if (tf && !vcpu.events.suppress_step()) || vcpu.debug.single_step {
            vcpu.events.debug_trap |= Dr6::BS.bits();
        }
        vcpu.attend(ATTENTION_EVENT);
        Ok(())
    }

    /// What an instruction's failure becomes. RIP is back at its start.
    fn stopped(&mut self, stop: Stop) -> Option<Exit> {
        match stop {
            Stop::Exception(e) => {
                self.vcpu.io.commit();
                self.restarting = false;
                if e.vector == Vector::Db && self.vcpu.debug.hardware.is_some() {
                    // General detect by user space's DR7.
                    let bits = core::mem::take(&mut self.vcpu.events.debug_fault);
                    return Some(self.debug_exit(Vector::Db as u8, bits));
                }
                self.vcpu.raise(e);
                None
            }
            Stop::Need => {
                self.restarting = true;
                Some(match self.vcpu.io.request.clone() {
                    Some(Request::Pio { port, size, count }) => {
                        Exit::Io { direction: Direction::In, size, port, count, data: Vec::new() }
                    }
                    Some(Request::PioWrite { port, size, data }) => Exit::Io {
                        direction: Direction::Out,
                        size,
                        port,
                        count: 1,
                        data: data.iter().copied().take(size as usize).collect(),
                    },
                    Some(Request::Mmio { .. }) if self.fails_on_mmio() => {
                        self.vcpu.io.request = None;
                        self.vcpu.io.commit();
                        self.restarting = false;
                        self.internal(InternalError::Emulation)
                    }
                    Some(Request::Mmio { gpa, len }) => Exit::MmioRead { gpa, len },
                    Some(Request::Msr { index, reason }) => Exit::MsrRead { index, reason },
                    Some(Request::MsrWrite { index, data, reason }) => Exit::MsrWrite { index, data, reason },
                    Some(Request::Hypercall { nr, args, longmode }) => Exit::Hypercall { nr, args, longmode },
                    Some(Request::XenHypercall { input, params, longmode, cpl }) => {
                        Exit::XenHypercall { input, params, longmode, cpl }
                    }
                    None => self.internal(InternalError::Emulation),
                })
            }
            Stop::Exclusive => {
                // The MMU does there what it wanted. Then the instruction runs once while all others stand
                // still, which also serves a LOCKed access that the host's atomics cannot do.
                match self.exclusive(|p, ex| p.step_once(Some(ex))) {
                    Ok(()) => None,
                    Err(stop) => self.stopped(stop),
                }
            }
            Stop::HostFault => {
                self.vcpu.io.commit();
                Some(Exit::HostFault { hva: self.vcpu.host_fault })
            }
            Stop::Shutdown => Some(Exit::Shutdown),
            // A user program's instruction must not end the VM, unless user space wants to hear of it (KVM api 7.27).
            Stop::Internal(InternalError::Emulation)
                if self.vcpu.cpl != 0 && !self.vcpu.vm.choices.exits_on_emulation_failure() =>
            {
                self.vcpu.io.commit();
                self.restarting = false;
                self.vcpu.raise(Exception::new(Vector::Ud));
                None
            }
            Stop::Internal(kind) => Some(self.internal(kind)),
        }
    }

    /// x87 loads from MMIO are what KVM's emulator is known not to do. Who asks for exits on its failures gets one.
    fn fails_on_mmio(&mut self) -> bool {
        if !self.vcpu.vm.choices.exits_on_emulation_failure() {
            return false;
        }
        let mut code = [0u8; 15];
        let n = self.vcpu.peek_code(&mut code);
        crate::quirks::is_x87(&code[..n], self.vcpu.long64())
    }

    /// Runs `f` while every other vCPU stands at a safe point, and again for as long as the MMU wants
    /// something done there first.
    fn exclusive(
        &mut self,
        mut f: impl FnMut(&mut Processor, &Exclusive<'_>) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        /// More wishes than one instruction's accesses can have.
        const WISHES: u32 = 64;
        self.vcpu.stats.exclusives += 1;
        let vm = self.vcpu.vm.clone();
        let gate = self.vcpu.shared.gate.clone();
        vm.world().exclusive(Some(&gate), |ex| {
            self.vcpu.exclusive = true;
            let mut result = Err(Stop::Exclusive);
            for _ in 0..WISHES {
                self.vcpu.mmu.resolve_exclusive(ex);
                result = f(self, ex);
                if result != Err(Stop::Exclusive) {
                    break;
                }
            }
            self.vcpu.exclusive = false;
            match result {
                Err(Stop::Exclusive) => Err(Stop::Internal(InternalError::Emulation)),
                r => r,
            }
        })
    }

    fn internal(&mut self, kind: InternalError) -> Exit {
        let v = &mut self.vcpu;
        v.stats.internal_errors += 1;
        let mut bytes = [0u8; 15];
        let n = v.peek_code(&mut bytes);
        if kind == InternalError::Emulation {
            // KVM's emulation_failure: flags (bit 0: bytes follow), their number in a byte, the bytes.
            let mut detail = [0u8; 24];
            detail[0] = (n != 0) as u8;
            detail[8] = n as u8;
            detail[9..24].copy_from_slice(&bytes);
            let detail = detail.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
            return Exit::InternalError { kind, detail };
        }
        let mut detail = vec![v.rip()];
        detail.push(n as u64);
        detail.extend(bytes.chunks(8).map(|c| {
            let mut b = [0; 8];
            b[..c.len()].copy_from_slice(c);
            u64::from_le_bytes(b)
        }));
        Exit::InternalError { kind, detail }
    }
}

fn defect() -> Exit {
    Exit::InternalError { kind: InternalError::Defect, detail: Vec::new() }
}

impl Vcpu {
    /// A processor-detected exception becomes pending.
    pub fn raise(&mut self, e: Exception) {
        let mut p: crate::event::PendingException = e.into();
        if e.vector == Vector::Pf {
            p.payload = Some(self.fault_gva.0);
        } else if e.vector == Vector::Db {
            p.payload = Some(core::mem::take(&mut self.events.debug_fault));
        }
        self.events.exception = Some(p);
        self.attend(ATTENTION_EVENT);
    }

    /// A #DB with these DR6 bits becomes pending.
    pub fn raise_debug(&mut self, bits: u64) {
        let mut p: crate::event::PendingException = Exception::new(Vector::Db).into();
        p.payload = Some(bits);
        self.events.exception = Some(p);
        self.attend(ATTENTION_EVENT);
    }

    /// Moves an exception's payload into CR2 or DR6, as delivery does.
    pub fn apply_payload(&mut self, e: &crate::event::PendingException) {
        let Some(p) = e.payload else { return };
        match Vector::from_number(e.vector) {
            Some(Vector::Pf) => self.cr2 = p,
            Some(Vector::Db) => {
                self.dr6 = Dr6::from_bits_retain(self.dr6.bits() & !0xf | p | Dr6::FIXED.bits());
                // Delivery of #DB clears GD (SDM vol. 3A, 17.2.4).
                self.dr7.remove(Dr7::GD);
            }
            _ => {}
        }
        if let Some(pending) = &mut self.events.exception {
            pending.payload = None;
        }
    }
}
