//! What parent and child share, as plain integers in one mapping: the batch, its answers, and two futex
//! words.
//!
//! Layout only; who writes when is said at each field. The child's side is `child`, the parent's `super`.

use crate::case::{LINE, XSAVE};
use crate::layout::BACKING;
use std::sync::atomic::AtomicU32;

/// Lines of the backing.
pub const LINES: usize = BACKING / LINE;
/// Cases in a batch.
pub const BATCH: usize = 64;

/// The slot waits for the child, or the child stands at it.
pub const WAITING: u32 = 0;
/// `after` and `changed` are the outcome.
pub const DONE: u32 = 1;
/// The case asked for the system call whose number is in `detail`.
pub const SYSTEM_CALL: u32 = 2;
/// The host cannot be put into the case's state: found by the parent, or by a fault before the case's first
/// byte.
pub const REFUSED: u32 = 3;

/// The child is not ready yet. Other values: [`READY`], or a step of `child::STEPS` (from 2) and its errno.
pub const STARTING: u32 = 0;
/// The child waits for its first batch.
pub const READY: u32 = 1;

/// A processor's state, before a case or after it.
#[repr(C)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags, TF and IF included.
    pub rflags: u64,
    /// FS base.
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub selectors: [u16; 6],
    /// Standard format.
    pub xsave: [u8; XSAVE],
}

/// Lines of the backing: where, and what is there.
#[repr(C)]
pub struct Lines {
    /// How many are meant.
    pub count: u32,
    /// Offsets into the backing, multiples of [`LINE`].
    pub offsets: [u32; LINES],
    /// Contents.
    pub contents: [[u8; LINE]; LINES],
}

/// A case and its answer.
#[repr(C)]
pub struct Slot {
    /// The parent writes [`WAITING`] or [`REFUSED`], the child the rest.
    pub status: AtomicU32,
    /// A system call's number.
    pub detail: u32,
    /// Vector of the exception.
    pub vector: u32,
    /// Its error code.
    pub error_code: u32,
    /// CR2 as the frame has it.
    pub cr2: u64,
    /// The parent writes it.
    pub before: State,
    /// The child writes it.
    pub after: State,
    /// Lines that differ from the template before the case: the parent writes them.
    pub given: Lines,
    /// Lines that the case changed: the child writes them.
    pub changed: Lines,
}

/// The whole mapping behind the backing.
#[repr(C)]
pub struct Mailbox {
    /// How the child's start went: [`STARTING`], [`READY`] or the step that failed. A futex.
    pub boot: AtomicU32,
    /// errno of the step that failed.
    pub boot_errno: AtomicU32,
    /// The parent counts batches: a futex that the child waits for.
    pub ordered: AtomicU32,
    /// The child copies `ordered` here when it is through: a futex that the parent waits for.
    pub finished: AtomicU32,
    /// The slot at which the child stands; the parent sets the first one of an order.
    pub progress: AtomicU32,
    /// Slots in use.
    pub count: AtomicU32,
    /// Bytes of the XSAVE image in the kernel's signal frames, from the child's first.
    pub xstate_size: u32,
    /// MXCSR_MASK, from the child's first frame.
    pub mxcsr_mask: u32,
    /// Components in the kernel's signal frames.
    pub xfeatures: u64,
    /// What memory holds between cases: written once by the parent.
    pub template: [u8; BACKING],
    /// What memory held before the case that runs: the child's.
    pub shadow: [u8; BACKING],
    /// The batch.
    pub slots: [Slot; BATCH],
}
