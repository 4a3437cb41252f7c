//! String instructions against a plain model: every operation, width, direction, repeat prefix and address size,
//! with overlaps; faults and interruptions in the middle; devices as source and destination.

use super::native::Draw;
use crate::exit::{Exit, Stop};
use crate::rig::{CODE, DATA, MMIO, Mode, RAM, Rig};
use x86_arch::{Exception, Gpr, Rflags, Vector};

const ZF: u64 = 0x40;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Machine {
    memory: Vec<u8>,
    rax: u64,
    rcx: u64,
    rsi: u64,
    rdi: u64,
    status: u64,
}

fn get(m: &[u8], at: u64, n: usize) -> u64 {
    let mut b = [0; 8];
    let at = (at - DATA) as usize;
    b[..n].copy_from_slice(&m[at..at + n]);
    u64::from_le_bytes(b)
}

fn put(m: &mut [u8], at: u64, n: usize, v: u64) {
    let at = (at - DATA) as usize;
    m[at..at + n].copy_from_slice(&v.to_le_bytes()[..n]);
}

/// Flags of `a - b`, by wide arithmetic.
fn compare(a: u64, b: u64, n: usize) -> u64 {
    let bits = 8 * n as u32;
    let mask = u64::MAX >> (64 - bits);
    let r = a.wrapping_sub(b) & mask;
    let signed = |v: u64| (v << (64 - bits)) as i64 as i128 >> (64 - bits);
    let d = signed(a) - signed(b);
    let overflow = d < -(1i128 << (bits - 1)) || d >= 1i128 << (bits - 1);
    let flag = |yes: bool, bit: u64| if yes { bit } else { 0 };
    flag(a < b, 1)
        | flag((r as u8).count_ones().is_multiple_of(2), 4)
        | flag((a & 15) < (b & 15), 0x10)
        | flag(r == 0, ZF)
        | flag(r >> (bits - 1) != 0, 0x80)
        | flag(overflow, 0x800)
}

/// One instruction of the model: `opcode` is that of the byte form.
fn model(m: &mut Machine, opcode: u8, n: usize, down: bool, rep: u8, narrow: bool) {
    let mask = if narrow { 0xffff_ffff } else { u64::MAX };
    let element = u64::MAX >> (64 - 8 * n);
    let step = if down { (n as u64).wrapping_neg() } else { n as u64 };
    let (uses_si, uses_di) = match opcode {
        0xa4 | 0xa6 => (true, true),
        0xac => (true, false),
        _ => (false, true),
    };
    loop {
        if rep != 0 && m.rcx & mask == 0 {
            return;
        }
        match opcode {
            0xa4 => {
                let v = get(&m.memory, m.rsi, n);
                put(&mut m.memory, m.rdi, n, v);
            }
            0xaa => put(&mut m.memory, m.rdi, n, m.rax),
            0xac => {
                let v = get(&m.memory, m.rsi, n);
                m.rax = if n == 4 { v } else { m.rax & !element | v };
            }
            0xae => m.status = compare(m.rax & element, get(&m.memory, m.rdi, n), n),
            _ => m.status = compare(get(&m.memory, m.rsi, n), get(&m.memory, m.rdi, n), n),
        }
        if uses_si {
            m.rsi = m.rsi.wrapping_add(step) & mask;
        }
        if uses_di {
            m.rdi = m.rdi.wrapping_add(step) & mask;
        }
        if rep == 0 {
            return;
        }
        m.rcx = m.rcx.wrapping_sub(1) & mask;
        let compares = matches!(opcode, 0xa6 | 0xae);
        if compares && (m.status & ZF != 0) != (rep == 0xf3) {
            return;
        }
    }
}

fn code(opcode: u8, n: usize, rep: u8, narrow: bool) -> Vec<u8> {
    let mut c = Vec::new();
    if narrow {
        c.push(0x67);
    }
    if n == 2 {
        c.push(0x66);
    }
    if rep != 0 {
        c.push(rep);
    }
    if n == 8 {
        c.push(0x48);
    }
    c.push(if n == 1 { opcode } else { opcode + 1 });
    c
}

const SPAN: usize = 0x1_0000;

fn check(rig: &mut Rig, m: &Machine, opcode: u8, n: usize, down: bool, rep: u8, narrow: bool) {
    rig.write(DATA, &m.memory);
    let mut want = m.clone();
    model(&mut want, opcode, n, down, rep, narrow);
    rig.set(Gpr::Rax, m.rax);
    rig.set(Gpr::Rcx, m.rcx);
    rig.set(Gpr::Rsi, m.rsi);
    rig.set(Gpr::Rdi, m.rdi);
    let df = if down { Rflags::DF.bits() } else { 0 };
    rig.set_flags(Rflags::STATUS | Rflags::DF, m.status | df);
    let bytes = code(opcode, n, rep, narrow);
    rig.complete(&bytes).unwrap();
    let mut memory = vec![0; SPAN];
    rig.read(DATA, &mut memory);
    let text = format!("{bytes:x?} down={down} rcx={:x} rsi={:x} rdi={:x}", m.rcx, m.rsi, m.rdi);
    assert!(memory == want.memory, "{text}: memory");
    let got = Machine {
        memory,
        rax: rig.get(Gpr::Rax),
        rcx: rig.get(Gpr::Rcx),
        rsi: rig.get(Gpr::Rsi),
        rdi: rig.get(Gpr::Rdi),
        status: rig.flags() & 0x8d5,
    };
    assert_eq!(
        (got.rax, got.rcx, got.rsi, got.rdi, got.status),
        (want.rax, want.rcx, want.rsi, want.rdi, want.status),
        "{text}"
    );
}

