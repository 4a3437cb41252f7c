//! Losing one field of the state at a time, to see that the comparison notices: each field of each structure of KVM_GET,
//! replaced by what a fresh VM has there.
//!
//! That is what a layer would do that forgets the field in KVM_GET or KVM_SET. The list of fields is the structures': what a
//! guest here does not change cannot be lost, and is told.

use super::machine::{Machine, Pace, Plan, Stop};
use super::saved::{Element, Id, Order, Saved};
use super::{differences, end};
use kvm_api::uapi::*;
use kvm_ioctl_layer::user_mem::from_bytes;
use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};
use std::sync::Arc;

/// A field of an element.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Field {
    /// The element.
    pub id: Id,
    /// Its name.
    pub name: String,
    /// Where it is: offset and bytes; of an MSR, the index.
    pub at: (usize, usize),
}

fn field_size<T, U>(_: fn(&T) -> &U) -> usize {
    size_of::<U>()
}

macro_rules! members {
    ($out:ident, $id:expr, $base:expr, $prefix:expr, $t:ty: $($field:ident)*) => {
        $($out.push(Field {
            id: $id,
            name: format!("{}{}", $prefix, stringify!($field)),
            at: ($base + offset_of!($t, $field), field_size(|s: &$t| &s.$field)),
        });)*
    };
}

fn segment(out: &mut Vec<Field>, base: usize, name: &str) {
    let prefix = format!("{name}.");
    members!(out, Id::Sregs, base, prefix, kvm_segment: base limit selector type_ present dpl db s l g avl unusable);
}

