//! The driver: workers that take units of the schedule, execute them on both machines, judge, count, and shrink what fails.

mod judge;
mod pair;
mod schedule;

pub use judge::{Key, Verdict};
pub use pair::Pair;

use crate::case::{Bits, Case};
use crate::compare::Difference;
use crate::coverage::{Cell, Coverage, Denominator};
use crate::engine::{EngineError, Watch};
use crate::oracle::{Answer, Oracle, OracleError};
use crate::shrink::shrink_within;
use parking_lot::Mutex;
use schedule::{Field, Schedule, Unit};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Why a run cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The oracle.
    #[error("the oracle: {0}")]
    Oracle(#[from] OracleError),
    /// The engine.
    #[error("softkvm: {0}")]
    Engine(#[from] EngineError),
    /// The thread pool.
    #[error("threads: {0}")]
    Threads(String),
    /// The oracle gave back fewer answers than it was given cases.
    #[error("the oracle gave no answer")]
    NoAnswer,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Modes.
    pub bits: Vec<Bits>,
    /// Only cells whose instruction contains one of these words, or whose extension begins with one; all, if there is none.
    pub filter: Vec<String>,
    /// What is random follows from it.
    pub seed: u64,
    /// When to stop.
    pub time: Option<Duration>,
    /// Visits to each cell, as another bound.
    pub rounds: Option<u64>,
    /// Workers; each has a thread here and a process for its oracle.
    pub jobs: usize,
    /// Mutated and random bytes too.
    pub wild: bool,
    /// Different failures to shrink and to keep; more are counted only.
    pub failures: usize,
    /// End as soon as an instruction fails whose name contains this word.
    pub until: Option<String>,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            bits: vec![Bits::Bits64, Bits::Bits32],
            filter: Vec::new(),
            seed: 1,
            time: None,
            rounds: None,
            jobs: std::thread::available_parallelism().map_or(1, |n| n.get()),
            wild: true,
            failures: 20,
            until: None,
        }
    }
}

/// A failure, shrunk.
#[derive(Debug)]
pub struct Failure {
    /// What failed where.
    pub key: Key,
    /// The smallest case that was found.
    pub case: Case,
    /// What differs, in words.
    pub differences: Vec<Difference>,
    /// Why one of the machines has no outcome.
    pub ended: Option<String>,
    /// How often this key was met.
    pub count: u64,
    /// The same case did not give the same result when it was executed again.
    pub unsteady: bool,
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// Cases executed on both machines.
    pub executed: u64,
    /// Cases without an oracle (they entered the host's kernel), by reason.
    pub no_oracle: BTreeMap<String, u64>,
    /// Failures by key.
    pub failures: BTreeMap<Key, Failure>,
    /// Failures beyond [`Plan::failures`] different ones.
    pub more: u64,
    /// Cases that differed once, and agreed each time when they were repeated.
    pub unsteady: u64,
    /// What there is to reach, by mode.
    pub denominators: Vec<Denominator>,
    /// What was reached.
    pub coverage: Coverage,
    /// How long it took.
    pub elapsed: Duration,
}

impl Report {
    /// Failing cases in all.
    pub fn mismatches(&self) -> u64 {
        self.failures.values().map(|f| f.count).sum::<u64>() + self.more
    }
}

/// Numbers for a progress line.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Since the start.
    pub elapsed: Duration,
    /// Cases so far.
    pub executed: u64,
    /// Failing cases so far.
    pub mismatches: u64,
    /// How much of the work is done, 0 to 1, as far as it is bounded.
    pub fraction: Option<f64>,
}

#[derive(Default)]
struct Found {
    failures: BTreeMap<Key, Failure>,
    more: u64,
    unsteady: u64,
    no_oracle: BTreeMap<String, u64>,
}

struct Shared<'a> {
    plan: &'a Plan,
    schedule: Schedule,
    found: Mutex<Found>,
    executed: AtomicU64,
    mismatches: AtomicU64,
    stop: AtomicBool,
    watches: Mutex<Vec<Watch>>,
    start: Instant,
}

