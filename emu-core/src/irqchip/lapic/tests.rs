//! The local APIC against SDM vol. 3A, chapter 10, through its registers.

use super::*;
use crate::irqchip::delivery::{DestMode, Ipi, Origin, Shorthand};
use x86_arch::msr::X2APIC_FIRST;

pub(super) const T0: Now = Now { ns: 1_000_000, tsc: 5_000_000, tsc_khz: 2_000_000 };

pub(super) fn after(ns: u64) -> Now {
    Now { ns: T0.ns + ns, tsc: T0.tsc + 2 * ns, ..T0 }
}

/// An xAPIC that software has enabled.
pub(super) fn enabled() -> Lapic {
    let mut lapic = Lapic::new(LapicConfig::new(3, false));
    let _ = write(&mut lapic, APIC_SVR, 0x1ff);
    lapic
}

/// The same in x2APIC mode.
fn x2apic(vcpu_id: u32) -> Lapic {
    let mut lapic = Lapic::new(LapicConfig::new(vcpu_id, false));
    let base = lapic.apic_base();
    lapic.write_apic_base(base | APIC_BASE_X2APIC).unwrap();
    let _ = lapic.write_x2apic_msr(0x80f, 0x1ff, &T0).unwrap();
    lapic
}

pub(super) fn write_at(lapic: &mut Lapic, register: u32, value: u32, now: &Now) -> LapicEffect {
    lapic.mmio_write(u64::from(register), &value.to_le_bytes(), now)
}

pub(super) fn write(lapic: &mut Lapic, register: u32, value: u32) -> LapicEffect {
    write_at(lapic, register, value, &T0)
}

pub(super) fn read_at(lapic: &mut Lapic, register: u32, now: &Now) -> u32 {
    let mut data = [0xaa; 4];
    lapic.mmio_read(u64::from(register), &mut data, now);
    u32::from_le_bytes(data)
}

pub(super) fn read(lapic: &mut Lapic, register: u32) -> u32 {
    read_at(lapic, register, &T0)
}

fn eoi(lapic: &mut Lapic) -> Option<(u8, bool)> {
    match write(lapic, APIC_EOI, 0) {
        LapicEffect::Eoi(eoi) => Some((eoi.vector, eoi.level)),
        LapicEffect::None => None,
        other => panic!("{other:?}"),
    }
}

// ---- Reset and registers ------------------------------------------------------------------------------------------

#[test]
fn reset_values() {
    for (bsp, lint0) in [(true, 0x700), (false, 0x1_0000)] {
        let mut lapic = Lapic::new(LapicConfig::new(5, bsp));
        assert_eq!(lapic.apic_base(), 0xfee0_0800 | u64::from(bsp) << 8);
        let expected = [
            (APIC_ID, 5 << 24),
            (APIC_VERSION, 0x50014),
            (APIC_TPR, 0),
            (APIC_PPR, 0),
            (APIC_LDR, 0),
            (APIC_DFR, 0xffff_ffff),
            (APIC_SVR, 0xff),
            (APIC_ISR, 0),
            (APIC_TMR + 0x70, 0),
            (APIC_IRR, 0),
            (APIC_ESR, 0),
            (APIC_ICR_LOW, 0),
            (APIC_ICR_HIGH, 0),
            (APIC_LVT_TIMER, 0x1_0000),
            (APIC_LVT_THERMAL, 0x1_0000),
            (APIC_LVT_PERF, 0x1_0000),
            (APIC_LVT_LINT0, lint0),
            (APIC_LVT_LINT1, 0x1_0000),
            (APIC_LVT_ERROR, 0x1_0000),
            (APIC_TIMER_INITIAL, 0),
            (APIC_TIMER_CURRENT, 0),
            (APIC_TIMER_DIVIDE, 0),
        ];
        for (register, value) in expected {
            assert_eq!(read(&mut lapic, register), value, "register {register:#x}, bsp {bsp}");
        }
        assert_eq!(lapic.accepts_extint(), bsp);
    }
}

