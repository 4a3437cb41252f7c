//! Every instruction that iced can encode, through this crate: it decodes to itself, LOCK is taken by the forms that
//! the manual lists and by no other, and real mode has what it should have.
#![allow(missing_docs)]

use std::collections::BTreeSet;

use decoder::{
    Code, Context, CpuMode, CpuidSet, Insn, OperandKind, Prefixes, Protection, Vendor, decode_one,
};
use iced_x86::{
    CpuidFeature, Encoder, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register,
};
use x86_arch::exception::Vector;

/// An instruction with this code, with memory where it may have memory if `memory`, else with registers where it may.
fn build(code: Code, mode: CpuMode, memory: bool) -> Option<Instruction> {
    use OpCodeOperandKind as K;
    let info = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    let long = mode == CpuMode::Bits64;
    let base = match mode {
        CpuMode::Bits16 => Register::BX,
        CpuMode::Bits32 => Register::EBX,
        CpuMode::Bits64 => Register::RBX,
    };
    for (i, kind) in info.op_kinds().iter().enumerate() {
        let op = i as u32;
        // Each position another register: gathers want them distinct.
        let n = i as u32 + 1;
        let mut reg = |first: Register, number: u32| insn.set_op_register(op, first + number);
        match kind {
            K::None => {}
            K::al => reg(Register::AL, 0),
            K::cl => reg(Register::CL, 0),
            K::ax => reg(Register::AX, 0),
            K::dx => reg(Register::DX, 0),
            K::eax => reg(Register::EAX, 0),
            K::rax => reg(Register::RAX, 0),
            K::es => reg(Register::ES, 0),
            K::cs => reg(Register::CS, 0),
            K::ss => reg(Register::SS, 0),
            K::ds => reg(Register::DS, 0),
            K::fs => reg(Register::FS, 0),
            K::gs => reg(Register::GS, 0),
            K::st0 => reg(Register::ST0, 0),
            K::sti_opcode => reg(Register::ST0, n),
            K::r8_reg | K::r8_opcode => reg(Register::AL, n),
            K::r16_reg | K::r16_rm | K::r16_opcode => reg(Register::AX, n),
            K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv => reg(Register::EAX, n),
            K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv => reg(Register::RAX, n),
            // The register is an address.
            K::r16_reg_mem => reg(Register::AX, n),
            K::r32_reg_mem => reg(Register::EAX, n),
            K::r64_reg_mem => reg(Register::RAX, n),
            K::seg_reg => reg(Register::ES, 3),
            K::cr_reg => reg(Register::CR0, 3),
            K::dr_reg => reg(Register::DR0, 3),
            K::tr_reg => reg(Register::TR0, 6),
            K::bnd_reg => reg(Register::BND0, n),
            K::k_reg | K::kp1_reg => reg(Register::K0, 2),
            K::k_rm | K::k_vvvv => reg(Register::K0, n),
            K::mm_reg | K::mm_rm => reg(Register::MM0, n),
            K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => reg(Register::XMM0, n),
            K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => reg(Register::YMM0, n),
            K::zmm_reg | K::zmm_rm | K::zmm_vvvv => reg(Register::ZMM0, n),
            K::xmmp3_vvvv => reg(Register::XMM0, 4),
            K::zmmp3_vvvv => reg(Register::ZMM0, 4),
            K::tmm_reg | K::tmm_rm | K::tmm_vvvv => reg(Register::TMM0, n),
            K::farbr2_2 => {
                insn.set_op_kind(op, OpKind::FarBranch16);
                insn.set_far_branch16(0x1234);
                insn.set_far_branch_selector(0x5678);
            }
            K::farbr4_2 => {
                insn.set_op_kind(op, OpKind::FarBranch32);
                insn.set_far_branch32(0x1234);
                insn.set_far_branch_selector(0x5678);
            }
            K::br16_1 | K::br16_2 | K::xbegin_2 | K::brdisp_2 => {
                insn.set_op_kind(op, if long { OpKind::NearBranch64 } else { OpKind::NearBranch16 });
                if *kind == K::br16_1 || *kind == K::br16_2 {
                    insn.set_op_kind(op, OpKind::NearBranch16);
                }
                insn.set_near_branch64(4);
            }
            K::br32_1 | K::br32_4 | K::xbegin_4 | K::brdisp_4 => {
                insn.set_op_kind(op, OpKind::NearBranch32);
                if long {
                    insn.set_op_kind(op, OpKind::NearBranch64);
                }
                insn.set_near_branch64(4);
            }
            K::br64_1 | K::br64_4 => {
                insn.set_op_kind(op, OpKind::NearBranch64);
                insn.set_near_branch64(4);
            }
            K::imm8 | K::imm4_m2z | K::imm8_const_1 => {
                // The second of two: EXTRQ, INSERTQ, ENTER.
                let before = op.checked_sub(1).map(|o| insn.op_kind(o));
                let second = matches!(before, Some(OpKind::Immediate8 | OpKind::Immediate16));
                if second {
                    insn.set_op_kind(op, OpKind::Immediate8_2nd);
                    insn.set_immediate8_2nd(2);
                } else {
                    insn.set_op_kind(op, OpKind::Immediate8);
                    insn.set_immediate8(1);
                }
            }
            K::imm8sex16 => immediate(&mut insn, op, OpKind::Immediate8to16),
            K::imm8sex32 => immediate(&mut insn, op, OpKind::Immediate8to32),
            K::imm8sex64 => immediate(&mut insn, op, OpKind::Immediate8to64),
            K::imm16 => immediate(&mut insn, op, OpKind::Immediate16),
            K::imm32 => immediate(&mut insn, op, OpKind::Immediate32),
            K::imm32sex64 => immediate(&mut insn, op, OpKind::Immediate32to64),
            K::imm64 => immediate(&mut insn, op, OpKind::Immediate64),
            K::seg_rSI => insn.set_op_kind(
                op,
                match mode {
                    CpuMode::Bits16 => OpKind::MemorySegSI,
                    CpuMode::Bits32 => OpKind::MemorySegESI,
                    CpuMode::Bits64 => OpKind::MemorySegRSI,
                },
            ),
            K::es_rDI => insn.set_op_kind(
                op,
                match mode {
                    CpuMode::Bits16 => OpKind::MemoryESDI,
                    CpuMode::Bits32 => OpKind::MemoryESEDI,
                    CpuMode::Bits64 => OpKind::MemoryESRDI,
                },
            ),
            K::seg_rDI => insn.set_op_kind(
                op,
                match mode {
                    CpuMode::Bits16 => OpKind::MemorySegDI,
                    CpuMode::Bits32 => OpKind::MemorySegEDI,
                    CpuMode::Bits64 => OpKind::MemorySegRDI,
                },
            ),
            K::seg_rBX_al => {
                insn.set_op_kind(op, OpKind::Memory);
                insn.set_memory_base(base);
                insn.set_memory_index(Register::AL);
            }
            K::mem_offs => {
                insn.set_op_kind(op, OpKind::Memory);
                insn.set_memory_displ_size(u32::from(mode.bitness() as u8) / 8);
                insn.set_memory_displacement64(0x1234);
            }
            K::mem_vsib32x | K::mem_vsib64x => vsib(&mut insn, op, base, Register::XMM0),
            K::mem_vsib32y | K::mem_vsib64y => vsib(&mut insn, op, base, Register::YMM0),
            K::mem_vsib32z | K::mem_vsib64z => vsib(&mut insn, op, base, Register::ZMM0),
            K::mem | K::mem_mpx | K::mem_mib | K::sibmem => {
                insn.set_op_kind(op, OpKind::Memory);
                insn.set_memory_base(base);
            }
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r32_or_mem_mpx
            | K::r64_or_mem
            | K::r64_or_mem_mpx
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::zmm_or_mem
            | K::bnd_or_mem_mpx
            | K::k_or_mem => {
                if memory {
                    insn.set_op_kind(op, OpKind::Memory);
                    insn.set_memory_base(base);
                } else {
                    let first = match kind {
                        K::r8_or_mem => Register::AL,
                        K::r16_or_mem => Register::AX,
                        K::r32_or_mem | K::r32_or_mem_mpx => Register::EAX,
                        K::r64_or_mem | K::r64_or_mem_mpx => Register::RAX,
                        K::mm_or_mem => Register::MM0,
                        K::xmm_or_mem => Register::XMM0,
                        K::ymm_or_mem => Register::YMM0,
                        K::zmm_or_mem => Register::ZMM0,
                        K::k_or_mem => Register::K0,
                        _ => Register::BND0,
                    };
                    insn.set_op_register(op, first + n);
                }
            }
            _ => return None,
        }
    }
    if info.require_op_mask_register() {
        insn.set_op_mask(Register::K1);
    }
    Some(insn)
}

