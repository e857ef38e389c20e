//! What happens to a record, from its headers to its last acknowledgement.

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use throughline_clock::Clock;
use throughline_kafka::{Claim, Handled, Record};
use throughline_messages::{
    Adoption, AttemptReport, DeadReason, ErrorClass, Failure, Keys, Outcome, TraceContext,
};
use throughline_token::Tokens;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, error, info, info_span, warn};

use crate::admission::{Admission, Spot, Standing, line_up, line_up_at};
use crate::caught::{Panic, called, caught};
use crate::delivery::Delivery;
use crate::metrics::Metrics;
use crate::no_call::NoCall;
use crate::recent::Recent;
use crate::reporter::{Reporter, origin};
use crate::routing::{Routing, Target};
use crate::start::Start;
use crate::work::{Deliveries, Undeliverable, Work};

/// An attempt that comes later than this after the acceptance starts a trace of its own: those who
/// store traces have closed the first one long since.
const MUCH_LATER: TimeDelta = TimeDelta::minutes(5);

/// Works on records.
pub(crate) struct Processor {
    pub(crate) routing: Routing,
    pub(crate) tokens: Tokens,
    pub(crate) reporter: Reporter,
    /// Of the records of ours.
    pub(crate) keys: Keys,
    pub(crate) metrics: Metrics,
    pub(crate) recent: Recent,
    pub(crate) clock: Clock,
    /// The topic whose records name their destination themselves.
    pub(crate) retries: String,
    /// The consumer group, for the spans.
    pub(crate) group: String,
}

/// A record that has been looked at, and whose deliveries have lined up where order is kept.
pub(crate) struct Task {
    record: Record,
    work: Work,
    spots: Vec<Spot>,
    start: Start,
}

impl Processor {
    /// Looks at a record. To be called in the order of the records.
    pub(crate) fn admit(&self, record: Record, claim: Claim) -> Task {
        let look = || {
            let work = self.work_of(&record);
            let spots = spots(&record, &work);
            (work, spots)
        };
        let (work, spots) = called(look).or_else(|_| called(look)).unwrap_or_else(|panic| {
            (Work::Bury { reason: DeadReason::Internal, error: words_of(&panic) }, Vec::new())
        });
        Task { record, work, spots, start: Start::new(claim) }
    }

    fn work_of(&self, record: &Record) -> Work {
        if record.topic == self.retries {
            Work::of_retry(record, &self.routing, &self.keys)
        } else {
            Work::of_request(record, &self.routing, &self.keys)
        }
    }

    /// Does what the record asks for. It ends when Kafka has all that there is to say of it. A panic has it done a
    /// second time; after another one, the record is kept as a dead letter.
    pub(crate) async fn process(&self, task: Task) -> Handled {
        let Task { record, work, spots: first, start } = task;
        let panic = match caught(self.work_on(&record, &work, first, &start)).await {
            Ok(handled) => return handled,
            Err(panic) => panic,
        };
        error!(origin = %origin(&record), panic, "dispatch panicked at a record, it tries once more");
        let again = caught(self.work_on(&record, &work, spots(&record, &work), &start)).await;
        let words = match again {
            Ok(handled) => return handled,
            Err(_) if !start.is_ours() => return Handled::Abandoned,
            Err(panic) => words_of(&panic),
        };
        if let Err(panic) = caught(self.bury(&record, DeadReason::Internal, &words)).await {
            error!(origin = %origin(&record), panic, "a record at which dispatch panicked is not kept");
        }
        Handled::Done
    }

    async fn work_on(&self, record: &Record, work: &Work, spots: Vec<Spot>, start: &Start) -> Handled {
        let span = self.span(record, work);
        let trace = throughline_telemetry::context_of(&span);
        let work = async {
            match work {
                Work::Deliver(deliveries) => return self.deliver(record, deliveries, spots, start).await,
                _ if !start.is_ours() => return Handled::Abandoned,
                Work::Adopt { route } => self.adopt(record, route, trace).await,
                Work::End(undeliverable) => self.end(record, undeliverable).await,
                Work::Leave { id, error } => {
                    warn!(
                        request_id = %id, origin = %origin(record), error,
                        "a request cannot be delivered by its record; ingest publishes its deliveries one by one"
                    );
                }
                Work::Bury { reason, error } => self.bury(record, *reason, error).await,
            }
            Handled::Done
        };
        work.instrument(span).await
    }

