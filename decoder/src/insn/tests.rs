//! Decoded forms, by table: bytes in, fields out.
// A table's row is a tuple.
#![allow(clippy::type_complexity)]

use iced_x86::{Code, Decoder, DecoderOptions};

use super::*;
use crate::block::decode_one;
use crate::validity::{Context, CpuidSet, Protection, Vendor};

use CpuMode::{Bits16, Bits32, Bits64};
use OperandKind as K;

const ZERO: u8 = REG_ZERO;
const RIP: u8 = REG_RIP;
const ES: u8 = Seg::Es as u8;
const CS: u8 = Seg::Cs as u8;
const SS: u8 = Seg::Ss as u8;
const DS: u8 = Seg::Ds as u8;
const FS: u8 = Seg::Fs as u8;
const GS: u8 = Seg::Gs as u8;

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|b| u8::from_str_radix(b, 16).expect("a byte in hex")).collect()
}

fn decode(mode: CpuMode, text: &str) -> Insn {
    let cpuid = CpuidSet::everything(Vendor::Intel);
    let context = Context { mode, protection: Protection::Protected, cpuid: &cpuid };
    let insn = decode_one(&hex(text), &context).unwrap_or_else(|_| panic!("{text} is incomplete"));
    assert_eq!(insn.fault(), None, "{text}");
    assert_eq!(insn.bytes(), hex(text), "{text}");
    insn
}