fn immediate(insn: &mut Instruction, op: u32, kind: OpKind) {
    insn.set_op_kind(op, kind);
    insn.set_immediate_i32(op, 1);
}

fn vsib(insn: &mut Instruction, op: u32, base: Register, first: Register) {
    insn.set_op_kind(op, OpKind::Memory);
    insn.set_memory_base(base);
    insn.set_memory_index(first + 7u32);
}

fn encode(code: Code, mode: CpuMode, memory: bool) -> Option<Vec<u8>> {
    let insn = build(code, mode, memory)?;
    let mut encoder = Encoder::new(mode.bitness());
    encoder.encode(&insn, 0).ok()?;
    Some(encoder.take_buffer())
}

/// Decodes the instruction at the start of `bytes`, other bytes behind it.
fn decode(bytes: &[u8], context: &Context<'_>) -> Insn {
    let padded = [bytes, &[0; 15]].concat();
    decode_one(&padded[..15], context).expect("15 bytes are enough")
}

fn modes(code: Code) -> impl Iterator<Item = CpuMode> {
    let info = code.op_code();
    [(CpuMode::Bits64, info.mode64()), (CpuMode::Bits32, info.mode32()), (CpuMode::Bits16, info.mode16())]
        .into_iter()
        .filter_map(|(mode, has)| has.then_some(mode))
}

