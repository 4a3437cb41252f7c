//! Each rule of an error's way into the registers.

use super::status::*;
use super::{CTL2_CMCI_EN, MCG_CMCI_P, MCG_CTL_P, MCG_LMCE_P, MCG_SER_P, MachineCheck, supported};
use crate::exit::Exit;
use crate::msr::MCE_BANKS;
use crate::rig::{IDT, Mode, Rig};
use x86_arch::apic::{APIC_LVT_CMCI, APIC_VERSION, LVT_MASKED};
use x86_arch::control::Cr4;
use x86_arch::msr::*;

const BANK: u8 = 3;
const STATUS: u32 = IA32_MC0_CTL + 4 * BANK as u32 + 1;

fn error(status: u64) -> MachineCheck {
    MachineCheck { bank: BANK, status: VAL | status, addr: 0x1234_5000, misc: 0x8c, mcg_status: 5 }
}

fn rig(mcg_cap: u64) -> Rig {
    let mut r = Rig::with_irqchip(Mode::Long);
    assert!(r.cpu().setup_mce(mcg_cap));
    r.cpu().cr4 |= Cr4::MCE;
    r
}

fn read(r: &mut Rig, index: u32) -> u64 {
    r.cpu().read_msr(index, true).unwrap()
}

fn registers(r: &mut Rig) -> (u64, u64, u64, u64) {
    (read(r, STATUS), read(r, STATUS + 1), read(r, STATUS + 2), read(r, IA32_MCG_STATUS))
}

#[test]
fn what_can_be_set_up() {
    let mut r = Rig::with_irqchip(Mode::Long);
    let amd = crate::cpuid::policy::HostProcessor::this().is_amd();
    let lmce = if amd { 0 } else { MCG_LMCE_P };
    assert_eq!(supported(), MCG_CTL_P | MCG_CMCI_P | MCG_SER_P | lmce);
    for (cap, taken) in [
        (0, false),
        (1, true),
        (MCE_BANKS as u64, true),
        (MCE_BANKS as u64 + 1, false),
        (supported() | 10, true),
        (supported(), false),
        (1 << 9 | 10, false),
        (1 << 11 | 10, false),
        (0xff << 16 | 10, true),
        (1 << 63 | 10, false),
        (MCG_LMCE_P | 10, !amd),
    ] {
        assert_eq!(r.cpu().setup_mce(cap), taken, "{cap:#x}");
    }
    assert_eq!(read(&mut r, IA32_MCG_CAP), if amd { 0xff << 16 | 10 } else { MCG_LMCE_P | 10 });
}

#[test]
fn set_up_registers() {
    let mut r = rig(MCE_BANKS as u64);
    for bank in 0..MCE_BANKS as u32 {
        assert!(r.cpu().write_msr(IA32_MC0_CTL + 4 * bank, 0, true));
        assert!(!r.cpu().write_msr(IA32_MC0_CTL2 + bank, 1, true), "no CMCI yet");
        assert!(r.cpu().write_msr(IA32_MC0_CTL2 + bank, 0, true), "user space restores what it read");
        assert!(!r.cpu().write_msr(IA32_MC0_CTL2 + bank, 0, false));
    }
    assert!(r.cpu().read_msr(IA32_MC0_CTL2, false).is_none());
    assert_eq!(read(&mut r, IA32_MCG_CTL), 0);
    assert!(r.cpu().setup_mce(MCG_CTL_P | MCG_CMCI_P | 4));
    assert_eq!(read(&mut r, IA32_MCG_CTL), !0);
    assert_eq!((read(&mut r, IA32_MC0_CTL), read(&mut r, IA32_MC0_CTL + 12)), (!0, !0));
    assert!(r.cpu().read_msr(IA32_MC0_CTL + 16, true).is_none(), "four banks");
    // CTL2: enable and threshold; the rest is reserved.
    assert!(r.cpu().write_msr(IA32_MC0_CTL2, CTL2_CMCI_EN | 0x7fff, false));
    for bit in (15..30).chain(31..64) {
        assert!(!r.cpu().write_msr(IA32_MC0_CTL2, 1 << bit, false), "bit {bit}");
    }
    assert!(!r.cpu().write_msr(IA32_MC0_CTL2 + 4, 0, true));
    assert!(r.cpu().setup_mce(MCG_CMCI_P | 4));
    assert_eq!(read(&mut r, IA32_MC0_CTL2), 0);
}

