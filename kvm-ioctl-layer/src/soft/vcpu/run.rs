//! KVM_RUN and its page: what the caller left there becomes the answer to the last exit, and the processor's next exit becomes a
//! `kvm_run` (KVM api, section 5).

use super::{SoftVcpu, Unfinished};
use crate::soft::{memory, msr};
use crate::user_mem::{bytes_of, from_bytes};
use emu_core::Bound;
use emu_core::event::Activity;
use emu_core::exit::{Direction, Exit, InternalError};
use kvm_api::backend::{EXIT_UNION, PIO_PAGE_OFFSET, RunPage, SYNC_REGS, Vcpu};
use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;
use std::sync::Arc;
use x86_arch::Rflags;

/// Offsets in the exit's union.
mod exit_at {
    use super::EXIT_UNION;
    use kvm_api::uapi::*;

    macro_rules! field {
        ($($name:ident $t:ident $field:ident;)*) => {
            $(pub const $name: usize = EXIT_UNION + core::mem::offset_of!($t, $field);)*
        };
    }
    field! {
        IO_DIRECTION kvm_run__bindgen_ty_1__bindgen_ty_4 direction;
        IO_SIZE kvm_run__bindgen_ty_1__bindgen_ty_4 size;
        IO_PORT kvm_run__bindgen_ty_1__bindgen_ty_4 port;
        IO_COUNT kvm_run__bindgen_ty_1__bindgen_ty_4 count;
        IO_DATA_OFFSET kvm_run__bindgen_ty_1__bindgen_ty_4 data_offset;
        MMIO_ADDR kvm_run__bindgen_ty_1__bindgen_ty_6 phys_addr;
        MMIO_DATA kvm_run__bindgen_ty_1__bindgen_ty_6 data;
        MMIO_LEN kvm_run__bindgen_ty_1__bindgen_ty_6 len;
        MMIO_IS_WRITE kvm_run__bindgen_ty_1__bindgen_ty_6 is_write;
        HYPERCALL_NR kvm_run__bindgen_ty_1__bindgen_ty_8 nr;
        HYPERCALL_ARGS kvm_run__bindgen_ty_1__bindgen_ty_8 args;
        HYPERCALL_RET kvm_run__bindgen_ty_1__bindgen_ty_8 ret;
        HYPERCALL_LONGMODE kvm_run__bindgen_ty_1__bindgen_ty_8 __bindgen_anon_1;
        SUBERROR kvm_run__bindgen_ty_1__bindgen_ty_13 suberror;
        NDATA kvm_run__bindgen_ty_1__bindgen_ty_13 ndata;
        INTERNAL_DATA kvm_run__bindgen_ty_1__bindgen_ty_13 data;
        EOI_VECTOR kvm_run__bindgen_ty_1__bindgen_ty_21 vector;
        MSR_ERROR kvm_run__bindgen_ty_1__bindgen_ty_23 error;
        MSR_REASON kvm_run__bindgen_ty_1__bindgen_ty_23 reason;
        MSR_INDEX kvm_run__bindgen_ty_1__bindgen_ty_23 index;
        MSR_DATA kvm_run__bindgen_ty_1__bindgen_ty_23 data;
        TPR_RIP kvm_run__bindgen_ty_1__bindgen_ty_9 rip;
        TPR_IS_WRITE kvm_run__bindgen_ty_1__bindgen_ty_9 is_write;
        XEN_TYPE kvm_xen_exit type_;
    }
    macro_rules! xen {
        ($($name:ident $field:ident;)*) => {
            $(pub const $name: usize = EXIT_UNION
                + core::mem::offset_of!(kvm_xen_exit, u)
                + core::mem::offset_of!(kvm_xen_exit__bindgen_ty_1__bindgen_ty_1, $field);)*
        };
    }
    xen! {
        XEN_LONGMODE longmode;
        XEN_CPL cpl;
        XEN_INPUT input;
        XEN_RESULT result;
        XEN_PARAMS params;
    }
    /// `debug.arch` begins the union.
    pub const DEBUG: usize = EXIT_UNION;
}

fn load_u64(page: &dyn RunPage, at: usize) -> u64 {
    let mut b = [0; 8];
    page.load(at, &mut b);
    u64::from_le_bytes(b)
}

