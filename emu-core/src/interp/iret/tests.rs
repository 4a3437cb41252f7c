//! Every form of IRET.

use crate::exit::Stop;
use crate::rig::{CODE, DATA, GDT, Mode, Rig, STACK};
use x86_arch::control::Cr4;
use x86_arch::{Exception, Gpr, Rflags, Seg, Vector};

const TARGET: u64 = 0x1_8000;
const IRETQ: &[u8] = &[0x48, 0xcf];
const IRET: &[u8] = &[0xcf];

fn fails(v: Vector, code: u32) -> Result<(), Stop> {
    Err(Stop::Exception(Exception::with_code(v, code)))
}

fn push(r: &mut Rig, width: usize, words: &[u64]) {
    let base = if r.cpu().segment(Seg::Ss).db { 0 } else { 0x3_0000 };
    let sp = r.get(Gpr::Rsp);
    for (n, w) in (0u64..).zip(words) {
        r.write(base + sp + n * width as u64, &w.to_le_bytes()[..width]);
    }
}

#[test]
fn long_mode_always_pops_the_stack() {
    // Same level, with and without a null SS; to CPL 3; to compatibility mode.
    for (cs, ss, want) in [
        (8u64, 0x10u64, Ok(())),
        (8, 0, Ok(())),
        (0x33, 0x3b, Ok(())),
        (0x43, 0x3b, Ok(())),
        (0x33, 3, fails(Vector::Gp, 0)),
        (0x18, 0, fails(Vector::Gp, 0)),
        (0x33, 0x10, fails(Vector::Gp, 0x10)),
        (0, 0x10, fails(Vector::Gp, 0)),
        (0x10, 0x10, fails(Vector::Gp, 0x10)),
        (0xb, 0x13, fails(Vector::Gp, 8)),
        (0x30, 0x10, fails(Vector::Gp, 0x30)),
        (0x80, 0x10, fails(Vector::Gp, 0x80)),
    ] {
        let mut r = Rig::new(Mode::Long);
        r.cpu().events.nmi_masked = true;
        push(&mut r, 8, &[TARGET, cs, 0x0024_0ed7, DATA + 8, ss]);
        let before = r.registers();
        assert_eq!(r.step(IRETQ), want, "CS {cs:#x} SS {ss:#x}");
        assert!(!r.cpu().events.nmi_masked, "NMIs are unblocked even by a fault");
        if want.is_err() {
            assert_eq!(r.registers(), before);
            continue;
        }
        assert_eq!((r.get(Gpr::Rsp), r.cpu().rip(), r.flags()), (DATA + 8, TARGET, 0x0024_0ed7));
        let c = r.cpu();
        assert_eq!(c.cpl, cs as u8 & 3);
        assert_eq!(c.segment(Seg::Ss).selector.0 as u64, ss);
        assert_eq!(c.long64(), cs != 0x43);
        // Going outward, segments that are ring 0's become null.
        assert_eq!(c.segment(Seg::Ds).unusable, cs & 3 == 3);
    }
    let mut r = Rig::new(Mode::Long);
    push(&mut r, 8, &[1 << 48, 0x33, 2, 0, 0x3b]);
    assert_eq!(r.step(IRETQ), fails(Vector::Gp, 0));
    // NT in IA-32e mode.
    r.set_flags(Rflags::NT, u64::MAX);
    push(&mut r, 8, &[TARGET, 8, 2, DATA, 0x10]);
    assert_eq!(r.step(IRETQ), fails(Vector::Gp, 0));
}

#[test]
fn flags_by_privilege() {
    let all = 0x003f_7fd7u64 & !Rflags::VM.bits() & !Rflags::NT.bits();
    // From CPL 3 with IOPL 0: IF, IOPL, VIF and VIP stay.
    for (iopl, changed) in [(0u64, Rflags::empty()), (3, Rflags::IF)] {
        let mut r = Rig::new(Mode::Long);
        r.cpu().seg[Seg::Cs as usize].selector.0 = 0x33;
        r.user();
        r.cpu().seg[Seg::Cs as usize].selector.0 = 0x33;
        r.set_flags(Rflags::IOPL, iopl << 12);
        push(&mut r, 8, &[TARGET, 0x33, all, DATA, 0x3b]);
        assert_eq!(r.step(IRETQ), Ok(()));
        let kept = Rflags::IF | Rflags::IOPL | Rflags::VIF | Rflags::VIP;
        let want = all & !kept.bits() | iopl << 12 | changed.bits();
        assert_eq!(r.flags(), want, "IOPL {iopl}");
    }
    // CPL 0 changes them all.
    let mut r = Rig::new(Mode::Long);
    push(&mut r, 8, &[TARGET, 8, all, DATA, 0x10]);
    assert_eq!(r.step(IRETQ), Ok(()));
    assert_eq!(r.flags(), all);
    // A 16-bit operand leaves the upper half.
    let mut r = Rig::new(Mode::Protected);
    r.set_flags(Rflags::AC | Rflags::ID, u64::MAX);
    push(&mut r, 2, &[0x8000, 0x18, 0xed7]);
    assert_eq!(r.step(&[0x66, 0xcf]), Ok(()));
    assert_eq!(r.flags(), 0x0024_0ed7);
    assert_eq!((r.cpu().rip(), r.get(Gpr::Rsp)), (0x8000, STACK + 6));
}

