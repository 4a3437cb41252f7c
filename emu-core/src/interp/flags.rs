//! The status flags, computed plainly from operands and result (SDM vol. 1, 3.4.3.1).
//!
//! Each function returns the six status bits of RFLAGS at their places.

use super::operand::Int;
use x86_arch::Rflags;

/// CF.
pub const CF: u64 = Rflags::CF.bits();
/// PF.
pub const PF: u64 = Rflags::PF.bits();
/// AF.
pub const AF: u64 = Rflags::AF.bits();
/// ZF.
pub const ZF: u64 = Rflags::ZF.bits();
/// SF.
pub const SF: u64 = Rflags::SF.bits();
/// OF.
pub const OF: u64 = Rflags::OF.bits();

/// PF of every low byte.
static PARITY: [u8; 256] = {
    let mut t = [0; 256];
    let mut i = 0;
    while i < 256 {
        t[i] = if (i as u8).count_ones() & 1 == 0 { PF as u8 } else { 0 };
        i += 1;
    }
    t
};

/// PF, ZF and SF of a result.
#[inline(always)]
pub fn pzs<T: Int>(r: T) -> u64 {
    let r = r.to_u64();
    PARITY[(r & 0xff) as usize] as u64
        | if r == 0 { ZF } else { 0 }
        | (r >> (T::BITS - 1) & 1) << SF.trailing_zeros()
}

/// After AND, OR, XOR, TEST: CF and OF clear; AF is undefined and cleared, as processors do.
#[inline(always)]
pub fn logic<T: Int>(r: T) -> u64 {
    pzs(r)
}

/// After `r = a + b + carry`.
#[inline(always)]
pub fn add<T: Int>(a: T, b: T, r: T) -> u64 {
    let (a, b, x) = (a.to_u64(), b.to_u64(), r.to_u64());
    let top = T::BITS - 1;
    // Carries out of each bit: where both operands have it, or one has it and the result lost it.
    let carries = a & b | (a | b) & !x;
    pzs(r)
        | carries >> top & 1
        | (carries & 8) << 1
        | ((a ^ x) & (b ^ x)) >> top << 63 >> 63 << OF.trailing_zeros()
}

/// After `r = a - b - borrow`.
#[inline(always)]
pub fn sub<T: Int>(a: T, b: T, r: T) -> u64 {
    let (a, b, x) = (a.to_u64(), b.to_u64(), r.to_u64());
    let top = T::BITS - 1;
    let borrows = !a & b | (!a | b) & x;
    pzs(r)
        | borrows >> top & 1
        | (borrows & 8) << 1
        | ((a ^ b) & (a ^ x)) >> top << 63 >> 63 << OF.trailing_zeros()
}

/// Evaluates condition code `cc` (the low four bits of Jcc, SETcc and CMOVcc opcodes; SDM vol. 1, B.1).
#[inline(always)]
pub fn condition(cc: u8, f: u64) -> bool {
    let yes = match cc >> 1 & 7 {
        0 => f & OF != 0,
        1 => f & CF != 0,
        2 => f & ZF != 0,
        3 => f & (CF | ZF) != 0,
        4 => f & SF != 0,
        5 => f & PF != 0,
        6 => (f & SF != 0) != (f & OF != 0),
        _ => f & ZF != 0 || (f & SF != 0) != (f & OF != 0),
    };
    yes != (cc & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wide(a: i128, bits: u32) -> bool {
        a < -(1i128 << (bits - 1)) || a >= 1i128 << (bits - 1)
    }

    fn check<T: Int>() {
        let samples: Vec<u64> =
            [0u64, 1, 2, 7, 8, 15, 16, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0x7fff_ffff, 0x8000_0000]
                .into_iter()
                .flat_map(|v| [v, !v, v.wrapping_neg()])
                .chain([1 << 63, (1 << 63) - 1])
                .collect();
        for &a in &samples {
            for &b in &samples {
                for c in [0, 1u64] {
                    let (a, b) = (T::from_u64(a), T::from_u64(b));
                    let sum = a.to_u64() as u128 + b.to_u64() as u128 + c as u128;
                    let r = T::from_u64(sum as u64);
                    let f = add(a, b, r);
                    assert_eq!(f & CF != 0, sum > T::MASK as u128, "{a:?}+{b:?}+{c}");
                    assert_eq!(f & AF != 0, (a.to_u64() & 15) + (b.to_u64() & 15) + c > 15);
                    assert_eq!(
                        f & OF != 0,
                        wide(a.to_i64() as i128 + b.to_i64() as i128 + c as i128, T::BITS)
                    );
                    let diff = a.to_u64() as i128 - b.to_u64() as i128 - c as i128;
                    let r = T::from_u64(diff as u64);
                    let f = sub(a, b, r);
                    assert_eq!(f & CF != 0, diff < 0, "{a:?}-{b:?}-{c}");
                    assert_eq!(f & AF != 0, (a.to_u64() & 15) < (b.to_u64() & 15) + c);
                    assert_eq!(
                        f & OF != 0,
                        wide(a.to_i64() as i128 - b.to_i64() as i128 - c as i128, T::BITS)
                    );
                    assert_eq!(f & ZF != 0, r.to_u64() == 0);
                    assert_eq!(f & SF != 0, r.sign());
                    assert_eq!(f & PF != 0, (r.to_u64() as u8).count_ones().is_multiple_of(2));
                    assert_eq!(f & !(CF | PF | AF | ZF | SF | OF), 0);
                }
            }
        }
    }

    #[test]
    fn add_and_sub_flags_at_every_width() {
        check::<u8>();
        check::<u16>();
        check::<u32>();
        check::<u64>();
    }

    #[test]
    fn conditions_pair_up() {
        for f in 0..=0xfff {
            for cc in 0..16 {
                assert_eq!(condition(cc, f), !condition(cc ^ 1, f));
            }
            assert_eq!(condition(0xc, f), (f & SF != 0) ^ (f & OF != 0));
        }
    }
}
