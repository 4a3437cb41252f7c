//! The IOAPIC against the 82093AA data sheet and KVM's in-kernel one, through its registers.

use super::*;
use crate::irqchip::delivery::DestMode;

const USER: SourceId = SourceId::USERSPACE;

fn write(ioapic: &mut Ioapic, register: u32, value: u32) -> Vec<Delivery> {
    assert!(ioapic.mmio_write(IOREGSEL, &register.to_le_bytes()).is_empty());
    ioapic.mmio_write(IOWIN, &value.to_le_bytes())
}

fn read(ioapic: &mut Ioapic, register: u32) -> u32 {
    let mut data = [0; 4];
    let _ = ioapic.mmio_write(IOREGSEL, &register.to_le_bytes());
    ioapic.mmio_read(IOWIN, &mut data);
    u32::from_le_bytes(data)
}

/// Pin 5 with this low half of the entry, to APIC 0x12.
fn with_pin(low: u32) -> Ioapic {
    let mut ioapic = Ioapic::default();
    assert!(write(&mut ioapic, 0x1b, 0x1200_0000).is_empty());
    assert!(write(&mut ioapic, 0x1a, low).is_empty());
    ioapic
}

const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const REMOTE_IRR: u32 = 1 << 14;

#[test]
fn registers() {
    let mut ioapic = Ioapic::default();
    assert_eq!(read(&mut ioapic, 1), 0x0017_0011);
    let _ = write(&mut ioapic, 1, u32::MAX);
    assert_eq!(read(&mut ioapic, 1), 0x0017_0011, "read-only");
    let _ = write(&mut ioapic, 0, 0xff12_3456);
    assert_eq!((read(&mut ioapic, 0), read(&mut ioapic, 2)), (0x0f00_0000, 0x0f00_0000));
    for pin in 0..24 {
        assert_eq!(read(&mut ioapic, 0x10 + 2 * pin), MASKED, "pin {pin}");
        assert_eq!(read(&mut ioapic, 0x11 + 2 * pin), 0, "pin {pin}");
        let _ = write(&mut ioapic, 0x10 + 2 * pin, u32::MAX);
        let _ = write(&mut ioapic, 0x11 + 2 * pin, u32::MAX);
        // Delivery status and Remote IRR are read-only, the rest is reserved.
        assert_eq!(read(&mut ioapic, 0x10 + 2 * pin), 0x1_afff, "pin {pin}");
        assert_eq!(read(&mut ioapic, 0x11 + 2 * pin), 0xff00_0000, "pin {pin}");
    }
    // Beyond the table there is nothing.
    for register in [3, 0xf, 0x40, 0xff] {
        let _ = write(&mut ioapic, register, u32::MAX);
        assert_eq!(read(&mut ioapic, register), 0, "register {register:#x}");
    }
    // Only 8 bits select.
    let _ = ioapic.mmio_write(IOREGSEL, &0x1201u32.to_le_bytes());
    let mut data = [0; 8];
    ioapic.mmio_read(IOWIN, &mut data);
    assert_eq!(data, [0x11, 0, 0x17, 0, 0, 0, 0, 0]);
}

#[test]
fn message_of_an_entry() {
    let mut ioapic = with_pin(0x0941);
    let (_, message) = ioapic.set_irq(5, USER, true);
    let expected = Delivery {
        mode: DeliveryMode::LowestPriority,
        dest_mode: DestMode::Logical,
        origin: Origin::Ioapic { pin: 5 },
        ..Delivery::fixed(0x41, 0x12)
    };
    assert_eq!(message, Some(expected));
    ioapic.set_xapic_broadcast(false);
    let _ = ioapic.set_irq(5, USER, false);
    let (_, message) = ioapic.set_irq(5, USER, true);
    assert_eq!(message, Some(Delivery { xapic_broadcast: false, ..expected }));
}

