//! The 8254 programmable interval timer, and port 0x61 which gates and reads its channel 2.
//!
//! Counters are not stepped: a channel knows when its count was loaded, and everything is computed from the time that
//! the caller passes in. The rising edges of channel 0's output become IRQ 0; [`Pit::deadline`] says when the next one
//! is, [`Pit::expire`] takes those that passed, and missed ticks are made up for one by one as the guest acknowledges
//! (KVM_REINJECT_CONTROL). Intel 8254 data sheet; names and encodings of the state are those of `kvm_pit_state2`.
//!
//! A new count takes effect at once, as under KVM, not at the end of the current period.

#[cfg(test)]
mod tests;

/// The clock of all three channels, in Hz.
pub const PIT_HZ: u64 = 1_193_182;
const NS_PER_SEC: u64 = 1_000_000_000;
/// KVM's floor for a periodic timer, 200 us, in clocks of the PIT: a guest cannot ask for a storm of host timers.
const MIN_PERIOD_CLOCKS: u64 = 239;
/// `mode` of a channel that was never programmed.
const MODE_NONE: u8 = 0xff;
/// Flag: the HPET has taken over the legacy interrupts, channel 0 drives nothing.
pub const PIT_FLAGS_HPET_LEGACY: u32 = 1;
/// Flag: bit 1 of port 0x61.
pub const PIT_FLAGS_SPEAKER_DATA_ON: u32 = 2;

/// `read_state`, `write_state`, `rw_mode`, `count_latched`: which byte comes next; 1 is the low byte alone.
mod byte {
    pub const MSB: u8 = 2;
    pub const WORD0: u8 = 3;
    pub const WORD1: u8 = 4;
}

/// `count_load_time` of a one-shot (modes 1 and 5) that waits for its gate.
const NOT_TRIGGERED: i64 = i64::MIN;

/// One channel. Names and values are those of `kvm_pit_channel_state`; all that a channel remembers is in them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PitChannelState {
    /// The count in clocks, 1 to 65536; 0 if a control word was written and no count yet ("null count").
    pub count: u32,
    /// What a latch command caught.
    pub latched_count: u16,
    /// 0, or which byte of `latched_count` is read next.
    pub count_latched: u8,
    /// A status byte waits to be read.
    pub status_latched: u8,
    /// The status byte.
    pub status: u8,
    /// Which byte is read next.
    pub read_state: u8,
    /// Which byte is written next.
    pub write_state: u8,
    /// The low byte of a word that is half written.
    pub write_latch: u8,
    /// Read/write mode of the control word.
    pub rw_mode: u8,
    /// Mode 0 to 5, or 0xff before the first control word.
    pub mode: u8,
    /// Count in four decades.
    pub bcd: u8,
    /// The gate input.
    pub gate: u8,
    /// When the count was loaded (monotonic nanoseconds). While the gate holds the count: minus one, minus the
    /// nanoseconds counted so far. The least value: a one-shot that was not triggered.
    pub count_load_time: i64,
}

impl PitChannelState {
    fn is_gate_triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    /// Nanoseconds that the channel has counted; `None` if it has not begun.
    fn elapsed_ns(&self, now: u64) -> Option<u64> {
        if self.count == 0 || self.count_load_time == NOT_TRIGGERED || self.mode == MODE_NONE {
            return None;
        }
        match u64::try_from(self.count_load_time) {
            Ok(loaded) if self.gate != 0 || self.is_gate_triggered() => Some(now.saturating_sub(loaded)),
            // The gate is low, yet nobody stopped the count: a state that was restored.
            Ok(_) => Some(0),
            Err(_) => Some(!self.count_load_time as u64),
        }
    }

    fn clocks(&self, now: u64) -> Option<u64> {
        let ns = self.elapsed_ns(now)?;
        // Below 2^64 * 0.0012: fits.
        Some((u128::from(ns) * u128::from(PIT_HZ) / u128::from(NS_PER_SEC)) as u64)
    }

