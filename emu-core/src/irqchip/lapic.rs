//! The local APIC of one vCPU: identity, modes, priorities, acceptance, reset and state.
//!
//! A pure state machine: it reads no clock, starts no timer and wakes nobody. Time comes in as [`Now`], and what the
//! outside must do comes back as a [`LapicEffect`] or [`Accepted`]. The registers as the guest sees them (the xAPIC
//! page, the x2APIC MSRs) are in `registers`, the timer in `timer`, saving and restoring in `state`. Who receives a message is decided in
//! [`super::delivery`].
//!
//! SDM vol. 3A, chapter 10; where the SDM leaves a choice, KVM's in-kernel local APIC decides.

mod registers;
mod state;
mod timer;

#[cfg(test)]
mod tests;

pub use registers::LapicEffect;
pub use state::{IdFormat, LapicState, PAGE_BYTES, WrongApicId};
pub use timer::TimerState;

use super::delivery::{Delivery, DeliveryMode, Trigger};
use crate::clock::Now;
use x86_arch::Exception;
use x86_arch::apic::*;

/// IA32_APIC_BASE: the bits that carry no address and no meaning. Bit 8 (BSP) may be written, as under KVM.
const APIC_BASE_RESERVED: u64 = 0x2ff;
/// APIC version 0x14: an integrated APIC with the features of the Pentium 4 and later.
const LAPIC_VERSION: u32 = 0x14;
/// Entries in the local vector table: timer, thermal, performance, LINT0, LINT1, error. CMCI is one more.
const LVT_ENTRIES: usize = 6;
/// Version register: EOI-broadcast suppression is supported (SDM vol. 3A, 10.4.8).
const VERSION_DIRECTED_EOI: u32 = 1 << 24;
/// Spurious-vector register: the APIC is enabled by software.
const SVR_ENABLED: u32 = 1 << 8;
/// Spurious-vector register: EOI-broadcast suppression.
const SVR_DIRECTED_EOI: u32 = 1 << 12;
/// LVT: level trigger (LINT0 and LINT1).
const LVT_LEVEL: u32 = 1 << 15;
/// Destination format: flat model.
const DFR_FLAT: u32 = 0xffff_ffff;
/// ESR: an IPI with an illegal vector was to be sent.
pub const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// ESR: a message or a local source carried an illegal vector.
pub const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// ESR: an access to a register that does not exist.
pub const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;
/// Errors seen since the last write to the ESR live in the padding after it. The guest cannot reach the padding, and
/// KVM_GET_LAPIC's image then needs nothing beside it.
const ESR_ACCUMULATED: u32 = APIC_ESR + 4;
/// Nanoseconds by which the current count in KVM_GET_LAPIC's image is too long, a count being whole ticks: in the padding
/// after it. KVM leaves it zero.
const TIMER_SURPLUS: u32 = APIC_TIMER_CURRENT + 4;
/// Vectors below this are illegal for fixed interrupts.
const FIRST_LEGAL_VECTOR: u8 = 16;
/// NMIs wait at most two deep: one being handled and one latched.
const NMI_LIMIT: u8 = 2;

/// The local vector table, all but the timer's mode: (register, writable bits).
/// SDM vol. 3A, figure 10-8. Delivery status and Remote IRR are read-only.
pub(super) const LVT: [(u32, u32); LVT_ENTRIES + 1] = [
    (APIC_LVT_TIMER, LVT_MASKED | 0xff),
    (APIC_LVT_THERMAL, LVT_MASKED | 0x7ff),
    (APIC_LVT_PERF, LVT_MASKED | 0x7ff),
    (APIC_LVT_LINT0, LVT_MASKED | LVT_LEVEL | 0x27ff),
    (APIC_LVT_LINT1, LVT_MASKED | LVT_LEVEL | 0x27ff),
    (APIC_LVT_ERROR, LVT_MASKED | 0xff),
    (APIC_LVT_CMCI, LVT_MASKED | 0x7ff),
];

