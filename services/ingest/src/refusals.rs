//! Sends unprocessable records to dead letters: records of ours that cannot be read, unchanged, and records that the
//! broker refuses.

use bytes::Bytes;
use throughline_kafka::{Outgoing, Producer, Record};
use throughline_messages::{DeadLetter, DeadReason, Headers, Origin, Topics};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// The destination of unprocessable records.
#[derive(Clone)]
pub(crate) struct DeadLetters {
    pub(crate) producer: Producer,
    pub(crate) topics: Topics,
    pub(crate) metrics: Metrics,
    pub(crate) hard: CancellationToken,
}

/// Why a record cannot be processed.
pub(crate) struct Refusal {
    reason: DeadReason,
    error: String,
    origin: Origin,
}

/// The part of a record that is kept until the broker has it, for a dead letter if the broker refuses it. The value is
/// in the database.
#[derive(Debug)]
pub(crate) struct Stub {
    pub(crate) key: Option<Bytes>,
    pub(crate) headers: Headers,
}

impl From<Outgoing> for Stub {
    fn from(record: Outgoing) -> Self {
        Self { key: record.key, headers: record.headers }
    }
}

impl Refusal {
    pub(crate) fn new(reason: DeadReason, error: String, origin: Origin) -> Self {
        Self { reason, error, origin }
    }

    /// Creates the refusal of a record that cannot be read.
    pub(crate) fn malformed(record: &Record, error: &impl ToString) -> Self {
        let Record { topic, partition, offset, .. } = record;
        let origin = Origin { topic: topic.clone(), partition: *partition, offset: *offset };
        Self::new(DeadReason::Malformed, error.to_string(), origin)
    }
}

impl DeadLetters {
    /// Publishes an unreadable record as a dead letter.
    pub(crate) async fn put_malformed(&self, record: &Record, error: &impl ToString) -> bool {
        self.put(record, Refusal::malformed(record, error)).await
    }

    /// Publishes a record, or the record that it stands for, as a dead letter and waits for the acknowledgement.
    /// Returns false if stopped first: then the record must be read again.
    pub(crate) async fn put(&self, record: &Record, refusal: Refusal) -> bool {
        let Refusal { reason, error, origin } = refusal;
        tracing::error!(
            event = "record.dead_lettered", %origin, reason = reason.as_str(), error,
            "cannot process a record; publishing it as a dead letter"
        );
        self.metrics.put_aside(reason);
        let letter = DeadLetter { destination: None, reason, error, origin: Some(origin), last: None };
        let headers = letter.to_headers(record.headers.clone());
        self.send(record.key.clone(), headers, record.payload.clone()).await
    }

    /// Publishes a dead letter for a record that cannot be published to a destination, or to any (`None`), and waits
    /// for the acknowledgement. Returns false if stopped first.
    pub(crate) async fn put_stub(
        &self,
        stub: Stub,
        destination: Option<String>,
        reason: DeadReason,
        error: &str,
    ) -> bool {
        let letter = DeadLetter { destination, reason, error: error.to_owned(), origin: None, last: None };
        let headers = DeadLetter::without_value(letter.to_headers(stub.headers));
        self.send(stub.key, headers, Bytes::new()).await
    }

    async fn send(&self, key: Option<Bytes>, headers: Headers, payload: Bytes) -> bool {
        self.hard.run_until_cancelled(self.send_until_taken(key, headers, payload)).await.is_some()
    }

    /// Publishes a dead letter, without its value if the broker refuses it with the value.
    async fn send_until_taken(&self, key: Option<Bytes>, headers: Headers, payload: Bytes) {
        let mut letter = Outgoing { topic: self.topics.dead_letters.clone(), key, headers, payload };
        let Err(mut error) = self.producer.send_until_taken(&letter).await else { return };
        if !letter.payload.is_empty() {
            tracing::warn!(
                event = "dead_letter.shortened", %error,
                "the broker rejected a dead letter; retrying without its value"
            );
            letter.payload = Bytes::new();
            letter.headers = DeadLetter::without_value(letter.headers);
            let Err(again) = self.producer.send_until_taken(&letter).await else { return };
            error = again;
        }
        tracing::error!(
            event = "dead_letter.refused", %error,
            "the broker rejected a dead letter; it is not published"
        );
    }
}
