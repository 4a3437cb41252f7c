//! Whether PROGRAM can be served: what its file says, before it is executed.
//!
//! The library enters by the dynamic linker of glibc, in 64 bits. What would not load it is refused here,
//! each kind with its own words, rather than run without KVM.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Why a program is not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No such file.
    NotFound(PathBuf),
    /// No permission to execute it, a directory, or no program.
    NotExecutable(PathBuf, &'static str),
    /// No dynamic linker.
    Static(PathBuf),
    /// Another C library's dynamic linker.
    OtherLibc(PathBuf, String),
    /// Not for this processor's 64-bit mode.
    Not64Bit(PathBuf),
    /// The dynamic linker ignores LD_PRELOAD for it.
    Privileged(PathBuf, &'static str),
}

impl Refusal {
    /// The exit status: 127 and 126 as shells have them.
    pub fn status(&self) -> u8 {
        match self {
            Refusal::NotFound(_) => super::STATUS_NOT_FOUND,
            _ => super::STATUS_CANNOT_EXECUTE,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotFound(p) => write!(f, "{}: not found", p.display()),
            Refusal::NotExecutable(p, why) => write!(f, "{}: {why}", p.display()),
            Refusal::Static(p) => {
                write!(f, "{}: statically linked: no library can be loaded into it", p.display())
            }
            Refusal::OtherLibc(p, linker) => {
                write!(f, "{}: its dynamic linker is {linker}; only glibc's is supported", p.display())
            }
            Refusal::Not64Bit(p) => write!(f, "{}: not a 64-bit x86 program", p.display()),
            Refusal::Privileged(p, why) => {
                write!(f, "{}: {why}: the dynamic linker loads nothing into it", p.display())
            }
        }
    }
}

/// How many interpreters of scripts are followed, as in the kernel.
const SCRIPTS: usize = 5;

/// Looks at what would be executed for `program`.
pub fn check(program: &OsStr) -> Result<(), Refusal> {
    let mut path = resolve(program)?;
    for _ in 0..SCRIPTS {
        match look(&path)? {
            Kind::Program => return Ok(()),
            Kind::Script(interpreter) => path = interpreter,
        }
    }
    Err(Refusal::NotExecutable(path, "too many interpreters"))
}

/// As execvp finds it.
fn resolve(program: &OsStr) -> Result<PathBuf, Refusal> {
    if program.as_bytes().contains(&b'/') {
        return Ok(program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let mut found = None;
    for directory in std::env::split_paths(&path) {
        let file = directory.join(program);
        match file.metadata() {
            Ok(m) if m.is_file() && may_execute(&m) => return Ok(file),
            Ok(_) => found = Some(file),
            Err(_) => {}
        }
    }
    Err(match found {
        Some(file) => Refusal::NotExecutable(file, "permission denied"),
        None => Refusal::NotFound(program.into()),
    })
}

fn may_execute(m: &std::fs::Metadata) -> bool {
    m.mode() & 0o111 != 0
}

enum Kind {
    Program,
    Script(PathBuf),
}

fn look(path: &Path) -> Result<Kind, Refusal> {
    let not = |why| Refusal::NotExecutable(path.into(), why);
    let metadata = path.metadata().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Refusal::NotFound(path.into()),
        _ => not("permission denied"),
    })?;
    if metadata.is_dir() {
        return Err(not("is a directory"));
    }
    if !may_execute(&metadata) {
        return Err(not("permission denied"));
    }
    let Ok(mut file) = File::open(path) else {
        // It may be executed but not read: nothing can be said about it.
        return Ok(Kind::Program);
    };
    let mut head = Vec::new();
    let read = (&mut file).take(4096).read_to_end(&mut head);
    read.map_err(|_| not("cannot be read"))?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&b| b == b'\n').next().unwrap_or(&[]).trim_ascii();
        let interpreter = line.split(|b| b.is_ascii_whitespace()).next().unwrap_or(&[]);
        return Ok(Kind::Script(OsStr::from_bytes(interpreter).into()));
    }
    privileged(path, &metadata)?;
    linker(path, &file, &head)?;
    Ok(Kind::Program)
}

/// A change of user, group or capabilities makes the dynamic linker ignore the environment.
fn privileged(path: &Path, m: &std::fs::Metadata) -> Result<(), Refusal> {
    let me = std::fs::metadata("/proc/self").ok();
    let (uid, gid) = me.map_or((u32::MAX, u32::MAX), |m| (m.uid(), m.gid()));
    let why = if m.mode() & 0o4000 != 0 && m.uid() != uid {
        "setuid"
    } else if m.mode() & 0o2000 != 0 && m.gid() != gid {
        "setgid"
    } else if uid != 0 && has_capabilities(path) {
        "has file capabilities"
    } else {
        return Ok(());
    };
    Err(Refusal::Privileged(path.into(), why))
}

