//! Accepts foreign records, which dispatch has found on a route's topic, as if they had come by HTTP.

use futures_util::future::join_all;
use http::HeaderValue;
use throughline_kafka::{Consumer, KafkaError, Received, Record};
use throughline_lifecycle::Shutdown;
use throughline_messages::{Adoption, DeadReason, Keys, Kind, Malformed, TraceContext};
use throughline_store::Adopted;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

use crate::CLOSE_DEADLINE;
use crate::backoff::Backoff;
use crate::intake::{Intake, Intakes, NotTaken, Offer};
use crate::refusals::{DeadLetters, Refusal};
use crate::writer::Room;

/// Most records offered to the writer at once.
pub(crate) const BATCH: usize = 64;

pub(crate) struct Adopter {
    pub(crate) consumer: Consumer,
    pub(crate) intakes: Intakes,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) keys: Keys,
    pub(crate) shutdown: Shutdown,
}

impl Adopter {
    /// Runs until told to stop; what it has taken by then is accepted.
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

    /// Accepts one record, or puts it to dead letters.
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

    /// False if told to stop before it was accepted.
    ///
    /// # Errors
    /// If it can never be accepted.
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
                Some(room) => offer(intake, record, &adoption, room, &mut tried).await.map_err(malformed)?,
                None => Some("there is no room for its body"),
            };
            let Some(why) = not_now else { return Ok(true) };
            if !backoff.pause(self.shutdown.soft(), "a foreign record cannot be accepted now", &why).await {
                return Ok(false);
            }
        }
    }
}

/// Offers the record to its route once; gives the reason if it is not accepted now. `tried` says whether the database
/// has refused it before.
///
/// # Errors
/// In words, if it can never be accepted.
async fn offer(
    intake: &Intake,
    record: &Record,
    adoption: &Adoption,
    room: Room,
    tried: &mut bool,
) -> Result<Option<&'static str>, String> {
    let offer = Offer {
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
        room,
    };
    match intake.take(offer).await {
        Ok(id) => {
            Span::current().record("throughline.request.id", tracing::field::display(id));
            tracing::info!(request_id = %id, origin = %adoption.origin, "adopted a foreign record");
            Ok(None)
        }
        Err(NotTaken::Full) => Ok(Some("the writer's queue is full")),
        Err(NotTaken::Unavailable) => Ok(Some("the database is away")),
        Err(NotTaken::NotJson(detail)) => Err(format!("not JSON: {detail}")),
        Err(NotTaken::Violation(violations)) => {
            let places: Vec<_> = violations.iter().map(|v| format!("{}: {}", v.pointer, v.detail)).collect();
            Err(format!("not what the route takes: {}", places.join("; ")))
        }
        Err(NotTaken::Misconfigured) => Ok(Some("the database refuses any request")),
        // Another ingest may have adopted it at the same time: the second try finds its request.
        Err(NotTaken::Failed) if !std::mem::replace(tried, true) => Ok(Some("the database refuses it")),
        Err(NotTaken::KeyReused | NotTaken::InFlight | NotTaken::Failed) => {
            Err("it cannot be stored".to_owned())
        }
    }
}

/// What the record says it is. The body is JSON, or it is not adopted, so `application/json` stands for a media type
/// that is missing, or that no HTTP request could carry to a third party.
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
