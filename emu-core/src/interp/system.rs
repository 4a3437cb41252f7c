//! System instructions: control and debug registers, MSRs, CPUID, time, caches and TLB, HLT, FS and GS
//! bases, XCR0, PKRU, hypercalls (SDM vol. 2).
//!
//! What a write means is in [`crate::cr`], [`crate::msr`] and [`crate::debug`]; descriptor tables are in
//! [`super::segment`].

#[cfg(test)]
mod tests;

use super::operand::Int;
use super::segment::check_umip;
use super::{Handler, by_size};
use crate::event::Activity;
use crate::exit::Result;
use crate::quirks::Quirks;
use crate::vcpu::{ATTENTION_ACTIVITY, ATTENTION_EVENT, Vcpu};
use decoder::{CpuMode, Insn};
use iced_x86::{Code, Mnemonic};
use x86_arch::control::{Cr0, Cr4, Xcr0};
use x86_arch::cpuid;
use x86_arch::{Gpr, Gva, Rflags, Seg};

const RAX: u8 = Gpr::Rax as u8;
const RCX: u8 = Gpr::Rcx as u8;
const RDX: u8 = Gpr::Rdx as u8;

/// EDX:EAX.
fn edx_eax(c: &Vcpu) -> u64 {
    c.reg::<u32>(RAX) as u64 | (c.reg::<u32>(RDX) as u64) << 32
}

fn set_edx_eax(c: &mut Vcpu, v: u64) {
    c.set_reg(RAX, v as u32);
    c.set_reg(RDX, (v >> 32) as u32);
}

// ---- control registers -----------------------------------------------------------------------

fn mov_to_cr(c: &mut Vcpu, i: &Insn) -> Result {
    c.require_cpl0()?;
    let v = if c.mode == CpuMode::Bits64 { c.reg::<u64>(i.r[1]) } else { c.reg::<u32>(i.r[1]) as u64 };
    match i.r[0] {
        0 => c.write_cr0(v),
        2 => {
            c.cr2 = v;
            Ok(())
        }
        3 => c.write_cr3(v),
        4 => c.write_cr4(v),
        8 => c.mov_to_cr8(v),
        _ => c.ud(),
    }
}

fn mov_from_cr(c: &mut Vcpu, i: &Insn) -> Result {
    c.require_cpl0()?;
    let v = match i.r[1] {
        0 => c.cr0.bits(),
        2 => c.cr2,
        3 => c.cr3,
        4 => c.cr4.bits(),
        8 => c.read_cr8(),
        _ => return c.ud(),
    };
    if c.mode == CpuMode::Bits64 {
        c.set_reg(i.r[0], v)
    } else {
        c.set_reg(i.r[0], v as u32)
    }
    Ok(())
}

fn clts(c: &mut Vcpu, _: &Insn) -> Result {
    c.require_cpl0()?;
    c.cr0.remove(Cr0::TS);
    c.attend(ATTENTION_EVENT);
    Ok(())
}

fn lmsw(c: &mut Vcpu, i: &Insn) -> Result {
    c.require_cpl0()?;
    let v = if i.is_mem(0) { c.load_mem::<u16>(i)? } else { c.reg::<u16>(i.r[0]) };
    c.lmsw(v)
}

fn smsw(c: &mut Vcpu, i: &Insn) -> Result {
    check_umip(c)?;
    let v = c.cr0.bits();
    if i.is_mem(0) {
        return c.store_mem(i, v as u16);
    }
    match i.op_size {
        2 => c.set_reg(i.r[0], v as u16),
        4 => c.set_reg(i.r[0], v as u32),
        _ => c.set_reg(i.r[0], v),
    }
    Ok(())
}

// ---- caches and TLB --------------------------------------------------------------------------

/// INVD, WBINVD, WBNOINVD: the caches are the host's, and coherent.
fn cache_all(c: &mut Vcpu, _: &Insn) -> Result {
    c.require_cpl0()
}

/// CLFLUSH, CLFLUSHOPT, CLWB fault as a read of one byte does, but also where only execution is allowed.
fn cache_line(c: &mut Vcpu, i: &Insn) -> Result {
    let ea = c.ea(i);
    let gva = match c.linear(i.mem.seg, ea, 1, false) {
        Ok(gva) => gva,
        // SDM vol. 2A, CLFLUSH: a segment that is execute-only is no obstacle.
        Err(s) => {
            let v = &c.seg[(i.mem.seg & 7) as usize];
            if !v.is_code() || ea > v.limit as u64 {
                return Err(s);
            }
            v.base.wrapping_add(ea) & c.hot.linear_mask
        }
    };
    let access = softmmu::Access::read(c.cpl == 3);
    c.probe_lin(i.mem.seg, gva, 1, access)
}

