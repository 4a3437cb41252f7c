//! What this host offers: the device, the vendor module, the processor's flags, KVM's own word.
//!
//! Only looks; opens `/dev/kvm` and closes it again. Which backend follows from it is the caller's choice.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use crate::sys;

/// The KVM API version that never changes any more (KVM api 4.1).
pub const API_VERSION: i32 = 12;

/// What a host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKvm {
    /// The device node.
    pub device: Device,
    /// Modules below `/sys/module` whose names start with `kvm`, sorted: the vendor module and `kvm` itself.
    pub modules: Vec<String>,
    /// The processor's own word.
    pub cpu: HostCpu,
}

/// The state of `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// There is none.
    Missing,
    /// It is there and cannot be used, for the reason given.
    Unusable(String),
    /// It was opened.
    Open {
        /// KVM_GET_API_VERSION; [`API_VERSION`] on any kernel since 2007.
        api_version: i32,
        /// KVM_CAP_NR_VCPUS and KVM_CAP_MAX_VCPUS.
        vcpus: (i32, i32),
        /// KVM_CAP_NR_MEMSLOTS.
        memslots: i32,
        /// Feature MSRs by index, the VMX capability MSRs (480H to 491H) among them.
        feature_msrs: Vec<(u32, u64)>,
    },
}

/// What CPUID says of the host processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCpu {
    /// Leaf 0.
    pub vendor: String,
    /// Leaf 1, ECX 5: VMX.
    pub vmx: bool,
    /// Leaf 80000001H, ECX 2: SVM.
    pub svm: bool,
    /// Leaf 1, ECX 31: this host is a guest itself; then the signature of leaf 40000000H.
    pub hypervisor: Option<String>,
}

impl HostKvm {
    /// Whether the host's KVM can be used as a backend.
    pub fn usable(&self) -> bool {
        matches!(self.device, Device::Open { api_version: API_VERSION, .. })
    }

    /// The vendor module: `kvm_intel`, `kvm_amd`, or another that registers with `kvm`.
    pub fn vendor_module(&self) -> Option<&str> {
        self.modules.iter().map(String::as_str).find(|name| name.starts_with("kvm_"))
    }
}

/// Looks at the host.
pub fn probe() -> HostKvm {
    HostKvm { device: device(Path::new("/dev/kvm")), modules: modules(Path::new("/sys/module")), cpu: cpu() }
}

fn device(path: &Path) -> Device {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(kvm) => ask(&kvm).unwrap_or_else(|error| Device::Unusable(error.to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Device::Missing,
        Err(error) => Device::Unusable(error.to_string()),
    }
}

fn ask(kvm: &File) -> io::Result<Device> {
    const KVM_CAP_NR_VCPUS: u32 = 9;
    const KVM_CAP_NR_MEMSLOTS: u32 = 10;
    const KVM_CAP_MAX_VCPUS: u32 = 66;
    Ok(Device::Open {
        api_version: sys::api_version(kvm)?,
        vcpus: (sys::check_extension(kvm, KVM_CAP_NR_VCPUS)?, sys::check_extension(kvm, KVM_CAP_MAX_VCPUS)?),
        memslots: sys::check_extension(kvm, KVM_CAP_NR_MEMSLOTS)?,
        // Kernels before 4.17 have no feature MSRs.
        feature_msrs: sys::feature_msrs(kvm).unwrap_or_default(),
    })
}

fn modules(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name == "kvm" || name.starts_with("kvm_")).collect();
    names.sort();
    names
}

fn cpu() -> HostCpu {
    let text = |words: [u32; 3]| {
        let bytes: Vec<u8> =
            words.iter().flat_map(|word| word.to_le_bytes()).filter(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let [_, ebx, ecx, edx] = sys::cpuid(0);
    let features = sys::cpuid(1)[2];
    let extended = sys::cpuid(0x8000_0001)[2];
    HostCpu {
        vendor: text([ebx, edx, ecx]),
        vmx: features & (1 << 5) != 0,
        svm: extended & (1 << 2) != 0,
        hypervisor: (features & (1 << 31) != 0).then(|| {
            let [_, ebx, ecx, edx] = sys::cpuid(0x4000_0000);
            text([ebx, ecx, edx])
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_wrong_device_is_no_error() {
        assert_eq!(device(Path::new("/nonexistent/kvm")), Device::Missing);
        assert!(matches!(device(Path::new("/dev/null")), Device::Unusable(_)));
        assert!(matches!(device(Path::new("/")), Device::Unusable(_)));
    }

    #[test]
    fn the_vendor_module_is_the_one_beside_kvm() {
        let mut host = probe();
        for (modules, wanted) in [
            (&["kvm", "kvm_intel"][..], Some("kvm_intel")),
            (&["kvm"], None),
            (&[], None),
            (&["kvm", "kvm_amd"], Some("kvm_amd")),
        ] {
            host.modules = modules.iter().map(|name| name.to_string()).collect();
            assert_eq!(host.vendor_module(), wanted);
        }
    }

    #[test]
    fn the_probe_agrees_with_the_kernel() {
        let host = probe();
        assert!(host.cpu.vendor.len() >= 10, "{:?}", host.cpu.vendor);
        match &host.device {
            Device::Open { api_version, vcpus, memslots, .. } => {
                assert_eq!(*api_version, API_VERSION);
                assert!(vcpus.0 >= 1 && vcpus.1 >= vcpus.0 && *memslots >= 32);
            }
            other => eprintln!("SKIP the_probe_agrees_with_the_kernel: /dev/kvm: {other:?}"),
        }
    }
}
