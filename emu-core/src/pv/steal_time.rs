//! Steal time (MSR_KVM_STEAL_TIME): how long a vCPU was ready to run and did not, whether it runs now, and TLB flushes
//! that other vCPUs leave for it meanwhile (KVM msr.txt; KVM_FEATURE_PV_TLB_FLUSH).
//!
//! The record lies in guest memory and its sum is the guest's: an update adds to what is there. It is written when KVM_RUN
//! begins, after a HLT, and now and then while the guest runs. How long the thread waited is the host's to say
//! ([`crate::host::RunDelay`]); where it does not (counted time), the record is written once, when it is enabled.
//!
//! A vCPU that sleeps in HLT, or that was interrupted out of KVM_RUN, is marked preempted: other vCPUs then need not wait
//! for it, nor wake it to flush its TLB.

use crate::vcpu::Vcpu;
use softmmu::{GuestMemory, GuestMemoryError};
use x86_arch::Gpa;
use x86_arch::cpuid::kvm;

/// MSR bit 0: enabled.
const ENABLED: u64 = 1;
/// MSR bits 5:1 are reserved; the record is aligned to its 64 bytes.
const RESERVED: u64 = 0x3e;
/// Where the sum of nanoseconds lies.
const STEAL: u64 = 0;
/// Where the version lies: odd while the sum is being written.
const VERSION: u64 = 8;
/// Where the vCPU's state lies.
const PREEMPTED: u64 = 16;
/// State: the vCPU does not run (KVM_VCPU_PREEMPTED).
pub const VCPU_PREEMPTED: u8 = 1 << 0;
/// State: its TLB is to be flushed before it runs (KVM_VCPU_FLUSH_TLB).
pub const VCPU_FLUSH_TLB: u8 = 1 << 1;
/// Instructions between two looks at the host's count: some tens of milliseconds.
const LOOK_EVERY: u64 = 1 << 20;

impl Vcpu {
    /// Where the record lies, if there is one.
    fn steal_record(&self) -> Option<Gpa> {
        let msr = self.msr.steal_time;
        (msr & ENABLED != 0).then_some(Gpa(msr & !(ENABLED | RESERVED)))
    }

    /// MSR_KVM_STEAL_TIME. False: a reserved bit is set.
    pub(crate) fn write_steal_time(&mut self, value: u64, host: bool) -> bool {
        if value & RESERVED != 0 {
            return false;
        }
        self.msr.steal_time = value;
        // User space may not have restored memory yet: the next KVM_RUN writes the record.
        self.pv.stale = host;
        if value & ENABLED != 0 {
            // What was stolen before is nobody's.
            self.pv.delay_told = self.run_delay(true);
            if !host {
                self.update_steal_time(true, true);
            }
        }
        true
    }

    /// What the host has counted so far. `began`: the thread has just begun to run the vCPU.
    fn run_delay(&mut self, began: bool) -> u64 {
        self.pv.delay.as_mut().map_or(0, |d| d.nanoseconds(began))
    }

    /// The vCPU begins to run, in KVM_RUN or after a HLT.
    pub(crate) fn steal_time_begins(&mut self) {
        if let Some(record) = self.steal_record() {
            let force = self.pv.delay.is_some() || (self.pv.stale && !is_whole(&self.pv_memory(), record));
            self.update_steal_time(true, force);
        }
    }

    /// The vCPU runs: the record is brought up to date when it is time. Once between two stretches of instructions.
    #[inline]
    pub(crate) fn steal_time_goes_on(&mut self) {
        if self.msr.steal_time & ENABLED != 0
            && self.hot.retired >= self.pv.next_look
            && self.pv.delay.is_some()
        {
            self.update_steal_time(false, false);
        }
    }

    /// The vCPU stops at an instruction boundary, and for how long is not known: others need not wait for it.
    pub(crate) fn steal_time_stops(&mut self) {
        let Some(record) = self.steal_record() else { return };
        // In counted time a record changes by the guest's doing alone.
        if self.pv.stale || self.pv.delay.is_none() {
            return;
        }
        // The time until now is counted while the thread is known to have wanted a processor.
        self.run_delay(false);
        self.pv.stale = self.pv_memory().store(record.wrapping_add(PREEMPTED), VCPU_PREEMPTED).is_ok();
    }

    fn update_steal_time(&mut self, began: bool, force: bool) {
        let Some(record) = self.steal_record() else { return };
        self.pv.next_look = self.hot.retired.saturating_add(LOOK_EVERY);
        let counted = self.run_delay(began);
        let stolen = counted.wrapping_sub(core::mem::replace(&mut self.pv.delay_told, counted));
        if stolen == 0 && !force {
            return;
        }
        // Memory that is not there is no error.
        let memory = self.pv_memory();
        let flush = if !began {
            Ok(false)
        } else if self.pv_has(kvm::FEATURE_PV_TLB_FLUSH) {
            take_state(&memory, record).map(|state| state & VCPU_FLUSH_TLB != 0)
        } else {
            memory.store(record.wrapping_add(PREEMPTED), 0u8).map(|()| false)
        };
        if began {
            self.pv.stale = false;
        }
        if flush == Ok(true) {
            self.mmu.invpcid_all();
        }
        if flush.is_ok() {
            let _ = add(&memory, record, stolen);
        }
    }
}

/// Whether the record was written once, and says that the vCPU runs: so restored memory stays as it is.
fn is_whole(memory: &GuestMemory, record: Gpa) -> bool {
    let version = memory.load::<u32>(record.wrapping_add(VERSION)).unwrap_or(0);
    let state = memory.load::<u8>(record.wrapping_add(PREEMPTED)).unwrap_or(0);
    version != 0 && version & 1 == 0 && state == 0
}

/// Takes the state byte, which becomes zero: other vCPUs set KVM_VCPU_FLUSH_TLB by LOCK CMPXCHG.
fn take_state(memory: &GuestMemory, record: Gpa) -> Result<u8, GuestMemoryError> {
    let at = record.wrapping_add(PREEMPTED);
    let mut state = memory.load::<u8>(at)?;
    loop {
        match memory.compare_exchange(at, state, 0)? {
            Ok(_) => return Ok(state),
            Err(seen) => state = seen,
        }
    }
}

/// Adds to the sum, between an odd and an even version. The guest's own version counts: random junk the first time.
fn add(memory: &GuestMemory, record: Gpa, stolen: u64) -> Result<(), GuestMemoryError> {
    let version_at = record.wrapping_add(VERSION);
    let odd = memory.load::<u32>(version_at)?.wrapping_add(1) | 1;
    memory.store(version_at, odd)?;
    let sum_at = record.wrapping_add(STEAL);
    let sum = memory.load::<u64>(sum_at)?.wrapping_add(stolen);
    memory.store(sum_at, sum)?;
    memory.store(version_at, odd.wrapping_add(1))
}
