//! FXSAVE, FXRSTOR and the XSAVE family (SDM vol. 1, 13.7 to 13.12; vol. 2, the instructions' own pages).
//!
//! The image in `Vcpu::xsave` is always complete: a component whose bit in `xstate_bv` is clear has its initial value there.
//! Whatever writes to a component sets the bit; `in_use` tells which of those are not initial. The modified optimization of XSAVEOPT and XSAVES is not used. XGETBV and XSETBV are elsewhere.

use super::Handler;
use crate::exit::Result;
use crate::host_cpu;
use crate::host_rules::host_rules;
use crate::vcpu::Vcpu;
use crate::xstate::{self, IMAGE_SIZE, XsaveImage};
use decoder::Insn;
use iced_x86::Mnemonic;
use x86_arch::control::{Cr0, Cr4, Efer};
use x86_arch::{Exception, Gpr, Vector, xsave};

/// XCOMP_BV: the area is compacted.
const COMPACTED: u64 = 1 << 63;
/// x87.
const FP: u64 = 1;
/// XMM registers.
const SSE: u64 = 2;
/// The component numbers that the layout can have.
const EXTENDED: core::ops::Range<usize> = 2..10;

pub(crate) fn select(i: &Insn) -> Option<Handler> {
    use Mnemonic as M;
    Some(match i.code.mnemonic() {
        M::Fxsave => fxsave::<false>,
        M::Fxsave64 => fxsave::<true>,
        M::Fxrstor => fxrstor::<false>,
        M::Fxrstor64 => fxrstor::<true>,
        M::Xsave => save::<PLAIN, false>,
        M::Xsave64 => save::<PLAIN, true>,
        M::Xsaveopt => save::<OPT, false>,
        M::Xsaveopt64 => save::<OPT, true>,
        M::Xsavec => save::<COMPACT, false>,
        M::Xsavec64 => save::<COMPACT, true>,
        M::Xsaves => save::<SUPERVISOR, false>,
        M::Xsaves64 => save::<SUPERVISOR, true>,
        M::Xrstor => restore::<false, false>,
        M::Xrstor64 => restore::<false, true>,
        M::Xrstors => restore::<true, false>,
        M::Xrstors64 => restore::<true, true>,
        _ => return None,
    })
}

// ---- the legacy region -----------------------------------------------------------------------

/// The x87 part of the legacy region, in the 64-bit format or the one with 32-bit pointers and selectors.
fn put_x87(c: &Vcpu, area: &mut [u8], wide: bool) {
    let from = &c.xsave.bytes;
    area[..xsave::MXCSR].copy_from_slice(&from[..xsave::MXCSR]);
    // The byte behind FTW is reserved.
    area[5] = 0;
    if !wide {
        for (at, selector) in [(xsave::FIP, c.xsave.fcs), (xsave::FDP, c.xsave.fds)] {
            area[at + 4..at + 6].copy_from_slice(&selector.to_le_bytes());
            area[at + 6..at + 8].fill(0);
        }
    }
    if host_rules().saves_pointers_with_error_only && c.xsave.fsw() & 0x80 == 0 {
        area[xsave::FOP..xsave::MXCSR].fill(0);
    }
    for n in 0..8 {
        let at = xsave::ST0 + 16 * n;
        area[at..at + 10].copy_from_slice(&from[at..at + 10]);
        area[at + 10..at + 16].fill(0);
    }
}

fn take_x87(c: &mut Vcpu, area: &[u8], wide: bool) {
    let x = &mut c.xsave;
    x.bytes[..xsave::MXCSR].copy_from_slice(&area[..xsave::MXCSR]);
    x.bytes[5] = 0;
    let rules = host_rules();
    (x.fcs, x.fds) = (0, 0);
    if wide {
        x.set_fip(rules.x87_pointer(x.fip()));
        x.set_fdp(rules.x87_pointer(x.fdp()));
    } else {
        if !rules.no_x87_selectors {
            (x.fcs, x.fds) = (x.get(xsave::FIP + 4), x.get(xsave::FDP + 4));
        }
        x.set_fip(x.fip() & 0xffff_ffff);
        x.set_fdp(x.fdp() & 0xffff_ffff);
    }
    for n in 0..8 {
        let at = xsave::ST0 + 16 * n;
        x.bytes[at..at + 10].copy_from_slice(&area[at..at + 10]);
        x.bytes[at + 10..at + 16].fill(0);
    }
    x.set_fcw(x.fcw() & 0x1f3f | 0x40);
    x.set_fop(x.fop() & 0x7ff);
    x.update_summary();
    x.set_xstate_bv(x.xstate_bv() | FP);
}

