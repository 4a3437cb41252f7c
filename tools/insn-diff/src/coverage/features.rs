//! Which of iced's CPUID features a processor has: one row for each, with the CPUID bit that shows it. Whether a
//! feature's instructions can be reached from user mode is `denominator`'s.

use iced_x86::CpuidFeature as F;

/// A result register of CPUID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// A feature bit of CPUID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bit {
    /// EAX as CPUID takes it.
    pub leaf: u32,
    /// ECX as CPUID takes it.
    pub subleaf: u32,
    /// Where the bit is.
    pub output: Output,
    /// 0 to 31.
    pub bit: u32,
}

impl std::fmt::Display for Bit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let output = match self.output {
            Output::Eax => "EAX",
            Output::Ebx => "EBX",
            Output::Ecx => "ECX",
            Output::Edx => "EDX",
        };
        match self.subleaf {
            0 => write!(f, "CPUID.{:X}H:{output}[{}]", self.leaf, self.bit),
            n => write!(f, "CPUID.({:X}H,{n}):{output}[{}]", self.leaf, self.bit),
        }
    }
}

/// What shows that a processor has a feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// Every 64-bit processor has it.
    Base,
    /// No 64-bit processor has it, or none says so in CPUID.
    Never(&'static str),
    /// A bit.
    By(Bit),
    /// One of two bits.
    Either(Bit, Bit),
}

const fn bit(leaf: u32, subleaf: u32, output: Output, bit: u32) -> Bit {
    Bit { leaf, subleaf, output, bit }
}
const fn by(leaf: u32, output: Output, n: u32) -> Shown {
    Shown::By(bit(leaf, 0, output, n))
}
const fn by7(subleaf: u32, output: Output, n: u32) -> Shown {
    Shown::By(bit(7, subleaf, output, n))
}

use Output::{Eax, Ebx, Ecx, Edx};
use Shown::{Base, Either, Never};

const EXTENDED: u32 = 0x8000_0001;

