//! The register and code dump for a guest that ended badly. Text for people; `--json` carries it as one string.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use crate::guest_ram::GuestRam;
use crate::kvm::VcpuFd;

const CODE_BYTES: usize = 64;
const INSTRUCTIONS: usize = 8;

/// Registers of `vcpu` and the code at its instruction pointer.
pub fn registers_and_code(vcpu: &VcpuFd, id: u32, ram: &GuestRam) -> String {
    let mut text = String::new();
    let (regs, sregs) = match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => (regs, sregs),
        (Err(error), _) | (_, Err(error)) => {
            return format!("vCPU {id}: registers cannot be read: {error}\n");
        }
    };
    // Writing to a String does not fail.
    let _ = write_registers(&mut text, id, &regs, &sregs);
    let _ = write_code(&mut text, vcpu, &regs, &sregs, ram);
    text
}

fn write_registers(text: &mut String, id: u32, regs: &kvm_regs, sregs: &kvm_sregs) -> std::fmt::Result {
    writeln!(text, "vCPU {id}:")?;
    let general = [
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("rbp", regs.rbp),
        ("rsp", regs.rsp),
        ("r8 ", regs.r8),
        ("r9 ", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("rip", regs.rip),
        ("rfl", regs.rflags),
        ("cr0", sregs.cr0),
        ("cr2", sregs.cr2),
        ("cr3", sregs.cr3),
        ("cr4", sregs.cr4),
        ("efr", sregs.efer),
        ("apb", sregs.apic_base),
    ];
    for row in general.chunks(4) {
        for (name, value) in row {
            write!(text, "  {name}={value:016x}")?;
        }
        writeln!(text)?;
    }
    let segments: [(&str, &kvm_segment); 8] = [
        ("cs", &sregs.cs),
        ("ss", &sregs.ss),
        ("ds", &sregs.ds),
        ("es", &sregs.es),
        ("fs", &sregs.fs),
        ("gs", &sregs.gs),
        ("tr", &sregs.tr),
        ("ldt", &sregs.ldt),
    ];
    for (name, segment) in segments {
        writeln!(
            text,
            "  {name:<3} {:04x} base={:016x} limit={:08x} type={:x} s={} dpl={} p={} l={} db={} g={}{}",
            segment.selector,
            segment.base,
            segment.limit,
            segment.type_,
            segment.s,
            segment.dpl,
            segment.present,
            segment.l,
            segment.db,
            segment.g,
            if segment.unusable != 0 { " unusable" } else { "" }
        )?;
    }
    writeln!(text, "  gdt base={:016x} limit={:04x}", sregs.gdt.base, sregs.gdt.limit)?;
    writeln!(text, "  idt base={:016x} limit={:04x}", sregs.idt.base, sregs.idt.limit)
}

fn write_code(
    text: &mut String,
    vcpu: &VcpuFd,
    regs: &kvm_regs,
    sregs: &kvm_sregs,
    ram: &GuestRam,
) -> std::fmt::Result {
    const EFER_LMA: u64 = 1 << 10;
    let bits = match (sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0, sregs.cs.db != 0) {
        (true, _) => 64,
        (false, true) => 32,
        (false, false) => 16,
    };
    let linear = if bits == 64 { regs.rip } else { sregs.cs.base.wrapping_add(regs.rip) & 0xffff_ffff };
    let code = match read_linear(vcpu, linear, ram) {
        Ok(code) => code,
        Err(why) => return writeln!(text, "  code at {linear:#x}: {why}"),
    };
    writeln!(text, "  code at {linear:#x}, {bits}-bit:")?;
    let mut decoder = Decoder::with_ip(bits, &code, regs.rip, DecoderOptions::NONE);
    let mut formatter = IntelFormatter::new();
    for _ in 0..INSTRUCTIONS {
        if !decoder.can_decode() {
            break;
        }
        let start = decoder.position();
        let instruction = decoder.decode();
        let bytes: String =
            code[start..decoder.position()].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        writeln!(text, "    {:016x}  {bytes:<30}  {line}", instruction.ip())?;
    }
    Ok(())
}

/// Up to CODE_BYTES from a linear address, page by page, through KVM_TRANSLATE (KVM api 4.14).
fn read_linear(vcpu: &VcpuFd, linear: u64, ram: &GuestRam) -> Result<Vec<u8>, String> {
    let mut code = Vec::new();
    while code.len() < CODE_BYTES {
        let at = linear.wrapping_add(code.len() as u64);
        let in_page = (4096 - (at as usize & 0xfff)).min(CODE_BYTES - code.len());
        let mut piece = vec![0u8; in_page];
        let found = match vcpu.translate_gva(at) {
            Err(error) => Err(format!("KVM_TRANSLATE: {error}")),
            Ok(page) if page.valid == 0 => Err("not mapped".to_string()),
            Ok(page) => ram
                .read_slice(&mut piece, GuestAddress(page.physical_address))
                .map_err(|_| format!("guest physical {:#x} is not RAM", page.physical_address)),
        };
        match found {
            Ok(()) => code.extend(piece),
            Err(why) if code.is_empty() => return Err(why),
            Err(_) => break,
        }
    }
    Ok(code)
}