fn put_mxcsr(c: &Vcpu, area: &mut [u8]) {
    area[xsave::MXCSR..xsave::MXCSR + 4].copy_from_slice(&c.xsave.mxcsr().to_le_bytes());
    area[xsave::MXCSR_MASK..xsave::MXCSR_MASK + 4].copy_from_slice(&host_cpu::mxcsr_mask().to_le_bytes());
}

fn mxcsr_of(area: &[u8]) -> u32 {
    let m = xsave::MXCSR;
    u32::from_le_bytes([area[m], area[m + 1], area[m + 2], area[m + 3]])
}

/// XMM registers that the mode has.
fn xmm_end(c: &Vcpu) -> usize {
    xsave::XMM0 + 16 * if c.long64() { 16 } else { 8 }
}

/// #NM before FXSAVE and FXRSTOR.
fn check_fx(c: &Vcpu) -> Result {
    if c.cr0.intersects(Cr0::EM | Cr0::TS) {
        return Err(Exception::new(Vector::Nm).into());
    }
    Ok(())
}

/// EFER.FFXSR: no XMM registers at CPL 0 in 64-bit mode (APM vol. 2, 11.4.4).
fn fast_fx(c: &Vcpu) -> bool {
    c.efer.contains(Efer::FFXSR) && c.cpl == 0 && c.long64()
}

/// The effective address of an area of `len` bytes that must be aligned at `align`. `checked`: where #AC looks
/// first; how far it does is the implementation's choice (SDM vol. 2A, FXSAVE).
fn area_at(c: &mut Vcpu, i: &Insn, len: usize, align: u64, checked: u64, write: bool) -> Result<u64> {
    let ea = c.ea(i);
    // The address is looked at before the segment's limit, as on processors; it matters where that would be #SS.
    let base = c.seg_path[(i.mem.seg & 7) as usize].base;
    if align == 64 && base.wrapping_add(ea) & 63 != 0 {
        return c.gp0();
    }
    let gva = c.linear(i.mem.seg, ea, len as u64, write)?;
    c.check_aligned(gva, len as u64, checked)?;
    if gva & (align - 1) != 0 { c.gp0() } else { Ok(gva) }
}

fn fxsave<const WIDE: bool>(c: &mut Vcpu, i: &Insn) -> Result {
    check_fx(c)?;
    let gva = area_at(c, i, xsave::LEGACY_SIZE, 16, 4, true)?;
    let end = if fast_fx(c) { xsave::XMM0 } else { xmm_end(c) };
    // All 512 bytes must be writable, though the last are not written.
    let access = softmmu::Access::write(c.cpl == 3);
    c.probe_lin(i.mem.seg, gva, xsave::LEGACY_SIZE as u64, access)?;
    let mut area = [0; xsave::LEGACY_SIZE];
    put_x87(c, &mut area, WIDE);
    put_mxcsr(c, &mut area);
    area[xsave::XMM0..end].copy_from_slice(&c.xsave.bytes[xsave::XMM0..end]);
    c.write_bytes_lin(i.mem.seg, gva, &area[..end])
}

fn fxrstor<const WIDE: bool>(c: &mut Vcpu, i: &Insn) -> Result {
    check_fx(c)?;
    let gva = area_at(c, i, xsave::LEGACY_SIZE, 16, 4, false)?;
    let mut area = [0; xsave::LEGACY_SIZE];
    c.read_bytes_lin(i.mem.seg, gva, &mut area)?;
    let mxcsr = mxcsr_of(&area);
    if mxcsr & !host_cpu::mxcsr_mask() != 0 {
        return c.gp0();
    }
    let end = if fast_fx(c) { xsave::XMM0 } else { xmm_end(c) };
    take_x87(c, &area, WIDE);
    c.xsave.set_mxcsr(mxcsr);
    c.xsave.bytes[xsave::XMM0..end].copy_from_slice(&area[xsave::XMM0..end]);
    c.xsave.set_xstate_bv(c.xsave.xstate_bv() | FP | SSE);
    Ok(())
}

// ---- XSAVE -----------------------------------------------------------------------------------

const PLAIN: u8 = 0;
const OPT: u8 = 1;
const COMPACT: u8 = 2;
const SUPERVISOR: u8 = 3;

