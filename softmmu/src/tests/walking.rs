//! The guest walker against the naive one: random tables, registers and accesses in every mode.

use crate::access::{Access, AccessKind};
use crate::naive::{self, Outcome};
use crate::vcpu::PagingRegisters;
use crate::walk::{EntryUpdate, PagingContext, Purpose, TableMemory, walk};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use x86_arch::{Cr0, Cr4, Efer, Gpa, Gva};

/// Eight frames of tables, so that walks meet present entries, each other's tables, and holes.
const FRAMES: u64 = 8;

#[derive(Default, Clone)]
pub(super) struct Tables {
    words: RefCell<BTreeMap<u64, u32>>,
}

impl Tables {
    pub fn set(&self, at: u64, value: u64, size: u64) {
        let mut words = self.words.borrow_mut();
        words.insert(at, value as u32);
        if size == 8 {
            words.insert(at + 4, (value >> 32) as u32);
        }
    }

    pub fn get(&self, at: u64, size: u64) -> Option<u64> {
        if at >= FRAMES << 12 {
            return None;
        }
        let words = self.words.borrow();
        let word = |at| u64::from(words.get(&at).copied().unwrap_or(0));
        Some(word(at) | if size == 8 { word(at + 4) << 32 } else { 0 })
    }
}

impl TableMemory for Tables {
    fn read_entry(&self, gpa: Gpa, wide: bool) -> Option<u64> {
        self.get(gpa.0, if wide { 8 } else { 4 })
    }

    fn update_entry(&self, gpa: Gpa, wide: bool, old: u64, new: u64) -> EntryUpdate {
        let size = if wide { 8 } else { 4 };
        match self.get(gpa.0, size) {
            None => EntryUpdate::Failed,
            Some(seen) if seen != old => EntryUpdate::Changed,
            Some(_) => {
                self.set(gpa.0, new, size);
                EntryUpdate::Done
            }
        }
    }
}

/// An entry that is usually present and usually valid, with a table or page among the first few frames.
pub(super) fn entry() -> impl Strategy<Value = u64> {
    let flags = prop_oneof![
        20 => Just(0x7u64),
        10 => Just(0x67),
        3 => Just(0x5),
        3 => Just(0x3),
        1 => Just(0x1),
        1 => Just(0x6),
        2 => Just(0x87),
        1 => Just(0xe3),
    ];
    let high = prop_oneof![
        40 => Just(0u64),
        2 => Just(1 << 63),
        2 => (0u64..16).prop_map(|key| key << 59),
        1 => (0u32..64).prop_map(|n| 1 << n),
    ];
    let low = prop_oneof![
        40 => Just(0u64),
        1 => Just(1 << 8),
        1 => Just(1 << 12),
        1 => (13u32..30).prop_map(|n| 1 << n),
    ];
    (0u64..FRAMES + 1, flags, high, low)
        .prop_map(|(frame, flags, high, low)| frame << 12 | flags | high | low)
}

pub(super) fn registers() -> impl Strategy<Value = PagingRegisters> {
    let mode = prop_oneof![
        1 => Just((Cr0::PE, Cr4::empty(), Efer::empty())),
        3 => Just((Cr0::PE | Cr0::PG, Cr4::empty(), Efer::empty())),
        3 => Just((Cr0::PE | Cr0::PG, Cr4::PAE, Efer::empty())),
        4 => Just((Cr0::PE | Cr0::PG, Cr4::PAE, Efer::LME | Efer::LMA)),
        3 => Just((Cr0::PE | Cr0::PG, Cr4::PAE | Cr4::LA57, Efer::LME | Efer::LMA)),
    ];
    // Two coins for each bit that refuses things: most accesses shall be allowed.
    let cr4 = (any::<u64>(), any::<u64>()).prop_map(|(a, b)| {
        Cr4::from_bits_truncate(a & b) & (Cr4::PSE | Cr4::PGE | Cr4::SMEP | Cr4::SMAP | Cr4::PKE)
    });
    (
        mode,
        any::<bool>(),
        cr4,
        proptest::bool::weighted(0.8),
        (any::<u32>(), any::<u32>()).prop_map(|(a, b)| a & b),
        prop_oneof![Just(32u8), Just(36), Just(40), Just(46), Just(52)],
        0u64..3,
    )
        .prop_map(|((cr0, mode_cr4, efer), wp, cr4, nxe, pkru, maxphyaddr, root)| PagingRegisters {
            cr0: if wp { cr0 | Cr0::WP } else { cr0 },
            cr3: root << 12,
            cr4: mode_cr4 | cr4,
            efer: if nxe { efer | Efer::NXE } else { efer },
            pkru,
            as_id: 0,
            maxphyaddr,
        })
}

