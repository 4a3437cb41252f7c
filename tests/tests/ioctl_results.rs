//! Thousands of raw ioctls, good and bad: the software backend answers as the host's `/dev/kvm` does, number by number and
//! byte by byte, and the library of `softkvm exec` as the layer in process.
//!
//! The questions are in `softkvm_tests::ioctls`. Where an answer differs on purpose, the question is in [`DEVIATIONS`], which
//! docs/deviations.md explains.

use kvm_bindings::*;
use softkvm_tests::ioctls::front::Dispatch;
use softkvm_tests::ioctls::kernel::Kernel;
use softkvm_tests::ioctls::{Line, SECTIONS, ask};
use softkvm_tests::program;
use softkvm_tests::skip::skip;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Capabilities that one side has and the other has not, or has more of: KVM_CHECK_EXTENSION tells what each can do.
const OFFERS: &[u32] = &[
    KVM_CAP_VAPIC,
    KVM_CAP_NR_VCPUS,
    KVM_CAP_NR_MEMSLOTS,
    KVM_CAP_PCI_SEGMENT,
    KVM_CAP_INTR_SHADOW,
    KVM_CAP_ASYNC_PF,
    KVM_CAP_TSC_CONTROL,
    KVM_CAP_ONE_REG,
    KVM_CAP_DEVICE_CTRL,
    KVM_CAP_XEN_HVM,
    KVM_CAP_DISABLE_QUIRKS,
    KVM_CAP_X86_SMM,
    KVM_CAP_MULTI_ADDRESS_SPACE,
    KVM_CAP_X2APIC_API,
    KVM_CAP_X86_DISABLE_EXITS,
    KVM_CAP_NESTED_STATE,
    KVM_CAP_MSR_PLATFORM_INFO,
    KVM_CAP_PMU_EVENT_FILTER,
    KVM_CAP_PMU_CAPABILITY,
    KVM_CAP_HALT_POLL,
    KVM_CAP_ASYNC_PF_INT,
    KVM_CAP_LAST_CPU,
    KVM_CAP_SMALLER_MAXPHYADDR,
    KVM_CAP_STEAL_TIME,
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
    KVM_CAP_DIRTY_LOG_RING,
    KVM_CAP_X86_BUS_LOCK_EXIT,
    KVM_CAP_SET_GUEST_DEBUG2,
    KVM_CAP_VM_COPY_ENC_CONTEXT_FROM,
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
const LATER: &str = "a later kernel's than the ABI that is followed";
const HERE: &str = "offered here, and not there, or the other way round";

/// Questions, by how their names begin (or by a part in angle brackets), whose answers may differ from a host's, and why.
const DEVIATIONS: &[(&str, &str)] = &[
    ("numbers: KVM_GET_NR_MMU_PAGES", "of the document of 2010; kernels since 6.3 have it no more"),
    ("vm values: mmu pages", "as above"),
    ("<KVM_SET_PMU_EVENT_FILTER>", HERE),
    ("vm values: an event filter", HERE),
    ("numbers: KVM_GET_STATS_FD", HERE),
    ("numbers: KVM_CREATE_GUEST_MEMFD", HERE),
    ("<KVM_XEN_HVM_CONFIG>", HERE),
    ("numbers: KVM_RESET_DIRTY_RINGS", HERE),
    ("numbers: KVM_SMI", HERE),
    ("<: smi>", HERE),
    ("<: smm>", HERE),
    ("memory: address space", HERE),
    ("<another address space>", HERE),
    ("<KVM_SET_VAPIC_ADDR>", "KVM_CAP_VAPIC"),
    ("<: vapic>", "KVM_CAP_VAPIC"),
    ("<KVM_X86_SET_MCE>", HERE),
    ("vcpu values: mce", HERE),
    ("<ONE_REG>", LATER),
    ("<one reg>", LATER),
    ("<NESTED_STATE>", PVM),
    ("system: feature msr", PVM),
    ("vm values: clock flags", "whether the host's clock is stable"),
    ("<cr4 bit>", "features that the host's processor or its KVM lacks"),
    ("sregs: paged mode, all of it", PVM),
    ("<: exception 3 >", OURS),
    ("<shadow>", OURS),
    ("<smm, back>", HERE),
    ("<smi pending, back>", HERE),
    ("<smi latched, back>", HERE),
    ("<triple fault, back>", OURS),
    ("registers: back", OURS),
    ("registers: after dr", OURS),
    ("registers: after flags", OURS),
    ("registers: mxcsr", OURS),
    ("registers: xcr0", "features that the host's processor or its KVM lacks"),
    ("lapic: apic base", PVM),
    ("msrs: 0x", "registers that not every vendor's KVM has, or takes all values for"),
    ("<tsc of>", "KVM_CAP_TSC_CONTROL"),
    ("run: tsc_khz after a run", "KVM_CAP_TSC_CONTROL"),
    ("cpuid: back", PVM),
    ("cpuid: rows back", PVM),
    ("run: the same CPUID", PVM),
];

fn excused(name: &str) -> bool {
    let capability = |section: &str| {
        let number: String = name.strip_prefix(section)?.chars().take_while(char::is_ascii_digit).collect();
        number.parse::<u32>().ok()
    };
    let number = ["capabilities: ", "enable_cap: ", "order: capability "].iter().find_map(|s| capability(s));
    if number.is_some_and(|n| OFFERS.contains(&n)) {
        return true;
    }
    DEVIATIONS.iter().any(|(question, _)| {
        match question.strip_prefix('<').and_then(|q| q.strip_suffix('>')) {
            Some(part) => name.contains(part),
            None => name.starts_with(question),
        }
    })
}

/// The layer's answers.
fn software() -> &'static [Line] {
    static LINES: OnceLock<Vec<Line>> = OnceLock::new();
    LINES.get_or_init(|| ask(&Dispatch::default()))
}

