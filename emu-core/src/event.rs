//! Pending events of a vCPU and what blocks them (SDM vol. 3A, 6.9, table 6-2).
//!
//! The state only, with the names KVM_GET_VCPU_EVENTS uses. What is delivered
//! when is decided in [`crate::run`]; how, in [`crate::inject`].

use x86_arch::Exception;

/// The one-instruction shadow after STI, MOV SS or POP SS (SDM vol. 3A, 6.8.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Shadow {
    /// None.
    #[default]
    None,
    /// After STI with IF clear before: maskable interrupts wait.
    Sti,
    /// After MOV SS or POP SS: interrupts, NMI and debug traps wait.
    MovSs,
}

/// What the vCPU does (KVM_GET_MP_STATE by other names).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Activity {
    /// Executes instructions.
    #[default]
    Runnable,
    /// An application processor before INIT.
    Uninitialized,
    /// After INIT, waits for SIPI.
    InitReceived,
    /// HLT, until an interrupt.
    Halted,
    /// KVM_MP_STATE_AP_RESET_HOLD, which only user space asks for here: ends as HLT does.
    ResetHold,
}

/// An exception on its way to the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PendingException {
    /// Vector and error code. The vector may be any below 32 when user space injects it.
    pub vector: u8,
    /// The error code to push, if it has one.
    pub error_code: Option<u32>,
    /// CR2 of a #PF or the DR6 bits of a #DB, not yet in the register (KVM_CAP_EXCEPTION_PAYLOAD).
    pub payload: Option<u64>,
}

impl From<Exception> for PendingException {
    fn from(e: Exception) -> PendingException {
        PendingException {
            vector: e.vector as u8,
            error_code: e.vector.has_error_code().then_some(e.error_code),
            payload: None,
        }
    }
}

/// Where an event being delivered came from; decides DPL checks, EXT and the pushed RIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A processor-detected exception.
    Exception,
    /// INT n: the gate's DPL is checked, and faults have EXT clear.
    SoftwareInterrupt,
    /// INT3 or INTO: DPL checked, but no VM86 redirection.
    SoftwareException,
    /// INT1 (ICEBP): no DPL check.
    PrivilegedSoftwareException,
    /// A maskable external interrupt.
    External,
    /// NMI.
    Nmi,
}

/// An event to deliver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// The vector.
    pub vector: u8,
    /// Its kind.
    pub kind: EventKind,
    /// The error code to push.
    pub error_code: Option<u32>,
}

/// The pending events of one vCPU.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// An exception that was raised and not delivered yet (delivery is retried, or user space injected it).
    pub exception: Option<PendingException>,
    /// A maskable interrupt that was acknowledged (by the APIC or KVM_INTERRUPT) and not delivered yet.
    pub interrupt: Option<u8>,
    /// The interrupt is a software one (KVM_SET_VCPU_EVENTS can say so).
    pub interrupt_soft: bool,
    /// NMIs waiting (at most two, as KVM keeps).
    pub nmi_pending: u8,
    /// An NMI is being delivered.
    pub nmi_injected: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// Interrupt shadow in force for the next instruction.
    pub shadow: Shadow,
    /// Debug traps (DR6 bits) found by the instruction just executed, to be delivered before the next.
    pub debug_trap: u64,
    /// DR6 bits of a #DB that an instruction is raising as a fault (general detect). Lives within one instruction.
    pub debug_fault: u64,
    /// The instruction has entered a handler (INT n) and is not single-stepped. Lives within one instruction.
    pub entered_handler: bool,
    /// What the vCPU does.
    pub activity: Activity,
    /// INIT arrived.
    pub init_pending: bool,
    /// The start-up vector, once a SIPI arrived.
    pub sipi_vector: Option<u8>,
    /// SMI waiting.
    pub smi_pending: bool,
    /// In system-management mode.
    pub smm: bool,
    /// NMIs were masked inside SMM (SMM_INSIDE_NMI).
    pub smm_inside_nmi: bool,
    /// A triple fault is to be reported (KVM_CAP_X86_TRIPLE_FAULT_EVENT).
    pub triple_fault: bool,
}

impl Events {
    /// Whether the instruction just executed suppresses its own single-step trap
    /// (MOV SS and POP SS; SDM vol. 3A, 17.3.1.4, leave the trap for the next boundary).
    pub fn suppress_step(&self) -> bool {
        self.shadow == Shadow::MovSs || self.entered_handler
    }
}
