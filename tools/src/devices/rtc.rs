//! The CMOS real-time clock and its battery-backed bytes (MC146818A), at the host's time.
//!
//! Time, date, update-in-progress, binary or BCD, 12 or 24 hours, and setting the clock are here. Alarm and
//! periodic interrupts are not: the machine's timers are the PIT and the local APICs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Register A: the time registers are about to change.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Register A at reset: 32.768 kHz time base, periodic rate 1024 Hz.
const STATUS_A_RESET: u8 = 0x26;
/// Register B: the clock stands still while it is set.
const SET: u8 = 1 << 7;
/// Register B: binary, not BCD.
const BINARY: u8 = 1 << 2;
/// Register B: 24 hours.
const HOURS_24: u8 = 1 << 1;
/// Register D: the battery is good.
const VALID_RAM_AND_TIME: u8 = 1 << 7;
const PM: u8 = 1 << 7;
/// UIP rises 244 us before an update, which takes 1984 us (data sheet, table 6).
const UPDATE: Duration = Duration::from_micros(244 + 1984);

/// The clock.
#[derive(Debug)]
pub struct Rtc {
    selected: u8,
    bytes: [u8; 128],
    /// Guest time minus host time, in seconds.
    offset: i64,
    /// The date while SET holds it still.
    held: Option<Date>,
}

/// A date and time of the proleptic Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Date {
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
    /// 1 is Sunday.
    weekday: u8,
}

