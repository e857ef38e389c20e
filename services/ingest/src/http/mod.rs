//! Ingest's HTTP server: the routes' paths, `/v1`, health, and a description of it all.

mod accept;
mod body;
mod clients;
mod connections;
mod dead_letters;
mod described;
mod descriptors;
mod explain;
mod head;
mod health;
mod management;
mod measured;
mod openapi;
mod preference;
mod problem;
mod rate;
mod server;
mod status;
mod trace;
mod unread;

use std::any::Any;
use std::future::{Ready, ready};
use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use opentelemetry::metrics::Meter;
use throughline_config::Settings;
use throughline_store::Store;
use tower_http::catch_panic::CatchPanicLayer;

use self::accept::Entrance;
use self::clients::{Clients, Door, Guard};
use self::described::Described;
use self::explain::Explainer;
pub(crate) use self::health::Health;
use self::management::Rules;
use self::measured::Measures;
use self::openapi::management as description;
use self::problem::Problem;
use self::rate::Limits;
pub(crate) use self::server::{Bounds, serve};
use crate::intake::{Intake, Intakes};
use crate::sweeper::Desk;

/// All that is answered.
pub(crate) fn router(
    settings: &Settings,
    intakes: &Intakes,
    desk: &Desk,
    health: Arc<Health>,
    meter: &Meter,
) -> Router {
    let clients = Clients::new(settings);
    let guard = |door| clients.as_ref().map(|clients| clients.guard(door));
    let explainer = Explainer::new(settings, desk);
    let rules = Rules::new(settings);
    let mut api = management(desk, explainer, guard(Door::Management).as_ref());
    api.router = rules.protect(api.router);
    for (name, route) in &settings.routes {
        let Some(intake) = intakes.get(name) else { continue };
        let accept =
            post(accept::accept).fallback(|| only("POST")).with_state(entrance(settings, route, intake));
        api = api.guarded(
            &route.path,
            accept,
            openapi::accept(name, route),
            guard(Door::Route(name.clone())).as_ref(),
        );
    }
    let health = health_endpoints(health);
    // Nothing else is under /v1, but that too is only for those who may know.
    let mut unknown = Router::new().fallback(|| async { Problem::NotFound });
    if let Some(guard) = guard(Door::Management) {
        unknown = unknown.layer(from_fn_with_state(guard, clients::admit));
    }
    unknown = rules.protect(unknown);
    let documents = openapi::documents(&api, &health);
    api.router
        .route_layer(from_fn(trace::server_span))
        .merge(health.router)
        .merge(documents.router)
        .nest("/v1", unknown)
        .fallback(|| async { Problem::NotFound })
        .layer(from_fn(unread::discard))
        .layer(from_fn(head::check))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(Measures::new(meter), measured::measure))
}

/// What the listener for health checks answers.
pub(crate) fn health_router(health: Arc<Health>) -> Router {
    health_endpoints(health)
        .router
        .fallback(|| async { Problem::NotFound })
        .layer(CatchPanicLayer::custom(panicked))
}

/// What operators ask for and do.
fn management(desk: &Desk, explainer: Explainer, guard: Option<&Guard>) -> Described {
    let on = |handlers: MethodRouter<Store>, allow| {
        handlers.fallback(move || only(allow)).with_state(desk.store.clone())
    };
    let at =
        |handlers: MethodRouter<Desk>, allow| handlers.fallback(move || only(allow)).with_state(desk.clone());
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
    endpoints.into_iter().fold(Described::default(), |described, (path, methods, item)| {
        described.guarded(path, methods, item, guard)
    })
}

fn health_endpoints(health: Arc<Health>) -> Described {
    let live = get(health::live).fallback(|| only("GET, HEAD")).with_state(Arc::clone(&health));
    let ready = get(health::ready).fallback(|| only("GET, HEAD")).with_state(health);
    Described::default().path("/healthz", live, openapi::live()).path("/readyz", ready, openapi::readiness())
}

fn entrance(settings: &Settings, route: &throughline_config::Route, intake: &Arc<Intake>) -> Entrance {
    Entrance {
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
    tracing::error!(panic = message, "a handler panicked");
    Problem::Internal.into_response()
}
