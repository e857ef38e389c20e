//! Ingest's HTTP server: the routes' paths, `/v1`, health, and the description of all paths.

mod accept;
mod accept_header;
mod body;
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
mod openapi;
mod problem;
mod rate;
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

use self::accept::RouteState;
use self::clients::{Access, Authorizer, Clients};
use self::documented::Documented;
use self::explain::Explainer;
pub(crate) use self::health::Health;
use self::management::Rules;
use self::metrics::Measures;
use self::openapi::management as description;
use self::problem::Problem;
use self::rate::Limits;
pub(crate) use self::server::{Bounds, serve};
use crate::intake::{Intake, Intakes};
use crate::sweeper::Operations;

/// Returns the router for clients.
pub(crate) fn router(
    settings: &Settings,
    intakes: &Intakes,
    operations: &Operations,
    health: Arc<Health>,
    meter: &Meter,
) -> Router {
    let clients = Clients::new(settings);
    let authorizer = |access| clients.as_ref().map(|clients| clients.authorizer(access));
    let explainer = Explainer::new(settings, operations);
    let rules = Rules::new(settings);
    let mut api = management(operations, explainer, authorizer(Access::Management).as_ref());
    api.router = rules.protect(api.router);
    for (name, route) in &settings.routes {
        let Some(intake) = intakes.get(name) else { continue };
        let accept =
            post(accept::accept).fallback(|| only("POST")).with_state(route_state(settings, route, intake));
        api = api.guarded(
            &route.path,
            accept,
            openapi::accept(name, route),
            authorizer(Access::Route(name.clone())).as_ref(),
        );
    }
    let health = health_endpoints(health);
    // No other path exists under /v1, but only permitted callers may learn that.
    let mut unknown = Router::new().fallback(|| async { Problem::NotFound });
    if let Some(authorizer) = authorizer(Access::Management) {
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

fn route_state(settings: &Settings, route: &throughline_settings::Route, intake: &Arc<Intake>) -> RouteState {
    RouteState {
        intake: Arc::clone(intake),
        limits: route.rate.map(|rate| Arc::new(Limits::new(rate, settings))),
        bounds: body::Bounds { limit: settings.http.body_limit.as_u64(), deadline: settings.http.timeout },
        timeout: settings.http.timeout,
    }
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
