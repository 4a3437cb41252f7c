//! System-management mode: SMIs that wait, from outside, from the IOAPIC and from another processor; under an interrupt's shadow, in HLT, inside an
//! NMI's handler; what the handler changes in its save area; an INIT that waits for RSM.
//!
//! The handler is 16-bit code in memory that only this mode sees (KVM_CAP_MULTI_ADDRESS_SPACE).

use super::super::machine::{Controllers, Plan, SMRAM, Start};
use super::super::outside::{PORT_NMI, PORT_SMI};
use super::code::{Blocks, assemble};
use super::long::{self, ioapic, lapic, out, start_64, surroundings};
use super::pair::{
    CODE, CODE_2, SHARED, STACK, STACK_2, TABLES, TRAMPOLINE, locked, send, trampoline_pieces,
};
use crate::guest::layout::PORT_ECHO;
use crate::guest::program::Assembled;
use iced_x86::code_asm::*;
use x86_arch::msr::IA32_SMBASE;

/// SMRAM: the first processor's two bases, and the second's.
const BASES: [u64; 3] = [SMRAM, SMRAM + 0x1000, SMRAM + 0x1_0000];
const SMRAM_SIZE: usize = 0x2_0000;
/// Where the handler counts, in its own memory.
const COUNT: u32 = SMRAM as u32 + 0x100;
/// Fields of the save area, from SMBASE (AMD APM vol. 2, table 10-1).
const AUTO_HALT: u32 = 0xfec9;
const BASE: u32 = 0xff00;

/// The handler: what it does depends on how often it ran.
fn handler() -> Vec<u8> {
    let make = || -> Assembled<Vec<u8>> {
        let mut a = CodeAssembler::new(16)?;
        // SMRAM is beyond 64 KiB: addresses are 32-bit.
        a.mov(edi, COUNT)?;
        a.inc(dword_ptr(edi))?;
        a.mov(ebx, dword_ptr(edi))?;
        a.mov(dx, u32::from(PORT_ECHO))?;
        a.out(dx, ax)?;
        a.in_(eax, dx)?;
        a.mov(dword_ptr(edi + 8), eax)?;
        a.mov(cx, 3)?;
        a.mov(si, 0x8000)?;
        a.rep().lodsb()?;
        // SMBASE, by the selector that the mode begins with.
        a.xor(eax, eax)?;
        a.mov(ax, cs)?;
        a.shl(eax, 4)?;
        a.mov(dword_ptr(edi + 12), eax)?;
        let mut next = a.create_label();
        // An SMI and an NMI that wait for RSM.
        a.cmp(bl, 2)?;
        a.jne(next)?;
        out_16(&mut a, PORT_SMI, 0)?;
        a.nop()?;
        out_16(&mut a, PORT_NMI, 0)?;
        a.nop()?;
        a.set_label(&mut next)?;
        let mut next = a.create_label();
        // SMBASE changes.
        a.cmp(bl, 4)?;
        a.jne(next)?;
        a.add(dword_ptr(eax + BASE), 0x1000)?;
        a.set_label(&mut next)?;
        let mut next = a.create_label();
        // The HLT is over.
        a.cmp(bl, 7)?;
        a.jne(next)?;
        a.mov(byte_ptr(eax + AUTO_HALT), 0)?;
        a.set_label(&mut next)?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        a.nop()?;
        a.and(al, 0xfe)?;
        a.mov(cr0, eax)?;
        a.rsm()?;
        a.assemble(0x8000)
    };
    make().expect("the handler assembles")
}

fn out_16(a: &mut CodeAssembler, port: u16, value: u32) -> Assembled {
    a.mov(dx, u32::from(port))?;
    a.mov(eax, value)?;
    a.out(dx, eax)
}

fn smram(handler: &[u8]) -> Option<Vec<u8>> {
    let mut memory = vec![0; SMRAM_SIZE];
    for base in BASES {
        let at = (base - SMRAM) as usize + 0x8000;
        memory[at..at + handler.len()].copy_from_slice(handler);
    }
    Some(memory)
}

