//! The policy held against the processor, both ways, over the whole opcode space ([`super::opcodes`]) in every mode: what is
//! offered executes; what is not offered, denied by the guest's CPUID, or assigned to nothing is #UD.

use super::policy::{HostProcessor, POLICY, supported, supported_xcr0};
use super::{CpuidTable, opcodes};
use crate::exit::Stop;
use crate::rig::{DATA, Mode, Rig};
use decoder::validity::{Gate, gate};
use decoder::{CpuMode, Vendor};
use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, Mnemonic};
use std::collections::{BTreeMap, BTreeSet};
use x86_arch::control::{Cr4, Efer, Xcr0};
use x86_arch::cpuid::{CpuidEntry, CpuidReg, CpuidResult, Feature, PKU};
use x86_arch::{Gpr, Vector};

const MODES: [Mode; 6] =
    [Mode::Long, Mode::Compat, Mode::Protected, Mode::Protected16, Mode::Real, Mode::Virtual8086];

fn size(mode: Mode) -> CpuMode {
    match mode {
        Mode::Long => CpuMode::Bits64,
        Mode::Compat | Mode::Protected => CpuMode::Bits32,
        _ => CpuMode::Bits16,
    }
}

/// Whether the manuals have this instruction in this mode. `None`: there is #GP for it, or it is not for this test to say.
fn legal(code: Code, mode: Mode, vendor: Vendor) -> Option<bool> {
    let info = code.op_code();
    let amd = vendor == Vendor::Amd;
    match code.mnemonic() {
        // UDn are #UD by definition, RSM outside system management mode.
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::Rsm => return Some(false),
        // SYSENTER does not exist in AMD's long mode, and is #GP in real mode; SYSCALL exists in 64-bit mode only on
        // Intel's, and AMD's manual leaves it to EFER.SCE.
        // SYSEXIT of AMD's is #GP first where the privilege level is not 0.
        Mnemonic::Sysexit | Mnemonic::Sysexitq if amd && matches!(mode, Mode::Long | Mode::Compat) => {
            return None;
        }
        // With VEX.W they are VPEXTRQ and VPINSRQ, which 64-bit mode alone has.
        Mnemonic::Vpextrd | Mnemonic::Vpinsrd if mode != Mode::Long => return None,
        // A register operand of 0F 0D is #UD on AMD's.
        Mnemonic::Reservednop if amd => return None,
        Mnemonic::Sysenter | Mnemonic::Sysexit | Mnemonic::Sysexitq => {
            return (mode != Mode::Real).then_some(!(amd && matches!(mode, Mode::Long | Mode::Compat)));
        }
        Mnemonic::Syscall | Mnemonic::Sysret | Mnemonic::Sysretq => {
            let protected = !matches!(mode, Mode::Real | Mode::Virtual8086);
            return (protected || !amd).then_some(mode == Mode::Long || amd);
        }
        _ => {}
    }
    match mode {
        Mode::Long => Some(info.long_mode()),
        Mode::Compat => Some(info.compatibility_mode()),
        Mode::Protected | Mode::Protected16 => Some(info.protected_mode()),
        Mode::Real => Some(info.real_mode()),
        // What needs privilege level 0 is #GP.
        Mode::Virtual8086 if info.virtual8086_mode() => Some(true),
        Mode::Virtual8086 => (!info.real_mode()).then_some(false),
    }
}

