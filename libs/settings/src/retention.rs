use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use throughline_config::DurationText;

/// How long finished requests are kept before `throughline purge` may delete them. A request is deleted as a whole,
/// once the retention of all its deliveries has passed, and never before its idempotency key has expired.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Retention of a delivered or cancelled delivery, from the time it ended. Default 30 days.
    #[serde(with = "DurationText")]
    pub delivered: Duration,
    /// Retention of a dead delivery, from the time it died. Default 90 days.
    #[serde(with = "DurationText")]
    pub dead: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { delivered: Duration::from_hours(24 * 30), dead: Duration::from_hours(24 * 90) }
    }
}
