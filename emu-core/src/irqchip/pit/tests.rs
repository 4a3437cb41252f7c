//! The 8254 against its data sheet, through its ports.

use super::*;

/// Nanoseconds at which `clocks` have passed since `T0`.
const T0: u64 = 1_000_000_000;

fn at(clocks: u64) -> u64 {
    T0 + (u128::from(clocks) * 1_000_000_000).div_ceil(u128::from(PIT_HZ)) as u64
}

/// The same, but measured from a moment that is itself rounded: a little later than the last nanosecond can tell.
fn shortly_after(clocks: u64) -> u64 {
    at(clocks) + 2
}

/// Channel 0 in `mode`, both bytes, counting `count` from `T0`.
fn programmed(mode: u8, count: u16) -> Pit {
    programmed_channel(0, mode, count)
}

fn programmed_channel(channel: u8, mode: u8, count: u16) -> Pit {
    let mut pit = Pit::default();
    load(&mut pit, channel, mode, count, T0);
    pit
}

fn load(pit: &mut Pit, channel: u8, mode: u8, count: u16, now: u64) {
    pit.write(0x43, channel << 6 | 0x30 | mode << 1, now).unwrap();
    for byte in count.to_le_bytes() {
        pit.write(0x40 + u16::from(channel), byte, now).unwrap();
    }
}

/// Reads both bytes of a count.
fn count(pit: &mut Pit, channel: u16, now: u64) -> u16 {
    let low = pit.read(0x40 + channel, now).unwrap();
    let high = pit.read(0x40 + channel, now).unwrap();
    u16::from_le_bytes([low, high])
}

#[test]
fn ports() {
    let mut pit = Pit::default();
    for port in [0x3f, 0x44, 0x60, 0x62] {
        assert_eq!((pit.read(port, 0), pit.write(port, 0, 0)), (None, None), "port {port:#x}");
    }
    assert_eq!(pit.read(0x43, 0), Some(0), "the control port is write-only");
    assert_eq!((pit.deadline(), pit.expire(u64::MAX)), (None, false), "not programmed");
}

#[test]
fn counts_and_outputs() {
    // (mode, clocks, count read, output); the count is 1000 but for mode 3's odd one.
    let rows = [
        (0, 0, 1000, false),
        (0, 1, 999, false),
        (0, 999, 1, false),
        (0, 1000, 0, true),
        (0, 1001, 0xffff, true),
        (0, 1000 + 0x1_0000, 0, true),
        (2, 0, 1000, true),
        (2, 1, 999, true),
        (2, 998, 2, true),
        (2, 999, 1, false),
        (2, 1000, 1000, true),
        (2, 5999, 1, false),
        (3, 0, 1000, true),
        (3, 1, 998, true),
        (3, 499, 2, true),
        (3, 500, 1000, false),
        (3, 999, 2, false),
        (3, 1000, 1000, true),
        (4, 0, 1000, true),
        (4, 999, 1, true),
        (4, 1000, 0, false),
        (4, 1001, 0xffff, true),
        (6, 999, 1, false),
        (7, 500, 1000, false),
    ];
    for (mode, clocks, value, out) in rows {
        let mut pit = programmed(mode, 1000);
        assert_eq!(pit.out(0, at(clocks)), out, "mode {mode} at {clocks}");
        assert_eq!(count(&mut pit, 0, at(clocks)), value, "mode {mode} at {clocks}");
    }
    // An odd square wave is high for one clock more.
    let pit = programmed(3, 5);
    let wave: Vec<bool> = (0..10).map(|clocks| pit.out(0, at(clocks))).collect();
    assert_eq!(wave, [true, true, true, false, false, true, true, true, false, false]);
    // Zero is the largest count.
    let mut pit = programmed(2, 0);
    assert_eq!((count(&mut pit, 0, at(0)), count(&mut pit, 0, at(1))), (0, 0xffff));
    assert!(!pit.out(0, at(0xffff)) && pit.out(0, at(0x1_0000)));
}

