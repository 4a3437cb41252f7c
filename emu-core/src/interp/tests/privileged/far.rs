//! Far JMP, CALL and RET through each descriptor type × DPL × RPL × CPL × presence, and the error codes.

use super::Set::*;
use super::Want::*;
use super::*;

/// The far pointer 1_1000H:`selector` for a 32-bit operand.
macro_rules! to {
    ($selector:literal) => {
        Mem(&[0, 0x10, 1, 0, $selector as u16 as u8, ($selector as u16 >> 8) as u8, 0, 0])
    };
}
/// The far pointer 1000H:`selector` for a 16-bit operand.
macro_rules! to16 {
    ($selector:literal) => {
        Mem(&[0, 0x10, $selector as u16 as u8, ($selector as u16 >> 8) as u8])
    };
}
/// A frame of RETF with a 32-bit operand: EIP, CS, ESP, SS.
macro_rules! frame {
    ($cs:literal, $ss:literal) => {
        Stack(&[0, 0x10, 1, 0, $cs as u16 as u8, ($cs as u16 >> 8) as u8, 0, 0, 0, 0, 3, 0, $ss, 0, 0, 0])
    };
}
const ANY32: Modes = CODE32.or(LONG);
/// A code segment with L and D.
const L_AND_D: u64 = seg(0x9a) | 1 << 53;
/// A code segment of 4 KiB.
const SHORT: u64 = 0x0040_0000_0000_0fff | 0x9a << 40;
const INNER32: Set = Tss(4, &[0, 0x90, 3, 0, 0x10, 0, 0, 0]);
const INNER64: Set = Tss(4, &[0, 0x90, 3, 0, 0, 0, 0, 0]);
fn arrived(r: &mut Rig, selector: u16, cpl: u8) -> bool {
    let c = r.cpu();
    c.rip() == 0x1_1000 && c.segment(Seg::Cs).selector.0 == selector && c.cpl == cpl
}

