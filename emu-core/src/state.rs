//! Reset values: what power-up and INIT leave in each register (SDM vol. 3A, table 9-1).

use crate::cpuid::CpuidTable;
use crate::event::{Activity, Events};
use crate::io::Io;
use crate::msr::MsrState;
use crate::stats::Stats;
use crate::vcpu::{Hot, RIP, SegPath, Vcpu};
use crate::vm::{VcpuShared, Vm};
use crate::vm_clock::VcpuClock;
use crate::xstate::XsaveImage;
use decoder::CpuMode;
use softmmu::{PagingRegisters, VcpuMmu};
use std::sync::Arc;
use x86_arch::control::{Cr0, Cr4, Dr6, Dr7, Efer, Xcr0};
use x86_arch::{DescriptorTable, Gpr, Gva, Rflags, Seg, Segment, Selector};

fn reset_segment(s: Seg) -> Segment {
    let mut v = Segment { limit: 0xffff, present: true, ..Segment::default() };
    match s {
        // The reset vector: base FFFF0000H, until the first far jump.
        Seg::Cs => {
            v.selector = Selector(0xf000);
            v.base = 0xffff_0000;
            v.typ = 0xb;
            v.s = true;
        }
        Seg::Ldtr => v.typ = 2,
        Seg::Tr => v.typ = 0xb,
        _ => {
            v.typ = 3;
            v.s = true;
        }
    }
    v
}

/// Where an instruction's opcode begins: behind its prefixes (SDM vol. 2A, 2.1.1 and 2.2.1).
pub(crate) fn opcode_at(code: &[u8], long64: bool) -> Option<usize> {
    let prefix = |b: u8| {
        matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
            || long64 && b & 0xf0 == 0x40
    };
    code.iter().position(|&b| !prefix(b))
}

impl Vcpu {
    /// A vCPU at reset, registered with its VM.
    pub fn new(vm: &Arc<Vm>, id: u32, bootstrap: bool) -> Vcpu {
        let gate = vm.world().register();
        let shared = {
            let mut vcpus = vm.vcpus.write();
            let shared = Arc::new(VcpuShared {
                id,
                index: vcpus.len(),
                bootstrap,
                gate: gate.clone(),
                irq: Default::default(),
                stats_sink: Default::default(),
                halt_waits: Default::default(),
            });
            vcpus.push(shared.clone());
            shared
        };
        let mut v = Vcpu {
            hot: Hot {
                regs: [0; 18],
                rflags: 2,
                retired: 0,
                rep_iterations: 0,
                attention: 0,
                watch: 0,
                linear_mask: 0xffff_ffff,
                rip_mask: 0xffff_ffff,
            },
            seg_path: [SegPath::default(); 8],
            mmu: VcpuMmu::new(vm.mmu.clone(), gate),
            cpl: 0,
            mode: CpuMode::Bits16,
            block_mode: 0,
            seg: [Segment::default(); 8],
            gdtr: DescriptorTable::default(),
            idtr: DescriptorTable::default(),
            cr0: Cr0::empty(),
            cr2: 0,
            cr3: 0,
            cr4: Cr4::empty(),
            cr8: 0,
            efer: Efer::empty(),
            xcr0: Xcr0::X87,
            dr: [0; 4],
            dr6: Dr6::FIXED,
            dr7: Dr7::FIXED,
            msr: MsrState::at_reset(bootstrap),
            xsave: XsaveImage::reset(),
            pkru: 0,
            native: crate::native::Native::default(),
            events: Events::default(),
            io: Io::default(),
            cpuid: CpuidTable::new(Vec::new()),
            fault_gva: Gva(0),
            host_fault: 0,
            exclusive: false,
            bus_locked: false,
            insn_len: 0,
            debug: crate::debug::GuestDebug::default(),
            stats: Stats::default(),
            vapic: Default::default(),
            count_base: 0,
            clock: VcpuClock::new(vm.clock.host_khz),
            pv: crate::pv::Pv::new(vm.host.run_delay()),
            shared,
            vm: vm.clone(),
        };
        v.create_lapic(bootstrap);
        v.start_tsc();
        v.reset(false);
        v.events.activity = if bootstrap { Activity::Runnable } else { Activity::Uninitialized };
        v
    }

