//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, for an Intel and for an AMD.

use crate::cpuid::CpuidTable;
use crate::exit::Stop;
use crate::rig::{CODE, Mode, Rig};
use x86_arch::control::Efer;
use x86_arch::{Exception, Gpr, Rflags, Seg};

const SYSCALL: &[u8] = &[0x0f, 0x05];
const SYSRETL: &[u8] = &[0x0f, 0x07];
const SYSRETQ: &[u8] = &[0x48, 0x0f, 0x07];
const SYSENTER: &[u8] = &[0x0f, 0x34];
const SYSEXIT: &[u8] = &[0x0f, 0x35];
const GP: Result<(), Stop> = Err(Stop::Exception(Exception::GP0));
const UD: Result<(), Stop> = Err(Stop::Exception(Exception::UD));

fn amd(r: &mut Rig) {
    let mut rows = r.cpu().cpuid.entries().to_vec();
    for row in rows.iter_mut().filter(|e| e.leaf == 0) {
        (row.result.ebx, row.result.edx, row.result.ecx) = (0x6874_7541, 0x6974_6e65, 0x444d_4163);
    }
    r.cpu().cpuid = CpuidTable::new(rows);
}

fn rig(mode: Mode) -> Rig {
    let mut r = Rig::new(mode);
    let m = &mut r.cpu().msr;
    m.star = 0x0033_0008_1234_5678;
    m.lstar = 0xffff_8000_0000_1000;
    m.cstar = 0xffff_8000_0000_2000;
    m.fmask = 0x4_7700;
    (m.sysenter_cs, m.sysenter_eip, m.sysenter_esp) = (8, 0x1_2000, 0x3_9000);
    r
}

#[test]
fn syscall_from_64_bit_mode() {
    let mut r = rig(Mode::Long);
    r.user();
    r.set_flags(Rflags::all(), 0x0025_0fd7);
    assert_eq!(r.step(SYSCALL), Ok(()));
    let c = r.cpu();
    assert_eq!((c.rip(), c.cpl), (0xffff_8000_0000_1000, 0));
    assert_eq!((c.segment(Seg::Cs).selector.0, c.segment(Seg::Ss).selector.0), (8, 0x10));
    assert!(c.long64() && c.segment(Seg::Cs).limit == u32::MAX && c.segment(Seg::Ss).db);
    assert_eq!((r.get(Gpr::Rcx), r.get(Gpr::R11)), (CODE + 2, 0x0024_0fd7));
    assert_eq!(r.flags(), 0x0024_0fd7 & !0x4_7700 | 2);
    // And back.
    r.set(Gpr::R11, 0x0025_7fd7 | 1 << 17);
    assert_eq!(r.step(SYSRETQ), Ok(()));
    assert_eq!(r.flags(), 0x0024_7fd7, "RF and VM are never loaded");
    let c = r.cpu();
    assert_eq!((c.rip(), c.cpl), (CODE + 2, 3));
    assert_eq!((c.segment(Seg::Cs).selector.0, c.segment(Seg::Ss).selector.0), (0x43, 0x3b));
    assert!(c.long64() && c.segment(Seg::Ss).dpl == 3);
}

#[test]
fn refusals() {
    for code in [SYSCALL, SYSRETQ] {
        let mut r = rig(Mode::Long);
        r.cpu().efer.remove(Efer::SCE);
        assert_eq!(r.step(code), UD);
    }
    let mut r = rig(Mode::Long);
    r.user();
    assert_eq!(r.step(SYSRETQ), GP);
    // Outside 64-bit mode: an Intel has none, an AMD goes to CSTAR.
    let mut r = rig(Mode::Compat);
    assert_eq!(r.step(SYSCALL), UD);
    amd(&mut r);
    assert_eq!(r.step(SYSCALL), Ok(()));
    assert_eq!(r.cpu().rip(), 0xffff_8000_0000_2000);
    let mut r = rig(Mode::Protected);
    amd(&mut r);
    r.cpu().efer |= Efer::SCE;
    assert_eq!(r.step(SYSCALL), Ok(()));
    assert_eq!((r.cpu().rip(), r.get(Gpr::Rcx)), (0x1234_5678, CODE + 2));
    // RCX is checked by an Intel only.
    let mut r = rig(Mode::Long);
    r.set(Gpr::Rcx, 1 << 47);
    assert_eq!(r.step(SYSRETQ), GP);
    amd(&mut r);
    assert_eq!(r.step(SYSRETQ), Ok(()));
    assert_eq!(r.cpu().cpl, 3);
}

#[test]
fn sysret_to_compatibility_mode() {
    let mut r = rig(Mode::Long);
    r.set(Gpr::Rcx, 0xffff_ffff_0001_2000);
    r.set(Gpr::R11, 0x202);
    assert_eq!(r.step(SYSRETL), Ok(()));
    let c = r.cpu();
    assert_eq!((c.rip(), c.cpl, c.segment(Seg::Cs).selector.0), (0x1_2000, 3, 0x33));
    assert_eq!(c.mode, decoder::CpuMode::Bits32);
}

#[test]
fn sysret_of_an_amd_keeps_ss() {
    let mut r = rig(Mode::Long);
    amd(&mut r);
    r.cpu().seg[Seg::Ss as usize].limit = 0x1234;
    assert_eq!(r.step(SYSRETQ), Ok(()));
    assert_eq!((r.cpu().segment(Seg::Ss).selector.0, r.cpu().segment(Seg::Ss).limit), (0x3b, 0x1234));
}

#[test]
fn sysenter_and_sysexit() {
    let mut r = rig(Mode::Protected);
    r.user();
    r.set_flags(Rflags::IF, u64::MAX);
    assert_eq!(r.step(SYSENTER), Ok(()));
    let c = r.cpu();
    assert_eq!((c.rip(), c.hot.regs[4], c.cpl), (0x1_2000, 0x3_9000, 0));
    assert_eq!((c.segment(Seg::Cs).selector.0, c.segment(Seg::Ss).selector.0), (8, 0x10));
    assert!(!c.flag(Rflags::IF) && c.mode == decoder::CpuMode::Bits32);
    r.set(Gpr::Rdx, 0x1_3000);
    r.set(Gpr::Rcx, 0x3_7000);
    assert_eq!(r.step(SYSEXIT), Ok(()));
    let c = r.cpu();
    assert_eq!((c.rip(), c.hot.regs[4], c.cpl), (0x1_3000, 0x3_7000, 3));
    assert_eq!((c.segment(Seg::Cs).selector.0, c.segment(Seg::Ss).selector.0), (0x1b, 0x23));
    // From CPL 3, and with a null selector.
    assert_eq!(r.step(SYSEXIT), GP);
    r.cpu().msr.sysenter_cs = 3;
    assert_eq!(r.step(SYSENTER), GP);
    // To 64-bit mode.
    let mut r = rig(Mode::Long);
    r.set(Gpr::Rdx, 1 << 47);
    assert_eq!(r.step(&[0x48, 0x0f, 0x35]), GP);
    r.set(Gpr::Rdx, 0x1_3000);
    assert_eq!(r.step(&[0x48, 0x0f, 0x35]), Ok(()));
    assert_eq!((r.cpu().segment(Seg::Cs).selector.0, r.cpu().long64()), (0x2b, true));
    // An AMD has neither in long mode, and nobody in real mode.
    let mut r = rig(Mode::Compat);
    amd(&mut r);
    assert_eq!(r.step(SYSENTER), UD);
    assert_eq!(rig(Mode::Real).step(SYSENTER), GP);
}
