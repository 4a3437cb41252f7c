//! What each vCPU's CPUID says: KVM's supported leaves, with the fields that belong to the machine filled in
//! (APIC id, topology, TSC-deadline timer).
//!
//! Which features exist is KVM's word, never this module's. KVM api 4.46 and 4.20; SDM vol. 2A, CPUID.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const KVM_CPUID_FLAG_SIGNIFCANT_INDEX: u32 = 1;

/// Fills in leaves for vCPU `id` of `cpus`. `tsc_deadline`: KVM_CAP_TSC_DEADLINE_TIMER.
pub fn for_vcpu(supported: &CpuId, id: u32, cpus: u32, tsc_deadline: bool) -> Result<CpuId, String> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported.as_slice().to_vec();
    let had_topology = entries.iter().any(|entry| entry.function == 0xb);
    entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    if had_topology {
        entries.extend(topology(id, cpus));
    }
    for entry in &mut entries {
        adjust(entry, id, cpus, tsc_deadline);
    }
    CpuId::from_entries(&entries).map_err(|error| format!("CPUID table: {error:?}"))
}

/// Bits of an APIC id that number the processors in the (only) package.
fn package_shift(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

/// Leaf 0BH: one thread per core, `cpus` cores in one package (SDM vol. 3A, 9.9.1).
fn topology(id: u32, cpus: u32) -> [kvm_cpuid_entry2; 3] {
    const LEVEL_THREAD: u32 = 1 << 8;
    const LEVEL_CORE: u32 = 2 << 8;
    let level = |index: u32, eax: u32, ebx: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: index | kind,
        edx: id,
        ..Default::default()
    };
    [level(0, 0, 1, LEVEL_THREAD), level(1, package_shift(cpus), cpus, LEVEL_CORE), level(2, 0, 0, 0)]
}

fn adjust(entry: &mut kvm_cpuid_entry2, id: u32, cpus: u32, tsc_deadline: bool) {
    match entry.function {
        1 => {
            const TSC_DEADLINE: u32 = 1 << 24;
            const HYPERVISOR: u32 = 1 << 31;
            const HTT: u32 = 1 << 28;
            // EBX: brand index kept, CLFLUSH line 8 x 8 bytes, logical processors, initial APIC id.
            entry.ebx = (entry.ebx & 0xff) | (8 << 8) | (cpus.min(255) << 16) | (id << 24);
            entry.ecx = (entry.ecx & !TSC_DEADLINE) | HYPERVISOR;
            if tsc_deadline {
                entry.ecx |= TSC_DEADLINE;
            }
            entry.edx = if cpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Caches: EAX 25:14 threads that share it, 31:26 cores in the package; a type of 0 ends the list.
        4 if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { cpus } else { 1 };
            entry.eax &= 0x3fff;
            entry.eax |= (sharing - 1) << 14;
            entry.eax |= ((1 << package_shift(cpus)) - 1).min(63) << 26;
        }
        // AMD: ECX 7:0 cores - 1, 15:12 width of the core id.
        0x8000_0008 => {
            entry.ecx = (entry.ecx & !0xf0ff) | ((cpus - 1) & 0xff) | (package_shift(cpus) << 12);
        }
        // AMD: caches as in leaf 4.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { cpus } else { 1 };
            entry.eax = (entry.eax & 0x3fff) | ((sharing - 1) << 14);
        }
        // AMD: extended APIC id, core id with one thread per core, node 0 of 1.
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|entry| entry.function == function && entry.index == index).unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let supported = CpuId::from_entries(&[leaf(1), leaf(0xb), leaf(0x1f), leaf(0x8000_001e)]).unwrap();
        for id in 0..3 {
            let cpuid = for_vcpu(&supported, id, 3, true).unwrap();
            assert_eq!(find(&cpuid, 1, 0).ebx >> 24, id);
            assert_eq!((find(&cpuid, 1, 0).ebx >> 16) & 0xff, 3);
            assert_eq!(find(&cpuid, 0xb, 0).edx, id);
            assert_eq!(find(&cpuid, 0xb, 1).eax, 2, "two bits hold three processors");
            assert_eq!(find(&cpuid, 0xb, 1).ebx, 3);
            assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, id);
            assert!(cpuid.as_slice().iter().all(|entry| entry.function != 0x1f));
        }
    }

    #[test]
    fn nothing_is_promised_that_kvm_does_not_have() {
        let supported = CpuId::from_entries(&[leaf(1)]).unwrap();
        let one = for_vcpu(&supported, 0, 1, false).unwrap();
        assert_eq!(find(&one, 1, 0).ecx & (1 << 24), 0, "TSC deadline");
        assert_eq!(find(&one, 1, 0).edx & (1 << 28), 0, "HTT");
        assert!(one.as_slice().iter().all(|entry| entry.function != 0xb));
    }
}
