//! KVM_CAP_X86_BUS_LOCK_EXIT (KVM api 7.22): the exit behind a LOCKed access across cache lines, and its flag on other exits.

use super::Guest;
use kvm_api::uapi::*;

const LOCKED: u16 = KVM_RUN_X86_BUS_LOCK as u16;

fn mode(arg: u32) -> kvm_enable_cap {
    kvm_enable_cap { cap: KVM_CAP_X86_BUS_LOCK_EXIT, args: [arg.into(), 0, 0, 0], ..Default::default() }
}

fn with(code: &[u8]) -> Guest {
    Guest::with(code, |vm| vm.enable_cap(&mode(KVM_BUS_LOCK_DETECTION_EXIT)).unwrap())
}

/// Reason, flags and RIP.
fn run(g: &mut Guest) -> (u32, u16, u64) {
    g.vcpu.run().map(drop).unwrap();
    let page = g.vcpu.get_kvm_run();
    let (reason, flags) = (page.exit_reason, page.flags);
    (reason, flags, g.vcpu.get_regs().unwrap().rip)
}

#[test]
fn one_exit_after_each_access_across_lines() {
    let code = [
        0xf0, 0xff, 0x06, 0x3f, 0x50, // lock inc word [503fh]: 5-byte instructions
        0xf0, 0xff, 0x06, 0x3e, 0x50, // within a line
        0xf0, 0xff, 0x06, 0x40, 0x50, // within the next
        0x90, 0x87, 0x06, 0x3f, 0x50, // xchg [503fh], ax: locked without the prefix
        0x90, 0xff, 0x06, 0x3f, 0x50, // inc word [503fh]: not locked
        0xf0, 0x0f, 0xc7, 0x0e, 0xfc, 0x5f, // lock cmpxchg8b [5ffch]: across pages
        0xe6, 0x10, // out 10h, al
    ];
    let mut g = with(&code);
    assert_eq!(run(&mut g), (KVM_EXIT_X86_BUS_LOCK, LOCKED, 0x1005));
    assert_eq!((g.peek(0x503f), g.peek(0x5040)), (1, 0), "the access is made");
    assert_eq!(run(&mut g), (KVM_EXIT_X86_BUS_LOCK, LOCKED, 0x1014));
    assert_eq!(run(&mut g), (KVM_EXIT_X86_BUS_LOCK, LOCKED, 0x101f));
    let (reason, flags, _) = run(&mut g);
    assert_eq!((reason, flags), (KVM_EXIT_IO, 0));
}

/// Another exit of the same instruction has the flag, and is the only one.
#[test]
fn the_flag_is_on_the_exit_that_comes_first() {
    // lock inc word [503fh]; out 10h, al; with single step from outside.
    let mut g = with(&[0xf0, 0xff, 0x06, 0x3f, 0x50, 0xe6, 0x10]);
    let step = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
    g.vcpu.set_guest_debug(&kvm_guest_debug { control: step, ..Default::default() }).unwrap();
    assert_eq!(run(&mut g), (KVM_EXIT_DEBUG, LOCKED, 0x1005));
    g.vcpu.set_guest_debug(&kvm_guest_debug::default()).unwrap();
    let (reason, flags, _) = run(&mut g);
    assert_eq!((reason, flags), (KVM_EXIT_IO, 0));
}

#[test]
fn modes() {
    let g = Guest::new(&[0xf4]);
    let both = KVM_BUS_LOCK_DETECTION_OFF | KVM_BUS_LOCK_DETECTION_EXIT;
    assert_eq!(g.vm.check_extension_raw(u64::from(KVM_CAP_X86_BUS_LOCK_EXIT)), both as i32);
    for (arg, taken) in [(0, true), (KVM_BUS_LOCK_DETECTION_OFF, true), (both, false), (4, false)] {
        assert_eq!(g.vm.enable_cap(&mode(arg)).is_ok(), taken, "{arg}");
    }
}
