//! KVM_CHECK_EXTENSION of the software backend. What is answered works; what does not work is answered 0.

use crate::soft::choices;
use kvm_api::uapi::*;

pub mod withheld;

/// vCPUs that are recommended and possible (KVM_CAP_NR_VCPUS, KVM_CAP_MAX_VCPUS).
pub const MAX_VCPUS: usize = 1024;
/// vCPU ids are below this (KVM_CAP_MAX_VCPU_ID).
pub const MAX_VCPU_ID: u64 = 4096;
/// Memory slots (KVM_CAP_NR_MEMSLOTS).
pub const NR_MEMSLOTS: i32 = 32764;

macro_rules! caps {
    ($($cap:ident $value:expr;)*) => {
        /// What the software backend answers; every other capability is 0.
        pub fn answer(cap: u32) -> i32 {
            match cap {
                $($cap => $value,)*
                _ => 0,
            }
        }
        /// The capabilities with an answer, by name.
        pub const OFFERED: &[(&str, u32)] = &[$((stringify!($cap), $cap)),*];
    };
}

caps! {
    KVM_CAP_IRQCHIP 1;
    KVM_CAP_HLT 1;
    KVM_CAP_MMU_SHADOW_CACHE_CONTROL 1;
    KVM_CAP_USER_MEMORY 1;
    KVM_CAP_USER_MEMORY2 1;
    KVM_CAP_SET_TSS_ADDR 1;
    KVM_CAP_EXT_CPUID 1;
    KVM_CAP_EXT_EMUL_CPUID 1;
    KVM_CAP_CLOCKSOURCE 1;
    // A recommendation. vCPUs are threads that sleep when they halt: four are well where the host has fewer processors
    // (api.rst names four for a KVM that says nothing).
    KVM_CAP_NR_VCPUS std::thread::available_parallelism().map_or(4, |n| n.get().clamp(4, MAX_VCPUS) as i32);
    KVM_CAP_MAX_VCPUS MAX_VCPUS as i32;
    KVM_CAP_MAX_VCPU_ID MAX_VCPU_ID as i32;
    KVM_CAP_NR_MEMSLOTS NR_MEMSLOTS;
    KVM_CAP_PIT 1;
    KVM_CAP_PIT2 1;
    KVM_CAP_PIT_STATE2 1;
    KVM_CAP_REINJECT_CONTROL 1;
    KVM_CAP_NOP_IO_DELAY 1;
    KVM_CAP_MP_STATE 1;
    KVM_CAP_SYNC_MMU 1;
    KVM_CAP_DESTROY_MEMORY_REGION_WORKS 1;
    KVM_CAP_JOIN_MEMORY_REGIONS_WORKS 1;
    KVM_CAP_USER_NMI 1;
    KVM_CAP_SET_GUEST_DEBUG 1;
    KVM_CAP_SET_GUEST_DEBUG2 (KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP
        | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP | KVM_GUESTDBG_BLOCKIRQ) as i32;
    KVM_CAP_X86_ROBUST_SINGLESTEP 1;
    KVM_CAP_IRQ_ROUTING emu_core::irqchip::routing::MAX_IRQ_ROUTES as i32;
    KVM_CAP_IRQ_INJECT_STATUS 1;
    KVM_CAP_COALESCED_MMIO (kvm_api::backend::COALESCED_PAGE_OFFSET / 4096) as i32;
    KVM_CAP_COALESCED_PIO 1;
    KVM_CAP_IRQFD 1;
    KVM_CAP_IRQFD_RESAMPLE 1;
    KVM_CAP_IOEVENTFD 1;
    KVM_CAP_IOEVENTFD_NO_LENGTH 1;
    KVM_CAP_IOEVENTFD_ANY_LENGTH 1;
    KVM_CAP_SIGNAL_MSI 1;
    KVM_CAP_SET_BOOT_CPU_ID 1;
    KVM_CAP_SET_IDENTITY_MAP_ADDR 1;
    KVM_CAP_ADJUST_CLOCK (KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC) as i32;
    KVM_CAP_KVMCLOCK_CTRL 1;
    KVM_CAP_INTERNAL_ERROR_DATA 1;
    KVM_CAP_VCPU_EVENTS 1;
    KVM_CAP_INTR_SHADOW 1;
    KVM_CAP_EXCEPTION_PAYLOAD 1;
    KVM_CAP_X86_TRIPLE_FAULT_EVENT 1;
    KVM_CAP_DEBUGREGS 1;
    KVM_CAP_ENABLE_CAP 1;
    KVM_CAP_ENABLE_CAP_VM 1;
    KVM_CAP_CHECK_EXTENSION_VM 1;
    KVM_CAP_XSAVE 1;
    KVM_CAP_XSAVE2 emu_core::xstate::IMAGE_SIZE as i32;
    KVM_CAP_XCRS 1;
    KVM_CAP_SREGS2 1;
    KVM_CAP_SYNC_REGS (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS) as i32;
    KVM_CAP_TSC_CONTROL 1;
    KVM_CAP_VM_TSC_CONTROL 1;
    KVM_CAP_GET_TSC_KHZ 1;
    KVM_CAP_TSC_DEADLINE_TIMER 1;
    KVM_CAP_READONLY_MEM 1;
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET) as i32;
    KVM_CAP_BINARY_STATS_FD 1;
    KVM_CAP_DISABLE_QUIRKS 1;
    KVM_CAP_DISABLE_QUIRKS2 choices::QUIRKS as i32;
    KVM_CAP_X86_DISABLE_EXITS choices::DISABLE_EXITS as i32;
    KVM_CAP_X86_BUS_LOCK_EXIT choices::BUS_LOCKS as i32;
    KVM_CAP_EXIT_ON_EMULATION_FAILURE 1;
    KVM_CAP_HALT_POLL 1;
    KVM_CAP_PRE_FAULT_MEMORY 1;
    KVM_CAP_MEMORY_FAULT_INFO 1;
    KVM_CAP_X86_GUEST_MODE 1;
    KVM_CAP_DIRTY_LOG_RING kvm_api::backend::DIRTY_RING_MAX as i32;
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL kvm_api::backend::DIRTY_RING_MAX as i32;
    KVM_CAP_IOAPIC_POLARITY_IGNORED 1;
    KVM_CAP_SPLIT_IRQCHIP 1;
    KVM_CAP_X2APIC_API (KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK) as i32;
    KVM_CAP_IMMEDIATE_EXIT 1;
    KVM_CAP_GET_MSR_FEATURES 1;
    KVM_CAP_SYS_ATTRIBUTES 1;
    KVM_CAP_VCPU_ATTRIBUTES 1;
    KVM_CAP_VM_TYPES 1;
    KVM_CAP_X86_SMM 1;
    KVM_CAP_VAPIC 1;
    KVM_CAP_XEN_HVM crate::soft::xen::OFFERED as i32;
    KVM_CAP_MULTI_ADDRESS_SPACE softmmu::memslot::ADDRESS_SPACES as i32;
    KVM_CAP_MCE emu_core::msr::MCE_BANKS as i32;
    KVM_CAP_STEAL_TIME 1;
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID 1;
    KVM_CAP_EXIT_HYPERCALL emu_core::hypercall::EXITS as i32;
    KVM_CAP_X86_APIC_BUS_CYCLES_NS 1;
    KVM_CAP_MSR_PLATFORM_INFO 1;
    KVM_CAP_X86_USER_SPACE_MSR 1;
    KVM_CAP_X86_MSR_FILTER 1;
    // The walker knows the guest's physical-address width: reserved bits of a gpte follow it.
    KVM_CAP_SMALLER_MAXPHYADDR 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What KVM on x86 (Linux 6.12) can answer with more than 0, by the capabilities' numbers.
    const X86: &[u32] = &[
        0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 21, 22, 23, 24, 25, 26, 29, 30, 31, 32,
        33, 34, 35, 36, 37, 38, 39, 40, 41, 44, 45, 46, 47, 49, 50, 51, 54, 55, 56, 59, 60, 61, 66, 70, 72,
        74, 75, 76, 77, 81, 82, 95, 96, 97, 98, 100, 105, 116, 117, 118, 121, 122, 123, 127, 128, 129, 136,
        143, 148, 149, 153, 154, 155, 157, 159, 161, 162, 163, 164, 167, 168, 173, 175, 182, 183, 184, 185,
        188, 189, 191, 192, 193, 195, 196, 197, 199, 200, 203, 204, 206, 208, 209, 212, 213, 214, 218, 219,
        220, 223, 225, 226, 231, 232, 233, 234, 235, 236, 238,
    ];

    #[test]
    fn each_of_x86_is_offered_or_withheld_with_a_reason() {
        for cap in X86 {
            let offered = answer(*cap) > 0;
            let why = withheld::WITHHELD.iter().find(|w| w.1 == *cap);
            assert!(offered || why.is_some_and(|w| !w.2.is_empty()), "capability {cap}");
        }
        for (name, cap, _) in withheld::WITHHELD {
            assert_eq!(answer(*cap), 0, "{name} is offered: it has no reason to be withheld");
        }
    }

    #[test]
    fn each_once_and_with_an_answer() {
        for (i, (name, cap)) in OFFERED.iter().enumerate() {
            assert!(answer(*cap) > 0, "{name}");
            assert!(OFFERED[i + 1..].iter().all(|o| o.1 != *cap), "{name} twice");
        }
        assert_eq!(answer(KVM_CAP_NESTED_STATE), 0);
        assert_eq!(answer(KVM_CAP_PPC_OSI), 0);
    }
}
