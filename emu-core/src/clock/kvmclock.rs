//! kvmclock: the structures that the guest reads its time from (KVM's msr.txt), and how they are written.
//!
//! Given the guest TSC's frequency and one pair (TSC, nanoseconds), [`PvclockVcpuTimeInfo`] lets the guest compute
//! nanoseconds from its own RDTSC. The VM's clock itself, which KVM_GET_CLOCK reads and KVM_SET_CLOCK moves, is
//! [`crate::vm_clock`]'s. Nothing here writes guest memory: a [`VersionedWrite`] says which bytes go where, in order.

/// Nanoseconds in a second.
const NS_PER_SEC: u64 = 1_000_000_000;
/// Flag: the clock is monotonic across vCPUs (KVM_FEATURE_CLOCKSOURCE_STABLE_BIT).
pub const PVCLOCK_TSC_STABLE: u8 = 1 << 0;
/// Flag: the guest was stopped by the host, its watchdogs should not bark (KVM_KVMCLOCK_CTRL).
pub const PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;
/// Size of `pvclock_vcpu_time_info`.
pub const TIME_INFO_SIZE: usize = 32;
/// Where its flags lie.
pub const FLAGS_OFFSET: u64 = 29;
/// Size of `pvclock_wall_clock`.
pub const WALL_CLOCK_SIZE: usize = 12;
/// MSR_KVM_SYSTEM_TIME: bit 0, the structure is to be kept up to date.
pub const SYSTEM_TIME_ENABLED: u64 = 1;

