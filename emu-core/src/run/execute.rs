//! Inside: blocks, single instructions, and what an instruction's failure becomes.

use super::Processor;
use crate::exit::{Direction, Exit, InternalError, Stop};
use crate::io::Request;
use crate::vcpu::{ATTENTION_EVENT, ATTENTION_STEP, RIP};
use softmmu::Exclusive;
use x86_arch::control::Dr6;
use x86_arch::{Exception, Rflags, Seg, Vector};

/// Instructions between two looks at the clock when nothing else asks for attention.
const QUANTUM: u64 = 4096;

impl Processor {
    /// The bound in `hot.retired`, and before it the next timer's where that is exact.
    fn execution_limit(&self) -> u64 {
        let v = &self.vcpu;
        match v.vm.host.exact().then(|| v.next_deadline()).flatten() {
            Some(deadline) => {
                let wait = deadline.saturating_sub(v.now_ns()).max(1);
                self.limit.min(v.hot.retired.saturating_add(wait))
            }
            None => self.limit,
        }
    }

    /// Executes blocks until something asks for attention. `None`: look between.
    pub(super) fn execute(&mut self) -> Option<Exit> {
        let limit = self.execution_limit();
        let quantum = self.vcpu.hot.retired.saturating_add(QUANTUM).min(limit);
        let gate = self.vcpu.shared.gate.clone();
        // Whoever changes a debug register asks for attention.
        let breakpoints = self.code_breakpoints_armed();
        while self.vcpu.hot.attention == 0 && !gate.pending() && self.vcpu.hot.retired < quantum {
            let (vcpu, blocks) = (&mut self.vcpu, &mut self.blocks);
            let block = match blocks.lookup(vcpu, None) {
                Ok(b) => b,
                Err(stop) => return self.stopped(stop),
            };
            vcpu.stats.blocks += 1;
            let inside = blocks.within_limit(vcpu, block);
            if inside == 0 {
                return self.stopped(Stop::Exception(Exception::GP0));
            }
            let mut left = (limit - vcpu.hot.retired).min(inside as u64) as usize;
            if breakpoints {
                left = self.before_breakpoint(block, left);
                if left == 0 {
                    return self.step();
                }
            }
            let (vcpu, blocks) = (&mut self.vcpu, &mut self.blocks);
            let mut failed = None;
            for op in blocks.ops(block).iter().take(left) {
                let start = vcpu.hot.regs[RIP];
                vcpu.hot.regs[RIP] = start.wrapping_add(op.insn.len as u64) & vcpu.hot.rip_mask;
                vcpu.insn_len = op.insn.len;
                match (op.handler)(vcpu, &op.insn) {
                    // Wraps: a REP that goes on took one away.
                    Ok(()) => vcpu.hot.retired = vcpu.hot.retired.wrapping_add(1),
                    Err(stop) => {
                        vcpu.hot.regs[RIP] = start;
                        failed = Some(stop);
                        break;
                    }
                }
                if vcpu.hot.attention != 0 {
                    vcpu.io.commit();
                    break;
                }
            }
            if let Some(stop) = failed {
                return self.stopped(stop);
            }
        }
        None
    }

    /// Executes exactly one instruction, with everything that the fast loop leaves out: breakpoints,
    /// single step, RF, interrupt shadow.
    pub(super) fn step(&mut self) -> Option<Exit> {
        let v = &self.vcpu;
        if !v.flag(Rflags::RF) && !self.restarting && self.code_breakpoints_armed() {
            let pc = v.seg_path[Seg::Cs as usize].base.wrapping_add(v.rip()) & v.hot.linear_mask;
            let bits = self.code_breakpoint(pc);
            if bits != 0 {
                if self.vcpu.debug.hardware.is_some() {
                    return Some(self.debug_exit(Vector::Db as u8, bits));
                }
                self.vcpu.raise_debug(bits);
                return None;
            }
        }
        let exit = match self.step_once(None) {
            Ok(()) => None,
            Err(stop) => self.stopped(stop),
        };
        self.steps += exit.is_none() as u64;
        exit
    }

