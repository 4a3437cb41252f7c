//! MOV, MOVZX, MOVSX, MOVSXD, MOVBE, LEA, XCHG, BSWAP, CBW and CWD families, CMOVcc, SETcc, XLAT, NOP
//! (SDM vol. 2). MOV to and from segment, control and debug registers is elsewhere.

use super::flags::condition;
use super::operand::Int;
use super::{Handler, by_size};
use crate::exit::Result;
use crate::vcpu::Vcpu;
use decoder::{Form, Insn, Vendor};
use iced_x86::{Code, ConditionCode, Mnemonic};
use x86_arch::Gpr;

const RAX: u8 = Gpr::Rax as u8;
const RDX: u8 = Gpr::Rdx as u8;

fn mov_rr<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.reg::<T>(i.r[1]);
    c.set_reg(i.r[0], v);
    Ok(())
}

fn mov_rm<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.load_mem::<T>(i)?;
    c.set_reg(i.r[0], v);
    Ok(())
}

fn mov_mr<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.reg::<T>(i.r[1]);
    c.store_mem(i, v)
}

fn mov_ri<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    c.set_reg(i.r[0], T::from_u64(i.imm));
    Ok(())
}

fn mov_mi<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    c.store_mem(i, T::from_u64(i.imm))
}

fn lea<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let ea = c.ea(i);
    c.set_reg(i.r[0], T::from_u64(ea));
    Ok(())
}

fn extend_r<const SIGNED: bool, S: Int, D: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.reg::<S>(i.r[1]);
    c.set_reg(i.r[0], extend::<SIGNED, S, D>(v));
    Ok(())
}

fn extend_m<const SIGNED: bool, S: Int, D: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.load_mem::<S>(i)?;
    c.set_reg(i.r[0], extend::<SIGNED, S, D>(v));
    Ok(())
}

#[inline(always)]
fn extend<const SIGNED: bool, S: Int, D: Int>(v: S) -> D {
    D::from_u64(if SIGNED { v.to_i64() as u64 } else { v.to_u64() })
}

fn extending<const SIGNED: bool, S: Int, D: Int>(i: &Insn) -> Option<Handler> {
    Some(match i.form2() {
        Form::RR => extend_r::<SIGNED, S, D>,
        Form::RM => extend_m::<SIGNED, S, D>,
        _ => return None,
    })
}

fn swap_bytes<T: Int>(v: T) -> T {
    T::from_u64(v.to_u64().swap_bytes() >> (64 - T::BITS))
}

fn movbe_rm<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = c.load_mem::<T>(i)?;
    c.set_reg(i.r[0], swap_bytes(v));
    Ok(())
}

fn movbe_mr<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = swap_bytes(c.reg::<T>(i.r[1]));
    c.store_mem(i, v)
}

/// BSWAP of a 16-bit register is undefined; processors clear it.
fn bswap<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = if T::BITS == 16 { T::ZERO } else { swap_bytes(c.reg::<T>(i.r[0])) };
    c.set_reg(i.r[0], v);
    Ok(())
}

fn xchg_rr<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let (a, b) = (c.reg::<T>(i.r[0]), c.reg::<T>(i.r[1]));
    c.set_reg(i.r[0], b);
    c.set_reg(i.r[1], a);
    Ok(())
}

/// XCHG with memory is locked with or without the prefix (SDM vol. 2, XCHG).
fn xchg_mem<T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let r = if i.is_mem(0) { i.r[1] } else { i.r[0] };
    let v = c.reg::<T>(r);
    let ea = c.ea(i);
    let old = c.rmw::<T>(i.mem.seg, ea, true, |_| v)?;
    c.set_reg(r, old);
    Ok(())
}

/// CBW, CWDE, CDQE.
fn widen_ax<S: Int, D: Int>(c: &mut Vcpu, _: &Insn) -> Result {
    let v = c.reg::<S>(RAX).to_i64();
    c.set_reg(RAX, D::from_u64(v as u64));
    Ok(())
}

/// CWD, CDQ, CQO.
fn spread_sign<T: Int>(c: &mut Vcpu, _: &Insn) -> Result {
    let v = c.reg::<T>(RAX).to_i64() >> 63;
    c.set_reg(RDX, T::from_u64(v as u64));
    Ok(())
}

/// The hardware's number of a condition (SDM vol. 1, B.1).
pub(super) fn cc_number(cc: ConditionCode) -> Option<u8> {
    Some(match cc {
        ConditionCode::None => return None,
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
    })
}

