//! Sees to the topics: at the start, or, where no broker answers then, as soon as one does.

use std::time::Duration;

use throughline_config::Kafka;
use throughline_kafka::{KafkaError, Producer, ensure_topics};
use tokio_util::sync::CancellationToken;

/// How long a start waits for a broker. Without one, requests are accepted all the same.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a broker that answers may take to say which topics there are, and to create what is missing.
const DEADLINE: Duration = Duration::from_secs(30);

/// Topics that nobody could look for yet.
pub(crate) struct Unseen {
    kafka: Kafka,
    names: Vec<String>,
}

/// Sees to it that the topics are there, unless no broker answers.
///
/// # Errors
/// If the broker refuses us, or topics are missing that are not to be created.
pub(crate) async fn see_to(
    kafka: &Kafka,
    producer: &Producer,
    names: Vec<String>,
) -> Result<Option<Unseen>, KafkaError> {
    let unseen = Unseen { kafka: kafka.clone(), names };
    if let Err(error @ KafkaError::Unreachable { .. }) = producer.probe(PATIENCE).await {
        tracing::warn!(%error, "ingest starts without Kafka: what it accepts is published when a broker answers");
        return Ok(Some(unseen));
    }
    unseen.look().await?;
    Ok(None)
}

impl Unseen {
    async fn look(&self) -> Result<(), KafkaError> {
        let names: Vec<_> = self.names.iter().map(String::as_str).collect();
        ensure_topics(&self.kafka, &names, DEADLINE).await
    }

    /// Waits for a broker, and then until told to stop.
    ///
    /// # Errors
    /// As at the start.
    pub(crate) async fn run(self, soft: CancellationToken) -> Result<(), KafkaError> {
        while let Some(looked) = soft.run_until_cancelled(self.look()).await {
            match looked {
                Ok(()) => soft.cancelled().await,
                Err(KafkaError::Unreachable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
