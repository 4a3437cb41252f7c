//! KVM's API as data and traits: structures, ioctl numbers, errno, the portable state list, what a backend is.
//!
//! Backends depend on this crate and nothing else of the front end. Nothing here executes a guest, opens a device
//! or touches a caller's pointer.
//!
//! | module | what it is |
//! |---|---|
//! | [`uapi`] | the kernel's structures |
//! | [`nr`] | ioctl numbers |
//! | [`cap`] | capability numbers |
//! | [`errno`] | error numbers as values |
//! | [`backend`] | the traits `Hypervisor`, `Vm`, `Vcpu`, and the shared page |
//! | [`state`] | the list of portable state: snapshots, their comparison |
#![forbid(unsafe_code)]

pub mod backend;
pub mod cap;
pub mod errno;
pub mod nr;
pub mod state;
pub mod stats;
pub mod uapi;

pub use errno::{Errno, Result};