/// The fields of everything but the MSRs, of which each register is one.
pub fn fields() -> Vec<Field> {
    let mut f = Vec::new();
    members!(f, Id::Regs, 0, "", kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags);
    segment(&mut f, offset_of!(kvm_sregs2, cs), "cs");
    segment(&mut f, offset_of!(kvm_sregs2, ds), "ds");
    segment(&mut f, offset_of!(kvm_sregs2, es), "es");
    segment(&mut f, offset_of!(kvm_sregs2, fs), "fs");
    segment(&mut f, offset_of!(kvm_sregs2, gs), "gs");
    segment(&mut f, offset_of!(kvm_sregs2, ss), "ss");
    segment(&mut f, offset_of!(kvm_sregs2, tr), "tr");
    segment(&mut f, offset_of!(kvm_sregs2, ldt), "ldt");
    for (base, name) in [(offset_of!(kvm_sregs2, gdt), "gdt."), (offset_of!(kvm_sregs2, idt), "idt.")] {
        members!(f, Id::Sregs, base, name, kvm_dtable: base limit);
    }
    members!(f, Id::Sregs, 0, "", kvm_sregs2: cr0 cr2 cr3 cr4 cr8 efer apic_base pdptrs);
    type Exception = kvm_vcpu_events__bindgen_ty_1;
    type Interrupt = kvm_vcpu_events__bindgen_ty_2;
    type Nmi = kvm_vcpu_events__bindgen_ty_3;
    type Smi = kvm_vcpu_events__bindgen_ty_4;
    type TripleFault = kvm_vcpu_events__bindgen_ty_5;
    let e = offset_of!(kvm_vcpu_events, exception);
    members!(f, Id::Events, e, "exception.", Exception: injected nr has_error_code pending error_code);
    let e = offset_of!(kvm_vcpu_events, interrupt);
    members!(f, Id::Events, e, "interrupt.", Interrupt: injected nr soft shadow);
    let e = offset_of!(kvm_vcpu_events, nmi);
    members!(f, Id::Events, e, "nmi.", Nmi: injected pending masked);
    let e = offset_of!(kvm_vcpu_events, smi);
    members!(f, Id::Events, e, "smi.", Smi: smm pending smm_inside_nmi latched_init);
    let e = offset_of!(kvm_vcpu_events, triple_fault);
    members!(f, Id::Events, e, "triple_fault.", TripleFault: pending);
    members!(f, Id::Events, 0, "", kvm_vcpu_events: sipi_vector exception_has_payload exception_payload);
    members!(f, Id::MpState, 0, "", kvm_mp_state: mp_state);
    members!(f, Id::Debugregs, 0, "", kvm_debugregs: dr6 dr7);
    for n in 0..4 {
        f.push(Field {
            id: Id::Debugregs,
            name: format!("db{n}"),
            at: (offset_of!(kvm_debugregs, db) + 8 * n, 8),
        });
    }
    f.push(Field {
        id: Id::Xcrs,
        name: "xcr0".into(),
        at: (offset_of!(kvm_xcrs, xcrs) + offset_of!(kvm_xcr, value), 8),
    });
    let mut area = |name: String, at: usize, len: usize| f.push(Field { id: Id::Xsave, name, at: (at, len) });
    for (name, at, len) in [
        ("fcw", 0, 2),
        ("fsw", 2, 2),
        ("ftw", 4, 1),
        ("fop", 6, 2),
        ("fip", 8, 8),
        ("fdp", 16, 8),
        ("mxcsr", 24, 4),
        ("fcs", 504, 2),
        ("fds", 506, 2),
        ("xstate_bv", 512, 8),
    ] {
        area(name.into(), at, len);
    }
    for n in 0..8 {
        area(format!("st{n}"), 32 + 16 * n, 16);
    }
    for n in 0..16 {
        area(format!("xmm{n}"), 160 + 16 * n, 16);
    }
    let layout = emu_core::xstate::layout();
    for (component, name, parts) in
        [(2usize, "ymmh", 16usize), (5, "k", 8), (6, "zmmh", 16), (7, "zmm16_", 16), (9, "pkru", 1)]
    {
        if let Some(c) = layout.component(component) {
            let size = if component == 9 { 4 } else { c.size / parts };
            for n in 0..parts {
                area(format!("{name}{n}"), c.offset + n * size, size);
            }
        }
    }
    for n in 0..64usize {
        f.push(Field { id: Id::Lapic, name: format!("register {:#x}", 16 * n), at: (16 * n, 4) });
    }
    f.push(Field { id: Id::Lapic, name: "errors not shown".into(), at: (0x284, 4) });
    f.push(Field { id: Id::Lapic, name: "part of the current count".into(), at: (0x394, 4) });
    let chip = offset_of!(kvm_irqchip, chip);
    for id in [Id::PicMaster, Id::PicSlave] {
        members!(f, id, chip, "", kvm_pic_state: last_irr irr imr isr priority_add irq_base read_reg_select poll
            special_mask init_state auto_eoi rotate_on_auto_eoi special_fully_nested_mode init4 elcr elcr_mask);
    }
    for (name, at, len) in [("base_address", 0, 8), ("ioregsel", 8, 4), ("id", 12, 4), ("irr", 16, 4)] {
        f.push(Field { id: Id::Ioapic, name: name.into(), at: (chip + at, len) });
    }
    for n in 0..24usize {
        f.push(Field { id: Id::Ioapic, name: format!("redirtbl{n}"), at: (chip + 24 + 8 * n, 8) });
    }
    for n in 0..3 {
        let prefix = format!("channel{n}.");
        let base = n * size_of::<kvm_pit_channel_state>();
        members!(f, Id::Pit, base, prefix, kvm_pit_channel_state: count latched_count count_latched status_latched
            status read_state write_state write_latch rw_mode mode bcd gate count_load_time);
    }
    members!(f, Id::Pit, 0, "", kvm_pit_state2: flags);
    for (n, name) in ["read_at", "read_at high", "unseen", "pending", "phase"].into_iter().enumerate() {
        f.push(Field {
            id: Id::Pit,
            name: name.into(),
            at: (offset_of!(kvm_pit_state2, reserved) + 4 * n, 4),
        });
    }
    members!(f, Id::Clock, 0, "", kvm_clock_data: clock);
    f.push(Field { id: Id::TscKhz, name: "tsc_khz".into(), at: (0, 4) });
    f.push(Field { id: Id::TscOffset, name: "tsc_offset".into(), at: (0, 8) });
    f
}

/// The bytes of a field in an element, if the element is that long.
fn range(list: &[Element], field: &Field) -> Option<(usize, std::ops::Range<usize>)> {
    let n = list.iter().position(|e| e.0 == field.id)?;
    let bytes = &list[n].1;
    let at = if field.id == Id::Msrs {
        let size = size_of::<kvm_msr_entry>();
        let k = bytes
            .chunks_exact(size)
            .position(|e| from_bytes::<kvm_msr_entry>(e).index as usize == field.at.0)?;
        k * size + offset_of!(kvm_msr_entry, data)..(k + 1) * size
    } else {
        field.at.0..field.at.0 + field.at.1
    };
    (at.end <= bytes.len()).then_some((n, at))
}

