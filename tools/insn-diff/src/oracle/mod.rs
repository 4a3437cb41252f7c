//! The host's processor as an oracle: a child process executes a case's own bytes, at the case's own
//! addresses, and tells what came of it.
//!
//! The child (`child`) is a fork of this process with the pages of [`crate::layout`] at their linear
//! addresses. A case begins by rt_sigreturn from a frame (`frame`) that holds its state, and ends by the
//! signal of the exception it ends with; what a frame does not hold (DS, ES, FS, GS and two bases) is set and
//! read by a few instructions of assembler (`entry`). A seccomp filter (`seccomp`) gives a case no system
//! call. Parent and child share one mapping (`memory`, `mailbox`): a batch goes out and comes back with two
//! futex calls.
//!
//! It shares no code with the emulator. `unsafe` is needed for all of this: fork, mappings, frames, code.
//!
//! What a frame does not tell as the processor would, on Linux 6.18 and a Zen 4 under KVM; whoever compares
//! has to know:
//!
//! - XSTATE_BV always has x87 and SSE: the kernel sets both bits. Of the others, [`Outcome::xsave`] has those
//!   that differ from their initial state, whatever the processor tracks (XINUSE): that varies from run to
//!   run, and XGETBV with ECX=1, XSAVEOPT and XSAVEC show it.
//! - AMD's XSAVE stores FOP, FIP and FDP as zero unless FSW.ES is set. FNSTENV has them always: an x87
//!   instruction followed by FNSTENV, with [`End::Trap`], shows them, unless the child is preempted between
//!   the two, which loses them: look twice.
//! - SGDT, SIDT, SLDT, STR and SMSW are emulated by Linux where there is UMIP, with made-up values; a single
//!   step ends one instruction later then, at the UD2.
//! - A null selector's RPL is lost by the IRET into the case.
//! - RFLAGS.RF is set in a fault's frame and clear in a trap's.
//! - A hypervisor's own: #DB by INT1 (F1H) has the address of INT1, not the one behind it, and VMMCALL
//!   answers -1 in RAX.
//! - Selector 7BH names a segment of Linux's, whose limit is the processor's number; LAR, LSL and VERR see
//!   it, and what else of the kernel's GDT user mode may see.
//! - CR2 in the upper half goes with a P bit in the error code, which the kernel sets.
//!
//! A case costs 18 us if it faults and 24 us if it is single-stepped (examples/oracle_cost.rs, EPYC 9004
//! under KVM, two busy processors), of which the signal's way through the kernel is 13 us and the parent's
//! part 2 us; batches of 16 or more.
#![allow(unsafe_code)]

mod child;
mod entry;
mod frame;
mod mailbox;
mod memory;
mod process;
mod seccomp;
#[cfg(test)]
mod tests;

use crate::case::{Bits, Case, End, LINE, Outcome, XSAVE};
use crate::layout::{self, BACKING, DESCRIPTORS, PAGE};
use mailbox::{DONE, Lines, Mailbox, REFUSED, SYSTEM_CALL, Slot, WAITING};
use memory::Shared;
use process::{Process, Stop};
use std::arch::x86_64::__cpuid_count;
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Why there is no oracle on this host.
#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    /// A system call of the parent's failed.
    #[error("{what} failed: {source}")]
    System {
        /// Which.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A step of the child's start failed.
    #[error(
        "the oracle's child cannot start: {step}: {source}; a container's seccomp profile may forbid it, or the kernel is built without"
    )]
    Start {
        /// Which step.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The child ended before it was ready.
    #[error("the oracle's child was ended by signal {0} before it was ready")]
    Stillborn(i32),
    /// No RDFSBASE and WRFSBASE.
    #[error(
        "the oracle needs FSGSBASE in user mode: a processor since Ivy Bridge or Zen, and Linux 5.9 or later without `nofsgsbase`"
    )]
    NoFsgsbase,
    /// This program lies where the cases' memory shall be.
    #[error(
        "this program is linked below 4 GiB, where the cases' memory shall be: build it position-independent"
    )]
    NotPositionIndependent,
}

impl OracleError {
    /// Whether this host cannot be an oracle at all, by its processor, kernel or sandbox; anything else is a fault.
    pub fn is_the_hosts(&self) -> bool {
        matches!(self, OracleError::NoFsgsbase | OracleError::Start { .. })
    }
}

