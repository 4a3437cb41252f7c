//! Machine checks: the banks that user space sets up, and the errors that it puts into them (SDM vol. 3B, chapter 15;
//! KVM_X86_SETUP_MCE and KVM_X86_SET_MCE).
//!
//! The registers themselves are rows of the MSR table. No error ever comes from the machine.

#[cfg(test)]
mod tests;

use crate::cpuid::policy::HostProcessor;
use crate::irqchip::lapic::{Accepted, LapicConfig, LocalSource};
use crate::msr::MCE_BANKS;
use crate::vcpu::Vcpu;
use std::sync::LazyLock;
use x86_arch::control::Cr4;
use x86_arch::{Exception, Vector};

/// IA32_MCG_CAP.MCG_CTL_P: there is an IA32_MCG_CTL.
pub const MCG_CTL_P: u64 = 1 << 8;
/// IA32_MCG_CAP.MCG_CMCI_P: there are IA32_MCi_CTL2 and an LVT entry.
pub const MCG_CMCI_P: u64 = 1 << 10;
/// IA32_MCG_CAP.MCG_SER_P: software may recover.
pub const MCG_SER_P: u64 = 1 << 24;
/// IA32_MCG_CAP.MCG_LMCE_P: an error may be one processor's alone.
pub const MCG_LMCE_P: u64 = 1 << 27;
/// What may be set up, beside the number of banks and of extended registers. As in KVM, MCG_LMCE_P is there on Intel's hosts
/// alone: it goes with IA32_FEATURE_CONTROL, which AMD's processors lack.
pub fn supported() -> u64 {
    static LMCE: LazyLock<u64> =
        LazyLock::new(|| if HostProcessor::this().is_amd() { 0 } else { MCG_LMCE_P });
    MCG_CTL_P | MCG_CMCI_P | MCG_SER_P | *LMCE
}
/// IA32_MCG_CAP: how many banks, and how many extended registers.
const COUNTS: u64 = 0xff | 0xff << 16;
/// IA32_MCG_STATUS.MCIP: a machine check is being handled.
const MCIP: u64 = 1 << 2;
/// IA32_MCi_CTL2: CMCI is enabled for the bank.
pub const CTL2_CMCI_EN: u64 = 1 << 30;

/// Bits of IA32_MCi_STATUS (SDM vol. 3B, 15.3.2.2 and 15.6.2).
pub mod status {
    /// The register has an error.
    pub const VAL: u64 = 1 << 63;
    /// Another error was lost.
    pub const OVER: u64 = 1 << 62;
    /// Not corrected.
    pub const UC: u64 = 1 << 61;
    /// The processor's state is corrupt.
    pub const PCC: u64 = 1 << 57;
    /// It was signalled by #MC.
    pub const S: u64 = 1 << 56;
    /// Software must act before it goes on.
    pub const AR: u64 = 1 << 55;
}

/// An error for a bank: the registers that it leaves behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineCheck {
    /// The bank.
    pub bank: u8,
    /// IA32_MCi_STATUS.
    pub status: u64,
    /// IA32_MCi_ADDR.
    pub addr: u64,
    /// IA32_MCi_MISC.
    pub misc: u64,
    /// IA32_MCG_STATUS.
    pub mcg_status: u64,
}

impl MachineCheck {
    /// Uncorrected, and nothing need be done at once: signalled as a corrected error is (SDM vol. 3B, 15.6.3, UCNA).
    fn needs_no_action(&self) -> bool {
        use status::*;
        self.mcg_status == 0 && self.status & (VAL | UC | PCC | S | AR) == VAL | UC
    }
}

impl Vcpu {
    /// KVM_X86_SETUP_MCE: IA32_MCG_CAP, and what follows from it. False: it cannot be had.
    pub fn setup_mce(&mut self, mcg_cap: u64) -> bool {
        let banks = (mcg_cap & 0xff) as usize;
        if banks == 0 || banks > MCE_BANKS || mcg_cap & !(supported() | COUNTS) != 0 {
            return false;
        }
        self.msr.mcg_cap = mcg_cap;
        // Every error is reported to begin with.
        if mcg_cap & MCG_CTL_P != 0 {
            self.msr.mcg_ctl = u64::MAX;
        }
        for (bank, ctl2) in self.msr.mce_banks.iter_mut().zip(&mut self.msr.mci_ctl2).take(banks) {
            bank[0] = u64::MAX;
            if mcg_cap & MCG_CMCI_P != 0 {
                *ctl2 = 0;
            }
        }
        if let Some(mut l) = self.shared.irq.lapic() {
            let config = LapicConfig { cmci: mcg_cap & MCG_CMCI_P != 0, ..*l.config() };
            l.set_config(config);
        }
        true
    }

    /// KVM_X86_SET_MCE. False: no such bank, or no error.
    pub fn machine_check(&mut self, error: &MachineCheck) -> bool {
        let banks = (self.msr.mcg_cap & 0xff) as usize;
        let n = usize::from(error.bank);
        let enabled_here = |c: &Vcpu| c.msr.mce_banks.get(n).is_some_and(|b| b[0] == u64::MAX);
        if n >= banks || error.status & status::VAL == 0 {
            return false;
        }
        if error.needs_no_action() {
            self.store_error(error, error.status);
            self.msr.mcg_status = error.mcg_status;
            self.signal_cmci(n);
            return true;
        }
        let old = self.msr.mce_banks.get(n).map_or(0, |b| b[1]);
        let over = if old & status::VAL != 0 { status::OVER } else { 0 };
        if error.status & status::UC == 0 {
            // A corrected error does not overwrite an uncorrected one (SDM vol. 3B, 15.3.2.2.1).
            if old & status::VAL != 0 && old & status::UC != 0 {
                self.set_bank_status(n, old | status::OVER);
            } else {
                self.store_error(error, error.status | over);
            }
            return true;
        }
        let reported =
            (self.msr.mcg_cap & MCG_CTL_P == 0 || self.msr.mcg_ctl == u64::MAX) && enabled_here(self);
        if !reported {
            return true;
        }
        if self.msr.mcg_status & MCIP != 0 || !self.cr4.contains(Cr4::MCE) {
            // SDM vol. 3B, 15.10.3: a second one, or one that nobody handles, shuts the processor down.
            self.events.triple_fault = true;
            self.attend(crate::vcpu::ATTENTION_EVENT);
            return true;
        }
        self.store_error(error, error.status | over);
        self.msr.mcg_status = error.mcg_status;
        self.raise(Exception::new(Vector::Mc));
        true
    }

    fn set_bank_status(&mut self, bank: usize, status: u64) {
        if let Some(b) = self.msr.mce_banks.get_mut(bank) {
            b[1] = status;
        }
    }

    fn store_error(&mut self, error: &MachineCheck, status: u64) {
        if let Some(b) = self.msr.mce_banks.get_mut(usize::from(error.bank)) {
            // CTL stays.
            *b = [b[0], status, error.addr, error.misc];
        }
    }

    /// SDM vol. 3B, 15.5: the interrupt of the LVT's entry, if the bank has it enabled.
    fn signal_cmci(&mut self, bank: usize) {
        let on = self.msr.mci_ctl2.get(bank).is_some_and(|c| c & CTL2_CMCI_EN != 0);
        if self.msr.mcg_cap & MCG_CMCI_P == 0 || !on {
            return;
        }
        let accepted = self.shared.irq.lapic().map(|mut l| l.local_interrupt(LocalSource::Cmci));
        if accepted.is_some_and(|a| a != Accepted::Refused) {
            self.attend(crate::vcpu::ATTENTION_EVENT);
        }
    }
}
