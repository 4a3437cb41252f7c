//! What is undefined where, by table.
// A table's row is a tuple.
#![allow(clippy::type_complexity)]

use super::*;
use crate::block::decode_one;
use crate::insn::Insn;

use CpuMode::{Bits16, Bits32, Bits64};

fn decode(cpuid: &CpuidSet, mode: CpuMode, protection: Protection, bytes: &[u8]) -> Insn {
    let padded = [bytes, &[0; 15]].concat();
    decode_one(&padded[..15], &Context { mode, protection, cpuid }).expect("15 bytes are enough")
}

fn protected(mode: CpuMode, bytes: &[u8]) -> Insn {
    decode(&CpuidSet::everything(Vendor::Intel), mode, Protection::Protected, bytes)
}

/// What we leave to iced, held to the manual.
#[test]
fn undefined_encodings() {
    #[rustfmt::skip]
    let table: &[(CpuMode, &[u8], &str)] = &[
        (Bits64, &[0x0f, 0x20, 0xc8], "CR1"),
        (Bits64, &[0x0f, 0x20, 0xe8], "CR5"),
        (Bits64, &[0x44, 0x0f, 0x20, 0xc8], "CR9"),
        (Bits32, &[0xf0, 0x0f, 0x20, 0xc0], "LOCK MOV CR0 is CR8 only on AMD"),
        (Bits64, &[0x44, 0x0f, 0x23, 0xc0], "DR8"),
        (Bits64, &[0x8e, 0xc8], "MOV CS"),
        (Bits64, &[0x8c, 0xf0], "segment register 6"),
        (Bits64, &[0x8e, 0xf8], "segment register 7"),
        (Bits64, &[0x8d, 0xc0], "LEA of a register"),
        (Bits64, &[0x0f, 0xb2, 0xc0], "LSS of a register"),
        (Bits64, &[0x0f, 0xc7, 0xc8], "CMPXCHG8B of a register"),
        (Bits64, &[0xff, 0xd8], "CALL far of a register"),
        (Bits64, &[0xff, 0xe8], "JMP far of a register"),
        (Bits64, &[0x0f, 0xae, 0xc0], "FXSAVE of a register"),
        (Bits64, &[0x0f, 0xc3, 0xc0], "MOVNTI of a register"),
        (Bits64, &[0x66, 0x0f, 0xf7, 0x00], "MASKMOVDQU of memory"),
        (Bits64, &[0xc6, 0xc8, 0], "C6 /1"),
        (Bits64, &[0xfe, 0xd0], "FE /2"),
        (Bits64, &[0xff, 0xf8], "FF /7"),
        (Bits64, &[0x8f, 0xc8], "8F /1 without XOP"),
        (Bits64, &[0x8f, 0xe9, 0x78, 0x81, 0xc0], "XOP"),
        (Bits64, &[0x0f, 0x0f, 0xc0, 0x9e], "3DNow!"),
        (Bits64, &[0x0f, 0x0b], "UD2"),
        (Bits64, &[0x0f, 0xb9, 0xc0], "UD1"),
        (Bits64, &[0x0f, 0xff, 0xc0], "UD0"),
        (Bits64, &[0x0f, 0xa6, 0xc0], "0F A6"),
        (Bits64, &[0x0f, 0x36], "0F 36"),
        (Bits64, &[0x0f, 0x37], "GETSEC"),
        (Bits64, &[0x0f, 0x24, 0xc0], "MOV TR"),
        (Bits64, &[0x06], "PUSH ES"), (Bits64, &[0x07], "POP ES"), (Bits64, &[0x0e], "PUSH CS"),
        (Bits64, &[0x16], "PUSH SS"), (Bits64, &[0x17], "POP SS"), (Bits64, &[0x1e], "PUSH DS"),
        (Bits64, &[0x1f], "POP DS"), (Bits64, &[0x27], "DAA"), (Bits64, &[0x2f], "DAS"), (Bits64, &[0x37], "AAA"),
        (Bits64, &[0x3f], "AAS"), (Bits64, &[0x60], "PUSHA"), (Bits64, &[0x61], "POPA"), (Bits64, &[0x82, 0xc0, 0], "82"),
        (Bits64, &[0x9a], "CALL far"), (Bits64, &[0xce], "INTO"), (Bits64, &[0xd4, 0xa], "AAM"),
        (Bits64, &[0xd5, 0xa], "AAD"), (Bits64, &[0xd6], "SALC"), (Bits64, &[0xea], "JMP far"),
        (Bits32, &[0x0f, 0x01, 0xf8], "SWAPGS"),
        // VEX: no 66, F2, F3, LOCK or REX before it (SDM vol. 2A, 2.3.2 to 2.3.4); vvvv of an unused operand is 1111b.
        (Bits64, &[0x66, 0xc5, 0xf8, 0x28, 0xc1], "66 VEX"),
        (Bits64, &[0xf2, 0xc5, 0xf8, 0x28, 0xc1], "F2 VEX"),
        (Bits64, &[0xf3, 0xc5, 0xf8, 0x28, 0xc1], "F3 VEX"),
        (Bits64, &[0xf0, 0xc5, 0xf8, 0x28, 0xc1], "LOCK VEX"),
        (Bits64, &[0x48, 0xc5, 0xf8, 0x28, 0xc1], "REX VEX"),
        (Bits64, &[0xc5, 0xf0, 0x28, 0xc1], "vvvv"),
        (Bits64, &[0xc4, 0xe2, 0x71, 0x92, 0x44, 0x82, 0x10], "gather with index equal to destination"),
        (Bits64, &[0xc4, 0xe2, 0x71, 0x92, 0xc0], "gather of a register"),
        // EVEX: the same (SDM vol. 2A, 2.7.11), and its own reserved bits.
        (Bits64, &[0x66, 0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc1], "66 EVEX"),
        (Bits64, &[0x48, 0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc1], "REX EVEX"),
        (Bits64, &[0x62, 0xf1, 0x78, 0x48, 0x28, 0xc1], "EVEX P1 bit 2 clear"),
        (Bits64, &[0x62, 0xf1, 0x7c, 0x68, 0x28, 0xc1], "EVEX L'L=3 without rounding"),
        (Bits64, &[0x62, 0xf1, 0x7c, 0xc8, 0x28, 0xc1], "EVEX zeroing without a mask"),
        (Bits64, &[0x62, 0xf1, 0x7c, 0xc9, 0x29, 0x00], "EVEX zeroing of memory"),
        (Bits64, &[0x62, 0xb2, 0x7d, 0x40, 0xa2, 0x04, 0xf8], "scatter without a mask"),
    ];
    for &(mode, bytes, what) in table {
        assert_eq!(protected(mode, bytes).fault(), Some(Vector::Ud), "{what}: {bytes:02x?}");
    }
    // And their neighbours are defined.
    #[rustfmt::skip]
    let table: &[(CpuMode, &[u8], Code)] = &[
        (Bits64, &[0x44, 0x0f, 0x20, 0xc0], Code::Mov_r64_cr),
        (Bits64, &[0x8f, 0xc0], Code::Pop_rm64),
        (Bits64, &[0xf6, 0xc8, 1], Code::Test_rm8_imm8_F6r1),
        (Bits64, &[0xd0, 0xf0], Code::Sal_rm8_1),
        (Bits64, &[0xf1], Code::Int1),
        (Bits64, &[0x2e, 0xc5, 0xf8, 0x28, 0xc1], Code::VEX_Vmovaps_xmm_xmmm128),
        (Bits64, &[0x67, 0xc5, 0xf8, 0x28, 0xc1], Code::VEX_Vmovaps_xmm_xmmm128),
        (Bits32, &[0xd6], Code::Salc),
        (Bits32, &[0x82, 0xc0, 0], Code::Add_rm8_imm8_82),
        (Bits32, &[0x63, 0xc0], Code::Arpl_r32m16_r32),
        // In 16- and 32-bit code, C4, C5 and 62 with a memory operand are LES, LDS and BOUND.
        (Bits32, &[0xc4, 0x00], Code::Les_r32_m1632),
        (Bits32, &[0xc5, 0x00], Code::Lds_r32_m1632),
        (Bits16, &[0x62, 0x00], Code::Bound_r16_m1616),
        (Bits16, &[0xc5, 0xf8, 0x28, 0xc1], Code::VEX_Vmovaps_xmm_xmmm128),
        (Bits32, &[0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc1], Code::EVEX_Vmovaps_zmm_k1z_zmmm512),
        // MPX's encodings are NOPs without MPX; F3 with XACQUIRE's and BND's meaning is ignored.
        (Bits64, &[0x0f, 0x1a, 0x00], Code::Reservednop_rm32_r32_0F1A),
        (Bits64, &[0xf2, 0xc3], Code::Retnq),
    ];
    for &(mode, bytes, code) in table {
        assert_eq!(protected(mode, bytes).code, code, "{bytes:02x?}");
    }
}

