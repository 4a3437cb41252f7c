//! Threads: nothing is lost at safe points, and a guest's own shootdown protocol holds.

use crate::access::{Access, Target};
use crate::host_mem;
use crate::memslot::MemRegionFlags;
use crate::safepoint::{BlockResult, Mode, Requests, VcpuGate, World};
use crate::test_ram::TestVm;
use crate::vcpu::{PagingRegisters, VcpuMmu};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;
use x86_arch::{Cr0, Cr4, Efer, Gpa, Gva};

/// vCPUs that run, leave and block at random; two threads and the vCPUs themselves that run exclusive sections.
#[test]
fn nobody_runs_in_an_exclusive_section() {
    const VCPUS: usize = 4;
    let world = World::new();
    let running: Arc<Vec<AtomicBool>> = Arc::new((0..VCPUS).map(|_| AtomicBool::new(false)).collect());
    let owner = Arc::new(AtomicUsize::new(usize::MAX));
    let done = Arc::new(AtomicBool::new(false));
    let instructions = Arc::new(AtomicU64::new(0));
    let sections = AtomicU64::new(0);
    let check = |running: &[AtomicBool], me: usize, owner: &AtomicUsize| {
        assert_eq!(owner.swap(me, SeqCst), usize::MAX, "two sections at once");
        for _ in 0..100 {
            for (i, running) in running.iter().enumerate() {
                assert!(i == me || !running.load(SeqCst), "vCPU {i} runs in {me}'s section");
            }
            std::hint::spin_loop();
        }
        assert_eq!(owner.swap(usize::MAX, SeqCst), me);
    };
    std::thread::scope(|scope| {
        for i in 0..VCPUS {
            let gate = world.register();
            let (world, running, owner) = (&world, &running, &owner);
            let (done, instructions, sections) = (&done, &instructions, &sections);
            scope.spawn(move || {
                let mut seed = i as u64 * 77 + 1;
                while !done.load(Relaxed) {
                    gate.enter();
                    for _ in 0..200 {
                        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        running[i].store(true, SeqCst);
                        instructions.fetch_add(1, Relaxed);
                        for _ in 0..seed >> 57 {
                            std::hint::spin_loop();
                        }
                        running[i].store(false, SeqCst);
                        if gate.pending() {
                            gate.park_if_stopped();
                            gate.take_requests();
                        }
                        match seed >> 60 {
                            0 => {
                                world.exclusive(Some(&gate), |_| check(running, i, owner));
                                sections.fetch_add(1, Relaxed);
                            }
                            1 => {
                                gate.block(Some(Duration::from_micros(seed >> 54 & 31)));
                            }
                            _ => {}
                        }
                    }
                    gate.leave();
                }
            });
        }
        for i in 0..2 {
            let (world, running, owner, sections) = (&world, &running, &owner, &sections);
            scope.spawn(move || {
                for _ in 0..300 {
                    world.exclusive(None, |_| check(running, 100 + i, owner));
                    sections.fetch_add(1, Relaxed);
                }
            });
        }
        // Vcpus come and go meanwhile.
        for _ in 0..200 {
            let gate = world.register();
            gate.enter();
            gate.leave();
            world.unregister(&gate);
        }
        while sections.load(Relaxed) < 2000 {
            std::thread::yield_now();
        }
        done.store(true, Relaxed);
    });
    assert!(instructions.load(Relaxed) > 1000);
    assert_eq!(world.vcpu_count(), VCPUS);
}

/// A ball between a sender and a vCPU that sleeps without a timeout: one lost wake-up and the test hangs.
#[test]
fn no_wake_up_is_lost() {
    let world = World::new();
    let gate = world.register();
    let played = AtomicU64::new(0);
    const ROUNDS: u64 = 20_000;
    std::thread::scope(|scope| {
        let (g, played) = (&gate, &played);
        scope.spawn(move || {
            g.enter();
            let mut seen = 0;
            while seen < ROUNDS {
                if g.take_requests().contains(Requests::EVENT) {
                    seen += 1;
                    played.store(seen, SeqCst);
                } else {
                    assert_eq!(g.block(None), BlockResult::Woken);
                }
            }
            g.leave();
        });
        scope.spawn(|| {
            for round in 0..ROUNDS {
                gate.request(Requests::EVENT);
                while played.load(SeqCst) <= round {
                    if round % 3 == 0 {
                        std::thread::yield_now();
                    }
                }
            }
        });
        // An exclusive section does not wake a sleeper, and does not wait for it.
        scope.spawn(|| {
            for _ in 0..200 {
                world.exclusive(None, |_| assert_ne!(gate.mode(), Mode::Running));
            }
        });
    });
    assert_eq!(gate.block(Some(Duration::from_millis(1))), BlockResult::TimedOut);
    gate.leave();
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

fn safe_point(gate: &VcpuGate, mmu: &mut VcpuMmu) {
    if gate.pending() {
        gate.park_if_stopped();
        let requests = gate.take_requests();
        mmu.apply_requests(requests);
    }
}

fn read(mmu: &mut VcpuMmu, gva: u64) -> u64 {
    let ptr = mmu.tlb.lookup_read(gva, 8).unwrap_or_else(|| {
        match mmu.translate(Gva(gva), Access::read(false), 8) {
            Ok(Target::Ram(ptr)) => ptr,
            other => panic!("{gva:#x}: {other:?}"),
        }
    });
    host_mem::load(ptr).unwrap()
}

fn write(mmu: &mut VcpuMmu, gva: u64, value: u64) {
    if let Some(ptr) = mmu.tlb.lookup_write(gva, 8) {
        host_mem::store(ptr, value).unwrap();
        return;
    }
    match mmu.translate(Gva(gva), Access::write(false), 8) {
        Ok(Target::Ram(ptr)) => host_mem::store(ptr, value).unwrap(),
        Ok(Target::Tracked(tracked)) => {
            host_mem::store(tracked.host_ptr(), value).unwrap();
            mmu.after_write(tracked, 8);
        }
        other => panic!("{gva:#x}: {other:?}"),
    }
}

/// Ends the others' loops when its thread panics.
struct EndsWithUs<'a>(&'a AtomicBool);

