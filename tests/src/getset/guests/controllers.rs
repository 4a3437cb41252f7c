//! The fields of the controllers, timers and model-specific registers that a boot does not care for: each is given a value that a fresh VM
//! does not have.

use super::super::machine::{Controllers, Plan};
use super::super::outside::{PORT_MSI, PORT_PULSE, PORT_TRIPLE_FAULT, PORT_VECTOR_NOW};
use super::code::Blocks;
use super::long::{self, ioapic, lapic, out, read_lapic, wrmsr};
use crate::guest::layout::PORT_IRQ;
use crate::guest::program::Assembled;
use iced_x86::code_asm::*;
use kvm_api::uapi::*;
use x86_arch::msr;

fn ports(a: &mut CodeAssembler, list: &[(u32, u32)]) -> Assembled {
    for &(port, value) in list {
        a.mov(al, value)?;
        if port > 0xff {
            a.mov(dx, port)?;
            a.out(dx, al)?;
        } else {
            a.out(port as i32, al)?;
        }
    }
    Ok(())
}

/// Initializes both PICs, edge-triggered, with these fourth words.
fn pics(a: &mut CodeAssembler, first: u32, second: u32) -> Assembled {
    ports(a, &[(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, first)])?;
    ports(a, &[(0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, second)])
}

fn legacy(b: &mut Blocks) -> Assembled {
    b.block(|a| {
        lapic(a, 0xf0, 0x1ff)?;
        lapic(a, 0x350, 0x700)?;
        // Level for line 5 and 10; automatic EOI that rotates, in both; all lines open.
        ports(a, &[(0x4d0, 0x20), (0x4d1, 4)])?;
        pics(a, 3, 3)?;
        ports(a, &[(0x20, 0x80), (0xa0, 0x80), (0x21, 0), (0xa1, 0)])?;
        out(a, PORT_PULSE, 3)?;
        out(a, PORT_PULSE, 12)?;
        out(a, PORT_IRQ, 5 | 1 << 16)?;
        out(a, PORT_IRQ, 5)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.cli()?;
        out(a, PORT_PULSE, 4)?;
        out(a, PORT_PULSE, 14)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.cli()?;
        ports(a, &[(0x20, 0), (0xa0, 0)])
    })?;
    b.block(|a| {
        // Special mask mode, fully nested, priorities set by command; read by polling.
        pics(a, 0x11, 0x11)?;
        ports(a, &[(0x20, 0x68), (0xa0, 0x68), (0x20, 0xc3), (0xa0, 0xc4), (0x21, 0x80), (0xa1, 0x40)])?;
        out(a, PORT_PULSE, 3)?;
        out(a, PORT_PULSE, 12)?;
        out(a, PORT_IRQ, 10 | 1 << 16)?;
        ports(a, &[(0x20, 0x0c)])?;
        a.nop()?;
        a.in_(al, 0x20)?;
        ports(a, &[(0xa0, 0x0c)])?;
        a.nop()?;
        a.in_(al, 0xa0)?;
        ports(a, &[(0x20, 0x0b), (0xa0, 0x0b)])?;
        a.in_(al, 0x20)?;
        a.in_(al, 0xa0)?;
        ports(a, &[(0x20, 0x63), (0xa0, 0x64), (0x20, 0x0a), (0xa0, 0x0a)])?;
        a.in_(al, 0xa0)?;
        out(a, PORT_IRQ, 10)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.nop()?;
        a.cli()?;
        // Half initialized.
        ports(a, &[(0x20, 0x11), (0x21, 0x20)])?;
        a.nop()?;
        ports(a, &[(0x21, 4), (0x21, 1), (0xa0, 0x13), (0xa1, 0x28)])?;
        a.nop()?;
        ports(a, &[(0xa1, 1)])
    })
}

