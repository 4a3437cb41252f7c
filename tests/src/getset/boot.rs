//! A kernel that boots: Debian's, as `softkvm demo` fetches it, in counted time with nothing outside but ports that answer FFH. The window lies
//! in the middle of its boot.
//!
//! The guest is set up as the kernel's boot.rst wants it for the 64-bit entry: zero page, flat segments, pages that map memory one to one.
//! No initrd, no ACPI: the kernel finds its memory, its clocks and its interrupt controllers, and has no root in the end,
//! which is behind the window.

use super::machine::{Controllers, Plan, Start};
use kvm_api::uapi::*;
use std::path::PathBuf;

const ZERO_PAGE: u64 = 0x7000;
const PML4: u64 = 0x9000;
const GDT: u64 = 0x500;
const COMMAND_LINE: u64 = 0x2_0000;
const KERNEL: u64 = 0x10_0000;
/// Bytes of memory.
const RAM: u64 = 96 << 20;
/// Instructions until the window begins: the kernel has unpacked itself, takes interrupts, and starts its subsystems one by one.
pub const BEFORE: u64 = 250_000_000;
/// Instructions of the window.
pub const WINDOW: u64 = 1000;
/// Instructions behind the window that a restored machine is run for, too: a tick of the kernel's clock (4 ms) is among them.
const BEHIND: u64 = 4_200_000;

/// The image in the cache of `softkvm demo`, if it is there.
pub fn image() -> Option<Vec<u8>> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    std::fs::read(cache.join("softkvm/debian-guest/vmlinuz")).ok()
}

/// The guest, with its window beginning after `before` instructions: slice 1. `None`: this is no bzImage.
pub fn kernel(image: &[u8], before: u64) -> Option<Plan> {
    let setup = (usize::from(*image.get(0x1f1)?).max(4) + 1) * 512;
    let header = image.get(0x1f1..0x290)?;
    let mut zero_page = vec![0u8; 4096];
    zero_page[0x1f1..0x290].copy_from_slice(header);
    zero_page[0x210] = 0xff;
    zero_page[0x228..0x22c].copy_from_slice(&(COMMAND_LINE as u32).to_le_bytes());
    // The memory map: conventional memory, and what is above 1 MiB.
    let map = [(0, 0x9_fc00u64, 1u32), (0x9_fc00, 0x400, 2), (KERNEL, RAM - KERNEL, 1)];
    zero_page[0x1e8] = map.len() as u8;
    for (n, (start, size, kind)) in map.into_iter().enumerate() {
        let at = 0x2d0 + 20 * n;
        zero_page[at..at + 8].copy_from_slice(&start.to_le_bytes());
        zero_page[at + 8..at + 16].copy_from_slice(&size.to_le_bytes());
        zero_page[at + 16..at + 20].copy_from_slice(&kind.to_le_bytes());
    }
    let words = |w: &[u64]| w.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let directories: Vec<u64> = (0..2048u64).map(|n| n << 21 | 0x83).collect();
    let pdpt = PML4 + 0x1000;

    let flat = kvm_segment {
        limit: u32::MAX,
        selector: 0x18,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let sregs = kvm_sregs2 {
        cs: kvm_segment { selector: 0x10, type_: 11, db: 0, l: 1, ..flat },
        ds: flat,
        es: flat,
        fs: flat,
        gs: flat,
        ss: flat,
        tr: kvm_segment { selector: 0x20, type_: 11, limit: 0x67, present: 1, ..Default::default() },
        ldt: kvm_segment { unusable: 1, ..Default::default() },
        gdt: kvm_dtable { base: GDT, limit: 0x2f, ..Default::default() },
        cr0: 0x8000_0011,
        cr3: PML4,
        cr4: 0x20,
        efer: 0x500,
        apic_base: 0xfee0_0900,
        ..Default::default()
    };
    let regs = kvm_regs { rip: KERNEL + 0x200, rsi: ZERO_PAGE, rsp: 0x8ff0, rflags: 2, ..Default::default() };
    let start = Start { regs: Some(regs), sregs: Some(sregs), ..Start::default() };
    let mut p = Plan::one("a kernel's boot", Controllers::Full, start, 0);
    p.ram = RAM;
    p.pieces = vec![
        (GDT, words(&[0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x8b00_0000_0067, 0])),
        (ZERO_PAGE, zero_page),
        (PML4, words(&[pdpt | 3])),
        (pdpt, words(&[1, 2, 3, 4].map(|n| (pdpt + 0x1000 * n) | 3))),
        (pdpt + 0x1000, words(&directories)),
        (COMMAND_LINE, b"console=ttyS0 panic=-1\0".to_vec()),
        (KERNEL, image.get(setup..)?.to_vec()),
    ];
    p.quiet_ports = true;
    p.long = true;
    p.slices = vec![(0, before), (0, WINDOW), (0, BEHIND)];
    Some(p)
}
