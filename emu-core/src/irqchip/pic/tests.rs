//! The two 8259As against the data sheet, through their ports.

use super::*;

const USER: SourceId = SourceId::USERSPACE;

fn write(pic: &mut PicPair, port: u16, value: u8) -> EndedIrqs {
    let ended = pic.write(port, value).unwrap();
    pic.settle();
    ended
}

fn read(pic: &mut PicPair, port: u16) -> u8 {
    let (value, _) = pic.read(port).unwrap();
    pic.settle();
    value
}

/// Initialised as a PC does: vectors 0x30 and 0x38, nothing masked. `icw4` for both.
fn initialised_with(icw4: u8) -> PicPair {
    let mut pic = PicPair::default();
    for (command, icw2, icw3) in [(0x20, 0x30, 0x04), (0xa0, 0x38, 0x02)] {
        write(&mut pic, command, 0x11);
        for value in [icw2, icw3, icw4, 0x00] {
            write(&mut pic, command + 1, value);
        }
    }
    pic
}

fn initialised() -> PicPair {
    initialised_with(0x01)
}

fn pulse(pic: &mut PicPair, irq: u8) {
    pic.set_irq(irq, USER, true);
    pic.set_irq(irq, USER, false);
}

fn inta(pic: &mut PicPair) -> (u8, EndedIrqs) {
    let result = pic.ack();
    pic.settle();
    result
}

fn ack(pic: &mut PicPair) -> Option<u8> {
    pic.int_pending().then(|| inta(pic).0)
}

/// The IRR, or the ISR, of the master.
fn irr(pic: &mut PicPair) -> u8 {
    write(pic, 0x20, 0x0a);
    read(pic, 0x20)
}

fn isr(pic: &mut PicPair) -> u8 {
    write(pic, 0x20, 0x0b);
    read(pic, 0x20)
}

#[test]
fn initialisation_sequence() {
    let mut pic = PicPair::default();
    write(&mut pic, 0x21, 0xff);
    write(&mut pic, 0x20, 0x11);
    assert_eq!((pic.state(true).init_state, read(&mut pic, 0x21)), (1, 0), "ICW1 clears the mask");
    write(&mut pic, 0x21, 0x47);
    assert_eq!((pic.state(true).init_state, pic.state(true).irq_base), (2, 0x40));
    write(&mut pic, 0x21, 0x04);
    assert_eq!(pic.state(true).init_state, 3);
    write(&mut pic, 0x21, 0x13);
    let state = pic.state(true);
    assert_eq!((state.init_state, state.auto_eoi, state.special_fully_nested_mode), (0, 1, 1));
    write(&mut pic, 0x21, 0xa5);
    assert_eq!(read(&mut pic, 0x21), 0xa5);
    // Without ICW4 its functions are off.
    write(&mut pic, 0x20, 0x10);
    write(&mut pic, 0x21, 0x48);
    write(&mut pic, 0x21, 0x04);
    let state = pic.state(true);
    assert_eq!((state.init_state, state.auto_eoi, state.special_fully_nested_mode), (0, 0, 0));
    write(&mut pic, 0x21, 0x5a);
    assert_eq!(read(&mut pic, 0x21), 0x5a, "the next byte is a mask");
}

#[test]
fn icw1_forgets_edges_and_keeps_levels() {
    let mut pic = initialised();
    write(&mut pic, 0x4d0, 0x20);
    pic.set_irq(5, USER, true);
    pulse(&mut pic, 4);
    pulse(&mut pic, 3);
    assert_eq!(ack(&mut pic), Some(0x33));
    assert_eq!(write(&mut pic, 0x20, 0x11), 1 << 3 | 1 << 4, "their interrupts are over");
    assert_eq!((irr(&mut pic), isr(&mut pic)), (0x20, 0));
}

#[test]
fn ports() {
    let mut pic = PicPair::default();
    for port in [0x22, 0x9f, 0xa2, 0x4cf, 0x4d2, 0x40] {
        assert_eq!((pic.read(port), pic.write(port, 0)), (None, None), "port {port:#x}");
    }
    write(&mut pic, 0x4d0, 0xff);
    write(&mut pic, 0x4d1, 0xff);
    assert_eq!((read(&mut pic, 0x4d0), read(&mut pic, 0x4d1)), (0xf8, 0xde), "timer, keyboard … are edges");
}