#[test]
fn protected_same_and_outer_level() {
    let mut r = Rig::new(Mode::Protected);
    push(&mut r, 4, &[TARGET, 0x18, 0x202, 0x1111, 0x2222]);
    assert_eq!(r.step(IRET), Ok(()));
    assert_eq!(r.get(Gpr::Rsp), STACK + 12, "the same level pops three words");
    let mut r = Rig::new(Mode::Protected);
    push(&mut r, 4, &[TARGET, 0x43, 0x202, DATA, 0x3b]);
    assert_eq!(r.step(IRET), Ok(()));
    assert_eq!((r.get(Gpr::Rsp), r.cpu().cpl), (DATA, 3));
    // Beyond the limit of the new segment.
    let mut r = Rig::new(Mode::Protected);
    r.write_u64(GDT + 0x18, 0x0040_9b00_0000_ffff);
    push(&mut r, 4, &[0x1_0000, 0x18, 2]);
    assert_eq!(r.step(IRET), fails(Vector::Gp, 0));
}

#[test]
fn a_16_bit_stack_keeps_the_upper_half() {
    let mut r = Rig::new(Mode::Protected);
    // A 16-bit stack segment of ring 3.
    r.write_u64(GDT + 0x38, 0x0000_f300_0000_ffff);
    r.set(Gpr::Rsp, STACK);
    push(&mut r, 4, &[TARGET, 0x43, 0x202, 0xffff_1234, 0x3b]);
    assert_eq!(r.step(IRET), Ok(()));
    assert_eq!(r.get(Gpr::Rsp), STACK & 0xffff_0000 | 0x1234);
}

#[test]
fn to_virtual_8086_mode() {
    let flags = 0x0002_3202u64;
    let mut r = Rig::new(Mode::Protected);
    push(&mut r, 4, &[0x100, 0x1000, flags, 0x8000, 0x2000, 0x11, 0x22, 0x33, 0x44]);
    assert_eq!(r.step(IRET), Ok(()));
    let c = r.cpu();
    assert!(c.v86() && c.cpl == 3);
    assert_eq!((c.rip(), c.hot.regs[4], c.hot.rflags), (0x100, 0x8000, flags));
    for (s, v) in [(Seg::Cs, 0x1000), (Seg::Ss, 0x2000), (Seg::Es, 0x11), (Seg::Ds, 0x22), (Seg::Gs, 0x44)] {
        assert_eq!((c.segment(s).selector.0, c.segment(s).base), (v, (v as u64) << 4), "{s:?}");
        assert_eq!((c.segment(s).limit, c.segment(s).dpl), (0xffff, 3));
    }
    let mut r = Rig::new(Mode::Protected);
    push(&mut r, 4, &[0x1_0000, 0x1000, flags, 0, 0, 0, 0, 0, 0]);
    assert_eq!(r.step(IRET), fails(Vector::Gp, 0));
    // Only CPL 0 can.
    let mut r = Rig::new(Mode::Protected);
    r.user();
    r.cpu().seg[Seg::Cs as usize].selector.0 = 0x43;
    push(&mut r, 4, &[TARGET, 0x43, flags]);
    assert_eq!(r.step(IRET), Ok(()));
    assert!(!r.cpu().v86());
}

#[test]
fn real_and_virtual_8086() {
    let mut r = Rig::new(Mode::Real);
    push(&mut r, 2, &[0x1234, 0x2000, 0x7fd7]);
    assert_eq!(r.step(IRET), Ok(()));
    assert_eq!((r.cpu().rip(), r.cpu().segment(Seg::Cs).base, r.flags()), (0x1234, 0x2_0000, 0x7fd7));
    assert_eq!(r.get(Gpr::Rsp), (STACK & 0xffff) + 6);
    // IOPL 3: IOPL itself stays.
    let mut r = Rig::new(Mode::Virtual8086);
    r.set_flags(Rflags::IOPL, u64::MAX);
    push(&mut r, 2, &[0x1234, 0x2000, 0x0202]);
    assert_eq!(r.step(IRET), Ok(()));
    assert_eq!(r.flags(), 0x2_3202);
    // IOPL 0: #GP, or VIF with VME.
    let mut r = Rig::new(Mode::Virtual8086);
    push(&mut r, 2, &[0x1234, 0x2000, 0x0202]);
    assert_eq!(r.step(IRET), fails(Vector::Gp, 0));
    r.cpu().cr4 |= Cr4::VME;
    assert_eq!(r.step(IRET), Ok(()));
    assert!(r.cpu().flag(Rflags::VIF) && !r.cpu().flag(Rflags::IF));
    for (image, vip) in [(0x102u64, false), (0x202, true)] {
        let mut r = Rig::new(Mode::Virtual8086);
        r.cpu().cr4 |= Cr4::VME;
        r.set_flags(Rflags::VIP, if vip { u64::MAX } else { 0 });
        push(&mut r, 2, &[0x1234, 0x2000, image]);
        assert_eq!(r.step(IRET), fails(Vector::Gp, 0), "{image:#x}");
    }
    assert_eq!(CODE, 0x1_0000);
}
