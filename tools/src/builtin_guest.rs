//! The guest that needs no download: a few hundred instructions which show CPUID, memory, paging and a timer
//! interrupt at work, and power off.
//!
//! It starts as a Linux kernel does (64-bit mode, RSI at the zero page) and uses nothing but the serial line,
//! the PICs, the PIT and ACPI's fixed registers. It runs on any backend, so it is a smoke test too.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::machine::acpi::S5_SLEEP_TYPE;
use crate::machine::layout::{COM_PORTS, HIGH_MEMORY, PM_TIMER, PM1A_CONTROL, PML4};

/// Where the guest keeps things; above its code, below 4 MiB.
const IDT: u64 = 0x20_0000;
const SCRATCH: u64 = 0x20_1000;
const STACK_TOP: u64 = 0x20_8000;
const NEW_PDPT: u64 = 0x20_8000;
const NEW_PD: u64 = 0x20_9000;
const NEW_PT: u64 = 0x20_a000;
const FRAME: u64 = 0x20_b000;
/// The linear address that the guest maps to FRAME: entry 1 of the PML4, so no boot mapping is near.
const WINDOW: u64 = 0x80_0000_0000;

/// Counters in SCRATCH.
const TICKS: u64 = SCRATCH;
const FAULTS: u64 = SCRATCH + 8;
const FAULT_ADDRESS: u64 = SCRATCH + 16;
const FAULT_CODE: u64 = SCRATCH + 24;

const TICKS_WANTED: i32 = 10;
const PIT_HZ: u32 = 1_193_182;
const TICK_HZ: u32 = 100;
const VECTOR_PAGE_FAULT: u64 = 14;
const VECTOR_TIMER: u64 = 0x20;

/// The last line that the guest prints when everything worked.
pub const LAST_LINE: &str = "built-in guest: all shown, powering off";

/// Labels of the guest's subroutines.
struct Routines {
    print: CodeLabel,
    decimal: CodeLabel,
    hexadecimal: CodeLabel,
}

/// Text that is placed after the code.
struct Texts {
    pending: Vec<(CodeLabel, String)>,
}

impl Texts {
    /// Prints `text`.
    fn print(&mut self, code: &mut CodeAssembler, routines: &Routines, text: &str) -> Result<(), IcedError> {
        let label = code.create_label();
        self.pending.push((label, text.to_string()));
        code.lea(rsi, ptr(label))?;
        code.call(routines.print)
    }
}

/// The guest, to be loaded at [`HIGH_MEMORY`].
pub fn program() -> Result<Vec<u8>, IcedError> {
    let mut code = CodeAssembler::new(64)?;
    let routines = Routines {
        print: code.create_label(),
        decimal: code.create_label(),
        hexadecimal: code.create_label(),
    };
    let mut page_fault = code.create_label();
    let mut timer = code.create_label();
    let mut failed = code.create_label();
    let mut texts = Texts { pending: Vec::new() };

    code.cli()?;
    code.mov(rsp, STACK_TOP)?;
    code.mov(r15, rsi)?; // the zero page, for `show_memory`
    texts.print(&mut code, &routines, "\nbuilt-in guest: 64-bit mode, paging on\n")?;
    show_cpuid(&mut code, &routines, &mut texts)?;
    show_memory(&mut code, &routines, &mut texts, failed)?;
    set_gate(&mut code, VECTOR_PAGE_FAULT, page_fault)?;
    set_gate(&mut code, VECTOR_TIMER, timer)?;
    load_idt(&mut code)?;
    show_paging(&mut code, &routines, &mut texts, failed)?;
    show_timer(&mut code, &routines, &mut texts)?;
    texts.print(&mut code, &routines, &format!("{LAST_LINE}\n"))?;
    power_off(&mut code)?;

    code.set_label(&mut failed)?;
    texts.print(&mut code, &routines, "built-in guest: FAILED\n")?;
    power_off(&mut code)?;

    // #PF: note address and error code, make the page present, return to the faulting instruction.
    code.set_label(&mut page_fault)?;
    code.push(rax)?;
    code.mov(rax, qword_ptr(rsp + 8))?;
    code.mov(qword_ptr(FAULT_CODE), rax)?;
    code.mov(rax, cr2)?;
    code.mov(qword_ptr(FAULT_ADDRESS), rax)?;
    code.inc(qword_ptr(FAULTS))?;
    code.or(qword_ptr(NEW_PT), 1)?;
    code.pop(rax)?;
    code.add(rsp, 8)?;
    code.iretq()?;

    // IRQ 0: count, end of interrupt to the first PIC.
    code.set_label(&mut timer)?;
    code.push(rax)?;
    code.inc(qword_ptr(TICKS))?;
    code.mov(al, 0x20)?;
    code.out(0x20, al)?;
    code.pop(rax)?;
    code.iretq()?;

    subroutines(&mut code, routines)?;
    for (mut label, text) in texts.pending {
        code.set_label(&mut label)?;
        code.db(text.replace('\n', "\r\n").as_bytes())?;
        code.db(&[0])?;
    }
    code.assemble(HIGH_MEMORY)
}