/// Why a case has no outcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lost {
    /// It asked the kernel for the system call of this number.
    SystemCall(u32),
    /// It did not come to its end.
    Hung,
    /// The child died of this signal at it (0: it ended by itself or could not be restarted).
    Died(i32),
    /// The host cannot be put into its state: why.
    Refused(&'static str),
}

/// What the oracle says of a case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Its outcome.
    Done(Outcome),
    /// It has none.
    Lost(Lost),
}

/// A child process and the mapping shared with it. Dropping it ends the child.
#[derive(Debug)]
pub struct Oracle {
    shared: Shared,
    process: Option<Process>,
    template: Vec<u8>,
    /// Extended components of the frame's image: bit, and where their bytes are.
    components: Vec<(u32, std::ops::Range<usize>)>,
    /// For each case of the batch: why it is lost, if the parent knows.
    pending: Vec<Option<Lost>>,
    bits: Vec<Bits>,
    order: u32,
}

impl Oracle {
    /// Cases in a batch, at most.
    pub const BATCH: usize = mailbox::BATCH;

    /// Starts a child.
    pub fn start() -> Result<Oracle, OracleError> {
        process::check_host()?;
        let shared = Shared::new()?;
        let template = layout::template();
        // SAFETY: the template has BACKING bytes, as has the field, and no child knows the mapping yet.
        unsafe {
            let to = (&raw mut (*shared.mailbox()).template).cast::<u8>();
            std::ptr::copy_nonoverlapping(template.as_ptr(), to, BACKING.min(template.len()));
        }
        let process = Some(Process::start(&shared)?);
        let (pending, bits) = (Vec::new(), Vec::new());
        let mut oracle =
            Oracle { shared, process, template, components: Vec::new(), pending, bits, order: 0 };
        let mask = oracle.xsave_components();
        // SDM vol. 2A, CPUID.(EAX=0DH,ECX=n): size in EAX, offset in EBX.
        oracle.components = (2..62)
            .filter(|n| mask & 1 << n != 0)
            .map(|n| (n, __cpuid_count(0xd, n)))
            .map(|(n, leaf)| (n, leaf.ebx as usize..(leaf.ebx as usize).saturating_add(leaf.eax as usize)))
            .filter(|(_, bytes)| bytes.end <= XSAVE)
            .collect();
        Ok(oracle)
    }

    /// Gives a batch to the child and returns at once. The batch before must have been collected.
    ///
    /// # Panics
    /// If there are more than [`Oracle::BATCH`] cases, or the batch before is still out.
    pub fn submit(&mut self, cases: &[Case]) {
        assert!(cases.len() <= Self::BATCH, "a batch has at most {} cases", Self::BATCH);
        assert!(self.pending.is_empty(), "collect the batch before");
        // The child dies with the thread that started it.
        if self.process.as_ref().is_some_and(|p| !p.is_ours()) {
            self.process = None;
        }
        if self.process.is_none() {
            self.process = Process::start(&self.shared).ok();
        }
        for (n, case) in cases.iter().enumerate() {
            let lost = refusal(case, self.mailbox(), self.pkru()).map(Lost::Refused);
            // SAFETY: n is below BATCH, and the child waits for an order or is dead: the slots are ours.
            let slot = unsafe { &mut *self.slot(n) };
            if lost.is_none() {
                write(slot, case, &self.template);
            }
            slot.status.store(if lost.is_none() { WAITING } else { REFUSED }, Relaxed);
            self.pending.push(lost);
            self.bits.push(case.bits);
        }
        self.mailbox().count.store(cases.len() as u32, Relaxed);
        self.order_from(0);
    }

