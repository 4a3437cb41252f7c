//! Questions whose answers may differ from a kernel's, and why; docs/deviations.md and docs/nested.md explain them.
//!
//! The questions are in the sections beside this file. A row is as narrow as it can be: what it excuses, nobody looks at.

use super::Line;
use kvm_bindings::*;

/// Whose answers a row is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// Any kernel's.
    Any,
    /// Linux 6.12 with kvm-amd on the processor of QEMU's TCG (`tests/nested/run`).
    Nested,
    /// A kernel's before or after 6.12, a vendor module's without hardware (kvm_pvm), another processor's.
    Others,
}
use Whose::{Any, Nested, Others};

/// Capabilities that one side has and the other has not, or has more of: KVM_CHECK_EXTENSION tells what each can do.
const OFFERS: &[u32] = &[
    KVM_CAP_VAPIC,
    KVM_CAP_NR_VCPUS,
    KVM_CAP_NR_MEMSLOTS,
    KVM_CAP_PCI_SEGMENT,
    KVM_CAP_HYPERV,
    KVM_CAP_HYPERV_VAPIC,
    KVM_CAP_HYPERV_SPIN,
    KVM_CAP_INTR_SHADOW,
    KVM_CAP_ASYNC_PF,
    KVM_CAP_TSC_CONTROL,
    KVM_CAP_MAX_VCPUS, // How the kernel was built.
    KVM_CAP_ONE_REG,
    KVM_CAP_DEVICE_CTRL,
    KVM_CAP_XEN_HVM,
    KVM_CAP_HYPERV_TIME,
    KVM_CAP_DISABLE_QUIRKS,
    KVM_CAP_X86_SMM,
    KVM_CAP_MULTI_ADDRESS_SPACE,
    KVM_CAP_HYPERV_SYNIC,
    KVM_CAP_MAX_VCPU_ID, // As above.
    KVM_CAP_X2APIC_API,
    KVM_CAP_X86_DISABLE_EXITS,
    KVM_CAP_HYPERV_SYNIC2,
    KVM_CAP_HYPERV_VP_INDEX,
    KVM_CAP_HYPERV_EVENTFD,
    KVM_CAP_HYPERV_TLBFLUSH,
    KVM_CAP_NESTED_STATE,
    KVM_CAP_MSR_PLATFORM_INFO,
    KVM_CAP_HYPERV_SEND_IPI,
    KVM_CAP_HYPERV_ENLIGHTENED_VMCS,
    KVM_CAP_HYPERV_CPUID,
    KVM_CAP_PMU_EVENT_FILTER,
    KVM_CAP_HYPERV_DIRECT_TLBFLUSH,
    KVM_CAP_PMU_CAPABILITY,
    KVM_CAP_HALT_POLL,
    KVM_CAP_ASYNC_PF_INT,
    KVM_CAP_LAST_CPU,
    KVM_CAP_SMALLER_MAXPHYADDR,
    KVM_CAP_STEAL_TIME,
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
    KVM_CAP_SYS_HYPERV_CPUID,
    KVM_CAP_SGX_ATTRIBUTE,
    KVM_CAP_DIRTY_LOG_RING,
    KVM_CAP_X86_BUS_LOCK_EXIT,
    KVM_CAP_SET_GUEST_DEBUG2,
    KVM_CAP_VM_COPY_ENC_CONTEXT_FROM,
    KVM_CAP_HYPERV_ENFORCE_CPUID,
    KVM_CAP_EXIT_HYPERCALL,
    KVM_CAP_BINARY_STATS_FD,
    KVM_CAP_EXIT_ON_EMULATION_FAILURE,
    KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM,
    KVM_CAP_XSAVE2,
    KVM_CAP_DISABLE_QUIRKS2,
    KVM_CAP_VM_TSC_CONTROL,
    KVM_CAP_SYSTEM_EVENT_DATA,
    KVM_CAP_VM_DISABLE_NX_HUGE_PAGES,
    KVM_CAP_X86_NOTIFY_VMEXIT,
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    KVM_CAP_PMU_EVENT_MASKED_EVENTS,
    KVM_CAP_MEMORY_FAULT_INFO,
    KVM_CAP_MEMORY_ATTRIBUTES,
    KVM_CAP_GUEST_MEMFD,
    KVM_CAP_PRE_FAULT_MEMORY,
    KVM_CAP_X86_APIC_BUS_CYCLES_NS,
    KVM_CAP_X86_GUEST_MODE,
    244, // Flags of guest_memfd, in kernels later than the bindings.
];

