//! Two processors: the second is started by INIT and SIPI, then both send each other interrupts and share memory.

use super::super::machine::{Controllers, Plan, Start};
use super::super::outside::PORT_NMI;
use super::code::{Blocks, assemble};
use super::long::{start_64, surroundings};
use crate::guest::layout::{LAPIC, PORT_ECHO};
use crate::guest::program::Assembled;
use iced_x86::code_asm::*;

pub(super) const CODE: u64 = 0x1_0000;
pub(super) const CODE_2: u64 = 0x1_4000;
pub(super) const TRAMPOLINE: u64 = 0xe000;
pub(super) const TABLES: u64 = 0xe100;
pub(super) const STACK: u64 = 0x3_8000;
pub(super) const STACK_2: u64 = 0x3_4000;
/// Words that both use: a lock, a count, a flag.
pub(super) const SHARED: u64 = 0x2_9000;

pub(super) fn lapic(a: &mut CodeAssembler, register: u64, value: u32) -> Assembled {
    a.mov(ebx, (LAPIC + register) as u32)?;
    a.mov(dword_ptr(rbx), value as i32)
}

/// An interrupt for the processor with this APIC ID.
pub(super) fn send(a: &mut CodeAssembler, to: u32, command: u32) -> Assembled {
    lapic(a, 0x310, to << 24)?;
    lapic(a, 0x300, command)
}

/// Takes the lock, counts, lets go of it.
pub(super) fn locked(a: &mut CodeAssembler) -> Assembled {
    let (mut again, mut mine) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.mov(eax, 1)?;
    a.xchg(dword_ptr(SHARED), eax)?;
    a.test(eax, eax)?;
    a.je(mine)?;
    a.pause()?;
    a.jmp(again)?;
    a.set_label(&mut mine)?;
    a.add(dword_ptr(SHARED + 8), 3)?;
    a.mov(dword_ptr(SHARED), 0)?;
    a.lock().inc(qword_ptr(SHARED + 16))
}

fn both(b: &mut Blocks, other: u32) -> Assembled {
    b.block(|a| {
        lapic(a, 0xf0, 0x1ff)?;
        lapic(a, 0x3e0, 1)?;
        lapic(a, 0x320, 0x70)?;
        lapic(a, 0x380, 60)?;
        locked(a)?;
        a.sti()?;
        send(a, other, 0x4078)?;
        locked(a)?;
        a.mov(ecx, 11)?;
        a.mov(esi, 0x2_0000)?;
        a.mov(edi, 0x2_0400 + 0x100 * other)?;
        a.rep().movsb()?;
        send(a, other, 0x4400)?;
        locked(a)?;
        a.mov(edx, u32::from(PORT_ECHO))?;
        a.out(dx, eax)?;
        a.in_(eax, dx)?;
        send(a, other, 0x4079)?;
        a.cli()?;
        a.nop()?;
        a.nop()?;
        a.sti()?;
        locked(a)?;
        lapic(a, 0x380, 500)?;
        a.hlt()?;
        a.mov(ecx, 7)?;
        a.rep().stosb()?;
        locked(a)?;
        // To all but itself.
        lapic(a, 0x300, 0xc_407a)?;
        a.rdtsc()?;
        a.nop()?;
        locked(a)?;
        a.cli()
    })
}

fn trampoline() -> Vec<u8> {
    let make = || -> Assembled<Vec<u8>> {
        let mut a = CodeAssembler::new(16)?;
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.lgdt(fword_ptr(TABLES as u32))?;
        a.mov(eax, 0x6b0)?;
        a.mov(cr4, eax)?;
        a.mov(eax, 0x1000)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.mov(eax, 0xd00)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(eax, 0x8001_0033u32)?;
        a.mov(cr0, eax)?;
        // JMP 8:CODE_2 with a 32-bit offset.
        a.db(&[0x66, 0xea])?;
        a.db(&(CODE_2 as u32).to_le_bytes())?;
        a.db(&8u16.to_le_bytes())?;
        a.assemble(0)
    };
    make().expect("the trampoline assembles")
}

/// Where SIPI starts the second processor: from real mode to [`CODE_2`].
pub(super) fn trampoline_pieces() -> [(u64, Vec<u8>); 2] {
    let mut tables = vec![0u8; 0x20];
    tables[..2].copy_from_slice(&0x5fu16.to_le_bytes());
    tables[2..6].copy_from_slice(&0x7000u32.to_le_bytes());
    tables[0x10..0x12].copy_from_slice(&0xfffu16.to_le_bytes());
    tables[0x12..0x16].copy_from_slice(&0x8000u32.to_le_bytes());
    [(TRAMPOLINE, trampoline()), (TABLES, tables)]
}

/// Two processors with all controllers.
pub fn pair() -> Plan {
    let first = assemble(64, CODE, 0, |b| {
        b.block(|a| {
            lapic(a, 0xf0, 0x1ff)?;
            send(a, 1, 0x4500)?;
            a.nop()?;
            send(a, 1, 0x4600 | (TRAMPOLINE >> 12) as u32)?;
            let mut wait = a.create_label();
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(dword_ptr(SHARED + 24), 0)?;
            a.je(wait)?;
            // A processor that runs ignores it.
            send(a, 1, 0x4633)
        })?;
        both(b, 1)?;
        b.block(|a| {
            a.mov(edx, u32::from(PORT_NMI))?;
            a.mov(eax, 1)?;
            a.out(dx, eax)?;
            locked(a)
        })?;
        both(b, 1)?;
        // Back to where it waits for SIPI, and there it stays.
        b.block(|a| {
            for _ in 0..40 {
                a.pause()?;
            }
            send(a, 1, 0x4500)?;
            a.nop()
        })
    });
    let second = assemble(64, CODE_2, 0, |b| {
        b.block(|a| {
            a.mov(eax, 0x10)?;
            a.mov(ss, eax)?;
            a.mov(esp, STACK_2 as u32)?;
            a.lidt(fword_ptr(TABLES + 0x10))?;
            a.mov(dword_ptr(SHARED + 24), 1)
        })?;
        both(b, 0)?;
        both(b, 0)
    });
    let mut p = Plan::one("two processors", Controllers::Full, start_64(CODE, STACK), 0);
    p.vcpus.push(Start::default());
    p.pieces = surroundings();
    p.pieces.extend([(CODE, first), (CODE_2, second)]);
    p.pieces.extend(trampoline_pieces());
    p.slices = (0..120u64).map(|n| (n as usize & 1, 7 + (n * 29) % 31)).collect();
    p
}
