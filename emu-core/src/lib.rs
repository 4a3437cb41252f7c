//! The software processor: interpreter, events, interrupt controllers and clocks.
//!
//! A [`Processor`] is one vCPU with its engine; [`Vm`] is what vCPUs share. [`Processor::run`] executes
//! the guest until an [`exit::Exit`] must be told. Nothing here names a `kvm_*` type: the layer above
//! converts. Nothing here reads or writes an spte: that is `softmmu`'s.
//!
//! | read | for |
//! |---|---|
//! | [`vcpu`] | the registers, and what is derived from them |
//! | [`mem`] | how an instruction reaches memory |
//! | [`interp`] | a handler for each instruction |
//! | [`run`] | the loop: events, execute, exit |
//! | [`inject`] | delivery of an event |
//! | [`io`] | an instruction that needs the outside in the middle |
//! | [`host`] | time, chance and the outside world, behind one trait |

pub mod block;
pub mod clock;
pub mod cpuid;
pub mod cr;
pub mod debug;
pub mod event;
pub mod exit;
#[cfg(feature = "fault-injection")]
pub mod faults;
pub mod host;
pub mod host_cpu;
pub mod host_rules;
pub mod hypercall;
pub mod inject;
pub mod interp;
pub mod io;
pub mod irq;
pub mod irqchip;
pub mod mce;
pub mod mem;
pub mod msr;
pub mod native;
#[cfg(test)]
pub(crate) mod oracle;
pub mod pv;
pub mod quirks;
#[cfg(test)]
pub(crate) mod rig;
pub mod run;
pub mod segload;
pub mod smm;
pub mod state;
pub mod stats;
pub mod task;
pub mod vapic;
pub mod vcpu;
pub mod vm;
pub mod vm_clock;
pub mod xen;
pub mod xstate;

pub use debug::GuestDebug;
pub use exit::{Exit, InternalError, Stop};
pub use host::Host;
pub use run::{Bound, Processor};
pub use vcpu::Vcpu;
pub use vm::Vm;
