use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use throughline_config::{DurationText, Findings, Path, at_least_one};
use throughline_resilience::BreakerPolicy;

/// When a breaker opens and closes. An open breaker stops calls that would fail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// Number of consecutive failures that open the breaker. Default 10.
    pub consecutive: NonZeroU32,
    /// The failure rate within a window that opens the breaker, above 0 and up to 1. Default 0.5.
    pub failure_rate: f64,
    /// Minimum number of calls in a window before its failure rate applies. Default 20.
    pub minimum_calls: NonZeroU32,
    /// Length of the window. Default 30 s.
    #[serde(with = "DurationText")]
    pub window: Duration,
    /// How long the breaker first stays open before it probes; each failed probe doubles it. Default 5 s.
    #[serde(with = "DurationText")]
    pub open: Duration,
    /// The longest time that the breaker stays open before it probes. Default 60 s.
    #[serde(with = "DurationText")]
    pub max_open: Duration,
    /// Number of concurrent probes, all of which must succeed to close the breaker. Default 3.
    pub probes: NonZeroU32,
}

impl Breaker {
    /// Returns the policy for opening and closing.
    #[must_use]
    pub fn policy(&self) -> BreakerPolicy {
        BreakerPolicy {
            consecutive: self.consecutive.get(),
            failure_rate: self.failure_rate,
            minimum_calls: self.minimum_calls.get(),
            window: self.window,
            open: self.open,
            max_open: self.max_open,
            probes: self.probes.get(),
        }
    }

    pub(crate) fn check(&self, path: &Path, findings: &mut Findings) {
        findings.expect(
            self.failure_rate > 0.0 && self.failure_rate <= 1.0,
            || path.key("failure_rate"),
            "expected a number greater than 0 and at most 1",
        );
        findings.expect(
            self.open <= self.max_open,
            || path.key("open"),
            "the first pause exceeds `max_open`, the longest pause",
        );
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            consecutive: at_least_one(10),
            failure_rate: 0.5,
            minimum_calls: at_least_one(20),
            window: Duration::from_secs(30),
            open: Duration::from_secs(5),
            max_open: Duration::from_mins(1),
            probes: at_least_one(3),
        }
    }
}
