use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::de::Deserializer;
use serde::{Deserialize, Serialize};
use throughline_messages::{DeadReason, ErrorClass};
use throughline_snowflake::RequestId;

use crate::text;

/// Maximum number of dead letters on a page.
pub const MOST_DEAD_LETTERS: u16 = 500;

/// Selects dead letters. A field that is `None` matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "clap", derive(clap::Args))]
#[serde(default)]
pub struct DeadLetterFilter {
    /// Only dead letters of this route.
    #[cfg_attr(feature = "clap", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[^\u0000]*$"))]
    pub route: Option<String>,
    /// Only dead letters of this destination.
    #[cfg_attr(feature = "clap", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[^\u0000]*$"))]
    pub destination: Option<String>,
    /// Only deliveries that died for this reason, for example `attempts_exhausted`.
    #[cfg_attr(feature = "clap", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<DeadReason>,
    /// Only deliveries with a last error of this class, for example `timeout`.
    #[cfg_attr(feature = "clap", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_class: Option<ErrorClass>,
    /// Only deliveries that died at this time or later, for example `2026-01-01T00:00:00Z`.
    #[cfg_attr(feature = "clap", arg(long, value_parser = text::parse_time))]
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "text::time")]
    pub since: Option<DateTime<Utc>>,
    /// Only deliveries that died before this time.
    #[cfg_attr(feature = "clap", arg(long, value_parser = text::parse_time))]
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "text::time")]
    pub before: Option<DateTime<Utc>>,
}

/// Where a page of dead letters begins, and its size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Page {
    /// The `next` of the previous page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^0[0-8][0-9]{18}[.][^\u0000]*$"))]
    pub cursor: Option<String>,
    /// Page size, 1–500 (default 50).
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "limit")]
    #[schemars(range(min = 1, max = 500))]
    pub limit: Option<u16>,
}

fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    text::number(deserializer, (1, MOST_DEAD_LETTERS))
}

/// Where the next step of a purge begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Position {
    /// The `next` of the previous response.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^0[0-8][0-9]{18}[.][^\u0000]*$"))]
    pub cursor: Option<String>,
}

/// A page of deliveries that ended without success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetters {
    /// May hold fewer entries than `limit`, or none, although more follow: then the filter has excluded very many.
    pub dead_letters: Vec<DeadLetter>,
    /// Cursor of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
}

/// A delivery that ended without success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetter {
    /// The request's id.
    pub request_id: RequestId,
    /// The destination that did not receive it.
    pub destination: String,
    /// The route that accepted its request.
    pub route: String,
    /// When its request was accepted.
    pub accepted_at: DateTime<Utc>,
    /// When it died.
    pub died_at: DateTime<Utc>,
    /// Why it died.
    pub reason: DeadReason,
    /// Number of attempts made.
    pub attempts: u32,
    /// The class of the last error.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_class: Option<ErrorClass>,
    /// The last error, as text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// The status of the last response.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<u16>,
    /// The beginning of the last response's body.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub response_excerpt: Option<String>,
    /// The trace of the last attempt, 32 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace_id: Option<String>,
}

/// The result of a purge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Purged {
    /// Number of dead letters that this call deleted.
    pub purged: u64,
    /// Present if more dead letters may match: call again with this value as `cursor`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
}
