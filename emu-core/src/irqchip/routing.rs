//! The GSI routing table: what each global system interrupt is wired to (KVM api, KVM_SET_GSI_ROUTING).
//!
//! A table of wires, no state: the default wiring, the rules for a VMM's own, and how the address and data of a
//! message-signalled interrupt are read.

use super::delivery::{Delivery, DeliveryMode, DestMode, Origin, Trigger};
use super::ioapic::IOAPIC_PINS;

/// GSIs are below this, and a table has at most as many routes (KVM_CAP_IRQ_ROUTING).
pub const MAX_IRQ_ROUTES: usize = 4096;

/// A message-signalled interrupt: what a device writes where (SDM vol. 3A, 10.11).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Msi {
    /// Address, low half: 0xfee in bits 31:20, destination in bits 19:12.
    pub address_lo: u32,
    /// Address, high half. With x2APIC ids: destination bits 31:8.
    pub address_hi: u32,
    /// Data: vector, delivery mode, trigger.
    pub data: u32,
}

impl Msi {
    /// The message. `x2apic_ids` says that the high address holds destination bits 31:8
    /// (KVM_X2APIC_API_USE_32BIT_IDS).
    pub const fn delivery(&self, x2apic_ids: bool) -> Delivery {
        let mut dest = self.address_lo >> 12 & 0xff;
        if x2apic_ids {
            dest |= self.address_hi & 0xffff_ff00;
        }
        Delivery {
            mode: DeliveryMode::from_bits(self.data >> 8),
            dest_mode: DestMode::from_bit(self.address_lo & 1 << 2 != 0),
            trigger: Trigger::from_bit(self.data & 1 << 15 != 0),
            redirection_hint: self.address_lo & 1 << 3 != 0,
            origin: Origin::Msi,
            ..Delivery::fixed((self.data & 0xff) as u8, dest)
        }
    }

    /// With x2APIC ids, bits 7:0 of the high address must be zero.
    pub const fn is_valid(&self, x2apic_ids: bool) -> bool {
        !x2apic_ids || self.address_hi & 0xff == 0
    }
}

/// The chips that a GSI can be wired to (`KVM_IRQCHIP_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Chip {
    /// The first 8259A, inputs 0 to 7.
    PicMaster,
    /// The second 8259A, inputs 0 to 7.
    PicSlave,
    /// The IOAPIC.
    Ioapic,
}

impl Chip {
    const fn pins(self) -> u32 {
        match self {
            Chip::PicMaster | Chip::PicSlave => 8,
            Chip::Ioapic => IOAPIC_PINS as u32,
        }
    }
}

/// What a GSI is wired to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Target {
    /// A pin of a chip.
    Pin {
        /// The chip.
        chip: Chip,
        /// The pin. In bounds for the chip, because [`Routing::new`] refuses others.
        pin: u8,
    },
    /// A message.
    Msi(Msi),
}

/// One route, as the VMM gives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The GSI.
    pub gsi: u32,
    /// What it is wired to.
    pub target: Target,
}

/// A routing table was refused (EINVAL; `TooMany` is EINVAL too).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RoutingError {
    /// More routes than MAX_IRQ_ROUTES.
    #[error("too many routes")]
    TooMany,
    /// A GSI at or above MAX_IRQ_ROUTES.
    #[error("GSI out of range")]
    Gsi,
    /// A pin that the chip does not have.
    #[error("no such pin")]
    Pin,
    /// A GSI twice to one chip, or a message together with anything else.
    #[error("conflicting routes for a GSI")]
    Conflict,
    /// An MSI address with reserved bits.
    #[error("invalid MSI address")]
    Msi,
}

/// The routing table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Routing {
    by_gsi: Vec<Vec<Target>>,
    /// For each chip and pin the GSI that is wired to it.
    by_pin: [[Option<u32>; IOAPIC_PINS]; 3],
    x2apic_ids: bool,
}

impl Routing {
    /// KVM's wiring after KVM_CREATE_IRQCHIP (KVM api 4.23): GSI n to IOAPIC pin n, and below 16 to PIC input n too.
    /// GSI 0 is not moved to pin 2; a VMM whose tables say so sets its own routes.
    pub fn default_irqchip() -> Routing {
        let mut routing = Routing::default();
        for gsi in 0..IOAPIC_PINS as u8 {
            routing.add(u32::from(gsi), Target::Pin { chip: Chip::Ioapic, pin: gsi });
            match gsi {
                0..8 => routing.add(u32::from(gsi), Target::Pin { chip: Chip::PicMaster, pin: gsi }),
                8..16 => routing.add(u32::from(gsi), Target::Pin { chip: Chip::PicSlave, pin: gsi - 8 }),
                _ => {}
            }
        }
        routing
    }

