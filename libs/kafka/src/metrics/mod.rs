//! What is measured of the clients: OpenTelemetry's conventions for messaging, and numbers of our own.

mod consuming;
mod sending;
mod vitals;

pub(crate) use consuming::{Consuming, Tally};
pub(crate) use sending::Sending;
pub(crate) use vitals::Vitals;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter};
use throughline_telemetry::SHORT;

pub(crate) const TOPIC: &str = "messaging.destination.name";
pub(crate) const PARTITION: &str = "messaging.destination.partition.id";
pub(crate) const GROUP: &str = "messaging.consumer.group.name";

/// How often librdkafka tells of itself, in milliseconds: more often than metrics are exported.
pub(crate) const STATISTICS_INTERVAL: (&str, &str) = ("statistics.interval.ms", "5000");

/// What everything has that is measured of an operation.
fn of_operation(name: &'static str, topic: &str) -> [KeyValue; 3] {
    [
        KeyValue::new("messaging.system", "kafka"),
        KeyValue::new("messaging.operation.name", name),
        KeyValue::new(TOPIC, topic.to_owned()),
    ]
}

fn duration(meter: &Meter, name: &'static str, description: &'static str) -> Histogram<f64> {
    meter
        .f64_histogram(name)
        .with_unit("s")
        .with_description(description)
        .with_boundaries(SHORT.to_vec())
        .build()
}
