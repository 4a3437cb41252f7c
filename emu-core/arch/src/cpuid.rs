//! CPUID leaves and feature bits that the processor's behaviour depends on
//! (SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; KVM cpuid.txt).

/// A CPUID result.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// One of the four result registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum CpuidReg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl CpuidResult {
    /// The value of one register.
    pub const fn reg(&self, r: CpuidReg) -> u32 {
        match r {
            CpuidReg::Eax => self.eax,
            CpuidReg::Ebx => self.ebx,
            CpuidReg::Ecx => self.ecx,
            CpuidReg::Edx => self.edx,
        }
    }
}

/// A row of a guest's CPUID table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuidEntry {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input, where `indexed`.
    pub subleaf: u32,
    /// Whether the leaf has sub-leaves (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
    pub indexed: bool,
    /// What the instruction returns.
    pub result: CpuidResult,
}

/// A feature bit: leaf, sub-leaf, register, bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Feature {
    /// The feature's name in the manuals.
    pub name: &'static str,
    /// Leaf.
    pub leaf: u32,
    /// Sub-leaf.
    pub subleaf: u32,
    /// Register.
    pub reg: CpuidReg,
    /// Bit, 0 to 31.
    pub bit: u8,
}

macro_rules! features {
    ($($name:ident $leaf:literal . $sub:literal $reg:ident $bit:literal;)*) => {
        $(
            #[doc = concat!("CPUID ", stringify!($leaf), ".", stringify!($sub), " ", stringify!($reg), " bit ", stringify!($bit), ".")]
            pub const $name: Feature = Feature {
                name: stringify!($name), leaf: $leaf, subleaf: $sub, reg: CpuidReg::$reg, bit: $bit,
            };
        )*
        /// Every feature bit that has a name here.
        pub const FEATURES: &[Feature] = &[$($name),*];
    };
}

