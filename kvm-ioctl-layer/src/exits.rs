//! `struct kvm_run` as a table (KVM api, section 5): every exit reason, and every field outside the union, what it means here
//! and where today's text differs from 2010's. Who fills the fields is `run_page` and `soft::vcpu`.

use kvm_api::uapi::*;

/// Whether a vCPU leaves KVM_RUN for a reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaves {
    /// It does; this capability says so (0: basic).
    With(u32),
    /// It never does.
    Never,
}

/// An exit reason.
pub struct Exit {
    /// The constant's name.
    pub name: &'static str,
    /// Its number.
    pub reason: u32,
    /// Whether it happens.
    pub leaves: Leaves,
    /// The union's member that describes it; empty without.
    pub member: &'static str,
    /// When, or why never.
    pub note: &'static str,
}

macro_rules! exits {
    ($($name:ident $leaves:expr, $member:literal, $note:literal;)*) => {
        /// All exit reasons of kvm-bindings, in their order.
        pub const EXITS: &[Exit] = &[$(Exit {
            name: stringify!($name), reason: $name, leaves: $leaves, member: $member, note: $note,
        }),*];
    };
}

const BASIC: Leaves = Leaves::With(0);
const NEVER: Leaves = Leaves::Never;

exits! {
    KVM_EXIT_UNKNOWN NEVER, "hw", "hardware's reasons; there is none here that is not known";
    KVM_EXIT_EXCEPTION NEVER, "ex", "unused, as the text says";
    KVM_EXIT_IO BASIC, "io", "a port that no device inside claims; INS and OUTS with as many accesses as the page of data holds; complete only after the next KVM_RUN";
    KVM_EXIT_HYPERCALL Leaves::With(KVM_CAP_EXIT_HYPERCALL), "hypercall", "the hypercalls that KVM_ENABLE_CAP names; 2010's text says unused";
    KVM_EXIT_DEBUG Leaves::With(KVM_CAP_SET_GUEST_DEBUG), "debug", "what KVM_SET_GUEST_DEBUG asked for; 2010's text says unused";
    KVM_EXIT_HLT Leaves::With(KVM_CAP_HLT), "", "HLT without an interrupt controller inside";
    KVM_EXIT_MMIO BASIC, "mmio", "memory without a slot, or a write to a read-only one; at most 8 bytes at a time; complete only after the next KVM_RUN";
    KVM_EXIT_IRQ_WINDOW_OPEN BASIC, "", "request_interrupt_window, and an interrupt can be injected";
    KVM_EXIT_SHUTDOWN BASIC, "", "a triple fault";
    KVM_EXIT_FAIL_ENTRY NEVER, "fail_entry", "every state that the ioctls take can be entered";
    KVM_EXIT_INTR BASIC, "", "beside EINTR: a signal, or immediate_exit";
    KVM_EXIT_SET_TPR BASIC, "", "CR8 was lowered without an interrupt controller inside";
    KVM_EXIT_TPR_ACCESS Leaves::With(KVM_CAP_VAPIC), "tpr_access", "an access to the task-priority register, with KVM_TPR_ACCESS_REPORTING; 2010's text: to be documented";
    KVM_EXIT_S390_SIEIC NEVER, "s390_sieic", "s390";
    KVM_EXIT_S390_RESET NEVER, "s390_reset_flags", "s390";
    KVM_EXIT_DCR NEVER, "dcr", "PowerPC";
    KVM_EXIT_NMI NEVER, "", "a processor's NMI window; none is needed here";
    KVM_EXIT_INTERNAL_ERROR BASIC, "internal", "an instruction that the engine does not have, or a defect of ours";
    KVM_EXIT_OSI NEVER, "osi", "PowerPC";
    KVM_EXIT_PAPR_HCALL NEVER, "papr_hcall", "PowerPC";
    KVM_EXIT_S390_UCONTROL NEVER, "s390_ucontrol", "s390";
    KVM_EXIT_WATCHDOG NEVER, "", "PowerPC";
    KVM_EXIT_S390_TSCH NEVER, "s390_tsch", "s390";
    KVM_EXIT_EPR NEVER, "epr", "PowerPC";
    KVM_EXIT_SYSTEM_EVENT NEVER, "system_event", "Hyper-V's crash and SEV's termination, neither of which is offered";
    KVM_EXIT_S390_STSI NEVER, "s390_stsi", "s390";
    KVM_EXIT_IOAPIC_EOI Leaves::With(KVM_CAP_SPLIT_IRQCHIP), "eoi", "an EOI that the program's I/O APIC must see";
    KVM_EXIT_HYPERV NEVER, "hyperv", "Hyper-V is not offered";
    KVM_EXIT_ARM_NISV NEVER, "arm_nisv", "Arm";
    KVM_EXIT_X86_RDMSR Leaves::With(KVM_CAP_X86_USER_SPACE_MSR), "msr", "RDMSR of what KVM_ENABLE_CAP or the filter leaves to the program";
    KVM_EXIT_X86_WRMSR Leaves::With(KVM_CAP_X86_USER_SPACE_MSR), "msr", "WRMSR, likewise";
    KVM_EXIT_DIRTY_RING_FULL Leaves::With(KVM_CAP_DIRTY_LOG_RING), "", "the vCPU's dirty ring is nearly full";
    KVM_EXIT_AP_RESET_HOLD NEVER, "", "SEV-ES";
    KVM_EXIT_X86_BUS_LOCK Leaves::With(KVM_CAP_X86_BUS_LOCK_EXIT), "", "a LOCKed access across cache lines has been made";
    KVM_EXIT_XEN Leaves::With(KVM_CAP_XEN_HVM), "xen", "a Xen hypercall";
    KVM_EXIT_RISCV_SBI NEVER, "riscv_sbi", "RISC-V";
    KVM_EXIT_RISCV_CSR NEVER, "riscv_csr", "RISC-V";
    KVM_EXIT_NOTIFY Leaves::With(KVM_CAP_X86_NOTIFY_VMEXIT), "notify", "a guest without an interrupt window for too long";
    KVM_EXIT_LOONGARCH_IOCSR NEVER, "iocsr_io", "LoongArch";
    KVM_EXIT_MEMORY_FAULT Leaves::With(KVM_CAP_MEMORY_FAULT_INFO), "memory_fault", "beside EFAULT: which guest memory";
}

