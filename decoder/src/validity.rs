//! Whether an instruction that iced decoded is one for this guest: its mode, its CPUID, its vendor.
//!
//! What iced decides already, with the checks that we leave switched on (a test in this file holds it to them): LOCK
//! on what cannot be locked; prefixes before VEX, EVEX and XOP; reserved bits of those; registers that do
//! not exist (CR1, CR9, DR8, a seventh segment register); memory-only and register-only forms; what a code size does
//! not have.
//!
//! What is decided at run time, by the handlers: everything that depends on a control register, an MSR or the
//! privilege level (#UD for CR4.OSFXSR=0, XCR0, CR0.EM, RSM outside SMM, SYSCALL with EFER.SCE=0 …).
//!
//! # Decoder options
//!
//! None of iced's options for extinct or foreign processors (MPX, KNC, Cyrix, 80286 LOADALL, UMOV, MOV TR,
//! JMPE …) is set: those encodings are #UD, or the reserved NOPs that today's processors make of them. `AMD` is
//! set where the guest's vendor is AMD: near branches in 64-bit mode then obey 66h, LOCK MOV CR0 is MOV CR8, and a far
//! pointer has no 64-bit offset (APM vol. 3). Three options say that a prefix which selects a newer instruction is ignored where the guest does
//! not have that instruction: LZCNT is then BSR, TZCNT BSF, WBNOINVD WBINVD.

use std::sync::LazyLock;

use iced_x86::{Code, CpuidFeature, DecoderOptions, Mnemonic};
use x86_arch::cpuid::{self, Feature};
use x86_arch::exception::Vector;

use crate::insn::CpuMode;

/// What CR0.PE and RFLAGS.VM say: it decides about instructions that need protected mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protection {
    /// CR0.PE=0.
    Real,
    /// CR0.PE=1, RFLAGS.VM=1.
    Virtual8086,
    /// CR0.PE=1, RFLAGS.VM=0.
    Protected,
}

/// Whose rules apply where the vendors differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Vendor {
    /// Intel, and everyone who is not AMD.
    #[default]
    Intel,
    /// AMD and Hygon.
    Amd,
}

/// Under what an instruction is decoded. A block is valid only under the same.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The code size.
    pub mode: CpuMode,
    /// Real, virtual-8086 or protected.
    pub protection: Protection,
    /// What the guest's processor has.
    pub cpuid: &'a CpuidSet,
}

/// The instructions that a guest's processor has.
#[derive(Clone, Debug)]
pub struct CpuidSet {
    allowed: Box<[u64]>,
    vendor: Vendor,
    options: u32,
    /// LAHF and SAHF in 64-bit mode.
    lahf64: bool,
}

impl CpuidSet {
    /// From the features that the guest is offered.
    pub fn new(vendor: Vendor, has: impl Fn(Feature) -> bool) -> CpuidSet {
        let offered: Vec<bool> = CpuidFeature::values()
            .map(|f| match gate(f) {
                Gate::Always => true,
                Gate::Never => false,
                Gate::If(feature) => has(feature),
            })
            .collect();
        let mut allowed = vec![0u64; Code::values().len().div_ceil(64)].into_boxed_slice();
        for code in Code::values() {
            if always(code) || code.cpuid_features().iter().all(|f| offered[*f as usize]) {
                allowed[code as usize / 64] |= 1 << (code as usize % 64);
            }
        }
        let mut options = match vendor {
            Vendor::Intel => DecoderOptions::NONE,
            Vendor::Amd => DecoderOptions::AMD,
        };
        for (feature, option) in [
            (cpuid::BMI1, DecoderOptions::NO_MPFX_0FBC),
            (cpuid::LZCNT, DecoderOptions::NO_MPFX_0FBD),
            (cpuid::WBNOINVD, DecoderOptions::NO_WBNOINVD),
        ] {
            if !has(feature) {
                options |= option;
            }
        }
        CpuidSet { allowed, vendor, options, lahf64: has(cpuid::LAHF_LM) }
    }

    /// Every feature that [`gate`] knows: what a processor does that is not told to hide anything. (CPUID hides a
    /// feature, but on silicon it takes away only what a control register also guards.)
    pub fn everything(vendor: Vendor) -> CpuidSet {
        CpuidSet::new(vendor, |_| true)
    }

