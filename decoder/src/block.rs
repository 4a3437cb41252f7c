//! Straight-line blocks: from the bytes at an address up to the instruction that ends them.
//!
//! A block lies within one page, so that one translation and one write-tracked page stand for it. An
//! instruction that meets the page's end is reported instead of decoded: the caller fetches the second page (which may
//! fault) and decodes that one instruction with [`decode_one`].
//!
//! Not here: caching, and what a block is entered under (see [`Context`]).

use iced_x86::{Code, Decoder, DecoderError, Instruction};
use x86_arch::exception::Vector;

use crate::attrs::{Attr, attrs};
use crate::insn::{CpuMode, Insn, MAX_INSN_LEN};
use crate::validity::{Context, check};

/// The most instructions that a block should have.
pub const MAX_BLOCK_INSNS: usize = 64;

/// Why a block ends where it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum BlockEnd {
    /// Its last instruction ends a block ([`Attr::ENDS_BLOCK`]) or is a fault.
    Instruction,
    /// It has as many instructions as the caller allowed.
    Limit,
    /// Its last instruction ends with the bytes given: the next one starts on the next page.
    PageEnd,
    /// The next instruction starts before the end of the bytes given and needs more. If it is
    /// the first, the block is empty, and the caller goes on with [`decode_one`].
    NeedsNextPage,
}

/// A run of instructions that is entered at its start only and left at its end (or by a fault).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The instructions. Empty only with [`BlockEnd::NeedsNextPage`].
    pub insns: Vec<Insn>,
    /// Its length in bytes.
    pub len: u16,
    /// Why it ends.
    pub end: BlockEnd,
}

/// The instruction needs more bytes than were given, and there were fewer than 15.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct NeedsMoreBytes;

/// Decodes the block that starts with the first of `bytes`, which reach to the page's end, with at most `limit`
/// instructions (at least one).
///
/// What cannot be decoded becomes an entry with a [fault](Insn::fault), at its place, as the block's last.
pub fn decode_block(bytes: &[u8], context: &Context<'_>, limit: usize) -> Block {
    let limit = limit.clamp(1, MAX_BLOCK_INSNS);
    let mut decoder = Decoder::with_ip(context.mode.bitness(), bytes, 0, context.cpuid.decoder_options());
    let mut insns = Vec::with_capacity(8);
    let mut raw = Instruction::default();
    let end = loop {
        let start = decoder.position();
        if start >= bytes.len() {
            break if insns.is_empty() { BlockEnd::NeedsNextPage } else { BlockEnd::PageEnd };
        }
        match decode_at(&mut decoder, bytes, start, &mut raw, context) {
            Err(NeedsMoreBytes) => break BlockEnd::NeedsNextPage,
            Ok(insn) => {
                let ends = insn.fault().is_some() || attrs(insn.code).attr.contains(Attr::ENDS_BLOCK);
                insns.push(insn);
                if ends {
                    break BlockEnd::Instruction;
                }
                if insns.len() >= limit {
                    break BlockEnd::Limit;
                }
            }
        }
    };
    let len = insns.iter().map(|i| u16::from(i.len)).sum();
    Block { insns, len, end }
}

/// Decodes the one instruction that starts with the first of `bytes`. With 15 bytes it always succeeds.
pub fn decode_one(bytes: &[u8], context: &Context<'_>) -> Result<Insn, NeedsMoreBytes> {
    let bytes = &bytes[..bytes.len().min(MAX_INSN_LEN)];
    let mut decoder = Decoder::with_ip(context.mode.bitness(), bytes, 0, context.cpuid.decoder_options());
    decode_at(&mut decoder, bytes, 0, &mut Instruction::default(), context)
}

#[inline]
fn decode_at(
    decoder: &mut Decoder<'_>,
    bytes: &[u8],
    start: usize,
    raw: &mut Instruction,
    context: &Context<'_>,
) -> Result<Insn, NeedsMoreBytes> {
    decoder.decode_out(raw);
    let bytes = bytes.get(start..).unwrap_or(&[]);
    if raw.code() == Code::Pause
        && let Some(exchange) = exchange_with_r8(bytes, raw.len(), context)
    {
        *raw = exchange;
    }
    if raw.is_invalid() {
        let window = &bytes[..bytes.len().min(MAX_INSN_LEN)];
        if let Some(len) = undefined_by_opcode(window, context.mode) {
            return Ok(Insn::new_fault(Vector::Ud, &window[..len], context.mode));
        }
        // iced says this only if it ran into the end of `bytes` with fewer than 15 left.
        if decoder.last_error() == DecoderError::NoMoreBytes {
            return Err(NeedsMoreBytes);
        }
        let bytes = &bytes[..raw.len().min(bytes.len())];
        let vector = if is_too_long(bytes, context.mode, context.cpuid.decoder_options()) {
            Vector::Gp
        } else {
            Vector::Ud
        };
        return Ok(Insn::new_fault(vector, bytes, context.mode));
    }
    match check(raw.code(), context) {
        Ok(code) => {
            let mut insn = Insn::from_iced(raw, bytes, context.mode);
            insn.code = code;
            Ok(insn)
        }
        Err(vector) => {
            let len = raw.len().min(bytes.len());
            Ok(Insn::new_fault(vector, &bytes[..len], context.mode))
        }
    }
}

