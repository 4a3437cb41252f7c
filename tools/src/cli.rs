//! The command line: verbs, options, and the help that teaches them. Not what the verbs do.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::demo::closure::package_name;

/// The statuses of `outcome`, in words.
const EXIT_STATUSES: &str = "\
Exit status:
  0  the guest powered off or reset, or you left with Ctrl-A x
  1  the host failed (no usable KVM, no network, a full disk)
  2  bad usage or bad input (a file that is not a kernel, too little memory)
  3  the guest took a triple fault; registers and code are on stderr
  4  internal error: KVM_RUN could not go on; registers and code are on stderr
  5  the time limit (--timeout) ran out
  6  `softkvm diff` found a difference
`softkvm demo --run` exits with the status of the commands.";

/// What `exec` serves.
const EXEC_HELP: &str = "\
PROGRAM's own exit status is returned. 127: it was not found; 126: it cannot be executed, or is of a kind that
cannot be served (statically linked, another C library than glibc, 32-bit, setuid); the message says which.
Its children inherit the library. A real /dev/kvm is never opened, and need not exist.";

const EXAMPLES: &str = "\
Examples:
  softkvm demo                              a Debian kernel and a shell, ready in one command
  softkvm demo --run 'uname -a; free'       run commands in the guest, get their output and status
  softkvm demo --packages openssl,zstd --run 'openssl speed -seconds 1 sha256'
                                            the same with Debian's packages in the guest
  softkvm run --kernel vmlinuz --initrd initrd.img --cmdline 'console=ttyS0'
  softkvm run --kernel vmlinuz --cpus 2 --mem 1G --disk root.img --cmdline 'console=ttyS0 root=/dev/vda'
  softkvm exec -- qemu-system-x86_64 -accel kvm -nographic -kernel vmlinuz -append console=ttyS0
  softkvm check                             what this host offers, and which backend is used
  softkvm bench                             time from start to init, against QEMU's TCG
  softkvm bench exits                       what an exit costs, beside the host's KVM
  softkvm diff insn --seconds 60            random instructions on this processor and on softkvm's

The guest's serial console is your terminal: Ctrl-A x leaves, Ctrl-A a types a Ctrl-A.";

/// Virtual machines without hardware virtualization, behind the Linux KVM API.
#[derive(Debug, Parser)]
#[command(name = "softkvm", version, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_STATUSES}"))]
pub struct Cli {
    /// Log to stderr what FILTER selects, in tracing's syntax: `debug`, `softkvm=trace`, `warn,kvm_ioctl_layer=debug`
    #[arg(long, global = true, value_name = "FILTER", default_value = "warn")]
    pub log: String,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Boot a Linux kernel
    #[command(after_long_help = EXIT_STATUSES)]
    Run(RunArgs),
    /// Boot Debian's cloud kernel to a shell; fetches what it needs the first time. The end of a piped input ends the shell
    #[command(after_long_help = EXIT_STATUSES)]
    Demo(DemoArgs),
    /// Start a program that finds the software processor behind /dev/kvm
    #[command(after_long_help = EXEC_HELP)]
    Exec(ExecArgs),
    /// Say what this host offers, which backend would be used, and what of the KVM API is there
    Check(CheckArgs),
    /// Measure the time from start to init against QEMU's TCG
    Bench(BenchArgs),
    /// Compare softkvm's processor with the one that it runs on
    Diff(DiffArgs),
}

/// The clock that the engine runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineClock {
    /// The host's time
    Real,
    /// Virtual time: retired instructions. Two runs with the same input are the same
    Counted,
}

/// Options that every guest has.
#[derive(Debug, Clone, Args)]
pub struct GuestArgs {
    /// Guest memory: a number with K, M or G; without a letter, MiB [default: 512M, and more where demo --packages needs it]
    #[arg(long = "mem", value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// Number of vCPUs; each runs in a thread of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Raw disk image for /dev/vda (virtio); it is locked while in use, and read-only without write permission
    #[arg(long, value_name = "IMAGE")]
    pub disk: Option<PathBuf>,
    /// End the guest after so many seconds, with status 5
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,
    /// The clock that the guest's processor runs on
    #[arg(long, value_name = "CLOCK", value_enum, default_value_t = EngineClock::Real)]
    pub engine_clock: EngineClock,
    /// Print counters to stderr at the end: instructions, exits by kind, TLB and shadow MMU
    #[arg(long)]
    pub stats: bool,
    /// Print how it ended to stderr, as one JSON object
    #[arg(long)]
    pub json: bool,
}

