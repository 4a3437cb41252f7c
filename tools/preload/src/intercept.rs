//! The one place that decides: a system call as the program makes it, answered here or passed to the kernel.
//!
//! The functions of `symbols` only marshal into [`intercept`]; a second front (interception of the system calls
//! themselves) would call it too. What the engine calls while it works for the program goes straight to the kernel.

use crate::descriptors::{self, Kind};
use crate::facts::{self, Fact};
use crate::raw::{self, Identity, sys};
use crate::{inside, ioctl, private, registry, signals};
use core::ffi::{CStr, c_char};

/// Performs a system call, or what stands for it. An error is `-errno`.
///
/// # Safety
///
/// As the system call.
pub unsafe fn intercept(nr: i64, a: [u64; 6]) -> i64 {
    // SAFETY: the caller's arguments, passed on.
    let native = || unsafe { raw::syscall(nr, a) };
    let fd = a[0] as i32;
    if inside::is_inside() {
        return match nr {
            // SAFETY: as the caller promises.
            libc::SYS_rt_sigaction => unsafe { signals::rt_sigaction(fd, a[1] as _, a[2] as _, a[3]) },
            // SAFETY: as above.
            _ => unsafe { engine(nr, a) },
        };
    }
    match nr {
        libc::SYS_ioctl => {
            let request = a[1] as u32;
            if !ioctl::is_kvm(request) || !crate::environment::enabled() {
                let ours = if descriptors::noted(fd) { descriptors::ioctl(fd, request) } else { None };
                return ours.unwrap_or_else(native);
            }
            ioctl::ioctl(fd, request, a[2]).unwrap_or_else(native)
        }
        libc::SYS_open => opened(libc::AT_FDCWD, a[0], a[1] as i32).unwrap_or_else(native),
        libc::SYS_creat => {
            let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
            opened(libc::AT_FDCWD, a[0], flags).unwrap_or_else(native)
        }
        libc::SYS_openat => opened(fd, a[1], a[2] as i32).unwrap_or_else(native),
        libc::SYS_openat2 => match fact(fd, a[1]) {
            Some(fact) if a[2] >= 4096 => {
                // SAFETY: the program's struct open_how, which begins with the flags.
                facts::open(fact, unsafe { (a[2] as *const u64).read() } as i32).unwrap_or_else(native)
            }
            _ => native(),
        },
        libc::SYS_access => accessed(libc::AT_FDCWD, a[0], a[1] as i32).unwrap_or_else(native),
        libc::SYS_faccessat | libc::SYS_faccessat2 => {
            accessed(fd, a[1], a[2] as i32).unwrap_or_else(|| match native() {
                // Kernels before 5.8 have no flags.
                // SAFETY: the caller's arguments, passed on.
                r if r == -i64::from(libc::ENOSYS) => unsafe { raw::syscall(libc::SYS_faccessat, a) },
                r => r,
            })
        }
        libc::SYS_stat | libc::SYS_lstat => {
            // SAFETY: as the caller promises.
            unsafe { stat(native, libc::AT_FDCWD, a[0], a[1], libc::SYS_newfstatat) }
        }
        // SAFETY: as the caller promises.
        libc::SYS_newfstatat => unsafe { stat(native, fd, a[1], a[2], nr) },
        // SAFETY: as above.
        libc::SYS_fstat => unsafe { stat(native, fd, 0, a[1], libc::SYS_newfstatat) },
        // SAFETY: as above.
        libc::SYS_statx => unsafe { stat(native, fd, a[1], a[4], nr) },
        // SAFETY: as above.
        libc::SYS_readlink => unsafe { link(native(), libc::AT_FDCWD, a[0], a[1], a[2]) },
        // SAFETY: as above.
        libc::SYS_readlinkat => unsafe { link(native(), fd, a[1], a[2], a[3]) },
        // SAFETY: as above.
        libc::SYS_rt_sigaction => unsafe { signals::rt_sigaction(fd, a[1] as _, a[2] as _, a[3]) },
        // SAFETY: as above.
        libc::SYS_seccomp | libc::SYS_prctl => unsafe { crate::filters::install(nr, a) },
        // SAFETY: as above.
        libc::SYS_execve => unsafe { crate::children::execve(nr, a, 2) },
        // SAFETY: as above.
        libc::SYS_execveat => unsafe { crate::children::execve(nr, a, 3) },
        // SAFETY: as above.
        _ if !registry::is_active() => unsafe { descriptors::answer(nr, a) }.unwrap_or_else(native),
        // From here on: calls that matter only to a process that has opened /dev/kvm.
        libc::SYS_close if private::is(fd) => -i64::from(libc::EBADF),
        libc::SYS_close => ioctl::close(fd),
        libc::SYS_close_range => {
            let r = private::close_range(a[0], a[1], a[2]);
            inside::within(registry::closed);
            r
        }
        libc::SYS_dup2 | libc::SYS_dup3 => {
            let new = a[1] as i32;
            if private::is(new) {
                return -i64::from(libc::EBADF);
            }
            let replaces = raw::identity(new).is_some_and(registry::may_be);
            let r = native();
            if r >= 0 && descriptors::noted(fd) {
                descriptors::note(new);
            }
            if replaces && r >= 0 {
                inside::within(registry::closed);
            }
            r
        }
        libc::SYS_mmap => {
            let ours = match a[3] as i32 & libc::MAP_ANONYMOUS {
                // SAFETY: as the caller promises.
                0 => unsafe { map_ours(a) },
                _ => None,
            };
            let r = ours.unwrap_or_else(native);
            if a[3] as i32 & libc::MAP_FIXED != 0 && r >= 0 {
                remapped(a[0], a[1]);
            }
            r
        }
        libc::SYS_munmap | libc::SYS_mprotect | libc::SYS_madvise | libc::SYS_mremap => {
            let r = native();
            if r >= 0 {
                remapped(a[0], a[1]);
            }
            r
        }
        // SAFETY: as above.
        _ => unsafe { descriptors::answer(nr, a) }.unwrap_or_else(native),
    }
}

