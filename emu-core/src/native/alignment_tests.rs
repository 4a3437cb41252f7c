//! Alignment: #AC at CPL 3 with CR0.AM and EFLAGS.AC, and #GP where alignment is always asked for, instruction by
//! instruction. The figures are those of a Zen 4, and of SDM vol. 3A, table 6-7; where vendors differ they come from
//! `host_rules`.

use crate::exit::Stop;
use crate::host_rules::host_rules;
use crate::rig::{DATA, Mode, Rig, assemble};
use crate::xstate;
use iced_x86::code_asm::*;
use x86_arch::control::Cr0;
use x86_arch::{Exception, Gpr, Rflags, Seg, Vector, xsave};

/// What a misaligned operand meets.
#[derive(Clone, Copy, Debug)]
enum Want {
    /// #AC unless aligned at this.
    Ac(u64),
    /// As `Ac(16)`, where accesses of 16 bytes and more are checked.
    Wide,
    /// As `Ac`, where elements are checked.
    Element(u64),
    /// #GP(0) unless aligned at this, whatever EFLAGS.AC.
    Gp(u64),
    /// #AC unless aligned at the first, then #GP(0) unless aligned at the second.
    Both(u64, u64),
    /// Nothing.
    Free,
}

/// 1 in every 32-bit element's sign for AVX masked moves; one bit of K1, none of K2.
fn armed(mode: Mode) -> Rig {
    let mut rig = Rig::new(mode);
    rig.user();
    let v = rig.cpu();
    v.cr0.insert(Cr0::AM);
    v.xsave.set_vector(1, &[0; 64]);
    v.xsave.set_vector(3, &[0xff; 64]);
    v.xsave.set_opmask(1, 1);
    v.xsave.set_opmask(2, 0);
    arm(&mut rig, true);
    rig
}

fn arm(rig: &mut Rig, on: bool) {
    rig.set_flags(Rflags::AC, if on { Rflags::AC.bits() } else { 0 });
    rig.cpu().update_view();
}

/// Executes it at each offset, armed and not.
fn try_all(rig: &mut Rig, name: &str, bytes: &[u8], stack: bool, want: Want) {
    let rules = host_rules();
    let (ac, gp) = match want {
        Want::Ac(n) => (n, 1),
        Want::Wide => (rules.alignment(16) as u64, 1),
        Want::Element(n) => (rules.element_alignment(n as usize), 1),
        Want::Gp(n) => (1, n),
        Want::Both(a, g) => (a, g),
        Want::Free => (1, 1),
    };
    for offset in 0..=33u64 {
        for on in [true, false] {
            let at = DATA + 0x400 + offset;
            let mut area = [0u8; 1200];
            area[..2].copy_from_slice(&0x37fu16.to_le_bytes());
            area[xsave::MXCSR..xsave::MXCSR + 4].copy_from_slice(&xsave::MXCSR_INIT.to_le_bytes());
            rig.write(at, &area);
            rig.cpu().set_rip(crate::rig::CODE);
            for r in [Gpr::Rbx, Gpr::Rdi, Gpr::Rsi] {
                rig.set(r, at);
            }
            rig.set(Gpr::Rsp, if stack { at } else { DATA + 0x2000 });
            rig.set(Gpr::Rbp, DATA + 0x3000);
            rig.set(Gpr::Rax, 0);
            rig.set(Gpr::Rdx, 0);
            arm(rig, on);
            let expect = if on && at & (ac - 1) != 0 {
                Err(Stop::Exception(Exception::new(Vector::Ac)))
            } else if at & (gp - 1) != 0 {
                Err(Stop::Exception(Exception::GP0))
            } else {
                Ok(())
            };
            assert_eq!(rig.step(bytes), expect, "{name}, offset {offset}, AC {on}, {want:?}");
        }
    }
}

