//! Task switches of each kind, and what goes wrong before and after the point of commitment.

use crate::event::{Event, EventKind};
use crate::exit::Stop;
use crate::rig::{CODE, DATA, GDT, IDT, Mode, Rig, STACK, TSS};
use x86_arch::control::{Cr0, Dr6, Dr7};
use x86_arch::{DescriptorTable, Exception, Gpr, Rflags, Seg, Vector};

/// The new task's TSS descriptor, the old one's, and where the new TSS lies.
const NEW: u16 = 0x50;
const OLD: u16 = 0x48;
const NEW_TSS: u64 = DATA + 0x1000;
const TARGET: u32 = 0x1_8000;

fn fails(v: Vector, code: u32) -> Result<(), Stop> {
    Err(Stop::Exception(Exception::with_code(v, code)))
}

fn tss_descriptor(base: u64, limit: u64, typ: u8) -> u64 {
    limit & 0xffff | (base & 0xff_ffff) << 16 | (0x80 | typ as u64) << 40
}

fn far(call: bool, selector: u16) -> Vec<u8> {
    let mut b = vec![if call { 0x9a } else { 0xea }, 0, 0, 0, 0];
    b.extend(selector.to_le_bytes());
    b
}

fn u32_at(r: &Rig, at: u64) -> u32 {
    let mut b = [0; 4];
    r.read(at, &mut b);
    u32::from_le_bytes(b)
}

fn u16_at(r: &Rig, at: u64) -> u16 {
    u32_at(r, at) as u16
}

/// A vCPU in one task, with another ready at [`NEW`].
fn rig(wide: bool) -> Rig {
    let mut r = Rig::new(Mode::Protected);
    r.write_u64(GDT + OLD as u64, tss_descriptor(TSS, 0x7ff, 11));
    let (typ, limit) = if wide { (9, 0x67) } else { (1, 0x2b) };
    r.write_u64(GDT + NEW as u64, tss_descriptor(NEW_TSS, limit, typ));
    r.cpu().gdtr = DescriptorTable { base: GDT, limit: 0x7f };
    if wide {
        let cr3 = r.cpu().cr3 as u32;
        r.write(NEW_TSS + 0x1c, &cr3.to_le_bytes());
        r.write(NEW_TSS + 0x20, &TARGET.to_le_bytes());
        r.write(NEW_TSS + 0x24, &0x202u32.to_le_bytes());
        for n in 0..8u32 {
            let v = if n == 4 { DATA as u32 + 0x800 } else { 0x1000_0000 + n };
            r.write(NEW_TSS + 0x28 + 4 * n as u64, &v.to_le_bytes());
        }
        for (n, s) in (0u64..).zip([0x10u16, 0x18, 0x10, 0x10, 0, 0x3b]) {
            r.write(NEW_TSS + 0x48 + 4 * n, &s.to_le_bytes());
        }
    } else {
        r.write(NEW_TSS + 0x0e, &0x8000u16.to_le_bytes());
        r.write(NEW_TSS + 0x10, &0x202u16.to_le_bytes());
        for n in 0..8u16 {
            r.write(NEW_TSS + 0x12 + 2 * n as u64, &(0x1000 + n).to_le_bytes());
        }
        for (n, s) in (0u64..).zip([0x10u16, 0x18, 0x10, 0x10]) {
            r.write(NEW_TSS + 0x22 + 2 * n, &s.to_le_bytes());
        }
    }
    for n in 0..8 {
        if n != 4 {
            r.cpu().hot.regs[n] = 0x5500_0000 + n as u64;
        }
    }
    r
}

fn busy(r: &Rig, selector: u16) -> bool {
    r.read_u64(GDT + selector as u64) >> 41 & 1 != 0
}

