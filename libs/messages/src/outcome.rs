use std::str::FromStr;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use throughline_snowflake::RequestId;

use crate::dead_letter::DeadReason;
use crate::foreign::Origin;
use crate::unknown::{self, InvalidName, Unknown};

/// Dispatch's report of one attempt, as JSON the value of a record on the outcomes topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptReport {
    /// The request.
    pub request_id: RequestId,
    /// The destination of the delivery.
    pub destination: String,
    /// The number of the attempt within the delivery, from 1; if it was not made, the number that it would have had.
    pub attempt: u32,
    /// Whether the destination was called. It was not if the delivery has to wait or had already ended.
    #[serde(default = "by_default")]
    pub called: bool,
    /// How many attempts have counted so far, including this one. Not every attempt counts.
    #[serde(default)]
    pub counted_attempts: u32,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// How long it took in milliseconds, including token and transformation.
    pub duration_ms: u64,
    /// Its trace id, 32 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace_id: Option<String>,
    /// The record that led to it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub origin: Option<Origin>,
    /// The status of the third party's response, if there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<u16>,
    /// The beginning of the third party's response body, for human readers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub response_excerpt: Option<String>,
    /// The outcome for the delivery.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The default of `called`. A report without the field is of a call, unless it is of a deferral.
fn by_default() -> bool {
    true
}

impl AttemptReport {
    /// Returns whether an attempt was made.
    #[must_use]
    pub fn is_of_a_call(&self) -> bool {
        self.called && !matches!(self.outcome, Outcome::Deferred { .. })
    }

    /// Returns how many attempts of the delivery were made so far.
    #[must_use]
    pub fn made(&self) -> u32 {
        if self.is_of_a_call() { self.attempt } else { self.attempt.saturating_sub(1) }
    }
}

/// The outcome of an attempt for its delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The third party accepted the request.
    Delivered,
    /// The attempt failed, and a retry follows.
    Retry {
        /// When the retry is due; `None` if dispatch makes it at once.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        due_at: Option<DateTime<Utc>>,
        /// The failure of this attempt.
        #[serde(flatten)]
        failure: Failure,
    },
    /// No attempt was made. The delivery waits; this is not a failure and counts no attempt.
    Deferred {
        /// When dispatch looks at it again.
        due_at: DateTime<Utc>,
        /// Why it waits.
        cause: DeferralCause,
    },
    /// It ended without success.
    Dead {
        /// Why it is dead.
        reason: DeadReason,
        /// The last failure.
        #[serde(flatten)]
        failure: Failure,
    },
}

impl Outcome {
    /// Returns the outcome's name, as on the wire and in the database.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry { .. } => "retry",
            Self::Deferred { .. } => "deferred",
            Self::Dead { .. } => "dead",
        }
    }

    /// Returns the failure, if there was one.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Delivered | Self::Deferred { .. } => None,
            Self::Retry { failure, .. } | Self::Dead { failure, .. } => Some(failure),
        }
    }
}

/// Why a delivery is deferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", expecting = "must be the name of a cause, such as `limit`")]
pub enum DeferralCause {
    /// The destination's breaker is open: the third party fails, and only a few calls probe it.
    BreakerOpen,
    /// The destination has reached its limit of concurrent calls or its rate limit.
    Limit,
    /// Too many requests with the same ordering key are ahead of it, and the key allows one call at a time.
    KeyBusy,
    /// The token endpoint does not answer.
    TokenUnavailable,
    /// The token endpoint rejects our credentials, which an operator has to correct.
    TokenRefused,
    /// Dispatch's configuration has no such destination. Its rollout may still be in progress.
    UnknownDestination,
    /// Earlier deliveries with the same ordering key have not ended. Ingest sets this cause; dispatch never reports it.
    Order,
    /// A cause of a later version, by its name.
    #[serde(untagged)]
    Other(Unknown),
}

impl DeferralCause {
    /// Returns the cause's name, as on the wire, in the database and in metrics.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::BreakerOpen => "breaker_open",
            Self::Limit => "limit",
            Self::KeyBusy => "key_busy",
            Self::TokenUnavailable => "token_unavailable",
            Self::TokenRefused => "token_refused",
            Self::UnknownDestination => "unknown_destination",
            Self::Order => "order",
            Self::Other(name) => name.as_str(),
        }
    }
}

/// The failure of an attempt, as a class for machines and as text for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class of the error.
    #[serde(rename = "error_class")]
    pub class: ErrorClass,
    /// The error as text, without secrets.
    pub error: String,
}

/// The class of an attempt's error. The set is fixed: dashboards and alerts rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", expecting = "must be the name of an error class, such as `timeout`")]
pub enum ErrorClass {
    /// No connection: name resolution failed, or the host refused, was unreachable, or reset before a request was sent.
    Connect,
    /// The TLS handshake or the certificate of the connection failed.
    Tls,
    /// No complete response in time.
    Timeout,
    /// The connection broke during the request or its response.
    Transport,
    /// A 3xx response; redirects are not followed.
    Redirect,
    /// A 4xx response.
    ClientError,
    /// A 5xx response.
    ServerError,
    /// The destination's filter failed on this body.
    Transform,
    /// The route or destination is not in dispatch's configuration.
    Configuration,
    /// The broker refused the record.
    Broker,
    /// The record of the delivery has an unusable header.
    Record,
    /// The service failed because of a defect of its own.
    Internal,
    /// A class of a later version, by its name.
    #[serde(untagged)]
    Other(Unknown),
}

