//! Port I/O: exits and their completion, batches, and who may.

use crate::exit::{Direction, Exit, Stop};
use crate::rig::{DATA, Mode, Rig, TSS};
use x86_arch::{Exception, Gpr};

const GP: Result<(), Stop> = Err(Stop::Exception(Exception::GP0));

fn io(direction: Direction, size: u8, port: u16, count: u32, data: &[u8]) -> Exit {
    Exit::Io { direction, size, port, count, data: data.to_vec() }
}

#[test]
fn in_and_out_of_each_width() {
    let cases: &[(&[u8], u8, u16)] = &[
        (&[0xe4, 0x71], 1, 0x71),
        (&[0x66, 0xe5, 0x71], 2, 0x71),
        (&[0xe5, 0x71], 4, 0x71),
        (&[0xec], 1, 0x3f8),
        (&[0x66, 0xed], 2, 0x3f8),
        (&[0xed], 4, 0x3f8),
    ];
    for (code, size, port) in cases {
        let mut rig = Rig::new(Mode::Long);
        rig.set(Gpr::Rax, 0x1111_2222_3333_4444);
        rig.set(Gpr::Rdx, 0xffff_03f8);
        assert_eq!(rig.run(code, 1), io(Direction::In, *size, *port, 1, &[]), "{code:x?}");
        assert_eq!(rig.get(Gpr::Rax), 0x1111_2222_3333_4444);
        rig.processor.complete_io(&[0xa1, 0xb2, 0xc3, 0xd4][..*size as usize]);
        assert_eq!(rig.processor.run(Some(1)), Exit::Bound);
        let want = match size {
            1 => 0x1111_2222_3333_44a1,
            2 => 0x1111_2222_3333_b2a1,
            _ => 0xd4c3_b2a1,
        };
        assert_eq!(rig.get(Gpr::Rax), want, "{code:x?}");

        let mut out = code.to_vec();
        *out.iter_mut().rev().nth(if code.contains(&0x71) { 1 } else { 0 }).unwrap() |= 2;
        out.push(0x90);
        let mut rig = Rig::new(Mode::Long);
        rig.set(Gpr::Rax, 0x8877_6655_4433_2211);
        rig.set(Gpr::Rdx, 0x3f8);
        let data = [0x11, 0x22, 0x33, 0x44];
        let want = io(Direction::Out, *size, *port, 1, &data[..*size as usize]);
        assert_eq!(rig.run(&out, 1), want, "{out:x?}");
        assert_eq!(rig.processor.run(Some(1)), Exit::Bound);
    }
}

#[test]
fn rep_ins_travels_by_the_page() {
    let mut rig = Rig::new(Mode::Long);
    rig.set(Gpr::Rdx, 0x1f0);
    rig.set(Gpr::Rdi, DATA + 0xf00);
    rig.set(Gpr::Rcx, 0x100);
    // rep insw: 256 bytes to the page's end, then the rest.
    let first = rig.run(&[0x66, 0xf3, 0x6d, 0x90], 2);
    assert_eq!(first, io(Direction::In, 2, 0x1f0, 0x80, &[]));
    rig.processor.complete_io(&[0x5a; 0x100]);
    let second = rig.processor.run(Some(2));
    assert_eq!(second, io(Direction::In, 2, 0x1f0, 0x80, &[]));
    assert_eq!((rig.get(Gpr::Rcx), rig.get(Gpr::Rdi)), (0x80, DATA + 0x1000));
    rig.processor.complete_io(&[0xa5; 0x100]);
    assert_eq!(rig.processor.run(Some(2)), Exit::Bound);
    assert_eq!((rig.get(Gpr::Rcx), rig.get(Gpr::Rdi)), (0, DATA + 0x1100));
    let mut b = [0; 0x200];
    rig.read(DATA + 0xf00, &mut b);
    assert!(b[..0x100].iter().all(|b| *b == 0x5a) && b[0x100..].iter().all(|b| *b == 0xa5));
}