/// Picks the instance of a handler generic over the condition number.
macro_rules! by_condition {
    ($n:expr, $f:ident $(, $p:ty)*) => {
        match $n {
            0 => $f::<0 $(, $p)*> as $crate::interp::Handler, 1 => $f::<1 $(, $p)*>, 2 => $f::<2 $(, $p)*>,
            3 => $f::<3 $(, $p)*>, 4 => $f::<4 $(, $p)*>, 5 => $f::<5 $(, $p)*>, 6 => $f::<6 $(, $p)*>,
            7 => $f::<7 $(, $p)*>, 8 => $f::<8 $(, $p)*>, 9 => $f::<9 $(, $p)*>, 10 => $f::<10 $(, $p)*>,
            11 => $f::<11 $(, $p)*>, 12 => $f::<12 $(, $p)*>, 13 => $f::<13 $(, $p)*>, 14 => $f::<14 $(, $p)*>,
            _ => $f::<15 $(, $p)*>,
        }
    };
}
pub(super) use by_condition;

/// A 32-bit CMOV clears the upper half whether or not the condition holds (SDM vol. 2, CMOVcc).
fn cmov_rr<const CC: u8, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let from = if condition(CC, c.hot.rflags) { i.r[1] } else { i.r[0] };
    let v = c.reg::<T>(from);
    c.set_reg(i.r[0], v);
    Ok(())
}

/// The load is made, and may fault, whether or not the condition holds.
fn cmov_rm<const CC: u8, T: Int>(c: &mut Vcpu, i: &Insn) -> Result {
    let m = c.load_mem::<T>(i)?;
    let v = if condition(CC, c.hot.rflags) { m } else { c.reg::<T>(i.r[0]) };
    c.set_reg(i.r[0], v);
    Ok(())
}

fn setcc_r<const CC: u8>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = condition(CC, c.hot.rflags) as u8;
    c.set_reg(i.r[0], v);
    Ok(())
}

fn setcc_m<const CC: u8>(c: &mut Vcpu, i: &Insn) -> Result {
    let v = condition(CC, c.hot.rflags) as u8;
    c.store_mem(i, v)
}

fn xlat(c: &mut Vcpu, i: &Insn) -> Result {
    let al = c.reg::<u8>(RAX) as u64;
    let ea = c.ea(i).wrapping_add(al) & i.mem.mask();
    let v = c.load::<u8>(i.mem.seg, ea)?;
    c.set_reg(RAX, v);
    Ok(())
}

/// MOVSXD with a 16-bit register and memory: the SDM's operand has 16 bits (vol. 2B, MOVSX), processors of AMD read 32.
fn movsxd16(c: &mut Vcpu, i: &Insn) -> Result {
    let v = match c.cpuid.vendor() {
        Vendor::Amd => c.load_mem::<u32>(i)? as u16,
        Vendor::Intel => c.load_mem::<u16>(i)?,
    };
    c.set_reg(i.r[0], v);
    Ok(())
}

fn nop_by_vendor(c: &mut Vcpu, _: &Insn) -> Result {
    if c.cpuid.vendor() == Vendor::Amd { c.ud() } else { Ok(()) }
}

fn nop(_: &mut Vcpu, _: &Insn) -> Result {
    Ok(())
}

