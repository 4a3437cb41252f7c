//! The address space that a case runs in, the same for the oracle's child process and for the engine's guest: which pages
//! exist, with which permissions and contents, and which descriptors a selector may name. All of it lies below 4 GiB, so
//! that one layout serves 64-, 32- and 16-bit code.
//!
//! Whatever else a machine needs (the child's own code and stacks; the guest's tables, handlers and kernel stack)
//! lies above 4 GiB: the child's where the kernel puts it, the guest's in the upper half, of supervisor privilege.

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// What user mode may do with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permission {
    /// Read and execute.
    Execute,
    /// Read and write.
    Write,
    /// Read.
    Read,
}

/// A run of pages. Between runs there is nothing: an access is #PF with a not-present page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    /// Linear address of the first byte.
    pub start: u64,
    /// Pages.
    pub pages: u64,
    /// What user mode may do.
    pub permission: Permission,
}

impl Area {
    /// The first address after it.
    pub const fn end(&self) -> u64 {
        self.start + self.pages * PAGE
    }
    /// Bytes.
    pub const fn len(&self) -> u64 {
        self.pages * PAGE
    }
    /// Never: an area has pages.
    pub const fn is_empty(&self) -> bool {
        self.pages == 0
    }
}

/// One page of code, and nothing behind it. All that is not a case's instruction is UD2 (0FH 0BH).
pub const CODE: u64 = 0x1000_0000;
/// Data: two writable pages, a read-only page, nothing, a writable page. In 16-bit segments its base.
pub const DATA: u64 = 0x2000_0000;
/// The read-only page behind the first writable ones.
pub const READ_ONLY: u64 = DATA + 2 * PAGE;
/// A page that does not exist, between a read-only page and a writable one.
pub const HOLE: u64 = DATA + 3 * PAGE;
/// The writable page behind the hole.
pub const ISLAND: u64 = DATA + 4 * PAGE;
/// Two writable pages for the stack, nothing on both sides.
pub const STACK: u64 = 0x3000_0000;

/// All pages.
pub const AREAS: [Area; 5] = [
    Area { start: CODE, pages: 1, permission: Permission::Execute },
    Area { start: DATA, pages: 2, permission: Permission::Write },
    Area { start: READ_ONLY, pages: 1, permission: Permission::Read },
    Area { start: ISLAND, pages: 1, permission: Permission::Write },
    Area { start: STACK, pages: 2, permission: Permission::Write },
];

/// Bytes of all areas, one behind the other: how both machines back them.
pub const BACKING: usize = (7 * PAGE) as usize;

/// Where an address lies in the backing.
pub fn backing_offset(address: u64) -> Option<usize> {
    let mut at = 0;
    for area in AREAS {
        if (area.start..area.end()).contains(&address) {
            return Some((at + address - area.start) as usize);
        }
        at += area.len();
    }
    None
}

/// The linear address of a byte of the backing.
pub fn address_of(offset: usize) -> Option<u64> {
    let mut offset = offset as u64;
    for area in AREAS {
        if offset < area.len() {
            return Some(area.start + offset);
        }
        offset -= area.len();
    }
    None
}

