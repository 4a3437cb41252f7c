//! Event: a guest page fault, that is, an access which the TLB does not know (mmu.txt, "Reaction to events").
//!
//! | mmu.txt | here |
//! |---|---|
//! | the hardware walks the shadow tables | [`VcpuMmu::shadow_lookup`], without a lock |
//! | walk the guest page tables | [`walk`](crate::walk::walk), without a lock |
//! | permissions are insufficient: reflect the fault | `MmuFault::PageFault` |
//! | determine the host page; mmio: emulate | [`VcpuMmu::fill`]; `Target::Mmio` |
//! | walk the shadow page table, instantiating missing intermediate tables | [`VcpuMmu::map`], under `mmu_lock` |
//! | a write to a protected page: emulate, update translations | `Target::Tracked`, then `VcpuMmu::after_write` |
//!
//! Filling the TLB straight from the guest's tables is always right: it is what a processor does, and the guest's own flushes end it. The shadow
//! tables are what makes it fast after a flush. So nothing here waits: a guest table that cannot be shadowed yet,
//! because some vCPU (perhaps this one, in the middle of an instruction that holds a pointer) may still store to it directly, is
//! write-protected, and shadowed at a fault after every vCPU has passed a safe point.

use crate::access::{Access, AccessKind, MmuFault, Target, Tracked};
use crate::memslot::Memslots;
use crate::perm::{PageRights, PermissionRules};
use crate::rmap::SpteRef;
use crate::role::Role;
use crate::shadow_page::{Protected, Shadow, Shootdown, SptArena};
use crate::shootdown::{Peer, Peers};
use crate::spte::{Leaf, Spte};
use crate::tlb::{Rights, View};
use crate::vcpu::VcpuMmu;
use crate::walk::{PagingContext, Purpose, TableMemory, Walk, walk};
use x86_arch::{Gfn, Gpa, Gva, PAGE_MASK};

/// The most pages that one fault makes: a root and one for each level below.
const PAGES_PER_FAULT: usize = 5;

/// The index of `gva` in a shadow page of `level`.
const fn spt_index(gva: Gva, level: u8) -> u16 {
    (gva.0 >> (12 + 9 * (level as u32 - 1)) & 511) as u16
}

impl VcpuMmu {
    /// Translates an access that the TLB did not know, and fills the TLB. The access must not cross a 4 KiB page.
    /// `size` is its length in bytes. EFLAGS.AC is taken from the current view.
    ///
    /// Never waits for another vCPU.
    pub fn translate(&mut self, gva: Gva, access: Access, size: u64) -> Result<Target, MmuFault> {
        debug_assert!(gva.page_offset() + size <= x86_arch::PAGE_SIZE, "an access may not cross a page");
        let gva = self.linear(gva);
        if !self.context.is_canonical(gva) {
            return Err(MmuFault::NonCanonical);
        }
        self.stats.misses += 1;
        let view = self.view_of(access);
        if let Some(target) = self.shadow_lookup(view, gva, access) {
            self.stats.shadow_hits += 1;
            return Ok(target);
        }
        self.stats.walks += 1;
        let ac = view == View::SupervisorAc;
        let found =
            walk(&self.tables(), &self.context, gva, Purpose::Access { access, ac }).map_err(|code| {
                self.stats.page_faults += 1;
                MmuFault::PageFault { gva, code }
            })?;
        let target = self.fill(view, gva, &found, access);
        match target {
            // Its spte stays write-protected, so that there is nothing to gain.
            Target::Tracked(_) => self.stats.tracked_writes += 1,
            Target::Ram(_) | Target::Mmio(_) => {
                self.stats.mapped += 1;
                self.stats.mmio += u64::from(matches!(target, Target::Mmio(_)));
                self.map(gva, &found, access);
            }
        }
        Ok(target)
    }

    /// Whose TLB an access fills.
    fn view_of(&self, access: Access) -> View {
        if access.user {
            View::User
        } else if !access.implicit && self.tlb.view() == View::SupervisorAc {
            View::SupervisorAc
        } else {
            View::Supervisor
        }
    }

