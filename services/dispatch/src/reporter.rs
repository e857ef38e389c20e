//! Publishes the results of dispatch for the other services: outcomes, dead letters, adoptions.

use std::time::Duration;

use bytes::Bytes;
use throughline_kafka::{Outgoing, Producer, Record, SendError};
use throughline_messages::{
    Adoption, AttemptReport, DeadLetter, DeadReason, Keys, Kind, LastAttempt, Origin, Outcome, Topics,
};
use tracing::{error, warn};

/// Bytes of an error's text that fit into a record of any topic.
const FEW_WORDS: usize = 100;

/// The pause before a refused outcome is produced again.
const REFUSED: Duration = Duration::from_secs(5);

/// Produces records, and returns only once Kafka has them: the consumed record's offset is finished after that.
///
/// While the broker is unreachable, these calls wait for as long as their caller permits.
pub(crate) struct Reporter {
    producer: Producer,
    topics: Topics,
    keys: Keys,
}

impl Reporter {
    pub(crate) fn new(producer: Producer, topics: Topics, keys: Keys) -> Self {
        Self { producer, topics, keys }
    }

    /// Reports the outcome of an attempt, with a shortened error if the broker refuses the record. Never gives up:
    /// without its outcome, the delivery would be published and called again.
    pub(crate) async fn outcome(&self, report: &AttemptReport) {
        let Err(refusal) = self.send(&self.record_of(report)).await else { return };
        warn!(
            event = "outcome.shortened", request_id = %report.request_id, error = %refusal,
            "the broker rejected an outcome; retrying with a shortened error"
        );
        let shortened = self.record_of(&in_few_words(report));
        let mut is_logged = false;
        while let Err(refusal) = self.send(&shortened).await {
            // The record is about 500 bytes of JSON, so only the topic's settings can be at fault.
            if !std::mem::replace(&mut is_logged, true) {
                error!(
                    event = "outcome.refused", request_id = %report.request_id,
                    destination = report.destination, outcome = report.outcome.as_str(), error = %refusal,
                    topic = shortened.topic,
                    "the broker rejected the shortened outcome; retrying until the broker accepts it: check the \
                     settings of the topic"
                );
            }
            tokio::time::sleep(REFUSED).await;
        }
    }

    fn record_of(&self, report: &AttemptReport) -> Outgoing {
        let payload = json(report);
        let mut headers = vec![("content-type".to_owned(), Bytes::from_static(b"application/json"))];
        self.keys.sign(Kind::Outcome, &mut headers, &payload);
        let key = Some(report.request_id.to_string().into());
        Outgoing { topic: self.topics.outcomes.clone(), key, headers, payload }
    }

    /// Publishes a record as a dead letter. `last` is the report that ended its delivery, if there is one.
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
            origin: Some(origin(record)),
            last: last.and_then(last_attempt),
        };
        let mut outgoing = Outgoing {
            topic: self.topics.dead_letters.clone(),
            key: record.key.clone(),
            headers: letter.to_headers(record.headers.clone()),
            payload: record.payload.clone(),
        };
        let Err(refusal) = self.send(&outgoing).await else { return };
        warn!(
            event = "dead_letter.shortened", origin = %origin(record), error = %refusal,
            "the broker rejected a dead letter; retrying without its value"
        );
        // The value is not lost: the database has a request's body, and the source topic has the record.
        outgoing.payload = Bytes::new();
        outgoing.headers = DeadLetter::without_value(outgoing.headers);
        if let Err(refusal) = self.send(&outgoing).await {
            error!(
                event = "dead_letter.refused", origin = %origin(record), error = %refusal,
                "the broker rejected a dead letter; it is not published"
            );
        }
    }

    /// Hands a foreign record to ingest.
    ///
    /// # Errors
    /// If the broker refuses the record for good.
    pub(crate) async fn adoption(&self, record: &Record, adoption: &Adoption) -> Result<(), SendError> {
        let mut headers = adoption.to_headers();
        self.keys.sign(Kind::Adoption, &mut headers, &record.payload);
        let outgoing = Outgoing {
            topic: self.topics.adoptions.clone(),
            key: record.key.clone(),
            headers,
            payload: record.payload.clone(),
        };
        self.send(&outgoing).await
    }

    /// Sends until the broker has the record or refuses it for good.
    async fn send(&self, record: &Outgoing) -> Result<(), SendError> {
        self.producer.send_until_taken(record).await.map(drop)
    }
}

/// Returns the report without the texts of third parties, and with the error cut to [`FEW_WORDS`].
fn in_few_words(report: &AttemptReport) -> AttemptReport {
    let mut report = AttemptReport { response_excerpt: None, ..report.clone() };
    if let Outcome::Retry { failure, .. } | Outcome::Dead { failure, .. } = &mut report.outcome {
        failure.error.truncate(failure.error.floor_char_boundary(FEW_WORDS));
    }
    report
}

fn last_attempt(report: &AttemptReport) -> Option<LastAttempt> {
    Some(LastAttempt {
        number: report.made(),
        class: report.outcome.failure()?.class,
        status: report.status,
        response_excerpt: report.response_excerpt.clone(),
    })
}

/// Returns the origin of a record: its topic, partition and offset.
pub(crate) fn origin(record: &Record) -> Origin {
    Origin { topic: record.topic.clone(), partition: record.partition, offset: record.offset }
}

#[expect(clippy::expect_used, reason = "a report contains only text and numbers, which JSON can represent")]
fn json(report: &AttemptReport) -> Bytes {
    serde_json::to_vec(report).expect("a report is JSON").into()
}
