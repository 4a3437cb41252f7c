//! The chips together: wiring, delivery over several local APICs, acknowledgement, the PIT's ticks.
//!
//! [`Machine`] does what a VM does: it carries what the state machines return from one to the next. It counts how many
//! things are locked at once, and fails above one.

use super::delivery::{DeliveryMode, DestMode, LapicBus, Shorthand, deliver};
use super::lapic::{Accepted, Lapic, LapicConfig, LapicEffect};
use super::routing::Route;
use super::*;
use crate::clock::Now;
use std::cell::{Cell, RefCell};
use x86_arch::apic::*;

const USER: SourceId = SourceId::USERSPACE;

struct Lapics {
    all: Vec<RefCell<Lapic>>,
    locked: Cell<u32>,
    kicks: RefCell<Vec<(usize, Accepted)>>,
}

impl LapicBus for Lapics {
    fn count(&self) -> usize {
        self.all.len()
    }

    fn with_lapic(&self, index: usize, f: &mut dyn FnMut(&mut Lapic)) {
        assert_eq!(self.locked.replace(1), 0, "two local APICs locked together");
        f(&mut self.all[index].borrow_mut());
        self.locked.set(0);
    }

    fn kick(&self, index: usize, accepted: Accepted) {
        assert_eq!(self.locked.get(), 0, "a kick under a lock");
        self.kicks.borrow_mut().push((index, accepted));
    }
}

struct Machine {
    chip: IrqChip,
    bus: Lapics,
}

impl Machine {
    /// Local APICs enabled by software; logical ids 1, 2, 4 … in the flat model.
    fn new(vcpus: u32) -> Machine {
        let lapic = |id| {
            let mut lapic = Lapic::new(LapicConfig::new(id, id == 0));
            for (register, value) in [(APIC_SVR, 0x1ffu32), (APIC_LDR, 1 << (24 + id))] {
                let _ = lapic.mmio_write(register.into(), &value.to_le_bytes(), &Now::at(0));
            }
            RefCell::new(lapic)
        };
        let mut chip = IrqChip::full();
        chip.create_pit();
        let all = (0..vcpus).map(lapic).collect();
        Machine { chip, bus: Lapics { all, locked: Cell::new(0), kicks: RefCell::default() } }
    }

    /// Carries an outcome out; returns the figure of KVM_IRQ_LINE_STATUS.
    fn carry(&mut self, outcome: Outcome) -> i32 {
        let mut status = outcome.status;
        for message in &outcome.deliveries {
            let result = deliver(message, None, &self.bus);
            self.chip.delivered(message, result);
            status = status.and(LineStatus::delivered(result.status()));
        }
        status.value()
    }

    fn line(&mut self, gsi: u32, level: bool) -> i32 {
        let outcome = self.chip.set_irq(gsi, USER, level);
        self.carry(outcome)
    }

    fn lapic(&self, index: usize) -> std::cell::RefMut<'_, Lapic> {
        self.bus.all[index].borrow_mut()
    }

    /// The vCPU takes its interrupt.
    fn take(&self, index: usize) -> Option<u8> {
        self.lapic(index).ack()
    }

    /// The vCPU ends its interrupt; returns the GSIs that were acknowledged.
    fn eoi(&mut self, index: usize) -> Vec<u32> {
        let effect = self.lapic(index).mmio_write(APIC_EOI.into(), &[0; 4], &Now::at(0));
        let LapicEffect::Eoi(eoi) = effect else { panic!("{effect:?}") };
        let outcome = self.chip.eoi(&eoi);
        let acked = outcome.acked.clone();
        self.carry(outcome);
        acked
    }

    fn redirect(&mut self, pin: u32, low: u32, dest: u32) {
        for (register, value) in [(0x11 + 2 * pin, dest << 24), (0x10 + 2 * pin, low)] {
            for (offset, value) in [(0, register), (0x10, value)] {
                let outcome = self.chip.ioapic_write(offset, &value.to_le_bytes());
                self.carry(outcome);
            }
        }
    }

    fn out(&mut self, port: u16, value: u8, now: u64) {
        let outcome = self.chip.pio_write(port, value, now).unwrap();
        self.carry(outcome);
    }

    fn init_pics(&mut self) {
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x30),
            (0x21, 4),
            (0x21, 1),
            (0xa0, 0x11),
            (0xa1, 0x38),
            (0xa1, 2),
            (0xa1, 1),
            (0x21, 0),
            (0xa1, 0),
        ] {
            self.out(port, value, 0);
        }
    }

    /// Indices of the local APICs that have this vector requested.
    fn holders(&self, vector: u8) -> Vec<usize> {
        (0..self.bus.count()).filter(|&i| self.lapic(i).highest_requested() == Some(vector)).collect()
    }
}

