//! Where the manuals leave a choice to the processor, or the vendors' manuals differ, and the guest's vector and x87
//! instructions run on the host: the host's choice, decided here once, from its CPUID.
//!
//! The guest is told the same bits (class native in [`crate::cpuid::policy`]). Nothing else asks for the host's
//! vendor to decide what an instruction does.

use crate::host_cpu;
use decoder::Vendor;
use std::sync::LazyLock;
use x86_arch::cpuid;

/// The host's choices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostRules {
    /// FDP and FDS change only where an instruction raises an exception that is not masked
    /// (CPUID.7.0:EBX\[6\]; SDM vol. 1, 8.1.8).
    pub data_pointer_on_exception_only: bool,
    /// FCS and FDS are not kept, and read as 0 (CPUID.7.0:EBX\[13\]; SDM vol. 1, 8.1.8).
    pub no_x87_selectors: bool,
    /// FXSAVE and the XSAVE family store FIP, FDP and FOP as 0 unless FSW.ES says that an exception is pending: AMD's
    /// processors with CPUID.80000008H:EBX.XSaveErPtr (APM vol. 3, E.4.7; APM vol. 5, FXSAVE). FNSTENV and FNSAVE store
    /// them always.
    pub saves_pointers_with_error_only: bool,
    /// FIP and FDP, when loaded from an area with 64-bit pointers, are sign-extended from this many bits.
    pub x87_pointer_bits: u8,
    /// #AC is raised by misaligned vector accesses of 16 bytes and more too, at 16 bytes: AMD's processors (tried on Zen 4).
    /// Intel's check accesses of at most 8 bytes (SDM vol. 2A, 2.4, exception types 3 and 4).
    pub wide_alignment_checks: bool,
    /// Gathers, scatters and VEX-encoded masked moves raise #AC for an element (SDM vol. 2A, 2.4, types 6 and 12).
    /// AMD's never do.
    pub element_alignment_checks: bool,
    /// The SHA instructions' memory operands need no alignment: AMD's processors, against their manual.
    pub sha_unaligned: bool,
    /// An aligned EVEX move whose mask is empty is not held to its alignment: AMD's processors.
    pub empty_mask_unaligned: bool,
    /// MASKMOVQ and MASKMOVDQU need all of their destination, whatever the mask, and check it at 8 bytes: AMD's
    /// processors. SDM vol. 2B, MASKMOVDQU, leaves the faults of masked bytes to the implementation.
    pub maskmov_reaches_all: bool,
    /// A state component that is loaded with its initial value counts as not in use (XINUSE): AMD's processors.
    pub loaded_zeros_are_initial: bool,
}

impl HostRules {
    /// The rules of a processor of this vendor with these features.
    pub fn new(vendor: Vendor, has: impl Fn(cpuid::Feature) -> bool, x87_pointer_bits: u8) -> HostRules {
        let amd = vendor == Vendor::Amd;
        HostRules {
            data_pointer_on_exception_only: has(cpuid::FDP_EXCPTN_ONLY),
            no_x87_selectors: has(cpuid::ZERO_FCS_FDS),
            saves_pointers_with_error_only: amd,
            x87_pointer_bits,
            wide_alignment_checks: amd,
            element_alignment_checks: !amd,
            sha_unaligned: amd,
            empty_mask_unaligned: amd,
            maskmov_reaches_all: amd,
            loaded_zeros_are_initial: amd,
        }
    }

    /// The alignment at which #AC looks for a vector, MMX or x87 operand of `size` bytes; 1: not at all
    /// (SDM vol. 3A, table 6-7: an 80-bit operand's is 8).
    pub fn alignment(&self, size: u8) -> u8 {
        match size {
            0 | 1 => 1,
            2 | 4 | 8 => size,
            3..=15 => 8,
            _ if self.wide_alignment_checks => 16,
            _ => 1,
        }
    }

    /// As [`HostRules::alignment`], for one element of a gather, a scatter or a VEX-encoded masked move.
    pub fn element_alignment(&self, size: usize) -> u64 {
        if self.element_alignment_checks { size as u64 } else { 1 }
    }

    /// An x87 pointer as it is kept after loading it from 64 bits.
    pub fn x87_pointer(&self, v: u64) -> u64 {
        let unused = 64u32.saturating_sub(self.x87_pointer_bits as u32) & 63;
        ((v << unused) as i64 >> unused) as u64
    }
}

/// This host's.
pub fn host_rules() -> &'static HostRules {
    static RULES: LazyLock<HostRules> =
        LazyLock::new(|| HostRules::new(host_cpu::vendor(), host_cpu::has, host_cpu::x87_pointer_bits()));
    &RULES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_follow_cpuid() {
        let intel = HostRules::new(Vendor::Intel, |_| true, 64);
        assert!(intel.data_pointer_on_exception_only && intel.no_x87_selectors);
        assert!(!intel.saves_pointers_with_error_only);
        let amd = HostRules::new(Vendor::Amd, |_| false, 48);
        assert!(!amd.data_pointer_on_exception_only && !amd.no_x87_selectors);
        assert!(amd.saves_pointers_with_error_only);
    }

    #[test]
    fn pointers_are_sign_extended() {
        let at = |bits, v| HostRules::new(Vendor::Amd, |_| false, bits).x87_pointer(v);
        assert_eq!(at(48, 0x1234_8000_0000_0001), 0xffff_8000_0000_0001);
        assert_eq!(at(57, 0x0034_8000_0000_0001), 0x0034_8000_0000_0001);
        assert_eq!(at(57, 0x0134_8000_0000_0001), 0xff34_8000_0000_0001);
        assert_eq!(at(64, 0x1234_8000_0000_0001), 0x1234_8000_0000_0001);
    }
}
