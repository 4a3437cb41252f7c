//! The vCPU descriptor: state that is read, changed in one place, and written back.

use super::Session;
use super::front::Fd;
use kvm_api::nr::*;
use kvm_api::uapi::*;
use kvm_ioctl_layer::user_mem::{bytes_of, from_bytes};

/// Control registers, bit by bit, in three modes; and what a successful call leaves.
pub fn sregs(s: &mut Session<'_>) {
    let vm = s.vm();
    let vcpu = s.vcpu(vm, 0);
    set_cpuid(s, vcpu);
    let reset: kvm_sregs = s.get(vcpu, KVM_GET_SREGS);
    let code = |l: u8, db: u8| kvm_segment {
        limit: 0xffff_ffff,
        selector: 8,
        type_: 11,
        present: 1,
        s: 1,
        g: 1,
        l,
        db,
        ..Default::default()
    };
    let modes: [(&str, kvm_sregs); 4] = [
        ("real", reset),
        ("protected", kvm_sregs { cr0: 0x11, cs: code(0, 1), ..reset }),
        ("paged", kvm_sregs { cr0: 0x8000_0011, cr3: 0x1000, cs: code(0, 1), ..reset }),
        (
            "long",
            kvm_sregs { cr0: 0x8000_0011, cr3: 0x1000, cr4: 0x20, efer: 0x500, cs: code(1, 0), ..reset },
        ),
    ];
    for (mode, base) in modes {
        s.pass(&format!("{mode} mode"), vcpu, KVM_SET_SREGS, &base);
        for bit in 0..64 {
            let flip = 1u64 << bit;
            for (field, changed) in [
                ("cr0", kvm_sregs { cr0: base.cr0 ^ flip, ..base }),
                ("cr3", kvm_sregs { cr3: base.cr3 ^ flip, ..base }),
                ("cr4", kvm_sregs { cr4: base.cr4 ^ flip, ..base }),
                ("cr8", kvm_sregs { cr8: base.cr8 ^ flip, ..base }),
                ("efer", kvm_sregs { efer: base.efer ^ flip, ..base }),
                ("apic_base", kvm_sregs { apic_base: base.apic_base ^ flip, ..base }),
            ] {
                s.pass(&format!("{mode} mode, {field} bit {bit}"), vcpu, KVM_SET_SREGS, &changed);
            }
        }
        for (l, db) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let changed = kvm_sregs { cs: code(l, db), ..base };
            s.pass(&format!("{mode} mode, cs.l {l} cs.db {db}"), vcpu, KVM_SET_SREGS, &changed);
        }
        s.pass("back", vcpu, KVM_SET_SREGS, &base);
        let mut back = kvm_sregs::default();
        s.fill(&format!("{mode} mode, all of it"), vcpu, KVM_GET_SREGS, &mut back);
    }
    s.pass("reset", vcpu, KVM_SET_SREGS, &reset);
    let mut more: kvm_sregs2 = s.get(vcpu, KVM_GET_SREGS2);
    for bit in 0..64 {
        more.flags = 1 << bit;
        s.pass(&format!("sregs2 flag {bit}"), vcpu, KVM_SET_SREGS2, &more);
    }
    for word in 0..4 {
        let mut changed = reset;
        changed.interrupt_bitmap[word] = 1 << 33;
        s.pass(&format!("interrupt bitmap, word {word}"), vcpu, KVM_SET_SREGS, &changed);
        let back: kvm_sregs = s.get(vcpu, KVM_GET_SREGS);
        s.observe("bitmap", back.interrupt_bitmap.iter().map(|w| w.count_ones() as i64).sum());
        let e: kvm_vcpu_events = s.get(vcpu, KVM_GET_VCPU_EVENTS);
        s.observe("injected", i64::from(e.interrupt.injected) << 8 | i64::from(e.interrupt.nr));
        s.pass("no interrupt", vcpu, KVM_SET_VCPU_EVENTS, &kvm_vcpu_events::default());
    }
}

/// A processor as KVM_GET_SUPPORTED_CPUID offers it.
pub fn set_cpuid(s: &mut Session<'_>, vcpu: Fd) {
    let at = offered_cpuid(s);
    s.quietly(vcpu, KVM_SET_CPUID2, at);
}