#[test]
fn every_addressing_form() {
    // mode, bytes, base, index, scale, displacement, segment, address size
    #[rustfmt::skip]
    let table: &[(CpuMode, &str, u8, u8, u8, i64, u8, u8)] = &[
        // 64-bit: mod 0.
        (Bits64, "8b 00", 0, ZERO, 0, 0, DS, 8),
        (Bits64, "8b 01", 1, ZERO, 0, 0, DS, 8),
        (Bits64, "8b 07", 7, ZERO, 0, 0, DS, 8),
        (Bits64, "41 8b 00", 8, ZERO, 0, 0, DS, 8),
        (Bits64, "41 8b 07", 15, ZERO, 0, 0, DS, 8),
        (Bits64, "8b 05 10 00 00 00", RIP, ZERO, 0, 0x10, DS, 8),
        (Bits64, "41 8b 05 f0 ff ff ff", RIP, ZERO, 0, -0x10, DS, 8),
        (Bits64, "67 8b 05 f0 ff ff ff", RIP, ZERO, 0, -0x10, DS, 4),
        (Bits64, "81 05 10 00 00 00 78 56 34 12", RIP, ZERO, 0, 0x10, DS, 8),
        // SIB.
        (Bits64, "8b 04 24", 4, ZERO, 0, 0, SS, 8),
        (Bits64, "41 8b 04 24", 12, ZERO, 0, 0, DS, 8),
        (Bits64, "8b 04 20", 0, ZERO, 0, 0, DS, 8),
        (Bits64, "42 8b 04 20", 0, 12, 0, 0, DS, 8),
        (Bits64, "8b 04 c8", 0, 1, 3, 0, DS, 8),
        (Bits64, "8b 04 48", 0, 1, 1, 0, DS, 8),
        (Bits64, "47 8b 04 bf", 15, 15, 2, 0, DS, 8),
        (Bits64, "8b 04 25 78 56 34 12", ZERO, ZERO, 0, 0x1234_5678, DS, 8),
        (Bits64, "8b 04 25 00 00 00 80", ZERO, ZERO, 0, -0x8000_0000, DS, 8),
        (Bits64, "67 8b 04 25 00 00 00 80", ZERO, ZERO, 0, -0x8000_0000, DS, 4),
        (Bits64, "8b 04 8d 78 56 34 12", ZERO, 1, 2, 0x1234_5678, DS, 8),
        // An index is never the stack's default, and neither is R13.
        (Bits64, "8b 04 6d 00 00 00 00", ZERO, 5, 1, 0, DS, 8),
        (Bits64, "8b 04 28", 0, 5, 0, 0, DS, 8),
        (Bits64, "41 8b 45 00", 13, ZERO, 0, 0, DS, 8),
        // mod 1 and 2.
        (Bits64, "8b 45 08", 5, ZERO, 0, 8, SS, 8),
        (Bits64, "8b 45 f8", 5, ZERO, 0, -8, SS, 8),
        (Bits64, "8b 44 05 10", 5, 0, 0, 0x10, SS, 8),
        (Bits64, "8b 44 24 f0", 4, ZERO, 0, -0x10, SS, 8),
        (Bits64, "8b 80 00 00 00 80", 0, ZERO, 0, -0x8000_0000, DS, 8),
        (Bits64, "8b 84 24 00 01 00 00", 4, ZERO, 0, 0x100, SS, 8),
        (Bits64, "67 8b 00", 0, ZERO, 0, 0, DS, 4),
        (Bits64, "67 8b 40 ff", 0, ZERO, 0, -1, DS, 4),
        // Overrides: only FS and GS count.
        (Bits64, "64 8b 00", 0, ZERO, 0, 0, FS, 8),
        (Bits64, "65 8b 45 00", 5, ZERO, 0, 0, GS, 8),
        (Bits64, "65 48 8b 04 25 10 00 00 00", ZERO, ZERO, 0, 0x10, GS, 8),
        (Bits64, "2e 8b 00", 0, ZERO, 0, 0, DS, 8),
        (Bits64, "36 8b 00", 0, ZERO, 0, 0, DS, 8),
        (Bits64, "3e 8b 45 00", 5, ZERO, 0, 0, SS, 8),
        (Bits64, "26 8b 04 24", 4, ZERO, 0, 0, SS, 8),
        (Bits64, "64 2e 8b 00", 0, ZERO, 0, 0, FS, 8),
        // Absolute addresses.
        (Bits64, "48 a1 88 77 66 55 44 33 22 11", ZERO, ZERO, 0, 0x1122_3344_5566_7788, DS, 8),
        (Bits64, "65 a2 88 77 66 55 44 33 22 91", ZERO, ZERO, 0, 0x9122_3344_5566_7788_u64 as i64, GS, 8),
        (Bits64, "67 a0 44 33 22 91", ZERO, ZERO, 0, -0x6edd_ccbc, DS, 4),
        // EVEX: disp8 is scaled.
        (Bits64, "62 f1 7c 48 28 40 01", 0, ZERO, 0, 0x40, DS, 8),
        (Bits64, "62 f1 7c 48 28 45 ff", 5, ZERO, 0, -0x40, SS, 8),
        // 32-bit.
        (Bits32, "8b 00", 0, ZERO, 0, 0, DS, 4),
        (Bits32, "8b 05 78 56 34 12", ZERO, ZERO, 0, 0x1234_5678, DS, 4),
        (Bits32, "8b 04 24", 4, ZERO, 0, 0, SS, 4),
        (Bits32, "8b 45 fc", 5, ZERO, 0, -4, SS, 4),
        (Bits32, "3e 8b 45 fc", 5, ZERO, 0, -4, DS, 4),
        (Bits32, "8b 04 8d 00 00 00 80", ZERO, 1, 2, -0x8000_0000, DS, 4),
        (Bits32, "26 8b 84 c8 ff ff ff ff", 0, 1, 3, -1, ES, 4),
        (Bits32, "2e 8b 00", 0, ZERO, 0, 0, CS, 4),
        (Bits32, "2e 64 8b 00", 0, ZERO, 0, 0, FS, 4),
        (Bits32, "64 2e 8b 00", 0, ZERO, 0, 0, CS, 4),
        (Bits32, "a1 78 56 34 12", ZERO, ZERO, 0, 0x1234_5678, DS, 4),
        (Bits32, "67 a1 34 12", ZERO, ZERO, 0, 0x1234, DS, 2),
        (Bits32, "67 8b 00", 3, 6, 0, 0, DS, 2),
        (Bits32, "67 8b 46 f0", 5, ZERO, 0, -0x10, SS, 2),
        // 16-bit: the eight forms, then displacements.
        (Bits16, "8b 00", 3, 6, 0, 0, DS, 2),
        (Bits16, "8b 01", 3, 7, 0, 0, DS, 2),
        (Bits16, "8b 02", 5, 6, 0, 0, SS, 2),
        (Bits16, "8b 03", 5, 7, 0, 0, SS, 2),
        (Bits16, "8b 04", 6, ZERO, 0, 0, DS, 2),
        (Bits16, "8b 05", 7, ZERO, 0, 0, DS, 2),
        (Bits16, "8b 06 34 12", ZERO, ZERO, 0, 0x1234, DS, 2),
        (Bits16, "8b 06 34 f2", ZERO, ZERO, 0, -0xdcc, DS, 2),
        (Bits16, "8b 07", 3, ZERO, 0, 0, DS, 2),
        (Bits16, "8b 46 80", 5, ZERO, 0, -0x80, SS, 2),
        (Bits16, "8b 80 00 80", 3, 6, 0, -0x8000, DS, 2),
        (Bits16, "36 8b 07", 3, ZERO, 0, 0, SS, 2),
        (Bits16, "a0 34 12", ZERO, ZERO, 0, 0x1234, DS, 2),
        (Bits16, "67 8b 00", 0, ZERO, 0, 0, DS, 4),
        (Bits16, "67 8b 04 24", 4, ZERO, 0, 0, SS, 4),
        (Bits16, "67 66 8b 44 8d 00", 5, 1, 2, 0, SS, 4),
    ];
    for &(mode, text, base, index, scale, disp, seg, addr_size) in table {
        let insn = decode(mode, text);
        let mem = insn.mem;
        let got = (mem.base, mem.index, mem.scale, mem.disp as i64, mem.seg, mem.addr_size());
        assert_eq!(got, (base, index, scale, disp, seg, addr_size), "{mode:?} {text}");
        assert!(insn.has_mem() && !mem.is_vsib(), "{text}");
    }
}