features! {
    SSE3 0x1 . 0 Ecx 0;
    PCLMULQDQ 0x1 . 0 Ecx 1;
    DTES64 0x1 . 0 Ecx 2;
    MONITOR 0x1 . 0 Ecx 3;
    VMX 0x1 . 0 Ecx 5;
    SSSE3 0x1 . 0 Ecx 9;
    FMA 0x1 . 0 Ecx 12;
    CX16 0x1 . 0 Ecx 13;
    PDCM 0x1 . 0 Ecx 15;
    PCID 0x1 . 0 Ecx 17;
    SSE4_1 0x1 . 0 Ecx 19;
    SSE4_2 0x1 . 0 Ecx 20;
    X2APIC 0x1 . 0 Ecx 21;
    MOVBE 0x1 . 0 Ecx 22;
    POPCNT 0x1 . 0 Ecx 23;
    TSC_DEADLINE 0x1 . 0 Ecx 24;
    AES 0x1 . 0 Ecx 25;
    XSAVE 0x1 . 0 Ecx 26;
    OSXSAVE 0x1 . 0 Ecx 27;
    AVX 0x1 . 0 Ecx 28;
    F16C 0x1 . 0 Ecx 29;
    RDRAND 0x1 . 0 Ecx 30;
    HYPERVISOR 0x1 . 0 Ecx 31;
    FPU 0x1 . 0 Edx 0;
    VME 0x1 . 0 Edx 1;
    DE 0x1 . 0 Edx 2;
    PSE 0x1 . 0 Edx 3;
    TSC 0x1 . 0 Edx 4;
    MSR 0x1 . 0 Edx 5;
    PAE 0x1 . 0 Edx 6;
    MCE 0x1 . 0 Edx 7;
    CX8 0x1 . 0 Edx 8;
    APIC 0x1 . 0 Edx 9;
    SEP 0x1 . 0 Edx 11;
    MTRR 0x1 . 0 Edx 12;
    PGE 0x1 . 0 Edx 13;
    MCA 0x1 . 0 Edx 14;
    CMOV 0x1 . 0 Edx 15;
    PAT 0x1 . 0 Edx 16;
    PSE36 0x1 . 0 Edx 17;
    CLFSH 0x1 . 0 Edx 19;
    MMX 0x1 . 0 Edx 23;
    FXSR 0x1 . 0 Edx 24;
    SSE 0x1 . 0 Edx 25;
    SSE2 0x1 . 0 Edx 26;
    SS 0x1 . 0 Edx 27;
    HTT 0x1 . 0 Edx 28;
    ARAT 0x6 . 0 Eax 2;
    FSGSBASE 0x7 . 0 Ebx 0;
    TSC_ADJUST 0x7 . 0 Ebx 1;
    SGX 0x7 . 0 Ebx 2;
    BMI1 0x7 . 0 Ebx 3;
    HLE 0x7 . 0 Ebx 4;
    AVX2 0x7 . 0 Ebx 5;
    FDP_EXCPTN_ONLY 0x7 . 0 Ebx 6;
    SMEP 0x7 . 0 Ebx 7;
    BMI2 0x7 . 0 Ebx 8;
    ERMS 0x7 . 0 Ebx 9;
    INVPCID 0x7 . 0 Ebx 10;
    RTM 0x7 . 0 Ebx 11;
    ZERO_FCS_FDS 0x7 . 0 Ebx 13;
    MPX 0x7 . 0 Ebx 14;
    AVX512F 0x7 . 0 Ebx 16;
    AVX512DQ 0x7 . 0 Ebx 17;
    RDSEED 0x7 . 0 Ebx 18;
    ADX 0x7 . 0 Ebx 19;
    SMAP 0x7 . 0 Ebx 20;
    AVX512IFMA 0x7 . 0 Ebx 21;
    CLFLUSHOPT 0x7 . 0 Ebx 23;
    CLWB 0x7 . 0 Ebx 24;
    INTEL_PT 0x7 . 0 Ebx 25;
    AVX512CD 0x7 . 0 Ebx 28;
    SHA 0x7 . 0 Ebx 29;
    AVX512BW 0x7 . 0 Ebx 30;
    AVX512VL 0x7 . 0 Ebx 31;
    AVX512_VBMI 0x7 . 0 Ecx 1;
    UMIP 0x7 . 0 Ecx 2;
    PKU 0x7 . 0 Ecx 3;
    OSPKE 0x7 . 0 Ecx 4;
    WAITPKG 0x7 . 0 Ecx 5;
    AVX512_VBMI2 0x7 . 0 Ecx 6;
    CET_SS 0x7 . 0 Ecx 7;
    GFNI 0x7 . 0 Ecx 8;
    VAES 0x7 . 0 Ecx 9;
    VPCLMULQDQ 0x7 . 0 Ecx 10;
    AVX512_VNNI 0x7 . 0 Ecx 11;
    AVX512_BITALG 0x7 . 0 Ecx 12;
    AVX512_VPOPCNTDQ 0x7 . 0 Ecx 14;
    LA57 0x7 . 0 Ecx 16;
    RDPID 0x7 . 0 Ecx 22;
    KEY_LOCKER 0x7 . 0 Ecx 23;
    CLDEMOTE 0x7 . 0 Ecx 25;
    MOVDIRI 0x7 . 0 Ecx 27;
    MOVDIR64B 0x7 . 0 Ecx 28;
    ENQCMD 0x7 . 0 Ecx 29;
    FSRM 0x7 . 0 Edx 4;
    AVX512_VP2INTERSECT 0x7 . 0 Edx 8;
    SERIALIZE 0x7 . 0 Edx 14;
    SPEC_CTRL 0x7 . 0 Edx 26;
    STIBP 0x7 . 0 Edx 27;
    FLUSH_L1D 0x7 . 0 Edx 28;
    SSBD 0x7 . 0 Edx 31;
    TSXLDTRK 0x7 . 0 Edx 16;
    CET_IBT 0x7 . 0 Edx 20;
    AMX_BF16 0x7 . 0 Edx 22;
    AVX512_FP16 0x7 . 0 Edx 23;
    AMX_TILE 0x7 . 0 Edx 24;
    AMX_INT8 0x7 . 0 Edx 25;
    ARCH_CAPABILITIES 0x7 . 0 Edx 29;
    AVX_VNNI 0x7 . 1 Eax 4;
    AVX512_BF16 0x7 . 1 Eax 5;
    FZRM 0x7 . 1 Eax 10;
    FSRS 0x7 . 1 Eax 11;
    FSRC 0x7 . 1 Eax 12;
    XSAVEOPT 0xd . 1 Eax 0;
    XSAVEC 0xd . 1 Eax 1;
    XGETBV_ECX_1 0xd . 1 Eax 2;
    XSAVES 0xd . 1 Eax 3;
    LAHF_LM 0x80000001 . 0 Ecx 0;
    SVM 0x80000001 . 0 Ecx 2;
    CR8_LEGACY 0x80000001 . 0 Ecx 4;
    LZCNT 0x80000001 . 0 Ecx 5;
    SSE4A 0x80000001 . 0 Ecx 6;
    MISALIGNSSE 0x80000001 . 0 Ecx 7;
    PREFETCHW 0x80000001 . 0 Ecx 8;
    OSVW 0x80000001 . 0 Ecx 9;
    TBM 0x80000001 . 0 Ecx 21;
    TOPOEXT 0x80000001 . 0 Ecx 22;
    SYSCALL 0x80000001 . 0 Edx 11;
    NX 0x80000001 . 0 Edx 20;
    FXSR_OPT 0x80000001 . 0 Edx 25;
    PDPE1GB 0x80000001 . 0 Edx 26;
    RDTSCP 0x80000001 . 0 Edx 27;
    LM 0x80000001 . 0 Edx 29;
    INVARIANT_TSC 0x80000007 . 0 Edx 8;
    CLZERO 0x80000008 . 0 Ebx 0;
    XSAVEERPTR 0x80000008 . 0 Ebx 2;
    WBNOINVD 0x80000008 . 0 Ebx 9;
    AMD_IBPB 0x80000008 . 0 Ebx 12;
    AMD_IBRS 0x80000008 . 0 Ebx 14;
    AMD_STIBP 0x80000008 . 0 Ebx 15;
    AMD_SSBD 0x80000008 . 0 Ebx 24;
    LFENCE_RDTSC 0x80000021 . 0 Eax 2;
    NULL_SEL_CLR_BASE 0x80000021 . 0 Eax 6;
    SRSO_NO 0x80000021 . 0 Eax 29;
    TSA_SQ_NO 0x80000021 . 0 Ecx 1;
    TSA_L1_NO 0x80000021 . 0 Ecx 2;
}

