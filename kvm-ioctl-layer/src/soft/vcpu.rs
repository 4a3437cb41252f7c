//! The vCPU of the software backend: the vCPU ioctls with KVM's checks. KVM_RUN with its page is `run`'s, the checks of
//! special registers are `sregs`'. Conversions of state are in `soft::convert`.

mod run;
mod sregs;

use super::vm::VmSettings;
use super::{convert, msr};
use crate::user_mem::bytes_of;
use emu_core::cpuid::policy::{HostProcessor, supported_xcr0};
use emu_core::event::{Activity, PendingException};
use emu_core::irqchip::lapic::IdFormat;
use emu_core::vcpu::{ATTENTION_EVENT, Vcpu as Core};
use emu_core::{Bound, GuestDebug, Processor};
use kvm_api::backend::{DirtyRing, Inspect, Kick, RunBound, RunPage, Vcpu};
use kvm_api::errno::{Errno, Result};
use kvm_api::stats::StatsBlock;
use kvm_api::uapi::*;
use parking_lot::Mutex;
use softmmu::{GuestMemoryError, Requests, VcpuGate};
use std::sync::{Arc, LazyLock};
use x86_arch::control::{Dr6, Dr7, Xcr0};
use x86_arch::{Gpa, Gva, PagingMode, xsave};

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
}

/// The offset of PKRU in the XSAVE image, where the host has the component.
fn pkru_offset() -> Option<usize> {
    if emu_core::host_cpu::xcr0() >> 9 & 1 == 0 {
        return None;
    }
    emu_core::xstate::layout().component(9).map(|pkru| pkru.offset)
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
        let has_run = self.has_run;
        let v = self.core();
        let mut refused = |e: &kvm_msr_entry| {
            if has_run && msr::fixed_once_run(e.index) {
                // What it holds already may be written.
                return msr::get(v, e.index) != Some(e.data);
            }
            !msr::set(v, e.index, e.data)
        };
        Ok(entries.iter().position(&mut refused).unwrap_or(entries.len()))
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
        if let Some(at) = pkru_offset() {
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
        image.set_mxcsr(if loads_mxcsr { mxcsr } else { v.xsave.mxcsr() });
        // FSW.ES follows from its flags and FCW's masks when x87 state is loaded (SDM vol. 1, 8.1.3.3).
        image.update_summary();
        image.set(xsave::MXCSR_MASK, emu_core::host_cpu::mxcsr_mask());
        v.xsave = image;
        v.pkru = pkru_offset().filter(|_| bv >> 9 & 1 != 0).map_or(0, |at| v.xsave.get::<u32>(at));
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
        let mut lapic = v.shared.irq.lapic().ok_or(Errno::EINVAL)?;
        lapic.set_register_page(&image, &now, format).map_err(|_| Errno::EINVAL)?;
        let level = lapic.level_vectors();
        drop(lapic);
        v.vm.with_irqchip(|c| c.restored(level));
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
