//! Thousands of raw ioctls, good and bad: the software backend answers as the host's `/dev/kvm` does, and as Linux 6.12's
//! with kvm-amd, number by number and byte by byte, and the library of `softkvm exec` as the layer in process.
//!
//! The questions are in `softkvm_tests::ioctls`; where an answer differs on purpose, its module `deviations` says so.

use softkvm_tests::ioctls::deviations::{Excuses, difference};
use softkvm_tests::ioctls::front::Dispatch;
use softkvm_tests::ioctls::kernel::Kernel;
use softkvm_tests::ioctls::{Line, SECTIONS, ask};
use softkvm_tests::{program, skip::skip, workspace::root};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The script's status for "cannot be had here".
const UNAVAILABLE: i32 = 3;

/// The layer's answers.
fn software() -> &'static [Line] {
    static LINES: OnceLock<Vec<Line>> = OnceLock::new();
    LINES.get_or_init(|| ask(&Dispatch::default()))
}

#[test]
fn as_the_host_answers() {
    let Some(kernel) = Kernel::present() else {
        return skip("ioctl_results", false, "no usable /dev/kvm");
    };
    let found = Excuses::new(false).differences(software(), &ask(&kernel), false);
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
}

/// The answers of Debian's kernel 6.12 with kvm-amd, in a guest of QEMU's TCG.
#[test]
fn as_kvm_amd_answers() {
    const TEST: &str = "ioctl_results::as_kvm_amd_answers";
    let out = Command::new(root().join("tests/nested/run"))
        .args(["--timeout", "600", env!("CARGO_BIN_EXE_ioctl_results")])
        .stdin(Stdio::null())
        .output();
    let out = match out {
        Ok(out) => out,
        Err(e) => return skip(TEST, false, &format!("tests/nested/run: {e}")),
    };
    let errors = String::from_utf8_lossy(&out.stderr);
    if out.status.code() == Some(UNAVAILABLE) {
        return skip(TEST, false, errors.lines().last().unwrap_or("no reason given"));
    }
    assert!(out.status.success(), "{}: {errors}", out.status);
    let mut excuses = Excuses::new(true);
    let found = excuses.differences(software(), &parse(&out.stdout), false);
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
    assert!(excuses.idle().is_empty(), "deviations that are none any more: {:?}", excuses.idle());
}

/// What the program of the same name prints.
fn parse(text: &[u8]) -> Vec<Line> {
    let text = String::from_utf8_lossy(text);
    text.lines().map(|l| Line::parse(l).unwrap_or_else(|| panic!("{l}"))).collect()
}

#[test]
fn under_exec_as_in_process() {
    let softkvm = program::path().expect("softkvm builds");
    let out = Command::new("timeout")
        .arg("120")
        .arg(softkvm)
        .args(["exec", "--", env!("CARGO_BIN_EXE_ioctl_results")])
        .stdin(Stdio::null())
        .output()
        .expect("timeout runs");
    assert!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    let lines = parse(&out.stdout);
    assert_eq!(software().len(), lines.len(), "as many answers");
    // Each process measures the TSC's frequency for itself.
    let measured = ["numbers: KVM_GET_TSC_KHZ on vm", "order: registers without the VM's descriptor"];
    let differ =
        software().iter().zip(&lines).filter(|(o, t)| o != t && !measured.contains(&o.name.as_str()));
    let found: Vec<_> = differ.map(|(o, t)| difference(o, t)).collect();
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
}

#[test]
fn every_section_asks() {
    for (section, _) in SECTIONS {
        let lines = software().iter().filter(|l| l.name.starts_with(&format!("{section}: "))).count();
        assert!(lines > 3, "{section}: {lines}");
    }
    let mut names: Vec<_> = SECTIONS.iter().map(|s| s.0).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), SECTIONS.len(), "two sections of one name");
}
