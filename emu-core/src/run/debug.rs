//! Breakpoints and single steps, the guest's and user space's (KVM_SET_GUEST_DEBUG).

use super::Processor;
use crate::block::BlockId;
use crate::event::Shadow;
use crate::exit::Exit;
use x86_arch::control::{BreakpointKind, Dr6, Dr7};
use x86_arch::{Rflags, Seg, Vector};

impl Processor {
    /// An exit that user space's debugging wants for the instruction just executed.
    pub(super) fn debug_exit_due(&mut self) -> Option<Exit> {
        let e = &self.vcpu.events;
        if e.debug_trap == 0 || e.exception.is_some() || e.shadow == Shadow::MovSs {
            return None;
        }
        let exit = self.guest_debug_exit(e.debug_trap)?;
        self.vcpu.events.debug_trap = 0;
        Some(exit)
    }

    pub(super) fn must_step(&self) -> bool {
        let v = &self.vcpu;
        self.restarting
            || self.step_limit.is_some()
            || v.events.shadow != Shadow::None
            || v.hot.rflags & (Rflags::TF | Rflags::RF).bits() != 0
            || self.vcpu.debug.single_step
    }

    pub(super) fn code_breakpoints_armed(&self) -> bool {
        let dr7 = self.vcpu.effective_dr7();
        dr7.intersects(Dr7::ENABLES)
            && (0..4).any(|n| dr7.enabled(n) && dr7.kind(n) == BreakpointKind::Execute)
    }

    /// DR6 bits of instruction breakpoints at `pc`.
    pub(super) fn code_breakpoint(&self, pc: u64) -> u64 {
        let (dr7, dr) = (self.vcpu.effective_dr7(), self.vcpu.effective_dr());
        (0..4)
            .filter(|&n| dr7.enabled(n) && dr7.kind(n) == BreakpointKind::Execute && dr[n] == pc)
            .fold(0, |bits, n| bits | 1 << n)
    }

    /// How many of a block's first `most` instructions come before one with a breakpoint. Code without one runs at its
    /// usual speed: a debugger's breakpoint is armed for a whole boot.
    pub(super) fn before_breakpoint(&self, block: BlockId, most: usize) -> usize {
        let v = &self.vcpu;
        let mut rip = v.rip();
        let ops = self.blocks.ops(block).iter().take(most);
        ops.take_while(|op| {
            let pc = v.seg_path[Seg::Cs as usize].base.wrapping_add(rip) & v.hot.linear_mask;
            rip = rip.wrapping_add(op.insn.len as u64) & v.hot.rip_mask;
            self.code_breakpoint(pc) == 0
        })
        .count()
    }

    fn guest_debug_exit(&mut self, bits: u64) -> Option<Exit> {
        let step = self.vcpu.debug.single_step && bits & Dr6::BS.bits() != 0;
        let hit = self.vcpu.debug.hardware.is_some() && bits & 0xf != 0;
        (step || hit).then(|| self.debug_exit(Vector::Db as u8, bits))
    }

    pub(super) fn debug_exit(&self, exception: u8, bits: u64) -> Exit {
        let v = &self.vcpu;
        let pc = v.seg_path[Seg::Cs as usize].base.wrapping_add(v.rip()) & v.hot.linear_mask;
        Exit::Debug { exception, pc, dr6: bits | Dr6::FIXED.bits(), dr7: self.vcpu.effective_dr7().bits() }
    }
}
