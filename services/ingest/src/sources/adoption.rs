//! The adoption source: foreign records, which other producers put onto a route's topic and dispatch forwards.

use futures_util::future::join_all;
use throughline_kafka::{Consumer, KafkaError, Received, Record};
use throughline_lifecycle::Shutdown;
use throughline_messages::{Adoption, DeadReason, Keys, Kind, Malformed, TraceContext};
use throughline_store::Adopted;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

use crate::CLOSE_DEADLINE;
use crate::accept::{AcceptError, Acceptors, Admission, BodyPermit, Payload};
use crate::backoff::{Backoff, Warning};
use crate::refusals::{DeadLetters, Refusal};

const ADOPTION_DELAYED: Warning =
    Warning { event: "adoption.delayed", message: "cannot adopt a foreign record yet" };

/// Maximum number of records submitted to the writer at once.
pub(crate) const BATCH: usize = 64;

pub(crate) struct Adopter {
    pub(crate) consumer: Consumer,
    pub(crate) acceptors: Acceptors,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) keys: Keys,
    pub(crate) shutdown: Shutdown,
}

impl Adopter {
    /// Runs until shutdown; records received by then are accepted.
    pub(crate) async fn run(mut self) -> Result<(), KafkaError> {
        while let Some(batch) = self.next_batch().await {
            join_all(batch.into_iter().map(|received| self.step(received))).await;
        }
        // The writer need not wait while the broker confirms the end of the consumer.
        drop(self.acceptors);
        self.consumer.close(CLOSE_DEADLINE).await
    }

    /// Returns the next records; `None` once there are no more.
    async fn next_batch(&mut self) -> Option<Vec<Received>> {
        let batch = self.shutdown.soft().run_until_cancelled(self.consumer.recv_batch(BATCH)).await?;
        (!batch.is_empty()).then_some(batch)
    }

    /// Accepts one record, or sends it to dead letters.
    async fn step(&self, Received { record, receipt }: Received) {
        let span = process_span(&record);
        let adopted = match self.read(&record) {
            Ok(adoption) => self.adopt(&record, adoption).instrument(span).await,
            Err(error) => Err(Refusal::malformed(&record, &error)),
        };
        let finished = match adopted {
            Ok(finished) => finished,
            Err(refusal) => self.dead_letters.put(&record, refusal).await,
        };
        if finished {
            receipt.done();
        }
    }

    fn read(&self, record: &Record) -> Result<Adoption, Malformed> {
        if !self.keys.have_signed(Kind::Adoption, &record.headers, &record.payload) {
            return Err(Malformed::unsigned());
        }
        Adoption::from_headers(&record.headers)
    }

    /// Returns false if stopped before the record was accepted.
    ///
    /// # Errors
    /// If the record can never be accepted.
    async fn adopt(&self, record: &Record, adoption: Adoption) -> Result<bool, Refusal> {
        let never = |reason, error| Refusal::new(reason, error, adoption.origin.clone());
        let Some(acceptor) = self.acceptors.get(&adoption.route) else {
            let error = format!("the configuration has no route {}", adoption.route);
            return Err(never(DeadReason::Unroutable, error));
        };
        let malformed = |error| never(DeadReason::Malformed, error);
        // The broker has authorized the producer, and dispatch has signed the record.
        let admission = acceptor.admit_verified();
        let mut backoff = Backoff::default();
        let mut tried = false;
        loop {
            let not_now = match admission.reserve(record.payload.len() as u64) {
                Some(permit) => {
                    submit(&admission, record, &adoption, permit, &mut tried).await.map_err(malformed)?
                }
                None => Some("the memory for bodies is full"),
            };
            let Some(why) = not_now else {
                backoff.reset();
                return Ok(true);
            };
            if !backoff.pause(self.shutdown.soft(), ADOPTION_DELAYED, &why).await {
                return Ok(false);
            }
        }
    }
}

