//! From the reset vector to 64-bit mode: real mode, protected mode, page tables, descriptor tables, handlers.
//!
//! The boot processor comes from the ROM at the reset vector, the second one from INIT and SIPI; both go the
//! way over [`TRAMPOLINE`]. Who is first builds the page tables.

use super::layout::*;
use super::program::{Assembled, Program};
use iced_x86::code_asm::*;

/// Bytes of an image, and where they belong in guest-physical memory.
pub type Piece = (u64, Vec<u8>);

const PE: i32 = 1;
const PAGING: u32 = 0x8001_0023;
const EFER: u32 = 0xc000_0080;
/// Real-mode handlers' offsets in the ROM.
const INT_HANDLER: u32 = 0xf000;
const DIVIDE_HANDLER: u32 = 0xf100;

fn assemble(bits: u32, ip: u64, f: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Assembled<Vec<u8>> {
    let mut a = CodeAssembler::new(bits)?;
    f(&mut a)?;
    a.assemble(ip)
}

/// The ROM: real-mode checks, then a far jump to the trampoline.
pub fn rom() -> Assembled<Vec<u8>> {
    const BODY: u64 = 0xe000;
    let mut rom = vec![0xcc; ROM_SIZE as usize];
    let body = assemble(16, BODY, |a| {
        a.cli()?;
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(ss, ax)?;
        a.mov(sp, 0x7c00)?;
        // CS is F000H with the base FFFF0000H until it is loaded: the handlers, and all behind the first IRET,
        // run from the ROM's copy at F0000H.
        for (vector, handler) in [(0x60u32, INT_HANDLER), (0, DIVIDE_HANDLER)] {
            a.mov(word_ptr(vector * 4), handler)?;
            a.mov(word_ptr(vector * 4 + 2), 0xf000u32)?;
        }
        a.mov(ax, 0x1234)?;
        a.int(0x60)?;
        a.mov(word_ptr(REAL_MODE as u32), ax)?;
        a.xor(dx, dx)?;
        a.mov(ax, 7)?;
        a.mov(bl, 0)?;
        a.div(bl)?;
        a.mov(word_ptr(REAL_MODE as u32 + 2), ax)?;
        // A segment with a base: 40H:510H-400H+4 is REAL_MODE + 4. And a 32-bit operand.
        a.mov(ax, 0x40)?;
        a.mov(es, ax)?;
        a.mov(eax, 0x89ab_cdefu32)?;
        a.mov(dword_ptr(REAL_MODE as u32 + 4 - 0x400).es(), eax)?;
        // A stack of 16 bits wraps around: PUSH at SP 0 writes at FFFEH.
        a.mov(cx, sp)?;
        a.mov(dx, ss)?;
        a.mov(ax, 0x9000)?;
        a.mov(ss, ax)?;
        a.mov(sp, 0)?;
        a.push(0x5aa5u32 as i32)?;
        a.mov(bx, sp)?;
        a.mov(ss, dx)?;
        a.mov(sp, cx)?;
        a.mov(word_ptr(REAL_MODE as u32 + 8), bx)?;
        a.db(&[0xea, 0, 0, (TRAMPOLINE >> 4) as u8, (TRAMPOLINE >> 12) as u8])
    })?;
    rom[BODY as usize..][..body.len()].copy_from_slice(&body);
    // INT 60H: inverts AX. #DE: skips the two bytes of DIV, and AX becomes 4444H.
    let handler = assemble(16, u64::from(INT_HANDLER), |a| {
        a.not(ax)?;
        a.iret()
    })?;
    rom[INT_HANDLER as usize..][..handler.len()].copy_from_slice(&handler);
    let handler = assemble(16, u64::from(DIVIDE_HANDLER), |a| {
        a.push(bp)?;
        a.mov(bp, sp)?;
        a.add(word_ptr(bp + 2), 2)?;
        a.pop(bp)?;
        a.mov(ax, 0x4444)?;
        a.iret()
    })?;
    rom[DIVIDE_HANDLER as usize..][..handler.len()].copy_from_slice(&handler);
    let reset = assemble(16, 0xfff0, |a| a.jmp(BODY))?;
    rom[0xfff0..][..reset.len()].copy_from_slice(&reset);
    Ok(rom)
}

/// Below 64 KiB: trampoline, 32-bit code, descriptor tables.
pub fn low() -> Assembled<Vec<Piece>> {
    let trampoline = assemble(16, 0, |a| {
        a.cli()?;
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        // lgdt [GDTR] with a 32-bit operand.
        a.db(&[0x66, 0x0f, 0x01, 0x16, GDTR as u8, (GDTR >> 8) as u8])?;
        a.mov(eax, cr0)?;
        a.or(eax, PE)?;
        a.mov(cr0, eax)?;
        // jmp far KERNEL_CS32:CODE32
        a.db(&[0x66, 0xea, CODE32 as u8, (CODE32 >> 8) as u8, 0, 0, KERNEL_CS32 as u8, 0])
    })?;
    let code32 = assemble(32, CODE32, |a| {
        let (mut built, mut fill) = (a.create_label(), a.create_label());
        a.mov(eax, KERNEL_SS)?;
        for s in [ds, es, ss, fs, gs] {
            a.mov(s, eax)?;
        }
        // BCD and INC in one byte exist in this mode only.
        a.mov(eax, 0x0000_0747u32)?;
        a.sub(al, 0x19)?;
        a.das()?;
        a.inc(eax)?;
        a.mov(dword_ptr(PROTECTED_MODE as u32), eax)?;
        a.mov(eax, 1)?;
        a.lock().xadd(dword_ptr(STARTED as u32), eax)?;
        a.test(eax, eax)?;
        a.jnz(built)?;
        // 4 GiB one to one in 2 MiB pages, for the supervisor.
        let user_table = 7u32;
        a.mov(dword_ptr(PML4 as u32), (PML4 + 0x1000) as u32 | user_table)?;
        for n in 0..4u32 {
            a.mov(dword_ptr(PML4 as u32 + 0x1000 + 8 * n), (PML4 as u32 + 0x2000 + 0x1000 * n) | user_table)?;
        }
        a.mov(edi, PML4 as u32 + 0x2000)?;
        a.mov(eax, 0x83)?;
        a.mov(ecx, 2048)?;
        a.set_label(&mut fill)?;
        a.mov(dword_ptr(edi), eax)?;
        a.mov(dword_ptr(edi + 4), 0)?;
        a.add(edi, 8)?;
        a.add(eax, 0x20_0000)?;
        a.dec(ecx)?;
        a.jnz(fill)?;
        // The window.
        a.mov(dword_ptr(PML4 as u32 + 8), WINDOW_PDPT as u32 | user_table)?;
        a.mov(dword_ptr(WINDOW_PDPT as u32), WINDOW_PD as u32 | user_table)?;
        a.mov(dword_ptr(WINDOW_PD as u32), WINDOW_PT as u32 | user_table)?;
        a.set_label(&mut built)?;
        // PAE, PGE, OSFXSR, OSXMMEXCPT.
        a.mov(eax, 0x6a0)?;
        a.mov(cr4, eax)?;
        a.mov(eax, PML4 as u32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, EFER)?;
        a.rdmsr()?;
        // SCE, LME, NXE.
        a.or(eax, 0x901)?;
        a.wrmsr()?;
        a.mov(eax, PAGING)?;
        a.mov(cr0, eax)?;
        let entry = CODE64 as u32;
        let [b0, b1, b2, b3] = entry.to_le_bytes();
        a.db(&[0xea, b0, b1, b2, b3, KERNEL_CS as u8, 0])
    })?;
    let tss = |base: u64| {
        let low = 0x67 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        [low, base >> 32]
    };
    let [tss_low, tss_high] = tss(TSS);
    let [second_low, second_high] = tss(TSS + 0x80);
    let gdt: [u64; 16] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        tss_low,
        tss_high,
        second_low,
        second_high,
        0x00cf_1300_0000_ffff, // not present
        0x0000_9300_0000_ffff,
        0,
        0,
        0,
    ];
    let gdt: Vec<u8> = gdt.iter().flat_map(|d| d.to_le_bytes()).collect();
    let pseudo = |base: u64, size: u64| {
        let mut v = (size as u16 - 1).to_le_bytes().to_vec();
        v.extend(base.to_le_bytes());
        v
    };
    let mut task = vec![0u8; 0x68];
    task[4..12].copy_from_slice(&RSP0.to_le_bytes());
    task[0x24..0x2c].copy_from_slice(&IST1.to_le_bytes());
    task[0x2c..0x34].copy_from_slice(&IST2.to_le_bytes());
    task[0x66..0x68].copy_from_slice(&0x68u16.to_le_bytes());
    // The second processor has its own stacks, below the first's.
    let mut second = task.clone();
    second[4..12].copy_from_slice(&(RSP0 - 0x4000).to_le_bytes());
    Ok(vec![
        (TRAMPOLINE, trampoline),
        (CODE32, code32),
        (GDT, gdt),
        (GDTR, pseudo(GDT, GDT_SIZE)),
        (IDTR, pseudo(IDT, 0x1000)),
        (TSS, task),
        (TSS + 0x80, second),
    ])
}