/// print: RSI at a text that ends with 0. decimal and hexadecimal: RAX. All registers but RFLAGS are kept.
fn subroutines(code: &mut CodeAssembler, routines: Routines) -> Result<(), IcedError> {
    let Routines { mut print, mut decimal, mut hexadecimal } = routines;
    let mut byte_out = code.create_label();

    // AL to the serial line, when its transmitter is empty (line status bit 5).
    code.set_label(&mut byte_out)?;
    code.push(rdx)?;
    code.push(rax)?;
    code.mov(edx, u32::from(COM_PORTS[0]) + 5)?;
    let mut wait = code.create_label();
    code.set_label(&mut wait)?;
    code.in_(al, dx)?;
    code.test(al, 0x20)?;
    code.jz(wait)?;
    code.pop(rax)?;
    code.mov(edx, u32::from(COM_PORTS[0]))?;
    code.out(dx, al)?;
    code.pop(rdx)?;
    code.ret()?;

    code.set_label(&mut print)?;
    code.push(rax)?;
    code.push(rsi)?;
    let (mut next, mut done) = (code.create_label(), code.create_label());
    code.set_label(&mut next)?;
    code.lodsb()?;
    code.test(al, al)?;
    code.jz(done)?;
    code.call(byte_out)?;
    code.jmp(next)?;
    code.set_label(&mut done)?;
    code.pop(rsi)?;
    code.pop(rax)?;
    code.ret()?;

    // Digits go to the stack, lowest first, above a mark that no digit equals.
    code.set_label(&mut decimal)?;
    for register in [rax, rbx, rdx] {
        code.push(register)?;
    }
    code.mov(ebx, 10)?;
    code.push(0)?;
    let (mut divide, mut emit, mut done) = (code.create_label(), code.create_label(), code.create_label());
    code.set_label(&mut divide)?;
    code.xor(edx, edx)?;
    code.div(rbx)?;
    code.add(edx, i32::from(b'0'))?;
    code.push(rdx)?;
    code.test(rax, rax)?;
    code.jnz(divide)?;
    code.set_label(&mut emit)?;
    code.pop(rax)?;
    code.test(eax, eax)?;
    code.jz(done)?;
    code.call(byte_out)?;
    code.jmp(emit)?;
    code.set_label(&mut done)?;
    for register in [rdx, rbx, rax] {
        code.pop(register)?;
    }
    code.ret()?;

    code.set_label(&mut hexadecimal)?;
    for register in [rax, rbx, rcx] {
        code.push(register)?;
    }
    code.mov(rbx, rax)?;
    code.mov(ecx, 16)?;
    let (mut digit, mut letter) = (code.create_label(), code.create_label());
    code.set_label(&mut digit)?;
    code.rol(rbx, 4)?;
    code.mov(eax, ebx)?;
    code.and(eax, 15)?;
    code.cmp(eax, 10)?;
    code.jb(letter)?;
    code.add(eax, i32::from(b'a' - b'0' - 10))?;
    code.set_label(&mut letter)?;
    code.add(eax, i32::from(b'0'))?;
    code.call(byte_out)?;
    code.dec(ecx)?;
    code.jnz(digit)?;
    for register in [rcx, rbx, rax] {
        code.pop(register)?;
    }
    code.ret()
}

/// Vendor, brand and hypervisor signature.
fn show_cpuid(code: &mut CodeAssembler, routines: &Routines, texts: &mut Texts) -> Result<(), IcedError> {
    let store =
        |code: &mut CodeAssembler, registers: [AsmRegister32; 4], offset: u64| -> Result<(), IcedError> {
            for (index, register) in (0u64..).zip(registers) {
                code.mov(dword_ptr(SCRATCH + offset + index * 4), register)?;
            }
            Ok(())
        };
    let finish_text = |code: &mut CodeAssembler, length: u64| -> Result<(), IcedError> {
        code.mov(byte_ptr(SCRATCH + length), 0)?;
        code.mov(rsi, SCRATCH)?;
        code.call(routines.print)
    };
    texts.print(code, routines, "cpuid: vendor ")?;
    code.xor(eax, eax)?;
    code.cpuid()?;
    store(code, [ebx, edx, ecx, ecx], 0)?;
    finish_text(code, 12)?;

    let mut no_brand = code.create_label();
    code.mov(eax, 0x8000_0000u32)?;
    code.cpuid()?;
    code.cmp(eax, 0x8000_0004u32 as i32)?;
    code.jb(no_brand)?;
    code.mov(eax, 0x8000_0002u32)?;
    code.cpuid()?;
    code.test(eax, eax)?;
    code.jz(no_brand)?; // some processors have the leaves and no name
    texts.print(code, routines, ", brand ")?;
    for leaf in 0u32..3 {
        code.mov(eax, 0x8000_0002 + leaf)?;
        code.cpuid()?;
        store(code, [eax, ebx, ecx, edx], u64::from(leaf) * 16)?;
    }
    finish_text(code, 48)?;
    code.set_label(&mut no_brand)?;

    let mut no_hypervisor = code.create_label();
    code.mov(eax, 1)?;
    code.cpuid()?;
    code.test(ecx, 1i32 << 31)?;
    code.jz(no_hypervisor)?;
    texts.print(code, routines, ", hypervisor ")?;
    code.mov(eax, 0x4000_0000)?;
    code.cpuid()?;
    store(code, [ebx, ecx, edx, edx], 0)?;
    finish_text(code, 12)?;
    code.set_label(&mut no_hypervisor)?;
    texts.print(code, routines, "\n")
}