#[test]
fn jump_and_call_32() {
    for call in [false, true] {
        let mut r = rig(true);
        r.cpu().dr7 = Dr7::from_bits_retain(0x4ff);
        let flags = r.flags();
        assert_eq!(r.step(&far(call, NEW)), Ok(()));
        assert!(r.cpu().events.exception.is_none());
        // The old task's state.
        assert_eq!(u32_at(&r, TSS + 0x20) as u64, CODE + 7);
        assert_eq!(u32_at(&r, TSS + 0x24) as u64, flags);
        assert_eq!(u32_at(&r, TSS + 0x28), 0x5500_0000);
        assert_eq!(u32_at(&r, TSS + 0x38) as u64, STACK);
        assert_eq!((u16_at(&r, TSS + 0x48), u16_at(&r, TSS + 0x4c)), (0x10, 0x18));
        // The new one's.
        let c = r.cpu();
        assert_eq!((c.rip(), c.cpl), (TARGET as u64, 0));
        assert_eq!(c.flag(Rflags::NT), call);
        assert!(c.cr0.contains(Cr0::TS));
        assert_eq!(c.dr7.bits() & 0xff, 0xaa, "local breakpoints are off");
        assert_eq!(
            (r.get(Gpr::Rax), r.get(Gpr::Rdi), r.get(Gpr::Rsp)),
            (0x1000_0000, 0x1000_0007, DATA + 0x800)
        );
        let c = r.cpu();
        assert_eq!((c.segment(Seg::Tr).selector.0, c.segment(Seg::Tr).base), (NEW, NEW_TSS));
        assert_eq!(c.segment(Seg::Gs).selector.0, 0x3b);
        assert!(c.segment(Seg::Fs).unusable && !c.segment(Seg::Ds).unusable);
        assert_eq!((busy(&r, NEW), busy(&r, OLD)), (true, call));
        assert_eq!(u16_at(&r, NEW_TSS), if call { OLD } else { 0 });
        if call {
            // And back by IRET.
            assert_eq!(r.step(&[0xcf]), Ok(()));
            assert_eq!((r.cpu().rip(), r.get(Gpr::Rsp)), (CODE + 7, STACK));
            assert_eq!((busy(&r, NEW), busy(&r, OLD)), (false, true));
            assert_eq!(u32_at(&r, NEW_TSS + 0x24) & 0x4000, 0, "NT is clear in the image");
            assert_eq!(r.cpu().segment(Seg::Tr).selector.0, OLD);
        }
    }
}

#[test]
fn sixteen_bit_task() {
    let mut r = rig(false);
    assert_eq!(r.step(&far(false, NEW)), Ok(()));
    assert_eq!((r.cpu().rip(), r.get(Gpr::Rcx), r.get(Gpr::Rsp)), (0x8000, 0x1001, 0x1004));
    assert!(r.cpu().segment(Seg::Fs).unusable);
}

#[test]
fn refusals_before_the_point_of_commitment() {
    type Spoil = fn(&mut Rig);
    let code = NEW as u32;
    let rows: &[(&str, Spoil, u16, Result<(), Stop>)] = &[
        (
            "busy",
            |r| r.write_u64(GDT + NEW as u64, tss_descriptor(NEW_TSS, 0x67, 11)),
            NEW,
            fails(Vector::Gp, code),
        ),
        (
            "not present",
            |r| r.write_u64(GDT + NEW as u64, tss_descriptor(NEW_TSS, 0x67, 9) & !(1 << 47)),
            NEW,
            fails(Vector::Np, code),
        ),
        (
            "too short",
            |r| r.write_u64(GDT + NEW as u64, tss_descriptor(NEW_TSS, 0x66, 9)),
            NEW,
            fails(Vector::Ts, code),
        ),
        ("RPL above DPL", |_| {}, NEW | 1, fails(Vector::Gp, code)),
        (
            "task gate absent",
            |r| r.write_u64(GDT + 0x58, 0x0000_0500_0050_0000),
            0x58,
            fails(Vector::Np, 0x58),
        ),
        (
            "task gate to code",
            |r| r.write_u64(GDT + 0x58, 0x0000_8500_0018_0000),
            0x58,
            fails(Vector::Gp, 0x18),
        ),
    ];
    for (name, spoil, selector, want) in rows {
        let mut r = rig(true);
        spoil(&mut r);
        let (before, tr) = (r.registers(), *r.cpu().segment(Seg::Tr));
        assert_eq!(r.step(&far(false, *selector)), *want, "{name}");
        assert_eq!(r.registers(), before, "{name}");
        assert_eq!(*r.cpu().segment(Seg::Tr), tr, "{name}");
        assert!(busy(&r, OLD));
    }
    // IRET wants a busy TSS.
    let mut r = rig(true);
    r.set_flags(Rflags::NT, u64::MAX);
    r.write(TSS, &NEW.to_le_bytes());
    assert_eq!(r.step(&[0xcf]), fails(Vector::Ts, code));
}

