//! The few instructions between Rust and a case: the signal handler's first ones, the last ones before
//! rt_sigreturn, and the child's system calls. The seccomp filter knows the addresses behind the two SYSCALL
//! instructions here.

use std::arch::global_asm;

/// What is not in a signal frame: the handler's first instructions save it, the last ones before a case load
/// it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Segments {
    /// ES, DS, FS, GS. (0, 2, 4, 6)
    pub selectors: [u16; 4],
    /// FS base. (8)
    pub fs_base: u64,
    /// GS base. (16)
    pub gs_base: u64,
    /// Flags that rt_sigreturn takes from the caller, not from the frame: NT and ID. (24)
    pub rflags: u64,
    /// 1: FS base is to be written, 2: GS base. (32)
    pub write: u64,
}

unsafe extern "C" {
    /// The signal handler, on the signal stack. Calls the function at [`oracle_arrival`]'s offset 56 and
    /// never returns.
    pub fn oracle_signal();
    /// First byte of the code that leads to a case.
    pub fn oracle_launch(stack_pointer: u64, segments: *const Segments) -> !;
    /// Behind its SYSCALL: the instruction pointer that seccomp sees.
    pub fn oracle_launch_syscall();
    /// A system call. Returns what the kernel returns.
    pub fn oracle_system_call(number: usize, arguments: *const [usize; 6]) -> isize;
    /// Behind its SYSCALL.
    pub fn oracle_system_call_syscall();
    /// Brings the first signal.
    pub fn oracle_first_signal() -> !;
    /// The handler's words: [`Arrival`].
    pub static mut oracle_arrival: Arrival;
}

/// The child's words for its handler. The parent never touches them: each child has its own copy.
#[repr(C)]
pub struct Arrival {
    /// What the handler found. (0)
    pub segments: Segments,
    /// FS base of the Rust code in the child. (40)
    pub own_fs_base: u64,
    /// GS base of the Rust code. (48)
    pub own_gs_base: u64,
    /// `extern "C" fn(signal, info, context) -> !`. (56)
    pub handler: u64,
}

const _: () = assert!(size_of::<Arrival>() == 64 && size_of::<Segments>() == 40);

// The handler: the case's AC, DF and NT are still set, DS and ES are the case's (64-bit code does not care),
// FS and GS too.
global_asm!(
    ".pushsection .bss.oracle_arrival, \"aw\", @nobits",
    ".p2align 6",
    ".globl oracle_arrival",
    ".hidden oracle_arrival",
    "oracle_arrival: .zero 64",
    ".popsection",
    ".pushsection .text.oracle_entry, \"ax\", @progbits",
    ".globl oracle_signal, oracle_launch, oracle_launch_syscall, oracle_system_call",
    ".globl oracle_system_call_syscall, oracle_first_signal",
    ".hidden oracle_signal, oracle_launch, oracle_launch_syscall, oracle_system_call",
    ".hidden oracle_system_call_syscall, oracle_first_signal",
    "oracle_signal:",
    "push 2",
    "popfq",
    "lea rcx, [rip + oracle_arrival]",
    "mov eax, es",
    "mov word ptr [rcx], ax",
    "mov eax, ds",
    "mov word ptr [rcx + 2], ax",
    "mov eax, fs",
    "mov word ptr [rcx + 4], ax",
    "mov eax, gs",
    "mov word ptr [rcx + 6], ax",
    "rdfsbase rax",
    "mov qword ptr [rcx + 8], rax",
    "rdgsbase rax",
    "mov qword ptr [rcx + 16], rax",
    "mov rax, qword ptr [rcx + 40]",
    "wrfsbase rax",
    "mov rax, qword ptr [rcx + 48]",
    "wrgsbase rax",
    "xor ebp, ebp",
    "and rsp, -16",
    "call qword ptr [rcx + 56]",
    "ud2",
    "oracle_launch:",
    "push qword ptr [rsi + 24]",
    "popfq",
    "mov ax, word ptr [rsi]",
    "mov es, ax",
    "mov ax, word ptr [rsi + 2]",
    "mov ds, ax",
    "mov ax, word ptr [rsi + 4]",
    "mov fs, ax",
    "mov ax, word ptr [rsi + 6]",
    "mov gs, ax",
    "test byte ptr [rsi + 32], 1",
    "jz 2f",
    "mov rax, qword ptr [rsi + 8]",
    "wrfsbase rax",
    "2:",
    "test byte ptr [rsi + 32], 2",
    "jz 3f",
    "mov rax, qword ptr [rsi + 16]",
    "wrgsbase rax",
    "3:",
    "mov rsp, rdi",
    "mov eax, 15",
    "syscall",
    "oracle_launch_syscall:",
    "ud2",
    "oracle_system_call:",
    "mov rax, rdi",
    "mov r11, rsi",
    "mov rdi, qword ptr [r11]",
    "mov rsi, qword ptr [r11 + 8]",
    "mov rdx, qword ptr [r11 + 16]",
    "mov r10, qword ptr [r11 + 24]",
    "mov r8, qword ptr [r11 + 32]",
    "mov r9, qword ptr [r11 + 40]",
    "syscall",
    "oracle_system_call_syscall:",
    "ret",
    "oracle_first_signal:",
    "ud2",
    "jmp oracle_first_signal",
    ".popsection",
);

/// Whether an address lies in the code between the child's Rust and a case's first byte.
pub fn is_launch(rip: u64) -> bool {
    (oracle_launch as *const () as u64..=oracle_launch_syscall as *const () as u64).contains(&rip)
}
