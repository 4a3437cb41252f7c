//! The guest's second processor: its start, and what two processors do to one memory.

use super::layout::*;
use super::program::{Assembled, Program};
use iced_x86::code_asm::*;

const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
/// Rounds of each contest.
const ROUNDS: u64 = 20_000;
/// Rounds of the shoot-down.
const SHOTS: i32 = 50;

/// What the second processor can be told.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Command {
    Count = 1,
    Exchange,
    Split,
    Locked,
    Pair,
    Look,
    Halt,
    Leave,
}

const CONTESTS: [(Command, &str, u64); 5] = [
    (Command::Count, "LOCK INC and LOCK XADD by two processors", SHARED),
    (Command::Exchange, "CMPXCHG by two processors", SHARED + 8),
    (Command::Split, "LOCK ADD across a cache line by two processors", SPLIT),
    (Command::Locked, "a counter under a lock of XCHG", SHARED + 16),
    (Command::Pair, "CMPXCHG16B by two processors", PAIR),
];

/// All of them.
pub fn checks(p: &mut Program) -> Assembled {
    start(p)?;
    for (command, name, counter) in CONTESTS {
        tell(p, command)?;
        contest(p, command)?;
        wait_done(p)?;
        p.check_at(name, counter, 2 * ROUNDS)?;
        if matches!(command, Command::Count) {
            p.check_at("LOCK XADD by two processors", SHARED + 24, 2 * ROUNDS)?;
        }
        if matches!(command, Command::Pair) {
            p.check_at("CMPXCHG16B: the other half", PAIR + 8, 0u64.wrapping_sub(2 * ROUNDS))?;
        }
    }
    shoot_down(p)?;
    // An IPI wakes it from HLT; it answers with one of its own.
    tell(p, Command::Halt)?;
    p.forget(VECTOR_HIGH)?;
    let mut ready = p.a.create_label();
    p.a.set_label(&mut ready)?;
    p.a.pause()?;
    p.a.cmp(qword_ptr(SAW_2), -1)?;
    p.a.jne(ready)?;
    send(p, u32::from(VECTOR_IPI))?;
    p.halt_until(VECTOR_HIGH, 1)?;
    wait_done(p)?;
    p.count(VECTOR_HIGH)?;
    p.check("an IPI to a halted processor, and one back", 1)?;
    p.a.mov(qword_ptr(COMMAND), Command::Leave as i32)
}

fn send(p: &mut Program, low: u32) -> Assembled {
    p.lapic_write(ICR_HIGH, 1 << 24)?;
    p.lapic_write(ICR, low)
}

fn start(p: &mut Program) -> Assembled {
    let (mut up, mut delay) = (p.a.create_label(), p.a.create_label());
    // INIT (assert, level), SIPI, SIPI: vol. 3A, 8.4.4.1. The second SIPI finds it running and does nothing.
    send(p, 0x4500)?;
    p.a.mov(ecx, 1000)?;
    p.a.set_label(&mut delay)?;
    p.a.pause()?;
    p.a.dec(ecx)?;
    p.a.jnz(delay)?;
    send(p, 0x4600 | (TRAMPOLINE >> 12) as u32)?;
    send(p, 0x4600 | (TRAMPOLINE >> 12) as u32)?;
    p.a.set_label(&mut up)?;
    p.a.pause()?;
    p.a.cmp(qword_ptr(READY_2), 0)?;
    p.a.je(up)?;
    p.check_at("the second processor is up, once", READY_2, 1)?;
    p.check_at("its APIC ID", ID_2, 1)?;
    p.a.mov(eax, dword_ptr(STARTED))?;
    p.check("two came over the trampoline", 2)
}

fn tell(p: &mut Program, command: Command) -> Assembled {
    p.a.mov(qword_ptr(COMMAND), command as i32)
}

fn wait_done(p: &mut Program) -> Assembled {
    let mut again = p.a.create_label();
    p.a.set_label(&mut again)?;
    p.a.pause()?;
    p.a.cmp(qword_ptr(COMMAND), 0)?;
    p.a.jne(again)
}

/// The loop that both processors run.
fn contest(p: &mut Program, command: Command) -> Assembled {
    let a = &mut p.a;
    let (mut round, mut again) = (a.create_label(), a.create_label());
    a.mov(r10d, ROUNDS as u32)?;
    a.set_label(&mut round)?;
    match command {
        Command::Count => {
            a.lock().inc(qword_ptr(SHARED))?;
            a.mov(eax, 1)?;
            a.lock().xadd(qword_ptr(SHARED + 24), rax)?;
        }
        Command::Exchange => {
            a.mov(rax, qword_ptr(SHARED + 8))?;
            a.set_label(&mut again)?;
            a.lea(rdx, ptr(rax + 1))?;
            a.lock().cmpxchg(qword_ptr(SHARED + 8), rdx)?;
            a.jne(again)?;
        }
        Command::Split => a.lock().add(qword_ptr(SPLIT), 1)?,
        Command::Locked => {
            a.mov(eax, 1)?;
            a.set_label(&mut again)?;
            a.pause()?;
            a.xchg(qword_ptr(LOCK), rax)?;
            a.test(eax, eax)?;
            a.jnz(again)?;
            a.inc(qword_ptr(SHARED + 16))?;
            a.mov(qword_ptr(LOCK), 0)?;
        }
        Command::Pair => {
            a.mov(rax, qword_ptr(PAIR))?;
            a.mov(rdx, qword_ptr(PAIR + 8))?;
            a.set_label(&mut again)?;
            a.lea(rbx, ptr(rax + 1))?;
            a.lea(rcx, ptr(rdx - 1))?;
            a.lock().cmpxchg16b(ptr(PAIR))?;
            a.jne(again)?;
        }
        _ => {}
    }
    a.dec(r10d)?;
    a.jnz(round)
}