#[test]
fn irq0_edges() {
    // (mode, clocks of the first edge, clocks of the second)
    for (mode, first, second) in
        [(0, 1000, None), (2, 1000, Some(2000)), (3, 1000, Some(2000)), (4, 1001, None)]
    {
        let mut pit = programmed(mode, 1000);
        pit.set_reinject(false);
        assert_eq!(pit.deadline(), Some(at(first)), "mode {mode}");
        assert!(!pit.expire(at(first) - 1), "mode {mode}");
        assert!(pit.expire(at(first)), "mode {mode}");
        assert!(!pit.expire(at(first)), "mode {mode}, once");
        assert_eq!(pit.deadline(), second.map(at), "mode {mode}");
        assert_eq!(pit.expire(at(10_000)), second.is_some(), "mode {mode}");
    }
    // Channels 1 and 2 drive nothing.
    assert_eq!(programmed_channel(2, 3, 1000).deadline(), None);
    // No drift: an hour of 1 kHz ticks.
    let mut pit = programmed(2, 1193);
    pit.set_reinject(false);
    assert!(pit.expire(T0 + 3600 * 1_000_000_000));
    assert_eq!(pit.state().edges_seen, 3600 * PIT_HZ / 1193);
    // No storms.
    assert_eq!(programmed(2, 1).deadline(), Some(at(MIN_PERIOD_CLOCKS)));
}

#[test]
fn one_shots_wait_for_the_gate() {
    for (mode, low_from, high_at) in [(1, 0, 1000), (5, 1000, 1001)] {
        let mut pit = programmed_channel(2, mode, 1000);
        assert!(pit.out(2, at(5000)), "mode {mode}: not triggered");
        assert_eq!(count(&mut pit, 2, at(5000)), 1000);
        pit.set_gate(2, true, T0);
        assert_eq!(pit.out(2, at(999)), mode == 5);
        assert!(!pit.out(2, at(low_from)) && pit.out(2, at(high_at)), "mode {mode}");
        // The gate's fall does not matter, its next rise starts over.
        pit.set_gate(2, false, at(10));
        assert_eq!(count(&mut pit, 2, at(400)), 600);
        pit.set_gate(2, true, at(500));
        assert_eq!(count(&mut pit, 2, shortly_after(900)), 600);
    }
    // Channel 0's gate is wired high: it never triggers.
    assert_eq!(programmed(1, 1000).deadline(), None);
}

#[test]
fn gate_of_channel_2() {
    // Modes 0 and 4 pause, 2 and 3 start over.
    for (mode, after) in [(0, 600), (4, 600), (2, 900), (3, 800)] {
        let mut pit = Pit::default();
        pit.write(0x61, 1, T0).unwrap();
        load(&mut pit, 2, mode, 1000, T0);
        pit.write(0x61, 0, at(300)).unwrap();
        let held = count(&mut pit, 2, at(5000));
        assert_eq!(held, if mode == 3 { 400 } else { 700 }, "mode {mode}");
        assert_eq!(pit.out(2, at(5000)), mode != 0, "mode {mode}: high while the gate is low");
        pit.write(0x61, 1, at(6000)).unwrap();
        assert_eq!(count(&mut pit, 2, shortly_after(6100)), after, "mode {mode}");
    }
    // Programmed while the gate is low, it begins when the gate opens.
    let mut pit = programmed_channel(2, 0, 1000);
    assert_eq!(count(&mut pit, 2, at(700)), 1000);
    pit.set_gate(2, true, at(700));
    assert!(!pit.out(2, at(1699)) && pit.out(2, shortly_after(1700)));
}

#[test]
fn speaker_port() {
    let mut pit = programmed_channel(2, 0, 1000);
    pit.write(0x61, 0xff, T0).unwrap();
    assert_eq!(pit.read(0x61, at(10)).unwrap() & !0x10, 0x03);
    assert_eq!(pit.read(0x61, at(1000)).unwrap() & !0x10, 0x23, "output of channel 2");
    assert_eq!(pit.state().flags, PIT_FLAGS_SPEAKER_DATA_ON);
    pit.write(0x61, 1, T0).unwrap();
    assert_eq!(pit.read(0x61, at(10)).unwrap() & !0x10, 0x01);
    // The refresh bit toggles about every 15 us.
    let refresh: Vec<u8> = (0..4).map(|n| pit.read(0x61, n << 14).unwrap() >> 4 & 1).collect();
    assert_eq!(refresh, [0, 1, 0, 1]);
}

