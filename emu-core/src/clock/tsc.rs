//! The guest's TSC: the host's, scaled by a ratio, plus an offset; IA32_TSC_ADJUST; and keeping the TSCs of a VM's
//! vCPUs together (SDM vol. 3B, 17.17; KVM's KVM_SET_TSC_KHZ and its treatment of TSC writes).

/// Fraction bits of the ratio, as in VMX.
pub const RATIO_FRACTION_BITS: u32 = 48;
/// A ratio of one.
pub const RATIO_ONE: u64 = 1 << RATIO_FRACTION_BITS;

/// Guest frequency over host frequency as a ratio; `None` if it does not fit, or a frequency is zero.
pub fn ratio(guest_khz: u32, host_khz: u32) -> Option<u64> {
    if guest_khz == 0 {
        return None;
    }
    let scaled = u128::from(guest_khz) << RATIO_FRACTION_BITS;
    u64::try_from(scaled.checked_div(u128::from(host_khz))?).ok().filter(|&ratio| ratio != 0)
}

/// `ticks` times `ratio`, in all 128 bits, and cut to 64.
pub const fn scale(ticks: u64, ratio: u64) -> u64 {
    ((ticks as u128 * ratio as u128) >> RATIO_FRACTION_BITS) as u64
}

/// One vCPU's TSC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tsc {
    /// Guest over host frequency, with [`RATIO_FRACTION_BITS`].
    pub ratio: u64,
    /// Added after scaling.
    pub offset: u64,
    /// IA32_TSC_ADJUST.
    pub adjust: u64,
    /// The guest's frequency.
    pub khz: u32,
}

impl Tsc {
    /// A TSC at the host's rate that reads zero when the host's reads `host_tsc`.
    pub const fn starting_at(host_tsc: u64, khz: u32) -> Tsc {
        Tsc { ratio: RATIO_ONE, offset: host_tsc.wrapping_neg(), adjust: 0, khz }
    }

    /// RDTSC.
    pub const fn read(&self, host_tsc: u64) -> u64 {
        scale(host_tsc, self.ratio).wrapping_add(self.offset)
    }

    /// The offset with which the TSC reads `value` when the host's reads `host_tsc`.
    pub const fn offset_for(&self, value: u64, host_tsc: u64) -> u64 {
        value.wrapping_sub(scale(host_tsc, self.ratio))
    }

    /// WRMSR IA32_TIME_STAMP_COUNTER by the guest: IA32_TSC_ADJUST moves along (SDM vol. 3B, 17.17.3).
    pub const fn write(&mut self, value: u64, host_tsc: u64) {
        let offset = self.offset_for(value, host_tsc);
        self.adjust = self.adjust.wrapping_add(offset.wrapping_sub(self.offset));
        self.offset = offset;
    }

    /// WRMSR IA32_TSC_ADJUST by the guest: the TSC moves by the difference.
    pub const fn write_adjust(&mut self, adjust: u64) {
        self.offset = self.offset.wrapping_add(adjust.wrapping_sub(self.adjust));
        self.adjust = adjust;
    }

    /// IA32_TSC_ADJUST from the VMM: a restored value; the TSC does not move.
    pub const fn set_adjust(&mut self, adjust: u64) {
        self.adjust = adjust;
    }

    /// KVM_SET_TSC_KHZ: from now on at this rate, without a jump. `false` if the ratio cannot be expressed.
    pub fn set_khz(&mut self, guest_khz: u32, host_khz: u32, host_tsc: u64) -> bool {
        let Some(ratio) = ratio(guest_khz, host_khz) else { return false };
        let value = self.read(host_tsc);
        self.ratio = ratio;
        self.khz = guest_khz;
        self.offset = self.offset_for(value, host_tsc);
        true
    }
}

/// A VM's memory of TSC writes, by which vCPUs that are set one after the other come out equal.
///
/// A VMM writes the same value to each vCPU in turn, and time passes between: taken literally, they would differ for
/// good. As KVM does, a write that is within a second of what the last written TSC reads by now takes over its offset.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TscSync {
    last: Option<LastWrite>,
    user_wrote: bool,
    /// Offset and frequency of each vCPU's, as user space left them: what a guest writes is its own affair.
    left: Vec<Option<(u64, u32)>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct LastWrite {
    ns: u64,
    value: u64,
    khz: u32,
    offset: u64,
}

impl TscSync {
    /// A write of IA32_TIME_STAMP_COUNTER from the VMM, or (value 0, not `from_user`) the creation of a vCPU. Sets
    /// the offset; IA32_TSC_ADJUST does not move. Returns whether the vCPU was synchronised with the last one.
    pub fn write(&mut self, tsc: &mut Tsc, value: u64, host_tsc: u64, now_ns: u64, from_user: bool) -> bool {
        let matched = self.last.filter(|last| {
            if tsc.khz == 0 || last.khz != tsc.khz {
                return false;
            }
            if value == 0 {
                // A vCPU that is being set up.
                return true;
            }
            let elapsed = u128::from(now_ns.saturating_sub(last.ns)) * u128::from(tsc.khz) / 1_000_000;
            let expected = last.value.wrapping_add(elapsed as u64);
            let second = u64::from(tsc.khz) * 1000;
            // Only a VMM's own write makes a value that others are compared with.
            self.user_wrote
                && (value.wrapping_sub(expected) < second || expected.wrapping_sub(value) < second)
        });
        self.user_wrote |= from_user;
        match matched {
            Some(last) => tsc.offset = last.offset,
            None => tsc.offset = tsc.offset_for(value, host_tsc),
        }
        let value = tsc.read(host_tsc);
        self.last = Some(LastWrite { ns: now_ns, value, khz: tsc.khz, offset: tsc.offset });
        matched.is_some()
    }

