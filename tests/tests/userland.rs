//! Debian's own programs give the same results in a guest as on this machine: the quick mode of
//! `tests/userland/run`, which says more. OpenSSL, the compressors and glibc's functions, in one guest.
//!
//! Needs packages that `softkvm demo` fetches and the means to run them here (user namespaces); where they are not to
//! be had, a skip that makes the whole run incomplete.

use softkvm_tests::{program, skip, workspace};
use std::process::{Command, Stdio};

const TEST: &str = "userland::debians_programs_give_the_same_results";

/// The script's status for "cannot be had here".
const UNAVAILABLE: i32 = 3;

#[test]
fn debians_programs_give_the_same_results() {
    let softkvm = program::path().expect("softkvm builds");
    let out = Command::new(workspace::root().join("tests/userland/run"))
        .args(["--quick", "--only", "openssl,compression,strings", "--timeout", "600", "--softkvm"])
        .arg(softkvm)
        .stdin(Stdio::null())
        .output()
        .expect("bash");
    let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if out.status.code() == Some(UNAVAILABLE) {
        return skip::skip(TEST, true, errors.lines().last().unwrap_or("no reason given"));
    }
    eprintln!("{text}");
    assert_eq!(out.status.code(), Some(0), "{text}\n{errors}");
    // The table has a row for each, with results in it: an empty comparison would be a success too.
    for (name, least) in [("openssl", 80), ("compression", 6), ("strings", 200)] {
        let row = text.lines().find(|line| line.starts_with(name)).unwrap_or("");
        let results: u32 = row.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
        assert!(results >= least, "{name}: {row}");
    }
}
