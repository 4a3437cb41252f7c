//! The built program `softkvm`, for tests that drive it from outside.

use crate::workspace;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// Builds the program in the profile of the tests (whose artefacts are there already), and says where it is.
pub fn path() -> Result<&'static PathBuf, &'static String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
            let out = Command::new(cargo)
                .args(["build", "--profile", "test", "-p", "softkvm", "--message-format", "json"])
                .current_dir(workspace::root())
                .stdin(Stdio::null())
                .output()
                .map_err(|e| format!("cargo: {e}"))?;
            let text = String::from_utf8_lossy(&out.stdout);
            text.lines()
                .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
                .filter_map(|v| v["executable"].as_str().map(PathBuf::from))
                .next_back()
                .ok_or_else(|| format!("cargo build: {}", String::from_utf8_lossy(&out.stderr)))
        })
        .as_ref()
}

/// Runs it with these arguments and nothing on its standard input.
pub fn run(arguments: &[&str]) -> Output {
    Command::new(path().expect("softkvm builds"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("softkvm runs")
}
