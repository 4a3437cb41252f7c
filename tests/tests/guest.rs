//! The harness's own guest on each backend that is present: every check reported, and passed.

use softkvm_tests::guest::{Image, image};
use std::time::Duration;

/// Longest that a run may take: it takes seconds.
const WATCHDOG: Duration = Duration::from_secs(240);

macro_rules! for_each_backend {
    ($test:ident) => {
        mod $test {
            #[test]
            fn software() {
                use softkvm_tests::guest::software::vmm;
                $test!(vmm);
            }
            #[test]
            fn host() {
                use softkvm_tests::guest::host::vmm;
                if let Err(why) = vmm::present() {
                    return softkvm_tests::skip::skip(concat!(stringify!($test), "::host"), false, &why);
                }
                $test!(vmm);
            }
        }
    };
}

macro_rules! every_check_is_reported_and_passes {
    ($vmm:ident) => {{
        let image = crate::guest();
        let out = $vmm::run(&image, 0, crate::WATCHDOG, |_| std::time::Duration::ZERO);
        let mut bad = Vec::new();
        let mut absent = Vec::new();
        // A kernel's own limits (an instruction that it cannot emulate) are not the guest's failure: what was reported
        // until then must be right, and the rest is a skip.
        let gave_up = out.failure.as_ref().filter(|f| $vmm::MAY_GIVE_UP && f.contains("InternalError")).cloned();
        if let Some(why) = &gave_up {
            let why = format!("after {} of {} checks: {why}", out.reports.len(), image.checks.len());
            softkvm_tests::skip::skip("guest, the rest of it, on the host", false, &why.replace('\n', " "));
        }
        for (n, name) in image.checks.iter().enumerate() {
            match out.reports.get(&(n as u32)) {
                None if gave_up.is_some() => {}
                None => bad.push(format!("not reported: {name}")),
                Some(r) if r.passed == Some(false) => {
                    bad.push(format!("failed: {name}: {:#x}, expected {:#x}", r.actual, r.expected))
                }
                Some(r) if r.passed.is_none() => absent.push(name),
                Some(_) => {}
            }
        }
        if !absent.is_empty() {
            eprintln!("not offered by this processor: {absent:?}");
        }
        bad.extend(crate::sandwiched(out.marks.iter().map(|m| (m.before, m.kvmclock, m.after)).collect()));
        bad.extend(crate::sandwiched(
            out.marks.iter().map(|m| (m.wall_base + m.before, m.realtime, m.wall_base + m.after)).collect(),
        ));
        if let Some(why) = out.failure.filter(|_| gave_up.is_none()) {
            bad.insert(0, why);
        }
        assert!(bad.is_empty(), "{} of {} checks:\n{}", bad.len(), image.checks.len(), bad.join("\n"));
        assert!(image.checks.len() > 150, "{}", image.checks.len());
    }};
}

for_each_backend!(every_check_is_reported_and_passes);

fn guest() -> Image {
    image().expect("the guest assembles")
}

/// The host's clock at a mark lies between the guest's before and behind it. A slack for two clocks that are read
/// one after the other and are rounded apart.
fn sandwiched(marks: Vec<(u64, u64, u64)>) -> Vec<String> {
    const SLACK: u64 = 1_000_000;
    marks
        .into_iter()
        .filter(|&(before, host, after)| host + SLACK < before || host > after + SLACK)
        .map(|m| format!("the guest's clock before, the host's, the guest's behind: {m:?}"))
        .collect()
}