    /// One instruction and its traps. On `Err` RIP and the interrupt shadow are as before.
    fn step_once(&mut self, ex: Option<&Exclusive<'_>>) -> Result<(), Stop> {
        let rf = self.vcpu.flag(Rflags::RF);
        let tf = self.vcpu.flag(Rflags::TF);
        self.vcpu.io.restart();
        let (vcpu, blocks) = (&mut self.vcpu, &mut self.blocks);
        let block = blocks.lookup(vcpu, ex)?;
        if blocks.within_limit(vcpu, block) == 0 {
            return vcpu.gp0();
        }
        let Some(op) = blocks.ops(block).first() else {
            return Err(Stop::Internal(InternalError::Emulation));
        };
        let start = vcpu.hot.regs[RIP];
        let shadow = core::mem::take(&mut vcpu.events.shadow);
        vcpu.events.entered_handler = false;
        vcpu.hot.regs[RIP] = start.wrapping_add(op.insn.len as u64) & vcpu.hot.rip_mask;
        vcpu.insn_len = op.insn.len;
        if tf || vcpu.debug.single_step || self.step_limit.is_some() {
            // A REP traps after each iteration (SDM vol. 3B, 17.3.1.4): it stops at attention.
            vcpu.attend(ATTENTION_STEP);
        }
        if let Err(stop) = (op.handler)(vcpu, &op.insn) {
            vcpu.hot.regs[RIP] = start;
            vcpu.events.shadow = shadow;
            return Err(stop);
        }
        vcpu.hot.retired = vcpu.hot.retired.wrapping_add(1);
        vcpu.io.commit();
        self.restarting = false;
        // RF suppresses breakpoints for one instruction; what sets it (IRET, POPF) keeps it for the
        // next (SDM vol. 3A, 17.3.1.1).
        let goes_on = op.insn.rep() && vcpu.hot.regs[RIP] == start;
        if rf && !goes_on {
            vcpu.hot.rflags &= !Rflags::RF.bits();
        }
        if (tf && !vcpu.events.suppress_step()) || vcpu.debug.single_step {
            vcpu.events.debug_trap |= Dr6::BS.bits();
        }
        vcpu.attend(ATTENTION_EVENT);
        Ok(())
    }

    /// What an instruction's failure becomes. RIP is back at its start.
    pub(super) fn stopped(&mut self, stop: Stop) -> Option<Exit> {
        match stop {
            Stop::Exception(e) => {
                self.vcpu.io.commit();
                self.restarting = false;
                if e.vector == Vector::Db && self.vcpu.debug.hardware.is_some() {
                    // General detect by user space's DR7.
                    let bits = core::mem::take(&mut self.vcpu.events.debug_fault);
                    return Some(self.debug_exit(Vector::Db as u8, bits));
                }
                if e.vector == Vector::Bp && self.vcpu.debug.software_breakpoints {
                    // Here, not at delivery: one that user space gives back to the guest is delivered.
                    return Some(self.debug_exit(Vector::Bp as u8, 0));
                }
                self.vcpu.raise(e);
                None
            }
            Stop::Need => {
                self.restarting = true;
                Some(match self.vcpu.io.request.clone() {
                    Some(Request::Pio { port, size, count }) => {
                        Exit::Io { direction: Direction::In, size, port, count, data: Vec::new() }
                    }
                    Some(Request::PioWrite { port, size, data }) => Exit::Io {
                        direction: Direction::Out,
                        size,
                        port,
                        count: 1,
                        data: data.iter().copied().take(size as usize).collect(),
                    },
                    Some(Request::Mmio { .. }) if self.fails_on_mmio() => {
                        self.vcpu.io.request = None;
                        self.vcpu.io.commit();
                        self.restarting = false;
                        self.internal(InternalError::Emulation)
                    }
                    Some(Request::Mmio { gpa, len }) => Exit::MmioRead { gpa, len },
                    Some(Request::Msr { index, reason }) => Exit::MsrRead { index, reason },
                    Some(Request::MsrWrite { index, data, reason }) => Exit::MsrWrite { index, data, reason },
                    Some(Request::Hypercall { nr, args, longmode }) => Exit::Hypercall { nr, args, longmode },
                    Some(Request::XenHypercall { input, params, longmode, cpl }) => {
                        Exit::XenHypercall { input, params, longmode, cpl }
                    }
                    None => self.internal(InternalError::Emulation),
                })
            }
            Stop::Exclusive => {
                // The MMU does there what it wanted. Then the instruction runs once while all others stand
                // still, which also serves a LOCKed access that the host's atomics cannot do.
                match self.exclusive(|p, ex| p.step_once(Some(ex))) {
                    Ok(()) => None,
                    Err(stop) => self.stopped(stop),
                }
            }
            Stop::HostFault => {
                self.vcpu.io.commit();
                Some(Exit::HostFault { hva: self.vcpu.host_fault })
            }
            Stop::Shutdown => Some(Exit::Shutdown),
            // A user program's instruction must not end the VM, unless user space wants to hear of it (KVM api 7.27).
            Stop::Internal(InternalError::Emulation)
                if self.vcpu.cpl != 0 && !self.vcpu.vm.choices.exits_on_emulation_failure() =>
            {
                self.vcpu.io.commit();
                self.restarting = false;
                self.vcpu.raise(Exception::new(Vector::Ud));
                None
            }
            Stop::Internal(kind) => Some(self.internal(kind)),
        }
    }

