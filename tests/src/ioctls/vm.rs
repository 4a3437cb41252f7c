//! The VM descriptor: vCPUs, memory, capabilities, values.

use super::Session;
use kvm_api::nr::*;
use kvm_api::uapi::*;

/// KVM_CREATE_VCPU and what must come before it.
pub fn create(s: &mut Session<'_>) {
    let vm = s.vm();
    for id in [0, 0, 1, 4095, 4096, 1 << 20, 1 << 31, 1 << 32, u64::MAX] {
        s.number(&format!("vcpu {id:#x}"), vm, KVM_CREATE_VCPU, id);
    }
    for (name, nr, arg) in [
        ("boot cpu after a vcpu", KVM_SET_BOOT_CPU_ID, 0),
        ("irqchip after a vcpu", KVM_CREATE_IRQCHIP, 0),
        ("tsc_khz after a vcpu", KVM_SET_TSC_KHZ, 1_000_000),
    ] {
        s.number(name, vm, nr, arg);
    }
    let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [24, 0, 0, 0], ..Default::default() };
    s.pass("split irqchip after a vcpu", vm, KVM_ENABLE_CAP, &split);
    let map: u64 = 0xfffb_c000;
    s.pass("identity map after a vcpu", vm, KVM_SET_IDENTITY_MAP_ADDR, &map);

    let vm = s.vm();
    for id in [0, 1, 4095, 4096, u64::from(u32::MAX), u64::MAX] {
        s.number(&format!("boot cpu {id:#x}"), vm, KVM_SET_BOOT_CPU_ID, id);
    }
    for id in [0u64, 1, 2, 4, 4096, 4097, u64::MAX] {
        let cap = kvm_enable_cap { cap: KVM_CAP_MAX_VCPU_ID, args: [id, 0, 0, 0], ..Default::default() };
        let vm = s.vm();
        s.pass(&format!("max vcpu id {id:#x}"), vm, KVM_ENABLE_CAP, &cap);
        s.pass("and again", vm, KVM_ENABLE_CAP, &cap);
        let other = kvm_enable_cap { args: [3, 0, 0, 0], ..cap };
        s.pass("and another", vm, KVM_ENABLE_CAP, &other);
        for vcpu in [0, 1, 2, 3, 4] {
            s.number(&format!("max vcpu id {id:#x}: vcpu {vcpu}"), vm, KVM_CREATE_VCPU, vcpu);
        }
        s.pass("and again after vcpus", vm, KVM_ENABLE_CAP, &cap);
        s.number("boot cpu beyond it", vm, KVM_SET_BOOT_CPU_ID, 5);
    }
}

fn region(slot: u32, flags: u32, gpa: u64, size: u64, hva: u64) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region { slot, flags, guest_phys_addr: gpa, memory_size: size, userspace_addr: hva }
}

