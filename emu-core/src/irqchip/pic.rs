//! The two cascaded 8259A interrupt controllers of a PC, with the edge/level registers of its chip sets.
//!
//! Intel 8259A data sheet; where KVM's in-kernel PIC differs in what software can see of its state, KVM decides, because
//! KVM_GET_IRQCHIP shows that state. ICW1's LTIM and SNGL bits are ignored, as there: a PC sets levels in the ELCR and
//! has two controllers. Which GSI is wired to which input is [`super::routing`]'s affair.

#[cfg(test)]
mod tests;

use super::{LineStatus, SourceId};

/// Inputs of both controllers.
pub const PIC_PINS: usize = 16;
/// The master's input that the slave is wired to.
const CASCADE: u8 = 2;
/// The input that a spurious interrupt names.
const SPURIOUS: u8 = 7;

/// Initialisation: which command word the data port expects (the values are those of `kvm_pic_state.init_state`).
mod init {
    pub const DONE: u8 = 0;
    pub const ICW2: u8 = 1;
    pub const ICW3: u8 = 2;
    pub const ICW4: u8 = 3;
}

/// One 8259A. Names and values are those of `kvm_pic_state`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PicState {
    /// Input levels when last seen: the memory of the edge detector.
    pub last_irr: u8,
    /// Interrupt request register.
    pub irr: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// In-service register.
    pub isr: u8,
    /// The input of highest priority.
    pub priority_add: u8,
    /// ICW2: the vector of input 0.
    pub irq_base: u8,
    /// OCW3: reads of the command port show the ISR (1) or the IRR (0).
    pub read_reg_select: u8,
    /// OCW3: the next read is a poll.
    pub poll: u8,
    /// OCW3: special mask mode.
    pub special_mask: u8,
    /// Which initialisation command word comes next: 0 none, 1 ICW2, 2 ICW3, 3 ICW4.
    pub init_state: u8,
    /// ICW4: automatic end of interrupt.
    pub auto_eoi: u8,
    /// OCW2: rotate at each automatic end of interrupt.
    pub rotate_on_auto_eoi: u8,
    /// ICW4: special fully nested mode.
    pub special_fully_nested_mode: u8,
    /// ICW1: an ICW4 will come.
    pub init4: u8,
    /// Inputs that are level-triggered.
    pub elcr: u8,
    /// Bits of `elcr` that can be set: the timer, keyboard, cascade, clock and coprocessor are always edges.
    pub elcr_mask: u8,
}

impl PicState {
    /// The rank (0 is highest) of the most urgent input in `inputs`; 8 if there is none.
    fn rank(&self, inputs: u8) -> u8 {
        let top = u32::from(self.priority_add & 7);
        // Rotated so that the input of highest priority is bit 0; 8 for an empty set.
        inputs.rotate_right(top).trailing_zeros() as u8
    }

    fn input_of_rank(&self, rank: u8) -> u8 {
        rank.wrapping_add(self.priority_add) & 7
    }

    /// The input whose interrupt would be taken now, if INT is asserted.
    fn request(&self, is_master: bool) -> Option<u8> {
        let requested = self.rank(self.irr & !self.imr);
        let mut in_service = self.isr;
        if self.special_mask != 0 {
            // A masked level does not hold back others.
            in_service &= !self.imr;
        }
        if self.special_fully_nested_mode != 0 && is_master {
            // The slave may interrupt its own interrupts.
            in_service &= !(1 << CASCADE);
        }
        (requested < self.rank(in_service)).then(|| self.input_of_rank(requested))
    }

    fn set_input(&mut self, input: u8, level: bool) -> LineStatus {
        let bit = 1u8 << (input & 7);
        // An edge input that is high already has no edge, and says that it was delivered, as KVM's does.
        let level_triggered = self.elcr & bit != 0;
        let requests = level && (level_triggered || self.last_irr & bit == 0);
        let was_requested = requests && self.irr & bit != 0;
        if requests {
            self.irr |= bit;
        } else if level_triggered {
            self.irr &= !bit;
        }
        self.last_irr = if level { self.last_irr | bit } else { self.last_irr & !bit };
        if self.imr & bit != 0 {
            LineStatus::IGNORED
        } else if was_requested {
            LineStatus::COALESCED
        } else {
            LineStatus::delivered(1)
        }
    }

    /// INTA for `input`. Returns whether that was also its end.
    fn acknowledge(&mut self, input: u8) -> bool {
        let bit = 1u8 << (input & 7);
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if self.auto_eoi == 0 {
            self.isr |= bit;
            return false;
        }
        if self.rotate_on_auto_eoi != 0 {
            self.priority_add = input.wrapping_add(1) & 7;
        }
        true
    }