    /// Whether the guest's processor has this instruction.
    #[inline]
    pub fn has(&self, code: Code) -> bool {
        let i = code as usize;
        self.allowed.get(i / 64).is_some_and(|w| w >> (i % 64) & 1 != 0)
    }

    /// The options for iced's decoder.
    #[inline]
    pub fn decoder_options(&self) -> u32 {
        self.options
    }

    /// Whose rules apply.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }
}

/// What `code` is under `context`: itself; a NOP, if it is a hint that this processor does not know; or the fault
/// that it raises whatever the privilege level and control registers say.
#[inline]
pub fn check(code: Code, context: &Context<'_>) -> Result<Code, Vector> {
    let kind = SPECIAL.get(code as usize).copied().unwrap_or(Special::Invalid);
    if kind == Special::Plain && context.cpuid.has(code) {
        return Ok(code);
    }
    check_special(code, kind, context)
}

#[cold]
fn check_special(code: Code, kind: Special, context: &Context<'_>) -> Result<Code, Vector> {
    if !context.cpuid.has(code) {
        return as_hint(code).ok_or(Vector::Ud);
    }
    match kind {
        Special::Plain => Ok(code),
        Special::Invalid => Err(Vector::Ud),
        Special::ProtectedOnly if context.protection == Protection::Protected => Ok(code),
        Special::ProtectedOnly => Err(Vector::Ud),
        // SDM vol. 2B, SYSCALL: #UD outside 64-bit mode. AMD's have it in every mode but real (APM vol. 3, SYSCALL).
        Special::Syscall if context.mode == CpuMode::Bits64 || context.cpuid.vendor == Vendor::Amd => {
            Ok(code)
        }
        Special::Syscall => Err(Vector::Ud),
        // SDM vol. 2B, SYSENTER: #GP(0) in real mode, not #UD. AMD's have neither in long mode (APM vol. 3); that
        // includes compatibility mode, which only the handler can tell from legacy mode, and SYSEXIT looks at the CPL first.
        Special::Sysenter
            if context.cpuid.vendor == Vendor::Amd
                && context.mode == CpuMode::Bits64
                && code == Code::Sysenter =>
        {
            Err(Vector::Ud)
        }
        Special::Sysenter if context.protection == Protection::Real => Err(Vector::Gp),
        Special::Sysenter => Ok(code),
        // SDM vol. 2A, LAHF: in 64-bit mode only with CPUID.80000001H:ECX[0].
        Special::Lahf if context.mode == CpuMode::Bits64 && !context.cpuid.lahf64 => Err(Vector::Ud),
        Special::Lahf => Ok(code),
    }
}

/// Instructions that some mode or vendor does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Special {
    /// Every mode in which it decodes has it.
    Plain,
    /// UD0, UD1, UD2, and what is no instruction.
    Invalid,
    /// #UD in real and virtual-8086 mode.
    ProtectedOnly,
    /// SYSCALL and SYSRET.
    Syscall,
    /// SYSENTER and SYSEXIT.
    Sysenter,
    /// LAHF and SAHF.
    Lahf,
}

static SPECIAL: LazyLock<Box<[Special]>> = LazyLock::new(|| Code::values().map(special).collect());

fn special(code: Code) -> Special {
    let info = code.op_code();
    match code.mnemonic() {
        Mnemonic::INVALID | Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => Special::Invalid,
        Mnemonic::Db | Mnemonic::Dw | Mnemonic::Dd | Mnemonic::Dq => Special::Invalid,
        Mnemonic::Syscall | Mnemonic::Sysret | Mnemonic::Sysretq => Special::Syscall,
        Mnemonic::Sysenter | Mnemonic::Sysexit | Mnemonic::Sysexitq => Special::Sysenter,
        Mnemonic::Lahf | Mnemonic::Sahf => Special::Lahf,
        // Only a code that can be decoded outside 64-bit mode can meet real mode.
        _ if !info.real_mode() && (info.mode16() || info.mode32()) => Special::ProtectedOnly,
        _ => Special::Plain,
    }
}

/// The NOP that a hint is on a processor that does not know it: hints were given encodings that were NOPs
/// (SDM vol. 2A, CLDEMOTE, ENDBR64; vol. 2B, PREFETCHW, RDSSP).
fn as_hint(code: Code) -> Option<Code> {
    use Mnemonic as M;
    match code.mnemonic() {
        M::Cldemote | M::Prefetch | M::Prefetchw | M::Prefetchwt1 | M::Prefetchit0 | M::Prefetchit1 => {
            Some(Code::Nop_rm32)
        }
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 => Some(Code::Nop_rm32),
        M::Endbr32 | M::Endbr64 => Some(Code::Nopd),
        M::Rdsspd => Some(Code::Nop_rm32),
        M::Rdsspq => Some(Code::Nop_rm64),
        _ => None,
    }
}

