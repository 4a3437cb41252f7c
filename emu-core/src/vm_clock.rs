//! The VM's clocks: guest TSC per vCPU, and kvmclock in guest memory (KVM msr.txt).
//!
//! kvmclock follows one *master clock*: a pair of host TSC and kvmclock nanoseconds taken once, from which
//! every vCPU's structure is made. So it is monotonic across vCPUs that have one TSC, which is what the stable bit promises
//! (Linux' vDSO reads the first vCPU's structure on all), and it advances with the guest's TSC.

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

/// A vCPU's kvmclock structure, for whoever writes it.
#[derive(Clone, Copy)]
struct Structure {
    /// MSR_KVM_SYSTEM_TIME(_NEW).
    system_time: u64,
    /// By which its guest reads it.
    tsc: Tsc,
}

/// Clock parameters that the vCPUs share.
pub struct VmClock {
    /// The host's TSC frequency in kHz.
    pub host_khz: u32,
    /// The frequency of new vCPUs' TSCs in kHz (KVM_SET_TSC_KHZ on the VM).
    pub default_khz: AtomicU32,
    sync: Mutex<TscSync>,
    master: Mutex<Master>,
    /// Where each vCPU's structure lies; held while one is written.
    structures: Mutex<Vec<Structure>>,
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
            structures: Mutex::default(),
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

    /// Whether all vCPUs have one TSC (KVM_CLOCK_TSC_STABLE).
    pub fn is_stable(&self) -> bool {
        self.sync.lock().agree()
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
            self.tsc_left_by_user();
        } else {
            self.clock.tsc.write(value, tsc);
            self.update_kvmclock();
        }
    }

    /// User space set the TSC. Whether it is still the others' concerns all.
    fn tsc_left_by_user(&self) {
        let mut sync = self.vm.clock.sync.lock();
        let before = sync.agree();
        sync.leave(self.shared.index, &self.clock.tsc);
        let changed = sync.agree() != before;
        drop(sync);
        if changed {
            self.vm.clock_changed();
        }
        self.kvmclock_is_stale();
    }

    /// User space changed something: the next KVM_RUN writes the structure, and no ioctl does.
    fn kvmclock_is_stale(&self) {
        self.show_structure();
        self.shared.gate.request(Requests::CLOCK);
    }

    /// The TSC of a new vCPU: zero, at the VM's frequency, together with the others'.
    pub(crate) fn start_tsc(&mut self) {
        let (tsc, ns) = (self.host_tsc(), self.now_ns());
        // A frequency that cannot be had was refused when it was set.
        let khz = self.vm.clock.default_khz.load(Ordering::Relaxed);
        self.clock.tsc.set_khz(khz, self.vm.clock.host_khz, tsc);
        self.vm.clock.sync.lock().write(&mut self.clock.tsc, 0, tsc, ns, false);
        self.tsc_left_by_user();
    }

    /// KVM_VCPU_TSC_OFFSET: the guest's TSC jumps so that it is the host's, scaled, plus `offset`. IA32_TSC_ADJUST stays.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        self.clock.tsc.offset = offset;
        self.tsc_left_by_user();
    }

    /// KVM_SET_TSC_KHZ. False: the frequency cannot be had.
    pub fn set_tsc_khz(&mut self, khz: u32) -> bool {
        let tsc = self.host_tsc();
        let host = self.vm.clock.host_khz;
        let done = self.clock.tsc.set_khz(khz, host, tsc);
        self.tsc_left_by_user();
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

    /// Lets the other vCPUs know where this one's structure lies.
    fn show_structure(&self) {
        let mut all = self.vm.clock.structures.lock();
        let nothing = Structure { system_time: 0, tsc: self.clock.tsc };
        let index = self.shared.index;
        if all.len() <= index {
            all.resize(index + 1, nothing);
        }
        all[index] = Structure { system_time: self.clock.system_time, tsc: self.clock.tsc };
    }

    /// Reset: the structure is nobody's any more.
    pub(crate) fn forget_kvmclock(&mut self) {
        self.clock.system_time = 0;
        self.show_structure();
    }

    /// Writes this vCPU's kvmclock structure, if the guest has one. Memory that is not there is no error.
    pub fn update_kvmclock(&mut self) {
        self.show_structure();
        if self.clock.system_time & SYSTEM_TIME_ENABLED == 0 {
            return;
        }
        let stopped = core::mem::take(&mut self.clock.guest_stopped);
        let all = self.vm.clock.structures.lock();
        if let Some(structure) = all.get(self.shared.index) {
            structure.update(&self.vm, self.host_tsc(), stopped);
        }
    }

    /// The clock or a TSC was changed: writes all vCPUs' structures. Linux' vDSO reads the first vCPU's on all of them, and that
    /// one may enter the guest later than this one.
    pub(crate) fn update_all_kvmclocks(&mut self) {
        self.update_kvmclock();
        let all = self.vm.clock.structures.lock();
        for (_, structure) in all.iter().enumerate().filter(|(index, _)| *index != self.shared.index) {
            structure.update(&self.vm, self.host_tsc(), false);
        }
    }
}

