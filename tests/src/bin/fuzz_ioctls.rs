//! Random sequences of ioctls in process: `fuzz_ioctls --seconds 120 [--seed N]`, or `--cases N`; a failed one again by
//! `--case NUMBER [--steps N] [--threads N]`.
//!
//! The cases run in a child process, so that even a signal leaves a report: the number of the case is in a file that the
//! child writes before each. What a case is, is in `softkvm_tests::ioctl_fuzz`. A failed case is tried again with fewer
//! threads and steps, and the smallest that fails is printed.

use softkvm_tests::ioctl_fuzz::accounting::Holdings;
use softkvm_tests::ioctl_fuzz::{Limits, run};
use softkvm_tests::workspace;
use std::os::unix::fs::FileExt;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest that a case may take; most take tens of milliseconds.
const WATCHDOG: Duration = Duration::from_secs(60);
/// Status of a child whose case hung.
const HUNG: u8 = 3;
/// Cases before memory is counted for the first time: pools and lists have their size then.
const WARM_UP: u64 = 100;
/// Kilobytes by which memory may have grown since.
const GROWTH: u64 = 64 << 10;

#[derive(Clone, Copy, Default)]
struct Arguments {
    seconds: Option<u64>,
    cases: Option<u64>,
    seed: u64,
    case: Option<u64>,
    steps: Option<u64>,
    threads: Option<u64>,
    child: Option<u64>,
}

fn arguments() -> Result<Arguments, String> {
    let mut a = Arguments { seed: 1, ..Arguments::default() };
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
            "--case" => a.case = Some(value),
            "--steps" => a.steps = Some(value),
            "--threads" => a.threads = Some(value),
            "--child" => a.child = Some(value),
            _ => return Err(format!("{word}: not known")),
        }
    }
    Ok(a)
}

fn limits(a: &Arguments) -> Limits {
    Limits {
        steps: a.steps.map_or(usize::MAX, |n| n as usize),
        threads: a.threads.map_or(usize::MAX, |n| n as usize),
    }
}

fn main() -> ExitCode {
    let a = match arguments() {
        Ok(a) => a,
        Err(why) => {
            eprintln!(
                "{why}\nfuzz_ioctls [--seconds N | --cases N] [--seed N] [--case N [--steps N] [--threads N]]"
            );
            return ExitCode::from(2);
        }
    };
    match (a.case, a.child) {
        (Some(case), _) => one(case, limits(&a)),
        (None, Some(first)) => work(&a, first),
        (None, None) => supervise(&a),
    }
}

/// Ends the process if a case hangs.
fn watch(progress: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = progress.load(Ordering::Acquire);
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() > WATCHDOG {
                eprintln!("a case hangs");
                std::process::exit(HUNG.into());
            }
        }
    });
}

fn one(case: u64, limits: Limits) -> ExitCode {
    watch(Arc::default());
    // What the first case makes for good is made.
    let _ = run(0, Limits { steps: 5, threads: 1 });
    let before = Holdings::settled(&Holdings { descriptors: 0, threads: 2, address_space: 0, memory: 0 });
    let ran = run(case, limits);
    let after = Holdings::settled(&before);
    println!("{ran:?}, {before:?}, {after:?}");
    match ran {
        Ok(_) if (before.descriptors, before.threads) == (after.descriptors, after.threads) => {
            ExitCode::SUCCESS
        }
        _ => ExitCode::FAILURE,
    }
}

