//! The CPUID policy: which feature bits a guest can be offered, and why (KVM api 4.46, KVM_GET_SUPPORTED_CPUID).
//!
//! Three classes. *Software* is always offered: the interpreter and softmmu implement it. *Native* is executed
//! by the host's processor, so it is offered only where the host and its XCR0 have it. *Withheld* is
//! not offered, for the reason given. A host's bit without a row is withheld too.

use crate::host_cpu;
use decoder::Vendor;
use x86_arch::control::Xcr0;
use x86_arch::cpuid::*;

/// How a feature is provided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Implemented here; offered on every host.
    Software,
    /// Implemented here; exists on AMD's processors only.
    SoftwareAmd,
    /// Executed by the host; offered where it has it, with these components in XCR0.
    Native(u64),
    /// Not offered.
    Withheld,
}

/// Every feature with a name: its class, and where it is implemented or why it is withheld.
pub const POLICY: &[(Feature, Class, &str)] = &[
    (SSE3, Class::Native(0x3), "executed by the host under its own MXCSR"),
    (SSSE3, Class::Native(0x3), "executed by the host under its own MXCSR"),
    (SSE4_1, Class::Native(0x3), "executed by the host under its own MXCSR"),
    (SSE4_2, Class::Native(0x3), "executed by the host under its own MXCSR"),
    (PCLMULQDQ, Class::Native(0x3), "executed by the host under its own MXCSR"),
    (AES, Class::Native(0x3), "executed by the host under its own MXCSR"),
    (SHA, Class::Native(0x3), "executed by the host under its own MXCSR"),
    (GFNI, Class::Native(0x3), "executed by the host under its own MXCSR"),
    (SSE4A, Class::Native(0x3), "executed by the host under its own MXCSR"),
    (AVX, Class::Native(0x7), "executed by the host; YMM state"),
    (AVX2, Class::Native(0x7), "executed by the host; YMM state"),
    (FMA, Class::Native(0x7), "executed by the host; YMM state"),
    (F16C, Class::Native(0x7), "executed by the host; YMM state"),
    (VAES, Class::Native(0x7), "executed by the host; YMM state"),
    (VPCLMULQDQ, Class::Native(0x7), "executed by the host; YMM state"),
    (AVX_VNNI, Class::Native(0x7), "executed by the host; YMM state"),
    (AVX512F, Class::Native(0xe7), "executed by the host; ZMM and mask state"),
    (AVX512DQ, Class::Native(0xe7), "executed by the host; ZMM and mask state"),
    (AVX512IFMA, Class::Native(0xe7), "executed by the host; ZMM and mask state"),
    (AVX512CD, Class::Native(0xe7), "executed by the host; ZMM and mask state"),
    (AVX512BW, Class::Native(0xe7), "executed by the host; ZMM and mask state"),
    (AVX512VL, Class::Native(0xe7), "executed by the host; ZMM and mask state"),
    (AVX512_VBMI, Class::Native(0xe7), "executed by the host; ZMM and mask state"),
    (AVX512_VBMI2, Class::Native(0xe7), "executed by the host; ZMM and mask state"),
    (AVX512_VNNI, Class::Native(0xe7), "executed by the host; ZMM and mask state"),
    (AVX512_BITALG, Class::Native(0xe7), "executed by the host; ZMM and mask state"),
    (AVX512_VPOPCNTDQ, Class::Native(0xe7), "executed by the host; ZMM and mask state"),
    (AVX512_VP2INTERSECT, Class::Native(0xe7), "executed by the host; ZMM and mask state"),
    (AVX512_BF16, Class::Native(0xe7), "executed by the host; ZMM and mask state"),
    (AVX512_FP16, Class::Native(0xe7), "executed by the host; ZMM and mask state"),
    (FPU, Class::Software, "native: every x86-64 host has it"),
    (MMX, Class::Software, "native: every x86-64 host has it"),
    (SSE, Class::Software, "native: every x86-64 host has it"),
    (SSE2, Class::Software, "native: every x86-64 host has it"),
    (FXSR, Class::Software, "native: every x86-64 host has it"),
    (FDP_EXCPTN_ONLY, Class::Native(0x0), "a statement about the host's x87, which executes the guest's"),
    (ZERO_FCS_FDS, Class::Native(0x0), "a statement about the host's x87, which executes the guest's"),
    (POPCNT, Class::Software, "interp/bit, interp/bmi, interp/mov"),
    (MOVBE, Class::Software, "interp/bit, interp/bmi, interp/mov"),
    (BMI1, Class::Software, "interp/bit, interp/bmi, interp/mov"),
    (BMI2, Class::Software, "interp/bit, interp/bmi, interp/mov"),
    (ADX, Class::Software, "interp/bit, interp/bmi, interp/mov"),
    (LZCNT, Class::Software, "interp/bit, interp/bmi, interp/mov"),
    (CMOV, Class::Software, "interp/bit, interp/bmi, interp/mov"),
    (CX8, Class::Software, "interp/atomic"),
    (CX16, Class::Software, "interp/atomic"),
    (PSE, Class::Software, "softmmu: paging"),
    (PAE, Class::Software, "softmmu: paging"),
    (PGE, Class::Software, "softmmu: paging"),
    (PSE36, Class::Software, "softmmu: paging"),
    (NX, Class::Software, "softmmu: paging"),
    (PDPE1GB, Class::Software, "softmmu: paging"),
    (SMEP, Class::Software, "softmmu: paging"),
    (SMAP, Class::Software, "softmmu: paging"),
    (PCID, Class::Software, "softmmu: paging"),
    (INVPCID, Class::Software, "softmmu: paging"),
    (LA57, Class::Native(0x0), "softmmu; a fifth level costs every walk, so only where the host has it"),
    (PKU, Class::Native(0x200), "softmmu; PKRU needs its place in the host's XSAVE layout"),
    (OSPKE, Class::Withheld, "follows CR4.PKE at run time"),
    (OSXSAVE, Class::Withheld, "follows CR4.OSXSAVE at run time"),
    (VME, Class::Software, "inject/real, interp/stack"),
    (DE, Class::Software, "debug: breakpoints on ports, DR4 and DR5"),
    (TSC, Class::Software, "interp/system"),
    (MSR, Class::Software, "interp/system"),
    (RDTSCP, Class::Software, "interp/system"),
    (RDPID, Class::Software, "interp/system"),
    (RDRAND, Class::Software, "interp/system"),
    (RDSEED, Class::Software, "interp/system"),
    (FSGSBASE, Class::Software, "interp/system"),
    (UMIP, Class::Software, "interp/system"),
    (SERIALIZE, Class::Software, "interp/system"),
    (WBNOINVD, Class::Software, "interp/system"),
    (CLFSH, Class::Software, "interp/system"),
    (CLFLUSHOPT, Class::Software, "interp/system"),
    (CLWB, Class::Software, "interp/system"),
    (SEP, Class::Software, "interp/syscall"),
    (SYSCALL, Class::Software, "interp/syscall"),
    (MCE, Class::Software, "msr: banks that hold what is written"),
    (MCA, Class::Software, "msr: banks that hold what is written"),
    (MTRR, Class::Software, "msr/table"),
    (PAT, Class::Software, "msr/table"),
    (TSC_ADJUST, Class::Software, "msr/table"),
    (ARCH_CAPABILITIES, Class::Software, "msr/table"),
    (APIC, Class::Software, "irqchip/lapic"),
    (X2APIC, Class::Software, "irqchip/lapic"),
    (LM, Class::Software, "always in 64-bit processors"),
    (LAHF_LM, Class::Software, "always in 64-bit processors"),
    (HYPERVISOR, Class::Software, "the software processor is a guest's"),
    (SS, Class::Software, "caches are the host's and coherent"),
    (INVARIANT_TSC, Class::Software, "vm_clock: the TSC never stops"),
    (ARAT, Class::Software, "vm_clock: the TSC never stops"),
    (ERMS, Class::Software, "string instructions run at the host's speed"),
    (FSRM, Class::Software, "string instructions run at the host's speed"),
    (FZRM, Class::Software, "string instructions run at the host's speed"),
    (FSRS, Class::Software, "string instructions run at the host's speed"),
    (FSRC, Class::Software, "string instructions run at the host's speed"),
    (PREFETCHW, Class::Software, "a hint that does nothing"),
    (CLDEMOTE, Class::Software, "a hint that does nothing"),
    (XSAVE, Class::Software, "native/xsave"),
    (XSAVEOPT, Class::Software, "native/xsave"),
    (XSAVEC, Class::Software, "native/xsave"),
    (XGETBV_ECX_1, Class::Software, "native/xsave"),
    (XSAVES, Class::Software, "native/xsave"),
    (MOVDIRI, Class::Software, "interp/atomic, native: direct stores"),
    (MOVDIR64B, Class::Software, "interp/atomic, native: direct stores"),
    (CLZERO, Class::SoftwareAmd, "interp/system"),
    (XSAVEERPTR, Class::SoftwareAmd, "FXSAVE and XSAVE always store the error pointers"),
    (OSVW, Class::SoftwareAmd, "msr: no erratum applies"),
    (
        SRSO_NO,
        Class::SoftwareAmd,
        "a guest's returns are not the host's: nothing of it is predicted across privilege levels",
    ),
    (
        TSA_SQ_NO,
        Class::SoftwareAmd,
        "as SRSO_NO: the guest's stores are checked by software before they are made",
    ),
    (TSA_L1_NO, Class::SoftwareAmd, "as TSA_SQ_NO"),
    (TOPOEXT, Class::SoftwareAmd, "leaves 8000001DH and 8000001EH"),
    (LFENCE_RDTSC, Class::SoftwareAmd, "the interpreter executes in order"),
    (NULL_SEL_CLR_BASE, Class::SoftwareAmd, "segload: a null selector clears the base"),
    (HTT, Class::Withheld, "follows the number of processors, which the VMM knows"),
    (
        TSC_DEADLINE,
        Class::Withheld,
        "KVM_GET_SUPPORTED_CPUID leaves it to the VMM: it needs the local APIC inside",
    ),
    (MONITOR, Class::Withheld, "MWAIT does not wait; a VMM that wants it sets the bit"),
    (DTES64, Class::Withheld, "no debug store"),
    (PDCM, Class::Withheld, "no performance counters"),
    (VMX, Class::Withheld, "no nested virtualization"),
    (SVM, Class::Withheld, "no nested virtualization"),
    (HLE, Class::Withheld, "transactions cannot be interpreted"),
    (RTM, Class::Withheld, "transactions cannot be interpreted"),
    (TSXLDTRK, Class::Withheld, "transactions cannot be interpreted"),
    (SGX, Class::Withheld, "enclaves need hardware keys"),
    (INTEL_PT, Class::Withheld, "no trace packets are made"),
    (MPX, Class::Withheld, "extinct; its bound registers are not kept"),
    (CET_SS, Class::Withheld, "shadow stacks and branch tracking are not implemented"),
    (CET_IBT, Class::Withheld, "shadow stacks and branch tracking are not implemented"),
    (WAITPKG, Class::Withheld, "UMONITOR and UMWAIT are not implemented"),
    (KEY_LOCKER, Class::Withheld, "keys would be readable by software"),
    (ENQCMD, Class::Withheld, "needs PASIDs and an IOMMU"),
    (AMX_TILE, Class::Withheld, "until the host's permission request for tile data is handled"),
    (AMX_INT8, Class::Withheld, "until the host's permission request for tile data is handled"),
    (AMX_BF16, Class::Withheld, "until the host's permission request for tile data is handled"),
    (CR8_LEGACY, Class::Withheld, "an alternative encoding (LOCK MOV CR0) that is not decoded"),
    (MISALIGNSSE, Class::Withheld, "alignment of legacy SSE operands is always checked"),
    (FXSR_OPT, Class::Withheld, "EFER.FFXSR is not implemented"),
    (TBM, Class::Withheld, "XOP space is not implemented"),
    (
        SPEC_CTRL,
        Class::Software,
        "msr: kept; a guest's branches are not the host's, so there is nothing to hold back",
    ),
    (STIBP, Class::Software, "as SPEC_CTRL"),
    (SSBD, Class::Software, "as SPEC_CTRL: the guest's loads are made in program order"),
    (AMD_IBPB, Class::SoftwareAmd, "as SPEC_CTRL"),
    (AMD_IBRS, Class::SoftwareAmd, "as SPEC_CTRL"),
    (AMD_STIBP, Class::SoftwareAmd, "as SPEC_CTRL"),
    (AMD_SSBD, Class::SoftwareAmd, "as SSBD"),
    (FLUSH_L1D, Class::Withheld, "the host's cache is not the guest's to flush"),
];

