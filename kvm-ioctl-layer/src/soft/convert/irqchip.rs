//! The interrupt controllers', the PIT's and the routing table's structures, both ways. The local APIC's is its register page.

use crate::user_mem::{member, set_member};
use emu_core::irqchip::ioapic::{IOAPIC_PINS, IoapicState, RedirectionEntry};
use emu_core::irqchip::pic::PicState;
use emu_core::irqchip::pit::{PitChannelState, PitPhase, PitState};
use emu_core::irqchip::routing::{Chip, Msi, Route, Target};
use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;

/// Offset of the chip's state in `kvm_irqchip`.
const CHIP: usize = core::mem::offset_of!(kvm_irqchip, chip);

/// One PIC in KVM_GET_IRQCHIP's form.
pub fn pic(k: &mut kvm_irqchip, p: &PicState) {
    let PicState {
        last_irr,
        irr,
        imr,
        isr,
        priority_add,
        irq_base,
        read_reg_select,
        poll,
        special_mask,
        init_state,
        auto_eoi,
        rotate_on_auto_eoi,
        special_fully_nested_mode,
        init4,
        elcr,
        elcr_mask,
    } = *p;
    let pic = kvm_pic_state {
        last_irr,
        irr,
        imr,
        isr,
        priority_add,
        irq_base,
        read_reg_select,
        poll,
        special_mask,
        init_state,
        auto_eoi,
        rotate_on_auto_eoi,
        special_fully_nested_mode,
        init4,
        elcr,
        elcr_mask,
    };
    set_member(k, CHIP, &pic);
}

/// One PIC from KVM_SET_IRQCHIP's form.
pub fn set_pic(k: &kvm_irqchip) -> PicState {
    let kvm_pic_state {
        last_irr,
        irr,
        imr,
        isr,
        priority_add,
        irq_base,
        read_reg_select,
        poll,
        special_mask,
        init_state,
        auto_eoi,
        rotate_on_auto_eoi,
        special_fully_nested_mode,
        init4,
        elcr,
        elcr_mask,
    } = member(k, CHIP);
    PicState {
        last_irr,
        irr,
        imr,
        isr,
        priority_add,
        irq_base,
        read_reg_select,
        poll,
        special_mask,
        init_state,
        auto_eoi,
        rotate_on_auto_eoi,
        special_fully_nested_mode,
        init4,
        elcr,
        elcr_mask,
    }
}

/// The IOAPIC in KVM_GET_IRQCHIP's form. `irr` is what [`emu_core::irqchip::ioapic::Ioapic::saved_irr`] says.
pub fn ioapic(k: &mut kvm_irqchip, s: &IoapicState, irr: u32) {
    // KVM has no place for the last two: `irr` as saved carries requests not sent, lines are driven again.
    let IoapicState { base_address, ioregsel, id, irr: _, redirtbl, irr_delivered: _, irq_states: _ } = s;
    set_member(k, CHIP, base_address);
    set_member(k, CHIP + 8, ioregsel);
    set_member(k, CHIP + 12, id);
    set_member(k, CHIP + 16, &irr);
    set_member(k, CHIP + 20, &0u32);
    for (n, e) in redirtbl.iter().enumerate() {
        set_member(k, CHIP + 24 + 8 * n, &e.0);
    }
}

/// The IOAPIC from KVM_SET_IRQCHIP's form.
pub fn set_ioapic(k: &kvm_irqchip) -> IoapicState {
    let mut redirtbl = [RedirectionEntry::RESET; IOAPIC_PINS];
    for (n, e) in redirtbl.iter_mut().enumerate() {
        *e = RedirectionEntry(member(k, CHIP + 24 + 8 * n));
    }
    IoapicState {
        base_address: member(k, CHIP),
        ioregsel: member(k, CHIP + 8),
        id: member(k, CHIP + 12),
        irr: member(k, CHIP + 16),
        redirtbl,
        irr_delivered: 0,
        irq_states: [0; IOAPIC_PINS],
    }
}

/// `kvm_pit_state2.reserved[4]`: the words before it have the phase. KVM leaves them zero, and looks at none.
const PIT_PHASE: u32 = 1 << 0;
/// `kvm_pit_state2.reserved[4]`: IRQ 0 was acknowledged.
const PIT_PHASE_ACK: u32 = 1 << 1;