    /// The counting element, in binary.
    fn counter(&self, now: u64) -> u32 {
        let count = u64::from(self.count);
        let modulus = if self.bcd != 0 { 10_000 } else { 0x1_0000 };
        let value = match (self.clocks(now), self.mode) {
            (None, _) => count,
            (Some(clocks), 2) => count - clocks % count,
            // The square wave counts down in twos, twice a period.
            (Some(clocks), 3) => count - clocks.wrapping_mul(2) % count,
            // The others run on past zero.
            (Some(clocks), _) => (count + modulus - clocks % modulus) % modulus,
        };
        // Every branch is at most 65536, which reads as zero.
        (value % modulus) as u32
    }

    /// The counting element as the guest reads it.
    fn read_counter(&self, now: u64) -> u16 {
        let value = self.counter(now) as u16;
        if self.bcd == 0 {
            return value;
        }
        let decade = |divisor: u16| value / divisor % 10;
        decade(1000) << 12 | decade(100) << 8 | decade(10) << 4 | decade(1)
    }

    /// The output pin.
    pub fn out(&self, now: u64) -> bool {
        let count = u64::from(self.count);
        match (self.mode, self.clocks(now)) {
            (0, None) => false,
            (_, None) => true,
            (0 | 1, Some(clocks)) => clocks >= count,
            (2, Some(clocks)) => self.gate == 0 || clocks % count != count - 1,
            (3, Some(clocks)) => self.gate == 0 || clocks % count < count.div_ceil(2),
            (4 | 5, Some(clocks)) => clocks != count,
            _ => true,
        }
    }

    /// Clocks from one rising edge of the output to the next, and clocks to the first: `None` for one edge only.
    fn edges(&self) -> (Option<u64>, u64) {
        let count = u64::from(self.count);
        match self.mode {
            2 | 3 => {
                let period = count.max(MIN_PERIOD_CLOCKS);
                (Some(period), period)
            }
            4 | 5 => (None, count + 1),
            _ => (None, count),
        }
    }

    /// Rising edges of the output since the count was loaded.
    fn edges_until(&self, now: u64) -> u64 {
        let Some(clocks) = self.clocks(now) else { return 0 };
        match self.edges() {
            (Some(period), _) => clocks / period,
            (None, first) => u64::from(clocks >= first),
        }
    }