#[test]
fn effective_addresses_wrap_at_the_address_size() {
    let mut regs = [0u64; REG_COUNT];
    for (i, r) in regs.iter_mut().enumerate().take(16) {
        *r = 0xffff_ffff_ffff_ff00 + i as u64;
    }
    regs[usize::from(RIP)] = 0x1_0000_0010;
    #[rustfmt::skip]
    let table: &[(CpuMode, &str, u64, u64)] = &[
        // mode, bytes, address, address of the byte 0x1_0000 behind it
        (Bits64, "8b 04 c8", 0xffff_ffff_ffff_f708, 0xf708),
        (Bits64, "8b 05 f0 ff ff ff", 0x1_0000_0000, 0x1_0001_0000),
        (Bits64, "67 8b 05 f0 ff ff ff", 0, 0x1_0000),
        (Bits64, "67 8b 40 ff", 0xffff_feff, 0xfeff),
        (Bits32, "8b 40 ff", 0xffff_feff, 0xfeff),
        (Bits16, "8b 40 01", 0xfe0a, 0xfe0a),
        (Bits16, "8b 06 ff ff", 0xffff, 0xffff),
    ];
    for &(mode, text, ea, ea_plus) in table {
        let mem = decode(mode, text).mem;
        assert_eq!(mem.ea(&regs), ea, "{text}");
        assert_eq!(mem.ea_plus(&regs, 0x1_0000), ea_plus, "{text}");
    }
}

