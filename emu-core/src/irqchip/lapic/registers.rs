//! The local APIC's registers as the guest reaches them: the xAPIC page and the x2APIC MSRs.
//!
//! One reader and one writer serve both; what differs (which registers exist, what is reserved, the 64-bit ICR, #GP
//! instead of ESR) is decided before them. SDM vol. 3A, table 10-1 and 10-6, 10.12.

use super::*;
use crate::irqchip::delivery::{DestMode, Ipi, Origin, Shorthand};
use x86_arch::msr::{X2APIC_FIRST, X2APIC_LAST};

/// ICR: delivery status, read-only.
const ICR_BUSY: u32 = 1 << 12;
/// x2APIC ICR: reserved bits of the low half (SDM vol. 3A, figure 10-28). Delivery status is ignored.
const X2APIC_ICR_RESERVED: u64 = 0xfff3_2000;
/// LVT and ICR: bits that are there to read only. Writing them is no fault.
const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;

/// What a register access asks of the vCPU, beside the value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum LapicEffect {
    /// Nothing.
    None,
    /// An interrupt may have become deliverable: look at [`Lapic::highest_pending`] and [`Lapic::pending`] again.
    Recheck,
    /// The timer's deadline changed: ask [`Lapic::timer_deadline`] again.
    Timer,
    /// Send this message, with this local APIC as its sender. The local APIC must not be locked while it is delivered.
    Ipi(Ipi),
    /// An interrupt ended: tell the IOAPIC if the EOI is for it, and look for the next interrupt.
    Eoi(Eoi),
}

/// The access named a register that is not there, or not for this kind of access, or (x2APIC) set reserved bits.
pub(super) struct IllegalRegister;

impl Lapic {
    // ---- xAPIC: the page in memory --------------------------------------------------------------------------------

    /// A read of `data.len()` bytes at `offset` in the APIC page. Only the low four bytes of each 16 hold a register;
    /// a read beyond them, or of no register, gives zero.
    pub fn mmio_read(&mut self, offset: u64, data: &mut [u8], now: &Now) {
        data.fill(0);
        let within = (offset & 0xf) as usize;
        if within + data.len() > 4 {
            return;
        }
        // The offset is below 4 KiB: `mmio_base` gave the page, the caller the rest.
        let register = (offset & 0xff0) as u32;
        match self.read_register(register, now, ApicMode::XApic) {
            Ok(value) => {
                let bytes = value.to_le_bytes();
                for (to, from) in data.iter_mut().zip(bytes.iter().skip(within)) {
                    *to = *from;
                }
            }
            Err(IllegalRegister) => self.record_error(ESR_ILLEGAL_REGISTER),
        }
    }

