//! Register operands and the integer widths that handlers are generic over.

use crate::vcpu::{Vcpu, ZERO};
use decoder::insn::HIGH_BYTE;
use softmmu::host_mem::Word;

/// An operand width: `u8`, `u16`, `u32` or `u64`.
pub trait Int: Word + Copy + Eq + Ord + core::fmt::Debug + 'static {
    /// Bytes.
    const BYTES: u64;
    /// Bits.
    const BITS: u32;
    /// All ones, zero-extended.
    const MASK: u64;
    /// Zero.
    const ZERO: Self;
    /// Truncates.
    fn from_u64(v: u64) -> Self;
    /// Zero-extends.
    fn to_u64(self) -> u64;
    /// Sign-extends.
    fn to_i64(self) -> i64;
    /// Reads the general register with this operand number (8-bit: 0x20 to 0x23 are AH, CH, DH, BH).
    fn reg(c: &Vcpu, r: u8) -> Self;
    /// Writes a general register: 8 and 16 bits leave the rest alone, 32 bits clear the upper half.
    fn set_reg(c: &mut Vcpu, r: u8, v: Self);

    /// Addition modulo 2^BITS.
    #[inline(always)]
    fn add(self, o: Self) -> Self {
        Self::from_u64(self.to_u64().wrapping_add(o.to_u64()))
    }
    /// Subtraction modulo 2^BITS.
    #[inline(always)]
    fn sub(self, o: Self) -> Self {
        Self::from_u64(self.to_u64().wrapping_sub(o.to_u64()))
    }
    /// The most significant bit.
    #[inline(always)]
    fn sign(self) -> bool {
        self.to_u64() >> (Self::BITS - 1) & 1 != 0
    }
}

/// General registers live at 0 to 15 of the register file; a larger number cannot come from the
/// decoder, and is kept inside the array here.
#[inline(always)]
fn slot(r: u8) -> usize {
    (r & 15) as usize
}

macro_rules! int {
    ($t:ty, $s:ty, $get:expr, $set:expr) => {
        impl Int for $t {
            const BYTES: u64 = size_of::<$t>() as u64;
            const BITS: u32 = <$t>::BITS;
            const MASK: u64 = <$t>::MAX as u64;
            const ZERO: Self = 0;
            #[inline(always)]
            fn from_u64(v: u64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn to_i64(self) -> i64 {
                self as $s as i64
            }
            #[inline(always)]
            fn reg(c: &Vcpu, r: u8) -> Self {
                let get: fn(&Vcpu, u8) -> Self = $get;
                get(c, r)
            }
            #[inline(always)]
            fn set_reg(c: &mut Vcpu, r: u8, v: Self) {
                let set: fn(&mut Vcpu, u8, Self) = $set;
                set(c, r, v)
            }
        }
    };
}

int!(
    u8,
    i8,
    |c, r| (c.hot.regs[if r & HIGH_BYTE != 0 { (r & 3) as usize } else { slot(r) }]
        >> if r & HIGH_BYTE != 0 { 8 } else { 0 }) as u8,
    |c, r, v| {
        if r & HIGH_BYTE != 0 {
            let s = &mut c.hot.regs[(r & 3) as usize];
            *s = *s & !0xff00 | (v as u64) << 8;
        } else {
            let s = &mut c.hot.regs[slot(r)];
            *s = *s & !0xff | v as u64;
        }
    }
);
int!(u16, i16, |c, r| c.hot.regs[slot(r)] as u16, |c, r, v| {
    let s = &mut c.hot.regs[slot(r)];
    *s = *s & !0xffff | v as u64;
});
int!(u32, i32, |c, r| c.hot.regs[slot(r)] as u32, |c, r, v| c.hot.regs[slot(r)] = v as u64);
int!(u64, i64, |c, r| c.hot.regs[slot(r)], |c, r, v| c.hot.regs[slot(r)] = v);

impl Vcpu {
    /// A general register by operand number.
    #[inline(always)]
    pub fn reg<T: Int>(&self, r: u8) -> T {
        T::reg(self, r)
    }

    /// Writes a general register by operand number.
    #[inline(always)]
    pub fn set_reg<T: Int>(&mut self, r: u8, v: T) {
        T::set_reg(self, r, v)
    }
}

const _: () = assert!(ZERO == decoder::insn::REG_ZERO as usize);
