//! The allow-list: which of iced's `Code` values may run on the host processor, and by which rules.
//!
//! A row is derived from iced's own tables (encoding, CPUID features, operand kinds, memory size) and from
//! the lists of exceptions below, once. What has no row is never executed. What the stub for one instruction looks
//! like is [`super::stub`]'s.

use crate::host_cpu;
use crate::host_rules::host_rules;
use decoder::{CpuidSet, Vendor};
use iced_x86::{Code, CpuidFeature, EncodingKind, MemorySize, Mnemonic, OpCodeOperandKind};
use std::sync::LazyLock;

/// By whose rules an instruction may be executed (SDM vol. 2A, 2.4 to 2.8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unit {
    /// Legacy SSE.
    Sse,
    /// VEX-encoded, on vector registers.
    Vex,
    /// EVEX-encoded, or VEX-encoded on opmask registers.
    Evex,
    /// On MMX registers; possibly on XMM registers too.
    Mmx,
    /// x87.
    X87,
}

/// What is true of each instruction with the same `Code`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Row {
    /// The rules.
    pub(super) unit: Unit,
    /// The result or the exceptions depend on MXCSR.
    pub(super) mxcsr: bool,
    /// The memory operand must be aligned at its size.
    pub(super) aligned: bool,
    /// It is a move that is aligned by name.
    pub(super) moves: bool,
    /// Its memory operand is a tuple that becomes the destination's elements again and again.
    pub(super) repeats: bool,
    /// With a mask, memory elements that are masked out raise no fault (SDM vol. 2A, 2.8: the exception
    /// classes without "NF").
    pub(super) suppresses: bool,
}

static TABLE: LazyLock<Box<[Option<Row>]>> = LazyLock::new(|| {
    let host = CpuidSet::new(Vendor::Amd, host_cpu::has);
    Code::values().map(|code| if host.has(code) { row(code) } else { None }).collect()
});

/// The row of `code`, if it may run here.
pub(super) fn get(code: Code) -> Option<Row> {
    TABLE.get(code as usize).copied().flatten()
}

fn row(code: Code) -> Option<Row> {
    let op = code.op_code();
    let mnemonic = code.mnemonic();
    if !op.is_instruction() || !op.mode64() && !op.mode32() || software(mnemonic) {
        return None;
    }
    if !code.cpuid_features().iter().all(|f| feature(*f)) || !op.op_kinds().iter().all(|k| operand(*k)) {
        return None;
    }
    let unit = unit(code)?;
    let xcr0 = host_cpu::xcr0();
    match unit {
        Unit::Vex if xcr0 & 6 != 6 => return None,
        Unit::Evex if xcr0 & 0xe6 != 0xe6 => return None,
        _ => {}
    }
    Some(Row {
        unit,
        mxcsr: unit != Unit::X87 && uses_mxcsr(code),
        aligned: aligned(code, unit),
        moves: aligned_move(mnemonic),
        repeats: repeats(mnemonic),
        suppresses: op.can_use_op_mask_register() && !no_suppression(code),
    })
}

fn unit(code: Code) -> Option<Unit> {
    use OpCodeOperandKind as K;
    let kinds = code.op_code().op_kinds();
    let any = |f: fn(K) -> bool| kinds.iter().any(|k| f(*k));
    let mask = any(|k| matches!(k, K::k_reg | K::kp1_reg | K::k_rm | K::k_vvvv | K::k_or_mem));
    match code.encoding() {
        EncodingKind::EVEX => Some(Unit::Evex),
        EncodingKind::VEX if mask => Some(Unit::Evex),
        EncodingKind::VEX if any(vector) => Some(Unit::Vex),
        EncodingKind::Legacy if decoder::attrs(code).attr.contains(decoder::Attr::X87) => Some(Unit::X87),
        EncodingKind::Legacy
            if any(|k| matches!(k, K::mm_or_mem | K::mm_reg | K::mm_rm)) || code == Code::Emms =>
        {
            Some(Unit::Mmx)
        }
        EncodingKind::Legacy if any(vector) => Some(Unit::Sse),
        _ => None,
    }
}

fn vector(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::xmm_or_mem
            | K::ymm_or_mem
            | K::zmm_or_mem
            | K::xmm_reg
            | K::xmm_rm
            | K::xmm_vvvv
            | K::xmm_is4
            | K::xmm_is5
            | K::ymm_reg
            | K::ymm_rm
            | K::ymm_vvvv
            | K::ymm_is4
            | K::ymm_is5
            | K::zmm_reg
            | K::zmm_rm
            | K::zmm_vvvv
    )
}