// ---- Delivery -----------------------------------------------------------------------------------------------------

#[test]
fn destinations_and_shorthands() {
    let base = Delivery { xapic_broadcast: false, ..Delivery::fixed(0x60, 2) };
    let shorthand = |shorthand| Delivery { shorthand, ..base };
    let logical = |dest| Delivery { dest, dest_mode: DestMode::Logical, ..base };
    let rows = [
        (base, vec![2]),
        (Delivery { dest: 9, ..base }, vec![]),
        (Delivery { dest: 0xff, ..base }, vec![0, 1, 2, 3]),
        (logical(0b1010), vec![1, 3]),
        (logical(0b1_0000), vec![]),
        (shorthand(Shorthand::ToSelf), vec![1]),
        (shorthand(Shorthand::AllIncludingSelf), vec![0, 1, 2, 3]),
        (shorthand(Shorthand::AllExcludingSelf), vec![0, 2, 3]),
    ];
    for (message, expected) in rows {
        let machine = Machine::new(4);
        let result = deliver(&message, Some(1), &machine.bus);
        assert_eq!(machine.holders(0x60), expected, "{message:?}");
        let count = expected.len() as u32;
        assert_eq!((result.matched, result.accepted), (count, count));
        assert_eq!(result.status(), if count == 0 { -1 } else { count as i32 });
        let kicked: Vec<usize> = machine.bus.kicks.borrow().iter().map(|kick| kick.0).collect();
        assert_eq!(kicked, expected);
    }
}

#[test]
fn broadcast_quirk_reaches_x2apics() {
    for (quirk, expected) in [(true, vec![0, 1]), (false, vec![0])] {
        let mut machine = Machine::new(2);
        let base = machine.lapic(1).apic_base();
        machine.lapic(1).write_apic_base(base | APIC_BASE_X2APIC).unwrap();
        machine.chip.set_x2apic_api(true, !quirk);
        let msi = Msi { address_lo: 0xfeef_f000, address_hi: 0, data: 0x60 };
        let message = machine.chip.signal_msi(&msi).unwrap();
        deliver(&message, None, &machine.bus);
        assert_eq!(machine.holders(0x60), expected, "MSI, quirk {quirk}");
        let mut machine = Machine { bus: Machine::new(2).bus, ..machine };
        machine.lapic(1).write_apic_base(base | APIC_BASE_X2APIC).unwrap();
        machine.redirect(20, 0x61, 0xff);
        machine.line(20, true);
        assert_eq!(machine.holders(0x61), expected, "IOAPIC, quirk {quirk}");
    }
    let machine = Machine::new(1);
    let mut chip = machine.chip.clone();
    chip.set_x2apic_api(true, false);
    assert_eq!(chip.signal_msi(&Msi { address_hi: 1, ..Msi::default() }), None);
}

#[test]
fn lowest_priority_goes_to_one() {
    let mut seen = [0; 3];
    for vector in 0x30..0x60u8 {
        let machine = Machine::new(4);
        // Number 2 is disabled by software: not a candidate, yet addressed.
        machine.lapic(2).mmio_write(APIC_SVR.into(), &0xffu32.to_le_bytes(), &Now::at(0)).ignore();
        let message = Delivery {
            mode: DeliveryMode::LowestPriority,
            dest_mode: DestMode::Logical,
            ..Delivery::fixed(vector, 0xf)
        };
        let result = deliver(&message, None, &machine.bus);
        assert_eq!((result.matched, result.accepted), (4, 1));
        let holders = machine.holders(vector);
        assert_eq!(holders.len(), 1, "vector {vector:#x}");
        let slot = [0, 1, 3].iter().position(|&index| index == holders[0]).unwrap();
        seen[slot] += 1;
        // The redirection hint of an MSI means the same.
        let machine = Machine::new(4);
        let hint = Delivery { mode: DeliveryMode::Fixed, redirection_hint: true, ..message };
        assert_eq!(deliver(&hint, None, &machine.bus).accepted, 1);
    }
    assert_eq!(seen, [16; 3], "evenly, by vector");
    // Nobody enabled: nobody takes it.
    let machine = Machine::new(1);
    machine.lapic(0).mmio_write(APIC_SVR.into(), &0xffu32.to_le_bytes(), &Now::at(0)).ignore();
    let message = Delivery { mode: DeliveryMode::LowestPriority, ..Delivery::fixed(0x40, 0) };
    assert_eq!(deliver(&message, None, &machine.bus).status(), 0);
}