/// KVM_SET_USER_MEMORY_REGION: each field out of range, and slots that meet.
pub fn memory(s: &mut Session<'_>) {
    let vm = s.vm();
    let hva = s.pages.start() + 4096;
    const SET: u32 = KVM_SET_USER_MEMORY_REGION;
    let tries: &[(&str, u32, u32, u64, u64, u64)] = &[
        ("nothing to delete", 0, 0, 0, 0, hva),
        ("odd size", 0, 0, 0, 0x1001, hva),
        ("odd gpa", 0, 0, 0x10, 0x1000, hva),
        ("odd hva", 0, 0, 0, 0x1000, hva + 8),
        ("kernel hva", 0, 0, 0, 0x1000, 0xffff_8880_0000_0000),
        ("hva that wraps", 0, 0, 0, 0x2000, 0xffff_ffff_ffff_f000),
        ("the last user page", 0, 0, 0, 0x1000, 0x7fff_ffff_e000),
        ("beyond the last user page", 0, 0, 0, 0x2000, 0x7fff_ffff_e000),
        ("huge", 0, 0, 0, 1 << 51, hva),
        ("as many pages as 31 bits have", 0, 0, 0, 1 << 43, 0),
        ("gpa that wraps", 0, 0, 0xffff_ffff_ffff_f000, 0x2000, hva),
        ("gpa of 52 bits", 0, 0, 1 << 52, 0x1000, hva),
        ("slot 32763", 32763, 0, 0x10_0000, 0x1000, hva),
        ("delete it", 32763, 0, 0x10_0000, 0, hva),
        ("slot 32764", 32764, 0, 0x10_0000, 0x1000, hva),
        ("slot 65535", 65535, 0, 0x10_0000, 0x1000, hva),
        ("address space 2", 2 << 16, 0, 0, 0x1000, hva),
        ("address space 65535", 0xffff_0000, 0, 0, 0x1000, hva),
        ("slot 0", 0, 0, 0, 0x4000, hva),
        ("the same again", 0, 0, 0, 0x4000, hva),
        ("another size", 0, 0, 0, 0x2000, hva),
        ("another hva", 0, 0, 0, 0x4000, hva + 0x1000),
        ("read-only now", 0, KVM_MEM_READONLY, 0, 0x4000, hva),
        ("with a log", 0, KVM_MEM_LOG_DIRTY_PAGES, 0, 0x4000, hva),
        ("moved", 0, 0, 0x8000, 0x4000, hva),
        ("overlapping from below", 1, 0, 0x6000, 0x3000, hva),
        ("overlapping at the end", 1, 0, 0xb000, 0x3000, hva),
        ("inside", 1, 0, 0x9000, 0x1000, hva),
        ("beside", 1, 0, 0xc000, 0x1000, hva),
        ("moved onto the other", 1, 0, 0xb000, 0x1000, hva),
        ("the same memory twice", 2, 0, 0x2_0000, 0x4000, hva),
        ("read-only", 3, KVM_MEM_READONLY, 0x3_0000, 0x1000, hva),
        ("read-only and a log", 4, KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES, 0x4_0000, 0x1000, hva),
        ("guest memfd without the other ioctl", 5, KVM_MEM_GUEST_MEMFD, 0x5_0000, 0x1000, hva),
        ("deleted with flags", 2, KVM_MEM_LOG_DIRTY_PAGES, 0, 0, 0),
        ("deleted again", 2, 0, 0, 0, 0),
        ("deleted with a bad hva", 1, 0, 0, 0, 3),
    ];
    for (name, slot, flags, gpa, size, hva) in tries {
        s.pass(name, vm, SET, &region(*slot, *flags, *gpa, *size, *hva));
    }
    for bit in 0..32 {
        s.pass(&format!("flag {bit}"), vm, SET, &region(9, 1 << bit, 0x9_0000, 0x1000, hva));
        s.pass(&format!("flag {bit}, deleted"), vm, SET, &region(9, 0, 0x9_0000, 0, hva));
    }
    // The same by the longer structure, whose tail must be zero or a descriptor's.
    for bit in [0, 1, 2, 3, 31] {
        let r = kvm_userspace_memory_region2 {
            slot: 10,
            flags: 1 << bit,
            guest_phys_addr: 0xa_0000,
            memory_size: 0x1000,
            userspace_addr: hva,
            ..Default::default()
        };
        s.pass(&format!("region2, flag {bit}"), vm, KVM_SET_USER_MEMORY_REGION2, &r);
        s.pass(
            "deleted",
            vm,
            KVM_SET_USER_MEMORY_REGION2,
            &kvm_userspace_memory_region2 { flags: 0, memory_size: 0, ..r },
        );
    }
    let tail = kvm_userspace_memory_region2 {
        slot: 10,
        guest_phys_addr: 0xa_0000,
        memory_size: 0x1000,
        userspace_addr: hva,
        guest_memfd: 99,
        guest_memfd_offset: 3,
        pad1: 7,
        ..Default::default()
    };
    s.pass("region2 with a tail that means nothing", vm, KVM_SET_USER_MEMORY_REGION2, &tail);
}

/// KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG.
pub fn dirty_log(s: &mut Session<'_>) {
    for manual in [None, Some(1u64), Some(2), Some(3), Some(4)] {
        let vm = s.vm();
        if let Some(flags) = manual {
            let cap = kvm_enable_cap {
                cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                args: [flags, 0, 0, 0],
                ..Default::default()
            };
            s.pass(&format!("manual protect {flags}"), vm, KVM_ENABLE_CAP, &cap);
        }
        let hva = s.pages.start() + 4096;
        s.pass("logged", vm, KVM_SET_USER_MEMORY_REGION, &region(1, 1, 0, 0x6000, hva));
        s.pass("not logged", vm, KVM_SET_USER_MEMORY_REGION, &region(2, 0, 0x10_0000, 0x1000, hva));
        let to = s.pages.start() + 512;
        for (name, slot, at) in [
            ("log", 1, to),
            ("log without logging", 2, to),
            ("log of no slot", 3, to),
            ("log of slot 32767", 32767, to),
            ("log of slot 65535", 65535, to),
            ("log of another address space", 1 << 16 | 1, to),
            ("log of address space 7", 7 << 16 | 1, to),
            ("log to nowhere", 1, 8),
            ("log to read-only memory", 1, s.pages.read_only()),
        ] {
            s.put(512, &[0xff; 8]);
            let mut args = kvm_dirty_log { slot, ..Default::default() };
            kvm_ioctl_layer::user_mem::set_member(&mut args, 8, &at);
            s.pass(&format!("{manual:?}: {name}"), vm, KVM_GET_DIRTY_LOG, &args);
            let left = s.take(512, 8);
            s.observe("bits", i64::from_le_bytes(left.try_into().unwrap_or_default()));
        }
        for (name, slot, first_page, num_pages, at) in [
            ("all", 1, 0u64, 6u32, to),
            ("all, rounded up", 1, 0, 64, to),
            ("nothing", 1, 0, 0, to),
            ("a part", 1, 0, 3, to),
            ("an odd beginning", 1, 1, 5, to),
            ("beyond the end", 1, 64, 64, to),
            ("far beyond", 1, 1 << 60, 64, to),
            ("a slot without a log", 2, 0, 1, to),
            ("no slot", 3, 0, 64, to),
            ("slot 40000", 40000, 0, 64, to),
            ("from nowhere", 1, 0, 6, 8),
        ] {
            let mut args = kvm_clear_dirty_log { slot, num_pages, first_page, ..Default::default() };
            kvm_ioctl_layer::user_mem::set_member(&mut args, 16, &at);
            s.put(512, &[0; 8]);
            s.pass(&format!("{manual:?}: clear {name}"), vm, KVM_CLEAR_DIRTY_LOG, &args);
        }
    }
}

/// KVM_ENABLE_CAP on VM and vCPU: every capability with arguments that are wrong, and flags.
pub fn enable_cap(s: &mut Session<'_>) {
    // Those that change what a VM is are asked on VMs of their own.
    for cap in 0..=250u32 {
        for (name, flags, args) in [
            ("flags", 1, [0u64; 4]),
            ("ones", 0, [u64::MAX; 4]),
            ("zero", 0, [0; 4]),
            ("one", 0, [1, 0, 0, 0]),
        ] {
            let vm = s.vm();
            let e = kvm_enable_cap { cap, flags, args, ..Default::default() };
            s.pass(&format!("{cap}, {name}"), vm, KVM_ENABLE_CAP, &e);
            s.close(vm);
        }
    }
    let vm = s.vm();
    let vcpu = s.vcpu(vm, 0);
    for cap in 0..=250u32 {
        let e = kvm_enable_cap { cap, args: [1, 0, 0, 0], ..Default::default() };
        s.pass(&format!("{cap} of a vCPU"), vcpu, KVM_ENABLE_CAP, &e);
    }
    for (cap, known) in [
        (KVM_CAP_X86_USER_SPACE_MSR, 12),
        (KVM_CAP_X2APIC_API, 8),
        (KVM_CAP_X86_DISABLE_EXITS, 8),
        (KVM_CAP_DISABLE_QUIRKS, 12),
        (KVM_CAP_DISABLE_QUIRKS2, 12),
        (KVM_CAP_EXIT_HYPERCALL, 16),
        (KVM_CAP_X86_BUS_LOCK_EXIT, 4),
    ] {
        for bit in (0..known).chain([31, 32, 63]) {
            let vm = s.vm();
            let e = kvm_enable_cap { cap, args: [1 << bit, 0, 0, 0], ..Default::default() };
            s.pass(&format!("{cap}, bit {bit}"), vm, KVM_ENABLE_CAP, &e);
            s.close(vm);
        }
    }
}

