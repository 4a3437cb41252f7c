//! The XSAVE image of a case: x87, vectors, opmasks, PKRU, at the host's offsets in the standard format (SDM vol. 1,
//! 13.4). The numbers come from `values`.

use super::values::{self, Elements, chance, choose};
use crate::case::XSAVE;
use crate::coverage::host_cpuid;
use fastrand::Rng;

/// Offset of XSTATE_BV.
const XSTATE_BV: usize = 512;
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;

/// Where the host's components are.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// XCR0's bits for what the host has, of x87 to PKRU.
    pub components: u64,
    avx: Option<usize>,
    opmask: Option<usize>,
    zmm_hi256: Option<usize>,
    hi16_zmm: Option<usize>,
    pkru: Option<usize>,
}

impl Image {
    /// This host's.
    pub fn of_host() -> Image {
        let main = host_cpuid(0xd, 0);
        let supported = u64::from(main[0]) | u64::from(main[3]) << 32;
        // PKRU's component is usable only where the operating system has set CR4.PKE.
        let ospke = host_cpuid(7, 0)[2] >> 4 & 1 != 0;
        let mut components = 3;
        let mut at = |n: u32, size: usize| {
            if supported >> n & 1 == 0 || n == 9 && !ospke {
                return None;
            }
            let offset = host_cpuid(0xd, n)[1] as usize;
            let fits = offset >= 576 && offset + size <= XSAVE;
            components |= u64::from(fits) << n;
            fits.then_some(offset)
        };
        let (avx, opmask, zmm_hi256) = (at(2, 256), at(5, 64), at(6, 512));
        let (hi16_zmm, pkru) = (at(7, 1024), at(9, 8));
        Image { components, avx, opmask, zmm_hi256, hi16_zmm, pkru }
    }

    /// The pieces of a vector register: offset in the image, offset in the register, bytes.
    fn pieces(&self, n: usize) -> [Option<(usize, usize, usize)>; 3] {
        match n {
            0..16 => [
                Some((XMM + 16 * n, 0, 16)),
                self.avx.map(|at| (at + 16 * n, 16, 16)),
                self.zmm_hi256.map(|at| (at + 32 * n, 32, 32)),
            ],
            16..32 => [self.hi16_zmm.map(|at| (at + 64 * (n - 16), 0, 64)), None, None],
            _ => [None; 3],
        }
    }

    /// A vector register's contents, as if all components were in use.
    #[cfg(test)]
    pub fn vector(&self, image: &[u8; XSAVE], n: usize) -> [u8; 64] {
        let mut value = [0; 64];
        for (at, from, len) in self.pieces(n).into_iter().flatten() {
            value[from..from + len].copy_from_slice(&image[at..at + len]);
        }
        value
    }

    /// Sets a vector register.
    pub fn set_vector(&self, image: &mut [u8; XSAVE], n: usize, value: &[u8; 64]) {
        for (at, from, len) in self.pieces(n).into_iter().flatten() {
            image[at..at + len].copy_from_slice(&value[from..from + len]);
        }
    }

