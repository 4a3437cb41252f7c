//! The guest's clocks against the host's, over a minute: within 50 parts in a million.
//!
//! The guest reads kvmclock and its TSC before and behind a mark at which the host's clock is read, so the error of
//! a reading is known and taken off; what is left is the rate. It sleeps in between, and costs no time of a core.

use softkvm_tests::guest::software::vmm;
use softkvm_tests::guest::{clock, image};
use std::time::Duration;

const SPAN: Duration = Duration::from_secs(60);
const TOLERANCE: f64 = 50e-6;

#[test]
fn kvmclock_and_tsc_keep_the_hosts_pace_for_a_minute() {
    let image = image().expect("the guest assembles");
    // The first mark warms up; from the second to the last is the span.
    let pauses = clock::MARKS - 2;
    let out = vmm::run(&image, 1, SPAN * 3, move |n| match n {
        0 => Duration::ZERO,
        n if n <= pauses => SPAN / pauses as u32,
        _ => Duration::ZERO,
    });
    assert_eq!(out.failure, None);
    assert_eq!(out.marks.len(), clock::MARKS);
    let (first, last) = (out.marks[1], out.marks[clock::MARKS - 1]);
    let host = last.host.duration_since(first.host).as_nanos() as f64;
    assert!(host >= SPAN.as_nanos() as f64, "the host slept as long as it was told");
    // The guest's span lies between these two.
    let least = last.before.saturating_sub(first.after) as f64;
    let most = last.after.saturating_sub(first.before) as f64;
    let (slow, fast) = ((host - most) / host, (least - host) / host);
    assert!(slow < TOLERANCE && fast < TOLERANCE, "host {host} ns, kvmclock {least} to {most} ns");
    // The mark's kvmclock, from the host's side.
    let kvmclock = (last.kvmclock - first.kvmclock) as f64;
    let error = (kvmclock - host) / host;
    assert!(error.abs() < TOLERANCE, "KVM_GET_CLOCK: {kvmclock} ns of {host} ns");
    // Cycles of the guest's TSC between the marks, by KVM_GET_TSC_KHZ.
    let cycles = (last.tsc - first.tsc) as f64;
    let tsc = cycles / f64::from(out.tsc_khz) * 1e6;
    let noise = ((last.after - last.before) + (first.after - first.before)) as f64 / host;
    let error = (tsc - host) / host;
    assert!(error.abs() < TOLERANCE + noise, "TSC: {tsc} ns of {host} ns at {} kHz", out.tsc_khz);
}
