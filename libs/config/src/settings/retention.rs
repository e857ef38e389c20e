use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::text::DurationText;

/// How long what has ended is kept, before `throughline purge` may delete it. A request is deleted as a whole, when
/// the time of each of its deliveries is over, and never before its idempotency key has expired.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// From when a delivery was delivered, or cancelled. Default 30 days.
    #[serde(with = "DurationText")]
    pub delivered: Duration,
    /// From when a delivery died. Default 90 days.
    #[serde(with = "DurationText")]
    pub dead: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { delivered: Duration::from_hours(24 * 30), dead: Duration::from_hours(24 * 90) }
    }
}
