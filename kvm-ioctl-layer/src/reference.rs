//! `docs/kvm-api.md`, from the tables: which part of the API is there. Written anew when `SOFTKVM_WRITE_DOCS=1` is set, and
//! compared by a test otherwise.

use crate::caps;
use crate::exits::{EXITS, FIELDS, Leaves};
use crate::table::{FdKind, Status, TABLE};
use std::fmt::Write;

fn cap_name(cap: u32) -> &'static str {
    kvm_api::cap::name(cap).unwrap_or("?")
}

fn page() -> String {
    let mut out = String::from(
        "# The KVM API: what is there\n\n\
         Made from `kvm-ioctl-layer/src/{table,caps,exits}.rs`; a test compares them, and writes this page anew with\n\
         `SOFTKVM_WRITE_DOCS=1 cargo test -p kvm-ioctl-layer reference`.\n\n\
         Sections `4.nn` are those of the API document of 2010, `api.rst` is today's. Where the two differ, the note says what was\n\
         chosen. *Answered* is what an x86 kernel answers to an ioctl that it does not have; *missing* is not here yet, and its\n\
         capability is answered 0.\n",
    );
    for (kind, title) in [(FdKind::System, "System"), (FdKind::Vm, "VM"), (FdKind::Vcpu, "vCPU")] {
        let _ = write!(
            out,
            "\n## {title} ioctls\n\n| ioctl | section | capability | | note |\n|---|---|---|---|---|\n"
        );
        for row in TABLE.iter().filter(|r| r.fd == kind) {
            let status = match row.status() {
                Status::Implemented => "works",
                Status::Answered => "answered",
                Status::Later => "missing",
            };
            let cap = if row.capability == 0 { "basic" } else { cap_name(row.capability) };
            let _ = writeln!(out, "| {} | {} | {cap} | {status} | {} |", row.name, row.section, row.note);
        }
    }
    out += "\n## struct kvm_run (section 5)\n\n| field | | meaning here |\n|---|---|---|\n";
    for field in FIELDS {
        let _ = writeln!(out, "| {} | {} | {} |", field.name, field.direction, field.note);
    }
    out += "\n| exit reason | number | member | happens | when, or why not |\n|---|---|---|---|---|\n";
    for exit in EXITS {
        let happens = match exit.leaves {
            Leaves::With(0) => "yes".to_owned(),
            Leaves::With(cap) if caps::answer(cap) > 0 => format!("with {}", cap_name(cap)),
            Leaves::With(cap) => format!("no: {} is 0", cap_name(cap)),
            Leaves::Never => "never".to_owned(),
        };
        let _ = writeln!(
            out,
            "| {} | {} | {} | {happens} | {} |",
            exit.name, exit.reason, exit.member, exit.note
        );
    }
    out += "\n## Capabilities\n\nKVM_CHECK_EXTENSION answers these with more than 0, and every other with 0:\n\n";
    for (name, _) in caps::OFFERED {
        let _ = writeln!(out, "- {name}");
    }
    out
}

#[test]
fn the_page_shows_the_tables() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kvm-api.md");
    let want = page();
    if std::env::var_os("SOFTKVM_WRITE_DOCS").is_some() {
        std::fs::write(&path, &want).expect("docs can be written");
    }
    let is = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(is == want, "docs/kvm-api.md is not what the tables say; SOFTKVM_WRITE_DOCS=1 writes it");
}