/// By how much two structures of one clock may differ: each was rounded, and so was the factor.
const ROUNDING_NS: u64 = 4;

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
    fn new(version_offset: usize, guest_version: u32, mut bytes: [u8; SIZE]) -> Self {
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

    /// Whether a structure in guest memory says the same: complete, same rate and flags, same time at this TSC.
    pub fn is_in(&self, old: &[u8; TIME_INFO_SIZE]) -> bool {
        let word =
            |at: usize| old.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let version = word(0) as u32;
        let then = PvclockVcpuTimeInfo { tsc_timestamp: word(8), system_time: word(16), ..*self };
        let rate = u64::from(self.scale.mul)
            | u64::from(self.scale.shift.cast_unsigned()) << 32
            | u64::from(self.flags) << 40;
        version != 0
            && version & 1 == 0
            && word(24) == rate
            && then.at(self.tsc_timestamp).abs_diff(self.system_time) <= ROUNDING_NS
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest does, with its 64- and 96-bit arithmetic (msr.txt).
    fn guest_nanoseconds(info: &PvclockVcpuTimeInfo, tsc: u64) -> u64 {
        let mut time = tsc.wrapping_sub(info.tsc_timestamp);
        if info.scale.shift >= 0 {
            time <<= info.scale.shift;
        } else {
            time >>= -info.scale.shift;
        }
        let time = (u128::from(time) * u128::from(info.scale.mul)) >> 32;
        (time as u64).wrapping_add(info.system_time)
    }

    #[test]
    fn agrees_with_nanoseconds_within_a_millionth() {
        let odd = [500_001, 999_999, 1_000_000, 1_000_001, 2_133_408, 2_399_998, 3_393_624, 4_999_999];
        for khz in (500_000..=5_000_000).step_by(12_347).chain(odd) {
            let scale = TscToSystem::from_khz(khz).unwrap();
            assert!(scale.mul >= 1 << 31, "{khz} kHz: {scale:?} wastes precision");
            let info = PvclockVcpuTimeInfo { tsc_timestamp: 1 << 40, system_time: 77, scale, flags: 0 };
            for ms in [1u64, 1000, 3_600_000] {
                let tsc = (1 << 40) + ms * u64::from(khz);
                let expected = 77 + ms * 1_000_000;
                for got in [guest_nanoseconds(&info, tsc), info.at(tsc)] {
                    let error = got.abs_diff(expected);
                    assert!(error <= (expected / 1_000_000).max(2), "{khz} kHz, {ms} ms: {error} ns off");
                }
            }
        }
    }

    #[test]
    fn factors() {
        // (kHz, mul, shift)
        let rows = [
            (1_000_000, 1 << 31, 1),
            (2_000_000, 1 << 31, 0),
            (4_000_000, 1 << 31, -1),
            (3_000_000, 0xaaaa_aaab, -1),
            (1, 0xf424_0000, 20),
        ];
        for (khz, mul, shift) in rows {
            assert_eq!(TscToSystem::from_khz(khz), Some(TscToSystem { mul, shift }), "{khz} kHz");
        }
        assert_eq!(TscToSystem::from_khz(0), None);
        let slowest = TscToSystem::from_khz(u32::MAX).unwrap();
        assert_eq!(slowest.shift, -12);
        assert!(slowest.nanoseconds(u64::from(u32::MAX) * 1000).abs_diff(1_000_000_000) <= 1);
    }

    fn memory_after<const SIZE: usize>(write: &VersionedWrite<SIZE>) -> [[u8; SIZE]; 3] {
        let mut memory = [0xee; SIZE];
        write.steps().map(|step| {
            memory[step.offset..step.offset + step.bytes.len()].copy_from_slice(step.bytes);
            memory
        })
    }

    #[test]
    fn version_protocol() {
        let info = PvclockVcpuTimeInfo {
            tsc_timestamp: 0x1112_1314_1516_1718,
            system_time: 0x2122_2324_2526_2728,
            scale: TscToSystem { mul: 0x3132_3334, shift: -3 },
            flags: PVCLOCK_TSC_STABLE,
        };
        // (version in guest memory, odd, even)
        for (old, odd, even) in
            [(0u32, 1u32, 2u32), (6, 7, 8), (7, 9, 10), (u32::MAX, 1, 2), (u32::MAX - 1, u32::MAX, 0)]
        {
            let [begun, filled, done] = memory_after(&info.write(old));
            assert_eq!(begun[..4], odd.to_le_bytes(), "from {old}");
            assert_eq!(begun[4..], [0xee; 28], "nothing else yet");
            assert_eq!(filled[..4], odd.to_le_bytes());
            assert_eq!(done[..4], even.to_le_bytes());
            assert_eq!(done[4..], filled[4..]);
            assert_eq!(done[4..8], [0; 4]);
            assert_eq!(done[8..16], info.tsc_timestamp.to_le_bytes());
            assert_eq!(done[16..24], info.system_time.to_le_bytes());
            assert_eq!(done[24..], [0x34, 0x33, 0x32, 0x31, 0xfd, 1, 0, 0]);
        }
    }

    #[test]
    fn what_says_the_same() {
        let scale = TscToSystem::from_khz(1_000_000).unwrap();
        let old = PvclockVcpuTimeInfo { tsc_timestamp: 1000, system_time: 70, scale, flags: 1 };
        let [begun, _, done] = memory_after(&old.write(4));
        let now = PvclockVcpuTimeInfo { tsc_timestamp: 1500, system_time: 570, ..old };
        assert!(now.is_in(&done) && old.is_in(&done));
        let other_rate = TscToSystem { shift: 2, ..scale };
        for (name, info) in [
            ("time", PvclockVcpuTimeInfo { system_time: 580, ..now }),
            ("TSC", PvclockVcpuTimeInfo { tsc_timestamp: 1510, ..now }),
            ("rate", PvclockVcpuTimeInfo { scale: other_rate, ..old }),
            ("flags", PvclockVcpuTimeInfo { flags: 3, ..now }),
        ] {
            assert!(!info.is_in(&done), "{name}");
        }
        assert!(!now.is_in(&begun), "half written");
        let mut never = done;
        never[..4].fill(0);
        assert!(!now.is_in(&never), "never written");
    }

    #[test]
    fn wall_clock() {
        let wall = WallClock::new(1_700_000_000_123_456_789, 23_456_789);
        assert_eq!(wall, WallClock { sec: 1_700_000_000, nsec: 100_000_000 });
        let [_, _, done] = memory_after(&wall.write(2));
        assert_eq!(done[..4], [4, 0, 0, 0]);
        assert_eq!(done[4..8], 1_700_000_000u32.to_le_bytes());
        assert_eq!(done[8..], 100_000_000u32.to_le_bytes());
        assert_eq!(WallClock::new(5, 10), WallClock { sec: 0, nsec: 0 });
    }
}
