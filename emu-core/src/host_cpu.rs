//! What the host's processor is: CPUID, XGETBV, the MXCSR mask, the width of x87 pointers, the TSC, random numbers.
//!
//! `unsafe` is needed because these are instructions without a safe wrapper.
//! They read processor state only. No other file of emu-core may execute them:
//! time and chance reach the engine through [`crate::host::Host`].
#![allow(unsafe_code)]

use decoder::Vendor;
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

/// The vendor, as far as rules differ.
pub fn vendor() -> Vendor {
    match &cpuid(0, 0).ebx.to_le_bytes() {
        b"Auth" | b"Hygo" => Vendor::Amd,
        _ => Vendor::Intel,
    }
}

/// How many bits of an x87 pointer the processor keeps: as many as its widest linear addresses have, whatever
/// paging mode is in use and CPUID admits. So it is tried out.
pub fn x87_pointer_bits() -> u8 {
    #[repr(C, align(16))]
    struct Area([u8; 512]);
    let mut a = Area([0; 512]);
    // FCW: no exception masked. FSW: ES and IE, so that AMD's processors store the pointers.
    a.0[..4].copy_from_slice(&[0x40, 0x03, 0x81, 0x80]);
    a.0[8..16].copy_from_slice(&(1u64 << 47).to_le_bytes());
    a.0[16..24].copy_from_slice(&(1u64 << 56).to_le_bytes());
    a.0[24..28].copy_from_slice(&x86_arch::xsave::MXCSR_INIT.to_le_bytes());
    // SAFETY: every x86-64 processor has FXSAVE; the area is 512 bytes, 16-aligned and writable, its MXCSR is valid and is
    // the one that Rust code runs under. No x87 instruction that would report the pending exception comes before FNINIT;
    // the x87 registers are declared as changed, and left as the ABI wants them.
    unsafe {
        core::arch::asm!(
            "fxrstor64 [{a}]", "fxsave64 [{a}]", "fninit", a = in(reg) &mut a,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nostack)
        )
    };
    match (a.0[15], a.0[23]) {
        (0xff, _) => 48,
        (_, 0xff) => 57,
        _ => 64,
    }
}

/// The host's time-stamp counter, read after every earlier load: a guest that loads another processor's TSC and then
/// reads its own must not see time run backwards, however far ahead the host executes.
pub fn rdtsc() -> u64 {
    // SAFETY: LFENCE orders, RDTSC reads a counter; Linux leaves CR4.TSD clear.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}
