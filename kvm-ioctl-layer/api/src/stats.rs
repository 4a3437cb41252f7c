//! The binary statistics of VMs and vCPUs: which there are, and the file that KVM_GET_STATS_FD gives (KVM api 4.133).
//!
//! Not here: where the values come from (the backends), the file itself (`kvm-ioctl-layer`).

use crate::uapi::*;

/// One statistic: a row of the descriptor block.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Its name.
    pub name: &'static str,
    /// Type, unit and base (KVM_STATS_TYPE_*, KVM_STATS_UNIT_*, KVM_STATS_BASE_*).
    pub flags: u32,
    /// The unit's power of the base.
    pub exponent: i16,
    /// Values: 1, or the buckets of a histogram.
    pub size: u16,
}

/// KVM_STATS_NAME_SIZE: bytes of a name, its end included.
pub const NAME_SIZE: usize = 48;
/// Buckets of a logarithmic histogram of times.
pub const TIME_BUCKETS: usize = 32;

const fn stat(name: &'static str, flags: u32, exponent: i16, size: u16) -> Stat {
    Stat { name, flags, exponent, size }
}
const fn counter(name: &'static str) -> Stat {
    stat(name, KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_NONE, 0, 1)
}
const fn now(name: &'static str) -> Stat {
    stat(name, KVM_STATS_TYPE_INSTANT | KVM_STATS_UNIT_NONE, 0, 1)
}
const fn flag(name: &'static str) -> Stat {
    stat(name, KVM_STATS_TYPE_INSTANT | KVM_STATS_UNIT_BOOLEAN, 0, 1)
}
const fn peak(name: &'static str) -> Stat {
    stat(name, KVM_STATS_TYPE_PEAK | KVM_STATS_UNIT_NONE, 0, 1)
}
const fn nanoseconds(name: &'static str) -> Stat {
    stat(name, KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_SECONDS, -9, 1)
}
const fn time_histogram(name: &'static str) -> Stat {
    stat(name, KVM_STATS_TYPE_LOG_HIST | KVM_STATS_UNIT_SECONDS, -9, TIME_BUCKETS as u16)
}

/// A VM's statistics, with x86's names and units.
pub const VM_STATS: &[Stat] = &[
    counter("remote_tlb_flush"),
    counter("remote_tlb_flush_requests"),
    counter("mmu_shadow_zapped"),
    counter("mmu_pte_write"),
    counter("mmu_pde_zapped"),
    counter("mmu_flooded"),
    counter("mmu_recycled"),
    counter("mmu_cache_miss"),
    now("mmu_unsync"),
    now("pages_4k"),
    now("pages_2m"),
    now("pages_1g"),
    now("nx_lpage_splits"),
    peak("max_mmu_rmap_size"),
    peak("max_mmu_page_hash_collisions"),
];

/// A vCPU's statistics, with x86's names and units.
pub const VCPU_STATS: &[Stat] = &[
    counter("halt_successful_poll"),
    counter("halt_attempted_poll"),
    counter("halt_poll_invalid"),
    counter("halt_wakeup"),
    nanoseconds("halt_poll_success_ns"),
    nanoseconds("halt_poll_fail_ns"),
    nanoseconds("halt_wait_ns"),
    time_histogram("halt_poll_success_hist"),
    time_histogram("halt_poll_fail_hist"),
    time_histogram("halt_wait_hist"),
    flag("blocking"),
    counter("pf_taken"),
    counter("pf_fixed"),
    counter("pf_emulate"),
    counter("pf_spurious"),
    counter("pf_fast"),
    counter("pf_mmio_spte_created"),
    counter("pf_guest"),
    counter("tlb_flush"),
    counter("invlpg"),
    counter("exits"),
    counter("io_exits"),
    counter("mmio_exits"),
    counter("signal_exits"),
    counter("irq_window_exits"),
    counter("nmi_window_exits"),
    counter("l1d_flush"),
    counter("halt_exits"),
    counter("request_irq_exits"),
    counter("irq_exits"),
    counter("host_state_reload"),
    counter("fpu_reload"),
    counter("insn_emulation"),
    counter("insn_emulation_fail"),
    counter("hypercalls"),
    counter("irq_injections"),
    counter("nmi_injections"),
    counter("req_event"),
    counter("nested_run"),
    counter("directed_yield_attempted"),
    counter("directed_yield_successful"),
    counter("preemption_reported"),
    counter("preemption_other"),
    flag("guest_mode"),
    counter("notify_window_exits"),
];

