//! The exception table and the signal handler that reads it.
//!
//! Each guarded instruction emits an entry `{instruction - ., fixup - .}` into the section
//! `softkvm_ex_table`; the linker's `__start_`/`__stop_` symbols delimit it. The entries are
//! PC-relative, so position-independent code needs no relocations. The section is `R` (retained),
//! because rust-lld's section garbage collection does not count `__start_` as a use.

use std::sync::OnceLock;
use x86_arch::Hva;

/// Guest memory that the host could not reach: unmapped, protected, or beyond the end of its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
#[error("host fault at {hva:x}")]
pub struct HostFault {
    /// The host virtual address of the access (for a bulk access: where it stopped).
    pub hva: Hva,
}

impl HostFault {
    #[inline(always)]
    pub(crate) const fn at(address: u64) -> HostFault {
        HostFault { hva: Hva(address) }
    }
}

/// One line of asm with its exception-table entry; on a fault `{f}` becomes 1 and execution goes on behind it.
///
/// An `asm!` with a `label` would save the flag, but outputs beside labels are not stable Rust. The
/// flag costs an `xor` and a fused test-and-branch.
macro_rules! guarded {
    ($insn:literal) => {
        guarded!($insn, "{f:e}")
    };
    ($insn:literal, $flag:literal) => {
        concat!(
            "2: ",
            $insn,
            "\n",
            "3:\n",
            ".pushsection .text.unlikely.softkvm_fixup, \"ax\", @progbits\n",
            "4: mov ",
            $flag,
            ", 1\n",
            "jmp 3b\n",
            ".popsection\n",
            ".pushsection softkvm_ex_table, \"aR\", @progbits\n",
            ".balign 4\n",
            ".long 2b - .\n",
            ".long 4b - .\n",
            ".popsection\n",
        )
    };
}
pub(super) use guarded;

#[repr(C)]
struct Entry {
    instruction: i32,
    fixup: i32,
}

unsafe extern "C" {
    static __start_softkvm_ex_table: Entry;
    static __stop_softkvm_ex_table: Entry;
}

/// The fixup for the instruction at `rip`, if it is one of ours. Async-signal-safe.
fn find_fixup(rip: usize) -> Option<usize> {
    let mut entry = &raw const __start_softkvm_ex_table;
    let end = &raw const __stop_softkvm_ex_table;
    while entry < end {
        // SAFETY: `entry` lies in the section that the linker delimits with these two symbols, which
        // holds nothing but entries.
        let (instruction, fixup) = unsafe { (&(*entry).instruction, &(*entry).fixup) };
        let address = |field: &i32| (&raw const *field as usize).wrapping_add_signed(*field as isize);
        if address(instruction) == rip {
            return Some(address(fixup));
        }
        entry = entry.wrapping_add(1);
    }
    None
}

/// If the context's instruction pointer is a guarded access, moves it to that access's fixup and
/// returns true. Async-signal-safe: for a SIGSEGV or SIGBUS handler.
///
/// # Safety
///
/// `context` is the `ucontext_t` that the kernel gave a signal handler, and the signal is a
/// synchronous SIGSEGV or SIGBUS.
pub unsafe fn fixup_host_fault(context: *mut libc::c_void) -> bool {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the caller's promise.
    let rip = unsafe { &mut (*context).uc_mcontext.gregs[libc::REG_RIP as usize] };
    match find_fixup(*rip as usize) {
        Some(fixup) => {
            *rip = fixup as i64;
            true
        }
        None => false,
    }
}

/// The dispositions that ours replaced: SIGSEGV's and SIGBUS's.
static PREVIOUS: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

/// Installs the handler for SIGSEGV and SIGBUS. Idempotent. Faults that are not ours go to the
/// handler that was installed before.
pub fn install_fault_handler() {
    static INSTALLED: std::sync::Once = std::sync::Once::new();
    INSTALLED.call_once(|| {
        let previous = [current_action(libc::SIGSEGV), current_action(libc::SIGBUS)];
        // `call_once` runs this once, so the cell is empty.
        let _ = PREVIOUS.set(previous);
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            // SAFETY: an all-zero sigaction is valid; the handler has the three-argument form that SA_SIGINFO asks for.
            unsafe {
                let mut action: libc::sigaction = core::mem::zeroed();
                action.sa_sigaction = on_fault as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                libc::sigemptyset(&raw mut action.sa_mask);
                libc::sigaction(signal, &raw const action, core::ptr::null_mut());
            }
        }
    });
}

fn current_action(signal: libc::c_int) -> libc::sigaction {
    // SAFETY: an all-zero sigaction is valid, and the call only fills it in.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        libc::sigaction(signal, core::ptr::null(), &raw mut action);
        action
    }
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel called us with this signal's context. A signal that somebody sent has a
    // code of zero or less; it says nothing about the instruction that it interrupted.
    if unsafe { (*info).si_code > 0 && fixup_host_fault(context) } {
        return;
    }
    chain(signal, info, context);
}

/// Hands a fault that is not ours to the handler before us.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = PREVIOUS.get().map(|p| &p[usize::from(signal == libc::SIGBUS)]);
    match previous {
        Some(action) if action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN => {
            if action.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: the program registered this address as a handler of this form.
                unsafe {
                    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                        core::mem::transmute(action.sa_sigaction);
                    handler(signal, info, context);
                }
            } else {
                // SAFETY: as above.
                unsafe {
                    let handler: extern "C" fn(libc::c_int) = core::mem::transmute(action.sa_sigaction);
                    handler(signal);
                }
            }
        }
        _ => {
            // The default: put it back and return; the instruction faults again and the process dies of it.
            // SAFETY: an all-zero sigaction is SIG_DFL.
            unsafe {
                let action: libc::sigaction = core::mem::zeroed();
                libc::sigaction(signal, &raw const action, core::ptr::null_mut());
                // A signal that was sent would not come again by itself.
                if (*info).si_code <= 0 {
                    libc::raise(signal);
                }
            }
        }
    }
}
