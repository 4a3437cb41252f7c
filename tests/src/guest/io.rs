//! The guest's checks of ports and device memory: every width, string forms, and instructions that meet a
//! device in the middle.

use super::layout::*;
use super::program::{Assembled, Program};
use iced_x86::code_asm::*;

/// Bytes of the long string transfers: more than a page.
const LONG: u64 = 5000;
const BUFFER: u64 = FRAMES + 0x8_0000;

/// The checksum of [`PORT_SUM`]: each byte times its place, from 1.
pub fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().zip(1u32..).fold(0, |sum, (&b, n)| sum.wrapping_add(u32::from(b).wrapping_mul(n)))
}

/// All of them.
pub fn checks(p: &mut Program) -> Assembled {
    ports(p)?;
    strings(p)?;
    device_memory(p)?;
    device_strings(p)?;
    edges(p)
}

fn ports(p: &mut Program) -> Assembled {
    p.a.mov(edx, u32::from(PORT_ECHO))?;
    p.a.mov(eax, 0x1122_3344)?;
    p.a.out(dx, al)?;
    p.a.in_(al, dx)?;
    p.check("OUT and IN, 8 bits", 0x1122_33bb)?;
    p.a.mov(edx, u32::from(PORT_ECHO))?;
    p.a.mov(rax, 0x5566_7788_1122_3344u64)?;
    p.a.out(dx, ax)?;
    p.a.in_(ax, dx)?;
    p.check("OUT and IN, 16 bits", 0x5566_7788_1122_ccbb)?;
    p.a.mov(edx, u32::from(PORT_ECHO))?;
    p.a.mov(rax, 0x5566_7788_1122_3344u64)?;
    p.a.out(dx, eax)?;
    p.a.in_(eax, dx)?;
    p.check("OUT and IN, 32 bits", 0xeedd_ccbb)
}

fn pattern() -> Vec<u8> {
    (0..LONG).map(|n| (n * 7 + (n >> 8)) as u8).collect()
}

fn strings(p: &mut Program) -> Assembled {
    // The pattern, written by the guest.
    let mut fill = p.a.create_label();
    p.a.mov(rdi, BUFFER)?;
    p.a.xor(ecx, ecx)?;
    p.a.set_label(&mut fill)?;
    p.a.imul_3(eax, ecx, 7)?;
    p.a.mov(edx, ecx)?;
    p.a.shr(edx, 8)?;
    p.a.add(eax, edx)?;
    p.a.stosb()?;
    p.a.inc(ecx)?;
    p.a.cmp(ecx, LONG as i32)?;
    p.a.jb(fill)?;
    p.a.mov(rsi, BUFFER)?;
    p.a.mov(ecx, LONG as u32)?;
    p.a.mov(edx, u32::from(PORT_STREAM))?;
    p.a.rep().outsb()?;
    p.a.lea(rax, ptr(rcx + rsi))?;
    p.check("REP OUTSB: RCX and RSI", BUFFER + LONG)?;
    p.a.mov(edx, u32::from(PORT_SUM))?;
    p.a.in_(eax, dx)?;
    p.check("REP OUTSB: what arrived", u64::from(checksum(&pattern())))?;
    p.a.mov(rsi, BUFFER + 39 * 4)?;
    p.a.mov(ecx, 40)?;
    p.a.mov(edx, u32::from(PORT_STREAM))?;
    p.a.std()?;
    p.a.rep().outsd()?;
    p.a.cld()?;
    p.a.mov(edx, u32::from(PORT_SUM))?;
    p.a.in_(eax, dx)?;
    let backwards: Vec<u8> = pattern()[..160].chunks(4).rev().flatten().copied().collect();
    p.check("REP OUTSD downwards", u64::from(checksum(&backwards)))?;
    p.a.mov(rdi, BUFFER)?;
    p.a.mov(ecx, LONG as u32)?;
    p.a.mov(edx, u32::from(PORT_STREAM))?;
    p.a.rep().insb()?;
    p.a.lea(rax, ptr(rcx + rdi))?;
    p.check("REP INSB: RCX and RDI", BUFFER + LONG)?;
    // The VMM counts up from 0.
    p.a.mov(rax, qword_ptr(BUFFER + LONG - 8))?;
    let last: Vec<u8> = (LONG - 8..LONG).map(|n| n as u8).collect();
    p.check("REP INSB: the last eight", last.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b)))
}

