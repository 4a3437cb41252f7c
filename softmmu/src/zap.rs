//! Events: teardown of shadow pages, one, the oldest (memory pressure), or all (memory slots changed).
//!
//! A page that is torn down is unlinked from its parents first, so that new walks do not find it; then its sptes go;
//! then, unless it is some vCPU's root, its frame becomes free under a new generation. What TLBs took from it
//! stays true until the guest itself flushes, so no vCPU needs to be waited for.

use crate::rmap::SpteRef;
use crate::shadow_page::{SPT_ENTRIES, Shadow, SptArena};
use core::ops::Range;

impl Shadow {
    /// Tears one page down. If a root points at it, it stays, empty and invalid, until [`unpin`](Self::unpin).
    pub fn zap_page(&mut self, arena: &SptArena, frame: u32) {
        let Some(page) = self.page(frame) else { return };
        for at in page.parent_ptes.as_slice().to_vec() {
            self.drop_spte(arena, at);
        }
        self.unhash(frame);
        self.zap_sptes(arena, frame);
        let Some(page) = self.page_mut(frame) else { return };
        if page.root_count == 0 {
            self.release(arena, frame);
        } else if !page.role.invalid() {
            page.role = page.role.with_invalid(true);
            arena.invalidate_roots();
        }
        self.stats.zapped += 1;
    }

    fn zap_sptes(&mut self, arena: &SptArena, frame: u32) {
        for index in 0..SPT_ENTRIES as u16 {
            if self.page(frame).is_none_or(|page| page.used == 0) {
                break;
            }
            self.drop_spte(arena, SpteRef { frame, index });
        }
    }

    /// Tears all pages down.
    pub fn zap_all(&mut self, arena: &SptArena) {
        let frames: Vec<u32> =
            self.frames().filter(|(_, page)| !page.role.invalid()).map(|(frame, _)| frame).collect();
        for frame in frames {
            self.zap_page(arena, frame);
        }
        self.disarm_all();
        self.rmap.clear();
        self.mmio_sptes.clear();
    }

    /// Drops every leaf spte of these frames: the host's mapping of them has changed.
    pub fn zap_frames(&mut self, arena: &SptArena, as_id: u16, frames: Range<u64>) {
        for at in self.rmap.within(as_id, frames) {
            self.drop_spte(arena, at);
        }
    }

    /// These frames are no memory any more: drops their leaf sptes, and the pages that shadow tables there or linear ranges over
    /// them.
    pub fn zap_range(&mut self, arena: &SptArena, as_id: u16, frames: Range<u64>) {
        self.zap_frames(arena, as_id, frames.clone());
        let tables: Vec<u32> = self
            .frames()
            .filter(|(_, page)| {
                !page.role.invalid() && page.role.as_id() == as_id && frames.contains(&page.gfn.0)
            })
            .map(|(frame, _)| frame)
            .collect();
        for frame in tables {
            self.zap_page(arena, frame);
        }
        self.disarm_all();
    }

    /// Drops what is said to be no memory.
    pub fn zap_mmio(&mut self, arena: &SptArena) {
        for at in core::mem::take(&mut self.mmio_sptes) {
            if arena.read(u64::from(at.frame), usize::from(at.index)).is_mmio() {
                self.drop_spte(arena, at);
            }
        }
    }

    /// Takes write access from every spte that maps one of these frames.
    pub fn write_protect_range(&mut self, arena: &SptArena, as_id: u16, frames: Range<u64>) {
        for at in self.rmap.within(as_id, frames) {
            let spte = arena.read(u64::from(at.frame), usize::from(at.index));
            if spte.is_writable() {
                arena.write(at, spte.write_protected());
            }
        }
    }

    /// Makes room for `wanted` pages, from the oldest. False: only roots are left.
    pub fn make_room(&mut self, arena: &SptArena, wanted: usize) -> bool {
        while self.stats.pages as usize + wanted > self.limit {
            let Some(frame) = self.oldest() else { return false };
            self.zap_page(arena, frame);
            self.stats.recycled += 1;
        }
        true
    }

    /// A vCPU's root points at the page.
    pub fn pin(&mut self, frame: u32) {
        if let Some(page) = self.page_mut(frame) {
            page.root_count += 1;
        }
    }

    /// A vCPU's root does not point at the page any more.
    pub fn unpin(&mut self, arena: &SptArena, frame: u32) {
        let Some(page) = self.page_mut(frame) else { return };
        page.root_count -= 1;
        if page.root_count == 0 && page.role.invalid() {
            self.release(arena, frame);
        }
    }
}
