//! What dispatch says to the others: outcomes, dead letters, adoptions.

use std::time::Duration;

use bytes::Bytes;
use throughline_kafka::{Outgoing, Producer, Record, SendError};
use throughline_messages::{Adoption, AttemptReport, DeadLetter, DeadReason, Origin, Topics};
use tokio::time::sleep;
use tracing::{error, warn};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A broker that is back is noticed within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Produces, and returns only once Kafka has it: a record's offset is finished after that.
///
/// While the broker is away these calls wait, as long as their caller lets them.
pub(crate) struct Reporter {
    producer: Producer,
    topics: Topics,
}

impl Reporter {
    pub(crate) fn new(producer: Producer, topics: Topics) -> Self {
        Self { producer, topics }
    }

    /// Reports the outcome of an attempt.
    pub(crate) async fn outcome(&self, report: &AttemptReport) {
        let record = Outgoing {
            topic: self.topics.outcomes.clone(),
            key: Some(report.request_id.to_string().into()),
            headers: vec![("content-type".to_owned(), Bytes::from_static(b"application/json"))],
            payload: json(report),
        };
        if let Err(refusal) = self.send(&record).await {
            // Its delivery stays silent, so ingest publishes it again when its patience ends.
            error!(
                request_id = %report.request_id,
                destination = report.destination,
                outcome = report.outcome.as_str(),
                error = %refusal,
                "the broker refuses an outcome"
            );
        }
    }

    /// Keeps a record that did not get where it should.
    pub(crate) async fn dead_letter(
        &self,
        record: &Record,
        destination: Option<&str>,
        reason: DeadReason,
        error: &str,
    ) {
        let letter = DeadLetter {
            destination: destination.map(str::to_owned),
            reason,
            error: error.to_owned(),
            origin: origin(record),
        };
        let outgoing = Outgoing {
            topic: self.topics.dead_letters.clone(),
            key: record.key.clone(),
            headers: letter.to_headers(record.headers.clone()),
            payload: record.payload.clone(),
        };
        if let Err(refusal) = self.send(&outgoing).await {
            // A request's body is still in the database, and any record on the topic it came by.
            error!(origin = %letter.origin, error = %refusal, "the broker refuses a dead letter");
        }
    }

    /// Hands a foreign record to ingest. One that the broker refuses becomes a dead letter.
    pub(crate) async fn adoption(&self, record: &Record, adoption: &Adoption) {
        let outgoing = Outgoing {
            topic: self.topics.adoptions.clone(),
            key: record.key.clone(),
            headers: adoption.to_headers(),
            payload: record.payload.clone(),
        };
        if let Err(refusal) = self.send(&outgoing).await {
            warn!(origin = %adoption.origin, error = %refusal, "the broker refuses an adoption");
            self.dead_letter(record, None, DeadReason::Unpublishable, &refusal.to_string()).await;
        }
    }

    /// Sends until the broker has the record or says that it never will.
    async fn send(&self, record: &Outgoing) -> Result<(), SendError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.producer.send(record).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_refusal() => return Err(error),
                Err(error) => {
                    warn!(topic = record.topic, error = %error, "cannot produce yet; trying again");
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

/// Where a record stands.
pub(crate) fn origin(record: &Record) -> Origin {
    Origin { topic: record.topic.clone(), partition: record.partition, offset: record.offset }
}

#[expect(clippy::expect_used, reason = "a report is text and numbers, which JSON always takes")]
fn json(report: &AttemptReport) -> Bytes {
    serde_json::to_vec(report).expect("a report is JSON").into()
}
