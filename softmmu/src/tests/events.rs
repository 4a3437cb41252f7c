//! Each event by itself: what becomes of translations, sptes, logs and tracked pages.

use crate::access::{Access, AccessKind, MmuFault, Target};
use crate::guest_memory::{GuestMemory, GuestMemoryError};
use crate::host_mem::{self, HostFault};
use crate::memslot::{MemRegionFlags, MemslotError};
use crate::mmu::MmuConfig;
use crate::safepoint::{Requests, VcpuGate};
use crate::shootdown::CodeWrite;
use crate::test_ram::TestVm;
use crate::tlb::View;
use crate::vcpu::{CodeMark, PagingRegisters, VcpuMmu};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use x86_arch::control::CR3_NO_FLUSH;
use x86_arch::{Cr0, Cr4, Efer, Gpa, Gva, Hva, PageFaultErrorCode};

const MIB: u64 = 1 << 20;

/// 4-level tables: 1000h, 2000h, 3000h; a page table at 4000h for gva 0 to 2 MiB (identity, user, writable, not accessed); a
/// large page at gva 2 MiB, a 1 GiB page at gva 1 GiB (both of gpa 0 on).
struct Guest {
    vm: TestVm,
    gate: Arc<VcpuGate>,
    mmu: VcpuMmu,
    memory: GuestMemory,
}

fn long_mode() -> PagingRegisters {
    PagingRegisters {
        cr0: Cr0::PE | Cr0::PG | Cr0::WP,
        cr3: 0x1000,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA | Efer::NXE,
        pkru: 0,
        as_id: 0,
        maxphyaddr: 40,
    }
}

impl Guest {
    fn new() -> Guest {
        Guest::with_config(MmuConfig::default())
    }

    fn with_config(config: MmuConfig) -> Guest {
        let vm = TestVm::with_config(4 * MIB as usize, config);
        let memory = vm.mmu.guest_memory(0);
        for (at, entry) in
            [(0x1000, 0x2007u64), (0x2000, 0x3007), (0x2008, 0x87), (0x3000, 0x4007), (0x3008, 0x87)]
        {
            memory.store(Gpa(at), entry).unwrap();
        }
        for page in 0..512u64 {
            memory.store(Gpa(0x4000 + 8 * page), (page << 12) | 7).unwrap();
        }
        let (gate, mut mmu) = vm.vcpu();
        gate.enter();
        mmu.apply_requests(gate.take_requests());
        mmu.set_registers(long_mode());
        Guest { vm, gate, mmu, memory }
    }

    fn safe_point(&mut self) {
        self.mmu.apply_requests(self.gate.take_requests());
    }

    fn translate(&mut self, gva: u64, access: Access) -> Result<Target, MmuFault> {
        self.mmu.translate(Gva(gva), access, 8)
    }

    /// Translates until the shadow tables have it: the first time protects the tables, the next makes the pages.
    fn settle(&mut self, gva: u64, access: Access) {
        for _ in 0..3 {
            self.translate(gva, access).unwrap();
            self.safe_point();
        }
    }

    /// Whether the shadow tables answer.
    fn shadowed(&mut self, gva: u64, access: Access) -> bool {
        let before = self.mmu.stats().shadow_hits;
        self.translate(gva, access).unwrap();
        self.mmu.stats().shadow_hits > before
    }

    fn ram(&self, gpa: u64) -> Result<Target, MmuFault> {
        Ok(Target::Ram(self.vm.ram.ptr(gpa)))
    }

    fn audit(&self) {
        assert_eq!(self.vm.mmu.audit(), Vec::<String>::new());
    }

    /// A guest store.
    fn store(&mut self, gva: u64, value: u64) -> bool {
        match self.translate(gva, Access::write(false)).unwrap() {
            Target::Ram(ptr) => {
                host_mem::store(ptr, value).unwrap();
                false
            }
            Target::Tracked(tracked) => {
                host_mem::store(tracked.host_ptr(), value).unwrap();
                self.mmu.after_write(tracked, 8)
            }
            Target::Mmio(gpa) => panic!("no memory at {gpa:?}"),
        }
    }
}

fn fault(gva: u64, code: PageFaultErrorCode) -> Result<Target, MmuFault> {
    Err(MmuFault::PageFault { gva: Gva(gva), code })
}

