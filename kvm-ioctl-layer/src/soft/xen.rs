//! KVM_XEN_HVM_CONFIG of the software backend: argument checks, and where the pages of hypercalls come from.
//!
//! What the guest sees of it is `emu_core::xen`'s. Of KVM_CAP_XEN_HVM's parts there are the MSR and the interception of
//! hypercalls; event channels, shared information and time are not offered.

use crate::user_mem::{OwnMemory, UserMemory};
use emu_core::xen::XenHvm;
use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;
use std::sync::Arc;

/// What KVM_CAP_XEN_HVM answers: the MSR. Intercepted hypercalls work, but who asks for that bit goes on to ask for what
/// is not here (the rest of Xen, or Hyper-V beside it).
pub const OFFERED: u32 = KVM_XEN_HVM_CONFIG_HYPERCALL_MSR;

const PAGE: usize = 4096;

/// KVM_XEN_HVM_CONFIG.
pub fn config(vm: &emu_core::Vm, c: &kvm_xen_hvm_config) -> Result {
    // As in KVM, the flag of the MSR is one that is told, not asked for.
    if c.flags & !KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL != 0 {
        return Err(Errno::EINVAL);
    }
    let intercept = c.flags & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL != 0;
    // Who intercepts gets a page of KVM's making.
    let given = (c.blob_addr_32 | c.blob_addr_64) != 0 || (c.blob_size_32 | c.blob_size_64) != 0;
    if intercept && given {
        return Err(Errno::EINVAL);
    }
    let blobs = [(c.blob_addr_32, c.blob_size_32), (c.blob_addr_64, c.blob_size_64)];
    let pages = move |long: bool, number: u8| {
        let (address, count) = blobs[usize::from(long)];
        let mut page = vec![0; PAGE];
        let at = address.wrapping_add(u64::from(number) * PAGE as u64);
        (number < count && OwnMemory.read(at, &mut page).is_ok()).then_some(page)
    };
    *vm.xen.write() = Some(Arc::new(XenHvm { msr: c.msr, intercept, pages: Box::new(pages) }));
    Ok(())
}