/// What the VMM and CPUID say about a local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LapicConfig {
    /// The vCPU's id: its x2APIC ID, and (low 8 bits) its initial xAPIC ID.
    pub vcpu_id: u32,
    /// Bootstrap processor.
    pub bsp: bool,
    /// CPUID.1:ECX.x2APIC. Without it EXTD is a reserved bit of IA32_APIC_BASE.
    pub x2apic: bool,
    /// CPUID.1:ECX.TSC_Deadline.
    pub tsc_deadline: bool,
    /// EOI-broadcast suppression is offered. KVM offers it only where the IOAPIC is userspace's.
    pub directed_eoi: bool,
    /// CPUID.80000008H:EAX, bits 7:0: bits of IA32_APIC_BASE above it are reserved.
    pub maxphyaddr: u8,
    /// LINT0 of the bootstrap processor leaves reset as ExtINT, unmasked (KVM_X86_QUIRK_LINT0_REENABLED).
    pub lint0_reenabled: bool,
    /// IA32_MCG_CAP.MCG_CMCI_P: the LVT has an entry for corrected machine checks.
    pub cmci: bool,
    /// Nanoseconds in a cycle of the APIC bus, which the timer counts (KVM_CAP_X86_APIC_BUS_CYCLES_NS).
    pub bus_cycle_ns: u32,
}

impl LapicConfig {
    /// What KVM gives to a vCPU by default.
    pub const fn new(vcpu_id: u32, bsp: bool) -> LapicConfig {
        LapicConfig {
            vcpu_id,
            bsp,
            x2apic: true,
            tsc_deadline: true,
            directed_eoi: false,
            maxphyaddr: 46,
            lint0_reenabled: true,
            cmci: false,
            bus_cycle_ns: 1,
        }
    }
}

/// The modes of a local APIC (SDM vol. 3A, table 10-5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicMode {
    /// EN=0.
    Disabled,
    /// EN=1, EXTD=0: registers in memory.
    XApic,
    /// EN=1, EXTD=1: registers are MSRs.
    X2Apic,
}

/// The mode that a value of IA32_APIC_BASE selects; `None` for EN=0, EXTD=1.
pub const fn apic_mode(base: u64) -> Option<ApicMode> {
    match (base & APIC_BASE_ENABLE != 0, base & APIC_BASE_X2APIC != 0) {
        (false, false) => Some(ApicMode::Disabled),
        (true, false) => Some(ApicMode::XApic),
        (true, true) => Some(ApicMode::X2Apic),
        (false, true) => None,
    }
}

/// The mode that a write of IA32_APIC_BASE selects; `None` for reserved bits or EN=0, EXTD=1 (SDM vol. 3A, 10.4.4).
pub const fn checked_apic_base(value: u64, maxphyaddr: u8, x2apic: bool) -> Option<ApicMode> {
    let above = if maxphyaddr < 64 { u64::MAX << maxphyaddr } else { 0 };
    let extd = if x2apic { 0 } else { APIC_BASE_X2APIC };
    if value & (APIC_BASE_RESERVED & !APIC_BASE_BSP | above | extd) != 0 {
        return None;
    }
    apic_mode(value)
}

/// What a local APIC did with a message or a local source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accepted {
    /// Nothing: disabled, masked, de-asserted, or not for a local APIC to take.
    Refused,
    /// The vector is in the IRR.
    Queued,
    /// An NMI is in [`PendingEvents::nmi`].
    Nmi,
    /// An SMI is in [`PendingEvents::smi`].
    Smi,
    /// An INIT is in [`PendingEvents::init`].
    Init,
    /// A SIPI is in [`PendingEvents::sipi`].
    StartUp,
    /// The 8259's interrupt may now be taken ([`Lapic::accepts_extint`]).
    ExtInt,
    /// A paravirtual kick is in [`PendingEvents::unhalt`].
    Unhalt,
}

/// Events that are not vectors, waiting for the vCPU to take them.
///
/// KVM_GET_VCPU_EVENTS and KVM_GET_MP_STATE report them as the vCPU's own; the vCPU takes them over before it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PendingEvents {
    /// NMIs, at most two.
    pub nmi: u8,
    /// An SMI.
    pub smi: bool,
    /// An INIT.
    pub init: bool,
    /// The vector of the last SIPI. Means something only to a vCPU that waits for one.
    pub sipi: Option<u8>,
    /// A paravirtual kick (KVM_HC_KICK_CPU).
    pub unhalt: bool,
}