/// The LVT has a seventh entry with MCG_CMCI_P (SDM vol. 3A, 10.5.1).
#[test]
fn the_lvt_grows() {
    let mut r = rig(4);
    let lvt = |r: &mut Rig, register: u32| {
        let mut data = [0; 4];
        r.cpu().device_mmio_read(x86_arch::Gpa(0xfee0_0000 + u64::from(register)), &mut data);
        u32::from_le_bytes(data)
    };
    let write = |r: &mut Rig, v: u32| {
        let at = x86_arch::Gpa(0xfee0_0000 + u64::from(APIC_LVT_CMCI));
        r.cpu().device_mmio_write(at, &v.to_le_bytes());
    };
    write(&mut r, 0x55);
    assert_eq!((lvt(&mut r, APIC_VERSION) >> 16 & 0xff, lvt(&mut r, APIC_LVT_CMCI)), (5, 0));
    assert!(r.cpu().setup_mce(MCG_CMCI_P | 4));
    assert_eq!((lvt(&mut r, APIC_VERSION) >> 16 & 0xff, lvt(&mut r, APIC_LVT_CMCI)), (6, LVT_MASKED));
    write(&mut r, !0);
    assert_eq!(lvt(&mut r, APIC_LVT_CMCI), LVT_MASKED | 0x7ff & !(1 << 11));
    write(&mut r, 0x55);
    // Another setting that has it leaves it alone; INIT masks it.
    assert!(r.cpu().setup_mce(MCG_CMCI_P | 5));
    assert_eq!(lvt(&mut r, APIC_LVT_CMCI), 0x55);
    r.cpu().shared.irq.lapic().unwrap().init_reset();
    assert_eq!((lvt(&mut r, APIC_VERSION) >> 16 & 0xff, lvt(&mut r, APIC_LVT_CMCI)), (6, LVT_MASKED));
}

#[test]
fn errors_that_are_none() {
    let mut r = rig(4);
    assert!(!r.cpu().machine_check(&MachineCheck { bank: 4, ..error(0) }), "no such bank");
    assert!(!r.cpu().machine_check(&MachineCheck { status: UC, ..error(0) }), "not valid");
    assert_eq!(registers(&mut r), (0, 0, 0, 0));
}

#[test]
fn an_uncorrected_error_is_a_machine_check() {
    let mut r = rig(MCG_CTL_P | 4);
    assert!(r.cpu().machine_check(&error(UC | S | AR)));
    assert_eq!(registers(&mut r), (VAL | UC | S | AR, 0x1234_5000, 0x8c, 5));
    let e = r.cpu().events.exception.unwrap();
    assert_eq!((e.vector, e.error_code), (18, None));
    // A second one: the first is noted as lost.
    r.cpu().events.exception = None;
    r.cpu().msr.mcg_status = 0;
    assert!(r.cpu().machine_check(&error(UC | S)));
    assert_eq!(registers(&mut r).0, VAL | UC | S | OVER);
}

/// #MC while one is being handled, or where CR4.MCE is clear, ends the guest.
#[test]
fn a_second_machine_check_shuts_down() {
    for mcip in [true, false] {
        let mut r = rig(4);
        if mcip {
            r.cpu().msr.mcg_status = 4;
        } else {
            r.cpu().cr4.remove(Cr4::MCE);
        }
        assert!(r.cpu().machine_check(&error(UC | S)));
        assert_eq!(registers(&mut r).0, 0, "nothing is stored");
        assert!(r.cpu().events.exception.is_none());
        assert_eq!(r.run(&[0x90], 1), Exit::Shutdown);
    }
    // The gate works where neither holds.
    let mut r = rig(4);
    let handler = crate::rig::CODE + 0x100;
    r.write_u64(IDT + 16 * 18, handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48);
    r.write_u64(IDT + 16 * 18 + 8, 0);
    assert!(r.cpu().machine_check(&error(UC | S)));
    r.write(handler, &[0x90]);
    assert_eq!(r.run(&[0x90], 1), Exit::Bound);
    assert_eq!(r.cpu().rip(), handler + 1);
}

