//! What the guest needs around a case: page tables, descriptor tables, a TSS, and a handler for each vector, which is one HLT.
//!
//! The pages of [`crate::layout`] have user privilege at their own linear addresses. All else lies at [`KERNEL`] in
//! the upper half, of supervisor privilege. Selectors stand where Linux has them, so that a selector that a case makes up means
//! the same to both machines.

use super::EngineError;
use super::memory::Memory;
use crate::layout::{self, Area, DESCRIPTORS, Descriptor, PAGE, Permission};

/// Bytes of guest memory.
pub(super) const SIZE: usize = 0x2_0000;
/// Guest-physical address of the pages of [`crate::layout`], one behind the other.
pub(super) const BACKING_GPA: u64 = 0x1_0000;
/// The PML4.
pub(super) const PML4: u64 = 0x1000;
const LOW_PDPT: u64 = 0x2000;
const LOW_PD: u64 = 0x3000;
/// Three page tables: for the code, the data and the stack.
const LOW_PT: u64 = 0x4000;
const HIGH_PDPT: u64 = 0x7000;
const HIGH_PD: u64 = 0x8000;
const HIGH_PT: u64 = 0x9000;

/// Linear address of what only supervisor mode may touch.
pub(super) const KERNEL: u64 = 0xffff_8000_0000_0000;
/// Guest-physical address of the page at [`KERNEL`].
const KERNEL_GPA: u64 = 0xa000;
const KERNEL_PAGES: u64 = 5;

const GDT: u64 = 0;
/// As Linux's: 16 entries.
pub(super) const GDT_LIMIT: u16 = 0x7f;
const LDT: u64 = 0x100;
pub(super) const LDT_LIMIT: u32 = layout::LDT_ENTRIES as u32 * 8 - 1;
const TSS: u64 = 0x200;
/// No I/O permission bitmap.
pub(super) const TSS_LIMIT: u32 = 0x67;
const IDT: u64 = 0x1000;
pub(super) const IDT_LIMIT: u16 = 0xfff;
/// HLT for vector 0, for vector 1 …
const HANDLERS: u64 = 0x2000;
const STACK_TOP: u64 = KERNEL_PAGES * PAGE;

/// Selectors of the guest's kernel.
pub(super) const KERNEL_CODE: u16 = 0x10;
pub(super) const TSS_SELECTOR: u16 = 0x40;
pub(super) const LDT_SELECTOR: u16 = 0x50;

pub(super) const GDT_BASE: u64 = KERNEL + GDT;
pub(super) const IDT_BASE: u64 = KERNEL + IDT;
pub(super) const LDT_BASE: u64 = KERNEL + LDT;
pub(super) const TSS_BASE: u64 = KERNEL + TSS;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const ACCESSED_DIRTY: u64 = 0x60;
const NO_EXECUTE: u64 = 1 << 63;

/// The vector whose handler halted with this RIP.
pub(super) fn vector_of(rip: u64) -> Option<u8> {
    u8::try_from(rip.wrapping_sub(KERNEL + HANDLERS).wrapping_sub(1)).ok()
}

/// Where an address of the guest's kernel stack lies in memory.
pub(super) fn stack_gpa(rsp: u64) -> Option<u64> {
    let offset = rsp.wrapping_sub(KERNEL);
    (STACK_TOP - PAGE..STACK_TOP).contains(&offset).then_some(KERNEL_GPA + offset)
}

/// Whether the exception pushes an error code (SDM vol. 3A, table 6-1).
pub(super) fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

fn entry(d: &Descriptor) -> u64 {
    let flag = |on: bool, at: u32| u64::from(on) << at;
    let (base, limit) = (u64::from(d.base), u64::from(d.limit));
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | u64::from(d.typ) << 40
        | 1 << 44
        | 3 << 45
        | flag(d.present, 47)
        | (limit >> 16 & 0xf) << 48
        | flag(d.long, 53)
        | flag(d.big, 54)
        | flag(d.granular, 55)
        | (base >> 24 & 0xff) << 56
}

