//! What has been executed: distinct inputs per cell, and the report over them. What there is to execute is `denominator`'s.

use super::{Cell, Class, Denominator, cell_of, decode, extension};
use crate::{Case, Outcome, layout};
use iced_x86::Code;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Executions with inputs that differ, on both sides and without #UD, that make a cell reached.
const ENOUGH: usize = 16;

/// How far a cell has come.
#[derive(Clone, Default, Debug)]
pub struct Reached {
    /// Hashes of distinct inputs, at most [`ENOUGH`].
    inputs: Vec<u64>,
    /// All executions on both sides without #UD.
    pub executed: u64,
}

impl Reached {
    /// Distinct inputs; it stops at 16.
    pub fn distinct(&self) -> usize {
        self.inputs.len()
    }

    fn add(&mut self, input: u64) {
        if self.inputs.len() < ENOUGH && !self.inputs.contains(&input) {
            self.inputs.push(input);
        }
    }
}

/// Counts per cell.
#[derive(Clone, Default, Debug)]
pub struct Coverage {
    cells: HashMap<Cell, Reached>,
}

/// The cells of an extension.
#[derive(Clone, Copy, Default, Debug)]
struct Row {
    offered: usize,
    reached: usize,
    withheld: usize,
    unreachable: usize,
}

impl Row {
    fn add(&mut self, class: &Class, reached: bool) {
        match class {
            Class::Offered => {
                self.offered += 1;
                self.reached += usize::from(reached);
            }
            Class::Withheld(_) => self.withheld += 1,
            Class::Unreachable(_) => self.unreachable += 1,
        }
    }

    fn all(&self) -> usize {
        self.offered + self.withheld + self.unreachable
    }
}

fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 { 100.0 } else { 100.0 * part as f64 / whole as f64 }
}

impl Coverage {
    /// Nothing yet.
    pub fn new() -> Coverage {
        Coverage::default()
    }

    /// Counts a case that both machines executed, unless one raised #UD on it or could not fetch all of it.
    pub fn count(&mut self, case: &Case, oracle: &Outcome, engine: &Outcome) {
        let undefined = |o: &Outcome| o.vector == 6 && o.rip == case.rip();
        if undefined(oracle) || undefined(engine) {
            return;
        }
        let instruction = decode(case);
        if case.code_offset as u64 + instruction.len() as u64 > layout::PAGE {
            return;
        }
        let Some(cell) = cell_of(case.bits, &instruction) else {
            return;
        };
        let reached = self.cells.entry(cell).or_default();
        reached.executed += 1;
        if reached.inputs.len() < ENOUGH {
            reached.add(input_hash(case));
        }
    }

    /// How far a cell has come.
    pub fn of(&self, cell: &Cell) -> Reached {
        self.cells.get(cell).cloned().unwrap_or_default()
    }

    /// Whether a cell has been executed often enough.
    pub fn is_reached(&self, cell: &Cell) -> bool {
        self.cells.get(cell).is_some_and(|r| r.inputs.len() >= ENOUGH)
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Coverage) {
        for (cell, theirs) in &other.cells {
            let ours = self.cells.entry(*cell).or_default();
            ours.executed += theirs.executed;
            theirs.inputs.iter().for_each(|input| ours.add(*input));
        }
    }

    /// Reached cells among those that are offered, and their number.
    pub fn totals(&self, denominator: &Denominator) -> (usize, usize) {
        let total = self.total(denominator);
        (total.reached, total.offered)
    }

    fn total(&self, denominator: &Denominator) -> Row {
        let mut total = Row::default();
        for cell in &denominator.cells {
            total.add(denominator.class(cell), self.is_reached(cell));
        }
        total
    }

    fn rows(&self, denominator: &Denominator) -> BTreeMap<String, Row> {
        let mut names: HashMap<Code, String> = HashMap::new();
        let mut rows: BTreeMap<String, Row> = BTreeMap::new();
        for cell in &denominator.cells {
            let name = names.entry(cell.code).or_insert_with(|| extension(cell.code));
            rows.entry(name.clone()).or_default().add(denominator.class(cell), self.is_reached(cell));
        }
        rows
    }

