//! The stack, and the flags that privilege guards.

use crate::event::Shadow;
use crate::exit::Stop;
use crate::rig::{DATA, Mode, Rig, STACK};
use x86_arch::control::Cr4;
use x86_arch::{Exception, Gpr, Rflags, Seg, Selector};

const GP: Result<(), Stop> = Err(Stop::Exception(Exception::GP0));
const UD: Result<(), Stop> = Err(Stop::Exception(Exception::UD));

#[test]
fn push_forms_in_64_bit_mode() {
    let cases: &[(&[u8], u64, u64)] = &[
        (&[0x50], 8, 0x1122_3344_5566_7788),       // push rax
        (&[0x66, 0x50], 2, 0x7788),                // push ax
        (&[0x54], 8, STACK),                       // push rsp: the old value
        (&[0x6a, 0x80], 8, 0xffff_ffff_ffff_ff80), // push -128
        (&[0x66, 0x6a, 0x80], 2, 0xff80),          // push word -128
        (&[0x68, 0, 0, 0, 0x80], 8, 0xffff_ffff_8000_0000),
        (&[0x66, 0x68, 0x34, 0x12], 2, 0x1234),
        (&[0xff, 0x33], 8, 0xa1a2_a3a4_a5a6_a7a8), // push [rbx]
        (&[0x66, 0xff, 0x33], 2, 0xa7a8),
        (&[0x0f, 0xa0], 8, 0x33),       // push fs
        (&[0x66, 0x0f, 0xa8], 2, 0x2b), // push gs
    ];
    for (code, size, value) in cases {
        let mut rig = Rig::new(Mode::Long);
        rig.write_u64(STACK - 8, 0xcccc_cccc_cccc_cccc);
        rig.write_u64(DATA, 0xa1a2_a3a4_a5a6_a7a8);
        rig.set(Gpr::Rax, 0x1122_3344_5566_7788);
        rig.set(Gpr::Rbx, DATA);
        rig.cpu().seg[Seg::Fs as usize].selector = Selector(0x33);
        rig.cpu().seg[Seg::Gs as usize].selector = Selector(0x2b);
        rig.step(code).unwrap();
        assert_eq!(rig.get(Gpr::Rsp), STACK - size, "{code:x?}");
        let mut b = [0; 8];
        rig.read(STACK - size, &mut b[..*size as usize]);
        assert_eq!(u64::from_le_bytes(b), *value, "{code:x?}");
        if *size == 2 {
            let mut rest = [0; 6];
            rig.read(STACK - 8, &mut rest);
            assert_eq!(rest, [0xcc; 6], "{code:x?}: too much was written");
        }
    }
}

#[test]
fn a_32_bit_push_of_a_selector_writes_16_bits() {
    let mut rig = Rig::new(Mode::Protected);
    rig.write_u64(STACK - 8, u64::MAX);
    rig.cpu().seg[Seg::Fs as usize].selector = Selector(0x3b);
    rig.step(&[0x0f, 0xa0]).unwrap();
    assert_eq!(rig.get(Gpr::Rsp), STACK - 4);
    assert_eq!(rig.read_u64(STACK - 8) >> 32, 0xffff_003b);
}

#[test]
fn pop_forms() {
    let mut rig = Rig::new(Mode::Long);
    rig.write_u64(STACK, 0x1122_3344_5566_7788);
    rig.set(Gpr::Rax, u64::MAX);
    rig.step(&[0x66, 0x58]).unwrap(); // pop ax
    assert_eq!((rig.get(Gpr::Rax), rig.get(Gpr::Rsp)), (0xffff_ffff_ffff_7788, STACK + 2));
    rig.set(Gpr::Rsp, STACK);
    rig.step(&[0x5c]).unwrap(); // pop rsp
    assert_eq!(rig.get(Gpr::Rsp), 0x1122_3344_5566_7788);
    rig.set(Gpr::Rsp, STACK);
    rig.step(&[0x66, 0x5c]).unwrap(); // pop sp
    assert_eq!(rig.get(Gpr::Rsp), STACK & !0xffff | 0x7788);
    // pop [rsp + 8]: the address is computed after the increment.
    rig.set(Gpr::Rsp, STACK);
    rig.step(&[0x8f, 0x44, 0x24, 0x08]).unwrap();
    assert_eq!(rig.get(Gpr::Rsp), STACK + 8);
    assert_eq!(rig.read_u64(STACK + 16), 0x1122_3344_5566_7788);
}