/// The XSAVE components that a guest can be offered, where the host has them.
const COMPONENTS: Xcr0 = Xcr0::X87.union(Xcr0::SSE).union(Xcr0::AVX).union(Xcr0::AVX512).union(Xcr0::PKRU);

/// Bits of CPUID 80000001H EDX that repeat those of leaf 1 on AMD's processors (APM vol. 3, E.4.2).
const AMD_REPEATED: u32 = 0x0183_f3ff;

/// The processor that the guest's vector instructions run on.
pub struct HostProcessor<'a> {
    /// CPUID.
    pub cpuid: &'a dyn Fn(u32, u32) -> CpuidResult,
    /// XCR0 as its operating system has set it.
    pub xcr0: u64,
}

impl HostProcessor<'_> {
    /// This machine's.
    pub fn this() -> HostProcessor<'static> {
        HostProcessor { cpuid: &|l, s| host_cpu::cpuid(l, s), xcr0: host_cpu::xcr0() }
    }

    fn leaf(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let last = (self.cpuid)(leaf & 0x8000_0000, 0).eax;
        if leaf > last || leaf == 7 && subleaf > (self.cpuid)(7, 0).eax {
            return CpuidResult::default();
        }
        (self.cpuid)(leaf, subleaf)
    }

    fn has(&self, f: Feature) -> bool {
        self.leaf(f.leaf, f.subleaf).reg(f.reg) >> f.bit & 1 != 0
    }

    fn vendor(&self) -> Vendor {
        match &self.leaf(0, 0).ebx.to_le_bytes() {
            b"Auth" | b"Hygo" => Vendor::Amd,
            _ => Vendor::Intel,
        }
    }
}

