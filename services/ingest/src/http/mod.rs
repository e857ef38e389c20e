//! Ingest's HTTP server: protects the management API, serves the endpoints that it is given, health, and the
//! description of all paths.

mod clients;
mod connections;
mod descriptors;
mod documented;
mod drain;
pub(crate) mod extract;
mod header_limits;
mod health;
mod metrics;
pub(crate) mod openapi;
pub(crate) mod origin;
mod problem;
mod protection;
mod server;
mod trace;

use std::any::Any;
use std::future::{Ready, ready};
use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use opentelemetry::metrics::Meter;
use throughline_settings::Settings;
use tower_http::catch_panic::CatchPanicLayer;

pub(crate) use self::clients::api_key;
pub(crate) use self::documented::{Documented, Resource};
pub(crate) use self::health::Health;
use self::metrics::Measures;
pub(crate) use self::problem::Problem;
use self::protection::Rules;
pub(crate) use self::server::{Bounds, serve};
use crate::accept::{Access, Clients};

/// Returns the router for clients, which serves the `endpoints` of sources and the `resources` of the management API.
pub(crate) fn router(
    settings: &Settings,
    clients: Option<&Arc<Clients>>,
    endpoints: Documented,
    resources: Vec<Resource>,
    health: Arc<Health>,
    meter: &Meter,
) -> Router {
    let authorizer = clients.map(|clients| clients.authorizer(Access::Management));
    let rules = Rules::new(settings);
    let mut api = resources
        .into_iter()
        .fold(Documented::default(), |api, resource| api.resource(resource, authorizer.as_ref()));
    api.router = rules.protect(api.router);
    let api = api.merge(endpoints);
    let health = health_endpoints(health);
    // No other path exists under /v1, but only permitted callers may learn that.
    let mut unknown = Router::new().fallback(|| async { Problem::NotFound });
    if let Some(authorizer) = authorizer {
        unknown = unknown.layer(from_fn_with_state(authorizer, clients::admit));
    }
    unknown = rules.protect(unknown);
    let documents = openapi::documents(&api, &health);
    api.router
        .route_layer(from_fn(trace::server_span))
        .merge(health.router)
        .merge(documents.router)
        .nest("/v1", unknown)
        .fallback(|| async { Problem::NotFound })
        .layer(from_fn(drain::discard))
        .layer(from_fn(header_limits::check))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(Measures::new(meter), metrics::measure))
}

/// Returns the router of the listener for health checks.
pub(crate) fn health_router(health: Arc<Health>) -> Router {
    health_endpoints(health)
        .router
        .fallback(|| async { Problem::NotFound })
        .layer(CatchPanicLayer::custom(panicked))
}

fn health_endpoints(health: Arc<Health>) -> Documented {
    let live = get(health::live).fallback(|| only("GET, HEAD")).with_state(Arc::clone(&health));
    let ready = get(health::ready).fallback(|| only("GET, HEAD")).with_state(health);
    Documented::default().path("/healthz", live, openapi::live()).path("/readyz", ready, openapi::readiness())
}

fn only(allow: &'static str) -> Ready<Problem> {
    ready(Problem::MethodNotAllowed { allow: allow.into() })
}

#[expect(clippy::needless_pass_by_value, reason = "tower-http gives it by value")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    tracing::error!(event = "handler.panicked", panic = message, "a handler panicked");
    Problem::Internal.into_response()
}