/// The memory map's RAM, and a pattern written to 1 MiB and read back.
fn show_memory(
    code: &mut CodeAssembler,
    routines: &Routines,
    texts: &mut Texts,
    failed: CodeLabel,
) -> Result<(), IcedError> {
    const E820_ENTRIES: i32 = 0x1e8;
    const E820_TABLE: i32 = 0x2d0;
    const PATTERN_START: u64 = 0x21_0000;
    const PATTERN_WORDS: i32 = 1 << 17;
    texts.print(code, routines, "memory: ")?;
    code.movzx(ecx, byte_ptr(r15 + E820_ENTRIES))?;
    code.lea(rbx, ptr(r15 + E820_TABLE))?;
    code.xor(eax, eax)?;
    let (mut next, mut skip, mut done) = (code.create_label(), code.create_label(), code.create_label());
    code.set_label(&mut next)?;
    code.test(ecx, ecx)?;
    code.jz(done)?;
    code.cmp(dword_ptr(rbx + 16), 1)?;
    code.jne(skip)?;
    code.add(rax, qword_ptr(rbx + 8))?;
    code.set_label(&mut skip)?;
    code.add(rbx, 20)?;
    code.dec(ecx)?;
    code.jmp(next)?;
    code.set_label(&mut done)?;
    code.shr(rax, 10)?;
    code.call(routines.decimal)?;
    texts.print(code, routines, " KiB of RAM in the memory map; 1 MiB of pattern ")?;

    let (mut fill, mut verify) = (code.create_label(), code.create_label());
    code.mov(rbx, 0x9e37_79b9_7f4a_7c15u64)?;
    code.mov(rdi, PATTERN_START)?;
    code.mov(ecx, PATTERN_WORDS)?;
    code.mov(rax, rbx)?;
    code.cld()?;
    code.set_label(&mut fill)?;
    code.stosq()?;
    code.add(rax, rbx)?;
    code.dec(ecx)?;
    code.jnz(fill)?;
    code.mov(rdi, PATTERN_START)?;
    code.mov(ecx, PATTERN_WORDS)?;
    code.mov(rax, rbx)?;
    code.set_label(&mut verify)?;
    code.scasq()?;
    code.jne(failed)?;
    code.add(rax, rbx)?;
    code.dec(ecx)?;
    code.jnz(verify)?;
    texts.print(code, routines, "reads back\n")
}

/// An interrupt gate for `handler` (SDM vol. 3A, 7.14.1).
fn set_gate(code: &mut CodeAssembler, vector: u64, handler: CodeLabel) -> Result<(), IcedError> {
    const PRESENT_INTERRUPT_GATE: u16 = 0x8e00;
    const CODE_SELECTOR: u16 = 0x10;
    let gate = IDT + vector * 16;
    code.lea(rax, ptr(handler))?;
    code.mov(word_ptr(gate), ax)?;
    code.mov(word_ptr(gate + 2), u32::from(CODE_SELECTOR))?;
    code.mov(word_ptr(gate + 4), u32::from(PRESENT_INTERRUPT_GATE))?;
    code.shr(rax, 16)?;
    code.mov(word_ptr(gate + 6), ax)?;
    code.shr(rax, 16)?;
    code.mov(dword_ptr(gate + 8), eax)?;
    code.mov(dword_ptr(gate + 12), 0)
}

fn load_idt(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(word_ptr(SCRATCH), 0xfff)?;
    code.mov(rax, IDT)?;
    code.mov(qword_ptr(SCRATCH + 2), rax)?;
    code.lidt(ptr(SCRATCH))?;
    for counter in [TICKS, FAULTS, FAULT_ADDRESS, FAULT_CODE] {
        code.mov(qword_ptr(counter), 0)?;
    }
    Ok(())
}