trait Ignore {
    fn ignore(self);
}

impl Ignore for LapicEffect {
    fn ignore(self) {}
}

// ---- Lines --------------------------------------------------------------------------------------------------------

#[test]
fn a_gsi_reaches_both_chips() {
    let mut machine = Machine::new(1);
    machine.init_pics();
    machine.redirect(4, 0x44, 0);
    assert_eq!(machine.line(4, true), 2, "PIC and one processor");
    assert!(machine.chip.int_pending());
    assert_eq!(machine.chip.pic_ack().unwrap().0, 0x34);
    assert_eq!(machine.take(0), Some(0x44));
    assert_eq!(machine.line(4, false), 2);
    // GSI 16 and up go to the IOAPIC alone, and nothing is beyond 23.
    machine.redirect(20, 0x54, 0);
    assert_eq!(machine.line(20, true), 1);
    assert!(!machine.chip.int_pending());
    assert_eq!(machine.take(0), Some(0x54));
    assert_eq!(machine.line(24, true), -1);
}

#[test]
fn the_slave_is_heard_after_every_access() {
    let mut machine = Machine::new(1);
    machine.init_pics();
    machine.out(0xa1, 0xff, 0);
    machine.line(12, true);
    machine.line(9, true);
    assert!(!machine.chip.int_pending());
    machine.out(0xa1, 0, 0);
    assert!(machine.chip.int_pending(), "unmasked");
    assert_eq!(machine.chip.pic_ack().unwrap().0, 0x39);
    machine.out(0x20, 0x20, 0);
    assert!(!machine.chip.int_pending());
    machine.out(0xa0, 0x20, 0);
    assert!(machine.chip.int_pending(), "the next one, after the EOI");
    assert_eq!(machine.chip.pic_ack().unwrap().0, 0x3c);
}

#[test]
fn status_of_masked_and_coalesced_lines() {
    let mut machine = Machine::new(1);
    machine.init_pics();
    machine.out(0x21, 0xff, 0);
    assert_eq!(machine.line(4, true), -1, "masked in both chips");
    machine.line(4, false);
    machine.redirect(4, 0x44, 0);
    assert_eq!(machine.line(4, true), 1);
    assert_eq!(machine.line(4, true), 0, "no edge");
}

#[test]
fn level_interrupt_until_eoi() {
    let mut machine = Machine::new(2);
    machine.redirect(20, 0x8054, 1);
    assert_eq!(machine.line(20, true), 1);
    assert_eq!(machine.take(1), Some(0x54));
    machine.eoi(1);
    assert_eq!(machine.take(1), Some(0x54), "still asserted");
    machine.line(20, false);
    machine.eoi(1);
    assert_eq!(machine.take(1), None);
    // Another source's EOI of an edge-triggered vector is none of this pin's business.
    machine.line(20, true);
    assert_eq!(machine.take(1), Some(0x54));
    machine.lapic(0).accept_interrupt(0x54, Trigger::Edge);
    assert_eq!(machine.take(0), Some(0x54));
    machine.eoi(0);
    assert_eq!(machine.lapic(1).highest_requested(), None, "its Remote IRR stands");
    // Nor is one that software keeps from being broadcast.
    let kept = Eoi { vector: 0x54, level: true, broadcast: false };
    assert!(machine.chip.eoi(&kept).deliveries.is_empty());
    machine.eoi(1);
    assert_eq!(machine.take(1), Some(0x54));
}

#[test]
fn a_refused_level_does_not_block_its_pin() {
    let mut machine = Machine::new(1);
    machine.lapic(0).mmio_write(APIC_SVR.into(), &0xffu32.to_le_bytes(), &Now::at(0)).ignore();
    machine.redirect(20, 0x8054, 0);
    assert_eq!(machine.line(20, true), 0, "the local APIC is off");
    machine.lapic(0).mmio_write(APIC_SVR.into(), &0x1ffu32.to_le_bytes(), &Now::at(0)).ignore();
    assert_eq!(machine.line(20, true), 1);
    assert_eq!(machine.take(0), Some(0x54));
}

