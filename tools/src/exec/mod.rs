//! `softkvm exec`: starts a program that finds the software processor behind `/dev/kvm`.
//!
//! The shared library does the work (`tools/preload`); here it is found, the program is looked at, and the environment
//! is made. Then this process becomes the program. Not here: what the library answers.

mod library;
#[path = "../../preload/src/protocol.rs"]
#[allow(dead_code)] // The library uses the rest.
mod protocol;
mod target;

use crate::cli::{Backend, ExecArgs};
use crate::outcome::Failure;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// PROGRAM was not found, as shells say it.
const STATUS_NOT_FOUND: u8 = 127;
/// PROGRAM cannot be executed, or not with the library.
const STATUS_CANNOT_EXECUTE: u8 = 126;

/// Becomes PROGRAM. Comes back only if that cannot be.
pub fn exec(args: ExecArgs) -> Result<u8, Failure> {
    let Some((program, rest)) = args.command.split_first() else {
        return Err(Failure::BadInput("exec needs a program".into()));
    };
    let mut command = Command::new(program);
    command.args(rest);
    if args.backend == Backend::Soft {
        if let Err(refusal) = target::check(program) {
            eprintln!("softkvm: {refusal}");
            return Ok(refusal.status());
        }
        let library = library::find()?;
        let mut preload = library.into_os_string();
        if preload.as_bytes().iter().any(|b| matches!(b, b' ' | b':')) {
            return Err(Failure::Host(format!(
                "{}: the dynamic linker takes no path with a space or a colon",
                preload.display()
            )));
        }
        if let Some(before) = std::env::var_os(protocol::PRELOAD).filter(|v| !v.is_empty()) {
            preload.push(":");
            preload.push(before);
        }
        command.env(protocol::PRELOAD, preload).env(protocol::EXEC, protocol::BUILD_ID);
        match &args.trace {
            Some(file) => command.env(protocol::TRACE, trace_file(file)?),
            None => command.env_remove(protocol::TRACE),
        };
        if faults_on_cpuid() {
            command.env(protocol::CPUID, "1");
        } else {
            command.env_remove(protocol::CPUID);
        }
    }
    let error = command.exec();
    eprintln!("softkvm: {}: {error}", program.display());
    Ok(match error.kind() {
        std::io::ErrorKind::NotFound => STATUS_NOT_FOUND,
        _ => STATUS_CANNOT_EXECUTE,
    })
}

/// The trace's file from any directory that the program may change to; `-` is stderr.
fn trace_file(file: &std::path::Path) -> Result<OsString, Failure> {
    if file.as_os_str() == "-" {
        return Ok(file.into());
    }
    std::fs::File::create(file).map_err(|e| Failure::host(file.display(), e))?;
    Ok(std::path::absolute(file).map_err(|e| Failure::host(file.display(), e))?.into())
}

/// Whether this host can fault on CPUID: the kernel says so among the processor's flags.
pub fn faults_on_cpuid() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        text.lines()
            .find(|l| l.starts_with("flags"))
            .is_some_and(|l| l.split_whitespace().any(|f| f == "cpuid_fault"))
    })
}
