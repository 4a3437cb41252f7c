//! The cells that there are on a host, and for each whether both machines can be expected to execute it. Which CPUID bit
//! shows a feature is `features`'; what was executed is `counts`'.
//!
//! An instruction that faults by its privilege is executed (#GP at CPL 3 is an outcome to compare); one that is #UD
//! is not. So privileged instructions are offered, and what is #UD at CPL 3 by definition is unreachable.

use super::features::{self, Cpuid, Shown};
use super::{Cell, Form, Mask, Rounding, decoder_options};
use crate::Bits;
use iced_x86::{Code, CpuidFeature, DecoderOptions, Mnemonic, OpCodeInfo, OpCodeOperandKind};
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use std::collections::{BTreeMap, HashMap};

/// Whether a cell can be expected to be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Class {
    /// Both machines have it.
    Offered,
    /// The host has it, KVM_GET_SUPPORTED_CPUID does not offer it: the bits that it lacks.
    Withheld(String),
    /// The host has it, but not for user mode under this kernel: why.
    Unreachable(&'static str),
}

/// What there is to cover on a host in a mode.
#[derive(Clone, Debug)]
pub struct Denominator {
    /// Code size.
    pub bits: Bits,
    /// The cells, sorted.
    pub cells: Vec<Cell>,
    classes: HashMap<Code, Class>,
    /// iced's codes that are legal in the mode and are no part of it: the reason, and how many.
    pub excluded: BTreeMap<String, usize>,
}

impl Denominator {
    /// Of this host, with what `kvm-ioctl-layer` offers on it.
    pub fn of_host(bits: Bits) -> Denominator {
        let table = kvm_ioctl_layer::Kvm::new()
            .and_then(|kvm| kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES))
            .map(|table| table.as_slice().to_vec())
            .unwrap_or_default();
        let offered = |leaf: u32, subleaf: u32| {
            let row = table.iter().find(|row| row.function == leaf && row.index == subleaf);
            row.map_or([0; 4], |row| [row.eax, row.ebx, row.ecx, row.edx])
        };
        Denominator::new(bits, &features::host_cpuid, &offered, features::host_is_amd())
    }

    /// Of a host with one CPUID, where a policy offers another.
    pub fn new(bits: Bits, host: Cpuid<'_>, offered: Cpuid<'_>, amd: bool) -> Denominator {
        let mut cells = Vec::new();
        let mut classes = HashMap::new();
        let mut excluded: BTreeMap<String, usize> = BTreeMap::new();
        for code in Code::values().filter(|code| legal(*code, bits)) {
            if let Some(why) = absent(code, bits, host, amd) {
                *excluded.entry(why).or_default() += 1;
                continue;
            }
            // What policy withholds stands under policy's heading, whatever else is to be said of it.
            let class = match (withheld(code, offered), unreachable(code, bits, host, amd)) {
                (Some(why), _) => Class::Withheld(why),
                (None, Some(why)) => Class::Unreachable(why),
                (None, None) => Class::Offered,
            };
            classes.insert(code, class);
            expand(code, bits, &mut cells);
        }
        cells.sort_unstable();
        Denominator { bits, cells, classes, excluded }
    }

    /// The class of a cell. A cell that is no part of the denominator is unreachable.
    pub fn class(&self, cell: &Cell) -> &Class {
        self.classes.get(&cell.code).unwrap_or(&Class::Unreachable("the host does not have it"))
    }

    /// Whether a cell is part of it.
    pub fn contains(&self, cell: &Cell) -> bool {
        self.cells.binary_search(cell).is_ok()
    }
}

/// Whether a code is an instruction that the code size has.
fn legal(code: Code, bits: Bits) -> bool {
    let info = code.op_code();
    let mode = match bits {
        Bits::Bits16 => info.mode16() && info.compatibility_mode(),
        Bits::Bits32 => info.mode32() && info.compatibility_mode(),
        Bits::Bits64 => info.mode64() && info.long_mode(),
    };
    mode && info.is_instruction() && code != Code::Zero_bytes
}