/// Codes that a guest of ours may meet: of a feature with a CPUID row, or of every processor.
fn offered(code: Code) -> bool {
    use decoder::validity::{Gate, gate};
    code.op_code().is_instruction() && code.cpuid_features().iter().all(|f| gate(*f) != Gate::Never)
}

#[test]
fn each_decodes_to_itself() {
    let cpuid = CpuidSet::everything(Vendor::Intel);
    let mut seen = BTreeSet::new();
    let mut missing = BTreeSet::new();
    for code in Code::values().filter(|c| offered(*c)) {
        for mode in modes(code) {
            let context = Context { mode, protection: Protection::Protected, cpuid: &cpuid };
            for memory in [false, true] {
                let Some(bytes) = encode(code, mode, memory) else { continue };
                let insn = decode(&bytes, &context);
                if insn.code == code {
                    assert_eq!(insn.bytes(), bytes, "{code:?}");
                    seen.insert(code as u32);
                    assert_eq!(insn.op_count(), code.op_code().op_count() as usize, "{code:?}");
                    assert_eq!(insn.has_mem(), bytes_have_memory(&insn.kinds), "{code:?}");
                }
            }
        }
        // FINIT and its like are two instructions, WAIT and FNINIT; UD0 to UD2 decode to a fault.
        let has_a_code_of_its_own = !code.op_code().fwait()
            && !matches!(code.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2);
        if has_a_code_of_its_own && !seen.contains(&(code as u32)) {
            missing.insert(format!("{code:?}"));
        }
    }
    assert_eq!(missing.into_iter().collect::<Vec<_>>(), ONLY_ON_AMD);
    assert!(seen.len() > 3500, "{}", seen.len());
}