    /// When rising edge number `n` (from 0) comes.
    fn edge_time(&self, n: u64) -> Option<u64> {
        if self.count == 0 || self.mode > 5 || (self.gate == 0 && !self.is_gate_triggered()) {
            return None;
        }
        let loaded = u64::try_from(self.count_load_time).ok()?;
        let clocks = match self.edges() {
            (Some(period), _) => u128::from(period) * (u128::from(n) + 1),
            (None, first) if n == 0 => u128::from(first),
            (None, _) => return None,
        };
        let ns = (clocks * u128::from(NS_PER_SEC)).div_ceil(u128::from(PIT_HZ));
        Some(loaded.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX)))
    }

    /// A whole count was written.
    fn load(&mut self, value: u16, now: u64) {
        let value = u32::from(value);
        self.count = match (self.bcd != 0, value) {
            (false, 0) => 0x1_0000,
            (true, 0) => 10_000,
            (false, _) => value,
            (true, _) => {
                (value >> 12) * 1000 + (value >> 8 & 0xf) * 100 + (value >> 4 & 0xf) * 10 + (value & 0xf)
            }
        };
        self.start(now, !self.is_gate_triggered());
    }

    /// The count starts over: now, when the gate opens, or when it triggers.
    fn start(&mut self, now: u64, triggered: bool) {
        self.count_load_time = if self.is_gate_triggered() {
            if triggered { to_time(now) } else { NOT_TRIGGERED }
        } else if self.gate != 0 {
            to_time(now)
        } else {
            -1
        };
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        let rising = gate && self.gate == 0;
        let falling = !gate && self.gate != 0;
        if falling && matches!(self.mode, 0 | 2 | 3 | 4) {
            // Held: what was counted so far is kept.
            if let Some(ns) = self.elapsed_ns(now) {
                self.count_load_time = !to_time(ns);
            }
        }
        self.gate = u8::from(gate);
        if rising && self.count != 0 {
            match self.mode {
                1 | 2 | 3 | 5 => self.start(now, true),
                0 | 4 if self.count_load_time < 0 => {
                    let counted = !self.count_load_time as u64;
                    self.count_load_time = to_time(now).saturating_sub_unsigned(counted);
                }
                _ => {}
            }
        }
    }

    fn latch_count(&mut self, now: u64) {
        if self.count_latched == 0 {
            self.latched_count = self.read_counter(now);
            self.count_latched = self.rw_mode;
        }
    }

    fn latch_status(&mut self, now: u64) {
        if self.status_latched == 0 {
            self.status = u8::from(self.out(now)) << 7
                | u8::from(self.count == 0) << 6
                | (self.rw_mode & 3) << 4
                | (self.mode & 7) << 1
                | self.bcd & 1;
            self.status_latched = 1;
        }
    }

    fn write_control(&mut self, value: u8) {
        self.rw_mode = value >> 4 & 3;
        self.read_state = self.rw_mode;
        self.write_state = self.rw_mode;
        // Modes 6 and 7 are 2 and 3.
        let mode = value >> 1 & 7;
        self.mode = if mode > 5 { mode - 4 } else { mode };
        self.bcd = value & 1;
        self.count_latched = 0;
        self.status_latched = 0;
        self.count = 0;
    }

    fn write_count(&mut self, value: u8, now: u64) {
        match self.write_state {
            byte::MSB => self.load(u16::from(value) << 8, now),
            byte::WORD0 => {
                self.write_latch = value;
                self.write_state = byte::WORD1;
                if self.mode == 0 {
                    // The first byte of a new count stops mode 0 (data sheet, mode 0).
                    self.count = 0;
                }
            }
            byte::WORD1 => {
                self.write_state = byte::WORD0;
                self.load(u16::from(value) << 8 | u16::from(self.write_latch), now);
            }
            _ => self.load(u16::from(value), now),
        }
    }

    fn read(&mut self, now: u64) -> u8 {
        if self.status_latched != 0 {
            self.status_latched = 0;
            return self.status;
        }
        if self.count_latched != 0 {
            let [low, high] = self.latched_count.to_le_bytes();
            let (value, next) = match self.count_latched {
                byte::MSB => (high, 0),
                byte::WORD0 => (low, byte::MSB),
                _ => (low, 0),
            };
            self.count_latched = next;
            return value;
        }
        let [low, high] = self.read_counter(now).to_le_bytes();
        match self.read_state {
            byte::MSB => high,
            byte::WORD0 => {
                self.read_state = byte::WORD1;
                low
            }
            byte::WORD1 => {
                self.read_state = byte::WORD0;
                high
            }
            _ => low,
        }
    }
}

/// Monotonic nanoseconds as the signed type of the state. 292 years fit.
fn to_time(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

/// Everything a PIT remembers. `kvm_pit_state2` has the first two.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PitState {
    /// The channels.
    pub channels: [PitChannelState; 3],
    /// `PIT_FLAGS_*`.
    pub flags: u32,
    /// Edges of channel 0 since its count was loaded that [`Pit::expire`] has seen.
    pub edges_seen: u64,
    /// Make up for missed ticks (KVM_REINJECT_CONTROL).
    pub reinject: bool,
    /// Ticks not acknowledged yet, the one under way included.
    pub pending: u32,
    /// IRQ 0 is free: the last tick was acknowledged.
    pub irq_ack: bool,
}

/// What `kvm_pit_channel_state` has no place for: with it a restored PIT ticks on as if nothing had happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PitPhase {
    /// When the state was read, on the clock of `count_load_time`.
    pub read_at: u64,
    /// Edges of channel 0 up to then that [`Pit::expire`] had not seen.
    pub unseen: u32,
    /// [`PitState::pending`].
    pub pending: u32,
    /// [`PitState::irq_ack`].
    pub irq_ack: bool,
}

