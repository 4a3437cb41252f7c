//! The child process: it makes itself an address space like `layout`'s, shuts itself in, and executes cases
//! until it is killed.
//!
//! Everything here runs after a bare fork of a process that may have more threads: no allocation, no lock, no
//! thread-local, no panic, no libc call but memcmp and memcpy. After the first signal the child lives in its
//! handler: a case begins by rt_sigreturn from it and ends by the next signal.

use super::entry::{
    Arrival, Segments, is_launch, oracle_arrival, oracle_first_signal, oracle_launch, oracle_signal,
    oracle_system_call,
};
use super::frame::Frame;
use super::mailbox::{BATCH, DONE, LINES, Lines, Mailbox, READY, REFUSED, SYSTEM_CALL, Slot, State};
use super::memory::Shared;
use super::seccomp;
use crate::case::LINE;
use crate::layout::{AREAS, BACKING, DESCRIPTORS, PAGE, Permission};
use std::ptr::{copy_nonoverlapping, null_mut};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// What may fail at a start: mailbox.boot is the index plus 2.
pub const STEPS: [&str; 10] = [
    "prctl(PR_SET_PDEATHSIG)",
    "munmap of the address space below 4 GiB",
    "mmap of the case's memory at its fixed addresses",
    "modify_ldt (CONFIG_MODIFY_LDT_SYSCALL)",
    "sigaltstack",
    "rt_sigaction",
    "rt_sigprocmask",
    "close_range",
    "seccomp (CONFIG_SECCOMP_FILTER)",
    "the first signal's frame",
];

/// The signals by which an exception arrives.
const SIGNALS: [i32; 6] =
    [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGSYS];
/// Bytes of the signal stack: a frame has 4 KiB or, with AMX permitted, 12; the handler takes a few hundred.
const STACK: usize = 128 * 1024;
/// SA_RESTORER: x86-64 refuses handlers without one.
const RESTORER: u64 = 0x0400_0000;
/// SYS_SECCOMP, si_code of a SIGSYS by a filter.
const SECCOMP: i32 = 1;
/// RFLAGS.NT and RFLAGS.ID: rt_sigreturn leaves them as they are.
const NESTED: u64 = 1 << 14 | 1 << 21;

/// The child's own notes. Written after the fork only, so each child has its own.
struct Notes {
    mailbox: *mut Mailbox,
    backing: *mut u8,
    running: bool,
    order: u32,
    xstate_size: usize,
}

static mut NOTES: Notes =
    Notes { mailbox: null_mut(), backing: null_mut(), running: false, order: 0, xstate_size: 0 };

/// The kernel's `struct sigaction`.
#[repr(C)]
struct Action {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// The kernel's `struct user_desc`.
#[repr(C)]
struct UserDescriptor {
    entry_number: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

fn system_call(number: i64, arguments: [usize; 6]) -> isize {
    // SAFETY: the callers pass pointers to memory that lives during the call, or none.
    unsafe { oracle_system_call(number as usize, &arguments) }
}

fn exit(code: usize) -> ! {
    loop {
        system_call(libc::SYS_exit_group, [code, 0, 0, 0, 0, 0]);
    }
}

fn wait(word: &AtomicU32, value: u32) {
    let word: *const AtomicU32 = word;
    system_call(libc::SYS_futex, [word as usize, libc::FUTEX_WAIT as usize, value as usize, 0, 0, 0]);
}

fn wake(word: &AtomicU32) {
    let word: *const AtomicU32 = word;
    system_call(libc::SYS_futex, [word as usize, libc::FUTEX_WAKE as usize, i32::MAX as usize, 0, 0, 0]);
}

/// The child's whole life.
///
/// # Safety
/// To be called in a new process right after fork, whose memory is a copy of the parent's; `parent` is its
/// parent's pid.
pub unsafe fn live(shared: &Shared, parent: i32) -> ! {
    let mailbox = shared.mailbox();
    // SAFETY: the mapping is inherited; the parent only reads these words until `boot` changes.
    let words = unsafe { (&(*mailbox).boot, &(*mailbox).boot_errno) };
    match prepare(shared, parent) {
        Ok(()) => {
            // SAFETY: this process has one thread, which has not been in its handler yet: nobody else uses
            // the statics.
            unsafe {
                NOTES =
                    Notes { mailbox, backing: shared.backing(), running: false, order: 0, xstate_size: 0 };
                let (fs_base, gs_base) = bases();
                let segments = Segments { selectors: [0; 4], fs_base: 0, gs_base: 0, rflags: 0, write: 0 };
                oracle_arrival = Arrival {
                    segments,
                    own_fs_base: fs_base,
                    own_gs_base: gs_base,
                    handler: arrived as *const () as u64,
                };
                oracle_first_signal()
            }
        }
        Err((step, errno)) => {
            words.1.store(errno, Relaxed);
            words.0.store(step as u32 + 2, Release);
            wake(words.0);
            exit(1)
        }
    }
}

/// FS and GS base of the code that runs.
fn bases() -> (u64, u64) {
    let (fs, gs): (u64, u64);
    // SAFETY: the parent has seen that the host has FSGSBASE and the kernel has enabled it; registers only.
    unsafe {
        std::arch::asm!("rdfsbase {}", "rdgsbase {}", out(reg) fs, out(reg) gs, options(nomem, nostack, preserves_flags));
    }
    (fs, gs)
}

/// All system calls before the first case. An error is an index into [`STEPS`] and an errno.
fn prepare(shared: &Shared, parent: i32) -> Result<(), (usize, u32)> {
    let checked = |step: usize, result: isize| match result {
        -4095..0 => Err((step, result.unsigned_abs() as u32)),
        value => Ok(value as usize),
    };
    let prctl =
        |option: i32, value: usize| system_call(libc::SYS_prctl, [option as usize, value, 0, 0, 0, 0]);
    checked(0, prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as usize))?;
    if system_call(libc::SYS_getppid, [0; 6]) != parent as isize {
        exit(0); // The parent died before the line above.
    }
    // No core dumps.
    checked(0, prctl(libc::PR_SET_DUMPABLE, 0))?;