impl PendingEvents {
    /// Whether anything waits.
    pub const fn any(&self) -> bool {
        self.nmi != 0 || self.smi || self.init || self.sipi.is_some() || self.unhalt
    }
}

/// The local sources of interrupts: the rows of the local vector table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LocalSource {
    /// The APIC timer.
    Timer,
    /// The thermal sensor.
    Thermal,
    /// Performance counters. Delivery masks the entry.
    Performance,
    /// The LINT0 pin.
    Lint0,
    /// The LINT1 pin.
    Lint1,
    /// An internal error.
    Error,
    /// A machine check that needs no action at once (SDM vol. 3B, 15.5).
    Cmci,
}

impl LocalSource {
    const fn register(self) -> u32 {
        match self {
            LocalSource::Timer => APIC_LVT_TIMER,
            LocalSource::Thermal => APIC_LVT_THERMAL,
            LocalSource::Performance => APIC_LVT_PERF,
            LocalSource::Lint0 => APIC_LVT_LINT0,
            LocalSource::Lint1 => APIC_LVT_LINT1,
            LocalSource::Error => APIC_LVT_ERROR,
            LocalSource::Cmci => APIC_LVT_CMCI,
        }
    }
}

/// An end of interrupt that left the local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Eoi {
    /// The vector that was in service.
    pub vector: u8,
    /// It was accepted as level-triggered: the IOAPIC waits for it.
    pub level: bool,
    /// The EOI is broadcast. False if software suppresses it (SVR bit 12); then the guest writes the IOAPIC's own
    /// EOI register.
    pub broadcast: bool,
}

/// Doublewords in the 1 KiB of the register page that has registers.
pub const PAGE_WORDS: usize = 256;

/// One local APIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lapic {
    config: LapicConfig,
    apic_base: u64,
    page: [u32; PAGE_WORDS],
    timer: TimerState,
    pending: PendingEvents,
}

impl Lapic {
    /// A local APIC after power-up: xAPIC mode at the default base, disabled by software.
    pub fn new(config: LapicConfig) -> Lapic {
        let mut lapic = Lapic {
            config,
            apic_base: 0,
            page: [0; PAGE_WORDS],
            timer: TimerState::default(),
            pending: PendingEvents::default(),
        };
        lapic.reset();
        lapic
    }

    // Registers are stored in doublewords; an offset is one of our constants or was checked against them, and the
    // mask keeps the index in bounds whatever it is.
    pub(super) fn reg(&self, offset: u32) -> u32 {
        self.page[(offset >> 2) as usize & (PAGE_WORDS - 1)]
    }

    pub(super) fn set_reg(&mut self, offset: u32, value: u32) {
        self.page[(offset >> 2) as usize & (PAGE_WORDS - 1)] = value;
    }

    // ---- Reset, configuration, mode -------------------------------------------------------------------------------

    /// Power-up reset (SDM vol. 3A, 10.4.7.1).
    pub fn reset(&mut self) {
        self.apic_base =
            APIC_DEFAULT_BASE | APIC_BASE_ENABLE | if self.config.bsp { APIC_BASE_BSP } else { 0 };
        self.pending = PendingEvents::default();
        self.reset_registers();
        self.set_xapic_id();
    }

    /// What an INIT leaves (SDM vol. 3A, 10.4.7.3): as power-up, but IA32_APIC_BASE and the APIC ID stay, and so does
    /// anything still pending in `pending`, of which the vCPU has taken the INIT itself.
    pub fn init_reset(&mut self) {
        let (id, ldr) = (self.reg(APIC_ID), self.reg(APIC_LDR));
        self.reset_registers();
        self.set_reg(APIC_ID, id);
        if self.mode() == ApicMode::X2Apic {
            self.set_reg(APIC_LDR, ldr);
        }
    }

    fn reset_registers(&mut self) {
        self.page = [0; PAGE_WORDS];
        self.timer = TimerState::default();
        self.set_version();
        for &(register, _) in self.lvt() {
            self.set_reg(register, LVT_MASKED);
        }
        if self.config.bsp && self.config.lint0_reenabled {
            self.set_reg(APIC_LVT_LINT0, DELIVERY_EXTINT << 8);
        }
        self.set_reg(APIC_DFR, DFR_FLAT);
        self.set_reg(APIC_SVR, 0xff);
    }

