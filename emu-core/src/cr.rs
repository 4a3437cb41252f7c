//! Writes to control registers and EFER: what is refused, and what follows (SDM vol. 3A, 2.5, 4.1.2,
//! 9.8.5; vol. 2B, MOV to control registers).
//!
//! The instructions are in [`crate::interp::system`] and [`crate::msr`]; a restore from outside
//! (KVM_SET_SREGS) sets the fields itself, then calls `paging_changed` and `update_mode`.

#[cfg(test)]
mod tests;

use crate::cpuid::policy::{HostProcessor, offers};
use crate::exit::Result;
use crate::vcpu::{ATTENTION_EVENT, Vcpu};
use decoder::Vendor;
use std::sync::LazyLock;
use x86_arch::control::{CR3_NO_FLUSH, CR3_PCID_MASK, Cr0, Cr4, Efer};
use x86_arch::cpuid::{self, Feature};
use x86_arch::{Exception, PagingMode, Seg};

/// Which CPUID bit allows a bit of CR4. A bit without a row is reserved.
const CR4_FEATURES: &[(Cr4, Feature)] = &[
    (Cr4::VME, cpuid::VME),
    (Cr4::PVI, cpuid::VME),
    (Cr4::TSD, cpuid::TSC),
    (Cr4::DE, cpuid::DE),
    (Cr4::PSE, cpuid::PSE),
    (Cr4::PAE, cpuid::PAE),
    (Cr4::MCE, cpuid::MCE),
    (Cr4::PGE, cpuid::PGE),
    (Cr4::OSFXSR, cpuid::FXSR),
    (Cr4::OSXMMEXCPT, cpuid::SSE),
    (Cr4::UMIP, cpuid::UMIP),
    (Cr4::LA57, cpuid::LA57),
    (Cr4::FSGSBASE, cpuid::FSGSBASE),
    (Cr4::PCIDE, cpuid::PCID),
    (Cr4::OSXSAVE, cpuid::XSAVE),
    (Cr4::SMEP, cpuid::SMEP),
    (Cr4::SMAP, cpuid::SMAP),
    (Cr4::PKE, cpuid::PKU),
];

/// The bits of CR4 that KVM_SET_SREGS never refuses.
const CR4_ALWAYS: Cr4 = Cr4::VME
    .union(Cr4::PVI)
    .union(Cr4::TSD)
    .union(Cr4::DE)
    .union(Cr4::PSE)
    .union(Cr4::PAE)
    .union(Cr4::MCE)
    .union(Cr4::PGE)
    .union(Cr4::PCE)
    .union(Cr4::OSFXSR)
    .union(Cr4::OSXMMEXCPT);

/// Which CPUID bit allows a bit of EFER.
const EFER_FEATURES: &[(Efer, Feature)] = &[
    (Efer::SCE, cpuid::SYSCALL),
    (Efer::LME, cpuid::LM),
    (Efer::LMA, cpuid::LM),
    (Efer::NXE, cpuid::NX),
    (Efer::FFXSR, cpuid::FXSR_OPT),
];

/// The bits of CR0 that exist; the others read as zero and are ignored in the lower half.
const CR0_BITS: u64 = Cr0::all().bits();

impl Vcpu {
    /// The bits of CR4 that this guest's processor has. CR4.PCE needs no CPUID bit.
    pub fn cr4_allowed(&self) -> u64 {
        CR4_FEATURES
            .iter()
            .filter(|(_, f)| self.cpuid.has(*f))
            .fold(Cr4::PCE.bits(), |bits, (b, _)| bits | b.bits())
    }

    /// Whether KVM_SET_SREGS may set this CR4: what KVM offers no guest is refused, and what this guest's CPUID lacks,
    /// once it has one. The bits of processors before 2000 are never refused (as KVM has it).
    pub fn cr4_valid(&self, value: u64) -> bool {
        static OFFERED: LazyLock<u64> = LazyLock::new(|| {
            let host = HostProcessor::this();
            CR4_FEATURES.iter().filter(|(_, f)| offers(&host, *f)).fold(0, |bits, (b, _)| bits | b.bits())
        });
        let allowed = if self.cpuid.entries().is_empty() { *OFFERED } else { *OFFERED & self.cr4_allowed() };
        value & !(allowed | CR4_ALWAYS.bits()) == 0
    }

    /// The bits of EFER that this guest's processor has.
    pub fn efer_allowed(&self) -> u64 {
        EFER_FEATURES.iter().filter(|(_, f)| self.cpuid.has(*f)).fold(0, |bits, (b, _)| bits | b.bits())
    }

