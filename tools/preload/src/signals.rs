//! The program's signal handlers, and ours before them.
//!
//! From the first open of `/dev/kvm` on, the kernel knows our trampoline in place of each of the program's handlers. It
//! calls the program's at once, on the stack where it stands, unless the thread is inside our code: then it kicks the
//! vCPU, blocks the signal in the context that it returns to, and queues it again to this thread with the same siginfo.
//! [`inside::leave`] opens the mask again, and the signal comes back outside. Ignored signals are the kernel's
//! business: they end nothing. But one that has no handler, is blocked in the thread and open in KVM_RUN alone stays pending
//! in the kernel, whatever its action, and ends KVM_RUN: for such a signal the trampoline *stands in*, and does the
//! default where it meets it elsewhere.
//!
//! SIGSEGV, SIGBUS and SIGFPE first go to the engine's handlers; what is not the engine's goes on to the program's.
//!
//! Signal 32 is the C library's, for pthread_cancel: its handler is treated as the program's, so that a thread is cancelled
//! outside. Not here: signal 33, whose handler never leaves.

use crate::inside;
use crate::raw::{self, KernelAction, SA_RESTORER, sys};
use core::ffi::c_void;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64};

const SIG_DFL: u64 = libc::SIG_DFL as u64;
const SIG_IGN: u64 = libc::SIG_IGN as u64;
const SA_SIGINFO: u64 = libc::SA_SIGINFO as u64;
const SA_RESTART: u64 = libc::SA_RESTART as u64;
const SA_ONSTACK: u64 = libc::SA_ONSTACK as u64;
const SA_NODEFER: u64 = libc::SA_NODEFER as u64;
/// SA_RESETHAND, which i32 has as a negative number's neighbour.
const SA_RESETHAND: u64 = libc::SA_RESETHAND as u32 as u64;

/// What the program has set for a signal.
struct Action {
    handler: AtomicU64,
    flags: AtomicU64,
    restorer: AtomicU64,
    mask: AtomicU64,
    /// The engine's handler (faults only).
    engine: AtomicU64,
}

impl Action {
    const fn none() -> Action {
        Action {
            handler: AtomicU64::new(SIG_DFL),
            flags: AtomicU64::new(0),
            restorer: AtomicU64::new(0),
            mask: AtomicU64::new(0),
            engine: AtomicU64::new(0),
        }
    }

    fn load(&self) -> KernelAction {
        KernelAction {
            handler: self.handler.load(Acquire),
            flags: self.flags.load(Acquire),
            restorer: self.restorer.load(Acquire),
            mask: self.mask.load(Acquire),
        }
    }

    fn store(&self, a: &KernelAction) {
        self.flags.store(a.flags, Release);
        self.restorer.store(a.restorer, Release);
        self.mask.store(a.mask, Release);
        self.handler.store(a.handler, Release);
    }
}

static ACTIONS: [Action; 65] = [const { Action::none() }; 65];
static ACTIVE: AtomicBool = AtomicBool::new(false);
/// The process that [`ACTIONS`] is about: a vfork child shares our memory, but not its signal handlers.
static OWNER: AtomicI32 = AtomicI32::new(0);
/// Signals without a handler.
static UNHANDLED: AtomicU64 = AtomicU64::new(0);
/// Those among them for which the trampoline stands in.
static STANDING: AtomicU64 = AtomicU64::new(0);
/// One change at a time. Held with all signals blocked.
static CHANGING: AtomicBool = AtomicBool::new(false);

/// The C library's, for pthread_cancel.
const SIGCANCEL: i32 = 32;

fn action(signal: i32) -> Option<&'static Action> {
    let usual = matches!(signal, 1..=32 | 34..=64) && signal != libc::SIGKILL && signal != libc::SIGSTOP;
    if usual { ACTIONS.get(signal as usize) } else { None }
}

fn is_fault(signal: i32) -> bool {
    inside::FAULTS & raw::bit(signal) != 0
}

fn has_handler(a: &KernelAction) -> bool {
    a.handler != SIG_DFL && a.handler != SIG_IGN
}