/// Every feature that iced knows (SDM vol. 2A, CPUID; APM vol. 3, appendix E).
pub const FEATURES: &[(F, Shown)] = &[
    (F::INTEL8086, Base),
    (F::INTEL8086_ONLY, Never("8086 only")),
    (F::INTEL186, Base),
    (F::INTEL286, Base),
    (F::INTEL286_ONLY, Never("80286 only")),
    (F::INTEL386, Base),
    (F::INTEL386_ONLY, Never("80386 only")),
    (F::INTEL386_A0_ONLY, Never("early 80386 only")),
    (F::INTEL486, Base),
    (F::INTEL486_A_ONLY, Never("early 80486 only")),
    (F::UMOV, Never("80386 and 80486 only")),
    (F::IA64, Never("Itanium only")),
    (F::X64, Base),
    (F::ADX, by7(0, Ebx, 19)),
    (F::AES, by(1, Ecx, 25)),
    (F::AVX, by(1, Ecx, 28)),
    (F::AVX2, by7(0, Ebx, 5)),
    (F::AVX512_4FMAPS, by7(0, Edx, 3)),
    (F::AVX512_4VNNIW, by7(0, Edx, 2)),
    (F::AVX512_BF16, by7(1, Eax, 5)),
    (F::AVX512_BITALG, by7(0, Ecx, 12)),
    (F::AVX512_IFMA, by7(0, Ebx, 21)),
    (F::AVX512_VBMI, by7(0, Ecx, 1)),
    (F::AVX512_VBMI2, by7(0, Ecx, 6)),
    (F::AVX512_VNNI, by7(0, Ecx, 11)),
    (F::AVX512_VP2INTERSECT, by7(0, Edx, 8)),
    (F::AVX512_VPOPCNTDQ, by7(0, Ecx, 14)),
    (F::AVX512BW, by7(0, Ebx, 30)),
    (F::AVX512CD, by7(0, Ebx, 28)),
    (F::AVX512DQ, by7(0, Ebx, 17)),
    (F::AVX512ER, by7(0, Ebx, 27)),
    (F::AVX512F, by7(0, Ebx, 16)),
    (F::AVX512PF, by7(0, Ebx, 26)),
    (F::AVX512VL, by7(0, Ebx, 31)),
    (F::BMI1, by7(0, Ebx, 3)),
    (F::BMI2, by7(0, Ebx, 8)),
    (F::CET_IBT, by7(0, Edx, 20)),
    (F::CET_SS, by7(0, Ecx, 7)),
    (F::CL1INVMB, Never("Single-Chip Cloud Computer only")),
    (F::CLDEMOTE, by7(0, Ecx, 25)),
    (F::CLFLUSHOPT, by7(0, Ebx, 23)),
    (F::CLFSH, by(1, Edx, 19)),
    (F::CLWB, by7(0, Ebx, 24)),
    (F::CLZERO, by(0x8000_0008, Ebx, 0)),
    (F::CMOV, by(1, Edx, 15)),
    (F::CMPXCHG16B, by(1, Ecx, 13)),
    (F::CPUID, Base),
    (F::CX8, by(1, Edx, 8)),
    (F::D3NOW, by(EXTENDED, Edx, 31)),
    (F::D3NOWEXT, by(EXTENDED, Edx, 30)),
    (F::OSS, by(0x12, Eax, 5)),
    (F::ENQCMD, by7(0, Ecx, 29)),
    (F::F16C, by(1, Ecx, 29)),
    (F::FMA, by(1, Ecx, 12)),
    (F::FMA4, by(EXTENDED, Ecx, 16)),
    (F::FPU, by(1, Edx, 0)),
    (F::FPU287, by(1, Edx, 0)),
    (F::FPU287XL_ONLY, Never("80287XL only")),
    (F::FPU387, by(1, Edx, 0)),
    (F::FPU387SL_ONLY, Never("80387SL only")),
    (F::FSGSBASE, by7(0, Ebx, 0)),
    (F::FXSR, by(1, Edx, 24)),
    (F::CYRIX_D3NOW, Never("Cyrix and Geode only")),
    (F::GFNI, by7(0, Ecx, 8)),
    (F::HLE, by7(0, Ebx, 4)),
    (F::HLE_or_RTM, Either(bit(7, 0, Ebx, 4), bit(7, 0, Ebx, 11))),
    (F::INVEPT, by(1, Ecx, 5)),
    (F::INVPCID, by7(0, Ebx, 10)),
    (F::INVVPID, by(1, Ecx, 5)),
    (F::LWP, by(EXTENDED, Ecx, 15)),
    (F::LZCNT, by(EXTENDED, Ecx, 5)),
    (F::MCOMMIT, by(0x8000_0008, Ebx, 8)),
    (F::MMX, by(1, Edx, 23)),
    (F::MONITOR, by(1, Ecx, 3)),
    (F::MONITORX, by(EXTENDED, Ecx, 29)),
    (F::MOVBE, by(1, Ecx, 22)),
    (F::MOVDIR64B, by7(0, Ecx, 28)),
    (F::MOVDIRI, by7(0, Ecx, 27)),
    (F::MPX, by7(0, Ebx, 14)),
    (F::MSR, by(1, Edx, 5)),
    (F::MULTIBYTENOP, Base),
    (F::PADLOCK_ACE, Never("VIA and Zhaoxin only")),
    (F::PADLOCK_PHE, Never("VIA and Zhaoxin only")),
    (F::PADLOCK_PMM, Never("VIA and Zhaoxin only")),
    (F::PADLOCK_RNG, Never("VIA and Zhaoxin only")),
    (F::PAUSE, Base),
    (F::PCLMULQDQ, by(1, Ecx, 1)),
    (F::PCOMMIT, Never("withdrawn before any processor had it")),
    (F::PCONFIG, by7(0, Edx, 18)),
    (F::PKU, by7(0, Ecx, 3)),
    (F::POPCNT, by(1, Ecx, 23)),
    (F::PREFETCHW, by(EXTENDED, Ecx, 8)),
    (F::PREFETCHWT1, by7(0, Ecx, 0)),
    (F::PTWRITE, by(0x14, Ebx, 4)),
    (F::RDPID, by7(0, Ecx, 22)),
    (F::RDPMC, Base),
    (F::RDPRU, by(0x8000_0008, Ebx, 4)),
    (F::RDRAND, by(1, Ecx, 30)),
    (F::RDSEED, by7(0, Ebx, 18)),
    (F::RDTSCP, by(EXTENDED, Edx, 27)),
    (F::RTM, by7(0, Ebx, 11)),
    (F::SEP, by(1, Edx, 11)),
    (F::SGX1, by(0x12, Eax, 0)),
    (F::SHA, by7(0, Ebx, 29)),
    (F::SKINIT, by(EXTENDED, Ecx, 12)),
    (F::SKINIT_or_SVM, Either(bit(EXTENDED, 0, Ecx, 12), bit(EXTENDED, 0, Ecx, 2))),
    (F::SMAP, by7(0, Ebx, 20)),
    (F::SMX, by(1, Ecx, 6)),
    (F::SSE, by(1, Edx, 25)),
    (F::SSE2, by(1, Edx, 26)),
    (F::SSE3, by(1, Ecx, 0)),
    (F::SSE4_1, by(1, Ecx, 19)),
    (F::SSE4_2, by(1, Ecx, 20)),
    (F::SSE4A, by(EXTENDED, Ecx, 6)),
    (F::SSSE3, by(1, Ecx, 9)),
    (F::SVM, by(EXTENDED, Ecx, 2)),
    (F::SEV_ES, by(0x8000_001f, Eax, 3)),
    (F::SYSCALL, by(EXTENDED, Edx, 11)),
    (F::TBM, by(EXTENDED, Ecx, 21)),
    (F::TSC, by(1, Edx, 4)),
    (F::VAES, by7(0, Ecx, 9)),
    (F::VMX, by(1, Ecx, 5)),
    (F::VPCLMULQDQ, by7(0, Ecx, 10)),
    (F::WAITPKG, by7(0, Ecx, 5)),
    (F::WBNOINVD, by(0x8000_0008, Ebx, 9)),
    (F::XOP, by(EXTENDED, Ecx, 11)),
    (F::XSAVE, by(1, Ecx, 26)),
    (F::XSAVEC, Shown::By(bit(0xd, 1, Eax, 1))),
    (F::XSAVEOPT, Shown::By(bit(0xd, 1, Eax, 0))),
    (F::XSAVES, Shown::By(bit(0xd, 1, Eax, 3))),
    (F::SEV_SNP, by(0x8000_001f, Eax, 4)),
    (F::SERIALIZE, by7(0, Edx, 14)),
    (F::TSXLDTRK, by7(0, Edx, 16)),
    (F::INVLPGB, by(0x8000_0008, Ebx, 3)),
    (F::AMX_BF16, by7(0, Edx, 22)),
    (F::AMX_TILE, by7(0, Edx, 24)),
    (F::AMX_INT8, by7(0, Edx, 25)),
    (F::CYRIX_FPU, Never("Cyrix and Geode only")),
    (F::CYRIX_SMM, Never("Cyrix and Geode only")),
    (F::CYRIX_SMINT, Never("Cyrix and Geode only")),
    (F::CYRIX_SMINT_0F7E, Never("Cyrix only")),
    (F::CYRIX_SHR, Never("Cyrix only")),
    (F::CYRIX_DDI, Never("Cyrix and Geode only")),
    (F::CYRIX_EMMI, Never("Cyrix only")),
    (F::CYRIX_DMI, Never("Geode only")),
    (F::CENTAUR_AIS, Never("VIA only")),
    (F::MOV_TR, Never("80386, 80486, Cyrix and Geode only")),
    (F::SMM, Base),
    (F::TDX, Never("no bit of CPUID that a user sees")),
    (F::KL, by7(0, Ecx, 23)),
    (F::AESKLE, by(0x19, Ebx, 0)),
    (F::WIDE_KL, by(0x19, Ebx, 2)),
    (F::UINTR, by7(0, Edx, 5)),
    (F::HRESET, by7(1, Eax, 22)),
    (F::AVX_VNNI, by7(1, Eax, 4)),
    (F::PADLOCK_GMI, Never("Zhaoxin only")),
    (F::FRED, by7(1, Eax, 17)),
    (F::LKGS, by7(1, Eax, 18)),
    (F::AVX512_FP16, by7(0, Edx, 23)),
    (F::UDBG, Never("undocumented")),
    (F::KNC, Never("Knights Corner only")),
    (F::PADLOCK_UNDOC, Never("VIA and Zhaoxin only")),
    (F::RMPQUERY, by(0x8000_001f, Eax, 6)),
    (F::RAO_INT, by7(1, Eax, 3)),
    (F::PREFETCHITI, by7(1, Edx, 14)),
    (F::AMX_FP16, by7(1, Eax, 21)),
    (F::CMPCCXADD, by7(1, Eax, 7)),
    (F::AVX_IFMA, by7(1, Eax, 23)),
    (F::AVX_NE_CONVERT, by7(1, Edx, 5)),
    (F::AVX_VNNI_INT8, by7(1, Edx, 4)),
    (F::MSRLIST, by7(1, Eax, 27)),
    (F::WRMSRNS, by7(1, Eax, 19)),
    (F::AMX_COMPLEX, by7(1, Edx, 8)),
    (F::SHA512, by7(1, Eax, 0)),
    (F::SM3, by7(1, Eax, 1)),
    (F::SM4, by7(1, Eax, 2)),
    (F::TSE, by7(1, Ebx, 1)),
    (F::AVX_VNNI_INT16, by7(1, Edx, 10)),
];

