//! What KVM adds to the processor (KVM msr.txt, hypercalls.txt): the areas in guest memory, the hypercalls, the exits for them; and the exits
//! that the split controllers make for the IOAPIC outside.

use super::super::machine::{Controllers, Plan, Start};
use super::super::outside::PORT_MSI;
use super::code::{Blocks, assemble};
use super::long::{self, PV_EOI, lapic, out, start_64, surroundings, wrmsr};
use super::pair::{CODE, CODE_2, SHARED, STACK, STACK_2, locked};
use crate::guest::layout::PORT_IRQ;
use crate::guest::program::Assembled;
use iced_x86::code_asm::*;
use kvm_api::uapi::*;
use x86_arch::msr;

/// The processors' areas, 100H bytes each: steal time, kvmclock and where it moves to, wall clock, clock pairing.
const AREAS: u64 = 0x2_a000;
const CLOCK: u64 = 0x40;
const CLOCK_MOVED: u64 = 0x80;
const WALL_CLOCK: u64 = 0xa0;
const PAIRING: u64 = 0xc0;

/// A hypercall; RSI, RBX, RCX and RDX are its arguments' registers.
fn hypercall(a: &mut CodeAssembler, nr: u32, args: [u64; 4]) -> Assembled {
    a.mov(eax, nr)?;
    a.mov(rbx, args[0])?;
    a.mov(rcx, args[1])?;
    a.mov(rdx, args[2])?;
    a.mov(rsi, args[3])?;
    a.vmcall()
}

/// Both processors, each with its own areas.
fn both(b: &mut Blocks, me: u64) -> Assembled {
    let area = AREAS + 0x100 * me;
    b.block(|a| {
        lapic(a, 0xf0, 0x1ff)?;
        lapic(a, 0x320, 0xa0 + me as u32)?;
        lapic(a, 0x3e0, 1)?;
        wrmsr(a, msr::KVM_STEAL_TIME, area | 1)?;
        wrmsr(a, msr::KVM_PV_EOI_EN, (PV_EOI + 4 * me) | 1)?;
        wrmsr(a, msr::KVM_WALL_CLOCK_NEW, area + WALL_CLOCK)?;
        wrmsr(a, msr::KVM_SYSTEM_TIME_NEW, (area + CLOCK) | 1)?;
        wrmsr(a, msr::KVM_POLL_CONTROL, 0)?;
        locked(a)
    })?;
    b.block(|a| {
        a.mov(eax, dword_ptr(area + 8))?;
        a.mov(rax, qword_ptr(area + CLOCK + 8))?;
        a.sti()?;
        // An interrupt that ends by PV EOI, and two of which the first cannot.
        lapic(a, 0x380, 20)?;
        for _ in 0..30 {
            a.inc(rax)?;
        }
        hypercall(a, 10, [3, 0, 0, 0xa0 + me])?;
        a.nop()?;
        locked(a)?;
        a.cli()?;
        hypercall(a, 10, [1 << me, 0, 0, 0xa0 + me])?;
        hypercall(a, 10, [3, 0, 0, 0x79])?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        locked(a)?;
        a.cli()
    })?;
    b.block(|a| {
        // The area moves; the old clock's number; the clock off and on.
        wrmsr(a, msr::KVM_SYSTEM_TIME_NEW, (area + CLOCK_MOVED) | 1)?;
        a.mov(rax, qword_ptr(area + CLOCK_MOVED + 16))?;
        wrmsr(a, msr::KVM_SYSTEM_TIME, (area + CLOCK) | 1)?;
        a.mov(rax, qword_ptr(area + CLOCK + 16))?;
        wrmsr(a, msr::KVM_SYSTEM_TIME, 0)?;
        a.nop()?;
        wrmsr(a, msr::KVM_SYSTEM_TIME_NEW, (area + CLOCK_MOVED) | 1)?;
        wrmsr(a, msr::KVM_WALL_CLOCK, area + WALL_CLOCK)?;
        hypercall(a, 9, [area + PAIRING, 0, 0, 0])?;
        a.mov(rax, qword_ptr(area + PAIRING + 16))?;
        // Steal time off and on, without and with a flush that is asked for.
        wrmsr(a, msr::KVM_STEAL_TIME, 0)?;
        a.mov(qword_ptr(area + 16), 0)?;
        wrmsr(a, msr::KVM_STEAL_TIME, area | 1)?;
        a.nop()?;
        wrmsr(a, msr::KVM_PV_EOI_EN, 0)?;
        a.nop()?;
        wrmsr(a, msr::KVM_PV_EOI_EN, (PV_EOI + 4 * me) | 1)
    })?;
    // What is refused.
    for (index, value) in [
        (msr::KVM_STEAL_TIME, area | 3),
        (msr::KVM_PV_EOI_EN, 0x7f_0000_0001),
        (msr::KVM_SYSTEM_TIME_NEW, 0x7f_0000_0001),
        (msr::KVM_ASYNC_PF_EN, area | 1),
        (msr::KVM_ASYNC_PF_INT, 0xa0),
        (msr::KVM_ASYNC_PF_ACK, 1),
    ] {
        b.block(|a| wrmsr(a, index, value))?;
    }
    b.block(|a| {
        hypercall(a, 11, [1 - me, 0, 0, 0])?;
        hypercall(a, 99, [1, 2, 3, 4])?;
        hypercall(a, 1, [0; 4])
    })
}

