//! Numbers, arguments, answers, and the instruction of the other vendor.

use super::{EXITS, VMCALL, VMMCALL};
use crate::cpuid::CpuidTable;
use crate::event::Activity;
use crate::exit::{Exit, Stop};
use crate::rig::{CODE, DATA, Mode, RAM, Rig};
use std::sync::atomic::Ordering;
use x86_arch::apic::APIC_IRR;
use x86_arch::{Exception, Gpr, PageFaultErrorCode, Vector};

const ENOSYS: u64 = -1000i64 as u64;
const EINVAL: u64 = -22i64 as u64;

fn call(r: &mut Rig, nr: u64, args: [u64; 4]) -> u64 {
    r.set(Gpr::Rax, nr);
    for (register, value) in [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi].into_iter().zip(args) {
        r.set(register, value);
    }
    assert_eq!(r.step(&VMCALL), Ok(()));
    r.get(Gpr::Rax)
}

/// Whether a vector waits in a local APIC.
fn requested(r: &Rig, vector: u8) -> bool {
    let lapic = r.processor.vcpu.shared.irq.lapic().unwrap();
    lapic.state().page[((APIC_IRR + u32::from(vector >> 5) * 0x10) >> 2) as usize] >> (vector & 31) & 1 != 0
}

#[test]
fn numbers_and_privilege() {
    for (nr, user, want) in [
        (1u64, false, 0u64),
        (5, false, 0),
        (11, false, 0),
        (12, false, ENOSYS),
        (999, false, ENOSYS),
        (5, true, !0),
    ] {
        let mut r = Rig::new(Mode::Long);
        if user {
            r.user();
        }
        assert_eq!(call(&mut r, nr, [0; 4]), want, "{nr} {user}");
    }
}

/// Outside 64-bit mode numbers, arguments and answers have 32 bits.
#[test]
fn compatibility_mode_has_32_bits() {
    let mut r = Rig::new(Mode::Compat);
    assert_eq!(call(&mut r, 0xffff_ffff_0000_0001, [0; 4]), 0);
    assert_eq!(call(&mut r, 999, [0; 4]), ENOSYS & 0xffff_ffff);
}

#[test]
fn features_that_are_not_there() {
    let mut r = Rig::with_irqchip(Mode::Long);
    r.cpu().enforce_pv_features(true);
    for nr in [5, 10, 11] {
        assert_eq!(call(&mut r, nr, [0; 4]), ENOSYS, "{nr}");
    }
    assert_eq!(call(&mut r, 1, [0; 4]), 0);
}

fn amd(r: &mut Rig) {
    let mut rows = r.cpu().cpuid.entries().to_vec();
    for row in rows.iter_mut().filter(|e| e.leaf == 0) {
        row.result.ebx = u32::from_le_bytes(*b"Auth");
    }
    r.cpu().cpuid = CpuidTable::new(rows);
}

/// The instruction of the other vendor is mended in place, as the guest itself would write, or is #UD.
#[test]
fn the_other_vendors_instruction() {
    for (is_amd, native, other) in [(false, VMCALL, VMMCALL), (true, VMMCALL, VMCALL)] {
        let fresh = || {
            let mut r = Rig::new(Mode::Long);
            if is_amd {
                amd(&mut r);
            }
            r.set(Gpr::Rax, 1);
            r
        };
        let bytes = |r: &Rig| {
            let mut b = [0; 3];
            r.read(CODE, &mut b);
            b
        };
        let mut r = fresh();
        assert_eq!(r.run(&other, 1), Exit::Bound);
        assert_eq!((r.get(Gpr::Rax), bytes(&r)), (0, native));
        let mut r = fresh();
        assert_eq!(r.run(&native, 1), Exit::Bound);
        assert_eq!((r.get(Gpr::Rax), bytes(&r)), (0, native));
        // Read-only code: the write faults, and the hypercall is not made.
        let mut r = fresh();
        r.write(CODE, &other);
        r.read_only(CODE);
        let fault = Exception::with_code(Vector::Pf, (PageFaultErrorCode::P | PageFaultErrorCode::W).bits());
        assert_eq!(r.step(&other), Err(Stop::Exception(fault)));
        assert_eq!((r.get(Gpr::Rax), bytes(&r)), (1, other));
        // The quirk is off.
        let mut r = fresh();
        r.vm.choices.disable(crate::quirks::Quirks::FIX_HYPERCALL_INSN);
        r.write(CODE, &other);
        assert_eq!(r.step(&other), Err(Stop::Exception(Exception::UD)));
        assert_eq!((r.get(Gpr::Rax), bytes(&r)), (1, other));
        assert_eq!(r.step(&native), Ok(()));
    }
}

