//! Single instructions on softkvm's processor against the host's own: the differential behind `softkvm diff insn`.
//!
//! A [`Case`] is an instruction's bytes and everything it may look at: registers, flags, selectors, the XSAVE image, memory.
//! Two machines execute it in user mode, in the same address space ([`layout`]): the *oracle*, a child process
//! of ours in which the host's processor executes the original bytes at the guest's own linear address, and the *engine*, a
//! VM behind `kvm-ioctl-layer`'s public API. Each gives an [`Outcome`]. The oracle shares no code with the emulator.

pub mod case;
pub mod compare;
pub mod corpus;
pub mod coverage;
pub mod describe;
pub mod engine;
pub mod exempt;
pub mod generate;
pub mod image;
pub mod layout;
pub mod operand;
pub mod oracle;
pub mod run;
pub mod shrink;
pub mod text;
pub mod undefined;

pub use case::{Bits, Case, End, Outcome};
