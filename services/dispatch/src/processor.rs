//! Processes a record, from its headers to its last acknowledgement.

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use throughline_clock::Clock;
use throughline_kafka::{Claim, Handled, Record};
use throughline_messages::{
    Adoption, AttemptReport, DeadReason, ErrorClass, Failure, Identity, Keys, Kind, Outcome, TraceContext,
};
use tracing::field::Empty;
use tracing::{Instrument as _, Span, error, info, info_span};

use crate::admission::{Admission, Queued, QueuedDelivery, enqueue, enqueue_at};
use crate::caught::{Panic, called, caught};
use crate::delivery::Delivery;
use crate::metrics::Metrics;
use crate::not_attempted::NotAttempted;
use crate::recent::Recent;
use crate::reporter::{Reporter, origin};
use crate::routing::{RouteTarget, Routing};
use crate::start::Start;
use crate::work::{Deliveries, Undeliverable, Work};

/// An attempt that starts later than this after the acceptance begins a trace of its own: trace stores have closed
/// the first trace by then.
const MUCH_LATER: TimeDelta = TimeDelta::minutes(5);

/// Processes records.
pub(crate) struct Processor {
    pub(crate) routing: Routing,
    pub(crate) reporter: Reporter,
    /// Verify the signatures of our own records.
    pub(crate) keys: Keys,
    pub(crate) metrics: Metrics,
    pub(crate) recent: Recent,
    pub(crate) clock: Clock,
    /// The retries topic. Each of its records names its destination.
    pub(crate) retries: String,
    /// The name of the consumer group, for spans.
    pub(crate) group: String,
}

/// A decoded record. Its deliveries have joined their key queues, where order is kept.
pub(crate) struct Task {
    record: Record,
    work: Work,
    all_queued: Vec<Queued>,
    start: Start,
}

impl Processor {
    /// Decodes a record and enqueues its deliveries. Must be called in the order of the records.
    pub(crate) fn admit(&self, record: Record, claim: Claim) -> Task {
        let look = || {
            let work = self.work_of(&record);
            let all_queued = all_queued(&record, &work);
            (work, all_queued)
        };
        let (work, all_queued) = called(look)
            .or_else(|_| called(look))
            .unwrap_or_else(|panic| (self.given_up(&record, &panic), Vec::new()));
        Task { record, work, all_queued, start: Start::new(claim) }
    }

    fn work_of(&self, record: &Record) -> Work {
        if self.is_retry(record) {
            Work::of_retry(record, &self.routing, &self.keys)
        } else {
            Work::of_request(record, &self.routing, &self.keys)
        }
    }

    fn is_retry(&self, record: &Record) -> bool {
        record.topic == self.retries
    }

    fn given_up(&self, record: &Record, panic: &Panic) -> Work {
        let error = words_of(panic);
        let kind = if self.is_retry(record) { Kind::Retry } else { Kind::Request };
        let given_up = || Work::given_up(record, kind, &self.keys, error.clone());
        called(given_up).unwrap_or(Work::DeadLetter { reason: DeadReason::Internal, error })
    }

    /// Does the work of a record, and returns once Kafka has all its outcomes and dead letters. After a panic it
    /// tries once more; after a second panic it ends the deliveries that the record names, and keeps the record as a
    /// dead letter.
    pub(crate) async fn process(&self, task: Task) -> Handled {
        let Task { record, work, all_queued: first, start } = task;
        let panic = match caught(self.work_on(&record, &work, first, &start)).await {
            Ok(handled) => return handled,
            Err(panic) => panic,
        };
        error!(
            event = "record.panicked", origin = %origin(&record), panic,
            "dispatch panicked while processing a record; retrying once"
        );
        let again = async { self.work_on(&record, &work, all_queued(&record, &work), &start).await };
        let work = match caught(again).await {
            Ok(handled) => return handled,
            Err(_) if !start.is_ours() => return Handled::Abandoned,
            Err(panic) => self.given_up(&record, &panic),
        };
        if let Err(panic) = caught(self.work_on(&record, &work, Vec::new(), &start)).await {
            error!(
                event = "record.abandoned", origin = %origin(&record), panic,
                "dispatch panicked again while publishing the dead letter of a record; the record is not kept"
            );
        }
        Handled::Done
    }

    async fn work_on(&self, record: &Record, work: &Work, all_queued: Vec<Queued>, start: &Start) -> Handled {
        let span = self.span(record, work);
        let trace = throughline_telemetry::context_of(&span);
        let work = async {
            match work {
                Work::Deliver(deliveries) => {
                    return self.deliver(record, deliveries, all_queued, start).await;
                }
                _ if !start.is_ours() => return Handled::Abandoned,
                Work::Adopt { route } => self.adopt(record, route, trace).await,
                Work::End(undeliverable) => self.end(record, undeliverable).await,
                Work::DeadLetter { reason, error } => self.dead_letter(record, *reason, error).await,
            }
            Handled::Done
        };
        work.instrument(span).await
    }