#[test]
fn fixed_priorities_and_nesting() {
    let mut pic = initialised();
    for irq in [6, 4, 1] {
        pulse(&mut pic, irq);
    }
    assert_eq!(irr(&mut pic), 0x52);
    assert_eq!(ack(&mut pic), Some(0x31));
    assert_eq!((irr(&mut pic), isr(&mut pic)), (0x50, 0x02));
    assert_eq!(ack(&mut pic), None, "lower ones wait");
    pulse(&mut pic, 1);
    assert_eq!(ack(&mut pic), None, "and so does the same one");
    pulse(&mut pic, 0);
    assert_eq!(ack(&mut pic), Some(0x30), "a higher one nests");
    // Non-specific EOIs end the highest first.
    assert_eq!(write(&mut pic, 0x20, 0x20), 1 << 0);
    assert_eq!(write(&mut pic, 0x20, 0x20), 1 << 1);
    assert_eq!(write(&mut pic, 0x20, 0x20), 0, "nothing in service");
    for vector in [0x31, 0x34, 0x36] {
        assert_eq!(ack(&mut pic), Some(vector));
        write(&mut pic, 0x20, 0x20);
    }
    assert_eq!(ack(&mut pic), None);
}

#[test]
fn specific_eoi() {
    let mut pic = initialised();
    pulse(&mut pic, 5);
    ack(&mut pic);
    pulse(&mut pic, 3);
    ack(&mut pic);
    assert_eq!(isr(&mut pic), 0x28);
    assert_eq!(write(&mut pic, 0x20, 0x65), 1 << 5);
    assert_eq!(isr(&mut pic), 0x08);
    assert_eq!(write(&mut pic, 0x20, 0x65), 0, "it had ended");
}

#[test]
fn masks() {
    let mut pic = initialised();
    write(&mut pic, 0x21, 0x08);
    assert_eq!(pic.set_irq(3, USER, true), LineStatus::IGNORED);
    pic.set_irq(3, USER, false);
    assert!(!pic.int_pending());
    assert!(pic.is_masked(3) && !pic.is_masked(11));
    assert_eq!(irr(&mut pic), 0x08, "the request is kept");
    write(&mut pic, 0x21, 0x00);
    assert_eq!(ack(&mut pic), Some(0x33));
    // The master's cascade input masks the whole slave.
    let mut pic = initialised();
    write(&mut pic, 0x21, 0x04);
    pulse(&mut pic, 12);
    assert!(!pic.int_pending());
    write(&mut pic, 0x21, 0x00);
    assert_eq!(ack(&mut pic), Some(0x3c));
}

#[test]
fn edges() {
    let mut pic = initialised();
    pic.set_irq(4, USER, true);
    assert_eq!(ack(&mut pic), Some(0x34));
    write(&mut pic, 0x20, 0x20);
    assert!(!pic.int_pending(), "the line is still high: no new edge");
    pic.set_irq(4, USER, true);
    assert!(!pic.int_pending());
    pic.set_irq(4, USER, false);
    pic.set_irq(4, USER, true);
    assert_eq!(ack(&mut pic), Some(0x34));
    // One edge is kept while one is in service.
    pic.set_irq(4, USER, false);
    assert_eq!(pic.set_irq(4, USER, true), LineStatus::delivered(1));
    pic.set_irq(4, USER, false);
    assert_eq!(pic.set_irq(4, USER, true), LineStatus::COALESCED);
    write(&mut pic, 0x20, 0x20);
    assert_eq!(ack(&mut pic), Some(0x34));
    write(&mut pic, 0x20, 0x20);
    assert_eq!(ack(&mut pic), None);
}

#[test]
fn levels() {
    let mut pic = initialised();
    write(&mut pic, 0x4d1, 0x08);
    pic.set_irq(11, USER, true);
    assert_eq!(ack(&mut pic), Some(0x3b));
    assert!(!pic.int_pending(), "in service");
    write(&mut pic, 0xa0, 0x20);
    write(&mut pic, 0x20, 0x20);
    assert_eq!(ack(&mut pic), Some(0x3b), "still asserted after the EOI: again");
    pic.set_irq(11, USER, false);
    write(&mut pic, 0xa0, 0x20);
    write(&mut pic, 0x20, 0x20);
    assert_eq!(ack(&mut pic), None);
}