type Row = (&'static str, Vec<u8>, Want);

fn code(f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    assemble(64, f)
}

#[test]
fn legacy_operands() {
    use Want::*;
    let rows: Vec<Row> = vec![
        ("mov 32", code(|a| a.mov(eax, ptr(rbx))), Ac(4)),
        ("mov 64", code(|a| a.mov(ptr(rbx), rax)), Ac(8)),
        ("lock add", code(|a| a.lock().add(dword_ptr(rbx), eax)), Ac(4)),
        ("cmpxchg8b", code(|a| a.cmpxchg8b(ptr(rbx))), Ac(8)),
        ("cmpxchg16b", code(|a| a.cmpxchg16b(ptr(rbx))), Gp(16)),
        ("bts by register", code(|a| a.bts(ptr(rbx), rax)), Ac(8)),
        ("movsd", code(|a| a.movsd()), Ac(4)),
        ("movsb", code(|a| a.movsb()), Free),
        ("movnti", code(|a| a.movnti(ptr(rbx), rcx)), Ac(8)),
        ("ldmxcsr", code(|a| a.stmxcsr(ptr(rbx))), Ac(4)),
        ("clflush", code(|a| a.clflush(ptr(rbx))), Free),
        ("movups", code(|a| a.movups(xmm0, ptr(rbx))), Wide),
        ("movups to memory", code(|a| a.movups(ptr(rbx), xmm0)), Wide),
        ("movdqu", code(|a| a.movdqu(xmm0, ptr(rbx))), Wide),
        ("lddqu", code(|a| a.lddqu(xmm0, ptr(rbx))), Wide),
        ("pcmpistri", code(|a| a.pcmpistri(xmm0, ptr(rbx), 0)), Wide),
        ("movaps", code(|a| a.movaps(xmm0, ptr(rbx))), Gp(16)),
        ("pshufb", code(|a| a.pshufb(xmm0, ptr(rbx))), Gp(16)),
        ("cvttpd2pi", code(|a| a.cvttpd2pi(mm0, ptr(rbx))), Gp(16)),
        ("movq", code(|a| a.movq(xmm0, qword_ptr(rbx))), Ac(8)),
        ("movhps to memory", code(|a| a.movhps(ptr(rbx), xmm0)), Ac(8)),
        ("movss", code(|a| a.movss(xmm0, ptr(rbx))), Ac(4)),
        ("pinsrw", code(|a| a.pinsrw(xmm0, word_ptr(rbx), 1)), Ac(2)),
        ("pmovzxbq", code(|a| a.pmovzxbq(xmm0, ptr(rbx))), Ac(2)),
        ("pextrb", code(|a| a.pextrb(byte_ptr(rbx), xmm0, 1)), Free),
        ("paddb mm", code(|a| a.paddb(mm0, ptr(rbx))), Ac(8)),
        ("punpcklbw mm", code(|a| a.punpcklbw(mm0, ptr(rbx))), Ac(4)),
        ("fld m32", code(|a| a.fld(dword_ptr(rbx))), Ac(4)),
        ("fld m80", code(|a| a.fld(tbyte_ptr(rbx))), Ac(8)),
        ("fbstp", code(|a| a.fbstp(ptr(rbx))), Ac(8)),
        ("fild m16", code(|a| a.fild(word_ptr(rbx))), Ac(2)),
        ("fnstcw", code(|a| a.fnstcw(ptr(rbx))), Ac(2)),
        ("fnstenv", vec![0xd9, 0x33], Ac(4)),
        ("fldenv", vec![0xd9, 0x23], Ac(4)),
        ("fnstenv, 14 bytes", vec![0x66, 0xd9, 0x33], Ac(2)),
        ("fnsave", vec![0xdd, 0x33], Ac(4)),
        ("frstor, 94 bytes", vec![0x66, 0xdd, 0x23], Ac(2)),
        ("fxsave", code(|a| a.fxsave(ptr(rbx))), Both(4, 16)),
        ("fxrstor", code(|a| a.fxrstor(ptr(rbx))), Both(4, 16)),
        ("xsave", code(|a| a.xsave(ptr(rbx))), Gp(64)),
        ("lgs", code(|a| a.lgs(eax, ptr(rbx))), Ac(4)),
    ];
    let mut rig = armed(Mode::Long);
    // LGS takes a null selector from the area; its first four bytes are the offset.
    rig.cpu().seg[Seg::Gs as usize].base = 0;
    for (name, bytes, want) in rows {
        try_all(&mut rig, name, &bytes, false, want);
        rig.cpu().xsave.set_fcw(0x37f);
        rig.cpu().xsave.set_ftw(0);
    }
}

#[test]
fn stack_operands() {
    let rows: Vec<Row> = vec![
        ("push", code(|a| a.push(rax)), Want::Ac(8)),
        ("push 16", vec![0x66, 0x50], Want::Ac(2)),
        ("pop", code(|a| a.pop(rcx)), Want::Ac(8)),
        ("call", vec![0xe8, 0, 0, 0, 0], Want::Ac(8)),
        ("enter", code(|a| a.enter(16, 0)), Want::Ac(8)),
        ("pushfq", code(|a| a.pushfq()), Want::Ac(8)),
    ];
    let mut rig = armed(Mode::Long);
    for (name, bytes, want) in rows {
        try_all(&mut rig, name, &bytes, true, want);
    }
    let mut rig = armed(Mode::Protected);
    try_all(&mut rig, "pusha", &[0x60], true, Want::Ac(4));
    // bound eax, [ebx]
    rig.set(Gpr::Rbx, DATA + 2);
    arm(&mut rig, true);
    assert_eq!(rig.step(&[0x62, 0x03]), Err(Stop::Exception(Exception::new(Vector::Ac))));
}

#[test]
fn sha_operands() {
    if !crate::host_cpu::has(x86_arch::cpuid::SHA) {
        println!("skipped: no SHA here");
        return;
    }
    let want = if host_rules().sha_unaligned { Want::Wide } else { Want::Gp(16) };
    let mut rig = armed(Mode::Long);
    try_all(&mut rig, "sha1msg1", &code(|a| a.sha1msg1(xmm0, ptr(rbx))), false, want);
}

#[test]
fn avx_operands() {
    use Want::*;
    if !xstate::host_has_avx() {
        println!("skipped: no AVX here");
        return;
    }
    let rows: Vec<Row> = vec![
        ("vmovdqu ymm", code(|a| a.vmovdqu(ymm0, ptr(rbx))), Wide),
        ("vaddps ymm", code(|a| a.vaddps(ymm0, ymm0, ptr(rbx))), Wide),
        ("vmovdqa ymm", code(|a| a.vmovdqa(ymm0, ptr(rbx))), Gp(32)),
        ("vbroadcastss", code(|a| a.vbroadcastss(ymm0, ptr(rbx))), Ac(4)),
        ("vinsertf128", code(|a| a.vinsertf128(ymm0, ymm0, xmmword_ptr(rbx), 1)), Wide),
        ("vmaskmovps", code(|a| a.vmaskmovps(ymm0, ymm3, ptr(rbx))), Element(4)),
        ("vmaskmovpd to memory", code(|a| a.vmaskmovpd(ptr(rbx), ymm3, ymm0)), Element(8)),
        ("vmaskmovps, none", code(|a| a.vmaskmovps(ymm0, ymm1, ptr(rbx))), Free),
    ];
    let mut rig = armed(Mode::Long);
    for (name, bytes, want) in rows {
        try_all(&mut rig, name, &bytes, false, want);
    }
    // A gather clears its mask: a new one each time.
    rig.cpu().xsave.set_vector(2, &[0; 64]);
    for offset in [0, 1, 4] {
        rig.set(Gpr::Rbx, DATA + offset);
        rig.cpu().xsave.set_xmm(4, u128::MAX);
        let want = (DATA + offset) & (host_rules().element_alignment(4) - 1) == 0;
        let gather = code(|a| a.vpgatherdd_3(xmm0, ptr(rbx + xmm2 * 1), xmm4));
        arm(&mut rig, true);
        assert_eq!(rig.step(&gather).is_ok(), want, "{offset}");
    }
}

#[test]
fn avx512_operands() {
    use Want::*;
    if !xstate::host_has_avx512() || !crate::host_cpu::has(x86_arch::cpuid::AVX512_VBMI2) {
        println!("skipped: no AVX-512 here");
        return;
    }
    let empty = if host_rules().empty_mask_unaligned { Free } else { Gp(64) };
    let rows: Vec<Row> = vec![
        ("vmovdqu64", code(|a| a.vmovdqu64(zmm0, ptr(rbx))), Wide),
        ("vmovaps", code(|a| a.vmovaps(zmm0, ptr(rbx))), Gp(64)),
        ("vmovaps under a mask", code(|a| a.vmovaps(zmm0.k1(), ptr(rbx))), Gp(64)),
        ("vmovaps under none", code(|a| a.vmovaps(zmm0.k2(), ptr(rbx))), empty),
        ("vmovaps to memory under none", code(|a| a.vmovaps(ptr(rbx).k2(), zmm0)), empty),
        ("vmovups under a mask", code(|a| a.vmovups(zmm0.k1(), ptr(rbx))), Ac(4)),
        ("vmovups to memory", code(|a| a.vmovups(ptr(rbx).k1(), zmm0)), Ac(4)),
        ("vmovups under none", code(|a| a.vmovups(zmm0.k2(), ptr(rbx))), Free),
        ("vaddps broadcast", code(|a| a.vaddps(zmm0, zmm0, dword_bcst(rbx))), Ac(4)),
        ("vaddps broadcast to none", code(|a| a.vaddps(zmm0.k2(), zmm0, dword_bcst(rbx))), Free),
        ("vaddss under none", vec![0x62, 0xf1, 0x7e, 0x0a, 0x58, 0x03], Free),
        ("vpermd under none", code(|a| a.vpermd(zmm0.k2(), zmm0, ptr(rbx))), Wide),
        ("vpshufd under a mask", code(|a| a.vpshufd(zmm0.k1(), ptr(rbx), 0)), Wide),
        ("vpsrld by 128 bits", code(|a| a.vpsrld(zmm0.k2(), zmm0, xmmword_ptr(rbx))), Wide),
        ("vpsrld by 5", code(|a| a.vpsrld(zmm0.k1(), zmmword_ptr(rbx), 5)), Ac(4)),
        ("vpmuludq", code(|a| a.vpmuludq(zmm0.k1(), zmm0, ptr(rbx))), Ac(8)),
        ("vpdpbusd", code(|a| a.vpdpbusd(zmm0.k1(), zmm0, ptr(rbx))), Ac(4)),
        ("vbroadcasti32x4", code(|a| a.vbroadcasti32x4(zmm0.k1(), ptr(rbx))), Ac(4)),
        ("vinserti32x4", code(|a| a.vinserti32x4(zmm0.k2(), zmm0, ptr(rbx), 1)), Wide),
        ("vextracti32x4", code(|a| a.vextracti32x4(ptr(rbx).k2(), zmm0, 1)), Wide),
        ("vpcompressd", code(|a| a.vpcompressd(ptr(rbx), zmm0)), Ac(4)),
        ("vpcompressb", code(|a| a.vpcompressb(ptr(rbx), zmm0)), Free),
        ("vpexpandq", code(|a| a.vpexpandq(zmm0.k1(), ptr(rbx))), Ac(8)),
        ("vpexpandq, all", code(|a| a.vpexpandq(zmm0, ptr(rbx))), Wide),
        ("vcvtps2ph", code(|a| a.vcvtps2ph(ptr(rbx).k1(), zmm0, 0)), Ac(2)),
        ("kmovq", code(|a| a.kmovq(k3, ptr(rbx))), Ac(8)),
    ];
    let mut rig = armed(Mode::Long);
    for (name, bytes, want) in rows {
        try_all(&mut rig, name, &bytes, false, want);
    }
}

#[test]
fn misaligned_access_mode_excuses_computations_but_not_aligned_moves() {
    if crate::host_cpu::mxcsr_mask() & 1 << 17 == 0 {
        println!("skipped: no MXCSR.MM here");
        return;
    }
    let mut rig = armed(Mode::Long);
    rig.cpu().xsave.set_mxcsr(0x21f80);
    try_all(&mut rig, "pshufb", &code(|a| a.pshufb(xmm0, ptr(rbx))), false, Want::Wide);
    try_all(&mut rig, "addps", &code(|a| a.addps(xmm0, ptr(rbx))), false, Want::Wide);
    try_all(&mut rig, "movaps", &code(|a| a.movaps(xmm0, ptr(rbx))), false, Want::Gp(16));
    try_all(&mut rig, "movntdqa", &code(|a| a.movntdqa(xmm0, ptr(rbx))), false, Want::Gp(16));
}

/// #SS and #GP come first, #PF later.
#[test]
fn order_of_faults() {
    let mut rig = armed(Mode::Long);
    let movdqu = code(|a| a.movdqu(xmm0, ptr(rbx)));
    let mov = code(|a| a.mov(rax, ptr(rbx)));
    let ac = Err(Stop::Exception(Exception::new(Vector::Ac)));
    let page = DATA + 0x4000;
    rig.unmap(page);
    rig.set(Gpr::Rbx, page + 1);
    assert_eq!(rig.step(&mov), ac);
    rig.set(Gpr::Rbx, 0x8000_0000_0000_0001);
    for bytes in [&mov, &movdqu] {
        assert_eq!(rig.step(bytes), Err(Stop::Exception(Exception::GP0)));
    }
    rig.set(Gpr::Rbx, 0x7fff_ffff_fffd);
    assert_eq!(rig.step(&mov), Err(Stop::Exception(Exception::GP0)), "across the canonical edge");
    rig.set(Gpr::Rsp, 0x8000_0000_0000_0001);
    assert_eq!(rig.step(&code(|a| a.push(rax))), Err(Stop::Exception(Exception::SS0)));
    // Not at CPL 0, nor without CR0.AM.
    rig.set(Gpr::Rbx, DATA + 1);
    assert_eq!(rig.step(&mov), ac);
    rig.cpu().cr0.remove(Cr0::AM);
    arm(&mut rig, true);
    rig.step(&mov).unwrap();
    rig.cpu().cr0.insert(Cr0::AM);
    rig.cpu().set_cpl(0);
    arm(&mut rig, true);
    rig.step(&mov).unwrap();
}

/// Tuples: a memory element is read if any destination element that it becomes is wanted.
#[test]
fn broadcasts_of_tuples_touch_what_they_need() {
    if !xstate::host_has_avx512() {
        println!("skipped: no AVX-512 here");
        return;
    }
    let mut rig = Rig::new(Mode::Long);
    let page = DATA + 0x1000;
    rig.unmap(page);
    let broadcast = code(|a| a.vbroadcasti32x4(zmm0.k1().z(), ptr(rbx)));
    rig.write(page - 8, &[1, 0, 0, 0, 2, 0, 0, 0]);
    rig.set(Gpr::Rbx, page - 8);
    // Destination elements 4 and 9 are memory elements 0 and 1.
    rig.cpu().xsave.set_opmask(1, 0x210);
    rig.step(&broadcast).unwrap();
    let v = rig.cpu().xsave.vector(0, 64);
    assert_eq!((v[16], v[36], v[0]), (1, 2, 0));
    // Element 14 is memory element 2.
    rig.cpu().xsave.set_opmask(1, 0x4000);
    let e = rig.step(&broadcast);
    assert!(matches!(e, Err(Stop::Exception(e)) if e.vector == Vector::Pf));
    // A store of a part needs all of its place.
    let extract = code(|a| a.vextracti32x4(ptr(rbx).k2(), zmm0, 1));
    let e = rig.step(&extract);
    assert!(matches!(e, Err(Stop::Exception(e)) if e.vector == Vector::Pf));
}
