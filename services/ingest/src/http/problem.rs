//! Problem details (RFC 9457): the error answers to clients.

use std::borrow::Cow;
use std::mem::take;
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use throughline_api::Violation;
use throughline_settings::Content;
use throughline_snowflake::RequestId;

const TYPE_BASE: &str = "https://throughline.dev/problems/";

/// How long a client is asked to wait if ingest cannot accept its request now, in seconds. The writer's queue empties
/// in far less; a restart of the database takes about this long.
const RETRY_AFTER_SECONDS: u16 = 1;

/// Every error that a client can receive. None carries text of a dependency.
#[derive(Debug)]
pub(crate) enum Problem {
    NotJson(String),
    SchemaViolation(Vec<Violation>),
    /// Holds the content that the route accepts.
    UnsupportedMediaType(Content),
    BodyTooLarge {
        limit: u64,
    },
    /// The body must arrive within `deadline` and, after `grace`, at `rate` bytes per second on average.
    BodyTimeout {
        deadline: Duration,
        grace: Duration,
        rate: u32,
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
        allow: Cow<'static, str>,
    },
    /// No key was sent, or an unknown one.
    Unauthorized,
    Forbidden {
        client: String,
        what: String,
    },
    /// Without configured clients, only this machine may manage.
    NotLocal,
    CrossOrigin,
    /// `retry_after` is the number of seconds until the rate permits a request again.
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

impl Problem {
    /// Returns the status, the last segment of the type's URI, and the title.
    fn kind(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::NotJson(_) => (StatusCode::BAD_REQUEST, "not-json", "Body is not valid JSON"),
            Self::BodyBroken => (StatusCode::BAD_REQUEST, "body-incomplete", "Incomplete body"),
            Self::IdempotencyKeyInvalid => {
                (StatusCode::BAD_REQUEST, "idempotency-key-invalid", "Invalid Idempotency-Key")
            }
            Self::RequestIdInvalid(_) => {
                (StatusCode::BAD_REQUEST, "request-id-invalid", "Invalid request id")
            }
            Self::PathUnreadable => (StatusCode::BAD_REQUEST, "path-unreadable", "Invalid path"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized", "Authentication required"),
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, "forbidden", "Not permitted for this client"),
            Self::NotLocal => (StatusCode::FORBIDDEN, "not-local", "Only permitted from the local machine"),
            Self::CrossOrigin => (StatusCode::FORBIDDEN, "cross-origin", "Cross-origin request rejected"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "Not found"),
            Self::RequestUnknown(_) => {
                (StatusCode::NOT_FOUND, "request-unknown", "Request or delivery not found")
            }
            Self::QueryInvalid(_) => (StatusCode::BAD_REQUEST, "query-invalid", "Invalid query"),
            Self::ReplayUnknown => (StatusCode::NOT_FOUND, "replay-unknown", "Replay not found"),
            Self::TooManyReplays { .. } => {
                (StatusCode::CONFLICT, "too-many-replays", "Too many replays are running")
            }
            Self::NotDead(_) => (StatusCode::CONFLICT, "not-dead", "Delivery is not dead"),
            Self::HasEnded(_) => (StatusCode::CONFLICT, "has-ended", "Nothing left to cancel"),
            Self::MethodNotAllowed { .. } => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed")
            }
            Self::BodyTimeout { .. } => {
                (StatusCode::REQUEST_TIMEOUT, "body-timeout", "Body did not arrive in time")
            }
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large"),
            Self::UnsupportedMediaType(_) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Unsupported media type")
            }
            Self::SchemaViolation(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "schema-violation",
                "Body violates the requirements of the route",
            ),
            Self::IdempotencyKeyReused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "Idempotency-Key already used with another body",
            ),
            Self::IdempotencyKeyInFlight => (
                StatusCode::CONFLICT,
                "idempotency-key-in-flight",
                "A request with this Idempotency-Key is still in progress",
            ),
            Self::RateExceeded { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "rate-exceeded", "Rate limit exceeded")
            }
            Self::HeadersTooLarge { .. } => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large", "Headers too large")
            }
            Self::Unavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Temporarily unavailable")
            }
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error"),
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::NotJson(why) | Self::QueryInvalid(why) => Some(why.clone()),
            Self::BodyTooLarge { limit } => Some(format!("The limit is {limit} bytes.")),
            Self::UnsupportedMediaType(Content::Json) => Some(
                "Send JSON with the content type application/json, or with one that ends in +json.".to_owned(),
            ),
            Self::UnsupportedMediaType(Content::Any) => Some(
                "The Content-Type is not a media type. Send one such as text/plain, or none for \
                 application/octet-stream."
                    .to_owned(),
            ),
            Self::IdempotencyKeyInvalid => Some("Send 1 to 255 visible ASCII characters.".to_owned()),
            Self::RequestIdInvalid(id) => Some(format!("A request id has 20 digits; received `{id}`.")),
            Self::RequestUnknown(id) => {
                Some(format!("No request has the id {id}, or the request has no such delivery."))
            }
            Self::HasEnded(id) => Some(format!("All matching deliveries of request {id} have already ended.")),
            Self::TooManyReplays { most } => Some(format!(
                "At most {most} replays run at a time. Stop one, or wait until one is done."
            )),
            Self::NotDead(id) => Some(format!(
                "This delivery of request {id} is not dead. Only dead deliveries can be replayed."
            )),
            Self::MethodNotAllowed { allow } => Some(format!("This path accepts {allow}.")),
            Self::Unauthorized => {
                Some("Send `Authorization: Bearer <key>` with the key of a configured client.".to_owned())
            }
            Self::Forbidden { client, what } => Some(format!("The client `{client}` may not use {what}.")),
            Self::NotLocal => Some(
                "No client is configured, so /v1 answers only requests that come from this machine and address it as \
                 localhost or by an IP address. Configure `clients`, or set `insecure: true`."
                    .to_owned(),
            ),
            Self::CrossOrigin => Some(
                "The Sec-Fetch-Site or Origin header shows that a browser sent the request for a page of another \
                 origin."
                    .to_owned(),
            ),
            Self::RateExceeded { retry_after } => Some(format!("Retry in {retry_after} s.")),
            Self::IdempotencyKeyInFlight => Some(format!("Retry in {RETRY_AFTER_SECONDS} s with the same key.")),
            Self::PathUnreadable => Some("The percent-encoded bytes of the path are not UTF-8.".to_owned()),
            Self::HeadersTooLarge { limit } => Some(format!("The limit for all headers together is {limit} bytes.")),
            Self::Unavailable(why) => Some((*why).to_owned()),
            Self::Internal => Some(
                "The error was logged. The request may have been stored: with an Idempotency-Key, a retry is safe."
                    .to_owned(),
            ),
            Self::BodyTimeout { deadline, grace, rate } => Some(format!(
                "The body must be complete within {}. After {} s, its average rate must be at least {} KiB/s.",
                humantime::format_duration(*deadline),
                grace.as_secs(),
                rate >> 10,
            )),
            Self::SchemaViolation(_)
            | Self::BodyBroken
            | Self::IdempotencyKeyReused
            | Self::NotFound
            | Self::ReplayUnknown => None,
        }
    }

    /// Returns the header that accompanies some problems.
    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::Unavailable(_) | Self::IdempotencyKeyInFlight => {
                Some((RETRY_AFTER, RETRY_AFTER_SECONDS.into()))
            }
            Self::RateExceeded { retry_after } => Some((RETRY_AFTER, (*retry_after).into())),
            Self::MethodNotAllowed { allow } => Some((ALLOW, HeaderValue::from_str(allow).ok()?)),
            Self::Unauthorized => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            _ => None,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(mut self) -> Response {
        let (status, name, title) = self.kind();
        let body = throughline_api::Problem {
            kind: format!("{TYPE_BASE}{name}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail(),
            errors: if let Self::SchemaViolation(violations) = &mut self {
                take(violations)
            } else {
                Vec::new()
            },
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
