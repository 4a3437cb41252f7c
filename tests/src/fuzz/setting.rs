//! What a random guest has besides its code: interrupt controllers and a timer inside, numbers that trap, control bits,
//! events from outside. Not memory and tables, which [`super::environment`] makes.

use super::environment::{CODE, DATA, Mode, SLOTS};
use super::random::Random;
use super::stream::SLOT;
use emu_core::irqchip::SourceId;
use emu_core::irqchip::routing::Msi;
use emu_core::{Host, Processor, Vcpu, Vm};
use std::sync::atomic::{AtomicU64, Ordering};
use x86_arch::control::{Cr0, Cr4, Dr7};
use x86_arch::cpuid;
use x86_arch::{Gpr, Rflags};

/// What is chosen for a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    /// PICs, I/O APIC, local APIC and PIT are inside; interrupts are on, and come.
    pub irqchip: bool,
    /// Vector and x87 registers hold numbers of every kind, and exceptions are unmasked.
    pub numbers: bool,
    /// Control and debug registers, flags and MSR numbers other than the plain ones.
    pub controls: bool,
}

impl Setting {
    /// Each on its own.
    pub fn choose(random: &mut Random) -> Setting {
        Setting { irqchip: random.one_in(3), numbers: random.one_in(2), controls: random.one_in(3) }
    }

    /// Before the vCPU is made.
    pub fn prepare(self, vm: &Vm) {
        if self.irqchip {
            vm.create_irqchip(false);
            vm.with_irqchip(|c| c.create_pit());
        }
    }

    /// Changes a vCPU at the start of a case.
    pub fn apply(self, v: &mut Vcpu, mode: Mode, random: &mut Random) {
        if self.numbers {
            numbers(v, random);
        }
        if self.controls {
            controls(v, mode, random);
        }
        if self.irqchip {
            devices(v, mode, random);
        }
    }

    /// Something from outside, now and then: a line, a message, an NMI.
    pub fn disturb(self, processor: &mut Processor, random: &mut Random) {
        if !self.irqchip || !random.one_in(16) {
            return;
        }
        let vm = processor.vcpu.vm.clone();
        match random.below(4) {
            0 => processor.vcpu.user_nmi(),
            1 => {
                vm.signal_msi(&Msi {
                    address_lo: 0xfee0_0000 | random.next() as u32 & 0xf_f00c,
                    address_hi: 0,
                    data: random.next() as u32 & 0xc7ff,
                });
            }
            _ => {
                let gsi = random.below(24) as u32;
                vm.set_irq_line(gsi, SourceId::USERSPACE, random.one_in(2));
            }
        }
    }
}

/// Time that goes on by 100 ns a look, and jumps to where a halted vCPU has something to do.
#[derive(Default)]
pub struct JumpingHost(AtomicU64);

impl Host for JumpingHost {
    fn tsc(&self, _: u64) -> u64 {
        self.0.fetch_add(100, Ordering::Relaxed)
    }
    fn tsc_khz(&self) -> u32 {
        1_000_000
    }
    fn monotonic_ns(&self, retired: u64) -> u64 {
        self.tsc(retired)
    }
    fn realtime_ns(&self, retired: u64) -> u64 {
        self.tsc(retired)
    }
    fn random(&self) -> u64 {
        4
    }
    fn skip_to(&self, deadline_ns: u64) -> bool {
        self.0.fetch_max(deadline_ns, Ordering::Relaxed);
        true
    }
}

/// A double of a kind that exceptions are made of.
fn number(random: &mut Random) -> u64 {
    let sign = random.next() & 1 << 63;
    let fraction = random.next() >> 12;
    sign | match random.below(8) {
        0 => 0,
        1 => fraction | 1,
        2 => 0x7ff << 52,
        3 => 0x7ff << 52 | fraction | 1,
        4 => 0x7fe << 52 | fraction,
        5 => 1 << 52 | fraction,
        6 => 0x3ff << 52 | fraction & 0xf << 48,
        _ => random.next() >> 1,
    }
}

fn numbers(v: &mut Vcpu, random: &mut Random) {
    for n in 0..16 {
        let mut value = [0; 64];
        for part in value.as_chunks_mut::<8>().0 {
            *part = number(random).to_le_bytes();
        }
        if random.one_in(2) {
            // Singles of the same kinds.
            for part in value.as_chunks_mut::<4>().0 {
                *part = ((number(random) >> 32) as u32).to_le_bytes();
            }
        }
        // What the guest's XCR0 does not have stays initial.
        let width = match v.xcr0.bits() & 0xe6 {
            0xe6 => 64,
            6 => 32,
            _ => 16,
        };
        value[width..].fill(0);
        v.xsave.set_vector(n, &value);
    }
    for n in 0..8 {
        let exponent = random.pick(&[0u16, 1, 0x3ffe, 0x3fff, 0x4000, 0x7ffe, 0x7fff]);
        let at = x86_arch::xsave::ST0 + 16 * n;
        v.xsave.set(at, number(random) << random.below(12));
        v.xsave.set(at + 8, exponent | (random.next() as u16 & 0x8000));
    }
    // Precision and rounding control, and any exceptions unmasked; pending ones too.
    v.xsave.set_fcw(0x40 | random.next() as u16 & 0xf3f);
    v.xsave.set_fsw(random.next() as u16 & 0x387f);
    if !random.one_in(8) {
        v.xsave.update_summary();
    }
    v.xsave.bytes[x86_arch::xsave::FTW] = random.next() as u8;
    v.xsave.set_mxcsr(random.next() as u32 & 0xffff);
    v.xsave.set_xstate_bv(v.xsave.xstate_bv() | 3);
}