    /// Each destination is called at the same time: the slow ones make none wait.
    async fn deliver(
        &self,
        record: &Record,
        deliveries: &Deliveries,
        spots: Vec<Spot>,
        start: &Start,
    ) -> Handled {
        let delivery = async |(target, spot): (&Target, Spot)| {
            let delivery = || Delivery { record, deliveries, target, start };
            let Err(panic) = caught(self.deliver_to(delivery(), spot)).await else { return };
            error!(
                request_id = %deliveries.request.id, destination = target.name(), panic,
                "dispatch panicked at a delivery, it tries once more"
            );
            let spot = line_up_at(target, record, deliveries);
            if let Err(panic) = caught(self.deliver_to(delivery(), spot)).await
                && start.is_ours()
            {
                self.end(record, &failed(deliveries, target, &panic)).await;
            }
        };
        join_all(deliveries.targets.iter().zip(spots).map(delivery)).await;
        if start.is_ours() { Handled::Done } else { Handled::Abandoned }
    }

    async fn deliver_to(&self, delivery: Delivery<'_>, spot: Spot) {
        let Delivery { deliveries, target, start, .. } = delivery;
        let is_in_lane = spot.as_ref().is_ok_and(Standing::is_in_lane);
        let admission = Admission::wait(target, spot, deliveries.standing.since, &self.clock);
        match start.unless_ended(admission).await {
            Some(admission) => delivery.run(self, admission).await,
            // Another destination has begun: this one goes on by a record of its own.
            None if start.is_ours() => delivery.run(self, Err(NoCall::left(is_in_lane))).await,
            None => {}
        }
    }

    /// Reports an attempt, and keeps the record of a delivery that ended dead. Returns when Kafka has both.
    pub(crate) async fn tell(&self, record: &Record, report: &AttemptReport) {
        let dead_letter = async {
            if let Outcome::Dead { reason, failure } = &report.outcome {
                self.reporter.dead_letter(record, *reason, &failure.error, Some(report)).await;
            }
        };
        self.metrics.attempt(report);
        tokio::join!(self.reporter.outcome(report), dead_letter);
    }

    /// Ends deliveries without an attempt.
    async fn end(&self, record: &Record, undeliverable: &Undeliverable) {
        let Undeliverable { id, destinations, attempt, spent, reason, failure } = undeliverable;
        let (reason_name, error) = (reason.as_str(), &failure.error);
        error!(request_id = %id, origin = %origin(record), reason = reason_name, error, "a request cannot be delivered");
        let span = Span::current();
        span.record("otel.status_code", "ERROR");
        span.record("error.type", reason_name);
        for destination in destinations {
            let report = AttemptReport {
                request_id: *id,
                destination: destination.clone(),
                attempt: *attempt,
                called: false,
                spent: *spent,
                started_at: self.clock.now(),
                duration_ms: 0,
                trace_id: throughline_telemetry::trace_id_of(&span),
                origin: Some(origin(record)),
                status: None,
                response_excerpt: None,
                outcome: Outcome::Dead { reason: *reason, failure: failure.clone() },
            };
            self.tell(record, &report).await;
        }
    }

    async fn adopt(&self, record: &Record, route: &str, trace: Option<TraceContext>) {
        let adoption = Adoption {
            route: route.to_owned(),
            origin: origin(record),
            origin_time: record.timestamp,
            content_type: content_type(record),
            trace: trace.or_else(|| TraceContext::from_headers(&record.headers)),
        };
        match self.reporter.adoption(record, &adoption).await {
            Ok(()) => info!(origin = %adoption.origin, route = adoption.route, "adopted a foreign record"),
            Err(refusal) => self.bury(record, DeadReason::Unpublishable, &refusal.to_string()).await,
        }
    }

