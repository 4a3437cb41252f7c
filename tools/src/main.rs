//! The program `softkvm`: reads the command line, starts a verb, and turns its end into an exit status.
//!
//! A module per verb (`run`, `demo`, `exec`, `check`, `bench`, `diff`); `machine` is the virtual PC and `devices` what it is
//! made of. Nothing here knows how a guest's processor works: that is behind `kvm`, the one place that names
//! the KVM that all of it runs on.

mod bench;
mod builtin_guest;
mod check;
mod cli;
mod demo;
mod devices;
mod diff;
mod exec;
mod guest_ram;
mod kvm;
mod machine;
mod outcome;
mod report;
mod run;
mod run_page;
mod terminal;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Verb};
use outcome::{Failure, STATUS_BAD_INPUT};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match EnvFilter::try_new(&cli.log) {
        Ok(filter) => {
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).compact().init();
        }
        Err(error) => {
            eprintln!("softkvm: --log {}: {error}", cli.log);
            return ExitCode::from(STATUS_BAD_INPUT);
        }
    }
    let status: Result<u8, Failure> = match cli.verb {
        Verb::Run(args) => run::run(args),
        Verb::Demo(args) => demo::demo(args),
        Verb::Exec(args) => exec::exec(args),
        Verb::Check(args) => check::check(args),
        Verb::Bench(args) => bench::bench(args),
        Verb::Diff(args) => diff::diff(args),
    };
    ExitCode::from(status.unwrap_or_else(|failure| {
        eprintln!("softkvm: {failure}");
        failure.status()
    }))
}
