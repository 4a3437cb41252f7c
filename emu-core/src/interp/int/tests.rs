//! Software interrupts through the whole loop.

use crate::exit::Stop;
use crate::rig::{CODE, DATA, IDT, Mode, Rig, STACK};
use x86_arch::{Exception, Gpr, Rflags, Vector};

const HANDLER: u64 = 0x1_2340;

fn handler(r: &mut Rig, vector: u64, dpl: u64) {
    r.write_u64(
        IDT + 16 * vector,
        HANDLER & 0xffff | 8 << 16 | (0x8e | dpl << 5) << 40 | (HANDLER >> 16) << 48,
    );
    r.write_u64(IDT + 16 * vector + 8, 0);
    r.write(HANDLER, &[0x90, 0x90, 0xf4]);
}

#[test]
fn they_push_the_next_instruction() {
    for (code, vector) in [(&[0xcd_u8, 0x41][..], 0x41), (&[0xcc], 3), (&[0xf1], 1), (&[0xcd, 3], 3)] {
        let mut r = Rig::new(Mode::Long);
        handler(&mut r, vector, 0);
        r.run(code, 2);
        assert_eq!(r.read_u64(STACK - 40), CODE + code.len() as u64, "{code:x?}");
        assert!((HANDLER..HANDLER + 3).contains(&r.cpu().rip()), "{code:x?}");
        assert_eq!(r.read_u64(STACK - 24) >> 16 & 1, 0, "RF of a trap");
    }
    // INTO does not exist in 64-bit mode, and needs OF elsewhere.
    let mut r = Rig::new(Mode::Long);
    assert_eq!(r.step(&[0xce]), Err(Stop::Exception(Exception::UD)));
    let mut r = Rig::new(Mode::Protected);
    assert_eq!(r.step(&[0xce]), Ok(()));
    assert_eq!(r.cpu().rip(), CODE + 1);
    r.set_flags(Rflags::OF, u64::MAX);
    let refused = Exception::with_code(Vector::Gp, 4 << 3 | 2);
    assert_eq!(r.step(&[0xce]), Err(Stop::Exception(refused)));
}

/// TF is cleared on the way in: the first trap is not the INT's.
#[test]
fn an_int_is_not_stepped() {
    let mut r = Rig::new(Mode::Long);
    handler(&mut r, 0x41, 0);
    handler(&mut r, 1, 0);
    r.set_flags(Rflags::TF, u64::MAX);
    r.run(&[0xcd, 0x41], 2);
    assert_eq!(r.read_u64(STACK - 40), CODE + 2);
    assert_eq!(r.read_u64(STACK - 24) & Rflags::TF.bits(), Rflags::TF.bits());
    assert_eq!(r.get(Gpr::Rsp), STACK - 40, "only one frame");
    assert_eq!(r.cpu().dr6.bits() >> 14 & 1, 0);
}

#[test]
fn bound() {
    for (index, ok) in [(-5i32, true), (7, true), (-6, false), (8, false)] {
        let mut r = Rig::new(Mode::Protected);
        r.write(DATA, &[(-5i32).to_le_bytes(), 7i32.to_le_bytes()].concat());
        r.set(Gpr::Rax, index as u32 as u64);
        let got = r.step(&[0x62, 0x05, 0, 0, 2, 0]);
        let want = if ok { Ok(()) } else { Err(Stop::Exception(Exception::new(Vector::Br))) };
        assert_eq!(got, want, "{index}");
    }
}
