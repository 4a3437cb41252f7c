//! The guest page walker: gva to gpa by the guest's own tables, in every paging mode (SDM vol. 3A, chapter 4).
//!
//! Generic over where tables are read. A walk first only reads; if the access is allowed, it sets accessed and dirty
//! bits with compare-exchange, and starts again when an entry has changed meanwhile. What the architecture leaves open is done
//! as KVM does it: a table that cannot be read counts as not present, and accessed and dirty bits in
//! read-only memory are left alone.
//!
//! Not here: the shadow tables (`fault`), and the second walker that tests hold this one to (`naive`).

use crate::access::Access;
use crate::perm::{PageRights, PermissionRules};
use x86_arch::addr::is_canonical;
use x86_arch::control::{Cr0, Cr4, Efer};
use x86_arch::paging::{PTE_A, PTE_D, PTE_G, PTE_NX, PTE_P, PTE_PKEY_SHIFT, PTE_PS, PTE_U, PTE_W};
use x86_arch::{Gfn, Gpa, Gva, PAGE_MASK, PageFaultErrorCode, PagingMode};

/// Bits 51:12.
const ADDRESS_BITS: u64 = 0x000f_ffff_ffff_f000;
/// The most paging structures that a walk reads.
pub const MAX_LEVELS: usize = 5;

/// What became of the update of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryUpdate {
    /// It is in memory.
    Done,
    /// The entry no longer held the old value.
    Changed,
    /// The memory is read-only: leave the bits alone.
    ReadOnly,
    /// The memory cannot be reached.
    Failed,
}

/// Where paging structures are read and updated. Entries are 4 or 8 bytes (`wide`), naturally aligned.
pub trait TableMemory {
    /// The entry, or nothing if there is no memory there.
    fn read_entry(&self, gpa: Gpa, wide: bool) -> Option<u64>;
    /// Atomically replaces `old` by `new`.
    fn update_entry(&self, gpa: Gpa, wide: bool, old: u64, new: u64) -> EntryUpdate;
}

/// The registers, digested for walking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagingContext {
    /// How linear addresses become physical.
    pub mode: PagingMode,
    /// The physical address of the top table (not for PAE).
    pub root: Gpa,
    /// The PDPTE registers (PAE only).
    pub pdptrs: [u64; 4],
    /// IA32_EFER.NXE, where entries are 8 bytes wide.
    pub nxe: bool,
    /// CR4.PSE: 4 MiB pages in 32-bit paging.
    pub pse: bool,
    /// Physical-address width.
    pub maxphyaddr: u8,
    /// The permission rules.
    pub rules: PermissionRules,
}

impl Default for PagingContext {
    fn default() -> PagingContext {
        PagingContext::new(Cr0::empty(), 0, Cr4::empty(), Efer::empty(), 0, 36)
    }
}

impl PagingContext {
    /// The context of these registers. The PDPTEs start at 0: see [`load_pdptrs`].
    pub fn new(cr0: Cr0, cr3: u64, cr4: Cr4, efer: Efer, pkru: u32, maxphyaddr: u8) -> PagingContext {
        let mode = PagingMode::of(cr0, cr4, efer);
        let root = match mode {
            PagingMode::None => 0,
            PagingMode::Bits32 => cr3 & 0xffff_f000,
            PagingMode::Pae => cr3 & 0xffff_ffe0,
            PagingMode::Level4 | PagingMode::Level5 => cr3 & ADDRESS_BITS,
        };
        PagingContext {
            mode,
            root: Gpa(root),
            pdptrs: [0; 4],
            nxe: efer.contains(Efer::NXE),
            pse: cr4.contains(Cr4::PSE),
            maxphyaddr: maxphyaddr.clamp(32, 52),
            rules: PermissionRules::new(cr0, cr4, efer, pkru),
        }
    }

    /// Whether entries are 8 bytes wide.
    pub const fn wide(&self) -> bool {
        !matches!(self.mode, PagingMode::Bits32)
    }

    /// Bits of linear address that each level but the last decodes.
    const fn index_bits(&self) -> u32 {
        if self.wide() { 9 } else { 10 }
    }

    /// The shift of the linear address that `level` (1: page table) decodes.
    pub const fn level_shift(&self, level: u8) -> u32 {
        12 + (level as u32 - 1) * self.index_bits()
    }

    /// The index into `level`'s table.
    pub const fn index(&self, gva: Gva, level: u8) -> u64 {
        (gva.0 >> self.level_shift(level)) & ((1 << self.index_bits()) - 1)
    }

    /// Whether the address can be translated at all: canonical in 4- and 5-level paging. Elsewhere
    /// linear addresses have 32 bits, and the caller has cut them off.
    pub const fn is_canonical(&self, gva: Gva) -> bool {
        match self.mode {
            PagingMode::Level4 => is_canonical(gva.0, 48),
            PagingMode::Level5 => is_canonical(gva.0, 57),
            _ => true,
        }
    }

