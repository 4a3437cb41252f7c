//! `softkvm bench exits`: what an exit costs. Round trips in a second of port accesses, MMIO, HLT, CPUID, and from an
//! interrupt to a halted guest's next exit; in process, in a program under `softkvm exec`, and on the host's `/dev/kvm`.
//!
//! All three take turns, and medians are compared. The program under `exec` is this one, with the crate `kvm-ioctls` and a
//! hidden option; `guest` has what is measured.

mod guest;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bench::median;
use crate::cli::BenchExitsArgs;
use crate::outcome::{Failure, STATUS_OK};
use crate::report;

/// What makes the guest exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// OUT to a port of user space.
    Pio,
    /// A store to memory that is in no slot.
    Mmio,
    /// HLT without interrupt controllers in the kernel.
    Hlt,
    /// CPUID, which ends in user space only every [`guest::CPUIDS`] times.
    Cpuid,
    /// From KVM_IRQ_LINE in one thread to the return of KVM_RUN in another, whose guest was halted.
    Wake,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] = [Kind::Pio, Kind::Mmio, Kind::Hlt, Kind::Cpuid, Kind::Wake];

    fn name(self) -> &'static str {
        match self {
            Kind::Pio => "PIO",
            Kind::Mmio => "MMIO",
            Kind::Hlt => "HLT",
            Kind::Cpuid => "CPUID",
            Kind::Wake => "wake from HLT",
        }
    }
}

type Rates = BTreeMap<Kind, f64>;

/// The verb.
pub fn bench(args: &BenchExitsArgs) -> Result<u8, Failure> {
    let long = Duration::from_millis(args.milliseconds);
    if args.client {
        report::print(&rates(guest::dev_kvm::measure, long).map_err(Failure::Host)?, true, |_| {
            String::new()
        })?;
        return Ok(STATUS_OK);
    }
    let this = std::env::current_exe().map_err(|error| Failure::host("our own program", error))?;
    // Under `exec` or as it is, this program again: which KVM it finds is not its choice.
    let client = |under_exec: bool| {
        let mut command = Command::new(&this);
        if under_exec {
            command.args(["exec", "--"]).arg(&this);
        }
        command.args(["bench", "exits", "--client", "--milliseconds"]);
        command.arg(args.milliseconds.to_string()).stdin(Stdio::null());
        command
    };
    let (mut under_exec, mut host) = (client(true), client(false));
    let mut result = Exits { milliseconds: args.milliseconds, ..Exits::default() };
    for round in 1..=args.rounds {
        let in_process = rates(guest::in_process::measure, long).map_err(Failure::Host)?;
        result.in_process.push(in_process);
        result.exec.push(measured(&mut under_exec).map_err(Failure::Host)?);
        match measured(&mut host) {
            Ok(rates) => result.host.push(rates),
            Err(why) => result.no_host = Some(why),
        }
        tracing::info!("round {round} of {}", args.rounds);
    }
    report::print(&Summary::new(&result), args.json, Summary::table)?;
    Ok(STATUS_OK)
}

fn rates(measure: fn(Kind, Duration) -> Result<f64, String>, long: Duration) -> Result<Rates, String> {
    Kind::ALL.into_iter().map(|kind| Ok((kind, measure(kind, long)?))).collect()
}

/// What a client of our own says.
fn measured(client: &mut Command) -> Result<Rates, String> {
    let out = client.output().map_err(|error| error.to_string())?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).trim().to_string());
    }
    serde_json::from_slice(&out.stdout).map_err(|error| error.to_string())
}

/// Everything that was measured, a map a round.
#[derive(Debug, Default)]
struct Exits {
    milliseconds: u64,
    in_process: Vec<Rates>,
    exec: Vec<Rates>,
    host: Vec<Rates>,
    no_host: Option<String>,
}

/// Medians.
#[derive(Debug, Serialize)]
struct Summary {
    rounds: usize,
    milliseconds: u64,
    /// Why there is no `host`.
    no_host: Option<String>,
    rows: Vec<Row>,
}

/// Round trips in a second.
#[derive(Debug, Serialize)]
struct Row {
    exit: Kind,
    in_process: f64,
    exec: f64,
    host: Option<f64>,
    /// `exec` over `host`.
    ratio: Option<f64>,
}

impl Summary {
    fn new(all: &Exits) -> Summary {
        let of = |rounds: &[Rates], kind: Kind| {
            median(&rounds.iter().filter_map(|r| r.get(&kind).copied()).collect::<Vec<f64>>())
        };
        let rows = Kind::ALL
            .into_iter()
            .map(|exit| {
                let exec = of(&all.exec, exit);
                let host = (!all.host.is_empty()).then(|| of(&all.host, exit));
                Row { exit, in_process: of(&all.in_process, exit), exec, host, ratio: host.map(|h| exec / h) }
            })
            .collect();
        Summary { rounds: all.exec.len(), milliseconds: all.milliseconds, no_host: all.no_host.clone(), rows }
    }

    fn table(&self) -> String {
        let mut text = format!(
            "Round trips in a second: medians of {} round(s) of {} ms each, in turns.\n\n\
             {:<14} {:>12} {:>9} {:>12} {:>9} {:>12} {:>9} {:>7}\n",
            self.rounds, self.milliseconds, "", "in process", "us", "exec", "us", "host", "us", "ratio"
        );
        let number = |v: Option<f64>| match v {
            Some(v) => (format!("{v:.0}"), format!("{:.3}", 1e6 / v)),
            None => ("-".into(), "-".into()),
        };
        for row in &self.rows {
            let (p, e, h) = (number(Some(row.in_process)), number(Some(row.exec)), number(row.host));
            let ratio = row.ratio.map_or("-".into(), |r| format!("{r:.2}"));
            text += &format!(
                "{:<14} {:>12} {:>9} {:>12} {:>9} {:>12} {:>9} {:>7}\n",
                row.exit.name(),
                p.0,
                p.1,
                e.0,
                e.1,
                h.0,
                h.1,
                ratio
            );
        }
        if let Some(why) = &self.no_host {
            text += &format!("\nNo host's KVM: {why}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        let round = |rate: f64| Kind::ALL.into_iter().map(|k| (k, rate)).collect::<Rates>();
        let mut all = Exits {
            milliseconds: 7,
            in_process: vec![round(1e6)],
            exec: [10.0, 500_000.0, 1e9].map(round).to_vec(),
            host: vec![round(1e6)],
            no_host: None,
        };
        let summary = Summary::new(&all);
        assert_eq!(summary.rows[0].exec, 500_000.0);
        assert_eq!(summary.rows[0].ratio, Some(0.5));
        let table = summary.table();
        assert!(table.contains("500000     2.000") && table.contains("0.50"), "{table}");
        all.host.clear();
        all.no_host = Some("no such file".into());
        let summary = Summary::new(&all);
        assert_eq!(summary.rows[0].ratio, None);
        assert!(summary.table().contains("No host's KVM: no such file"));
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(
            (json["rows"][0]["exit"].as_str(), json["rows"][4]["exit"].as_str()),
            (Some("pio"), Some("wake"))
        );
    }

    #[test]
    fn a_clients_word_is_read() {
        let mut echo = Command::new("echo");
        echo.arg(r#"{"pio":2.5,"wake":1}"#);
        let rates = measured(&mut echo).unwrap();
        assert_eq!((rates[&Kind::Pio], rates[&Kind::Wake]), (2.5, 1.0));
        assert!(measured(&mut Command::new("false")).is_err());
    }
}