#[test]
fn register_numbers() {
    #[rustfmt::skip]
    let table: &[(CpuMode, &str, Code, &[u8])] = &[
        (Bits64, "88 e0", Code::Mov_rm8_r8, &[0, 0x20]),
        (Bits64, "88 fb", Code::Mov_rm8_r8, &[3, 0x23]),
        (Bits64, "40 88 e0", Code::Mov_rm8_r8, &[0, 4]),
        (Bits64, "40 88 fb", Code::Mov_rm8_r8, &[3, 7]),
        (Bits64, "44 88 c0", Code::Mov_rm8_r8, &[0, 8]),
        (Bits64, "45 88 ff", Code::Mov_rm8_r8, &[15, 15]),
        (Bits32, "8a ec", Code::Mov_r8_rm8, &[0x21, 0x20]),
        (Bits16, "b6 01", Code::Mov_r8_imm8, &[0x22]),
        (Bits64, "40 b6 01", Code::Mov_r8_imm8, &[6]),
        (Bits64, "66 41 89 c7", Code::Mov_rm16_r16, &[15, 0]),
        (Bits64, "4d 89 e5", Code::Mov_rm64_r64, &[13, 12]),
        (Bits64, "8e db", Code::Mov_Sreg_r32m16, &[3, 3]),
        (Bits64, "8c e8", Code::Mov_r32m16_Sreg, &[0, 5]),
        (Bits32, "07", Code::Popd_ES, &[0]),
        (Bits32, "0f a9", Code::Popd_GS, &[5]),
        (Bits64, "0f 22 e0", Code::Mov_cr_r64, &[4, 0]),
        (Bits64, "44 0f 20 c1", Code::Mov_r64_cr, &[1, 8]),
        (Bits64, "0f 23 fe", Code::Mov_dr_r64, &[7, 6]),
        (Bits64, "d8 c5", Code::Fadd_st0_sti, &[0, 5]),
        (Bits64, "0f ef d3", Code::Pxor_mm_mmm64, &[2, 3]),
        (Bits64, "66 44 0f ef cb", Code::Pxor_xmm_xmmm128, &[9, 3]),
        (Bits64, "c5 cd ef ec", Code::VEX_Vpxor_ymm_ymm_ymmm256, &[5, 6, 4]),
        (Bits64, "62 21 4d 40 ef e4", Code::EVEX_Vpxord_zmm_k1z_zmm_zmmm512b32, &[28, 22, 20]),
        (Bits64, "c5 fc 41 d1", Code::VEX_Kandw_kr_kr_kr, &[2, 0, 1]),
        (Bits64, "d3 e0", Code::Shl_rm32_CL, &[0, 1]),
        (Bits64, "ec", Code::In_AL_DX, &[0, 2]),
    ];
    for &(mode, text, code, regs) in table {
        let insn = decode(mode, text);
        assert_eq!(insn.code, code, "{text}");
        assert_eq!(&insn.r[..regs.len()], regs, "{text}");
        for i in 0..regs.len() {
            assert!(insn.is_reg(i), "{text} {i}");
        }
    }
}

#[test]
fn immediates_are_extended_as_they_are_used() {
    #[rustfmt::skip]
    let table: &[(CpuMode, &str, Code, u64, u16, Form)] = &[
        (Bits64, "83 c0 ff", Code::Add_rm32_imm8, u64::MAX, 0, Form::RI),
        (Bits64, "48 83 c0 80", Code::Add_rm64_imm8, -128i64 as u64, 0, Form::RI),
        (Bits64, "66 83 c0 80", Code::Add_rm16_imm8, -128i64 as u64, 0, Form::RI),
        (Bits64, "80 c0 80", Code::Add_rm8_imm8, 0x80, 0, Form::RI),
        (Bits64, "81 00 00 00 00 80", Code::Add_rm32_imm32, 0x8000_0000, 0, Form::MI),
        (Bits64, "48 81 c0 00 00 00 80", Code::Add_rm64_imm32, -0x8000_0000i64 as u64, 0, Form::RI),
        (Bits64, "48 b8 88 77 66 55 44 33 22 f1", Code::Mov_r64_imm64, 0xf122_3344_5566_7788, 0, Form::RI),
        (Bits64, "b8 00 00 00 f0", Code::Mov_r32_imm32, 0xf000_0000, 0, Form::RI),
        (Bits64, "66 b8 00 f0", Code::Mov_r16_imm16, 0xf000, 0, Form::RI),
        (Bits64, "6a ff", Code::Pushq_imm8, u64::MAX, 0, Form::I),
        (Bits64, "68 00 00 00 80", Code::Pushq_imm32, -0x8000_0000i64 as u64, 0, Form::I),
        (Bits32, "6a 80", Code::Pushd_imm8, -128i64 as u64, 0, Form::I),
        (Bits64, "d1 e0", Code::Shl_rm32_1, 1, 0, Form::RI),
        (Bits64, "c1 20 ff", Code::Shl_rm32_imm8, 0xff, 0, Form::MI),
        (Bits64, "6b c1 ff", Code::Imul_r32_rm32_imm8, u64::MAX, 0, Form::RR),
        (Bits64, "69 00 01 00 00 00", Code::Imul_r32_rm32_imm32, 1, 0, Form::RM),
        (Bits64, "0f a4 c8 05", Code::Shld_rm32_r32_imm8, 5, 0, Form::RR),
        (Bits64, "c8 34 12 05", Code::Enterq_imm16_imm8, 0x1234, 5, Form::II),
        (Bits16, "c8 34 f2 1f", Code::Enterw_imm16_imm8, 0xf234, 0x1f, Form::II),
        (Bits64, "66 0f 78 c1 04 08", Code::Extrq_xmm_imm8_imm8, 4, 8, Form::RI),
        (Bits64, "f2 0f 78 c1 10 20", Code::Insertq_xmm_xmm_imm8_imm8, 0x10, 0x20, Form::RR),
        (Bits64, "c2 f0 ff", Code::Retnq_imm16, 0xfff0, 0, Form::I),
        (Bits64, "cd 80", Code::Int_imm8, 0x80, 0, Form::I),
        (Bits64, "e5 f0", Code::In_EAX_imm8, 0xf0, 0, Form::RI),
        (Bits64, "e7 f0", Code::Out_imm8_EAX, 0xf0, 0, Form::IR),
        (Bits32, "d4 0a", Code::Aam_imm8, 10, 0, Form::I),
        (Bits16, "9a 78 f6 34 12", Code::Call_ptr1616, 0xf678, 0x1234, Form::Far),
        (Bits16, "66 ea 78 56 34 f2 34 12", Code::Jmp_ptr1632, 0xf234_5678, 0x1234, Form::Far),
        (Bits32, "ea 78 56 34 f2 08 00", Code::Jmp_ptr1632, 0xf234_5678, 8, Form::Far),
        (Bits32, "66 9a 78 56 08 00", Code::Call_ptr1616, 0x5678, 8, Form::Far),
        (Bits64, "c4 e3 71 4a c2 30", Code::VEX_Vblendvps_xmm_xmm_xmmm128_xmm, 0, 0, Form::RR),
    ];
    for &(mode, text, code, imm, imm2, form) in table {
        let insn = decode(mode, text);
        assert_eq!((insn.code, insn.imm, insn.imm2, insn.form2()), (code, imm, imm2, form), "{text}");
    }
}