fn bytes_have_memory(kinds: &[OperandKind]) -> bool {
    kinds.contains(&OperandKind::Mem)
}

/// The operand-size prefix on these branches in 64-bit mode is ignored by Intel's processors.
const ONLY_ON_AMD: &[&str] =
    &["Jrcxz_rel8_16", "Loop_rel8_16_RCX", "Loope_rel8_16_RCX", "Loopne_rel8_16_RCX"];

/// The instructions that take LOCK with a memory destination (SDM vol. 2A, LOCK).
const LOCKABLE: &[Mnemonic] = &[
    Mnemonic::Add,
    Mnemonic::Adc,
    Mnemonic::And,
    Mnemonic::Btc,
    Mnemonic::Btr,
    Mnemonic::Bts,
    Mnemonic::Cmpxchg,
    Mnemonic::Cmpxchg8b,
    Mnemonic::Cmpxchg16b,
    Mnemonic::Dec,
    Mnemonic::Inc,
    Mnemonic::Neg,
    Mnemonic::Not,
    Mnemonic::Or,
    Mnemonic::Sbb,
    Mnemonic::Sub,
    Mnemonic::Xadd,
    Mnemonic::Xchg,
    Mnemonic::Xor,
];

#[test]
fn lock_is_taken_by_the_listed_forms_only() {
    let cpuid = CpuidSet::everything(Vendor::Intel);
    let (mut locked, mut refused) = (0, 0);
    for code in Code::values().filter(|c| offered(*c)) {
        for mode in modes(code) {
            let context = Context { mode, protection: Protection::Protected, cpuid: &cpuid };
            for memory in [false, true] {
                let Some(bytes) = encode(code, mode, memory) else { continue };
                let plain = decode(&bytes, &context);
                // A prefix before VEX or EVEX is refused as well, whatever it is.
                if plain.code != code || bytes.len() >= 15 || bytes[0] == 0x9b {
                    continue;
                }
                let legacy = code.encoding() == EncodingKind::Legacy;
                let expected = legacy && LOCKABLE.contains(&code.mnemonic()) && plain.is_mem(0);
                let with_lock: Vec<u8> = [&[0xf0], &bytes[..]].concat();
                let insn = decode(&with_lock, &context);
                if expected {
                    assert_eq!((insn.code, insn.fault()), (code, None), "{code:?} {mode:?} {with_lock:02x?}");
                    assert_eq!(insn.prefixes, plain.prefixes | Prefixes::LOCK);
                    assert!(code.op_code().can_use_lock_prefix(), "{code:?}");
                    locked += 1;
                } else {
                    assert_eq!(insn.fault(), Some(Vector::Ud), "{code:?} {mode:?} {with_lock:02x?}");
                    refused += 1;
                }
            }
        }
    }
    assert!(locked > 150 && refused > 4000, "{locked} {refused}");
}

