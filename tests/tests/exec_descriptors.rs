//! `softkvm exec`: what a program does to KVM's descriptors beside KVM's ioctls has the kernel's answers
//! (`tests/clients/kvm_descriptors.c`): those of the host's own KVM where there is one, and those of
//! `tests/clients/kvm_descriptors.txt` everywhere. `SOFTKVM_UPDATE_GOLDENS=1` writes the file from the host's answers.

use softkvm_tests::client::{client, exec_within, run, text};
use softkvm_tests::skip::skip;
use softkvm_tests::workspace::root;
use std::fmt::Write;
use std::fs::File;
use std::process::{Command, Output};

/// Who is asked: the columns of the table.
const WHO: [&str; 8] = ["system", "read-only", "write-only", "vm", "vcpu", "vm-stats", "vcpu-stats", "child"];

/// The answers as a table: a line for each question, a column for each descriptor that was asked.
fn table(out: &Output) -> String {
    assert!(out.status.success(), "{}: {}", out.status, text(&out.stderr));
    let mut rows: Vec<(String, [Option<String>; WHO.len()])> = Vec::new();
    let mut others = String::new();
    for line in text(&out.stdout).lines() {
        let (question, answer) = line.rsplit_once(" = ").unwrap_or_else(|| panic!("{line:?} has no answer"));
        let who = WHO.iter().position(|w| question.split(' ').next() == Some(w));
        let Some((who, what)) = who.zip(question.split_once(' ').map(|q| q.1)) else {
            writeln!(others, "{line}").expect("memory");
            continue;
        };
        // The same question again is the next row of its name.
        match rows.iter_mut().find(|r| r.0 == what && r.1[who].is_none()) {
            Some(row) => row.1[who] = Some(answer.into()),
            None => {
                let mut answers: [Option<String>; WHO.len()] = Default::default();
                answers[who] = Some(answer.into());
                rows.push((what.into(), answers));
            }
        }
    }
    let mut table = String::new();
    for (what, answers) in rows {
        writeln!(table, "{what}").expect("memory");
        let mut n = 0;
        while n < WHO.len() {
            // Neighbours with the same answer share a line.
            let same = answers[n..].iter().take_while(|a| **a == answers[n]).count();
            if let Some(answer) = &answers[n] {
                writeln!(table, "    {}: {answer}", WHO[n..n + same].join(", ")).expect("memory");
            }
            n += same;
        }
    }
    table + &others
}

fn differences(left: &str, right: &str) -> String {
    let mut lines = String::new();
    let mut what = "";
    for (l, r) in left.lines().zip(right.lines()) {
        if !l.starts_with(' ') {
            what = l;
        }
        if l != r {
            writeln!(lines, "{what}\n  {l}\n  {r}").expect("memory");
        }
    }
    lines
}

#[test]
fn answers_are_the_kernels() {
    let Some(client) = client("kvm_descriptors") else { return };
    let golden = root().join("tests/clients/kvm_descriptors.txt");
    let exec = table(&exec_within(120, &[], &client, &[]));
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => {
            let host = table(&run(Command::new("timeout").arg("120").arg(&client)));
            if std::env::var_os("SOFTKVM_UPDATE_GOLDENS").is_some() {
                std::fs::write(&golden, &host).expect("the tree can be written");
            }
            assert!(exec == host, "exec's answer, the host's:\n{}", differences(&exec, &host));
        }
        Err(e) => skip("exec_descriptors", false, &format!("the host's own KVM: {e}")),
    }
    let expected = std::fs::read_to_string(&golden).expect("it is in the tree");
    assert!(exec == expected, "exec's answer, the expected:\n{}", differences(&exec, &expected));
}