const PVM: &str = "kvm_pvm, a vendor module without hardware, is not what mainline's do";
const OURS: &str = "docs/deviations.md";
const HERE: &str = "offered here, and not there, or the other way round";
const HOST: &str = "what the host's processor has, or its KVM passes on";
const LATER: &str = "as a later kernel than that has it";
const SVM: &str = "kvm-amd's own";
const BUILT: &str = "how many vCPUs a kernel is built for";

/// Questions by how their names begin, or by a part in angle brackets.
const ROWS: &[(&str, Whose, &str)] = &[
    ("numbers: KVM_GET_NR_MMU_PAGES", Any, OURS),
    ("vm values: mmu pages", Any, OURS),
    ("<KVM_SET_PMU_EVENT_FILTER>", Any, HERE),
    ("vm values: an event filter", Any, HERE),
    ("numbers: KVM_GET_STATS_FD", Others, HERE),
    ("numbers: KVM_CREATE_GUEST_MEMFD", Others, HERE),
    ("<KVM_XEN_HVM_CONFIG>", Others, HERE),
    ("numbers: KVM_RESET_DIRTY_RINGS", Others, HERE),
    ("numbers: KVM_SMI", Others, HERE),
    ("<KVM_MEMORY_ENCRYPT_OP>", Nested, LATER),
    // KVM_SET_TSC_KHZ of a VM with vCPUs, and what it has left.
    ("numbers: KVM_SET_TSC_KHZ on vm", Nested, LATER),
    ("numbers: KVM_GET_TSC_KHZ on vm", Nested, "the VM's was changed by the question before"),
    ("create: tsc_khz after a vcpu", Nested, LATER),
    ("create: vcpu 0x1000", Nested, BUILT),
    ("create: max vcpu id 0x1001", Nested, BUILT),
    ("create: and again", Nested, BUILT),
    ("create: and another", Nested, BUILT),
    ("<: smi>", Others, HERE),
    ("<: smm>", Others, HERE),
    ("<: type 4>", Nested, "Hyper-V's"),
    ("memory: address space", Others, HERE),
    ("<another address space>", Others, HERE),
    ("<KVM_SET_VAPIC_ADDR>", Others, "KVM_CAP_VAPIC"),
    ("<: vapic>", Others, "KVM_CAP_VAPIC"),
    ("<KVM_X86_SET_MCE>", Others, HERE),
    ("vcpu values: mce", Others, HERE),
    ("<ONE_REG>", Others, LATER),
    ("<one reg>", Others, LATER),
    ("<NESTED_STATE>", Others, PVM),
    ("vm values: clock flags", Any, "whether the host's clock is stable"),
    ("<cr4 bit>", Others, HOST),
    // Types of CS, SS and TR.
    ("sregs: real mode, all of it", Nested, SVM),
    ("sregs: protected mode, all of it", Nested, SVM),
    ("sregs: paged mode, all of it", Any, SVM),
    ("sregs: long mode, all of it", Nested, SVM),
    ("<: exception 3 >", Any, OURS),
    ("<shadow>", Any, OURS),
    ("<smi latched, back>", Any, OURS),
    ("<apic: triple fault, back>", Any, "what an INIT before it has left"),
    ("registers: back", Any, OURS),
    ("registers: after dr", Any, OURS),
    ("registers: after flags bit 10", Any, OURS),
    ("registers: mxcsr", Any, OURS),
    ("registers: xcr0 0xe7", Nested, HOST),
    ("registers: xcr0", Others, HOST),
    ("xsave: xstate_bv bit 5", Nested, HOST),
    ("xsave: xstate_bv bit 6", Nested, HOST),
    ("xsave: xstate_bv bit 7", Nested, HOST),
    ("xsave: xstate_bv bit 9", Nested, HOST),
    ("<tsc of 1>", Any, "KVM_CAP_TSC_CONTROL"),
    ("<tsc of>", Others, "KVM_CAP_TSC_CONTROL"),
    ("run: tsc_khz after a run", Any, "KVM_CAP_TSC_CONTROL"),
    ("order: registers without the VM's descriptor", Any, "measured at each start"),
    ("run: valid_regs bit 63", Nested, "that kernel looks at 32 of the 64 bits"),
    ("run: dirty_regs bit 63", Nested, "that kernel looks at 32 of the 64 bits"),
    ("run: a feature msr after a run", Others, PVM),
    ("cpuid: back", Others, PVM),
    ("cpuid: rows back", Others, PVM),
    ("run: the same CPUID", Others, PVM),
];

