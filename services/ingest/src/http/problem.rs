//! Problem details (RFC 9457): what a client is told when something is wrong.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;
use throughline_snowflake::RequestId;

use super::body;
use crate::admission::Violation;

const TYPE_BASE: &str = "https://throughline.dev/problems/";

/// How long a client is asked to wait when ingest cannot take its request now, in seconds. The
/// writer's queue empties in far less; a database that restarts takes about this long.
const RETRY_AFTER_SECONDS: u16 = 1;

/// Everything that a client can be told. Nothing here carries text of a dependency.
#[derive(Debug)]
pub(crate) enum Problem {
    NotJson(String),
    SchemaViolation(Vec<Violation>),
    UnsupportedMediaType,
    BodyTooLarge {
        limit: u64,
    },
    BodyTimeout {
        deadline: Duration,
    },
    BodyBroken,
    IdempotencyKeyInvalid,
    IdempotencyKeyReused,
    /// The first request under the key is still being committed.
    IdempotencyKeyInFlight,
    NotFound,
    RequestUnknown(RequestId),
    HasEnded(RequestId),
    NotDead(RequestId),
    ReplayUnknown,
    TooManyReplays {
        most: u32,
    },
    QueryInvalid(String),
    RequestIdInvalid(String),
    MethodNotAllowed {
        allow: &'static str,
    },
    /// No key, or one that no client has.
    Unauthorized,
    Forbidden {
        client: String,
        what: String,
    },
    /// Without clients, only this machine may manage.
    NotLocal,
    CrossOrigin,
    /// In seconds, when there is room again.
    RateExceeded {
        retry_after: u64,
    },
    PathUnreadable,
    HeadersTooLarge {
        limit: usize,
    },
    Unavailable(&'static str),
    Internal,
}

/// Why a request was refused, after RFC 9457.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(super) struct Body<'a> {
    /// What kind of problem it is; it stays the same from version to version.
    r#type: String,
    /// The same for people.
    title: &'a str,
    /// As in the status line.
    status: u16,
    /// What is special about this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// The places in the body that do not fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<&'a [Violation]>,
}

