//! The vCPU of the software backend: KVM_RUN with its page, and the vCPU ioctls with KVM's checks.
//!
//! An exit of the processor becomes a `kvm_run` here, and what the caller left in the page becomes the answer to the
//! exit when KVM_RUN comes back (KVM api, section 5). Conversions of state are in `soft::convert`.

use super::vm::VmSettings;
use super::{convert, msr};
use crate::user_mem::{bytes_of, from_bytes};
use emu_core::cpuid::policy::{HostProcessor, supported_xcr0};
use emu_core::event::{Activity, PendingException};
use emu_core::exit::{Direction, Exit, InternalError};
use emu_core::irqchip::lapic::IdFormat;
use emu_core::vcpu::{ATTENTION_EVENT, RIP, Vcpu as Core};
use emu_core::{Bound, GuestDebug, Processor};
use kvm_api::backend::{
    DirtyRing, EXIT_UNION, Inspect, Kick, PIO_PAGE_OFFSET, RunBound, RunPage, SYNC_REGS, Vcpu,
};
use kvm_api::errno::{Errno, Result};
use kvm_api::stats::StatsBlock;
use kvm_api::uapi::*;
use parking_lot::Mutex;
use softmmu::{GuestMemoryError, Requests, VcpuGate};
use std::sync::{Arc, LazyLock};
use x86_arch::control::{Cr0, Cr4, Dr6, Dr7, Efer, Xcr0};
use x86_arch::{Gpa, Gva, PagingMode, Rflags, Seg, xsave};

/// Where KVM_GET_XSAVE's image has the selectors of the x87 pointers, whose own places the 64-bit format needs for longer
/// pointers: in bytes that are software's (SDM vol. 1, 10.5.1). KVM leaves these zero.
const SOFTWARE_BYTES: usize = 504;

/// What the last exit waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unfinished {
    Nothing,
    /// KVM_EXIT_IO in: so many bytes in the PIO page.
    PioIn(usize),
    /// KVM_EXIT_MMIO read.
    MmioRead(usize),
    /// KVM_EXIT_X86_RDMSR or _WRMSR.
    Msr,
    /// KVM_EXIT_HYPERCALL.
    Hypercall,
    /// KVM_EXIT_XEN.
    XenHypercall,
    /// KVM_EXIT_IO out with RIP at the instruction.
    PioOut,
}

/// A vCPU.
pub struct SoftVcpu {
    processor: Processor,
    settings: Arc<Mutex<VmSettings>>,
    unfinished: Unfinished,
    /// The page whose `immediate_exit` the processor looks at.
    watched: Option<Arc<dyn RunPage>>,
    has_run: bool,
    guest_debug: kvm_guest_debug,
}

struct GateKick(Arc<VcpuGate>);

impl Kick for GateKick {
    fn kick(&self) {
        self.0.request(Requests::EXIT);
    }

    fn withdraw(&self) {
        self.0.withdraw(Requests::EXIT);
    }
}