#[test]
fn writable_bits() {
    let rows = [
        (APIC_ID, 0xff00_0000),
        (APIC_TPR, 0xff),
        (APIC_LDR, 0xff00_0000),
        (APIC_SVR, 0x3ff),
        (APIC_ICR_HIGH, 0xff00_0000),
        (APIC_LVT_TIMER, 0x7_00ff),
        (APIC_LVT_THERMAL, 0x1_07ff),
        (APIC_LVT_PERF, 0x1_07ff),
        (APIC_LVT_LINT0, 0x1_a7ff),
        (APIC_LVT_LINT1, 0x1_a7ff),
        (APIC_LVT_ERROR, 0x1_00ff),
        (APIC_TIMER_DIVIDE, 0xb),
        // Read-only.
        (APIC_VERSION, 0),
        (APIC_PPR, 0),
        (APIC_ISR, 0),
        (APIC_IRR, 0),
        (APIC_TMR, 0),
        (APIC_TIMER_CURRENT, 0),
    ];
    for (register, bits) in rows {
        let mut lapic = enabled();
        let before = read(&mut lapic, register);
        let _ = write(&mut lapic, register, 0);
        let low = read(&mut lapic, register);
        let _ = write(&mut lapic, register, u32::MAX);
        let high = read(&mut lapic, register);
        if bits == 0 {
            assert_eq!((low, high), (before, before), "register {register:#x}");
        } else {
            assert_eq!((low, high), (0, bits), "register {register:#x}");
        }
    }
    let mut lapic = enabled();
    let _ = write(&mut lapic, APIC_DFR, 0);
    assert_eq!(read(&mut lapic, APIC_DFR), 0x0fff_ffff);
}

#[test]
fn access_width_and_alignment() {
    let mut lapic = enabled();
    let _ = write(&mut lapic, APIC_LDR, 0x1200_0000);
    let mut byte = [0];
    lapic.mmio_read(u64::from(APIC_LDR) + 3, &mut byte, &T0);
    assert_eq!(byte, [0x12]);
    let mut wide = [0xaa; 8];
    lapic.mmio_read(u64::from(APIC_LDR), &mut wide, &T0);
    assert_eq!(wide, [0; 8]);
    // A narrow or unaligned write is ignored, and is no error.
    assert_eq!(lapic.mmio_write(u64::from(APIC_LDR), &[0xff; 2], &T0), LapicEffect::None);
    assert_eq!(lapic.mmio_write(u64::from(APIC_LDR) + 4, &[0xff; 4], &T0), LapicEffect::None);
    assert_eq!(read(&mut lapic, APIC_LDR), 0x1200_0000);
    // The padding of the ESR, where errors are kept, cannot be read.
    let _ = read(&mut lapic, 0x3f0);
    let mut padding = [0xaa; 4];
    lapic.mmio_read(u64::from(APIC_ESR) + 4, &mut padding, &T0);
    assert_eq!(padding, [0; 4]);
}

#[test]
fn error_status_register() {
    let mut lapic = enabled();
    let _ = write(&mut lapic, APIC_LVT_ERROR, 0xfe);
    let _ = read(&mut lapic, 0x40);
    assert_eq!(lapic.highest_pending(), Some(0xfe), "the error interrupt");
    assert_eq!(read(&mut lapic, APIC_ESR), 0, "not visible before a write");
    let _ = write(&mut lapic, APIC_ESR, 0);
    assert_eq!(read(&mut lapic, APIC_ESR), ESR_ILLEGAL_REGISTER);
    // Errors add up until the next write.
    lapic.accept_interrupt(15, Trigger::Edge);
    let _ = write(&mut lapic, APIC_ICR_LOW, 0x3);
    let _ = write(&mut lapic, APIC_ESR, 0);
    assert_eq!(read(&mut lapic, APIC_ESR), ESR_RECEIVE_ILLEGAL_VECTOR | ESR_SEND_ILLEGAL_VECTOR);
    let _ = write(&mut lapic, APIC_ESR, 0);
    assert_eq!(read(&mut lapic, APIC_ESR), 0);
    // An error entry that is itself illegal is an error, not an endless one.
    let _ = write(&mut lapic, APIC_LVT_ERROR, 3);
    let _ = write(&mut lapic, APIC_VERSION, 3);
    let _ = write(&mut lapic, APIC_ESR, 0);
    assert_eq!(read(&mut lapic, APIC_ESR), ESR_ILLEGAL_REGISTER | ESR_RECEIVE_ILLEGAL_VECTOR);
}

// ---- Priority -----------------------------------------------------------------------------------------------------

