//! The IOAPIC: 24 pins, each with a redirection entry (82093AA data sheet; KVM's in-kernel one where it differs).
//!
//! It turns pin levels into messages. Who gets a message is [`super::delivery`]'s affair, and which GSI is wired to
//! which pin that of [`super::routing`].

#[cfg(test)]
mod tests;

use super::delivery::{Delivery, DeliveryMode, DestMode, Origin, Trigger};
use super::{LineStatus, SourceId};

/// Pins.
pub const IOAPIC_PINS: usize = 24;
/// Version register, bits 7:0. Version 0x11 has no EOI register of its own.
pub const IOAPIC_VERSION: u8 = 0x11;
/// The first version with an EOI register at offset 0x40.
const VERSION_WITH_EOI: u8 = 0x20;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const IOEOI: u64 = 0x40;

const REG_ID: u32 = 0;
const REG_VERSION: u32 = 1;
const REG_ARBITRATION: u32 = 2;
const REG_REDIRECTION: u32 = 0x10;

/// One entry of the redirection table (82093AA, 3.2.4), in the 64-bit format of the data sheet and of KVM_GET_IRQCHIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct RedirectionEntry(pub u64);

impl RedirectionEntry {
    const DELIVERY_STATUS: u64 = 1 << 12;
    const REMOTE_IRR: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    /// Bits that a write does not change.
    const READ_ONLY: u64 = Self::DELIVERY_STATUS | Self::REMOTE_IRR;
    /// The entry after reset: masked.
    pub const RESET: RedirectionEntry = RedirectionEntry(Self::MASKED);

    /// The vector.
    pub const fn vector(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// Level-triggered.
    pub const fn is_level(self) -> bool {
        self.0 & Self::LEVEL != 0
    }

    /// Masked.
    pub const fn is_masked(self) -> bool {
        self.0 & Self::MASKED != 0
    }

    /// A level-triggered interrupt was accepted and its EOI has not come back.
    pub const fn remote_irr(self) -> bool {
        self.0 & Self::REMOTE_IRR != 0
    }

    fn set_remote_irr(&mut self, value: bool) {
        self.0 = if value { self.0 | Self::REMOTE_IRR } else { self.0 & !Self::REMOTE_IRR };
    }

    fn message(self, pin: u8, xapic_broadcast: bool) -> Delivery {
        Delivery {
            mode: DeliveryMode::from_bits((self.0 >> 8) as u32),
            dest_mode: DestMode::from_bit(self.0 & 1 << 11 != 0),
            trigger: Trigger::from_bit(self.is_level()),
            xapic_broadcast,
            origin: Origin::Ioapic { pin },
            ..Delivery::fixed(self.vector(), (self.0 >> 56) as u32)
        }
    }
}

/// Everything an IOAPIC remembers. `kvm_ioapic_state` is this without the last two fields, see [`Ioapic::reload`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoapicState {
    /// Where its page lies in guest physical memory.
    pub base_address: u64,
    /// The register that IOWIN shows.
    pub ioregsel: u32,
    /// The APIC ID, 4 bits.
    pub id: u32,
    /// Pins with a request: the line of a level-triggered pin, the latch of an edge-triggered one.
    pub irr: u32,
    /// The redirection table.
    pub redirtbl: [RedirectionEntry; IOAPIC_PINS],
    /// Edge-triggered requests in `irr` that were sent already.
    pub irr_delivered: u32,
    /// For each pin, the sources that assert it, one bit each.
    pub irq_states: [u64; IOAPIC_PINS],
}

/// An IOAPIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ioapic {
    state: IoapicState,
    version: u8,
    /// Passed on to the messages, see [`Delivery::xapic_broadcast`].
    xapic_broadcast: bool,
}

impl Default for Ioapic {
    fn default() -> Ioapic {
        Ioapic::new(IOAPIC_VERSION)
    }
}

impl Ioapic {
    /// An IOAPIC after reset. KVM's is of version 0x11; from 0x20 on there is an EOI register.
    pub fn new(version: u8) -> Ioapic {
        Ioapic {
            state: IoapicState {
                base_address: x86_arch::apic::IOAPIC_BASE,
                ioregsel: 0,
                id: 0,
                irr: 0,
                redirtbl: [RedirectionEntry::RESET; IOAPIC_PINS],
                irr_delivered: 0,
                irq_states: [0; IOAPIC_PINS],
            },
            version,
            xapic_broadcast: true,
        }
    }

