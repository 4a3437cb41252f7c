//! The VM's clocks: guest TSC per vCPU, and kvmclock in guest memory (KVM msr.txt).
//!
//! kvmclock follows one *master clock*: a pair of host TSC and kvmclock nanoseconds taken once, from which
//! every vCPU's structure is made. So it is monotonic across vCPUs, which is what the stable bit promises, and it
//! advances with the guest's TSC.

use crate::clock::kvmclock::{
    FLAGS_OFFSET, PVCLOCK_GUEST_STOPPED, PVCLOCK_TSC_STABLE, PvclockVcpuTimeInfo, SYSTEM_TIME_ENABLED,
    TIME_INFO_SIZE, TscToSystem, WallClock, WriteStep,
};
use crate::clock::tsc::{Tsc, TscSync};
use crate::host::Host;
use crate::vcpu::Vcpu;
use crate::vm::Vm;
use parking_lot::Mutex;
use softmmu::{GuestMemory, Requests};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use x86_arch::Gpa;

/// kvmclock read `ns` when the host's TSC read `host_tsc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Master {
    host_tsc: u64,
    ns: u64,
}

/// Clock parameters that the vCPUs share.
pub struct VmClock {
    /// The host's TSC frequency in kHz.
    pub host_khz: u32,
    /// The frequency of new vCPUs' TSCs in kHz (KVM_SET_TSC_KHZ on the VM).
    pub default_khz: AtomicU32,
    sync: Mutex<TscSync>,
    master: Mutex<Master>,
    /// MSR_KVM_WALL_CLOCK(_NEW): one for all vCPUs.
    wall_clock: AtomicU64,
}

impl VmClock {
    /// Clocks that begin now.
    pub fn new(host: &dyn Host) -> VmClock {
        let host_khz = host.tsc_khz().max(1);
        VmClock {
            host_khz,
            default_khz: AtomicU32::new(host_khz),
            sync: Mutex::new(TscSync::default()),
            master: Mutex::new(Master { host_tsc: host.tsc(0), ns: 0 }),
            wall_clock: AtomicU64::new(0),
        }
    }

    fn at(&self, m: Master, host_tsc: u64) -> u64 {
        let ticks = host_tsc.saturating_sub(m.host_tsc);
        m.ns.wrapping_add((u128::from(ticks) * 1_000_000 / u128::from(self.host_khz)) as u64)
    }

    /// kvmclock in nanoseconds, at this host TSC (KVM_GET_CLOCK).
    pub fn kvmclock(&self, host_tsc: u64) -> u64 {
        self.at(*self.master.lock(), host_tsc)
    }

    /// MSR_KVM_WALL_CLOCK(_NEW).
    pub fn wall_clock(&self) -> u64 {
        self.wall_clock.load(Ordering::Relaxed)
    }

    /// KVM_SET_CLOCK. Ask all vCPUs to update their structures afterwards ([`Vm::clock_changed`]).
    pub fn set_kvmclock(&self, ns: u64, host_tsc: u64) {
        *self.master.lock() = Master { host_tsc, ns };
    }
}

/// One vCPU's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuClock {
    /// Its TSC.
    pub tsc: Tsc,
    /// MSR_KVM_SYSTEM_TIME(_NEW).
    pub system_time: u64,
    /// KVM_KVMCLOCK_CTRL: tell the guest once that it was stopped.
    pub guest_stopped: bool,
}

impl VcpuClock {
    /// A TSC at zero.
    pub fn new(khz: u32) -> VcpuClock {
        VcpuClock { tsc: Tsc::starting_at(0, khz), system_time: 0, guest_stopped: false }
    }
}

impl Vm {
    /// Asks every vCPU to write its kvmclock structure anew.
    pub fn clock_changed(&self) {
        self.world().request_all(Requests::CLOCK);
    }
}

impl Vcpu {
    /// What this vCPU tells the host of itself when it asks for the time: instructions retired, and what others of the VM
    /// have retired meanwhile where time counts those too ([`Host::resume`]).
    pub fn count(&self) -> u64 {
        self.hot.retired.wrapping_add(self.count_base)
    }

    /// Time may have gone on while this vCPU did not run, or was moved.
    pub fn resume_time(&mut self) {
        self.count_base = self.vm.host.resume(self.count()).wrapping_sub(self.hot.retired);
    }

    /// Nanoseconds of the monotonic clock, now.
    pub fn now_ns(&self) -> u64 {
        self.vm.host.monotonic_ns(self.count())
    }

    /// The host's TSC, now.
    pub fn host_tsc(&self) -> u64 {
        self.vm.host.tsc(self.count())
    }

    /// The guest's time-stamp counter, now.
    pub fn guest_tsc(&self) -> u64 {
        self.clock.tsc.read(self.host_tsc())
    }

    /// WRMSR IA32_TSC by the guest, or (`host`) KVM_SET_MSRS, which keeps the vCPUs of a VM together.
    pub fn write_tsc(&mut self, value: u64, host: bool) {
        let (tsc, ns) = (self.host_tsc(), self.now_ns());
        if host {
            self.vm.clock.sync.lock().write(&mut self.clock.tsc, value, tsc, ns, true);
            self.kvmclock_is_stale();
        } else {
            self.clock.tsc.write(value, tsc);
            self.update_kvmclock();
        }
    }

