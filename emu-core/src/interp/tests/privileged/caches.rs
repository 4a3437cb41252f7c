//! Caches, TLB, waiting, and the instructions of features that no guest is offered: INVD, WBINVD, INVLPG, INVPCID, HLT, MONITOR,
//! MWAIT, CLFLUSH, CLZERO, SERIALIZE, RSM, VMX, SVM, SGX, SMX, WAITPKG, ENQCMD …

use super::Set::*;
use super::Want::*;
use super::*;
use crate::event::Activity;
use crate::quirks::Quirks;
use x86_arch::cpuid;

/// MONITOR and MWAIT are what CPUID says, not NOPs.
const CPUID_DECIDES: Set = Do(|r| r.cpu().vm.choices.disable(Quirks::MWAIT_NEVER_UD_FAULTS));

const fn rax(v: u64) -> Set {
    Reg(Gpr::Rax, v)
}
const fn rcx(v: u64) -> Set {
    Reg(Gpr::Rcx, v)
}
const PCIDE: Set = WithCr4(Cr4::PCIDE);
/// The descriptor of INVPCID: PCID, then linear address.
const PCID_0: Set = Mem(&[0; 16]);
const PCID_1: Set = Mem(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
const PCID_RESERVED: Set = Mem(&[0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
const PCID_HOLE: Set = Mem(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0]);
const UNMAPPED: Set = Do(|r| r.unmap(DATA));
/// CS may be executed only, and covers the data.
const EXECUTE_ONLY: Set = Do(|r| r.cpu().seg[Seg::Cs as usize].typ = 9);
const AT_DATA: Set = rax(DATA);

#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    // ---- INVD, WBINVD, WBNOINVD
    (REAL.or(PROTECTED), CPL0, "0F 08", &[], Done, "SDM vol. 2A, INVD"),
    (REAL.or(PROTECTED), CPL0, "0F 09", &[], Done, "SDM vol. 2C, WBINVD"),
    (REAL.or(PROTECTED), CPL0, "F3 0F 09", &[], Done, "SDM vol. 2C, WBNOINVD"),
    (PE, OUTER, "0F 08", &[Iopl(3)], GP0, "SDM vol. 2A, INVD: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "0F 09", &[Iopl(3)], GP0, "SDM vol. 2C, WBINVD: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "F3 0F 09", &[Iopl(3)], GP0, "SDM vol. 2C, WBNOINVD: CPL>0; virtual-8086 mode"),
    (PE, OUTER, "F3 0F 09", &[Lacks(cpuid::WBNOINVD)], GP0, "SDM vol. 2C, WBNOINVD: WBINVD where it is not offered"),
    (ALL, ANY, "F0 0F 08", &[], UD, "SDM vol. 2A, INVD: LOCK"),
    (ALL, ANY, "F0 0F 09", &[], UD, "SDM vol. 2C, WBINVD: LOCK"),
    (ALL, ANY, "F0 F3 0F 09", &[], UD, "SDM vol. 2C, WBNOINVD: LOCK"),
    // ---- INVLPG
    (REAL.or(PROTECTED), CPL0, "0F 01 3F", &[], Done, "SDM vol. 2A, INVLPG"),
    (PE, OUTER, "0F 01 3F", &[Iopl(3)], GP0, "SDM vol. 2A, INVLPG: CPL>0; virtual-8086 mode"),
    (LONG, CPL0, "0F 01 3F", &[Reg(Gpr::Rdi, 1 << 60)], Done, "SDM vol. 2A, INVLPG: not canonical is a NOP"),
    (PROTECTED, CPL0, "0F 01 3F", &[UNMAPPED], Done, "SDM vol. 2A, INVLPG: no access"),
    (P16, CPL0, "0F 01 3F", &[Reg(Gpr::Rbx, 0xffff)], Done, "SDM vol. 2A, INVLPG: no limit check"),
    (ALL, ANY, "F0 0F 01 3F", &[], UD, "SDM vol. 2A, INVLPG: LOCK"),
    // ---- INVPCID EAX, [DATA]
    (REAL.or(PROTECTED), CPL0, "66 0F 38 82 07", &[rax(0), PCID_0], Done, "SDM vol. 2A, INVPCID: type 0"),
    (REAL.or(PROTECTED), CPL0, "66 0F 38 82 07", &[rax(1), PCID_0], Done, "SDM vol. 2A, INVPCID: type 1"),
    (REAL.or(PROTECTED), CPL0, "66 0F 38 82 07", &[rax(2), PCID_0], Done, "SDM vol. 2A, INVPCID: type 2"),
    (REAL.or(PROTECTED), CPL0, "66 0F 38 82 07", &[rax(3), PCID_0], Done, "SDM vol. 2A, INVPCID: type 3"),
    (REAL.or(PROTECTED), CPL0, "66 0F 38 82 07", &[rax(4), PCID_0], GP0, "SDM vol. 2A, INVPCID: type 4"),
    (LONG, CPL0, "66 0F 38 82 07", &[rax(1 << 32), PCID_0], GP0, "SDM vol. 2A, INVPCID: a 64-bit type"),
    (COMPAT, CPL0, "66 0F 38 82 07", &[rax(1 << 32), PCID_0], Done, "SDM vol. 2A, INVPCID: a 32-bit type"),
    (REAL.or(PROTECTED), CPL0, "66 0F 38 82 07", &[rax(0), PCID_1], GP0, "SDM vol. 2A, INVPCID: PCID without PCIDE"),
    (REAL.or(PROTECTED), CPL0, "66 0F 38 82 07", &[rax(1), PCID_1], GP0, "SDM vol. 2A, INVPCID: PCID without PCIDE"),
    (IA32E, CPL0, "66 0F 38 82 07", &[rax(1), PCID_1, PCIDE], Done, "SDM vol. 2A, INVPCID: PCID with PCIDE"),
    (REAL.or(PROTECTED), CPL0, "66 0F 38 82 07", &[rax(2), PCID_RESERVED], GP0, "SDM vol. 2A, INVPCID: descriptor[63:12]"),
    (LONG, CPL0, "66 0F 38 82 07", &[rax(0), PCID_HOLE], GP0, "SDM vol. 2A, INVPCID: not canonical"),
    (LONG, CPL0, "66 0F 38 82 07", &[rax(1), PCID_HOLE], Done, "SDM vol. 2A, INVPCID: address of type 1 is ignored"),
    (PE, OUTER, "66 0F 38 82 07", &[PCID_0, Iopl(3)], GP0, "SDM vol. 2A, INVPCID: CPL>0; virtual-8086 mode"),
    (PROTECTED, CPL0, "66 0F 38 82 07", &[PCID_0, UNMAPPED], Raise(Vector::Pf, 0), "SDM vol. 2A, INVPCID: #PF"),
    (ALL, ANY, "66 0F 38 82 C7", &[], UD, "SDM vol. 2A, INVPCID: register operand"),
    (ALL, ANY, "0F 38 82 07", &[], UD, "SDM vol. 2A, INVPCID: 66H is mandatory"),
    (ALL, ANY, "66 0F 38 82 07", &[Lacks(cpuid::INVPCID)], UD, "SDM vol. 2A, INVPCID: CPUID"),
    (ALL, ANY, "F0 66 0F 38 82 07", &[], UD, "SDM vol. 2A, INVPCID: LOCK"),
    // ---- HLT
    (REAL.or(PROTECTED), CPL0, "F4", &[], Is(|r| r.cpu().events.activity == Activity::Halted), "SDM vol. 2A, HLT"),
    (PE, OUTER, "F4", &[Iopl(3)], GP0, "SDM vol. 2A, HLT: CPL>0; virtual-8086 mode"),
    (ALL, ANY, "F0 F4", &[], UD, "SDM vol. 2A, HLT: LOCK"),
    // ---- MONITOR, MWAIT
    (REAL.or(PROTECTED), CPL0, "0F 01 C8", &[], Done, "SDM vol. 2B, MONITOR"),
    (REAL.or(PROTECTED), CPL0, "0F 01 C8", &[rcx(1)], GP0, "SDM vol. 2B, MONITOR: ECX"),
    (PE, OUTER, "0F 01 C8", &[Iopl(3)], UD, "SDM vol. 2B, MONITOR: CPL>0; virtual-8086 mode"),
    (REAL.or(PROTECTED), CPL0, "0F 01 C8", &[Lacks(cpuid::MONITOR)], Done, "KVM api 7.31: a NOP whatever CPUID says"),
    (ALL, ANY, "0F 01 C8", &[Lacks(cpuid::MONITOR), CPUID_DECIDES], UD, "SDM vol. 2B, MONITOR: CPUID"),
    (REAL.or(PROTECTED), CPL0, "0F 01 C8", &[CPUID_DECIDES], Done, "SDM vol. 2B, MONITOR: CPUID"),
    (PROTECTED, CPL0, "0F 01 C8", &[AT_DATA, UNMAPPED, Do(|r| { let b = DATA - r.cpu().seg[Seg::Ds as usize].base; r.set(Gpr::Rax, b) })], Raise(Vector::Pf, 0), "SDM vol. 2B, MONITOR: as a load"),
    (REAL.or(PROTECTED), CPL0, "0F 01 C9", &[], Done, "SDM vol. 2B, MWAIT"),
    (REAL.or(PROTECTED), CPL0, "0F 01 C9", &[rcx(2)], GP0, "SDM vol. 2B, MWAIT: ECX"),
    (PE, OUTER, "0F 01 C9", &[Iopl(3)], UD, "SDM vol. 2B, MWAIT: CPL>0; virtual-8086 mode"),
    (REAL.or(PROTECTED), CPL0, "0F 01 C9", &[Lacks(cpuid::MONITOR)], Done, "KVM api 7.31: a NOP whatever CPUID says"),
    (ALL, ANY, "0F 01 C9", &[Lacks(cpuid::MONITOR), CPUID_DECIDES], UD, "SDM vol. 2B, MWAIT: CPUID"),
    (ALL, ANY, "F0 0F 01 C8", &[], UD, "SDM vol. 2B, MONITOR: LOCK"),
    (ALL, ANY, "F0 0F 01 C9", &[], UD, "SDM vol. 2B, MWAIT: LOCK"),
    // ---- no privilege
    (ALL, ANY, "0F AE 3F", &[], Done, "SDM vol. 2A, CLFLUSH"),
    (ALL, ANY, "66 0F AE 3F", &[], Done, "SDM vol. 2A, CLFLUSHOPT"),
    (ALL, ANY, "66 0F AE 37", &[], Done, "SDM vol. 2A, CLWB"),
    (PROTECTED, CPL3, "0F AE 3F", &[UNMAPPED], Raise(Vector::Pf, 4), "SDM vol. 2A, CLFLUSH: as a load"),
    (CODE32, ANY, "2E 0F AE 3F", &[EXECUTE_ONLY], Done, "SDM vol. 2A, CLFLUSH: an execute-only segment"),
    (ALL, ANY, "0F AE 3F", &[WithCr0(Cr0::EM), WithCr0(Cr0::TS), NoCr4(Cr4::OSFXSR)], Done, "SDM vol. 2A, CLFLUSH: no #NM"),
    (ALL, ANY, "0F AE 3F", &[Lacks(cpuid::CLFSH)], UD, "SDM vol. 2A, CLFLUSH: CPUID"),
    (ALL, ANY, "F0 0F AE 3F", &[], UD, "SDM vol. 2A, CLFLUSH: LOCK"),
    (ALL, ANY, "F0 66 0F AE 3F", &[], UD, "SDM vol. 2A, CLFLUSHOPT: LOCK"),
    (ALL, ANY, "0F 01 FC", &[Mem(&[0xcc; 64]), Do(|r| { let b = r.get(Gpr::Rdi) + 5; r.set(Gpr::Rax, b) })], Is(|r| stored(r, 8) == 0), "APM vol. 3, CLZERO: at any CPL"),
    (ALL, ANY, "0F 01 FC", &[Lacks(cpuid::CLZERO)], UD, "APM vol. 3, CLZERO: CPUID"),
    (ALL, ANY, "0F 01 E8", &[], Done, "SDM vol. 2B, SERIALIZE: at any CPL"),
    (ALL, ANY, "0F 01 E8", &[Lacks(cpuid::SERIALIZE)], UD, "SDM vol. 2B, SERIALIZE: CPUID"),
    (ALL, ANY, "F0 0F 01 E8", &[], UD, "SDM vol. 2B, SERIALIZE: LOCK"),
    (ALL, ANY, "F3 0F 1E FA", &[], Done, "SDM vol. 2A, ENDBR64: a NOP"),
    (ALL, ANY, "F3 0F 1E FB", &[], Done, "SDM vol. 2A, ENDBR32: a NOP"),
    (ALL, ANY, "F3 0F 1E C8", &[rax(5)], Get(Gpr::Rax, 5), "SDM vol. 2B, RDSSPD: a NOP"),
    (ALL, ANY, "0F 1C 07", &[], Done, "SDM vol. 2A, CLDEMOTE: a hint"),
    (ALL, ANY, "F3 90", &[], Done, "SDM vol. 2B, PAUSE"),
    (ALL, ANY, "0F AE E8", &[WithCr0(Cr0::EM), WithCr0(Cr0::TS)], Done, "SDM vol. 2A, LFENCE: no #NM"),
    (ALL, ANY, "0F AE F0", &[WithCr0(Cr0::EM), WithCr0(Cr0::TS)], Done, "SDM vol. 2B, MFENCE: no #NM"),
    (ALL, ANY, "0F AE F8", &[WithCr0(Cr0::EM), WithCr0(Cr0::TS)], Done, "SDM vol. 2B, SFENCE: no #NM"),
    // ---- RSM outside SMM
    (ALL, ANY, "0F AA", &[Iopl(3)], UD, "SDM vol. 2B, RSM: outside SMM"),
    // ---- VMX: hypercalls are KVM's, whatever the CPL; nothing else exists
    (ALL, ANY, "0F 01 C1", &[rax(0x7777)], Done, "KVM hypercalls.txt: VMCALL"),
    (ALL, ANY, "0F 01 D9", &[rax(0x7777)], Done, "KVM hypercalls.txt: VMMCALL"),
    (ALL, ANY, "0F 01 C2", &[], UD, "SDM vol. 3C, VMLAUNCH: outside VMX operation"),
    (ALL, ANY, "0F 01 C3", &[], UD, "SDM vol. 3C, VMRESUME: outside VMX operation"),
    (ALL, ANY, "0F 01 C4", &[], UD, "SDM vol. 3C, VMXOFF: outside VMX operation"),
    (ALL, ANY, "0F 01 D4", &[], UD, "SDM vol. 3C, VMFUNC: outside VMX operation"),
    (ALL, ANY, "0F C7 37", &[], UD, "SDM vol. 3C, VMPTRLD: outside VMX operation"),
    (ALL, ANY, "0F C7 3F", &[], UD, "SDM vol. 3C, VMPTRST: outside VMX operation"),
    (ALL, ANY, "66 0F C7 37", &[], UD, "SDM vol. 3C, VMCLEAR: outside VMX operation"),
    (ALL, ANY, "F3 0F C7 37", &[], UD, "SDM vol. 3C, VMXON: CR4.VMXE=0"),
    (ALL, ANY, "0F 78 C8", &[], UD, "SDM vol. 3C, VMREAD: outside VMX operation"),
    (ALL, ANY, "0F 79 C8", &[], UD, "SDM vol. 3C, VMWRITE: outside VMX operation"),
    (ALL, ANY, "66 0F 38 80 07", &[], UD, "SDM vol. 3C, INVEPT: outside VMX operation"),
    (ALL, ANY, "66 0F 38 81 07", &[], UD, "SDM vol. 3C, INVVPID: outside VMX operation"),
    // ---- SVM with EFER.SVME=0
    (ALL, ANY, "0F 01 D8", &[], UD, "APM vol. 3, VMRUN: EFER.SVME=0"),
    (ALL, ANY, "67 0F 01 D8", &[], UD, "APM vol. 3, VMRUN: EFER.SVME=0"),
    (ALL, ANY, "0F 01 DA", &[], UD, "APM vol. 3, VMLOAD: EFER.SVME=0"),
    (ALL, ANY, "67 0F 01 DA", &[], UD, "APM vol. 3, VMLOAD: EFER.SVME=0"),
    (ALL, ANY, "0F 01 DB", &[], UD, "APM vol. 3, VMSAVE: EFER.SVME=0"),
    (ALL, ANY, "67 0F 01 DB", &[], UD, "APM vol. 3, VMSAVE: EFER.SVME=0"),
    (ALL, ANY, "0F 01 DC", &[], UD, "APM vol. 3, STGI: EFER.SVME=0"),
    (ALL, ANY, "0F 01 DD", &[], UD, "APM vol. 3, CLGI: EFER.SVME=0"),
    (ALL, ANY, "0F 01 DE", &[], UD, "APM vol. 3, SKINIT: not offered"),
    (ALL, ANY, "0F 01 DF", &[], UD, "APM vol. 3, INVLPGA: EFER.SVME=0"),
    (ALL, ANY, "67 0F 01 DF", &[], UD, "APM vol. 3, INVLPGA: EFER.SVME=0"),
    (ALL, ANY, "F3 0F 01 D9", &[], UD, "APM vol. 3, VMGEXIT: VMMCALL has no F3H form here"),
    (ALL, ANY, "0F 01 FE", &[], UD, "APM vol. 3, INVLPGB: not offered"),
    (ALL, ANY, "0F 01 FF", &[], UD, "APM vol. 3, TLBSYNC: not offered"),
    (LONG, ANY, "F3 0F 01 FE", &[], UD, "APM vol. 3, RMPADJUST: not offered"),
    (ALL, ANY, "F2 0F 01 FF", &[], UD, "APM vol. 3, PVALIDATE: not offered"),
    (LONG, ANY, "F2 0F 01 FE", &[], UD, "APM vol. 3, RMPUPDATE: not offered"),
    (LONG, ANY, "F3 0F 01 FF", &[], UD, "APM vol. 3, PSMASH: not offered"),
    // ---- other features that no guest is offered
    (ALL, ANY, "0F 37", &[], UD, "SDM vol. 2D, GETSEC: CR4.SMXE=0"),
    (ALL, ANY, "0F 01 CF", &[], UD, "SDM vol. 3D, ENCLS: not offered"),
    (ALL, ANY, "0F 01 D7", &[], UD, "SDM vol. 3D, ENCLU: not offered"),
    (ALL, ANY, "0F 01 C0", &[], UD, "SDM vol. 3D, ENCLV: not offered"),
    (ALL, ANY, "0F 01 C5", &[], UD, "SDM vol. 2B, PCONFIG: not offered"),
    (ALL, ANY, "0F 01 FA", &[], UD, "APM vol. 3, MONITORX: not offered"),
    (ALL, ANY, "67 0F 01 FA", &[], UD, "APM vol. 3, MONITORX: not offered"),
    (ALL, ANY, "0F 01 FB", &[], UD, "APM vol. 3, MWAITX: not offered"),
    (ALL, ANY, "0F 01 FD", &[], UD, "APM vol. 3, RDPRU: not offered"),
    (ALL, ANY, "0F 01 C6", &[], UD, "SDM vol. 2C, WRMSRNS: not offered"),
    (LONG, ANY, "F2 0F 01 C6", &[], UD, "SDM vol. 2B, RDMSRLIST: not offered"),
    (LONG, ANY, "F3 0F 01 C6", &[], UD, "SDM vol. 2C, WRMSRLIST: not offered"),
    (ALL, ANY, "F3 0F AE F0", &[], UD, "SDM vol. 2B, UMONITOR: not offered"),
    (ALL, ANY, "F2 0F AE F0", &[], UD, "SDM vol. 2B, UMWAIT: not offered"),
    (ALL, ANY, "66 0F AE F0", &[], UD, "SDM vol. 2B, TPAUSE: not offered"),
    (ALL, ANY, "F2 0F 38 F8 07", &[], UD, "SDM vol. 2A, ENQCMD: not offered"),
    (ALL, ANY, "F3 0F 38 F8 07", &[], UD, "SDM vol. 2A, ENQCMDS: not offered"),
    (LONG, ANY, "F3 0F 01 EE", &[], UD, "SDM vol. 2A, CLUI: not offered"),
    (LONG, ANY, "F3 0F 01 EF", &[], UD, "SDM vol. 2B, STUI: not offered"),
    (LONG, ANY, "F3 0F 01 ED", &[], UD, "SDM vol. 2B, TESTUI: not offered"),
    (LONG, ANY, "F3 0F 01 EC", &[], UD, "SDM vol. 2B, UIRET: not offered"),
    (LONG, ANY, "F3 0F C7 F0", &[], UD, "SDM vol. 2B, SENDUIPI: not offered"),
    (ALL, ANY, "F3 0F 01 E8", &[], UD, "SDM vol. 2B, SETSSBSY: CR4.CET=0"),
    (ALL, ANY, "F3 0F 01 EA", &[], UD, "SDM vol. 2B, SAVEPREVSSP: CR4.CET=0"),
    (ALL, ANY, "F3 0F 01 2F", &[], UD, "SDM vol. 2B, RSTORSSP: CR4.CET=0"),
    (ALL, ANY, "F3 0F AE 37", &[], UD, "SDM vol. 2A, CLRSSBSY: CR4.CET=0"),
    (ALL, ANY, "F3 0F AE E8", &[], UD, "SDM vol. 2A, INCSSPD: CR4.CET=0"),
    (ALL, ANY, "0F 38 F6 07", &[], UD, "SDM vol. 2C, WRSSD: CR4.CET=0"),
    (ALL, ANY, "66 0F 38 F5 07", &[], UD, "SDM vol. 2C, WRUSSD: CR4.CET=0"),
    (LONG, ANY, "66 48 0F 38 F5 07", &[], UD, "SDM vol. 2C, WRUSSQ: CR4.CET=0"),
    (ALL, ANY, "F2 0F 01 E8", &[], UD, "SDM vol. 2C, XSUSLDTRK: not offered"),
    (ALL, ANY, "F2 0F 01 E9", &[], UD, "SDM vol. 2C, XRESLDTRK: not offered"),
    (ALL, ANY, "0F 01 D5", &[], UD, "SDM vol. 2C, XEND: not offered"),
    (ALL, ANY, "0F 01 D6", &[], UD, "SDM vol. 2C, XTEST: not offered"),
    (ALL, ANY, "F3 0F 38 DC C8", &[], UD, "SDM vol. 2A, LOADIWKEY: CR4.KL=0"),
    (ALL, ANY, "F3 0F AE E0", &[], UD, "SDM vol. 2B, PTWRITE: not offered"),
    (LONG, ANY, "F2 0F 01 CA", &[], UD, "SDM vol. 2A, ERETS: CR4.FRED=0"),
    (LONG, ANY, "F3 0F 01 CA", &[], UD, "SDM vol. 2A, ERETU: CR4.FRED=0"),
    (LONG, ANY, "F2 0F 00 F0", &[], UD, "SDM vol. 2A, LKGS: not offered"),
    (LONG, ANY, "66 F2 0F 00 F0", &[], UD, "SDM vol. 2A, LKGS: not offered"),
    (LONG, ANY, "F2 48 0F 00 F0", &[], UD, "SDM vol. 2A, LKGS: not offered"),
    (LONG, ANY, "F3 0F 01 FD", &[], UD, "APM vol. 3, RMPQUERY: not offered"),
    (LONG, ANY, "0F 01 C7", &[], UD, "SDM vol. 2B, PBNDKB: not offered"),
    (ALL, ANY, "F3 0F 3A F0 C0 00", &[], UD, "SDM vol. 2A, HRESET: not offered"),
    (LONG, ANY, "66 0F 01 CC", &[], UD, "Intel TDX, TDCALL: not offered"),
    (LONG, ANY, "66 0F 01 CD", &[], UD, "Intel TDX, SEAMRET: not offered"),
    (LONG, ANY, "66 0F 01 CE", &[], UD, "Intel TDX, SEAMOPS: not offered"),
    (LONG, ANY, "66 0F 01 CF", &[], UD, "Intel TDX, SEAMCALL: not offered"),
];

#[test]
fn table() {
    check(ROWS);
}
