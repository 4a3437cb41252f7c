//! Where a random guest starts: memory, descriptor and page tables, handlers that skip and go on, registers.
//!
//! RAM is 2 MiB, mapped one to one where the mode pages, all of it for the user too; above it lies device memory.
//! Each handler sends execution to the next slot of [`stream::SLOT`](super::stream::SLOT) bytes, wherever it was.

use super::handlers;
use super::random::Random;
use super::setting::{JumpingHost, Setting};
use super::stream::SLOT;
use decoder::CpuMode;
use emu_core::cpuid::CpuidTable;
use emu_core::cpuid::policy::{HostProcessor, supported_xcr0};
use emu_core::{Processor, Vcpu, Vm};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memmap2::MmapMut;
use softmmu::{MemRegion, MemRegionFlags};
use std::sync::Arc;
use x86_arch::control::{Cr0, Cr4, Efer, Xcr0};
use x86_arch::{DescriptorTable, Gpa, Hva, Rflags, Seg, Segment, Selector};

/// Bytes of RAM.
pub const RAM: u64 = 2 << 20;
/// Where the code is; the base of CS in the 16-bit modes.
pub const CODE: u64 = 0x1_0000;
/// Slots of code.
pub const SLOTS: u64 = 64;
/// Where registers point.
pub const DATA: u64 = 0x2_0000;
/// Bytes of random data there.
pub const DATA_SIZE: u64 = 0x2000;
const STACK: u64 = 0x3_8000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
const HANDLERS: u64 = 0x8000;
/// RSP0 and IST 1.
const KERNEL_STACK: u64 = 0xf000;
const TABLES: u64 = 0x1000;
/// Present, writable, user.
const OPEN: u64 = 7;
/// What is written anew for each case: tables, handlers.
const LOW: usize = 0x1_0000;

/// How a guest starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// 64-bit mode.
    Long,
    /// Compatibility mode, 32-bit code.
    Compat,
    /// Protected mode, 32-bit paging.
    Protected,
    /// The same with 16-bit code and data segments.
    Protected16,
    /// Real-address mode.
    Real,
    /// Virtual-8086 mode.
    Virtual8086,
}

impl Mode {
    /// All, the 64-bit one more often.
    pub const ALL: [Mode; 8] = [
        Mode::Long,
        Mode::Long,
        Mode::Long,
        Mode::Compat,
        Mode::Protected,
        Mode::Protected16,
        Mode::Real,
        Mode::Virtual8086,
    ];

    /// Code size.
    pub fn code_size(self) -> CpuMode {
        match self {
            Mode::Long => CpuMode::Bits64,
            Mode::Compat | Mode::Protected => CpuMode::Bits32,
            _ => CpuMode::Bits16,
        }
    }

    /// RIP of the first slot.
    pub fn code_start(self) -> u64 {
        if self.code_size() == CpuMode::Bits16 { 0 } else { CODE }
    }

    /// Whether it can be had at privilege level 0 and 3.
    pub fn has_privilege(self) -> bool {
        !matches!(self, Mode::Real | Mode::Virtual8086)
    }

    fn long(self) -> bool {
        matches!(self, Mode::Long | Mode::Compat)
    }
}

/// Memory, and what is copied into it for each case.
pub struct Environment {
    ram: MmapMut,
    cpuid: CpuidTable,
    low: [(Mode, Vec<u8>); 6],
}

impl Environment {
    /// Maps memory and makes the tables.
    pub fn new() -> Environment {
        let modes =
            [Mode::Long, Mode::Compat, Mode::Protected, Mode::Protected16, Mode::Real, Mode::Virtual8086];
        Environment {
            ram: MmapMut::map_anon(RAM as usize).expect("2 MiB"),
            cpuid: handlers::cpuid(),
            low: modes.map(|m| (m, low(m).expect("the handlers assemble"))),
        }
    }

    /// Guest memory from zero.
    pub fn memory(&self) -> &[u8] {
        &self.ram
    }

