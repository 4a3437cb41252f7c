//! The numbers of KVM's ioctls on x86-64, computed from direction, size and ordinal as `_IOC` does.
//!
//! Numbers only. What each takes, needs and answers is a row of `kvm_ioctl_layer::table`.
#![allow(missing_docs)]

use crate::uapi::*;

/// KVM's ioctl type byte.
pub const KVMIO: u32 = 0xae;

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

const fn ioc(dir: u32, nr: u32, size: usize) -> u32 {
    dir << 30 | (size as u32) << 16 | KVMIO << 8 | nr
}

/// Bytes that the number says the argument has (0 for `_IO`).
pub const fn size_of_argument(nr: u32) -> usize {
    (nr >> 16 & 0x3fff) as usize
}

macro_rules! numbers {
    ($($name:ident $dir:ident $nr:literal $($t:ty)?;)*) => {
        $(pub const $name: u32 = ioc(numbers!(@dir $dir), $nr, numbers!(@size $($t)?));)*
        /// Every number with its name, in the order of the list.
        pub const ALL: &[(&str, u32)] = &[$((stringify!($name), $name)),*];
    };
    (@dir io) => { NONE };
    (@dir iow) => { WRITE };
    (@dir ior) => { READ };
    (@dir iowr) => { READ | WRITE };
    (@size) => { 0 };
    (@size $t:ty) => { size_of::<$t>() };
}

