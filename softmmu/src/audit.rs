//! The invariants of the shadow pages, checked one by one. For tests and for whoever suspects them.
//!
//! Not here: whether the translations are right; tests hold those to the naive walker.

use crate::memslot::ADDRESS_SPACES;
use crate::mmu::Mmu;
use crate::rmap::SpteRef;
use crate::shadow_page::{SPT_ENTRIES, Shadow, SptArena};
use x86_arch::Gfn;

impl Mmu {
    /// Everything that is wrong with the shadow pages; nothing, one hopes. The VM's vCPUs must not be running.
    pub fn audit(&self) -> Vec<String> {
        let shadow = self.shadow.lock();
        let mut audit = Audit { mmu: self, arena: &self.arena, shadow: &shadow, findings: Vec::new() };
        audit.pages();
        audit.reverse_map();
        audit.protection();
        audit.findings
    }
}

struct Audit<'a> {
    mmu: &'a Mmu,
    arena: &'a SptArena,
    shadow: &'a Shadow,
    findings: Vec<String>,
}

impl Audit<'_> {
    fn expect(&mut self, holds: bool, finding: impl FnOnce() -> String) {
        if !holds {
            self.findings.push(finding());
        }
    }

    fn pages(&mut self) {
        let shadow = self.shadow;
        let count = shadow.frames().count() as u64;
        self.expect(count == shadow.stats.pages, || {
            format!("{count} pages, counted as {}", shadow.stats.pages)
        });
        for (frame, page) in shadow.frames() {
            let role = page.role;
            let found = shadow.find(page.gfn, role);
            if role.invalid() {
                self.expect(page.root_count > 0, || format!("page {frame} is invalid and nobody's root"));
                self.expect(page.used == 0, || format!("page {frame} is invalid and not empty"));
            } else {
                self.expect(found == Some(frame), || format!("page {frame} {role:?} is not in the hash"));
            }
            let tracked = self.is_page_table(role.as_id(), page.gfn);
            self.expect(role.direct() || role.invalid() || tracked, || {
                format!("page {frame} shadows {:?}, which is not write-protected", page.gfn)
            });
            for &parent in page.parent_ptes.as_slice() {
                let spte = self.arena.read(u64::from(parent.frame), usize::from(parent.index));
                self.expect(spte.is_present() && spte.frame() == u64::from(frame), || {
                    format!("page {frame}: its parent {parent:?} points elsewhere")
                });
            }
            self.sptes(frame, page);
        }
    }

    fn sptes(&mut self, frame: u32, page: &crate::shadow_page::ShadowPage) {
        let role = page.role;
        let mut used = 0;
        for index in 0..SPT_ENTRIES {
            let at = SpteRef { frame, index: index as u16 };
            let spte = self.arena.read(u64::from(frame), index);
            used += u32::from(spte.is_present() || spte.is_mmio());
            if !spte.is_present() {
                continue;
            }
            if role.level() > 1 {
                let child = u32::try_from(spte.frame()).ok().and_then(|child| self.shadow.page(child));
                self.expect(child.is_some_and(|child| child.parent_ptes.as_slice().contains(&at)), || {
                    format!("nonleaf spte {at:?} has no parent_pte")
                });
                self.expect(child.is_some_and(|child| child.role.level() + 1 == role.level()), || {
                    format!("nonleaf spte {at:?} skips a level")
                });
            } else {
                let gfn = self.shadow.gfn_of(at).unwrap_or(u64::MAX);
                self.expect(self.shadow.rmap.get(role.as_id(), gfn).contains(&at), || {
                    format!("leaf spte {at:?} of gfn {gfn:#x} has no reverse mapping")
                });
                self.leaf(at, role.as_id(), Gfn(gfn));
            }
        }
        self.expect(used == page.used, || format!("page {frame} has {used} sptes, counted {}", page.used));
    }

    /// A leaf spte maps its gfn's memory, and grants writes only where nobody wants to know of them.
    fn leaf(&mut self, at: SpteRef, as_id: u16, gfn: Gfn) {
        let spte = self.arena.read(u64::from(at.frame), usize::from(at.index));
        let slots = self.mmu.slots(as_id);
        let Some(slot) = slots.find(gfn) else {
            self.findings.push(format!("leaf spte {at:?} of {gfn:?}, which is in no slot"));
            return;
        };
        let ptr = slot.host_ptr(gfn.base());
        self.expect(ptr.is_some_and(|ptr| ptr.frame() == spte.frame()), || {
            format!("leaf spte {at:?} of {gfn:?} maps other memory")
        });
        if spte.is_writable() {
            let offset = slot.offset_of(gfn).unwrap_or(0);
            self.expect(!slot.read_only(), || format!("writable spte {at:?} of a read-only slot"));
            self.expect(!slot.tracks.is_page_table(offset), || {
                format!("writable spte {at:?} of the page table {gfn:?}")
            });
            self.expect(!slot.logged_clean(offset), || format!("writable spte {at:?} of clean {gfn:?}"));
        }
    }

    fn reverse_map(&mut self) {
        for (as_id, gfn, list) in self.shadow.rmap.iter() {
            for &at in list {
                let spte = self.arena.read(u64::from(at.frame), usize::from(at.index));
                self.expect(spte.is_present() && self.shadow.gfn_of(at) == Some(gfn), || {
                    format!("reverse mapping of {as_id}:{gfn:#x} to {at:?}, which maps something else")
                });
            }
        }
    }

    /// Each write-protected frame has its reasons, and as many as are counted.
    fn protection(&mut self) {
        for as_id in 0..ADDRESS_SPACES as u16 {
            let slots = self.mmu.slots(as_id);
            for slot in slots.iter() {
                for offset in 0..slot.pages() {
                    let gfn = Gfn(slot.base_gfn().0 + offset);
                    let shadows = self.shadow.shadows_of(as_id, gfn).len();
                    let reasons = shadows + usize::from(self.shadow.is_armed(as_id, gfn));
                    let counted = usize::from(slot.tracks.page_tables(offset));
                    self.expect(reasons == counted, || {
                        format!("{gfn:?} has {reasons} reasons to be write-protected, counted {counted}")
                    });
                }
            }
        }
    }

    fn is_page_table(&self, as_id: u16, gfn: Gfn) -> bool {
        let slots = self.mmu.slots(as_id);
        let slot = slots.find(gfn);
        slot.is_some_and(|slot| slot.offset_of(gfn).is_some_and(|offset| slot.tracks.is_page_table(offset)))
    }
}
