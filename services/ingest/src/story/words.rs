//! Times and numbers as people read them.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// `2026-01-01 00:00:40 UTC`.
pub(super) fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A time to come: `at 2026-01-01 00:00:40 UTC (in 40s)`; one that has come: `since …`.
pub(super) fn due(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    match (at - now).to_std() {
        Ok(left) if !left.is_zero() => {
            // What is left of a second is no time at which to look again.
            let seconds = Duration::from_secs(left.as_secs().max(1));
            format!("at {} (in {})", time(at), humantime::format_duration(seconds))
        }
        _ => format!("since {}", time(at)),
    }
}

/// `1 byte`, `2 bytes`.
pub(super) fn count(number: impl Into<u64>, what: &str) -> String {
    let number = number.into();
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
