//! Debian packages, fetched with the distribution's own tools and unpacked without installing: apt-cache,
//! apt-get download, dpkg-deb.
//!
//! The host's package lists serve if they are there. If they are missing or too old, private ones are fetched
//! into the cache folder, which needs no privilege. Where the files end up is `cache`'s business.

use std::fs;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::closure;

/// apt for one fetch.
pub struct Apt {
    /// Where private lists are kept.
    folder: PathBuf,
    private_lists: bool,
}

impl Apt {
    /// apt with the host's lists, or private ones below `folder` once they are needed.
    pub fn new(folder: &Path) -> Apt {
        Apt { folder: folder.join("apt"), private_lists: false }
    }

    /// Resolves package names with `resolve`, downloads what it says and unpacks all of it into `into`. When
    /// that fails with the host's lists, tries once more with fresh private ones. Returns the packages' files'
    /// names, which tell the versions.
    pub fn fetch(
        &mut self,
        resolve: impl Fn(&Apt) -> Result<Vec<String>, String>,
        into: &Path,
    ) -> Result<Vec<String>, String> {
        let first = self.try_fetch(&resolve, into);
        let why = match first {
            Ok(files) => return Ok(files),
            Err(why) => why,
        };
        tracing::info!("with the host's package lists: {why}");
        self.update().map_err(|update| format!("{why}; {update}"))?;
        self.try_fetch(&resolve, into)
    }

    fn try_fetch(
        &self,
        resolve: &impl Fn(&Apt) -> Result<Vec<String>, String>,
        into: &Path,
    ) -> Result<Vec<String>, String> {
        let packages = resolve(self)?;
        let downloads = into.join("downloads");
        fs::create_dir_all(&downloads).map_err(|error| format!("{}: {error}", downloads.display()))?;
        self.download(&packages, &downloads)?;
        let mut files = Vec::new();
        let entries =
            fs::read_dir(&downloads).map_err(|error| format!("{}: {error}", downloads.display()))?;
        let mut progress = Progress::new();
        for entry in entries.flatten() {
            progress.show(&format!("unpacking, {} of {}", files.len() + 1, packages.len()));
            let path = entry.path();
            let mut unpack = Command::new("dpkg-deb");
            run(unpack.arg("-x").arg(&path).arg(into))?;
            files.push(entry.file_name().to_string_lossy().into_owned());
        }
        progress.end();
        fs::remove_dir_all(&downloads).map_err(|error| format!("{}: {error}", downloads.display()))?;
        files.sort();
        Ok(files)
    }