/// CLZERO: the cache line that rAX points into.
fn clzero(c: &mut Vcpu, i: &Insn) -> Result {
    let ea = c.hot.regs[RAX as usize] & i.mem.mask();
    // The line is that of the linear address (APM vol. 3, CLZERO).
    let gva = c.linear(i.mem.seg, ea, 1, true)? & !63;
    c.write_bytes_lin(i.mem.seg, gva, &[0; 64])
}

fn invlpg(c: &mut Vcpu, i: &Insn) -> Result {
    c.require_cpl0()?;
    let ea = c.ea(i);
    let base = c.seg_path[(i.mem.seg & 7) as usize].base;
    let gva = base.wrapping_add(ea) & c.hot.linear_mask;
    // A non-canonical address is no fault (SDM vol. 2A, INVLPG).
    if !c.long_mode() || c.canonical(gva) {
        c.mmu.invlpg(Gva(gva));
    }
    c.attend(ATTENTION_EVENT);
    Ok(())
}

fn invpcid(c: &mut Vcpu, i: &Insn) -> Result {
    c.require_cpl0()?;
    if c.v86() {
        return c.gp0();
    }
    let kind = if c.mode == CpuMode::Bits64 { c.reg::<u64>(i.r[0]) } else { c.reg::<u32>(i.r[0]) as u64 };
    let ea = c.ea(i);
    let mut b = [0; 16];
    c.read_bytes(i.mem.seg, ea, &mut b)?;
    let d = u128::from_le_bytes(b);
    let (low, gva) = (d as u64, (d >> 64) as u64);
    let pcid = (low & 0xfff) as u16;
    let pcide = c.cr4.contains(Cr4::PCIDE);
    if kind > 3 || low >> 12 != 0 {
        return c.gp0();
    }
    if kind < 2 && pcid != 0 && !pcide {
        return c.gp0();
    }
    match kind {
        0 if !c.canonical(gva) => return c.gp0(),
        0 => c.mmu.invpcid_address(pcid, Gva(gva)),
        1 => c.mmu.invpcid_context(pcid),
        _ => c.mmu.invpcid_all(),
    }
    c.attend(ATTENTION_EVENT);
    Ok(())
}

// ---- CPUID, time, chance ---------------------------------------------------------------------

fn cpuid_insn(c: &mut Vcpu, _: &Insn) -> Result {
    // KVM's MSR_MISC_FEATURES_ENABLES: CPUID faults outside CPL 0.
    if c.cpl > 0 && c.msr.misc_features_enables & 1 != 0 {
        return c.gp0();
    }
    let r = c.cpuid_result(c.reg::<u32>(RAX), c.reg::<u32>(RCX));
    c.set_reg(RAX, r.eax);
    c.set_reg(Gpr::Rbx as u8, r.ebx);
    c.set_reg(RCX, r.ecx);
    c.set_reg(RDX, r.edx);
    Ok(())
}

fn tsd(c: &Vcpu) -> Result {
    if c.cpl > 0 && c.cr4.contains(Cr4::TSD) { c.gp0() } else { Ok(()) }
}

fn rdtsc(c: &mut Vcpu, _: &Insn) -> Result {
    tsd(c)?;
    let v = c.guest_tsc();
    set_edx_eax(c, v);
    Ok(())
}

fn rdtscp(c: &mut Vcpu, _: &Insn) -> Result {
    tsd(c)?;
    let v = c.guest_tsc();
    set_edx_eax(c, v);
    c.set_reg(RCX, c.msr.tsc_aux as u32);
    Ok(())
}

/// No performance counters are offered: every index is out of range.
fn rdpmc(c: &mut Vcpu, _: &Insn) -> Result {
    c.gp0()
}

fn rdpid(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.msr.tsc_aux & 0xffff_ffff;
    if i.code == Code::Rdpid_r64 {
        c.set_reg(i.r[0], v)
    } else {
        c.set_reg(i.r[0], v as u32)
    }
    Ok(())
}

fn random<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.vm.host.random();
    c.set_reg(i.r[0], T::from_u64(v));
    c.set_status(Rflags::CF.bits());
    Ok(())
}

// ---- MSRs ------------------------------------------------------------------------------------

fn rdmsr(c: &mut Vcpu, _: &Insn) -> Result {
    c.require_cpl0()?;
    let index = c.reg::<u32>(RCX);
    let v = c.guest_rdmsr(index)?;
    set_edx_eax(c, v);
    Ok(())
}

