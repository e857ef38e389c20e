//! The metrics of the clients: those of OpenTelemetry's conventions for messaging, and our own.

mod client_stats;
mod consuming;
mod sending;

pub(crate) use client_stats::ClientStats;
pub(crate) use consuming::{Consuming, TopicMetrics};
pub(crate) use sending::Sending;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter};
use throughline_telemetry::SHORT;

pub(crate) const TOPIC: &str = "messaging.destination.name";
pub(crate) const PARTITION: &str = "messaging.destination.partition.id";
pub(crate) const GROUP: &str = "messaging.consumer.group.name";

/// How often librdkafka reports statistics, in milliseconds: more often than metrics are exported.
pub(crate) const STATISTICS_INTERVAL: (&str, &str) = ("statistics.interval.ms", "5000");

/// Returns the attributes that all measurements of an operation have.
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
