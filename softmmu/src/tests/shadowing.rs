//! The shadow MMU against the naive walker: two vCPUs, random tables that are data too, random writes to them, changes of
//! registers, slots and dirty logging, safe points that come or do not; after each step the audit.

use super::walking::{address, an_access, entry, fit, pdptrs, places, registers};
use crate::access::{Access, AccessKind, MmuFault, Target};
use crate::dirty_ring::{DirtyRing, tests::Entries};
use crate::host_mem::{self, HostPtr};
use crate::memslot::MemRegionFlags;
use crate::mmu::MmuConfig;
use crate::naive::{self, Outcome};
use crate::safepoint::VcpuGate;
use crate::test_ram::TestVm;
use crate::tlb::View;
use crate::vcpu::{PagingRegisters, VcpuMmu};
use proptest::prelude::*;
use std::sync::Arc;
use x86_arch::{Cr4, Gpa, Gva};

const FRAMES: u64 = 8;
const BYTES: usize = (FRAMES as usize) << 12;

#[derive(Clone, Debug)]
enum Step {
    /// An access by one of the vCPUs; a write stores this value. Most use one of a few addresses, again and again.
    Access { vcpu: usize, gva: u64, again: Option<prop::sample::Index>, access: Access, ac: bool, value: u64 },
    /// An entry is written by gpa, as by a device.
    Write { frame: u64, index: u64, entry: u64 },
    /// One byte of an entry is written by gpa.
    WriteByte { at: u64, value: u8 },
    /// The guest drops its TLBs.
    Flush,
    /// A safe point.
    SafePoint { vcpu: usize },
    /// MOV to CR3.
    Cr3 { vcpu: usize, root: u64 },
    /// Other registers.
    Registers { vcpu: usize, regs: PagingRegisters, pdptrs: [u64; 4] },
    /// PKRU.
    Pkru { vcpu: usize, pkru: u32 },
    /// The slot's flags.
    Flags { log: bool },
    /// The dirty log is fetched.
    DirtyLog,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        60 => (0usize..2, address(), proptest::option::weighted(0.8, any::<prop::sample::Index>()), an_access(), entry())
            .prop_map(|(vcpu, gva, again, (access, ac), value)| Step::Access { vcpu, gva, again, access, ac, value }),
        8 => Just(Step::Flush),
        4 => (0..FRAMES, 0u64..4, entry()).prop_map(|(frame, index, entry)| Step::Write { frame, index, entry }),
        1 => (0..FRAMES << 12, any::<u8>()).prop_map(|(at, value)| Step::WriteByte { at: at & !0xfc0, value }),
        60 => (0usize..2).prop_map(|vcpu| Step::SafePoint { vcpu }),
        2 => (0usize..2, 0u64..3).prop_map(|(vcpu, root)| Step::Cr3 { vcpu, root }),
        1 => (0usize..2, registers(), pdptrs())
            .prop_map(|(vcpu, regs, pdptrs)| Step::Registers { vcpu, regs, pdptrs }),
        1 => (0usize..2, any::<u32>()).prop_map(|(vcpu, pkru)| Step::Pkru { vcpu, pkru }),
        1 => any::<bool>().prop_map(|log| Step::Flags { log }),
        2 => Just(Step::DirtyLog),
    ]
}

struct Bench {
    vm: TestVm,
    vcpus: Vec<(Arc<VcpuGate>, VcpuMmu)>,
    /// What the memory should hold.
    model: Vec<u8>,
    /// Pages written since the log was fetched.
    dirty: u64,
    logging: bool,
    /// Each vCPU's dirty ring, and where it was read up to; none: the log is a bitmap.
    rings: Vec<(Arc<Entries>, usize)>,
    favourites: Vec<u64>,
}

impl Bench {
    fn new(
        regs: PagingRegisters,
        pdptrs: [u64; 4],
        places: &[(u64, u64, u64)],
        favourites: Vec<u64>,
        rings: bool,
    ) -> Bench {
        let vm = TestVm::with_config(BYTES, MmuConfig { shadow_pages: 64 });
        let vcpus: Vec<_> = (0..2).map(|_| vm.vcpu()).collect();
        let rings: Vec<_> = vcpus.iter().filter(|_| rings).map(|_| (Entries::new(256), 0)).collect();
        for ((_, mmu), (entries, _)) in vcpus.iter().zip(&rings) {
            mmu.set_dirty_ring(DirtyRing::new(Box::new(entries.clone())));
        }
        let mut bench =
            Bench { vm, vcpus, model: vec![0; BYTES], dirty: 0, logging: false, rings, favourites };
        let size = if regs.cr4.contains(Cr4::PAE) { 8 } else { 4 };
        for &(frame, index, entry) in places {
            bench.store((frame << 12) | ((index * size) & 0xfff), &entry.to_le_bytes()[..size as usize]);
        }
        for vcpu in 0..2 {
            bench.vcpus[vcpu].0.enter();
            bench.safe_point(vcpu);
            bench.vcpus[vcpu].1.set_registers(regs);
            bench.vcpus[vcpu].1.set_pdptrs(pdptrs);
        }
        bench
    }

