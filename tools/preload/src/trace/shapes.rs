//! How `--trace` shows the structures that ioctls take and give: a row each, in the uapi's order and names.
//!
//! A shape is a list of fields, each `name:` kind and bytes, `*n` for an array. `+n` skips, `@n` goes to an offset, `[ ]` is
//! a list with as many members as the structure's first field says, and `...` leaves the rest out. Kinds: `d` decimal, `s`
//! signed, `x` hexadecimal, and letters for sets of names (see `named`).
//!
//! Not here: when a shape is shown, and KVM_RUN's exits' data (`mod`).

use super::names;
use core::fmt::Write;
use kvm_api::errno::Result;
use kvm_api::nr::*;
use kvm_api::uapi::*;
use kvm_ioctl_layer::dispatch::Call;

/// Members of a list that are shown.
const SHOWN: usize = 8;

/// rip first: it is what one looks for.
const REGS: &str = "@128 rip:x8 rflags:x8 @0 rax:x8 rbx:x8 rcx:x8 rdx:x8 rsi:x8 rdi:x8 rsp:x8 rbp:x8 r8:x8 r9:x8 r10:x8 r11:x8 r12:x8 \
    r13:x8 r14:x8 r15:x8 @144";
const SREGS: &str = "@224 cr0:x8 cr2:x8 cr3:x8 cr4:x8 cr8:x8 efer:x8 apic_base:x8 @0 cs.base:x8 cs.limit:x4 cs.selector:x2 \
    cs.type:x1 cs.present:d1 cs.dpl:d1 cs.db:d1 cs.s:d1 cs.l:d1 @24 ds.base:x8 ds.limit:x4 ds.selector:x2 @120 ss.base:x8 ss.limit:x4 \
    ss.selector:x2 @144 tr.base:x8 tr.limit:x4 tr.selector:x2 @192 gdt.base:x8 gdt.limit:x2 @208 idt.base:x8 idt.limit:x2";
const CPUID: &str =
    "nent:d4 +4 entries:[ function:x4 index:x4 flags:x4 eax:x4 ebx:x4 ecx:x4 edx:x4 +12 ] ...";
const MSRS: &str = "nmsrs:d4 +4 entries:[ index:x4 +4 data:x8 ] ...";
const PIT: &str = "count0:d4 @13 mode0:d1 @24 count1:d4 @37 mode1:d1 @48 count2:d4 @61 mode2:d1";
const XSAVE: &str = "fcw:x2 fsw:x2 @24 mxcsr:x4 @512 xstate_bv:x8 ...";
const REGION: &str = "slot:x4 flags:M4 guest_phys_addr:x8 memory_size:x8 userspace_addr:x8";
const ATTRIBUTE: &str = "flags:x4 group:d4 attr:d8 addr:x8";

