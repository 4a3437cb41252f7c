//! Frames byte by byte in each mode, and every refusal with its error code.

use crate::event::{Event, EventKind, Shadow};
use crate::exit::{Exit, Stop};
use crate::rig::{CODE, DATA, GDT, IDT, Mode, Rig, STACK, TSS};
use x86_arch::control::{Cr0, Cr4};
use x86_arch::{Exception, Gpr, Rflags, Seg, Vector};

const HANDLER: u64 = 0x1_2340;
const INNER: u64 = 0x3_9ff8;

fn event(vector: u8, kind: EventKind, error_code: Option<u32>) -> Event {
    Event { vector, kind, error_code }
}

fn gp(code: u32) -> Result<(), Stop> {
    fails(Vector::Gp, code)
}

fn fails(v: Vector, code: u32) -> Result<(), Stop> {
    Err(Stop::Exception(Exception::with_code(v, code)))
}

/// An 8-byte gate.
fn gate(selector: u16, offset: u32, typ: u8, dpl: u8) -> u64 {
    (offset as u64 & 0xffff)
        | (selector as u64) << 16
        | (0x80 | (dpl as u64) << 5 | typ as u64) << 40
        | (offset as u64 >> 16) << 48
}

fn set_gate(r: &mut Rig, vector: u8, low: u64, high: u64) {
    match r.cpu().long_mode() {
        true => {
            r.write_u64(IDT + 16 * vector as u64, low);
            r.write_u64(IDT + 16 * vector as u64 + 8, high);
        }
        false => r.write_u64(IDT + 8 * vector as u64, low),
    }
}

fn read(r: &Rig, at: u64, width: usize) -> u64 {
    let mut b = [0; 8];
    r.read(at, &mut b[..width]);
    u64::from_le_bytes(b)
}

/// The values at the stack pointer, `width` bytes each.
fn frame(r: &Rig, base: u64, width: usize, n: u64) -> Vec<u64> {
    let sp = r.get(Gpr::Rsp);
    (0..n).map(|k| read(r, base + sp + k * width as u64, width)).collect()
}

#[test]
fn long_mode_frames() {
    for (kind, error, user, ist, trap) in [
        (EventKind::External, None, false, 0u8, false),
        (EventKind::Exception, Some(0x18), false, 0, true),
        (EventKind::External, None, true, 0, false),
        (EventKind::Exception, Some(7), true, 0, false),
        (EventKind::Exception, Some(7), true, 3, true),
        (EventKind::Nmi, None, false, 1, false),
    ] {
        let mut r = Rig::new(Mode::Long);
        if user {
            r.user();
        }
        r.set_flags(Rflags::all(), 0x0020_0a97 | 0x4100);
        let vector = if kind == EventKind::Nmi { 2 } else { 13 };
        let typ = if trap { 15 } else { 14 };
        set_gate(&mut r, vector, gate(8, HANDLER as u32, typ, 0) | (ist as u64) << 32, 0);
        r.write_u64(TSS + 4, INNER);
        r.write_u64(TSS + 28 + 8 * ist as u64, if ist > 0 { 0x3_a005 } else { INNER });
        r.write_u64(TSS + 4, INNER);
        let old_sp = STACK - 4;
        r.set(Gpr::Rsp, old_sp);
        r.cpu().events.shadow = Shadow::Sti;
        let (cs, ss) = (r.cpu().segment(Seg::Cs).selector.0, r.cpu().segment(Seg::Ss).selector.0);
        let flags = r.flags();
        assert_eq!(r.cpu().inject(event(vector, kind, error)), Ok(()));
        let top = if ist > 0 {
            0x3_a005 & !15
        } else if user {
            INNER & !15
        } else {
            old_sp & !15
        };
        let words = if error.is_some() { 6 } else { 5 };
        assert_eq!(r.get(Gpr::Rsp), top - 8 * words, "{kind:?} {user} {ist}");
        let fault = kind == EventKind::Exception;
        let mut want = vec![CODE, cs as u64, flags | (fault as u64) << 16, old_sp, ss as u64];
        if let Some(e) = error {
            want.insert(0, e as u64);
        }
        assert_eq!(frame(&r, 0, 8, words), want, "{kind:?} {user} {ist}");
        let cleared = Rflags::TF | Rflags::NT | Rflags::RF | if trap { Rflags::empty() } else { Rflags::IF };
        assert_eq!(r.flags(), flags & !cleared.bits());
        let c = r.cpu();
        assert_eq!((c.rip(), c.cpl, c.segment(Seg::Cs).selector.0), (HANDLER, 0, 8));
        assert!(c.long64());
        assert_eq!(c.segment(Seg::Ss).selector.0, if user { 0 } else { 0x10 });
        assert_eq!(c.segment(Seg::Ss).unusable, user);
        assert_eq!(c.events.shadow, Shadow::None);
    }
}