/// `saved` without the field: it is as in `fresh`. `None`: that is no difference.
fn without(saved: &Saved, fresh: &Saved, field: &Field) -> Option<Saved> {
    let mut out = saved.clone();
    let mut changed = false;
    let mut lose = |to: &mut Vec<Element>, from: &[Element]| {
        if let (Some((n, at)), Some((m, from_at))) = (range(to, field), range(from, field)) {
            let value = &from[m].1[from_at];
            changed |= to[n].1[at.clone()] != *value;
            to[n].1[at].copy_from_slice(value);
        }
    };
    lose(&mut out.vm, &fresh.vm);
    for (to, from) in out.vcpus.iter_mut().zip(&fresh.vcpus) {
        lose(to, from);
    }
    changed.then_some(out)
}

/// What became of a field that was lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Loss {
    /// It never differed from a fresh VM's.
    NotSeen,
    /// Lost, and the run came to the same end. That the restored VM shows another state at once was noticed, or not.
    SameEnd(bool),
    /// Noticed at the end of the run, or KVM_SET refused what is left.
    Noticed,
}

/// How often a field is lost in one guest before it counts as one that does not matter there.
const TRIES: u32 = 30;

/// Fields whose loss no run shows, and why. A name that ends in `*` stands for all that begin so.
const REASONS: &[(Id, &[&str], &str)] = &[
    (
        Id::Sregs,
        &["cs.present", "cs.s", "cs.unusable", "ss.s", "tr.present", "tr.s", "tr.unusable", "ldt.s"],
        "one value in every state that a processor can be in",
    ),
    (
        Id::Sregs,
        &["tr.dpl", "tr.db", "tr.l", "tr.type_", "ldt.dpl", "ldt.db", "ldt.l"],
        "means nothing there; a 64-bit or 32-bit busy TSS",
    ),
    (
        Id::Sregs,
        &["tr.g", "ldt.g"],
        "the limit is in bytes, whatever the descriptor said; nobody has one of more than 1 MiB",
    ),
    (Id::Sregs, &["ds.l", "es.l", "fs.l", "gs.l", "ss.l"], "no data segment has it"),
    (
        Id::Sregs,
        &[
            "ds.present",
            "ds.unusable",
            "es.present",
            "es.unusable",
            "fs.present",
            "fs.unusable",
            "gs.present",
            "gs.unusable",
            "ss.present",
            "ss.unusable",
            "ldt.present",
            "ldt.unusable",
        ],
        "present and unusable say the same; either is enough",
    ),
    (Id::Sregs, &["fs.base", "gs.base", "apic_base"], "an MSR carries it again"),
    (Id::Lapic, &["register 0x30", "register 0xa0"], "read-only: follows from the others"),
    (Id::Lapic, &["register 0x80"], "CR8 carries it again"),
    (
        Id::Lapic,
        &[
            "register 0x0",
            "register 0x10",
            "register 0x40",
            "register 0x50",
            "register 0x60",
            "register 0x70",
            "register 0x290",
            "register 0x2a0",
            "register 0x2b0",
            "register 0x2c0",
            "register 0x2d0",
            "register 0x2e0",
            "register 0x3a0",
            "register 0x3b0",
            "register 0x3c0",
            "register 0x3d0",
            "register 0x3f0",
        ],
        "reserved",
    ),
    (
        Id::Lapic,
        &["register 0x90", "register 0xb0", "register 0xc0"],
        "arbitration priority, EOI, remote read: hold nothing",
    ),
    (
        Id::Lapic,
        &["register 0x100", "register 0x180", "register 0x200"],
        "vectors below 32 are the exceptions'",
    ),
    (Id::PicMaster, &["elcr_mask"], "a constant"),
    (Id::PicSlave, &["elcr_mask"], "a constant"),
    (Id::PicSlave, &["last_irr"], "the VMM drives its lines again"),
    (Id::PicMaster, &["last_irr"], "the VMM drives its lines again"),
    (Id::Ioapic, &["irr"], "the VMM drives its lines again"),
    (Id::Ioapic, &["base_address"], "it does not move"),
    (Id::Pit, &["channel0.gate", "channel1.gate"], "wired to 1"),
    (Id::Pit, &["read_at high"], "no guest runs for 4 s"),
    (Id::Pit, &["unseen"], "in counted time the PIT is looked at at every boundary"),
    (Id::Xsave, &["pkru0"], "the host has no protection keys"),
    (Id::Xsave, &["ymmh*", "k*", "zmm*"], "the host has no such registers"),
    (Id::Events, &["interrupt.soft"], "KVM_INTERRUPT's are none, and INT n is delivered as it is executed"),
    (Id::Events, &["nmi.injected"], "its delivery would have to end in an exit"),
    (Id::Events, &["sipi_vector"], "SIPI is acted on by KVM_GET_MP_STATE; KVM reports none"),
    (Id::Msrs, &["MSR 0x11", "MSR 0x12"], "kvmclock's old numbers: the new ones carry it again"),
    (Id::Msrs, &["MSR 0x345", "MSR 0x4b564d07", "MSR 0xda0"], "holds nothing but 0"),
    (Id::Msrs, &["MSR 0x4d0", "MSR 0x3a", "MSR 0xc001*"], "another vendor's"),
];

