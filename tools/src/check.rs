//! `softkvm check`: what this host offers, which backend `run` uses, and how much of the KVM API is there.

use serde::Serialize;
use vmx_backend::probe::{Device, HostKvm, probe};

use crate::cli::CheckArgs;
use crate::kvm::{self, CoverageRow};
use crate::outcome::{Failure, STATUS_OK};
use crate::report;

/// The verb. Returns the exit status.
pub fn check(args: CheckArgs) -> Result<u8, Failure> {
    let findings = Findings::new(&probe(), kvm::coverage());
    report::print(&findings, args.json, Findings::text)?;
    Ok(STATUS_OK)
}

#[derive(Debug, Serialize)]
struct Findings {
    device: &'static str,
    device_detail: Option<String>,
    api_version: Option<i32>,
    max_vcpus: Option<i32>,
    memslots: Option<i32>,
    feature_msrs: Vec<(String, String)>,
    vendor_module: Option<String>,
    cpu_vendor: String,
    vmx: bool,
    svm: bool,
    /// Whether `exec` can show SVM or VMX to programs that execute CPUID.
    cpuid_faulting: bool,
    hypervisor: Option<String>,
    backend: &'static str,
    guests_run: bool,
    coverage: Vec<CoverageRow>,
}

impl Findings {
    fn new(host: &HostKvm, coverage: Vec<CoverageRow>) -> Findings {
        let mut findings = Findings {
            device: "missing",
            device_detail: None,
            api_version: None,
            max_vcpus: None,
            memslots: None,
            feature_msrs: Vec::new(),
            vendor_module: host.vendor_module().map(str::to_string),
            cpu_vendor: host.cpu.vendor.clone(),
            vmx: host.cpu.vmx,
            svm: host.cpu.svm,
            cpuid_faulting: crate::exec::faults_on_cpuid(),
            hypervisor: host.cpu.hypervisor.clone(),
            backend: kvm::BACKEND,
            guests_run: kvm::guests_run(host.usable()),
            coverage,
        };
        match &host.device {
            Device::Missing => {}
            Device::Unusable(why) => {
                findings.device = "unusable";
                findings.device_detail = Some(why.clone());
            }
            Device::Open { api_version, vcpus, memslots, feature_msrs } => {
                findings.device = "usable";
                findings.api_version = Some(*api_version);
                findings.max_vcpus = Some(vcpus.1);
                findings.memslots = Some(*memslots);
                findings.feature_msrs = feature_msrs
                    .iter()
                    .map(|(index, value)| (format!("{index:#x}"), format!("{value:#x}")))
                    .collect();
            }
        }
        findings
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| text.push_str(&format!("{name:<22} {value}\n"));
        let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_string();
        row(
            "/dev/kvm",
            match &self.device_detail {
                Some(why) => format!("{}: {why}", self.device),
                None => self.device.into(),
            },
        );
        if let (Some(version), Some(vcpus), Some(slots)) = (self.api_version, self.max_vcpus, self.memslots) {
            row("KVM API version", version.to_string());
            row("vCPUs, memory slots", format!("{vcpus}, {slots}"));
        }
        row("vendor module", self.vendor_module.clone().unwrap_or_else(|| "none".into()));
        row("processor", self.cpu_vendor.clone());
        row("VMX (VT-x), SVM", format!("{}, {}", yes_no(self.vmx), yes_no(self.svm)));
        row("CPUID faulting", yes_no(self.cpuid_faulting));
        row(
            "this host is a guest",
            match &self.hypervisor {
                Some(signature) => format!("yes ({})", signature.escape_debug()),
                None => yes_no(false),
            },
        );
        for (index, value) in &self.feature_msrs {
            row(&format!("feature MSR {index}"), value.clone());
        }
        let works = if self.guests_run { "" } else { " (cannot run guests here)" };
        row("backend of softkvm run", format!("{}{works}", self.backend));
        if self.coverage.is_empty() {
            row("KVM API coverage", "the backend keeps no table".into());
        } else {
            let done = self.coverage.iter().filter(|row| row.implemented).count();
            row("KVM API coverage", format!("{done} of {} ioctls", self.coverage.len()));
            for ioctl in &self.coverage {
                row(
                    &format!("  {}", ioctl.section),
                    format!("{:<40} {}", ioctl.ioctl, yes_no(ioctl.implemented)),
                );
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmx_backend::probe::HostCpu;

    fn host(device: Device) -> HostKvm {
        let cpu = HostCpu { vendor: "GenuineIntel".into(), vmx: true, svm: false, hypervisor: None };
        HostKvm { device, modules: vec!["kvm".into(), "kvm_intel".into()], cpu }
    }

    #[test]
    fn each_state_of_the_device_is_told() {
        let open =
            Device::Open { api_version: 12, vcpus: (4, 1024), memslots: 509, feature_msrs: vec![(0x480, 7)] };
        for (device, wanted) in [
            (Device::Missing, "missing"),
            (Device::Unusable("Permission denied".into()), "unusable: Permission denied"),
            (open, "usable\nKVM API version        12\n"),
        ] {
            let text = Findings::new(&host(device), Vec::new()).text();
            assert!(text.contains(wanted), "{wanted:?} in\n{text}");
            assert!(text.contains("kvm_intel"), "{text}");
        }
    }

    #[test]
    fn coverage_is_counted() {
        let row = |ioctl, implemented| CoverageRow { ioctl, section: "4.1", implemented };
        let rows = vec![row("KVM_GET_API_VERSION", true), row("KVM_SET_SREGS2", false)];
        let text = Findings::new(&host(Device::Missing), rows).text();
        assert!(text.contains("1 of 2 ioctls"), "{text}");
    }
}