/// The address of what KVM_GET_SUPPORTED_CPUID offers, without what depends on the host's processor and shows in control
/// registers: the width of physical addresses, PCID, PKU, LA57.
pub fn offered_cpuid(s: &mut Session<'_>) -> u64 {
    const ROOM: u32 = 250;
    let system = s.system();
    let at = s.put(4096, &ROOM.to_le_bytes());
    s.quietly(system, KVM_GET_SUPPORTED_CPUID, at);
    s.close(system);
    for n in 0..u64::from(ROOM) {
        let place = 4096 + 8 + n * size_of::<kvm_cpuid_entry2>() as u64;
        let mut row: kvm_cpuid_entry2 = from_bytes(&s.take(place, size_of::<kvm_cpuid_entry2>()));
        match (row.function, row.index) {
            (1, _) => row.ecx &= !(1 << 17),
            (7, 0) => row.ecx &= !(1 << 3 | 1 << 4 | 1 << 16),
            (0x8000_0008, _) => row.eax = 0x3028,
            _ => continue,
        }
        s.put(place, bytes_of(&row));
    }
    at
}

/// KVM_GET_VCPU_EVENTS, without the details of what is not there.
fn events_back(s: &mut Session<'_>, name: &str, vcpu: Fd) {
    let mut e: kvm_vcpu_events = s.get(vcpu, KVM_GET_VCPU_EVENTS);
    if e.exception.injected == 0 && e.exception.pending == 0 {
        (e.exception.nr, e.exception.has_error_code, e.exception.error_code) = (0, 0, 0);
        e.exception_has_payload = 0;
    }
    if e.exception_has_payload == 0 {
        e.exception_payload = 0;
    }
    if e.interrupt.injected == 0 {
        (e.interrupt.nr, e.interrupt.soft) = (0, 0);
    }
    s.observe_bytes(name, bytes_of(&e));
}

/// KVM_SET_VCPU_EVENTS: flags, vectors, combinations; with and without the capabilities that add fields.
pub fn events(s: &mut Session<'_>) {
    for (caps, list) in [
        ("plain", &[][..]),
        ("payload", &[KVM_CAP_EXCEPTION_PAYLOAD][..]),
        ("triple fault", &[KVM_CAP_X86_TRIPLE_FAULT_EVENT][..]),
    ] {
        for inside in [false, true] {
            let vm = s.vm();
            for cap in list {
                let e = kvm_enable_cap { cap: *cap, args: [1, 0, 0, 0], ..Default::default() };
                s.pass(&format!("{caps}: enabled"), vm, KVM_ENABLE_CAP, &e);
            }
            let caps = format!("{caps}{}", if inside { ", apic" } else { "" });
            if inside {
                s.number("irqchip", vm, KVM_CREATE_IRQCHIP, 0);
            }
            let vcpu = s.vcpu(vm, 0);
            let base = kvm_vcpu_events::default();
            for bit in 0..32 {
                let e = kvm_vcpu_events { flags: 1 << bit, ..base };
                s.pass(&format!("{caps}: flag {bit}"), vcpu, KVM_SET_VCPU_EVENTS, &e);
                events_back(s, &format!("{caps}: after flag {bit}"), vcpu);
            }
            for vector in [0, 1, 2, 3, 8, 14, 31, 32, 40, 255] {
                for (injected, pending) in [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (0, 2)] {
                    for flags in [0, KVM_VCPUEVENT_VALID_PAYLOAD] {
                        let mut e = kvm_vcpu_events { flags, ..base };
                        e.exception.nr = vector;
                        e.exception.injected = injected;
                        e.exception.pending = pending;
                        e.exception.has_error_code = 1;
                        e.exception.error_code = 5;
                        e.exception_has_payload = 1;
                        e.exception_payload = 0x1234;
                        let what =
                            format!("{caps}: exception {vector} {injected} {pending} flags {flags:#x}");
                        s.pass(&what, vcpu, KVM_SET_VCPU_EVENTS, &e);
                        events_back(s, &format!("{what}, back"), vcpu);
                    }
                }
            }
            for (name, change) in [
                ("nmi injected", 0),
                ("nmi pending 7", 1),
                ("nmi masked", 2),
                ("shadow 3", 3),
                ("interrupt", 4),
                ("soft interrupt", 5),
                ("sipi vector", 6),
                ("reserved", 7),
                ("nmi pending 1", 8),
                ("both shadows and nmi", 9),
                ("smm", 10),
                ("smi pending", 11),
                ("smi latched", 12),
                ("triple fault", 13),
            ] {
                let mut e = kvm_vcpu_events {
                    flags: KVM_VCPUEVENT_VALID_NMI_PENDING
                        | KVM_VCPUEVENT_VALID_SIPI_VECTOR
                        | KVM_VCPUEVENT_VALID_SHADOW,
                    ..base
                };
                match change {
                    0 => e.nmi.injected = 1,
                    1 => e.nmi.pending = 7,
                    2 => e.nmi.masked = 1,
                    3 => e.interrupt.shadow = 3,
                    4 => (e.interrupt.injected, e.interrupt.nr) = (1, 0x40),
                    5 => (e.interrupt.injected, e.interrupt.nr, e.interrupt.soft) = (1, 0x80, 1),
                    6 => e.sipi_vector = 0x9f,
                    7 => e.reserved = [0xff; 26],
                    8 => e.nmi.pending = 1,
                    9 => (e.interrupt.shadow, e.nmi.injected, e.nmi.pending) = (3, 1, 2),
                    10 => (e.flags, e.smi.smm) = (KVM_VCPUEVENT_VALID_SMM, 1),
                    11 => (e.flags, e.smi.pending) = (KVM_VCPUEVENT_VALID_SMM, 1),
                    12 => (e.flags, e.smi.latched_init) = (KVM_VCPUEVENT_VALID_SMM, 1),
                    _ => (e.flags, e.triple_fault.pending) = (KVM_VCPUEVENT_VALID_TRIPLE_FAULT, 1),
                }
                s.pass(&format!("{caps}: {name}"), vcpu, KVM_SET_VCPU_EVENTS, &e);
                events_back(s, &format!("{caps}: {name}, back"), vcpu);
                let none = kvm_vcpu_events { flags: KVM_VCPUEVENT_VALID_SHADOW, ..base };
                s.pass(&format!("{caps}: after {name}"), vcpu, KVM_SET_VCPU_EVENTS, &none);
            }
        }
    }
}

