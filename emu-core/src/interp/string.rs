//! MOVS, STOS, LODS, SCAS, CMPS, alone and repeated (SDM vol. 2, REP).
//!
//! Each iteration commits by itself: a fault leaves rSI, rDI and rCX at the iteration that failed. A repeated
//! instruction runs in chunks; after each it stands at itself again (`Vcpu::again`), so that interrupts and
//! requests from other threads are seen. Ascending MOVS and STOS between ordinary pages go by the page through
//! the host's bulk primitives.
//!
//! INS and OUTS are in [`super::port_io`].

use super::flags::{self, ZF};
use super::operand::Int;
use super::{Handler, by_size};
use crate::exit::Result;
use crate::vcpu::{ATTENTION_EVENT, RIP, Vcpu};
use decoder::{Insn, Prefixes};
use iced_x86::Mnemonic;
use softmmu::{Access, HostPtr, Target, host_mem};
use x86_arch::{Gpr, Gva, PAGE_MASK, PAGE_SIZE, Rflags, Seg};

const RAX: u8 = Gpr::Rax as u8;
const RCX: u8 = Gpr::Rcx as u8;
const RSI: u8 = Gpr::Rsi as u8;
const RDI: u8 = Gpr::Rdi as u8;
const ES: u8 = Seg::Es as u8;

/// Bytes of a chunk where they go in bulk; single iterations count for [`SINGLE_COST`].
const CHUNK: u64 = 4 * PAGE_SIZE;
/// What an iteration that is made alone costs of a chunk: so many fit in it.
const SINGLE_COST: u64 = CHUNK / 1024;
/// Bytes of the pattern that a bulk STOS of a wide operand stores at a time.
const PATTERN: usize = 256;

impl Vcpu {
    /// An index or count register of a string instruction, in its address size.
    #[inline(always)]
    pub(super) fn string_reg(&self, i: &Insn, r: u8) -> u64 {
        self.hot.regs[(r & 15) as usize] & i.mem.mask()
    }

    /// Writes an index or count register as a register of the address size is written.
    #[inline(always)]
    pub(super) fn set_string_reg(&mut self, i: &Insn, r: u8, v: u64) {
        match i.mem.addr_size() {
            2 => self.set_reg(r, v as u16),
            4 => self.set_reg(r, v as u32),
            _ => self.set_reg(r, v),
        }
    }

    /// Moves an index register by `n` elements of `size` bytes, in the direction of DF.
    #[inline(always)]
    pub(super) fn advance(&mut self, i: &Insn, r: u8, n: u64, size: u64) {
        let by = n.wrapping_mul(size);
        let old = self.string_reg(i, r);
        let new = if self.flag(Rflags::DF) { old.wrapping_sub(by) } else { old.wrapping_add(by) };
        self.set_string_reg(i, r, new);
    }

    /// The instruction has more to do: it is executed again after the loop has looked around. It does not count as
    /// retired yet.
    pub(super) fn again(&mut self, i: &Insn) {
        self.hot.regs[RIP] = self.hot.regs[RIP].wrapping_sub(i.len as u64) & self.hot.rip_mask;
        self.hot.retired = self.hot.retired.wrapping_sub(1);
        self.attend(ATTENTION_EVENT);
    }

    /// Commits `n` iterations of a repeated instruction.
    #[inline(always)]
    pub(super) fn iterated(&mut self, i: &Insn, n: u64) {
        let left = self.string_reg(i, RCX).wrapping_sub(n);
        self.set_string_reg(i, RCX, left);
        self.hot.rep_iterations = self.hot.rep_iterations.wrapping_add(n);
        self.io.commit();
    }
}

/// One iteration of an instruction that moves data.
type Once = fn(&mut Vcpu, &Insn) -> Result;
/// As many iterations as can be done at once, at most this many; 0: try one alone.
type Bulk = fn(&mut Vcpu, &Insn, u64) -> Result<u64>;