/// What differs, a line each.
fn differences(ours: &[Line], theirs: &[Line], excused: fn(&str) -> bool) -> Vec<String> {
    assert_eq!(ours.len(), theirs.len(), "as many answers");
    ours.iter()
        .zip(theirs)
        .filter(|(o, t)| o != t && !excused(&o.name))
        .map(|(o, t)| {
            assert_eq!(o.name, t.name, "the same questions");
            let bytes: Vec<String> = (0..o.bytes.len().min(t.bytes.len()))
                .filter(|n| o.bytes[*n] != t.bytes[*n])
                .map(|n| format!("{n:#x}: {:02x} {:02x}", o.bytes[n], t.bytes[n]))
                .collect();
            format!("{}: ours {}, theirs {} {}", o.name, o.result, t.result, bytes.join(", "))
        })
        .collect()
}

#[test]
fn as_the_host_answers() {
    let Some(kernel) = Kernel::present() else {
        return skip("ioctl_results", false, "no usable /dev/kvm");
    };
    let found = differences(software(), &ask(&kernel), excused);
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
}

#[test]
fn under_exec_as_in_process() {
    let softkvm = program::path().expect("softkvm builds");
    let out = Command::new("timeout")
        .arg("120")
        .arg(softkvm)
        .args(["exec", "--", env!("CARGO_BIN_EXE_ioctl_results")])
        .stdin(Stdio::null())
        .output()
        .expect("timeout runs");
    assert!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout);
    let lines: Vec<Line> = text.lines().map(|l| Line::parse(l).unwrap_or_else(|| panic!("{l}"))).collect();
    // Each process measures the TSC's frequency for itself.
    let found = differences(software(), &lines, |name| {
        ["numbers: KVM_GET_TSC_KHZ on vm", "order: registers without the VM's descriptor"].contains(&name)
    });
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
}

#[test]
fn every_section_asks() {
    for (section, _) in SECTIONS {
        let lines = software().iter().filter(|l| l.name.starts_with(&format!("{section}: "))).count();
        assert!(lines > 3, "{section}: {lines}");
    }
    let mut names: Vec<_> = SECTIONS.iter().map(|s| s.0).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), SECTIONS.len(), "two sections of one name");
}