const READ: Access = Access::read(false);
const WRITE: Access = Access::write(false);

#[test]
fn small_large_and_huge_pages() {
    let mut guest = Guest::new();
    for (gva, gpa) in
        [(0x5123, 0x5123), (2 * MIB + 0x8_0010, 0x8_0010), ((1 << 30) + 3 * MIB + 8, 3 * MIB + 8)]
    {
        for access in [READ, WRITE, Access::read(true), Access::execute(true)] {
            guest.settle(gva, access);
            assert_eq!(guest.translate(gva, access), guest.ram(gpa), "{gva:#x}");
            assert!(guest.shadowed(gva, access), "{gva:#x} {access:?}");
        }
        guest.audit();
    }
    assert_eq!(guest.memory.load::<u64>(Gpa(0x2008)), Ok(0xe7), "accessed and dirty in the 1 GiB entry");
    // Beyond the memory: MMIO, from the shadow tables too.
    let beyond = (1 << 30) + 8 * MIB;
    guest.settle(beyond, READ);
    assert!(guest.shadowed(beyond, READ));
    assert_eq!(guest.translate(beyond + 4, READ), Ok(Target::Mmio(Gpa(8 * MIB + 4))));
}

#[test]
fn a_page_table_is_write_protected_while_it_is_used() {
    let mut guest = Guest::new();
    // The guest has a write tag for its page table before that becomes one.
    guest.settle(0x4000, WRITE);
    guest.safe_point();
    assert_eq!(guest.mmu.tlb.lookup_write(0x4000, 8), None, "dropped when the table was protected");
    assert!(matches!(guest.translate(0x4028, WRITE), Ok(Target::Tracked(_))));
    assert!(guest.mmu.tlb.lookup_read(0x4028, 8).is_some());
    // Through another mapping of the same frame, too.
    guest.settle(2 * MIB + 0x4000, READ);
    assert!(matches!(guest.translate(2 * MIB + 0x4000, WRITE), Ok(Target::Tracked(_))));
    guest.audit();
    // A new gpte counts after the guest's own flush.
    guest.settle(0x5000, READ);
    assert!(guest.shadowed(0x5000, READ));
    guest.store(0x4028, 0x9007);
    guest.mmu.invlpg(Gva(0x5000));
    assert_eq!(guest.translate(0x5000, READ), guest.ram(0x9000));
    guest.audit();
}

#[test]
fn a_table_that_is_written_all_the_time_is_unshadowed() {
    let mut guest = Guest::new();
    guest.settle(0x5000, READ);
    // Written through a large page, so that the store does not itself need the table.
    let table = 2 * MIB + 0x4000;
    for page in 16..24 {
        guest.store(table + 8 * page, 0);
    }
    assert!(guest.vm.mmu.stats().flooded > 0);
    assert_eq!(guest.translate(table + 0x80, WRITE), guest.ram(0x4080), "ordinary memory");
    assert!(guest.mmu.tlb.lookup_write(table + 0x80, 8).is_some());
    guest.audit();
    // And comes back.
    guest.settle(0x5000, READ);
    assert!(guest.shadowed(0x5000, READ));
    assert!(matches!(guest.translate(table + 0x80, WRITE), Ok(Target::Tracked(_))));
    guest.audit();
}

#[test]
fn accessed_and_dirty_bits_are_set_when_they_should() {
    let mut guest = Guest::new();
    guest.settle(0x5000, READ);
    assert_eq!(guest.memory.load::<u64>(Gpa(0x4028)), Ok(0x5027));
    assert_eq!(guest.mmu.tlb.lookup_write(0x5000, 8), None, "not dirty yet");
    guest.translate(0x5000, WRITE).unwrap();
    assert_eq!(guest.memory.load::<u64>(Gpa(0x4028)), Ok(0x5067));
    assert!(guest.mmu.tlb.lookup_write(0x5000, 8).is_some());
    // The guest takes them back, and flushes.
    guest.store(0x4028, 0x5007);
    guest.mmu.mov_cr3(0x1000);
    guest.translate(0x5000, READ).unwrap();
    assert_eq!(guest.memory.load::<u64>(Gpa(0x4028)), Ok(0x5027));
}