/// The shape of an ioctl's structure.
pub const SHAPES: &[(u32, &str)] = &[
    (KVM_GET_MSR_INDEX_LIST, "nmsrs:d4 indices:[ :x4 ] ..."),
    (KVM_GET_MSR_FEATURE_INDEX_LIST, "nmsrs:d4 indices:[ :x4 ] ..."),
    (KVM_GET_SUPPORTED_CPUID, CPUID),
    (KVM_GET_EMULATED_CPUID, CPUID),
    (KVM_SET_CPUID2, CPUID),
    (KVM_GET_CPUID2, CPUID),
    (KVM_SET_CPUID, "nent:d4 +4 entries:[ function:x4 eax:x4 ebx:x4 ecx:x4 edx:x4 +4 ] ..."),
    (KVM_GET_MSRS, MSRS),
    (KVM_SET_MSRS, MSRS),
    (KVM_SET_USER_MEMORY_REGION, REGION),
    (
        KVM_SET_USER_MEMORY_REGION2,
        "slot:x4 flags:M4 guest_phys_addr:x8 memory_size:x8 userspace_addr:x8 guest_memfd_offset:x8 guest_memfd:d4 +116",
    ),
    (KVM_GET_DIRTY_LOG, "slot:x4 +4 dirty_bitmap:x8"),
    (KVM_CLEAR_DIRTY_LOG, "slot:x4 num_pages:d4 first_page:d8 dirty_bitmap:x8"),
    (KVM_PRE_FAULT_MEMORY, "gpa:x8 size:x8 flags:x8 +40"),
    (KVM_SET_IDENTITY_MAP_ADDR, "addr:x8"),
    (KVM_IRQ_LINE, "irq:d4 level:d4"),
    (KVM_IRQ_LINE_STATUS, "irq:d4 level:d4"),
    (KVM_GET_IRQCHIP, "chip_id:C4 +516"),
    (KVM_SET_IRQCHIP, "chip_id:C4 +516"),
    (KVM_CREATE_PIT2, "flags:x4 +60"),
    (KVM_GET_PIT, PIT),
    (KVM_SET_PIT, PIT),
    (
        KVM_GET_PIT2,
        "count0:d4 @13 mode0:d1 @24 count1:d4 @37 mode1:d1 @48 count2:d4 @61 mode2:d1 @72 flags:x4 ...",
    ),
    (
        KVM_SET_PIT2,
        "count0:d4 @13 mode0:d1 @24 count1:d4 @37 mode1:d1 @48 count2:d4 @61 mode2:d1 @72 flags:x4 ...",
    ),
    (KVM_REINJECT_CONTROL, "pit_reinject:d1 +31"),
    (KVM_REGISTER_COALESCED_MMIO, "addr:x8 size:x4 pio:d4"),
    (KVM_UNREGISTER_COALESCED_MMIO, "addr:x8 size:x4 pio:d4"),
    (KVM_SET_GSI_ROUTING, "nr:d4 flags:x4 entries:[ gsi:d4 type:R4 flags:x4 +4 u:x4*3 +20 ] ..."),
    (KVM_IRQFD, "fd:s4 gsi:d4 flags:I4 resamplefd:d4 +16"),
    (KVM_IOEVENTFD, "datamatch:x8 addr:x8 len:d4 fd:s4 flags:E4 +36"),
    (KVM_SIGNAL_MSI, "address_lo:x4 address_hi:x4 data:x4 flags:x4 devid:x4 +12"),
    (KVM_GET_CLOCK, "clock:d8 flags:x4 +4 realtime:d8 host_tsc:x8 +16"),
    (KVM_SET_CLOCK, "clock:d8 flags:x4 +4 realtime:d8 host_tsc:x8 +16"),
    (KVM_ENABLE_CAP, "cap:P4 flags:x4 args:x8*4 +64"),
    (KVM_CREATE_DEVICE, "type:d4 fd:s4 flags:x4"),
    (KVM_HAS_DEVICE_ATTR, ATTRIBUTE),
    (KVM_GET_DEVICE_ATTR, ATTRIBUTE),
    (KVM_SET_DEVICE_ATTR, ATTRIBUTE),
    (KVM_X86_SET_MSR_FILTER, "flags:x4 +4 0.flags:x4 0.nmsrs:d4 0.base:x4 +4 0.bitmap:x8 ..."),
    (
        KVM_XEN_HVM_CONFIG,
        "flags:x4 msr:x4 blob_addr_32:x8 blob_addr_64:x8 blob_size_32:d1 blob_size_64:d1 +30",
    ),
    (KVM_GET_REGS, REGS),
    (KVM_SET_REGS, REGS),
    (KVM_GET_SREGS, SREGS),
    (KVM_SET_SREGS, SREGS),
    (KVM_GET_SREGS2, SREGS),
    (KVM_SET_SREGS2, SREGS),
    (KVM_TRANSLATE, "linear_address:x8 physical_address:x8 valid:d1 writeable:d1 usermode:d1 +5"),
    (KVM_INTERRUPT, "irq:d4"),
    (KVM_GET_FPU, "@128 fcw:x2 fsw:x2 ftwx:x1 +1 last_opcode:x2 last_ip:x8 last_dp:x8 @408 mxcsr:x4 +4"),
    (KVM_SET_FPU, "@128 fcw:x2 fsw:x2 ftwx:x1 +1 last_opcode:x2 last_ip:x8 last_dp:x8 @408 mxcsr:x4 +4"),
    (KVM_GET_LAPIC, "@32 id:x4 @128 tpr:x4 @240 svr:x4 @800 lvt_timer:x4 @896 initial_count:x4 ..."),
    (KVM_SET_LAPIC, "@32 id:x4 @128 tpr:x4 @240 svr:x4 @800 lvt_timer:x4 @896 initial_count:x4 ..."),
    (KVM_GET_XSAVE, XSAVE),
    (KVM_GET_XSAVE2, XSAVE),
    (KVM_SET_XSAVE, XSAVE),
    (KVM_GET_XCRS, "nr_xcrs:d4 flags:x4 xcrs:[ xcr:d4 +4 value:x8 ] ..."),
    (KVM_SET_XCRS, "nr_xcrs:d4 flags:x4 xcrs:[ xcr:d4 +4 value:x8 ] ..."),
    (KVM_GET_DEBUGREGS, "db:x8*4 dr6:x8 dr7:x8 flags:x8 +72"),
    (KVM_SET_DEBUGREGS, "db:x8*4 dr6:x8 dr7:x8 flags:x8 +72"),
    (KVM_GET_VCPU_EVENTS, EVENTS),
    (KVM_SET_VCPU_EVENTS, EVENTS),
    (KVM_GET_MP_STATE, "mp_state:S4"),
    (KVM_SET_MP_STATE, "mp_state:S4"),
    (KVM_SET_GUEST_DEBUG, "control:G4 +4 debugreg:x8*8"),
    (KVM_SET_SIGNAL_MASK, "len:d4 sigset:x8 ..."),
    (KVM_TPR_ACCESS_REPORTING, "enabled:d4 flags:x4 +32"),
    (KVM_SET_VAPIC_ADDR, "vapic_addr:x8"),
    (KVM_X86_GET_MCE_CAP_SUPPORTED, "mcg_cap:x8"),
    (KVM_X86_SETUP_MCE, "mcg_cap:x8"),
    (KVM_X86_SET_MCE, "status:x8 addr:x8 misc:x8 mcg_status:x8 bank:d1 +31"),
    (KVM_GET_ONE_REG, "id:x8 addr:x8"),
    (KVM_SET_ONE_REG, "id:x8 addr:x8"),
    (KVM_GET_NESTED_STATE, "flags:x2 format:d2 size:d4 ..."),
    (KVM_SET_NESTED_STATE, "flags:x2 format:d2 size:d4 ..."),
    (KVM_CREATE_GUEST_MEMFD, "size:x8 flags:x8 +48"),
    (KVM_SET_MEMORY_ATTRIBUTES, "address:x8 size:x8 attributes:x8 flags:x8"),
];

