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
use crate::intake::{Intake, NotTaken, Offer};

const AWAY: &str = "The database did not answer in time. The request may have been kept: send it again with the same Idempotency-Key.";

/// A route's path.
#[derive(Clone)]
pub(super) struct Entrance {
    pub(super) intake: Arc<Intake>,
    /// How many it takes of each client; none is any number.
    pub(super) limits: Option<Arc<Limits>>,
    /// The bounds of its bodies.
    pub(super) bounds: body::Bounds,
    /// For the request to be committed.
    pub(super) timeout: Duration,
}

/// The answer to a request that was accepted.
#[derive(Serialize, JsonSchema)]
pub(super) struct Accepted {
    /// 20 digits.
    #[schemars(with = "String")]
    request_id: RequestId,
}

pub(super) async fn accept(State(entrance): State<Entrance>, request: Request) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let client = head.extensions.get::<Caller>().map(|Caller(name)| name.as_str());
    if let Some(limits) = &entrance.limits {
        limits.take(client).map_err(|retry_after| Problem::RateExceeded { retry_after })?;
    }
    let content_type = json_content_type(&head.headers)?;
    let idempotency_key = idempotency_key(&head.headers)?;
    let announced = body::announced(&head.headers, entrance.bounds.limit)?;
    let (body, room) = body::receive(body, announced, entrance.bounds, entrance.intake.queue()).await?;
    let offer = Offer {
        body,
        content_type,
        headers: kept(&head.headers, entrance.intake.keep_headers()),
        trace: throughline_telemetry::context_of(&Span::current())
            .or_else(|| throughline_telemetry::extract(&head.headers)),
        client: client.map(str::to_owned),
        origin: None,
        idempotency_key,
        room,
    };
    let taken = timeout(entrance.timeout, entrance.intake.take(offer)).await;
    Ok(created(taken.unwrap_or(Err(NotTaken::Unavailable))?))
}

fn created(request_id: RequestId) -> Response {
    Span::current().record("throughline.request.id", tracing::field::display(request_id));
    let location = [(LOCATION, format!("/v1/requests/{request_id}"))];
    (StatusCode::CREATED, location, Json(Accepted { request_id })).into_response()
}

impl From<NotTaken> for Problem {
    fn from(not_taken: NotTaken) -> Self {
        match not_taken {
            NotTaken::NotJson(detail) => Self::NotJson(detail),
            NotTaken::Violation(violations) => Self::SchemaViolation(violations),
            NotTaken::KeyReused => Self::IdempotencyKeyReused,
            NotTaken::InFlight => Self::IdempotencyKeyInFlight,
            NotTaken::Full => Self::Unavailable(BUSY),
            NotTaken::Unavailable => Self::Unavailable(AWAY),
            NotTaken::Failed | NotTaken::Misconfigured => Self::Internal,
        }
    }
}

/// `application/json` or anything that ends in `+json` (RFC 6839), as it was sent.
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

/// The headers that the route keeps; what is not text is not kept.
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
    fn json_media_types_are_taken_as_they_were_sent() {
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
    fn only_the_named_headers_are_kept() {
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
