//! GET/SET completeness: a VM that is saved at any boundary through the KVM_GET ioctls, and set down in another by KVM_SET,
//! goes on as if nothing had happened.
//!
//! Time is counted and the world outside is replayed ([`outside`]), so two runs can be equal to the bit. [`check`] runs a
//! guest ([`guests`]) to its end in one go; then once more in steps, with a copy lifted off at each boundary, which
//! must come to the same end: all that KVM_GET shows, the memory, the exits with the
//! instruction at which each came, the moment, and its dirty log ([`dirty`]). [`fields`] loses one field of the state at a
//! time, which must show.

pub mod boot;
pub mod dirty;
pub mod fields;
pub mod guests;
pub mod machine;
pub mod outside;
pub mod process;
pub mod saved;

use dirty::{Logs, Pages};
use machine::{Machine, Pace, Plan, Position, Stop};
use outside::Outside;
use saved::{Order, Saved};
use std::sync::Arc;

/// At which boundaries of a guest copies are lifted off.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The first slice in which it looks.
    pub slice: usize,
    /// Boundaries looked at before it looks for the window's end: all of them, or one in so many.
    pub stride: u64,
    /// So many boundaries.
    pub boundaries: u64,
}

/// What a check saw.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Copies that were made.
    pub copies: u64,
    /// Of these, at exits before and after their completion.
    pub exits: u64,
    /// Instructions of the whole run.
    pub instructions: u64,
    /// What differs, in words. Few: it stops.
    pub faults: Vec<String>,
}

/// What is known at the end of a run.
struct End {
    saved: Saved,
    log: Vec<outside::Record>,
    position: Position,
}

fn end(m: &Machine) -> End {
    End { saved: m.save(), log: m.log.clone(), position: m.position.clone() }
}

/// Where a run that began after `exits` of the whole one's differs from it.
fn differences(whole: &End, copy: &End, exits: usize) -> Vec<String> {
    let mut out = Vec::new();
    for n in exits..whole.log.len().max(copy.log.len() + exits) {
        let (a, b) = (whole.log.get(n), copy.log.get(n - exits));
        if a != b {
            out.push(format!("exit {n}: {a:?} and {b:?}"));
            break;
        }
    }
    if whole.position != copy.position {
        out.push(format!("{:?} and {:?}", whole.position, copy.position));
    }
    out.extend(whole.saved.diff(&copy.saved));
    out
}

/// Runs a copy from what was saved to the end; its faults, and its dirty log.
fn run_copy(
    plan: &Arc<Plan>,
    saved: &Saved,
    order: Order,
    outside: &Outside,
    position: &Position,
    whole: &End,
    exits: usize,
) -> (Vec<String>, Pages) {
    let mut copy = Machine::restored(plan, saved, order, outside, position);
    let mut faults: Vec<String> =
        saved.diff(&copy.save()).into_iter().map(|d| format!("as restored: {d}")).collect();
    let written = copy.dirty().numbers();
    if !written.is_empty() {
        faults.push(format!("KVM_SET has written pages {written:x?}"));
    }
    copy.finish();
    let (dirty, end) = (copy.dirty(), end(&copy));
    faults.extend(differences(whole, &end, exits));
    for (n, (now, then)) in end.saved.ram.chunks(4096).zip(saved.ram.chunks(4096)).enumerate() {
        if now != then && !dirty.has(n) {
            faults.push(format!("page {n:#x} has changed and is not in the dirty log"));
        }
    }
    (faults, dirty)
}

/// Where two plans with the same guest come to other ends, each run in steps.
pub fn compare(one: &Plan, other: &Plan) -> Vec<String> {
    let run = |plan: &Plan| {
        let mut m = Machine::new(&Arc::new(plan.clone()));
        while m.go(Pace::Step) != Stop::End {}
        end(&m)
    };
    differences(&run(one), &run(other), 0)
}

/// Prints where a guest is, boundary by boundary, from the beginning of a slice on.
pub fn trace(plan: &Plan, slice: usize, boundaries: u64) {
    let mut m = Machine::new(&Arc::new(plan.clone()));
    while m.position.slice < slice && m.go(Pace::Fast) != Stop::End {}
    for _ in 0..boundaries {
        let stop = m.go(Pace::Step);
        println!("{stop:?} {:?} {}", m.position, m.registers());
        if stop == Stop::End {
            break;
        }
    }
}

