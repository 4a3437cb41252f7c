//! Descriptor tables and what reads descriptors: LGDT, LIDT, LLDT, LTR and their stores with CR4.UMIP; LMSW, SMSW; LAR,
//! LSL, VERR, VERW, ARPL.

use super::Set::*;
use super::Want::*;
use super::*;

type F = Rflags;
const NONE: F = F::empty();
const ZF: Want = Flag(F::ZF, NONE);
const NZ: Want = Flag(NONE, F::ZF);
const UMIP: Set = WithCr4(Cr4::UMIP);
const PSEUDO: Set = Mem(&[0x34, 0x12, 0x78, 0x56, 0x34, 0x92, 0, 0, 0, 0]);
const HIGH: Set = Mem(&[0x34, 0x12, 0x78, 0x56, 0x34, 0x92, 0, 0x80, 0xff, 0xff]);
const BAD: Set = Mem(&[0x34, 0x12, 0x78, 0x56, 0x34, 0x92, 0, 0, 0, 0x80]);
const fn ax(v: u64) -> Set {
    Reg(Gpr::Rax, v)
}
fn gdtr(r: &mut Rig) -> (u64, u16) {
    (r.cpu().gdtr.base, r.cpu().gdtr.limit)
}
fn idtr(r: &mut Rig) -> (u64, u16) {
    (r.cpu().idtr.base, r.cpu().idtr.limit)
}
fn tr(r: &mut Rig) -> (u16, u8) {
    let s = r.cpu().segment(Seg::Tr);
    (s.selector.0, s.typ)
}
/// Byte 5 of the descriptor at 50H.
fn access_byte(r: &Rig) -> u64 {
    r.read_u64(GDT + 0x50) >> 40 & 0xff
}

