//! How instructions reach memory: segmentation, the software TLB, page crossing, MMIO.
//!
//! The fast path is one TLB compare and the host's own load or store. All else
//! is in the `cold` functions: misses, page crossings, devices, tracked pages,
//! LOCKed accesses that the host's atomics cannot do. A store is an
//! instruction's last step that can fail, so a fault leaves no trace; an
//! instruction with several stores calls [`Vcpu::probe_write`] for each range first.
//!
//! Names: `load`/`store` take a segment and an effective address, with the
//! checks of the mode (SDM vol. 3A, 5.3); `*_lin` take a linear address at the
//! current privilege; `*_sys` are implicit supervisor accesses (descriptor
//! tables, TSS, interrupt stacks before the switch).

use crate::exit::{Result, Stop};
use crate::interp::operand::Int;
use crate::io::{Request, Write};
use crate::vcpu::{ATTENTION_CODE, ATTENTION_IO, Vcpu, WATCH_ALIGN, WATCH_BREAKPOINT};
use decoder::{Insn, Prefixes};
use softmmu::{Access, AccessKind, HostFault, HostPtr, MmuFault, Target, Tracked, View, host_mem};
use x86_arch::control::{BreakpointKind, Cr0};
use x86_arch::{Exception, Gpa, Gva, PAGE_MASK, PAGE_SIZE, Seg, Vector};

/// Bytes of the longest single access (a ZMM register).
const MAX_ACCESS: usize = 64;

impl Vcpu {
    /// The effective address of the instruction's memory operand.
    #[inline(always)]
    pub fn ea(&self, i: &Insn) -> u64 {
        let m = &i.mem;
        let base = self.hot.regs.get(m.base as usize).copied().unwrap_or(0);
        let index = self.hot.regs.get(m.index as usize).copied().unwrap_or(0);
        base.wrapping_add(index << (m.scale & 3)).wrapping_add(m.disp) & m.mask()
    }

    /// The linear address of `size` bytes at `seg:ea`, checked as the mode asks.
    #[inline(always)]
    pub fn linear(&self, seg: u8, ea: u64, size: u64, write: bool) -> Result<u64> {
        let p = &self.seg_path[(seg & 7) as usize];
        if p.open >> (write as u8) & 1 != 0 && ea <= p.last.wrapping_sub(size.saturating_sub(1)) {
            Ok(p.base.wrapping_add(ea) & self.hot.linear_mask)
        } else {
            self.linear_checked(seg, ea, size, write)
        }
    }

    /// Limit and type checks (SDM vol. 3A, 5.3 and 5.5).
    #[cold]
    #[inline(never)]
    fn linear_checked(&self, seg: u8, ea: u64, size: u64, write: bool) -> Result<u64> {
        if self.mode == decoder::CpuMode::Bits64 {
            return Ok(self.seg_path[(seg & 7) as usize].base.wrapping_add(ea) & self.hot.linear_mask);
        }
        let s = &self.seg[(seg & 7) as usize];
        let fault =
            || Err(Stop::Exception(if seg == Seg::Ss as u8 { Exception::SS0 } else { Exception::GP0 }));
        if self.protected() {
            if s.unusable || !s.present {
                return fault();
            }
            if write && !s.is_writable() || !write && !s.is_readable() {
                return Err(Stop::Exception(Exception::GP0));
            }
        }
        let last = ea.wrapping_add(size.saturating_sub(1));
        if s.is_expand_down() {
            // SDM vol. 3A, 5.3: valid offsets are limit + 1 to 0FFFFH, or 0FFFFFFFFH with B set.
            let top = if s.db { u32::MAX as u64 } else { 0xffff };
            if ea <= s.limit as u64 || last > top || last < ea {
                return fault();
            }
        } else if last > s.limit as u64 || last < ea {
            return fault();
        }
        Ok(s.base.wrapping_add(ea) & self.hot.linear_mask)
    }

    /// Turns what the MMU said into what the instruction does. `seg` decides between #SS and #GP.
    #[cold]
    pub(crate) fn mmu_fault(&mut self, seg: u8, f: MmuFault) -> Stop {
        match f {
            MmuFault::PageFault { gva, code } => {
                self.fault_gva = gva;
                Stop::Exception(Exception::with_code(Vector::Pf, code.bits()))
            }
            MmuFault::NonCanonical => {
                Stop::Exception(if seg == Seg::Ss as u8 { Exception::SS0 } else { Exception::GP0 })
            }
            MmuFault::Host(f) => self.host_faulted(f),
        }
    }