/// General, debug, x87 registers; XCR0.
pub fn registers(s: &mut Session<'_>) {
    let vm = s.vm();
    let vcpu = s.vcpu(vm, 0);
    set_cpuid(s, vcpu);
    let mut r = kvm_regs::default();
    s.fill("regs at reset", vcpu, KVM_GET_REGS, &mut r);
    for rflags in [0, 2, 1 << 17, 0x3f_7fd7, u64::MAX, 1 << 3] {
        s.pass(&format!("rflags {rflags:#x}"), vcpu, KVM_SET_REGS, &kvm_regs { rflags, ..r });
        let mut back = kvm_regs::default();
        s.fill("back", vcpu, KVM_GET_REGS, &mut back);
    }
    s.pass("rip of all ones", vcpu, KVM_SET_REGS, &kvm_regs { rip: u64::MAX, ..r });
    let mut d = kvm_debugregs::default();
    s.fill("debugregs at reset", vcpu, KVM_GET_DEBUGREGS, &mut d);
    for bit in 0..64 {
        let flip = 1u64 << bit;
        for (name, changed) in [
            ("dr6", kvm_debugregs { dr6: d.dr6 ^ flip, ..d }),
            ("dr7", kvm_debugregs { dr7: d.dr7 ^ flip, ..d }),
            ("flags", kvm_debugregs { flags: flip, ..d }),
            ("dr0", kvm_debugregs { db: [flip, 0, 0, 0], ..d }),
        ] {
            s.pass(&format!("{name} bit {bit}"), vcpu, KVM_SET_DEBUGREGS, &changed);
            let mut back = kvm_debugregs::default();
            s.fill(&format!("after {name} bit {bit}"), vcpu, KVM_GET_DEBUGREGS, &mut back);
        }
    }
    let mut reserved = d;
    reserved.reserved = [7; 9];
    s.pass("reserved words", vcpu, KVM_SET_DEBUGREGS, &reserved);
    let mut x = kvm_xcrs::default();
    s.fill("xcrs", vcpu, KVM_GET_XCRS, &mut x);
    for value in (0..64).map(|b| 1u64 << b).chain([0, 3, 5, 7, 6, 0xe0, 0xe7, 0x27, 0x1f, u64::MAX]) {
        let mut changed = x;
        changed.xcrs[0].value = value;
        s.pass(&format!("xcr0 {value:#x}"), vcpu, KVM_SET_XCRS, &changed);
    }
    for (name, count, xcr, flags) in
        [("none", 0, 0, 0), ("xcr1", 1, 1, 0), ("flags", 1, 0, 1), ("17", 17, 0, 0), ("many", u32::MAX, 0, 0)]
    {
        let mut changed = x;
        (changed.nr_xcrs, changed.flags, changed.xcrs[0].xcr) = (count, flags, xcr);
        s.pass(name, vcpu, KVM_SET_XCRS, &changed);
    }
    let f: kvm_fpu = s.get(vcpu, KVM_GET_FPU);
    s.observe("fcw", i64::from(f.fcw));
    s.observe("mxcsr", i64::from(f.mxcsr));
    for mxcsr in [0x1f80, 0xffff, 0x1_0000, u32::MAX] {
        s.pass(&format!("mxcsr {mxcsr:#x}"), vcpu, KVM_SET_FPU, &kvm_fpu { mxcsr, ..f });
    }
}

