//! MOV to and from debug registers: privilege, CR4.DE, DR7.GD, reserved bits.

use super::Set::*;
use super::Want::*;
use super::*;

const fn ax(v: u64) -> Set {
    Reg(Gpr::Rax, v)
}
const GD: Set = Set::Dr7Is(Dr7::GD);
const DE: Set = WithCr4(Cr4::DE);

#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    // ---- 0F 21 reads, 0F 23 writes; ModRM.reg is the debug register
    (PE, OUTER, "0F 21 C0", &[Iopl(3)], GP0, "SDM vol. 2B, MOV DR: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 21 F0", &[], GP0, "SDM vol. 2B, MOV DR: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 21 F8", &[], GP0, "SDM vol. 2B, MOV DR: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 23 C0", &[], GP0, "SDM vol. 2B, MOV DR: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 23 F8", &[ax(0x400)], GP0, "SDM vol. 2B, MOV DR: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 21 E0", &[], GP0, "SDM vol. 2B, MOV DR: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 21 C0", &[GD], GP0, "SDM vol. 3A, 6.9: privilege before general detect"),
    (PE, OUTER, "0F 23 F8", &[GD, ax(0x400)], GP0, "SDM vol. 3A, 6.9: privilege before general detect"),
    // ---- DR4 and DR5
    (REAL.or(PROTECTED), CPL0, "0F 21 E0", &[DE], UD, "SDM vol. 2B, MOV DR4: CR4.DE"),
    (REAL.or(PROTECTED), CPL0, "0F 21 E8", &[DE], UD, "SDM vol. 2B, MOV DR5: CR4.DE"),
    (REAL.or(PROTECTED), CPL0, "0F 23 E0", &[DE], UD, "SDM vol. 2B, MOV DR4: CR4.DE"),
    (REAL.or(PROTECTED), CPL0, "0F 23 E8", &[DE], UD, "SDM vol. 2B, MOV DR5: CR4.DE"),
    (REAL.or(PROTECTED), CPL0, "0F 21 E0", &[DE, GD], UD, "SDM vol. 2B, MOV DR4: #UD before #DB"),
    (REAL.or(PROTECTED), CPL0, "0F 21 E0", &[ax(!0)], Is(|r| r.get(Gpr::Rax) == r.cpu().dr6.bits()), "SDM vol. 3B, 17.2.2: DR4 is DR6"),
    (REAL.or(PROTECTED), CPL0, "0F 21 E8", &[ax(!0)], Get(Gpr::Rax, 0x400), "SDM vol. 3B, 17.2.2: DR5 is DR7"),
    (REAL.or(PROTECTED), CPL0, "0F 23 E0", &[ax(1)], Is(|r| r.cpu().dr6.bits() == 0xffff_0ff1), "SDM vol. 3B, 17.2.2: DR4 is DR6"),
    (REAL.or(PROTECTED), CPL0, "0F 23 E8", &[ax(1)], Is(|r| r.cpu().dr7.bits() == 0x401), "SDM vol. 3B, 17.2.2: DR5 is DR7"),
    // ---- general detect
    (REAL.or(PROTECTED), CPL0, "0F 21 C0", &[GD], DB, "SDM vol. 2B, MOV DR: DR7.GD"),
    (REAL.or(PROTECTED), CPL0, "0F 21 D8", &[GD], DB, "SDM vol. 2B, MOV DR: DR7.GD"),
    (REAL.or(PROTECTED), CPL0, "0F 21 E0", &[GD], DB, "SDM vol. 2B, MOV DR: DR7.GD"),
    (REAL.or(PROTECTED), CPL0, "0F 21 F0", &[GD], DB, "SDM vol. 2B, MOV DR: DR7.GD"),
    (REAL.or(PROTECTED), CPL0, "0F 21 F8", &[GD], DB, "SDM vol. 2B, MOV DR: DR7.GD"),
    (REAL.or(PROTECTED), CPL0, "0F 23 C8", &[GD], DB, "SDM vol. 2B, MOV DR: DR7.GD"),
    (REAL.or(PROTECTED), CPL0, "0F 23 F0", &[GD], DB, "SDM vol. 2B, MOV DR: DR7.GD"),
    (REAL.or(PROTECTED), CPL0, "0F 23 F8", &[GD, ax(0x400)], DB, "SDM vol. 2B, MOV DR: DR7.GD"),
    // ---- values
    (REAL.or(PROTECTED), CPL0, "0F 23 C0", &[ax(0x1234_5678)], Is(|r| r.cpu().dr[0] == 0x1234_5678), "SDM vol. 2B, MOV DR"),
    (REAL.or(PROTECTED), CPL0, "66 0F 23 D8", &[ax(0x1234_5678)], Is(|r| r.cpu().dr[3] == 0x1234_5678), "SDM vol. 2B, MOV DR: operand size has no effect"),
    (NOT64, CPL0, "0F 23 D0", &[ax(!0)], Is(|r| r.cpu().dr[2] == 0xffff_ffff), "SDM vol. 2B, MOV DR: 32 bits"),
    (LONG, CPL0, "0F 23 C8", &[ax(1 << 60)], Is(|r| r.cpu().dr[1] == 1 << 60), "SDM vol. 3B, 17.2.6: DR0 to DR3 need not be canonical"),
    (LONG, CPL0, "48 0F 21 C8", &[Do(|r| r.cpu().dr[1] = 1 << 60)], Get(Gpr::Rax, 1 << 60), "SDM vol. 3B, 17.2.6"),
    (REAL.or(PROTECTED), CPL0, "0F 21 00", &[ax(!0)], Get(Gpr::Rax, 0), "SDM vol. 2B, MOV DR: mod is ignored"),
    (LONG, CPL0, "0F 23 F0", &[ax(1 << 32)], GP0, "SDM vol. 2B, MOV DR: DR6[63:32]"),
    (LONG, CPL0, "0F 23 F8", &[ax(1 << 63 | 0x400)], GP0, "SDM vol. 2B, MOV DR: DR7[63:32]"),
    (NOT64, CPL0, "0F 23 F8", &[ax(1 << 32 | 0x402)], Is(|r| r.cpu().dr7.bits() == 0x402), "SDM vol. 2B, MOV DR: 32 bits"),
    (REAL.or(PROTECTED), CPL0, "0F 23 F0", &[ax(0)], Is(|r| r.cpu().dr6.bits() == 0xffff_0ff0), "SDM vol. 3B, 17.2.3: bits that are 1"),
    (REAL.or(PROTECTED), CPL0, "0F 23 F0", &[ax(0xffff_ffff)], Is(|r| r.cpu().dr6.bits() & 0xffff_efff == 0xffff_efff), "SDM vol. 3B, 17.2.3: bit 12 is 0"),
    (REAL.or(PROTECTED), CPL0, "0F 23 F8", &[ax(0)], Is(|r| r.cpu().dr7.bits() == 0x400), "SDM vol. 3B, 17.2.4: bit 10 is 1"),
    (REAL.or(PROTECTED), CPL0, "0F 23 F8", &[ax(0xd400)], Is(|r| r.cpu().dr7.bits() == 0x400), "SDM vol. 3B, 17.2.4: bits 12, 14, 15 are 0"),
    // ---- registers that do not exist
    (LONG, ANY, "44 0F 21 C0", &[], UD, "SDM vol. 2B, MOV DR8"),
    (LONG, ANY, "44 0F 23 F8", &[], UD, "SDM vol. 2B, MOV DR15"),
    (ALL, ANY, "F0 0F 21 C0", &[], UD, "SDM vol. 2B, MOV DR: LOCK"),
    (ALL, ANY, "F0 0F 23 C0", &[], UD, "SDM vol. 2B, MOV DR: LOCK"),
];

#[test]
fn table() {
    check(ROWS);
}
