//! 64-bit mode: a walk through everything that an instruction can leave behind. Each block of code is left by a fault too:
//! R15 holds where to go on.

use super::super::machine::{Controllers, Plan, Start};
use super::super::outside::{PORT_MSI, PORT_NMI, PORT_PULSE, PORT_VECTOR};
use super::code::{self, Blocks};
use crate::guest::layout::{IOAPIC, LAPIC, MMIO, PORT_ECHO, PORT_IRQ, PORT_STREAM};
use crate::guest::program::Assembled;
use iced_x86::code_asm::*;
use kvm_api::uapi::*;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x7000;
const IDT: u64 = 0x8000;
const TSS: u64 = 0x9000;
const COUNTS: u64 = 0x9800;
const HANDLERS: u64 = 0xa000;
const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const USER_STACK: u64 = 0x3_0000;
const STACK: u64 = 0x3_8000;
const IST: u64 = 0x3_c000;
/// Linear addresses from here are not mapped.
const HOLE: u64 = 0x4000_0000;
const KVMCLOCK: u64 = 0x2_8000;
/// The processors' words for PV EOI.
pub(super) const PV_EOI: u64 = 0x2_8100;
const EOI: u32 = (LAPIC + 0xb0) as u32;

const CS: u16 = 8;
const SS: u16 = 0x10;
const USER_SS: u16 = 0x2b;
const USER_CS: u16 = 0x33;
const TR: u16 = 0x38;
const LDT: u16 = 0x48;

fn segment(selector: u16, base: u64, limit: u32, type_: u8, s: u8) -> kvm_segment {
    kvm_segment {
        base,
        limit,
        selector,
        type_,
        present: 1,
        s,
        dpl: (selector & 3) as u8,
        ..Default::default()
    }
}

fn flat(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment { l: long as u8, db: !long as u8, g: 1, avl: 1, ..segment(selector, 0, u32::MAX, type_, 1) }
}

/// A vCPU in 64-bit mode at `rip`.
pub fn start_64(rip: u64, stack: u64) -> Start {
    let data = flat(SS, 3, false);
    let mut s = kvm_sregs2 {
        cs: flat(CS, 11, true),
        ds: kvm_segment { avl: 0, ..data },
        es: data,
        fs: kvm_segment { base: DATA + 0x800, ..data },
        gs: kvm_segment { base: DATA + 0x1000, limit: 0xffff, g: 0, ..data },
        ss: data,
        tr: kvm_segment { avl: 1, ..segment(TR, TSS, 0x7ff, 11, 0) },
        ldt: kvm_segment { avl: 1, ..segment(LDT, DATA + 0x700, 0x3f, 2, 0) },
        cr0: 0x8005_0033,
        cr2: 0x1234,
        cr3: PML4,
        cr4: 0x0005_06b8,
        efer: 0xd01,
        apic_base: 0xfee0_0900,
        ..Default::default()
    };
    s.gdt = kvm_dtable { base: GDT, limit: 0x5f, ..Default::default() };
    s.idt = kvm_dtable { base: IDT, limit: 0xfff, ..Default::default() };
    let regs = kvm_regs {
        rip,
        rsp: stack,
        rflags: 2,
        rax: 1,
        rbx: 2,
        rcx: 3,
        rdx: 4,
        rbp: 5,
        rsi: DATA,
        rdi: DATA + 0x400,
        r8: 8,
        r9: 9,
        r10: 10,
        r11: 11,
        r12: 12,
        r13: 13,
        r14: 14,
        r15: 15,
    };
    let xcr0 = if std::is_x86_feature_detected!("avx512f") {
        0xe7
    } else if std::is_x86_feature_detected!("avx") {
        7
    } else {
        3
    };
    Start { regs: Some(regs), sregs: Some(s), xcr0: Some(xcr0), ..Start::default() }
}

