//! Classifies the end of an HTTP call.

use chrono::{DateTime, Utc};
use http::StatusCode;
use throughline_messages::{ErrorClass, Failure};
use throughline_resilience::Cause;

use super::Http;
use super::call::Exchange;
use super::retry_after::RetryAfter;
use super::statuses::{StatusMeaning, Statuses};
use crate::{CallFailure, Called};

impl Http {
    /// Returns what the end of a call means for its delivery.
    pub(super) fn classify(&self, exchange: Exchange) -> Called {
        let result = result(&self.statuses, &exchange, self.clock.now());
        Called { status: exchange.status.map(|status| status.as_u16()), excerpt: exchange.excerpt, result }
    }
}

fn result(statuses: &Statuses, exchange: &Exchange, now: DateTime<Utc>) -> Result<(), CallFailure> {
    let status = match &exchange.end {
        Ok(status) => *status,
        Err(error) => {
            return Err(CallFailure {
                failure: Failure { class: error.class(), error: error.to_string() },
                retry: error.is_retryable().then_some(Cause::NoResponse),
                is_outage: true,
            });
        }
    };
    let retry = match statuses.meaning(status) {
        StatusMeaning::Delivered => return Ok(()),
        StatusMeaning::Dead => None,
        StatusMeaning::Retry => Some(cause(status, retry_after(exchange, now))),
    };
    let failure = Failure { class: class_of(status), error: status.to_string() };
    Err(CallFailure { failure, retry, is_outage: statuses.is_failing(status) })
}

/// A 429 or 503 with `Retry-After` names the time at which the third party accepts calls again.
fn cause(status: StatusCode, retry_after: Option<DateTime<Utc>>) -> Cause {
    match (status, retry_after) {
        (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, Some(until)) => {
            Cause::Busy { until }
        }
        (_, not_before) => Cause::Failed { not_before },
    }
}

fn retry_after(exchange: &Exchange, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let value = exchange.retry_after.as_ref()?.to_str().ok()?;
    RetryAfter::parse(value, now).map(RetryAfter::at)
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
    use std::time::Duration;

    use chrono::TimeDelta;
    use http::HeaderValue;

    use super::super::error::CallError;
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_767_225_600, 0).unwrap()
    }

    fn ended(end: Result<StatusCode, CallError>) -> Exchange {
        Exchange { status: None, retry_after: None, excerpt: None, end }
    }

    fn answered(status: u16) -> Exchange {
        ended(Ok(StatusCode::from_u16(status).unwrap()))
    }

    fn deferred(status: u16, retry_after: &'static str) -> Exchange {
        Exchange { retry_after: Some(HeaderValue::from_static(retry_after)), ..answered(status) }
    }

    fn classified(exchange: &Exchange) -> Result<(), CallFailure> {
        result(&Statuses::with([(409, StatusMeaning::Delivered)]), exchange, now())
    }

    #[test]
    fn a_success_or_a_status_with_that_meaning_delivers() {
        for status in [200, 204, 299, 409] {
            assert!(classified(&answered(status)).is_ok(), "{status}");
        }
    }

    #[test]
    fn any_other_status_has_its_class_and_is_final_or_not() {
        use ErrorClass::{ClientError, Redirect, ServerError};
        let table = [
            (302, false, Redirect),
            (400, false, ClientError),
            (401, false, ClientError),
            (408, true, ClientError),
            (429, true, ClientError),
            (500, true, ServerError),
            (501, false, ServerError),
            (599, true, ServerError),
            // Outside of what RFC 9110 defines.
            (101, true, ServerError),
            (999, true, ServerError),
        ];
        for (status, is_retried, class) in table {
            let failed = classified(&answered(status)).unwrap_err();
            assert_eq!((failed.retry.is_some(), failed.failure.class), (is_retried, class), "{status}");
            assert!(failed.failure.error.starts_with(&status.to_string()), "{}", failed.failure.error);
        }
    }

    #[test]
    fn a_call_without_a_response_has_its_class_and_is_final_or_not() {
        let text = || "text".to_owned();
        let again = Some(Cause::NoResponse);
        let table = [
            (CallError::Connect(text()), again, ErrorClass::Connect, "no connection: text"),
            (CallError::Certificate(text()), None, ErrorClass::Tls, "TLS: text"),
            (CallError::Tls(text()), again, ErrorClass::Tls, "TLS: text"),
            (
                CallError::Timeout(Duration::from_secs(1)),
                again,
                ErrorClass::Timeout,
                "no complete response within 1s",
            ),
            (CallError::Transport(text()), again, ErrorClass::Transport, "the connection broke: text"),
        ];
        for (error, retry, class, words) in table {
            let failed = classified(&ended(Err(error))).unwrap_err();
            assert_eq!((failed.retry, failed.is_outage), (retry, true), "{words}");
            assert_eq!(failed.failure, Failure { class, error: words.to_owned() });
        }
    }

    #[test]
    fn a_third_party_that_responds_is_healthy_unless_its_status_says_otherwise() {
        for (status, is_outage) in
            [(200, false), (404, false), (409, false), (501, false), (429, true), (503, true)]
        {
            let failed = classified(&answered(status)).is_err_and(|failed| failed.is_outage);
            assert_eq!(failed, is_outage, "{status}");
        }
    }

    #[test]
    fn only_a_429_or_503_with_retry_after_says_that_the_third_party_is_busy() {
        let until = now() + TimeDelta::minutes(1);
        for (status, cause) in [
            (429, Cause::Busy { until }),
            (503, Cause::Busy { until }),
            (500, Cause::Failed { not_before: Some(until) }),
            (408, Cause::Failed { not_before: Some(until) }),
        ] {
            assert_eq!(classified(&deferred(status, "60")).unwrap_err().retry, Some(cause), "{status}");
        }
        for exchange in [answered(503), deferred(503, "soon")] {
            let retry = classified(&exchange).unwrap_err().retry;
            assert_eq!(retry, Some(Cause::Failed { not_before: None }));
        }
    }
}
