//! System-management mode: what an SMI does, and RSM (SDM vol. 3C, 34; AMD APM vol. 2, 10).
//!
//! The layouts of the state save area are in `save_area`. When an SMI is taken is decided in [`crate::run`]. Memory in
//! this mode is address space 1 (KVM_CAP_MULTI_ADDRESS_SPACE). Nothing is kept outside the save area but what
//! KVM_GET_VCPU_EVENTS shows and IA32_SMBASE.

mod save_area;
#[cfg(test)]
mod tests;

use crate::event::{Activity, Shadow};
use crate::exit::{Result, Stop};
use crate::vcpu::{ATTENTION_ACTIVITY, ATTENTION_EVENT, RIP, Vcpu};
use save_area::{Saved, SavedSegment};
use softmmu::GuestMemoryError;
use x86_arch::control::{CR3_NO_FLUSH, Cr0, Cr4, Dr6, Dr7, Efer};
use x86_arch::cpuid;
use x86_arch::{DescriptorTable, Gpa, PagingMode, Rflags, Seg, Segment, Selector};

/// Where the handler begins, from SMBASE (SDM vol. 3C, 34.5.1).
const HANDLER: u64 = 0x8000;
/// The address space of system-management mode.
const ADDRESS_SPACE: u16 = 1;

impl Vcpu {
    /// Whether an SMI waits that nothing holds off. In SMM itself something does (SDM vol. 3C, 34.3.1).
    pub fn smi_deliverable(&self) -> bool {
        self.events.smi_pending && !self.events.smm
    }

    /// Whether the guest's processor has 64-bit mode, which decides the layout of the save area.
    fn wide_save_area(&self) -> bool {
        self.cpuid.has(cpuid::LM)
    }

    fn save_area_gpa(&self) -> Gpa {
        Gpa(self.msr.smbase.wrapping_add(save_area::BEGIN))
    }

    /// Takes the SMI that waits: saves the state and enters the handler. `halted`: it ended HLT.
    /// On `Err` nothing has changed.
    pub(crate) fn enter_smm(&mut self, halted: bool) -> Result {
        let area = save_area::write(&self.saved_state(halted), self.wide_save_area());
        let memory = self.mmu.mmu().guest_memory(ADDRESS_SPACE);
        memory.write(self.save_area_gpa(), &area).map_err(|e| self.no_save_area(e))?;
        self.events.smi_pending = false;
        self.msr.smi_count = self.msr.smi_count.wrapping_add(1);
        self.events.smm = true;
        // NMI is blocked from here; whether it was before is for RSM (SDM vol. 3C, 34.8).
        self.events.smm_inside_nmi = self.events.nmi_masked;
        self.events.nmi_masked = true;
        self.events.shadow = Shadow::None;
        self.events.activity = Activity::Runnable;
        // SDM vol. 3C, table 34-4.
        self.hot.rflags = Rflags::FIXED.bits();
        self.cr0.remove(Cr0::PE | Cr0::EM | Cr0::TS | Cr0::PG);
        self.cr4 = Cr4::empty();
        self.efer = Efer::empty();
        self.dr7 = Dr7::FIXED;
        // Not in the manuals, but what processors and KVM do: there is no IDT.
        self.idtr = DescriptorTable::default();
        let flat = Segment { limit: u32::MAX, typ: 3, s: true, present: true, g: true, ..Segment::default() };
        for s in Seg::PROGRAM {
            self.seg[s as usize] = flat;
        }
        let cs = &mut self.seg[Seg::Cs as usize];
        cs.selector = Selector((self.msr.smbase >> 4) as u16);
        cs.base = self.msr.smbase;
        self.hot.regs[RIP] = HANDLER;
        self.cpl = 0;
        self.paging_changed();
        self.update_mode();
        self.attend(ATTENTION_EVENT);
        Ok(())
    }

    /// RSM in system-management mode. A state that the processor could not be in is shutdown, and changes nothing
    /// (SDM vol. 3C, 34.3.2).
    pub(crate) fn leave_smm(&mut self) -> Result {
        let mut area = [0; save_area::SIZE];
        let memory = self.mmu.mmu().guest_memory(ADDRESS_SPACE);
        memory.read(self.save_area_gpa(), &mut area).map_err(|e| self.no_save_area(e))?;
        let saved = save_area::read(&area, self.wide_save_area());
        if !self.can_be_in(&saved) {
            return Err(Stop::Shutdown);
        }
        self.events.smm = false;
        if !self.events.smm_inside_nmi {
            self.events.nmi_masked = false;
        }
        self.events.smm_inside_nmi = false;
        self.load_saved_state(&saved);
        self.paging_changed();
        if self.paging_mode() == PagingMode::Pae && !self.mmu.load_pdptrs(self.cr3) {
            return Err(Stop::Shutdown);
        }
        self.update_mode();
        self.events.shadow = saved.shadow;
        if saved.halted {
            // The auto HALT restart field: RIP is behind the HLT, and its state goes on (SDM vol. 3C, 34.10).
            self.events.activity = Activity::Halted;
            self.attend(ATTENTION_ACTIVITY);
        }
        // An INIT, SMI or NMI that waited comes now.
        self.attend(ATTENTION_EVENT);
        Ok(())
    }

