//! Real mode, protected mode with PAE paging, virtual-8086 mode.

use super::super::machine::{Controllers, Plan, Start};
use super::super::outside::{PORT_NMI, PORT_PULSE};
use super::code::{Blocks, assemble, stubs};
use crate::guest::layout::{PORT_ECHO, PORT_IRQ, PORT_STREAM};
use crate::guest::program::Assembled;
use iced_x86::code_asm::*;
use kvm_api::uapi::*;

const RESUME: u64 = 0x500;
const COUNTS: u64 = 0x600;
const HANDLERS: u64 = 0x1000;
const CODE: u64 = 0x4000;
const DATA: u64 = 0x8000;
const STACK: u64 = 0xf000;
/// Bytes of RAM: behind them is device memory that real mode reaches.
const RAM: u64 = 0x4_0000;

// Protected mode.
const PDPT: u64 = 0x1_0000;
const PAGE_DIRECTORY: u64 = 0x1_1000;
const GDT: u64 = 0x1_5000;
const IDT: u64 = 0x1_6000;
const TSS: u64 = 0x1_7000;
const TSS_2: u64 = 0x1_7800;
const USER_STACK: u64 = 0x1_9000;

fn real_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: u64::from(selector) << 4,
        limit: 0xffff,
        selector,
        type_,
        present: 1,
        s: 1,
        ..Default::default()
    }
}

fn regs(rip: u64, flags: u64) -> kvm_regs {
    kvm_regs { rip, rsp: STACK, rflags: flags | 2, rsi: DATA, rdi: DATA + 0x400, ..Default::default() }
}

/// The PICs' end of interrupt.
fn end_of_interrupt(a: &mut CodeAssembler, second: bool) -> Assembled {
    a.push(eax)?;
    a.mov(al, 0x20)?;
    if second {
        a.out(0xa0, al)?;
    }
    a.out(0x20, al)?;
    a.pop(eax)
}

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

fn out32(a: &mut CodeAssembler, port: u16, value: u32) -> Assembled {
    a.mov(dx, u32::from(port))?;
    a.mov(eax, value)?;
    a.out(dx, eax)
}

/// The PICs at 50H and 58H, IRQ 0, 1, 2 and 12 open; the PIT in mode 3, quick enough to miss ticks.
fn set_up_devices(a: &mut CodeAssembler) -> Assembled {
    ports(
        a,
        &[
            (0x20, 0x11),
            (0x21, 0x50),
            (0x21, 4),
            (0x21, 0x13),
            (0xa0, 0x11),
            (0xa1, 0x58),
            (0xa1, 2),
            (0xa1, 1),
            (0x21, 0xf8),
            (0xa1, 0xef),
            (0x43, 0x36),
            (0x40, 0x40),
            (0x40, 2),
            (0x43, 0x92),
            (0x42, 0x77),
        ],
    )
}

fn common_16(b: &mut Blocks) -> Assembled {
    b.block(|a| {
        a.mov(cx, 7)?;
        a.mov(si, DATA as u32)?;
        a.mov(di, (DATA + 0x400) as u32)?;
        a.rep().movsb()?;
        a.mov(cx, 4)?;
        a.rep().stosd()?;
        a.std()?;
        a.mov(cx, 3)?;
        a.rep().lodsw()?;
        a.cld()?;
        a.mov(cx, 9)?;
        a.repe().cmpsb()?;
        a.mov(dx, u32::from(PORT_STREAM))?;
        a.mov(cx, 4)?;
        a.rep().insw()?;
        a.mov(cx, 3)?;
        a.rep().outsb()?;
        a.mov(dx, u32::from(PORT_ECHO))?;
        a.out(dx, ax)?;
        a.in_(eax, dx)
    })?;
    b.block(|a| {
        a.fninit()?;
        a.fldpi()?;
        a.fst(dword_ptr(DATA as u32 + 0x40))?;
        a.mov(eax, 0x0123_4567)?;
        a.push(eax)?;
        a.pop(ebx)?;
        a.aam(10)?;
        a.daa()
    })?;
    b.block(|a| {
        a.xor(cl, cl)?;
        a.div(cl)
    })?;
    b.block(|a| a.ud2())?;
    b.block(|a| a.int3())?;
    b.block(|a| a.int(0x40))?;
    b.block(|a| {
        a.pushf()?;
        a.pop(ax)?;
        a.or(ah, 1)?;
        a.push(ax)?;
        a.popf()?;
        a.nop()?;
        a.mov(ax, ss)?;
        a.mov(ss, ax)?;
        a.nop()?;
        a.pushf()?;
        a.pop(ax)?;
        a.and(ah, 0xfe)?;
        a.push(ax)?;
        a.popf()
    })
}

