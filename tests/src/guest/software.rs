//! The harness's VMM on the software processor, by the ioctl layer's own API.

pub use kvm_ioctl_layer::{Kvm, VcpuExit, VcpuFd, VmFd};

/// The backend's name.
pub const NAME: &str = "software";

/// Whether KVM_EXIT_INTERNAL_ERROR is a limit that is known of this backend, and not a fault.
pub const MAY_GIVE_UP: bool = false;

#[path = "vmm.rs"]
pub mod vmm;
