//! SIMD and x87 on the host processor: an AVX instruction's semantics are the host's own.
//!
//! A guest instruction of the allow-list (`allow`) is re-encoded with its memory operand pointed at a buffer and its
//! general register renamed (`stub`), and called on the guest's vector state. Memory goes through the vCPU's own access
//! path before and after, so that faults are the guest's. Exceptions that the guest's MXCSR does not mask
//! arrive as SIGFPE (`fpe`) and become #XM; x87 exceptions stay pending in FSW, as they do on silicon.
//!
//! Not here: what is done in software, in `interp::simd` (masked moves, gathers, control words), `interp::x87`
//! (environment and control) and `interp::xsave`.
//!
//! `unsafe` is needed to map and to call machine code. Only bytes that iced's encoder produced from a listed `Code`
//! with operands of our choice are ever called.
//!
//! Cost on a Zen 4 at 2.6 GHz with two busy cores, all of the interpreter's loop included (`cargo run --release -p emu-core
//! --example native_cost`): 11 to 18 ns for an SSE, AVX or AVX-512 instruction on registers, 17 to 34 ns with memory
//! (an integer ADD: 9 ns), 140 ns for x87 and MMX, whose state goes through FXRSTOR and FXSAVE.
#![allow(unsafe_code)]

mod allow;
mod code_buf;
mod fpe;
mod masked;
mod stub;

use crate::exit::{Result, Stop};
use crate::host_cpu;
use crate::host_rules::host_rules;
use crate::interp::Handler;
use crate::vcpu::Vcpu;
use allow::Unit;
use code_buf::CodeBuf;
use decoder::{Attr, Insn, attrs};
use iced_x86::InstructionInfoFactory;
pub(crate) use masked::To;
use softmmu::host_mem;
use std::collections::HashMap;
use stub::{FAULT, Failed, Masked, Stub};
use x86_arch::control::{Cr0, Cr4};
use x86_arch::{Exception, Rflags, Seg, Vector, xsave};

/// Entries of the direct-mapped cache in front of the map of stubs.
const FRONT: usize = 1024;

/// MXCSR.MM: AMD's misaligned-access mode (APM vol. 1, 4.2.2). It does not concern the moves that have "aligned" in their
/// names.
const MXCSR_MM: u32 = 1 << 17;

/// The bits of an instruction that determine its stub.
type Key = u128;

#[derive(Clone, Copy)]
struct Line {
    key: Key,
    stub: Stub,
}

/// One vCPU's stubs.
pub struct Native {
    buf: Option<CodeBuf>,
    front: Box<[Line]>,
    stubs: HashMap<Key, Stub>,
    mxcsr_mask: u32,
    /// Where x87 and MMX stubs leave the state, to be committed or not.
    scratch: Box<Scratch>,
}

#[repr(C, align(64))]
struct Scratch([u8; xsave::LEGACY_SIZE]);

impl Default for Native {
    fn default() -> Self {
        fpe::install();
        Native {
            buf: CodeBuf::new(),
            // No instruction has the key 0: its length would be 0.
            front: vec![Line { key: 0, stub: Stub::NONE }; FRONT].into_boxed_slice(),
            stubs: HashMap::new(),
            mxcsr_mask: host_cpu::mxcsr_mask(),
            scratch: Box::new(Scratch([0; xsave::LEGACY_SIZE])),
        }
    }
}

/// The instruction's bytes (at most 15), and its code size and length above them.
#[inline(always)]
fn key(i: &Insn) -> Key {
    let b = i.padded_bytes();
    let low = u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
    let high = u64::from_le_bytes([b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14]]) >> 8;
    low as u128 | (high as u128) << 64 | ((i.mode as u8 as u128) << 4 | i.len as u128) << 120
}