/// The first 64-bit instructions: who am I, stack, tables, gates.
pub fn enter(p: &mut Program) -> Assembled {
    let routines = p.routines;
    let mut first = p.a.create_label();
    p.a.mov(eax, KERNEL_SS)?;
    for s in [ds, es, ss] {
        p.a.mov(s, eax)?;
    }
    p.lapic_read(0x20)?;
    p.a.shr(eax, 24)?;
    p.a.test(eax, eax)?;
    p.a.jz(first)?;
    p.a.jmp(routines.second)?;
    p.a.set_label(&mut first)?;
    p.a.mov(rsp, STACK)?;
    p.a.fninit()?;
    handlers(p)?;
    p.a.lidt(ptr(IDTR))?;
    p.a.mov(eax, TSS_SELECTOR)?;
    p.a.ltr(ax)?;
    // The local APIC on, spurious vector FFH; LINT0 takes the PICs' interrupts.
    p.lapic_write(0xf0, 0x1ff)?;
    p.lapic_write(0x350, 0x700)?;
    p.lapic_write(0x80, 0)?;
    // SYSCALL: STAR, LSTAR, FMASK (IF and DF).
    p.wrmsr(0xc000_0081, (u64::from(KERNEL_CS) << 32) | 0x23 << 48)?;
    p.a.lea(rax, ptr(routines.syscall))?;
    p.a.xor(edx, edx)?;
    p.a.mov(ecx, 0xc000_0082u32)?;
    p.a.wrmsr()?;
    p.wrmsr(0xc000_0084, 0x600)?;
    p.map(16, USER_CODE_FRAME | 5)?;
    p.map(17, USER_STACK_FRAME | 7)
}

