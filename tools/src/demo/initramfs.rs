//! The Debian guest's file system: busybox, its names, a few device nodes and /init, as a newc archive.
//!
//! What /init does with it is the shell script in this file.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use cpio::newc::{Builder, ModeFileType, trailer};

use super::cache::GuestFiles;

/// What /init does once the file systems are mounted.
pub enum Init {
    /// A shell on the console.
    Shell,
    /// Commands with their output on the second serial line, errors on the third, the status after a marker.
    Run {
        /// For the shell.
        commands: String,
        /// See `marker`.
        marker: String,
    },
    /// Print a marker on the console and wait: what `bench` measures.
    Announce {
        /// The line that is printed.
        marker: String,
    },
}

/// The modules that the disk needs, in the order of loading.
pub const DISK_MODULES: [&str; 4] = ["virtio_ring", "virtio", "virtio_mmio", "virtio_blk"];

const PROLOGUE: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM="${TERM:-linux}"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
hostname softkvm
for module in virtio_ring virtio virtio_mmio virtio_blk; do
    [ -e /modules/$module.ko ] && insmod /modules/$module.ko
done
"#;

const SHELL: &str = r#"
echo
echo "Debian's kernel $(uname -r) on softkvm, $(nproc) CPU(s), $(free -m | awk '/^Mem/ {print $2}') MiB."
shell=$(command -v bash || echo 'busybox sh')
echo "This is $shell. 'exit' or 'poweroff -f' ends the guest, Ctrl-A x leaves it."
echo
cd /root
setsid cttyhack $shell
sync
poweroff -f
"#;

/// The commands' output goes through pipes, so that programs see no terminal. Whatever they leave running is
/// ended, so that the pipes end; then comes the marker.
const RUN: &str = r#"
stty raw -echo 115200 </dev/ttyS1
stty raw -echo 115200 </dev/ttyS2
mkfifo /tmp/output /tmp/errors
cat /tmp/output >/dev/ttyS1 &
output=$!
cat /tmp/errors >/dev/ttyS2 &
errors=$!
cd /root
sh /commands </dev/null >/tmp/output 2>/tmp/errors
status=$?
for process in /proc/[0-9]*; do
    case ${process#/proc/} in
        1|$output|$errors) ;;
        *) kill -9 ${process#/proc/} 2>/dev/null ;;
    esac
done
wait
printf '%s %d\n' 'MARKER' $status >/dev/ttyS1
sync
poweroff -f
"#;

const ANNOUNCE: &str = r#"#!/bin/sh
echo 'MARKER'
read -r answer
/bin/poweroff -f
"#;

/// Builds the archive: of busybox alone, or of the folder `root` (see `root`).
pub fn build(files: &GuestFiles, root: Option<&Path>, init: &Init, disk: bool) -> io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    match root {
        Some(root) => archive.tree(root, "", &mut BTreeMap::new())?,
        None => archive.busybox_root(files)?,
    }
    archive.node("dev/console", (5, 1))?;
    archive.node("dev/null", (1, 3))?;
    if disk {
        for name in DISK_MODULES {
            let path = files.module(name);
            archive.file(&format!("modules/{name}.ko"), 0o644, &fs::read(&path)?)?;
        }
    }
    let script = match init {
        Init::Shell => format!("{PROLOGUE}{SHELL}"),
        Init::Run { commands, marker } => {
            archive.file("commands", 0o644, commands.as_bytes())?;
            format!("{PROLOGUE}{}", RUN.replace("MARKER", marker))
        }
        Init::Announce { marker } => ANNOUNCE.replace("MARKER", marker),
    };
    archive.file("init", 0o755, script.as_bytes())?;
    archive.finish()
}

/// The names that this busybox answers to. It is a static program for this architecture, so it can say itself.
pub fn applets(busybox: &Path) -> io::Result<Vec<String>> {
    let output = Command::new(busybox).arg("--list").output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{} --list: {}", busybox.display(), output.status)));
    }
    let names = String::from_utf8_lossy(&output.stdout);
    Ok(names
        .lines()
        .map(str::trim)
        .filter(|name| is_file_name(name) && *name != "busybox")
        .map(String::from)
        .collect())
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && name != "." && name != ".."
}

