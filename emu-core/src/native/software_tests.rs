//! What is done in software (state areas, x87 environment, masked moves, gathers), against the host's own execution
//! of the same bytes; and the faults of each.

use super::oracle::{self, State};
use super::tests::Random;
use crate::exit::Stop;
use crate::rig::{DATA, Mode, Rig, assemble};
use crate::xstate;
use iced_x86::code_asm::*;
use x86_arch::{Exception, Gpr, Vector, xsave};

const GP: Stop = Stop::Exception(Exception::GP0);

/// A state area of the test, where the oracle's copy lies.
#[repr(C, align(64))]
pub(super) struct Area(pub(super) [u8; 4096]);

pub(super) struct Pair {
    pub(super) rig: Rig,
    pub(super) s: Box<State>,
    pub(super) m: Box<Area>,
    pub(super) r: Random,
}

impl Pair {
    pub(super) fn new(mode: Mode, seed: u64) -> Pair {
        Pair { rig: Rig::new(mode), s: State::new(), m: Box::new(Area([0; 4096])), r: Random(seed) }
    }

    /// Random registers of all components, on both sides; RBX points to the area.
    pub(super) fn randomize(&mut self) {
        let (s, r) = (&mut self.s, &mut self.r);
        s.xsave.fill(0);
        let l = xstate::layout();
        let xcr0 = crate::host_cpu::xcr0() & 0xe7;
        let mut parts = vec![(xsave::XMM0, 256)];
        for n in [2, 5, 6, 7] {
            if xcr0 >> n & 1 != 0 {
                parts.extend(l.component(n).map(|c| (c.offset, c.size)));
            }
        }
        for (at, len) in parts {
            for b in &mut s.xsave[at..at + len] {
                *b = r.next() as u8;
            }
        }
        let fsw = (r.below(8) as u16) << 11 | (r.next() as u16 & 0x473f);
        s.xsave[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        s.xsave[2..4].copy_from_slice(&fsw.to_le_bytes());
        s.xsave[4] = r.next() as u8;
        for n in 0..8 {
            let at = xsave::ST0 + 16 * n;
            let exp = [0u16, 0x7fff, 0x3fff, r.next() as u16][r.below(4) as usize];
            let sig = [0, 1 << 63, r.next(), r.next() | 1 << 63][r.below(4) as usize];
            s.xsave[at..at + 8].copy_from_slice(&sig.to_le_bytes());
            s.xsave[at + 8..at + 10].copy_from_slice(&exp.to_le_bytes());
        }
        let mxcsr = 0x1f80 | r.next() as u32 & 0xffff & crate::host_cpu::mxcsr_mask() & !0x1f80;
        s.xsave[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        s.xsave[28..32].copy_from_slice(&crate::host_cpu::mxcsr_mask().to_le_bytes());
        s.xsave[xsave::XSTATE_BV] = xcr0 as u8;
        for g in s.gpr.iter_mut() {
            *g = r.next();
        }
        s.gpr[Gpr::Rax as usize] = u64::MAX;
        s.gpr[Gpr::Rdx as usize] = u64::MAX;
        let v = self.rig.cpu();
        v.xsave.bytes.copy_from_slice(&s.xsave);
        v.hot.regs[..16].copy_from_slice(&s.gpr);
        self.point();
    }

    /// Gives some components their initial values, on both sides.
    fn clear(&mut self, which: u64) {
        let l = xstate::layout();
        let area = &mut self.s.xsave;
        if which & 1 != 0 {
            area[..xsave::MXCSR].fill(0);
            area[..2].copy_from_slice(&0x37fu16.to_le_bytes());
            area[xsave::ST0..xsave::XMM0].fill(0);
        }
        if which & 2 != 0 {
            area[xsave::XMM0..xsave::XMM0 + 256].fill(0);
        }
        for n in [2, 5, 6, 7] {
            if let Some(c) = l.component(n).filter(|_| which >> n & 1 != 0) {
                area[c.offset..c.offset + c.size].fill(0);
            }
        }
        self.rig.cpu().xsave.bytes.copy_from_slice(&self.s.xsave);
    }

    fn point(&mut self) {
        self.rig.set(Gpr::Rbx, DATA);
        self.s.gpr[Gpr::Rbx as usize] = self.m.0.as_ptr() as u64;
        let m = self.m.0;
        self.rig.write(DATA, &m);
    }

    pub(super) fn both(&mut self, bytes: &[u8]) {
        self.rig.step(bytes).unwrap_or_else(|e| panic!("{bytes:02x?}: {e:?}"));
        oracle::execute(bytes, &mut self.s);
    }

    pub(super) fn area(&self) -> [u8; 4096] {
        let mut b = [0; 4096];
        self.rig.read(DATA, &mut b);
        b
    }

    /// All of the state but the x87 pointers, which AMD's processors forget.
    pub(super) fn same_state(&mut self, what: &str) {
        let v = &self.rig.cpu().xsave.bytes;
        let s = &self.s.xsave;
        assert_eq!(v[..5], s[..5], "{what}: FCW, FSW, FTW");
        for n in 0..8 {
            let at = xsave::ST0 + 16 * n;
            assert_eq!(v[at..at + 10], s[at..at + 10], "{what}: ST{n}");
        }
        assert_eq!(v[24..28], s[24..28], "{what}: MXCSR");
        assert_eq!(v[xsave::XMM0..416], s[xsave::XMM0..416], "{what}: XMM");
        let bv = s[xsave::XSTATE_BV] as u64;
        for n in [2, 5, 6, 7] {
            let Some(c) = xstate::layout().component(n) else { continue };
            // What the oracle's XSAVE found initial is zero, whatever its area holds.
            let zero = vec![0; c.size];
            let want = if bv >> n & 1 != 0 { &s[c.offset..c.offset + c.size] } else { &zero };
            assert_eq!(&v[c.offset..c.offset + c.size], want, "{what}: component {n}");
        }
    }
}

pub(super) fn code(f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    assemble(64, f)
}

#[test]
fn x87_environment_is_the_hosts() {
    let rows: &[(&str, Vec<u8>, core::ops::Range<usize>)] = &[
        ("fnstenv", vec![0xd9, 0x33], 12..28),
        ("fnstenv16", vec![0x66, 0xd9, 0x33], 6..14),
        ("fnsave", vec![0xdd, 0x33], 12..28),
        ("fnsave16", vec![0x66, 0xdd, 0x33], 6..14),
        ("fnstcw", vec![0xd9, 0x3b], 0..0),
        ("fnstsw", vec![0xdd, 0x3b], 0..0),
        ("fnstsw ax", vec![0xdf, 0xe0], 0..0),
        ("fnclex", vec![0xdb, 0xe2], 0..0),
        ("fninit", vec![0xdb, 0xe3], 0..0),
        ("fldcw", vec![0xd9, 0x2b], 0..0),
        ("fldenv", vec![0xd9, 0x23], 0..0),
        ("fldenv16", vec![0x66, 0xd9, 0x23], 0..0),
        ("frstor", vec![0xdd, 0x23], 0..0),
        ("frstor16", vec![0x66, 0xdd, 0x23], 0..0),
    ];
    let mut p = Pair::new(Mode::Long, 11);
    for (name, bytes, pointers) in rows {
        for _ in 0..50 {
            let mut m = [0; 4096];
            for b in &mut m[..128] {
                *b = p.r.next() as u8;
            }
            p.m.0 = m;
            p.randomize();
            p.both(bytes);
            let (mut got, mut want) = (p.area(), p.m.0);
            got[pointers.clone()].fill(0);
            want[pointers.clone()].fill(0);
            assert_eq!(got[..128], want[..128], "{name}");
            p.same_state(name);
            let (a, b) = (p.rig.get(Gpr::Rax), p.s.gpr[0]);
            assert_eq!(a, b, "{name}: RAX");
        }
    }
}

#[test]
fn fxsave_and_fxrstor_are_the_hosts() {
    let mut p = Pair::new(Mode::Long, 12);
    for wide in [false, true] {
        let save = code(|a| if wide { a.fxsave64(ptr(rbx)) } else { a.fxsave(ptr(rbx)) });
        let load = code(|a| if wide { a.fxrstor64(ptr(rbx)) } else { a.fxrstor(ptr(rbx)) });
        for _ in 0..20 {
            p.m.0.fill(0xa5);
            p.randomize();
            p.both(&save);
            let (mut got, mut want) = (p.area(), p.m.0);
            got[5..24].fill(0);
            want[5..24].fill(0);
            assert_eq!(got, want, "fxsave");
            // Another state, and back.
            p.randomize();
            p.both(&load);
            p.same_state("fxrstor");
        }
    }
}

#[test]
fn xsave_areas_are_the_hosts() {
    if !crate::host_cpu::has(x86_arch::cpuid::XSAVEC) {
        println!("skipped: no XSAVEC here");
        return;
    }
    let mut p = Pair::new(Mode::Long, 13);
    let saves = [
        ("xsave64", code(|a| a.xsave64(ptr(rbx)))),
        ("xsave", code(|a| a.xsave(ptr(rbx)))),
        ("xsaveopt64", code(|a| a.xsaveopt64(ptr(rbx)))),
        ("xsavec64", code(|a| a.xsavec64(ptr(rbx)))),
    ];
    let load = code(|a| a.xrstor64(ptr(rbx)));
    for round in 0..60 {
        for (name, save) in &saves {
            // What is not written keeps its bytes; header and MXCSR are such that the area can be loaded again.
            p.m.0.fill(0xa5);
            p.m.0[xsave::XSTATE_BV..xsave::HEADER_END].fill(0);
            p.m.0[xsave::MXCSR..xsave::MXCSR + 4].copy_from_slice(&0x1f80u32.to_le_bytes());
            p.m.0[2688..].fill(0);
            p.randomize();
            // Some components are as initialization leaves them.
            if round % 2 == 1 && crate::host_rules::host_rules().loaded_zeros_are_initial {
                let which = p.r.next();
                p.clear(which);
            }
            let mask = if round % 3 == 0 { u64::MAX } else { p.r.next() };
            p.rig.set(Gpr::Rax, mask);
            p.s.gpr[0] = mask;
            p.both(save);
            let (mut got, mut want) = (p.area(), p.m.0);
            got[5..24].fill(0);
            want[5..24].fill(0);
            assert_eq!(got[..], want[..], "{name} {mask:#x}");
            // What the host saved, loaded into another state with another mask.
            p.randomize();
            let mask = if round % 2 == 0 { u64::MAX } else { p.r.next() };
            p.rig.set(Gpr::Rax, mask);
            p.s.gpr[0] = mask;
            p.both(&load);
            p.same_state(name);
        }
    }
}

#[test]
fn xsaves_round_trip() {
    let mut rig = Rig::new(Mode::Long);
    let mut r = Random(14);
    let (save, load) = (code(|a| a.xsaves64(ptr(rbx))), code(|a| a.xrstors64(ptr(rbx))));
    rig.set(Gpr::Rbx, DATA);
    rig.set(Gpr::Rax, u64::MAX);
    rig.set(Gpr::Rdx, u64::MAX);
    let l = xstate::layout();
    for n in [2, 5, 6, 7] {
        if let Some(c) = l.component(n) {
            for b in &mut rig.cpu().xsave.bytes[c.offset..c.offset + c.size] {
                *b = r.next() as u8;
            }
        }
    }
    rig.cpu().xsave.set_xmm(3, 77);
    rig.cpu().xsave.set_mxcsr(0x1fa0);
    rig.cpu().xsave.set_fcw(0x27f);
    let bv = rig.cpu().xcr0.bits();
    rig.cpu().xsave.set_xstate_bv(bv);
    let before = rig.cpu().xsave.clone();
    rig.step(&save).unwrap();
    assert_eq!(rig.read_u64(DATA + 520), 1 << 63 | bv);
    rig.cpu().xsave = crate::xstate::XsaveImage::reset();
    rig.step(&load).unwrap();
    assert_eq!(rig.cpu().xsave.bytes[..], before.bytes[..]);
    // XRSTORS takes the compacted format only, and both are for CPL 0.
    rig.write_u64(DATA + 520, 0);
    assert_eq!(rig.step(&load), Err(GP));
    rig.user();
    assert_eq!(rig.step(&save), Err(GP));
    assert_eq!(rig.step(&load), Err(GP));
}

#[test]
fn a_component_that_is_not_saved_is_initialized() {
    let mut rig = Rig::new(Mode::Long);
    rig.set(Gpr::Rbx, DATA);
    rig.set(Gpr::Rax, 7);
    rig.cpu().xsave.set_xmm(5, 99);
    rig.cpu().xsave.set_fcw(0x27f);
    rig.cpu().xsave.set_xstate_bv(7);
    rig.write(DATA + 24, &0x1f80u32.to_le_bytes());
    rig.step(&code(|a| a.xrstor64(ptr(rbx)))).unwrap();
    assert_eq!(rig.cpu().xsave.xmm(5), 0);
    assert_eq!(rig.cpu().xsave.fcw(), 0x37f);
    assert_eq!(rig.cpu().xsave.xstate_bv(), 0);
    // And the optimized save of it writes nothing but the header.
    rig.write(DATA, &[0xa5; 576]);
    rig.write(DATA + 512, &[0; 64]);
    rig.step(&code(|a| a.xsaveopt64(ptr(rbx)))).unwrap();
    let mut b = [0; 512];
    rig.read(DATA, &mut b);
    assert!(b[..24].iter().chain(&b[32..]).all(|b| *b == 0xa5));
}

#[test]
fn state_areas_that_fault() {
    let load = code(|a| a.xrstor64(ptr(rbx)));
    let fxload = code(|a| a.fxrstor64(ptr(rbx)));
    type Spoil = fn(&mut Rig);
    let rows: &[(&str, &[u8], Spoil)] = &[
        ("misaligned", &load, |r| r.set(Gpr::Rbx, DATA + 16)),
        ("component that is not enabled", &load, |r| r.write_u64(DATA + 512, 1 << 20)),
        ("header byte 16", &load, |r| r.write_u64(DATA + 528, 1)),
        ("XCOMP_BV without bit 63", &load, |r| r.write_u64(DATA + 520, 2)),
        ("XSTATE_BV beyond XCOMP_BV", &load, |r| {
            r.write_u64(DATA + 512, 3);
            r.write_u64(DATA + 520, 1 << 63 | 1)
        }),
        ("MXCSR", &load, |r| r.write(DATA + 24, &0xffff_ffffu32.to_le_bytes())),
        ("fxrstor misaligned", &fxload, |r| r.set(Gpr::Rbx, DATA + 8)),
        ("fxrstor MXCSR", &fxload, |r| r.write(DATA + 24, &0xffff_ffffu32.to_le_bytes())),
        ("ldmxcsr", &[0x0f, 0xae, 0x13], |r| r.write(DATA, &0xffff_ffffu32.to_le_bytes())),
    ];
    for (name, bytes, spoil) in rows {
        let mut rig = Rig::new(Mode::Long);
        rig.set(Gpr::Rbx, DATA);
        rig.set(Gpr::Rax, u64::MAX);
        rig.cpu().xsave.set_xmm(1, 1);
        rig.step(bytes).unwrap();
        rig.cpu().xsave.set_xmm(1, 1);
        let before = rig.cpu().xsave.clone();
        spoil(&mut rig);
        assert_eq!(rig.step(bytes), Err(GP), "{name}");
        assert_eq!(rig.cpu().xsave.bytes, before.bytes, "{name}");
    }
}

#[test]
fn a_pending_x87_exception_is_mf_at_the_next_waiting_instruction() {
    let mut rig = Rig::new(Mode::Long);
    let mf = Err(Stop::Exception(Exception::new(Vector::Mf)));
    // fninit; fldz; fld1 with zero-divide unmasked; fdiv st0, st1.
    rig.step(&[0xdb, 0xe3]).unwrap();
    rig.cpu().xsave.set_fcw(0x37b);
    rig.step(&[0xd9, 0xee]).unwrap();
    rig.step(&[0xd9, 0xe8]).unwrap();
    let top = rig.cpu().xsave.clone();
    rig.step(&[0xd8, 0xf1]).unwrap();
    assert_eq!(rig.cpu().xsave.fsw() & 0x84, 0x84, "ZE and ES");
    assert_eq!(rig.cpu().xsave.bytes[32..42], top.bytes[32..42], "the divisor stays");
    for waiting in [&[0xd9, 0xe8][..], &[0x9b], &[0x0f, 0x77], &[0xd9, 0x6c, 0x24, 0x00]] {
        assert_eq!(rig.step(waiting), mf, "{waiting:02x?}");
    }
    let start = rig.cpu().rip() - 2;
    assert_eq!(rig.cpu().xsave.fip(), start, "FIP is the guest's");
    assert_eq!(rig.cpu().xsave.fop(), 0x0f1);
    rig.step(&[0xdf, 0xe0]).unwrap();
    assert_eq!(rig.get(Gpr::Rax) & 0x84, 0x84);
    rig.step(&[0xdb, 0xe2]).unwrap();
    rig.step(&[0x9b]).unwrap();
}

#[test]
fn a_store_whose_exception_is_unmasked_does_not_happen() {
    let mut rig = Rig::new(Mode::Long);
    rig.set(Gpr::Rax, DATA);
    rig.write_u64(DATA, 0x1234);
    // Overflow unmasked; the largest exponent to 32 bits.
    rig.cpu().xsave.set_fcw(0x377);
    rig.cpu().xsave.set_ftw(1);
    rig.cpu().xsave.set(xsave::ST0, 1u64 << 63);
    rig.cpu().xsave.set(xsave::ST0 + 8, 0x7ffeu16);
    rig.step(&[0xd9, 0x18]).unwrap();
    assert_eq!(rig.read_u64(DATA), 0x1234);
    assert_eq!(rig.cpu().xsave.fsw() & 0x3888, 0x88, "OE, ES, nothing popped");
}

#[test]
fn masked_moves_touch_no_masked_byte() {
    if !xstate::host_has_avx() {
        println!("skipped: no AVX here");
        return;
    }
    let mut rig = Rig::new(Mode::Long);
    let page = DATA + 0x1000;
    rig.unmap(page);
    rig.write(page - 8, &[1, 2, 3, 4, 5, 6, 7, 8]);
    rig.set(Gpr::Rbx, page - 8);
    let two = 1u128 << 31 | 1 << 63;
    rig.cpu().xsave.set_xmm(1, two);
    rig.cpu().xsave.set_xmm(2, 0x9999_8888_7777_6666_5555_4444_3333_2222);
    // vmaskmovps xmm0, xmm1, [rbx]
    rig.step(&code(|a| a.vmaskmovps(xmm0, xmm1, ptr(rbx)))).unwrap();
    assert_eq!(rig.cpu().xsave.xmm(0), 0x0807_0605_0403_0201);
    rig.step(&code(|a| a.vmaskmovps(ptr(rbx), xmm1, xmm2))).unwrap();
    assert_eq!(rig.read_u64(page - 8), 0x5555_4444_3333_2222);
    // One more element, and nothing is stored.
    rig.cpu().xsave.set_xmm(1, two | 1 << 95);
    rig.cpu().xsave.set_xmm(2, 0);
    let e = rig.step(&code(|a| a.vmaskmovps(ptr(rbx), xmm1, xmm2)));
    assert!(matches!(e, Err(Stop::Exception(e)) if e.vector == Vector::Pf));
    assert_eq!(rig.cpu().fault_gva.0, page);
    assert_eq!(rig.read_u64(page - 8), 0x5555_4444_3333_2222);
    // maskmovdqu xmm2, xmm1
    rig.set(Gpr::Rdi, page - 8);
    rig.cpu().xsave.set_xmm(1, 0x80 | 0x80 << 56);
    let maskmovdqu = [0x66, 0x0f, 0xf7, 0xd1];
    if crate::host_rules::host_rules().maskmov_reaches_all {
        let e = rig.step(&maskmovdqu);
        assert!(matches!(e, Err(Stop::Exception(e)) if e.vector == Vector::Pf));
        assert_eq!(rig.cpu().fault_gva.0, page);
        assert_eq!(rig.read_u64(page - 8), 0x5555_4444_3333_2222);
        rig.map(page);
    }
    rig.step(&maskmovdqu).unwrap();
    assert_eq!(rig.read_u64(page - 8), 0x0055_4444_3333_2200);
}

#[test]
fn avx512_masks_touch_no_masked_byte() {
    if !xstate::host_has_avx512() {
        println!("skipped: no AVX-512 here");
        return;
    }
    let mut rig = Rig::new(Mode::Long);
    let page = DATA + 0x1000;
    rig.unmap(page);
    rig.write(page - 8, &[1, 2, 3, 4, 5, 6, 7, 8]);
    rig.set(Gpr::Rbx, page - 8);
    rig.cpu().xsave.set_opmask(1, 3);
    rig.cpu().xsave.set_opmask(2, 0);
    rig.step(&code(|a| a.vmovups(zmm0.k1().z(), ptr(rbx)))).unwrap();
    assert_eq!(rig.cpu().xsave.xmm(0), 0x0807_0605_0403_0201);
    rig.step(&code(|a| a.vpaddd(zmm0.k1(), zmm0, ptr(rbx)))).unwrap();
    assert_eq!(rig.cpu().xsave.xmm(0), 0x100e_0c0a_0806_0402);
    rig.step(&code(|a| a.vmovups(ptr(rbx).k1(), zmm0))).unwrap();
    assert_eq!(rig.read_u64(page - 8), 0x100e_0c0a_0806_0402);
    // Expand reads, and compress writes, as many elements as there are bits, from the start.
    rig.cpu().xsave.set_opmask(3, 0x8001);
    rig.step(&code(|a| a.vpexpandd(zmm5.k3().z(), ptr(rbx)))).unwrap();
    let v = rig.cpu().xsave.vector(5, 64);
    assert_eq!((v[0], v[60]), (2, 0xa), "first and last element");
    rig.step(&code(|a| a.vpcompressd(ptr(rbx).k3(), zmm5))).unwrap();
    assert_eq!(rig.read_u64(page - 8), 0x100e_0c0a_0806_0402);
    // A broadcast with an empty mask touches nothing; a permutation reads all.
    rig.set(Gpr::Rbx, page);
    rig.step(&code(|a| a.vpaddd(zmm0.k2(), zmm0, dword_bcst(rbx)))).unwrap();
    let e = rig.step(&code(|a| a.vpermd(zmm0.k2(), zmm0, ptr(rbx))));
    assert!(matches!(e, Err(Stop::Exception(e)) if e.vector == Vector::Pf));
    let e = rig.step(&code(|a| a.vmovups(zmm0.k1().z(), ptr(rbx))));
    assert!(matches!(e, Err(Stop::Exception(e)) if e.vector == Vector::Pf));
}

#[test]
fn gathers_are_the_hosts() {
    if !xstate::host_has_avx() {
        println!("skipped: no AVX here");
        return;
    }
    let mut forms = vec![
        code(|a| a.vpgatherdd_3(xmm1, ptr(rbx + xmm2 * 4), xmm3)),
        code(|a| a.vpgatherdd_3(ymm1, ptr(rbx + ymm2 * 4), ymm3)),
        code(|a| a.vpgatherdq_3(ymm1, ptr(rbx + xmm2 * 8), ymm3)),
        code(|a| a.vgatherqps_3(xmm1, ptr(rbx + ymm2 * 4), xmm3)),
        code(|a| a.vgatherqps_3(xmm1, ptr(rbx + xmm2 * 4), xmm3)),
        code(|a| a.vgatherqpd_3(ymm1, ptr(rbx + ymm2 * 1), ymm3)),
        code(|a| a.vgatherdpd_3(xmm1, ptr(rbx + xmm2 * 2 + 8), xmm3)),
    ];
    if xstate::host_has_avx512() {
        forms.extend([
            code(|a| a.vpgatherdd(zmm1.k1(), ptr(rbx + zmm2 * 4))),
            code(|a| a.vpgatherqd(ymm20.k1(), ptr(rbx + zmm2 * 4))),
            code(|a| a.vpgatherdq(zmm1.k1(), ptr(rbx + ymm2 * 8))),
            code(|a| a.vgatherqpd(xmm1.k1(), ptr(rbx + xmm2 * 8))),
            code(|a| a.vpscatterdd(ptr(rbx + zmm2 * 4).k1(), zmm1)),
            code(|a| a.vscatterqpd(ptr(rbx + zmm2 * 8).k1(), zmm1)),
            code(|a| a.vpscatterqd(ptr(rbx + ymm2 * 4).k1(), xmm17)),
            code(|a| a.vscatterdpd(ptr(rbx + ymm2 * 8).k1(), zmm1)),
        ]);
    }
    let mut p = Pair::new(Mode::Long, 15);
    for bytes in forms {
        for _ in 0..20 {
            for b in p.m.0.iter_mut() {
                *b = p.r.next() as u8;
            }
            p.randomize();
            // Indices that stay inside the area, as 32 or as 64 bits.
            let wide = p.rig.decode(&bytes).code.op_code().op_kinds().iter().any(|k| {
                use iced_x86::OpCodeOperandKind as K;
                matches!(k, K::mem_vsib64x | K::mem_vsib64y | K::mem_vsib64z)
            });
            let mut v = [0u8; 64];
            for chunk in v.chunks_mut(if wide { 8 } else { 4 }) {
                chunk[0] = p.r.next() as u8;
            }
            p.rig.cpu().xsave.set_vector(2, &v);
            p.s.xsave.copy_from_slice(&p.rig.cpu().xsave.bytes);
            p.s.xsave[xsave::XSTATE_BV] = (crate::host_cpu::xcr0() & 0xe7) as u8;
            p.both(&bytes);
            p.same_state(&format!("{bytes:02x?}"));
            assert!(p.area() == p.m.0, "{bytes:02x?}: memory");
        }
    }
}

#[test]
fn a_gather_that_faults_keeps_what_it_has() {
    if !xstate::host_has_avx() {
        println!("skipped: no AVX here");
        return;
    }
    let mut rig = Rig::new(Mode::Long);
    let page = DATA + 0x1000;
    rig.unmap(page);
    rig.set(Gpr::Rbx, DATA);
    rig.write(DATA, &0x1111_2222u32.to_le_bytes());
    // Element 0 at DATA, element 1 in the page that is not there.
    rig.cpu().xsave.set_xmm(2, 0x1000 << 32);
    rig.cpu().xsave.set_xmm(3, u128::MAX);
    rig.cpu().xsave.set_xmm(1, 0);
    let gather = code(|a| a.vpgatherdd_3(xmm1, ptr(rbx + xmm2 * 1), xmm3));
    let e = rig.step(&gather);
    assert!(matches!(e, Err(Stop::Exception(e)) if e.vector == Vector::Pf));
    assert_eq!(rig.cpu().xsave.xmm(1), 0x1111_2222);
    assert_eq!(rig.cpu().xsave.xmm(3), u128::MAX << 32);
    rig.map(page);
    rig.step(&gather).unwrap();
    assert_eq!(rig.cpu().xsave.xmm(3), 0);
}

#[test]
fn vzeroupper_clears_and_says_so() {
    if !xstate::host_has_avx() {
        println!("skipped: no AVX here");
        return;
    }
    let mut p = Pair::new(Mode::Long, 16);
    for bytes in [&[0xc5, 0xf8, 0x77], &[0xc5, 0xfc, 0x77]] {
        p.randomize();
        p.both(bytes);
        p.same_state("vzero");
        assert_eq!(p.rig.cpu().xsave.xstate_bv() & 0x44, 0);
    }
}

#[test]
fn mmx_masked_move_and_non_temporal_stores() {
    let mut rig = Rig::new(Mode::Long);
    rig.set(Gpr::Rdi, DATA);
    rig.set(Gpr::Rax, 0x8000_0000_0000_0080);
    rig.set(Gpr::Rcx, 0x1122_3344_5566_7788);
    // fincstp, so that TOP is not 0; movq mm1, rax; movq mm2, rcx; maskmovq mm2, mm1
    rig.step(&[0xd9, 0xf7]).unwrap();
    rig.step(&[0x48, 0x0f, 0x6e, 0xc8]).unwrap();
    rig.step(&[0x48, 0x0f, 0x6e, 0xd1]).unwrap();
    rig.step(&[0x0f, 0xf7, 0xd1]).unwrap();
    assert_eq!(rig.read_u64(DATA), 0x1100_0000_0000_0088);
    assert_eq!((rig.cpu().xsave.top(), rig.cpu().xsave.ftw()), (0, 0xff));
    // movnti [rdi], rcx and ecx
    rig.step(&[0x48, 0x0f, 0xc3, 0x0f]).unwrap();
    assert_eq!(rig.read_u64(DATA), 0x1122_3344_5566_7788);
    rig.step(&[0x0f, 0xc3, 0x4f, 0x04]).unwrap();
    assert_eq!(rig.read_u64(DATA), 0x5566_7788_5566_7788);
}

/// Whether a mask suppresses faults is the exception class's (SDM vol. 2A, 2.8), and its elements are the result's.
#[test]
fn what_a_mask_suppresses() {
    if !xstate::host_has_avx512() {
        println!("skipped: no AVX-512 here");
        return;
    }
    let mut rig = Rig::new(Mode::Long);
    let page = DATA + 0x1000;
    rig.unmap(page);
    rig.cpu().xsave.set_opmask(2, 0);
    rig.cpu().xsave.set_opmask(3, 0b1010_1010);
    rig.set(Gpr::Rbx, page);
    // Class E4 with an empty mask: nothing is read. E4NF and E6NF: all is.
    rig.step(&code(|a| a.vpslld(zmm1.k2(), zmmword_ptr(rbx), 3))).unwrap();
    rig.step(&code(|a| a.vpdpbusd(zmm1.k2(), zmm2, zmmword_ptr(rbx)))).unwrap();
    let faults = |e| matches!(e, Err(Stop::Exception(Exception { vector: Vector::Pf, .. })));
    assert!(faults(rig.step(&code(|a| a.vpslld(zmm1.k2(), zmm1, xmmword_ptr(rbx))))));
    assert!(faults(rig.step(&code(|a| a.vinserti32x4(zmm1.k2(), zmm1, xmmword_ptr(rbx), 1)))));
    assert!(faults(rig.step(&code(|a| a.vextracti32x4(xmmword_ptr(rbx).k2(), zmm1, 1)))));
    // VPMULDQ's elements are 64 bits although it multiplies 32: the second is at the end of the page.
    rig.set(Gpr::Rbx, page - 16);
    rig.cpu().xsave.set_opmask(4, 2);
    rig.step(&code(|a| a.vpmuldq(zmm1.k4(), zmm2, zmmword_ptr(rbx)))).unwrap();
    // A tuple's element is read if any of the elements that it becomes is wanted, here the odd ones.
    rig.set(Gpr::Rbx, page - 4);
    rig.step(&code(|a| a.vbroadcasti32x2(zmm1.k2(), qword_ptr(rbx)))).unwrap();
    assert!(faults(rig.step(&code(|a| a.vbroadcasti32x2(zmm1.k3(), qword_ptr(rbx))))));
}

/// A VEX gather that faults: what it did stays, and nothing above its width is cleared yet.
#[test]
fn a_gather_that_faults_keeps_what_it_did() {
    if !xstate::host_has_avx512() {
        println!("skipped: no AVX-512 here");
        return;
    }
    let mut rig = Rig::new(Mode::Long);
    let page = DATA + 0x1000;
    rig.unmap(page);
    rig.write(page - 8, &[1, 2, 3, 4, 5, 6, 7, 8]);
    rig.set(Gpr::Rbx, page - 8);
    let wide = |low: [u64; 2]| {
        let mut v = [0x77; 64];
        v[..8].copy_from_slice(&low[0].to_le_bytes());
        v[8..16].copy_from_slice(&low[1].to_le_bytes());
        v
    };
    rig.cpu().xsave.set_vector(1, &wide([5, 6]));
    rig.cpu().xsave.set_vector(2, &wide([1 << 63 | 9, 1 << 63 | 9]));
    // Indices 0 and 8.
    rig.cpu().xsave.set_vector(3, &wide([0, 8]));
    // vgatherqpd xmm1, [rbx+xmm3], xmm2
    let e = rig.step(&[0xc4, 0xe2, 0xe9, 0x93, 0x0c, 0x1b]);
    assert!(matches!(e, Err(Stop::Exception(e)) if e.vector == Vector::Pf));
    assert_eq!(rig.cpu().xsave.vector(1, 64), wide([0x0807_0605_0403_0201, 6]));
    assert_eq!(rig.cpu().xsave.vector(2, 64), wide([0, 1 << 63 | 9]));
}
