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
    DS_CPL 0x1 . 0 Ecx 4;
    VMX 0x1 . 0 Ecx 5;
    SMX 0x1 . 0 Ecx 6;
    EST 0x1 . 0 Ecx 7;
    TM2 0x1 . 0 Ecx 8;
    SSSE3 0x1 . 0 Ecx 9;
    CNXT_ID 0x1 . 0 Ecx 10;
    SDBG 0x1 . 0 Ecx 11;
    FMA 0x1 . 0 Ecx 12;
    CX16 0x1 . 0 Ecx 13;
    XTPR 0x1 . 0 Ecx 14;
    PDCM 0x1 . 0 Ecx 15;
    PCID 0x1 . 0 Ecx 17;
    DCA 0x1 . 0 Ecx 18;
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
    PSN 0x1 . 0 Edx 18;
    CLFSH 0x1 . 0 Edx 19;
    DS 0x1 . 0 Edx 21;
    ACPI 0x1 . 0 Edx 22;
    MMX 0x1 . 0 Edx 23;
    FXSR 0x1 . 0 Edx 24;
    SSE 0x1 . 0 Edx 25;
    SSE2 0x1 . 0 Edx 26;
    SS 0x1 . 0 Edx 27;
    HTT 0x1 . 0 Edx 28;
    TM 0x1 . 0 Edx 29;
    PBE 0x1 . 0 Edx 31;
    DTHERM 0x6 . 0 Eax 0;
    TURBO_BOOST 0x6 . 0 Eax 1;
    ARAT 0x6 . 0 Eax 2;
    PLN 0x6 . 0 Eax 4;
    ECMD 0x6 . 0 Eax 5;
    PTS 0x6 . 0 Eax 6;
    HWP 0x6 . 0 Eax 7;
    HWP_NOTIFICATION 0x6 . 0 Eax 8;
    HWP_ACTIVITY_WINDOW 0x6 . 0 Eax 9;
    HWP_EPP 0x6 . 0 Eax 10;
    HWP_PACKAGE_LEVEL 0x6 . 0 Eax 11;
    HDC 0x6 . 0 Eax 13;
    TURBO_BOOST_MAX 0x6 . 0 Eax 14;
    HWP_CAPABILITIES 0x6 . 0 Eax 15;
    HWP_PECI 0x6 . 0 Eax 16;
    HWP_FLEXIBLE 0x6 . 0 Eax 17;
    HWP_FAST_ACCESS 0x6 . 0 Eax 18;
    HW_FEEDBACK 0x6 . 0 Eax 19;
    THREAD_DIRECTOR 0x6 . 0 Eax 23;
    APERFMPERF 0x6 . 0 Ecx 0;
    EPB 0x6 . 0 Ecx 3;
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
    RDT_M 0x7 . 0 Ebx 12;
    ZERO_FCS_FDS 0x7 . 0 Ebx 13;
    MPX 0x7 . 0 Ebx 14;
    RDT_A 0x7 . 0 Ebx 15;
    AVX512F 0x7 . 0 Ebx 16;
    AVX512DQ 0x7 . 0 Ebx 17;
    RDSEED 0x7 . 0 Ebx 18;
    ADX 0x7 . 0 Ebx 19;
    SMAP 0x7 . 0 Ebx 20;
    AVX512IFMA 0x7 . 0 Ebx 21;
    PCOMMIT 0x7 . 0 Ebx 22;
    CLFLUSHOPT 0x7 . 0 Ebx 23;
    CLWB 0x7 . 0 Ebx 24;
    INTEL_PT 0x7 . 0 Ebx 25;
    AVX512PF 0x7 . 0 Ebx 26;
    AVX512ER 0x7 . 0 Ebx 27;
    AVX512CD 0x7 . 0 Ebx 28;
    SHA 0x7 . 0 Ebx 29;
    AVX512BW 0x7 . 0 Ebx 30;
    AVX512VL 0x7 . 0 Ebx 31;
    PREFETCHWT1 0x7 . 0 Ecx 0;
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
    TME 0x7 . 0 Ecx 13;
    AVX512_VPOPCNTDQ 0x7 . 0 Ecx 14;
    LA57 0x7 . 0 Ecx 16;
    RDPID 0x7 . 0 Ecx 22;
    KEY_LOCKER 0x7 . 0 Ecx 23;
    BUS_LOCK_DETECT 0x7 . 0 Ecx 24;
    CLDEMOTE 0x7 . 0 Ecx 25;
    MOVDIRI 0x7 . 0 Ecx 27;
    MOVDIR64B 0x7 . 0 Ecx 28;
    ENQCMD 0x7 . 0 Ecx 29;
    SGX_LC 0x7 . 0 Ecx 30;
    PKS 0x7 . 0 Ecx 31;
    SGX_KEYS 0x7 . 0 Edx 1;
    AVX512_4VNNIW 0x7 . 0 Edx 2;
    AVX512_4FMAPS 0x7 . 0 Edx 3;
    FSRM 0x7 . 0 Edx 4;
    UINTR 0x7 . 0 Edx 5;
    AVX512_VP2INTERSECT 0x7 . 0 Edx 8;
    SRBDS_CTRL 0x7 . 0 Edx 9;
    MD_CLEAR 0x7 . 0 Edx 10;
    RTM_ALWAYS_ABORT 0x7 . 0 Edx 11;
    RTM_FORCE_ABORT 0x7 . 0 Edx 13;
    SERIALIZE 0x7 . 0 Edx 14;
    HYBRID 0x7 . 0 Edx 15;
    TSXLDTRK 0x7 . 0 Edx 16;
    PCONFIG 0x7 . 0 Edx 18;
    ARCH_LBR 0x7 . 0 Edx 19;
    CET_IBT 0x7 . 0 Edx 20;
    AMX_BF16 0x7 . 0 Edx 22;
    AVX512_FP16 0x7 . 0 Edx 23;
    AMX_TILE 0x7 . 0 Edx 24;
    AMX_INT8 0x7 . 0 Edx 25;
    SPEC_CTRL 0x7 . 0 Edx 26;
    STIBP 0x7 . 0 Edx 27;
    FLUSH_L1D 0x7 . 0 Edx 28;
    ARCH_CAPABILITIES 0x7 . 0 Edx 29;
    CORE_CAPABILITIES 0x7 . 0 Edx 30;
    SSBD 0x7 . 0 Edx 31;
    SHA512 0x7 . 1 Eax 0;
    SM3 0x7 . 1 Eax 1;
    SM4 0x7 . 1 Eax 2;
    RAO_INT 0x7 . 1 Eax 3;
    AVX_VNNI 0x7 . 1 Eax 4;
    AVX512_BF16 0x7 . 1 Eax 5;
    LASS 0x7 . 1 Eax 6;
    CMPCCXADD 0x7 . 1 Eax 7;
    ARCH_PERFMON_EXT 0x7 . 1 Eax 8;
    FZRM 0x7 . 1 Eax 10;
    FSRS 0x7 . 1 Eax 11;
    FSRC 0x7 . 1 Eax 12;
    FRED 0x7 . 1 Eax 17;
    LKGS 0x7 . 1 Eax 18;
    WRMSRNS 0x7 . 1 Eax 19;
    NMI_SOURCE 0x7 . 1 Eax 20;
    AMX_FP16 0x7 . 1 Eax 21;
    HRESET 0x7 . 1 Eax 22;
    AVX_IFMA 0x7 . 1 Eax 23;
    LAM 0x7 . 1 Eax 26;
    MSRLIST 0x7 . 1 Eax 27;
    INVD_DISABLE 0x7 . 1 Eax 30;
    MOVRS 0x7 . 1 Eax 31;
    PPIN 0x7 . 1 Ebx 0;
    TSE 0x7 . 1 Ebx 1;
    CPUIDMAXVAL_LIM_RMV 0x7 . 1 Ebx 3;
    MSR_IMM 0x7 . 1 Ecx 5;
    AVX_VNNI_INT8 0x7 . 1 Edx 4;
    AVX_NE_CONVERT 0x7 . 1 Edx 5;
    AMX_COMPLEX 0x7 . 1 Edx 8;
    AVX_VNNI_INT16 0x7 . 1 Edx 10;
    UTMR 0x7 . 1 Edx 13;
    PREFETCHITI 0x7 . 1 Edx 14;
    USER_MSR 0x7 . 1 Edx 15;
    UIRET_UIF 0x7 . 1 Edx 17;
    CET_SSS 0x7 . 1 Edx 18;
    AVX10 0x7 . 1 Edx 19;
    APX_F 0x7 . 1 Edx 21;
    MWAIT_ALONE 0x7 . 1 Edx 23;
    PSFD 0x7 . 2 Edx 0;
    IPRED_CTRL 0x7 . 2 Edx 1;
    RRSBA_CTRL 0x7 . 2 Edx 2;
    DDPD_U 0x7 . 2 Edx 3;
    BHI_CTRL 0x7 . 2 Edx 4;
    MCDT_NO 0x7 . 2 Edx 5;
    UC_LOCK_DISABLE 0x7 . 2 Edx 6;
    MONITOR_MITG_NO 0x7 . 2 Edx 7;
    XSAVEOPT 0xd . 1 Eax 0;
    XSAVEC 0xd . 1 Eax 1;
    XGETBV_ECX_1 0xd . 1 Eax 2;
    XSAVES 0xd . 1 Eax 3;
    XFD 0xd . 1 Eax 4;
    SGX1 0x12 . 0 Eax 0;
    SGX2 0x12 . 0 Eax 1;
    OSS 0x12 . 0 Eax 5;
    SGX_EDECCSSA 0x12 . 0 Eax 11;
    PT_CR3_FILTERING 0x14 . 0 Ebx 0;
    PT_PSB_CYC 0x14 . 0 Ebx 1;
    PT_IP_FILTERING 0x14 . 0 Ebx 2;
    PT_MTC 0x14 . 0 Ebx 3;
    PTWRITE 0x14 . 0 Ebx 4;
    PT_POWER_EVENTS 0x14 . 0 Ebx 5;
    PT_PSB_PMI 0x14 . 0 Ebx 6;
    PT_EVENT_TRACE 0x14 . 0 Ebx 7;
    PT_TNT_DISABLE 0x14 . 0 Ebx 8;
    PT_TOPA 0x14 . 0 Ecx 0;
    PT_TOPA_MULTI 0x14 . 0 Ecx 1;
    PT_SINGLE_RANGE 0x14 . 0 Ecx 2;
    PT_TRANSPORT 0x14 . 0 Ecx 3;
    PT_LIP 0x14 . 0 Ecx 31;
    AESKLE 0x19 . 0 Ebx 0;
    WIDE_KL 0x19 . 0 Ebx 2;
    KL_MSRS 0x19 . 0 Ebx 4;
    AMX_INT8_ALIAS 0x1e . 1 Eax 0;
    AMX_BF16_ALIAS 0x1e . 1 Eax 1;
    AMX_COMPLEX_ALIAS 0x1e . 1 Eax 2;
    AMX_FP16_ALIAS 0x1e . 1 Eax 3;
    AMX_FP8 0x1e . 1 Eax 4;
    AMX_TF32 0x1e . 1 Eax 6;
    AMX_AVX512 0x1e . 1 Eax 7;
    AMX_MOVRS 0x1e . 1 Eax 8;
    AVX10_128 0x24 . 0 Ebx 16;
    AVX10_256 0x24 . 0 Ebx 17;
    AVX10_512 0x24 . 0 Ebx 18;
    AVX10_VNNI_INT 0x24 . 1 Ecx 2;
    LAHF_LM 0x80000001 . 0 Ecx 0;
    CMP_LEGACY 0x80000001 . 0 Ecx 1;
    SVM 0x80000001 . 0 Ecx 2;
    EXTAPIC 0x80000001 . 0 Ecx 3;
    CR8_LEGACY 0x80000001 . 0 Ecx 4;
    LZCNT 0x80000001 . 0 Ecx 5;
    SSE4A 0x80000001 . 0 Ecx 6;
    MISALIGNSSE 0x80000001 . 0 Ecx 7;
    PREFETCHW 0x80000001 . 0 Ecx 8;
    OSVW 0x80000001 . 0 Ecx 9;
    IBS 0x80000001 . 0 Ecx 10;
    XOP 0x80000001 . 0 Ecx 11;
    SKINIT 0x80000001 . 0 Ecx 12;
    WDT 0x80000001 . 0 Ecx 13;
    LWP 0x80000001 . 0 Ecx 15;
    FMA4 0x80000001 . 0 Ecx 16;
    TCE 0x80000001 . 0 Ecx 17;
    NODEID_MSR 0x80000001 . 0 Ecx 19;
    TBM 0x80000001 . 0 Ecx 21;
    TOPOEXT 0x80000001 . 0 Ecx 22;
    PERFCTR_CORE 0x80000001 . 0 Ecx 23;
    PERFCTR_NB 0x80000001 . 0 Ecx 24;
    BPEXT 0x80000001 . 0 Ecx 26;
    PTSC 0x80000001 . 0 Ecx 27;
    PERFCTR_LLC 0x80000001 . 0 Ecx 28;
    MONITORX 0x80000001 . 0 Ecx 29;
    ADDR_MASK_EXT 0x80000001 . 0 Ecx 30;
    SYSCALL 0x80000001 . 0 Edx 11;
    MP 0x80000001 . 0 Edx 19;
    NX 0x80000001 . 0 Edx 20;
    MMXEXT 0x80000001 . 0 Edx 22;
    FXSR_OPT 0x80000001 . 0 Edx 25;
    PDPE1GB 0x80000001 . 0 Edx 26;
    RDTSCP 0x80000001 . 0 Edx 27;
    LM 0x80000001 . 0 Edx 29;
    D3NOWEXT 0x80000001 . 0 Edx 30;
    D3NOW 0x80000001 . 0 Edx 31;
    OVERFLOW_RECOV 0x80000007 . 0 Ebx 0;
    SUCCOR 0x80000007 . 0 Ebx 1;
    HWA 0x80000007 . 0 Ebx 2;
    SMCA 0x80000007 . 0 Ebx 3;
    TEMPERATURE_SENSOR 0x80000007 . 0 Edx 0;
    FID_CONTROL 0x80000007 . 0 Edx 1;
    VID_CONTROL 0x80000007 . 0 Edx 2;
    THERMAL_TRIP 0x80000007 . 0 Edx 3;
    HTC 0x80000007 . 0 Edx 4;
    MULTIPLIER_CONTROL 0x80000007 . 0 Edx 6;
    HW_PSTATE 0x80000007 . 0 Edx 7;
    INVARIANT_TSC 0x80000007 . 0 Edx 8;
    CORE_BOOST 0x80000007 . 0 Edx 9;
    EFF_FREQ_RO 0x80000007 . 0 Edx 10;
    PROC_FEEDBACK 0x80000007 . 0 Edx 11;
    PROC_POWER 0x80000007 . 0 Edx 12;
    CLZERO 0x80000008 . 0 Ebx 0;
    IRPERF 0x80000008 . 0 Ebx 1;
    XSAVEERPTR 0x80000008 . 0 Ebx 2;
    INVLPGB 0x80000008 . 0 Ebx 3;
    RDPRU 0x80000008 . 0 Ebx 4;
    MBE 0x80000008 . 0 Ebx 6;
    MCOMMIT 0x80000008 . 0 Ebx 8;
    WBNOINVD 0x80000008 . 0 Ebx 9;
    LBREXTN 0x80000008 . 0 Ebx 10;
    AMD_IBPB 0x80000008 . 0 Ebx 12;
    INT_WBINVD 0x80000008 . 0 Ebx 13;
    AMD_IBRS 0x80000008 . 0 Ebx 14;
    AMD_STIBP 0x80000008 . 0 Ebx 15;
    IBRS_ALWAYS_ON 0x80000008 . 0 Ebx 16;
    STIBP_ALWAYS_ON 0x80000008 . 0 Ebx 17;
    IBRS_PREFERRED 0x80000008 . 0 Ebx 18;
    IBRS_SAME_MODE 0x80000008 . 0 Ebx 19;
    EFER_LMSLE_UNSUPPORTED 0x80000008 . 0 Ebx 20;
    INVLPGB_NESTED 0x80000008 . 0 Ebx 21;
    AMD_PPIN 0x80000008 . 0 Ebx 23;
    AMD_SSBD 0x80000008 . 0 Ebx 24;
    VIRT_SSBD 0x80000008 . 0 Ebx 25;
    SSB_NO 0x80000008 . 0 Ebx 26;
    CPPC 0x80000008 . 0 Ebx 27;
    AMD_PSFD 0x80000008 . 0 Ebx 28;
    BTC_NO 0x80000008 . 0 Ebx 29;
    IBPB_RET 0x80000008 . 0 Ebx 30;
    BRANCH_SAMPLING 0x80000008 . 0 Ebx 31;
    NESTED_PAGING 0x8000000a . 0 Edx 0;
    LBR_VIRT 0x8000000a . 0 Edx 1;
    SVM_LOCK 0x8000000a . 0 Edx 2;
    NRIP_SAVE 0x8000000a . 0 Edx 3;
    TSC_RATE_MSR 0x8000000a . 0 Edx 4;
    VMCB_CLEAN 0x8000000a . 0 Edx 5;
    FLUSH_BY_ASID 0x8000000a . 0 Edx 6;
    DECODE_ASSISTS 0x8000000a . 0 Edx 7;
    PMC_VIRT 0x8000000a . 0 Edx 8;
    PAUSE_FILTER 0x8000000a . 0 Edx 10;
    PAUSE_FILTER_THRESHOLD 0x8000000a . 0 Edx 12;
    AVIC 0x8000000a . 0 Edx 13;
    V_VMSAVE_VMLOAD 0x8000000a . 0 Edx 15;
    VGIF 0x8000000a . 0 Edx 16;
    GMET 0x8000000a . 0 Edx 17;
    X2AVIC 0x8000000a . 0 Edx 18;
    SSS_CHECK 0x8000000a . 0 Edx 19;
    V_SPEC_CTRL 0x8000000a . 0 Edx 20;
    ROGPT 0x8000000a . 0 Edx 21;
    HOST_MCE_OVERRIDE 0x8000000a . 0 Edx 23;
    TLBI_CTL 0x8000000a . 0 Edx 24;
    VNMI 0x8000000a . 0 Edx 25;
    IBS_VIRT 0x8000000a . 0 Edx 26;
    EXT_LVT_AVIC 0x8000000a . 0 Edx 27;
    VMCB_ADDR_CHECK 0x8000000a . 0 Edx 28;
    BUS_LOCK_THRESHOLD 0x8000000a . 0 Edx 29;
    IDLE_HLT 0x8000000a . 0 Edx 30;
    SME 0x8000001f . 0 Eax 0;
    SEV 0x8000001f . 0 Eax 1;
    VM_PAGE_FLUSH 0x8000001f . 0 Eax 2;
    SEV_ES 0x8000001f . 0 Eax 3;
    SEV_SNP 0x8000001f . 0 Eax 4;
    VMPL 0x8000001f . 0 Eax 5;
    RMPQUERY 0x8000001f . 0 Eax 6;
    VMPL_SSS 0x8000001f . 0 Eax 7;
    SECURE_TSC 0x8000001f . 0 Eax 8;
    V_TSC_AUX 0x8000001f . 0 Eax 9;
    SME_COHERENT 0x8000001f . 0 Eax 10;
    SEV_64BIT_HOST 0x8000001f . 0 Eax 11;
    RESTRICTED_INJECTION 0x8000001f . 0 Eax 12;
    ALTERNATE_INJECTION 0x8000001f . 0 Eax 13;
    DEBUG_SWAP 0x8000001f . 0 Eax 14;
    PREVENT_HOST_IBS 0x8000001f . 0 Eax 15;
    VTE 0x8000001f . 0 Eax 16;
    VMGEXIT_PARAMETER 0x8000001f . 0 Eax 17;
    VIRT_TOM 0x8000001f . 0 Eax 18;
    IBS_VIRT_GUEST 0x8000001f . 0 Eax 19;
    VMSA_REG_PROT 0x8000001f . 0 Eax 24;
    SMT_PROTECTION 0x8000001f . 0 Eax 25;
    NO_NESTED_DATA_BP 0x80000021 . 0 Eax 0;
    WRMSR_BASE_NON_SERIALIZING 0x80000021 . 0 Eax 1;
    LFENCE_RDTSC 0x80000021 . 0 Eax 2;
    SMM_PGCFG_LOCK 0x80000021 . 0 Eax 3;
    VERW_CLEAR 0x80000021 . 0 Eax 5;
    NULL_SEL_CLR_BASE 0x80000021 . 0 Eax 6;
    UPPER_ADDRESS_IGNORE 0x80000021 . 0 Eax 7;
    AUTOIBRS 0x80000021 . 0 Eax 8;
    NO_SMM_CTL_MSR 0x80000021 . 0 Eax 9;
    AMD_FSRS 0x80000021 . 0 Eax 10;
    AMD_FSRC 0x80000021 . 0 Eax 11;
    PREFETCH_CTL_MSR 0x80000021 . 0 Eax 13;
    CPUID_USER_DIS 0x80000021 . 0 Eax 17;
    EPSF 0x80000021 . 0 Eax 18;
    PREFETCHI 0x80000021 . 0 Eax 20;
    ERAPS 0x80000021 . 0 Eax 24;
    SBPB 0x80000021 . 0 Eax 27;
    IBPB_BRTYPE 0x80000021 . 0 Eax 28;
    SRSO_NO 0x80000021 . 0 Eax 29;
    SRSO_USER_KERNEL_NO 0x80000021 . 0 Eax 30;
    SRSO_BP_SPEC_REDUCE 0x80000021 . 0 Eax 31;
    TSA_SQ_NO 0x80000021 . 0 Ecx 1;
    TSA_L1_NO 0x80000021 . 0 Ecx 2;
    PERFMON_V2 0x80000022 . 0 Eax 0;
    LBR_STACK 0x80000022 . 0 Eax 1;
    LBR_PMC_FREEZE 0x80000022 . 0 Eax 2;
    PADLOCK_RNG 0xc0000001 . 0 Edx 2;
    PADLOCK_RNG_ENABLED 0xc0000001 . 0 Edx 3;
    PADLOCK_ACE 0xc0000001 . 0 Edx 6;
    PADLOCK_ACE_ENABLED 0xc0000001 . 0 Edx 7;
    PADLOCK_ACE2 0xc0000001 . 0 Edx 8;
    PADLOCK_ACE2_ENABLED 0xc0000001 . 0 Edx 9;
    PADLOCK_PHE 0xc0000001 . 0 Edx 10;
    PADLOCK_PHE_ENABLED 0xc0000001 . 0 Edx 11;
    PADLOCK_PMM 0xc0000001 . 0 Edx 12;
    PADLOCK_PMM_ENABLED 0xc0000001 . 0 Edx 13;
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
    /// MSR_KVM_ASYNC_PF_EN.
    pub const FEATURE_ASYNC_PF: u32 = 4;
    /// MSR_KVM_STEAL_TIME.
    pub const FEATURE_STEAL_TIME: u32 = 5;
    /// MSR_KVM_PV_EOI_EN.
    pub const FEATURE_PV_EOI: u32 = 6;
    /// KVM_HC_KICK_CPU.
    pub const FEATURE_PV_UNHALT: u32 = 7;
    /// KVM_VCPU_FLUSH_TLB in the steal-time record.
    pub const FEATURE_PV_TLB_FLUSH: u32 = 9;
    /// Asynchronous page faults may be reported as VM exits.
    pub const FEATURE_ASYNC_PF_VMEXIT: u32 = 10;
    /// KVM_HC_SEND_IPI.
    pub const FEATURE_PV_SEND_IPI: u32 = 11;
    /// MSR_KVM_POLL_CONTROL.
    pub const FEATURE_POLL_CONTROL: u32 = 12;
    /// KVM_HC_SCHED_YIELD.
    pub const FEATURE_PV_SCHED_YIELD: u32 = 13;
    /// MSR_KVM_ASYNC_PF_INT and MSR_KVM_ASYNC_PF_ACK.
    pub const FEATURE_ASYNC_PF_INT: u32 = 14;
    /// kvmclock is monotonic across vCPUs.
    pub const FEATURE_CLOCKSOURCE_STABLE_BIT: u32 = 24;
}