    /// MOV to CR0, after the privilege check.
    pub fn write_cr0(&mut self, value: u64) -> Result {
        if value >> 32 != 0 {
            return self.gp0();
        }
        let new = Cr0::from_bits_truncate(value & CR0_BITS) | Cr0::ET;
        let old = self.cr0;
        if new.contains(Cr0::PG) && !new.contains(Cr0::PE) || new.contains(Cr0::NW) && !new.contains(Cr0::CD)
        {
            return self.gp0();
        }
        let mut efer = self.efer;
        let cs_l = self.seg[Seg::Cs as usize].l;
        match (old.contains(Cr0::PG), new.contains(Cr0::PG)) {
            (false, true) if efer.contains(Efer::LME) => {
                // SDM vol. 3A, 9.8.5: PAE must be on, and CS must not be a 64-bit segment yet.
                // Nor may TR hold a 16-bit TSS (SDM vol. 2B, MOV CR); an AMD does not look (APM vol. 2, 14.6.1).
                let tss16 =
                    matches!(self.seg[Seg::Tr as usize].typ, 1 | 3) && self.cpuid.vendor() != Vendor::Amd;
                if !self.cr4.contains(Cr4::PAE) || cs_l || tss16 {
                    return self.gp0();
                }
                efer |= Efer::LMA;
            }
            (true, false) => {
                if self.cr4.contains(Cr4::PCIDE) || self.long64() {
                    return self.gp0();
                }
                efer &= !Efer::LMA;
            }
            _ => {}
        }
        // SDM vol. 3A, 4.4.1: a change of CD, NW or PG loads the PDPTE registers.
        let pdptes = Cr0::CD | Cr0::NW | Cr0::PG;
        if (old ^ new).intersects(pdptes)
            && PagingMode::of(new, self.cr4, efer) == PagingMode::Pae
            && !self.mmu.load_pdptrs(self.cr3)
        {
            return self.gp0();
        }
        self.cr0 = new;
        self.efer = efer;
        if (old ^ new).intersects(Cr0::PG | Cr0::PE | Cr0::WP | Cr0::CD | Cr0::NW) {
            self.paging_changed();
        }
        self.update_mode();
        Ok(())
    }

    /// LMSW: the low four bits; PE can be set, not cleared.
    pub fn lmsw(&mut self, value: u16) -> Result {
        let old = self.cr0.bits();
        self.write_cr0(old & !0xe | value as u64 & 0xf)
    }

    /// MOV to CR3, after the privilege check.
    pub fn write_cr3(&mut self, value: u64) -> Result {
        let mut checked = value;
        if self.cr4.contains(Cr4::PCIDE) {
            checked &= !CR3_NO_FLUSH;
        }
        if self.long_mode() && checked >> self.cpuid.maxphyaddr() != 0 {
            return self.gp0();
        }
        if self.paging_mode() == PagingMode::Pae && !self.mmu.load_pdptrs(checked) {
            return self.gp0();
        }
        self.cr3 = checked;
        self.mmu.mov_cr3(value);
        self.attend(ATTENTION_EVENT);
        Ok(())
    }

    /// MOV to CR4, after the privilege check.
    pub fn write_cr4(&mut self, value: u64) -> Result {
        if value & !self.cr4_allowed() != 0 {
            return self.gp0();
        }
        let (old, new) = (self.cr4, Cr4::from_bits_truncate(value));
        let changed = old ^ new;
        if self.long_mode() && (!new.contains(Cr4::PAE) || changed.contains(Cr4::LA57)) {
            return self.gp0();
        }
        if changed.contains(Cr4::PCIDE)
            && new.contains(Cr4::PCIDE)
            && (!self.long_mode() || self.cr3 & CR3_PCID_MASK != 0)
        {
            return self.gp0();
        }
        // SDM vol. 3A, 4.4.1.
        let pdptes = Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP;
        if changed.intersects(pdptes)
            && PagingMode::of(self.cr0, new, self.efer) == PagingMode::Pae
            && !self.mmu.load_pdptrs(self.cr3)
        {
            return self.gp0();
        }
        self.cr4 = new;
        self.paging_changed();
        self.update_mode();
        Ok(())
    }

    /// WRMSR to EFER. `host`: KVM_SET_MSRS, which may change LME under paging but not LMA. False: refused.
    pub fn write_efer(&mut self, value: u64, host: bool) -> bool {
        if value & !self.efer_allowed() != 0 && !(host && Efer::from_bits(value).is_some()) {
            return false;
        }
        let new = Efer::from_bits_truncate(value);
        let changed = self.efer ^ new;
        if !host && self.cr0.contains(Cr0::PG) && changed.contains(Efer::LME) {
            return false;
        }
        self.efer = new & !Efer::LMA | self.efer & Efer::LMA;
        self.paging_changed();
        self.update_mode();
        true
    }

    /// MOV to CR8, after the privilege check.
    pub fn mov_to_cr8(&mut self, value: u64) -> Result {
        if value > 15 {
            return Err(Exception::GP0.into());
        }
        self.write_cr8(value)
    }
}