/// The operand kinds that a stub knows how to provide.
fn operand(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    vector(kind)
        || matches!(
            kind,
            K::mem
                | K::mm_or_mem
                | K::mm_reg
                | K::mm_rm
                | K::k_or_mem
                | K::k_reg
                | K::kp1_reg
                | K::k_rm
                | K::k_vvvv
                | K::r32_or_mem
                | K::r32_reg
                | K::r32_rm
                | K::r64_or_mem
                | K::r64_reg
                | K::r64_rm
                | K::st0
                | K::sti_opcode
                | K::imm4_m2z
                | K::imm8
        )
}

/// iced's features whose instructions compute on vector, MMX or x87 registers only.
fn feature(f: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        f,
        F::INTEL8086
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::CMOV
            | F::MMX
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::SSE4A
            | F::AES
            | F::PCLMULQDQ
            | F::SHA
            | F::GFNI
            | F::VAES
            | F::VPCLMULQDQ
            | F::AVX
            | F::AVX2
            | F::FMA
            | F::F16C
            | F::AVX_VNNI
            | F::AVX_VNNI_INT8
            | F::AVX_VNNI_INT16
            | F::AVX_IFMA
            | F::AVX_NE_CONVERT
            | F::SHA512
            | F::SM3
            | F::SM4
            | F::AVX512F
            | F::AVX512VL
            | F::AVX512BW
            | F::AVX512DQ
            | F::AVX512CD
            | F::AVX512_IFMA
            | F::AVX512_VBMI
            | F::AVX512_VBMI2
            | F::AVX512_VNNI
            | F::AVX512_BITALG
            | F::AVX512_VPOPCNTDQ
            | F::AVX512_BF16
            | F::AVX512_FP16
            | F::AVX512_VP2INTERSECT
    )
}

/// The row that `code` would have on a host that has its features.
#[cfg(test)]
pub(super) fn row_anywhere(code: Code) -> Option<Row> {
    row(code)
}

/// Whether another file does this instruction.
#[cfg(test)]
pub(super) fn in_software(code: Code) -> bool {
    software(code.mnemonic())
}

/// Instructions that other files do in software: masked moves by VEX, control words, state areas.
fn software(m: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        m,
        M::Maskmovq
            | M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
            | M::Ldmxcsr
            | M::Stmxcsr
            | M::Vldmxcsr
            | M::Vstmxcsr
            | M::Vzeroupper
            | M::Vzeroall
            | M::Fninit
            | M::Finit
            | M::Fnclex
            | M::Fclex
            | M::Fldcw
            | M::Fnstcw
            | M::Fstcw
            | M::Fnstsw
            | M::Fstsw
            | M::Fnstenv
            | M::Fstenv
            | M::Fldenv
            | M::Fnsave
            | M::Fsave
            | M::Frstor
            | M::Wait
            | M::Fneni
            | M::Feni
            | M::Fndisi
            | M::Fdisi
            | M::Fnsetpm
            | M::Fsetpm
            | M::Frstpm
    )
}

/// Whether memory must be aligned at the operand's size (SDM vol. 2A, 2.4.1 and 2.4.2: exception types 1, 2 and 4
/// of legacy SSE; type 1 of VEX; E1 of EVEX).
fn aligned(code: Code, unit: Unit) -> bool {
    use Mnemonic as M;
    let m = code.mnemonic();
    match unit {
        // AMD's processors do not look at the alignment here.
        Unit::Sse if code.cpuid_features() == [CpuidFeature::SHA] && host_cpu::vendor() == Vendor::Amd => {
            false
        }
        Unit::Sse => {
            code.op_code().memory_size().size() == 16
                && !matches!(
                    m,
                    M::Movups
                        | M::Movupd
                        | M::Movdqu
                        | M::Lddqu
                        | M::Pcmpestri
                        | M::Pcmpestri64
                        | M::Pcmpestrm
                        | M::Pcmpestrm64
                        | M::Pcmpistri
                        | M::Pcmpistrm
                )
                && !(host_rules().sha_unaligned && code.cpuid_features().contains(&CpuidFeature::SHA))
        }
        // MMX instructions with a 128-bit operand: CVTPD2PI, CVTTPD2PI.
        Unit::Mmx => code.op_code().memory_size().size() == 16,
        Unit::Vex | Unit::Evex => aligned_move(m),
        Unit::X87 => false,
    }
}

/// Moves that are aligned by name or because they are not temporal.
fn aligned_move(m: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        m,
        M::Movaps
            | M::Movapd
            | M::Movdqa
            | M::Movntps
            | M::Movntpd
            | M::Movntdq
            | M::Movntdqa
            | M::Vmovaps
            | M::Vmovapd
            | M::Vmovdqa
            | M::Vmovdqa32
            | M::Vmovdqa64
            | M::Vmovntps
            | M::Vmovntpd
            | M::Vmovntdq
            | M::Vmovntdqa
    )
}

