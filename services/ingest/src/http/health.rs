//! `/healthz` and `/readyz`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use throughline_clock::Clock;
use throughline_kafka::Producer;
use throughline_lifecycle::Readiness;
use throughline_store::Store;
use tokio_util::sync::CancellationToken;

use crate::liveness::Liveness;

/// Says whether ingest gets anywhere, and whether it can accept.
pub(crate) struct Health {
    liveness: Liveness,
    readiness: Readiness,
}

impl Health {
    /// Ready while the database answers, and its clock and this one agree. While the broker does not answer, what is
    /// accepted waits.
    pub(crate) fn new(
        store: Store,
        producer: Producer,
        liveness: Liveness,
        clock: Clock,
        stopping: CancellationToken,
    ) -> Self {
        let database = move |_| {
            let store = store.clone();
            async move { store.ping().await.is_ok() }
        };
        let broker = move |deadline| {
            let producer = producer.clone();
            async move { producer.probe(deadline).await.is_ok() }
        };
        let lease = liveness.lease.clone();
        // Without a lease the database is away, and its clock is not known.
        let clocks = move |_| std::future::ready(!lease.is_valid() || lease.allows(clock.now()));
        let readiness = Readiness::new(stopping)
            .depends_on("database", database)
            .depends_on("clock", clocks)
            .reports("broker", broker);
        Self { liveness, readiness }
    }
}

pub(super) async fn live(State(health): State<Arc<Health>>) -> Response {
    let Some(part) = health.liveness.stuck() else { return "ok\n".into_response() };
    tracing::error!(
        part,
        "it gets no answer from the database, which answers others: this process should be started again"
    );
    (StatusCode::SERVICE_UNAVAILABLE, format!("the {part} is stuck\n")).into_response()
}

pub(super) async fn ready(State(health): State<Arc<Health>>) -> Response {
    let report = health.readiness.ask().await;
    let status = if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}