    // The parent may have something there; this process needs nothing of it (the parent has looked at where
    // its code is).
    let low = 0x1_0000;
    checked(1, system_call(libc::SYS_munmap, [low, (1 << 32) - low, 0, 0, 0, 0]))?;
    let mut at = 0;
    for area in AREAS {
        let protection = match area.permission {
            Permission::Execute => libc::PROT_READ | libc::PROT_EXEC,
            Permission::Write => libc::PROT_READ | libc::PROT_WRITE,
            Permission::Read => libc::PROT_READ,
        };
        // Populated: a write to a read-only page that has never been read would be reported as one to no
        // page.
        let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
        let (start, len) = (area.start as usize, area.len() as usize);
        let arguments = [start, len, protection as usize, flags as usize, shared.fd() as usize, at];
        if checked(2, system_call(libc::SYS_mmap, arguments))? != start {
            return Err((2, libc::EEXIST as u32));
        }
        at += len;
    }

    for d in DESCRIPTORS.iter().filter(|d| d.selector & 4 != 0) {
        // Type to `contents` and `read_exec_only`: bit 3 code, bit 2 expand-down or conforming, bit 1
        // writable or readable.
        let contents = (d.typ as u32 >> 2) & 3;
        let flags = d.big as u32
            | contents << 1
            | ((d.typ & 2 == 0) as u32) << 3
            | (d.granular as u32) << 4
            | (!d.present as u32) << 5;
        let entry =
            UserDescriptor { entry_number: d.selector as u32 >> 3, base: d.base, limit: d.limit, flags };
        let pointer = &raw const entry as usize;
        let arguments = [0x11, pointer, size_of::<UserDescriptor>(), 0, 0, 0];
        // The kernel returns an int whose upper half may be clear.
        checked(3, system_call(libc::SYS_modify_ldt, arguments) as i32 as isize)?;
    }

    let stack = {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let arguments = [0, STACK, protection as usize, flags as usize, usize::MAX, 0];
        checked(4, system_call(libc::SYS_mmap, arguments))?
    };
    // struct stack_t: pointer, flags, size.
    let words = [stack, 0, STACK];
    checked(4, system_call(libc::SYS_sigaltstack, [words.as_ptr() as usize, 0, 0, 0, 0, 0]))?;

    // Everything else stays blocked: the parent's handlers must not run here.
    let mut mask = u64::MAX;
    for signal in SIGNALS {
        let handler = oracle_signal as *const () as usize;
        let flags = (libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER) as u32 as u64 | RESTORER;
        let action = Action { handler, flags, restorer: handler, mask: 0 };
        let arguments = [signal as usize, &raw const action as usize, 0, 8, 0, 0];
        checked(5, system_call(libc::SYS_rt_sigaction, arguments))?;
        mask &= !(1 << (signal - 1));
    }
    let arguments = [libc::SIG_SETMASK as usize, &raw const mask as usize, 0, 8, 0, 0];
    checked(6, system_call(libc::SYS_rt_sigprocmask, arguments))?;
    checked(7, system_call(libc::SYS_close_range, [0, u32::MAX as usize, 0, 0, 0, 0]))?;

