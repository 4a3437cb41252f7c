//! SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM vol. 2B; AMD APM vol. 3 where the guest is an AMD).
//!
//! These load fixed hidden parts, not descriptors.

#[cfg(test)]
mod tests;

use super::Handler;
use crate::exit::Result;
use crate::vcpu::{ATTENTION_EVENT, Vcpu};
use decoder::validity::Vendor;
use decoder::{CpuMode, Insn};
use iced_x86::Code;
use x86_arch::control::Efer;
use x86_arch::{Gpr, Rflags, Seg, Segment, Selector};

const RCX: usize = Gpr::Rcx as usize;
const RDX: usize = Gpr::Rdx as usize;
const R11: usize = Gpr::R11 as usize;
const RSP: usize = Gpr::Rsp as usize;

/// A flat segment as these instructions load it.
fn flat(selector: u16, code: bool, dpl: u8, l: bool, db: bool) -> Segment {
    Segment {
        selector: Selector(selector),
        base: 0,
        limit: u32::MAX,
        typ: if code { 11 } else { 3 },
        s: true,
        dpl,
        present: true,
        avl: false,
        l,
        db,
        g: true,
        unusable: false,
    }
}

fn enter(c: &mut Vcpu, cs: Segment, ss: Segment, rip: u64) {
    c.set_cpl(cs.dpl);
    c.set_segment(Seg::Ss, ss);
    c.set_segment(Seg::Cs, cs);
    c.set_rip(rip);
    c.attend(ATTENTION_EVENT);
}

fn syscall(c: &mut Vcpu, _: &Insn) -> Result {
    if !c.efer.contains(Efer::SCE) {
        return c.ud();
    }
    let selector = (c.msr.star >> 32) as u16 & !3;
    let long = c.long_mode();
    let (cs, ss) =
        (flat(selector, true, 0, long, !long), flat(selector.wrapping_add(8), false, 0, false, true));
    let rip = c.rip();
    if !long {
        // AMD's legacy mode (the decoder refuses it on an Intel processor): EIP is STAR[31:0].
        c.hot.regs[RCX] = rip;
        c.set_rflags(c.hot.rflags & !(Rflags::VM | Rflags::IF | Rflags::RF).bits());
        enter(c, cs, ss, c.msr.star & 0xffff_ffff);
        return Ok(());
    }
    let target = if c.long64() { c.msr.lstar } else { c.msr.cstar };
    c.hot.regs[RCX] = rip;
    c.hot.regs[R11] = c.hot.rflags & !Rflags::RF.bits();
    let flags = c.hot.rflags & !Rflags::RF.bits() & !c.msr.fmask;
    enter(c, cs, ss, target);
    c.set_rflags(flags);
    Ok(())
}

fn sysret(c: &mut Vcpu, i: &Insn) -> Result {
    if !c.efer.contains(Efer::SCE) {
        return c.ud();
    }
    if !c.protected() {
        return c.gp0();
    }
    c.require_cpl0()?;
    let to64 = i.code == Code::Sysretq && c.long64();
    let rcx = c.hot.regs[RCX];
    let amd = c.cpuid.vendor() == Vendor::Amd;
    // Intel checks RCX here, at CPL 0; AMD's fault on the fetch that follows (SDM vol. 2B, SYSRET).
    if to64 && !amd && !c.canonical(rcx) {
        return c.gp0();
    }
    let base = (c.msr.star >> 48) as u16;
    let cs = if to64 {
        flat(base.wrapping_add(16) | 3, true, 3, true, false)
    } else {
        flat(base | 3, true, 3, false, true)
    };
    let mut ss = flat(base.wrapping_add(8) | 3, false, 3, false, true);
    if amd {
        // Only the selector is loaded there: base, limit and attributes stay (APM vol. 3, SYSRET).
        ss = Segment { selector: ss.selector, ..c.seg[Seg::Ss as usize] };
        ss.dpl = 3;
        if ss.unusable {
            ss = Segment { unusable: false, ..flat(ss.selector.0, false, 3, false, true) };
        }
    }
    let flags = if c.long_mode() {
        c.hot.regs[R11] & 0x3c_7fd7 | Rflags::FIXED.bits()
    } else {
        c.hot.rflags | Rflags::IF.bits()
    };
    let rip = if to64 { rcx } else { rcx & 0xffff_ffff };
    enter(c, cs, ss, rip);
    c.set_rflags(flags);
    Ok(())
}

fn sysenter(c: &mut Vcpu, _: &Insn) -> Result {
    // AMD's have it in legacy mode only; the decoder knows 64-bit mode, not compatibility mode.
    if c.cpuid.vendor() == Vendor::Amd && c.long_mode() {
        return c.ud();
    }
    let selector = c.msr.sysenter_cs as u16;
    if !c.cr0.contains(x86_arch::Cr0::PE) || selector & !3 == 0 {
        return c.gp0();
    }
    let long = c.long_mode();
    let selector = selector & !3;
    let (rip, rsp) = (c.msr.sysenter_eip, c.msr.sysenter_esp);
    let narrow = if long { u64::MAX } else { 0xffff_ffff };
    c.set_rflags(c.hot.rflags & !(Rflags::VM | Rflags::IF | Rflags::RF).bits());
    enter(
        c,
        flat(selector, true, 0, long, !long),
        flat(selector.wrapping_add(8), false, 0, false, true),
        rip & narrow,
    );
    c.hot.regs[RSP] = rsp & narrow;
    Ok(())
}

fn sysexit(c: &mut Vcpu, i: &Insn) -> Result {
    if c.cpuid.vendor() == Vendor::Amd && c.long_mode() {
        // Processors of AMD look at the privilege level first.
        return if c.cpl != 0 { c.gp0() } else { c.ud() };
    }
    let selector = c.msr.sysenter_cs as u16;
    if selector & !3 == 0 || c.cpl != 0 || !c.protected() {
        return c.gp0();
    }
    let to64 = i.code == Code::Sysexitq && c.mode == CpuMode::Bits64;
    let (rip, rsp) = (c.hot.regs[RDX], c.hot.regs[RCX]);
    if to64 && !(c.canonical(rip) && c.canonical(rsp)) {
        return c.gp0();
    }
    let (cs, ss) = if to64 { (32, 40) } else { (16, 24) };
    let narrow = if to64 { u64::MAX } else { 0xffff_ffff };
    enter(
        c,
        flat(selector.wrapping_add(cs) | 3, true, 3, to64, !to64),
        flat(selector.wrapping_add(ss) | 3, false, 3, false, true),
        rip & narrow,
    );
    c.hot.regs[RSP] = rsp & narrow;
    Ok(())
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    Some(match i.code {
        Code::Syscall => syscall,
        Code::Sysretd | Code::Sysretq => sysret,
        Code::Sysenter => sysenter,
        Code::Sysexitd | Code::Sysexitq => sysexit,
        _ => return None,
    })
}
