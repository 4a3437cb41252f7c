//! House rules that a machine can check: file lengths, names, the direction of dependencies,
//! where `unsafe` may stand, licences.

use softkvm_tests::workspace::{metadata, root, sources};
use std::collections::{BTreeMap, BTreeSet};

/// Files over this need a reason at their top: a line with "Over 1,000 lines:".
const MAX_LINES: usize = 1000;

/// Modules that may contain `unsafe`, and why they must (ARCHITECTURE.md, "Where unsafe is").
const UNSAFE: &[(&str, &str)] = &[
    ("softmmu/src/host_mem/", "guest RAM"),
    ("softmmu/src/futex.rs", "the kernel's futex: how a halted vCPU sleeps"),
    ("softmmu/src/tlb.rs", "the translator's view of the TLB"),
    ("emu-core/src/host_cpu.rs", "cpuid, xgetbv, rdtsc"),
    ("emu-core/src/native/", "SIMD and x87 on the host"),
    ("emu-core/src/jit/", "code buffer, entry"),
    ("kvm-ioctl-layer/src/user_mem.rs", "a caller's memory"),
    ("kvm-ioctl-layer/src/run_page", "kvm_run is shared with the caller"),
    ("kvm-ioctl-layer/src/signal.rs", "signal handlers"),
    ("kvm-ioctl-layer/src/fd/unsafe_signatures.rs", "the signatures of kvm-ioctls"),
    ("vmx-backend/src/sys.rs", "system calls to /dev/kvm"),
    ("tools/preload/", "the shared library"),
    ("tools/insn-diff/src/engine/memory.rs", "memory slots take host addresses"),
    ("tools/insn-diff/src/oracle/", "the host as an oracle: a child process, its signal frames and its code"),
    ("tools/src/bench/exits/guest.rs", "memory slots take host addresses"),
    ("tools/src/guest_ram.rs", "memory slots take host addresses"),
    ("tools/src/run_page.rs", "immediate_exit from a signal handler"),
    ("tools/src/terminal.rs", "termios"),
    ("tests/src/ioctls/kernel.rs", "ioctls of a kernel"),
];

#[test]
fn files_are_one_subject_long() {
    let long: Vec<_> = sources()
        .into_iter()
        .filter(|(_, text)| text.lines().count() > MAX_LINES)
        .filter(|(_, text)| !text.lines().take(30).any(|l| l.contains("Over 1,000 lines:")))
        .map(|(path, text)| format!("{path}: {}", text.lines().count()))
        .collect();
    assert!(long.is_empty(), "over {MAX_LINES} lines without a reason at the top: {long:#?}");
}

#[test]
fn no_rooms_without_a_subject() {
    let bad: Vec<_> = sources()
        .into_iter()
        .map(|(path, _)| path)
        .filter(|p| {
            p.split(['/', '.'])
                .any(|w| matches!(w, "util" | "utils" | "common" | "misc" | "helper" | "helpers"))
        })
        .collect();
    assert!(bad.is_empty(), "name the subject: {bad:?}");
}

#[test]
fn every_file_says_what_it_is() {
    let bad: Vec<_> =
        sources().into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(path, _)| path).collect();
    assert!(bad.is_empty(), "no first line that says what the file is: {bad:?}");
}

#[test]
fn unsafe_stands_only_where_it_is_announced() {
    let bad: Vec<_> = sources()
        .into_iter()
        .filter(|(path, _)| !path.starts_with("tests/tests/tidy.rs"))
        .filter(|(_, text)| {
            text.lines().any(|l| {
                let l = l.trim();
                l.contains("allow(unsafe_code)") && !l.starts_with("//")
            })
        })
        .filter(|(path, text)| {
            let announced = UNSAFE.iter().any(|(p, _)| path.starts_with(p));
            // Test-only modules say so in their first lines.
            let test_only = text.lines().take(12).any(|l| l.contains("Test-only"));
            !announced && !test_only && !EXTRA_UNSAFE.iter().any(|p| path.starts_with(p))
        })
        .map(|(path, _)| path)
        .collect();
    assert!(bad.is_empty(), "unsafe outside the announced modules: {bad:?}");
}

/// Modules that are compiled for tests only.
const EXTRA_UNSAFE: &[&str] = &["softmmu/src/test_ram.rs"];

