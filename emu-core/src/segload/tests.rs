//! Descriptor checks against a plain model, and the instructions that load and examine segments.

use crate::event::Shadow;
use crate::exit::Stop;
use crate::rig::{CODE, DATA, GDT, Mode, Rig, STACK, assemble};
use iced_x86::code_asm::{cx, ds, dword_ptr, eax, ecx, es, ptr, rax, ss, word_ptr};
use proptest::prelude::*;
use x86_arch::control::Cr4;
use x86_arch::{DescriptorTable, Exception, Gpr, Rflags, Seg, Selector, Vector};

/// A free place in the GDT.
const SLOT: u16 = 0x50;

fn fails(v: Vector, code: u32) -> Result<(), Stop> {
    Err(Stop::Exception(Exception::with_code(v, code)))
}

/// A flat descriptor: access byte and flags nibble.
fn descriptor(access: u8, flags: u8) -> u64 {
    0x000f_0000_0000_ffff | (access as u64) << 40 | (flags as u64) << 52
}

fn rig_with(mode: Mode, cpl: u8, d: u64) -> Rig {
    let mut r = Rig::new(mode);
    r.write_u64(GDT + SLOT as u64, d);
    r.cpu().gdtr = DescriptorTable { base: GDT, limit: 0x7f };
    r.cpu().set_cpl(cpl);
    r
}

/// The SDM's pseudocode of a load of DS, ES, FS or GS (vol. 2A, MOV), read off line by line.
fn model_data(access: u8, rpl: u8, cpl: u8) -> Result<(), (Vector, u32)> {
    let code = SLOT as u32;
    let (p, dpl, s, typ) = (access >> 7, access >> 5 & 3, access >> 4 & 1, access & 15);
    let data = s == 1 && typ < 8;
    let readable_code = s == 1 && (typ == 10 || typ == 11 || typ == 14 || typ == 15);
    if !data && !readable_code {
        return Err((Vector::Gp, code));
    }
    let nonconforming = typ < 12;
    if nonconforming && (rpl > dpl || cpl > dpl) {
        return Err((Vector::Gp, code));
    }
    if p == 0 { Err((Vector::Np, code)) } else { Ok(()) }
}

/// The same for SS.
fn model_stack(access: u8, rpl: u8, cpl: u8) -> Result<(), (Vector, u32)> {
    let code = SLOT as u32;
    let (p, dpl, s, typ) = (access >> 7, access >> 5 & 3, access >> 4 & 1, access & 15);
    let writable = s == 1 && matches!(typ, 2 | 3 | 6 | 7);
    if rpl != cpl || !writable || dpl != cpl {
        return Err((Vector::Gp, code));
    }
    if p == 0 { Err((Vector::Ss, code)) } else { Ok(()) }
}

