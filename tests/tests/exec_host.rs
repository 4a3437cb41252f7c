//! `softkvm exec` and the host: one without `/dev/kvm`, users without rights, programs that cannot be served, and the host's
//! own KVM, which is never opened.

use softkvm_tests::client::{client, compile, exec_within, run, scratch, softkvm, text};
use softkvm_tests::skip::skip;
use std::path::Path;
use std::process::{Command, Output};

fn exec(options: &[&str], program: &Path, arguments: &[&str]) -> Output {
    exec_within(120, options, program, arguments)
}

/// Runs a script of the shell with the program and the VMM in `$SOFTKVM` and `$CLIENT`.
fn script(command: &mut Command, script: &str, client: &Path) -> Output {
    run(command.args(["sh", "-c", script]).env("SOFTKVM", softkvm()).env("CLIENT", client))
}

/// A mount namespace with an empty /dev.
fn without_dev() -> Command {
    let mut c = Command::new("timeout");
    c.args(["120", "unshare", "--map-root-user", "--mount"]);
    c
}

const HIDE: &str = "mount -t tmpfs none /dev && test ! -e /dev/kvm || exit 77; ";

#[test]
fn a_host_without_dev_kvm() {
    let Some(client) = client("kvm_client") else { return };
    for case in ["boot", "fds", "facts", "children", "interrupted"] {
        let out =
            script(&mut without_dev(), &format!("{HIDE} exec $SOFTKVM exec -- $CLIENT {case}"), &client);
        if out.status.code() == Some(77) || text(&out.stderr).contains("unshare") {
            return skip("exec_host::a_host_without_dev_kvm", false, "no mount namespace");
        }
        assert!(out.status.success(), "{case}: {} {}", out.status, text(&out.stderr));
    }
    // And `--backend host` finds that there is none.
    let out = script(
        &mut without_dev(),
        &format!("{HIDE} exec $SOFTKVM exec --backend host -- $CLIENT boot"),
        &client,
    );
    assert!(!out.status.success() && text(&out.stderr).contains("v.kvm >= 0"), "{}", text(&out.stderr));
}

/// A user without rights, on a host whose `/dev/kvm` is not his; files lie where he may read them.
#[test]
fn a_user_without_rights() {
    const TEST: &str = "exec_host::a_user_without_rights";
    let Some(client) = client("kvm_client") else { return };
    if !run(Command::new("id").arg("-u")).stdout.starts_with(b"0\n") {
        // Then this whole file is that test.
        return skip(TEST, false, "not root");
    }
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir_in("/tmp").expect("a temporary folder");
    let open = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    };
    open(folder.path());
    let library = softkvm().with_file_name("deps").join("libsoftkvm.so");
    for file in [softkvm(), &library, &client] {
        let to = folder.path().join(file.file_name().expect("a file"));
        std::fs::copy(file, &to).expect("it is copied");
        open(&to);
    }
    let here = |name: &str| folder.path().join(name);
    for case in ["boot", "facts", "children", "masks", "filtered"] {
        let mut c = Command::new("timeout");
        c.args(["120", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
        c.arg(here("softkvm")).args(["exec", "--"]).arg(here("kvm_client")).arg(case);
        let out = run(c.current_dir("/"));
        if text(&out.stderr).contains("setpriv") {
            return skip(TEST, false, &text(&out.stderr));
        }
        assert_eq!(out.status.code(), Some(0), "{case}: {}", text(&out.stderr));
    }
}

/// A filter of system calls that comes right behind the first irqfd finds the thread of the irqfds where it waits, not in its
/// beginning: with one processor, and before others in its queue, a new thread runs only when its maker waits for it.
#[test]
fn a_filter_behind_the_first_irqfd() {
    const TEST: &str = "exec_host::a_filter_behind_the_first_irqfd";
    let Some(client) = client("kvm_client") else { return };
    let alone = ["120", "taskset", "--cpu-list", "0", "chrt", "--fifo", "1"];
    let possible = run(Command::new("timeout").args(alone).arg("true"));
    if !possible.status.success() {
        return skip(TEST, false, &text(&possible.stderr));
    }
    let filtered =
        ["exec", "--"].map(AsRef::as_ref).into_iter().chain([client.as_os_str(), "filtered".as_ref()]);
    let out = run(Command::new("timeout").args(alone).arg(softkvm()).args(filtered));
    assert!(out.status.success(), "{} {}", out.status, text(&out.stderr));
}

/// inotify tells whoever opens a file, by whatever call. The one that is watched stands for the host's device, in a
/// namespace where nobody else is.
#[test]
fn the_hosts_kvm_is_not_opened() {
    const TEST: &str = "exec_host::the_hosts_kvm_is_not_opened";
    let (Some(client), Some(watch)) = (client("kvm_client"), client("watch")) else { return };
    let watched = |command: &str| {
        let text = format!("{HIDE} touch /dev/kvm; exec $WATCH /dev/kvm {command}");
        script(without_dev().env("WATCH", &watch), &text, &client)
    };
    let opened = watched("cat /dev/kvm");
    if opened.status.code() != Some(9) {
        return skip(TEST, false, &format!("no mount namespace, or no inotify: {}", text(&opened.stderr)));
    }
    for case in ["boot", "facts", "fds", "children", "threads"] {
        let out = watched(&format!("$SOFTKVM exec -- $CLIENT {case}"));
        assert_eq!(out.status.code(), Some(0), "{case}: {}", text(&out.stderr));
    }
    assert_eq!(watched("$SOFTKVM exec --backend host -- $CLIENT boot").status.code(), Some(9));
}

/// Each kind of program that the library cannot enter has its own message.
#[test]
fn refusals() {
    use std::os::unix::fs::PermissionsExt;
    let refused = |program: &Path, words: &[&str]| {
        let out = exec(&[], program, &[]);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(126), "{}: {said}", program.display());
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    };
    let source = scratch().join("empty.c");
    std::fs::write(&source, "int main(void) { return 0; }\n").expect("it is ours");
    if let Some(program) = compile("static-pie", &source, &["-static-pie"]) {
        refused(&program, &["statically linked"]);
    }
    if let Some(program) = compile("32-bit", &source, &["-m32", "-nostdlib", "-e", "main"]) {
        refused(&program, &["not a 64-bit x86 program"]);
    }
    if let Some(program) = compile("musl", &source, &["-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"]) {
        refused(&program, &["/lib/ld-musl-x86_64.so.1", "only glibc's"]);
    }
    // Another user's setuid program, and one with a group; as root, whose own it would not be.
    if let Some(program) = compile("setuid", &source, &[]) {
        let chown = run(Command::new("chown").args(["65534:65534"]).arg(&program));
        if chown.status.success() {
            for (mode, word) in [(0o4755, "setuid"), (0o2755, "setgid")] {
                std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode))
                    .expect("it is ours");
                refused(&program, &[word, "dynamic linker"]);
            }
        } else {
            skip("exec_host::refusals", false, "a setuid program: not root");
        }
    }
    // A script of a program that cannot be served is one that cannot be served.
    let script = scratch().join("script-of-static");
    if let Some(program) = compile("static", &source, &["-static"]) {
        std::fs::write(&script, format!("#!{}\n", program.display())).expect("it is ours");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        refused(&script, &["statically linked"]);
    }
}

