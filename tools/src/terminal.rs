//! The user's terminal: raw while a guest has it, and itself again on every way out (return, exit, panic,
//! signal); Ctrl-A as the escape.
//!
//! Not the guest's side of the line (`devices::serial`).
#![allow(unsafe_code)] // tcgetattr, tcsetattr and raise are libc calls that std does not offer.

use std::io::Read;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libc::{c_int, c_void, siginfo_t, termios};
use vmm_sys_util::signal::register_signal_handler;

use crate::machine::MachineHandle;
use crate::outcome::Outcome;

/// The terminal's own settings, read once.
static COOKED: OnceLock<termios> = OnceLock::new();
/// Whether the terminal is raw now.
static RAW: AtomicBool = AtomicBool::new(false);

/// Signals that end a program: the terminal is restored before they do.
const DEADLY: [c_int; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGABRT];

/// The terminal in raw mode, until dropped.
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw, if it is a terminal.
    pub fn enter() -> std::io::Result<Option<RawTerminal>> {
        let Some(cooked) = settings() else { return Ok(None) };
        let cooked = *COOKED.get_or_init(|| cooked);
        for signal in DEADLY {
            register_signal_handler(signal, on_deadly_signal)
                .map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?;
        }
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            previous(panic);
        }));
        let mut raw = cooked;
        // SAFETY: `raw` is a termios that tcgetattr filled in.
        unsafe { libc::cfmakeraw(&mut raw) };
        RAW.store(true, Ordering::SeqCst);
        // SAFETY: as above; the descriptor is ours for the life of the process.
        if unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Some(RawTerminal(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Standard input's settings, if it is a terminal.
fn settings() -> Option<termios> {
    let mut settings = std::mem::MaybeUninit::<termios>::uninit();
    // SAFETY: tcgetattr writes a termios to the place it is given, or fails.
    let result = unsafe { libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) };
    // SAFETY: it succeeded, so the settings are filled in.
    (result == 0).then(|| unsafe { settings.assume_init() })
}

/// Puts the terminal's own settings back, if it is raw. Only async-signal-safe calls.
fn restore() {
    if let (true, Some(cooked)) = (RAW.swap(false, Ordering::SeqCst), COOKED.get()) {
        // SAFETY: `cooked` is a termios that tcgetattr filled in.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, cooked) };
    }
}

extern "C" fn on_deadly_signal(signal: c_int, _: *mut siginfo_t, _: *mut c_void) {
    restore();
    // SAFETY: both calls are async-signal-safe; the signal is delivered, with its default effect, when this
    // handler returns.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// What the keyboard escape made of some input.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// For the guest.
    pub bytes: Vec<u8>,
    /// Ctrl-A x was typed.
    pub leave: bool,
}

/// Recognises Ctrl-A x (leave) and Ctrl-A a or Ctrl-A Ctrl-A (a Ctrl-A for the guest).
#[derive(Debug, Default)]
pub struct Escape {
    armed: bool,
}

impl Escape {
    const CTRL_A: u8 = 0x01;

    /// Passes `input` through.
    pub fn filter(&mut self, input: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for &byte in input {
            match (self.armed, byte) {
                (false, Self::CTRL_A) => self.armed = true,
                (false, _) => typed.bytes.push(byte),
                (true, b'x' | b'X') => {
                    typed.leave = true;
                    return typed;
                }
                (true, b'a' | Self::CTRL_A) => {
                    self.armed = false;
                    typed.bytes.push(Self::CTRL_A);
                }
                (true, _) => {
                    // Not a command: the guest gets both keys.
                    self.armed = false;
                    typed.bytes.extend([Self::CTRL_A, byte]);
                }
            }
        }
        typed
    }
}

/// End of transmission: at a terminal, the end of the input.
const CTRL_D: u8 = 0x04;

/// What the guest hears of the end of a standard input that is no terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputEnd {
    /// Nothing: no more is typed.
    Silence,
    /// Ctrl-D, again and again, as a file says its end to each who reads on: a shell ends, and the next one too.
    CtrlD,
}

/// How often. The first ones may come before anybody reads.
const CTRL_D_PERIOD: Duration = Duration::from_secs(1);

/// Types standard input on the guest's console, in a thread of its own, until the input or the guest ends.
pub fn forward_stdin(machine: MachineHandle, is_terminal: bool, end: InputEnd) -> std::io::Result<()> {
    std::thread::Builder::new().name("console".into()).spawn(move || {
        let mut escape = Escape::default();
        let mut buffer = [0u8; 4096];
        let mut stdin = std::io::stdin().lock();
        loop {
            let length = match stdin.read(&mut buffer) {
                Ok(0) if is_terminal || end == InputEnd::Silence => return,
                Ok(0) => loop {
                    machine.console_input(&[CTRL_D]);
                    std::thread::sleep(CTRL_D_PERIOD);
                },
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::debug!("standard input: {error}");
                    return;
                }
            };
            if !is_terminal {
                machine.console_input(&buffer[..length]);
                continue;
            }
            let typed = escape.filter(&buffer[..length]);
            machine.console_input(&typed.bytes);
            if typed.leave {
                machine.end(Outcome::UserLeft);
                return;
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key() {
        let cases: &[(&[u8], &[u8], bool)] = &[
            (b"ls\r", b"ls\r", false),
            (b"\x01x", b"", true),
            (b"abc\x01xdef", b"abc", true),
            (b"\x01a", b"\x01", false),
            (b"\x01\x01", b"\x01", false),
            (b"\x01q", b"\x01q", false),
            (b"\x01ax", b"\x01x", false),
        ];
        for (input, bytes, leave) in cases {
            let wanted = Typed { bytes: bytes.to_vec(), leave: *leave };
            assert_eq!(Escape::default().filter(input), wanted, "{input:?}");
            // The same keys, one at a time.
            let mut escape = Escape::default();
            let mut one_by_one = Typed::default();
            for byte in *input {
                let typed = escape.filter(&[*byte]);
                one_by_one.bytes.extend(typed.bytes);
                if typed.leave {
                    one_by_one.leave = true;
                    break;
                }
            }
            assert_eq!(one_by_one, wanted, "{input:?} byte by byte");
        }
    }
}
