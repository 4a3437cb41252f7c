//! Interrupt messages: what an IOAPIC pin, an MSI or an ICR write asks for, and how it finds its local APICs.
//!
//! This is the "APIC bus". It knows who is addressed and chooses the target of a lowest-priority message; what an
//! addressed local APIC does with the message is [`Lapic::accept`]. It holds no lock: [`deliver`] visits one local
//! APIC at a time through [`LapicBus`], so that no two of them are ever locked together.
//! Read on in [`super::lapic`].

use super::lapic::{Accepted, Lapic};

/// How a message acts on its target (SDM vol. 3A, 10.6.1 and 10.11.2; 82093AA, redirection table bits 10:8).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum DeliveryMode {
    /// The vector, to every addressed processor.
    Fixed = 0,
    /// The vector, to one of the addressed processors.
    LowestPriority = 1,
    /// System management interrupt.
    Smi = 2,
    /// Remote read: no processor has it any more. KVM sends it to wake a vCPU that waits for a paravirtual kick.
    RemoteRead = 3,
    /// Non-maskable interrupt.
    Nmi = 4,
    /// INIT.
    Init = 5,
    /// Start-up (SIPI): the vector is the page where the processor begins.
    StartUp = 6,
    /// The 8259 supplies the vector.
    ExtInt = 7,
}

impl DeliveryMode {
    /// The mode with these three bits (higher bits are ignored).
    pub const fn from_bits(bits: u32) -> DeliveryMode {
        match bits & 7 {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            2 => DeliveryMode::Smi,
            3 => DeliveryMode::RemoteRead,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            6 => DeliveryMode::StartUp,
            _ => DeliveryMode::ExtInt,
        }
    }
}

/// How the destination field is read (SDM vol. 3A, 10.6.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum DestMode {
    /// An APIC ID.
    Physical,
    /// A set, compared with LDR and DFR.
    Logical,
}

impl DestMode {
    /// Logical if the bit is set.
    pub const fn from_bit(logical: bool) -> DestMode {
        if logical { DestMode::Logical } else { DestMode::Physical }
    }
}

/// Trigger mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Trigger {
    /// Edge.
    Edge,
    /// Level: the local APIC's TMR bit is set, and its EOI goes back to the IOAPIC.
    Level,
}

impl Trigger {
    /// Level if the bit is set.
    pub const fn from_bit(level: bool) -> Trigger {
        if level { Trigger::Level } else { Trigger::Edge }
    }
}

/// Destination shorthand of an ICR write (SDM vol. 3A, 10.6.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Shorthand {
    /// The destination field counts.
    None,
    /// The sender alone.
    ToSelf,
    /// Everyone.
    AllIncludingSelf,
    /// Everyone but the sender.
    AllExcludingSelf,
}

impl Shorthand {
    /// The shorthand with these two bits (higher bits are ignored).
    pub const fn from_bits(bits: u32) -> Shorthand {
        match bits & 3 {
            0 => Shorthand::None,
            1 => Shorthand::ToSelf,
            2 => Shorthand::AllIncludingSelf,
            _ => Shorthand::AllExcludingSelf,
        }
    }
}

/// Where a message came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Origin {
    /// A local APIC's ICR or SELF IPI register.
    Ipi,
    /// A write to the MSI window, or a GSI routed to one.
    Msi,
    /// A pin of the IOAPIC. A level-triggered message that nobody accepted must be reported back
    /// ([`super::IrqChip::delivered`]), so that the pin's Remote IRR does not wait for an EOI that never comes.
    Ioapic {
        /// The pin.
        pin: u8,
    },
}

/// One interrupt message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Delivery {
    /// The vector (the start page for [`DeliveryMode::StartUp`]).
    pub vector: u8,
    /// The delivery mode.
    pub mode: DeliveryMode,
    /// APIC ID or logical set: 8 bits from an xAPIC source, 32 from x2APIC.
    pub dest: u32,
    /// How `dest` is read.
    pub dest_mode: DestMode,
    /// Trigger mode.
    pub trigger: Trigger,
    /// Assert (true) or de-assert: an INIT with `Level` and false is the "INIT level de-assert" that is ignored.
    pub level: bool,
    /// Destination shorthand; only an ICR has it.
    pub shorthand: Shorthand,
    /// The MSI redirection hint: treated as lowest priority, as KVM does.
    pub redirection_hint: bool,
    /// `dest` 0xff is a broadcast for a target in x2APIC mode too. True for IOAPIC and MSI messages unless the VMM has
    /// disabled KVM's broadcast quirk (KVM_CAP_X2APIC_API); false for IPIs.
    pub xapic_broadcast: bool,
    /// Who sent it.
    pub origin: Origin,
}

/// An interprocessor interrupt: a [`Delivery`] whose origin is [`Origin::Ipi`].
pub type Ipi = Delivery;