#[test]
fn edges() {
    let mut ioapic = with_pin(0x41);
    let sent = |ioapic: &mut Ioapic, level| ioapic.set_irq(5, USER, level).1.is_some();
    assert!(sent(&mut ioapic, true));
    assert_eq!(ioapic.set_irq(5, USER, true), (LineStatus::COALESCED, None), "no edge");
    assert!(!sent(&mut ioapic, false));
    assert!(sent(&mut ioapic, true), "no EOI is needed");
    assert_eq!(read(&mut ioapic, 0x1a) & REMOTE_IRR, 0);
    assert_eq!(ioapic.eoi_pin(5), None);
    // An edge while masked is lost.
    let mut ioapic = with_pin(MASKED | 0x41);
    assert_eq!(ioapic.set_irq(5, USER, true), (LineStatus::IGNORED, None));
    assert!(write(&mut ioapic, 0x1a, 0x41).is_empty());
    assert!(!sent(&mut ioapic, false));
    assert!(sent(&mut ioapic, true));
}

#[test]
fn levels_and_remote_irr() {
    let mut ioapic = with_pin(LEVEL | 0x41);
    let (_, message) = ioapic.set_irq(5, USER, true);
    assert_eq!(message.map(|message| message.trigger), Some(Trigger::Level));
    assert_eq!(read(&mut ioapic, 0x1a), LEVEL | REMOTE_IRR | 0x41);
    // Nothing more is sent before the EOI, however the line moves.
    assert_eq!(ioapic.set_irq(5, USER, false).1, None);
    assert_eq!(ioapic.set_irq(5, USER, true).1, None);
    // Still asserted at the EOI: sent again.
    assert_eq!(ioapic.eoi_pin(5), message);
    assert_eq!(read(&mut ioapic, 0x1a), LEVEL | REMOTE_IRR | 0x41);
    // Released before the EOI: done.
    assert_eq!(ioapic.set_irq(5, USER, false).1, None);
    assert_eq!(ioapic.eoi_pin(5), None);
    assert_eq!(read(&mut ioapic, 0x1a), LEVEL | 0x41);
    assert!(ioapic.set_irq(5, USER, true).1.is_some());
}

#[test]
fn level_while_masked_waits() {
    let mut ioapic = with_pin(LEVEL | MASKED | 0x41);
    assert_eq!(ioapic.set_irq(5, USER, true), (LineStatus::IGNORED, None));
    assert_eq!(write(&mut ioapic, 0x1a, LEVEL | 0x41).len(), 1, "sent when unmasked");
    // Masked between interrupt and EOI: Remote IRR goes, the line waits for the mask.
    assert!(write(&mut ioapic, 0x1a, LEVEL | MASKED | 0x41).is_empty());
    assert_eq!(ioapic.eoi_pin(5), None);
    assert_eq!(read(&mut ioapic, 0x1a), LEVEL | MASKED | 0x41);
    assert_eq!(write(&mut ioapic, 0x1a, LEVEL | 0x41).len(), 1);
    // Unmasked again without an EOI: not sent twice.
    assert!(write(&mut ioapic, 0x1a, LEVEL | MASKED | 0x41).is_empty());
    assert!(write(&mut ioapic, 0x1a, LEVEL | 0x41).is_empty());
}

#[test]
fn switching_to_edge_clears_remote_irr() {
    let mut ioapic = with_pin(LEVEL | 0x41);
    let _ = ioapic.set_irq(5, USER, true);
    let _ = ioapic.set_irq(5, USER, false);
    assert!(write(&mut ioapic, 0x1a, MASKED | 0x41).is_empty());
    assert!(write(&mut ioapic, 0x1a, LEVEL | 0x41).is_empty());
    assert_eq!(read(&mut ioapic, 0x1a), LEVEL | 0x41);
    assert!(ioapic.set_irq(5, USER, true).1.is_some());
}

#[test]
fn refused_level_is_sent_again_later() {
    let mut ioapic = with_pin(LEVEL | 0x41);
    let _ = ioapic.set_irq(5, USER, true);
    ioapic.refused(5);
    assert_eq!(read(&mut ioapic, 0x1a) & REMOTE_IRR, 0);
    assert!(ioapic.set_irq(5, USER, true).1.is_some());
}

