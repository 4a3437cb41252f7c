//! Filters of system calls (seccomp) that the program installs: each gets, before its own instructions, the calls that
//! the engine makes.
//!
//! A VMM allows what the kernel's KVM needs, which is one ioctl. A software processor in the same thread also sleeps,
//! takes signals and asks for memory. So a filter here first lets [`ENGINE`] pass, and two calls that send signals if
//! they send them to this process; everything else is the program's to decide. That is wider than what the
//! program asked for, by exactly this list, which docs/exec.md gives. Filters that were there before the program is
//! (a container's) are the kernel's alone.

use crate::raw::{self, sys};

/// What the engine calls in a thread of the program: see the table in docs/exec.md.
pub const ENGINE: &[i64] = &[
    // Each ioctl.
    libc::SYS_fstat,
    libc::SYS_rt_sigprocmask,
    // A signal during KVM_RUN, and faults in guest memory.
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigaction,
    libc::SYS_getpid,
    libc::SYS_gettid,
    // HLT, and threads that wait for each other.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mprotect,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_pread64,
    // irqfds and ioeventfds, and the trace.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_create1,
    libc::SYS_eventfd2,
    // VMs and vCPUs, and their end.
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_close,
    libc::SYS_prlimit64,
];

/// Calls that send a signal: let through when their first argument is this process.
pub const SENDERS: &[i64] = &[libc::SYS_tgkill, libc::SYS_rt_tgsigqueueinfo, libc::SYS_rt_sigqueueinfo];

/// linux/seccomp.h: SECCOMP_SET_MODE_FILTER.
const SET_MODE_FILTER: u64 = 1;
/// linux/audit.h: AUDIT_ARCH_X86_64.
const ARCH: u32 = 0xc000_003e;
/// Offsets in struct seccomp_data.
const NR: u32 = 0;
const ARCH_AT: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
/// linux/filter.h: BPF_MAXINSNS.
const LONGEST: usize = 4096;

/// struct sock_filter.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

const LOAD: u16 = 0x20;
const IMMEDIATE: u16 = 0x00;
const EQUAL: u16 = 0x15;
const JUMP: u16 = 0x05;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;

const fn insn(code: u16, k: u32, jt: usize, jf: usize) -> Insn {
    // Distances are below 256: the lists are short (a test counts them).
    Insn { code, jt: jt as u8, jf: jf as u8, k }
}

/// Instructions before the program's own.
const PREFIX: usize = ENGINE.len() + SENDERS.len() + 8;

/// What comes first. Distances count from the following instruction.
fn prefix(process: u32) -> [Insn; PREFIX] {
    let (e, s) = (ENGINE.len(), SENDERS.len());
    // load arch, other: end, load nr, e tests: allow, s tests: sender, jump end, sender: load, test, allow, end.
    let sender = 3 + e + s + 1;
    let (allow, end) = (sender + 2, sender + 3);
    let mut p = [insn(IMMEDIATE, 0, 0, 0); PREFIX];
    p[0] = insn(LOAD, ARCH_AT, 0, 0);
    p[1] = insn(EQUAL, ARCH, 0, end - 2);
    p[2] = insn(LOAD, NR, 0, 0);
    for (n, nr) in ENGINE.iter().enumerate() {
        p[3 + n] = insn(EQUAL, *nr as u32, allow - (3 + n) - 1, 0);
    }
    for (n, nr) in SENDERS.iter().enumerate() {
        p[3 + e + n] = insn(EQUAL, *nr as u32, sender - (3 + e + n) - 1, 0);
    }
    p[sender - 1] = insn(JUMP, (end - sender) as u32, 0, 0);
    p[sender] = insn(LOAD, FIRST_ARGUMENT, 0, 0);
    p[sender + 1] = insn(EQUAL, process, 0, 1);
    p[allow] = insn(RETURN, ALLOW, 0, 0);
    // The accumulator is 0 where the program begins.
    p[end] = insn(IMMEDIATE, 0, 0, 0);
    p
}

/// struct sock_fprog.
#[repr(C)]
#[derive(Clone, Copy)]
struct Program {
    len: u16,
    filter: *const Insn,
}

/// prctl or seccomp, which may install a filter.
///
/// # Safety
///
/// As the system call.
pub unsafe fn install(nr: i64, mut a: [u64; 6]) -> i64 {
    // SAFETY: as the caller promises.
    let native = |a: [u64; 6]| unsafe { raw::syscall(nr, a) };
    let at = match nr {
        libc::SYS_seccomp if a[0] == SET_MODE_FILTER => 2,
        libc::SYS_prctl
            if a[0] as i32 == libc::PR_SET_SECCOMP && a[1] == u64::from(libc::SECCOMP_MODE_FILTER) =>
        {
            2
        }
        _ => return native(a),
    };
    if a[at] < 4096 || !crate::environment::enabled() {
        return native(a);
    }
    // SAFETY: the program's struct sock_fprog.
    let program = unsafe { (a[at] as *const Program).read_unaligned() };
    let len = usize::from(program.len);
    if len == 0 || len + PREFIX > LONGEST || program.filter.is_null() {
        return native(a);
    }
    // A mapping, not the heap: this may be a child made by vfork.
    let bytes = LONGEST * size_of::<Insn>();
    // SAFETY: a new mapping, with room for the longest filter; the program's list has `len` entries.
    unsafe {
        let (rw, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let list = sys!(SYS_mmap, 0, bytes, rw, kind, -1i64, 0);
        if list < 0 {
            return native(a);
        }
        let to = list as usize as *mut Insn;
        core::ptr::copy_nonoverlapping(prefix(raw::getpid() as u32).as_ptr(), to, PREFIX);
        core::ptr::copy_nonoverlapping(program.filter, to.add(PREFIX), len);
        let ours = Program { len: (len + PREFIX) as u16, filter: to };
        a[at] = (&raw const ours) as u64;
        let r = native(a);
        sys!(SYS_munmap, list, bytes);
        r
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with a filter of these instructions.
    fn decide(program: &[Insn], arch: u32, nr: i64, first: u32) -> u32 {
        let (mut at, mut a) = (0, 0);
        loop {
            let i = program[at];
            at += 1;
            match i.code {
                LOAD => {
                    a = match i.k {
                        NR => nr as u32,
                        ARCH_AT => arch,
                        FIRST_ARGUMENT => first,
                        k => panic!("{k}"),
                    }
                }
                IMMEDIATE => a = i.k,
                EQUAL => at += usize::from(if a == i.k { i.jt } else { i.jf }),
                JUMP => at += i.k as usize,
                RETURN => return i.k,
                code => panic!("{code:#x}"),
            }
        }
    }

    #[test]
    fn the_lists_pass_and_all_else_is_the_programs() {
        const TRAP: u32 = 0x0003_0000;
        const { assert!(PREFIX < 256) };
        let mut program = prefix(77).to_vec();
        // The program's own: it begins with the accumulator at 0.
        program.extend([insn(EQUAL, 0, 0, 1), insn(RETURN, TRAP, 0, 0), insn(RETURN, 1, 0, 0)]);
        for nr in 0..500 {
            let engine = ENGINE.contains(&nr);
            assert_eq!(decide(&program, ARCH, nr, 78), if engine { ALLOW } else { TRAP }, "{nr}");
            let sender = SENDERS.contains(&nr);
            assert_eq!(decide(&program, ARCH, nr, 77), if engine || sender { ALLOW } else { TRAP }, "{nr}");
            assert_eq!(decide(&program, 0x4000_0003, nr, 77), TRAP, "32-bit {nr}");
        }
    }
}
