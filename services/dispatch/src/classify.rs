//! Decides from the end of a call how its delivery continues.

use std::time::Duration;

use chrono::{DateTime, Utc};
use http::StatusCode;
use rand::Rng;
use throughline_messages::{DeadReason, ErrorClass, Failure, Outcome};
use throughline_resilience::{Cause, Failed, Fault, Meaning, Next, RetryAfter, RetryPolicy, Statuses};

use crate::call::Called;
use crate::work::Progress;

/// The error that prevented a complete response. No text contains a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The request was never sent.
    #[error("no connection: {0}")]
    Connect(String),
    /// The third party's certificate is not acceptable.
    #[error("TLS: {0}")]
    Certificate(String),
    /// The TLS handshake failed for another reason.
    #[error("TLS: {0}")]
    Tls(String),
    /// The request or its response was not complete in time.
    #[error("no complete response within {0:?}")]
    Timeout(Duration),
    /// The connection broke during the exchange.
    #[error("the connection broke: {0}")]
    Transport(String),
}

impl CallError {
    pub(crate) fn class(&self) -> ErrorClass {
        match self {
            Self::Connect(_) => ErrorClass::Connect,
            Self::Certificate(_) | Self::Tls(_) => ErrorClass::Tls,
            Self::Timeout(_) => ErrorClass::Timeout,
            Self::Transport(_) => ErrorClass::Transport,
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Connect(_) => Fault::Connect,
            Self::Certificate(_) => Fault::Certificate,
            Self::Tls(_) => Fault::Tls,
            Self::Timeout(_) => Fault::Timeout,
            Self::Transport(_) => Fault::Transport,
        }
    }
}

/// The rules by which a destination's calls are judged.
pub(crate) struct DeliveryPolicy {
    pub(crate) retry: RetryPolicy,
    pub(crate) statuses: Statuses,
}

/// An attempt that was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttemptResult {
    pub(crate) progress: Progress,
    /// How many attempts were made at once just before it.
    pub(crate) repeats: u32,
    /// When it ended.
    pub(crate) at: DateTime<Utc>,
}

impl DeliveryPolicy {
    /// Returns whether the third party was healthy: it answered, and not with a status that signals a problem.
    pub(crate) fn is_well(&self, called: &Called) -> bool {
        called.end.as_ref().is_ok_and(|status| !self.statuses.is_failing(*status))
    }

    /// Returns the outcome of the attempt, and how many of the delivery's attempts count so far.
    pub(crate) fn decide(&self, called: &Called, made: AttemptResult, rng: &mut impl Rng) -> (Outcome, u32) {
        let (meaning, failure, cause) = match &called.end {
            Ok(status) => {
                let failure = Failure { class: class_of(*status), error: status.to_string() };
                let retry_after = called.retry_after.as_ref().and_then(|value| value.to_str().ok());
                let retry_after = retry_after.and_then(|value| RetryAfter::parse(value, made.at));
                (self.statuses.meaning(*status), failure, Cause::Status(*status, retry_after))
            }
            Err(error) => {
                let failure = Failure { class: error.class(), error: error.to_string() };
                (error.fault().meaning(), failure, Cause::Fault(error.fault()))
            }
        };
        match meaning {
            Meaning::Delivered => (Outcome::Delivered, made.progress.counted_attempts.saturating_add(1)),
            Meaning::Dead => (
                Outcome::Dead { reason: DeadReason::Rejected, failure },
                made.progress.counted_attempts.saturating_add(1),
            ),
            Meaning::Retry => self.retry(made, cause, failure, rng),
        }
    }

    fn retry(
        &self,
        made: AttemptResult,
        cause: Cause,
        failure: Failure,
        rng: &mut impl Rng,
    ) -> (Outcome, u32) {
        let AttemptResult {
            progress: Progress { attempt, counted_attempts, window_started_at },
            repeats,
            at,
        } = made;
        let verdict = self
            .retry
            .after(&Failed { attempt, counted_attempts, repeats, window_started_at, at, cause }, rng);
        let outcome = match verdict.next {
            Next::Immediately => Outcome::Retry { due_at: None, failure },
            Next::At(due_at) => Outcome::Retry { due_at: Some(due_at), failure },
            Next::Exhausted => Outcome::Dead { reason: DeadReason::AttemptsExhausted, failure },
            Next::Expired => Outcome::Dead { reason: DeadReason::Expired, failure },
        };
        (outcome, verdict.counted_attempts)
    }
}

