//! The engine: softkvm's processor as a VMM sees it. One VM with one vCPU behind `kvm-ioctl-layer`'s public API, which runs
//! each case in user mode of a small guest (`tables`) until an exception's handler halts.
//!
//! Nothing here knows the emulator: registers go in and come out by KVM_SET and KVM_GET.

mod memory;
mod tables;

#[cfg(test)]
mod tests;

use crate::case::{Bits, Case, End, LINE, Outcome, XSAVE};
use crate::image;
use crate::layout::{self, BACKING, DESCRIPTORS, PAGE};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_xcr, kvm_xcrs,
};
use kvm_ioctl_layer::{KickHandle, Kvm, VcpuExit, VcpuFd, VmFd};
use memory::Memory;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Why the engine cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// An ioctl failed.
    #[error("{0}: {1}")]
    Ioctl(&'static str, String),
    /// Guest memory.
    #[error("guest memory: {0}")]
    Memory(String),
}

impl EngineError {
    fn ioctl(name: &'static str, error: impl core::fmt::Display) -> EngineError {
        EngineError::Ioctl(name, error.to_string())
    }
}

/// Why a case has no [`Outcome`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It did not come to its end until somebody kicked the vCPU.
    Hung,
    /// KVM_RUN returned something else than the handler's HLT; the text says what.
    Exit(String),
}

/// What the engine made of a case.
pub type Executed = Result<Outcome, Ending>;

/// CR0: PE, MP, ET, NE, WP, AM, PG, as Linux has them.
const CR0: u64 = 0x8005_0033;
/// CR4: DE, PAE, OSFXSR, OSXMMEXCPT, and by CPUID UMIP, FSGSBASE, OSXSAVE, SMEP, SMAP, PKE.
const CR4: u64 = 1 << 3 | 1 << 5 | 1 << 9 | 1 << 10;
/// EFER: SCE, LME, LMA, NXE.
const EFER: u64 = 0xd01;
const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
/// Components in XSTATE_BV with one of which KVM_SET_XSAVE takes MXCSR.
const MXCSR_OWNERS: u64 = 1 << image::X87 | 1 << image::SSE | 1 << image::AVX;

/// A kick ends a case that has run for so long.
pub const PATIENCE: Duration = Duration::from_millis(1500);

/// A VM that executes cases.
pub struct Engine {
    vcpu: VcpuFd,
    _vm: VmFd,
    // After the VM: memory goes last.
    memory: Memory,
    base: kvm_sregs,
    template: Vec<u8>,
    /// The backing before and after a case.
    before: Vec<u8>,
    after: Vec<u8>,
    watch: Watch,
    failed: bool,
}

/// Lets another thread see whether an engine makes progress, and end a case that does not.
#[derive(Clone, Debug)]
pub struct Watch(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    /// The vCPU's: another one after an internal error.
    kick: Mutex<KickHandle>,
    executed: AtomicU64,
}

impl Watch {
    /// Cases begun and ended so far: odd while one is running.
    pub fn progress(&self) -> u64 {
        self.0.executed.load(Ordering::Relaxed)
    }

    /// The case that runs now, or else the next one, ends as [`Ending::Hung`].
    pub fn kick(&self) {
        self.0.kick.lock().kick();
    }
}

fn segment(selector: u16) -> kvm_segment {
    match DESCRIPTORS.iter().find(|d| d.selector == selector) {
        Some(d) => kvm_segment {
            base: u64::from(d.base),
            limit: if d.granular { d.limit << 12 | 0xfff } else { d.limit },
            selector,
            type_: d.typ,
            present: u8::from(d.present),
            dpl: 3,
            db: u8::from(d.big),
            s: 1,
            l: u8::from(d.long),
            g: u8::from(d.granular),
            ..Default::default()
        },
        None => kvm_segment { selector, unusable: 1, dpl: 3, ..Default::default() },
    }
}

fn system_segment(selector: u16, base: u64, limit: u32, type_: u8) -> kvm_segment {
    kvm_segment { base, limit, selector, type_, present: 1, ..Default::default() }
}

fn cr4(cpuid: &CpuId) -> u64 {
    let row = |leaf| cpuid.as_slice().iter().find(|e| e.function == leaf && e.index == 0);
    let bit = |word: Option<u32>, bit: u32, cr4: u32| u64::from(word.unwrap_or(0) >> bit & 1) << cr4;
    let (one, seven) = (row(1), row(7));
    CR4 | bit(seven.map(|e| e.ecx), 2, 11)
        | bit(seven.map(|e| e.ebx), 0, 16)
        | bit(one.map(|e| e.ecx), 26, 18)
        | bit(seven.map(|e| e.ebx), 7, 20)
        | bit(seven.map(|e| e.ebx), 20, 21)
        | bit(seven.map(|e| e.ecx), 3, 22)
}

