//! The shared library that answers for `/dev/kvm` in a dynamically linked program (`softkvm exec`).
//!
//! The dynamic linker puts its functions before the C library's. [`intercept::intercept`] decides for each system call
//! behind them; what is not about KVM goes to the kernel as it is, without a lock, an allocation or a change of errno.
//! Until the program opens `/dev/kvm` there is no thread, descriptor, handler or memory of ours.
//!
//! | module | what it is |
//! |---|---|
//! | `symbols` | the C library's functions, which only marshal |
//! | [`intercept`] | the decision |
//! | [`ioctl`] | an ioctl on a descriptor of ours |
//! | [`registry`], [`private`] | descriptors and lifetimes |
//! | [`descriptors`] | what else a program asks of a descriptor of ours |
//! | [`inside`], [`signals`] | what a signal meets |
//! | [`owner`], [`children`] | fork and exec |
//! | [`filters`] | seccomp |
//! | [`facts`], [`cpuid`], [`environment`] | what the program learns of the host |
//! | [`trace`] | `--trace` |
//!
//! `unsafe` throughout: its arguments are C's. Read on in docs/exec.md. Not here: what an ioctl means
//! (`kvm-ioctl-layer`).
#![allow(unsafe_code)]

pub mod children;
pub mod cpuid;
pub mod descriptors;
pub mod environment;
pub mod facts;
pub mod filters;
pub mod inside;
pub mod intercept;
pub mod ioctl;
pub mod owner;
pub mod private;
pub mod protocol;
pub mod raw;
pub mod registry;
pub mod signals;
#[cfg(not(test))]
mod symbols;
pub mod trace;
