//! The guest's CPUID table, and what the processor takes from it.

use decoder::{CpuidSet, Vendor};
use x86_arch::cpuid::{CpuidEntry, CpuidResult, Feature};

/// The table that KVM_SET_CPUID2 gave, with the sets derived from it.
#[derive(Clone)]
pub struct CpuidTable {
    entries: Vec<CpuidEntry>,
    instructions: CpuidSet,
    maxphyaddr: u8,
}

impl CpuidTable {
    /// A table from its rows.
    pub fn new(entries: Vec<CpuidEntry>) -> CpuidTable {
        let vendor = match find(&entries, 0, 0) {
            Some(e)
                if e.result.ebx == u32::from_le_bytes(*b"Auth")
                    || e.result.ebx == u32::from_le_bytes(*b"Hygo") =>
            {
                Vendor::Amd
            }
            _ => Vendor::Intel,
        };
        // No table yet: like a processor whose CPUID was never asked, it has what it has.
        let instructions = CpuidSet::new(vendor, |f| entries.is_empty() || feature(&entries, f));
        let maxphyaddr = match find(&entries, 0x8000_0008, 0) {
            Some(e) if e.result.eax as u8 != 0 => e.result.eax as u8,
            _ => 36,
        };
        CpuidTable { entries, instructions, maxphyaddr: maxphyaddr.clamp(32, 52) }
    }

    /// The rows.
    pub fn entries(&self) -> &[CpuidEntry] {
        &self.entries
    }

    /// Whether the guest's processor has this feature.
    pub fn has(&self, f: Feature) -> bool {
        feature(&self.entries, f)
    }

    /// The instructions that exist for the guest, for decoding.
    pub fn instructions(&self) -> &CpuidSet {
        &self.instructions
    }

    /// Whose rules apply where Intel and AMD differ.
    pub fn vendor(&self) -> Vendor {
        self.instructions.vendor()
    }

    /// Physical-address width in bits.
    pub fn maxphyaddr(&self) -> u8 {
        self.maxphyaddr
    }

    /// A row, if the table has it.
    pub fn find(&self, leaf: u32, subleaf: u32) -> Option<CpuidResult> {
        find(&self.entries, leaf, subleaf).map(|e| e.result)
    }
}

fn find(entries: &[CpuidEntry], leaf: u32, subleaf: u32) -> Option<&CpuidEntry> {
    entries.iter().find(|e| e.leaf == leaf && (!e.indexed || e.subleaf == subleaf))
}

fn feature(entries: &[CpuidEntry], f: Feature) -> bool {
    find(entries, f.leaf, f.subleaf).is_some_and(|e| e.result.reg(f.reg) >> f.bit & 1 != 0)
}
