//! Ingest's own metrics, other than those for HTTP.

use std::collections::BTreeMap;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};
use throughline_messages::DeadReason;
use throughline_store::{Due, Ended, OutboxRequest};

use crate::publisher::ReadFrom;

pub(crate) const DESTINATION: &str = "throughline.destination";
const ROUTE: &str = "throughline.route";
const REASON: &str = "throughline.reason";
const OUTCOME: &str = "throughline.outcome";

/// The histogram boundaries for the writer's batches, in requests.
const BATCHES: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// Metrics of requests and deliveries. Clones share the instruments.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    accepted: Counter<u64>,
    batch: Histogram<u64>,
    published: Counter<u64>,
    mode: Gauge<u64>,
    swept: Counter<u64>,
    deliveries: Counter<u64>,
    dead_letters: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new(meter: &Meter) -> Self {
        Self {
            accepted: meter
                .u64_counter("throughline.requests.accepted")
                .with_unit("{request}")
                .with_description("Requests that were committed, whether or not their clients still wait.")
                .build(),
            batch: meter
                .u64_histogram("throughline.writer.batch.size")
                .with_unit("{request}")
                .with_description("Requests in one commit.")
                .with_boundaries(BATCHES.to_vec())
                .build(),
            published: meter
                .u64_counter("throughline.publisher.published")
                .with_unit("{request}")
                .with_description("Requests that Kafka acknowledged.")
                .build(),
            mode: meter
                .u64_gauge("throughline.publisher.mode")
                .with_description("Source of the publisher's records: 0 memory, 1 the outbox table.")
                .build(),
            swept: meter
                .u64_counter("throughline.sweeper.published")
                .with_unit("{delivery}")
                .with_description(
                    "Deliveries that were published again: as planned, or because no outcome arrived.",
                )
                .build(),
            deliveries: meter
                .u64_counter("throughline.deliveries")
                .with_unit("{delivery}")
                .with_description("Deliveries that ended: delivered, dead or cancelled.")
                .build(),
            dead_letters: meter
                .u64_counter("throughline.dead_letters")
                .with_unit("{dead_letter}")
                .with_description("Deliveries that ended without success, and records without any delivery.")
                .build(),
        }
    }

    /// Counts requests that were committed together.
    pub(crate) fn committed(&self, requests: &[OutboxRequest]) {
        self.batch.record(requests.len() as u64, &[]);
        let mut of_route: BTreeMap<&str, u64> = BTreeMap::new();
        for request in requests {
            *of_route.entry(&request.route).or_default() += 1;
        }
        for (route, count) in of_route {
            self.accepted.add(count, &[KeyValue::new(ROUTE, route.to_owned())]);
        }
    }

    /// Counts a request that Kafka has acknowledged.
    pub(crate) fn published(&self, route: &str) {
        self.published.add(1, &[KeyValue::new(ROUTE, route.to_owned())]);
    }

    /// Records the source from which the publisher learns of commits from now on.
    pub(crate) fn publisher_reads(&self, source: ReadFrom) {
        self.mode.record(u64::from(source == ReadFrom::Table), &[]);
    }

    /// Counts deliveries that were published again.
    pub(crate) fn swept(&self, due: Due, deliveries: usize) {
        let cause = match due {
            Due::Planned => "planned",
            Due::Silent => "silent",
        };
        self.swept.add(deliveries as u64, &[KeyValue::new("throughline.cause", cause)]);
    }

    /// Counts deliveries that have ended.
    pub(crate) fn ended(&self, ended: &[Ended]) {
        for Ended { destination, reason, error_class } in ended {
            let Some(reason) = reason else {
                self.end(destination, "delivered");
                continue;
            };
            self.end(destination, "dead");
            let mut attributes =
                vec![KeyValue::new(DESTINATION, destination.clone()), KeyValue::new(REASON, reason.clone())];
            attributes.extend(error_class.clone().map(|class| KeyValue::new("error.type", class)));
            self.dead_letters.add(1, &attributes);
        }
    }

    /// Counts the cancelled deliveries to these destinations.
    pub(crate) fn cancelled(&self, destinations: &[String]) {
        for destination in destinations {
            self.end(destination, "cancelled");
        }
    }

    /// Counts a record that went to dead letters and asks for no delivery.
    pub(crate) fn put_aside(&self, reason: DeadReason) {
        self.dead_letters.add(1, &[KeyValue::new(REASON, reason.as_str().to_owned())]);
    }

    fn end(&self, destination: &str, outcome: &'static str) {
        let destination = KeyValue::new(DESTINATION, destination.to_owned());
        self.deliveries.add(1, &[destination, KeyValue::new(OUTCOME, outcome)]);
    }
}
