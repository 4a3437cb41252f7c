//! `softkvm bench`.
use crate::cli::BenchArgs;
use crate::outcome::Failure;
/// The verb.
pub fn bench(_args: BenchArgs) -> Result<u8, Failure> {
    Err(Failure::Host("not yet".into()))
}
