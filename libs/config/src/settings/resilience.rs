use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::at_least_one;
use crate::text::{DurationText, Rate};

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
    /// The longest backoff. Default 60 s. The actual pause is drawn uniformly from zero to the backoff.
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

/// The meaning of a third party's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(extend("x-expected" = "`delivered`, `retry` or `dead`"))]
pub enum StatusMeaning {
    /// The third party has accepted the request.
    Delivered,
    /// A later attempt may succeed.
    Retry,
    /// No later attempt can succeed.
    Dead,
}

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

/// Limits on calls to a third party, for each dispatch replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Maximum number of concurrent calls. Default 64; capped at the share of `dispatch.concurrency` that leaves room
    /// for other destinations.
    pub concurrency: NonZeroU32,
    /// Maximum rate of calls, such as `100/s`. Default none.
    pub rate: Option<Rate>,
    /// How long a delivery may wait for its destination before it is deferred. It is deferred immediately if the
    /// estimated wait is longer. Waiting that dispatch itself causes does not count. Default 1 s.
    #[serde(with = "DurationText")]
    pub max_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrency: at_least_one(64), rate: None, max_wait: Duration::from_secs(1) }
    }
}

/// The written form of status meanings: keys are strings in every source.
pub(super) mod statuses {
    use std::collections::BTreeMap;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer};

    use super::StatusMeaning;
    use crate::text::StatusText;

    pub(in crate::settings) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<u16, StatusMeaning>, D::Error> {
        let meanings = BTreeMap::<String, StatusMeaning>::deserialize(deserializer)?;
        let parse = |(text, meaning): (String, _)| Some((StatusText::parse(&text)?, meaning));
        let parsed =
            meanings.into_iter().map(|entry| parse(entry).ok_or_else(|| D::Error::custom("not a status")));
        parsed.collect()
    }
}

/// The written form of a list of durations.
mod schedule {
    use std::time::Duration;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::text::DurationText;

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
