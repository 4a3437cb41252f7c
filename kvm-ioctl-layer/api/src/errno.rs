//! Error numbers as values: what an ioctl answers a caller's mistake with.
//!
//! Not an error description: KVM's ABI has nothing but the number. Which misuse gives which number is
//! decided where the ioctl is implemented.

/// An error number, positive, as in `errno`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

/// What every call of a backend returns.
pub type Result<T = (), E = Errno> = core::result::Result<T, E>;

macro_rules! errnos {
    ($($name:ident $doc:literal;)*) => {
        impl Errno {
            $(#[doc = $doc] pub const $name: Errno = Errno(libc::$name);)*

            /// The symbolic name, for traces.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Errno::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM "Operation not permitted.";
    ENOENT "No such slot, chip or route.";
    EINTR "KVM_RUN was interrupted.";
    EIO "The VM belongs to another process, or is dead.";
    ENXIO "The object is not there (no in-kernel irqchip, no device attribute).";
    E2BIG "The caller's array is too small (KVM api 4.3, 4.45).";
    EBADF "Not a file descriptor, or of the wrong kind.";
    EAGAIN "Try again.";
    ENOMEM "Out of memory.";
    EFAULT "A pointer of the caller, or the backing of guest memory, is not there.";
    EBUSY "In use.";
    EEXIST "Already there.";
    ENODEV "No such device type.";
    EINVAL "Invalid argument.";
    EMFILE "Too many file descriptors.";
    ENOTTY "No such ioctl for this fd.";
    ENOSPC "No space left.";
    ENOSYS "Not implemented.";
    EOPNOTSUPP "Not supported.";
}

impl core::fmt::Debug for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(n) => f.write_str(n),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

impl core::error::Error for Errno {}

impl From<std::io::Error> for Errno {
    fn from(e: std::io::Error) -> Errno {
        Errno(e.raw_os_error().unwrap_or(libc::EIO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(Errno::EINVAL.0, 22);
        assert_eq!(Errno::EINTR.name(), Some("EINTR"));
        assert_eq!(format!("{:?} {:?}", Errno::E2BIG, Errno(9999)), "E2BIG errno 9999");
        assert_eq!(Errno::from(std::io::Error::from_raw_os_error(14)), Errno::EFAULT);
    }
}