#[test]
fn nesting_and_eoi_order() {
    let mut lapic = enabled();
    for vector in [0x31, 0x35, 0x62, 0x45] {
        assert_eq!(lapic.accept_interrupt(vector, Trigger::Edge), Accepted::Queued);
    }
    assert_eq!(lapic.ack(), Some(0x62));
    assert_eq!(lapic.ack(), None, "lower classes wait");
    lapic.accept_interrupt(0x6f, Trigger::Edge);
    assert_eq!(lapic.ack(), None, "the same class waits");
    lapic.accept_interrupt(0x70, Trigger::Edge);
    assert_eq!(lapic.ack(), Some(0x70), "a higher class nests");
    assert_eq!(read(&mut lapic, APIC_PPR), 0x70);
    assert_eq!(eoi(&mut lapic), Some((0x70, false)));
    assert_eq!(read(&mut lapic, APIC_PPR), 0x60);
    assert_eq!(eoi(&mut lapic), Some((0x62, false)));
    for vector in [0x6f, 0x45, 0x35, 0x31] {
        assert_eq!(lapic.ack(), Some(vector));
        assert_eq!(eoi(&mut lapic), Some((vector, false)));
    }
    assert_eq!(eoi(&mut lapic), None);
    assert_eq!(lapic.ack(), None);
}

#[test]
fn task_and_processor_priority() {
    // (TPR, vector in service, PPR)
    let rows = [(0x00, 0, 0x00), (0x35, 0, 0x35), (0x35, 0x32, 0x35), (0x25, 0x32, 0x30), (0x45, 0x32, 0x45)];
    for (tpr, in_service, ppr) in rows {
        let mut lapic = enabled();
        if in_service != 0 {
            lapic.accept_interrupt(in_service, Trigger::Edge);
            assert_eq!(lapic.ack(), Some(in_service));
        }
        let _ = write(&mut lapic, APIC_TPR, tpr);
        assert_eq!(read(&mut lapic, APIC_PPR), ppr, "TPR {tpr:#x} ISR {in_service:#x}");
    }
    let mut lapic = enabled();
    lapic.accept_interrupt(0x3f, Trigger::Edge);
    assert_eq!(write(&mut lapic, APIC_TPR, 0x30), LapicEffect::Recheck);
    assert_eq!(lapic.highest_pending(), None, "its own class is held back");
    lapic.set_cr8(2);
    assert_eq!((lapic.tpr(), lapic.cr8()), (0x20, 2));
    assert_eq!(lapic.highest_pending(), Some(0x3f));
}

#[test]
fn one_request_while_one_is_in_service() {
    let mut lapic = enabled();
    lapic.accept_interrupt(0x50, Trigger::Edge);
    assert_eq!(lapic.ack(), Some(0x50));
    // Two more: one is kept (SDM vol. 3A, 10.8.4).
    lapic.accept_interrupt(0x50, Trigger::Edge);
    lapic.accept_interrupt(0x50, Trigger::Edge);
    assert_eq!(lapic.ack(), None);
    assert_eq!(eoi(&mut lapic), Some((0x50, false)));
    assert_eq!(lapic.ack(), Some(0x50));
    assert_eq!(eoi(&mut lapic), Some((0x50, false)));
    assert_eq!(lapic.ack(), None);
}

#[test]
fn trigger_mode_register() {
    let mut lapic = enabled();
    lapic.accept_interrupt(0x80, Trigger::Level);
    assert_eq!(read(&mut lapic, APIC_TMR + 0x40), 1);
    lapic.ack();
    assert_eq!(eoi(&mut lapic), Some((0x80, true)));
    lapic.accept_interrupt(0x80, Trigger::Edge);
    assert_eq!(read(&mut lapic, APIC_TMR + 0x40), 0);
    lapic.ack();
    assert_eq!(eoi(&mut lapic), Some((0x80, false)));
}

#[test]
fn every_vector_has_its_bit() {
    for vector in 16..=255u8 {
        let mut lapic = enabled();
        lapic.accept_interrupt(vector, Trigger::Edge);
        assert_eq!(read(&mut lapic, APIC_IRR + u32::from(vector / 32) * 16), 1 << (vector % 32));
        assert_eq!(lapic.ack(), Some(vector));
        assert_eq!(read(&mut lapic, APIC_ISR + u32::from(vector / 32) * 16), 1 << (vector % 32));
        assert_eq!(read(&mut lapic, APIC_IRR + u32::from(vector / 32) * 16), 0);
    }
}