    /// Whether a present entry at `level` maps a page rather than a table.
    pub const fn is_leaf(&self, entry: u64, level: u8) -> bool {
        match level {
            1 => true,
            2 => entry & PTE_PS != 0 && (self.wide() || self.pse),
            3 => entry & PTE_PS != 0 && matches!(self.mode, PagingMode::Level4 | PagingMode::Level5),
            _ => false,
        }
    }

    /// The reserved bits of a present entry at `level` (SDM vol. 3A, 4.3 to 4.5, "must be 0").
    pub fn reserved_bits(&self, entry: u64, level: u8) -> u64 {
        let leaf = self.is_leaf(entry, level);
        let beyond = |bit: u32, top: u32| -> u64 {
            // Bits top:bit.
            if bit > top { 0 } else { (u64::MAX >> (63 - top)) & (u64::MAX << bit) }
        };
        let width = self.maxphyaddr as u32;
        match self.mode {
            PagingMode::None => 0,
            PagingMode::Bits32 => {
                if level == 2 && leaf {
                    // PSE-36: bits 20:13 are address bits 39:32, as far as those exist; bit 21 is reserved.
                    let reach = if width < 40 { width } else { 40 };
                    beyond(reach - 19, 21)
                } else {
                    0
                }
            }
            PagingMode::Pae | PagingMode::Level4 | PagingMode::Level5 => {
                let mut bits = beyond(width, 51);
                if !self.nxe {
                    bits |= PTE_NX;
                }
                if matches!(self.mode, PagingMode::Pae) {
                    bits |= beyond(52, 62);
                }
                if leaf && level > 1 {
                    // Between the PAT bit (12) and the page's first address bit.
                    bits |= beyond(13, self.level_shift(level) - 1);
                }
                if level > 3 {
                    bits |= PTE_PS;
                }
                bits
            }
        }
    }

    /// The reserved bits of a present PDPTE register (SDM vol. 3A, 4.4.1).
    pub const fn pdpte_reserved_bits(&self) -> u64 {
        (u64::MAX << self.maxphyaddr) | 0x1e6
    }

    /// The rights that one entry grants.
    pub const fn entry_rights(&self, entry: u64) -> PageRights {
        PageRights {
            user: entry & PTE_U != 0,
            write: entry & PTE_W != 0,
            execute: !self.wide() || !self.nxe || entry & PTE_NX == 0,
            pkey: if matches!(self.mode, PagingMode::Level4 | PagingMode::Level5) {
                (entry >> PTE_PKEY_SHIFT) as u8 & 15
            } else {
                0
            },
        }
    }

    /// The first byte of the page that a leaf entry at `level` maps.
    pub const fn leaf_base(&self, entry: u64, level: u8) -> u64 {
        if !self.wide() {
            return if level == 1 {
                entry & 0xffff_f000
            } else {
                // PSE-36.
                (entry & 0xffc0_0000) | ((entry >> 13 & 0xff) << 32)
            };
        }
        entry & ADDRESS_BITS & !((1 << self.level_shift(level)) - 1)
    }

    /// The table that a nonleaf entry points at.
    pub const fn table_base(&self, entry: u64) -> Gpa {
        Gpa(if self.wide() { entry & ADDRESS_BITS } else { entry & 0xffff_f000 })
    }
}

/// One level of a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalkStep {
    /// 1: page table; 2: page directory; and so on.
    pub level: u8,
    /// The table's frame.
    pub table: Gfn,
    /// The entry's address.
    pub address: Gpa,
    /// The entry as it was read (accessed and dirty bits included that the walk has set).
    pub entry: u64,
    /// The rights granted by the levels above this table.
    pub inherited: PageRights,
}

const NO_STEP: WalkStep =
    WalkStep { level: 0, table: Gfn(0), address: Gpa(0), entry: 0, inherited: PageRights::ALL };

/// A translation that the guest's tables allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Walk {
    /// The guest physical address of the access.
    pub gpa: Gpa,
    /// The rights of the page, over all levels.
    pub rights: PageRights,
    /// The level of the entry that maps the page (1: 4 KiB); 0 without paging.
    pub level: u8,
    /// Writes may be cached: the dirty bit is set (or need not be).
    pub dirty: bool,
    /// The page is global.
    pub global: bool,
    steps: [WalkStep; MAX_LEVELS],
    depth: u8,
}

impl Walk {
    /// The entries read, from the top.
    pub fn steps(&self) -> &[WalkStep] {
        self.steps.get(..usize::from(self.depth)).unwrap_or(&[])
    }
}

/// What a walk does to accessed and dirty bits and how it checks rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// The guest's access: rights are checked, and A and D set. `ac` is EFLAGS.AC.
    Access {
        /// The access.
        access: Access,
        /// EFLAGS.AC.
        ac: bool,
    },
    /// A debugger's look: only presence and reserved bits count, and nothing is set.
    Peek,
}