    fn note(&mut self, at: u64, bytes: &[u8]) {
        self.model[at as usize..][..bytes.len()].copy_from_slice(bytes);
        if self.logging {
            self.dirty |= 1 << (at >> 12);
        }
    }

    fn store(&mut self, at: u64, bytes: &[u8]) {
        self.vm.mmu.guest_memory(0).write(Gpa(at), bytes).unwrap();
        self.note(at, bytes);
    }

    fn safe_point(&mut self, vcpu: usize) {
        let (gate, mmu) = &mut self.vcpus[vcpu];
        let requests = gate.take_requests();
        mmu.apply_requests(requests);
    }

    /// Everything in the dirty rings, which are reset: a bit a page, and no page twice.
    fn drain_rings(&mut self) -> u64 {
        let mut bits = 0;
        for (entries, at) in &mut self.rings {
            for (slot, offset) in entries.harvest(at, usize::MAX) {
                assert!(slot == 0 && bits >> offset & 1 == 0, "page {offset} of slot {slot} twice");
                bits |= 1 << offset;
            }
        }
        let mmu = &self.vm.mmu;
        let count = self.vm.world.exclusive(None, |ex| mmu.reset_dirty_rings(ex));
        assert_eq!(count, u64::count_ones(bits) as usize);
        bits
    }

    /// The guest flushes everywhere, so that no stale translation is allowed from here on.
    fn flush(&mut self) {
        for (_, mmu) in &mut self.vcpus {
            mmu.mov_cr3(mmu.registers().cr3);
            mmu.invpcid_all();
        }
    }

    /// Every request is acted on, as before an exclusive section ends.
    fn all_safe(&mut self) {
        for vcpu in 0..2 {
            self.safe_point(vcpu);
        }
    }

    /// As an interpreter does it: the TLB, then `translate`.
    fn target(mmu: &mut VcpuMmu, gva: u64, access: Access, size: u64) -> Result<Target, MmuFault> {
        let view = if access.implicit { View::Supervisor } else { mmu.tlb.view() };
        let found = match access.kind {
            AccessKind::Read => mmu.tlb.lookup_read_in(view, gva, size),
            AccessKind::Write => mmu.tlb.lookup_write_in(view, gva, size),
            AccessKind::Execute => mmu.tlb.lookup_exec(gva, size),
        };
        match found {
            Some(ptr) => Ok(Target::Ram(ptr)),
            None => mmu.translate(Gva(gva), access, size),
        }
    }

