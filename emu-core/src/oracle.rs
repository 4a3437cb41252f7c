//! Test-only: executes one instruction on the host's processor, with given general registers and flags.
//!
//! The oracle for unprivileged integer instructions. `unsafe` because it runs bytes that a test has
//! encoded: the caller vouches that they neither fault, nor branch, nor use the stack.
#![allow(unsafe_code)]

use memmap2::{Mmap, MmapMut};

/// General registers and flags, before and after.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /// RAX to R15. RSP is neither loaded nor stored.
    pub gpr: [u64; 16],
    /// The status flags and DF.
    pub rflags: u64,
}

core::arch::global_asm!(
    ".pushsection .text.softkvm_oracle_enter, \"ax\", @progbits",
    "softkvm_oracle_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    "push rsi",
    "push qword ptr [rdi + 128]",
    "popfq",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "call qword ptr [rsp]",
    "xchg rdi, [rsp + 8]",
    "mov [rdi], rax",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "mov [rdi + 24], rbx",
    "mov [rdi + 40], rbp",
    "mov [rdi + 48], rsi",
    "mov [rdi + 64], r8",
    "mov [rdi + 72], r9",
    "mov [rdi + 80], r10",
    "mov [rdi + 88], r11",
    "mov [rdi + 96], r12",
    "mov [rdi + 104], r13",
    "mov [rdi + 112], r14",
    "mov [rdi + 120], r15",
    "pushfq",
    "pop qword ptr [rdi + 128]",
    "cld",
    "pop rsi",
    "pop rax",
    "mov [rdi + 56], rax",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn softkvm_oracle_enter(state: *mut State, code: *const u8);
}

/// An instruction in executable memory.
pub struct Native(Mmap);

impl Native {
    /// Makes `code` executable.
    ///
    /// # Safety
    ///
    /// In every state that it will be executed on, `code` does not fault, branch, touch RSP or the
    /// stack, and accesses only memory that the test owns.
    pub unsafe fn new(code: &[u8]) -> Native {
        let mut map = MmapMut::map_anon(4096).expect("a page");
        map[..code.len()].copy_from_slice(code);
        map[code.len()] = 0xc3;
        Native(map.make_exec().expect("an executable page"))
    }

    /// Executes it.
    pub fn execute(&self, mut state: State) -> State {
        state.rflags = state.rflags & 0xcd5 | 2;
        // SAFETY: the constructor's caller vouched for the instruction; behind it stands a RET. The stub
        // keeps the registers that the C calling convention asks it to keep, and DF is cleared.
        unsafe { softkvm_oracle_enter(&raw mut state, self.0.as_ptr()) };
        state.rflags &= 0xcd5;
        state
    }
}
