//! What dispatch says to the others: outcomes, dead letters, adoptions.

use std::time::Duration;

use bytes::Bytes;
use throughline_kafka::{Outgoing, Producer, Record, SendError};
use throughline_messages::{
    Adoption, AttemptReport, DeadLetter, DeadReason, Keys, Kind, LastAttempt, Origin, Outcome, Topics,
};
use tracing::{error, warn};

/// Bytes of an error's words that every topic takes.
const FEW_WORDS: usize = 100;

/// The pause before a refused outcome is produced again.
const REFUSED: Duration = Duration::from_secs(5);

/// Produces, and returns only once Kafka has it: a record's offset is finished after that.
///
/// While the broker is away these calls wait, as long as their caller lets them.
pub(crate) struct Reporter {
    producer: Producer,
    topics: Topics,
    keys: Keys,
}

impl Reporter {
    pub(crate) fn new(producer: Producer, topics: Topics, keys: Keys) -> Self {
        Self { producer, topics, keys }
    }

    /// Reports the outcome of an attempt; in few words, if the broker refuses more. Never gives up: without its
    /// outcome, the delivery would be published and called again.
    pub(crate) async fn outcome(&self, report: &AttemptReport) {
        let Err(refusal) = self.send(&self.record_of(report)).await else { return };
        warn!(request_id = %report.request_id, error = %refusal, "the broker refuses an outcome; it gets fewer words");
        let shortened = self.record_of(&in_few_words(report));
        let mut is_logged = false;
        while let Err(refusal) = self.send(&shortened).await {
            // Some 500 bytes of JSON: only the topic's settings can be at fault.
            if !std::mem::replace(&mut is_logged, true) {
                error!(
                    request_id = %report.request_id,
                    destination = report.destination,
                    outcome = report.outcome.as_str(),
                    error = %refusal,
                    topic = shortened.topic,
                    "the broker refuses an outcome, dispatch retries until it is accepted; check the topic's settings"
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
        warn!(origin = %origin(record), error = %refusal, "the broker refuses a dead letter; it goes without its value");
        // A request's body is in the database, and any record on the topic it came by.
        outgoing.payload = Bytes::new();
        outgoing.headers = DeadLetter::without_value(outgoing.headers);
        if let Err(refusal) = self.send(&outgoing).await {
            error!(origin = %origin(record), error = %refusal, "the broker refuses a dead letter");
        }
    }

    /// Hands a foreign record to ingest.
    ///
    /// # Errors
    /// If the broker never takes it.
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

    /// Sends until the broker has the record or says that it never will.
    async fn send(&self, record: &Outgoing) -> Result<(), SendError> {
        self.producer.send_until_taken(record).await.map(drop)
    }
}

/// Without what third parties and filters have said.
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

/// Where a record stands.
pub(crate) fn origin(record: &Record) -> Origin {
    Origin { topic: record.topic.clone(), partition: record.partition, offset: record.offset }
}

#[expect(clippy::expect_used, reason = "a report is text and numbers, which JSON always takes")]
fn json(report: &AttemptReport) -> Bytes {
    serde_json::to_vec(report).expect("a report is JSON").into()
}
