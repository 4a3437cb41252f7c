//! Interrupt controllers as part of the VM: who is told what, and under which lock.
//!
//! The state machines are in [`crate::irqchip`]. Here they get their locks (one for the [`IrqChip`], one
//! for each [`Lapic`], never two together), their messages are carried, and the vCPUs are woken.

use crate::clock::Now;
use crate::event::Activity;
use crate::exit::Result;
use crate::io::Write;
use crate::irqchip::delivery::{Delivery, LapicBus, deliver};
use crate::irqchip::lapic::{Accepted, Lapic, LapicConfig, LapicEffect};
use crate::irqchip::routing::Msi;
use crate::irqchip::{IrqChip, LineStatus, Outcome, SourceId};
use crate::quirks::Quirks;
use crate::vcpu::{ATTENTION_EVENT, ATTENTION_IO, RIP, Vcpu};
use crate::vm::{VcpuShared, Vm};
use parking_lot::{Mutex, MutexGuard};
use softmmu::Requests;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use x86_arch::msr;
use x86_arch::{Gpa, Rflags, Seg, Selector};

/// No PIT deadline.
const NEVER: u64 = u64::MAX;

/// Told of GSIs whose interrupt ended: resampling irqfds.
pub type AckHook = Box<dyn Fn(u32) + Send + Sync>;

/// Controllers that the VM has inside.
pub struct IrqState {
    chip: OnceLock<Mutex<IrqChip>>,
    /// When the PIT ticks next, so that vCPUs need not lock to find out.
    pit_deadline: AtomicU64,
    ack_hook: OnceLock<AckHook>,
    /// Nanoseconds in a cycle of the APIC bus, for vCPUs made from now on (KVM_CAP_X86_APIC_BUS_CYCLES_NS).
    pub bus_cycle_ns: AtomicU32,
}

impl Default for IrqState {
    fn default() -> Self {
        IrqState {
            chip: OnceLock::new(),
            pit_deadline: AtomicU64::new(NEVER),
            ack_hook: OnceLock::new(),
            bus_cycle_ns: AtomicU32::new(1),
        }
    }
}

/// What a vCPU has of them: its local APIC, if those are inside.
#[derive(Default)]
pub struct VcpuIrq {
    lapic: OnceLock<Mutex<Lapic>>,
}

impl VcpuIrq {
    /// The local APIC, locked.
    pub fn lapic(&self) -> Option<MutexGuard<'_, Lapic>> {
        self.lapic.get().map(|l| l.lock())
    }
}

/// The local APICs of a VM, for message delivery.
struct Lapics<'a>(&'a [Arc<VcpuShared>]);

impl LapicBus for Lapics<'_> {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn with_lapic(&self, index: usize, f: &mut dyn FnMut(&mut Lapic)) {
        if let Some(mut lapic) = self.0.get(index).and_then(|v| v.irq.lapic()) {
            f(&mut lapic);
        }
    }

    fn kick(&self, index: usize, _: Accepted) {
        if let Some(v) = self.0.get(index) {
            v.gate.request(Requests::EVENT);
        }
    }
}

impl Vm {
    /// KVM_CREATE_IRQCHIP, or KVM_CAP_SPLIT_IRQCHIP with `split`. False: there is one already, or there are vCPUs.
    pub fn create_irqchip(&self, split: bool) -> bool {
        let chip = if split { IrqChip::split() } else { IrqChip::full() };
        self.vcpus.read().is_empty() && self.irq.chip.set(Mutex::new(chip)).is_ok()
    }

    /// Whether the interrupt controllers (or at least the local APICs) are inside.
    pub fn has_irqchip(&self) -> bool {
        self.irq.chip.get().is_some()
    }

    /// Called with each GSI whose interrupt ended and that has a resampling irqfd. Can be set once.
    pub fn set_ack_hook(&self, hook: AckHook) -> bool {
        self.irq.ack_hook.set(hook).is_ok()
    }

    /// Runs `f` on the controllers under their lock; `None` if they are not inside.
    /// For reading and writing state: what an operation returns as [`Outcome`] goes to [`Vm::carry_out`].
    pub fn with_irqchip<R>(&self, f: impl FnOnce(&mut IrqChip) -> R) -> Option<R> {
        let mut chip = self.irq.chip.get()?.lock();
        let r = f(&mut chip);
        self.irq.pit_deadline.store(chip.deadline().unwrap_or(NEVER), Ordering::Release);
        Some(r)
    }