/// The part of XCR0 that a guest on this host can use.
pub fn supported_xcr0(host: &HostProcessor<'_>) -> u64 {
    let mut x = host.xcr0 & COMPONENTS.bits() | 3;
    if x & Xcr0::AVX512.bits() != Xcr0::AVX512.bits() || x & Xcr0::AVX.bits() == 0 {
        x &= !Xcr0::AVX512.bits();
    }
    x
}

/// Whether a guest on this host can be offered a feature.
pub fn offers(host: &HostProcessor<'_>, f: Feature) -> bool {
    let class = POLICY.iter().find(|(p, ..)| *p == f).map_or(Class::Withheld, |p| p.1);
    match class {
        Class::Software => true,
        Class::SoftwareAmd => host.vendor() == Vendor::Amd,
        Class::Native(components) => host.has(f) && supported_xcr0(host) & components == components,
        Class::Withheld => false,
    }
}

/// One register of a leaf: the offered bits.
fn bits(host: &HostProcessor<'_>, leaf: u32, subleaf: u32, reg: CpuidReg) -> u32 {
    POLICY
        .iter()
        .map(|p| p.0)
        .filter(|f| f.leaf == leaf && f.subleaf == subleaf && f.reg == reg && offers(host, *f))
        .fold(0, |v, f| v | 1 << f.bit)
}