const EVENTS: &str = "exception.injected:d1 exception.nr:d1 exception.has_error_code:d1 exception.pending:d1 \
    exception.error_code:x4 interrupt.injected:d1 interrupt.nr:d1 interrupt.soft:d1 interrupt.shadow:d1 nmi.injected:d1 \
    nmi.pending:d1 nmi.masked:d1 +1 sipi_vector:x4 flags:x4 smi.smm:d1 smi.pending:d1 smi.smm_inside_nmi:d1 \
    smi.latched_init:d1 triple_fault.pending:d1 +26 exception_has_payload:d1 exception_payload:x8";

/// The data of an exit, in the union of `struct kvm_run`.
pub const EXITS: &[(u32, &str)] = &[
    (KVM_EXIT_UNKNOWN, "hardware_exit_reason:x8"),
    (KVM_EXIT_FAIL_ENTRY, "hardware_entry_failure_reason:x8 cpu:d4"),
    (KVM_EXIT_EXCEPTION, "exception:d4 error_code:x4"),
    (KVM_EXIT_HYPERCALL, "nr:d8 args:x8*6 ret:x8 longmode:d4"),
    (KVM_EXIT_DEBUG, "exception:d4 +4 pc:x8 dr6:x8 dr7:x8"),
    (KVM_EXIT_TPR_ACCESS, "rip:x8 is_write:d4"),
    (KVM_EXIT_INTERNAL_ERROR, "suberror:d4 ndata:d4 data:x8*4"),
    (KVM_EXIT_SYSTEM_EVENT, "type:d4 ndata:d4 data:x8*2"),
    (KVM_EXIT_IOAPIC_EOI, "vector:d1"),
    (KVM_EXIT_X86_RDMSR, "error:d1 +7 reason:x4 index:x4 data:x8"),
    (KVM_EXIT_X86_WRMSR, "error:d1 +7 reason:x4 index:x4 data:x8"),
    (KVM_EXIT_NOTIFY, "flags:x4"),
    (KVM_EXIT_MEMORY_FAULT, "flags:x8 gpa:x8 size:x8"),
];

/// The shape of an ioctl.
pub fn of(request: u32) -> Option<&'static str> {
    SHAPES.iter().find(|s| s.0 == request).map(|s| s.1)
}