    /// ICW1: starts the initialisation. Returns the inputs whose interrupts are gone.
    fn write_icw1(&mut self, value: u8) -> u8 {
        let dropped = self.isr | self.irr & !self.elcr;
        self.init4 = value & 1;
        self.last_irr = 0;
        self.irr &= self.elcr;
        self.isr = 0;
        self.imr = 0;
        self.priority_add = 0;
        self.special_mask = 0;
        self.read_reg_select = 0;
        self.poll = 0;
        if self.init4 == 0 {
            self.special_fully_nested_mode = 0;
            self.auto_eoi = 0;
        }
        self.init_state = init::ICW2;
        dropped
    }

    /// OCW2. Returns the inputs whose interrupt ended.
    fn write_ocw2(&mut self, value: u8) -> u8 {
        let named = value & 7;
        let (rotate, specific, eoi) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        match (rotate, specific, eoi) {
            // Rotate in automatic-EOI mode, set and clear.
            (_, false, false) => {
                self.rotate_on_auto_eoi = u8::from(rotate);
                0
            }
            // Set priority: the named input becomes the lowest.
            (true, true, false) => {
                self.priority_add = named.wrapping_add(1) & 7;
                0
            }
            // No operation.
            (false, true, false) => 0,
            (_, _, true) => {
                let input = if specific {
                    named
                } else {
                    // In special mask mode a masked bit is not for a non-specific EOI.
                    let candidates = if self.special_mask != 0 { self.isr & !self.imr } else { self.isr };
                    match self.rank(candidates) {
                        8 => return 0,
                        rank => self.input_of_rank(rank),
                    }
                };
                let ended = self.isr & 1 << input;
                self.isr &= !(1 << input);
                if rotate {
                    self.priority_add = input.wrapping_add(1) & 7;
                }
                ended
            }
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & 0x04 != 0 {
            self.poll = 1;
        }
        if value & 0x02 != 0 {
            self.read_reg_select = value & 1;
        }
        if value & 0x40 != 0 {
            self.special_mask = value >> 5 & 1;
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.init_state {
            init::ICW2 => {
                self.irq_base = value & 0xf8;
                self.init_state = init::ICW3;
            }
            // The cascade is wired; what ICW3 says about it is not looked at.
            init::ICW3 => self.init_state = if self.init4 != 0 { init::ICW4 } else { init::DONE },
            init::ICW4 => {
                self.special_fully_nested_mode = value >> 4 & 1;
                self.auto_eoi = value >> 1 & 1;
                self.init_state = init::DONE;
            }
            _ => self.imr = value,
        }
    }
}

/// Both controllers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PicPair {
    master: PicState,
    slave: PicState,
    /// For each input, the sources that assert it, one bit each.
    irq_states: [u64; PIC_PINS],
}

impl Default for PicPair {
    fn default() -> PicPair {
        PicPair {
            master: PicState { elcr_mask: 0xf8, ..PicState::default() },
            slave: PicState { elcr_mask: 0xde, ..PicState::default() },
            irq_states: [0; PIC_PINS],
        }
    }
}

/// IRQs (bit n is IRQ n) whose interrupt ended: in-service bits that were cleared. Whoever waits for an
/// acknowledgement (the PIT's reinjection, a resampling irqfd) is told.
pub type EndedIrqs = u16;

impl PicPair {
    /// One source drives IRQ 0 to 15. The input is asserted while any source does.
    pub fn set_irq(&mut self, irq: u8, source: SourceId, level: bool) -> LineStatus {
        let Some(sources) = self.irq_states.get_mut(usize::from(irq)) else { return LineStatus::IGNORED };
        let asserted = source.drive(sources, level);
        let chip = if irq < 8 { &mut self.master } else { &mut self.slave };
        let status = chip.set_input(irq & 7, asserted);
        self.settle();
        status
    }

    /// The slave's INT reaches the master, as a pulse which its edge detector latches.
    ///
    /// To be called after [`PicPair::ack`], [`PicPair::read`] and [`PicPair::write`], but first those who wait for the
    /// end of an interrupt are told: a level that they release must not be promised to the processor again.
    pub fn settle(&mut self) {
        if self.slave.request(false).is_some() {
            self.master.set_input(CASCADE, true);
            self.master.set_input(CASCADE, false);
        }
    }

    /// INT to the processor.
    pub fn int_pending(&self) -> bool {
        self.master.request(true).is_some()
    }