/// KVM_GET_PIT2. The phase goes into reserved words, so that a VMM that keeps the structure whole loses no tick.
pub fn pit(s: &PitState, phase: &Option<PitPhase>) -> kvm_pit_state2 {
    // `edges_seen` follows from the phase; `reinject` is KVM_REINJECT_CONTROL's, write-only in KVM too.
    let PitState { channels, flags, edges_seen: _, reinject: _, pending: _, irq_ack: _ } = s;
    let mut k = kvm_pit_state2 { flags: *flags, ..Default::default() };
    if let Some(PitPhase { read_at, unseen, pending, irq_ack }) = *phase {
        let ack = if irq_ack { PIT_PHASE_ACK } else { 0 };
        let (low, high) = (read_at as u32, (read_at >> 32) as u32);
        k.reserved[..5].copy_from_slice(&[low, high, unseen, pending, PIT_PHASE | ack]);
    }
    for (to, from) in k.channels.iter_mut().zip(channels) {
        let PitChannelState {
            count,
            latched_count,
            count_latched,
            status_latched,
            status,
            read_state,
            write_state,
            write_latch,
            rw_mode,
            mode,
            bcd,
            gate,
            count_load_time,
        } = *from;
        *to = kvm_pit_channel_state {
            count,
            latched_count,
            count_latched,
            status_latched,
            status,
            read_state,
            write_state,
            write_latch,
            rw_mode,
            mode,
            bcd,
            gate,
            count_load_time,
        };
    }
    k
}

/// The phase in KVM_SET_PIT2's structure, if one of ours was kept.
pub fn pit_phase(k: &kvm_pit_state2) -> Option<PitPhase> {
    let [low, high, unseen, pending, flags, ..] = k.reserved;
    (flags & PIT_PHASE != 0).then_some(PitPhase {
        read_at: u64::from(high) << 32 | u64::from(low),
        unseen,
        pending,
        irq_ack: flags & PIT_PHASE_ACK != 0,
    })
}

/// The channels of KVM_SET_PIT2.
pub fn set_pit(k: &kvm_pit_state2) -> [PitChannelState; 3] {
    k.channels.map(|c| {
        let kvm_pit_channel_state {
            count,
            latched_count,
            count_latched,
            status_latched,
            status,
            read_state,
            write_state,
            write_latch,
            rw_mode,
            mode,
            bcd,
            gate,
            count_load_time,
        } = c;
        PitChannelState {
            count,
            latched_count,
            count_latched,
            status_latched,
            status,
            read_state,
            write_state,
            write_latch,
            rw_mode,
            mode,
            bcd,
            gate,
            count_load_time,
        }
    })
}

/// One row of KVM_SET_GSI_ROUTING.
pub fn route(k: &kvm_irq_routing_entry) -> Result<Route> {
    const UNION: usize = core::mem::offset_of!(kvm_irq_routing_entry, u);
    let target = match k.type_ {
        KVM_IRQ_ROUTING_IRQCHIP if k.flags == 0 => {
            let c: kvm_irq_routing_irqchip = member(k, UNION);
            let chip = match c.irqchip {
                KVM_IRQCHIP_PIC_MASTER => Chip::PicMaster,
                KVM_IRQCHIP_PIC_SLAVE => Chip::PicSlave,
                KVM_IRQCHIP_IOAPIC => Chip::Ioapic,
                _ => return Err(Errno::EINVAL),
            };
            Target::Pin { chip, pin: u8::try_from(c.pin).map_err(|_| Errno::EINVAL)? }
        }
        KVM_IRQ_ROUTING_MSI if k.flags & !KVM_MSI_VALID_DEVID == 0 => {
            let m: kvm_irq_routing_msi = member(k, UNION);
            Target::Msi(Msi { address_lo: m.address_lo, address_hi: m.address_hi, data: m.data })
        }
        _ => return Err(Errno::EINVAL),
    };
    Ok(Route { gsi: k.gsi, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn irqchip_structures_there_and_back() {
        let mut k = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        let mut s = set_ioapic(&k);
        s.base_address = 0xfec0_0000;
        s.id = 5;
        s.redirtbl[23] = RedirectionEntry(0x0300_0000_0000_a0f1);
        ioapic(&mut k, &s, 0x8001);
        let back = set_ioapic(&k);
        assert_eq!(
            (back.base_address, back.id, back.irr, back.redirtbl),
            (0xfec0_0000, 5, 0x8001, s.redirtbl)
        );
        let p =
            PicState { irr: 1, imr: 2, isr: 3, irq_base: 8, elcr: 0x20, ..set_pic(&kvm_irqchip::default()) };
        pic(&mut k, &p);
        assert_eq!(format!("{:?}", set_pic(&k)), format!("{p:?}"));
    }
}
