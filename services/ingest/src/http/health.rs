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

/// Reports whether ingest makes progress, and whether it can accept requests.
pub(crate) struct Health {
    liveness: Liveness,
    readiness: Readiness,
}

impl Health {
    /// Creates the checks. Ingest is ready while the database answers and the database's clock and this one agree.
    /// While the broker does not answer, accepted requests wait.
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
        // Without a lease, the database is unreachable and its clock is unknown.
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
        event = "task.stalled",
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::to_bytes;
    use tokio::time::advance;

    use super::*;
    use crate::liveness::Pulse;
    use crate::node::{self, Moment};

    async fn answer(health: &Arc<Health>) -> (u16, String) {
        let answer = live(State(Arc::clone(health))).await;
        let status = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), 100).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_task_fails_the_liveness_check_until_the_database_answers_it() {
        for part in ["writer", "recorder"] {
            let (writer, recorder) = (Pulse::default(), Pulse::default());
            let pulse = if part == "writer" { &writer } else { &recorder }.clone();
            let lease = node::tests::lease();
            lease.extend(Moment::now(), Duration::from_hours(1), Clock::system().now());
            let liveness = Liveness { lease, writer, recorder };
            let health = Arc::new(Health { liveness, readiness: Readiness::new(CancellationToken::new()) });
            let attempt = pulse.attempt();
            assert_eq!(answer(&health).await, (200, "ok\n".to_owned()), "{part}");
            advance(Duration::from_mins(6)).await;
            assert_eq!(answer(&health).await, (503, format!("the {part} is stuck\n")));
            attempt.answered();
            assert_eq!(answer(&health).await.0, 200, "{part}");
        }
    }
}