#[test]
fn a_level_to_nobody_does_not_block_its_pin() {
    let mut machine = Machine::new(1);
    machine.redirect(20, 0x8054, 9);
    assert_eq!(machine.line(20, true), -1);
    machine.redirect(20, 0x8054, 0);
    assert_eq!(machine.take(0), Some(0x54), "sent to the new destination");
}

#[test]
fn routed_messages() {
    let mut machine = Machine::new(2);
    let msi = Msi { address_lo: 0xfee0_1000, address_hi: 0, data: 0x71 };
    let routes = [Route { gsi: 100, target: Target::Msi(msi) }];
    machine.chip.set_routing(Routing::new(&routes, false).unwrap());
    assert_eq!(machine.line(100, false), -1);
    assert_eq!(machine.line(100, true), 1);
    assert_eq!(machine.take(1), Some(0x71));
    assert_eq!(machine.line(4, true), -1, "the default wiring is gone");
}

#[test]
fn split_irqchip() {
    let mut chip = IrqChip::split();
    assert!(chip.is_split() && !chip.int_pending() && chip.pic_ack().is_none());
    assert_eq!((chip.pio_read(0x20, 0), chip.ioapic_offset(IOAPIC_BASE)), (None, None));
    assert!(chip.set_irq(4, USER, true).deliveries.is_empty());
    let eoi = Eoi { vector: 0x40, level: true, broadcast: true };
    assert_eq!(chip.eoi(&eoi), Outcome::default());
}

/// An I/O APIC in user space beside the one here, as QEMU's microvm has it.
#[test]
fn user_space_hears_of_its_own_level_messages() {
    let mut machine = Machine::new(1);
    let eoi = |vector| Eoi { vector, level: true, broadcast: true };
    assert!(!machine.chip.tells_eoi(&eoi(0x54)) && !machine.chip.waits_for_eoi(0x54));
    let send =
        |chip: &mut IrqChip, data| chip.signal_msi(&Msi { address_lo: 0xfee0_0000, address_hi: 0, data });
    assert!(send(&mut machine.chip, 0x54).is_some() && !machine.chip.tells_eoi(&eoi(0x54)), "an edge");
    assert!(send(&mut machine.chip, 0xc054).is_some() && machine.chip.waits_for_eoi(0x54));
    for other in [eoi(0x55), eoi(0x14), eoi(0x94)] {
        assert!(!machine.chip.tells_eoi(&other), "{other:?}");
    }
    assert!(machine.chip.tells_eoi(&eoi(0x54)), "once");
    assert!(!machine.chip.tells_eoi(&eoi(0x54)) && !machine.chip.waits_for_eoi(0x54));
    for other in [Eoi { level: false, ..eoi(0x54) }, Eoi { broadcast: false, ..eoi(0x54) }] {
        assert!(send(&mut machine.chip, 0xc054).is_some() && !machine.chip.tells_eoi(&other), "{other:?}");
    }
    // What waits in a local APIC that is set down in another VM.
    let message = send(&mut machine.chip, 0xc054).unwrap();
    deliver(&message, None, &machine.bus);
    assert_eq!(machine.lapic(0).level_vectors(), [0, 1 << 0x14, 0, 0]);
    let mut other = IrqChip::full();
    other.restored(machine.lapic(0).level_vectors());
    assert!(other.tells_eoi(&eoi(0x54)));
    machine.redirect(20, 0x8054, 0);
    assert!(machine.chip.waits_for_eoi(0x54) && !machine.chip.tells_eoi(&eoi(0x54)), "a pin here has it");
}

#[test]
fn windows() {
    let chip = IrqChip::full();
    assert_eq!(chip.ioapic_offset(IOAPIC_BASE), Some(0));
    assert_eq!(chip.ioapic_offset(IOAPIC_BASE + 0xff), Some(0xff));
    assert_eq!(chip.ioapic_offset(IOAPIC_BASE + 0x100), None);
    assert_eq!(chip.ioapic_offset(IOAPIC_BASE - 1), None);
    let mut chip = IrqChip::full();
    assert_eq!((chip.pio_read(0x40, 0), chip.pio_read(0x80, 0)), (None, None), "no PIT yet");
    chip.create_pit();
    assert!(chip.pio_read(0x40, 0).is_some());
}

