//! ACPI's fixed hardware: PM1a event and control registers, and the power management timer.
//!
//! No event ever happens, so the status bits stay 0. ACPI specification 6.5, 4.8.3 and 4.8.2.

use std::time::Instant;

use crate::machine::acpi::S5_SLEEP_TYPE;
use crate::machine::layout::{PM_TIMER, PM1A_CONTROL, PM1A_EVENT};

/// The timer's frequency in Hz (4.8.2.1).
const PM_TIMER_HZ: u128 = 3_579_545;
const ENABLE_REGISTER: u16 = PM1A_EVENT + 2;
/// PM1 control: the machine is in ACPI mode.
const SCI_EN: u16 = 1 << 0;
/// PM1 control: enter the state that SLP_TYP names.
const SLP_EN: u16 = 1 << 13;
const SLP_TYP_SHIFT: u16 = 10;

/// The registers.
#[derive(Debug)]
pub struct AcpiPm {
    enable: u16,
    control: u16,
    start: Instant,
}

impl AcpiPm {
    /// Registers at reset, timer at 0.
    pub fn new() -> AcpiPm {
        AcpiPm { enable: 0, control: SCI_EN, start: Instant::now() }
    }

    /// Reads at `port`, which lies in the block.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        let mut block = [0u8; (PM_TIMER + 4 - PM1A_EVENT) as usize];
        let mut put = |port: u16, bytes: &[u8]| {
            let at = usize::from(port - PM1A_EVENT);
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(ENABLE_REGISTER, &self.enable.to_le_bytes());
        put(PM1A_CONTROL, &self.control.to_le_bytes());
        put(PM_TIMER, &self.ticks().to_le_bytes());
        for (at, byte) in (usize::from(port - PM1A_EVENT)..).zip(data) {
            *byte = block.get(at).copied().unwrap_or(0xff);
        }
    }

    /// The 32-bit timer, which wraps every 20 minutes.
    fn ticks(&self) -> u32 {
        (self.start.elapsed().as_nanos() * PM_TIMER_HZ / 1_000_000_000) as u32
    }

    /// Writes at `port`, which lies in the block. Returns whether the guest asked for power off.
    pub fn write(&mut self, port: u16, data: &[u8]) -> bool {
        let mut power_off = false;
        for (port, byte) in (port..).zip(data) {
            if port == ENABLE_REGISTER {
                self.enable = (self.enable & 0xff00) | u16::from(*byte);
            } else if port == ENABLE_REGISTER + 1 {
                self.enable = (self.enable & 0x00ff) | (u16::from(*byte) << 8);
            } else if port == PM1A_CONTROL {
                self.control = (self.control & 0xff00) | u16::from(*byte) | SCI_EN;
            } else if port == PM1A_CONTROL + 1 {
                let value = u16::from(*byte) << 8;
                let sleep_type = (value >> SLP_TYP_SHIFT) & 7;
                power_off |= value & SLP_EN != 0 && sleep_type == u16::from(S5_SLEEP_TYPE);
                // SLP_EN reads as 0.
                self.control = (self.control & 0x00ff) | (value & !SLP_EN);
            }
        }
        power_off
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_s5_type_with_the_enable_bit_powers_off() {
        for sleep_type in 0u16..8 {
            for enable in [0, SLP_EN] {
                let value = (sleep_type << SLP_TYP_SHIFT) | enable | SCI_EN;
                let mut pm = AcpiPm::new();
                let off = pm.write(PM1A_CONTROL, &value.to_le_bytes());
                assert_eq!(off, sleep_type == 5 && enable != 0, "{value:#x}");
                let mut read = [0; 2];
                pm.read(PM1A_CONTROL, &mut read);
                assert_eq!(u16::from_le_bytes(read), value & !SLP_EN);
            }
        }
    }

    #[test]
    fn acpi_mode_cannot_be_left_and_enables_read_back() {
        let mut pm = AcpiPm::new();
        pm.write(PM1A_CONTROL, &[0, 0]);
        pm.write(ENABLE_REGISTER, &[0x20, 0x01]);
        let mut block = [0; 6];
        pm.read(PM1A_EVENT, &mut block);
        assert_eq!(block, [0, 0, 0x20, 0x01, 1, 0]);
    }

    #[test]
    fn the_timer_runs_and_odd_accesses_stay_inside() {
        let pm = AcpiPm::new();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(pm.ticks() >= 2 * 3579);
        let mut wide = [0; 8];
        pm.read(PM_TIMER + 3, &mut wide);
        assert_eq!(&wide[1..], &[0xff; 7]);
    }
}