fn timer(b: &mut Blocks) -> Assembled {
    b.block(|a| {
        // All channels in BCD, each in another mode; half written; latched, count and status; half read.
        for channel in 0..3u32 {
            let port = 0x40 + channel;
            ports(a, &[(0x43, channel << 6 | 0x31 | (2 + channel) << 1), (port, 0x23), (port, 0x17)])?;
            ports(a, &[(0x43, 0xc0 | 2 << channel)])?;
            a.in_(al, port as i32)?;
            a.nop()?;
            a.in_(al, port as i32)?;
            a.in_(al, port as i32)?;
            ports(a, &[(port, 0x45)])?;
            a.nop()?;
            ports(a, &[(port, 6), (0x43, channel << 6)])?;
            a.in_(al, port as i32)?;
            a.in_(al, port as i32)?;
            // The low byte alone, and the high byte alone.
            ports(a, &[(0x43, channel << 6 | 0x10), (port, 0x99)])?;
            ports(a, &[(0x43, channel << 6 | 0x20), (port, 0x12), (0x43, channel << 6)])?;
            a.in_(al, port as i32)?;
        }
        // The gate of the third; its output.
        ports(a, &[(0x61, 0)])?;
        a.in_(al, 0x61)?;
        ports(a, &[(0x61, 3)])?;
        a.in_(al, 0x61)?;
        a.in_(al, 0x42)
    })?;
    b.block(|a| {
        // Ticks that nobody takes.
        ports(
            a,
            &[
                (0x43, 0x34),
                (0x40, 3),
                (0x40, 0),
                (0x43, 0x52),
                (0x41, 7),
                (0x43, 0xb8),
                (0x42, 1),
                (0x42, 0),
            ],
        )?;
        for _ in 0..40 {
            a.inc(rax)?;
        }
        ports(a, &[(0x43, 0x30), (0x40, 0), (0x40, 0)])
    })
}

fn apics(b: &mut Blocks) -> Assembled {
    b.block(|a| {
        lapic(a, 0xf0, 0x1ff)?;
        // The IOAPIC's ID, and every pin: vector, mode, polarity, trigger, destination.
        a.mov(ebx, crate::guest::layout::IOAPIC as u32)?;
        a.mov(dword_ptr(rbx), 0)?;
        a.mov(dword_ptr(rbx + 0x10), 0x0500_0000)?;
        for pin in 0..24 {
            ioapic(
                a,
                pin,
                (0x1_0000 | u64::from(pin & 1) << 15 | u64::from(pin & 2) << 12 | 0x80) + u64::from(pin),
            )?;
        }
        a.mov(dword_ptr(rbx), 0x13)
    })?;
    b.block(|a| {
        // The local APIC's registers that nobody set so far.
        for (register, value) in
            [(0xe0u64, 0x0fff_ffffu32), (0xd0, 0x1100_0000), (0x350, 0x1_0745), (0x3e0, 2)]
        {
            lapic(a, register, value)?;
        }
        for register in [0x20, 0xa0, 0xc0] {
            read_lapic(a, register)?;
        }
        // A vector of each word of IRR, by edge and by level; then each in service, one on the other.
        for n in (0..7u32).rev() {
            out(a, PORT_MSI, 0x35 + 0x20 * n)?;
            out(a, PORT_MSI, (0x3b + 0x20 * n) | 1 << 16)?;
        }
        a.mov(eax, 0)?;
        a.mov(cr8, rax)?;
        a.sti()?;
        for _ in 0..4 {
            a.nop()?;
        }
        a.cli()
    })?;
    b.block(|a| {
        // Taken one by one, none ended: the handlers' EOI goes elsewhere in x2APIC mode.
        wrmsr(a, 0x1b, 0xfee0_0d00)?;
        for n in 0..7u32 {
            wrmsr(a, 0x83f, 0x32 + 0x20 * u64::from(n))?;
            a.sti()?;
            a.nop()?;
            a.cli()?;
        }
        for n in 0..8u32 {
            a.mov(ecx, 0x810 + n)?;
            a.rdmsr()?;
            a.mov(ecx, 0x820 + n)?;
            a.rdmsr()?;
        }
        for _ in 0..4 {
            wrmsr(a, 0x80b, 0)?;
        }
        // An interrupt to itself, an error that waits.
        wrmsr(a, 0x837, 0x1_00fe)?;
        wrmsr(a, 0x830, 0x4_0003)?;
        wrmsr(a, 0x828, 0)?;
        wrmsr(a, 0x832, 0x2_0077)?;
        wrmsr(a, 0x83e, 3)?;
        wrmsr(a, 0x838, 90)?;
        a.mov(ecx, 0x839)?;
        a.rdmsr()?;
        for _ in 0..20 {
            a.inc(rax)?;
        }
        // Off: as after reset.
        wrmsr(a, 0x1b, 0xfee0_0100)?;
        a.nop()?;
        wrmsr(a, 0x1b, 0xfee0_0900)?;
        lapic(a, 0xf0, 0x1ff)?;
        lapic(a, 0x20, 0x0500_0000)?;
        a.nop()
    })
}