impl Date {
    fn from_unix(seconds: i64) -> Date {
        let days = seconds.div_euclid(86_400);
        let in_day = seconds.rem_euclid(86_400);
        // Eras of 400 years that start on 1 March, so that the leap day is a year's last.
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Date {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * march_month + 2) / 5 + 1) as u8,
            hour: (in_day / 3600) as u8,
            minute: (in_day / 60 % 60) as u8,
            second: (in_day % 60) as u8,
            weekday: ((days + 4).rem_euclid(7) + 1) as u8,
        }
    }

    fn to_unix(self) -> i64 {
        let year = self.year - i64::from(self.month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let march_month = (i64::from(self.month) + 9) % 12;
        let day_of_year = (153 * march_month + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        days * 86_400 + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }
}

impl Rtc {
    /// A clock at the host's time (UTC), BCD and 24 hours.
    pub fn new() -> Rtc {
        let mut bytes = [0; 128];
        bytes[usize::from(STATUS_A)] = STATUS_A_RESET;
        bytes[usize::from(STATUS_B)] = HOURS_24;
        Rtc { selected: 0, bytes, offset: 0, held: None }
    }

    /// Port 0x70: chooses a register. Bit 7 masks NMIs, of which this machine has none from there.
    pub fn select(&mut self, register: u8) {
        self.selected = register & 0x7f;
    }

    /// Port 0x71, read.
    pub fn read(&self) -> u8 {
        self.read_at(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// Port 0x71, write.
    pub fn write(&mut self, value: u8) {
        self.write_at(value, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    }

    fn stored(&self, register: u8) -> u8 {
        self.bytes[usize::from(register & 0x7f)]
    }

    fn date(&self, now: Duration) -> Date {
        self.held.unwrap_or_else(|| Date::from_unix(unix_seconds(now).wrapping_add(self.offset)))
    }

    fn read_at(&self, now: Duration) -> u8 {
        let date = self.date(now);
        match self.selected {
            SECONDS => self.encode(date.second),
            MINUTES => self.encode(date.minute),
            HOURS => self.encode_hour(date.hour),
            DAY_OF_WEEK => self.encode(date.weekday),
            DAY_OF_MONTH => self.encode(date.day),
            MONTH => self.encode(date.month),
            YEAR => self.encode(date.year.rem_euclid(100) as u8),
            CENTURY => self.encode(date.year.div_euclid(100).rem_euclid(100) as u8),
            STATUS_A => {
                let left = Duration::from_secs(1) - Duration::from_nanos(now.subsec_nanos().into());
                let updating = self.held.is_none() && left <= UPDATE;
                (self.stored(STATUS_A) & !UPDATE_IN_PROGRESS) | if updating { UPDATE_IN_PROGRESS } else { 0 }
            }
            STATUS_C => 0, // no interrupt is ever pending
            STATUS_D => VALID_RAM_AND_TIME,
            other => self.stored(other),
        }
    }

    fn write_at(&mut self, value: u8, now: Duration) {
        let mut date = self.date(now);
        match self.selected {
            SECONDS => date.second = self.decode(value).min(59),
            MINUTES => date.minute = self.decode(value).min(59),
            HOURS => date.hour = self.decode_hour(value).min(23),
            DAY_OF_WEEK => {} // follows from the date
            DAY_OF_MONTH => date.day = self.decode(value).clamp(1, 31),
            MONTH => date.month = self.decode(value).clamp(1, 12),
            YEAR => date.year = date.year.div_euclid(100) * 100 + i64::from(self.decode(value).min(99)),
            CENTURY => date.year = date.year.rem_euclid(100) + 100 * i64::from(self.decode(value).min(99)),
            STATUS_B => {
                self.bytes[usize::from(STATUS_B)] = value;
                match (value & SET != 0, self.held) {
                    (true, None) => self.held = Some(date),
                    (false, Some(set)) => {
                        self.offset = set.to_unix().wrapping_sub(unix_seconds(now));
                        self.held = None;
                    }
                    _ => {}
                }
                return;
            }
            STATUS_C | STATUS_D => return,
            other => {
                self.bytes[usize::from(other & 0x7f)] = value;
                return;
            }
        }
        if self.held.is_some() {
            self.held = Some(date);
        } else {
            self.offset = date.to_unix().wrapping_sub(unix_seconds(now));
        }
    }

    fn encode(&self, value: u8) -> u8 {
        if self.stored(STATUS_B) & BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.stored(STATUS_B) & BINARY != 0 {
            value
        } else {
            (value >> 4).saturating_mul(10) + (value & 0xf)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.stored(STATUS_B) & HOURS_24 != 0 {
            return self.encode(hour);
        }
        let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.stored(STATUS_B) & HOURS_24 != 0 {
            return self.decode(value);
        }
        let hour = self.decode(value & !PM) % 12;
        if value & PM != 0 { hour + 12 } else { hour }
    }
}

/// Whole seconds; the host's clock does not pass i64 in this universe.
fn unix_seconds(now: Duration) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(rtc: &mut Rtc, register: u8, now: Duration) -> u8 {
        rtc.select(register);
        rtc.read_at(now)
    }

    fn set(rtc: &mut Rtc, register: u8, value: u8, now: Duration) {
        rtc.select(register);
        rtc.write_at(value, now);
    }

    #[test]
    fn known_dates() {
        // date -u -d '...' +%s
        let cases = [
            (0, (1970, 1, 1, 0, 0, 0, 5)),
            (951_782_400, (2000, 2, 29, 0, 0, 0, 3)),
            (951_868_800, (2000, 3, 1, 0, 0, 0, 4)),
            (1_709_251_199, (2024, 2, 29, 23, 59, 59, 5)),
            (4_107_542_400, (2100, 3, 1, 0, 0, 0, 2)),
            (1_234_567_890, (2009, 2, 13, 23, 31, 30, 6)),
        ];
        for (seconds, (year, month, day, hour, minute, second, weekday)) in cases {
            let date = Date { year, month, day, hour, minute, second, weekday };
            assert_eq!(Date::from_unix(seconds), date);
            assert_eq!(date.to_unix(), seconds);
        }
        for day in 0..80_000i64 {
            assert_eq!(Date::from_unix(day * 86_400).to_unix(), day * 86_400);
        }
    }

    #[test]
    fn the_time_is_the_hosts_in_bcd() {
        let mut rtc = Rtc::new();
        let now = Duration::from_secs(1_234_567_890);
        let read = [SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY]
            .map(|register| at(&mut rtc, register, now));
        assert_eq!(read, [0x30, 0x31, 0x23, 0x06, 0x13, 0x02, 0x09, 0x20]);
        set(&mut rtc, STATUS_B, BINARY, now); // binary, 12 hours
        assert_eq!(at(&mut rtc, SECONDS, now), 30);
        assert_eq!(at(&mut rtc, HOURS, now), 11 | PM);
        assert_eq!(at(&mut rtc, STATUS_D, now), 0x80);
    }

    #[test]
    fn update_in_progress_precedes_the_full_second() {
        let mut rtc = Rtc::new();
        assert_eq!(at(&mut rtc, STATUS_A, Duration::from_millis(5_500)) & 0x80, 0);
        assert_eq!(at(&mut rtc, STATUS_A, Duration::from_micros(5_999_000)) & 0x80, 0x80);
        set(&mut rtc, STATUS_B, SET | HOURS_24, Duration::from_secs(5));
        assert_eq!(at(&mut rtc, STATUS_A, Duration::from_micros(5_999_000)) & 0x80, 0);
    }

    #[test]
    fn a_clock_that_was_set_runs_on() {
        let mut rtc = Rtc::new();
        let now = Duration::from_secs(1_000_000_000);
        set(&mut rtc, STATUS_B, SET | HOURS_24, now);
        for (register, value) in [
            (SECONDS, 0x50),
            (MINUTES, 0x59),
            (HOURS, 0x23),
            (DAY_OF_MONTH, 0x31),
            (MONTH, 0x12),
            (YEAR, 0x99),
            (CENTURY, 0x19),
        ] {
            set(&mut rtc, register, value, now);
        }
        assert_eq!(at(&mut rtc, SECONDS, now + Duration::from_secs(7)), 0x50, "held");
        set(&mut rtc, STATUS_B, HOURS_24, now);
        let later = now + Duration::from_secs(11);
        assert_eq!(at(&mut rtc, SECONDS, later), 0x01);
        assert_eq!(at(&mut rtc, YEAR, later), 0x00);
        assert_eq!(at(&mut rtc, CENTURY, later), 0x20);
    }

    #[test]
    fn no_register_value_panics() {
        let mut rtc = Rtc::new();
        for mode in [0, BINARY, HOURS_24, SET] {
            for register in 0..=255u8 {
                for value in 0..=255u8 {
                    set(&mut rtc, register, value, Duration::from_secs(1));
                    at(&mut rtc, register, Duration::from_secs(2));
                }
            }
            set(&mut rtc, STATUS_B, mode, Duration::from_secs(3));
        }
    }
}
