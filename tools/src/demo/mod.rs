//! `softkvm demo`: Debian's cloud kernel and a shell in one command; or commands run in it; or, with neither
//! cache nor network, the built-in guest.
//!
//! `packages` fetches, `cache` keeps, `initramfs` builds the guest's file system, `marker` finds the commands'
//! status in their output. Booting is `run`'s.

pub mod cache;
pub mod initramfs;
mod marker;
pub mod packages;

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use crate::builtin_guest;
use crate::cli::{DemoArgs, GuestArgs};
use crate::devices::serial::Sink;
use crate::machine::{Machine, MachineConfig, Payload};
use crate::outcome::{Failure, Outcome, STATUS_HOST, STATUS_OK};
use crate::run;
use cache::GuestFiles;
use initramfs::Init;
use marker::MarkerFilter;

/// What every Debian guest is booted with. A panic resets at once, so that it ends the demo.
pub const CMDLINE: &str = "console=ttyS0 panic=-1";

/// The verb. Returns the exit status.
pub fn demo(args: DemoArgs) -> Result<u8, Failure> {
    if args.builtin {
        return run_builtin(&args.guest);
    }
    let files = match cache::debian_guest(args.refresh) {
        Ok(files) => files,
        Err(why) if args.run.is_some() => return Err(Failure::Host(why)),
        Err(why) => {
            eprintln!("softkvm: {why}");
            eprintln!("softkvm: booting the small built-in guest instead of Debian");
            return run_builtin(&args.guest);
        }
    };
    match args.run {
        Some(commands) => run_commands(&files, &commands, args.verbose, &args.guest),
        None => run_shell(&files, &args.guest),
    }
}

fn run_builtin(guest: &GuestArgs) -> Result<u8, Failure> {
    let program = builtin_guest::program().map_err(|error| Failure::host("built-in guest", error))?;
    let report = run::on_terminal(Payload::Raw(program), guest)?;
    Ok(run::conclude(&report, guest))
}

fn debian(files: &GuestFiles, init: &Init, guest: &GuestArgs, cmdline: String) -> Result<Payload, Failure> {
    let initrd = initramfs::build(files, init, guest.disk.is_some())
        .map_err(|error| Failure::host("building the initramfs", error))?;
    let mut payload = run::linux(&files.kernel(), None, cmdline)?;
    if let Payload::Linux { initrd: place, .. } = &mut payload {
        *place = Some(initrd);
    }
    Ok(payload)
}

fn run_shell(files: &GuestFiles, guest: &GuestArgs) -> Result<u8, Failure> {
    let payload = debian(files, &Init::Shell, guest, CMDLINE.into())?;
    let report = run::on_terminal(payload, guest)?;
    Ok(run::conclude(&report, guest))
}

/// Runs `commands`: their standard output is ours, their standard error is ours, their status is ours.
fn run_commands(files: &GuestFiles, commands: &str, verbose: bool, guest: &GuestArgs) -> Result<u8, Failure> {
    let marker = marker::fresh().map_err(|error| Failure::host("/dev/urandom", error))?;
    let init = Init::Run { commands: commands.into(), marker: marker.clone() };
    let cmdline = if verbose { CMDLINE.into() } else { format!("{CMDLINE} quiet") };
    let payload = debian(files, &init, guest, cmdline)?;

    let console = Console::default();
    let console_sink: Sink = if verbose { Box::new(std::io::stderr()) } else { Box::new(console.clone()) };
    let output = MarkerFilter::new(std::io::stdout(), &marker);
    let status = output.status();
    let machine = Machine::new(MachineConfig {
        memory: guest.memory,
        cpus: guest.cpus,
        clock: guest.engine_clock,
        disk: guest.disk.clone(),
        payload,
        serial: [Some(console_sink), Some(Box::new(output)), Some(Box::new(std::io::stderr()))],
    })?;
    let report = machine.run(guest.timeout)?;
    let ended = run::conclude(&report, guest);
    if let (STATUS_OK, Some(status)) = (ended, status.get()) {
        return Ok(status);
    }
    eprint!("{}", console.tail());
    if report.outcome == Outcome::PowerOff || report.outcome == Outcome::Reset {
        eprintln!("softkvm: the guest ended ({}) before the commands did", report.outcome.word());
        return Ok(STATUS_HOST);
    }
    Ok(ended)
}

/// The last words of a console that nobody watches, for when they are needed.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<VecDeque<u8>>>);

impl Console {
    const KEPT: usize = 8192;

    fn tail(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes.iter().copied().collect::<Vec<u8>>()).into_owned()
    }
}

impl Write for Console {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.extend(buffer);
        let excess = bytes.len().saturating_sub(Self::KEPT);
        bytes.drain(..excess);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