/// MOVS, STOS, LODS: any repeat prefix is REP.
#[inline(always)]
fn repeat(c: &mut Vcpu, i: &Insn, size: u64, once: Once, bulk: Option<Bulk>) -> Result {
    if !i.rep() {
        return once(c, i);
    }
    let mut budget = CHUNK;
    loop {
        let left = c.string_reg(i, RCX);
        if left == 0 {
            return Ok(());
        }
        let done = match bulk {
            Some(f) if !c.flag(Rflags::DF) && c.hot.attention == 0 => f(c, i, left)?,
            _ => 0,
        };
        let cost = if done > 0 {
            c.iterated(i, done);
            done * size
        } else {
            once(c, i)?;
            c.iterated(i, 1);
            SINGLE_COST
        };
        if c.string_reg(i, RCX) == 0 {
            return Ok(());
        }
        budget = budget.saturating_sub(cost);
        if budget == 0 || c.hot.attention != 0 {
            c.again(i);
            return Ok(());
        }
    }
}

/// How many of `left` elements at `ea` lie in one page and do not wrap around the address size, and their linear
/// address. 0: do one alone.
#[inline(always)]
fn span<T: Int>(c: &Vcpu, i: &Insn, seg: u8, ea: u64, left: u64, write: bool) -> (u64, u64) {
    let Ok(gva) = c.linear(seg, ea, T::BYTES, write) else { return (0, 0) };
    let in_page = (PAGE_SIZE - (gva & PAGE_MASK)) / T::BYTES;
    let unwrapped = (i.mem.mask() - ea) / T::BYTES;
    let n = left.min(in_page).min(unwrapped);
    // The segment's limit for all of them; a failure is the single iteration's to find.
    if n == 0 || c.linear(seg, ea, n * T::BYTES, write) != Ok(gva) { (0, 0) } else { (n, gva) }
}

/// Plain memory within one page, or `None`: then a single iteration finds out why. The pages of source and destination
/// may share an entry of the TLB, so that a look there is not enough.
fn resolve(c: &mut Vcpu, gva: u64, len: u64, write: bool) -> Option<HostPtr> {
    let tlb = &c.mmu.tlb;
    if let Some(p) = if write { tlb.lookup_write(gva, len) } else { tlb.lookup_read(gva, len) } {
        return Some(p);
    }
    let user = c.cpl == 3;
    let access = if write { Access::write(user) } else { Access::read(user) };
    match c.mmu.translate(Gva(gva), access, len) {
        Ok(Target::Ram(p)) => Some(p),
        _ => None,
    }
}

fn movs_once<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.load::<T>(i.mem.seg, c.string_reg(i, RSI))?;
    c.store(ES, c.string_reg(i, RDI), v)?;
    c.advance(i, RSI, 1, T::BYTES);
    c.advance(i, RDI, 1, T::BYTES);
    Ok(())
}

fn movs_bulk<T: Int>(c: &mut Vcpu, i: &Insn, left: u64) -> Result<u64> {
    if c.hot.watch != 0 {
        return Ok(0);
    }
    let (n, from) = span::<T>(c, i, i.mem.seg, c.string_reg(i, RSI), left, false);
    let (n, to) = span::<T>(c, i, ES, c.string_reg(i, RDI), n, true);
    if n < 2 {
        return Ok(0);
    }
    let len = n * T::BYTES;
    let Some(p) = resolve(c, from, len, false) else { return Ok(0) };
    let Some(q) = resolve(c, to, len, true) else { return Ok(0) };
    // A copy byte by byte is a copy element by element unless an element overlaps its own source.
    let distance = q.hva().0.wrapping_sub(p.hva().0);
    if distance != 0 && distance < T::BYTES {
        return Ok(0);
    }
    host_mem::bulk::copy_within(q, p, len as usize).map_err(|f| c.host_faulted(f))?;
    c.advance(i, RSI, n, T::BYTES);
    c.advance(i, RDI, n, T::BYTES);
    Ok(n)
}

fn movs<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    repeat(c, i, T::BYTES, movs_once::<T>, Some(movs_bulk::<T>))
}

fn stos_once<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.reg::<T>(RAX);
    c.store(ES, c.string_reg(i, RDI), v)?;
    c.advance(i, RDI, 1, T::BYTES);
    Ok(())
}

