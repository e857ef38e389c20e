use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};
use rdkafka::error::KafkaError as Native;
use tokio::time::Instant;

use super::{duration, of_operation};

/// Instruments for the records that are produced.
#[derive(Debug)]
pub(crate) struct Sending {
    messages: Counter<u64>,
    duration: Histogram<f64>,
}

impl Sending {
    pub(crate) fn new(meter: &Meter) -> Self {
        Self {
            messages: meter
                .u64_counter("messaging.client.sent.messages")
                .with_unit("{message}")
                .with_description("Records that were produced or rejected.")
                .build(),
            duration: duration(
                meter,
                "messaging.client.operation.duration",
                "Time from enqueuing a record until the broker acknowledges it.",
            ),
        }
    }

    /// Counts a record that was enqueued at `since`, and that is now acknowledged or never will be.
    pub(crate) fn ended(&self, topic: &str, since: Instant, error: Option<&Native>) {
        let mut attributes = Vec::from(of_operation("send", topic));
        attributes.extend(error.map(|error| KeyValue::new("error.type", error_type(error))));
        self.messages.add(1, &attributes);
        self.duration.record(since.elapsed().as_secs_f64(), &attributes);
    }
}

/// Returns librdkafka's name of the error. There are about 150 names.
fn error_type(error: &Native) -> String {
    error.rdkafka_error_code().map_or_else(|| "_OTHER".to_owned(), |code| format!("{code:?}"))
}
