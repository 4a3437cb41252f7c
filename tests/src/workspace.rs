//! The workspace as files and dependencies, for the tests that keep the house in order.

use std::path::{Path, PathBuf};

/// The top folder.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Every Rust source file of the workspace, with its path from the top.
pub fn sources() -> Vec<(String, String)> {
    fn visit(dir: &Path, top: &Path, out: &mut Vec<(String, String)>) {
        let Ok(entries) = std::fs::read_dir(dir) else { return };
        for e in entries.flatten() {
            let path = e.path();
            let name = e.file_name();
            if path.is_dir() {
                if name != "target" && !name.to_string_lossy().starts_with('.') {
                    visit(&path, top, out);
                }
            } else if path.extension().is_some_and(|x| x == "rs")
                && let Ok(text) = std::fs::read_to_string(&path)
            {
                let rel = path.strip_prefix(top).unwrap_or(&path).to_string_lossy().into_owned();
                out.push((rel, text));
            }
        }
    }
    let mut out = Vec::new();
    let top = root();
    visit(&top, &top, &mut out);
    out.sort();
    out
}

/// `cargo metadata`, parsed.
pub fn metadata() -> serde_json::Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let out = std::process::Command::new(cargo)
        .args(["metadata", "--format-version=1", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs: it runs this test");
    serde_json::from_slice(&out.stdout).expect("cargo metadata prints JSON")
}