fn device_memory(p: &mut Program) -> Assembled {
    let value = 0xfedc_ba98_7654_3210u64;
    p.a.mov(esi, MMIO as u32)?;
    p.a.mov(rax, value)?;
    p.a.mov(qword_ptr(rsi), rax)?;
    p.a.mov(rax, qword_ptr(rsi))?;
    p.check("MMIO: 64 bits", value)?;
    p.a.mov(esi, MMIO as u32)?;
    p.a.mov(dword_ptr(rsi + 4), 0x1234_5678)?;
    p.a.mov(word_ptr(rsi + 2), 0x9abc)?;
    p.a.mov(byte_ptr(rsi), 0xde)?;
    p.a.movzx(ebx, byte_ptr(rsi))?;
    p.a.movsx(rcx, word_ptr(rsi + 2))?;
    p.a.mov(r8, qword_ptr(rsi))?;
    p.a.lea(rax, ptr(rbx + rcx))?;
    p.check("MMIO: MOVZX and MOVSX", 0xffff_ffff_ffff_9abcu64.wrapping_add(0xde))?;
    p.a.mov(rax, r8)?;
    p.check("MMIO: parts", 0x1234_5678_9abc_32de)?;
    // Read-modify-write.
    p.a.mov(esi, MMIO as u32)?;
    p.a.mov(dword_ptr(rsi + 0x10), 40)?;
    p.a.add(dword_ptr(rsi + 0x10), 5)?;
    p.a.lock().inc(dword_ptr(rsi + 0x10))?;
    p.a.xor(dword_ptr(rsi + 0x10), 0xff00)?;
    p.a.not(word_ptr(rsi + 0x10))?;
    p.a.mov(eax, 0x77)?;
    p.a.xchg(dword_ptr(rsi + 0x10), eax)?;
    p.a.shl(rax, 32)?;
    p.a.mov(ecx, dword_ptr(rsi + 0x10))?;
    p.a.or(rax, rcx)?;
    let word = !(0xff00u64 ^ 46) & 0xffff;
    p.check("MMIO: ADD, LOCK INC, XOR, NOT, XCHG", word << 32 | 0x77)?;
    p.a.mov(esi, MMIO as u32)?;
    p.a.mov(eax, 0x77)?;
    p.a.mov(ecx, 0x88)?;
    p.a.lock().cmpxchg(dword_ptr(rsi + 0x10), ecx)?;
    p.a.setz(bl)?;
    p.a.cmp(dword_ptr(rsi + 0x10), 0x88)?;
    p.a.setz(al)?;
    p.a.test(dword_ptr(rsi + 0x10), 0x80)?;
    p.a.setnz(ah)?;
    p.a.mov(byte_ptr(VECTOR), bl)?;
    p.a.mov(word_ptr(VECTOR + 1), ax)?;
    p.a.mov(eax, dword_ptr(VECTOR))?;
    p.a.and(eax, 0xff_ffff)?;
    p.check("MMIO: CMPXCHG, CMP, TEST", 0x01_0101)?;
    // PUSH from there, POP to there.
    p.a.mov(esi, MMIO as u32)?;
    p.a.mov(rax, value)?;
    p.a.mov(qword_ptr(rsi + 0x20), rax)?;
    p.a.push(qword_ptr(rsi + 0x20))?;
    p.a.pop(rax)?;
    p.check("MMIO: PUSH", value)?;
    // 16 bytes go in two exits.
    p.a.mov(esi, MMIO as u32)?;
    p.a.movups(xmm1, xmmword_ptr(VECTOR))?;
    p.a.mov(rax, value)?;
    p.a.mov(qword_ptr(VECTOR), rax)?;
    p.a.not(rax)?;
    p.a.mov(qword_ptr(VECTOR + 8), rax)?;
    p.a.movdqu(xmm1, xmmword_ptr(VECTOR))?;
    p.a.movdqu(xmmword_ptr(rsi + 0x40), xmm1)?;
    p.a.mov(rax, qword_ptr(rsi + 0x40))?;
    p.a.add(rax, qword_ptr(rsi + 0x48))?;
    p.check("MMIO: 16 bytes", u64::MAX)
}