fn descriptor(base: u64, limit: u32, access: u64, flags: u64) -> u64 {
    u64::from(limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | access << 40
        | u64::from(limit >> 16 & 15) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

/// The local APIC's end of interrupt.
fn end_of_interrupt(a: &mut CodeAssembler) -> Assembled {
    a.push(rbx)?;
    a.mov(ebx, EOI)?;
    a.mov(dword_ptr(rbx), 0)?;
    a.pop(rbx)
}

/// Back to level 0, at the end of the block, with EFLAGS.AC off.
fn go_on(a: &mut CodeAssembler) -> Assembled {
    a.mov(qword_ptr(rsp), r15)?;
    a.mov(qword_ptr(rsp + 8), i32::from(CS))?;
    a.and(dword_ptr(rsp + 16), !0x4_0000i32)?;
    a.mov(qword_ptr(rsp + 32), i32::from(SS))?;
    a.iretq()
}

/// Handlers: faults go on at R15, traps and interrupts where they came from.
fn handlers() -> (Vec<u8>, Vec<u8>) {
    let (code, starts) = code::stubs(64, HANDLERS, 256, |a, vector| {
        a.inc(qword_ptr(COUNTS + 8 * vector))?;
        match vector {
            // A second one comes while the first is handled.
            2 => {
                a.push(rax)?;
                a.push(rdx)?;
                a.mov(edx, u32::from(PORT_NMI))?;
                a.mov(eax, dword_ptr(COUNTS + 16))?;
                a.and(eax, 3)?;
                a.dec(eax)?;
                let mut once = a.create_label();
                a.jne(once)?;
                a.out(dx, eax)?;
                a.nop()?;
                a.set_label(&mut once)?;
                a.pop(rdx)?;
                a.pop(rax)?;
                a.iretq()?;
            }
            1 | 3 | 4 | 9 | 18 => {
                a.iretq()?;
            }
            8 | 10..=14 | 17 | 21 => {
                a.add(rsp, 8)?;
                go_on(a)?;
            }
            0..=31 => {
                go_on(a)?;
            }
            // The PICs'.
            0x20..=0x2f => {
                a.push(rax)?;
                a.mov(al, 0x20)?;
                if vector >= 0x28 {
                    a.out(0xa0, al)?;
                }
                a.out(0x20, al)?;
                a.pop(rax)?;
                a.iretq()?;
            }
            // By PV EOI, where the processor's word says that it may.
            0xa0 | 0xa1 => {
                let mut over = a.create_label();
                a.btr(dword_ptr(PV_EOI + 4 * (vector & 1)), 0)?;
                a.jb(over)?;
                end_of_interrupt(a)?;
                a.set_label(&mut over)?;
                a.iretq()?;
            }
            // A level-triggered line: its device lets go of it.
            0x60 | 0x61 => {
                a.push(rax)?;
                a.push(rdx)?;
                a.mov(edx, u32::from(PORT_IRQ))?;
                a.mov(eax, 5 + (vector as u32 & 1))?;
                a.out(dx, eax)?;
                end_of_interrupt(a)?;
                a.pop(rdx)?;
                a.pop(rax)?;
                a.iretq()?;
            }
            _ => {
                end_of_interrupt(a)?;
                a.iretq()?;
            }
        }
        Ok(())
    });
    let mut idt = Vec::new();
    for (vector, at) in starts.iter().enumerate() {
        // NMI has a stack of its own; all may be called from level 3.
        let ist = u64::from(vector == 2);
        let low = at & 0xffff | u64::from(CS) << 16 | ist << 32 | 0xee00 << 32 | (at >> 16 & 0xffff) << 48;
        idt.extend(low.to_le_bytes());
        idt.extend((at >> 32).to_le_bytes());
    }
    (code, idt)
}

/// Memory around the code.
pub fn surroundings() -> Vec<(u64, Vec<u8>)> {
    let words = |w: &[u64]| w.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (code, idt) = handlers();
    assert!(HANDLERS + (code.len() as u64) < CODE);
    let directory: Vec<u64> =
        (0..2048u64).map(|n| if n << 21 == HOLE { 0 } else { n << 21 | 0x87 }).collect();
    let gdt = [
        0,
        descriptor(0, 0xfffff, 0x9b, 0xb),
        descriptor(0, 0xfffff, 0x93, 0xd),
        descriptor(0, 0xfffff, 0x9b, 0xd),
        descriptor(0, 0xfffff, 0xfb, 0xd),
        descriptor(0, 0xfffff, 0xf3, 0xd),
        descriptor(0, 0xfffff, 0xfb, 0xb),
        descriptor(TSS, 0x7ff, 0x8b, 1),
        0,
        descriptor(DATA + 0x700, 0x3f, 0x82, 1),
        0,
        // 58H: data with a base, for FS.
        descriptor(DATA + 0x900, 0xfff, 0x93, 5),
    ];
    let mut tss = vec![0u8; 0x104];
    tss[4..12].copy_from_slice(&STACK.to_le_bytes());
    tss[0x24..0x2c].copy_from_slice(&IST.to_le_bytes());
    tss[0x66..0x68].copy_from_slice(&0x68u16.to_le_bytes());
    let data: Vec<u8> = (0..0x1000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    vec![
        (PML4, words(&[PDPT | 7])),
        (PDPT, words(&[0, 1, 2, 3].map(|n| (PAGE_DIRECTORY + 0x1000 * n) | 7))),
        (PAGE_DIRECTORY, words(&directory)),
        (GDT, words(&gdt)),
        (IDT, idt),
        (TSS, tss),
        (HANDLERS, code),
        (DATA, data),
    ]
}

/// Assembles code for [`start_64`].
pub fn assemble(f: impl Fn(&mut Blocks) -> Assembled) -> Vec<u8> {
    let code = code::assemble(64, CODE, 0, f);
    assert!(CODE + (code.len() as u64) < DATA);
    code
}

pub(super) fn plan(name: &str, controllers: Controllers, instructions: u64, code: Vec<u8>) -> Plan {
    let mut plan = Plan::one(name, controllers, start_64(CODE, STACK), instructions);
    plan.pieces = surroundings();
    plan.pieces.push((CODE, code));
    plan
}

pub(super) fn wrmsr(a: &mut CodeAssembler, index: u32, value: u64) -> Assembled {
    a.mov(ecx, index)?;
    a.mov(eax, value as u32)?;
    a.mov(edx, (value >> 32) as u32)?;
    a.wrmsr()
}

pub(super) fn out(a: &mut CodeAssembler, port: u16, value: u32) -> Assembled {
    a.mov(edx, u32::from(port))?;
    a.mov(eax, value)?;
    a.out(dx, eax)
}

/// A register of the local APIC.
pub(super) fn lapic(a: &mut CodeAssembler, register: u64, value: u32) -> Assembled {
    a.mov(ebx, (LAPIC + register) as u32)?;
    a.mov(dword_ptr(rbx), value as i32)
}

/// EAX: a register of the local APIC.
pub(super) fn read_lapic(a: &mut CodeAssembler, register: u64) -> Assembled {
    a.mov(ebx, (LAPIC + register) as u32)?;
    a.mov(eax, dword_ptr(rbx))
}

pub(super) fn ioapic(a: &mut CodeAssembler, pin: u32, value: u64) -> Assembled {
    for (half, word) in [(1, (value >> 32) as u32), (0, value as u32)] {
        a.mov(ebx, IOAPIC as u32)?;
        a.mov(dword_ptr(rbx), (0x10 + 2 * pin + half) as i32)?;
        a.mov(dword_ptr(rbx + 0x10), word as i32)?;
    }
    Ok(())
}

/// x87, MMX, SSE, AVX, AVX-512, their control words, XSAVE and XCR0.
fn vectors(b: &mut Blocks) -> Assembled {
    b.block(|a| {
        a.fninit()?;
        a.fldpi()?;
        a.fld1()?;
        a.fldl2e()?;
        a.mov(word_ptr(DATA + 0x200), 0x27f)?;
        a.fldcw(word_ptr(DATA + 0x200))?;
        a.fld(dword_ptr(DATA + 0x40))?;
        a.fadd_2(st0, st1)?;
        a.fxch(st0, st1)?;
        a.fst(qword_ptr(DATA + 0x208))?;
        a.fnstsw(ax)
    })?;
    b.block(|a| {
        a.mov(dword_ptr(DATA + 0x210), 0x1fa2)?;
        a.ldmxcsr(dword_ptr(DATA + 0x210))?;
        for (n, r) in [
            xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14,
            xmm15,
        ]
        .into_iter()
        .enumerate()
        {
            a.movdqu(r, xmmword_ptr(DATA + 0x40 + 16 * n as u64))?;
        }
        a.paddd(xmm1, xmm2)?;
        a.mulps(xmm3, xmm4)?;
        a.movdqu(xmmword_ptr(DATA + 0x220), xmm3)
    })?;
    if std::is_x86_feature_detected!("avx") {
        b.block(|a| {
            for (n, r) in [
                ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13,
                ymm14, ymm15,
            ]
            .into_iter()
            .enumerate()
            {
                a.vmovdqu(r, ymmword_ptr(DATA + 0x50 + 16 * n as u64))?;
            }
            a.vaddps(ymm2, ymm3, ymm5)
        })?;
    }
    if std::is_x86_feature_detected!("avx512f") {
        b.block(|a| {
            a.mov(eax, 0x5a5a)?;
            for (n, k) in [k1, k2, k3, k4, k5, k6, k7].into_iter().enumerate() {
                a.add(eax, 0x1111 + n as i32)?;
                a.kmovw(k, eax)?;
            }
            a.kmovw(k0, eax)?;
            for (n, r) in [
                zmm0, zmm1, zmm2, zmm3, zmm4, zmm5, zmm6, zmm7, zmm8, zmm9, zmm10, zmm11, zmm12, zmm13,
                zmm14, zmm15, zmm16, zmm17, zmm18, zmm19, zmm20, zmm21, zmm22, zmm23, zmm24, zmm25, zmm26,
                zmm27, zmm28, zmm29, zmm30, zmm31,
            ]
            .into_iter()
            .enumerate()
            {
                a.vmovdqu64(r, zmmword_ptr(DATA + 0x60 + 8 * n as u64))?;
            }
            a.vpaddd(zmm17.k1(), zmm18, zmm19)
        })?;
    }
    b.block(|a| {
        a.mov(ecx, 0)?;
        a.xgetbv()?;
        a.mov(r8d, eax)?;
        a.and(eax, 3)?;
        a.xsetbv()?;
        a.nop()?;
        a.mov(eax, r8d)?;
        a.xsetbv()?;
        a.mov(eax, -1)?;
        a.mov(edx, -1)?;
        a.xsave(ptr(DATA + 0x1000))?;
        a.xrstor(ptr(DATA + 0x1000))?;
        a.fxsave(ptr(DATA + 0x3000))
    })?;
    b.block(|a| {
        // PKRU, where there is one.
        a.mov(rax, cr4)?;
        a.or(eax, 1 << 22)?;
        a.mov(cr4, rax)?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.mov(eax, 0x5550)?;
        a.wrpkru()?;
        a.rdpkru()
    })?;
    b.block(|a| {
        a.movq(mm0, qword_ptr(DATA + 8))?;
        a.movq(mm7, qword_ptr(DATA + 16))?;
        a.paddb(mm0, mm7)?;
        a.nop()
    })?;
    // An x87 exception that waits for the next instruction.
    b.block(|a| {
        a.emms()?;
        a.fninit()?;
        a.mov(word_ptr(DATA + 0x200), 0x37b)?;
        a.fldcw(word_ptr(DATA + 0x200))?;
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)?;
        a.nop()?;
        a.wait()
    })?;
    b.block(|a| {
        a.fnclex()?;
        a.fldpi()?;
        a.fld(tword_ptr(DATA + 0x70))
    })
}

/// String instructions, ports, device memory.
fn accesses(b: &mut Blocks) -> Assembled {
    b.block(|a| {
        a.cld()?;
        a.mov(esi, DATA as u32)?;
        a.mov(edi, (DATA + 0x400) as u32)?;
        a.mov(ecx, 9)?;
        a.rep().movsb()?;
        a.mov(ecx, 5)?;
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.rep().stosq()?;
        a.std()?;
        a.mov(ecx, 4)?;
        a.rep().movsw()?;
        a.cld()?;
        a.mov(edi, DATA as u32)?;
        a.mov(ecx, 20)?;
        a.mov(al, 0x77)?;
        a.repne().scasb()?;
        a.mov(esi, DATA as u32)?;
        a.mov(edi, (DATA + 0x400) as u32)?;
        a.mov(ecx, 12)?;
        a.repe().cmpsb()?;
        a.mov(ecx, 3)?;
        a.rep().lodsd()
    })?;
    b.block(|a| {
        a.mov(edx, u32::from(PORT_ECHO))?;
        a.mov(eax, 0x1234_5678)?;
        a.out(dx, eax)?;
        a.in_(eax, dx)?;
        a.out(dx, al)?;
        a.in_(al, dx)?;
        a.in_(al, 0x77)?;
        a.in_(ax, dx)?;
        a.mov(edx, u32::from(PORT_STREAM))?;
        a.mov(edi, (DATA + 0x600) as u32)?;
        a.mov(ecx, 5)?;
        a.rep().insb()?;
        a.mov(esi, DATA as u32)?;
        a.mov(ecx, 3)?;
        a.rep().outsw()?;
        a.insd()?;
        a.outsb()?;
        // Downwards: one item an exit.
        a.std()?;
        a.mov(ecx, 3)?;
        a.rep().insb()?;
        a.mov(ecx, 2)?;
        a.rep().outsb()?;
        a.cld()
    })?;
    b.block(|a| {
        a.mov(rbx, MMIO)?;
        a.mov(dword_ptr(rbx + 0x10), 0x0102_0304)?;
        a.mov(rax, qword_ptr(rbx + 0x10))?;
        a.add(dword_ptr(rbx + 0x14), eax)?;
        a.xchg(qword_ptr(rbx + 0x20), rax)?;
        // Across a page, and wider than an exit carries.
        a.mov(qword_ptr(rbx + 0xffc), rax)?;
        a.mov(rcx, qword_ptr(rbx + 0xffb))?;
        a.movdqu(xmm2, xmmword_ptr(rbx + 0x18))?;
        a.movdqu(xmmword_ptr(rbx + 0x30), xmm2)?;
        a.mov(rsi, rbx)?;
        a.mov(edi, (DATA + 0x640) as u32)?;
        a.mov(ecx, 3)?;
        a.rep().movsd()?;
        a.mov(rdi, rbx)?;
        a.mov(ecx, 3)?;
        a.rep().stosw()?;
        a.push(qword_ptr(rbx + 8))?;
        a.pop(qword_ptr(rbx + 0x48))?;
        // Half in memory, half not.
        a.lock().cmpxchg(qword_ptr(rbx + 0x50), rcx)
    })
}

/// Exceptions, debug registers, single step, shadows, level 3.
fn exceptions(b: &mut Blocks) -> Assembled {
    b.block(|a| a.ud2())?;
    b.block(|a| {
        a.xor(ecx, ecx)?;
        a.div(ecx)
    })?;
    b.block(|a| a.mov(rax, qword_ptr(HOLE + 0x123)))?;
    b.block(|a| {
        a.mov(rbx, HOLE + 0xff8)?;
        a.mov(qword_ptr(rbx), rax)
    })?;
    b.block(|a| {
        a.mov(rbx, 0x8000_0000_0000_0000u64)?;
        a.mov(rax, qword_ptr(rbx))
    })?;
    b.block(|a| {
        a.int3()?;
        a.int(0x80)
    })?;
    b.block(|a| {
        for (n, v) in [CODE + 4, DATA + 0x10, DATA + 0x20, 0x77].into_iter().enumerate() {
            a.mov(rax, v)?;
            match n {
                0 => a.mov(dr0, rax)?,
                1 => a.mov(dr1, rax)?,
                2 => a.mov(dr2, rax)?,
                _ => a.mov(dr3, rax)?,
            }
        }
        // Writes of DR1, reads and writes of DR2; instructions at DR3.
        a.lea(rax, ptr(DATA))?;
        a.mov(eax, 0x0d10_07a8)?;
        a.mov(dr7, rax)?;
        a.mov(dword_ptr(DATA + 0x10), 1)?;
        a.mov(eax, dword_ptr(DATA + 0x20))?;
        a.mov(ecx, 3)?;
        a.mov(edi, (DATA + 0x0f) as u32)?;
        a.rep().stosb()?;
        // The shadow of MOV SS holds the trap back.
        a.mov(ecx, ss)?;
        a.mov(word_ptr(DATA + 0x20), cx)?;
        a.mov(ss, word_ptr(DATA + 0x20))?;
        a.nop()?;
        a.mov(rax, dr6)?;
        a.mov(ecx, 0xffff_0ff0u32)?;
        a.mov(dr6, rcx)?;
        // General detect.
        a.mov(eax, 0x2400)?;
        a.mov(dr7, rax)?;
        a.mov(rax, dr0)?;
        a.mov(eax, 0x0d10_0400)?;
        a.mov(dr7, rax)
    })?;
    b.block(|a| {
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.nop()?;
        a.mov(ecx, 3)?;
        a.mov(edi, (DATA + 0x680) as u32)?;
        a.rep().stosb()?;
        a.mov(ecx, ss)?;
        a.mov(ss, ecx)?;
        a.nop()?;
        a.pushfq()?;
        a.and(dword_ptr(rsp), -257)?;
        a.popfq()?;
        a.mov(ecx, ss)?;
        a.mov(ss, ecx)?;
        a.sti()?;
        a.nop()?;
        a.cli()?;
        a.nop()
    })?;
    // Level 3 and back by SYSCALL.
    b.block(|a| {
        let (mut user, mut back) = (a.create_label(), a.create_label());
        wrmsr(a, 0xc000_0081, (0x23u64 << 48) | u64::from(CS) << 32)?;
        a.lea(rax, ptr(back))?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 32)?;
        a.mov(ecx, 0xc000_0082u32)?;
        a.wrmsr()?;
        wrmsr(a, 0xc000_0084, 0x4_0700)?;
        a.mov(rbp, rsp)?;
        a.push(i32::from(USER_SS))?;
        a.push(USER_STACK as i32)?;
        a.push(0x4_0202)?;
        a.push(i32::from(USER_CS))?;
        a.lea(rax, ptr(user))?;
        a.push(rax)?;
        a.iretq()?;
        a.set_label(&mut user)?;
        a.push(rax)?;
        a.mov(eax, dword_ptr(DATA + 0x41))?;
        a.rdtsc()?;
        a.syscall()?;
        a.set_label(&mut back)?;
        a.mov(rsp, rbp)?;
        a.swapgs()?;
        a.swapgs()
    })
}

/// MSRs, control registers, selectors, time and chance.
fn registers(b: &mut Blocks) -> Assembled {
    for (index, value) in [
        (0x174u32, 0x18u64),
        (0x175, 0x7777_0000),
        (0x176, 0x1_2345_6780),
        (0xc000_0083, 0x1_0000_1234),
        (0xc000_0102, 0x7f_1234_5678),
        (0xc000_0103, 5),
        (0x277, 0x0007_0406_0007_0106),
        (0x200, 0x8000_0006),
        (0x201, 0xf_8000_0800),
        (0x250, 0x0606_0606_0606_0606),
        (0x268, 0x0505_0505_0505_0505),
        (0x26f, 0x0404_0404_0404_0404),
        (0x2ff, 0xc06),
        (0x1a0, 1),
        (0x48, 1),
        (0x140, 1),
        (0x400, 0xff),
        (0x17a, 4),
        (0x17b, 0xff),
        (0x3b, 0x1234),
        (0x10, 0x5000_0000),
        (0x8b, 0),
        (0x4b56_4d01, KVMCLOCK | 1),
        (0x4b56_4d00, KVMCLOCK + 0x40),
        (0x4b56_4d05, 0),
        (0xda0, 0),
        (0x1d9, 0),
        (0x3a, 5),
    ] {
        b.block(|a| wrmsr(a, index, value))?;
    }
    b.block(|a| {
        a.rdtsc()?;
        a.mov(r12d, eax)?;
        a.mov(ecx, 0x3b)?;
        a.rdmsr()?;
        a.mov(r13d, eax)?;
        a.rdrand(r14)?;
        a.rdseed(rbx)?;
        a.mov(eax, dword_ptr(KVMCLOCK))?;
        a.mov(rax, qword_ptr(KVMCLOCK + 8))?;
        a.mov(rdx, qword_ptr(KVMCLOCK + 16))
    })?;
    b.block(|a| {
        a.mov(eax, 3)?;
        a.mov(cr8, rax)?;
        a.nop()?;
        a.mov(eax, 9)?;
        a.mov(cr8, rax)?;
        a.mov(eax, 1)?;
        a.mov(cr8, rax)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.mov(rax, cr0)?;
        a.xor(eax, 0x4_0002)?;
        a.mov(cr0, rax)?;
        a.nop()?;
        a.xor(eax, 0x4_0002)?;
        a.mov(cr0, rax)?;
        a.mov(eax, 0x58)?;
        a.mov(fs, eax)?;
        a.mov(rax, qword_ptr(rsp).fs())
    })?;
    b.block(|a| {
        a.xor(eax, eax)?;
        a.mov(gs, eax)?;
        a.mov(es, eax)?;
        a.mov(ecx, 0xc000_0101u32)?;
        a.mov(eax, (DATA + 0x900) as u32)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(eax, dword_ptr(0u64).gs())
    })
}

/// The controllers and timers inside.
fn interrupts(b: &mut Blocks) -> Assembled {
    b.block(|a| {
        lapic(a, 0xf0, 0x1ff)?;
        lapic(a, 0x80, 0x10)?;
        lapic(a, 0xd0, 0x0100_0000)?;
        lapic(a, 0x370, 0xfe)?;
        lapic(a, 0x330, 0x1_00f1)?;
        lapic(a, 0x340, 0x1_00f2)?;
        lapic(a, 0x360, 0x400)?;
        // Pins: 5 and 6 by level, 7 by edge, 2 for the PIT, 9 masked.
        ioapic(a, 5, 0x8060)?;
        ioapic(a, 6, 0x8061)?;
        ioapic(a, 7, 0x62)?;
        ioapic(a, 2, 0x63)?;
        ioapic(a, 9, 0x1_8064)
    })?;
    // A one-shot that fires in the middle of the code, with a divider.
    b.block(|a| {
        lapic(a, 0x3e0, 1)?;
        lapic(a, 0x320, 0x70)?;
        lapic(a, 0x380, 9)?;
        a.sti()?;
        for _ in 0..45 {
            a.add(rax, 1)?;
        }
        read_lapic(a, 0x390)?;
        a.cli()
    })?;
    // Lines: a level held while it is in service; an edge; one that waits for its mask.
    b.block(|a| {
        a.sti()?;
        out(a, PORT_IRQ, 5 | 1 << 16)?;
        a.nop()?;
        a.cli()?;
        out(a, PORT_IRQ, 6 | 1 << 16)?;
        out(a, PORT_IRQ, 9 | 1 << 16)?;
        out(a, PORT_PULSE, 7)?;
        a.nop()?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        out(a, PORT_MSI, 0x71)?;
        a.nop()?;
        // Under a priority that holds it off.
        lapic(a, 0x80, 0xf0)?;
        out(a, PORT_MSI, 0x72)?;
        out(a, PORT_MSI, 0x92)?;
        a.nop()?;
        lapic(a, 0x80, 0x10)?;
        a.nop()?;
        a.cli()
    })?;
    b.block(|a| {
        out(a, PORT_NMI, 0)?;
        a.nop()?;
        a.nop()?;
        // To itself: an NMI and a fixed interrupt.
        lapic(a, 0x300, 0x4_0400)?;
        a.nop()?;
        lapic(a, 0x300, 0x4_0075)?;
        a.sti()?;
        a.nop()?;
        a.cli()?;
        // An error: an illegal vector.
        lapic(a, 0x370, 0xfd)?;
        lapic(a, 0x300, 0x4_0003)?;
        lapic(a, 0x280, 0)?;
        read_lapic(a, 0x280)?;
        a.sti()?;
        a.nop()?;
        a.cli()
    })?;
    // The TSC deadline, in the code and from HLT.
    b.block(|a| {
        lapic(a, 0x320, 0x4_0073)?;
        for n in [30, 3000] {
            a.rdtsc()?;
            a.add(eax, n)?;
            a.mov(ecx, 0x6e0)?;
            a.wrmsr()?;
            a.sti()?;
            if n > 1000 {
                a.hlt()?;
            } else {
                for _ in 0..40 {
                    a.inc(rbx)?;
                }
            }
            a.cli()?;
        }
        Ok(())
    })?;
    // Periodic, from HLT; the PIT in modes 2 and 4, its latches half read; the PICs.
    b.block(|a| {
        lapic(a, 0x3e0, 0xb)?;
        lapic(a, 0x320, 0x2_0074)?;
        lapic(a, 0x380, 300_007)?;
        a.sti()?;
        a.hlt()?;
        a.hlt()?;
        a.cli()?;
        lapic(a, 0x320, 0x3_0074)
    })?;
    b.block(|a| {
        for (port, value) in [
            (0x43u8, 0x34u8),
            (0x40, 0x80),
            (0x40, 2),
            (0x43, 0xb6),
            (0x42, 7),
            (0x42, 9),
            (0x61, 1),
            (0x43, 0x70),
        ] {
            a.mov(al, i32::from(value))?;
            a.out(u32::from(port) as i32, al)?;
        }
        a.mov(al, 0x41)?;
        a.out(0x41, al)?;
        a.mov(al, 0xc2)?;
        a.out(0x43, al)?;
        a.in_(al, 0x40)?;
        a.in_(al, 0x40)?;
        a.sti()?;
        a.hlt()?;
        a.in_(al, 0x42)?;
        a.nop()?;
        a.hlt()?;
        a.in_(al, 0x61)?;
        a.mov(al, 0x38)?;
        a.out(0x43, al)?;
        a.mov(al, 0x90)?;
        a.out(0x40, al)?;
        a.nop()?;
        a.mov(al, 0)?;
        a.out(0x40, al)?;
        a.hlt()?;
        a.cli()
    })?;
    b.block(|a| {
        lapic(a, 0x350, 0x700)?;
        for (port, value) in [
            (0x20u32, 0x11),
            (0x21, 0x20),
            (0x21, 4),
            (0x21, 1),
            (0xa0, 0x11),
            (0xa1, 0x28),
            (0xa1, 2),
            (0xa1, 3),
            (0x21, 0xf1),
            (0xa1, 0xef),
            (0x20, 0x68),
            (0xa0, 0x0a),
            (0x20, 0xc2),
        ] {
            a.mov(al, value)?;
            a.out(port as i32, al)?;
        }
        a.mov(dx, 0x4d0)?;
        a.mov(al, 8)?;
        a.out(dx, al)?;
        a.inc(edx)?;
        a.mov(al, 0x10)?;
        a.out(dx, al)?;
        // Line 3 by level, line 12 behind the second PIC.
        out(a, PORT_IRQ, 3 | 1 << 16)?;
        out(a, PORT_IRQ, 12 | 1 << 16)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.cli()?;
        out(a, PORT_IRQ, 3)?;
        out(a, PORT_IRQ, 12)?;
        out(a, PORT_IRQ, 9)?;
        a.mov(al, 0x0b)?;
        a.out(0x20, al)?;
        a.in_(al, 0x20)
    })?;
    // x2APIC mode.
    b.block(|a| {
        wrmsr(a, 0x1b, 0xfee0_0d00)?;
        wrmsr(a, 0x80f, 0x1ff)?;
        wrmsr(a, 0x830, 0x4_0076)?;
        a.sti()?;
        a.nop()?;
        a.cli()?;
        a.mov(ecx, 0x80d)?;
        a.rdmsr()?;
        wrmsr(a, 0x80b, 0)?;
        wrmsr(a, 0x80b, 0)?;
        wrmsr(a, 0x832, 0x2_0077)?;
        wrmsr(a, 0x838, 900_000)
    })
}

/// Instructions of [`whole`] that are run.
const WINDOW: u64 = 1000;

/// Everything that one processor with all controllers has; `payload` is KVM_CAP_EXCEPTION_PAYLOAD.
pub fn whole(payload: bool) -> Plan {
    let code = assemble(|b| {
        accesses(b)?;
        exceptions(b)?;
        vectors(b)?;
        registers(b)?;
        interrupts(b)?;
        accesses(b)?;
        exceptions(b)
    });
    let mut p = plan(if payload { "64-bit, payloads" } else { "64-bit" }, Controllers::Full, WINDOW, code);
    p.exception_payload = payload;
    p.mce_banks = 4;
    p
}

/// No controllers inside: KVM_INTERRUPT, KVM_EXIT_HLT, CR8; MSRs that exit; another TSC frequency.
pub fn no_controllers() -> Plan {
    let code = assemble(|b| {
        accesses(b)?;
        b.block(|a| {
            out(a, PORT_VECTOR, 0x81)?;
            a.nop()?;
            a.sti()?;
            a.nop()?;
            a.nop()?;
            a.hlt()?;
            a.nop()?;
            a.cli()?;
            out(a, PORT_VECTOR, 0x82)?;
            a.mov(ecx, ss)?;
            a.mov(ss, ecx)?;
            a.sti()?;
            a.nop()?;
            a.cli()?;
            out(a, PORT_NMI, 0)?;
            a.nop()
        })?;
        for (index, write) in
            [(0x1234u32, true), (0x1234, false), (0xc000_0080, true), (0x4321, false), (0x277, true)]
        {
            b.block(|a| {
                a.mov(eax, -1)?;
                a.mov(edx, -1)?;
                a.mov(ecx, index)?;
                if write { a.wrmsr() } else { a.rdmsr() }
            })?;
        }
        registers(b)?;
        exceptions(b)
    });
    let mut p = plan("no controllers", Controllers::None, 100_000, code);
    p.user_msrs = true;
    p.tsc_khz = 1_500_000;
    p.mce_banks = 2;
    p
}

/// The local APIC inside, the others outside.
pub fn split() -> Plan {
    let code = assemble(|b| {
        b.block(|a| {
            lapic(a, 0xf0, 0x1ff)?;
            lapic(a, 0x3e0, 2)?;
            lapic(a, 0x320, 0x70)?;
            lapic(a, 0x380, 11)?;
            a.sti()?;
            for n in 0..30 {
                a.add(rax, n)?;
            }
            out(a, PORT_MSI, 0x71)?;
            a.nop()?;
            a.cli()?;
            out(a, PORT_MSI, 0x72)?;
            out(a, PORT_MSI, 0x92)?;
            a.sti()?;
            a.hlt()?;
            a.cli()
        })?;
        accesses(b)?;
        registers(b)
    });
    plan("split", Controllers::Split, 100_000, code)
}

/// Some of the code's instructions, and their first bytes.
fn breakpoints(pieces: &[(u64, Vec<u8>)]) -> Vec<(u64, u8)> {
    let code = pieces.iter().find(|p| p.0 == CODE).map(|p| &p.1[..]).unwrap_or_default();
    let decoder = iced_x86::Decoder::with_ip(64, code, CODE, 0);
    // An INT3 of the guest's own stays what it is.
    let places = decoder.into_iter().filter(|i| i.code() != iced_x86::Code::Int3).step_by(5);
    places.map(|i| (i.ip(), code[(i.ip() - CODE) as usize])).collect()
}

/// Under KVM_SET_GUEST_DEBUG: `control` bits, and a breakpoint on the fifth instruction.
pub fn debugged(control: u32) -> Plan {
    let code = assemble(|b| {
        exceptions(b)?;
        accesses(b)
    });
    let mut p = plan(&format!("guest debug {control:#x}"), Controllers::Full, 100_000, code);
    let mut d = kvm_guest_debug { control, ..Default::default() };
    d.arch.debugreg[0] = CODE + 0x20;
    d.arch.debugreg[1] = DATA + 0x20;
    d.arch.debugreg[7] = 0x00f0_000a | 2;
    p.vcpus[0].debug = Some(d);
    if control & KVM_GUESTDBG_USE_SW_BP != 0 {
        p.breakpoints = breakpoints(&p.pieces);
    }
    // Without it a trap that the shadow of MOV SS holds back is lost, as in KVM.
    p.exception_payload = true;
    p
}
