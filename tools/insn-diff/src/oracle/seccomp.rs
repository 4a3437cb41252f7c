//! The filter that keeps a case from the kernel: a system call is allowed only from the child's own two
//! SYSCALL instructions, told by the instruction pointer. Whatever else enters (SYSCALL, SYSENTER, INT 80H,
//! of either ABI) becomes SIGSYS. (seccomp(2); the fields are `struct seccomp_data`'s.)

use super::entry::{oracle_launch_syscall, oracle_system_call_syscall};
use libc::sock_filter;

/// BPF_LD | BPF_W | BPF_ABS.
const LOAD: u16 = 0x20;
/// BPF_JMP | BPF_JEQ | BPF_K.
const EQUAL: u16 = 0x15;
/// BPF_RET | BPF_K.
const RETURN: u16 = 0x06;
/// Offsets of the halves of `instruction_pointer`.
const IP_LOW: u32 = 8;
const IP_HIGH: u32 = 12;

/// The program. No arch is looked at: the allowed addresses are in 64-bit code, whose only entry they are.
pub fn filter() -> [sock_filter; 9] {
    let sites = [oracle_launch_syscall as *const () as u64, oracle_system_call_syscall as *const () as u64];
    let row = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    [
        row(LOAD, 0, 0, IP_LOW),
        row(EQUAL, 0, 2, sites[0] as u32),
        row(LOAD, 0, 0, IP_HIGH),
        row(EQUAL, 4, 3, (sites[0] >> 32) as u32),
        row(EQUAL, 0, 2, sites[1] as u32),
        row(LOAD, 0, 0, IP_HIGH),
        row(EQUAL, 1, 0, (sites[1] >> 32) as u32),
        row(RETURN, 0, 0, libc::SECCOMP_RET_TRAP),
        row(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}
