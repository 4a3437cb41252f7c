//! An unmodified Debian kernel boots on the software processor: to user space, with one and two processors, and
//! nothing in its log that a real one would not say.
//!
//! Needs the packages that `softkvm demo` fetches; where they are neither cached nor to be had, a skip that makes the
//! whole run incomplete.

use softkvm_tests::{program, skip};
use std::process::Output;
use std::sync::Mutex;

/// One boot at a time: two of them, on two cores, would measure each other.
static TURN: Mutex<()> = Mutex::new(());

/// Seconds after which a boot has failed.
const LIMIT: &str = "300";

/// `None`: the guest's packages are not there, and that was told.
fn demo(test: &str, commands: &str, options: &[&str]) -> Option<Output> {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let mut arguments = vec!["demo", "--run", commands, "--timeout", LIMIT];
    arguments.extend(options);
    let out = program::run(&arguments);
    let errors = String::from_utf8_lossy(&out.stderr);
    let missing = errors.lines().find(|l| l.contains("not in the cache and cannot be fetched"));
    if out.status.code() == Some(1)
        && let Some(why) = missing
    {
        skip::skip(test, true, why);
        return None;
    }
    Some(out)
}

/// What a healthy kernel's log does not contain.
const ALARMS: &[&str] = &[
    "BUG:",
    "kernel BUG",
    "WARNING: CPU:",
    "cut here",
    "soft lockup",
    "hard LOCKUP",
    "rcu_sched self-detected stall",
    "rcu: INFO",
    "unchecked MSR",
    "Oops",
    "Kernel panic",
    "Call Trace",
    "general protection",
    "invalid opcode",
    "clocksource: timekeeping watchdog",
    "Marking TSC unstable",
    "do_IRQ:",
    "APIC error",
    "unexpected IRQ trap",
    "[Firmware Bug]",
    "NMI received for unknown reason",
];

fn alarms(log: &str) -> Vec<&str> {
    log.lines().filter(|l| ALARMS.iter().any(|a| l.contains(a))).collect()
}

fn boots(test: &str, cpus: u32) {
    let commands = "echo nproc=$(nproc); cat /proc/cpuinfo | grep -c ^processor; uname -s; \
                    cat /proc/interrupts | head -1; echo; dmesg; exit 7";
    let cpus = cpus.to_string();
    let Some(out) = demo(test, commands, &["--cpus", &cpus]) else { return };
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(7), "the commands' status is the program's:\n{text}\n{errors}");
    assert!(text.contains(&format!("nproc={cpus}\n")), "{text}");
    assert!(text.contains("Linux\n"), "{text}");
    assert!(text.contains("Linux version "), "the log is there:\n{text}");
    assert_eq!(alarms(&text), Vec::<&str>::new(), "{text}");
}

#[test]
fn one_processor() {
    boots("boot_debian::one_processor", 1);
}

#[test]
fn two_processors() {
    boots("boot_debian::two_processors", 2);
}

#[test]
fn work_in_user_space() {
    // Pipes, forks, signals, files, arithmetic, floating point, time: each line has one right answer.
    let commands = "seq 1 2000 | awk '{s+=$1} END {print \"sum\", s}'; \
                    echo softkvm | sha256sum | cut -c1-16; \
                    dd if=/dev/zero bs=4096 count=512 2>/dev/null | md5sum | cut -c1-8; \
                    awk 'BEGIN {printf \"%.6f %.3e\\n\", 2 / 3, 1e300 / 7}'; \
                    (sleep 5 & p=$!; kill $p; wait $p; echo killed $?); \
                    for i in 1 2 3 4 5 6 7 8; do (echo $i > /tmp/f$i) & done; wait; cat /tmp/f? | sort | tr -d '\\n'; echo";
    let Some(out) = demo("boot_debian::work_in_user_space", commands, &["--cpus", "2"]) else { return };
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{text}\n{errors}");
    for wanted in ["sum 2001000", "0.666667 1.429e+299", "killed 143", "12345678"] {
        assert!(text.contains(wanted), "{wanted}:\n{text}");
    }
    assert!(text.contains(&sha256_of_softkvm()), "{text}");
}

/// The first 16 digits, by the host's program.
fn sha256_of_softkvm() -> String {
    let out = std::process::Command::new("sh")
        .args(["-c", "echo softkvm | sha256sum | cut -c1-16"])
        .output()
        .expect("a shell");
    String::from_utf8_lossy(&out.stdout).trim().into()
}
