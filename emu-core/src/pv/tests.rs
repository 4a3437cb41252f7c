//! The records in guest memory, and who may write them when.

use super::steal_time::{VCPU_FLUSH_TLB, VCPU_PREEMPTED};
use super::{Pv, features};
use crate::cpuid::CpuidTable;
use crate::event::Activity;
use crate::exit::Exit;
use crate::host::RunDelay;
use crate::irqchip::delivery::Trigger;
use crate::rig::{CODE, DATA, Mode, RAM, Rig};
use softmmu::Requests;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use x86_arch::apic::{APIC_EOI, APIC_ISR};
use x86_arch::cpuid::{CpuidEntry, CpuidResult, kvm};
use x86_arch::msr::*;
use x86_arch::{Gpa, Gpr, Rflags};

/// Where the records lie in these tests.
const STEAL: u64 = DATA + 0x1000;
const EOI: u64 = DATA + 0x1100;
const CLOCK: u64 = DATA + 0x1200;
const WALL: u64 = DATA + 0x1300;
/// NOPs to run.
const NOPS: [u8; 16] = [0x90; 16];

/// A count that the test moves.
struct Delay(Arc<AtomicU64>);

impl RunDelay for Delay {
    fn nanoseconds(&mut self, _: bool) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn with_delay(rig: &mut Rig) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(1000));
    rig.cpu().pv = Pv::new(Some(Box::new(Delay(count.clone()))));
    count
}

fn wrmsr(rig: &mut Rig, index: u32, value: u64) -> bool {
    rig.cpu().guest_wrmsr(index, value).is_ok()
}

fn version(rig: &Rig) -> u32 {
    rig.read_u64(STEAL + 8) as u32
}

fn state(rig: &Rig) -> u8 {
    rig.read_u64(STEAL + 16) as u8
}

#[test]
fn steal_time_msr() {
    let mut r = Rig::new(Mode::Long);
    for bit in 1..6 {
        assert!(!wrmsr(&mut r, KVM_STEAL_TIME, STEAL | 1 | 1 << bit), "bit {bit} is reserved");
    }
    assert_eq!(r.cpu().msr.steal_time, 0);
    assert!(wrmsr(&mut r, KVM_STEAL_TIME, STEAL | 1));
    assert_eq!(r.cpu().read_msr(KVM_STEAL_TIME, false), Some(STEAL | 1));
    // Memory that is not there is no error, as in KVM, which looks when it writes.
    assert!(wrmsr(&mut r, KVM_STEAL_TIME, (RAM + 0x1000) | 1));
    assert_eq!(r.run(&NOPS, 4), Exit::Bound);
}

#[test]
fn steal_time_is_added_to_what_the_guest_has() {
    let mut r = Rig::new(Mode::Long);
    let count = with_delay(&mut r);
    r.write_u64(STEAL, 5);
    // Junk: an odd version, a state, and bytes that are the guest's.
    r.write_u64(STEAL + 8, 0xdddd_dddd_0000_0007);
    r.write(STEAL + 16, &[0xff; 48]);
    assert!(wrmsr(&mut r, KVM_STEAL_TIME, STEAL | 1));
    assert_eq!((r.read_u64(STEAL), version(&r), state(&r)), (5, 10, 0), "nothing was stolen before");
    count.fetch_add(70, Ordering::Relaxed);
    r.run(&NOPS, 4);
    assert_eq!((r.read_u64(STEAL), version(&r)), (75, 12));
    // The guest may start over.
    r.write_u64(STEAL, 0);
    count.fetch_add(3, Ordering::Relaxed);
    r.run(&NOPS, 4);
    assert_eq!((r.read_u64(STEAL), version(&r)), (3, 14));
    r.run(&NOPS, 4);
    assert_eq!((r.read_u64(STEAL), version(&r)), (3, 16), "each KVM_RUN writes a version");
    let mut rest = [0; 47];
    r.read(STEAL + 17, &mut rest);
    assert_eq!(rest, [0xff; 47]);
    assert_eq!(r.read_u64(STEAL + 12) as u32, 0xdddd_dddd, "flags");
}

