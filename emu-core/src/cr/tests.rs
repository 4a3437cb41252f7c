//! The rules of CR0, CR3, CR4, CR8 and EFER, one row each.

use crate::cpuid::CpuidTable;
use crate::exit::Stop;
use crate::rig::{Mode, Rig};
use x86_arch::control::{CR3_NO_FLUSH, Cr0, Cr4, Efer};
use x86_arch::{Exception, PagingMode, Seg};

const GP: Result<(), Stop> = Err(Stop::Exception(Exception::GP0));

const PE: u64 = Cr0::PE.bits();
const PG: u64 = Cr0::PG.bits();
const NW: u64 = Cr0::NW.bits();
const CD: u64 = Cr0::CD.bits();
const ET: u64 = Cr0::ET.bits();

#[test]
fn cr0() {
    for (name, mode, value, want) in [
        ("upper half", Mode::Long, 1 << 32 | PG | PE, GP),
        ("PG without PE", Mode::Real, PG, GP),
        ("NW without CD", Mode::Real, NW, GP),
        ("NW with CD", Mode::Real, NW | CD, Ok(())),
        ("PE", Mode::Real, PE, Ok(())),
        ("PG off in 64-bit mode", Mode::Long, PE, GP),
        ("PG off in compatibility mode", Mode::Compat, PE, Ok(())),
        ("PG off", Mode::Protected, PE, Ok(())),
        ("reserved bits are ignored", Mode::Protected, PG | PE | 0x1ffa_ffc0 & !NW, Ok(())),
    ] {
        let mut r = Rig::new(mode);
        let old = r.cpu().cr0;
        assert_eq!(r.cpu().write_cr0(value), want, "{name}");
        let c = r.cpu();
        if want.is_ok() {
            assert_eq!(c.cr0.bits(), value & Cr0::all().bits() | ET, "{name}");
            assert_eq!(c.mmu.registers().cr0.contains(Cr0::PG), c.cr0.contains(Cr0::PG), "{name}");
        } else {
            assert_eq!(c.cr0, old, "{name}");
        }
    }
}

#[test]
fn entering_and_leaving_ia32e_mode() {
    let start = |pae: bool, cs_l: bool| {
        let mut r = Rig::new(Mode::Protected);
        r.cpu().write_cr0(PE).expect("paging off");
        r.cpu().cr4.set(Cr4::PAE, pae);
        r.cpu().efer = Efer::LME;
        r.cpu().seg[Seg::Cs as usize].l = cs_l;
        r
    };
    assert_eq!(start(false, false).cpu().write_cr0(PE | PG), GP);
    assert_eq!(start(true, true).cpu().write_cr0(PE | PG), GP);
    let mut r = start(true, false);
    assert_eq!(r.cpu().write_cr0(PE | PG), Ok(()));
    let c = r.cpu();
    assert!(c.efer.contains(Efer::LMA) && c.paging_mode() == PagingMode::Level4 && !c.long64());
    // PCIDE keeps paging on.
    c.cr4 |= Cr4::PCIDE;
    assert_eq!(c.write_cr0(PE), GP);
    c.cr4.remove(Cr4::PCIDE);
    assert_eq!(c.write_cr0(PE), Ok(()));
    assert!(!c.efer.contains(Efer::LMA) && c.efer.contains(Efer::LME));
}

#[test]
fn pae_loads_its_registers() {
    let mut r = Rig::new(Mode::Protected);
    r.cpu().write_cr0(PE).expect("paging off");
    r.cpu().write_cr4(Cr4::PAE.bits()).expect("PAE");
    let table = 0x1_f000u64;
    r.write_u64(table, 0x2000 | 1);
    r.cpu().write_cr3(table).expect("not used yet");
    // A reserved bit in a present entry.
    r.write_u64(table + 8, 1 << 1 | 1);
    assert_eq!(r.cpu().write_cr0(PE | PG), GP);
    assert!(!r.cpu().cr0.contains(Cr0::PG));
    r.write_u64(table + 8, 0);
    assert_eq!(r.cpu().write_cr0(PE | PG), Ok(()));
    assert_eq!(r.cpu().paging_mode(), PagingMode::Pae);
    r.write_u64(table + 8, 1 << 1 | 1);
    assert_eq!(r.cpu().write_cr3(table), GP);
    let cr4 = (Cr4::PAE | Cr4::PGE).bits();
    assert_eq!(r.cpu().write_cr4(cr4), GP, "a change of PGE loads them too");
}

#[test]
fn cr3() {
    for (pcide, value, want, kept) in [
        (false, 0x1000, Ok(()), 0x1000),
        (false, 1 << 46, GP, 0),
        (false, CR3_NO_FLUSH | 0x1000, GP, 0),
        (true, CR3_NO_FLUSH | 0x1005, Ok(()), 0x1005),
        (true, 1 << 62, GP, 0),
        (false, 0x1018, Ok(()), 0x1018),
    ] {
        let mut r = Rig::new(Mode::Long);
        r.cpu().cr4.set(Cr4::PCIDE, pcide);
        r.cpu().paging_changed();
        assert_eq!(r.cpu().write_cr3(value), want, "{value:#x} {pcide}");
        if want.is_ok() {
            assert_eq!(r.cpu().cr3, kept);
            assert_eq!(r.cpu().mmu.registers().cr3, kept);
        }
    }
}

