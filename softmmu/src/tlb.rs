//! The software TLB: what a guest access meets first.
//!
//! One TLB per vCPU with three views (user, supervisor, supervisor with EFLAGS.AC set, which
//! differ only under SMAP), so that a change of privilege is a change of pointer. Direct mapped,
//! indexed by the bits above the page offset. The interpreter and the translator use the same one.
//!
//! - A tag is `page-aligned gva | asid`. An asid is this TLB's own name for "these registers, since
//!   that flush": taking a new one drops everything at once. PCIDs map to asids. 0 is never
//!   given out and is the tag of an empty entry, so that nothing can match one, whatever the gva.
//! - Tags are stored negated: `gva's key + stored == 0` can be tested with `lea` and `jrcxz`, which
//!   leave the guest's flags alone in translated code.
//! - Execute tags have an asid of their own, so that they can be dropped alone.
//!
//! Not here: what may be filled. See `mmu` and `fault`.

use crate::host_mem::HostPtr;
use x86_arch::{Gva, PAGE_MASK, PAGE_SHIFT};

/// Entries of each view.
pub const TLB_ENTRIES: usize = 1024;

/// Asids run from 1 to this.
const LAST_ASID: u16 = 0xfff;

/// How many PCIDs are remembered: Linux uses six, twice with page-table isolation.
const CONTEXTS: usize = 16;

/// One entry: three negated tags and what turns a gva into an hva.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C, align(32))]
pub struct TlbEntry {
    /// Negated tag for reads.
    pub read: u64,
    /// Negated tag for writes.
    pub write: u64,
    /// Negated tag for fetches (with the execute asid).
    pub execute: u64,
    /// hva minus gva.
    pub addend: u64,
}

const _: () = assert!(size_of::<TlbEntry>() == 32);

/// Whose accesses: the first index of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum View {
    /// CPL 3.
    User = 0,
    /// CPL 0 to 2, and implicit supervisor accesses.
    Supervisor = 1,
    /// Explicit accesses at CPL 0 to 2 with EFLAGS.AC set.
    SupervisorAc = 2,
}

/// What an entry may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Rights {
    pub read: bool,
    pub write: bool,
    pub execute: bool,
}

/// The asids of one PCID.
#[derive(Clone, Copy, Default, Debug)]
struct Context {
    pcid: u16,
    /// 0: this slot is free.
    asid: u16,
    /// 0: fetches have none yet.
    execute_asid: u16,
}

/// One vCPU's TLB.
#[repr(C)]
pub struct Tlb {
    /// The current asid, for reads and writes.
    asid: u64,
    /// The current asid for fetches.
    execute_asid: u64,
    /// The current view (0 to 2).
    view: u64,
    /// The fourth row is never filled: it lets a two-bit view index without a check.
    entries: [[TlbEntry; TLB_ENTRIES]; 4],
    contexts: [Context; CONTEXTS],
    current: usize,
    next_victim: usize,
    last_asid: u16,
}

impl Tlb {
    /// An empty TLB.
    pub fn new() -> Box<Tlb> {
        let mut tlb = Box::new(Tlb {
            asid: 0,
            execute_asid: 0,
            view: View::Supervisor as u64,
            entries: [[TlbEntry::default(); TLB_ENTRIES]; 4],
            contexts: [Context::default(); CONTEXTS],
            current: 0,
            next_victim: 0,
            last_asid: 0,
        });
        tlb.set_pcid(0);
        tlb
    }

    #[inline(always)]
    fn index(gva: u64) -> usize {
        (gva >> PAGE_SHIFT) as usize & (TLB_ENTRIES - 1)
    }

    /// What a tag must be for an access that ends in the page of `gva`'s last byte. When the access crosses
    /// into the next page that page's tag cannot be in the entry that `gva` selects, so a crossing never matches.
    #[inline(always)]
    fn key(gva: u64, size: u64, asid: u64) -> u64 {
        (gva.wrapping_add(size.wrapping_sub(1)) & !PAGE_MASK) | asid
    }

    #[inline(always)]
    fn entry(&self, gva: u64) -> &TlbEntry {
        &self.entries[self.view as usize & 3][Self::index(gva)]
    }

    /// The host address of `[gva, gva + size)` for a read in the current view. `size` is 1 to 4096; an access that
    /// crosses a page misses.
    #[inline(always)]
    pub fn lookup_read(&self, gva: u64, size: u64) -> Option<HostPtr> {
        let entry = self.entry(gva);
        if Self::key(gva, size, self.asid).wrapping_add(entry.read) == 0 {
            Some(HostPtr::new(gva.wrapping_add(entry.addend)))
        } else {
            None
        }
    }