/// What the way here has left in memory.
pub fn checks(p: &mut Program) -> Assembled {
    p.check_at("real mode: INT, #DE, a segment's base", REAL_MODE, 0x89ab_cdef_4444_edcb)?;
    p.a.movzx(eax, word_ptr(REAL_MODE + 8))?;
    p.check("real mode: the stack wraps", 0xfffe)?;
    p.a.movzx(eax, word_ptr(0x9_fffeu64))?;
    p.check("real mode: what was pushed", 0x5aa5)?;
    p.a.mov(eax, dword_ptr(PROTECTED_MODE))?;
    p.check("protected mode: SUB, DAS, INC", 0x0729)?;
    p.rdmsr(EFER)?;
    p.a.and(eax, 0xd01)?;
    p.check("long mode: EFER has SCE, LME, LMA, NXE", 0xd01)?;
    p.a.mov(rax, cs)?;
    p.check("long mode: CS", u64::from(KERNEL_CS))?;
    p.a.str(ax)?;
    p.a.movzx(eax, ax)?;
    p.check("TR", u64::from(TSS_SELECTOR))?;
    p.a.movzx(eax, byte_ptr(GDT + u64::from(TSS_SELECTOR) + 5))?;
    p.check("LTR marks the TSS busy", 0x8b)?;
    // CPUID's hypervisor leaf: "KVMKVMKVM".
    p.a.mov(eax, 0x4000_0000u32)?;
    p.a.cpuid()?;
    p.a.mov(eax, ebx)?;
    p.a.shl(rcx, 32)?;
    p.a.or(rax, rcx)?;
    p.check("CPUID 40000000H", u64::from_le_bytes(*b"KVMKVMKV"))
}