impl SoftVcpu {
    /// Register sets in the page (KVM_CAP_SYNC_REGS), before entry.
    fn sync_in(&mut self, page: &dyn RunPage) -> Result {
        const KNOWN: u64 = (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS) as u64;
        let dirty = page.dirty_regs();
        if page.valid_regs() & !KNOWN != 0 || dirty & !KNOWN != 0 {
            return Err(Errno::EINVAL);
        }
        if dirty == 0 {
            return Ok(());
        }
        let mut bytes = [0; size_of::<kvm_sync_regs>()];
        page.load(SYNC_REGS, &mut bytes);
        let s: kvm_sync_regs = from_bytes(&bytes);
        if dirty & u64::from(KVM_SYNC_X86_REGS) != 0 {
            self.set_regs(&s.regs)?;
        }
        if dirty & u64::from(KVM_SYNC_X86_SREGS) != 0 {
            self.set_sregs(&s.sregs)?;
        }
        if dirty & u64::from(KVM_SYNC_X86_EVENTS) != 0 {
            self.set_vcpu_events(&s.events)?;
        }
        page.set_dirty_regs(0);
        Ok(())
    }

    fn sync_out(&mut self, page: &dyn RunPage) -> Result {
        let valid = page.valid_regs();
        let at = |offset| SYNC_REGS + offset;
        if valid & u64::from(KVM_SYNC_X86_REGS) != 0 {
            page.store(at(core::mem::offset_of!(kvm_sync_regs, regs)), bytes_of(&self.get_regs()?));
        }
        if valid & u64::from(KVM_SYNC_X86_SREGS) != 0 {
            page.store(at(core::mem::offset_of!(kvm_sync_regs, sregs)), bytes_of(&self.get_sregs()?));
        }
        if valid & u64::from(KVM_SYNC_X86_EVENTS) != 0 {
            page.store(at(core::mem::offset_of!(kvm_sync_regs, events)), bytes_of(&self.get_vcpu_events()?));
        }
        Ok(())
    }

    /// The caller's answer to the last exit, from the page.
    fn complete(&mut self, page: &dyn RunPage) {
        match core::mem::replace(&mut self.unfinished, Unfinished::Nothing) {
            Unfinished::Nothing => {}
            Unfinished::PioOut => self.processor.complete_io(&[]),
            Unfinished::PioIn(len) => {
                let mut data = vec![0; len];
                page.load(PIO_PAGE_OFFSET, &mut data);
                self.processor.complete_io(&data);
            }
            Unfinished::MmioRead(len) => {
                let mut data = [0; 8];
                page.load(exit_at::MMIO_DATA, &mut data);
                self.processor.complete_io(&data[..len.min(8)]);
            }
            Unfinished::Msr => {
                let mut error = [0];
                page.load(exit_at::MSR_ERROR, &mut error);
                self.processor.complete_value(load_u64(page, exit_at::MSR_DATA), error[0] != 0);
            }
            Unfinished::Hypercall => {
                self.processor.complete_value(load_u64(page, exit_at::HYPERCALL_RET), false);
            }
            Unfinished::XenHypercall => {
                self.processor.complete_value(load_u64(page, exit_at::XEN_RESULT), false);
            }
        }
    }

    /// What KVM_RUN leaves in the page whatever the exit.
    pub(super) fn tell(&mut self, page: &dyn RunPage) -> Result {
        let v = &mut self.processor.vcpu;
        page.set_if_flag(v.flag(Rflags::IF) as u8);
        // Whichever exit it is that a bus lock ends in (KVM api 7.22).
        let bus_lock = if core::mem::take(&mut v.bus_locked) { KVM_RUN_X86_BUS_LOCK } else { 0 };
        let smm = if v.events.smm { KVM_RUN_X86_SMM } else { 0 };
        page.set_flags((smm | bus_lock) as u16);
        page.set_cr8(v.read_cr8());
        page.set_apic_base(msr::get(v, x86_arch::msr::IA32_APIC_BASE).unwrap_or(0));
        let ready = if v.vm.has_irqchip() && v.vm.with_irqchip(|c| !c.is_split()) == Some(true) {
            true
        } else {
            v.flag(Rflags::IF)
                && v.events.shadow == emu_core::event::Shadow::None
                && v.events.interrupt.is_none()
                && v.events.exception.is_none()
        };
        page.set_ready_for_interrupt_injection(ready as u8);
        self.sync_out(page)
    }

