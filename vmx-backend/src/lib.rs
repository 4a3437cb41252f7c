//! The KVM object model over the host's own `/dev/kvm` (VMX on Intel, SVM on AMD).
//!
//! Here now: `probe`, which says what the host offers. Not here: any emulation. The VM, vCPU, memory and
//! interrupt halves follow with the names that the software backend's files have.

pub mod probe;
mod sys;

pub use probe::{HostKvm, probe};