/// Gates and the code behind them.
fn handlers(p: &mut Program) -> Assembled {
    const INTERRUPT_GATE: u32 = 0x8e00;
    let mut past = p.a.create_label();
    p.a.jmp(past)?;
    let mut gates = Vec::new();
    for vector in (0..32).chain([VECTOR_USER]) {
        let mut stub = p.a.create_label();
        p.a.set_label(&mut stub)?;
        if !matches!(vector, 8 | 10..=14 | 17 | 21) {
            p.a.push(0)?;
        }
        p.a.push(i32::from(vector))?;
        p.a.jmp(p.routines.fault)?;
        let kind = match vector {
            // #DF on IST 1; NMI counts, on IST 2.
            8 => INTERRUPT_GATE | 1,
            3 | VECTOR_USER => INTERRUPT_GATE | 0x6000,
            _ => INTERRUPT_GATE,
        };
        gates.push((vector, stub, kind));
    }
    let mut nmi = p.a.create_label();
    p.a.set_label(&mut nmi)?;
    p.a.lock().inc(qword_ptr(COUNTS + 8 * 2))?;
    p.a.mov(qword_ptr(F_HANDLER_RSP), rsp)?;
    p.a.iretq()?;
    gates.push((2, nmi, INTERRUPT_GATE | 2));
    for vector in VECTOR_PIC..VECTOR_PIC + 16 {
        let mut stub = p.a.create_label();
        p.a.set_label(&mut stub)?;
        p.a.push(rax)?;
        p.a.lock().inc(qword_ptr(COUNTS + 8 * u64::from(vector)))?;
        p.a.mov(al, 0x20)?;
        if vector >= VECTOR_PIC + 8 {
            p.a.out(0xa0, al)?;
        }
        p.a.out(0x20, al)?;
        p.a.pop(rax)?;
        p.a.iretq()?;
        gates.push((vector, stub, INTERRUPT_GATE));
    }
    for vector in [VECTOR_TIMER, VECTOR_EDGE, VECTOR_LEVEL, VECTOR_IPI, VECTOR_SHOOT, VECTOR_HIGH] {
        let mut stub = p.a.create_label();
        p.a.set_label(&mut stub)?;
        p.a.push(rax)?;
        p.a.push(rdi)?;
        p.a.push(rdx)?;
        match vector {
            // The line falls at the second time.
            VECTOR_LEVEL => {
                let mut first = p.a.create_label();
                p.a.cmp(qword_ptr(COUNTS + 8 * u64::from(vector)), 1)?;
                p.a.jb(first)?;
                p.out32(PORT_IRQ, 11)?;
                p.a.set_label(&mut first)?;
            }
            VECTOR_SHOOT => {
                p.a.mov(rax, WINDOW + 20 * 0x1000)?;
                p.a.invlpg(ptr(rax))?;
                p.a.lock().inc(qword_ptr(SHOT))?;
            }
            _ => {}
        }
        p.a.lock().inc(qword_ptr(COUNTS + 8 * u64::from(vector)))?;
        p.lapic_write(0xb0, 0)?;
        p.a.pop(rdx)?;
        p.a.pop(rdi)?;
        p.a.pop(rax)?;
        p.a.iretq()?;
        gates.push((vector, stub, INTERRUPT_GATE));
    }
    p.a.set_label(&mut past)?;
    for (vector, stub, kind) in gates {
        p.gate(vector, stub, kind)?;
    }
    Ok(())
}