#[test]
fn reporting_that_is_switched_off() {
    let mut r = rig(MCG_CTL_P | 4);
    assert!(r.cpu().write_msr(IA32_MC0_CTL + 4 * u32::from(BANK), 0, false));
    assert!(r.cpu().machine_check(&error(UC | S)));
    assert!(r.cpu().write_msr(IA32_MC0_CTL + 4 * u32::from(BANK), !0, false));
    assert!(r.cpu().write_msr(IA32_MCG_CTL, 0, false));
    assert!(r.cpu().machine_check(&error(UC | S)));
    assert_eq!(registers(&mut r), (0, 0, 0, 0));
    assert!(r.cpu().events.exception.is_none());
    // Corrected errors are stored all the same.
    assert!(r.cpu().machine_check(&error(0)));
    assert_eq!(registers(&mut r), (VAL, 0x1234_5000, 0x8c, 0));
    // Without MCG_CTL_P there is no such switch.
    let mut r = rig(4);
    r.cpu().msr.mcg_ctl = 0;
    assert!(r.cpu().machine_check(&error(UC | S)));
    assert!(r.cpu().events.exception.is_some());
}

/// SDM vol. 3B, 15.3.2.2.1: which of two errors stays.
#[test]
fn corrected_errors() {
    let mut r = rig(4);
    assert!(r.cpu().machine_check(&error(0x11)));
    assert_eq!(registers(&mut r), (VAL | 0x11, 0x1234_5000, 0x8c, 0));
    assert!(r.cpu().machine_check(&MachineCheck { addr: 7, ..error(0x12) }));
    assert_eq!(registers(&mut r).0, VAL | OVER | 0x12);
    assert_eq!(registers(&mut r).1, 7);
    assert!(r.cpu().write_msr(STATUS, VAL | UC | 0x13, true));
    assert!(r.cpu().machine_check(&MachineCheck { addr: 8, ..error(0x14) }));
    assert_eq!((registers(&mut r).0, registers(&mut r).1), (VAL | UC | OVER | 0x13, 7));
    assert!(r.cpu().events.exception.is_none());
}

/// Uncorrected, no action required: stored, and signalled by the LVT's entry if the bank has that enabled.
#[test]
fn ucna() {
    let ucna = |addr| MachineCheck { addr, mcg_status: 0, ..error(UC) };
    let waiting = |r: &mut Rig| r.cpu().shared.irq.lapic().unwrap().highest_requested();
    for (cap, enabled, masked, signalled) in [
        (MCG_CMCI_P, true, false, true),
        (MCG_CMCI_P, false, false, false),
        (MCG_CMCI_P, true, true, false),
        (0, true, false, false),
    ] {
        let mut r = rig(cap | 4);
        r.cpu().cr4.remove(Cr4::MCE);
        r.cpu().msr.mci_ctl2[usize::from(BANK)] = if enabled { CTL2_CMCI_EN } else { 0 };
        let entry = 0x55 | if masked { LVT_MASKED } else { 0 };
        let at = x86_arch::Gpa(0xfee0_0000 + u64::from(APIC_LVT_CMCI));
        r.cpu().device_mmio_write(at, &entry.to_le_bytes());
        r.cpu().msr.mcg_status = 4;
        assert!(r.cpu().machine_check(&ucna(0x99)));
        assert_eq!(registers(&mut r), (VAL | UC, 0x99, 0x8c, 0));
        assert_eq!(waiting(&mut r), signalled.then_some(0x55), "{cap:#x} {enabled} {masked}");
        assert!(r.cpu().events.exception.is_none() && !r.cpu().events.triple_fault);
    }
    // Each of these makes it another kind of error.
    for bit in [PCC, S, AR] {
        assert!(!MachineCheck { mcg_status: 0, ..error(UC | bit) }.needs_no_action());
    }
    assert!(!error(UC).needs_no_action(), "MCG_STATUS");
    assert!(!MachineCheck { mcg_status: 0, ..error(0) }.needs_no_action(), "corrected");
}

/// IA32_MCG_EXT_CTL is the guest's if firmware says so.
#[test]
fn local_machine_checks() {
    let mut r = rig(4);
    // Also where this host cannot be asked for it.
    r.cpu().msr.mcg_cap |= MCG_LMCE_P;
    assert!(r.cpu().read_msr(IA32_MCG_EXT_CTL, false).is_none());
    assert!(!r.cpu().write_msr(IA32_MCG_EXT_CTL, 1, false));
    assert!(r.cpu().write_msr(IA32_FEATURE_CONTROL, 1 << 20 | 1, true));
    assert!(r.cpu().write_msr(IA32_MCG_EXT_CTL, 1, false));
    assert_eq!(r.cpu().read_msr(IA32_MCG_EXT_CTL, false), Some(1));
    assert!(!r.cpu().write_msr(IA32_MCG_EXT_CTL, 2, true));
}
