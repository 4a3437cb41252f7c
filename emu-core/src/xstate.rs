//! x87, MMX, SSE and AVX state: one aligned image in the standard XSAVE format,
//! at the offsets of the host's own XSAVE area.

use crate::host_cpu;
use std::sync::LazyLock;
use x86_arch::xsave;

/// Bytes kept for the image: x87 to AVX-512 and PKRU fit in 2,696.
pub const IMAGE_SIZE: usize = 4096;

/// Where a state component lies in the standard format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Component {
    /// Offset from the start of the area.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// In the compacted format it begins at a multiple of 64.
    pub aligned: bool,
}

/// The standard format's offsets of the components that the engine knows.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Upper halves of YMM0 to YMM15.
    pub avx: usize,
    /// K0 to K7.
    pub opmask: usize,
    /// Upper halves of ZMM0 to ZMM15.
    pub zmm_hi256: usize,
    /// ZMM16 to ZMM31.
    pub hi16_zmm: usize,
    components: [Option<Component>; 10],
}

impl Layout {
    /// Component `n` (2 to 9), if guests may have it.
    pub fn component(&self, n: usize) -> Option<Component> {
        self.components.get(n).copied().flatten()
    }
}

/// The layout: the host's (SDM vol. 1, 13.5). PKRU, which is always in software, has the place that Intel's
/// processors give it where the host does not say.
pub fn layout() -> &'static Layout {
    static LAYOUT: LazyLock<Layout> = LazyLock::new(|| {
        let xcr0 = host_cpu::xcr0();
        let mut components = [None; 10];
        for n in [2, 5, 6, 7, 9] {
            let r = host_cpu::cpuid(0xd, n as u32);
            let (size, offset) = (r.eax as usize, r.ebx as usize);
            let inside = size != 0 && offset >= xsave::HEADER_END && offset + size <= IMAGE_SIZE;
            if inside && (xcr0 >> n & 1 != 0 || n == 9) {
                components[n] = Some(Component { offset, size, aligned: r.ecx & 2 != 0 });
            }
        }
        components[9] = components[9].or(Some(Component { offset: 2688, size: 8, aligned: false }));
        let at = |n: usize| components[n].map_or(0, |c: Component| c.offset);
        Layout { avx: at(2), opmask: at(5), zmm_hi256: at(6), hi16_zmm: at(7), components }
    });
    &LAYOUT
}

/// The host has AVX, and its kernel has enabled it.
pub fn host_has_avx() -> bool {
    layout().component(2).is_some() && host_cpu::has(x86_arch::cpuid::AVX)
}

/// The host has AVX-512, and its kernel has enabled it.
pub fn host_has_avx512() -> bool {
    let l = layout();
    host_has_avx()
        && [5, 6, 7].iter().all(|n| l.component(*n).is_some())
        && host_cpu::has(x86_arch::cpuid::AVX512F)
}

/// The host's opmask registers have 64 bits.
pub fn host_has_avx512bw() -> bool {
    host_has_avx512() && host_cpu::has(x86_arch::cpuid::AVX512BW)
}

/// The image. Bytes past the layout's end stay zero.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct XsaveImage {
    /// Legacy region, header, extended components.
    pub bytes: [u8; IMAGE_SIZE],
    /// The selectors of the last x87 instruction and its operand, which the 64-bit format has no place for. Loading
    /// that format sets them to 0.
    pub fcs: u16,
    /// See `fcs`.
    pub fds: u16,
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
        let mut x = XsaveImage { bytes: [0; IMAGE_SIZE], fcs: 0, fds: 0 };
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

    /// The first `width` bytes (16, 32 or 64) of vector register `n` (0 to 31); the rest is zero.
    pub fn vector(&self, n: u8, width: usize) -> [u8; 64] {
        let (l, n) = (layout(), (n & 31) as usize);
        let mut v = [0; 64];
        let mut part = |to: usize, from: usize, len: usize| {
            v[to..to + len].copy_from_slice(&self.bytes[from..from + len]);
        };
        if n >= 16 {
            part(0, l.hi16_zmm + 64 * (n - 16), width.min(64));
            return v;
        }
        part(0, xsave::XMM0 + 16 * n, 16);
        if width >= 32 && l.avx != 0 {
            part(16, l.avx + 16 * n, 16);
        }
        if width >= 64 && l.zmm_hi256 != 0 {
            part(32, l.zmm_hi256 + 32 * n, 32);
        }
        v
    }

    /// Writes the whole of vector register `n` (0 to 31), as VEX and EVEX instructions do: `v` is zero above their width.
    pub fn set_vector(&mut self, n: u8, v: &[u8; 64]) {
        let (l, n) = (layout(), (n & 31) as usize);
        let mut part = |to: usize, from: usize, len: usize| {
            self.bytes[to..to + len].copy_from_slice(&v[from..from + len]);
        };
        let mut in_use = 2;
        if n >= 16 {
            part(l.hi16_zmm + 64 * (n - 16), 0, 64);
            in_use = 1 << 7;
        } else {
            part(xsave::XMM0 + 16 * n, 0, 16);
            if l.avx != 0 {
                part(l.avx + 16 * n, 16, 16);
                in_use |= if v[16..32] != [0; 16] { 4 } else { 0 };
            }
            if l.zmm_hi256 != 0 {
                part(l.zmm_hi256 + 32 * n, 32, 32);
                in_use |= if v[32..] != [0; 32] { 1 << 6 } else { 0 };
            }
        }
        self.set_xstate_bv(self.xstate_bv() | in_use);
    }

    /// Opmask register `n`.
    pub fn opmask(&self, n: u8) -> u64 {
        match layout().opmask {
            0 => 0,
            at => self.get(at + 8 * (n & 7) as usize),
        }
    }

    /// Sets opmask register `n`.
    pub fn set_opmask(&mut self, n: u8, v: u64) {
        let at = layout().opmask;
        if at != 0 {
            self.set(at + 8 * (n & 7) as usize, v);
            self.set_xstate_bv(self.xstate_bv() | 1 << 5);
        }
    }

    /// The x87 top of stack, 0 to 7.
    #[inline(always)]
    pub fn top(&self) -> u8 {
        (self.fsw() >> 11 & 7) as u8
    }
}
