//! Where things stand in an XSAVE image in the standard format, at the host's offsets: registers by name, components by
//! number. Which components are in use and what initial state means is here; what is compared is `compare`'s.

use crate::case::XSAVE;
use std::sync::LazyLock;

/// Component 0: x87 state.
pub const X87: u32 = 0;
/// Component 1: XMM0 to XMM15 and MXCSR.
pub const SSE: u32 = 1;
/// Component 2: the upper halves of YMM0 to YMM15.
pub const AVX: u32 = 2;
/// Component 5: K0 to K7.
pub const OPMASK: u32 = 5;
/// Component 6: the upper halves of ZMM0 to ZMM15.
pub const ZMM_HI256: u32 = 6;
/// Component 7: ZMM16 to ZMM31.
pub const HI16_ZMM: u32 = 7;
/// Component 9: PKRU.
pub const PKRU: u32 = 9;

/// FCW after FNINIT (SDM vol. 1, 13.6).
pub const FCW_INITIAL: u16 = 0x37f;
/// MXCSR after reset (SDM vol. 1, 13.6).
pub const MXCSR_INITIAL: u32 = 0x1f80;

/// Offset of FCW.
pub const FCW: usize = 0;
/// Offset of FSW.
pub const FSW: usize = 2;
/// Offset of the abridged tag word, one byte.
pub const FTW: usize = 4;
/// Offset of FOP.
pub const FOP: usize = 6;
/// Offset of FIP, 64 bits wide.
pub const FIP: usize = 8;
/// Offset of FDP, 64 bits wide.
pub const FDP: usize = 16;
/// Offset of MXCSR.
pub const MXCSR: usize = 24;
/// Offset of ST0; 16 bytes each, of which 10 count.
pub const ST: usize = 32;
/// Offset of XMM0.
pub const XMM: usize = 160;
/// Offset of XSTATE_BV.
pub const XSTATE_BV: usize = 512;

/// An XSAVE image.
pub type Image = [u8; XSAVE];

/// Offset and size of a component in the standard format; none where the host has no such component.
pub fn component(number: u32) -> Option<(usize, usize)> {
    static TABLE: LazyLock<[Option<(usize, usize)>; 64]> = LazyLock::new(|| {
        let mut table = [None; 64];
        table[X87 as usize] = Some((0, 160));
        table[SSE as usize] = Some((XMM, 256));
        // SDM vol. 1, 13.2: sub-leaf n of leaf 0DH gives component n's size in EAX and offset in EBX.
        let cpuid = core::arch::x86_64::__cpuid_count;
        let offered = if cpuid(0, 0).eax >= 0xd { cpuid(0xd, 0).eax } else { 0 };
        for number in (2..32).filter(|n| offered >> n & 1 != 0) {
            let leaf = cpuid(0xd, number);
            let (offset, size) = (leaf.ebx as usize, leaf.eax as usize);
            if offset >= 576 && size > 0 && offset + size <= XSAVE {
                table[number as usize] = Some((offset, size));
            }
        }
        table
    });
    *TABLE.get(number as usize)?
}

/// The components that the host has, as bits of XSTATE_BV.
pub fn components() -> u64 {
    (0..64).filter(|&n| component(n).is_some()).fold(0, |bits, n| bits | 1 << n)
}

/// Where a component begins in the compacted format, if exactly `present` are there (SDM vol. 1, 13.4.3).
pub fn compact_offset(present: u64, number: u32) -> Option<usize> {
    let mut at = 576;
    for n in 2..=number {
        if present >> n & 1 == 0 {
            continue;
        }
        let (_, size) = component(n)?;
        if core::arch::x86_64::__cpuid_count(0xd, n).ecx & 2 != 0 {
            at = (at + 63) & !63;
        }
        if n == number {
            return Some(at);
        }
        at += size;
    }
    None
}

/// The image of a machine that nobody has used: all components in their initial state, their bits clear.
pub fn initial() -> Box<Image> {
    let mut image = Box::new([0; XSAVE]);
    put(&mut image, FCW, &FCW_INITIAL.to_le_bytes());
    put(&mut image, MXCSR, &MXCSR_INITIAL.to_le_bytes());
    image
}

/// `N` bytes of an image.
pub fn get<const N: usize>(image: &Image, at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&image[at..at + N]);
    bytes
}