#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    // ---- LGDT, LIDT
    (REAL.or(P16), CPL0, "0F 01 17", &[PSEUDO], Is(|r| gdtr(r) == (0x34_5678, 0x1234)), "SDM vol. 2A, LGDT: 16-bit operand, 24-bit base"),
    (REAL.or(P16), CPL0, "66 0F 01 17", &[PSEUDO], Is(|r| gdtr(r) == (0x9234_5678, 0x1234)), "SDM vol. 2A, LGDT: 32-bit operand"),
    (CODE32, CPL0, "0F 01 17", &[PSEUDO], Is(|r| gdtr(r) == (0x9234_5678, 0x1234)), "SDM vol. 2A, LGDT: 32-bit operand"),
    (CODE32, CPL0, "66 0F 01 17", &[PSEUDO], Is(|r| gdtr(r) == (0x34_5678, 0x1234)), "SDM vol. 2A, LGDT: 16-bit operand, 24-bit base"),
    (LONG, CPL0, "0F 01 17", &[HIGH], Is(|r| gdtr(r) == (0xffff_8000_9234_5678, 0x1234)), "SDM vol. 2A, LGDT: 64-bit base"),
    (LONG, CPL0, "66 0F 01 17", &[PSEUDO], Is(|r| gdtr(r) == (0x9234_5678, 0x1234)), "SDM vol. 2A, LGDT: fixed operand size in 64-bit mode"),
    (LONG, CPL0, "0F 01 17", &[BAD], GP0, "SDM vol. 2A, LGDT: base not canonical"),
    (REAL.or(P16), CPL0, "0F 01 1F", &[PSEUDO], Is(|r| idtr(r) == (0x34_5678, 0x1234)), "SDM vol. 2A, LIDT: 16-bit operand, 24-bit base"),
    (REAL.or(P16), CPL0, "66 0F 01 1F", &[PSEUDO], Is(|r| idtr(r) == (0x9234_5678, 0x1234)), "SDM vol. 2A, LIDT: 32-bit operand"),
    (CODE32, CPL0, "0F 01 1F", &[PSEUDO], Is(|r| idtr(r) == (0x9234_5678, 0x1234)), "SDM vol. 2A, LIDT: 32-bit operand"),
    (LONG, CPL0, "48 0F 01 1F", &[PSEUDO], Is(|r| idtr(r) == (0x9234_5678, 0x1234)), "SDM vol. 2A, LIDT: 64-bit base"),
    (LONG, CPL0, "0F 01 1F", &[BAD], GP0, "SDM vol. 2A, LIDT: base not canonical"),
    (PE, OUTER, "0F 01 17", &[PSEUDO, Iopl(3)], GP0, "SDM vol. 2A, LGDT: CPL>0"),
    (PE, OUTER, "0F 01 1F", &[PSEUDO, Iopl(3)], GP0, "SDM vol. 2A, LIDT: CPL>0"),
    (PE, OUTER, "66 0F 01 17", &[PSEUDO], GP0, "SDM vol. 2A, LGDT: CPL>0"),
    (PE, OUTER, "66 0F 01 1F", &[PSEUDO], GP0, "SDM vol. 2A, LIDT: CPL>0"),
    (ALL, ANY, "F0 0F 01 17", &[PSEUDO], UD, "SDM vol. 2A, LGDT: LOCK"),
    (ALL, ANY, "F0 0F 01 1F", &[PSEUDO], UD, "SDM vol. 2A, LIDT: LOCK"),
    // ---- SGDT, SIDT
    (NOT64, ANY, "0F 01 07", &[Mem(&[0xcc; 16])], Is(|r| stored(r, 8) == 0xcccc_0000_5000_0047), "SDM vol. 2B, SGDT: six bytes"),
    (NOT64, ANY, "66 0F 01 07", &[Mem(&[0xcc; 16])], Is(|r| stored(r, 8) == 0xcccc_0000_5000_0047), "SDM vol. 2B, SGDT: six bytes with either operand size"),
    (NOT64, ANY, "0F 01 0F", &[Mem(&[0xcc; 16])], Is(|r| stored(r, 8) == 0xcccc_0000_6000_0fff), "SDM vol. 2B, SIDT: six bytes"),
    (LONG, ANY, "0F 01 07", &[Mem(&[0xcc; 16])], Is(|r| stored(r, 8) == 0x5000_0047), "SDM vol. 2B, SGDT: ten bytes"),
    (LONG, ANY, "66 0F 01 0F", &[Mem(&[0xcc; 16])], Is(|r| stored(r, 8) == 0x6000_0fff), "SDM vol. 2B, SIDT: ten bytes"),
    (PE, OUTER, "0F 01 07", &[UMIP, Mem(&[0xcc; 16])], GP0, "SDM vol. 2B, SGDT: UMIP, CPL>0"),
    (PE, OUTER, "0F 01 0F", &[UMIP, Mem(&[0xcc; 16])], GP0, "SDM vol. 2B, SIDT: UMIP, CPL>0"),
    (REAL.or(PROTECTED), CPL0, "0F 01 07", &[UMIP], Done, "SDM vol. 2B, SGDT: UMIP, CPL=0"),
    (REAL.or(PROTECTED), CPL0, "0F 01 0F", &[UMIP], Done, "SDM vol. 2B, SIDT: UMIP, CPL=0"),
    (ALL, ANY, "F0 0F 01 07", &[], UD, "SDM vol. 2B, SGDT: LOCK"),
    (ALL, ANY, "F0 0F 01 0F", &[], UD, "SDM vol. 2B, SIDT: LOCK"),
    // ---- SLDT, STR
    (UNPROTECTED, ANY, "0F 00 C0", &[], UD, "SDM vol. 2B, SLDT: real and virtual-8086 mode"),
    (UNPROTECTED, ANY, "0F 00 07", &[UMIP], UD, "SDM vol. 2B, SLDT: real and virtual-8086 mode"),
    (UNPROTECTED, ANY, "0F 00 C8", &[], UD, "SDM vol. 2B, STR: real and virtual-8086 mode"),
    (UNPROTECTED, ANY, "0F 00 0F", &[UMIP], UD, "SDM vol. 2B, STR: real and virtual-8086 mode"),
    (P16, ANY, "0F 00 C8", &[ax(!0)], Get(Gpr::Rax, 0xffff_ffff_ffff_0048), "SDM vol. 2B, STR: 16-bit register"),
    (P16, ANY, "66 0F 00 C8", &[ax(!0)], Get(Gpr::Rax, 0x48), "SDM vol. 2B, STR: zero-extended"),
    (CODE32.or(LONG), ANY, "0F 00 C8", &[ax(!0)], Get(Gpr::Rax, 0x48), "SDM vol. 2B, STR: zero-extended"),
    (CODE32.or(LONG), ANY, "66 0F 00 C8", &[ax(!0)], Get(Gpr::Rax, 0xffff_ffff_ffff_0048), "SDM vol. 2B, STR: 16-bit register"),
    (LONG, ANY, "48 0F 00 C8", &[ax(!0)], Get(Gpr::Rax, 0x48), "SDM vol. 2B, STR: zero-extended"),
    (PROTECTED, ANY, "0F 00 0F", &[Mem(&[0xcc; 16])], Is(|r| stored(r, 8) == 0xcccc_cccc_cccc_0048), "SDM vol. 2B, STR: 16 bits to memory"),
    (LONG, ANY, "48 0F 00 0F", &[Mem(&[0xcc; 16])], Is(|r| stored(r, 8) == 0xcccc_cccc_cccc_0048), "SDM vol. 2B, STR: 16 bits to memory"),
    (PROTECTED, ANY, "0F 00 07", &[Mem(&[0xcc; 16])], Is(|r| stored(r, 8) == 0xcccc_cccc_cccc_0000), "SDM vol. 2B, SLDT: 16 bits to memory"),
    (PROTECTED, ANY, "0F 00 C0", &[], Get(Gpr::Rax, 0), "SDM vol. 2B, SLDT"),
    (P16, ANY, "66 0F 00 C0", &[], Get(Gpr::Rax, 0), "SDM vol. 2B, SLDT"),
    (LONG, ANY, "48 0F 00 C0", &[ax(!0)], Get(Gpr::Rax, 0), "SDM vol. 2B, SLDT"),
    (PROTECTED, OUTER, "0F 00 C0", &[UMIP], GP0, "SDM vol. 2B, SLDT: UMIP, CPL>0"),
    (PROTECTED, OUTER, "0F 00 0F", &[UMIP], GP0, "SDM vol. 2B, STR: UMIP, CPL>0"),
    (PROTECTED, CPL0, "0F 00 C0", &[UMIP], Done, "SDM vol. 2B, SLDT: UMIP, CPL=0"),
    (PROTECTED, CPL0, "0F 00 0F", &[UMIP], Done, "SDM vol. 2B, STR: UMIP, CPL=0"),
    (ALL, ANY, "F0 0F 00 C0", &[], UD, "SDM vol. 2B, SLDT: LOCK"),
    (ALL, ANY, "F0 0F 00 C8", &[], UD, "SDM vol. 2B, STR: LOCK"),
    // ---- LLDT
    (UNPROTECTED, ANY, "0F 00 D0", &[], UD, "SDM vol. 2A, LLDT: real and virtual-8086 mode"),
    (UNPROTECTED, ANY, "0F 00 17", &[], UD, "SDM vol. 2A, LLDT: real and virtual-8086 mode"),
    (PROTECTED, OUTER, "0F 00 D0", &[ax(0x50), Gdt(0x50, system(0x82))], GP0, "SDM vol. 2A, LLDT: CPL>0"),
    (PROTECTED, CPL0, "0F 00 D0", &[ax(0x50), Gdt(0x50, system(0x82))], Is(|r| r.cpu().segment(Seg::Ldtr).base == TSS), "SDM vol. 2A, LLDT"),
    (P16, CPL0, "66 0F 00 D0", &[ax(0x50), Gdt(0x50, system(0x82))], Done, "SDM vol. 2A, LLDT: operand size has no effect"),
    (LONG, CPL0, "48 0F 00 D0", &[ax(0x50), Gdt(0x50, system(0x82))], Done, "SDM vol. 2A, LLDT: operand size has no effect"),
    (PROTECTED, CPL0, "0F 00 17", &[Mem(&[0x53, 0]), Gdt(0x50, system(0x82))], Is(|r| r.cpu().segment(Seg::Ldtr).selector.0 == 0x53), "SDM vol. 2A, LLDT"),
    (PROTECTED, CPL0, "0F 00 D0", &[ax(3)], Is(|r| r.cpu().segment(Seg::Ldtr).unusable), "SDM vol. 2A, LLDT: null, 0 to 3"),
    (PROTECTED, CPL0, "0F 00 D0", &[ax(0x57)], gp(0x54), "SDM vol. 2A, LLDT: selector into the LDT"),
    (PROTECTED, CPL0, "0F 00 D0", &[ax(0x203)], gp(0x200), "SDM vol. 2A, LLDT: beyond the limit"),
    (PROTECTED, CPL0, "0F 00 D0", &[ax(0x50), Gdt(0x50, system(0x02))], np(0x50), "SDM vol. 2A, LLDT: not present"),
    (PROTECTED, CPL0, "0F 00 D0", &[ax(0x50), Gdt(0x50, system(0x89))], gp(0x50), "SDM vol. 2A, LLDT: no LDT"),
    (PROTECTED, CPL0, "0F 00 D0", &[ax(0x50), Gdt(0x50, seg(0x92))], gp(0x50), "SDM vol. 2A, LLDT: no LDT"),
    (PROTECTED, CPL0, "0F 00 D0", &[ax(0x50), Gdt(0x50, system(0x09))], gp(0x50), "SDM vol. 2A, LLDT: type before presence"),
    (IA32E, CPL0, "0F 00 D0", &[ax(0x50), Gdt(0x50, system(0x82)), Gdt(0x58, 0x8000_0000)], gp(0x50), "SDM vol. 2A, LLDT: base not canonical"),
    (IA32E, CPL0, "0F 00 D0", &[ax(0x50), Gdt(0x50, system(0x82)), Do(|r| r.cpu().gdtr.limit = 0x57)], gp(0x50), "SDM vol. 2A, LLDT: 16 bytes in IA-32e mode"),
    (ALL, ANY, "F0 0F 00 D0", &[], UD, "SDM vol. 2A, LLDT: LOCK"),
    // ---- LTR
    (UNPROTECTED, ANY, "0F 00 D8", &[], UD, "SDM vol. 2A, LTR: real and virtual-8086 mode"),
    (UNPROTECTED, ANY, "0F 00 1F", &[], UD, "SDM vol. 2A, LTR: real and virtual-8086 mode"),
    (PROTECTED, OUTER, "0F 00 D8", &[ax(0x50), Gdt(0x50, system(0x89))], GP0, "SDM vol. 2A, LTR: CPL>0"),
    (PROTECTED, CPL0, "0F 00 D8", &[ax(0x50), Gdt(0x50, system(0x89))], Is(|r| tr(r) == (0x50, 11) && access_byte(r) == 0x8b), "SDM vol. 2A, LTR: marked busy"),
    (P16, CPL0, "66 0F 00 D8", &[ax(0x50), Gdt(0x50, system(0x89))], Done, "SDM vol. 2A, LTR: operand size has no effect"),
    (LONG, CPL0, "48 0F 00 D8", &[ax(0x50), Gdt(0x50, system(0x89))], Done, "SDM vol. 2A, LTR: operand size has no effect"),
    (LEGACY, CPL0, "0F 00 1F", &[Mem(&[0x50, 0]), Gdt(0x50, system(0x81))], Is(|r| tr(r) == (0x50, 3) && access_byte(r) == 0x83), "SDM vol. 2A, LTR: 16-bit TSS"),
    (IA32E, CPL0, "0F 00 1F", &[Mem(&[0x50, 0]), Gdt(0x50, system(0x81))], gp(0x50), "SDM vol. 2A, LTR: no 16-bit TSS in IA-32e mode"),
    (PROTECTED, CPL0, "0F 00 D8", &[ax(0)], GP0, "SDM vol. 2A, LTR: null"),
    (PROTECTED, CPL0, "0F 00 D8", &[ax(3)], GP0, "SDM vol. 2A, LTR: null"),
    (PROTECTED, CPL0, "0F 00 D8", &[ax(0x54)], gp(0x54), "SDM vol. 2A, LTR: selector into the LDT"),
    (PROTECTED, CPL0, "0F 00 D8", &[ax(0x200)], gp(0x200), "SDM vol. 2A, LTR: beyond the limit"),
    (PROTECTED, CPL0, "0F 00 D8", &[ax(0x50), Gdt(0x50, system(0x8b))], gp(0x50), "SDM vol. 2A, LTR: busy"),
    (PROTECTED, CPL0, "0F 00 D8", &[ax(0x50), Gdt(0x50, system(0x82))], gp(0x50), "SDM vol. 2A, LTR: no TSS"),
    (PROTECTED, CPL0, "0F 00 D8", &[ax(0x50), Gdt(0x50, seg(0x99))], gp(0x50), "SDM vol. 2A, LTR: no TSS"),
    (PROTECTED, CPL0, "0F 00 D8", &[ax(0x50), Gdt(0x50, system(0x09))], np(0x50), "SDM vol. 2A, LTR: not present"),
    (IA32E, CPL0, "0F 00 D8", &[ax(0x50), Gdt(0x50, system(0x89)), Gdt(0x58, 0x8000_0000)], gp(0x50), "SDM vol. 2A, LTR: base not canonical"),
    (IA32E, CPL0, "0F 00 D8", &[ax(0x50), Gdt(0x50, system(0x89)), Gdt(0x58, 1 << 40)], gp(0x50), "SDM vol. 3A, 3.5.2: type in the upper half"),
    (ALL, ANY, "F0 0F 00 D8", &[], UD, "SDM vol. 2A, LTR: LOCK"),
    // ---- SMSW, LMSW
    (CODE16, ANY, "0F 01 E0", &[NoCr0(Cr0::MP), WithCr0(Cr0::TS), ax(!0)], Is(|r| r.get(Gpr::Rax) | 1 == 0xffff_ffff_ffff_0039), "SDM vol. 2B, SMSW: 16-bit register"),
    (CODE32, ANY, "0F 01 E0", &[ax(!0)], Get(Gpr::Rax, 0x8001_0033), "SDM vol. 2B, SMSW: CR0[31:0]"),
    (LONG, ANY, "0F 01 E0", &[ax(!0)], Get(Gpr::Rax, 0x8001_0033), "SDM vol. 2B, SMSW: CR0[31:0]"),
    (LONG, ANY, "48 0F 01 E0", &[ax(!0)], Get(Gpr::Rax, 0x8001_0033), "SDM vol. 2B, SMSW: CR0[63:0]"),
    (CODE16, ANY, "66 0F 01 E0", &[WithCr0(Cr0::TS)], Is(|r| r.get(Gpr::Rax) & 0x1_003e == r.cpu().cr0.bits() & 0x1_003e), "SDM vol. 2B, SMSW: CR0[31:0]"),
    (ALL, ANY, "0F 01 27", &[Mem(&[0xcc; 16])], Is(|r| stored(r, 8) & !1 == 0xcccc_cccc_cccc_0032), "SDM vol. 2B, SMSW: 16 bits to memory"),
    (PE, OUTER, "0F 01 E0", &[UMIP], GP0, "SDM vol. 2B, SMSW: UMIP, CPL>0"),
    (PE, OUTER, "0F 01 27", &[UMIP], GP0, "SDM vol. 2B, SMSW: UMIP, CPL>0"),
    (REAL.or(PROTECTED), CPL0, "0F 01 27", &[UMIP], Done, "SDM vol. 2B, SMSW: UMIP, CPL=0"),
    (ALL, ANY, "F0 0F 01 27", &[], UD, "SDM vol. 2B, SMSW: LOCK"),
    (REAL.or(PROTECTED), CPL0, "0F 01 F0", &[ax(0xe)], Is(|r| r.cpu().cr0.bits() & 0xe == 0xe), "SDM vol. 2A, LMSW"),
    (PROTECTED, CPL0, "0F 01 F0", &[ax(0)], Is(|r| r.cpu().cr0.bits() == 0x8001_0031), "SDM vol. 2A, LMSW: PE cannot be cleared"),
    (REAL, CPL0, "0F 01 37", &[Mem(&[1, 0])], Is(|r| r.cpu().cr0.bits() == 0x31), "SDM vol. 2A, LMSW: PE can be set"),
    (REAL.or(PROTECTED), CPL0, "0F 01 F0", &[ax(0xffff)], Is(|r| r.cpu().cr0.bits() & 0x7fff_ffff == r.cpu().cr0.bits() & 0x1_003f), "SDM vol. 2A, LMSW: CR0[3:0] only"),
    (P16, CPL0, "66 0F 01 F0", &[ax(2)], Done, "SDM vol. 2A, LMSW: operand size has no effect"),
    (LONG, CPL0, "48 0F 01 F0", &[ax(2)], Done, "SDM vol. 2A, LMSW: operand size has no effect"),
    (PE, OUTER, "0F 01 F0", &[ax(1)], GP0, "SDM vol. 2A, LMSW: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 01 37", &[], GP0, "SDM vol. 2A, LMSW: CPL>0; virtual-8086 mode"),
    (ALL, ANY, "F0 0F 01 37", &[], UD, "SDM vol. 2A, LMSW: LOCK"),
    // ---- VERR, VERW
    (UNPROTECTED, ANY, "0F 00 E0", &[], UD, "SDM vol. 2B, VERR: real and virtual-8086 mode"),
    (UNPROTECTED, ANY, "0F 00 2F", &[], UD, "SDM vol. 2B, VERW: real and virtual-8086 mode"),
    (PROTECTED, ANY, "0F 00 E0", &[ax(0), Flags(F::ZF)], NZ, "SDM vol. 2B, VERR: null"),
    (PROTECTED, ANY, "0F 00 E0", &[ax(0x200), Flags(F::ZF)], NZ, "SDM vol. 2B, VERR: beyond the limit"),
    (PROTECTED, CPL0, "0F 00 E0", &[ax(0x50), Gdt(0x50, seg(0x92))], ZF, "SDM vol. 2B, VERR: data"),
    (PROTECTED, CPL0, "0F 00 E0", &[ax(0x50), Gdt(0x50, seg(0x12))], ZF, "SDM vol. 2B, VERR: P is not looked at"),
    (PROTECTED, CPL0, "0F 00 E0", &[ax(0x51), Gdt(0x50, seg(0x92))], NZ, "SDM vol. 2B, VERR: RPL>DPL"),
    (PROTECTED, OUTER, "0F 00 E0", &[ax(0x50), Gdt(0x50, seg(0x92))], NZ, "SDM vol. 2B, VERR: CPL>DPL"),
    (PROTECTED, ANY, "0F 00 27", &[Mem(&[0x53, 0]), Gdt(0x50, seg(0xf2))], ZF, "SDM vol. 2B, VERR: DPL 3"),
    (PROTECTED, ANY, "0F 00 E0", &[ax(0x53), Gdt(0x50, seg(0x9e))], ZF, "SDM vol. 2B, VERR: conforming, readable"),
    (PROTECTED, ANY, "0F 00 E0", &[ax(0x53), Gdt(0x50, seg(0x9c))], NZ, "SDM vol. 2B, VERR: execute-only"),
    (PROTECTED, CPL0, "0F 00 E0", &[ax(0x50), Gdt(0x50, system(0x89))], NZ, "SDM vol. 2B, VERR: system"),
    (PROTECTED, CPL0, "0F 00 E8", &[ax(0x50), Gdt(0x50, seg(0x92))], ZF, "SDM vol. 2B, VERW: writable"),
    (PROTECTED, CPL0, "0F 00 E8", &[ax(0x50), Gdt(0x50, seg(0x90))], NZ, "SDM vol. 2B, VERW: read-only"),
    (PROTECTED, ANY, "0F 00 E8", &[ax(0x53), Gdt(0x50, seg(0xfe))], NZ, "SDM vol. 2B, VERW: code"),
    (PROTECTED, ANY, "0F 00 E8", &[ax(0x53), Gdt(0x50, seg(0xf6))], ZF, "SDM vol. 2B, VERW: expand-down, DPL 3"),
    (PROTECTED, CPL3, "0F 00 2F", &[Mem(&[0x50, 0]), Gdt(0x50, seg(0xd2))], NZ, "SDM vol. 2B, VERW: CPL>DPL"),
    (P16, CPL0, "66 0F 00 E0", &[ax(0)], NZ, "SDM vol. 2B, VERR: operand size has no effect"),
    (P16, CPL0, "66 0F 00 E8", &[ax(0)], NZ, "SDM vol. 2B, VERW: operand size has no effect"),
    (LONG, CPL0, "48 0F 00 E0", &[ax(0)], NZ, "SDM vol. 2B, VERR: operand size has no effect"),
    (LONG, CPL0, "48 0F 00 E8", &[ax(0)], NZ, "SDM vol. 2B, VERW: operand size has no effect"),
    (ALL, ANY, "F0 0F 00 E0", &[], UD, "SDM vol. 2B, VERR: LOCK"),
    (ALL, ANY, "F0 0F 00 E8", &[], UD, "SDM vol. 2B, VERW: LOCK"),
    // ---- LAR: 0F 02 C8 is LAR ECX, EAX
    (UNPROTECTED, ANY, "0F 02 C8", &[], UD, "SDM vol. 2A, LAR: real and virtual-8086 mode"),
    (CODE32.or(LONG), CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, seg(0x92))], Get(Gpr::Rcx, 0xcf_9200), "SDM vol. 2A, LAR: 00FxFF00H"),
    (CODE32.or(LONG), CPL0, "66 0F 02 C8", &[ax(0x50), Gdt(0x50, seg(0x92))], Get(Gpr::Rcx, 0x9200), "SDM vol. 2A, LAR: FF00H"),
    (P16, CPL0, "0F 02 0F", &[Mem(&[0x50, 0]), Gdt(0x50, seg(0x92))], Get(Gpr::Rcx, 0x9200), "SDM vol. 2A, LAR: FF00H"),
    (P16, CPL0, "66 0F 02 C8", &[ax(0x50), Gdt(0x50, seg(0x92))], Get(Gpr::Rcx, 0xcf_9200), "SDM vol. 2A, LAR: 00FxFF00H"),
    (LONG, CPL0, "48 0F 02 C8", &[ax(0x50), Gdt(0x50, seg(0x92))], Get(Gpr::Rcx, 0xcf_9200), "SDM vol. 2A, LAR"),
    (PROTECTED, ANY, "0F 02 C8", &[ax(0), Flags(F::ZF)], NZ, "SDM vol. 2A, LAR: null"),
    (PROTECTED, ANY, "0F 02 C8", &[ax(0x200), Flags(F::ZF)], NZ, "SDM vol. 2A, LAR: beyond the limit"),
    (PROTECTED, OUTER, "0F 02 C8", &[ax(0x50), Gdt(0x50, seg(0x92))], NZ, "SDM vol. 2A, LAR: CPL>DPL"),
    (PROTECTED, CPL0, "0F 02 C8", &[ax(0x53), Gdt(0x50, seg(0x92))], NZ, "SDM vol. 2A, LAR: RPL>DPL"),
    (PROTECTED, ANY, "0F 02 C8", &[ax(0x53), Gdt(0x50, seg(0x9c))], ZF, "SDM vol. 2A, LAR: conforming"),
    (PROTECTED, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, seg(0x12))], ZF, "SDM vol. 2A, LAR: P is not looked at"),
    (PROTECTED, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, system(0x80))], NZ, "SDM vol. 2A, LAR, table 3-53: type 0"),
    (LEGACY, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, system(0x81))], ZF, "SDM vol. 2A, LAR, table 3-53: type 1"),
    (LEGACY, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, system(0x83))], ZF, "SDM vol. 2A, LAR, table 3-53: type 3"),
    (LEGACY, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, gate(0x84, 8, 0))], ZF, "SDM vol. 2A, LAR, table 3-53: type 4"),
    (LEGACY, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, gate(0x85, 8, 0))], ZF, "SDM vol. 2A, LAR, table 3-53: type 5"),
    (IA32E, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, system(0x81))], NZ, "SDM vol. 2A, LAR, table 3-53: type 1"),
    (IA32E, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, system(0x83))], NZ, "SDM vol. 2A, LAR, table 3-53: type 3"),
    (IA32E, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, gate(0x84, 8, 0))], NZ, "SDM vol. 2A, LAR, table 3-53: type 4"),
    (IA32E, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, gate(0x85, 8, 0))], NZ, "SDM vol. 2A, LAR, table 3-53: type 5"),
    (PROTECTED, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, system(0x82))], ZF, "SDM vol. 2A, LAR, table 3-53: LDT"),
    (PROTECTED, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, system(0x89))], ZF, "SDM vol. 2A, LAR, table 3-53: type 9"),
    (PROTECTED, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, system(0x8b))], ZF, "SDM vol. 2A, LAR, table 3-53: type B"),
    (PROTECTED, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, gate(0x8c, 8, 0))], ZF, "SDM vol. 2A, LAR, table 3-53: type C"),
    (PROTECTED, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, gate(0x86, 8, 0))], NZ, "SDM vol. 2A, LAR, table 3-53: type 6"),
    (PROTECTED, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, gate(0x87, 8, 0))], NZ, "SDM vol. 2A, LAR, table 3-53: type 7"),
    (PROTECTED, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, gate(0x88, 8, 0))], NZ, "SDM vol. 2A, LAR, table 3-53: type 8"),
    (PROTECTED, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, gate(0x8a, 8, 0))], NZ, "SDM vol. 2A, LAR, table 3-53: type A"),
    (PROTECTED, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, gate(0x8d, 8, 0))], NZ, "SDM vol. 2A, LAR, table 3-53: type D"),
    (PROTECTED, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, gate(0x8e, 8, 0))], NZ, "SDM vol. 2A, LAR, table 3-53: type E"),
    (PROTECTED, CPL0, "0F 02 C8", &[ax(0x50), Gdt(0x50, gate(0x8f, 8, 0))], NZ, "SDM vol. 2A, LAR, table 3-53: type F"),
    (ALL, ANY, "F0 0F 02 C8", &[], UD, "SDM vol. 2A, LAR: LOCK"),
    // ---- LSL: 0F 03 C8 is LSL ECX, EAX
    (UNPROTECTED, ANY, "0F 03 C8", &[], UD, "SDM vol. 2A, LSL: real and virtual-8086 mode"),
    (CODE32.or(LONG), CPL0, "0F 03 C8", &[ax(0x50), Gdt(0x50, seg(0x92))], Get(Gpr::Rcx, 0xffff_ffff), "SDM vol. 2A, LSL: scaled by G"),
    (CODE32.or(LONG), CPL0, "66 0F 03 C8", &[ax(0x50), Gdt(0x50, seg(0x92))], Get(Gpr::Rcx, 0xffff), "SDM vol. 2A, LSL: 16-bit operand"),
    (P16, CPL0, "0F 03 0F", &[Mem(&[0x50, 0]), Gdt(0x50, seg(0x92))], Get(Gpr::Rcx, 0xffff), "SDM vol. 2A, LSL: 16-bit operand"),
    (P16, CPL0, "66 0F 03 C8", &[ax(0x50), Gdt(0x50, seg(0x92))], Get(Gpr::Rcx, 0xffff_ffff), "SDM vol. 2A, LSL: 32-bit operand"),
    (LONG, CPL0, "48 0F 03 C8", &[ax(0x50), Gdt(0x50, system(0x8b))], Get(Gpr::Rcx, 0x7ff), "SDM vol. 2A, LSL"),
    (PROTECTED, ANY, "0F 03 C8", &[ax(0), Flags(F::ZF)], NZ, "SDM vol. 2A, LSL: null"),
    (PROTECTED, OUTER, "0F 03 C8", &[ax(0x50), Gdt(0x50, seg(0x92))], NZ, "SDM vol. 2A, LSL: CPL>DPL"),
    (PROTECTED, ANY, "0F 03 C8", &[ax(0x53), Gdt(0x50, seg(0x9c))], ZF, "SDM vol. 2A, LSL: conforming"),
    (LEGACY, CPL0, "0F 03 C8", &[ax(0x50), Gdt(0x50, system(0x81))], ZF, "SDM vol. 2A, LSL, table 3-55: type 1"),
    (LEGACY, CPL0, "0F 03 C8", &[ax(0x50), Gdt(0x50, system(0x83))], ZF, "SDM vol. 2A, LSL, table 3-55: type 3"),
    (IA32E, CPL0, "0F 03 C8", &[ax(0x50), Gdt(0x50, system(0x81))], NZ, "SDM vol. 2A, LSL, table 3-55: type 1"),
    (IA32E, CPL0, "0F 03 C8", &[ax(0x50), Gdt(0x50, system(0x83))], NZ, "SDM vol. 2A, LSL, table 3-55: type 3"),
    (PROTECTED, CPL0, "0F 03 C8", &[ax(0x50), Gdt(0x50, system(0x82))], ZF, "SDM vol. 2A, LSL, table 3-55: LDT"),
    (PROTECTED, CPL0, "0F 03 C8", &[ax(0x50), Gdt(0x50, system(0x89))], ZF, "SDM vol. 2A, LSL, table 3-55: type 9"),
    (PROTECTED, CPL0, "0F 03 C8", &[ax(0x50), Gdt(0x50, gate(0x84, 8, 0))], NZ, "SDM vol. 2A, LSL, table 3-55: type 4"),
    (PROTECTED, CPL0, "0F 03 C8", &[ax(0x50), Gdt(0x50, gate(0x85, 8, 0))], NZ, "SDM vol. 2A, LSL, table 3-55: type 5"),
    (PROTECTED, CPL0, "0F 03 C8", &[ax(0x50), Gdt(0x50, gate(0x8c, 8, 0))], NZ, "SDM vol. 2A, LSL, table 3-55: type C"),
    (PROTECTED, CPL0, "0F 03 C8", &[ax(0x50), Gdt(0x50, gate(0x8e, 8, 0))], NZ, "SDM vol. 2A, LSL, table 3-55: type E"),
    (ALL, ANY, "F0 0F 03 C8", &[], UD, "SDM vol. 2A, LSL: LOCK"),
    // ---- ARPL AX, CX
    (UNPROTECTED, ANY, "63 C8", &[], UD, "SDM vol. 2A, ARPL: real and virtual-8086 mode"),
    (LEGACY.or(COMPAT), ANY, "63 C8", &[ax(0x50), Reg(Gpr::Rcx, 3)], Get(Gpr::Rax, 0x53), "SDM vol. 2A, ARPL"),
    (LEGACY.or(COMPAT), ANY, "63 C8", &[ax(0x50), Reg(Gpr::Rcx, 3)], ZF, "SDM vol. 2A, ARPL"),
    (LEGACY.or(COMPAT), ANY, "63 C8", &[ax(0x52), Reg(Gpr::Rcx, 1), Flags(F::ZF)], NZ, "SDM vol. 2A, ARPL"),
    (LEGACY.or(COMPAT), ANY, "63 0F", &[Mem(&[0x50, 0]), Reg(Gpr::Rcx, 2)], Is(|r| stored(r, 2) == 0x52), "SDM vol. 2A, ARPL"),
    (P16, ANY, "66 63 C8", &[ax(0x50), Reg(Gpr::Rcx, 3)], ZF, "SDM vol. 2A, ARPL: operand size has no effect"),
    (LONG, ANY, "63 C8", &[ax(0x50), Reg(Gpr::Rcx, 3)], Get(Gpr::Rcx, 0x50), "SDM vol. 2B, MOVSXD: 63H in 64-bit mode"),
    (NOT64, ANY, "F0 63 C8", &[], UD, "SDM vol. 2A, ARPL: LOCK"),
];

#[test]
fn table() {
    check(ROWS);
}