impl Native {
    #[inline(always)]
    fn find(&mut self, i: &Insn) -> Stub {
        let key = key(i);
        let hash = (key as u64 ^ (key >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
        let at = hash as usize & (FRONT - 1);
        let line = &self.front[at];
        if line.key == key {
            return line.stub;
        }
        let stub = self.find_slow(key, i);
        self.front[at] = Line { key, stub };
        stub
    }

    #[cold]
    #[inline(never)]
    fn find_slow(&mut self, key: Key, i: &Insn) -> Stub {
        if let Some(stub) = self.stubs.get(&key) {
            return *stub;
        }
        let mut factory = InstructionInfoFactory::new();
        let mut made = self.make(i, &mut factory);
        if matches!(made, Err(Failed::Full)) {
            self.flush();
            made = self.make(i, &mut factory);
        }
        let stub = made.unwrap_or(Stub::NONE);
        self.stubs.insert(key, stub);
        stub
    }

    fn make(&mut self, i: &Insn, factory: &mut InstructionInfoFactory) -> core::result::Result<Stub, Failed> {
        match &mut self.buf {
            Some(buf) => stub::make(i, buf, factory),
            None => Err(Failed::Refused),
        }
    }

    fn flush(&mut self) {
        self.stubs.clear();
        self.front.fill(Line { key: 0, stub: Stub::NONE });
        if let Some(buf) = &mut self.buf {
            buf.clear();
        }
    }
}

/// The memory operand's bytes.
#[repr(C, align(64))]
struct Buffer([u8; 64]);

type Code = extern "sysv64" fn(*mut u8, u64, *mut u8, u64, *mut u64, *mut u8) -> u64;

/// Calls a stub on the vCPU's state.
#[inline(always)]
fn call(c: &mut Vcpu, s: &Stub, buffer: &mut Buffer) -> u64 {
    // SAFETY: `s.entry` is not 0 (checked by the callers), so it is the address of a stub that `stub::make` wrote
    // into this vCPU's slot, which is not flushed while it runs. The stub follows the System V ABI and touches
    // memory only through its arguments: 64 bytes at `buffer`, 512 at the scratch area, the register file of 16
    // words, and the image, whose offsets come from `xstate::layout` and are within IMAGE_SIZE.
    let f = unsafe { core::mem::transmute::<usize, Code>(s.entry) };
    f(
        buffer.0.as_mut_ptr(),
        0,
        c.native.scratch.0.as_mut_ptr(),
        c.hot.rflags,
        c.hot.regs.as_mut_ptr(),
        c.xsave.bytes.as_mut_ptr(),
    )
}

const SSE: u8 = 0;
const VEX: u8 = 1;
const EVEX: u8 = 2;
const MMX: u8 = 3;
const X87: u8 = 4;
/// MMX with XMM registers: CVTPI2PS and its like.
const MMX_XMM: u8 = 5;

/// VPEXTRQ and VPINSRQ, which exist in 64-bit mode only: VPEXTRD and VPINSRD with VEX.W elsewhere (SDM vol. 2B, PEXTRD,
/// PINSRD). iced ignores the bit there.
fn wide_element_outside_64_bit_mode(i: &Insn) -> bool {
    let code = matches!(
        i.code,
        iced_x86::Code::VEX_Vpextrd_rm32_xmm_imm8 | iced_x86::Code::VEX_Vpinsrd_xmm_xmm_rm32_imm8
    );
    let vex = || i.bytes().iter().position(|byte| *byte == 0xc4).and_then(|at| i.bytes().get(at + 2));
    code && i.mode != decoder::CpuMode::Bits64 && vex().is_some_and(|byte| byte & 0x80 != 0)
}

/// The handler, if this instruction may run natively.
pub(crate) fn select(i: &Insn) -> Option<Handler> {
    let row = allow::get(i.code)?;
    if wide_element_outside_64_bit_mode(i) {
        return Some(crate::interp::undefined);
    }
    Some(match (row.unit, i.has_mem()) {
        (Unit::Sse, false) => vector::<SSE, false>,
        (Unit::Sse, true) => vector::<SSE, true>,
        (Unit::Vex, false) => vector::<VEX, false>,
        (Unit::Vex, true) => vector::<VEX, true>,
        (Unit::Evex, false) => vector::<EVEX, false>,
        (Unit::Evex, true) => vector::<EVEX, true>,
        (Unit::Mmx, _) if attrs(i.code).attr.contains(Attr::SSE) => fx::<MMX_XMM>,
        (Unit::Mmx, _) => fx::<MMX>,
        (Unit::X87, _) => fx::<X87>,
    })
}

impl Vcpu {
    /// #UD and #NM before a legacy SSE instruction (SDM vol. 3A, 2.5, and vol. 2A, 2.4).
    #[inline(always)]
    pub(crate) fn check_sse(&self) -> Result {
        if self.cr0.contains(Cr0::EM) || !self.cr4.contains(Cr4::OSFXSR) {
            return self.ud();
        }
        self.check_ts()
    }

    /// #UD and #NM before a VEX-encoded vector instruction.
    #[inline(always)]
    pub(crate) fn check_vex(&self) -> Result {
        if !self.cr4.contains(Cr4::OSXSAVE) || self.xcr0.bits() & 6 != 6 || !self.protected() {
            return self.ud();
        }
        self.check_ts()
    }

    /// #UD and #NM before an EVEX-encoded instruction or one on opmask registers.
    #[inline(always)]
    pub(crate) fn check_evex(&self) -> Result {
        if !self.cr4.contains(Cr4::OSXSAVE) || self.xcr0.bits() & 0xe6 != 0xe6 || !self.protected() {
            return self.ud();
        }
        self.check_ts()
    }

    /// #NM with CR0.TS.
    #[inline(always)]
    pub(crate) fn check_ts(&self) -> Result {
        if self.cr0.contains(Cr0::TS) {
            return Err(Stop::Exception(Exception::new(Vector::Nm)));
        }
        Ok(())
    }

    /// #UD, #NM and #MF before an MMX instruction (SDM vol. 3A, 12.1).
    #[inline(always)]
    pub(crate) fn check_mmx(&self) -> Result {
        if self.cr0.contains(Cr0::EM) {
            return self.ud();
        }
        self.check_ts()?;
        self.check_pending()
    }

    /// #NM before an x87 instruction (SDM vol. 3A, table 9-3).
    #[inline(always)]
    pub(crate) fn check_x87(&self) -> Result {
        if self.cr0.intersects(Cr0::EM | Cr0::TS) {
            return Err(Stop::Exception(Exception::new(Vector::Nm)));
        }
        Ok(())
    }

    /// #MF before a waiting instruction, if an unmasked x87 exception is pending.
    /// With CR0.NE=0 the FERR# pin would tell an interrupt controller; nothing is told here.
    #[inline(always)]
    pub(crate) fn check_pending(&self) -> Result {
        if self.x87_pending() && self.cr0.contains(Cr0::NE) {
            return Err(Stop::Exception(Exception::new(Vector::Mf)));
        }
        Ok(())
    }

    /// Whether the host would raise #MF on this state. A caller may have set the flags without the summary bit.
    #[inline(always)]
    fn x87_pending(&self) -> bool {
        let fsw = self.xsave.fsw();
        fsw & ES != 0 || fsw & !self.xsave.fcw() & 0x3f != 0
    }

    /// An MXCSR with reserved bits (a caller's, never the guest's) would be #GP on the host.
    #[inline(always)]
    fn sanitize_mxcsr(&mut self) {
        let m = self.xsave.mxcsr();
        if m & !self.native.mxcsr_mask != 0 {
            self.xsave.set_mxcsr(m & self.native.mxcsr_mask);
        }
    }
}

/// #GP for an operand that is not aligned as it must be: before any fault of its segment, also of SS.
#[inline(always)]
fn check_alignment(c: &mut Vcpu, i: &Insn, s: &Stub, ea: u64, legacy: bool) -> Result {
    if s.align > 1 {
        let gva = c.seg_path[(i.mem.seg & 7) as usize].base.wrapping_add(ea);
        // A misaligned access is allowed to legacy SSE with MXCSR.MM.
        if gva & (s.align as u64 - 1) != 0 && !(legacy && !s.moves && c.xsave.mxcsr() & MXCSR_MM != 0) {
            return c.gp0();
        }
    }
    Ok(())
}

/// The linear address of the memory operand, aligned as it must be.
#[inline(always)]
fn address(c: &mut Vcpu, i: &Insn, s: &Stub, legacy: bool) -> Result<u64> {
    let ea = c.ea(i);
    check_alignment(c, i, s, ea, legacy)?;
    let gva = c.linear(i.mem.seg, ea, s.size as u64, s.writes);
    if gva.is_err() && s.writes && s.size == 64 {
        // Of a store of 64 bytes the first half's faults come before the other's.
        let first = c.linear(i.mem.seg, ea, 32, true)?;
        c.probe_lin(i.mem.seg, first, 32, softmmu::Access::write(c.cpl == 3))?;
    }
    gva
}

/// The faults that a store would have.
#[cold]
fn storable(c: &mut Vcpu, i: &Insn, s: &Stub, gva: u64) -> Result {
    c.check_aligned(gva, s.size as u64, s.checked as u64)?;
    c.probe_lin(i.mem.seg, gva, s.size as u64, softmmu::Access::write(c.cpl == 3))
}

#[inline(always)]
fn fetch(c: &mut Vcpu, i: &Insn, s: &Stub, gva: u64, b: &mut [u8]) -> Result {
    if c.hot.watch == 0
        && let Some(p) = c.mmu.tlb.lookup_read(gva, b.len() as u64)
    {
        let done = match b.len() {
            4 => host_mem::load::<u32>(p).map(|v| b.copy_from_slice(&v.to_le_bytes())),
            8 => host_mem::load::<u64>(p).map(|v| b.copy_from_slice(&v.to_le_bytes())),
            16 => host_mem::load::<u128>(p).map(|v| b.copy_from_slice(&v.to_le_bytes())),
            _ => host_mem::copy_from(p, b),
        };
        return done.map_err(|f| c.host_faulted(f));
    }
    c.check_aligned(gva, b.len() as u64, s.checked as u64)?;
    c.read_bytes_lin(i.mem.seg, gva, b)
}

#[inline(always)]
fn put(c: &mut Vcpu, i: &Insn, s: &Stub, gva: u64, b: &[u8]) -> Result {
    if c.hot.watch == 0
        && let Some(p) = c.mmu.tlb.lookup_write(gva, b.len() as u64)
    {
        let done = match *b {
            [a, b, c, d] => host_mem::store::<u32>(p, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => {
                host_mem::store::<u64>(p, u64::from_le_bytes([a, b, c, d, e, f, g, h]))
            }
            _ => match <[u8; 16]>::try_from(b) {
                Ok(b) => host_mem::store::<u128>(p, u128::from_le_bytes(b)),
                Err(_) => host_mem::copy_to(p, b),
            },
        };
        return done.map_err(|f| c.host_faulted(f));
    }
    c.check_aligned(gva, b.len() as u64, s.checked as u64)?;
    c.write_bytes_lin(i.mem.seg, gva, b)
}

/// SSE, AVX and AVX-512.
fn vector<const UNIT: u8, const MEM: bool>(c: &mut Vcpu, i: &Insn) -> Result {
    match UNIT {
        SSE => c.check_sse()?,
        VEX => c.check_vex()?,
        _ => c.check_evex()?,
    }
    let s = c.native.find(i);
    if s.entry == 0 {
        return Err(Stop::Internal(crate::exit::InternalError::Emulation));
    }
    let mut buffer = Buffer([0; 64]);
    let mut gva = 0;
    if MEM {
        if UNIT == EVEX && s.masked != Masked::No {
            if s.reads {
                masked::load(c, i, &s, &mut buffer)?;
            }
        } else {
            gva = address(c, i, &s, UNIT == SSE)?;
            if s.reads {
                fetch(c, i, &s, gva, &mut buffer.0[..(s.size as usize).min(64)])?;
            }
        }
    }
    let mxcsr = c.xsave.mxcsr();
    if s.mxcsr {
        c.sanitize_mxcsr();
    }
    let out = call(c, &s, &mut buffer);
    if s.mxcsr && out & FAULT != 0 {
        if MEM && s.writes {
            // VCVTPS2PH: the faults of its store come first.
            let storable = if UNIT == EVEX && s.masked != Masked::No {
                masked::store(c, i, &s, &buffer, true)
            } else {
                storable(c, i, &s, gva)
            };
            if storable.is_err() {
                c.xsave.set_mxcsr(mxcsr);
                return storable;
            }
        }
        return simd_exception(c);
    }
    if MEM && s.writes {
        let stored = if UNIT == EVEX && s.masked != Masked::No {
            masked::store(c, i, &s, &buffer, false)
        } else {
            put(c, i, &s, gva, &buffer.0[..(s.size as usize).min(64)])
        };
        if stored.is_err() {
            // An instruction that stores to memory has changed nothing else than MXCSR's flags.
            c.xsave.set_mxcsr(mxcsr);
            return stored;
        }
    }
    if s.flags {
        c.set_status(out & Rflags::STATUS.bits());
    }
    let bv = c.xsave.xstate_bv();
    if bv & s.in_use != s.in_use {
        c.xsave.set_xstate_bv(bv | s.in_use);
    }
    Ok(())
}

/// #XM, or #UD where the operating system has not said that it expects it (SDM vol. 3A, 2.5, OSXMMEXCPT).
/// MXCSR keeps the flags that the exception set.
#[cold]
fn simd_exception(c: &mut Vcpu) -> Result {
    c.xsave.set_xstate_bv(c.xsave.xstate_bv() | 2);
    if c.cr4.contains(Cr4::OSXMMEXCPT) { Err(Stop::Exception(Exception::new(Vector::Xm))) } else { c.ud() }
}

/// FSW: error summary.
const ES: u16 = 0x80;
/// FSW: busy.
const BUSY: u16 = 0x8000;
/// FSW: exceptions that an unmasked occurrence of keeps a store from memory: IE, DE, OE, UE.
const NO_STORE: u16 = 0x1b;

/// x87 and MMX.
fn fx<const UNIT: u8>(c: &mut Vcpu, i: &Insn) -> Result {
    if UNIT == X87 {
        c.check_x87()?;
        c.check_pending()?;
    } else {
        // SDM vol. 3A, table 13-1: OSFXSR is about XMM registers.
        if UNIT == MMX_XMM && !c.cr4.contains(Cr4::OSFXSR) {
            return c.ud();
        }
        // CVTPI2PD and CVTPI2PS from memory do not touch x87 state (SDM vol. 2A, CVTPI2PD; for CVTPI2PS a Zen 4).
        if matches!(i.code, iced_x86::Code::Cvtpi2pd_xmm_mmm64 | iced_x86::Code::Cvtpi2ps_xmm_mmm64)
            && i.has_mem()
        {
            if c.cr0.contains(Cr0::EM) {
                return c.ud();
            }
            c.check_ts()?;
        } else {
            c.check_mmx()?;
        }
    }
    let s = c.native.find(i);
    if s.entry == 0 {
        return Err(Stop::Internal(crate::exit::InternalError::Emulation));
    }
    let mut buffer = Buffer([0; 64]);
    let mut gva = 0;
    if s.size != 0 {
        gva = address(c, i, &s, true)?;
        if s.reads {
            fetch(c, i, &s, gva, &mut buffer.0[..(s.size as usize).min(64)])?;
        }
    }
    c.sanitize_mxcsr();
    // CR0.NE=0, as with IGNNE#: the host must not meet the exceptions that are pending still.
    let old = c.xsave.fsw();
    let stale = if c.x87_pending() { old & (ES | BUSY | 0x7f) } else { 0 };
    c.xsave.set_fsw(old & !stale);
    let out = call(c, &s, &mut buffer);
    c.xsave.set_fsw(old);
    if s.mxcsr && out & FAULT != 0 {
        return simd_exception(c);
    }
    let fsw = u16::from_le_bytes([c.native.scratch.0[2], c.native.scratch.0[3]]);
    if s.writes {
        let unmasked = fsw & !c.xsave.fcw() & NO_STORE;
        if UNIT != X87 || unmasked == 0 {
            put(c, i, &s, gva, &buffer.0[..(s.size as usize).min(64)])?;
        } else {
            // Nothing is stored, but a fault of the operand comes before the exception.
            storable(c, i, &s, gva)?;
        }
    }
    commit_fx(c, UNIT != X87);
    if stale != 0 {
        c.xsave.set_fsw(c.xsave.fsw() | stale);
    }
    if UNIT == X87 {
        let ea = if s.size != 0 { Some(c.ea(i)) } else { None };
        let raised = fsw & ES != 0;
        c.set_x87_pointers(i, ea, raised);
    }
    if s.flags {
        c.set_status(out & Rflags::STATUS.bits());
    }
    Ok(())
}

/// Takes over what the stub left in the scratch area: control, status, tags and the stack; with `vectors` also
/// MXCSR and the XMM registers (CVTPI2PS and its like).
fn commit_fx(c: &mut Vcpu, vectors: bool) {
    let (from, to) = (&c.native.scratch.0, &mut c.xsave.bytes);
    to[..xsave::FOP].copy_from_slice(&from[..xsave::FOP]);
    to[xsave::ST0..xsave::XMM0].copy_from_slice(&from[xsave::ST0..xsave::XMM0]);
    let mut in_use = 1;
    if vectors {
        to[xsave::MXCSR..xsave::MXCSR_MASK].copy_from_slice(&from[xsave::MXCSR..xsave::MXCSR_MASK]);
        to[xsave::XMM0..416].copy_from_slice(&from[xsave::XMM0..416]);
        in_use = 3;
    }
    c.xsave.set_xstate_bv(c.xsave.xstate_bv() | in_use);
}

impl Vcpu {
    /// FIP, FDP and FOP after an x87 instruction that is not a control instruction (SDM vol. 1, 8.1.8): whatever the
    /// exceptions, but FDP only with one where the host has it so.
    #[inline]
    pub(crate) fn set_x87_pointers(&mut self, i: &Insn, ea: Option<u64>, raised: bool) {
        let rules = host_rules();
        let start = self.rip().wrapping_sub(i.len as u64) & self.hot.rip_mask;
        self.xsave.set_fip(start);
        if !rules.no_x87_selectors {
            self.xsave.fcs = self.seg[Seg::Cs as usize].selector.0;
        }
        if let Some(ea) = ea
            && (raised || !rules.data_pointer_on_exception_only)
        {
            self.xsave.set_fdp(ea);
            if !rules.no_x87_selectors {
                self.xsave.fds = self.seg[(i.mem.seg & 7) as usize].selector.0;
            }
        }
        let bytes = i.bytes();
        if let Some(n) = bytes.iter().position(|b| b & 0xf8 == 0xd8)
            && let Some(modrm) = bytes.get(n + 1)
        {
            self.xsave.set_fop((bytes[n] as u16 & 7) << 8 | *modrm as u16);
        }
    }
}

#[cfg(test)]
mod alignment_tests;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod pending_tests;
#[cfg(test)]
mod pointer_tests;
#[cfg(test)]
mod software_tests;
#[cfg(test)]
mod tests;