#[test]
fn user_space_enables_steal_time_for_the_next_run() {
    let mut r = Rig::new(Mode::Long);
    r.write(STEAL, &[0xee; 64]);
    assert!(r.cpu().write_msr(KVM_STEAL_TIME, STEAL | 1, true));
    assert_eq!(r.read_u64(STEAL + 8), 0xeeee_eeee_eeee_eeee, "memory may not be restored yet");
    r.run(&NOPS, 4);
    assert_eq!((version(&r) & 1, state(&r)), (0, 0));
    // Counted time: nothing is ever stolen, and the record is not written again.
    let before = version(&r);
    r.run(&NOPS, 4);
    assert_eq!(version(&r), before);
}

#[test]
fn steal_time_goes_on_while_the_guest_runs() {
    let mut r = Rig::new(Mode::Long);
    let count = with_delay(&mut r);
    assert!(wrmsr(&mut r, KVM_STEAL_TIME, STEAL | 1));
    // MOV ECX,[..]; LOOP: counts down.
    r.set(Gpr::Rcx, 1 << 22);
    let before = version(&r);
    count.fetch_add(9, Ordering::Relaxed);
    r.run(&[0xe2, 0xfe], 1000);
    assert_eq!((r.read_u64(STEAL), version(&r)), (9, before + 2));
    count.fetch_add(1, Ordering::Relaxed);
    assert_eq!(r.processor.run(Some(1 << 20)), Exit::Bound);
    assert_eq!(version(&r), before + 4, "the entry");
    r.cpu().hot.retired += 1 << 20;
    count.fetch_add(1, Ordering::Relaxed);
    r.cpu().steal_time_goes_on();
    assert_eq!((r.read_u64(STEAL), version(&r)), (11, before + 6));
    r.cpu().hot.retired += 1 << 20;
    r.cpu().steal_time_goes_on();
    assert_eq!(version(&r), before + 6, "nothing was stolen");
}

#[test]
fn a_vcpu_that_sleeps_is_marked_preempted() {
    let mut r = Rig::with_irqchip(Mode::Long);
    with_delay(&mut r);
    assert!(wrmsr(&mut r, KVM_STEAL_TIME, STEAL | 1));
    r.run(&NOPS, 4);
    assert_eq!(state(&r), 0);
    // Halted: another thread sees it, and ends KVM_RUN.
    let (gate, vm) = (r.cpu().shared.gate.clone(), r.vm.clone());
    let watcher = std::thread::spawn(move || {
        while gate.mode() != softmmu::Mode::Blocked {
            std::thread::yield_now();
        }
        let state = vm.mmu.guest_memory(0).load::<u8>(Gpa(STEAL + 16));
        gate.request(Requests::EXIT);
        state
    });
    r.write(CODE, &[0xf4]);
    r.cpu().set_rip(CODE);
    assert_eq!(r.processor.run(None), Exit::Interrupted);
    assert_eq!(watcher.join().unwrap(), Ok(VCPU_PREEMPTED));
    assert_eq!(state(&r), VCPU_PREEMPTED);
    r.cpu().events.activity = Activity::Runnable;
    r.run(&NOPS, 4);
    assert_eq!(state(&r), 0);
    // Without a host that counts, the record is the guest's own doing.
    r.cpu().pv = Pv::new(None);
    r.cpu().shared.gate.request(Requests::EXIT);
    assert_eq!(r.run(&NOPS, 4), Exit::Interrupted);
    assert_eq!(state(&r), 0);
}

/// What another vCPU does instead of an IPI: the TLB is flushed before the next instruction.
#[test]
fn a_flush_that_was_left_in_the_record() {
    for (enforced, flushed) in [(None, true), (Some(1 << kvm::FEATURE_STEAL_TIME), false)] {
        let mut r = Rig::new(Mode::Long);
        with_delay(&mut r);
        assert!(wrmsr(&mut r, KVM_STEAL_TIME, STEAL | 1));
        r.cpu().pv.enforced = enforced;
        // MOV RAX,[DATA]: the translation is now in the TLB.
        let load = [0x48, 0x8b, 0x04, 0x25, 0, 0, 2, 0];
        r.write_u64(DATA, 0x1111);
        r.run(&load, 1);
        // DATA's page now shows DATA + 3000H, and nobody has said INVLPG.
        r.write_u64(0x4000 + 8 * (DATA >> 12), (DATA + 0x3000) | 0x67);
        r.write_u64(DATA + 0x3000, 0x2222);
        r.run(&load, 1);
        let stale = r.get(Gpr::Rax);
        r.write(STEAL + 16, &[VCPU_PREEMPTED | VCPU_FLUSH_TLB]);
        r.run(&load, 1);
        assert_eq!(state(&r), 0);
        assert_eq!(stale, 0x1111, "still in the TLB");
        let want = if flushed { 0x2222 } else { 0x1111 };
        assert_eq!(r.get(Gpr::Rax), want, "{enforced:?}");
    }
}