fn check_xsave(c: &Vcpu) -> Result {
    if !c.cr4.contains(Cr4::OSXSAVE) {
        return c.ud();
    }
    c.check_ts()
}

/// The requested-feature bitmap: EDX:EAX, of what is enabled.
fn rfbm(c: &Vcpu, supervisor: bool) -> u64 {
    let asked = c.reg::<u32>(Gpr::Rax as u8) as u64 | (c.reg::<u32>(Gpr::Rdx as u8) as u64) << 32;
    asked & enabled(c, supervisor)
}

fn enabled(c: &Vcpu, supervisor: bool) -> u64 {
    c.xcr0.bits() | if supervisor { c.msr.xss } else { 0 }
}

/// XINUSE (SDM vol. 1, 13.6): what was written and is not as initialization leaves it. PKRU's is known from its value;
/// SSE's includes MXCSR for the compacted formats and XGETBV.
///
/// AMD's processors find a component that was loaded with zeros initial, which the SDM allows; they count one into
/// which zeros were computed as in use, and this does not.
pub(super) fn in_use(c: &Vcpu, compacted: bool) -> u64 {
    let x = &c.xsave;
    let mut bv = x.xstate_bv() & !(1 << 9);
    let zero = |from: usize, len: usize| x.bytes[from..from + len].iter().all(|b| *b == 0);
    if !host_rules().loaded_zeros_are_initial {
        return with_mxcsr(c, bv, compacted);
    }
    if bv & FP != 0 && x87_is_initial(x) {
        bv &= !FP;
    }
    if bv & SSE != 0 && zero(xsave::XMM0, 256) {
        bv &= !SSE;
    }
    for n in EXTENDED {
        if bv >> n & 1 != 0 && xstate::layout().component(n).is_some_and(|own| zero(own.offset, own.size)) {
            bv &= !(1 << n);
        }
    }
    with_mxcsr(c, bv, compacted)
}

fn with_mxcsr(c: &Vcpu, bv: u64, compacted: bool) -> u64 {
    let mxcsr = if compacted && c.xsave.mxcsr() != xsave::MXCSR_INIT { SSE } else { 0 };
    bv | mxcsr | ((c.pkru != 0) as u64) << 9
}

/// Pointers that are not stored do not count: an AMD's are not stored without an exception.
fn x87_is_initial(x: &XsaveImage) -> bool {
    let pointers = x.fip() | x.fdp() | x.fop() as u64;
    x.fcw() == xsave::FCW_INIT
        && x.fsw() == 0
        && x.ftw() == 0
        && (pointers == 0 || host_rules().saves_pointers_with_error_only)
        && (0..8).all(|n| x.bytes[xsave::ST0 + 16 * n..][..10].iter().all(|b| *b == 0))
}

/// Where component `n` lies: at its own place, or behind those before it in `format` (XCOMP_BV).
fn place(n: usize, format: Option<u64>) -> Option<(usize, usize)> {
    let layout = xstate::layout();
    let own = layout.component(n)?;
    let Some(format) = format else { return Some((own.offset, own.size)) };
    let mut at = xsave::HEADER_END;
    for k in EXTENDED {
        let Some(part) = layout.component(k) else { continue };
        if format >> k & 1 == 0 {
            continue;
        }
        if part.aligned {
            at = at.next_multiple_of(64);
        }
        if k == n {
            return Some((at, part.size));
        }
        at += part.size;
    }
    None
}

/// Registers 8 to 15 (and 16 to 31) do not exist outside 64-bit mode: their parts are neither saved nor loaded.
fn present(c: &Vcpu, n: usize, size: usize) -> usize {
    match n {
        2 | 6 if !c.long64() => size / 2,
        7 if !c.long64() => 0,
        _ => size,
    }
}

/// Where an area with these components ends.
fn area_end(components: u64, format: Option<u64>) -> usize {
    EXTENDED
        .filter(|n| components >> n & 1 != 0)
        .filter_map(|n| place(n, format))
        .fold(xsave::HEADER_END, |end, (at, size)| end.max(at + size))
}

