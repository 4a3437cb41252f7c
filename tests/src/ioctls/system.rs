//! The system descriptor: versions, capabilities, lists.

use super::Session;
use kvm_api::nr::*;
use kvm_api::uapi::*;

/// Calls by value, and lists with too little and too much room.
pub fn system(s: &mut Session<'_>) {
    let kvm = s.system();
    for arg in [0, 1, u64::MAX] {
        s.number(&format!("api version {arg:#x}"), kvm, KVM_GET_API_VERSION, arg);
        s.number(&format!("mmap size {arg:#x}"), kvm, KVM_GET_VCPU_MMAP_SIZE, arg);
    }
    for kind in [0, 1, 2, 3, 4, 5, 6, 63, 64, 1 << 31, 1 << 32, u64::MAX] {
        s.number(&format!("vm type {kind:#x}"), kvm, KVM_CREATE_VM, kind);
    }
    for cap in [5000, u64::from(u32::MAX), 1 << 32 | u64::from(KVM_CAP_IRQCHIP), u64::MAX] {
        s.number(&format!("capability {cap:#x}"), kvm, KVM_CHECK_EXTENSION, cap);
    }
    for (name, nr) in [("msrs", KVM_GET_MSR_INDEX_LIST), ("features", KVM_GET_MSR_FEATURE_INDEX_LIST)] {
        for room in [0u32, 1] {
            s.pass_bytes(&format!("{name}, room for {room}"), kvm, nr, &room.to_le_bytes());
        }
        for room in [1000u32, 4000] {
            s.pass_bytes(&format!("{name}, room for {room}"), kvm, nr, &room.to_le_bytes());
        }
        // As much as is said must be there to be written.
        let at = s.pages.forbidden() - 4096 - 4;
        s.number(&format!("{name}, in read-only memory"), kvm, nr, at);
    }
    let entry = |index: u32| {
        let mut b = vec![1, 0, 0, 0, 0, 0, 0, 0];
        b.extend(index.to_le_bytes());
        b.extend([0; 12]);
        b
    };
    for index in [0x10a, 0x8b, 0xce, 0x345, 0x10, 0x1b, 0x174, 0x6666, 0xc000_0080] {
        s.pass_bytes(&format!("feature msr {index:#x}"), kvm, KVM_GET_MSRS, &entry(index));
    }
    for count in [0u32, 255, 256, 257, u32::MAX] {
        s.pass_bytes(&format!("{count} feature msrs"), kvm, KVM_GET_MSRS, &count.to_le_bytes());
    }
    let attribute = |group, attr, flags, addr| kvm_device_attr { flags, group, attr, addr };
    let to = s.pages.start() + 4096;
    for (group, attr, flags, addr) in
        [(0, 0, 0, to), (0, 0, 1, to), (0, 1, 0, to), (1, 0, 0, to), (0, 0, 0, 8), (0, 0, 0, 0)]
    {
        let a = attribute(group, attr, flags, addr);
        let what = format!("attribute {group} {attr} {flags} {}", if addr == to { "good" } else { "bad" });
        s.pass(&format!("has {what}"), kvm, KVM_HAS_DEVICE_ATTR, &a);
        s.pass(&format!("get {what}"), kvm, KVM_GET_DEVICE_ATTR, &a);
        s.pass(&format!("set {what}"), kvm, KVM_SET_DEVICE_ATTR, &a);
    }
}

/// KVM_CHECK_EXTENSION of every number that a kernel may know, on both descriptors.
pub fn capabilities(s: &mut Session<'_>) {
    let (kvm, vm) = (s.system(), s.vm());
    for cap in 0..=250 {
        s.number(&format!("{cap} of the system"), kvm, KVM_CHECK_EXTENSION, cap);
        s.number(&format!("{cap} of a VM"), vm, KVM_CHECK_EXTENSION, cap);
    }
}

/// KVM_GET_SUPPORTED_CPUID and its kin: the header's count and what is written to it.
pub fn cpuid_lists(s: &mut Session<'_>) {
    let vm = s.vm();
    let (kvm, vcpu) = (s.system(), s.vcpu(vm, 0));
    for (name, fd, nr) in [
        ("supported", kvm, KVM_GET_SUPPORTED_CPUID),
        ("emulated", kvm, KVM_GET_EMULATED_CPUID),
        ("a vCPU's", vcpu, KVM_GET_CPUID2),
    ] {
        for room in [0u32, 1, 100, 256, 257, 1000, u32::MAX] {
            let mut header = [0u8; 8];
            header[..4].copy_from_slice(&room.to_le_bytes());
            s.pass_bytes(&format!("{name}, room for {room}"), fd, nr, &header);
            if room == 1 || name != "supported" {
                let left = s.take(0, 4);
                s.observe(
                    &format!("{name}, room for {room}, count afterwards"),
                    i64::from(u32::from_le_bytes([left[0], left[1], left[2], left[3]])),
                );
            }
        }
        let at = s.pages.read_only() - 8;
        s.put(s.pages.len() - 8, &100u32.to_le_bytes());
        s.number(&format!("{name}, rows into read-only memory"), fd, nr, at);
    }
}