    checked(8, prctl(libc::PR_SET_NO_NEW_PRIVS, 1))?;
    let mut filter = seccomp::filter();
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let (set, allow_speculation) = (libc::SECCOMP_SET_MODE_FILTER as usize, 4);
    let arguments = [set, allow_speculation, &raw const program as usize, 0, 0, 0];
    checked(8, system_call(libc::SYS_seccomp, arguments))?;
    Ok(())
}

/// Every signal: `entry`'s handler comes here.
extern "C" fn arrived(signal: i32, info: *const u8, context: *mut libc::ucontext_t) -> ! {
    // SAFETY: one thread, and handlers do not nest: a fault in this code would be a second arrival, which
    // never returns to the first. The pointers are the kernel's.
    let (frame, segments) = unsafe { (Frame::new(context), oracle_arrival.segments) };
    let notes = &raw mut NOTES;
    // SAFETY: the same.
    let notes = unsafe { &mut *notes };
    let mailbox = notes.mailbox;
    if notes.running {
        // SAFETY: the slot at `progress` is the child's until `finished` says otherwise; the index is masked.
        let slot = unsafe { &mut *slot(mailbox, (*mailbox).progress.load(Relaxed)) };
        // SAFETY: siginfo has 128 bytes: si_code stands at 8, a SIGSYS's number at 24.
        let (code, number) = unsafe { (info.add(8).cast::<i32>().read(), info.add(24).cast::<u32>().read()) };
        let status = if signal == libc::SIGSYS && code == SECCOMP {
            slot.detail = number;
            SYSTEM_CALL
        } else if is_launch(frame.rip()) {
            REFUSED
        } else {
            outcome(slot, frame, &segments, notes.xstate_size);
            DONE
        };
        // SAFETY: both are mapped as long as the child lives, and disjoint; the parent leaves them alone.
        unsafe { settle(notes.backing, mailbox, slot) };
        slot.status.store(status, Release);
        // SAFETY: the mailbox is mapped as long as the child lives.
        unsafe { (*mailbox).progress.fetch_add(1, Release) };
    } else {
        boot(notes, frame);
    }
    next(notes, frame)
}

/// The first signal: what the kernel's frames are like.
fn boot(notes: &mut Notes, frame: Frame) {
    let software = frame.software();
    notes.xstate_size = software.xstate_size as usize;
    notes.running = true;
    let mailbox = notes.mailbox;
    // SAFETY: the parent does not touch the mailbox until `boot` changes.
    unsafe {
        (*mailbox).xstate_size = software.xstate_size;
        (*mailbox).xfeatures = software.xfeatures;
        (*mailbox).mxcsr_mask = software.mxcsr_mask;
        copy_nonoverlapping(
            (&raw const (*mailbox).template).cast::<u8>(),
            (&raw mut (*mailbox).shadow).cast::<u8>(),
            BACKING,
        );
        copy_nonoverlapping((&raw const (*mailbox).template).cast::<u8>(), notes.backing, BACKING);
        // An image smaller than its header: a kernel that does not use XSAVE.
        let ready = if software.xstate_size < 576 { 2 + STEPS.len() as u32 - 1 } else { READY };
        (*mailbox).boot.store(ready, Release);
        wake(&(*mailbox).boot);
        if ready != READY {
            exit(1);
        }
    }
}

fn slot(mailbox: *mut Mailbox, n: u32) -> *mut Slot {
    // SAFETY: the index is below BATCH.
    unsafe { (&raw mut (*mailbox).slots).cast::<Slot>().add(n as usize % BATCH) }
}

/// Takes the outcome but for memory.
fn outcome(slot: &mut Slot, frame: Frame, segments: &Segments, xstate_size: usize) {
    slot.vector = frame.vector();
    slot.error_code = frame.error_code();
    slot.cr2 = frame.cr2();
    frame.take(&mut slot.after, xstate_size);
    let [es, ds, fs, gs] = segments.selectors;
    let selectors = &mut slot.after.selectors;
    (selectors[0], selectors[3], selectors[4], selectors[5]) = (es, ds, fs, gs);
    slot.after.fs_base = segments.fs_base;
    slot.after.gs_base = segments.gs_base;
}

/// Notes which lines the case changed, and makes memory the template again.
///
/// # Safety
/// The backing has BACKING bytes, the mailbox is valid, `slot` is its, and nobody else uses them.
unsafe fn settle(backing: *mut u8, mailbox: *mut Mailbox, slot: &mut Slot) {
    let page = PAGE as usize;
    let mut count = 0;
    // SAFETY: every offset is a multiple of LINE below BACKING, every index below LINES.
    unsafe {
        let shadow = (&raw mut (*mailbox).shadow).cast::<u8>();
        let template = (&raw const (*mailbox).template).cast::<u8>();
        for at in (0..BACKING).step_by(page) {
            if same(backing.add(at), shadow.add(at), page) {
                continue;
            }
            for line in (at..at + page).step_by(LINE) {
                if !same(backing.add(line), shadow.add(line), LINE) && count < LINES {
                    let to = (&raw mut slot.changed.contents).cast::<u8>().add(count * LINE);
                    copy_nonoverlapping(backing.add(line), to, LINE);
                    (&raw mut slot.changed.offsets).cast::<u32>().add(count).write(line as u32);
                    count += 1;
                    copy_nonoverlapping(template.add(line), backing.add(line), LINE);
                }
            }
        }
        slot.changed.count = count as u32;
        for (at, _) in lines(&slot.given) {
            copy_nonoverlapping(template.add(at), backing.add(at), LINE);
            copy_nonoverlapping(template.add(at), shadow.add(at), LINE);
        }
    }
}

/// Offsets and contents, offsets inside the backing.
fn lines(lines: &Lines) -> impl Iterator<Item = (usize, *const u8)> {
    let pairs = lines.offsets.iter().zip(&lines.contents).take(lines.count as usize);
    pairs.filter(|(at, _)| **at as usize <= BACKING - LINE).map(|(at, bytes)| (*at as usize, bytes.as_ptr()))
}

/// # Safety
/// Both have `len` bytes.
unsafe fn same(a: *const u8, b: *const u8, len: usize) -> bool {
    // SAFETY: the caller's.
    unsafe { libc::memcmp(a.cast(), b.cast(), len) == 0 }
}

/// Goes on with the next case: of this batch or, after a sleep, of the next.
fn next(notes: &mut Notes, frame: Frame) -> ! {
    let mailbox = notes.mailbox;
    loop {
        // SAFETY: the words are atomic; the mailbox is mapped as long as the child lives.
        let (progress, ordered, finished, count) =
            unsafe { (&(*mailbox).progress, &(*mailbox).ordered, &(*mailbox).finished, &(*mailbox).count) };
        let order = ordered.load(Acquire);
        if order == notes.order {
            wait(ordered, order);
            continue;
        }
        let at = progress.load(Relaxed);
        if at >= count.load(Relaxed) {
            notes.order = order;
            finished.store(order, Release);
            wake(finished);
            continue;
        }
        // SAFETY: the parent gave the slot to the child by `ordered`.
        let slot = unsafe { &*slot(mailbox, at) };
        if slot.status.load(Relaxed) == REFUSED {
            progress.store(at + 1, Release);
            continue;
        }
        // SAFETY: lines lie inside the backing, which is as long as the shadow.
        unsafe {
            let shadow = (&raw mut (*mailbox).shadow).cast::<u8>();
            for (at, bytes) in lines(&slot.given) {
                copy_nonoverlapping(bytes, notes.backing.add(at), LINE);
                copy_nonoverlapping(bytes, shadow.add(at), LINE);
            }
        }
        start(&slot.before, frame, notes.xstate_size)
    }
}

/// Leaves the handler for a case.
fn start(state: &State, frame: Frame, xstate_size: usize) -> ! {
    frame.give(state, xstate_size);
    let [es, _, _, ds, fs, gs] = state.selectors;
    let segments = Segments {
        selectors: [es, ds, fs, gs],
        fs_base: state.fs_base,
        gs_base: state.gs_base,
        rflags: state.rflags & NESTED | 0x202,
        write: (fs & !3 == 0) as u64 | ((gs & !3 == 0) as u64) << 1,
    };
    // SAFETY: the frame is the kernel's and whole, and this is its handler's stack: rt_sigreturn takes the
    // state out of it.
    unsafe { oracle_launch(frame.stack_pointer(), &raw const segments) }
}
