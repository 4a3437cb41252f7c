//! The guest's checks of exceptions, user mode, system calls, the TSS, and code that changes itself.

use super::layout::*;
use super::program::{Assembled, Program};
use iced_x86::code_asm::*;

/// Exceptions through the IDT.
pub fn checks(p: &mut Program) -> Assembled {
    p.fault(
        "#DE",
        (0, 0),
        |p| {
            p.a.xor(edx, edx)?;
            p.a.mov(eax, 1)?;
            p.a.xor(ecx, ecx)
        },
        |a| a.div(ecx),
    )?;
    p.fault("#UD", (6, 0), |_| Ok(()), |a| a.ud2())?;
    p.fault("LOCK before MOV is #UD", (6, 0), |_| Ok(()), |a| a.db(&[0xf0, 0x88, 0x03]))?;
    p.trap("#BP", 3, |_| Ok(()), |a| a.int3())?;
    p.trap("INT 80H", VECTOR_USER, |_| Ok(()), |a| a.int(i32::from(VECTOR_USER)))?;
    p.fault("#GP: a selector past the GDT", (13, 0x1230), |p| p.a.mov(eax, 0x1230), |a| a.mov(ds, eax))?;
    p.fault(
        "#NP: an absent segment",
        (11, ABSENT_SEGMENT),
        |p| p.a.mov(eax, ABSENT_SEGMENT),
        |a| a.mov(fs, eax),
    )?;
    p.fault("#GP: a gate that is not there", (13, 0x70 << 3 | 2), |_| Ok(()), |a| a.int(0x70))?;
    p.fault("#GP: RDMSR of nothing", (13, 0), |p| p.a.mov(ecx, 0x3fff_ffffu32), |a| a.rdmsr())?;
    p.fault(
        "#GP: a reserved bit of CR4",
        (13, 0),
        |p| {
            p.a.mov(rax, cr4)?;
            p.a.bts(rax, 31)
        },
        |a| a.mov(cr4, rax),
    )?;
    p.fault(
        "#GP: CR0.PG without PE",
        (13, 0),
        |p| {
            p.a.mov(rax, cr0)?;
            p.a.btr(rax, 0)
        },
        |a| a.mov(cr0, rax),
    )?;
    p.trap(
        "#DB: single step",
        1,
        |p| {
            p.a.pushfq()?;
            p.a.or(qword_ptr(rsp), 0x100)?;
            // The handler's frame drops what is left on the stack.
            p.a.pop(rbx)
        },
        |a| {
            a.push(rbx)?;
            a.popfq()?;
            a.nop()
        },
    )?;
    // A data breakpoint on eight bytes: the trap is behind the store.
    p.a.mov(rax, FRAMES + 0x100)?;
    p.a.mov(dr0, rax)?;
    p.a.mov(eax, 0x9_0402)?;
    p.trap("#DB: data breakpoint", 1, |p| p.a.mov(dr7, rax), |a| a.mov(byte_ptr(FRAMES + 0x103), 1))?;
    p.a.mov(rax, dr6)?;
    p.a.and(eax, 15)?;
    p.check("#DB: data breakpoint: DR6", 1)?;
    p.a.mov(eax, 0x400)?;
    p.a.mov(dr7, rax)?;
    p.a.mov(eax, 0xffff_0ff0u32)?;
    p.a.mov(dr6, rax)?;
    double_fault(p)?;
    vectors(p)
}

fn double_fault(p: &mut Program) -> Assembled {
    // The gate of #GP goes away: #GP, then #NP on its delivery, is #DF; on IST 1.
    p.a.btr(word_ptr(IDT + 13 * 16 + 4), 15)?;
    p.fault(
        "#GP without its gate is #DF",
        (8, 0),
        |p| p.a.mov(rsi, 0x8000_0000_0000u64),
        |a| a.mov(rax, qword_ptr(rsi)),
    )?;
    p.a.bts(word_ptr(IDT + 13 * 16 + 4), 15)?;
    p.a.mov(rax, qword_ptr(F_HANDLER_RSP))?;
    p.check("#DF is on IST 1", IST1 - 8 * 7)?;
    p.a.mov(rax, qword_ptr(F_RSP))?;
    p.a.mov(rdx, rsp)?;
    p.check_rdx("#DF: the interrupted RSP")
}

