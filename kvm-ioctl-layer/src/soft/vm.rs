//! The VM of the software backend: VM ioctls with KVM's checks, then `emu-core`.
//!
//! Memory is in `soft::memory`, ioeventfds in `soft::bus`, irqfds in `soft::irqfd`.

use super::bus::SoftBus;
use super::irqfd::Irqfds;
use super::vcpu::SoftVcpu;
use super::{choices, convert, memory, rings, stats};
use crate::caps;
use emu_core::Host;
use emu_core::irqchip::SourceId;
use emu_core::irqchip::routing::{MAX_IRQ_ROUTES, Msi, Routing};
use kvm_api::backend::{CountedTime, Inspect, MsrRange, RunPage, Vcpu, Vm};
use kvm_api::errno::{Errno, Result};
use kvm_api::stats::StatsBlock;
use kvm_api::uapi::*;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What the VMM has chosen for the VM; vCPUs look at it when they are made or asked.
#[derive(Clone, Debug, Default)]
pub struct VmSettings {
    /// Ids in use.
    pub vcpu_ids: Vec<u64>,
    /// KVM_CAP_MAX_VCPU_ID: ids are below this (0: not said).
    pub max_vcpu_id: u64,
    /// KVM_SET_BOOT_CPU_ID.
    pub boot_cpu: u64,
    /// KVM_SET_TSS_ADDR. Kept to be told; nothing of ours lies there.
    pub tss_addr: u64,
    /// KVM_SET_IDENTITY_MAP_ADDR. As above.
    pub identity_map_addr: u64,
    /// What KVM_GET_VCPU_EVENTS shows.
    pub events: convert::EventCaps,
    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: its flags.
    pub manual_dirty_log: u32,
    /// KVM_CAP_DIRTY_LOG_RING: bytes of a vCPU's ring (0: the log is bitmaps).
    pub dirty_ring: usize,
    /// KVM_CAP_X2APIC_API: KVM_GET_LAPIC shows 32-bit ids.
    pub x2apic_ids: bool,
}

/// A VM.
pub struct SoftVm {
    core: Arc<emu_core::Vm>,
    bus: Arc<SoftBus>,
    irqfds: Irqfds,
    settings: Arc<Mutex<VmSettings>>,
}

impl SoftVm {
    /// An empty VM in the time of `host`.
    pub fn new(host: Arc<dyn Host>) -> SoftVm {
        let core = emu_core::Vm::new(host);
        let bus = Arc::new(SoftBus::default());
        *core.bus.write() = bus.clone();
        SoftVm { core, bus, irqfds: Irqfds::default(), settings: Arc::default() }
    }

    /// Address spaces of this VM: the second is system-management mode's.
    const ADDRESS_SPACES: u16 = softmmu::memslot::ADDRESS_SPACES as u16;

    fn full_irqchip(&self) -> bool {
        self.core.with_irqchip(|c| !c.is_split()) == Some(true)
    }

    fn host_tsc(&self) -> u64 {
        self.core.host.tsc(0)
    }

    fn now_ns(&self) -> u64 {
        self.core.host.monotonic_ns(0)
    }
}

/// What KVM_X86_SET_MSR_FILTER asked for.
struct SoftMsrFilter {
    deny: bool,
    ranges: Vec<MsrRange>,
}

impl emu_core::msr::MsrFilter for SoftMsrFilter {
    fn allows(&self, index: u32, write: bool) -> bool {
        let kind = if write { KVM_MSR_FILTER_WRITE } else { KVM_MSR_FILTER_READ };
        // The first range that covers the register decides.
        let range = self.ranges.iter().find(|r| r.flags & kind != 0 && index.wrapping_sub(r.base) < r.count);
        match range {
            Some(r) => {
                let n = index.wrapping_sub(r.base) as usize;
                r.bitmap.get(n / 8).is_some_and(|b| b >> (n % 8) & 1 != 0)
            }
            None => !self.deny,
        }
    }
}

impl Inspect for SoftVm {
    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut list = vec![
            ("vcpus", self.core.vcpus.read().len() as u64),
            ("memory_slots", self.core.mmu.slots(0).iter().count() as u64),
        ];
        list.extend(self.core.mmu.stats().list());
        list
    }

    fn counted_time(&self) -> Option<CountedTime> {
        self.core.host.counted_time().map(|(ns, random)| CountedTime { ns, random })
    }
}