impl Engine {
    /// A VM with what KVM_GET_SUPPORTED_CPUID offers.
    pub fn new() -> Result<Engine, EngineError> {
        let kvm = Kvm::new().map_err(|e| EngineError::ioctl("open", e))?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|e| EngineError::ioctl("KVM_GET_SUPPORTED_CPUID", e))?;
        let vm = kvm.create_vm().map_err(|e| EngineError::ioctl("KVM_CREATE_VM", e))?;
        let memory = Memory::new(tables::SIZE)?;
        tables::write(&memory)?;
        memory.register(&vm, tables::SIZE)?;
        let vcpu = vm.create_vcpu(0).map_err(|e| EngineError::ioctl("KVM_CREATE_VCPU", e))?;
        vcpu.set_cpuid2(&cpuid).map_err(|e| EngineError::ioctl("KVM_SET_CPUID2", e))?;
        let xcr0 = cpuid
            .as_slice()
            .iter()
            .find(|e| e.function == 0xd && e.index == 0)
            .map_or(1, |e| u64::from(e.edx) << 32 | u64::from(e.eax));
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, reserved: 0, value: xcr0 };
        let mut base = vcpu.get_sregs().map_err(|e| EngineError::ioctl("KVM_GET_SREGS", e))?;
        base.cr0 = CR0;
        base.cr3 = tables::PML4;
        base.cr4 = cr4(&cpuid);
        base.efer = EFER;
        base.gdt = kvm_dtable { base: tables::GDT_BASE, limit: tables::GDT_LIMIT, ..Default::default() };
        base.idt = kvm_dtable { base: tables::IDT_BASE, limit: tables::IDT_LIMIT, ..Default::default() };
        base.tr = system_segment(tables::TSS_SELECTOR, tables::TSS_BASE, tables::TSS_LIMIT, 0xb);
        base.ldt = system_segment(tables::LDT_SELECTOR, tables::LDT_BASE, tables::LDT_LIMIT, 2);
        if base.cr4 >> 18 & 1 != 0 {
            vcpu.set_xcrs(&xcrs).map_err(|e| EngineError::ioctl("KVM_SET_XCRS", e))?;
        }
        let template = layout::template();
        memory.write(tables::BACKING_GPA, &template)?;
        let watch =
            Watch(Arc::new(Watched { kick: Mutex::new(vcpu.kick_handle()), executed: AtomicU64::new(0) }));
        Ok(Engine {
            vcpu,
            _vm: vm,
            memory,
            base,
            before: template.clone(),
            after: template.clone(),
            template,
            watch,
            failed: false,
        })
    }

    /// For another thread.
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// Executes one case.
    pub fn execute(&mut self, case: &Case) -> Result<Executed, EngineError> {
        if self.failed {
            // An internal error leaves the VM dead.
            let watch = self.watch.clone();
            *self = Engine::new()?;
            *watch.0.kick.lock() = self.vcpu.kick_handle();
            self.watch = watch;
        }
        self.enter(case)?;
        self.watch.0.executed.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let ending = loop {
            let interrupted = match self.vcpu.run() {
                Ok(VcpuExit::Hlt) => break None,
                Ok(VcpuExit::Intr) => true,
                Ok(exit) => break Some(Ending::Exit(format!("{exit:?}"))),
                Err(error) if error.errno() == libc::EINTR => true,
                Err(error) => break Some(Ending::Exit(format!("KVM_RUN: {error}"))),
            };
            // A kick that was meant for the case before, which came to its end meanwhile, is none for this one.
            if interrupted && begun.elapsed() > PATIENCE {
                break Some(Ending::Hung);
            }
        };
        self.watch.0.executed.fetch_add(1, Ordering::Relaxed);
        let changed = self.memory_changes()?;
        if let Some(ending) = ending {
            self.failed = matches!(ending, Ending::Exit(_));
            return Ok(Err(ending));
        }
        self.leave(changed)
    }

    /// State and memory as the case has them.
    fn enter(&mut self, case: &Case) -> Result<(), EngineError> {
        let before = case.backing(&self.template);
        for page in 0..BACKING / PAGE as usize {
            let range = page * PAGE as usize..(page + 1) * PAGE as usize;
            if before[range.clone()] != self.before[range.clone()] {
                self.memory.write(tables::BACKING_GPA + range.start as u64, &before[range])?;
            }
        }
        self.before = before;
        let mut s = self.base;
        let [es, cs, ss, ds, fs, gs] = case.selectors.map(segment);
        (s.es, s.cs, s.ss, s.ds, s.fs, s.gs) = (es, cs, ss, ds, fs, gs);
        if case.bits == Bits::Bits64 {
            (s.fs.base, s.gs.base) = (case.fs_base, case.gs_base);
        }
        self.vcpu.set_sregs(&s).map_err(|e| EngineError::ioctl("KVM_SET_SREGS", e))?;
        let g = &case.gpr;
        let regs = kvm_regs {
            rax: g[0],
            rcx: g[1],
            rdx: g[2],
            rbx: g[3],
            rsp: g[4],
            rbp: g[5],
            rsi: g[6],
            rdi: g[7],
            r8: g[8],
            r9: g[9],
            r10: g[10],
            r11: g[11],
            r12: g[12],
            r13: g[13],
            r14: g[14],
            r15: g[15],
            rip: case.rip(),
            rflags: case.rflags & !TF | 2 | IF | if case.end == End::SingleStep { TF } else { 0 },
        };
        self.vcpu.set_regs(&regs).map_err(|e| EngineError::ioctl("KVM_SET_REGS", e))?;
        let mut area = case.xsave.clone();
        if image::xstate_bv(&area) & MXCSR_OWNERS == 0 {
            // XRSTOR, which is the oracle's, loads MXCSR whatever XSTATE_BV says (SDM vol. 1, 13.8.1); KVM_SET_XSAVE only
            // with one of these. Zeros are SSE's initial state.
            area[image::XMM..image::XMM + 256].fill(0);
            area[image::XSTATE_BV] |= 1 << image::SSE;
        }
        self.vcpu
            .with_backend(|vcpu| vcpu.set_xsave(&area[..]))
            .map_err(|e| EngineError::Ioctl("KVM_SET_XSAVE", format!("{e:?}")))
    }

    /// The lines that the case has changed; memory is the template's again where it was changed.
    fn memory_changes(&mut self) -> Result<Vec<(u32, [u8; LINE])>, EngineError> {
        let mut changes = Vec::new();
        self.memory.read(tables::BACKING_GPA, &mut self.after)?;
        if self.after == self.before {
            return Ok(changes);
        }
        let lines = self.before.as_chunks::<LINE>().0.iter().zip(self.after.as_chunks::<LINE>().0);
        for (n, (before, after)) in lines.enumerate() {
            if before != after {
                changes.push(((n * LINE) as u32, *after));
                self.memory.write(tables::BACKING_GPA + (n * LINE) as u64, before)?;
            }
        }
        Ok(changes)
    }

    /// The state that the handler found.
    fn leave(&mut self, memory: Vec<(u32, [u8; LINE])>) -> Result<Executed, EngineError> {
        let r = self.vcpu.get_regs().map_err(|e| EngineError::ioctl("KVM_GET_REGS", e))?;
        let s = self.vcpu.get_sregs().map_err(|e| EngineError::ioctl("KVM_GET_SREGS", e))?;
        let area = self
            .vcpu
            .with_backend(|vcpu| vcpu.get_xsave())
            .map_err(|e| EngineError::Ioctl("KVM_GET_XSAVE", format!("{e:?}")))?;
        let (Some(vector), Some(at)) = (tables::vector_of(r.rip), tables::stack_gpa(r.rsp)) else {
            return Ok(Err(Ending::Exit(format!("halted at {:#x}, RSP {:#x}", r.rip, r.rsp))));
        };
        let with_code = tables::has_error_code(vector);
        let mut frame = [0; 48];
        let length = if with_code { 48 } else { 40 };
        self.memory.read(at, &mut frame[..length])?;
        let mut words = frame.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
        let mut next = || words.next().unwrap_or(0);
        let error_code = if with_code { next() as u32 } else { 0 };
        let (rip, cs, rflags, rsp, ss) = (next(), next() as u16, next(), next(), next() as u16);
        let mut xsave = Box::new([0; XSAVE]);
        let len = area.len().min(XSAVE);
        xsave[..len].copy_from_slice(&area[..len]);
        xsave[464..512].fill(0);
        Ok(Ok(Outcome {
            vector,
            error_code,
            cr2: if vector == 14 { s.cr2 } else { 0 },
            gpr: [
                r.rax, r.rcx, r.rdx, r.rbx, rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
                r.r14, r.r15,
            ],
            rip,
            rflags,
            selectors: [s.es.selector, cs, ss, s.ds.selector, s.fs.selector, s.gs.selector],
            fs_base: s.fs.base,
            gs_base: s.gs.base,
            xsave,
            memory,
        }))
    }
}
