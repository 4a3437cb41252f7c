//! `softkvm bench`: the time from start to init, softkvm against QEMU's TCG, with the same kernel and initramfs
//! in one run, and the memory that each needs beyond guest RAM.
//!
//! The two take turns, so that a slow minute of the host hits both; medians are compared. `boot` times one
//! start; `qemu` finds or fetches QEMU. `softkvm bench exits` is another measurement: what an exit costs (`exits`).

mod boot;
mod exits;
mod qemu;

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde::Serialize;
use vmm_sys_util::tempdir::TempDir;

use crate::cli::{BenchArgs, BenchVerb};
use crate::demo::initramfs::{self, Init};
use crate::demo::{CMDLINE, cache, marker};
use crate::outcome::{Failure, STATUS_OK};
use crate::report;
use boot::{Boot, Sample};

/// The verb. Returns the exit status.
pub fn bench(args: BenchArgs) -> Result<u8, Failure> {
    if let Some(BenchVerb::Exits(args)) = &args.verb {
        return exits::bench(args);
    }
    let files = cache::debian_guest(false).map_err(Failure::Host)?;
    let qemu = qemu::find(args.qemu.as_deref()).map_err(Failure::Host)?;
    let marker = marker::fresh().map_err(|error| Failure::host("/dev/urandom", error))?;
    let initrd = initramfs::build(&files, None, &Init::Announce { marker: marker.clone() }, false)
        .map_err(|error| Failure::host("building the initramfs", error))?;
    let folder = TempDir::new().map_err(|error| Failure::host("temporary folder", error))?;
    let initrd_path = folder.as_path().join("initrd");
    fs::write(&initrd_path, initrd).map_err(|error| Failure::host("initramfs", error))?;

    let boot = Boot {
        kernel: files.kernel(),
        initrd: initrd_path,
        cmdline: CMDLINE.into(),
        memory: args.memory,
        marker,
        limit: args.timeout,
    };
    let this = std::env::current_exe().map_err(|error| Failure::host("our own program", error))?;
    let mut softkvm = Vec::new();
    let mut tcg = Vec::new();
    for round in 1..=args.rounds {
        let commands =
            [(&mut softkvm, boot.softkvm(Command::new(&this))), (&mut tcg, boot.qemu(qemu.command()))];
        for (samples, command) in commands {
            let program = command.get_program().to_string_lossy().into_owned();
            let sample = boot.time(command).map_err(|why| Failure::Host(format!("{program}: {why}")))?;
            tracing::info!("round {round}: {program}: {:.3} s", sample.seconds);
            samples.push(sample);
        }
    }
    let result = Comparison::new(&qemu.version, args.memory, softkvm, tcg);
    report::print(&result, args.json, Comparison::table)?;
    Ok(STATUS_OK)
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Comparison {
    qemu_version: String,
    memory_mib: u64,
    softkvm: Contender,
    tcg: Contender,
    /// softkvm's median over TCG's.
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Contender {
    seconds: Vec<f64>,
    median_seconds: f64,
    /// The largest of all rounds.
    beyond_ram_mib: f64,
}

impl Contender {
    fn new(samples: Vec<Sample>) -> Contender {
        let seconds: Vec<f64> = samples.iter().map(|sample| sample.seconds).collect();
        let beyond = samples.iter().map(|sample| sample.beyond_ram).max().unwrap_or(0);
        Contender {
            median_seconds: median(&seconds),
            seconds,
            beyond_ram_mib: beyond as f64 / f64::from(1 << 20),
        }
    }

    fn row(&self, name: &str, ratio: f64) -> String {
        let least = self.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.seconds.iter().copied().fold(0.0, f64::max);
        format!(
            "{name:<12} {:>10.2} {:>8.2} {least:>8.2} {most:>8.2} {:>16.1}\n",
            self.median_seconds, ratio, self.beyond_ram_mib
        )
    }
}

impl Comparison {
    fn new(qemu_version: &str, memory: u64, softkvm: Vec<Sample>, tcg: Vec<Sample>) -> Comparison {
        let (softkvm, tcg) = (Contender::new(softkvm), Contender::new(tcg));
        Comparison {
            qemu_version: qemu_version.into(),
            memory_mib: memory >> 20,
            ratio: softkvm.median_seconds / tcg.median_seconds,
            softkvm,
            tcg,
        }
    }

    fn table(&self) -> String {
        let rounds = self.tcg.seconds.len();
        let mut text = format!(
            "From start to init: Debian's cloud kernel, 1 vCPU, {} MiB, {rounds} round(s), in turns.\n\
             TCG is {}. Backend of softkvm: {}.\n\n",
            self.memory_mib,
            self.qemu_version,
            crate::kvm::BACKEND
        );
        text += "              median s    ratio    least     most   beyond RAM MiB\n";
        text += &self.softkvm.row("softkvm", self.ratio);
        text += &self.tcg.row("QEMU TCG", 1.0);
        text
    }
}

/// The middle value, or the mean of the two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => (sorted[count / 2 - 1] + sorted[count / 2]) / 2.0,
    }
}

/// How often /proc is looked at while a boot is watched.
const LOOK: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(seconds: &[f64]) -> Vec<Sample> {
        seconds.iter().map(|seconds| Sample { seconds: *seconds, beyond_ram: 3 << 20 }).collect()
    }

    #[test]
    fn medians_are_compared() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        let result =
            Comparison::new("QEMU 7.2", 512 << 20, samples(&[30.0, 20.0, 400.0]), samples(&[3.0, 5.0, 2.0]));
        assert_eq!(result.ratio, 10.0);
        let table = result.table();
        assert!(table.contains("10.00") && table.contains("QEMU 7.2"), "{table}");
        let json: serde_json::Value = serde_json::to_value(&result).unwrap();
        assert_eq!(json["softkvm"]["median_seconds"], 30.0);
        assert_eq!(json["tcg"]["beyond_ram_mib"], 3.0);
    }
}