/// What the kernel is to know for what the program wants.
fn for_kernel(signal: i32, a: &KernelAction) -> KernelAction {
    let restorer = raw::restorer as *const () as u64;
    match (is_fault(signal), has_handler(a)) {
        (fault, true) => KernelAction {
            handler: if fault { on_fault as *const () as u64 } else { trampoline as *const () as u64 },
            // Ours puts the default back itself, when the program's handler has really been called.
            flags: (a.flags | SA_SIGINFO | SA_RESTORER) & !SA_RESETHAND,
            restorer: if a.flags & SA_RESTORER != 0 { a.restorer } else { restorer },
            mask: a.mask,
        },
        (true, false) => KernelAction {
            handler: on_fault as *const () as u64,
            flags: SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTORER,
            restorer,
            mask: 0,
        },
        (false, false) if STANDING.load(Relaxed) & raw::bit(signal) != 0 => KernelAction {
            handler: trampoline as *const () as u64,
            flags: SA_SIGINFO | SA_RESTART | SA_RESTORER | child_flags(signal, a),
            restorer,
            mask: 0,
        },
        (false, false) => *a,
    }
}

/// SIGCHLD's flags count without a handler too, and ignoring it is one more way to ask that nobody waits for children.
fn child_flags(signal: i32, a: &KernelAction) -> u64 {
    const OF_CHILDREN: u64 = (libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT) as u64;
    match (signal, a.handler) {
        (libc::SIGCHLD, SIG_IGN) => a.flags & OF_CHILDREN | libc::SA_NOCLDWAIT as u64,
        (libc::SIGCHLD, _) => a.flags & OF_CHILDREN,
        _ => 0,
    }
}

/// Remembers what the program wants of a signal.
fn remember(signal: i32, a: &KernelAction) {
    if let Some(to) = action(signal) {
        to.store(a);
    }
    let bit = raw::bit(signal);
    if has_handler(a) || is_fault(signal) || signal == SIGCANCEL {
        UNHANDLED.fetch_and(!bit, SeqCst);
        STANDING.fetch_and(!bit, SeqCst);
    } else {
        UNHANDLED.fetch_or(bit, SeqCst);
    }
}

/// KVM_RUN is about to open signals that the thread blocks: they end it, with or without a handler.
#[inline]
pub fn stand_in(opened: u64) {
    if opened & UNHANDLED.load(Relaxed) & !STANDING.load(Relaxed) != 0 {
        exclusively(|| {
            let new = opened & UNHANDLED.load(Relaxed) & !STANDING.load(Relaxed);
            STANDING.fetch_or(new, SeqCst);
            set_standing(new);
        });
    }
}

fn set_standing(signals: u64) {
    for signal in (1..=64).filter(|s| signals & raw::bit(*s) != 0) {
        if let Some(a) = action(signal) {
            let _ = raw::sigaction(signal, Some(&for_kernel(signal, &a.load())));
        }
    }
}

/// Signals that the program ignores and that the kernel would forget to ignore in another program.
fn ignored_but_standing() -> impl Iterator<Item = i32> {
    let standing = STANDING.load(Relaxed);
    (1..=64).filter(move |s| {
        standing & raw::bit(*s) != 0 && action(*s).is_some_and(|a| a.handler.load(Relaxed) == SIG_IGN)
    })
}

/// Around exec or spawn, `f`: the other program begins with what this one ignores.
pub fn handing_on<R>(f: impl FnOnce() -> R) -> R {
    for signal in ignored_but_standing() {
        let ignore = KernelAction { handler: SIG_IGN, ..KernelAction::default() };
        let _ = raw::sigaction(signal, Some(&ignore));
    }
    let r = f();
    for signal in ignored_but_standing() {
        set_standing(raw::bit(signal));
    }
    r
}

/// After pthread_cancel has installed its handler.
pub fn take_cancellation() {
    if !ACTIVE.load(Acquire) || OWNER.load(Relaxed) != raw::getpid() {
        return;
    }
    exclusively(|| {
        let Ok(now) = raw::sigaction(SIGCANCEL, None) else { return };
        if has_handler(&now) && now.handler != trampoline as *const () as u64 {
            remember(SIGCANCEL, &now);
            let _ = raw::sigaction(SIGCANCEL, Some(&for_kernel(SIGCANCEL, &now)));
        }
    });
}

/// Whether this process has opened `/dev/kvm`.
pub fn is_active() -> bool {
    ACTIVE.load(Acquire)
}

fn exclusively<R>(f: impl FnOnce() -> R) -> R {
    let mask = raw::sigmask(libc::SIG_SETMASK, !inside::FAULTS);
    while CHANGING.swap(true, SeqCst) {
        core::hint::spin_loop();
    }
    let r = f();
    CHANGING.store(false, SeqCst);
    raw::sigmask(libc::SIG_SETMASK, mask);
    r
}