#[test]
fn long_mode_refusals() {
    type Spoil = fn(&mut Rig);
    let ok = gate(8, HANDLER as u32, 14, 3);
    // What is spoiled; the refusal of a software interrupt from CPL 3; the same of an external one.
    let rows: &[(&str, Spoil, Vector, u32)] = &[
        ("limit", |r| r.cpu().idtr.limit = 0x40 * 16 + 14, Vector::Gp, 0x40 << 3 | 2),
        ("type", |r| set_gate(r, 0x40, gate(8, 0, 12, 3), 0), Vector::Gp, 0x40 << 3 | 2),
        ("16-bit type", |r| set_gate(r, 0x40, gate(8, 0, 6, 3), 0), Vector::Gp, 0x40 << 3 | 2),
        ("task gate", |r| set_gate(r, 0x40, gate(8, 0, 5, 3), 0), Vector::Gp, 0x40 << 3 | 2),
        ("S set", |r| set_gate(r, 0x40, gate(8, 0, 14, 3) | 1 << 44, 0), Vector::Gp, 0x40 << 3 | 2),
        ("not present", |r| set_gate(r, 0x40, gate(8, 0, 14, 3) & !(1 << 47), 0), Vector::Np, 0x40 << 3 | 2),
        ("null code", |r| set_gate(r, 0x40, gate(3, 0, 14, 3), 0), Vector::Gp, 0),
        ("beyond the GDT", |r| set_gate(r, 0x40, gate(0x48, 0, 14, 3), 0), Vector::Gp, 0x48),
        ("LDT without one", |r| set_gate(r, 0x40, gate(0xc, 0, 14, 3), 0), Vector::Gp, 0xc),
        ("data", |r| set_gate(r, 0x40, gate(0x10, 0, 14, 3), 0), Vector::Gp, 0x10),
        ("32-bit code", |r| set_gate(r, 0x40, gate(0x18, 0, 14, 3), 0), Vector::Gp, 0x18),
        (
            "code not present",
            |r| {
                let d = r.read_u64(GDT + 8);
                r.write_u64(GDT + 8, d & !(1 << 47));
            },
            Vector::Np,
            8,
        ),
        ("non-canonical handler", |r| set_gate(r, 0x40, gate(8, 0, 14, 3), 0x8000), Vector::Gp, 0),
        ("no TSS room", |r| r.cpu().seg[Seg::Tr as usize].limit = 10, Vector::Ts, 0x48),
        ("non-canonical stack", |r| r.write_u64(TSS + 4, 1 << 50), Vector::Ss, 0),
        (
            "no IST room",
            |r| {
                set_gate(r, 0x40, gate(8, 0, 14, 3) | 1 << 32, 0);
                r.cpu().seg[Seg::Tr as usize].limit = 0x2a;
            },
            Vector::Ts,
            0x48,
        ),
    ];
    for (name, spoil, vector, code) in rows {
        for (kind, ext) in [(EventKind::SoftwareInterrupt, 0), (EventKind::External, 1)] {
            let mut r = Rig::new(Mode::Long);
            r.user();
            set_gate(&mut r, 0x40, ok, 0);
            r.write_u64(TSS + 4, INNER);
            spoil(&mut r);
            let before = r.registers();
            assert_eq!(
                r.cpu().inject(event(0x40, kind, None)),
                fails(*vector, code | ext),
                "{name} {kind:?}"
            );
            assert_eq!(r.registers(), before, "{name}");
            assert_eq!(r.cpu().cpl, 3, "{name}");
        }
    }
    // The DPL counts for software only.
    for (kind, want) in [
        (EventKind::SoftwareInterrupt, gp(0x40 << 3 | 2)),
        (EventKind::SoftwareException, gp(0x40 << 3 | 2)),
        (EventKind::PrivilegedSoftwareException, Ok(())),
        (EventKind::External, Ok(())),
    ] {
        let mut r = Rig::new(Mode::Long);
        r.user();
        set_gate(&mut r, 0x40, gate(8, HANDLER as u32, 14, 0), 0);
        r.write_u64(TSS + 4, INNER);
        assert_eq!(r.cpu().inject(event(0x40, kind, None)), want, "{kind:?}");
    }
}

