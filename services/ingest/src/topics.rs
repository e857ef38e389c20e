//! Sees to the topics: at the start, or, where no broker answers then, as soon as one does.

use std::pin::Pin;
use std::time::Duration;

use throughline_config::Kafka;
use throughline_kafka::{KafkaError, ensure_topics};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a start waits for the topics. Without Kafka, requests are accepted all the same.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a broker may take to say which topics there are, and to create what is missing.
const DEADLINE: Duration = Duration::from_secs(30);

/// Topics that nobody has seen yet, being looked for.
pub(crate) struct Unseen(Pin<Box<dyn Future<Output = Result<(), KafkaError>> + Send>>);

/// Sees to it that the topics are there, unless that takes longer than a start.
///
/// # Errors
/// If the broker refuses us, or topics are missing that are not to be created.
pub(crate) async fn see_to(kafka: Kafka, names: Vec<String>) -> Result<Option<Unseen>, KafkaError> {
    let mut looking = Box::pin(look(kafka, names));
    if let Ok(looked) = timeout(PATIENCE, &mut looking).await {
        return looked.map(|()| None);
    }
    tracing::warn!("ingest starts without Kafka: what it accepts is published when a broker answers");
    Ok(Some(Unseen(looking)))
}

/// Looks for them until a broker answers.
async fn look(kafka: Kafka, names: Vec<String>) -> Result<(), KafkaError> {
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    loop {
        match ensure_topics(&kafka, &names, DEADLINE).await {
            Err(KafkaError::Unreachable { .. }) => {}
            looked => return looked,
        }
    }
}

impl Unseen {
    /// Looks on, and waits until told to stop.
    ///
    /// # Errors
    /// As at the start.
    pub(crate) async fn run(self, soft: CancellationToken) -> Result<(), KafkaError> {
        soft.run_until_cancelled(self.0).await.unwrap_or(Ok(()))?;
        soft.cancelled().await;
        Ok(())
    }
}