/// KVM's signature leaf (KVM cpuid.txt, KVM_CPUID_SIGNATURE).
pub const KVM_CPUID_SIGNATURE: u32 = 0x4000_0000;
/// KVM's feature leaf (KVM cpuid.txt, KVM_CPUID_FEATURES).
pub const KVM_CPUID_FEATURES: u32 = 0x4000_0001;

/// Bits of the KVM feature leaf (KVM cpuid.txt).
pub mod kvm {
    /// The signature, in EBX, ECX and EDX of [`super::KVM_CPUID_SIGNATURE`].
    pub const SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";
    /// kvmclock through MSRs 11H and 12H.
    pub const FEATURE_CLOCKSOURCE: u32 = 0;
    /// Port accesses need no delay.
    pub const FEATURE_NOP_IO_DELAY: u32 = 1;
    /// kvmclock through MSRs 4B564D00H and 4B564D01H.
    pub const FEATURE_CLOCKSOURCE2: u32 = 3;
    /// KVM_HC_KICK_CPU.
    pub const FEATURE_PV_UNHALT: u32 = 7;
    /// KVM_HC_SEND_IPI.
    pub const FEATURE_PV_SEND_IPI: u32 = 11;
    /// MSR_KVM_POLL_CONTROL.
    pub const FEATURE_POLL_CONTROL: u32 = 12;
    /// kvmclock is monotonic across vCPUs.
    pub const FEATURE_CLOCKSOURCE_STABLE_BIT: u32 = 24;
}