/// A push that faults leaves registers and the pages that could be written as they were.
#[test]
fn a_stack_fault_changes_nothing() {
    let mut r = Rig::new(Mode::Long);
    set_gate(&mut r, 0x40, gate(8, HANDLER as u32, 14, 0), 0);
    // The frame crosses into a page that is not there.
    r.set(Gpr::Rsp, 0x3_8010);
    r.unmap(0x3_7000);
    r.write_u64(0x3_8008, 0x1111);
    let before = r.registers();
    let result = r.cpu().inject(event(0x40, EventKind::External, None));
    assert!(matches!(result, Err(Stop::Exception(Exception { vector: Vector::Pf, .. }))), "{result:?}");
    assert_eq!(r.registers(), before);
    assert_eq!(r.read_u64(0x3_8008), 0x1111);
}

fn protected_rig(user: bool) -> Rig {
    let mut r = Rig::new(Mode::Protected);
    if user {
        r.user();
    }
    let b = [(INNER as u32).to_le_bytes(), 0x10u32.to_le_bytes()].concat();
    r.write(TSS + 4, &b);
    r
}

#[test]
fn protected_mode_frames() {
    for (typ, width) in [(14u8, 4usize), (15, 4), (6, 2), (7, 2)] {
        for user in [false, true] {
            for error in [None, Some(0x58u32)] {
                let mut r = protected_rig(user);
                set_gate(&mut r, 13, gate(0x18, HANDLER as u32, typ, 0), 0);
                r.set_flags(Rflags::all(), 0x246 | 0x4100);
                let flags = r.flags();
                let (cs, ss) = (r.cpu().segment(Seg::Cs).selector.0, r.cpu().segment(Seg::Ss).selector.0);
                assert_eq!(r.cpu().inject(event(13, EventKind::Exception, error)), Ok(()));
                let m = if width == 2 { 0xffff } else { 0xffff_ffff };
                let mut want = vec![CODE & m, cs as u64, (flags | 1 << 16) & m];
                if let Some(e) = error {
                    want.insert(0, e as u64);
                }
                if user {
                    want.extend([STACK & m, ss as u64]);
                }
                let n = want.len() as u64;
                assert_eq!(frame(&r, 0, width, n), want, "{typ} {user} {error:?}");
                let top = if user { INNER } else { STACK };
                assert_eq!(r.get(Gpr::Rsp), top - n * width as u64);
                let c = r.cpu();
                assert_eq!(c.rip(), HANDLER & if width == 2 { 0xffff } else { u64::MAX });
                assert_eq!((c.cpl, c.segment(Seg::Ss).selector.0), (0, 0x10));
                assert_eq!(c.flag(Rflags::IF), typ & 1 == 1);
                assert!(!c.flag(Rflags::TF) && !c.flag(Rflags::NT));
            }
        }
    }
}

