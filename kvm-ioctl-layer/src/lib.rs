//! The KVM object model: system, VM and vCPU objects, the ioctl table, dispatch, `kvm_run`.
//!
//! Programs use [`Kvm`], [`VmFd`] and [`VcpuFd`], in the shape of the crate `kvm-ioctls`: a VMM written for that crate
//! changes its `use` lines. Behind them is a backend (`kvm-api`'s traits); the software processor is the default and
//! needs nothing from the host.
//!
//! ```
//! use kvm_ioctl_layer::{Cap, Kvm};
//!
//! let kvm = Kvm::new()?;
//! assert_eq!(kvm.get_api_version(), 12);
//! assert!(kvm.check_extension(Cap::UserMemory));
//! let vm = kvm.create_vm()?;
//! let vcpu = vm.create_vcpu(0)?;
//! assert_eq!(vcpu.get_regs()?.rip, 0xfff0);
//! # Ok::<(), kvm_ioctl_layer::Error>(())
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`fd`] | the public API: `Kvm`, `VmFd`, `VcpuFd` |
//! | [`table`] | THE ioctl table: a row an ioctl |
//! | [`dispatch`] | raw ioctls: number, pointer, object |
//! | [`caps`] | what KVM_CHECK_EXTENSION answers |
//! | [`exits`] | `struct kvm_run`: a row an exit reason, a row a field |
//! | [`run_page`] | the pages shared with the caller |
//! | [`host`] | time and chance |
//! | [`soft`] | the software backend |
//! | [`signal`] | how KVM_RUN is left |
//! | [`user_mem`] | pointers and descriptors of the caller |

pub mod caps;
pub mod dispatch;
pub mod exits;
pub mod fd;
pub mod host;
#[cfg(test)]
mod reference;
pub mod run_delay;
pub mod run_page;
pub mod signal;
pub mod soft;
pub mod table;

pub mod user_mem;

pub use fd::kvm::Kvm;
pub use fd::vcpu_fd::{KickHandle, VcpuFd};
pub use fd::vm_fd::VmFd;
pub use kvm_api::backend::{CountedTime, Inspect, RunBound};
pub use kvm_ioctls::{
    Cap, Error, HypercallExit, IoEventAddress, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange,
    MsrFilterRangeFlags, NoDatamatch, ReadMsrExit, SyncReg, VcpuExit, WriteMsrExit,
};
pub use soft::{EngineClock, Options};

/// What the public API returns: the errno in the type that the crate `kvm-ioctls` uses.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

/// An errno of a backend, for the public API.
pub(crate) fn error(e: kvm_api::Errno) -> Error {
    Error::new(e.0)
}
