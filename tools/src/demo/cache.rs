//! The cache folder: what was fetched once is there the next time. A folder appears whole or not at all.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use vmm_sys_util::tempdir::TempDir;

use super::initramfs::DISK_MODULES;
use super::packages::Apt;

/// Files of the Debian guest.
pub struct GuestFiles {
    folder: PathBuf,
}

impl GuestFiles {
    /// The kernel image.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// A static busybox.
    pub fn busybox(&self) -> PathBuf {
        self.folder.join("busybox")
    }

    /// A kernel module that the disk needs.
    pub fn module(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.ko"))
    }

    fn complete(&self) -> bool {
        self.kernel().is_file() && self.busybox().is_file()
    }
}

/// `$XDG_CACHE_HOME/softkvm`, or `~/.cache/softkvm`; made if it is not there.
pub fn root() -> Result<PathBuf, String> {
    let folder =
        root_from(env::var_os("XDG_CACHE_HOME").map(PathBuf::from), env::var_os("HOME").map(PathBuf::from))
            .ok_or("neither XDG_CACHE_HOME nor HOME is set: there is no place for the cache")?;
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

/// The XDG base directory specification: a relative XDG_CACHE_HOME is ignored.
fn root_from(xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    let base = xdg.filter(|path| path.is_absolute()).or_else(|| Some(home?.join(".cache")))?;
    Some(base.join("softkvm"))
}

/// The Debian guest, if it is in the cache.
pub fn cached_guest() -> Option<GuestFiles> {
    Some(GuestFiles { folder: root().ok()?.join("debian-guest") }).filter(GuestFiles::complete)
}

/// The Debian guest from the cache, or fetched into it. The error says why there is none.
pub fn debian_guest(refresh: bool) -> Result<GuestFiles, String> {
    let root = root()?;
    if let (Some(files), false) = (cached_guest(), refresh) {
        return Ok(files);
    }
    let files = GuestFiles { folder: root.join("debian-guest") };
    let fetched = folder_at_once(&root, &files.folder, |staging| {
        let unpacked = TempDir::new_in(&root).map_err(|error| format!("{}: {error}", root.display()))?;
        let packages = Apt::new(&root).fetch(
            |apt| {
                let kernel = apt.dependency("linux-image-cloud-amd64", "linux-image-")?;
                Ok(vec![kernel, "busybox-static".into()])
            },
            unpacked.as_path(),
        )?;
        pick_guest_files(unpacked.as_path(), staging)?;
        write(&staging.join("packages"), (packages.join("\n") + "\n").as_bytes())
    });
    fetched.map_err(|why| format!("the Debian guest is not in the cache and cannot be fetched: {why}"))?;
    Ok(files)
}

/// Makes `folder` with the contents that `fill` puts into a staging folder beside it.
pub fn folder_at_once(
    root: &Path,
    folder: &Path,
    fill: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let staging = TempDir::new_in(root).map_err(|error| format!("{}: {error}", root.display()))?;
    let fresh = staging.as_path().join("fresh");
    fs::create_dir(&fresh).map_err(failed)?;
    fill(&fresh)?;
    if folder.exists() {
        fs::rename(folder, staging.as_path().join("stale")).map_err(failed)?;
    }
    // Another softkvm may have been faster; then its folder is as good.
    match fs::rename(&fresh, folder) {
        Err(error) if !folder.is_dir() => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Copies kernel, busybox and the disk's modules out of unpacked packages.
fn pick_guest_files(unpacked: &Path, into: &Path) -> Result<(), String> {
    let kernel = find(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))
        .ok_or("the kernel package has no /boot/vmlinuz-*")?;
    copy(&kernel, &into.join("vmlinuz"))?;
    let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| unpacked.join(path));
    let busybox = busybox.iter().find(|path| path.is_file()).ok_or("the busybox package has no busybox")?;
    copy(busybox, &into.join("busybox"))?;
    for name in DISK_MODULES {
        let plain = format!("{name}.ko");
        let packed = format!("{name}.ko.xz");
        for modules in ["lib/modules", "usr/lib/modules"] {
            let modules = unpacked.join(modules);
            if let Some(module) = find(&modules, |file| file == plain) {
                copy(&module, &into.join(&plain))?;
            } else if let Some(module) = find(&modules, |file| file == packed) {
                unpack_xz(&module, &into.join(&plain))?;
            }
        }
    }
    Ok(())
}

fn unpack_xz(from: &Path, to: &Path) -> Result<(), String> {
    let output = std::process::Command::new("xz").arg("-dc").arg(from).output();
    match output {
        Ok(output) if output.status.success() => write(to, &output.stdout),
        Ok(output) => Err(format!("xz: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("xz: {error}")),
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map(drop).map_err(|error| format!("{} to {}: {error}", from.display(), to.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// The first file below `folder` whose name is wanted; symbolic links are not followed.
fn find(folder: &Path, wanted: impl Fn(&str) -> bool + Copy) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(folder).ok()?.flatten().collect();
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let kind = entry.file_type().ok()?;
        if kind.is_file() && wanted(&entry.file_name().to_string_lossy()) {
            return Some(entry.path());
        }
        if kind.is_dir()
            && let Some(found) = find(&entry.path(), wanted)
        {
            return Some(found);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_folder_follows_the_xdg_specification() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(root_from(path("/x"), path("/h")), path("/x/softkvm"));
        assert_eq!(root_from(path("relative"), path("/h")), path("/h/.cache/softkvm"));
        assert_eq!(root_from(None, path("/h")), path("/h/.cache/softkvm"));
        assert_eq!(root_from(None, None), None);
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let root = TempDir::new().unwrap();
        let folder = root.as_path().join("guest");
        let failed = folder_at_once(root.as_path(), &folder, |staging| {
            write(&staging.join("half"), b"1")?;
            Err("the network went away".into())
        });
        assert_eq!(failed.unwrap_err(), "the network went away");
        assert!(!folder.exists());
        for version in [b"1", b"2"] {
            folder_at_once(root.as_path(), &folder, |staging| write(&staging.join("file"), version)).unwrap();
            assert_eq!(fs::read(folder.join("file")).unwrap(), version);
        }
        assert_eq!(fs::read_dir(root.as_path()).unwrap().count(), 1, "no staging folder is left");
    }

    #[test]
    fn the_guests_files_are_found_in_unpacked_packages() {
        let unpacked = TempDir::new().unwrap();
        let into = TempDir::new().unwrap();
        let root = unpacked.as_path();
        assert!(pick_guest_files(root, into.as_path()).is_err());
        for folder in ["boot", "bin", "lib/modules/6.1/kernel/drivers/virtio"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("boot/vmlinuz-6.1"), b"kernel").unwrap();
        fs::write(root.join("boot/config-6.1"), b"config").unwrap();
        fs::write(root.join("bin/busybox"), b"busybox").unwrap();
        fs::write(root.join("lib/modules/6.1/kernel/drivers/virtio/virtio_mmio.ko"), b"module").unwrap();
        pick_guest_files(root, into.as_path()).unwrap();
        let files = GuestFiles { folder: into.as_path().into() };
        assert!(files.complete());
        assert_eq!(fs::read(files.kernel()).unwrap(), b"kernel");
        assert_eq!(fs::read(files.module("virtio_mmio")).unwrap(), b"module");
    }
}
