//! QEMU as the distribution built it, under `softkvm exec`: a ROM in each division of the interrupt controllers, and a
//! selection of `tests/qemu/run`, which has guests with Debian's kernel.

use softkvm_tests::{program, skip::skip, workspace::root};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The script's status for "cannot be had here".
const UNAVAILABLE: i32 = 3;

fn softkvm() -> &'static Path {
    program::path().expect("softkvm builds")
}

/// `softkvm exec -- qemu-system-x86_64 ARGUMENTS`, ended after a minute if it hangs.
fn exec(arguments: &[&str]) -> Output {
    let mut c = Command::new("timeout");
    c.arg("60").arg(softkvm()).args(["exec", "--", "qemu-system-x86_64"]).args(arguments);
    c.output().unwrap_or_else(|e| panic!("{c:?}: {e}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A ROM of 64 KiB for a PC: says "hello" by port 0xe9, and ends QEMU with status 43.
fn rom() -> Vec<u8> {
    let mut code = Vec::new();
    for letter in b"hello\n" {
        // mov al, letter; out 0xe9, al
        code.extend([0xb0, *letter, 0xe6, 0xe9]);
    }
    // mov dx, 0x501; mov al, 21; out dx, al; hlt
    code.extend([0xba, 0x01, 0x05, 0xb0, 21, 0xee, 0xf4]);
    let mut rom = vec![0xf4; 0x10000];
    rom[..code.len()].copy_from_slice(&code);
    // The reset vector: jmp 0 in the same segment (CS.base is 0xffff0000).
    rom[0xfff0..0xfff3].copy_from_slice(&[0xe9, 0x0d, 0x00]);
    rom
}

/// QEMU as the distribution built it, in each way in which the interrupt controllers can be divided.
#[test]
fn a_rom() {
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        return skip("qemu::a_rom", false, "qemu-system-x86_64 is not installed");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("rom");
    std::fs::write(&file, rom()).expect("it is ours");
    let rom = file.display().to_string();
    for (machine, irqchip, cpus) in
        [("pc", "on", "1"), ("q35", "on", "2"), ("q35", "split", "1"), ("pc", "off", "1")]
    {
        let accel = format!("kvm,kernel-irqchip={irqchip}");
        let arguments = [
            "-accel",
            &accel,
            "-M",
            machine,
            "-smp",
            cpus,
            "-cpu",
            "host",
            "-bios",
            &rom,
            "-m",
            "64",
            "-nodefaults",
            "-display",
            "none",
            "-debugcon",
            "stdio",
            "-device",
            "isa-debug-exit,iobase=0x501,iosize=1",
        ];
        let out = exec(&arguments);
        let said = format!("{accel} {machine}: {}\n{}", text(&out.stdout), text(&out.stderr));
        assert_eq!(out.status.code(), Some(43), "{said}");
        assert_eq!(text(&out.stdout), "hello\n", "{said}");
    }
}

/// Debian's kernel boots, is saved and loaded, moves to another QEMU, and is debugged.
#[test]
fn debian() {
    const TEST: &str = "qemu::debian";
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        return skip(TEST, false, "qemu-system-x86_64 is not installed");
    }
    let out = Command::new(root().join("tests/qemu/run"))
        .args(["--quick", "--timeout", "240", "--softkvm"])
        .arg(softkvm())
        .stdin(Stdio::null())
        .output();
    let out = match out {
        Ok(out) => out,
        Err(e) => return skip(TEST, false, &format!("tests/qemu/run: {e}")),
    };
    let (said, errors) = (text(&out.stdout), text(&out.stderr));
    if out.status.code() == Some(UNAVAILABLE) {
        return skip(TEST, true, errors.lines().last().unwrap_or("no reason given"));
    }
    eprintln!("{said}");
    assert_eq!(out.status.code(), Some(0), "{said}\n{errors}");
    for absent in said.lines().filter(|l| l.split_whitespace().nth(1) == Some("absent")) {
        skip(TEST, false, absent);
    }
    // What cannot be had is in the table; the boot can.
    assert!(said.lines().any(|l| l.starts_with("boot-q35-split-2") && l.contains(" good ")), "{said}");
}