/// What is asked about an MSR.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Read,
    Reset,
    Write(u64),
    Saved,
    Feature,
}
use Asked::{Feature, Read, Reset, Saved, Write};

type MsrRow = (&'static [u32], fn(Asked) -> bool, Whose, &'static str);

/// Registers, and which questions about them.
const MSR_ROWS: &[MsrRow] = &[
    (&[0x1b, 0x200, 0x201, 0x250, 0x2ff], |a| matches!(a, Saved), Any, OURS),
    (&[0x1d9, 0xda0, 0xc000_0080, 0xc000_0100, 0xc000_0101, 0xc001_1029], |a| matches!(a, Saved), Any, OURS),
    (&[0x3a], |a| matches!(a, Write(1)), Any, "VMX's; kvm-intel takes the lock bit"),
    (&[0x3a, 0x48, 0x9e, 0xc000_0103], |a| matches!(a, Saved), Others, PVM),
    (&[0x3a], |a| matches!(a, Read | Reset | Write(0)), Others, PVM),
    (&[0x48], |a| matches!(a, Write(8..)), Any, OURS),
    (&[0x8b], |a| matches!(a, Reset), Any, "the vendor's where CPUID names none"),
    (&[0x9e], |_| true, Others, PVM),
    (&[0xce], |a| matches!(a, Feature), Others, "a feature MSR of later kernels"),
    (&[0x10a], |a| matches!(a, Reset), Any, OURS),
    (&[0x10a], |a| matches!(a, Write(_)), Others, PVM),
    (&[0x10b], |a| matches!(a, Write(0 | 1)), Nested, HOST),
    (&[0x10b, 0x140, 0x277, 0xda0], |a| matches!(a, Write(_)), Others, PVM),
    (&[0x1a0], |a| matches!(a, Reset), Any, OURS),
    (&[0x1d9], |a| matches!(a, Write(2..)), Any, OURS),
    (&[0x4b56_4d06], |a| matches!(a, Write(0)), Any, OURS),
    (&[0x4000_0000, 0x4000_0001], |_| true, Nested, "Hyper-V's"),
    (&[0xc000_0104, 0xc001_0117], |a| matches!(a, Saved), Any, "nested SVM's"),
    (&[0xc000_0104], |a| matches!(a, Read | Reset | Write(0)), Any, "nested SVM's"),
    (&[0xc001_1029], |a| matches!(a, Reset), Any, HOST),
    (&[0xc001_1029], |a| matches!(a, Read | Write(_) | Feature), Others, PVM),
];