#[test]
fn read_write_modes() {
    for (access, bytes, expected) in
        [(1, vec![0x34], 0x34), (2, vec![0x12], 0x1200), (3, vec![0x34, 0x12], 0x1234)]
    {
        let mut pit = Pit::default();
        pit.write(0x43, access << 4 | 2 << 1, T0).unwrap();
        for byte in bytes {
            pit.write(0x40, byte, T0).unwrap();
        }
        assert_eq!(pit.state().channels[0].count, expected, "access {access}");
        let first = pit.read(0x40, T0).unwrap();
        let second = pit.read(0x40, T0).unwrap();
        let [low, high] = (expected as u16).to_le_bytes();
        let read = [(low, low), (high, high), (low, high)][usize::from(access) - 1];
        assert_eq!((first, second), read, "access {access}");
    }
    // The first byte of a new count stops mode 0, and only mode 0.
    let mut pit = programmed(0, 100);
    pit.write(0x40, 0x10, at(50)).unwrap();
    assert_eq!((pit.deadline(), pit.out(0, at(5000))), (None, false));
    pit.write(0x40, 0x00, at(60)).unwrap();
    assert_eq!(pit.deadline(), Some(at(60) + (at(16) - T0)));
    let mut pit = programmed(2, 1000);
    pit.write(0x40, 0x10, at(50)).unwrap();
    assert_eq!(pit.deadline(), Some(at(1000)));
}

#[test]
fn counter_latch() {
    let mut pit = programmed(2, 1000);
    pit.write(0x43, 0x00, at(100)).unwrap();
    pit.write(0x43, 0x00, at(200)).unwrap();
    assert_eq!(count(&mut pit, 0, at(300)), 900, "the first latch holds until it is read");
    assert_eq!(count(&mut pit, 0, at(300)), 700, "then the count is live");
    // A latch of another channel.
    pit.write(0x43, 0x40, at(400)).unwrap();
    assert_eq!(count(&mut pit, 0, at(400)), 600);
    // A control word drops the latch.
    pit.write(0x43, 0x00, at(400)).unwrap();
    load(&mut pit, 0, 2, 50, at(400));
    assert_eq!(count(&mut pit, 0, at(400)), 50);
}

#[test]
fn read_back() {
    let mut pit = programmed(3, 1000);
    load(&mut pit, 1, 2, 500, T0);
    // Count and status of channels 0 and 1: status first, then the count.
    pit.write(0x43, 0xc0 | 0x06, at(600)).unwrap();
    assert_eq!(pit.read(0x40, at(700)), Some(0x36), "output low, both bytes, mode 3");
    assert_eq!(count(&mut pit, 0, at(700)), 800);
    assert_eq!(pit.read(0x41, at(700)), Some(0xb4), "output high, both bytes, mode 2");
    assert_eq!(count(&mut pit, 1, at(700)), 400);
    // Status alone; null count after a control word.
    pit.write(0x43, 0x31, at(700)).unwrap();
    pit.write(0x43, 0xe2, at(700)).unwrap();
    assert_eq!(pit.read(0x40, at(700)), Some(0x71), "output low, null count, mode 0, BCD");
    // Count alone.
    pit.write(0x43, 0xd4, at(700)).unwrap();
    assert_eq!(count(&mut pit, 1, at(900)), 300);
}

#[test]
fn bcd() {
    let mut pit = Pit::default();
    pit.write(0x43, 0x35, T0).unwrap();
    pit.write(0x40, 0x34, T0).unwrap();
    pit.write(0x40, 0x12, T0).unwrap();
    assert_eq!(pit.deadline(), Some(at(1234)));
    assert_eq!(count(&mut pit, 0, at(1)), 0x1233);
    assert_eq!(count(&mut pit, 0, at(235)), 0x0999);
    pit.write(0x43, 0x31, T0).unwrap();
    pit.write(0x40, 0, T0).unwrap();
    pit.write(0x40, 0, T0).unwrap();
    assert_eq!(pit.deadline(), Some(at(10_000)));
    assert_eq!(count(&mut pit, 0, at(10_001)), 0x9999);
}

#[test]
fn reinjection() {
    let mut pit = programmed(2, 1000);
    assert!(pit.expire(at(1000)), "the first tick");
    assert!(!pit.expire(at(4500)), "three more before it was acknowledged");
    assert_eq!(pit.state().pending, 4);
    // They are made up for, one for each acknowledgement, and a new one waits its turn.
    assert!(pit.acknowledged() && pit.acknowledged());
    assert!(!pit.expire(at(5000)) && pit.state().pending == 3);
    assert!(pit.acknowledged() && pit.acknowledged());
    assert!(!pit.acknowledged());
    assert!(pit.expire(at(6000)));
    assert!(!pit.acknowledged());
    assert!(!pit.acknowledged(), "an acknowledgement of something else");
    assert!(pit.expire(at(7000)));
    // Unmasking forgets.
    assert!(!pit.expire(at(9000)));
    pit.reset_reinjection();
    assert!(!pit.acknowledged());
    // A new count forgets.
    assert!(pit.expire(at(10_000)));
    assert!(!pit.expire(at(12_000)));
    load(&mut pit, 0, 2, 2000, at(12_000));
    assert_eq!((pit.deadline(), pit.state().pending), (Some(at(12_000) + (at(2000) - T0)), 0));
    // Without reinjection, every tick is sent and none is made up for.
    let mut pit = programmed(2, 1000);
    pit.set_reinject(false);
    assert!(pit.expire(at(1000)) && pit.expire(at(5500)) && !pit.acknowledged());
}