#[test]
fn every_operation_as_the_model_does_it() {
    let mut rig = Rig::new(Mode::Long);
    let mut draw = Draw::new(7);
    let middle = DATA + SPAN as u64 / 2;
    for opcode in [0xa4, 0xa6, 0xaa, 0xac, 0xae] {
        for n in [1, 2, 4, 8] {
            for rep in [0, 0xf3, 0xf2] {
                for down in [false, true] {
                    for narrow in [false, true] {
                        for round in 0..6 {
                            // Long runs of one byte, so that comparisons go on for a while.
                            let mut memory = vec![0x41; SPAN];
                            if round > 1 {
                                for _ in 0..60 {
                                    let at = draw.next() as usize % SPAN;
                                    memory[at] = draw.next() as u8;
                                }
                            }
                            let count = [0, 1, 7, 100, 600, 1030][round];
                            let m = Machine {
                                memory,
                                rax: if round & 1 == 0 { 0x4141_4141_4141_4141 } else { draw.next() },
                                rcx: count,
                                rsi: middle - 0x20 + draw.next() % 0x40,
                                rdi: middle - 0x20 + draw.next() % 0x40,
                                status: if round & 1 == 0 { 0 } else { 0x8d5 },
                            };
                            check(&mut rig, &m, opcode, n, down, rep, narrow);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn overlapping_copies_go_element_by_element() {
    let mut rig = Rig::new(Mode::Long);
    let mut draw = Draw::new(11);
    for n in [1usize, 2, 4, 8] {
        for distance in -17i64..=17 {
            for down in [false, true] {
                let memory: Vec<u8> = (0..SPAN).map(|_| draw.next() as u8).collect();
                let rsi = DATA + 0x8000;
                let rdi = rsi.wrapping_add(distance as u64);
                let m = Machine { memory, rax: 0, rcx: 1500, rsi, rdi, status: 0 };
                check(&mut rig, &m, 0xa4, n, down, 0xf3, false);
            }
        }
    }
}

#[test]
fn a_fault_in_the_middle_stops_at_its_iteration() {
    let page = DATA + 0x4000;
    for (opcode, n) in [(0xa4u8, 1u64), (0xa4, 8), (0xaa, 4), (0xac, 2), (0xae, 1), (0xa6, 4)] {
        let mut rig = Rig::new(Mode::Long);
        rig.write(DATA, &[0; SPAN]);
        rig.unmap(page);
        let start = page - 100 * n;
        rig.set(Gpr::Rsi, if opcode == 0xac { start } else { DATA });
        rig.set(Gpr::Rdi, if opcode == 0xac { DATA } else { start });
        rig.set(Gpr::Rcx, 500);
        rig.set_flags(Rflags::STATUS, 0x8d5);
        let bytes = code(opcode, n as usize, 0xf3, false);
        let rip = rig.cpu().rip();
        let r = rig.complete(&bytes);
        assert!(matches!(r, Err(Stop::Exception(Exception { vector: Vector::Pf, .. }))), "{r:?}");
        assert_eq!(rig.cpu().fault_gva.0, page);
        assert_eq!(rig.cpu().rip(), rip);
        assert_eq!(rig.get(Gpr::Rcx), 400, "{bytes:x?}");
        let moved = if opcode == 0xac { rig.get(Gpr::Rsi) } else { rig.get(Gpr::Rdi) };
        assert_eq!(moved, page, "{bytes:x?}");
        // SDM vol. 2, REP: the flags are those before the instruction.
        assert_eq!(rig.flags() & 0x8d5, 0x8d5, "{bytes:x?}");
    }
}

#[test]
fn sixteen_bit_indices_wrap() {
    let mut rig = Rig::new(Mode::Real);
    rig.write(DATA, &vec![0x55; SPAN]);
    rig.set(Gpr::Rax, 0xaa);
    rig.set(Gpr::Rdi, 0xdead_fff0);
    rig.set(Gpr::Rcx, 0xbeef_0020);
    rig.complete(&[0xf3, 0xaa]).unwrap();
    assert_eq!(rig.get(Gpr::Rdi), 0xdead_0010);
    assert_eq!(rig.get(Gpr::Rcx), 0xbeef_0000);
    let mut m = vec![0; SPAN];
    rig.read(DATA, &mut m);
    assert!(m[..16].iter().chain(&m[0xfff0..]).all(|b| *b == 0xaa));
    assert!(m[16..0xfff0].iter().all(|b| *b == 0x55));
}

#[test]
fn an_override_moves_the_source_only() {
    let mut rig = Rig::new(Mode::Real);
    // SS:SI to ES:DI.
    rig.write(0x3_0010, b"ss");
    rig.write(DATA + 0x10, b"ds");
    rig.set(Gpr::Rsi, 0x10);
    rig.set(Gpr::Rdi, 0x20);
    rig.step(&[0x36, 0xa5]).unwrap();
    let mut b = [0; 2];
    rig.read(DATA + 0x20, &mut b);
    assert_eq!(&b, b"ss");
}

#[test]
fn a_long_rep_counts_as_one_instruction() {
    let mut rig = Rig::new(Mode::Long);
    rig.set(Gpr::Rax, 0x77);
    rig.set(Gpr::Rdi, 0x8_0000);
    rig.set(Gpr::Rcx, 0x10_0000);
    // rep stosb; nop
    assert_eq!(rig.run(&[0xf3, 0xaa, 0x90], 2), Exit::Bound);
    assert_eq!(rig.cpu().hot.retired, 2);
    assert_eq!(rig.cpu().rip(), CODE + 3);
    assert_eq!(rig.get(Gpr::Rcx), 0);
    assert_eq!(rig.cpu().hot.rep_iterations, 0x10_0000);
    let mut b = [0; 2];
    rig.read(0x17_ffff, &mut b);
    assert_eq!(b, [0x77, 0]);
}

#[test]
fn single_step_sees_each_iteration() {
    let mut rig = Rig::new(Mode::Long);
    rig.processor.vcpu.debug.single_step = true;
    rig.set(Gpr::Rdi, DATA);
    rig.set(Gpr::Rcx, 5);
    let mut exit = rig.run(&[0xf3, 0xaa, 0x90], 100);
    for left in (0..5).rev() {
        assert!(matches!(exit, Exit::Debug { exception: 1, .. }), "{exit:?}");
        assert_eq!(rig.get(Gpr::Rcx), left);
        assert_eq!(rig.cpu().rip(), CODE + if left == 0 { 2 } else { 0 });
        exit = rig.processor.run(Some(100));
    }
    assert_eq!(rig.cpu().hot.retired, 2);
}

#[test]
fn a_device_as_source() {
    let mut rig = Rig::new(Mode::Long);
    rig.set(Gpr::Rsi, MMIO + 4);
    rig.set(Gpr::Rdi, DATA);
    rig.set(Gpr::Rcx, 5);
    let mut exit = rig.run(&[0xf3, 0xa5, 0x90], 2);
    for n in 0..5u64 {
        assert_eq!(exit, Exit::MmioRead { gpa: MMIO + 4 + 4 * n, len: 4 });
        assert_eq!(rig.get(Gpr::Rcx), 5 - n);
        rig.processor.complete_io(&(0x1000 + n as u32).to_le_bytes());
        exit = rig.processor.run(Some(2));
    }
    assert!(matches!(exit, Exit::Bound), "{exit:?}");
    for n in 0..5u64 {
        let mut b = [0; 4];
        rig.read(DATA + 4 * n, &mut b);
        assert_eq!(u32::from_le_bytes(b), 0x1000 + n as u32);
    }
}

#[test]
fn a_device_as_destination() {
    let mut rig = Rig::new(Mode::Long);
    rig.set(Gpr::Rax, 0x1234);
    rig.set(Gpr::Rdi, MMIO);
    rig.set(Gpr::Rcx, 3);
    let mut exit = rig.run(&[0xf3, 0x66, 0xab, 0x90], 2);
    for n in 0..3u64 {
        let data = [0x34, 0x12, 0, 0, 0, 0, 0, 0];
        assert_eq!(exit, Exit::MmioWrite { gpa: MMIO + 2 * n, data, len: 2 });
        exit = rig.processor.run(Some(2));
    }
    assert!(matches!(exit, Exit::Bound), "{exit:?}");
}

#[test]
fn from_memory_into_a_device_and_past_the_end() {
    // The last page of memory, then nothing: a copy that runs from one into the other.
    let mut rig = Rig::new(Mode::Long);
    rig.write(RAM - 4, &[1, 2, 3, 4]);
    rig.set(Gpr::Rsi, RAM - 4);
    rig.set(Gpr::Rdi, DATA);
    rig.set(Gpr::Rcx, 5);
    let exit = rig.run(&[0xf3, 0xa4, 0x90], 2);
    assert_eq!(exit, Exit::MmioRead { gpa: RAM, len: 1 });
    assert_eq!(rig.get(Gpr::Rcx), 1);
    rig.processor.complete_io(&[5]);
    rig.processor.run(Some(2));
    let mut b = [0; 5];
    rig.read(DATA, &mut b);
    assert_eq!(b, [1, 2, 3, 4, 5]);
}
