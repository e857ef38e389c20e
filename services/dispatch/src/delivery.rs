//! One attempt to deliver a request to one destination.

use chrono::{DateTime, SecondsFormat, Utc};
use throughline_kafka::Record;
use throughline_messages::{AttemptReport, DeadReason, ErrorClass, Failure, Outcome};
use throughline_transform::Variables;
use tokio::time::Instant;
use tracing::{Span, info, warn};

use crate::call::{Call, Called};
use crate::classify::{CallError, outcome};
use crate::destination::{Body, Destination};
use crate::processor::Processor;
use crate::work::Deliveries;

/// A delivery that is to be attempted.
pub(crate) struct Delivery<'a> {
    pub(crate) record: &'a Record,
    pub(crate) deliveries: &'a Deliveries,
    pub(crate) destination: &'a String,
}

impl Delivery<'_> {
    /// Attempts it, and returns when Kafka has its outcome and, if it ended dead, its dead letter.
    pub(crate) async fn run(self, processor: &Processor) {
        let started_at = processor.clock.now();
        let started = Instant::now();
        let called = match processor.routing.destination(self.destination) {
            Some(destination) => self.call(processor, &destination).await,
            None => Called::without_response(CallError::UnknownDestination(self.destination.clone())),
        };
        let report = self.report(called, started_at, started);
        let dead_letter = async {
            if let Outcome::Dead { reason, failure } = &report.outcome {
                let reporter = &processor.reporter;
                reporter.dead_letter(self.record, Some(self.destination), *reason, &failure.error).await;
            }
        };
        tokio::join!(processor.reporter.outcome(&report), dead_letter);
        log(&report);
    }

    async fn call(&self, processor: &Processor, destination: &Destination) -> Called {
        let body =
            Body { content: self.record.payload.clone(), content_type: self.deliveries.content_type.clone() };
        let body = match destination.body(body, || self.variables()) {
            Ok(body) => body,
            Err(error) => return Called::without_response(CallError::Transform(error)),
        };
        let id = self.deliveries.request.id;
        Call { destination, tokens: &processor.tokens, id, attempt: self.deliveries.attempt, body }
            .make()
            .await
    }

    fn variables(&self) -> Variables {
        let request = &self.deliveries.request;
        Variables {
            id: request.id.to_string(),
            route: request.route.clone(),
            accepted_at: request.accepted_at.to_rfc3339_opts(SecondsFormat::Millis, true),
            attempt: self.deliveries.attempt,
        }
    }

    fn report(&self, called: Called, started_at: DateTime<Utc>, started: Instant) -> AttemptReport {
        AttemptReport {
            request_id: self.deliveries.request.id,
            destination: self.destination.clone(),
            attempt: self.deliveries.attempt,
            started_at,
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            trace_id: throughline_telemetry::trace_id_of(&Span::current()),
            status: called.status.map(|status| status.as_u16()),
            response_excerpt: called.excerpt,
            outcome: outcome(&called.end),
        }
    }
}

/// The one line that says how a delivery ended. A filter's error may quote the body, so its words
/// are left to the report.
fn log(report: &AttemptReport) {
    let AttemptReport { request_id, destination, attempt, status, duration_ms, outcome, .. } = report;
    match outcome {
        Outcome::Delivered => {
            info!(%request_id, destination, attempt, status, duration_ms, outcome = "delivered", "delivery ended");
        }
        Outcome::Dead { reason, failure: Failure { class, error } } => {
            let error = (*class != ErrorClass::Transform).then_some(error.as_str());
            warn!(
                %request_id, destination, attempt, status, duration_ms, outcome = "dead",
                reason = DeadReason::as_str(*reason), error_class = class.as_str(), error, "delivery ended"
            );
        }
    }
}
