//! How a run can end, and which exit status says so. Not the messages' wording: that is each verb's.
//!
//! The statuses are part of the program's interface; `softkvm --help` prints the same table.

use std::fmt;

/// Everything went well, or the guest powered off or reset, or the user left with Ctrl-A x.
pub const STATUS_OK: u8 = 0;
/// The host failed us: no usable KVM, a full disk, no network.
pub const STATUS_HOST: u8 = 1;
/// The command line or a file named on it cannot be used (clap uses the same status).
pub const STATUS_BAD_INPUT: u8 = 2;
/// A vCPU of the guest took a triple fault.
pub const STATUS_TRIPLE_FAULT: u8 = 3;
/// KVM_RUN ended with an internal error or could not enter the guest.
pub const STATUS_INTERNAL: u8 = 4;
/// `--timeout` ran out.
pub const STATUS_TIMEOUT: u8 = 5;
/// `softkvm diff` found that two processors differ.
pub const STATUS_MISMATCH: u8 = 6;

/// The end of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest asked for power off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The user left with Ctrl-A x.
    UserLeft,
    /// A triple fault, with the register and code dump.
    TripleFault(String),
    /// An internal error of the processor's implementation, with what it said and the dump.
    InternalError(String),
    /// The time was over.
    Timeout,
    /// KVM_RUN failed with an errno.
    HostError(String),
}

impl Outcome {
    /// The exit status of the program for this end.
    pub fn status(&self) -> u8 {
        match self {
            Outcome::PowerOff | Outcome::Reset | Outcome::UserLeft => STATUS_OK,
            Outcome::TripleFault(_) => STATUS_TRIPLE_FAULT,
            Outcome::InternalError(_) => STATUS_INTERNAL,
            Outcome::Timeout => STATUS_TIMEOUT,
            Outcome::HostError(_) => STATUS_HOST,
        }
    }

    /// One word for `--json`.
    pub fn word(&self) -> &'static str {
        match self {
            Outcome::PowerOff => "power-off",
            Outcome::Reset => "reset",
            Outcome::UserLeft => "user-left",
            Outcome::TripleFault(_) => "triple-fault",
            Outcome::InternalError(_) => "internal-error",
            Outcome::Timeout => "timeout",
            Outcome::HostError(_) => "host-error",
        }
    }

    /// What the user should read on stderr, if this end needs words.
    pub fn message(&self) -> Option<String> {
        match self {
            Outcome::PowerOff | Outcome::Reset | Outcome::UserLeft => None,
            Outcome::TripleFault(dump) => Some(format!("the guest took a triple fault\n{dump}")),
            Outcome::InternalError(dump) => Some(format!("internal error\n{dump}")),
            Outcome::Timeout => Some("the time limit (--timeout) ran out".into()),
            Outcome::HostError(what) => Some(what.clone()),
        }
    }
}

/// Why a verb could not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The input cannot be used; status 2.
    BadInput(String),
    /// The host failed; status 1.
    Host(String),
}

impl Failure {
    /// The exit status of the program for this failure.
    pub fn status(&self) -> u8 {
        match self {
            Failure::BadInput(_) => STATUS_BAD_INPUT,
            Failure::Host(_) => STATUS_HOST,
        }
    }

    /// A host failure from anything that can be printed, with what was being done.
    pub fn host(doing: impl fmt::Display, error: impl fmt::Display) -> Failure {
        Failure::Host(format!("{doing}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::BadInput(text) | Failure::Host(text) => formatter.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bad_end_has_a_status_of_its_own() {
        let ends = [
            Outcome::TripleFault(String::new()).status(),
            Outcome::InternalError(String::new()).status(),
            Outcome::Timeout.status(),
            Outcome::HostError(String::new()).status(),
            Failure::BadInput(String::new()).status(),
        ];
        for (position, status) in ends.iter().enumerate() {
            assert_ne!(*status, STATUS_OK);
            assert!(!ends[..position].contains(status), "status {status} is used twice");
        }
    }

    #[test]
    fn a_guest_that_ends_by_itself_is_success() {
        assert_eq!(Outcome::PowerOff.status(), 0);
        assert_eq!(Outcome::Reset.status(), 0);
        assert!(Outcome::PowerOff.message().is_none());
    }
}