#[test]
fn cr0_wp_by_two_sptes() {
    let mut guest = Guest::new();
    guest.memory.store(Gpa(0x4028), 0x5005u64).unwrap();
    let write_protected = PageFaultErrorCode::P | PageFaultErrorCode::W;
    assert_eq!(guest.translate(0x5000, WRITE), fault(0x5000, write_protected));
    guest.mmu.set_registers(PagingRegisters { cr0: Cr0::PE | Cr0::PG, ..long_mode() });
    // Kernel writes, user reads, in turn: each is allowed, and each makes the other's spte anew.
    for _ in 0..3 {
        guest.settle(0x5000, WRITE);
        assert!(guest.shadowed(0x5000, WRITE));
        assert_eq!(guest.translate(0x5000, WRITE), guest.ram(0x5000));
        assert!(!guest.shadowed(0x5000, Access::read(true)));
        assert!(guest.shadowed(0x5000, Access::read(true)));
        assert_eq!(
            guest.translate(0x5000, Access::write(true)),
            fault(0x5000, write_protected | PageFaultErrorCode::U)
        );
        guest.audit();
    }
    // With CR0.WP again, nothing of it is left.
    guest.mmu.set_registers(long_mode());
    assert_eq!(guest.translate(0x5000, WRITE), fault(0x5000, write_protected));
    // SMEP: a user page that the kernel has written is still a user page to fetches.
    let smep = Cr4::PAE | Cr4::SMEP;
    guest.mmu.set_registers(PagingRegisters { cr0: Cr0::PE | Cr0::PG, cr4: smep, ..long_mode() });
    guest.settle(0x5000, WRITE);
    let fetch = PageFaultErrorCode::P | PageFaultErrorCode::I;
    assert_eq!(guest.translate(0x5000, Access::execute(false)), fault(0x5000, fetch));
    // SMAP: the kernel may write it only with EFLAGS.AC.
    let smap = Cr4::PAE | Cr4::SMAP;
    guest.mmu.set_registers(PagingRegisters { cr0: Cr0::PE | Cr0::PG, cr4: smap, ..long_mode() });
    guest.mmu.set_view(View::SupervisorAc);
    guest.settle(0x5000, WRITE);
    guest.mmu.set_view(View::Supervisor);
    assert_eq!(guest.translate(0x5000, WRITE), fault(0x5000, write_protected));
}

#[test]
fn one_table_under_different_registers() {
    let mut guest = Guest::new();
    let xd = 1u64 << 63;
    guest.memory.store(Gpa(0x4028), 0x5007 | xd).unwrap();
    let without_nxe = PagingRegisters { efer: Efer::LME | Efer::LMA, ..long_mode() };
    guest.settle(0x5000, READ);
    guest.mmu.set_registers(without_nxe);
    let reserved = PageFaultErrorCode::P | PageFaultErrorCode::RSVD;
    assert_eq!(guest.translate(0x5000, READ), fault(0x5000, reserved));
    // Protection keys of two large pages of the same frames.
    let key = 5u64 << 59;
    guest.memory.store(Gpa(0x3008), 0x87u64).unwrap();
    guest.memory.store(Gpa(0x3010), 0x87u64 | key).unwrap();
    let keys = PagingRegisters { cr4: Cr4::PAE | Cr4::PKE, pkru: 1 << 10, ..long_mode() };
    guest.mmu.set_registers(keys);
    guest.settle(2 * MIB + 0x9000, READ);
    let refused = PageFaultErrorCode::P | PageFaultErrorCode::PK;
    assert_eq!(guest.translate(4 * MIB + 0x9000, READ), fault(4 * MIB + 0x9000, refused));
    guest.mmu.set_pkru(0);
    guest.settle(4 * MIB + 0x9000, READ);
    assert!(guest.shadowed(4 * MIB + 0x9000, READ));
    guest.mmu.set_pkru(1 << 10);
    assert_eq!(guest.translate(4 * MIB + 0x9000, READ), fault(4 * MIB + 0x9000, refused));
    assert_eq!(guest.translate(2 * MIB + 0x9000, READ), guest.ram(0x9000));
    // 4-level tables read as PAE's: bits 62:52 are reserved there.
    guest.mmu.set_registers(PagingRegisters { efer: Efer::NXE, ..keys });
    guest.mmu.set_pdptrs([0x3001, 0, 0, 0]);
    assert_eq!(guest.translate(4 * MIB + 0x9000, READ), fault(4 * MIB + 0x9000, reserved));
    guest.settle(2 * MIB + 0x9000, READ);
    assert!(guest.shadowed(2 * MIB + 0x9000, READ));
    guest.audit();
}