/// Real mode: interrupts through the PICs alone, the PIT, device memory by segments.
pub fn real() -> Plan {
    let (handlers, starts) = stubs(16, HANDLERS, 0x60, |a, vector| {
        a.inc(word_ptr(COUNTS as u32 + 2 * vector as u32).ss())?;
        match vector {
            0 | 5 | 6 | 12 | 13 => {
                a.push(bp)?;
                a.mov(bp, sp)?;
                a.push(ax)?;
                a.mov(ax, word_ptr(RESUME as u32).ss())?;
                a.mov(word_ptr(bp + 2), ax)?;
                a.pop(ax)?;
                a.pop(bp)?;
            }
            0x50..=0x5f => end_of_interrupt(a, vector >= 0x58)?,
            _ => {}
        }
        a.iret()
    });
    let ivt: Vec<u8> = (0..0x60).flat_map(|v| (starts[v] as u32).to_le_bytes()).collect();
    let code = assemble(16, CODE, RESUME, |b| {
        common_16(b)?;
        b.block(|a| {
            set_up_devices(a)?;
            a.sti()?;
            a.hlt()?;
            a.nop()?;
            a.hlt()?;
            out32(a, PORT_PULSE, 1)?;
            a.nop()?;
            a.cli()?;
            // Behind the second PIC, while interrupts are off; an NMI meanwhile.
            out32(a, PORT_PULSE, 12)?;
            out32(a, PORT_NMI, 0)?;
            a.nop()?;
            a.sti()?;
            a.nop()?;
            a.nop()?;
            a.cli()?;
            ports(a, &[(0x43, 0xe2), (0x20, 0x0b)])?;
            a.in_(al, 0x20)?;
            a.in_(al, 0x40)?;
            a.in_(al, 0x40)?;
            a.in_(al, 0x61)
        })?;
        b.block(|a| {
            // Device memory, right behind RAM.
            a.mov(ax, (RAM >> 4) as u32)?;
            a.mov(es, ax)?;
            a.mov(word_ptr(0x10u32).es(), ax)?;
            a.mov(eax, dword_ptr(0x10u32).es())?;
            a.mov(di, 0x20)?;
            a.mov(si, DATA as u32)?;
            a.mov(cx, 3)?;
            a.rep().movsw()?;
            a.lss(sp, dword_ptr(DATA as u32 + 0x80))?;
            a.xor(ax, ax)?;
            a.mov(ss, ax)?;
            a.mov(sp, STACK as u32)?;
            a.mov(es, ax)
        })?;
        // Bases of data and of the stack.
        b.block(|a| {
            a.mov(ax, 0x10)?;
            a.mov(ds, ax)?;
            a.mov(bx, word_ptr(DATA as u32))?;
            a.mov(ss, ax)?;
            a.mov(sp, 0xe000)?;
            a.push(bx)?;
            a.pop(cx)?;
            a.xor(ax, ax)?;
            a.mov(ds, ax)?;
            a.mov(ss, ax)?;
            a.mov(sp, STACK as u32)
        })?;
        // A limit of 4 GiB that stays behind, as "unreal mode" has it.
        b.block(|a| {
            a.mov(eax, cr0)?;
            a.or(al, 1)?;
            a.mov(cr0, eax)?;
            a.nop()?;
            a.and(al, 0xfe)?;
            a.mov(cr0, eax)?;
            a.smsw(ax)?;
            a.mov(eax, 0x77)?;
            a.mov(cr2, eax)
        })
    });
    let mut sregs = kvm_sregs2 {
        cs: real_segment(0, 11),
        ds: real_segment(0, 3),
        es: real_segment(0, 3),
        fs: real_segment(0x1234, 3),
        gs: real_segment(0x4321, 3),
        ss: real_segment(0, 3),
        tr: kvm_segment { limit: 0xffff, type_: 11, present: 1, ..Default::default() },
        ldt: kvm_segment { limit: 0xffff, type_: 2, present: 1, ..Default::default() },
        cr0: 0x6000_0030,
        cr4: 0x200,
        apic_base: 0xfee0_0900,
        ..Default::default()
    };
    sregs.idt.limit = 0x3ff;
    sregs.gdt.limit = 0xffff;
    let start = Start { regs: Some(regs(CODE, 0)), sregs: Some(sregs), ..Start::default() };
    let mut p = Plan::one("real mode", Controllers::Full, start, 50_000);
    p.exception_payload = true;
    let mut data: Vec<u8> = (0..0x100u32).map(|n| (n * 37) as u8).collect();
    data[0x80..0x84].copy_from_slice(&[0, 0xe0, 0, 0]);
    p.pieces = vec![(0, ivt), (HANDLERS, handlers), (CODE, code), (DATA, data)];
    p
}

fn flat_32(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        dpl: (selector & 3) as u8,
        ..Default::default()
    }
}

