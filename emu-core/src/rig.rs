//! A test rig: one small VM with one vCPU, and the means to execute exactly one instruction on it.
//!
//! The instruction takes the real path, [`decode_one`], [`interp::select`], the handler; or, through
//! [`Rig::run`], the whole of [`Processor::run`]. Only tests use it.
//!
//! Memory is the same in each mode: [`RAM`] bytes from address 0, mapped one to one in 4 KiB pages (where the mode
//! pages), each present, writable and of user privilege; behind it nothing, so that [`MMIO`] is a device's.
//!
//! ```ignore
//! let mut rig = Rig::new(Mode::Long);
//! rig.set(Gpr::Rax, 5);
//! rig.step(&assemble(64, |a| a.add(rax, 3)))?;
//! assert_eq!(rig.get(Gpr::Rax), 8);
//! ```
#![allow(dead_code, reason = "a kit for the tests of every file: not each part is in use at each time")]

use crate::cpuid::CpuidTable;
use crate::exit::{Exit, Stop};
use crate::host::Host;
use crate::host_cpu;
use crate::interp;
use crate::run::Processor;
use crate::vcpu::{RIP, Vcpu};
use crate::vm::Vm;
use decoder::{Context, Insn, Protection, decode_one};
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use memmap2::{MmapMut, MmapRaw};
use softmmu::{MemRegion, MemRegionFlags};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use x86_arch::control::{Cr0, Cr4, Dr6, Dr7, Efer, Xcr0};
use x86_arch::cpuid::{CpuidEntry, CpuidResult};
use x86_arch::{DescriptorTable, Gpa, Gpr, Gva, Hva, Rflags, Seg, Segment, Selector};

/// Bytes of guest memory, from guest-physical address 0.
pub const RAM: u64 = 0x20_0000;
/// Where code runs; in the 16-bit modes the base of CS.
pub const CODE: u64 = 0x1_0000;
/// For data; in the 16-bit modes the base of DS and ES. 64 KiB are free.
pub const DATA: u64 = 0x2_0000;
/// The stack pointer at first, as a linear address. In the 16-bit modes SS has the base 30000H.
pub const STACK: u64 = 0x3_8000;
/// An address that is mapped, and where there is no memory.
pub const MMIO: u64 = 0x30_0000;
/// The GDT: null, 64-bit code (8), data (10H), 32-bit code (18H), 16-bit code (20H), 16-bit data (28H); the same
/// with DPL 3 from 33H (64-bit code), 3BH (data), 43H (32-bit code).
pub const GDT: u64 = 0x5000;
/// Room for an IDT.
pub const IDT: u64 = 0x6000;
/// A TSS of 2 KiB, all zero.
pub const TSS: u64 = 0x7000;

const TABLES: u64 = 0x1000;
/// The page table that maps the first 2 MiB (4 MiB with 32-bit paging).
const LEAF_TABLE: u64 = 0x4000;
/// Present, writable, user, accessed, dirty.
const OPEN: u64 = 0x67;

/// How the vCPU is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// 64-bit mode, CPL 0.
    Long,
    /// Compatibility mode, 32-bit code, CPL 0.
    Compat,
    /// Protected mode with 32-bit paging, flat segments, CPL 0.
    Protected,
    /// Protected mode with 16-bit segments as [`Mode::Real`] has them, CPL 0.
    Protected16,
    /// Real-address mode: CS, DS, ES and SS have bases.
    Real,
    /// Virtual-8086 mode, IOPL 0, with 32-bit paging.
    Virtual8086,
}

/// A host whose clock is the count of retired instructions, and whose chance is a counter.
#[derive(Default)]
pub struct CountedHost(AtomicU64);

impl Host for CountedHost {
    fn tsc(&self, retired: u64) -> u64 {
        0x1000 + retired
    }
    fn tsc_khz(&self) -> u32 {
        1_000_000
    }
    fn monotonic_ns(&self, retired: u64) -> u64 {
        retired
    }
    fn realtime_ns(&self, retired: u64) -> u64 {
        1_000_000_000 + retired
    }
    fn random(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    fn skip_to(&self, _: u64) -> bool {
        false
    }
}

/// Registers and flags at one moment, to compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registers {
    /// RAX to R15.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
}