impl Vm for SoftVm {
    fn check_extension(&self, cap: u32) -> i32 {
        caps::answer(cap)
    }

    fn enable_cap(&self, cap: &kvm_enable_cap) -> Result {
        if let KVM_CAP_DIRTY_LOG_RING | KVM_CAP_DIRTY_LOG_RING_ACQ_REL = cap.cap {
            // The one capability whose flags nobody looks at.
            return rings::enable(&mut self.settings.lock(), cap.args[0]);
        }
        if cap.flags != 0 {
            return Err(Errno::EINVAL);
        }
        match cap.cap {
            KVM_CAP_SPLIT_IRQCHIP => {
                if cap.args[0] > MAX_IRQ_ROUTES as u64 {
                    return Err(Errno::EINVAL);
                }
                if self.core.has_irqchip() || !self.settings.lock().vcpu_ids.is_empty() {
                    return Err(Errno::EEXIST);
                }
                if self.core.create_irqchip(true) { Ok(()) } else { Err(Errno::EINVAL) }
            }
            KVM_CAP_X2APIC_API => {
                let known = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
                if cap.args[0] & !u64::from(known) != 0 {
                    return Err(Errno::EINVAL);
                }
                let ids = cap.args[0] & u64::from(KVM_X2APIC_API_USE_32BIT_IDS) != 0;
                let quirk = cap.args[0] & u64::from(KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK) != 0;
                self.settings.lock().x2apic_ids = ids;
                self.core.with_irqchip(|c| c.set_x2apic_api(ids, quirk));
                Ok(())
            }
            KVM_CAP_EXCEPTION_PAYLOAD => {
                self.settings.lock().events.exception_payload = cap.args[0] != 0;
                Ok(())
            }
            KVM_CAP_X86_USER_SPACE_MSR => {
                let known =
                    KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
                let reasons =
                    u32::try_from(cap.args[0]).ok().filter(|r| r & !known == 0).ok_or(Errno::EINVAL)?;
                self.core.msr_exits.store(reasons, Ordering::Relaxed);
                Ok(())
            }
            KVM_CAP_MSR_PLATFORM_INFO => {
                self.core.platform_info_readable.store(cap.args[0] != 0, Ordering::Relaxed);
                Ok(())
            }
            KVM_CAP_EXIT_HYPERCALL => super::pv::exit_hypercall(&self.core, cap.args[0]),
            KVM_CAP_X86_APIC_BUS_CYCLES_NS => super::pv::apic_bus_cycles(&self.core, cap.args[0]),
            KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 => {
                let known = u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
                let flags = cap.args[0];
                // A log that begins full makes sense only if the caller clears it.
                if flags & !known != 0 || flags == u64::from(KVM_DIRTY_LOG_INITIALLY_SET) {
                    return Err(Errno::EINVAL);
                }
                self.settings.lock().manual_dirty_log = flags as u32;
                Ok(())
            }
            KVM_CAP_MAX_VCPU_ID => {
                let mut s = self.settings.lock();
                let late = s.max_vcpu_id != 0 || !s.vcpu_ids.is_empty();
                let told = late && s.max_vcpu_id != cap.args[0];
                if cap.args[0] > caps::MAX_VCPU_ID || cap.args[0] < s.boot_cpu || told {
                    return Err(Errno::EINVAL);
                }
                s.max_vcpu_id = cap.args[0];
                Ok(())
            }
            KVM_CAP_X86_TRIPLE_FAULT_EVENT => {
                self.settings.lock().events.triple_fault = cap.args[0] != 0;
                Ok(())
            }
            _ => choices::enable(&self.core, &self.settings.lock(), cap),
        }
    }