    fn access(
        &mut self,
        vcpu: usize,
        gva: u64,
        access: Access,
        ac: bool,
        value: u64,
    ) -> Result<(), TestCaseError> {
        let mmu = &mut self.vcpus[vcpu].1;
        let regs = *mmu.registers();
        let size = if regs.cr4.contains(Cr4::PAE) { 8 } else { 4 };
        let gva = fit(&regs, gva) & !(size - 1);
        let model = &self.model;
        let expected = naive::access(&regs, mmu.pdptrs(), gva, access, ac, &|at, size| {
            let bytes = model.get(at as usize..)?.get(..size as usize)?;
            Some(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
        });
        mmu.set_view(if access.user {
            View::User
        } else if ac {
            View::SupervisorAc
        } else {
            View::Supervisor
        });
        let got = Self::target(mmu, gva, access, size);
        let (gpa, updates) = match expected {
            Outcome::Fault(code) => {
                prop_assert_eq!(got, Err(MmuFault::PageFault { gva: Gva(gva), code }), "{:?}", access);
                return Ok(());
            }
            Outcome::Ok { gpa, updates } => (gpa, updates),
        };
        for (at, value) in updates {
            self.note(at, &value.to_le_bytes()[..size as usize]);
        }
        let mmu = &mut self.vcpus[vcpu].1;
        if gpa >= BYTES as u64 {
            prop_assert_eq!(got, Ok(Target::Mmio(Gpa(gpa))), "{:#x} {:?}", gva, access);
            return Ok(());
        }
        let ptr = self.vm.ram.ptr(gpa);
        match got {
            Ok(Target::Ram(found)) => prop_assert_eq!(found, ptr, "{:#x} {:?}", gva, access),
            Ok(Target::Tracked(tracked)) => {
                prop_assert!(access.is_write());
                prop_assert_eq!((tracked.host_ptr(), tracked.gpa()), (ptr, Gpa(gpa)));
            }
            other => prop_assert!(false, "{gva:#x} {access:?}: {other:?}, expected {gpa:#x}"),
        }
        if access.is_write() {
            let store = |ptr: HostPtr| {
                if size == 8 { host_mem::store(ptr, value) } else { host_mem::store(ptr, value as u32) }
            };
            store(ptr).unwrap();
            if let Ok(Target::Tracked(tracked)) = got {
                prop_assert!(!mmu.after_write(tracked, size), "there is no code");
            }
            self.note(gpa, &value.to_le_bytes()[..size as usize]);
            self.flush();
        }
        Ok(())
    }

    fn run(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Access { vcpu, gva, again, access, ac, value } => {
                let gva = again.map_or(gva, |index| *index.get(&self.favourites));
                // Few writes: each may wreck the tables.
                let kind = if value % 3 != 0 && access.is_write() { AccessKind::Read } else { access.kind };
                self.access(vcpu, gva, Access { kind, ..access }, ac, value)?;
            }
            Step::Flush => self.flush(),
            Step::Write { frame, index, entry } => {
                let wide = self.vcpus[0].1.registers().cr4.contains(Cr4::PAE);
                let size = if wide { 8 } else { 4 };
                self.store((frame << 12) | (index * size), &entry.to_le_bytes()[..size as usize]);
                self.flush();
            }
            Step::WriteByte { at, value } => {
                self.store(at, &[value]);
                self.flush();
            }
            Step::SafePoint { vcpu } => self.safe_point(vcpu),
            Step::Cr3 { vcpu, root } => self.vcpus[vcpu].1.mov_cr3(root << 12),
            Step::Registers { vcpu, regs, pdptrs } => {
                self.vcpus[vcpu].1.set_registers(regs);
                self.vcpus[vcpu].1.set_pdptrs(pdptrs);
            }
            Step::Pkru { vcpu, pkru } => self.vcpus[vcpu].1.set_pkru(pkru),
            Step::Flags { log } => {
                for (gate, _) in &self.vcpus {
                    gate.leave();
                }
                if !(self.logging && log) {
                    // What an earlier log has left.
                    self.drain_rings();
                }
                let flags = if log { MemRegionFlags::LOG_DIRTY } else { MemRegionFlags::empty() };
                self.vm.set_slot(0, Gpa(0), BYTES as u64, self.vm.ram.hva(), flags);
                for (gate, _) in &self.vcpus {
                    gate.enter();
                }
                self.all_safe();
                if !(self.logging && log) {
                    self.dirty = 0;
                }
                self.logging = log;
            }
            Step::DirtyLog if self.logging => {
                for (gate, _) in &self.vcpus {
                    gate.leave();
                }
                let bits = if self.rings.is_empty() {
                    let mmu = &self.vm.mmu;
                    self.vm.world.exclusive(None, |ex| mmu.get_dirty_log(ex, 0, 0)).unwrap()
                } else {
                    vec![self.drain_rings()]
                };
                prop_assert_eq!(&bits, &[self.dirty], "the dirty log");
                self.dirty = 0;
                for (gate, _) in &self.vcpus {
                    gate.enter();
                }
                self.all_safe();
            }
            Step::DirtyLog => {}
        }
        let mut memory = vec![0; BYTES];
        self.vm.mmu.guest_memory(0).read(Gpa(0), &mut memory).unwrap();
        prop_assert!(memory == self.model, "memory differs, accessed and dirty bits perhaps");
        let findings = self.vm.mmu.audit();
        prop_assert!(findings.is_empty(), "{:#?}", findings);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn shadow_pages_agree_with_the_naive_walker(
        regs in registers(),
        pdptrs in pdptrs(),
        places in places(),
        favourites in proptest::collection::vec(address(), 3..8),
        steps in proptest::collection::vec(step(), 1..300),
        rings: bool,
    ) {
        let mut bench = Bench::new(regs, pdptrs, &places, favourites, rings);
        for step in steps {
            bench.run(step.clone()).map_err(|e| TestCaseError::fail(format!("{step:?}: {e}")))?;
        }
    }
}
