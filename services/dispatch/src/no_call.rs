//! What keeps a delivery from being attempted now, or at all.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rand::RngExt as _;
use throughline_messages::{DeadReason, DeferralCause, ErrorClass, Failure, Outcome};
use throughline_resilience::later;
use throughline_transform::TransformError;

use crate::gate::Hold;

/// The longest that the replicas of a service take to get a new configuration.
const ROLLOUT: TimeDelta = TimeDelta::hours(1);

/// How long a delivery to an unknown destination stays away: the next dispatch that sees it may be a new one.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// When a delivery comes again that could not wait here any longer, because its record's partition goes to another
/// dispatch, or this one stops. By then another one has the partition, mostly.
const LEFT: Duration = Duration::from_secs(1);

/// Why no call was made.
pub(crate) enum NoCall {
    /// It has to wait.
    Held(Hold),
    /// It ended.
    Dead(DeadReason, Failure),
}

impl NoCall {
    /// No destination has this name. While the delivery is young, it may be one that dispatch is about to learn of.
    pub(crate) fn unknown(destination: &str, since: DateTime<Utc>, now: DateTime<Utc>) -> Self {
        if now.signed_duration_since(since) < ROLLOUT {
            return Self::Held(Hold { cause: DeferralCause::UnknownDestination, wait: LOOK_AGAIN });
        }
        let error = format!("no destination is called {destination:?}");
        Self::Dead(DeadReason::Unroutable, Failure { class: ErrorClass::Configuration, error })
    }

    /// It would have waited for others of its key, or for a limit, but the wait was cut short.
    pub(crate) fn left(is_in_lane: bool) -> Self {
        let cause = if is_in_lane { DeferralCause::KeyBusy } else { DeferralCause::Limit };
        Self::Held(Hold { cause, wait: LEFT })
    }

    pub(crate) fn expired(window: Duration) -> Self {
        let error = format!("not delivered within {window:?}");
        Self::Dead(DeadReason::Expired, Failure { class: ErrorClass::Timeout, error })
    }

    pub(crate) fn outcome(self, now: DateTime<Utc>) -> Outcome {
        match self {
            Self::Held(Hold { cause, wait }) => Outcome::Deferred { due_at: later(now, spread(wait)), cause },
            Self::Dead(reason, failure) => Outcome::Dead { reason, failure },
        }
    }
}

impl From<Hold> for NoCall {
    fn from(hold: Hold) -> Self {
        Self::Held(hold)
    }
}

impl From<TransformError> for NoCall {
    fn from(error: TransformError) -> Self {
        let failure = Failure { class: ErrorClass::Transform, error: error.to_string() };
        Self::Dead(DeadReason::Untransformable, failure)
    }
}

/// Up to half as long again, so that those who wait for the same do not come again together.
fn spread(wait: Duration) -> Duration {
    wait.saturating_add(rand::rng().random_range(Duration::ZERO..=wait / 2))
}
