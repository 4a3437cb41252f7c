//! Privileged and mode-dependent behaviour as directed tables: mode × CPL × prefix × operand. A file per subject.
//!
//! A row says in which modes and at which CPLs an instruction (its bytes) runs, under which control state and
//! with which operands, and what must come of it: that it commits with a result, or an exception
//! with its error code, after which nothing at all has changed. Its last column is the place in the SDM (or AMD's
//! APM) that the expectation was read from. [`check`] runs each row in each of its modes at each of its CPLs; that every
//! privileged or mode-dependent instruction has a row is checked in [`complete`].
//!
//! # Where operands are
//!
//! [BX] in a 16-bit mode and [EDI], [RDI] in the others have the same ModRM byte (mod 0, rm 7): it is the
//! address [`DATA`]. [`Set::Mem`] writes there, [`Set::Stack`] at the stack pointer and above.

mod bases;
mod caches;
mod complete;
mod control;
mod debug;
mod extended_state;
mod far;
mod fast_calls;
mod flags;
mod modes;
mod ports;
mod segments;
mod software_int;
mod table_registers;
mod time;

use crate::cpuid::CpuidTable;
use crate::exit::Stop;
use crate::rig::{CODE, DATA, GDT, IDT, Mode, Rig, STACK, TSS};
use crate::vcpu::Vcpu;
use decoder::CpuMode;
use iced_x86::{Code, Decoder, DecoderOptions};
use std::collections::BTreeSet;
use x86_arch::control::{Cr0, Cr4, Dr6, Dr7, Efer, Xcr0};
use x86_arch::cpuid::{CpuidReg, Feature};
use x86_arch::{DescriptorTable, Exception, Gpr, Rflags, Seg, Segment, Vector};

/// A set of modes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Modes(u8);

impl Modes {
    const fn or(self, other: Modes) -> Modes {
        Modes(self.0 | other.0)
    }
}

const REAL: Modes = Modes(1);
const V86: Modes = Modes(2);
const P16: Modes = Modes(4);
const P32: Modes = Modes(8);
const COMPAT: Modes = Modes(16);
const LONG: Modes = Modes(32);
/// Protected mode outside IA-32e mode.
const LEGACY: Modes = P16.or(P32);
/// IA-32e mode.
const IA32E: Modes = COMPAT.or(LONG);
/// CR0.PE = 1 and EFLAGS.VM = 0.
const PROTECTED: Modes = LEGACY.or(IA32E);
/// Where no protected-mode instruction exists.
const UNPROTECTED: Modes = REAL.or(V86);
/// All but 64-bit mode.
const NOT64: Modes = UNPROTECTED.or(LEGACY).or(COMPAT);
/// 16-bit code.
const CODE16: Modes = UNPROTECTED.or(P16);
/// 32-bit code.
const CODE32: Modes = P32.or(COMPAT);
/// All but real mode.
const PE: Modes = PROTECTED.or(V86);
/// All.
const ALL: Modes = NOT64.or(LONG);

const MODES: [(Modes, Mode); 6] = [
    (REAL, Mode::Real),
    (V86, Mode::Virtual8086),
    (P16, Mode::Protected16),
    (P32, Mode::Protected),
    (COMPAT, Mode::Compat),
    (LONG, Mode::Long),
];

/// Privilege levels, a bit for each. Real mode is run where there is 0, virtual-8086 mode where there is 3.
type Cpls = u8;
const CPL0: Cpls = 1;
const CPL1: Cpls = 2;
const CPL2: Cpls = 4;
const CPL3: Cpls = 8;
const ANY: Cpls = 15;
/// 1 to 3.
const OUTER: Cpls = 14;

