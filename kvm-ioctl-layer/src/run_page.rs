//! The pages that a vCPU shares with its caller: `struct kvm_run`, the data of port accesses, the coalesced-MMIO ring.
//!
//! `unsafe` is needed because the memory is shared with code that we do not control: another thread, a signal
//! handler, or (through the memfd) another mapping. Inside KVM_RUN every access is volatile and each field is read
//! once. A Rust reference to the page exists only where the public API hands one out, with `&mut` on the vCPU, as the
//! crate `kvm-ioctls` does.
//!
//! Not here: what the fields mean (`soft::vcpu`, `kvm_api::backend`).
#![allow(unsafe_code)]

use kvm_api::backend::{PIO_PAGE_OFFSET, RUN_MMAP_SIZE, RunPage};
use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;
use kvm_ioctls::{HypercallExit, MsrExitReason, ReadMsrExit, VcpuExit, WriteMsrExit};
use memmap2::MmapRaw;
use std::fs::File;
use std::os::fd::FromRawFd;

/// The mapping of one vCPU: a memfd of three pages, so that a caller can map it too.
#[derive(Debug)]
pub struct RunMapping {
    map: MmapRaw,
    file: File,
}

impl RunMapping {
    /// Three zeroed pages.
    pub fn new() -> Result<RunMapping> {
        // SAFETY: the name is a C string; the call has no other pointer.
        let fd = unsafe {
            libc::memfd_create(c"softkvm-vcpu".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
        };
        if fd < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(RUN_MMAP_SIZE as u64)?;
        // SAFETY: the fd is ours; F_ADD_SEALS takes an integer. Its size can then never shrink under the mapping.
        unsafe {
            libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL)
        };
        let map = MmapRaw::map_raw(&file)?;
        Ok(RunMapping { map, file })
    }

    /// The memfd behind the mapping.
    pub fn file(&self) -> &File {
        &self.file
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

impl RunPage for RunMapping {
    fn load(&self, offset: usize, to: &mut [u8]) {
        let base = self.map.as_mut_ptr();
        for (k, b) in to.iter_mut().enumerate() {
            let at = offset.wrapping_add(k);
            // SAFETY: `at` is inside the mapping, which lives as long as `self`.
            *b = if at < RUN_MMAP_SIZE { unsafe { base.add(at).read_volatile() } } else { 0 };
        }
    }

    fn store(&self, offset: usize, from: &[u8]) {
        let base = self.map.as_mut_ptr();
        for (k, b) in from.iter().enumerate() {
            let at = offset.wrapping_add(k);
            if at < RUN_MMAP_SIZE {
                // SAFETY: `at` is inside the mapping, which lives as long as `self` and is writable.
                unsafe { base.add(at).write_volatile(*b) };
            }
        }
    }

    fn size(&self) -> usize {
        RUN_MMAP_SIZE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_bounds() {
        let m = RunMapping::new().unwrap();
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
        let m = RunMapping::new().unwrap();
        let page: &dyn RunPage = &m;
        page.set_exit_reason(KVM_EXIT_IO);
        page.store(32, &[0, 4, 0, 0]);
        page.store(36, &u32::MAX.to_le_bytes());
        page.store(40, &(PIO_PAGE_OFFSET as u64).to_le_bytes());
        assert!(m.exit().is_err());
    }
}
