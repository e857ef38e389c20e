//! What happens to a record, from its headers to its last acknowledgement.

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use throughline_clock::Clock;
use throughline_kafka::{Claim, Handled, Record};
use throughline_messages::{Adoption, DeadReason, TraceContext};
use throughline_token::Tokens;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, error, info, info_span};

use crate::admission::{Admission, Spot, Standing, line_up};
use crate::delivery::Delivery;
use crate::metrics::Metrics;
use crate::no_call::NoCall;
use crate::recent::Recent;
use crate::reporter::{Reporter, origin};
use crate::routing::{Routing, Target};
use crate::start::Start;
use crate::work::{Deliveries, Work};

/// An attempt that comes later than this after the acceptance starts a trace of its own: those who
/// store traces have closed the first one long since.
const MUCH_LATER: TimeDelta = TimeDelta::minutes(5);

/// Works on records.
pub(crate) struct Processor {
    pub(crate) routing: Routing,
    pub(crate) tokens: Tokens,
    pub(crate) reporter: Reporter,
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
        let work = if record.topic == self.retries {
            Work::of_retry(&record.headers, &self.routing)
        } else {
            Work::of_request(&record.topic, &record.headers, &self.routing)
        };
        let spots = match &work {
            Work::Deliver(deliveries) => line_up(&record, deliveries),
            Work::Adopt { .. } | Work::Bury { .. } => Vec::new(),
        };
        Task { record, work, spots, start: Start::new(claim) }
    }

    /// Does what the record asks for. It ends when Kafka has all that there is to say of it.
    pub(crate) async fn process(&self, task: Task) -> Handled {
        let Task { record, work, spots, start } = task;
        let span = self.span(&record, &work);
        let trace = throughline_telemetry::context_of(&span);
        let work = async {
            match work {
                Work::Deliver(deliveries) => return self.deliver(&record, &deliveries, spots, &start).await,
                _ if !start.is_ours() => return Handled::Abandoned,
                Work::Adopt { route } => self.adopt(&record, route, trace).await,
                Work::Bury { reason, error } => self.bury(&record, reason, &error).await,
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
            let delivery = Delivery { record, deliveries, target, start };
            let is_in_lane = spot.as_ref().is_ok_and(Standing::is_in_lane);
            let admission = Admission::wait(target, spot, deliveries.standing.since, &self.clock);
            match start.unless_ended(admission).await {
                Some(admission) => delivery.run(self, admission).await,
                // Another destination has begun: this one goes on by a record of its own.
                None if start.is_ours() => delivery.run(self, Err(NoCall::left(is_in_lane))).await,
                None => {}
            }
        };
        join_all(deliveries.targets.iter().zip(spots).map(delivery)).await;
        if start.is_ours() { Handled::Done } else { Handled::Abandoned }
    }

    async fn adopt(&self, record: &Record, route: String, trace: Option<TraceContext>) {
        let adoption = Adoption {
            route,
            origin: origin(record),
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
                Work::Adopt { .. } | Work::Bury { .. } => false,
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