#[test]
fn protected_mode_only() {
    use Mnemonic as M;
    let cpuid = CpuidSet::everything(Vendor::Intel);
    // SDM vol. 2, "Real-Address Mode Exceptions" and "Virtual-8086 Mode Exceptions" of each.
    let protected_only = [
        M::Arpl,
        M::Lar,
        M::Lsl,
        M::Lldt,
        M::Ltr,
        M::Sldt,
        M::Str,
        M::Verr,
        M::Verw,
        // Virtualization and shadow stacks.
        M::Vmlaunch,
        M::Vmresume,
        M::Vmxoff,
        M::Vmread,
        M::Vmwrite,
        M::Vmptrld,
        M::Vmptrst,
        M::Vmclear,
        M::Vmxon,
        M::Invept,
        M::Invvpid,
        M::Vmrun,
        M::Vmload,
        M::Vmsave,
        M::Stgi,
        M::Clgi,
        M::Skinit,
        M::Invlpga,
        M::Setssbsy,
        M::Saveprevssp,
        M::Incsspd,
        M::Clrssbsy,
        M::Rstorssp,
        M::Wrssd,
        M::Wrussd,
        // Enclaves; TLB flushes by broadcast.
        M::Encls,
        M::Enclu,
        M::Enclv,
        M::Tlbsync,
        M::Invlpgb,
    ];
    let mut count = 0;
    for code in Code::values().filter(|c| offered(*c)) {
        for mode in modes(code).filter(|m| *m != CpuMode::Bits64) {
            let Some(bytes) = encode(code, mode, true).or_else(|| encode(code, mode, false)) else {
                continue;
            };
            let under = |protection| decode(&bytes, &Context { mode, protection, cpuid: &cpuid });
            let plain = under(Protection::Protected);
            if plain.code != code {
                continue;
            }
            let needs_protection =
                code.encoding() != EncodingKind::Legacy || protected_only.contains(&code.mnemonic());
            for protection in [Protection::Real, Protection::Virtual8086] {
                let got = under(protection).fault();
                let expected = match code.mnemonic() {
                    M::Sysenter | M::Sysexit if protection == Protection::Real => Some(Vector::Gp),
                    _ if needs_protection => Some(Vector::Ud),
                    _ => None,
                };
                assert_eq!(got, expected, "{code:?} {mode:?} {protection:?} {bytes:02x?}");
                count += u32::from(expected.is_some());
            }
        }
    }
    assert!(count > 5000, "{count}");
}