fn load(r: &mut Rig, s: Seg, rpl: u8) -> Result<(), Stop> {
    r.set(Gpr::Rcx, (SLOT | rpl as u16) as u64);
    // MOV Sreg, CX: 8E /r.
    r.step(&[0x8e, 0xc1 | (s as u8) << 3])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn data_segments_follow_the_model(access: u8, rpl in 0u8..4, cpl in 0u8..4, long: bool, to_fs: bool) {
        let mode = if long { Mode::Long } else { Mode::Protected };
        let mut r = rig_with(mode, cpl, descriptor(access, 0xc));
        let s = if to_fs { Seg::Fs } else { Seg::Ds };
        let before = r.cpu().seg;
        let got = load(&mut r, s, rpl);
        match model_data(access, rpl, cpl) {
            Ok(()) => {
                prop_assert_eq!(got, Ok(()));
                let v = *r.cpu().segment(s);
                prop_assert_eq!(v.selector, Selector(SLOT | rpl as u16));
                prop_assert_eq!(v.limit, u32::MAX);
                prop_assert_eq!(v.typ, access & 15 | 1);
                prop_assert_eq!((r.read_u64(GDT + SLOT as u64) >> 40) as u8, access | 1);
            }
            Err((v, code)) => {
                prop_assert_eq!(got, fails(v, code));
                prop_assert_eq!(r.cpu().seg, before);
                prop_assert_eq!((r.read_u64(GDT + SLOT as u64) >> 40) as u8, access);
            }
        }
    }

    #[test]
    fn stack_segments_follow_the_model(access: u8, rpl in 0u8..4, cpl in 0u8..4, likely: bool) {
        // Random access bytes are hardly ever a writable segment of the right level.
        let access = if likely { 0x92 | cpl << 5 } else { access };
        let rpl = if likely { cpl } else { rpl };
        let mut r = rig_with(Mode::Protected, cpl, descriptor(access, 0xc));
        let got = load(&mut r, Seg::Ss, rpl);
        match model_stack(access, rpl, cpl) {
            Ok(()) => {
                prop_assert_eq!(got, Ok(()));
                prop_assert_eq!(r.cpu().events.shadow, Shadow::MovSs);
            }
            Err((v, code)) => prop_assert_eq!(got, fails(v, code)),
        }
    }

    /// LAR, LSL, VERR and VERW against the tables of their pages.
    #[test]
    fn examination_follows_the_tables(access: u8, rpl in 0u8..4, cpl in 0u8..4, long: bool) {
        let mode = if long { Mode::Long } else { Mode::Protected };
        let bits = if long { 64 } else { 32 };
        let (dpl, s, typ) = (access >> 5 & 3, access >> 4 & 1, access & 15);
        let conforming = s == 1 && typ >= 12;
        let seen = conforming || (cpl <= dpl && rpl <= dpl);
        let lar_types: &[u8] = if long { &[2, 9, 11, 12] } else { &[1, 2, 3, 4, 5, 9, 11, 12] };
        let lsl_types: &[u8] = if long { &[2, 9, 11] } else { &[1, 2, 3, 9, 11] };
        let rows: [(Vec<u8>, bool); 4] = [
            (assemble(bits, |a| a.lar(eax, ecx)), seen && (s == 1 || lar_types.contains(&typ))),
            (assemble(bits, |a| a.lsl(eax, ecx)), seen && (s == 1 || lsl_types.contains(&typ))),
            (assemble(bits, |a| a.verr(cx)), seen && s == 1 && (typ < 8 || typ & 2 != 0)),
            (assemble(bits, |a| a.verw(cx)), seen && s == 1 && matches!(typ, 2 | 3 | 6 | 7)),
        ];
        for (n, (code, want)) in rows.iter().enumerate() {
            let mut r = rig_with(mode, cpl, descriptor(access, 0x8));
            r.set(Gpr::Rcx, (SLOT | rpl as u16) as u64);
            r.set(Gpr::Rax, 0x1234_5678);
            r.set_flags(Rflags::ZF, if *want { 0 } else { u64::MAX });
            prop_assert_eq!(r.step(code), Ok(()));
            prop_assert_eq!(r.flags() & Rflags::ZF.bits() != 0, *want, "row {}", n);
            let result = match (n, want) {
                (0, true) => 0x008f_0000 | (access as u64) << 8,
                (1, true) => 0xffff_ffff,
                _ => 0x1234_5678,
            };
            prop_assert_eq!(r.get(Gpr::Rax), result, "row {}", n);
        }
    }
}

#[test]
fn null_selectors() {
    for mode in [Mode::Long, Mode::Compat, Mode::Protected] {
        for (s, cpl, rpl, ok) in [
            (Seg::Ds, 0, 3, true),
            (Seg::Gs, 3, 0, true),
            (Seg::Ss, 0, 0, mode == Mode::Long),
            (Seg::Ss, 0, 1, false),
            (Seg::Ss, 3, 3, false),
        ] {
            let mut r = Rig::new(mode);
            r.cpu().set_cpl(cpl);
            r.set(Gpr::Rcx, rpl);
            let got = r.step(&[0x8e, 0xc1 | (s as u8) << 3]);
            assert_eq!(got, if ok { Ok(()) } else { fails(Vector::Gp, 0) }, "{mode:?} {s:?} {cpl} {rpl}");
            if ok {
                assert!(r.cpu().segment(s).unusable);
                assert_eq!(r.cpu().segment(s).base, 0);
            }
        }
    }
    // A null DS cannot be used outside 64-bit mode.
    let mut r = Rig::new(Mode::Protected);
    r.set(Gpr::Rcx, 0);
    assert_eq!(r.step(&[0x8e, 0xd9]), Ok(()));
    assert_eq!(r.step(&assemble(32, |a| a.mov(eax, dword_ptr(DATA)))), fails(Vector::Gp, 0));
}

