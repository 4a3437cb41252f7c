//! A short run of the fuzz target of ioctls, and thousands of VMs: nothing panics, hangs, or is left behind.

use softkvm_tests::ioctl_fuzz::accounting::Holdings;
use softkvm_tests::ioctls::front::{Dispatch, Front};
use std::process::Command;

#[test]
fn random_ioctls_do_no_harm() {
    let out = Command::new(env!("CARGO_BIN_EXE_fuzz_ioctls"))
        .args(["--cases", "250", "--seed", "1"])
        .output()
        .expect("the fuzz target runs");
    let (said, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}\n{errors}");
    assert!(said.contains("250 cases"), "{said}");
}

/// Alone in its process: it counts what the process holds.
#[test]
fn thousands_of_vms_leave_nothing() {
    let front = Dispatch::default();
    let a_thousand = || {
        for n in 0..1000u64 {
            let system = front.open();
            let vm = front.ioctl(system, kvm_api::nr::KVM_CREATE_VM, 0) as i32;
            assert!(vm > 0, "{vm}");
            if n % 2 == 0 {
                assert_eq!(front.ioctl(vm, kvm_api::nr::KVM_CREATE_IRQCHIP, 0), 0);
            }
            let vcpu = front.ioctl(vm, kvm_api::nr::KVM_CREATE_VCPU, n % 7) as i32;
            assert!(vcpu > 0, "{vcpu}");
            // In each order.
            let order = if n % 3 == 0 { [system, vm, vcpu] } else { [vcpu, vm, system] };
            order.into_iter().for_each(|fd| front.close(fd));
        }
    };
    a_thousand();
    let before = Holdings::now();
    a_thousand();
    a_thousand();
    let after = Holdings::settled(&before);
    // The other test of this file only waits for its child.
    assert!(after.descriptors <= before.descriptors + 4, "{before:?} {after:?}");
    assert!(after.threads <= before.threads + 1, "{before:?} {after:?}");
    assert!(after.memory <= before.memory + (32 << 10), "{before:?} {after:?}");
    assert!(after.address_space <= before.address_space + (256 << 10), "{before:?} {after:?}");
}
