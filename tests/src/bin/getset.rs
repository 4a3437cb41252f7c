//! GET/SET completeness by the command line: every boundary of every guest, or for as long as one likes.
//!
//! ```text
//! getset                                 # each guest, every boundary
//! getset --guest NAME [--stride N]       # one of them
//! getset --random N [--seed S]           # so many random guests
//! getset --harness N                     # the harness's own guest, one boundary in N
//! getset --boot [--stride N] [--at M]     # a kernel's boot: a window of 1,000 instructions, after M of them
//! getset --fields                        # each field of the state lost, and whether that shows
//! getset --trace N --guest NAME          # where a guest is at its first N boundaries
//! getset --list                          # the guests' names
//! ```
//!
//! Status 0: all the same. What is compared is in `softkvm_tests::getset`; `--resume` is the other process of its test.

use softkvm_tests::fuzz::Fuzzer;
use softkvm_tests::getset::fields::{Loss, lose_each, reason};
use softkvm_tests::getset::machine::Plan;
use softkvm_tests::getset::{Outcome, Window, boot, check, guests, process, trace};
use std::process::ExitCode;
use std::time::Instant;

fn report(plan: &Plan, window: Window) -> bool {
    let start = Instant::now();
    let Outcome { copies, exits, instructions, faults } = check(plan, window);
    println!(
        "{}: {copies} copies, {exits} at exits, {instructions} instructions, {:.1?}",
        plan.name,
        start.elapsed()
    );
    for f in &faults {
        println!("  {f}");
    }
    faults.is_empty()
}

fn number(words: &[String], name: &str) -> Option<u64> {
    let n = words.iter().position(|w| w == name)?;
    words.get(n + 1)?.parse().ok()
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| words.iter().position(|w| w == name).and_then(|n| words.get(n + 1));
    let has = |name: &str| words.iter().any(|w| w == name);
    if let Some(guest) = value("--resume") {
        let Some(plan) = guests::all().into_iter().find(|p| p.name == *guest) else {
            return ExitCode::from(2);
        };
        let done = process::serve(&plan, &mut std::io::stdin(), &mut std::io::stdout());
        return if done.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if let (Some(n), false) = (number(&words, "--trace"), has("--boot")) {
        let wanted = |p: &&Plan| value("--guest").is_none_or(|g| p.name == *g);
        guests::all().iter().filter(wanted).for_each(|p| trace(p, 0, n));
        return ExitCode::SUCCESS;
    }
    if has("--list") {
        guests::all().iter().for_each(|p| println!("{}", p.name));
        return ExitCode::SUCCESS;
    }
    let mut good = true;
    let stride = number(&words, "--stride").unwrap_or(1);
    if has("--fields") {
        let plans: Vec<(Plan, u64)> = guests::all().into_iter().map(|p| (p, stride)).collect();
        for (field, loss) in lose_each(&plans) {
            let reason = if loss == Loss::Noticed { None } else { reason(&field) };
            println!("{:?} {}: {loss:?} {}", field.id, field.name, reason.unwrap_or_default());
            good &= matches!(loss, Loss::Noticed | Loss::SameEnd(true)) || reason.is_some();
        }
    } else if has("--boot") {
        let Some(image) = boot::image() else {
            eprintln!("the kernel is not in the cache: run `softkvm demo`");
            return ExitCode::from(2);
        };
        let before = number(&words, "--at").unwrap_or(boot::BEFORE);
        let Some(plan) = boot::kernel(&image, before) else { return ExitCode::from(2) };
        if let Some(n) = number(&words, "--trace") {
            trace(&plan, 1, n);
            return ExitCode::SUCCESS;
        }
        good = report(&plan, Window { slice: 1, stride, boundaries: boot::WINDOW.div_ceil(stride) });
    } else if let Some(n) = number(&words, "--random") {
        let seed = number(&words, "--seed").unwrap_or(1);
        let mut fuzzer = Fuzzer::new();
        for case in 0..n {
            let plan = guests::random(&mut fuzzer, seed.wrapping_mul(0x1_0000_0000).wrapping_add(case));
            good &= report(&plan, Window { slice: 0, stride: stride.max(3), boundaries: u64::MAX >> 32 });
        }
    } else if let Some(n) = number(&words, "--harness") {
        good = report(&guests::harness(400_000), Window { slice: 0, stride: n, boundaries: u64::MAX >> 32 });
    } else {
        for plan in guests::all() {
            if value("--guest").is_none_or(|g| plan.name == *g) {
                good &= report(&plan, Window { slice: 0, stride, boundaries: u64::MAX >> 32 });
            }
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