/// A PIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pit {
    state: PitState,
}

impl Default for Pit {
    fn default() -> Pit {
        let channel =
            |gate| PitChannelState { count: 0x1_0000, mode: MODE_NONE, gate, ..PitChannelState::default() };
        Pit {
            state: PitState {
                channels: [channel(1), channel(1), channel(0)],
                flags: 0,
                edges_seen: 0,
                reinject: true,
                pending: 0,
                irq_ack: true,
            },
        }
    }
}

impl Pit {
    // ---- Ports ----------------------------------------------------------------------------------------------------

    /// A byte read from port 0x40 to 0x43 or 0x61; `None` for any other.
    pub fn read(&mut self, port: u16, now: u64) -> Option<u8> {
        match port {
            0x43 => Some(0),
            0x61 => Some(self.read_speaker(now)),
            _ => {
                let channel = self.state.channels.get_mut(usize::from(port.checked_sub(0x40)?))?;
                Some(channel.read(now))
            }
        }
    }

    /// A byte written to port 0x40 to 0x43 or 0x61; `None` for any other. Ask [`Pit::deadline`] again afterwards.
    pub fn write(&mut self, port: u16, value: u8, now: u64) -> Option<()> {
        match port {
            0x43 => self.write_control(value, now),
            0x61 => {
                let data = if value & 2 != 0 { PIT_FLAGS_SPEAKER_DATA_ON } else { 0 };
                self.state.flags = self.state.flags & !PIT_FLAGS_SPEAKER_DATA_ON | data;
                self.set_gate(2, value & 1 != 0, now);
            }
            _ => {
                let number = usize::from(port.checked_sub(0x40)?);
                let channel = self.state.channels.get_mut(number)?;
                let loads = channel.write_state != byte::WORD0;
                channel.write_count(value, now);
                if number == 0 && loads {
                    self.restart_ticks();
                }
            }
        }
        Some(())
    }

