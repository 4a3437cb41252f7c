//! The host as the software processor sees it: real time and chance, or counted time.
//!
//! The only place in the layer that reads a clock or draws random numbers for a guest. [`RealHost`] is the machine;
//! [`CountedHost`] lets virtual time be a function of retired instructions, so that a run can be repeated exactly.

use crate::run_delay::ThreadDelay;
use emu_core::Host;
use emu_core::host::RunDelay;
use emu_core::host_cpu;
use kvm_api::backend::CountedTime;
use parking_lot::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Where the TSC's frequency comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TscSource {
    /// CPUID 15H.
    Cpuid,
    /// The host's KVM (KVM_GET_TSC_KHZ on a fresh vCPU).
    HostKvm,
    /// Measured against CLOCK_MONOTONIC_RAW.
    Calibrated,
}

/// Real time and chance.
#[derive(Debug)]
pub struct RealHost {
    start: Instant,
    khz: u32,
    random: Mutex<RandomPool>,
}

#[derive(Debug)]
struct RandomPool {
    words: Vec<u64>,
    /// A last resort where the kernel has none: xorshift over the TSC.
    state: u64,
}

impl RandomPool {
    fn next(&mut self) -> u64 {
        if let Some(w) = self.words.pop() {
            return w;
        }
        // The system call, and not a file: a caller may filter what this process may open.
        let mut bytes = [0; 256];
        if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) == Ok(bytes.len()) {
            self.words = bytes.as_chunks::<8>().0.iter().map(|c| u64::from_le_bytes(*c)).collect();
            return self.words.pop().unwrap_or_default();
        }
        self.state ^= host_cpu::rdtsc();
        xorshift(&mut self.state)
    }
}

fn xorshift(x: &mut u64) -> u64 {
    *x = (*x).max(1);
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    x.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

impl RealHost {
    /// The machine's clocks. With `ask_host_kvm`, a `/dev/kvm` that can be opened is asked for the TSC's frequency.
    pub fn new(ask_host_kvm: bool) -> RealHost {
        let (khz, source) = tsc_khz(ask_host_kvm);
        tracing::debug!(khz, ?source, "host TSC frequency");
        RealHost {
            start: Instant::now(),
            khz,
            random: Mutex::new(RandomPool { words: Vec::new(), state: host_cpu::rdtsc() }),
        }
    }
}

impl Host for RealHost {
    fn tsc(&self, _: u64) -> u64 {
        host_cpu::rdtsc()
    }

    fn tsc_khz(&self) -> u32 {
        self.khz
    }

    fn monotonic_ns(&self, _: u64) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn realtime_ns(&self, _: u64) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
    }

    fn random(&self) -> u64 {
        self.random.lock().next()
    }

    fn run_delay(&self) -> Option<Box<dyn RunDelay>> {
        Some(Box::new(ThreadDelay::new(self.khz)))
    }
}

/// Virtual time: one retired instruction of any vCPU is one nanosecond and one tick of a 1 GHz TSC; a halt skips to its
/// deadline. vCPUs that run by turns see one time, which goes on while any of them runs.
#[derive(Debug)]
pub struct CountedHost {
    /// The latest time that was told.
    latest: AtomicU64,
    random: Mutex<u64>,
}

/// CountedHost's time of day at time 0: 2025-01-01 00:00:00 UTC.
const COUNTED_EPOCH_NS: u64 = 1_735_689_600 * 1_000_000_000;

impl CountedHost {
    /// Time from zero, chance from a seed.
    pub fn new(seed: u64) -> CountedHost {
        CountedHost::from(CountedTime { ns: 0, random: seed ^ 0x9e37_79b9_7f4a_7c15 })
    }

    /// Time and chance from a moment of another.
    pub fn from(time: CountedTime) -> CountedHost {
        CountedHost { latest: AtomicU64::new(time.ns), random: Mutex::new(time.random) }
    }

    /// The moment, for a VM that is to go on from here.
    pub fn time(&self) -> CountedTime {
        CountedTime { ns: self.now(0), random: *self.random.lock() }
    }

    fn now(&self, count: u64) -> u64 {
        // Who has counted less than others have told asks from outside KVM_RUN: a VM's ioctl, a vCPU that stands.
        self.latest.fetch_max(count, Ordering::AcqRel).max(count)
    }
}

impl Host for CountedHost {
    fn tsc(&self, count: u64) -> u64 {
        self.now(count)
    }

    fn tsc_khz(&self) -> u32 {
        1_000_000
    }

    fn monotonic_ns(&self, count: u64) -> u64 {
        self.now(count)
    }

    fn realtime_ns(&self, count: u64) -> u64 {
        COUNTED_EPOCH_NS + self.now(count)
    }

