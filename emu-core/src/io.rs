//! An instruction that needs the outside world in the middle, and its completion on re-entry.
//!
//! A read with no answer makes the handler return [`Stop::Need`](crate::exit::Stop::Need); nothing is
//! committed. On re-entry the instruction restarts and its earlier answers are
//! replayed in order. Writes are queued when the instruction commits, and
//! drained one exit each. This is the only state that outlives KVM_RUN outside
//! the state list. At most 8 bytes travel in one MMIO exit, as in KVM.

use std::collections::VecDeque;

/// Most bytes that one string I/O exit carries (KVM's PIO page).
pub const PIO_PAGE: usize = 4096;

/// A read that waits for its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A port read of `count` items of `size` bytes.
    Pio {
        /// The port.
        port: u16,
        /// Bytes an item.
        size: u8,
        /// Items (over 1 only for INS).
        count: u32,
    },
    /// A port write that user space is told of before it is done.
    PioWrite {
        /// The port.
        port: u16,
        /// Bytes.
        size: u8,
        /// The bytes, little-endian in `data[..size]`.
        data: [u8; 4],
    },
    /// A guest-physical read of 1 to 8 bytes.
    Mmio {
        /// Guest physical address.
        gpa: u64,
        /// Bytes.
        len: u8,
    },
    /// RDMSR that user space answers.
    Msr {
        /// Index.
        index: u32,
        /// Why user space is asked.
        reason: u32,
    },
    /// WRMSR that user space performs; the answer says whether it is #GP.
    MsrWrite {
        /// Index.
        index: u32,
        /// Value.
        data: u64,
        /// Why user space is asked.
        reason: u32,
    },
    /// A hypercall that user space performs; the answer is RAX.
    Hypercall {
        /// Number.
        nr: u64,
        /// Arguments.
        args: [u64; 4],
        /// From 64-bit mode.
        longmode: bool,
    },
    /// A hypercall by Xen's convention, which user space performs; the answer is RAX.
    XenHypercall {
        /// Number.
        input: u64,
        /// Arguments.
        params: [u64; 6],
        /// From 64-bit mode.
        longmode: bool,
        /// The caller's privilege level.
        cpl: u8,
    },
}

/// A write that has been committed and not yet told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A port write.
    Pio {
        /// The port.
        port: u16,
        /// Bytes an item.
        size: u8,
        /// Items.
        count: u32,
        /// The items, packed.
        data: Vec<u8>,
    },
    /// A guest-physical write of 1 to 8 bytes.
    Mmio {
        /// Guest physical address.
        gpa: u64,
        /// Bytes.
        data: [u8; 8],
        /// How many.
        len: u8,
    },
    /// An EOI that a split irqchip's user space must see.
    IoapicEoi {
        /// The vector.
        vector: u8,
    },
    /// CR8 was lowered where user space has the APIC.
    SetTpr,
    /// TPR was accessed, and user space wants to know.
    TprAccess {
        /// RIP of the instruction.
        rip: u64,
        /// A write.
        write: bool,
    },
}

/// Requests, answers and queued writes of one vCPU.
#[derive(Clone, Debug, Default)]
pub struct Io {
    /// The read that stopped the instruction.
    pub request: Option<Request>,
    answers: Vec<(Request, Vec<u8>)>,
    cursor: usize,
    /// Writes to tell, oldest first.
    pub writes: VecDeque<Write>,
    /// The answer to a user-space MSR exit was an error: the instruction ends in #GP.
    pub msr_error: bool,
}

impl Io {
    /// The recorded answer to this read, if the restarted instruction has got that far.
    /// A read that differs from the recorded one (memory changed meanwhile) discards what follows.
    pub fn replay(&mut self, request: &Request) -> Option<&[u8]> {
        let at = self.cursor;
        if at >= self.answers.len() {
            return None;
        }
        if self.answers[at].0 != *request {
            self.answers.truncate(at);
            return None;
        }
        self.cursor += 1;
        Some(&self.answers[at].1)
    }

    /// Records an answer that a device inside gave, so that a restart does not ask it twice.
    pub fn record(&mut self, request: Request, data: &[u8]) {
        self.answers.truncate(self.cursor);
        self.answers.push((request, data.to_vec()));
        self.cursor += 1;
    }

    /// The answer from outside to the pending request.
    /// Bytes that are missing read as zero; a surplus is dropped.
    pub fn answer(&mut self, data: &[u8]) {
        let Some(request) = self.request.take() else { return };
        let len = match request {
            Request::Pio { size, count, .. } => size as usize * count as usize,
            Request::PioWrite { .. } => 0,
            Request::Mmio { len, .. } => len as usize,
            Request::Msr { .. }
            | Request::MsrWrite { .. }
            | Request::Hypercall { .. }
            | Request::XenHypercall { .. } => 8,
        };
        let mut v = data.to_vec();
        v.resize(len, 0);
        self.answers.push((request, v));
    }

    /// The instruction is about to be (re)started.
    #[inline(always)]
    pub fn restart(&mut self) {
        self.cursor = 0;
    }

    /// The instruction, or an iteration of a REP, has committed.
    #[inline(always)]
    pub fn commit(&mut self) {
        if !self.answers.is_empty() {
            self.answers.clear();
        }
        self.cursor = 0;
    }

    /// Whether answers wait for the instruction that asked.
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }
}
