//! The metrics of dispatch, apart from those of each kind of destination.

use chrono::{DateTime, TimeDelta, Utc};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Counter, Histogram, Meter, UpDownCounter};
use throughline_messages::{AttemptReport, DeadReason, Outcome, RequestRecord};
use throughline_resilience::BreakerState;
use throughline_telemetry::LONG;

use crate::destination::Destination;
use crate::routing::Routing;

const DESTINATION: &str = "throughline.destination";

/// Instruments for everything that dispatch reports.
#[derive(Debug)]
pub(crate) struct Metrics {
    attempts: Counter<u64>,
    retries: Counter<u64>,
    latency: Histogram<f64>,
    dead_letters: Counter<u64>,
}

/// Counts the calls in progress to one destination.
#[derive(Debug)]
pub(crate) struct InFlight {
    calls: UpDownCounter<i64>,
    destination: KeyValue,
}

/// A call in progress, until it is dropped.
#[derive(Debug)]
pub(crate) struct CallInFlight<'a>(&'a InFlight);

impl Metrics {
    pub(crate) fn new(meter: &Meter) -> Self {
        Self {
            attempts: meter
                .u64_counter("throughline.attempts")
                .with_unit("{attempt}")
                .with_description("Attempts by outcome: delivered, retry, deferred or dead.")
                .build(),
            retries: meter
                .u64_counter("throughline.retries.scheduled")
                .with_unit("{retry}")
                .with_description("Attempts that failed and are retried later.")
                .build(),
            latency: meter
                .f64_histogram("throughline.delivery.latency")
                .with_unit("s")
                .with_description("Time from the acceptance of a request to its delivery.")
                .with_boundaries(LONG.to_vec())
                .build(),
            dead_letters: meter
                .u64_counter("throughline.dead_letters")
                .with_unit("{dead_letter}")
                .with_description("Deliveries that ended without success, and records without any delivery.")
                .build(),
        }
    }

    /// Counts an attempt by its outcome.
    pub(crate) fn attempt(&self, report: &AttemptReport) {
        let destination = KeyValue::new(DESTINATION, report.destination.clone());
        let mut attributes =
            vec![destination.clone(), KeyValue::new("throughline.outcome", report.outcome.as_str())];
        if let Some(error) = error_type(&report.outcome) {
            attributes.push(KeyValue::new("error.type", error.to_owned()));
        }
        self.attempts.add(1, &attributes);
        if let Outcome::Retry { due_at: Some(_), .. } = report.outcome {
            self.retries.add(1, &[destination]);
        }
    }

    /// Records the latency of a delivered request.
    pub(crate) fn delivered(&self, destination: &str, request: &RequestRecord, now: DateTime<Utc>) {
        let destination = KeyValue::new(DESTINATION, destination.to_owned());
        let route = KeyValue::new("throughline.route", request.route.clone());
        self.latency.record(seconds_between(request.accepted_at, now), &[destination, route]);
    }

    /// Counts a record that asks for no delivery and was kept as a dead letter. Ingest counts the dead letters of
    /// deliveries when it records them.
    pub(crate) fn buried(&self, reason: DeadReason) {
        self.dead_letters.add(1, &[KeyValue::new("throughline.reason", reason.as_str().to_owned())]);
    }
}

fn error_type(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Delivered => None,
        Outcome::Deferred { cause, .. } => Some(cause.as_str()),
        Outcome::Retry { failure, .. } | Outcome::Dead { failure, .. } => Some(failure.class.as_str()),
    }
}

/// Returns the seconds from one time to another; zero if the clocks of two machines disagree.
fn seconds_between(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    (to - from).max(TimeDelta::zero()).to_std().unwrap_or_default().as_secs_f64()
}

impl InFlight {
    pub(crate) fn new(meter: &Meter, destination: &str) -> Self {
        Self {
            calls: meter
                .i64_up_down_counter("throughline.inflight")
                .with_unit("{call}")
                .with_description("Calls to third parties in progress.")
                .build(),
            destination: KeyValue::new(DESTINATION, destination.to_owned()),
        }
    }

    /// Counts a call as in progress.
    pub(crate) fn begin(&self) -> CallInFlight<'_> {
        self.calls.add(1, std::slice::from_ref(&self.destination));
        CallInFlight(self)
    }
}

impl Drop for CallInFlight<'_> {
    fn drop(&mut self) {
        self.0.calls.add(-1, std::slice::from_ref(&self.0.destination));
    }
}

/// Registers gauges that read the state of every destination whenever metrics are collected.
pub(crate) fn observe(meter: &Meter, routing: &Routing) {
    let gauge = |name, unit, description, value: fn(&Destination) -> u64| {
        let destinations = routing.destinations();
        let observe = move |gauge: &dyn AsyncInstrument<u64>| {
            for destination in &destinations {
                gauge.observe(value(destination), &[KeyValue::new(DESTINATION, destination.name.clone())]);
            }
        };
        let gauge = meter.u64_observable_gauge(name).with_unit(unit).with_description(description);
        // The meter owns the callback.
        let _ = gauge.with_callback(observe).build();
    };
    gauge(
        "throughline.breaker.state",
        "",
        "State of the destination's breaker: 0 closed, 1 half-open or probed by the next call, 2 open.",
        |destination| match destination.gate.state() {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open => 2,
        },
    );
    gauge(
        "throughline.limit.concurrency",
        "{call}",
        "Maximum number of concurrent calls of this replica to the destination.",
        |destination| u64::try_from(destination.gate.limits().most_calls()).unwrap_or(u64::MAX),
    );
    gauge(
        "throughline.token.refused",
        "",
        "1 while the token endpoint rejects the destination's credentials, so that an operator must act.",
        |destination| destination.third_party.credentials_are_refused().into(),
    );
}