    #[cold]
    pub(crate) fn host_faulted(&mut self, f: HostFault) -> Stop {
        self.host_fault = f.hva.0;
        Stop::HostFault
    }

    // ---- loads -------------------------------------------------------------------------------

    /// Loads the instruction's memory operand.
    #[inline(always)]
    pub fn load_mem<T: Int>(&mut self, i: &Insn) -> Result<T> {
        let ea = self.ea(i);
        self.load(i.mem.seg, ea)
    }

    /// Loads at `seg:ea`.
    #[inline(always)]
    pub fn load<T: Int>(&mut self, seg: u8, ea: u64) -> Result<T> {
        let gva = self.linear(seg, ea, T::BYTES, false)?;
        if self.hot.watch == 0
            && let Some(p) = self.mmu.tlb.lookup_read(gva, T::BYTES)
        {
            return match host_mem::load::<T>(p) {
                Ok(v) => Ok(v),
                Err(f) => Err(self.host_faulted(f)),
            };
        }
        self.load_slow(seg, gva)
    }

    /// Loads at a linear address with the current privilege.
    #[inline(always)]
    pub fn load_lin<T: Int>(&mut self, gva: u64) -> Result<T> {
        if self.hot.watch == 0
            && let Some(p) = self.mmu.tlb.lookup_read(gva, T::BYTES)
        {
            return host_mem::load::<T>(p).map_err(|f| self.host_faulted(f));
        }
        self.load_slow(Seg::Ds as u8, gva)
    }

    #[cold]
    #[inline(never)]
    fn load_slow<T: Int>(&mut self, seg: u8, gva: u64) -> Result<T> {
        let mut b = [0u8; 8];
        let n = T::BYTES as usize;
        self.check_alignment(seg, gva, T::BYTES)?;
        self.read_slow(seg, gva, &mut b[..n], Access::read(self.cpl == 3))?;
        self.watch_data(gva, T::BYTES, false);
        Ok(T::from_u64(u64::from_le_bytes(b)))
    }

    /// Reads `buf.len()` bytes at `seg:ea` (a vector register, a state area), checked as one access.
    pub fn read_bytes(&mut self, seg: u8, ea: u64, buf: &mut [u8]) -> Result {
        let gva = self.linear(seg, ea, buf.len() as u64, false)?;
        self.read_bytes_lin(seg, gva, buf)
    }

    /// Reads bytes at a linear address with the current privilege; `seg` names the fault.
    pub fn read_bytes_lin(&mut self, seg: u8, gva: u64, buf: &mut [u8]) -> Result {
        if self.hot.watch & WATCH_BREAKPOINT == 0
            && buf.len() as u64 <= PAGE_SIZE
            && let Some(p) = self.mmu.tlb.lookup_read(gva, buf.len() as u64)
        {
            return host_mem::copy_from(p, buf).map_err(|f| self.host_faulted(f));
        }
        self.read_slow(seg, gva, buf, Access::read(self.cpl == 3))?;
        self.watch_data(gva, buf.len() as u64, false);
        Ok(())
    }

    /// An implicit supervisor read (descriptor tables, TSS).
    pub fn load_sys<T: Int>(&mut self, gva: u64) -> Result<T> {
        let gva = gva & self.system_mask();
        if let Some(p) = self.mmu.tlb.lookup_read_in(View::Supervisor, gva, T::BYTES) {
            return host_mem::load::<T>(p).map_err(|f| self.host_faulted(f));
        }
        let mut b = [0u8; 8];
        self.read_slow(Seg::Ds as u8, gva, &mut b[..T::BYTES as usize], Access::implicit(AccessKind::Read))?;
        Ok(T::from_u64(u64::from_le_bytes(b)))
    }

    fn system_mask(&self) -> u64 {
        if self.long_mode() { u64::MAX } else { 0xffff_ffff }
    }

    #[cold]
    fn read_slow(&mut self, seg: u8, gva: u64, buf: &mut [u8], access: Access) -> Result {
        self.stats.slow_accesses += 1;
        self.check_end(seg, gva, buf.len() as u64)?;
        let mut done = 0usize;
        while done < buf.len() {
            let at = gva.wrapping_add(done as u64) & self.part_mask();
            let n = ((PAGE_SIZE - (at & PAGE_MASK)) as usize).min(buf.len() - done);
            let part = &mut buf[done..done + n];
            match self.mmu.translate(Gva(at), access, n as u64) {
                Ok(Target::Ram(p)) => load_part(p, part).map_err(|f| self.host_faulted(f))?,
                Ok(Target::Tracked(t)) => load_part(t.host_ptr(), part).map_err(|f| self.host_faulted(f))?,
                Ok(Target::Mmio(gpa)) => self.mmio_read(gpa, part)?,
                Err(f) => return Err(self.mmu_fault(seg, f)),
            }
            done += n;
        }
        Ok(())
    }

