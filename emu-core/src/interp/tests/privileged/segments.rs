//! Loads of ES, SS, DS, FS and GS: MOV, POP, LDS to LSS × descriptor type × DPL × RPL × CPL × presence.

use super::Set::*;
use super::Want::*;
use super::*;

const fn ax(v: u64) -> Set {
    Reg(Gpr::Rax, v)
}
fn es(r: &mut Rig) -> Segment {
    *r.cpu().segment(Seg::Es)
}
fn stack_segment(r: &mut Rig) -> Segment {
    *r.cpu().segment(Seg::Ss)
}

/// MOV ES, AX; each row is run for DS, FS and GS too.
#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    (UNPROTECTED, ANY, "8E C0", &[ax(0x203)], Is(|r| es(r).base == 0x2030 && es(r).selector.0 == 0x203), "SDM vol. 2B, MOV: any selector"),
    (PROTECTED, ANY, "8E C0", &[ax(3)], Is(|r| es(r).unusable && es(r).selector.0 == 3), "SDM vol. 2B, MOV: null"),
    (PROTECTED, ANY, "8E C0", &[ax(0x203)], gp(0x200), "SDM vol. 2B, MOV: beyond the limit"),
    (PROTECTED, ANY, "8E C0", &[ax(0x54)], gp(0x54), "SDM vol. 2B, MOV: no LDT"),
    (PROTECTED, CPL0, "8E C0", &[ax(0x50), Gdt(0x50, seg(0x92))], Is(|r| es(r).typ == 3), "SDM vol. 2B, MOV: writable; accessed"),
    (PROTECTED, CPL0, "8E C0", &[ax(0x50), Gdt(0x50, seg(0x90))], Is(|r| es(r).typ == 1), "SDM vol. 2B, MOV: read-only"),
    (PROTECTED, CPL0, "8E C0", &[ax(0x50), Gdt(0x50, seg(0x96))], Is(|r| es(r).typ == 7), "SDM vol. 2B, MOV: expand-down"),
    (PROTECTED, CPL0, "8E C0", &[ax(0x50), Gdt(0x50, seg(0x9a))], Is(|r| es(r).typ == 11), "SDM vol. 2B, MOV: readable code"),
    (PROTECTED, ANY, "8E C0", &[ax(0x53), Gdt(0x50, seg(0x98))], gp(0x50), "SDM vol. 2B, MOV: execute-only"),
    (PROTECTED, ANY, "8E C0", &[ax(0x53), Gdt(0x50, seg(0x9c))], gp(0x50), "SDM vol. 2B, MOV: conforming, execute-only"),
    (PROTECTED, ANY, "8E C0", &[ax(0x53), Gdt(0x50, seg(0x9e))], Done, "SDM vol. 2B, MOV: conforming, no privilege check"),
    (PROTECTED, OUTER, "8E C0", &[ax(0x50), Gdt(0x50, seg(0x92))], gp(0x50), "SDM vol. 2B, MOV: CPL>DPL"),
    (PROTECTED, CPL0, "8E C0", &[ax(0x51), Gdt(0x50, seg(0x92))], gp(0x50), "SDM vol. 2B, MOV: RPL>DPL"),
    (PROTECTED, CPL2 | CPL3, "8E C0", &[ax(0x50), Gdt(0x50, seg(0xb2))], gp(0x50), "SDM vol. 2B, MOV: CPL>DPL"),
    (PROTECTED, CPL0 | CPL1, "8E C0", &[ax(0x51), Gdt(0x50, seg(0xb2))], Done, "SDM vol. 2B, MOV: DPL 1"),
    (PROTECTED, ANY, "8E C0", &[ax(0x53), Gdt(0x50, seg(0xf2))], Done, "SDM vol. 2B, MOV: DPL 3"),
    (PROTECTED, ANY, "8E C0", &[ax(0x53), Gdt(0x50, seg(0x72))], np(0x50), "SDM vol. 2B, MOV: not present"),
    (PROTECTED, OUTER, "8E C0", &[ax(0x50), Gdt(0x50, seg(0x12))], gp(0x50), "SDM vol. 2B, MOV: privilege before presence"),
    (PROTECTED, CPL0, "8E C0", &[ax(0x50), Gdt(0x50, system(0x82))], gp(0x50), "SDM vol. 2B, MOV: LDT"),
    (PROTECTED, CPL0, "8E C0", &[ax(0x50), Gdt(0x50, system(0x89))], gp(0x50), "SDM vol. 2B, MOV: TSS"),
    (PROTECTED, CPL0, "8E C0", &[ax(0x50), Gdt(0x50, gate(0x8c, 8, 0))], gp(0x50), "SDM vol. 2B, MOV: gate"),
];