/// ISR bit of a vector.
fn in_service(r: &mut Rig, vector: u8) -> bool {
    let lapic = r.cpu().shared.irq.lapic().unwrap();
    let page = lapic.state().page;
    page[((APIC_ISR + u32::from(vector >> 5) * 0x10) >> 2) as usize] >> (vector & 31) & 1 != 0
}

fn interrupt(r: &mut Rig, vector: u8, trigger: Trigger) {
    r.cpu().shared.irq.lapic().unwrap().accept_interrupt(vector, trigger);
    r.cpu().shared.gate.request(Requests::EVENT);
}

/// A guest with interrupts on, whose handlers are NOPs at CODE.
fn eoi_guest() -> Rig {
    let mut r = Rig::with_irqchip(Mode::Long);
    for vector in [0x41u64, 0x42, 0x62] {
        let gate = CODE & 0xffff | 8 << 16 | 0x8e00 << 32 | (CODE >> 16 & 0xffff) << 48;
        r.write_u64(crate::rig::IDT + 16 * vector, gate);
        r.write_u64(crate::rig::IDT + 16 * vector + 8, 0);
    }
    r.set_flags(Rflags::IF, Rflags::IF.bits());
    r.write(EOI, &[0; 4]);
    assert!(wrmsr(&mut r, KVM_PV_EOI_EN, EOI | 1));
    r
}

/// Runs without leaving `run` for good: what it leaves settled would hide what is tested.
fn between(r: &mut Rig) {
    r.cpu().take_pv_eoi();
    if r.cpu().flag(Rflags::IF) {
        let _ = r.cpu().acknowledge_interrupt();
    }
    r.cpu().offer_pv_eoi();
}

#[test]
fn pv_eoi_msr() {
    let mut r = Rig::new(Mode::Long);
    assert!(!wrmsr(&mut r, KVM_PV_EOI_EN, EOI | 2 | 1), "misaligned");
    assert!(!wrmsr(&mut r, KVM_PV_EOI_EN, RAM | 1), "no memory");
    assert_eq!(r.cpu().msr.pv_eoi, 0);
    assert!(wrmsr(&mut r, KVM_PV_EOI_EN, RAM), "not enabled");
    assert!(wrmsr(&mut r, KVM_PV_EOI_EN, EOI | 1));
}

#[test]
fn the_guest_ends_an_interrupt_by_clearing_the_bit() {
    let mut r = eoi_guest();
    interrupt(&mut r, 0x41, Trigger::Edge);
    between(&mut r);
    assert!(in_service(&mut r, 0x41));
    assert_eq!(r.read_u64(EOI) & 1, 1, "offered");
    between(&mut r);
    assert_eq!(r.read_u64(EOI) & 1, 1, "and still");
    r.write(EOI, &[0]);
    interrupt(&mut r, 0x42, Trigger::Edge);
    between(&mut r);
    assert!(!in_service(&mut r, 0x41), "the cleared bit was an EOI");
    assert!(in_service(&mut r, 0x42), "so that the next of the same class is taken");
    // Not used: the register then.
    r.cpu().settle_pv_eoi();
    assert_eq!(r.read_u64(EOI) & 1, 0);
    assert!(in_service(&mut r, 0x42));
}

#[test]
fn no_offer_where_others_wait() {
    // A level-triggered one; another request behind it; a pin of the IOAPIC with the vector.
    let mut r = eoi_guest();
    interrupt(&mut r, 0x41, Trigger::Level);
    between(&mut r);
    assert_eq!((in_service(&mut r, 0x41), r.read_u64(EOI) & 1), (true, 0));

    let mut r = eoi_guest();
    interrupt(&mut r, 0x62, Trigger::Edge);
    interrupt(&mut r, 0x41, Trigger::Edge);
    between(&mut r);
    assert_eq!((in_service(&mut r, 0x62), r.read_u64(EOI) & 1), (true, 0));

    let mut r = eoi_guest();
    r.vm.with_irqchip(|c| {
        let _ = c.ioapic_write(0, &0x14u32.to_le_bytes());
        let _ = c.ioapic_write(0x10, &0x41u32.to_le_bytes());
    });
    interrupt(&mut r, 0x41, Trigger::Edge);
    between(&mut r);
    assert_eq!((in_service(&mut r, 0x41), r.read_u64(EOI) & 1), (true, 0));
    interrupt(&mut r, 0x62, Trigger::Edge);
    between(&mut r);
    assert_eq!(r.read_u64(EOI) & 1, 1, "the nested one is only the local APIC's");
}