#[test]
fn ipis_by_bitmap() {
    let mut r = Rig::with_irqchip(Mode::Long);
    let mut others: Vec<Rig> = (0..3).map(|_| r.sibling()).collect();
    others.iter_mut().for_each(Rig::enable_lapic);
    // Bit 0 is APIC ID 1.
    assert_eq!(call(&mut r, 10, [0b101, 0, 1, 0x51]), 2);
    let got: Vec<bool> = others.iter().map(|o| requested(o, 0x51)).collect();
    assert_eq!((got, requested(&r, 0x51)), (vec![true, false, true], false));
    assert!(others[0].cpu().shared.gate.pending(), "and it is told");
    // The second word begins 64 further on; the sender may be among the targets; who is not there does not count.
    assert_eq!(call(&mut r, 10, [1 << 63, 0b1100, 0u64.wrapping_sub(64) & 0xffff_ffff, 0x52]), 0);
    assert_eq!(call(&mut r, 10, [!0, !0, 0, 0x52]), 4);
    assert!(requested(&r, 0x52));
    // An NMI.
    assert_eq!(call(&mut r, 10, [0b10, 0, 0, 0x400]), 1);
    others[0].cpu().take_apic_events();
    assert_eq!(others[0].cpu().events.nmi_pending, 1);
    // A destination or a shorthand of one's own.
    for icr in [1 << 18, 1 << 19, 1 << 24, 1 << 40] {
        assert_eq!(call(&mut r, 10, [1, 0, 0, 0x51 | icr]), EINVAL, "{icr:#x}");
    }
    // A local APIC that software has not enabled takes no interrupt.
    let mut late = r.sibling();
    assert_eq!(call(&mut r, 10, [1, 0, 4, 0x53]), 0);
    late.enable_lapic();
    assert_eq!(call(&mut r, 10, [1, 0, 4, 0x53]), 1);
    let mut none = Rig::new(Mode::Long);
    assert_eq!(call(&mut none, 10, [1, 0, 0, 0x51]), -95i64 as u64);
}

#[test]
fn ipis_from_32_bit_code_have_32_bits_a_word() {
    let mut r = Rig::with_irqchip(Mode::Compat);
    let mut others: Vec<Rig> = (0..34).map(|_| r.sibling()).collect();
    others.iter_mut().for_each(Rig::enable_lapic);
    assert_eq!(call(&mut r, 10, [1 << 31, 0b11, 1, 0x51]), 3);
    let got: Vec<usize> = (0..34).filter(|&n| requested(&others[n], 0x51)).map(|n| n + 1).collect();
    assert_eq!(got, [32, 33, 34]);
}

