//! Pointers: null, non-canonical, without rights, read-only, odd, and structures that end beyond their page.

use super::Session;
use super::front::Fd;
use kvm_api::nr;
use kvm_ioctl_layer::table::{FdKind, TABLE};

/// Ioctls whose zeroed or filled argument would start a device that later questions meet, or has answers of time.
fn left_out(name: &str) -> bool {
    matches!(name, "KVM_CREATE_DEVICE" | "KVM_CREATE_GUEST_MEMFD")
}

/// Every row that takes a pointer, on a VM with everything in it.
pub fn pointers(s: &mut Session<'_>) {
    let vm = s.vm();
    s.quietly(vm, nr::KVM_CREATE_IRQCHIP, 0);
    let pit = s.put(0, &[0; 64]);
    s.quietly(vm, nr::KVM_CREATE_PIT2, pit);
    let vcpu = s.vcpu(vm, 0);
    let system = s.system();
    for row in TABLE {
        let size = nr::size_of_argument(row.nr) as u64;
        if size == 0 || left_out(row.name) {
            continue;
        }
        let fd: Fd = match row.fd {
            FdKind::System => system,
            FdKind::Vm => vm,
            FdKind::Vcpu => vcpu,
            #[allow(unreachable_patterns)] // Kinds that only exist once a device does.
            _ => continue,
        };
        let places = [
            ("null", 0),
            ("8", 8),
            ("the last byte", u64::MAX),
            ("non-canonical", 0x8000_0000_0000_0000),
            ("a kernel's", 0xffff_8880_0000_0000),
            ("no rights", s.pages.forbidden()),
            ("one byte before no rights", s.pages.forbidden() - 1),
        ];
        for (place, at) in places {
            s.number(&format!("{} at {place}", row.name), fd, row.nr, at);
        }
        // Zeroed structures, odd and read-only: stored to it cannot be.
        for (place, at) in [("odd", s.pages.start() + 4096 + 1), ("read-only", s.pages.read_only())] {
            s.put(4096, &[0; 8192]);
            s.number(&format!("zeroes, {place}: {}", row.name), fd, row.nr, at);
        }
    }
}