/// Broadcasts of more than one element.
fn repeats(m: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        m,
        M::Vbroadcastf32x2
            | M::Vbroadcastf32x4
            | M::Vbroadcastf32x8
            | M::Vbroadcastf64x2
            | M::Vbroadcastf64x4
            | M::Vbroadcasti32x2
            | M::Vbroadcasti32x4
            | M::Vbroadcasti32x8
            | M::Vbroadcasti64x2
            | M::Vbroadcasti64x4
    )
}

/// Whether MXCSR matters. In doubt it does: the stub then loads it, which costs time only.
fn uses_mxcsr(code: Code) -> bool {
    let name = format!("{:?}", code.mnemonic()).to_ascii_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    if name.starts_with("cvt") {
        return true;
    }
    const MOVES: &[&str] = &[
        "mov",
        "lddqu",
        "and",
        "or",
        "xor",
        "shuf",
        "unpck",
        "blend",
        "insert",
        "extract",
        "perm",
        "broadcast",
        "expand",
        "compress",
        "test",
        "pblend",
    ];
    let float = matches!(
        code.op_code().memory_size().element_type(),
        MemorySize::Float16
            | MemorySize::BFloat16
            | MemorySize::Float32
            | MemorySize::Float64
            | MemorySize::Float128
    );
    float && !MOVES.iter().any(|m| name.starts_with(m))
}

/// EVEX instructions that read or check all of their memory operand whatever the mask says (SDM vol. 2A, 2.8: the
/// exception classes with "NF"): a result element depends on memory at another place than its own, or the operand is
/// a part of a register. Each was found so on a Zen 4, and all others with a mask to suppress faults.
fn no_suppression(code: Code) -> bool {
    use Mnemonic as M;
    match code.mnemonic() {
        // Classes E4NF and E4NF.nb.
        M::Valignd
        | M::Valignq
        | M::Vcvtne2ps2bf16
        | M::Vdbpsadbw
        | M::Vgf2p8affineinvqb
        | M::Vgf2p8affineqb
        | M::Vmovshdup
        | M::Vmovsldup
        | M::Vpackssdw
        | M::Vpacksswb
        | M::Vpackusdw
        | M::Vpackuswb
        | M::Vpalignr
        | M::Vpconflictd
        | M::Vpconflictq
        | M::Vpermb
        | M::Vpermd
        | M::Vpermi2b
        | M::Vpermi2d
        | M::Vpermi2pd
        | M::Vpermi2ps
        | M::Vpermi2q
        | M::Vpermi2w
        | M::Vpermilpd
        | M::Vpermilps
        | M::Vpermpd
        | M::Vpermps
        | M::Vpermq
        | M::Vpermt2b
        | M::Vpermt2d
        | M::Vpermt2pd
        | M::Vpermt2ps
        | M::Vpermt2q
        | M::Vpermt2w
        | M::Vpermw
        | M::Vpmaddubsw
        | M::Vpmaddwd
        | M::Vpmultishiftqb
        | M::Vpshufb
        | M::Vpshufd
        | M::Vpshufhw
        | M::Vpshuflw
        | M::Vpunpckhbw
        | M::Vpunpckhdq
        | M::Vpunpckhqdq
        | M::Vpunpckhwd
        | M::Vpunpcklbw
        | M::Vpunpckldq
        | M::Vpunpcklqdq
        | M::Vpunpcklwd
        | M::Vshuff32x4
        | M::Vshuff64x2
        | M::Vshufi32x4
        | M::Vshufi64x2
        | M::Vshufpd
        | M::Vshufps
        | M::Vunpckhpd
        | M::Vunpckhps
        | M::Vunpcklpd
        | M::Vunpcklps => true,
        // Class E5NF.
        M::Vmovddup => true,
        // Class E6NF.
        M::Vextractf32x4
        | M::Vextractf32x8
        | M::Vextractf64x2
        | M::Vextractf64x4
        | M::Vextracti32x4
        | M::Vextracti32x8
        | M::Vextracti64x2
        | M::Vextracti64x4
        | M::Vinsertf32x4
        | M::Vinsertf32x8
        | M::Vinsertf64x2
        | M::Vinsertf64x4
        | M::Vinserti32x4
        | M::Vinserti32x8
        | M::Vinserti64x2
        | M::Vinserti64x4 => true,
        // Shifts whose count is a whole XMM operand: class E4NF.nb; those by an immediate: E4.
        M::Vpslld
        | M::Vpsllq
        | M::Vpsllw
        | M::Vpsrad
        | M::Vpsraq
        | M::Vpsraw
        | M::Vpsrld
        | M::Vpsrlq
        | M::Vpsrlw => !code.op_code().op_kinds().contains(&OpCodeOperandKind::imm8),
        _ => false,
    }
}