#[test]
fn real_mode_has_no_vex() {
    let cpuid = CpuidSet::everything(Vendor::Intel);
    for protection in [Protection::Real, Protection::Virtual8086] {
        let vex = decode(&cpuid, Bits16, protection, &[0xc5, 0xf8, 0x28, 0xc1]);
        assert_eq!(vex.fault(), Some(Vector::Ud));
        let lds = decode(&cpuid, Bits16, protection, &[0xc5, 0x00]);
        assert_eq!(lds.code, Code::Lds_r16_m1616);
    }
}

#[test]
fn vendors() {
    let intel = CpuidSet::everything(Vendor::Intel);
    let amd = CpuidSet::everything(Vendor::Amd);
    let (ud, gp) = (Some(Vector::Ud), Some(Vector::Gp));
    #[rustfmt::skip]
    let table: &[(&[u8], CpuMode, Protection, Option<Vector>, Option<Vector>)] = &[
        // bytes, mode, on Intel, on AMD
        (&[0x0f, 0x05], Bits64, Protection::Protected, None, None),
        (&[0x0f, 0x05], Bits32, Protection::Protected, ud, None),
        (&[0x0f, 0x05], Bits16, Protection::Virtual8086, ud, None),
        (&[0x0f, 0x07], Bits64, Protection::Protected, None, None),
        (&[0x0f, 0x07], Bits32, Protection::Protected, ud, None),
        (&[0x0f, 0x34], Bits64, Protection::Protected, None, ud),
        (&[0x0f, 0x34], Bits32, Protection::Protected, None, None),
        (&[0x0f, 0x34], Bits16, Protection::Virtual8086, None, None),
        (&[0x0f, 0x34], Bits16, Protection::Real, gp, gp),
        // The handler refuses it in long mode.
        (&[0x0f, 0x35], Bits64, Protection::Protected, None, None),
        (&[0x0f, 0x35], Bits32, Protection::Real, gp, gp),
    ];
    for &(bytes, mode, protection, on_intel, on_amd) in table {
        assert_eq!(decode(&intel, mode, protection, bytes).fault(), on_intel, "{bytes:02x?} {mode:?}");
        assert_eq!(decode(&amd, mode, protection, bytes).fault(), on_amd, "{bytes:02x?} {mode:?}");
    }
}