    /// Drives a GSI. `None`: no controllers inside.
    pub fn set_irq_line(&self, gsi: u32, source: SourceId, level: bool) -> Option<i32> {
        let outcome = self.with_irqchip(|c| c.set_irq(gsi, source, level))?;
        Some(self.carry_out(outcome, None))
    }

    /// Sends a message-signalled interrupt. `None`: no controllers inside, or an invalid address.
    pub fn signal_msi(&self, msi: &Msi) -> Option<i32> {
        let delivery = self.with_irqchip(|c| c.signal_msi(msi))??;
        Some(self.send(&delivery, None))
    }

    /// Brings one message to the local APICs; the caller holds no lock of a controller.
    pub fn send(&self, delivery: &Delivery, sender: Option<usize>) -> i32 {
        let result = {
            let vcpus = self.vcpus.read();
            deliver(delivery, sender, &Lapics(&vcpus))
        };
        self.with_irqchip(|c| c.delivered(delivery, result));
        result.status()
    }

    /// Does what an operation on the controllers asked for. Returns the line's status with the deliveries' part.
    pub fn carry_out(&self, outcome: Outcome, sender: Option<usize>) -> i32 {
        let mut status = outcome.status;
        for d in &outcome.deliveries {
            status = status.and(LineStatus::delivered(self.send(d, sender)));
        }
        if let Some(hook) = self.irq.ack_hook.get() {
            for &gsi in &outcome.acked {
                hook(gsi);
            }
        }
        if outcome.pit_tick {
            for v in self.vcpus.read().iter() {
                let accepted = v.irq.lapic().map(|mut l| l.watchdog_tick());
                if accepted.is_some_and(|a| a != Accepted::Refused) {
                    v.gate.request(Requests::EVENT);
                }
            }
        }
        // The wire from the PICs: who listens may have to look.
        if self.with_irqchip(|c| c.int_pending()) == Some(true) {
            for v in self.vcpus.read().iter() {
                if v.irq.lapic().is_some_and(|l| l.accepts_extint()) {
                    v.gate.request(Requests::EVENT);
                }
            }
        }
        status.value()
    }

    /// Lets the PIT tick if its time has come.
    pub fn poll_pit(&self, now_ns: u64) {
        if now_ns >= self.irq.pit_deadline.load(Ordering::Acquire)
            && let Some(outcome) = self.with_irqchip(|c| c.expire(now_ns))
        {
            self.carry_out(outcome, None);
        }
    }
}

impl Vm {
    /// User space has switched quirks off: what the local APICs have to know.
    pub fn quirks_changed(&self) {
        let lint0_reenabled = self.choices.has(Quirks::LINT0_REENABLED);
        for v in self.vcpus.read().iter() {
            if let Some(mut l) = v.irq.lapic() {
                let config = LapicConfig { lint0_reenabled, ..*l.config() };
                l.set_config(config);
            }
        }
    }
}

impl Vcpu {
    /// Makes the local APIC, if the controllers are inside. At creation.
    pub(crate) fn create_lapic(&mut self, bootstrap: bool) {
        if self.vm.has_irqchip() {
            let config = LapicConfig {
                bus_cycle_ns: self.vm.irq.bus_cycle_ns.load(Ordering::Relaxed),
                lint0_reenabled: self.vm.choices.has(Quirks::LINT0_REENABLED),
                ..LapicConfig::new(self.shared.id, bootstrap)
            };
            let _ = self.shared.irq.lapic.set(Mutex::new(Lapic::new(config)));
        }
    }

    /// CPUID has changed: what it says about the local APIC.
    pub fn lapic_cpuid_changed(&mut self) {
        let split = self.vm.with_irqchip(|c| c.is_split()) == Some(true);
        let (x2apic, deadline, width) = (
            self.cpuid.has(x86_arch::cpuid::X2APIC),
            self.cpuid.has(x86_arch::cpuid::TSC_DEADLINE),
            self.cpuid.maxphyaddr(),
        );
        if let Some(mut l) = self.shared.irq.lapic() {
            let config = LapicConfig {
                x2apic,
                tsc_deadline: deadline,
                maxphyaddr: width,
                directed_eoi: split,
                ..*l.config()
            };
            l.set_config(config);
        }
    }

