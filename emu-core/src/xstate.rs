//! x87, MMX, SSE and AVX state: one aligned image in the standard XSAVE format,
//! at the offsets of the host's own XSAVE area.

use crate::host_cpu;
use x86_arch::xsave;

/// Bytes kept for the image: x87 to AVX-512 and PKRU fit in 2,696.
pub const IMAGE_SIZE: usize = 4096;

/// The image. Bytes past the layout's end stay zero.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct XsaveImage {
    /// Legacy region, header, extended components.
    pub bytes: [u8; IMAGE_SIZE],
}

impl core::fmt::Debug for XsaveImage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "XsaveImage(fcw {:#x}, fsw {:#x}, mxcsr {:#x})", self.fcw(), self.fsw(), self.mxcsr())
    }
}

impl Default for XsaveImage {
    fn default() -> Self {
        XsaveImage::reset()
    }
}

macro_rules! word {
    ($get:ident $set:ident $t:ty, $off:expr, $doc:literal) => {
        #[doc = $doc]
        #[inline(always)]
        pub fn $get(&self) -> $t {
            self.get($off)
        }
        #[doc = concat!("Sets: ", $doc)]
        #[inline(always)]
        pub fn $set(&mut self, v: $t) {
            self.set($off, v)
        }
    };
}

/// An integer that can be read from and written to the image.
pub trait Scalar: Copy {
    /// Reads at the start of `b`.
    fn read(b: &[u8]) -> Self;
    /// Writes at the start of `b`.
    fn write(self, b: &mut [u8]);
}

macro_rules! scalar {
    ($($t:ty)*) => { $(impl Scalar for $t {
        #[inline(always)]
        fn read(b: &[u8]) -> Self {
            let mut a = [0; size_of::<$t>()];
            a.copy_from_slice(&b[..size_of::<$t>()]);
            <$t>::from_le_bytes(a)
        }
        #[inline(always)]
        fn write(self, b: &mut [u8]) {
            b[..size_of::<$t>()].copy_from_slice(&self.to_le_bytes());
        }
    })* };
}
scalar!(u8 u16 u32 u64 u128);

impl XsaveImage {
    /// The state after reset (SDM vol. 3A, table 9-1): FCW 40H is power-up's; KVM and INIT-less
    /// resets use FNINIT's 37FH, and so do we.
    pub fn reset() -> XsaveImage {
        let mut x = XsaveImage { bytes: [0; IMAGE_SIZE] };
        x.set_fcw(xsave::FCW_INIT);
        x.set_mxcsr(xsave::MXCSR_INIT);
        x.set(xsave::MXCSR_MASK, host_cpu::mxcsr_mask());
        x
    }

    /// Reads a scalar at a constant offset of the image.
    #[inline(always)]
    pub fn get<T: Scalar>(&self, off: usize) -> T {
        T::read(&self.bytes[off..])
    }

    /// Writes a scalar at a constant offset of the image.
    #[inline(always)]
    pub fn set<T: Scalar>(&mut self, off: usize, v: T) {
        v.write(&mut self.bytes[off..])
    }

    word!(fcw set_fcw u16, xsave::FCW, "x87 control word.");
    word!(fsw set_fsw u16, xsave::FSW, "x87 status word.");
    word!(ftw set_ftw u8, xsave::FTW, "Abridged tag word: 1 = not empty.");
    word!(fop set_fop u16, xsave::FOP, "Last x87 opcode.");
    word!(fip set_fip u64, xsave::FIP, "Last x87 instruction pointer.");
    word!(fdp set_fdp u64, xsave::FDP, "Last x87 data pointer.");
    word!(mxcsr set_mxcsr u32, xsave::MXCSR, "MXCSR.");
    word!(xstate_bv set_xstate_bv u64, xsave::XSTATE_BV, "XSTATE_BV: components not in their initial state.");

    /// XMM register `n` (0 to 15).
    #[inline(always)]
    pub fn xmm(&self, n: u8) -> u128 {
        self.get(xsave::XMM0 + 16 * (n & 15) as usize)
    }

    /// Sets XMM register `n` (0 to 15); the upper parts of YMM and ZMM stay.
    #[inline(always)]
    pub fn set_xmm(&mut self, n: u8, v: u128) {
        self.set(xsave::XMM0 + 16 * (n & 15) as usize, v)
    }

    /// The x87 top of stack, 0 to 7.
    #[inline(always)]
    pub fn top(&self) -> u8 {
        (self.fsw() >> 11 & 7) as u8
    }
}