    /// The host address for a write (or read-modify-write) that needs no bookkeeping.
    #[inline(always)]
    pub fn lookup_write(&self, gva: u64, size: u64) -> Option<HostPtr> {
        let entry = self.entry(gva);
        if Self::key(gva, size, self.asid).wrapping_add(entry.write) == 0 {
            Some(HostPtr::new(gva.wrapping_add(entry.addend)))
        } else {
            None
        }
    }

    /// The host address for an instruction fetch.
    #[inline(always)]
    pub fn lookup_exec(&self, gva: u64, size: u64) -> Option<HostPtr> {
        let entry = self.entry(gva);
        if Self::key(gva, size, self.execute_asid).wrapping_add(entry.execute) == 0 {
            Some(HostPtr::new(gva.wrapping_add(entry.addend)))
        } else {
            None
        }
    }

    /// Like [`lookup_read`](Self::lookup_read), in a given view: for implicit supervisor accesses.
    #[inline(always)]
    pub fn lookup_read_in(&self, view: View, gva: u64, size: u64) -> Option<HostPtr> {
        let entry = &self.entries[view as usize & 3][Self::index(gva)];
        if Self::key(gva, size, self.asid).wrapping_add(entry.read) == 0 {
            Some(HostPtr::new(gva.wrapping_add(entry.addend)))
        } else {
            None
        }
    }

    /// Like [`lookup_write`](Self::lookup_write), in a given view.
    #[inline(always)]
    pub fn lookup_write_in(&self, view: View, gva: u64, size: u64) -> Option<HostPtr> {
        let entry = &self.entries[view as usize & 3][Self::index(gva)];
        if Self::key(gva, size, self.asid).wrapping_add(entry.write) == 0 {
            Some(HostPtr::new(gva.wrapping_add(entry.addend)))
        } else {
            None
        }
    }

    /// Selects whose accesses the lookups are for.
    #[inline(always)]
    pub fn set_view(&mut self, view: View) {
        self.view = view as u64;
    }

    /// The current view.
    #[inline(always)]
    pub fn view(&self) -> View {
        match self.view {
            0 => View::User,
            1 => View::Supervisor,
            _ => View::SupervisorAc,
        }
    }

    /// The address of the current view's first entry, for translated code.
    pub fn view_base(&self) -> *const TlbEntry {
        self.entries[self.view as usize & 3].as_ptr()
    }

    /// The current asid of reads and writes, and of fetches, for translated code.
    pub fn asids(&self) -> (u64, u64) {
        (self.asid, self.execute_asid)
    }

    /// Enters a page's translation into a view. Rights that the entry has for the same page are kept.
    pub(crate) fn fill(&mut self, view: View, gva: Gva, hva_page: u64, rights: Rights) {
        let page = gva.page_base().0;
        let (tag, execute_tag) = (page | self.asid, page | self.execute_asid);
        let entry = &mut self.entries[view as usize & 3][Self::index(page)];
        let addend = hva_page.wrapping_sub(page);
        let is = |stored: u64, tag: u64| stored.wrapping_add(tag) == 0;
        let same = entry.addend == addend;
        let put = |stored: u64, tag: u64, right: bool| {
            if right {
                tag.wrapping_neg()
            } else if same && is(stored, tag) {
                stored
            } else {
                0
            }
        };
        entry.read = put(entry.read, tag, rights.read);
        entry.write = put(entry.write, tag, rights.write);
        entry.execute = put(entry.execute, execute_tag, rights.execute);
        entry.addend = addend;
    }

    /// The next asid; when they run out, the whole TLB is emptied and they start again.
    fn take_asid(&mut self) -> u16 {
        if self.last_asid == LAST_ASID {
            for view in &mut self.entries[..3] {
                view.fill(TlbEntry::default());
            }
            self.contexts = [Context::default(); CONTEXTS];
            self.last_asid = 0;
        }
        self.last_asid += 1;
        self.last_asid
    }

    /// Makes `pcid` the current context: what it had before is valid again.
    pub fn set_pcid(&mut self, pcid: u16) {
        match self.contexts.iter().position(|c| c.asid != 0 && c.pcid == pcid) {
            Some(at) => self.current = at,
            None => {
                let asid = self.take_asid();
                let at = self.contexts.iter().position(|c| c.asid == 0).unwrap_or(self.next_victim);
                self.next_victim = (at + 1) % CONTEXTS;
                self.contexts[at] = Context { pcid, asid, execute_asid: 0 };
                self.current = at;
            }
        }
        self.load_context(pcid);
    }