#[test]
fn hpet_legacy_silences_channel_0() {
    let mut pit = programmed(2, 1000);
    let state = pit.state();
    pit.reload(&state.channels, PIT_FLAGS_HPET_LEGACY, None, T0);
    assert_eq!((pit.deadline(), pit.expire(at(5000))), (None, false));
}

#[test]
fn state_round_trip_and_reload() {
    let mut pit = programmed(2, 1000);
    load(&mut pit, 2, 0, 500, at(10));
    pit.write(0x61, 3, at(20)).unwrap();
    pit.write(0x43, 0xc6, at(700)).unwrap();
    pit.write(0x61, 2, at(120)).unwrap();
    let _ = pit.expire(at(3500));
    let mut other = Pit::default();
    other.set_state(&pit.state());
    assert_eq!(other, pit);
    // As KVM_SET_PIT2: counts begin again now; a held one stays held.
    let state = pit.state();
    let mut other = Pit::default();
    other.reload(&state.channels, state.flags, None, 77);
    assert_eq!(other.deadline(), Some(77 + (at(1000) - T0)));
    assert_eq!(other.state().flags, PIT_FLAGS_SPEAKER_DATA_ON);
    assert_eq!(other.read(0x40, 77), pit.read(0x40, at(700)), "the latched status came along");
    let counter = |pit: &mut Pit, now| pit.state().channels[2].counter(now);
    assert_eq!((counter(&mut other, 9999), counter(&mut pit, at(9999))), (400, 400));
}

proptest::proptest! {
    /// Whatever a guest or a restored state says, nothing panics, and a deadline that is kept brings a tick.
    #[test]
    fn any_operations(
        channels in proptest::collection::vec(proptest::prelude::any::<(u32, [u8; 10], i64)>(), 3),
        ops in proptest::collection::vec((0u16..5, proptest::prelude::any::<u8>(), 0u64..5_000_000), 1..60),
    ) {
        let mut pit = Pit::default();
        let mut restored = [PitChannelState::default(); 3];
        for (channel, (count, bytes, count_load_time)) in restored.iter_mut().zip(channels) {
            let [count_latched, status_latched, status, read_state, write_state, write_latch, rw_mode, mode, bcd,
                gate] = bytes;
            *channel = PitChannelState {
                count, latched_count: 0x1234, count_latched, status_latched, status, read_state, write_state,
                write_latch, rw_mode, mode: mode % 8, bcd: bcd & 1, gate: gate & 1, count_load_time,
            };
        }
        pit.set_state(&PitState { channels: restored, ..pit.state() });
        pit.set_reinject(false);
        let mut now = T0;
        for (op, value, step) in ops {
            now += step;
            let port = [0x40, 0x41, 0x42, 0x43, 0x61][usize::from(op)];
            pit.read(port, now);
            pit.out(2, now);
            pit.write(port, value, now);
            if let Some(deadline) = pit.deadline()
                && deadline < u64::MAX
            {
                proptest::prop_assert!(pit.expire(deadline.max(now)));
                now = deadline.max(now).min(1 << 62);
            }
        }
    }
}

#[test]
fn a_reloaded_pit_with_its_phase_goes_on() {
    let mut pit = Pit::default();
    for (port, value) in [(0x43, 0x34), (0x40, 0), (0x40, 0x10)] {
        pit.write(port, value, T0);
    }
    let first = pit.deadline().unwrap();
    assert!(pit.expire(first));
    // One tick is under way, and a second one not seen yet.
    let now = pit.deadline().unwrap() + 5;
    let mut other = Pit::default();
    let s = pit.state();
    other.reload(&s.channels, s.flags, pit.phase(now), now);
    assert_eq!(other.state(), s);
    // On another host's clock.
    other.reload(&s.channels, s.flags, pit.phase(now), now + 1_000_000);
    assert_eq!(other.deadline().map(|d| d - 1_000_000), pit.deadline());
    assert_eq!(other.read(0x40, now + 1_000_000), pit.read(0x40, now));
}
