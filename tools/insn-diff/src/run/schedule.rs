//! Which cases are executed, in which order: a sequence of units that depends on the seed alone, handed out to the workers.
//!
//! A round visits every cell of the denominator once; a unit is a part of a round in one mode, as many cases as the oracle
//! takes at once. Every eighth unit is wild: mutated and random bytes. Each unit has a generator of its own, so that its cases do not
//! depend on who executes it, or when.

use crate::case::{Bits, Case};
use crate::coverage::Cell;
use crate::generate::Generator;
use std::sync::atomic::{AtomicU64, Ordering};

/// A unit in so many is wild.
const WILD: u64 = 8;

/// The cells of one mode.
pub(super) struct Field {
    /// The mode.
    pub(super) bits: Bits,
    /// What is visited.
    pub(super) cells: Vec<Cell>,
}

/// The sequence.
pub(super) struct Schedule {
    fields: Vec<Field>,
    seed: u64,
    unit: usize,
    next: AtomicU64,
    /// Units in all, if they are bounded.
    end: Option<u64>,
    wild: bool,
}

/// A part of the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit(u64);

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

impl Schedule {
    /// Units of `unit` cases over these cells; `rounds` bounds them.
    pub(super) fn new(
        fields: Vec<Field>,
        seed: u64,
        unit: usize,
        rounds: Option<u64>,
        wild: bool,
    ) -> Schedule {
        let fields: Vec<Field> = fields.into_iter().filter(|f| !f.cells.is_empty()).collect();
        let mut schedule = Schedule { fields, seed, unit, next: AtomicU64::new(0), end: None, wild };
        schedule.end =
            if schedule.fields.is_empty() { Some(0) } else { rounds.map(|n| n * schedule.round()) };
        schedule
    }

    /// Units of a round.
    fn round(&self) -> u64 {
        let directed: u64 = self.fields.iter().map(|f| self.parts(f)).sum();
        if self.wild { directed + directed.div_ceil(WILD - 1) } else { directed }
    }

    fn parts(&self, field: &Field) -> u64 {
        field.cells.len().div_ceil(self.unit) as u64
    }

    /// The next unit that nobody has taken.
    pub(super) fn take(&self) -> Option<Unit> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        self.end.is_none_or(|end| n < end).then_some(Unit(n))
    }

    /// How much of a bounded sequence is handed out, 0 to 1.
    pub(super) fn fraction(&self) -> Option<f64> {
        let end = self.end?;
        Some((self.next.load(Ordering::Relaxed) as f64 / end.max(1) as f64).min(1.0))
    }

    /// The cases of a unit.
    pub(super) fn cases(&self, Unit(n): Unit) -> Vec<Case> {
        let round = n / self.round();
        let at = n % self.round();
        let seed = mix(self.seed ^ mix(n.wrapping_add(1)));
        if self.wild && at % WILD == WILD - 1 {
            let field = &self.fields[(at / WILD + round) as usize % self.fields.len()];
            let mut generator = Generator::with_seed(field.bits, seed);
            return (0..self.unit).map(|_| generator.wild()).collect();
        }
        let directed = if self.wild { at - at / WILD } else { at };
        let Some((field, part)) = self.find(directed) else { return Vec::new() };
        let mut generator = Generator::with_seed(field.bits, seed);
        let from = part as usize * self.unit;
        let to = field.cells.len().min(from + self.unit);
        field.cells[from..to].iter().filter_map(|cell| generator.case(cell)).collect()
    }

    /// Parts of the modes alternate, so that a short run sees all modes.
    fn find(&self, mut at: u64) -> Option<(&Field, u64)> {
        let mut part = 0;
        loop {
            let mut alive = false;
            for field in &self.fields {
                if part < self.parts(field) {
                    alive = true;
                    if at == 0 {
                        return Some((field, part));
                    }
                    at -= 1;
                }
            }
            if !alive {
                return None;
            }
            part += 1;
        }
    }
}