    /// Calls all destinations concurrently, so that a slow one delays no other.
    async fn deliver(
        &self,
        record: &Record,
        deliveries: &Deliveries,
        all_queued: Vec<Queued>,
        start: &Start,
    ) -> Handled {
        let delivery = async |(target, queued): (&RouteTarget, Queued)| {
            let delivery = || Delivery { record, deliveries, target, start };
            let Err(panic) = caught(self.deliver_to(delivery(), queued)).await else { return };
            error!(
                event = "delivery.panicked", request_id = %deliveries.request.id, destination = target.name(),
                panic,
                "dispatch panicked during a delivery; retrying once"
            );
            let queued = enqueue_at(target, record, deliveries);
            if let Err(panic) = caught(self.deliver_to(delivery(), queued)).await
                && start.is_ours()
            {
                self.end(record, &failed(deliveries, target, &panic)).await;
            }
        };
        join_all(deliveries.targets.iter().zip(all_queued).map(delivery)).await;
        if start.is_ours() { Handled::Done } else { Handled::Abandoned }
    }

    async fn deliver_to(&self, delivery: Delivery<'_>, queued: Queued) {
        let Delivery { deliveries, target, start, .. } = delivery;
        let is_in_key_queue = queued.as_ref().is_ok_and(QueuedDelivery::is_in_key_queue);
        let admission = Admission::wait(target, queued, deliveries.progress.window_started_at, &self.clock);
        match start.unless_ended(admission).await {
            Some(admission) => delivery.run(self, admission).await,
            // Another delivery of the record has begun, so the record is finished here. This delivery is deferred,
            // and continues with a record of its own.
            None if start.is_ours() => delivery.run(self, Err(NotAttempted::left(is_in_key_queue))).await,
            None => {}
        }
    }

    /// Reports an attempt and, if its delivery ended dead, publishes the dead letter. Returns once Kafka has both.
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
        let Undeliverable { identity, reason, failure } = undeliverable;
        let Identity { id, destinations, attempt, counted_attempts } = identity;
        let (reason_name, error) = (reason.as_str(), &failure.error);
        error!(
            event = "request.dead_lettered", request_id = %id, origin = %origin(record), reason = reason_name,
            error,
            "cannot deliver a request; its deliveries end dead"
        );
        let span = Span::current();
        span.record("otel.status_code", "ERROR");
        span.record("error.type", reason_name);
        for destination in destinations {
            let report = AttemptReport {
                request_id: *id,
                destination: destination.clone(),
                attempt: *attempt,
                called: false,
                counted_attempts: *counted_attempts,
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
            Ok(()) => info!(
                event = "record.forwarded", origin = %adoption.origin, route = adoption.route,
                "forwarded a foreign record to ingest"
            ),
            Err(refusal) => self.dead_letter(record, DeadReason::Unpublishable, &refusal.to_string()).await,
        }
    }

    async fn dead_letter(&self, record: &Record, reason: DeadReason, error: &str) {
        error!(
            event = "record.dead_lettered", origin = %origin(record), reason = reason.as_str(), error,
            "cannot process a record; publishing it as a dead letter"
        );
        let span = Span::current();
        span.record("otel.status_code", "ERROR");
        span.record("error.type", reason.as_str());
        self.metrics.buried(reason);
        self.reporter.dead_letter(record, reason, error, None).await;
    }

    /// Creates the CONSUMER span, following OpenTelemetry's conventions for messaging. It is part of the request's
    /// trace and linked to it; for a late attempt, it is the root of a new trace that is linked to the request's.
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
                Work::Adopt { .. } | Work::End(_) | Work::DeadLetter { .. } => false,
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
        self.progress.attempt > 1 || now - self.request.accepted_at > MUCH_LATER
    }
}

/// Enqueues the deliveries of a record.
fn all_queued(record: &Record, work: &Work) -> Vec<Queued> {
    match work {
        Work::Deliver(deliveries) => enqueue(record, deliveries),
        Work::Adopt { .. } | Work::End(_) | Work::DeadLetter { .. } => Vec::new(),
    }
}

/// Describes a delivery on which dispatch panicked twice.
fn failed(deliveries: &Deliveries, target: &RouteTarget, panic: &Panic) -> Undeliverable {
    let identity = Identity {
        id: deliveries.request.id,
        destinations: vec![target.name().to_owned()],
        attempt: deliveries.progress.attempt,
        counted_attempts: deliveries.progress.counted_attempts,
    };
    Undeliverable {
        identity,
        reason: DeadReason::Internal,
        failure: Failure { class: ErrorClass::Internal, error: words_of(panic) },
    }
}

fn words_of(panic: &Panic) -> String {
    format!("dispatch panicked twice: {panic}")
}

/// Returns the media type that a foreign record declares.
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
    use crate::work::Progress;

    #[test]
    fn an_attempt_is_late_if_it_is_not_the_first_or_long_after_the_acceptance() {
        let accepted_at = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        for (attempt, minutes, is_late) in [(1, 0, false), (1, 5, false), (1, 6, true), (2, 0, true)] {
            let request = RequestRecord {
                id: "00000000000000000042".parse().unwrap(),
                route: "one".to_owned(),
                accepted_at,
                content_type: "application/json".to_owned(),
                trace: None,
            };
            let content_type = HeaderValue::from_static("application/json");
            let progress = Progress { attempt, counted_attempts: 0, window_started_at: accepted_at };
            let deliveries = Deliveries { request, content_type, targets: Vec::new(), progress };
            let now = accepted_at + TimeDelta::minutes(minutes);
            assert_eq!(deliveries.are_late(now), is_late, "attempt {attempt} after {minutes} minutes");
        }
    }
}
