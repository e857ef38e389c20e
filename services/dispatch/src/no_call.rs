//! What keeps a delivery from being attempted now, or at all.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rand::RngExt as _;
use throughline_messages::{DeadReason, ErrorClass, Failure, Outcome};
use throughline_transform::TransformError;

use crate::gate::Hold;

/// Why no call was made.
pub(crate) enum NoCall {
    /// It has to wait.
    Held(Hold),
    /// It ended.
    Dead(DeadReason, Failure),
}

impl NoCall {
    pub(crate) fn unroutable(destination: &str) -> Self {
        let error = format!("no destination is called {destination:?}");
        Self::Dead(DeadReason::Unroutable, Failure { class: ErrorClass::Configuration, error })
    }

    pub(crate) fn expired(window: Duration) -> Self {
        let error = format!("not delivered within {window:?}");
        Self::Dead(DeadReason::Expired, Failure { class: ErrorClass::Timeout, error })
    }

    pub(crate) fn outcome(self, now: DateTime<Utc>) -> Outcome {
        match self {
            Self::Held(Hold { cause, wait }) => Outcome::Deferred { due_at: now + spread(wait), cause },
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
    wait + rand::rng().random_range(Duration::ZERO..=wait / 2)
}
