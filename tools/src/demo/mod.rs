//! `softkvm demo`: Debian's cloud kernel and a shell in one command; or commands run in it; or, with neither
//! cache nor network, the built-in guest.
//!
//! `packages` fetches, `cache` keeps, `initramfs` builds the guest's file system, `marker` finds the commands'
//! status in their output. With `--packages`, `closure` says which ones and `root` makes a root of them. Booting is
//! `run`'s.

pub mod cache;
pub mod closure;
pub mod initramfs;
pub mod marker;
pub mod packages;
pub mod root;

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::builtin_guest;
use crate::cli::{DemoArgs, GuestArgs};
use crate::devices::serial::Sink;
use crate::machine::{Machine, MachineConfig, Payload};
use crate::outcome::{Failure, Outcome, STATUS_HOST, STATUS_OK};
use crate::run;
use crate::terminal::InputEnd;
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
        Err(why) if args.run.is_some() || !args.packages.is_empty() => return Err(Failure::Host(why)),
        Err(why) => {
            eprintln!("softkvm: {why}");
            eprintln!("softkvm: booting the small built-in guest instead of Debian");
            return run_builtin(&args.guest);
        }
    };
    let root = match args.packages.as_slice() {
        [] => None,
        packages => Some(root::debian_root(&files, packages, args.refresh).map_err(Failure::Host)?),
    };
    if let (true, Some(root)) = (args.print_root, &root) {
        println!("{}", root.display());
        return Ok(STATUS_OK);
    }
    match args.run {
        Some(commands) => run_commands(&files, root.as_deref(), &commands, args.verbose, args.guest),
        None => run_shell(&files, root.as_deref(), args.guest),
    }
}

fn run_builtin(guest: &GuestArgs) -> Result<u8, Failure> {
    let program = builtin_guest::program().map_err(|error| Failure::host("built-in guest", error))?;
    let report = run::on_terminal(Payload::Raw(program), guest, InputEnd::Silence)?;
    Ok(run::conclude(&report, guest))
}

/// The kernel with a root for it. Sets the guest's memory if that depends on the root.
fn debian(
    files: &GuestFiles,
    root: Option<&Path>,
    init: &Init,
    guest: &mut GuestArgs,
    cmdline: String,
) -> Result<Payload, Failure> {
    let initrd = initramfs::build(files, root, init, guest.disk.is_some())
        .map_err(|error| Failure::host("building the initramfs", error))?;
    if root.is_some() {
        guest.memory = Some(memory_for(initrd.len() as u64, guest.memory)?);
    }
    let mut payload = run::linux(&files.kernel(), None, cmdline)?;
    if let Payload::Linux { initrd: place, .. } = &mut payload {
        *place = Some(initrd);
    }
    Ok(payload)
}

/// Guest memory for an initramfs of so many bytes, or why what the user wants is too little. The archive is there
/// until it is unpacked, and the kernel lets a root in memory have half of the rest.
fn memory_for(initrd: u64, wanted: Option<u64>) -> Result<u64, Failure> {
    const STEP: u64 = 64 << 20;
    let least = (3 * initrd + (192 << 20)).next_multiple_of(STEP);
    match wanted {
        Some(size) if size < least => Err(Failure::BadInput(format!(
            "too little memory: a root of {} MiB needs at least --mem {}M; without --mem it gets what it needs",
            initrd >> 20,
            least >> 20
        ))),
        Some(size) => Ok(size),
        None => Ok((4 * initrd + GuestArgs::DEFAULT_MEMORY).next_multiple_of(STEP)),
    }
}

fn run_shell(files: &GuestFiles, root: Option<&Path>, mut guest: GuestArgs) -> Result<u8, Failure> {
    let payload = debian(files, root, &Init::Shell, &mut guest, CMDLINE.into())?;
    let report = run::on_terminal(payload, &guest, InputEnd::CtrlD)?;
    Ok(run::conclude(&report, &guest))
}