    /// What the emulated hardware finds in the shadow tables. Nothing is a fault, which the guest's tables will explain.
    fn shadow_lookup(&mut self, view: View, gva: Gva, access: Access) -> Option<Target> {
        let arena = &self.mmu.arena;
        let roots = &self.roots.current;
        let mut frame = u64::from(roots.frames[roots.key.index(gva)]);
        if frame == 0 {
            return None;
        }
        let generation = arena.begin();
        let mut level = roots.key.role.level();
        let spte = loop {
            let spte = arena.read(frame, usize::from(spt_index(gva, level)));
            if level == 1 {
                break spte;
            }
            if !spte.is_present() {
                return None;
            }
            frame = spte.frame();
            level -= 1;
        };
        if !arena.still(generation) {
            return None;
        }
        // The emulated hardware runs with CR0.WP set; see `guest_rights` for the guest that does not.
        let rules = PermissionRules { wp: true, ..self.context.rules };
        let ac = view == View::SupervisorAc;
        let rights = spte.rights();
        let allows = |kind: AccessKind| {
            (kind != AccessKind::Write || rights.write)
                && rules.check(rights, Access { kind, ..access }, ac).is_ok()
        };
        if !allows(access.kind) {
            return None;
        }
        if spte.is_mmio() {
            return Some(Target::Mmio(Gpa(spte.frame() << 12 | gva.page_offset())));
        }
        if !spte.is_present() {
            return None;
        }
        let code = (access.is_write() || rights.write) && self.mmu.code.contains(spte.frame());
        if access.is_write() && code {
            return None;
        }
        let fill = Rights {
            read: allows(AccessKind::Read),
            write: !code && allows(AccessKind::Write),
            execute: access.is_execute(),
        };
        let page = spte.frame() << 12;
        self.tlb.fill(view, gva, page, fill);
        Some(Target::Ram(crate::host_mem::HostPtr::new(page | gva.page_offset())))
    }

    /// The guest allows the access: find the host page, note a write, and enter into the TLB what may go there.
    fn fill(&mut self, view: View, gva: Gva, found: &Walk, access: Access) -> Target {
        let gpa = found.gpa;
        let gfn = gpa.gfn();
        let Some((slot, ptr)) = self.slots.find(gfn).and_then(|slot| Some((slot, slot.host_ptr(gpa)?)))
        else {
            return Target::Mmio(gpa);
        };
        let write = access.is_write();
        if write && slot.read_only() {
            return Target::Mmio(gpa);
        }
        if write {
            // Before the store, but an exclusive section, which clearing the log needs, cannot come between.
            self.mmu.mark_dirty(slot, gfn, Some(&self.peer));
        }
        let offset = slot.offset_of(gfn).unwrap_or(0);
        let tracked = slot.tracks.is_page_table(offset) || self.mmu.code.contains(ptr.frame());
        if slot.logs_mappings && found.rights.write && found.dirty && !tracked && !slot.read_only() {
            self.mmu.mark_dirty(slot, gfn, Some(&self.peer));
        }
        let ac = view == View::SupervisorAc;
        let allows =
            |kind: AccessKind| self.context.rules.check(found.rights, Access { kind, ..access }, ac).is_ok();
        let rights = Rights {
            read: allows(AccessKind::Read),
            write: found.dirty
                && !tracked
                && !slot.logged_clean(offset)
                && !slot.read_only()
                && allows(AccessKind::Write),
            // Only by a fetch: whoever caches decoded code looks at the bytes when a page gets its execute tag.
            execute: access.is_execute(),
        };
        self.tlb.fill(view, gva, ptr.hva().page_base().0, rights);
        if write && tracked { Target::Tracked(Tracked { ptr, gpa }) } else { Target::Ram(ptr) }
    }

    /// The rights that the spte shall grant, by the two-sptes rule for CR0.WP=0 (mmu.txt, "Emulating cr0.wp"). Nothing: this
    /// translation cannot be expressed.
    fn guest_rights(&self, found: &Walk, access: Access) -> Option<PageRights> {
        let rules = &self.context.rules;
        let rights = PageRights { write: found.rights.write && found.dirty, ..found.rights };
        if !(rules.paging && access.is_write() && !found.rights.write) {
            return Some(rights);
        }
        // A supervisor write under CR0.WP=0. The page becomes a supervisor page until somebody reads it as a user; SMAP and
        // protection keys, which look at user pages only, would lose sight of it.
        if rights.user && (rules.smap || rules.pkru != 0) {
            return None;
        }
        let execute = rights.execute && !(rights.user && rules.smep);
        Some(PageRights { user: false, write: true, execute, pkey: rights.pkey })
    }

