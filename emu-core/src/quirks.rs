//! What user space may choose about a VM's processors: quirks of KVM's that it can switch off (KVM api 7.31,
//! KVM_CAP_DISABLE_QUIRKS2), exits that it does not want, exits instead of exceptions.
//!
//! Not here: the effects, each of which is where the subject is. `KVM_X86_QUIRK_SLOT_ZAP_ALL` is the MMU's.

use bitflags::bitflags;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

bitflags! {
    /// Quirks, which are on until user space switches them off. The bits are KVM's (KVM_X86_QUIRK_*).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Quirks: u32 {
        /// LINT0 of the bootstrap processor leaves reset as ExtINT, not masked.
        const LINT0_REENABLED = 1 << 0;
        /// CR0.CD and CR0.NW have no effect. They have none here either way: there are no caches.
        const CD_NW_CLEARED = 1 << 1;
        /// The page of a local APIC that is disabled or in x2APIC mode reads as all ones and takes writes; else
        /// user space gets them as MMIO.
        const LAPIC_MMIO_HOLE = 1 << 2;
        /// RIP is behind an OUT to port 7EH when user space is told of it, not at it.
        const OUT_7E_INC_RIP = 1 << 3;
        /// CPUID.1:ECX.MONITOR is what user space set, not IA32_MISC_ENABLE bit 18.
        const MISC_ENABLE_NO_MWAIT = 1 << 4;
        /// The other vendor's hypercall instruction is replaced by the right one, not #UD.
        const FIX_HYPERCALL_INSN = 1 << 5;
        /// MONITOR and MWAIT are NOPs where CPUID does not have them, not #UD.
        const MWAIT_NEVER_UD_FAULTS = 1 << 6;
        /// Deleting or moving a memory slot tears down all shadow pages.
        const SLOT_ZAP_ALL = 1 << 7;
    }
}

/// A VM's choices. They may change while vCPUs run.
#[derive(Debug, Default)]
pub struct Choices {
    /// Bits of [`Quirks`] that are off.
    off: AtomicU32,
    /// An instruction that cannot be executed is told to user space, at every privilege level (KVM_CAP_EXIT_ON_EMULATION_FAILURE).
    pub exit_on_emulation_failure: AtomicBool,
    /// HLT never returns to user space (KVM_X86_DISABLE_EXITS_HLT).
    pub hlt_in_guest: AtomicBool,
    /// A LOCKed access across cache lines is told to user space (KVM_BUS_LOCK_DETECTION_EXIT).
    pub bus_lock_exits: AtomicBool,
}

impl Choices {
    /// Whether a quirk is on.
    pub fn has(&self, quirk: Quirks) -> bool {
        self.off.load(Relaxed) & quirk.bits() == 0
    }

    /// Switches these quirks off, and all others on: as in kernels before 6.15, whose selftests want quirks back that they
    /// had switched off. Later kernels keep them off.
    pub fn disable(&self, quirks: Quirks) {
        self.off.store(quirks.bits(), Relaxed);
    }

    pub(crate) fn exits_on_emulation_failure(&self) -> bool {
        self.exit_on_emulation_failure.load(Relaxed)
    }

    pub(crate) fn exits_on_bus_locks(&self) -> bool {
        self.bus_lock_exits.load(Relaxed)
    }

    pub(crate) fn hlt_in_guest(&self) -> bool {
        self.hlt_in_guest.load(Relaxed)
    }
}

/// Whether code begins with an x87 instruction.
pub(crate) fn is_x87(code: &[u8], long64: bool) -> bool {
    crate::state::opcode_at(code, long64).is_some_and(|at| code[at] & 0xf8 == 0xd8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x87_by_its_opcode() {
        for (code, long64, expected) in [
            (&[0xd9u8, 0x00][..], true, true),
            (&[0x67, 0x41, 0xd9, 0x00], true, true),
            (&[0x41, 0xd9, 0x00], false, false),
            (&[0x8b, 0x00], true, false),
            (&[0x0f, 0xd9], true, false),
            (&[0x2e, 0xdf], false, true),
            (&[], true, false),
            (&[0x66; 15], true, false),
        ] {
            assert_eq!(is_x87(code, long64), expected, "{code:02x?}");
        }
    }

    #[test]
    fn the_last_word_on_quirks_counts() {
        let choices = Choices::default();
        assert!(choices.has(Quirks::all()));
        choices.disable(Quirks::LAPIC_MMIO_HOLE);
        assert!(!choices.has(Quirks::LAPIC_MMIO_HOLE) && choices.has(Quirks::FIX_HYPERCALL_INSN));
        choices.disable(Quirks::FIX_HYPERCALL_INSN);
        assert!(choices.has(Quirks::LAPIC_MMIO_HOLE) && !choices.has(Quirks::FIX_HYPERCALL_INSN));
    }
}
