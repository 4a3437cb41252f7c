//! Flags, memory access and properties of instructions, by table.
// A table's row is a tuple.
#![allow(clippy::type_complexity)]

use super::*;
use crate::block::decode_one;
use crate::insn::CpuMode;
use crate::validity::{Context, CpuidSet, Protection, Vendor};

const CF: u16 = Rflags::CF.bits() as u16;
const PF: u16 = Rflags::PF.bits() as u16;
const AF: u16 = Rflags::AF.bits() as u16;
const ZF: u16 = Rflags::ZF.bits() as u16;
const SF: u16 = Rflags::SF.bits() as u16;
const OF: u16 = Rflags::OF.bits() as u16;
const DF: u16 = Rflags::DF.bits() as u16;
const ALL: u16 = Rflags::STATUS.bits() as u16;

fn decode(bytes: &[u8]) -> Insn {
    let cpuid = CpuidSet::everything(Vendor::Intel);
    let context = Context { mode: CpuMode::Bits64, protection: Protection::Protected, cpuid: &cpuid };
    let insn = decode_one(bytes, &context).expect("complete");
    assert_eq!(insn.fault(), None, "{bytes:02x?}");
    insn
}

#[test]
fn flags() {
    // bytes, read, written, undefined, may be written
    #[rustfmt::skip]
    let table: &[(&[u8], u16, u16, u16, u16)] = &[
        (&[0x01, 0xc0], 0, ALL, 0, ALL),
        (&[0x11, 0xc0], CF, ALL, 0, ALL),
        (&[0x19, 0x00], CF, ALL, 0, ALL),
        (&[0x39, 0xc0], 0, ALL, 0, ALL),
        (&[0x21, 0xc8], 0, ALL, AF, ALL),
        (&[0x85, 0xc0], 0, ALL, AF, ALL),
        (&[0xff, 0xc0], 0, ALL & !CF, 0, ALL & !CF),
        (&[0xf7, 0xd0], 0, 0, 0, 0),
        (&[0xf7, 0xd8], 0, ALL, 0, ALL),
        (&[0xf7, 0xe0], 0, ALL, SF | ZF | AF | PF, ALL),
        (&[0xf7, 0xf0], 0, ALL, ALL, ALL),
        (&[0x8d, 0x00], 0, 0, 0, 0),
        (&[0x89, 0xc0], 0, 0, 0, 0),
        (&[0x0f, 0x44, 0xc1], ZF, 0, 0, 0),
        (&[0x0f, 0x97, 0xc0], CF | ZF, 0, 0, 0),
        (&[0x7c, 0x00], SF | OF, 0, 0, 0),
        (&[0xe1, 0x00], ZF, 0, 0, 0),
        (&[0xe2, 0x00], 0, 0, 0, 0),
        (&[0xf5], CF, CF, 0, CF),
        (&[0xf8], 0, CF, 0, CF),
        (&[0xfd], 0, DF, 0, DF),
        (&[0x9e], 0, ALL & !OF, 0, ALL & !OF),
        (&[0x9f], ALL & !OF, 0, 0, 0),
        (&[0x9c], ALL | DF, 0, 0, 0),
        (&[0x9d], 0, ALL | DF, 0, ALL | DF),
        (&[0xa4], DF, 0, 0, 0),
        (&[0xf3, 0xa4], DF, 0, 0, 0),
        (&[0xa6], DF, ALL, 0, ALL),
        // Under REP a count of 0 leaves them.
        (&[0xf3, 0xa6], DF, 0, 0, ALL),
        (&[0xf2, 0xae], DF, 0, 0, ALL),
        // Shifts: by one, by an immediate, by CL. A masked count of 0 leaves the flags.
        (&[0xd1, 0xe0], 0, ALL, AF, ALL),
        (&[0xc1, 0xe0, 0x01], 0, ALL, AF, ALL),
        (&[0xc1, 0xe0, 0x05], 0, ALL, AF | OF, ALL),
        (&[0xc1, 0xe0, 0x00], 0, 0, 0, 0),
        (&[0xc1, 0xe0, 0x20], 0, 0, 0, 0),
        (&[0x48, 0xc1, 0xe0, 0x20], 0, ALL, AF | OF, ALL),
        (&[0x48, 0xc1, 0xe0, 0x40], 0, 0, 0, 0),
        (&[0xd3, 0xe0], 0, 0, AF | OF, ALL),
        (&[0xd1, 0xc0], 0, CF | OF, 0, CF | OF),
        (&[0xc1, 0xc0, 0x03], 0, CF | OF, OF, CF | OF),
        (&[0xc1, 0xd0, 0x00], 0, 0, 0, 0),
        (&[0xc1, 0xd0, 0x01], CF, CF | OF, 0, CF | OF),
        (&[0xd3, 0xd0], CF, 0, OF, CF | OF),
        (&[0x0f, 0xa5, 0xc8], 0, 0, AF | OF, ALL),
        (&[0x0f, 0xa4, 0xc8, 0x00], 0, 0, 0, 0),
        // shlx has no flags, andn has.
        (&[0xc4, 0xe2, 0x71, 0xf7, 0xc0], 0, 0, 0, 0),
        (&[0xc4, 0xe2, 0x78, 0xf2, 0xc1], 0, ALL, AF | PF, ALL),
        (&[0x66, 0x0f, 0x38, 0xf6, 0xc1], CF, CF, 0, CF),
        (&[0xf3, 0x0f, 0x38, 0xf6, 0xc1], OF, OF, 0, OF),
        (&[0x0f, 0x2f, 0xc1], 0, ALL, 0, ALL),
        (&[0xdb, 0xf1], 0, ALL, 0, ALL),
        (&[0x0f, 0xb1, 0x08], 0, ALL, 0, ALL),
        (&[0x0f, 0xc7, 0x08], 0, ZF, 0, ZF),
    ];
    for &(bytes, read, written, undefined, may_write) in table {
        let flags = flag_use(&decode(bytes));
        assert_eq!(flags, FlagUse { read, written, undefined, may_write }, "{bytes:02x?}");
    }
}