numbers! {
    // System.
    KVM_GET_API_VERSION io 0x00;
    KVM_CREATE_VM io 0x01;
    KVM_GET_MSR_INDEX_LIST iowr 0x02 kvm_msr_list;
    KVM_CHECK_EXTENSION io 0x03;
    KVM_GET_VCPU_MMAP_SIZE io 0x04;
    KVM_GET_SUPPORTED_CPUID iowr 0x05 kvm_cpuid2;
    KVM_GET_EMULATED_CPUID iowr 0x09 kvm_cpuid2;
    KVM_GET_MSR_FEATURE_INDEX_LIST iowr 0x0a kvm_msr_list;
    // VM.
    KVM_SET_MEMORY_REGION iow 0x40 [u64; 3];
    KVM_CREATE_VCPU io 0x41;
    KVM_GET_DIRTY_LOG iow 0x42 kvm_dirty_log;
    KVM_SET_MEMORY_ALIAS iow 0x43 [u64; 4];
    KVM_SET_NR_MMU_PAGES io 0x44;
    KVM_GET_NR_MMU_PAGES io 0x45;
    KVM_SET_USER_MEMORY_REGION iow 0x46 kvm_userspace_memory_region;
    KVM_SET_TSS_ADDR io 0x47;
    KVM_SET_IDENTITY_MAP_ADDR iow 0x48 u64;
    KVM_SET_USER_MEMORY_REGION2 iow 0x49 kvm_userspace_memory_region2;
    KVM_CREATE_IRQCHIP io 0x60;
    KVM_IRQ_LINE iow 0x61 kvm_irq_level;
    KVM_GET_IRQCHIP iowr 0x62 kvm_irqchip;
    KVM_SET_IRQCHIP ior 0x63 kvm_irqchip;
    KVM_CREATE_PIT io 0x64;
    KVM_GET_PIT iowr 0x65 kvm_pit_state;
    KVM_SET_PIT ior 0x66 kvm_pit_state;
    KVM_IRQ_LINE_STATUS iowr 0x67 kvm_irq_level;
    KVM_REGISTER_COALESCED_MMIO iow 0x67 kvm_coalesced_mmio_zone;
    KVM_UNREGISTER_COALESCED_MMIO iow 0x68 kvm_coalesced_mmio_zone;
    KVM_SET_GSI_ROUTING iow 0x6a kvm_irq_routing;
    KVM_REINJECT_CONTROL io 0x71;
    KVM_IRQFD iow 0x76 kvm_irqfd;
    KVM_CREATE_PIT2 iow 0x77 kvm_pit_config;
    KVM_SET_BOOT_CPU_ID io 0x78;
    KVM_IOEVENTFD iow 0x79 kvm_ioeventfd;
    KVM_XEN_HVM_CONFIG iow 0x7a kvm_xen_hvm_config;
    KVM_SET_CLOCK iow 0x7b kvm_clock_data;
    KVM_GET_CLOCK ior 0x7c kvm_clock_data;
    KVM_GET_PIT2 ior 0x9f kvm_pit_state2;
    KVM_SET_PIT2 iow 0xa0 kvm_pit_state2;
    KVM_SIGNAL_MSI iow 0xa5 kvm_msi;
    KVM_MEMORY_ENCRYPT_OP iowr 0xba u64;
    KVM_CLEAR_DIRTY_LOG iowr 0xc0 kvm_clear_dirty_log;
    KVM_X86_SET_MSR_FILTER iow 0xc6 kvm_msr_filter;
    KVM_RESET_DIRTY_RINGS io 0xc7;
    KVM_SET_PMU_EVENT_FILTER iow 0xb2 kvm_pmu_event_filter;
    KVM_GET_STATS_FD io 0xce;
    KVM_PRE_FAULT_MEMORY iowr 0xd5 [u64; 8];
    KVM_SET_MEMORY_ATTRIBUTES iow 0xd2 kvm_memory_attributes;
    KVM_CREATE_GUEST_MEMFD iowr 0xd4 kvm_create_guest_memfd;
    KVM_CREATE_DEVICE iowr 0xe0 kvm_create_device;
    KVM_SET_DEVICE_ATTR iow 0xe1 kvm_device_attr;
    KVM_GET_DEVICE_ATTR iow 0xe2 kvm_device_attr;
    KVM_HAS_DEVICE_ATTR iow 0xe3 kvm_device_attr;
    // vCPU.
    KVM_RUN io 0x80;
    KVM_GET_REGS ior 0x81 kvm_regs;
    KVM_SET_REGS iow 0x82 kvm_regs;
    KVM_GET_SREGS ior 0x83 kvm_sregs;
    KVM_SET_SREGS iow 0x84 kvm_sregs;
    KVM_TRANSLATE iowr 0x85 kvm_translation;
    KVM_INTERRUPT iow 0x86 kvm_interrupt;
    KVM_DEBUG_GUEST io 0x87;
    KVM_GET_MSRS iowr 0x88 kvm_msrs;
    KVM_SET_MSRS iow 0x89 kvm_msrs;
    KVM_SET_CPUID iow 0x8a kvm_cpuid;
    KVM_SET_SIGNAL_MASK iow 0x8b kvm_signal_mask;
    KVM_GET_FPU ior 0x8c kvm_fpu;
    KVM_SET_FPU iow 0x8d kvm_fpu;
    KVM_GET_LAPIC ior 0x8e kvm_lapic_state;
    KVM_SET_LAPIC iow 0x8f kvm_lapic_state;
    KVM_SET_CPUID2 iow 0x90 kvm_cpuid2;
    KVM_GET_CPUID2 iowr 0x91 kvm_cpuid2;
    KVM_TPR_ACCESS_REPORTING iowr 0x92 kvm_tpr_access_ctl;
    KVM_SET_VAPIC_ADDR iow 0x93 kvm_vapic_addr;
    KVM_GET_MP_STATE ior 0x98 kvm_mp_state;
    KVM_SET_MP_STATE iow 0x99 kvm_mp_state;
    KVM_NMI io 0x9a;
    KVM_SET_GUEST_DEBUG iow 0x9b kvm_guest_debug;
    KVM_X86_SETUP_MCE iow 0x9c u64;
    KVM_X86_GET_MCE_CAP_SUPPORTED ior 0x9d u64;
    KVM_X86_SET_MCE iow 0x9e kvm_x86_mce;
    KVM_GET_VCPU_EVENTS ior 0x9f kvm_vcpu_events;
    KVM_SET_VCPU_EVENTS iow 0xa0 kvm_vcpu_events;
    KVM_GET_DEBUGREGS ior 0xa1 kvm_debugregs;
    KVM_SET_DEBUGREGS iow 0xa2 kvm_debugregs;
    KVM_SET_TSC_KHZ io 0xa2;
    KVM_GET_TSC_KHZ io 0xa3;
    KVM_ENABLE_CAP iow 0xa3 kvm_enable_cap;
    KVM_GET_XSAVE ior 0xa4 kvm_xsave;
    KVM_SET_XSAVE iow 0xa5 kvm_xsave;
    KVM_GET_XCRS ior 0xa6 kvm_xcrs;
    KVM_SET_XCRS iow 0xa7 kvm_xcrs;
    KVM_GET_ONE_REG iow 0xab kvm_one_reg;
    KVM_SET_ONE_REG iow 0xac kvm_one_reg;
    KVM_KVMCLOCK_CTRL io 0xad;
    KVM_SMI io 0xb7;
    KVM_GET_NESTED_STATE iowr 0xbe kvm_nested_state_header;
    KVM_SET_NESTED_STATE iow 0xbf kvm_nested_state_header;
    KVM_GET_SREGS2 ior 0xcc kvm_sregs2;
    KVM_SET_SREGS2 iow 0xcd kvm_sregs2;
    KVM_GET_XSAVE2 ior 0xcf kvm_xsave;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers as a tracer prints them (strace's table of KVM ioctls on x86-64).
    #[test]
    fn known_values() {
        for (nr, want) in [
            (KVM_GET_API_VERSION, 0xae00),
            (KVM_CREATE_VM, 0xae01),
            (KVM_RUN, 0xae80),
            (KVM_SET_USER_MEMORY_REGION, 0x4020_ae46),
            (KVM_GET_REGS, 0x8090_ae81),
            (KVM_SET_REGS, 0x4090_ae82),
            (KVM_GET_SREGS, 0x8138_ae83),
            (KVM_GET_SUPPORTED_CPUID, 0xc008_ae05),
            (KVM_SET_CPUID2, 0x4008_ae90),
            (KVM_IRQ_LINE, 0x4008_ae61),
            (KVM_IRQ_LINE_STATUS, 0xc008_ae67),
            (KVM_GET_CLOCK, 0x8030_ae7c),
            (KVM_IRQFD, 0x4020_ae76),
            (KVM_IOEVENTFD, 0x4040_ae79),
            (KVM_GET_XSAVE, 0x9000_aea4),
            (KVM_GET_LAPIC, 0x8400_ae8e),
            (KVM_GET_SREGS2, 0x8140_aecc),
            (KVM_X86_SET_MSR_FILTER, 0x4188_aec6),
            (KVM_GET_NESTED_STATE, 0xc080_aebe),
        ] {
            assert_eq!(nr, want, "{want:#x}");
        }
    }

    #[test]
    fn no_two_alike() {
        for (i, a) in ALL.iter().enumerate() {
            for b in &ALL[i + 1..] {
                assert_ne!(a.1, b.1, "{} and {}", a.0, b.0);
            }
        }
    }
}
