//! [`VcpuFd`]: a virtual processor.

use crate::run_page::{RingMapping, RunMapping, StatsFile};
use crate::{Result, error};
use kvm_api::backend::{DirtyRing, Inspect, Kick, RunBound, RunPage, Vcpu, Vm};
use kvm_api::errno::Errno;
use kvm_api::stats::VCPU_STATS;
use kvm_api::uapi::*;
use kvm_ioctls::{SyncReg, VcpuExit};
use parking_lot::Mutex;
use std::sync::Arc;

/// Makes a vCPU leave KVM_RUN with EINTR; see [`crate::signal`]. Async-signal-safe.
#[derive(Clone)]
pub struct KickHandle(Arc<dyn Kick>);

impl KickHandle {
    /// KVM_RUN returns EINTR: the one that is on, or else the next.
    pub fn kick(&self) {
        self.0.kick();
    }

    /// Takes back a kick that no KVM_RUN has acted on: for who knows that its cause is gone.
    pub fn withdraw(&self) {
        self.0.withdraw();
    }
}

impl core::fmt::Debug for KickHandle {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("KickHandle")
    }
}

/// A virtual processor, with the pages that it shares with its user.
pub struct VcpuFd {
    /// One ioctl at a time, as in the kernel.
    vcpu: Mutex<Box<dyn Vcpu>>,
    page: Arc<RunMapping>,
    shared_page: Arc<dyn RunPage>,
    kick: KickHandle,
    /// KVM_SET_SIGNAL_MASK: what is blocked during KVM_RUN.
    signal_mask: Mutex<Option<u64>>,
    id: u64,
    stats: Mutex<Option<Arc<StatsFile>>>,
    /// A vCPU keeps its VM alive.
    _vm: Arc<dyn Vm>,
}

impl core::fmt::Debug for VcpuFd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("VcpuFd")
    }
}

macro_rules! forward {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $t:ty),*) -> $r:ty = $method:ident($($pass:expr),*);)*) => {
        impl VcpuFd {
            $($(#[$doc])* pub fn $name(&self, $($arg: $t),*) -> Result<$r> {
                self.vcpu.lock().$method($($pass),*).map_err(error)
            })*
        }
    };
}

forward! {
    /// KVM_GET_REGS (4.10).
    get_regs() -> kvm_regs = get_regs();
    /// KVM_SET_REGS (4.11).
    set_regs(regs: &kvm_regs) -> () = set_regs(regs);
    /// KVM_GET_SREGS (4.12).
    get_sregs() -> kvm_sregs = get_sregs();
    /// KVM_SET_SREGS (4.13).
    set_sregs(sregs: &kvm_sregs) -> () = set_sregs(sregs);
    /// KVM_GET_SREGS2.
    get_sregs2() -> kvm_sregs2 = get_sregs2();
    /// KVM_SET_SREGS2.
    set_sregs2(sregs: &kvm_sregs2) -> () = set_sregs2(sregs);
    /// KVM_GET_FPU (4.21).
    get_fpu() -> kvm_fpu = get_fpu();
    /// KVM_SET_FPU (4.22).
    set_fpu(fpu: &kvm_fpu) -> () = set_fpu(fpu);
    /// KVM_SET_CPUID2 (4.19).
    set_cpuid2(cpuid: &CpuId) -> () = set_cpuid2(cpuid.as_slice());
    /// KVM_ENABLE_CAP (4.36).
    enable_cap(cap: &kvm_enable_cap) -> () = enable_cap(cap);
    /// KVM_GET_LAPIC.
    get_lapic() -> kvm_lapic_state = get_lapic();
    /// KVM_SET_LAPIC.
    set_lapic(klapic: &kvm_lapic_state) -> () = set_lapic(klapic);
    /// KVM_GET_MSRS (4.17): how many were read.
    get_msrs(msrs: &mut Msrs) -> usize = get_msrs(msrs.as_mut_slice());
    /// KVM_SET_MSRS (4.18): how many were written.
    set_msrs(msrs: &Msrs) -> usize = set_msrs(msrs.as_slice());
    /// KVM_GET_MP_STATE (4.37).
    get_mp_state() -> kvm_mp_state = get_mp_state();
    /// KVM_SET_MP_STATE (4.38).
    set_mp_state(mp_state: kvm_mp_state) -> () = set_mp_state(&mp_state);
    /// KVM_GET_XCRS (4.43).
    get_xcrs() -> kvm_xcrs = get_xcrs();
    /// KVM_SET_XCRS (4.44).
    set_xcrs(xcrs: &kvm_xcrs) -> () = set_xcrs(xcrs);
    /// KVM_GET_DEBUGREGS (4.32).
    get_debug_regs() -> kvm_debugregs = get_debugregs();
    /// KVM_SET_DEBUGREGS (4.33).
    set_debug_regs(debug_regs: &kvm_debugregs) -> () = set_debugregs(debug_regs);
    /// KVM_GET_VCPU_EVENTS (4.29).
    get_vcpu_events() -> kvm_vcpu_events = get_vcpu_events();
    /// KVM_SET_VCPU_EVENTS (4.30).
    set_vcpu_events(vcpu_events: &kvm_vcpu_events) -> () = set_vcpu_events(vcpu_events);
    /// KVM_SET_GUEST_DEBUG.
    set_guest_debug(debug_struct: &kvm_guest_debug) -> () = set_guest_debug(debug_struct);
    /// KVM_KVMCLOCK_CTRL.
    kvmclock_ctrl() -> () = kvmclock_ctrl();
    /// KVM_GET_TSC_KHZ.
    get_tsc_khz() -> u32 = get_tsc_khz();
    /// KVM_SET_TSC_KHZ.
    set_tsc_khz(freq: u32) -> () = set_tsc_khz(freq);
    /// KVM_TRANSLATE (4.14).
    translate_gva(gva: u64) -> kvm_translation = translate(gva);
    /// KVM_INTERRUPT (4.15): queues a vector where the interrupt controllers are the caller's.
    interrupt(vector: u32) -> () = interrupt(vector);
    /// KVM_NMI.
    nmi() -> () = nmi();
    /// KVM_SMI.
    smi() -> () = smi();
}