/// What needs no bit of CPUID, on silicon or here, and why.
const ALWAYS_ON: &[(&[Mnemonic], &str)] = &[
    (
        &[
            Mnemonic::Prefetch,
            Mnemonic::Prefetchw,
            Mnemonic::Prefetchwt1,
            Mnemonic::Prefetchnta,
            Mnemonic::Prefetcht0,
            Mnemonic::Prefetcht1,
            Mnemonic::Prefetcht2,
            Mnemonic::Prefetchit0,
            Mnemonic::Prefetchit1,
            Mnemonic::Cldemote,
        ],
        "a hint has an encoding that was a NOP before",
    ),
    (&[Mnemonic::Endbr32, Mnemonic::Endbr64, Mnemonic::Rdsspd, Mnemonic::Rdsspq], "NOPs without CET"),
    (&[Mnemonic::Tzcnt, Mnemonic::Lzcnt, Mnemonic::Wbnoinvd], "the prefix is ignored: BSF, BSR, WBINVD"),
    (&[Mnemonic::Vmcall, Mnemonic::Vmmcall], "the hypervisor answers hypercalls"),
    (&[Mnemonic::Monitor, Mnemonic::Mwait], "KVM's NOPs without it"),
];

fn always_on(code: Code) -> bool {
    ALWAYS_ON.iter().any(|(m, _)| m.contains(&code.mnemonic()))
}

fn gates(code: Code) -> impl Iterator<Item = Gate> {
    code.cpuid_features().iter().map(|f| gate(*f))
}

/// A vCPU with a CPUID table, every control bit set that an instruction may need.
struct Machine {
    rig: Rig,
    mode: Mode,
    xcr0: u64,
    pke: bool,
}

impl Machine {
    fn new(mode: Mode, rows: &[CpuidEntry]) -> Machine {
        let mut rig = Rig::new(mode);
        rig.cpu().cpuid = CpuidTable::new(rows.to_vec());
        let host = HostProcessor::this();
        let pke = rig.cpu().cpuid.has(PKU);
        let mut m = Machine { rig, mode, xcr0: supported_xcr0(&host), pke };
        m.restart();
        m
    }

    fn restart(&mut self) {
        self.rig.restart();
        let base = if size(self.mode) == CpuMode::Bits16 { 0 } else { DATA };
        let v = self.rig.cpu();
        for n in (0..16).filter(|n| *n != Gpr::Rsp as usize) {
            v.hot.regs[n] = base + 0x400;
        }
        v.hot.regs[Gpr::Rcx as usize] = 2;
        v.xcr0 = Xcr0::from_bits_retain(self.xcr0);
        v.cr4.set(Cr4::PKE, self.pke);
        v.efer |= Efer::SCE;
    }

    /// Executes one instruction from the same start as each.
    fn step(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let result = self.rig.step(bytes);
        // What is #UD has done nothing.
        if !is_ud(&result) {
            self.restart();
        }
        result
    }
}

fn is_ud(r: &Result<(), Stop>) -> bool {
    matches!(r, Err(Stop::Exception(e)) if e.vector == Vector::Ud)
}

fn decode(mode: Mode, bytes: &[u8]) -> Code {
    let mut padded = [0x90; 15];
    padded[..bytes.len()].copy_from_slice(bytes);
    Decoder::new(size(mode).bitness(), &padded, DecoderOptions::NONE).decode().code()
}

/// The table of KVM_GET_SUPPORTED_CPUID: this host's, or as if another vendor had made it.
fn offered_rows(vendor: Option<Vendor>) -> Vec<CpuidEntry> {
    let this = HostProcessor::this();
    let name = match vendor {
        None => return supported(&this),
        Some(Vendor::Amd) => b"AuthenticAMD",
        Some(Vendor::Intel) => b"GenuineIntel",
    };
    let word = |n: usize| u32::from_le_bytes([name[n], name[n + 1], name[n + 2], name[n + 3]]);
    let cpuid = |leaf: u32, subleaf: u32| match leaf {
        0 => CpuidResult { ebx: word(0), edx: word(4), ecx: word(8), ..(this.cpuid)(0, 0) },
        _ => (this.cpuid)(leaf, subleaf),
    };
    supported(&HostProcessor { cpuid: &cpuid, xcr0: this.xcr0 })
}

