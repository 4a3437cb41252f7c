//! Indices of model-specific registers (SDM vol. 4, chapter 2; KVM msr.txt).
#![allow(missing_docs)]

pub const IA32_TSC: u32 = 0x10;
pub const KVM_WALL_CLOCK: u32 = 0x11;
pub const KVM_SYSTEM_TIME: u32 = 0x12;
pub const IA32_PLATFORM_ID: u32 = 0x17;
pub const IA32_APIC_BASE: u32 = 0x1b;
pub const IA32_FEATURE_CONTROL: u32 = 0x3a;
pub const IA32_TSC_ADJUST: u32 = 0x3b;
pub const IA32_SPEC_CTRL: u32 = 0x48;
pub const IA32_PRED_CMD: u32 = 0x49;
pub const IA32_BIOS_UPDT_TRIG: u32 = 0x79;
pub const IA32_BIOS_SIGN_ID: u32 = 0x8b;
pub const IA32_SMBASE: u32 = 0x9e;
pub const MSR_PLATFORM_INFO: u32 = 0xce;
pub const IA32_MTRRCAP: u32 = 0xfe;
pub const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
pub const IA32_FLUSH_CMD: u32 = 0x10b;
pub const MSR_MISC_FEATURES_ENABLES: u32 = 0x140;
pub const IA32_SYSENTER_CS: u32 = 0x174;
pub const IA32_SYSENTER_ESP: u32 = 0x175;
pub const IA32_SYSENTER_EIP: u32 = 0x176;
pub const IA32_MCG_CAP: u32 = 0x179;
pub const IA32_MCG_STATUS: u32 = 0x17a;
pub const IA32_MCG_CTL: u32 = 0x17b;
pub const IA32_MC0_CTL2: u32 = 0x280;
pub const IA32_MCG_EXT_CTL: u32 = 0x4d0;
pub const IA32_PERFEVTSEL0: u32 = 0x186;
pub const IA32_PERF_STATUS: u32 = 0x198;
pub const IA32_PERF_CTL: u32 = 0x199;
pub const IA32_CLOCK_MODULATION: u32 = 0x19a;
pub const IA32_THERM_STATUS: u32 = 0x19c;
pub const IA32_MISC_ENABLE: u32 = 0x1a0;
pub const IA32_DEBUGCTL: u32 = 0x1d9;
pub const IA32_MTRR_PHYSBASE0: u32 = 0x200;
pub const IA32_MTRR_PHYSMASK7: u32 = 0x20f;
pub const IA32_MTRR_FIX64K_00000: u32 = 0x250;
pub const IA32_MTRR_FIX16K_80000: u32 = 0x258;
pub const IA32_MTRR_FIX16K_A0000: u32 = 0x259;
pub const IA32_MTRR_FIX4K_C0000: u32 = 0x268;
pub const IA32_MTRR_FIX4K_F8000: u32 = 0x26f;
pub const IA32_PAT: u32 = 0x277;
pub const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
pub const IA32_PERF_CAPABILITIES: u32 = 0x345;
pub const IA32_MC0_CTL: u32 = 0x400;
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
pub const X2APIC_FIRST: u32 = 0x800;
pub const X2APIC_LAST: u32 = 0x8ff;
pub const IA32_XSS: u32 = 0xda0;

pub const IA32_EFER: u32 = 0xc000_0080;
pub const IA32_STAR: u32 = 0xc000_0081;
pub const IA32_LSTAR: u32 = 0xc000_0082;
pub const IA32_CSTAR: u32 = 0xc000_0083;
pub const IA32_FMASK: u32 = 0xc000_0084;
pub const IA32_FS_BASE: u32 = 0xc000_0100;
pub const IA32_GS_BASE: u32 = 0xc000_0101;
pub const IA32_KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const IA32_TSC_AUX: u32 = 0xc000_0103;

// AMD's.
pub const AMD_PATCH_LEVEL: u32 = 0x8b;
pub const AMD_SYSCFG: u32 = 0xc001_0010;
pub const AMD_HWCR: u32 = 0xc001_0015;
pub const AMD_VM_CR: u32 = 0xc001_0114;
pub const AMD_VM_HSAVE_PA: u32 = 0xc001_0117;
pub const AMD_LS_CFG: u32 = 0xc001_1020;
pub const AMD_DE_CFG: u32 = 0xc001_1029;
pub const AMD_OSVW_ID_LENGTH: u32 = 0xc001_0140;
pub const AMD_OSVW_STATUS: u32 = 0xc001_0141;

// KVM's own range: 0x4b564d00 to 0x4b564dff.
pub const KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
pub const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
pub const KVM_ASYNC_PF_EN: u32 = 0x4b56_4d02;
pub const KVM_STEAL_TIME: u32 = 0x4b56_4d03;
pub const KVM_PV_EOI_EN: u32 = 0x4b56_4d04;
pub const KVM_POLL_CONTROL: u32 = 0x4b56_4d05;
pub const KVM_ASYNC_PF_INT: u32 = 0x4b56_4d06;
pub const KVM_ASYNC_PF_ACK: u32 = 0x4b56_4d07;