/// One VM with one vCPU.
pub struct Rig {
    /// The processor; its vCPU is public.
    pub processor: Processor,
    /// The VM.
    pub vm: Arc<Vm>,
    mode: Mode,
    // After the VM: memory goes last.
    _ram: Arc<MmapRaw>,
}

/// Assembles for a code size of 16, 32 or 64 bits.
pub fn assemble(bits: u32, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).expect("16, 32 or 64");
    f(&mut a).expect("the test's instruction exists");
    a.assemble(CODE).expect("the test's instruction can be encoded")
}

/// A CPUID table that offers every feature; what describes sizes is the host's.
pub fn every_feature() -> CpuidTable {
    let row = |leaf, subleaf, indexed, result| CpuidEntry { leaf, subleaf, indexed, result };
    let all = CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 };
    let vendor = CpuidResult { eax: 0x20, ebx: 0x756e_6547, ecx: 0x6c65_746e, edx: 0x4965_6e69 };
    let mut rows = vec![
        row(0, 0, false, vendor),
        row(1, 0, false, CpuidResult { eax: 0x306c3, ebx: 0x0001_0800, ..all }),
        row(7, 0, true, CpuidResult { eax: 2, ..all }),
        row(7, 1, true, all),
        row(7, 2, true, all),
        row(0x14, 0, true, all),
        row(0x19, 0, false, all),
        row(0x8000_0000, 0, false, CpuidResult { eax: 0x8000_0021, ..CpuidResult::default() }),
        row(0x8000_0001, 0, false, CpuidResult { eax: 0, ebx: 0, ..all }),
        row(0x8000_0007, 0, false, all),
        row(0x8000_0008, 0, false, CpuidResult { eax: 0x302e, ebx: !0, ecx: 0, edx: 0 }),
        row(0x8000_000a, 0, false, all),
    ];
    rows.extend((0..20).map(|n| row(0xd, n, true, host_cpu::cpuid(0xd, n))));
    CpuidTable::new(rows)
}

fn code_segment(selector: u16, bits: u32) -> Segment {
    Segment {
        selector: Selector(selector),
        base: 0,
        limit: u32::MAX,
        typ: 0xb,
        s: true,
        present: true,
        l: bits == 64,
        db: bits == 32,
        g: true,
        ..Segment::default()
    }
}

fn data_segment(selector: u16) -> Segment {
    Segment { typ: 3, l: false, db: true, ..code_segment(selector, 32) }
}

impl Rig {
    /// A vCPU in this mode, RIP at [`CODE`], registers zero but for RSP.
    pub fn new(mode: Mode) -> Rig {
        Rig::with(mode, |_| {})
    }

    /// The same in a VM with the interrupt controllers inside, and the local APIC enabled.
    pub fn with_irqchip(mode: Mode) -> Rig {
        let mut rig = Rig::with(mode, |vm| assert!(vm.create_irqchip(false)));
        rig.enable_lapic();
        rig
    }

    /// Writes the spurious-vector register as an operating system does.
    pub fn enable_lapic(&mut self) {
        let now = self.cpu().device_now();
        if let Some(mut lapic) = self.cpu().shared.irq.lapic() {
            let _ = lapic.mmio_write(x86_arch::apic::APIC_SVR.into(), &0x1ffu32.to_le_bytes(), &now);
        }
    }

    fn with(mode: Mode, prepare: impl FnOnce(&Arc<Vm>)) -> Rig {
        let ram = MmapRaw::from(MmapMut::map_anon(RAM as usize).expect("2 MiB"));
        let ram = Arc::new(ram);
        let vm = Vm::new(Arc::new(CountedHost::default()));
        let region = MemRegion {
            slot: 0,
            as_id: 0,
            gpa: Gpa(0),
            size: RAM,
            hva: Hva(ram.as_ptr() as u64),
            flags: MemRegionFlags::empty(),
        };
        vm.world()
            .exclusive(None, |ex| vm.mmu.set_memory_region(ex, region))
            .expect("the first slot of a VM");
        prepare(&vm);
        Rig::on(vm, 0, mode, ram)
    }

    /// Another vCPU of this rig's VM, in this rig's mode. Each may be moved to a thread of its own.
    pub fn sibling(&self) -> Rig {
        let id = self.vm.vcpus.read().len() as u32;
        Rig::on(self.vm.clone(), id, self.mode, self._ram.clone())
    }