fn smis(b: &mut Blocks) -> Assembled {
    b.block(|a| {
        out(a, PORT_SMI, 0)?;
        a.nop()?;
        // In the handler another comes, and an NMI.
        out(a, PORT_SMI, 0)?;
        a.nop()?;
        // Behind STI: the shadow is saved.
        a.sti()?;
        a.mov(edx, u32::from(PORT_SMI))?;
        a.xor(eax, eax)?;
        a.cli()?;
        a.sti()?;
        a.out(dx, eax)?;
        a.nop()?;
        a.mov(ecx, ss)?;
        a.mov(ss, ecx)?;
        a.out(dx, eax)?;
        a.cli()
    })?;
    // Inside an NMI's handler, which asks for it the first and every fourth time.
    b.block(|a| {
        for _ in 0..2 {
            out(a, PORT_NMI, 0)?;
            a.nop()?;
        }
        out(a, PORT_SMI, 0x100)?;
        for _ in 0..2 {
            out(a, PORT_NMI, 0)?;
            a.nop()?;
        }
        Ok(())
    })?;
    // From the IOAPIC's pin of the PIT, in HLT: back into HLT, then out of it, by the handler's word.
    b.block(|a| {
        lapic(a, 0xf0, 0x1ff)?;
        ioapic(a, 2, 0x200)?;
        lapic(a, 0x3e0, 0xb)?;
        lapic(a, 0x320, 0x70)?;
        for _ in 0..3 {
            lapic(a, 0x380, 200_007)?;
            for (port, value) in [(0x43, 0x30), (0x40, 0x50), (0x40, 0)] {
                a.mov(al, value)?;
                a.out(port, al)?;
            }
            a.sti()?;
            a.hlt()?;
            a.nop()?;
            a.cli()?;
        }
        Ok(())
    })?;
    // Single step over RSM, and an SMI with a fault.
    b.block(|a| {
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.out(dx, eax)?;
        out(a, PORT_SMI, 0)?;
        a.nop()?;
        a.pushfq()?;
        a.and(dword_ptr(rsp), -257)?;
        a.popfq()
    })?;
    b.block(|a| a.ud2())?;
    b.block(|a| {
        a.mov(ecx, 0x34)?;
        a.rdmsr()?;
        // There is no RSM outside.
        a.rsm()
    })
}

/// One processor in 64-bit mode.
pub fn smm() -> Plan {
    let mut p = long::plan("system-management mode", Controllers::Full, 1000, long::assemble(smis));
    p.smram = smram(&handler());
    p.vcpus[0].msrs = vec![(IA32_SMBASE, BASES[0])];
    p
}

/// The handler of the second processor takes a while.
fn slow_handler() -> Vec<u8> {
    let make = || -> Assembled<Vec<u8>> {
        let mut a = CodeAssembler::new(16)?;
        a.mov(edi, COUNT)?;
        a.inc(dword_ptr(edi))?;
        a.mov(cx, 30)?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.nop()?;
        a.loop_(wait)?;
        a.rsm()?;
        a.assemble(0x8000)
    };
    make().expect("the handler assembles")
}

/// Two processors: SMIs by IPI, to one that runs and one that halts, and an INIT for one in its handler.
pub fn smm_pair() -> Plan {
    const SMI: u32 = 0x4200;
    let first = assemble(64, CODE, 0, |b| {
        b.block(|a| {
            lapic(a, 0xf0, 0x1ff)?;
            let mut wait = a.create_label();
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(dword_ptr(SHARED + 24), 1)?;
            a.jne(wait)?;
            send(a, 1, SMI)?;
            locked(a)?;
            send(a, 0, SMI)?;
            locked(a)?;
            // It halts by now.
            pause(a, 60)?;
            send(a, 1, SMI)?;
            pause(a, 30)?;
            send(a, 1, 0x4078)?;
            pause(a, 30)?;
            // INIT inside the handler, then SIPI.
            send(a, 1, SMI)?;
            pause(a, 8)?;
            send(a, 1, 0x4500)?;
            pause(a, 40)?;
            send(a, 1, 0x4600 | (TRAMPOLINE >> 12) as u32)?;
            pause(a, 30)?;
            send(a, 1, SMI)?;
            pause(a, 60)?;
            locked(a)
        })
    });
    let second = assemble(64, CODE_2, 0, |b| {
        b.block(|a| {
            a.mov(eax, 0x10)?;
            a.mov(ss, eax)?;
            a.mov(esp, STACK_2 as u32)?;
            a.lidt(fword_ptr(TABLES + 0x10))?;
            lapic(a, 0xf0, 0x1ff)?;
            a.inc(dword_ptr(SHARED + 24))?;
            locked(a)?;
            a.sti()?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.pause()?;
            locked(a)?;
            a.hlt()?;
            a.jmp(again)
        })
    });
    let mut p =
        Plan::one("system-management mode, two processors", Controllers::Full, start_64(CODE, STACK), 0);
    p.vcpus[0].msrs = vec![(IA32_SMBASE, BASES[0])];
    let second_start = start_64(CODE_2, STACK_2);
    p.vcpus.push(Start { runs: true, msrs: vec![(IA32_SMBASE, BASES[2])], ..second_start });
    p.pieces = surroundings();
    p.pieces.extend([(CODE, first), (CODE_2, second)]);
    p.pieces.extend(trampoline_pieces());
    p.smram = smram(&slow_handler());
    p.slices = (0..90u64).map(|n| (n as usize & 1, 7 + (n * 29) % 31)).collect();
    p
}

fn pause(a: &mut CodeAssembler, count: u32) -> Assembled {
    a.mov(ecx, count)?;
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.pause()?;
    a.dec(ecx)?;
    a.jne(wait)
}