impl Delivery {
    /// A fixed, edge-triggered, physically addressed message; the other forms are made from it by struct update.
    pub const fn fixed(vector: u8, dest: u32) -> Delivery {
        Delivery {
            vector,
            mode: DeliveryMode::Fixed,
            dest,
            dest_mode: DestMode::Physical,
            trigger: Trigger::Edge,
            level: true,
            shorthand: Shorthand::None,
            redirection_hint: false,
            xapic_broadcast: true,
            origin: Origin::Msi,
        }
    }

    /// Whether exactly one of the addressed processors is to take it.
    pub const fn is_lowest_priority(&self) -> bool {
        matches!(self.mode, DeliveryMode::LowestPriority)
            || (self.redirection_hint && matches!(self.mode, DeliveryMode::Fixed))
    }
}

/// Whether `lapic` is addressed by `delivery`. `is_sender` says that it is the local APIC that sent the message.
///
/// SDM vol. 3A, 10.6.2.
pub fn match_dest(delivery: &Delivery, lapic: &Lapic, is_sender: bool) -> bool {
    if !lapic.is_present() {
        return false;
    }
    match delivery.shorthand {
        Shorthand::ToSelf => return is_sender,
        Shorthand::AllIncludingSelf => return true,
        Shorthand::AllExcludingSelf => return !is_sender,
        Shorthand::None => {}
    }
    let dest = if delivery.xapic_broadcast && delivery.dest == 0xff { u32::MAX } else { delivery.dest };
    match delivery.dest_mode {
        DestMode::Physical => lapic.matches_physical(dest),
        DestMode::Logical => lapic.matches_logical(dest),
    }
}

/// The local APICs of a VM, as [`deliver`] sees them. The implementation locks one of them for the time of a call.
pub trait LapicBus {
    /// How many there are; they are numbered from 0.
    fn count(&self) -> usize;

    /// Calls `f` on local APIC `index` under its lock, and on no other. An index that has gone away calls nothing.
    fn with_lapic(&self, index: usize, f: &mut dyn FnMut(&mut Lapic));

    /// Local APIC `index` took something that its vCPU must see soon: wake it, or make it leave guest code.
    /// Called with no lock held.
    fn kick(&self, index: usize, accepted: Accepted);
}

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeliveryResult {
    /// Local APICs that were addressed.
    pub matched: u32,
    /// Local APICs that took it.
    pub accepted: u32,
}

impl DeliveryResult {
    /// KVM's figure for KVM_IRQ_LINE_STATUS and KVM_SIGNAL_MSI: -1 if nobody was addressed, else the number that
    /// took it (0: coalesced or refused).
    pub const fn status(self) -> i32 {
        if self.matched == 0 { -1 } else { self.accepted.cast_signed() }
    }
}

/// Brings `delivery` to the local APICs of `bus`. `sender` is the index of the sending local APIC, for the shorthands.
///
/// At most one local APIC is locked at a time, and none while [`LapicBus::kick`] runs. The caller holds neither a
/// local APIC nor the [`super::IrqChip`].
pub fn deliver(delivery: &Delivery, sender: Option<usize>, bus: &dyn LapicBus) -> DeliveryResult {
    let mut result = DeliveryResult::default();
    if delivery.is_lowest_priority() {
        if let Some(index) = arbitrate(delivery, sender, bus, &mut result) {
            accept_at(index, delivery, bus, &mut result, |_| true);
        }
        return result;
    }
    for index in 0..bus.count() {
        let mut matched = false;
        accept_at(index, delivery, bus, &mut result, |lapic| {
            matched = match_dest(delivery, lapic, sender == Some(index));
            matched
        });
        result.matched += u32::from(matched);
    }
    result
}

/// The target of a lowest-priority message: the addressed and enabled local APICs in order, indexed by the vector
/// modulo their number. That is vector hashing, KVM's default, which Intel's chipsets do too; real priorities would
/// need a snapshot of all PPRs, which no vCPU could give without stopping.
fn arbitrate(
    delivery: &Delivery,
    sender: Option<usize>,
    bus: &dyn LapicBus,
    result: &mut DeliveryResult,
) -> Option<usize> {
    let mut candidates = Vec::new();
    for index in 0..bus.count() {
        bus.with_lapic(index, &mut |lapic| {
            if match_dest(delivery, lapic, sender == Some(index)) {
                result.matched += 1;
                if lapic.is_software_enabled() {
                    candidates.push(index);
                }
            }
        });
    }
    let choice = usize::from(delivery.vector).checked_rem(candidates.len())?;
    candidates.get(choice).copied()
}

fn accept_at(
    index: usize,
    delivery: &Delivery,
    bus: &dyn LapicBus,
    result: &mut DeliveryResult,
    mut wanted: impl FnMut(&Lapic) -> bool,
) {
    let mut accepted = Accepted::Refused;
    bus.with_lapic(index, &mut |lapic| {
        if wanted(lapic) {
            accepted = lapic.accept(delivery);
        }
    });
    if accepted != Accepted::Refused {
        result.accepted += 1;
        bus.kick(index, accepted);
    }
}
