//! Event: a guest page fault, that is, an access which the TLB does not know (mmu.txt, "Reaction to events").
//!
//! | mmu.txt | here |
//! |---|---|
//! | walk the guest page tables | [`walk`](crate::walk::walk) |
//! | permissions are insufficient: reflect the fault | `MmuFault::PageFault` |
//! | determine the host page | the vCPU's memory slots |
//! | mmio: emulate | `Target::Mmio` |
//! | a write to a protected page: emulate, update translations | `Target::Tracked`, then `VcpuMmu::after_write` |

use crate::access::{Access, AccessKind, MmuFault, Target, Tracked};
use crate::perm::PageRights;
use crate::tlb::{Rights, View};
use crate::vcpu::VcpuMmu;
use crate::walk::{Purpose, walk};
use x86_arch::{Gpa, Gva};

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
        let view = self.view_of(access);
        let ac = view == View::SupervisorAc;
        let found = walk(&self.tables(), &self.context, gva, Purpose::Access { access, ac })
            .map_err(|code| MmuFault::PageFault { gva, code })?;
        Ok(self.fill(view, gva, found.gpa, found.rights, found.dirty, access))
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

    /// The guest allows the access: find the host page, note a write, and enter into the TLB what may go there.
    fn fill(
        &mut self,
        view: View,
        gva: Gva,
        gpa: Gpa,
        page: PageRights,
        dirty: bool,
        access: Access,
    ) -> Target {
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
            slot.mark_dirty(gfn);
        }
        let offset = slot.offset_of(gfn).unwrap_or(0);
        let tracked = slot.tracks.is_page_table(offset) || self.mmu.code.contains(ptr.frame());
        let logged_clean = slot.dirty.as_ref().is_some_and(|dirty| !dirty.is_dirty(offset));
        let allows = |kind: AccessKind| {
            let access = Access { kind, ..access };
            self.context.rules.check(page, access, view == View::SupervisorAc).is_ok()
        };
        let rights = Rights {
            read: allows(AccessKind::Read),
            write: dirty && !tracked && !logged_clean && !slot.read_only() && allows(AccessKind::Write),
            // Only by a fetch: whoever caches decoded code looks at the bytes when a page gets its execute tag.
            execute: access.is_execute(),
        };
        self.tlb.fill(view, gva, ptr.hva().page_base().0, rights);
        if write && tracked { Target::Tracked(Tracked { ptr, gpa }) } else { Target::Ram(ptr) }
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