/// Features whose absence changes what an encoding means, instead of making it undefined.
#[test]
fn older_meanings() {
    #[rustfmt::skip]
    let table: &[(Feature, &[u8], Code, Code)] = &[
        (cpuid::LZCNT, &[0xf3, 0x0f, 0xbd, 0xc1], Code::Lzcnt_r32_rm32, Code::Bsr_r32_rm32),
        (cpuid::LZCNT, &[0xf3, 0x48, 0x0f, 0xbd, 0x01], Code::Lzcnt_r64_rm64, Code::Bsr_r64_rm64),
        (cpuid::BMI1, &[0xf3, 0x0f, 0xbc, 0xc1], Code::Tzcnt_r32_rm32, Code::Bsf_r32_rm32),
        (cpuid::WBNOINVD, &[0xf3, 0x0f, 0x09], Code::Wbnoinvd, Code::Wbinvd),
        (cpuid::CLDEMOTE, &[0x0f, 0x1c, 0x00], Code::Cldemote_m8, Code::Nop_rm32),
        (cpuid::CET_IBT, &[0xf3, 0x0f, 0x1e, 0xfa], Code::Endbr64, Code::Nopd),
        (cpuid::CET_IBT, &[0xf3, 0x0f, 0x1e, 0xfb], Code::Endbr32, Code::Nopd),
        (cpuid::CET_SS, &[0xf3, 0x48, 0x0f, 0x1e, 0xc8], Code::Rdsspq_r64, Code::Nop_rm64),
        (cpuid::PREFETCHW, &[0x0f, 0x0d, 0x08], Code::Prefetchw_m8, Code::Nop_rm32),
        (cpuid::SSE, &[0x0f, 0x18, 0x08], Code::Prefetcht0_m8, Code::Nop_rm32),
    ];
    for &(feature, bytes, with, without) in table {
        let present = CpuidSet::everything(Vendor::Intel);
        assert_eq!(decode(&present, Bits64, Protection::Protected, bytes).code, with, "{bytes:02x?}");
        let absent = CpuidSet::new(Vendor::Intel, |f| f != feature);
        let insn = decode(&absent, Bits64, Protection::Protected, bytes);
        assert_eq!((insn.code, insn.bytes()), (without, bytes), "{}", feature.name);
    }
    let no_lahf = CpuidSet::new(Vendor::Intel, |f| f != cpuid::LAHF_LM);
    assert_eq!(decode(&no_lahf, Bits64, Protection::Protected, &[0x9e]).fault(), Some(Vector::Ud));
    assert_eq!(decode(&no_lahf, Bits32, Protection::Protected, &[0x9e]).code, Code::Sahf);
}