    /// An access that leaves the canonical addresses at its end is #GP or #SS before its first page is looked at.
    #[inline]
    fn check_end(&mut self, seg: u8, gva: u64, len: u64) -> Result {
        if (gva & PAGE_MASK) + len > PAGE_SIZE && self.long64() {
            let last = gva.wrapping_add(len - 1);
            if self.canonical(gva) && !self.canonical(last) {
                return Err(self.mmu_fault(seg, MmuFault::NonCanonical));
            }
        }
        Ok(())
    }

    /// The mask of a later part's linear address: an access that begins below 4 GiB in a
    /// 32-bit mode wraps there.
    fn part_mask(&self) -> u64 {
        if self.long_mode() { u64::MAX } else { 0xffff_ffff }
    }

    /// Reads guest-physical memory without a slot: a device inside, an earlier answer, or a request.
    fn mmio_read(&mut self, gpa: Gpa, buf: &mut [u8]) -> Result {
        let mut done = 0;
        while done < buf.len() {
            let n = (buf.len() - done).min(8);
            let request = Request::Mmio { gpa: gpa.0.wrapping_add(done as u64), len: n as u8 };
            let part = &mut buf[done..done + n];
            if let Some(a) = self.io.replay(&request) {
                part.copy_from_slice(&a[..n]);
            } else if self.device_mmio_read(gpa.wrapping_add(done as u64), part) {
                self.stats.device_accesses += 1;
                self.io.record(request, part);
                // The loop forgets the answer when the instruction has committed.
                self.attend(ATTENTION_IO);
            } else {
                self.io.request = Some(request);
                return Err(Stop::Need);
            }
            done += n;
        }
        Ok(())
    }

    // ---- stores ------------------------------------------------------------------------------

    /// Stores the instruction's memory operand.
    #[inline(always)]
    pub fn store_mem<T: Int>(&mut self, i: &Insn, v: T) -> Result {
        let ea = self.ea(i);
        self.store(i.mem.seg, ea, v)
    }

    /// Stores at `seg:ea`.
    #[inline(always)]
    pub fn store<T: Int>(&mut self, seg: u8, ea: u64, v: T) -> Result {
        let gva = self.linear(seg, ea, T::BYTES, true)?;
        if self.hot.watch == 0
            && let Some(p) = self.mmu.tlb.lookup_write(gva, T::BYTES)
        {
            return match host_mem::store::<T>(p, v) {
                Ok(()) => Ok(()),
                Err(f) => Err(self.host_faulted(f)),
            };
        }
        self.store_slow(seg, gva, v)
    }

    /// Stores at a linear address with the current privilege.
    #[inline(always)]
    pub fn store_lin<T: Int>(&mut self, gva: u64, v: T) -> Result {
        if self.hot.watch == 0
            && let Some(p) = self.mmu.tlb.lookup_write(gva, T::BYTES)
        {
            return host_mem::store::<T>(p, v).map_err(|f| self.host_faulted(f));
        }
        self.store_slow(Seg::Ds as u8, gva, v)
    }

    #[cold]
    #[inline(never)]
    fn store_slow<T: Int>(&mut self, seg: u8, gva: u64, v: T) -> Result {
        self.check_alignment(seg, gva, T::BYTES)?;
        let b = v.to_u64().to_le_bytes();
        let access = Access::write(self.cpl == 3);
        self.write_slow(seg, gva, &b[..T::BYTES as usize], access)?;
        self.watch_data(gva, T::BYTES, true);
        Ok(())
    }

    /// Writes bytes at `seg:ea`, checked as one access: nothing is written unless all can be.
    pub fn write_bytes(&mut self, seg: u8, ea: u64, buf: &[u8]) -> Result {
        let gva = self.linear(seg, ea, buf.len() as u64, true)?;
        self.write_bytes_lin(seg, gva, buf)
    }

