//! What a program asks of a descriptor of ours beside KVM's ioctls: read, lseek, fstat, fcntl, and their kin.
//!
//! KVM's own descriptors are files without a content: most calls fail, each in its way. Rather than list the ways, such a call
//! is made on a stand-in: an epoll descriptor, which like a VM's is an anonymous file with nothing to read, write or map, so
//! that the kernel's own checks answer. What tells a VM from a vCPU, the device or statistics is said here.
//!
//! No such call costs a system call more on other descriptors: [`noted`] says by the number alone which may be
//! ours. It is a hint, set where a number is handed out; a descriptor that came through a socket is noted by its first
//! ioctl. Not here: ioctls with KVM's numbers ([`crate::ioctl`]), and mappings of a vCPU ([`crate::intercept`]).

use crate::raw::{self, Identity, sys};
use crate::registry::{self, Held};
use crate::{inside, private};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

/// What a descriptor stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `/dev/kvm`.
    System,
    /// A VM.
    Vm,
    /// A vCPU.
    Vcpu,
    /// The statistics of a VM or a vCPU (KVM_GET_STATS_FD).
    Stats,
}

/// Numbers beyond this are not noted.
const LIMIT: usize = 1 << 16;
static NOTED: [AtomicU64; LIMIT / 64] = [const { AtomicU64::new(0) }; LIMIT / 64];

fn word(fd: i32) -> Option<(&'static AtomicU64, u64)> {
    let fd = usize::try_from(fd).ok()?;
    Some((NOTED.get(fd / 64)?, 1 << (fd % 64)))
}

/// Notes that a number stands for something of ours.
pub fn note(fd: i32) {
    if let Some((w, bit)) = word(fd).filter(|(w, bit)| w.load(Relaxed) & bit == 0) {
        w.fetch_or(bit, SeqCst);
    }
}

/// A number turned out to stand for something else now. Closing does not: it may be a child's, made by vfork, with these bits shared.
fn forget(fd: i32) {
    if let Some((w, bit)) = word(fd).filter(|(w, bit)| w.load(Relaxed) & bit != 0) {
        w.fetch_and(!bit, SeqCst);
    }
}

/// Whether a number may be one of ours.
#[inline]
pub fn noted(fd: i32) -> bool {
    word(fd).is_some_and(|(w, bit)| w.load(Relaxed) & bit != 0)
}

