//! Ingest's HTTP server: the routes' paths, `/v1`, and health.

mod accept;
mod health;
mod problem;
mod status;
mod trace;

use std::any::Any;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use throughline_config::Settings;
use throughline_store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

use self::accept::Entrance;
pub(crate) use self::health::Readiness;
use self::problem::Problem;
use crate::intake::Intakes;

/// All that is answered.
pub(crate) fn router(
    settings: &Settings,
    intakes: &Intakes,
    store: Store,
    readiness: Arc<Readiness>,
) -> Router {
    let mut traced = Router::new()
        .route("/v1/requests/{id}", get(status::request).fallback(|| only("GET, HEAD")).with_state(store));
    for (name, route) in &settings.routes {
        let Some(intake) = intakes.get(name) else { continue };
        let entrance = Entrance {
            intake: Arc::clone(intake),
            limit: settings.http.body_limit.as_u64(),
            timeout: settings.http.timeout,
        };
        traced =
            traced.route(&route.path, post(accept::accept).fallback(|| only("POST")).with_state(entrance));
    }
    traced
        .route_layer(from_fn(trace::server_span))
        .route("/healthz", get(health::live).fallback(|| only("GET, HEAD")))
        .route("/readyz", get(health::ready).fallback(|| only("GET, HEAD")).with_state(readiness))
        .fallback(|| async { Problem::NotFound })
        .layer(CatchPanicLayer::custom(panicked))
}

/// Serves until told to stop, then answers what it has taken in. A client that has not finished its
/// request by the end of `drain` is cut off: it has no answer, and nothing of it was kept.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    drain: Duration,
) -> Result<(), std::io::Error> {
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        served = served.into_future() => served,
        () = drained => {
            tracing::warn!(?drain, "cut off clients that had not finished their requests");
            Ok(())
        }
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
