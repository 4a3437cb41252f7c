//! The one place where the program chooses whose KVM it speaks to.
//!
//! Every other module takes `Kvm`, `VmFd`, `VcpuFd` and `VcpuExit` from here, so that the same source runs
//! against any crate of this shape. It is not a wrapper: it adds nothing but what `kvm_ioctls` has no word for
//! (which engine clock, and the engine's counters).

pub use kvm_ioctl_layer::{Cap, Error, Kvm, VcpuExit, VcpuFd, VmFd};

use crate::cli::EngineClock;
use kvm_ioctl_layer::Options;

/// Opens KVM for this run.
pub fn open(clock: EngineClock) -> Result<Kvm, String> {
    let engine_clock = match clock {
        EngineClock::Real => kvm_ioctl_layer::EngineClock::Real,
        EngineClock::Counted => kvm_ioctl_layer::EngineClock::Counted { seed: 0 },
    };
    Kvm::with_options(Options { engine_clock, ..Options::default() })
        .map_err(|error| format!("cannot open the software processor: {error}"))
}

/// The name of the backend that `open` reaches, for `softkvm check`.
pub const BACKEND: &str = "software processor";

/// Whether `open` works on a host whose `/dev/kvm` is, or is not, usable.
pub fn guests_run(_host_kvm_usable: bool) -> bool {
    true
}

/// Counters that the engine keeps for a vCPU (instructions, TLB, shadow MMU), by name, for `--stats`.
pub fn engine_counters(vcpu: &VcpuFd) -> Vec<(String, u64)> {
    vcpu.stats().into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
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
