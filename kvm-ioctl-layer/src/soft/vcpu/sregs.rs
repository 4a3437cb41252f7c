//! KVM_SET_SREGS and KVM_SET_SREGS2: which control and segment registers a processor could have, and taking them over.

use super::SoftVcpu;
use crate::soft::{convert, msr};
use emu_core::event::Activity;
use emu_core::vcpu::{ATTENTION_EVENT, RIP};
use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;
use x86_arch::control::{Cr0, Cr4, Efer};
use x86_arch::{PagingMode, Seg};

impl SoftVcpu {
    pub(super) fn apply_sregs(&mut self, s: &kvm_sregs2) -> Result {
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
        if v.shared.bootstrap
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
    pub(super) fn settle_payload(&mut self) {
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
    pub(super) fn check_sregs(&self, s: &kvm_sregs2) -> Result<(Cr0, Cr4, Efer)> {
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
}