impl GuestArgs {
    /// What a guest has if nobody says otherwise.
    pub const DEFAULT_MEMORY: u64 = 512 << 20;

    /// The guest's memory in bytes.
    pub fn memory_size(&self) -> u64 {
        self.memory.unwrap_or(Self::DEFAULT_MEMORY)
    }
}

/// `softkvm run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Kernel image (a bzImage, what distributions call vmlinuz)
    #[arg(long, value_name = "BZIMAGE")]
    pub kernel: PathBuf,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "STRING", default_value = "console=ttyS0", allow_hyphen_values = true)]
    pub cmdline: String,
    /// The guest
    #[command(flatten)]
    pub guest: GuestArgs,
}

/// `softkvm demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Run COMMANDS with the guest's shell, print exactly their output, and exit with their status
    #[arg(long, value_name = "COMMANDS", allow_hyphen_values = true)]
    pub run: Option<String>,
    /// Debian packages for the guest, commas between them: they and what they depend on are its root. Fetched once
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = package_name, conflicts_with = "builtin")]
    pub packages: Vec<String>,
    /// With --packages: print the folder that is the guest's root, for `unshare -r chroot`, and boot nothing
    #[arg(long, requires = "packages", conflicts_with = "run")]
    pub print_root: bool,
    /// With --run: show the guest's console on stderr
    #[arg(long, requires = "run")]
    pub verbose: bool,
    /// Boot the small built-in guest, which needs no download
    #[arg(long, conflicts_with_all = ["run", "disk"])]
    pub builtin: bool,
    /// Fetch the packages again, though the cache has some
    #[arg(long, conflicts_with = "builtin")]
    pub refresh: bool,
    /// The guest
    #[command(flatten)]
    pub guest: GuestArgs,
}

/// Whose KVM a program finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The software processor, also where a real /dev/kvm exists
    Soft,
    /// The host's own /dev/kvm: the program is started as it is
    Host,
}

/// `softkvm exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Print each ioctl, its argument and its result, to stderr or FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    pub trace: Option<PathBuf>,
    /// Whose KVM the program finds
    #[arg(long, value_name = "BACKEND", value_enum, default_value_t = Backend::Soft)]
    pub backend: Backend,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    pub command: Vec<std::ffi::OsString>,
}

/// `softkvm check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `softkvm bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// What else is measured
    #[command(subcommand)]
    pub verb: Option<BenchVerb>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// How often each of the two boots
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Guest memory: a number with K, M or G; without a letter, MiB
    #[arg(long = "mem", value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    pub memory: u64,
    /// The QEMU to compare with [default: qemu-system-x86_64 from PATH, or fetched into the cache]
    #[arg(long, value_name = "PROGRAM")]
    pub qemu: Option<PathBuf>,
    /// Give up on a boot after so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = parse_seconds)]
    pub timeout: Duration,
}

/// What `softkvm bench` measures besides the time to init.
#[derive(Debug, Subcommand)]
pub enum BenchVerb {
    /// What an exit costs: in process, under `softkvm exec`, and on the host's /dev/kvm
    Exits(BenchExitsArgs),
}

/// `softkvm bench exits`.
#[derive(Debug, Args)]
pub struct BenchExitsArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// How long each kind of exit is measured in a round
    #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub milliseconds: u64,
    /// Measure on /dev/kvm as this process finds it, and print JSON
    #[arg(long, hide = true)]
    pub client: bool,
}

/// `softkvm diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// What is compared
    #[command(subcommand)]
    pub verb: DiffVerb,
}

/// What `softkvm diff` compares.
#[derive(Debug, Subcommand)]
pub enum DiffVerb {
    /// Single instructions: each is executed by the host's processor and by softkvm's, and everything is compared
    #[command(after_long_help = DIFF_INSN)]
    Insn(DiffInsnArgs),
}

const DIFF_INSN: &str = "\
The host executes the original bytes in a child process, in user mode, with the same registers, flags, vector
state, memory and page permissions as the guest. A difference is reduced to the smallest case that shows it and
printed with the command line that repeats it.

