//! What a caller hands over by number: pointers into its memory, and file descriptors; and structures as bytes.
//!
//! `unsafe` is needed because the numbers come from outside Rust. A copy from or to a caller's pointer goes through
//! `softmmu::host_mem`, whose faults are caught: a bad pointer is EFAULT, not a crash. [`Plain`] marks structures that
//! are plain old data, so that unions of the uapi are read as bytes and not by guessing.
#![allow(unsafe_code)]

use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use vmm_sys_util::eventfd::EventFd;

/// Plain old data: every bit pattern is a value, and there is no padding that matters.
///
/// # Safety
///
/// Only for `repr(C)` types of integers (and unions and arrays of such), without references.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($t:ty)*) => { $(
        // SAFETY: a repr(C) structure of the kernel's headers: integers, arrays and unions of them.
        unsafe impl Plain for $t {}
    )* };
}

plain! {
    u8 u16 u32 u64 i32
    kvm_regs kvm_sregs kvm_sregs2 kvm_fpu kvm_xcrs kvm_lapic_state kvm_vcpu_events kvm_debugregs kvm_guest_debug
    kvm_translation kvm_mp_state kvm_irqchip kvm_pic_state kvm_ioapic_state kvm_pit_state kvm_pit_state2
    kvm_pit_config kvm_clock_data kvm_userspace_memory_region kvm_userspace_memory_region2 kvm_irq_routing_entry
    kvm_irq_routing_irqchip kvm_irq_routing_msi kvm_ioeventfd kvm_irqfd kvm_msi kvm_enable_cap kvm_msr_entry
    kvm_cpuid_entry kvm_cpuid_entry2 kvm_irq_level kvm_dirty_log kvm_clear_dirty_log kvm_interrupt
    kvm_tpr_access_ctl kvm_vapic_addr kvm_coalesced_mmio kvm_coalesced_mmio_zone kvm_sync_regs kvm_device_attr
    kvm_create_device kvm_xen_hvm_config kvm_debug_exit_arch kvm_x86_mce kvm_nested_state_header kvm_one_reg
}

/// A structure's bytes.
pub fn bytes_of<T: Plain>(t: &T) -> &[u8] {
    // SAFETY: `T` is plain, the slice covers exactly it, and lives no longer.
    unsafe { core::slice::from_raw_parts((t as *const T).cast::<u8>(), size_of::<T>()) }
}

/// A structure from the start of `bytes`; what is missing is zero.
pub fn from_bytes<T: Plain>(bytes: &[u8]) -> T {
    let mut t = core::mem::MaybeUninit::<T>::zeroed();
    let n = bytes.len().min(size_of::<T>());
    // SAFETY: `n` bytes fit both; a plain type may be made of any bytes, and the rest is zero.
    unsafe {
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), t.as_mut_ptr().cast::<u8>(), n);
        t.assume_init()
    }
}

/// The structure that lies at a byte offset of another: a member of a union.
pub fn member<T: Plain, U: Plain>(t: &T, offset: usize) -> U {
    from_bytes(bytes_of(t).get(offset..).unwrap_or(&[]))
}

/// Replaces the bytes of a structure from `offset` on.
pub fn set_member<T: Plain, U: Plain>(t: &mut T, offset: usize, value: &U) {
    let mut bytes = bytes_of(t).to_vec();
    if let Some(at) = bytes.get_mut(offset..offset + size_of::<U>()) {
        at.copy_from_slice(bytes_of(value));
    }
    *t = from_bytes(&bytes);
}

/// A caller's memory, by address. An address that is not there is EFAULT.
pub trait UserMemory {
    /// Reads.
    fn read(&self, address: u64, to: &mut [u8]) -> Result;
    /// Writes.
    fn write(&self, address: u64, from: &[u8]) -> Result;
}

/// The memory of this process. The copy is made by instructions whose faults are caught, so that a bad pointer is an
/// error and not a signal, without a system call that a caller's filter may refuse.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnMemory;

impl UserMemory for OwnMemory {
    fn read(&self, address: u64, to: &mut [u8]) -> Result {
        softmmu::host_mem::install_fault_handler();
        // SAFETY: the address is a pointer that the caller of an ioctl handed over to be read.
        unsafe { softmmu::host_mem::copy_from_caller(address, to) }.map_err(|_| Errno::EFAULT)
    }

    fn write(&self, address: u64, from: &[u8]) -> Result {
        softmmu::host_mem::install_fault_handler();
        // SAFETY: the address is a pointer that the caller of an ioctl handed over to be filled.
        unsafe { softmmu::host_mem::copy_to_caller(address, from) }.map_err(|_| Errno::EFAULT)
    }
}

/// An eventfd of the caller, duplicated, so that it stays whatever the caller closes.
pub fn eventfd(fd: i32) -> Result<EventFd> {
    // SAFETY: fcntl with an integer argument; a number that is no descriptor is an error.
    let new = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if new < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: the duplicate is new and ours alone.
    let owned = unsafe { OwnedFd::from_raw_fd(new) };
    match std::fs::read_link(format!("/proc/self/fd/{new}")) {
        // KVM takes nothing but eventfds.
        Ok(link) if !link.as_os_str().to_string_lossy().contains("[eventfd]") => return Err(Errno::EINVAL),
        _ => {}
    }
    // SAFETY: `into_raw_fd` gives the ownership on.
    Ok(unsafe { EventFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(owned)) })
}

/// What tells two eventfds apart when their numbers do not: the kernel's identity of the counter.
pub fn eventfd_id(fd: &EventFd) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    text.lines().find_map(|l| l.strip_prefix("eventfd-id:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_unions() {
        let mut chip = kvm_irqchip { chip_id: 1, ..Default::default() };
        let pic = kvm_pic_state { irr: 0x12, elcr_mask: 0xde, ..Default::default() };
        set_member(&mut chip, 8, &pic);
        assert_eq!(chip.chip_id, 1);
        let back: kvm_pic_state = member(&chip, 8);
        assert_eq!((back.irr, back.elcr_mask), (0x12, 0xde));
        // Outside: nothing is read or written.
        let beyond: u64 = member(&chip, 10_000);
        assert_eq!(beyond, 0);
    }

    #[test]
    fn only_eventfds() {
        let e = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let d = eventfd(e.as_raw_fd()).unwrap();
        assert_eq!(eventfd_id(&e), eventfd_id(&d));
        d.write(3).unwrap();
        assert_eq!(e.read().unwrap(), 3);
        assert_eq!(eventfd(-1).err(), Some(Errno::EBADF));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(eventfd(file.as_raw_fd()).err(), Some(Errno::EINVAL));
    }
}