    /// The moment, as the devices see it.
    pub fn device_now(&self) -> Now {
        Now { ns: self.now_ns(), tsc: self.guest_tsc(), tsc_khz: self.clock.tsc.khz }
    }

    /// Takes the interrupt of highest priority from the controllers inside.
    pub fn acknowledge_interrupt(&mut self) -> Option<u8> {
        let vm = self.vm.clone();
        let extint = self.shared.irq.lapic()?.accepts_extint();
        if extint && vm.with_irqchip(|c| c.int_pending()) == Some(true) {
            let (vector, outcome) = vm.with_irqchip(|c| c.pic_ack())??;
            vm.carry_out(outcome, Some(self.shared.index));
            return Some(vector);
        }
        self.shared.irq.lapic()?.ack()
    }

    /// Whether a maskable interrupt waits in the controllers inside.
    pub fn interrupt_pending(&self) -> bool {
        let Some(lapic) = self.shared.irq.lapic() else { return false };
        if lapic.highest_pending().is_some() {
            return true;
        }
        let extint = lapic.accepts_extint();
        drop(lapic);
        extint && self.vm.with_irqchip(|c| c.int_pending()) == Some(true)
    }

    /// Whether an event is there that ends HLT.
    pub fn wakes_from_halt(&mut self) -> bool {
        let e = &self.events;
        if e.exception.is_some()
            || (e.nmi_pending > 0 && !e.nmi_masked)
            || ((e.smi_pending || e.init_pending) && !e.smm)
            || self.pv.unhalted
        {
            return true;
        }
        self.flag(Rflags::IF) && (self.events.interrupt.is_some() || self.interrupt_pending())
    }

    /// Takes NMI, SMI, INIT, SIPI and kicks that the local APIC has latched.
    pub fn take_apic_events(&mut self) {
        let Some(pending) = self.shared.irq.lapic().map(|mut l| l.take_pending()) else { return };
        if !pending.any() {
            return;
        }
        let e = &mut self.events;
        e.nmi_pending = (e.nmi_pending + pending.nmi).min(2);
        e.smi_pending |= pending.smi;
        if pending.init {
            e.init_pending = true;
            e.sipi_vector = None;
        }
        if pending.sipi.is_some() {
            e.sipi_vector = pending.sipi;
        }
        self.pv.unhalted |= pending.unhalt;
    }

    /// INIT and SIPI, as the activity allows (SDM vol. 3A, 8.4).
    pub fn accept_init_and_sipi(&mut self) {
        self.take_apic_events();
        if self.events.init_pending && !self.events.smm {
            let sipi = self.events.sipi_vector;
            self.reset(true);
            if let Some(mut l) = self.shared.irq.lapic() {
                l.init_reset();
            }
            self.events.sipi_vector = sipi;
            self.events.activity =
                if self.shared.bootstrap { Activity::Runnable } else { Activity::InitReceived };
        }
        if let Some(vector) = self.events.sipi_vector
            && self.events.activity == Activity::InitReceived
        {
            let mut cs = *self.segment(Seg::Cs);
            cs.selector = Selector((vector as u16) << 8);
            cs.base = (vector as u64) << 12;
            self.set_segment(Seg::Cs, cs);
            self.hot.regs[RIP] = 0;
            self.events.activity = Activity::Runnable;
        }
        if self.events.activity != Activity::InitReceived && self.events.activity != Activity::Uninitialized {
            self.events.sipi_vector = None;
        }
    }

    /// Lets timers fire whose time has come.
    pub fn poll_timers(&mut self) {
        if !self.vm.has_irqchip() {
            return;
        }
        let now = self.device_now();
        self.vm.poll_pit(now.ns);
        if let Some(mut l) = self.shared.irq.lapic()
            && l.timer_deadline(&now).is_some_and(|d| d <= now.ns)
        {
            l.timer_expire(&now);
        }
    }

    /// When the next timer fires, in nanoseconds of [`Vcpu::now_ns`].
    pub fn next_deadline(&self) -> Option<u64> {
        let now = self.device_now();
        let lapic = self.shared.irq.lapic().and_then(|l| l.timer_deadline(&now));
        let pit = self.vm.irq.pit_deadline.load(Ordering::Acquire);
        match (lapic, pit) {
            (d, NEVER) => d,
            (d, p) => Some(d.unwrap_or(p).min(p)),
        }
    }