/// The extended attribute `security.capability`.
fn has_capabilities(path: &Path) -> bool {
    rustix::fs::getxattr(path, "security.capability", &mut [0u8; 64][..]).is_ok_and(|n| n > 0)
}

/// The ELF header and the interpreter (System V ABI, chapter 5).
fn linker(path: &Path, file: &File, head: &[u8]) -> Result<(), Refusal> {
    const ELFCLASS64: u8 = 2;
    const EM_X86_64: u16 = 62;
    const PT_INTERP: u32 = 3;
    let not = |why| Refusal::NotExecutable(path.into(), why);
    let word = |at: usize, n: usize| -> u64 {
        let bytes = head.get(at..at + n).unwrap_or(&[]);
        bytes.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b))
    };
    if !head.starts_with(b"\x7fELF") {
        return Err(not("not a program"));
    }
    if head.get(4) != Some(&ELFCLASS64) || word(18, 2) != u64::from(EM_X86_64) {
        return Err(Refusal::Not64Bit(path.into()));
    }
    let (table, size, count) = (word(32, 8), word(54, 2), word(56, 2));
    for n in 0..count.min(256) {
        let mut header = [0; 56];
        if file.read_exact_at(&mut header, table.wrapping_add(n * size)).is_err() {
            return Err(not("not a program"));
        }
        let at = |from: usize| header[from..from + 8].iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b));
        if at(0) as u32 != PT_INTERP {
            continue;
        }
        let mut name = vec![0; at(32).min(4096) as usize];
        if file.read_exact_at(&mut name, at(8)).is_err() {
            return Err(not("not a program"));
        }
        name.retain(|&b| b != 0);
        let linker = PathBuf::from(std::ffi::OsString::from_vec(name));
        return match linker.file_name() {
            Some(f) if f == "ld-linux-x86-64.so.2" => Ok(()),
            _ => Err(Refusal::OtherLibc(path.into(), linker.display().to_string())),
        };
    }
    Err(Refusal::Static(path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// An ELF file with one program header.
    fn elf(class: u8, machine: u16, interpreter: Option<&str>) -> Vec<u8> {
        let mut f = vec![0u8; 120];
        f[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', class]);
        f[18..20].copy_from_slice(&machine.to_le_bytes());
        f[32] = 64;
        f[54] = 56;
        f[56] = 1;
        if let Some(name) = interpreter {
            f[64] = 3;
            f[72] = 120;
            f[96] = name.len() as u8 + 1;
            f.extend(name.bytes());
            f.push(0);
        }
        f
    }

    fn checked(bytes: &[u8], mode: u32) -> Result<(), Refusal> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("program");
        std::fs::write(&file, bytes).expect("it is ours");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("it is ours");
        check(file.as_os_str())
    }

    #[test]
    fn each_kind_of_file() {
        const GLIBC: Option<&str> = Some("/lib64/ld-linux-x86-64.so.2");
        assert_eq!(checked(&elf(2, 62, GLIBC), 0o755), Ok(()));
        assert!(matches!(checked(&elf(2, 62, None), 0o755), Err(Refusal::Static(_))));
        assert!(matches!(checked(&elf(1, 3, Some("/lib/ld-linux.so.2")), 0o755), Err(Refusal::Not64Bit(_))));
        let musl = checked(&elf(2, 62, Some("/lib/ld-musl-x86_64.so.1")), 0o755);
        assert!(matches!(&musl, Err(Refusal::OtherLibc(_, l)) if l.contains("musl")), "{musl:?}");
        assert!(matches!(checked(&elf(2, 62, GLIBC), 0o644), Err(Refusal::NotExecutable(..))));
        assert!(matches!(checked(b"hello", 0o755), Err(Refusal::NotExecutable(..))));
        assert!(matches!(checked(b"\x7fELF", 0o755), Err(Refusal::Not64Bit(_))));
        assert_eq!(checked(b"#! /bin/sh -e\n", 0o755), Ok(()));
        assert!(matches!(checked(b"#!/nowhere/at/all\n", 0o755), Err(Refusal::NotFound(_))));
        assert_eq!(check(OsStr::new("/nowhere/at/all")).map_err(|r| r.status()), Err(127));
        assert_eq!(check(OsStr::new("/")).map_err(|r| r.status()), Err(126));
        assert_eq!(check(OsStr::new("sh")), Ok(()));
    }
}