fn save<const FORM: u8, const WIDE: bool>(c: &mut Vcpu, i: &Insn) -> Result {
    check_xsave(c)?;
    let supervisor = FORM == SUPERVISOR;
    if supervisor {
        c.require_cpl0()?;
    }
    let compacted = FORM == COMPACT || FORM == SUPERVISOR;
    let rfbm = rfbm(c, supervisor);
    let seg = i.mem.seg;
    let used = in_use(c, compacted);
    let gva = area_at(c, i, area_end(rfbm, compacted.then_some(rfbm)), 64, 1, true)?;
    // The first access is a write to the area's beginning.
    c.probe_lin(seg, gva, 1, softmmu::Access::write(c.cpl == 3))?;
    // What is written: everything requested, or what of it is in use.
    let wanted = if FORM == PLAIN { rfbm } else { rfbm & used };
    let format = compacted.then_some(rfbm);

    let mut area = [0u8; IMAGE_SIZE];
    // The parts to write, in order of address.
    let mut parts = [(0usize, 0usize); 16];
    let mut count = 0;
    let mut add = |from: usize, len: usize| {
        if len == 0 {
            return;
        }
        if count > 0 && parts[count - 1].0 + parts[count - 1].1 == from {
            parts[count - 1].1 += len;
        } else if count < parts.len() {
            parts[count] = (from, len);
            count += 1;
        }
    };
    if wanted & FP != 0 {
        put_x87(c, &mut area, WIDE);
        add(0, 24);
    }
    // SDM vol. 1, 13.7: MXCSR goes with SSE or AVX; 13.10: in the compacted format with SSE alone.
    let mxcsr = if compacted {
        wanted & SSE != 0
    } else if FORM == OPT {
        rfbm & 6 != 0
    } else {
        wanted & 6 != 0
    };
    if mxcsr {
        put_mxcsr(c, &mut area);
        add(24, 8);
    }
    if wanted & FP != 0 {
        add(xsave::ST0, 128);
    }
    if wanted & SSE != 0 {
        let end = xmm_end(c);
        area[xsave::XMM0..end].copy_from_slice(&c.xsave.bytes[xsave::XMM0..end]);
        add(xsave::XMM0, end - xsave::XMM0);
    }
    if compacted {
        area[xsave::XSTATE_BV..xsave::XSTATE_BV + 8].copy_from_slice(&wanted.to_le_bytes());
        area[xsave::XCOMP_BV..xsave::XCOMP_BV + 8].copy_from_slice(&(rfbm | COMPACTED).to_le_bytes());
        add(xsave::XSTATE_BV, 16);
    } else {
        let mut old = [0; 8];
        c.read_bytes_lin(seg, gva.wrapping_add(xsave::XSTATE_BV as u64) & c.hot.linear_mask, &mut old)?;
        let bv = u64::from_le_bytes(old) & !rfbm | rfbm & used;
        area[xsave::XSTATE_BV..xsave::XSTATE_BV + 8].copy_from_slice(&bv.to_le_bytes());
        add(xsave::XSTATE_BV, 8);
    }
    for n in EXTENDED.filter(|n| wanted >> n & 1 != 0) {
        let (Some((to, size)), Some(own)) = (place(n, format), xstate::layout().component(n)) else {
            continue;
        };
        let size = present(c, n, size);
        if n == 9 {
            area[to..to + 4].copy_from_slice(&c.pkru.to_le_bytes());
        } else {
            area[to..to + size].copy_from_slice(&c.xsave.bytes[own.offset..own.offset + size]);
        }
        add(to, size);
    }
    // Nothing is written unless all can be. (Silicon may leave a part behind.)
    let access = softmmu::Access::write(c.cpl == 3);
    let at = |offset: usize| gva.wrapping_add(offset as u64);
    let mask = c.hot.linear_mask;
    let parts = &parts[..count];
    if let (Some(first), Some(last)) = (parts.first(), parts.last()) {
        let len = last.0 + last.1 - first.0;
        if (at(first.0) & 0xfff) as usize + len > 4096 {
            for &(from, len) in parts {
                c.probe_lin(seg, at(from) & mask, len as u64, access)?;
            }
        }
    }
    for &(from, len) in parts {
        c.write_bytes_lin(seg, at(from) & mask, &area[from..from + len])?;
    }
    Ok(())
}

fn word(area: &[u8], at: usize) -> u64 {
    area[at..at + 8].iter().rev().fold(0, |v, b| v << 8 | *b as u64)
}

