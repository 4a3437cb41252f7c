//! Runs random guests on the interpreter: `fuzz --seconds 120 [--seed N] [--workers 2]`, or `--cases N`; a failed one
//! again by `--case NUMBER`.
//!
//! Each worker is a process, so that even a signal from the host leaves a report: the supervisor reads the
//! number of the case from a file that the worker writes before each. What a case is, is in `softkvm_tests::fuzz`.

use softkvm_tests::fuzz::{BOUND, Fuzzer};
use softkvm_tests::workspace;
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// After this a case is interrupted, as a signal would: a guest may loop in faults and retire nothing.
const PATIENCE: Duration = Duration::from_millis(200);
/// Longest that one case may take; they take milliseconds.
const WATCHDOG: Duration = Duration::from_secs(30);
/// Status of a worker whose case hung.
const HUNG: u8 = 3;

struct Arguments {
    seconds: Option<u64>,
    cases: Option<u64>,
    seed: u64,
    workers: u64,
    worker: Option<u64>,
    case: Option<u64>,
}

fn arguments() -> Result<Arguments, String> {
    let mut a = Arguments { seconds: None, cases: None, seed: 1, workers: 2, worker: None, case: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let text = words.next().ok_or(format!("{word} needs a number"))?;
        let value = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        }
        .map_err(|e| format!("{word} {text}: {e}"))?;
        match word.as_str() {
            "--seconds" => a.seconds = Some(value),
            "--cases" => a.cases = Some(value),
            "--seed" => a.seed = value,
            "--workers" => a.workers = value.clamp(1, 64),
            "--worker" => a.worker = Some(value),
            "--case" => a.case = Some(value),
            _ => return Err(format!("{word}: not known")),
        }
    }
    Ok(a)
}

fn main() -> ExitCode {
    let a = match arguments() {
        Ok(a) => a,
        Err(why) => {
            eprintln!("{why}\nfuzz [--seconds N | --cases N] [--seed N] [--workers N] [--case N]");
            return ExitCode::from(2);
        }
    };
    match (a.case, a.worker) {
        (Some(case), _) => one(case),
        (None, Some(n)) => work(&a, n),
        (None, None) => supervise(&a),
    }
}

/// The number of the `n`th case of a seed.
fn case_number(seed: u64, n: u64) -> u64 {
    seed.wrapping_mul(0x1_0000_0000).wrapping_add(n)
}

fn describe(fuzzer: &Fuzzer, case: u64) -> String {
    let (mode, user, code) = fuzzer.code(case);
    let bytes: Vec<String> =
        code.chunks(16).map(|c| c.iter().map(|b| format!("{b:02x}")).collect::<String>()).collect();
    format!(
        "case {case:#x}: {mode:?}{}, {:?}\n{}\nagain: cargo run --release -p softkvm-tests --bin fuzz -- --case {case:#x}",
        if user { ", level 3" } else { "" },
        fuzzer.setting(case),
        bytes.join("\n")
    )
}