    /// Writes bytes at a linear address with the current privilege; `seg` names the fault.
    pub fn write_bytes_lin(&mut self, seg: u8, gva: u64, buf: &[u8]) -> Result {
        if self.hot.watch & WATCH_BREAKPOINT == 0
            && buf.len() as u64 <= PAGE_SIZE
            && let Some(p) = self.mmu.tlb.lookup_write(gva, buf.len() as u64)
        {
            return host_mem::copy_to(p, buf).map_err(|f| self.host_faulted(f));
        }
        let access = Access::write(self.cpl == 3);
        self.write_slow(seg, gva, buf, access)?;
        self.watch_data(gva, buf.len() as u64, true);
        Ok(())
    }

    /// An implicit supervisor write (TSS, descriptor's accessed bit, stack of an inner level).
    pub fn store_sys<T: Int>(&mut self, gva: u64, v: T) -> Result {
        let b = v.to_u64().to_le_bytes();
        let gva = gva & self.system_mask();
        let access = Access::implicit(AccessKind::Write);
        self.write_slow(Seg::Ds as u8, gva, &b[..T::BYTES as usize], access)
    }

    /// Writes to the stack that an inner-level transfer will use, at privilege `cpl` (not the current one).
    pub fn store_stack_as<T: Int>(&mut self, cpl: u8, gva: u64, v: T) -> Result {
        let b = v.to_u64().to_le_bytes();
        let access = Access { kind: AccessKind::Write, user: cpl == 3, implicit: false };
        self.write_slow(Seg::Ss as u8, gva & self.system_mask(), &b[..T::BYTES as usize], access)
    }

    /// Checks that `len` bytes at `seg:ea` can be written, without writing.
    pub fn probe_write(&mut self, seg: u8, ea: u64, len: u64) -> Result {
        let gva = self.linear(seg, ea, len, true)?;
        let access = Access::write(self.cpl == 3);
        self.probe_lin(seg, gva, len, access)
    }

    /// Checks that `len` bytes at a linear address allow `access`, without touching them.
    pub fn probe_lin(&mut self, seg: u8, gva: u64, len: u64, access: Access) -> Result {
        self.check_end(seg, gva, len)?;
        let mut done = 0;
        while done < len {
            let at = gva.wrapping_add(done) & self.part_mask();
            let n = (PAGE_SIZE - (at & PAGE_MASK)).min(len - done);
            if let Err(f) = self.mmu.translate(Gva(at), access, n) {
                return Err(self.mmu_fault(seg, f));
            }
            done += n;
        }
        Ok(())
    }

    #[cold]
    fn write_slow(&mut self, seg: u8, gva: u64, buf: &[u8], access: Access) -> Result {
        self.stats.slow_accesses += 1;
        // Both pages of a crossing access are checked before a byte is written.
        let first = ((PAGE_SIZE - (gva & PAGE_MASK)) as usize).min(buf.len());
        if first < buf.len() {
            self.probe_lin(seg, gva, buf.len() as u64, access)?;
        }
        let mut done = 0usize;
        while done < buf.len() {
            let at = gva.wrapping_add(done as u64) & self.part_mask();
            let n = ((PAGE_SIZE - (at & PAGE_MASK)) as usize).min(buf.len() - done);
            let part = &buf[done..done + n];
            match self.mmu.translate(Gva(at), access, n as u64) {
                Ok(Target::Ram(p)) => store_part(p, part).map_err(|f| self.host_faulted(f))?,
                Ok(Target::Tracked(t)) => {
                    store_part(t.host_ptr(), part).map_err(|f| self.host_faulted(f))?;
                    self.after_write(t, n as u64);
                }
                Ok(Target::Mmio(gpa)) => self.mmio_write(gpa, part),
                Err(f) => return Err(self.mmu_fault(seg, f)),
            }
            done += n;
        }
        Ok(())
    }

    /// Reports a store to a page that somebody tracks (page tables, decoded code).
    pub(crate) fn after_write(&mut self, t: Tracked, size: u64) {
        if self.mmu.after_write(t, size) {
            self.attend(ATTENTION_CODE);
        }
    }

    /// Writes to guest-physical memory without a slot: a device inside takes it now, others are queued.
    pub(crate) fn mmio_write(&mut self, gpa: Gpa, buf: &[u8]) {
        for (k, chunk) in buf.chunks(8).enumerate() {
            let at = gpa.wrapping_add(8 * k as u64);
            if self.device_mmio_write(at, chunk) {
                self.stats.device_accesses += 1;
                continue;
            }
            let mut data = [0; 8];
            data[..chunk.len()].copy_from_slice(chunk);
            self.io.writes.push_back(Write::Mmio { gpa: at.0, data, len: chunk.len() as u8 });
            self.attend(ATTENTION_IO);
        }
    }