/// Takes the place of all handlers that the program has installed so far. Once a process.
pub fn activate() {
    exclusively(|| {
        if ACTIVE.load(Relaxed) {
            return;
        }
        OWNER.store(raw::getpid(), Relaxed);
        for signal in 1..=64 {
            if action(signal).is_none() {
                continue;
            }
            let Ok(now) = raw::sigaction(signal, None) else { continue };
            remember(signal, &now);
            if has_handler(&now) || is_fault(signal) {
                let _ = raw::sigaction(signal, Some(&for_kernel(signal, &now)));
            }
        }
        ACTIVE.store(true, SeqCst);
    });
}

/// In a child made by fork: its handlers are the parent's, and so is what we remember of them.
pub fn adopt() {
    OWNER.store(raw::getpid(), Relaxed);
    CHANGING.store(false, Relaxed);
    inside::adopt();
}

/// rt_sigaction, as the program or the engine calls it. The pointers are null or valid.
///
/// # Safety
///
/// As the system call.
pub unsafe fn rt_sigaction(signal: i32, new: *const KernelAction, old: *mut KernelAction, size: u64) -> i64 {
    // SAFETY: the caller's arguments, passed on.
    let native = || unsafe { sys!(SYS_rt_sigaction, signal, new, old, size) };
    if !ACTIVE.load(Acquire) || size != 8 {
        return native();
    }
    let Some(a) = action(signal).filter(|_| signal != SIGCANCEL) else { return native() };
    if inside::is_inside() {
        // The engine's: remembered, and told that what stood before it is the program's.
        // SAFETY: null or valid, says the caller.
        unsafe {
            if !old.is_null() {
                *old = KernelAction {
                    handler: chain as *const () as u64,
                    flags: SA_SIGINFO | SA_RESTORER,
                    restorer: raw::restorer as *const () as u64,
                    mask: 0,
                };
            }
            if !new.is_null() {
                a.engine.store((*new).handler, Release);
            }
        }
        return 0;
    }
    crate::registry::adopt_after_fork();
    if OWNER.load(Relaxed) != raw::getpid() {
        // A vfork child, about to exec: what it sets is the kernel's, and our memory is its parent's.
        return native();
    }
    exclusively(|| {
        let before = a.load();
        if !new.is_null() {
            // SAFETY: valid, says the caller.
            let wanted = unsafe { *new };
            remember(signal, &wanted);
            if STANDING.load(Relaxed) & raw::bit(signal) != 0 {
                // What is pending is forgotten if it is to be ignored.
                let _ = raw::sigaction(signal, Some(&wanted));
            }
            if let Err(e) = raw::sigaction(signal, Some(&for_kernel(signal, &wanted))) {
                remember(signal, &before);
                return e;
            }
        }
        if !old.is_null() {
            // SAFETY: valid, says the caller.
            unsafe { *old = before };
        }
        0
    })
}

/// What the kernel calls in place of a handler of the program.
extern "C-unwind" fn trampoline(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // What an instruction or a filtered system call raises here and now cannot wait.
    // SAFETY: the kernel's siginfo.
    let now = matches!(signal, libc::SIGILL | libc::SIGTRAP | libc::SIGSYS) && unsafe { (*info).si_code } > 0;
    // Where the trampoline stands in, it does so for KVM_RUN: open outside too, the signal is what it is without it.
    let plain = STANDING.load(Relaxed) & raw::bit(signal) != 0 && !inside::blocks_outside(signal);
    if inside::is_inside() && !now && !plain {
        hold_back(signal, info, context);
    } else {
        deliver(signal, info, context);
    }
}

/// SIGSEGV, SIGBUS and SIGFPE: the engine's handler, which calls [`chain`] for what it does not know.
extern "C-unwind" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    match action(signal).map_or(0, |a| a.engine.load(Acquire)) {
        0 => chain(signal, info, context),
        engine => call(engine, signal, info, context),
    }
}

/// A fault that is not the engine's.
extern "C-unwind" fn chain(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's siginfo.
    let sent = unsafe { (*info).si_code } <= 0;
    if sent && inside::is_inside() {
        hold_back(signal, info, context);
    } else if !crate::cpuid::faulted(signal, context) {
        deliver(signal, info, context);
    }
}

