//! System-management mode and the states before a processor runs, through the API.

use super::{Guest, RAM, errno};
use crate::{VcpuExit, VcpuFd, VmFd};
use kvm_api::uapi::*;

const SMBASE: u32 = 0x9e;
const SMM_SPACE: u32 = 1 << 16;

/// A guest that halts for ever; its handler for SMI, in the same memory, says so and returns.
fn with_handler(prepare: impl FnOnce(&VmFd)) -> Guest {
    // hlt; jmp $-1
    let g = Guest::with(&[0xf4, 0xeb, 0xfd], prepare);
    g.slot(SMM_SPACE, 0, RAM as u64, 0);
    // out 0x10, al; rsm
    g.poke(0x8000, &[0xe6, 0x10, 0x0f, 0xaa]);
    set_smbase(&g.vcpu, 0);
    g
}

fn set_smbase(vcpu: &VcpuFd, base: u64) {
    let entry = kvm_msr_entry { index: SMBASE, data: base, ..Default::default() };
    assert_eq!(vcpu.set_msrs(&Msrs::from_entries(&[entry]).unwrap()).unwrap(), 1);
}

fn in_smm(g: &mut Guest) -> (bool, bool) {
    let flag = g.vcpu.get_kvm_run().flags & KVM_RUN_X86_SMM as u16 != 0;
    (flag, g.vcpu.get_vcpu_events().unwrap().smi.smm != 0)
}

#[test]
fn an_smi_and_its_return() {
    let mut g = with_handler(|_| {});
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
    assert_eq!(in_smm(&mut g), (false, false));
    g.vcpu.smi().unwrap();
    assert_eq!(g.vcpu.get_vcpu_events().unwrap().smi.pending, 1);
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::IoOut(0x10, _)));
    assert_eq!(in_smm(&mut g), (true, true));
    let e = g.vcpu.get_vcpu_events().unwrap();
    assert_eq!((e.smi.pending, e.nmi.masked, e.smi.smm_inside_nmi), (0, 1, 0));
    assert_eq!(g.vcpu.get_sregs().unwrap().cs.selector, 0);
    // Behind the jump, whose HLT is next.
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
    assert_eq!(in_smm(&mut g), (false, false));
    assert_eq!(g.vcpu.get_regs().unwrap().rip, 0x1001);
    // The area, in the 32-bit layout: no CPUID says that there is a 64-bit mode.
    assert_eq!((g.peek(0xfefe), g.peek(0xfefc)), (2, 0));
}

#[test]
fn a_halted_vcpu_takes_an_smi_and_halts_again() {
    let mut g = with_handler(|vm| vm.create_irq_chip().unwrap());
    let halted = kvm_mp_state { mp_state: KVM_MP_STATE_HALTED };
    g.vcpu.set_mp_state(halted).unwrap();
    g.vcpu.smi().unwrap();
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::IoOut(0x10, _)));
    assert_eq!(g.vcpu.get_mp_state().unwrap().mp_state, KVM_MP_STATE_RUNNABLE);
    assert_eq!(g.peek(0xff02), 1);
    g.vcpu.kick_handle().kick();
    assert_eq!(errno(g.vcpu.run()), libc::EINTR);
    // Completed now: RSM is next.
    let kick = g.vcpu.kick_handle();
    let t = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        kick.kick();
    });
    assert_eq!(errno(g.vcpu.run()), libc::EINTR);
    t.join().unwrap();
    assert_eq!(g.vcpu.get_mp_state().unwrap(), halted);
    assert_eq!(g.vcpu.get_regs().unwrap().rip, 0x1000);
}

#[test]
fn address_spaces() {
    let mut g = Guest::new(&[0xf4]);
    assert_eq!(g.vm.check_extension_int(crate::Cap::X86Smm), 1);
    assert_eq!(g.vm.check_extension_raw(KVM_CAP_MULTI_ADDRESS_SPACE.into()), 2);
    assert_eq!(errno(g.try_slot(2 << 16, 0, RAM as u64, 0)), libc::EINVAL);
    // The same number and the same place as the other space's slot 0.
    g.slot(SMM_SPACE, 0, RAM as u64, KVM_MEM_LOG_DIRTY_PAGES);
    assert_eq!(errno(g.vm.get_dirty_log(0, RAM)), libc::ENOENT);
    set_smbase(&g.vcpu, 0);
    g.poke(0x8000, &[0xe6, 0x10, 0x0f, 0xaa]);
    g.vcpu.smi().unwrap();
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::IoOut(0x10, _)));
    // The page of the save area, and that of the code.
    assert_eq!(g.vm.get_dirty_log(SMM_SPACE, RAM).unwrap(), [1 << 15 | 1 << 8]);
    g.slot(SMM_SPACE, 0, 0, 0);
    assert_eq!(errno(g.vm.get_dirty_log(SMM_SPACE, RAM)), libc::ENOENT);
}

/// KVM_SET_VCPU_EVENTS moves the vCPU into SMM and its memory, and out.
#[test]
fn events_change_the_mode() {
    let mut g = Guest::new(&[0xf4]);
    let mut e = g.vcpu.get_vcpu_events().unwrap();
    assert_ne!(e.flags & KVM_VCPUEVENT_VALID_SMM, 0);
    e.smi.smm = 1;
    e.smi.smm_inside_nmi = 1;
    g.vcpu.set_vcpu_events(&e).unwrap();
    assert_eq!(g.vcpu.get_vcpu_events().unwrap().smi, e.smi);
    // No memory there: the guest's code is a device's.
    assert!(!matches!(g.vcpu.run(), Ok(VcpuExit::Hlt)));
    // Without the flag nothing changes.
    g.vcpu.set_vcpu_events(&kvm_vcpu_events::default()).unwrap();
    assert_eq!(g.vcpu.get_vcpu_events().unwrap().smi.smm, 1);
    e.smi = Default::default();
    g.vcpu.set_vcpu_events(&e).unwrap();
    g.vcpu.set_regs(&kvm_regs { rip: 0x1000, rflags: 2, ..Default::default() }).unwrap();
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
}

