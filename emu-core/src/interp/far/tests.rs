//! Far JMP, CALL and RET: targets, gates, stacks, and every refusal.

use crate::exit::Stop;
use crate::rig::{CODE, DATA, GDT, Mode, Rig, STACK, TSS};
use x86_arch::{DescriptorTable, Exception, Gpr, Seg, Vector};

const SLOT: u16 = 0x50;
const TARGET: u32 = 0x1_8000;
const INNER: u64 = 0x3_9ff0;

fn fails(v: Vector, code: u32) -> Result<(), Stop> {
    Err(Stop::Exception(Exception::with_code(v, code)))
}

fn flat(access: u8, flags: u8) -> u64 {
    0x000f_0000_0000_ffff | (access as u64) << 40 | (flags as u64) << 52
}

fn call_gate(selector: u16, offset: u32, typ: u8, dpl: u8, count: u8) -> u64 {
    (offset as u64 & 0xffff)
        | (selector as u64) << 16
        | (count as u64) << 32
        | (0x80 | (dpl as u64) << 5 | typ as u64) << 40
        | (offset as u64 >> 16) << 48
}

fn rig(mode: Mode, user: bool, d: u64) -> Rig {
    let mut r = Rig::new(mode);
    r.write_u64(GDT + SLOT as u64, d);
    r.cpu().gdtr = DescriptorTable { base: GDT, limit: 0x7f };
    if user {
        r.user();
    }
    r
}

/// JMP (EA) or CALL (9A) ptr16:32.
fn direct(call: bool, selector: u16, offset: u32) -> Vec<u8> {
    let mut b = vec![if call { 0x9a } else { 0xea }];
    b.extend(offset.to_le_bytes());
    b.extend(selector.to_le_bytes());
    b
}

/// JMP or CALL m16:32 (or m16:64 with a REX prefix) at DATA, in 64-bit mode.
fn indirect(call: bool, wide: bool) -> Vec<u8> {
    let mut b = if wide { vec![0x48] } else { vec![] };
    b.extend([0xff, if call { 0x1c } else { 0x2c }, 0x25, 0, 0, 2, 0]);
    b
}

fn u32_at(r: &Rig, at: u64) -> u32 {
    let mut b = [0; 4];
    r.read(at, &mut b);
    u32::from_le_bytes(b)
}

#[test]
fn code_segments() {
    // Access byte, CPL, RPL, expected.
    let code = SLOT as u32;
    for (name, access, user, rpl, want) in [
        ("same level", 0x9au8, false, 0u16, Ok(())),
        ("same level, user", 0xfa, true, 3, Ok(())),
        ("RPL above CPL", 0x9a, false, 3, fails(Vector::Gp, code)),
        ("DPL below CPL", 0x9a, true, 0, fails(Vector::Gp, code)),
        ("DPL above CPL", 0xfa, false, 0, fails(Vector::Gp, code)),
        ("conforming", 0x9e, true, 3, Ok(())),
        ("conforming above", 0xfe, false, 0, fails(Vector::Gp, code)),
        ("data", 0x92, false, 0, fails(Vector::Gp, code)),
        ("not present", 0x1a, false, 0, fails(Vector::Np, code)),
        ("LDT descriptor", 0x82, false, 0, fails(Vector::Gp, code)),
        ("interrupt gate", 0x8e, false, 0, fails(Vector::Gp, code)),
    ] {
        for call in [false, true] {
            let mut r = rig(Mode::Protected, user, flat(access, 0xc));
            let before = r.registers();
            let cpl = r.cpu().cpl;
            let got = r.step(&direct(call, SLOT | rpl, TARGET));
            assert_eq!(got, want, "{name}, call {call}");
            if want.is_err() {
                assert_eq!(r.registers(), before, "{name}");
                continue;
            }
            let c = r.cpu();
            assert_eq!((c.rip(), c.cpl), (TARGET as u64, cpl));
            assert_eq!(c.segment(Seg::Cs).selector.0, SLOT | cpl as u16);
            assert_eq!(r.read_u64(GDT + SLOT as u64) >> 40 & 1, 1, "accessed");
            if call {
                let sp = r.get(Gpr::Rsp);
                assert_eq!(sp, STACK - 8);
                assert_eq!(u32_at(&r, sp), CODE as u32 + 7);
                assert_eq!(u32_at(&r, sp + 4), before_cs(user));
            }
        }
    }
    // Null, beyond the table, beyond the limit.
    let mut r = rig(Mode::Protected, false, flat(0x9a, 4));
    assert_eq!(r.step(&direct(false, 3, 0)), fails(Vector::Gp, 0));
    assert_eq!(r.step(&direct(false, 0x80, 0)), fails(Vector::Gp, 0x80));
    assert_eq!(r.step(&direct(true, SLOT, 0x10_0000)), fails(Vector::Gp, 0));
    assert_eq!(r.get(Gpr::Rsp), STACK);
}