/// Walks the guest's tables for `gva`, which is canonical.
///
/// The error is the code of the #PF.
pub fn walk(
    memory: &impl TableMemory,
    context: &PagingContext,
    gva: Gva,
    purpose: Purpose,
) -> Result<Walk, PageFaultErrorCode> {
    loop {
        if let Some(result) = walk_once(memory, context, gva, purpose) {
            return result;
        }
    }
}

/// `None`: an entry changed under the walk; start again.
fn walk_once(
    memory: &impl TableMemory,
    context: &PagingContext,
    gva: Gva,
    purpose: Purpose,
) -> Option<Result<Walk, PageFaultErrorCode>> {
    let (access, ac) = match purpose {
        Purpose::Access { access, ac } => (Some(access), ac),
        Purpose::Peek => (None, false),
    };
    let described = access.map_or(PageFaultErrorCode::empty(), |a| context.rules.describe(a));
    let mut walk = Walk {
        gpa: Gpa(gva.0),
        rights: PageRights::ALL,
        level: 0,
        dirty: true,
        global: false,
        steps: [NO_STEP; MAX_LEVELS],
        depth: 0,
    };

    let (mut table, mut level) = match context.mode {
        PagingMode::None => return Some(Ok(walk)),
        PagingMode::Pae => {
            let pdpte = context.pdptrs[(gva.0 >> 30) as usize & 3];
            if pdpte & PTE_P == 0 {
                return Some(Err(described));
            }
            (context.table_base(pdpte), 2)
        }
        mode => (context.root, mode.levels()),
    };

    let wide = context.wide();
    let entry_size = if wide { 8 } else { 4 };
    loop {
        let address = Gpa(table.0 + context.index(gva, level) * entry_size);
        let Some(entry) = memory.read_entry(address, wide).filter(|entry| entry & PTE_P != 0) else {
            return Some(Err(described));
        };
        if entry & context.reserved_bits(entry, level) != 0 {
            return Some(Err(described | PageFaultErrorCode::P | PageFaultErrorCode::RSVD));
        }
        if let Some(step) = walk.steps.get_mut(usize::from(walk.depth)) {
            *step = WalkStep { level, table: table.gfn(), address, entry, inherited: walk.rights };
            walk.depth += 1;
        }
        walk.rights = walk.rights.and(context.entry_rights(entry));
        if context.is_leaf(entry, level) {
            let offset = gva.0 & ((1 << context.level_shift(level)) - 1);
            walk.gpa = Gpa(context.leaf_base(entry, level) | offset);
            walk.level = level;
            walk.dirty = entry & PTE_D != 0;
            walk.global = entry & PTE_G != 0;
            break;
        }
        table = context.table_base(entry);
        level -= 1;
    }

    let Some(access) = access else { return Some(Ok(walk)) };
    if let Err(refused) = context.rules.check(walk.rights, access, ac) {
        return Some(Err(described | refused));
    }
    set_accessed_dirty(memory, &mut walk, wide, access.is_write())?
        .map_or_else(|()| Some(Err(described)), |()| Some(Ok(walk)))
}

/// Sets A in each entry, and D in the leaf for a write. `None`: an entry has changed. `Err`: an entry cannot be reached any more.
fn set_accessed_dirty(
    memory: &impl TableMemory,
    walk: &mut Walk,
    wide: bool,
    write: bool,
) -> Option<Result<(), ()>> {
    let depth = usize::from(walk.depth);
    for (i, step) in walk.steps.iter_mut().take(depth).enumerate() {
        let leaf = i + 1 == depth;
        let wanted = step.entry | PTE_A | if leaf && write { PTE_D } else { 0 };
        if wanted == step.entry {
            continue;
        }
        match memory.update_entry(step.address, wide, step.entry, wanted) {
            EntryUpdate::Done => step.entry = wanted,
            EntryUpdate::ReadOnly => {}
            EntryUpdate::Changed => return None,
            EntryUpdate::Failed => return Some(Err(())),
        }
        if leaf && write {
            // In read-only memory D cannot be kept: the translation is as good as dirty.
            walk.dirty = true;
        }
    }
    Some(Ok(()))
}

/// Reads the four PDPTEs at `cr3` as MOV to CR3 does. Nothing if one is present with a reserved bit set, or cannot be read.
pub fn load_pdptrs(memory: &impl TableMemory, context: &PagingContext, cr3: u64) -> Option<[u64; 4]> {
    let base = cr3 & 0xffff_ffe0;
    let mut pdptrs = [0; 4];
    for (i, pdpte) in (0u64..).zip(&mut pdptrs) {
        *pdpte = memory.read_entry(Gpa(base + 8 * i), true)?;
        if *pdpte & PTE_P != 0 && *pdpte & context.pdpte_reserved_bits() != 0 {
            return None;
        }
    }
    Some(pdptrs)
}

/// The offset within a 4 KiB page.
pub const fn page_offset(gva: Gva) -> u64 {
    gva.0 & PAGE_MASK
}
