//! Instructions that load, store and examine segment registers and descriptor tables: MOV and POP Sreg,
//! LDS to LSS, LLDT, LTR, LGDT, LIDT, their stores, LAR, LSL, VERR, VERW, ARPL (SDM vol. 2).
//!
//! The checks are in [`crate::segload`]; CS is loaded by [`super::far`] and its kin.

use super::operand::Int;
use super::{Handler, by_size};
use crate::event::Shadow;
use crate::exit::Result;
use crate::vcpu::{ATTENTION_EVENT, Vcpu};
use decoder::{CpuMode, Insn};
use iced_x86::{Code, Mnemonic, Register};
use x86_arch::control::Cr4;
use x86_arch::segment::{Descriptor, system_type};
use x86_arch::{DescriptorTable, Rflags, Seg, Segment, Selector, Vector};

const ZF: u64 = Rflags::ZF.bits();

/// A 16-bit operand in a register or memory: operand `n`.
fn load_selector(c: &mut Vcpu, i: &Insn, n: usize) -> Result<Selector> {
    Ok(Selector(if i.is_mem(n) { c.load_mem::<u16>(i)? } else { c.reg::<u16>(i.r[n & 3]) }))
}

/// Stores a 16-bit value to memory, or zero-extended to the register operand's size.
fn store_selector(c: &mut Vcpu, i: &Insn, v: u16) -> Result {
    if i.is_mem(0) {
        return c.store_mem(i, v);
    }
    match i.op_size {
        2 => c.set_reg(i.r[0], v),
        4 => c.set_reg(i.r[0], v as u32),
        _ => c.set_reg(i.r[0], v as u64),
    }
    Ok(())
}

/// Commits a load of a data segment register.
fn commit(c: &mut Vcpu, s: Seg, v: Segment) {
    c.set_segment(s, v);
    c.attend(ATTENTION_EVENT);
    if s == Seg::Ss {
        c.events.shadow = Shadow::MovSs;
    }
}

fn mov_to_sreg(c: &mut Vcpu, i: &Insn) -> Result {
    let s = match Seg::from_index(i.r[0]) {
        Some(s @ (Seg::Es | Seg::Ss | Seg::Ds | Seg::Fs | Seg::Gs)) => s,
        _ => return c.ud(),
    };
    let selector = load_selector(c, i, 1)?;
    let v = c.load_data_segment(s, selector)?;
    commit(c, s, v);
    Ok(())
}

fn mov_from_sreg(c: &mut Vcpu, i: &Insn) -> Result {
    let Some(s) = Seg::from_index(i.r[1]) else { return c.ud() };
    let v = c.segment(s).selector.0;
    store_selector(c, i, v)
}

fn pop_sreg<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let s = match Seg::from_index(i.r[0]) {
        Some(s @ (Seg::Es | Seg::Ss | Seg::Ds | Seg::Fs | Seg::Gs)) => s,
        _ => return c.ud(),
    };
    let selector = Selector(c.peek_stack::<T>(0)?.to_u64() as u16);
    let v = c.load_data_segment(s, selector)?;
    // The pop moves the stack pointer as the old SS had it.
    c.set_rsp(c.rsp().wrapping_add(T::BYTES));
    commit(c, s, v);
    // POP SS is followed by a shadow; LSS is not.
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS.
fn load_far_pointer<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let s = match i.code.mnemonic() {
        Mnemonic::Lds => Seg::Ds,
        Mnemonic::Les => Seg::Es,
        Mnemonic::Lfs => Seg::Fs,
        Mnemonic::Lgs => Seg::Gs,
        _ => Seg::Ss,
    };
    let ea = c.ea(i);
    let offset = c.load::<T>(i.mem.seg, ea)?;
    let selector = c.load::<u16>(i.mem.seg, ea.wrapping_add(T::BYTES) & i.mem.mask())?;
    let v = c.load_data_segment(s, Selector(selector))?;
    c.set_segment(s, v);
    c.attend(ATTENTION_EVENT);
    c.set_reg(i.r[0], offset);
    Ok(())
}

