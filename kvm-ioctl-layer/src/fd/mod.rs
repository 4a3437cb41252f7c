//! The public API in the shape of the crate `kvm-ioctls` 0.25: same names, same signatures, same errors.
//!
//! Each method is one ioctl. What is checked is checked by the backend, as the kernel does; these types own the run
//! page, the vCPU's lock, and the lifetimes: a vCPU keeps its VM alive.

pub mod kvm;
mod unsafe_signatures;
pub mod vcpu_fd;
pub mod vm_fd;

#[cfg(test)]
mod checklist_tests;
#[cfg(test)]
mod debug_tests;
#[cfg(test)]
mod host_tests;
#[cfg(test)]
mod memory_tests;
#[cfg(test)]
mod setup_tests;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod tests;