    /// An exit of the processor as `struct kvm_run`.
    pub(super) fn fill(&mut self, page: &dyn RunPage, exit: Exit) -> Result {
        let reason = match exit {
            Exit::Io { direction, size, port, count, data } => {
                let len = (size as usize * count as usize).min(emu_core::io::PIO_PAGE);
                page.store(exit_at::IO_SIZE, &[size]);
                page.store(exit_at::IO_PORT, &port.to_le_bytes());
                page.store(exit_at::IO_COUNT, &count.to_le_bytes());
                page.store(exit_at::IO_DATA_OFFSET, &(PIO_PAGE_OFFSET as u64).to_le_bytes());
                match direction {
                    Direction::In => {
                        page.store(exit_at::IO_DIRECTION, &[KVM_EXIT_IO_IN as u8]);
                        self.unfinished = Unfinished::PioIn(len);
                    }
                    Direction::Out => {
                        page.store(exit_at::IO_DIRECTION, &[KVM_EXIT_IO_OUT as u8]);
                        page.store(PIO_PAGE_OFFSET, &data[..len.min(data.len())]);
                        if self.processor.vcpu.io.request.is_some() {
                            self.unfinished = Unfinished::PioOut;
                        }
                    }
                }
                KVM_EXIT_IO
            }
            Exit::MmioRead { gpa, len } => {
                page.store(exit_at::MMIO_ADDR, &gpa.to_le_bytes());
                page.store(exit_at::MMIO_DATA, &[0; 8]);
                page.store(exit_at::MMIO_LEN, &u32::from(len).to_le_bytes());
                page.store(exit_at::MMIO_IS_WRITE, &[0]);
                self.unfinished = Unfinished::MmioRead(len as usize);
                KVM_EXIT_MMIO
            }
            Exit::MmioWrite { gpa, data, len } => {
                page.store(exit_at::MMIO_ADDR, &gpa.to_le_bytes());
                page.store(exit_at::MMIO_DATA, &data);
                page.store(exit_at::MMIO_LEN, &u32::from(len).to_le_bytes());
                page.store(exit_at::MMIO_IS_WRITE, &[1]);
                KVM_EXIT_MMIO
            }
            Exit::Hlt => KVM_EXIT_HLT,
            Exit::Shutdown => KVM_EXIT_SHUTDOWN,
            Exit::IrqWindowOpen => KVM_EXIT_IRQ_WINDOW_OPEN,
            Exit::SetTpr => KVM_EXIT_SET_TPR,
            Exit::Woken => return Err(Errno::EAGAIN),
            Exit::Interrupted | Exit::Bound => {
                page.set_exit_reason(KVM_EXIT_INTR);
                return Err(Errno::EINTR);
            }
            Exit::Debug { exception, pc, dr6, dr7 } => {
                let arch = kvm_debug_exit_arch { exception: u32::from(exception), pad: 0, pc, dr6, dr7 };
                page.store(exit_at::DEBUG, bytes_of(&arch));
                KVM_EXIT_DEBUG
            }
            Exit::IoapicEoi { vector } => {
                page.store(exit_at::EOI_VECTOR, &[vector]);
                KVM_EXIT_IOAPIC_EOI
            }
            Exit::MsrRead { index, reason } => {
                page.store(exit_at::MSR_ERROR, &[0]);
                page.store(exit_at::MSR_REASON, &reason.to_le_bytes());
                page.store(exit_at::MSR_INDEX, &index.to_le_bytes());
                page.store(exit_at::MSR_DATA, &[0; 8]);
                self.unfinished = Unfinished::Msr;
                KVM_EXIT_X86_RDMSR
            }
            Exit::MsrWrite { index, data, reason } => {
                page.store(exit_at::MSR_ERROR, &[0]);
                page.store(exit_at::MSR_REASON, &reason.to_le_bytes());
                page.store(exit_at::MSR_INDEX, &index.to_le_bytes());
                page.store(exit_at::MSR_DATA, &data.to_le_bytes());
                self.unfinished = Unfinished::Msr;
                KVM_EXIT_X86_WRMSR
            }
            Exit::Hypercall { nr, args, longmode } => {
                page.store(exit_at::HYPERCALL_NR, &nr.to_le_bytes());
                for (n, a) in args.iter().enumerate() {
                    page.store(exit_at::HYPERCALL_ARGS + 8 * n, &a.to_le_bytes());
                }
                page.store(exit_at::HYPERCALL_RET, &[0; 8]);
                page.store(exit_at::HYPERCALL_LONGMODE, &u64::from(longmode).to_le_bytes());
                self.unfinished = Unfinished::Hypercall;
                KVM_EXIT_HYPERCALL
            }
            Exit::DirtyRingFull => KVM_EXIT_DIRTY_RING_FULL,
            Exit::BusLock => KVM_EXIT_X86_BUS_LOCK,
            Exit::TprAccess { rip, write } => {
                page.store(exit_at::TPR_RIP, &rip.to_le_bytes());
                page.store(exit_at::TPR_IS_WRITE, &u32::from(write).to_le_bytes());
                KVM_EXIT_TPR_ACCESS
            }
            Exit::XenHypercall { input, params, longmode, cpl } => {
                page.store(exit_at::XEN_TYPE, &KVM_EXIT_XEN_HCALL.to_le_bytes());
                page.store(exit_at::XEN_LONGMODE, &u32::from(longmode).to_le_bytes());
                page.store(exit_at::XEN_CPL, &u32::from(cpl).to_le_bytes());
                page.store(exit_at::XEN_INPUT, &input.to_le_bytes());
                page.store(exit_at::XEN_RESULT, &[0; 8]);
                for (n, p) in params.iter().enumerate() {
                    page.store(exit_at::XEN_PARAMS + 8 * n, &p.to_le_bytes());
                }
                self.unfinished = Unfinished::XenHypercall;
                KVM_EXIT_XEN
            }
            Exit::HostFault { hva } => {
                tracing::debug!(hva, "guest memory is gone");
                memory::tell_fault(self.processor.vcpu.mmu.guest_memory(), page, hva);
                return Err(Errno::EFAULT);
            }
            Exit::InternalError { kind, detail } => {
                let suberror = match kind {
                    InternalError::Emulation => KVM_INTERNAL_ERROR_EMULATION,
                    InternalError::Delivery => KVM_INTERNAL_ERROR_DELIVERY_EV,
                    InternalError::Defect => KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
                };
                let n = detail.len().min(16);
                page.store(exit_at::SUBERROR, &suberror.to_le_bytes());
                page.store(exit_at::NDATA, &(n as u32).to_le_bytes());
                for (k, d) in detail.iter().take(n).enumerate() {
                    page.store(exit_at::INTERNAL_DATA + 8 * k, &d.to_le_bytes());
                }
                KVM_EXIT_INTERNAL_ERROR
            }
        };
        page.set_exit_reason(reason);
        Ok(())
    }