impl ErrorClass {
    /// Returns the class's name, as on the wire, in the database and in metrics.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Transport => "transport",
            Self::Redirect => "redirect",
            Self::ClientError => "client_error",
            Self::ServerError => "server_error",
            Self::Transform => "transform",
            Self::Configuration => "configuration",
            Self::Broker => "broker",
            Self::Record => "record",
            Self::Internal => "internal",
            Self::Other(name) => name.as_str(),
        }
    }
}

impl FromStr for ErrorClass {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        unknown::parse(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(status: Option<u16>, outcome: Outcome) -> AttemptReport {
        AttemptReport {
            request_id: "00000000000000000042".parse().unwrap(),
            destination: "three".to_owned(),
            attempt: 2,
            called: true,
            counted_attempts: 1,
            started_at: DateTime::from_timestamp(1_767_225_600, 0).unwrap(),
            duration_ms: 12,
            trace_id: None,
            origin: Some("throughline.retries/2/17".parse().unwrap()),
            status,
            response_excerpt: status.map(|_| "no".to_owned()),
            outcome,
        }
    }

    fn failure(class: ErrorClass, error: &str) -> Failure {
        Failure { class, error: error.to_owned() }
    }

    /// The JSON of a report, read back; without what is the same in all.
    fn json(report: &AttemptReport) -> serde_json::Value {
        let json = serde_json::to_value(report).unwrap();
        assert_eq!(&serde_json::from_value::<AttemptReport>(json.clone()).unwrap(), report);
        json
    }

    #[test]
    fn a_report_is_flat_json() {
        let outcome = Outcome::Dead {
            reason: DeadReason::Rejected,
            failure: failure(ErrorClass::ClientError, "400 Bad Request"),
        };
        assert_eq!(
            json(&report(Some(400), outcome)),
            serde_json::json!({
                "request_id": "00000000000000000042", "destination": "three", "attempt": 2, "called": true, "counted_attempts": 1,
                "started_at": "2026-01-01T00:00:00Z", "duration_ms": 12,
                "origin": "throughline.retries/2/17", "status": 400,
                "response_excerpt": "no", "outcome": "dead", "reason": "rejected",
                "error_class": "client_error", "error": "400 Bad Request",
            })
        );
    }

    #[test]
    fn a_report_without_an_origin_can_be_read() {
        let mut older = json(&report(None, Outcome::Delivered));
        older.as_object_mut().unwrap().remove("origin");
        assert_eq!(serde_json::from_value::<AttemptReport>(older).unwrap().origin, None);
    }

    #[test]
    fn names_of_later_versions_are_kept_unchanged() {
        let later = |outcome: serde_json::Value| {
            let mut report = json(&report(None, Outcome::Delivered));
            report.as_object_mut().unwrap().extend(outcome.as_object().unwrap().clone());
            let read: AttemptReport = serde_json::from_value(report.clone()).unwrap();
            assert_eq!(serde_json::to_value(&read).unwrap(), report);
            read.outcome
        };
        let dead = serde_json::json!({"outcome": "dead", "reason": "unpaid", "error_class": "quota", "error": "402"});
        let failure =
            Failure { class: ErrorClass::Other("quota".try_into().unwrap()), error: "402".to_owned() };
        let reason = DeadReason::Other("unpaid".try_into().unwrap());
        assert_eq!(later(dead), Outcome::Dead { reason, failure });
        let due_at = DateTime::from_timestamp(1_767_225_660, 0).unwrap();
        let deferred = serde_json::json!({"outcome": "deferred", "due_at": due_at, "cause": "paused"});
        let cause = DeferralCause::Other("paused".try_into().unwrap());
        assert_eq!(later(deferred), Outcome::Deferred { due_at, cause });
    }

    #[test]
    fn an_attempt_counts_as_made_if_there_was_a_call() {
        let failure = failure(ErrorClass::Transform, "the filter failed: no user");
        let dead = report(None, Outcome::Dead { reason: DeadReason::Untransformable, failure });
        let due_at = DateTime::from_timestamp(1_767_225_660, 0).unwrap();
        let deferred = report(None, Outcome::Deferred { due_at, cause: DeferralCause::Limit });
        assert_eq!((dead.is_of_a_call(), dead.made()), (true, 2));
        assert_eq!((deferred.is_of_a_call(), deferred.made()), (false, 1));
        let uncalled = AttemptReport { called: false, ..dead.clone() };
        assert_eq!((uncalled.is_of_a_call(), uncalled.made()), (false, 1));

        let mut silent = json(&dead);
        silent.as_object_mut().unwrap().remove("called");
        assert_eq!(serde_json::from_value::<AttemptReport>(silent).unwrap(), dead);
    }

    #[test]
    fn an_outcome_that_is_not_final_has_a_due_time() {
        let due_at = DateTime::from_timestamp(1_767_225_660, 0);
        let failure = failure(ErrorClass::Timeout, "no complete response within 1s");
        let later = json(&report(None, Outcome::Retry { due_at, failure: failure.clone() }));
        assert_eq!((&later["outcome"], &later["due_at"]), (&"retry".into(), &"2026-01-01T00:01:00Z".into()));
        let at_once = json(&report(None, Outcome::Retry { due_at: None, failure }));
        assert_eq!(at_once.get("due_at"), None);
        let deferred = Outcome::Deferred { due_at: due_at.unwrap(), cause: DeferralCause::BreakerOpen };
        let deferred = json(&report(None, deferred));
        assert_eq!((&deferred["outcome"], &deferred["cause"]), (&"deferred".into(), &"breaker_open".into()));
    }
}