fn wrmsr(c: &mut Vcpu, _: &Insn) -> Result {
    c.require_cpl0()?;
    let index = c.reg::<u32>(RCX);
    let v = edx_eax(c);
    c.guest_wrmsr(index, v)?;
    c.attend(ATTENTION_EVENT);
    Ok(())
}

// ---- waiting ---------------------------------------------------------------------------------

fn hlt(c: &mut Vcpu, _: &Insn) -> Result {
    c.require_cpl0()?;
    c.events.activity = Activity::Halted;
    c.stats.halts += 1;
    c.attend(ATTENTION_ACTIVITY);
    Ok(())
}

/// Whether MONITOR and MWAIT exist: always, unless user space wants CPUID to decide.
fn has_monitor(c: &Vcpu) -> bool {
    c.vm.choices.has(Quirks::MWAIT_NEVER_UD_FAULTS) || c.cpuid_result(1, 0).ecx >> cpuid::MONITOR.bit & 1 != 0
}

/// MONITOR reads a byte as a load does; nothing is armed, as in KVM, whose guests see MWAIT as a NOP.
fn monitor(c: &mut Vcpu, i: &Insn) -> Result {
    if c.cpl > 0 || !has_monitor(c) {
        return c.ud();
    }
    if c.reg::<u32>(RCX) != 0 {
        return c.gp0();
    }
    let ea = c.hot.regs[RAX as usize] & i.mem.mask();
    c.load::<u8>(i.mem.seg, ea)?;
    Ok(())
}

fn mwait(c: &mut Vcpu, _: &Insn) -> Result {
    if c.cpl > 0 || !has_monitor(c) {
        return c.ud();
    }
    if c.reg::<u32>(RCX) & !1 != 0 { c.gp0() } else { Ok(()) }
}

// ---- extended state, protection keys ---------------------------------------------------------

fn xgetbv(c: &mut Vcpu, _: &Insn) -> Result {
    if !c.cr4.contains(Cr4::OSXSAVE) {
        return c.ud();
    }
    let v = match c.reg::<u32>(RCX) {
        0 => c.xcr0.bits(),
        1 if c.cpuid.has(cpuid::XGETBV_ECX_1) => c.xcr0.bits() & super::xsave::in_use(c, true),
        _ => return c.gp0(),
    };
    set_edx_eax(c, v);
    Ok(())
}

fn xsetbv(c: &mut Vcpu, _: &Insn) -> Result {
    if !c.cr4.contains(Cr4::OSXSAVE) {
        return c.ud();
    }
    c.require_cpl0()?;
    let v = edx_eax(c);
    if c.reg::<u32>(RCX) != 0 || !valid_xcr0(v, c.xcr0_allowed()) {
        return c.gp0();
    }
    c.xcr0 = Xcr0::from_bits_retain(v);
    c.attend(ATTENTION_EVENT);
    Ok(())
}

/// SDM vol. 1, 13.3: which combinations XCR0 can hold.
pub fn valid_xcr0(v: u64, allowed: u64) -> bool {
    let x = Xcr0::from_bits_retain(v);
    let has = |bits: Xcr0| x.intersects(bits);
    has(Xcr0::X87)
        && v & !allowed == 0
        && (!has(Xcr0::AVX) || has(Xcr0::SSE))
        && x.contains(Xcr0::BNDREGS) == x.contains(Xcr0::BNDCSR)
        && (!has(Xcr0::AVX512) || x.contains(Xcr0::AVX512 | Xcr0::AVX))
}

fn rdpkru(c: &mut Vcpu, _: &Insn) -> Result {
    if !c.cr4.contains(Cr4::PKE) {
        return c.ud();
    }
    if c.reg::<u32>(RCX) != 0 {
        return c.gp0();
    }
    let v = c.pkru as u64;
    set_edx_eax(c, v);
    Ok(())
}

fn wrpkru(c: &mut Vcpu, _: &Insn) -> Result {
    if !c.cr4.contains(Cr4::PKE) {
        return c.ud();
    }
    if c.reg::<u32>(RCX) != 0 || c.reg::<u32>(RDX) != 0 {
        return c.gp0();
    }
    c.pkru = c.reg::<u32>(RAX);
    c.mmu.set_pkru(c.pkru);
    c.attend(ATTENTION_EVENT);
    Ok(())
}

// ---- segment bases ---------------------------------------------------------------------------

fn base_segment(i: &Insn) -> Seg {
    match i.code.mnemonic() {
        Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => Seg::Fs,
        _ => Seg::Gs,
    }
}

