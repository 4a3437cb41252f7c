//! LOCK-prefixed operations on guest memory.
//!
//! Not here: operands that cross a cache line. The host's split-lock handling may slow or kill
//! those, so the interpreter does them with the other vCPUs at a safe point.

use super::fault::guarded;
use super::{HostFault, HostPtr, Word};
use core::arch::asm;

/// The guarded read-modify-write instructions for one width. Implementation detail of [`Word`].
pub trait RawAtomic: Sized {
    /// `lock cmpxchg`: the value seen (equal to `old` if and only if the store was made).
    ///
    /// # Safety
    /// `address` is in a memory slot (the memory may be gone).
    unsafe fn cmpxchg_raw(address: u64, old: Self, new: Self) -> Result<Self, HostFault>;
    /// `xchg`: the old value.
    ///
    /// # Safety
    /// As for `cmpxchg_raw`.
    unsafe fn xchg_raw(address: u64, value: Self) -> Result<Self, HostFault>;
    /// `lock xadd`: the old value.
    ///
    /// # Safety
    /// As for `cmpxchg_raw`.
    unsafe fn xadd_raw(address: u64, value: Self) -> Result<Self, HostFault>;
    /// The value that a read-modify-write stores.
    fn combine(self, other: Self, operation: Operation) -> Self;
}

/// The logical operations that x86 can do locked but without returning the old value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Addition, modulo the width.
    Add,
    /// Bitwise or.
    Or,
    /// Bitwise and.
    And,
    /// Bitwise exclusive or.
    Xor,
}

macro_rules! raw_atomic {
    ($type:ty, $class:ident, $accumulator:tt, $cmpxchg:literal, $xchg:literal, $xadd:literal) => {
        impl RawAtomic for $type {
            #[inline(always)]
            unsafe fn cmpxchg_raw(address: u64, old: Self, new: Self) -> Result<Self, HostFault> {
                let seen: $type;
                let failed: u32;
                // SAFETY: one locked instruction on guest memory, which is never a Rust object; a fault goes to the fixup.
                unsafe {
                    asm!(guarded!($cmpxchg), a = in(reg) address, n = in($class) new,
                        inout($accumulator) old => seen, f = inout(reg) 0u32 => failed, options(nostack));
                }
                if failed == 0 { Ok(seen) } else { Err(HostFault::at(address)) }
            }

            #[inline(always)]
            unsafe fn xchg_raw(address: u64, value: Self) -> Result<Self, HostFault> {
                let old: $type;
                let failed: u32;
                // SAFETY: as above.
                unsafe {
                    asm!(guarded!($xchg), a = in(reg) address, v = inout($class) value => old,
                        f = inout(reg) 0u32 => failed, options(nostack, preserves_flags));
                }
                if failed == 0 { Ok(old) } else { Err(HostFault::at(address)) }
            }

            #[inline(always)]
            unsafe fn xadd_raw(address: u64, value: Self) -> Result<Self, HostFault> {
                let old: $type;
                let failed: u32;
                // SAFETY: as above.
                unsafe {
                    asm!(guarded!($xadd), a = in(reg) address, v = inout($class) value => old,
                        f = inout(reg) 0u32 => failed, options(nostack));
                }
                if failed == 0 { Ok(old) } else { Err(HostFault::at(address)) }
            }

            #[inline(always)]
            fn combine(self, other: Self, operation: Operation) -> Self {
                match operation {
                    Operation::Add => self.wrapping_add(other),
                    Operation::Or => self | other,
                    Operation::And => self & other,
                    Operation::Xor => self ^ other,
                }
            }
        }
    };
}

raw_atomic!(
    u8,
    reg_byte,
    "al",
    "lock cmpxchg byte ptr [{a}], {n}",
    "xchg byte ptr [{a}], {v}",
    "lock xadd byte ptr [{a}], {v}"
);
raw_atomic!(
    u16,
    reg,
    "ax",
    "lock cmpxchg word ptr [{a}], {n:x}",
    "xchg word ptr [{a}], {v:x}",
    "lock xadd word ptr [{a}], {v:x}"
);
raw_atomic!(
    u32,
    reg,
    "eax",
    "lock cmpxchg dword ptr [{a}], {n:e}",
    "xchg dword ptr [{a}], {v:e}",
    "lock xadd dword ptr [{a}], {v:e}"
);
raw_atomic!(
    u64,
    reg,
    "rax",
    "lock cmpxchg qword ptr [{a}], {n}",
    "xchg qword ptr [{a}], {v}",
    "lock xadd qword ptr [{a}], {v}"
);