#[test]
fn eoi_broadcast_suppression() {
    for (offered, suppressed) in [(false, false), (true, true)] {
        let config = LapicConfig { directed_eoi: offered, ..LapicConfig::new(0, true) };
        let mut lapic = Lapic::new(config);
        assert_eq!(read(&mut lapic, APIC_VERSION) >> 24 & 1, u32::from(offered));
        let _ = write(&mut lapic, APIC_SVR, 0x11ff);
        lapic.accept_interrupt(0x40, Trigger::Level);
        lapic.ack();
        let effect = write(&mut lapic, APIC_EOI, 0);
        let expected = Eoi { vector: 0x40, level: true, broadcast: !suppressed };
        assert_eq!(effect, LapicEffect::Eoi(expected));
    }
}

#[test]
fn software_disable() {
    let mut lapic = enabled();
    let _ = write(&mut lapic, APIC_LVT_LINT1, 0x400);
    lapic.accept_interrupt(0x40, Trigger::Edge);
    let _ = write(&mut lapic, APIC_SVR, 0xff);
    assert_eq!(lapic.accept_interrupt(0x50, Trigger::Edge), Accepted::Refused);
    assert_eq!(lapic.highest_pending(), Some(0x40), "what was requested stays");
    assert_eq!(read(&mut lapic, APIC_LVT_LINT1), 0x1_0400, "masked");
    let _ = write(&mut lapic, APIC_LVT_LINT1, 0x400);
    assert_eq!(read(&mut lapic, APIC_LVT_LINT1), 0x1_0400, "and cannot be unmasked");
    // INIT, NMI, SMI and SIPI get through (SDM vol. 3A, 10.4.7.2).
    let nmi = Delivery { mode: DeliveryMode::Nmi, ..Delivery::fixed(0, 3) };
    assert_eq!(lapic.accept(&nmi), Accepted::Nmi);
    let init = Delivery { mode: DeliveryMode::Init, ..nmi };
    assert_eq!(lapic.accept(&init), Accepted::Init);
}

// ---- Local sources ------------------------------------------------------------------------------------------------

#[test]
fn local_vector_table_modes() {
    // (source, register, entry, what happens)
    let rows = [
        (LocalSource::Lint0, APIC_LVT_LINT0, 0x700, Accepted::ExtInt),
        (LocalSource::Lint0, APIC_LVT_LINT0, 0x1_0700, Accepted::Refused),
        (LocalSource::Lint1, APIC_LVT_LINT1, 0x400, Accepted::Nmi),
        (LocalSource::Lint1, APIC_LVT_LINT1, 0x041, Accepted::Queued),
        (LocalSource::Lint1, APIC_LVT_LINT1, 0x500, Accepted::Init),
        (LocalSource::Performance, APIC_LVT_PERF, 0x400, Accepted::Nmi),
        (LocalSource::Thermal, APIC_LVT_THERMAL, 0x200, Accepted::Smi),
        (LocalSource::Timer, APIC_LVT_TIMER, 0x41, Accepted::Queued),
        (LocalSource::Error, APIC_LVT_ERROR, 0x41, Accepted::Queued),
    ];
    for (source, register, entry, expected) in rows {
        let mut lapic = enabled();
        let _ = write(&mut lapic, register, entry);
        assert_eq!(lapic.local_interrupt(source), expected, "{source:?} {entry:#x}");
        let masked = read(&mut lapic, register) & LVT_MASKED != 0;
        let by_delivery = source == LocalSource::Performance;
        assert_eq!(masked, by_delivery || entry & LVT_MASKED != 0, "{source:?} {entry:#x}");
    }
}

#[test]
fn watchdog_only_in_nmi_mode() {
    let mut lapic = enabled();
    let _ = write(&mut lapic, APIC_LVT_LINT0, 0x700);
    assert_eq!(lapic.watchdog_tick(), Accepted::Refused);
    let _ = write(&mut lapic, APIC_LVT_LINT0, 0x400);
    assert_eq!(lapic.watchdog_tick(), Accepted::Nmi);
    let _ = write(&mut lapic, APIC_LVT_LINT0, 0x1_0400);
    assert_eq!(lapic.watchdog_tick(), Accepted::Refused);
}

#[test]
fn init_sipi_nmi() {
    let mut lapic = enabled();
    let sipi = Delivery { mode: DeliveryMode::StartUp, ..Delivery::fixed(0x9a, 3) };
    let init = Delivery { mode: DeliveryMode::Init, ..sipi };
    lapic.accept(&sipi);
    assert_eq!(lapic.accept(&init), Accepted::Init);
    assert_eq!(lapic.pending().sipi, None, "an INIT voids an earlier SIPI");
    lapic.accept(&sipi);
    assert_eq!((lapic.pending().init, lapic.pending().sipi), (true, Some(0x9a)));
    let deassert = Delivery { trigger: Trigger::Level, level: false, ..init };
    assert_eq!(lapic.accept(&deassert), Accepted::Refused);
    for _ in 0..5 {
        lapic.accept_nmi();
    }
    let taken = lapic.take_pending();
    assert_eq!((taken.nmi, taken.init, taken.sipi), (2, true, Some(0x9a)));
    assert!(!lapic.pending().any());
}

