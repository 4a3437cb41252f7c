//! The x87 instruction and data pointers and the opcode: who changes them, who stores them, in which form.
//!
//! Where the host decides, the tests ask `host_rules` or the host's processor.

use super::software_tests::{Pair, code};
use crate::host_rules::host_rules;
use crate::rig::{DATA, Mode, Rig, assemble};
use iced_x86::code_asm::*;
use x86_arch::{Gpr, Seg, Selector, xsave};

const FLD1: &[u8] = &[0xd9, 0xe8];
/// fld qword [rbx]
const FLD: &[u8] = &[0xdd, 0x03];
const FNSTENV: &[u8] = &[0xd9, 0x33];
const FNSTENV14: &[u8] = &[0x66, 0xd9, 0x33];

/// FIP, FOP, FDP, FCS, FDS.
fn pointers(rig: &mut Rig) -> (u64, u16, u64, u16, u16) {
    let x = &rig.cpu().xsave;
    (x.fip(), x.fop(), x.fdp(), x.fcs, x.fds)
}

fn set_pointers(rig: &mut Rig, fip: u64, fop: u16, fdp: u64) {
    let x = &mut rig.cpu().xsave;
    x.set_fip(fip);
    x.set_fop(fop);
    x.set_fdp(fdp);
    (x.fcs, x.fds) = if host_rules().no_x87_selectors { (0, 0) } else { (0x1234, 0x5678) };
}

fn selector(v: u16) -> u16 {
    if host_rules().no_x87_selectors { 0 } else { v }
}

