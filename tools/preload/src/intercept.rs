//! The one place that decides: a system call as the program makes it, answered here or passed to the kernel.
//!
//! The functions of `symbols` only marshal into [`intercept`]; a second front (interception of the system calls
//! themselves) would call it too. What the engine calls while it works for the program goes straight to the kernel.

use crate::facts::{self, Fact};
use crate::raw::{self, sys};
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
                return native();
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
            unsafe { stat(libc::AT_FDCWD, a[0], a[1], libc::SYS_newfstatat) }.unwrap_or_else(native)
        }
        // SAFETY: as the caller promises.
        libc::SYS_newfstatat => unsafe { stat(fd, a[1], a[2], nr) }.unwrap_or_else(native),
        // SAFETY: as above.
        libc::SYS_statx => unsafe { stat(fd, a[1], a[4], nr) }.unwrap_or_else(native),
        // SAFETY: as above.
        libc::SYS_readlink => link(native(), a[1], a[2]),
        libc::SYS_readlinkat => link(native(), a[2], a[3]),
        // SAFETY: as above.
        libc::SYS_rt_sigaction => unsafe { signals::rt_sigaction(fd, a[1] as _, a[2] as _, a[3]) },
        // SAFETY: as above.
        libc::SYS_seccomp | libc::SYS_prctl => unsafe { crate::filters::install(nr, a) },
        // SAFETY: as above.
        libc::SYS_execve => unsafe { crate::children::execve(nr, a, 2) },
        // SAFETY: as above.
        libc::SYS_execveat => unsafe { crate::children::execve(nr, a, 3) },
        _ if !registry::is_active() => native(),
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
        _ => native(),
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

/// stat or statx of a path of ours, or of a descriptor of ours (an empty path).
///
/// # Safety
///
/// As the system call.
unsafe fn stat(directory: i32, path: u64, buffer: u64, nr: i64) -> Option<i64> {
    let fact = match fact(directory, path) {
        Some(fact) => fact,
        // SAFETY: looked at by `of`, or not a pointer.
        None if registry::is_active() && path >= 4096 && unsafe { *(path as *const u8) } == 0 => {
            let id = raw::identity(directory).filter(|id| registry::may_be(*id))?;
            match inside::within(|| registry::find(id))? {
                registry::Held::System(_) => Fact::Device,
                _ => return None,
            }
        }
        None => return None,
    };
    let mode = match facts::mode(fact)? {
        Ok(mode) => mode,
        Err(e) => return Some(e),
    };
    // Fills in what is not said below, and is always there.
    let stand_in: &CStr = c"/";
    if nr == libc::SYS_statx {
        const ALL: u32 = 0x7ff;
        // SAFETY: the program's buffer, which the kernel checks before we write to it.
        unsafe {
            let r = sys!(SYS_statx, libc::AT_FDCWD, stand_in.as_ptr(), 0, ALL, buffer);
            if r == 0 {
                let s = &mut *(buffer as *mut libc::statx);
                (s.stx_mode, s.stx_nlink, s.stx_size, s.stx_blocks) = (mode as u16, 1, 0, 0);
                if fact == Fact::Device {
                    (s.stx_rdev_major, s.stx_rdev_minor) = (facts::KVM_MAJOR, facts::KVM_MINOR);
                }
            }
            return Some(r);
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
        Some(r)
    }
}

/// The result of readlink: a link to one of our files has the name that the kernel's would have.
fn link(r: i64, buffer: u64, len: u64) -> i64 {
    if r <= 0 || !registry::is_active() {
        return r;
    }
    // SAFETY: the kernel has just stored so many bytes there.
    let bytes = unsafe { core::slice::from_raw_parts_mut(buffer as *mut u8, len as usize) };
    let text = &bytes[..r as usize];
    let name: &[u8] = match () {
        () if text.starts_with(b"/memfd:softkvm-system") => b"/dev/kvm",
        () if text.starts_with(b"/memfd:softkvm-vm ") => b"anon_inode:kvm-vm",
        () if text.starts_with(b"/memfd:softkvm-vcpu") => b"anon_inode:kvm-vcpu",
        () if text.starts_with(b"/memfd:kvm-vm-stats ") => b"anon_inode:kvm-vm-stats",
        () if text.starts_with(b"/memfd:kvm-vcpu-stats:") => {
            // The number is in the name; "anon_inode:" is longer than "/memfd:".
            return link_of_stats(bytes, r as usize);
        }
        () => return r,
    };
    let n = name.len().min(bytes.len());
    bytes[..n].copy_from_slice(&name[..n]);
    bytes[n..(r as usize).max(n)].fill(0);
    n as i64
}

/// `/memfd:NAME (deleted)` as `anon_inode:NAME`.
fn link_of_stats(bytes: &mut [u8], len: usize) -> i64 {
    let mut name = [0u8; 64];
    name[..11].copy_from_slice(b"anon_inode:");
    let rest = bytes[b"/memfd:".len()..len].split(|&b| b == b' ').next().unwrap_or_default();
    let rest = &rest[..rest.len().min(name.len() - 11)];
    name[11..11 + rest.len()].copy_from_slice(rest);
    let n = (11 + rest.len()).min(bytes.len());
    bytes[..n].copy_from_slice(&name[..n]);
    n as i64
}

/// mmap of a descriptor of ours. A vCPU's third page is its VM's, and lies in another file; the others cannot be mapped.
///
/// # Safety
///
/// As mmap.
unsafe fn map_ours(a: [u64; 6]) -> Option<i64> {
    let [_, len, protection, flags, fd, offset] = a;
    if !raw::identity(fd as i32).is_some_and(registry::may_be) {
        return None;
    }
    inside::within(|| {
        let (_, held) = registry::find_fd(fd as i32)?;
        let registry::Held::Vcpu(vcpu, _, vm) = held else { return Some(-i64::from(libc::ENODEV)) };
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
            unsafe {
                sys!(SYS_mmap, third, kvm_ioctl_layer::run_page::RING_SIZE, protection, flags, file, 0)
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
