//! What a mode does not have, what LOCK may stand before, and what the operand-size, address-size and REX prefixes do to stack
//! and branch instructions in each mode.

use super::Set::*;
use super::Want::*;
use super::*;

/// How far the stack pointer went down.
fn pushed(r: &mut Rig, n: u64) -> bool {
    r.cpu().rsp() & 0xffff == (STACK - n) & 0xffff
}
fn popped(r: &mut Rig, n: u64) -> bool {
    r.cpu().rsp() & 0xffff == (STACK + n) & 0xffff
}
/// RIP as an offset from where the instruction is, which is 0 in the 16-bit modes and [`CODE`] in the others.
fn moved(r: &mut Rig, n: u64) -> bool {
    let at = CODE - r.cpu().segment(Seg::Cs).base;
    r.cpu().rip() == at + n
}
/// RCX with a low half of 0 above 16 bits, and with one above 32.
const ABOVE16: Set = Reg(Gpr::Rcx, 0x1_0000);
const ABOVE32: Set = Reg(Gpr::Rcx, 0x1_0000_0000);
const fn cx(v: u64) -> Set {
    Reg(Gpr::Rcx, v)
}

#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    // ---- not in 64-bit mode
    (LONG, ANY, "27", &[], UD, "SDM vol. 2A, DAA: 64-bit mode"),
    (LONG, ANY, "2F", &[], UD, "SDM vol. 2A, DAS: 64-bit mode"),
    (LONG, ANY, "37", &[], UD, "SDM vol. 2A, AAA: 64-bit mode"),
    (LONG, ANY, "3F", &[], UD, "SDM vol. 2A, AAS: 64-bit mode"),
    (LONG, ANY, "60", &[], UD, "SDM vol. 2B, PUSHA: 64-bit mode"),
    (LONG, ANY, "61", &[], UD, "SDM vol. 2B, POPA: 64-bit mode"),
    (LONG, ANY, "82 C0 01", &[], UD, "SDM vol. 2D, table A-2: 82H in 64-bit mode"),
    (LONG, ANY, "D4 0A", &[], UD, "SDM vol. 2A, AAM: 64-bit mode"),
    (LONG, ANY, "D5 0A", &[], UD, "SDM vol. 2A, AAD: 64-bit mode"),
    (LONG, ANY, "D6", &[], UD, "SDM vol. 2D, table A-2: D6H in 64-bit mode"),
    (NOT64, ANY, "27", &[], Done, "SDM vol. 2A, DAA"),
    (NOT64, ANY, "2F", &[], Done, "SDM vol. 2A, DAS"),
    (NOT64, ANY, "37", &[], Done, "SDM vol. 2A, AAA"),
    (NOT64, ANY, "3F", &[], Done, "SDM vol. 2A, AAS"),
    (NOT64, ANY, "82 C0 01", &[], Get(Gpr::Rax, 1), "SDM vol. 2D, table A-2: 82H is 80H"),
    (NOT64, ANY, "D4 0A", &[Reg(Gpr::Rax, 25)], Get(Gpr::Rax, 0x205), "SDM vol. 2A, AAM"),
    (NOT64, ANY, "D4 00", &[], Raise(Vector::De, 0), "SDM vol. 2A, AAM: #DE"),
    (NOT64, ANY, "D5 0A", &[Reg(Gpr::Rax, 0x205)], Get(Gpr::Rax, 25), "SDM vol. 2A, AAD"),
    (CODE16, ANY, "40", &[], Get(Gpr::Rax, 1), "SDM vol. 2A, INC: 40H"),
    (CODE32, ANY, "40", &[], Get(Gpr::Rax, 1), "SDM vol. 2A, INC: 40H"),
    (CODE16, ANY, "60", &[], Is(|r| pushed(r, 16)), "SDM vol. 2B, PUSHA"),
    (CODE16, ANY, "66 60", &[], Is(|r| pushed(r, 32)), "SDM vol. 2B, PUSHAD"),
    (CODE32, ANY, "60", &[], Is(|r| pushed(r, 32)), "SDM vol. 2B, PUSHAD"),
    (CODE32, ANY, "66 61", &[], Is(|r| popped(r, 16)), "SDM vol. 2B, POPA"),
    (CODE32, ANY, "61", &[], Is(|r| popped(r, 32)), "SDM vol. 2B, POPAD"),
    (NOT64, ANY, "82 C8 01", &[], Get(Gpr::Rax, 0x1), "SDM vol. 2D, table A-6: 82H /1 is OR"),
    (LONG, ANY, "82 C8 01", &[], UD, "SDM vol. 2D, table A-2: 82H in 64-bit mode"),
    (NOT64, ANY, "82 D0 01", &[], Get(Gpr::Rax, 0x1), "SDM vol. 2D, table A-6: 82H /2 is ADC"),
    (LONG, ANY, "82 D0 01", &[], UD, "SDM vol. 2D, table A-2: 82H in 64-bit mode"),
    (NOT64, ANY, "82 D8 01", &[], Get(Gpr::Rax, 0xff), "SDM vol. 2D, table A-6: 82H /3 is SBB"),
    (LONG, ANY, "82 D8 01", &[], UD, "SDM vol. 2D, table A-2: 82H in 64-bit mode"),
    (NOT64, ANY, "82 E0 01", &[], Get(Gpr::Rax, 0x0), "SDM vol. 2D, table A-6: 82H /4 is AND"),
    (LONG, ANY, "82 E0 01", &[], UD, "SDM vol. 2D, table A-2: 82H in 64-bit mode"),
    (NOT64, ANY, "82 E8 01", &[], Get(Gpr::Rax, 0xff), "SDM vol. 2D, table A-6: 82H /5 is SUB"),
    (LONG, ANY, "82 E8 01", &[], UD, "SDM vol. 2D, table A-2: 82H in 64-bit mode"),
    (NOT64, ANY, "82 F0 01", &[], Get(Gpr::Rax, 0x1), "SDM vol. 2D, table A-6: 82H /6 is XOR"),
    (LONG, ANY, "82 F0 01", &[], UD, "SDM vol. 2D, table A-2: 82H in 64-bit mode"),
    (NOT64, ANY, "82 F8 01", &[], Get(Gpr::Rax, 0x0), "SDM vol. 2D, table A-6: 82H /7 is CMP"),
    (LONG, ANY, "82 F8 01", &[], UD, "SDM vol. 2D, table A-2: 82H in 64-bit mode"),
    (NOT64, ANY, "48", &[], Is(|r| r.get(Gpr::Rax) & 0xffff == 0xffff), "SDM vol. 2A, DEC: 48H"),
    (NOT64, ANY, "D6", &[Flags(Rflags::CF)], Get(Gpr::Rax, 0xff), "SALC, which the SDM does not list"),
    (ALL, ANY, "70 10", &[], Is(|r| moved(r, 0x2)), "SDM vol. 2A, JO: flags clear"),
    (ALL, ANY, "71 10", &[], Is(|r| moved(r, 0x12)), "SDM vol. 2A, JNO: flags clear"),
    (ALL, ANY, "72 10", &[], Is(|r| moved(r, 0x2)), "SDM vol. 2A, JB: flags clear"),
    (ALL, ANY, "73 10", &[], Is(|r| moved(r, 0x12)), "SDM vol. 2A, JAE: flags clear"),
    (ALL, ANY, "74 10", &[], Is(|r| moved(r, 0x2)), "SDM vol. 2A, JE: flags clear"),
    (ALL, ANY, "75 10", &[], Is(|r| moved(r, 0x12)), "SDM vol. 2A, JNE: flags clear"),
    (ALL, ANY, "76 10", &[], Is(|r| moved(r, 0x2)), "SDM vol. 2A, JBE: flags clear"),
    (ALL, ANY, "77 10", &[], Is(|r| moved(r, 0x12)), "SDM vol. 2A, JA: flags clear"),
    (ALL, ANY, "78 10", &[], Is(|r| moved(r, 0x2)), "SDM vol. 2A, JS: flags clear"),
    (ALL, ANY, "79 10", &[], Is(|r| moved(r, 0x12)), "SDM vol. 2A, JNS: flags clear"),
    (ALL, ANY, "7A 10", &[], Is(|r| moved(r, 0x2)), "SDM vol. 2A, JP: flags clear"),
    (ALL, ANY, "7B 10", &[], Is(|r| moved(r, 0x12)), "SDM vol. 2A, JNP: flags clear"),
    (ALL, ANY, "7C 10", &[], Is(|r| moved(r, 0x2)), "SDM vol. 2A, JL: flags clear"),
    (ALL, ANY, "7D 10", &[], Is(|r| moved(r, 0x12)), "SDM vol. 2A, JGE: flags clear"),
    (ALL, ANY, "7E 10", &[], Is(|r| moved(r, 0x2)), "SDM vol. 2A, JLE: flags clear"),
    (ALL, ANY, "7F 10", &[], Is(|r| moved(r, 0x12)), "SDM vol. 2A, JG: flags clear"),
    (ALL, ANY, "E1 10", &[cx(2)], Is(|r| moved(r, 2) && r.get(Gpr::Rcx) == 1), "SDM vol. 2A, LOOPE: ZF clear"),
    (ALL, ANY, "E0 10", &[cx(2)], Is(|r| moved(r, 0x12) && r.get(Gpr::Rcx) == 1), "SDM vol. 2A, LOOPNE: ZF clear"),
    // ---- LOCK
    (ALL, ANY, "F0 01 07", &[], Done, "SDM vol. 2A, LOCK: ADD m, r"),
    (ALL, ANY, "F0 03 07", &[], UD, "SDM vol. 2A, LOCK: ADD r, m"),
    (ALL, ANY, "F0 01 C0", &[], UD, "SDM vol. 2A, LOCK: a register destination"),
    (ALL, ANY, "F0 38 07", &[], UD, "SDM vol. 2A, LOCK: CMP"),
    (ALL, ANY, "F0 87 07", &[], Done, "SDM vol. 2A, LOCK: XCHG"),
    (ALL, ANY, "F0 0F B1 07", &[], Done, "SDM vol. 2A, LOCK: CMPXCHG"),
    (ALL, ANY, "F0 0F C1 07", &[], Done, "SDM vol. 2A, LOCK: XADD"),
    (ALL, ANY, "F0 0F C7 0F", &[], Done, "SDM vol. 2A, LOCK: CMPXCHG8B"),
    (ALL, ANY, "F0 0F BA 2F 00", &[], Done, "SDM vol. 2A, LOCK: BTS"),
    (ALL, ANY, "F0 0F BA 27 00", &[], UD, "SDM vol. 2A, LOCK: BT"),
    (ALL, ANY, "F0 88 07", &[], UD, "SDM vol. 2A, LOCK: MOV"),
    (ALL, ANY, "F0 90", &[], UD, "SDM vol. 2A, LOCK: NOP"),
    (ALL, ANY, "F0 A4", &[], UD, "SDM vol. 2A, LOCK: MOVS"),
    (ALL, ANY, "F0 50", &[], UD, "SDM vol. 2A, LOCK: PUSH"),
    (ALL, ANY, "F0 0F 0B", &[], UD, "SDM vol. 2C, UD2"),
    (ALL, ANY, "0F 0B", &[], UD, "SDM vol. 2C, UD2"),
    (ALL, ANY, "0F B9 C0", &[], UD, "SDM vol. 2C, UD1"),
    (ALL, ANY, "0F FF C0", &[], UD, "SDM vol. 2C, UD0"),
    // ---- PUSH, POP, ENTER, LEAVE by operand size
    (CODE16, ANY, "50", &[], Is(|r| pushed(r, 2)), "SDM vol. 2B, PUSH"),
    (CODE16, ANY, "66 50", &[], Is(|r| pushed(r, 4)), "SDM vol. 2B, PUSH"),
    (CODE32, ANY, "50", &[], Is(|r| pushed(r, 4)), "SDM vol. 2B, PUSH"),
    (CODE32.or(LONG), ANY, "66 50", &[], Is(|r| pushed(r, 2)), "SDM vol. 2B, PUSH"),
    (LONG, ANY, "50", &[], Is(|r| pushed(r, 8)), "SDM vol. 2B, PUSH: 64 bits by default"),
    (LONG, ANY, "66 48 50", &[], Is(|r| pushed(r, 8)), "SDM vol. 2A, 2.2.1.2: REX.W before 66H"),
    (LONG, ANY, "48 66 50", &[], Is(|r| pushed(r, 2)), "SDM vol. 2A, 2.2.1: REX before a legacy prefix is ignored"),
    (LONG, ANY, "48 66 01 C1", &[Reg(Gpr::Rax, !0), cx(0)], Get(Gpr::Rcx, 0xffff), "SDM vol. 2A, 2.2.1: REX before a legacy prefix is ignored"),
    (LONG, ANY, "67 50", &[], Is(|r| pushed(r, 8)), "SDM vol. 2B, PUSH: the stack's address size is not the prefix's"),
    (CODE16, ANY, "6A 80", &[], Is(|r| pushed(r, 2) && stacked(r, 0, 2) == 0xff80), "SDM vol. 2B, PUSH imm8: sign-extended"),
    (LONG, ANY, "68 00 00 00 80", &[], Is(|r| pushed(r, 8) && stacked(r, 0, 8) == 0xffff_ffff_8000_0000), "SDM vol. 2B, PUSH imm32: sign-extended"),
    (CODE16, ANY, "58", &[], Is(|r| popped(r, 2)), "SDM vol. 2B, POP"),
    (CODE32, ANY, "58", &[], Is(|r| popped(r, 4)), "SDM vol. 2B, POP"),
    (LONG, ANY, "58", &[], Is(|r| popped(r, 8)), "SDM vol. 2B, POP"),
    (LONG, ANY, "66 58", &[], Is(|r| popped(r, 2)), "SDM vol. 2B, POP"),
    (CODE16, ANY, "C8 10 00 00", &[], Is(|r| pushed(r, 18)), "SDM vol. 2A, ENTER"),
    (CODE16, ANY, "66 C8 10 00 00", &[], Is(|r| pushed(r, 20)), "SDM vol. 2A, ENTER"),
    (CODE32, ANY, "C8 10 00 00", &[], Is(|r| pushed(r, 20)), "SDM vol. 2A, ENTER"),
    (LONG, ANY, "C8 10 00 00", &[], Is(|r| pushed(r, 24)), "SDM vol. 2A, ENTER"),
    (LONG, ANY, "66 C8 10 00 00", &[], Is(|r| pushed(r, 18)), "SDM vol. 2A, ENTER"),
    (LONG, ANY, "C9", &[Reg(Gpr::Rbp, STACK)], Is(|r| popped(r, 8)), "SDM vol. 2A, LEAVE"),
    (LONG, ANY, "66 C9", &[Reg(Gpr::Rbp, STACK)], Is(|r| popped(r, 2)), "SDM vol. 2A, LEAVE"),
    (CODE32, ANY, "C9", &[Reg(Gpr::Rbp, STACK)], Is(|r| popped(r, 4)), "SDM vol. 2A, LEAVE"),
    // ---- near branches by operand size
    (CODE16, ANY, "E9 00 10", &[], Is(|r| moved(r, 0x1003)), "SDM vol. 2A, JMP rel16"),
    (CODE16, ANY, "66 E9 00 10 00 00", &[], Is(|r| moved(r, 0x1006)), "SDM vol. 2A, JMP rel32"),
    (CODE16, ANY, "66 E9 00 00 01 00", &[], GP0, "SDM vol. 2A, JMP: beyond the limit"),
    (CODE16, ANY, "E9 FD EF", &[], Is(|r| r.cpu().rip() == 0xf000), "SDM vol. 2A, JMP: IP wraps"),
    (CODE16, ANY, "EB 80", &[], Is(|r| r.cpu().rip() == 0xff82), "SDM vol. 2A, JMP rel8: IP wraps"),
    (CODE32, ANY, "E9 00 10 00 00", &[], Is(|r| moved(r, 0x1005)), "SDM vol. 2A, JMP rel32"),
    (CODE32, ANY, "66 E9 00 10", &[], Is(|r| r.cpu().rip() == (CODE + 0x1004) & 0xffff), "SDM vol. 2A, JMP rel16: EIP AND FFFFH"),
    (CODE32, ANY, "66 EB 10", &[], Is(|r| r.cpu().rip() == (CODE + 0x13) & 0xffff), "SDM vol. 2A, JMP rel8: EIP AND FFFFH"),
    (LONG, ANY, "E9 00 10 00 00", &[], Is(|r| moved(r, 0x1005)), "SDM vol. 2A, JMP rel32"),
    (LONG, ANY, "66 E9 00 10 00 00", &[], Is(|r| moved(r, 0x1006)), "SDM vol. 2A, JMP: 66H is ignored in 64-bit mode"),
    (LONG, ANY, "66 EB 10", &[], Is(|r| moved(r, 0x13)), "SDM vol. 2A, JMP: 66H is ignored in 64-bit mode"),
    (LONG, ANY, "66 0F 84 00 10 00 00", &[Flags(Rflags::ZF)], Is(|r| moved(r, 0x1007)), "SDM vol. 2A, Jcc: 66H is ignored in 64-bit mode"),
    (CODE16, ANY, "E8 00 10", &[], Is(|r| pushed(r, 2) && moved(r, 0x1003)), "SDM vol. 2A, CALL rel16"),
    (CODE16, ANY, "66 E8 00 10 00 00", &[], Is(|r| pushed(r, 4) && moved(r, 0x1006)), "SDM vol. 2A, CALL rel32"),
    (CODE32, ANY, "66 E8 00 10", &[], Is(|r| pushed(r, 2) && r.cpu().rip() == (CODE + 0x1004) & 0xffff), "SDM vol. 2A, CALL rel16"),
    (LONG, ANY, "66 E8 00 10 00 00", &[], Is(|r| pushed(r, 8) && moved(r, 0x1006)), "SDM vol. 2A, CALL: 66H is ignored in 64-bit mode"),
    (LONG, ANY, "FF E0", &[Reg(Gpr::Rax, 1 << 47)], GP0, "SDM vol. 2A, JMP: not canonical"),
    (LONG, ANY, "FF D0", &[Reg(Gpr::Rax, 1 << 47)], GP0, "SDM vol. 2A, CALL: not canonical"),
    (CODE16, ANY, "66 FF E0", &[Reg(Gpr::Rax, 0x1_0000)], GP0, "SDM vol. 2A, JMP: beyond the limit"),
    (CODE16, ANY, "FF E0", &[Reg(Gpr::Rax, 0x1_1234)], Is(|r| r.cpu().rip() == 0x1234), "SDM vol. 2A, JMP r16"),
    (CODE16, ANY, "C3", &[Stack(&[0x34, 0x12])], Is(|r| popped(r, 2) && r.cpu().rip() == 0x1234), "SDM vol. 2B, RET"),
    (CODE16, ANY, "66 C3", &[Stack(&[0, 0, 1, 0])], GP0, "SDM vol. 2B, RET: beyond the limit"),
    (CODE32, ANY, "66 C3", &[Stack(&[0x34, 0x12])], Is(|r| popped(r, 2) && r.cpu().rip() == 0x1234), "SDM vol. 2B, RET"),
    (LONG, ANY, "C3", &[Stack(&[0, 0, 0, 0, 0, 0x80, 0, 0])], GP0, "SDM vol. 2B, RET: not canonical"),
    (LONG, ANY, "66 C3", &[Stack(&[0x34, 0x12, 1, 0, 0, 0, 0, 0])], Is(|r| popped(r, 8) && r.cpu().rip() == 0x1_1234), "SDM vol. 2B, RET: 66H is ignored in 64-bit mode"),
    // ---- LOOP and JrCXZ by address size
    (CODE16, ANY, "E3 10", &[ABOVE16], Is(|r| moved(r, 0x12)), "SDM vol. 2A, JCXZ: CX"),
    (CODE16, ANY, "67 E3 10", &[ABOVE16], Is(|r| moved(r, 3)), "SDM vol. 2A, JECXZ: ECX"),
    (CODE32, ANY, "67 E3 10", &[ABOVE16], Is(|r| moved(r, 0x13)), "SDM vol. 2A, JCXZ: CX"),
    (CODE32, ANY, "E3 10", &[ABOVE16], Is(|r| moved(r, 2)), "SDM vol. 2A, JECXZ: ECX"),
    (LONG, ANY, "67 E3 10", &[ABOVE32], Is(|r| moved(r, 0x13)), "SDM vol. 2A, JECXZ: ECX"),
    (LONG, ANY, "E3 10", &[ABOVE32], Is(|r| moved(r, 2)), "SDM vol. 2A, JRCXZ: RCX"),
    (CODE16, ANY, "E2 10", &[Reg(Gpr::Rcx, 0x1_0001)], Is(|r| moved(r, 2) && r.get(Gpr::Rcx) == 0x1_0000), "SDM vol. 2A, LOOP: CX"),
    (CODE16, ANY, "67 E2 10", &[Reg(Gpr::Rcx, 0x1_0001)], Is(|r| moved(r, 0x13) && r.get(Gpr::Rcx) == 0x1_0000), "SDM vol. 2A, LOOP: ECX"),
    (LONG, ANY, "67 E2 10", &[Reg(Gpr::Rcx, 0x1_0000_0001)], Is(|r| moved(r, 3) && r.get(Gpr::Rcx) == 0), "SDM vol. 2A, LOOP: ECX, zero-extended"),
    (LONG, ANY, "E2 10", &[Reg(Gpr::Rcx, 0x1_0000_0001)], Is(|r| moved(r, 0x12) && r.get(Gpr::Rcx) == 0x1_0000_0000), "SDM vol. 2A, LOOP: RCX"),
    // ---- string instructions by address size
    (LONG, ANY, "67 AC", &[Reg(Gpr::Rsi, 0xffff_ffff_0000_0000 | DATA), Mem(&[0x55])], Is(|r| r.get(Gpr::Rax) == 0x55 && r.get(Gpr::Rsi) == DATA + 1), "SDM vol. 2A, LODS: ESI, zero-extended"),
    (CODE16, ANY, "AC", &[Reg(Gpr::Rsi, 0x1_ffff)], Is(|r| r.get(Gpr::Rsi) == 0x1_0000), "SDM vol. 2A, LODS: SI wraps"),
    (CODE16, ANY, "67 AC", &[Reg(Gpr::Rsi, 0x1_0000)], GP0, "SDM vol. 2A, LODS: beyond the limit"),
];

#[test]
fn table() {
    check(ROWS);
}
