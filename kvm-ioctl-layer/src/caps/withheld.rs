//! The capabilities that KVM on x86 can answer and the software backend does not, each with its reason.
//!
//! A capability that comes to be offered leaves this table. Not here: other architectures' capabilities, which an x86 kernel answers with
//! 0 too.

use kvm_api::uapi::*;

macro_rules! withheld {
    ($($cap:ident $why:literal;)*) => {
        /// Name, number, reason.
        pub const WITHHELD: &[(&str, u32, &str)] = &[$((stringify!($cap), $cap, $why)),*];
    };
}

withheld! {
    KVM_CAP_PV_MMU "removed from KVM in 2.6.33";
    KVM_CAP_IOMMU "device assignment by KVM itself, removed; VFIO replaced it";
    KVM_CAP_PCI_2_3 "device assignment by KVM itself, removed";
    KVM_CAP_ASSIGN_DEV_IRQ "device assignment by KVM itself, removed";
    KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP "x86 has no writes outside vCPUs that rings could not tell";
    KVM_CAP_PCI_SEGMENT "device assignment by KVM itself, removed";
    KVM_CAP_ONE_REG "x86 has it from Linux 6.18 on; state travels by the older ioctls";
    KVM_CAP_NESTED_STATE "no nested guests yet";
    KVM_CAP_HYPERV "Hyper-V's interface is not offered";
    KVM_CAP_HYPERV_VAPIC "Hyper-V's interface is not offered";
    KVM_CAP_HYPERV_SPIN "Hyper-V's interface is not offered";
    KVM_CAP_HYPERV_TIME "Hyper-V's interface is not offered";
    KVM_CAP_HYPERV_SYNIC "Hyper-V's interface is not offered";
    KVM_CAP_HYPERV_SYNIC2 "Hyper-V's interface is not offered";
    KVM_CAP_HYPERV_VP_INDEX "Hyper-V's interface is not offered";
    KVM_CAP_HYPERV_EVENTFD "Hyper-V's interface is not offered";
    KVM_CAP_HYPERV_TLBFLUSH "Hyper-V's interface is not offered";
    KVM_CAP_HYPERV_SEND_IPI "Hyper-V's interface is not offered";
    KVM_CAP_HYPERV_CPUID "Hyper-V's interface is not offered";
    KVM_CAP_SYS_HYPERV_CPUID "Hyper-V's interface is not offered";
    KVM_CAP_HYPERV_ENFORCE_CPUID "Hyper-V's interface is not offered";
    KVM_CAP_HYPERV_DIRECT_TLBFLUSH "no nested guests yet";
    KVM_CAP_HYPERV_ENLIGHTENED_VMCS "no nested guests yet";
    KVM_CAP_ASYNC_PF "guest memory is the caller's own: a page that is missing is waited for";
    KVM_CAP_ASYNC_PF_INT "as KVM_CAP_ASYNC_PF";
    KVM_CAP_PMU_EVENT_FILTER "the guest has no performance counters";
    KVM_CAP_PMU_EVENT_MASKED_EVENTS "the guest has no performance counters";
    KVM_CAP_PMU_CAPABILITY "the guest has no performance counters";
    KVM_CAP_SGX_ATTRIBUTE "no SGX in the guest";
    KVM_CAP_VM_COPY_ENC_CONTEXT_FROM "no memory encryption";
    KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM "no memory encryption";
    KVM_CAP_MEMORY_ATTRIBUTES "no private memory";
    KVM_CAP_GUEST_MEMFD "no private memory";
    KVM_CAP_X86_NOTIFY_VMEXIT "no window in which events cannot be taken: the engine looks for them itself";
    KVM_CAP_VM_DISABLE_NX_HUGE_PAGES "no huge sptes, and so no mitigation to be switched off";
    KVM_CAP_LAST_CPU "the host's processor of the last entry says nothing here";
}
