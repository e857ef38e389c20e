//! A delivery of one request to one destination, as far as it comes now.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use throughline_clock::Clock;
use throughline_kafka::Record;
use throughline_messages::{AttemptReport, DeadReason, ErrorClass, Failure, Outcome};
use throughline_transform::{TransformError, Variables};
use tokio::time::Instant;
use tracing::{Span, debug, info, warn};

use crate::admission::Admission;
use crate::call::{Call, Called};
use crate::classify::Made;
use crate::destination::{Body, Destination};
use crate::no_call::NoCall;
use crate::processor::Processor;
use crate::recent::{Asked, InWork, Known};
use crate::reporter::origin;
use crate::routing::Target;
use crate::start::Start;
use crate::work::{Deliveries, Standing};

/// A delivery that is to be attempted.
pub(crate) struct Delivery<'a> {
    pub(crate) record: &'a Record,
    pub(crate) deliveries: &'a Deliveries,
    pub(crate) target: &'a Target,
    pub(crate) start: &'a Start,
}

/// When an attempt began, to tell and to measure.
#[derive(Clone, Copy)]
struct Begun {
    at: DateTime<Utc>,
    instant: Instant,
}

impl Begun {
    fn now(clock: &Clock) -> Self {
        Self { at: clock.now(), instant: Instant::now() }
    }
}