    async fn bury(&self, record: &Record, reason: DeadReason, error: &str) {
        error!(origin = %origin(record), reason = reason.as_str(), error, "a record cannot be delivered");
        let span = Span::current();
        span.record("otel.status_code", "ERROR");
        span.record("error.type", reason.as_str());
        self.metrics.buried(reason);
        self.reporter.dead_letter(record, reason, error, None).await;
    }

    /// The CONSUMER span, after OpenTelemetry's conventions for messaging: part of the request's
    /// trace and linked to it, or, of a late attempt, the root of a trace that is linked to it.
    fn span(&self, record: &Record, work: &Work) -> Span {
        let span = info_span!(
            parent: None,
            "process",
            otel.kind = "consumer",
            otel.name = format!("process {}", record.topic),
            otel.status_code = Empty,
            error.type = Empty,
            messaging.system = "kafka",
            messaging.operation.name = "process",
            messaging.operation.type = "process",
            messaging.consumer.group.name = self.group,
            messaging.destination.name = record.topic,
            messaging.destination.partition.id = record.partition.to_string(),
            messaging.kafka.offset = record.offset,
            messaging.message.id = Empty,
            messaging.message.body.size = record.payload.len(),
            throughline.request.id = Empty,
            throughline.route = Empty,
        );
        if let Work::Deliver(deliveries) = work {
            let request = &deliveries.request;
            let id = request.id.to_string();
            span.record("messaging.message.id", &id);
            span.record("throughline.request.id", &id);
            span.record("throughline.route", &request.route);
        }
        if let Some(context) = TraceContext::from_headers(&record.headers) {
            let is_late = match work {
                Work::Deliver(deliveries) => deliveries.are_late(self.clock.now()),
                Work::Adopt { .. } | Work::End(_) | Work::Leave { .. } | Work::Bury { .. } => false,
            };
            if !is_late {
                throughline_telemetry::set_parent(&span, &context);
            }
            throughline_telemetry::add_link(&span, &context);
        }
        span
    }
}

impl Deliveries {
    fn are_late(&self, now: DateTime<Utc>) -> bool {
        self.standing.attempt > 1 || now - self.request.accepted_at > MUCH_LATER
    }
}

/// Where the deliveries of a record stand in their lanes.
fn spots(record: &Record, work: &Work) -> Vec<Spot> {
    match work {
        Work::Deliver(deliveries) => line_up(record, deliveries),
        Work::Adopt { .. } | Work::End(_) | Work::Leave { .. } | Work::Bury { .. } => Vec::new(),
    }
}

/// A delivery at which dispatch panicked twice.
fn failed(deliveries: &Deliveries, target: &Target, panic: &Panic) -> Undeliverable {
    Undeliverable {
        id: deliveries.request.id,
        destinations: vec![target.name().to_owned()],
        attempt: deliveries.standing.attempt,
        spent: deliveries.standing.spent,
        reason: DeadReason::Internal,
        failure: Failure { class: ErrorClass::Internal, error: words_of(panic) },
    }
}

fn words_of(panic: &Panic) -> String {
    format!("dispatch panicked twice: {panic}")
}

/// The media type that a foreign record says it has.
fn content_type(record: &Record) -> Option<String> {
    let (_, value) =
        record.headers.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case("content-type"))?;
    String::from_utf8(value.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use throughline_messages::RequestRecord;

    use super::*;
    use crate::work::Standing;

    #[test]
    fn an_attempt_is_late_if_it_is_not_the_first_or_comes_much_later_than_the_acceptance() {
        let accepted_at = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        for (attempt, minutes, is_late) in [(1, 0, false), (1, 5, false), (1, 6, true), (2, 0, true)] {
            let request = RequestRecord {
                id: "00000000000000000042".parse().unwrap(),
                route: "one".to_owned(),
                accepted_at,
                content_type: "application/json".to_owned(),
                trace: None,
                held: Vec::new(),
            };
            let content_type = HeaderValue::from_static("application/json");
            let standing = Standing { attempt, spent: 0, since: accepted_at };
            let deliveries = Deliveries { request, content_type, targets: Vec::new(), standing };
            let now = accepted_at + TimeDelta::minutes(minutes);
            assert_eq!(deliveries.are_late(now), is_late, "attempt {attempt} after {minutes} minutes");
        }
    }
}