    fn on(vm: Arc<Vm>, id: u32, mode: Mode, ram: Arc<MmapRaw>) -> Rig {
        let mut vcpu = Vcpu::new(&vm, id, true);
        vcpu.cpuid = every_feature();
        let mut rig = Rig { processor: Processor::new(vcpu), vm, mode, _ram: ram };
        if id == 0 {
            rig.write_tables();
        }
        rig.set_up();
        rig
    }

    fn write_tables(&mut self) {
        let access = |dpl: u64| dpl << 45;
        let flat = 0x00cf_0000_0000_ffff_u64;
        let (code, data) = (0x9b_u64 << 40, 0x93_u64 << 40);
        let code64 = 0x00af_0000_0000_ffff | code;
        let rows = [
            0,
            code64,
            flat | data,
            flat | code,
            0x0000_9b01_0000_ffff,
            0x0000_9302_0000_ffff,
            code64 | access(3),
            flat | data | access(3),
            flat | code | access(3),
        ];
        for (n, row) in rows.iter().enumerate() {
            self.write(GDT + 8 * n as u64, &row.to_le_bytes());
        }
        match self.mode {
            Mode::Long | Mode::Compat => {
                self.write_u64(TABLES, (TABLES + 0x1000) | OPEN);
                self.write_u64(TABLES + 0x1000, (TABLES + 0x2000) | OPEN);
                self.write_u64(TABLES + 0x2000, LEAF_TABLE | OPEN);
                for n in 1..512 {
                    self.write_u64(TABLES + 0x2000 + 8 * n, n << 21 | OPEN | 0x80);
                }
                for n in 0..512 {
                    self.write_u64(LEAF_TABLE + 8 * n, n << 12 | OPEN);
                }
            }
            Mode::Protected | Mode::Protected16 | Mode::Virtual8086 => {
                self.write(TABLES, &((LEAF_TABLE | OPEN) as u32).to_le_bytes());
                for n in 1..1024u32 {
                    self.write(TABLES + 4 * n as u64, &(n << 22 | OPEN as u32 | 0x80).to_le_bytes());
                }
                for n in 0..1024u32 {
                    self.write(LEAF_TABLE + 4 * n as u64, &(n << 12 | OPEN as u32).to_le_bytes());
                }
            }
            Mode::Real => {}
        }
    }

    /// Gives system-management mode its address space: this rig's memory, but for 128 KiB of its own at `smram`.
    /// Returns the memory behind those, which must outlive the run.
    pub fn system_management_memory(&mut self, smram: u64) -> MmapMut {
        let own = MmapMut::map_anon(0x2_0000).expect("128 KiB");
        let ram = self._ram.as_ptr() as u64;
        let regions = [
            (0, smram, ram),
            (smram, 0x2_0000, own.as_ptr() as u64),
            (smram + 0x2_0000, RAM - smram - 0x2_0000, ram + smram + 0x2_0000),
        ];
        for (slot, (gpa, size, hva)) in (0..).zip(regions) {
            let flags = MemRegionFlags::empty();
            let region = MemRegion { slot, as_id: 1, gpa: Gpa(gpa), size, hva: Hva(hva), flags };
            self.vm
                .world()
                .exclusive(None, |ex| self.vm.mmu.set_memory_region(ex, region))
                .expect("an empty address space");
        }
        own
    }

    /// Puts the vCPU's registers back as [`Rig::new`] left them. Memory, CPUID and vector registers stay.
    pub fn restart(&mut self) {
        let v = self.cpu();
        v.dr7 = Dr7::FIXED;
        v.dr6 = Dr6::FIXED;
        self.set_up();
        self.cpu().update_view();
    }

