//! The pages that a VM and its vCPUs share with the caller: `struct kvm_run`, the data of port accesses, the coalesced-MMIO
//! ring, the dirty ring, statistics.
//!
//! `unsafe` is needed because the memory is shared with code that we do not control: another thread, a signal
//! handler, or (through the memfd) another mapping. Inside KVM_RUN every access is volatile and each field is read
//! once. A Rust reference to the page exists only where the public API hands one out, with `&mut` on the vCPU, as the
//! crate `kvm-ioctls` does.
//!
//! Not here: what the fields mean (`soft::vcpu`, `kvm_api::backend`).
#![allow(unsafe_code)]

use kvm_api::backend::{
    COALESCED_PAGE_OFFSET, DIRTY_RING_OFFSET, DirtyRing, PIO_PAGE_OFFSET, RUN_MMAP_SIZE, RunPage,
};
use kvm_api::errno::{Errno, Result};
use kvm_api::stats::{Stat, StatsBlock};
use kvm_api::uapi::*;
use kvm_ioctls::{HypercallExit, MsrExitReason, ReadMsrExit, VcpuExit, WriteMsrExit};
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// A memfd of `size` zeroed bytes, which keeps its size: no mapping of it can lose its memory.
fn sealed_memfd(name: &core::ffi::CStr, size: usize) -> Result<File> {
    // SAFETY: the name is a C string; the call has no other pointer.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size as u64)?;
    // SAFETY: the fd is ours; F_ADD_SEALS takes an integer. Its size can then never shrink under the mapping.
    unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) };
    Ok(file)
}

/// Bytes of the coalesced-MMIO ring.
pub const RING_SIZE: usize = RUN_MMAP_SIZE - COALESCED_PAGE_OFFSET;

/// The coalesced-MMIO ring of a VM: one page, which each of its vCPUs shows behind its own two.
#[derive(Debug)]
pub struct RingMapping {
    map: MmapRaw,
    file: File,
}

impl RingMapping {
    /// A zeroed page: an empty ring.
    pub fn new() -> Result<RingMapping> {
        let file = sealed_memfd(c"softkvm-coalesced", RING_SIZE)?;
        Ok(RingMapping { map: MmapRaw::map_raw(&file)?, file })
    }

    /// The memfd behind it: who maps a vCPU's pages by a descriptor needs it for the third.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl RunPage for RingMapping {
    fn load(&self, offset: usize, to: &mut [u8]) {
        load(self.map.as_mut_ptr(), RING_SIZE, offset, to);
    }

    fn store(&self, offset: usize, from: &[u8]) {
        store(self.map.as_mut_ptr(), RING_SIZE, offset, from);
    }

    fn size(&self) -> usize {
        RING_SIZE
    }
}

/// A statistics file (KVM_GET_STATS_FD): its data block is shown here while others read the file.
#[derive(Debug)]
pub struct StatsFile {
    map: MmapRaw,
    file: File,
    data: usize,
}

impl StatsFile {
    /// The file of these statistics. `name` is what /proc says of it.
    pub fn new(name: &str, stats: &[Stat], id: &str) -> Result<StatsFile> {
        let head = kvm_api::stats::head(stats, id);
        let size = head.len() + 8 * kvm_api::stats::values(stats);
        let name = std::ffi::CString::new(name).map_err(|_| Errno::EINVAL)?;
        let mut file = sealed_memfd(&name, size)?;
        file.write_all(&head)?;
        let map = MmapOptions::new().len(size).map_raw(&file)?;
        // Nobody writes it but by this mapping, whichever way they get hold of the file.
        // SAFETY: the fd is ours; F_ADD_SEALS takes an integer.
        unsafe {
            libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL)
        };
        Ok(StatsFile { map, data: head.len(), file })
    }

    /// A new descriptor of the file, to be read, from its beginning.
    pub fn open(&self) -> Result<File> {
        match File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd())) {
            Ok(file) => Ok(file),
            // No /proc: the same open file for all.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => Err(e.into()),
            Err(_) => Ok(self.file.try_clone()?),
        }
    }
}

impl StatsBlock for StatsFile {
    fn store(&self, at: usize, value: u64) {
        let offset = at.saturating_mul(8).saturating_add(self.data);
        if offset.saturating_add(8) <= self.map.len() {
            // SAFETY: inside the mapping, which lives as long as `self`; the block begins at a multiple of 8.
            let word = unsafe { &*self.map.as_mut_ptr().add(offset).cast::<AtomicU64>() };
            word.store(value, Ordering::Relaxed);
        }
    }
}

