//! `softkvm exec --trace`: each ioctl, its argument and its result, a line each, in the manner of strace.

use crate::raw::{self, sys};
use crate::registry::Held;
use core::fmt::Write;
use core::sync::atomic::AtomicI32;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use kvm_api::errno::{Errno, Result};
use kvm_api::nr::*;
use kvm_api::uapi::*;
use kvm_ioctl_layer::dispatch::Call;
use kvm_ioctl_layer::table;
use kvm_ioctl_layer::user_mem::OwnMemory;

const UNKNOWN: i32 = -2;
const OFF: i32 = -1;
/// Where the lines go.
static FILE: AtomicI32 = AtomicI32::new(UNKNOWN);

fn file() -> i32 {
    match FILE.load(Relaxed) {
        UNKNOWN => {
            let fd = open();
            // Two first ones: the second's descriptor stays open, unused.
            let _ = FILE.compare_exchange(UNKNOWN, fd, SeqCst, SeqCst);
            FILE.load(Relaxed)
        }
        fd => fd,
    }
}

fn open() -> i32 {
    let Some(path) = crate::environment::trace() else { return OFF };
    let fd = if path.to_bytes() == b"-" {
        // The program may close its stderr.
        // SAFETY: numbers only.
        unsafe { sys!(SYS_fcntl, 2, libc::F_DUPFD_CLOEXEC, crate::private::base()) as i32 }
    } else {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_CLOEXEC;
        // SAFETY: a C string.
        match unsafe { sys!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o666) as i32 } {
            fd if fd >= 0 => return crate::private::hide(fd),
            e => e,
        }
    };
    if fd < 0 {
        return OFF;
    }
    crate::private::remember(fd);
    fd
}

/// What an ioctl is given, before it changes it.
pub fn before(_held: &Held, request: u32, arg: u64) -> Option<String> {
    if file() < 0 {
        return None;
    }
    let mut text = String::new();
    argument(&mut text, request, arg);
    Some(text)
}

/// The line of an ioctl.
pub fn after(before: Option<String>, fd: i32, held: &Held, request: u32, arg: u64, result: &Result<i32>) {
    let Some(argument) = before else { return };
    let mut line = format!("[{}] ioctl({fd}<{}>, ", raw::gettid(), held.link());
    match table::name(request) {
        Some(name) => line.push_str(name),
        None => _ = write!(line, "{request:#x}"),
    }
    _ = write!(line, ", {argument}");
    line.push_str(") = ");
    outcome(&mut line, held, request, arg, result);
    line.push('\n');
    raw::write_all(file(), line.as_bytes());
}

/// The line of an open.
pub fn opened(result: &Result<i32>) {
    if file() < 0 {
        return;
    }
    let mut line = format!("[{}] open(\"/dev/kvm\") = ", raw::gettid());
    number(&mut line, result);
    line.push('\n');
    raw::write_all(file(), line.as_bytes());
}

fn number(line: &mut String, result: &Result<i32>) {
    match result {
        Ok(v) => _ = write!(line, "{v}"),
        Err(Errno(e)) => {
            let text = std::io::Error::from_raw_os_error(*e).to_string();
            let text = text.split(" (os error").next().unwrap_or_default();
            let name = ERRORS.iter().find(|n| n.0 == *e).map_or("E?", |n| n.1);
            _ = write!(line, "-1 {name} ({text})");
        }
    }
}

macro_rules! errors {
    ($($name:ident)*) => { &[$((libc::$name, stringify!($name))),*] };
}

/// What ioctls fail with.
const ERRORS: &[(i32, &str)] = errors! {
    EPERM ENOENT EINTR EIO ENXIO E2BIG EBADF EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST ENODEV ENOTDIR EINVAL EMFILE ENOTTY
    ENOSPC ENOSYS EOVERFLOW EOPNOTSUPP
};