    fn write_control(&mut self, value: u8, now: u64) {
        let number = usize::from(value >> 6);
        if let Some(channel) = self.state.channels.get_mut(number) {
            if value & 0x30 == 0 {
                channel.latch_count(now);
                return;
            }
            channel.write_control(value);
            if number == 0 {
                self.restart_ticks();
            }
            return;
        }
        // Read-back command: bits 5 and 4 are active low.
        for (number, channel) in self.state.channels.iter_mut().enumerate() {
            if value & 2 << number == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                channel.latch_count(now);
            }
            if value & 0x10 == 0 {
                channel.latch_status(now);
            }
        }
    }

    /// Port 0x61: gate, speaker, refresh toggle (about every 15 us), output of channel 2.
    fn read_speaker(&self, now: u64) -> u8 {
        let channel = &self.state.channels[2];
        u8::from(channel.gate != 0)
            | u8::from(self.state.flags & PIT_FLAGS_SPEAKER_DATA_ON != 0) << 1
            | ((now >> 14 & 1) as u8) << 4
            | u8::from(channel.out(now)) << 5
    }

    /// Drives the gate of a channel. Those of channels 0 and 1 are wired high in a PC.
    pub fn set_gate(&mut self, channel: usize, gate: bool, now: u64) {
        if let Some(state) = self.state.channels.get_mut(channel) {
            let rising = gate && state.gate == 0;
            state.set_gate(gate, now);
            if channel == 0 && rising {
                self.restart_ticks();
            }
        }
    }

    /// The output of a channel.
    pub fn out(&self, channel: usize, now: u64) -> bool {
        self.state.channels.get(channel).is_some_and(|state| state.out(now))
    }

    // ---- IRQ 0 ----------------------------------------------------------------------------------------------------

    /// A new count begins: its edges are counted from zero, and ticks of the old one are not made up for.
    fn restart_ticks(&mut self) {
        self.state.edges_seen = 0;
        self.reset_reinjection();
    }

    /// Forgets missed ticks: a new count was loaded, or IRQ 0 was unmasked.
    pub fn reset_reinjection(&mut self) {
        self.state.pending = 0;
        self.state.irq_ack = true;
    }

    /// KVM_REINJECT_CONTROL.
    pub fn set_reinject(&mut self, reinject: bool) {
        self.state.reinject = reinject;
        self.reset_reinjection();
    }

    /// When [`Pit::expire`] must be called next, in monotonic nanoseconds.
    pub fn deadline(&self) -> Option<u64> {
        if self.state.flags & PIT_FLAGS_HPET_LEGACY != 0 {
            return None;
        }
        self.state.channels[0].edge_time(self.state.edges_seen)
    }

    /// Takes the ticks up to `now`. True: pulse IRQ 0 now.
    pub fn expire(&mut self, now: u64) -> bool {
        let edges = self.state.channels[0].edges_until(now);
        let new = edges.saturating_sub(self.state.edges_seen);
        if new == 0 {
            return false;
        }
        self.state.edges_seen = edges;
        if self.state.flags & PIT_FLAGS_HPET_LEGACY != 0 {
            return false;
        }
        if !self.state.reinject {
            return true;
        }
        let new = u32::try_from(new).unwrap_or(u32::MAX);
        self.state.pending = self.state.pending.saturating_add(new);
        core::mem::replace(&mut self.state.irq_ack, false)
    }

    /// The guest acknowledged IRQ 0. True: a missed tick is due, pulse IRQ 0 again.
    pub fn acknowledged(&mut self) -> bool {
        self.state.pending = self.state.pending.saturating_sub(1);
        self.state.irq_ack = self.state.pending == 0;
        self.state.reinject && self.state.pending != 0
    }

    // ---- State ----------------------------------------------------------------------------------------------------

    /// Everything, as it is.
    pub fn state(&self) -> PitState {
        self.state.clone()
    }

    /// The inverse of [`Pit::state`]. Times in it must be on the same base as before.
    pub fn set_state(&mut self, state: &PitState) {
        self.state = state.clone();
        for channel in &mut self.state.channels {
            channel.count = channel.count.min(0x1_0000);
        }
    }

    /// What goes with the channels at `now`; nothing while no channel was ever given a mode.
    pub fn phase(&self, now: u64) -> Option<PitPhase> {
        if self.state.channels.iter().all(|c| c.mode == MODE_NONE) {
            return None;
        }
        let edges = self.state.channels[0].edges_until(now);
        Some(PitPhase {
            read_at: now,
            unseen: u32::try_from(edges.saturating_sub(self.state.edges_seen)).unwrap_or(u32::MAX),
            pending: self.state.pending,
            irq_ack: self.state.irq_ack,
        })
    }

    /// KVM_SET_PIT2: takes over channels and flags. With the phase the counts go on from where they were when the state was
    /// read; without it each begins again now, as under KVM: the times in the channels may be another host's.
    pub fn reload(&mut self, channels: &[PitChannelState; 3], flags: u32, phase: Option<PitPhase>, now: u64) {
        self.set_state(&PitState { channels: *channels, flags, ..self.state.clone() });
        let Some(PitPhase { read_at, unseen, pending, irq_ack }) = phase else {
            for channel in &mut self.state.channels {
                if channel.count_load_time >= 0 && channel.mode != MODE_NONE {
                    channel.start(now, true);
                }
            }
            self.restart_ticks();
            return;
        };
        for channel in &mut self.state.channels {
            // A held count is negative, and means a length of time.
            if channel.count_load_time >= 0 {
                channel.count_load_time = channel
                    .count_load_time
                    .saturating_add_unsigned(now)
                    .saturating_sub_unsigned(read_at)
                    .max(0);
            }
        }
        let edges = self.state.channels[0].edges_until(now);
        self.state.edges_seen = edges.saturating_sub(unseen.into());
        self.state.pending = pending;
        self.state.irq_ack = irq_ack;
    }
}