/// Codes that iced's list has and no encoding of its own reaches: WAIT and an instruction are two; near branches with an
/// operand-size prefix in 64-bit mode exist on AMD's processors only, and are not done (decoder/src/validity.rs).
fn has_no_encoding(code: Code, mode: Mode) -> bool {
    code.op_code().fwait() || mode == Mode::Long && !code.op_code().intel_decoder64()
}

/// The whole opcode space of one mode under the table of KVM_GET_SUPPORTED_CPUID.
fn sweep(mode: Mode, user: bool, vendor: Option<Vendor>) {
    let rows = offered_rows(vendor);
    let mut m = Machine::new(mode, &rows);
    let table = CpuidTable::new(rows);
    let vendor = table.vendor();
    let offered = |code: Code| {
        gates(code).all(|g| match g {
            Gate::Always => true,
            Gate::Never => false,
            Gate::If(f) => table.has(f),
        })
    };
    let mut executed = BTreeSet::new();
    let mut wrong: BTreeMap<String, String> = BTreeMap::new();
    let (mut undefined, mut defined) = (0u64, 0u64);
    opcodes::every(size(mode), |bytes| {
        if user {
            m.rig.user();
        }
        let code = decode(mode, bytes);
        let result = m.step(bytes);
        let ud = is_ud(&result);
        let mut note = |what: &str| {
            wrong.entry(format!("{code:?} {what}")).or_insert_with(|| format!("{bytes:02x?} {result:?}"));
        };
        if matches!(result, Err(Stop::Internal(_) | Stop::HostFault | Stop::Exclusive)) {
            note("failed");
        }
        let exists = match code {
            Code::INVALID => Some(false),
            _ if always_on(code) => None,
            _ if !offered(code) => Some(false),
            _ => legal(code, mode, vendor),
        };
        match exists {
            Some(true) if !user => {
                defined += 1;
                if ud {
                    note("is offered and undefined");
                } else {
                    executed.insert(code as usize);
                }
            }
            Some(false) => {
                undefined += 1;
                if !ud {
                    note("is not offered and does something");
                }
            }
            _ => {}
        }
    });
    assert!(wrong.is_empty(), "{mode:?}: {} {wrong:#?}", wrong.len());
    assert!(undefined > 1_000_000, "{undefined}");
    if user {
        return;
    }
    assert!(defined > 50_000, "{defined}");
    let missing: Vec<_> = Code::values()
        .filter(|c| c.op_code().is_instruction() && offered(*c))
        .filter(|c| legal(*c, mode, vendor) == Some(true))
        .filter(|c| match size(mode) {
            CpuMode::Bits64 => c.op_code().mode64(),
            CpuMode::Bits32 => c.op_code().mode32(),
            CpuMode::Bits16 => c.op_code().mode16(),
        })
        .filter(|c| !executed.contains(&(*c as usize)) && !always_on(*c) && !has_no_encoding(*c, mode))
        .collect();
    assert!(missing.is_empty(), "{mode:?}: offered and never executed: {missing:?}");
}

#[test]
fn every_opcode_in_64_bit_mode() {
    sweep(Mode::Long, false, None);
}

#[test]
fn every_opcode_in_64_bit_mode_at_level_3() {
    sweep(Mode::Long, true, None);
}

#[test]
fn every_opcode_in_compatibility_mode() {
    sweep(Mode::Compat, false, None);
}

#[test]
fn every_opcode_in_protected_mode() {
    sweep(Mode::Protected, false, None);
}

#[test]
fn every_opcode_in_16_bit_protected_mode() {
    sweep(Mode::Protected16, false, None);
}

#[test]
fn every_opcode_in_real_mode() {
    sweep(Mode::Real, false, None);
}

#[test]
fn every_opcode_in_virtual_8086_mode() {
    sweep(Mode::Virtual8086, false, None);
}