/// Why a code is not there on a host that decodes its mode.
fn absent(code: Code, bits: Bits, host: Cpuid<'_>, amd: bool) -> Option<String> {
    let info = code.op_code();
    if info.fwait() {
        return Some("two instructions: FWAIT and another".into());
    }
    let option = info.decoder_option() & !decoder_options();
    if option != 0 {
        return Some(option_reason(option).into());
    }
    let vendor = match (bits, amd) {
        (Bits::Bits16, true) => info.amd_decoder16(),
        (Bits::Bits32, true) => info.amd_decoder32(),
        (Bits::Bits64, true) => info.amd_decoder64(),
        (Bits::Bits16, false) => info.intel_decoder16(),
        (Bits::Bits32, false) => info.intel_decoder32(),
        (Bits::Bits64, false) => info.intel_decoder64(),
    };
    if !vendor {
        return Some("the other vendor's".into());
    }
    let lacks = code.cpuid_features().iter().find(|f| !features::has(host, **f))?;
    Some(match features::shown(*lacks) {
        Shown::Never(why) => format!("{lacks:?}: {why}"),
        _ => format!("{lacks:?}: the host lacks it"),
    })
}

/// What a code is that iced decodes only if told to.
fn option_reason(option: u32) -> &'static str {
    match option {
        DecoderOptions::KNC => "Knights Corner only",
        DecoderOptions::MPX => "MPX, which processors and kernels have given up",
        DecoderOptions::FORCE_RESERVED_NOP => "reserved NOPs whose encodings are other instructions today",
        DecoderOptions::CYRIX | DecoderOptions::CYRIX_DMI | DecoderOptions::CYRIX_SMINT_0F7E => {
            "Cyrix and Geode only"
        }
        DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD | DecoderOptions::NO_WBNOINVD => {
            "what a prefix makes of it is an instruction of its own on this host"
        }
        DecoderOptions::AMD => "AMD's",
        _ => "earlier processors only",
    }
}

/// The bits of CPUID that a policy does not offer.
fn withheld(code: Code, offered: Cpuid<'_>) -> Option<String> {
    let lacks: Vec<String> = code
        .cpuid_features()
        .iter()
        .filter(|f| !features::has(offered, **f))
        .map(|f| match features::shown(*f) {
            Shown::By(bit) => format!("{bit} ({f:?}) is not offered"),
            Shown::Either(a, b) => format!("{a} and {b} ({f:?}) are not offered"),
            Shown::Base | Shown::Never(_) => format!("{f:?} is not offered"),
        })
        .collect();
    (!lacks.is_empty()).then(|| lacks.join(", "))
}

/// What a test process must not execute, whatever CPUID says: it would leave user mode for something that answers
/// in place of the processor.
pub fn avoided(code: Code) -> Option<&'static str> {
    use Mnemonic as M;
    match code.mnemonic() {
        M::Syscall => Some("enters the host's kernel"),
        M::Sysenter => Some("enters the host's kernel, or is #UD"),
        M::Vmcall | M::Vmmcall | M::Vmgexit => Some("enters the host's hypervisor, where there is one"),
        M::Tdcall | M::Seamcall => Some("enters the host's hypervisor, where there is one"),
        M::Sgdt | M::Sidt | M::Sldt | M::Smsw | M::Str => {
            Some("the host's kernel emulates what CR4.UMIP denies, or its own values show")
        }
        _ => None,
    }
}