#[test]
fn four_mib_pages_and_their_absence() {
    let mut guest = Guest::new();
    let memory = guest.memory.clone();
    let pse = PagingRegisters { cr3: 0x6000, cr4: Cr4::PSE, efer: Efer::empty(), ..long_mode() };
    // Entry 0 is a 4 MiB page at 0 or, without PSE, a table at 0 whose second entry is for 7000h.
    memory.store(Gpa(0x6000), 0x87u32).unwrap();
    memory.store(Gpa(4), 0x7007u32).unwrap();
    guest.mmu.set_registers(pse);
    for gva in [0x1010, 3 * MIB + 0x18] {
        guest.settle(gva, WRITE);
        assert!(guest.shadowed(gva, WRITE));
        assert_eq!(guest.translate(gva, READ), guest.ram(gva));
    }
    memory.store(Gpa(4), 0x7007u32).unwrap();
    guest.mmu.set_registers(PagingRegisters { cr4: Cr4::empty(), ..pse });
    assert_eq!(guest.translate(0x1010, READ), guest.ram(0x7010));
    guest.settle(0x1010, READ);
    assert!(guest.shadowed(0x1010, READ));
    guest.mmu.set_registers(pse);
    assert_eq!(guest.translate(0x1010, READ), guest.ram(0x1010));
    guest.audit();
}

#[test]
fn pae_loads_its_pdptes_with_cr3() {
    let mut guest = Guest::new();
    let memory = guest.memory.clone();
    memory.write(Gpa(0x8020), &[0; 32]).unwrap();
    memory.store(Gpa(0x8028), 0x3001u64).unwrap();
    let pae = PagingRegisters { cr3: 0x8020, efer: Efer::NXE, ..long_mode() };
    guest.mmu.set_registers(pae);
    assert!(guest.mmu.load_pdptrs(0x8020));
    assert_eq!(guest.mmu.pdptrs(), [0, 0x3001, 0, 0]);
    let gva = (1 << 30) + 0x5000;
    guest.settle(gva, READ);
    assert!(guest.shadowed(gva, READ));
    assert_eq!(guest.translate(0x5000, READ), fault(0x5000, PageFaultErrorCode::empty()));
    // The registers, not the memory, count until the next load.
    memory.store(Gpa(0x8028), 0u64).unwrap();
    guest.mmu.invpcid_all();
    assert_eq!(guest.translate(gva, READ), guest.ram(0x5000));
    assert!(guest.mmu.load_pdptrs(0x8020));
    assert_eq!(guest.translate(gva, READ), fault(gva, PageFaultErrorCode::empty()));
    // Reserved bits in a present one are #GP; in an absent one they are nothing.
    for (entry, loads) in [
        (0x3003u64, false),
        (0x3003 & !1, true),
        (0x3001 | 1 << 40, false),
        (0x3001 | 0x18, true),
        (0x3021, false),
    ] {
        memory.store(Gpa(0x8038), entry).unwrap();
        assert_eq!(guest.mmu.load_pdptrs(0x8020), loads, "{entry:#x}");
    }
    assert!(!guest.mmu.load_pdptrs(0xffff_ffe0), "no memory there");
}