fn class_of(status: StatusCode) -> ErrorClass {
    if status.is_redirection() {
        ErrorClass::Redirect
    } else if status.is_client_error() {
        ErrorClass::ClientError
    } else {
        ErrorClass::ServerError
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use http::HeaderValue;
    use throughline_config as config;

    use super::*;
    use crate::policy;

    fn rules() -> DeliveryPolicy {
        let statuses = Statuses::with([(409, Meaning::Delivered)]);
        DeliveryPolicy { retry: policy::retry(&config::Retry::default()), statuses }
    }

    fn made(counted_attempts: u32, repeats: u32) -> AttemptResult {
        let window_started_at = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        let progress =
            Progress { attempt: counted_attempts + repeats + 1, counted_attempts, window_started_at };
        AttemptResult { progress, repeats, at: window_started_at + TimeDelta::minutes(1) }
    }

    fn called(end: Result<StatusCode, CallError>) -> Called {
        Called { status: None, retry_after: None, excerpt: None, end }
    }

    fn answered(status: u16) -> Called {
        called(Ok(StatusCode::from_u16(status).unwrap()))
    }

    /// Reason or, of a retry, none; class and words.
    fn failed(called: &Called, made: AttemptResult) -> (Option<DeadReason>, ErrorClass, String) {
        match rules().decide(called, made, &mut rand::rng()).0 {
            Outcome::Dead { reason, failure } => (Some(reason), failure.class, failure.error),
            Outcome::Retry { failure, .. } => (None, failure.class, failure.error),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_successful_attempt_ends_the_delivery() {
        for status in [200, 204, 299, 409] {
            let judged = rules().decide(&answered(status), made(2, 0), &mut rand::rng());
            assert_eq!(judged, (Outcome::Delivered, 3), "{status}");
        }
    }

    #[test]
    fn any_other_status_has_its_class_and_is_final_or_not() {
        use DeadReason::{AttemptsExhausted, Rejected};
        use ErrorClass::{ClientError, Redirect, ServerError};
        let table = [
            (302, Some(Rejected), Redirect),
            (400, Some(Rejected), ClientError),
            (401, Some(Rejected), ClientError),
            (408, None, ClientError),
            (429, None, ClientError),
            (500, None, ServerError),
            (501, Some(Rejected), ServerError),
            (599, None, ServerError),
            // Outside of what RFC 9110 defines.
            (101, None, ServerError),
            (999, None, ServerError),
        ];
        for (status, reason, class) in table {
            let (got, got_class, error) = failed(&answered(status), made(0, 0));
            assert_eq!((got, got_class), (reason, class), "{status}");
            assert!(error.starts_with(&status.to_string()), "{error}");
            let last = failed(&answered(status), made(4, 0)).0;
            assert_eq!(last, reason.or(Some(AttemptsExhausted)), "{status}");
        }
    }

    #[test]
    fn a_call_without_a_response_has_its_class_and_is_final_or_not() {
        let second = Duration::from_secs(1);
        let text = || "text".to_owned();
        let table = [
            (CallError::Connect(text()), None, ErrorClass::Connect, "no connection: text"),
            (CallError::Certificate(text()), Some(DeadReason::Rejected), ErrorClass::Tls, "TLS: text"),
            (CallError::Tls(text()), None, ErrorClass::Tls, "TLS: text"),
            (CallError::Timeout(second), None, ErrorClass::Timeout, "no complete response within 1s"),
            (CallError::Transport(text()), None, ErrorClass::Transport, "the connection broke: text"),
        ];
        for (error, reason, class, words) in table {
            let called = called(Err(error));
            assert!(!rules().is_well(&called), "{words}");
            assert_eq!(failed(&called, made(0, 0)), (reason, class, words.to_owned()));
            let last = failed(&called, made(4, 2)).0;
            assert_eq!(last, reason.or(Some(DeadReason::AttemptsExhausted)), "{words}");
        }
    }

    #[test]
    fn a_third_party_that_responds_is_healthy_unless_its_status_says_otherwise() {
        for (status, is_well) in
            [(200, true), (404, true), (409, true), (501, true), (429, false), (503, false)]
        {
            assert_eq!(rules().is_well(&answered(status)), is_well, "{status}");
        }
    }

    #[test]
    fn immediate_retries_have_no_due_time_and_retry_after_sets_one() {
        let timeout = called(Err(CallError::Timeout(Duration::from_secs(1))));
        let judged = rules().decide(&timeout, made(0, 1), &mut rand::rng());
        assert!(matches!(judged, (Outcome::Retry { due_at: None, .. }, 0)), "{judged:?}");

        let wish = Some(HeaderValue::from_static("60"));
        let put_off = Called { retry_after: wish, ..answered(503) };
        let judged = rules().decide(&put_off, made(0, 0), &mut rand::rng());
        let (Outcome::Retry { due_at: Some(due_at), .. }, 0) = judged else { panic!("{judged:?}") };
        assert!(due_at >= made(0, 0).at + TimeDelta::minutes(1), "{due_at}");

        let wish = Some(HeaderValue::from_static("90000"));
        let too_long = Called { retry_after: wish, ..answered(503) };
        assert_eq!(failed(&too_long, made(0, 0)).0, Some(DeadReason::Expired));
    }
}