#[test]
fn an_offer_is_withdrawn_when_a_request_arrives() {
    let mut r = eoi_guest();
    interrupt(&mut r, 0x62, Trigger::Edge);
    between(&mut r);
    assert_eq!(r.read_u64(EOI) & 1, 1);
    interrupt(&mut r, 0x41, Trigger::Edge);
    between(&mut r);
    assert_eq!(r.read_u64(EOI) & 1, 0, "the EOI must reach the local APIC");
    assert!(in_service(&mut r, 0x62));
}

/// Whoever looks at the local APIC sees the truth.
#[test]
fn register_accesses_settle_first() {
    type Access = fn(&mut Rig);
    let accesses: [(&str, Access); 5] = [
        ("read", |r| {
            r.cpu().device_mmio_read(Gpa(0xfee0_0100), &mut [0; 4]);
        }),
        ("write", |r| {
            r.cpu().device_mmio_write(Gpa(0xfee0_0080), &[0; 4]);
        }),
        ("CR8", |r| {
            let _ = r.cpu().write_cr8(0);
        }),
        ("MSR", |r| {
            let _ = r.cpu().lapic_msr_read(IA32_APIC_BASE);
        }),
        ("disabling", |r| assert!(wrmsr(r, KVM_PV_EOI_EN, 0))),
    ];
    for (name, access) in accesses {
        let mut r = eoi_guest();
        interrupt(&mut r, 0x41, Trigger::Edge);
        between(&mut r);
        access(&mut r);
        assert_eq!(r.read_u64(EOI) & 1, 0, "{name}");
        assert!(in_service(&mut r, 0x41), "{name}: the guest has not said so");
        let mut r = eoi_guest();
        interrupt(&mut r, 0x41, Trigger::Edge);
        between(&mut r);
        r.write(EOI, &[0]);
        access(&mut r);
        assert!(!in_service(&mut r, 0x41), "{name}");
    }
}

/// A whole guest: the handler clears the bit and leaves the register alone, and KVM_RUN returns.
#[test]
fn a_handler_that_writes_no_register() {
    for (handler, wrote) in [(&[0x0f, 0xba, 0x34, 0x25, 0, 0x11, 2, 0, 0][..], true), (&[0x90][..], false)] {
        let mut r = eoi_guest();
        interrupt(&mut r, 0x41, Trigger::Edge);
        // BTR DWORD [EOI], 0.
        assert_eq!(r.run(handler, 1), Exit::Bound);
        assert_eq!(r.read_u64(EOI) & 1, 0, "settled when KVM_RUN returns");
        assert_eq!(in_service(&mut r, 0x41), !wrote);
        // An EOI that was not given this way works as ever.
        r.cpu().device_mmio_write(Gpa(0xfee0_0000 + u64::from(APIC_EOI)), &[0; 4]);
        assert!(!in_service(&mut r, 0x41));
    }
}