Examples:
  softkvm diff insn                                 half a minute over everything
  softkvm diff insn --seconds 600 --missing         ten minutes; then what was not reached, and why
  softkvm diff insn --filter avx2,cmpxchg --seed 7  an extension by name, instructions by a part of theirs
  softkvm diff insn --case 'code=480fc7c8 rax=5'    one case, both outcomes
  softkvm diff insn --corpus tests/corpus/insn      the failures of the past

Exit status: 0 no difference; 1 the host cannot be the oracle; 2 bad usage; 6 there are differences.";

/// The modes that `softkvm diff insn` visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InsnBits {
    /// 64-bit mode, and 32-bit code in compatibility mode
    Both,
    /// 64-bit mode
    #[value(name = "64")]
    Only64,
    /// 32-bit code in compatibility mode
    #[value(name = "32")]
    Only32,
}

/// `softkvm diff insn`.
#[derive(Debug, Args)]
pub struct DiffInsnArgs {
    /// How long
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    pub seconds: Duration,
    /// In place of a time: visit each form of each instruction so often. With --seed it is the same run each time
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    pub rounds: Option<u64>,
    /// Only instructions whose name contains one of these words, or whose extension begins with one (`--filter avx512,vpadd`)
    #[arg(long, value_name = "WORDS", value_delimiter = ',')]
    pub filter: Vec<String>,
    /// Seed of everything random [default: a new one, which is printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Code sizes
    #[arg(long, value_name = "BITS", value_enum, default_value_t = InsnBits::Both)]
    pub bits: InsnBits,
    /// Workers, each with a child process for the host's side [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub jobs: Option<u32>,
    /// Different failures to reduce and print; more are only counted
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub failures: usize,
    /// List each form that was not reached, with the reason
    #[arg(long)]
    pub missing: bool,
    /// Execute one case, written as a failure prints it, and show both outcomes
    #[arg(long, value_name = "CASE", conflicts_with_all = ["filter", "seed", "rounds", "corpus", "save"])]
    pub case: Option<String>,
    /// Execute the cases of a folder (*.case)
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["filter", "seed", "rounds", "save"])]
    pub corpus: Option<PathBuf>,
    /// Write each failure, reduced, to a file in FOLDER
    #[arg(long, value_name = "FOLDER")]
    pub save: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A size with an optional K, M or G (KiB, MiB, GiB); a bare number counts MiB. Rounded up to a page.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let unit: u64 = match &text[digits.len()..] {
        "K" | "k" | "KiB" => 1 << 10,
        "" | "M" | "m" | "MiB" => 1 << 20,
        "G" | "g" | "GiB" => 1 << 30,
        _ => return Err("a size is a number with K, M or G, such as 512M".into()),
    };
    let number: u64 =
        digits.parse().map_err(|_| "a size is a number with K, M or G, such as 512M".to_string())?;
    number
        .checked_mul(unit)
        .and_then(|bytes| bytes.checked_next_multiple_of(4096))
        .ok_or_else(|| "this size is beyond 64 bits".into())
}

/// Seconds, fractions allowed.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a time is a number of seconds".to_string())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration > Duration::ZERO => Ok(duration),
        _ => Err("a time limit is a positive number of seconds".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            ("64", 64 << 20),
            ("8192K", 8 << 20),
            ("1k", 4096),
            ("0", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "1.5G", "1T", "0x10", "99999999999999999999", "17179869184G", "M5"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn time_limits() {
        assert_eq!(parse_seconds("1.5"), Ok(Duration::from_millis(1500)));
        for text in ["0", "-1", "nan", "inf", "1e300", "soon"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn options_have_the_documented_defaults() {
        let cli = Cli::try_parse_from(["softkvm", "run", "--kernel", "k"]).unwrap();
        let Verb::Run(run) = cli.verb else { panic!("run") };
        assert_eq!((run.guest.memory_size(), run.guest.cpus), (512 << 20, 1));
        assert_eq!(run.cmdline, "console=ttyS0");
        assert_eq!(run.guest.engine_clock, EngineClock::Real);
        for bad in [
            &["run"][..],
            &["run", "--kernel", "k", "--cpus", "-1"],
            &["demo", "--builtin", "--run", "x"],
            &["demo", "--builtin", "--packages", "zstd"],
            &["demo", "--packages", "zstd;reboot"],
            &["demo", "--print-root"],
            &["fly"],
            &[],
        ] {
            assert!(Cli::try_parse_from([&["softkvm"], bad].concat()).is_err(), "{bad:?}");
        }
    }
}