    /// User space is done with a vCPU's TSC.
    pub fn leave(&mut self, vcpu: usize, tsc: &Tsc) {
        if self.left.len() <= vcpu {
            self.left.resize(vcpu + 1, None);
        }
        self.left[vcpu] = Some((tsc.offset, tsc.khz));
    }

    /// Whether all vCPUs have one TSC, so that kvmclock may call itself stable (PVCLOCK_TSC_STABLE_BIT).
    pub fn agree(&self) -> bool {
        let mut all = self.left.iter().flatten();
        all.next().is_none_or(|first| all.all(|other| other == first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios() {
        assert_eq!(ratio(2_000_000, 2_000_000), Some(RATIO_ONE));
        assert_eq!(ratio(1_000_000, 2_000_000), Some(RATIO_ONE / 2));
        assert_eq!(ratio(0, 2_000_000), None);
        assert_eq!(ratio(2_000_000, 0), None);
        assert_eq!(ratio(u32::MAX, 1), None, "does not fit");
        assert_eq!(scale(u64::MAX, RATIO_ONE), u64::MAX);
        assert_eq!(scale(1 << 63, RATIO_ONE / 2), 1 << 62);
        // Three days at 3 GHz, seen at 2.6 GHz: exact to a tick in a billion.
        let (host, guest) = (3_000_000u32, 2_600_000u32);
        let ticks = 3 * 86_400 * 1000 * u64::from(host);
        let exact = (u128::from(ticks) * u128::from(guest) / u128::from(host)) as u64;
        let scaled = scale(ticks, ratio(guest, host).unwrap());
        assert!(exact - scaled < exact / 1_000_000_000, "{exact} {scaled}");
    }

    #[test]
    fn guest_writes_and_adjust() {
        let mut tsc = Tsc::starting_at(1_000, 2_000_000);
        assert_eq!(tsc.read(1_500), 500);
        tsc.write(10_000, 1_500);
        assert_eq!((tsc.read(1_500), tsc.adjust), (10_000, 9_500));
        tsc.write_adjust(0);
        assert_eq!((tsc.read(1_500), tsc.adjust), (500, 0), "as if it had never been written");
        tsc.write_adjust(5u64.wrapping_neg());
        assert_eq!(tsc.read(1_500), 495);
        tsc.set_adjust(77);
        assert_eq!((tsc.read(1_500), tsc.adjust), (495, 77), "restored: no move");
        tsc.write(0, 2_000);
        assert_eq!(tsc.read(2_001), 1);
    }

    #[test]
    fn frequency_change_does_not_jump() {
        let mut tsc = Tsc::starting_at(0, 2_000_000);
        assert!(tsc.set_khz(3_000_000, 2_000_000, 1_000_000));
        assert_eq!((tsc.read(1_000_000), tsc.read(1_000_002)), (1_000_000, 1_000_003));
        assert!(!tsc.set_khz(0, 2_000_000, 0) && tsc.khz == 3_000_000);
    }

    #[test]
    fn synchronisation() {
        const KHZ: u32 = 2_000_000;
        let host = |ns: u64| ns * 2 + 12_345;
        let fresh = || Tsc::starting_at(0, KHZ);
        let mut sync = TscSync::default();
        let (mut first, mut second) = (fresh(), fresh());
        // Creation, a while apart: the same offset.
        assert!(!sync.write(&mut first, 0, host(0), 0, false));
        assert_eq!(first.read(host(0)), 0);
        assert!(sync.write(&mut second, 0, host(5_000), 5_000, false));
        assert_eq!(first.offset, second.offset);
        // A VMM restores 10^12 on both, a millisecond apart.
        assert!(!sync.write(&mut first, 1_000_000_000_000, host(10_000), 10_000, true));
        assert_eq!(first.read(host(10_000)), 1_000_000_000_000);
        assert!(sync.write(&mut second, 1_000_000_000_000, host(1_010_000), 1_010_000, true));
        assert_eq!(first.offset, second.offset);
        // A value over a second off is meant as it is.
        let far = 1_000_000_000_000 + 3 * 2_000_000_000;
        assert!(!sync.write(&mut second, far, host(1_020_000), 1_020_000, true));
        assert_eq!(second.read(host(1_020_000)), far);
        for (vcpu, tsc, agree) in
            [(0, &first, true), (1, &second, false), (1, &first, true), (4, &second, false)]
        {
            sync.leave(vcpu, tsc);
            assert_eq!(sync.agree(), agree, "{vcpu}");
        }
        // So is one at another frequency.
        let mut third = Tsc { khz: KHZ / 2, ..fresh() };
        assert!(!sync.write(&mut third, far, host(1_020_000), 1_020_000, true));
        assert!(TscSync::default().agree());
    }
}
