//! Faults on purpose in handlers and in re-encoded SIMD instructions: the single-instruction differential, looking at
//! everything and told nothing, must find each within a minute.

use emu_core::faults::{Fault, inject};
use insn_diff::run::{Pair, Plan, Report, Verdict, run};
use softkvm_tests::oracle::host_can_be_the_oracle;
use softkvm_tests::skip::skip;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Runs everything until an instruction of this name fails, or the time is over.
fn until_it_fails(seed: u64, name: &str) -> Report {
    let until = Some(name.into());
    let plan = Plan { seed, time: Some(LIMIT), failures: usize::MAX, until, ..Plan::default() };
    run(&plan, &mut |_| true).expect("the host can be the oracle")
}

#[test]
fn each_is_found_within_a_minute() {
    if !host_can_be_the_oracle("each_is_found_within_a_minute") {
        return;
    }
    for (seed, (fault, mnemonic)) in (1..).zip(Fault::ALL) {
        if mnemonic == iced_x86::Mnemonic::Vmulps && !emu_core::xstate::host_has_avx512()
            || mnemonic == iced_x86::Mnemonic::Vsubps && !emu_core::xstate::host_has_avx()
        {
            skip(&format!("{fault:?}"), false, "the host's processor does not have the instruction");
            continue;
        }
        inject(Some(fault));
        let name = format!("{mnemonic:?}");
        let report = until_it_fails(seed, &name);
        inject(None);
        let found: Vec<_> = report.failures.values().filter(|f| f.key.code.contains(&name)).collect();
        assert!(
            !found.is_empty(),
            "{fault:?}: not found in {:?} and {} cases; found {:?}",
            report.elapsed,
            report.executed,
            report.failures.keys()
        );
        // It is this fault that was found: without it the two agree.
        let mut pair = Pair::start().expect("the host can be the oracle");
        for failure in found {
            let (_, _, verdict) = pair.one(&failure.case).expect("both machines work");
            assert!(matches!(verdict, Verdict::Agreed), "{fault:?}: {:?} {verdict:?}", failure.key);
        }
        println!("{fault:?}: {:.1} s, {} cases", report.elapsed.as_secs_f64(), report.executed);
    }
}
