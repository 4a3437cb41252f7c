//! The binary statistics of the software backend: which counter of `emu-core` and `softmmu` is which of KVM's.
//!
//! A statistic without a row here is 0: what it counts does not happen (huge pages, nested guests, halt polling).
//!
//! Not here: names and units (`kvm_api::stats`), when the counters are shown (`emu_core::stats`).

use emu_core::stats::{Shown, StatsSink};
use kvm_api::stats::{StatsBlock, VCPU_STATS, VM_STATS, place};
use softmmu::stats::ShadowStats;
use std::sync::Arc;

type VmRow = (&'static str, fn(&ShadowStats) -> u64);
type VcpuRow = (&'static str, fn(&Shown<'_>) -> u64);

const VM: &[VmRow] = &[
    ("remote_tlb_flush", |s| s.flushes),
    ("remote_tlb_flush_requests", |s| s.flush_requests),
    ("mmu_shadow_zapped", |s| s.zapped),
    ("mmu_pte_write", |s| s.gpte_writes),
    ("mmu_flooded", |s| s.flooded),
    ("mmu_recycled", |s| s.recycled),
    ("mmu_cache_miss", |s| s.created),
    // Large guest pages are mapped by 4 KiB sptes.
    ("pages_4k", |s| s.pages_4k),
    ("max_mmu_rmap_size", |s| s.rmap_peak),
];

const VCPU: &[VcpuRow] = &[
    ("halt_wakeup", |s| s.stats.halt_wakeups),
    ("halt_wait_ns", |s| s.stats.halt_ns),
    ("blocking", |s| u64::from(s.blocking)),
    // A fault is what neither the TLB nor the shadow tables could answer.
    ("pf_taken", |s| s.mmu.walks),
    ("pf_fixed", |s| s.mmu.mapped),
    ("pf_emulate", |s| s.mmu.tracked_writes + s.mmu.mmio),
    ("pf_mmio_spte_created", |s| s.mmu.mmio),
    ("pf_guest", |s| s.mmu.page_faults),
    ("tlb_flush", |s| s.mmu.flushes),
    ("invlpg", |s| s.mmu.invlpgs),
    ("exits", |s| s.stats.exits),
    ("io_exits", |s| s.stats.io_exits),
    ("mmio_exits", |s| s.stats.mmio_exits),
    ("signal_exits", |s| s.stats.interrupted_exits),
    ("halt_exits", |s| s.stats.halts),
    ("request_irq_exits", |s| s.stats.irq_window_exits),
    ("host_state_reload", |s| s.stats.runs),
    ("fpu_reload", |s| s.stats.runs),
    // Every instruction is emulated here.
    ("insn_emulation", |s| s.retired),
    ("insn_emulation_fail", |s| s.stats.internal_errors),
    ("hypercalls", |s| s.stats.hypercalls),
    ("irq_injections", |s| s.stats.interrupts),
    ("nmi_injections", |s| s.stats.nmis),
    ("req_event", |s| s.stats.requests),
];

/// Shows a VM's counters in an open statistics file.
pub fn vm_sink(block: Arc<dyn StatsBlock>) -> softmmu::stats::StatsSink {
    let places: Vec<_> = VM.iter().filter_map(|(name, f)| Some((place(VM_STATS, name)?, *f))).collect();
    Box::new(move |s| {
        for (at, value) in &places {
            block.store(*at, value(s));
        }
    })
}

/// Shows a vCPU's counters in an open statistics file.
pub fn vcpu_sink(block: Arc<dyn StatsBlock>) -> StatsSink {
    let places: Vec<_> = VCPU.iter().filter_map(|(name, f)| Some((place(VCPU_STATS, name)?, *f))).collect();
    let waits = place(VCPU_STATS, "halt_wait_hist");
    Box::new(move |s| {
        for (at, value) in &places {
            block.store(*at, value(s));
        }
        for (bucket, count) in s.halt_waits.0.iter().enumerate() {
            block.store(waits.unwrap_or(usize::MAX).saturating_add(bucket), *count);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_a_statistic() {
        for (name, _) in VM {
            assert!(place(VM_STATS, name).is_some(), "{name}");
        }
        for (name, _) in VCPU {
            assert!(place(VCPU_STATS, name).is_some(), "{name}");
        }
        assert_eq!(emu_core::stats::HALT_BUCKETS, kvm_api::stats::TIME_BUCKETS);
    }
}
