//! What a Xen guest needs of the processor: hypercall pages by an MSR, and hypercalls that user space answers
//! (KVM api, KVM_XEN_HVM_CONFIG).
//!
//! Not here: event channels, shared information pages, time: user space's, or not offered.

use crate::exit::{Result, Stop};
use crate::io::Request;
use crate::vcpu::Vcpu;
use decoder::Vendor;
use x86_arch::{Gpa, Gpr, PAGE_MASK, PAGE_SIZE};

/// Gives the page of a number for 64-bit mode (true) or 32-bit mode; `None`: there is none.
pub type HypercallPages = Box<dyn Fn(bool, u8) -> Option<Vec<u8>> + Send + Sync>;

/// What user space has chosen.
pub struct XenHvm {
    /// The MSR to which the guest writes where it wants a page; 0: nothing of this is in force.
    pub msr: u32,
    /// Hypercalls go to user space, and the page is made here.
    pub intercept: bool,
    /// User space's own pages, where it does not ask for the hypercalls.
    pub pages: HypercallPages,
}

/// Bytes of one hypercall's code in the page.
const STUB: usize = 32;

/// `mov eax, nr; vmcall (or vmmcall); ret`, for each number.
fn made_page(vendor: Vendor) -> Vec<u8> {
    let call = if vendor == Vendor::Amd { 0xd9 } else { 0xc1 };
    let mut page = vec![0xcc; PAGE_SIZE as usize];
    for (nr, stub) in (0u32..).zip(page.chunks_exact_mut(STUB)) {
        stub[0] = 0xb8;
        stub[1..5].copy_from_slice(&nr.to_le_bytes());
        stub[5..9].copy_from_slice(&[0x0f, 0x01, call, 0xc3]);
    }
    page
}

impl Vcpu {
    /// A write to the MSR that user space has named. `None`: this is not it. False: refused.
    pub(crate) fn write_xen_msr(&mut self, index: u32, value: u64) -> Option<bool> {
        let xen = self.vm.xen.read().clone().filter(|x| x.msr != 0 && x.msr == index)?;
        // The page's number lies in the low bits, where Xen has it.
        let (at, number) = (Gpa(value & !PAGE_MASK), value & PAGE_MASK);
        let page = if xen.intercept {
            (number == 0).then(|| made_page(self.cpuid.vendor()))
        } else {
            u8::try_from(number).ok().and_then(|n| (xen.pages)(self.long_mode(), n))
        };
        Some(page.is_some_and(|p| self.mmu.guest_memory().write(at, &p).is_ok()))
    }

    /// Whether hypercalls are Xen's, and user space's to answer.
    pub(crate) fn xen_intercepts(&self) -> bool {
        self.vm.xen.read().as_ref().is_some_and(|x| x.msr != 0 && x.intercept)
    }

