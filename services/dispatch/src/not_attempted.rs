//! The reasons why a delivery is not attempted now, or at all.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rand::RngExt as _;
use throughline_destination::Deferral;
use throughline_messages::{DeadReason, DeferralCause, ErrorClass, Failure, Outcome};
use throughline_resilience::later;
use throughline_transform::TransformError;

/// The maximum time until all replicas of a service have a new configuration.
const ROLLOUT: TimeDelta = TimeDelta::hours(1);

/// How long to defer a delivery to an unknown destination: the next dispatch that receives it may have a newer
/// configuration.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How long to defer a delivery that can no longer wait here, because its record's partition goes to another dispatch
/// or this one stops. By then, another dispatch usually has the partition.
const LEFT: Duration = Duration::from_secs(1);

/// The reason why no call was made.
pub(crate) enum NotAttempted {
    /// The delivery has to wait.
    Deferred(Deferral),
    /// The delivery ended.
    Dead(DeadReason, Failure),
}

impl NotAttempted {
    /// No destination has this name. While the delivery is young, its destination may be one that is not yet in the
    /// configuration of this dispatch.
    pub(crate) fn unknown(destination: &str, window_started_at: DateTime<Utc>, now: DateTime<Utc>) -> Self {
        if now.signed_duration_since(window_started_at) < ROLLOUT {
            return Self::Deferred(Deferral { cause: DeferralCause::UnknownDestination, wait: LOOK_AGAIN });
        }
        let error = format!("unknown destination {destination:?}");
        Self::Dead(DeadReason::Unroutable, Failure { class: ErrorClass::Configuration, error })
    }

    /// The delivery had to wait for others of its key, or for a limit, but the wait was cut short.
    pub(crate) fn left(is_in_key_queue: bool) -> Self {
        let cause = if is_in_key_queue { DeferralCause::KeyBusy } else { DeferralCause::Limit };
        Self::Deferred(Deferral { cause, wait: LEFT })
    }

    pub(crate) fn expired(window: Duration) -> Self {
        let error = format!("not delivered within {window:?}");
        Self::Dead(DeadReason::Expired, Failure { class: ErrorClass::Timeout, error })
    }

    pub(crate) fn outcome(self, now: DateTime<Utc>) -> Outcome {
        match self {
            Self::Deferred(Deferral { cause, wait }) => {
                Outcome::Deferred { due_at: later(now, spread(wait)), cause }
            }
            Self::Dead(reason, failure) => Outcome::Dead { reason, failure },
        }
    }
}

impl From<Deferral> for NotAttempted {
    fn from(deferral: Deferral) -> Self {
        Self::Deferred(deferral)
    }
}

impl From<TransformError> for NotAttempted {
    fn from(error: TransformError) -> Self {
        let failure = Failure { class: ErrorClass::Transform, error: error.to_string() };
        Self::Dead(DeadReason::Untransformable, failure)
    }
}

/// Adds up to half of the wait, so that deliveries that wait for the same cause are not retried together.
fn spread(wait: Duration) -> Duration {
    wait.saturating_add(rand::rng().random_range(Duration::ZERO..=wait / 2))
}
