//! The program from outside: what it says to bad input, and with which exit status; the built-in guest where
//! there is a `/dev/kvm`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use vmm_sys_util::tempdir::TempDir;

fn softkvm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_softkvm"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("softkvm runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Bad input: status 2, one message that names the trouble, and no trace of a panic.
fn refused(arguments: &[&str], wanted: &str) {
    let output = softkvm(arguments);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert!(text.contains(wanted), "{arguments:?}: wanted {wanted:?} in {text:?}");
    assert!(!text.contains("panicked"), "{arguments:?}: {text}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
}

struct Files(TempDir);

impl Files {
    fn new() -> Files {
        Files(TempDir::new().unwrap())
    }

    fn with(&self, name: &str, bytes: &[u8]) -> String {
        let path: PathBuf = self.0.as_path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().into()
    }
}

/// A header that passes for a kernel's, with a payload that powers the machine off.
fn tiny_kernel(code: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0u8; 1024 + 0x200];
    bytes.extend_from_slice(code);
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    let payload = (bytes.len() - 1024) as u32;
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0x1f1, &[1]);
    put(0x1f4, &(payload / 16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &[1]);
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes());
    bytes
}

#[test]
fn bad_usage_and_bad_files() {
    let files = Files::new();
    let empty = files.with("empty", b"");
    let text = files.with("text", b"this is no kernel\n");
    let elf = files.with("elf", &fs::read("/proc/self/exe").unwrap()[..4096]);
    let kernel = files.with("kernel", &tiny_kernel(&[0xf4]));
    let cut = files.with("cut", &tiny_kernel(&[0xf4])[..1040]);
    let odd_disk = files.with("disk", &[0; 513]);
    let folder = files.0.as_path().to_str().unwrap().to_string();
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["fly"], "fly"),
        (&["run"], "--kernel"),
        (&["run", "--kernel", "/nonexistent/vmlinuz"], "No such file"),
        (&["run", "--kernel", &folder], "not a file"),
        (&["run", "--kernel", "/dev/zero"], "not a file"),
        (&["run", "--kernel", &empty], "empty"),
        (&["run", "--kernel", &text], "not a Linux kernel"),
        (&["run", "--kernel", &elf], "ELF"),
        (&["run", "--kernel", &cut], "truncated"),
        (&["run", "--kernel", &kernel, "--initrd", "/nonexistent/initrd"], "--initrd"),
        (&["run", "--kernel", &kernel, "--mem", "lots"], "--mem"),
        (&["run", "--kernel", &kernel, "--mem", "0"], "too little memory"),
        (&["run", "--kernel", &kernel, "--mem", "64K"], "too little memory"),
        (&["run", "--kernel", &kernel, "--cpus", "many"], "--cpus"),
        (&["run", "--kernel", &kernel, "--disk", &odd_disk], "multiple of 512"),
        (&["run", "--kernel", &kernel, "--disk", "/nonexistent/disk"], "--disk"),
        (&["run", "--kernel", &kernel, "--timeout", "0"], "--timeout"),
        (&["--log", "=bogus=", "check"], "--log"),
    ];
    for (arguments, wanted) in cases {
        refused(arguments, wanted);
    }
}

