//! `POST` on a route's path.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;
use throughline_snowflake::RequestId;
use tokio::time::timeout;
use tracing::Span;

use super::body::{self, BUSY};
use super::clients::Caller;
use super::problem::Problem;
use super::rate::Limits;
use crate::intake::{AcceptError, IncomingRequest, Intake};

const NO_ANSWER: &str = "The database did not answer in time. The request may have been stored: retry with the same \
                    Idempotency-Key.";

/// The handler's state for one route.
#[derive(Clone)]
pub(super) struct RouteState {
    pub(super) intake: Arc<Intake>,
    /// The rate limits of the clients; `None` is unlimited.
    pub(super) limits: Option<Arc<Limits>>,
    /// The limits of a body.
    pub(super) bounds: body::Bounds,
    /// Maximum time for a request to be committed.
    pub(super) timeout: Duration,
}

/// The answer to an accepted request.
#[derive(Serialize, JsonSchema)]
pub(super) struct Accepted {
    /// The request's id, 20 digits.
    #[schemars(with = "String")]
    request_id: RequestId,
}

pub(super) async fn accept(
    State(route_state): State<RouteState>,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let client = head.extensions.get::<Caller>().map(|Caller(name)| name.as_str());
    if let Some(limits) = &route_state.limits {
        limits.take(client).map_err(|retry_after| Problem::RateExceeded { retry_after })?;
    }
    let content_type = json_content_type(&head.headers)?;
    let idempotency_key = idempotency_key(&head.headers)?;
    let announced = body::announced(&head.headers, route_state.bounds.limit)?;
    let (body, permit) =
        body::receive(body, announced, route_state.bounds, route_state.intake.queue()).await?;
    let incoming = IncomingRequest {
        body,
        content_type,
        headers: kept(&head.headers, route_state.intake.keep_headers()),
        trace: throughline_telemetry::context_of(&Span::current())
            .or_else(|| throughline_telemetry::extract(&head.headers)),
        client: client.map(str::to_owned),
        origin: None,
        idempotency_key,
        permit,
    };
    let taken = timeout(route_state.timeout, route_state.intake.take(incoming)).await;
    Ok(created(taken.unwrap_or(Err(AcceptError::Unavailable))?))
}

fn created(request_id: RequestId) -> Response {
    Span::current().record("throughline.request.id", tracing::field::display(request_id));
    let location = [(LOCATION, format!("/v1/requests/{request_id}"))];
    (StatusCode::CREATED, location, Json(Accepted { request_id })).into_response()
}

impl From<AcceptError> for Problem {
    fn from(error: AcceptError) -> Self {
        match error {
            AcceptError::NotJson(detail) => Self::NotJson(detail),
            AcceptError::Violation(violations) => Self::SchemaViolation(violations),
            AcceptError::KeyReused => Self::IdempotencyKeyReused,
            AcceptError::InFlight => Self::IdempotencyKeyInFlight,
            AcceptError::Full => Self::Unavailable(BUSY),
            AcceptError::Unavailable => Self::Unavailable(NO_ANSWER),
            AcceptError::Failed | AcceptError::Misconfigured => Self::Internal,
        }
    }
}

/// Returns the content type as sent, if it is `application/json` or ends in `+json` (RFC 6839).
fn json_content_type(headers: &HeaderMap) -> Result<String, Problem> {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = essence == "application/json" || (essence.contains('/') && essence.ends_with("+json"));
    if is_json { Ok(text.to_owned()) } else { Err(Problem::UnsupportedMediaType) }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().map_err(|_| Problem::IdempotencyKeyInvalid)?.trim();
    if key.is_empty() || key.len() > 255 {
        Err(Problem::IdempotencyKeyInvalid)
    } else {
        Ok(Some(key.to_owned()))
    }
}

/// Returns the headers that the route keeps; drops values that are not text.
fn kept(headers: &HeaderMap, names: &[String]) -> Vec<(String, String)> {
    let values = |name: &String| {
        let name = name.to_ascii_lowercase();
        let values: Vec<_> = headers.get_all(&name).iter().filter_map(|value| value.to_str().ok()).collect();
        values.into_iter().map(|value| (name.clone(), value.to_owned())).collect::<Vec<_>>()
    };
    names.iter().flat_map(values).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_content_type(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_TYPE, http::HeaderValue::from_static(value))])
    }

    #[test]
    fn json_media_types_are_accepted_and_kept_as_sent() {
        for sent in ["application/json", "Application/JSON; charset=utf-8", "application/cloudevents+json"] {
            assert_eq!(json_content_type(&with_content_type(sent)).ok().as_deref(), Some(sent));
        }
        for sent in
            ["", "text/plain", "text/json", "application/jsonp", "+json", "application/x-www-form-urlencoded"]
        {
            assert!(json_content_type(&with_content_type(sent)).is_err(), "{sent}");
        }
        assert!(json_content_type(&HeaderMap::new()).is_err());
    }

    #[test]
    fn only_the_configured_headers_are_kept() {
        let headers: HeaderMap = [("x-tenant", "a"), ("x-tenant", "b"), ("cookie", "c")]
            .into_iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value)))
            .collect();
        let tenant = |value: &str| ("x-tenant".to_owned(), value.to_owned());
        assert_eq!(
            kept(&headers, &["X-Tenant".to_owned(), "missing".to_owned()]),
            [tenant("a"), tenant("b")]
        );
    }
}