    /// Waits for the batch's answers: one per case, in its order.
    pub fn collect(&mut self) -> Vec<Answer> {
        while !self.pending.is_empty() {
            let stop = match &self.process {
                Some(process) => match process.wait(&self.shared, self.order) {
                    Ok(()) => break,
                    Err(stop) => stop,
                },
                None => Stop::Died(0),
            };
            self.process = None;
            let at = self.mailbox().progress.load(Acquire);
            let lost = match stop {
                // It got on after all, just before it was killed: the case at which it stood then is not to
                // blame.
                Stop::Hung(seen) if seen != at => None,
                Stop::Hung(_) => Some(Lost::Hung),
                Stop::Died(signal) => Some(Lost::Died(signal)),
            };
            let next = at + lost.is_some() as u32;
            if let (Some(pending), Some(_)) = (self.pending.get_mut(at as usize), &lost) {
                *pending = lost;
            }
            if next as usize >= self.pending.len() {
                break;
            }
            self.process = Process::start(&self.shared).ok();
            self.order_from(next);
        }
        let (pending, bits) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.bits));
        let answers = pending.into_iter().zip(bits).enumerate();
        answers.map(|(n, (lost, bits))| self.answer(n, lost, bits)).collect()
    }

    /// A batch's way at once: [`Oracle::submit`] and [`Oracle::collect`], in as many batches as it takes.
    pub fn execute(&mut self, cases: &[Case]) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(cases.len());
        for batch in cases.chunks(Self::BATCH) {
            self.submit(batch);
            answers.extend(self.collect());
        }
        answers
    }

    /// Bytes of the XSAVE image in the kernel's signal frames: components behind it cannot be given or seen.
    pub fn xsave_size(&self) -> usize {
        self.mailbox().xstate_size as usize
    }

    /// Components in the kernel's signal frames, as in XSTATE_BV.
    pub fn xsave_components(&self) -> u64 {
        self.mailbox().xfeatures
    }

    /// The host's MXCSR_MASK.
    pub fn mxcsr_mask(&self) -> u32 {
        self.mailbox().mxcsr_mask
    }

    fn mailbox(&self) -> &Mailbox {
        // SAFETY: mapped as long as `self.shared` lives. Of what the child writes, only the atomic words are
        // read while it works; the frame's three words it writes before `Process::start` returns, and the
        // same ones each time.
        unsafe { &*self.shared.mailbox() }
    }

    /// Where PKRU stands in an image, if the host has it.
    fn pkru(&self) -> Option<usize> {
        const PKRU: u32 = 9;
        self.components.iter().find(|(bit, _)| *bit == PKRU).map(|(_, bytes)| bytes.start)
    }

    fn slot(&self, n: usize) -> *mut Slot {
        // SAFETY: the index is below BATCH.
        unsafe { (&raw mut (*self.shared.mailbox()).slots).cast::<Slot>().add(n % Self::BATCH) }
    }

    fn order_from(&mut self, first: u32) {
        self.order = self.order.wrapping_add(1).max(1);
        let mailbox = self.mailbox();
        mailbox.progress.store(first, Relaxed);
        mailbox.ordered.store(self.order, Release);
        process::wake(&mailbox.ordered);
    }

    fn answer(&self, n: usize, lost: Option<Lost>, bits: Bits) -> Answer {
        if let Some(lost) = lost {
            return Answer::Lost(lost);
        }
        // SAFETY: the child is through with the batch, or dead.
        let slot = unsafe { &*self.slot(n) };
        match slot.status.load(Acquire) {
            DONE => Answer::Done(read(slot, bits, &self.components)),
            SYSTEM_CALL => Answer::Lost(Lost::SystemCall(slot.detail)),
            REFUSED => Answer::Lost(Lost::Refused("a selector or a base that the processor does not load")),
            _ => Answer::Lost(Lost::Died(0)),
        }
    }
}

/// CF, PF, AF, ZF, SF, DF, OF, NT, AC, ID: the flags that a case chooses.
const FLAGS: u64 = 0x8d5 | 1 << 10 | 1 << 14 | 1 << 18 | 1 << 21;