/// A kick ends the HLT that is on, or the next one, and that alone.
#[test]
fn kicks_are_not_lost() {
    let mut r = Rig::with_irqchip(Mode::Long);
    let mut other = r.sibling();
    assert_eq!(call(&mut r, 5, [0, 1, 0, 0]), 0);
    // Not halted: the kick waits.
    assert_eq!(other.run(&[0x90], 1), Exit::Bound);
    assert!(other.cpu().pv.unhalted);
    // HLT; NOP: the first HLT does not wait.
    assert_eq!(other.run(&[0xf4, 0x90], 2), Exit::Bound);
    assert_eq!((other.cpu().pv.unhalted, other.cpu().rip()), (false, CODE + 2));
    // The next one does.
    assert_eq!(other.run(&[0xf4, 0x90], 2), Exit::Bound);
    assert_eq!((other.cpu().events.activity, other.cpu().rip()), (Activity::Halted, CODE + 1));
    assert_eq!(call(&mut r, 5, [0, 1, 0, 0]), 0);
    assert_eq!(other.processor.run(Some(1)), Exit::Bound);
    assert_eq!(other.cpu().events.activity, Activity::Runnable);
    // Whom it is not for.
    assert_eq!(call(&mut r, 5, [0, 7, 0, 0]), 0);
    assert_eq!(call(&mut r, 5, [0, 1 << 33 | 1, 0, 0]), 0);
    other.cpu().take_apic_events();
    assert!(!other.cpu().pv.unhalted);
}

#[test]
fn pages_that_change_hands_are_user_spaces() {
    let args = [0x4000, 3, 0x11, 0];
    let mut r = Rig::new(Mode::Long);
    assert_eq!(call(&mut r, 12, args), ENOSYS, "off by default");
    r.vm.hypercall_exits.store(EXITS, Ordering::Relaxed);
    for bad in [[0x4001, 3, 0, 0], [0x4000, 0, 0, 0], [0x4000, !0, 0, 0]] {
        assert_eq!(call(&mut r, 12, bad), EINVAL, "{bad:x?}");
    }
    let start = |r: &mut Rig, code: &[u8]| {
        r.set(Gpr::Rax, 12);
        for (register, value) in [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].into_iter().zip(args) {
            r.set(register, value);
        }
        r.run(code, 1)
    };
    let exit = start(&mut r, &VMCALL);
    assert_eq!(exit, Exit::Hypercall { nr: 12, args, longmode: true });
    assert_eq!(r.cpu().rip(), CODE, "not completed");
    r.processor.complete_value(0xffff_ffff_0000_0007, false);
    assert_eq!(r.processor.complete_pending(), None);
    assert_eq!((r.get(Gpr::Rax), r.cpu().rip()), (0xffff_ffff_0000_0007, CODE + 3));
    // From 32-bit code, and with the other vendor's instruction.
    let mut r = Rig::new(Mode::Compat);
    r.vm.hypercall_exits.store(EXITS, Ordering::Relaxed);
    assert_eq!(start(&mut r, &VMMCALL), Exit::Hypercall { nr: 12, args, longmode: false });
    r.processor.complete_value(0xffff_ffff_0000_0007, false);
    assert_eq!(r.processor.complete_pending(), None);
    assert_eq!((r.get(Gpr::Rax), r.cpu().rip()), (7, CODE + 3));
    r.user();
    assert_eq!(call(&mut r, 12, args), 0xffff_ffff, "at CPL 3");
}

#[test]
fn clock_pairing() {
    let mut r = Rig::new(Mode::Long);
    r.write(DATA, &[0xee; 72]);
    assert_eq!(call(&mut r, 9, [DATA, 0, 0, 0]), 0);
    let (retired, tsc) = (r.cpu().hot.retired, r.cpu().guest_tsc());
    let ns = 1_000_000_000 + retired;
    assert_eq!((r.read_u64(DATA), r.read_u64(DATA + 8)), (ns / 1_000_000_000, ns % 1_000_000_000));
    assert_eq!(r.read_u64(DATA + 16), tsc);
    assert_eq!(r.read_u64(DATA + 56), 0);
    assert_eq!(r.read_u64(DATA + 64), 0xeeee_eeee_eeee_eeee);
    assert_eq!(call(&mut r, 9, [DATA, 1, 0, 0]), -95i64 as u64);
    assert_eq!(call(&mut r, 9, [RAM, 0, 0, 0]), -14i64 as u64);
}
