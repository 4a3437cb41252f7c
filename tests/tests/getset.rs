//! GET/SET completeness: a VM saved at any boundary and set down in another goes on as if nothing had happened.

use softkvm_tests::fuzz::Fuzzer;
use softkvm_tests::getset::fields::{Field, Loss, lose_each, reason};
use softkvm_tests::getset::machine::{Machine, Pace, Plan, Stop};
use softkvm_tests::getset::saved::Order;
use softkvm_tests::getset::{Window, boot, check, compare, guests, process};
use softkvm_tests::{program, skip};
use std::sync::Arc;

fn holds(plan: &Plan, window: Window) {
    let start = std::time::Instant::now();
    let o = check(plan, window);
    println!(
        "{}: {} copies, {} at exits, {} instructions, {:?}",
        plan.name,
        o.copies,
        o.exits,
        o.instructions,
        start.elapsed()
    );
    assert!(o.faults.is_empty(), "{}", o.faults.join("\n"));
}

const ALL: Window = Window { slice: 0, stride: 1, boundaries: 4000 };

#[test]
fn the_harness_guest() {
    holds(&guests::harness(200_000), Window { slice: 5, stride: 997, boundaries: 100 });
}

/// A window in the middle of a kernel's boot.
#[test]
fn a_kernel_s_boot() {
    if boot::image().is_none() {
        // It fetches the kernel.
        program::run(&["demo", "--run", "true", "--timeout", "300"]);
    }
    let plan = boot::image().and_then(|image| boot::kernel(&image, boot::BEFORE));
    let Some(plan) = plan else {
        skip::skip(
            "getset::a_kernel_s_boot",
            true,
            "the Debian kernel is not in the cache and cannot be fetched",
        );
        return;
    };
    holds(&plan, Window { slice: 1, stride: 90, boundaries: boot::WINDOW / 90 });
}

fn guest(name: &str, stride: u64) {
    let plan = guests::all().into_iter().find(|p| p.name.starts_with(name)).expect("a guest of that name");
    holds(&plan, Window { stride, ..ALL });
}

#[test]
fn long_mode() {
    guest("64-bit", 1);
}

#[test]
fn long_mode_with_payloads() {
    guest("64-bit, payloads", 2);
}

#[test]
fn without_controllers() {
    guest("no controllers", 1);
}

#[test]
fn split_controllers() {
    guest("split", 1);
}

#[test]
fn guest_debug() {
    for plan in guests::all().iter().filter(|p| p.name.starts_with("guest debug")) {
        holds(plan, Window { stride: 2, ..ALL });
    }
}

#[test]
fn system_management_mode() {
    guest("system-management mode", 1);
    guest("system-management mode, two processors", 3);
}

#[test]
fn paravirtual() {
    guest("paravirtual, two processors", 2);
    guest("hypercalls", 1);
}

#[test]
fn eoi_exits() {
    guest("EOI exits", 1);
}

#[test]
fn injected_events() {
    guest("injected events", 1);
}

#[test]
fn controllers() {
    guest("PICs and PIT", 2);
    guest("APICs", 2);
    guest("model-specific registers", 3);
}

#[test]
fn real_mode() {
    guest("real mode", 1);
}

#[test]
fn protected_mode() {
    guest("protected mode", 1);
}

#[test]
fn virtual_8086_mode() {
    guest("virtual-8086", 1);
}

#[test]
fn two_processors() {
    guest("two processors", 1);
}

/// Slots that have their dirty log from their creation.
#[test]
fn logged_from_creation() {
    for plan in guests::all() {
        let name = format!("{}, logged from creation", plan.name);
        holds(&Plan { name, born_logged: true, ..plan }, Window { stride: 7, ..ALL });
    }
}

#[test]
fn random_guests() {
    let mut fuzzer = Fuzzer::new();
    for case in 0..40 {
        let plan = guests::random(&mut fuzzer, case);
        holds(&plan, Window { slice: 0, stride: 11, boundaries: 400 });
    }
}

/// The property can fail: fields are lost on purpose, and each must show, at once or at the end of the run. Few boundaries here: not
/// every field is seen; the command sees all.
#[test]
fn what_is_lost_is_noticed() {
    let plans: Vec<(Plan, u64)> = guests::all().into_iter().map(|p| (p, 31)).collect();
    let found = lose_each(&plans);
    let noticed = found.values().filter(|l| matches!(l, Loss::Noticed | Loss::SameEnd(true))).count();
    let not: Vec<&Field> = found
        .iter()
        .filter(|(field, loss)| **loss == Loss::SameEnd(false) && reason(field).is_none())
        .map(|f| f.0)
        .collect();
    assert_eq!(not, Vec::<&Field>::new(), "lost, and nobody noticed");
    println!("{noticed} of {} fields", found.len());
    assert!(noticed > 250, "{noticed} of {} fields", found.len());
}

/// The state goes to another process as bytes, and the end comes back.
#[test]
fn another_process() {
    for (n, plan) in guests::all().into_iter().enumerate() {
        let name = plan.name.clone();
        let order = if n % 2 == 0 { Order::Qemu } else { Order::Firecracker };
        let plan = Arc::new(plan);
        let mut m = Machine::new(&plan);
        let mut left = 150 + 10 * n;
        let mut steps = 0;
        while left > 0 {
            left -= 1;
            steps += 1;
            match m.go(Pace::Step) {
                // One in its first half, of those that are short.
                Stop::End => (m, left, steps) = (Machine::new(&plan), steps / 2, 0),
                Stop::Exit(_) => {
                    m.complete();
                }
                _ => {}
            }
        }
        let (saved, before) = (m.save(), m.log.len());
        m.dirty();
        let program = env!("CARGO_BIN_EXE_getset");
        let answer = process::ask(program, &name, &saved, order, &m.outside, &m.position).expect(&name);
        m.finish();
        assert_eq!(m.save().diff(&answer.saved), Vec::<String>::new(), "{name}");
        assert_eq!(m.log[before..], answer.log, "{name}");
        assert_eq!(m.position, answer.position, "{name}");
        assert_eq!(m.dirty(), answer.dirty, "{name}");
    }
}

/// KVM_CAP_SYNC_REGS: at every boundary the page has what KVM_GET shows, and loading it changes nothing.
#[test]
fn registers_in_the_run_page() {
    for name in ["64-bit", "64-bit, payloads", "no controllers", "real mode", "virtual-8086"] {
        let plan =
            guests::all().into_iter().find(|p| p.name.starts_with(name)).expect("a guest of that name");
        let synced = Plan { sync_regs: true, ..plan.clone() };
        assert_eq!(compare(&plan, &synced), Vec::<String>::new(), "{name}");
    }
}
