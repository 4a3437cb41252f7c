//! Loads and stores of 1 to 64 bytes.
//!
//! One host access of the operand's width. A plain x86 load is an acquire and a plain store a
//! release, which is what the guest's memory model asks for; the `asm!` blocks are compiler barriers too.

use super::fault::guarded;
use super::{HostFault, HostPtr, Word};
use core::arch::asm;

/// The guarded instructions for one width. Implementation detail of [`Word`].
pub trait RawAccess: Sized {
    /// Loads from `address`.
    ///
    /// # Safety
    /// `address` is in a memory slot (the memory may be gone).
    unsafe fn load_raw(address: u64) -> Result<Self, HostFault>;
    /// Stores to `address`.
    ///
    /// # Safety
    /// As for `load_raw`.
    unsafe fn store_raw(address: u64, value: Self) -> Result<(), HostFault>;
}

macro_rules! raw_access {
    ($type:ty, $register:ty, $load:literal, $store:literal, $class:ident) => {
        impl RawAccess for $type {
            #[inline(always)]
            unsafe fn load_raw(address: u64) -> Result<Self, HostFault> {
                let value: $register;
                let failed: u32;
                // SAFETY: one load from guest memory, which is never a Rust object; a fault goes to the fixup.
                unsafe {
                    asm!(guarded!($load), a = in(reg) address, v = lateout($class) value,
                        f = inout(reg) 0u32 => failed, options(nostack, preserves_flags));
                }
                if failed == 0 { Ok(value as $type) } else { Err(HostFault::at(address)) }
            }

            #[inline(always)]
            unsafe fn store_raw(address: u64, value: Self) -> Result<(), HostFault> {
                // SAFETY: one store to guest memory, which is never a Rust object; a fault goes to the label.
                unsafe {
                    asm!(
                        concat!("2: ", $store),
                        ".pushsection softkvm_ex_table, \"aR\", @progbits",
                        ".balign 4",
                        ".long 2b - .",
                        ".long {fault} - .",
                        ".popsection",
                        a = in(reg) address, v = in($class) value as $register,
                        fault = label { return Err(HostFault::at(address)) },
                        options(nostack, preserves_flags));
                }
                Ok(())
            }
        }
    };
}

raw_access!(u8, u32, "movzx {v:e}, byte ptr [{a}]", "mov byte ptr [{a}], {v:l}", reg);
raw_access!(u16, u32, "movzx {v:e}, word ptr [{a}]", "mov word ptr [{a}], {v:x}", reg);
raw_access!(u32, u32, "mov {v:e}, dword ptr [{a}]", "mov dword ptr [{a}], {v:e}", reg);
raw_access!(u64, u64, "mov {v}, qword ptr [{a}]", "mov qword ptr [{a}], {v}", reg);

impl RawAccess for u128 {
    #[inline(always)]
    unsafe fn load_raw(address: u64) -> Result<Self, HostFault> {
        let value: core::arch::x86_64::__m128i;
        let failed: u32;
        // SAFETY: as for the general registers; one 16-byte access (atomic when aligned, on processors with AVX).
        unsafe {
            asm!(guarded!("movdqu {v}, xmmword ptr [{a}]"), a = in(reg) address, v = lateout(xmm_reg) value,
                f = inout(reg) 0u32 => failed, options(nostack, preserves_flags));
        }
        if failed == 0 {
            // SAFETY: both are 16 bytes without invalid values.
            Ok(unsafe { core::mem::transmute::<core::arch::x86_64::__m128i, u128>(value) })
        } else {
            Err(HostFault::at(address))
        }
    }

    #[inline(always)]
    unsafe fn store_raw(address: u64, value: Self) -> Result<(), HostFault> {
        // SAFETY: both are 16 bytes without invalid values.
        let value = unsafe { core::mem::transmute::<u128, core::arch::x86_64::__m128i>(value) };
        // SAFETY: one 16-byte store to guest memory; a fault goes to the label.
        unsafe {
            asm!(
                "2: movdqu xmmword ptr [{a}], {v}",
                ".pushsection softkvm_ex_table, \"aR\", @progbits",
                ".balign 4",
                ".long 2b - .",
                ".long {fault} - .",
                ".popsection",
                a = in(reg) address, v = in(xmm_reg) value,
                fault = label { return Err(HostFault::at(address)) },
                options(nostack, preserves_flags));
        }
        Ok(())
    }
}

/// Loads a word. The access must lie in the page that the pointer was made for.
#[inline(always)]
pub fn load<T: Word>(ptr: HostPtr) -> Result<T, HostFault> {
    // SAFETY: a HostPtr is in a slot.
    unsafe { T::load_raw(ptr.address()) }
}

/// Stores a word. The access must lie in the page that the pointer was made for.
#[inline(always)]
pub fn store<T: Word>(ptr: HostPtr, value: T) -> Result<(), HostFault> {
    // SAFETY: a HostPtr is in a slot.
    unsafe { T::store_raw(ptr.address(), value) }
}

macro_rules! wide {
    ($load:ident, $store:ident, $bytes:literal) => {
        #[doc = concat!("Loads ", $bytes, " bytes, 16 at a time.")]
        #[inline]
        pub fn $load(ptr: HostPtr) -> Result<[u8; $bytes], HostFault> {
            let mut out = [0u8; $bytes];
            for (i, part) in out.chunks_exact_mut(16).enumerate() {
                // SAFETY: a HostPtr is in a slot.
                let value = unsafe { u128::load_raw(ptr.address().wrapping_add(16 * i as u64))? };
                part.copy_from_slice(&value.to_le_bytes());
            }
            Ok(out)
        }

        #[doc = concat!("Stores ", $bytes, " bytes, 16 at a time.")]
        #[inline]
        pub fn $store(ptr: HostPtr, value: &[u8; $bytes]) -> Result<(), HostFault> {
            for (i, part) in value.chunks_exact(16).enumerate() {
                let mut bytes = [0u8; 16];
                bytes.copy_from_slice(part);
                // SAFETY: a HostPtr is in a slot.
                unsafe {
                    u128::store_raw(ptr.address().wrapping_add(16 * i as u64), u128::from_le_bytes(bytes))?;
                }
            }
            Ok(())
        }
    };
}

wide!(load32, store32, 32);
wide!(load64, store64, 64);
