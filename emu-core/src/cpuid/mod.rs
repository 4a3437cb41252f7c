//! The guest's CPUID table: what the processor takes from it, and what the instruction returns.
//!
//! What a guest can be offered is in [`policy`].

#[cfg(test)]
mod opcodes;
pub mod policy;
mod rows;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod two_way;

use crate::quirks::Quirks;
use crate::vcpu::Vcpu;
use decoder::{CpuidSet, Vendor};
use x86_arch::control::{Cr4, Xcr0};
use x86_arch::cpuid::{self, CpuidEntry, CpuidResult, Feature};
use x86_arch::xsave;

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

impl Vcpu {
    /// What CPUID returns: the table's row, with the bits that follow the processor's state and the VM's devices.
    pub fn cpuid_result(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        match self.cpuid.lookup(leaf, subleaf) {
            Some((leaf, r)) => {
                let mut r = self.cpuid_now(leaf, subleaf, r);
                r.eax &= !self.pv_not_here(leaf);
                r
            }
            None => CpuidResult::default(),
        }
    }

    /// The rows as CPUID returns them now (KVM_GET_CPUID2), from the table or from another.
    pub fn cpuid_rows_now(&self, rows: &[CpuidEntry]) -> Vec<CpuidEntry> {
        let now = |e: &CpuidEntry| CpuidEntry { result: self.cpuid_now(e.leaf, e.subleaf, e.result), ..*e };
        rows.iter().map(now).collect()
    }

    /// A row with the bits that follow the processor's state.
    fn cpuid_now(&self, leaf: u32, subleaf: u32, mut r: CpuidResult) -> CpuidResult {
        let bit = |v: &mut u32, f: Feature, on: bool| *v = *v & !(1 << f.bit) | (on as u32) << f.bit;
        match (leaf, subleaf) {
            (1, _) => {
                bit(&mut r.ecx, cpuid::OSXSAVE, self.cr4.contains(Cr4::OSXSAVE));
                if !self.vm.choices.has(Quirks::MISC_ENABLE_NO_MWAIT) {
                    // SDM vol. 4: ENABLE MONITOR FSM.
                    bit(&mut r.ecx, cpuid::MONITOR, self.msr.misc_enable >> 18 & 1 != 0);
                }
                // Whatever the table says, as KVM does: it may be one that was read while the local APIC was off.
                bit(&mut r.edx, cpuid::APIC, self.apic_enabled());
            }
            (7, 0) => bit(&mut r.ecx, cpuid::OSPKE, self.cr4.contains(Cr4::PKE)),
            (0xd, 0) => r.ebx = self.cpuid.xsave_size(self.xcr0.bits()),
            (0xd, 1) if r.eax & 0xa != 0 => {
                r.ebx = self.cpuid.compact_size(self.xcr0.bits() | self.msr.xss);
            }
            _ => {}
        }
        r
    }

    /// The XCR0 that this guest's CPUID allows.
    pub fn xcr0_allowed(&self) -> u64 {
        self.cpuid.find(0xd, 0).map_or(Xcr0::X87.bits(), |r| r.eax as u64 | (r.edx as u64) << 32)
    }

    /// IA32_APIC_BASE's global enable.
    fn apic_enabled(&self) -> bool {
        let base = self.shared.irq.lapic().map_or(self.msr.apic_base, |l| l.apic_base());
        base & x86_arch::apic::APIC_BASE_ENABLE != 0
    }
}

impl CpuidTable {
    /// The row that an input finds, and its leaf. Beyond the last leaf an Intel answers with the
    /// highest basic leaf (SDM vol. 2A, CPUID), an AMD with zeros.
    fn lookup(&self, leaf: u32, subleaf: u32) -> Option<(u32, CpuidResult)> {
        if let Some(r) = self.find(leaf, subleaf) {
            return Some((leaf, r));
        }
        if self.vendor() == Vendor::Amd || self.entries.iter().any(|e| e.leaf == leaf) {
            return None;
        }
        let class = leaf & 0xffff_0000;
        let last = match class {
            // The hypervisor range and others have no such rule.
            0 | 0x8000_0000 => self.find(class, 0)?.eax,
            _ => return self.find(0, 0).and_then(|r| Some((r.eax, self.find(r.eax, subleaf)?))),
        };
        if leaf <= last {
            return None;
        }
        let last = self.find(0, 0)?.eax;
        Some((last, self.find(last, subleaf)?))
    }

    /// Bytes of a standard-format XSAVE area for these components.
    pub fn xsave_size(&self, components: u64) -> u32 {
        let end = |n: u32| self.find(0xd, n).map_or(0, |r| r.ebx.saturating_add(r.eax));
        let base = xsave::HEADER_END as u32;
        (2..63).filter(|n| components >> n & 1 != 0).map(end).fold(base, u32::max)
    }

    /// Bytes of a compacted XSAVE area for these components.
    pub fn compact_size(&self, components: u64) -> u32 {
        let mut size = xsave::HEADER_END as u32;
        for n in (2..63u32).filter(|n| components >> n & 1 != 0) {
            if let Some(r) = self.find(0xd, n) {
                if r.ecx & 2 != 0 {
                    size = size.next_multiple_of(64);
                }
                size = size.saturating_add(r.eax);
            }
        }
        size
    }
}