    /// Where its page lies.
    pub const fn base_address(&self) -> u64 {
        self.state.base_address
    }

    /// Whether a destination of 0xff means every local APIC, in x2APIC mode too (KVM_CAP_X2APIC_API).
    pub fn set_xapic_broadcast(&mut self, value: bool) {
        self.xapic_broadcast = value;
    }

    /// The entry of a pin.
    pub fn entry(&self, pin: u8) -> Option<RedirectionEntry> {
        self.state.redirtbl.get(usize::from(pin)).copied()
    }

    // ---- Pins -----------------------------------------------------------------------------------------------------

    /// One source drives a pin. The pin is asserted while any source does.
    ///
    /// A message that is returned must be delivered; if it is level-triggered and no local APIC takes it, call
    /// [`Ioapic::refused`].
    pub fn set_irq(&mut self, pin: u8, source: SourceId, level: bool) -> (LineStatus, Option<Delivery>) {
        let Some(sources) = self.state.irq_states.get_mut(usize::from(pin)) else {
            return (LineStatus::IGNORED, None);
        };
        let asserted = source.drive(sources, level);
        self.set_pin(pin, asserted)
    }

    fn set_pin(&mut self, pin: u8, asserted: bool) -> (LineStatus, Option<Delivery>) {
        let bit = 1u32 << pin;
        if !asserted {
            self.state.irr &= !bit;
            return (LineStatus::delivered(1), None);
        }
        let was_requested = self.state.irr & bit != 0;
        self.state.irr |= bit;
        let edge = self.entry(pin).is_some_and(|entry| !entry.is_level());
        if edge {
            self.state.irr_delivered &= !bit;
            if was_requested {
                return (LineStatus::COALESCED, None);
            }
        }
        self.service(pin)
    }

    /// Sends the pin's message, unless it is masked or waits for an EOI.
    fn service(&mut self, pin: u8) -> (LineStatus, Option<Delivery>) {
        let xapic_broadcast = self.xapic_broadcast;
        let Some(entry) = self.state.redirtbl.get_mut(usize::from(pin)) else {
            return (LineStatus::IGNORED, None);
        };
        if entry.is_masked() || (entry.is_level() && entry.remote_irr()) {
            return (LineStatus::IGNORED, None);
        }
        let message = entry.message(pin, xapic_broadcast);
        if entry.is_level() {
            entry.set_remote_irr(true);
        } else {
            self.state.irr_delivered |= 1 << pin;
        }
        // The status is the message's: the caller adds what `deliver` says.
        (LineStatus::IGNORED, Some(message))
    }

    /// Every addressed local APIC refused the message of a level-triggered pin: no EOI will come for it.
    pub fn refused(&mut self, pin: u8) {
        if let Some(entry) = self.state.redirtbl.get_mut(usize::from(pin))
            && entry.is_level()
        {
            entry.set_remote_irr(false);
        }
    }

    /// The pins whose entry has this vector.
    pub fn pins_with_vector(&self, vector: u8) -> impl Iterator<Item = u8> + use<> {
        let mut pins = 0u32;
        for (pin, entry) in self.state.redirtbl.iter().enumerate() {
            pins |= u32::from(entry.vector() == vector) << pin;
        }
        // 24 pins: the number fits.
        (0..IOAPIC_PINS as u8).filter(move |pin| pins & 1 << pin != 0)
    }

    /// An EOI for one pin: Remote IRR is cleared, and a line that is still asserted is sent again.
    pub fn eoi_pin(&mut self, pin: u8) -> Option<Delivery> {
        let entry = self.state.redirtbl.get_mut(usize::from(pin))?;
        if !entry.is_level() || !entry.remote_irr() {
            return None;
        }
        entry.set_remote_irr(false);
        if self.state.irr & 1 << pin == 0 {
            return None;
        }
        self.service(pin).1
    }

    /// Whether a pin can send this vector: its EOI matters.
    pub fn handles_vector(&self, vector: u8) -> bool {
        self.pins_with_vector(vector).next().is_some()
    }

    // ---- Registers ------------------------------------------------------------------------------------------------