    /// Brings the current context's asids into the fields that look-ups read.
    fn load_context(&mut self, pcid: u16) {
        if self.contexts[self.current].execute_asid == 0 {
            let execute_asid = self.take_asid();
            if self.contexts[self.current].asid == 0 {
                // The asids were restarted under us.
                let asid = self.take_asid();
                self.contexts[self.current] = Context { pcid, asid, execute_asid };
            } else {
                self.contexts[self.current].execute_asid = execute_asid;
            }
        }
        self.asid = u64::from(self.contexts[self.current].asid);
        self.execute_asid = u64::from(self.contexts[self.current].execute_asid);
    }

    /// Drops every entry of every context.
    pub fn flush_all(&mut self) {
        let pcid = self.contexts[self.current].pcid;
        for context in &mut self.contexts {
            context.asid = 0;
        }
        self.set_pcid(pcid);
    }

    /// Drops every entry of one PCID.
    pub fn flush_pcid(&mut self, pcid: u16) {
        for context in &mut self.contexts {
            if context.pcid == pcid {
                context.asid = 0;
            }
        }
        let current = self.contexts[self.current].pcid;
        self.set_pcid(current);
    }

    /// Drops the execute tags of every context.
    pub fn drop_exec_tags(&mut self) {
        for context in &mut self.contexts {
            context.execute_asid = 0;
        }
        let pcid = self.contexts[self.current].pcid;
        self.load_context(pcid);
    }

    /// Drops the translation of one page in every view and context.
    pub fn flush_page(&mut self, gva: Gva) {
        for view in &mut self.entries {
            view[Self::index(gva.0)] = TlbEntry::default();
        }
    }