#[test]
fn flags_are_consistent() {
    for code in Code::values() {
        let flags = attrs(code).flags;
        assert_eq!(flags.written & !flags.may_write, 0, "{code:?}");
        assert_eq!(flags.undefined & !flags.may_write, 0, "{code:?}");
        let changes = flags.written != flags.may_write;
        assert!(!changes || attrs(code).attr.contains(Attr::FLAGS_BY_COUNT), "{code:?}");
    }
}

#[test]
fn memory() {
    use MemAccess as M;
    #[rustfmt::skip]
    let table: &[(&[u8], MemAccess)] = &[
        (&[0x89, 0x00], M::Write), (&[0x8b, 0x00], M::Read), (&[0x01, 0x00], M::ReadWrite), (&[0x03, 0x00], M::Read),
        (&[0x39, 0x00], M::Read), (&[0x85, 0x00], M::Read), (&[0x8d, 0x00], M::None), (&[0xff, 0x30], M::Read),
        (&[0x8f, 0x00], M::Write), (&[0xff, 0x20], M::Read), (&[0xff, 0x00], M::ReadWrite), (&[0x87, 0x00], M::ReadWrite),
        (&[0x0f, 0xb1, 0x08], M::ReadWrite), (&[0x0f, 0xc7, 0x08], M::ReadWrite), (&[0x0f, 0xa3, 0x00], M::Read),
        (&[0x0f, 0xab, 0x00], M::ReadWrite), (&[0x0f, 0x94, 0x00], M::Write), (&[0x0f, 0xb6, 0x00], M::Read),
        (&[0xa4], M::ReadWrite), (&[0xaa], M::Write), (&[0xac], M::Read), (&[0xa6], M::Read), (&[0xae], M::Read),
        (&[0x6c], M::Write), (&[0x6e], M::Read), (&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0], M::Read),
        (&[0xa2, 0, 0, 0, 0, 0, 0, 0, 0], M::Write), (&[0xd7], M::Read), (&[0x0f, 0x01, 0x10], M::Read),
        (&[0x0f, 0x01, 0x00], M::Write), (&[0x0f, 0x01, 0x38], M::None), (&[0x0f, 0x18, 0x08], M::None), (&[0x0f, 0x1f, 0x00], M::None),
        (&[0xd9, 0x00], M::Read), (&[0xd9, 0x18], M::Write), (&[0x0f, 0xae, 0x00], M::Write), (&[0x0f, 0xae, 0x08], M::Read),
        (&[0x0f, 0x28, 0x00], M::Read), (&[0x0f, 0x29, 0x00], M::Write), (&[0x66, 0x0f, 0xf7, 0xc1], M::Write),
        (&[0xc4, 0xe2, 0x71, 0x92, 0x44, 0x92, 0x10], M::Read), (&[0x62, 0xb2, 0x7d, 0x41, 0xa2, 0x04, 0xf8], M::Write),
        (&[0x50], M::None), (&[0x0f, 0xa2], M::None), (&[0x0f, 0xc3, 0x00], M::Write),
    ];
    for &(bytes, access) in table {
        assert_eq!(attrs(decode(bytes).code).mem, access, "{bytes:02x?}");
    }
}