/// CPUID of a processor: EAX, EBX, ECX, EDX of a leaf and subleaf.
pub type Cpuid<'a> = &'a dyn Fn(u32, u32) -> [u32; 4];

/// A leaf of this machine's CPUID; zeros beyond the last leaf.
pub fn host_cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let call = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        [r.eax, r.ebx, r.ecx, r.edx]
    };
    if leaf > call(leaf & 0x8000_0000, 0)[0] || leaf == 7 && subleaf > call(7, 0)[0] {
        return [0; 4];
    }
    call(leaf, subleaf)
}

/// Whether this machine's processor is AMD's or Hygon's.
pub fn host_is_amd() -> bool {
    matches!(&host_cpuid(0, 0)[1].to_le_bytes(), b"Auth" | b"Hygo")
}

/// Whether a processor's CPUID has a bit.
pub fn has_bit(cpuid: Cpuid<'_>, bit: Bit) -> bool {
    cpuid(bit.leaf, bit.subleaf)[bit.output as usize] >> bit.bit & 1 != 0
}

/// What shows a feature. A feature without a row is never there (a test finds it).
pub fn shown(feature: F) -> Shown {
    FEATURES.iter().find(|row| row.0 == feature).map_or(Never("no row in the table"), |row| row.1)
}

/// Whether a processor has a feature.
pub fn has(cpuid: Cpuid<'_>, feature: F) -> bool {
    match shown(feature) {
        Base => true,
        Never(_) => false,
        Shown::By(bit) => has_bit(cpuid, bit),
        Either(a, b) => has_bit(cpuid, a) || has_bit(cpuid, b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_has_a_row() {
        let rows: Vec<F> = FEATURES.iter().map(|row| row.0).collect();
        let all: Vec<F> = F::values().collect();
        assert_eq!(rows, all, "one row for each, in iced's order");
    }

    #[test]
    fn a_64_bit_host_has_what_all_have() {
        for feature in [F::X64, F::SSE2, F::CMOV, F::FXSR, F::CX8, F::FPU, F::MMX] {
            assert!(has(&host_cpuid, feature), "{feature:?}");
        }
        assert!(!has(&host_cpuid, F::CYRIX_FPU));
        assert!(!has(&|_, _| [0; 4], F::SSE2));
    }
}
