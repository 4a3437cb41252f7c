//! The local APIC's timer: one-shot, periodic and TSC-deadline (SDM vol. 3A, 10.5.4).
//!
//! Counts are not stepped. The registers hold what the guest wrote, [`TimerState`] holds when the count reaches zero,
//! and everything between is computed from the time that the caller passes in. Who sleeps until
//! [`Lapic::timer_deadline`] and calls [`Lapic::timer_expire`] is not decided here.

use super::{Accepted, Lapic, LocalSource, TIMER_SURPLUS};
use crate::clock::Now;
use x86_arch::apic::*;

/// LVT timer entry: the mode field.
const TIMER_MODE: u32 = 3 << 17;
/// KVM's floor for a periodic timer, in nanoseconds: a guest cannot ask for a storm of host timers.
const MIN_PERIOD_NS: u64 = 200_000;

/// When the timer fires. The APIC bus runs at 1 GHz, as KVM's, unless the VMM says otherwise: a tick is a nanosecond
/// times the divider.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TimerState {
    /// One-shot and periodic: when the count reaches zero next.
    pub target_ns: Option<u64>,
    /// One-shot and periodic: the initial count in nanoseconds.
    pub period_ns: u64,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    pub tsc_deadline: u64,
}

/// The modes of the timer (SDM vol. 3A, table 10-2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    /// 11b: reserved. The timer does not run.
    Reserved,
}

impl Lapic {
    fn timer_mode(&self) -> TimerMode {
        match self.reg(APIC_LVT_TIMER) & TIMER_MODE {
            0 => TimerMode::OneShot,
            LVT_TIMER_PERIODIC => TimerMode::Periodic,
            LVT_TIMER_TSC_DEADLINE => TimerMode::TscDeadline,
            _ => TimerMode::Reserved,
        }
    }

    pub(super) fn timer_is_tsc_deadline(&self) -> bool {
        self.timer_mode() == TimerMode::TscDeadline
    }

    /// The bits of the LVT timer entry that choose the mode; bit 18 exists only with TSC-deadline.
    pub(super) fn timer_mode_bits(&self) -> u32 {
        if self.config().tsc_deadline { TIMER_MODE } else { LVT_TIMER_PERIODIC }
    }

    /// Nanoseconds in one tick of the count (SDM vol. 3A, figure 10-10: bits 3, 1 and 0).
    fn divider(&self) -> u64 {
        let register = self.reg(APIC_TIMER_DIVIDE);
        let code = (register & 8) >> 1 | register & 3;
        (1 << ((code + 1) & 7)) * u64::from(self.config().bus_cycle_ns.max(1))
    }

    /// A new mode was written. A change to or from TSC-deadline mode disarms the timer (SDM vol. 3A, 10.5.4.1).
    pub(super) fn timer_mode_written(&mut self, was_deadline: bool) {
        if was_deadline != self.timer_is_tsc_deadline() {
            self.timer = TimerState::default();
            self.set_reg(APIC_TIMER_INITIAL, 0);
        }
    }

    /// A write to the initial count starts the timer; zero stops it. Ignored in TSC-deadline mode.
    pub(super) fn write_initial_count(&mut self, count: u32, now: &Now) {
        if self.timer_is_tsc_deadline() {
            return;
        }
        self.set_reg(APIC_TIMER_INITIAL, count);
        self.timer.period_ns = self.initial_period();
        self.timer.target_ns = (count != 0 && self.timer_mode() != TimerMode::Reserved)
            .then(|| now.ns.saturating_add(self.timer.period_ns));
    }

    fn initial_period(&self) -> u64 {
        let period = u64::from(self.reg(APIC_TIMER_INITIAL)).saturating_mul(self.divider());
        match self.timer_mode() {
            TimerMode::Periodic if period != 0 => period.max(MIN_PERIOD_NS),
            _ => period,
        }
    }