/// A call of the engine's own: descriptors go out of the program's way.
///
/// # Safety
///
/// As the system call.
unsafe fn engine(nr: i64, mut a: [u64; 6]) -> i64 {
    match nr {
        libc::SYS_close if private::is(a[0] as i32) => return private::close(a[0] as i32),
        libc::SYS_fcntl if a[1] == libc::F_DUPFD_CLOEXEC as u64 => a[2] = private::base() as u64,
        _ => {}
    }
    // SAFETY: as the caller promises.
    let r = unsafe { raw::syscall(nr, a) };
    match nr {
        libc::SYS_memfd_create | libc::SYS_eventfd2 | libc::SYS_epoll_create1 if r >= 0 => {
            i64::from(private::hide(r as i32))
        }
        libc::SYS_fcntl if a[1] == libc::F_DUPFD_CLOEXEC as u64 && r >= 0 => {
            private::remember(r as i32);
            r
        }
        _ => r,
    }
}

fn fact(directory: i32, path: u64) -> Option<Fact> {
    // SAFETY: the argument of a system call that takes a path.
    unsafe { facts::of(directory, path as *const c_char) }
}

fn opened(directory: i32, path: u64, flags: i32) -> Option<i64> {
    facts::open(fact(directory, path)?, flags)
}

fn accessed(directory: i32, path: u64, mode: i32) -> Option<i64> {
    facts::access(fact(directory, path)?, mode)
}

/// stat or statx of a path of ours, or of a descriptor of ours (by an empty path, or one in /proc).
///
/// # Safety
///
/// As the system call.
unsafe fn stat(native: impl Fn() -> i64, directory: i32, path: u64, buffer: u64, nr: i64) -> i64 {
    if let Some(fact) = fact(directory, path) {
        return match facts::mode(fact) {
            // SAFETY: the program's buffer, which the kernel checks before we write to it.
            Some(Ok(mode)) => unsafe { stat_of_fact(fact, mode, buffer, nr) },
            Some(Err(e)) => e,
            None => native(),
        };
    }
    let r = native();
    if r != 0 || !registry::has_been() {
        return r;
    }
    // SAFETY: the kernel has just filled the buffer, whose structure is libc's on x86-64, and read the path.
    unsafe {
        let id = if nr == libc::SYS_statx {
            let s = &*(buffer as *const libc::statx);
            Identity { dev: libc::makedev(s.stx_dev_major, s.stx_dev_minor), ino: s.stx_ino }
        } else {
            let s = &*(buffer as *const libc::stat);
            Identity { dev: s.st_dev, ino: s.st_ino }
        };
        match descriptors::kind_at(id, directory, path) {
            None => r,
            Some(Kind::System) => stat_of_fact(Fact::Device, libc::S_IFCHR | 0o666, buffer, nr),
            Some(_) => descriptors::on_stand_in(|fd| {
                let empty: &CStr = c"";
                match nr == libc::SYS_statx {
                    true => sys!(SYS_statx, fd, empty.as_ptr(), libc::AT_EMPTY_PATH, STATX_ALL, buffer),
                    false => sys!(SYS_newfstatat, fd, empty.as_ptr(), buffer, libc::AT_EMPTY_PATH),
                }
            })
            .unwrap_or(r),
        }
    }
}