/// Two processors with steal time, PV EOI, both kvmclocks, IPIs and kicks by hypercall.
pub fn paravirtual() -> Plan {
    let first = assemble(64, CODE, 0, |b| {
        both(b, 0)?;
        b.block(|a| {
            let mut wait = a.create_label();
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(dword_ptr(SHARED + 24), 0)?;
            a.je(wait)?;
            for _ in 0..50 {
                a.pause()?;
            }
            // It halts with its interrupts off.
            hypercall(a, 5, [0, 1, 0, 0])?;
            locked(a)?;
            for _ in 0..50 {
                a.pause()?;
            }
            locked(a)
        })
    });
    let second = assemble(64, CODE_2, 0, |b| {
        both(b, 1)?;
        b.block(|a| {
            a.cli()?;
            a.mov(dword_ptr(SHARED + 24), 1)?;
            a.hlt()?;
            a.nop()?;
            locked(a)?;
            a.mov(eax, dword_ptr(AREAS + 0x100))
        })
    });
    let mut p = Plan::one("paravirtual, two processors", Controllers::Full, start_64(CODE, STACK), 0);
    p.vcpus.push(Start { runs: true, ..start_64(CODE_2, STACK_2) });
    p.pieces = surroundings();
    p.pieces.extend([(CODE, first), (CODE_2, second)]);
    p.slices = (0..70u64).map(|n| (n as usize & 1, 7 + (n * 29) % 31)).collect();
    p
}

/// Hypercalls that exit (KVM_CAP_EXIT_HYPERCALL), in the form of either vendor; from level 3.
pub fn hypercalls() -> Plan {
    let code = long::assemble(|b| {
        b.block(|a| {
            hypercall(a, 12, [0x2_0000, 4, 0x10, 7])?;
            a.mov(r8, rax)?;
            a.nop()?;
            a.mov(eax, 12)?;
            a.vmmcall()?;
            a.mov(r9, rax)?;
            // Not a page, no pages.
            hypercall(a, 12, [0x2_0001, 4, 0, 0])?;
            hypercall(a, 12, [0x2_0000, 0, 0, 0])?;
            // A pending trap behind it.
            a.pushfq()?;
            a.or(dword_ptr(rsp), 0x100)?;
            a.popfq()?;
            hypercall(a, 12, [0x3_0000, 1, 0, 0])?;
            a.nop()?;
            a.pushfq()?;
            a.and(dword_ptr(rsp), -257)?;
            a.popfq()?;
            a.sti()?;
            a.mov(eax, 12)?;
            a.vmcall()?;
            a.cli()
        })
    });
    let mut p = long::plan("hypercalls", Controllers::Full, 100_000, code);
    p.caps = vec![(KVM_CAP_EXIT_HYPERCALL, 1 << 12)];
    p.exception_payload = true;
    p
}

/// KVM_EXIT_IOAPIC_EOI: level-triggered messages for the IOAPIC outside.
pub fn eoi_exits() -> Plan {
    let level = |vector: u32| 1 << 16 | vector;
    let code = long::assemble(|b| {
        b.block(|a| {
            lapic(a, 0xf0, 0x1ff)?;
            a.sti()?;
            out(a, PORT_MSI, level(0x65))?;
            a.nop()?;
            // One on the other.
            a.cli()?;
            out(a, PORT_MSI, level(0x66))?;
            out(a, PORT_MSI, level(0x76))?;
            out(a, PORT_MSI, 0x77)?;
            a.sti()?;
            a.nop()?;
            a.cli()?;
            // By the line, and a vector that no line has.
            out(a, PORT_IRQ, 9 | 1 << 16)?;
            out(a, PORT_MSI, level(0x91))?;
            a.sti()?;
            a.nop()?;
            a.cli()?;
            // In x2APIC mode; a task priority that holds it off.
            wrmsr(a, 0x1b, 0xfee0_0d00)?;
            wrmsr(a, 0x808, 0xf0)?;
            out(a, PORT_MSI, level(0x67))?;
            a.sti()?;
            a.nop()?;
            wrmsr(a, 0x808, 0)?;
            a.nop()?;
            a.hlt()
        })
    });
    let mut p = long::plan("EOI exits", Controllers::Split, 400, code);
    p.level_routes = 24;
    p
}