    /// Power-up reset, or INIT (`init`), which keeps the vector state, most MSRs and CR0.CD/NW.
    pub fn reset(&mut self, init: bool) {
        let old_cr0 = self.cr0;
        self.hot.regs = [0; 18];
        self.hot.regs[RIP] = 0xfff0;
        self.hot.regs[Gpr::Rdx as usize] = self.cpuid.find(1, 0).map_or(0x600, |r| r.eax) as u64;
        self.hot.rflags = Rflags::FIXED.bits();
        for s in 0..8 {
            self.seg[s] = Seg::from_index(s as u8).map_or_else(Segment::default, reset_segment);
        }
        self.gdtr = DescriptorTable { base: 0, limit: 0xffff };
        self.idtr = DescriptorTable { base: 0, limit: 0xffff };
        self.cr0 = Cr0::ET | if init { old_cr0 & (Cr0::CD | Cr0::NW) } else { Cr0::CD | Cr0::NW };
        self.cr2 = 0;
        self.cr3 = 0;
        self.cr4 = Cr4::empty();
        self.cr8 = 0;
        self.efer = Efer::empty();
        self.dr = [0; 4];
        self.dr6 = Dr6::FIXED;
        self.dr7 = Dr7::FIXED;
        if !init {
            self.xcr0 = Xcr0::X87;
            self.msr = MsrState::at_reset(self.shared.bootstrap);
            self.xsave = XsaveImage::reset();
            self.pkru = 0;
        }
        self.reset_pv();
        self.events = Events { activity: self.events.activity, ..Events::default() };
        self.io = Io::default();
        self.cpl = 0;
        self.paging_changed();
        self.update_mode();
    }

    /// Tells the MMU the registers that say how addresses are translated.
    pub fn paging_changed(&mut self) {
        self.mmu.set_registers(PagingRegisters {
            cr0: self.cr0,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            pkru: self.pkru,
            as_id: self.events.smm as u16,
            maxphyaddr: self.cpuid.maxphyaddr(),
        });
    }

    /// `run` was entered: the caller may have changed memory behind our back, so no decoded block is
    /// trusted before its bytes are compared.
    pub fn enter_from_outside(&mut self) {
        let requests = self.shared.gate.take_requests();
        self.mmu.apply_requests(requests);
        // What is not the MMU's is seen by the run loop.
        self.shared.gate.request(requests & !softmmu::Requests::STOP);
        self.mmu.drop_exec_tags();
        self.resume_time();
        self.attend(crate::vcpu::ATTENTION_EVENT);
    }

    /// The length of the INT3 at CS:RIP, if there is one. A #BP that waits for its delivery may have come from elsewhere, with
    /// nothing but RIP to say what raised it.
    pub(crate) fn int3_len(&mut self) -> Option<u8> {
        let mut bytes = [0; 15];
        let n = self.peek_code(&mut bytes);
        let at = opcode_at(&bytes[..n], self.mode == CpuMode::Bits64)?;
        (bytes.get(at) == Some(&0xcc)).then_some(at as u8 + 1)
    }

    /// Reads code bytes at CS:RIP for a report, without side effects. Returns how many could be read.
    pub fn peek_code(&mut self, bytes: &mut [u8]) -> usize {
        let gva =
            self.seg_path[Seg::Cs as usize].base.wrapping_add(self.hot.regs[RIP]) & self.hot.linear_mask;
        for (k, b) in bytes.iter_mut().enumerate() {
            let Some(p) = self.mmu.peek(Gva(gva.wrapping_add(k as u64))) else { return k };
            let mut one = [0];
            if self.mmu.guest_memory().read(p.gpa, &mut one).is_err() {
                return k;
            }
            *b = one[0];
        }
        bytes.len()
    }
}