#[test]
fn pop_to_absent_memory_leaves_rsp() {
    let mut rig = Rig::new(Mode::Long);
    rig.unmap(DATA + 0x4000);
    rig.set(Gpr::Rbx, DATA + 0x4000);
    let before = rig.registers();
    assert!(matches!(rig.step(&[0x8f, 0x03]), Err(Stop::Exception(_))));
    assert_eq!(rig.registers(), before);
}

#[test]
fn pusha_and_popa() {
    for (mode, size, prefix) in [
        (Mode::Protected, 4u64, &[][..]),
        (Mode::Protected, 2, &[0x66][..]),
        (Mode::Real, 2, &[][..]),
        (Mode::Real, 4, &[0x66][..]),
    ] {
        let mut rig = Rig::new(mode);
        let old_rsp = rig.get(Gpr::Rsp);
        for r in 0..8usize {
            if r != Gpr::Rsp as usize {
                rig.cpu().hot.regs[r] = 0x1111_1111 * (r as u64 + 1);
            }
        }
        let before = rig.registers();
        rig.step(&[prefix, &[0x60]].concat()).unwrap();
        assert_eq!(rig.get(Gpr::Rsp), old_rsp - 8 * size);
        for r in 0..8u64 {
            let mut b = [0; 8];
            rig.read(STACK - (r + 1) * size, &mut b[..size as usize]);
            let mask = u64::MAX >> (64 - 8 * size);
            assert_eq!(u64::from_le_bytes(b), before.gpr[r as usize] & mask, "{mode:?} {size} {r}");
        }
        for r in 0..8usize {
            if r != Gpr::Rsp as usize {
                rig.cpu().hot.regs[r] = 0;
            }
        }
        rig.step(&[prefix, &[0x61]].concat()).unwrap();
        let mask = if size == 2 { 0xffff } else { 0xffff_ffff };
        for r in 0..8usize {
            let want = if r == Gpr::Rsp as usize { old_rsp } else { before.gpr[r] & mask };
            assert_eq!(rig.registers().gpr[r], want, "{mode:?} {size} {r}");
        }
    }
}

#[test]
fn pusha_that_faults_leaves_what_it_pushed_before() {
    let mut rig = Rig::new(Mode::Protected);
    let page = STACK - 0x1000;
    rig.set(Gpr::Rsp, STACK - 0x1000 + 0x1010);
    rig.write_u64(STACK, 0x5555);
    rig.write_u64(STACK + 8, 0x6666);
    rig.unmap(page);
    rig.set(Gpr::Rax, 0xaaaa);
    rig.set(Gpr::Rbx, 0xbbbb);
    let before = rig.registers();
    assert!(matches!(rig.step(&[0x60]), Err(Stop::Exception(_))));
    assert_eq!(rig.registers(), before);
    // EAX is pushed first, EBX fourth; beyond it lies the page that is not there.
    assert_eq!(rig.read_u64(STACK + 8) >> 32, 0xaaaa);
    assert_eq!(rig.read_u64(STACK) & 0xffff_ffff, 0xbbbb);
}

/// ENTER, step by step as the SDM's pseudocode has it, on a copy of memory.
fn enter_model(rig: &Rig, size: u64, level: u64, operand: usize) -> (u64, u64, Vec<u8>) {
    let base = STACK - 0x1000;
    let mut memory = vec![0; 0x2000];
    rig.read(base, &mut memory);
    let n = operand as u64;
    let (mut rsp, mut rbp) = (rig.get(Gpr::Rsp), rig.get(Gpr::Rbp));
    let old_rbp = rbp;
    let push = |memory: &mut Vec<u8>, rsp: &mut u64, v: u64| {
        *rsp -= n;
        let at = (*rsp - base) as usize;
        memory[at..at + operand].copy_from_slice(&v.to_le_bytes()[..operand]);
    };
    push(&mut memory, &mut rsp, old_rbp);
    let frame = rsp;
    let level = level % 32;
    if level > 0 {
        for _ in 1..level {
            rbp -= n;
            let at = (rbp - base) as usize;
            let mut b = [0; 8];
            b[..operand].copy_from_slice(&memory[at..at + operand]);
            push(&mut memory, &mut rsp, u64::from_le_bytes(b));
        }
        push(&mut memory, &mut rsp, frame);
    }
    let rbp = if operand == 2 { old_rbp & !0xffff | frame & 0xffff } else { frame };
    (rsp - size, rbp, memory)
}