/// A guest that faults for ever retires nothing, and has no end.
fn loops(plan: &Arc<Plan>) -> Option<String> {
    const STALLED: u32 = 2000;
    let mut m = Machine::new(plan);
    let mut last = Position::default();
    let mut same = 0;
    while m.go(Pace::Step) != Stop::End {
        same = if m.position == last { same + 1 } else { 0 };
        if same > STALLED {
            return Some(format!("{}: the guest loops at {:?}: {}", plan.name, m.position, m.registers()));
        }
        if same == 0 {
            last = m.position.clone();
        }
    }
    None
}

/// Runs a guest whole, and in steps with copies; the copies are written back in both orders by turns.
pub fn check(plan: &Plan, window: Window) -> Outcome {
    let plan = Arc::new(plan.clone());
    let mut outcome = Outcome::default();
    if !plan.long
        && let Some(where_) = loops(&plan)
    {
        outcome.faults.push(where_);
        return outcome;
    }
    let mut m = Machine::new(&plan);
    m.finish();
    let whole = end(&m);
    let whole_log = m.dirty();
    drop(m);
    outcome.instructions = whole.position.retired.iter().sum();

    let mut source = Machine::new(&plan);
    while source.position.slice < window.slice {
        if source.go(Pace::Fast) == Stop::End {
            outcome.faults.push("the guest ends before the window".into());
            return outcome;
        }
    }
    let mut order = Order::Qemu;
    let mut logs = Logs::new(plan.born_logged);
    let mut look = |name: String,
                    saved: &Saved,
                    outside: &Outside,
                    position: &Position,
                    exits: usize,
                    logs: &mut Logs,
                    outcome: &mut Outcome| {
        order = if order == Order::Qemu { Order::Firecracker } else { Order::Qemu };
        outcome.copies += 1;
        let (faults, log) = run_copy(&plan, saved, order, outside, position, &whole, exits);
        let what = format!("{name}, {order:?}'s order");
        logs.copy(&what, log);
        outcome.faults.extend(faults.into_iter().take(6).map(|f| format!("{what}: {f}")));
    };
    let mut boundary = 0;
    // The exit before was a part of the same instruction.
    let mut part = false;
    while boundary < window.boundaries * window.stride && outcome.faults.len() < 8 {
        let stop = source.go(Pace::Step);
        boundary += 1;
        if stop == Stop::End {
            break;
        }
        let begun = core::mem::replace(&mut part, stop == Stop::Exit(true));
        if !boundary.is_multiple_of(window.stride) {
            continue;
        }
        let name = |what: &str| format!("{} at {:?} {what}", plan.name, source.position);
        if let Stop::Exit(again) = stop {
            let saved = source.save();
            logs.take(&source);
            let position = source.position.clone();
            let last = source.log.last().map(|r| r.what.clone()).unwrap_or_default();
            let outside = if again { source.before_exit() } else { &source.outside }.clone();
            let named = name(&format!("before completion of {last}"));
            let exits = source.log.len();
            let more = source.complete();
            // An access in parts: what was told of it is not part of the state, in KVM neither.
            part = false;
            if more == 0 && !begun && plan.vcpus.iter().all(|v| v.debug.is_none()) {
                let exits = exits - usize::from(again);
                look(named, &saved, &outside, &position, exits, &mut logs, &mut outcome);
                outcome.exits += 1;
            }
            let named = format!("{} at {:?} after completion of {last}", plan.name, source.position);
            let (saved, position) = (source.save(), source.position.clone());
            logs.take(&source);
            let outside = source.outside.clone();
            let exits = source.log.len();
            look(named, &saved, &outside, &position, exits, &mut logs, &mut outcome);
            outcome.exits += 1;
        } else {
            let saved = source.save();
            logs.take(&source);
            let (outside, position) = (source.outside.clone(), source.position.clone());
            let exits = source.log.len();
            look(name(""), &saved, &outside, &position, exits, &mut logs, &mut outcome);
        }
    }
    source.finish();
    let mut stepped = differences(&whole, &end(&source), 0);
    logs.take(&source);
    if outcome.faults.is_empty() {
        stepped.extend(logs.differences(&whole_log));
    }
    outcome.faults.extend(stepped.into_iter().take(4).map(|f| format!("{} in steps: {f}", plan.name)));
    outcome
}
