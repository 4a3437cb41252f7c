//! The interrupt controllers and the timer that KVM keeps in the kernel: local APICs, IOAPIC, two PICs, PIT, and the
//! GSI routing between them.
//!
//! Pure state machines. Nothing here has a thread, a lock or a clock: time is passed in, and what must happen outside
//! is returned. Two kinds of object exist, meant for two kinds of lock:
//!
//! - [`IrqChip`], one per VM: PICs, IOAPIC, PIT and routing, behind one lock.
//! - [`lapic::Lapic`], one per vCPU, each behind a lock of its own.
//!
//! **No two of these locks are ever held together.** An operation on the `IrqChip` returns an [`Outcome`] with messages;
//! the caller unlocks it, and then brings each message to the local APICs with [`delivery::deliver`], which locks one at
//! a time, and hands the result back to [`IrqChip::delivered`]. An operation on a local APIC returns a
//! [`lapic::LapicEffect`]: after unlocking it the caller delivers an IPI, or takes an EOI to [`IrqChip::eoi`].
//!
//! The split irqchip (KVM_CAP_SPLIT_IRQCHIP) is an `IrqChip` with routing alone.

pub mod delivery;
pub mod ioapic;
pub mod lapic;
pub mod pic;
pub mod pit;
pub mod routing;

#[cfg(test)]
mod tests;

use delivery::{Delivery, DeliveryResult, Origin, Trigger};
use ioapic::Ioapic;
use lapic::Eoi;
use pic::{EndedIrqs, PicPair};
use pit::Pit;
use routing::{Chip, Msi, Routing, Target};

/// The GSI of the PIT's channel 0.
const PIT_GSI: u32 = 0;
/// Bytes of the IOAPIC's register window.
const IOAPIC_WINDOW: u64 = 0x100;

/// Who asserts a line. A line is asserted while any source asserts it, so that sources do not undo each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct SourceId(u8);

impl SourceId {
    /// KVM_IRQ_LINE and plain irqfds.
    pub const USERSPACE: SourceId = SourceId(0);
    /// Resampling irqfds, all of them together (KVM_IRQFD_FLAG_RESAMPLE).
    pub const RESAMPLE: SourceId = SourceId(1);
    /// The PIT.
    pub const PIT: SourceId = SourceId(2);

    /// Records this source's level among those of a line; returns the line's level.
    fn drive(self, sources: &mut u64, level: bool) -> bool {
        let bit = 1 << (self.0 & 63);
        *sources = if level { *sources | bit } else { *sources & !bit };
        *sources != 0
    }
}

/// What KVM_IRQ_LINE_STATUS reports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LineStatus(i32);

impl LineStatus {
    /// Masked, not connected, or nobody addressed.
    pub const IGNORED: LineStatus = LineStatus(-1);
    /// The same interrupt was pending already.
    pub const COALESCED: LineStatus = LineStatus(0);

    /// Taken by so many processors.
    pub const fn delivered(count: i32) -> LineStatus {
        LineStatus(count)
    }

    /// The figure that the ioctl returns: -1, 0 or a count.
    pub const fn value(self) -> i32 {
        self.0
    }

    /// One GSI may be wired to several chips: ignored ones do not count, the others add up.
    pub const fn and(self, other: LineStatus) -> LineStatus {
        match (self.0, other.0) {
            (_, ..0) => self,
            (..0, _) => other,
            (one, two) => LineStatus(one.saturating_add(two)),
        }
    }
}

/// What an operation on the [`IrqChip`] asks of its caller, once it has unlocked it.
///
/// Also look at [`IrqChip::int_pending`] after every operation: that is the wire from the PICs to the processors.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct Outcome {
    /// Messages, to be delivered in this order; each result goes to [`IrqChip::delivered`].
    pub deliveries: Vec<Delivery>,
    /// Status of a line, without what the deliveries will add.
    pub status: LineStatus,
    /// GSIs with a resampling irqfd whose interrupt ended: the chip has de-asserted them, the caller signals the
    /// eventfds.
    pub acked: Vec<u32>,
    /// The PIT ticked: a local APIC whose LINT0 is in NMI mode takes that as its watchdog
    /// ([`lapic::Lapic::watchdog_tick`]).
    pub pit_tick: bool,
}

impl Default for Outcome {
    fn default() -> Outcome {
        Outcome { deliveries: Vec::new(), status: LineStatus::IGNORED, acked: Vec::new(), pit_tick: false }
    }
}

/// The chips of a full irqchip.
#[derive(Clone, Debug, Default)]
struct Chips {
    pic: PicPair,
    ioapic: Ioapic,
}