#[test]
fn pcids_keep_their_translations() {
    let mut guest = Guest::new();
    // A second address space with another page at 5000h.
    let memory = guest.memory.clone();
    for (at, entry) in [(0x11000, 0x12007u64), (0x12000, 0x13007), (0x13000, 0x14007), (0x14028, 0x9007)] {
        memory.store(Gpa(at), entry).unwrap();
    }
    guest.mmu.set_registers(PagingRegisters { cr3: 0x1001, cr4: Cr4::PAE | Cr4::PCIDE, ..long_mode() });
    guest.translate(0x5000, READ).unwrap();
    guest.mmu.mov_cr3(0x11002);
    assert_eq!(guest.mmu.tlb.lookup_read(0x5000, 8), None);
    assert_eq!(guest.translate(0x5000, READ), guest.ram(0x9000));
    guest.translate(0x5000, READ).unwrap();
    guest.mmu.mov_cr3(0x1001 | CR3_NO_FLUSH);
    assert_eq!(guest.mmu.registers().cr3, 0x1001);
    assert_eq!(guest.mmu.tlb.lookup_read(0x5000, 8), None, "the other PCID's entry took its place");
    assert_eq!(guest.translate(0x5000, READ), guest.ram(0x5000));
    guest.translate(0x6000, READ).unwrap();
    guest.mmu.mov_cr3(0x11002 | CR3_NO_FLUSH);
    guest.mmu.mov_cr3(0x1001 | CR3_NO_FLUSH);
    assert!(guest.mmu.tlb.lookup_read(0x6000, 8).is_some());
    guest.mmu.mov_cr3(0x11002 | CR3_NO_FLUSH);
    guest.mmu.mov_cr3(0x1001);
    assert_eq!(guest.mmu.tlb.lookup_read(0x6000, 8), None);
    guest.translate(0x6000, READ).unwrap();
    guest.mmu.invpcid_context(2);
    assert!(guest.mmu.tlb.lookup_read(0x6000, 8).is_some());
    guest.mmu.invpcid_address(1, Gva(0x6000));
    assert_eq!(guest.mmu.tlb.lookup_read(0x6000, 8), None);
    // Roots are remembered: after the first visit nothing is walked again.
    for _ in 0..4 {
        for cr3 in [0x1001, 0x11002] {
            guest.mmu.mov_cr3(cr3);
            guest.settle(0x5000, READ);
        }
    }
    let walks = guest.mmu.stats().walks;
    for _ in 0..10 {
        for (cr3, gpa) in [(0x1001, 0x5000), (0x11002, 0x9000)] {
            guest.mmu.mov_cr3(cr3);
            assert_eq!(guest.translate(0x5000, READ), guest.ram(gpa));
        }
    }
    assert_eq!(guest.mmu.stats().walks, walks);
    guest.audit();
}

#[test]
fn few_shadow_pages_are_enough() {
    let mut guest = Guest::with_config(MmuConfig { shadow_pages: 64 });
    // A linear range needs one page for each 2 MiB: far more than 64.
    for n in 0..400u64 {
        let gva = (1 << 30) + n * 2 * MIB;
        guest.settle(gva, READ);
        assert!(guest.shadowed(gva, READ), "{n}");
    }
    let stats = guest.vm.mmu.stats();
    assert!(stats.pages <= 64 && stats.recycled > 300, "{stats:?}");
    guest.audit();
    guest.vm.mmu.set_shadow_page_limit(500);
    for n in 0..400u64 {
        guest.settle((1 << 30) + n * 2 * MIB, READ);
    }
    assert!(guest.vm.mmu.stats().pages > 400);
    guest.vm.mmu.set_shadow_page_limit(100);
    assert_eq!((guest.vm.mmu.shadow_page_limit(), guest.vm.mmu.stats().pages), (100, 100));
    guest.audit();
}

#[test]
fn a_moved_slot_takes_its_translations_along() {
    let mut guest = Guest::new();
    let hva = Hva(guest.vm.ram.hva().0 + MIB);
    let set = |guest: &Guest, gpa: u64, size: u64| {
        guest.gate.leave();
        guest.vm.set_slot(1, Gpa(gpa), size, hva, MemRegionFlags::empty());
        guest.gate.enter();
    };
    set(&guest, 16 * MIB, MIB);
    guest.safe_point();
    let gva = (1 << 30) + 16 * MIB;
    guest.settle(gva, READ);
    assert_eq!(guest.translate(gva, READ), guest.ram(MIB));
    assert_eq!(guest.memory.load::<u8>(Gpa(17 * MIB)), Err(GuestMemoryError::NoSlot(Gpa(17 * MIB))));
    set(&guest, 17 * MIB, MIB);
    guest.safe_point();
    assert_eq!(guest.mmu.tlb.lookup_read(gva, 8), None);
    assert_eq!(guest.translate(gva, READ), Ok(Target::Mmio(Gpa(16 * MIB))));
    assert_eq!(guest.translate(gva + MIB, READ), guest.ram(MIB));
    set(&guest, 0, 0);
    guest.safe_point();
    assert_eq!(guest.translate(gva + MIB, READ), Ok(Target::Mmio(Gpa(17 * MIB))));
    guest.audit();
}