fn system(base: u64, limit: u32, typ: u64) -> [u64; 2] {
    let low = u64::from(limit) & 0xffff
        | (base & 0xff_ffff) << 16
        | typ << 40
        | 1 << 47
        | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

fn gate(vector: u64) -> [u64; 2] {
    let handler = KERNEL + HANDLERS + vector;
    // INT3 and INTO may come from user mode, as in Linux; an interrupt gate.
    let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
    let low = handler & 0xffff
        | u64::from(KERNEL_CODE) << 16
        | 0xe << 40
        | dpl << 45
        | 1 << 47
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

/// Writes everything.
pub(super) fn write(memory: &Memory) -> Result<(), EngineError> {
    let put = |at: u64, word: u64| memory.write(at, &word.to_le_bytes());
    let open = PRESENT | WRITABLE | USER | ACCESSED_DIRTY;
    put(PML4, LOW_PDPT | open)?;
    put(PML4 + 8 * 256, HIGH_PDPT | open)?;
    put(LOW_PDPT, LOW_PD | open)?;
    put(HIGH_PDPT, HIGH_PD | open)?;
    put(HIGH_PD, HIGH_PT | open)?;
    for n in 0..KERNEL_PAGES {
        put(HIGH_PT + 8 * n, (KERNEL_GPA + n * PAGE) | PRESENT | WRITABLE | ACCESSED_DIRTY)?;
    }
    let mut gpa = BACKING_GPA;
    for Area { start, pages, permission } in layout::AREAS {
        let table = match start {
            layout::CODE => LOW_PT,
            layout::STACK => LOW_PT + 2 * PAGE,
            _ => LOW_PT + PAGE,
        };
        put(LOW_PD + 8 * (start >> 21), table | open)?;
        for page in 0..pages {
            let bits = PRESENT
                | USER
                | ACCESSED_DIRTY
                | match permission {
                    Permission::Execute => 0,
                    Permission::Write => WRITABLE | NO_EXECUTE,
                    Permission::Read => NO_EXECUTE,
                };
            put(table + 8 * ((start >> 12 & 511) + page), gpa | bits)?;
            gpa += PAGE;
        }
    }
    for d in DESCRIPTORS {
        let table = if d.selector & 4 != 0 { LDT } else { GDT };
        put(KERNEL_GPA + table + u64::from(d.selector & !7), entry(&d))?;
    }
    put(KERNEL_GPA + GDT + u64::from(KERNEL_CODE), 0x00af_9b00_0000_ffff)?;
    for (selector, base, limit, typ) in
        [(TSS_SELECTOR, TSS_BASE, TSS_LIMIT, 0xb), (LDT_SELECTOR, LDT_BASE, LDT_LIMIT, 2)]
    {
        for (n, word) in (0..).zip(system(base, limit, typ)) {
            put(KERNEL_GPA + GDT + u64::from(selector) + 8 * n, word)?;
        }
    }
    // RSP0, and an I/O map base beyond the limit.
    memory.write(KERNEL_GPA + TSS + 4, &(KERNEL + STACK_TOP).to_le_bytes())?;
    memory.write(KERNEL_GPA + TSS + 0x66, &0x8000_u16.to_le_bytes())?;
    for vector in 0..256 {
        for (n, word) in (0..).zip(gate(vector)) {
            put(KERNEL_GPA + IDT + 16 * vector + 8 * n, word)?;
        }
    }
    memory.write(KERNEL_GPA + HANDLERS, &[0xf4; 256])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_tell_their_vectors() {
        assert_eq!(vector_of(KERNEL + HANDLERS + 14 + 1), Some(14));
        assert_eq!(vector_of(KERNEL + HANDLERS + 255 + 1), Some(255));
        assert_eq!(vector_of(KERNEL + HANDLERS), None);
        assert_eq!(vector_of(0), None);
    }

    #[test]
    fn descriptors_are_those_of_linux() {
        let row = |selector| DESCRIPTORS.iter().find(|d| d.selector == selector).map(entry);
        assert_eq!(row(layout::CODE64), Some(0x00af_fb00_0000_ffff));
        assert_eq!(row(layout::CODE32), Some(0x00cf_fb00_0000_ffff));
        assert_eq!(row(layout::FLAT), Some(0x00cf_f300_0000_ffff));
    }

    #[test]
    fn the_layout_fits() {
        const { assert!(BACKING_GPA as usize + layout::BACKING <= SIZE) };
        const { assert!(KERNEL_GPA + KERNEL_PAGES * PAGE <= BACKING_GPA) };
        for area in layout::AREAS {
            assert_eq!(area.start >> 21, (area.end() - 1) >> 21, "one page table for an area");
        }
    }
}