impl RawAtomic for u128 {
    #[inline]
    unsafe fn cmpxchg_raw(address: u64, old: Self, new: Self) -> Result<Self, HostFault> {
        let (mut low, mut high) = (old as u64, (old >> 64) as u64);
        let failed: u32;
        // SAFETY: as for the other widths. rbx belongs to the compiler, so it is exchanged in and out; the
        // fixup returns to the second exchange.
        unsafe {
            asm!("xchg rbx, rsi", guarded!("lock cmpxchg16b xmmword ptr [rdi]", "r8d"), "xchg rbx, rsi",
                in("rdi") address, inout("rsi") new as u64 => _, in("rcx") (new >> 64) as u64,
                inout("rax") low, inout("rdx") high, inout("r8") 0u32 => failed, options(nostack));
        }
        if failed == 0 { Ok(u128::from(low) | u128::from(high) << 64) } else { Err(HostFault::at(address)) }
    }

    #[inline]
    unsafe fn xchg_raw(address: u64, value: Self) -> Result<Self, HostFault> {
        // SAFETY: the caller's promise.
        unsafe { update_u128(address, |_| value) }
    }

    #[inline]
    unsafe fn xadd_raw(address: u64, value: Self) -> Result<Self, HostFault> {
        // SAFETY: the caller's promise.
        unsafe { update_u128(address, |old| old.wrapping_add(value)) }
    }

    #[inline]
    fn combine(self, other: Self, operation: Operation) -> Self {
        match operation {
            Operation::Add => self.wrapping_add(other),
            Operation::Or => self | other,
            Operation::And => self & other,
            Operation::Xor => self ^ other,
        }
    }
}

/// A compare-exchange loop: x86 has no other 16-byte read-modify-write.
///
/// # Safety
/// `address` is in a memory slot.
unsafe fn update_u128(address: u64, new: impl Fn(u128) -> u128) -> Result<u128, HostFault> {
    let mut old = 0;
    loop {
        // SAFETY: the caller's promise.
        let seen = unsafe { u128::cmpxchg_raw(address, old, new(old))? };
        if seen == old {
            return Ok(old);
        }
        old = seen;
    }
}

/// `lock cmpxchg`: `Ok(Ok(old))` when the store was made, `Ok(Err(seen))` when the memory held something else.
#[inline(always)]
pub fn compare_exchange<T: Word>(ptr: HostPtr, old: T, new: T) -> Result<Result<T, T>, HostFault> {
    // SAFETY: a HostPtr is in a slot.
    let seen = unsafe { T::cmpxchg_raw(ptr.address(), old, new)? };
    Ok(if seen == old { Ok(old) } else { Err(seen) })
}

/// `xchg`: stores `value` and returns what was there.
#[inline(always)]
pub fn exchange<T: Word>(ptr: HostPtr, value: T) -> Result<T, HostFault> {
    // SAFETY: a HostPtr is in a slot.
    unsafe { T::xchg_raw(ptr.address(), value) }
}

/// `lock xadd`: adds `value` and returns what was there.
#[inline(always)]
pub fn fetch_add<T: Word>(ptr: HostPtr, value: T) -> Result<T, HostFault> {
    // SAFETY: a HostPtr is in a slot.
    unsafe { T::xadd_raw(ptr.address(), value) }
}

/// A compare-exchange loop: the flags of the guest's instruction need the old value, which `lock or` does not return.
#[inline(always)]
fn fetch_update<T: Word>(ptr: HostPtr, value: T, operation: Operation) -> Result<T, HostFault> {
    let mut old: T = super::load(ptr)?;
    loop {
        match compare_exchange(ptr, old, old.combine(value, operation))? {
            Ok(old) => return Ok(old),
            Err(seen) => old = seen,
        }
    }
}

/// Ors `value` in and returns what was there.
#[inline(always)]
pub fn fetch_or<T: Word>(ptr: HostPtr, value: T) -> Result<T, HostFault> {
    fetch_update(ptr, value, Operation::Or)
}

/// Ands `value` in and returns what was there.
#[inline(always)]
pub fn fetch_and<T: Word>(ptr: HostPtr, value: T) -> Result<T, HostFault> {
    fetch_update(ptr, value, Operation::And)
}

/// Exclusive-ors `value` in and returns what was there.
#[inline(always)]
pub fn fetch_xor<T: Word>(ptr: HostPtr, value: T) -> Result<T, HostFault> {
    fetch_update(ptr, value, Operation::Xor)
}
