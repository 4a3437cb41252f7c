//! System instructions: privilege, operands, refusals.

use super::valid_xcr0;
use crate::event::Activity;
use crate::exit::Stop;
use crate::rig::{CODE, DATA, Mode, Rig, assemble};
use iced_x86::code_asm as a;
use x86_arch::control::{Cr0, Cr4, Dr7};
use x86_arch::{Exception, Gpr, PageFaultErrorCode, Rflags, Seg, Vector};

const GP: Result<(), Stop> = Err(Stop::Exception(Exception::GP0));
const UD: Result<(), Stop> = Err(Stop::Exception(Exception::UD));

/// Each is #GP(0) at CPL 3, but where #UD is due.
#[test]
fn privileged() {
    let rows: &[(&str, &[u8], Result<(), Stop>)] = &[
        ("MOV CR0", &[0x0f, 0x22, 0xc0], GP),
        ("MOV from CR3", &[0x0f, 0x20, 0xd8], GP),
        ("CLTS", &[0x0f, 0x06], GP),
        ("LMSW", &[0x0f, 0x01, 0xf0], GP),
        ("INVD", &[0x0f, 0x08], GP),
        ("WBINVD", &[0x0f, 0x09], GP),
        ("INVLPG", &[0x0f, 0x01, 0x3c, 0x25, 0, 0, 2, 0], GP),
        ("INVPCID", &[0x66, 0x0f, 0x38, 0x82, 0x04, 0x25, 0, 0, 2, 0], GP),
        ("RDMSR", &[0x0f, 0x32], GP),
        ("WRMSR", &[0x0f, 0x30], GP),
        ("HLT", &[0xf4], GP),
        ("SWAPGS", &[0x0f, 0x01, 0xf8], GP),
        ("XSETBV", &[0x0f, 0x01, 0xd1], GP),
        ("MOV DR7", &[0x0f, 0x23, 0xf8], GP),
        ("MONITOR", &[0x0f, 0x01, 0xc8], UD),
        ("MWAIT", &[0x0f, 0x01, 0xc9], UD),
        ("RDPMC", &[0x0f, 0x33], GP),
        ("RSM", &[0x0f, 0xaa], UD),
        ("UD2", &[0x0f, 0x0b], UD),
        ("UD1", &[0x0f, 0xb9, 0xc0], UD),
        ("UD0", &[0x0f, 0xff, 0xc0], UD),
    ];
    for (name, code, want) in rows {
        let mut r = Rig::new(Mode::Long);
        r.user();
        let before = r.registers();
        assert_eq!(r.step(code), *want, "{name}");
        assert_eq!(r.registers(), before, "{name}");
    }
}

#[test]
fn control_registers_move() {
    let mut r = Rig::new(Mode::Long);
    let cr0 = r.cpu().cr0.bits();
    assert_eq!(r.step(&assemble(64, |x| x.mov(a::rax, a::cr0))), Ok(()));
    assert_eq!(r.get(Gpr::Rax), cr0);
    r.set(Gpr::Rax, cr0 | Cr0::TS.bits());
    assert_eq!(r.step(&assemble(64, |x| x.mov(a::cr0, a::rax))), Ok(()));
    assert!(r.cpu().cr0.contains(Cr0::TS));
    assert_eq!(r.step(&[0x0f, 0x06]), Ok(()));
    assert!(!r.cpu().cr0.contains(Cr0::TS));
    r.set(Gpr::Rbx, 0xdead_beef_0000_0001);
    assert_eq!(r.step(&assemble(64, |x| x.mov(a::cr2, a::rbx))), Ok(()));
    assert_eq!(r.cpu().cr2, 0xdead_beef_0000_0001);
    r.set(Gpr::Rbx, 16);
    assert_eq!(r.step(&assemble(64, |x| x.mov(a::cr8, a::rbx))), GP);
    // SMSW: the register's whole, memory's 16 bits.
    assert_eq!(r.step(&assemble(64, |x| x.smsw(a::rcx))), Ok(()));
    assert_eq!(r.get(Gpr::Rcx), cr0);
    r.write_u64(DATA, !0);
    assert_eq!(r.step(&assemble(64, |x| x.smsw(a::word_ptr(DATA)))), Ok(()));
    assert_eq!(r.read_u64(DATA), !0xffff | cr0 & 0xffff);
}

#[test]
fn hlt_waits() {
    let mut r = Rig::new(Mode::Long);
    assert_eq!(r.step(&[0xf4]), Ok(()));
    assert_eq!(r.cpu().events.activity, Activity::Halted);
}

