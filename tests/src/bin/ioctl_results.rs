//! Asks what `softkvm_tests::ioctls` asks, and prints the answers: a line each.
//!
//! Run as it is, the kernel's `/dev/kvm` answers; under `softkvm exec`, the library; with the argument `dispatch`, the layer
//! in this process.

use softkvm_tests::ioctls::{ask, front::Dispatch, kernel::Kernel};
use std::process::ExitCode;

fn main() -> ExitCode {
    let lines = if std::env::args().nth(1).as_deref() == Some("dispatch") {
        ask(&Dispatch::default())
    } else {
        let Some(kernel) = Kernel::present() else {
            eprintln!("no /dev/kvm");
            return ExitCode::from(2);
        };
        ask(&kernel)
    };
    for line in lines {
        println!("{}", line.text());
    }
    ExitCode::SUCCESS
}