    /// Fetches private package lists.
    fn update(&mut self) -> Result<(), String> {
        for directory in ["lists/partial", "cache/archives/partial"] {
            let path = self.folder.join(directory);
            fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        self.private_lists = true;
        eprintln!("softkvm: fetching package lists");
        run(self.apt("apt-get").arg("update").arg("--error-on=any")).map(drop)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command.args(["-q", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20"]);
        // The download folder belongs to the user who runs this, so no other user may fetch into it.
        command.args(["-o", "APT::Sandbox::User=root"]);
        if self.private_lists {
            command.arg("-o").arg(format!("Dir::State::Lists={}", self.folder.join("lists").display()));
            command.arg("-o").arg(format!("Dir::Cache={}", self.folder.join("cache").display()));
        }
        command
    }

    /// The package that a meta package stands for: its first dependency with the given prefix.
    pub fn dependency(&self, meta: &str, prefix: &str) -> Result<String, String> {
        let output = run(self.apt("apt-cache").args(["depends", meta]))?;
        let text = String::from_utf8_lossy(&output.stdout);
        first_dependency(&text, prefix).ok_or_else(|| format!("no package {meta} in the package lists"))
    }

    /// `package` and what it needs that this host has not installed.
    pub fn missing(&self, package: &str) -> Result<Vec<String>, String> {
        let mut command = self.apt("apt-get");
        command.args(["-s", "--no-install-recommends", "-o", "Debug::NoLocking=1", "install", package]);
        let output = run(&mut command)?;
        let packages = would_install(&String::from_utf8_lossy(&output.stdout));
        if packages.is_empty() {
            Err(format!("apt would install nothing for {package}"))
        } else {
            Ok(packages)
        }
    }

    /// `names` and all that they depend on, on a system where nothing is installed: see `closure`.
    pub fn closure(&self, names: &[String]) -> Result<Vec<String>, String> {
        const EMPTY: [&str; 2] = ["-o", "Dir::State::status=/dev/null"];
        let mut install = self.apt("apt-get");
        install.args(EMPTY).args(["-s", "--no-install-recommends", "-o", "Debug::NoLocking=1", "install"]);
        let output = run(install.args(names))?;
        let packages = would_install(&String::from_utf8_lossy(&output.stdout));
        let mut show = self.apt("apt-cache");
        let output = run(show.args(EMPTY).args(["--no-all-versions", "show"]).args(packages))?;
        Ok(closure::without_drivers(names, &String::from_utf8_lossy(&output.stdout)))
    }

    /// Downloads packages into `into`, with a progress line if somebody watches.
    fn download(&self, packages: &[String], into: &Path) -> Result<(), String> {
        let what =
            if packages.len() <= 3 { packages.join(", ") } else { format!("{} packages", packages.len()) };
        let mut progress = Progress::new();
        if !progress.watched {
            eprintln!("softkvm: fetching {what}");
        }
        let mut command = self.apt("apt-get");
        command.arg("download").args(packages).current_dir(into).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| cannot_start(&command, &error))?;
        loop {
            match child.try_wait().map_err(|error| error.to_string())? {
                Some(_) => break,
                None => progress.show(&format!("fetching {what}: {:.1} MB", folder_size(into) as f64 / 1e6)),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        progress.end();
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        succeeded(&command, output).map(drop)
    }
}

/// A line on the terminal that tells how far it is, once it takes longer than two seconds.
struct Progress {
    watched: bool,
    start: Instant,
    shown: bool,
}

impl Progress {
    fn new() -> Progress {
        Progress { watched: std::io::stderr().is_terminal(), start: Instant::now(), shown: false }
    }

    fn show(&mut self, text: &str) {
        if self.watched && self.start.elapsed() > Duration::from_secs(2) {
            self.shown = true;
            eprint!("\r\x1b[Ksoftkvm: {text}");
            let _ = std::io::stderr().flush();
        }
    }

    fn end(self) {
        if self.shown {
            eprintln!();
        }
    }
}

fn folder_size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| cannot_start(command, &error))?;
    succeeded(command, output)
}

fn cannot_start(command: &Command, error: &std::io::Error) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    match error.kind() {
        ErrorKind::NotFound => {
            format!("this host has no {program} (the demo's guest comes from Debian's packages)")
        }
        _ => format!("{program}: {error}"),
    }
}

/// The output of a command that succeeded, or its last error line.
fn succeeded(command: &Command, output: Output) -> Result<Output, String> {
    if output.status.success() {
        return Ok(output);
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text
        .lines()
        .rev()
        .find(|line| line.starts_with("E:"))
        .or(text.lines().last())
        .unwrap_or("no message");
    Err(format!("{}: {line}", command.get_program().to_string_lossy()))
}

fn first_dependency(depends: &str, prefix: &str) -> Option<String> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix))
        .map(str::to_string)
}

fn would_install(simulation: &str) -> Vec<String> {
    let names = simulation.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    names.map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_prints_is_understood() {
        let depends =
            "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-44-cloud-amd64\n  Conflicts: x\n";
        let found = first_dependency(depends, "linux-image-");
        assert_eq!(found.as_deref(), Some("linux-image-6.1.0-44-cloud-amd64"));
        assert_eq!(first_dependency("", "linux-image-"), None);
        let simulation =
            "Reading...\nInst libaio1 (0.3 Debian:12 [amd64])\nInst qemu-system-x86 (1:7.2)\nConf libaio1\n";
        assert_eq!(would_install(simulation), ["libaio1", "qemu-system-x86"]);
    }

    #[test]
    fn a_missing_tool_is_named() {
        let error = run(&mut Command::new("softkvm-no-such-tool")).unwrap_err();
        assert!(error.contains("has no softkvm-no-such-tool"), "{error}");
        let error = run(Command::new("sh").args(["-c", "echo E: first >&2; echo W: last >&2; exit 100"]))
            .unwrap_err();
        assert_eq!(error, "sh: E: first");
    }
}
