//! Ingest's HTTP server: `/v1`, health, the endpoints that it is given, and the description of all paths.

mod accept_header;
mod clients;
mod connections;
mod dead_letters;
mod descriptors;
mod documented;
mod drain;
mod explain;
mod header_limits;
mod health;
mod management;
mod metrics;
pub(crate) mod openapi;
pub(crate) mod origin;
mod problem;
mod server;
mod status;
mod trace;

use std::any::Any;
use std::future::{Ready, ready};
use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use opentelemetry::metrics::Meter;
use throughline_settings::Settings;
use throughline_store::Store;
use tower_http::catch_panic::CatchPanicLayer;

pub(crate) use self::clients::api_key;
pub(crate) use self::documented::Documented;
use self::explain::Explainer;
pub(crate) use self::health::Health;
use self::management::Rules;
use self::metrics::Measures;
use self::openapi::management as description;
pub(crate) use self::problem::Problem;
pub(crate) use self::server::{Bounds, serve};
use crate::accept::{Access, Authorizer, Clients};
use crate::sweeper::Operations;

/// Returns the router for clients, which also serves the `endpoints` of sources.
pub(crate) fn router(
    settings: &Settings,
    clients: Option<&Arc<Clients>>,
    endpoints: Documented,
    operations: &Operations,
    health: Arc<Health>,
    meter: &Meter,
) -> Router {
    let authorizer = clients.map(|clients| clients.authorizer(Access::Management));
    let explainer = Explainer::new(settings, operations);
    let rules = Rules::new(settings);
    let mut api = management(operations, explainer, authorizer.as_ref());
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

/// Returns the endpoints for operators.
fn management(operations: &Operations, explainer: Explainer, authorizer: Option<&Authorizer>) -> Documented {
    let on = |handlers: MethodRouter<Store>, allow| {
        handlers.fallback(move || only(allow)).with_state(operations.store.clone())
    };
    let at = |handlers: MethodRouter<Operations>, allow| {
        handlers.fallback(move || only(allow)).with_state(operations.clone())
    };
    let explain = get(explain::explain).fallback(|| only("GET, HEAD")).with_state(explainer);
    let endpoints = [
        ("/v1/requests/{id}", on(get(status::request), "GET, HEAD"), description::request()),
        ("/v1/requests/{id}/body", on(get(status::body), "GET, HEAD"), description::body()),
        ("/v1/requests/{id}/explain", explain, description::explain()),
        ("/v1/requests/{id}/cancel", at(post(status::cancel), "POST"), description::cancel()),
        (
            "/v1/dead-letters",
            at(get(dead_letters::list).delete(dead_letters::purge), "GET, HEAD, DELETE"),
            description::dead_letters(),
        ),
        (
            "/v1/dead-letters/{id}/{destination}/replay",
            at(post(dead_letters::replay_one), "POST"),
            description::replay_one(),
        ),
        ("/v1/replays", at(post(dead_letters::begin), "POST"), description::replays()),
        ("/v1/replays/{id}", at(get(dead_letters::replay), "GET, HEAD"), description::replay()),
        ("/v1/replays/{id}/stop", at(post(dead_letters::stop), "POST"), description::stop_replay()),
    ];
    endpoints.into_iter().fold(Documented::default(), |documented, (path, methods, item)| {
        documented.guarded(path, methods, item, authorizer)
    })
}

fn health_endpoints(health: Arc<Health>) -> Documented {
    let live = get(health::live).fallback(|| only("GET, HEAD")).with_state(Arc::clone(&health));
    let ready = get(health::ready).fallback(|| only("GET, HEAD")).with_state(health);
    Documented::default().path("/healthz", live, openapi::live()).path("/readyz", ready, openapi::readiness())
}

fn only(allow: &'static str) -> Ready<Problem> {
    ready(Problem::MethodNotAllowed { allow })
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
