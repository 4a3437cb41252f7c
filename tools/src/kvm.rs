//! The one place where the program chooses whose KVM it speaks to.
//!
//! Every other module takes `Kvm`, `VmFd`, `VcpuFd` and `VcpuExit` from here, so that the same source runs
//! against any crate of this shape: `kvm-ioctl-layer`, or with the feature `host-kvm` the crate `kvm-ioctls`
//! itself, for comparison. It is not a wrapper: it adds nothing but what `kvm-ioctls` has no word for (which
//! engine clock, and the engine's counters).

#[cfg(not(feature = "host-kvm"))]
pub use kvm_ioctl_layer::{Cap, Error, Kvm, VcpuExit, VcpuFd, VmFd};
#[cfg(feature = "host-kvm")]
pub use kvm_ioctls::{Cap, Error, Kvm, VcpuExit, VcpuFd, VmFd};

use crate::cli::EngineClock;
use crate::outcome::Failure;

/// The name of the backend that `open` reaches, for `softkvm check`.
#[cfg(not(feature = "host-kvm"))]
pub const BACKEND: &str = "software processor";
/// The name of the backend that `open` reaches, for `softkvm check`.
#[cfg(feature = "host-kvm")]
pub const BACKEND: &str = "host /dev/kvm";

/// Opens KVM for this run.
#[cfg(not(feature = "host-kvm"))]
pub fn open(clock: EngineClock) -> Result<Kvm, Failure> {
    use kvm_ioctl_layer::Options;
    /// What RDRAND and RDSEED start from in virtual time: always the same, as everything else there.
    const SEED: u64 = 0;
    let engine_clock = match clock {
        EngineClock::Real => kvm_ioctl_layer::EngineClock::Real,
        EngineClock::Counted => kvm_ioctl_layer::EngineClock::Counted { seed: SEED },
    };
    let options = Options { engine_clock, ..Options::default() };
    Kvm::with_options(options).map_err(|error| Failure::host("software processor", error))
}

/// Opens KVM for this run. The host's KVM knows real time only.
#[cfg(feature = "host-kvm")]
pub fn open(clock: EngineClock) -> Result<Kvm, Failure> {
    if clock == EngineClock::Counted {
        return Err(Failure::BadInput("--engine-clock counted needs the software processor".into()));
    }
    Kvm::new().map_err(|error| Failure::host("/dev/kvm", error))
}

/// Whether guests run on a host whose `/dev/kvm` is, or is not, usable.
pub fn guests_run(host_kvm_usable: bool) -> bool {
    !cfg!(feature = "host-kvm") || host_kvm_usable
}

/// Counters that the engine keeps for a vCPU (instructions, TLB, shadow MMU), by name, for `--stats`.
#[cfg(not(feature = "host-kvm"))]
pub fn engine_counters(vcpu: &VcpuFd) -> Vec<(String, u64)> {
    vcpu.stats().into_iter().map(|(name, count)| (name.to_string(), count)).collect()
}

/// The host's KVM offers no counters through this API.
#[cfg(feature = "host-kvm")]
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

/// The ioctl table of the backend, row by row; empty when it keeps none.
pub fn coverage() -> Vec<CoverageRow> {
    use kvm_ioctl_layer::table::{Status, TABLE};
    TABLE
        .iter()
        .map(|row| CoverageRow {
            ioctl: row.name,
            section: row.section,
            implemented: row.status() != Status::Later,
        })
        .collect()
}