fn one(case: u64) -> ExitCode {
    let mut fuzzer = Fuzzer::new();
    eprintln!("{}", describe(&fuzzer, case));
    let ran = fuzzer.run(case);
    println!("{ran:?}");
    if ran.defect.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn place(worker: u64) -> PathBuf {
    workspace::root().join(format!("target/fuzz-{}-{worker}.case", std::process::id()))
}

fn work(a: &Arguments, worker: u64) -> ExitCode {
    let mut fuzzer = Fuzzer::new();
    let started = Instant::now();
    let current = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let (watched, running) = (current.clone(), fuzzer.running.clone());
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(PATIENCE / 4);
            let begun = watched.1.load(Ordering::Acquire);
            let now = started.elapsed().as_millis() as u64;
            if begun == 0 || now < begun + PATIENCE.as_millis() as u64 {
                continue;
            }
            if let Some(gate) = &*running.lock() {
                gate.request(softmmu::Requests::EXIT);
            }
            if now > begun + WATCHDOG.as_millis() as u64 {
                eprintln!("a case hangs");
                std::process::exit(HUNG.into());
            }
        }
    });
    let path = std::env::var_os("SOFTKVM_FUZZ_CASE").map(PathBuf::from);
    let note = path.and_then(|p| std::fs::OpenOptions::new().write(true).open(p).ok());
    let (mut cases, mut retired) = (0u64, 0u64);
    loop {
        let n = cases * a.workers + worker;
        let over = match (a.cases, a.seconds) {
            (Some(limit), _) => n >= limit,
            (None, seconds) => started.elapsed().as_secs() >= seconds.unwrap_or(60),
        };
        if over {
            break;
        }
        let case = case_number(a.seed, n);
        if let Some(file) = &note {
            let _ = file.write_all_at(&case.to_le_bytes(), 0);
        }
        current.0.store(case, Ordering::Release);
        current.1.store(started.elapsed().as_millis() as u64 + 1, Ordering::Release);
        let ran = fuzzer.run(case);
        if let Some(defect) = ran.defect {
            eprintln!("{defect}");
            return ExitCode::FAILURE;
        }
        cases += 1;
        retired += ran.retired;
    }
    let reached: Vec<usize> =
        fuzzer.handlers.all.iter().enumerate().filter(|(_, h)| h.reached).map(|(n, _)| n).collect();
    println!("{}", serde_json::json!({ "cases": cases, "retired": retired, "reached": reached }));
    ExitCode::SUCCESS
}

fn supervise(a: &Arguments) -> ExitCode {
    let fuzzer = Fuzzer::new();
    let me = std::env::current_exe().expect("a running program has a path");
    let workers: Vec<_> = (0..a.workers)
        .map(|n| {
            let mut command = Command::new(&me);
            command.args(["--worker", &n.to_string(), "--seed", &a.seed.to_string()]);
            command.args(["--workers", &a.workers.to_string()]);
            match a.cases {
                Some(cases) => command.args(["--cases", &cases.to_string()]),
                None => command.args(["--seconds", &a.seconds.unwrap_or(60).to_string()]),
            };
            let note = place(n);
            std::fs::write(&note, [0; 8]).expect("the target folder can be written");
            command.env("SOFTKVM_FUZZ_CASE", &note).stdout(Stdio::piped());
            (command.spawn().expect("this program runs twice"), note)
        })
        .collect();
    let (mut cases, mut retired, mut failed) = (0, 0, false);
    let mut reached = BTreeSet::new();
    for (child, note) in workers {
        let out = child.wait_with_output().expect("a child can be waited for");
        let case = std::fs::read(&note).ok().and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let _ = std::fs::remove_file(&note);
        if !out.status.success() {
            failed = true;
            println!("FAILED: {}: {}", out.status, describe(&fuzzer, case));
            continue;
        }
        let text = String::from_utf8_lossy(&out.stdout);
        let Some(v) = text.lines().last().and_then(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        else {
            failed = true;
            println!("FAILED: a worker said nothing");
            continue;
        };
        cases += v["cases"].as_u64().unwrap_or(0);
        retired += v["retired"].as_u64().unwrap_or(0);
        reached.extend(v["reached"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_u64));
    }
    let all = fuzzer.handlers.all.len();
    let unreached: Vec<String> = fuzzer
        .handlers
        .all
        .iter()
        .enumerate()
        .filter(|(n, _)| !reached.contains(&(*n as u64)))
        .map(|(_, h)| h.codes.first().map_or_else(|| "?".into(), |(c, m)| format!("{c:?}/{}", m.bitness())))
        .collect();
    println!(
        "{cases} cases, seed {}, bound {BOUND}: {} of {all} handlers reached ({:.1} %), {:.1} instructions a case",
        a.seed,
        reached.len(),
        100.0 * reached.len() as f64 / all.max(1) as f64,
        retired as f64 / cases.max(1) as f64
    );
    if !unreached.is_empty() {
        println!("not reached: {}", unreached.join(" "));
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