fn lldt(c: &mut Vcpu, i: &Insn) -> Result {
    c.require_cpl0()?;
    let selector = load_selector(c, i, 0)?;
    if selector.is_null() {
        c.set_segment(Seg::Ldtr, crate::segload::null_segment(selector));
        return Ok(());
    }
    let t = c.system_segment(Seg::Ldtr, selector, Vector::Gp)?;
    c.set_segment(Seg::Ldtr, t.segment);
    Ok(())
}

fn ltr(c: &mut Vcpu, i: &Insn) -> Result {
    c.require_cpl0()?;
    let selector = load_selector(c, i, 0)?;
    if selector.is_null() {
        return c.gp0();
    }
    let t = c.system_segment(Seg::Tr, selector, Vector::Gp)?;
    c.change_descriptor_byte(t.gva.wrapping_add(5), 2, 0)?;
    c.set_segment(Seg::Tr, Segment { typ: t.segment.typ | 2, ..t.segment });
    Ok(())
}

/// SGDT, SIDT, SLDT, STR, SMSW with CR4.UMIP (SDM vol. 3A, 2.5).
pub(super) fn check_umip(c: &Vcpu) -> Result {
    if c.cpl > 0 && c.cr4.contains(Cr4::UMIP) { c.gp0() } else { Ok(()) }
}

fn store_table(c: &mut Vcpu, i: &Insn) -> Result {
    check_umip(c)?;
    let t = if i.code.mnemonic() == Mnemonic::Sgdt { c.gdtr } else { c.idtr };
    let mut b = [0; 10];
    b[..2].copy_from_slice(&t.limit.to_le_bytes());
    b[2..].copy_from_slice(&t.base.to_le_bytes());
    let len = if c.mode == CpuMode::Bits64 { 10 } else { 6 };
    let ea = c.ea(i);
    c.write_bytes(i.mem.seg, ea, &b[..len])
}

fn load_table(c: &mut Vcpu, i: &Insn) -> Result {
    c.require_cpl0()?;
    let ea = c.ea(i);
    let mut b = [0; 10];
    let len = if c.mode == CpuMode::Bits64 { 10 } else { 6 };
    c.read_bytes(i.mem.seg, ea, &mut b[..len])?;
    let limit = u16::from_le_bytes([b[0], b[1]]);
    let mut base = u64::from_le_bytes([b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9]]);
    if matches!(i.code, Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
        // With a 16-bit operand size the base has 24 bits.
        base &= 0xff_ffff;
    }
    if c.mode == CpuMode::Bits64 && !c.canonical(base) {
        return c.gp0();
    }
    let t = DescriptorTable { base, limit };
    if i.code.mnemonic() == Mnemonic::Lgdt {
        c.gdtr = t;
    } else {
        c.idtr = t;
    }
    Ok(())
}

fn sldt(c: &mut Vcpu, i: &Insn) -> Result {
    check_umip(c)?;
    let v = c.segment(Seg::Ldtr).selector.0;
    store_selector(c, i, v)
}

fn str_(c: &mut Vcpu, i: &Insn) -> Result {
    check_umip(c)?;
    let v = c.segment(Seg::Tr).selector.0;
    store_selector(c, i, v)
}

/// A descriptor as LAR, LSL, VERR and VERW see it: `None` if it is not visible at this privilege level.
/// `system`: whether LAR or LSL knows this system type.
fn visible(
    c: &mut Vcpu,
    selector: Selector,
    system: fn(u8, bool) -> bool,
) -> Result<Option<(u64, Descriptor)>> {
    if selector.is_null() {
        return Ok(None);
    }
    let Some((gva, d)) = c.descriptor(selector)? else { return Ok(None) };
    let s = Segment::from_descriptor(selector, d);
    if !d.s() && !system(d.typ(), c.long_mode()) {
        return Ok(None);
    }
    let seen = s.is_conforming() || selector.rpl().max(c.cpl) <= d.dpl();
    Ok(seen.then_some((gva, d)))
}

