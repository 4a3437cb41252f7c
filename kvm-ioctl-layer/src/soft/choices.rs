//! KVM_ENABLE_CAP on a VM of the software backend for what concerns its processors: quirks, exits, halts (KVM api 7.13, 7.20,
//! 7.22, 7.27, 7.31).
//!
//! Not here: capabilities of memory, interrupts and registers (`soft::vm`), what a quirk does (`emu_core::quirks`).

use super::vm::VmSettings;
use emu_core::Vm;
use emu_core::quirks::Quirks;
use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;
use std::sync::atomic::Ordering::Relaxed;

/// The exits that can be switched off. MWAIT does not wait here, and there are no C-state counters to be read.
pub const DISABLE_EXITS: u32 = KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE;

/// What can be done about bus locks.
pub const BUS_LOCKS: u32 = KVM_BUS_LOCK_DETECTION_OFF | KVM_BUS_LOCK_DETECTION_EXIT;

/// The quirks that can be switched off.
pub const QUIRKS: u32 = Quirks::all().bits();

const _: () = assert!(
    QUIRKS
        == KVM_X86_QUIRK_LINT0_REENABLED
            | KVM_X86_QUIRK_CD_NW_CLEARED
            | KVM_X86_QUIRK_LAPIC_MMIO_HOLE
            | KVM_X86_QUIRK_OUT_7E_INC_RIP
            | KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT
            | KVM_X86_QUIRK_FIX_HYPERCALL_INSN
            | KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS
            | KVM_X86_QUIRK_SLOT_ZAP_ALL
);

/// Enables one of these capabilities; EINVAL for any other.
pub fn enable(vm: &Vm, settings: &VmSettings, cap: &kvm_enable_cap) -> Result {
    let arg = cap.args[0];
    match cap.cap {
        // The old one takes what it knows, the new one nothing else.
        KVM_CAP_DISABLE_QUIRKS2 if arg & !u64::from(QUIRKS) != 0 => Err(Errno::EINVAL),
        KVM_CAP_DISABLE_QUIRKS | KVM_CAP_DISABLE_QUIRKS2 => {
            let quirks = Quirks::from_bits_truncate(arg as u32);
            vm.choices.disable(quirks);
            vm.mmu.set_zap_all_quirk(!quirks.contains(Quirks::SLOT_ZAP_ALL));
            vm.quirks_changed();
            Ok(())
        }
        KVM_CAP_X86_DISABLE_EXITS => {
            let valid = KVM_X86_DISABLE_EXITS_MWAIT | DISABLE_EXITS | KVM_X86_DISABLE_EXITS_CSTATE;
            // Before the vCPUs, as kernels since 6.14 want it. Earlier ones take it at any time, and programs switch HLT's
            // exits off late: it takes effect at the next KVM_SET_CPUID2 and the next HLT.
            let late = !settings.vcpu_ids.is_empty() && arg != u64::from(KVM_X86_DISABLE_EXITS_HLT);
            if arg & !u64::from(valid) != 0 || late {
                return Err(Errno::EINVAL);
            }
            // A kernel passes over what the processor cannot do. PAUSE never exits here.
            if arg & u64::from(KVM_X86_DISABLE_EXITS_HLT) != 0 {
                vm.choices.hlt_in_guest.store(true, Relaxed);
            }
            Ok(())
        }
        KVM_CAP_X86_BUS_LOCK_EXIT => {
            // One of the two. A kernel that was told to exit does so from then on.
            if arg & !u64::from(BUS_LOCKS) != 0 || arg == u64::from(BUS_LOCKS) {
                return Err(Errno::EINVAL);
            }
            if arg & u64::from(KVM_BUS_LOCK_DETECTION_EXIT) != 0 {
                vm.choices.bus_lock_exits.store(true, Relaxed);
            }
            Ok(())
        }
        KVM_CAP_EXIT_ON_EMULATION_FAILURE => {
            if arg > 1 {
                return Err(Errno::EINVAL);
            }
            vm.choices.exit_on_emulation_failure.store(arg != 0, Relaxed);
            Ok(())
        }
        // The longest that a halted vCPU may poll, in nanoseconds. It never does.
        KVM_CAP_HALT_POLL => {
            if u32::try_from(arg).is_ok() {
                Ok(())
            } else {
                Err(Errno::EINVAL)
            }
        }
        _ => Err(Errno::EINVAL),
    }
}