#[test]
fn enter_at_every_level() {
    for (operand, prefix) in [(8, &[][..]), (2, &[0x66][..])] {
        for level in 0..40u8 {
            // The outer frames far away, and where this instruction's own pushes go.
            for rbp in [STACK + 0x800, STACK + 8, STACK + 3] {
                let mut rig = Rig::new(Mode::Long);
                let pattern: Vec<u8> = (0..0x2000u32).map(|n| (n * 7 % 251) as u8).collect();
                rig.write(STACK - 0x1000, &pattern);
                rig.set(Gpr::Rbp, rbp);
                let (rsp, frame, memory) = enter_model(&rig, 0x40, level as u64, operand);
                rig.step(&[prefix, &[0xc8, 0x40, 0, level]].concat()).unwrap();
                assert_eq!(rig.get(Gpr::Rsp), rsp, "{operand} {level}");
                assert_eq!(rig.get(Gpr::Rbp), frame, "{operand} {level}");
                let mut now = vec![0; 0x2000];
                rig.read(STACK - 0x1000, &mut now);
                assert!(now == memory, "{operand} {level} {rbp:x}");
            }
        }
    }
}

#[test]
fn leave_undoes_enter() {
    let mut rig = Rig::new(Mode::Long);
    rig.set(Gpr::Rbp, 0x1234_5678_9abc);
    rig.step(&[0xc8, 0x20, 0, 0]).unwrap();
    assert_eq!(rig.get(Gpr::Rsp), STACK - 8 - 0x20);
    rig.step(&[0xc9]).unwrap();
    assert_eq!((rig.get(Gpr::Rsp), rig.get(Gpr::Rbp)), (STACK, 0x1234_5678_9abc));
}

#[test]
fn enter_needs_a_writable_end() {
    let mut rig = Rig::new(Mode::Long);
    rig.unmap(STACK - 0x3000);
    let before = rig.registers();
    assert!(matches!(rig.step(&[0xc8, 0x00, 0x28, 0]), Err(Stop::Exception(_))));
    assert_eq!(rig.registers(), before);
}

const ALL: u64 = 0x3f_7fd5;

/// POPFQ/POPFD/POPF of `pop` over `old` at a CPL and IOPL: RFLAGS after.
fn popf(mode: Mode, cpl3: bool, old: u64, pop: u64, code: &[u8]) -> (Result<(), Stop>, u64) {
    let mut rig = Rig::new(mode);
    if cpl3 {
        rig.user();
    }
    let vm = rig.flags() & Rflags::VM.bits();
    rig.cpu().hot.rflags = old | vm | 2;
    rig.write_u64(STACK, pop);
    let r = rig.step(code);
    (r, rig.flags())
}

#[test]
fn popf_changes_what_the_privilege_allows() {
    let vif_vip = (Rflags::VIF | Rflags::VIP).bits();
    let keep = vif_vip | Rflags::VM.bits();
    // (mode, CPL 3, IOPL before, code, bits that may change)
    let cases: &[(Mode, bool, u64, &[u8], u64)] = &[
        (Mode::Long, false, 0, &[0x9d], ALL & !keep),
        (Mode::Long, false, 0, &[0x66, 0x9d], 0x7fd5),
        (Mode::Long, true, 0, &[0x9d], ALL & !keep & !0x3200),
        (Mode::Long, true, 3, &[0x9d], ALL & !keep & !0x3000),
        (Mode::Long, true, 0, &[0x66, 0x9d], 0x7fd5 & !0x3200),
        (Mode::Protected, false, 0, &[0x9d], ALL & !keep),
        (Mode::Protected, true, 3, &[0x66, 0x9d], 0x7fd5 & !0x3000),
        (Mode::Real, false, 0, &[0x9d], 0x7fd5),
        (Mode::Real, false, 0, &[0x66, 0x9d], ALL & !keep),
        (Mode::Virtual8086, false, 3, &[0x9d], 0x7fd5 & !0x3000),
        (Mode::Virtual8086, false, 3, &[0x66, 0x9d], ALL & !keep & !0x3000),
    ];
    for &(mode, cpl3, iopl, code, may) in cases {
        for (old, pop) in [(iopl << 12, u64::MAX), (ALL & !0x3000 & !(1 << 17) | iopl << 12, 0)] {
            let (r, got) = popf(mode, cpl3, old, pop, code);
            assert_eq!(r, Ok(()));
            let vm = if mode == Mode::Virtual8086 { Rflags::VM.bits() } else { 0 };
            let mut want = (old | vm | 2) & !may | pop & may;
            if may & Rflags::RF.bits() != 0 {
                want &= !Rflags::RF.bits();
            }
            assert_eq!(got, want, "{mode:?} cpl3={cpl3} iopl={iopl} {code:x?} {old:x} {pop:x}");
        }
    }
}