/// What JMP (FF /5) and CALL (FF /3) have in common; each row is run with both.
#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    (ANY32, ANY, "FF 2F", &[to!(0)], GP0, "SDM vol. 2A, JMP: null"),
    (ANY32, ANY, "FF 2F", &[to!(3)], GP0, "SDM vol. 2A, JMP: null"),
    (P16, ANY, "FF 2F", &[to16!(0)], GP0, "SDM vol. 2A, JMP: null"),
    (ANY32, ANY, "FF 2F", &[to!(0x200)], gp(0x200), "SDM vol. 2A, JMP: beyond the limit"),
    (ANY32, ANY, "FF 2F", &[to!(0x203)], gp(0x200), "SDM vol. 2A, JMP: beyond the limit"),
    (P16, ANY, "FF 2F", &[to16!(0x203)], gp(0x200), "SDM vol. 2A, JMP: beyond the limit"),
    (P16, ANY, "66 FF 2F", &[to!(0x203)], gp(0x200), "SDM vol. 2A, JMP: beyond the limit"),
    (ANY32, ANY, "66 FF 2F", &[to16!(0x203)], gp(0x200), "SDM vol. 2A, JMP: beyond the limit"),
    (LONG, ANY, "48 FF 2F", &[Mem(&[0, 0, 0, 0, 0, 0, 0, 0, 3, 2])], gp(0x200), "SDM vol. 2A, JMP: m16:64"),
    (ANY32, ANY, "FF 2F", &[to!(0x54)], gp(0x54), "SDM vol. 2A, JMP: no LDT"),
    (ANY32, ANY, "FF 2F", &[to!(0x50), Gdt(0x50, 0)], gp(0x50), "SDM vol. 2A, JMP: an empty descriptor"),
    // ---- code segments
    (ANY32, ANY, "FF 2F", &[to!(0x50), Gdt(0x50, seg(0xf2))], gp(0x50), "SDM vol. 2A, JMP: data"),
    (ANY32, OUTER, "FF 2F", &[to!(0x50), Gdt(0x50, seg(0x9a))], gp(0x50), "SDM vol. 2A, JMP: CPL is not DPL"),
    (ANY32, CPL0 | CPL1 | CPL2, "FF 2F", &[to!(0x50), Gdt(0x50, seg(0xfa))], gp(0x50), "SDM vol. 2A, JMP: CPL is not DPL"),
    (ANY32, CPL0 | CPL2 | CPL3, "FF 2F", &[to!(0x50), Gdt(0x50, seg(0xba))], gp(0x50), "SDM vol. 2A, JMP: CPL is not DPL"),
    (ANY32, CPL0, "FF 2F", &[to!(0x51), Gdt(0x50, seg(0x9a))], gp(0x50), "SDM vol. 2A, JMP: RPL>CPL"),
    (ANY32, CPL0, "FF 2F", &[to!(0x53), Gdt(0x50, seg(0x9a))], gp(0x50), "SDM vol. 2A, JMP: RPL>CPL"),
    (P16, CPL0, "FF 2F", &[to16!(0x53), Gdt(0x50, seg(0x9a))], gp(0x50), "SDM vol. 2A, JMP: RPL>CPL"),
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, seg(0xbe))], gp(0x50), "SDM vol. 2A, JMP: conforming, DPL>CPL"),
    (ANY32, CPL0 | CPL1 | CPL2, "FF 2F", &[to!(0x50), Gdt(0x50, seg(0xfe))], gp(0x50), "SDM vol. 2A, JMP: conforming, DPL>CPL"),
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, seg(0x1a))], np(0x50), "SDM vol. 2A, JMP: not present"),
    (ANY32, ANY, "FF 2F", &[to!(0x53), Gdt(0x50, seg(0x1e))], np(0x50), "SDM vol. 2A, JMP: conforming, not present"),
    (ANY32, CPL3, "FF 2F", &[to!(0x50), Gdt(0x50, seg(0x1a))], gp(0x50), "SDM vol. 2A, JMP: privilege before presence"),
    (IA32E, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, L_AND_D)], gp(0x50), "SDM vol. 2A, JMP: L and D"),
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, SHORT)], GP0, "SDM vol. 2A, JMP: offset beyond the limit"),
    (LONG, CPL0, "48 FF 2F", &[Mem(&[0, 0, 0, 0, 0, 0x80, 0, 0, 8, 0])], GP0, "SDM vol. 2A, JMP: offset not canonical"),
    (CODE32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, seg(0x9a))], Is(|r| arrived(r, 0x50, 0)), "SDM vol. 2A, JMP"),
    (LONG, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, seg64(0x9a))], Is(|r| arrived(r, 0x50, 0) && r.cpu().long64()), "SDM vol. 2A, JMP"),
    (LONG, CPL0, "FF 2F", &[to!(0x18)], Is(|r| arrived(r, 0x18, 0) && !r.cpu().long64()), "SDM vol. 2A, JMP: into compatibility mode"),
    (CODE32, CPL3, "FF 2F", &[to!(0x50), Gdt(0x50, seg(0xfa))], Is(|r| arrived(r, 0x53, 3)), "SDM vol. 2A, JMP: RPL becomes CPL"),
    (ANY32, CPL3, "FF 2F", &[to!(0x50), Gdt(0x50, seg(0x9e))], Is(|r| arrived(r, 0x53, 3)), "SDM vol. 2A, JMP: conforming, CPL stays"),
    (CODE32, CPL1, "FF 2F", &[to!(0x51), Gdt(0x50, seg(0xba))], Is(|r| arrived(r, 0x51, 1)), "SDM vol. 2A, JMP"),
    // ---- system descriptors that are no target
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, system(0x80))], gp(0x50), "SDM vol. 2A, JMP: type 0"),
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, system(0x82))], gp(0x50), "SDM vol. 2A, JMP: LDT"),
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, system(0x83))], gp(0x50), "SDM vol. 2A, JMP: busy 16-bit TSS"),
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, gate(0x86, 8, 0))], gp(0x50), "SDM vol. 2A, JMP: interrupt gate"),
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, gate(0x87, 8, 0))], gp(0x50), "SDM vol. 2A, JMP: trap gate"),
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, system(0x88))], gp(0x50), "SDM vol. 2A, JMP: type 8"),
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, system(0x8a))], gp(0x50), "SDM vol. 2A, JMP: type A"),
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, system(0x8b))], gp(0x50), "SDM vol. 2A, JMP: busy TSS"),
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, system(0x8d))], gp(0x50), "SDM vol. 2A, JMP: type D"),
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, gate(0x8e, 8, 0))], gp(0x50), "SDM vol. 2A, JMP: interrupt gate"),
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, gate(0x8f, 8, 0))], gp(0x50), "SDM vol. 2A, JMP: trap gate"),
    (IA32E, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, system(0x81))], gp(0x50), "SDM vol. 2A, JMP: no task switch in IA-32e mode"),
    (IA32E, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, system(0x89))], gp(0x50), "SDM vol. 2A, JMP: no task switch in IA-32e mode"),
    (IA32E, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, gate(0x84, 8, 0))], gp(0x50), "SDM vol. 2A, JMP: no 16-bit call gate in IA-32e mode"),
    (IA32E, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, gate(0x85, 8, 0))], gp(0x50), "SDM vol. 2A, JMP: no task gate in IA-32e mode"),
    // ---- task state segments and task gates
    (P32, CPL0, "FF 2F", &[to!(0x53), Gdt(0x50, system(0x89))], gp(0x50), "SDM vol. 2A, JMP: TSS, RPL>DPL"),
    (P32, OUTER, "FF 2F", &[to!(0x50), Gdt(0x50, system(0x89))], gp(0x50), "SDM vol. 2A, JMP: TSS, CPL>DPL"),
    (P32, OUTER, "FF 2F", &[to!(0x50), Gdt(0x50, system(0x09))], gp(0x50), "SDM vol. 2A, JMP: TSS, privilege before presence"),
    (P32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, system(0x09))], np(0x50), "SDM vol. 2A, JMP: TSS not present"),
    (P32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, system(0x89) & !0xffff)], ts(0x50), "SDM vol. 3A, 7.2.1: TSS too short"),
    (P32, OUTER, "FF 2F", &[to!(0x50), Gdt(0x50, gate(0x85, 0x58, 0))], gp(0x50), "SDM vol. 2A, JMP: task gate, CPL>DPL"),
    (P32, CPL0, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0x85, 0x58, 0))], gp(0x50), "SDM vol. 2A, JMP: task gate, RPL>DPL"),
    (P32, ANY, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0x65, 0x58, 0))], np(0x50), "SDM vol. 2A, JMP: task gate not present"),
    (P32, ANY, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0xe5, 0x203, 0))], gp(0x200), "SDM vol. 2A, JMP: task gate beyond the limit"),
    (P32, ANY, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0xe5, 0x54, 0))], gp(0x54), "SDM vol. 2A, JMP: task gate into the LDT"),
    (P32, ANY, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0xe5, 0x58, 0)), Gdt(0x58, system(0x8b))], gp(0x58), "SDM vol. 2A, JMP: task gate to a busy TSS"),
    (P32, ANY, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0xe5, 0x58, 0)), Gdt(0x58, system(0x09))], np(0x58), "SDM vol. 2A, JMP: task gate to an absent TSS"),
    // ---- call gates
    (ANY32, OUTER, "FF 2F", &[to!(0x50), Gdt(0x50, gate(0x8c, 8, 0))], gp(0x50), "SDM vol. 2A, JMP: call gate, CPL>DPL"),
    (ANY32, CPL0, "FF 2F", &[to!(0x51), Gdt(0x50, gate(0x8c, 8, 0))], gp(0x50), "SDM vol. 2A, JMP: call gate, RPL>DPL"),
    (ANY32, CPL3, "FF 2F", &[to!(0x50), Gdt(0x50, gate(0x4c, 8, 0))], gp(0x50), "SDM vol. 2A, JMP: call gate, privilege before presence"),
    (ANY32, ANY, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0x6c, 8, 0))], np(0x50), "SDM vol. 2A, JMP: call gate not present"),
    (ANY32, ANY, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0xec, 0, 0))], GP0, "SDM vol. 2A, JMP: call gate to null"),
    (ANY32, ANY, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0xec, 0x203, 0))], gp(0x200), "SDM vol. 2A, JMP: call gate beyond the limit"),
    (ANY32, ANY, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0xec, 0x10, 0))], gp(0x10), "SDM vol. 2A, JMP: call gate to data"),
    (ANY32, CPL0, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0xec, 0x30, 0))], gp(0x30), "SDM vol. 2A, JMP: call gate, target's DPL>CPL"),
    (IA32E, ANY, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0xec, 0x18, 0))], gp(0x18), "SDM vol. 2A, JMP: 64-bit call gate to a segment without L"),
    (IA32E, ANY, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0xec, 8, 0)), Gdt(0x58, 1 << 40)], gp(0x50), "SDM vol. 3A, 5.8.3.1: type in the upper half"),
    (IA32E, ANY, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0xec, 8, 0)), Do(|r| r.cpu().gdtr.limit = 0x57)], gp(0x50), "SDM vol. 3A, 5.8.3.1: 16 bytes"),
    (IA32E, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, gate(0x8c, 8, 0)), Gdt(0x58, 0x8000)], GP0, "SDM vol. 2A, JMP: call gate's offset not canonical"),
    (ANY32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, gate(0x8c, 0x60, 0)), Gdt(0x60, seg64(0x1a))], np(0x60), "SDM vol. 2A, JMP: call gate's target not present"),
    (P32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, gate(0x8c, 0x60, 0x1_1000)), Gdt(0x60, SHORT)], GP0, "SDM vol. 2A, JMP: call gate's offset beyond the limit"),
    (P32, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, gate(0x8c, 0x18, 0x1_1000))], Is(|r| arrived(r, 0x18, 0)), "SDM vol. 2A, JMP: call gate"),
    (IA32E, CPL0, "FF 2F", &[to!(0x50), Gdt(0x50, gate(0x8c, 8, 0x1_1000))], Is(|r| arrived(r, 8, 0)), "SDM vol. 2A, JMP: call gate"),
    (P32, ANY, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0xec, 0x60, 0x1_1000)), Gdt(0x60, seg(0x9e))], Is(|r| { let c = r.cpu().cpl; arrived(r, 0x60 | c as u16, c) }), "SDM vol. 2A, JMP: call gate to a conforming segment"),
    // ---- real and virtual-8086 mode
    (UNPROTECTED, ANY, "FF 2F", &[to16!(0x53)], Is(|r| r.cpu().rip() == 0x1000 && r.cpu().segment(Seg::Cs).base == 0x530), "SDM vol. 2A, JMP: any selector"),
    (UNPROTECTED, ANY, "66 FF 2F", &[to!(0x53)], GP0, "SDM vol. 2A, JMP: offset beyond the limit"),
    // ---- forms
    (ALL, ANY, "FF EF", &[], UD, "SDM vol. 2A, JMP: a far pointer in a register"),
    (ALL, ANY, "F0 FF 2F", &[], UD, "SDM vol. 2A, JMP: LOCK"),
];