/// XSAVE headers.
pub fn xsave(s: &mut Session<'_>) {
    let vm = s.vm();
    let vcpu = s.vcpu(vm, 0);
    set_cpuid(s, vcpu);
    let area = s.put(0, &[0; 16384]);
    s.number("get", vcpu, KVM_GET_XSAVE, area);
    s.number("get2", vcpu, KVM_GET_XSAVE2, area);
    let good = s.take(0, 16384);
    let word = |at: usize, value: u64| {
        let mut b = good.clone();
        b[at..at + 8].copy_from_slice(&value.to_le_bytes());
        b
    };
    for bit in 0..64 {
        s.pass_bytes(&format!("xstate_bv bit {bit}"), vcpu, KVM_SET_XSAVE, &word(512, 1 << bit));
        s.pass_bytes(&format!("xcomp_bv bit {bit}"), vcpu, KVM_SET_XSAVE, &word(520, 1 << bit));
    }
    for at in [528, 536, 560, 568] {
        s.pass_bytes(&format!("header word {at}"), vcpu, KVM_SET_XSAVE, &word(at, 1));
    }
    for mxcsr in [0x1f80u64, 0xffff, 0x1_0000, 0x8000_0000] {
        let mut b = word(512, 3);
        b[24..28].copy_from_slice(&(mxcsr as u32).to_le_bytes());
        s.pass_bytes(&format!("mxcsr {mxcsr:#x}, sse"), vcpu, KVM_SET_XSAVE, &b);
        b[512..520].fill(0);
        s.pass_bytes(&format!("mxcsr {mxcsr:#x}, nothing"), vcpu, KVM_SET_XSAVE, &b);
    }
    s.pass_bytes("as it was", vcpu, KVM_SET_XSAVE, &good);
    let at = s.pages.forbidden() - 4096;
    s.number("from read-only memory of one page", vcpu, KVM_SET_XSAVE, at);
    s.number("to the last writable page", vcpu, KVM_GET_XSAVE, s.pages.read_only() - 4096);
}

