//! Event: a guest page table that is shadowed was written.
//!
//! The store has been made; the sptes that were derived from the old gpte go, and come back by a fault. A table that is
//! written again and again without a fault in between (a fork that copies it, a page that is no page table any more) is
//! unshadowed: its writes become ordinary stores.
//!
//! Room: unsynchronized leaf pages (mmu.txt, "Synchronized and unsynchronized pages").

use crate::rmap::SpteRef;
use crate::role::Role;
use crate::shadow_page::{Shadow, SptArena};
use x86_arch::{Gpa, PAGE_MASK};

/// Writes without a fault in between that make a page table look like something else.
const FLOODING: u8 = 4;

/// The sptes that a gpte write touches: indices of this page, as (first, last). Nothing: another quadrant.
fn written_sptes(role: Role, offset: u64, size: u64) -> Option<(u16, u16)> {
    let last = offset + size.max(1) - 1;
    if role.cr4_pae() {
        return Some(((offset / 8) as u16, (last / 8) as u16));
    }
    // 1,024 gptes. A level-1 page shadows half of them; at level 2 each gpte is two sptes, and a page shadows a quarter.
    let (per_gpte, per_page) = if role.level() == 1 { (1, 512) } else { (2, 256) };
    let quadrant = u64::from(role.quadrant());
    let first_gpte = (offset / 4).max(quadrant * per_page);
    let last_gpte = (last / 4).min(quadrant * per_page + per_page - 1);
    if first_gpte > last_gpte {
        return None;
    }
    let index = |gpte: u64| (gpte - quadrant * per_page) * per_gpte;
    Some((index(first_gpte) as u16, (index(last_gpte) + per_gpte - 1) as u16))
}

/// Whether a write does not look like one to a gpte: it crosses entries, or is narrower than any system writes them
/// (but one byte at an entry's start may be status bits).
fn misaligned(role: Role, offset: u64, size: u64) -> bool {
    let entry = if role.cr4_pae() { 8 } else { 4 };
    if offset.is_multiple_of(entry) && size == 1 {
        return false;
    }
    (offset ^ (offset + size - 1)) & !(entry - 1) != 0 || size < 4
}

impl Shadow {
    /// `size` bytes at `gpa`, within a page, were written.
    pub fn gpte_written(&mut self, arena: &SptArena, as_id: u16, gpa: Gpa, size: u64) {
        let gfn = gpa.gfn();
        self.armed_written(as_id, gfn, FLOODING);
        let offset = gpa.0 & PAGE_MASK;
        for frame in self.shadows_of(as_id, gfn).to_vec() {
            let Some(page) = self.page_mut(frame) else { continue };
            let role = page.role;
            page.write_flooding_count = page.write_flooding_count.saturating_add(1);
            let flooding = page.write_flooding_count >= FLOODING && page.root_count == 0;
            if flooding || misaligned(role, offset, size) {
                self.stats.flooded += 1;
                self.zap_page(arena, frame);
                continue;
            }
            if let Some((first, last)) = written_sptes(role, offset, size) {
                for index in first..=last {
                    self.drop_spte(arena, SpteRef { frame, index });
                }
                self.stats.gpte_writes += 1;
            }
        }
    }

    /// The walker has set accessed or dirty bits in a 4-byte gpte at `gpa`. Where the same frame is also used as a table of 8-byte gptes, those
    /// bits may be anything.
    pub fn narrow_bits_set(&mut self, arena: &SptArena, as_id: u16, gpa: Gpa) {
        for frame in self.shadows_of(as_id, gpa.gfn()).to_vec() {
            if self.page(frame).is_some_and(|page| page.role.cr4_pae()) {
                let index = ((gpa.0 & PAGE_MASK) / 8) as u16;
                self.drop_spte(arena, SpteRef { frame, index });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_sptes_a_write_touches() {
        let pae = Role::default().with_cr4_pae(true);
        let legacy = |level, quadrant| Role::default().with_level(level).with_quadrant(quadrant);
        for (role, offset, size, expected) in [
            (pae.with_level(1), 0, 8, Some((0, 0))),
            (pae.with_level(4), 4088, 8, Some((511, 511))),
            (pae.with_level(2), 12, 4, Some((1, 1))),
            (pae.with_level(1), 4, 8, Some((0, 1))),
            (pae.with_level(1), 0, 4096, Some((0, 511))),
            (legacy(1, 0), 0, 4, Some((0, 0))),
            (legacy(1, 0), 2048, 4, None),
            (legacy(1, 1), 2048, 4, Some((0, 0))),
            (legacy(1, 1), 4092, 4, Some((511, 511))),
            (legacy(1, 1), 2044, 8, Some((0, 0))),
            (legacy(2, 0), 4, 4, Some((2, 3))),
            (legacy(2, 3), 4092, 4, Some((510, 511))),
            (legacy(2, 1), 1024, 4, Some((0, 1))),
            (legacy(2, 1), 0, 4, None),
            (legacy(2, 2), 0, 4096, Some((0, 511))),
        ] {
            assert_eq!(written_sptes(role, offset, size), expected, "{role:?} at {offset} size {size}");
        }
    }

    #[test]
    fn what_does_not_look_like_a_gpte() {
        let pae = Role::default().with_cr4_pae(true);
        let legacy = Role::default();
        for (role, offset, size, expected) in [
            (pae, 0, 8, false),
            (pae, 8, 4, false),
            (pae, 12, 4, false),
            (pae, 8, 1, false),
            (pae, 9, 1, true),
            (pae, 8, 2, true),
            (pae, 4, 8, true),
            (pae, 0, 16, true),
            (legacy, 4, 4, false),
            (legacy, 0, 8, true),
            (legacy, 2, 4, true),
        ] {
            assert_eq!(misaligned(role, offset, size), expected, "{role:?} at {offset} size {size}");
        }
    }
}
