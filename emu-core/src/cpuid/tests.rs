//! The policy: one row for each feature, nothing offered that is not implemented; and what CPUID returns.

use super::policy::{Class, HostProcessor, POLICY, offers, supported, supported_xcr0};
use super::{CpuidTable, Vendor};
use crate::rig::{Mode, Rig};
use std::collections::BTreeSet;
use x86_arch::control::Cr4;
use x86_arch::cpuid::*;

/// A host with every bit set.
fn everything(vendor: &'static [u8; 12]) -> impl Fn(u32, u32) -> CpuidResult {
    move |leaf, subleaf| {
        let word = |n: usize| u32::from_le_bytes([vendor[n], vendor[n + 1], vendor[n + 2], vendor[n + 3]]);
        let all = CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 };
        match (leaf, subleaf) {
            (0, _) => CpuidResult { eax: 0x20, ebx: word(0), edx: word(4), ecx: word(8) },
            (7, 0) => CpuidResult { eax: 1, ..all },
            (0xd, 2) => CpuidResult { eax: 256, ebx: 576, ecx: 0, edx: 0 },
            (0xd, 5) => CpuidResult { eax: 64, ebx: 832, ecx: 0, edx: 0 },
            (0xd, 6) => CpuidResult { eax: 512, ebx: 896, ecx: 2, edx: 0 },
            (0xd, 7) => CpuidResult { eax: 1024, ebx: 1408, ecx: 0, edx: 0 },
            (0xd, 9) => CpuidResult { eax: 8, ebx: 2432, ecx: 0, edx: 0 },
            (0xd, n) if n > 1 => CpuidResult::default(),
            (4 | 0x8000_001d, n) => CpuidResult { eax: if n < 3 { 0x1c00_4121 } else { 0 }, ..all },
            (0x8000_0000, _) => CpuidResult { eax: 0x8000_0021, ..CpuidResult::default() },
            (0x8000_0008, _) => CpuidResult { eax: 0x3034, ..all },
            _ => all,
        }
    }
}

const INTEL: &[u8; 12] = b"GenuineIntel";
const AMD: &[u8; 12] = b"AuthenticAMD";

fn row(rows: &[CpuidEntry], leaf: u32, subleaf: u32) -> CpuidResult {
    rows.iter()
        .find(|e| e.leaf == leaf && e.subleaf == subleaf)
        .map_or_else(CpuidResult::default, |e| e.result)
}

#[test]
fn every_feature_has_one_row_and_a_reason() {
    let mut seen = BTreeSet::new();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    for r in POLICY {
        let f = r.feature;
        assert!(seen.insert(f.name), "{} twice", f.name);
        if r.class == Class::Withheld {
            assert!(r.why.len() > 3 && r.code.is_empty() && r.needs.is_empty(), "{}", f.name);
        } else {
            assert!(root.join(r.code).is_file(), "{}: no file {:?}", f.name, r.code);
        }
        for n in r.needs {
            assert!(super::policy::row(*n).is_some_and(|n| n.class != Class::Withheld), "{}", f.name);
        }
    }
    for f in FEATURES {
        assert!(seen.contains(f.name), "{} has no row", f.name);
    }
}