#[test]
fn cascade() {
    let mut pic = initialised();
    pulse(&mut pic, 14);
    pulse(&mut pic, 3);
    pulse(&mut pic, 9);
    // The slave sits at IRQ 2: above 3, below 1.
    assert_eq!(ack(&mut pic), Some(0x39));
    assert_eq!(isr(&mut pic), 0x04);
    pulse(&mut pic, 1);
    assert_eq!(ack(&mut pic), Some(0x31));
    assert_eq!(write(&mut pic, 0x20, 0x20), 1 << 1);
    assert_eq!(write(&mut pic, 0xa0, 0x20), 1 << 9);
    assert_eq!(ack(&mut pic), None, "the master still serves its IRQ 2");
    assert_eq!(write(&mut pic, 0x20, 0x20), 1 << 2);
    assert_eq!(ack(&mut pic), Some(0x3e));
    write(&mut pic, 0xa0, 0x20);
    write(&mut pic, 0x20, 0x20);
    assert_eq!(ack(&mut pic), Some(0x33));
}

#[test]
fn special_fully_nested() {
    for (icw4, nests) in [(0x01, None), (0x11, Some(0x38))] {
        let mut pic = initialised_with(icw4);
        pulse(&mut pic, 12);
        assert_eq!(ack(&mut pic), Some(0x3c));
        pulse(&mut pic, 8);
        assert_eq!(ack(&mut pic), nests, "ICW4 {icw4:#x}");
    }
}

#[test]
fn spurious() {
    let mut pic = initialised();
    assert_eq!(inta(&mut pic), (0x37, 0), "nothing at all: IRQ 7");
    assert_eq!(isr(&mut pic), 0, "and not in service");
    // The slave's request goes away after it reached the master: IRQ 15, and the master needs an EOI.
    write(&mut pic, 0x4d1, 0x08);
    pic.set_irq(11, USER, true);
    pic.set_irq(11, USER, false);
    assert_eq!(ack(&mut pic), Some(0x3f));
    write(&mut pic, 0xa0, 0x0b);
    assert_eq!(read(&mut pic, 0xa0), 0);
    assert_eq!(write(&mut pic, 0x20, 0x20), 1 << 2);
    // A level that goes away before INTA.
    let mut pic = initialised();
    write(&mut pic, 0x4d0, 0x20);
    pic.set_irq(5, USER, true);
    pic.set_irq(5, USER, false);
    assert!(!pic.int_pending());
    assert_eq!(inta(&mut pic).0, 0x37);
}

#[test]
fn automatic_eoi() {
    let mut pic = initialised_with(0x03);
    pulse(&mut pic, 3);
    assert_eq!(inta(&mut pic), (0x33, 1 << 3));
    assert_eq!(isr(&mut pic), 0);
    pulse(&mut pic, 14);
    assert_eq!(inta(&mut pic), (0x3e, 1 << 14 | 1 << 2));
    // Rotation in automatic-EOI mode: the served one becomes the lowest.
    write(&mut pic, 0x20, 0x80);
    pulse(&mut pic, 3);
    assert_eq!(ack(&mut pic), Some(0x33));
    for irq in [3, 4, 0] {
        pulse(&mut pic, irq);
    }
    assert_eq!([ack(&mut pic), ack(&mut pic), ack(&mut pic)], [Some(0x34), Some(0x30), Some(0x33)]);
    write(&mut pic, 0x20, 0x00);
    assert_eq!(pic.state(true).rotate_on_auto_eoi, 0);
}

#[test]
fn rotation() {
    let mut pic = initialised();
    // Rotate on non-specific EOI.
    pulse(&mut pic, 4);
    ack(&mut pic);
    assert_eq!(write(&mut pic, 0x20, 0xa0), 1 << 4);
    assert_eq!(pic.state(true).priority_add, 5);
    for irq in [4, 5, 0] {
        pulse(&mut pic, irq);
    }
    assert_eq!(ack(&mut pic), Some(0x35));
    assert_eq!(ack(&mut pic), None);
    write(&mut pic, 0x20, 0x20);
    assert_eq!(ack(&mut pic), Some(0x30));
    write(&mut pic, 0x20, 0x20);
    assert_eq!(ack(&mut pic), Some(0x34));
    // Rotate on specific EOI.
    assert_eq!(write(&mut pic, 0x20, 0xe4), 1 << 4);
    assert_eq!(pic.state(true).priority_add, 5);
    // Set priority: IRQ 0 the lowest, no EOI.
    pulse(&mut pic, 6);
    ack(&mut pic);
    assert_eq!(write(&mut pic, 0x20, 0xc0), 0);
    assert_eq!((pic.state(true).priority_add, isr(&mut pic)), (1, 0x40));
    // No operation.
    let before = pic.clone();
    assert_eq!(write(&mut pic, 0x20, 0x40), 0);
    assert_eq!(pic, before);
}