#[test]
fn forms() {
    #[rustfmt::skip]
    let table: &[(&str, Form)] = &[
        ("90", Form::None), ("50", Form::R), ("ff 30", Form::M), ("01 00", Form::MR), ("01 c0", Form::RR),
        ("03 00", Form::RM), ("81 00 00 00 00 00", Form::MI), ("05 00 00 00 00", Form::RI),
        ("a1 00 00 00 00 00 00 00 00", Form::RM), ("a3 00 00 00 00 00 00 00 00", Form::MR),
        ("d3 20", Form::MR), ("d1 20", Form::MI), ("eb 00", Form::Near), ("ff e0", Form::R), ("ff 20", Form::M),
        ("a4", Form::String), ("aa", Form::String), ("ac", Form::String), ("6c", Form::String),
        ("ee", Form::RR), ("0f b1 08", Form::MR), ("0f c7 08", Form::M), ("0f f7 c1", Form::String),
    ];
    for &(text, form) in table {
        assert_eq!(decode(Bits64, text).form2(), form, "{text}");
    }
}

#[test]
fn branches_are_relative_to_the_next_instruction() {
    #[rustfmt::skip]
    let table: &[(CpuMode, &str, Code, i64)] = &[
        (Bits64, "eb fe", Code::Jmp_rel8_64, -2),
        (Bits64, "eb 7f", Code::Jmp_rel8_64, 127),
        (Bits64, "e9 00 00 00 80", Code::Jmp_rel32_64, -0x8000_0000),
        (Bits64, "e8 ff ff ff 7f", Code::Call_rel32_64, 0x7fff_ffff),
        // The operand-size prefix is ignored in 64-bit mode.
        (Bits64, "66 e9 01 00 00 00", Code::Jmp_rel32_64, 1),
        (Bits64, "0f 84 fa ff ff ff", Code::Je_rel32_64, -6),
        (Bits64, "e3 10", Code::Jrcxz_rel8_64, 0x10),
        (Bits64, "67 e3 10", Code::Jecxz_rel8_64, 0x10),
        (Bits64, "67 e2 fd", Code::Loop_rel8_64_ECX, -3),
        (Bits32, "eb fe", Code::Jmp_rel8_32, -2),
        (Bits32, "e9 00 00 00 80", Code::Jmp_rel32_32, -0x8000_0000),
        (Bits32, "66 e9 00 80", Code::Jmp_rel16, -0x8000),
        (Bits32, "66 eb fd", Code::Jmp_rel8_16, -3),
        (Bits16, "eb fe", Code::Jmp_rel8_16, -2),
        (Bits16, "e9 fd ff", Code::Jmp_rel16, -3),
        (Bits16, "e8 ff 7f", Code::Call_rel16, 0x7fff),
        (Bits16, "66 e9 fa ff ff ff", Code::Jmp_rel32_32, -6),
        (Bits16, "e2 fe", Code::Loop_rel8_16_CX, -2),
    ];
    for &(mode, text, code, displacement) in table {
        let insn = decode(mode, text);
        assert_eq!((insn.code, insn.imm as i64, insn.form2()), (code, displacement, Form::Near), "{text}");
    }
}