    /// Does what a local APIC register access asked for.
    pub(crate) fn apic_effect(&mut self, effect: LapicEffect) {
        match effect {
            LapicEffect::None => return,
            LapicEffect::Recheck | LapicEffect::Timer => {}
            LapicEffect::Ipi(ipi) => {
                self.vm.send(&ipi, Some(self.shared.index));
            }
            LapicEffect::Eoi(eoi) => {
                let vm = self.vm.clone();
                let index = self.shared.index;
                if let Some((told, outcome)) = vm.with_irqchip(|c| (c.tells_eoi(&eoi), c.eoi(&eoi))) {
                    if told {
                        self.io.writes.push_back(Write::IoapicEoi { vector: eoi.vector });
                        self.attend(ATTENTION_IO);
                    }
                    vm.carry_out(outcome, Some(index));
                }
            }
        }
        self.attend(ATTENTION_EVENT);
    }

    /// A read by a device inside: the local APIC's page, the IOAPIC.
    pub fn device_mmio_read(&mut self, gpa: Gpa, data: &mut [u8]) -> bool {
        let now = self.device_now();
        if self.lapic_page(gpa) {
            self.before_lapic_access(gpa.page_offset(), false);
        }
        self.settle_pv_eoi();
        if let Some(mut l) = self.shared.irq.lapic()
            && l.mmio_base() == Some(gpa.page_base().0)
        {
            l.mmio_read(gpa.page_offset(), data, &now);
            return true;
        }
        if self.in_lapic_hole(gpa) {
            data.fill(0xff);
            return true;
        }
        self.vm
            .with_irqchip(|c| match c.ioapic_offset(gpa.0) {
                Some(offset) => {
                    c.ioapic_read(offset, data);
                    true
                }
                None => false,
            })
            .unwrap_or(false)
    }

    /// Where the page of a local APIC lies that is disabled or in x2APIC mode, and nobody else is asked.
    fn in_lapic_hole(&self, gpa: Gpa) -> bool {
        self.vm.choices.has(Quirks::LAPIC_MMIO_HOLE)
            && self.shared.irq.lapic().is_some_and(|l| {
                l.mmio_base().is_none() && l.apic_base() & self.maxphyaddr_page_mask() == gpa.page_base().0
            })
    }

    /// The bits of a page's address.
    fn maxphyaddr_page_mask(&self) -> u64 {
        (1u64 << self.cpuid.maxphyaddr().clamp(32, 52)) - x86_arch::PAGE_SIZE
    }

    /// A write that a device inside takes.
    pub fn device_mmio_write(&mut self, gpa: Gpa, data: &[u8]) -> bool {
        let now = self.device_now();
        if self.lapic_page(gpa) {
            self.before_lapic_access(gpa.page_offset(), true);
        }
        self.settle_pv_eoi();
        let effect = match self.shared.irq.lapic() {
            Some(mut l) if l.mmio_base() == Some(gpa.page_base().0) => {
                Some(l.mmio_write(gpa.page_offset(), data, &now))
            }
            _ => None,
        };
        if let Some(effect) = effect {
            self.vapic_to_guest();
            self.apic_effect(effect);
            return true;
        }
        if self.in_lapic_hole(gpa) {
            return true;
        }
        let vm = self.vm.clone();
        let outcome =
            vm.with_irqchip(|c| c.ioapic_offset(gpa.0).map(|offset| c.ioapic_write(offset, data))).flatten();
        if let Some(outcome) = outcome {
            vm.carry_out(outcome, Some(self.shared.index));
            self.attend(ATTENTION_EVENT);
            return true;
        }
        let bus = vm.bus.read().clone();
        let taken = bus.mmio_write(gpa.0, data);
        self.after_bus(taken)
    }

    /// A port read that a device inside answers. The chips' ports are a byte wide: the first byte decides.
    pub fn device_pio_read(&mut self, port: u16, data: &mut [u8]) -> bool {
        let vm = self.vm.clone();
        let now = self.now_ns();
        let mut outcomes = Vec::new();
        let taken = vm.with_irqchip(|c| {
            for (k, byte) in data.iter_mut().enumerate() {
                match c.pio_read(port.wrapping_add(k as u16), now) {
                    Some((value, outcome)) => {
                        *byte = value;
                        outcomes.push(outcome);
                    }
                    None if k == 0 => return false,
                    None => *byte = 0xff,
                }
            }
            true
        });
        for o in outcomes {
            vm.carry_out(o, Some(self.shared.index));
        }
        taken.unwrap_or(false)
    }

