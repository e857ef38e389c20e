use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use throughline_config::{DurationText, Findings, Path};
use throughline_resilience::{Pauses, RetryPolicy};

/// How failed attempts are retried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Maximum number of counted attempts. A 429 or 503 with `Retry-After` does not count. Default 5; with a
    /// schedule, one more than its number of entries.
    pub attempts: Option<NonZeroU32>,
    /// Maximum number of immediate retries after a failed connection or a timeout, before the attempt counts. Default
    /// 2.
    pub immediate_retries: u32,
    /// The first backoff. Default 1 s.
    #[serde(with = "DurationText")]
    pub base: Duration,
    /// The factor by which each backoff is longer than the previous one; at least 1. Default 2.
    pub factor: f64,
    /// The longest backoff. The actual pause is drawn uniformly from zero to the backoff. Default 60 s.
    #[serde(with = "DurationText")]
    pub max: Duration,
    /// Explicit pauses instead, such as `[5s, 5m, 30m, 2h, 5h, 10h]`, used without jitter.
    #[schemars(with = "Vec<DurationText>")]
    #[serde(with = "schedule")]
    pub schedule: Vec<Duration>,
    /// How long a delivery is attempted in total, counted attempts or not. Default 24 h.
    #[serde(with = "DurationText")]
    pub window: Duration,
}

impl Retry {
    /// Returns the maximum number of counted attempts, as configured or by default.
    #[must_use]
    pub fn most_attempts(&self) -> u32 {
        let by_default = match self.schedule.len() {
            0 => 5,
            pauses => u32::try_from(pauses).unwrap_or(u32::MAX).saturating_add(1),
        };
        self.attempts.map_or(by_default, NonZeroU32::get)
    }
}

impl Retry {
    /// Returns the policy for retries.
    #[must_use]
    pub fn policy(&self) -> RetryPolicy {
        let Self { immediate_retries, base, factor, max, ref schedule, window, .. } = *self;
        let pauses = match schedule.as_slice() {
            [] => Pauses::Exponential { base, factor, max },
            by_hand => Pauses::Schedule(by_hand.to_vec()),
        };
        RetryPolicy { attempts: self.most_attempts(), immediate_retries, pauses, window }
    }

    pub(crate) fn check(&self, path: &Path, findings: &mut Findings) {
        let grows = self.factor.is_finite() && self.factor >= 1.0;
        findings.expect(grows, || path.key("factor"), "expected a number of at least 1");
        let is_in_order = self.base <= self.max;
        findings.expect(is_in_order, || path.key("base"), "the first pause exceeds `max`, the longest pause");
        if !self.schedule.is_empty()
            && self.attempts.is_some_and(|attempts| attempts.get() != self.scheduled())
        {
            let makes = self.scheduled();
            let message = format!(
                "the pauses of `schedule` define {makes} attempts; set `attempts` to {makes}, or remove it"
            );
            findings.add(path.key("attempts"), message);
        }
    }

    /// Returns the number of attempts that the schedule allows: one more than its pauses.
    fn scheduled(&self) -> u32 {
        Self { attempts: None, ..self.clone() }.most_attempts()
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: None,
            immediate_retries: 2,
            base: Duration::from_secs(1),
            factor: 2.0,
            max: Duration::from_mins(1),
            schedule: Vec::new(),
            window: Duration::from_hours(24),
        }
    }
}

/// The written form of a list of durations.
mod schedule {
    use std::time::Duration;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use throughline_config::DurationText;

    pub(super) fn serialize<S: Serializer>(pauses: &[Duration], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(pauses.iter().map(|pause| humantime::format_duration(*pause).to_string()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Duration>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let parse =
            |text: &String| DurationText::parse(text).ok_or_else(|| D::Error::custom("not a duration"));
        texts.iter().map(parse).collect()
    }
}
