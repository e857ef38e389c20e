//! The bit layout of an id, defined with `ferroid`.

use chrono::{DateTime, Utc};

/// 2024-01-01T00:00:00Z, in milliseconds since the Unix epoch.
const EPOCH: i64 = 1_704_067_200_000;

ferroid::define_snowflake_id!(
    Layout, u64,
    reserved: 1,
    timestamp: 41,
    machine_id: 10,
    sequence: 12
);

/// Returns the timestamp of an id for an instant, in milliseconds; 0 for an instant before the epoch.
pub(crate) fn timestamp(instant: DateTime<Utc>) -> u64 {
    u64::try_from(instant.timestamp_millis() - EPOCH).unwrap_or(0)
}

/// Returns the instant of an id's timestamp.
pub(crate) fn instant(timestamp: u64) -> DateTime<Utc> {
    let millis = i64::try_from(timestamp).unwrap_or(i64::MAX).saturating_add(EPOCH);
    DateTime::from_timestamp_millis(millis).unwrap_or(DateTime::<Utc>::MAX_UTC)
}