    /// Cells that are not reached, with their class.
    pub fn missing<'a>(&self, denominator: &'a Denominator) -> Vec<(Cell, &'a Class)> {
        let cells = denominator.cells.iter().filter(|cell| !self.is_reached(cell));
        cells.map(|cell| (*cell, denominator.class(cell))).collect()
    }

    /// What is withheld or unreachable, by reason: how many cells.
    fn reasons(denominator: &Denominator) -> BTreeMap<String, usize> {
        let mut reasons = BTreeMap::new();
        for cell in &denominator.cells {
            let reason = match denominator.class(cell) {
                Class::Offered => continue,
                Class::Withheld(why) => format!("withheld: {why}"),
                Class::Unreachable(why) => format!("unreachable: {why}"),
            };
            *reasons.entry(reason).or_default() += 1;
        }
        reasons
    }

    /// The report by extension, as text.
    pub fn report(&self, denominator: &Denominator) -> String {
        let mut text = String::new();
        let bits = denominator.bits.number();
        let mut line = |name: &str, row: &Row| {
            let _ = writeln!(
                text,
                "{name:<34} {:>7} {:>7} {:>6.1}% {:>9} {:>12} {:>6.1}%",
                row.offered,
                row.reached,
                percent(row.reached, row.offered),
                row.withheld,
                row.unreachable,
                percent(row.reached, row.all()),
            );
        };
        for (name, row) in &self.rows(denominator) {
            line(name, row);
        }
        line("all", &self.total(denominator));
        let head = format!(
            "coverage in {bits}-bit code\n{:<34} {:>7} {:>7} {:>7} {:>9} {:>12} {:>7}\n",
            "extension", "offered", "reached", "", "withheld", "unreachable", "of all"
        );
        for (reason, cells) in Coverage::reasons(denominator) {
            let _ = writeln!(text, "  {cells:>6} {reason}");
        }
        head + &text
    }

    /// The report, as JSON. `missing` holds offered cells; the others are counted by reason.
    pub fn to_json(&self, denominator: &Denominator) -> serde_json::Value {
        let row = |row: &Row| {
            serde_json::json!({
                "offered": row.offered,
                "reached": row.reached,
                "withheld": row.withheld,
                "unreachable": row.unreachable,
            })
        };
        let rows = self.rows(denominator);
        let extensions: serde_json::Map<String, serde_json::Value> =
            rows.iter().map(|(name, r)| (name.clone(), row(r))).collect();
        let missing: Vec<String> = self
            .missing(denominator)
            .iter()
            .filter(|(_, class)| **class == Class::Offered)
            .map(|(cell, _)| format!("{cell} ({} of {ENOUGH})", self.of(cell).distinct()))
            .collect();
        serde_json::json!({
            "bits": denominator.bits.number(),
            "all": row(&self.total(denominator)),
            "extensions": extensions,
            "missing": missing,
            "reasons": Coverage::reasons(denominator),
            "excluded": denominator.excluded,
        })
    }
}

/// A number that tells inputs apart.
fn input_hash(case: &Case) -> u64 {
    let mut hasher = DefaultHasher::new();
    case.bytes.hash(&mut hasher);
    case.gpr.hash(&mut hasher);
    (case.rflags, case.selectors, case.fs_base, case.gs_base).hash(&mut hasher);
    case.xsave.hash(&mut hasher);
    case.memory.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bits, End, coverage::classify};

    fn nop(rax: u64) -> Case {
        let mut gpr = [0; 16];
        gpr[0] = rax;
        Case {
            bits: Bits::Bits64,
            end: End::Trap,
            bytes: vec![0x90],
            code_offset: 0,
            gpr,
            rflags: 2,
            selectors: [0; 6],
            fs_base: 0,
            gs_base: 0,
            xsave: Box::new([0; crate::case::XSAVE]),
            memory: Vec::new(),
        }
    }

    fn outcome(vector: u8, rip: u64) -> Outcome {
        Outcome {
            vector,
            error_code: 0,
            cr2: 0,
            gpr: [0; 16],
            rip,
            rflags: 2,
            selectors: [0; 6],
            fs_base: 0,
            gs_base: 0,
            xsave: Box::new([0; crate::case::XSAVE]),
            memory: Vec::new(),
        }
    }

    #[test]
    fn sixteen_distinct_inputs_reach_a_cell() {
        let mut coverage = Coverage::new();
        let cell = classify(&nop(0)).expect("NOP");
        let done = outcome(6, layout::CODE + 1);
        for rax in 0..15 {
            coverage.count(&nop(rax), &done, &done);
            coverage.count(&nop(rax), &done, &done);
        }
        assert_eq!((coverage.of(&cell).distinct(), coverage.of(&cell).executed), (15, 30));
        let mut other = Coverage::new();
        other.count(&nop(3), &done, &done);
        let undefined = outcome(6, layout::CODE);
        other.count(&nop(99), &undefined, &done);
        other.count(&nop(99), &done, &undefined);
        coverage.merge(&other);
        assert!(!coverage.is_reached(&cell));
        coverage.count(&nop(15), &done, &done);
        assert!(coverage.is_reached(&cell));
    }

    #[test]
    fn the_report_has_every_extension() {
        let denominator = Denominator::of_host(Bits::Bits64);
        let coverage = Coverage::new();
        let text = coverage.report(&denominator);
        assert!(text.contains("SSE2") && text.contains("unreachable: #UD by definition"), "{text}");
        let json = coverage.to_json(&denominator);
        let offered = json["all"]["offered"].as_u64().unwrap_or(0) as usize;
        assert_eq!(json["missing"].as_array().map(Vec::len), Some(offered));
        assert_eq!(coverage.totals(&denominator), (0, offered));
    }
}