    /// A hypercall for user space: number and six arguments by Xen's convention, the answer in RAX.
    pub(crate) fn xen_hypercall(&mut self) -> Result {
        let longmode = self.long64();
        let mask = if longmode { u64::MAX } else { 0xffff_ffff };
        let registers = if longmode {
            [Gpr::Rdi, Gpr::Rsi, Gpr::Rdx, Gpr::R10, Gpr::R8, Gpr::R9]
        } else {
            [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi, Gpr::Rdi, Gpr::Rbp]
        };
        let arg = |r: Gpr| self.hot.regs[r as usize] & mask;
        let request = Request::XenHypercall {
            input: arg(Gpr::Rax),
            params: registers.map(arg),
            longmode,
            cpl: self.cpl,
        };
        match self.io.replay(&request).and_then(|a| a.try_into().ok()).map(u64::from_le_bytes) {
            Some(answer) => {
                self.hot.regs[Gpr::Rax as usize] = answer;
                Ok(())
            }
            None => {
                self.io.request = Some(request);
                Err(Stop::Need)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use crate::rig::{CODE, Mode, Rig};
    use std::sync::Arc;

    const MSR: u32 = 0x4000_0000;
    const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];

    fn rig(mode: Mode, msr: u32, intercept: bool) -> Rig {
        let mut rig = Rig::new(mode);
        let pages: HypercallPages =
            Box::new(|long, n| (n < 2).then(|| vec![n | (long as u8) << 4; PAGE_SIZE as usize]));
        *rig.vm.xen.write() = Some(Arc::new(XenHvm { msr, intercept, pages }));
        rig.cpu().hot.regs[Gpr::Rcx as usize] = MSR.into();
        rig
    }

    /// WRMSR, one instruction.
    fn write(rig: &mut Rig, value: u64) -> core::result::Result<(), Stop> {
        rig.set(Gpr::Rax, value & 0xffff_ffff);
        rig.set(Gpr::Rdx, value >> 32);
        rig.step(&[0x0f, 0x30])
    }

    #[test]
    fn pages_of_user_space() {
        for (mode, long) in [(Mode::Long, 0x10), (Mode::Compat, 0x10), (Mode::Protected, 0)] {
            let mut r = rig(mode, MSR, false);
            assert_eq!(write(&mut r, 0x10_0001), Ok(()));
            assert_eq!(r.read_u64(0x10_0000), 0x0101_0101_0101_0101 | u64::from_le_bytes([long; 8]));
            assert_eq!(r.read_u64(0x10_0ff8), r.read_u64(0x10_0000));
            assert_eq!(r.read_u64(0x10_1000), 0);
            // No such page; no memory there; another MSR; reading.
            let gp = Err(Stop::Exception(x86_arch::Exception::GP0));
            assert_eq!(write(&mut r, 0x10_0002), gp);
            assert_eq!(write(&mut r, 0x10_0100), gp);
            assert_eq!(write(&mut r, crate::rig::RAM), gp);
            assert_eq!(r.step(&[0x0f, 0x32]), gp);
            r.set(Gpr::Rcx, u64::from(MSR + 1));
            assert_eq!(write(&mut r, 0x10_0000), gp);
        }
    }

    #[test]
    fn the_page_that_is_made_here() {
        let mut r = rig(Mode::Long, MSR, true);
        assert_eq!(write(&mut r, 0x10_0000), Ok(()));
        let mut stub = [0; STUB];
        r.read(0x10_0000 + 32 * 17, &mut stub);
        assert_eq!(stub[..9], [0xb8, 17, 0, 0, 0, 0x0f, 0x01, 0xc1, 0xc3]);
        assert!(stub[9..].iter().all(|b| *b == 0xcc));
        assert_eq!(write(&mut r, 0x10_0001), Err(Stop::Exception(x86_arch::Exception::GP0)));
    }

    #[test]
    fn hypercalls() {
        for (mode, longmode, args) in
            [(Mode::Long, true, [7, 6, 2, 10, 8, 9]), (Mode::Compat, false, [3, 0x4000_0000, 2, 6, 7, 5])]
        {
            let mut r = rig(mode, MSR, true);
            for n in (0..16).filter(|n| *n != Gpr::Rcx as usize && *n != Gpr::Rsp as usize) {
                r.cpu().hot.regs[n] = n as u64;
            }
            r.set(Gpr::Rax, 0x1_0000_0020);
            r.user();
            let exit = r.run(&VMCALL, 1);
            let input = if longmode { 0x1_0000_0020 } else { 0x20 };
            assert_eq!(exit, Exit::XenHypercall { input, params: args, longmode, cpl: 3 });
            r.processor.complete_value(0x1234_5678_9abc_def0, false);
            assert_eq!(r.processor.run(Some(1)), Exit::Bound);
            assert_eq!((r.get(Gpr::Rax), r.cpu().rip()), (0x1234_5678_9abc_def0, CODE + 3));
        }
        // Without an MSR nothing of it is in force.
        let mut r = rig(Mode::Long, 0, true);
        assert_eq!(r.run(&VMCALL, 1), Exit::Bound);
        assert_eq!(r.get(Gpr::Rax), -1000i64 as u64);
    }
}