impl Problem {
    /// Status, the last part of the type's URI, and title.
    fn kind(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::NotJson(_) => (StatusCode::BAD_REQUEST, "not-json", "The body is not JSON"),
            Self::BodyBroken => (StatusCode::BAD_REQUEST, "body-incomplete", "The body did not arrive whole"),
            Self::IdempotencyKeyInvalid => {
                (StatusCode::BAD_REQUEST, "idempotency-key-invalid", "The Idempotency-Key is not one")
            }
            Self::RequestIdInvalid(_) => {
                (StatusCode::BAD_REQUEST, "request-id-invalid", "That is not a request id")
            }
            Self::PathUnreadable => (StatusCode::BAD_REQUEST, "path-unreadable", "The path cannot be read"),
            Self::Unauthorized => {
                (StatusCode::UNAUTHORIZED, "unauthorized", "Only known clients may do this")
            }
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, "forbidden", "This client may not do this"),
            Self::NotLocal => (StatusCode::FORBIDDEN, "not-local", "Only the machine itself may do this"),
            Self::CrossOrigin => {
                (StatusCode::FORBIDDEN, "cross-origin", "A page of another origin may not do this")
            }
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "There is nothing at this path"),
            Self::RequestUnknown(_) => {
                (StatusCode::NOT_FOUND, "request-unknown", "There is no such request or delivery")
            }
            Self::QueryInvalid(_) => {
                (StatusCode::BAD_REQUEST, "query-invalid", "The query is not understood")
            }
            Self::ReplayUnknown => (StatusCode::NOT_FOUND, "replay-unknown", "There is no such replay"),
            Self::TooManyReplays { .. } => {
                (StatusCode::CONFLICT, "too-many-replays", "Too many replays run already")
            }
            Self::NotDead(_) => (StatusCode::CONFLICT, "not-dead", "Only what is dead can be replayed"),
            Self::HasEnded(_) => (StatusCode::CONFLICT, "has-ended", "There is nothing left to call off"),
            Self::MethodNotAllowed { .. } => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "This path does not take this method")
            }
            Self::BodyTimeout { .. } => {
                (StatusCode::REQUEST_TIMEOUT, "body-timeout", "The body did not arrive in time")
            }
            Self::BodyTooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The body is too large")
            }
            Self::UnsupportedMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "The body must be JSON")
            }
            Self::SchemaViolation(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "schema-violation",
                "The body is not what this route takes",
            ),
            Self::IdempotencyKeyReused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "This Idempotency-Key was used with another body",
            ),
            Self::IdempotencyKeyInFlight => (
                StatusCode::CONFLICT,
                "idempotency-key-in-flight",
                "A request with this Idempotency-Key is still being stored",
            ),
            Self::RateExceeded { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "rate-exceeded", "This route takes no more requests now")
            }
            Self::HeadersTooLarge { .. } => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers-too-large",
                "The headers are too large",
            ),
            Self::Unavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The request cannot be taken now")
            }
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something went wrong here"),
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::NotJson(why) | Self::QueryInvalid(why) => Some(why.clone()),
            Self::BodyTooLarge { limit } => Some(format!("The limit is {limit} bytes.")),
            Self::UnsupportedMediaType => Some(
                "Send it with the content type application/json, or another that ends in +json.".to_owned(),
            ),
            Self::IdempotencyKeyInvalid => Some("Send 1 to 255 visible ASCII characters.".to_owned()),
            Self::RequestIdInvalid(id) => Some(format!("A request id has 20 digits; this was `{id}`.")),
            Self::RequestUnknown(id) => Some(format!("No request has the id {id}, or it has no such delivery.")),
            Self::HasEnded(id) => Some(format!("All that was meant of request {id} has ended.")),
            Self::TooManyReplays { most } => Some(format!(
                "At most {most} replays run at a time. Stop one, or wait until one is done."
            )),
            Self::NotDead(id) => Some(format!("That delivery of request {id} is not dead.")),
            Self::MethodNotAllowed { allow } => Some(format!("It takes {allow}.")),
            Self::Unauthorized => Some("Send `Authorization: Bearer <key>`, with a key that is known here.".to_owned()),
            Self::Forbidden { client, what } => Some(format!("The client `{client}` may not use {what}.")),
            Self::NotLocal => Some("No client is configured, so that /v1 answers this machine alone, as localhost or by an IP address. Configure `clients`, or set `insecure: true`.".to_owned()),
            Self::CrossOrigin => Some("A browser sends it for a page of another origin, by its Sec-Fetch-Site or Origin.".to_owned()),
            Self::RateExceeded { retry_after } => Some(format!("Send it again in {retry_after} s.")),
            Self::IdempotencyKeyInFlight => Some(format!("Send it again in {RETRY_AFTER_SECONDS} s, with the same key.")),
            Self::PathUnreadable => Some("Its percent-encoded bytes are not UTF-8.".to_owned()),
            Self::HeadersTooLarge { limit } => Some(format!("The limit is {limit} bytes for all of them.")),
            Self::Unavailable(why) => Some((*why).to_owned()),
            Self::Internal => Some("It was logged. Whether the request was kept is not known: with an Idempotency-Key it is safe to send it again.".to_owned()),
            Self::BodyTimeout { deadline } => Some(format!(
                "It must be complete after {}, and after {} s its average rate must be {} KiB/s or more.",
                humantime::format_duration(*deadline),
                body::GRACE.as_secs(),
                body::SLOWEST >> 10,
            )),
            Self::SchemaViolation(_)
            | Self::BodyBroken
            | Self::IdempotencyKeyReused
            | Self::NotFound
            | Self::ReplayUnknown => None,
        }
    }

    /// The header that goes with some problems.
    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::Unavailable(_) | Self::IdempotencyKeyInFlight => {
                Some((RETRY_AFTER, RETRY_AFTER_SECONDS.into()))
            }
            Self::RateExceeded { retry_after } => Some((RETRY_AFTER, (*retry_after).into())),
            Self::MethodNotAllowed { allow } => Some((ALLOW, HeaderValue::from_static(allow))),
            Self::Unauthorized => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            _ => None,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, name, title) = self.kind();
        let errors = if let Self::SchemaViolation(violations) = &self { Some(&violations[..]) } else { None };
        let body = Body {
            r#type: format!("{TYPE_BASE}{name}"),
            title,
            status: status.as_u16(),
            detail: self.detail(),
            errors,
        };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some((name, value)) = self.header() {
            headers.insert(name, value);
        }
        response
    }
}