    fn set_up(&mut self) {
        let mode = self.mode;
        let v = self.cpu();
        v.hot.regs = [0; 18];
        v.hot.rflags = Rflags::FIXED.bits();
        v.xcr0 = Xcr0::from_bits_retain(host_cpu::xcr0() & 0xe7);
        v.gdtr = DescriptorTable { base: GDT, limit: 0x47 };
        v.idtr = DescriptorTable { base: IDT, limit: 0xfff };
        v.cr3 = TABLES;
        v.cr0 = Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::PG;
        v.cr4 = Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::FSGSBASE;
        v.efer = Efer::empty();
        match mode {
            Mode::Long | Mode::Compat => {
                v.cr4 |= Cr4::PAE;
                v.efer = Efer::LME | Efer::LMA | Efer::NXE | Efer::SCE;
            }
            Mode::Protected | Mode::Protected16 => v.cr4 |= Cr4::PSE,
            Mode::Virtual8086 => {
                v.cr4 |= Cr4::PSE;
                v.hot.rflags |= Rflags::VM.bits();
            }
            Mode::Real => v.cr0 = Cr0::ET | Cr0::MP | Cr0::NE,
        }
        let (code, data) = match mode {
            Mode::Long => (code_segment(8, 64), data_segment(0x10)),
            Mode::Compat | Mode::Protected => (code_segment(0x18, 32), data_segment(0x10)),
            _ => {
                let small = |s: Segment, selector, base| Segment {
                    selector: Selector(selector),
                    base,
                    limit: 0xffff,
                    db: false,
                    g: false,
                    ..s
                };
                let sixteen = mode == Mode::Protected16;
                let data = small(data_segment(0), if sixteen { 0x28 } else { 0x2000 }, DATA);
                (small(code_segment(0, 16), if sixteen { 0x20 } else { 0x1000 }, CODE), data)
            }
        };
        let stack =
            if data.db { data } else { Segment { selector: Selector(0x3000), base: 0x3_0000, ..data } };
        for s in Seg::PROGRAM {
            v.seg[s as usize] = match s {
                Seg::Cs => code,
                Seg::Ss => stack,
                _ => data,
            };
        }
        if mode == Mode::Virtual8086 {
            for s in Seg::PROGRAM {
                v.seg[s as usize].dpl = 3;
                v.seg[s as usize].typ = 3;
            }
        }
        v.seg[Seg::Tr as usize] = Segment {
            selector: Selector(0x48),
            base: TSS,
            limit: 0x7ff,
            typ: 0xb,
            present: true,
            ..Segment::default()
        };
        v.seg[Seg::Ldtr as usize] = Segment { unusable: true, ..Segment::default() };
        v.cpl = if mode == Mode::Virtual8086 { 3 } else { 0 };
        let (rip, rsp) = if data.db { (CODE, STACK) } else { (0, STACK & 0xffff) };
        v.hot.regs[RIP] = rip;
        v.hot.regs[Gpr::Rsp as usize] = rsp;
        v.paging_changed();
        v.update_mode();
        v.hot.attention = 0;
    }

    /// Puts CS, SS and the CPL at privilege 3 (protected and long modes).
    pub fn user(&mut self) {
        let v = self.cpu();
        for s in Seg::PROGRAM {
            let mut seg = v.seg[s as usize];
            seg.dpl = 3;
            seg.selector = seg.selector.with_rpl(3);
            v.set_segment(s, seg);
        }
        v.set_cpl(3);
        v.hot.attention = 0;
    }

    /// The vCPU.
    pub fn cpu(&mut self) -> &mut Vcpu {
        &mut self.processor.vcpu
    }

    /// A register.
    pub fn get(&self, r: Gpr) -> u64 {
        self.processor.vcpu.hot.regs[r as usize]
    }

    /// Writes a register, all 64 bits.
    pub fn set(&mut self, r: Gpr, v: u64) {
        self.processor.vcpu.hot.regs[r as usize] = v;
    }

    /// RFLAGS.
    pub fn flags(&self) -> u64 {
        self.processor.vcpu.hot.rflags
    }

    /// Writes the flags in `mask`.
    pub fn set_flags(&mut self, mask: Rflags, v: u64) {
        let old = self.flags();
        self.cpu().set_rflags(old & !mask.bits() | v & mask.bits());
    }