fn rd_base(c: &mut Vcpu, i: &Insn) -> Result {
    if !c.cr4.contains(Cr4::FSGSBASE) {
        return c.ud();
    }
    let v = c.segment(base_segment(i)).base;
    if i.op_size == 8 {
        c.set_reg(i.r[0], v)
    } else {
        c.set_reg(i.r[0], v as u32)
    }
    Ok(())
}

fn wr_base(c: &mut Vcpu, i: &Insn) -> Result {
    if !c.cr4.contains(Cr4::FSGSBASE) {
        return c.ud();
    }
    let v = if i.op_size == 8 { c.reg::<u64>(i.r[0]) } else { c.reg::<u32>(i.r[0]) as u64 };
    if !c.canonical(v) {
        return c.gp0();
    }
    c.set_segment_base(base_segment(i), v);
    Ok(())
}

fn swapgs(c: &mut Vcpu, _: &Insn) -> Result {
    c.require_cpl0()?;
    let gs = c.segment(Seg::Gs).base;
    let kernel = core::mem::replace(&mut c.msr.kernel_gs_base, gs);
    c.set_segment_base(Seg::Gs, kernel);
    Ok(())
}

impl Vcpu {
    /// Replaces a segment's base and nothing else (WRFSBASE, SWAPGS, the base MSRs).
    pub(crate) fn set_segment_base(&mut self, s: Seg, base: u64) {
        let mut v = self.seg[s as usize];
        v.base = base;
        self.set_segment(s, v);
    }
}

// ---- debug registers -------------------------------------------------------------------------

fn mov_to_dr(c: &mut Vcpu, i: &Insn) -> Result {
    let n = c.check_dr_access(i.r[0])?;
    let v = if c.mode == CpuMode::Bits64 { c.reg::<u64>(i.r[1]) } else { c.reg::<u32>(i.r[1]) as u64 };
    c.write_dr(n, v)
}

fn mov_from_dr(c: &mut Vcpu, i: &Insn) -> Result {
    let n = c.check_dr_access(i.r[1])?;
    let v = c.read_dr(n);
    if c.mode == CpuMode::Bits64 {
        c.set_reg(i.r[0], v)
    } else {
        c.set_reg(i.r[0], v as u32)
    }
    Ok(())
}

// ---- hypercalls and the rest -----------------------------------------------------------------

fn hypercall(c: &mut Vcpu, i: &Insn) -> Result {
    c.stats.hypercalls += 1;
    c.hypercall_instruction(i.code == Code::Vmcall)
}

/// SERIALIZE; RDSSP, which reads nothing while there are no shadow stacks (SDM vol. 2B, RDSSPD).
fn nothing(_: &mut Vcpu, _: &Insn) -> Result {
    Ok(())
}

/// RSM, at any privilege level; outside system-management mode it does not exist.
fn rsm(c: &mut Vcpu, _: &Insn) -> Result {
    if c.events.smm { c.leave_smm() } else { c.ud() }
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    use Mnemonic as M;
    match i.code {
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => return Some(mov_to_cr),
        Code::Mov_r32_cr | Code::Mov_r64_cr => return Some(mov_from_cr),
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => return Some(mov_to_dr),
        Code::Mov_r32_dr | Code::Mov_r64_dr => return Some(mov_from_dr),
        _ => {}
    }
    Some(match i.code.mnemonic() {
        M::Clts => clts,
        M::Lmsw => lmsw,
        M::Smsw => smsw,
        M::Invd | M::Wbinvd | M::Wbnoinvd => cache_all,
        M::Clflush | M::Clflushopt | M::Clwb => cache_line,
        M::Clzero => clzero,
        M::Invlpg => invlpg,
        M::Invpcid => invpcid,
        M::Cpuid => cpuid_insn,
        M::Rdtsc => rdtsc,
        M::Rdtscp => rdtscp,
        M::Rdpmc => rdpmc,
        M::Rdpid => rdpid,
        M::Rdrand | M::Rdseed => by_size!(i.op_size, random),
        M::Rdmsr => rdmsr,
        M::Wrmsr => wrmsr,
        M::Hlt => hlt,
        M::Monitor => monitor,
        M::Mwait => mwait,
        M::Xgetbv => xgetbv,
        M::Xsetbv => xsetbv,
        M::Rdpkru => rdpkru,
        M::Wrpkru => wrpkru,
        M::Rdfsbase | M::Rdgsbase => rd_base,
        M::Wrfsbase | M::Wrgsbase => wr_base,
        M::Swapgs => swapgs,
        M::Vmcall | M::Vmmcall => hypercall,
        M::Serialize | M::Rdsspd | M::Rdsspq => nothing,
        M::Rsm => rsm,
        _ => return None,
    })
}