/// Runs `commands`: their standard output is ours, their standard error is ours, their status is ours.
fn run_commands(
    files: &GuestFiles,
    root: Option<&Path>,
    commands: &str,
    verbose: bool,
    mut guest: GuestArgs,
) -> Result<u8, Failure> {
    let marker = marker::fresh().map_err(|error| Failure::host("/dev/urandom", error))?;
    let init = Init::Run { commands: commands.into(), marker: marker.clone() };
    let cmdline = if verbose { CMDLINE.into() } else { format!("{CMDLINE} quiet") };
    let payload = debian(files, root, &init, &mut guest, cmdline)?;

    let console = Console::default();
    let console_sink: Sink = if verbose { Box::new(std::io::stderr()) } else { Box::new(console.clone()) };
    let output = MarkerFilter::new(std::io::stdout(), &marker);
    let status = output.status();
    let machine = Machine::new(MachineConfig {
        memory: guest.memory_size(),
        cpus: guest.cpus,
        clock: guest.engine_clock,
        disk: guest.disk.clone(),
        payload,
        serial: [Some(console_sink), Some(Box::new(output)), Some(Box::new(std::io::stderr()))],
    })?;
    let report = machine.run(guest.timeout)?;
    let ended = run::conclude(&report, &guest);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use vmm_sys_util::tempdir::TempDir;

    /// QEMU's TCG is the independent judge of the guest's files and of the way the status comes back.
    #[test]
    fn commands_and_their_status_come_back_under_qemu() {
        const SKIP: &str = "SKIP commands_and_their_status_come_back_under_qemu";
        let Some(files) = cache::cached_guest() else {
            eprintln!("{SKIP}: no Debian guest in the cache (softkvm demo fetches it)");
            return;
        };
        let marker = marker::fresh().unwrap();
        let commands = "uname -s; echo \"it's fine\"; printf '\\000\\r\\n\\377'; echo wrong >&2; cd /; ls; sleep 1000 & exit 42";
        let init = Init::Run { commands: commands.into(), marker: marker.clone() };
        let folder = TempDir::new().unwrap();
        let place = |name: &str| folder.as_path().join(name);
        std::fs::write(place("initrd"), initramfs::build(&files, None, &init, false).unwrap()).unwrap();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot", "-m", "512"]);
        for serial in ["console", "output", "errors"] {
            qemu.arg("-serial").arg(format!("file:{}", place(serial).display()));
        }
        qemu.arg("-kernel")
            .arg(files.kernel())
            .arg("-initrd")
            .arg(place("initrd"))
            .arg("-append")
            .arg(CMDLINE);
        match qemu.status() {
            Ok(status) => assert!(status.success(), "{status}"),
            Err(error) => {
                eprintln!("{SKIP}: qemu-system-x86_64: {error}");
                return;
            }
        }
        let mut output = Vec::new();
        let mut filter = MarkerFilter::new(&mut output, &marker);
        let status = filter.status();
        filter.write_all(&std::fs::read(place("output")).unwrap()).unwrap();
        drop(filter);
        let console = std::fs::read_to_string(place("console")).unwrap_or_default();
        assert_eq!(status.get(), Some(42), "{console}");
        let names = "bin\ncommands\ndev\netc\ninit\nmodules\nproc\nroot\nsbin\nsys\ntmp\n";
        let wanted = [b"Linux\nit's fine\n\0\r\n\xff".as_slice(), names.as_bytes()].concat();
        assert_eq!(String::from_utf8_lossy(&output), String::from_utf8_lossy(&wanted));
        assert_eq!(std::fs::read(place("errors")).unwrap(), b"wrong\n");
    }

    #[test]
    fn memory_grows_with_the_root_and_too_little_is_bad_input() {
        const MIB: u64 = 1 << 20;
        assert_eq!(memory_for(100 * MIB, None).unwrap(), 960 * MIB);
        assert_eq!(memory_for(100 * MIB, Some(512 * MIB)).unwrap(), 512 * MIB);
        let refused = memory_for(200 * MIB, Some(512 * MIB)).unwrap_err();
        assert!(matches!(&refused, Failure::BadInput(why) if why.contains("--mem 832M")), "{refused}");
    }

    #[test]
    fn the_console_keeps_its_last_words() {
        let mut console = Console::default();
        let words = "x".repeat(Console::KEPT) + "last words";
        console.write_all(words.as_bytes()).unwrap();
        assert_eq!(console.tail().len(), Console::KEPT);
        assert!(console.tail().ends_with("last words"));
    }
}
