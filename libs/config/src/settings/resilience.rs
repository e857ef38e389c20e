use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::at_least_one;
use crate::text::{DurationText, Rate};

/// What an attempt that failed is followed by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Most attempts that count. What a third party puts off with `Retry-After` does not count. Default 5;
    /// with a schedule, one more than it has entries.
    pub attempts: Option<NonZeroU32>,
    /// How often a connection that failed or a time-out is tried again at once, before it counts. Default 2.
    pub at_once: u32,
    /// The first pause. Default 1 s.
    #[serde(with = "DurationText")]
    pub base: Duration,
    /// What each pause is longer by than the one before; at least 1. Default 2.
    pub factor: f64,
    /// The longest pause. Default 60 s. Each pause is drawn evenly from zero to its length.
    #[serde(with = "DurationText")]
    pub max: Duration,
    /// Pauses by hand instead, such as `[5s, 5m, 30m, 2h, 5h, 10h]`, taken as they are.
    #[schemars(with = "Vec<DurationText>")]
    #[serde(with = "schedule")]
    pub schedule: Vec<Duration>,
    /// How long a delivery is tried at all, whatever counts. Default 24 h.
    #[serde(with = "DurationText")]
    pub window: Duration,
}

impl Retry {
    /// Most attempts that count, said or by default.
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
            at_once: 2,
            base: Duration::from_secs(1),
            factor: 2.0,
            max: Duration::from_mins(1),
            schedule: Vec::new(),
            window: Duration::from_hours(24),
        }
    }
}

/// What a status of a third party means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(extend("x-expected" = "`delivered`, `retry` or `dead`"))]
pub enum StatusMeaning {
    /// The third party has it.
    Delivered,
    /// It may do better later.
    Retry,
    /// It never will.
    Dead,
}

/// When calls are held back because they would fail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// How many failures in a row open it. Default 10.
    pub consecutive: NonZeroU32,
    /// Which part of the calls of a window must have failed to open it, above 0 and up to 1. Default 0.5.
    pub failure_rate: f64,
    /// How many calls a window must have to be judged. Default 20.
    pub minimum_calls: NonZeroU32,
    /// The window. Default 30 s.
    #[serde(with = "DurationText")]
    pub window: Duration,
    /// How long it stays open before a probe, the first time; twice as long after each probe that fails.
    /// Default 5 s.
    #[serde(with = "DurationText")]
    pub open: Duration,
    /// The longest that it stays open before a probe. Default 60 s.
    #[serde(with = "DurationText")]
    pub max_open: Duration,
    /// How many calls probe at once, and must succeed to close it. Default 3.
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

/// How much a third party is asked at once, by each dispatch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most calls at once. Default 64; never more than what `dispatch.concurrency` leaves to the others.
    pub concurrency: NonZeroU32,
    /// Most calls in a time, such as `100/s`. Default none.
    pub rate: Option<Rate>,
    /// How long a delivery may wait for its destination before it is deferred; at once, if the destination is likely to
    /// take longer. Time for which dispatch itself is the reason does not count. Default 1 s.
    #[serde(with = "DurationText")]
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrency: at_least_one(64), rate: None, patience: Duration::from_secs(1) }
    }
}

/// What statuses mean, as people write it: keys are texts wherever a configuration comes from.
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

/// A list of durations as people write them.
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
