//! Problem details (RFC 9457): what a client is told when something is wrong.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde::Serialize;

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
    BodyTooLarge { limit: u64 },
    BodyTimeout,
    BodyBroken,
    IdempotencyKeyInvalid,
    IdempotencyKeyReused,
    NotFound,
    RequestUnknown(String),
    RequestIdInvalid(String),
    MethodNotAllowed { allow: &'static str },
    Unavailable(&'static str),
    Internal,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
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
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "There is nothing at this path"),
            Self::RequestUnknown(_) => {
                (StatusCode::NOT_FOUND, "request-unknown", "There is no request with this id")
            }
            Self::MethodNotAllowed { .. } => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "This path does not take this method")
            }
            Self::BodyTimeout => {
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
            Self::Unavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The request cannot be taken now")
            }
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something went wrong here"),
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::NotJson(why) => Some(why.clone()),
            Self::BodyTooLarge { limit } => Some(format!("The limit is {limit} bytes.")),
            Self::UnsupportedMediaType => Some(
                "Send it with the content type application/json, or another that ends in +json.".to_owned(),
            ),
            Self::IdempotencyKeyInvalid => Some("Send 1 to 255 visible ASCII characters.".to_owned()),
            Self::RequestIdInvalid(id) => Some(format!("A request id has 20 digits; this was `{id}`.")),
            Self::RequestUnknown(id) => Some(format!("No request has the id {id}.")),
            Self::MethodNotAllowed { allow } => Some(format!("It takes {allow}.")),
            Self::Unavailable(why) => Some((*why).to_owned()),
            Self::Internal => Some("It was logged. Whether the request was kept is not known: with an Idempotency-Key it is safe to send it again.".to_owned()),
            Self::SchemaViolation(_)
            | Self::BodyTimeout
            | Self::BodyBroken
            | Self::IdempotencyKeyReused
            | Self::NotFound => None,
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
        match self {
            Self::Unavailable(_) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
            }
            Self::MethodNotAllowed { allow } => {
                headers.insert(ALLOW, HeaderValue::from_static(allow));
            }
            _ => {}
        }
        response
    }
}