#[test]
fn cs_cannot_be_moved_to_and_real_mode_shifts() {
    let mut r = Rig::new(Mode::Protected);
    assert_eq!(r.step(&[0x8e, 0xc9]), Err(Stop::Exception(Exception::UD)));
    for mode in [Mode::Real, Mode::Virtual8086] {
        let mut r = Rig::new(mode);
        r.set(Gpr::Rcx, 0x2345);
        assert_eq!(r.step(&[0x8e, 0xc1]), Ok(()));
        let v = *r.cpu().segment(Seg::Es);
        assert_eq!((v.selector.0, v.base, v.limit), (0x2345, 0x2_3450, 0xffff));
    }
    // From Sreg: 16 bits to memory, zero-extended to a register.
    let mut r = Rig::new(Mode::Long);
    r.set(Gpr::Rax, !0);
    assert_eq!(r.step(&assemble(64, |a| a.mov(rax, ds))), Ok(()));
    assert_eq!(r.get(Gpr::Rax), 0x10);
    r.write_u64(DATA, !0);
    assert_eq!(r.step(&assemble(64, |a| a.mov(word_ptr(DATA), ds))), Ok(()));
    assert_eq!(r.read_u64(DATA), 0xffff_ffff_ffff_0010);
}

#[test]
fn pops_and_far_pointers() {
    let mut r = Rig::new(Mode::Protected);
    r.write_u64(STACK, 0x3b);
    assert_eq!(r.step(&assemble(32, |a| a.pop(es))), Ok(()));
    assert_eq!((r.cpu().segment(Seg::Es).selector.0, r.get(Gpr::Rsp)), (0x3b, STACK + 4));
    r.write_u64(STACK + 4, 0x10);
    assert_eq!(r.step(&assemble(32, |a| a.pop(ss))), Ok(()));
    assert_eq!(r.cpu().events.shadow, Shadow::MovSs);
    // A bad selector leaves the stack pointer.
    r.write_u64(STACK + 8, 0x18 | 3);
    r.user();
    assert_eq!(r.step(&assemble(32, |a| a.pop(ss))), fails(Vector::Gp, 0x18));
    assert_eq!(r.get(Gpr::Rsp), STACK + 8);
    let mut r = Rig::new(Mode::Long);
    r.write(DATA, &[1, 2, 3, 4, 5, 6, 7, 8, 0x3b, 0]);
    // LGS r64, m16:64.
    assert_eq!(r.step(&[0x48, 0x0f, 0xb5, 0x04, 0x25, 0, 0, 2, 0]), Ok(()));
    assert_eq!(r.get(Gpr::Rax), 0x0807_0605_0403_0201);
    assert_eq!(r.cpu().segment(Seg::Gs).selector.0, 0x3b);
}

#[test]
fn ltr_and_lldt() {
    for (name, access, high, want) in [
        ("TSS", 0x89u8, 0u64, Ok(())),
        ("busy", 0x8b, 0, fails(Vector::Gp, SLOT as u32)),
        ("16-bit", 0x81, 0, fails(Vector::Gp, SLOT as u32)),
        ("not present", 0x09, 0, fails(Vector::Np, SLOT as u32)),
        ("upper type", 0x89, 1 << 40, fails(Vector::Gp, SLOT as u32)),
        ("non-canonical", 0x89, 0x1_0000, fails(Vector::Gp, SLOT as u32)),
    ] {
        let mut r = rig_with(Mode::Long, 0, descriptor(access, 0));
        r.write_u64(GDT + SLOT as u64 + 8, high);
        r.set(Gpr::Rcx, SLOT as u64);
        assert_eq!(r.step(&assemble(64, |a| a.ltr(cx))), want, "{name}");
        let byte = (r.read_u64(GDT + SLOT as u64) >> 40) as u8;
        assert_eq!(byte, if want.is_ok() { 0x8b } else { access }, "{name}");
    }
    let mut r = rig_with(Mode::Long, 0, descriptor(0x89, 0));
    assert_eq!(r.step(&assemble(64, |a| a.ltr(cx))), fails(Vector::Gp, 0));
    r.set(Gpr::Rcx, SLOT as u64 | 4);
    assert_eq!(r.step(&assemble(64, |a| a.ltr(cx))), fails(Vector::Gp, SLOT as u32 | 4));
    // 16 bytes must be within the limit in IA-32e mode.
    r.cpu().gdtr.limit = SLOT + 14;
    r.set(Gpr::Rcx, SLOT as u64);
    assert_eq!(r.step(&assemble(64, |a| a.ltr(cx))), fails(Vector::Gp, SLOT as u32));
    // The base has 64 bits.
    let mut r = rig_with(Mode::Long, 0, descriptor(0x82, 0));
    r.write_u64(GDT + SLOT as u64 + 8, 0xffff_8000);
    r.set(Gpr::Rcx, SLOT as u64);
    assert_eq!(r.step(&assemble(64, |a| a.lldt(cx))), Ok(()));
    assert_eq!(r.cpu().segment(Seg::Ldtr).base, 0xffff_8000_0000_0000);
    r.set(Gpr::Rcx, 1);
    assert_eq!(r.step(&assemble(64, |a| a.lldt(cx))), Ok(()));
    assert!(r.cpu().segment(Seg::Ldtr).unusable);
    r.user();
    assert_eq!(r.step(&assemble(64, |a| a.lldt(cx))), fails(Vector::Gp, 0));
}

