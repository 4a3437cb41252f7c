//! `softkvm exec`: programs that know KVM only as a kernel offers it, on the software processor.
//!
//! A VMM in C (`tests/clients/kvm_client.c`), compiled here, has a case for each thing that a program may rely on; a VMM
//! in Rust on the unchanged crate `kvm-ioctls` is `tests/src/bin/kvm_hello.rs`.

use softkvm_tests::client::{compile, exec_within, run, scratch, softkvm, text};
use softkvm_tests::skip::skip;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The VMM in C.
fn client() -> Option<PathBuf> {
    softkvm_tests::client::client("kvm_client")
}

/// `softkvm exec OPTIONS -- PROGRAM ARGUMENTS`, ended after a minute if it hangs.
fn exec(options: &[&str], program: &Path, arguments: &[&str]) -> Output {
    exec_within(60, options, program, arguments)
}

softkvm_tests::cases! { "kvm_client";
    boot "A guest says what it has to say.";
    fds "poll, epoll, dup, mmap, fstat, readlink; numbers that are used again.";
    lifetimes "Two hundred VMs leave no descriptor.";
    forks "A child's copies give EIO and take nothing away; it may have KVM of its own.";
    sockets "A vCPU that travels through a socket.";
    coalesced "The ring of coalesced MMIO, behind each vCPU's pages.";
    interrupted "EINTR, after the handler; the handler calls ioctls.";
    jumps "siglongjmp out of a handler.";
    masks "KVM_SET_SIGNAL_MASK: what is open only there stays pending, with its siginfo.";
    ignored "Ignored signals end nothing.";
    halted "A signal ends HLT.";
    vanishing "Unmapped guest memory is EFAULT, and no signal.";
    faults "The program's own faults reach its handlers as it asked.";
    unopened "The kernel's KVM is not among the descriptors.";
    facts "What the host looks like.";
    calls "open, ioctl and stat by every name that the C library has for them, and by syscall().";
    filtered "A filter of system calls that lets the documented ones through.";
    children "Children inherit the library, whatever environment they get.";
    threads "vCPUs in threads.";
}

#[test]
fn a_program_on_the_crate_kvm_ioctls() {
    let out = exec(&[], Path::new(env!("CARGO_BIN_EXE_kvm_hello")), &[]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout), "hello\n");
}

#[test]
fn the_status_is_the_programs() {
    let Some(client) = client() else { return };
    assert_eq!(exec(&[], &client, &["status=42"]).status.code(), Some(42));
    assert_eq!(exec(&["--backend", "host"], &client, &["status=43"]).status.code(), Some(43));
}

#[test]
fn the_trace_names_what_it_shows() {
    let Some(client) = client() else { return };
    let file = scratch().join("trace");
    let out = exec(&[&format!("--trace={}", file.display())], &client, &["boot"]);
    assert!(out.status.success() && out.stderr.is_empty(), "{}", text(&out.stderr));
    let trace = std::fs::read_to_string(file).expect("it was written");
    for line in [
        "open(\"/dev/kvm\") = ",
        "</dev/kvm>, KVM_GET_API_VERSION, 0x0) = 12",
        "<anon_inode:kvm-vm>, KVM_SET_USER_MEMORY_REGION, {slot=0x0, flags=0x0, guest_phys_addr=0x0, memory_size=0x10000, ",
        "<anon_inode:kvm-vcpu:0>, KVM_SET_REGS, {rip=0x1000, rflags=0x2, ",
        "KVM_RUN, 0x0) = 0 KVM_EXIT_IO {out, port=0x10, size=1, count=1, data=[68]}",
        "KVM_RUN, 0x0) = 0 KVM_EXIT_HLT",
    ] {
        assert!(trace.contains(line), "{line:?} in\n{trace}");
    }
    let out = exec(&["--trace"], &client, &["boot"]);
    assert!(text(&out.stderr).contains("KVM_CREATE_VM"), "{}", text(&out.stderr));
}

/// strace sees every system call of the process, whoever makes it.
#[test]
fn strace_sees_no_open_of_dev_kvm() {
    let Some(client) = client() else { return };
    let file = scratch().join("strace");
    let mut c = Command::new("timeout");
    c.args(["60", "strace", "-f", "-s", "4096", "-e", "trace=open,openat,openat2,ioctl", "-o"]).arg(&file);
    c.arg(softkvm()).args(["exec", "--"]).arg(&client).arg("fds");
    match c.output() {
        Ok(out) if out.status.success() => {}
        Ok(out) => {
            return skip("strace_sees_no_open_of_dev_kvm", false, &format!("strace: {}", text(&out.stderr)));
        }
        Err(e) => return skip("strace_sees_no_open_of_dev_kvm", false, &e.to_string()),
    }
    let calls = std::fs::read_to_string(file).expect("it was written");
    assert!(calls.contains("openat("), "{calls}");
    assert!(!calls.contains("\"/dev/kvm\""), "{calls}");
    assert!(!calls.contains("KVM_CREATE_VM"), "{calls}");
}

#[test]
fn what_cannot_be_served_is_refused() {
    let refused = |program: &Path, status: i32, word: &str| {
        let out = exec(&[], program, &[]);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(status), "{}: {said}", program.display());
        assert!(said.contains(word), "{}: {said}", program.display());
    };
    refused(Path::new("/nowhere/at/all"), 127, "not found");
    refused(Path::new("/etc/passwd"), 126, "permission denied");
    refused(Path::new("/"), 126, "is a directory");
    let source = scratch().join("nothing.c");
    std::fs::write(&source, "int main(void) { return 0; }\n").expect("it is ours");
    if let Some(program) = compile("static", &source, &["-static"]) {
        refused(&program, 126, "statically linked");
    }
}

/// A script is what its interpreter is.
#[test]
fn scripts() {
    use std::os::unix::fs::PermissionsExt;
    let Some(client) = client() else { return };
    let script = scratch().join("script");
    std::fs::write(&script, format!("#!/bin/sh\nexec {} boot\n", client.display())).expect("it is ours");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let out = exec(&[], &script, &[]);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

/// What was in LD_PRELOAD stays there, behind ours.
#[test]
fn other_libraries_stay() {
    let mut c = Command::new(softkvm());
    c.args(["exec", "--", "sh", "-c", "echo $LD_PRELOAD"]).env("LD_PRELOAD", "libm.so.6");
    let said = text(&run(&mut c).stdout);
    assert!(said.contains("libsoftkvm.so") && said.trim_end().ends_with(":libm.so.6"), "{said}");
}

/// A library without its program does nothing.
#[test]
fn the_library_alone_is_inert() {
    let library = softkvm().with_file_name("deps").join("libsoftkvm.so");
    assert!(library.exists(), "{}", library.display());
    let mut c = Command::new("/bin/sh");
    c.args(["-c", "cat /proc/cpuinfo"]).env("LD_PRELOAD", library).env_remove("SOFTKVM_EXEC");
    let with = run(&mut c);
    assert!(with.status.success());
    let flags = |t: &str| t.lines().find(|l| l.starts_with("flags")).map(str::to_owned);
    let host = std::fs::read_to_string("/proc/cpuinfo").expect("it is there");
    assert_eq!(flags(&text(&with.stdout)), flags(&host));
}