/// All that a VM has in the way of interrupt controllers, but for the local APICs.
#[derive(Clone, Debug)]
pub struct IrqChip {
    chips: Option<Chips>,
    pit: Option<Pit>,
    routing: Routing,
    /// GSIs with a resampling irqfd, one element for each irqfd.
    resamplers: Vec<u32>,
    /// See [`Delivery::xapic_broadcast`].
    xapic_broadcast: bool,
    /// Vectors that user space has sent as level-triggered messages, and whose EOI it waits for.
    sent_by_user: [u64; 4],
}

impl IrqChip {
    /// KVM_CREATE_IRQCHIP: PICs and IOAPIC with the default wiring, no PIT yet.
    pub fn full() -> IrqChip {
        IrqChip {
            chips: Some(Chips::default()),
            pit: None,
            routing: Routing::default_irqchip(),
            resamplers: Vec::new(),
            xapic_broadcast: true,
            sent_by_user: [0; 4],
        }
    }

    /// KVM_CAP_SPLIT_IRQCHIP: local APICs here, everything else in userspace; routes are messages only.
    pub fn split() -> IrqChip {
        IrqChip { chips: None, routing: Routing::default(), ..IrqChip::full() }
    }

    /// Whether userspace has the PICs and the IOAPIC.
    pub const fn is_split(&self) -> bool {
        self.chips.is_none()
    }

    /// KVM_CREATE_PIT2. Nothing happens if there is one.
    pub fn create_pit(&mut self) {
        self.pit.get_or_insert_default();
    }

    /// The PIT, for its state and settings.
    pub fn pit(&mut self) -> Option<&mut Pit> {
        self.pit.as_mut()
    }

    /// The PICs, for their state.
    pub fn pic(&mut self) -> Option<&mut PicPair> {
        self.chips.as_mut().map(|chips| &mut chips.pic)
    }

    /// The IOAPIC, for its state.
    pub fn ioapic(&mut self) -> Option<&mut Ioapic> {
        self.chips.as_mut().map(|chips| &mut chips.ioapic)
    }

    /// The wiring.
    pub const fn routing(&self) -> &Routing {
        &self.routing
    }

    /// KVM_SET_GSI_ROUTING.
    pub fn set_routing(&mut self, routing: Routing) {
        self.routing = routing;
    }

    /// KVM_CAP_X2APIC_API: whether MSIs carry 32-bit ids, and whether 0xff from an IOAPIC or MSI stays a broadcast for
    /// local APICs in x2APIC mode.
    pub fn set_x2apic_api(&mut self, use_32bit_ids: bool, disable_broadcast_quirk: bool) {
        self.routing.set_x2apic_ids(use_32bit_ids);
        self.xapic_broadcast = !disable_broadcast_quirk;
        if let Some(ioapic) = self.ioapic() {
            ioapic.set_xapic_broadcast(!disable_broadcast_quirk);
        }
    }

    // ---- Lines and messages ---------------------------------------------------------------------------------------

    /// Drives a GSI (KVM_IRQ_LINE, irqfd).
    pub fn set_irq(&mut self, gsi: u32, source: SourceId, level: bool) -> Outcome {
        let mut outcome = Outcome::default();
        self.drive(gsi, source, level, &mut outcome);
        outcome
    }

    fn drive(&mut self, gsi: u32, source: SourceId, level: bool, outcome: &mut Outcome) {
        for target in self.routing.targets(gsi) {
            let status = match (*target, &mut self.chips) {
                (Target::Msi(msi), _) => {
                    // A message is an edge: it is sent when the line is raised.
                    if level {
                        let message = msi.delivery(self.routing.x2apic_ids());
                        outcome
                            .deliveries
                            .push(Delivery { xapic_broadcast: self.xapic_broadcast, ..message });
                    }
                    LineStatus::IGNORED
                }
                (Target::Pin { chip: Chip::PicMaster, pin }, Some(chips)) => {
                    chips.pic.set_irq(pin, source, level)
                }
                (Target::Pin { chip: Chip::PicSlave, pin }, Some(chips)) => {
                    chips.pic.set_irq(pin.saturating_add(8), source, level)
                }
                (Target::Pin { chip: Chip::Ioapic, pin }, Some(chips)) => {
                    let (status, message) = chips.ioapic.set_irq(pin, source, level);
                    outcome.deliveries.extend(message);
                    status
                }
                (Target::Pin { .. }, None) => LineStatus::IGNORED,
            };
            outcome.status = outcome.status.and(status);
        }
    }

    /// KVM_SIGNAL_MSI. `None` if the address is not valid (EINVAL).
    pub fn signal_msi(&mut self, msi: &Msi) -> Option<Delivery> {
        let x2apic_ids = self.routing.x2apic_ids();
        if !msi.is_valid(x2apic_ids) {
            return None;
        }
        let message = Delivery { xapic_broadcast: self.xapic_broadcast, ..msi.delivery(x2apic_ids) };
        if message.trigger == Trigger::Level {
            self.sent_by_user[usize::from(message.vector) / 64] |= 1 << (message.vector % 64);
        }
        Some(message)
    }

