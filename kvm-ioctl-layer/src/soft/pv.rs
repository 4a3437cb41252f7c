//! Capabilities of the VM that are about KVM's own additions to the processor. Each is off until it is asked for.
//!
//! What they do is in `emu-core`'s `pv` and `hypercall`.

use emu_core::Vm;
use kvm_api::errno::{Errno, Result};
use std::sync::atomic::Ordering;

/// KVM_CAP_EXIT_HYPERCALL: the hypercalls that user space performs.
pub fn exit_hypercall(vm: &Vm, mask: u64) -> Result {
    if mask & !emu_core::hypercall::EXITS != 0 {
        return Err(Errno::EINVAL);
    }
    vm.hypercall_exits.store(mask, Ordering::Relaxed);
    Ok(())
}

/// KVM_CAP_X86_APIC_BUS_CYCLES_NS: what a cycle of the local APICs' timers takes.
pub fn apic_bus_cycles(vm: &Vm, ns: u64) -> Result {
    // The longest period, 2^32 - 1 cycles divided by 128, must fit 64 bits; what is left fits 32.
    let longest = (u64::from(u32::MAX) * 128).checked_mul(ns);
    let Some(ns) = u32::try_from(ns).ok().filter(|&ns| ns != 0 && longest.is_some()) else {
        return Err(Errno::EINVAL);
    };
    if !vm.has_irqchip() {
        return Err(Errno::ENXIO);
    }
    if !vm.vcpus.read().is_empty() {
        return Err(Errno::EINVAL);
    }
    vm.irq.bus_cycle_ns.store(ns, Ordering::Relaxed);
    Ok(())
}
