//! An oracle that is absent is a printed skip, never a silent pass.

use std::io::Write;
use std::path::PathBuf;

/// Where skips are collected: `$SOFTKVM_SKIPS`, or `skips.txt` in the target folder.
pub fn file() -> PathBuf {
    std::env::var_os("SOFTKVM_SKIPS")
        .map_or_else(|| crate::workspace::root().join("target/skips.txt"), PathBuf::from)
}

/// Says that a test did not run, and why. `required`: a full run must not lack it, so that
/// the CI script ends as INCOMPLETE and not as a success.
pub fn skip(test: &str, required: bool, why: &str) {
    let line = format!("{}\t{test}\t{why}\n", if required { "REQUIRED" } else { "optional" });
    eprint!("SKIP {line}");
    if let Some(dir) = file().parent() {
        let _ = std::fs::create_dir_all(dir);
    }
    if let Ok(mut f) = std::fs::OpenOptions::new().create(true).append(true).open(file()) {
        let _ = f.write_all(line.as_bytes());
    }
}