/// Replaces bytes of an image.
pub fn put(image: &mut Image, at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// XSTATE_BV.
pub fn xstate_bv(image: &Image) -> u64 {
    u64::from_le_bytes(get(image, XSTATE_BV))
}

/// Sets XSTATE_BV.
pub fn set_xstate_bv(image: &mut Image, bits: u64) {
    put(image, XSTATE_BV, &bits.to_le_bytes());
}

/// The parts of ZMM`n`: component, offset in the image, bytes. The first is the least significant.
pub fn zmm_parts(n: usize) -> Vec<(u32, usize, usize)> {
    if n >= 16 {
        return component(HI16_ZMM).map(|(at, _)| (HI16_ZMM, at + (n - 16) * 64, 64)).into_iter().collect();
    }
    let mut parts = vec![(SSE, XMM + n * 16, 16)];
    if let Some((at, _)) = component(AVX) {
        parts.push((AVX, at + n * 16, 16));
        parts.extend(component(ZMM_HI256).map(|(at, _)| (ZMM_HI256, at + n * 32, 32)));
    }
    parts
}

/// ZMM`n` as the image's bytes have it, whatever XSTATE_BV says; zero where the host has no such part.
pub fn zmm(image: &Image, n: usize) -> [u8; 64] {
    let mut value = [0; 64];
    let mut to = 0;
    for (_, at, len) in zmm_parts(n) {
        value[to..to + len].copy_from_slice(&image[at..at + len]);
        to += len;
    }
    value
}

/// Where K`n` is.
pub fn k_offset(n: usize) -> Option<usize> {
    component(OPMASK).map(|(at, _)| at + n * 8)
}

/// K`n` as the image's bytes have it.
pub fn k(image: &Image, n: usize) -> u64 {
    k_offset(n).map_or(0, |at| u64::from_le_bytes(get(image, at)))
}

/// Where PKRU is.
pub fn pkru_offset() -> Option<usize> {
    component(PKRU).map(|(at, _)| at)
}

/// PKRU as the image's bytes have it.
pub fn pkru(image: &Image) -> u32 {
    pkru_offset().map_or(0, |at| u32::from_le_bytes(get(image, at)))
}

/// ST(`i`): 80 bits.
pub fn st(image: &Image, i: usize) -> [u8; 10] {
    get(image, ST + i * 16)
}

/// FSW.TOP.
pub fn top(image: &Image) -> usize {
    (u16::from_le_bytes(get(image, FSW)) >> 11 & 7) as usize
}

/// Whether a component's bytes are those of its initial state (SDM vol. 1, 13.6). MXCSR counts with component 1.
pub fn is_initial(image: &Image, number: u32) -> bool {
    let zero = |at: usize, len: usize| image[at..at + len].iter().all(|&b| b == 0);
    match number {
        X87 => {
            get(image, FCW) == FCW_INITIAL.to_le_bytes()
                && zero(FSW, 3)
                && zero(FOP, MXCSR - FOP)
                && (0..8).all(|i| zero(ST + i * 16, 10))
        }
        SSE => zero(XMM, 256) && get(image, MXCSR) == MXCSR_INITIAL.to_le_bytes(),
        _ => component(number).is_none_or(|(at, len)| zero(at, len)),
    }
}

/// The image with what XSTATE_BV says put into the bytes: a component whose bit is clear gets its initial contents.
/// MXCSR counts if SSE or AVX is in use (SDM vol. 1, 13.7: it is saved and restored with either).
pub fn normalised(image: &Image) -> Box<Image> {
    let mut out = Box::new(*image);
    let bits = xstate_bv(image);
    let unused = |number: u32| bits >> number & 1 == 0;
    if unused(X87) {
        out[..MXCSR].fill(0);
        put(&mut out, FCW, &FCW_INITIAL.to_le_bytes());
        out[ST..XMM].fill(0);
    }
    if unused(SSE) {
        out[XMM..XMM + 256].fill(0);
        if unused(AVX) {
            put(&mut out, MXCSR, &MXCSR_INITIAL.to_le_bytes());
        }
    }
    for number in (2..64).filter(|&n| unused(n)) {
        if let Some((at, len)) = component(number) {
            out[at..at + len].fill(0);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_do_not_overlap() {
        let mut used = vec![false; XSAVE];
        for number in (0..64).filter(|&n| n != X87) {
            let Some((at, len)) = component(number) else { continue };
            for byte in &mut used[at..at + len] {
                assert!(!std::mem::replace(byte, true), "component {number}");
            }
        }
    }

    #[test]
    fn a_clear_bit_is_the_initial_state() {
        let mut image = Box::new([0xa5; XSAVE]);
        set_xstate_bv(&mut image, 0);
        let normal = normalised(&image);
        for number in (0..64).filter(|&n| component(n).is_some()) {
            assert!(!is_initial(&image, number), "component {number}");
            assert!(is_initial(&normal, number), "component {number}");
        }
        assert_eq!(zmm(&normal, 0), [0; 64]);
        // MXCSR is AVX's too.
        set_xstate_bv(&mut image, 1 << AVX);
        assert_eq!(get(&normalised(&image), MXCSR), [0xa5; 4]);
    }
}