fn before_cs(user: bool) -> u32 {
    if user { 0x1b } else { 0x18 }
}

#[test]
fn between_64_bit_and_compatibility_mode() {
    let mut r = rig(Mode::Long, false, flat(0x9a, 0xa));
    r.write(DATA, &[&TARGET.to_le_bytes()[..], &0x18u16.to_le_bytes()].concat());
    assert_eq!(r.step(&indirect(false, false)), Ok(()));
    assert_eq!((r.cpu().mode, r.cpu().rip()), (decoder::CpuMode::Bits32, TARGET as u64));
    assert_eq!(r.step(&direct(true, 8, CODE as u32)), Ok(()));
    assert!(r.cpu().long64());
    assert_eq!(u32_at(&r, STACK - 8), TARGET + 7);
    // L and D together.
    let mut r = rig(Mode::Long, false, flat(0x9a, 0xe));
    r.write(DATA, &[&TARGET.to_le_bytes()[..], &SLOT.to_le_bytes()].concat());
    assert_eq!(r.step(&indirect(false, false)), fails(Vector::Gp, SLOT as u32));
    // A non-canonical target.
    let mut r = rig(Mode::Long, false, flat(0x9a, 0xa));
    r.write_u64(DATA, 1 << 50);
    r.write(DATA + 8, &SLOT.to_le_bytes());
    assert_eq!(r.step(&indirect(true, true)), fails(Vector::Gp, 0));
    r.write_u64(DATA, 0x1_9000);
    assert_eq!(r.step(&indirect(true, true)), Ok(()));
    assert_eq!((r.read_u64(STACK - 16), r.read_u64(STACK - 8)), (CODE + 8, 8));
}

#[test]
fn call_gates_32() {
    for (typ, width, count) in [(12u8, 4u64, 0u8), (12, 4, 3), (4, 2, 2)] {
        let mut r = rig(Mode::Protected, true, call_gate(0x18, TARGET, typ, 3, count));
        let b = [(INNER as u32).to_le_bytes(), 0x10u32.to_le_bytes()].concat();
        r.write(TSS + 4, &b);
        r.cpu().seg[Seg::Cs as usize].selector.0 = 0x43;
        r.cpu().seg[Seg::Ss as usize].selector.0 = 0x3b;
        for n in 0..8u64 {
            r.write(STACK + n * width, &(0x40 + n as u16).to_le_bytes());
        }
        assert_eq!(r.step(&direct(true, SLOT | 3, 0xdead)), Ok(()));
        let mask = if width == 2 { 0xffff } else { u64::MAX };
        let mut want = vec![(CODE + 7) & mask, 0x43];
        want.extend((0..count as u64).map(|n| 0x40 + n));
        want.extend([STACK & mask, 0x3b]);
        let sp = r.get(Gpr::Rsp);
        assert_eq!(sp, INNER - width * want.len() as u64);
        for (n, w) in (0u64..).zip(want) {
            let mut b = [0; 8];
            r.read(sp + n * width, &mut b[..width as usize]);
            assert_eq!(u64::from_le_bytes(b), w, "word {n} of gate type {typ}");
        }
        let c = r.cpu();
        assert_eq!((c.cpl, c.rip()), (0, TARGET as u64 & mask));
        assert_eq!((c.segment(Seg::Cs).selector.0, c.segment(Seg::Ss).selector.0), (0x18, 0x10));
        if width == 4 {
            // And back, dropping the parameters on both stacks.
            let mut ret = vec![0xca];
            ret.extend((count as u16 * 4).to_le_bytes());
            assert_eq!(r.step(&ret), Ok(()));
            let c = r.cpu();
            assert_eq!((c.cpl, c.rip(), c.segment(Seg::Ss).selector.0), (3, CODE + 7, 0x3b));
            assert_eq!(r.get(Gpr::Rsp), STACK + 4 * count as u64);
        }
    }
}

#[test]
fn call_gate_refusals() {
    let code = SLOT as u32;
    for (name, gate, call, want) in [
        ("gate DPL", call_gate(0x18, 0, 12, 0, 0), true, fails(Vector::Gp, code)),
        ("not present", call_gate(0x18, 0, 12, 3, 0) & !(1 << 47), true, fails(Vector::Np, code)),
        ("null code", call_gate(0, 0, 12, 3, 0), true, fails(Vector::Gp, 0)),
        ("data", call_gate(0x10, 0, 12, 3, 0), true, fails(Vector::Gp, 0x10)),
        ("JMP to an inner level", call_gate(0x18, 0, 12, 3, 0), false, fails(Vector::Gp, 0x18)),
        ("null stack", call_gate(0x18, 0, 12, 3, 0), true, fails(Vector::Ts, 0)),
    ] {
        let mut r = rig(Mode::Protected, true, gate);
        let before = r.registers();
        assert_eq!(r.step(&direct(call, SLOT | 3, 0)), want, "{name}");
        assert_eq!(r.registers(), before);
    }
}

