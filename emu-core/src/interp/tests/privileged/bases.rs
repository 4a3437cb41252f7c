//! RDFSBASE and its kin, SWAPGS, XGETBV, XSETBV, RDPKRU, WRPKRU and what PKRU forbids.

use super::Set::*;
use super::Want::*;
use super::*;
use x86_arch::cpuid;

const OFF: Set = NoCr4(Cr4::FSGSBASE);
const PKE: Set = WithCr4(Cr4::PKE);
const NO_OSXSAVE: Set = NoCr4(Cr4::OSXSAVE);
const BASE: Set = Do(|r| {
    r.cpu().set_segment_base(Seg::Fs, 0xffff_8000_1234_5678);
    r.cpu().set_segment_base(Seg::Gs, 0xffff_9000_1234_5678);
});
const fn rax(v: u64) -> Set {
    Reg(Gpr::Rax, v)
}
const fn rcx(v: u64) -> Set {
    Reg(Gpr::Rcx, v)
}
const fn rdx(v: u64) -> Set {
    Reg(Gpr::Rdx, v)
}
fn base(r: &mut Rig, s: Seg) -> u64 {
    r.cpu().segment(s).base
}
/// Protection key 1 on the page at [`DATA`], and what PKRU says of it.
const fn key(pkru: fn(&mut Rig)) -> Set {
    Do(pkru)
}
fn keyed(r: &mut Rig, pkru: u32) {
    r.cpu().cr4 |= Cr4::PKE;
    r.cpu().pkru = pkru;
    r.cpu().mmu.set_pkru(pkru);
    r.cpu().paging_changed();
    r.protect(DATA, 0x67 | 1 << 59);
}
const AD: Set = key(|r| keyed(r, 4));
const WD: Set = key(|r| keyed(r, 8));
const OTHER: Set = key(|r| keyed(r, 0x33));
const WD_NO_WP: Set = key(|r| {
    r.cpu().cr0.remove(Cr0::WP);
    keyed(r, 8);
});
const AD_NO_PKE: Set = key(|r| {
    keyed(r, 4);
    r.cpu().cr4.remove(Cr4::PKE);
    r.cpu().paging_changed();
});
const AD_SUPERVISOR: Set = key(|r| {
    keyed(r, 4);
    r.protect(DATA, 0x63 | 1 << 59);
});
const fn pf(code: u32) -> Want {
    Raise(Vector::Pf, code)
}

