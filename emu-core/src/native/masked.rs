//! Memory operands under a mask: which elements are accessed, and so may fault.
//!
//! What is masked out raises no fault, of paging, of a segment's limit or type, or of a non-canonical address, unless
//! the instruction's exception class says otherwise (SDM vol. 2A, 2.8: the classes with "NF"). Which class an
//! instruction has is `allow`'s; how its mask is laid over its operand is `stub`'s. Masked moves that are done in
//! software, `interp::simd`'s, store by the same rules.

use super::stub::{Masked, Stub};
use super::{Buffer, check_alignment, fetch};
use crate::exit::{Result, Stop};
use crate::host_rules::host_rules;
use crate::vcpu::Vcpu;
use crate::xstate;
use decoder::Insn;
use softmmu::Access;

/// Bit `n`: element `n` of the memory operand is accessed.
fn elements(c: &Vcpu, s: &Stub) -> u64 {
    let k: u64 =
        if s.mask == 0 { u64::MAX } else { c.xsave.get(xstate::layout().opmask + 8 * s.mask as usize) };
    let k = k & low(s.count as u32);
    match s.masked {
        Masked::Packed => low(k.count_ones()),
        Masked::Broadcast => (k != 0) as u64,
        Masked::Repeated => {
            // An element is accessed if any of the elements that it becomes is wanted.
            let parts = (s.size / s.element.max(1)).clamp(1, 63) as u32;
            let (mut folded, mut rest) = (0, k);
            while rest != 0 {
                folded |= rest & low(parts);
                rest >>= parts;
            }
            folded
        }
        _ => k,
    }
}

/// The `n` lowest bits.
fn low(n: u32) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

/// Reads the operand. What is masked out is not touched if touching it would fault.
#[cold]
#[inline(never)]
pub(super) fn load(c: &mut Vcpu, i: &Insn, s: &Stub, b: &mut Buffer) -> Result {
    let k = elements(c, s);
    let (ea, seg) = (c.ea(i), i.mem.seg);
    let (element, size) = (s.element as usize, (s.size as usize).min(64));
    if k != 0 || !host_rules().empty_mask_unaligned {
        check_alignment(c, i, s, ea, false)?;
    }
    if k == 0 {
        return Ok(());
    }
    // Bytes that are masked out may be read where nobody can tell.
    if c.hot.watch == 0
        && let Ok(gva) = c.linear(seg, ea, size as u64, false)
    {
        match fetch(c, i, s, gva, &mut b.0[..size]) {
            Err(Stop::Exception(_)) => {}
            Err(Stop::Need) => c.io.request = None,
            done => return done,
        }
    }
    for n in (0..size / element.max(1)).filter(|n| k >> n & 1 != 0) {
        let gva = c.linear(seg, ea.wrapping_add((n * element) as u64), element as u64, false)?;
        fetch(c, i, s, gva, &mut b.0[n * element..(n + 1) * element])?;
    }
    Ok(())
}

/// Writes the operand's elements, all checked first; with `probe` nothing is written.
#[cold]
#[inline(never)]
pub(super) fn store(c: &mut Vcpu, i: &Insn, s: &Stub, b: &Buffer, probe: bool) -> Result {
    let k = elements(c, s);
    let (ea, seg) = (c.ea(i), i.mem.seg);
    let (element, size) = (s.element as usize, (s.size as usize).min(64));
    if k != 0 || s.whole || !host_rules().empty_mask_unaligned {
        check_alignment(c, i, s, ea, false)?;
    }
    if s.whole {
        let gva = c.linear(seg, ea, size as u64, true)?;
        c.check_aligned(gva, size as u64, s.checked as u64)?;
        c.probe_lin(seg, gva, size as u64, Access::write(c.cpl == 3))?;
    }
    let align = if s.whole { 1 } else { s.checked as u64 };
    let to = To { seg, ea, wrap: u64::MAX, align, probe };
    c.store_masked(to, element, k, &b.0[..size])
}

/// Where masked elements go.
#[derive(Clone, Copy)]
pub(crate) struct To {
    /// The segment.
    pub(crate) seg: u8,
    /// The first element's effective address.
    pub(crate) ea: u64,
    /// An element's effective address wraps to these bits.
    pub(crate) wrap: u64,
    /// What #AC looks for.
    pub(crate) align: u64,
    /// Check only.
    pub(crate) probe: bool,
}

impl Vcpu {
    /// Checks that `len` bytes of element `n` and on can be stored; their linear address.
    fn storable(&mut self, to: To, n: usize, element: usize, len: usize) -> Result<u64> {
        let ea = to.ea.wrapping_add((n * element) as u64) & to.wrap;
        let gva = self.linear(to.seg, ea, len as u64, true)?;
        self.check_aligned(gva, len as u64, to.align)?;
        self.probe_lin(to.seg, gva, len as u64, Access::write(self.cpl == 3))?;
        Ok(gva)
    }

    /// Stores the elements of `b` whose bit in `k` is set, a run of them at a time, after all of them were found
    /// writable. The first element with a fault says which.
    pub(crate) fn store_masked(&mut self, to: To, element: usize, k: u64, b: &[u8]) -> Result {
        let mut runs = [(0u64, 0usize, 0usize); 64];
        let (mut count, mut n) = (0, 0);
        while n < 64 && k >> n != 0 {
            n += (k >> n).trailing_zeros() as usize;
            let long = (k >> n).trailing_ones() as usize;
            let last = to.ea.wrapping_add(((n + long) * element) as u64).wrapping_sub(1);
            let whole =
                if last & !to.wrap == 0 { self.storable(to, n, element, long * element) } else { self.gp0() };
            let (gva, len) = match whole {
                Ok(gva) => (gva, long),
                Err(_) => (self.storable(to, n, element, element)?, 1),
            };
            if let Some(run) = runs.get_mut(count) {
                *run = (gva, n * element, len * element);
            }
            count += 1;
            n += len;
        }
        let count = if to.probe { 0 } else { count };
        for &(gva, from, len) in runs.iter().take(count) {
            if let Some(part) = b.get(from..from + len) {
                self.write_bytes_lin(to.seg, gva, part)?;
            }
        }
        Ok(())
    }
}