#[test]
fn table_registers() {
    let mut r = Rig::new(Mode::Long);
    r.write(DATA, &[0x34, 0x12, 1, 2, 3, 4, 5, 0, 0, 0]);
    assert_eq!(r.step(&assemble(64, |a| a.lidt(ptr(DATA)))), Ok(()));
    assert_eq!(r.cpu().idtr, DescriptorTable { base: 0x05_0403_0201, limit: 0x1234 });
    r.write_u64(DATA + 0x100, !0);
    r.write_u64(DATA + 0x108, !0);
    assert_eq!(r.step(&assemble(64, |a| a.sidt(ptr(DATA + 0x100)))), Ok(()));
    assert_eq!(r.read_u64(DATA + 0x100), 0x0005_0403_0201_1234);
    assert_eq!(r.read_u64(DATA + 0x108), 0xffff_ffff_ffff_0000);
    r.write(DATA + 2, &[0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(r.step(&assemble(64, |a| a.lgdt(ptr(DATA)))), fails(Vector::Gp, 0));
    // 16-bit operand size: 24 bits of base.
    let mut r = Rig::new(Mode::Protected);
    r.write(DATA, &[0xff, 0, 1, 2, 3, 4]);
    assert_eq!(r.step(&[0x66, 0x0f, 0x01, 0x15, 0, 0, 2, 0]), Ok(()));
    assert_eq!(r.cpu().gdtr, DescriptorTable { base: 0x03_0201, limit: 0xff });
    // UMIP and privilege.
    for code in [
        assemble(64, |a| a.sgdt(ptr(DATA))),
        assemble(64, |a| a.sidt(ptr(DATA))),
        assemble(64, |a| a.sldt(eax)),
        assemble(64, |a| a.str(eax)),
        assemble(64, |a| a.smsw(eax)),
    ] {
        for (umip, user, ok) in [(true, true, false), (true, false, true), (false, true, true)] {
            let mut r = Rig::new(Mode::Long);
            if umip {
                r.cpu().cr4 |= Cr4::UMIP;
            }
            if user {
                r.user();
            }
            assert_eq!(r.step(&code), if ok { Ok(()) } else { fails(Vector::Gp, 0) }, "{code:x?}");
        }
    }
    let mut r = Rig::new(Mode::Long);
    r.user();
    assert_eq!(r.step(&assemble(64, |a| a.lgdt(ptr(DATA)))), fails(Vector::Gp, 0));
}

#[test]
fn arpl_raises_the_rpl() {
    for (dst, src, want, zf) in
        [(0x10u64, 3u64, 0x13u64, true), (0x13, 1, 0x13, false), (0x11, 1, 0x11, false)]
    {
        let mut r = Rig::new(Mode::Protected);
        r.set(Gpr::Rax, dst);
        r.set(Gpr::Rcx, src);
        assert_eq!(r.step(&[0x63, 0xc8]), Ok(()));
        assert_eq!((r.get(Gpr::Rax), r.flags() & Rflags::ZF.bits() != 0), (want, zf));
    }
    let mut r = Rig::new(Mode::Real);
    assert_eq!(r.step(&[0x63, 0xc8]), Err(Stop::Exception(Exception::UD)));
    assert_eq!(r.cpu().rip(), 0);
    assert_eq!(r.cpu().segment(Seg::Cs).base, CODE);
}