    /// A write to the divide configuration: the remaining count stays, and runs on at the new rate.
    pub(super) fn write_divide(&mut self, value: u32, now: &Now) {
        let old = self.divider();
        self.set_reg(APIC_TIMER_DIVIDE, value & 0xb);
        if old == self.divider() {
            return;
        }
        let remaining = self.remaining(now) / old;
        self.timer.period_ns = self.initial_period();
        if self.timer.target_ns.is_some() {
            self.timer.target_ns = Some(now.ns.saturating_add(remaining.saturating_mul(self.divider())));
        }
    }

    /// Nanoseconds until the count reaches zero. A periodic timer that nobody expired in time has wrapped.
    fn remaining(&self, now: &Now) -> u64 {
        match self.timer.target_ns {
            None => 0,
            Some(target) if target > now.ns => target - now.ns,
            Some(target) if self.timer_mode() == TimerMode::Periodic => {
                let period = self.timer.period_ns.max(1);
                period - (now.ns - target) % period
            }
            Some(_) => 0,
        }
    }

    /// The current-count register.
    pub(super) fn current_count(&self, now: &Now) -> u32 {
        if self.timer_is_tsc_deadline() {
            return 0;
        }
        u32::try_from(self.remaining(now).div_ceil(self.divider())).unwrap_or(u32::MAX)
    }

    /// The current count for a saved image, and by how many nanoseconds it is too long. A timer that is due but was not
    /// expired yet still has one tick to go, so that its interrupt is not lost on the way.
    pub(super) fn saved_count(&self, now: &Now) -> (u32, u32) {
        let Some(target) = self.timer.target_ns else { return (0, 0) };
        let count = if target > now.ns { self.current_count(now) } else { 1 };
        let until = u64::from(count).saturating_mul(self.divider()).saturating_add(now.ns);
        (count, u32::try_from(until.saturating_sub(target)).unwrap_or(u32::MAX))
    }

    /// Runs on from a restored register page.
    pub(super) fn restart_timer(&mut self, now: &Now, was_deadline: bool) {
        if self.timer_is_tsc_deadline() {
            if !was_deadline {
                self.timer = TimerState::default();
            }
            return;
        }
        let count = self.reg(APIC_TIMER_CURRENT);
        self.timer = TimerState { period_ns: self.initial_period(), ..TimerState::default() };
        if self.reg(APIC_TIMER_INITIAL) == 0 {
            return;
        }
        let surplus = u64::from(self.reg(TIMER_SURPLUS));
        self.set_reg(TIMER_SURPLUS, 0);
        let ticks = u64::from(count).saturating_mul(self.divider());
        self.timer.target_ns = match self.timer_mode() {
            TimerMode::Periodic if count == 0 => Some(now.ns.saturating_add(self.timer.period_ns)),
            TimerMode::OneShot | TimerMode::Periodic if count != 0 => {
                Some(now.ns.saturating_add(ticks).saturating_sub(surplus))
            }
            _ => None,
        };
    }

    /// RDMSR IA32_TSC_DEADLINE: 0 unless armed in TSC-deadline mode.
    pub fn tsc_deadline(&self) -> u64 {
        if self.is_present() && self.timer_is_tsc_deadline() { self.timer.tsc_deadline } else { 0 }
    }

    /// WRMSR IA32_TSC_DEADLINE: ignored outside TSC-deadline mode; 0 disarms (SDM vol. 3A, 10.5.4.1).
    pub fn set_tsc_deadline(&mut self, deadline: u64) {
        if self.is_present() && self.timer_is_tsc_deadline() {
            self.timer.tsc_deadline = deadline;
        }
    }