/// What an identity stands for; `link` is what /proc says of it, for statistics and a parent's objects, which are in no list.
fn kind_of(id: Identity, link: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<Kind> {
    if !registry::on_our_device(id) {
        return None;
    }
    match inside::within(|| registry::find(id)) {
        Some(Held::System(_)) => return Some(Kind::System),
        Some(Held::Vm(_)) => return Some(Kind::Vm),
        Some(Held::Vcpu(..)) => return Some(Kind::Vcpu),
        None => {}
    }
    let mut buffer = [0; 64];
    let len = link(&mut buffer)?;
    let text = buffer.get(..len)?;
    [
        (&b"/memfd:softkvm-system "[..], Kind::System),
        (b"/memfd:softkvm-vm ", Kind::Vm),
        (b"/memfd:softkvm-vcpu ", Kind::Vcpu),
        (b"/memfd:kvm-vm-stats ", Kind::Stats),
        (b"/memfd:kvm-vcpu-stats:", Kind::Stats),
    ]
    .iter()
    .find_map(|(name, kind)| text.starts_with(name).then_some(*kind))
}

/// What a path that was just looked at by stat stands for. An empty one is the descriptor itself.
///
/// # Safety
///
/// `path` is a C string, or null.
pub unsafe fn kind_at(id: Identity, directory: i32, path: u64) -> Option<Kind> {
    kind_of(id, |buffer| {
        let mut name = [0; 32];
        // SAFETY: as the caller promises; looked at by the kernel before.
        let (directory, path) = match path == 0 || unsafe { *(path as *const u8) } == 0 {
            true => (libc::AT_FDCWD, raw::fd_path(directory, &mut name).as_ptr() as u64),
            false => (directory, path),
        };
        // SAFETY: a C string, and a buffer with its length.
        let n = unsafe { sys!(SYS_readlinkat, directory, path, buffer.as_mut_ptr(), buffer.len()) };
        usize::try_from(n).ok()
    })
}

/// What a noted number really stands for.
fn kind(fd: i32) -> Option<Kind> {
    // SAFETY: no path.
    let kind = raw::identity(fd).and_then(|id| unsafe { kind_at(id, fd, 0) });
    if kind.is_none() {
        forget(fd);
    }
    kind
}

/// Makes a call on an epoll descriptor. `None`: there is none to be had.
pub fn on_stand_in(f: impl FnOnce(u64) -> i64) -> Option<i64> {
    // SAFETY: numbers only.
    let fd = unsafe { sys!(SYS_epoll_create1, libc::EPOLL_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    let fd = private::hide(fd as i32);
    let r = f(fd as u64);
    private::close(fd);
    Some(r)
}

/// A call of which the argument `at` is the descriptor, made on the stand-in.
///
/// # Safety
///
/// As the system call.
unsafe fn instead(nr: i64, mut a: [u64; 6], at: usize) -> Option<i64> {
    on_stand_in(|fd| {
        a[at] = fd;
        // SAFETY: as the caller promises.
        unsafe { raw::syscall(nr, a) }
    })
}

const fn error(e: i32) -> Option<i64> {
    Some(-(e as i64))
}

/// Access mode of an open file.
fn access(fd: i32) -> i32 {
    // SAFETY: numbers only.
    unsafe { sys!(SYS_fcntl, fd, libc::F_GETFL) as i32 & libc::O_ACCMODE }
}

/// How a call uses the descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Reads,
    Writes,
    Neither,
}

/// The answer to a system call on a noted descriptor. `None`: the kernel's, on the file that it is.
///
/// # Safety
///
/// As the system call.
pub unsafe fn answer(nr: i64, a: [u64; 6]) -> Option<i64> {
    use Use::{Neither, Reads, Writes};
    // SAFETY: as the caller promises.
    let on = |at: usize, what: Use| unsafe { transfer(nr, a, at, what) };
    let [first, second, third] = [a[0], a[1], a[2]].map(|n| noted(n as i32));
    if !(first || second || third) {
        return None;
    }
    match nr {
        libc::SYS_read | libc::SYS_readv | libc::SYS_pread64 | libc::SYS_preadv | libc::SYS_preadv2 => {
            on(0, Reads)
        }
        libc::SYS_write | libc::SYS_writev | libc::SYS_pwrite64 | libc::SYS_pwritev | libc::SYS_pwritev2 => {
            on(0, Writes)
        }
        // The descriptor that is written to comes first.
        libc::SYS_sendfile => on(1, Reads).or_else(|| on(0, Writes)),
        libc::SYS_splice => on(0, Reads).or_else(|| on(2, Writes)),
        // Refused for what the file is, before it matters what it is open for.
        libc::SYS_copy_file_range => on(0, Neither).or_else(|| on(2, Neither)),
        libc::SYS_tee => on(0, Reads).or_else(|| on(1, Writes)),
        libc::SYS_fallocate => on(0, Writes),
        libc::SYS_readahead => on(0, Reads),
        libc::SYS_ftruncate
        | libc::SYS_fsync
        | libc::SYS_fdatasync
        | libc::SYS_sync_file_range
        | libc::SYS_fadvise64 => on(0, Neither),
        // The others have one descriptor.
        _ if !first => None,
        // SAFETY: as the caller promises.
        libc::SYS_fstatfs if kind(a[0] as i32)? != Kind::System => unsafe { instead(nr, a, 0) },
        libc::SYS_lseek => match kind(a[0] as i32)? {
            // The place does not change, but by reading.
            Kind::Stats if a[2] as i32 <= libc::SEEK_HOLE && a[2] as i32 >= 0 => {
                // SAFETY: numbers only.
                Some(unsafe { sys!(SYS_lseek, a[0], 0, libc::SEEK_CUR) })
            }
            // SAFETY: numbers only.
            _ => unsafe { instead(nr, a, 0) },
        },
        // A lock on the file says that the program has it: see `registry`.
        libc::SYS_flock => {
            kind(a[0] as i32)?;
            let known = matches!(a[1] as i32 & !libc::LOCK_NB, libc::LOCK_SH | libc::LOCK_EX | libc::LOCK_UN);
            if known { Some(0) } else { error(libc::EINVAL) }
        }
        libc::SYS_fcntl => fcntl(a),
        libc::SYS_dup => {
            // SAFETY: numbers only.
            let r = unsafe { raw::syscall(nr, a) };
            note(r as i32);
            Some(r)
        }
        _ => None,
    }
}

/// A call that moves data: the argument `at` is the descriptor.
///
/// # Safety
///
/// As the system call.
unsafe fn transfer(nr: i64, a: [u64; 6], at: usize, what: Use) -> Option<i64> {
    let fd = a[at] as i32;
    let kind = if noted(fd) { kind(fd)? } else { return None };
    if kind == Kind::Stats && matches!(nr, libc::SYS_pwrite64 | libc::SYS_pwritev | libc::SYS_pwritev2) {
        // Writing has no place, reading has.
        // SAFETY: as the caller promises.
        return unsafe { instead(nr, a, at) };
    }
    // The kernel refuses what the file is not open for, whatever it is.
    let refused = match what {
        Use::Reads => libc::O_WRONLY,
        Use::Writes => libc::O_RDONLY,
        Use::Neither => -1,
    };
    if access(fd) == refused {
        return None;
    }
    match (kind, nr) {
        (Kind::Stats, libc::SYS_preadv2) if a[5] as i32 & libc::RWF_NOWAIT != 0 => error(libc::EOPNOTSUPP),
        (
            Kind::Stats,
            libc::SYS_read | libc::SYS_readv | libc::SYS_pread64 | libc::SYS_preadv | libc::SYS_preadv2,
        ) => None,
        _ => {
            // SAFETY: as the caller promises.
            let r = unsafe { instead(nr, a, at) };
            // Unlike a VM or vCPU, the device and statistics can be read at a place.
            let placed = matches!(kind, Kind::System | Kind::Stats) && nr != libc::SYS_sync_file_range;
            if placed && r == error(libc::ESPIPE) { error(libc::EINVAL) } else { r }
        }
    }
}

fn fcntl(a: [u64; 6]) -> Option<i64> {
    let fd = a[0] as i32;
    let command = a[1] as i32;
    // SAFETY: numbers only.
    let native = || unsafe { raw::syscall(libc::SYS_fcntl, a) };
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => {
            let r = native();
            note(r as i32);
            Some(r)
        }
        // The kernel makes its anonymous files without the flag of large ones.
        libc::F_GETFL if kind(fd)? != Kind::System => {
            const O_LARGEFILE: i64 = 0x8000;
            Some(native()).map(|r| if r >= 0 { r & !O_LARGEFILE } else { r })
        }
        libc::F_SETFL if a[2] as i32 & libc::O_DIRECT != 0 => {
            kind(fd)?;
            error(libc::EINVAL)
        }
        libc::F_GET_SEALS => {
            kind(fd)?;
            error(libc::EINVAL)
        }
        libc::F_ADD_SEALS => {
            kind(fd)?;
            error(if access(fd) == libc::O_RDONLY { libc::EPERM } else { libc::EINVAL })
        }
        // SAFETY: numbers only.
        libc::F_SETLEASE if kind(fd).is_some() => unsafe { instead(libc::SYS_fcntl, a, 0) },
        _ => None,
    }
}

/// An ioctl whose number is not KVM's.
pub fn ioctl(fd: i32, request: u32) -> Option<i64> {
    const FIOQSIZE: u32 = 0x5460;
    const FIOASYNC: u32 = 0x5452;
    const FIGETBSZ: u32 = 2;
    let kind = kind(fd)?;
    let number = request & 0xffff;
    match request {
        // The kernel's, whatever the file: close-on-exec, blocking, signals, and what concerns its file system.
        FIGETBSZ | FIOASYNC => None,
        _ if [libc::FIOCLEX, libc::FIONCLEX, libc::FIONBIO].contains(&libc::Ioctl::from(request)) => None,
        // FIFREEZE, FITHAW; FICLONE, FICLONERANGE, FIDEDUPERANGE; FS_IOC_FIEMAP.
        _ if matches!(number, 0x5877 | 0x5878 | 0x9409 | 0x940d | 0x9436 | 0x660b) => None,
        FIOQSIZE => error(libc::ENOTTY),
        _ => error(if matches!(kind, Kind::System | Kind::Vcpu) { libc::EINVAL } else { libc::ENOTTY }),
    }
}

/// mmap of what cannot be mapped. `None`: it is a vCPU, or not ours.
///
/// # Safety
///
/// As mmap.
pub unsafe fn mmap(mut a: [u64; 6]) -> Option<i64> {
    let fd = a[4] as i32;
    // SAFETY: no path.
    let kind = raw::identity(fd).and_then(|id| unsafe { kind_at(id, fd, 0) })?;
    if kind == Kind::Vcpu {
        return None;
    }
    if access(fd) != libc::O_RDWR {
        // First what the file is not open for; a fixed place stays what it is.
        let mut elsewhere = a;
        elsewhere[3] &= !((libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) as u64);
        // SAFETY: a new mapping, unmapped again, and of nobody's memory.
        unsafe {
            let r = raw::syscall(libc::SYS_mmap, elsewhere);
            if r < 0 {
                return Some(r);
            }
            sys!(SYS_munmap, r, a[1]);
        }
        a[2] = 0;
    }
    // SAFETY: as the caller promises; the stand-in cannot be mapped, so nothing changes.
    unsafe { instead(libc::SYS_mmap, a, 4) }.or(error(libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_noted_and_forgotten() {
        for fd in [0, 63, 64, 65535] {
            assert!(!noted(fd));
            note(fd);
            note(fd);
            assert!(noted(fd) && !noted(fd ^ 1));
            forget(fd);
            forget(fd);
            assert!(!noted(fd));
        }
        for fd in [-1, i32::MIN, 65536, i32::MAX] {
            note(fd);
            assert!(!noted(fd));
        }
    }

    /// The stand-in has nothing to read, and no place.
    #[test]
    fn the_stand_in_is_an_empty_anonymous_file() {
        let mut byte = 0u8;
        // SAFETY: a byte of ours.
        let read = on_stand_in(|fd| unsafe { sys!(SYS_read, fd, &raw mut byte, 1) });
        assert_eq!(read, error(libc::EINVAL));
        // SAFETY: numbers only.
        assert_eq!(on_stand_in(|fd| unsafe { sys!(SYS_lseek, fd, 5, libc::SEEK_SET) }), Some(0));
        // SAFETY: numbers only.
        assert_eq!(on_stand_in(|fd| unsafe { sys!(SYS_ftruncate, fd, 0) }), error(libc::EINVAL));
    }
}