impl Delivery<'_> {
    /// Attempts it, again as often as that is to be at once, and returns when Kafka has all outcomes and, if it
    /// ended dead, its dead letter. It does nothing if the record is left to the next owner of its partition.
    pub(crate) async fn run(self, processor: &Processor, admission: Result<Admission<'_>, NoCall>) {
        let mut standing = self.deliveries.standing;
        let admission = match admission {
            Ok(admission) => admission,
            Err(no_call) => {
                if self.start.is_ours() {
                    let begun = Begun::now(&processor.clock);
                    let outcome = no_call.outcome(begun.at);
                    self.tell(processor, &self.report(standing, begun, None, outcome, standing.spent)).await;
                }
                return;
            }
        };
        let Some(in_work) = self.begin(processor, admission.destination).await else { return };
        for repeats in 0.. {
            let Some(report) = self.attempt(processor, admission.destination, standing, repeats).await else {
                return;
            };
            // Before the next attempt: outcomes are told in the order of their attempts.
            self.tell(processor, &report).await;
            if !matches!(report.outcome, Outcome::Retry { due_at: None, .. }) {
                in_work.ended(&report);
                return;
            }
            standing =
                Standing { attempt: standing.attempt.saturating_add(1), spent: report.spent, ..standing };
        }
    }

    /// Begins, unless the same attempt was asked for by another record and ended here, whose report is made again, or is
    /// in work.
    async fn begin<'p>(&self, processor: &'p Processor, destination: &Destination) -> Option<InWork<'p>> {
        let Standing { attempt, since, .. } = self.deliveries.standing;
        let (request, destination) = (self.deliveries.request.id, Arc::clone(&destination.name));
        match processor.recent.begin(Asked { request, destination, attempt, since }) {
            Known::New(in_work) => return Some(in_work),
            Known::InWork => {
                info!(request_id = %request, attempt, origin = %origin(self.record), "the attempt is in work by another record");
            }
            Known::Ended(report) => {
                let destination = &report.destination;
                info!(request_id = %request, destination, attempt, origin = %origin(self.record), "the attempt was made by another record: its outcome is reported again");
                processor.reporter.outcome(&report).await;
            }
        }
        None
    }

    async fn tell(&self, processor: &Processor, report: &AttemptReport) {
        if report.outcome == Outcome::Delivered {
            let (request, now) = (&self.deliveries.request, processor.clock.now());
            processor.metrics.delivered(&report.destination, request, now);
        }
        processor.tell(self.record, report).await;
        log(report);
    }

    /// None if the record is left to the next owner of its partition.
    async fn attempt(
        &self,
        processor: &Processor,
        destination: &Destination,
        standing: Standing,
        repeats: u32,
    ) -> Option<AttemptReport> {
        let mut begun = Begun::now(&processor.clock);
        let called = self.call(processor, destination, standing, &mut begun).await;
        let now = processor.clock.now();
        match called {
            Ok(called) => {
                // The next owner of the partition, or whatever ends this dispatch, waits for one call at most.
                let repeats = if self.start.has_ended() { u32::MAX } else { repeats };
                let made = Made { standing, repeats, at: now };
                let (outcome, spent) = destination.rules.judge(&called, made, &mut rand::rng());
                Some(self.report(standing, begun, Some(called), outcome, spent))
            }
            Err(no_call) if self.start.is_ours() => {
                Some(self.report(standing, begun, None, no_call.outcome(now), standing.spent))
            }
            Err(_) => None,
        }
    }

    async fn call(
        &self,
        processor: &Processor,
        destination: &Destination,
        standing: Standing,
        begun: &mut Begun,
    ) -> Result<Called, NoCall> {
        let retry = &destination.rules.retry;
        let in_time = |now| {
            if now < retry.ends_at(standing.since) { Ok(()) } else { Err(NoCall::expired(retry.window)) }
        };
        in_time(begun.at)?;
        destination.gate.is_passable()?;
        // Before the turn, which it may take longer than a call.
        let body = self.body(destination, standing).await?;
        let left = || NoCall::left(false);
        let pass = self.start.unless_ended(destination.gate.pass()).await.ok_or_else(left)??;
        if !self.start.is_ours() {
            return Err(left());
        }
        // To wait for a turn is no part of the attempt.
        *begun = Begun::now(&processor.clock);
        in_time(begun.at)?;
        let (tokens, id, attempt) = (&processor.tokens, self.deliveries.request.id, standing.attempt);
        match (Call { destination, tokens, id, attempt, body }).make().await {
            Ok(called) => {
                destination.credentials.well();
                pass.ended(destination.rules.is_well(&called));
                Ok(called)
            }
            Err(no_token) => Err(NoCall::Held(destination.credentials.failed(&no_token))),
        }
    }

    async fn body(&self, destination: &Destination, standing: Standing) -> Result<Body, TransformError> {
        let content_type = self.deliveries.content_type.clone();
        let came = Body { content: self.record.payload.clone(), content_type };
        let request = &self.deliveries.request;
        let variables = || Variables {
            id: request.id.to_string(),
            route: request.route.clone(),
            accepted_at: request.accepted_at.to_rfc3339_opts(SecondsFormat::Millis, true),
            attempt: standing.attempt,
        };
        destination.body(came, variables).await
    }

    fn report(
        &self,
        standing: Standing,
        begun: Begun,
        called: Option<Called>,
        outcome: Outcome,
        spent: u32,
    ) -> AttemptReport {
        let status = called.as_ref().and_then(|called| called.status);
        AttemptReport {
            request_id: self.deliveries.request.id,
            destination: self.target.name().to_owned(),
            attempt: standing.attempt,
            called: called.is_some(),
            spent,
            started_at: begun.at,
            duration_ms: u64::try_from(begun.instant.elapsed().as_millis()).unwrap_or(u64::MAX),
            trace_id: throughline_telemetry::trace_id_of(&Span::current()),
            origin: Some(origin(self.record)),
            status: status.map(|status| status.as_u16()),
            response_excerpt: called.and_then(|called| called.excerpt),
            outcome,
        }
    }
}

/// The one line that says how an attempt ended. A filter's error may quote the body, so its words are left to
/// the report.
fn log(report: &AttemptReport) {
    let AttemptReport { request_id, destination, attempt, status, duration_ms, outcome, .. } = report;
    match outcome {
        Outcome::Delivered => {
            info!(%request_id, destination, attempt, status, duration_ms, outcome = "delivered", "delivery ended");
        }
        Outcome::Retry { due_at, failure: Failure { class, error } } => {
            info!(
                %request_id, destination, attempt, status, duration_ms, outcome = "retry",
                due_at = due_at.as_ref().map(tracing::field::display), error_class = class.as_str(), error,
                "attempt failed"
            );
        }
        // There may be very many, all for one reason, which was logged.
        Outcome::Deferred { due_at, cause } => {
            debug!(
                %request_id, destination, attempt, outcome = "deferred", %due_at, cause = cause.as_str(),
                "delivery deferred"
            );
        }
        Outcome::Dead { reason, failure: Failure { class, error } } => {
            let error = (*class != ErrorClass::Transform).then_some(error.as_str());
            warn!(
                %request_id, destination, attempt, status, duration_ms, outcome = "dead",
                reason = DeadReason::as_str(reason), error_class = class.as_str(), error, "delivery ended"
            );
        }
    }
}
