//! The guest's checks of interrupts: PICs and PIT, IOAPIC, the local APIC's timer and priorities, NMI.

use super::layout::*;
use super::program::{Assembled, Program};
use iced_x86::code_asm::*;

const LVT_TIMER: u64 = 0x320;
const INITIAL_COUNT: u64 = 0x380;
const DIVIDE: u64 = 0x3e0;
const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 2 << 17;
const TO_SELF: u32 = 1 << 18;
const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// All of them.
pub fn checks(p: &mut Program) -> Assembled {
    pic_and_pit(p)?;
    ioapic(p)?;
    timer(p)?;
    priorities(p)?;
    shadow(p)?;
    nmi(p)?;
    from_user_mode(p)
}

fn out8(p: &mut Program, port: u32, value: u32) -> Assembled {
    p.a.mov(al, value)?;
    p.a.out(port, al)
}

/// Channel 0, mode 2, this many ticks of 838 ns.
fn start_pit(p: &mut Program, ticks: u16) -> Assembled {
    out8(p, 0x43, 0x34)?;
    out8(p, 0x40, u32::from(ticks & 0xff))?;
    out8(p, 0x40, u32::from(ticks >> 8))
}

fn pic_and_pit(p: &mut Program) -> Assembled {
    for (port, value) in [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, u32::from(VECTOR_PIC)),
        (0xa1, u32::from(VECTOR_PIC) + 8),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, 0xfe),
        (0xa1, 0xff),
    ] {
        out8(p, port, value)?;
    }
    // The IOAPIC's pins are masked at reset, so IRQ 0 comes by the PIC alone.
    p.forget(VECTOR_PIC)?;
    start_pit(p, 1193)?;
    p.halt_until(VECTOR_PIC, 5)?;
    p.count(VECTOR_PIC)?;
    p.check_least("PIT by the PIC", 5)?;
    // A line of the second PIC, by the VMM: IRQ 10.
    out8(p, 0x21, 0xfb)?;
    out8(p, 0xa1, 0xfb)?;
    p.breathe()?;
    p.forget(VECTOR_PIC + 10)?;
    p.out32(PORT_IRQ, 10 | 1 << 16)?;
    p.out32(PORT_IRQ, 10)?;
    p.halt_until(VECTOR_PIC + 10, 1)?;
    p.count(VECTOR_PIC + 10)?;
    p.check("IRQ 10 by both PICs", 1)?;
    // Masked: requested, not delivered.
    out8(p, 0xa1, 0xff)?;
    p.out32(PORT_IRQ, 10 | 1 << 16)?;
    p.out32(PORT_IRQ, 10)?;
    p.breathe()?;
    p.count(VECTOR_PIC + 10)?;
    p.check("IRQ 10 masked", 1)?;
    p.a.mov(al, 0xff)?;
    p.a.out(0x21, al)
}

fn ioapic(p: &mut Program) -> Assembled {
    // Pin 10: edge, vector 41H, to APIC 0. Pin 11: level.
    p.ioapic_write(0x10 + 2 * 10 + 1, 0)?;
    p.ioapic_write(0x10 + 2 * 10, u32::from(VECTOR_EDGE))?;
    p.forget(VECTOR_EDGE)?;
    for _ in 0..2 {
        p.out32(PORT_IRQ, 10 | 1 << 16)?;
        p.breathe()?;
        p.out32(PORT_IRQ, 10)?;
    }
    p.halt_until(VECTOR_EDGE, 2)?;
    p.count(VECTOR_EDGE)?;
    p.check("IOAPIC: two edges", 2)?;
    p.ioapic_write(0x10 + 2 * 10, MASKED)?;
    p.out32(PORT_IRQ, 10 | 1 << 16)?;
    p.out32(PORT_IRQ, 10)?;
    p.breathe()?;
    p.count(VECTOR_EDGE)?;
    p.check("IOAPIC: a masked edge", 2)?;
    // Level: comes again at EOI while the line is up; the handler lowers it at the second time.
    p.ioapic_write(0x10 + 2 * 11 + 1, 0)?;
    p.ioapic_write(0x10 + 2 * 11, u32::from(VECTOR_LEVEL) | 1 << 15)?;
    p.forget(VECTOR_LEVEL)?;
    p.out32(PORT_IRQ, 11 | 1 << 16)?;
    p.halt_until(VECTOR_LEVEL, 2)?;
    p.breathe()?;
    p.count(VECTOR_LEVEL)?;
    p.check("IOAPIC: a level, until it falls", 2)?;
    // The PIT is GSI 0, and without a routing of the VMM's that is pin 0.
    p.ioapic_write(0x11, 0)?;
    p.ioapic_write(0x10, u32::from(VECTOR_EDGE))?;
    p.forget(VECTOR_EDGE)?;
    start_pit(p, 1193)?;
    p.halt_until(VECTOR_EDGE, 3)?;
    p.ioapic_write(0x10, MASKED)?;
    p.count(VECTOR_EDGE)?;
    p.check_least("PIT by the IOAPIC", 3)
}

