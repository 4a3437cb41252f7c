//! INT n, INT3, INTO, INT1, BOUND and IRET: gates by type, DPL, presence and target; IOPL, CR4.VME and the redirection
//! bitmap; what IRET refuses.

use super::Set::*;
use super::Want::*;
use super::*;

type F = Rflags;
/// The redirection bitmap at 68H; vector 40H is bit 0 of byte 70H.
const MAP: Set = Tss(0x66, &[0x88, 0]);
const TO_MONITOR: Set = Tss(0x70, &[1]);
const VME: Set = WithCr4(Cr4::VME);
/// Interrupt gate of vector 40H with this access byte, to a good target of the mode.
const fn gate64(access: u64) -> Set {
    Idt(0x40, gate(access, 8, 0x1_1000))
}
const fn gate32(access: u64) -> Set {
    Idt(0x40, gate(access, 0x18, 0x1_1000))
}
/// Stacks of level 0.
const INNER32: Set = Tss(4, &[0, 0x90, 3, 0, 0x10, 0, 0, 0]);
const INNER64: Set = Tss(4, &[0, 0x90, 3, 0, 0, 0, 0, 0]);
/// In real mode, and for a virtual-8086 task's own handlers: 0000:0000.
fn at_zero(r: &mut Rig) -> bool {
    r.cpu().rip() == 0 && r.cpu().segment(Seg::Cs).selector.0 == 0
}
fn in_handler(r: &mut Rig) -> bool {
    r.cpu().rip() == 0x1_1000 && r.cpu().cpl == 0 && !r.cpu().flag(F::IF)
}
const NT: Set = Flags(F::NT);