    /// When [`Lapic::timer_expire`] must be called: monotonic nanoseconds, not before which nothing fires. A deadline
    /// in the past is due now. In TSC-deadline mode it depends on the TSC: ask again when that was written.
    pub fn timer_deadline(&self, now: &Now) -> Option<u64> {
        if self.timer_is_tsc_deadline() {
            let deadline = self.timer.tsc_deadline;
            if deadline == 0 {
                return None;
            }
            if now.tsc >= deadline {
                return Some(now.ns);
            }
            if now.tsc_khz == 0 {
                return None;
            }
            let ticks = u128::from(deadline - now.tsc);
            let wait = (ticks * 1_000_000).div_ceil(u128::from(now.tsc_khz));
            return Some(now.ns.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)));
        }
        self.timer.target_ns
    }

    /// Fires the timer if it is due, and arms a periodic one again. Periods that went by unseen fire once: the IRR
    /// holds one. Returns whether the timer fired; `Accepted` says whether that became an interrupt.
    pub fn timer_expire(&mut self, now: &Now) -> Option<Accepted> {
        if self.timer_is_tsc_deadline() {
            if self.timer.tsc_deadline == 0 || now.tsc < self.timer.tsc_deadline {
                return None;
            }
            self.timer.tsc_deadline = 0;
        } else {
            let target = self.timer.target_ns.filter(|&target| target <= now.ns)?;
            self.timer.target_ns = (self.timer_mode() == TimerMode::Periodic).then(|| {
                let period = self.timer.period_ns.max(MIN_PERIOD_NS);
                let periods = (now.ns - target) / period + 1;
                target.saturating_add(periods.saturating_mul(period))
            });
        }
        Some(self.local_interrupt(LocalSource::Timer))
    }
}

#[cfg(test)]
mod tests {
    use super::super::LapicConfig;
    use super::super::tests::{T0, after, read, read_at, timer, write, write_at};
    use super::*;