/// What a host has and no row allows is not passed on.
#[test]
fn unknown_bits_are_withheld() {
    for vendor in [INTEL, AMD] {
        let cpuid = everything(vendor);
        let rows = supported(&HostProcessor { cpuid: &cpuid, xcr0: 0x2e7 });
        for (leaf, subleaf, reg) in [
            (1, 0, CpuidReg::Ecx),
            (1, 0, CpuidReg::Edx),
            (6, 0, CpuidReg::Eax),
            (6, 0, CpuidReg::Ebx),
            (6, 0, CpuidReg::Ecx),
            (6, 0, CpuidReg::Edx),
            (7, 0, CpuidReg::Ebx),
            (7, 0, CpuidReg::Ecx),
            (7, 0, CpuidReg::Edx),
            (7, 1, CpuidReg::Eax),
            (7, 1, CpuidReg::Ebx),
            (7, 1, CpuidReg::Ecx),
            (7, 1, CpuidReg::Edx),
            (0xd, 1, CpuidReg::Eax),
            (0x8000_0001, 0, CpuidReg::Ecx),
            (0x8000_0007, 0, CpuidReg::Edx),
            (0x8000_0008, 0, CpuidReg::Ebx),
            (0x8000_0021, 0, CpuidReg::Eax),
            (0x8000_0021, 0, CpuidReg::Ebx),
            (0x8000_0021, 0, CpuidReg::Ecx),
            (0x8000_0021, 0, CpuidReg::Edx),
        ] {
            let allowed = POLICY
                .iter()
                .filter(|r| {
                    let f = r.feature;
                    (f.leaf, f.subleaf, f.reg) == (leaf, subleaf, reg) && r.class != Class::Withheld
                })
                .fold(0u32, |m, r| m | 1 << r.feature.bit);
            let got = row(&rows, leaf, subleaf).reg(reg);
            assert_eq!(got & !allowed, 0, "leaf {leaf:#x}.{subleaf} {reg:?}");
        }
        // Leaves that describe what is not offered at all.
        for (leaf, subleaf) in [(7, 2), (0x12, 0), (0x14, 0), (0x19, 0), (0x1d, 0), (0x1e, 0), (0x24, 0)] {
            assert_eq!(row(&rows, leaf, subleaf), CpuidResult::default(), "leaf {leaf:#x}.{subleaf}");
        }
        for leaf in [0x8000_000a, 0x8000_001f, 0x8000_0022, 0xc000_0001] {
            assert_eq!(row(&rows, leaf, 0), CpuidResult::default(), "leaf {leaf:#x}");
        }
    }
}

#[test]
fn native_features_need_the_host_and_its_state() {
    let cpuid = everything(INTEL);
    for (f, xcr0, want) in [
        (AVX2, 7u64, true),
        (AVX2, 3, false),
        (AVX512F, 0xe7, true),
        (AVX512F, 7, false),
        (AVX512F, 0x67, false),
        (PKU, 0x207, true),
        (PKU, 7, false),
        (AES, 3, true),
        (BMI2, 3, true),
        (RTM, 0xe7, false),
        (CLZERO, 7, false),
    ] {
        assert_eq!(offers(&HostProcessor { cpuid: &cpuid, xcr0 }, f), want, "{} {xcr0:#x}", f.name);
    }
    let none = |leaf: u32, _: u32| match leaf {
        0 => CpuidResult { eax: 1, ebx: u32::from_le_bytes(*b"Genu"), ..CpuidResult::default() },
        _ => CpuidResult::default(),
    };
    let bare = HostProcessor { cpuid: &none, xcr0: 7 };
    assert!(!offers(&bare, AVX) && !offers(&bare, SSE4_2) && offers(&bare, X2APIC) && offers(&bare, UMIP));
    assert_eq!(supported_xcr0(&HostProcessor { cpuid: &none, xcr0: 0x6_02ff }), 0x2e7);
}