impl Drop for SoftVcpu {
    fn drop(&mut self) {
        let v = &self.processor.vcpu;
        v.vm.world().unregister(&v.shared.gate);
    }
}

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
        FAIL_REASON kvm_run__bindgen_ty_1__bindgen_ty_2 hardware_entry_failure_reason;
        FAIL_CPU kvm_run__bindgen_ty_1__bindgen_ty_2 cpu;
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
    /// A vCPU at reset, with the VM's settings.
    pub fn new(
        vm: &Arc<emu_core::Vm>,
        id: u32,
        bootstrap: bool,
        settings: Arc<Mutex<VmSettings>>,
    ) -> SoftVcpu {
        let mut core = Core::new(vm, id, bootstrap);
        if !vm.has_irqchip() {
            // Who runs is user space's business then.
            core.events.activity = Activity::Runnable;
        }
        SoftVcpu {
            processor: Processor::new(core),
            settings,
            unfinished: Unfinished::Nothing,
            watched: None,
            has_run: false,
            guest_debug: kvm_guest_debug::default(),
        }
    }

    fn core(&mut self) -> &mut Core {
        &mut self.processor.vcpu
    }

    fn lapic_inside(&self) -> bool {
        self.processor.vcpu.shared.irq.lapic().is_some()
    }

    fn pic_inside(&self) -> bool {
        self.processor.vcpu.vm.with_irqchip(|c| !c.is_split()) == Some(true)
    }

    // ---- KVM_RUN -----------------------------------------------------------------------------

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
    fn tell(&mut self, page: &dyn RunPage) -> Result {
        let v = &mut self.processor.vcpu;
        page.set_if_flag(v.flag(Rflags::IF) as u8);
        page.set_flags(if v.events.smm { KVM_RUN_X86_SMM as u16 } else { 0 });
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
    fn fill(&mut self, page: &dyn RunPage, exit: Exit) -> Result {
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
                super::memory::tell_fault(self.processor.vcpu.mmu.guest_memory(), page, hva);
                return Err(Errno::EFAULT);
            }
            Exit::FailEntry { reason } => {
                page.store(exit_at::FAIL_REASON, &reason.to_le_bytes());
                page.store(exit_at::FAIL_CPU, &[0; 4]);
                KVM_EXIT_FAIL_ENTRY
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

    fn run_with(&mut self, page: &Arc<dyn RunPage>, bound: Option<Bound>) -> Result {
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
    fn wait_for_init(&mut self, page: &Arc<dyn RunPage>) -> Result {
        if page.immediate_exit() != 0 {
            return Err(Errno::EINTR);
        }
        self.watch(page);
        let exit = self.processor.run_to_bound();
        self.fill(&**page, exit)
    }

    // ---- state -------------------------------------------------------------------------------

    fn apply_sregs(&mut self, s: &kvm_sregs2) -> Result {
        let (cr0, cr4, efer) = self.check_sregs(s)?;
        let inside = self.lapic_inside();
        let v = &mut self.processor.vcpu;
        let apic_base = x86_arch::msr::IA32_APIC_BASE;
        if msr::get(v, apic_base) != Some(s.apic_base) && !msr::set(v, apic_base, s.apic_base) {
            return Err(Errno::EINVAL);
        }
        v.gdtr = convert::set_dtable(&s.gdt);
        v.idtr = convert::set_dtable(&s.idt);
        v.cr0 = cr0;
        v.cr2 = s.cr2;
        v.cr3 = s.cr3;
        v.cr4 = cr4;
        v.efer = efer;
        for (seg, k) in [
            (Seg::Cs, &s.cs),
            (Seg::Ds, &s.ds),
            (Seg::Es, &s.es),
            (Seg::Fs, &s.fs),
            (Seg::Gs, &s.gs),
            (Seg::Ss, &s.ss),
            (Seg::Tr, &s.tr),
            (Seg::Ldtr, &s.ldt),
        ] {
            v.set_segment(seg, convert::set_segment(k));
        }
        v.cpl = if v.real_mode() {
            0
        } else if v.v86() {
            3
        } else {
            s.ss.dpl & 3
        };
        v.paging_changed();
        if PagingMode::of(cr0, cr4, efer) == PagingMode::Pae {
            if s.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0 {
                v.mmu.set_pdptrs(s.pdptrs);
            } else {
                // A bad table faults when it is used.
                let _ = v.mmu.load_pdptrs(s.cr3);
            }
        }
        v.update_mode();
        // A task priority that does not exist changes nothing, as in KVM.
        if s.cr8 >> 4 == 0 {
            if inside {
                let _ = v.write_cr8(s.cr8);
            } else {
                v.cr8 = s.cr8;
            }
        }
        // A VMM that resets the boot processor by registers alone expects it to run.
        let cs = v.segment(Seg::Cs);
        if v.shared.index == 0
            && cs.selector.0 == 0xf000
            && cs.base == 0xffff_0000
            && v.hot.regs[RIP] == 0xfff0
        {
            v.events.activity = Activity::Runnable;
        }
        v.attend(ATTENTION_EVENT);
        self.processor.forget_blocks();
        Ok(())
    }

    /// A caller that cannot take an exception's payload along (KVM_CAP_EXCEPTION_PAYLOAD is off) finds it where delivery
    /// would put it, in CR2 or DR6, whichever structure is read first.
    fn settle_payload(&mut self) {
        if self.settings.lock().events.exception_payload {
            return;
        }
        let v = self.core();
        let held = v.events.shadow == emu_core::event::Shadow::MovSs;
        if v.events.exception.is_none() && v.events.debug_trap != 0 && !held {
            let bits = core::mem::take(&mut v.events.debug_trap);
            v.raise_debug(bits);
        }
        if let Some(e) = v.events.exception {
            v.apply_payload(&e);
        }
    }

    /// KVM_SET_SREGS refuses what the processor could not be in (EINVAL).
    fn check_sregs(&self, s: &kvm_sregs2) -> Result<(Cr0, Cr4, Efer)> {
        let v = &self.processor.vcpu;
        let invalid = Err(Errno::EINVAL);
        if s.flags & !u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0 {
            return invalid;
        }
        // CR0's undefined bits below 32 are dropped; above, they are an error (SDM vol. 3A, 2.5).
        if s.cr0 >> 32 != 0 {
            return invalid;
        }
        let cr0 = Cr0::from_bits_truncate(s.cr0);
        if !v.cr4_valid(s.cr4) {
            return invalid;
        }
        // EFER's unknown bits are dropped: KVM takes whatever the caller says.
        let (cr4, efer) = (Cr4::from_bits_truncate(s.cr4), Efer::from_bits_truncate(s.efer));
        let pae = PagingMode::of(cr0, cr4, efer) == PagingMode::Pae;
        if s.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0 && !pae {
            return invalid;
        }
        if (cr0.contains(Cr0::PG) && !cr0.contains(Cr0::PE))
            || (cr0.contains(Cr0::NW) && !cr0.contains(Cr0::CD))
        {
            return invalid;
        }
        if efer.contains(Efer::LME) && cr0.contains(Cr0::PG) {
            // IA-32e mode needs PAE, LMA, and a CR3 within the physical addresses.
            if !cr4.contains(Cr4::PAE)
                || !efer.contains(Efer::LMA)
                || s.cr3 >> v.cpuid.maxphyaddr().max(32) != 0
            {
                return invalid;
            }
        } else if efer.contains(Efer::LMA) || s.cs.l != 0 {
            return invalid;
        }
        Ok((cr0, cr4, efer))
    }

    /// The offset of PKRU in the XSAVE image, where the host has the component.
    fn pkru_offset() -> Option<usize> {
        if emu_core::host_cpu::xcr0() >> 9 & 1 == 0 {
            return None;
        }
        emu_core::xstate::layout().component(9).map(|pkru| pkru.offset)
    }
}

/// The bits of XCR0 that a guest may set. CPUID is slow where the host is a guest itself: asked once.
pub(super) fn offered_xcr0() -> u64 {
    static OFFERED: LazyLock<u64> = LazyLock::new(|| supported_xcr0(&HostProcessor::this()));
    *OFFERED
}

impl Inspect for SoftVcpu {
    fn counters(&self) -> Vec<(&'static str, u64)> {
        let v = &self.processor.vcpu;
        let mut list = vec![("instructions", v.hot.retired), ("rep_iterations", v.hot.rep_iterations)];
        list.extend(v.stats.list());
        list.extend(v.mmu.stats().list());
        list
    }

    fn instructions(&self) -> Option<u64> {
        Some(self.processor.vcpu.hot.retired)
    }

    fn steps(&self) -> Option<u64> {
        Some(self.processor.steps())
    }
}

impl Vcpu for SoftVcpu {
    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::new(GateKick(self.processor.vcpu.shared.gate.clone()))
    }

    fn show_stats(&mut self, block: Arc<dyn StatsBlock>) -> Result {
        let core = self.core();
        let _ = core.shared.stats_sink.set(super::stats::vcpu_sink(block));
        core.show_stats(false);
        Ok(())
    }

    fn pre_fault_memory(&mut self, gpa: u64, size: u64) -> Result<u64> {
        super::memory::pre_fault(self.core().mmu.guest_memory(), gpa, size)
    }

    fn set_dirty_ring(&mut self, ring: Arc<dyn DirtyRing>) {
        let entries = Box::new(super::rings::Entries(ring));
        self.core().mmu.set_dirty_ring(softmmu::DirtyRing::new(entries));
    }

    fn run(&mut self, page: &Arc<dyn RunPage>) -> Result {
        let result = self.run_with(page, None);
        self.tell(&**page)?;
        result
    }

    fn run_bounded(&mut self, page: &Arc<dyn RunPage>, bound: RunBound) -> Result {
        let bound = match bound {
            RunBound::Instructions(n) => Bound::Instructions(n),
            RunBound::Steps(n) => Bound::Steps(n),
        };
        let result = self.run_with(page, Some(bound));
        self.tell(&**page)?;
        result
    }

    fn enable_cap(&mut self, cap: &kvm_enable_cap) -> Result {
        // The others that a vCPU can enable on x86 are Hyper-V's, which are not offered.
        match cap.cap {
            KVM_CAP_ENFORCE_PV_FEATURE_CPUID if cap.flags == 0 => {
                self.core().enforce_pv_features(cap.args[0] != 0);
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn get_regs(&mut self) -> Result<kvm_regs> {
        Ok(convert::regs(self.core()))
    }

    fn set_regs(&mut self, regs: &kvm_regs) -> Result {
        let v = self.core();
        convert::set_regs(v, regs);
        // A pending exception was the old RIP's.
        v.events.exception = None;
        v.events.debug_trap = 0;
        v.attend(ATTENTION_EVENT);
        Ok(())
    }

    fn get_sregs(&mut self) -> Result<kvm_sregs> {
        let s = self.get_sregs2()?;
        let e = &self.core().events;
        Ok(convert::sregs(&s, e.interrupt.filter(|_| !e.interrupt_soft)))
    }

    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result {
        self.apply_sregs(&convert::sregs2_of(sregs))?;
        let bitmap = &sregs.interrupt_bitmap;
        let pending = (0..256).rev().find(|n| bitmap[n / 64] >> (n % 64) & 1 != 0);
        if let Some(vector) = pending {
            let e = &mut self.core().events;
            e.interrupt = Some(vector as u8);
            e.interrupt_soft = false;
        }
        Ok(())
    }

    fn get_sregs2(&mut self) -> Result<kvm_sregs2> {
        self.settle_payload();
        let v = self.core();
        let apic_base = msr::get(v, x86_arch::msr::IA32_APIC_BASE).unwrap_or(0);
        let mut s = convert::sregs2(v, apic_base);
        if PagingMode::of(v.cr0, v.cr4, v.efer) == PagingMode::Pae {
            s.pdptrs = v.mmu.pdptrs();
            s.flags |= u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID);
        }
        Ok(s)
    }

    fn set_sregs2(&mut self, sregs: &kvm_sregs2) -> Result {
        self.apply_sregs(sregs)
    }

    fn translate(&mut self, gva: u64) -> Result<kvm_translation> {
        let v = self.core();
        // Without paging KVM gives back what it was asked, all 64 bits; all of them set is its "nothing".
        let found = match PagingMode::of(v.cr0, v.cr4, v.efer) {
            PagingMode::None => gva,
            _ => v.mmu.peek(Gva(gva)).map_or(u64::MAX, |p| p.gpa.0),
        };
        Ok(kvm_translation {
            linear_address: gva,
            physical_address: found,
            valid: (found != u64::MAX) as u8,
            // KVM never says more.
            writeable: 1,
            usermode: 0,
            pad: [0; 5],
        })
    }

    fn interrupt(&mut self, vector: u32) -> Result {
        let vector = u8::try_from(vector).map_err(|_| Errno::EINVAL)?;
        if self.pic_inside() {
            return Err(Errno::ENXIO);
        }
        let split = self.lapic_inside();
        let e = &mut self.core().events;
        if split && e.interrupt.is_some() {
            return Err(Errno::EEXIST);
        }
        e.interrupt = Some(vector);
        e.interrupt_soft = false;
        self.core().attend(ATTENTION_EVENT);
        Ok(())
    }

    fn nmi(&mut self) -> Result {
        self.core().user_nmi();
        Ok(())
    }

    fn smi(&mut self) -> Result {
        let v = self.core();
        v.events.smi_pending = true;
        v.attend(ATTENTION_EVENT);
        Ok(())
    }

    fn get_msrs(&mut self, entries: &mut [kvm_msr_entry]) -> Result<usize> {
        let v = self.core();
        for (n, e) in entries.iter_mut().enumerate() {
            match msr::get(v, e.index) {
                Some(data) => e.data = data,
                None => return Ok(n),
            }
        }
        Ok(entries.len())
    }

    fn set_msrs(&mut self, entries: &[kvm_msr_entry]) -> Result<usize> {
        let v = self.core();
        Ok(entries.iter().position(|e| !msr::set(v, e.index, e.data)).unwrap_or(entries.len()))
    }

    fn set_cpuid2(&mut self, entries: &[kvm_cpuid_entry2]) -> Result {
        if entries.len() > KVM_MAX_CPUID_ENTRIES {
            return Err(Errno::E2BIG);
        }
        // The linear-address width of the guest cannot differ from what the walker does.
        if let Some(e) = entries.iter().find(|e| e.function == 0x8000_0008)
            && !matches!(e.eax >> 8 & 0xff, 0 | 48 | 57)
        {
            return Err(Errno::EINVAL);
        }
        let mut rows: Vec<_> = entries.iter().map(convert::set_cpuid_entry).collect();
        if self.core().vm.choices.hlt_in_guest.load(std::sync::atomic::Ordering::Relaxed) {
            emu_core::pv::withhold_unhalt(&mut rows);
        }
        if self.has_run {
            // A processor that has run does not become another one.
            let v = self.core();
            let same = v.cpuid_rows_now(v.cpuid.entries()) == v.cpuid_rows_now(&rows);
            return if same { Ok(()) } else { Err(Errno::EINVAL) };
        }
        let v = self.core();
        v.cpuid = emu_core::cpuid::CpuidTable::new(rows);
        v.lapic_cpuid_changed();
        v.pv_cpuid_changed();
        v.paging_changed();
        self.processor.forget_blocks();
        Ok(())
    }

    fn get_cpuid2(&mut self) -> Result<Vec<kvm_cpuid_entry2>> {
        // As the guest sees them: some bits follow CR4, XCR0 and the local APIC.
        let v = self.core();
        Ok(v.cpuid_rows_now(v.cpuid.entries()).iter().map(convert::cpuid_entry).collect())
    }

    fn get_fpu(&mut self) -> Result<kvm_fpu> {
        Ok(convert::fpu(&self.core().xsave))
    }

    fn set_fpu(&mut self, fpu: &kvm_fpu) -> Result {
        convert::set_fpu(&mut self.core().xsave, fpu);
        Ok(())
    }

    fn xsave_size(&self) -> usize {
        emu_core::xstate::IMAGE_SIZE
    }

    fn get_xsave(&mut self) -> Result<Vec<u8>> {
        let v = self.core();
        let mut area = v.xsave.bytes.to_vec();
        let mut bv = v.xsave.xstate_bv();
        // As XSAVE does (SDM vol. 1, 13.7): MXCSR counts as SSE state.
        if v.xsave.mxcsr() != xsave::MXCSR_INIT {
            bv |= 2;
        }
        let pkru = v.pkru;
        if let Some(at) = Self::pkru_offset() {
            area[at..at + 4].copy_from_slice(&pkru.to_le_bytes());
            bv = bv & !(1 << 9) | u64::from(pkru != 0) << 9;
        }
        area[xsave::XSTATE_BV..xsave::XSTATE_BV + 8].copy_from_slice(&bv.to_le_bytes());
        area[SOFTWARE_BYTES..SOFTWARE_BYTES + 2].copy_from_slice(&v.xsave.fcs.to_le_bytes());
        area[SOFTWARE_BYTES + 2..SOFTWARE_BYTES + 4].copy_from_slice(&v.xsave.fds.to_le_bytes());
        Ok(area)
    }

    fn set_xsave(&mut self, area: &[u8]) -> Result {
        let word = |at: usize| {
            let mut b = [0; 8];
            b.copy_from_slice(area.get(at..at + 8)?);
            Some(u64::from_le_bytes(b))
        };
        let (Some(bv), Some(xcomp)) = (word(xsave::XSTATE_BV), word(xsave::XCOMP_BV)) else {
            return Err(Errno::EINVAL);
        };
        let mxcsr = word(xsave::MXCSR).unwrap_or(0) as u32;
        let known = offered_xcr0() | 3;
        // The standard format only, with nothing in the rest of the header; a reserved MXCSR bit would fault when it is
        // loaded (SDM vol. 1, 13.8), which is with x87, SSE or AVX state.
        let header = area.get(xsave::XCOMP_BV + 8..xsave::XSTATE_BV + 64).unwrap_or(&[]);
        let loads_mxcsr = bv & 7 != 0;
        if bv & !known != 0
            || xcomp != 0
            || header.iter().any(|b| *b != 0)
            || (loads_mxcsr && mxcsr & !emu_core::host_cpu::mxcsr_mask() != 0)
        {
            return Err(Errno::EINVAL);
        }
        let v = self.core();
        let n = area.len().min(v.xsave.bytes.len());
        let mut image = emu_core::xstate::XsaveImage::reset();
        let reset = image.clone();
        image.bytes[..n].copy_from_slice(&area[..n]);
        // What is in its initial state has no meaning in the area.
        if bv & 1 == 0 {
            image.bytes[..xsave::MXCSR].copy_from_slice(&reset.bytes[..xsave::MXCSR]);
            image.bytes[xsave::ST0..xsave::XMM0].fill(0);
        }
        if bv & 2 == 0 {
            image.bytes[xsave::XMM0..xsave::XMM0 + 256].fill(0);
        }
        for c in 2..63usize {
            if bv >> c & 1 == 0
                && let Some(component) = emu_core::xstate::layout().component(c)
            {
                image.bytes[component.offset..component.offset + component.size].fill(0);
            }
        }
        if bv & 1 != 0 {
            let selector = |at: usize| u16::from_le_bytes([image.bytes[at], image.bytes[at + 1]]);
            (image.fcs, image.fds) = (selector(SOFTWARE_BYTES), selector(SOFTWARE_BYTES + 2));
        }
        image.bytes[SOFTWARE_BYTES..SOFTWARE_BYTES + 4].fill(0);
        // A processor makes ES and B from the flags and masks that it loads.
        image.update_summary();
        image.set_mxcsr(if loads_mxcsr { mxcsr } else { v.xsave.mxcsr() });
        // FSW.ES follows from its flags and FCW's masks when x87 state is loaded (SDM vol. 1, 8.1.3.3).
        image.update_summary();
        image.set(xsave::MXCSR_MASK, emu_core::host_cpu::mxcsr_mask());
        v.xsave = image;
        v.pkru = Self::pkru_offset().filter(|_| bv >> 9 & 1 != 0).map_or(0, |at| v.xsave.get::<u32>(at));
        v.mmu.set_pkru(v.pkru);
        Ok(())
    }

    fn get_xcrs(&mut self) -> Result<kvm_xcrs> {
        let mut k = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        k.xcrs[0].value = self.core().xcr0.bits();
        Ok(k)
    }

    fn set_xcrs(&mut self, k: &kvm_xcrs) -> Result {
        if k.nr_xcrs as usize > k.xcrs.len() || k.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let Some(x) = k.xcrs.iter().take(k.nr_xcrs as usize).find(|x| x.xcr == 0) else {
            return Ok(());
        };
        let v = x.value;
        let supported = offered_xcr0() | 1;
        // SDM vol. 3A, 2.6: x87 always; AVX needs SSE; the AVX-512 components come together, with AVX.
        let avx512 = v & 0xe0;
        if v & 1 == 0
            || v & !supported != 0
            || (v & 4 != 0 && v & 2 == 0)
            || (avx512 != 0 && (avx512 != 0xe0 || v & 4 == 0))
        {
            return Err(Errno::EINVAL);
        }
        self.core().xcr0 = Xcr0::from_bits_retain(v);
        Ok(())
    }

    fn get_lapic(&mut self) -> Result<kvm_lapic_state> {
        let format = if self.settings.lock().x2apic_ids { IdFormat::X2Apic } else { IdFormat::Legacy };
        let v = self.core();
        let now = v.device_now();
        let lapic = v.shared.irq.lapic().ok_or(Errno::EINVAL)?;
        Ok(convert::lapic(&lapic.register_page(&now, format)))
    }

    fn set_lapic(&mut self, k: &kvm_lapic_state) -> Result {
        let format = if self.settings.lock().x2apic_ids { IdFormat::X2Apic } else { IdFormat::Legacy };
        let v = self.core();
        let now = v.device_now();
        let image: [u8; 1024] = from_bytes_1024(k);
        v.shared
            .irq
            .lapic()
            .ok_or(Errno::EINVAL)?
            .set_register_page(&image, &now, format)
            .map_err(|_| Errno::EINVAL)?;
        v.attend(ATTENTION_EVENT);
        Ok(())
    }

    fn get_mp_state(&mut self) -> Result<kvm_mp_state> {
        let v = self.core();
        // As KVM does: an INIT or SIPI that has come is acted on first.
        v.accept_init_and_sipi();
        // A kick is about to end the wait.
        if v.pv.unhalted && matches!(v.events.activity, Activity::Halted | Activity::ResetHold) {
            return Ok(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE });
        }
        Ok(kvm_mp_state { mp_state: convert::mp_state(&v.events) })
    }

    fn set_mp_state(&mut self, k: &kvm_mp_state) -> Result {
        if k.mp_state != KVM_MP_STATE_RUNNABLE && !self.lapic_inside() {
            return Err(Errno::EINVAL);
        }
        let v = self.core();
        convert::set_mp_state(&mut v.events, k.mp_state)?;
        v.attend(ATTENTION_EVENT);
        Ok(())
    }

    fn get_vcpu_events(&mut self) -> Result<kvm_vcpu_events> {
        let caps = self.settings.lock().events;
        self.settle_payload();
        let v = self.core();
        // An INIT or SIPI that has come is acted on first: KVM_GET_MP_STATE would, and might be asked later.
        v.accept_init_and_sipi();
        Ok(convert::events(&v.events, caps))
    }

    fn set_vcpu_events(&mut self, k: &kvm_vcpu_events) -> Result {
        let caps = self.settings.lock().events;
        let mut known = KVM_VCPUEVENT_VALID_NMI_PENDING
            | KVM_VCPUEVENT_VALID_SIPI_VECTOR
            | KVM_VCPUEVENT_VALID_SHADOW
            | KVM_VCPUEVENT_VALID_SMM;
        if caps.exception_payload {
            known |= KVM_VCPUEVENT_VALID_PAYLOAD;
        }
        if caps.triple_fault {
            known |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        }
        // Only who speaks of payloads knows the difference between a pending and an injected exception.
        let mut k = *k;
        if k.flags & KVM_VCPUEVENT_VALID_PAYLOAD == 0 {
            k.exception.pending = 0;
        }
        if k.exception.pending == 0 {
            k.exception_has_payload = 0;
        } else {
            k.exception.injected = 0;
        }
        let e = &k.exception;
        let raised = e.injected != 0 || e.pending != 0;
        let smm = k.flags & KVM_VCPUEVENT_VALID_SMM != 0 && (k.smi.smm != 0 || k.smi.pending != 0);
        if k.flags & !known != 0
            || (raised && (e.nr > 31 || e.nr == 2))
            // Who waits for SIPI takes no SMI.
            || (smm && self.core().events.activity == Activity::InitReceived)
        {
            return Err(Errno::EINVAL);
        }
        let latched = self.lapic_inside();
        let v = self.core();
        let (smm, init) = (v.events.smm, v.events.init_pending);
        convert::set_events(&mut v.events, &k);
        if !latched {
            v.events.init_pending = init;
        }
        let smm = core::mem::replace(&mut v.events.smm, smm);
        v.set_smm(smm);
        v.attend(ATTENTION_EVENT);
        Ok(())
    }

    fn get_debugregs(&mut self) -> Result<kvm_debugregs> {
        self.settle_payload();
        let v = self.core();
        Ok(kvm_debugregs { db: v.dr, dr6: v.dr6.bits(), dr7: v.dr7.bits(), ..Default::default() })
    }

    fn set_debugregs(&mut self, k: &kvm_debugregs) -> Result {
        if k.flags != 0 || k.dr6 >> 32 != 0 || k.dr7 >> 32 != 0 {
            return Err(Errno::EINVAL);
        }
        let v = self.core();
        v.dr = k.db;
        v.dr6 = Dr6::from_bits_retain(k.dr6) | Dr6::FIXED;
        v.dr7 = Dr7::from_bits_retain(k.dr7) | Dr7::FIXED;
        v.update_view();
        v.attend(ATTENTION_EVENT);
        Ok(())
    }

    fn set_guest_debug(&mut self, k: &kvm_guest_debug) -> Result {
        // Unknown control bits are ignored, as in KVM.
        let v = self.core();
        if k.control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP) != 0 {
            if v.events.exception.is_some() {
                return Err(Errno::EBUSY);
            }
            let vector = if k.control & KVM_GUESTDBG_INJECT_DB != 0 { 1 } else { 3 };
            v.events.exception = Some(PendingException { vector, error_code: None, payload: None });
        }
        v.attend(ATTENTION_EVENT);
        let on = k.control & KVM_GUESTDBG_ENABLE != 0;
        let has = |flag| on && k.control & flag != 0;
        let r = &k.arch.debugreg;
        v.set_guest_debug(GuestDebug {
            single_step: has(KVM_GUESTDBG_SINGLESTEP),
            software_breakpoints: has(KVM_GUESTDBG_USE_SW_BP),
            block_interrupts: has(KVM_GUESTDBG_BLOCKIRQ),
            hardware: has(KVM_GUESTDBG_USE_HW_BP).then_some(([r[0], r[1], r[2], r[3]], r[7])),
        });
        self.guest_debug = if on { *k } else { kvm_guest_debug::default() };
        Ok(())
    }

    fn get_tsc_khz(&mut self) -> Result<u32> {
        Ok(self.core().clock.tsc.khz)
    }

    fn set_tsc_khz(&mut self, khz: u32) -> Result {
        let host = self.core().vm.clock.host_khz;
        let khz = if khz == 0 { host } else { khz };
        if self.core().set_tsc_khz(khz) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn tsc_offset(&mut self) -> Result<u64> {
        Ok(self.core().clock.tsc.offset)
    }

    fn set_tsc_offset(&mut self, offset: u64) -> Result {
        self.core().set_tsc_offset(offset);
        Ok(())
    }

    fn tpr_access_reporting(&mut self, ctl: &mut kvm_tpr_access_ctl) -> Result {
        if ctl.flags != 0 {
            return Err(Errno::EINVAL);
        }
        self.core().vapic.reporting = ctl.enabled != 0;
        Ok(())
    }

    fn set_vapic_addr(&mut self, address: u64) -> Result {
        if !self.lapic_inside() {
            return Err(Errno::EINVAL);
        }
        let v = self.core();
        let word = v.mmu.mmu().guest_memory(0).read(Gpa(address), &mut [0; 4]);
        if address != 0 && matches!(word, Err(GuestMemoryError::NoSlot(_))) {
            return Err(Errno::EINVAL);
        }
        v.vapic.address = address;
        Ok(())
    }

    fn get_nested_state(&mut self) -> Result<kvm_nested_state_header> {
        Ok(super::nested::empty())
    }

    fn set_nested_state(&mut self, state: &kvm_nested_state_header) -> Result {
        super::nested::check(state)
    }

    fn setup_mce(&mut self, mcg_cap: u64) -> Result {
        if self.core().setup_mce(mcg_cap) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn set_mce(&mut self, k: &kvm_x86_mce) -> Result {
        if self.core().machine_check(&convert::machine_check(k)) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn kvmclock_ctrl(&mut self) -> Result {
        if self.core().kvmclock_guest_stopped() { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

fn from_bytes_1024(k: &kvm_lapic_state) -> [u8; 1024] {
    let mut image = [0; 1024];
    image.copy_from_slice(bytes_of(k));
    image
}
