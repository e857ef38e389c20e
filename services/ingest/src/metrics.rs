//! What ingest measures, but for HTTP: its own numbers.

use std::collections::BTreeMap;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};
use throughline_messages::DeadReason;
use throughline_store::{Due, Ended, OutboxRequest};

use crate::publisher::Source;

pub(crate) const DESTINATION: &str = "throughline.destination";
const ROUTE: &str = "throughline.route";
const REASON: &str = "throughline.reason";
const OUTCOME: &str = "throughline.outcome";

/// Batches of the writer, in requests.
const BATCHES: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// What happens to requests and deliveries. Clones count together.
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
                .with_description(
                    "Requests that were accepted: committed, whether or not their clients still wait.",
                )
                .build(),
            batch: meter
                .u64_histogram("throughline.writer.batch.size")
                .with_unit("{request}")
                .with_description("Requests that were committed together.")
                .with_boundaries(BATCHES.to_vec())
                .build(),
            published: meter
                .u64_counter("throughline.publisher.published")
                .with_unit("{request}")
                .with_description("Requests that Kafka acknowledged.")
                .build(),
            mode: meter
                .u64_gauge("throughline.publisher.mode")
                .with_description(
                    "Where the publisher learns of commits: 0 from memory, 1 from the outbox table.",
                )
                .build(),
            swept: meter
                .u64_counter("throughline.sweeper.published")
                .with_unit("{delivery}")
                .with_description(
                    "Deliveries that were published again: as planned, or as nothing was heard of them.",
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
                .with_description("Deliveries, and records that ask for none, that ended without success.")
                .build(),
        }
    }

    /// These requests were committed together.
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

    /// Kafka has a request.
    pub(crate) fn published(&self, route: &str) {
        self.published.add(1, &[KeyValue::new(ROUTE, route.to_owned())]);
    }

    /// The publisher learns of commits there from now on.
    pub(crate) fn publisher_reads(&self, source: Source) {
        self.mode.record(u64::from(source == Source::Table), &[]);
    }

    /// Kafka has so many deliveries again.
    pub(crate) fn swept(&self, due: Due, deliveries: usize) {
        let cause = match due {
            Due::Planned => "planned",
            Due::Silent => "silent",
        };
        self.swept.add(deliveries as u64, &[KeyValue::new("throughline.cause", cause)]);
    }

    /// Deliveries have ended.
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

    /// The deliveries to these destinations were called off.
    pub(crate) fn cancelled(&self, destinations: &[String]) {
        for destination in destinations {
            self.end(destination, "cancelled");
        }
    }

    /// A record was put aside that asks for no delivery.
    pub(crate) fn put_aside(&self, reason: DeadReason) {
        self.dead_letters.add(1, &[KeyValue::new(REASON, reason.as_str().to_owned())]);
    }

    fn end(&self, destination: &str, outcome: &'static str) {
        let destination = KeyValue::new(DESTINATION, destination.to_owned());
        self.deliveries.add(1, &[destination, KeyValue::new(OUTCOME, outcome)]);
    }
}