/// kexec in the guest, a VMM's reset, INIT: no byte of an old record changes any more.
#[test]
fn nothing_is_written_after_a_reset() {
    type Reset = fn(&mut Rig);
    let guest: Reset = |r| {
        for index in [KVM_STEAL_TIME, KVM_PV_EOI_EN, KVM_SYSTEM_TIME_NEW, KVM_SYSTEM_TIME] {
            assert!(wrmsr(r, index, 0));
        }
    };
    let user_space: Reset = |r| {
        let all = [KVM_STEAL_TIME, KVM_PV_EOI_EN, KVM_SYSTEM_TIME_NEW, KVM_WALL_CLOCK_NEW, KVM_ASYNC_PF_EN];
        for index in all {
            assert!(r.cpu().write_msr(index, 0, true));
        }
    };
    let init: Reset = |r| r.cpu().reset(true);
    let power_up: Reset = |r| r.cpu().reset(false);
    for (name, reset) in [("kexec", guest), ("reset", user_space), ("INIT", init), ("power-up", power_up)] {
        let mut r = eoi_guest();
        let count = with_delay(&mut r);
        for (index, value) in [
            (KVM_STEAL_TIME, STEAL | 1),
            (KVM_SYSTEM_TIME_NEW, CLOCK | 1),
            (KVM_WALL_CLOCK_NEW, WALL),
            (KVM_PV_EOI_EN, EOI | 1),
        ] {
            assert!(wrmsr(&mut r, index, value), "{index:#x}");
        }
        interrupt(&mut r, 0x41, Trigger::Edge);
        between(&mut r);
        assert_ne!(r.read_u64(EOI) & 1, 0, "{name}: offered");
        assert_ne!((r.read_u64(CLOCK), version(&r), r.read_u64(WALL)), (0, 0, 0), "{name}: written");
        reset(&mut r);
        r.write(0, &[0xee; 0x100]);
        r.write(STEAL, &[0xee; 0x400]);
        let mut before = vec![0; RAM as usize];
        r.read(0, &mut before);
        // All that would have written: entries, exits, interrupts, clocks, stolen time.
        r.restart();
        r.cpu().events.activity = Activity::Runnable;
        count.fetch_add(1000, Ordering::Relaxed);
        r.vm.clock_changed();
        assert!(!r.cpu().kvmclock_guest_stopped(), "{name}");
        r.enable_lapic();
        for _ in 0..3 {
            r.cpu().set_rip(CODE);
            r.cpu().hot.retired += 1 << 21;
            interrupt(&mut r, 0x41, Trigger::Edge);
            between(&mut r);
            assert_eq!(r.processor.run(Some(1)), Exit::Bound, "{name}");
            r.cpu().shared.gate.request(Requests::EXIT);
            assert_eq!(r.processor.run(Some(4)), Exit::Interrupted, "{name}");
        }
        let mut after = vec![0; RAM as usize];
        r.read(0, &mut after);
        let changed: Vec<_> = (0..RAM as usize).filter(|&n| before[n] != after[n]).collect();
        assert!(changed.is_empty(), "{name}: {changed:x?}");
    }
}

fn table(base: u32, eax: u32) -> CpuidTable {
    let row = |leaf, ebx, ecx, eax| CpuidEntry {
        leaf,
        subleaf: 0,
        indexed: false,
        result: CpuidResult { eax, ebx, ecx, edx: if ebx == 0 { 0 } else { 0x4d } },
    };
    CpuidTable::new(vec![row(base, 0x4b4d_564b, 0x564b_4d56, base + 1), row(base + 1, 0, 0, eax)])
}

/// Without a local APIC inside, its hypercalls cannot work, and the guest does not see them; KVM_GET_CPUID2 does.
#[test]
fn features_of_the_local_apic() {
    let apic = 1 << kvm::FEATURE_PV_SEND_IPI | 1 << kvm::FEATURE_PV_UNHALT;
    for (mut r, shown) in [(Rig::new(Mode::Long), !apic), (Rig::with_irqchip(Mode::Long), !0)] {
        for base in [0x4000_0000, 0x4000_0100] {
            r.cpu().cpuid = table(base, !0);
            let v = r.cpu();
            assert_eq!(v.cpuid_result(base + 1, 0).eax, shown, "{base:#x}");
            assert_eq!(v.cpuid_result(base, 0).eax, base + 1);
            assert_eq!(features(&v.cpuid), Some(!0));
            let rows = v.cpuid_rows_now(v.cpuid.entries());
            assert_eq!(features(&CpuidTable::new(rows)), Some(!0));
        }
    }
}

#[test]
fn features_are_behind_the_signature() {
    for base in [0x4000_0000, 0x4000_0100, 0x4000_ff00] {
        assert_eq!(features(&table(base, 0x123)), Some(0x123), "{base:#x}");
    }
    assert_eq!(features(&table(0x4001_0000, 0x123)), None);
    assert_eq!(features(&CpuidTable::new(Vec::new())), None);
    let mut rows = table(0x4000_0100, 0x1ff).entries().to_vec();
    super::withhold_unhalt(&mut rows);
    assert_eq!(features(&CpuidTable::new(rows.clone())), Some(0x17f));
    rows[0].result.ebx = 0xdead_beef;
    rows[1].result.eax = 0x1ff;
    super::withhold_unhalt(&mut rows);
    assert_eq!(rows[1].result.eax, 0x1ff, "another hypervisor's leaf");
}