    /// INTA: the vector, and the IRQs that ended with it (automatic EOI). With nothing to acknowledge the vector is
    /// the spurious one of the controller that was asked: IRQ 7, or 15 if the master had promised an interrupt of the
    /// slave's (data sheet, "interrupt sequence"). [`PicPair::settle`] follows.
    pub fn ack(&mut self) -> (u8, EndedIrqs) {
        let Some(input) = self.master.request(true) else {
            return (self.master.irq_base.wrapping_add(SPURIOUS), 0);
        };
        let mut ended = EndedIrqs::from(self.master.acknowledge(input)) << input;
        let mut vector = self.master.irq_base.wrapping_add(input);
        if input == CASCADE {
            let slave_input = self.slave.request(false);
            if let Some(slave_input) = slave_input {
                ended |= EndedIrqs::from(self.slave.acknowledge(slave_input)) << (slave_input + 8);
            }
            vector = self.slave.irq_base.wrapping_add(slave_input.unwrap_or(SPURIOUS));
        }
        (vector, ended)
    }

    /// A byte read from a port; `None` if the port is not a PIC's. [`PicPair::settle`] follows.
    pub fn read(&mut self, port: u16) -> Option<(u8, EndedIrqs)> {
        match port {
            0x4d0 => return Some((self.master.elcr, 0)),
            0x4d1 => return Some((self.slave.elcr, 0)),
            _ => {}
        }
        let (is_master, is_data) = decode(port)?;
        let chip = if is_master { &mut self.master } else { &mut self.slave };
        if chip.poll != 0 {
            chip.poll = 0;
            return Some(self.poll_read(is_master));
        }
        let value = match (is_data, chip.read_reg_select & 1) {
            (true, _) => chip.imr,
            (false, 0) => chip.irr,
            (false, _) => chip.isr,
        };
        Some((value, 0))
    }

    /// The read after a poll command is an INTA to this controller alone (data sheet, "poll command").
    fn poll_read(&mut self, is_master: bool) -> (u8, EndedIrqs) {
        let chip = if is_master { &mut self.master } else { &mut self.slave };
        let Some(input) = chip.request(is_master) else { return (0, 0) };
        let ended = EndedIrqs::from(chip.acknowledge(input));
        if !is_master {
            // What the slave had asked the master for is done.
            self.master.irr &= !(1 << CASCADE);
        }
        (0x80 | input, ended << if is_master { input } else { input + 8 })
    }

    /// A byte written to a port; `None` if the port is not a PIC's. [`PicPair::settle`] follows.
    pub fn write(&mut self, port: u16, value: u8) -> Option<EndedIrqs> {
        let ended = match port {
            0x4d0 => {
                self.master.elcr = value & self.master.elcr_mask;
                0
            }
            0x4d1 => {
                self.slave.elcr = value & self.slave.elcr_mask;
                0
            }
            _ => {
                let (is_master, is_data) = decode(port)?;
                let chip = if is_master { &mut self.master } else { &mut self.slave };
                let ended = if is_data {
                    chip.write_data(value);
                    0
                } else if value & 0x10 != 0 {
                    chip.write_icw1(value)
                } else if value & 0x08 != 0 {
                    chip.write_ocw3(value);
                    0
                } else {
                    chip.write_ocw2(value)
                };
                EndedIrqs::from(ended) << if is_master { 0 } else { 8 }
            }
        };
        Some(ended)
    }

    /// Whether the IRQ's mask bit is set (on its own controller).
    pub fn is_masked(&self, irq: u8) -> bool {
        let chip = if irq < 8 { &self.master } else { &self.slave };
        chip.imr & 1 << (irq & 7) != 0
    }

    /// The state of one controller.
    pub const fn state(&self, master: bool) -> PicState {
        if master { self.master } else { self.slave }
    }

    /// KVM_SET_IRQCHIP for one controller: all of it, `elcr_mask` too, as KVM takes it. Who asserts which input is kept.
    pub fn set_state(&mut self, master: bool, state: &PicState) {
        let chip = if master { &mut self.master } else { &mut self.slave };
        *chip = *state;
        self.settle();
    }

    /// The sources that assert each input, for whoever saves what KVM's interface does not.
    pub const fn irq_states(&self) -> &[u64; PIC_PINS] {
        &self.irq_states
    }
}

/// (master, data port).
const fn decode(port: u16) -> Option<(bool, bool)> {
    match port {
        0x20 => Some((true, false)),
        0x21 => Some((true, true)),
        0xa0 => Some((false, false)),
        0xa1 => Some((false, true)),
        _ => None,
    }
}
