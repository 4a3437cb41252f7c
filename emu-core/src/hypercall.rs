//! KVM's hypercalls (KVM hypercalls.txt): VMCALL or VMMCALL, the number in RAX, arguments in RBX, RCX, RDX and RSI.
//!
//! Here are the numbers, what each needs, and which of the two instructions is the guest's. What they do to other vCPUs is in
//! [`crate::pv::ipi`].

#[cfg(test)]
mod tests;

use crate::exit::{Result, Stop};
use crate::io::Request;
use crate::quirks::Quirks;
use crate::vcpu::Vcpu;
use decoder::Vendor;
use std::sync::atomic::Ordering;
use x86_arch::cpuid::kvm;
use x86_arch::{Exception, Gpr, PAGE_SIZE, Seg, Vector};

/// KVM_HC_VAPIC_POLL_IRQ: a reason to look for interrupts, which every exit is.
const VAPIC_POLL_IRQ: u64 = 1;
/// KVM_HC_KICK_CPU: wakes the vCPU whose APIC ID is in RCX.
const KICK_CPU: u64 = 5;
/// KVM_HC_CLOCK_PAIRING: the time of day and the guest's TSC at one moment.
const CLOCK_PAIRING: u64 = 9;
/// KVM_HC_SEND_IPI.
const SEND_IPI: u64 = 10;
/// KVM_HC_SCHED_YIELD: RBX has an APIC ID.
const SCHED_YIELD: u64 = 11;
/// KVM_HC_MAP_GPA_RANGE: pages change between shared and private; user space decides.
pub const MAP_GPA_RANGE: u64 = 12;

/// The hypercalls that user space can ask for (KVM_CAP_EXIT_HYPERCALL), a bit each.
pub const EXITS: u64 = 1 << MAP_GPA_RANGE;

/// -KVM_ENOSYS.
const ENOSYS: u64 = -1000i64 as u64;
/// -KVM_EPERM.
const EPERM: u64 = -1i64 as u64;
/// -KVM_EINVAL.
const EINVAL: u64 = -22i64 as u64;

/// The instruction on an Intel.
const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
/// The instruction on an AMD.
const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];

impl Vcpu {
    /// VMCALL (`vmcall`) or VMMCALL. The one of the other vendor does not exist; KVM writes the right one in its place,
    /// as the guest, unless user space has that switched off (KVM_X86_QUIRK_FIX_HYPERCALL_INSN).
    pub(crate) fn hypercall_instruction(&mut self, vmcall: bool) -> Result {
        let native = if self.cpuid.vendor() == Vendor::Amd { VMMCALL } else { VMCALL };
        if vmcall != (native == VMCALL) {
            if !self.vm.choices.has(Quirks::FIX_HYPERCALL_INSN) {
                return Err(Exception::new(Vector::Ud).into());
            }
            let at = self.insn_start();
            self.write_bytes_lin(Seg::Cs as u8, at, &native)?;
        }
        self.hypercall()
    }

    fn hypercall(&mut self) -> Result {
        if self.xen_intercepts() {
            return self.xen_hypercall();
        }
        let long = self.long64();
        let mask = if long { u64::MAX } else { 0xffff_ffff };
        let arg = |r: Gpr| self.hot.regs[r as usize] & mask;
        let (nr, a) = (arg(Gpr::Rax), [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi].map(arg));
        let answer = match nr {
            _ if self.cpl != 0 => EPERM,
            VAPIC_POLL_IRQ => 0,
            KICK_CPU if self.pv_has(kvm::FEATURE_PV_UNHALT) => {
                self.pv_kick(a[1]);
                self.pv_yield_to(a[1]);
                0
            }
            CLOCK_PAIRING => self.clock_pairing(a[0], a[1]),
            SEND_IPI if self.pv_has(kvm::FEATURE_PV_SEND_IPI) => {
                self.pv_send_ipi([a[0], a[1]], a[2] as u32, a[3], long)
            }
            SCHED_YIELD if self.pv_has(kvm::FEATURE_PV_SCHED_YIELD) => {
                self.pv_yield_to(a[0]);
                0
            }
            MAP_GPA_RANGE if self.vm.hypercall_exits.load(Ordering::Relaxed) & EXITS != 0 => {
                let [gpa, pages, attributes, _] = a;
                let last = (gpa / PAGE_SIZE).checked_add(pages);
                if !gpa.is_multiple_of(PAGE_SIZE) || pages == 0 || last.is_none() {
                    EINVAL
                } else {
                    self.ask_about_hypercall(nr, [gpa, pages, attributes, 0], long)?
                }
            }
            _ => ENOSYS,
        };
        self.hot.regs[Gpr::Rax as usize] = answer & mask;
        Ok(())
    }

    /// KVM_EXIT_HYPERCALL: the answer, or the request for it.
    fn ask_about_hypercall(&mut self, nr: u64, args: [u64; 4], longmode: bool) -> Result<u64> {
        let request = Request::Hypercall { nr, args, longmode };
        match self.io.replay(&request).and_then(|a| a.try_into().ok()).map(u64::from_le_bytes) {
            Some(v) => Ok(v),
            None => {
                self.io.request = Some(request);
                Err(Stop::Need)
            }
        }
    }
}