#[test]
fn time() {
    for (code, name) in [(&[0x0f, 0x31][..], "RDTSC"), (&[0x0f, 0x01, 0xf9], "RDTSCP")] {
        let mut r = Rig::new(Mode::Long);
        r.cpu().clock.tsc.offset = 0x1234_5678_0000_0000;
        r.cpu().msr.tsc_aux = 7;
        r.set(Gpr::Rax, !0);
        assert_eq!(r.step(code), Ok(()), "{name}");
        assert_eq!((r.get(Gpr::Rdx), r.get(Gpr::Rax) >> 32), (0x1234_5678, 0), "{name}");
        assert_eq!(r.get(Gpr::Rcx), if name == "RDTSCP" { 7 } else { 0 });
        r.cpu().cr4 |= Cr4::TSD;
        assert_eq!(r.step(code), Ok(()));
        r.user();
        assert_eq!(r.step(code), GP, "{name}");
    }
    let mut r = Rig::new(Mode::Long);
    r.cpu().msr.tsc_aux = 0x1_0000_0005;
    assert_eq!(r.step(&[0xf3, 0x0f, 0xc7, 0xf8]), Ok(()));
    assert_eq!(r.get(Gpr::Rax), 5);
}

#[test]
fn random_numbers_set_only_carry() {
    for code in [&[0x48, 0x0f, 0xc7, 0xf0][..], &[0x48, 0x0f, 0xc7, 0xf8]] {
        let mut r = Rig::new(Mode::Long);
        r.set_flags(Rflags::STATUS, u64::MAX);
        assert_eq!(r.step(code), Ok(()));
        assert_ne!(r.get(Gpr::Rax), 0);
        assert_eq!(r.flags() & Rflags::STATUS.bits(), 1);
    }
}

#[test]
fn bases() {
    let mut r = Rig::new(Mode::Long);
    r.set(Gpr::Rax, 0xffff_8000_1234_5678);
    let wrgsbase = [0xf3, 0x48, 0x0f, 0xae, 0xd8];
    let rdgsbase = [0xf3, 0x48, 0x0f, 0xae, 0xc9];
    assert_eq!(r.step(&wrgsbase), Ok(()));
    assert_eq!(r.step(&rdgsbase), Ok(()));
    assert_eq!(r.get(Gpr::Rcx), 0xffff_8000_1234_5678);
    r.cpu().msr.kernel_gs_base = 0x1000;
    assert_eq!(r.step(&[0x0f, 0x01, 0xf8]), Ok(()));
    assert_eq!(r.cpu().segment(Seg::Gs).base, 0x1000);
    assert_eq!(r.cpu().msr.kernel_gs_base, 0xffff_8000_1234_5678);
    assert_eq!(r.cpu().seg_path[Seg::Gs as usize].base, 0x1000);
    r.set(Gpr::Rax, 1 << 47);
    assert_eq!(r.step(&wrgsbase), GP);
    r.cpu().cr4.remove(Cr4::FSGSBASE);
    assert_eq!(r.step(&rdgsbase), UD);
}

#[test]
fn xcr0_combinations() {
    for (v, allowed, ok) in [
        (1u64, 7u64, true),
        (3, 7, true),
        (7, 7, true),
        (0, 7, false),
        (2, 7, false),
        (5, 7, false),
        (7, 3, false),
        (0xe7, 0xe7, true),
        (0x67, 0xe7, false),
        (0xe3, 0xe7, false),
        (0x207, 0x207, true),
        (0xb, 0x1f, false),
        (0x1b, 0x1f, true),
    ] {
        assert_eq!(valid_xcr0(v, allowed), ok, "{v:#x} of {allowed:#x}");
    }
    let mut r = Rig::new(Mode::Long);
    r.set(Gpr::Rax, 3);
    assert_eq!(r.step(&[0x0f, 0x01, 0xd1]), Ok(()));
    assert_eq!(r.cpu().xcr0.bits(), 3);
    assert_eq!(r.step(&[0x0f, 0x01, 0xd0]), Ok(()));
    assert_eq!((r.get(Gpr::Rax), r.get(Gpr::Rdx)), (3, 0));
    r.set(Gpr::Rcx, 2);
    assert_eq!(r.step(&[0x0f, 0x01, 0xd1]), GP);
    assert_eq!(r.step(&[0x0f, 0x01, 0xd0]), GP);
    r.cpu().cr4.remove(Cr4::OSXSAVE);
    assert_eq!(r.step(&[0x0f, 0x01, 0xd0]), UD);
}