#[test]
fn special_mask_mode() {
    let mut pic = initialised();
    pulse(&mut pic, 3);
    ack(&mut pic);
    pulse(&mut pic, 6);
    write(&mut pic, 0x21, 0x08);
    assert_eq!(ack(&mut pic), None);
    write(&mut pic, 0x20, 0x68);
    assert_eq!(ack(&mut pic), Some(0x36), "a masked level in service holds nobody back");
    assert_eq!(write(&mut pic, 0x20, 0x20), 1 << 6, "nor is it for a non-specific EOI");
    assert_eq!(write(&mut pic, 0x20, 0x20), 0);
    assert_eq!(write(&mut pic, 0x20, 0x63), 1 << 3);
    write(&mut pic, 0x20, 0x48);
    assert_eq!(pic.state(true).special_mask, 0);
}

#[test]
fn poll() {
    let mut pic = initialised();
    write(&mut pic, 0x20, 0x0c);
    assert_eq!(read(&mut pic, 0x20), 0, "nothing");
    pulse(&mut pic, 6);
    write(&mut pic, 0x20, 0x0c);
    assert_eq!(read(&mut pic, 0x20), 0x86);
    assert_eq!((isr(&mut pic), irr(&mut pic)), (0x40, 0), "it was an INTA");
    assert!(!pic.int_pending());
    // Of the slave: the master has nothing left to promise.
    let mut pic = initialised();
    pulse(&mut pic, 9);
    assert!(pic.int_pending());
    write(&mut pic, 0xa0, 0x0c);
    assert_eq!(read(&mut pic, 0xa0), 0x81);
    assert!(!pic.int_pending());
    assert_eq!(write(&mut pic, 0xa0, 0x20), 1 << 9);
}

#[test]
fn sources_are_ored() {
    let mut pic = initialised();
    write(&mut pic, 0x4d0, 0x20);
    pic.set_irq(5, USER, true);
    pic.set_irq(5, SourceId::RESAMPLE, true);
    pic.set_irq(5, USER, false);
    assert!(pic.int_pending());
    pic.set_irq(5, SourceId::RESAMPLE, false);
    assert!(!pic.int_pending());
    assert_eq!(pic.set_irq(16, USER, true), LineStatus::IGNORED);
}

#[test]
fn state_round_trip() {
    let mut pic = initialised_with(0x11);
    write(&mut pic, 0x4d0, 0x20);
    write(&mut pic, 0x20, 0xc3);
    write(&mut pic, 0x20, 0x6f);
    pulse(&mut pic, 12);
    ack(&mut pic);
    pulse(&mut pic, 1);
    write(&mut pic, 0xa0, 0x11);
    let mut other = PicPair::default();
    other.set_state(true, &pic.state(true));
    other.set_state(false, &pic.state(false));
    assert_eq!((other.state(true), other.state(false)), (pic.state(true), pic.state(false)));
    // Whatever the caller says is what it reads back.
    let whole = PicState { elcr: 0xff, elcr_mask: 0x0f, ..PicState::default() };
    other.set_state(true, &whole);
    assert_eq!(other.state(true), whole);
}

proptest::proptest! {
    /// Whatever is written, nothing panics, and an INTA always gives a vector of one of the two controllers.
    #[test]
    fn any_operations(
        wild in proptest::array::uniform2(proptest::array::uniform16(proptest::prelude::any::<u8>())),
        ops in proptest::collection::vec((0u8..8, proptest::prelude::any::<u8>()), 1..80),
    ) {
        let mut pic = PicPair::default();
        for (master, bytes) in [(true, wild[0]), (false, wild[1])] {
            let [last_irr, irr, imr, isr, priority_add, irq_base, read_reg_select, poll, special_mask, init_state,
                auto_eoi, rotate_on_auto_eoi, special_fully_nested_mode, init4, elcr, elcr_mask] = bytes;
            pic.set_state(master, &PicState {
                last_irr, irr, imr, isr, priority_add, irq_base, read_reg_select, poll, special_mask, init_state,
                auto_eoi, rotate_on_auto_eoi, special_fully_nested_mode, init4, elcr, elcr_mask,
            });
        }
        for (op, value) in ops {
            let ports = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1];
            match ports.get(usize::from(op)) {
                Some(&port) => {
                    pic.write(port, value);
                    pic.read(port);
                }
                None if op == 6 => {
                    pic.set_irq(value & 15, USER, value & 16 != 0);
                }
                None => {
                    let (vector, _) = inta(&mut pic);
                    let bases = [pic.state(true).irq_base, pic.state(false).irq_base];
                    proptest::prop_assert!(bases.iter().any(|base| vector.wrapping_sub(*base) < 8));
                }
            }
        }
    }
}
