//! Records that cannot be read go to dead letters, as they are.

use throughline_kafka::{Outgoing, Producer, Record};
use throughline_messages::{DeadLetter, DeadReason, Origin, Topics};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;

/// Where to put what cannot be read.
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
        tracing::error!(%origin, error, "a record cannot be read and goes to dead letters");
        let letter =
            DeadLetter { destination: None, reason: DeadReason::Malformed, error: error.to_owned(), origin };
        let outgoing = Outgoing {
            topic: self.topics.dead_letters.clone(),
            key: record.key.clone(),
            headers: letter.to_headers(record.headers.clone()),
            payload: record.payload.clone(),
        };
        let mut backoff = Backoff::default();
        loop {
            match self.hard.run_until_cancelled(self.producer.send(&outgoing)).await {
                None => return false,
                Some(Ok(_)) => return true,
                Some(Err(error)) if error.is_refusal() => {
                    tracing::error!(%error, origin = %letter.origin, "dead letters refuse the record too, it stays where it is");
                    return true;
                }
                Some(Err(error)) => {
                    if !backoff.pause(&self.hard, "dead letters cannot be published", &error).await {
                        return false;
                    }
                }
            }
        }
    }
}
