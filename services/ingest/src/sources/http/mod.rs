//! The HTTP source: `POST` on a route's path.

mod body;
mod describe;

use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONTENT_TYPE, LOCATION};
use ::http::{HeaderMap, StatusCode};
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use throughline_api::Accepted;
use throughline_settings::{Content, Route, Settings};
use throughline_snowflake::RequestId;
use tokio::time::timeout;
use tracing::Span;

use crate::accept::{AcceptError, Acceptor, Acceptors, Payload, UnsupportedMediaType};
use crate::http::{Documented, Problem, api_key, origin};

const NO_ANSWER: &str = "The database did not answer in time. The request may have been stored: retry with the same \
                    Idempotency-Key.";
const BUSY: &str = "Too many requests are waiting to be stored.";

/// The handler's state for one route.
#[derive(Clone)]
struct Endpoint {
    acceptor: Arc<Acceptor>,
    content: Content,
    /// Names of the headers that the route keeps.
    keep_headers: Arc<[String]>,
    /// The limits of a body.
    bounds: body::Bounds,
    /// Maximum time for a request to be committed.
    timeout: Duration,
}

/// Returns the paths of all routes that have one.
pub(crate) fn endpoints(settings: &Settings, acceptors: &Acceptors) -> Documented {
    let mut endpoints = Documented::default().schema::<Accepted>();
    for (name, route) in &settings.routes {
        let (Some(path), Some(acceptor)) = (&route.path, acceptors.get(name)) else { continue };
        let methods =
            post(accept).fallback(other_method).with_state(Endpoint::new(settings, route, acceptor));
        let item = describe::path_item(name, path, route);
        endpoints = if settings.clients.is_empty() {
            endpoints.path(path, methods, item)
        } else {
            endpoints.path_for_clients(path, methods, item)
        };
    }
    endpoints
}

impl Endpoint {
    fn new(settings: &Settings, route: &Route, acceptor: &Arc<Acceptor>) -> Self {
        let http = &settings.http;
        Self {
            acceptor: Arc::clone(acceptor),
            content: route.content,
            keep_headers: route.keep_headers.clone().into(),
            bounds: body::Bounds { limit: http.body_limit.as_u64(), deadline: http.timeout },
            timeout: http.timeout,
        }
    }
}

async fn accept(State(endpoint): State<Endpoint>, request: Request) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let Endpoint { acceptor, content, keep_headers, bounds, timeout: deadline } = &endpoint;
    if *content == Content::Any {
        origin::check(&head.method, &head.uri, &head.headers)?;
    }
    let admission = acceptor.admit(api_key(&head.headers))?;
    let content_type = admission.media_type(content_type(&head.headers))?;
    let idempotency_key = idempotency_key(&head.headers)?;
    let announced = body::announced(&head.headers, bounds.limit)?;
    // The permit grows as the body arrives.
    let permit = admission.reserve(0).ok_or(Problem::Unavailable(BUSY))?;
    let (body, permit) = body::receive(body, announced, *bounds, permit).await?;
    let payload = Payload {
        body,
        content_type,
        headers: kept(&head.headers, keep_headers),
        trace: throughline_telemetry::extract(&head.headers),
        origin: None,
        permit,
    };
    let submitted = timeout(*deadline, admission.submit(payload, idempotency_key)).await;
    Ok(created(submitted.unwrap_or(Err(AcceptError::Unavailable))?))
}

/// Answers requests with other methods; only permitted clients learn which methods there are.
async fn other_method(State(endpoint): State<Endpoint>, headers: HeaderMap) -> Problem {
    match endpoint.acceptor.authenticate(api_key(&headers)) {
        Ok(()) => Problem::MethodNotAllowed { allow: "POST".into() },
        Err(denied) => denied.into(),
    }
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

impl From<UnsupportedMediaType> for Problem {
    fn from(UnsupportedMediaType(accepted): UnsupportedMediaType) -> Self {
        Self::UnsupportedMediaType(accepted)
    }
}

/// Returns the declared media type; one that is not text is invalid, as an empty one is.
fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default())
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

    #[test]
    fn only_the_configured_headers_are_kept() {
        let headers: HeaderMap = [("x-tenant", "a"), ("x-tenant", "b"), ("cookie", "c")]
            .into_iter()
            .map(|(name, value)| {
                (::http::HeaderName::from_static(name), ::http::HeaderValue::from_static(value))
            })
            .collect();
        let tenant = |value: &str| ("x-tenant".to_owned(), value.to_owned());
        assert_eq!(
            kept(&headers, &["X-Tenant".to_owned(), "missing".to_owned()]),
            [tenant("a"), tenant("b")]
        );
    }
}
