//! Ensures that the topics exist: at start or, if no broker answers then, as soon as one does.

use std::pin::Pin;
use std::time::Duration;

use throughline_kafka as kafka;
use throughline_kafka::{KafkaError, ensure_topics};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a start waits for the topics. Without Kafka, ingest still accepts requests.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a broker may take to list its topics and to create missing ones.
const DEADLINE: Duration = Duration::from_secs(30);

/// The running check for topics that no broker has confirmed yet.
pub(crate) struct PendingTopics(Pin<Box<dyn Future<Output = Result<(), KafkaError>> + Send>>);

/// Ensures that the topics exist; returns the running check if it takes longer than a start waits.
///
/// # Errors
/// If the broker rejects ingest, or if topics are missing that ingest may not create.
pub(crate) async fn ensure(
    kafka: kafka::Settings,
    names: Vec<String>,
) -> Result<Option<PendingTopics>, KafkaError> {
    let mut looking = Box::pin(look(kafka, names));
    if let Ok(looked) = timeout(CHECK_TIMEOUT, &mut looking).await {
        return looked.map(|()| None);
    }
    tracing::warn!(
        event = "kafka.unreachable",
        "starting without Kafka; accepted requests are published when a broker responds"
    );
    Ok(Some(PendingTopics(looking)))
}

/// Checks for the topics until a broker answers.
async fn look(kafka: kafka::Settings, names: Vec<String>) -> Result<(), KafkaError> {
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    loop {
        match ensure_topics(&kafka, &names, DEADLINE).await {
            Err(KafkaError::Unreachable { .. }) => {}
            looked => return looked,
        }
    }
}

impl PendingTopics {
    /// Continues the check, then waits until shutdown.
    ///
    /// # Errors
    /// The same as at start.
    pub(crate) async fn run(self, soft: CancellationToken) -> Result<(), KafkaError> {
        soft.run_until_cancelled(self.0).await.unwrap_or(Ok(()))?;
        soft.cancelled().await;
        Ok(())
    }
}