#[test]
fn protected_mode_refusals() {
    type Spoil = fn(&mut Rig);
    let rows: &[(&str, Spoil, Vector, u32)] = &[
        ("limit", |r| r.cpu().idtr.limit = 0x40 * 8 + 6, Vector::Gp, 0x40 << 3 | 2),
        ("call gate", |r| set_gate(r, 0x40, gate(0x18, 0, 12, 3), 0), Vector::Gp, 0x40 << 3 | 2),
        (
            "not present",
            |r| set_gate(r, 0x40, gate(0x18, 0, 14, 3) & !(1 << 47), 0),
            Vector::Np,
            0x40 << 3 | 2,
        ),
        ("null code", |r| set_gate(r, 0x40, gate(0, 0, 14, 3), 0), Vector::Gp, 0),
        ("data", |r| set_gate(r, 0x40, gate(0x10, 0, 14, 3), 0), Vector::Gp, 0x10),
        ("null stack", |r| r.write(TSS + 8, &[0, 0]), Vector::Ts, 0),
        ("stack's RPL", |r| r.write(TSS + 8, &[0x13, 0]), Vector::Ts, 0x10),
        ("stack is code", |r| r.write(TSS + 8, &[0x18, 0]), Vector::Ts, 0x18),
        ("stack's DPL", |r| r.write(TSS + 8, &[0x38, 0]), Vector::Ts, 0x38),
        ("stack beyond the GDT", |r| r.write(TSS + 8, &[0x50, 0]), Vector::Ts, 0x50),
        (
            "stack not present",
            |r| {
                let d = r.read_u64(GDT + 0x10);
                r.write_u64(GDT + 0x10, d & !(1 << 47));
            },
            Vector::Ss,
            0x10,
        ),
        (
            "stack too small",
            |r| {
                // Limit 0FFFH, byte granular: ESP is far beyond.
                r.write_u64(GDT + 0x10, 0x0040_9300_0000_0fff);
            },
            Vector::Ss,
            0x10,
        ),
        ("no TSS room", |r| r.cpu().seg[Seg::Tr as usize].limit = 8, Vector::Ts, 0x48),
        (
            "handler beyond the limit",
            |r| {
                r.write_u64(GDT + 0x20, 0x0040_9b00_0000_0fff);
                set_gate(r, 0x40, gate(0x20, 0x1000, 14, 3), 0);
            },
            Vector::Gp,
            0,
        ),
    ];
    for (name, spoil, vector, code) in rows {
        for (kind, ext) in [(EventKind::SoftwareInterrupt, 0), (EventKind::External, 1)] {
            let mut r = protected_rig(true);
            set_gate(&mut r, 0x40, gate(0x18, HANDLER as u32, 14, 3), 0);
            spoil(&mut r);
            let before = r.registers();
            let result = r.cpu().inject(event(0x40, kind, None));
            assert_eq!(result, fails(*vector, code | ext), "{name} {kind:?}");
            assert_eq!(r.registers(), before, "{name}");
        }
    }
}

/// The gate's DPL counts for software interrupts only, whatever the mode.
#[test]
fn protected_mode_gate_dpl() {
    for (dpl, kind, ok) in [
        (0, EventKind::SoftwareInterrupt, false),
        (2, EventKind::SoftwareException, false),
        (3, EventKind::SoftwareInterrupt, true),
        (0, EventKind::External, true),
        (0, EventKind::PrivilegedSoftwareException, true),
    ] {
        let mut r = protected_rig(true);
        set_gate(&mut r, 0x40, gate(0x18, HANDLER as u32, 14, dpl), 0);
        let want = if ok { Ok(()) } else { gp(0x40 << 3 | 2) };
        assert_eq!(r.cpu().inject(event(0x40, kind, None)), want, "DPL {dpl} {kind:?}");
    }
}