/// The local APIC's page, MP states, with and without one.
pub fn lapic(s: &mut Session<'_>) {
    for chips in ["none", "full", "split"] {
        let vm = s.vm();
        match chips {
            "full" => s.number("irqchip", vm, KVM_CREATE_IRQCHIP, 0),
            "split" => {
                let cap =
                    kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [24, 0, 0, 0], ..Default::default() };
                s.pass("split", vm, KVM_ENABLE_CAP, &cap)
            }
            _ => 0,
        };
        for id in [0, 1] {
            let vcpu = s.vcpu(vm, id);
            set_cpuid(s, vcpu);
            let who = format!("{chips}, vcpu {id}");
            let mut page = kvm_lapic_state::default();
            s.fill(&format!("{who}: lapic"), vcpu, KVM_GET_LAPIC, &mut page);
            s.pass(&format!("{who}: set lapic"), vcpu, KVM_SET_LAPIC, &page);
            for offset in
                [0x20, 0x30, 0x80, 0xd0, 0xe0, 0xf0, 0x280, 0x300, 0x320, 0x350, 0x380, 0x390, 0x3e0]
            {
                let mut changed = page;
                for (n, b) in changed.regs[offset..offset + 4].iter_mut().enumerate() {
                    *b = if n == 0 { 0x7f } else { 0x55 };
                }
                s.pass(&format!("{who}: register {offset:#x}"), vcpu, KVM_SET_LAPIC, &changed);
                s.pass(&format!("{who}: back"), vcpu, KVM_SET_LAPIC, &page);
            }
            let mut m = kvm_mp_state::default();
            s.fill(&format!("{who}: mp state"), vcpu, KVM_GET_MP_STATE, &mut m);
            for state in (0..12).chain([99, u32::MAX]) {
                let m = kvm_mp_state { mp_state: state };
                s.pass(&format!("{who}: mp state {state}"), vcpu, KVM_SET_MP_STATE, &m);
                let mut back = kvm_mp_state::default();
                s.fill(&format!("{who}: after {state}"), vcpu, KVM_GET_MP_STATE, &mut back);
            }
            s.number(&format!("{who}: nmi"), vcpu, KVM_NMI, 0);
            s.number(&format!("{who}: smi"), vcpu, KVM_SMI, 0);
            let vapic = kvm_vapic_addr { vapic_addr: 0x1000 };
            s.pass(&format!("{who}: vapic"), vcpu, KVM_SET_VAPIC_ADDR, &vapic);
            for (enabled, flags) in [(1, 0), (0, 0), (2, 0), (1, 1)] {
                let c = kvm_tpr_access_ctl { enabled, flags, ..Default::default() };
                s.pass(
                    &format!("{who}: tpr reporting {enabled} {flags}"),
                    vcpu,
                    KVM_TPR_ACCESS_REPORTING,
                    &c,
                );
            }
            for (what, bit) in [("x2apic", 10), ("enabled", 11), ("bsp", 8), ("9", 9), ("41", 41), ("52", 52)]
            {
                let mut sregs: kvm_sregs = s.get(vcpu, KVM_GET_SREGS);
                sregs.apic_base ^= 1 << bit;
                s.pass(&format!("{who}: apic base {what}"), vcpu, KVM_SET_SREGS, &sregs);
                let back: kvm_sregs = s.get(vcpu, KVM_GET_SREGS);
                s.observe("apic base", back.apic_base as i64);
            }
        }
    }
}