#[test]
fn help_teaches_the_statuses() {
    for arguments in [&["--help"][..], &["run", "--help"], &["demo", "--help"]] {
        let output = softkvm(arguments);
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for wanted in ["Exit status", "triple fault", "--log"] {
            assert!(text.contains(wanted), "{arguments:?}: {wanted}");
        }
    }
    let text = String::from_utf8_lossy(&softkvm(&["--help"]).stdout).into_owned();
    for wanted in ["Examples", "softkvm demo --run", "Ctrl-A x"] {
        assert!(text.contains(wanted), "{wanted}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_softkvm"))
        .args(["check", "--json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    // As `softkvm check --json | head -0`: nobody reads.
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn check_answers_on_any_host() {
    let output = softkvm(&["check", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(["usable", "unusable", "missing"].contains(&value["device"].as_str().unwrap()));
    let output = softkvm(&["check"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("/dev/kvm"));
}

/// Whether guests can run here; says so if not.
fn guests_run(test: &str) -> bool {
    let output = softkvm(&["check", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let runs = value["guests_run"].as_bool().unwrap();
    if !runs {
        eprintln!("SKIP {test}: no backend here runs guests");
    }
    runs
}

#[test]
fn the_built_in_guest_shows_what_it_promises() {
    if !guests_run("the_built_in_guest_shows_what_it_promises") {
        return;
    }
    for cpus in ["1", "2"] {
        let arguments = ["demo", "--builtin", "--timeout", "60", "--mem", "16M", "--cpus", cpus, "--stats"];
        let output = softkvm(&arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}\n{}", stderr(&output));
        for wanted in [
            "cpuid: vendor ",
            "memory: 15999 KiB of RAM in the memory map; 1 MiB of pattern reads back",
            "paging: page fault at 0000008000000008, error code 2; mapped, stored, seen at the other address",
            "timer: 10 interrupts in ",
            "all shown, powering off",
        ] {
            assert!(text.contains(wanted), "{wanted:?} in\n{text}");
        }
        assert!(stderr(&output).contains("power-off after"), "{}", stderr(&output));
    }
}

#[test]
fn each_end_of_a_guest_has_its_status() {
    if !guests_run("each_end_of_a_guest_has_its_status") {
        return;
    }
    let files = Files::new();
    // mov dx, port; mov ax, value; out dx, ax or al
    let out_ax = |port: u16, value: u16| {
        let ([p0, p1], [v0, v1]) = (port.to_le_bytes(), value.to_le_bytes());
        vec![0x66, 0xba, p0, p1, 0x66, 0xb8, v0, v1, 0x66, 0xef, 0xf4]
    };
    let out_al = |port: u16, value: u8| {
        let [p0, p1] = port.to_le_bytes();
        vec![0x66, 0xba, p0, p1, 0xb0, value, 0xee, 0xf4]
    };
    let cases: &[(&str, Vec<u8>, i32, &str)] = &[
        ("power off", out_ax(0x604, 0x3400), 0, ""),
        ("reset by the reset register", out_al(0xcf9, 0x06), 0, ""),
        ("reset by the keyboard controller", out_al(0x64, 0xfe), 0, ""),
        ("undefined instruction without an IDT", vec![0x0f, 0x0b], 3, "ud2"),
        ("a jump to unmapped memory", vec![0xff, 0x24, 0x25, 0, 0, 0x20, 0], 3, "triple fault"),
        ("an endless loop", vec![0xeb, 0xfe], 5, "time limit"),
        ("a halt that nothing ends", vec![0xfa, 0xf4], 5, "time limit"),
    ];
    for (what, code, status, wanted) in cases {
        let kernel = files.with("kernel", &tiny_kernel(code));
        let output = softkvm(&["run", "--kernel", &kernel, "--mem", "64M", "--timeout", "2", "--json"]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(*status), "{what}: {text}");
        assert!(text.contains(wanted), "{what}: {text}");
        let json = text.lines().last().unwrap();
        let value: serde_json::Value =
            serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
        assert_eq!(value["status"], *status, "{what}");
        if *status == 3 {
            assert!(text.contains("rip=") && text.contains("cr3="), "{what}: no registers in {text}");
        }
    }
    let kernel = files.with("kernel", &tiny_kernel(&[0xf4]));
    refused(&["run", "--kernel", &kernel, "--cpus", "0"], "--cpus 0");
    refused(&["run", "--kernel", &kernel, "--cpus", "100000"], "--cpus 100000");
    refused(&["run", "--kernel", &kernel, "--mem", "16M"], "too little memory");
    refused(&["run", "--kernel", &kernel, "--mem", "9000000G"], "--mem");
    refused(&["run", "--kernel", &kernel, "--cmdline", &"x".repeat(3000)], "command line");
}

/// Ctrl-A x, a timeout and a deadly signal all leave the terminal as it was. util-linux' `script` gives the
/// program a terminal.
#[test]
fn every_way_out_restores_the_terminal() {
    const TEST: &str = "every_way_out_restores_the_terminal";
    if !guests_run(TEST) {
        return;
    }
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("SKIP {TEST}: no script(1)");
        return;
    }
    let files = Files::new();
    let kernel = files.with("kernel", &tiny_kernel(&[0xeb, 0xfe]));
    let folder = files.0.as_path().display();
    let run = format!("{} run --kernel {kernel} --mem 64M", env!("CARGO_BIN_EXE_softkvm"));
    // Each case: keys typed while the guest runs, how it is started, the status that the shell sees.
    let killed = |signal: &str| {
        let kill = format!("sleep 1; kill -{signal} $(cat {folder}/pid)");
        format!("({kill}) & sh -c 'echo $$ >{folder}/pid; exec {run} --timeout 20'")
    };
    let cases = [
        ("Ctrl-A x", "sleep 1; printf 'abc\\001x'; sleep 1", format!("{run} --timeout 60"), 0),
        ("timeout", "sleep 2", format!("{run} --timeout 1"), 5),
        ("SIGTERM", "sleep 2", killed("TERM"), 128 + 15),
        ("SIGABRT", "sleep 2", killed("ABRT"), 128 + 6),
    ];
    for (what, keys, start, status) in cases {
        let session = files.with(
            "session",
            format!("stty -a >{folder}/before; {start}; echo status $?; stty -a >{folder}/after").as_bytes(),
        );
        let line = format!("({keys}) | script -qec 'sh {session}' /dev/null");
        let output = Command::new("sh").args(["-c", &line]).output().expect("sh runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(&format!("status {status}")), "{what}: {text}\n{}", stderr(&output));
        let read = |name: &str| fs::read_to_string(files.0.as_path().join(name)).unwrap();
        assert!(read("before").contains(" echo "), "{what}");
        assert_eq!(read("before"), read("after"), "{what}");
    }
}