    /// Enters or leaves system-management mode from outside (KVM_SET_VCPU_EVENTS): only the address space follows.
    pub fn set_smm(&mut self, smm: bool) {
        if self.events.smm == smm {
            return;
        }
        self.events.smm = smm;
        self.paging_changed();
        if self.paging_mode() == PagingMode::Pae {
            // The table of the other address space; one that cannot be loaded faults when it is used.
            let _ = self.mmu.load_pdptrs(self.cr3);
        }
        self.attend(ATTENTION_EVENT);
    }

    fn saved_state(&self, halted: bool) -> Saved {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.hot.regs[..16]);
        let table = |t: &DescriptorTable| SavedSegment {
            base: t.base,
            limit: t.limit.into(),
            ..SavedSegment::default()
        };
        Saved {
            gpr,
            rip: self.rip(),
            rflags: self.hot.rflags,
            cr0: self.cr0.bits(),
            cr3: self.cr3,
            cr4: self.cr4.bits(),
            efer: self.efer.bits(),
            dr6: self.dr6.bits(),
            dr7: self.dr7.bits(),
            seg: core::array::from_fn(|n| SavedSegment::of(&self.seg[n])),
            gdtr: table(&self.gdtr),
            idtr: table(&self.idtr),
            smbase: self.msr.smbase as u32,
            halted,
            shadow: self.events.shadow,
            ..Saved::default()
        }
    }

    /// The checks of RSM: bits that are reserved, and combinations that MOV to CR and WRMSR refuse.
    fn can_be_in(&self, s: &Saved) -> bool {
        let (cr0, cr4) = (Cr0::from_bits_retain(s.cr0), Cr4::from_bits_retain(s.cr4));
        let efer = Efer::from_bits_retain(s.efer);
        let long = efer.contains(Efer::LME) && cr0.contains(Cr0::PG);
        let v86 = s.rflags & Rflags::VM.bits() != 0;
        s.cr0 >> 32 == 0
            && (!cr0.contains(Cr0::PG) || cr0.contains(Cr0::PE))
            && (!cr0.contains(Cr0::NW) || cr0.contains(Cr0::CD))
            && s.cr4 & !self.cr4_allowed() == 0
            && s.cr3 & !CR3_NO_FLUSH == s.cr3
            && s.cr3 >> self.cpuid.maxphyaddr().max(32) == 0
            && s.efer & !(self.efer_allowed() | Efer::LMA.bits()) == 0
            && (!long || cr4.contains(Cr4::PAE))
            && (long || !cr4.contains(Cr4::PCIDE))
            && (!v86 || cr0.contains(Cr0::PE) && !long)
            && (s.dr6 | s.dr7) >> 32 == 0
    }

    fn load_saved_state(&mut self, s: &Saved) {
        self.hot.regs[..16].copy_from_slice(&s.gpr);
        self.hot.regs[RIP] = s.rip;
        self.cr0 = Cr0::from_bits_truncate(s.cr0) | Cr0::ET;
        self.cr3 = s.cr3;
        self.cr4 = Cr4::from_bits_truncate(s.cr4);
        self.efer = Efer::from_bits_truncate(s.efer);
        self.efer.set(Efer::LMA, self.efer.contains(Efer::LME) && self.cr0.contains(Cr0::PG));
        self.dr6 = Dr6::from_bits_retain(s.dr6) | Dr6::FIXED;
        self.dr7 = Dr7::from_bits_retain(s.dr7 & 0xffff_2bff) | Dr7::FIXED;
        for (segment, saved) in self.seg.iter_mut().zip(&s.seg) {
            *segment = saved.segment();
        }
        let table = |t: &SavedSegment| DescriptorTable { base: t.base, limit: t.limit as u16 };
        (self.gdtr, self.idtr) = (table(&s.gdtr), table(&s.idtr));
        self.msr.smbase = s.smbase.into();
        self.set_rflags(s.rflags);
        self.cpl = if self.real_mode() {
            0
        } else if self.v86() {
            3
        } else {
            self.segment(Seg::Ss).dpl
        };
    }

    /// The save area cannot be reached.
    fn no_save_area(&mut self, e: GuestMemoryError) -> Stop {
        match e {
            GuestMemoryError::Host(fault) => self.host_faulted(fault),
            // No memory, or memory that cannot be written: nothing to come back by.
            GuestMemoryError::NoSlot(_) | GuestMemoryError::ReadOnly(_) => Stop::Shutdown,
        }
    }
}
