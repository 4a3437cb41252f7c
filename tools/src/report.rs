//! What a verb prints as its result: a table for people, or one JSON object for scripts.

use serde::Serialize;
use std::io::{ErrorKind, Write};

use crate::outcome::Failure;

/// Prints `result` as JSON, or the text that `table` makes of it.
pub fn print<T: Serialize>(result: &T, json: bool, table: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    let text = if json {
        serde_json::to_string(result).map_err(|error| Failure::host("JSON", error))? + "\n"
    } else {
        table(result)
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // The reader (`head`, `less`) has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| Failure::host("standard output", error)),
    }
}