/// One entry of a dirty ring: the layout of `struct kvm_dirty_gfn`.
#[repr(C)]
struct RingEntry {
    flags: AtomicU32,
    slot: AtomicU32,
    offset: AtomicU64,
}

const _: () = assert!(size_of::<RingEntry>() == size_of::<kvm_dirty_gfn>());

/// The dirty ring of one vCPU: the part of its memfd from KVM_DIRTY_LOG_PAGE_OFFSET on.
#[derive(Debug)]
pub struct DirtyRingMapping {
    map: MmapRaw,
}

impl DirtyRingMapping {
    fn entries(&self) -> &[RingEntry] {
        let (at, bytes) = (self.map.as_mut_ptr().cast::<RingEntry>(), self.map.len());
        // SAFETY: the mapping is page-aligned and lives as long as `self`; entries are atomics, for which every bit pattern
        // is valid and which others may write.
        unsafe { core::slice::from_raw_parts(at, bytes / size_of::<RingEntry>()) }
    }

    /// Bytes of the ring.
    pub fn size(&self) -> usize {
        self.map.len()
    }

    fn entry(&self, index: u32) -> &RingEntry {
        let entries = self.entries();
        &entries[index as usize % entries.len()]
    }

    /// Takes the pages in the ring that nobody has taken yet, in the order in which they were written: slot (with its
    /// address space in bits 16 to 31) and page in the slot. `next` is where the last call ended; 0 at first. The entries
    /// become free by KVM_RESET_DIRTY_RINGS.
    pub fn harvest(&self, next: &mut u32) -> Vec<(u32, u64)> {
        let mut pages = Vec::new();
        loop {
            let e = self.entry(*next);
            if e.flags.load(Ordering::Acquire) & (KVM_DIRTY_GFN_F_DIRTY | KVM_DIRTY_GFN_F_RESET)
                != KVM_DIRTY_GFN_F_DIRTY
            {
                return pages;
            }
            pages.push((e.slot.load(Ordering::Relaxed), e.offset.load(Ordering::Relaxed)));
            e.flags.store(KVM_DIRTY_GFN_F_RESET, Ordering::Release);
            *next = next.wrapping_add(1);
        }
    }
}

impl DirtyRing for DirtyRingMapping {
    fn count(&self) -> u32 {
        self.entries().len() as u32
    }

    fn flags(&self, index: u32) -> u32 {
        self.entry(index).flags.load(Ordering::Acquire)
    }

    fn publish(&self, index: u32, slot: u32, offset: u64) {
        let e = self.entry(index);
        e.slot.store(slot, Ordering::Relaxed);
        e.offset.store(offset, Ordering::Relaxed);
        e.flags.store(KVM_DIRTY_GFN_F_DIRTY, Ordering::Release);
    }

    fn clear(&self, index: u32) {
        self.entry(index).flags.store(0, Ordering::Release);
    }
}

/// The mapping of one vCPU: two pages of a memfd, so that a caller can map them too, and its VM's ring.
#[derive(Debug)]
pub struct RunMapping {
    map: MmapRaw,
    file: File,
    polled: AtomicBool,
    dirty_ring: Option<Arc<DirtyRingMapping>>,
}