/// Shows the structure at the argument.
pub fn show(text: &mut String, shape: &str, call: &Call<'_>) -> Result {
    show_with(text, shape, &mut |offset, to| call.memory.read(call.arg.wrapping_add(offset), to))
}

/// Shows a structure that `read` reads: offset, bytes. Nothing is written if it cannot be read.
pub fn show_with(text: &mut String, shape: &str, read: &mut dyn FnMut(u64, &mut [u8]) -> Result) -> Result {
    let start = text.len();
    let mut at = 0;
    let mut first = None;
    text.push('{');
    let r = fields(text, &mut shape.split(' '), &mut at, &mut first, read);
    text.push('}');
    if r.is_err() {
        text.truncate(start);
    }
    r
}

type Tokens<'a, 's> = &'a mut dyn Iterator<Item = &'s str>;
type Read<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> Result;

/// Fields up to the end or to `]`.
fn fields(
    text: &mut String,
    tokens: Tokens<'_, '_>,
    at: &mut u64,
    first: &mut Option<u64>,
    read: Read<'_>,
) -> Result {
    let mut comma = "";
    while let Some(token) = tokens.next() {
        if let Some(n) = token.strip_prefix('+') {
            *at += n.parse::<u64>().unwrap_or(0);
        } else if let Some(n) = token.strip_prefix('@') {
            *at = n.parse().unwrap_or(0);
        } else if token == "]" {
            return Ok(());
        } else if token == "..." {
            _ = write!(text, "{comma}...");
        } else if let Some((name, "[")) = token.split_once(':') {
            _ = write!(text, "{comma}{name}=[");
            list(text, tokens, at, first.unwrap_or(0), read)?;
            text.push(']');
        } else if let Some((name, kind)) = token.split_once(':') {
            text.push_str(comma);
            if !name.is_empty() {
                _ = write!(text, "{name}=");
            }
            let (kind, count) =
                kind.split_once('*').map_or((kind, None), |(k, n)| (k, n.parse::<usize>().ok()));
            let size = kind.get(1..).and_then(|s| s.parse().ok()).unwrap_or(8).min(8);
            if count.is_some() {
                text.push('[');
            }
            for n in 0..count.unwrap_or(1) {
                let mut bytes = [0; 8];
                read(*at, &mut bytes[..size])?;
                *at += size as u64;
                let value = u64::from_le_bytes(bytes);
                first.get_or_insert(value);
                text.push_str(if n == 0 { "" } else { ", " });
                number(text, kind.as_bytes()[0], value, size);
            }
            if count.is_some() {
                text.push(']');
            }
        }
        comma = if text.ends_with('{') || text.ends_with("[{") { comma } else { ", " };
    }
    Ok(())
}

/// The members of a list, whose fields are the next tokens up to `]`.
fn list(text: &mut String, tokens: Tokens<'_, '_>, at: &mut u64, count: u64, read: Read<'_>) -> Result {
    let member: Vec<&str> = tokens.take_while(|t| *t != "]").collect();
    let braces = member.len() > 1;
    for n in 0..count.min(SHOWN as u64) {
        text.push_str(if n == 0 { "" } else { ", " });
        text.push_str(if braces { "{" } else { "" });
        fields(text, &mut member.iter().copied(), at, &mut Some(0), read)?;
        text.push_str(if braces { "}" } else { "" });
    }
    if count > SHOWN as u64 {
        text.push_str(", ...");
    }
    Ok(())
}

fn number(text: &mut String, kind: u8, value: u64, size: usize) {
    let shift = 64 - 8 * size as u32;
    _ = match kind {
        b'd' => write!(text, "{value}"),
        b's' => write!(text, "{}", (value << shift) as i64 >> shift),
        b'x' => write!(text, "{value:#x}"),
        _ => {
            named(text, kind, value);
            Ok(())
        }
    };
}

/// Kinds with names: one of a list, or bits of a set.
fn named(text: &mut String, kind: u8, value: u64) {
    match kind {
        b'P' => match names::capability(value) {
            Some(name) => text.push_str(name),
            None => _ = write!(text, "{value}"),
        },
        b'S' => one(text, value, names::MP_STATES),
        b'C' => one(text, value, names::CHIPS),
        b'R' => one(text, value, names::ROUTES),
        b'M' => set(text, value, names::SLOT_FLAGS),
        b'I' => set(text, value, names::IRQFD_FLAGS),
        b'E' => set(text, value, names::IOEVENTFD_FLAGS),
        _ => set(text, value, names::DEBUG_FLAGS),
    }
}