/// The code behind [`super::program::Routines`].
pub fn routines(p: &mut Program) -> Assembled {
    let r = p.routines;
    let [mut report, mut set_gate, mut kvmclock, mut fault, mut syscall] =
        [r.report, r.set_gate, r.kvmclock, r.fault, r.syscall];
    let a = &mut p.a;
    a.set_label(&mut report)?;
    let mut equal = a.create_label();
    a.mov(qword_ptr(ACTUAL), rax)?;
    a.mov(qword_ptr(EXPECTED), rdx)?;
    a.cmp(rax, rdx)?;
    a.mov(eax, ecx)?;
    a.je(equal)?;
    a.or(eax, FAILED as i32)?;
    a.set_label(&mut equal)?;
    a.mov(edx, u32::from(PORT_REPORT))?;
    a.out(dx, eax)?;
    a.ret()?;

    a.set_label(&mut set_gate)?;
    a.shl(edi, 4)?;
    a.add(edi, IDT as i32)?;
    a.mov(word_ptr(rdi), ax)?;
    a.mov(word_ptr(rdi + 2), KERNEL_CS)?;
    a.mov(word_ptr(rdi + 4), si)?;
    a.shr(rax, 16)?;
    a.mov(word_ptr(rdi + 6), ax)?;
    a.shr(rax, 16)?;
    a.mov(dword_ptr(rdi + 8), eax)?;
    a.mov(dword_ptr(rdi + 12), 0)?;
    a.ret()?;

    // KVM msr.txt: odd version: being written; nanoseconds are (TSC - stamp) scaled, plus system time.
    let (mut negative, mut scaled) = (a.create_label(), a.create_label());
    a.set_label(&mut kvmclock)?;
    a.mov(r8d, dword_ptr(rsi))?;
    a.test(r8d, 1)?;
    a.jnz(kvmclock)?;
    a.lfence()?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.sub(rax, qword_ptr(rsi + 8))?;
    a.mov(cl, byte_ptr(rsi + 28))?;
    a.test(cl, cl)?;
    a.js(negative)?;
    a.shl(rax, cl)?;
    a.jmp(scaled)?;
    a.set_label(&mut negative)?;
    a.neg(cl)?;
    a.shr(rax, cl)?;
    a.set_label(&mut scaled)?;
    a.mov(edx, dword_ptr(rsi + 24))?;
    a.mul(rdx)?;
    a.shrd(rax, rdx, 32)?;
    a.add(rax, qword_ptr(rsi + 16))?;
    a.cmp(r8d, dword_ptr(rsi))?;
    a.jne(kvmclock)?;
    a.ret()?;

    // On the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
    let mut fatal = a.create_label();
    a.set_label(&mut fault)?;
    a.mov(qword_ptr(F_HANDLER_RSP), rsp)?;
    a.push(rax)?;
    for (variable, at) in [(F_VECTOR, 8), (F_ERROR, 16), (F_RIP, 24), (F_CS, 32), (F_RFLAGS, 40), (F_RSP, 48)]
    {
        a.mov(rax, qword_ptr(rsp + at))?;
        a.mov(qword_ptr(variable), rax)?;
    }
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(F_CR2), rax)?;
    a.mov(rax, qword_ptr(RESUME))?;
    a.test(rax, rax)?;
    a.jz(fatal)?;
    a.mov(qword_ptr(RESUME), 0)?;
    a.mov(qword_ptr(rsp + 24), rax)?;
    a.mov(qword_ptr(rsp + 32), KERNEL_CS as i32)?;
    a.mov(qword_ptr(rsp + 40), 2)?;
    a.mov(rax, qword_ptr(RESUME_RSP))?;
    a.mov(qword_ptr(rsp + 48), rax)?;
    a.mov(qword_ptr(rsp + 56), KERNEL_SS as i32)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.iretq()?;
    a.set_label(&mut fatal)?;
    p.out32(PORT_FATAL, 0)?;
    let a = &mut p.a;
    a.hlt()?;

    // EAX 1: back by SYSRET; else to whoever waits.
    let mut leave = a.create_label();
    a.set_label(&mut syscall)?;
    a.mov(qword_ptr(S_RCX), rcx)?;
    a.mov(qword_ptr(S_R11), r11)?;
    a.mov(qword_ptr(S_RSP), rsp)?;
    a.cmp(eax, 1)?;
    a.jne(leave)?;
    a.sysretq()?;
    a.set_label(&mut leave)?;
    a.mov(rsp, qword_ptr(RESUME_RSP))?;
    a.mov(r11, qword_ptr(RESUME))?;
    a.mov(qword_ptr(RESUME), 0)?;
    a.jmp(r11)
}