/// x87, SSE and their state: that they are there and keep their values.
fn vectors(p: &mut Program) -> Assembled {
    let a = &mut p.a;
    a.mov(dword_ptr(VECTOR), 7)?;
    a.fild(dword_ptr(VECTOR))?;
    a.fld1()?;
    a.faddp(st1, st0)?;
    a.fistp(qword_ptr(VECTOR + 8))?;
    p.check_at("x87: 7 + 1", VECTOR + 8, 8)?;
    let a = &mut p.a;
    a.mov(eax, 0x4080_0000u32)?;
    a.movd(xmm3, eax)?;
    a.shufps(xmm3, xmm3, 0)?;
    a.movaps(xmm4, xmm3)?;
    a.addps(xmm4, xmm3)?;
    a.mulps(xmm4, xmm3)?;
    a.movups(xmmword_ptr(VECTOR + 3), xmm4)?;
    p.check_at("SSE: (4 + 4) * 4, unaligned store", VECTOR + 11, 0x4200_0000_4200_0000)?;
    p.fault(
        "MOVAPS of an unaligned operand",
        (13, 0),
        |_| Ok(()),
        |a| a.movaps(xmm0, xmmword_ptr(VECTOR + 1)),
    )?;
    // FXSAVE and FXRSTOR bring a register back.
    let a = &mut p.a;
    a.fxsave(ptr(XSAVE_AREA))?;
    a.xorps(xmm4, xmm4)?;
    a.fxrstor(ptr(XSAVE_AREA))?;
    a.movq(rax, xmm4)?;
    p.check("FXSAVE, FXRSTOR", 0x4200_0000_4200_0000)?;
    // With CR0.TS, #NM.
    p.a.mov(rax, cr0)?;
    p.a.or(eax, 8)?;
    p.a.mov(cr0, rax)?;
    p.fault("#NM", (7, 0), |_| Ok(()), |a| a.addps(xmm1, xmm2))?;
    p.a.clts()
}

/// User mode, SYSCALL and SYSRET, compatibility mode.
pub fn user_mode(p: &mut Program) -> Assembled {
    let at = p.user_code(64, |a| a.cli())?;
    p.in_user_mode(at, USER_CS, false)?;
    p.seen("CLI in user mode", 13, 0)?;
    p.check_at("CLI in user mode: RIP", F_RIP, at)?;
    p.check_at("CLI in user mode: the user's stack pointer", F_RSP, USER_STACK)?;
    // No error code pushed by the processor but for #GP's: the frame is at the top of RSP0's stack.
    p.check_at("RSP0 is the handler's stack", F_HANDLER_RSP, RSP0 - 8 * 7)?;
    let at = p.user_code(64, |a| a.int(0x20))?;
    p.in_user_mode(at, USER_CS, false)?;
    p.seen("INT of a gate with DPL 0", 13, 0x20 << 3 | 2)?;
    let at = p.user_code(64, |a| {
        a.mov(rax, cr0)?;
        a.nop()
    })?;
    p.in_user_mode(at, USER_CS, false)?;
    p.seen("MOV from CR0 in user mode", 13, 0)?;
    let at = p.user_code(64, |a| {
        a.push(0x1235)?;
        a.pop(rbx)?;
        a.in_(al, 0x20)
    })?;
    p.in_user_mode(at, USER_CS, false)?;
    p.seen("IN in user mode", 13, 0)?;
    p.a.mov(rax, rbx)?;
    p.check("PUSH and POP on the user's stack", 0x1235)?;

    let at = p.user_code(64, |a| {
        a.mov(eax, 1)?;
        a.stc()?;
        a.syscall()?;
        a.setc(bl)?;
        a.movzx(ebx, bl)?;
        a.mov(rsi, cs)?;
        a.mov(eax, 2)?;
        a.syscall()
    })?;
    p.a.xor(ebx, ebx)?;
    p.in_user_mode(at, USER_CS, true)?;
    p.a.mov(rax, rbx)?;
    p.check("SYSRET brings the flags back", 1)?;
    p.a.mov(rax, rsi)?;
    p.check("SYSRET: CS", u64::from(USER_CS))?;
    p.a.mov(rax, qword_ptr(S_RSP))?;
    p.check("SYSCALL leaves RSP", USER_STACK)?;
    p.a.mov(rax, qword_ptr(S_R11))?;
    p.a.and(eax, 0x201)?;
    p.check("SYSCALL: R11 has RFLAGS", 0x201)?;
    p.a.pushfq()?;
    p.a.pop(rax)?;
    p.a.and(eax, 0x200)?;
    p.check("SYSCALL: FMASK clears IF", 0)?;
    p.a.mov(rax, ss)?;
    p.check("SYSCALL: SS", u64::from(KERNEL_SS))?;

    // 40H to 4FH are INC and DEC here, and prefixes in 64-bit mode.
    let at = p.user_code(32, |a| {
        a.mov(eax, 0x7fff_fffe)?;
        a.db(&[0x40, 0x40])?;
        a.mov(ebx, eax)?;
        a.int(i32::from(VECTOR_USER))
    })?;
    // The code is above 4 GiB for 64-bit mode: map it low as well.
    p.a.mov(rax, WINDOW_PD | 7)?;
    p.a.mov(rcx, qword_ptr(PML4 + 0x1000 + 8))?;
    p.a.push(rcx)?;
    p.a.mov(qword_ptr(PML4 + 0x1000 + 8), rax)?;
    p.a.mov(rax, cr3)?;
    p.a.mov(cr3, rax)?;
    // 1 GiB and up is now the window's first gigabyte.
    p.in_user_mode(at - WINDOW + (1 << 30), USER_CS32, false)?;
    p.a.pop(rcx)?;
    p.a.mov(qword_ptr(PML4 + 0x1000 + 8), rcx)?;
    p.a.mov(rax, cr3)?;
    p.a.mov(cr3, rax)?;
    p.seen("INT 80H from compatibility mode", VECTOR_USER, 0)?;
    p.check_at("compatibility mode: CS", F_CS, u64::from(USER_CS32))?;
    p.a.mov(rax, rbx)?;
    p.check("compatibility mode: INC in one byte", 0x8000_0000)?;
    p.a.mov(eax, dword_ptr(F_RFLAGS))?;
    p.a.and(eax, 0x8d5)?;
    p.check("compatibility mode: flags of INC", 0x894)
}