#[test]
fn faults_of_the_new_task() {
    type Spoil = fn(&mut Rig);
    let rows: &[(&str, Spoil, Vector, u32)] = &[
        ("null CS", |r| r.write(NEW_TSS + 0x4c, &[0, 0]), Vector::Ts, 0),
        ("CS is data", |r| r.write(NEW_TSS + 0x4c, &[0x10, 0]), Vector::Ts, 0x10),
        ("CS's RPL", |r| r.write(NEW_TSS + 0x4c, &[0x1b, 0]), Vector::Ts, 0x18),
        ("null SS", |r| r.write(NEW_TSS + 0x50, &[0, 0]), Vector::Ts, 0),
        ("SS's RPL", |r| r.write(NEW_TSS + 0x50, &[0x3b, 0]), Vector::Ts, 0x38),
        ("DS is beyond the table", |r| r.write(NEW_TSS + 0x54, &[0x80, 0]), Vector::Ts, 0x80),
        ("LDT is no LDT", |r| r.write(NEW_TSS + 0x60, &[0x10, 0]), Vector::Ts, 0x10),
        ("EIP beyond the limit", |r| r.write_u64(GDT + 0x18, 0x0040_9b00_0000_ffff), Vector::Gp, 0),
    ];
    for (name, spoil, vector, code) in rows {
        let mut r = rig(true);
        spoil(&mut r);
        assert_eq!(r.step(&far(false, NEW)), Ok(()), "{name}");
        let c = r.cpu();
        let e = c.events.exception.expect("an exception is pending");
        assert_eq!((e.vector, e.error_code), (*vector as u8, Some(*code)), "{name}");
        assert_eq!((c.rip(), c.segment(Seg::Tr).selector.0), (TARGET as u64, NEW), "{name}");
    }
}

#[test]
fn task_gates_trap_bit_and_virtual_8086() {
    let mut r = rig(true);
    r.write_u64(GDT + 0x58, 0x0000_8500_0050_0000);
    assert_eq!(r.step(&far(false, 0x58)), Ok(()));
    assert_eq!(r.cpu().segment(Seg::Tr).selector.0, NEW);
    // By an exception with an error code, through the IDT.
    let mut r = rig(true);
    r.write_u64(IDT + 13 * 8, 0x0000_8500_0050_0000);
    r.write(NEW_TSS + 0x64, &[1, 0]);
    let e = Event { vector: 13, kind: EventKind::Exception, error_code: Some(0x1234) };
    assert_eq!(r.cpu().inject(e), Ok(()));
    assert_eq!(r.get(Gpr::Rsp), DATA + 0x800 - 4);
    assert_eq!(u32_at(&r, DATA + 0x800 - 4), 0x1234);
    assert!(r.cpu().flag(Rflags::NT));
    assert_eq!((u16_at(&r, NEW_TSS), u32_at(&r, TSS + 0x20) as u64), (OLD, CODE));
    assert_ne!(r.cpu().events.debug_trap & Dr6::BT.bits(), 0);
    // A virtual-8086 task.
    let mut r = rig(true);
    r.write(NEW_TSS + 0x24, &0x0002_3202u32.to_le_bytes());
    r.write(NEW_TSS + 0x20, &0x100u32.to_le_bytes());
    assert_eq!(r.step(&far(false, NEW)), Ok(()));
    let c = r.cpu();
    assert!(c.v86() && c.cpl == 3 && c.events.exception.is_none());
    assert_eq!(c.segment(Seg::Cs).base, 0x180);
}