/// KVM_CAP_ENFORCE_PV_FEATURE_CPUID: each MSR and hypercall is there with its bit alone.
#[test]
fn enforced_features() {
    let rows = [
        (KVM_WALL_CLOCK, 0),
        (KVM_SYSTEM_TIME, 0),
        (KVM_WALL_CLOCK_NEW, 3),
        (KVM_SYSTEM_TIME_NEW, 3),
        (KVM_ASYNC_PF_EN, 4),
        (KVM_STEAL_TIME, 5),
        (KVM_PV_EOI_EN, 6),
        (KVM_POLL_CONTROL, 12),
        (KVM_ASYNC_PF_ACK, 14),
    ];
    for (index, bit) in rows {
        let mut r = Rig::new(Mode::Long);
        let cpuid = |r: &mut Rig, eax| {
            r.cpu().cpuid = table(0x4000_0000, eax);
            r.cpu().pv_cpuid_changed();
        };
        cpuid(&mut r, !(1 << bit));
        assert!(wrmsr(&mut r, index, 0), "{index:#x}: off by default");
        r.cpu().enforce_pv_features(true);
        assert!(!wrmsr(&mut r, index, 0), "{index:#x}");
        assert!(r.cpu().guest_rdmsr(index).is_err(), "{index:#x}");
        r.vm.msr_exits.store(crate::msr::REASON_INVALID, Ordering::Relaxed);
        assert!(!wrmsr(&mut r, index, 0), "{index:#x}: the register is unknown, not invalid");
        assert!(r.cpu().io.request.is_none());
        r.vm.msr_exits.store(0, Ordering::Relaxed);
        assert!(r.cpu().write_msr(index, 0, true), "{index:#x}: user space resets it");
        assert_eq!(r.cpu().read_msr(index, true), Some(0), "{index:#x}");
        assert!(!r.cpu().write_msr(index, 1, true), "{index:#x}");
        cpuid(&mut r, 1 << bit);
        assert!(wrmsr(&mut r, index, 0), "{index:#x}");
        cpuid(&mut r, 0);
        r.cpu().enforce_pv_features(false);
        assert!(wrmsr(&mut r, index, 0), "{index:#x}");
    }
}

#[test]
fn async_page_faults_are_absent() {
    let mut r = Rig::new(Mode::Long);
    assert!(wrmsr(&mut r, KVM_ASYNC_PF_EN, 0));
    assert!(!wrmsr(&mut r, KVM_ASYNC_PF_EN, DATA | 1), "no local APIC to be told by");
    assert!(!wrmsr(&mut r, KVM_ASYNC_PF_INT, 0x42));
    let mut r = Rig::with_irqchip(Mode::Long);
    for (value, taken) in [
        (DATA | 1, true),
        (DATA | 0x11, false),
        (DATA | 0x21, false),
        (DATA | 9, true),
        (RAM | 9, false),
        (RAM | 1, true),
        (0, true),
    ] {
        assert_eq!(wrmsr(&mut r, KVM_ASYNC_PF_EN, value), taken, "{value:#x}");
    }
    assert!(wrmsr(&mut r, KVM_ASYNC_PF_INT, 0xff) && !wrmsr(&mut r, KVM_ASYNC_PF_INT, 0x100));
    assert!(wrmsr(&mut r, KVM_ASYNC_PF_ACK, !0));
    r.cpu().pv.enforced = Some(1 << kvm::FEATURE_ASYNC_PF);
    for bit in [2, 3] {
        assert!(!wrmsr(&mut r, KVM_ASYNC_PF_EN, DATA | 1 << bit), "bit {bit} is a feature of its own");
    }
}

/// The bits of msr.txt for the rest.
#[test]
fn poll_control() {
    let mut r = Rig::new(Mode::Long);
    assert_eq!(r.cpu().read_msr(KVM_POLL_CONTROL, false), Some(1), "the host may poll");
    assert!(wrmsr(&mut r, KVM_POLL_CONTROL, 0));
    assert!(!wrmsr(&mut r, KVM_POLL_CONTROL, 2));
    assert_eq!(r.cpu().read_msr(KVM_POLL_CONTROL, false), Some(0));
    // MSR_KVM_MIGRATION_CONTROL is user space's.
    assert!(r.cpu().guest_rdmsr(0x4b56_4d08).is_err());
}
