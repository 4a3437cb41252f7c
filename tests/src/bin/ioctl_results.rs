//! Asks what `softkvm_tests::ioctls` asks, and prints the answers: a line each.
//!
//! Run as it is, the kernel's `/dev/kvm` answers; under `softkvm exec`, the library; with the argument `dispatch`, the layer
//! in this process. `compare FILE` prints in what the answers of another machine, printed there, differ from the
//! layer's without an excuse of `tests/nested/run`'s kernel, and `compare FILE all`, in what they differ at all.

use softkvm_tests::ioctls::{Line, ask, deviations::Excuses, front::Dispatch, kernel::Kernel};
use std::process::ExitCode;

fn compare(file: &str, all: bool) -> ExitCode {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("{file}: {error}");
            return ExitCode::from(2);
        }
    };
    let Some(theirs) = text.lines().map(Line::parse).collect::<Option<Vec<_>>>() else {
        eprintln!("{file}: not what this program prints");
        return ExitCode::from(2);
    };
    let found = Excuses::new(true).differences(&ask(&Dispatch::default()), &theirs, all);
    for line in &found {
        println!("{line}");
    }
    ExitCode::from(u8::from(!found.is_empty()))
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let lines = match arguments[..] {
        ["compare", file] => return compare(file, false),
        ["compare", file, "all"] => return compare(file, true),
        ["dispatch"] => ask(&Dispatch::default()),
        [] => {
            let Some(kernel) = Kernel::present() else {
                eprintln!("no /dev/kvm");
                return ExitCode::from(2);
            };
            ask(&kernel)
        }
        _ => {
            eprintln!("usage: ioctl_results [dispatch | compare FILE [all]]");
            return ExitCode::from(2);
        }
    };
    for line in lines {
        println!("{}", line.text());
    }
    ExitCode::SUCCESS
}