/// Code that changes itself, in place and through another mapping.
pub fn self_modifying(p: &mut Program) -> Assembled {
    // mov eax, imm32; ret at a frame; the immediate grows, through the same address and through an alias.
    let code = FRAMES + 0x4000;
    p.a.mov(byte_ptr(code), 0xb8)?;
    p.a.mov(dword_ptr(code + 1), 0)?;
    p.a.mov(byte_ptr(code + 5), 0xc3)?;
    p.map(18, code | 3)?;
    let mut again = p.a.create_label();
    p.a.xor(ebx, ebx)?;
    p.a.mov(rsi, code)?;
    p.a.mov(rdi, WINDOW + 18 * 0x1000)?;
    p.a.mov(r9d, 200)?;
    p.a.set_label(&mut again)?;
    p.a.inc(dword_ptr(rsi + 1))?;
    p.a.call(rsi)?;
    p.a.add(rbx, rax)?;
    p.a.inc(dword_ptr(rdi + 1))?;
    p.a.call(rsi)?;
    p.a.add(rbx, rax)?;
    p.a.dec(r9d)?;
    p.a.jnz(again)?;
    p.a.mov(rax, rbx)?;
    p.check("code changed 400 times, by two mappings", 400 * 401 / 2)?;
    // The store changes the instruction behind it: F4H (HLT) becomes 90H.
    let mut patched = p.a.create_label();
    p.a.lea(rsi, ptr(patched))?;
    p.a.mov(eax, 1)?;
    p.a.mov(word_ptr(rsi), 0x9090u32)?;
    p.a.set_label(&mut patched)?;
    p.a.db(&[0x0f, 0x0b])?;
    p.check("the next instruction was UD2", 1)?;
    // REP STOSB over code.
    p.a.mov(rdi, code)?;
    p.a.mov(al, 0x90)?;
    p.a.mov(ecx, 5)?;
    p.a.rep().stosb()?;
    p.a.mov(eax, 0x31)?;
    p.a.mov(rsi, code)?;
    p.a.call(rsi)?;
    p.check("REP STOSB over code", 0x31)
}