    /// A port write that a device inside takes.
    pub fn device_pio_write(&mut self, port: u16, data: &[u8]) -> bool {
        let vm = self.vm.clone();
        let now = self.now_ns();
        let mut outcomes = Vec::new();
        let taken = vm.with_irqchip(|c| {
            for (k, byte) in data.iter().enumerate() {
                match c.pio_write(port.wrapping_add(k as u16), *byte, now) {
                    Some(outcome) => outcomes.push(outcome),
                    None if k == 0 => return false,
                    None => {}
                }
            }
            true
        });
        for o in outcomes {
            vm.carry_out(o, Some(self.shared.index));
        }
        if taken == Some(true) {
            self.attend(ATTENTION_EVENT);
            return true;
        }
        let bus = vm.bus.read().clone();
        let taken = bus.pio_write(port, data);
        self.after_bus(taken)
    }

    /// A device outside was told something, and may write guest memory by now: no decoded block is trusted.
    fn after_bus(&mut self, taken: bool) -> bool {
        if taken {
            self.mmu.drop_exec_tags();
            self.attend(ATTENTION_EVENT);
        }
        taken
    }

    /// A write to CR8 whose reserved bits the caller has checked: the APIC's TPR where it is inside.
    pub fn write_cr8(&mut self, v: u64) -> Result {
        self.settle_pv_eoi();
        let inside = match self.shared.irq.lapic() {
            Some(mut l) => {
                l.set_cr8(v as u8 & 15);
                true
            }
            None => false,
        };
        self.vapic_to_guest();
        if !inside {
            let lowered = v & 15 < self.cr8;
            self.cr8 = v & 15;
            // User space has the APIC: a lower priority may let an interrupt through (KVM_EXIT_SET_TPR).
            if lowered {
                self.io.writes.push_back(Write::SetTpr);
                self.attend(ATTENTION_IO);
            }
        }
        self.attend(ATTENTION_EVENT);
        Ok(())
    }

    /// CR8.
    pub fn read_cr8(&self) -> u64 {
        self.shared.irq.lapic().map_or(self.cr8, |l| l.cr8() as u64)
    }

    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC range. `None`: not one of these, or no local
    /// APIC inside.
    pub fn lapic_msr_read(&mut self, index: u32) -> Option<Result<u64>> {
        self.settle_pv_eoi();
        let now = self.device_now();
        let mut l = self.shared.irq.lapic()?;
        Some(match index {
            msr::IA32_APIC_BASE => Ok(l.apic_base()),
            msr::IA32_TSC_DEADLINE => Ok(l.tsc_deadline()),
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => l.read_x2apic_msr(index, &now).map_err(Into::into),
            _ => return None,
        })
    }

    /// WRMSR of the same. `host`: from KVM_SET_MSRS or KVM_SET_SREGS, whose rules for IA32_APIC_BASE are laxer.
    pub fn lapic_msr_write(&mut self, index: u32, value: u64, host: bool) -> Option<Result> {
        self.settle_pv_eoi();
        let now = self.device_now();
        let effect = {
            let mut l = self.shared.irq.lapic()?;
            match index {
                msr::IA32_APIC_BASE => {
                    let r = if host { l.set_apic_base(value) } else { l.write_apic_base(value) };
                    r.map(|()| LapicEffect::Recheck)
                }
                msr::IA32_TSC_DEADLINE => {
                    l.set_tsc_deadline(value);
                    Ok(LapicEffect::Timer)
                }
                msr::X2APIC_FIRST..=msr::X2APIC_LAST => l.write_x2apic_msr(index, value, &now),
                _ => return None,
            }
        };
        Some(match effect {
            Ok(e) => {
                self.apic_effect(e);
                Ok(())
            }
            Err(e) => Err(e.into()),
        })
    }

    /// An NMI from user space (KVM_NMI): queued as it is. Whether LINT1 lets it through is user space's to ask
    /// (KVM api, KVM_NMI).
    pub fn user_nmi(&mut self) {
        self.events.nmi_pending = (self.events.nmi_pending + 1).min(2);
        self.attend(ATTENTION_EVENT);
    }
}