    /// Drops the write tags (and no others) of every entry that maps this host frame.
    pub(crate) fn drop_write_tags_of_frame(&mut self, frame: u64) {
        for view in &mut self.entries[..3] {
            for entry in view.iter_mut().filter(|entry| entry.write != 0) {
                // The tag is page | asid: the low 12 bits of the sum do not matter.
                let page = entry.write.wrapping_neg() & !PAGE_MASK;
                if page.wrapping_add(entry.addend) >> PAGE_SHIFT == frame {
                    entry.write = 0;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Rights = Rights { read: true, write: true, execute: true };
    const READ: Rights = Rights { read: true, write: false, execute: false };

    fn hit(found: Option<HostPtr>) -> Option<u64> {
        found.map(|ptr| ptr.hva().0)
    }

    #[test]
    fn an_empty_tlb_matches_nothing() {
        let mut tlb = Tlb::new();
        for view in [View::User, View::Supervisor, View::SupervisorAc] {
            tlb.set_view(view);
            for gva in
                [0, 1, 0xfff, 0x1000, u64::MAX, u64::MAX - 0xfff, 1 << 63, 1 << 47, 0x0000_8000_0000_0000]
            {
                for size in [1, 8, 64, 4096] {
                    assert_eq!(tlb.lookup_read(gva, size), None, "{gva:#x}");
                    assert_eq!(tlb.lookup_write(gva, size), None, "{gva:#x}");
                    assert_eq!(tlb.lookup_exec(gva, size), None, "{gva:#x}");
                }
            }
        }
    }

    #[test]
    fn hits_by_right_page_and_view() {
        let mut tlb = Tlb::new();
        tlb.set_view(View::User);
        tlb.fill(View::User, Gva(0x1234_5678), 0x7000_0000, READ);
        assert_eq!(hit(tlb.lookup_read(0x1234_5678, 8)), Some(0x7000_0678));
        assert_eq!(tlb.lookup_write(0x1234_5678, 8), None);
        assert_eq!(tlb.lookup_exec(0x1234_5678, 1), None);
        assert_eq!(tlb.lookup_read(0x1234_6000, 1), None);
        assert_eq!(tlb.lookup_read(0x1234_5678 + 1024 * 4096, 1), None, "same entry, other page");
        assert_eq!(hit(tlb.lookup_read_in(View::User, 0x1234_5000, 1)), Some(0x7000_0000));
        assert_eq!(tlb.lookup_read_in(View::Supervisor, 0x1234_5000, 1), None);
        tlb.set_view(View::Supervisor);
        assert_eq!(tlb.lookup_read(0x1234_5678, 8), None);
    }

    #[test]
    fn a_crossing_never_matches() {
        let mut tlb = Tlb::new();
        for page in [0u64, 0x1000, 0x3f_f000, 0xffff_ffff_ffff_f000] {
            tlb.fill(View::Supervisor, Gva(page), 0x7000_0000, ALL);
            tlb.fill(View::Supervisor, Gva(page.wrapping_add(0x1000)), 0x7000_1000, ALL);
            for (offset, size) in [(0xfff, 2), (0xff9, 8), (0xfc1, 64), (1, 4096)] {
                assert_eq!(tlb.lookup_read(page + offset, size), None, "{page:#x}+{offset:#x}, {size}");
            }
            for (offset, size) in [(0xfff, 1), (0xff8, 8), (0xfc0, 64), (0, 4096)] {
                assert!(tlb.lookup_write(page + offset, size).is_some(), "{page:#x}+{offset:#x}, {size}");
            }
        }
    }

    #[test]
    fn flushes_drop_what_they_say() {
        let mut tlb = Tlb::new();
        tlb.fill(View::Supervisor, Gva(0x1000), 0x7000_0000, ALL);
        tlb.fill(View::Supervisor, Gva(0x2000), 0x7000_1000, ALL);
        tlb.drop_exec_tags();
        assert!(tlb.lookup_exec(0x1000, 1).is_none() && tlb.lookup_write(0x1000, 1).is_some());
        tlb.flush_page(Gva(0x1fff));
        assert!(tlb.lookup_read(0x1000, 1).is_none() && tlb.lookup_read(0x2000, 1).is_some());
        tlb.drop_write_tags_of_frame(0x7000_1000 >> 12);
        assert!(tlb.lookup_write(0x2000, 1).is_none() && tlb.lookup_read(0x2000, 1).is_some());
        tlb.flush_all();
        assert!(tlb.lookup_read(0x2000, 1).is_none());
    }

    #[test]
    fn a_pcid_keeps_its_entries() {
        let mut tlb = Tlb::new();
        tlb.set_pcid(1);
        tlb.fill(View::Supervisor, Gva(0x1000), 0x7000_0000, ALL);
        tlb.set_pcid(2);
        assert_eq!(tlb.lookup_read(0x1000, 1), None);
        tlb.fill(View::Supervisor, Gva(0x2000), 0x7100_0000, ALL);
        tlb.set_pcid(1);
        assert_eq!(hit(tlb.lookup_exec(0x1000, 1)), Some(0x7000_0000));
        assert_eq!(tlb.lookup_read(0x2000, 1), None);
        tlb.flush_pcid(2);
        assert!(tlb.lookup_read(0x1000, 1).is_some());
        tlb.set_pcid(2);
        assert_eq!(tlb.lookup_read(0x2000, 1), None);
        tlb.set_pcid(1);
        tlb.flush_pcid(1);
        assert_eq!(tlb.lookup_read(0x1000, 1), None);
    }

    /// Many more flushes than there are asids, with entries from each time left behind.
    #[test]
    fn asids_wrap() {
        let mut tlb = Tlb::new();
        for i in 0..20_000u64 {
            let page = (i % 3000) << 12;
            assert_eq!(tlb.lookup_read(page, 1), None, "round {i}");
            assert_eq!(tlb.lookup_exec(page, 1), None, "round {i}");
            tlb.fill(View::Supervisor, Gva(page), 0x7000_0000 + page, ALL);
            assert_eq!(hit(tlb.lookup_write(page, 1)), Some(0x7000_0000 + page));
            assert_eq!(hit(tlb.lookup_exec(page, 1)), Some(0x7000_0000 + page));
            match i % 4 {
                0 => tlb.flush_all(),
                1 => {
                    tlb.drop_exec_tags();
                    tlb.flush_page(Gva(page));
                }
                2 => {
                    tlb.set_pcid((i % 64) as u16);
                    tlb.flush_pcid((i % 64) as u16);
                }
                _ => {
                    tlb.drop_exec_tags();
                    assert_eq!(tlb.lookup_exec(page, 1), None);
                    tlb.flush_all();
                }
            }
        }
    }

    #[test]
    fn rights_of_one_page_add_up() {
        let mut tlb = Tlb::new();
        tlb.fill(View::Supervisor, Gva(0x1000), 0x7000_0000, READ);
        tlb.fill(View::Supervisor, Gva(0x1000), 0x7000_0000, Rights { execute: true, ..Rights::default() });
        assert!(tlb.lookup_read(0x1000, 1).is_some() && tlb.lookup_exec(0x1000, 1).is_some());
        // Another host page: nothing of the old one may stay.
        tlb.fill(View::Supervisor, Gva(0x1000), 0x7000_1000, Rights { execute: true, ..Rights::default() });
        assert!(tlb.lookup_read(0x1000, 1).is_none() && tlb.lookup_exec(0x1000, 1).is_some());
    }
}