const STATX_ALL: u32 = 0x7ff;

/// # Safety
///
/// `buffer` is stat's or statx's; the kernel checks it.
unsafe fn stat_of_fact(fact: Fact, mode: u32, buffer: u64, nr: i64) -> i64 {
    // Fills in what is not said below, and is always there.
    let stand_in: &CStr = c"/";
    if nr == libc::SYS_statx {
        // SAFETY: as the caller promises.
        unsafe {
            let r = sys!(SYS_statx, libc::AT_FDCWD, stand_in.as_ptr(), 0, STATX_ALL, buffer);
            if r == 0 {
                let s = &mut *(buffer as *mut libc::statx);
                (s.stx_mode, s.stx_nlink, s.stx_size, s.stx_blocks) = (mode as u16, 1, 0, 0);
                if fact == Fact::Device {
                    (s.stx_rdev_major, s.stx_rdev_minor) = (facts::KVM_MAJOR, facts::KVM_MINOR);
                }
            }
            return r;
        }
    }
    // SAFETY: as above; the kernel's structure is libc's on x86-64.
    unsafe {
        let r = sys!(SYS_newfstatat, libc::AT_FDCWD, stand_in.as_ptr(), buffer, 0);
        if r == 0 {
            let s = &mut *(buffer as *mut libc::stat);
            (s.st_mode, s.st_nlink, s.st_size, s.st_blocks) = (mode, 1, 0, 0);
            if fact == Fact::Device {
                s.st_rdev = libc::makedev(facts::KVM_MAJOR, facts::KVM_MINOR);
            }
        }
        r
    }
}

/// The result of readlink: a link to one of our files has the name that the kernel's would have.
///
/// # Safety
///
/// As readlink, which has just returned `r`.
unsafe fn link(r: i64, directory: i32, path: u64, buffer: u64, len: u64) -> i64 {
    const FILES: &[u8] = b"/memfd:";
    if r <= 0 || !registry::has_been() {
        return r;
    }
    // SAFETY: the kernel has just stored so many bytes there.
    let bytes = unsafe { core::slice::from_raw_parts_mut(buffer as *mut u8, r as usize) };
    if !bytes.iter().zip(FILES).all(|(a, b)| a == b) {
        return r;
    }
    // The program's buffer may have been too short for it.
    let mut whole = [0; 96];
    // SAFETY: the path that the kernel has just followed, and a buffer with its length.
    let n = unsafe { sys!(SYS_readlinkat, directory, path, whole.as_mut_ptr(), whole.len()) };
    let text = whole.get(..n.max(0) as usize).unwrap_or_default();
    let mut name = [0; 64];
    // SAFETY: as above.
    let Some(n) = (unsafe { name_of(text, directory, path, &mut name) }) else { return r };
    let n = n.min(len as usize);
    // SAFETY: within the program's buffer, whose length is `len`.
    let to = unsafe { core::slice::from_raw_parts_mut(buffer as *mut u8, n.max(r as usize)) };
    to.fill(0);
    to[..n].copy_from_slice(&name[..n]);
    n as i64
}