impl Drop for EndsWithUs<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, SeqCst);
        }
    }
}

/// One vCPU remaps a page again and again, with the guest's own shootdown; the others must never see a page from before the last
/// shootdown that they took part in. Meanwhile tables move, logging goes on and off, and shadow pages are short.
#[test]
fn a_guest_shootdown_holds() {
    const READERS: usize = 2;
    const ROUNDS: u64 = 1000;
    // Tables at 1000h to 4000h (the first 2 MiB, identity but for the page at 10_0000h), data at 20_0000h.
    let vm = TestVm::new(0x40_0000);
    let memory = vm.mmu.guest_memory(0);
    memory.store(Gpa(0x1000), 0x2003u64).unwrap();
    memory.store(Gpa(0x2000), 0x3003u64).unwrap();
    memory.store(Gpa(0x3000), 0x4003u64).unwrap();
    memory.store(Gpa(0x3008), 0x20_0083u64).unwrap();
    for page in 0..512u64 {
        memory.store(Gpa(0x4000 + 8 * page), (page << 12) | 3).unwrap();
    }
    const WINDOW: u64 = 0x10_0000;
    const SPARE_TABLE: u64 = 0x5000;
    let shoot: Vec<AtomicU64> = (0..READERS).map(|_| AtomicU64::new(0)).collect();
    let acked: Vec<AtomicU64> = (0..READERS).map(|_| AtomicU64::new(0)).collect();
    let done = AtomicBool::new(false);
    let hits = AtomicU64::new(0);

    std::thread::scope(|scope| {
        for i in 0..READERS {
            let (gate, mut mmu) = vm.vcpu();
            let (shoot, acked, done, hits) = (&shoot, &acked, &done, &hits);
            scope.spawn(move || {
                let _ends = EndsWithUs(done);
                gate.enter();
                safe_point(&gate, &mut mmu);
                mmu.set_registers(long_mode());
                let mut version = 0;
                let mut n = 0u64;
                while !done.load(SeqCst) {
                    safe_point(&gate, &mut mmu);
                    let wanted = shoot[i].load(SeqCst);
                    if wanted != version {
                        mmu.invlpg(Gva(WINDOW));
                        version = wanted;
                        acked[i].store(version, SeqCst);
                    }
                    if version != 0 {
                        let seen = read(&mut mmu, WINDOW);
                        assert!(seen >= version, "reader {i} sees {seen} after shootdown {version}");
                    }
                    n += 1;
                    if n.is_multiple_of(7) {
                        mmu.mov_cr3(0x1000);
                    }
                    if n.is_multiple_of(64) {
                        // Another address space for a moment.
                        mmu.mov_cr3(0x1000 | (n / 64 % 2) << 3);
                    }
                }
                hits.fetch_add(mmu.stats().shadow_hits, Relaxed);
                gate.leave();
            });
        }
        let (vm, done) = (&vm, &done);
        scope.spawn(move || {
            let mut logging = false;
            while !done.load(SeqCst) {
                logging = !logging;
                let flags = if logging { MemRegionFlags::LOG_DIRTY } else { MemRegionFlags::empty() };
                vm.set_slot(0, Gpa(0), 0x40_0000, vm.ram.hva(), flags);
                for _ in 0..20 {
                    if logging {
                        vm.world.exclusive(None, |ex| vm.mmu.get_dirty_log(ex, 0, 0)).unwrap();
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        });

        let (gate, mut mmu) = vm.vcpu();
        let _ends = EndsWithUs(done);
        gate.enter();
        safe_point(&gate, &mut mmu);
        mmu.set_registers(long_mode());
        let mut table = 0x4000;
        for version in 1..=ROUNDS {
            // A fresh page that knows its version, and its gpte.
            let page = 0x20_0000 + (version % 256) * 0x1000;
            write(&mut mmu, page, version);
            if version % 50 == 0 {
                // The page table moves: the old one becomes ordinary memory.
                let other = table ^ 0x4000 ^ SPARE_TABLE;
                for entry in 0..512 {
                    let gpte = read(&mut mmu, table + 8 * entry);
                    write(&mut mmu, other + 8 * entry, gpte);
                    safe_point(&gate, &mut mmu);
                }
                write(&mut mmu, 0x3000, other | 3);
                table = other;
            }
            write(&mut mmu, table + 8 * (WINDOW >> 12), page | 3);
            mmu.invlpg(Gva(WINDOW));
            mmu.mov_cr3(0x1000);
            for i in 0..READERS {
                shoot[i].store(version, SeqCst);
                while acked[i].load(SeqCst) != version {
                    assert!(!done.load(SeqCst), "a reader has failed");
                    safe_point(&gate, &mut mmu);
                    std::thread::yield_now();
                }
            }
            assert_eq!(read(&mut mmu, WINDOW), version);
            // What the old page held may now be reused.
            let old = 0x20_0000 + ((version + 128) % 256) * 0x1000;
            write(&mut mmu, old, 0);
            safe_point(&gate, &mut mmu);
        }
        done.store(true, SeqCst);
        gate.leave();
    });
    assert!(hits.load(Relaxed) > 0, "the shadow tables were never used");
    assert_eq!(vm.mmu.audit(), Vec::<String>::new());
}