#[test]
fn the_processor_does_not_know_kvms_structures() {
    let bad: Vec<_> = sources()
        .into_iter()
        .filter(|(p, _)| ["decoder/", "softmmu/", "emu-core/"].iter().any(|d| p.starts_with(d)))
        .flat_map(|(path, text)| {
            text.lines()
                .enumerate()
                .filter(|(_, l)| !l.trim_start().starts_with("//"))
                .filter(|(_, l)| {
                    l.contains("kvm_bindings") || l.contains("struct kvm_") || l.contains("kvm_ioctls")
                })
                .map(|(n, _)| format!("{path}:{}", n + 1))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(bad.is_empty(), "kvm_* below the ioctl layer: {bad:?}");
}

#[test]
fn clocks_and_chance_enter_by_one_door() {
    let words = ["Instant::now", "SystemTime", "clock_gettime", "getrandom", "_rdtsc"];
    let bad: Vec<_> = sources()
        .into_iter()
        .filter(|(p, _)| {
            p.starts_with("softmmu/src") || p.starts_with("emu-core/src") || p.starts_with("emu-core/arch")
        })
        .filter(|(p, _)| p != "emu-core/src/host_cpu.rs")
        .flat_map(|(path, text)| {
            // Unit tests may measure; they stand at a file's end.
            let code = text.split("#[cfg(test)]").next().unwrap_or("").to_owned();
            words
                .iter()
                .filter(move |w| code.lines().any(|l| !l.trim_start().starts_with("//") && l.contains(**w)))
                .map(move |w| format!("{path}: {w}"))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
}

/// Which workspace crates each may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("x86-arch", &[]),
    ("decoder", &["x86-arch"]),
    ("softmmu", &["x86-arch"]),
    ("emu-core", &["x86-arch", "decoder", "softmmu"]),
    ("kvm-api", &[]),
    ("kvm-ioctl-layer", &["x86-arch", "kvm-api", "emu-core", "softmmu", "decoder", "vmx-backend"]),
    ("vmx-backend", &["kvm-api"]),
    ("insn-diff", &["kvm-ioctl-layer", "kvm-api"]),
    ("softkvm-preload", &["kvm-ioctl-layer", "kvm-api"]),
    ("softkvm", &["kvm-ioctl-layer", "kvm-api", "vmx-backend", "insn-diff", "softkvm-preload"]),
];

#[test]
fn arrows_go_one_way() {
    let meta = metadata();
    let empty = Vec::new();
    let packages = meta["packages"].as_array().unwrap_or(&empty);
    let members: BTreeSet<&str> =
        packages.iter().filter(|p| p["source"].is_null()).filter_map(|p| p["name"].as_str()).collect();
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let mut bad = Vec::new();
    let mut seen = 0;
    for p in packages.iter().filter(|p| p["source"].is_null()) {
        let Some(name) = p["name"].as_str() else { continue };
        let Some(may) = allowed.get(name) else {
            if name != "softkvm-tests" {
                bad.push(format!("{name} has no row in ARROWS"));
            }
            continue;
        };
        seen += 1;
        for d in p["dependencies"].as_array().unwrap_or(&empty) {
            let (Some(dep), dev) = (d["name"].as_str(), d["kind"] == "dev") else { continue };
            if members.contains(dep) && !dev && !may.contains(&dep) {
                bad.push(format!("{name} -> {dep}"));
            }
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
    assert_eq!(seen, ARROWS.len(), "every crate of ARROWS exists");
}

#[test]
fn licences_are_on_the_list() {
    let deny = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml stands at the top");
    let allowed: Vec<&str> = deny
        .split("allow = [")
        .nth(1)
        .and_then(|s| s.split(']').next())
        .map(|s| s.split('"').skip(1).step_by(2).collect())
        .unwrap_or_default();
    assert!(allowed.len() > 2, "deny.toml lists the licences");
    let meta = metadata();
    let empty = Vec::new();
    let bad: Vec<String> = meta["packages"]
        .as_array()
        .unwrap_or(&empty)
        .iter()
        .filter_map(|p| {
            let name = p["name"].as_str()?;
            let licence = p["license"].as_str().unwrap_or("none");
            // SPDX: every AND part must have one allowed OR alternative.
            let ok = licence
                .replace('/', " OR ")
                .split(" AND ")
                .all(|part| part.split(" OR ").any(|l| allowed.contains(&l.trim().trim_matches(['(', ')']))));
            (!ok).then(|| format!("{name}: {licence}"))
        })
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn nothing_tells_of_the_machine_it_was_written_on() {
    let words = ["/work/", "/root/"];
    let bad: Vec<_> = sources()
        .into_iter()
        .filter(|(p, _)| p != "tests/tests/tidy.rs")
        .flat_map(|(path, text)| {
            words.iter().filter(|w| text.contains(**w)).map(|w| format!("{path}: {w}")).collect::<Vec<_>>()
        })
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
}
