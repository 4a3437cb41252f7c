//! The guests: each exercises a part of what a processor remembers.
//!
//! Here are the plans; the code is in the modules, a mode to a file.

pub mod code;
mod legacy;
mod long;
mod pair;
mod random;

use super::machine::{Controllers, Plan, Start};
use crate::guest;

pub use legacy::{pae, real, virtual_8086};
pub use long::{debugged, no_controllers, split, start_64, whole};
pub use pair::pair;
pub use random::random;

/// The harness's own guest ([`crate::guest`]), in slices: real, protected and 64-bit mode, two processors.
pub fn harness(instructions: u64) -> Plan {
    let image = guest::image().expect("the guest assembles");
    let mut plan = Plan::one("harness", Controllers::Full, Start::default(), 0);
    plan.ram = guest::layout::RAM;
    plan.pieces = image.pieces;
    plan.rom = Some((guest::layout::ROM, image.rom));
    plan.vcpus = vec![Start::default(), Start::default()];
    plan.slices = (0..instructions / 130).map(|n| (n as usize & 1, 100 + (n * 37) % 61)).collect();
    plan
}

/// The assembled guests, by name; all but the harness's own.
pub fn all() -> Vec<Plan> {
    let mut plans =
        vec![whole(false), whole(true), no_controllers(), split(), real(), pae(), virtual_8086(), pair()];
    // Single step, breakpoints in hardware, and both.
    plans.extend([3, 1 | 2 << 16, 3 | 2 << 16].map(debugged));
    plans
}