impl VcpuFd {
    pub(crate) fn new(
        vm: Arc<dyn Vm>,
        mut vcpu: Box<dyn Vcpu>,
        ring: &RingMapping,
        id: u64,
    ) -> Result<VcpuFd> {
        let page = Arc::new(RunMapping::new(ring, vm.dirty_ring_bytes()).map_err(error)?);
        if let Some(ring) = page.dirty_ring() {
            let ring: Arc<dyn DirtyRing> = ring.clone();
            vcpu.set_dirty_ring(ring);
        }
        let kick = KickHandle(vcpu.kicker());
        Ok(VcpuFd {
            vcpu: Mutex::new(vcpu),
            shared_page: page.clone(),
            page,
            kick,
            signal_mask: Mutex::new(None),
            id,
            stats: Mutex::new(None),
            _vm: vm,
        })
    }

    /// Counters of the vCPU, by name.
    pub fn stats(&self) -> Vec<(&'static str, u64)> {
        self.vcpu.lock().counters()
    }

    /// Looks inside the vCPU, under its lock.
    pub fn inspect<R>(&self, f: impl FnOnce(&dyn Inspect) -> R) -> R {
        let vcpu = self.vcpu.lock();
        let inspect: &dyn Vcpu = &**vcpu;
        f(inspect)
    }

    /// Direct access to the backend's vCPU, under its lock: for snapshots.
    pub fn with_backend<R>(&self, f: impl FnOnce(&mut dyn Vcpu) -> R) -> R {
        f(&mut **self.vcpu.lock())
    }

    /// What makes this vCPU leave KVM_RUN, from any thread or signal handler.
    pub fn kick_handle(&self) -> KickHandle {
        self.kick.clone()
    }

    /// KVM_SET_SIGNAL_MASK (4.20): the signals that are blocked during KVM_RUN, bit n for signal n + 1. In process a
    /// signal does not end KVM_RUN by itself (see [`crate::signal`]); the mask is kept for who interposes signals.
    pub fn set_signal_mask(&self, mask: Option<u64>) {
        *self.signal_mask.lock() = mask;
    }

    /// What KVM_SET_SIGNAL_MASK has set.
    pub fn signal_mask(&self) -> Option<u64> {
        *self.signal_mask.lock()
    }