fn argument(text: &mut String, request: u32, arg: u64) {
    let call = Call { arg, memory: &OwnMemory };
    let known = match request {
        KVM_CHECK_EXTENSION => {
            match capability(arg) {
                Some(name) => text.push_str(name),
                None => _ = write!(text, "{arg}"),
            }
            true
        }
        KVM_SET_USER_MEMORY_REGION | KVM_SET_USER_MEMORY_REGION2 => call
            .input::<kvm_userspace_memory_region>()
            .map(|r| {
                _ = write!(
                    text,
                    "{{slot={}, flags={:#x}, guest_phys_addr={:#x}, memory_size={:#x}, userspace_addr={:#x}}}",
                    r.slot, r.flags, r.guest_phys_addr, r.memory_size, r.userspace_addr
                );
            })
            .is_ok(),
        KVM_SET_REGS => call.input::<kvm_regs>().map(|r| regs(text, &r)).is_ok(),
        KVM_SET_SREGS => call.input::<kvm_sregs>().map(|s| sregs(text, &s)).is_ok(),
        KVM_ENABLE_CAP => call
            .input::<kvm_enable_cap>()
            .map(|c| {
                let name = capability(u64::from(c.cap)).unwrap_or("?");
                _ = write!(text, "{{cap={name} ({}), flags={:#x}, args={:x?}}}", c.cap, c.flags, c.args);
            })
            .is_ok(),
        KVM_IRQ_LINE | KVM_IRQ_LINE_STATUS => call
            .input::<kvm_irq_level>()
            .map(|i| {
                let irq: u32 = kvm_ioctl_layer::user_mem::member(&i, 0);
                _ = write!(text, "{{irq={irq}, level={}}}", i.level);
            })
            .is_ok(),
        KVM_SET_MSRS | KVM_GET_MSRS => msrs(text, &call, request == KVM_SET_MSRS).is_ok(),
        KVM_IRQFD => call
            .input::<kvm_irqfd>()
            .map(|i| _ = write!(text, "{{fd={}, gsi={}, flags={:#x}}}", i.fd, i.gsi, i.flags))
            .is_ok(),
        KVM_IOEVENTFD => call
            .input::<kvm_ioeventfd>()
            .map(|i| {
                _ = write!(
                    text,
                    "{{datamatch={:#x}, addr={:#x}, len={}, fd={}, flags={:#x}}}",
                    i.datamatch, i.addr, i.len, i.fd, i.flags
                );
            })
            .is_ok(),
        KVM_SIGNAL_MSI => call
            .input::<kvm_msi>()
            .map(|m| {
                _ = write!(text, "{{address={:#x}{:08x}, data={:#x}}}", m.address_hi, m.address_lo, m.data);
            })
            .is_ok(),
        KVM_SET_MP_STATE => {
            call.input::<kvm_mp_state>().map(|m| _ = write!(text, "{{mp_state={}}}", m.mp_state)).is_ok()
        }
        _ => false,
    };
    if !known {
        _ = write!(text, "{arg:#x}");
    }
}

/// Entries of a list that are shown.
const SHOWN: usize = 8;

fn msrs(text: &mut String, call: &Call<'_>, values: bool) -> Result {
    let count = call.input::<u32>()? as usize;
    let entries = call.list::<kvm_msr_entry>(8, count.min(SHOWN))?;
    _ = write!(text, "{{nmsrs={count}, [");
    for (n, e) in entries.iter().enumerate() {
        let comma = if n == 0 { "" } else { ", " };
        _ = match values {
            true => write!(text, "{comma}{:#x}={:#x}", e.index, { e.data }),
            false => write!(text, "{comma}{:#x}", e.index),
        };
    }
    text.push_str(if count > SHOWN { ", ...]}" } else { "]}" });
    Ok(())
}

fn regs(text: &mut String, r: &kvm_regs) {
    _ = write!(
        text,
        "{{rip={:#x}, rflags={:#x}, rax={:#x}, rbx={:#x}, rcx={:#x}, rdx={:#x}, rsi={:#x}, rdi={:#x}, rsp={:#x}, rbp={:#x}}}",
        r.rip, r.rflags, r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp
    );
}

