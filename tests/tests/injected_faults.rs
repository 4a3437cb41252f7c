//! Faults on purpose in handlers and in re-encoded SIMD instructions: the single-instruction differential, looking at
//! everything and told nothing, must find each within a minute.

use emu_core::faults::{Fault, inject};
use insn_diff::run::{Plan, Report, run};
use softkvm_tests::skip::skip;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Runs until something fails, or the time is over.
fn until_a_failure(seed: u64) -> Report {
    let plan = Plan { seed, time: Some(LIMIT), ..Plan::default() };
    run(&plan, &mut |progress| progress.mismatches == 0).expect("the host can be the oracle")
}

#[test]
fn each_is_found_within_a_minute() {
    for (seed, (fault, mnemonic)) in (1..).zip(Fault::ALL) {
        if mnemonic == iced_x86::Mnemonic::Vmulps && !emu_core::xstate::host_has_avx512()
            || mnemonic == iced_x86::Mnemonic::Vsubps && !emu_core::xstate::host_has_avx()
        {
            skip(&format!("{fault:?}"), false, "the host's processor does not have the instruction");
            continue;
        }
        inject(Some(fault));
        let report = until_a_failure(seed);
        inject(None);
        let codes: Vec<&str> = report.failures.keys().map(|key| key.code.as_str()).collect();
        let name = format!("{mnemonic:?}");
        assert!(
            codes.iter().any(|code| code.contains(&name)),
            "{fault:?}: not found in {:?} and {} cases; found {codes:?}",
            report.elapsed,
            report.executed
        );
        println!("{fault:?}: {:.1} s, {} cases", report.elapsed.as_secs_f64(), report.executed);
    }
}