#[test]
fn properties() {
    use Attr as A;
    let kept = A::all().difference(A::SERIALIZING);
    #[rustfmt::skip]
    let table: &[(Code, Attr)] = &[
        (Code::Add_rm32_r32, A::LOCKABLE),
        (Code::Jne_rel8_64, A::ENDS_BLOCK.union(A::NEAR_BRANCH).union(A::CONDITIONAL)),
        (Code::Loop_rel8_64_RCX, A::ENDS_BLOCK.union(A::NEAR_BRANCH).union(A::CONDITIONAL)),
        (Code::Jmp_rel32_64, A::ENDS_BLOCK.union(A::NEAR_BRANCH)),
        (Code::Jmp_rm64, A::ENDS_BLOCK.union(A::INDIRECT)),
        (Code::Call_rel32_64, A::ENDS_BLOCK.union(A::NEAR_BRANCH).union(A::CALL).union(A::STACK)),
        (Code::Call_rm64, A::ENDS_BLOCK.union(A::INDIRECT).union(A::CALL).union(A::STACK)),
        (Code::Retnq, A::ENDS_BLOCK.union(A::RETURN).union(A::STACK)),
        (Code::Retfq, A::ENDS_BLOCK.union(A::FAR).union(A::STACK)),
        (Code::Iretq, A::ENDS_BLOCK.union(A::FAR).union(A::STACK).union(A::IOPL_SENSITIVE)),
        (Code::Call_m1632, A::ENDS_BLOCK.union(A::FAR).union(A::STACK)),
        (Code::Jmp_ptr1632, A::ENDS_BLOCK.union(A::FAR)),
        (Code::Int_imm8, A::ENDS_BLOCK.union(A::FAR).union(A::IOPL_SENSITIVE)),
        (Code::Syscall, A::ENDS_BLOCK.union(A::FAR)),
        (Code::Sysretq, A::ENDS_BLOCK.union(A::FAR).union(A::PRIVILEGED)),
        (Code::Hlt, A::ENDS_BLOCK.union(A::PRIVILEGED)),
        (Code::Wrmsr, A::ENDS_BLOCK.union(A::PRIVILEGED)),
        (Code::Mov_cr_r64, A::ENDS_BLOCK.union(A::PRIVILEGED)),
        (Code::Mov_r64_cr, A::PRIVILEGED),
        (Code::Lgdt_m1664, A::PRIVILEGED),
        (Code::Sgdt_m1664, A::UMIP),
        (Code::Cli, A::IOPL_SENSITIVE),
        (Code::Sti, A::IOPL_SENSITIVE.union(A::ENDS_BLOCK).union(A::SHADOW)),
        (Code::Popd_SS, A::SHADOW.union(A::LOADS_SEGMENT).union(A::ENDS_BLOCK).union(A::STACK)),
        (Code::Popq_FS, A::LOADS_SEGMENT.union(A::ENDS_BLOCK).union(A::STACK)),
        (Code::Pushq_FS, A::STACK),
        (Code::Lss_r32_m1632, A::LOADS_SEGMENT.union(A::ENDS_BLOCK)),
        (Code::In_AL_DX, A::IO.union(A::IOPL_SENSITIVE).union(A::ENDS_BLOCK)),
        (Code::Outsb_DX_m8, A::IO.union(A::IOPL_SENSITIVE).union(A::ENDS_BLOCK).union(A::STRING)),
        (Code::Movsd_m32_m32, A::STRING),
        (Code::Movsd_xmm_xmmm64, A::SSE),
        (Code::Cmpsd_m32_m32, A::STRING.union(A::FLAGS_BY_COUNT)),
        (Code::Cmpsd_xmm_xmmm64_imm8, A::SSE),
        (Code::Fadd_m32fp, A::X87),
        (Code::Fcmovb_st0_sti, A::X87),
        (Code::Wait, A::X87),
        (Code::Emms, A::MMX),
        (Code::Pxor_mm_mmm64, A::MMX),
        (Code::Cvtpi2ps_xmm_mmm64, A::MMX.union(A::SSE)),
        (Code::Pxor_xmm_xmmm128, A::SSE),
        (Code::VEX_Vpxor_xmm_xmm_xmmm128, A::VEX),
        (Code::VEX_Vpgatherdd_xmm_vm32x_xmm, A::VEX.union(A::VSIB)),
        (Code::EVEX_Vpscatterdd_vm32z_k1_zmm, A::EVEX.union(A::VSIB)),
        (Code::Shl_rm32_CL, A::FLAGS_BY_COUNT),
        (Code::Shl_rm32_1, A::empty()),
        (Code::Pushfq, A::STACK.union(A::IOPL_SENSITIVE)),
    ];
    for &(code, expected) in table {
        assert_eq!(attrs(code).attr & kept, expected, "{code:?}");
    }
}

#[test]
fn shadows() {
    for (bytes, shadow) in [
        (&[0x8e, 0xd0][..], true),
        (&[0x8e, 0x10], true),
        (&[0x8e, 0xd8], false),
        (&[0xfb], true),
        (&[0x0f, 0xb2, 0x00], false),
        (&[0x90], false),
    ] {
        assert_eq!(casts_shadow(&decode(bytes)), shadow, "{bytes:02x?}");
    }
}