/// A field outside the union.
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// In, out or both.
    pub direction: &'static str,
    /// What it does here.
    pub note: &'static str,
}

const fn field(name: &'static str, direction: &'static str, note: &'static str) -> Field {
    Field { name, direction, note }
}

/// The fields, in their order.
pub const FIELDS: &[Field] = &[
    field(
        "request_interrupt_window",
        "in",
        "leave as soon as an interrupt can be injected; without an interrupt controller inside",
    ),
    field(
        "immediate_exit",
        "in",
        "EINTR at once, after what is incomplete was completed; 2010's text has padding here",
    ),
    field("exit_reason", "out", "below"),
    field("ready_for_interrupt_injection", "out", "KVM_INTERRUPT can be taken now"),
    field("if_flag", "out", "RFLAGS.IF"),
    field("flags", "out", "KVM_RUN_X86_SMM; 2010's text has padding here"),
    field("cr8", "in, out", "the task priority; read at entry without an interrupt controller inside"),
    field("apic_base", "in, out", "IA32_APIC_BASE; read at entry without an interrupt controller inside"),
    field("kvm_valid_regs, kvm_dirty_regs, s.regs", "in, out", "KVM_CAP_SYNC_REGS; after 2010's text"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_once_and_in_order() {
        for (n, exit) in EXITS.iter().enumerate() {
            assert_eq!(exit.reason as usize, n, "{}", exit.name);
        }
    }

    /// The code that makes exits and this table name the same ones.
    #[test]
    fn those_that_happen_are_made() {
        let made = concat!(include_str!("soft/vcpu/run.rs"), include_str!("soft/memory.rs"));
        let named = |name: &str| {
            let other = |c: char| c.is_ascii_alphanumeric() || c == '_';
            made.match_indices(name).any(|(at, _)| !made[at + name.len()..].starts_with(other))
        };
        for exit in EXITS {
            let happens = match exit.leaves {
                Leaves::With(cap) => cap == 0 || crate::caps::answer(cap) > 0,
                Leaves::Never => false,
            };
            assert_eq!(happens, named(exit.name), "{}", exit.name);
        }
    }
}
