//! A guest's root made of Debian packages: unpacked into one folder with merged /usr, less what no program reads,
//! and with busybox for whatever they lack.
//!
//! The folder is a root for the host too (`unshare -r chroot FOLDER`): the same files run in both places. No
//! maintainer script runs, nothing is installed. Which packages is `closure`'s; `initramfs` makes the archive.

use std::fs::{self, File};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::cache::{self, GuestFiles};
use super::initramfs;
use super::packages::Apt;

/// Merged /usr: these names at the top are links.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// What a root has besides the packages' files.
const FOLDERS: [&str; 10] =
    ["dev", "etc", "modules", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/sbin"];

/// Debian's own shell, in every root. busybox' shell runs its own applets before it looks for a program: with it,
/// `gzip` would not be the package's.
const SHELL: &str = "dash";

/// Read by people and by desktops.
const UNREAD: [&str; 12] = [
    "usr/share/applications",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/gtk-doc",
    "usr/share/icons",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/menu",
    "usr/share/pixmaps",
];

/// The root with these packages from the cache, or fetched into it. The error says why there is none.
pub fn debian_root(files: &GuestFiles, packages: &[String], refresh: bool) -> Result<PathBuf, String> {
    let mut names = packages.to_vec();
    names.sort();
    names.dedup();
    let cache = cache::root()?;
    let folder = cache.join("debian-root").join(names.join("_"));
    let root = folder.join("root");
    if root.is_dir() && !refresh {
        return Ok(root);
    }
    let above = cache.join("debian-root");
    fs::create_dir_all(&above).map_err(|error| format!("{}: {error}", above.display()))?;
    // Who comes while another fetches waits for that one: replacing its folder would take the files from under
    // programs that already run there.
    let lock = File::create(above.join("lock")).map_err(|error| format!("{}: {error}", above.display()))?;
    lock.lock().map_err(|error| format!("{}: {error}", above.display()))?;
    if root.is_dir() && !refresh {
        return Ok(root);
    }
    let fetched = cache::folder_at_once(&above, &folder, |staging| {
        let root = staging.join("root");
        let failed = |error: Error| format!("{}: {error}", root.display());
        fs::create_dir_all(&root).map_err(failed)?;
        let wanted: Vec<String> = names.iter().cloned().chain([SHELL.into()]).collect();
        let fetched = Apt::new(&cache).fetch(|apt| apt.closure(&wanted), &root)?;
        finish(&root, files).map_err(failed)?;
        fs::write(staging.join("packages"), fetched.join("\n") + "\n").map_err(failed)
    });
    fetched.map_err(|why| {
        format!(
            "{}: not in the cache and cannot be fetched: {}. With a network the same command fetches them, once; \
             `apt-cache policy {}` tells whether this Debian release has the names",
            names.join(", "),
            why.trim_end_matches('.'),
            names.join(" ")
        )
    })?;
    Ok(root)
}

/// Moves what packages have in /bin, /sbin and /lib to where it is today, and leaves links there. Not before
/// unpacking: dpkg-deb would put folders in the place of the links.
fn merge_usr(root: &Path) -> Result<(), Error> {
    for name in MERGED {
        let (top, merged) = (root.join(name), root.join("usr").join(name));
        fs::create_dir_all(&merged)?;
        if top.is_dir() {
            merge(&top, &merged)?;
        }
        symlink(format!("usr/{name}"), top)?;
    }
    Ok(())
}

/// Moves what is in `from` into `to`; `from` is gone afterwards.
fn merge(from: &Path, to: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if entry.file_type()?.is_dir() && place.is_dir() {
            merge(&entry.path(), &place)?;
        } else {
            fs::rename(entry.path(), place)?;
        }
    }
    fs::remove_dir(from)
}

/// What the packages' maintainer scripts would have done, as far as programs notice; and busybox.
fn finish(root: &Path, files: &GuestFiles) -> Result<(), Error> {
    for folder in UNREAD {
        match fs::remove_dir_all(root.join(folder)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    merge_usr(root)?;
    for folder in FOLDERS {
        fs::create_dir_all(root.join(folder))?;
    }
    link_alternatives(&root.join("usr/lib/x86_64-linux-gnu"))?;
    for (name, text) in [
        ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("group", "root:x:0:\n"),
        ("hosts", "127.0.0.1 localhost\n"),
    ] {
        if !root.join("etc").join(name).exists() {
            fs::write(root.join("etc").join(name), text)?;
        }
    }
    if root.join("usr/bin/sh").symlink_metadata().is_err() {
        symlink(SHELL, root.join("usr/bin/sh"))?;
    }
    let busybox = root.join("usr/bin/busybox");
    fs::copy(files.busybox(), &busybox)?;
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755))?;
    for applet in initramfs::applets(&files.busybox())? {
        let there = ["usr/bin", "usr/sbin"].map(|folder| root.join(folder).join(&applet));
        if there.iter().all(|path| path.symlink_metadata().is_err()) {
            symlink("busybox", &there[0])?;
        }
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))
}

/// The libraries of which there are several to choose from: update-alternatives would link the chosen one.
fn link_alternatives(libraries: &Path) -> Result<(), Error> {
    for alternative in ["blas", "lapack"] {
        let Ok(entries) = fs::read_dir(libraries.join(alternative)) else { continue };
        for entry in entries.flatten() {
            let place = libraries.join(entry.file_name());
            if entry.file_name().to_string_lossy().contains(".so") && place.symlink_metadata().is_err() {
                symlink(Path::new(alternative).join(entry.file_name()), place)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempdir::TempDir;

    #[test]
    fn a_root_has_merged_usr_and_its_alternatives() {
        let folder = TempDir::new().unwrap();
        let root = folder.as_path();
        for (name, text) in [
            ("lib/x86_64-linux-gnu/libc.so.6", "c"),
            ("usr/lib/x86_64-linux-gnu/blas/libblas.so.3", "blas"),
            ("sbin/ldconfig", "tool"),
        ] {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), text).unwrap();
        }
        merge_usr(root).unwrap();
        link_alternatives(&root.join("usr/lib/x86_64-linux-gnu")).unwrap();
        for name in MERGED {
            assert_eq!(fs::read_link(root.join(name)).unwrap(), Path::new("usr").join(name));
        }
        for (name, text) in [
            ("usr/lib/x86_64-linux-gnu/libc.so.6", "c"),
            ("lib/x86_64-linux-gnu/libblas.so.3", "blas"),
            ("usr/sbin/ldconfig", "tool"),
        ] {
            assert_eq!(fs::read_to_string(root.join(name)).unwrap(), text);
        }
    }
}