#[test]
fn read_only_slots() {
    let mut guest = Guest::new();
    guest.gate.leave();
    guest.vm.set_slot(1, Gpa(16 * MIB), MIB, guest.vm.ram.hva(), MemRegionFlags::READONLY);
    guest.gate.enter();
    guest.safe_point();
    let gva = (1 << 30) + 16 * MIB;
    guest.settle(gva, READ);
    assert!(guest.shadowed(gva, READ));
    assert_eq!(guest.translate(gva, WRITE), Ok(Target::Mmio(Gpa(16 * MIB))));
    assert_eq!(guest.mmu.tlb.lookup_write(gva, 8), None);
    assert_eq!(guest.memory.store(Gpa(16 * MIB), 1u8), Err(GuestMemoryError::ReadOnly(Gpa(16 * MIB))));
    // Tables in read-only memory: walked, but accessed and dirty bits are left alone.
    let cr3 = 16 * MIB + 0x1000;
    let before = guest.memory.load::<u64>(Gpa(0x4030)).unwrap();
    guest.mmu.mov_cr3(cr3);
    guest.memory.store(Gpa(0x1000), 0x100_2007u64).unwrap();
    guest.memory.store(Gpa(0x2000), 0x100_3007u64).unwrap();
    guest.memory.store(Gpa(0x3000), 0x100_4007u64).unwrap();
    guest.settle(0x6000, WRITE);
    assert_eq!(guest.translate(0x6000, WRITE), guest.ram(0x6000));
    assert_eq!(guest.memory.load::<u64>(Gpa(0x4030)), Ok(before));
    guest.audit();
}

#[test]
fn the_dirty_log() {
    let mut guest = Guest::new();
    let log = |guest: &Guest| {
        guest.gate.leave();
        let bits = guest.vm.world.exclusive(None, |ex| guest.vm.mmu.get_dirty_log(ex, 0, 0));
        guest.gate.enter();
        bits.map(|bits| {
            let bit = |page: &u64| bits[(page / 64) as usize] >> (page % 64) & 1 != 0;
            (0..1024).filter(bit).collect::<Vec<u64>>()
        })
    };
    assert_eq!(log(&guest), Err(MemslotError::NoEntry));
    guest.settle(0x5000, WRITE);
    guest.settle(0x6000, WRITE);
    guest.gate.leave();
    guest.vm.set_slot(0, Gpa(0), 4 * MIB, guest.vm.ram.hva(), MemRegionFlags::LOG_DIRTY);
    guest.gate.enter();
    guest.safe_point();
    assert_eq!(log(&guest), Ok(vec![]));
    assert_eq!(guest.mmu.tlb.lookup_write(0x5000, 8), None);
    for round in 0..3 {
        guest.settle(0x5000, READ);
        assert_eq!(guest.mmu.tlb.lookup_write(0x5000, 8), None, "clean, so that a write must be seen");
        guest.settle(0x5000, WRITE);
        assert!(guest.mmu.tlb.lookup_write(0x5000, 8).is_some());
        assert!(guest.shadowed(0x5000, WRITE));
        guest.memory.store(Gpa(0x9000), 1u8).unwrap();
        assert_eq!(log(&guest), Ok(vec![5, 9]), "round {round}");
        guest.safe_point();
        assert!(!guest.shadowed(0x5000, WRITE));
        assert_eq!(log(&guest), Ok(vec![5]));
        guest.safe_point();
    }
    // Accessed bits are writes to the tables.
    guest.store(0x4038, 0x7007);
    assert_eq!(log(&guest), Ok(vec![4]));
    guest.safe_point();
    guest.translate(0x7000, READ).unwrap();
    assert_eq!(log(&guest), Ok(vec![4]));
    guest.safe_point();
    // Clearing a part.
    guest.settle(0x5000, WRITE);
    guest.settle(0x6000, WRITE);
    guest.gate.leave();
    guest.vm.world.exclusive(None, |ex| guest.vm.mmu.clear_dirty_log(ex, 0, 0, 0, &[1 << 5])).unwrap();
    guest.gate.enter();
    guest.safe_point();
    assert!(guest.shadowed(0x6000, WRITE));
    assert_eq!(guest.vm.mmu.peek_dirty_log(0, 0).unwrap()[0] & 0x60, 0x40);
    guest.audit();
}