#[test]
fn virtual_8086_to_ring_0() {
    let mut r = Rig::new(Mode::Virtual8086);
    let b = [(INNER as u32).to_le_bytes(), 0x10u32.to_le_bytes()].concat();
    r.write(TSS + 4, &b);
    set_gate(&mut r, 0x20, gate(0x18, HANDLER as u32, 14, 0), 0);
    for (n, s) in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs].into_iter().enumerate() {
        r.cpu().seg[s as usize].selector.0 = 0x1110 + n as u16;
    }
    r.set_flags(Rflags::IF, u64::MAX);
    let flags = r.flags();
    let sp = r.get(Gpr::Rsp);
    assert_eq!(r.cpu().inject(event(0x20, EventKind::External, None)), Ok(()));
    let want = [0, 0x1000, flags, sp, 0x3000, 0x1110, 0x1111, 0x1112, 0x1113];
    assert_eq!(frame(&r, 0, 4, 9), want);
    assert_eq!(r.get(Gpr::Rsp), INNER - 36);
    let c = r.cpu();
    assert!(!c.v86() && c.cpl == 0 && c.mode == decoder::CpuMode::Bits32);
    for s in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        assert!(c.segment(s).unusable && c.segment(s).selector.0 == 0, "{s:?}");
    }
    // A handler that is not at ring 0.
    let mut r = Rig::new(Mode::Virtual8086);
    set_gate(&mut r, 0x20, gate(0x40, 0, 14, 0), 0);
    assert_eq!(r.cpu().inject(event(0x20, EventKind::External, None)), gp(0x41));
}

#[test]
fn virtual_8086_software_interrupts() {
    let soft = event(0x21, EventKind::SoftwareInterrupt, None);
    let setup = |iopl: u64, vme: bool, redirect: bool| {
        let mut r = Rig::new(Mode::Virtual8086);
        let b = [(INNER as u32).to_le_bytes(), 0x10u32.to_le_bytes()].concat();
        r.write(TSS + 4, &b);
        set_gate(&mut r, 0x21, gate(0x18, HANDLER as u32, 14, 3), 0);
        r.write(0x21 * 4, &[0x34, 0x12, 0x00, 0x18]);
        r.write(TSS + 0x66, &[0x88, 0]);
        // The redirection bitmap lies from 68H to 87H.
        r.write(TSS + 0x68 + 4, &[if redirect { 2 } else { 0 }]);
        r.set_flags(Rflags::IOPL, iopl << 12);
        if vme {
            r.cpu().cr4 |= Cr4::VME;
        }
        r
    };
    // No VME: IOPL decides.
    assert_eq!(setup(0, false, false).cpu().inject(soft), gp(0));
    let mut r = setup(3, false, false);
    assert_eq!(r.cpu().inject(soft), Ok(()));
    assert_eq!(r.cpu().rip(), HANDLER);
    // VME and the bit set: as without VME.
    assert_eq!(setup(0, true, true).cpu().inject(soft), gp(0));
    // VME and the bit clear: the task's own table.
    for iopl in [0, 3] {
        let mut r = setup(iopl, true, false);
        r.set_flags(Rflags::IF | Rflags::VIF, if iopl == 3 { Rflags::IF } else { Rflags::VIF }.bits());
        let flags = r.flags();
        assert_eq!(r.cpu().inject(soft), Ok(()));
        let (rip, sp) = (r.cpu().rip(), r.get(Gpr::Rsp));
        assert_eq!((rip, r.cpu().segment(Seg::Cs).selector.0), (0x1234, 0x1800));
        let image = (flags | 3 << 12 | 1 << 9) & 0xffff;
        assert_eq!(frame(&r, 0x3_0000, 2, 3), [0, 0x1000, image], "IOPL {iopl}");
        assert_eq!(sp, (STACK & 0xffff) - 6);
        let c = r.cpu();
        assert!(c.v86());
        assert!(!c.flag(if iopl == 3 { Rflags::IF } else { Rflags::VIF }));
    }
}