/// A feature of the interpreter's has its instruction: encoded, decoded under the offered table, and handled.
#[test]
fn what_is_offered_is_implemented() {
    let rows: &[(Feature, &[u8])] = &[
        (MSR, &[0x0f, 0x32]),
        (TSC, &[0x0f, 0x31]),
        (RDTSCP, &[0x0f, 0x01, 0xf9]),
        (RDPID, &[0xf3, 0x0f, 0xc7, 0xf8]),
        (RDRAND, &[0x0f, 0xc7, 0xf0]),
        (RDSEED, &[0x0f, 0xc7, 0xf8]),
        (FSGSBASE, &[0xf3, 0x0f, 0xae, 0xc0]),
        (INVPCID, &[0x66, 0x0f, 0x38, 0x82, 0x00]),
        (SYSCALL, &[0x0f, 0x05]),
        (CLFSH, &[0x0f, 0xae, 0x38]),
        (CLFLUSHOPT, &[0x66, 0x0f, 0xae, 0x38]),
        (CLWB, &[0x66, 0x0f, 0xae, 0x30]),
        (WBNOINVD, &[0xf3, 0x0f, 0x09]),
        (SERIALIZE, &[0x0f, 0x01, 0xe8]),
        (SMAP, &[0x0f, 0x01, 0xcb]),
        (CX8, &[0x0f, 0xc7, 0x08]),
        (CX16, &[0x48, 0x0f, 0xc7, 0x08]),
        (CMOV, &[0x0f, 0x44, 0xc0]),
        (POPCNT, &[0xf3, 0x0f, 0xb8, 0xc0]),
        (LZCNT, &[0xf3, 0x0f, 0xbd, 0xc0]),
        (BMI1, &[0xf3, 0x0f, 0xbc, 0xc0]),
        (BMI2, &[0xc4, 0xe2, 0xfb, 0xf6, 0xc0]),
        (ADX, &[0x66, 0x0f, 0x38, 0xf6, 0xc0]),
        (MOVBE, &[0x0f, 0x38, 0xf0, 0x00]),
        (PREFETCHW, &[0x0f, 0x0d, 0x08]),
        (CLDEMOTE, &[0x0f, 0x1c, 0x00]),
        (XSAVE, &[0x0f, 0xae, 0x20]),
        (XSAVEOPT, &[0x0f, 0xae, 0x30]),
        (XSAVEC, &[0x0f, 0xc7, 0x20]),
        (XSAVES, &[0x0f, 0xc7, 0x28]),
        (MOVDIRI, &[0x0f, 0x38, 0xf9, 0x00]),
        (MOVDIR64B, &[0x66, 0x0f, 0x38, 0xf8, 0x00]),
        (FXSR, &[0x0f, 0xae, 0x00]),
        (LAHF_LM, &[0x9f]),
    ];
    let host = HostProcessor::this();
    let mut r = Rig::new(Mode::Long);
    r.cpu().cpuid = CpuidTable::new(supported(&host));
    let mut missing = Vec::new();
    for (f, code) in rows {
        assert!(offers(&host, *f), "{}", f.name);
        if !crate::interp::implements(&r.decode(code)) {
            missing.push(f.name);
        }
    }
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn vendors() {
    for (vendor, last) in [(INTEL, 0x8000_0008u32), (AMD, 0x8000_0021)] {
        let cpuid = everything(vendor);
        let rows = supported(&HostProcessor { cpuid: &cpuid, xcr0: 7 });
        let table = CpuidTable::new(rows.clone());
        assert_eq!(table.vendor() == Vendor::Amd, vendor == AMD);
        assert_eq!(row(&rows, 0x8000_0000, 0).eax, last);
        assert_eq!(table.maxphyaddr(), 52);
        assert!(table.has(HYPERVISOR) && table.has(LM) && table.has(NX));
        assert_eq!(table.has(CLZERO), vendor == AMD);
        assert_eq!(row(&rows, 4, 1).eax != 0, vendor == INTEL);
        assert_eq!(row(&rows, 4, 1).eax >> 14, 0, "no sharing");
        assert_eq!(row(&rows, 0x8000_001d, 1).eax != 0, vendor == AMD);
        let repeated = row(&rows, 0x8000_0001, 0).edx & 0x0183_f3ff;
        let first = row(&rows, 1, 0).edx & 0x0183_f3ff;
        assert_eq!(repeated, if vendor == AMD { first } else { 0 });
        let kvm = row(&rows, KVM_CPUID_SIGNATURE, 0);
        assert_eq!((kvm.eax, kvm.ebx, kvm.ecx, kvm.edx), (0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d));
        let bits = [0, 1, 3, 5, 6, 7, 9, 11, 12, 13, 24].iter().fold(0, |v, n| v | 1 << n);
        assert_eq!(row(&rows, KVM_CPUID_FEATURES, 0).eax, bits);
    }
}

#[test]
fn no_leaf_twice() {
    let rows = supported(&HostProcessor::this());
    let keys: BTreeSet<_> = rows.iter().map(|e| (e.leaf, e.subleaf)).collect();
    assert_eq!(keys.len(), rows.len());
    for e in &rows {
        let others = rows.iter().filter(|o| o.leaf == e.leaf);
        assert!(others.clone().count() == 1 || others.clone().all(|o| o.indexed), "leaf {:#x}", e.leaf);
    }
}

#[test]
fn dynamic_bits() {
    let cpuid = everything(INTEL);
    let mut r = Rig::new(Mode::Long);
    // Rows that were read while they were off do no harm.
    let mut rows = supported(&HostProcessor { cpuid: &cpuid, xcr0: 0x2e7 });
    rows.iter_mut().filter(|e| e.leaf == 1).for_each(|e| e.result.edx &= !(1 << 9));
    r.cpu().cpuid = CpuidTable::new(rows);
    for on in [false, true] {
        let c = r.cpu();
        c.cr4.set(Cr4::OSXSAVE, on);
        c.cr4.set(Cr4::PKE, on);
        c.msr.apic_base = if on { 0xfee0_0800 } else { 0xfee0_0000 };
        assert_eq!(c.cpuid_result(1, 0).ecx >> 27 & 1 != 0, on);
        assert_eq!(c.cpuid_result(7, 0).ecx >> 4 & 1 != 0, on);
        assert_eq!(c.cpuid_result(1, 0).edx >> 9 & 1 != 0, on);
    }
    for (xcr0, size, compact) in
        [(1u64, 576, 576), (3, 576, 576), (7, 832, 832), (0xe7, 2432, 2432), (0x207, 2440, 840)]
    {
        r.cpu().xcr0 = x86_arch::control::Xcr0::from_bits_retain(xcr0);
        assert_eq!(r.cpu().cpuid_result(0xd, 0).ebx, size, "{xcr0:#x}");
        assert_eq!(r.cpu().cpuid_result(0xd, 1).ebx, compact, "{xcr0:#x}");
    }
    assert_eq!(r.cpu().cpuid_result(0xd, 0).ecx, 2440);
}

#[test]
fn out_of_range() {
    for (vendor, zero) in [(INTEL, false), (AMD, true)] {
        let cpuid = everything(vendor);
        let mut rows = supported(&HostProcessor { cpuid: &cpuid, xcr0: 7 });
        for e in rows.iter_mut().filter(|e| e.leaf == 0) {
            e.result.eax = 0xd;
        }
        let mut r = Rig::new(Mode::Long);
        r.cpu().cpuid = CpuidTable::new(rows);
        let last = r.cpu().cpuid_result(0xd, 0);
        assert_ne!(last, CpuidResult::default());
        for leaf in [0xe, 0x1000, 0x8000_0030, 0x2000_0000] {
            let got = r.cpu().cpuid_result(leaf, 0);
            assert_eq!(got, if zero { CpuidResult::default() } else { last }, "{leaf:#x}");
        }
        // Inside the range, an absent leaf or sub-leaf is zero.
        assert_eq!(r.cpu().cpuid_result(3, 0), CpuidResult::default());
        assert_eq!(r.cpu().cpuid_result(7, 9), CpuidResult::default());
    }
}

/// `docs/cpuid.md`, from the table.
fn page() -> String {
    let mut out = String::from(
        "# CPUID: what a guest is offered, and why not more\n\n\
         Made from `emu-core/src/cpuid/rows.rs`; a test compares the two, and writes this page anew when\n\
         `SOFTKVM_WRITE_DOCS=1` is set (`SOFTKVM_WRITE_DOCS=1 cargo test -p emu-core cpuid`).\n\n\
         Three classes. *Software* is done by the interpreter or by `softmmu`, and offered on every host (or on every AMD\n\
         host). *Native* is executed by the host's processor, so it is offered where the host and its XCR0 have it. *Withheld*\n\
         is not offered. A bit that the host has and that has no row here is withheld, and a bit is dropped with the bits that it\n\
         needs. What is not offered, or what a guest's table denies, is #UD: `emu-core/src/cpuid/two_way.rs` holds every\n\
         opcode in every mode to that.\n",
    );
    let mut at = None;
    for r in POLICY {
        let f = r.feature;
        if at != Some((f.leaf, f.subleaf)) {
            at = Some((f.leaf, f.subleaf));
            let sub = if f.subleaf > 0 { format!(", sub-leaf {}", f.subleaf) } else { String::new() };
            out += &format!("\n## Leaf {:X}H{sub}\n\n", f.leaf);
            out += "| bit | name | class | offered | where, or why not |\n|---|---|---|---|---|\n";
        }
        let class = match r.class {
            Class::Software => "software",
            Class::SoftwareAmd => "software, AMD",
            Class::Native(_) => "native",
            Class::Withheld => "withheld",
        };
        let code = if r.code.is_empty() { String::new() } else { format!("`{}`", r.code) };
        let gap = if code.is_empty() || r.why.is_empty() { "" } else { ": " };
        let reg = format!("{:?}", f.reg).to_uppercase();
        let name = f.name;
        out +=
            &format!("| {reg}.{} | {name} | {class} | {} | {code}{gap}{} |\n", f.bit, r.condition(), r.why);
    }
    out
}

#[test]
fn the_page_shows_the_table() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cpuid.md");
    let want = page();
    if std::env::var_os("SOFTKVM_WRITE_DOCS").is_some() {
        std::fs::write(&path, &want).expect("docs can be written");
    }
    let is = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(is == want, "docs/cpuid.md is not what the table says; SOFTKVM_WRITE_DOCS=1 writes it");
}