#[test]
fn pushf_images() {
    for (mode, code, mask) in [
        (Mode::Long, &[0x9c][..], !0),
        (Mode::Long, &[0x66, 0x9c][..], 0xffff),
        (Mode::Protected, &[0x9c][..], 0xffff_ffff),
        (Mode::Real, &[0x9c][..], 0xffff),
    ] {
        let mut rig = Rig::new(mode);
        rig.cpu().hot.rflags = ALL & !(1 << 17) | 2;
        rig.step(code).unwrap();
        let want = (ALL & !(1 << 17) & !Rflags::RF.bits() | 2) & mask;
        let at = rig.cpu().segment(Seg::Ss).base + rig.get(Gpr::Rsp);
        let size = (STACK - at) as usize;
        let mut b = [0; 8];
        rig.read(at, &mut b[..size]);
        assert_eq!(u64::from_le_bytes(b), want, "{mode:?}");
    }
}

#[test]
fn virtual_8086_flags_without_vme_are_gp() {
    for code in [&[0x9c][..], &[0x9d], &[0x66, 0x9c], &[0x66, 0x9d], &[0xfa], &[0xfb]] {
        let mut rig = Rig::new(Mode::Virtual8086);
        let before = rig.registers();
        assert_eq!(rig.step(code), GP, "{code:x?}");
        assert_eq!(rig.registers(), before);
    }
}

#[test]
fn virtual_8086_flags_with_vme_use_vif() {
    let vif = Rflags::VIF.bits();
    let vip = Rflags::VIP.bits();
    let new = |flags: u64| {
        let mut rig = Rig::new(Mode::Virtual8086);
        rig.cpu().cr4 |= Cr4::VME;
        rig.cpu().hot.rflags |= flags;
        rig
    };
    for (flags, image_if) in [(0x200, 0), (vif, 0x200)] {
        let mut rig = new(flags);
        rig.step(&[0x9c]).unwrap();
        assert_eq!(rig.read_u64(STACK - 2) & 0xffff, 0x3002 | image_if, "{flags:x}");
        assert_eq!(rig.step(&[0x66, 0x9c]), GP, "PUSHFD");
    }
    // (before, popped, after)
    for (old, pop, after) in [
        (0, 0x200, Ok(vif)),
        (vif, 0, Ok(0)),
        (0x200, 0x0d5, Ok(0x200 | 0xd5)),
        (vip, 0x200, Err(())),
        (vip, 0, Ok(vip)),
        (0, 0x100, Err(())),
    ] {
        let mut rig = new(old);
        rig.write_u64(STACK, pop);
        let before = rig.registers();
        let r = rig.step(&[0x9d]);
        match after {
            Ok(f) => {
                assert_eq!(r, Ok(()));
                assert_eq!(rig.flags(), f | 2 | Rflags::VM.bits(), "{old:x} {pop:x}");
            }
            Err(()) => {
                assert_eq!(r, GP, "{old:x} {pop:x}");
                assert_eq!(rig.registers(), before);
            }
        }
    }
    let mut rig = new(vif);
    rig.step(&[0xfa]).unwrap();
    assert_eq!(rig.flags() & vif, 0);
    rig.step(&[0xfb]).unwrap();
    assert_eq!(rig.flags() & vif, vif);
    assert_eq!(rig.flags() & 0x200, 0);
    let mut rig = new(vip);
    assert_eq!(rig.step(&[0xfb]), GP);
}

#[test]
fn cli_and_sti_by_iopl() {
    for (cpl3, iopl, pvi, want) in [
        (false, 0, false, Ok(0x200)),
        (true, 0, false, GP.map(|()| 0)),
        (true, 3, false, Ok(0x200)),
        (true, 0, true, Ok(Rflags::VIF.bits())),
        (true, 3, true, Ok(0x200)),
    ] {
        let mut rig = Rig::new(Mode::Protected);
        if cpl3 {
            rig.user();
        }
        if pvi {
            rig.cpu().cr4 |= Cr4::PVI;
        }
        rig.cpu().hot.rflags = 2 | iopl << 12;
        let r = rig.step(&[0xfb]);
        assert_eq!(r.map(|()| rig.flags() & 0x8_0200), want, "{cpl3} {iopl} {pvi}");
        if r.is_ok() {
            rig.step(&[0xfa]).unwrap();
            assert_eq!(rig.flags() & 0x8_0200, 0);
        }
    }
}

