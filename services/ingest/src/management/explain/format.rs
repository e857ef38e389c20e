//! Human-readable times and numbers.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// `2026-01-01 00:00:40 UTC`.
pub(super) fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Formats a due time: in the future, `at 2026-01-01 00:00:40 UTC (in 40s)`; in the past, `now (since …)`.
pub(super) fn due(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    match (at - now).to_std() {
        Ok(left) if !left.is_zero() => {
            // Whole seconds, at least one: a fraction of a second does not help the reader decide when to look again.
            let seconds = Duration::from_secs(left.as_secs().max(1));
            format!("at {} (in {})", time(at), humantime::format_duration(seconds))
        }
        _ => format!("now (since {})", time(at)),
    }
}

/// Formats a number with its noun: `1 byte`, `2 bytes`.
pub(super) fn count(number: impl Into<u64>, what: &str) -> String {
    let number = number.into();
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