#[test]
fn stores_to_decoded_code_are_told() {
    let mut guest = Guest::new();
    guest.settle(0x5000, WRITE);
    assert!(guest.mmu.tlb.lookup_write(0x5000, 8).is_some());
    let Ok(Target::Ram(ptr)) = guest.translate(0x5100, Access::execute(false)) else { panic!() };
    assert_eq!(guest.mmu.mark_code(None, ptr, 100), CodeMark::Ready);
    assert_eq!(guest.mmu.tlb.lookup_write(0x5000, 8), None);
    let frame = ptr.frame();
    // Beside the code: nothing. In it: once.
    assert!(!guest.store(0x5000, 1));
    assert!(!guest.store(0x51c0, 1));
    assert!(guest.mmu.take_code_writes().is_empty());
    assert!(guest.store(0x5138, 1));
    assert_eq!(guest.mmu.take_code_writes(), [CodeWrite { frame, granules: 1 << 4 }]);
    assert!(!guest.store(0x5130, 1));
    // By gpa, through another alias, across granules.
    guest.memory.write(Gpa(0x5130), &[0; 0x20]).unwrap();
    assert!(guest.gate.peek_requests().contains(Requests::CODE));
    assert_eq!(guest.mmu.take_code_writes(), [CodeWrite { frame, granules: 1 << 5 }]);
    // No code left: direct stores again.
    guest.safe_point();
    guest.translate(0x5000, WRITE).unwrap();
    assert!(guest.mmu.tlb.lookup_write(0x5000, 8).is_some());
}

#[test]
fn another_vcpu_that_runs_must_be_stopped_for_code() {
    let mut guest = Guest::new();
    let (other_gate, mut other) = guest.vm.vcpu();
    other.set_registers(long_mode());
    let Ok(Target::Ram(ptr)) = guest.translate(0x5100, Access::execute(false)) else { panic!() };
    // It is outside: it will act on its messages before it runs.
    assert_eq!(guest.mmu.mark_code(None, ptr, 8), CodeMark::Ready);
    other_gate.enter();
    assert_eq!(guest.mmu.mark_code(None, ptr, 8), CodeMark::NeedsExclusive);
    other.apply_requests(other_gate.take_requests());
    assert_eq!(guest.mmu.mark_code(None, ptr, 8), CodeMark::Ready);
    // A new page while it runs, with a write tag.
    let Ok(Target::Ram(page)) = other.translate(Gva(0x6000), WRITE, 8) else { panic!() };
    assert!(other.tlb.lookup_write(0x6000, 8).is_some());
    assert_eq!(guest.mmu.mark_code(None, page, 8), CodeMark::NeedsExclusive);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                other_gate.park_if_stopped();
            }
        });
        guest.vm.world.exclusive(Some(&guest.gate), |ex| {
            assert_eq!(guest.mmu.mark_code(Some(ex), page, 8), CodeMark::Ready);
        });
        done.store(true, SeqCst);
    });
    other.apply_requests(other_gate.take_requests());
    assert_eq!(other.tlb.lookup_write(0x6000, 8), None);
    assert!(matches!(other.translate(Gva(0x6000), WRITE, 8), Ok(Target::Tracked(_))));
    other_gate.leave();
}

#[test]
fn memory_that_is_gone() {
    let mut guest = Guest::new();
    guest.settle(0x5000, READ);
    guest.vm.ram.punch(0x5000, 0x1000);
    let Some(ptr) = guest.mmu.tlb.lookup_read(0x5008, 8) else { panic!() };
    assert_eq!(host_mem::load::<u64>(ptr), Err(HostFault { hva: Hva(guest.vm.ram.hva().0 + 0x5008) }));
    assert!(matches!(guest.memory.load::<u64>(Gpa(0x5008)), Err(GuestMemoryError::Host(_))));
    // A page table that is gone is as good as empty.
    guest.vm.ram.punch(0x4000, 0x1000);
    assert_eq!(guest.translate(0x7000, READ), fault(0x7000, PageFaultErrorCode::empty()));
    // So is one where no slot is.
    guest.mmu.mov_cr3(64 * MIB);
    assert_eq!(guest.translate(0x7000, READ), fault(0x7000, PageFaultErrorCode::empty()));
    // The host tells: translations of that memory go.
    guest.mmu.mov_cr3(0x1000);
    let range = Hva(guest.vm.ram.hva().0 + 0x5000)..Hva(guest.vm.ram.hva().0 + 0x5001);
    guest.gate.leave();
    guest.vm.world.exclusive(None, |ex| guest.vm.mmu.invalidate_hva(ex, range));
    guest.gate.enter();
    guest.safe_point();
    assert_eq!(guest.mmu.tlb.lookup_read(0x5008, 8), None);
    guest.audit();
}