/// Where JMP and CALL differ, direct forms, and RETF.
#[rustfmt::skip]
pub(super) static OTHERS: &[Row] = &[
    (P32, OUTER, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0xec, 0x18, 0))], gp(0x18), "SDM vol. 2A, JMP: call gate to an inner level"),
    (IA32E, OUTER, "FF 2F", &[to!(0x53), Gdt(0x50, gate(0xec, 8, 0))], gp(8), "SDM vol. 2A, JMP: call gate to an inner level"),
    (P32, OUTER, "FF 1F", &[to!(0x53), Gdt(0x50, gate(0xec, 0x18, 0x1_1000)), INNER32], Is(|r| arrived(r, 0x18, 0) && r.cpu().rsp() == 0x3_8ff0), "SDM vol. 2A, CALL: call gate to an inner level"),
    (IA32E, OUTER, "FF 1F", &[to!(0x53), Gdt(0x50, gate(0xec, 8, 0x1_1000)), INNER64], Is(|r| arrived(r, 8, 0) && r.cpu().rsp() == 0x3_8fe0), "SDM vol. 2A, CALL: call gate to an inner level"),
    (P32, OUTER, "FF 1F", &[to!(0x53), Gdt(0x50, gate(0xec, 0x18, 0))], ts(0), "SDM vol. 2A, CALL: null SS in the TSS"),
    (P32, OUTER, "FF 1F", &[to!(0x53), Gdt(0x50, gate(0xec, 0x18, 0)), Tss(4, &[0, 0x90, 3, 0, 0x13, 0])], ts(0x10), "SDM vol. 2A, CALL: RPL of SS in the TSS"),
    (P32, OUTER, "FF 1F", &[to!(0x53), Gdt(0x50, gate(0xec, 0x18, 0)), Tss(4, &[0, 0x90, 3, 0, 0x38, 0])], ts(0x38), "SDM vol. 2A, CALL: DPL of SS in the TSS"),
    (P32, OUTER, "FF 1F", &[to!(0x53), Gdt(0x50, gate(0xec, 0x18, 0)), Tss(4, &[0, 0x90, 3, 0, 0, 2])], ts(0x200), "SDM vol. 2A, CALL: SS in the TSS beyond the limit"),
    (P32, OUTER, "FF 1F", &[to!(0x53), Gdt(0x50, gate(0xec, 0x18, 0)), Tss(4, &[0, 0x90, 3, 0, 0x58, 0]), Gdt(0x58, seg(0x12))], ss(0x58), "SDM vol. 2A, CALL: SS in the TSS not present"),
    (IA32E, OUTER, "FF 1F", &[to!(0x53), Gdt(0x50, gate(0xec, 8, 0)), Tss(4, &[0, 0, 0, 0, 0, 0x80, 0, 0])], SS0, "SDM vol. 2A, CALL: RSP not canonical"),
    (P32, OUTER, "FF 1F", &[to!(0x53), Gdt(0x50, gate(0xec, 0x18, 0)), Do(|r| r.cpu().seg[Seg::Tr as usize].limit = 3)], ts(0x48), "SDM vol. 2A, CALL: TSS too short"),
    (IA32E, OUTER, "FF 1F", &[to!(0x53), Gdt(0x50, gate(0xec, 8, 0)), Do(|r| r.cpu().seg[Seg::Tr as usize].limit = 3)], ts(0x48), "SDM vol. 2A, CALL: TSS too short"),
    (CODE32, CPL0, "FF 1F", &[to!(0x18)], Is(|r| r.cpu().rsp() == STACK - 8 && stacked(r, 0, 4) == CODE + 2), "SDM vol. 2A, CALL: two doublewords"),
    (CODE32, CPL0, "66 FF 1F", &[to16!(0x18)], Is(|r| r.cpu().rsp() == STACK - 4), "SDM vol. 2A, CALL: two words"),
    (LONG, CPL0, "FF 1F", &[to!(8)], Is(|r| r.cpu().rsp() == STACK - 8), "SDM vol. 2A, CALL: m16:32"),
    (LONG, CPL0, "48 FF 1F", &[Mem(&[0, 0x10, 1, 0, 0, 0, 0, 0, 8, 0])], Is(|r| arrived(r, 8, 0) && r.cpu().rsp() == STACK - 16), "SDM vol. 2A, CALL: m16:64"),
    (UNPROTECTED, ANY, "66 FF 1F", &[Mem(&[0, 0x10, 0, 0, 0x53, 0])], Is(|r| r.cpu().rsp() == (STACK & 0xffff) - 8), "SDM vol. 2A, CALL: two doublewords"),
    // ---- ptr16:16, ptr16:32
    (UNPROTECTED, ANY, "EA 00 10 03 02", &[], Is(|r| r.cpu().rip() == 0x1000 && r.cpu().segment(Seg::Cs).base == 0x2030), "SDM vol. 2A, JMP: any selector"),
    (UNPROTECTED, ANY, "9A 00 10 03 02", &[], Is(|r| r.cpu().rip() == 0x1000 && r.cpu().segment(Seg::Cs).base == 0x2030), "SDM vol. 2A, CALL: any selector"),
    (P16, ANY, "EA 00 10 03 02", &[], gp(0x200), "SDM vol. 2A, JMP: beyond the limit"),
    (P16, ANY, "66 EA 00 10 00 00 03 02", &[], gp(0x200), "SDM vol. 2A, JMP: beyond the limit"),
    (P16, ANY, "9A 00 10 03 02", &[], gp(0x200), "SDM vol. 2A, CALL: beyond the limit"),
    (P16, ANY, "66 9A 00 10 00 00 03 02", &[], gp(0x200), "SDM vol. 2A, CALL: beyond the limit"),
    (CODE32, ANY, "EA 00 10 01 00 03 02", &[], gp(0x200), "SDM vol. 2A, JMP: beyond the limit"),
    (CODE32, ANY, "9A 00 10 01 00 03 02", &[], gp(0x200), "SDM vol. 2A, CALL: beyond the limit"),
    (LONG, ANY, "EA 00 10 01 00 18 00", &[], UD, "SDM vol. 2A, JMP: ptr16:32 in 64-bit mode"),
    (LONG, ANY, "9A 00 10 01 00 18 00", &[], UD, "SDM vol. 2A, CALL: ptr16:32 in 64-bit mode"),
    // ---- RETF
    (ANY32, ANY, "CB", &[frame!(0, 0)], GP0, "SDM vol. 2B, RET: null CS"),
    (ANY32, ANY, "CB", &[frame!(3, 0)], GP0, "SDM vol. 2B, RET: null CS"),
    (ANY32, ANY, "CB", &[frame!(0x203, 0)], gp(0x200), "SDM vol. 2B, RET: CS beyond the limit"),
    (ANY32, ANY, "CB", &[frame!(0x3b, 0x3b)], gp(0x38), "SDM vol. 2B, RET: CS is data"),
    (ANY32, ANY, "CB", &[frame!(0x53, 0x3b), Gdt(0x50, system(0xeb))], gp(0x50), "SDM vol. 2B, RET: CS is a system segment"),
    (ANY32, OUTER, "CB", &[frame!(0x18, 0)], gp(0x18), "SDM vol. 2B, RET: RPL<CPL"),
    (ANY32, ANY, "CB", &[frame!(0x1b, 0x3b)], gp(0x18), "SDM vol. 2B, RET: DPL is not RPL"),
    (ANY32, CPL0, "CB", &[frame!(0x50, 0), Gdt(0x50, seg(0xfe))], gp(0x50), "SDM vol. 2B, RET: conforming, DPL>RPL"),
    (ANY32, CPL0, "CB", &[frame!(0x50, 0), Gdt(0x50, seg(0x1a))], np(0x50), "SDM vol. 2B, RET: not present"),
    (ANY32, CPL3, "CB", &[frame!(0x53, 0x3b), Gdt(0x50, seg(0x7a))], np(0x50), "SDM vol. 2B, RET: not present"),
    (IA32E, CPL0, "CB", &[frame!(0x50, 0), Gdt(0x50, L_AND_D)], gp(0x50), "SDM vol. 2B, RET: L and D"),
    (ANY32, CPL0, "CB", &[frame!(0x50, 0), Gdt(0x50, SHORT)], GP0, "SDM vol. 2B, RET: offset beyond the limit"),
    (CODE32, CPL0, "CB", &[frame!(0x18, 0)], Is(|r| arrived(r, 0x18, 0) && r.cpu().rsp() == STACK + 8), "SDM vol. 2B, RET"),
    (CODE32, CPL0, "CA 04 00", &[frame!(0x18, 0)], Is(|r| arrived(r, 0x18, 0) && r.cpu().rsp() == STACK + 12), "SDM vol. 2B, RET: imm16"),
    (ANY32, CPL0, "CB", &[frame!(0x43, 0)], GP0, "SDM vol. 2B, RET: null SS"),
    (ANY32, CPL0, "CB", &[frame!(0x43, 0x38)], gp(0x38), "SDM vol. 2B, RET: RPL of SS"),
    (ANY32, CPL0, "CB", &[frame!(0x43, 0x13)], gp(0x10), "SDM vol. 2B, RET: DPL of SS"),
    (ANY32, CPL0, "CB", &[frame!(0x43, 0x43)], gp(0x40), "SDM vol. 2B, RET: SS is code"),
    (ANY32, CPL0, "CB", &[frame!(0x43, 0x53), Gdt(0x50, seg(0xf0))], gp(0x50), "SDM vol. 2B, RET: SS is read-only"),
    (ANY32, CPL0, "CB", &[frame!(0x43, 0x53), Gdt(0x50, seg(0x72))], ss(0x50), "SDM vol. 2B, RET: SS not present"),
    (ANY32, CPL0 | CPL1 | CPL2, "CB", &[frame!(0x43, 0x3b)], Is(|r| arrived(r, 0x43, 3) && r.cpu().rsp() == 0x3_0000), "SDM vol. 2B, RET: outer level"),
    (ANY32, CPL0, "CB", &[frame!(0x43, 0x3b)], Is(|r| r.cpu().segment(Seg::Ds).unusable && r.cpu().segment(Seg::Gs).unusable), "SDM vol. 3A, 5.8.6: inner data segments become null"),
    (REAL, CPL0, "CB", &[Stack(&[0, 0x10, 3, 2])], Is(|r| r.cpu().rip() == 0x1000 && r.cpu().segment(Seg::Cs).base == 0x2030), "SDM vol. 2B, RET: any selector"),
    (UNPROTECTED, ANY, "66 CB", &[Stack(&[0, 0, 1, 0, 3, 2, 0, 0])], GP0, "SDM vol. 2B, RET: offset beyond the limit"),
    (P16, ANY, "CB", &[Stack(&[0, 0x10, 3, 2])], gp(0x200), "SDM vol. 2B, RET: CS beyond the limit"),
    (LONG, ANY, "48 CB", &[Stack(&[0, 0, 0, 0, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 0, 0])], gp(0x200), "SDM vol. 2B, RET: CS beyond the limit"),
    (LONG, CPL0, "48 CB", &[Stack(&[0, 0, 0, 0, 0, 0x80, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0])], GP0, "SDM vol. 2B, RET: RIP not canonical"),
    (ALL, ANY, "F0 CB", &[], UD, "SDM vol. 2B, RET: LOCK"),
];

#[test]
fn table() {
    check(ROWS);
    check(OTHERS);
}

#[test]
fn calls_refuse_as_jumps_do() {
    let rows: Vec<Row> = ROWS
        .iter()
        .map(|&(modes, cpls, hex, sets, want, source)| {
            let call = match hex {
                "FF 2F" => "FF 1F",
                "66 FF 2F" => "66 FF 1F",
                "48 FF 2F" => "48 FF 1F",
                "FF EF" => "FF DF",
                _ => "F0 FF 1F",
            };
            (modes, cpls, call, sets, want, source)
        })
        .collect();
    check(&rows);
}