/// Keeps a signal for later: blocked where this handler returns to, and queued to this thread again.
fn hold_back(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    if action(signal).is_some_and(|a| a.flags.load(Relaxed) & SA_NODEFER != 0) || is_fault(signal) {
        // The kernel has not blocked it in here.
        raw::sigmask(libc::SIG_BLOCK, raw::bit(signal));
    }
    // SAFETY: the kernel's context; the first 8 bytes of its mask are the kernel's mask. A thread may send itself any
    // siginfo.
    unsafe {
        let mask = (&raw mut (*context.cast::<libc::ucontext_t>()).uc_sigmask).cast::<u64>();
        *mask |= raw::bit(signal);
        let (process, thread) = (OWNER.load(Relaxed), inside::number());
        // What one thread of the program sent to another by pthread_kill is the same when sent again, by a call that
        // filters let through more often.
        let sent_here = (*info).si_code == libc::SI_TKILL && (*info).si_pid() == process;
        if inside::blocks_outside(signal)
            && is_for_process(info, process)
            && sys!(SYS_rt_sigqueueinfo, process, signal, info) == 0
        {
            // It stays pending where any thread's sigtimedwait finds it.
        } else if sent_here || sys!(SYS_rt_tgsigqueueinfo, process, thread, signal, info) != 0 {
            // Or there is no room for one more siginfo.
            sys!(SYS_tgkill, process, thread, signal);
        }
    }
    inside::held_back(signal);
}

/// Whether a signal was for the process rather than for this thread, as far as its siginfo tells.
///
/// # Safety
///
/// `info` is the kernel's.
unsafe fn is_for_process(info: *const libc::siginfo_t, process: i32) -> bool {
    /// Kernels differ in whether tgkill's signals say so.
    static TELLS: AtomicBool = AtomicBool::new(false);
    // SAFETY: says the caller.
    let (code, sender) = unsafe { ((*info).si_code, (*info).si_pid()) };
    match code {
        libc::SI_TKILL => {
            TELLS.store(true, Relaxed);
            false
        }
        libc::SI_USER => sender != process || TELLS.load(Relaxed),
        // sigqueue and pthread_sigqueue, and timers for a process and for a thread, look alike.
        libc::SI_QUEUE | libc::SI_TIMER => false,
        _ => true,
    }
}

/// The default of a signal for which the trampoline stands in, met outside KVM_RUN.
fn default(signal: i32) {
    if matches!(signal, libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH | libc::SIGCONT) {
        return;
    }
    // It ends the process, or stops it until SIGCONT.
    let _ = raw::sigaction(signal, Some(&KernelAction::default()));
    // SAFETY: numbers only.
    unsafe { sys!(SYS_tgkill, raw::getpid(), raw::gettid(), signal) };
    let mask = raw::sigmask(libc::SIG_UNBLOCK, raw::bit(signal));
    raw::sigmask(libc::SIG_SETMASK, mask);
    set_standing(raw::bit(signal));
}

/// Does what the program wants done.
fn deliver(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(a) = action(signal) else { return };
    let wanted = a.load();
    // SAFETY: the kernel's siginfo.
    let sent = unsafe { (*info).si_code } <= 0;
    let standing = STANDING.load(Relaxed) & raw::bit(signal) != 0;
    match wanted.handler {
        SIG_IGN if sent || standing => {}
        SIG_DFL if standing => default(signal),
        SIG_DFL | SIG_IGN => {
            // The default: the instruction faults again, or the signal comes again, without us.
            let _ = raw::sigaction(signal, Some(&KernelAction::default()));
            if sent {
                // SAFETY: numbers only.
                unsafe { sys!(SYS_tgkill, raw::getpid(), raw::gettid(), signal) };
            }
        }
        handler => {
            if wanted.flags & SA_RESETHAND != 0 {
                let default = KernelAction::default();
                remember(signal, &default);
                let _ = raw::sigaction(signal, Some(&for_kernel(signal, &default)));
            }
            call(handler, signal, info, context);
        }
    }
}

fn call(handler: u64, signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: an address that was registered as a handler. One that takes a single argument does not see the others.
    unsafe {
        let handler: extern "C-unwind" fn(i32, *mut libc::siginfo_t, *mut c_void) =
            core::mem::transmute(handler as usize);
        handler(signal, info, context);
    }
}
