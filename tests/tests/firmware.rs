//! Firmware under `softkvm exec`: SeaBIOS and OVMF on Debian's QEMU, with system-management mode and without.
//!
//! OVMF is Debian's package, unpacked into the cache. Its flash is a read-only memory slot whose writes are MMIO, and a
//! device without memory while it is programmed; its variables lie there. The build for Secure Boot keeps them, and its
//! drivers, in SMRAM.

use softkvm_tests::client::{exec_within, run, scratch, softkvm, text};
use softkvm_tests::skip::skip;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const QEMU: &str = "qemu-system-x86_64";
/// The package's folder below where it is unpacked.
const FILES: &str = "usr/share/OVMF";
/// No root file system, so the kernel panics; then it resets, which ends QEMU.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1";

fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    base.or_else(|| std::env::var_os("HOME").map(|h| Path::new(&h).join(".cache")))
        .unwrap_or_default()
        .join("softkvm")
}

/// QEMU, Debian's kernel, OVMF; or a printed skip.
fn needs(test: &str) -> Option<(PathBuf, PathBuf)> {
    if Command::new(QEMU).arg("--version").output().is_err() {
        skip(test, false, &format!("{QEMU} is not installed"));
        return None;
    }
    let kernel = cache().join("debian-guest/vmlinuz");
    if !kernel.exists() {
        skip(test, false, "no kernel in the cache: `softkvm demo` fetches it");
        return None;
    }
    match ovmf() {
        Ok(folder) => Some((kernel, folder)),
        Err(why) => {
            skip(test, false, &format!("no OVMF: {why}"));
            None
        }
    }
}

/// Debian's OVMF, fetched if it is not there.
fn ovmf() -> Result<PathBuf, String> {
    let home = cache().join("ovmf");
    let files = home.join(FILES);
    if files.exists() {
        return Ok(files);
    }
    std::fs::create_dir_all(cache()).map_err(|e| e.to_string())?;
    // Two tests may come here at once: each unpacks for itself, and the first to rename wins.
    let fresh = tempfile::tempdir_in(cache()).map_err(|e| e.to_string())?;
    let script = "apt-get download ovmf && dpkg-deb -x ovmf_*.deb out";
    let done = run(Command::new("sh").args(["-c", script]).current_dir(fresh.path()).stdin(Stdio::null()));
    if !done.status.success() {
        return Err(text(&done.stderr));
    }
    let _ = std::fs::rename(fresh.path().join("out"), &home);
    if files.exists() { Ok(files) } else { Err(format!("{} is not in the package", files.display())) }
}

/// Boots Debian's kernel by OVMF, handed over or from wherever `more` says, until it finds no root file system.
fn boot(name: &str, code: &str, machine: &str, more: &[&str], kernel: Option<&Path>, ovmf: &Path) {
    let variables = scratch().join(name);
    std::fs::copy(ovmf.join("OVMF_VARS_4M.fd"), &variables).expect("it is ours");
    let mut c = Command::new("timeout");
    // Without a limit OVMF of this age maps all of a wide physical address space in 2 MiB pages.
    c.arg("600").arg(softkvm()).args(["exec", "--", QEMU, "-accel", "kvm", "-m", "512", "-M", machine]);
    c.args(["-cpu", "host,host-phys-bits-limit=40", "-nodefaults", "-display", "none", "-no-reboot"]);
    c.args(["-serial", "stdio", "-drive"])
        .arg(format!("if=pflash,unit=0,format=raw,readonly=on,file={}", ovmf.join(code).display()))
        .arg("-drive")
        .arg(format!("if=pflash,unit=1,format=raw,file={}", variables.display()))
        .args(more);
    if let Some(kernel) = kernel {
        c.arg("-kernel").arg(kernel).args(["-append", COMMAND_LINE]);
    }
    let out = run(c.stdin(Stdio::null()));
    let said = text(&out.stdout);
    assert!(out.status.success(), "{name}: {}: {said}\n{}", out.status, text(&out.stderr));
    for line in ["by EDK II", "Hypervisor detected: KVM", "Unable to mount root fs"] {
        assert!(said.contains(line), "{name}: {line:?} in\n{said}");
    }
    let before = std::fs::read(ovmf.join("OVMF_VARS_4M.fd")).expect("it is there");
    let after = std::fs::read(&variables).expect("it is there");
    assert!(before != after, "{name}: the firmware has stored its variables");
}

