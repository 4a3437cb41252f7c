//! Every number of the table on every kind of descriptor, and numbers that are nearly theirs.

use super::Session;
use kvm_api::nr;

/// Numbers that would do something without an argument that can be wrong, or wait for a guest.
const NOT_ASKED: &[u32] = &[nr::KVM_RUN, nr::KVM_CREATE_IRQCHIP, nr::KVM_CREATE_PIT];

/// Each number with an argument that no handler likes: an address that is nobody's.
pub fn numbers(s: &mut Session<'_>) {
    let vm = s.vm();
    let vcpu = s.vcpu(vm, 0);
    let system = s.system();
    let nowhere = s.pages.forbidden();
    for (fd, kind) in [(system, "system"), (vm, "vm"), (vcpu, "vcpu")] {
        for (name, number) in nr::ALL.iter().filter(|n| !NOT_ASKED.contains(&n.1)) {
            // The value of what takes no pointer is in the sections of its own.
            let arg = if nr::size_of_argument(*number) == 0 { u64::MAX } else { nowhere };
            s.number(&format!("{name} on {kind}"), fd, *number, arg);
        }
    }
}

/// The size or the direction is another: another ioctl, which does not exist.
pub fn variants(s: &mut Session<'_>) {
    let vm = s.vm();
    let vcpu = s.vcpu(vm, 0);
    let system = s.system();
    let all: Vec<u32> = nr::ALL.iter().map(|n| n.1).collect();
    for (fd, kind) in [(system, "system"), (vm, "vm"), (vcpu, "vcpu")] {
        for (name, number) in nr::ALL {
            let changes = [
                number ^ 1 << 30,
                number ^ 1 << 31,
                number.wrapping_add(1 << 16),
                number.wrapping_sub(1 << 16),
                number ^ 1 << 29,
            ];
            for variant in changes.into_iter().filter(|v| !all.contains(v) && v >> 8 & 0xff == nr::KVMIO) {
                s.number(&format!("{name} as {variant:#x} on {kind}"), fd, variant, 0);
            }
        }
        for ordinal in 0..=255u32 {
            let number = nr::KVMIO << 8 | ordinal;
            if !all.contains(&number) {
                s.number(&format!("{number:#x} on {kind}"), fd, number, 0);
            }
        }
    }
}