fn sregs(text: &mut String, s: &kvm_sregs) {
    _ = write!(
        text,
        "{{cr0={:#x}, cr3={:#x}, cr4={:#x}, efer={:#x}, cs={{selector={:#x}, base={:#x}}}, apic_base={:#x}}}",
        s.cr0, s.cr3, s.cr4, s.efer, s.cs.selector, s.cs.base, s.apic_base
    );
}

fn outcome(line: &mut String, held: &Held, request: u32, arg: u64, result: &Result<i32>) {
    number(line, result);
    if result.is_err() {
        return;
    }
    let call = Call { arg, memory: &OwnMemory };
    match request {
        KVM_GET_REGS => {
            if let Ok(r) = call.input::<kvm_regs>() {
                line.push(' ');
                regs(line, &r);
            }
        }
        KVM_GET_SREGS => {
            if let Ok(s) = call.input::<kvm_sregs>() {
                line.push(' ');
                sregs(line, &s);
            }
        }
        KVM_GET_MSRS => {
            line.push(' ');
            let _ = msrs(line, &call, true);
        }
        KVM_RUN => {
            if let Held::Vcpu(v, ..) = held {
                exit(line, &**v.run_mapping());
            }
        }
        _ => {}
    }
}

fn field<const N: usize>(page: &dyn kvm_api::backend::RunPage, offset: usize) -> [u8; N] {
    let mut b = [0; N];
    page.load(offset, &mut b);
    b
}

/// The exit in the run page.
fn exit(line: &mut String, page: &dyn kvm_api::backend::RunPage) {
    use kvm_api::backend::{EXIT_UNION, PIO_PAGE_OFFSET};
    let reason = page.exit_reason();
    let name = EXITS.iter().find(|e| e.0 == reason).map_or("KVM_EXIT_?", |e| e.1);
    _ = write!(line, " {name}");
    match reason {
        KVM_EXIT_IO => {
            let [direction, size] = field(page, EXIT_UNION);
            let port = u16::from_le_bytes(field(page, EXIT_UNION + 2));
            let count = u32::from_le_bytes(field(page, EXIT_UNION + 4));
            let out = u32::from(direction) == KVM_EXIT_IO_OUT;
            _ = write!(
                line,
                " {{{}, port={port:#x}, size={size}, count={count}",
                if out { "out" } else { "in" }
            );
            if out {
                let data = field::<8>(page, PIO_PAGE_OFFSET);
                let len = (usize::from(size) * count as usize).min(8);
                _ = write!(line, ", data={:02x?}", &data[..len]);
            }
            line.push('}');
        }
        KVM_EXIT_MMIO => {
            let address = u64::from_le_bytes(field(page, EXIT_UNION));
            let data = field::<8>(page, EXIT_UNION + 8);
            let len = u32::from_le_bytes(field(page, EXIT_UNION + 16));
            let [write] = field(page, EXIT_UNION + 20);
            _ = write!(
                line,
                " {{{}, phys_addr={address:#x}, len={len}",
                if write != 0 { "write" } else { "read" }
            );
            if write != 0 {
                _ = write!(line, ", data={:02x?}", &data[..(len as usize).min(8)]);
            }
            line.push('}');
        }
        KVM_EXIT_INTERNAL_ERROR => {
            _ = write!(line, " {{suberror={}}}", u32::from_le_bytes(field(page, EXIT_UNION)));
        }
        KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR => {
            _ = write!(line, " {{index={:#x}}}", u32::from_le_bytes(field(page, EXIT_UNION + 12)));
        }
        _ => {}
    }
}

macro_rules! names {
    ($($name:ident)*) => { &[$(($name, stringify!($name))),*] };
}

