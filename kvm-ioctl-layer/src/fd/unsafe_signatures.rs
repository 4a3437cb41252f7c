//! The methods whose signature in the crate `kvm-ioctls` is `unsafe`, kept so that programs need no change.
//!
//! No unsafe operation happens here: for the memory regions the promise is the caller's to make, the others have
//! nothing to promise.
#![allow(unsafe_code)]

use super::vcpu_fd::VcpuFd;
use super::vm_fd::VmFd;
use crate::{Result, error};
use kvm_api::errno::Errno;
use kvm_api::uapi::*;

impl VmFd {
    /// KVM_SET_USER_MEMORY_REGION (4.34).
    ///
    /// # Safety
    ///
    /// The guest will read and write `memory_size` bytes at `userspace_addr`: nothing that Rust believes to own alone
    /// may lie there for as long as the slot exists. (That memory goes away under the guest is safe: EFAULT.)
    pub unsafe fn set_user_memory_region(&self, user_memory_region: kvm_userspace_memory_region) -> Result {
        let r = user_memory_region;
        self.set_region(&kvm_userspace_memory_region2 {
            slot: r.slot,
            flags: r.flags,
            guest_phys_addr: r.guest_phys_addr,
            memory_size: r.memory_size,
            userspace_addr: r.userspace_addr,
            ..Default::default()
        })
    }

    /// KVM_SET_USER_MEMORY_REGION2.
    ///
    /// # Safety
    ///
    /// As for [`VmFd::set_user_memory_region`].
    pub unsafe fn set_user_memory_region2(
        &self,
        user_memory_region2: kvm_userspace_memory_region2,
    ) -> Result {
        self.set_region(&user_memory_region2)
    }
}

impl VcpuFd {
    /// KVM_GET_XSAVE2 into a structure with room for what KVM_CAP_XSAVE2 says.
    ///
    /// # Safety
    ///
    /// None is needed here; the signature is that of the crate `kvm-ioctls`.
    pub unsafe fn get_xsave2(&self, xsave: &mut Xsave) -> Result {
        let area = self.with_backend(|v| v.get_xsave()).map_err(error)?;
        let words: Vec<u32> = area.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let extra = words.len().saturating_sub(1024);
        if xsave.as_slice().len() < extra {
            return Err(error(Errno::ENOMEM));
        }
        *xsave = Xsave::from_entries(&words[1024.min(words.len())..]).map_err(|_| error(Errno::ENOMEM))?;
        // The legacy 4 KiB live in the fixed part.
        crate::run_page::xsave_region(xsave).copy_from_slice(&words[..1024]);
        Ok(())
    }

    /// KVM_SET_XSAVE (4.42).
    ///
    /// # Safety
    ///
    /// None is needed here; the signature is that of the crate `kvm-ioctls`.
    pub unsafe fn set_xsave(&self, xsave: &kvm_xsave) -> Result {
        let bytes: Vec<u8> = xsave.region.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.with_backend(|v| v.set_xsave(&bytes)).map_err(error)
    }

    /// KVM_SET_XSAVE with the size of KVM_CAP_XSAVE2.
    ///
    /// # Safety
    ///
    /// None is needed here; the signature is that of the crate `kvm-ioctls`.
    pub unsafe fn set_xsave2(&self, xsave: &Xsave) -> Result {
        let region = xsave.as_fam_struct_ref().xsave.region;
        let bytes: Vec<u8> = region.iter().chain(xsave.as_slice()).flat_map(|w| w.to_le_bytes()).collect();
        self.with_backend(|v| v.set_xsave(&bytes)).map_err(error)
    }
}
