use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use throughline_snowflake::RequestId;

use crate::dead_letter::DeadReason;

/// What dispatch reports of one attempt; the value of a record on the outcomes topic, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptReport {
    /// The request.
    pub request_id: RequestId,
    /// The destination that was called.
    pub destination: String,
    /// Which attempt of the delivery it was, from 1.
    pub attempt: u32,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// How long it took, token and transformation included, in milliseconds.
    pub duration_ms: u64,
    /// The trace that shows it, 32 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace_id: Option<String>,
    /// The status of the third party's response, if there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<u16>,
    /// The beginning of the third party's response body, for people.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub response_excerpt: Option<String>,
    /// What becomes of the delivery.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What becomes of a delivery after an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The third party has it.
    Delivered,
    /// It ended without success.
    Dead {
        /// Why it ended.
        reason: DeadReason,
        /// What went wrong last.
        #[serde(flatten)]
        failure: Failure,
    },
}

impl Outcome {
    /// The outcome's name, as on the wire and in the database.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Dead { .. } => "dead",
        }
    }

    /// What went wrong, unless nothing did.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Delivered => None,
            Self::Dead { failure, .. } => Some(failure),
        }
    }
}

/// What went wrong in an attempt: for machines and for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of error it was.
    #[serde(rename = "error_class")]
    pub class: ErrorClass,
    /// The error in words, without secrets.
    pub error: String,
}

/// What kind of error an attempt met. The list is closed: dashboards and alerts count on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// No connection: name resolution, refused, unreachable, reset before a request was sent.
    Connect,
    /// The connection's TLS handshake or certificate.
    Tls,
    /// No complete response in time.
    Timeout,
    /// The connection broke while the request or its response was under way.
    Transport,
    /// A 3xx response; redirects are not followed.
    Redirect,
    /// A 4xx response.
    ClientError,
    /// A 5xx response.
    ServerError,
    /// The destination's filter failed on this body.
    Transform,
    /// No token was to be had.
    Token,
    /// The route or destination is not in dispatch's configuration.
    Configuration,
    /// The record cannot be read.
    Malformed,
    /// The broker refused the record.
    Broker,
}

impl ErrorClass {
    /// The class's name, as on the wire, in the database and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Transport => "transport",
            Self::Redirect => "redirect",
            Self::ClientError => "client_error",
            Self::ServerError => "server_error",
            Self::Transform => "transform",
            Self::Token => "token",
            Self::Configuration => "configuration",
            Self::Malformed => "malformed",
            Self::Broker => "broker",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_flat_json() {
        let report = AttemptReport {
            request_id: "00000000000000000042".parse().unwrap(),
            destination: "three".to_owned(),
            attempt: 1,
            started_at: DateTime::from_timestamp(1_767_225_600, 0).unwrap(),
            duration_ms: 12,
            trace_id: None,
            status: Some(400),
            response_excerpt: Some("no".to_owned()),
            outcome: Outcome::Dead {
                reason: DeadReason::Rejected,
                failure: Failure { class: ErrorClass::ClientError, error: "400 Bad Request".to_owned() },
            },
        };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "request_id": "00000000000000000042", "destination": "three", "attempt": 1,
                "started_at": "2026-01-01T00:00:00Z", "duration_ms": 12, "status": 400,
                "response_excerpt": "no", "outcome": "dead", "reason": "rejected",
                "error_class": "client_error", "error": "400 Bad Request",
            })
        );
        assert_eq!(serde_json::from_value::<AttemptReport>(json).unwrap(), report);
    }
}