/// Runs the plan. `progress` is called about twice a second; it may ask to stop by returning false.
pub fn run(plan: &Plan, progress: &mut dyn FnMut(Progress) -> bool) -> Result<Report, RunError> {
    let denominators: Vec<Denominator> = plan.bits.iter().map(|bits| Denominator::of_host(*bits)).collect();
    let fields = plan
        .bits
        .iter()
        .zip(&denominators)
        .map(|(bits, d)| Field {
            bits: *bits,
            cells: d.cells.iter().filter(|c| wanted(c, &plan.filter)).copied().collect(),
        })
        .collect();
    let wild = plan.wild && plan.filter.is_empty();
    let shared = Shared {
        plan,
        schedule: Schedule::new(fields, plan.seed, Oracle::BATCH, plan.rounds, wild),
        found: Mutex::default(),
        executed: AtomicU64::new(0),
        mismatches: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        watches: Mutex::default(),
        start: Instant::now(),
    };
    // Oracles are forked before there are threads that could hold a lock at that moment.
    let pairs: Vec<Mutex<Option<Pair>>> = (0..plan.jobs.max(1))
        .map(|_| Pair::start().map(|p| Mutex::new(Some(p))))
        .collect::<Result<_, _>>()?;
    shared.watches.lock().extend(pairs.iter().filter_map(|p| p.lock().as_ref().map(Pair::watch)));
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(pairs.len())
        .build()
        .map_err(|error| RunError::Threads(error.to_string()))?;
    let done = AtomicU64::new(0);
    let results = std::thread::scope(|scope| {
        let workers = scope.spawn(|| {
            pool.broadcast(|context| {
                let pair = pairs.get(context.index()).and_then(|p| p.lock().take());
                let result = match pair {
                    Some(pair) => work(&shared, pair),
                    None => Err(RunError::NoAnswer),
                };
                done.fetch_add(1, Ordering::Relaxed);
                if result.is_err() {
                    shared.stop.store(true, Ordering::Relaxed);
                }
                result
            })
        });
        let all = pairs.len() as u64;
        attend(&shared, progress, &|| done.load(Ordering::Relaxed) == all);
        workers.join()
    });
    let results = results.map_err(|_| RunError::Threads("a worker panicked".into()))?;
    let mut coverage = Coverage::new();
    for result in results {
        coverage.merge(&result?);
    }
    let found = shared.found.into_inner();
    Ok(Report {
        executed: shared.executed.load(Ordering::Relaxed),
        no_oracle: found.no_oracle,
        failures: found.failures,
        more: found.more,
        unsteady: found.unsteady,
        denominators,
        coverage,
        elapsed: shared.start.elapsed(),
    })
}

fn wanted(cell: &Cell, filter: &[String]) -> bool {
    let code = format!("{:?}", cell.code).to_ascii_lowercase();
    let extension = cell.extension().to_ascii_lowercase();
    filter.is_empty()
        || filter.iter().any(|word| {
            let word = word.to_ascii_lowercase();
            code.contains(&word) || extension.split('+').any(|name| name.starts_with(&word))
        })
}

/// Ends cases that do not end: an engine that works on one case for two seconds is kicked.
struct Kicker {
    watches: Vec<Watch>,
    /// Progress when last looked at, and since how many steps it has been that.
    seen: Vec<(u64, u32)>,
}

impl Kicker {
    const STEP: Duration = Duration::from_millis(100);
    const PATIENCE: u32 = 20;

    fn new(watches: Vec<Watch>) -> Kicker {
        Kicker { seen: vec![(0, 0); watches.len()], watches }
    }

    /// Sleeps for a step, and looks.
    fn step(&mut self) {
        std::thread::sleep(Kicker::STEP);
        for (watch, (at, steps)) in self.watches.iter().zip(&mut self.seen) {
            let now = watch.progress();
            *steps = if now == *at && now & 1 != 0 { *steps + 1 } else { 0 };
            *at = now;
            if *steps >= Kicker::PATIENCE {
                watch.kick();
                *steps = 0;
            }
        }
    }
}

/// For a caller with pairs of its own: kicks engines that stand still until `stop` is set.
pub fn kick_what_stands_still(watches: &[Watch], stop: &AtomicBool) {
    let mut kicker = Kicker::new(watches.to_vec());
    while !stop.load(Ordering::Relaxed) {
        kicker.step();
    }
}

/// Until the workers are done: tells of progress, ends the run in time, and kicks an engine that stands still.
fn attend(shared: &Shared<'_>, progress: &mut dyn FnMut(Progress) -> bool, done: &dyn Fn() -> bool) {
    let mut kicker = Kicker::new(shared.watches.lock().clone());
    let mut step = 0_u32;
    while !done() {
        kicker.step();
        let elapsed = shared.start.elapsed();
        if shared.plan.time.is_some_and(|time| elapsed >= time) {
            shared.stop.store(true, Ordering::Relaxed);
        }
        step += 1;
        if step.is_multiple_of(5) {
            let of_time = shared.plan.time.map(|t| elapsed.as_secs_f64() / t.as_secs_f64());
            let fraction = match (of_time, shared.schedule.fraction()) {
                (Some(a), Some(b)) => Some(a.max(b)),
                (a, b) => a.or(b),
            };
            let go_on = progress(Progress {
                elapsed,
                executed: shared.executed.load(Ordering::Relaxed),
                mismatches: shared.mismatches.load(Ordering::Relaxed),
                fraction,
            });
            if !go_on {
                shared.stop.store(true, Ordering::Relaxed);
            }
        }
    }
}