impl RunMapping {
    /// Two zeroed pages and the ring; behind them in the file, a dirty ring of so many bytes (a power of two, or 0).
    pub fn new(ring: &RingMapping, dirty_ring: usize) -> Result<RunMapping> {
        let size = if dirty_ring == 0 { RUN_MMAP_SIZE } else { DIRTY_RING_OFFSET + dirty_ring };
        let file = sealed_memfd(c"softkvm-vcpu", size)?;
        let map = MmapOptions::new().len(RUN_MMAP_SIZE).map_raw(&file)?;
        // SAFETY: the third page of a mapping that was made a line above and that nobody has seen yet is replaced by the
        // ring's; it keeps its length, and unmapping the whole takes it along.
        let at = unsafe {
            let third = map.as_mut_ptr().add(COALESCED_PAGE_OFFSET);
            libc::mmap(
                third.cast(),
                RING_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                ring.file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let dirty_ring = match dirty_ring {
            0 => None,
            bytes => {
                let map = MmapOptions::new().offset(DIRTY_RING_OFFSET as u64).len(bytes).map_raw(&file)?;
                Some(Arc::new(DirtyRingMapping { map }))
            }
        };
        Ok(RunMapping { map, file, polled: AtomicBool::new(true), dirty_ring })
    }

    /// The memfd behind the first two pages; its third is not the ring.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// From the next KVM_RUN on, `immediate_exit` is looked at when it begins, and not while it lasts: for who ends it by
    /// a kick. A halted vCPU then sleeps without a break.
    pub fn stop_polling(&self) {
        self.polled.store(false, Ordering::Relaxed);
    }

    /// The dirty ring, where the VM has rings.
    pub fn dirty_ring(&self) -> Option<&Arc<DirtyRingMapping>> {
        self.dirty_ring.as_ref()
    }

    /// Where the mapping begins.
    pub fn address(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// The page as its structure.
    ///
    /// The caller of the public API has `&mut` of the vCPU, so no KVM_RUN is on.
    #[allow(clippy::mut_from_ref)] // The exclusive borrow is the vCPU's, which owns the mapping.
    pub(crate) fn kvm_run(&self) -> &mut kvm_run {
        // SAFETY: the mapping is page-aligned, larger than the structure, lives as long as `self`, and every bit
        // pattern is a valid kvm_run. KVM_RUN, which writes it too, needs the same exclusive borrow.
        unsafe { &mut *self.map.as_mut_ptr().cast::<kvm_run>() }
    }

    /// The register sets of KVM_CAP_SYNC_REGS; as [`RunMapping::kvm_run`].
    #[allow(clippy::mut_from_ref)] // As above.
    pub(crate) fn sync_regs(&self) -> &mut kvm_sync_regs {
        // SAFETY: every bit pattern is a valid kvm_sync_regs, which lies in the page like the rest.
        unsafe { &mut self.kvm_run().s.regs }
    }

    /// The last exit in the shape of the crate `kvm-ioctls`. Slices point into the page, where answers are read from.
    pub(crate) fn exit(&self) -> core::result::Result<VcpuExit<'_>, Errno> {
        let base = self.map.as_mut_ptr();
        // SAFETY: as in `kvm_run`; the caller of the public API holds `&mut` of the vCPU for as long as the exit lives.
        let run = unsafe { &mut *base.cast::<kvm_run>() };
        let u = &mut run.__bindgen_anon_1;
        // SAFETY, for each union access below: all variants are plain old data of which every bit pattern is valid,
        // and `exit_reason` says which one was stored.
        Ok(match run.exit_reason {
            KVM_EXIT_UNKNOWN => VcpuExit::Unknown,
            KVM_EXIT_EXCEPTION => VcpuExit::Exception,
            KVM_EXIT_IO => {
                // SAFETY: see above.
                let io = unsafe { u.io };
                let len = io.count as usize * io.size as usize;
                if io.data_offset as usize != PIO_PAGE_OFFSET || len > 4096 {
                    return Err(Errno::EINVAL);
                }
                // SAFETY: the PIO page is the mapping's second, and `len` is at most a page.
                let data = unsafe { core::slice::from_raw_parts_mut(base.add(PIO_PAGE_OFFSET), len) };
                match u32::from(io.direction) {
                    KVM_EXIT_IO_IN => VcpuExit::IoIn(io.port, data),
                    _ => VcpuExit::IoOut(io.port, data),
                }
            }
            KVM_EXIT_HYPERCALL => {
                // SAFETY: see above.
                let h = unsafe { &mut u.hypercall };
                VcpuExit::Hypercall(HypercallExit {
                    nr: h.nr,
                    args: h.args,
                    ret: &mut h.ret,
                    // SAFETY: see above.
                    longmode: unsafe { h.__bindgen_anon_1.longmode },
                })
            }
            // SAFETY: see above.
            KVM_EXIT_DEBUG => VcpuExit::Debug(unsafe { u.debug.arch }),
            KVM_EXIT_HLT => VcpuExit::Hlt,
            KVM_EXIT_MMIO => {
                // SAFETY: see above.
                let m = unsafe { &mut u.mmio };
                let data = &mut m.data[..(m.len as usize).min(8)];
                if m.is_write != 0 {
                    VcpuExit::MmioWrite(m.phys_addr, data)
                } else {
                    VcpuExit::MmioRead(m.phys_addr, data)
                }
            }
            KVM_EXIT_X86_RDMSR => {
                // SAFETY: see above.
                let m = unsafe { &mut u.msr };
                VcpuExit::X86Rdmsr(ReadMsrExit {
                    error: &mut m.error,
                    reason: MsrExitReason::from_bits_truncate(m.reason),
                    index: m.index,
                    data: &mut m.data,
                })
            }
            KVM_EXIT_X86_WRMSR => {
                // SAFETY: see above.
                let m = unsafe { &mut u.msr };
                VcpuExit::X86Wrmsr(WriteMsrExit {
                    error: &mut m.error,
                    reason: MsrExitReason::from_bits_truncate(m.reason),
                    index: m.index,
                    data: m.data,
                })
            }
            KVM_EXIT_IRQ_WINDOW_OPEN => VcpuExit::IrqWindowOpen,
            KVM_EXIT_SHUTDOWN => VcpuExit::Shutdown,
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: see above.
                let f = unsafe { u.fail_entry };
                VcpuExit::FailEntry(f.hardware_entry_failure_reason, f.cpu)
            }
            KVM_EXIT_INTR => VcpuExit::Intr,
            KVM_EXIT_SET_TPR => VcpuExit::SetTpr,
            KVM_EXIT_TPR_ACCESS => VcpuExit::TprAccess,
            KVM_EXIT_NMI => VcpuExit::Nmi,
            KVM_EXIT_INTERNAL_ERROR => VcpuExit::InternalError,
            // SAFETY: see above.
            KVM_EXIT_IOAPIC_EOI => VcpuExit::IoapicEoi(unsafe { u.eoi.vector }),
            KVM_EXIT_HYPERV => VcpuExit::Hyperv,
            reason => VcpuExit::Unsupported(reason),
        })
    }
}

/// The fixed 4 KiB of an XSAVE area with a flexible tail.
pub(crate) fn xsave_region(x: &mut Xsave) -> &mut [u32; 1024] {
    // SAFETY: only the fixed part is written; the length of the tail, which the wrapper relies on, is not touched.
    unsafe { &mut x.as_mut_fam_struct().xsave.region }
}

/// Reads shared memory byte by byte; bytes beyond `size` are zero. `base` is the start of a live mapping of `size` bytes.
fn load(base: *mut u8, size: usize, offset: usize, to: &mut [u8]) {
    for (k, b) in to.iter_mut().enumerate() {
        let at = offset.wrapping_add(k);
        // SAFETY: `at` is inside the mapping, which the callers' `self` keeps.
        *b = if at < size { unsafe { base.add(at).read_volatile() } } else { 0 };
    }
}

/// Writes shared memory byte by byte, in order; bytes beyond `size` are dropped. `base` as for [`load`].
fn store(base: *mut u8, size: usize, offset: usize, from: &[u8]) {
    for (k, b) in from.iter().enumerate() {
        let at = offset.wrapping_add(k);
        if at < size {
            // SAFETY: `at` is inside the mapping, which the callers' `self` keeps and which is writable.
            unsafe { base.add(at).write_volatile(*b) };
        }
    }
}

impl RunPage for RunMapping {
    fn load(&self, offset: usize, to: &mut [u8]) {
        load(self.map.as_mut_ptr(), RUN_MMAP_SIZE, offset, to);
    }