/// Why user mode cannot have an instruction of a processor that has it.
fn unreachable(code: Code, bits: Bits, host: Cpuid<'_>, amd: bool) -> Option<&'static str> {
    use Mnemonic as M;
    match code.mnemonic() {
        M::Ud0 | M::Ud1 | M::Ud2 => return Some("#UD by definition"),
        M::Rsm => return Some("#UD outside system-management mode"),
        // SDM vol. 2A, CLAC; vol. 2B, MONITOR, MWAIT, STAC; vol. 2D, ENCLS: #UD unless CPL is 0. So are AMD's
        // MONITOR and MWAIT, which MSRC001_0015[10] may allow (APM vol. 3).
        M::Clac | M::Stac | M::Monitor | M::Mwait | M::Encls | M::Pconfig => {
            return Some("#UD unless CPL is 0");
        }
        // APM vol. 3, PREFETCH: "#UD, a register operand"; Intel's are NOPs.
        M::Reservednop if amd && is_reserved_prefetch(code) => {
            return Some("#UD in register form on AMD's processors");
        }
        // APM vol. 3, SYSENTER, SYSEXIT: "This instruction is not recognized in long mode".
        M::Sysenter | M::Sysexit | M::Sysexitq if amd => return Some("#UD in long mode on AMD's processors"),
        // SDM vol. 2B, SYSCALL: #UD outside 64-bit mode.
        M::Syscall | M::Sysret | M::Sysretq if !amd && bits != Bits::Bits64 => {
            return Some("#UD outside 64-bit mode on Intel's processors");
        }
        M::Getsec => return Some("#UD with CR4.SMXE clear"),
        _ => {}
    }
    if let Some(why) = avoided(code) {
        return Some(why);
    }
    let has = |f| code.cpuid_features().contains(&f) && features::has(host, f);
    if has(CpuidFeature::VMX) || has(CpuidFeature::INVEPT) || has(CpuidFeature::INVVPID) {
        return Some("#UD outside VMX operation");
    }
    if has(CpuidFeature::SVM) || has(CpuidFeature::SKINIT) || has(CpuidFeature::SKINIT_or_SVM) {
        return Some("#UD with EFER.SVME clear");
    }
    if has(CpuidFeature::UINTR) || has(CpuidFeature::KL) {
        return Some("#UD with the enabling bit of CR4 clear");
    }
    if has(CpuidFeature::CET_SS) && !matches!(code.mnemonic(), M::Rdsspd | M::Rdsspq) {
        return Some("#UD without a shadow stack");
    }
    None
}

/// The cells of a code.
fn expand(code: Code, bits: Bits, cells: &mut Vec<Cell>) {
    let info = code.op_code();
    for form in [Form::Register, Form::Memory] {
        let mut forms = forms(info);
        // APM vol. 3, PREFETCH: with memory, all of 0F 0D is prefetches.
        if is_reserved_prefetch(code) {
            forms = &[Form::Register];
        }
        if !forms.contains(&form) {
            continue;
        }
        let addresses = match form {
            Form::Register => vec![0],
            Form::Memory => addresses(info, bits),
        };
        let broadcasts: &[bool] =
            if form == Form::Memory && info.can_broadcast() { &[false, true] } else { &[false] };
        for address in addresses {
            for mask in masks(info, form) {
                for broadcast in broadcasts {
                    for rounding in roundings(info, form) {
                        let broadcast = *broadcast;
                        cells.push(Cell {
                            code,
                            bits,
                            form,
                            address,
                            mask: *mask,
                            broadcast,
                            rounding: *rounding,
                        });
                    }
                }
            }
        }
    }
}

/// 0F 0D, with what PREFETCH and PREFETCHW leave of it.
fn is_reserved_prefetch(code: Code) -> bool {
    matches!(
        code,
        Code::Reservednop_rm16_r16_0F0D | Code::Reservednop_rm32_r32_0F0D | Code::Reservednop_rm64_r64_0F0D
    )
}

/// What an operand of a kind can be.
fn forms(info: &OpCodeInfo) -> &'static [Form] {
    if info.op_kinds().iter().any(|kind| memory_only(*kind)) {
        &[Form::Memory]
    } else if info.op_kinds().iter().any(|kind| register_or_memory(*kind)) {
        &[Form::Register, Form::Memory]
    } else {
        &[Form::Register]
    }
}

/// Whether an operand kind is a register or memory, as ModRM says.
pub(crate) fn register_or_memory(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::r32_or_mem_mpx
            | K::r64_or_mem_mpx
            | K::bnd_or_mem_mpx
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::zmm_or_mem
            | K::k_or_mem
    )
}

/// Whether an operand kind is memory alone.
pub(crate) fn memory_only(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::mem
            | K::mem_offs
            | K::mem_mpx
            | K::mem_mib
            | K::mem_vsib32x
            | K::mem_vsib64x
            | K::mem_vsib32y
            | K::mem_vsib64y
            | K::mem_vsib32z
            | K::mem_vsib64z
            | K::sibmem
            | K::seg_rSI
            | K::es_rDI
            | K::seg_rDI
            | K::seg_rBX_al
    )
}

/// The address sizes that a memory operand can have.
fn addresses(info: &OpCodeInfo, bits: Bits) -> Vec<u8> {
    use OpCodeOperandKind as K;
    if info.address_size() != 0 {
        return vec![info.address_size() as u8];
    }
    // MOVDIR64B and its like: the register operand's size is the address size.
    for kind in info.op_kinds() {
        match kind {
            K::r16_reg_mem => return vec![16],
            K::r32_reg_mem => return vec![32],
            K::r64_reg_mem => return vec![64],
            _ => {}
        }
    }
    let mpx = |k: &K| {
        matches!(k, K::mem_mpx | K::mem_mib | K::bnd_or_mem_mpx | K::r32_or_mem_mpx | K::r64_or_mem_mpx)
    };
    if info.op_kinds().iter().any(mpx) {
        return vec![if bits == Bits::Bits64 { 64 } else { 32 }];
    }
    // SDM vol. 2A, 2.3.12: a VSIB with a 16-bit address is #UD, as there is no SIB byte.
    let sib = info.op_kinds().iter().any(|k| {
        matches!(k, K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y)
            || matches!(k, K::mem_vsib32z | K::mem_vsib64z | K::sibmem)
    });
    match bits {
        Bits::Bits64 => vec![32, 64],
        _ if sib => vec![32],
        _ => vec![16, 32],
    }
}