    /// The rows of the local vector table that this local APIC has.
    pub(super) fn lvt(&self) -> &'static [(u32, u32)] {
        if self.config.cmci { &LVT } else { LVT.split_at(LVT_ENTRIES).0 }
    }

    fn set_version(&mut self) {
        let directed_eoi = if self.config.directed_eoi { VERSION_DIRECTED_EOI } else { 0 };
        // At most 7 entries.
        let last = self.lvt().len() as u32 - 1;
        self.set_reg(APIC_VERSION, LAPIC_VERSION | last << 16 | directed_eoi);
    }

    fn set_xapic_id(&mut self) {
        self.set_reg(APIC_ID, self.config.vcpu_id << 24);
    }

    fn set_x2apic_id(&mut self) {
        let id = self.config.vcpu_id;
        self.set_reg(APIC_ID, id);
        self.set_reg(APIC_LDR, x2apic_ldr(id));
    }

    /// The configuration.
    pub const fn config(&self) -> &LapicConfig {
        &self.config
    }

    /// Takes over a new configuration (KVM_SET_CPUID2, KVM_SET_BOOT_CPU_ID, KVM_X86_SETUP_MCE, a capability). Registers
    /// stay as they are, but for the version, and a new entry of the LVT, which is masked.
    pub fn set_config(&mut self, config: LapicConfig) {
        let had_cmci = core::mem::replace(&mut self.config, config).cmci;
        if config.cmci && !had_cmci {
            self.set_reg(APIC_LVT_CMCI, LVT_MASKED);
        }
        self.set_version();
    }

    /// IA32_APIC_BASE.
    pub const fn apic_base(&self) -> u64 {
        self.apic_base
    }

    /// Where the xAPIC page lies in guest physical memory, if it is there: `None` when disabled or in x2APIC mode.
    pub fn mmio_base(&self) -> Option<u64> {
        (self.mode() == ApicMode::XApic).then_some(self.apic_base & !0xfff)
    }

    /// The mode.
    pub const fn mode(&self) -> ApicMode {
        match apic_mode(self.apic_base) {
            Some(mode) => mode,
            None => ApicMode::Disabled,
        }
    }

    /// Enabled in IA32_APIC_BASE: it can be addressed at all.
    pub const fn is_present(&self) -> bool {
        self.apic_base & APIC_BASE_ENABLE != 0
    }

    /// Enabled in IA32_APIC_BASE and in the spurious-vector register: it takes fixed interrupts.
    pub fn is_software_enabled(&self) -> bool {
        self.is_present() && self.reg(APIC_SVR) & SVR_ENABLED != 0
    }

    /// WRMSR IA32_APIC_BASE by the guest: illegal bits and illegal transitions are #GP (SDM vol. 3A, 10.12.5).
    pub fn write_apic_base(&mut self, value: u64) -> Result<(), Exception> {
        let new = self.checked_mode(value).ok_or(Exception::GP0)?;
        match (self.mode(), new) {
            (ApicMode::X2Apic, ApicMode::XApic) | (ApicMode::Disabled, ApicMode::X2Apic) => {
                return Err(Exception::GP0);
            }
            (ApicMode::XApic | ApicMode::X2Apic, ApicMode::Disabled) => {
                // SDM vol. 3A, 10.4.3: what was set up before is lost.
                self.reset_registers();
                self.set_xapic_id();
            }
            _ => {}
        }
        self.apply_apic_base(value);
        Ok(())
    }

    /// IA32_APIC_BASE from the VMM (KVM_SET_SREGS, KVM_SET_MSRS): any transition, but no illegal value. `Err` is the
    /// caller's EINVAL.
    pub fn set_apic_base(&mut self, value: u64) -> Result<(), Exception> {
        self.checked_mode(value).ok_or(Exception::GP0)?;
        self.apply_apic_base(value);
        Ok(())
    }

    fn checked_mode(&self, value: u64) -> Option<ApicMode> {
        checked_apic_base(value, self.config.maxphyaddr, self.config.x2apic)
    }

    fn apply_apic_base(&mut self, value: u64) {
        let old = core::mem::replace(&mut self.apic_base, value);
        let enabled = (old ^ value) & APIC_BASE_ENABLE != 0;
        // Straight from x2APIC to xAPIC mode: only the VMM can, and expects an ID of the other form.
        let back = old & !value & APIC_BASE_X2APIC != 0;
        if value & APIC_BASE_ENABLE != 0 && (enabled || back) {
            self.set_xapic_id();
        }
        if (old ^ value) & APIC_BASE_X2APIC != 0 && value & APIC_BASE_X2APIC != 0 {
            self.set_x2apic_id();
            // SDM vol. 3A, 10.12.5.1: the upper half of the ICR is not carried over.
            self.set_reg(APIC_ICR_HIGH, 0);
        } else if (old ^ value) & APIC_BASE_X2APIC != 0 && value & APIC_BASE_ENABLE != 0 {
            // Only the VMM can go straight back to xAPIC mode.
            self.set_xapic_id();
        }
    }

    // ---- Addressing -----------------------------------------------------------------------------------------------

    /// The APIC ID as messages name it: 8 bits in xAPIC mode, 32 in x2APIC mode.
    pub fn apic_id(&self) -> u32 {
        match self.mode() {
            ApicMode::X2Apic => self.reg(APIC_ID),
            _ => self.reg(APIC_ID) >> 24,
        }
    }

    fn is_broadcast(&self, dest: u32) -> bool {
        dest == u32::MAX || (dest == 0xff && self.mode() != ApicMode::X2Apic)
    }

    /// SDM vol. 3A, 10.6.2.1. An xAPIC also answers to its vCPU id where that does not fit its 8-bit ID, as under KVM:
    /// a guest can then start processors above 255 that it will switch to x2APIC mode.
    pub fn matches_physical(&self, dest: u32) -> bool {
        if self.is_broadcast(dest) {
            return true;
        }
        if dest > 0xff { dest == self.config.vcpu_id } else { dest == self.apic_id() }
    }

    /// SDM vol. 3A, 10.6.2.2 (flat and cluster model) and 10.12.10.2 (x2APIC).
    pub fn matches_logical(&self, dest: u32) -> bool {
        if self.is_broadcast(dest) {
            return true;
        }
        let ldr = self.reg(APIC_LDR);
        if self.mode() == ApicMode::X2Apic {
            return ldr >> 16 == dest >> 16 && ldr & dest & 0xffff != 0;
        }
        let logical_id = ldr >> 24;
        match self.reg(APIC_DFR) >> 28 {
            0xf => logical_id & dest & 0xff != 0,
            0x0 => logical_id >> 4 == dest >> 4 && logical_id & dest & 0xf != 0,
            _ => false,
        }
    }

    // ---- Acceptance -----------------------------------------------------------------------------------------------

    /// Takes a message that addresses this local APIC (SDM vol. 3A, 10.8.1, 10.8.2).
    pub fn accept(&mut self, delivery: &Delivery) -> Accepted {
        match delivery.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if delivery.trigger == Trigger::Level && !delivery.level {
                    return Accepted::Refused;
                }
                self.accept_interrupt(delivery.vector, delivery.trigger)
            }
            DeliveryMode::Smi => {
                self.pending.smi = true;
                Accepted::Smi
            }
            DeliveryMode::RemoteRead => {
                self.pending.unhalt = true;
                Accepted::Unhalt
            }
            DeliveryMode::Nmi => {
                self.accept_nmi();
                Accepted::Nmi
            }
            DeliveryMode::Init if delivery.trigger == Trigger::Level && !delivery.level => Accepted::Refused,
            DeliveryMode::Init => {
                // A SIPI that came before the INIT is void.
                self.pending.sipi = None;
                self.pending.init = true;
                Accepted::Init
            }
            DeliveryMode::StartUp => {
                self.pending.sipi = Some(delivery.vector);
                Accepted::StartUp
            }
            // Only the LINT0 pin brings the 8259's INTR to a processor; KVM ignores it from elsewhere.
            DeliveryMode::ExtInt => Accepted::Refused,
        }
    }

    /// Queues a vector in the IRR (SDM vol. 3A, 10.8.4).
    pub fn accept_interrupt(&mut self, vector: u8, trigger: Trigger) -> Accepted {
        if !self.is_software_enabled() {
            return Accepted::Refused;
        }
        if vector < FIRST_LEGAL_VECTOR {
            self.record_error(ESR_RECEIVE_ILLEGAL_VECTOR);
            return Accepted::Refused;
        }
        self.set_vector_bit(APIC_TMR, vector, trigger == Trigger::Level);
        self.set_vector_bit(APIC_IRR, vector, true);
        Accepted::Queued
    }

    /// Latches an NMI.
    pub fn accept_nmi(&mut self) {
        self.pending.nmi = self.pending.nmi.saturating_add(1).min(NMI_LIMIT);
    }

    /// A local source raises its interrupt (SDM vol. 3A, 10.5.1). For LINT pins: the pin was asserted.
    pub fn local_interrupt(&mut self, source: LocalSource) -> Accepted {
        let register = source.register();
        let lvt = self.reg(register);
        if !self.is_present() || lvt & LVT_MASKED != 0 {
            return Accepted::Refused;
        }
        let mode = match source {
            LocalSource::Timer | LocalSource::Error => DeliveryMode::Fixed,
            _ => DeliveryMode::from_bits(lvt >> 8),
        };
        let accepted = match mode {
            DeliveryMode::ExtInt => Accepted::ExtInt,
            _ => self.accept(&Delivery {
                mode,
                trigger: Trigger::from_bit(lvt & LVT_LEVEL != 0),
                ..Delivery::fixed((lvt & 0xff) as u8, 0)
            }),
        };
        if source == LocalSource::Performance && accepted != Accepted::Refused {
            self.set_reg(register, lvt | LVT_MASKED);
        }
        accepted
    }

    /// Whether the 8259's INTR reaches this processor: through LINT0 as ExtINT, or directly when the APIC is disabled.
    pub fn accepts_extint(&self) -> bool {
        if !self.is_present() {
            return true;
        }
        let lvt = self.reg(APIC_LVT_LINT0);
        lvt & LVT_MASKED == 0 && DeliveryMode::from_bits(lvt >> 8) == DeliveryMode::ExtInt
    }

    /// The PIT ticked: an NMI, if LINT0 is set up to bring one (the watchdog of old kernels in virtual wire mode).
    pub fn watchdog_tick(&mut self) -> Accepted {
        match DeliveryMode::from_bits(self.reg(APIC_LVT_LINT0) >> 8) {
            DeliveryMode::Nmi => self.local_interrupt(LocalSource::Lint0),
            _ => Accepted::Refused,
        }
    }

    /// Notes an error for the ESR and raises the error interrupt (SDM vol. 3A, 10.5.3).
    pub(super) fn record_error(&mut self, bits: u32) {
        let before = self.reg(ESR_ACCUMULATED);
        self.set_reg(ESR_ACCUMULATED, before | bits);
        // An error entry with an illegal vector cannot report its own error: it is recorded, and that is all.
        let entry = self.reg(APIC_LVT_ERROR);
        if entry & LVT_MASKED == 0 && (entry & 0xff) as u8 >= FIRST_LEGAL_VECTOR {
            self.local_interrupt(LocalSource::Error);
        } else if entry & LVT_MASKED == 0 {
            self.set_reg(ESR_ACCUMULATED, before | bits | ESR_RECEIVE_ILLEGAL_VECTOR);
        }
    }

    /// Events that are not vectors.
    pub const fn pending(&self) -> &PendingEvents {
        &self.pending
    }

    /// Takes all events that are not vectors.
    pub fn take_pending(&mut self) -> PendingEvents {
        core::mem::take(&mut self.pending)
    }

    /// For a vCPU that takes single events, or puts back what it cannot take yet.
    pub fn pending_mut(&mut self) -> &mut PendingEvents {
        &mut self.pending
    }

    // ---- Priority -------------------------------------------------------------------------------------------------

    pub(super) fn set_vector_bit(&mut self, bank: u32, vector: u8, value: bool) {
        let register = bank + u32::from(vector >> 5) * 0x10;
        let bit = 1 << (vector & 31);
        let old = self.reg(register);
        self.set_reg(register, if value { old | bit } else { old & !bit });
    }

    pub(super) fn vector_bit(&self, bank: u32, vector: u8) -> bool {
        self.reg(bank + u32::from(vector >> 5) * 0x10) & 1 << (vector & 31) != 0
    }

    fn highest_vector(&self, bank: u32) -> Option<u8> {
        (0..8u8).rev().find_map(|i| {
            let word = self.reg(bank + u32::from(i) * 0x10);
            // `i` is at most 7 and the bit at most 31: the sum fits.
            (word != 0).then(|| i * 32 + (31 - word.leading_zeros()) as u8)
        })
    }

    /// The highest vector in service.
    pub fn highest_in_service(&self) -> Option<u8> {
        self.highest_vector(APIC_ISR)
    }

    /// The highest requested vector, whatever the priorities say.
    pub fn highest_requested(&self) -> Option<u8> {
        self.highest_vector(APIC_IRR)
    }

    /// PPR from TPR and ISR (SDM vol. 3A, 10.8.3.1).
    pub(super) fn update_ppr(&mut self) {
        let tpr = self.reg(APIC_TPR) & 0xff;
        let in_service = u32::from(self.highest_in_service().unwrap_or(0));
        let ppr = if tpr & 0xf0 >= in_service & 0xf0 { tpr } else { in_service & 0xf0 };
        self.set_reg(APIC_PPR, ppr);
    }

    /// The vector to deliver next: the highest requested one, if its class is above the PPR's.
    pub fn highest_pending(&self) -> Option<u8> {
        if !self.is_present() {
            return None;
        }
        let vector = self.highest_requested()?;
        (u32::from(vector) & 0xf0 > self.reg(APIC_PPR) & 0xf0).then_some(vector)
    }

    /// The processor takes the interrupt: the vector goes from IRR to ISR (SDM vol. 3A, 10.8.4).
    ///
    /// `None` if nothing is deliverable; the spurious vector is the caller's affair then.
    pub fn ack(&mut self) -> Option<u8> {
        let vector = self.highest_pending()?;
        self.set_vector_bit(APIC_IRR, vector, false);
        self.set_vector_bit(APIC_ISR, vector, true);
        self.update_ppr();
        Some(vector)
    }

    /// The spurious-interrupt vector.
    pub fn spurious_vector(&self) -> u8 {
        (self.reg(APIC_SVR) & 0xff) as u8
    }

    /// Vectors that wait or are in service, and came level-triggered.
    pub fn level_vectors(&self) -> [u64; 4] {
        let mut vectors = [0; 4];
        for vector in 0..=u8::MAX {
            let here = self.vector_bit(APIC_IRR, vector) || self.vector_bit(APIC_ISR, vector);
            if here && self.vector_bit(APIC_TMR, vector) {
                vectors[usize::from(vector) / 64] |= 1 << (vector % 64);
            }
        }
        vectors
    }

    /// What an end of interrupt would say now; `None` if nothing is in service.
    pub fn next_eoi(&self) -> Option<Eoi> {
        let vector = self.highest_in_service()?;
        Some(Eoi {
            vector,
            level: self.vector_bit(APIC_TMR, vector),
            broadcast: self.reg(APIC_SVR) & SVR_DIRECTED_EOI == 0,
        })
    }

    /// End of the interrupt in service; `None` if there is none (SDM vol. 3A, 10.8.5).
    pub fn eoi(&mut self) -> Option<Eoi> {
        let eoi = self.next_eoi()?;
        self.set_vector_bit(APIC_ISR, eoi.vector, false);
        self.update_ppr();
        Some(eoi)
    }

    /// The task-priority register, all 8 bits.
    pub fn tpr(&self) -> u8 {
        (self.reg(APIC_TPR) & 0xff) as u8
    }

    /// Sets the task-priority register.
    pub fn set_tpr(&mut self, tpr: u8) {
        self.set_reg(APIC_TPR, u32::from(tpr));
        self.update_ppr();
    }

    /// CR8: the class of the TPR (SDM vol. 3A, 10.8.6).
    pub fn cr8(&self) -> u8 {
        self.tpr() >> 4
    }

    /// MOV to CR8. The caller has raised #GP for bits above 3.
    pub fn set_cr8(&mut self, cr8: u8) {
        self.set_tpr((cr8 & 0xf) << 4);
    }
}

/// The logical x2APIC ID: cluster in bits 31:16, one bit of 16 below (SDM vol. 3A, 10.12.10.2).
pub const fn x2apic_ldr(id: u32) -> u32 {
    id >> 4 << 16 | 1 << (id & 0xf)
}