/// A page mapped at a second address; the store through it that is seen at the first; the dirty bit that the
/// processor sets; and a page fault that is taken and mended.
fn show_paging(
    code: &mut CodeAssembler,
    routines: &Routines,
    texts: &mut Texts,
    failed: CodeLabel,
) -> Result<(), IcedError> {
    const MAGIC: u64 = 0x736f_6674_6b76_6d21;
    const DIRTY_ACCESSED: i32 = 0x60;
    code.mov(qword_ptr(NEW_PDPT), (NEW_PD | 3) as i32)?;
    code.mov(qword_ptr(NEW_PD), (NEW_PT | 3) as i32)?;
    code.mov(qword_ptr(NEW_PT), (FRAME | 2) as i32)?; // writable, not yet present
    code.mov(qword_ptr(PML4 + 8), (NEW_PDPT | 3) as i32)?;
    code.mov(rdi, WINDOW)?;
    code.mov(rax, MAGIC)?;
    code.mov(qword_ptr(rdi + 8), rax)?; // faults, and is restarted
    code.cmp(qword_ptr(FAULTS), 1)?;
    code.jne(failed)?;
    texts.print(code, routines, "paging: page fault at ")?;
    code.mov(rax, qword_ptr(FAULT_ADDRESS))?;
    code.call(routines.hexadecimal)?;
    texts.print(code, routines, ", error code ")?;
    code.mov(rax, qword_ptr(FAULT_CODE))?;
    code.call(routines.decimal)?;
    code.cmp(rax, 2)?; // a write to a page that is not present
    code.jne(failed)?;
    code.mov(rax, MAGIC)?;
    code.cmp(qword_ptr(FRAME + 8), rax)?;
    code.jne(failed)?;
    code.mov(rax, qword_ptr(NEW_PT))?;
    code.and(eax, DIRTY_ACCESSED)?;
    code.cmp(eax, DIRTY_ACCESSED)?;
    code.jne(failed)?;
    texts.print(code, routines, "; mapped, stored, seen at the other address, marked dirty\n")
}

/// The PIT at 100 Hz through the first PIC; sleeps in HLT until ten ticks came, and times them by the ACPI timer.
fn show_timer(code: &mut CodeAssembler, routines: &Routines, texts: &mut Texts) -> Result<(), IcedError> {
    texts.print(code, routines, "timer: ")?;
    // ICW1 to ICW4 of both PICs, vectors from 0x20; then only IRQ 0 open.
    for (port, value) in [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, VECTOR_TIMER as u32),
        (0xa1, VECTOR_TIMER as u32 + 8),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, 0xfe),
        (0xa1, 0xff),
    ] {
        code.mov(al, value)?;
        code.out(port, al)?;
    }
    let divisor = (PIT_HZ / TICK_HZ).to_le_bytes();
    for (port, value) in [(0x43, 0x34), (0x40, u32::from(divisor[0])), (0x40, u32::from(divisor[1]))] {
        code.mov(al, value)?;
        code.out(port, al)?;
    }
    code.mov(edx, u32::from(PM_TIMER))?;
    code.in_(eax, dx)?;
    code.mov(ebx, eax)?;
    let mut wait = code.create_label();
    code.set_label(&mut wait)?;
    code.sti()?;
    code.hlt()?;
    code.cli()?;
    code.cmp(qword_ptr(TICKS), TICKS_WANTED)?;
    code.jb(wait)?;
    code.mov(edx, u32::from(PM_TIMER))?;
    code.in_(eax, dx)?;
    code.sub(eax, ebx)?;
    code.mov(rbx, rax)?;
    code.mov(rax, qword_ptr(TICKS))?;
    code.call(routines.decimal)?;
    texts.print(code, routines, " interrupts in ")?;
    code.mov(rax, rbx)?;
    code.xor(edx, edx)?;
    code.mov(ecx, 3580)?; // ACPI timer ticks in a millisecond
    code.div(rcx)?;
    code.call(routines.decimal)?;
    texts.print(code, routines, " ms\n")
}

fn power_off(code: &mut CodeAssembler) -> Result<(), IcedError> {
    const SLP_EN: u32 = 1 << 13;
    code.mov(edx, u32::from(PM1A_CONTROL))?;
    code.mov(eax, SLP_EN | (u32::from(S5_SLEEP_TYPE) << 10))?;
    code.out(dx, ax)?;
    let mut stay = code.create_label();
    code.set_label(&mut stay)?;
    code.hlt()?;
    code.jmp(stay)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_assembles_below_its_data() {
        let program = program().unwrap();
        assert!(HIGH_MEMORY + program.len() as u64 <= IDT, "{} bytes", program.len());
    }
}