    pub(super) fn run_with(&mut self, page: &Arc<dyn RunPage>, bound: Option<Bound>) -> Result {
        let p = &**page;
        self.processor.set_bound(bound);
        if self.core().events.activity == Activity::Uninitialized {
            return self.wait_for_init(page);
        }
        self.sync_in(p)?;
        if !self.lapic_inside() {
            let cr8 = p.cr8();
            if cr8 & !15 != 0 {
                return Err(Errno::EINVAL);
            }
            self.core().cr8 = cr8;
        }
        self.complete(p);
        if p.immediate_exit() != 0 {
            return match self.processor.complete_pending() {
                // The operation has a next part, which is the caller's to see first.
                Some(exit) => self.fill(p, exit),
                None => Err(Errno::EINTR),
            };
        }
        self.watch(page);
        self.has_run = true;
        self.processor.request_interrupt_window = p.request_interrupt_window() != 0 && !self.pic_inside();
        // What the caller answered is finished before anything else is looked at, a kick included.
        let exit = match self.processor.complete_pending() {
            Some(exit) => exit,
            None => self.processor.run_to_bound(),
        };
        self.fill(p, exit)
    }

    /// Lets the processor look at the page's `immediate_exit`, where nothing else tells it.
    fn watch(&mut self, page: &Arc<dyn RunPage>) {
        if page.is_polled() && !self.watched.as_ref().is_some_and(|w| Arc::ptr_eq(w, page)) {
            let watched = page.clone();
            self.processor.set_interrupt_hook(Box::new(move || (*watched).immediate_exit() != 0));
            self.watched = Some(page.clone());
        }
    }

    /// KVM_RUN of a vCPU in KVM_MP_STATE_UNINITIALIZED: blocks until it is woken, and says EAGAIN; the page's other
    /// fields are not looked at.
    pub(super) fn wait_for_init(&mut self, page: &Arc<dyn RunPage>) -> Result {
        if page.immediate_exit() != 0 {
            return Err(Errno::EINTR);
        }
        self.watch(page);
        let exit = self.processor.run_to_bound();
        self.fill(&**page, exit)
    }
}