#[test]
fn init_keeps_identity() {
    let mut lapic = x2apic(0x123);
    lapic.accept_interrupt(0x40, Trigger::Edge);
    lapic.init_reset();
    assert_eq!(lapic.mode(), ApicMode::X2Apic);
    assert_eq!(lapic.apic_id(), 0x123);
    assert_eq!(lapic.reg(APIC_LDR), 0x12 << 16 | 1 << 3);
    assert!(!lapic.is_software_enabled());
    assert_eq!(lapic.highest_requested(), None);

    let mut lapic = enabled();
    let _ = write(&mut lapic, APIC_ID, 0x0900_0000);
    let _ = write(&mut lapic, APIC_LDR, 0x0100_0000);
    lapic.init_reset();
    assert_eq!((read(&mut lapic, APIC_ID), read(&mut lapic, APIC_LDR)), (0x0900_0000, 0));
}

// ---- Modes --------------------------------------------------------------------------------------------------------

#[test]
fn apic_base_transitions() {
    const BASE: u64 = 0xfee0_0000;
    const OFF: u64 = BASE;
    const XAPIC: u64 = BASE | APIC_BASE_ENABLE;
    const X2: u64 = XAPIC | APIC_BASE_X2APIC;
    const INVALID: u64 = BASE | APIC_BASE_X2APIC;
    // SDM vol. 3A, figure 10-27: (from, to, allowed for the guest)
    let rows = [
        (OFF, OFF, true),
        (OFF, XAPIC, true),
        (OFF, X2, false),
        (OFF, INVALID, false),
        (XAPIC, OFF, true),
        (XAPIC, XAPIC, true),
        (XAPIC, X2, true),
        (XAPIC, INVALID, false),
        (X2, OFF, true),
        (X2, XAPIC, false),
        (X2, X2, true),
        (X2, INVALID, false),
    ];
    for (from, to, allowed) in rows {
        let mut lapic = Lapic::new(LapicConfig::new(1, false));
        lapic.set_apic_base(from).unwrap();
        assert_eq!(lapic.write_apic_base(to).is_ok(), allowed, "{from:#x} to {to:#x}");
        assert_eq!(lapic.apic_base(), if allowed { to } else { from });
        // The VMM may go anywhere that is legal in itself.
        assert_eq!(lapic.set_apic_base(to).is_ok(), to != INVALID, "{from:#x} to {to:#x}");
        // The ID's form follows the mode, whichever way it came about.
        let id = if lapic.mode() == ApicMode::X2Apic { 1 } else { 1 << 24 };
        assert_eq!(lapic.state().page[(APIC_ID >> 2) as usize], id, "{from:#x} to {to:#x}");
    }
    let mut lapic = Lapic::new(LapicConfig { maxphyaddr: 36, ..LapicConfig::new(0, true) });
    for bit in (0..8).chain([9]).chain(36..64) {
        assert_eq!(lapic.write_apic_base(XAPIC | 1 << bit), Err(Exception::GP0), "bit {bit}");
    }
    lapic.write_apic_base(XAPIC | 1 << 35 | APIC_BASE_BSP).unwrap();
    assert_eq!(lapic.mmio_base(), Some(BASE | 1 << 35));
    // Without the CPUID bit EXTD is reserved.
    lapic.set_config(LapicConfig { x2apic: false, ..*lapic.config() });
    assert_eq!(lapic.write_apic_base(X2), Err(Exception::GP0));
}

#[test]
fn x2apic_identity() {
    let mut lapic = x2apic(0x2_0037);
    assert_eq!(lapic.mmio_base(), None);
    assert_eq!(lapic.read_x2apic_msr(0x802, &T0), Ok(0x2_0037));
    assert_eq!(lapic.read_x2apic_msr(0x80d, &T0), Ok(0x2003 << 16 | 1 << 7));
    // Disabled and enabled again it is an xAPIC with the low bits of its id.
    lapic.write_apic_base(APIC_DEFAULT_BASE).unwrap();
    lapic.write_apic_base(APIC_DEFAULT_BASE | APIC_BASE_ENABLE).unwrap();
    assert_eq!((lapic.apic_id(), read(&mut lapic, APIC_SVR)), (0x37, 0xff));
}