    /// Enters a translation into the shadow tables, as far as that can be done without waiting.
    fn map(&mut self, gva: Gva, found: &Walk, access: Access) {
        let Some(rights) = self.guest_rights(found, access) else { return };
        let mmu = std::sync::Arc::clone(&self.mmu);
        let mut shadow = mmu.shadow.lock();
        self.roots.settle(&mut shadow, &mmu.arena);
        if !shadow.make_room(&mmu.arena, PAGES_PER_FAULT) {
            return;
        }
        let key = self.roots.current.key;
        let mut mapper = Mapper {
            shadow: &mut shadow,
            arena: &mmu.arena,
            slots: &self.slots,
            context: &self.context,
            shootdown: VcpuShootdown { peers: &mmu.peers, me: &self.peer },
            base: Role::base(&self.context, self.registers.as_id),
            found,
            rights,
            gva,
        };
        if !mapper.protect_tables() {
            return;
        }
        let at = key.index(gva);
        let mut root = self.roots.current.frames[at];
        if root == 0 {
            let Some(gfn) = key.gfns[at] else { return };
            let Some(made) = mapper.get_page(gfn, key.role_of(at)) else { return };
            mapper.shadow.pin(made);
            self.roots.current.frames[at] = made;
            root = made;
        }
        // The guest may have changed its tables between the walk and the protection.
        let tables = self.tables();
        let wide = self.context.wide();
        let unchanged = found.steps().iter().all(|s| tables.read_entry(s.address, wide) == Some(s.entry));
        let mut mapper = Mapper {
            shadow: &mut shadow,
            arena: &mmu.arena,
            slots: &self.slots,
            context: &self.context,
            shootdown: VcpuShootdown { peers: &mmu.peers, me: &self.peer },
            base: Role::base(&self.context, self.registers.as_id),
            found,
            rights,
            gva,
        };
        if unchanged {
            mapper.fetch(root);
        }
    }
}

struct VcpuShootdown<'a> {
    peers: &'a Peers,
    me: &'a Peer,
}

impl Shootdown for VcpuShootdown<'_> {
    fn drop_write_tags(&mut self, hva_frame: u64) -> u64 {
        // The caller's own, too: an instruction under way may hold a pointer that it will yet store through.
        self.peers.drop_write_tags(hva_frame, None)
    }

    fn quiesced(&self, epoch: u64) -> bool {
        self.peers.quiesced(epoch, Some(self.me))
    }
}

/// One translation on its way into the shadow tables, under `mmu_lock`.
struct Mapper<'a, S: Shootdown> {
    shadow: &'a mut Shadow,
    arena: &'a SptArena,
    slots: &'a Memslots,
    context: &'a PagingContext,
    shootdown: S,
    base: Role,
    found: &'a Walk,
    rights: PageRights,
    gva: Gva,
}