/// Lists of MSRs: counts, unknown registers, values that a register does not take.
pub fn msrs(s: &mut Session<'_>) {
    let vm = s.vm();
    let vcpu = s.vcpu(vm, 0);
    set_cpuid(s, vcpu);
    for count in [0u32, 255, 256, 257, 10_000, u32::MAX] {
        let bytes = vec![0; 4096];
        s.put(0, &bytes);
        s.pass_bytes(&format!("get {count}"), vcpu, KVM_GET_MSRS, &count.to_le_bytes());
        s.pass_bytes(&format!("set {count}"), vcpu, KVM_SET_MSRS, &count.to_le_bytes());
    }
    let list = |entries: &[(u32, u64)]| {
        let mut b = (entries.len() as u32).to_le_bytes().to_vec();
        b.extend([0; 4]);
        for (index, data) in entries {
            b.extend(index.to_le_bytes());
            b.extend([0; 4]);
            b.extend(data.to_le_bytes());
        }
        b
    };
    s.pass_bytes("the second is unknown", vcpu, KVM_SET_MSRS, &list(&[(0x174, 1), (0x6666, 0), (0x175, 1)]));
    s.pass_bytes(
        "the second is unknown, read",
        vcpu,
        KVM_GET_MSRS,
        &list(&[(0x174, 1), (0x6666, 0), (0x175, 1)]),
    );
    let at = s.pages.forbidden() - 4096 - 24;
    s.put(s.pages.len() - 24, &list(&[(0x174, 0)]));
    s.number("ends with the writable memory", vcpu, KVM_GET_MSRS, at);
    s.put(s.pages.len() - 24, &list(&[(0x174, 0), (0x175, 0)])[..24]);
    s.number("goes on in read-only memory", vcpu, KVM_GET_MSRS, at);
    s.number("is set from there", vcpu, KVM_SET_MSRS, at);
    // With values in and out of range.
    for index in MSRS {
        s.pass_bytes(&format!("{index:#x} read"), vcpu, KVM_GET_MSRS, &list(&[(*index, 0)]));
        for value in
            [0u64, 1, 6, 0x800, 0x1_0000_0001, 0x0100_0000_0000_0000, 0x8000_0000_0000_0000, u64::MAX]
        {
            s.pass_bytes(&format!("{index:#x} = {value:#x}"), vcpu, KVM_SET_MSRS, &list(&[(*index, value)]));
        }
    }
    for (name, nr) in [("saved", KVM_GET_MSR_INDEX_LIST), ("a feature", KVM_GET_MSR_FEATURE_INDEX_LIST)] {
        let system = s.system();
        let at = s.put(0, &1000u32.to_le_bytes());
        s.quietly(system, nr, at);
        let count = u32::from_le_bytes(s.take(0, 4).try_into().expect("four bytes"));
        let bytes = s.take(4, 4 * count as usize);
        for index in MSRS {
            let listed = bytes.chunks(4).any(|b| b == index.to_le_bytes());
            s.observe(&format!("{index:#x} is {name}"), i64::from(listed));
        }
    }
    // What a fresh processor has; and one of which CPUID says nothing.
    let vm = s.vm();
    let (first, second) = (s.vcpu(vm, 0), s.vcpu(vm, 1));
    set_cpuid(s, second);
    for (who, vcpu) in [("no cpuid", first), ("the second", second)] {
        for index in MSRS {
            let r =
                s.pass_bytes(&format!("{who}: {index:#x} read"), vcpu, KVM_GET_MSRS, &list(&[(*index, 0)]));
            // The TSC goes on; and what is refused has no value.
            let value = if r == 1 && *index != 0x10 { s.take(16, 8) } else { Vec::new() };
            s.observe_bytes(&format!("{who}: {index:#x} at reset"), &value);
            for value in [0, 1] {
                let name = format!("{who}: {index:#x} = {value}");
                s.pass_bytes(&name, vcpu, KVM_SET_MSRS, &list(&[(*index, value)]));
            }
        }
    }
}

/// What every x86 KVM emulates, and some that none does.
const MSRS: &[u32] = &[
    0x10,
    0x11,
    0x12,
    0x17,
    0x1b,
    0x34,
    0x3a,
    0x3b,
    0x48,
    0x79,
    0x8b,
    0x9e,
    0xce,
    0xfe,
    0x10a,
    0x10b,
    0x11e,
    0x140,
    0x174,
    0x175,
    0x176,
    0x179,
    0x17a,
    0x17b,
    0x186,
    0x198,
    0x199,
    0x1a0,
    0x1d9,
    0x200,
    0x201,
    0x250,
    0x277,
    0x2ff,
    0x345,
    0x400,
    0x401,
    0x402,
    0x480,
    0x560,
    0x6e0,
    0x802,
    0x830,
    0xda0,
    0x4b56_4d00,
    0x4b56_4d01,
    0x4b56_4d02,
    0x4b56_4d03,
    0x4b56_4d04,
    0x4b56_4d05,
    0x4b56_4d06,
    0x4b56_4d07,
    0x4b56_4d08,
    0x4000_0000,
    0x4000_0001,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0103,
    0xc000_0104,
    0xc001_0015,
    0xc001_0117,
    0xc001_1029,
    0xffff_ffff,
];