fn work(a: &Arguments, first: u64) -> ExitCode {
    let progress = Arc::new(AtomicU64::new(0));
    watch(progress.clone());
    let path = std::env::var_os("SOFTKVM_FUZZ_CASE");
    let note = path.and_then(|p| std::fs::OpenOptions::new().write(true).open(p).ok());
    let started = Instant::now();
    let (mut steps, mut n) = (0, first);
    let _ = run(0, Limits { steps: 5, threads: 1 });
    let before = Holdings::now();
    let mut warm: Option<Holdings> = None;
    loop {
        let over = match (a.cases, a.seconds) {
            (Some(limit), _) => n >= limit,
            (None, seconds) => started.elapsed().as_secs() >= seconds.unwrap_or(60),
        };
        if over {
            break;
        }
        let case = a.seed.wrapping_mul(1 << 32).wrapping_add(n);
        if let Some(file) = &note {
            let _ = file.write_all_at(&case.to_le_bytes(), 0);
        }
        match run(case, Limits::default()) {
            Ok(done) => steps += done,
            Err(why) => {
                eprintln!("{why}");
                return ExitCode::FAILURE;
            }
        }
        let after = Holdings::settled(&before);
        if (after.descriptors, after.threads) != (before.descriptors, before.threads) {
            eprintln!("left behind: {before:?}, then {after:?}");
            return ExitCode::FAILURE;
        }
        n += 1;
        progress.fetch_add(1, Ordering::Release);
        if n - first == WARM_UP {
            warm = Some(after);
        }
    }
    let after = Holdings::now();
    if let Some(warm) = warm
        && after.memory > warm.memory + GROWTH
    {
        eprintln!("memory grows: {warm:?} after {WARM_UP} cases, {after:?} after {}", n - first);
        return ExitCode::FAILURE;
    }
    println!("{} cases, {steps} steps, {after:?}", n - first);
    ExitCode::SUCCESS
}

fn child(words: &[String], note: Option<&std::path::Path>) -> (ExitStatus, String, String) {
    let me = std::env::current_exe().expect("a running program has a path");
    let mut command = Command::new(me);
    command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(note) = note {
        command.env("SOFTKVM_FUZZ_CASE", note);
    }
    let out = command.output().expect("this program runs twice");
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (out.status, text(&out.stdout), text(&out.stderr))
}

fn again(case: u64, threads: u64, steps: u64) -> Vec<String> {
    [
        "--case".into(),
        format!("{case:#x}"),
        "--threads".into(),
        threads.to_string(),
        "--steps".into(),
        steps.to_string(),
    ]
    .to_vec()
}

/// The smallest part of a case that still fails, if it fails again at all.
fn shrink(case: u64) -> Option<Vec<String>> {
    // What depends on threads does not fail each time.
    let fails = |threads, steps| {
        let tries = if threads == 1 { 2 } else { 5 };
        (0..tries).any(|_| !child(&again(case, threads, steps), None).0.success())
    };
    let threads = (1..=3).find(|t| fails(*t, 1000))?;
    let (mut good, mut bad) = (0, 200);
    while bad - good > 1 {
        let middle = (good + bad) / 2;
        if fails(threads, middle) { bad = middle } else { good = middle }
    }
    Some(again(case, threads, bad))
}

fn supervise(a: &Arguments) -> ExitCode {
    let note = workspace::root().join(format!("target/fuzz-ioctls-{}.case", std::process::id()));
    std::fs::write(&note, [0; 8]).expect("the target folder can be written");
    let mut words = vec!["--child".to_owned(), "0".into(), "--seed".into(), a.seed.to_string()];
    match a.cases {
        Some(cases) => words.extend(["--cases".into(), cases.to_string()]),
        None => words.extend(["--seconds".into(), a.seconds.unwrap_or(60).to_string()]),
    }
    let (status, out, errors) = child(&words, Some(&note));
    let case = std::fs::read(&note).ok().and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let _ = std::fs::remove_file(&note);
    print!("seed {}: {out}", a.seed);
    if status.success() {
        return ExitCode::SUCCESS;
    }
    println!("FAILED: {status}, case {case:#x}\n{errors}");
    let words = shrink(case).unwrap_or_else(|| {
        println!("it did not fail again when it was tried alone");
        vec!["--case".into(), format!("{case:#x}")]
    });
    println!("again: cargo run --release -p softkvm-tests --bin fuzz_ioctls -- {}", words.join(" "));
    ExitCode::FAILURE
}