/// The MSR that a question of the section is about, and what it asks.
fn msr(name: &str) -> Option<(u32, Asked)> {
    let rest = name.strip_prefix("msrs: ")?;
    let rest = ["no cpuid: ", "the second: "].iter().find_map(|who| rest.strip_prefix(who)).unwrap_or(rest);
    let (index, what) = rest.strip_prefix("0x")?.split_once(' ')?;
    let asked = match what {
        "read" => Read,
        "at reset" => Reset,
        "is saved" => Saved,
        "is a feature" => Feature,
        _ => {
            let value = what.strip_prefix("= ")?;
            match value.strip_prefix("0x") {
                Some(hex) => Write(u64::from_str_radix(hex, 16).ok()?),
                None => Write(value.parse().ok()?),
            }
        }
    };
    Some((u32::from_str_radix(index, 16).ok()?, asked))
}

/// The capability that a question is about.
fn capability(name: &str) -> Option<u32> {
    ["capabilities: ", "enable_cap: ", "order: capability "].iter().find_map(|section| {
        let number: String = name.strip_prefix(section)?.chars().take_while(char::is_ascii_digit).collect();
        number.parse().ok()
    })
}

/// The deviations, with what each has excused.
#[derive(Debug)]
pub struct Excuses {
    nested: bool,
    rows: Vec<u32>,
    msr_rows: Vec<u32>,
}

impl Excuses {
    /// For the guest of `tests/nested/run`, or for any host.
    pub fn new(nested: bool) -> Excuses {
        Excuses { nested, rows: vec![0; ROWS.len()], msr_rows: vec![0; MSR_ROWS.len()] }
    }

    /// Whether the answers to a question may differ.
    fn excuse(&mut self, name: &str) -> bool {
        if capability(name).is_some_and(|n| OFFERS.contains(&n)) {
            return true;
        }
        let nested = self.nested;
        let counts = |whose| !nested || whose != Others;
        let mut excused = false;
        for ((pattern, whose, _), used) in ROWS.iter().zip(&mut self.rows) {
            let matches = match pattern.strip_prefix('<').and_then(|p| p.strip_suffix('>')) {
                Some(part) => name.contains(part),
                None => name.starts_with(pattern),
            };
            if matches && counts(*whose) {
                *used += 1;
                excused = true;
            }
        }
        let Some((index, asked)) = msr(name) else { return excused };
        for ((indices, which, whose, _), used) in MSR_ROWS.iter().zip(&mut self.msr_rows) {
            if indices.contains(&index) && which(asked) && counts(*whose) {
                *used += 1;
                excused = true;
            }
        }
        excused
    }

    /// Rows that should have excused something and have not.
    pub fn idle(&self) -> Vec<String> {
        let rows = ROWS.iter().zip(&self.rows).filter(|(r, used)| **used == 0 && r.1 != Others);
        let msrs = MSR_ROWS.iter().zip(&self.msr_rows).filter(|(r, used)| **used == 0 && r.2 != Others);
        rows.map(|(r, _)| r.0.into()).chain(msrs.map(|(r, _)| format!("{:x?}: {}", r.0, r.3))).collect()
    }

    /// What differs and is not excused, a line each; with `all`, the rest too.
    pub fn differences(&mut self, ours: &[Line], theirs: &[Line], all: bool) -> Vec<String> {
        assert_eq!(ours.len(), theirs.len(), "as many answers");
        let mut found = Vec::new();
        for (o, t) in ours.iter().zip(theirs).filter(|(o, t)| o != t) {
            assert_eq!(o.name, t.name, "the same questions");
            let excused = self.excuse(&o.name);
            if all || !excused {
                found.push(difference(o, t));
            }
        }
        found
    }
}

/// One difference as text.
pub fn difference(ours: &Line, theirs: &Line) -> String {
    let bytes: Vec<String> = (0..ours.bytes.len().min(theirs.bytes.len()))
        .filter(|n| ours.bytes[*n] != theirs.bytes[*n])
        .map(|n| format!("{n:#x}: {:02x} {:02x}", ours.bytes[n], theirs.bytes[n]))
        .collect();
    format!("{}: ours {}, theirs {} {}", ours.name, ours.result, theirs.result, bytes.join(", "))
}