/// Calls by value, clocks, and addresses that are only kept.
pub fn values(s: &mut Session<'_>) {
    let vm = s.vm();
    for at in [0, 0x1000, 0xfffb_d000, 0xffff_c000, 0xffff_d000, 0xffff_d001, 0xffff_e000, 1 << 32, u64::MAX]
    {
        s.number(&format!("tss at {at:#x}"), vm, KVM_SET_TSS_ADDR, at);
    }
    for at in [0, 0xfffb_c000u64, 0xffff_f000, 1 << 33, 0x1001, u64::MAX] {
        s.pass(&format!("identity map at {at:#x}"), vm, KVM_SET_IDENTITY_MAP_ADDR, &at);
    }
    for pages in [0, 1, 63, 64, 1 << 20, u64::from(u32::MAX), u64::MAX] {
        s.number(&format!("{pages:#x} mmu pages"), vm, KVM_SET_NR_MMU_PAGES, pages);
    }
    s.number("set to 100", vm, KVM_SET_NR_MMU_PAGES, 100);
    s.number("mmu pages", vm, KVM_GET_NR_MMU_PAGES, 0);
    for khz in [1, 1000, 1_000_000, 100_000_000, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        s.number(&format!("tsc of {khz} kHz"), vm, KVM_SET_TSC_KHZ, khz);
    }
    for bit in 0..32 {
        let mut c: kvm_clock_data = s.get(vm, KVM_GET_CLOCK);
        c.flags = 1 << bit;
        s.pass(&format!("clock flag {bit}"), vm, KVM_SET_CLOCK, &c);
    }
    let c: kvm_clock_data = s.get(vm, KVM_GET_CLOCK);
    s.observe("clock flags", i64::from(c.flags));
    for (name, change) in [("padding", 0), ("a clock of all ones", 1), ("a time before the epoch", 2)] {
        let mut c: kvm_clock_data = s.get(vm, KVM_GET_CLOCK);
        c.flags = 0;
        match change {
            0 => c.pad0 = 9,
            1 => c.clock = u64::MAX,
            _ => (c.flags, c.realtime) = (KVM_CLOCK_REALTIME, u64::MAX),
        }
        s.pass(name, vm, KVM_SET_CLOCK, &c);
    }
    for kind in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 100, u32::MAX] {
        for flags in [1u32, 0xffff_ffff] {
            let d = kvm_create_device { type_: kind, fd: 77, flags };
            s.pass(&format!("device {kind}, flags {flags:#x}"), vm, KVM_CREATE_DEVICE, &d);
        }
    }
    for group in [0u32, 1, 2] {
        for nr in [KVM_HAS_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR] {
            let a = kvm_device_attr { group, ..Default::default() };
            s.pass(&format!("vm attribute {group} by {nr:#x}"), vm, nr, &a);
        }
    }
    s.number("kvmclock of a VM", vm, KVM_KVMCLOCK_CTRL, 0);
    s.number("an event filter", vm, KVM_SET_PMU_EVENT_FILTER, s.pages.start());
}