#[test]
fn call_gates_64() {
    let setup = |user: bool, high: u64| {
        let mut r = rig(Mode::Long, user, call_gate(8, TARGET, 12, 3, 0));
        r.write_u64(GDT + SLOT as u64 + 8, high);
        r.write_u64(TSS + 4, INNER);
        r.write(DATA, &[&[0; 4][..], &(SLOT | (3 * user as u16)).to_le_bytes()].concat());
        r
    };
    let mut r = setup(true, 0);
    assert_eq!(r.step(&indirect(true, false)), Ok(()));
    let sp = r.get(Gpr::Rsp);
    assert_eq!(sp, INNER - 32);
    let want = [CODE + 7, 0xb, STACK, 0x13];
    for (n, w) in (0u64..).zip(want) {
        assert_eq!(r.read_u64(sp + 8 * n), w, "word {n}");
    }
    assert!(r.cpu().segment(Seg::Ss).unusable && r.cpu().cpl == 0);
    let mut r = setup(false, 0);
    assert_eq!(r.step(&indirect(true, false)), Ok(()));
    assert_eq!(r.get(Gpr::Rsp), STACK - 16);
    assert_eq!(setup(true, 0x8000).step(&indirect(true, false)), fails(Vector::Gp, 0));
    assert_eq!(setup(true, 1 << 40).step(&indirect(true, false)), fails(Vector::Gp, SLOT as u32));
    // A 32-bit TSS or a task gate is nothing in IA-32e mode.
    for typ in [4, 5, 9] {
        let mut r = setup(false, 0);
        r.write_u64(GDT + SLOT as u64, call_gate(8, 0, typ, 3, 0));
        assert_eq!(r.step(&indirect(true, false)), fails(Vector::Gp, SLOT as u32), "type {typ}");
    }
}

#[test]
fn returns() {
    let push = |r: &mut Rig, words: &[u32]| {
        for (n, w) in (0u64..).zip(words) {
            r.write(STACK + 4 * n, &w.to_le_bytes());
        }
    };
    for (name, cs, user, want) in [
        ("null", 0u32, false, fails(Vector::Gp, 0)),
        ("inward", 0x18, true, fails(Vector::Gp, 0x18)),
        ("data", 0x10, false, fails(Vector::Gp, 0x10)),
        ("DPL above RPL", 0x40, false, fails(Vector::Gp, 0x40)),
        ("beyond", 0x80, false, fails(Vector::Gp, 0x80)),
        ("same", 0x18, false, Ok(())),
    ] {
        let mut r = rig(Mode::Protected, user, 0);
        push(&mut r, &[TARGET, cs]);
        assert_eq!(r.step(&[0xcb]), want, "{name}");
    }
    // Outward: SS is checked, inner data segments become null.
    for (name, ss, want) in [
        ("null SS", 0u32, fails(Vector::Gp, 0)),
        ("SS's RPL", 0x38, fails(Vector::Gp, 0x38)),
        ("SS is ring 0's", 0x13, fails(Vector::Gp, 0x10)),
        ("good", 0x3b, Ok(())),
    ] {
        let mut r = rig(Mode::Protected, false, 0);
        push(&mut r, &[TARGET, 0x43, 0, 0, 0x3_7000, ss]);
        r.cpu().seg[Seg::Gs as usize].dpl = 3;
        assert_eq!(r.step(&[0xca, 8, 0]), want, "{name}");
        if want.is_ok() {
            let c = r.cpu();
            assert_eq!((c.cpl, c.rip(), c.hot.regs[4]), (3, TARGET as u64, 0x3_7008));
            assert!(c.segment(Seg::Ds).unusable && !c.segment(Seg::Gs).unusable);
        }
    }
}

#[test]
fn real_mode() {
    for mode in [Mode::Real, Mode::Virtual8086] {
        let mut r = Rig::new(mode);
        // CALL 2000H:1234H.
        assert_eq!(r.step(&[0x9a, 0x34, 0x12, 0x00, 0x20]), Ok(()));
        let sp = 0x3_0000 + r.get(Gpr::Rsp);
        assert_eq!(u32_at(&r, sp), 0x1000 << 16 | 5);
        assert_eq!((r.cpu().rip(), r.cpu().segment(Seg::Cs).base), (0x1234, 0x2_0000));
        assert_eq!(r.step(&[0xcb]), Ok(()));
        assert_eq!((r.cpu().rip(), r.cpu().segment(Seg::Cs).base), (5, 0x1_0000));
        // A 32-bit offset beyond the limit.
        let far = [0x66, 0xea, 0, 0, 1, 0, 0, 0x20];
        assert_eq!(r.step(&far), fails(Vector::Gp, 0));
    }
}