    // ---- read-modify-write -------------------------------------------------------------------

    /// Reads the memory operand, stores `f(old)`, and returns `old`. With a LOCK prefix it is atomic
    /// against other vCPUs and the VMM; `f` may then run more than once, the last run counts.
    #[inline(always)]
    pub fn rmw_mem<T: Int>(&mut self, i: &Insn, f: impl FnMut(T) -> T) -> Result<T> {
        let ea = self.ea(i);
        self.rmw(i.mem.seg, ea, i.prefixes.contains(Prefixes::LOCK), f)
    }

    /// As [`Vcpu::rmw_mem`], at `seg:ea`.
    #[inline(always)]
    pub fn rmw<T: Int>(&mut self, seg: u8, ea: u64, lock: bool, mut f: impl FnMut(T) -> T) -> Result<T> {
        let gva = self.linear(seg, ea, T::BYTES, true)?;
        if self.hot.watch == 0
            && !lock
            && let Some(p) = self.mmu.tlb.lookup_write(gva, T::BYTES)
        {
            let old = host_mem::load::<T>(p).map_err(|f| self.host_faulted(f))?;
            host_mem::store::<T>(p, f(old)).map_err(|f| self.host_faulted(f))?;
            return Ok(old);
        }
        self.rmw_slow(seg, gva, lock, &mut f)
    }

    #[inline(never)]
    fn rmw_slow<T: Int>(&mut self, seg: u8, gva: u64, lock: bool, f: &mut dyn FnMut(T) -> T) -> Result<T> {
        self.check_alignment(seg, gva, T::BYTES)?;
        // An access within one cache line can be the host's own LOCKed instruction.
        let in_line = gva & 63 <= 64 - T::BYTES;
        if lock && in_line {
            let fast = if self.hot.watch == 0 { self.mmu.tlb.lookup_write(gva, T::BYTES) } else { None };
            let target = match fast {
                Some(p) => Target::Ram(p),
                None => match self.mmu.translate(Gva(gva), Access::write(self.cpl == 3), T::BYTES) {
                    Ok(t) => t,
                    Err(e) => return Err(self.mmu_fault(seg, e)),
                },
            };
            let p = match target {
                Target::Ram(p) => Some(p),
                Target::Tracked(t) => Some(t.host_ptr()),
                // KVM performs a LOCKed access to a device as a read and a write.
                Target::Mmio(_) => None,
            };
            if let Some(p) = p {
                let mut old = host_mem::load::<T>(p).map_err(|e| self.host_faulted(e))?;
                loop {
                    match host_mem::compare_exchange::<T>(p, old, f(old)).map_err(|e| self.host_faulted(e))? {
                        Ok(_) => break,
                        Err(seen) => old = seen,
                    }
                }
                if let Target::Tracked(t) = target {
                    self.after_write(t, T::BYTES);
                }
                self.watch_data(gva, T::BYTES, true);
                return Ok(old);
            }
        } else if lock && !self.exclusive {
            return Err(Stop::Exclusive);
        }
        let n = T::BYTES as usize;
        let write = Access::write(self.cpl == 3);
        self.probe_lin(seg, gva, T::BYTES, write)?;
        let mut b = [0u8; 8];
        self.read_slow(seg, gva, &mut b[..n], Access { kind: AccessKind::Read, ..write })?;
        let old = T::from_u64(u64::from_le_bytes(b));
        let new = f(old).to_u64().to_le_bytes();
        self.write_slow(seg, gva, &new[..n], write)?;
        self.watch_data(gva, T::BYTES, true);
        self.bus_locked |= lock && !in_line && self.vm.choices.exits_on_bus_locks();
        Ok(old)
    }

    // ---- alignment and data breakpoints ------------------------------------------------------

    /// #AC where it is armed (SDM vol. 3A, 6.15, interrupt 17), for an operand that is aligned at its own size: behind
    /// #SS and #GP, before #PF.
    #[inline]
    pub fn check_alignment(&mut self, _seg: u8, gva: u64, size: u64) -> Result {
        self.check_aligned(gva, size, size)
    }

    /// #AC where it is armed and `gva` is not a multiple of `align`, a power of two; `size` bytes are accessed.
    #[inline]
    pub fn check_aligned(&mut self, gva: u64, size: u64, align: u64) -> Result {
        if self.hot.watch & WATCH_ALIGN != 0 && align.is_power_of_two() && gva & (align - 1) != 0 {
            return self.misaligned(gva, size);
        }
        Ok(())
    }