    fn create_vcpu(&self, id: u64) -> Result<Box<dyn Vcpu>> {
        if id >= caps::MAX_VCPU_ID {
            return Err(Errno::EINVAL);
        }
        let mut s = self.settings.lock();
        if s.max_vcpu_id != 0 && id >= s.max_vcpu_id {
            return Err(Errno::EINVAL);
        }
        if s.vcpu_ids.len() >= caps::MAX_VCPUS {
            return Err(Errno::EINVAL);
        }
        if s.vcpu_ids.contains(&id) {
            return Err(Errno::EEXIST);
        }
        let bootstrap = id == s.boot_cpu;
        let vcpu = SoftVcpu::new(&self.core, id as u32, bootstrap, self.settings.clone());
        s.vcpu_ids.push(id);
        Ok(Box::new(vcpu))
    }

    fn set_user_memory_region(&self, region: &kvm_userspace_memory_region2) -> Result {
        let full = {
            let s = self.settings.lock();
            s.dirty_ring == 0 && s.manual_dirty_log & KVM_DIRTY_LOG_INITIALLY_SET != 0
        };
        memory::set_user_memory_region(&self.core.mmu, region, Self::ADDRESS_SPACES, full)
    }

    fn get_dirty_log(&self, slot: u32) -> Result<Vec<u64>> {
        rings::not_in_use(&self.settings.lock())?;
        let manual = self.settings.lock().manual_dirty_log & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE != 0;
        memory::get_dirty_log(&self.core.mmu, slot, Self::ADDRESS_SPACES, manual)
    }

    fn has_vcpus(&self) -> bool {
        !self.settings.lock().vcpu_ids.is_empty()
    }

    fn check_clear_dirty_log(&self, slot: u32, first_page: u64, pages: u64) -> Result {
        rings::not_in_use(&self.settings.lock())?;
        memory::check_clear(&self.core.mmu, slot, first_page, pages, Self::ADDRESS_SPACES)
    }

    fn clear_dirty_log(&self, slot: u32, first_page: u64, bits: &[u64]) -> Result {
        rings::not_in_use(&self.settings.lock())?;
        memory::clear_dirty_log(&self.core.mmu, slot, first_page, bits, Self::ADDRESS_SPACES)
    }

    fn show_stats(&self, block: Arc<dyn StatsBlock>) -> Result {
        self.core.mmu.set_stats_sink(stats::vm_sink(block));
        Ok(())
    }

    fn dirty_ring_bytes(&self) -> usize {
        self.settings.lock().dirty_ring
    }

    fn reset_dirty_rings(&self) -> Result<u32> {
        rings::reset(&self.core.mmu, &self.settings.lock())
    }

    fn invalidate_hva(&self, start: u64, len: u64) {
        memory::invalidate_hva(&self.core.mmu, start, len);
    }

    fn set_nr_mmu_pages(&self, pages: u64) -> Result {
        // KVM_MIN_ALLOC_MMU_PAGES.
        if pages < 64 {
            return Err(Errno::EINVAL);
        }
        self.core.mmu.set_shadow_page_limit(usize::try_from(pages).unwrap_or(usize::MAX));
        self.core.mmu.show_stats();
        Ok(())
    }

    fn get_nr_mmu_pages(&self) -> Result<u64> {
        Ok(self.core.mmu.shadow_page_limit() as u64)
    }

    fn set_tss_addr(&self, address: u64) -> Result {
        // Three pages below 4 GiB.
        if address > 0xffff_d000 {
            return Err(Errno::EINVAL);
        }
        self.settings.lock().tss_addr = address;
        Ok(())
    }

    fn set_identity_map_addr(&self, address: u64) -> Result {
        let mut s = self.settings.lock();
        if !s.vcpu_ids.is_empty() {
            return Err(Errno::EINVAL);
        }
        s.identity_map_addr = address;
        Ok(())
    }

    fn set_boot_cpu_id(&self, id: u64) -> Result {
        let mut s = self.settings.lock();
        if !s.vcpu_ids.is_empty() {
            return Err(Errno::EBUSY);
        }
        let last = if s.max_vcpu_id == 0 { caps::MAX_VCPU_ID } else { s.max_vcpu_id };
        if id > last {
            return Err(Errno::EINVAL);
        }
        s.boot_cpu = id;
        Ok(())
    }

