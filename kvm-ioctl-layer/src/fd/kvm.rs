//! [`Kvm`]: the system object, what `/dev/kvm` is.

use super::vm_fd::VmFd;
use crate::soft::{Options, SoftHypervisor};
use crate::{Result, error};
use kvm_api::backend::{Hypervisor, RUN_MMAP_SIZE};
use kvm_api::errno::Errno;
use kvm_api::uapi::*;
use kvm_ioctls::Cap;
use std::sync::Arc;

/// The system object.
#[derive(Clone)]
pub struct Kvm {
    hypervisor: Arc<dyn Hypervisor>,
}

impl core::fmt::Debug for Kvm {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Kvm({})", self.hypervisor.name())
    }
}

impl Kvm {
    /// KVM on the software processor, in real time.
    pub fn new() -> Result<Kvm> {
        Kvm::with_options(Options::default())
    }

    /// KVM on the software processor, with choices.
    pub fn with_options(options: Options) -> Result<Kvm> {
        Ok(Kvm::with_backend(Arc::new(SoftHypervisor::new(options))))
    }

    /// KVM on any backend.
    pub fn with_backend(hypervisor: Arc<dyn Hypervisor>) -> Kvm {
        Kvm { hypervisor }
    }

    /// The backend's name.
    pub fn backend_name(&self) -> &'static str {
        self.hypervisor.name()
    }

    /// The backend itself.
    pub fn backend(&self) -> &Arc<dyn Hypervisor> {
        &self.hypervisor
    }

    /// KVM_GET_API_VERSION (4.1): 12.
    pub fn get_api_version(&self) -> i32 {
        KVM_API_VERSION as i32
    }

    /// KVM_CHECK_EXTENSION (4.4) with any number.
    pub fn check_extension_raw(&self, c: u64) -> i32 {
        u32::try_from(c).map_or(0, |c| self.hypervisor.check_extension(c))
    }

    /// KVM_CHECK_EXTENSION (4.4).
    pub fn check_extension_int(&self, c: Cap) -> i32 {
        self.hypervisor.check_extension(c as u32)
    }

    /// Whether KVM_CHECK_EXTENSION (4.4) answers more than 0.
    pub fn check_extension(&self, c: Cap) -> bool {
        self.check_extension_int(c) > 0
    }

    /// KVM_GET_VCPU_MMAP_SIZE (4.5).
    pub fn get_vcpu_mmap_size(&self) -> Result<usize> {
        Ok(RUN_MMAP_SIZE)
    }

    /// The recommended number of vCPUs.
    pub fn get_nr_vcpus(&self) -> usize {
        match self.check_extension_int(Cap::NrVcpus) {
            0 => 4,
            n => n as usize,
        }
    }

    /// The number of memory slots.
    pub fn get_nr_memslots(&self) -> usize {
        match self.check_extension_int(Cap::NrMemslots) {
            0 => 32,
            n => n as usize,
        }
    }

    /// The largest number of vCPUs.
    pub fn get_max_vcpus(&self) -> usize {
        match self.check_extension_int(Cap::MaxVcpus) {
            0 => self.get_nr_vcpus(),
            n => n as usize,
        }
    }

    /// vCPU ids are below this.
    pub fn get_max_vcpu_id(&self) -> usize {
        match self.check_extension_int(Cap::MaxVcpuId) {
            0 => self.get_max_vcpus(),
            n => n as usize,
        }
    }

    /// KVM_GET_SUPPORTED_CPUID (4.45). E2BIG: `num_entries` is too small; ENOMEM: over KVM's limit.
    pub fn get_supported_cpuid(&self, num_entries: usize) -> Result<CpuId> {
        self.cpuid(self.hypervisor.supported_cpuid().map_err(error)?, num_entries)
    }

    /// KVM_GET_EMULATED_CPUID.
    pub fn get_emulated_cpuid(&self, num_entries: usize) -> Result<CpuId> {
        self.cpuid(self.hypervisor.emulated_cpuid().map_err(error)?, num_entries)
    }

    fn cpuid(&self, rows: Vec<kvm_cpuid_entry2>, num_entries: usize) -> Result<CpuId> {
        if num_entries > KVM_MAX_CPUID_ENTRIES {
            // As the crate `kvm-ioctls` answers, whose buffer has that limit.
            return Err(error(Errno::ENOMEM));
        }
        if rows.len() > num_entries {
            return Err(error(Errno::E2BIG));
        }
        CpuId::from_entries(&rows).map_err(|_| error(Errno::ENOMEM))
    }

    /// KVM_GET_MSR_INDEX_LIST (4.3).
    pub fn get_msr_index_list(&self) -> Result<MsrList> {
        let list = self.hypervisor.msr_index_list().map_err(error)?;
        MsrList::from_entries(&list).map_err(|_| error(Errno::ENOMEM))
    }

    /// KVM_GET_MSR_FEATURE_INDEX_LIST.
    pub fn get_msr_feature_index_list(&self) -> Result<MsrList> {
        let list = self.hypervisor.msr_feature_index_list().map_err(error)?;
        MsrList::from_entries(&list).map_err(|_| error(Errno::ENOMEM))
    }

    /// KVM_GET_MSRS on the system object: feature MSRs.
    pub fn get_msrs(&self, msrs: &mut Msrs) -> Result<usize> {
        self.hypervisor.feature_msrs(msrs.as_mut_slice()).map_err(error)
    }

    /// KVM_CREATE_VM (4.2).
    pub fn create_vm(&self) -> Result<VmFd> {
        self.create_vm_with_type(0)
    }

    /// KVM_CREATE_VM (4.2) with a VM type (KVM_CAP_VM_TYPES).
    pub fn create_vm_with_type(&self, vm_type: u64) -> Result<VmFd> {
        VmFd::new(self.hypervisor.create_vm(vm_type).map_err(error)?)
    }
}
