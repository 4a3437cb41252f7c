//! Numbers for operands: random ones, and those at which instructions change their mind. Where they are put is for
//! `image` (vectors, x87), `memory` and `implicit`.

use fastrand::Rng;

/// What the elements of a value are taken for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Elements {
    /// Integers of so many bytes (1, 2, 4, 8).
    Integer(usize),
    /// Floating-point numbers of so many bytes (2, 4, 8).
    Float(usize),
}

/// Half-precision numbers, and bfloat16's at their edges.
const HALVES: [u16; 20] = [
    0, 0x8000, 0x3c00, 0xbc00, 0x4000, 0x3c01, 0x7bff, 0xfbff, 0x0400, 0x03ff, 0x8001, 0x0001, 0x7c00,
    0xfc00, 0x7e00, 0x7c01, 0xfe00, 0x3f80, 0x7f80, 0x7fc0,
];

/// Single-precision numbers: zeros, ones, neighbours, edges of integer conversions, denormals, infinities, NaNs.
const SINGLES: [u32; 30] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x3f80_0001,
    0x3f7f_ffff,
    0x3f00_0000,
    0x3fc0_0000,
    0x4000_0000,
    0x4b00_0000,
    0x4f00_0000,
    0xcf00_0000,
    0x4f7f_ffff,
    0x4f80_0000,
    0x5f00_0000,
    0xdf00_0000,
    0x5f80_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x0080_0000,
    0x007f_ffff,
    0x8000_0001,
    0x0000_0001,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0000,
    0x7f80_0001,
    0xffbf_ffff,
    0x7fc1_2345,
];

/// Double-precision numbers, likewise.
const DOUBLES: [u64; 30] = [
    0,
    0x8000_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x3ff0_0000_0000_0001,
    0x3fef_ffff_ffff_ffff,
    0x3fe0_0000_0000_0000,
    0x3ff8_0000_0000_0000,
    0x4000_0000_0000_0000,
    0x4330_0000_0000_0000,
    0x41df_ffff_ffc0_0000,
    0x41e0_0000_0000_0000,
    0xc1e0_0000_0000_0000,
    0x41ef_ffff_ffe0_0000,
    0x43e0_0000_0000_0000,
    0xc3e0_0000_0000_0000,
    0x43f0_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x47ef_ffff_e000_0000,
    0x0010_0000_0000_0000,
    0x000f_ffff_ffff_ffff,
    0x3690_0000_0000_0000,
    0x0000_0000_0000_0001,
    0x8000_0000_0000_0001,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0xfff8_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0xfff7_ffff_ffff_ffff,
];

/// Extended-precision numbers: sign and exponent, significand. Some have encodings that the x87 no longer supports.
const EXTENDED: [(u16, u64); 20] = [
    (0, 0),
    (0x8000, 0),
    (0x3fff, 1 << 63),
    (0xbfff, 1 << 63),
    (0x3fff, (1 << 63) | 1),
    (0x4000, 0xc90f_daa2_2168_c235),
    (0x3ffe, 1 << 63),
    (0x401e, 1 << 63),
    (0x403e, 1 << 63),
    (0x403d, u64::MAX),
    (0x7ffe, u64::MAX),
    (1, 1 << 63),
    (0, 1 << 63),
    (0, 1),
    (0x7fff, 1 << 63),
    (0xffff, 1 << 63),
    (0x7fff, 3 << 62),
    (0x7fff, (1 << 63) | 1),
    (0x7fff, 1),
    (0x3fff, 1),
];

fn of<T: Copy>(rng: &mut Rng, all: &[T]) -> T {
    all[rng.usize(..all.len())]
}

/// One of some values.
pub fn choose<T: Copy>(rng: &mut Rng, all: &[T]) -> T {
    of(rng, all)
}

/// True in so many of a hundred times.
pub fn chance(rng: &mut Rng, percent: u32) -> bool {
    rng.u32(..100) < percent
}