fn restore<const SUP: bool, const WIDE: bool>(c: &mut Vcpu, i: &Insn) -> Result {
    check_xsave(c)?;
    if SUP {
        c.require_cpl0()?;
    }
    let rfbm = rfbm(c, SUP);
    let gva = area_at(c, i, xsave::HEADER_END, 64, 1, false)?;
    let seg = i.mem.seg;
    let mask = c.hot.linear_mask;
    let mut area = [0u8; IMAGE_SIZE];
    c.read_bytes_lin(seg, gva, &mut area[..xsave::HEADER_END])?;
    let bv = word(&area, xsave::XSTATE_BV);
    let comp = word(&area, xsave::XCOMP_BV);
    let reserved_clear = |from: usize| area[from..xsave::HEADER_END].iter().all(|b| *b == 0);
    let enabled = enabled(c, SUP);
    let format = if comp & COMPACTED != 0 {
        // SDM vol. 1, 13.8.2 and 13.12.
        let format = comp & !COMPACTED;
        if format & !enabled != 0 || bv & !format != 0 || !reserved_clear(xsave::XCOMP_BV + 8) {
            return c.gp0();
        }
        if !SUP && !c.cpuid.has(x86_arch::cpuid::XSAVEC) && !c.cpuid.has(x86_arch::cpuid::XSAVES) {
            return c.gp0();
        }
        Some(format)
    } else {
        // 13.8.1: bytes 8 to 23 of the header are 0. (The rest is not looked at.)
        if SUP || bv & !enabled != 0 || comp != 0 || word(&area, xsave::XCOMP_BV + 8) != 0 {
            return c.gp0();
        }
        None
    };
    // The limit is that of all that was asked for, in its initial state or not.
    let ea = c.ea(i);
    c.linear(seg, ea, area_end(rfbm, format) as u64, false)?;
    let load = rfbm & bv;
    let init = rfbm & !bv;
    for n in EXTENDED.filter(|n| load >> n & 1 != 0) {
        if let Some((from, size)) = place(n, format) {
            let size = present(c, n, size);
            if size != 0 {
                let at = gva.wrapping_add(from as u64) & mask;
                c.read_bytes_lin(seg, at, &mut area[from..from + size])?;
            }
        }
    }
    // MXCSR: in the standard format it goes with SSE or AVX, whatever XSTATE_BV says.
    let mxcsr = match format {
        None if rfbm & 6 != 0 => Some(mxcsr_of(&area)),
        Some(_) if load & SSE != 0 => Some(mxcsr_of(&area)),
        Some(_) if init & SSE != 0 => Some(xsave::MXCSR_INIT),
        _ => None,
    };
    if mxcsr.is_some_and(|m| m & !host_cpu::mxcsr_mask() != 0) {
        return c.gp0();
    }

    // From here nothing can fail.
    if let Some(m) = mxcsr {
        c.xsave.set_mxcsr(m);
    }
    if load & FP != 0 {
        take_x87(c, &area, WIDE);
    } else if init & FP != 0 {
        c.xsave.fninit();
        c.xsave.bytes[xsave::ST0..xsave::XMM0].fill(0);
    }
    let end = xmm_end(c);
    if load & SSE != 0 {
        c.xsave.bytes[xsave::XMM0..end].copy_from_slice(&area[xsave::XMM0..end]);
    } else if init & SSE != 0 {
        c.xsave.bytes[xsave::XMM0..end].fill(0);
    }
    for n in EXTENDED.filter(|n| rfbm >> n & 1 != 0) {
        let Some(own) = xstate::layout().component(n) else { continue };
        if n == 9 {
            let at = place(n, format).map_or(0, |p| p.0);
            let v = if load >> n & 1 != 0 { word(&area, at) as u32 } else { 0 };
            set_pkru(c, v);
            continue;
        }
        let size = present(c, n, own.size);
        let to = own.offset..own.offset + size;
        match place(n, format) {
            Some((from, _)) if load >> n & 1 != 0 => {
                c.xsave.bytes[to].copy_from_slice(&area[from..from + size])
            }
            _ => c.xsave.bytes[to].fill(0),
        }
    }
    let mut now = c.xsave.xstate_bv() & !rfbm | load;
    if !c.long64() && init & 0xc6 != 0 {
        // Registers that this mode cannot reach keep their values.
        now |= init & 0xc6;
    }
    c.xsave.set_xstate_bv(now & !(1 << 9));
    Ok(())
}

fn set_pkru(c: &mut Vcpu, v: u32) {
    if c.pkru != v {
        c.pkru = v;
        c.mmu.set_pkru(v);
    }
}