fn masks(info: &OpCodeInfo, form: Form) -> &'static [Mask] {
    // SDM vol. 2A, 2.7.4: zeroing with a destination in memory is #UD.
    let stores = form == Form::Memory
        && info.op_kinds().first().is_some_and(|kind| memory_only(*kind) || register_or_memory(*kind));
    let zeroing = info.can_use_zeroing_masking() && !stores;
    match (info.can_use_op_mask_register(), info.require_op_mask_register(), zeroing) {
        (false, ..) => &[Mask::None],
        (true, true, true) => &[Mask::Merge, Mask::Zero],
        (true, true, false) => &[Mask::Merge],
        (true, false, true) => &[Mask::None, Mask::Merge, Mask::Zero],
        (true, false, false) => &[Mask::None, Mask::Merge],
    }
}

fn roundings(info: &OpCodeInfo, form: Form) -> &'static [Rounding] {
    use Rounding::{Down, Nearest, None, Sae, Up, Zero};
    match form {
        Form::Memory => &[None],
        Form::Register if info.can_use_rounding_control() => &[None, Nearest, Down, Up, Zero],
        Form::Register if info.can_suppress_all_exceptions() => &[None, Sae],
        Form::Register => &[None],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(_: u32, _: u32) -> [u32; 4] {
        [u32::MAX; 4]
    }
    fn none(_: u32, _: u32) -> [u32; 4] {
        [0; 4]
    }

    fn count(denominator: &Denominator, class: fn(&Class) -> bool) -> usize {
        denominator.cells.iter().filter(|cell| class(denominator.class(cell))).count()
    }

    #[test]
    fn every_mode_has_cells() {
        for bits in [Bits::Bits16, Bits::Bits32, Bits::Bits64] {
            let denominator = Denominator::of_host(bits);
            assert!(count(&denominator, |c| *c == Class::Offered) > 2000, "{bits:?}");
            assert!(count(&denominator, |c| matches!(c, Class::Unreachable(_))) > 3, "{bits:?}");
            assert!(denominator.cells.windows(2).all(|w| w[0] < w[1]), "sorted, each once");
        }
    }

    #[test]
    fn what_is_not_offered_stays() {
        let denominator = Denominator::new(Bits::Bits64, &all, &none, false);
        let vaddps = |c: &&Cell| c.code == Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er;
        // Two address sizes, with and without broadcast, three masks; in registers five roundings and three masks.
        assert_eq!(denominator.cells.iter().filter(vaddps).count(), 2 * 2 * 3 + 5 * 3);
        let cell = denominator.cells.iter().find(vaddps).expect("it is there");
        assert_eq!(
            denominator.class(cell),
            &Class::Withheld("CPUID.7H:EBX[16] (AVX512F) is not offered".to_string())
        );
        assert_eq!(
            denominator.cells.iter().filter(|c| c.code == Code::Addps_xmm_xmmm128).count(),
            3,
            "a register form, two address sizes"
        );
    }

    #[test]
    fn a_host_without_a_feature_has_no_such_cells() {
        let denominator = Denominator::new(Bits::Bits64, &none, &none, true);
        assert!(denominator.cells.iter().all(|c| c.code != Code::Addps_xmm_xmmm128));
        assert!(denominator.cells.iter().any(|c| c.code == Code::Add_rm64_r64));
    }

    #[test]
    fn destinations_in_memory_are_not_zeroed() {
        let denominator = Denominator::new(Bits::Bits64, &all, &all, false);
        let zeroed = |form| {
            denominator.cells.iter().any(|c| {
                c.code == Code::EVEX_Vmovups_zmmm512_k1z_zmm && c.mask == Mask::Zero && c.form == form
            })
        };
        assert!(zeroed(Form::Register));
        assert!(!zeroed(Form::Memory));
    }
}
