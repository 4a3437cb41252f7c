//! The crate `kvm-ioctls`' own tests, unchanged, under `softkvm exec`.
//!
//! Its source is copied to the target folder, where cargo builds its tests; then each runs on the software processor.
//! The table is in docs/kvm-ioctls.md.

use softkvm_tests::program;
use softkvm_tests::skip::skip;
use softkvm_tests::workspace::{metadata, root};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TEST: &str = "kvm_ioctls";
/// Fewer would mean that something was not built.
const AT_LEAST: usize = 65;

/// Where cargo has the source.
fn source() -> Option<PathBuf> {
    let meta = metadata();
    let packages = meta["packages"].as_array()?;
    let package = packages.iter().find(|p| p["name"] == "kvm-ioctls")?;
    Some(Path::new(package["manifest_path"].as_str()?).parent()?.to_path_buf())
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Builds its tests; `Err` says why that is not possible here.
fn build() -> Result<(PathBuf, PathBuf), String> {
    let from = source().ok_or("cargo does not know the crate's source")?;
    let place = root().join("target/kvm-ioctls");
    let copied = place.join("source");
    let _ = std::fs::remove_dir_all(&copied);
    copy(&from, &copied).map_err(|e| e.to_string())?;
    // A workspace of its own, although it lies in ours.
    let manifest = copied.join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest).map_err(|e| e.to_string())?;
    std::fs::write(&manifest, format!("{text}\n[workspace]\n")).map_err(|e| e.to_string())?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut last = String::new();
    // Without the network first: what it needs is usually there.
    for offline in [&["--offline"][..], &[]] {
        let out = Command::new(&cargo)
            .args(["test", "--lib", "--no-run", "--message-format", "json"])
            .args(offline)
            .current_dir(&copied)
            .env("CARGO_TARGET_DIR", place.join("build"))
            .env_remove("RUSTFLAGS")
            .stdin(Stdio::null())
            .output()
            .map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&out.stdout);
        let built = text
            .lines()
            .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
            .filter_map(|v| v["executable"].as_str().map(PathBuf::from))
            .next_back();
        match built {
            Some(program) => return Ok((program, copied)),
            None => last = String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }
    Err(last)
}

#[test]
fn every_test_of_the_crate_passes() {
    let (program, folder) = match build() {
        Ok(built) => built,
        Err(why) => return skip(TEST, true, &format!("its tests do not build: {why}")),
    };
    let softkvm = program::path().expect("softkvm builds");
    let out = Command::new("timeout")
        .arg("120")
        .arg(softkvm)
        .args(["exec", "--"])
        .arg(&program)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("timeout runs");
    let said = String::from_utf8_lossy(&out.stdout);
    let ok = said.lines().filter(|l| l.ends_with("... ok")).count();
    assert!(out.status.success(), "{}\n{said}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    assert!(ok >= AT_LEAST, "only {ok} passed:\n{said}");
    // What the crate itself leaves out needs AMD's memory encryption.
    let ignored: Vec<&str> = said.lines().filter(|l| l.ends_with("... ignored")).collect();
    assert!(ignored.iter().all(|l| l.contains("sev") || l.contains("enc_memory")), "{ignored:?}");
}
