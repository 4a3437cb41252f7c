//! One timed start: a program that boots a guest, until the guest's init prints its marker; then what /proc
//! says of its memory.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::LOOK;

/// What is booted, the same for every contender.
pub struct Boot {
    /// Kernel image.
    pub kernel: PathBuf,
    /// An initramfs whose init prints `marker`.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub cmdline: String,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// What init prints.
    pub marker: String,
    /// When to give up.
    pub limit: Duration,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// From the program's start to init's first words.
    pub seconds: f64,
    /// Peak resident bytes without guest RAM.
    pub beyond_ram: u64,
}

/// A child that does not outlive its guard.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; then both calls fail, and nothing is left to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Boot {
    /// softkvm's own command line.
    pub fn softkvm(&self, mut command: Command) -> Command {
        command.arg("run").arg("--kernel").arg(&self.kernel).arg("--initrd").arg(&self.initrd);
        command.arg("--cmdline").arg(&self.cmdline).arg("--mem").arg(format!("{}M", self.memory >> 20));
        command
    }

    /// QEMU's command line: its default machine and processor without network card and display.
    pub fn qemu(&self, mut command: Command) -> Command {
        command.args(["-accel", "tcg", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        command.arg("-append").arg(&self.cmdline).arg("-m").arg(format!("{}M", self.memory >> 20));
        command
    }

    /// Starts `command` and times it.
    pub fn time(&self, mut command: Command) -> Result<Sample, String> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let mut running = Running(command.spawn().map_err(|error| error.to_string())?);
        let (Some(mut stdout), Some(mut stderr)) = (running.0.stdout.take(), running.0.stderr.take()) else {
            return Err("no pipes".into());
        };
        // Readers of their own, so that a full pipe never stops the guest.
        let (announce, announced) = mpsc::channel();
        let marker = self.marker.clone().into_bytes();
        let console = std::thread::spawn(move || {
            let mut text = Vec::new();
            let mut piece = [0u8; 4096];
            let mut told = false;
            while let Ok(length @ 1..) = stdout.read(&mut piece) {
                let look_from = text.len().saturating_sub(marker.len());
                text.extend_from_slice(&piece[..length]);
                if !told && text[look_from..].windows(marker.len()).any(|window| window == marker) {
                    told = true;
                    let _ = announce.send(Instant::now());
                }
            }
            String::from_utf8_lossy(&text).into_owned()
        });
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let why = loop {
            match announced.recv_timeout(LOOK) {
                Ok(seen) => {
                    let beyond_ram = beyond_ram(running.0.id(), self.memory)?;
                    return Ok(Sample { seconds: (seen - start).as_secs_f64(), beyond_ram });
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break "it ended before the guest's init started",
                Err(mpsc::RecvTimeoutError::Timeout) if start.elapsed() > self.limit => {
                    break "the guest's init did not start in time";
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        };
        drop(running);
        let console = console.join().unwrap_or_default();
        let errors = errors.join().unwrap_or_default();
        let last = |text: &str| {
            text.lines().rev().take(5).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        Err(format!("{why}\n{}\n{}", last(&console), last(&errors)))
    }
}

/// Peak resident size without what is resident of guest RAM.
fn beyond_ram(pid: u32, memory: u64) -> Result<u64, String> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))
    };
    let peak = kib_field(&read("status")?, "VmHWM:").ok_or("no VmHWM in /proc")? << 10;
    Ok(peak.saturating_sub(resident_ram(&read("smaps")?, memory)))
}

/// The value of a "Name:   123 kB" line.
fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// Resident bytes of the mappings that are as large as guest RAM.
fn resident_ram(smaps: &str, memory: u64) -> u64 {
    let mut resident = 0;
    let mut size = 0;
    for line in smaps.lines() {
        if let Some(kib) = kib_field(line, "Size:") {
            size = kib << 10;
        } else if let Some(kib) = kib_field(line, "Rss:")
            && size >= memory
        {
            resident += kib << 10;
        }
    }
    resident
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0020000000 rw-p 00000000 00:00 0
Size:             524288 kB
KernelPageSize:        4 kB
Rss:              100000 kB
7f0030000000-7f0030001000 rw-p 00000000 00:00 0
Size:                  4 kB
Rss:                   4 kB
";

    fn boot(marker: &str, limit: Duration) -> Boot {
        let (kernel, initrd) = ("k".into(), "i".into());
        Boot { kernel, initrd, cmdline: String::new(), memory: 1 << 40, marker: marker.into(), limit }
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn guest_ram_is_not_counted() {
        assert_eq!(resident_ram(SMAPS, 512 << 20), 100_000 << 10);
        assert_eq!(resident_ram(SMAPS, 1 << 30), 0);
        assert_eq!(kib_field("VmHWM:\t  123 kB\n", "VmHWM:"), Some(123));
    }

    #[test]
    fn a_start_is_timed_up_to_its_marker() {
        let boot = boot("mark-1", Duration::from_secs(60));
        let sample = boot.time(shell("echo noise; echo mark-1; read answer")).unwrap();
        assert!(sample.beyond_ram > 0);
        let error = boot.time(shell("echo mark; echo why >&2")).unwrap_err();
        assert!(error.contains("ended before") && error.contains("why"), "{error}");
    }

    #[test]
    fn a_start_that_takes_too_long_is_given_up() {
        let error = boot("mark-2", Duration::from_millis(1)).time(shell("exec sleep 600")).unwrap_err();
        assert!(error.contains("in time"), "{error}");
    }
}
