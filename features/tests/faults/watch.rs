//! The clock and the output of a run.

use std::fmt::Display;
use std::time::Duration;

use chrono::{DateTime, Utc};
use throughline_clock::Clock;
use tokio::time::Instant;

/// Measures the time since the start of the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    began: Instant,
    began_at: DateTime<Utc>,
}

impl Watch {
    pub(crate) fn start() -> Self {
        Self { began: Instant::now(), began_at: Clock::system().now() }
    }

    /// The time since the start.
    pub(crate) fn now(self) -> Duration {
        self.began.elapsed()
    }

    /// The time from the start until a calendar time.
    pub(crate) fn at(self, time: DateTime<Utc>) -> Duration {
        (time - self.began_at).to_std().unwrap_or_default()
    }

    /// Prints a line with the current time.
    pub(crate) fn say(self, what: impl Display) {
        say(format_args!("{} {what}", stamp(self.now())));
    }
}

/// A time of the run, in seconds.
pub(crate) fn stamp(time: Duration) -> String {
    format!("{:7.1} s ", time.as_secs_f64())
}

#[expect(clippy::print_stdout, reason = "the report of a test is for its stdout")]
pub(crate) fn say(what: impl Display) {
    println!("{what}");
}