/// The system types that LAR accepts (SDM vol. 2A, LAR, table 3-53).
fn lar_type(typ: u8, long: bool) -> bool {
    use system_type::*;
    match typ {
        LDT | TSS_AVAILABLE | TSS_BUSY | CALL_GATE => true,
        TSS16_AVAILABLE | TSS16_BUSY | CALL_GATE16 | TASK_GATE => !long,
        _ => false,
    }
}

/// The system types that LSL accepts (SDM vol. 2A, LSL, table 3-55).
fn lsl_type(typ: u8, long: bool) -> bool {
    use system_type::*;
    match typ {
        LDT | TSS_AVAILABLE | TSS_BUSY => true,
        TSS16_AVAILABLE | TSS16_BUSY => !long,
        _ => false,
    }
}

fn set_zf(c: &mut Vcpu, zf: bool) {
    c.hot.rflags = c.hot.rflags & !ZF | if zf { ZF } else { 0 };
}

fn lar<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let selector = load_selector(c, i, 1)?;
    let d = visible(c, selector, lar_type)?;
    if let Some((_, d)) = d {
        // Bytes 4 to 7 of the descriptor without its base. Bits 19 to 16, of the limit, are undefined (SDM vol. 2A, LAR);
        // processors of AMD leave them in.
        let rights = (d.0 >> 32) & 0x00ff_ff00;
        c.set_reg(i.r[0], T::from_u64(rights));
    }
    set_zf(c, d.is_some());
    Ok(())
}

fn lsl<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let selector = load_selector(c, i, 1)?;
    let d = visible(c, selector, lsl_type)?;
    if let Some((_, d)) = d {
        c.set_reg(i.r[0], T::from_u64(d.limit() as u64));
    }
    set_zf(c, d.is_some());
    Ok(())
}

fn verify(c: &mut Vcpu, i: &Insn) -> Result {
    let selector = load_selector(c, i, 0)?;
    let write = i.code.mnemonic() == Mnemonic::Verw;
    let ok = match visible(c, selector, |_, _| false)? {
        Some((_, d)) => {
            let s = Segment::from_descriptor(selector, d);
            if write { s.is_writable() } else { s.is_readable() }
        }
        None => false,
    };
    set_zf(c, ok);
    Ok(())
}

fn arpl(c: &mut Vcpu, i: &Insn) -> Result {
    let rpl = Selector(c.reg::<u16>(i.r[1])).rpl();
    let old = load_selector(c, i, 0)?;
    let raise = old.rpl() < rpl;
    if raise {
        let new = old.with_rpl(rpl).0;
        if i.is_mem(0) {
            c.store_mem(i, new)?;
        } else {
            c.set_reg(i.r[0], new);
        }
    }
    set_zf(c, raise);
    Ok(())
}

/// Whether POP's operand is a segment register.
fn is_segment_operand(i: &Insn) -> bool {
    matches!(
        i.code,
        Code::Popw_ES
            | Code::Popd_ES
            | Code::Popw_SS
            | Code::Popd_SS
            | Code::Popw_DS
            | Code::Popd_DS
            | Code::Popw_FS
            | Code::Popd_FS
            | Code::Popq_FS
            | Code::Popw_GS
            | Code::Popd_GS
            | Code::Popq_GS
    )
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    use Mnemonic as M;
    let s = i.op_size;
    match i.code {
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => return Some(mov_to_sreg),
        Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => return Some(mov_from_sreg),
        _ => {}
    }
    Some(match i.code.mnemonic() {
        M::Pop if is_segment_operand(i) => by_size!(s, pop_sreg),
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => by_size!(s, load_far_pointer),
        M::Lldt => lldt,
        M::Ltr => ltr,
        M::Sgdt | M::Sidt => store_table,
        M::Lgdt | M::Lidt => load_table,
        M::Sldt => sldt,
        M::Str => str_,
        M::Lar => by_size!(s, lar),
        M::Lsl => by_size!(s, lsl),
        M::Verr | M::Verw => verify,
        M::Arpl => arpl,
        _ => return None,
    })
}

const _: () = assert!(Register::ES as u32 + 2 == Register::SS as u32);