/// A newc archive in the making. Everything belongs to root, and nothing bears a date: the same input gives the
/// same bytes.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn busybox_root(&mut self, files: &GuestFiles) -> io::Result<()> {
        for directory in ["bin", "dev", "modules", "proc", "root", "sys", "tmp", "etc"] {
            self.directory(directory)?;
        }
        self.link("sbin", "bin")?;
        self.file("bin/busybox", 0o755, &fs::read(files.busybox())?)?;
        for applet in applets(&files.busybox())? {
            self.link(&format!("bin/{applet}"), "busybox")?;
        }
        self.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
        self.file("etc/group", 0o644, b"root:x:0:\n")
    }

    /// Everything below `folder`, which is `prefix` in the archive. `linked`: files with several names, by their
    /// inode; the first name brings the contents, the others have none (initramfs' buffer format).
    fn tree(
        &mut self,
        folder: &Path,
        prefix: &str,
        linked: &mut BTreeMap<(u64, u64), u32>,
    ) -> io::Result<()> {
        let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                tracing::warn!("{}: left out, its name is not UTF-8", path.display());
                continue;
            };
            let name = format!("{prefix}{name}");
            let metadata = entry.metadata()?;
            let mode = metadata.permissions().mode() & 0o7777;
            if metadata.is_dir() {
                let builder = Builder::new(&name).ino(self.fresh_inode()).mode(mode).nlink(2);
                self.entry(builder, ModeFileType::Directory, &[])?;
                self.tree(&path, &format!("{name}/"), linked)?;
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path)?;
                self.link(&name, &target.to_string_lossy())?;
            } else if metadata.is_file() {
                let key = (metadata.dev(), metadata.ino());
                let known = linked.get(&key).copied();
                let inode = known.unwrap_or_else(|| self.fresh_inode());
                let contents = if known.is_some() { Vec::new() } else { fs::read(&path)? };
                if metadata.nlink() > 1 {
                    linked.insert(key, inode);
                }
                let nlink = u32::try_from(metadata.nlink()).unwrap_or(u32::MAX);
                let builder = Builder::new(&name).ino(inode).mode(mode).nlink(nlink);
                self.entry(builder, ModeFileType::Regular, &contents)?;
            }
        }
        Ok(())
    }

    fn fresh_inode(&mut self) -> u32 {
        self.entries += 1;
        self.entries
    }

    fn entry(&mut self, builder: Builder, kind: ModeFileType, contents: &[u8]) -> io::Result<()> {
        use io::Write;
        let size = u32::try_from(contents.len()).map_err(io::Error::other)?;
        let builder = builder.set_mode_file_type(kind);
        let mut writer = builder.write(&mut self.bytes, size);
        writer.write_all(contents)?;
        writer.finish()?;
        Ok(())
    }

    fn directory(&mut self, name: &str) -> io::Result<()> {
        let inode = self.fresh_inode();
        self.entry(Builder::new(name).ino(inode).mode(0o755).nlink(2), ModeFileType::Directory, &[])
    }

    fn file(&mut self, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        let inode = self.fresh_inode();
        self.entry(Builder::new(name).ino(inode).mode(mode).nlink(1), ModeFileType::Regular, contents)
    }

    fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        let inode = self.fresh_inode();
        self.entry(
            Builder::new(name).ino(inode).mode(0o777).nlink(1),
            ModeFileType::Symlink,
            target.as_bytes(),
        )
    }

    fn node(&mut self, name: &str, (major, minor): (u32, u32)) -> io::Result<()> {
        let inode = self.fresh_inode();
        let builder = Builder::new(name).ino(inode).mode(0o600).nlink(1).rdev_major(major).rdev_minor(minor);
        self.entry(builder, ModeFileType::Char, &[])
    }

    fn finish(mut self) -> io::Result<Vec<u8>> {
        trailer(&mut self.bytes)?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GNU cpio or busybox' is the independent judge; without one, the crate reads its own.
    #[test]
    fn the_archive_has_what_was_put_in() {
        let mut archive = Archive::default();
        archive.directory("bin").unwrap();
        archive.file("bin/tool", 0o755, b"#!/bin/sh\n").unwrap();
        archive.link("bin/other", "tool").unwrap();
        archive.node("null", (1, 3)).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        loop {
            let reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let entry = reader.entry();
            seen.push((entry.name().to_string(), entry.mode(), entry.rdev_minor(), entry.file_size()));
            rest = reader.finish().unwrap();
        }
        let wanted = [
            ("bin", 0o040755, 0, 0),
            ("bin/tool", 0o100755, 0, 10),
            ("bin/other", 0o120777, 0, 4),
            ("null", 0o020600, 3, 0),
        ];
        assert_eq!(seen, wanted.map(|(name, mode, minor, size)| (name.to_string(), mode, minor, size)));
    }

    #[test]
    fn a_folder_becomes_a_root() {
        let folder = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let root = folder.as_path();
        fs::create_dir(root.join("bin")).unwrap();
        fs::write(root.join("bin/tool"), b"#!").unwrap();
        fs::hard_link(root.join("bin/tool"), root.join("bin/twin")).unwrap();
        std::os::unix::fs::symlink("bin/tool", root.join("link")).unwrap();
        let mut archive = Archive::default();
        archive.tree(root, "", &mut BTreeMap::new()).unwrap();
        let bytes = archive.finish().unwrap();
        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        loop {
            let reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let entry = reader.entry();
            seen.push((entry.name().to_string(), entry.ino(), entry.nlink(), entry.file_size()));
            rest = reader.finish().unwrap();
        }
        let wanted = [("bin", 1, 2, 0), ("bin/tool", 2, 2, 2), ("bin/twin", 2, 2, 0), ("link", 3, 1, 8)];
        assert_eq!(seen, wanted.map(|(name, inode, links, size)| (name.to_string(), inode, links, size)));
    }

    #[test]
    fn the_script_loads_the_disks_modules_in_order() {
        assert!(PROLOGUE.contains(&DISK_MODULES.join(" ")));
    }

    #[test]
    fn names_from_outside_stay_in_their_directory() {
        for (name, good) in [("sh", true), ("[[", true), ("", false), ("..", false), ("a/b", false)] {
            assert_eq!(is_file_name(name), good, "{name:?}");
        }
    }
}