impl Structure {
    /// Writes it, if it says something else; the caller holds the lock of all.
    fn update(&self, vm: &Vm, host_tsc: u64, stopped: bool) {
        if self.system_time & SYSTEM_TIME_ENABLED == 0 {
            return;
        }
        let Some(scale) = TscToSystem::from_khz(self.tsc.khz) else { return };
        let gpa = Gpa(self.system_time & !SYSTEM_TIME_ENABLED);
        let memory = vm.mmu.guest_memory(0);
        // The guest clears the flag when it has seen it.
        let seen: u8 = memory.load(gpa.wrapping_add(FLAGS_OFFSET)).unwrap_or(0);
        let stopped = stopped || seen & PVCLOCK_GUEST_STOPPED != 0;
        let info = PvclockVcpuTimeInfo {
            tsc_timestamp: self.tsc.read(host_tsc),
            system_time: vm.clock.kvmclock(host_tsc),
            scale,
            flags: if vm.clock.is_stable() { PVCLOCK_TSC_STABLE } else { 0 }
                | if stopped { PVCLOCK_GUEST_STOPPED } else { 0 },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::{DATA, Mode, Rig};

    const FIRST: u64 = DATA + 0x100;
    const SECOND: u64 = DATA + 0x200;
    const TSC: u64 = 1_000_000_000_000;

    fn bytes(r: &Rig, at: u64) -> [u8; TIME_INFO_SIZE] {
        let mut b = [0; TIME_INFO_SIZE];
        r.vm.mmu.guest_memory(0).read(Gpa(at), &mut b).unwrap();
        b
    }

    fn flags(r: &Rig, at: u64) -> u8 {
        r.vm.mmu.guest_memory(0).load(Gpa(at + FLAGS_OFFSET)).unwrap()
    }

    /// A VM is restored: whoever enters first writes every structure, since Linux' vDSO reads one on all vCPUs.
    #[test]
    fn the_first_vcpu_that_enters_writes_all_structures() {
        let mut r = Rig::new(Mode::Long);
        let mut other = Vcpu::new(&r.vm, 1, false);
        for (v, at) in [(r.cpu(), FIRST), (&mut other, SECOND)] {
            v.kvmclock_write_system_time(at | SYSTEM_TIME_ENABLED, true);
            v.write_tsc(TSC, true);
        }
        assert_eq!((bytes(&r, FIRST), bytes(&r, SECOND)), Default::default(), "no ioctl writes");
        other.update_all_kvmclocks();
        assert_eq!((flags(&r, FIRST), flags(&r, SECOND)), (PVCLOCK_TSC_STABLE, PVCLOCK_TSC_STABLE));
        assert_eq!(bytes(&r, FIRST)[8..], bytes(&r, SECOND)[8..], "one TSC, one clock");
        // Another second's worth of TSC between them: the guest must take the later of two times itself.
        let khz = u64::from(other.clock.tsc.khz);
        other.write_tsc(TSC + khz * 3000, true);
        assert!(!r.vm.clock.is_stable());
        r.cpu().update_all_kvmclocks();
        assert_eq!((flags(&r, FIRST), flags(&r, SECOND)), (0, 0));
        let offset = r.cpu().clock.tsc.offset;
        other.set_tsc_offset(offset);
        assert!(r.vm.clock.is_stable());
        // What was reset is the guest's own memory again, whoever writes.
        let before = bytes(&r, SECOND);
        other.reset(true);
        let tsc = r.cpu().host_tsc();
        r.vm.clock.set_kvmclock(5_000_000_000, tsc);
        r.cpu().update_all_kvmclocks();
        assert_eq!((flags(&r, FIRST), bytes(&r, SECOND)), (PVCLOCK_TSC_STABLE, before));
    }
}