fn one(text: &mut String, value: u64, list: &[(u32, &str)]) {
    match list.iter().find(|n| u64::from(n.0) == value) {
        Some((_, name)) => text.push_str(name),
        None => _ = write!(text, "{value}"),
    }
}

fn set(text: &mut String, value: u64, list: &[(u32, &str)]) {
    let mut rest = value;
    let mut bar = "";
    for (bit, name) in list {
        if rest & u64::from(*bit) != 0 {
            rest &= !u64::from(*bit);
            _ = write!(text, "{bar}{name}");
            bar = "|";
        }
    }
    if rest != 0 || value == 0 {
        _ = write!(text, "{bar}{rest:#x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_ioctl_layer::user_mem::OwnMemory;

    /// Where a shape ends, if it is whole.
    fn end(shape: &str) -> Option<u64> {
        let (mut text, mut at, mut first) = (String::new(), 0, None);
        let whole = !shape.contains("...");
        fields(&mut text, &mut shape.split(' '), &mut at, &mut first, &mut |_, _| Ok(())).ok()?;
        whole.then_some(at)
    }

    #[test]
    fn a_shape_is_as_long_as_the_number_says() {
        // KVM_REINJECT_CONTROL's number says nothing.
        let sized = SHAPES.iter().filter(|s| size_of_argument(s.0) != 0);
        let wrong: Vec<_> = sized
            .filter_map(|(request, shape)| {
                let (size, end) = (size_of_argument(*request) as u64, end(shape)?);
                // Where the last field named is not the structure's last, it ends before.
                let free = [SREGS, PIT].contains(shape);
                let fits = if free { end <= size } else { end == size };
                (!fits).then(|| format!("{request:#x}: {end} of {size}: {shape}"))
            })
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    /// Every ioctl with a structure is shown as one.
    #[test]
    fn none_is_forgotten() {
        const BARE: &[u32] = &[
            KVM_SET_MEMORY_REGION,
            KVM_SET_MEMORY_ALIAS,
            KVM_DEBUG_GUEST,
            KVM_SET_PMU_EVENT_FILTER,
            KVM_MEMORY_ENCRYPT_OP,
        ];
        for (name, request) in ALL {
            let has = size_of_argument(*request) != 0;
            assert!(!has || of(*request).is_some() || BARE.contains(request), "{name}");
        }
    }

    fn shown<T>(request: u32, t: &T) -> String {
        let mut text = String::new();
        let call = Call { arg: core::ptr::from_ref(t) as u64, memory: &OwnMemory };
        show(&mut text, of(request).unwrap(), &call).unwrap();
        text
    }

    #[test]
    fn structures_are_readable() {
        let r = kvm_userspace_memory_region { slot: 3, flags: 3, memory_size: 0x1000, ..Default::default() };
        assert_eq!(
            shown(KVM_SET_USER_MEMORY_REGION, &r),
            "{slot=0x3, flags=KVM_MEM_LOG_DIRTY_PAGES|KVM_MEM_READONLY, guest_phys_addr=0x0, memory_size=0x1000, userspace_addr=0x0}"
        );
        let m = kvm_mp_state { mp_state: KVM_MP_STATE_HALTED };
        assert_eq!(shown(KVM_SET_MP_STATE, &m), "{mp_state=KVM_MP_STATE_HALTED}");
        let e = kvm_ioeventfd { fd: -1, flags: 1 | 1 << 8, ..Default::default() };
        let text = shown(KVM_IOEVENTFD, &e);
        assert!(text.ends_with("fd=-1, flags=KVM_IOEVENTFD_FLAG_DATAMATCH|0x100}"), "{text}");
        let msrs = [2u32, 0, 0x10, 0, 5, 0, 0x1b, 0, 7, 0];
        assert_eq!(
            shown(KVM_SET_MSRS, &msrs),
            "{nmsrs=2, entries=[{index=0x10, data=0x5}, {index=0x1b, data=0x7}], ...}"
        );
        let mut many = [0u32; 41];
        many[0] = 40;
        let text = shown(KVM_GET_MSR_INDEX_LIST, &many);
        assert_eq!(text, "{nmsrs=40, indices=[0x0, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0, ...], ...}");
        let mut text = String::from("before");
        assert!(show(&mut text, REGS, &Call { arg: 8, memory: &OwnMemory }).is_err());
        assert_eq!(text, "before");
    }
}
