//! `/healthz` and `/readyz`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use throughline_kafka::Producer;
use throughline_store::Store;
use tokio_util::sync::CancellationToken;

/// Asks whether ingest can accept: whether the database answers. While the broker does not, what is accepted waits.
pub(crate) struct Readiness(throughline_lifecycle::Readiness);

impl Readiness {
    pub(crate) fn new(store: Store, producer: Producer, stopping: CancellationToken) -> Self {
        let database = move |_| {
            let store = store.clone();
            async move { store.ping().await.is_ok() }
        };
        let broker = move |deadline| {
            let producer = producer.clone();
            async move { producer.probe(deadline).await.is_ok() }
        };
        let readiness = throughline_lifecycle::Readiness::new(stopping);
        Self(readiness.depends_on("database", database).reports("broker", broker))
    }
}

pub(super) async fn live() -> &'static str {
    "ok\n"
}

pub(super) async fn ready(State(readiness): State<Arc<Readiness>>) -> Response {
    let report = readiness.0.ask().await;
    let status = if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}
