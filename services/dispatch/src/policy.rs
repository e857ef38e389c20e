//! Decides from the result of a call how its delivery continues.

use chrono::{DateTime, Utc};
use rand::Rng;
use throughline_destination::{CallFailure, Called};
use throughline_messages::{DeadReason, Failure, Outcome};
use throughline_resilience::{Cause, Failed, Next, RetryPolicy};

use crate::work::Progress;

/// An attempt that was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttemptResult {
    pub(crate) progress: Progress,
    /// How many attempts were made at once just before it.
    pub(crate) repeats: u32,
    /// When it ended.
    pub(crate) at: DateTime<Utc>,
}

/// Returns the outcome of the attempt, and how many of the delivery's attempts count so far.
pub(crate) fn decide(
    retry: &RetryPolicy,
    called: &Called,
    made: AttemptResult,
    rng: &mut impl Rng,
) -> (Outcome, u32) {
    match &called.result {
        Ok(()) => (Outcome::Delivered, made.progress.counted_attempts.saturating_add(1)),
        Err(CallFailure { failure, retry: None, .. }) => (
            Outcome::Dead { reason: DeadReason::Rejected, failure: failure.clone() },
            made.progress.counted_attempts.saturating_add(1),
        ),
        Err(CallFailure { failure, retry: Some(cause), .. }) => {
            after(retry, made, *cause, failure.clone(), rng)
        }
    }
}

fn after(
    retry: &RetryPolicy,
    made: AttemptResult,
    cause: Cause,
    failure: Failure,
    rng: &mut impl Rng,
) -> (Outcome, u32) {
    let AttemptResult { progress: Progress { attempt, counted_attempts, window_started_at }, repeats, at } =
        made;
    let decision =
        retry.after(&Failed { attempt, counted_attempts, repeats, window_started_at, at, cause }, rng);
    let outcome = match decision.next {
        Next::Immediately => Outcome::Retry { due_at: None, failure },
        Next::At(due_at) => Outcome::Retry { due_at: Some(due_at), failure },
        Next::Exhausted => Outcome::Dead { reason: DeadReason::AttemptsExhausted, failure },
        Next::Expired => Outcome::Dead { reason: DeadReason::Expired, failure },
    };
    (outcome, decision.counted_attempts)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use throughline_destination::Retry;
    use throughline_messages::ErrorClass;

    use super::*;

    fn made(counted_attempts: u32, repeats: u32) -> AttemptResult {
        let window_started_at = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        let progress =
            Progress { attempt: counted_attempts + repeats + 1, counted_attempts, window_started_at };
        AttemptResult { progress, repeats, at: window_started_at + TimeDelta::minutes(1) }
    }

    fn failed(retry: Option<Cause>) -> Called {
        let failure = Failure { class: ErrorClass::ServerError, error: "500".to_owned() };
        Called { status: None, excerpt: None, result: Err(CallFailure { failure, retry, is_outage: true }) }
    }

    fn decided(called: &Called, made: AttemptResult) -> (Outcome, u32) {
        decide(&Retry::default().policy(), called, made, &mut rand::rng())
    }

    /// Returns the reason of a dead delivery; `None` if it is retried.
    fn reason(called: &Called, made: AttemptResult) -> Option<DeadReason> {
        match decided(called, made).0 {
            Outcome::Dead { reason, .. } => Some(reason),
            Outcome::Retry { .. } => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_successful_attempt_ends_the_delivery() {
        let called = Called { status: None, excerpt: None, result: Ok(()) };
        assert_eq!(decided(&called, made(2, 0)), (Outcome::Delivered, 3));
    }

    #[test]
    fn a_final_failure_ends_the_delivery_and_another_one_only_at_the_last_attempt() {
        let final_failure = failed(None);
        for counted_attempts in [0, 4] {
            assert_eq!(reason(&final_failure, made(counted_attempts, 0)), Some(DeadReason::Rejected));
        }
        assert_eq!(decided(&final_failure, made(0, 0)).1, 1);
        for cause in [Cause::NoResponse, Cause::Failed { not_before: None }] {
            assert_eq!(reason(&failed(Some(cause)), made(0, 2)), None, "{cause:?}");
            let last = reason(&failed(Some(cause)), made(4, 2));
            assert_eq!(last, Some(DeadReason::AttemptsExhausted), "{cause:?}");
        }
    }

    #[test]
    fn immediate_retries_have_no_due_time_and_a_busy_third_party_sets_one() {
        let decision = decided(&failed(Some(Cause::NoResponse)), made(0, 1));
        assert!(matches!(decision, (Outcome::Retry { due_at: None, .. }, 0)), "{decision:?}");

        let busy = |wait: TimeDelta| failed(Some(Cause::Busy { until: made(0, 0).at + wait }));
        let decision = decided(&busy(TimeDelta::minutes(1)), made(0, 0));
        let (Outcome::Retry { due_at: Some(due_at), .. }, 0) = decision else { panic!("{decision:?}") };
        assert!(due_at >= made(0, 0).at + TimeDelta::minutes(1), "{due_at}");

        assert_eq!(reason(&busy(TimeDelta::hours(25)), made(0, 0)), Some(DeadReason::Expired));
    }
}