/// MSRs that do something.
#[rustfmt::skip]
const MSRS: &[u32] = &[
    0x10, 0x1b, 0x3a, 0x3b, 0x48, 0x49, 0x8b, 0xfe, 0x10a, 0x174,
    0x175, 0x176, 0x179, 0x17a, 0x1a0, 0x1d9, 0x200, 0x201, 0x250, 0x277,
    0x2ff, 0x400, 0x6e0, 0x808, 0x80b, 0x80d, 0x80f, 0x830, 0x832, 0x838,
    0x83e, 0x83f, 0xda0, 0x11, 0x12, 0x4b56_4d00, 0x4b56_4d01, 0x4b56_4d02, 0x4b56_4d03, 0x4b56_4d04,
    0xc000_0080, 0xc000_0081, 0xc000_0082, 0xc000_0084, 0xc000_0100, 0xc000_0101, 0xc000_0102, 0xc000_0103, 0xc001_0015,
];

fn controls(v: &mut Vcpu, mode: Mode, random: &mut Random) {
    for bit in [Cr0::AM, Cr0::NE, Cr0::WP, Cr0::MP] {
        v.cr0.set(bit, random.one_in(2));
    }
    for bit in [Cr0::TS, Cr0::EM] {
        v.cr0.set(bit, random.one_in(8));
    }
    for (bit, feature) in [
        (Cr4::UMIP, cpuid::UMIP),
        (Cr4::DE, cpuid::DE),
        (Cr4::PGE, cpuid::PGE),
        (Cr4::VME, cpuid::VME),
        (Cr4::PKE, cpuid::PKU),
        (Cr4::FSGSBASE, cpuid::FSGSBASE),
    ] {
        v.cr4.set(bit, v.cpuid.has(feature) && random.one_in(2));
    }
    v.cr4.set(Cr4::TSD, random.one_in(4));
    v.cr4.set(Cr4::PCE, random.one_in(2));
    for bit in [Cr4::OSFXSR, Cr4::OSXSAVE, Cr4::OSXMMEXCPT] {
        v.cr4.set(bit, !random.one_in(8));
    }
    v.hot.rflags |= random.next() & Rflags::AC.bits();
    if random.one_in(8) {
        v.hot.rflags |= Rflags::TF.bits();
    }
    if mode != Mode::Virtual8086 {
        v.hot.rflags |= random.next() & 0x3000;
    }
    if random.one_in(4) {
        for n in 0..4 {
            let code = CODE + SLOT * random.below(SLOTS as usize) as u64;
            let data = DATA + random.below(64) as u64;
            v.dr[n] = random.pick(&[code, data, 0x40]);
        }
        v.dr7 = Dr7::from_bits_retain(random.next() & 0xffff_03ff | Dr7::FIXED.bits());
    }
    if random.one_in(2) {
        v.hot.regs[Gpr::Rcx as usize] = random.pick(MSRS).into();
    }
}

/// Ports of PICs, PIT and what goes with them.
const PORTS: &[u16] = &[0x20, 0x21, 0x40, 0x41, 0x42, 0x43, 0x61, 0xa0, 0xa1, 0x4d0, 0x4d1];

/// Programs the devices, and points registers at them.
fn devices(v: &mut Vcpu, mode: Mode, random: &mut Random) {
    v.hot.rflags |= Rflags::IF.bits();
    // PICs at 20H and 28H, few lines masked; the PIT's first channel periodic and quick.
    let period = random.next() as u8 | 1;
    for (port, value) in [
        (0x20u16, 0x11u8),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, random.pick(&[1, 3])),
        (0x21, random.next() as u8 & 0xfe),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 2),
        (0xa1, 1),
        (0xa1, random.next() as u8),
        (0x43, random.pick(&[0x34, 0x36, 0x30, 0x38])),
        (0x40, period),
        (0x40, 0),
    ] {
        v.device_pio_write(port, &[value]);
    }
    // The local APIC on, LINT0 from the PICs, its timer periodic.
    for (register, value) in [
        (0xf0u64, 0x1ff_u32),
        (0x350, 0x700),
        (0x320, 0x2_0040 | random.next() as u32 & 0x4_0000),
        (0x3e0, 0xb),
        (0x380, 0x1000),
    ] {
        v.device_mmio_write(x86_arch::Gpa(0xfee0_0000 + register), &value.to_le_bytes());
    }
    v.hot.regs[Gpr::Rdx as usize] = random.pick(PORTS).into();
    if !mode.has_privilege() || mode == Mode::Protected16 {
        return;
    }
    for r in [Gpr::Rbx, Gpr::Rsi, Gpr::Rdi, Gpr::Rbp] {
        if random.one_in(3) {
            let base = random.pick(&[0xfee0_0000u64, 0xfec0_0000]);
            v.hot.regs[r as usize] = base + 16 * random.below(0x40) as u64;
        }
    }
}
