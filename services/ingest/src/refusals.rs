//! Records of ours that ingest can do nothing with go to dead letters, as they are.

use throughline_kafka::{Outgoing, Producer, Record};
use throughline_messages::{DeadLetter, DeadReason, Origin, Topics};
use tokio_util::sync::CancellationToken;

/// Where to put what nothing can be done with.
#[derive(Clone)]
pub(crate) struct DeadLetters {
    pub(crate) producer: Producer,
    pub(crate) topics: Topics,
    pub(crate) hard: CancellationToken,
}

impl DeadLetters {
    /// Publishes a record as malformed and waits for the acknowledgement. False if told to stop
    /// before: then the record must be read again.
    pub(crate) async fn put(&self, record: &Record, error: &str) -> bool {
        let origin =
            Origin { topic: record.topic.clone(), partition: record.partition, offset: record.offset };
        tracing::error!(%origin, error, "nothing can be done with a record, it goes to dead letters");
        let (reason, error) = (DeadReason::Malformed, error.to_owned());
        let letter = DeadLetter { destination: None, reason, error, origin, last: None };
        let outgoing = Outgoing {
            topic: self.topics.dead_letters.clone(),
            key: record.key.clone(),
            headers: letter.to_headers(record.headers.clone()),
            payload: record.payload.clone(),
        };
        let sent = self.hard.run_until_cancelled(self.producer.send_until_taken(&outgoing)).await;
        if let Some(Err(error)) = &sent {
            tracing::error!(%error, origin = %letter.origin, "dead letters refuse the record too, it stays where it is");
        }
        sent.is_some()
    }
}
