//! Whether two machines agree on a case, and what a disagreement is called.

use crate::case::{Bits, Case};
use crate::compare::{self, Difference};
use crate::coverage::decode;
use crate::engine::{Ending, Executed};
use crate::exempt;
use crate::oracle::{Answer, Lost};
use iced_x86::Mnemonic;

/// What became of a case.
#[derive(Debug)]
pub enum Verdict {
    /// Both came to the same end.
    Agreed,
    /// They differ.
    Mismatch(Vec<Difference>),
    /// One of the two has no outcome and the other has: the text says what.
    Ended(String),
    /// The host's kernel was entered, or the child was lost: nothing to compare.
    NoOracle(String),
}

/// Compares.
pub fn judge(case: &Case, oracle: &Answer, engine: &Executed) -> Verdict {
    // The kernel's entries: from 32-bit code they come back where no seccomp filter looks.
    if matches!(decode(case).mnemonic(), Mnemonic::Syscall | Mnemonic::Sysenter) {
        return Verdict::NoOracle("SYSCALL and SYSENTER enter the host's kernel".into());
    }
    match (oracle, engine) {
        (Answer::Done(o), Ok(e)) => {
            let differences = compare::differences(case, o, e);
            if differences.is_empty() { Verdict::Agreed } else { Verdict::Mismatch(differences) }
        }
        (Answer::Lost(Lost::Hung), Err(Ending::Hung)) => Verdict::Agreed,
        (Answer::Lost(Lost::Hung), _) if case.selectors[2] & 4 != 0 && exempt::is_far(&decode(case)) => {
            Verdict::NoOracle(
                "the kernel does not come back from a far transfer with a stack of the LDT".into(),
            )
        }
        (Answer::Lost(Lost::Hung), _) => {
            Verdict::Ended("the host did not come to an end, softkvm did".into())
        }
        (Answer::Lost(lost), _) => Verdict::NoOracle(format!("{lost:?}")),
        (Answer::Done(o), Err(Ending::Hung)) => Verdict::Ended(format!(
            "the host came to vector {} at RIP {:#x}, softkvm to no end",
            o.vector, o.rip
        )),
        (Answer::Done(o), Err(Ending::Exit(exit))) => Verdict::Ended(format!(
            "the host came to vector {} at RIP {:#x}, softkvm left with {exit}",
            o.vector, o.rip
        )),
    }
}

/// Failures of one key are taken for one fault.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    /// The mode.
    pub bits: Bits,
    /// The instruction: iced's name of it.
    pub code: String,
    /// What differed first.
    pub kind: String,
}

impl Key {
    /// The key of a failure.
    pub fn of(case: &Case, verdict: &Verdict) -> Option<Key> {
        let kind = match verdict {
            Verdict::Mismatch(differences) => differences.first()?.kind.to_string(),
            Verdict::Ended(_) => "end".into(),
            _ => return None,
        };
        Some(Key { bits: case.bits, code: format!("{:?}", decode(case).code()), kind })
    }
}
