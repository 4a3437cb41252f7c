//! `softkvm diff insn`: single instructions on softkvm's processor against the host's own.
//!
//! The work is the crate `insn-diff`'s; here are the options, the progress line, and what is printed.

mod summary;

use std::io::{IsTerminal, Write};
use std::path::Path;

use insn_diff::run::{self, Key, Pair, Plan, Progress, Report, RunError, Verdict};
use insn_diff::{Bits, Case, corpus, text};

use crate::cli::{DiffArgs, DiffInsnArgs, DiffVerb, InsnBits};
use crate::outcome::{Failure, STATUS_MISMATCH, STATUS_OK};
use crate::report;
use summary::{CaseResult, Summary};

/// The verb. Returns the exit status.
pub fn diff(args: DiffArgs) -> Result<u8, Failure> {
    match args.verb {
        DiffVerb::Insn(args) => insn(args),
    }
}

fn insn(args: DiffInsnArgs) -> Result<u8, Failure> {
    if let Some(words) = &args.case {
        let case = text::parse(words).map_err(|error| Failure::BadInput(format!("--case: {error}")))?;
        return given(&[("--case".into(), case)], args.json);
    }
    if let Some(folder) = &args.corpus {
        return given(&load(folder)?, args.json);
    }
    let plan = plan(&args);
    let watched = std::io::stderr().is_terminal();
    let mut line = Line { watched, drawn: false };
    let result = run::run(&plan, &mut |progress| {
        line.draw(&progress);
        true
    });
    line.clear();
    let result = result.map_err(failure)?;
    if let Some(folder) = &args.save {
        save(folder, &result)?;
    }
    report::print(&Summary::new(&result, plan.seed), args.json, |s| s.table(args.missing))?;
    if result.executed == 0 {
        return Err(Failure::BadInput(
            "--filter: no instruction of this host has such a name or extension".into(),
        ));
    }
    Ok(if result.mismatches() == 0 { STATUS_OK } else { STATUS_MISMATCH })
}

fn plan(args: &DiffInsnArgs) -> Plan {
    let mut plan = Plan {
        bits: match args.bits {
            InsnBits::Both => vec![Bits::Bits64, Bits::Bits32],
            InsnBits::Only64 => vec![Bits::Bits64],
            InsnBits::Only32 => vec![Bits::Bits32],
        },
        filter: args.filter.clone(),
        seed: args.seed.unwrap_or_else(fresh_seed),
        time: args.rounds.is_none().then_some(args.seconds),
        rounds: args.rounds,
        failures: args.failures,
        ..Plan::default()
    };
    if let Some(jobs) = args.jobs {
        plan.jobs = jobs as usize;
    }
    plan
}

fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // Short enough to be typed again.
    now.map_or(1, |t| t.as_nanos() as u64 / 1000 % 1_000_000_000)
}

fn failure(error: RunError) -> Failure {
    Failure::Host(error.to_string())
}

fn load(folder: &Path) -> Result<Vec<(String, Case)>, Failure> {
    let cases = corpus::load(folder).map_err(|error| Failure::BadInput(error.to_string()))?;
    if cases.is_empty() {
        return Err(Failure::BadInput(format!("{}: there is no file *.case", folder.display())));
    }
    Ok(cases.into_iter().map(|(path, case)| (path.display().to_string(), case)).collect())
}

/// Executes cases that somebody chose, and tells all about those that differ; about a single one in any case.
fn given(cases: &[(String, Case)], json: bool) -> Result<u8, Failure> {
    let mut pair = Pair::start().map_err(failure)?;
    let watch = pair.watch();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let results = std::thread::scope(|scope| {
        scope.spawn(|| run::kick_what_stands_still(&[watch], &stop));
        let results: Result<Vec<CaseResult>, RunError> = cases
            .iter()
            .map(|(name, case)| {
                let (answer, executed, verdict) = pair.one(case)?;
                let agreed = matches!(verdict, Verdict::Agreed);
                let speaks = cases.len() == 1 || !agreed;
                Ok(CaseResult::new(name, case, &answer, &executed, &verdict, speaks))
            })
            .collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        results
    });
    let results = results.map_err(failure)?;
    let differing = results.iter().filter(|r| !r.agreed).count();
    report::print(&results, json, |results| {
        let mut words: String = results.iter().map(CaseResult::words).collect();
        words += &format!("{} cases, {differing} differ\n", results.len());
        words
    })?;
    Ok(if differing == 0 { STATUS_OK } else { STATUS_MISMATCH })
}

fn save(folder: &Path, result: &Report) -> Result<(), Failure> {
    for failure in result.failures.values() {
        let Key { bits, code, kind } = &failure.key;
        let why = format!("{code} in {}-bit code: {kind}", bits.number());
        corpus::save(folder, &failure.case, &why)
            .map_err(|error| Failure::host(format!("--save {}", folder.display()), error))?;
    }
    Ok(())
}

/// The progress line: on a terminal only, and only when it takes longer than two seconds.
struct Line {
    watched: bool,
    drawn: bool,
}

impl Line {
    fn draw(&mut self, progress: &Progress) {
        if !self.watched || progress.elapsed.as_secs() < 2 {
            return;
        }
        self.drawn = true;
        let percent = progress.fraction.map_or(String::new(), |f| format!(" {:3.0} %", 100.0 * f));
        let seconds = progress.elapsed.as_secs_f64();
        eprint!(
            "\r\x1b[K{percent} {seconds:.0} s, {} cases ({:.0} a second), {} mismatches",
            progress.executed,
            progress.executed as f64 / seconds,
            progress.mismatches
        );
        let _ = std::io::stderr().flush();
    }

    fn clear(&mut self) {
        if self.drawn {
            eprint!("\r\x1b[K");
        }
    }
}
