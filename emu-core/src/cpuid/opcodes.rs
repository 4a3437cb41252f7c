//! Every opcode, systematically: for the tests that compare what is decoded, what is offered, and what is executed.
//! Not random instructions (`softkvm_tests::fuzz`) and not iced's list of codes: the opcode space itself, assigned or not.

use decoder::CpuMode;

/// What follows an opcode: ModRM with a SIB byte where it has one, then bytes for displacements and immediates.
pub(super) type Tail = [u8; 8];

/// A ModRM byte and what follows it. The memory forms are `[rBX]` (16-bit: `[BP+DI]`), one with SIB `[rBX+rCX]`, and one
/// by displacement.
fn tail(modrm: u8) -> Tail {
    let sib = 0x0b;
    match (modrm >> 6, modrm & 7) {
        (0, 4) => [modrm, sib, 1, 0, 0, 0, 0, 0],
        (0, 5) => [modrm, 0x10, 2, 0, 0, 1, 0, 0],
        _ => [modrm, 1, 0, 0, 0, 0, 0, 0],
    }
}

/// Each `reg` with three memory operands and with each register.
fn every_modrm() -> Vec<Tail> {
    let memory = (0..8).flat_map(|reg| [3, 4, 5].map(|rm| tail(reg << 3 | rm)));
    let registers = (0xc0..=0xff).map(tail);
    memory.chain(registers).collect()
}

/// The forms of a VEX or EVEX opcode: memory operands and a register; each `reg` where it extends the opcode (groups 12
/// to 15 and 17, and those of prefetches by gather).
fn vector_modrm(opcode: u8) -> Vec<Tail> {
    let group = matches!(opcode, 0x71..=0x73 | 0xae | 0xc6 | 0xc7 | 0xf3 | 0x01 | 0x12);
    let regs = if group { 0..8 } else { 2..3 };
    regs.flat_map(|reg| [3, 4, 5, 0xc1].map(|rm| tail(reg << 3 | rm))).collect()
}

/// Calls `f` with the first bytes of every legacy, VEX, EVEX and XOP opcode of a code size, each with its prefixes and
/// forms.
pub(super) fn every(mode: CpuMode, mut f: impl FnMut(&[u8])) {
    legacy(mode, &mut f);
    three_d_now(&mut f);
    vex(mode, 0xc4, &mut f);
    vex(mode, 0x8f, &mut f);
    vex2(&mut f);
    evex(mode, &mut f);
}

fn legacy(mode: CpuMode, f: &mut impl FnMut(&[u8])) {
    const MAPS: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    const PREFIXES: [&[u8]; 8] =
        [&[], &[0x66], &[0xf3], &[0xf2], &[0x66, 0xf3], &[0x66, 0xf2], &[0x67], &[0x67, 0x66]];
    let rex: &[&[u8]] = if mode == CpuMode::Bits64 { &[&[], &[0x48]] } else { &[&[]] };
    let forms = every_modrm();
    let mut bytes = Vec::new();
    for map in MAPS {
        for prefix in PREFIXES {
            for rex in rex {
                for opcode in 0..=0xffu8 {
                    for form in &forms {
                        bytes.clear();
                        bytes.extend_from_slice(prefix);
                        bytes.extend_from_slice(rex);
                        bytes.extend_from_slice(map);
                        bytes.push(opcode);
                        bytes.extend_from_slice(form);
                        f(&bytes);
                    }
                }
            }
        }
    }
}

fn three_d_now(f: &mut impl FnMut(&[u8])) {
    for suffix in 0..=0xff {
        f(&[0x0f, 0x0f, 0xc1, suffix]);
        f(&[0x0f, 0x0f, 0x03, suffix]);
    }
}

/// C4H, maps 0 to 31, or 8FH (XOP, maps 8 to 31): W, L, pp, and vvvv of no operand or of a register.
fn vex(mode: CpuMode, first: u8, f: &mut impl FnMut(&[u8])) {
    let short = [tail(0xc1), tail(0x03)];
    for map in 0..32u8 {
        let known = if first == 0xc4 { (1..=3).contains(&map) } else { (8..=10).contains(&map) };
        for opcode in 0..=0xffu8 {
            let forms = if known { vector_modrm(opcode) } else { short.to_vec() };
            for last in 0..=0xff_u8 {
                // The lowest bit of vvvv is always set; the three above all are, or none.
                if last >> 3 & 1 == 0 || !matches!(last >> 4 & 7, 0 | 7) || (!known && last & 0x84 != 0) {
                    continue;
                }
                for form in &forms {
                    let mut bytes = [first, 0xe0 | map, last, opcode, 0, 0, 0, 0, 0, 0, 0, 0];
                    bytes[4..].copy_from_slice(form);
                    f(&bytes);
                    // VSIB needs 32-bit addresses.
                    if mode == CpuMode::Bits16 && form[0] & 0xc7 == 4 && first == 0xc4 {
                        f(&[&[0x67], &bytes[..]].concat());
                    }
                }
            }
        }
    }
}

/// C5H: the two-byte form, map 1.
fn vex2(f: &mut impl FnMut(&[u8])) {
    for opcode in 0..=0xffu8 {
        for last in [0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff, 0xc8, 0xcd] {
            for form in [tail(0xc1), tail(0x03)] {
                f(&[&[0xc5, last, opcode], &form[..]].concat());
            }
        }
    }
}

/// 62H, maps 0 to 7: W, pp, vvvv, L'L, and b, z and a mask in those combinations that differ.
fn evex(mode: CpuMode, f: &mut impl FnMut(&[u8])) {
    let short = [tail(0xc1), tail(0x03)];
    for map in 0..8u8 {
        let known = matches!(map, 1 | 2 | 3 | 5 | 6);
        for opcode in 0..=0xffu8 {
            let forms = if known { vector_modrm(opcode) } else { short.to_vec() };
            for p1 in [0x0c, 0x7c] {
                for wpp in [0, 1, 2, 3, 0x80, 0x81, 0x82, 0x83] {
                    for length in 0..4u8 {
                        for rest in [0x08, 0x09, 0x89, 0x18, 0x19] {
                            for form in &forms {
                                let p2 = length << 5 | rest;
                                let mut bytes =
                                    [0x62, 0xf0 | map, p1 | wpp, p2, opcode, 0, 0, 0, 0, 0, 0, 0, 0];
                                bytes[5..].copy_from_slice(form);
                                f(&bytes);
                                if mode == CpuMode::Bits16 && form[0] & 0xc7 == 4 && rest == 9 {
                                    f(&[&[0x67], &bytes[..]].concat());
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