#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    // ---- INT 40H: the error code is the vector × 8 + 2, EXT clear
    (PROTECTED, ANY, "CD 40", &[], gp(0x202), "SDM vol. 2A, INT n: no gate"),
    (PROTECTED, ANY, "CD 40", &[Do(|r| r.cpu().idtr.limit = 0x3f)], gp(0x202), "SDM vol. 2A, INT n: beyond the IDT's limit"),
    (PROTECTED, OUTER, "CD 40", &[Idt(0x40, gate(0x8e, 8, 0))], gp(0x202), "SDM vol. 2A, INT n: CPL>DPL"),
    (PROTECTED, CPL2 | CPL3, "CD 40", &[Idt(0x40, gate(0x2e, 8, 0))], gp(0x202), "SDM vol. 2A, INT n: CPL>DPL, before presence"),
    (PROTECTED, CPL0 | CPL1, "CD 40", &[Idt(0x40, gate(0x2e, 8, 0))], np(0x202), "SDM vol. 2A, INT n: gate not present"),
    (PROTECTED, CPL3, "CD 40", &[Idt(0x40, gate(0x4e, 8, 0))], gp(0x202), "SDM vol. 2A, INT n: CPL>DPL"),
    (PROTECTED, CPL2, "CD 40", &[Idt(0x40, gate(0x4e, 8, 0))], np(0x202), "SDM vol. 2A, INT n: gate not present"),
    (PROTECTED, ANY, "CD 40", &[Idt(0x40, gate(0x6e, 8, 0))], np(0x202), "SDM vol. 2A, INT n: gate not present"),
    (PROTECTED, ANY, "CD 40", &[Idt(0x40, gate(0xee, 0, 0))], GP0, "SDM vol. 2A, INT n: null target"),
    (PROTECTED, ANY, "CD 40", &[Idt(0x40, gate(0xee, 3, 0))], GP0, "SDM vol. 2A, INT n: null target"),
    (PROTECTED, ANY, "CD 40", &[Idt(0x40, gate(0xee, 0x203, 0))], gp(0x200), "SDM vol. 2A, INT n: target beyond the limit"),
    (PROTECTED, ANY, "CD 40", &[Idt(0x40, gate(0xee, 0x54, 0))], gp(0x54), "SDM vol. 2A, INT n: target in no LDT"),
    (PROTECTED, ANY, "CD 40", &[Idt(0x40, gate(0xee, 0x10, 0))], gp(0x10), "SDM vol. 2A, INT n: target is data"),
    (PROTECTED, ANY, "CD 40", &[Idt(0x40, gate(0xee, 0x50, 0)), Gdt(0x50, system(0x8b))], gp(0x50), "SDM vol. 2A, INT n: target is a system segment"),
    (PROTECTED, CPL0 | CPL1 | CPL2, "CD 40", &[Idt(0x40, gate(0xee, 0x50, 0)), Gdt(0x50, seg64(0xfa))], gp(0x50), "SDM vol. 2A, INT n: target's DPL>CPL"),
    (PROTECTED, ANY, "CD 40", &[Idt(0x40, gate(0xee, 0x50, 0)), Gdt(0x50, seg64(0x1a))], np(0x50), "SDM vol. 2A, INT n: target not present"),
    (IA32E, ANY, "CD 40", &[Idt(0x40, gate(0xee, 0x18, 0))], gp(0x18), "SDM vol. 3A, 6.14.1: target without L"),
    (IA32E, ANY, "CD 40", &[Idt(0x40, gate(0xe6, 8, 0))], gp(0x202), "SDM vol. 3A, 3.5: no 16-bit gate in IA-32e mode"),
    (IA32E, ANY, "CD 40", &[Idt(0x40, gate(0xe7, 8, 0))], gp(0x202), "SDM vol. 3A, 3.5: no 16-bit gate in IA-32e mode"),
    (IA32E, ANY, "CD 40", &[Idt(0x40, gate(0xe5, 0x50, 0)), Gdt(0x50, system(0x89))], gp(0x202), "SDM vol. 3A, 7.7: no task gate in IA-32e mode"),
    (PROTECTED, ANY, "CD 40", &[Idt(0x40, gate(0xec, 8, 0))], gp(0x202), "SDM vol. 2A, INT n: a call gate is none"),
    (PROTECTED, ANY, "CD 40", &[Idt(0x40, gate(0xe9, 8, 0))], gp(0x202), "SDM vol. 2A, INT n: a TSS is none"),
    (PROTECTED, ANY, "CD 40", &[Idt(0x40, gate(0xfe, 8, 0))], gp(0x202), "SDM vol. 2A, INT n: S set"),
    (LEGACY, ANY, "CD 40", &[Idt(0x40, gate(0xe5, 0, 0))], gp(0), "SDM vol. 2A, INT n: task gate to null"),
    (LEGACY, ANY, "CD 40", &[Idt(0x40, gate(0xe5, 0x50, 0)), Gdt(0x50, system(0x8b))], gp(0x50), "SDM vol. 2A, INT n: task gate to a busy TSS"),
    (LEGACY, ANY, "CD 40", &[Idt(0x40, gate(0xe5, 0x50, 0)), Gdt(0x50, system(0x09))], np(0x50), "SDM vol. 2A, INT n: task gate to a TSS that is not present"),
    (LEGACY, OUTER, "CD 40", &[Idt(0x40, gate(0x85, 0x50, 0))], gp(0x202), "SDM vol. 2A, INT n: task gate, CPL>DPL"),
    (IA32E, CPL0, "CD 40", &[gate64(0x8e)], Is(in_handler), "SDM vol. 2A, INT n"),
    (LEGACY, CPL0, "CD 40", &[gate32(0x8e)], Is(in_handler), "SDM vol. 2A, INT n"),
    (IA32E, OUTER, "CD 40", &[gate64(0xee), INNER64], Is(in_handler), "SDM vol. 2A, INT n: inner level"),
    (LEGACY, OUTER, "CD 40", &[gate32(0xee), INNER32], Is(in_handler), "SDM vol. 2A, INT n: inner level"),
    (LEGACY, OUTER, "CD 40", &[gate32(0xee)], ts(0), "SDM vol. 2A, INT n: null SS in the TSS"),
    (LEGACY, OUTER, "CD 40", &[gate32(0xee), Tss(4, &[0, 0x90, 3, 0, 0x13, 0])], ts(0x10), "SDM vol. 2A, INT n: RPL of SS in the TSS"),
    (LEGACY, OUTER, "CD 40", &[gate32(0xee), Tss(4, &[0, 0x90, 3, 0, 0x18, 0])], ts(0x18), "SDM vol. 2A, INT n: SS in the TSS is code"),
    (LEGACY, OUTER, "CD 40", &[gate32(0xee), Tss(4, &[0, 0x90, 3, 0, 0x50, 0]), Gdt(0x50, seg(0x12))], ss(0x50), "SDM vol. 2A, INT n: SS in the TSS is not present"),
    (LEGACY, OUTER, "CD 40", &[gate32(0xee), Do(|r| { r.cpu().seg[Seg::Tr as usize].limit = 8; })], ts(0x48), "SDM vol. 2A, INT n: TSS too short"),
    (IA32E, OUTER, "CD 40", &[gate64(0xee), Do(|r| { r.cpu().seg[Seg::Tr as usize].limit = 8; })], ts(0x48), "SDM vol. 2A, INT n: TSS too short"),
    (IA32E, OUTER, "CD 40", &[gate64(0xee), Tss(4, &[0, 0, 0, 0, 0, 0x80, 0, 0])], SS0, "SDM vol. 2A, INT n: RSP not canonical"),
    (ALL, ANY, "F0 CD 40", &[], UD, "SDM vol. 2A, INT n: LOCK"),
    // ---- real mode
    (REAL, CPL0, "CD 40", &[Flags(F::IF)], Is(|r| at_zero(r) && !r.cpu().flag(F::IF)), "SDM vol. 2A, INT n: real mode"),
    (REAL, CPL0, "CD 40", &[Do(|r| r.cpu().idtr.limit = 0x102)], GP0, "SDM vol. 2A, INT n: beyond the IDT's limit"),
    (REAL, CPL0, "CE", &[Flags(F::OF)], Is(at_zero), "SDM vol. 2A, INTO: real mode"),
    (REAL, CPL0, "F1", &[], Is(at_zero), "SDM vol. 2A, INT1: real mode"),
    // ---- virtual-8086 mode
    (V86, CPL3, "CD 40", &[Iopl(0)], GP0, "SDM vol. 3B, table 20-2: method 4, IOPL<3"),
    (V86, CPL3, "CD 40", &[Iopl(2), gate32(0xee), INNER32], GP0, "SDM vol. 3B, table 20-2: method 4, IOPL<3"),
    (V86, CPL3, "CD 40", &[Iopl(3), gate32(0xee), INNER32], Is(|r| in_handler(r) && !r.cpu().v86()), "SDM vol. 3B, table 20-2: method 1"),
    (V86, CPL3, "CD 40", &[Iopl(3), gate32(0x8e), INNER32], gp(0x202), "SDM vol. 3B, 20.3.1.1: CPL>DPL"),
    (V86, CPL3, "CD 40", &[Iopl(3), Idt(0x40, gate(0xee, 0x50, 0)), Gdt(0x50, seg(0xfa)), INNER32], gp(0x50), "SDM vol. 3B, 20.3.1.1: the handler's DPL is not 0"),
    (V86, CPL3, "CD 40", &[Iopl(3), Idt(0x40, gate(0xee, 0x50, 0)), Gdt(0x50, seg(0x9e)), INNER32], gp(0x50), "SDM vol. 3B, 20.3.1.1: a conforming handler"),
    (V86, CPL3, "CD 40", &[Iopl(3), VME, MAP, TO_MONITOR, gate32(0xee), INNER32], Is(in_handler), "SDM vol. 3B, table 20-2: method 2 or 3"),
    (V86, CPL3, "CD 40", &[Iopl(0), VME, MAP, TO_MONITOR, gate32(0xee), INNER32], GP0, "SDM vol. 3B, table 20-2: method 4, bit set"),
    (V86, CPL3, "CD 40", &[Iopl(3), VME, MAP, Flags(F::IF.union(F::VIF))], Is(|r| at_zero(r) && r.cpu().v86() && !r.cpu().flag(F::IF) && r.cpu().flag(F::VIF)), "SDM vol. 3B, table 20-2: method 5"),
    (V86, CPL3, "CD 40", &[Iopl(0), VME, MAP, Flags(F::IF.union(F::VIF))], Is(|r| at_zero(r) && r.cpu().flag(F::IF) && !r.cpu().flag(F::VIF) && stacked(r, 4, 2) == 0x3202), "SDM vol. 3B, table 20-2: method 6"),
    (V86, CPL3, "CD 40", &[Iopl(0), VME, MAP, Flags(F::IF)], Is(|r| at_zero(r) && r.cpu().flag(F::IF) && stacked(r, 4, 2) == 0x3002), "SDM vol. 3B, table 20-2: method 6, VIF clear"),
    (V86, CPL3, "CD 40", &[Iopl(0), WithCr4(Cr4::PVI), MAP], GP0, "SDM vol. 3B, 20.3: PVI is not VME"),
    (V86, CPL3, "CE", &[Iopl(0), Flags(F::OF)], gp(0x22), "SDM vol. 2A, INTO: IOPL does not matter"),
    (V86, CPL3, "CC", &[Iopl(0)], Raise(Vector::Bp, 0), "SDM vol. 2A, INT3: IOPL does not matter"),
    (V86, CPL3, "F1", &[Iopl(0)], gp(0xb), "SDM vol. 2A, INT1: EXT is set"),
    // ---- INT3, INTO, INT1
    (ALL, ANY, "CC", &[], Raise(Vector::Bp, 0), "SDM vol. 2A, INT3"),
    (NOT64, ANY, "CE", &[], Done, "SDM vol. 2A, INTO: OF clear"),
    (LEGACY.or(COMPAT), ANY, "CE", &[Flags(F::OF)], gp(0x22), "SDM vol. 2A, INTO: no gate, EXT clear"),
    (LEGACY.or(COMPAT), OUTER, "CE", &[Flags(F::OF), Idt(4, gate(0x8e, 8, 0))], gp(0x22), "SDM vol. 2A, INTO: CPL>DPL"),
    (LONG, ANY, "CE", &[Flags(F::OF)], UD, "SDM vol. 2A, INTO: 64-bit mode"),
    (PROTECTED, ANY, "F1", &[], gp(0xb), "SDM vol. 2A, INT1: no gate, EXT set"),
    (PROTECTED, ANY, "F1", &[Idt(1, gate(0x0e, 8, 0))], np(0xb), "SDM vol. 2A, INT1: DPL is not looked at"),
    (IA32E, OUTER, "F1", &[Idt(1, gate(0x8e, 8, 0x1_1000)), INNER64], Is(in_handler), "SDM vol. 2A, INT1: DPL is not looked at"),
    (LEGACY, OUTER, "F1", &[Idt(1, gate(0x8e, 0x18, 0x1_1000)), INNER32], Is(in_handler), "SDM vol. 2A, INT1: DPL is not looked at"),
    (ALL, ANY, "F0 CC", &[], UD, "SDM vol. 2A, INT3: LOCK"),
    (ALL, ANY, "F0 F1", &[], UD, "SDM vol. 2A, INT1: LOCK"),
    // ---- BOUND EAX, [DATA]
    (CODE16, ANY, "62 07", &[Mem(&[1, 0, 5, 0]), Reg(Gpr::Rax, 5)], Done, "SDM vol. 2A, BOUND: 16 bits"),
    (CODE16, ANY, "62 07", &[Mem(&[1, 0, 5, 0]), Reg(Gpr::Rax, 6)], Raise(Vector::Br, 0), "SDM vol. 2A, BOUND: 16 bits"),
    (CODE16, ANY, "66 62 07", &[Mem(&[1, 0, 0, 0, 5, 0, 0, 0]), Reg(Gpr::Rax, 0)], Raise(Vector::Br, 0), "SDM vol. 2A, BOUND: 32 bits"),
    (CODE32, ANY, "62 07", &[Mem(&[1, 0, 0, 0, 5, 0, 0, 0]), Reg(Gpr::Rax, 0xffff_ffff)], Raise(Vector::Br, 0), "SDM vol. 2A, BOUND: signed"),
    (CODE32, ANY, "66 62 07", &[Mem(&[0xff, 0xff, 5, 0]), Reg(Gpr::Rax, 0xffff)], Done, "SDM vol. 2A, BOUND: signed, 16 bits"),
    (NOT64, ANY, "F0 62 07", &[], UD, "SDM vol. 2A, BOUND: LOCK"),
    // ---- IRET under IOPL in virtual-8086 mode
    (V86, CPL3, "CF", &[Iopl(0)], GP0, "SDM vol. 2A, IRET: VM=1, IOPL<3"),
    (V86, CPL3, "66 CF", &[Iopl(2)], GP0, "SDM vol. 2A, IRET: VM=1, IOPL<3"),
    (V86, CPL3, "66 CF", &[Iopl(2), VME], GP0, "SDM vol. 2A, IRET: VM=1, IOPL<3, 32-bit operand"),
    (V86, CPL3, "CF", &[Iopl(3), Stack(&[0x34, 0x12, 0, 0x10, 2, 2])], Is(|r| r.cpu().rip() == 0x1234 && r.cpu().flag(F::IF.union(F::IOPL).union(F::VM))), "SDM vol. 2A, IRET: IOPL is unchanged"),
    (V86, CPL3, "66 CF", &[Iopl(3), Stack(&[0x34, 0x12, 0, 0, 0, 0x10, 0, 0, 2, 0, 0x3c, 0])], Is(|r| r.cpu().flag(F::IOPL.union(F::VM).union(F::AC).union(F::ID)) && !r.cpu().flag(F::VIF) && !r.cpu().flag(F::VIP)), "SDM vol. 2A, IRETD: VIF, VIP, VM, IOPL are unchanged"),
    (V86, CPL3, "CF", &[Iopl(0), VME, Stack(&[0x34, 0x12, 0, 0x10, 2, 0x32])], Is(|r| r.cpu().flag(F::VIF) && !r.cpu().flag(F::IF) && r.cpu().iopl() == 0), "SDM vol. 3B, 20.3.2: IF becomes VIF"),
    (V86, CPL3, "CF", &[Iopl(0), VME, Flags(F::VIP), Stack(&[0x34, 0x12, 0, 0x10, 2, 2])], GP0, "SDM vol. 3B, 20.3.2: VIP and IF"),
    (V86, CPL3, "CF", &[Iopl(0), VME, Stack(&[0x34, 0x12, 0, 0x10, 2, 1])], GP0, "SDM vol. 3B, 20.3.2: TF"),
    (V86, CPL3, "66 CF", &[Iopl(3), Stack(&[0, 0, 1, 0, 0, 0x10, 0, 0, 2, 0, 0, 0])], GP0, "SDM vol. 2A, IRET: EIP beyond the limit"),
    (REAL, CPL0, "CF", &[Stack(&[0x34, 0x12, 0, 0x10, 2, 0x32])], Is(|r| r.cpu().rip() == 0x1234 && r.flags() == 0x3202), "SDM vol. 2A, IRET: real mode"),
    (REAL, CPL0, "66 CF", &[Stack(&[0, 0, 1, 0, 0, 0x10, 0, 0, 2, 0, 0, 0])], GP0, "SDM vol. 2A, IRET: EIP beyond the limit"),
    // ---- IRET in protected mode: EIP, CS, EFLAGS (ESP, SS)
    (IA32E, ANY, "CF", &[NT], GP0, "SDM vol. 2A, IRET: NT in IA-32e mode"),
    (LONG, ANY, "48 CF", &[NT], GP0, "SDM vol. 2A, IRET: NT in IA-32e mode"),
    (LEGACY, ANY, "CF", &[NT], ts(0), "SDM vol. 2A, IRET: NT, the link is no busy TSS"),
    (LEGACY, ANY, "66 CF", &[NT, Tss(0, &[0x50, 0]), Gdt(0x50, system(0x89))], ts(0x50), "SDM vol. 2A, IRET: NT, the link is no busy TSS"),
    (LEGACY, ANY, "CF", &[NT, Tss(0, &[0x54, 0])], ts(0x54), "SDM vol. 2A, IRET: NT, the link is in the LDT"),
    (LEGACY, ANY, "CF", &[NT, Tss(0, &[0x50, 0]), Gdt(0x50, system(0x0b))], np(0x50), "SDM vol. 2A, IRET: NT, the TSS is not present"),
    (PROTECTED, ANY, "CF", &[Stack(&[0; 20])], GP0, "SDM vol. 2A, IRET: null CS"),
    (CODE32.or(LONG), ANY, "CF", &[Stack(&[0, 0, 0, 0, 3, 2, 0, 0, 2, 0, 0, 0])], gp(0x200), "SDM vol. 2A, IRET: CS beyond the limit"),
    (P16, ANY, "CF", &[Stack(&[0, 0, 3, 2, 2, 0])], gp(0x200), "SDM vol. 2A, IRET: CS beyond the limit"),
    (CODE32.or(LONG), ANY, "CF", &[Stack(&[0, 0, 0, 0, 0x3b, 0, 0, 0, 2, 0, 0, 0])], gp(0x38), "SDM vol. 2A, IRET: CS is data"),
    (CODE32.or(LONG), OUTER, "CF", &[Stack(&[0, 0, 0, 0, 0x18, 0, 0, 0, 2, 0, 0, 0])], gp(0x18), "SDM vol. 2A, IRET: RPL<CPL"),
    (P16, OUTER, "CF", &[Stack(&[0, 0, 0x18, 0, 2, 0])], gp(0x18), "SDM vol. 2A, IRET: RPL<CPL"),
    (CODE32.or(LONG), ANY, "CF", &[Stack(&[0, 0, 0, 0, 0x1b, 0, 0, 0, 2, 0, 0, 0])], gp(0x18), "SDM vol. 2A, IRET: DPL is not RPL"),
    (CODE32.or(LONG), CPL0, "CF", &[Stack(&[0, 0, 0, 0, 0x50, 0, 0, 0, 2, 0, 0, 0]), Gdt(0x50, seg(0xfe))], gp(0x50), "SDM vol. 2A, IRET: conforming, DPL>RPL"),
    (CODE32.or(LONG), CPL0, "CF", &[Stack(&[0, 0, 0, 0, 0x50, 0, 0, 0, 2, 0, 0, 0]), Gdt(0x50, seg(0x1a))], np(0x50), "SDM vol. 2A, IRET: CS not present"),
    (IA32E, CPL0, "CF", &[Stack(&[0, 0, 0, 0, 0x50, 0, 0, 0, 2, 0, 0, 0]), Gdt(0x50, seg(0x9a) | 1 << 53)], gp(0x50), "SDM vol. 3A, 5.2.1: L and D"),
    (CODE32.or(LONG), CPL0, "CF", &[Stack(&[0, 0, 0, 0, 0x43, 0, 0, 0, 2, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0])], GP0, "SDM vol. 2A, IRET: null SS"),
    (CODE32.or(LONG), CPL0, "CF", &[Stack(&[0, 0, 0, 0, 0x43, 0, 0, 0, 2, 0, 0, 0, 0, 0, 3, 0, 0x38, 0, 0, 0])], gp(0x38), "SDM vol. 2A, IRET: RPL of SS"),
    (CODE32.or(LONG), CPL0, "CF", &[Stack(&[0, 0, 0, 0, 0x43, 0, 0, 0, 2, 0, 0, 0, 0, 0, 3, 0, 0x13, 0, 0, 0])], gp(0x10), "SDM vol. 2A, IRET: DPL of SS"),
    (CODE32.or(LONG), CPL0, "CF", &[Stack(&[0, 0, 0, 0, 0x43, 0, 0, 0, 2, 0, 0, 0, 0, 0, 3, 0, 0x43, 0, 0, 0])], gp(0x40), "SDM vol. 2A, IRET: SS is code"),
    (CODE32.or(LONG), CPL0, "CF", &[Stack(&[0, 0, 0, 0, 0x43, 0, 0, 0, 2, 0, 0, 0, 0, 0, 3, 0, 0x53, 0, 0, 0]), Gdt(0x50, seg(0x72))], ss(0x50), "SDM vol. 2A, IRET: SS not present"),
    (CODE32.or(LONG), CPL0, "CF", &[Stack(&[0, 0x10, 1, 0, 0x43, 0, 0, 0, 2, 0x32, 0, 0, 0, 0, 3, 0, 0x3b, 0, 0, 0])], Is(|r| r.cpu().rip() == 0x1_1000 && r.cpu().cpl == 3 && r.flags() == 0x3202), "SDM vol. 2A, IRET: outer level"),
    (CODE32, CPL3, "CF", &[Iopl(0), Stack(&[0, 0x10, 1, 0, 0x43, 0, 0, 0, 2, 0x32, 0x18, 0])], Is(|r| r.cpu().rip() == 0x1_1000 && r.flags() == 2), "SDM vol. 2A, IRET: IF, IOPL, VIF and VIP are not CPL 3's"),
    (CODE32, CPL3, "CF", &[Iopl(3), Stack(&[0, 0x10, 1, 0, 0x43, 0, 0, 0, 2, 2, 0, 0])], Is(|r| r.flags() == 0x3202), "SDM vol. 2A, IRET: CPL<=IOPL"),
    (P32, CPL0, "CF", &[Stack(&[0, 0x10, 1, 0, 0x18, 0, 0, 0, 2, 0, 0x18, 0])], Is(|r| r.flags() == 0x18_0002), "SDM vol. 2A, IRET: VIF and VIP at CPL 0"),
    (LONG, CPL0, "48 CF", &[Stack(&[0, 0, 0, 0, 0, 0x80, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0])], GP0, "SDM vol. 2A, IRET: RIP not canonical"),
    (LONG, CPL0, "48 CF", &[Stack(&[0, 0x10, 1, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])], Is(|r| r.cpu().rip() == 0x1_1000 && r.cpu().segment(Seg::Ss).unusable), "SDM vol. 2A, IRET: null SS to 64-bit mode, CPL 0"),
    (LONG, CPL0, "48 CF", &[Stack(&[0, 0x10, 1, 0, 0, 0, 0, 0, 0x33, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0])], GP0, "SDM vol. 2A, IRET: null SS at CPL 3"),
    (ALL, ANY, "F0 CF", &[], UD, "SDM vol. 2A, IRET: LOCK"),
];

#[test]
fn table() {
    check(ROWS);
}