#[test]
fn position_independent() {
    #[rustfmt::skip]
    let table: &[(CpuMode, &str)] = &[
        (Bits64, "8b 05 10 00 00 00"), (Bits64, "8b 05 f0 ff ff ff"), (Bits64, "67 8b 05 f0 ff ff ff"),
        (Bits64, "67 8b 05 10 00 00 80"), (Bits64, "c7 05 10 00 00 00 01 00 00 00"), (Bits64, "eb 80"),
        (Bits64, "e9 00 00 00 80"), (Bits64, "ff 25 00 00 00 00"), (Bits64, "48 8d 05 00 00 00 80"),
        (Bits64, "c5 fc 28 05 10 00 00 00"), (Bits64, "67 e3 80"), (Bits32, "eb 80"), (Bits32, "66 e9 00 80"),
        (Bits32, "e8 00 00 00 80"), (Bits32, "8b 05 10 00 00 00"), (Bits16, "eb 80"), (Bits16, "e8 00 80"),
        (Bits16, "66 e8 00 00 00 80"), (Bits16, "e2 fe"),
    ];
    let ips = [0, 1, 0xfff0, 0xffff, 0x7fff_fffe, 0xffff_fffe, 0x7fff_ffff_f000, 0xffff_ffff_ffff_fff8];
    for &(mode, text) in table {
        let bytes = hex(text);
        let mut first = None;
        for ip in ips {
            let ip = match mode {
                Bits16 => ip & 0xffff,
                Bits32 => ip & 0xffff_ffff,
                Bits64 => ip,
            };
            let mut decoder = Decoder::with_ip(mode.bitness(), &bytes, ip, DecoderOptions::NONE);
            let insn = Insn::from_iced(&decoder.decode(), &bytes, mode);
            assert_eq!(*first.get_or_insert(insn.clone()), insn, "{text} at {ip:x}");
        }
    }
}