/// Children inherit the library: shells, empty environments, system(), posix_spawn.
#[test]
fn children() {
    let Some(client) = client("kvm_client") else { return };
    for command in [
        "$CLIENT boot",
        "(exec $CLIENT boot)",
        "env -i $CLIENT boot",
        "echo x | xargs -I{} $CLIENT boot",
        "sh -c 'sh -c \"$CLIENT boot\"'",
        "env -u LD_PRELOAD $CLIENT boot",
        "nice $CLIENT boot && timeout 20 $CLIENT boot",
        "python3 -c \"import os, subprocess; subprocess.check_call([os.environ['CLIENT'], 'boot'], env={})\" || ! command -v python3",
        "perl -e 'exit system($ENV{CLIENT}, \"boot\") != 0' || ! command -v perl",
    ] {
        let mut c = Command::new(softkvm());
        let out = run(c.args(["exec", "--", "sh", "-c", command]).env("CLIENT", &client));
        assert!(out.status.success(), "{command}: {}", text(&out.stderr));
    }
}

/// `--trace` shows each ioctl with its argument as a structure, not as a pointer.
#[test]
fn the_trace_is_readable() {
    let Some(client) = client("kvm_client") else { return };
    let traced = |case: &str| {
        let file = scratch().join(format!("trace-{case}"));
        let out = exec(&[&format!("--trace={}", file.display())], &client, &[case]);
        assert!(out.status.success(), "{case}: {}", text(&out.stderr));
        let trace = std::fs::read_to_string(file).expect("it was written");
        let pointer = |l: &&str| l.contains(", 0x7ff") && !l.contains('{');
        assert_eq!(trace.lines().find(pointer), None, "{case}: a pointer for a structure");
        trace
    };
    for (case, lines) in [
        (
            "masks",
            &[
                "KVM_SET_SIGNAL_MASK, {len=8, sigset=0x0, ...}) = 0",
                "KVM_RUN, 0x0) = -1 EINTR (Interrupted system call)",
            ][..],
        ),
        (
            "filtered",
            &[
                "KVM_CREATE_IRQCHIP, 0x0) = 0",
                "KVM_CREATE_VCPU, 0) = ",
                "KVM_IRQFD, {fd=",
                "gsi=5, flags=0x0",
                "KVM_SET_CPUID2, {nent=",
                "entries=[{function=0x0, index=0x0, flags=0x0, eax=0x",
            ],
        ),
        (
            "coalesced",
            &[
                "KVM_REGISTER_COALESCED_MMIO, {addr=0x20000, size=0x1000, pio=0}) = 0",
                "KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_MMIO) = 2",
                "KVM_GET_SREGS, 0x",
                ") = 0 {cr0=0x60000010, ",
            ],
        ),
        ("vanishing", &["KVM_RUN, 0x0) = -1 EFAULT (Bad address)"]),
    ] {
        let trace = traced(case);
        for line in lines {
            assert!(trace.contains(line), "{case}: {line:?} in\n{trace}");
        }
    }
}