/// All four registers of a leaf that holds only feature bits.
fn feature_leaf(host: &HostProcessor<'_>, leaf: u32, subleaf: u32) -> CpuidResult {
    CpuidResult {
        eax: bits(host, leaf, subleaf, CpuidReg::Eax),
        ebx: bits(host, leaf, subleaf, CpuidReg::Ebx),
        ecx: bits(host, leaf, subleaf, CpuidReg::Ecx),
        edx: bits(host, leaf, subleaf, CpuidReg::Edx),
    }
}

/// The feature bits of KVM's own leaf.
pub const KVM_FEATURES: u32 = 1 << kvm::FEATURE_CLOCKSOURCE
    | 1 << kvm::FEATURE_NOP_IO_DELAY
    | 1 << kvm::FEATURE_CLOCKSOURCE2
    | 1 << kvm::FEATURE_CLOCKSOURCE_STABLE_BIT;

/// The table of KVM_GET_SUPPORTED_CPUID on this host: vendor, family and sizes are the host's.
pub fn supported(host: &HostProcessor<'_>) -> Vec<CpuidEntry> {
    let amd = host.vendor() == Vendor::Amd;
    let mut rows = Vec::new();
    let mut row = |leaf: u32, subleaf: Option<u32>, result: CpuidResult| {
        rows.push(CpuidEntry { leaf, subleaf: subleaf.unwrap_or(0), indexed: subleaf.is_some(), result });
    };
    let h0 = host.leaf(0, 0);
    row(0, None, CpuidResult { eax: h0.eax.clamp(0xd, 0x16), ..h0 });
    let h1 = host.leaf(1, 0);
    let f1 = feature_leaf(host, 1, 0);
    // EBX: the size of a CLFLUSH line; one logical processor; APIC ID 0.
    row(1, None, CpuidResult { eax: h1.eax, ebx: h1.ebx & 0xff00 | 1 << 16, ..f1 });
    if !amd {
        row(2, None, host.leaf(2, 0));
        for n in 0..8 {
            let cache = host.leaf(4, n);
            if cache.eax & 31 == 0 {
                break;
            }
            // Not shared: how many processors there are is the VMM's to say.
            row(4, Some(n), CpuidResult { eax: cache.eax & 0x3fff, ..cache });
        }
    }
    row(6, None, feature_leaf(host, 6, 0));
    row(7, Some(0), CpuidResult { eax: 1, ..feature_leaf(host, 7, 0) });
    row(7, Some(1), feature_leaf(host, 7, 1));
    row(0xa, None, CpuidResult::default());
    row(0xb, Some(0), CpuidResult::default());
    xsave_leaves(host, &mut row);
    row(KVM_CPUID_SIGNATURE, None, kvm_signature());
    row(KVM_CPUID_FEATURES, None, CpuidResult { eax: KVM_FEATURES, ..CpuidResult::default() });
    let last = if amd { 0x8000_0021 } else { 0x8000_0008 };
    row(0x8000_0000, None, CpuidResult { eax: last, ..host.leaf(0x8000_0000, 0) });
    let e1 = host.leaf(0x8000_0001, 0);
    let mut x1 = feature_leaf(host, 0x8000_0001, 0);
    if amd {
        x1.edx |= f1.edx & AMD_REPEATED;
        x1.eax = e1.eax;
        x1.ebx = e1.ebx;
    }
    row(0x8000_0001, None, x1);
    for leaf in 0x8000_0002..=0x8000_0006 {
        row(leaf, None, host.leaf(leaf, 0));
    }
    row(
        0x8000_0007,
        None,
        CpuidResult { edx: bits(host, 0x8000_0007, 0, CpuidReg::Edx), ..CpuidResult::default() },
    );
    let physical = match host.leaf(0x8000_0008, 0).eax & 0xff {
        0 => 36,
        n => n.min(52),
    };
    let linear = if offers(host, LA57) { 57 } else { 48 };
    let f8 = feature_leaf(host, 0x8000_0008, 0);
    row(0x8000_0008, None, CpuidResult { eax: physical | linear << 8, ..f8 });
    if amd {
        for n in 0..8 {
            let cache = host.leaf(0x8000_001d, n);
            if cache.eax & 31 == 0 {
                break;
            }
            row(0x8000_001d, Some(n), CpuidResult { eax: cache.eax & 0x3fff, ..cache });
        }
        row(0x8000_001e, None, CpuidResult::default());
        row(0x8000_0021, None, feature_leaf(host, 0x8000_0021, 0));
    }
    rows
}