/// The kernel's name for what `/memfd:NAME (deleted)` is a link to.
///
/// # Safety
///
/// `path` is a C string.
unsafe fn name_of(text: &[u8], directory: i32, path: u64, to: &mut [u8; 64]) -> Option<usize> {
    use std::io::Write;
    let mut rest = &mut to[..];
    let before = rest.len();
    let said = match text.strip_prefix(b"/memfd:")?.split(|&b| b == b' ').next()? {
        b"softkvm-system" => rest.write_all(b"/dev/kvm"),
        b"softkvm-vm" => rest.write_all(b"anon_inode:kvm-vm"),
        b"softkvm-vcpu" => {
            let mut stat = core::mem::MaybeUninit::<libc::stat>::uninit();
            // SAFETY: a C string; the structure is ours, and zero or filled.
            let id = unsafe {
                (sys!(SYS_newfstatat, directory, path, stat.as_mut_ptr(), 0) == 0).then(|| Identity {
                    dev: stat.assume_init_ref().st_dev,
                    ino: stat.assume_init_ref().st_ino,
                })
            };
            match id.and_then(|id| inside::within(|| registry::find(id))) {
                Some(registry::Held::Vcpu(_, id, _)) => write!(rest, "anon_inode:kvm-vcpu:{id}"),
                _ => rest.write_all(b"anon_inode:kvm-vcpu"),
            }
        }
        name if name.starts_with(b"kvm-vm-stats") || name.starts_with(b"kvm-vcpu-stats:") => {
            rest.write_all(b"anon_inode:").and_then(|()| rest.write_all(name))
        }
        _ => return None,
    };
    said.ok()?;
    Some(before - rest.len())
}

/// mmap of a descriptor of ours. A vCPU's third page is its VM's, and lies in another file; the others cannot be mapped.
///
/// # Safety
///
/// As mmap.
unsafe fn map_ours(a: [u64; 6]) -> Option<i64> {
    const RING_SIZE: u64 = kvm_ioctl_layer::run_page::RING_SIZE as u64;
    let [_, len, protection, flags, fd, offset] = a;
    if !raw::identity(fd as i32).is_some_and(registry::may_be) {
        return None;
    }
    // SAFETY: as the caller promises.
    if let Some(r) = unsafe { descriptors::mmap(a) } {
        return Some(r);
    }
    inside::within(|| {
        let (_, held) = registry::find_fd(fd as i32)?;
        let registry::Held::Vcpu(vcpu, _, vm) = held else { return None };
        if let Some(ring) = vcpu.dirty_ring() {
            // The first or the last page is the dirty ring's: shared, and no code (KVM api 8.29).
            let begin = kvm_api::backend::DIRTY_RING_OFFSET as u64;
            let within = |at: u64| (begin..begin + ring.size() as u64).contains(&at);
            let shared = flags as i32 & libc::MAP_TYPE != libc::MAP_PRIVATE;
            if (within(offset) || within(offset.saturating_add(len.max(1) - 1)))
                && (!shared || protection as i32 & libc::PROT_EXEC != 0)
            {
                return Some(-i64::from(libc::EINVAL));
            }
        }
        // SAFETY: as the caller promises.
        let at = unsafe { raw::syscall(libc::SYS_mmap, a) };
        let ring = kvm_api::backend::COALESCED_PAGE_OFFSET as u64;
        if at >= 0 && offset <= ring && ring < offset.saturating_add(len) {
            let third = at as u64 + (ring - offset);
            let file = std::os::fd::AsRawFd::as_raw_fd(vm.coalesced_ring().file());
            let flags = flags | libc::MAP_FIXED as u64;
            // SAFETY: a page of the mapping that has just been made, with the same rights.
            unsafe { sys!(SYS_mmap, third, RING_SIZE, protection, flags, file, 0) };
        }
        // Between the three pages and a dirty ring there is nothing. The file has pages there.
        let (gap, end) = (ring + RING_SIZE, kvm_api::backend::DIRTY_RING_OFFSET as u64);
        let (from, to) = (offset.max(gap), offset.saturating_add(len).min(end));
        if at >= 0 && vcpu.dirty_ring().is_some() && from < to {
            const BEYOND_THE_FILE: u64 = 1 << 40;
            let flags = flags | libc::MAP_FIXED as u64;
            // SAFETY: as above; an access will be SIGBUS.
            unsafe {
                sys!(SYS_mmap, at as u64 + (from - offset), to - from, protection, flags, fd, BEYOND_THE_FILE)
            };
        }
        Some(at)
    })
}

/// The program has changed what lies in a range of addresses.
fn remapped(start: u64, len: u64) {
    inside::within(|| {
        registry::invalidate(start, len);
        if registry::has_orphans() {
            registry::reap();
        }
    });
}