fn descriptor(base: u64, limit: u32, access: u64, flags: u64) -> u64 {
    u64::from(limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | access << 40
        | u64::from(limit >> 16 & 15) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

/// Tables and handlers of 32-bit protected mode. `level_0`: a fault goes on at level 0, on the handler's stack.
fn protected_pieces(level_0: bool) -> Vec<(u64, Vec<u8>)> {
    let words = |w: &[u64]| w.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (handlers, starts) = stubs(32, HANDLERS, 0x81, |a, vector| {
        a.inc(dword_ptr(COUNTS as u32 + 4 * vector as u32).ss())?;
        if matches!(vector, 8 | 10..=14 | 17) {
            a.add(esp, 4)?;
        }
        match vector {
            0 | 5..=8 | 10..=14 | 16 | 17 | 19 => {
                a.push(eax)?;
                a.mov(eax, dword_ptr(RESUME as u32).ss())?;
                a.mov(dword_ptr(esp + 4), eax)?;
                a.pop(eax)?;
                if level_0 {
                    a.mov(dword_ptr(esp + 4), 8)?;
                }
            }
            0x50..=0x5f => end_of_interrupt(a, vector >= 0x58)?,
            _ => {}
        }
        a.iretd()
    });
    let gate = |at: u64| at & 0xffff | 8 << 16 | 0xee00 << 32 | (at >> 16 & 0xffff) << 48;
    let idt: Vec<u64> = starts.iter().map(|&at| gate(at)).collect();
    let gdt = [
        0,
        descriptor(0, 0xfffff, 0x9b, 0xc),
        descriptor(0, 0xfffff, 0x93, 0xc),
        descriptor(0, 0xfffff, 0xfb, 0xc),
        descriptor(0, 0xfffff, 0xf3, 0xd),
        descriptor(TSS, 0x67, 0x8b, 0),
        descriptor(TSS_2, 0x67, 0x89, 0),
        // 38H: an LDT; 40H: expand-down data; 48H: 16-bit data with a base.
        descriptor(DATA + 0x700, 0x2f, 0x82, 0),
        descriptor(0, 0x3f, 0x97, 0xd),
        descriptor(DATA, 0x7ff, 0x93, 0),
        // 50H: a call gate to the handler of vector 80H would need parameters: a plain one.
        0,
    ];
    let mut tss = vec![0u8; 0x68];
    tss[4..8].copy_from_slice(&(STACK as u32).to_le_bytes());
    tss[8..10].copy_from_slice(&0x10u16.to_le_bytes());
    tss[0x66..0x68].copy_from_slice(&0x68u16.to_le_bytes());
    let directories: Vec<u64> = (0..2048u64).map(|n| if n == 512 { 0 } else { n << 21 | 0x87 }).collect();
    vec![
        (PDPT, words(&[0, 1, 2, 3].map(|n| (PAGE_DIRECTORY + 0x1000 * n) | 1))),
        (PAGE_DIRECTORY, words(&directories)),
        (GDT, words(&gdt)),
        (IDT, words(&idt)),
        (TSS, tss.clone()),
        (TSS_2, tss),
        (HANDLERS, handlers),
        (DATA, (0..0x200u32).map(|n| (n * 37) as u8).collect()),
    ]
}

fn protected_sregs(pae: bool) -> kvm_sregs2 {
    let mut s = kvm_sregs2 {
        cs: flat_32(8, 11),
        ds: flat_32(0x10, 3),
        es: flat_32(0x10, 3),
        fs: flat_32(0x10, 3),
        gs: flat_32(0x10, 3),
        ss: flat_32(0x10, 3),
        tr: kvm_segment {
            base: TSS,
            limit: 0x67,
            selector: 0x28,
            type_: 11,
            present: 1,
            ..Default::default()
        },
        ldt: kvm_segment { unusable: 1, ..Default::default() },
        cr0: if pae { 0x8001_0033 } else { 0x33 },
        cr3: PDPT,
        cr4: if pae { 0x6b0 } else { 0x600 },
        apic_base: 0xfee0_0900,
        ..Default::default()
    };
    s.gdt = kvm_dtable { base: GDT, limit: 0x57, ..Default::default() };
    s.idt = kvm_dtable { base: IDT, limit: 0x407, ..Default::default() };
    s
}

/// 32-bit protected mode with PAE paging; directory pointers that memory does not have any more; segments; level 3.
pub fn pae() -> Plan {
    let code = assemble(32, CODE, RESUME, |b| {
        b.block(|a| {
            a.mov(ecx, 7)?;
            a.mov(esi, DATA as u32)?;
            a.mov(edi, (DATA + 0x400) as u32)?;
            a.rep().movsd()?;
            a.mov(dx, u32::from(PORT_STREAM))?;
            a.mov(ecx, 4)?;
            a.rep().insd()?;
            // Memory is told another pointer; the processor keeps the one it has loaded.
            a.mov(dword_ptr(PDPT as u32 + 24), 0)?;
            a.mov(eax, dword_ptr(0xd000_0000u32))?;
            a.nop()?;
            a.mov(eax, cr3)?;
            a.mov(cr3, eax)?;
            a.mov(eax, dword_ptr(0xd000_0000u32))
        })?;
        b.block(|a| {
            a.mov(dword_ptr(PDPT as u32 + 24), (PAGE_DIRECTORY + 0x3001) as u32)?;
            a.mov(eax, cr3)?;
            a.mov(cr3, eax)?;
            a.mov(eax, dword_ptr(0xd000_0000u32))?;
            a.mov(eax, dword_ptr(0x4000_0010u32))
        })?;
        // The operand's selector stays behind, where the processor keeps it.
        b.block(|a| {
            a.fninit()?;
            a.fld(dword_ptr(DATA as u32 + 0x40))?;
            a.fadd(dword_ptr(DATA as u32 + 0x44))?;
            a.nop()
        })?;
        b.block(|a| {
            for (s, r) in [(0x40, es), (0x48, fs), (0x43, gs)] {
                a.mov(eax, s)?;
                a.mov(r, eax)?;
            }
            a.nop()
        })?;
        b.block(|a| {
            a.mov(eax, 0x40)?;
            a.mov(ss, eax)?;
            a.nop()?;
            a.nop()?;
            a.mov(eax, 0x10)?;
            a.mov(ss, eax)
        })?;
        b.block(|a| {
            a.mov(eax, 0x38)?;
            a.lldt(ax)?;
            a.mov(eax, 0x48)?;
            a.mov(fs, eax)?;
            a.mov(eax, dword_ptr(0x7feu32).fs())
        })?;
        b.block(|a| {
            a.xor(eax, eax)?;
            a.mov(gs, eax)?;
            a.mov(eax, dword_ptr(0u32).gs())
        })?;
        b.block(|a| {
            set_up_devices(a)?;
            a.sti()?;
            a.hlt()?;
            a.nop()?;
            a.cli()?;
            out32(a, PORT_IRQ, 1 | 1 << 16)?;
            out32(a, PORT_IRQ, 1)?;
            a.sti()?;
            a.nop()?;
            a.cli()
        })?;
        // Level 3: its instructions that need more fault.
        b.block(|a| {
            a.mov(dword_ptr(TSS as u32 + 4), STACK as i32)?;
            a.push(0x23)?;
            a.push(USER_STACK as i32)?;
            a.push(0x202)?;
            a.push(0x1b)?;
            // On to the code behind IRET.
            let mut user = a.create_label();
            let mut here = a.create_label();
            a.call(here)?;
            a.set_label(&mut here)?;
            a.add(dword_ptr(esp), 5)?;
            a.iretd()?;
            a.set_label(&mut user)?;
            a.nop()?;
            a.push(eax)?;
            a.mov(eax, 0x23)?;
            a.mov(ds, eax)?;
            a.int(0x60)?;
            a.cli()
        })?;
        b.block(|a| {
            a.mov(ecx, 3)?;
            a.mov(edi, (DATA + 0x500) as u32)?;
            a.rep().stosb()?;
            a.hlt()
        })?;
        b.block(|a| a.ud2())?;
        b.block(|a| a.int(0x80))
    });
    let start = Start { regs: Some(regs(CODE, 0)), sregs: Some(protected_sregs(true)), ..Start::default() };
    let mut p = Plan::one("protected mode, PAE", Controllers::Full, start, 50_000);
    p.pieces = protected_pieces(true);
    p.pieces.push((CODE, code));
    p
}

/// Virtual-8086 mode at IOPL 3.
pub fn virtual_8086() -> Plan {
    let code = assemble(16, CODE, RESUME, |b| {
        common_16(b)?;
        b.block(|a| {
            a.sti()?;
            a.nop()?;
            a.cli()?;
            a.hlt()
        })?;
        common_16(b)
    });
    let segment = || kvm_segment { dpl: 3, ..real_segment(0, 3) };
    let mut sregs = protected_sregs(false);
    sregs.cs = segment();
    sregs.ds = segment();
    sregs.es = segment();
    sregs.fs = segment();
    sregs.gs = segment();
    sregs.ss = segment();
    let mut r = regs(CODE, 0x2_3000);
    r.rsp = 0xe000;
    let start = Start { regs: Some(r), sregs: Some(sregs), ..Start::default() };
    let mut p = Plan::one("virtual-8086 mode", Controllers::Full, start, 330);
    p.exception_payload = true;
    p.pieces = protected_pieces(false);
    p.pieces.push((CODE, code));
    p
}