fn timer(p: &mut Program) -> Assembled {
    p.forget(VECTOR_TIMER)?;
    p.lapic_write(DIVIDE, 0xb)?;
    p.lapic_write(LVT_TIMER, u32::from(VECTOR_TIMER))?;
    p.lapic_write(INITIAL_COUNT, 500_000)?;
    p.halt_until(VECTOR_TIMER, 1)?;
    p.lapic_read(0x390)?;
    p.check("local APIC timer: one shot: the count is 0", 0)?;
    p.breathe()?;
    p.count(VECTOR_TIMER)?;
    p.check("local APIC timer: one shot", 1)?;
    p.lapic_write(LVT_TIMER, u32::from(VECTOR_TIMER) | PERIODIC)?;
    p.lapic_write(INITIAL_COUNT, 500_000)?;
    p.halt_until(VECTOR_TIMER, 5)?;
    p.lapic_write(INITIAL_COUNT, 0)?;
    p.breathe()?;
    p.count(VECTOR_TIMER)?;
    p.check_least("local APIC timer: periodic", 5)?;
    p.when((1, 0, 2, 24), |p| {
        p.forget(VECTOR_TIMER)?;
        p.lapic_write(LVT_TIMER, u32::from(VECTOR_TIMER) | TSC_DEADLINE)?;
        p.a.mfence()?;
        p.a.rdtsc()?;
        p.a.add(eax, 2_000_000)?;
        p.a.adc(edx, 0)?;
        p.a.mov(r12d, eax)?;
        p.a.mov(r13d, edx)?;
        p.a.mov(ecx, IA32_TSC_DEADLINE)?;
        p.a.wrmsr()?;
        p.halt_until(VECTOR_TIMER, 1)?;
        p.a.rdtsc()?;
        p.a.shl(rdx, 32)?;
        p.a.or(rax, rdx)?;
        p.a.shl(r13, 32)?;
        p.a.or(r13, r12)?;
        p.a.cmp(rax, r13)?;
        p.a.setae(al)?;
        p.a.movzx(eax, al)?;
        p.check("TSC deadline: not before its time", 1)?;
        p.rdmsr(IA32_TSC_DEADLINE)?;
        p.check("TSC deadline: reads 0 once it has fired", 0)?;
        // Disarmed by 0.
        p.a.rdtsc()?;
        p.a.add(edx, 1)?;
        p.a.mov(ecx, IA32_TSC_DEADLINE)?;
        p.a.wrmsr()?;
        p.wrmsr(IA32_TSC_DEADLINE, 0)?;
        p.rdmsr(IA32_TSC_DEADLINE)?;
        p.check("TSC deadline: disarmed", 0)?;
        p.breathe()?;
        p.count(VECTOR_TIMER)?;
        p.check("TSC deadline: once", 1)
    })?;
    p.lapic_write(LVT_TIMER, MASKED)
}