#[test]
fn real_mode() {
    let mut r = Rig::new(Mode::Real);
    r.cpu().idtr = x86_arch::DescriptorTable { base: 0, limit: 0x3ff };
    r.write(0x40 * 4, &[0x78, 0x56, 0x00, 0x20]);
    r.set_flags(Rflags::all(), 0x0004_0343);
    let flags = r.flags();
    assert_eq!(r.cpu().inject(event(0x40, EventKind::External, None)), Ok(()));
    assert_eq!(frame(&r, 0x3_0000, 2, 3), [0, 0x1000, flags & 0xffff]);
    let c = r.cpu();
    assert_eq!((c.rip(), c.segment(Seg::Cs).base), (0x5678, 0x2_0000));
    assert!(!c.flag(Rflags::IF) && !c.flag(Rflags::TF) && !c.flag(Rflags::AC) && c.flag(Rflags::CF));
    // No error code is pushed, and a table that is too short is #GP.
    let mut r = Rig::new(Mode::Real);
    r.cpu().idtr = x86_arch::DescriptorTable { base: 0, limit: 13 * 4 + 2 };
    assert_eq!(r.cpu().inject(event(13, EventKind::Exception, None)), gp(0));
    r.cpu().idtr.limit += 1;
    assert_eq!(r.cpu().inject(event(13, EventKind::Exception, None)), Ok(()));
    assert_eq!(r.get(Gpr::Rsp), (STACK & 0xffff) - 6);
    // A stack pointer of zero wraps; an odd stack that crosses the limit does not fit.
    let mut r = Rig::new(Mode::Real);
    r.cpu().idtr = x86_arch::DescriptorTable { base: 0, limit: 0x3ff };
    r.set(Gpr::Rsp, 1);
    assert_eq!(r.cpu().inject(event(13, EventKind::Exception, None)), fails(Vector::Ss, 0));
}

/// #BP and #OF push the address behind their instruction.
#[test]
fn traps_of_an_instruction() {
    for (vector, kind, want) in [
        (3, EventKind::Exception, CODE + 1),
        (4, EventKind::Exception, CODE + 1),
        (1, EventKind::Exception, CODE),
        (6, EventKind::Exception, CODE),
    ] {
        let mut r = Rig::new(Mode::Long);
        set_gate(&mut r, vector, gate(8, HANDLER as u32, 14, 0), 0);
        r.cpu().insn_len = 1;
        assert_eq!(r.cpu().inject(event(vector, kind, None)), Ok(()));
        assert_eq!(frame(&r, 0, 8, 1), [want], "vector {vector}");
        let rf = frame(&r, 0, 8, 3)[2] >> 16 & 1;
        assert_eq!(rf, (vector == 6) as u64, "RF, vector {vector}");
    }
}

/// Chains of faults through the whole loop: double fault, triple fault.
#[test]
fn double_and_triple_faults() {
    // UD2 with no handlers at all: #UD, then #NP of its gate (contributory after benign: serial), then #DF, then shutdown.
    let mut r = Rig::new(Mode::Long);
    assert_eq!(r.run(&[0x0f, 0x0b], 10), Exit::Shutdown);
    // #GP whose gate is missing becomes #DF with a zero error code.
    let mut r = Rig::new(Mode::Long);
    set_gate(&mut r, 8, gate(8, HANDLER as u32, 14, 0), 0);
    r.write(HANDLER, &[0xf4]);
    r.set(Gpr::Rsp, 0x8000_0000_0000_0000);
    // A load from a non-canonical address: #GP; its delivery faults on the stack: #DF does too: shutdown.
    let mov = [0x48, 0x8b, 0x04, 0x24];
    assert_eq!(r.run(&mov, 10), Exit::Shutdown);
    let mut r = Rig::new(Mode::Long);
    set_gate(&mut r, 8, gate(8, HANDLER as u32, 14, 0), 0);
    r.write(HANDLER, &[0xf4]);
    r.set(Gpr::Rax, 1 << 60);
    let _ = r.run(&[0x48, 0x8b, 0x00], 1);
    assert_eq!(r.cpu().rip(), HANDLER + 1, "#DF's handler ran");
    assert_eq!(frame(&r, 0, 8, 2), [0, CODE]);
    // A page fault whose stack is not mapped: #DF on its own stack.
    let mut r = Rig::new(Mode::Long);
    set_gate(&mut r, 14, gate(8, HANDLER as u32, 14, 0), 0);
    set_gate(&mut r, 8, gate(8, HANDLER as u32, 14, 0) | 1 << 32, 0);
    r.write_u64(TSS + 36, INNER);
    r.write(HANDLER, &[0xf4]);
    r.set(Gpr::Rax, DATA);
    r.unmap(DATA);
    r.unmap(STACK - 0x1000);
    let _ = r.run(&[0x48, 0x8b, 0x00], 1);
    assert_eq!(r.cpu().rip(), HANDLER + 1);
    assert_eq!(r.get(Gpr::Rsp), (INNER & !15) - 48);
    assert_eq!(frame(&r, 0, 8, 1), [0]);
}