    fn create_irqchip(&self) -> Result {
        if self.core.has_irqchip() {
            return Err(Errno::EEXIST);
        }
        if self.core.create_irqchip(false) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn get_irqchip(&self, chip: &mut kvm_irqchip) -> Result {
        if !self.full_irqchip() {
            return Err(Errno::ENXIO);
        }
        let id = chip.chip_id;
        self.core
            .with_irqchip(|c| match id {
                KVM_IRQCHIP_PIC_MASTER | KVM_IRQCHIP_PIC_SLAVE => {
                    let state = c.pic().ok_or(Errno::ENXIO)?.state(id == KVM_IRQCHIP_PIC_MASTER);
                    convert::irqchip::pic(chip, &state);
                    Ok(())
                }
                KVM_IRQCHIP_IOAPIC => {
                    let ioapic = c.ioapic().ok_or(Errno::ENXIO)?;
                    convert::irqchip::ioapic(chip, &ioapic.state(), ioapic.saved_irr());
                    Ok(())
                }
                _ => Err(Errno::EINVAL),
            })
            .unwrap_or(Err(Errno::ENXIO))
    }

    fn set_irqchip(&self, chip: &kvm_irqchip) -> Result {
        if !self.full_irqchip() {
            return Err(Errno::ENXIO);
        }
        let messages = self
            .core
            .with_irqchip(|c| match chip.chip_id {
                KVM_IRQCHIP_PIC_MASTER | KVM_IRQCHIP_PIC_SLAVE => {
                    let master = chip.chip_id == KVM_IRQCHIP_PIC_MASTER;
                    c.pic().ok_or(Errno::ENXIO)?.set_state(master, &convert::irqchip::set_pic(chip));
                    Ok(Vec::new())
                }
                KVM_IRQCHIP_IOAPIC => {
                    Ok(c.ioapic().ok_or(Errno::ENXIO)?.reload(&convert::irqchip::set_ioapic(chip)))
                }
                _ => Err(Errno::EINVAL),
            })
            .unwrap_or(Err(Errno::ENXIO))?;
        self.core.carry_out(emu_core::irqchip::Outcome { deliveries: messages, ..Default::default() }, None);
        Ok(())
    }

    fn irq_line(&self, gsi: u32, level: bool) -> Result<i32> {
        self.core.set_irq_line(gsi, SourceId::USERSPACE, level).ok_or(Errno::ENXIO)
    }

    fn create_pit2(&self, config: &kvm_pit_config) -> Result {
        // KVM_PIT_SPEAKER_DUMMY changes nothing here; KVM does not look at other flags.
        let _ = config;
        if !self.full_irqchip() {
            return Err(Errno::ENOENT);
        }
        self.core
            .with_irqchip(|c| {
                if c.pit().is_some() {
                    return Err(Errno::EEXIST);
                }
                c.create_pit();
                Ok(())
            })
            .unwrap_or(Err(Errno::ENOENT))
    }

    fn get_pit2(&self) -> Result<kvm_pit_state2> {
        let now = self.now_ns();
        let pit = |p: &mut emu_core::irqchip::pit::Pit| convert::irqchip::pit(&p.state(), &p.phase(now));
        self.core.with_irqchip(|c| c.pit().map(pit)).flatten().ok_or(Errno::ENXIO)
    }

    fn set_pit2(&self, state: &kvm_pit_state2) -> Result {
        let now = self.now_ns();
        self.core
            .with_irqchip(|c| {
                let phase = convert::irqchip::pit_phase(state);
                c.pit().map(|p| p.reload(&convert::irqchip::set_pit(state), state.flags, phase, now))
            })
            .flatten()
            .ok_or(Errno::ENXIO)?;
        // Halted vCPUs sleep until the old deadline.
        self.core.world().request_all(softmmu::Requests::EVENT);
        Ok(())
    }

    fn reinject_control(&self, reinject: bool) -> Result {
        self.core.with_irqchip(|c| c.pit().map(|p| p.set_reinject(reinject))).flatten().ok_or(Errno::ENXIO)
    }

    fn set_gsi_routing(&self, entries: &[kvm_irq_routing_entry]) -> Result {
        if !self.core.has_irqchip() || entries.len() > MAX_IRQ_ROUTES {
            return Err(Errno::EINVAL);
        }
        // The pins of a split irqchip are the caller's own.
        let pins = entries.iter().any(|e| e.type_ == KVM_IRQ_ROUTING_IRQCHIP);
        if pins && !self.full_irqchip() {
            return Err(Errno::EINVAL);
        }
        let routes = entries.iter().map(convert::irqchip::route).collect::<Result<Vec<_>>>()?;
        let ids = self.settings.lock().x2apic_ids;
        let routing = Routing::new(&routes, ids).map_err(|_| Errno::EINVAL)?;
        self.core.with_irqchip(|c| c.set_routing(routing));
        Ok(())
    }

    fn signal_msi(&self, msi: &kvm_msi) -> Result<i32> {
        if !self.core.has_irqchip() || msi.flags & !KVM_MSI_VALID_DEVID != 0 {
            return Err(Errno::EINVAL);
        }
        let m = Msi { address_lo: msi.address_lo, address_hi: msi.address_hi, data: msi.data };
        self.core.signal_msi(&m).ok_or(Errno::EINVAL)
    }

    fn irqfd(&self, args: &kvm_irqfd) -> Result {
        self.irqfds.irqfd(&self.core, args)
    }

    fn ioeventfd(&self, args: &kvm_ioeventfd) -> Result {
        self.bus.ioeventfd(args)
    }

    fn set_coalesced_ring(&self, ring: Arc<dyn RunPage>) {
        self.bus.set_ring(ring);
    }

    fn coalesced_mmio(&self, zone: &kvm_coalesced_mmio_zone, register: bool) -> Result {
        self.bus.coalesced(zone, register)
    }

    fn set_msr_filter(&self, flags: u32, ranges: Vec<MsrRange>) -> Result {
        let known = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
        if flags & !KVM_MSR_FILTER_DEFAULT_DENY != 0
            || ranges.len() > KVM_MSR_FILTER_MAX_RANGES as usize
            || ranges
                .iter()
                .any(|r| r.flags & !known != 0 || r.flags == 0 || r.bitmap.len() * 8 < r.count as usize)
        {
            return Err(Errno::EINVAL);
        }
        let deny = flags & KVM_MSR_FILTER_DEFAULT_DENY != 0;
        // A filter that denies by default and lists nothing would deny everything: KVM refuses it.
        if deny && ranges.is_empty() {
            return Err(Errno::EINVAL);
        }
        let filter: Option<Arc<dyn emu_core::msr::MsrFilter>> =
            if ranges.is_empty() { None } else { Some(Arc::new(SoftMsrFilter { deny, ranges })) };
        *self.core.msr_filter.write() = filter;
        Ok(())
    }

    fn xen_hvm_config(&self, config: &kvm_xen_hvm_config) -> Result {
        super::xen::config(&self.core, config)
    }

    fn get_clock(&self) -> Result<kvm_clock_data> {
        let host_tsc = self.host_tsc();
        Ok(kvm_clock_data {
            clock: self.core.clock.kvmclock(host_tsc),
            flags: if self.core.clock.is_stable() {
                KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC
            } else {
                0
            },
            realtime: self.core.host.realtime_ns(0),
            host_tsc,
            ..Default::default()
        })
    }

    fn set_clock(&self, data: &kvm_clock_data) -> Result {
        if data.flags & !(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC) != 0 {
            return Err(Errno::EINVAL);
        }
        let mut ns = data.clock;
        if data.flags & KVM_CLOCK_REALTIME != 0 {
            // The time since it was read elsewhere has passed for the guest too.
            ns = ns.wrapping_add(self.core.host.realtime_ns(0).saturating_sub(data.realtime));
        }
        self.core.clock.set_kvmclock(ns, self.host_tsc());
        self.core.clock_changed();
        Ok(())
    }

    fn get_tsc_khz(&self) -> Result<u32> {
        Ok(self.core.clock.default_khz.load(Ordering::Relaxed))
    }

    fn set_tsc_khz(&self, khz: u32) -> Result {
        let s = self.settings.lock();
        let host = self.core.clock.host_khz;
        let khz = if khz == 0 { host } else { khz };
        if !s.vcpu_ids.is_empty() || emu_core::clock::tsc::ratio(khz, host).is_none() {
            return Err(Errno::EINVAL);
        }
        self.core.clock.default_khz.store(khz, Ordering::Relaxed);
        Ok(())
    }
}