    /// Registers and flags.
    pub fn registers(&self) -> Registers {
        let hot = &self.processor.vcpu.hot;
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&hot.regs[..16]);
        Registers { gpr, rip: hot.regs[RIP], rflags: hot.rflags }
    }

    /// Puts registers and flags (status flags and DF) back.
    pub fn set_registers(&mut self, r: &Registers) {
        let v = self.cpu();
        v.hot.regs[..16].copy_from_slice(&r.gpr);
        v.hot.regs[RIP] = r.rip;
        v.set_rflags(r.rflags);
    }

    /// Reads guest memory by physical (which is linear) address.
    pub fn read(&self, gpa: u64, out: &mut [u8]) {
        self.vm.mmu.guest_memory(0).read(Gpa(gpa), out).expect("inside RAM");
    }

    /// Writes guest memory by physical (which is linear) address, as the VMM would.
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) {
        self.vm.mmu.guest_memory(0).write(Gpa(gpa), bytes).expect("inside RAM");
    }

    /// Reads eight bytes.
    pub fn read_u64(&self, gpa: u64) -> u64 {
        let mut b = [0; 8];
        self.read(gpa, &mut b);
        u64::from_le_bytes(b)
    }

    /// Writes eight bytes.
    pub fn write_u64(&mut self, gpa: u64, v: u64) {
        self.write(gpa, &v.to_le_bytes());
    }

    /// Sets the low bits (present 1, writable 2, user 4 …) of the entry that maps this page of [`RAM`].
    pub fn protect(&mut self, gva: u64, bits: u64) {
        let n = gva >> 12;
        let entry = gva & !0xfff | bits;
        match self.mode {
            Mode::Real => panic!("no paging in real mode"),
            Mode::Long | Mode::Compat => self.write_u64(LEAF_TABLE + 8 * n, entry),
            _ => self.write(LEAF_TABLE + 4 * n, &(entry as u32).to_le_bytes()),
        }
        self.cpu().mmu.invlpg(Gva(gva));
    }

    /// Takes the page away: any access is #PF.
    pub fn unmap(&mut self, gva: u64) {
        self.protect(gva, 0);
    }

    /// Makes the page read-only: a write is #PF (CR0.WP is set).
    pub fn read_only(&mut self, gva: u64) {
        self.protect(gva, OPEN & !2);
    }

    /// Maps the page again as at first.
    pub fn map(&mut self, gva: u64) {
        self.protect(gva, OPEN);
    }

    /// Decodes one instruction as the vCPU's mode does.
    pub fn decode(&self, code: &[u8]) -> Insn {
        let v = &self.processor.vcpu;
        let protection = if v.real_mode() {
            Protection::Real
        } else if v.v86() {
            Protection::Virtual8086
        } else {
            Protection::Protected
        };
        let context = Context { mode: v.mode, protection, cpuid: v.cpuid.instructions() };
        let mut bytes = [0x90; 15];
        let n = code.len().min(15);
        bytes[..n].copy_from_slice(&code[..n]);
        decode_one(&bytes, &context).expect("15 bytes are enough")
    }

    /// Executes one instruction at RIP (its bytes need not be in memory). On `Err` RIP is where it was.
    /// An instruction that asks for an exclusive section is executed again inside one.
    pub fn step(&mut self, code: &[u8]) -> Result<(), Stop> {
        let insn = self.decode(code);
        let gate = self.cpu().shared.gate.clone();
        gate.enter();
        let requests = gate.take_requests();
        self.cpu().mmu.apply_requests(requests);
        let mut result = self.attempt(&insn);
        let vm = self.vm.clone();
        for _ in 0..8 {
            if result != Err(Stop::Exclusive) {
                break;
            }
            result = vm.world().exclusive(Some(&gate), |ex| {
                self.cpu().mmu.resolve_exclusive(ex);
                self.cpu().exclusive = true;
                let result = self.attempt(&insn);
                self.cpu().exclusive = false;
                result
            });
        }
        gate.leave();
        result
    }

    fn attempt(&mut self, insn: &Insn) -> Result<(), Stop> {
        let v = self.cpu();
        let handler = interp::select(insn);
        v.io.restart();
        v.hot.attention = 0;
        let start = v.hot.regs[RIP];
        v.hot.regs[RIP] = start.wrapping_add(insn.len as u64) & v.hot.rip_mask;
        v.insn_len = insn.len;
        let result = handler(v, insn);
        match result {
            Ok(()) => v.io.commit(),
            Err(_) => v.hot.regs[RIP] = start,
        }
        result
    }

    /// As [`Rig::step`], again and again while the instruction leaves RIP at itself (a REP that was cut in chunks).
    pub fn complete(&mut self, code: &[u8]) -> Result<(), Stop> {
        let start = self.cpu().rip();
        loop {
            self.step(code)?;
            if self.cpu().rip() != start {
                return Ok(());
            }
        }
    }

    /// Puts code at [`CODE`], RIP at its start, and runs at most `bound` instructions of it.
    pub fn run(&mut self, code: &[u8], bound: u64) -> Exit {
        self.write(CODE, code);
        let start = CODE.wrapping_sub(self.cpu().segment(Seg::Cs).base);
        self.cpu().set_rip(start);
        self.processor.run(Some(bound))
    }
}
