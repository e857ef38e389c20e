//! Parameters of a query, whose errors state what is expected.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::de::{Deserialize as _, Deserializer, Error as _};

/// Parses a time of RFC 3339.
///
/// # Errors
/// A text for people, if it is not a time.
pub(crate) fn parse_time(text: &str) -> Result<DateTime<Utc>, &'static str> {
    text.parse().map_err(|_| "must be a time, for example `2026-01-01T00:00:00Z`")
}

/// Deserializes an optional time.
pub(crate) fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_time(&text).map(Some).map_err(D::Error::custom)
}

/// Deserializes an optional number between bounds from its digits.
pub(crate) fn number<'de, D: Deserializer<'de>, N: FromStr + PartialOrd + std::fmt::Display>(
    deserializer: D,
    (least, most): (N, N),
) -> Result<Option<N>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let number = text.parse().ok().filter(|number| (&least..=&most).contains(&number));
    let error = || D::Error::custom(format_args!("must be a number from {least} to {most}"));
    number.map(Some).ok_or_else(error)
}