    /// The caller has checked both.
    fn add(&mut self, gsi: u32, target: Target) {
        let index = gsi as usize;
        if self.by_gsi.len() <= index {
            self.by_gsi.resize(index + 1, Vec::new());
        }
        self.by_gsi[index].push(target);
        if let Target::Pin { chip, pin } = target {
            self.by_pin[chip as usize][usize::from(pin)] = Some(gsi);
        }
    }

    /// A table of the VMM's own (KVM_SET_GSI_ROUTING).
    pub fn new(routes: &[Route], x2apic_ids: bool) -> Result<Routing, RoutingError> {
        if routes.len() > MAX_IRQ_ROUTES {
            return Err(RoutingError::TooMany);
        }
        let mut routing = Routing { x2apic_ids, ..Routing::default() };
        for &Route { gsi, target } in routes {
            if gsi as usize >= MAX_IRQ_ROUTES {
                return Err(RoutingError::Gsi);
            }
            match target {
                Target::Pin { chip, pin } if u32::from(pin) >= chip.pins() => return Err(RoutingError::Pin),
                Target::Msi(msi) if !msi.is_valid(x2apic_ids) => return Err(RoutingError::Msi),
                _ => {}
            }
            // A GSI may go to several chips, but once to each; a message stands alone.
            let conflict = routing.targets(gsi).iter().any(|other| match (other, &target) {
                (Target::Pin { chip: one, .. }, Target::Pin { chip: two, .. }) => one == two,
                _ => true,
            });
            if conflict {
                return Err(RoutingError::Conflict);
            }
            routing.add(gsi, target);
        }
        Ok(routing)
    }

    /// Whether the high half of an MSI's address holds destination bits.
    pub const fn x2apic_ids(&self) -> bool {
        self.x2apic_ids
    }

    /// Changes how MSIs are read (KVM_CAP_X2APIC_API).
    pub fn set_x2apic_ids(&mut self, x2apic_ids: bool) {
        self.x2apic_ids = x2apic_ids;
    }

    /// What a GSI is wired to; nothing for one that has no route.
    pub fn targets(&self, gsi: u32) -> &[Target] {
        self.by_gsi.get(gsi as usize).map_or(&[], Vec::as_slice)
    }