    #[test]
    fn timer_divider() {
        for (divide, factor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xa, 128), (0xb, 1u64)] {
            let mut lapic = timer(0, divide, 1000);
            assert_eq!(lapic.timer_deadline(&T0), Some(T0.ns + 1000 * factor), "divide {divide:#x}");
            assert_eq!(read(&mut lapic, APIC_TIMER_CURRENT), 1000);
            assert_eq!(read_at(&mut lapic, APIC_TIMER_CURRENT, &after(250 * factor)), 750);
        }
    }

    #[test]
    fn timer_bus_frequency() {
        let mut lapic = timer(0, 0xb, 0);
        lapic.set_config(LapicConfig { bus_cycle_ns: 40, ..*lapic.config() });
        let _ = write(&mut lapic, APIC_TIMER_INITIAL, 1000);
        assert_eq!(lapic.timer_deadline(&T0), Some(T0.ns + 40_000));
        assert_eq!(read_at(&mut lapic, APIC_TIMER_CURRENT, &after(10_000)), 750);
    }

    #[test]
    fn timer_one_shot() {
        let mut lapic = timer(0, 0xb, 1_000_000);
        assert_eq!(lapic.timer_expire(&after(999_999)), None);
        assert_eq!(read_at(&mut lapic, APIC_TIMER_CURRENT, &after(999_999)), 1);
        assert_eq!(lapic.timer_expire(&after(1_000_000)), Some(Accepted::Queued));
        assert_eq!(lapic.highest_pending(), Some(0xec));
        assert_eq!(read_at(&mut lapic, APIC_TIMER_CURRENT, &after(1_000_001)), 0);
        assert_eq!(lapic.timer_deadline(&after(1_000_001)), None);
        assert_eq!(lapic.timer_expire(&after(9_000_000)), None);
        // A count of zero stops it.
        let mut lapic = timer(0, 0xb, 1_000_000);
        let _ = write(&mut lapic, APIC_TIMER_INITIAL, 0);
        assert_eq!((lapic.timer_deadline(&T0), lapic.timer_expire(&after(2_000_000))), (None, None));
    }

    #[test]
    fn timer_periodic() {
        let mut lapic = timer(LVT_TIMER_PERIODIC, 0xb, 1_000_000);
        for period in 1..=3 {
            assert_eq!(lapic.timer_deadline(&T0), Some(T0.ns + period * 1_000_000));
            assert_eq!(lapic.timer_expire(&after(period * 1_000_000)), Some(Accepted::Queued));
        }
        // Two and a half periods late: one interrupt, and the phase is kept.
        assert_eq!(read_at(&mut lapic, APIC_TIMER_CURRENT, &after(6_500_000)), 500_000);
        assert_eq!(lapic.timer_expire(&after(6_500_000)), Some(Accepted::Queued));
        assert_eq!(lapic.timer_expire(&after(6_500_000)), None);
        assert_eq!(lapic.timer_deadline(&T0), Some(T0.ns + 7_000_000));
        // No storms.
        let lapic = timer(LVT_TIMER_PERIODIC, 0xb, 1);
        assert_eq!(lapic.timer_deadline(&T0), Some(T0.ns + MIN_PERIOD_NS));
    }

    #[test]
    fn timer_masked_runs_on() {
        let mut lapic = timer(LVT_TIMER_PERIODIC | LVT_MASKED, 0xb, 1_000_000);
        assert_eq!(lapic.timer_expire(&after(1_000_000)), Some(Accepted::Refused));
        assert_eq!(lapic.highest_pending(), None);
        let _ = write_at(&mut lapic, APIC_LVT_TIMER, LVT_TIMER_PERIODIC | 0xec, &after(1_200_000));
        assert_eq!(lapic.timer_expire(&after(2_000_000)), Some(Accepted::Queued));
    }

    #[test]
    fn timer_divide_change_keeps_the_count() {
        let mut lapic = timer(0, 0xb, 1_000_000);
        let _ = write_at(&mut lapic, APIC_TIMER_DIVIDE, 0, &after(400_000));
        assert_eq!(read_at(&mut lapic, APIC_TIMER_CURRENT, &after(400_000)), 600_000);
        assert_eq!(lapic.timer_deadline(&T0), Some(T0.ns + 400_000 + 2 * 600_000));
    }

    #[test]
    fn timer_tsc_deadline() {
        let mut lapic = timer(LVT_TIMER_TSC_DEADLINE, 0xb, 1000);
        assert_eq!(read(&mut lapic, APIC_TIMER_INITIAL), 0, "no count in this mode");
        assert_eq!(lapic.timer_deadline(&T0), None);
        lapic.set_tsc_deadline(T0.tsc + 3001);
        assert_eq!(lapic.tsc_deadline(), T0.tsc + 3001);
        // 3001 ticks at 2 GHz are 1500.5 ns: not early.
        assert_eq!(lapic.timer_deadline(&T0), Some(T0.ns + 1501));
        assert_eq!(lapic.timer_expire(&after(1500)), None);
        assert_eq!(lapic.timer_expire(&after(1501)), Some(Accepted::Queued));
        assert_eq!((lapic.tsc_deadline(), lapic.timer_deadline(&T0)), (0, None));
        // In the past: now.
        lapic.set_tsc_deadline(1);
        assert_eq!(lapic.timer_deadline(&T0), Some(T0.ns));
        lapic.set_tsc_deadline(0);
        assert_eq!(lapic.timer_deadline(&T0), None);
        lapic.set_tsc_deadline(u64::MAX);
        assert!(lapic.timer_deadline(&T0).is_some_and(|ns| ns > T0.ns + (1 << 60)));
        // Leaving the mode disarms, and outside it the MSR is ignored.
        let _ = write(&mut lapic, APIC_LVT_TIMER, 0xec);
        assert_eq!((lapic.tsc_deadline(), lapic.timer_deadline(&T0)), (0, None));
        lapic.set_tsc_deadline(77);
        assert_eq!(lapic.tsc_deadline(), 0);
        let _ = write(&mut lapic, APIC_LVT_TIMER, LVT_TIMER_TSC_DEADLINE | 0xec);
        assert_eq!(lapic.tsc_deadline(), 0);
    }
}