/// Why the loss of a field does not show, if it is known not to.
pub fn reason(field: &Field) -> Option<&'static str> {
    let is = |name: &&str| match name.strip_suffix('*') {
        Some(start) => field.name.starts_with(start),
        None => field.name == *name,
    };
    REASONS.iter().find(|(id, names, _)| *id == field.id && names.iter().any(is)).map(|r| r.2)
}

/// Loses each field at boundaries of the plans' guests until its loss is noticed.
pub fn lose_each(plans: &[(Plan, u64)]) -> BTreeMap<Field, Loss> {
    let mut found: BTreeMap<Field, Loss> = fields().into_iter().map(|f| (f, Loss::NotSeen)).collect();
    for (plan, stride) in plans {
        let plan = Arc::new(plan.clone());
        let mut whole = Machine::new(&plan);
        whole.finish();
        let whole = end(&whole);
        let mut source = Machine::new(&plan);
        let fresh = Machine::fresh(&plan).save();
        for e in fresh.vcpus.first().into_iter().flatten().filter(|e| e.0 == Id::Msrs) {
            for m in e.1.chunks_exact(size_of::<kvm_msr_entry>()) {
                let index = from_bytes::<kvm_msr_entry>(m).index;
                let name = format!("MSR {index:#x}");
                found.entry(Field { id: Id::Msrs, name, at: (index as usize, 8) }).or_insert(Loss::NotSeen);
            }
        }
        let mut tries: BTreeMap<Field, u32> = BTreeMap::new();
        for boundary in 0u64.. {
            let stop = source.go(Pace::Step);
            if stop == Stop::End {
                break;
            }
            if matches!(stop, Stop::Exit(_)) {
                source.complete();
            }
            if !boundary.is_multiple_of(*stride) {
                continue;
            }
            let saved = source.save();
            for (field, loss) in found.iter_mut().filter(|f| *f.1 != Loss::Noticed) {
                let Some(lost) = without(&saved, &fresh, field) else { continue };
                let tried = tries.entry(field.clone()).or_default();
                *tried += 1;
                if *tried > TRIES {
                    continue;
                }
                let order = if boundary & 1 == 0 { Order::Qemu } else { Order::Firecracker };
                // KVM_TSC_OFFSET is written in one order, the MSR does in the other.
                let order = if field.id == Id::TscOffset { Order::Firecracker } else { order };
                let copy = Machine::try_restored(&plan, &lost, order, &source.outside, &source.position);
                let Ok(mut copy) = copy else {
                    *loss = Loss::Noticed;
                    continue;
                };
                let at_once = !saved.diff(&copy.save()).is_empty();
                copy.finish();
                let noticed = !differences(&whole, &end(&copy), source.log.len()).is_empty();
                *loss = if noticed { Loss::Noticed } else { (*loss).max(Loss::SameEnd(at_once)) };
            }
        }
    }
    found
}