    /// The result of a delivery comes back: a level-triggered IOAPIC message that no local APIC took will have no EOI.
    pub fn delivered(&mut self, delivery: &Delivery, result: DeliveryResult) {
        if let Origin::Ioapic { pin } = delivery.origin
            && delivery.trigger == Trigger::Level
            && result.accepted == 0
            && let Some(ioapic) = self.ioapic()
        {
            ioapic.refused(pin);
        }
    }

    // ---- Acknowledgement ------------------------------------------------------------------------------------------

    /// A resampling irqfd was attached to a GSI.
    pub fn add_resampler(&mut self, gsi: u32) {
        self.resamplers.push(gsi);
    }

    /// A resampling irqfd was detached: with the last one the line is released.
    pub fn remove_resampler(&mut self, gsi: u32) -> Outcome {
        if let Some(index) = self.resamplers.iter().position(|&other| other == gsi) {
            self.resamplers.swap_remove(index);
        }
        if self.resamplers.contains(&gsi) {
            return Outcome::default();
        }
        self.set_irq(gsi, SourceId::RESAMPLE, false)
    }

    /// A local APIC's EOI ([`lapic::LapicEffect::Eoi`]). Those waiting for the acknowledgement are served first, so that
    /// a line that they release is not sent again.
    pub fn eoi(&mut self, eoi: &Eoi) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(chips) = &self.chips else { return outcome };
        for pin in chips.ioapic.pins_with_vector(eoi.vector) {
            self.acknowledge(Chip::Ioapic, pin, &mut outcome);
            if eoi.level
                && eoi.broadcast
                && let Some(ioapic) = self.ioapic()
            {
                let message = ioapic.eoi_pin(pin);
                outcome.deliveries.extend(message);
            }
        }
        outcome
    }

    /// Whether anyone but the local APIC has to know of an EOI of this vector: a pin of the IOAPIC has it, or user space.
    pub fn waits_for_eoi(&self, vector: u8) -> bool {
        self.chips.as_ref().is_some_and(|chips| chips.ioapic.handles_vector(vector))
            || self.user_waits_for_eoi(vector)
    }

    /// Whether user space may have an I/O APIC with this vector: a level-triggered route has it where the I/O APIC is user space's;
    /// otherwise it came by KVM_SIGNAL_MSI, level-triggered, and no pin of the I/O APIC here has it.
    fn user_waits_for_eoi(&self, vector: u8) -> bool {
        match &self.chips {
            Some(chips) => {
                self.sent_by_user[usize::from(vector) / 64] >> (vector % 64) & 1 != 0
                    && !chips.ioapic.handles_vector(vector)
            }
            None => self.routing.level_messages(ioapic::IOAPIC_PINS as u32).any(|m| m.vector == vector),
        }
    }

    /// Whether user space is told of this EOI (KVM_EXIT_IOAPIC_EOI). It is, once for a message.
    pub fn tells_eoi(&mut self, eoi: &Eoi) -> bool {
        let told = eoi.level && eoi.broadcast && self.user_waits_for_eoi(eoi.vector);
        self.sent_by_user[usize::from(eoi.vector) / 64] &= !(1 << (eoi.vector % 64));
        told
    }

    /// A local APIC was restored (KVM_SET_LAPIC) with these level-triggered vectors: those that no pin here has were user space's.
    pub fn restored(&mut self, level: [u64; 4]) {
        for (word, level) in self.sent_by_user.iter_mut().zip(level) {
            *word |= level;
        }
    }

    fn acknowledge(&mut self, chip: Chip, pin: u8, outcome: &mut Outcome) {
        let Some(gsi) = self.routing.gsi_of(chip, pin) else { return };
        if self.resamplers.contains(&gsi) {
            self.drive(gsi, SourceId::RESAMPLE, false, outcome);
            outcome.acked.push(gsi);
        }
        if gsi == PIT_GSI && self.pit.as_mut().is_some_and(Pit::acknowledged) {
            self.pulse_pit(outcome);
        }
    }

    /// What follows every access to the PICs: those who wait for an end are told, then the chips settle.
    fn acknowledge_pic(&mut self, ended: EndedIrqs, outcome: &mut Outcome) {
        for irq in (0..16u8).filter(|irq| ended & 1 << irq != 0) {
            let chip = if irq < 8 { Chip::PicMaster } else { Chip::PicSlave };
            self.acknowledge(chip, irq & 7, outcome);
        }
        if let Some(pic) = self.pic() {
            pic.settle();
        }
    }

    /// INTR from the PICs to every processor that takes it ([`lapic::Lapic::accepts_extint`]).
    pub fn int_pending(&self) -> bool {
        self.chips.as_ref().is_some_and(|chips| chips.pic.int_pending())
    }

    /// A processor takes the PICs' interrupt. `None` without PICs; otherwise there is always a vector, if only a
    /// spurious one.
    pub fn pic_ack(&mut self) -> Option<(u8, Outcome)> {
        let (vector, ended) = self.pic()?.ack();
        let mut outcome = Outcome::default();
        self.acknowledge_pic(ended, &mut outcome);
        Some((vector, outcome))
    }

    // ---- The PIT --------------------------------------------------------------------------------------------------

    /// When [`IrqChip::expire`] must be called next, in monotonic nanoseconds.
    pub fn deadline(&self) -> Option<u64> {
        self.pit.as_ref()?.deadline()
    }

    /// Takes the PIT's ticks up to `now`.
    pub fn expire(&mut self, now: u64) -> Outcome {
        let mut outcome = Outcome::default();
        if self.pit.as_mut().is_some_and(|pit| pit.expire(now)) {
            self.pulse_pit(&mut outcome);
        }
        outcome
    }

    fn pulse_pit(&mut self, outcome: &mut Outcome) {
        self.drive(PIT_GSI, SourceId::PIT, true, outcome);
        self.drive(PIT_GSI, SourceId::PIT, false, outcome);
        outcome.pit_tick = true;
    }

    /// Which of the pins that the PIT's GSI is wired to are masked.
    fn pit_pins_masked(&self) -> [bool; 2] {
        let mut masked = [false; 2];
        let Some(chips) = &self.chips else { return masked };
        for target in self.routing.targets(PIT_GSI) {
            match *target {
                Target::Pin { chip: Chip::Ioapic, pin } => {
                    masked[0] = chips.ioapic.entry(pin).is_some_and(|entry| entry.is_masked());
                }
                Target::Pin { chip: Chip::PicMaster, pin } => masked[1] = chips.pic.is_masked(pin),
                Target::Pin { chip: Chip::PicSlave, pin } => {
                    masked[1] = chips.pic.is_masked(pin.saturating_add(8));
                }
                Target::Msi(_) => {}
            }
        }
        masked
    }

    /// Ticks that were missed while IRQ 0 was masked are not made up for when it is unmasked.
    fn note_unmasking(&mut self, before: [bool; 2]) {
        let after = self.pit_pins_masked();
        let unmasked = before.iter().zip(after).any(|(&before, after)| before && !after);
        if unmasked && let Some(pit) = &mut self.pit {
            pit.reset_reinjection();
        }
    }

    // ---- The guest's accesses -------------------------------------------------------------------------------------

    /// A byte read from an I/O port. `None`: the port is not one of these chips'. Wider accesses are the caller's to
    /// split.
    pub fn pio_read(&mut self, port: u16, now: u64) -> Option<(u8, Outcome)> {
        let mut outcome = Outcome::default();
        if let Some((value, ended)) = self.pic().and_then(|pic| pic.read(port)) {
            self.acknowledge_pic(ended, &mut outcome);
            return Some((value, outcome));
        }
        let value = self.pit.as_mut()?.read(port, now)?;
        Some((value, outcome))
    }

    /// A byte written to an I/O port. `None`: the port is not one of these chips'. Ask [`IrqChip::deadline`] again
    /// afterwards.
    pub fn pio_write(&mut self, port: u16, value: u8, now: u64) -> Option<Outcome> {
        let mut outcome = Outcome::default();
        let masked = self.pit_pins_masked();
        if let Some(ended) = self.pic().and_then(|pic| pic.write(port, value)) {
            self.note_unmasking(masked);
            self.acknowledge_pic(ended, &mut outcome);
            return Some(outcome);
        }
        self.pit.as_mut()?.write(port, value, now)?;
        Some(outcome)
    }

    /// The offset in the IOAPIC's window of a guest physical address, if it lies there.
    pub fn ioapic_offset(&self, gpa: u64) -> Option<u64> {
        let chips = self.chips.as_ref()?;
        gpa.checked_sub(chips.ioapic.base_address()).filter(|&offset| offset < IOAPIC_WINDOW)
    }

    /// A read at an offset from [`IrqChip::ioapic_offset`].
    pub fn ioapic_read(&self, offset: u64, data: &mut [u8]) {
        match &self.chips {
            Some(chips) => chips.ioapic.mmio_read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A write at an offset from [`IrqChip::ioapic_offset`].
    pub fn ioapic_write(&mut self, offset: u64, data: &[u8]) -> Outcome {
        let mut outcome = Outcome::default();
        let masked = self.pit_pins_masked();
        if let Some(ioapic) = self.ioapic() {
            outcome.deliveries = ioapic.mmio_write(offset, data);
            self.note_unmasking(masked);
        }
        outcome
    }
}
