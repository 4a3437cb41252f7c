//! The debug registers as instructions see them (SDM vol. 3A, 17.2).
//!
//! What meets a breakpoint is found in [`crate::mem`] and [`crate::run`].

use crate::exit::{Result, Stop};
use crate::vcpu::{ATTENTION_EVENT, Vcpu};
use x86_arch::control::{Cr4, Dr6, Dr7};

/// What user space asked of single stepping and breakpoints (KVM_SET_GUEST_DEBUG).
#[derive(Clone, Copy, Debug, Default)]
pub struct GuestDebug {
    /// Exit after each instruction.
    pub single_step: bool,
    /// INT3 exits to user space instead of raising #BP.
    pub software_breakpoints: bool,
    /// Interrupts and NMIs that are not yet on their way wait (KVM_GUESTDBG_BLOCKIRQ).
    pub block_interrupts: bool,
    /// DR0 to DR3 and DR7 of user space replace the guest's.
    pub hardware: Option<([u64; 4], u64)>,
}

impl Vcpu {
    /// KVM_SET_GUEST_DEBUG.
    pub fn set_guest_debug(&mut self, debug: GuestDebug) {
        self.debug = debug;
        self.update_view();
        self.attend(ATTENTION_EVENT);
    }

    /// The DR7 that breakpoints follow: user space's, if it has taken them over.
    pub fn effective_dr7(&self) -> Dr7 {
        self.debug.hardware.map_or(self.dr7, |(_, dr7)| Dr7::from_bits_retain(dr7))
    }

    /// DR0 to DR3, likewise.
    pub fn effective_dr(&self) -> [u64; 4] {
        self.debug.hardware.map_or(self.dr, |(dr, _)| dr)
    }

    /// The checks of MOV to and from a debug register; returns its number with the aliases resolved.
    pub(crate) fn check_dr_access(&mut self, n: u8) -> Result<u8> {
        if n > 7 {
            return self.ud();
        }
        // The privilege level comes before CR4.DE, as processors were seen to do.
        self.require_cpl0()?;
        let n = match n {
            4 | 5 if self.cr4.contains(Cr4::DE) => return self.ud(),
            4 | 5 => n + 2,
            _ => n,
        };
        if self.effective_dr7().contains(Dr7::GD) {
            // A fault: the instruction is not executed (SDM vol. 3A, 17.2.3, BD).
            self.events.debug_fault = Dr6::BD.bits();
            return Err(Stop::Exception(x86_arch::Exception::new(x86_arch::Vector::Db)));
        }
        Ok(n)
    }

    /// The value of a debug register.
    pub(crate) fn read_dr(&self, n: u8) -> u64 {
        match n {
            6 => self.dr6.bits(),
            7 => self.dr7.bits(),
            _ => self.dr[(n & 3) as usize],
        }
    }

    /// MOV to a debug register, after [`Vcpu::check_dr_access`].
    pub(crate) fn write_dr(&mut self, n: u8, v: u64) -> Result {
        match n {
            6 | 7 if v >> 32 != 0 => return self.gp0(),
            6 => {
                let writable = (Dr6::B0 | Dr6::B1 | Dr6::B2 | Dr6::B3 | Dr6::BD | Dr6::BS | Dr6::BT).bits();
                self.dr6 = Dr6::from_bits_retain(v & writable | Dr6::FIXED.bits());
            }
            7 => {
                // Bits 12, 14 and 15 read as zero. Bit 11 is that of transactional debugging; KVM keeps it.
                self.dr7 = Dr7::from_bits_retain(v & 0xffff_2bff | Dr7::FIXED.bits());
                self.update_view();
            }
            _ => self.dr[(n & 3) as usize] = v,
        }
        self.attend(ATTENTION_EVENT);
        Ok(())
    }
}