#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    // ---- F3 0F AE /0 to /3: RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE
    (NOT64, ANY, "F3 0F AE C0", &[], UD, "SDM vol. 2B, RDFSBASE: 64-bit mode only"),
    (NOT64, ANY, "F3 0F AE C8", &[], UD, "SDM vol. 2B, RDGSBASE: 64-bit mode only"),
    (NOT64, ANY, "F3 0F AE D0", &[], UD, "SDM vol. 2B, WRFSBASE: 64-bit mode only"),
    (NOT64, ANY, "F3 0F AE D8", &[], UD, "SDM vol. 2B, WRGSBASE: 64-bit mode only"),
    (LONG, ANY, "F3 0F AE C0", &[OFF], UD, "SDM vol. 2B, RDFSBASE: CR4.FSGSBASE"),
    (LONG, ANY, "F3 0F AE C8", &[OFF], UD, "SDM vol. 2B, RDGSBASE: CR4.FSGSBASE"),
    (LONG, ANY, "F3 48 0F AE D0", &[OFF], UD, "SDM vol. 2B, WRFSBASE: CR4.FSGSBASE"),
    (LONG, ANY, "F3 48 0F AE D8", &[OFF], UD, "SDM vol. 2B, WRGSBASE: CR4.FSGSBASE"),
    (LONG, ANY, "F3 0F AE C0", &[Lacks(cpuid::FSGSBASE)], UD, "SDM vol. 2B, RDFSBASE: CPUID"),
    (LONG, ANY, "F3 0F AE D8", &[Lacks(cpuid::FSGSBASE)], UD, "SDM vol. 2B, WRGSBASE: CPUID"),
    (LONG, ANY, "F3 0F AE C0", &[BASE, rax(!0)], Get(Gpr::Rax, 0x1234_5678), "SDM vol. 2B, RDFSBASE: 32 bits"),
    (LONG, ANY, "F3 48 0F AE C0", &[BASE], Get(Gpr::Rax, 0xffff_8000_1234_5678), "SDM vol. 2B, RDFSBASE"),
    (LONG, ANY, "F3 0F AE C8", &[BASE, rax(!0)], Get(Gpr::Rax, 0x1234_5678), "SDM vol. 2B, RDGSBASE: 32 bits"),
    (LONG, ANY, "F3 48 0F AE C8", &[BASE], Get(Gpr::Rax, 0xffff_9000_1234_5678), "SDM vol. 2B, RDGSBASE"),
    (LONG, ANY, "F3 0F AE D0", &[rax(!0)], Is(|r| base(r, Seg::Fs) == 0xffff_ffff), "SDM vol. 2B, WRFSBASE: zero-extended"),
    (LONG, ANY, "F3 48 0F AE D0", &[rax(!0)], Is(|r| base(r, Seg::Fs) == !0), "SDM vol. 2B, WRFSBASE"),
    (LONG, ANY, "F3 0F AE D8", &[rax(1 << 47)], Is(|r| base(r, Seg::Gs) == 0), "SDM vol. 2B, WRGSBASE: 32 bits are always canonical"),
    (LONG, ANY, "F3 48 0F AE D8", &[rax(5)], Is(|r| base(r, Seg::Gs) == 5), "SDM vol. 2B, WRGSBASE"),
    (LONG, ANY, "F3 48 0F AE D0", &[rax(1 << 47)], GP0, "SDM vol. 2B, WRFSBASE: not canonical"),
    (LONG, ANY, "F3 48 0F AE D8", &[rax(1 << 63)], GP0, "SDM vol. 2B, WRGSBASE: not canonical"),
    (ALL, ANY, "F0 F3 0F AE C0", &[], UD, "SDM vol. 2B, RDFSBASE: LOCK"),
    (LONG, ANY, "66 0F AE C0", &[], UD, "SDM vol. 2B, RDFSBASE: F3 is mandatory"),
    // ---- SWAPGS
    (NOT64, ANY, "0F 01 F8", &[], UD, "SDM vol. 2B, SWAPGS: 64-bit mode only"),
    (LONG, OUTER, "0F 01 F8", &[Iopl(3)], GP0, "SDM vol. 2B, SWAPGS: CPL>0"),
    (LONG, CPL0, "0F 01 F8", &[BASE, Do(|r| r.cpu().msr.kernel_gs_base = 9)], Is(|r| base(r, Seg::Gs) == 9 && r.cpu().msr.kernel_gs_base == 0xffff_9000_1234_5678), "SDM vol. 2B, SWAPGS"),
    (ALL, ANY, "F0 0F 01 F8", &[], UD, "SDM vol. 2B, SWAPGS: LOCK"),
    // ---- XGETBV
    (ALL, ANY, "0F 01 D0", &[NO_OSXSAVE], UD, "SDM vol. 2C, XGETBV: CR4.OSXSAVE"),
    (ALL, ANY, "0F 01 D0", &[Lacks(cpuid::XSAVE)], UD, "SDM vol. 2C, XGETBV: CPUID"),
    (ALL, ANY, "0F 01 D0", &[Xcr0Is(3), rax(!0), rdx(!0)], Is(|r| r.get(Gpr::Rax) == 3 && r.get(Gpr::Rdx) == 0), "SDM vol. 2C, XGETBV"),
    (ALL, ANY, "0F 01 D0", &[rcx(2)], GP0, "SDM vol. 2C, XGETBV: no such XCR"),
    (ALL, ANY, "0F 01 D0", &[rcx(0xffff_ffff)], GP0, "SDM vol. 2C, XGETBV: no such XCR"),
    (LONG, ANY, "0F 01 D0", &[Xcr0Is(3), rcx(1 << 32)], Get(Gpr::Rax, 3), "SDM vol. 2C, XGETBV: RCX[63:32] is ignored"),
    (ALL, ANY, "0F 01 D0", &[WithCr0(Cr0::TS), WithCr0(Cr0::EM)], Done, "SDM vol. 2C, XGETBV: no #NM"),
    (ALL, ANY, "F0 0F 01 D0", &[], UD, "SDM vol. 2C, XGETBV: LOCK"),
    (ALL, ANY, "66 0F 01 D0", &[], UD, "SDM vol. 2C, XGETBV: 66H"),
    // ---- XSETBV
    (ALL, ANY, "0F 01 D1", &[NO_OSXSAVE, rax(3)], UD, "SDM vol. 2C, XSETBV: CR4.OSXSAVE"),
    (ALL, ANY, "0F 01 D1", &[Lacks(cpuid::XSAVE), rax(3)], UD, "SDM vol. 2C, XSETBV: CPUID"),
    (PE, OUTER, "0F 01 D1", &[rax(3), Iopl(3)], GP0, "SDM vol. 2C, XSETBV: CPL>0; virtual-8086 mode"),
    (REAL.or(PROTECTED), CPL0, "0F 01 D1", &[rax(1)], Is(|r| r.cpu().xcr0.bits() == 1), "SDM vol. 2C, XSETBV"),
    (REAL.or(PROTECTED), CPL0, "0F 01 D1", &[rax(3)], Is(|r| r.cpu().xcr0.bits() == 3), "SDM vol. 2C, XSETBV"),
    (REAL.or(PROTECTED), CPL0, "0F 01 D1", &[rax(2)], GP0, "SDM vol. 2C, XSETBV: bit 0 clear"),
    (REAL.or(PROTECTED), CPL0, "0F 01 D1", &[rax(0)], GP0, "SDM vol. 2C, XSETBV: bit 0 clear"),
    (REAL.or(PROTECTED), CPL0, "0F 01 D1", &[rax(5)], GP0, "SDM vol. 2C, XSETBV: AVX without SSE"),
    (REAL.or(PROTECTED), CPL0, "0F 01 D1", &[rax(0x23)], GP0, "SDM vol. 1, 13.3: opmask alone"),
    (REAL.or(PROTECTED), CPL0, "0F 01 D1", &[rax(0xe3)], GP0, "SDM vol. 1, 13.3: AVX-512 without AVX"),
    (REAL.or(PROTECTED), CPL0, "0F 01 D1", &[rax(0x67)], GP0, "SDM vol. 1, 13.3: AVX-512 in part"),
    (REAL.or(PROTECTED), CPL0, "0F 01 D1", &[rax(0xb)], GP0, "SDM vol. 1, 13.3: MPX is not offered"),
    (REAL.or(PROTECTED), CPL0, "0F 01 D1", &[rax(0x103)], GP0, "SDM vol. 1, 13.3: PT is a supervisor component"),
    (REAL.or(PROTECTED), CPL0, "0F 01 D1", &[rax(3), rdx(0x8000_0000)], GP0, "SDM vol. 1, 13.3: bit 63"),
    (REAL.or(PROTECTED), CPL0, "0F 01 D1", &[rax(3), rcx(1)], GP0, "SDM vol. 2C, XSETBV: no such XCR"),
    (LONG, CPL0, "0F 01 D1", &[rax(0xffff_ffff_0000_0003), rdx(1 << 32), rcx(1 << 32)], Is(|r| r.cpu().xcr0.bits() == 3), "SDM vol. 2C, XSETBV: upper halves are ignored"),
    (ALL, ANY, "F0 0F 01 D1", &[], UD, "SDM vol. 2C, XSETBV: LOCK"),
    (ALL, ANY, "F3 0F 01 D1", &[], UD, "SDM vol. 2C, XSETBV: F3H"),
    // ---- RDPKRU, WRPKRU
    (ALL, ANY, "0F 01 EE", &[], UD, "SDM vol. 2B, RDPKRU: CR4.PKE"),
    (ALL, ANY, "0F 01 EE", &[PKE, rcx(1)], GP0, "SDM vol. 2B, RDPKRU: ECX"),
    (ALL, ANY, "0F 01 EE", &[PKE, Do(|r| r.cpu().pkru = 0x5555_5554), rax(!0), rdx(!0)], Is(|r| r.get(Gpr::Rax) == 0x5555_5554 && r.get(Gpr::Rdx) == 0), "SDM vol. 2B, RDPKRU"),
    (ALL, ANY, "0F 01 EF", &[rax(4)], UD, "SDM vol. 2C, WRPKRU: CR4.PKE"),
    (ALL, ANY, "0F 01 EF", &[PKE, rax(4), rcx(1)], GP0, "SDM vol. 2C, WRPKRU: ECX"),
    (ALL, ANY, "0F 01 EF", &[PKE, rax(4), rdx(1)], GP0, "SDM vol. 2C, WRPKRU: EDX"),
    (ALL, ANY, "0F 01 EF", &[PKE, rax(4)], Is(|r| r.cpu().pkru == 4), "SDM vol. 2C, WRPKRU"),
    (ALL, ANY, "F0 0F 01 EE", &[PKE], UD, "SDM vol. 2B, RDPKRU: LOCK"),
    (ALL, ANY, "F0 0F 01 EF", &[PKE], UD, "SDM vol. 2C, WRPKRU: LOCK"),
    // ---- what PKRU forbids: a load, a store of AL
    (IA32E, ANY, "8A 07", &[OTHER], Done, "SDM vol. 3A, 4.6.2: another key"),
    (IA32E, CPL0 | CPL1 | CPL2, "8A 07", &[AD], pf(0x21), "SDM vol. 3A, 4.6.2: AD, user page, supervisor access"),
    (IA32E, CPL3, "8A 07", &[AD], pf(0x25), "SDM vol. 3A, 4.6.2: AD"),
    (IA32E, CPL3, "88 07", &[AD], pf(0x27), "SDM vol. 3A, 4.6.2: AD"),
    (IA32E, ANY, "8A 07", &[WD], Done, "SDM vol. 3A, 4.6.2: WD, read"),
    (IA32E, CPL3, "88 07", &[WD], pf(0x27), "SDM vol. 3A, 4.6.2: WD"),
    (IA32E, CPL0, "88 07", &[WD], pf(0x23), "SDM vol. 3A, 4.6.2: WD, CR0.WP=1"),
    (IA32E, CPL0, "88 07", &[WD_NO_WP], Done, "SDM vol. 3A, 4.6.2: WD, CR0.WP=0"),
    (IA32E, CPL3, "88 07", &[WD_NO_WP], pf(0x27), "SDM vol. 3A, 4.6.2: WD, a user's write whatever WP"),
    (IA32E, ANY, "8A 07", &[AD_NO_PKE], Done, "SDM vol. 3A, 4.6.2: CR4.PKE=0"),
    (IA32E, CPL0, "8A 07", &[AD_SUPERVISOR], Done, "SDM vol. 3A, 4.6.2: a supervisor page"),
];

#[test]
fn table() {
    check(ROWS);
}