/// Leaf 0DH: the host's layout, for the components that are offered.
fn xsave_leaves(host: &HostProcessor<'_>, row: &mut impl FnMut(u32, Option<u32>, CpuidResult)) {
    let xcr0 = supported_xcr0(host);
    let components = || (2..63u32).filter(move |n| xcr0 >> n & 1 != 0);
    let size = components().map(|n| {
        let c = host.leaf(0xd, n);
        c.eax.saturating_add(c.ebx)
    });
    let size = size.fold(x86_arch::xsave::HEADER_END as u32, u32::max);
    let main = CpuidResult { eax: xcr0 as u32, ebx: size, ecx: size, edx: (xcr0 >> 32) as u32 };
    row(0xd, Some(0), main);
    row(0xd, Some(1), CpuidResult { ebx: size, ..feature_leaf(host, 0xd, 1) });
    for n in components() {
        // ECX bit 0 would be a supervisor component; bit 1 is alignment in the compacted format.
        let c = host.leaf(0xd, n);
        row(0xd, Some(n), CpuidResult { ecx: c.ecx & 2, edx: 0, ..c });
    }
}

fn kvm_signature() -> CpuidResult {
    let word = |n: usize| {
        let b = &kvm::SIGNATURE[4 * n..4 * n + 4];
        u32::from_le_bytes([b[0], b[1], b[2], b[3]])
    };
    CpuidResult { eax: KVM_CPUID_FEATURES, ebx: word(0), ecx: word(1), edx: word(2) }
}