#[test]
fn init_waits_behind_smm() {
    let g = with_handler(|vm| vm.create_irq_chip().unwrap());
    let mut e = g.vcpu.get_vcpu_events().unwrap();
    e.smi.smm = 1;
    e.smi.latched_init = 1;
    g.vcpu.set_vcpu_events(&e).unwrap();
    assert_eq!(g.vcpu.get_mp_state().unwrap().mp_state, KVM_MP_STATE_RUNNABLE);
    assert_eq!(g.vcpu.get_vcpu_events().unwrap().smi.latched_init, 1);
    for state in [KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_SIPI_RECEIVED] {
        assert_eq!(errno(g.vcpu.set_mp_state(kvm_mp_state { mp_state: state })), libc::EINVAL);
    }
    // And who waits for SIPI takes no SMI.
    e.smi = Default::default();
    g.vcpu.set_vcpu_events(&e).unwrap();
    g.vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_INIT_RECEIVED }).unwrap();
    e.smi.pending = 1;
    assert_eq!(errno(g.vcpu.set_vcpu_events(&e)), libc::EINVAL);
}

#[test]
fn mp_states_and_who_may_have_them() {
    let states = [
        (KVM_MP_STATE_RUNNABLE, 0, Some(KVM_MP_STATE_RUNNABLE)),
        (KVM_MP_STATE_UNINITIALIZED, libc::EINVAL, Some(KVM_MP_STATE_UNINITIALIZED)),
        (KVM_MP_STATE_INIT_RECEIVED, libc::EINVAL, Some(KVM_MP_STATE_INIT_RECEIVED)),
        (KVM_MP_STATE_HALTED, libc::EINVAL, Some(KVM_MP_STATE_HALTED)),
        // The SIPI is acted on when the state is read.
        (KVM_MP_STATE_SIPI_RECEIVED, libc::EINVAL, Some(KVM_MP_STATE_RUNNABLE)),
        (KVM_MP_STATE_AP_RESET_HOLD, libc::EINVAL, Some(KVM_MP_STATE_AP_RESET_HOLD)),
        (KVM_MP_STATE_STOPPED, libc::EINVAL, None),
        (KVM_MP_STATE_SUSPENDED, libc::EINVAL, None),
        (99, libc::EINVAL, None),
    ];
    let without = Guest::new(&[0xf4]);
    let with = Guest::with(&[0xf4], |vm| vm.create_irq_chip().unwrap());
    for (mp_state, alone, then) in states {
        let state = kvm_mp_state { mp_state };
        let number = |r: crate::Result| r.err().map_or(0, |e| e.errno());
        assert_eq!(number(without.vcpu.set_mp_state(state)), alone, "{mp_state}");
        let expected = if then.is_some() { 0 } else { libc::EINVAL };
        assert_eq!(number(with.vcpu.set_mp_state(state)), expected, "{mp_state}");
        if let Some(then) = then {
            assert_eq!(with.vcpu.get_mp_state().unwrap().mp_state, then, "{mp_state}");
        }
    }
}

/// KVM_RUN of an application processor: blocks, EAGAIN once INIT has come, blocks again, and runs after SIPI.
#[test]
fn an_application_processor() {
    let g = Guest::with(&[0xf4], |vm| vm.create_irq_chip().unwrap());
    // out 0x10, al
    g.poke(0x2000, &[0xe6, 0x10]);
    let mut ap = g.vm.create_vcpu(1).unwrap();
    let state = |v: &VcpuFd| v.get_mp_state().unwrap().mp_state;
    let message = |data| kvm_msi { address_lo: 0xfee0_1000, data, ..Default::default() };
    assert_eq!(state(&ap), KVM_MP_STATE_UNINITIALIZED);

    // `immediate_exit`, then a kick; what else the page says is not looked at.
    ap.set_kvm_immediate_exit(1);
    assert_eq!(errno(ap.run()), libc::EINTR);
    ap.set_kvm_immediate_exit(0);
    ap.get_kvm_run().kvm_valid_regs = 1 << 60;
    ap.kick_handle().kick();
    assert_eq!(errno(ap.run()), libc::EINTR);
    assert_eq!(ap.get_kvm_run().exit_reason, KVM_EXIT_INTR);
    ap.get_kvm_run().kvm_valid_regs = 0;

    // What else wakes a processor does not make it run.
    ap.nmi().unwrap();
    assert_eq!(errno(ap.run()), libc::EAGAIN);
    assert_eq!(state(&ap), KVM_MP_STATE_UNINITIALIZED);

    ap.set_regs(&kvm_regs { rax: 7, rflags: 2, ..Default::default() }).unwrap();
    g.vm.signal_msi(message(0x4500)).unwrap();
    assert_eq!(errno(ap.run()), libc::EAGAIN);
    assert_eq!(state(&ap), KVM_MP_STATE_INIT_RECEIVED);
    assert_eq!((ap.get_regs().unwrap().rax, ap.get_regs().unwrap().rip), (0, 0xfff0));
    ap.kick_handle().kick();
    assert_eq!(errno(ap.run()), libc::EINTR);
    assert_eq!(state(&ap), KVM_MP_STATE_INIT_RECEIVED);

    g.vm.signal_msi(message(0x4602)).unwrap();
    assert!(matches!(ap.run().unwrap(), VcpuExit::IoOut(0x10, _)));
    assert_eq!(ap.get_sregs().unwrap().cs.base, 0x2000);
}