fn work(shared: &Shared<'_>, mut pair: Pair) -> Result<Coverage, RunError> {
    let mut coverage = Coverage::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let Some(unit) = shared.schedule.take() else { break };
        execute(shared, &mut pair, unit, &mut coverage)?;
    }
    Ok(coverage)
}

fn execute(
    shared: &Shared<'_>,
    pair: &mut Pair,
    unit: Unit,
    coverage: &mut Coverage,
) -> Result<(), RunError> {
    let cases = shared.schedule.cases(unit);
    let answers = pair.execute(&cases)?;
    shared.executed.fetch_add(answers.len() as u64, Ordering::Relaxed);
    let mut failed = Vec::new();
    for (case, (answer, executed)) in cases.into_iter().zip(answers) {
        match judge::judge(&case, &answer, &executed) {
            Verdict::Agreed => {
                if let (Answer::Done(oracle), Ok(engine)) = (&answer, &executed) {
                    coverage.count(&case, oracle, engine);
                }
            }
            Verdict::NoOracle(reason) => {
                *shared.found.lock().no_oracle.entry(reason).or_default() += 1;
            }
            verdict => failed.push((case, verdict)),
        }
    }
    for (case, verdict) in failed {
        record(shared, pair, case, verdict)?;
    }
    Ok(())
}

/// How often a failing case is executed again before it counts.
const REPEATS: u32 = 3;

/// Trials that a failure may cost until it is small.
const TRIALS: usize = 600;

fn record(shared: &Shared<'_>, pair: &mut Pair, case: Case, verdict: Verdict) -> Result<(), RunError> {
    let Some(key) = Key::of(&case, &verdict) else { return Ok(()) };
    // Again: a context switch loses what the host's processor keeps nowhere else, and a clock ticks.
    let mut again = false;
    for _ in 0..REPEATS {
        let (_, _, verdict) = pair.one(&case)?;
        again |= !matches!(verdict, Verdict::Agreed);
    }
    if !again {
        shared.found.lock().unsteady += 1;
        return Ok(());
    }
    shared.mismatches.fetch_add(1, Ordering::Relaxed);
    if shared.plan.until.as_ref().is_some_and(|word| key.code.contains(word)) {
        shared.stop.store(true, Ordering::Relaxed);
    }
    {
        let mut found = shared.found.lock();
        if let Some(failure) = found.failures.get_mut(&key) {
            failure.count += 1;
            return Ok(());
        }
        if found.failures.len() >= shared.plan.failures {
            found.more += 1;
            return Ok(());
        }
        // The place is taken before the work is done: another worker may meet the same fault meanwhile.
        let (differences, ended) = words(verdict);
        let failure =
            Failure { key: key.clone(), case: case.clone(), differences, ended, count: 1, unsteady: false };
        found.failures.insert(key.clone(), failure);
    }
    let (small, verdict) = reduce(pair, &case, &key)?;
    let mut found = shared.found.lock();
    if let Some(failure) = found.failures.get_mut(&key) {
        match verdict {
            Some(verdict) => {
                (failure.differences, failure.ended) = words(verdict);
                failure.case = small;
            }
            None => failure.unsteady = true,
        }
    }
    Ok(())
}

fn words(verdict: Verdict) -> (Vec<Difference>, Option<String>) {
    match verdict {
        Verdict::Mismatch(differences) => (differences, None),
        Verdict::Ended(text) => (Vec::new(), Some(text)),
        _ => (Vec::new(), None),
    }
}

/// The smallest case with the same key, and its verdict; none if it does not fail again.
pub fn reduce(pair: &mut Pair, case: &Case, key: &Key) -> Result<(Case, Option<Verdict>), RunError> {
    let mut broken = None;
    let mut fails = |candidate: &Case| {
        if broken.is_some() {
            return false;
        }
        match pair.one(candidate) {
            Ok((_, _, verdict)) => Key::of(candidate, &verdict).as_ref() == Some(key),
            Err(error) => {
                broken = Some(error);
                false
            }
        }
    };
    if !fails(case) {
        return match broken {
            Some(error) => Err(error),
            None => Ok((case.clone(), None)),
        };
    }
    let small = shrink_within(case, TRIALS, &mut fails);
    if let Some(error) = broken {
        return Err(error);
    }
    let (_, _, verdict) = pair.one(&small)?;
    let same = Key::of(&small, &verdict).as_ref() == Some(key);
    Ok((small, same.then_some(verdict)))
}
