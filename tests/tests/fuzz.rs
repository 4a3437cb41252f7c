//! A short, repeatable run of the fuzz target: no defect, nearly every handler reached, cases that go on.

use std::process::Command;

/// Enough for nearly every handler; `--seconds` of the same program goes further.
const CASES: &str = "6000";

#[test]
fn random_guests_do_no_harm() {
    let out = Command::new(env!("CARGO_BIN_EXE_fuzz"))
        .args(["--cases", CASES, "--seed", "1"])
        .output()
        .expect("the fuzz target runs");
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}\n{errors}");
    let number = |before: &str| -> f64 {
        let head = text.split(before).next().unwrap_or("");
        head.rsplit([' ', '(']).next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
    };
    assert!(number(" %)") >= 95.0, "handlers reached: {text}");
    assert!(number(" instructions a case") >= 50.0, "instructions a case: {text}");
}