    /// A write at `offset` in the APIC page. Registers are written by aligned 32-bit accesses only; others are ignored
    /// (SDM vol. 3A, 10.4.1 leaves them undefined).
    pub fn mmio_write(&mut self, offset: u64, data: &[u8], now: &Now) -> LapicEffect {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return LapicEffect::None };
        if offset & 0xf != 0 {
            return LapicEffect::None;
        }
        let register = (offset & 0xff0) as u32;
        match self.write_register(register, u32::from_le_bytes(bytes), now, ApicMode::XApic) {
            Ok(effect) => effect,
            Err(IllegalRegister) => {
                self.record_error(ESR_ILLEGAL_REGISTER);
                LapicEffect::None
            }
        }
    }

    // ---- x2APIC: MSRs 0x800 to 0x8ff ------------------------------------------------------------------------------

    /// RDMSR of an x2APIC register. #GP outside x2APIC mode, for write-only and for absent registers.
    pub fn read_x2apic_msr(&mut self, msr: u32, now: &Now) -> Result<u64, Exception> {
        let register = self.x2apic_register(msr)?;
        if register == APIC_ICR_LOW {
            return Ok(u64::from(self.reg(APIC_ICR_HIGH)) << 32 | u64::from(self.reg(APIC_ICR_LOW)));
        }
        match self.read_register(register, now, ApicMode::X2Apic) {
            Ok(value) => Ok(u64::from(value)),
            Err(IllegalRegister) => Err(Exception::GP0),
        }
    }

    /// WRMSR of an x2APIC register. #GP outside x2APIC mode, for read-only and absent registers, for reserved bits.
    pub fn write_x2apic_msr(&mut self, msr: u32, value: u64, now: &Now) -> Result<LapicEffect, Exception> {
        let register = self.x2apic_register(msr)?;
        if register == APIC_ICR_LOW {
            if value & X2APIC_ICR_RESERVED != 0 {
                return Err(Exception::GP0);
            }
            let (low, dest) = (value as u32 & !ICR_BUSY, (value >> 32) as u32);
            self.set_reg(APIC_ICR_HIGH, dest);
            self.set_reg(APIC_ICR_LOW, low);
            return Ok(self.send_ipi(low, dest));
        }
        let writable = self.x2apic_writable(register).ok_or(Exception::GP0)?;
        if value & !u64::from(writable) != 0 {
            return Err(Exception::GP0);
        }
        self.write_register(register, value as u32, now, ApicMode::X2Apic)
            .map_err(|IllegalRegister| Exception::GP0)
    }

    fn x2apic_register(&self, msr: u32) -> Result<u32, Exception> {
        if self.mode() != ApicMode::X2Apic || !(X2APIC_FIRST..=X2APIC_LAST).contains(&msr) {
            return Err(Exception::GP0);
        }
        Ok((msr - X2APIC_FIRST) << 4)
    }

    /// The bits of an x2APIC register that may be set in a WRMSR; `None` if it cannot be written
    /// (SDM vol. 3A, table 10-6 and 10.12.1.2).
    fn x2apic_writable(&self, register: u32) -> Option<u32> {
        Some(match register {
            APIC_TPR => 0xff,
            // Only zero.
            APIC_EOI | APIC_ESR => 0,
            APIC_SVR => 0x3ff | self.svr_directed_eoi(),
            APIC_TIMER_INITIAL => u32::MAX,
            APIC_TIMER_DIVIDE => 0xb,
            APIC_SELF_IPI => 0xff,
            _ => self.lvt_writable(register)? | LVT_READ_ONLY,
        })
    }

    // ---- Both -----------------------------------------------------------------------------------------------------

    fn svr_directed_eoi(&self) -> u32 {
        if self.config().directed_eoi { SVR_DIRECTED_EOI } else { 0 }
    }

    /// The writable bits of a local vector table entry.
    fn lvt_writable(&self, register: u32) -> Option<u32> {
        let (_, bits) = self.lvt().iter().find(|(entry, _)| *entry == register)?;
        Some(if register == APIC_LVT_TIMER { bits | self.timer_mode_bits() } else { *bits })
    }

    fn read_register(&self, register: u32, now: &Now, mode: ApicMode) -> Result<u32, IllegalRegister> {
        let x2apic = mode == ApicMode::X2Apic;
        match register {
            APIC_ID | APIC_VERSION | APIC_TPR | APIC_PPR | APIC_LDR | APIC_SVR | APIC_ESR | APIC_ICR_LOW
            | APIC_TIMER_INITIAL | APIC_TIMER_DIVIDE => Ok(self.reg(register)),
            APIC_TIMER_CURRENT => Ok(self.current_count(now)),
            APIC_DFR | APIC_ICR_HIGH if !x2apic => Ok(self.reg(register)),
            // Gone since the Pentium 4: there, and zero. EOI is write-only, but reading it is no error in memory.
            APIC_APR | APIC_RRD | APIC_EOI if !x2apic => Ok(0),
            // ISR, TMR, IRR: eight registers each.
            APIC_ISR..APIC_ESR => Ok(self.reg(register)),
            _ if self.lvt_writable(register).is_some() => Ok(self.reg(register)),
            _ => Err(IllegalRegister),
        }
    }

    fn write_register(
        &mut self,
        register: u32,
        value: u32,
        now: &Now,
        mode: ApicMode,
    ) -> Result<LapicEffect, IllegalRegister> {
        let x2apic = mode == ApicMode::X2Apic;
        match register {
            APIC_ID if !x2apic => self.set_reg(APIC_ID, value & 0xff00_0000),
            APIC_TPR => {
                self.set_tpr((value & 0xff) as u8);
                return Ok(LapicEffect::Recheck);
            }
            APIC_EOI => return Ok(self.eoi().map_or(LapicEffect::None, LapicEffect::Eoi)),
            APIC_LDR if !x2apic => self.set_reg(APIC_LDR, value & 0xff00_0000),
            APIC_DFR if !x2apic => self.set_reg(APIC_DFR, value | 0x0fff_ffff),
            APIC_SVR => {
                self.set_reg(APIC_SVR, value & (0x3ff | self.svr_directed_eoi()));
                if value & SVR_ENABLED == 0 {
                    // SDM vol. 3A, 10.4.7.2: all local vectors are masked, and stay so until written.
                    for &(entry, _) in self.lvt() {
                        self.set_reg(entry, self.reg(entry) | LVT_MASKED);
                    }
                }
                return Ok(LapicEffect::Recheck);
            }
            APIC_ESR => {
                // SDM vol. 3A, 10.5.3: a write shows the errors since the last write, and starts over.
                let seen = self.reg(ESR_ACCUMULATED);
                self.set_reg(APIC_ESR, seen);
                self.set_reg(ESR_ACCUMULATED, 0);
            }
            APIC_ICR_LOW if !x2apic => {
                let low = value & !ICR_BUSY;
                self.set_reg(APIC_ICR_LOW, low);
                return Ok(self.send_ipi(low, self.reg(APIC_ICR_HIGH) >> 24));
            }
            APIC_ICR_HIGH if !x2apic => self.set_reg(APIC_ICR_HIGH, value & 0xff00_0000),
            APIC_TIMER_INITIAL => {
                self.write_initial_count(value, now);
                return Ok(LapicEffect::Timer);
            }
            APIC_TIMER_DIVIDE => {
                self.write_divide(value, now);
                return Ok(LapicEffect::Timer);
            }
            APIC_SELF_IPI if x2apic => return Ok(self.send_self((value & 0xff) as u8, Trigger::Edge)),
            _ => {
                let writable = self.lvt_writable(register).ok_or(IllegalRegister)?;
                return Ok(self.write_lvt(register, value & writable));
            }
        }
        Ok(LapicEffect::None)
    }

    fn write_lvt(&mut self, register: u32, value: u32) -> LapicEffect {
        let masked = if self.reg(APIC_SVR) & SVR_ENABLED == 0 { LVT_MASKED } else { 0 };
        let was_deadline = self.timer_is_tsc_deadline();
        self.set_reg(register, value | masked);
        if register == APIC_LVT_TIMER {
            self.timer_mode_written(was_deadline);
            return LapicEffect::Timer;
        }
        // LINT0 decides whether the 8259 is heard.
        LapicEffect::Recheck
    }

    /// A write to the ICR (SDM vol. 3A, 10.6.1). A fixed interrupt to oneself is done here; the rest is for others.
    fn send_ipi(&mut self, low: u32, dest: u32) -> LapicEffect {
        let ipi = Ipi {
            mode: DeliveryMode::from_bits(low >> 8),
            dest_mode: DestMode::from_bit(low & 1 << 11 != 0),
            trigger: Trigger::from_bit(low & 1 << 15 != 0),
            level: low & 1 << 14 != 0,
            shorthand: Shorthand::from_bits(low >> 18),
            xapic_broadcast: false,
            origin: Origin::Ipi,
            ..Ipi::fixed((low & 0xff) as u8, dest)
        };
        match ipi.mode {
            DeliveryMode::Fixed if ipi.shorthand == Shorthand::ToSelf => {
                if ipi.trigger == Trigger::Level && !ipi.level {
                    return LapicEffect::None;
                }
                return self.send_self(ipi.vector, ipi.trigger);
            }
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if ipi.vector < FIRST_LEGAL_VECTOR => {
                self.record_error(ESR_SEND_ILLEGAL_VECTOR);
                return LapicEffect::None;
            }
            _ => {}
        }
        LapicEffect::Ipi(ipi)
    }

    fn send_self(&mut self, vector: u8, trigger: Trigger) -> LapicEffect {
        if vector < FIRST_LEGAL_VECTOR {
            self.record_error(ESR_SEND_ILLEGAL_VECTOR);
            return LapicEffect::None;
        }
        self.accept_interrupt(vector, trigger);
        LapicEffect::Recheck
    }
}