#[test]
fn string_operands() {
    // mode, bytes, kinds, base, source's segment, address size, operand size
    #[rustfmt::skip]
    let table: &[(CpuMode, &str, [OperandKind; 2], u8, u8, u8, u16)] = &[
        (Bits64, "a4", [K::StringDst, K::StringSrc], 6, DS, 8, 1),
        (Bits64, "48 a5", [K::StringDst, K::StringSrc], 6, DS, 8, 8),
        (Bits64, "64 a4", [K::StringDst, K::StringSrc], 6, FS, 8, 1),
        (Bits64, "2e a4", [K::StringDst, K::StringSrc], 6, DS, 8, 1),
        (Bits64, "67 66 a5", [K::StringDst, K::StringSrc], 6, DS, 4, 2),
        (Bits64, "a7", [K::StringSrc, K::StringDst], 6, DS, 8, 4),
        (Bits64, "aa", [K::StringDst, K::Reg], 7, DS, 8, 1),
        (Bits64, "ab", [K::StringDst, K::Reg], 7, DS, 8, 4),
        (Bits64, "65 ad", [K::Reg, K::StringSrc], 6, GS, 8, 4),
        (Bits64, "67 af", [K::Reg, K::StringDst], 7, DS, 4, 4),
        (Bits64, "6d", [K::StringDst, K::Reg], 7, DS, 8, 4),
        (Bits64, "67 64 6f", [K::Reg, K::StringSrc], 6, FS, 4, 4),
        (Bits64, "66 0f f7 c1", [K::MaskDst, K::Reg], 7, DS, 8, 16),
        (Bits64, "65 67 0f f7 c1", [K::MaskDst, K::Reg], 7, GS, 4, 8),
        (Bits32, "26 a5", [K::StringDst, K::StringSrc], 6, ES, 4, 4),
        (Bits32, "67 a5", [K::StringDst, K::StringSrc], 6, DS, 2, 4),
        (Bits16, "a5", [K::StringDst, K::StringSrc], 6, DS, 2, 2),
        (Bits16, "2e 67 a4", [K::StringDst, K::StringSrc], 6, CS, 4, 1),
        (Bits16, "36 ac", [K::Reg, K::StringSrc], 6, SS, 2, 1),
        (Bits16, "66 ab", [K::StringDst, K::Reg], 7, DS, 2, 4),
    ];
    for &(mode, text, kinds, base, seg, addr_size, size) in table {
        let insn = decode(mode, text);
        let mem = insn.mem;
        assert_eq!([insn.kinds[0], insn.kinds[1]], kinds, "{text}");
        assert_eq!((mem.base, mem.seg, mem.addr_size(), mem.size), (base, seg, addr_size, size), "{text}");
        assert_eq!((mem.index, mem.disp), (ZERO, 0), "{text}");
        assert!(!insn.has_mem());
    }
}

#[test]
fn prefixes() {
    #[rustfmt::skip]
    let table: &[(CpuMode, &str, Prefixes)] = &[
        (Bits64, "01 00", Prefixes::empty()),
        (Bits64, "f0 01 00", Prefixes::LOCK),
        (Bits64, "66 f0 01 00", Prefixes::LOCK.union(Prefixes::OPSIZE)),
        (Bits64, "f3 a4", Prefixes::REP),
        (Bits64, "f3 48 a5", Prefixes::REP),
        (Bits64, "f2 ae", Prefixes::REPNE),
        (Bits64, "f2 f3 a6", Prefixes::REP),
        (Bits64, "f3 f2 a6", Prefixes::REPNE),
        (Bits64, "67 66 a5", Prefixes::OPSIZE.union(Prefixes::ADDRSIZE)),
        (Bits64, "66 48 01 c0", Prefixes::OPSIZE),
        (Bits64, "48 66 01 c0", Prefixes::OPSIZE),
        (Bits64, "64 8b 00", Prefixes::SEG),
        (Bits64, "2e 8b 00", Prefixes::empty()),
        (Bits32, "2e 8b 00", Prefixes::SEG),
        (Bits32, "48", Prefixes::empty()),
        // Those that select an opcode are not reported.
        (Bits64, "f3 0f b8 c0", Prefixes::empty()),
        (Bits64, "f2 0f 10 00", Prefixes::empty()),
        (Bits64, "f3 90", Prefixes::empty()),
    ];
    for &(mode, text, expected) in table {
        assert_eq!(decode(mode, text).prefixes, expected, "{text}");
    }
}

#[test]
fn without_memory_the_prefixes_choose_segment_and_address_size() {
    #[rustfmt::skip]
    let table: &[(CpuMode, &str, u8, u8)] = &[
        (Bits64, "e2 00", DS, 8), (Bits64, "67 e2 00", DS, 4), (Bits64, "65 0f 01 c8", GS, 8),
        (Bits64, "67 0f 01 c8", DS, 4), (Bits32, "0f 01 c8", DS, 4), (Bits32, "67 26 0f 01 c8", ES, 2),
        (Bits16, "0f 01 c8", DS, 2), (Bits16, "67 0f 01 c8", DS, 4),
    ];
    for &(mode, text, seg, addr_size) in table {
        let insn = decode(mode, text);
        assert_eq!((insn.mem.seg, insn.mem.addr_size()), (seg, addr_size), "{text}");
        assert_eq!((insn.mem.base, insn.mem.index, insn.mem.disp), (ZERO, ZERO, 0), "{text}");
        assert!(!insn.has_mem());
    }
}