#[test]
fn ovmf_boots_debian() {
    let Some((kernel, ovmf)) = needs("firmware::ovmf_boots_debian") else { return };
    boot("plain", "OVMF_CODE_4M.fd", "pc,smm=off", &["-smp", "2"], Some(&kernel), &ovmf);
}

/// The kernel as an EFI program on a FAT disk, which the firmware's shell starts.
#[test]
fn ovmf_boots_debian_from_a_disk() {
    let Some((kernel, ovmf)) = needs("firmware::ovmf_boots_debian_from_a_disk") else { return };
    let disk = scratch().join("esp");
    std::fs::create_dir_all(&disk).expect("it is ours");
    std::fs::copy(kernel, disk.join("vmlinuz.efi")).expect("it is ours");
    let script = format!("fs0:\r\nvmlinuz.efi {COMMAND_LINE}\r\n");
    std::fs::write(disk.join("startup.nsh"), script).expect("it is ours");
    let drive = format!("format=raw,file=fat:rw:{}", disk.display());
    boot("disk", "OVMF_CODE_4M.fd", "q35,smm=off", &["-drive", &drive], None, &ovmf);
}

/// The flash takes commands in system-management mode only; each CPU is brought there.
#[test]
fn ovmf_for_secure_boot_boots_debian() {
    let Some((kernel, ovmf)) = needs("firmware::ovmf_for_secure_boot_boots_debian") else { return };
    let secure = ["-smp", "2", "-global", "driver=cfi.pflash01,property=secure,value=on"];
    boot("secure", "OVMF_CODE_4M.secboot.fd", "q35,smm=on", &secure, Some(&kernel), &ovmf);
}

/// SeaBIOS moves SMBASE, and keeps a handler there: a boot sector makes an SMI, and goes on behind it.
#[test]
fn seabios_and_its_smi_handler() {
    const TEST: &str = "firmware::seabios_and_its_smi_handler";
    if Command::new(QEMU).arg("--version").output().is_err() {
        return skip(TEST, false, &format!("{QEMU} is not installed"));
    }
    // xor ax, ax; out 0b2h, al (APM control: an SMI)
    let mut sector = vec![0x31, 0xc0, 0xe6, 0xb2];
    for letter in b"hello\n" {
        // mov al, letter; out 0xe9, al
        sector.extend([0xb0, *letter, 0xe6, 0xe9]);
    }
    // mov dx, 0x501; mov al, 21; out dx, al; hlt
    sector.extend([0xba, 0x01, 0x05, 0xb0, 21, 0xee, 0xf4]);
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    let disk = scratch().join("sector");
    std::fs::write(&disk, sector).expect("it is ours");
    let drive = format!("format=raw,file={}", disk.display());
    let trace = scratch().join("smi.trace");
    let arguments = [
        "-accel",
        "kvm",
        "-M",
        "q35,smm=on",
        "-cpu",
        "host",
        "-m",
        "64",
        "-nodefaults",
        "-display",
        "none",
        "-debugcon",
        "stdio",
        "-device",
        "isa-debug-exit,iobase=0x501,iosize=1",
        "-drive",
        &drive,
    ];
    let out = exec_within(120, &[&format!("--trace={}", trace.display())], Path::new(QEMU), &arguments);
    let said = format!("{}\n{}", text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(43), "{said}");
    assert!(said.contains("hello\n"), "{said}");
    let trace = std::fs::read_to_string(trace).expect("it was written");
    // One that moves SMBASE, and one of ours.
    assert!(trace.matches("KVM_SMI").count() >= 2, "no SMI");
}
