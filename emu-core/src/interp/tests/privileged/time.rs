//! What CPUID, the time-stamp counter and model-specific registers say and refuse: CPUID faulting, CR4.TSD, CR4.PCE,
//! unknown and reserved MSRs.

use super::Set::*;
use super::Want::*;
use super::*;
use x86_arch::cpuid;
use x86_arch::msr::*;

const TSD: Set = WithCr4(Cr4::TSD);
const PCE: Set = WithCr4(Cr4::PCE);
const FAULTING: Set = Do(|r| r.cpu().msr.misc_features_enables = 1);
const fn ecx(v: u32) -> Set {
    Reg(Gpr::Rcx, v as u64)
}
const fn eax(v: u64) -> Set {
    Reg(Gpr::Rax, v)
}
const fn edx(v: u64) -> Set {
    Reg(Gpr::Rdx, v)
}
/// EDX for a canonical upper half, and for one that is not.
const HIGH: Set = edx(0xffff_8000);
const HOLE: Set = edx(0x8000);
/// Modes in which MSRs are reached.
const KERNEL: Modes = REAL.or(PROTECTED);

#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    // ---- CPUID
    (ALL, ANY, "0F A2", &[], Get(Gpr::Rbx, 0x756e_6547), "SDM vol. 2A, CPUID: at any CPL"),
    (REAL.or(PROTECTED), CPL0, "0F A2", &[FAULTING], Done, "SDM vol. 4, MSR_MISC_FEATURES_ENABLES: CPL 0"),
    (PE, OUTER, "0F A2", &[FAULTING], GP0, "SDM vol. 4, MSR_MISC_FEATURES_ENABLES: CPL>0"),
    (ALL, ANY, "F0 0F A2", &[], UD, "SDM vol. 2A, CPUID: LOCK"),
    // ---- RDTSC, RDTSCP, RDPID, RDPMC
    (ALL, ANY, "0F 31", &[Iopl(0)], Done, "SDM vol. 2B, RDTSC: TSD=0"),
    (REAL.or(PROTECTED), CPL0, "0F 31", &[TSD], Done, "SDM vol. 2B, RDTSC: TSD=1, CPL=0"),
    (PE, OUTER, "0F 31", &[TSD, Iopl(3)], GP0, "SDM vol. 2B, RDTSC: TSD=1, CPL>0"),
    (ALL, ANY, "0F 31", &[Lacks(cpuid::TSC)], UD, "SDM vol. 2B, RDTSC: CPUID"),
    (ALL, ANY, "F0 0F 31", &[], UD, "SDM vol. 2B, RDTSC: LOCK"),
    (ALL, ANY, "0F 01 F9", &[Do(|r| r.cpu().msr.tsc_aux = 7)], Get(Gpr::Rcx, 7), "SDM vol. 2B, RDTSCP: TSD=0"),
    (REAL.or(PROTECTED), CPL0, "0F 01 F9", &[TSD], Done, "SDM vol. 2B, RDTSCP: TSD=1, CPL=0"),
    (PE, OUTER, "0F 01 F9", &[TSD], GP0, "SDM vol. 2B, RDTSCP: TSD=1, CPL>0"),
    (ALL, ANY, "0F 01 F9", &[Lacks(cpuid::RDTSCP)], UD, "SDM vol. 2B, RDTSCP: CPUID"),
    (ALL, ANY, "F0 0F 01 F9", &[], UD, "SDM vol. 2B, RDTSCP: LOCK"),
    (ALL, ANY, "F3 0F C7 F8", &[TSD, Do(|r| r.cpu().msr.tsc_aux = 7)], Get(Gpr::Rax, 7), "SDM vol. 2B, RDPID: TSD does not matter"),
    (ALL, ANY, "F3 0F C7 F8", &[Lacks(cpuid::RDPID)], UD, "SDM vol. 2B, RDPID: CPUID"),
    (ALL, ANY, "F0 F3 0F C7 F8", &[], UD, "SDM vol. 2B, RDPID: LOCK"),
    (ALL, ANY, "0F C7 F8", &[], Flag(Rflags::CF, Rflags::ZF), "SDM vol. 2B, RDSEED"),
    (ALL, ANY, "0F 33", &[ecx(0)], GP0, "SDM vol. 2B, RDPMC: no counter exists"),
    (ALL, ANY, "0F 33", &[PCE, ecx(0)], GP0, "SDM vol. 2B, RDPMC: no counter exists"),
    (ALL, ANY, "0F 33", &[PCE, ecx(0x4000_0000)], GP0, "SDM vol. 2B, RDPMC: no fixed counter exists"),
    (ALL, ANY, "0F 33", &[PCE, ecx(0xffff_ffff)], GP0, "SDM vol. 2B, RDPMC: no such counter"),
    (ALL, ANY, "F0 0F 33", &[], UD, "SDM vol. 2B, RDPMC: LOCK"),
    // ---- RDMSR
    (PE, OUTER, "0F 32", &[ecx(IA32_TSC), Iopl(3)], GP0, "SDM vol. 2B, RDMSR: CPL>0; virtual-8086 mode"),
    (KERNEL, CPL0, "0F 32", &[ecx(IA32_TSC)], Done, "SDM vol. 2B, RDMSR"),
    (KERNEL, CPL0, "0F 32", &[ecx(IA32_EFER)], Is(|r| r.get(Gpr::Rax) == r.cpu().efer.bits()), "SDM vol. 2B, RDMSR"),
    (LONG, CPL0, "0F 32", &[ecx(IA32_LSTAR), eax(!0), edx(!0), Do(|r| r.cpu().msr.lstar = 0xffff_8000_1234_5678)], Is(|r| r.get(Gpr::Rdx) == 0xffff_8000 && r.get(Gpr::Rax) == 0x1234_5678), "SDM vol. 2B, RDMSR: upper halves are cleared"),
    (LONG, CPL0, "0F 32", &[Reg(Gpr::Rcx, 0xffff_ffff_0000_0010)], Done, "SDM vol. 2B, RDMSR: RCX[63:32] is ignored"),
    (KERNEL, CPL0, "0F 32", &[ecx(0x1234_5678)], GP0, "SDM vol. 2B, RDMSR: unimplemented"),
    (KERNEL, CPL0, "0F 32", &[ecx(0xffff_ffff)], GP0, "SDM vol. 2B, RDMSR: unimplemented"),
    (KERNEL, CPL0, "0F 32", &[ecx(IA32_FEATURE_CONTROL + 0x300)], GP0, "SDM vol. 2B, RDMSR: unimplemented"),
    (KERNEL, CPL0, "0F 32", &[ecx(IA32_PRED_CMD)], GP0, "SDM vol. 4, IA32_PRED_CMD: write-only"),
    (KERNEL, CPL0, "0F 32", &[ecx(IA32_FLUSH_CMD)], GP0, "SDM vol. 4, IA32_FLUSH_CMD: write-only"),
    (KERNEL, CPL0, "0F 32", &[ecx(IA32_TSC_AUX), Lacks(cpuid::RDTSCP), Lacks(cpuid::RDPID)], GP0, "SDM vol. 4, IA32_TSC_AUX: by CPUID"),
    (KERNEL, CPL0, "0F 32", &[ecx(IA32_XSS), Lacks(cpuid::XSAVES)], GP0, "SDM vol. 4, IA32_XSS: by CPUID"),
    (KERNEL, CPL0, "0F 32", &[ecx(IA32_LSTAR), Lacks(cpuid::SYSCALL)], GP0, "SDM vol. 4, IA32_LSTAR: by CPUID"),
    (KERNEL, CPL0, "0F 32", &[ecx(IA32_SYSENTER_CS), Lacks(cpuid::SEP)], GP0, "SDM vol. 4, IA32_SYSENTER_CS: by CPUID"),
    (KERNEL, CPL0, "0F 32", &[ecx(AMD_DE_CFG)], GP0, "APM vol. 2, appendix A: DE_CFG is AMD's"),
    (KERNEL, CPL0, "0F 32", &[Amd, ecx(AMD_HWCR)], Done, "APM vol. 2, appendix A: HWCR"),
    (ALL, ANY, "0F 32", &[ecx(IA32_TSC), Lacks(cpuid::MSR)], UD, "SDM vol. 2B, RDMSR: CPUID"),
    (ALL, ANY, "F0 0F 32", &[], UD, "SDM vol. 2B, RDMSR: LOCK"),
    // ---- WRMSR
    (PE, OUTER, "0F 30", &[ecx(IA32_TSC), Iopl(3)], GP0, "SDM vol. 2B, WRMSR: CPL>0; virtual-8086 mode"),
    (KERNEL, CPL0, "0F 30", &[ecx(0x1234_5678)], GP0, "SDM vol. 2B, WRMSR: unimplemented"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_MTRRCAP)], GP0, "SDM vol. 4, IA32_MTRRCAP: read-only"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_ARCH_CAPABILITIES)], GP0, "SDM vol. 4, IA32_ARCH_CAPABILITIES: read-only"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_PERF_STATUS)], GP0, "SDM vol. 4, IA32_PERF_STATUS: read-only"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_LSTAR), HIGH], Is(|r| r.cpu().msr.lstar == 0xffff_8000_0000_0000), "SDM vol. 2B, WRMSR"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_LSTAR), HOLE], GP0, "SDM vol. 2B, WRMSR: not canonical"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_CSTAR), HOLE], GP0, "SDM vol. 2B, WRMSR: not canonical"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_FS_BASE), HOLE], GP0, "SDM vol. 2B, WRMSR: not canonical"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_GS_BASE), HOLE], GP0, "SDM vol. 2B, WRMSR: not canonical"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_KERNEL_GS_BASE), HOLE], GP0, "SDM vol. 2B, WRMSR: not canonical"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_SYSENTER_ESP), HOLE], GP0, "SDM vol. 2B, WRMSR: not canonical"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_SYSENTER_EIP), HOLE], GP0, "SDM vol. 2B, WRMSR: not canonical"),
    (KERNEL, CPL0, "0F 30", &[Amd, ecx(IA32_LSTAR), HOLE], GP0, "APM vol. 3, WRMSR: not canonical"),
    (KERNEL, CPL0, "0F 30", &[Amd, ecx(IA32_SYSENTER_EIP), HOLE, eax(5)], Is(|r| r.cpu().msr.sysenter_eip == 5), "APM vol. 2, 6.1.2: 32 bits"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_STAR), edx(0xdead_beef), eax(5)], Is(|r| r.cpu().msr.star == 0xdead_beef_0000_0005), "SDM vol. 4, IA32_STAR: any value"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_FMASK), edx(1)], GP0, "SDM vol. 4, IA32_FMASK: bits 63:32"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_TSC_AUX), edx(1)], GP0, "SDM vol. 4, IA32_TSC_AUX: bits 63:32"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_XSS), eax(1)], GP0, "SDM vol. 1, 13.3: a user component"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_XSS), eax(0x100)], GP0, "SDM vol. 1, 13.3: PT state is not offered"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_PAT), eax(0x0007_0406), edx(0x0007_0406)], Done, "SDM vol. 3A, 11.12.2"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_PAT), eax(0x0007_0206), edx(0x0007_0406)], GP0, "SDM vol. 3A, 11.12.2: type 2"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_PAT), eax(0x0007_0406), edx(0x0807_0406)], GP0, "SDM vol. 3A, 11.12.2: reserved bits"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_MTRR_DEF_TYPE), eax(0xc06)], Done, "SDM vol. 3A, 11.11.2.1"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_MTRR_DEF_TYPE), eax(0xc02)], GP0, "SDM vol. 3A, 11.11.2.1: type 2"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_MTRR_DEF_TYPE), eax(0x1c06)], GP0, "SDM vol. 3A, 11.11.2.1: reserved bits"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_MTRR_PHYSBASE0), eax(0x8000_0106)], GP0, "SDM vol. 3A, 11.11.2.3: reserved bits"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_MTRR_PHYSBASE0), eax(6), edx(1 << 14)], GP0, "SDM vol. 3A, 11.11.2.3: above MAXPHYADDR"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_MTRR_FIX64K_00000), eax(0x0606_0206)], GP0, "SDM vol. 3A, 11.11.2.2: type 2"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_EFER), eax(0xd01 | 1 << 1)], GP0, "SDM vol. 4, IA32_EFER: bit 1"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_EFER), eax(0xd01), edx(1)], GP0, "SDM vol. 4, IA32_EFER: bits 63:32"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_EFER), eax(1 << 12)], GP0, "APM vol. 2, 3.1.7: SVME is not offered"),
    (IA32E, CPL0, "0F 30", &[ecx(IA32_EFER), eax(0xc01)], GP0, "SDM vol. 3A, 9.8.5: LME cleared under paging"),
    (LEGACY, CPL0, "0F 30", &[ecx(IA32_EFER), eax(0x100)], GP0, "SDM vol. 3A, 9.8.5: LME set under paging"),
    (REAL, CPL0, "0F 30", &[ecx(IA32_EFER), eax(0x101)], Is(|r| r.cpu().efer.bits() == 0x101), "SDM vol. 3A, 9.8.5: LME without paging"),
    (IA32E, CPL0, "0F 30", &[ecx(IA32_EFER), eax(0x900)], Is(|r| r.cpu().efer.bits() == 0xd00), "SDM vol. 4, IA32_EFER: LMA is read-only"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_EFER), eax(0x901), Lacks(cpuid::NX)], GP0, "SDM vol. 4, IA32_EFER: NXE by CPUID"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_PRED_CMD), eax(1)], Done, "SDM vol. 4, IA32_PRED_CMD"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_PRED_CMD), eax(2)], GP0, "SDM vol. 4, IA32_PRED_CMD: reserved bits"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_SPEC_CTRL), eax(0x8)], GP0, "SDM vol. 4, IA32_SPEC_CTRL: bits that are not offered"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_DEBUGCTL), eax(1 << 13)], GP0, "SDM vol. 4, IA32_DEBUGCTL: bit 13"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_APIC_BASE), eax(0xfee0_0800)], Is(|r| r.cpu().msr.apic_base == 0xfee0_0800), "SDM vol. 3A, 10.4.4"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_APIC_BASE), eax(0xfee0_0801)], GP0, "SDM vol. 3A, 10.4.4: reserved bits"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_APIC_BASE), eax(0xfee0_0a00)], GP0, "SDM vol. 3A, 10.4.4: reserved bits"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_APIC_BASE), eax(0xfee0_0800), edx(1 << 14)], GP0, "SDM vol. 3A, 10.4.4: above MAXPHYADDR"),
    (KERNEL, CPL0, "0F 30", &[ecx(IA32_APIC_BASE), eax(0xfee0_0400)], GP0, "SDM vol. 3A, 10.12.1, table 10-5: EXTD without EN"),
    (KERNEL, CPL0, "0F 30", &[ecx(MSR_MISC_FEATURES_ENABLES), eax(1)], Is(|r| r.cpu().msr.misc_features_enables == 1), "SDM vol. 4, MSR_MISC_FEATURES_ENABLES"),
    (KERNEL, CPL0, "0F 30", &[ecx(MSR_MISC_FEATURES_ENABLES), eax(2)], GP0, "SDM vol. 4, MSR_MISC_FEATURES_ENABLES: reserved bits"),
    (KERNEL, CPL0, "0F 30", &[ecx(MSR_MISC_FEATURES_ENABLES), eax(1), Do(|r| r.cpu().msr.platform_info = 0)], GP0, "SDM vol. 4, MSR_PLATFORM_INFO: no CPUID faulting"),
    (ALL, ANY, "F0 0F 30", &[], UD, "SDM vol. 2B, WRMSR: LOCK"),
];

#[test]
fn table() {
    check(ROWS);
}