#[test]
fn smap_and_implicit_accesses() {
    let mut guest = Guest::new();
    guest.mmu.set_registers(PagingRegisters { cr4: Cr4::PAE | Cr4::SMAP, ..long_mode() });
    let refused = fault(0x5000, PageFaultErrorCode::P);
    assert_eq!(guest.translate(0x5000, READ), refused);
    guest.mmu.set_view(View::SupervisorAc);
    for _ in 0..4 {
        assert_eq!(guest.translate(0x5000, READ), guest.ram(0x5000));
        guest.safe_point();
        assert_eq!(guest.translate(0x5000, Access::implicit(AccessKind::Read)), refused);
        assert_eq!(guest.mmu.tlb.lookup_read_in(View::Supervisor, 0x5000, 8), None);
    }
    guest.mmu.set_view(View::Supervisor);
    assert_eq!(guest.translate(0x5000, READ), refused);
}

#[test]
fn a_debuggers_look_changes_nothing() {
    let guest = Guest::new();
    guest.memory.store(Gpa(0x4028), 0x5001u64 | 1 << 63).unwrap();
    let found = guest.mmu.peek(Gva(0x5123)).unwrap();
    assert_eq!((found.gpa, found.writable, found.user, found.executable), (Gpa(0x5123), false, false, false));
    assert_eq!(guest.memory.load::<u64>(Gpa(0x4028)), Ok(0x5001 | 1 << 63));
    assert_eq!(guest.mmu.peek(Gva(1 << 47)), None);
    assert_eq!(guest.mmu.peek(Gva(0x20_0000_0000)), None);
    assert_eq!(guest.mmu.tlb.lookup_read(0x5123, 1), None);
}

/// A guest that shadows a table while one of its own instructions holds a pointer into it: the pointer stays good to the safe point.
#[test]
fn protection_waits_for_the_instruction_under_way() {
    let mut guest = Guest::new();
    let Ok(Target::Ram(table)) = guest.translate(0x4028, WRITE) else { panic!() };
    // The same instruction's second access would have the table shadowed …
    guest.translate(0x5000, READ).unwrap();
    guest.translate(0x5000, READ).unwrap();
    assert_eq!(guest.vm.mmu.stats().pages, 0, "… but not before the safe point");
    host_mem::store(table, 0x9007u64).unwrap();
    guest.safe_point();
    guest.mmu.invlpg(Gva(0x5000));
    guest.settle(0x5000, READ);
    assert_eq!(guest.translate(0x5000, READ), guest.ram(0x9000));
    guest.audit();
}

#[test]
fn a_dump_for_people() {
    let mut guest = Guest::new();
    for gva in [0x5000, 0x6000, (1 << 30) + 2 * MIB] {
        guest.settle(gva, WRITE);
    }
    guest.store(0x4000 + 8 * 100, 0);
    let dump = guest.mmu.dump();
    let lines: Vec<&str> = dump.lines().collect();
    assert!(lines[0].starts_with("Level4, root 1000"), "{dump}");
    assert_eq!(
        lines[1..],
        [
            "0000000000000000-0000000000063fff  ->  0000000000000  4K  uwx  2 of 100 mapped, 2 writable",
            "0000000000065000-00000000001fffff  ->  0000000065000  4K  uwx  0 of 411 mapped, 0 writable",
            "0000000000200000-00000000003fffff  ->  0000000000000  2M  uwx  0 of 512 mapped, 0 writable",
            "0000000040000000-000000007fffffff  ->  0000000000000  1G  uwx  1 of 262144 mapped, 1 writable",
        ]
    );
    let pages = guest.vm.mmu.dump_shadow_pages();
    assert!(pages.contains("gfn         4  L1uwx"), "{pages}");
}