/// Why the host cannot take on this state, if it cannot: what the kernel would refuse at rt_sigreturn, where
/// its refusal looks like a fault of the case.
fn refusal(case: &Case, mailbox: &Mailbox, pkru: Option<usize>) -> Option<&'static str> {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| case.xsave[at + n]));
    let mxcsr = u32::from_le_bytes(std::array::from_fn(|n| case.xsave[24 + n]));
    let components = word(512);
    if components & !mailbox.xfeatures != 0 {
        return Some("XSTATE_BV has components that the kernel's signal frames do not");
    }
    if case.xsave[520..576].iter().any(|b| *b != 0) {
        return Some("the XSAVE header's XCOMP_BV or reserved bytes are not zero");
    }
    if mxcsr & !mailbox.mxcsr_mask != 0 {
        return Some("MXCSR has reserved bits");
    }
    if pkru.is_some_and(|at| components & 1 << 9 != 0 && case.xsave.get(at).is_some_and(|b| b & 3 != 0)) {
        return Some("PKRU withholds key 0, and with it the signal stack");
    }
    let stack = DESCRIPTORS.iter().find(|d| d.selector == case.selectors[2]);
    if !stack.is_some_and(|d| d.present && d.typ & 0xa == 2) {
        return Some("SS is not a writable data segment");
    }
    if case.bits != Bits::Bits64 && (case.gpr[..8].iter().any(|r| r >> 32 != 0) || case.gpr[8..] != [0; 8]) {
        return Some("a register has bits that 16- and 32-bit code cannot see");
    }
    None
}

/// A case into its slot.
fn write(slot: &mut Slot, case: &Case, template: &[u8]) {
    let state = &mut slot.before;
    state.gpr = case.gpr;
    state.rip = case.rip();
    state.rflags = case.rflags & FLAGS | 0x202 | ((case.end == End::SingleStep) as u64) << 8;
    (state.fs_base, state.gs_base) = match case.bits {
        Bits::Bits64 => (case.fs_base, case.gs_base),
        _ => (0, 0),
    };
    state.selectors = case.selectors;
    state.selectors[1] = case.bits.code_selector();
    state.xsave = *case.xsave;
    let backing = case.backing(template);
    slot.given.count = 0;
    for (page, (new, old)) in backing.chunks(PAGE as usize).zip(template.chunks(PAGE as usize)).enumerate() {
        if new == old {
            continue;
        }
        for (line, (new, old)) in new.chunks_exact(LINE).zip(old.chunks_exact(LINE)).enumerate() {
            if new != old {
                push(&mut slot.given, page * PAGE as usize + line * LINE, new);
            }
        }
    }
}

fn push(lines: &mut Lines, offset: usize, bytes: &[u8]) {
    let n = lines.count as usize;
    if let (Some(at), Some(to)) = (lines.offsets.get_mut(n), lines.contents.get_mut(n)) {
        *at = offset as u32;
        to.copy_from_slice(bytes);
        lines.count += 1;
    }
}

/// Writes extended components in one way of two: XSTATE_BV's bit is set if they are not in their initial
/// state, which is zero for all of them, and clear with zero bytes if they are. The processor may track that
/// otherwise, from one run to the next too: a preempted child comes back with bits set that were clear. (SDM
/// vol. 1, 13.6, XINUSE)
fn normalize(xsave: &mut [u8; XSAVE], components: &[(u32, std::ops::Range<usize>)]) {
    for (bit, bytes) in components {
        let (byte, mask) = (512 + *bit as usize / 8, 1 << (bit % 8));
        let used = xsave[byte] & mask != 0;
        let Some(bytes) = xsave.get_mut(bytes.clone()) else { continue };
        if !used {
            bytes.fill(0);
        } else if bytes.iter().all(|b| *b == 0) {
            xsave[byte] &= !mask;
        }
    }
}

/// An outcome out of its slot.
fn read(slot: &Slot, bits: Bits, components: &[(u32, std::ops::Range<usize>)]) -> Outcome {
    const PAGE_FAULT: u32 = 14;
    let state = &slot.after;
    let mut xsave = Box::new([0; XSAVE]);
    xsave.copy_from_slice(&state.xsave);
    normalize(&mut xsave, components);
    let mut gpr = state.gpr;
    if bits != Bits::Bits64 {
        // IRET to a 16-bit stack leaves the kernel's bits in RSP above the ones that the code sees.
        gpr[4] &= 0xffff_ffff;
    }
    let changed = slot.changed.offsets.iter().zip(&slot.changed.contents).take(slot.changed.count as usize);
    Outcome {
        vector: slot.vector as u8,
        error_code: slot.error_code,
        cr2: if slot.vector == PAGE_FAULT { slot.cr2 } else { 0 },
        gpr,
        rip: state.rip,
        rflags: state.rflags,
        selectors: state.selectors,
        fs_base: state.fs_base,
        gs_base: state.gs_base,
        xsave,
        memory: changed.map(|(offset, bytes)| (*offset, *bytes)).collect(),
    }
}