#[test]
fn escalation() {
    use Vector::*;
    let mut r = Rig::new(Mode::Long);
    let cases: &[(u8, EventKind, Vector, Option<u8>)] = &[
        (13, EventKind::Exception, Np, Some(8)),
        (13, EventKind::Exception, Pf, Some(14)),
        (14, EventKind::Exception, Pf, Some(8)),
        (14, EventKind::Exception, Gp, Some(8)),
        (6, EventKind::Exception, Gp, Some(13)),
        (8, EventKind::Exception, Gp, None),
        (8, EventKind::Exception, Pf, None),
        (0, EventKind::Exception, Ts, Some(8)),
        (13, EventKind::External, Gp, Some(13)),
        (14, EventKind::SoftwareInterrupt, Gp, Some(13)),
        (2, EventKind::Nmi, Pf, Some(14)),
    ];
    for &(first, kind, second, want) in cases {
        let got = r.cpu().escalate(event(first, kind, None), Exception::with_code(second, 4));
        assert_eq!(got.map(|e| e.vector), want, "{first} {kind:?} then {second:?}");
        if want == Some(8) {
            assert_eq!(got.and_then(|e| e.error_code), Some(0));
        }
    }
}

/// Supervisor pushes ignore the user bit's absence, user pushes do not exist here: the new level's rights count.
#[test]
fn the_inner_stack_is_written_at_the_inner_level() {
    let mut r = Rig::new(Mode::Long);
    r.user();
    r.cpu().cr0 |= Cr0::WP;
    set_gate(&mut r, 0x40, gate(8, HANDLER as u32, 14, 0), 0);
    r.write_u64(TSS + 4, INNER);
    // Supervisor-only pages for TSS, tables and stack.
    for page in [TSS, IDT, GDT, INNER] {
        r.protect(page & !0xfff, 3);
    }
    assert_eq!(r.cpu().inject(event(0x40, EventKind::External, None)), Ok(()));
}

/// The second frame in a page takes the short way, and looks like the first.
#[test]
fn frames_are_the_same_with_a_warm_tlb() {
    let mut r = Rig::new(Mode::Long);
    set_gate(&mut r, 0x40, gate(8, HANDLER as u32, 14, 0), 0);
    let e = event(0x40, EventKind::Exception, Some(0x1234));
    let mut frames = Vec::new();
    for _ in 0..3 {
        r.set(Gpr::Rsp, STACK - 0x100);
        r.cpu().set_rip(CODE);
        assert_eq!(r.cpu().inject(e), Ok(()));
        frames.push((r.get(Gpr::Rsp), frame(&r, 0, 8, 6)));
        r.write(STACK - 0x200, &[0xee; 0x100]);
    }
    assert_eq!(frames[0].1[..2], [0x1234, CODE]);
    assert_eq!(frames[0], frames[1]);
    assert_eq!(frames[1], frames[2]);
    let known = r.cpu().mmu.tlb.lookup_write_in(softmmu::View::Supervisor, STACK - 0x130, 48);
    assert!(known.is_some(), "the short way was open");
}