/// Page 20 of the window goes from one frame to another; the second processor, told by an IPI, must see each.
fn shoot_down(p: &mut Program) -> Assembled {
    let (first, second) = (FRAMES + 0x5000, FRAMES + 0x6000);
    let page = WINDOW + 20 * 0x1000;
    p.a.mov(qword_ptr(first), 0x111)?;
    p.a.mov(qword_ptr(second), 0x222)?;
    p.map(20, first | 3)?;
    p.a.xor(r12d, r12d)?; // mistakes
    p.a.mov(r13d, SHOTS)?;
    p.a.mov(r14d, 0x111)?;
    let (mut again, mut right, mut shot) = (p.a.create_label(), p.a.create_label(), p.a.create_label());
    p.a.set_label(&mut again)?;
    tell(p, Command::Look)?;
    wait_done(p)?;
    p.a.cmp(qword_ptr(SAW_2), r14)?;
    p.a.je(right)?;
    p.a.inc(r12)?;
    p.a.set_label(&mut right)?;
    p.a.xor(r14d, 0x333)?;
    p.a.xor(qword_ptr(WINDOW_PT + 8 * 20), ((first ^ second) as u32) as i32)?;
    p.a.and(qword_ptr(WINDOW_PT + 8 * 20), !0x60)?;
    p.a.mov(rax, page)?;
    p.a.invlpg(ptr(rax))?;
    p.a.mov(rbx, qword_ptr(SHOT))?;
    send(p, u32::from(VECTOR_SHOOT))?;
    p.a.set_label(&mut shot)?;
    p.a.pause()?;
    p.a.cmp(qword_ptr(SHOT), rbx)?;
    p.a.je(shot)?;
    p.a.dec(r13d)?;
    p.a.jnz(again)?;
    p.a.mov(rax, r12)?;
    p.check("TLB shoot-down by IPI: stale reads", 0)?;
    p.check_at("TLB shoot-down by IPI: acknowledged", SHOT, SHOTS as u64)
}

/// The second processor's life.
pub fn second(p: &mut Program) -> Assembled {
    let mut entry = p.routines.second;
    let mut idle = p.a.create_label();
    p.a.set_label(&mut entry)?;
    p.a.mov(rsp, STACK_2)?;
    p.a.lidt(ptr(IDTR))?;
    p.a.mov(eax, TSS_SELECTOR_2)?;
    p.a.ltr(ax)?;
    p.lapic_write(0xf0, 0x1ff)?;
    p.lapic_read(0x20)?;
    p.a.shr(eax, 24)?;
    p.a.mov(qword_ptr(ID_2), rax)?;
    p.a.lock().inc(qword_ptr(READY_2))?;
    p.a.sti()?;
    p.a.set_label(&mut idle)?;
    p.a.pause()?;
    p.a.mov(rax, qword_ptr(COMMAND))?;
    p.a.test(eax, eax)?;
    p.a.jz(idle)?;
    for (command, ..) in CONTESTS {
        dispatch(p, command, idle, |p| contest(p, command))?;
    }
    dispatch(p, Command::Look, idle, |p| {
        p.a.mov(rax, WINDOW + 20 * 0x1000)?;
        p.a.mov(rax, qword_ptr(rax))?;
        p.a.mov(qword_ptr(SAW_2), rax)
    })?;
    dispatch(p, Command::Halt, idle, |p| {
        // Interrupts are off when it says that it is about to halt: the IPI cannot come too early.
        p.a.cli()?;
        p.a.mov(qword_ptr(SAW_2), -1)?;
        p.a.sti()?;
        p.a.hlt()?;
        p.lapic_write(ICR_HIGH, 0)?;
        p.lapic_write(ICR, u32::from(VECTOR_HIGH))
    })?;
    p.out32(PORT_DONE, 1)?;
    let mut end = p.a.create_label();
    p.a.set_label(&mut end)?;
    p.a.cli()?;
    p.a.hlt()?;
    p.a.jmp(end)
}

fn dispatch(
    p: &mut Program,
    command: Command,
    idle: CodeLabel,
    body: impl FnOnce(&mut Program) -> Assembled,
) -> Assembled {
    let mut next = p.a.create_label();
    p.a.cmp(eax, command as i32)?;
    p.a.jne(next)?;
    body(p)?;
    p.a.mov(qword_ptr(COMMAND), 0)?;
    p.a.jmp(idle)?;
    p.a.set_label(&mut next)?;
    p.a.nop()
}
