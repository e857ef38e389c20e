//! Accepts foreign records, which dispatch has found on a route's topic, as if they had arrived over HTTP.

use futures_util::future::join_all;
use http::HeaderValue;
use throughline_kafka::{Consumer, KafkaError, Received, Record};
use throughline_lifecycle::Shutdown;
use throughline_messages::{Adoption, DeadReason, Keys, Kind, Malformed, TraceContext};
use throughline_store::Adopted;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

use crate::CLOSE_DEADLINE;
use crate::backoff::{Backoff, Warning};
use crate::intake::{AcceptError, IncomingRequest, Intake, Intakes};
use crate::refusals::{DeadLetters, Refusal};
use crate::writer::BodyPermit;

const ADOPTION_DELAYED: Warning =
    Warning { event: "adoption.delayed", message: "cannot adopt a foreign record yet" };

/// Maximum number of records submitted to the writer at once.
pub(crate) const BATCH: usize = 64;

pub(crate) struct Adopter {
    pub(crate) consumer: Consumer,
    pub(crate) intakes: Intakes,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) keys: Keys,
    pub(crate) shutdown: Shutdown,
}

impl Adopter {
    /// Runs until shutdown; records received by then are accepted.
    pub(crate) async fn run(mut self) -> Result<(), KafkaError> {
        loop {
            let batch = self.shutdown.soft().run_until_cancelled(self.consumer.recv_batch(BATCH)).await;
            match batch {
                Some(batch) if !batch.is_empty() => {
                    join_all(batch.into_iter().map(|received| self.step(received))).await;
                }
                _ => return self.consumer.close(CLOSE_DEADLINE).await,
            }
        }
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
        let Some(intake) = self.intakes.get(&adoption.route) else {
            let error = format!("the configuration has no route {}", adoption.route);
            return Err(never(DeadReason::Unroutable, error));
        };
        let malformed = |error| never(DeadReason::Malformed, error);
        let mut backoff = Backoff::default();
        let mut tried = false;
        loop {
            let not_now = match intake.queue().reserve(record.payload.len() as u64) {
                Some(permit) => {
                    submit(intake, record, &adoption, permit, &mut tried).await.map_err(malformed)?
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
    intake: &Intake,
    record: &Record,
    adoption: &Adoption,
    permit: BodyPermit,
    tried: &mut bool,
) -> Result<Option<&'static str>, String> {
    let incoming = IncomingRequest {
        body: record.payload.clone(),
        content_type: media_type(adoption).to_owned(),
        headers: Vec::new(),
        trace: throughline_telemetry::context_of(&Span::current()).or_else(|| adoption.trace.clone()),
        client: None,
        origin: Some(Adopted {
            origin: adoption.origin.clone(),
            identity: adoption.identity(&record.payload),
        }),
        idempotency_key: None,
        permit,
    };
    match intake.take(incoming).await {
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

/// Returns the media type that the record declares. Only a JSON body is adopted, so `application/json` replaces a media
/// type that is missing, or that no HTTP request could carry to a third party.
fn media_type(adoption: &Adoption) -> &str {
    let said = adoption.content_type.as_deref();
    said.filter(|said| HeaderValue::from_str(said).is_ok()).unwrap_or("application/json")
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
    use crate::intake::intakes;
    use crate::writer::{CommitResult, Queue};

    /// Returns the results of three tries of a record while the writer returns `result`.
    async fn tries(result: CommitResult) -> [Result<Option<&'static str>, String>; 3] {
        let route = json!({"path": "/one", "topic": "requests", "destinations": ["three"]});
        let routes = [("one".to_owned(), serde_json::from_value(route).unwrap())].into();
        let queue = Queue::answered(result);
        let intakes = intakes(&Settings { routes, ..Settings::default() }, &queue).unwrap();
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
            all.push(submit(&intakes["one"], &record, &adoption, permit, &mut tried).await);
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