impl<S: Shootdown> Mapper<'_, S> {
    /// Write-protects all guest tables of the walk. False: some need a later fault.
    fn protect_tables(&mut self) -> bool {
        let as_id = self.base.as_id();
        let mut ready = true;
        for step in self.found.steps() {
            let Some(slot) = self.slots.find(step.table) else { return false };
            let protected = self.shadow.protect(self.arena, as_id, step.table, slot, &mut self.shootdown);
            ready &= protected == Protected::Yes;
        }
        ready
    }

    /// The page for a gfn and role, made if need be. The tables must be protected.
    fn get_page(&mut self, gfn: Gfn, role: Role) -> Option<u32> {
        match self.shadow.find(gfn, role) {
            Some(frame) => Some(frame),
            None => self.shadow.create(self.arena, gfn, role, self.slots.find(gfn)),
        }
    }

    /// The gfn and role of the page at `level` on the way to this translation.
    fn wanted(&self, level: u8) -> (Gfn, Role) {
        let base = self.base.with_level(level);
        match self.found.steps().iter().find(|step| step.level == level) {
            Some(step) => {
                let quadrant = if self.context.wide() { 0 } else { (self.gva.0 >> 21 & 1) as u8 };
                (step.table, base.with_access(step.inherited).with_quadrant(quadrant))
            }
            None => {
                // Part of a large page, or no paging: a linear range.
                let span = 1u64 << (12 + 9 * u32::from(level));
                let first = Gpa(self.found.gpa.0 & !(span - 1)).gfn();
                (first, base.with_direct(true).with_access(self.rights).with_pkey(self.rights.pkey))
            }
        }
    }

    /// mmu.txt: "walk the shadow page table to find the spte for the translation, instantiating missing intermediate page tables as necessary".
    fn fetch(&mut self, root: u32) {
        let Some(mut level) = self.shadow.page(root).map(|page| page.role.level()) else { return };
        let mut frame = root;
        loop {
            if let Some(page) = self.shadow.page_mut(frame) {
                page.write_flooding_count = 0;
            }
            let at = SpteRef { frame, index: spt_index(self.gva, level) };
            if level == 1 {
                self.set_leaf(at);
                return;
            }
            level -= 1;
            let (gfn, role) = self.wanted(level);
            let spte = self.arena.read(u64::from(frame), usize::from(at.index));
            let linked = u32::try_from(spte.frame()).ok().filter(|_| spte.is_present());
            let fits = |child: u32| self.shadow.page(child).is_some_and(|p| p.gfn == gfn && p.role == role);
            frame = match linked.filter(|&child| fits(child)) {
                Some(child) => child,
                None => {
                    // Perhaps a linear range whose rights have changed (its dirty bit was set).
                    self.shadow.drop_spte(self.arena, at);
                    let Some(child) = self.get_page(gfn, role) else { return };
                    self.shadow.link(self.arena, at, child);
                    child
                }
            };
        }
    }

    fn set_leaf(&mut self, at: SpteRef) {
        let gpa = Gpa(self.found.gpa.0 & !PAGE_MASK);
        let gfn = gpa.gfn();
        let slot = self.slots.find(gfn);
        let spte = match slot.and_then(|slot| Some((slot, slot.host_ptr(gpa)?, slot.offset_of(gfn)?))) {
            None => Spte::mmio(gfn, self.rights),
            Some((slot, ptr, offset)) => Spte::leaf(Leaf {
                frame: ptr.frame(),
                rights: self.rights,
                global: self.found.global,
                host_writable: !slot.read_only(),
                untracked: !slot.tracks.is_page_table(offset) && !slot.logged_clean(offset),
            }),
        };
        self.shadow.set_leaf(self.arena, at, spte, gfn, slot.map(|slot| slot.region.slot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_mem;
    use crate::test_ram::TestVm;
    use crate::vcpu::PagingRegisters;
    use x86_arch::{Cr0, Cr4, Efer, PageFaultErrorCode};

    fn long_mode(cr3: u64) -> PagingRegisters {
        PagingRegisters {
            cr0: Cr0::PE | Cr0::PG | Cr0::WP,
            cr3,
            cr4: Cr4::PAE,
            efer: Efer::LME | Efer::LMA | Efer::NXE,
            pkru: 0,
            as_id: 0,
            maxphyaddr: 40,
        }
    }

    #[test]
    fn without_paging_gpa_is_gva() {
        let vm = TestVm::new(0x10_0000);
        let (_gate, mut vcpu) = vm.vcpu();
        let target = vcpu.translate(Gva(0x1234), Access::write(false), 8);
        assert_eq!(target, Ok(Target::Ram(vm.ram.ptr(0x1234))));
        assert_eq!(vcpu.tlb.lookup_write(0x1238, 8), Some(vm.ram.ptr(0x1238)));
        assert_eq!(vcpu.translate(Gva(0x10_0000), Access::read(false), 1), Ok(Target::Mmio(Gpa(0x10_0000))));
    }

    #[test]
    fn four_levels() {
        let vm = TestVm::new(0x10_0000);
        let (_gate, mut vcpu) = vm.vcpu();
        let memory = vm.mmu.guest_memory(0);
        for (at, entry) in [(0x1000u64, 0x2007u64), (0x2000, 0x3007), (0x3000, 0x4007), (0x4008, 0x5001)] {
            memory.store(Gpa(at), entry).unwrap();
        }
        vcpu.set_registers(long_mode(0x1000));
        assert_eq!(vcpu.translate(Gva(0x1010), Access::read(false), 4), Ok(Target::Ram(vm.ram.ptr(0x5010))));
        assert_eq!(vcpu.tlb.lookup_read(0x1010, 4), Some(vm.ram.ptr(0x5010)));
        assert_eq!(vcpu.tlb.lookup_write(0x1010, 4), None);
        assert_eq!(host_mem::load::<u64>(vm.ram.ptr(0x4008)), Ok(0x5021), "accessed");
        let fault = |gva, code| Err(MmuFault::PageFault { gva: Gva(gva), code });
        assert_eq!(
            vcpu.translate(Gva(0x1010), Access::write(false), 4),
            fault(0x1010, PageFaultErrorCode::P | PageFaultErrorCode::W)
        );
        assert_eq!(
            vcpu.translate(Gva(0x2000), Access::execute(true), 1),
            fault(0x2000, PageFaultErrorCode::U | PageFaultErrorCode::I)
        );
        assert_eq!(vcpu.translate(Gva(1 << 47), Access::read(false), 1), Err(MmuFault::NonCanonical));
    }
}
