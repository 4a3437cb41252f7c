//! What `softkvm diff insn` prints: for people, and as JSON.

use insn_diff::coverage::{Class, Coverage, Denominator};
use insn_diff::engine::Executed;
use insn_diff::oracle::Answer;
use insn_diff::run::{Failure, Report, Verdict};
use insn_diff::{Case, describe, text};
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write;

/// A run's result.
#[derive(Serialize)]
pub struct Summary<'a> {
    seed: u64,
    seconds: f64,
    cases: u64,
    mismatches: u64,
    failures: Vec<Value>,
    /// Failing cases that were counted only.
    more: u64,
    /// Cases that differed once only.
    unsteady: u64,
    no_oracle: Value,
    coverage: Vec<Value>,
    #[serde(skip)]
    report: &'a Report,
}

impl<'a> Summary<'a> {
    /// Of a report.
    pub fn new(report: &'a Report, seed: u64) -> Summary<'a> {
        Summary {
            seed,
            seconds: report.elapsed.as_secs_f64(),
            cases: report.executed,
            mismatches: report.mismatches(),
            failures: report.failures.values().map(failure_json).collect(),
            more: report.more,
            unsteady: report.unsteady,
            no_oracle: json!(report.no_oracle),
            coverage: report.denominators.iter().map(|d| report.coverage.to_json(d)).collect(),
            report,
        }
    }

    /// As text; with `missing`, each cell that was not reached.
    pub fn table(&self, missing: bool) -> String {
        let mut out = String::new();
        for denominator in &self.report.denominators {
            out += &self.report.coverage.report(denominator);
            if missing {
                out += &list_missing(denominator, &self.report.coverage);
            }
            out.push('\n');
        }
        for (reason, count) in &self.report.no_oracle {
            let _ = writeln!(out, "{count} cases without an oracle: {reason}");
        }
        for failure in self.report.failures.values() {
            out += &failure_words(failure);
        }
        if self.more != 0 {
            let _ = writeln!(out, "{} more failing cases, of other instructions (--failures)", self.more);
        }
        if self.unsteady != 0 {
            let _ = writeln!(
                out,
                "{} cases differed once and agreed when they were repeated (what a context switch of the host loses)",
                self.unsteady
            );
        }
        let _ = write!(out, "{} cases in {:.0} s, seed {}: ", self.cases, self.seconds, self.seed);
        let _ = match self.mismatches {
            0 => writeln!(out, "no mismatch"),
            n => writeln!(out, "{n} mismatches, {} different", self.report.failures.len()),
        };
        out
    }
}

fn list_missing(denominator: &Denominator, coverage: &Coverage) -> String {
    let mut out = String::from("not reached:\n");
    for (cell, class) in coverage.missing(denominator) {
        let why = match class {
            Class::Offered => format!("{} of 16 inputs", coverage.of(&cell).distinct()),
            Class::Withheld(why) => format!("withheld: {why}"),
            Class::Unreachable(why) => format!("unreachable: {why}"),
        };
        let _ = writeln!(out, "  {cell}: {why}");
    }
    out
}

fn command(case: &Case) -> String {
    format!("softkvm diff insn --case '{}'", text::to_text(case))
}

fn failure_words(failure: &Failure) -> String {
    let mut out = format!(
        "{} in {}-bit code, {} time(s){}\n{}",
        failure.key.code,
        failure.key.bits.number(),
        failure.count,
        if failure.unsteady { "; it did not fail again when it was repeated" } else { "" },
        indented(&describe::describe(&failure.case))
    );
    for difference in &failure.differences {
        let _ = writeln!(out, "    {difference}");
    }
    if let Some(ended) = &failure.ended {
        let _ = writeln!(out, "    {ended}");
    }
    let _ = writeln!(out, "  repeat: {}\n", command(&failure.case));
    out
}

fn failure_json(failure: &Failure) -> Value {
    json!({
        "code": failure.key.code,
        "bits": failure.key.bits.number(),
        "kind": failure.key.kind,
        "count": failure.count,
        "unsteady": failure.unsteady,
        "differences": failure.differences.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "ended": failure.ended,
        "case": text::to_text(&failure.case),
        "repeat": command(&failure.case),
    })
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// What came of a case that somebody chose.
#[derive(Serialize)]
pub struct CaseResult {
    /// Where the case came from.
    name: String,
    /// Both machines came to the same end.
    pub agreed: bool,
    case: String,
    differences: Vec<String>,
    /// Why there is nothing to compare.
    remark: Option<String>,
    #[serde(skip)]
    words: String,
}

impl CaseResult {
    /// Of one case; it `speaks` if the text shows both outcomes.
    pub fn new(
        name: &str,
        case: &Case,
        answer: &Answer,
        executed: &Executed,
        verdict: &Verdict,
        speaks: bool,
    ) -> CaseResult {
        let agreed = matches!(verdict, Verdict::Agreed);
        let differences: Vec<String> = match verdict {
            Verdict::Mismatch(list) => list.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        };
        let remark = match verdict {
            Verdict::Ended(text) => Some(text.clone()),
            Verdict::NoOracle(reason) => Some(format!("there is no oracle for this case: {reason}")),
            _ => None,
        };
        let mut words = String::new();
        if speaks {
            let _ = write!(words, "{name}\n{}", indented(&describe::describe(case)));
            if let (Answer::Done(oracle), Ok(engine)) = (answer, executed) {
                words += &indented(&describe::describe_outcomes(case, oracle, engine));
            }
            for line in differences.iter().chain(&remark) {
                let _ = writeln!(words, "    {line}");
            }
            if agreed {
                words += "    both agree\n";
            }
        }
        CaseResult { name: name.into(), agreed, case: text::to_text(case), differences, remark, words }
    }

    /// For people.
    pub fn words(&self) -> String {
        self.words.clone()
    }
}
