use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};

use super::{GROUP, duration, of_operation};

/// Instruments for the records that a group consumes.
#[derive(Debug)]
pub(crate) struct Consuming {
    messages: Counter<u64>,
    duration: Histogram<f64>,
    group: String,
}

impl Consuming {
    pub(crate) fn new(meter: &Meter, group: &str) -> Self {
        Self {
            messages: meter
                .u64_counter("messaging.client.consumed.messages")
                .with_unit("{message}")
                .with_description("Records that were handed out for processing.")
                .build(),
            duration: duration(
                meter,
                "messaging.process.duration",
                "Time from handing out a record until it is finished.",
            ),
            group: group.to_owned(),
        }
    }

    /// Returns the metrics of one topic.
    pub(crate) fn topic(&self, topic: &str) -> TopicMetrics {
        let group = KeyValue::new(GROUP, self.group.clone());
        let attributes = |operation| {
            let [system, operation, topic] = of_operation(operation, topic);
            [system, operation, topic, group.clone()]
        };
        TopicMetrics {
            messages: self.messages.clone(),
            duration: self.duration.clone(),
            poll: attributes("poll"),
            process: attributes("process"),
        }
    }
}

/// Counts the records of one topic.
#[derive(Debug)]
pub(crate) struct TopicMetrics {
    messages: Counter<u64>,
    duration: Histogram<f64>,
    poll: [KeyValue; 4],
    process: [KeyValue; 4],
}

impl TopicMetrics {
    pub(crate) fn handed_out(&self) {
        self.messages.add(1, &self.poll);
    }

    pub(crate) fn finished(&self, took: Duration) {
        self.duration.record(took.as_secs_f64(), &self.process);
    }
}
