//! Hypercalls about other vCPUs: KVM_HC_SEND_IPI, KVM_HC_KICK_CPU and KVM_HC_SCHED_YIELD (KVM hypercalls.txt).

use crate::irqchip::delivery::{Delivery, DeliveryMode, Origin, Trigger};
use crate::irqchip::lapic::Accepted;
use crate::vcpu::Vcpu;
use softmmu::{Mode, Requests};

/// -KVM_EINVAL.
const EINVAL: u64 = -22i64 as u64;
/// -KVM_EOPNOTSUPP.
const EOPNOTSUPP: u64 = -95i64 as u64;
/// ICR bits that the destination of this call makes meaningless: shorthand (19:18) and destination (63:24).
const ICR_ADDRESS: u64 = 0xffff_ffff_ff0c_0000;

impl Vcpu {
    /// KVM_HC_SEND_IPI: one interrupt to each APIC ID whose bit is set, the first bit being `first`. Returns how many
    /// local APICs took it.
    pub(crate) fn pv_send_ipi(&mut self, bits: [u64; 2], first: u32, icr: u64, long: bool) -> u64 {
        if icr & ICR_ADDRESS != 0 {
            return EINVAL;
        }
        if !self.vm.has_irqchip() {
            return EOPNOTSUPP;
        }
        let width: u32 = if long { 64 } else { 32 };
        let wanted = |id: u32| {
            let n = id.checked_sub(first)?;
            let word = bits.get((n / width) as usize)?;
            (word >> (n % width) & 1 != 0).then_some(())
        };
        let message = Delivery {
            mode: DeliveryMode::from_bits(icr as u32 >> 8),
            trigger: Trigger::from_bit(icr & 1 << 15 != 0),
            level: icr & 1 << 14 != 0,
            origin: Origin::Ipi,
            ..Delivery::fixed(icr as u8, 0)
        };
        let mut taken = 0;
        for v in self.vm.vcpus.read().iter() {
            let accepted = v.irq.lapic().filter(|l| l.is_present() && wanted(l.apic_id()).is_some());
            if let Some(mut lapic) = accepted
                && lapic.accept(&message) != Accepted::Refused
            {
                drop(lapic);
                v.gate.request(Requests::EVENT);
                taken += 1;
            }
        }
        taken
    }

    /// KVM_HC_KICK_CPU: the vCPU with this APIC ID comes out of HLT, or does not go into the next one.
    pub(crate) fn pv_kick(&mut self, apic_id: u64) {
        if let Ok(dest) = u32::try_from(apic_id) {
            let kick = Delivery { mode: DeliveryMode::RemoteRead, ..Delivery::fixed(0, dest) };
            self.vm.send(&kick, None);
        }
    }

    /// KVM_HC_SCHED_YIELD: the caller has nothing to do before the vCPU with this APIC ID has run. Only a hint: if that one
    /// is in KVM_RUN, and another, this thread gives up its turn.
    pub(crate) fn pv_yield_to(&self, apic_id: u64) {
        let target = self.vm.vcpus.read().iter().any(|v| {
            v.index != self.shared.index
                && v.gate.mode() == Mode::Running
                && v.irq.lapic().is_some_and(|l| u64::from(l.apic_id()) == apic_id)
        });
        if target {
            std::thread::yield_now();
        }
    }
}
