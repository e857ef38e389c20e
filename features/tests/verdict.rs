//! The final report and the exit code.

use std::env::var_os;
use std::fmt;
use std::process::ExitCode;

use cucumber::event::ScenarioFinished;
use cucumber::writer::{Stats as _, Summarize};

use crate::world::World;

/// Set in CI, where a part that cannot run counts as failed.
const REQUIRE: &str = "REQUIRE_CONTAINERS";

/// Number of lines of each program's output to print when a scenario fails.
const LINES_SHOWN: usize = 60;

/// Number of passed and failed scenarios.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    passed: usize,
    failed: usize,
}

impl<W: cucumber::Writer<World>> From<&Summarize<W>> for Count
where
    Summarize<W>: cucumber::writer::Stats<World>,
{
    fn from(summary: &Summarize<W>) -> Self {
        let scenarios = summary.scenarios_stats();
        // Files that cannot be parsed and hooks that panic are not counted as scenarios.
        let others = summary.parsing_errors() + summary.hook_errors();
        Self { passed: scenarios.passed, failed: scenarios.failed + scenarios.skipped + others }
    }
}

/// A part that is skipped if its prerequisites are missing.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Skipped {
    Containers,
    RealInput,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Containers => "the environment `containers` (PostgreSQL and Kafka)",
            Self::RealInput => "the payloads of @octokit/webhooks-examples",
        })
    }
}

/// The result of the complete run.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    lines: Vec<String>,
    has_failed: bool,
    has_passed: bool,
}

impl Verdict {
    /// Records the result of an environment.
    pub(crate) fn ran(&mut self, environment: &str, count: Count) {
        self.has_failed |= count.failed > 0;
        self.has_passed |= count.passed > 0;
        self.lines.push(format!("{environment}: {} passed, {} failed", count.passed, count.failed));
    }

    /// Records a skipped part.
    pub(crate) fn skipped(&mut self, what: Skipped, why: &anyhow::Error) {
        let is_required = var_os(REQUIRE).is_some_and(|value| value == "1");
        self.has_failed |= is_required;
        let word = if is_required { "FAILED" } else { "SKIPPED" };
        self.lines.push(format!("*** {word}: {what}: {why:#} ***"));
    }

    /// Records that the remaining scenarios could not run.
    pub(crate) fn broke_off(&mut self, why: &anyhow::Error) {
        self.has_failed = true;
        self.lines.push(format!("*** FAILED: {why:#} ***"));
    }

    /// Prints the report.
    #[expect(clippy::print_stdout, reason = "the report of a test is for its stdout")]
    pub(crate) fn report(&self) -> ExitCode {
        for line in &self.lines {
            println!("{line}");
        }
        if self.has_passed && !self.has_failed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Prints the last output of the programs of a failed scenario.
#[expect(clippy::print_stderr, reason = "the report of a test is for its stderr")]
pub(crate) fn explain(scenario: &str, event: &ScenarioFinished, world: Option<&mut World>) {
    let (ScenarioFinished::StepFailed(..), Some(world)) = (event, world) else { return };
    for (service, output) in world.stage.printed() {
        let lines = output.lines();
        let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
        eprintln!("--- {scenario}: the last {} of {} lines of {service}", shown.len(), lines.len());
        for line in shown {
            eprintln!("{line}");
        }
    }
}