#[test]
fn an_empty_set_is_a_386() {
    let none = CpuidSet::new(Vendor::Intel, |_| false);
    for (bytes, has) in [
        (&[0x90][..], true),
        (&[0x0f, 0xaf, 0xc1], true),
        (&[0x0f, 0xa2], true),
        (&[0x0f, 0x1f, 0x00], true),
        (&[0xf3, 0x90], true),
        (&[0x0f, 0xaa], true),
        (&[0x0f, 0x33], true),
        (&[0xd9, 0xc0], false),
        (&[0x0f, 0x31], false),
        (&[0x0f, 0x77], false),
        (&[0x0f, 0x28, 0xc1], false),
    ] {
        let insn = decode(&none, Bits32, Protection::Protected, bytes);
        assert_eq!(insn.fault().is_none(), has, "{bytes:02x?}");
    }
}

/// KVM's guests make hypercalls on processors that offer no virtualization; the groups' other instructions are #UD.
#[test]
fn hypercalls_need_no_virtualization() {
    let cpuid = CpuidSet::new(Vendor::Intel, |f| f != cpuid::VMX && f != cpuid::SVM);
    for mode in [Bits16, Bits32, Bits64] {
        for (bytes, code) in [([0x0f, 0x01, 0xc1], Code::Vmcall), ([0x0f, 0x01, 0xd9], Code::Vmmcall)] {
            assert_eq!(decode(&cpuid, mode, Protection::Protected, &bytes).code, code);
        }
        for bytes in [[0x0f, 0x01, 0xc2], [0x0f, 0x01, 0xda]] {
            let fault = decode(&cpuid, mode, Protection::Protected, &bytes).fault();
            assert_eq!(fault, Some(Vector::Ud), "VMLAUNCH, VMLOAD");
        }
    }
}