    /// KVM_RUN (4.9): executes the guest until something must be told. EINTR: a kick or `immediate_exit`; EAGAIN as in
    /// KVM; EFAULT: guest memory is gone. Slices of the exit are where answers are to be written.
    pub fn run(&mut self) -> Result<VcpuExit<'_>> {
        self.vcpu.get_mut().run(&self.shared_page).map_err(error)?;
        self.page.exit().map_err(error)
    }

    /// KVM_RUN to an exact bound, on a backend that counts instructions: EINTR once it is reached, as if a kick had come at
    /// that very boundary (see [`VcpuFd::instructions`] and [`VcpuFd::steps`]). A halted vCPU that nothing inside the VM will
    /// wake returns EINTR at once, so that one thread can run several vCPUs by turns.
    ///
    /// With [`EngineClock::Counted`](crate::EngineClock::Counted) a run in slices of any length is the same as one without.
    pub fn run_bounded(&mut self, bound: RunBound) -> Result<VcpuExit<'_>> {
        self.vcpu.get_mut().run_bounded(&self.shared_page, bound).map_err(error)?;
        self.page.exit().map_err(error)
    }

    /// The exit of the last KVM_RUN that did not fail, once more.
    pub fn last_exit(&mut self) -> Result<VcpuExit<'_>> {
        self.page.exit().map_err(error)
    }

    /// Instructions retired since the vCPU was made, where the backend counts them.
    pub fn instructions(&self) -> Option<u64> {
        self.vcpu.lock().instructions()
    }

    /// Steps made under [`RunBound::Steps`].
    pub fn steps(&self) -> Option<u64> {
        self.vcpu.lock().steps()
    }

    /// KVM_RUN as an ioctl: the exit is in the run page and nowhere else. Other ioctls on this vCPU wait until it
    /// returns, as in the kernel.
    pub fn run_raw(&self) -> Result {
        self.vcpu.lock().run(&self.shared_page).map_err(error)
    }

    /// The shared pages, with the memfd that a caller may map.
    pub fn run_mapping(&self) -> &Arc<RunMapping> {
        &self.page
    }

    /// KVM_GET_STATS_FD: a file with the vCPU's statistics. What is read is a few thousand instructions old at most.
    pub fn get_stats_fd(&self) -> Result<std::fs::File> {
        let mut stats = self.stats.lock();
        let file = match &*stats {
            Some(file) => file.clone(),
            None => {
                let id = format!("kvm-{}/vcpu-{}", std::process::id(), self.id);
                let file = StatsFile::new(&format!("kvm-vcpu-stats:{}", self.id), VCPU_STATS, &id);
                let file = Arc::new(file.map_err(error)?);
                self.vcpu.lock().show_stats(file.clone()).map_err(error)?;
                stats.insert(file).clone()
            }
        };
        file.open().map_err(error)
    }

    /// KVM_PRE_FAULT_MEMORY: brings in the pages of `[gpa, gpa + size)`; how many bytes were done.
    pub fn pre_fault_memory(&self, gpa: u64, size: u64) -> Result<u64> {
        self.vcpu.lock().pre_fault_memory(gpa, size).map_err(error)
    }

    /// The dirty ring, after [`VmFd::enable_dirty_log_ring`](crate::VmFd::enable_dirty_log_ring).
    pub fn dirty_ring(&self) -> Option<&Arc<crate::run_page::DirtyRingMapping>> {
        self.page.dirty_ring()
    }

    /// The run page.
    pub fn get_kvm_run(&mut self) -> &mut kvm_run {
        self.page.kvm_run()
    }

    /// Sets `immediate_exit` in the run page.
    pub fn set_kvm_immediate_exit(&mut self, val: u8) {
        self.shared_page.set_immediate_exit(val);
    }

    /// KVM_GET_CPUID2. E2BIG: `num_entries` is too small.
    pub fn get_cpuid2(&self, num_entries: usize) -> Result<CpuId> {
        if num_entries > KVM_MAX_CPUID_ENTRIES {
            return Err(error(Errno::ENOMEM));
        }
        let rows = self.vcpu.lock().get_cpuid2().map_err(error)?;
        if rows.len() > num_entries {
            return Err(error(Errno::E2BIG));
        }
        CpuId::from_entries(&rows).map_err(|_| error(Errno::ENOMEM))
    }

    /// KVM_GET_XSAVE (4.41): the first 4 KiB.
    pub fn get_xsave(&self) -> Result<kvm_xsave> {
        let area = self.vcpu.lock().get_xsave().map_err(error)?;
        let mut x = kvm_xsave::default();
        for (w, b) in x.region.iter_mut().zip(area.as_chunks::<4>().0) {
            *w = u32::from_le_bytes(*b);
        }
        Ok(x)
    }

    /// Asks for a register set in the page at each exit (KVM_CAP_SYNC_REGS).
    pub fn set_sync_valid_reg(&mut self, reg: SyncReg) {
        let p = &*self.shared_page;
        p.set_valid_regs(p.valid_regs() | reg as u64);
    }

    /// Marks a register set in the page as changed, to be loaded at the next entry.
    pub fn set_sync_dirty_reg(&mut self, reg: SyncReg) {
        let p = &*self.shared_page;
        p.set_dirty_regs(p.dirty_regs() | reg as u64);
    }

    /// Takes [`VcpuFd::set_sync_valid_reg`] back.
    pub fn clear_sync_valid_reg(&mut self, reg: SyncReg) {
        let p = &*self.shared_page;
        p.set_valid_regs(p.valid_regs() & !(reg as u64));
    }

    /// Takes [`VcpuFd::set_sync_dirty_reg`] back.
    pub fn clear_sync_dirty_reg(&mut self, reg: SyncReg) {
        let p = &*self.shared_page;
        p.set_dirty_regs(p.dirty_regs() & !(reg as u64));
    }

    /// The register sets in the page.
    pub fn sync_regs(&self) -> kvm_sync_regs {
        let mut bytes = [0; size_of::<kvm_sync_regs>()];
        self.shared_page.load(kvm_api::backend::SYNC_REGS, &mut bytes);
        crate::user_mem::from_bytes(&bytes)
    }

    /// The register sets in the page, to be written.
    pub fn sync_regs_mut(&mut self) -> &mut kvm_sync_regs {
        self.page.sync_regs()
    }
}