fn stos_bulk<T: Int>(c: &mut Vcpu, i: &Insn, left: u64) -> Result<u64> {
    if c.hot.watch != 0 {
        return Ok(0);
    }
    let (n, to) = span::<T>(c, i, ES, c.string_reg(i, RDI), left, true);
    if n < 2 {
        return Ok(0);
    }
    let len = n * T::BYTES;
    let Some(p) = resolve(c, to, len, true) else { return Ok(0) };
    let v = c.reg::<T>(RAX);
    fill(p, v, len).map_err(|f| c.host_faulted(f))?;
    c.advance(i, RDI, n, T::BYTES);
    Ok(n)
}

/// Fills `len` bytes, which do not leave the page, with copies of `v`.
fn fill<T: Int>(p: HostPtr, v: T, len: u64) -> core::result::Result<(), softmmu::HostFault> {
    let bytes = v.to_u64().to_le_bytes();
    let size = T::BYTES as usize;
    if bytes[..size].iter().all(|b| *b == bytes[0]) {
        return host_mem::fill(p, bytes[0], len as usize);
    }
    let mut pattern = [0; PATTERN];
    for element in pattern.chunks_exact_mut(size) {
        element.copy_from_slice(&bytes[..size]);
    }
    let mut done = 0;
    while done < len {
        let n = (len - done).min(PATTERN as u64);
        host_mem::copy_to(p.within_page(done), &pattern[..n as usize])?;
        done += n;
    }
    Ok(())
}

fn stos<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    repeat(c, i, T::BYTES, stos_once::<T>, Some(stos_bulk::<T>))
}

fn lods_once<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.load::<T>(i.mem.seg, c.string_reg(i, RSI))?;
    c.set_reg(RAX, v);
    c.advance(i, RSI, 1, T::BYTES);
    Ok(())
}

fn lods<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    repeat(c, i, T::BYTES, lods_once::<T>, None)
}

/// One iteration of a comparison: its status flags.
type Compare = fn(&mut Vcpu, &Insn) -> Result<u64>;

/// SCAS and CMPS: F3 goes on while equal, F2 while different. A fault leaves the flags as they were before
/// (SDM vol. 2, REP).
#[inline(always)]
fn repeat_while(c: &mut Vcpu, i: &Insn, once: Compare) -> Result {
    if !i.rep() {
        let f = once(c, i)?;
        c.set_status(f);
        return Ok(());
    }
    let equal = !i.prefixes.contains(Prefixes::REPNE);
    let mut budget = CHUNK;
    let mut status = None;
    while c.string_reg(i, RCX) != 0 {
        if budget == 0 || c.hot.attention != 0 && status.is_some() {
            c.again(i);
            break;
        }
        let f = once(c, i)?;
        c.iterated(i, 1);
        status = Some(f);
        budget = budget.saturating_sub(SINGLE_COST);
        if (f & ZF != 0) != equal {
            break;
        }
    }
    if let Some(f) = status {
        c.set_status(f);
    }
    Ok(())
}

fn scas_once<T: Int>(c: &mut Vcpu, i: &Insn) -> Result<u64> {
    let a = c.reg::<T>(RAX);
    let b = c.load::<T>(ES, c.string_reg(i, RDI))?;
    c.advance(i, RDI, 1, T::BYTES);
    Ok(flags::sub(a, b, a.sub(b)))
}

fn scas<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    repeat_while(c, i, scas_once::<T>)
}

fn cmps_once<T: Int>(c: &mut Vcpu, i: &Insn) -> Result<u64> {
    // If both fault, it is the second operand's fault that processors of AMD report; the SDM does not say.
    let b = c.load::<T>(ES, c.string_reg(i, RDI))?;
    let a = c.load::<T>(i.mem.seg, c.string_reg(i, RSI))?;
    c.advance(i, RSI, 1, T::BYTES);
    c.advance(i, RDI, 1, T::BYTES);
    Ok(flags::sub(a, b, a.sub(b)))
}

fn cmps<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    repeat_while(c, i, cmps_once::<T>)
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    let s = i.op_size;
    // MOVSD and CMPSD are also SSE2 instructions: those have no string operands.
    if i.form2() != decoder::Form::String {
        return None;
    }
    Some(match i.code.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => by_size!(s, movs),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => by_size!(s, stos),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => by_size!(s, lods),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => by_size!(s, scas),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => by_size!(s, cmps),
        _ => return None,
    })
}