#[test]
fn rep_outs_travels_by_the_page() {
    let mut rig = Rig::new(Mode::Long);
    let data: Vec<u8> = (0..20).collect();
    rig.write(DATA, &data);
    rig.set(Gpr::Rdx, 0x402);
    rig.set(Gpr::Rsi, DATA);
    rig.set(Gpr::Rcx, 20);
    assert_eq!(rig.run(&[0xf3, 0x6e, 0x90], 2), io(Direction::Out, 1, 0x402, 20, &data));
    assert_eq!(rig.processor.run(Some(2)), Exit::Bound);
    assert_eq!((rig.get(Gpr::Rcx), rig.get(Gpr::Rsi)), (0, DATA + 20));
}

#[test]
fn descending_ins_goes_one_by_one() {
    let mut rig = Rig::new(Mode::Long);
    rig.set(Gpr::Rdx, 0x10);
    rig.set(Gpr::Rdi, DATA + 8);
    rig.set(Gpr::Rcx, 2);
    rig.cpu().hot.rflags |= 0x400;
    for n in 0..2u8 {
        let exit = if n == 0 { rig.run(&[0xf3, 0x6c], 1) } else { rig.processor.run(Some(1)) };
        assert_eq!(exit, io(Direction::In, 1, 0x10, 1, &[]));
        rig.processor.complete_io(&[0x30 + n]);
    }
    rig.processor.run(Some(1));
    let mut b = [0; 2];
    rig.read(DATA + 7, &mut b);
    assert_eq!(b, [0x31, 0x30]);
}

#[test]
fn ins_to_an_absent_page_asks_no_port() {
    let mut rig = Rig::new(Mode::Long);
    rig.unmap(DATA + 0x4000);
    rig.set(Gpr::Rdi, DATA + 0x4000);
    assert!(matches!(rig.step(&[0x6c]), Err(Stop::Exception(_))));
    assert_eq!(rig.cpu().io.request, None);
}

#[test]
fn the_bitmap_decides_for_user_code() {
    const MAP: u64 = 0x68;
    for (port, size, denied, allowed) in [
        (0x60u16, 1u8, None, true),
        (0x60, 1, Some(0x60), false),
        (0x60, 1, Some(0x61), true),
        (0x60, 2, Some(0x61), false),
        (0x67, 4, Some(0x6a), false),
        (0x67, 4, Some(0x6b), true),
        // The map has bytes to 7FFH; this port's lie behind it.
        (0xf000, 1, None, false),
    ] {
        for opcode in [0xecu8, 0xed] {
            let code: &[u8] = match (opcode, size) {
                (0xec, 1) => &[0xec],
                (0xed, 2) => &[0x66, 0xed],
                (0xed, 4) => &[0xed],
                _ => continue,
            };
            let mut rig = Rig::new(Mode::Long);
            rig.user();
            rig.write(TSS + 102, &(MAP as u16).to_le_bytes());
            if let Some(p) = denied {
                rig.write(TSS + MAP + p / 8, &[1 << (p % 8)]);
            }
            rig.set(Gpr::Rdx, port as u64);
            let want = if allowed { Err(Stop::Need) } else { GP };
            assert_eq!(rig.step(code), want, "{port:x} {size} {denied:?}");
            // IOPL 3 asks nobody.
            rig.cpu().hot.rflags |= 0x3000;
            assert_eq!(rig.step(code), Err(Stop::Need));
        }
    }
}

#[test]
fn virtual_8086_mode_asks_the_bitmap_at_any_iopl() {
    let mut rig = Rig::new(Mode::Virtual8086);
    rig.cpu().hot.rflags |= 0x3000;
    rig.write(TSS + 102, &0x68u16.to_le_bytes());
    rig.set(Gpr::Rdx, 0x60);
    assert_eq!(rig.step(&[0xec]), Err(Stop::Need));
    rig.write(TSS + 0x68 + 0xc, &[1]);
    assert_eq!(rig.step(&[0xec]), GP);
}

#[test]
fn a_16_bit_tss_has_no_bitmap() {
    let mut rig = Rig::new(Mode::Protected);
    rig.user();
    rig.cpu().seg[x86_arch::Seg::Tr as usize].typ = 3;
    assert_eq!(rig.step(&[0xec]), GP);
}
