//! [`VmFd`]: a virtual machine.

use super::vcpu_fd::VcpuFd;
use crate::run_page::{RingMapping, StatsFile};
use crate::{Result, error};
use kvm_api::backend::{CountedTime, MsrRange, RUN_MMAP_SIZE, Vm};
use kvm_api::errno::Errno;
use kvm_api::stats::VM_STATS;
use kvm_api::uapi::*;
use kvm_ioctls::{Cap, IoEventAddress, MsrFilterDefaultAction, MsrFilterRange};
use parking_lot::Mutex;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// A virtual machine. It lives until the last of it and its vCPUs is dropped.
#[derive(Clone)]
pub struct VmFd {
    vm: Arc<dyn Vm>,
    ring: Arc<RingMapping>,
    stats: Arc<Mutex<Option<Arc<StatsFile>>>>,
}

impl core::fmt::Debug for VmFd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("VmFd")
    }
}

impl VmFd {
    pub(crate) fn new(vm: Arc<dyn Vm>) -> Result<VmFd> {
        let ring = Arc::new(RingMapping::new().map_err(error)?);
        vm.set_coalesced_ring(ring.clone());
        Ok(VmFd { vm, ring, stats: Arc::default() })
    }

    /// The page of the coalesced-MMIO ring, which every vCPU's mapping has behind its own two.
    pub fn coalesced_ring(&self) -> &RingMapping {
        &self.ring
    }

    /// The backend's VM.
    pub fn backend(&self) -> &Arc<dyn Vm> {
        &self.vm
    }

    /// The moment, where the VM lives in counted time: a VM made with
    /// [`EngineClock::CountedFrom`](crate::EngineClock::CountedFrom) goes on from it.
    pub fn counted_time(&self) -> Option<CountedTime> {
        self.vm.counted_time()
    }

    /// Counters of the VM, by name.
    pub fn stats(&self) -> Vec<(&'static str, u64)> {
        self.vm.counters()
    }

    pub(super) fn set_region(&self, r: &kvm_userspace_memory_region2) -> Result {
        self.vm.set_user_memory_region(r).map_err(error)
    }

    /// The caller has changed mappings in its own memory, `[start, start + len)`, which slots may cover (what
    /// KVM_CAP_SYNC_MMU does by itself in the kernel). Needed only where decoded code may have changed with them.
    pub fn invalidate_hva(&self, start: u64, len: u64) {
        self.vm.invalidate_hva(start, len);
    }

    /// KVM_SET_TSS_ADDR (4.35).
    pub fn set_tss_address(&self, offset: usize) -> Result {
        self.vm.set_tss_addr(offset as u64).map_err(error)
    }

    /// KVM_SET_IDENTITY_MAP_ADDR (4.39).
    pub fn set_identity_map_address(&self, address: u64) -> Result {
        self.vm.set_identity_map_addr(address).map_err(error)
    }

    /// KVM_SET_BOOT_CPU_ID (4.40).
    pub fn set_boot_cpu_id(&self, id: u64) -> Result {
        self.vm.set_boot_cpu_id(id).map_err(error)
    }

    /// KVM_SET_NR_MMU_PAGES.
    pub fn set_nr_mmu_pages(&self, pages: u64) -> Result {
        self.vm.set_nr_mmu_pages(pages).map_err(error)
    }

    /// KVM_GET_NR_MMU_PAGES.
    pub fn get_nr_mmu_pages(&self) -> Result<u64> {
        self.vm.get_nr_mmu_pages().map_err(error)
    }

    /// KVM_CREATE_IRQCHIP (4.23).
    pub fn create_irq_chip(&self) -> Result {
        self.vm.create_irqchip().map_err(error)
    }

    /// KVM_GET_IRQCHIP (4.25).
    pub fn get_irqchip(&self, irqchip: &mut kvm_irqchip) -> Result {
        self.vm.get_irqchip(irqchip).map_err(error)
    }

    /// KVM_SET_IRQCHIP (4.26).
    pub fn set_irqchip(&self, irqchip: &kvm_irqchip) -> Result {
        self.vm.set_irqchip(irqchip).map_err(error)
    }

    /// KVM_CREATE_PIT2.
    pub fn create_pit2(&self, pit_config: kvm_pit_config) -> Result {
        self.vm.create_pit2(&pit_config).map_err(error)
    }

    /// KVM_GET_PIT2.
    pub fn get_pit2(&self) -> Result<kvm_pit_state2> {
        self.vm.get_pit2().map_err(error)
    }

    /// KVM_SET_PIT2.
    pub fn set_pit2(&self, pitstate: &kvm_pit_state2) -> Result {
        self.vm.set_pit2(pitstate).map_err(error)
    }

    /// KVM_REINJECT_CONTROL.
    pub fn reinject_control(&self, reinject: bool) -> Result {
        self.vm.reinject_control(reinject).map_err(error)
    }