#[test]
fn sources_are_ored() {
    let mut ioapic = with_pin(0x41);
    assert!(ioapic.set_irq(5, USER, true).1.is_some());
    assert!(ioapic.set_irq(5, SourceId::RESAMPLE, true).1.is_none(), "no new edge");
    let _ = ioapic.set_irq(5, USER, false);
    assert!(ioapic.set_irq(5, USER, true).1.is_none(), "the other source still holds it");
    let _ = ioapic.set_irq(5, USER, false);
    let _ = ioapic.set_irq(5, SourceId::RESAMPLE, false);
    assert!(ioapic.set_irq(5, USER, true).1.is_some());
    assert_eq!(ioapic.set_irq(24, USER, true), (LineStatus::IGNORED, None), "no such pin");
}

#[test]
fn pins_by_vector() {
    let mut ioapic = with_pin(LEVEL | 0x41);
    let _ = write(&mut ioapic, 0x10 + 2 * 23, LEVEL | 0x41);
    assert_eq!(ioapic.pins_with_vector(0x41).collect::<Vec<_>>(), [5, 23]);
    assert!(ioapic.handles_vector(0x41) && !ioapic.handles_vector(0x42));
}

#[test]
fn eoi_register_from_version_0x20() {
    for (version, sent) in [(0x11, 0), (0x20, 1)] {
        let mut ioapic = Ioapic::new(version);
        let _ = write(&mut ioapic, 0x1a, LEVEL | 0x41);
        assert_eq!(read(&mut ioapic, 1) & 0xff, u32::from(version));
        let _ = ioapic.set_irq(5, USER, true);
        assert_eq!(ioapic.mmio_write(IOEOI, &0x41u32.to_le_bytes()).len(), sent, "version {version:#x}");
    }
}

#[test]
fn state_round_trip_and_reload() {
    let mut ioapic = with_pin(LEVEL | 0x41);
    let _ = write(&mut ioapic, 0x10 + 2 * 9, 0x51);
    let _ = write(&mut ioapic, 0x10 + 2 * 10, MASKED | LEVEL | 0x52);
    for pin in [5, 9, 10] {
        let _ = ioapic.set_irq(pin, USER, true);
    }
    let state = ioapic.state();
    let mut other = Ioapic::default();
    other.set_state(&state);
    assert_eq!(other, ioapic);
    // The sent edge is not pending any more; the levels are.
    assert_eq!(ioapic.saved_irr(), 1 << 5 | 1 << 10);
    // An edge that was sent, and a second one that was not: pending.
    let mut second = ioapic.clone();
    let _ = second.set_irq(9, USER, false);
    let _ = write(&mut second, 0x10 + 2 * 9, MASKED | 0x51);
    let _ = second.set_irq(9, USER, true);
    assert_eq!(second.saved_irr() & 1 << 9, 1 << 9);
    // Restored as KVM does: pin 5 has its Remote IRR and is not sent twice, pin 10 is masked; once unmasked it is sent.
    let uapi = IoapicState { irr: ioapic.saved_irr(), irr_delivered: 0, irq_states: [0; 24], ..state };
    let mut other = Ioapic::default();
    assert!(other.reload(&uapi).is_empty());
    assert_eq!(write(&mut other, 0x10 + 2 * 10, LEVEL | 0x52).len(), 1);
    assert!(other.eoi_pin(5).is_some());
    // A pending level whose Remote IRR is clear is sent by the restore.
    let mut entries = uapi.redirtbl;
    entries[5] = RedirectionEntry(u64::from(LEVEL | 0x41));
    let sent = Ioapic::default().reload(&IoapicState { redirtbl: entries, ..uapi });
    assert_eq!(sent.iter().map(|message| message.vector).collect::<Vec<_>>(), [0x41]);
}
