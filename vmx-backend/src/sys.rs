//! The raw calls of this crate: ioctls on `/dev/kvm` and the CPUID instruction. Meaning is `probe`'s.
#![allow(unsafe_code)] // An ioctl's argument is an address that the kernel writes to.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{MsrList, Msrs, kvm_msr_entry};

/// `_IO(KVMIO, nr)`; KVM api 2: KVMIO is 0xAE.
const fn io_number(nr: u64) -> u64 {
    (0xae << 8) | nr
}

/// `_IOWR(KVMIO, nr, size)`.
const fn iowr_number(nr: u64, size: u64) -> u64 {
    (3 << 30) | (size << 16) | io_number(nr)
}

const KVM_GET_API_VERSION: u64 = io_number(0x00);
const KVM_CHECK_EXTENSION: u64 = io_number(0x03);
const KVM_GET_MSR_FEATURE_INDEX_LIST: u64 = iowr_number(0x0a, 4);
const KVM_GET_MSRS: u64 = iowr_number(0x88, 8);

fn checked(result: libc::c_int) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// KVM_GET_API_VERSION (KVM api 4.1).
pub(crate) fn api_version(kvm: &File) -> io::Result<i32> {
    // SAFETY: the ioctl takes no argument.
    checked(unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_GET_API_VERSION, 0) })
}

/// KVM_CHECK_EXTENSION (KVM api 4.4).
pub(crate) fn check_extension(kvm: &File, capability: u32) -> io::Result<i32> {
    // SAFETY: the argument is a number, not an address.
    checked(unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CHECK_EXTENSION, libc::c_ulong::from(capability)) })
}

/// KVM_GET_MSR_FEATURE_INDEX_LIST (KVM api 4.3), then KVM_GET_MSRS on the system fd (4.18): index and value of
/// each feature MSR that the host's KVM offers, the VMX capability MSRs among them.
pub(crate) fn feature_msrs(kvm: &File) -> io::Result<Vec<(u32, u64)>> {
    const MOST: usize = 256;
    let no_room = |_| io::Error::from(io::ErrorKind::OutOfMemory);
    let mut list = MsrList::new(MOST).map_err(no_room)?;
    // SAFETY: the list has room for MOST indices and says so in nmsrs; the kernel writes at most that many.
    checked(unsafe {
        libc::ioctl(kvm.as_raw_fd(), KVM_GET_MSR_FEATURE_INDEX_LIST, list.as_mut_fam_struct_ptr())
    })?;
    let mut values = Vec::new();
    // One by one: the kernel stops at the first that it cannot read.
    for index in list.as_slice() {
        let mut one =
            Msrs::from_entries(&[kvm_msr_entry { index: *index, ..Default::default() }]).map_err(no_room)?;
        // SAFETY: the structure holds the one entry that its nmsrs says.
        let read =
            checked(unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_GET_MSRS, one.as_mut_fam_struct_ptr()) });
        if let (Ok(1), [entry]) = (read, one.as_slice()) {
            values.push((*index, entry.data));
        }
    }
    Ok(values)
}

/// EAX, EBX, ECX, EDX of a CPUID leaf; zeros beyond the highest one of its range.
pub(crate) fn cpuid(leaf: u32) -> [u32; 4] {
    #[allow(unused_unsafe)] // safe functions since Rust 1.94
    // SAFETY: every x86-64 processor has CPUID; it reads no memory and changes nothing.
    let (highest, result) =
        unsafe { (std::arch::x86_64::__cpuid(leaf & 0xf000_0000).eax, std::arch::x86_64::__cpuid(leaf)) };
    if leaf > highest { [0; 4] } else { [result.eax, result.ebx, result.ecx, result.edx] }
}
