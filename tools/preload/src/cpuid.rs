//! CPUID as the program executes it, where the host can fault on it (arch_prctl ARCH_SET_CPUID).
//!
//! The processor then raises #GP, and we answer with the host's values and the one bit that says that KVM works: VMX on
//! Intel, SVM on AMD and Hygon. New threads and forked children inherit the setting; execve clears it, and our
//! constructor sets it again. Where the host cannot fault, the program sees the host's CPUID.

use crate::raw::{self, sys};
use core::arch::x86_64::__cpuid_count;
use core::ffi::c_void;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::{Acquire, Release};

/// arch_prctl's ARCH_SET_CPUID.
const ARCH_SET_CPUID: i64 = 0x1012;

static FAULTING: AtomicBool = AtomicBool::new(false);

fn set(enabled: bool) -> bool {
    // SAFETY: numbers only.
    unsafe { sys!(SYS_arch_prctl, ARCH_SET_CPUID, enabled) == 0 }
}

/// Makes this thread, and those that it starts, fault on CPUID.
pub fn start() {
    crate::owner::claim();
    crate::signals::activate();
    FAULTING.store(true, Release);
    if !set(false) {
        FAULTING.store(false, Release);
    }
}

/// What the program is to see.
fn answer(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = __cpuid_count(leaf, subleaf);
    let mut r = [r.eax, r.ebx, r.ecx, r.edx];
    match leaf {
        // SDM vol. 2A, CPUID: leaf 1, ECX bit 5: VMX; bit 3: MONITOR, which machines with KVM have. It is for the kernel alone.
        1 => r[2] |= 1 << 3 | u32::from(is_intel()) << 5,
        // APM vol. 3, E.4.2: leaf 8000_0001H, ECX bit 2: SVM.
        0x8000_0001 if !is_intel() => r[2] |= 1 << 2,
        _ => {}
    }
    r
}

/// Whether the host's processor is Intel's: it would have VMX.
pub fn is_intel() -> bool {
    __cpuid_count(0, 0).ebx == u32::from_le_bytes(*b"Genu")
}

/// A SIGSEGV that a CPUID instruction raised: answered. Async-signal-safe.
pub fn faulted(signal: i32, context: *mut c_void) -> bool {
    if signal != libc::SIGSEGV || !FAULTING.load(Acquire) || context.is_null() {
        return false;
    }
    // SAFETY: the kernel's context. The instruction pointer is where the processor has just fetched from; a fault at
    // the second byte would be another signal, which cannot be ours.
    unsafe {
        let g = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let mut code = [0u8; 2];
        let (rip, n) = (g[libc::REG_RIP as usize] as u64, code.len());
        // The kernel reads it: it may lie in a page that only executes.
        let local = libc::iovec { iov_base: code.as_mut_ptr().cast(), iov_len: n };
        let remote = libc::iovec { iov_base: rip as *mut c_void, iov_len: n };
        let read = sys!(SYS_process_vm_readv, raw::getpid(), &raw const local, 1, &raw const remote, 1, 0);
        if read != n as i64 || code != [0x0f, 0xa2] {
            return false;
        }
        set(true);
        let r = answer(g[libc::REG_RAX as usize] as u32, g[libc::REG_RCX as usize] as u32);
        set(false);
        for (register, value) in
            [libc::REG_RAX, libc::REG_RBX, libc::REG_RCX, libc::REG_RDX].into_iter().zip(r)
        {
            g[register as usize] = i64::from(value);
        }
        g[libc::REG_RIP as usize] += 2;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instruction_is_answered_and_no_other() {
        static CODE: [u8; 4] = [0x0f, 0xa2, 0x0f, 0xa3];
        FAULTING.store(true, Release);
        let at = |offset: usize, leaf: i64| {
            // SAFETY: plain old data.
            let mut context: libc::ucontext_t = unsafe { core::mem::zeroed() };
            let g = &mut context.uc_mcontext.gregs;
            g[libc::REG_RIP as usize] = CODE.as_ptr() as i64 + offset as i64;
            g[libc::REG_RAX as usize] = leaf;
            let hit = faulted(libc::SIGSEGV, (&raw mut context).cast());
            (hit, context.uc_mcontext.gregs)
        };
        let leaf = if is_intel() { 1 } else { 0x8000_0001 };
        let (hit, g) = at(0, leaf);
        assert!(hit);
        assert_eq!(g[libc::REG_RIP as usize], CODE.as_ptr() as i64 + 2);
        let host = __cpuid_count(leaf as u32, 0);
        let bit = if is_intel() { 1 << 5 | 1 << 3 } else { 1 << 2 };
        assert_eq!(g[libc::REG_RCX as usize], i64::from(host.ecx | bit));
        assert_eq!(g[libc::REG_RDX as usize], i64::from(host.edx));
        assert!(!at(2, leaf).0);
        assert!(!at(1 << 46, leaf).0, "an address that is not there");
        FAULTING.store(false, Release);
        assert!(!at(0, leaf).0);
    }
}