/// PICs, PIT, IOAPIC, local APIC.
pub fn controllers() -> Vec<Plan> {
    let legacy = long::plan(
        "PICs and PIT",
        Controllers::Full,
        2000,
        long::assemble(|b| {
            legacy(b)?;
            timer(b)
        }),
    );
    let apics = long::plan("APICs", Controllers::Full, 2000, long::assemble(apics));
    vec![legacy, apics]
}

/// Model-specific registers: those that the guest writes, and those that only a VMM does.
pub fn model_specific() -> Plan {
    let fixed = 0x0001_0406_0506_0106u64;
    let mtrrs = (0x200..0x210u32).map(|n| {
        let value = if n & 1 == 0 { u64::from(n & 14) << 24 | 6 } else { 0xf_ff00_0800 };
        (n, value)
    });
    let ranges = [0x250u32, 0x258, 0x259]
        .into_iter()
        .chain(0x268..0x270)
        .map(|n| (n, fixed.rotate_left(n % 8 * 8) & !0x0202_0202_0202_0202));
    let banks = (0..4u32).flat_map(|n| [(0x400 + 4 * n, 0), (0x280 + n, 0x4000_0001)]);
    let own = [
        (msr::IA32_MCG_CTL, 0),
        (0x1fc, 2),
        (msr::IA32_DEBUGCTL, 3),
        (msr::IA32_XSS, 0),
        (msr::KVM_ASYNC_PF_EN, 0x2_b000),
        (msr::KVM_ASYNC_PF_INT, 0xf4),
    ];
    let written: Vec<(u32, u64)> = mtrrs.chain(ranges).chain(banks).chain(own).collect();
    let code = long::assemble(|b| {
        for &(index, value) in &written {
            b.block(|a| {
                wrmsr(a, index, value)?;
                a.rdmsr()?;
                a.mov(r8d, eax)
            })?;
        }
        b.block(|a| {
            lapic(a, 0x2f0, 0x1_00f3)?;
            for (index, _) in BY_THE_VMM {
                a.mov(ecx, *index)?;
                a.rdmsr()?;
            }
            Ok(())
        })
    });
    let mut p = long::plan("model-specific registers", Controllers::Full, 100_000, code);
    p.mce_banks = 4;
    p.vcpus[0].msrs = BY_THE_VMM.to_vec();
    // An error in each bank: valid, with an address.
    let error = |n: u32| {
        [(0x401, 0x9400_0000_0000_0134), (0x402, 0x1234), (0x403, 0x77)].map(|(i, v)| (i + 4 * n, v))
    };
    p.vcpus[0].msrs.extend((0..4).flat_map(error));
    p.vcpus[0].tsc_khz = 1_800_000;
    p
}

/// What a guest may not write, or not so.
const BY_THE_VMM: &[(u32, u64)] = &[
    (0x34, 5),
    (msr::IA32_FEATURE_CONTROL, 1),
    (msr::MSR_PLATFORM_INFO, 0),
    (msr::IA32_ARCH_CAPABILITIES, 1),
    (msr::IA32_MISC_ENABLE, 0x801),
    (msr::AMD_HWCR, 1 << 24),
    (msr::AMD_OSVW_ID_LENGTH, 4),
    (msr::AMD_OSVW_STATUS, 2),
    (msr::AMD_DE_CFG, 0),
];

/// KVM_INTERRUPT that waits at the save; a triple fault that does.
pub fn injected() -> Plan {
    let code = long::assemble(|b| {
        b.block(|a| {
            a.sti()?;
            a.nop()?;
            out(a, PORT_VECTOR_NOW, 0x81)?;
            a.nop()?;
            out(a, PORT_VECTOR_NOW, 0x82)?;
            a.int(0x80)?;
            a.cli()?;
            out(a, PORT_TRIPLE_FAULT, 0)?;
            a.nop()
        })
    });
    let mut p = long::plan("injected events", Controllers::None, 100_000, code);
    p.caps = vec![(KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1)];
    p
}
