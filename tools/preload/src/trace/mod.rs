//! `softkvm exec --trace`: each ioctl, its argument and its result, a line each, in the manner of strace.
//!
//! Not here: how a structure looks (`shapes`), and what numbers are called (`names`).

mod names;
mod shapes;

use crate::raw::{self, sys};
use crate::registry::Held;
use core::fmt::Write;
use core::sync::atomic::AtomicI32;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use kvm_api::errno::{Errno, Result};
use kvm_api::nr::*;
use kvm_api::uapi::*;
use kvm_ioctl_layer::dispatch::Call;
use kvm_ioctl_layer::table;
use kvm_ioctl_layer::user_mem::OwnMemory;

const UNKNOWN: i32 = -2;
const OFF: i32 = -1;
/// Where the lines go.
static FILE: AtomicI32 = AtomicI32::new(UNKNOWN);

fn file() -> i32 {
    match FILE.load(Relaxed) {
        UNKNOWN => {
            let fd = open();
            // Two first ones: the second's descriptor stays open, unused.
            let _ = FILE.compare_exchange(UNKNOWN, fd, SeqCst, SeqCst);
            FILE.load(Relaxed)
        }
        fd => fd,
    }
}

fn open() -> i32 {
    let Some(path) = crate::environment::trace() else { return OFF };
    let fd = if path.to_bytes() == b"-" {
        // The program may close its stderr.
        // SAFETY: numbers only.
        unsafe { sys!(SYS_fcntl, 2, libc::F_DUPFD_CLOEXEC, crate::private::base()) as i32 }
    } else {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_CLOEXEC;
        // SAFETY: a C string.
        match unsafe { sys!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o666) as i32 } {
            fd if fd >= 0 => return crate::private::hide(fd),
            e => e,
        }
    };
    if fd < 0 {
        return OFF;
    }
    crate::private::remember(fd);
    fd
}

/// What an ioctl is given, before it changes it.
pub fn before(_held: &Held, request: u32, arg: u64) -> Option<String> {
    if file() < 0 {
        return None;
    }
    let mut text = String::new();
    argument(&mut text, request, arg);
    Some(text)
}

/// The line of an ioctl.
pub fn after(before: Option<String>, fd: i32, held: &Held, request: u32, arg: u64, result: &Result<i32>) {
    let Some(argument) = before else { return };
    let mut line = format!("[{}] ioctl({fd}<{}>, ", raw::gettid(), held.link());
    match table::name(request) {
        Some(name) => line.push_str(name),
        None => _ = write!(line, "{request:#x}"),
    }
    _ = write!(line, ", {argument}");
    line.push_str(") = ");
    outcome(&mut line, held, request, arg, result);
    line.push('\n');
    raw::write_all(file(), line.as_bytes());
}

/// The line of an open.
pub fn opened(result: &Result<i32>) {
    if file() < 0 {
        return;
    }
    let mut line = format!("[{}] open(\"/dev/kvm\") = ", raw::gettid());
    number(&mut line, result);
    line.push('\n');
    raw::write_all(file(), line.as_bytes());
}

fn number(line: &mut String, result: &Result<i32>) {
    match result {
        Ok(v) => _ = write!(line, "{v}"),
        Err(Errno(e)) => {
            let text = std::io::Error::from_raw_os_error(*e).to_string();
            let text = text.split(" (os error").next().unwrap_or_default();
            let name = names::ERRORS.iter().find(|n| n.0 == *e).map_or("E?", |n| n.1);
            _ = write!(line, "-1 {name} ({text})");
        }
    }
}

/// _IOC_WRITE and _IOC_READ of an ioctl's number: who fills the structure.
const GIVEN: u32 = 1 << 30;
const FILLED: u32 = 2 << 30;

fn argument(text: &mut String, request: u32, arg: u64) {
    let call = Call { arg, memory: &OwnMemory };
    let shown = match (request, shapes::of(request)) {
        (KVM_CHECK_EXTENSION, _) => names::capability(arg).map(|name| text.push_str(name)).is_some(),
        (KVM_CREATE_VCPU | KVM_SET_TSC_KHZ | KVM_SET_NR_MMU_PAGES | KVM_SET_BOOT_CPU_ID, _) => {
            write!(text, "{arg}").is_ok()
        }
        (_, Some(shape)) if request & FILLED == 0 || request & GIVEN != 0 => {
            shapes::show(text, shape, &call).is_ok()
        }
        _ => false,
    };
    if !shown {
        _ = write!(text, "{arg:#x}");
    }
}

fn outcome(line: &mut String, held: &Held, request: u32, arg: u64, result: &Result<i32>) {
    number(line, result);
    if result.is_err() {
        return;
    }
    if request == KVM_RUN {
        if let Held::Vcpu(v, ..) = held {
            exit(line, &**v.run_mapping());
        }
    } else if request & FILLED != 0
        && let Some(shape) = shapes::of(request)
    {
        line.push(' ');
        let _ = shapes::show(line, shape, &Call { arg, memory: &OwnMemory });
    }
}

fn field<const N: usize>(page: &dyn kvm_api::backend::RunPage, offset: usize) -> [u8; N] {
    let mut b = [0; N];
    page.load(offset, &mut b);
    b
}

/// The exit in the run page.
fn exit(line: &mut String, page: &dyn kvm_api::backend::RunPage) {
    use kvm_api::backend::{EXIT_UNION, PIO_PAGE_OFFSET};
    let reason = page.exit_reason();
    let name = names::EXITS.iter().find(|e| e.0 == reason).map_or("KVM_EXIT_?", |e| e.1);
    _ = write!(line, " {name}");
    match reason {
        KVM_EXIT_IO => {
            let [direction, size] = field(page, EXIT_UNION);
            let port = u16::from_le_bytes(field(page, EXIT_UNION + 2));
            let count = u32::from_le_bytes(field(page, EXIT_UNION + 4));
            let out = u32::from(direction) == KVM_EXIT_IO_OUT;
            _ = write!(
                line,
                " {{{}, port={port:#x}, size={size}, count={count}",
                if out { "out" } else { "in" }
            );
            if out {
                let data = field::<8>(page, PIO_PAGE_OFFSET);
                let len = (usize::from(size) * count as usize).min(8);
                _ = write!(line, ", data={:02x?}", &data[..len]);
            }
            line.push('}');
        }
        KVM_EXIT_MMIO => {
            let address = u64::from_le_bytes(field(page, EXIT_UNION));
            let data = field::<8>(page, EXIT_UNION + 8);
            let len = u32::from_le_bytes(field(page, EXIT_UNION + 16));
            let [write] = field(page, EXIT_UNION + 20);
            _ = write!(
                line,
                " {{{}, phys_addr={address:#x}, len={len}",
                if write != 0 { "write" } else { "read" }
            );
            if write != 0 {
                _ = write!(line, ", data={:02x?}", &data[..(len as usize).min(8)]);
            }
            line.push('}');
        }
        _ => {
            if let Some((_, shape)) = shapes::EXITS.iter().find(|e| e.0 == reason) {
                line.push(' ');
                let _ = shapes::show_with(line, shape, &mut |offset, to| {
                    page.load(EXIT_UNION + offset as usize, to);
                    Ok(())
                });
            }
        }
    }
}
