//! The software backend: the traits of `kvm-api` over `emu-core` and `softmmu`.
//!
//! The only place where a `kvm_*` structure meets the software processor. Files bear the names of `vmx-backend`'s.

pub mod bus;
pub mod choices;
mod coalesced;
pub mod convert;
pub mod irqfd;
pub mod memory;
pub mod msr;
pub mod nested;
pub mod pv;
mod rings;
mod stats;
pub mod vcpu;
pub mod vm;
pub mod xen;

use crate::caps;
use crate::host::{CountedHost, RealHost};
use emu_core::Host;
use emu_core::cpuid::policy::{self, HostProcessor};
use kvm_api::backend::{CountedTime, Hypervisor, Vm};
use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;
use std::sync::Arc;

/// Which time the guest lives in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EngineClock {
    /// The host's.
    #[default]
    Real,
    /// Retired instructions: a run can be repeated exactly.
    Counted {
        /// Seed of RDRAND and RDSEED.
        seed: u64,
    },
    /// Counted time that goes on from a moment of another VM ([`VmFd::counted_time`](crate::VmFd::counted_time)), whose
    /// state is set down in this one.
    CountedFrom(CountedTime),
}

/// Choices for the software backend.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which time the guest lives in.
    pub engine_clock: EngineClock,
    /// A `/dev/kvm` that can be opened may be asked for the TSC's frequency (and for nothing else).
    pub ask_host_kvm: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { engine_clock: EngineClock::Real, ask_host_kvm: true }
    }
}

/// The software processor as a source of VMs.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftHypervisor {
    options: Options,
}

impl SoftHypervisor {
    /// With choices.
    pub fn new(options: Options) -> SoftHypervisor {
        SoftHypervisor { options }
    }
}

impl Hypervisor for SoftHypervisor {
    fn name(&self) -> &'static str {
        "software processor"
    }

    fn check_extension(&self, cap: u32) -> i32 {
        caps::answer(cap)
    }

    fn supported_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>> {
        Ok(policy::supported(&HostProcessor::this()).iter().map(convert::cpuid_entry).collect())
    }

    fn emulated_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>> {
        // What KVM lists here is executed by software on a host that lacks it: MOVBE and RDPID.
        let row = |function, index, indexed, f: fn(&mut kvm_cpuid_entry2)| {
            let mut e = kvm_cpuid_entry2 { function, index, ..Default::default() };
            e.flags = if indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            f(&mut e);
            e
        };
        Ok(vec![
            row(0, 0, false, |e| e.eax = 7),
            row(1, 0, false, |e| e.ecx = 1 << 22),
            row(7, 0, true, |e| e.ecx = 1 << 22),
        ])
    }

    fn msr_index_list(&self) -> Result<Vec<u32>> {
        Ok(msr::indices())
    }

    fn msr_feature_index_list(&self) -> Result<Vec<u32>> {
        Ok(msr::feature_indices())
    }

    fn feature_msrs(&self, entries: &mut [kvm_msr_entry]) -> Result<usize> {
        for (n, e) in entries.iter_mut().enumerate() {
            match msr::feature(e.index) {
                Some(v) => e.data = v,
                None => return Ok(n),
            }
        }
        Ok(entries.len())
    }

    fn guest_xcr0(&self) -> u64 {
        vcpu::offered_xcr0()
    }

    fn mce_cap_supported(&self) -> Result<u64> {
        Ok(emu_core::mce::supported())
    }

    fn create_vm(&self, vm_type: u64) -> Result<Arc<dyn Vm>> {
        // KVM_X86_DEFAULT_VM only (KVM_CAP_VM_TYPES).
        if vm_type != 0 {
            return Err(Errno::EINVAL);
        }
        let host: Arc<dyn Host> = match self.options.engine_clock {
            EngineClock::Real => Arc::new(RealHost::new(self.options.ask_host_kvm)),
            EngineClock::Counted { seed } => Arc::new(CountedHost::new(seed)),
            EngineClock::CountedFrom(time) => Arc::new(CountedHost::from(time)),
        };
        Ok(Arc::new(vm::SoftVm::new(host)))
    }
}