    /// x87 loads from MMIO are what KVM's emulator is known not to do. Who asks for exits on its failures gets one.
    fn fails_on_mmio(&mut self) -> bool {
        if !self.vcpu.vm.choices.exits_on_emulation_failure() {
            return false;
        }
        let mut code = [0u8; 15];
        let n = self.vcpu.peek_code(&mut code);
        crate::quirks::is_x87(&code[..n], self.vcpu.long64())
    }

    /// Runs `f` while every other vCPU stands at a safe point, and again for as long as the MMU wants
    /// something done there first.
    pub(super) fn exclusive(
        &mut self,
        mut f: impl FnMut(&mut Processor, &Exclusive<'_>) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        /// More wishes than one instruction's accesses can have.
        const WISHES: u32 = 64;
        self.vcpu.stats.exclusives += 1;
        let vm = self.vcpu.vm.clone();
        let gate = self.vcpu.shared.gate.clone();
        vm.world().exclusive(Some(&gate), |ex| {
            self.vcpu.exclusive = true;
            let mut result = Err(Stop::Exclusive);
            for _ in 0..WISHES {
                self.vcpu.mmu.resolve_exclusive(ex);
                result = f(self, ex);
                if result != Err(Stop::Exclusive) {
                    break;
                }
            }
            self.vcpu.exclusive = false;
            match result {
                Err(Stop::Exclusive) => Err(Stop::Internal(InternalError::Emulation)),
                r => r,
            }
        })
    }

    pub(super) fn internal(&mut self, kind: InternalError) -> Exit {
        let v = &mut self.vcpu;
        v.stats.internal_errors += 1;
        let mut bytes = [0u8; 15];
        let n = v.peek_code(&mut bytes);
        if kind == InternalError::Emulation {
            // KVM's emulation_failure: flags (bit 0: bytes follow), their number in a byte, the bytes.
            let mut detail = [0u8; 24];
            detail[0] = (n != 0) as u8;
            detail[8] = n as u8;
            detail[9..24].copy_from_slice(&bytes);
            let detail = detail.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
            return Exit::InternalError { kind, detail };
        }
        let mut detail = vec![v.rip()];
        detail.push(n as u64);
        detail.extend(bytes.chunks(8).map(|c| {
            let mut b = [0; 8];
            b[..c.len()].copy_from_slice(c);
            u64::from_le_bytes(b)
        }));
        Exit::InternalError { kind, detail }
    }
}