fn device_strings(p: &mut Program) -> Assembled {
    let bytes: Vec<u8> = (0..100u64).map(|n| n as u8).collect();
    // RAM (the REP INSB's bytes count up from 0) to the device, within it, and back.
    p.a.mov(rsi, BUFFER)?;
    p.a.mov(edi, MMIO as u32 + 0x100)?;
    p.a.mov(ecx, 100)?;
    p.a.rep().movsb()?;
    p.a.mov(rax, rdi)?;
    p.check("REP MOVSB to MMIO: RDI", MMIO + 0x100 + 100)?;
    p.a.mov(esi, MMIO as u32 + 0x100)?;
    p.a.mov(edi, MMIO as u32 + 0x200)?;
    p.a.mov(ecx, 25)?;
    p.a.rep().movsd()?;
    p.a.mov(esi, MMIO as u32 + 0x200)?;
    p.a.mov(rdi, BUFFER + 0x2000)?;
    p.a.mov(ecx, 50)?;
    p.a.rep().movsw()?;
    p.a.mov(rsi, BUFFER + 0x2000)?;
    p.a.mov(ecx, 100)?;
    p.a.mov(edx, u32::from(PORT_STREAM))?;
    p.a.rep().outsb()?;
    p.a.mov(edx, u32::from(PORT_SUM))?;
    p.a.in_(eax, dx)?;
    p.check("REP MOVS: RAM, MMIO, MMIO, RAM", u64::from(checksum(&bytes)))?;
    p.a.mov(edi, MMIO as u32 + 0x300)?;
    p.a.mov(rax, 0x0101_0101_0101_0101u64)?;
    p.a.mov(ecx, 4)?;
    p.a.rep().stosq()?;
    p.a.mov(esi, MMIO as u32 + 0x300)?;
    p.a.lodsq()?;
    p.a.add(rax, qword_ptr(rsi + 16))?;
    p.check("REP STOSQ, LODSQ: MMIO", 0x0202_0202_0202_0202)
}

fn edges(p: &mut Program) -> Assembled {
    // Eight bytes, half in RAM's last page and half behind it.
    p.a.mov(rsi, RAM - 4)?;
    p.a.mov(rax, 0x1111_1111_2222_2222u64)?;
    p.a.mov(qword_ptr(rsi), rax)?;
    p.a.mov(eax, dword_ptr(rsi))?;
    p.check("a store from RAM into MMIO: the RAM half", 0x2222_2222)?;
    p.a.mov(rsi, RAM - 4)?;
    p.a.mov(rax, qword_ptr(rsi))?;
    p.check("a load from RAM and MMIO", 0x1111_1111_2222_2222)?;
    // The ROM takes no stores: they are the device's.
    p.a.mov(esi, (ROM + 0x100) as u32)?;
    p.a.mov(byte_ptr(rsi), 0x33)?;
    p.a.movzx(eax, byte_ptr(rsi))?;
    p.check("a store into ROM", 0xcc)?;
    p.a.mov(edx, u32::from(PORT_SUM))?;
    p.a.in_(ax, dx)?;
    p.a.movzx(eax, ax)?;
    p.check("a store into ROM reaches the VMM", 0x33)
}
