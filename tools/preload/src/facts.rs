//! What the program can learn of the host by paths: `/dev/kvm`, the modules' parameters, the processor's flags.
//!
//! Not here: which function it asks with (`symbols`), and CPUID.

use crate::raw::{self, sys};
use core::ffi::{CStr, c_char};

/// A path that is answered here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fact {
    /// `/dev/kvm`.
    Device,
    /// `/proc/cpuinfo`.
    CpuInfo,
    /// A file that says so much.
    File(&'static str),
    /// A directory of /sys/module.
    Directory,
    /// A module, or a parameter, that does not exist.
    Absent,
}

/// The longest path that is looked at more closely.
const LONGEST: usize = 256;

/// What a path names, if it is one of ours. No lock, no allocation; a system call only for a relative path to `kvm`.
///
/// # Safety
///
/// `path` is what the program handed over as a C string.
pub unsafe fn of(directory: i32, path: *const c_char) -> Option<Fact> {
    // What cannot be a pointer is the kernel's to refuse.
    if (path as u64) < 4096 || (path as u64) >> 47 != 0 || !crate::environment::enabled() {
        return None;
    }
    // SAFETY: the program's C string. A pointer that leads nowhere faults in the program's own call.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    match path {
        b"/dev/kvm" => Some(Fact::Device),
        b"/proc/cpuinfo" => Some(Fact::CpuInfo),
        _ if path.starts_with(b"/sys/module/kvm") => Some(module(&path[b"/sys/module/".len()..])),
        _ if path == b"kvm" || path.ends_with(b"/kvm") => {
            let mut buffer = [0; LONGEST];
            (absolute(directory, path, &mut buffer)? == b"/dev/kvm").then_some(Fact::Device)
        }
        _ => None,
    }
}

/// The path from the root, without `.`, `..` and empty parts. Symbolic links are not followed.
fn absolute<'a>(directory: i32, path: &[u8], buffer: &'a mut [u8; LONGEST]) -> Option<&'a [u8]> {
    let mut len = 0;
    if path.first() != Some(&b'/') {
        let mut name = [0; 32];
        let link =
            if directory == libc::AT_FDCWD { c"/proc/self/cwd" } else { raw::fd_path(directory, &mut name) };
        len = raw::readlink(link, buffer)?.len();
        if len == 1 {
            len = 0;
        }
    }
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => len = buffer[..len].iter().rposition(|&b| b == b'/').unwrap_or(0),
            part => {
                let end = len + 1 + part.len();
                let to = buffer.get_mut(len..end)?;
                to[0] = b'/';
                to[1..].copy_from_slice(part);
                len = end;
            }
        }
    }
    Some(&buffer[..len])
}

/// Parameters of the module `kvm`. What a software processor has no part of is off.
const KVM: &[(&str, &str)] = &[
    ("eager_page_split", "N\n"),
    ("enable_pmu", "N\n"),
    ("enable_vmware_backdoor", "N\n"),
    ("force_emulation_prefix", "0\n"),
    ("halt_poll_ns", "0\n"),
    ("ignore_msrs", "N\n"),
    ("kvmclock_periodic_sync", "Y\n"),
    ("mmio_caching", "N\n"),
    ("nx_huge_pages", "N\n"),
    ("pi_inject_timer", "0\n"),
    ("report_ignored_msrs", "Y\n"),
    ("tdp_mmu", "N\n"),
    ("vector_hashing", "Y\n"),
];

/// Parameters of `kvm_intel`. The MMU is a shadow MMU, and real mode runs.
const KVM_INTEL: &[(&str, &str)] = &[
    ("emulate_invalid_guest_state", "Y\n"),
    ("enable_apicv", "N\n"),
    ("ept", "N\n"),
    ("eptad", "N\n"),
    ("flexpriority", "N\n"),
    ("nested", "N\n"),
    ("pml", "N\n"),
    ("unrestricted_guest", "Y\n"),
    ("vpid", "N\n"),
];

/// Parameters of `kvm_amd`.
const KVM_AMD: &[(&str, &str)] =
    &[("avic", "N\n"), ("nested", "0\n"), ("npt", "N\n"), ("nrips", "1\n"), ("sev", "N\n"), ("vgif", "0\n")];

fn module(path: &[u8]) -> Fact {
    let mut parts = path.split(|&b| b == b'/').filter(|p| !p.is_empty());
    let intel = crate::cpuid::is_intel();
    let parameters = match parts.next() {
        Some(b"kvm") => KVM,
        Some(b"kvm_intel") if intel => KVM_INTEL,
        Some(b"kvm_amd") if !intel => KVM_AMD,
        _ => return Fact::Absent,
    };
    match (parts.next(), parts.next(), parts.next()) {
        (None, ..) | (Some(b"parameters"), None, _) => Fact::Directory,
        (Some(b"initstate"), None, _) => Fact::File("live\n"),
        (Some(b"refcnt"), None, _) => Fact::File("0\n"),
        (Some(b"parameters"), Some(name), None) => {
            parameters.iter().find(|p| p.0.as_bytes() == name).map_or(Fact::Absent, |p| Fact::File(p.1))
        }
        _ => Fact::Absent,
    }
}