#[test]
fn without_a_feature_its_instructions_are_undefined() {
    use x86_arch::cpuid::{self, Feature};
    // One instruction of each feature, 64-bit mode.
    #[rustfmt::skip]
    let table: &[(Feature, &[u8])] = &[
        (cpuid::SSE3, &[0xf2, 0x0f, 0xf0, 0x00]), (cpuid::SSSE3, &[0x66, 0x0f, 0x38, 0x00, 0xc0]),
        (cpuid::SSE4_1, &[0x66, 0x0f, 0x38, 0x17, 0xc0]), (cpuid::SSE4_2, &[0xf2, 0x0f, 0x38, 0xf1, 0xc0]),
        (cpuid::POPCNT, &[0xf3, 0x0f, 0xb8, 0xc0]), (cpuid::MOVBE, &[0x0f, 0x38, 0xf0, 0x00]),
        (cpuid::AES, &[0x66, 0x0f, 0x38, 0xdc, 0xc1]), (cpuid::PCLMULQDQ, &[0x66, 0x0f, 0x3a, 0x44, 0xc1, 0]),
        (cpuid::AVX, &[0xc5, 0xf8, 0x28, 0xc1]), (cpuid::AVX2, &[0xc5, 0xfd, 0xfe, 0xc1]),
        (cpuid::FMA, &[0xc4, 0xe2, 0x71, 0x98, 0xc2]), (cpuid::F16C, &[0xc4, 0xe2, 0x79, 0x13, 0xc1]),
        (cpuid::BMI1, &[0xc4, 0xe2, 0x78, 0xf2, 0xc1]), (cpuid::BMI2, &[0xc4, 0xe2, 0x7b, 0xf7, 0xc1]),
        (cpuid::ADX, &[0x66, 0x0f, 0x38, 0xf6, 0xc1]), (cpuid::SHA, &[0x0f, 0x38, 0xc8, 0xc1]),
        (cpuid::RDRAND, &[0x0f, 0xc7, 0xf0]), (cpuid::RDSEED, &[0x0f, 0xc7, 0xf8]),
        (cpuid::RDPID, &[0xf3, 0x0f, 0xc7, 0xf8]), (cpuid::RDTSCP, &[0x0f, 0x01, 0xf9]),
        (cpuid::FSGSBASE, &[0xf3, 0x48, 0x0f, 0xae, 0xc0]), (cpuid::INVPCID, &[0x66, 0x0f, 0x38, 0x82, 0x00]),
        (cpuid::SMAP, &[0x0f, 0x01, 0xcb]), (cpuid::PKU, &[0x0f, 0x01, 0xee]), (cpuid::XSAVE, &[0x0f, 0xae, 0x20]),
        (cpuid::XSAVEOPT, &[0x0f, 0xae, 0x30]), (cpuid::XSAVEC, &[0x0f, 0xc7, 0x20]), (cpuid::XSAVES, &[0x0f, 0xc7, 0x28]),
        (cpuid::CLFLUSHOPT, &[0x66, 0x0f, 0xae, 0x38]), (cpuid::CLWB, &[0x66, 0x0f, 0xae, 0x30]),
        (cpuid::WAITPKG, &[0x66, 0x0f, 0xae, 0xf0]), (cpuid::SERIALIZE, &[0x0f, 0x01, 0xe8]),
        (cpuid::CX16, &[0x48, 0x0f, 0xc7, 0x08]), (cpuid::CX8, &[0x0f, 0xc7, 0x08]),
        (cpuid::AVX512F, &[0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc1]), (cpuid::AVX512VL, &[0x62, 0xf1, 0x7c, 0x08, 0x28, 0xc1]),
        (cpuid::AVX512BW, &[0x62, 0xf1, 0x7d, 0x48, 0xfc, 0xc1]), (cpuid::AVX512DQ, &[0x62, 0xf1, 0x7c, 0x48, 0x54, 0xc1]),
        (cpuid::VAES, &[0xc4, 0xe2, 0x7d, 0xdc, 0xc1]), (cpuid::GFNI, &[0x66, 0x0f, 0x38, 0xcf, 0xc1]),
        (cpuid::SYSCALL, &[0x0f, 0x05]), (cpuid::SEP, &[0x0f, 0x34]), (cpuid::CMOV, &[0x0f, 0x44, 0xc1]),
        (cpuid::LAHF_LM, &[0x9f]), (cpuid::SVM, &[0x0f, 0x01, 0xd8]), (cpuid::VMX, &[0x0f, 0x01, 0xc2]),
        (cpuid::SSE4A, &[0xf2, 0x0f, 0x79, 0xc1]), (cpuid::CLZERO, &[0x0f, 0x01, 0xfc]),
        (cpuid::RTM, &[0x0f, 0x01, 0xd6]), (cpuid::MOVDIRI, &[0x0f, 0x38, 0xf9, 0x00]),
    ];
    for &(feature, bytes) in table {
        for present in [true, false] {
            let cpuid = CpuidSet::new(Vendor::Intel, |f| present || f != feature);
            let context = Context { mode: CpuMode::Bits64, protection: Protection::Protected, cpuid: &cpuid };
            let fault = decode(bytes, &context).fault();
            assert_eq!(fault, (!present).then_some(Vector::Ud), "{} {bytes:02x?}", feature.name);
        }
    }
}

/// Features with a bit of CPUID whose instructions no guest has. MPX's are NOPs then.
const NEVER: &[&str] = &[
    "AVX512_4FMAPS",
    "AVX512_4VNNIW",
    "AVX512ER",
    "AVX512PF",
    "D3NOW",
    "D3NOWEXT",
    "FMA4",
    "LWP",
    "MPX",
    "PADLOCK_ACE",
    "PADLOCK_PHE",
    "PADLOCK_PMM",
    "PADLOCK_RNG",
    "PCOMMIT",
    "SMX",
    "XOP",
];

#[test]
fn every_named_feature_gates_its_group() {
    use decoder::validity::{Gate, gate};
    // A bit that x86_arch names as iced names a feature must be the one that decides.
    for feature in x86_arch::cpuid::FEATURES {
        for group in CpuidFeature::values().filter(|g| format!("{g:?}") == feature.name) {
            // Extinct, or another vendor's: nothing of them is decoded, whatever a table says.
            if NEVER.contains(&feature.name) {
                assert_eq!(gate(group), Gate::Never);
                continue;
            }
            assert_eq!(gate(group), Gate::If(*feature), "{}", feature.name);
        }
    }
}