#[test]
fn protection_keys() {
    let (rdpkru, wrpkru) = ([0x0f, 0x01, 0xee], [0x0f, 0x01, 0xef]);
    let mut r = Rig::new(Mode::Long);
    assert_eq!(r.step(&rdpkru), UD);
    r.cpu().cr4 |= Cr4::PKE;
    r.set(Gpr::Rax, 0x5555_0000);
    assert_eq!(r.step(&wrpkru), Ok(()));
    assert_eq!((r.cpu().pkru, r.cpu().mmu.registers().pkru), (0x5555_0000, 0x5555_0000));
    r.set(Gpr::Rdx, 1);
    assert_eq!(r.step(&wrpkru), GP);
    assert_eq!(r.step(&rdpkru), Ok(()));
    assert_eq!((r.get(Gpr::Rax), r.get(Gpr::Rdx)), (0x5555_0000, 0));
    r.set(Gpr::Rcx, 1);
    assert_eq!(r.step(&rdpkru), GP);
}

#[test]
fn invpcid_types() {
    // INVPCID RAX, [DATA].
    let code = [0x66, 0x0f, 0x38, 0x82, 0x04, 0x25, 0, 0, 2, 0];
    for (kind, low, gva, pcide, want) in [
        (0u64, 0u64, 0u64, false, Ok(())),
        (0, 5, 0, true, Ok(())),
        (0, 5, 0, false, GP),
        (0, 0, 1 << 50, false, GP),
        (1, 5, 1 << 50, true, Ok(())),
        (1, 5, 0, false, GP),
        (2, 5, 0, false, Ok(())),
        (3, 0, 0, false, Ok(())),
        (2, 0x1000, 0, false, GP),
        (4, 0, 0, false, GP),
    ] {
        let mut r = Rig::new(Mode::Long);
        r.cpu().cr4.set(Cr4::PCIDE, pcide);
        r.cpu().paging_changed();
        r.write_u64(DATA, low);
        r.write_u64(DATA + 8, gva);
        r.set(Gpr::Rax, kind);
        assert_eq!(r.step(&code), want, "type {kind} {low:#x} {gva:#x}");
    }
}

#[test]
fn invlpg_and_clflush() {
    let invlpg = assemble(64, |x| x.invlpg(a::ptr(a::rax)));
    let mut r = Rig::new(Mode::Long);
    r.set(Gpr::Rax, 1 << 50);
    assert_eq!(r.step(&invlpg), Ok(()), "a non-canonical address is no fault");
    let clflush = assemble(64, |x| x.clflush(a::ptr(a::rax)));
    assert_eq!(r.step(&clflush), GP);
    r.set(Gpr::Rax, DATA);
    assert_eq!(r.step(&clflush), Ok(()));
    r.unmap(DATA);
    let fault = Exception::with_code(Vector::Pf, PageFaultErrorCode::empty().bits());
    assert_eq!(r.step(&clflush), Err(Stop::Exception(fault)));
}

#[test]
fn debug_registers() {
    let (to_dr7, to_dr4) = ([0x0f, 0x23, 0xf8], [0x0f, 0x23, 0xe0]);
    let mut r = Rig::new(Mode::Long);
    r.set(Gpr::Rax, 0xffff_ffff);
    assert_eq!(r.step(&to_dr4), Ok(()));
    assert_eq!(r.cpu().dr6.bits(), 0xffff_eff0 | 0xf, "DR4 is DR6 without CR4.DE");
    r.cpu().cr4 |= Cr4::DE;
    assert_eq!(r.step(&to_dr4), UD);
    r.set(Gpr::Rax, 1 << 32);
    assert_eq!(r.step(&to_dr7), GP);
    r.set(Gpr::Rax, 0x1000_d803 & !(1 << 13));
    assert_eq!(r.step(&to_dr7), Ok(()));
    assert_eq!(r.cpu().dr7.bits(), 0x1000_0c03);
    assert_ne!(r.cpu().hot.watch, 0);
    // General detect: a fault with BD, after which GD is clear.
    r.write(crate::rig::IDT + 16, &(0x8e00_0008_2340u64 | 1 << 48).to_le_bytes());
    r.write(0x1_2340, &[0x90]);
    r.cpu().dr7 = Dr7::GD | Dr7::FIXED;
    r.run(&[0x0f, 0x21, 0xc0], 1);
    let c = r.cpu();
    assert_eq!((c.dr6.bits() >> 13 & 1, c.dr7.contains(Dr7::GD)), (1, false));
    assert_eq!(r.read_u64(crate::rig::STACK - 40), CODE);
}

#[test]
fn monitor_touches_its_address() {
    let monitor = [0x0f, 0x01, 0xc8];
    let mut r = Rig::new(Mode::Long);
    r.set(Gpr::Rax, DATA);
    assert_eq!(r.step(&monitor), Ok(()));
    assert_eq!(r.step(&[0x0f, 0x01, 0xc9]), Ok(()));
    r.unmap(DATA);
    assert!(r.step(&monitor).is_err());
    r.map(DATA);
    r.set(Gpr::Rcx, 1);
    assert_eq!(r.step(&monitor), GP);
    assert_eq!(r.step(&[0x0f, 0x01, 0xc9]), Ok(()), "MWAIT knows one extension");
}
