//! Why guest execution stops: inside an instruction ([`Stop`]) and out of `run` ([`Exit`]).
//!
//! `Stop` is the exit protocol's inner half. A handler never calls out: it
//! returns `Stop`, having committed nothing, and the run loop decides. `Exit`
//! is the outer half, which the layer above turns into a `kvm_run`; no
//! `kvm_*` type is named here.

use x86_arch::Exception;

/// Why a handler did not complete its instruction. Nothing was committed
/// (but the finished iterations of a REP).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The guest raised an exception. For #PF the address is in `Vcpu::fault_gva`.
    Exception(Exception),
    /// A read needs an answer from outside: `Vcpu::io` holds the request.
    /// The instruction is restarted once the answer is there.
    Need,
    /// The instruction must be restarted after (or inside) an exclusive section:
    /// code must be marked that another vCPU may still write, or a LOCKed access cannot be done by the host's own atomics.
    Exclusive,
    /// The memory behind a slot is gone: `Vcpu::host_fault` has the address; KVM_RUN reports EFAULT.
    HostFault,
    /// Shutdown: a triple fault, or a failure of an SMM/RSM consistency check.
    Shutdown,
    /// The engine met something it cannot execute: KVM_EXIT_INTERNAL_ERROR.
    Internal(InternalError),
}

impl From<Exception> for Stop {
    #[inline(always)]
    fn from(e: Exception) -> Stop {
        Stop::Exception(e)
    }
}

/// What a handler returns.
pub type Result<T = (), E = Stop> = core::result::Result<T, E>;

/// Sub-errors of [`Exit::InternalError`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InternalError {
    /// An instruction that the engine does not implement (KVM_INTERNAL_ERROR_EMULATION).
    Emulation,
    /// Delivery of an event failed in a way that cannot be reflected to the guest.
    Delivery,
    /// A defect of ours: a handler panicked. The VM is dead.
    Defect,
}

/// Direction of a port access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Direction {
    In,
    Out,
}

/// Why `run` returned (KVM api, section 5, by other names).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exit {
    /// A port access that no device inside claimed. For `In`, the answer (`size * count` bytes)
    /// is given by [`crate::Processor::complete_io`] before the next `run`.
    Io {
        /// In or out.
        direction: Direction,
        /// Bytes of one access: 1, 2 or 4.
        size: u8,
        /// The port.
        port: u16,
        /// How many accesses to the same port (string I/O).
        count: u32,
        /// For `Out`: the data, packed. Empty for `In`.
        data: Vec<u8>,
    },
    /// A read of guest-physical memory that has no slot; 1 to 8 bytes.
    MmioRead {
        /// Guest physical address.
        gpa: u64,
        /// Bytes wanted, 1 to 8.
        len: u8,
    },
    /// A write to guest-physical memory that has no slot (or a read-only one); 1 to 8 bytes.
    MmioWrite {
        /// Guest physical address.
        gpa: u64,
        /// The bytes, little-endian in `data[..len]`.
        data: [u8; 8],
        /// How many bytes, 1 to 8.
        len: u8,
    },
    /// HLT with no interrupt controller inside: user space decides when to go on.
    Hlt,
    /// Triple fault.
    Shutdown,
    /// The guest can take an interrupt now, and user space asked to be told.
    IrqWindowOpen,
    /// TPR was written to a lower value with no local APIC inside, and user space may care (KVM_EXIT_SET_TPR).
    SetTpr,
    /// The instruction before has LOCKed memory across cache lines ([`crate::Vcpu::bus_locked`]), and user space asked to be told.
    BusLock,
    /// The vCPU's dirty ring is full: it does not run until entries were reset.
    DirtyRingFull,
    /// Execution was interrupted from outside: a kick, a signal.
    Interrupted,
    /// A vCPU that waits for INIT was woken, by an INIT or otherwise, and has executed nothing: KVM_RUN returns EAGAIN.
    Woken,
    /// The bound in retired instructions was reached.
    Bound,
    /// A debug event that user space asked for (KVM_SET_GUEST_DEBUG).
    Debug {
        /// Vector: 1 or 3.
        exception: u8,
        /// Linear address of the instruction.
        pc: u64,
        /// DR6 as the event defines it.
        dr6: u64,
        /// DR7 in force.
        dr7: u64,
    },
    /// An I/O APIC EOI that a split irqchip's user space must see.
    IoapicEoi {
        /// The vector.
        vector: u8,
    },
    /// RDMSR of an MSR that user space answers for.
    MsrRead {
        /// Index.
        index: u32,
        /// Why (KVM_MSR_EXIT_REASON_*).
        reason: u32,
    },
    /// WRMSR of an MSR that user space answers for.
    MsrWrite {
        /// Index.
        index: u32,
        /// The value.
        data: u64,
        /// Why (KVM_MSR_EXIT_REASON_*).
        reason: u32,
    },
    /// A hypercall for user space.
    Hypercall {
        /// Number (RAX).
        nr: u64,
        /// RBX, RCX, RDX, RSI.
        args: [u64; 4],
        /// Made in 64-bit mode.
        longmode: bool,
    },
    /// A hypercall by Xen's convention (KVM_EXIT_XEN).
    XenHypercall {
        /// Number (RAX).
        input: u64,
        /// RDI, RSI, RDX, R10, R8, R9; in 32-bit code EBX, ECX, EDX, ESI, EDI, EBP.
        params: [u64; 6],
        /// Made in 64-bit mode.
        longmode: bool,
        /// The caller's privilege level.
        cpl: u8,
    },
    /// TPR was accessed by the instruction before, and user space asked to be told (KVM_TPR_ACCESS_REPORTING).
    TprAccess {
        /// RIP of that instruction.
        rip: u64,
        /// A write.
        write: bool,
    },
    /// The backing of guest memory is gone: EFAULT.
    HostFault {
        /// Host virtual address.
        hva: u64,
    },
    /// The engine gives up.
    InternalError {
        /// What kind.
        kind: InternalError,
        /// RIP and the instruction's bytes, for the report.
        detail: Vec<u64>,
    },
}
