//! What dispatch says to the others: outcomes, dead letters, adoptions.

use bytes::Bytes;
use throughline_kafka::{Outgoing, Producer, Record, SendError};
use throughline_messages::{Adoption, AttemptReport, DeadLetter, DeadReason, LastAttempt, Origin, Topics};
use tracing::{error, warn};

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

    /// Keeps a record that did not get where it should; `last` is the report that ended it, if it came as far.
    pub(crate) async fn dead_letter(
        &self,
        record: &Record,
        reason: DeadReason,
        error: &str,
        last: Option<&AttemptReport>,
    ) {
        let letter = DeadLetter {
            destination: last.map(|report| report.destination.clone()),
            reason,
            error: error.to_owned(),
            origin: origin(record),
            last: last.and_then(last_attempt),
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
            self.dead_letter(record, DeadReason::Unpublishable, &refusal.to_string(), None).await;
        }
    }

    /// Sends until the broker has the record or says that it never will.
    async fn send(&self, record: &Outgoing) -> Result<(), SendError> {
        self.producer.send_until_taken(record).await.map(drop)
    }
}

fn last_attempt(report: &AttemptReport) -> Option<LastAttempt> {
    Some(LastAttempt {
        number: report.attempt,
        class: report.outcome.failure()?.class,
        status: report.status,
        response_excerpt: report.response_excerpt.clone(),
    })
}

/// Where a record stands.
pub(crate) fn origin(record: &Record) -> Origin {
    Origin { topic: record.topic.clone(), partition: record.partition, offset: record.offset }
}

#[expect(clippy::expect_used, reason = "a report is text and numbers, which JSON always takes")]
fn json(report: &AttemptReport) -> Bytes {
    serde_json::to_vec(report).expect("a report is JSON").into()
}