#[test]
fn x2apic_general_protection() {
    let ro = |msr: u32| (msr, true, None);
    let rw = |msr: u32, bits: u64| (msr, true, Some(bits));
    let wo = |msr: u32, bits: u64| (msr, false, Some(bits));
    // SDM vol. 3A, table 10-6: (MSR, readable, bits that may be set in a write)
    let mut rows = vec![
        ro(0x802),
        ro(0x803),
        rw(0x808, 0xff),
        ro(0x80a),
        wo(0x80b, 0),
        ro(0x80d),
        rw(0x80f, 0x3ff),
        rw(0x828, 0),
        rw(0x830, 0xffff_ffff_000c_dfff),
        rw(0x832, 0x7_50ff),
        rw(0x833, 0x1_57ff),
        rw(0x834, 0x1_57ff),
        rw(0x835, 0x1_f7ff),
        rw(0x836, 0x1_f7ff),
        rw(0x837, 0x1_50ff),
        rw(0x838, 0xffff_ffff),
        ro(0x839),
        rw(0x83e, 0xb),
        wo(0x83f, 0xff),
    ];
    rows.extend((0x810..0x828).map(ro));
    for msr in 0x800..0x900 {
        let row = rows.iter().find(|(row, ..)| *row == msr).copied();
        let (_, readable, writable) = row.unwrap_or((msr, false, None));
        let mut lapic = x2apic(1);
        assert_eq!(lapic.read_x2apic_msr(msr, &T0).is_ok(), readable, "read {msr:#x}");
        assert_eq!(lapic.write_x2apic_msr(msr, 0, &T0).is_ok(), writable.is_some(), "write {msr:#x}");
        for bit in 0..64 {
            let allowed = writable.is_some_and(|bits| bits & 1 << bit != 0);
            let result = lapic.write_x2apic_msr(msr, 1 << bit, &T0);
            assert_eq!(result.is_ok(), allowed, "MSR {msr:#x} bit {bit}");
        }
    }
    // In xAPIC mode none of them exists.
    let mut lapic = enabled();
    assert_eq!(lapic.read_x2apic_msr(0x802, &T0), Err(Exception::GP0));
    assert_eq!(lapic.write_x2apic_msr(0x808, 0, &T0), Err(Exception::GP0));
    // Without TSC-deadline, bit 18 of the timer entry is reserved.
    let mut lapic = x2apic(1);
    lapic.set_config(LapicConfig { tsc_deadline: false, ..*lapic.config() });
    assert_eq!(lapic.write_x2apic_msr(0x832, 1 << 18, &T0), Err(Exception::GP0));
}

#[test]
fn x2apic_icr_and_self_ipi() {
    let mut lapic = x2apic(1);
    let effect = lapic.write_x2apic_msr(X2APIC_FIRST + 0x30, 0x0001_0002_0000_4840, &T0).unwrap();
    let expected = Ipi {
        dest_mode: DestMode::Logical,
        xapic_broadcast: false,
        origin: Origin::Ipi,
        ..Ipi::fixed(0x40, 0x1_0002)
    };
    assert_eq!(effect, LapicEffect::Ipi(expected));
    assert_eq!(lapic.read_x2apic_msr(0x830, &T0), Ok(0x0001_0002_0000_4840));
    assert_eq!(lapic.write_x2apic_msr(0x83f, 0x77, &T0), Ok(LapicEffect::Recheck));
    assert_eq!(lapic.highest_pending(), Some(0x77));
    let _ = lapic.write_x2apic_msr(0x83f, 0x0f, &T0).unwrap();
    let _ = lapic.write_x2apic_msr(0x828, 0, &T0).unwrap();
    assert_eq!(lapic.read_x2apic_msr(0x828, &T0), Ok(u64::from(ESR_SEND_ILLEGAL_VECTOR)));
}

