//! Events: invlpg, invpcid, mov to cr3, changes of cr0, cr4, efer, PKRU.
//!
//! Not here: changes of memory slots (`mmu`).

use crate::root::RootKey;
use crate::vcpu::{PagingRegisters, VcpuMmu};
use crate::walk::{self, PagingContext};
use x86_arch::control::{CR3_NO_FLUSH, CR3_PCID_MASK};
use x86_arch::{Cr0, Cr4, Efer, Gva, PagingMode};

/// The bits whose change makes cached translations wrong (SDM vol. 3A, 4.10.4.1).
const CR0_PAGING: Cr0 = Cr0::PG.union(Cr0::WP);
const CR4_PAGING: Cr4 = Cr4::PSE
    .union(Cr4::PAE)
    .union(Cr4::PGE)
    .union(Cr4::PCIDE)
    .union(Cr4::LA57)
    .union(Cr4::SMEP)
    .union(Cr4::SMAP)
    .union(Cr4::PKE);
const EFER_PAGING: Efer = Efer::NXE.union(Efer::LMA);

impl PagingRegisters {
    /// The current PCID (0 without CR4.PCIDE).
    fn pcid(&self) -> u16 {
        if self.cr4.contains(Cr4::PCIDE) { (self.cr3 & CR3_PCID_MASK) as u16 } else { 0 }
    }

    fn context(&self) -> PagingContext {
        PagingContext::new(self.cr0, self.cr3, self.cr4, self.efer, self.pkru, self.maxphyaddr)
    }

    /// Whether translations of `self` are worthless under `new`, CR3 apart.
    fn other_mode(&self, new: &PagingRegisters) -> bool {
        (self.cr0 ^ new.cr0).intersects(CR0_PAGING)
            || (self.cr4 ^ new.cr4).intersects(CR4_PAGING)
            || (self.efer ^ new.efer).intersects(EFER_PAGING)
            || self.as_id != new.as_id
            || self.maxphyaddr != new.maxphyaddr
    }
}

impl VcpuMmu {
    /// A change of mode (MOV to CR0 or CR4, WRMSR EFER, SMM, KVM_SET_SREGS). Drops cached translations if a bit that
    /// they depend on has changed, and those of the PCID if CR3 has.
    /// Where PAE paging is on afterwards and the SDM says so, call [`load_pdptrs`](Self::load_pdptrs) first.
    pub fn set_registers(&mut self, registers: PagingRegisters) {
        let old = core::mem::replace(&mut self.registers, registers);
        let pdptrs = self.context.pdptrs;
        self.context = PagingContext { pdptrs, ..registers.context() };
        if old.as_id != registers.as_id {
            self.reload_slots();
        }
        if old.other_mode(&registers) {
            self.stats.flushes += 1;
            self.tlb.flush_all();
            self.tlb.set_pcid(registers.pcid());
        } else if old.cr3 != registers.cr3 {
            self.stats.flushes += 1;
            self.tlb.flush_pcid(registers.pcid());
            self.tlb.set_pcid(registers.pcid());
        }
        if old.pkru != registers.pkru {
            self.pkru_changed();
        }
        self.select_roots();
    }

    /// mmu.txt: "look up new shadow roots". There is nothing to synchronize: every shadow page in use is in step with the
    /// guest's tables.
    fn select_roots(&mut self) {
        self.roots.select(RootKey::of(&self.context, self.registers.as_id));
    }

    /// MOV to CR3, after its checks. Bit 63 (with CR4.PCIDE) keeps the PCID's translations. With PAE paging, call
    /// [`load_pdptrs`](Self::load_pdptrs) first and only commit if that succeeds.
    pub fn mov_cr3(&mut self, value: u64) {
        let pcide = self.registers.cr4.contains(Cr4::PCIDE);
        let keep = pcide && value & CR3_NO_FLUSH != 0;
        self.registers.cr3 = if pcide { value & !CR3_NO_FLUSH } else { value };
        let PagingContext { root, .. } = self.registers.context();
        self.context.root = root;
        let pcid = self.registers.pcid();
        if !keep {
            self.stats.flushes += 1;
            self.tlb.flush_pcid(pcid);
        }
        self.tlb.set_pcid(pcid);
        self.select_roots();
    }

    /// Loads the four PDPTE registers from memory at `cr3` (SDM vol. 3A, 4.4.1). `false`: a reserved bit is set in
    /// a present one, or the table cannot be read, so the instruction takes #GP(0) and nothing has changed.
    #[must_use]
    pub fn load_pdptrs(&mut self, cr3: u64) -> bool {
        match walk::load_pdptrs(&self.tables(), &self.context, cr3) {
            Some(pdptrs) => {
                self.set_pdptrs(pdptrs);
                true
            }
            None => false,
        }
    }

    /// The PDPTE registers (KVM_GET_SREGS2).
    pub fn pdptrs(&self) -> [u64; 4] {
        self.context.pdptrs
    }

    /// Sets the PDPTE registers (KVM_SET_SREGS2).
    pub fn set_pdptrs(&mut self, pdptrs: [u64; 4]) {
        if self.context.pdptrs != pdptrs {
            self.context.pdptrs = pdptrs;
            if self.context.mode == PagingMode::Pae {
                self.stats.flushes += 1;
                self.tlb.flush_all();
                self.select_roots();
            }
        }
    }

    /// WRPKRU, XRSTOR: a new PKRU.
    pub fn set_pkru(&mut self, pkru: u32) {
        if self.registers.pkru != pkru {
            self.registers.pkru = pkru;
            self.pkru_changed();
        }
    }

    fn pkru_changed(&mut self) {
        // What was filled under the old keys; the shadow tables hold the keys, not what PKRU says of them.
        self.stats.flushes += 1;
        self.tlb.flush_all();
        self.context.rules = self.registers.context().rules;
    }

    /// INVLPG, whose operand is not translated. A non-canonical one does nothing.
    pub fn invlpg(&mut self, gva: Gva) {
        self.stats.invlpgs += 1;
        self.tlb.flush_page(self.linear(gva));
    }

    /// INVPCID type 0: one address of one PCID.
    pub fn invpcid_address(&mut self, _pcid: u16, gva: Gva) {
        // The entry of that page goes, whatever its PCID.
        self.stats.invlpgs += 1;
        self.tlb.flush_page(gva);
    }

    /// INVPCID type 1: one PCID.
    pub fn invpcid_context(&mut self, pcid: u16) {
        self.stats.flushes += 1;
        self.tlb.flush_pcid(pcid);
    }

    /// INVPCID types 2 and 3: every PCID (global translations, which type 3 may keep, go too).
    pub fn invpcid_all(&mut self) {
        self.stats.flushes += 1;
        self.tlb.flush_all();
    }
}
