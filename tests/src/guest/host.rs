//! The harness's VMM on the host's `/dev/kvm`.

pub use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

/// The backend's name.
pub const NAME: &str = "host /dev/kvm";

/// Whether KVM_EXIT_INTERNAL_ERROR is a limit that is known of this backend, and not a fault.
pub const MAY_GIVE_UP: bool = true;

#[path = "vmm.rs"]
#[allow(clippy::duplicate_mod, reason = "one VMM, compiled for each backend")]
pub mod vmm;