#[test]
fn xapic_icr() {
    let mut lapic = enabled();
    let _ = write(&mut lapic, APIC_ICR_HIGH, 0x0700_0000);
    // (low half, mode, shorthand, trigger, level)
    let rows = [
        (0x0_4640, DeliveryMode::StartUp, Shorthand::None, Trigger::Edge, true),
        (0x0_c500, DeliveryMode::Init, Shorthand::None, Trigger::Level, true),
        (0x0_8500, DeliveryMode::Init, Shorthand::None, Trigger::Level, false),
        (0xc_4400, DeliveryMode::Nmi, Shorthand::AllExcludingSelf, Trigger::Edge, true),
        (0x8_4040, DeliveryMode::Fixed, Shorthand::AllIncludingSelf, Trigger::Edge, true),
        (0x0_4140, DeliveryMode::LowestPriority, Shorthand::None, Trigger::Edge, true),
        (0x0_4200, DeliveryMode::Smi, Shorthand::None, Trigger::Edge, true),
    ];
    for (low, mode, shorthand, trigger, level) in rows {
        let LapicEffect::Ipi(ipi) = write(&mut lapic, APIC_ICR_LOW, low | ICR_BUSY) else {
            panic!("{low:#x} sent nothing");
        };
        assert_eq!(
            (ipi.mode, ipi.shorthand, ipi.trigger, ipi.level, ipi.dest, ipi.vector),
            (mode, shorthand, trigger, level, 7, (low & 0xff) as u8)
        );
        assert_eq!(read(&mut lapic, APIC_ICR_LOW), low, "delivery status reads idle");
    }
    assert_eq!(write(&mut lapic, APIC_ICR_LOW, 0x4_4055), LapicEffect::Recheck);
    assert_eq!(lapic.highest_pending(), Some(0x55), "self");
}

const ICR_BUSY: u32 = 1 << 12;

#[test]
fn destinations() {
    let flat = |ldr: u32| {
        let mut lapic = enabled();
        let _ = write(&mut lapic, APIC_LDR, ldr << 24);
        lapic
    };
    let cluster = |ldr: u32| {
        let mut lapic = flat(ldr);
        let _ = write(&mut lapic, APIC_DFR, 0x0fff_ffff);
        lapic
    };
    // (local APIC, logical, destination, matches)
    let rows = [
        (enabled(), false, 3, true),
        (enabled(), false, 2, false),
        (enabled(), false, 0xff, true),
        (enabled(), false, u32::MAX, true),
        (flat(0x05), true, 0x04, true),
        (flat(0x05), true, 0x02, false),
        (flat(0x00), true, 0xff, true),
        (cluster(0x21), true, 0x21, true),
        (cluster(0x21), true, 0x2f, true),
        (cluster(0x21), true, 0x22, false),
        (cluster(0x21), true, 0x31, false),
        (cluster(0x21), true, 0xff, true),
        (x2apic(0x37), false, 0x37, true),
        (x2apic(0x37), false, 0x137, false),
        (x2apic(0x137), false, 0x37, false),
        (x2apic(0x37), false, 0xff, false),
        (x2apic(0x37), false, u32::MAX, true),
        (x2apic(0x37), true, 0x0003_0080, true),
        (x2apic(0x37), true, 0x0003_00ff, true),
        (x2apic(0x37), true, 0x0003_0040, false),
        (x2apic(0x37), true, 0x0002_0080, false),
        (x2apic(0x37), true, u32::MAX, true),
    ];
    for (lapic, logical, dest, expected) in rows {
        let found = if logical { lapic.matches_logical(dest) } else { lapic.matches_physical(dest) };
        assert_eq!(found, expected, "{dest:#x} logical {logical} to {:#x}", lapic.apic_id());
    }
    // An xAPIC whose vCPU id does not fit in 8 bits can still be started.
    let big = Lapic::new(LapicConfig::new(0x141, false));
    assert!(big.matches_physical(0x141) && big.matches_physical(0x41) && !big.matches_physical(0x241));
}

/// A running timer, vector 0xec.
pub(super) fn timer(mode: u32, divide: u32, count: u32) -> Lapic {
    let mut lapic = enabled();
    let _ = write(&mut lapic, APIC_LVT_TIMER, mode | 0xec);
    let _ = write(&mut lapic, APIC_TIMER_DIVIDE, divide);
    assert_eq!(write(&mut lapic, APIC_TIMER_INITIAL, count), LapicEffect::Timer);
    lapic
}

// ---- State --------------------------------------------------------------------------------------------------------