/// Calls by value and small structures.
pub fn values(s: &mut Session<'_>) {
    let vm = s.vm();
    let vcpu = s.vcpu(vm, 0);
    for khz in [1, 100, 1_000_000, 3_000_000, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        s.number(&format!("tsc of {khz} kHz"), vcpu, KVM_SET_TSC_KHZ, khz);
    }
    s.number("tsc of the host", vcpu, KVM_SET_TSC_KHZ, 0);
    s.number("kvmclock that is not on", vcpu, KVM_KVMCLOCK_CTRL, 0);
    s.number("nmi with an argument", vcpu, KVM_NMI, 5);
    for bit in 0..32 {
        let d = kvm_guest_debug { control: 1 << bit, ..Default::default() };
        s.pass(&format!("guest debug bit {bit}"), vcpu, KVM_SET_GUEST_DEBUG, &d);
        let d = kvm_guest_debug { control: 1 | 1 << bit, ..Default::default() };
        s.pass(&format!("guest debug on, bit {bit}"), vcpu, KVM_SET_GUEST_DEBUG, &d);
        s.pass("nothing pending", vcpu, KVM_SET_VCPU_EVENTS, &kvm_vcpu_events::default());
    }
    let db = kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB, ..Default::default() };
    s.pass("an injected #DB", vcpu, KVM_SET_GUEST_DEBUG, &db);
    s.pass("and a second", vcpu, KVM_SET_GUEST_DEBUG, &db);
    s.pass("off", vcpu, KVM_SET_GUEST_DEBUG, &kvm_guest_debug::default());
    s.pass("nothing pending", vcpu, KVM_SET_VCPU_EVENTS, &kvm_vcpu_events::default());
    for len in [0u32, 4, 7, 8, 9, 16, u32::MAX] {
        let mut b = len.to_le_bytes().to_vec();
        b.extend([0xff; 16]);
        s.pass_bytes(&format!("signal mask of {len} bytes"), vcpu, KVM_SET_SIGNAL_MASK, &b);
    }
    s.number("no signal mask", vcpu, KVM_SET_SIGNAL_MASK, 0);
    for gva in [
        0u64,
        0x1000,
        0xffff_fff0,
        0x1_0000_0000,
        0x8000_0000_0000,
        0xffff_8000_0000_0000,
        u64::MAX - 1,
        u64::MAX,
    ] {
        let mut t = kvm_translation { linear_address: gva, ..Default::default() };
        s.fill(&format!("translate {gva:#x}"), vcpu, KVM_TRANSLATE, &mut t);
    }
    for group in [0u32, 1] {
        for attr in [0u64, 1] {
            for flags in [0, 1] {
                let to = s.pages.start() + 4096;
                for (place, addr) in [("good", to), ("bad", 8)] {
                    let a = kvm_device_attr { flags, group, attr, addr };
                    for (name, nr) in [
                        ("has", KVM_HAS_DEVICE_ATTR),
                        ("get", KVM_GET_DEVICE_ATTR),
                        ("set", KVM_SET_DEVICE_ATTR),
                    ] {
                        s.pass(&format!("{name} attribute {group} {attr} {flags} {place}"), vcpu, nr, &a);
                    }
                }
            }
        }
    }
    for cap in [
        0u64,
        1,
        0x0100_0120,
        10,
        0x20,
        33,
        255,
        1 << 8 | 10,
        1 << 24 | 10,
        1 << 27 | 10,
        1 << 9 | 10,
        1 << 32 | 10,
        u64::MAX,
    ] {
        s.pass(&format!("mcg_cap {cap:#x}"), vcpu, KVM_X86_SETUP_MCE, &cap);
    }
    let good: u64 = 1 << 8 | 10;
    s.pass("ten banks", vcpu, KVM_X86_SETUP_MCE, &good);
    for (name, bank, status) in [
        ("not valid", 0u8, 0u64),
        ("valid", 0, 1 << 63),
        ("bank 9", 9, 1 << 63),
        ("bank 10", 10, 1 << 63),
        ("bank 255", 255, 1 << 63),
    ] {
        let m = kvm_x86_mce { bank, status, ..Default::default() };
        s.pass(&format!("mce {name}"), vcpu, KVM_X86_SET_MCE, &m);
    }
    for id in [0u64, 1, 0x2030_0000_0002_0000, u64::MAX] {
        let r = kvm_one_reg { id, addr: s.pages.start() + 4096 };
        let mut b = r.id.to_le_bytes().to_vec();
        b.extend(r.addr.to_le_bytes());
        s.pass_bytes(&format!("get one reg {id:#x}"), vcpu, KVM_GET_ONE_REG, &b);
        s.pass_bytes(&format!("set one reg {id:#x}"), vcpu, KVM_SET_ONE_REG, &b);
    }
}
