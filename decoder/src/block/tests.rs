//! Where blocks end, the page's end, over-long instructions, and random bytes.
// A table's row is a tuple.
#![allow(clippy::type_complexity)]

use iced_x86::{Code, Decoder};
use proptest::prelude::*;

use super::*;
use crate::validity::{CpuidSet, Protection, Vendor};

use CpuMode::{Bits16, Bits32, Bits64};

fn with_context<T>(mode: CpuMode, run: impl FnOnce(&Context<'_>) -> T) -> T {
    let cpuid = CpuidSet::everything(Vendor::Intel);
    run(&Context { mode, protection: Protection::Protected, cpuid: &cpuid })
}

fn block(mode: CpuMode, bytes: &[u8]) -> Block {
    with_context(mode, |context| decode_block(bytes, context, MAX_BLOCK_INSNS))
}

fn codes(block: &Block) -> Vec<Code> {
    block.insns.iter().map(|i| i.code).collect()
}

#[test]
fn ends_with_a_branch() {
    // mov eax, 1; add eax, ebx; jne .-5; nop
    let block = block(Bits64, &[0xb8, 1, 0, 0, 0, 1, 0xd8, 0x75, 0xfb, 0x90]);
    assert_eq!(codes(&block), [Code::Mov_r32_imm32, Code::Add_rm32_r32, Code::Jne_rel8_64]);
    assert_eq!((block.len, block.end), (9, BlockEnd::Instruction));
}

#[test]
fn ends_behind_each_of_these() {
    #[rustfmt::skip]
    let ending: &[(CpuMode, &[u8])] = &[
        (Bits64, &[0xeb, 0]), (Bits64, &[0x74, 0]), (Bits64, &[0xe8, 0, 0, 0, 0]), (Bits64, &[0xc3]), (Bits64, &[0xff, 0xe0]),
        (Bits64, &[0xff, 0xd0]), (Bits64, &[0xff, 0x28]), (Bits64, &[0xff, 0x18]), (Bits64, &[0xcb]), (Bits64, &[0xcf]),
        (Bits64, &[0xe2, 0]), (Bits64, &[0xe3, 0]), (Bits32, &[0x9a, 0, 0, 0, 0, 8, 0]), (Bits32, &[0xea, 0, 0, 0, 0, 8, 0]),
        (Bits64, &[0xcc]), (Bits64, &[0xcd, 0x80]), (Bits32, &[0xce]), (Bits64, &[0xf1]), (Bits64, &[0x0f, 0x05]),
        (Bits64, &[0x0f, 0x07]), (Bits64, &[0x0f, 0x34]), (Bits64, &[0x0f, 0x35]), (Bits64, &[0xf4]),
        (Bits64, &[0x0f, 0x22, 0xd8]), (Bits64, &[0x0f, 0x23, 0xf8]), (Bits64, &[0x0f, 0x01, 0xf0]), (Bits64, &[0x0f, 0x06]),
        (Bits64, &[0x0f, 0x30]), (Bits64, &[0x0f, 0x32]), (Bits64, &[0x0f, 0x01, 0x38]), (Bits64, &[0x66, 0x0f, 0x38, 0x82, 0]),
        (Bits64, &[0x8e, 0xd0]), (Bits64, &[0x8e, 0xd8]), (Bits32, &[0x17]), (Bits32, &[0x1f]), (Bits64, &[0x0f, 0xa1]),
        (Bits64, &[0x0f, 0xb2, 0]), (Bits64, &[0xfb]), (Bits64, &[0x9d]), (Bits64, &[0x0f, 0x01, 0xd1]),
        (Bits64, &[0x0f, 0x01, 0xef]), (Bits64, &[0x0f, 0x01, 0xca]), (Bits64, &[0x0f, 0x01, 0xcb]), (Bits64, &[0xe4, 0x80]),
        (Bits64, &[0xee]), (Bits64, &[0x6c]), (Bits64, &[0xf3, 0x6e]), (Bits64, &[0x0f, 0x01, 0xc8]), (Bits64, &[0x0f, 0x01, 0xc9]),
        (Bits64, &[0x0f, 0x01, 0xc1]), (Bits64, &[0x0f, 0x01, 0xd9]), (Bits64, &[0x0f, 0x01, 0xe8]), (Bits64, &[0x0f, 0xaa]),
        (Bits64, &[0x0f, 0xae, 0x28]), (Bits64, &[0x0f, 0x01, 0xd8]), (Bits64, &[0x0f, 0x0b]), (Bits64, &[0x06]),
    ];
    for &(mode, bytes) in ending {
        let block = block(mode, &[bytes, &[0x90; 16]].concat());
        assert_eq!((block.insns.len(), block.end), (1, BlockEnd::Instruction), "{bytes:02x?}");
    }
    #[rustfmt::skip]
    let passing: &[(CpuMode, &[u8])] = &[
        (Bits64, &[0x90]), (Bits64, &[0x0f, 0xa2]), (Bits64, &[0x0f, 0x31]), (Bits64, &[0x0f, 0x01, 0x10]), (Bits64, &[0xfa]),
        (Bits64, &[0x9c]), (Bits64, &[0x8c, 0xd8]), (Bits64, &[0x0f, 0x20, 0xc0]), (Bits64, &[0x0f, 0x21, 0xf8]), (Bits64, &[0xf3, 0xa4]),
        (Bits64, &[0xf0, 0x01, 0]), (Bits64, &[0x0f, 0xae, 0xf0]), (Bits64, &[0xf3, 0x90]), (Bits64, &[0xf3, 0x0f, 0x1e, 0xfa]),
        (Bits64, &[0x0f, 0x01, 0xd0]), (Bits64, &[0x0f, 0x01, 0xee]), (Bits64, &[0x50]), (Bits64, &[0xd9, 0xc0]), (Bits64, &[0x0f, 0xae, 0x20]),
        (Bits32, &[0x1e]), (Bits32, &[0x62, 0]), (Bits64, &[0x0f, 0x00, 0xd8]),
    ];
    for &(mode, bytes) in passing {
        let block = block(mode, &[bytes, &[0x90, 0xc3], &[0; 16]].concat());
        assert_eq!((block.insns.len(), block.end), (3, BlockEnd::Instruction), "{bytes:02x?}");
    }
}

#[test]
fn limits_and_the_page_end() {
    let nops = [0x90; 100];
    let full = block(Bits64, &nops);
    assert_eq!((full.insns.len(), full.len, full.end), (MAX_BLOCK_INSNS, 64, BlockEnd::Limit));
    let one = with_context(Bits64, |context| decode_block(&nops, context, 1));
    assert_eq!((one.insns.len(), one.end), (1, BlockEnd::Limit));
    let zero = with_context(Bits64, |context| decode_block(&nops, context, 0));
    assert_eq!(zero.insns.len(), 1);
    let last = block(Bits64, &nops[..3]);
    assert_eq!((last.insns.len(), last.len, last.end), (3, 3, BlockEnd::PageEnd));
    let crossing = block(Bits64, &[0x90, 0x90, 0xb8, 1, 2, 3]);
    assert_eq!((crossing.insns.len(), crossing.len, crossing.end), (2, 2, BlockEnd::NeedsNextPage));
    let at_once = block(Bits64, &[0xb8, 1]);
    assert_eq!((at_once.insns.len(), at_once.len, at_once.end), (0, 0, BlockEnd::NeedsNextPage));
    let nothing = block(Bits64, &[]);
    assert_eq!((nothing.insns.len(), nothing.end), (0, BlockEnd::NeedsNextPage));
    // The caller then brings the bytes of both pages.
    let insn = with_context(Bits64, |context| decode_one(&[0xb8, 1, 2, 3, 4, 0xff, 0xff], context));
    assert_eq!(insn.map(|i| (i.code, i.len, i.imm)), Ok((Code::Mov_r32_imm32, 5, 0x0403_0201)));
    // An instruction that fits needs no other page, whatever would follow.
    let fits = block(Bits64, &[0xb8, 1, 2, 3, 4]);
    assert_eq!((fits.insns.len(), fits.end), (1, BlockEnd::PageEnd));
}

#[test]
fn a_fault_waits_for_bytes_only_if_it_needs_them() {
    // Undefined by themselves: #UD, though the page ends behind them.
    #[rustfmt::skip]
    let table: &[(CpuMode, &[u8])] = &[
        (Bits64, &[0x06]), (Bits64, &[0x48, 0x2f]), (Bits64, &[0x61]), (Bits64, &[0xce]), (Bits64, &[0x66, 0xd6]),
        (Bits64, &[0x0f, 0x04]), (Bits64, &[0x0f, 0x0b]), (Bits64, &[0x0f, 0x3f]), (Bits64, &[0xf3, 0x48, 0x0f, 0x7a]),
        (Bits32, &[0x0f, 0x24]), (Bits16, &[0x2e, 0x0f, 0xa7]), (Bits64, &[0xff, 0xf8]), (Bits64, &[0xf0, 0x01, 0xc0]),
        (Bits64, &[0xf0, 0x90]), (Bits64, &[0x8d, 0xc0]), (Bits64, &[0xfe, 0xd0]), (Bits64, &[0x0f, 0xaa, 0x48]),
    ];
    for &(mode, bytes) in table {
        let block = block(mode, bytes);
        let (want, len) = match bytes {
            // RSM is an instruction; whether it may run is for its handler.
            [0x0f, 0xaa, ..] => (None, 2),
            _ => (Some(Vector::Ud), bytes.len()),
        };
        assert_eq!((block.insns[0].fault(), usize::from(block.len)), (want, len), "{bytes:02x?}");
        // With bytes behind it, it is the same.
        let alone = with_context(mode, |context| decode_one(&[bytes, &[0x90; 15]].concat(), context));
        assert_eq!(alone.as_ref(), Ok(&block.insns[0]), "{bytes:02x?}");
    }
    // Here the second page decides what it is: its page fault comes first.
    for bytes in [
        &[0x0f][..],
        &[0xff],
        &[0x66],
        &[0xf0, 0x01],
        &[0xc5, 0xf8, 0x28],
        &[0x8e],
        &[0x62, 0xf1],
        &[0x66; 14],
    ] {
        let block = block(Bits64, bytes);
        assert_eq!((block.insns.len(), block.end), (0, BlockEnd::NeedsNextPage), "{bytes:02x?}");
    }
}

#[test]
fn a_fault_is_the_last_entry() {
    let block = block(Bits64, &[0x90, 0x0f, 0x0b, 0x90]);
    assert_eq!(codes(&block), [Code::Nopd, Code::INVALID]);
    assert_eq!((block.insns[1].fault(), block.insns[1].bytes()), (Some(Vector::Ud), &[0x0f, 0x0b][..]));
    assert_eq!((block.len, block.end), (3, BlockEnd::Instruction));
}

#[test]
fn more_than_15_bytes_is_general_protection() {
    let long = |prefix: &[u8], count: usize, rest: &[u8]| {
        let mut bytes: Vec<u8> = prefix.iter().copied().cycle().take(count).collect();
        bytes.extend_from_slice(rest);
        bytes.resize(32, 0x90);
        bytes
    };
    #[rustfmt::skip]
    let table: &[(CpuMode, &[u8], usize, &[u8], Option<Vector>)] = &[
        // 15 bytes are allowed.
        (Bits64, &[0x66], 14, &[0x90], None),
        (Bits64, &[0x2e], 13, &[0x01, 0xc0], None),
        (Bits64, &[0x2e], 10, &[0xb8, 0, 0, 0, 0], None),
        (Bits32, &[0x66, 0x67], 14, &[0x90], None),
        (Bits64, &[0x66, 0x48], 14, &[0x90], None),
        // 16 are not.
        (Bits64, &[0x66], 15, &[0x90], Some(Vector::Gp)),
        (Bits64, &[0x66], 31, &[0x90], Some(Vector::Gp)),
        (Bits64, &[0x2e], 14, &[0x01, 0xc0], Some(Vector::Gp)),
        (Bits64, &[0x2e], 11, &[0xb8, 0, 0, 0, 0], Some(Vector::Gp)),
        (Bits64, &[0xf0], 15, &[0x90], Some(Vector::Gp)),
        (Bits64, &[0xf2, 0xf3], 14, &[0x01, 0xc0], Some(Vector::Gp)),
        (Bits64, &[0x40], 15, &[0x90], Some(Vector::Gp)),
        (Bits64, &[0x66, 0x67, 0xf2, 0xf3], 4, &[0x48, 0x81, 0x84, 0x24, 0, 0, 0, 0, 0, 0, 0, 0], Some(Vector::Gp)),
        (Bits64, &[0x66, 0x67, 0xf3], 3, &[0x48, 0x81, 0x84, 0x24, 0, 0, 0, 0, 0, 0, 0, 0], None),
        (Bits32, &[0x3e], 12, &[0xc5, 0xf8, 0x28, 0xc1], Some(Vector::Gp)),
        (Bits16, &[0x36], 13, &[0xb8, 0, 0], Some(Vector::Gp)),
        (Bits16, &[0x66], 12, &[0xb8, 0, 0], Some(Vector::Gp)),
        // Undefined, and known to be within 15: #UD.
        (Bits64, &[0x2e], 13, &[0xff, 0xff], Some(Vector::Ud)),
        (Bits64, &[0x2e], 14, &[0x06], Some(Vector::Ud)),
        (Bits64, &[0x2e], 13, &[0x0f, 0x04], Some(Vector::Ud)),
        (Bits64, &[0xf0], 13, &[0x01, 0xc0], Some(Vector::Ud)),
        (Bits64, &[0xf0], 14, &[0x90], Some(Vector::Ud)),
        (Bits64, &[0x66], 13, &[0x0f, 0x0b], Some(Vector::Ud)),
        // Whether it is undefined would be known only from the 16th byte.
        (Bits64, &[0x2e], 14, &[0xff, 0xff], Some(Vector::Gp)),
        (Bits64, &[0x66], 14, &[0x0f, 0x0b], Some(Vector::Gp)),
    ];
    for &(mode, prefix, count, rest, fault) in table {
        let bytes = long(prefix, count, rest);
        let first = block(mode, &bytes).insns[0].clone();
        assert_eq!(first.fault(), fault, "{mode:?} {bytes:02x?}");
        if fault.is_none() {
            assert_eq!(usize::from(first.len), 15, "{bytes:02x?}");
        }
        // 15 bytes are all that a processor looks at.
        let alone = with_context(mode, |context| decode_one(&bytes[..15], context));
        assert_eq!(alone, Ok(first), "{bytes:02x?}");
        if fault == Some(Vector::Gp) {
            let short = with_context(mode, |context| decode_one(&bytes[..14], context));
            assert_eq!(short, Err(NeedsMoreBytes), "{bytes:02x?}");
        }
    }
}

fn any_mode() -> impl Strategy<Value = CpuMode> {
    prop_oneof![Just(Bits16), Just(Bits32), Just(Bits64)]
}

fn any_protection() -> impl Strategy<Value = Protection> {
    prop_oneof![Just(Protection::Real), Just(Protection::Virtual8086), Just(Protection::Protected)]
}

/// Bytes with many prefixes and escapes, so that they reach far.
fn any_bytes(len: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        4 => any::<u8>(),
        1 => prop::sample::select(vec![
            0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x64, 0x48, 0x0f, 0xc4, 0xc5, 0x62, 0x38, 0x3a, 0xae, 0xc7,
        ]),
    ];
    prop::collection::vec(byte, 0..len)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn random_bytes(bytes in any_bytes(48), mode in any_mode(), protection in any_protection()) {
        let cpuid = CpuidSet::new(Vendor::Intel, |f| f.bit % 3 != 0);
        let everything = CpuidSet::everything(Vendor::Intel);
        for cpuid in [&cpuid, &everything] {
            let context = Context { mode, protection, cpuid };
            let block = decode_block(&bytes, &context, MAX_BLOCK_INSNS);
            let mut decoder = Decoder::with_ip(mode.bitness(), &bytes, 0x1234, cpuid.decoder_options());
            let mut at = 0;
            let regs = [u64::MAX; crate::insn::REG_COUNT];
            for (i, insn) in block.insns.iter().enumerate() {
                let raw = decoder.decode();
                let len = usize::from(insn.len);
                let agree = if insn.fault().is_none() { len == raw.len() } else { len <= raw.len() };
                prop_assert!(agree, "{} and {}", len, raw.len());
                prop_assert_eq!(insn.bytes(), &bytes[at..at + len]);
                // Nothing but the last entry is a fault or ends the block.
                let ends = insn.fault().is_some() || attrs(insn.code).attr.contains(Attr::ENDS_BLOCK);
                prop_assert_eq!(ends, block.end == BlockEnd::Instruction && i + 1 == block.insns.len());
                prop_assert!(insn.mem.ea(&regs) <= insn.mem.mask());
                // Decoded alone, from its bytes alone, it is the same.
                if insn.fault() != Some(Vector::Gp) {
                    let alone = decode_one(&bytes[at..], &context);
                    prop_assert_eq!(alone.as_ref(), Ok(insn));
                }
                if insn.fault().is_none() {
                    let exact = decode_one(insn.bytes(), &context);
                    prop_assert_eq!(exact.as_ref(), Ok(insn));
                    // And it never needs fewer bytes than it has.
                    prop_assert_eq!(
                        decode_one(&insn.bytes()[..insn.bytes().len() - 1], &context),
                        Err(NeedsMoreBytes)
                    );
                }
                let _ = (crate::attrs::flag_use(insn), insn.form2(), insn.op_count());
                at += len;
            }
            prop_assert_eq!(usize::from(block.len), at);
            match block.end {
                BlockEnd::PageEnd => prop_assert_eq!(at, bytes.len()),
                BlockEnd::NeedsNextPage => prop_assert!(bytes.len() - at < MAX_INSN_LEN),
                BlockEnd::Limit => prop_assert_eq!(block.insns.len(), MAX_BLOCK_INSNS),
                BlockEnd::Instruction => {}
            }
        }
    }
}