    /// KVM_GET_CLOCK (4.27).
    pub fn get_clock(&self) -> Result<kvm_clock_data> {
        self.vm.get_clock().map_err(error)
    }

    /// KVM_SET_CLOCK (4.28).
    pub fn set_clock(&self, clock: &kvm_clock_data) -> Result {
        self.vm.set_clock(clock).map_err(error)
    }

    /// KVM_X86_SET_MSR_FILTER. No ranges with the default "allow" switch the filter off.
    pub fn set_msr_filter(
        &self,
        default_action: MsrFilterDefaultAction,
        ranges: &[MsrFilterRange<'_>],
    ) -> Result {
        let ranges = ranges
            .iter()
            .map(|r| MsrRange {
                flags: r.flags.bits(),
                base: r.base,
                count: r.msr_count,
                bitmap: r.bitmap.to_vec(),
            })
            .collect();
        self.vm.set_msr_filter(default_action as u32, ranges).map_err(error)
    }

    /// KVM_SIGNAL_MSI: positive if delivered, 0 if the guest blocks it.
    pub fn signal_msi(&self, msi: kvm_msi) -> Result<i32> {
        self.vm.signal_msi(&msi).map_err(error)
    }

    /// KVM_SET_GSI_ROUTING.
    pub fn set_gsi_routing(&self, irq_routing: &KvmIrqRouting) -> Result {
        self.vm.set_gsi_routing(irq_routing.as_slice()).map_err(error)
    }

    /// KVM_IOEVENTFD: `fd` is signalled instead of an exit. The datamatch's type gives the access's length.
    pub fn register_ioevent<T: Into<u64>>(
        &self,
        fd: &EventFd,
        addr: &IoEventAddress,
        datamatch: T,
    ) -> Result {
        self.ioevent(fd, addr, datamatch, 0)
    }

    /// KVM_IOEVENTFD with the deassign flag.
    pub fn unregister_ioevent<T: Into<u64>>(
        &self,
        fd: &EventFd,
        addr: &IoEventAddress,
        datamatch: T,
    ) -> Result {
        self.ioevent(fd, addr, datamatch, 1 << kvm_ioeventfd_flag_nr_deassign)
    }

    fn ioevent<T: Into<u64>>(&self, fd: &EventFd, addr: &IoEventAddress, datamatch: T, flags: u32) -> Result {
        let len = size_of::<T>() as u32;
        let matching = if len > 0 { 1 << kvm_ioeventfd_flag_nr_datamatch } else { 0 };
        let (pio, addr) = match addr {
            IoEventAddress::Pio(a) => (1 << kvm_ioeventfd_flag_nr_pio, *a),
            IoEventAddress::Mmio(a) => (0, *a),
        };
        let args = kvm_ioeventfd {
            datamatch: datamatch.into(),
            addr,
            len,
            fd: fd.as_raw_fd(),
            flags: flags | matching | pio,
            ..Default::default()
        };
        self.vm.ioeventfd(&args).map_err(error)
    }

    /// KVM_GET_DIRTY_LOG (4.7): a bit a page. `memory_size` is the slot's size in bytes.
    pub fn get_dirty_log(&self, slot: u32, memory_size: usize) -> Result<Vec<u64>> {
        let mut bits = self.vm.get_dirty_log(slot).map_err(error)?;
        bits.resize(memory_size.div_ceil(4096).div_ceil(64), 0);
        Ok(bits)
    }

    /// KVM_GET_STATS_FD: a file with the VM's statistics, which are as they are now whenever it is read.
    pub fn get_stats_fd(&self) -> Result<std::fs::File> {
        let mut stats = self.stats.lock();
        let file = match &*stats {
            Some(file) => file.clone(),
            None => {
                let id = format!("kvm-{}", std::process::id());
                let file = StatsFile::new("kvm-vm-stats", VM_STATS, &id).map_err(error)?;
                let file = Arc::new(file);
                self.vm.show_stats(file.clone()).map_err(error)?;
                stats.insert(file).clone()
            }
        };
        file.open().map_err(error)
    }

    /// KVM_CAP_DIRTY_LOG_RING: each vCPU made later has a dirty ring of so many bytes, 16 an entry; `None` takes the largest.
    pub fn enable_dirty_log_ring(&self, bytes: Option<u32>) -> Result {
        let bytes = match bytes {
            Some(bytes) => u64::from(bytes),
            None => self.check_extension_raw(u64::from(KVM_CAP_DIRTY_LOG_RING)) as u64,
        };
        let mut cap = kvm_enable_cap { cap: KVM_CAP_DIRTY_LOG_RING, ..Default::default() };
        cap.args[0] = bytes;
        self.enable_cap(&cap)
    }

    /// KVM_RESET_DIRTY_RINGS: what was harvested from the rings of all vCPUs becomes free, and further writes to those pages are
    /// told again. How many entries that were.
    pub fn reset_dirty_rings(&self) -> Result<u32> {
        self.vm.reset_dirty_rings().map_err(error)
    }

    /// KVM_IRQFD: `fd` raises the GSI (a pulse).
    pub fn register_irqfd(&self, fd: &EventFd, gsi: u32) -> Result {
        self.irqfd(fd, None, gsi, 0)
    }

    /// KVM_IRQFD: `fd` raises the GSI, and `resamplefd` is signalled when the guest acknowledges.
    pub fn register_irqfd_with_resample(&self, fd: &EventFd, resamplefd: &EventFd, gsi: u32) -> Result {
        self.irqfd(fd, Some(resamplefd), gsi, KVM_IRQFD_FLAG_RESAMPLE)
    }

    /// KVM_IRQFD with the deassign flag.
    pub fn unregister_irqfd(&self, fd: &EventFd, gsi: u32) -> Result {
        self.irqfd(fd, None, gsi, KVM_IRQFD_FLAG_DEASSIGN)
    }

    fn irqfd(&self, fd: &EventFd, resample: Option<&EventFd>, gsi: u32, flags: u32) -> Result {
        let args = kvm_irqfd {
            fd: fd.as_raw_fd() as u32,
            gsi,
            flags,
            resamplefd: resample.map_or(0, |r| r.as_raw_fd() as u32),
            ..Default::default()
        };
        self.vm.irqfd(&args).map_err(error)
    }

    /// KVM_IRQ_LINE (4.24).
    pub fn set_irq_line(&self, irq: u32, active: bool) -> Result {
        self.vm.irq_line(irq, active).map(|_| ()).map_err(error)
    }

    /// KVM_IRQ_LINE_STATUS: -1 ignored, 0 coalesced, positive delivered.
    pub fn set_irq_line_status(&self, irq: u32, active: bool) -> Result<i32> {
        self.vm.irq_line(irq, active).map_err(error)
    }

    /// KVM_CREATE_VCPU (4.6).
    pub fn create_vcpu(&self, id: u64) -> Result<VcpuFd> {
        let vcpu = self.vm.create_vcpu(id).map_err(error)?;
        VcpuFd::new(self.vm.clone(), vcpu, &self.ring, id)
    }

    /// KVM_ENABLE_CAP on the VM.
    pub fn enable_cap(&self, cap: &kvm_enable_cap) -> Result {
        self.vm.enable_cap(cap).map_err(error)
    }

    /// Bytes of a vCPU's shared pages.
    pub fn run_size(&self) -> usize {
        RUN_MMAP_SIZE
    }

    /// KVM_CHECK_EXTENSION on the VM.
    pub fn check_extension_int(&self, c: Cap) -> i32 {
        self.vm.check_extension(c as u32)
    }

    /// KVM_CHECK_EXTENSION on the VM, with any number.
    pub fn check_extension_raw(&self, c: u64) -> i32 {
        u32::try_from(c).map_or(0, |c| self.vm.check_extension(c))
    }

    /// Whether KVM_CHECK_EXTENSION on the VM answers more than 0.
    pub fn check_extension(&self, c: Cap) -> bool {
        self.check_extension_int(c) > 0
    }

    /// KVM_GET_TSC_KHZ on the VM.
    pub fn get_tsc_khz(&self) -> Result<u32> {
        self.vm.get_tsc_khz().map_err(error)
    }

    /// KVM_SET_TSC_KHZ on the VM.
    pub fn set_tsc_khz(&self, freq: u32) -> Result {
        self.vm.set_tsc_khz(freq).map_err(error)
    }

    /// KVM_REGISTER_COALESCED_MMIO.
    pub fn register_coalesced_mmio(&self, addr: IoEventAddress, size: u32) -> Result {
        self.coalesced(addr, size, true)
    }

    /// KVM_UNREGISTER_COALESCED_MMIO.
    pub fn unregister_coalesced_mmio(&self, addr: IoEventAddress, size: u32) -> Result {
        self.coalesced(addr, size, false)
    }

    fn coalesced(&self, addr: IoEventAddress, size: u32, register: bool) -> Result {
        let (addr, pio) = match addr {
            IoEventAddress::Pio(a) => (a, 1u32),
            IoEventAddress::Mmio(a) => (a, 0),
        };
        let mut zone = kvm_coalesced_mmio_zone { addr, size, ..Default::default() };
        crate::user_mem::set_member(&mut zone, 12, &pio);
        self.vm.coalesced_mmio(&zone, register).map_err(error)
    }

    /// KVM_CREATE_DEVICE. No device type exists here (ENODEV).
    pub fn create_device(&self, device: &mut kvm_create_device) -> Result<()> {
        let _ = device;
        Err(error(Errno::ENODEV))
    }
}
