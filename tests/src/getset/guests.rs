//! The guests: each exercises a part of what a processor remembers.
//!
//! Here are the plans; the code is in the modules, a mode to a file.

pub mod code;
mod controllers;
mod legacy;
mod long;
mod pair;
mod paravirtual;
mod random;
mod smm;

use super::machine::{Controllers, Plan, Start};
use crate::guest;

pub use controllers::{controllers, injected, model_specific};
pub use legacy::{pae, real, virtual_8086};
pub use long::{debugged, no_controllers, split, start_64, whole};
pub use pair::pair;
pub use paravirtual::{eoi_exits, hypercalls, paravirtual};
pub use random::random;
pub use smm::{smm, smm_pair};

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
    plans.extend([smm(), smm_pair(), paravirtual(), hypercalls(), eoi_exits(), model_specific(), injected()]);
    plans.extend(controllers());
    // Single step, breakpoints in hardware, and both; then breakpoints in memory.
    plans.extend([3, 1 | 2 << 16, 3 | 2 << 16, 1 | 1 << 16, 3 | 1 << 16].map(debugged));
    plans
}