    fn store(&self, offset: usize, from: &[u8]) {
        store(self.map.as_mut_ptr(), RUN_MMAP_SIZE, offset, from);
    }

    fn size(&self) -> usize {
        RUN_MMAP_SIZE
    }

    fn is_polled(&self) -> bool {
        self.polled.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_bounds() {
        let m = RunMapping::new(&RingMapping::new().unwrap(), 0).unwrap();
        assert_eq!(m.address() as usize % 4096, 0);
        let page: &dyn RunPage = &m;
        page.set_cr8(0x1122_3344_5566_7788);
        page.set_immediate_exit(1);
        page.set_exit_reason(KVM_EXIT_HLT);
        assert_eq!(page.cr8(), 0x1122_3344_5566_7788);
        page.store(RUN_MMAP_SIZE - 1, &[7, 8]);
        let mut b = [9; 2];
        page.load(RUN_MMAP_SIZE - 1, &mut b);
        assert_eq!(b, [7, 0]);
        let run = m.kvm_run();
        assert_eq!((run.immediate_exit, run.exit_reason, run.cr8), (1, KVM_EXIT_HLT, 0x1122_3344_5566_7788));
        assert!(matches!(m.exit(), Ok(VcpuExit::Hlt)));
    }

    #[test]
    fn a_caller_that_lies_about_the_data_gets_no_slice() {
        let m = RunMapping::new(&RingMapping::new().unwrap(), 0).unwrap();
        let page: &dyn RunPage = &m;
        page.set_exit_reason(KVM_EXIT_IO);
        page.store(32, &[0, 4, 0, 0]);
        page.store(36, &u32::MAX.to_le_bytes());
        page.store(40, &(PIO_PAGE_OFFSET as u64).to_le_bytes());
        assert!(m.exit().is_err());
    }
}