/// The bucket of a logarithmic histogram that a value belongs to: [0, 1), [1, 2), [2, 4) … and the last without an end.
pub fn bucket(value: u64) -> usize {
    ((u64::BITS - value.leading_zeros()) as usize).min(TIME_BUCKETS - 1)
}

/// The place of a statistic's first value in the data block, in values.
pub fn place(stats: &[Stat], name: &str) -> Option<usize> {
    let mut at = 0;
    for s in stats {
        if s.name == name {
            return Some(at);
        }
        at += usize::from(s.size);
    }
    None
}

/// Values in the data block.
pub fn values(stats: &[Stat]) -> usize {
    stats.iter().map(|s| usize::from(s.size)).sum()
}

const HEADER: usize = size_of::<kvm_stats_header>();
const DESCRIPTOR: usize = size_of::<kvm_stats_desc>() + NAME_SIZE;

/// Where the data block begins in the file, in bytes: a multiple of 8.
pub fn data_offset(stats: &[Stat]) -> usize {
    HEADER + NAME_SIZE + stats.len() * DESCRIPTOR
}

/// The file's immutable part: header, id, descriptors. The data block follows.
pub fn head(stats: &[Stat], id: &str) -> Vec<u8> {
    let name = |text: &str| {
        let mut bytes = [0; NAME_SIZE];
        let n = text.len().min(NAME_SIZE - 1);
        bytes[..n].copy_from_slice(&text.as_bytes()[..n]);
        bytes
    };
    let mut file = Vec::with_capacity(data_offset(stats));
    // flags, name_size, num_desc, id_offset, desc_offset, data_offset.
    for word in [0, NAME_SIZE, stats.len(), HEADER, HEADER + NAME_SIZE, data_offset(stats)] {
        file.extend((word as u32).to_le_bytes());
    }
    file.extend(name(id));
    let mut offset = 0u32;
    for s in stats {
        file.extend(s.flags.to_le_bytes());
        file.extend(s.exponent.to_le_bytes());
        file.extend(s.size.to_le_bytes());
        file.extend(offset.to_le_bytes());
        // bucket_size: of linear histograms only.
        file.extend(0u32.to_le_bytes());
        file.extend(name(s.name));
        offset += 8 * u32::from(s.size);
    }
    file
}

/// The data block of an open statistics file, which a backend fills: value n is the n-th 64-bit word.
pub trait StatsBlock: Send + Sync {
    /// Stores a value. One beyond the end is dropped.
    fn store(&self, at: usize, value: u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_are_aligned_and_follow_each_other() {
        for stats in [VM_STATS, VCPU_STATS] {
            let head = head(stats, "kvm-1");
            assert_eq!(head.len(), data_offset(stats));
            assert_eq!(head.len() % 8, 0);
            assert_eq!(&head[24..30], b"kvm-1\0");
            for (i, s) in stats.iter().enumerate() {
                let at = 72 + 64 * i;
                let word = |k: usize| u32::from_le_bytes(head[at + k..at + k + 4].try_into().unwrap());
                assert_eq!(word(0), s.flags, "{}", s.name);
                assert_eq!(word(8) as usize, 8 * place(stats, s.name).unwrap(), "{}", s.name);
                assert!(s.name.len() < NAME_SIZE);
            }
        }
        assert_eq!(values(VM_STATS), 15);
        assert_eq!(values(VCPU_STATS), 42 + 3 * 32);
        assert_eq!(place(VM_STATS, "no such"), None);
    }

    #[test]
    fn buckets() {
        for (value, expected) in
            [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1 << 29, 30), (1 << 30, 31), (u64::MAX, 31)]
        {
            assert_eq!(bucket(value), expected, "{value}");
        }
    }
}