/// SS, and the forms.
#[rustfmt::skip]
pub(super) static OTHERS: &[Row] = &[
    (UNPROTECTED, ANY, "8E D0", &[ax(0x203)], Is(|r| stack_segment(r).base == 0x2030), "SDM vol. 2B, MOV SS: any selector"),
    (NOT64.or(LONG), CPL0, "8E C8", &[ax(0x18)], UD, "SDM vol. 2B, MOV: CS"),
    (ALL, ANY, "8E F0", &[], UD, "SDM vol. 2B, MOV: no such segment register"),
    (ALL, ANY, "8E F8", &[], UD, "SDM vol. 2B, MOV: no such segment register"),
    (ALL, ANY, "8C F0", &[], UD, "SDM vol. 2B, MOV: no such segment register"),
    (ALL, ANY, "F0 8E D0", &[], UD, "SDM vol. 2B, MOV: LOCK"),
    (LEGACY.or(COMPAT), ANY, "8E D0", &[ax(0)], GP0, "SDM vol. 2B, MOV SS: null"),
    (LONG, CPL0, "8E D0", &[ax(0)], Is(|r| stack_segment(r).unusable), "SDM vol. 2B, MOV SS: null in 64-bit mode"),
    (LONG, CPL1, "8E D0", &[ax(1)], Is(|r| stack_segment(r).unusable), "SDM vol. 2B, MOV SS: null in 64-bit mode, RPL=CPL"),
    (LONG, CPL0, "8E D0", &[ax(1)], GP0, "SDM vol. 2B, MOV SS: null in 64-bit mode, RPL is not CPL"),
    (LONG, CPL3, "8E D0", &[ax(3)], GP0, "SDM vol. 2B, MOV SS: null at CPL 3"),
    (PROTECTED, ANY, "8E D0", &[ax(0x203)], gp(0x200), "SDM vol. 2B, MOV SS: beyond the limit"),
    (PROTECTED, CPL0, "8E D0", &[ax(0x50), Gdt(0x50, seg(0x92))], Done, "SDM vol. 2B, MOV SS"),
    (PROTECTED, CPL0, "8E D0", &[ax(0x50), Gdt(0x50, seg(0x96))], Done, "SDM vol. 2B, MOV SS: expand-down"),
    (PROTECTED, CPL1, "8E D0", &[ax(0x51), Gdt(0x50, seg(0xb2))], Done, "SDM vol. 2B, MOV SS"),
    (PROTECTED, CPL3, "8E D0", &[ax(0x53), Gdt(0x50, seg(0xf2))], Done, "SDM vol. 2B, MOV SS"),
    (PROTECTED, CPL0, "8E D0", &[ax(0x51), Gdt(0x50, seg(0x92))], gp(0x50), "SDM vol. 2B, MOV SS: RPL is not CPL"),
    (PROTECTED, CPL3, "8E D0", &[ax(0x50), Gdt(0x50, seg(0xf2))], gp(0x50), "SDM vol. 2B, MOV SS: RPL is not CPL"),
    (PROTECTED, CPL0, "8E D0", &[ax(0x50), Gdt(0x50, seg(0xf2))], gp(0x50), "SDM vol. 2B, MOV SS: DPL is not CPL"),
    (PROTECTED, CPL3, "8E D0", &[ax(0x53), Gdt(0x50, seg(0x92))], gp(0x50), "SDM vol. 2B, MOV SS: DPL is not CPL"),
    (PROTECTED, CPL0, "8E D0", &[ax(0x50), Gdt(0x50, seg(0x90))], gp(0x50), "SDM vol. 2B, MOV SS: read-only"),
    (PROTECTED, CPL0, "8E D0", &[ax(0x50), Gdt(0x50, seg(0x9a))], gp(0x50), "SDM vol. 2B, MOV SS: code"),
    (PROTECTED, CPL0, "8E D0", &[ax(0x50), Gdt(0x50, system(0x89))], gp(0x50), "SDM vol. 2B, MOV SS: system"),
    (PROTECTED, CPL0, "8E D0", &[ax(0x50), Gdt(0x50, seg(0x12))], ss(0x50), "SDM vol. 2B, MOV SS: not present"),
    (PROTECTED, CPL3, "8E D0", &[ax(0x53), Gdt(0x50, seg(0x72))], ss(0x50), "SDM vol. 2B, MOV SS: not present"),
    (PROTECTED, CPL0, "8E D0", &[ax(0x50), Gdt(0x50, seg(0x10))], gp(0x50), "SDM vol. 2B, MOV SS: type before presence"),
    // ---- POP: the pointer does not move on a fault
    (PROTECTED, ANY, "0F A1", &[Stack(&[3, 2, 0, 0, 0, 0, 0, 0])], gp(0x200), "SDM vol. 2B, POP FS: beyond the limit"),
    (PROTECTED, ANY, "66 0F A1", &[Stack(&[3, 2, 0, 0])], gp(0x200), "SDM vol. 2B, POP FS: beyond the limit"),
    (PROTECTED, ANY, "0F A9", &[Stack(&[0x53, 0, 0, 0, 0, 0, 0, 0]), Gdt(0x50, seg(0x72))], np(0x50), "SDM vol. 2B, POP GS: not present"),
    (PROTECTED, ANY, "66 0F A9", &[Stack(&[0x53, 0, 0, 0]), Gdt(0x50, seg(0x72))], np(0x50), "SDM vol. 2B, POP GS: not present"),
    (LEGACY.or(COMPAT), ANY, "07", &[Stack(&[0x53, 0, 0, 0]), Gdt(0x50, seg(0x98))], gp(0x50), "SDM vol. 2B, POP ES: execute-only"),
    (LEGACY.or(COMPAT), ANY, "66 07", &[Stack(&[0x53, 0, 0, 0]), Gdt(0x50, seg(0x98))], gp(0x50), "SDM vol. 2B, POP ES: execute-only"),
    (LEGACY.or(COMPAT), ANY, "1F", &[Stack(&[0x53, 0, 0, 0]), Gdt(0x50, seg(0x98))], gp(0x50), "SDM vol. 2B, POP DS: execute-only"),
    (LEGACY.or(COMPAT), ANY, "66 1F", &[Stack(&[0x53, 0, 0, 0]), Gdt(0x50, seg(0x98))], gp(0x50), "SDM vol. 2B, POP DS: execute-only"),
    (LEGACY.or(COMPAT), ANY, "17", &[Stack(&[0, 0, 0, 0])], GP0, "SDM vol. 2B, POP SS: null"),
    (LEGACY.or(COMPAT), ANY, "66 17", &[Stack(&[0, 0, 0, 0])], GP0, "SDM vol. 2B, POP SS: null"),
    (LEGACY.or(COMPAT), CPL0, "17", &[Stack(&[0x50, 0, 0, 0]), Gdt(0x50, seg(0x12))], ss(0x50), "SDM vol. 2B, POP SS: not present"),
    (UNPROTECTED, ANY, "07", &[Stack(&[3, 2])], Is(|r| es(r).base == 0x2030 && sp(r) == 0x8002), "SDM vol. 2B, POP ES: any selector"),
    (UNPROTECTED, ANY, "66 07", &[Stack(&[3, 2, 0, 0])], Is(|r| es(r).base == 0x2030 && sp(r) == 0x8004), "SDM vol. 2B, POP ES: any selector"),
    (LONG, ANY, "07", &[], UD, "SDM vol. 2B, POP ES: 64-bit mode"),
    (LONG, ANY, "17", &[], UD, "SDM vol. 2B, POP SS: 64-bit mode"),
    (LONG, ANY, "1F", &[], UD, "SDM vol. 2B, POP DS: 64-bit mode"),
    // ---- PUSH
    (LEGACY.or(COMPAT), ANY, "06", &[], Done, "SDM vol. 2B, PUSH ES"),
    (NOT64, ANY, "0E", &[], Done, "SDM vol. 2B, PUSH CS"),
    (NOT64, ANY, "16", &[], Done, "SDM vol. 2B, PUSH SS"),
    (NOT64, ANY, "1E", &[], Done, "SDM vol. 2B, PUSH DS"),
    (NOT64, ANY, "66 06", &[], Done, "SDM vol. 2B, PUSH ES"),
    (NOT64, ANY, "66 0E", &[], Done, "SDM vol. 2B, PUSH CS"),
    (NOT64, ANY, "66 16", &[], Done, "SDM vol. 2B, PUSH SS"),
    (NOT64, ANY, "66 1E", &[], Done, "SDM vol. 2B, PUSH DS"),
    (LONG, ANY, "06", &[], UD, "SDM vol. 2B, PUSH ES: 64-bit mode"),
    (LONG, ANY, "0E", &[], UD, "SDM vol. 2B, PUSH CS: 64-bit mode"),
    (LONG, ANY, "16", &[], UD, "SDM vol. 2B, PUSH SS: 64-bit mode"),
    (LONG, ANY, "1E", &[], UD, "SDM vol. 2B, PUSH DS: 64-bit mode"),
    (LONG, ANY, "0F A0", &[], Is(|r| sp(r) == STACK - 8), "SDM vol. 2B, PUSH FS"),
    (LONG, ANY, "66 0F A8", &[], Is(|r| sp(r) == STACK - 2), "SDM vol. 2B, PUSH GS"),
    // ---- LDS to LSS
    (UNPROTECTED, ANY, "C4 07", &[Mem(&[0x34, 0x12, 3, 2])], Is(|r| es(r).base == 0x2030 && r.get(Gpr::Rax) == 0x1234), "SDM vol. 2A, LES: any selector"),
    (CODE32, ANY, "C4 07", &[Mem(&[0, 0, 0, 0, 3, 2])], gp(0x200), "SDM vol. 2A, LES: beyond the limit"),
    (CODE32, ANY, "66 C4 07", &[Mem(&[0, 0, 3, 2])], gp(0x200), "SDM vol. 2A, LES: beyond the limit"),
    (CODE32, ANY, "C5 07", &[Mem(&[0, 0, 0, 0, 3, 2])], gp(0x200), "SDM vol. 2A, LDS: beyond the limit"),
    (CODE32, ANY, "66 C5 07", &[Mem(&[0, 0, 3, 2])], gp(0x200), "SDM vol. 2A, LDS: beyond the limit"),
    (CODE32.or(LONG), ANY, "0F B4 07", &[Mem(&[0, 0, 0, 0, 0x53, 0]), Gdt(0x50, seg(0x72))], np(0x50), "SDM vol. 2A, LFS: not present"),
    (CODE32.or(LONG), ANY, "0F B5 07", &[Mem(&[0, 0, 0, 0, 0x53, 0]), Gdt(0x50, seg(0x98))], gp(0x50), "SDM vol. 2A, LGS: execute-only"),
    (CODE32, ANY, "0F B2 07", &[Mem(&[0; 8])], GP0, "SDM vol. 2A, LSS: null"),
    (CODE32.or(LONG), CPL0, "0F B2 07", &[Mem(&[0, 0, 0, 0, 0x50, 0]), Gdt(0x50, seg(0x12))], ss(0x50), "SDM vol. 2A, LSS: not present"),
    (LONG, ANY, "48 0F B2 07", &[Mem(&[0, 0, 0, 0, 0, 0, 0, 0, 3, 2])], gp(0x200), "SDM vol. 2A, LSS: m16:64"),
    (LONG, ANY, "C4 07", &[], UD, "SDM vol. 2A, LES: 64-bit mode"),
    (LONG, ANY, "C5 07", &[], UD, "SDM vol. 2A, LDS: 64-bit mode"),
    (ALL, ANY, "0F B4 C7", &[], UD, "SDM vol. 2A, LFS: a register operand"),
];

fn sp(r: &mut Rig) -> u64 {
    r.cpu().rsp()
}

#[test]
fn table() {
    check(ROWS);
    check(OTHERS);
}

#[test]
fn the_same_for_ds_fs_and_gs() {
    for hex in ["8E D8", "8E E0", "8E E8"] {
        let refusals = ROWS.iter().filter(|row| matches!(row.4, Raise(..)));
        let rows: Vec<Row> = refusals.map(|&(m, c, _, s, w, source)| (m, c, hex, s, w, source)).collect();
        check(&rows);
    }
}
