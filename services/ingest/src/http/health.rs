//! `/healthz` and `/readyz`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;
use throughline_kafka::Producer;
use throughline_store::Store;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How long a dependency may take to answer a probe.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// How long an answer is repeated, so that many probes cost the dependencies no more than one.
const FRESH: Duration = Duration::from_millis(500);

/// Asks whether ingest can do its work: whether database and broker answer.
pub(crate) struct Readiness {
    store: Store,
    producer: Producer,
    stopping: CancellationToken,
    last: Mutex<Option<(Instant, Report)>>,
}

#[derive(Clone, Copy, Serialize)]
struct Report {
    database: Dependency,
    broker: Dependency,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Dependency {
    Up,
    Down,
}

impl Readiness {
    pub(crate) fn new(store: Store, producer: Producer, stopping: CancellationToken) -> Self {
        Self { store, producer, stopping, last: Mutex::new(None) }
    }

    async fn ask(&self) -> Report {
        let mut last = self.last.lock().await;
        if let Some((at, report)) = *last
            && at.elapsed() < FRESH
        {
            return report;
        }
        let (database, broker) =
            tokio::join!(timeout(PROBE_DEADLINE, self.store.ping()), self.producer.probe(PROBE_DEADLINE));
        let state = |is_up| if is_up { Dependency::Up } else { Dependency::Down };
        let report =
            Report { database: state(matches!(database, Ok(Ok(())))), broker: state(broker.is_ok()) };
        *last = Some((Instant::now(), report));
        report
    }
}

pub(super) async fn live() -> &'static str {
    "ok\n"
}

pub(super) async fn ready(State(readiness): State<Arc<Readiness>>) -> Response {
    if readiness.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    let report = readiness.ask().await;
    let all_up = report.database == Dependency::Up && report.broker == Dependency::Up;
    let status = if all_up { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}
