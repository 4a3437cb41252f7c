//! The kernel's own KVM selftests, unchanged, under `softkvm exec`: the quick mode of `tests/selftests/run`, which says
//! more. What each is expected to do stands in `tests/selftests/expected.tsv`.
//!
//! Needs Debian's package of the kernel's sources (fetched once), gcc and make; where they are not to be had, a skip
//! that makes the whole run incomplete.

use softkvm_tests::{program, skip, workspace};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const TEST: &str = "selftests::the_kernels_selftests";

/// The script's status for "cannot be had here".
const UNAVAILABLE: i32 = 3;

fn script(arguments: &[&str]) -> Output {
    Command::new(folder().join("run")).args(arguments).stdin(Stdio::null()).output().expect("bash")
}

fn folder() -> PathBuf {
    workspace::root().join("tests/selftests")
}

#[test]
fn the_kernels_selftests() {
    let softkvm = program::path().expect("softkvm builds");
    let out = script(&["--quick", "--softkvm", &softkvm.to_string_lossy()]);
    let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if out.status.code() == Some(UNAVAILABLE) {
        return skip::skip(TEST, true, errors.lines().last().unwrap_or("no reason given"));
    }
    eprintln!("{text}");
    assert_eq!(out.status.code(), Some(0), "{text}\n{errors}");
    // An empty table would be as expected too.
    let passed = text.lines().filter(|line| line.split_whitespace().nth(1) == Some("pass")).count();
    assert!(passed >= LEAST, "{passed} tests passed\n{text}");
}

/// Tests that pass on any host that can run them.
const LEAST: usize = 20;

/// Each row of the table is one that the script takes; `run` refuses a skip for a reason that is none.
#[test]
fn the_table_is_well_formed() {
    let table = std::fs::read_to_string(folder().join("expected.tsv")).expect("the table");
    let mut before = "";
    for row in table.lines().filter(|row| !row.starts_with('#')) {
        let columns: Vec<_> = row.split('\t').collect();
        let [test, result, reason, speed, seconds, _, words] = columns[..] else { panic!("columns: {row}") };
        assert!(before < test, "{test} is out of order");
        before = test;
        assert!(["pass", "skip", "fail", "timeout", "open"].contains(&result), "{row}");
        assert_eq!(result == "pass", reason == "-", "a reason where it does not pass: {row}");
        assert_eq!(result == "skip", words != "-", "what a skip says: {row}");
        assert!(["fast", "slow"].contains(&speed), "{row}");
        assert!(seconds.parse::<u32>().is_ok_and(|s| (1..=1800).contains(&s)), "{row}");
    }
}