    /// User space changed something: the next KVM_RUN writes the structure, and no ioctl does.
    fn kvmclock_is_stale(&self) {
        self.shared.gate.request(Requests::CLOCK);
    }

    /// The TSC of a new vCPU: zero, at the VM's frequency, together with the others'.
    pub(crate) fn start_tsc(&mut self) {
        let (tsc, ns) = (self.host_tsc(), self.now_ns());
        // A frequency that cannot be had was refused when it was set.
        let khz = self.vm.clock.default_khz.load(Ordering::Relaxed);
        self.clock.tsc.set_khz(khz, self.vm.clock.host_khz, tsc);
        self.vm.clock.sync.lock().write(&mut self.clock.tsc, 0, tsc, ns, false);
    }

    /// KVM_VCPU_TSC_OFFSET: the guest's TSC jumps so that it is the host's, scaled, plus `offset`. IA32_TSC_ADJUST stays.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        self.clock.tsc.offset = offset;
        self.kvmclock_is_stale();
    }

    /// KVM_SET_TSC_KHZ. False: the frequency cannot be had.
    pub fn set_tsc_khz(&mut self, khz: u32) -> bool {
        let tsc = self.host_tsc();
        let host = self.vm.clock.host_khz;
        let done = self.clock.tsc.set_khz(khz, host, tsc);
        self.kvmclock_is_stale();
        done
    }

    /// MSR_KVM_WALL_CLOCK(_NEW): writes, once, the time of day at which kvmclock was zero (KVM msr.txt). At address 0
    /// nothing is written: that is how a guest or a VMM takes it back. For user space (`host`) nothing is written either: it
    /// restores MSRs before the clock. See docs/deviations.md.
    pub fn kvmclock_write_wall_clock(&mut self, value: u64, host: bool) {
        self.vm.clock.wall_clock.store(value, Ordering::Relaxed);
        if value == 0 || host {
            return;
        }
        let tsc = self.host_tsc();
        let wall = WallClock::new(self.vm.host.realtime_ns(self.count()), self.vm.clock.kvmclock(tsc));
        let gpa = Gpa(value);
        let memory = self.vm.mmu.guest_memory(0);
        let write = wall.write(version(&memory, gpa));
        write_steps(&memory, gpa, &write.steps());
    }

    /// MSR_KVM_SYSTEM_TIME(_NEW): where this vCPU's structure lies, and whether it is kept up to date. With bit 0
    /// clear nothing is written any more. What user space sets (`host`) is written by the next KVM_RUN.
    pub fn kvmclock_write_system_time(&mut self, value: u64, host: bool) {
        self.clock.system_time = value;
        if host {
            self.kvmclock_is_stale();
        } else {
            self.update_kvmclock();
        }
    }

    /// KVM_KVMCLOCK_CTRL: the guest is told that it was stopped. False: it has no kvmclock to be told by.
    pub fn kvmclock_guest_stopped(&mut self) -> bool {
        let on = self.clock.system_time & SYSTEM_TIME_ENABLED != 0;
        let there = self.vm.mmu.guest_memory(0).host_ptr(Gpa(self.clock.system_time & !SYSTEM_TIME_ENABLED));
        if !on || there.is_none() {
            return false;
        }
        self.clock.guest_stopped = true;
        self.kvmclock_is_stale();
        true
    }

    /// Writes the kvmclock structure, if the guest has one. Memory that is not there is no error.
    pub fn update_kvmclock(&mut self) {
        if self.clock.system_time & SYSTEM_TIME_ENABLED == 0 {
            return;
        }
        let Some(scale) = TscToSystem::from_khz(self.clock.tsc.khz) else { return };
        let gpa = Gpa(self.clock.system_time & !SYSTEM_TIME_ENABLED);
        let host_tsc = self.host_tsc();
        let memory = self.vm.mmu.guest_memory(0);
        // The guest clears the flag when it has seen it.
        let seen: u8 = memory.load(gpa.wrapping_add(FLAGS_OFFSET)).unwrap_or(0);
        let stopped = core::mem::take(&mut self.clock.guest_stopped) || seen & PVCLOCK_GUEST_STOPPED != 0;
        let info = PvclockVcpuTimeInfo {
            tsc_timestamp: self.clock.tsc.read(host_tsc),
            system_time: self.vm.clock.kvmclock(host_tsc),
            scale,
            flags: PVCLOCK_TSC_STABLE | if stopped { PVCLOCK_GUEST_STOPPED } else { 0 },
        };
        // What a restored guest has in its memory already stays as it is.
        let mut old = [0; TIME_INFO_SIZE];
        if memory.read(gpa, &mut old).is_ok() && info.is_in(&old) {
            return;
        }
        let write = info.write(version(&memory, gpa));
        write_steps(&memory, gpa, &write.steps());
    }
}

fn version(memory: &GuestMemory, gpa: Gpa) -> u32 {
    let mut b = [0; 4];
    if memory.read(gpa, &mut b).is_err() {
        return 0;
    }
    u32::from_le_bytes(b)
}

fn write_steps(memory: &GuestMemory, gpa: Gpa, steps: &[WriteStep<'_>]) {
    for s in steps {
        // x86 stores become visible in order, and the compiler cannot move these: each ends in a call.
        if memory.write(gpa.wrapping_add(s.offset as u64), s.bytes).is_err() {
            return;
        }
    }
}