/// Submits the record to its route once; returns the reason if it is not accepted now. `tried` is true if the database
/// has refused the record before.
///
/// # Errors
/// A message, if the record can never be accepted.
async fn submit(
    admission: &Admission<'_>,
    record: &Record,
    adoption: &Adoption,
    permit: BodyPermit,
    tried: &mut bool,
) -> Result<Option<&'static str>, String> {
    let payload = Payload {
        body: record.payload.clone(),
        content_type: admission.media_type_or_default(adoption.content_type.as_deref()),
        headers: Vec::new(),
        trace: adoption.trace.clone(),
        origin: Some(Adopted {
            origin: adoption.origin.clone(),
            identity: adoption.identity(&record.payload),
        }),
        permit,
    };
    match admission.submit(payload, None).await {
        Ok(id) => {
            Span::current().record("throughline.request.id", tracing::field::display(id));
            tracing::info!(
                event = "record.adopted", request_id = %id, origin = %adoption.origin,
                "adopted a foreign record"
            );
            Ok(None)
        }
        Err(AcceptError::Full) => Ok(Some("the writer's queue is full")),
        Err(AcceptError::Unavailable) => Ok(Some("the database is unavailable")),
        Err(AcceptError::NotJson(detail)) => Err(format!("not JSON: {detail}")),
        Err(AcceptError::Violation(violations)) => {
            let details: Vec<_> = violations.iter().map(|v| format!("{}: {}", v.pointer, v.detail)).collect();
            Err(format!("invalid for the route: {}", details.join("; ")))
        }
        Err(AcceptError::Misconfigured) => Ok(Some("the database rejects every request")),
        // Another ingest may have adopted the record at the same time: the second try finds its request.
        Err(AcceptError::Failed) if !std::mem::replace(tried, true) => Ok(Some("the database rejected it")),
        Err(AcceptError::KeyReused | AcceptError::InFlight | AcceptError::Failed) => {
            Err("it cannot be stored".to_owned())
        }
    }
}

fn process_span(record: &Record) -> Span {
    let span = info_span!(
        "process",
        otel.kind = "consumer",
        otel.name = format!("process {}", record.topic),
        messaging.system = "kafka",
        messaging.operation.name = "process",
        messaging.operation.r#type = "process",
        messaging.destination.name = record.topic,
        messaging.destination.partition.id = %record.partition,
        messaging.kafka.offset = record.offset,
        throughline.request.id = Empty,
    );
    if let Some(trace) = TraceContext::from_headers(&record.headers) {
        throughline_telemetry::set_parent(&span, &trace);
    }
    span
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use serde_json::json;
    use throughline_messages::Origin;
    use throughline_settings::Settings;

    use super::*;
    use crate::accept::acceptors;
    use crate::writer::{CommitResult, Queue};

    /// Returns the results of three tries of a record while the writer returns `result`.
    async fn tries(result: CommitResult) -> [Result<Option<&'static str>, String>; 3] {
        let route = json!({"path": "/one", "topic": "requests", "destinations": ["three"]});
        let routes = [("one".to_owned(), serde_json::from_value(route).unwrap())].into();
        let queue = Queue::answered(result);
        let acceptors = acceptors(&Settings { routes, ..Settings::default() }, None, &queue).unwrap();
        let origin = Origin { topic: "requests".to_owned(), partition: 0, offset: 1 };
        let record = Record {
            topic: "adoptions".to_owned(),
            partition: 0,
            offset: 0,
            timestamp: None,
            key: None,
            headers: Vec::new(),
            payload: "{}".into(),
        };
        let origin_time = Some(DateTime::UNIX_EPOCH);
        let adoption =
            Adoption { route: "one".to_owned(), origin, origin_time, content_type: None, trace: None };
        let mut tried = false;
        let mut all = Vec::new();
        for _ in 0..3 {
            let permit = queue.reserve(2).unwrap();
            let admission = acceptors["one"].admit_verified();
            all.push(submit(&admission, &record, &adoption, permit, &mut tried).await);
        }
        all.try_into().unwrap()
    }

    #[tokio::test]
    async fn only_a_second_rejection_of_the_record_itself_is_final() {
        for passing in [CommitResult::Overloaded, CommitResult::Unavailable, CommitResult::Misconfigured] {
            let tries = tries(passing).await;
            assert!(tries.iter().all(|tried| matches!(tried, Ok(Some(_)))), "{passing:?}: {tries:?}");
        }
        let [first, second, _] = tries(CommitResult::Failed).await;
        assert!(matches!(first, Ok(Some(_))), "another ingest may have adopted it: {first:?}");
        assert_eq!(second, Err("it cannot be stored".to_owned()));
        let id = "00000000000000000042".parse().unwrap();
        for adopted in [CommitResult::Accepted(id), CommitResult::Repeated(id)] {
            assert_eq!(tries(adopted).await[0], Ok(None), "{adopted:?}");
        }
    }
}