#[test]
fn each_instruction_that_is_not_a_control_instruction_sets_them() {
    let mut rig = Rig::new(Mode::Long);
    rig.set(Gpr::Rbx, DATA);
    rig.cpu().seg[Seg::Ds as usize].selector = Selector(0x2b);
    let old = (0x1111, 0x222, 0x3333, selector(0x1234), selector(0x5678));
    let (code_sel, data_sel) = (selector(8), selector(0x2b));
    // Bytes, and whether the instruction, its opcode and its operand are noted.
    type Row = (&'static [u8], Option<(u16, bool)>);
    let rows: &[Row] = &[
        (FLD1, Some((0x1e8, false))),
        (&[0xd9, 0xd0], Some((0x1d0, false))),
        (&[0xd9, 0xf7], Some((0x1f7, false))),
        (&[0xdd, 0xc0], Some((0x5c0, false))),
        (FLD, Some((0x503, true))),
        (&[0x67, 0xdd, 0x1b], Some((0x51b, true))),
        (&[0x9b], None),
        (&[0xdb, 0xe0], None),
        (&[0xdb, 0xe2], None),
        (&[0xd9, 0x2b], None),
        (&[0xd9, 0x3b], None),
        (&[0xdd, 0x3b], None),
        (&[0xdf, 0xe0], None),
        (FNSTENV, None),
        (&[0x0f, 0x77], None),
        (&[0x0f, 0x6f, 0x03], None),
    ];
    for (bytes, want) in rows {
        rig.step(&[0xdb, 0xe3]).unwrap();
        rig.step(FLD1).unwrap();
        rig.write(DATA, &0x37fu64.to_le_bytes());
        set_pointers(&mut rig, old.0, old.1, old.2);
        let rip = rig.cpu().rip();
        rig.step(bytes).unwrap();
        let want = match want {
            None => old,
            Some((fop, false)) => (rip, *fop, old.2, code_sel, old.4),
            Some((fop, true)) if host_rules().data_pointer_on_exception_only => {
                (rip, *fop, old.2, code_sel, old.4)
            }
            Some((fop, true)) => (rip, *fop, DATA, code_sel, data_sel),
        };
        assert_eq!(pointers(&mut rig), want, "{bytes:02x?}");
    }
    rig.step(&[0xdb, 0xe3]).unwrap();
    assert_eq!(pointers(&mut rig), (0, 0, 0, 0, 0), "fninit");
}

#[test]
fn an_exception_sets_the_data_pointer_on_each_host() {
    let mut rig = Rig::new(Mode::Long);
    rig.set(Gpr::Rbx, DATA);
    // fld1; fdiv qword [rbx] by zero, which is not masked.
    rig.write_u64(DATA, 0);
    rig.step(FLD1).unwrap();
    rig.cpu().xsave.set_fcw(0x37b);
    let rip = rig.cpu().rip();
    rig.step(&[0x65, 0xdc, 0x33]).unwrap();
    // FIP is the first prefix's address, FDP the effective address without the segment's base.
    assert_eq!(pointers(&mut rig), (rip, 0x433, DATA, selector(8), selector(0x10)));
    // A store area holds them now, whatever the vendor.
    rig.step(&[0x0f, 0xae, 0x03]).unwrap();
    let mut b = [0; 24];
    rig.read(DATA, &mut b);
    assert_eq!(u16::from_le_bytes([b[6], b[7]]), 0x433);
    assert_eq!(u32::from_le_bytes([b[8], b[9], b[10], b[11]]), rip as u32);
    assert_eq!(u16::from_le_bytes([b[12], b[13]]), selector(8));
    assert_eq!(u16::from_le_bytes([b[20], b[21]]), selector(0x10));
    // Without an exception AMD's processors store zeros there; FNSTENV stores them always.
    rig.step(&[0xdb, 0xe2]).unwrap();
    rig.step(&[0x0f, 0xae, 0x03]).unwrap();
    rig.read(DATA, &mut b);
    assert_eq!(b[6..].iter().all(|b| *b == 0), host_rules().saves_pointers_with_error_only);
    rig.step(FNSTENV).unwrap();
    assert_eq!(rig.read_u64(DATA + 12) as u32, rip as u32);
}

#[test]
fn environments_by_mode() {
    for (mode, bits) in [(Mode::Protected, 32), (Mode::Protected16, 16), (Mode::Real, 16)] {
        let mut rig = Rig::new(mode);
        let base = if mode == Mode::Protected { DATA } else { 0x40 };
        rig.set(Gpr::Rbx, base);
        let linear = rig.cpu().segment(Seg::Ds).base + base;
        rig.step(FLD1).unwrap();
        set_pointers(&mut rig, 0x8765, 0x234, 0x4321);
        let wide = assemble(bits, |a| if bits == 16 { a.fnstenv(ptr(bx)) } else { a.fnstenv(ptr(ebx)) });
        // The prefix chooses the other format of the two.
        let other: Vec<u8> = [&[0x66], &wide[..]].concat();
        let mut b = [0; 28];
        rig.step(if bits == 32 { &wide } else { &other }).unwrap();
        rig.read(linear, &mut b);
        let words: Vec<u32> =
            b[12..].chunks(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
        let (code_sel, data_sel) = (selector(0x1234) as u32, selector(0x5678) as u32);
        let want32 = if mode == Mode::Real {
            let (ip, dp) = (0x8765 + 16 * code_sel, 0x4321 + 16 * data_sel);
            [0xffff_0000 | ip & 0xffff, ip >> 16 << 12 | 0x234, 0xffff_0000 | dp & 0xffff, dp >> 16 << 12]
        } else {
            [0x8765, 0x234 << 16 | code_sel, 0x4321, 0xffff_0000 | data_sel]
        };
        assert_eq!(words, want32, "{mode:?}");
        rig.step(if bits == 32 { &other } else { &wide }).unwrap();
        rig.read(linear, &mut b);
        let words: Vec<u16> = b[6..14].chunks(2).map(|w| u16::from_le_bytes([w[0], w[1]])).collect();
        let want16 = if mode == Mode::Real {
            let (ip, dp) = (0x8765 + 16 * code_sel, 0x4321 + 16 * data_sel);
            [ip as u16, (ip >> 16 << 12) as u16 | 0x234, dp as u16, (dp >> 16 << 12) as u16]
        } else {
            [0x8765, code_sel as u16, 0x4321, data_sel as u16]
        };
        assert_eq!(words, want16, "{mode:?}");
        // And back: protected mode's short form has no opcode.
        let load: Vec<u8> =
            if bits == 32 { vec![0x66, 0xd9, 0x23] } else { assemble(16, |a| a.fldenv(ptr(bx))) };
        rig.step(&load).unwrap();
        let fop = if mode == Mode::Real { 0x234 } else { 0 };
        assert_eq!(rig.cpu().xsave.fop(), fop, "{mode:?}");
        let fip = if mode == Mode::Real { (0x8765 + 16 * code_sel) & 0xf_ffff } else { 0x8765 };
        assert_eq!(rig.cpu().xsave.fip(), fip as u64, "{mode:?}");
    }
}

/// With an exception pending, so that the host's kernel cannot lose the pointers when it switches away.
#[test]
fn stored_pointers_are_the_hosts() {
    let mut p = Pair::new(Mode::Long, 17);
    let xsave = [code(|a| a.xsave64(ptr(rbx))), code(|a| a.xsave(ptr(rbx)))];
    let rows: &[(&str, &[u8], usize)] = &[
        ("fnstenv", FNSTENV, 28),
        ("fnstenv14", FNSTENV14, 14),
        ("fnsave", &[0xdd, 0x33], 108),
        ("fnsave14", &[0x66, 0xdd, 0x33], 94),
        ("fxsave", &[0x0f, 0xae, 0x03], 416),
        ("fxsave64", &[0x48, 0x0f, 0xae, 0x03], 416),
        ("xsave64", &xsave[0], 416),
        ("xsave", &xsave[1], 416),
    ];
    for (name, bytes, len) in rows {
        for _ in 0..30 {
            p.m.0.fill(0);
            p.randomize();
            let rules = host_rules();
            let (fip, fdp) = (rules.x87_pointer(p.r.next()), rules.x87_pointer(p.r.next()));
            let fop = p.r.next() as u16 & 0x7ff;
            let v = &mut p.rig.cpu().xsave;
            // IE, and not masked.
            v.set_fcw(0x37e);
            v.set_fsw(v.fsw() & 0x3800 | 0x8081);
            v.set_fip(fip);
            v.set_fdp(fdp);
            v.set_fop(fop);
            p.s.xsave[..xsave::MXCSR].copy_from_slice(&v.bytes[..xsave::MXCSR]);
            p.both(bytes);
            assert_eq!(p.area()[..*len], p.m.0[..*len], "{name}");
            p.same_state(name);
            // The oracle's own XSAVE shows them only as its host does: FNSTENV and FNSAVE leave nothing pending.
            let v = &p.rig.cpu().xsave;
            if v.fsw() & 0x80 != 0 || !rules.saves_pointers_with_error_only {
                assert_eq!(v.bytes[6..24], p.s.xsave[6..24], "{name}: afterwards");
            }
        }
    }
}

#[test]
fn loaded_pointers_are_the_hosts() {
    let mut p = Pair::new(Mode::Long, 18);
    let rows: &[(&str, &[u8])] = &[
        ("fxrstor", &[0x0f, 0xae, 0x0b]),
        ("fxrstor64", &[0x48, 0x0f, 0xae, 0x0b]),
        ("fldenv", &[0xd9, 0x23]),
        ("fldenv14", &[0x66, 0xd9, 0x23]),
        ("frstor", &[0xdd, 0x23]),
    ];
    for (name, bytes) in rows {
        for _ in 0..30 {
            let mut m = [0; 4096];
            for b in &mut m[..32] {
                *b = p.r.next() as u8;
            }
            // Something that is not masked becomes pending: FCW is the first word in each format, FSW the second.
            m[..2].copy_from_slice(&0x37eu16.to_le_bytes());
            let at = if bytes[0] == 0xd9 || bytes[0] == 0xdd { 4 } else { 2 };
            m[at..at + 2].copy_from_slice(&0x0001u16.to_le_bytes());
            if !name.starts_with("fx") {
                m[32..].fill(0);
            }
            m[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
            p.m.0 = m;
            p.randomize();
            p.both(bytes);
            assert_eq!(p.rig.cpu().xsave.bytes[6..24], p.s.xsave[6..24], "{name}");
        }
    }
}