/// An integer of so many bytes: random, small, or at an edge.
pub fn integer(rng: &mut Rng, bytes: usize) -> u64 {
    let bits = 8 * bytes.clamp(1, 8) as u32;
    let mask = u64::MAX >> (64 - bits);
    let value = match rng.u32(..10) {
        0..4 => rng.u64(..),
        4 => rng.u64(..16),
        5 => rng.u64(..16).wrapping_neg(),
        6 => 1u64 << (bits - 1),
        7 => ((1u64 << (bits - 1)) - 1).wrapping_add(rng.u64(..2)),
        8 => 1u64 << rng.u32(..bits),
        _ => choose(rng, &[0, 1, u64::MAX, u64::MAX - 1, 0x8080_8080_8080_8080, 0x7f7f_7f7f_7f7f_7f7f]),
    };
    value & mask
}

/// A floating-point number of so many bytes: random, near one, or special.
pub fn float(rng: &mut Rng, bytes: usize) -> u64 {
    let special = chance(rng, 45);
    let plain = chance(rng, 60);
    match bytes {
        2 if special => of(rng, &HALVES).into(),
        2 => rng.u16(..).into(),
        4 if special => of(rng, &SINGLES).into(),
        // Exponents close enough for sums to keep something.
        4 if plain => (rng.u32(..) & 0x807f_ffff | (rng.u32(118..140) << 23)).into(),
        4 => rng.u32(..).into(),
        _ if special => of(rng, &DOUBLES),
        _ if plain => rng.u64(..) & 0x800f_ffff_ffff_ffff | (rng.u64(1008..1040) << 52),
        _ => rng.u64(..),
    }
}

/// An x87 number: significand, then sign and exponent.
pub fn extended(rng: &mut Rng) -> [u8; 10] {
    let (exponent, significand) = match rng.u32(..10) {
        0..4 => of(rng, &EXTENDED),
        4..8 => (rng.u16(..) & 0x8000 | rng.u16(0x3ff0..0x4010), rng.u64(..) | 1 << 63),
        8 => (rng.u16(..), rng.u64(..) | 1 << 63),
        _ => (rng.u16(..), rng.u64(..)),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&significand.to_le_bytes());
    bytes[8..].copy_from_slice(&exponent.to_le_bytes());
    bytes
}

/// One element.
pub fn element(rng: &mut Rng, elements: Elements) -> u64 {
    match elements {
        Elements::Integer(bytes) => integer(rng, bytes),
        Elements::Float(bytes) => float(rng, bytes),
    }
}

/// Random bytes.
pub fn noise(rng: &mut Rng, out: &mut [u8]) {
    let mut chunks = out.chunks_exact_mut(8);
    for chunk in &mut chunks {
        chunk.copy_from_slice(&rng.u64(..).to_le_bytes());
    }
    for byte in chunks.into_remainder() {
        *byte = rng.u8(..);
    }
}

/// Elements, sometimes some of them equal, sometimes all.
pub fn fill(rng: &mut Rng, elements: Elements, out: &mut [u8]) {
    let size = match elements {
        Elements::Integer(n) | Elements::Float(n) => n.clamp(1, 8),
    };
    let repeat = match rng.u32(..8) {
        0 => 100,
        1 => 60,
        _ => 5,
    };
    let mut last = element(rng, elements).to_le_bytes();
    for chunk in out.chunks_mut(size) {
        if !chance(rng, repeat) {
            last = element(rng, elements).to_le_bytes();
        }
        let len = chunk.len();
        chunk.copy_from_slice(&last[..len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_fit() {
        let mut rng = Rng::with_seed(1);
        for bytes in [1, 2, 4] {
            for _ in 0..1000 {
                assert!(integer(&mut rng, bytes) < 1 << (8 * bytes));
                assert!(float(&mut rng, bytes.max(2)) < 1 << (8 * bytes.max(2)));
            }
        }
    }

    #[test]
    fn fill_leaves_nothing_out() {
        let mut rng = Rng::with_seed(2);
        let mut seen = [false; 13];
        for _ in 0..100 {
            let mut out = [0; 13];
            fill(&mut rng, Elements::Integer(4), &mut out);
            out.iter().zip(&mut seen).for_each(|(byte, seen)| *seen |= *byte != 0);
        }
        assert_eq!(seen, [true; 13]);
    }
}
