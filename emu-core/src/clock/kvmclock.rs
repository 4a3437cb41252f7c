//! kvmclock: the structures that the guest reads its time from (KVM's msr.txt), and how they are written.
//!
//! Given the guest TSC's frequency and one pair (TSC, nanoseconds), [`PvclockVcpuTimeInfo`] lets the guest compute
//! nanoseconds from its own RDTSC. The VM's clock itself, which KVM_GET_CLOCK reads and KVM_SET_CLOCK moves, is
//! [`VmClock`]. Nothing here writes guest memory: a [`VersionedWrite`] says which bytes go where, in order.

/// Nanoseconds in a second.
const NS_PER_SEC: u64 = 1_000_000_000;
/// Flag: the clock is monotonic across vCPUs (KVM_FEATURE_CLOCKSOURCE_STABLE_BIT).
pub const PVCLOCK_TSC_STABLE: u8 = 1 << 0;
/// Flag: the guest was stopped by the host, its watchdogs should not bark (KVM_KVMCLOCK_CTRL).
pub const PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;
/// Size of `pvclock_vcpu_time_info`.
pub const TIME_INFO_SIZE: usize = 32;
/// Size of `pvclock_wall_clock`.
pub const WALL_CLOCK_SIZE: usize = 12;
/// MSR_KVM_SYSTEM_TIME: bit 0, the structure is to be kept up to date.
pub const SYSTEM_TIME_ENABLED: u64 = 1;

/// A factor that turns TSC ticks into nanoseconds: `(ticks << shift) * mul >> 32`, where a negative shift is a shift
/// to the right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TscToSystem {
    /// `tsc_to_system_mul`: a binary fraction, at least one half.
    pub mul: u32,
    /// `tsc_shift`.
    pub shift: i8,
}

impl TscToSystem {
    /// The factor for a frequency. `None` for 0 kHz.
    pub fn from_khz(khz: u32) -> Option<TscToSystem> {
        if khz == 0 {
            return None;
        }
        // Nanoseconds per tick = 10^6 / kHz = mul * 2^(shift - 32), with mul in [2^31, 2^32) for the most precision.
        // As a fraction of 64 bits it has at least 52 bits (kHz has 32) and at most 84.
        let ratio = (1_000_000u128 << 64) / u128::from(khz);
        let bits = u128::BITS - ratio.leading_zeros();
        let rounded = ((ratio >> (bits - 33)) + 1) >> 1;
        let shift = bits as i8 - 64;
        match u32::try_from(rounded) {
            Ok(mul) => Some(TscToSystem { mul, shift }),
            // Rounded up to 2^32: one half, one place further.
            Err(_) => Some(TscToSystem { mul: 1 << 31, shift: shift + 1 }),
        }
    }

    /// Ticks to nanoseconds, as the guest computes them, without its loss of high bits.
    pub fn nanoseconds(self, ticks: u64) -> u64 {
        let ticks = u128::from(ticks);
        let shifted = match self.shift {
            0.. => ticks << self.shift,
            ..0 => ticks >> -i32::from(self.shift),
        };
        // Up to 2^(64+20+32) before the shift.
        ((shifted * u128::from(self.mul)) >> 32) as u64
    }
}

/// One store of a [`VersionedWrite`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteStep<'a> {
    /// Offset from the structure's address.
    pub offset: usize,
    /// What to store there.
    pub bytes: &'a [u8],
}

/// A structure with a version field, written so that a guest on another processor notices: an odd version, the
/// contents, an even version. Each step must be visible before the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionedWrite<const SIZE: usize> {
    version_offset: usize,
    odd: [u8; 4],
    bytes: [u8; SIZE],
    even: [u8; 4],
}

impl<const SIZE: usize> VersionedWrite<SIZE> {
    /// `guest_version` is the version that guest memory holds now; random junk the first time, so an odd one is
    /// stepped over. `bytes` is the structure; its version field is filled in here.
    pub(super) fn new(version_offset: usize, guest_version: u32, mut bytes: [u8; SIZE]) -> Self {
        let odd = (guest_version.wrapping_add(1) | 1).to_le_bytes();
        let even = (guest_version.wrapping_add(1) | 1).wrapping_add(1).to_le_bytes();
        for (to, from) in bytes.iter_mut().skip(version_offset).zip(odd) {
            *to = from;
        }
        VersionedWrite { version_offset, odd, bytes, even }
    }