/// Where the vendors differ: SYSCALL and SYSENTER, and what only AMD's have.
#[test]
fn every_opcode_on_the_other_vendors_processor() {
    let other = match CpuidTable::new(offered_rows(None)).vendor() {
        Vendor::Amd => Vendor::Intel,
        Vendor::Intel => Vendor::Amd,
    };
    sweep(Mode::Long, false, Some(other));
    sweep(Mode::Compat, false, Some(other));
}

/// The features that cannot be without `f`.
fn dependants(f: Feature) -> Vec<Feature> {
    let mut gone = vec![f];
    loop {
        let more: Vec<_> = POLICY
            .iter()
            .filter(|r| !gone.contains(&r.feature) && r.needs.iter().any(|n| gone.contains(n)))
            .map(|r| r.feature)
            .collect();
        if more.is_empty() {
            return gone;
        }
        gone.extend(more);
    }
}

fn without(rows: &[CpuidEntry], gone: &[Feature]) -> Vec<CpuidEntry> {
    let mut rows = rows.to_vec();
    for f in gone {
        for e in rows.iter_mut().filter(|e| e.leaf == f.leaf && e.subleaf == f.subleaf) {
            let r = match f.reg {
                CpuidReg::Eax => &mut e.result.eax,
                CpuidReg::Ebx => &mut e.result.ebx,
                CpuidReg::Ecx => &mut e.result.ecx,
                CpuidReg::Edx => &mut e.result.edx,
            };
            *r &= !(1 << f.bit);
        }
    }
    rows
}

/// Encodings of each code that are looked at when one of its features is denied.
const ENCODINGS: usize = 3;

#[test]
fn what_cpuid_denies_is_undefined() {
    let rows = offered_rows(None);
    let whole = CpuidTable::new(rows.clone());
    for mode in MODES {
        let mut of: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
        opcodes::every(size(mode), |bytes| {
            let code = decode(mode, bytes);
            let known = of.entry(code as usize).or_default();
            if code != Code::INVALID && known.len() < ENCODINGS {
                known.push(bytes.to_vec());
            }
        });
        let mut denied = 0;
        for f in POLICY.iter().map(|r| r.feature).filter(|f| whole.has(*f)) {
            let gone = dependants(f);
            let mut m = Machine::new(mode, &without(&rows, &gone));
            for (&code, encodings) in &of {
                let Ok(code) = Code::try_from(code) else { continue };
                if always_on(code) || !gates(code).any(|g| g == Gate::If(f)) {
                    continue;
                }
                for bytes in encodings {
                    let result = m.step(bytes);
                    let real = matches!(code.mnemonic(), Mnemonic::Sysenter | Mnemonic::Sysexit);
                    assert!(
                        is_ud(&result) || real && mode == Mode::Real,
                        "{mode:?} without {}: {code:?} {bytes:02x?} {result:?}",
                        f.name
                    );
                    denied += 1;
                }
            }
        }
        assert!(denied > 2000, "{mode:?} {denied}");
    }
}

/// Each of iced's groups is decided by a row, or by none for a reason that stands here.
#[test]
fn every_group_of_instructions_has_its_row() {
    use CpuidFeature as F;
    for group in CpuidFeature::values() {
        match gate(group) {
            Gate::If(f) => assert!(super::policy::row(f).is_some(), "{group:?} {}", f.name),
            Gate::Always => {}
            Gate::Never => {
                let named = POLICY.iter().find(|r| r.feature.name == format!("{group:?}"));
                let name = format!("{group:?}");
                let extinct = name.contains("CYRIX")
                    || name.contains("KNC")
                    || name.contains("_ONLY")
                    || name.contains("PADLOCK")
                    || matches!(
                        group,
                        F::CL1INVMB | F::UMOV | F::IA64 | F::CENTAUR_AIS | F::MOV_TR | F::UDBG | F::TDX
                    );
                let withheld = named.is_some_and(|r| r.class == super::policy::Class::Withheld);
                assert!(extinct || withheld, "{group:?} has no row");
            }
        }
    }
}