/// One thing that a row sets up.
#[derive(Clone, Copy)]
#[allow(dead_code)]
enum Set {
    WithCr0(Cr0),
    NoCr0(Cr0),
    Cr3(u64),
    WithCr4(Cr4),
    NoCr4(Cr4),
    WithEfer(Efer),
    NoEfer(Efer),
    Xcr0Is(u64),
    Dr7Is(Dr7),
    Iopl(u8),
    Flags(Rflags),
    /// A register, whole.
    Reg(Gpr, u64),
    /// Bytes at [`DATA`].
    Mem(&'static [u8]),
    /// Bytes at the stack pointer.
    Stack(&'static [u8]),
    /// Bytes in the TSS.
    Tss(u64, &'static [u8]),
    /// A descriptor in the GDT, whose limit is raised to hold it (and 8 bytes more).
    Gdt(u16, u64),
    /// A gate in the IDT, by its first eight bytes; the others are zero.
    Idt(u8, u64),
    /// The processor is an AMD.
    Amd,
    /// The processor lacks a feature.
    Lacks(Feature),
    Do(fn(&mut Rig)),
}

/// What must come of it.
#[derive(Clone, Copy)]
#[allow(dead_code)]
enum Want {
    /// It commits, and RIP is behind it.
    Done,
    /// As [`Want::Done`], with this in a register.
    Get(Gpr, u64),
    /// As [`Want::Done`], with these flags set, and these clear.
    Flag(Rflags, Rflags),
    /// It commits, and RIP is this.
    Rip(u64),
    /// It commits, wherever RIP is, and this holds.
    Is(fn(&mut Rig) -> bool),
    /// It asks the outside.
    Asks,
    /// An exception with this error code. Nothing else happened.
    Raise(Vector, u32),
}

const UD: Want = Want::Raise(Vector::Ud, 0);
const NM: Want = Want::Raise(Vector::Nm, 0);
const GP0: Want = Want::Raise(Vector::Gp, 0);
const SS0: Want = Want::Raise(Vector::Ss, 0);
const DB: Want = Want::Raise(Vector::Db, 0);
const MF: Want = Want::Raise(Vector::Mf, 0);
const fn gp(code: u32) -> Want {
    Want::Raise(Vector::Gp, code)
}
const fn np(code: u32) -> Want {
    Want::Raise(Vector::Np, code)
}
const fn ss(code: u32) -> Want {
    Want::Raise(Vector::Ss, code)
}
const fn ts(code: u32) -> Want {
    Want::Raise(Vector::Ts, code)
}

/// Modes, CPLs, the instruction, what is set up, what is expected, where that is written.
type Row = (Modes, Cpls, &'static str, &'static [Set], Want, &'static str);

/// A flat 4 GiB segment, 32-bit, with this access byte.
const fn seg(access: u64) -> u64 {
    0x00cf_0000_0000_ffff | access << 40
}
/// A code segment with L set.
const fn seg64(access: u64) -> u64 {
    0x00af_0000_0000_ffff | access << 40
}
/// A system segment at [`TSS`] with the limit 7FFH.
const fn system(access: u64) -> u64 {
    TSS << 16 | 0x7ff | access << 40
}
/// A gate to `selector:offset`.
const fn gate(access: u64, selector: u64, offset: u64) -> u64 {
    offset & 0xffff | (offset >> 16) << 48 | selector << 16 | access << 40
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.split(' ').map(|b| u8::from_str_radix(b, 16).unwrap_or_else(|_| panic!("{hex:?}"))).collect()
}

/// Puts CS, SS and the others at a privilege level.
fn set_cpl(rig: &mut Rig, cpl: u8) {
    let v = rig.cpu();
    for s in Seg::PROGRAM {
        let old = v.seg[s as usize];
        v.set_segment(s, Segment { dpl: cpl, selector: old.selector.with_rpl(cpl), ..old });
    }
    v.set_cpl(cpl);
}

/// Changes rows of the CPUID table.
fn change_cpuid(v: &mut Vcpu, change: impl Fn(&mut x86_arch::cpuid::CpuidEntry)) {
    let mut rows = v.cpuid.entries().to_vec();
    rows.iter_mut().for_each(change);
    v.cpuid = CpuidTable::new(rows);
}

fn apply(rig: &mut Rig, set: &Set) {
    let rsp = rig.cpu().seg[Seg::Ss as usize].base.wrapping_add(rig.get(Gpr::Rsp));
    let v = rig.cpu();
    match *set {
        Set::WithCr0(b) => v.cr0 |= b,
        Set::NoCr0(b) => v.cr0 &= !b,
        Set::Cr3(x) => v.cr3 = x,
        Set::WithCr4(b) => v.cr4 |= b,
        Set::NoCr4(b) => v.cr4 &= !b,
        Set::WithEfer(b) => v.efer |= b,
        Set::NoEfer(b) => v.efer &= !b,
        Set::Xcr0Is(x) => v.xcr0 = Xcr0::from_bits_retain(x),
        Set::Dr7Is(x) => v.dr7 = x | Dr7::FIXED,
        Set::Iopl(n) => v.set_rflags(v.hot.rflags & !Rflags::IOPL.bits() | (n as u64) << 12),
        Set::Flags(f) => v.set_rflags(v.hot.rflags | f.bits()),
        Set::Reg(r, x) => rig.set(r, x),
        Set::Mem(b) => rig.write(DATA, b),
        Set::Stack(b) => rig.write(rsp, b),
        Set::Tss(at, b) => rig.write(TSS + at, b),
        Set::Gdt(selector, d) => {
            v.gdtr.limit = v.gdtr.limit.max((selector | 7) + 8);
            rig.write_u64(GDT + (selector & !7) as u64, d);
        }
        Set::Idt(vector, d) => {
            let size = if v.long_mode() { 16 } else { 8 };
            rig.write_u64(IDT + size * vector as u64, d);
        }
        Set::Amd => change_cpuid(v, |row| {
            if row.leaf == 0 {
                (row.result.ebx, row.result.edx, row.result.ecx) = (0x6874_7541, 0x6974_6e65, 0x444d_4163);
            }
        }),
        Set::Lacks(f) => change_cpuid(v, |row| {
            if row.leaf == f.leaf && row.subleaf == f.subleaf {
                let r = &mut row.result;
                let part = match f.reg {
                    CpuidReg::Eax => &mut r.eax,
                    CpuidReg::Ebx => &mut r.ebx,
                    CpuidReg::Ecx => &mut r.ecx,
                    CpuidReg::Edx => &mut r.edx,
                };
                *part &= !(1 << f.bit);
            }
        }),
        Set::Do(f) => f(rig),
    }
    let v = rig.cpu();
    match set {
        Set::WithCr0(_)
        | Set::NoCr0(_)
        | Set::Cr3(_)
        | Set::WithCr4(_)
        | Set::NoCr4(_)
        | Set::WithEfer(_)
        | Set::NoEfer(_) => {
            v.paging_changed();
            v.update_mode();
        }
        Set::Dr7Is(_) => v.update_view(),
        _ => {}
    }
}

/// All that a faulting instruction must leave alone.
#[derive(PartialEq, Debug)]
struct Everything {
    registers: crate::rig::Registers,
    seg: [Segment; 8],
    tables: [DescriptorTable; 2],
    cr: [u64; 5],
    efer: Efer,
    xcr0: Xcr0,
    dr: [u64; 4],
    dr67: (Dr6, Dr7),
    cpl: u8,
    pkru: u32,
    msr: crate::msr::MsrState,
}

fn everything(rig: &mut Rig) -> Everything {
    let registers = rig.registers();
    let v = rig.cpu();
    Everything {
        registers,
        seg: v.seg,
        tables: [v.gdtr, v.idtr],
        cr: [v.cr0.bits(), v.cr2, v.cr3, v.cr4.bits(), v.cr8],
        efer: v.efer,
        xcr0: v.xcr0,
        dr: v.dr,
        dr67: (v.dr6, v.dr7),
        cpl: v.cpl,
        pkru: v.pkru,
        msr: v.msr.clone(),
    }
}

/// A machine in this mode at this CPL, with the operands' addresses in place.
fn prepare(mode: Mode, cpl: u8) -> Rig {
    let mut rig = Rig::new(mode);
    if mode != Mode::Real && mode != Mode::Virtual8086 && cpl != 0 {
        set_cpl(&mut rig, cpl);
    }
    let data = DATA - rig.cpu().seg[Seg::Ds as usize].base;
    for r in [Gpr::Rbx, Gpr::Rsi, Gpr::Rdi] {
        rig.set(r, data);
    }
    rig
}

/// What came of one case, or `None` if it is as expected.
fn case(mode: Mode, cpl: u8, code: &[u8], sets: &[Set], want: &Want) -> Option<String> {
    let mut rig = prepare(mode, cpl);
    sets.iter().for_each(|s| apply(&mut rig, s));
    let before = everything(&mut rig);
    let next = before.registers.rip + code.len() as u64;
    let got = rig.step(code);
    let after = everything(&mut rig);
    match *want {
        Want::Raise(vector, code) => {
            if got != Err(Stop::Exception(Exception::with_code(vector, code))) {
                return Some(format!("{got:x?}, not #{vector:?}({code:x})"));
            }
            // IA32_DEBUGCTL and the like are part of it; NMI blocking (IRET) is not.
            (before != after).then(|| format!("faulted and left\n{after:x?}\nof\n{before:x?}"))
        }
        Want::Asks => (got != Err(Stop::Need)).then(|| format!("{got:x?}, not a question")),
        _ if got.is_err() => Some(format!("{got:x?}")),
        Want::Rip(rip) => (after.registers.rip != rip).then(|| format!("RIP is {:x}", after.registers.rip)),
        Want::Is(f) => (!f(&mut rig)).then(|| format!("done, and not as it should be: {after:x?}")),
        _ if after.registers.rip != next => Some(format!("RIP is {:x}", after.registers.rip)),
        Want::Get(r, v) => (rig.get(r) != v).then(|| format!("{r:?} is {:x}", rig.get(r))),
        Want::Flag(on, off) => {
            let f = after.registers.rflags;
            (f & on.bits() != on.bits() || f & off.bits() != 0).then(|| format!("RFLAGS is {f:x}"))
        }
        Want::Done => None,
    }
}

/// The cases of a row.
fn cases(row: &Row) -> Vec<(Mode, u8)> {
    let mut out = Vec::new();
    for (m, mode) in MODES.iter().filter(|(m, _)| row.0.0 & m.0 != 0) {
        let cpls = match *m {
            REAL => row.1 & CPL0,
            V86 => row.1 & CPL3,
            _ => row.1,
        };
        out.extend((0..4).filter(|n| cpls >> n & 1 != 0).map(|n| (*mode, n)));
    }
    out
}

/// Runs every row in every mode at every CPL that it names.
fn check(rows: &[Row]) {
    let mut wrong = Vec::new();
    let mut ran = 0;
    for (n, row) in rows.iter().enumerate() {
        let (_, _, hex, sets, want, source) = row;
        let code = bytes(hex);
        let cases = cases(row);
        assert!(!cases.is_empty(), "row {n} ({hex}) runs nowhere");
        assert!(!source.is_empty(), "row {n} ({hex}) says not where it is from");
        for (mode, cpl) in cases {
            ran += 1;
            if let Some(e) = case(mode, cpl, &code, sets, want) {
                wrong.push(format!("row {n}: {hex} in {mode:?} at CPL {cpl} ({source}): {e}"));
            }
        }
    }
    println!("{} rows, {ran} cases", rows.len());
    assert!(wrong.is_empty(), "{} of {ran} cases:\n{}", wrong.len(), wrong.join("\n"));
}

/// The instructions that these rows execute, each in a mode that has it.
fn codes(rows: &[Row]) -> BTreeSet<Code> {
    let mut out = BTreeSet::new();
    for row in rows {
        let code = bytes(row.2);
        for (mode, _) in cases(row) {
            let bits = match mode {
                Mode::Long => CpuMode::Bits64,
                Mode::Compat | Mode::Protected => CpuMode::Bits32,
                _ => CpuMode::Bits16,
            };
            let bits = match bits {
                CpuMode::Bits64 => 64,
                CpuMode::Bits32 => 32,
                CpuMode::Bits16 => 16,
            };
            out.insert(Decoder::with_ip(bits, &code, CODE, DecoderOptions::NONE).decode().code());
        }
    }
    out
}

/// The `size` bytes at the stack pointer, moved by `offset`.
fn stacked(rig: &mut Rig, offset: u64, size: usize) -> u64 {
    let sp = rig.cpu().rsp();
    let at = rig.cpu().seg[Seg::Ss as usize].base.wrapping_add(sp).wrapping_add(offset);
    let mut b = [0; 8];
    rig.read(at, &mut b[..size]);
    u64::from_le_bytes(b)
}

/// The `size` bytes at [`DATA`].
fn stored(rig: &Rig, size: usize) -> u64 {
    let mut b = [0; 8];
    rig.read(DATA, &mut b[..size]);
    u64::from_le_bytes(b)
}