    /// A processor at the start of a case.
    pub fn start(
        &mut self,
        mode: Mode,
        user: bool,
        code: &[u8],
        setting: Setting,
        random: &mut Random,
    ) -> Processor {
        self.ram.fill(0);
        let low = self.low.iter().find(|(m, _)| *m == mode).map(|(_, l)| l.as_slice()).unwrap_or_default();
        self.ram[..low.len()].copy_from_slice(low);
        self.ram[CODE as usize..][..code.len()].copy_from_slice(code);
        self.ram[DATA as usize..][..DATA_SIZE as usize].copy_from_slice(&random.bytes(DATA_SIZE as usize));
        let vm = Vm::new(Arc::new(JumpingHost::default()));
        setting.prepare(&vm);
        let region = MemRegion {
            slot: 0,
            as_id: 0,
            gpa: Gpa(0),
            size: RAM,
            hva: Hva(self.ram.as_ptr() as u64),
            flags: MemRegionFlags::empty(),
        };
        vm.world().exclusive(None, |ex| vm.mmu.set_memory_region(ex, region)).expect("the first slot");
        let mut vcpu = Vcpu::new(&vm, 0, true);
        vcpu.cpuid = self.cpuid.clone();
        set_up(&mut vcpu, mode, user, random);
        setting.apply(&mut vcpu, mode, random);
        vcpu.paging_changed();
        vcpu.update_mode();
        vcpu.update_view();
        Processor::new(vcpu)
    }
}

impl Default for Environment {
    fn default() -> Self {
        Environment::new()
    }
}

