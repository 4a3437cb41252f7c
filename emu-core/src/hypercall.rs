//! KVM's hypercalls (KVM hypercalls.txt): VMCALL and VMMCALL, whichever the guest uses.

use crate::exit::Result;
use crate::vcpu::Vcpu;
use x86_arch::Gpr;

/// KVM_HC_VAPIC_POLL_IRQ: a reason to look for interrupts, which every exit is.
const VAPIC_POLL_IRQ: u64 = 1;
/// KVM_HC_KICK_CPU: wakes the vCPU whose APIC ID is in RCX.
const KICK_CPU: u64 = 5;
/// KVM_HC_SCHED_YIELD.
const SCHED_YIELD: u64 = 11;

/// -KVM_ENOSYS.
const ENOSYS: u64 = -1000i64 as u64;
/// -KVM_EPERM.
const EPERM: u64 = -1i64 as u64;

impl Vcpu {
    /// One hypercall: number in RAX, arguments in RBX, RCX, RDX, RSI; the answer in RAX.
    pub(crate) fn hypercall(&mut self) -> Result {
        if self.xen_intercepts() {
            return self.xen_hypercall();
        }
        let long = self.long64();
        let mask = if long { u64::MAX } else { 0xffff_ffff };
        let arg = |r: Gpr| self.hot.regs[r as usize] & mask;
        let (nr, apic_id) = (arg(Gpr::Rax), arg(Gpr::Rcx));
        let answer = if self.cpl != 0 {
            EPERM
        } else {
            match nr {
                VAPIC_POLL_IRQ | SCHED_YIELD => 0,
                KICK_CPU => {
                    self.kick_by_apic_id(apic_id);
                    0
                }
                _ => ENOSYS,
            }
        };
        self.hot.regs[Gpr::Rax as usize] = answer & mask;
        Ok(())
    }

    fn kick_by_apic_id(&self, id: u64) {
        for v in self.vm.vcpus.read().iter() {
            if v.id as u64 == id {
                v.gate.request(softmmu::Requests::EVENT);
            }
        }
    }
}
