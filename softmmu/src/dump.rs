//! The guest's and the shadow page tables, as text for people.
//!
//! One line for each run of guest pages that are contiguous in gva and gpa and have the same rights; beside it how much of the run
//! the shadow tables map, and how.
//!
//! ```text
//! guest                                                 gpa             size  rights  shadow
//! 0000000000400000-00000000004fffff  ->  000000001200000  4K  u-x          12 of 256 mapped, 0 writable
//! ```

use crate::mmu::Mmu;
use crate::perm::PageRights;
use crate::spte::Spte;
use crate::vcpu::VcpuMmu;
use crate::walk::TableMemory;
use core::fmt::Write;
use x86_arch::paging::PTE_P;
use x86_arch::{Gpa, Gva, PAGE_SIZE, PagingMode};

/// Lines at most: a guest may map the same table a thousand times.
const MAX_RUNS: usize = 4096;

/// A run of guest pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    gva: u64,
    gpa: u64,
    len: u64,
    level: u8,
    rights: PageRights,
}

/// What the shadow tables have of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Mapped {
    present: u64,
    writable: u64,
    mmio: u64,
}

impl VcpuMmu {
    /// This vCPU's address space: the guest's tables, and what the shadow tables have of them.
    pub fn dump(&self) -> String {
        let mut out = String::new();
        let (mode, root) = (self.context.mode, self.context.root);
        let _ = writeln!(out, "{mode:?}, root {root:x}, roots {:?}", self.roots.current.frames);
        let runs = self.guest_runs();
        for run in &runs {
            let mapped = self.mapped(run);
            let size = match run.level {
                1 => "4K",
                2 if !self.context.wide() => "4M",
                2 => "2M",
                _ => "1G",
            };
            let letter = |on: bool, letter| if on { letter } else { '-' };
            let _ = write!(
                out,
                "{:016x}-{:016x}  ->  {:013x}  {size}  {}{}{}",
                run.gva,
                run.gva.wrapping_add(run.len - 1),
                run.gpa,
                letter(run.rights.user, 'u'),
                letter(run.rights.write, 'w'),
                letter(run.rights.execute, 'x'),
            );
            if run.rights.pkey != 0 {
                let _ = write!(out, " key{}", run.rights.pkey);
            }
            let pages = run.len / PAGE_SIZE;
            let _ = write!(out, "  {} of {pages} mapped, {} writable", mapped.present, mapped.writable);
            if mapped.mmio != 0 {
                let _ = write!(out, ", {} mmio", mapped.mmio);
            }
            out.push('\n');
        }
        if runs.len() >= MAX_RUNS {
            out.push_str("and more\n");
        }
        out
    }

    fn guest_runs(&self) -> Vec<Run> {
        let mut runs = Vec::new();
        match self.context.mode {
            PagingMode::None => {
                runs.push(Run { gva: 0, gpa: 0, len: 1 << 32, level: 1, rights: PageRights::ALL });
            }
            PagingMode::Pae => {
                for (i, pdpte) in (0u64..).zip(self.context.pdptrs) {
                    if pdpte & PTE_P != 0 {
                        let table = self.context.table_base(pdpte);
                        self.table_runs(&mut runs, table, 2, i << 30, PageRights::ALL);
                    }
                }
            }
            mode => self.table_runs(&mut runs, self.context.root, mode.levels(), 0, PageRights::ALL),
        }
        runs
    }

    fn table_runs(&self, runs: &mut Vec<Run>, table: Gpa, level: u8, gva: u64, above: PageRights) {
        let wide = self.context.wide();
        let (entries, size) = if wide { (512, 8) } else { (1024, 4) };
        let shift = self.context.level_shift(level);
        for index in 0..entries {
            if runs.len() >= MAX_RUNS {
                return;
            }
            let Some(entry) = self.tables().read_entry(Gpa(table.0 + index * size), wide) else { return };
            if entry & PTE_P == 0 || entry & self.context.reserved_bits(entry, level) != 0 {
                continue;
            }
            let gva = self.sign_extend(gva | index << shift);
            let rights = above.and(self.context.entry_rights(entry));
            if !self.context.is_leaf(entry, level) {
                self.table_runs(runs, self.context.table_base(entry), level - 1, gva, rights);
                continue;
            }
            let next = Run { gva, gpa: self.context.leaf_base(entry, level), len: 1 << shift, level, rights };
            match runs.last_mut() {
                Some(run)
                    if run.gva.wrapping_add(run.len) == next.gva
                        && run.gpa.wrapping_add(run.len) == next.gpa
                        && (run.level, run.rights) == (level, rights) =>
                {
                    run.len += next.len;
                }
                _ => runs.push(next),
            }
        }
    }

    fn sign_extend(&self, gva: u64) -> u64 {
        let unused = match self.context.mode {
            PagingMode::Level5 => 7,
            PagingMode::Level4 => 16,
            _ => return gva,
        };
        ((gva << unused) as i64 >> unused) as u64
    }

    /// Counts the sptes of a run, skipping what has no shadow page.
    fn mapped(&self, run: &Run) -> Mapped {
        let mut mapped = Mapped::default();
        let mut at = 0;
        while at < run.len {
            let gva = run.gva.wrapping_add(at);
            match self.shadow_page_of(gva) {
                None => at += (2 << 20) - (gva & ((2 << 20) - 1)),
                Some(frame) => {
                    let spte: Spte = self.mmu.arena.read(frame, (gva >> 12 & 511) as usize);
                    mapped.present += u64::from(spte.is_present());
                    mapped.writable += u64::from(spte.is_present() && spte.is_writable());
                    mapped.mmio += u64::from(spte.is_mmio());
                    at += PAGE_SIZE;
                }
            }
        }
        mapped
    }

    /// The level-1 shadow page that translates an address.
    fn shadow_page_of(&self, gva: u64) -> Option<u64> {
        let roots = &self.roots.current;
        let mut frame = u64::from(roots.frames[roots.key.index(Gva(gva))]);
        for level in (2..=roots.key.role.level()).rev() {
            let spte = self.mmu.arena.read(frame, (gva >> (12 + 9 * (u32::from(level) - 1)) & 511) as usize);
            if frame == 0 || !spte.is_present() {
                return None;
            }
            frame = spte.frame();
        }
        Some(frame)
    }
}

impl Mmu {
    /// All shadow pages, one a line.
    pub fn dump_shadow_pages(&self) -> String {
        let shadow = self.shadow.lock();
        let mut out = String::new();
        for (frame, page) in shadow.frames() {
            let _ = writeln!(
                out,
                "{frame:6}  gfn {:9x}  {:?}  {} sptes, {} parents, {} roots, slots {:#x}",
                page.gfn.0,
                page.role,
                page.used,
                page.parent_ptes.as_slice().len(),
                page.root_count,
                page.slot_bitmap,
            );
        }
        let _ = writeln!(out, "{:?}", shadow.stats);
        out
    }
}
