//! The two machines side by side: what a worker owns.

use super::RunError;
use super::judge::{Verdict, judge};
use crate::case::Case;
use crate::engine::{Engine, Executed, Watch};
use crate::oracle::{Answer, Oracle};

/// An oracle and an engine.
pub struct Pair {
    oracle: Oracle,
    engine: Engine,
}

impl Pair {
    /// Starts both.
    pub fn start() -> Result<Pair, RunError> {
        Ok(Pair { oracle: Oracle::start()?, engine: Engine::new()? })
    }

    /// For whoever ends cases that do not end.
    pub fn watch(&self) -> Watch {
        self.engine.watch()
    }

    /// Executes up to [`Oracle::BATCH`] cases on both at the same time.
    pub fn execute(&mut self, cases: &[Case]) -> Result<Vec<(Answer, Executed)>, RunError> {
        self.oracle.submit(cases);
        let executed = cases.iter().map(|c| self.engine.execute(c)).collect::<Result<Vec<_>, _>>();
        // The answers are taken even if the engine failed: the next batch must not meet them.
        let answers = self.oracle.collect();
        Ok(answers.into_iter().zip(executed?).collect())
    }

    /// Executes one case.
    pub fn one(&mut self, case: &Case) -> Result<(Answer, Executed, Verdict), RunError> {
        match self.execute(std::slice::from_ref(case))?.pop() {
            Some((answer, executed)) => {
                let verdict = judge(case, &answer, &executed);
                Ok((answer, executed, verdict))
            }
            None => Err(RunError::NoAnswer),
        }
    }
}
