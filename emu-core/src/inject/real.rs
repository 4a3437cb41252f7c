//! Delivery through the interrupt vector table: real mode, and the software interrupts that CR4.VME
//! leaves to a virtual-8086 task (SDM vol. 3A, 20.1.4 and 20.3.3).

use super::Delivery;
use crate::exit::{Result, Stop};
use crate::vcpu::Vcpu;
use x86_arch::control::Cr4;
use x86_arch::{Exception, Rflags, Seg, Segment, Vector};

/// Bytes of the interrupt redirection bitmap, which lies below the I/O permission bitmap.
const REDIRECTION_BYTES: u64 = 32;

impl Vcpu {
    /// Real mode: no error code is ever pushed, and EXT is not reported.
    pub(super) fn inject_real(&mut self, d: &Delivery) -> Result {
        let entry = (d.event.vector as u64) << 2;
        if entry + 3 > self.idtr.limit as u64 {
            return Err(Exception::GP0.into());
        }
        let vector: u32 = self.load_sys(self.idtr.base.wrapping_add(entry))?;
        self.enter_vector(d, vector, d.flags)?;
        let cleared = Rflags::IF | Rflags::TF | Rflags::RF | Rflags::AC;
        self.set_rflags(self.hot.rflags & !cleared.bits());
        Ok(())
    }

    /// Pushes FLAGS, CS and IP, and goes to a vector's CS:IP.
    fn enter_vector(&mut self, d: &Delivery, vector: u32, flags: u64) -> Result {
        let cs = self.seg[Seg::Cs as usize];
        let ip = (vector & 0xffff) as u64;
        if ip > cs.limit as u64 {
            return Err(Exception::GP0.into());
        }
        let frame = [flags, cs.selector.0 as u64, d.rip];
        let stack = self.current_stack();
        let sp = self.push_frame(&stack, 2, &frame, Exception::SS0)?;
        self.set_rsp(sp);
        self.set_segment(Seg::Cs, Segment::real_mode((vector >> 16) as u16, &cs));
        self.set_rip(ip);
        Ok(())
    }

    /// INT n in virtual-8086 mode (SDM vol. 3A, table 20-2).
    pub(super) fn inject_virtual8086_interrupt(&mut self, d: &Delivery) -> Result {
        let iopl3 = self.rflags().iopl() == 3;
        if self.cr4.contains(Cr4::VME) && !self.redirected_to_monitor(d.event.vector)? {
            // Methods 5 and 6: the task's own handler, through the table at linear address 0.
            let vector: u32 = self.load_lin((d.event.vector as u64) << 2)?;
            if iopl3 {
                self.enter_vector(d, vector, d.flags)?;
                self.set_rflags(self.hot.rflags & !(Rflags::IF | Rflags::TF | Rflags::RF).bits());
            } else {
                // The image shows IOPL 3, and VIF where IF is.
                let vif = self.flag(Rflags::VIF);
                let mut flags = d.flags | Rflags::IOPL.bits();
                flags = if vif { flags | Rflags::IF.bits() } else { flags & !Rflags::IF.bits() };
                self.enter_vector(d, vector, flags)?;
                self.set_rflags(self.hot.rflags & !(Rflags::VIF | Rflags::TF | Rflags::RF).bits());
            }
            return Ok(());
        }
        if !iopl3 {
            return Err(Exception::GP0.into());
        }
        self.inject_protected(d)
    }

    /// The vector's bit in the redirection bitmap of the 32-bit TSS: 1 sends it to the protected-mode handler.
    fn redirected_to_monitor(&mut self, vector: u8) -> Result<bool> {
        let tr = self.seg[Seg::Tr as usize];
        let fault = || Err(Stop::Exception(Exception::new(Vector::Gp)));
        if tr.typ & 8 == 0 || tr.limit < 0x67 {
            return fault();
        }
        let map: u16 = self.load_sys(tr.base.wrapping_add(0x66))?;
        let byte = (map as u64).wrapping_sub(REDIRECTION_BYTES).wrapping_add(vector as u64 / 8);
        if (map as u64) < REDIRECTION_BYTES || byte > tr.limit as u64 {
            return fault();
        }
        let bits: u8 = self.load_sys(tr.base.wrapping_add(byte))?;
        Ok(bits >> (vector & 7) & 1 != 0)
    }
}