fn flat_code(selector: u16, bits: u32) -> Segment {
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

fn set_up(v: &mut Vcpu, mode: Mode, user: bool, random: &mut Random) {
    let small = mode.code_size() == CpuMode::Bits16;
    v.xcr0 = Xcr0::from_bits_retain(supported_xcr0(&HostProcessor::this()));
    v.gdtr = DescriptorTable { base: GDT, limit: 0xff };
    v.idtr = DescriptorTable {
        base: if mode == Mode::Real { 0 } else { IDT },
        limit: if mode == Mode::Real { 0x3ff } else { 0xfff },
    };
    v.cr3 = TABLES;
    v.cr0 = Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::PG;
    v.cr4 = Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::FSGSBASE | Cr4::PSE;
    v.efer = Efer::empty();
    if mode.long() {
        v.cr4 |= Cr4::PAE;
        v.efer = Efer::LME | Efer::LMA | Efer::NXE | Efer::SCE;
    }
    if mode == Mode::Real {
        v.cr0 = Cr0::ET | Cr0::MP | Cr0::NE;
    }
    v.hot.rflags = Rflags::FIXED.bits() | random.next() & Rflags::STATUS.bits();
    if mode == Mode::Virtual8086 {
        // IOPL 3, or 0: then INT, PUSHF and their like are #GP.
        v.hot.rflags |= Rflags::VM.bits() | if random.one_in(2) { 0x3000 } else { 0 };
    }
    let level = if user || mode == Mode::Virtual8086 { 3 } else { 0 };
    // 8: 64-bit code, 10H: data, 18H: 32-bit code, 20H: 16-bit code, 28H: 16-bit data; 30H more for level 3.
    let up = if level == 3 && mode != Mode::Virtual8086 { 0x33 } else { 0 };
    let (code, data, stack) = if small {
        let window = |n: u16, base: u64, typ: u8| Segment {
            selector: Selector(if mode == Mode::Protected16 { n + up } else { (base >> 4) as u16 }),
            base,
            limit: 0xffff,
            typ,
            db: false,
            g: false,
            ..flat_code(0, 16)
        };
        let code_type = if mode == Mode::Virtual8086 { 3 } else { 0xb };
        (window(0x20, CODE, code_type), window(0x28, DATA, 3), window(0x28, STACK & !0xffff, 3))
    } else {
        let selector = if mode == Mode::Long { 8 } else { 0x18 };
        let code = flat_code(selector + up, mode.code_size().bitness());
        let data = Segment { typ: 3, l: false, db: true, ..flat_code(0x10 + up, 32) };
        (code, data, data)
    };
    for s in Seg::PROGRAM {
        let mut segment = match s {
            Seg::Cs => code,
            Seg::Ss => stack,
            _ => data,
        };
        segment.dpl = level;
        v.seg[s as usize] = segment;
    }
    v.seg[Seg::Tr as usize] = Segment {
        selector: Selector(0x68),
        base: TSS,
        limit: 0x7ff,
        typ: 0xb,
        present: true,
        ..Segment::default()
    };
    v.seg[Seg::Ldtr as usize] = Segment { unusable: true, ..Segment::default() };
    v.cpl = level;
    for (n, r) in v.hot.regs[..16].iter_mut().enumerate() {
        let offset = random.below(DATA_SIZE as usize) as u64 & if random.one_in(2) { !63 } else { !0 };
        *r = match n {
            // Counts and shifts.
            1 => random.below(40) as u64,
            4 => STACK,
            _ if random.one_in(8) => random.next(),
            _ if random.one_in(16) => RAM - 4,
            _ if small => offset,
            _ => DATA + offset,
        };
        if small {
            *r &= 0xffff;
        }
    }
    v.hot.regs[emu_core::vcpu::RIP] = mode.code_start();
}

/// The low 64 KiB of a mode.
fn low(mode: Mode) -> Result<Vec<u8>, IcedError> {
    let mut m = vec![0u8; LOW];
    let mut put = |at: u64, bytes: &[u8]| m[at as usize..][..bytes.len()].copy_from_slice(bytes);
    let descriptor = |access: u64, flags: u64, base: u64, limit: u64| {
        limit & 0xffff
            | (base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 15) << 48
            | flags << 52
            | (base >> 24 & 0xff) << 56
    };
    for (n, dpl) in [(0, 0), (6, 3)] {
        let ring = dpl << 5;
        let rows = [
            descriptor(0x9b | ring, 0xa, 0, 0xf_ffff),
            descriptor(0x93 | ring, 0xc, 0, 0xf_ffff),
            descriptor(0x9b | ring, 0xc, 0, 0xf_ffff),
            descriptor(0x9b | ring, 0, CODE, 0xffff),
            descriptor(0x93 | ring, 0, DATA, 0xffff),
        ];
        for (k, row) in rows.iter().enumerate() {
            put(GDT + 8 * (n + 1 + k as u64), &row.to_le_bytes());
        }
    }
    // A call gate, a busy TSS, an available TSS, a task gate, an LDT, an absent segment.
    put(GDT + 0x68, &descriptor(0x8b, 0, TSS, 0x7ff).to_le_bytes());
    put(GDT + 0x78, &descriptor(0x89, 0, TSS + 0x80, 0x67).to_le_bytes());
    put(GDT + 0x88, &descriptor(0xe2, 0, GDT, 0xff).to_le_bytes());
    put(GDT + 0x98, &descriptor(0x13, 0xc, 0, 0xf_ffff).to_le_bytes());
    let gate = |offset: u64, selector: u64, access: u64| {
        offset & 0xffff | selector << 16 | access << 40 | (offset >> 16 & 0xffff) << 48
    };
    put(GDT + 0xa8, &gate(CODE, if mode.long() { 8 } else { 0x18 }, 0xec).to_le_bytes());
    put(GDT + 0xb8, &gate(0, 0x78, 0xe5).to_le_bytes());
    if mode.long() {
        put(TSS + 4, &KERNEL_STACK.to_le_bytes());
        put(TSS + 0x24, &KERNEL_STACK.to_le_bytes());
        put(TABLES, &((TABLES + 0x1000) | OPEN).to_le_bytes());
        put(TABLES + 0x1000, &((TABLES + 0x2000) | OPEN).to_le_bytes());
        put(TABLES + 0x2000, &((TABLES + 0x3000) | OPEN).to_le_bytes());
        for n in 1..512u64 {
            put(TABLES + 0x2000 + 8 * n, &(n << 21 | OPEN | 0x80).to_le_bytes());
        }
        for n in 0..512u64 {
            put(TABLES + 0x3000 + 8 * n, &(n << 12 | OPEN).to_le_bytes());
        }
    } else {
        put(TSS + 4, &(KERNEL_STACK as u32).to_le_bytes());
        put(TSS + 8, &0x10u32.to_le_bytes());
        for n in 0..1024u32 {
            put(TABLES + 4 * u64::from(n), &(n << 22 | OPEN as u32 | 0x80).to_le_bytes());
        }
    }
    // An I/O bitmap that opens the low ports, and a redirection bitmap of zeros.
    put(TSS + 0x66, &0x88u16.to_le_bytes());
    put(TSS + 0x7ff, &[0xff]);
    let error_code = |v: u64| matches!(v, 8 | 10..=14 | 17 | 21);
    for vector in 0..256u64 {
        let at = HANDLERS + 16 * u64::from(error_code(vector)) * 8;
        match mode {
            Mode::Real => {
                put(4 * vector, &((HANDLERS as u32) >> 4 << 16).to_le_bytes());
            }
            Mode::Long | Mode::Compat => {
                put(IDT + 16 * vector, &gate(at, 8 | 1 << 16, 0xee).to_le_bytes());
            }
            _ => put(IDT + 8 * vector, &gate(at, 0x18, 0xee).to_le_bytes()),
        }
    }
    for with_code in [false, true] {
        put(HANDLERS + u64::from(with_code) * 0x80, &handler(mode, with_code)?);
    }
    Ok(m)
}

/// To the next slot: the address behind, inside the code, whatever it was.
fn handler(mode: Mode, with_code: bool) -> Result<Vec<u8>, IcedError> {
    let mask = (SLOTS * SLOT - 1) as i32 & !(SLOT as i32 - 1);
    let slot = SLOT as i32;
    match mode {
        Mode::Long | Mode::Compat => {
            let mut a = CodeAssembler::new(64)?;
            let skip = if with_code { 8 } else { 0 };
            a.push(rax)?;
            a.mov(rax, qword_ptr(rsp + 8 + skip))?;
            a.add(eax, slot)?;
            a.and(eax, mask)?;
            if mode == Mode::Long || mode == Mode::Compat {
                a.or(eax, CODE as i32)?;
            }
            a.mov(qword_ptr(rsp + 8 + skip), rax)?;
            a.pop(rax)?;
            if with_code {
                a.add(rsp, 8)?;
            }
            a.iretq()?;
            a.assemble(HANDLERS)
        }
        Mode::Real => {
            let mut a = CodeAssembler::new(16)?;
            a.push(bp)?;
            a.mov(bp, sp)?;
            a.add(word_ptr(bp + 2), slot)?;
            a.and(word_ptr(bp + 2), mask)?;
            a.mov(word_ptr(bp + 4), (CODE >> 4) as u32)?;
            a.pop(bp)?;
            a.iret()?;
            a.assemble(0)
        }
        _ => {
            let mut a = CodeAssembler::new(32)?;
            let skip = if with_code { 4 } else { 0 };
            a.push(eax)?;
            a.mov(eax, dword_ptr(esp + 4 + skip))?;
            a.add(eax, slot)?;
            a.and(eax, mask)?;
            if mode == Mode::Protected {
                a.or(eax, CODE as i32)?;
            }
            a.mov(dword_ptr(esp + 4 + skip), eax)?;
            a.pop(eax)?;
            if with_code {
                a.add(esp, 4)?;
            }
            a.iretd()?;
            a.assemble(HANDLERS)
        }
    }
}