#[test]
fn operand_sizes() {
    #[rustfmt::skip]
    let table: &[(CpuMode, &str, u8)] = &[
        (Bits64, "00 c0", 1), (Bits64, "66 01 c0", 2), (Bits64, "01 c0", 4), (Bits64, "48 01 c0", 8),
        (Bits64, "50", 8), (Bits64, "66 50", 2), (Bits64, "6a 00", 8), (Bits64, "66 6a 00", 2), (Bits64, "c3", 8),
        (Bits64, "66 c3", 8), (Bits64, "e8 00 00 00 00", 8), (Bits64, "c9", 8), (Bits64, "9c", 8),
        (Bits64, "cf", 4), (Bits64, "48 cf", 8), (Bits64, "cb", 4), (Bits64, "ff d0", 8), (Bits64, "ff 28", 4),
        (Bits64, "48 ff 28", 8), (Bits64, "0f 20 c0", 8), (Bits64, "0f 01 10", 8), (Bits64, "0f b6 c0", 4),
        (Bits64, "66 0f b6 c0", 2), (Bits64, "48 63 c0", 8), (Bits64, "a4", 1), (Bits64, "48 a5", 8), (Bits64, "d7", 1),
        (Bits64, "ec", 1), (Bits64, "66 ed", 2), (Bits64, "0f 94 c0", 1), (Bits64, "a0 00 00 00 00 00 00 00 00", 1),
        (Bits32, "50", 4), (Bits32, "66 50", 2), (Bits32, "c3", 4), (Bits32, "cf", 4), (Bits32, "0f 22 c0", 4),
        (Bits32, "0f 01 10", 4), (Bits32, "66 0f 01 10", 2), (Bits16, "50", 2), (Bits16, "66 50", 4),
        (Bits16, "c3", 2), (Bits16, "e8 00 00", 2), (Bits16, "cf", 2), (Bits16, "0f 01 10", 2),
        (Bits64, "c4 e2 78 f2 c1", 4), (Bits64, "c4 e2 f8 f2 c1", 8), (Bits64, "0f ae 00", 0), (Bits64, "d9 c0", 0),
    ];
    for &(mode, text, size) in table {
        assert_eq!(decode(mode, text).op_size, size, "{mode:?} {text}");
    }
}

#[test]
fn special_memory_operands() {
    // XLAT: the handler adds AL.
    let xlat = decode(Bits64, "65 67 d7").mem;
    assert_eq!((xlat.base, xlat.index, xlat.seg, xlat.addr_size(), xlat.size), (3, ZERO, GS, 4, 1));
    // vgatherdps xmm0, [rdx + xmm2*4 + 16], xmm1
    let gather = decode(Bits64, "c4 e2 71 92 44 92 10").mem;
    assert_eq!((gather.base, gather.index, gather.vsib, gather.scale, gather.disp), (2, ZERO, 2, 2, 16));
    // vscatterdps [rax + zmm31*8]{k1}, zmm0
    let scatter = decode(Bits64, "62 b2 7d 41 a2 04 f8").mem;
    assert_eq!((scatter.base, scatter.vsib, scatter.scale), (0, 31, 3));
    // Sizes.
    for (text, size) in [
        ("8e 18", 2),
        ("0f 01 10", 10),
        ("ff 28", 6),
        ("48 ff 28", 10),
        ("d9 00", 4),
        ("db 28", 10),
        ("0f c7 08", 8),
        ("48 0f c7 08", 16),
        ("c5 fc 28 00", 32),
        ("62 f1 7c 58 58 00", 4),
        ("0f ae 00", 512),
        ("0f ae 20", 0),
        ("0f b6 00", 1),
    ] {
        assert_eq!(decode(Bits64, text).mem.size, size, "{text}");
    }
}

#[test]
fn a_fault_keeps_its_bytes() {
    let fault = Insn::new_fault(Vector::Gp, &[0x66; 20], Bits64);
    assert_eq!((fault.fault(), fault.len, fault.bytes()), (Some(Vector::Gp), 15, &[0x66; 15][..]));
    assert_eq!(fault.op_count(), 0);
}