    /// The three steps.
    pub fn steps(&self) -> [WriteStep<'_>; 3] {
        [
            WriteStep { offset: self.version_offset, bytes: &self.odd },
            WriteStep { offset: 0, bytes: &self.bytes },
            WriteStep { offset: self.version_offset, bytes: &self.even },
        ]
    }
}

/// What `pvclock_vcpu_time_info` holds, but for the version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PvclockVcpuTimeInfo {
    /// The guest TSC at the moment of the update.
    pub tsc_timestamp: u64,
    /// kvmclock at that moment, in nanoseconds.
    pub system_time: u64,
    /// The TSC's rate.
    pub scale: TscToSystem,
    /// `PVCLOCK_*`.
    pub flags: u8,
}

impl PvclockVcpuTimeInfo {
    /// What a guest would compute at TSC `tsc`.
    pub fn at(&self, tsc: u64) -> u64 {
        let elapsed = self.scale.nanoseconds(tsc.wrapping_sub(self.tsc_timestamp));
        self.system_time.wrapping_add(elapsed)
    }

    /// The structure in three steps. `guest_version` is what guest memory holds now.
    pub fn write(&self, guest_version: u32) -> VersionedWrite<TIME_INFO_SIZE> {
        let mut bytes = [0; TIME_INFO_SIZE];
        bytes[8..16].copy_from_slice(&self.tsc_timestamp.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.system_time.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.scale.mul.to_le_bytes());
        bytes[28..29].copy_from_slice(&self.scale.shift.to_le_bytes());
        bytes[29] = self.flags;
        VersionedWrite::new(0, guest_version, bytes)
    }
}

/// What `pvclock_wall_clock` holds, but for the version: the time of day when kvmclock was zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WallClock {
    /// Seconds since 1970.
    pub sec: u32,
    /// Nanoseconds.
    pub nsec: u32,
}

impl WallClock {
    /// From the time of day (nanoseconds since 1970) and kvmclock at one moment.
    pub fn new(realtime_ns: u64, kvmclock_ns: u64) -> WallClock {
        let boot = realtime_ns.saturating_sub(kvmclock_ns);
        // The structure has 32 bits for seconds: 2106 wraps. Nanoseconds are below 10^9.
        WallClock { sec: (boot / NS_PER_SEC) as u32, nsec: (boot % NS_PER_SEC) as u32 }
    }

    /// The structure in three steps. `guest_version` is what guest memory holds now.
    pub fn write(&self, guest_version: u32) -> VersionedWrite<WALL_CLOCK_SIZE> {
        let mut bytes = [0; WALL_CLOCK_SIZE];
        bytes[4..8].copy_from_slice(&self.sec.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.nsec.to_le_bytes());
        VersionedWrite::new(0, guest_version, bytes)
    }
}

/// The VM's kvmclock: monotonic nanoseconds plus an offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VmClock {
    offset_ns: u64,
}

impl VmClock {
    /// A clock that starts at zero now.
    pub const fn started_at(now_ns: u64) -> VmClock {
        VmClock { offset_ns: now_ns.wrapping_neg() }
    }

    /// KVM_GET_CLOCK.
    pub const fn get(&self, now_ns: u64) -> u64 {
        now_ns.wrapping_add(self.offset_ns)
    }

    /// KVM_SET_CLOCK.
    pub const fn set(&mut self, clock_ns: u64, now_ns: u64) {
        self.offset_ns = clock_ns.wrapping_sub(now_ns);
    }

    /// KVM_SET_CLOCK with KVM_CLOCK_REALTIME: the time since `realtime_ns`, when the clock was read elsewhere, is
    /// added; a realtime in the future adds nothing.
    pub const fn set_with_realtime(
        &mut self,
        clock_ns: u64,
        realtime_ns: u64,
        now_realtime_ns: u64,
        now_ns: u64,
    ) {
        let passed = now_realtime_ns.saturating_sub(realtime_ns);
        self.set(clock_ns.wrapping_add(passed), now_ns);
    }
}