pub(super) fn an_access() -> impl Strategy<Value = (Access, bool)> {
    let kind = prop_oneof![Just(AccessKind::Read), Just(AccessKind::Write), Just(AccessKind::Execute)];
    (kind, 0u8..4).prop_map(|(kind, who)| {
        let implicit = who == 3 && kind != AccessKind::Execute;
        (Access { kind, user: who == 0, implicit }, who == 1)
    })
}

/// An address that uses few different indices, so that random tables are met.
pub(super) fn address() -> impl Strategy<Value = u64> {
    (proptest::collection::vec(0u64..4, 5), 0u64..4096, proptest::bool::weighted(0.1)).prop_map(
        |(indices, offset, high)| {
            let gva = indices.iter().enumerate().fold(offset, |gva, (i, index)| gva | index << (12 + 9 * i));
            if high { gva | 0xff00_0000_0000_0000 } else { gva }
        },
    )
}

/// The address cut to what the mode can express.
pub(super) fn fit(regs: &PagingRegisters, gva: u64) -> u64 {
    if !regs.efer.contains(Efer::LMA) {
        gva & 0xffff_ffff
    } else if regs.cr4.contains(Cr4::LA57) {
        ((gva << 7) as i64 >> 7) as u64
    } else {
        ((gva << 16) as i64 >> 16) as u64
    }
}

pub(super) fn pdptrs() -> impl Strategy<Value = [u64; 4]> {
    proptest::array::uniform4((0u64..FRAMES, 0u8..8).prop_map(|(frame, p)| frame << 12 | u64::from(p != 0)))
}

/// Tables: the entries that [`address`]es use are there in most frames. (Frame, index in the table, entry).
pub(super) fn places() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
    // The last few are where 4-byte entries are met.
    let index = proptest::sample::select(vec![0u64, 1, 2, 3, 0, 1, 2, 3, 511, 512, 513, 256, 257, 768, 769]);
    proptest::collection::vec((0..FRAMES, index, entry()), 60..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn the_walker_agrees_with_the_naive_one(
        regs in registers(),
        pdptrs in pdptrs(),
        places in places(),
        accesses in proptest::collection::vec((address(), an_access()), 1..30),
    ) {
        let context = PagingContext {
            pdptrs,
            ..PagingContext::new(regs.cr0, regs.cr3, regs.cr4, regs.efer, regs.pkru, regs.maxphyaddr)
        };
        let tables = Tables::default();
        let size = if context.wide() { 8 } else { 4 };
        for (frame, index, entry) in places {
            tables.set((frame << 12) | ((index * size) & 0xfff), entry, size);
        }
        for (gva, (access, ac)) in accesses {
            let gva = fit(&regs, gva);
            let before = tables.clone();
            let expected = naive::access(&regs, pdptrs, gva, access, ac, &|at, size| before.get(at, size));
            let got = walk(&tables, &context, Gva(gva), Purpose::Access { access, ac });
            match expected {
                Outcome::Fault(code) => {
                    prop_assert_eq!(got.map(|w| w.gpa).map_err(|c| c.bits()), Err(code.bits()), "{:#x} {:?}", gva, access);
                    prop_assert_eq!(&*tables.words.borrow(), &*before.words.borrow(), "a fault sets no bits");
                }
                Outcome::Ok { gpa, updates } => {
                    prop_assert_eq!(got.map(|w| w.gpa), Ok(Gpa(gpa)), "{:#x} {:?}", gva, access);
                    for (at, value) in updates {
                        before.set(at, value, size);
                    }
                    let clean = |t: &Tables| -> BTreeMap<u64, u32> {
                        t.words.borrow().iter().filter(|(_, v)| **v != 0).map(|(k, v)| (*k, *v)).collect()
                    };
                    prop_assert_eq!(clean(&tables), clean(&before), "A and D bits");
                }
            }
        }
    }
}
