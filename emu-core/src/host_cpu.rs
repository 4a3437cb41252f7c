//! What the host's processor is: CPUID, XGETBV, the MXCSR mask, the TSC, random numbers.
//!
//! `unsafe` is needed because these are instructions without a safe wrapper.
//! They read processor state only. No other file of emu-core may execute them:
//! time and chance reach the engine through [`crate::host::Host`].
#![allow(unsafe_code)]

use std::sync::LazyLock;
use x86_arch::cpuid::CpuidResult;

/// The host's CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
}

/// Whether the host has a feature bit.
pub fn has(f: x86_arch::cpuid::Feature) -> bool {
    static MAX: LazyLock<(u32, u32)> = LazyLock::new(|| (cpuid(0, 0).eax, cpuid(0x8000_0000, 0).eax));
    let max = if f.leaf >= 0x8000_0000 { MAX.1 } else { MAX.0 };
    if f.leaf > max || (f.leaf == 7 && f.subleaf > cpuid(7, 0).eax) {
        return false;
    }
    cpuid(f.leaf, f.subleaf).reg(f.reg) >> f.bit & 1 != 0
}

/// The host kernel's XCR0, or x87 and SSE where the host has no XSAVE.
pub fn xcr0() -> u64 {
    static XCR0: LazyLock<u64> = LazyLock::new(|| {
        if !has(x86_arch::cpuid::OSXSAVE) {
            return 3;
        }
        let (lo, hi): (u32, u32);
        // SAFETY: CPUID says that the operating system has enabled XGETBV; it reads a register.
        unsafe {
            core::arch::asm!("xgetbv", in("ecx") 0, out("eax") lo, out("edx") hi, options(nomem, nostack))
        };
        lo as u64 | (hi as u64) << 32
    });
    *XCR0
}

/// The MXCSR bits that may be set (SDM vol. 1, 11.6.6).
pub fn mxcsr_mask() -> u32 {
    static MASK: LazyLock<u32> = LazyLock::new(|| {
        #[repr(C, align(16))]
        struct Area([u8; 512]);
        let mut a = Area([0; 512]);
        // SAFETY: every x86-64 processor has FXSAVE; the area is 512 bytes, 16-aligned and writable.
        unsafe { core::arch::asm!("fxsave [{}]", in(reg) &mut a, options(nostack)) };
        match u32::from_le_bytes([a.0[28], a.0[29], a.0[30], a.0[31]]) {
            0 => 0xffbf,
            m => m,
        }
    });
    *MASK
}

/// The host's time-stamp counter.
pub fn rdtsc() -> u64 {
    // SAFETY: RDTSC reads a counter; Linux leaves CR4.TSD clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}