/// A bit goes with what it needs.
#[test]
fn what_it_needs_is_offered_too() {
    let all = everything(INTEL);
    for f in [AVX, AVX2, SSE4_2, AVX512F, SSSE3] {
        // A host that has everything but this.
        let cpuid = |leaf: u32, subleaf: u32| {
            let mut r = all(leaf, subleaf);
            if (leaf, subleaf) == (f.leaf, f.subleaf) {
                match f.reg {
                    CpuidReg::Eax => r.eax &= !(1 << f.bit),
                    CpuidReg::Ebx => r.ebx &= !(1 << f.bit),
                    CpuidReg::Ecx => r.ecx &= !(1 << f.bit),
                    CpuidReg::Edx => r.edx &= !(1 << f.bit),
                }
            }
            r
        };
        let host = HostProcessor { cpuid: &cpuid, xcr0: 0x2e7 };
        let whole = HostProcessor { cpuid: &all, xcr0: 0x2e7 };
        let mut dropped = 0;
        for r in POLICY.iter().filter(|r| r.needs.contains(&f)) {
            assert!(!offers(&host, r.feature), "{} without {}", r.feature.name, f.name);
            dropped += u32::from(offers(&whole, r.feature));
        }
        assert!(dropped > 0, "{}", f.name);
    }
}

/// What changed hands from the host to the guest was decided: the table of a host with every bit, in both vendors' leaves,
/// has the bits of offered rows and nothing else in the leaves that hold features only.
#[test]
fn offered_rows_are_in_the_table() {
    for vendor in [INTEL, AMD] {
        let cpuid = everything(vendor);
        let host = HostProcessor { cpuid: &cpuid, xcr0: 0x2e7 };
        let table = CpuidTable::new(supported(&host));
        for r in POLICY {
            let f = r.feature;
            let amd_leaf = f.leaf == 0x8000_0021;
            let expected = offers(&host, f) && (!amd_leaf || vendor == AMD);
            assert_eq!(table.has(f), expected, "{} {:?}", f.name, r.class);
        }
    }
}