// ---- Acknowledgement ----------------------------------------------------------------------------------------------

#[test]
fn resampling() {
    let mut machine = Machine::new(1);
    machine.redirect(20, 0x8054, 0);
    machine.chip.add_resampler(20);
    let outcome = machine.chip.set_irq(20, SourceId::RESAMPLE, true);
    machine.carry(outcome);
    assert_eq!(machine.take(0), Some(0x54));
    // The line falls with the EOI, before it is looked at again.
    assert_eq!(machine.eoi(0), [20]);
    assert_eq!(machine.take(0), None);
    // Someone else holds it: again.
    machine.line(20, true);
    assert_eq!(machine.take(0), Some(0x54));
    assert_eq!(machine.eoi(0), [20]);
    assert_eq!(machine.take(0), Some(0x54));
    // Through the PIC.
    machine.init_pics();
    machine.chip.add_resampler(10);
    machine.out(0x4d1, 0x04, 0);
    let _ = machine.chip.set_irq(10, SourceId::RESAMPLE, true);
    assert_eq!(machine.chip.pic_ack().unwrap().0, 0x3a);
    let outcome = machine.chip.pio_write(0xa0, 0x20, 0).unwrap();
    assert_eq!(outcome.acked, [10]);
    machine.out(0x20, 0x20, 0);
    assert!(!machine.chip.int_pending());
    // Detached: released.
    let _ = machine.chip.set_irq(10, SourceId::RESAMPLE, true);
    assert!(machine.chip.int_pending());
    let _ = machine.chip.remove_resampler(10);
    assert_eq!(machine.chip.pic().unwrap().irq_states()[10], 0);
}

/// The PIT at about 1 kHz, from time 0.
fn start_pit(machine: &mut Machine) -> u64 {
    for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
        machine.out(port, value, 0);
    }
    machine.chip.deadline().unwrap()
}

#[test]
fn pit_ticks_through_the_pic() {
    let mut machine = Machine::new(1);
    machine.init_pics();
    let period = start_pit(&mut machine);
    assert!((999_000..1_001_000).contains(&period));
    assert_eq!(machine.chip.expire(period - 1), Outcome::default());
    let outcome = machine.chip.expire(period);
    assert!(outcome.pit_tick && machine.chip.int_pending());
    assert_eq!(machine.chip.pic_ack().unwrap().0, 0x30);
    // Two more pass while it is in service; they follow one by one.
    let _ = machine.chip.expire(3 * period);
    for _ in 0..2 {
        assert!(!machine.chip.int_pending());
        machine.out(0x20, 0x20, 0);
        assert!(machine.chip.int_pending(), "reinjected");
        assert_eq!(machine.chip.pic_ack().unwrap().0, 0x30);
    }
    machine.out(0x20, 0x20, 0);
    assert!(!machine.chip.int_pending());
}

#[test]
fn pit_ticks_through_the_ioapic() {
    // As a PC's tables say: GSI 0 at pin 2.
    let mut machine = Machine::new(1);
    let routes = [Route { gsi: 0, target: Target::Pin { chip: Chip::Ioapic, pin: 2 } }];
    machine.chip.set_routing(Routing::new(&routes, false).unwrap());
    machine.redirect(2, 0x40, 0);
    let period = start_pit(&mut machine);
    let outcome = machine.chip.expire(3 * period);
    machine.carry(outcome);
    for _ in 0..3 {
        assert_eq!(machine.take(0), Some(0x40));
        machine.eoi(0);
    }
    assert_eq!(machine.take(0), None);
}

#[test]
fn unmasking_forgets_missed_ticks() {
    for through_pic in [true, false] {
        let mut machine = Machine::new(1);
        machine.init_pics();
        machine.out(0x21, 1, 0);
        let period = start_pit(&mut machine);
        // Nobody hears these.
        let _ = machine.chip.expire(period);
        let _ = machine.chip.expire(50 * period);
        assert_eq!(machine.chip.pit().unwrap().state().pending, 50);
        if through_pic {
            machine.out(0x21, 0, 0);
        } else {
            machine.redirect(0, 0x40, 0);
        }
        assert_eq!(machine.chip.pit().unwrap().state().pending, 0, "PIC {through_pic}");
        let outcome = machine.chip.expire(51 * period);
        assert!(outcome.pit_tick);
    }
}