    fn random(&self) -> u64 {
        xorshift(&mut self.random.lock())
    }

    fn resume(&self, count: u64) -> u64 {
        self.now(count)
    }

    fn exact(&self) -> bool {
        true
    }

    fn skip_to(&self, deadline_ns: u64) -> bool {
        self.now(deadline_ns);
        true
    }

    fn counted_time(&self) -> Option<(u64, u64)> {
        let CountedTime { ns, random } = self.time();
        Some((ns, random))
    }
}

/// The TSC's frequency in kHz, found once per process.
pub fn tsc_khz(ask_host_kvm: bool) -> (u32, TscSource) {
    static KHZ: OnceLock<(u32, TscSource)> = OnceLock::new();
    *KHZ.get_or_init(|| {
        if let Some(khz) = khz_by_cpuid() {
            return (khz, TscSource::Cpuid);
        }
        let calibrated = calibrate();
        if ask_host_kvm && let Some(khz) = khz_by_host_kvm() {
            // A host that scales or lies is worse than a measurement.
            if khz.abs_diff(calibrated) < calibrated / 1000 {
                return (khz, TscSource::HostKvm);
            }
        }
        (calibrated, TscSource::Calibrated)
    })
}

/// CPUID 15H: crystal times ratio; the crystal by 16H where 15H does not say (SDM vol. 3B, 18.7.3).
fn khz_by_cpuid() -> Option<u32> {
    if host_cpu::cpuid(0, 0).eax < 0x15 {
        return None;
    }
    let r = host_cpu::cpuid(0x15, 0);
    if r.eax == 0 || r.ebx == 0 {
        return None;
    }
    if r.ecx != 0 {
        return u32::try_from(u64::from(r.ecx) * u64::from(r.ebx) / u64::from(r.eax) / 1000).ok();
    }
    // With no crystal told, 16H's base frequency is the TSC's.
    let base = if host_cpu::cpuid(0, 0).eax >= 0x16 { host_cpu::cpuid(0x16, 0).eax & 0xffff } else { 0 };
    (base != 0).then_some(base * 1000)
}

fn khz_by_host_kvm() -> Option<u32> {
    kvm_ioctls::Kvm::new().ok()?.create_vm().ok()?.create_vcpu(0).ok()?.get_tsc_khz().ok().filter(|&k| k != 0)
}

/// Nanoseconds of CLOCK_MONOTONIC_RAW and the TSC at one moment: the tightest of several brackets.
fn sample() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..64 {
        let before = host_cpu::rdtsc();
        let t = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
        let after = host_cpu::rdtsc();
        let width = after.wrapping_sub(before);
        if width < best.0 {
            best =
                (width, t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64, before.wrapping_add(width / 2));
        }
    }
    (best.1, best.2)
}

/// Measures over 60 ms: brackets of well under a microsecond leave a few ppm.
fn calibrate() -> u32 {
    let (ns0, tsc0) = sample();
    std::thread::sleep(std::time::Duration::from_millis(60));
    let (ns1, tsc1) = sample();
    let (ns, ticks) = (ns1.wrapping_sub(ns0).max(1), tsc1.wrapping_sub(tsc0));
    u32::try_from((u128::from(ticks) * 1_000_000 + u128::from(ns) / 2) / u128::from(ns))
        .unwrap_or(u32::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_calibrations_agree() {
        let (a, b) = (calibrate(), calibrate());
        // 20 ppm each.
        assert!(a.abs_diff(b) as u64 * 1_000_000 / a as u64 <= 40, "{a} {b}");
    }

    #[test]
    fn counted_time_is_instructions_and_skips() {
        let h = CountedHost::new(1);
        assert_eq!((h.monotonic_ns(5), h.tsc(6)), (5, 6));
        assert!(h.skip_to(1000));
        assert_eq!(h.monotonic_ns(6), 1000, "a vCPU that stands");
        assert!(h.skip_to(10), "a deadline in the past moves nothing");
        assert_eq!((h.resume(7), h.monotonic_ns(1001), h.resume(3)), (1000, 1001, 1001));
        let later = CountedHost::from(h.time());
        assert_eq!((later.monotonic_ns(0), later.random()), (1001, h.random()));
        let (a, b) = (CountedHost::new(7), CountedHost::new(7));
        assert_eq!([a.random(), a.random()], [b.random(), b.random()]);
        assert_ne!(CountedHost::new(8).random(), CountedHost::new(7).random());
    }

    #[test]
    fn chance_does_not_repeat() {
        let h = RealHost::new(false);
        let mut v: Vec<u64> = (0..200).map(|_| h.random()).collect();
        v.sort_unstable();
        v.dedup();
        assert_eq!(v.len(), 200);
    }
}
