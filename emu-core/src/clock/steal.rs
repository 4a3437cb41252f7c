//! Steal time (MSR_KVM_STEAL_TIME): how long a vCPU was ready to run and did not.
//!
//! The structure and its version protocol; measuring is the caller's. Layout: `struct kvm_steal_time` of KVM's
//! msr documentation, 64 bytes.

use super::kvmclock::VersionedWrite;
use x86_arch::Exception;

/// Size of the structure, and its alignment in guest memory.
pub const STEAL_TIME_SIZE: usize = 64;
/// MSR bit 0: enabled.
const ENABLED: u64 = 1;
/// MSR bits 5:1 are reserved.
const RESERVED: u64 = 0x3e;
/// `preempted`: the vCPU does not run.
pub const VCPU_PREEMPTED: u8 = 1;
/// Where `version` lies.
const VERSION_OFFSET: usize = 8;
/// Where `preempted` lies.
pub const PREEMPTED_OFFSET: usize = 16;

/// A value of MSR_KVM_STEAL_TIME.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StealTimeMsr(pub u64);

impl StealTimeMsr {
    /// The WRMSR: reserved bits are #GP.
    pub const fn checked(value: u64) -> Result<StealTimeMsr, Exception> {
        if value & RESERVED != 0 { Err(Exception::GP0) } else { Ok(StealTimeMsr(value)) }
    }

    /// Where the structure lies, if enabled.
    pub const fn address(self) -> Option<u64> {
        if self.0 & ENABLED == 0 { None } else { Some(self.0 & !(RESERVED | ENABLED)) }
    }
}

/// The steal time of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StealTime {
    /// Nanoseconds.
    pub steal_ns: u64,
    /// The vCPU does not run now ([`VCPU_PREEMPTED`]).
    pub preempted: u8,
}

impl StealTime {
    /// The structure in three steps. `guest_version` is what guest memory holds now.
    pub fn write(&self, guest_version: u32) -> VersionedWrite<STEAL_TIME_SIZE> {
        let mut bytes = [0; STEAL_TIME_SIZE];
        bytes[..8].copy_from_slice(&self.steal_ns.to_le_bytes());
        bytes[PREEMPTED_OFFSET] = self.preempted;
        VersionedWrite::new(VERSION_OFFSET, guest_version, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msr_bits() {
        assert_eq!(StealTimeMsr::checked(0x1000 | 1).unwrap().address(), Some(0x1000));
        assert_eq!(StealTimeMsr::checked(0x1000).unwrap().address(), None);
        for bit in 1..6 {
            assert_eq!(StealTimeMsr::checked(0x1001 | 1 << bit), Err(Exception::GP0), "bit {bit}");
        }
    }

    #[test]
    fn layout() {
        let write = StealTime { steal_ns: 0x0102_0304_0506_0708, preempted: VCPU_PREEMPTED }.write(6);
        let mut memory = [0xffu8; STEAL_TIME_SIZE];
        for step in write.steps() {
            memory[step.offset..step.offset + step.bytes.len()].copy_from_slice(step.bytes);
        }
        assert_eq!(memory[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(memory[8..12], [8, 0, 0, 0]);
        assert_eq!(memory[16], 1);
        assert!(memory[17..].iter().all(|&byte| byte == 0));
    }
}