const EXITS: &[(u32, &str)] = names! {
    KVM_EXIT_UNKNOWN KVM_EXIT_EXCEPTION KVM_EXIT_IO KVM_EXIT_HYPERCALL KVM_EXIT_DEBUG KVM_EXIT_HLT KVM_EXIT_MMIO
    KVM_EXIT_IRQ_WINDOW_OPEN KVM_EXIT_SHUTDOWN KVM_EXIT_FAIL_ENTRY KVM_EXIT_INTR KVM_EXIT_SET_TPR KVM_EXIT_TPR_ACCESS
    KVM_EXIT_INTERNAL_ERROR KVM_EXIT_SYSTEM_EVENT KVM_EXIT_IOAPIC_EOI KVM_EXIT_X86_RDMSR KVM_EXIT_X86_WRMSR
};

/// A capability's name. The list is derived from what VMMs ask for; a number without a name is shown as it is.
fn capability(cap: u64) -> Option<&'static str> {
    CAPABILITIES.iter().find(|c| u64::from(c.0) == cap).map(|c| c.1)
}

const CAPABILITIES: &[(u32, &str)] = names! {
    KVM_CAP_IRQCHIP KVM_CAP_HLT KVM_CAP_MMU_SHADOW_CACHE_CONTROL KVM_CAP_USER_MEMORY KVM_CAP_SET_TSS_ADDR
    KVM_CAP_VAPIC KVM_CAP_EXT_CPUID KVM_CAP_CLOCKSOURCE KVM_CAP_NR_VCPUS KVM_CAP_NR_MEMSLOTS KVM_CAP_PIT
    KVM_CAP_NOP_IO_DELAY KVM_CAP_PV_MMU KVM_CAP_MP_STATE KVM_CAP_COALESCED_MMIO KVM_CAP_SYNC_MMU KVM_CAP_IOMMU
    KVM_CAP_DESTROY_MEMORY_REGION_WORKS KVM_CAP_USER_NMI KVM_CAP_SET_GUEST_DEBUG KVM_CAP_REINJECT_CONTROL
    KVM_CAP_IRQ_ROUTING KVM_CAP_IRQ_INJECT_STATUS KVM_CAP_ASSIGN_DEV_IRQ KVM_CAP_JOIN_MEMORY_REGIONS_WORKS
    KVM_CAP_MCE KVM_CAP_IRQFD KVM_CAP_PIT2 KVM_CAP_SET_BOOT_CPU_ID KVM_CAP_PIT_STATE2 KVM_CAP_IOEVENTFD
    KVM_CAP_SET_IDENTITY_MAP_ADDR KVM_CAP_XEN_HVM KVM_CAP_ADJUST_CLOCK KVM_CAP_INTERNAL_ERROR_DATA
    KVM_CAP_VCPU_EVENTS KVM_CAP_HYPERV KVM_CAP_HYPERV_VAPIC KVM_CAP_HYPERV_SPIN KVM_CAP_PCI_SEGMENT
    KVM_CAP_INTR_SHADOW KVM_CAP_DEBUGREGS KVM_CAP_X86_ROBUST_SINGLESTEP KVM_CAP_ENABLE_CAP KVM_CAP_XSAVE
    KVM_CAP_XCRS KVM_CAP_ASYNC_PF KVM_CAP_TSC_CONTROL KVM_CAP_GET_TSC_KHZ KVM_CAP_MAX_VCPUS KVM_CAP_SW_TLB
    KVM_CAP_ONE_REG KVM_CAP_TSC_DEADLINE_TIMER KVM_CAP_SYNC_REGS KVM_CAP_PCI_2_3 KVM_CAP_KVMCLOCK_CTRL
    KVM_CAP_SIGNAL_MSI KVM_CAP_READONLY_MEM KVM_CAP_IRQFD_RESAMPLE KVM_CAP_DEVICE_CTRL KVM_CAP_IRQ_MPIC
    KVM_CAP_IRQ_XICS KVM_CAP_EXT_EMUL_CPUID KVM_CAP_HYPERV_TIME KVM_CAP_IOAPIC_POLARITY_IGNORED
    KVM_CAP_ENABLE_CAP_VM KVM_CAP_IOEVENTFD_NO_LENGTH KVM_CAP_VM_ATTRIBUTES KVM_CAP_CHECK_EXTENSION_VM
    KVM_CAP_DISABLE_QUIRKS KVM_CAP_X86_SMM KVM_CAP_MULTI_ADDRESS_SPACE KVM_CAP_GUEST_DEBUG_HW_BPS
    KVM_CAP_GUEST_DEBUG_HW_WPS KVM_CAP_SPLIT_IRQCHIP KVM_CAP_IOEVENTFD_ANY_LENGTH KVM_CAP_HYPERV_SYNIC
    KVM_CAP_VCPU_ATTRIBUTES KVM_CAP_MAX_VCPU_ID KVM_CAP_X2APIC_API KVM_CAP_MSI_DEVID KVM_CAP_IMMEDIATE_EXIT
    KVM_CAP_X86_DISABLE_EXITS KVM_CAP_HYPERV_SYNIC2 KVM_CAP_HYPERV_VP_INDEX KVM_CAP_GET_MSR_FEATURES
    KVM_CAP_HYPERV_EVENTFD KVM_CAP_HYPERV_TLBFLUSH KVM_CAP_NESTED_STATE KVM_CAP_MSR_PLATFORM_INFO
    KVM_CAP_HYPERV_SEND_IPI KVM_CAP_COALESCED_PIO KVM_CAP_HYPERV_ENLIGHTENED_VMCS KVM_CAP_EXCEPTION_PAYLOAD
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT KVM_CAP_HYPERV_CPUID KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
    KVM_CAP_PMU_EVENT_FILTER KVM_CAP_HYPERV_DIRECT_TLBFLUSH KVM_CAP_HALT_POLL KVM_CAP_ASYNC_PF_INT
    KVM_CAP_LAST_CPU KVM_CAP_SMALLER_MAXPHYADDR KVM_CAP_STEAL_TIME KVM_CAP_X86_USER_SPACE_MSR
    KVM_CAP_X86_MSR_FILTER KVM_CAP_ENFORCE_PV_FEATURE_CPUID KVM_CAP_SYS_HYPERV_CPUID KVM_CAP_DIRTY_LOG_RING
    KVM_CAP_X86_BUS_LOCK_EXIT KVM_CAP_SET_GUEST_DEBUG2 KVM_CAP_SGX_ATTRIBUTE KVM_CAP_VM_COPY_ENC_CONTEXT_FROM
    KVM_CAP_PTP_KVM KVM_CAP_HYPERV_ENFORCE_CPUID KVM_CAP_SREGS2 KVM_CAP_EXIT_HYPERCALL
    KVM_CAP_BINARY_STATS_FD KVM_CAP_EXIT_ON_EMULATION_FAILURE KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM
    KVM_CAP_VM_GPA_BITS KVM_CAP_XSAVE2 KVM_CAP_SYS_ATTRIBUTES KVM_CAP_PMU_CAPABILITY KVM_CAP_DISABLE_QUIRKS2
    KVM_CAP_VM_TSC_CONTROL KVM_CAP_SYSTEM_EVENT_DATA KVM_CAP_X86_TRIPLE_FAULT_EVENT KVM_CAP_X86_NOTIFY_VMEXIT
    KVM_CAP_VM_DISABLE_NX_HUGE_PAGES KVM_CAP_DIRTY_LOG_RING_ACQ_REL KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
    KVM_CAP_PMU_EVENT_MASKED_EVENTS KVM_CAP_COUNTER_OFFSET KVM_CAP_USER_MEMORY2 KVM_CAP_MEMORY_FAULT_INFO
    KVM_CAP_MEMORY_ATTRIBUTES KVM_CAP_GUEST_MEMFD KVM_CAP_VM_TYPES KVM_CAP_PRE_FAULT_MEMORY
    KVM_CAP_X86_APIC_BUS_CYCLES_NS KVM_CAP_X86_GUEST_MODE
};
