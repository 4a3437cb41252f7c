//! Access to guest memory by gpa: the one write path.

use crate::host_mem::{HostFault, Word};
use x86_arch::Gpa;

/// Why an access by gpa failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GuestMemoryError {
    /// No slot holds (all of) it.
    #[error("no memory at {0:x}")]
    NoSlot(Gpa),
    /// A write to a read-only slot.
    #[error("read-only memory at {0:x}")]
    ReadOnly(Gpa),
    /// The host's memory is gone.
    #[error(transparent)]
    Host(#[from] HostFault),
}

/// One address space of guest memory, by gpa. Cheap to make and to clone; reads the slots as they are at each access.
#[derive(Clone)]
pub struct GuestMemory {
    _private: (),
}

impl GuestMemory {
    /// Reads `out.len()` bytes.
    pub fn read(&self, gpa: Gpa, _out: &mut [u8]) -> Result<(), GuestMemoryError> {
        Err(GuestMemoryError::NoSlot(gpa))
    }

    /// Writes `bytes`: marks the dirty log, tells those who track the page, refuses read-only slots.
    pub fn write(&self, gpa: Gpa, _bytes: &[u8]) -> Result<(), GuestMemoryError> {
        Err(GuestMemoryError::NoSlot(gpa))
    }

    /// Loads one naturally aligned word with one access.
    pub fn load<T: Word>(&self, gpa: Gpa) -> Result<T, GuestMemoryError> {
        Err(GuestMemoryError::NoSlot(gpa))
    }

    /// Stores one naturally aligned word with one access.
    pub fn store<T: Word>(&self, gpa: Gpa, _value: T) -> Result<(), GuestMemoryError> {
        Err(GuestMemoryError::NoSlot(gpa))
    }

    /// `lock cmpxchg` on a naturally aligned word: `Ok(Err(seen))` if it held something else.
    pub fn compare_exchange<T: Word>(
        &self,
        gpa: Gpa,
        _old: T,
        _new: T,
    ) -> Result<Result<T, T>, GuestMemoryError> {
        Err(GuestMemoryError::NoSlot(gpa))
    }
}