    /// As [`Vcpu::check_aligned`], of an operand at `seg:ea`.
    #[inline]
    pub fn check_operand_alignment(&mut self, seg: u8, ea: u64, size: u64, align: u64) -> Result {
        if self.hot.watch & WATCH_ALIGN == 0 {
            return Ok(());
        }
        let gva = self.linear(seg, ea, size, false)?;
        self.check_aligned(gva, size, align)
    }

    /// An address that is not canonical is #GP or #SS first.
    #[cold]
    fn misaligned(&self, gva: u64, size: u64) -> Result {
        let last = gva.wrapping_add(size.saturating_sub(1));
        let valid = !self.long64() || self.canonical(gva) && self.canonical(last);
        if self.cr0.contains(Cr0::AM) && valid {
            return Err(Stop::Exception(Exception::new(Vector::Ac)));
        }
        Ok(())
    }

    /// Reads bytes at `seg:ea`, as [`Vcpu::read_bytes`], aligned at `align` where #AC is armed.
    pub fn read_aligned(&mut self, seg: u8, ea: u64, buf: &mut [u8], align: u64) -> Result {
        let gva = self.linear(seg, ea, buf.len() as u64, false)?;
        self.check_aligned(gva, buf.len() as u64, align)?;
        self.read_bytes_lin(seg, gva, buf)
    }

    /// Writes bytes at `seg:ea`, as [`Vcpu::write_bytes`], aligned at `align` where #AC is armed.
    pub fn write_aligned(&mut self, seg: u8, ea: u64, buf: &[u8], align: u64) -> Result {
        let gva = self.linear(seg, ea, buf.len() as u64, true)?;
        self.check_aligned(gva, buf.len() as u64, align)?;
        self.write_bytes_lin(seg, gva, buf)
    }

    /// Notes data breakpoints that this access met; they trap after the instruction (SDM vol. 3A, 17.2.4).
    #[inline]
    pub fn watch_data(&mut self, gva: u64, size: u64, write: bool) {
        if self.hot.watch & WATCH_BREAKPOINT != 0 {
            self.match_breakpoints(gva, size, |k| match k {
                BreakpointKind::ReadWrite => true,
                BreakpointKind::Write => write,
                _ => false,
            });
        }
    }

    #[cold]
    pub(crate) fn match_breakpoints(
        &mut self,
        addr: u64,
        size: u64,
        wanted: impl Fn(BreakpointKind) -> bool,
    ) {
        let (dr, dr7) = (self.effective_dr(), self.effective_dr7());
        for (n, &address) in dr.iter().enumerate() {
            if !wanted(dr7.kind(n)) || !dr7.enabled(n) {
                continue;
            }
            let len = dr7.len(n);
            let base = address & !(len - 1);
            let hit = addr < base.wrapping_add(len) && base < addr.wrapping_add(size);
            if hit {
                self.events.debug_trap |= 1 << n;
                self.attend(crate::vcpu::ATTENTION_EVENT);
            }
        }
    }
}

/// Writes part of an operand with one host access where its size allows it, so that
/// other processors never see a torn aligned store.
fn store_part(p: HostPtr, part: &[u8]) -> core::result::Result<(), HostFault> {
    match *part {
        [a] => host_mem::store::<u8>(p, a),
        [a, b] => host_mem::store::<u16>(p, u16::from_le_bytes([a, b])),
        [a, b, c, d] => host_mem::store::<u32>(p, u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => host_mem::store::<u64>(p, u64::from_le_bytes([a, b, c, d, e, f, g, h])),
        _ => host_mem::copy_to(p, part),
    }
}

/// Reads part of an operand with one host access where its size allows it.
fn load_part(p: HostPtr, part: &mut [u8]) -> core::result::Result<(), HostFault> {
    match part.len() {
        1 => part[0] = host_mem::load::<u8>(p)?,
        2 => part.copy_from_slice(&host_mem::load::<u16>(p)?.to_le_bytes()),
        4 => part.copy_from_slice(&host_mem::load::<u32>(p)?.to_le_bytes()),
        8 => part.copy_from_slice(&host_mem::load::<u64>(p)?.to_le_bytes()),
        _ => host_mem::copy_from(p, part)?,
    }
    Ok(())
}

const _: () = assert!(MAX_ACCESS <= PAGE_SIZE as usize);
