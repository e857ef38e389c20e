//! `/healthz` and `/readyz`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use serde::Serialize;
use throughline_kafka::Producer;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long the broker may take to answer a probe.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// How long an answer is repeated, so that many probes cost the broker no more than one.
const FRESH: Duration = Duration::from_millis(500);

/// Asks whether dispatch can do its work: whether the broker answers.
pub(crate) struct Readiness {
    producer: Producer,
    stopping: CancellationToken,
    last: Mutex<Option<(Instant, Report)>>,
}

#[derive(Clone, Copy, Serialize)]
struct Report {
    broker: Dependency,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Dependency {
    Up,
    Down,
}

impl Readiness {
    pub(crate) fn new(producer: Producer, stopping: CancellationToken) -> Self {
        Self { producer, stopping, last: Mutex::new(None) }
    }

    /// Who asks while another's probe is under way waits for that one's answer.
    async fn ask(&self) -> Report {
        let mut last = self.last.lock().await;
        if let Some((at, report)) = *last
            && at.elapsed() < FRESH
        {
            return report;
        }
        let broker = match self.producer.probe(PROBE_DEADLINE).await {
            Ok(()) => Dependency::Up,
            Err(_) => Dependency::Down,
        };
        let report = Report { broker };
        *last = Some((Instant::now(), report));
        report
    }
}

/// Where both answer.
pub(crate) fn router(readiness: Readiness) -> Router {
    Router::new().route("/healthz", get(live)).route("/readyz", get(ready)).with_state(Arc::new(readiness))
}

async fn live() -> &'static str {
    "ok\n"
}

async fn ready(State(readiness): State<Arc<Readiness>>) -> Response {
    if readiness.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    let report = readiness.ask().await;
    let status = match report.broker {
        Dependency::Up => StatusCode::OK,
        Dependency::Down => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(report)).into_response()
}
