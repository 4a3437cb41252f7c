//! Copies, fills and comparisons, within one page for those who hold a [`HostPtr`].
//!
//! `rep movsb` and its kin: on processors with fast strings they reach the wide loops' speed from
//! about 128 bytes, and a fault leaves the registers at the byte that failed.

use super::fault::guarded;
use super::{HostFault, HostPtr};
use core::arch::asm;

/// Refuses a length that would leave the page: the pointer is good for its page only.
#[inline(always)]
fn check(ptr: HostPtr, len: usize) -> Result<(), HostFault> {
    if len as u64 <= ptr.page_remainder() { Ok(()) } else { Err(HostFault::at(ptr.address())) }
}

/// Copies guest memory to `out`, which must not reach beyond the pointer's page.
#[inline]
pub fn copy_from(ptr: HostPtr, out: &mut [u8]) -> Result<(), HostFault> {
    check(ptr, out.len())?;
    // SAFETY: `out` is ours and as long as the count; the source is in a slot's page, and a fault goes to the fixup.
    unsafe { movsb(out.as_mut_ptr() as u64, ptr.address(), out.len(), |_, source| source) }
}

/// Copies `bytes` to guest memory; they must not reach beyond the pointer's page.
#[inline]
pub fn copy_to(ptr: HostPtr, bytes: &[u8]) -> Result<(), HostFault> {
    check(ptr, bytes.len())?;
    // SAFETY: `bytes` is as long as the count; the destination is in a slot's page, and a fault goes to the fixup.
    unsafe { movsb(ptr.address(), bytes.as_ptr() as u64, bytes.len(), |destination, _| destination) }
}

/// Copies from any address of this process to `out`: what a caller handed over as a pointer.
///
/// # Safety
///
/// Nobody may have a Rust reference to the source that excludes reading it. It need not be mapped.
#[inline]
pub unsafe fn copy_from_caller(source: u64, out: &mut [u8]) -> Result<(), HostFault> {
    check_caller(source, out.len())?;
    // SAFETY: `out` is ours and as long as the count; the source is the caller's promise, and a fault goes to the fixup.
    unsafe { movsb(out.as_mut_ptr() as u64, source, out.len(), |_, source| source) }
}

/// Copies `bytes` to any address of this process: what a caller handed over as a pointer to be filled.
///
/// # Safety
///
/// The destination is the caller's to have written. It need not be mapped.
#[inline]
pub unsafe fn copy_to_caller(destination: u64, bytes: &[u8]) -> Result<(), HostFault> {
    check_caller(destination, bytes.len())?;
    // SAFETY: `bytes` is as long as the count; the destination is the caller's promise, and a fault goes to the fixup.
    unsafe { movsb(destination, bytes.as_ptr() as u64, bytes.len(), |destination, _| destination) }
}

/// Refuses what is not in the lower half of the address space, as the kernel does.
#[inline]
fn check_caller(address: u64, len: usize) -> Result<(), HostFault> {
    match address.checked_add(len as u64) {
        Some(end) if end <= (1 << 47) - x86_arch::PAGE_SIZE => Ok(()),
        _ => Err(HostFault::at(address)),
    }
}

/// Copies between two places in guest memory, ascending byte by byte in effect (as REP MOVSB with DF=0 does when they overlap).
#[inline]
pub fn copy_within(destination: HostPtr, source: HostPtr, len: usize) -> Result<(), HostFault> {
    check(destination, len)?;
    check(source, len)?;
    // SAFETY: both ranges are in slots' pages; a fault goes to the fixup.
    unsafe { movsb(destination.address(), source.address(), len, |destination, _| destination) }
}

/// # Safety
/// Each of the two ranges is valid for the access or in a memory slot.
#[inline]
unsafe fn movsb(destination: u64, source: u64, len: usize, at: fn(u64, u64) -> u64) -> Result<(), HostFault> {
    let (mut rdi, mut rsi) = (destination, source);
    let failed: u32;
    // SAFETY: the caller's promise; the direction flag is clear in Rust code.
    unsafe {
        asm!(guarded!("rep movsb"), inout("rcx") len => _, inout("rdi") rdi, inout("rsi") rsi,
            f = inout(reg) 0u32 => failed, options(nostack, preserves_flags));
    }
    if failed == 0 { Ok(()) } else { Err(HostFault::at(at(rdi, rsi))) }
}

/// Fills guest memory within the pointer's page with one byte.
#[inline]
pub fn fill(ptr: HostPtr, byte: u8, len: usize) -> Result<(), HostFault> {
    check(ptr, len)?;
    let mut rdi = ptr.address();
    let failed: u32;
    // SAFETY: the range is in a slot's page; a fault goes to the fixup.
    unsafe {
        asm!(guarded!("rep stosb"), inout("rcx") len => _, inout("rdi") rdi, in("al") byte,
            f = inout(reg) 0u32 => failed, options(nostack, preserves_flags));
    }
    if failed == 0 { Ok(()) } else { Err(HostFault::at(rdi)) }
}

/// Whether guest memory, within the pointer's page, equals `bytes`.
#[inline]
pub fn compare(ptr: HostPtr, bytes: &[u8]) -> Result<bool, HostFault> {
    check(ptr, bytes.len())?;
    let mut at = ptr;
    let mut words = bytes.chunks_exact(16);
    for word in &mut words {
        let mut expected = [0u8; 16];
        expected.copy_from_slice(word);
        if super::load::<u128>(at)? != u128::from_le_bytes(expected) {
            return Ok(false);
        }
        at = HostPtr::new(at.address().wrapping_add(16));
    }
    for &byte in words.remainder() {
        if super::load::<u8>(at)? != byte {
            return Ok(false);
        }
        at = HostPtr::new(at.address().wrapping_add(1));
    }
    Ok(true)
}