#[test]
fn sti_shadows_only_from_clear() {
    let mut rig = Rig::new(Mode::Long);
    rig.step(&[0xfb]).unwrap();
    assert_eq!(rig.cpu().events.shadow, Shadow::Sti);
    rig.cpu().events.shadow = Shadow::None;
    rig.step(&[0xfb]).unwrap();
    assert_eq!(rig.cpu().events.shadow, Shadow::None);
}

#[test]
fn clac_and_stac_are_the_supervisors() {
    let mut rig = Rig::new(Mode::Long);
    rig.step(&[0x0f, 0x01, 0xcb]).unwrap();
    assert_ne!(rig.flags() & Rflags::AC.bits(), 0);
    rig.step(&[0x0f, 0x01, 0xca]).unwrap();
    assert_eq!(rig.flags() & Rflags::AC.bits(), 0);
    rig.user();
    assert_eq!(rig.step(&[0x0f, 0x01, 0xcb]), UD);
}

/// AAA to DAS against the SDM's pseudocode, for every AL, several AH, and AF and CF.
#[test]
fn decimal_adjustments() {
    let mut rig = Rig::new(Mode::Protected);
    let (cf, af) = (1, 0x10);
    for al in 0..=255u64 {
        for ah in [0, 1, 9, 0x7f, 0xff] {
            for flags in [0, cf, af, cf | af] {
                for opcode in [0x37u8, 0x3f, 0x27, 0x2f] {
                    rig.set(Gpr::Rax, 0xdead_0000 | ah << 8 | al);
                    rig.set_flags(Rflags::STATUS, flags);
                    rig.step(&[opcode]).unwrap();
                    let low = al & 15 > 9 || flags & af != 0;
                    let ax = ah << 8 | al;
                    let (want, f) = match opcode {
                        0x37 | 0x3f => {
                            let add = if opcode == 0x37 { 0x106u64 } else { 0u64.wrapping_sub(0x106) };
                            let r = if low { ax.wrapping_add(add) } else { ax } & 0xff0f;
                            (r, if low { cf | af } else { 0 })
                        }
                        _ => {
                            let sign = if opcode == 0x27 { 1 } else { -1i64 };
                            let (mut r, mut f) = (al as i64, 0);
                            if low {
                                r += 6 * sign;
                                f |= af | if !(0..256).contains(&r) || flags & cf != 0 { cf } else { 0 };
                            }
                            if al > 0x99 || flags & cf != 0 {
                                r += 0x60 * sign;
                                f |= cf;
                            } else if opcode == 0x27 {
                                f &= !cf;
                            }
                            (ah << 8 | r as u64 & 0xff, f)
                        }
                    };
                    let text = format!("{opcode:x} ax={ax:x} flags={flags:x}");
                    assert_eq!(rig.get(Gpr::Rax), 0xdead_0000 | want & 0xffff, "{text}");
                    assert_eq!(rig.flags() & (cf | af), f, "{text}");
                }
            }
        }
    }
}

#[test]
fn aam_and_aad() {
    let mut rig = Rig::new(Mode::Protected);
    for ax in (0..=0xffffu64).step_by(37) {
        for base in [1u8, 2, 10, 16, 255] {
            rig.set(Gpr::Rax, ax);
            rig.step(&[0xd4, base]).unwrap();
            let al = ax & 0xff;
            assert_eq!(rig.get(Gpr::Rax), ((al / base as u64) << 8) + al % base as u64);
            rig.set(Gpr::Rax, ax);
            rig.step(&[0xd5, base]).unwrap();
            assert_eq!(rig.get(Gpr::Rax), (al + (ax >> 8) * base as u64) & 0xff);
        }
    }
    let before = rig.registers();
    assert_eq!(rig.step(&[0xd4, 0]), Err(Stop::Exception(Exception::new(x86_arch::Vector::De))));
    assert_eq!(rig.registers(), before);
}

#[test]
fn salc_spreads_the_carry() {
    let mut rig = Rig::new(Mode::Protected);
    for (carry, al) in [(1, 0xff), (0, 0)] {
        rig.set(Gpr::Rax, 0x1234_5678);
        rig.set_flags(Rflags::STATUS, 0x8d4 | carry);
        rig.step(&[0xd6]).unwrap();
        assert_eq!((rig.get(Gpr::Rax), rig.flags() & 0x8d5), (0x1234_5600 | al, 0x8d4 | carry));
    }
}
