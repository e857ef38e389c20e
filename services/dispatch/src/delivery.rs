//! The attempts that are made now for one delivery: one request at one destination.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use throughline_clock::Clock;
use throughline_destination::{Body, Called, OutgoingRequest};
use throughline_kafka::Record;
use throughline_messages::{AttemptReport, DeadReason, ErrorClass, Failure, Outcome};
use throughline_transform::{TransformError, Variables};
use tokio::time::Instant;
use tracing::{Span, debug, info, warn};

use crate::admission::Admission;
use crate::destination::Destination;
use crate::not_attempted::NotAttempted;
use crate::policy::{self, AttemptResult};
use crate::processor::Processor;
use crate::recent::{Asked, InWork, Known};
use crate::reporter::origin;
use crate::routing::RouteTarget;
use crate::start::Start;
use crate::work::{Deliveries, Progress};

/// A delivery to attempt.
pub(crate) struct Delivery<'a> {
    pub(crate) record: &'a Record,
    pub(crate) deliveries: &'a Deliveries,
    pub(crate) target: &'a RouteTarget,
    pub(crate) start: &'a Start,
}

/// When an attempt began: the time to report, and the instant to measure its duration from.
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
    /// Attempts the delivery, including retries that are due at once. Returns once Kafka has all outcomes and, if the
    /// delivery ended dead, its dead letter. Does nothing if the record is left to the next owner of its partition.
    pub(crate) async fn run(self, processor: &Processor, admission: Result<Admission<'_>, NotAttempted>) {
        let mut progress = self.deliveries.progress;
        let admission = match admission {
            Ok(admission) => admission,
            Err(not_attempted) => {
                if self.start.is_ours() {
                    let begun = Begun::now(&processor.clock);
                    let outcome = not_attempted.outcome(begun.at);
                    self.tell(
                        processor,
                        &self.report(progress, begun, None, outcome, progress.counted_attempts),
                    )
                    .await;
                }
                return;
            }
        };
        let Some(in_work) = self.begin(processor, admission.destination).await else { return };
        for repeats in 0.. {
            let Some(report) = self.attempt(processor, admission.destination, progress, repeats).await else {
                return;
            };
            // Before the next attempt, so that outcomes are reported in the order of their attempts.
            self.tell(processor, &report).await;
            if !matches!(report.outcome, Outcome::Retry { due_at: None, .. }) {
                in_work.ended(&report);
                return;
            }
            progress = Progress {
                attempt: progress.attempt.saturating_add(1),
                counted_attempts: report.counted_attempts,
                ..progress
            };
        }
    }

    /// Begins the attempt, unless another record asked for the same attempt before. If that attempt is in work, this
    /// does nothing; if it ended here, this publishes its report again.
    async fn begin<'p>(&self, processor: &'p Processor, destination: &Destination) -> Option<InWork<'p>> {
        let Progress { attempt, window_started_at, .. } = self.deliveries.progress;
        let (request, destination) = (self.deliveries.request.id, Arc::clone(&destination.name));
        match processor.recent.begin(Asked { request, destination, attempt, window_started_at }) {
            Known::New(in_work) => return Some(in_work),
            Known::InWork => {
                info!(
                    event = "attempt.skipped", request_id = %request, attempt, origin = %origin(self.record),
                    "skipping an attempt that another record has started"
                );
            }
            Known::Ended(report) => {
                let destination = &report.destination;
                info!(
                    event = "outcome.repeated", request_id = %request, destination, attempt,
                    origin = %origin(self.record),
                    "skipping an attempt that another record has made; publishing its outcome again"
                );
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

    /// Makes one attempt. Returns `None` if the record is left to the next owner of its partition.
    async fn attempt(
        &self,
        processor: &Processor,
        destination: &Destination,
        progress: Progress,
        repeats: u32,
    ) -> Option<AttemptReport> {
        let mut begun = Begun::now(&processor.clock);
        let called = self.call(processor, destination, progress, &mut begun).await;
        let now = processor.clock.now();
        match called {
            Ok(called) => {
                // Once the claim has ended, no retry is made at once: the next owner of the partition, or the
                // shutdown of this dispatch, waits for one call at most.
                let repeats = if self.start.has_ended() { u32::MAX } else { repeats };
                let made = AttemptResult { progress, repeats, at: now };
                let (outcome, counted_attempts) =
                    policy::decide(&destination.retry, &called, made, &mut rand::rng());
                Some(self.report(progress, begun, Some(called), outcome, counted_attempts))
            }
            Err(not_attempted) if self.start.is_ours() => Some(self.report(
                progress,
                begun,
                None,
                not_attempted.outcome(now),
                progress.counted_attempts,
            )),
            Err(_) => None,
        }
    }

    async fn call(
        &self,
        processor: &Processor,
        destination: &Destination,
        progress: Progress,
        begun: &mut Begun,
    ) -> Result<Called, NotAttempted> {
        let retry = &destination.retry;
        let in_time = |now| {
            if now < retry.ends_at(progress.window_started_at) {
                Ok(())
            } else {
                Err(NotAttempted::expired(retry.window))
            }
        };
        in_time(begun.at)?;
        destination.gate.is_passable()?;
        // Before the wait for a permit: the filter may take longer than a call, and would occupy the permit.
        let body = self.body(destination, progress).await?;
        let left = || NotAttempted::left(false);
        let permit = self.start.unless_ended(destination.gate.pass()).await.ok_or_else(left)??;
        if !self.start.is_ours() {
            return Err(left());
        }
        // The wait for a permit is not part of the attempt.
        *begun = Begun::now(&processor.clock);
        in_time(begun.at)?;
        let request = OutgoingRequest {
            request: &self.deliveries.request,
            key: self.record.key.as_ref(),
            attempt: progress.attempt,
            body,
            timeout: destination.timeout,
        };
        let in_flight = destination.in_flight.begin();
        let called = destination.third_party.call(&request).await?;
        drop(in_flight);
        permit.ended(called.is_healthy());
        Ok(called)
    }

    async fn body(&self, destination: &Destination, progress: Progress) -> Result<Body, TransformError> {
        let content_type = self.deliveries.content_type.clone();
        let came = Body { content: self.record.payload.clone(), content_type };
        let request = &self.deliveries.request;
        let variables = || Variables {
            id: request.id.to_string(),
            route: request.route.clone(),
            accepted_at: request.accepted_at.to_rfc3339_opts(SecondsFormat::Millis, true),
            attempt: progress.attempt,
        };
        destination.body(came, variables).await
    }

    fn report(
        &self,
        progress: Progress,
        begun: Begun,
        called: Option<Called>,
        outcome: Outcome,
        counted_attempts: u32,
    ) -> AttemptReport {
        let status = called.as_ref().and_then(|called| called.status);
        AttemptReport {
            request_id: self.deliveries.request.id,
            destination: self.target.name().to_owned(),
            attempt: progress.attempt,
            called: called.is_some(),
            counted_attempts,
            started_at: begun.at,
            duration_ms: u64::try_from(begun.instant.elapsed().as_millis()).unwrap_or(u64::MAX),
            trace_id: throughline_telemetry::trace_id_of(&Span::current()),
            origin: Some(origin(self.record)),
            status,
            response_excerpt: called.and_then(|called| called.excerpt),
            outcome,
        }
    }
}

/// Logs how an attempt ended, in one line. A filter's error may quote the body, so only the report carries its text.
fn log(report: &AttemptReport) {
    let AttemptReport { request_id, destination, attempt, status, duration_ms, outcome, .. } = report;
    match outcome {
        Outcome::Delivered => {
            info!(
                event = "delivery.succeeded", %request_id, destination, attempt, status, duration_ms,
                outcome = "delivered",
                "delivery succeeded"
            );
        }
        Outcome::Retry { due_at, failure: Failure { class, error } } => {
            info!(
                event = "attempt.failed", %request_id, destination, attempt, status, duration_ms,
                outcome = "retry", due_at = due_at.as_ref().map(tracing::field::display),
                error_class = class.as_str(), error,
                "attempt failed"
            );
        }
        // At debug level: very many deliveries may be deferred for one cause, which is already logged.
        Outcome::Deferred { due_at, cause } => {
            debug!(
                event = "delivery.deferred", %request_id, destination, attempt, outcome = "deferred", %due_at,
                cause = cause.as_str(),
                "delivery deferred"
            );
        }
        Outcome::Dead { reason, failure: Failure { class, error } } => {
            let error = (*class != ErrorClass::Transform).then_some(error.as_str());
            warn!(
                event = "delivery.dead_lettered", %request_id, destination, attempt, status, duration_ms,
                outcome = "dead", reason = DeadReason::as_str(reason), error_class = class.as_str(), error,
                "delivery ended dead"
            );
        }
    }
}
