//! The one place where the program chooses whose KVM it speaks to.
//!
//! Every other module takes `Kvm`, `VmFd`, `VcpuFd` and `VcpuExit` from here, so that the same source runs
//! against any crate of this shape. It is not a wrapper: it adds nothing but what `kvm_ioctls` has no word for
//! (which engine clock, and the engine's counters).

pub use kvm_ioctls::{Cap, Error, Kvm, VcpuExit, VcpuFd, VmFd};

use crate::cli::EngineClock;

/// Opens KVM for this run. `kvm_ioctls` speaks to the host's `/dev/kvm`, which knows real time only.
pub fn open(clock: EngineClock) -> Result<Kvm, String> {
    if clock == EngineClock::Counted {
        return Err(
            "--engine-clock counted needs the software processor; this build speaks to /dev/kvm".into()
        );
    }
    Kvm::new().map_err(|error| format!("cannot open /dev/kvm: {error}"))
}

/// The name of the backend that `open` reaches, for `softkvm check`.
pub const BACKEND: &str = "host /dev/kvm";

/// Whether `open` works on a host whose `/dev/kvm` is, or is not, usable.
pub fn guests_run(host_kvm_usable: bool) -> bool {
    host_kvm_usable
}

/// Counters that the engine keeps for a vCPU (instructions, TLB, shadow MMU), by name, for `--stats`.
/// The host's KVM offers none through this API.
pub fn engine_counters(_vcpu: &VcpuFd) -> Vec<(String, u64)> {
    Vec::new()
}

/// One row of the API coverage table of `softkvm check`.
#[derive(Debug, Clone, serde::Serialize)]
pub struct CoverageRow {
    /// The ioctl's name, as the KVM API document writes it.
    pub ioctl: &'static str,
    /// The section of the API document.
    pub section: &'static str,
    /// Whether the backend implements it.
    pub implemented: bool,
}

/// The ioctl table of the layer, row by row; empty when the backend has none.
pub fn coverage() -> Vec<CoverageRow> {
    Vec::new()
}
