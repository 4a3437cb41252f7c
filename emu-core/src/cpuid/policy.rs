//! The CPUID policy: which feature bits a guest can be offered, and why (KVM api 4.46, KVM_GET_SUPPORTED_CPUID).
//!
//! Three classes. *Software* is always offered: the interpreter and softmmu implement it. *Native* is executed
//! by the host's processor, so it is offered only where the host and its XCR0 have it. *Withheld* is
//! not offered, for the reason given. A host's bit without a row is withheld too, and so is a bit that needs one that is
//! not offered. The rows are in `cpuid::rows`, for people in `docs/cpuid.md`.

use super::rows;
use crate::host_cpu;
use decoder::Vendor;
use std::cell::RefCell;
use std::collections::HashMap;
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

/// What is decided about one feature bit.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The bit.
    pub feature: Feature,
    /// How it is provided, and on which hosts.
    pub class: Class,
    /// It is offered only together with these (SDM vol. 1, 13 to 17: how software detects each extension).
    pub needs: &'static [Feature],
    /// The file that implements it; empty where it is withheld.
    pub code: &'static str,
    /// Why it is withheld; otherwise what is to be said about it.
    pub why: &'static str,
}

impl Row {
    /// The condition on the host under which the bit is offered, in words.
    pub fn condition(&self) -> String {
        let class = match self.class {
            Class::Software => "always".into(),
            Class::SoftwareAmd => "on an AMD host".into(),
            Class::Native(0) => "where the host has it".into(),
            Class::Native(x) => format!("where the host has it and XCR0 {x:X}H"),
            Class::Withheld => return "never".into(),
        };
        match self.needs {
            [] => class,
            needs => {
                let names: Vec<_> = needs.iter().map(|f| f.name).collect();
                format!("{class}; with {}", names.join(", "))
            }
        }
    }
}

/// Every feature with a name: its class, what it needs, and where it is implemented or why it is withheld.
pub const POLICY: &[Row] = rows::ROWS;

/// The row of a feature.
pub fn row(f: Feature) -> Option<&'static Row> {
    POLICY.iter().find(|r| r.feature == f)
}

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

    /// Whether it is one of AMD and its kin: a KVM here would have SVM, and not VMX.
    pub fn is_amd(&self) -> bool {
        self.vendor() == Vendor::Amd
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
    let Some(row) = row(f) else { return false };
    let possible = match row.class {
        Class::Software => true,
        Class::SoftwareAmd => host.vendor() == Vendor::Amd,
        Class::Native(components) => host.has(f) && supported_xcr0(host) & components == components,
        Class::Withheld => false,
    };
    possible && row.needs.iter().all(|n| offers(host, *n))
}

/// One register of a leaf: the offered bits.
fn bits(host: &HostProcessor<'_>, leaf: u32, subleaf: u32, reg: CpuidReg) -> u32 {
    POLICY
        .iter()
        .map(|p| p.feature)
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

/// The feature bits of KVM's own leaf (KVM cpuid.txt). Not offered: asynchronous page faults (4, 10, 14), for there are none;
/// KVM_FEATURE_MMU_OP (2), long gone; what only user space can offer (KVM_FEATURE_MSI_EXT_DEST_ID, 15; HC_MAP_GPA_RANGE,
/// 16; MIGRATION_CONTROL, 17), and the hint in EDX.
pub const KVM_FEATURES: u32 = 1 << kvm::FEATURE_CLOCKSOURCE
    | 1 << kvm::FEATURE_NOP_IO_DELAY
    | 1 << kvm::FEATURE_CLOCKSOURCE2
    | 1 << kvm::FEATURE_STEAL_TIME
    | 1 << kvm::FEATURE_PV_EOI
    | 1 << kvm::FEATURE_PV_UNHALT
    | 1 << kvm::FEATURE_PV_TLB_FLUSH
    | 1 << kvm::FEATURE_PV_SEND_IPI
    | 1 << kvm::FEATURE_POLL_CONTROL
    | 1 << kvm::FEATURE_PV_SCHED_YIELD
    | 1 << kvm::FEATURE_CLOCKSOURCE_STABLE_BIT;

/// The table of KVM_GET_SUPPORTED_CPUID on this host: vendor, family and sizes are the host's.
pub fn supported(host: &HostProcessor<'_>) -> Vec<CpuidEntry> {
    // CPUID is slow where a hypervisor answers it, and a row with its needs asks again and again.
    let seen = RefCell::new(HashMap::new());
    let once = |l: u32, s: u32| *seen.borrow_mut().entry((l, s)).or_insert_with(|| (host.cpuid)(l, s));
    let host = &HostProcessor { cpuid: &once, xcr0: host.xcr0 };
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