/// Ranges of an MSR filter: flags, count, base, bitmap.
type Ranges<'a> = &'a [(u32, u32, u32, u64)];

/// KVM_X86_SET_MSR_FILTER.
pub fn msr_filter(s: &mut Session<'_>) {
    let vm = s.vm();
    let bitmap = s.put(8192, &[0xff; 1024]);
    // Flags, then the ranges, with padding before the bitmap's address.
    let filter = |flags: u32, ranges: Ranges<'_>| {
        let mut b = flags.to_le_bytes().to_vec();
        b.extend([0; 4]);
        for (flags, count, base, at) in ranges {
            b.extend(flags.to_le_bytes());
            b.extend(count.to_le_bytes());
            b.extend(base.to_le_bytes());
            b.extend([0; 4]);
            b.extend(at.to_le_bytes());
        }
        b.resize(size_of_argument(KVM_X86_SET_MSR_FILTER), 0);
        b
    };
    let tries: &[(&str, u32, Ranges<'_>)] = &[
        ("none, allow", 0, &[]),
        ("none, deny", 1, &[]),
        ("unknown flag", 2, &[]),
        ("unknown flag 31", 1 << 31, &[]),
        ("a range", 0, &[(1, 8, 0x10, bitmap)]),
        ("read and write", 1, &[(3, 8, 0x10, bitmap)]),
        ("unknown range flag", 0, &[(4, 8, 0x10, bitmap)]),
        ("no range flag", 0, &[(0, 8, 0x10, bitmap)]),
        ("an empty range", 0, &[(1, 0, 0x10, bitmap)]),
        ("an empty range with an unknown flag", 0, &[(8, 0, 0x10, bitmap)]),
        ("deny, an empty range", 1, &[(1, 0, 0x10, bitmap)]),
        ("too many registers", 0, &[(1, 0x3001, 0x10, bitmap)]),
        ("0x3000 registers", 0, &[(1, 0x3000, 0x10, bitmap)]),
        ("far too many", 0, &[(1, u32::MAX, 0x10, bitmap)]),
        ("no bitmap", 0, &[(1, 8, 0x10, 8)]),
        ("registers that wrap", 0, &[(1, 64, 0xffff_fff0, bitmap)]),
        ("x2APIC registers", 0, &[(1, 8, 0x800, bitmap)]),
    ];
    for (name, flags, ranges) in tries {
        s.pass_bytes(name, vm, KVM_X86_SET_MSR_FILTER, &filter(*flags, ranges));
    }
}

/// KVM_REGISTER_COALESCED_MMIO and its counterpart.
pub fn coalesced(s: &mut Session<'_>) {
    let vm = s.vm();
    for (name, addr, size, pio) in [
        ("memory", 0x1000u64, 16u32, 0u32),
        ("again", 0x1000, 16, 0),
        ("a port", 0x70, 2, 1),
        ("neither", 0x70, 2, 2),
        ("nothing", 0x70, 0, 0),
        ("that wraps", u64::MAX, 16, 0),
    ] {
        let mut zone = kvm_coalesced_mmio_zone { addr, size, ..Default::default() };
        kvm_ioctl_layer::user_mem::set_member(&mut zone, 12, &pio);
        s.pass(name, vm, KVM_REGISTER_COALESCED_MMIO, &zone);
    }
    for (name, addr, size, pio) in
        [("gone", 0x1000u64, 16u32, 0u32), ("not there", 0x9000, 16, 0), ("neither, gone", 0x70, 2, 2)]
    {
        let mut zone = kvm_coalesced_mmio_zone { addr, size, ..Default::default() };
        kvm_ioctl_layer::user_mem::set_member(&mut zone, 12, &pio);
        s.pass(name, vm, KVM_UNREGISTER_COALESCED_MMIO, &zone);
    }
}
