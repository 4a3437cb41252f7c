//! `softkvm run`: boot a kernel with the serial console on the terminal. `demo` starts its guests here too.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::cli::{GuestArgs, RunArgs};
use crate::devices::serial::Sink;
use crate::machine::boot::KernelImage;
use crate::machine::{Machine, MachineConfig, MachineReport, Payload};
use crate::outcome::Failure;
use crate::terminal::{self, InputEnd, RawTerminal};

/// The verb. Returns the exit status.
pub fn run(args: RunArgs) -> Result<u8, Failure> {
    let payload = linux(&args.kernel, args.initrd.as_deref(), args.cmdline)?;
    let report = on_terminal(payload, &args.guest, InputEnd::Silence)?;
    Ok(conclude(&report, &args.guest))
}

/// Reads a kernel and an initrd.
pub fn linux(kernel: &Path, initrd: Option<&Path>, cmdline: String) -> Result<Payload, Failure> {
    let kernel = KernelImage::parse(read(kernel, "--kernel")?, &kernel.display().to_string())?;
    let initrd = initrd.map(|path| read(path, "--initrd")).transpose()?;
    Ok(Payload::Linux { kernel, initrd, cmdline })
}

fn read(path: &Path, option: &str) -> Result<Vec<u8>, Failure> {
    /// No kernel or initrd below 4 GiB is larger; a device that never ends is not read for ever.
    const LARGEST: u64 = 2 << 30;
    let refuse = |why: String| Failure::BadInput(format!("{option} {}: {why}", path.display()));
    let metadata = fs::metadata(path).map_err(|error| refuse(error.to_string()))?;
    if !metadata.is_file() {
        return Err(refuse("not a file".into()));
    }
    if metadata.len() > LARGEST {
        return Err(refuse(format!("{} bytes is too large", metadata.len())));
    }
    fs::read(path).map_err(|error| refuse(error.to_string()))
}

/// Runs a guest with its first serial line on the terminal.
pub fn on_terminal(payload: Payload, guest: &GuestArgs, end: InputEnd) -> Result<MachineReport, Failure> {
    let console: Sink = Box::new(std::io::stdout());
    let machine = Machine::new(MachineConfig {
        memory: guest.memory_size(),
        cpus: guest.cpus,
        clock: guest.engine_clock,
        disk: guest.disk.clone(),
        payload,
        serial: [Some(console), None, None],
    })?;
    let raw = RawTerminal::enter().map_err(|error| Failure::host("terminal", error))?;
    terminal::forward_stdin(machine.handle(), raw.is_some(), end)
        .map_err(|error| Failure::host("console", error))?;
    let report = machine.run(guest.timeout);
    drop(raw);
    report
}

/// Tells the user how a guest ended, with counters if wanted. Returns the exit status.
pub fn conclude(report: &MachineReport, guest: &GuestArgs) -> u8 {
    let mut stderr = std::io::stderr().lock();
    // A closed stderr changes nothing about the end.
    if let Some(message) = report.outcome.message() {
        let _ = writeln!(stderr, "\nsoftkvm: {message}");
    }
    if guest.stats {
        let _ = write!(stderr, "{}", statistics(report));
    }
    if guest.json {
        let _ = writeln!(stderr, "{}", json(report));
    }
    report.outcome.status()
}

#[derive(Serialize)]
struct JsonReport<'a> {
    outcome: &'static str,
    status: u8,
    message: Option<String>,
    seconds: f64,
    exits: &'a BTreeMap<&'static str, u64>,
    counters: &'a BTreeMap<String, u64>,
}

fn json(report: &MachineReport) -> String {
    let json = JsonReport {
        outcome: report.outcome.word(),
        status: report.outcome.status(),
        message: report.outcome.message(),
        seconds: report.elapsed.as_secs_f64(),
        exits: &report.exits,
        counters: &report.counters,
    };
    serde_json::to_string(&json).expect("strings and numbers are JSON")
}

fn statistics(report: &MachineReport) -> String {
    let seconds = report.elapsed.as_secs_f64();
    let mut text = format!("\nsoftkvm: {} after {seconds:.3} s\n", report.outcome.word());
    let mut row = |name: &str, value: String| text.push_str(&format!("  {name:<32} {value:>16}\n"));
    for (kind, count) in &report.exits {
        row(&format!("exits: {kind}"), count.to_string());
    }
    for (name, count) in &report.counters {
        row(name, count.to_string());
    }
    if let Some(instructions) = report.counters.get("instructions") {
        row("MIPS", format!("{:.1}", *instructions as f64 / seconds / 1e6));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;
    use std::time::Duration;

    fn report() -> MachineReport {
        MachineReport {
            outcome: Outcome::PowerOff,
            elapsed: Duration::from_secs(2),
            exits: BTreeMap::from([("io out", 7)]),
            counters: BTreeMap::from([("instructions".to_string(), 50_000_000)]),
        }
    }

    #[test]
    fn statistics_derive_mips() {
        let text = statistics(&report());
        assert!(text.contains("MIPS") && text.contains("25.0"), "{text}");
        assert!(text.contains("exits: io out"), "{text}");
    }

    #[test]
    fn the_json_report_is_json() {
        let value: serde_json::Value = serde_json::from_str(&json(&report())).unwrap();
        assert_eq!(value["outcome"], "power-off");
        assert_eq!(value["exits"]["io out"], 7);
        assert_eq!(value["status"], 0);
    }
}
