//! From bytes to blocks of decoded instructions, with the validity rules of each mode.
//!
//! `iced-x86` decodes. This crate brings its result into the form that an interpreter and a
//! translator want ([`insn`]), finds where a straight-line block ends ([`block`]), decides what iced
//! does not decide ([`validity`]), and knows about each instruction what a translator must know
//! ([`mod@attrs`]).
//!
//! Architecture invariant: nothing here reads guest memory, knows a vCPU, or names a `kvm_*` type. The
//! caller brings the bytes.

pub mod attrs;
pub mod block;
pub mod insn;
pub mod validity;

pub use attrs::{Attr, Attrs, FlagUse, MemAccess, attrs, casts_shadow, flag_use};
pub use block::{Block, BlockEnd, NeedsMoreBytes, decode_block, decode_one};
pub use iced_x86::Code;
pub use insn::{CpuMode, Form, Insn, Mem, OperandKind, Prefixes};
pub use validity::{Context, CpuidSet, Protection, Vendor};
