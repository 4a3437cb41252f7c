//! The child as its parent sees it: starting, waiting with an eye on the clock, ending.

use super::memory::Shared;
use super::{OracleError, child, entry, mailbox};
use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

/// HWCAP2_FSGSBASE.
const FSGSBASE: u64 = 2;
/// A wait's length; a child's death is noticed after that.
static WAIT: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// Ticks (10 ms) of the child's processor time at one case that make it hung. Time on the wall would call a
/// child hung that a busy machine does not let run.
const HUNG_TICKS: u64 = 20;
/// Waits without progress that make a child hung whatever its processor time: half a minute.
const HUNG_WAITS: u32 = 3000;

/// Whether this host can have an oracle at all.
pub fn check_host() -> Result<(), OracleError> {
    // SAFETY: getauxval reads a table.
    if unsafe { libc::getauxval(libc::AT_HWCAP2) } & FSGSBASE == 0 {
        return Err(OracleError::NoFsgsbase);
    }
    if (entry::oracle_signal as *const () as u64) < 1 << 32 {
        return Err(OracleError::NotPositionIndependent);
    }
    Ok(())
}

/// Wakes who waits for a word.
pub fn wake(word: &AtomicU32) {
    // SAFETY: the word is mapped; FUTEX_WAKE looks at its address only.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

fn wait(word: &AtomicU32, value: u32) {
    // SAFETY: word and time are mapped during the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const WAIT) };
}

fn thread() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

/// Why an order will never be through.
pub enum Stop {
    /// The child works without getting on from this slot.
    Hung(u32),
    /// The child is dead, of this signal.
    Died(i32),
}

/// A child. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    /// The thread that started it: PR_SET_PDEATHSIG goes by threads.
    thread: i32,
}

impl Process {
    /// Forks a child and waits until it is ready for orders.
    pub fn start(shared: &Shared) -> Result<Process, OracleError> {
        // SAFETY: no child uses the mapping now, and its integers are valid whatever they hold.
        let mailbox = unsafe { &*shared.mailbox() };
        mailbox.boot.store(mailbox::STARTING, Relaxed);
        mailbox.ordered.store(0, Relaxed);
        mailbox.finished.store(0, Relaxed);
        // SAFETY: takes no pointer.
        let parent = unsafe { libc::getpid() };
        // A fork without atfork handlers and without SIGCHLD at its end. SAFETY: no flags and no new stack:
        // the child is a copy, and calls nothing but `live`, which is made for that.
        let pid = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) } as i32;
        match pid {
            // SAFETY: this is the new process.
            0 => unsafe { child::live(shared, parent) },
            -1 => Err(OracleError::System { what: "fork", source: io::Error::last_os_error() }),
            _ => Process { pid, thread: thread() }.wait_ready(mailbox),
        }
    }

    fn wait_ready(self, mailbox: &mailbox::Mailbox) -> Result<Process, OracleError> {
        loop {
            // Whether it is dead first: its last word may come between the two.
            let died = self.died();
            match mailbox.boot.load(Acquire) {
                mailbox::STARTING => {}
                mailbox::READY => return Ok(self),
                step => {
                    let step = child::STEPS.get(step as usize - 2).copied().unwrap_or("an unknown step");
                    let source = io::Error::from_raw_os_error(mailbox.boot_errno.load(Relaxed) as i32);
                    return Err(OracleError::Start { step, source });
                }
            }
            if let Some(signal) = died {
                return Err(OracleError::Stillborn(signal));
            }
            wait(&mailbox.boot, mailbox::STARTING);
        }
    }

    #[cfg(test)]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it lives, and will as long as the calling thread, which started it.
    pub fn is_ours(&self) -> bool {
        self.thread == thread() && self.died().is_none()
    }

    /// Waits until the order is through or will never be.
    pub fn wait(&self, shared: &Shared, order: u32) -> Result<(), Stop> {
        // SAFETY: mapped, and only its atomic words are used.
        let mailbox = unsafe { &*shared.mailbox() };
        let (mut progress, mut ticks, mut waits) = (u32::MAX, 0, 0);
        loop {
            let finished = mailbox.finished.load(Acquire);
            if finished == order {
                return Ok(());
            }
            wait(&mailbox.finished, finished);
            if mailbox.finished.load(Acquire) == order {
                return Ok(());
            }
            if let Some(signal) = self.died() {
                return Err(Stop::Died(signal));
            }
            let now = mailbox.progress.load(Acquire);
            if now != progress {
                (progress, ticks, waits) = (now, self.ticks(), 0);
            }
            waits += 1;
            if waits > HUNG_WAITS || self.ticks() > ticks + HUNG_TICKS {
                return Err(Stop::Hung(now));
            }
        }
    }

    /// The signal it died of, if it is dead; it stays a zombie until it is dropped.
    fn died(&self) -> Option<i32> {
        // SAFETY: an all-zero siginfo is valid, and it lives during the call.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
            let result = libc::waitid(libc::P_PID, self.pid as libc::id_t, &mut info, options);
            if result != 0 {
                return Some(0);
            }
            (info.si_pid() == self.pid)
                .then(|| if info.si_code == libc::CLD_EXITED { 0 } else { info.si_status() & 0x7f })
        }
    }

    /// Processor time: utime and stime of /proc/PID/stat. (proc_pid_stat(5))
    fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or("").split_whitespace();
        fields.skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: the pid is our own child's, which has not been reaped: only this line does.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            while libc::waitpid(self.pid, std::ptr::null_mut(), libc::__WALL) < 0
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
    }
}
