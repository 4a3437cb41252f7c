//! Whether this host's processor can be the single-instruction oracle. Where it cannot, tests that need it say so.

use crate::skip::skip;
use insn_diff::run::{Pair, RunError};

/// Whether the host can be the oracle; if not, the test is skipped, as one that a full run must not lack.
pub fn host_can_be_the_oracle(test: &str) -> bool {
    match Pair::start() {
        Ok(_) => true,
        Err(RunError::Oracle(error)) if error.is_the_hosts() => {
            skip(test, true, &error.to_string());
            false
        }
        Err(error) => panic!("{error}"),
    }
}