    /// All routes, in the order of GSIs.
    pub fn routes(&self) -> impl Iterator<Item = Route> + '_ {
        // At most 4096 GSIs: the number fits.
        self.by_gsi
            .iter()
            .enumerate()
            .flat_map(|(gsi, targets)| targets.iter().map(move |&target| Route { gsi: gsi as u32, target }))
    }

    /// The GSI that is wired to a pin: the one that the table names last, if there are several.
    pub fn gsi_of(&self, chip: Chip, pin: u8) -> Option<u32> {
        *self.by_pin[chip as usize].get(usize::from(pin))?
    }

    /// For KVM_CAP_SPLIT_IRQCHIP: the vectors whose EOI userspace's IOAPIC waits for, as (vector, message) of every
    /// level-triggered MSI route on a GSI below `pins`.
    pub fn level_messages(&self, pins: u32) -> impl Iterator<Item = Delivery> + '_ {
        self.routes()
            .take_while(move |route| route.gsi < pins)
            .filter_map(|route| match route.target {
                Target::Msi(msi) => Some(msi.delivery(self.x2apic_ids)),
                Target::Pin { .. } => None,
            })
            .filter(|message| message.trigger == Trigger::Level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn pin(gsi: u32, chip: Chip, pin: u8) -> Route {
        Route { gsi, target: Target::Pin { chip, pin } }
    }

    const fn msi(gsi: u32, address_hi: u32, data: u32) -> Route {
        Route { gsi, target: Target::Msi(Msi { address_lo: 0xfee0_0000, address_hi, data }) }
    }

    #[test]
    fn defaults() {
        let routing = Routing::default_irqchip();
        for gsi in 0..24u8 {
            let mut expected = vec![Target::Pin { chip: Chip::Ioapic, pin: gsi }];
            match gsi {
                0..8 => expected.push(Target::Pin { chip: Chip::PicMaster, pin: gsi }),
                8..16 => expected.push(Target::Pin { chip: Chip::PicSlave, pin: gsi - 8 }),
                _ => {}
            }
            assert_eq!(routing.targets(u32::from(gsi)), expected, "GSI {gsi}");
            assert_eq!(routing.gsi_of(Chip::Ioapic, gsi), Some(u32::from(gsi)));
        }
        assert_eq!(routing.gsi_of(Chip::PicSlave, 4), Some(12));
        assert_eq!(routing.gsi_of(Chip::PicSlave, 8), None);
        assert!(routing.targets(24).is_empty() && routing.targets(u32::MAX).is_empty());
        assert_eq!(routing.routes().count(), 40);
    }

    #[test]
    fn refusals() {
        use RoutingError::*;
        let rows: [(&[Route], Result<(), RoutingError>); 12] = [
            (&[], Ok(())),
            (&[pin(4095, Chip::Ioapic, 23)], Ok(())),
            (&[pin(4096, Chip::Ioapic, 0)], Err(Gsi)),
            (&[pin(0, Chip::Ioapic, 24)], Err(Pin)),
            (&[pin(0, Chip::PicMaster, 8)], Err(Pin)),
            (&[pin(0, Chip::PicSlave, 7), pin(0, Chip::Ioapic, 2), pin(0, Chip::PicMaster, 0)], Ok(())),
            (&[pin(0, Chip::Ioapic, 1), pin(0, Chip::Ioapic, 2)], Err(Conflict)),
            (&[pin(0, Chip::Ioapic, 1), pin(1, Chip::Ioapic, 1)], Ok(())),
            (&[pin(7, Chip::Ioapic, 1), msi(7, 0, 0x40)], Err(Conflict)),
            (&[msi(7, 0, 0x40), pin(7, Chip::Ioapic, 1)], Err(Conflict)),
            (&[msi(7, 0, 0x40), msi(7, 0, 0x41)], Err(Conflict)),
            (&[msi(7, 0x1ff, 0x40)], Err(Msi)),
        ];
        for (routes, expected) in rows {
            assert_eq!(Routing::new(routes, true).map(|_| ()), expected, "{routes:?}");
        }
        assert!(Routing::new(&[msi(7, 0x1ff, 0x40)], false).is_ok(), "not looked at without x2APIC ids");
        let many: Vec<Route> = (0..4097).map(|gsi| pin(gsi % 4096, Chip::Ioapic, 0)).collect();
        assert_eq!(Routing::new(&many[..4096], false).map(|_| ()), Ok(()));
        assert_eq!(Routing::new(&many, false), Err(TooMany));
    }

    #[test]
    fn messages() {
        let base = Delivery { origin: Origin::Msi, ..Delivery::fixed(0x55, 0x12) };
        let rows = [
            (0xfee1_2000, 0, 0x0055, false, base),
            (0xfee1_2004, 0, 0x0055, false, Delivery { dest_mode: DestMode::Logical, ..base }),
            (0xfee1_2008, 0, 0x0055, false, Delivery { redirection_hint: true, ..base }),
            (0xfee1_2000, 0, 0x8055, false, Delivery { trigger: Trigger::Level, ..base }),
            (0xfee1_2000, 0, 0x4155, false, Delivery { mode: DeliveryMode::LowestPriority, ..base }),
            (0xfee1_2000, 0, 0x0455, false, Delivery { mode: DeliveryMode::Nmi, ..base }),
            (0xfee1_2000, 0x3400, 0x0055, false, base),
            (0xfee1_2000, 0x3400, 0x0055, true, Delivery { dest: 0x3412, ..base }),
            (0xfee0_0000, 0xffff_ff00, 0x0055, true, Delivery { dest: 0xffff_ff00, ..base }),
        ];
        for (address_lo, address_hi, data, x2apic_ids, expected) in rows {
            let msi = Msi { address_lo, address_hi, data };
            assert_eq!(msi.delivery(x2apic_ids), expected, "{msi:x?}");
        }
    }

    #[test]
    fn level_messages_of_a_split_irqchip() {
        let routes = [msi(0, 0, 0x8041), msi(1, 0, 0x0042), msi(23, 0, 0x8043), msi(24, 0, 0x8044)];
        let routing = Routing::new(&routes, false).unwrap();
        let vectors: Vec<u8> = routing.level_messages(24).map(|message| message.vector).collect();
        assert_eq!(vectors, [0x41, 0x43]);
    }
}
