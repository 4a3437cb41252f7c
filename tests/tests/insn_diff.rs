//! The single-instruction differential, short and deterministic: the failures of the past, and two visits to each form of each
//! instruction. The long run is `softkvm diff insn --seconds 600`.

use insn_diff::corpus;
use insn_diff::run::{Pair, Plan, Verdict, kick_what_stands_still, run};
use insn_diff::text;
use softkvm_tests::oracle::host_can_be_the_oracle;
use softkvm_tests::workspace::root;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn the_failures_of_the_past_stay_repaired() {
    if !host_can_be_the_oracle("the_failures_of_the_past_stay_repaired") {
        return;
    }
    let cases = corpus::load(&root().join("tests/corpus/insn")).expect("the corpus can be read");
    assert!(!cases.is_empty());
    let mut pair = Pair::start().expect("the host can be the oracle");
    let (watch, stop) = (pair.watch(), AtomicBool::new(false));
    let failed: Vec<String> = std::thread::scope(|scope| {
        scope.spawn(|| kick_what_stands_still(&[watch], &stop));
        let failed = cases.iter().filter_map(|(path, case)| {
            let (_, _, verdict) = pair.one(case).expect("both machines work");
            (!matches!(verdict, Verdict::Agreed)).then(|| format!("{}: {verdict:?}", path.display()))
        });
        let failed = failed.collect();
        stop.store(true, Ordering::Relaxed);
        failed
    });
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn each_form_of_each_instruction_twice() {
    if !host_can_be_the_oracle("each_form_of_each_instruction_twice") {
        return;
    }
    let plan = Plan { seed: 20_100, rounds: Some(2), ..Plan::default() };
    let report = run(&plan, &mut |_| true).expect("the host can be the oracle");
    for failure in report.failures.values() {
        println!("{:?}: {:?} {:?}", failure.key, failure.differences, failure.ended);
        println!("  softkvm diff insn --case '{}'", text::to_text(&failure.case));
    }
    assert_eq!(report.mismatches(), 0);
    for denominator in &report.denominators {
        let offered = denominator
            .cells
            .iter()
            .filter(|cell| *denominator.class(cell) == insn_diff::coverage::Class::Offered);
        let (mut all, mut never) = (0, Vec::new());
        for cell in offered {
            all += 1;
            if report.coverage.of(cell).executed == 0 {
                never.push(cell.to_string());
            }
        }
        println!("{}-bit code: {all} forms, {} not executed", denominator.bits.number(), never.len());
        assert!(all > 1000, "a denominator");
        assert!(never.len() * 20 < all, "one in twenty or more was never executed: {never:#?}");
    }
}