#[test]
fn state_is_everything() {
    let mut lapic = x2apic(9);
    let _ = lapic.write_x2apic_msr(0x832, u64::from(LVT_TIMER_PERIODIC | 0xec), &T0).unwrap();
    let _ = lapic.write_x2apic_msr(0x838, 5_000_000, &T0).unwrap();
    lapic.accept_interrupt(0x44, Trigger::Level);
    lapic.ack();
    lapic.accept_interrupt(0x55, Trigger::Edge);
    lapic.accept_nmi();
    let mut other = Lapic::new(*lapic.config());
    other.set_state(&lapic.state());
    assert_eq!(other, lapic);
}

#[test]
fn register_page_round_trip() {
    for format in [IdFormat::Legacy, IdFormat::X2Apic] {
        for (mut lapic, id) in [(enabled(), 3 << 24), (x2apic(0x105), 0x105)] {
            let in_x2apic = lapic.mode() == ApicMode::X2Apic;
            lapic.set_reg(APIC_TIMER_DIVIDE, 0xb);
            lapic.set_reg(APIC_LVT_TIMER, LVT_TIMER_PERIODIC | 0xec);
            lapic.write_initial_count(5_000_000, &T0);
            lapic.accept_interrupt(0x99, Trigger::Level);
            lapic.record_error(ESR_ILLEGAL_REGISTER);
            let image = lapic.register_page(&after(1_000_000), format);
            let word = |offset: u32| {
                let at = offset as usize;
                u32::from_le_bytes(image[at..at + 4].try_into().unwrap())
            };
            let shown = if in_x2apic && format == IdFormat::Legacy { id << 24 } else { id };
            assert_eq!(word(APIC_ID), shown);
            assert_eq!(word(APIC_TIMER_CURRENT), 4_000_000);
            assert_eq!(word(APIC_IRR + 0x40), 1 << 25);

            let mut other = Lapic::new(*lapic.config());
            other.set_apic_base(lapic.apic_base()).unwrap();
            // Time has another base over there.
            let there = Now { ns: 77, tsc: 0, tsc_khz: 1 };
            other.set_register_page(&image, &there, format).unwrap();
            assert_eq!(other.apic_id(), lapic.apic_id());
            assert_eq!(other.timer_deadline(&there), Some(77 + 4_000_000));
            assert_eq!(other.highest_pending(), Some(0x99));
            assert_eq!(other.register_page(&there, format), image);
        }
    }
}

#[test]
fn register_page_keeps_what_is_due() {
    // Due, but nobody expired it before the image was taken.
    let lapic = timer(0, 0xb, 1000);
    let image = lapic.register_page(&after(5000), IdFormat::Legacy);
    let mut other = enabled();
    other.set_register_page(&image, &after(6000), IdFormat::Legacy).unwrap();
    assert_eq!(other.timer_expire(&after(6001)), Some(Accepted::Queued));
    // Expired before: nothing is left.
    let mut lapic = timer(0, 0xb, 1000);
    lapic.timer_expire(&after(5000));
    let image = lapic.register_page(&after(5000), IdFormat::Legacy);
    other.set_register_page(&image, &after(6000), IdFormat::Legacy).unwrap();
    assert_eq!(other.timer_deadline(&after(6000)), None);
}

#[test]
fn register_page_refuses_a_foreign_id() {
    let mut lapic = x2apic(5);
    let mut image = lapic.register_page(&T0, IdFormat::X2Apic);
    image[APIC_ID as usize] = 6;
    assert_eq!(lapic.set_register_page(&image, &T0, IdFormat::X2Apic), Err(WrongApicId));
    assert_eq!(lapic.apic_id(), 5);
}

proptest::proptest! {
    /// Whatever a guest writes, nothing panics, and what is deliverable is above the PPR.
    #[test]
    fn any_writes(ops in proptest::collection::vec((0u64..0x1010, proptest::prelude::any::<u32>(), 0u64..3_000_000), 1..60)) {
        let mut lapic = enabled();
        let mut time = 0;
        for (offset, value, step) in ops {
            time += step;
            let now = after(time);
            let _ = lapic.mmio_write(offset & !0xf, &value.to_le_bytes(), &now);
            let mut data = [0; 4];
            lapic.mmio_read(offset, &mut data, &now);
            lapic.timer_expire(&now);
            lapic.accept_interrupt((value >> 8) as u8, Trigger::from_bit(value & 1 != 0));
            if let Some(vector) = lapic.highest_pending() {
                proptest::prop_assert!(u32::from(vector) >> 4 > lapic.reg(APIC_PPR) >> 4);
                lapic.ack();
                proptest::prop_assert_eq!(lapic.reg(APIC_PPR) >> 4, u32::from(vector) >> 4);
            }
        }
    }
}