#[test]
fn cr4() {
    let long = (Cr4::PAE | Cr4::OSFXSR).bits();
    for (name, mode, value, want) in [
        ("VMX", Mode::Protected, Cr4::VMXE.bits(), GP),
        ("CET", Mode::Protected, Cr4::CET.bits(), GP),
        ("bit 63", Mode::Protected, 1 << 63, GP),
        ("PAE off in IA-32e mode", Mode::Long, Cr4::OSFXSR.bits(), GP),
        ("LA57 on in IA-32e mode", Mode::Long, long | Cr4::LA57.bits(), GP),
        ("PCIDE outside IA-32e mode", Mode::Protected, Cr4::PCIDE.bits(), GP),
        ("PCIDE", Mode::Long, long | Cr4::PCIDE.bits(), Ok(())),
        ("all the rest", Mode::Long, long | (Cr4::SMEP | Cr4::SMAP | Cr4::PKE | Cr4::UMIP).bits(), Ok(())),
    ] {
        let mut r = Rig::new(mode);
        let old = r.cpu().cr4;
        assert_eq!(r.cpu().write_cr4(value), want, "{name}");
        assert_eq!(r.cpu().cr4.bits(), if want.is_ok() { value } else { old.bits() }, "{name}");
    }
    // PCIDE with a PCID in CR3.
    let mut r = Rig::new(Mode::Long);
    r.cpu().cr3 |= 8;
    assert_eq!(r.cpu().write_cr4(long | Cr4::PCIDE.bits()), GP);
}

/// Each bit of CR4 and EFER goes with its CPUID bit.
#[test]
fn reserved_bits_follow_cpuid() {
    for (bit, f) in super::CR4_FEATURES {
        let mut r = Rig::new(Mode::Real);
        without(&mut r, *f);
        if matches!(*bit, Cr4::PCIDE) {
            continue;
        }
        assert_eq!(r.cpu().write_cr4(bit.bits()), GP, "{} hidden", f.name);
        let mut r = Rig::new(Mode::Real);
        assert_eq!(r.cpu().write_cr4(bit.bits()), Ok(()), "{}", f.name);
    }
    for (bit, f) in super::EFER_FEATURES {
        let mut r = Rig::new(Mode::Real);
        without(&mut r, *f);
        assert!(!r.cpu().write_efer(bit.bits(), false), "{} hidden", f.name);
        assert!(Rig::new(Mode::Real).cpu().write_efer(bit.bits(), false), "{}", f.name);
    }
}

fn without(r: &mut Rig, f: x86_arch::cpuid::Feature) {
    use x86_arch::cpuid::CpuidReg::*;
    let mut rows = r.cpu().cpuid.entries().to_vec();
    for row in rows.iter_mut().filter(|e| e.leaf == f.leaf && e.subleaf == f.subleaf) {
        let v = match f.reg {
            Eax => &mut row.result.eax,
            Ebx => &mut row.result.ebx,
            Ecx => &mut row.result.ecx,
            Edx => &mut row.result.edx,
        };
        *v &= !(1 << f.bit);
    }
    r.cpu().cpuid = CpuidTable::new(rows);
}

#[test]
fn efer() {
    let mut r = Rig::new(Mode::Long);
    let old = r.cpu().efer;
    assert!(!r.cpu().write_efer(old.bits() & !Efer::LME.bits(), false), "LME under paging");
    assert!(!r.cpu().write_efer(old.bits() | 1 << 1, false), "a reserved bit");
    assert!(!r.cpu().write_efer(old.bits() | Efer::SVME.bits(), false), "no SVM");
    // LMA is not the guest's to write.
    assert!(r.cpu().write_efer((Efer::LME | Efer::NXE).bits(), false));
    assert_eq!(r.cpu().efer, Efer::LME | Efer::NXE | Efer::LMA);
    assert_eq!(r.cpu().mmu.registers().efer, Efer::LME | Efer::NXE | Efer::LMA);
}

#[test]
fn lmsw_and_cr8() {
    let mut r = Rig::new(Mode::Real);
    assert_eq!(r.cpu().lmsw(0xfff1), Ok(()));
    assert!(r.cpu().cr0.contains(Cr0::PE) && !r.cpu().cr0.contains(Cr0::MP));
    assert_eq!(r.cpu().lmsw(0), Ok(()));
    assert!(r.cpu().cr0.contains(Cr0::PE), "PE cannot be cleared");
    assert_eq!(r.cpu().mov_to_cr8(16), GP);
    assert_eq!(r.cpu().mov_to_cr8(15), Ok(()));
    assert_eq!(r.cpu().read_cr8(), 15);
}
