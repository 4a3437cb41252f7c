//! A pending x87 exception with CR0.NE=0: nobody raises it here, and the host must not with a signal.

use crate::exit::Stop;
use crate::rig::{DATA, Mode, Rig, assemble};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86_arch::control::Cr0;
use x86_arch::{Exception, Gpr, Vector};

type Assemble = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// x87 and MMX instructions that wait, with and without memory.
const WAITING: &[(&str, Assemble)] = &[
    ("FADD", |a| a.fadd_2(st0, st1)),
    ("FLD1", |a| a.fld1()),
    ("FLD", |a| a.fld(dword_ptr(rdi))),
    ("FSTP", |a| a.fstp(qword_ptr(rdi))),
    ("FSQRT", |a| a.fsqrt()),
    ("FXCH", |a| a.fxch(st0, st1)),
    ("PADDB", |a| a.paddb(mm0, mm1)),
    ("EMMS", |a| a.emms()),
    ("CVTPI2PS", |a| a.cvtpi2ps(xmm0, mm1)),
];

/// A division by zero, unmasked, has just happened.
fn pending(ne: bool) -> Rig {
    let mut r = Rig::new(Mode::Long);
    r.cpu().cr0.set(Cr0::NE, ne);
    r.set(Gpr::Rdi, DATA);
    r.cpu().xsave.set_fcw(0x37b);
    for code in [assemble(64, |a| a.fld1()), assemble(64, |a| a.fldz()), assemble(64, |a| a.fdivp(st1, st0))]
    {
        r.step(&code).expect("the exception waits for the next instruction");
    }
    assert_eq!(r.cpu().xsave.fsw() & 0x80bf, 0x8084, "ZE, ES, B");
    r
}

#[test]
fn it_is_raised_with_ne() {
    for (name, f) in WAITING {
        let result = pending(true).step(&assemble(64, f));
        assert_eq!(result, Err(Stop::Exception(Exception::new(Vector::Mf))), "{name}");
    }
}

#[test]
fn it_stays_pending_without_ne() {
    for (name, f) in WAITING {
        let mut r = pending(false);
        for _ in 0..3 {
            assert_eq!(r.step(&assemble(64, f)), Ok(()), "{name}");
            assert_eq!(r.cpu().xsave.fsw() & 0x8084, 0x8084, "{name}");
        }
    }
}

/// As a VMM may have set it: flags that are unmasked, and no summary.
#[test]
fn without_a_summary_it_is_pending_all_the_same() {
    for (name, f) in WAITING {
        for ne in [true, false] {
            let mut r = pending(ne);
            r.cpu().xsave.set_fsw(4);
            let raised = Err(Stop::Exception(Exception::new(Vector::Mf)));
            assert_eq!(r.step(&assemble(64, f)), if ne { raised } else { Ok(()) }, "{name}");
        }
    }
}