/// open of such a path.
pub fn open(fact: Fact, flags: i32) -> Option<i64> {
    let writing = flags & libc::O_ACCMODE != libc::O_RDONLY;
    match fact {
        Fact::Device => Some(crate::ioctl::open_system(flags)),
        Fact::Absent => Some(-i64::from(libc::ENOENT)),
        Fact::CpuInfo | Fact::File(_) if writing => Some(-i64::from(libc::EACCES)),
        Fact::File(text) => Some(file(text.as_bytes(), flags)),
        Fact::CpuInfo => Some(crate::inside::within(|| cpuinfo().map_or(-5, |text| file(&text, flags)))),
        // The host's own, if it has one.
        Fact::Directory => None,
    }
}

fn file(text: &[u8], flags: i32) -> i64 {
    let cloexec = if flags & libc::O_CLOEXEC != 0 { libc::MFD_CLOEXEC } else { 0 };
    // SAFETY: a C string, and numbers.
    unsafe {
        let fd = sys!(SYS_memfd_create, c"softkvm-fact".as_ptr(), cloexec);
        if fd >= 0 {
            raw::write_all(fd as i32, text);
            sys!(SYS_lseek, fd, 0, libc::SEEK_SET);
        }
        fd
    }
}

/// The host's, with `vmx` or `svm` among the flags.
fn cpuinfo() -> Option<Vec<u8>> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let flag = if crate::cpuid::is_intel() { "vmx" } else { "svm" };
    let mut out = String::with_capacity(text.len() + 64);
    for line in text.split_inclusive('\n') {
        let bare = line.trim_end_matches('\n');
        out.push_str(bare);
        if bare.starts_with("flags") && !bare.split_whitespace().any(|f| f == flag) {
            out.push(' ');
            out.push_str(flag);
        }
        out.push_str(&line[bare.len()..]);
    }
    Some(out.into_bytes())
}

/// access of such a path.
pub fn access(fact: Fact, mode: i32) -> Option<i64> {
    let refused = match fact {
        Fact::Device => libc::X_OK,
        Fact::CpuInfo => return None,
        Fact::File(_) => libc::X_OK | libc::W_OK,
        Fact::Directory => libc::W_OK,
        Fact::Absent => return Some(-i64::from(libc::ENOENT)),
    };
    Some(if mode & refused != 0 { -i64::from(libc::EACCES) } else { 0 })
}

/// The device's number.
pub const KVM_MAJOR: u32 = 10;
/// See [`KVM_MAJOR`].
pub const KVM_MINOR: u32 = 232;

/// Type and permissions of a path of ours.
pub fn mode(fact: Fact) -> Option<Result<u32, i64>> {
    match fact {
        Fact::Device => Some(Ok(libc::S_IFCHR | 0o666)),
        Fact::File(_) => Some(Ok(libc::S_IFREG | 0o444)),
        Fact::Directory => Some(Ok(libc::S_IFDIR | 0o755)),
        Fact::Absent => Some(Err(-i64::from(libc::ENOENT))),
        Fact::CpuInfo => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_plain() {
        let mut b = [0; LONGEST];
        for (path, plain) in [
            ("/dev/kvm", "/dev/kvm"),
            ("//dev/./kvm", "/dev/kvm"),
            ("/dev/../dev/kvm", "/dev/kvm"),
            ("/../kvm", "/kvm"),
            ("/dev/shm/kvm", "/dev/shm/kvm"),
        ] {
            assert_eq!(absolute(libc::AT_FDCWD, path.as_bytes(), &mut b), Some(plain.as_bytes()), "{path}");
        }
        let long = format!("/{}/kvm", "x".repeat(300));
        assert_eq!(absolute(libc::AT_FDCWD, long.as_bytes(), &mut b), None);
    }

    #[test]
    fn modules_have_the_files_of_their_vendor() {
        assert_eq!(module(b"kvm/parameters/halt_poll_ns"), Fact::File("0\n"));
        assert_eq!(module(b"kvm"), Fact::Directory);
        assert_eq!(module(b"kvm/parameters/nothing"), Fact::Absent);
        assert_eq!(module(b"kvm_other/parameters"), Fact::Absent);
        let (mine, other) = if crate::cpuid::is_intel() { ("intel", "amd") } else { ("amd", "intel") };
        assert!(matches!(module(format!("kvm_{mine}/parameters/nested").as_bytes()), Fact::File(_)));
        assert_eq!(module(format!("kvm_{other}/parameters/nested").as_bytes()), Fact::Absent);
    }
}