/// The handler, if the instruction is of this family.
pub fn select(i: &Insn) -> Option<Handler> {
    let s = i.op_size;
    let form = i.form2();
    if let Some(cc) = cc_number(i.code.condition_code()) {
        return match (form, i.code.mnemonic()) {
            (Form::R, _) => Some(by_condition!(cc, setcc_r)),
            (Form::M, _) => Some(by_condition!(cc, setcc_m)),
            (Form::RR, _) => Some(match s {
                2 => by_condition!(cc, cmov_rr, u16),
                4 => by_condition!(cc, cmov_rr, u32),
                _ => by_condition!(cc, cmov_rr, u64),
            }),
            (Form::RM, _) => Some(match s {
                2 => by_condition!(cc, cmov_rm, u16),
                4 => by_condition!(cc, cmov_rm, u32),
                _ => by_condition!(cc, cmov_rm, u64),
            }),
            _ => None,
        };
    }
    match i.code {
        Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg | Code::Mov_rm16_Sreg => return None,
        Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 | Code::Mov_Sreg_rm16 => return None,
        Code::Mov_r32_cr | Code::Mov_r64_cr | Code::Mov_cr_r32 | Code::Mov_cr_r64 => return None,
        Code::Mov_r32_dr | Code::Mov_r64_dr | Code::Mov_dr_r32 | Code::Mov_dr_r64 => return None,
        Code::Mov_r32_tr | Code::Mov_tr_r32 => return None,
        Code::Movzx_r16_rm8 => return extending::<false, u8, u16>(i),
        Code::Movzx_r32_rm8 => return extending::<false, u8, u32>(i),
        Code::Movzx_r64_rm8 => return extending::<false, u8, u64>(i),
        Code::Movzx_r16_rm16 => return extending::<false, u16, u16>(i),
        Code::Movzx_r32_rm16 => return extending::<false, u16, u32>(i),
        Code::Movzx_r64_rm16 => return extending::<false, u16, u64>(i),
        Code::Movsx_r16_rm8 => return extending::<true, u8, u16>(i),
        Code::Movsx_r32_rm8 => return extending::<true, u8, u32>(i),
        Code::Movsx_r64_rm8 => return extending::<true, u8, u64>(i),
        Code::Movsx_r16_rm16 => return extending::<true, u16, u16>(i),
        Code::Movsx_r32_rm16 => return extending::<true, u16, u32>(i),
        Code::Movsx_r64_rm16 => return extending::<true, u16, u64>(i),
        Code::Movsxd_r16_rm16 if i.has_mem() => return Some(movsxd16),
        Code::Movsxd_r16_rm16 => return extending::<true, u16, u16>(i),
        Code::Movsxd_r32_rm32 => return extending::<true, u32, u32>(i),
        Code::Movsxd_r64_rm32 => return extending::<true, u32, u64>(i),
        Code::Cbw => return Some(widen_ax::<u8, u16>),
        Code::Cwde => return Some(widen_ax::<u16, u32>),
        Code::Cdqe => return Some(widen_ax::<u32, u64>),
        Code::Cwd => return Some(spread_sign::<u16>),
        Code::Cdq => return Some(spread_sign::<u32>),
        Code::Cqo => return Some(spread_sign::<u64>),
        Code::Xlat_m8 => return Some(xlat),
        _ => {}
    }
    Some(match (i.code.mnemonic(), form) {
        (Mnemonic::Mov, Form::RR) => by_size!(s, mov_rr),
        (Mnemonic::Mov, Form::RM) => by_size!(s, mov_rm),
        (Mnemonic::Mov, Form::MR) => by_size!(s, mov_mr),
        (Mnemonic::Mov, Form::RI) => by_size!(s, mov_ri),
        (Mnemonic::Mov, Form::MI) => by_size!(s, mov_mi),
        (Mnemonic::Lea, Form::RM) => by_size!(s, lea),
        (Mnemonic::Movbe, Form::RM) => by_size!(s, movbe_rm),
        (Mnemonic::Movbe, Form::MR) => by_size!(s, movbe_mr),
        (Mnemonic::Bswap, Form::R) => by_size!(s, bswap),
        (Mnemonic::Xchg, Form::RR) => by_size!(s, xchg_rr),
        (Mnemonic::Xchg, Form::RM | Form::MR) => by_size!(s, xchg_mem),
        // 0F 0D with a register: a reserved NOP of Intel's processors, #UD on AMD's (APM vol. 3, PREFETCH).
        (Mnemonic::Reservednop, Form::RR | Form::R)
            if matches!(
                i.code,
                Code::Reservednop_rm16_r16_0F0D
                    | Code::Reservednop_rm32_r32_0F0D
                    | Code::Reservednop_rm64_r64_0F0D
            ) =>
        {
            nop_by_vendor
        }
        // Hints: what does not exist here is a NOP (SDM vol. 2, PREFETCHh; hint-NOP space 0F 18 to 0F 1F).
        (
            Mnemonic::Nop
            | Mnemonic::Reservednop
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Prefetchw
            | Mnemonic::Prefetchwt1
            | Mnemonic::Prefetch
            | Mnemonic::Prefetchit0
            | Mnemonic::Prefetchit1
            | Mnemonic::Pause
            | Mnemonic::Endbr64
            | Mnemonic::Endbr32
            | Mnemonic::Cldemote,
            _,
        ) => nop,
        _ => return None,
    })
}