/// What decides whether a guest has the instructions of one of iced's feature groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// Every 64-bit processor has them, or something other than CPUID decides.
    Always,
    /// A bit of CPUID.
    If(Feature),
    /// No guest of ours: extinct, another vendor's, or without a row in `x86_arch::cpuid`.
    Never,
}

/// Instructions that a guest of KVM's has whatever CPUID says of their group: a hypervisor answers its hypercalls
/// although it offers no nested virtualization (KVM hypercalls.txt), and MONITOR and MWAIT are NOPs
/// unless user space wants it otherwise (KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS).
fn always(code: Code) -> bool {
    use Code::{Monitord, Monitorq, Monitorw, Mwait, Vmcall, Vmmcall};
    matches!(code, Vmcall | Vmmcall | Monitorw | Monitord | Monitorq | Mwait)
}

/// What decides about the instructions of `feature`.
pub fn gate(feature: CpuidFeature) -> Gate {
    use CpuidFeature as F;
    let bit = match feature {
        F::INTEL8086
        | F::INTEL186
        | F::INTEL286
        | F::INTEL386
        | F::INTEL486
        | F::X64
        | F::CPUID
        | F::MULTIBYTENOP
        | F::PAUSE
        | F::RDPMC
        | F::SMM => return Gate::Always,

        F::ADX => cpuid::ADX,
        F::AES => cpuid::AES,
        F::AVX => cpuid::AVX,
        F::AVX2 => cpuid::AVX2,
        F::AVX512_BF16 => cpuid::AVX512_BF16,
        F::AVX512_BITALG => cpuid::AVX512_BITALG,
        F::AVX512_FP16 => cpuid::AVX512_FP16,
        F::AVX512_IFMA => cpuid::AVX512IFMA,
        F::AVX512_VBMI => cpuid::AVX512_VBMI,
        F::AVX512_VBMI2 => cpuid::AVX512_VBMI2,
        F::AVX512_VNNI => cpuid::AVX512_VNNI,
        F::AVX512_VP2INTERSECT => cpuid::AVX512_VP2INTERSECT,
        F::AVX512_VPOPCNTDQ => cpuid::AVX512_VPOPCNTDQ,
        F::AVX512BW => cpuid::AVX512BW,
        F::AVX512CD => cpuid::AVX512CD,
        F::AVX512DQ => cpuid::AVX512DQ,
        F::AVX512F => cpuid::AVX512F,
        F::AVX512VL => cpuid::AVX512VL,
        F::AVX_IFMA => cpuid::AVX_IFMA,
        F::AVX_NE_CONVERT => cpuid::AVX_NE_CONVERT,
        F::AVX_VNNI => cpuid::AVX_VNNI,
        F::AVX_VNNI_INT8 => cpuid::AVX_VNNI_INT8,
        F::AVX_VNNI_INT16 => cpuid::AVX_VNNI_INT16,
        F::BMI1 => cpuid::BMI1,
        F::BMI2 => cpuid::BMI2,
        F::CET_IBT => cpuid::CET_IBT,
        F::CET_SS => cpuid::CET_SS,
        F::CLDEMOTE => cpuid::CLDEMOTE,
        F::CLFLUSHOPT => cpuid::CLFLUSHOPT,
        F::CLFSH => cpuid::CLFSH,
        F::CLWB => cpuid::CLWB,
        F::CLZERO => cpuid::CLZERO,
        F::CMOV => cpuid::CMOV,
        F::CMPCCXADD => cpuid::CMPCCXADD,
        F::CMPXCHG16B => cpuid::CX16,
        F::CX8 => cpuid::CX8,
        F::ENQCMD => cpuid::ENQCMD,
        F::F16C => cpuid::F16C,
        F::FMA => cpuid::FMA,
        F::FPU | F::FPU287 | F::FPU387 => cpuid::FPU,
        F::FRED => cpuid::FRED,
        F::FSGSBASE => cpuid::FSGSBASE,
        F::FXSR => cpuid::FXSR,
        F::GFNI => cpuid::GFNI,
        F::HLE => cpuid::HLE,
        F::HLE_or_RTM | F::RTM => cpuid::RTM,
        F::HRESET => cpuid::HRESET,
        F::INVLPGB => cpuid::INVLPGB,
        F::INVPCID => cpuid::INVPCID,
        F::KL => cpuid::KEY_LOCKER,
        F::AESKLE => cpuid::AESKLE,
        F::WIDE_KL => cpuid::WIDE_KL,
        F::LKGS => cpuid::LKGS,
        F::LZCNT => cpuid::LZCNT,
        F::MCOMMIT => cpuid::MCOMMIT,
        F::MMX => cpuid::MMX,
        F::MONITOR => cpuid::MONITOR,
        F::MONITORX => cpuid::MONITORX,
        F::MOVBE => cpuid::MOVBE,
        F::MOVDIR64B => cpuid::MOVDIR64B,
        F::MOVDIRI => cpuid::MOVDIRI,
        F::MSR => cpuid::MSR,
        F::MSRLIST => cpuid::MSRLIST,
        F::PCLMULQDQ => cpuid::PCLMULQDQ,
        F::PCONFIG => cpuid::PCONFIG,
        F::PKU => cpuid::PKU,
        F::POPCNT => cpuid::POPCNT,
        F::PREFETCHITI => cpuid::PREFETCHITI,
        F::PREFETCHW => cpuid::PREFETCHW,
        F::PREFETCHWT1 => cpuid::PREFETCHWT1,
        F::PTWRITE => cpuid::PTWRITE,
        F::RAO_INT => cpuid::RAO_INT,
        F::RDPID => cpuid::RDPID,
        F::RDPRU => cpuid::RDPRU,
        F::RDRAND => cpuid::RDRAND,
        F::RDSEED => cpuid::RDSEED,
        F::RDTSCP => cpuid::RDTSCP,
        F::SEP => cpuid::SEP,
        F::SERIALIZE => cpuid::SERIALIZE,
        F::SEV_ES => cpuid::SEV_ES,
        F::SEV_SNP => cpuid::SEV_SNP,
        F::RMPQUERY => cpuid::RMPQUERY,
        F::SGX1 => cpuid::SGX1,
        F::OSS => cpuid::OSS,
        F::SHA => cpuid::SHA,
        F::SHA512 => cpuid::SHA512,
        F::SM3 => cpuid::SM3,
        F::SM4 => cpuid::SM4,
        F::SMAP => cpuid::SMAP,
        F::SSE => cpuid::SSE,
        F::SSE2 => cpuid::SSE2,
        F::SSE3 => cpuid::SSE3,
        F::SSE4_1 => cpuid::SSE4_1,
        F::SSE4_2 => cpuid::SSE4_2,
        F::SSE4A => cpuid::SSE4A,
        F::SSSE3 => cpuid::SSSE3,
        F::SVM | F::SKINIT_or_SVM => cpuid::SVM,
        F::SKINIT => cpuid::SKINIT,
        F::SYSCALL => cpuid::SYSCALL,
        F::TBM => cpuid::TBM,
        F::TSC => cpuid::TSC,
        F::TSE => cpuid::TSE,
        F::TSXLDTRK => cpuid::TSXLDTRK,
        F::AMX_BF16 => cpuid::AMX_BF16,
        F::AMX_COMPLEX => cpuid::AMX_COMPLEX,
        F::AMX_FP16 => cpuid::AMX_FP16,
        F::AMX_INT8 => cpuid::AMX_INT8,
        F::AMX_TILE => cpuid::AMX_TILE,
        F::UINTR => cpuid::UINTR,
        F::VAES => cpuid::VAES,
        F::VMX | F::INVEPT | F::INVVPID => cpuid::VMX,
        F::VPCLMULQDQ => cpuid::VPCLMULQDQ,
        F::WAITPKG => cpuid::WAITPKG,
        F::WBNOINVD => cpuid::WBNOINVD,
        F::WRMSRNS => cpuid::WRMSRNS,
        F::XSAVE => cpuid::XSAVE,
        F::XSAVEC => cpuid::XSAVEC,
        F::XSAVEOPT => cpuid::XSAVEOPT,
        F::XSAVES => cpuid::XSAVES,

        _ => return Gate::Never,
    };
    Gate::If(bit)
}

#[cfg(test)]
mod tests;