    /// A read in the IOAPIC's page.
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset & 0xff {
            IOREGSEL => self.state.ioregsel,
            IOWIN => self.read_register(),
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn read_register(&self) -> u32 {
        match self.state.ioregsel {
            REG_ID | REG_ARBITRATION => (self.state.id & 0xf) << 24,
            REG_VERSION => (IOAPIC_PINS as u32 - 1) << 16 | u32::from(self.version),
            selector => match self.redirection(selector) {
                Some((pin, high)) => (self.state.redirtbl[pin].0 >> if high { 32 } else { 0 }) as u32,
                None => 0,
            },
        }
    }

    /// The entry and half that a selector names; the index is in bounds.
    fn redirection(&self, selector: u32) -> Option<(usize, bool)> {
        let index = selector.checked_sub(REG_REDIRECTION)?;
        let pin = (index >> 1) as usize;
        (pin < IOAPIC_PINS).then_some((pin, index & 1 != 0))
    }

    /// A write in the IOAPIC's page. What it returns must be delivered.
    pub fn mmio_write(&mut self, offset: u64, data: &[u8]) -> Vec<Delivery> {
        // Wider accesses reach the register with their low 32 bits, narrower ones are zero-extended.
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u32::from_le_bytes(bytes);
        match offset & 0xff {
            IOREGSEL => self.state.ioregsel = value & 0xff,
            IOWIN => return self.write_register(value).into_iter().collect(),
            IOEOI if self.version >= VERSION_WITH_EOI => {
                let pins = self.pins_with_vector((value & 0xff) as u8);
                return pins.filter_map(|pin| self.eoi_pin(pin)).collect();
            }
            _ => {}
        }
        Vec::new()
    }

    fn write_register(&mut self, value: u32) -> Option<Delivery> {
        if self.state.ioregsel == REG_ID {
            self.state.id = value >> 24 & 0xf;
            return None;
        }
        let (pin, high) = self.redirection(self.state.ioregsel)?;
        let old = self.state.redirtbl[pin].0;
        let value = u64::from(value);
        let mut entry = RedirectionEntry(if high {
            // Bits 55:32 are reserved.
            old & 0xffff_ffff | (value & 0xff00_0000) << 32
        } else {
            let writable = 0x1_ffff & !RedirectionEntry::READ_ONLY;
            old & !writable | value & writable
        });
        if !entry.is_level() {
            // Guests with no EOI register to write switch a pin to edge and back to clear Remote IRR.
            entry.set_remote_irr(false);
        }
        self.state.redirtbl[pin] = entry;
        // A level that is asserted already is sent when the pin is unmasked. An edge that came while it was masked is
        // lost (82093AA, 3.2.4, interrupt mask).
        if entry.is_level() && self.state.irr & 1 << pin != 0 {
            return self.service(pin as u8).1;
        }
        None
    }

    // ---- State ----------------------------------------------------------------------------------------------------

    /// Everything, as it is.
    pub fn state(&self) -> IoapicState {
        self.state.clone()
    }

    /// The inverse of [`Ioapic::state`].
    pub fn set_state(&mut self, state: &IoapicState) {
        self.state = state.clone();
        self.state.irr &= (1 << IOAPIC_PINS) - 1;
    }

    /// `irr` for KVM_GET_IRQCHIP: the requests that have not been sent.
    pub const fn saved_irr(&self) -> u32 {
        self.state.irr & !self.state.irr_delivered
    }

    /// KVM_SET_IRQCHIP: takes over all that `kvm_ioapic_state` has, keeps who asserts which pin, and raises the
    /// requests in `irr` again. What it returns must be delivered.
    pub fn reload(&mut self, state: &IoapicState) -> Vec<Delivery> {
        self.state =
            IoapicState { irr: 0, irr_delivered: 0, irq_states: self.state.irq_states, ..state.clone() };
        (0..IOAPIC_PINS as u8)
            .filter(|pin| state.irr & 1 << pin != 0)
            .filter_map(|pin| self.set_pin(pin, true).1)
            .collect()
    }

    /// Back to power-up. The lines stay asserted by whoever asserts them.
    pub fn reset(&mut self) {
        let IoapicState { irq_states, .. } = self.state;
        let fresh = Ioapic::new(self.version).state;
        self.state = IoapicState { irq_states, ..fresh };
    }
}