fn priorities(p: &mut Program) -> Assembled {
    p.forget(VECTOR_IPI)?;
    p.forget(VECTOR_HIGH)?;
    // CR8 4 holds 43H back, and not 51H.
    p.a.mov(eax, 4)?;
    p.a.mov(cr8, rax)?;
    p.lapic_read(0x80)?;
    p.check("CR8 is the TPR", 0x40)?;
    p.lapic_write(ICR, u32::from(VECTOR_IPI) | TO_SELF)?;
    p.lapic_write(ICR, u32::from(VECTOR_HIGH) | TO_SELF)?;
    p.breathe()?;
    p.count(VECTOR_IPI)?;
    p.check("a TPR holds back", 0)?;
    p.count(VECTOR_HIGH)?;
    p.check("a higher class passes", 1)?;
    p.lapic_read(0x200 + 0x10 * u64::from(VECTOR_IPI / 32))?;
    p.check("IRR has what waits", 1 << (VECTOR_IPI % 32))?;
    p.a.sti()?;
    p.a.xor(eax, eax)?;
    p.a.mov(cr8, rax)?;
    p.a.nop()?;
    p.a.cli()?;
    p.count(VECTOR_IPI)?;
    p.check("a lower TPR lets it in", 1)?;
    // The same vector twice while it waits is one.
    p.lapic_write(ICR, u32::from(VECTOR_IPI) | TO_SELF)?;
    p.lapic_write(ICR, u32::from(VECTOR_IPI) | TO_SELF)?;
    p.breathe()?;
    p.count(VECTOR_IPI)?;
    p.check("two requests of one vector are one", 2)
}

fn shadow(p: &mut Program) -> Assembled {
    // The instruction behind STI is executed before the interrupt is taken.
    p.forget(VECTOR_IPI)?;
    p.lapic_write(ICR, u32::from(VECTOR_IPI) | TO_SELF)?;
    p.a.sti()?;
    p.a.mov(rbx, qword_ptr(COUNTS + 8 * u64::from(VECTOR_IPI)))?;
    p.a.mov(rsi, qword_ptr(COUNTS + 8 * u64::from(VECTOR_IPI)))?;
    p.a.cli()?;
    p.a.lea(rax, ptr(rsi * 2))?;
    p.a.add(rax, rbx)?;
    p.check("the shadow of STI is one instruction", 2)?;
    // STI, HLT with an interrupt waiting: it must wake.
    p.lapic_write(ICR, u32::from(VECTOR_IPI) | TO_SELF)?;
    p.a.sti()?;
    p.a.hlt()?;
    p.a.cli()?;
    p.count(VECTOR_IPI)?;
    p.check("STI, HLT with an interrupt waiting", 2)
}

fn nmi(p: &mut Program) -> Assembled {
    p.forget(2)?;
    p.lapic_write(ICR_HIGH, 0)?;
    p.lapic_write(ICR, 4 << 8)?;
    p.a.nop()?;
    p.a.nop()?;
    p.count(2)?;
    p.check("an NMI to itself, with interrupts off", 1)?;
    p.a.mov(rax, qword_ptr(F_HANDLER_RSP))?;
    p.check("NMI is on IST 2", IST2 - 8 * 5)
}

fn from_user_mode(p: &mut Program) -> Assembled {
    p.forget(VECTOR_IPI)?;
    let at = p.user_code(64, |a| {
        a.nop()?;
        a.nop()?;
        a.int(i32::from(VECTOR_USER))
    })?;
    p.lapic_write(ICR, u32::from(VECTOR_IPI) | TO_SELF)?;
    p.in_user_mode(at, USER_CS, true)?;
    p.seen("INT 80H behind an interrupt", VECTOR_USER, 0)?;
    p.count(VECTOR_IPI)?;
    p.check("an interrupt in user mode", 1)
}

/// The same local APIC by MSRs. Last: MMIO does not reach it any more.
pub fn x2apic(p: &mut Program) -> Assembled {
    p.when((1, 0, 2, 21), |p| {
        p.rdmsr(0x1b)?;
        p.a.or(rax, 0x400)?;
        p.a.mov(rdx, rax)?;
        p.a.shr(rdx, 32)?;
        p.a.mov(ecx, 0x1b)?;
        p.a.wrmsr()?;
        p.rdmsr(0x802)?;
        p.check("x2APIC: ID", 0)?;
        p.rdmsr(0x803)?;
        p.a.and(eax, 0xff)?;
        p.check_least("x2APIC: version", 0x10)?;
        // SELF IPI; the handler's EOI goes by MMIO and nowhere, so the EOI comes here.
        p.forget(VECTOR_IPI)?;
        p.wrmsr(0x83f, u64::from(VECTOR_IPI))?;
        p.breathe()?;
        p.wrmsr(0x80b, 0)?;
        p.count(VECTOR_IPI)?;
        p.check("x2APIC: self IPI", 1)?;
        p.fault("x2APIC: a reserved register", (13, 0), |p| p.a.mov(ecx, 0x831), |a| a.rdmsr())
    })
}
