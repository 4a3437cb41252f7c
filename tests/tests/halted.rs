//! A halted vCPU whose timer wakes nobody, where time is skipped instead of waited for: it must hear its caller.

use emu_core::{Exit, Host, Processor, Vcpu, Vm};
use memmap2::MmapMut;
use softmmu::{MemRegion, MemRegionFlags, Requests, VcpuGate};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use x86_arch::{Gpa, Hva, Seg};

/// Skips time; the fifth time somebody wants the vCPU out.
#[derive(Default)]
struct Impatient {
    now: AtomicU64,
    skips: AtomicU64,
    gate: OnceLock<Arc<VcpuGate>>,
}

impl Host for Impatient {
    fn tsc(&self, _: u64) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
    fn tsc_khz(&self) -> u32 {
        1_000_000
    }
    fn monotonic_ns(&self, _: u64) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
    fn realtime_ns(&self, _: u64) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
    fn random(&self) -> u64 {
        4
    }
    fn skip_to(&self, deadline_ns: u64) -> bool {
        self.now.fetch_max(deadline_ns, Ordering::Relaxed);
        let skips = self.skips.fetch_add(1, Ordering::Relaxed);
        if skips == 5
            && let Some(gate) = self.gate.get()
        {
            gate.request(Requests::EXIT);
        }
        assert!(skips < 1000, "nobody listens");
        true
    }
}

#[test]
fn skipped_time_does_not_deafen() {
    let mut ram = MmapMut::map_anon(0x1000).expect("a page");
    // HLT, with interrupts off.
    ram[0x100] = 0xf4;
    let host = Arc::new(Impatient::default());
    let vm = Vm::new(host.clone());
    assert!(vm.create_irqchip(false));
    vm.with_irqchip(|c| c.create_pit());
    let region = MemRegion {
        slot: 0,
        as_id: 0,
        gpa: Gpa(0),
        size: 0x1000,
        hva: Hva(ram.as_ptr() as u64),
        flags: MemRegionFlags::empty(),
    };
    vm.world().exclusive(None, |ex| vm.mmu.set_memory_region(ex, region)).expect("the first slot");
    let mut vcpu = Vcpu::new(&vm, 0, true);
    let mut cs = *vcpu.segment(Seg::Cs);
    (cs.base, cs.selector.0) = (0, 0);
    vcpu.set_segment(Seg::Cs, cs);
    vcpu.set_rip(0x100);
    // The PIT ticks.
    for (port, value) in [(0x43u16, 0x34u8), (0x40, 0x10), (0x40, 0)] {
        assert!(vcpu.device_pio_write(port, &[value]));
    }
    assert!(host.gate.set(vcpu.shared.gate.clone()).is_ok());
    assert_eq!(Processor::new(vcpu).run(None), Exit::Interrupted);
    assert!(host.skips.load(Ordering::Relaxed) > 5, "the PIT has ticked");
}
