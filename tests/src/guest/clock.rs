//! The guest's side of the clock checks: samples of kvmclock around marks at which the VMM looks at the host's.
//!
//! Nothing here is timed: the host's time at a mark must lie between the guest's times before and behind it.

use super::layout::*;
use super::program::{Assembled, Program};
use iced_x86::code_asm::*;

/// The MSRs of kvmclock: CPUID bit of 40000001H EAX, wall clock, system time (KVM msr.txt).
const PAIRS: [(u32, u32, u32); 2] = [(0, 0x11, 0x12), (3, 0x4b56_4d00, 0x4b56_4d01)];

/// Marks that the checks make: two for each pair of MSRs.
pub const MARKS: usize = 4;

/// Both pairs of MSRs.
pub fn checks(p: &mut Program) -> Assembled {
    for (pair, (bit, wall, system)) in PAIRS.into_iter().enumerate() {
        p.when((0x4000_0001, 0, 0, bit), |p| {
            enable(p, wall, system)?;
            for n in 0..2u64 {
                let at = SAMPLES + 32 * (2 * pair as u64 + n);
                p.a.mov(r15, at)?;
                sample(p)?;
                // Something that takes time, between the two.
                let mut spin = p.a.create_label();
                p.a.mov(ecx, 200_000)?;
                p.a.set_label(&mut spin)?;
                p.a.dec(ecx)?;
                p.a.jnz(spin)?;
            }
            p.a.mov(eax, dword_ptr(KVMCLOCK))?;
            p.a.and(eax, 1)?;
            p.check(&format!("kvmclock by MSR {system:#x}: the version is even"), 0)?;
            p.wrmsr(system, 0)
        })?;
    }
    Ok(())
}

fn enable(p: &mut Program, wall: u32, system: u32) -> Assembled {
    for at in [KVMCLOCK, WALL_CLOCK] {
        for n in 0..4 {
            p.a.mov(qword_ptr(at + 8 * n), 0)?;
        }
    }
    p.wrmsr(system, KVMCLOCK | 1)?;
    p.wrmsr(wall, WALL_CLOCK)
}

/// One mark, its samples at R15.
fn sample(p: &mut Program) -> Assembled {
    let a = &mut p.a;
    // The wall clock at kvmclock's zero, in nanoseconds.
    a.mov(eax, dword_ptr(WALL_CLOCK + 4))?;
    a.imul_3(rax, rax, 1_000_000_000)?;
    a.mov(ecx, dword_ptr(WALL_CLOCK + 8))?;
    a.add(rax, rcx)?;
    a.mov(qword_ptr(r15 + 16), rax)?;
    a.mov(rsi, KVMCLOCK)?;
    a.call(p.routines.kvmclock)?;
    p.a.mov(qword_ptr(r15), rax)?;
    p.a.rdtsc()?;
    p.a.shl(rdx, 32)?;
    p.a.or(rax, rdx)?;
    p.a.mov(qword_ptr(r15 + 24), rax)?;
    p.out32(PORT_CLOCK, 0)?;
    p.a.mov(rsi, KVMCLOCK)?;
    p.a.call(p.routines.kvmclock)?;
    p.a.mov(qword_ptr(r15 + 8), rax)
}

/// Only marks, four of them, into the samples; the VMM decides how long each takes.
pub fn marks_only(p: &mut Program) -> Assembled {
    let mut old = p.a.create_label();
    let mut enabled = p.a.create_label();
    p.a.mov(eax, 0x4000_0001)?;
    p.a.cpuid()?;
    p.a.bt(eax, 3)?;
    p.a.jnc(old)?;
    enable(p, PAIRS[1].1, PAIRS[1].2)?;
    p.a.jmp(enabled)?;
    p.a.set_label(&mut old)?;
    enable(p, PAIRS[0].1, PAIRS[0].2)?;
    p.a.set_label(&mut enabled)?;
    for n in 0..MARKS as u64 {
        p.a.mov(r15, SAMPLES + 32 * n)?;
        sample(p)?;
    }
    p.out32(PORT_DONE, 0)
}
