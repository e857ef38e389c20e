//! `/healthz` and `/readyz`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use throughline_kafka::Producer;
use tokio_util::sync::CancellationToken;

/// The readiness of dispatch: it is ready if the broker answers.
pub(crate) struct Readiness(throughline_lifecycle::Readiness);

impl Readiness {
    pub(crate) fn new(producer: Producer, stopping: CancellationToken) -> Self {
        let broker = move |deadline| {
            let producer = producer.clone();
            async move { producer.probe(deadline).await.is_ok() }
        };
        Self(throughline_lifecycle::Readiness::new(stopping).depends_on("broker", broker))
    }
}

/// Returns the router of both endpoints.
pub(crate) fn router(readiness: Readiness) -> Router {
    Router::new().route("/healthz", get(live)).route("/readyz", get(ready)).with_state(Arc::new(readiness))
}

async fn live() -> &'static str {
    "ok\n"
}

async fn ready(State(readiness): State<Arc<Readiness>>) -> Response {
    let report = readiness.0.ask().await;
    let status = if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}