/// F3 90 is PAUSE, but with REX.B it is XCHG of R8 and rAX, as 90 alone is (SDM vol. 2B, NOP and XCHG). iced
/// calls both PAUSE.
#[cold]
fn exchange_with_r8(bytes: &[u8], len: usize, context: &Context<'_>) -> Option<Instruction> {
    let mut bytes = bytes.get(..len)?.to_vec();
    let rex = *bytes.get(len.checked_sub(2)?)?;
    if context.mode != CpuMode::Bits64 || rex & 0xf1 != 0x41 {
        return None;
    }
    // CS, which means nothing here.
    bytes.iter_mut().filter(|byte| **byte == 0xf3).for_each(|byte| *byte = 0x2e);
    let options = context.cpuid.decoder_options();
    Some(Decoder::with_ip(context.mode.bitness(), &bytes, 0, options).decode())
}

/// If these bytes, which iced called invalid or incomplete, begin with an undefined opcode: how many they are with
/// it. What follows such an opcode is not fetched, so #UD comes before a fault on the next page, and
/// before #GP for the length; iced reads a ModRM byte first.
///
/// These opcodes have nothing in any processor of ours. The manuals do not say what is fetched behind them; the list is
/// what an AMD EPYC does, where bytes before an inaccessible page were executed. UD0 and UD1 are not in it:
/// they have a ModRM byte (SDM vol. 2B, UD).
fn undefined_by_opcode(bytes: &[u8], mode: CpuMode) -> Option<usize> {
    let long = mode == CpuMode::Bits64;
    let is_prefix = |b: &u8| match b {
        0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => true,
        0x40..=0x4f => long,
        _ => false,
    };
    let at = bytes.iter().position(|b| !is_prefix(b))?;
    match (bytes[at], bytes.get(at + 1)) {
        // PUSH and POP of ES, CS, SS, DS; DAA, DAS, AAA, AAS; PUSHA, POPA; INTO; SALC.
        (0x06 | 0x07 | 0x0e | 0x16 | 0x17 | 0x1e | 0x1f, _) if long => Some(at + 1),
        (0x27 | 0x2f | 0x37 | 0x3f | 0x60 | 0x61 | 0xce | 0xd6, _) if long => Some(at + 1),
        (0x0f, Some(0x04 | 0x0a | 0x0c | 0x0e | 0x24..=0x27 | 0x36 | 0x37)) => Some(at + 2),
        (0x0f, Some(0x39 | 0x3b..=0x3f | 0x7a | 0x7b | 0xa6 | 0xa7)) => Some(at + 2),
        _ => None,
    }
}

/// Whether these bytes, which iced called invalid, are the beginning of an instruction of more than 15:
/// #GP(0), not #UD (SDM vol. 3A, 6.15, interrupt 13).
///
/// iced does not tell the two apart. An instruction gets that long by repeated or useless prefixes. So we take them
/// out, which changes nothing but the length, and ask again: if the rest is now incomplete, it was
/// too long.
fn is_too_long(bytes: &[u8], mode: CpuMode, options: u32) -> bool {
    if bytes.len() < MAX_INSN_LEN {
        return false;
    }
    let mut kept = Vec::with_capacity(MAX_INSN_LEN);
    let mut rex = None;
    let mut at = 0;
    while let Some(&b) = bytes.get(at) {
        match b {
            // Neither LOCK nor a segment changes how an instruction is read.
            0xf0 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => rex = None,
            0x66 | 0x67 => {
                if !kept.contains(&b) {
                    kept.push(b);
                }
                rex = None;
            }
            // The last of these counts.
            0xf2 | 0xf3 => {
                kept.retain(|p| !matches!(p, 0xf2 | 0xf3));
                kept.push(b);
                rex = None;
            }
            // Only if it is the last prefix.
            0x40..=0x4f if mode == CpuMode::Bits64 => rex = Some(b),
            _ => break,
        }
        at += 1;
    }
    kept.extend(rex);
    kept.extend_from_slice(&bytes[at..]);
    if kept.len() == bytes.len() {
        return false;
    }
    let mut decoder = Decoder::with_ip(mode.bitness(), &kept, 0, options);
    let insn = decoder.decode();
    // With all its useful bytes there, it is an instruction now, or an invalid one: then 15 bytes had been enough.
    insn.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes
}

#[cfg(test)]
mod tests;