/// What memory holds before a case's own bytes are put there: UD2 where code is, elsewhere a fixed mixture
/// of noise and of numbers that are special to some instruction (zeros, ones, signs, infinities, NaNs, denormals).
pub fn template() -> Vec<u8> {
    let mut bytes = vec![0; BACKING];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let code = AREAS[0].len() as usize;
    for pair in bytes[..code].chunks_exact_mut(2) {
        pair.copy_from_slice(&[0x0f, 0x0b]);
    }
    for (n, chunk) in bytes[code..].chunks_exact_mut(8).enumerate() {
        // xorshift64* (Vigna 2016).
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let noise = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        let word = match n % 5 {
            0 => SPECIAL[(noise >> 32) as usize % SPECIAL.len()],
            _ => noise,
        };
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Words that mean something to some instruction: integers at their edges, and singles, doubles and halves at theirs.
pub const SPECIAL: [u64; 20] = [
    0,
    1,
    u64::MAX,
    0x8000_0000_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8080_8080_8080_8080,
    0x0000_0001_0000_0001,
    0x3ff0_0000_0000_0000, // 1.0
    0x3f80_0000_3f80_0000, // 1.0f twice
    0x3c00_bc00_3c00_bc00, // ±1.0 in halves
    0x7ff0_0000_0000_0000, // infinity
    0xff80_0000_7f80_0000, // infinities
    0x7ff8_0000_0000_0001, // quiet NaN
    0x7ff0_0000_0000_0001, // signalling NaN
    0x7fc0_0001_7f80_0001, // quiet and signalling NaN
    0x0000_0000_0000_0fff, // denormal
    0x0000_0fff_8000_0001, // denormals
    0x7fef_ffff_ffff_ffff, // largest double
    0x43e0_0000_0000_0000, // 2^63
    0xc1e0_0000_0020_0000, // -2^31 and a little
];

/// A descriptor that a case's selector may name. The oracle has the GDT's from the kernel and sets the LDT's by
/// modify_ldt(2); the engine's guest has all of them in tables of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// The selector, RPL 3 and table indicator included.
    pub selector: u16,
    /// Base.
    pub base: u32,
    /// Limit as the descriptor has it: in pages with `granular`.
    pub limit: u32,
    /// The limit counts pages.
    pub granular: bool,
    /// Type field of a code or data segment (SDM vol. 3A, table 3-1), with its accessed bit.
    pub typ: u8,
    /// L: 64-bit code.
    pub long: bool,
    /// D/B: 32-bit operands, or a 32-bit stack pointer.
    pub big: bool,
    /// Present.
    pub present: bool,
}

/// Flat 32-bit code: Linux's __USER32_CS.
pub const CODE32: u16 = 0x23;
/// Flat data: Linux's __USER_DS.
pub const FLAT: u16 = 0x2b;
/// 64-bit code: Linux's __USER_CS.
pub const CODE64: u16 = 0x33;
/// 16-bit code whose base is [`CODE`].
pub const CODE16: u16 = 0x07;
/// Writable data whose base is [`DATA`], 64 KiB, 16-bit.
pub const DATA16: u16 = 0x0f;
/// Read-only data whose base is [`DATA`], one page.
pub const DATA_RO: u16 = 0x17;
/// Expand-down data whose base is [`DATA`]: offsets 1000H to FFFFH.
pub const DATA_DOWN: u16 = 0x1f;
/// A stack whose base is [`STACK`], 64 KiB, 16-bit stack pointer.
pub const STACK16: u16 = 0x27;
/// Data that is not present.
pub const ABSENT: u16 = 0x2f;
/// Execute-only 32-bit code, flat.
pub const CODE_ONLY: u16 = 0x37;
/// Writable data whose base is [`DATA`], 32-bit, with a limit in the middle of its second page.
pub const DATA_SHORT: u16 = 0x3f;

/// All descriptors that both machines have. Selectors that name nothing here are null (0 to 3) or beyond the LDT's limit.
pub const DESCRIPTORS: [Descriptor; 11] = [
    Descriptor {
        selector: CODE32,
        base: 0,
        limit: 0xf_ffff,
        granular: true,
        typ: 0xb,
        long: false,
        big: true,
        present: true,
    },
    Descriptor {
        selector: FLAT,
        base: 0,
        limit: 0xf_ffff,
        granular: true,
        typ: 3,
        long: false,
        big: true,
        present: true,
    },
    Descriptor {
        selector: CODE64,
        base: 0,
        limit: 0xf_ffff,
        granular: true,
        typ: 0xb,
        long: true,
        big: false,
        present: true,
    },
    Descriptor {
        selector: CODE16,
        base: CODE as u32,
        limit: 0xffff,
        granular: false,
        typ: 0xb,
        long: false,
        big: false,
        present: true,
    },
    Descriptor {
        selector: DATA16,
        base: DATA as u32,
        limit: 0xffff,
        granular: false,
        typ: 3,
        long: false,
        big: false,
        present: true,
    },
    Descriptor {
        selector: DATA_RO,
        base: DATA as u32,
        limit: 0xfff,
        granular: false,
        typ: 1,
        long: false,
        big: true,
        present: true,
    },
    Descriptor {
        selector: DATA_DOWN,
        base: DATA as u32,
        limit: 0xfff,
        granular: false,
        typ: 7,
        long: false,
        big: false,
        present: true,
    },
    Descriptor {
        selector: STACK16,
        base: STACK as u32,
        limit: 0xffff,
        granular: false,
        typ: 3,
        long: false,
        big: false,
        present: true,
    },
    Descriptor {
        selector: ABSENT,
        base: DATA as u32,
        limit: 0xffff,
        granular: false,
        typ: 3,
        long: false,
        big: true,
        present: false,
    },
    Descriptor {
        selector: CODE_ONLY,
        base: 0,
        limit: 0xf_ffff,
        granular: true,
        typ: 9,
        long: false,
        big: true,
        present: true,
    },
    Descriptor {
        selector: DATA_SHORT,
        base: DATA as u32,
        limit: 0x17ff,
        granular: false,
        typ: 3,
        long: false,
        big: true,
        present: true,
    },
];

/// Entries of the LDT.
pub const LDT_ENTRIES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backing_holds_the_areas() {
        assert_eq!(AREAS.iter().map(Area::len).sum::<u64>(), BACKING as u64);
        for offset in [0, 4095, 4096, 0x2fff, 0x3000, BACKING - 1] {
            let address = address_of(offset).expect("inside");
            assert_eq!(backing_offset(address), Some(offset));
        }
        assert_eq!(address_of(BACKING), None);
        for nothing in [0, CODE - 1, CODE + PAGE, HOLE, HOLE + PAGE - 1, STACK - 1, STACK + 2 * PAGE] {
            assert_eq!(backing_offset(nothing), None, "{nothing:#x}");
        }
    }

    #[test]
    fn the_template_is_fixed() {
        assert_eq!(template(), template());
        assert_eq!(template()[..2], [0x0f, 0x0b]);
    }

    #[test]
    fn selectors_of_the_ldt_are_dense() {
        let ldt: Vec<u16> = DESCRIPTORS.iter().map(|d| d.selector).filter(|s| s & 4 != 0).collect();
        assert_eq!(ldt, (0..LDT_ENTRIES as u16).map(|n| n << 3 | 7).collect::<Vec<_>>());
    }
}
