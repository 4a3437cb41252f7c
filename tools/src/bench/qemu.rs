//! A `qemu-system-x86_64` to compare with: the one named, the host's, or Debian's, unpacked into the cache and
//! run from there without being installed.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmm_sys_util::tempdir::TempDir;

use crate::demo::cache;
use crate::demo::packages::Apt;

const PROGRAM: &str = "qemu-system-x86_64";
/// Where Debian's packages have libraries, QEMU's modules and firmware.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const MODULES: &str = "usr/lib/x86_64-linux-gnu/qemu";
const FIRMWARE: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];

/// A QEMU that answers.
pub struct Qemu {
    program: PathBuf,
    /// The folder that it was unpacked to, if it is not installed.
    unpacked: Option<PathBuf>,
    /// The first line of `--version`.
    pub version: String,
}

/// `named`, or the host's QEMU, or the cache's, or one that is fetched.
pub fn find(named: Option<&Path>) -> Result<Qemu, String> {
    if let Some(program) = named {
        return Qemu::checked(program.into(), None);
    }
    if let Some(program) = in_path(PROGRAM, env::var_os("PATH")) {
        return Qemu::checked(program, None);
    }
    let root = cache::root()?;
    let folder = root.join("qemu");
    let program = folder.join("usr/bin").join(PROGRAM);
    if !program.is_file() {
        let fetched = cache::folder_at_once(&root, &folder, |staging| {
            let scratch = TempDir::new_in(&root).map_err(|error| format!("{}: {error}", root.display()))?;
            let mut apt = Apt::new(&root);
            let packages = apt.fetch(|apt| apt.missing("qemu-system-x86"), scratch.as_path())?;
            tracing::info!("unpacked {packages:?}");
            for piece in ["usr", "lib"] {
                let unpacked = scratch.as_path().join(piece);
                if unpacked.exists() {
                    std::fs::rename(&unpacked, staging.join(piece)).map_err(|error| error.to_string())?;
                }
            }
            Ok(())
        });
        fetched.map_err(|why| format!("no {PROGRAM} in PATH, and none can be fetched: {why}"))?;
    }
    Qemu::checked(program, Some(folder))
}

impl Qemu {
    fn checked(program: PathBuf, unpacked: Option<PathBuf>) -> Result<Qemu, String> {
        let mut qemu = Qemu { program, unpacked, version: String::new() };
        let mut command = qemu.command();
        let output = command.arg("--version").output();
        let output = output.map_err(|error| format!("{}: {error}", qemu.program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let first = text.lines().next().filter(|_| output.status.success());
        let first = first.ok_or_else(|| {
            format!(
                "{} --version: {}",
                qemu.program.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            )
        })?;
        qemu.version = first.into();
        Ok(qemu)
    }

    /// The beginning of a command that runs it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(folder) = &self.unpacked {
            let libraries = LIBRARIES.map(|library| folder.join(library).into_os_string());
            command.env("LD_LIBRARY_PATH", libraries.join(&OsString::from(":")));
            command.env("QEMU_MODULE_DIR", folder.join(MODULES));
            for firmware in FIRMWARE {
                command.arg("-L").arg(folder.join(firmware));
            }
        }
        command
    }
}

/// A program's file in a list of folders.
fn in_path(program: &str, path: Option<OsString>) -> Option<PathBuf> {
    env::split_paths(&path?).map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_path() {
        let folder = TempDir::new().unwrap();
        let path = OsString::from(format!("/nonexistent:{}", folder.as_path().display()));
        assert_eq!(in_path("tool", Some(path.clone())), None);
        std::fs::write(folder.as_path().join("tool"), b"").unwrap();
        assert_eq!(in_path("tool", Some(path)), Some(folder.as_path().join("tool")));
        assert_eq!(in_path("tool", None), None);
    }

    #[test]
    fn what_is_no_qemu_is_refused() {
        assert!(find(Some(Path::new("/nonexistent/qemu"))).is_err());
        assert!(find(Some(Path::new("/bin/false"))).is_err());
    }
}
