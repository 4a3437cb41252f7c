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

    /// The host TSC at which the guest's will read `value`, at the earliest from `host_tsc` on; `None` if that is
    /// past the end of the host's.
    pub fn host_tsc_for(&self, value: u64, host_tsc: u64) -> Option<u64> {
        let ticks = value.saturating_sub(self.read(host_tsc));
        let host_ticks = (u128::from(ticks) << RATIO_FRACTION_BITS).div_ceil(u128::from(self.ratio.max(1)));
        host_tsc.checked_add(u64::try_from(host_ticks).ok()?)
    }
}

/// A VM's memory of TSC writes, by which vCPUs that are set one after the other come out equal.
///
/// A VMM writes the same value to each vCPU in turn, and time passes between: taken literally, they would differ for
/// good. As KVM does, a write that is within a second of what the last written TSC reads by now takes over its offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TscSync {
    last: Option<LastWrite>,
    user_wrote: bool,
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
        self.user_wrote |= from_user && value != 0;
        match matched {
            Some(last) => tsc.offset = last.offset,
            None => tsc.offset = tsc.offset_for(value, host_tsc),
        }
        let value = tsc.read(host_tsc);
        self.last = Some(LastWrite { ns: now_ns, value, khz: tsc.khz, offset: tsc.offset });
        matched.is_some()
    }
}