    /// Sets an opmask register.
    pub fn set_opmask(&self, image: &mut [u8; XSAVE], n: usize, value: u64) {
        if let Some(at) = self.opmask {
            image[at + 8 * (n & 7)..][..8].copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Sets the physical x87 data register behind ST(n), and so MMn if TOP is 0.
    pub fn set_st(&self, image: &mut [u8; XSAVE], n: usize, value: &[u8]) {
        let len = value.len().min(10);
        image[ST + 16 * (n & 7)..][..len].copy_from_slice(&value[..len]);
    }

    /// Which components are in use.
    pub fn set_in_use(&self, image: &mut [u8; XSAVE], components: u64) {
        image[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&(components & self.components).to_le_bytes());
    }

    /// An image: noise in the vectors and opmasks, numbers in the x87 stack, all of it well-formed.
    pub fn random(&self, rng: &mut Rng) -> Box<[u8; XSAVE]> {
        let mut image = Box::new([0; XSAVE]);
        x87(rng, &mut image);
        image[MXCSR..MXCSR + 4].copy_from_slice(&u32::from(mxcsr(rng)).to_le_bytes());
        // MXCSR_MASK: all bits that there are.
        image[28..30].copy_from_slice(&[0xff, 0xff]);
        values::noise(rng, &mut image[XMM..XMM + 256]);
        for (at, len) in [(self.avx, 256), (self.zmm_hi256, 512), (self.hi16_zmm, 1024)] {
            if let Some(at) = at {
                values::noise(rng, &mut image[at..at + len]);
            }
        }
        if let Some(at) = self.opmask {
            for n in 0..8 {
                let value = opmask(rng);
                image[at + 8 * n..at + 8 * n + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        if let Some(at) = self.pkru {
            // Key 0 stays open: all pages have it.
            let pkru = rng.u32(..) & !3;
            image[at..at + 4].copy_from_slice(&pkru.to_le_bytes());
        }
        let in_use = match rng.u32(..20) {
            0 => rng.u64(..),
            1 => !(1 << choose(rng, &[0, 1, 2, 5, 6, 7, 9])),
            _ => u64::MAX,
        };
        self.set_in_use(&mut image, in_use);
        image
    }
}

/// An opmask: random, sparse, full, or empty.
pub fn opmask(rng: &mut Rng) -> u64 {
    match rng.u32(..8) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << rng.u32(..64),
        3 => u64::MAX >> rng.u32(..64),
        _ => rng.u64(..),
    }
}

/// MXCSR: mostly its initial value.
pub fn mxcsr(rng: &mut Rng) -> u16 {
    match rng.u32(..10) {
        0..5 => 0x1f80,
        // Another rounding mode, with flags set.
        5..7 => 0x1f80 | (rng.u16(..4) << 13) | rng.u16(..64),
        // Denormals are zeros, results flushed.
        7 => 0x1f80 | (rng.u16(..4) << 13) | choose(rng, &[0x8000, 0x0040, 0x8040]),
        // Exceptions.
        8 => rng.u16(..),
        _ => 0x1f80 & !(0x80 << rng.u32(..6)),
    }
}

/// FCW: mostly its initial value.
pub fn fcw(rng: &mut Rng) -> u16 {
    match rng.u32(..10) {
        0..5 => 0x37f,
        5..7 => 0x37f | (rng.u16(..4) << 10),
        7 => 0x7f | (choose(rng, &[0, 2, 3]) << 8) | (rng.u16(..4) << 10),
        8 => (rng.u16(..) & 0x0f3f) | 0x40,
        _ => 0x37f & !(1 << rng.u32(..6)),
    }
}

/// FSW under a control word: ES and B say whether an unmasked exception is pending.
fn fsw(rng: &mut Rng, fcw: u16) -> u16 {
    let mut fsw = rng.u16(..) & 0x7f7f;
    match rng.u32(..8) {
        0 => {}
        1..4 => fsw &= !0x7f,
        _ => fsw &= !(!fcw & 0x3f),
    }
    if fsw & !fcw & 0x3f != 0 {
        fsw |= 0x8080;
    }
    if chance(rng, 40) {
        fsw &= !0x3800;
    }
    fsw
}

fn x87(rng: &mut Rng, image: &mut [u8; XSAVE]) {
    let fcw = fcw(rng);
    let fsw = fsw(rng, fcw);
    let tags = match rng.u32(..8) {
        0..5 => 0xff,
        5 => 0,
        _ => rng.u8(..),
    };
    let opcode = rng.u16(..0x800);
    // Pointers are linear addresses of user mode.
    let pointer = |rng: &mut Rng| {
        if chance(rng, 50) { rng.u32(..).into() } else { rng.u64(..) >> 17 }
    };
    let (fip, fdp): (u64, u64) = (pointer(rng), pointer(rng));
    image[0..2].copy_from_slice(&fcw.to_le_bytes());
    image[2..4].copy_from_slice(&fsw.to_le_bytes());
    image[4] = tags;
    image[6..8].copy_from_slice(&opcode.to_le_bytes());
    image[8..16].copy_from_slice(&fip.to_le_bytes());
    image[16..24].copy_from_slice(&fdp.to_le_bytes());
    for n in 0..8 {
        let at = ST + 16 * n;
        image[at..at + 10].copy_from_slice(&values::extended(rng));
    }
}

/// A legacy region (FXSAVE's 512 bytes) that FXRSTOR and XRSTOR take, but for MXCSR sometimes.
pub fn legacy_region(rng: &mut Rng) -> [u8; 512] {
    let mut image = [0; XSAVE];
    x87(rng, &mut image);
    let mut mxcsr = u32::from(mxcsr(rng));
    if chance(rng, 5) {
        mxcsr |= 0x1_0000 << rng.u32(..16);
    }
    image[MXCSR..MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
    image[28..30].copy_from_slice(&[0xff, 0xff]);
    values::fill(rng, Elements::Float(4), &mut image[XMM..XMM + 256]);
    let mut legacy = [0; 512];
    legacy.copy_from_slice(&image[..512]);
    legacy
}

/// An x87 environment of 14 or 28 bytes (SDM vol. 1, 8.1.10).
pub fn environment(rng: &mut Rng, wide: bool) -> Vec<u8> {
    let fcw = fcw(rng);
    let fsw = fsw(rng, fcw);
    let tags = if chance(rng, 50) { 0 } else { rng.u16(..) };
    let mut words = [fcw, fsw, tags, rng.u16(..), rng.u16(..), rng.u16(..), rng.u16(..)];
    if chance(rng, 10) {
        words[0] = rng.u16(..);
        words[1] = rng.u16(..);
    }
    let mut bytes = Vec::with_capacity(28);
    for word in words {
        bytes.extend_from_slice(&word.to_le_bytes());
        if wide {
            bytes.extend_from_slice(&rng.u16(..).to_le_bytes());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_well_formed() {
        let image = Image::of_host();
        let mut rng = Rng::with_seed(3);
        for _ in 0..1000 {
            let bytes = image.random(&mut rng);
            let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            let (fcw, fsw) = (word(0), word(2));
            assert_eq!(fsw & 0x80 != 0, fsw & !fcw & 0x3f != 0, "ES follows the flags: {fcw:x} {fsw:x}");
            assert_eq!(fsw >> 15, fsw >> 7 & 1, "B is ES");
            assert_eq!(word(26), 0, "MXCSR's upper half is reserved");
            let mut in_use = [0; 8];
            in_use.copy_from_slice(&bytes[512..520]);
            assert_eq!(u64::from_le_bytes(in_use) & !image.components, 0);
            assert_eq!(bytes[520..576], [0; 56], "the rest of the header is zero");
            if let Some(at) = image.pkru {
                assert_eq!(bytes[at] & 3, 0, "key 0 is open");
            }
        }
    }

    #[test]
    fn vectors_are_written_where_they_are_read() {
        let layout = Image::of_host();
        let mut image = [0; XSAVE];
        let mut value = [0; 64];
        values::noise(&mut Rng::with_seed(4), &mut value);
        for n in 0..32 {
            layout.set_vector(&mut image, n, &value);
            let got = layout.vector(&image, n);
            let len = if layout.zmm_hi256.is_some() {
                64
            } else if layout.avx.is_some() {
                32
            } else {
                16
            };
            if n < 16 || layout.hi16_zmm.is_some() {
                assert_eq!(got[..len], value[..len], "{n}");
            }
        }
    }
}
