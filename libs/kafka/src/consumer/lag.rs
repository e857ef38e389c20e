use std::sync::{Arc, Weak};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use super::group::Group;
use crate::metrics::{GROUP, PARTITION, TOPIC};

/// Has it looked at, whenever metrics are collected, how far the group's partitions here are behind.
pub(super) fn observe(meter: &Meter, group: &Arc<Group>) {
    // A member that has left is behind with nothing.
    let of: Weak<Group> = Arc::downgrade(group);
    meter
        .u64_observable_gauge("throughline.consumer.lag")
        .with_unit("{record}")
        .with_description("Records between the lowest one that is not finished and the end of the partition.")
        .with_callback(move |gauge| {
            let Some(group) = of.upgrade() else { return };
            for (topic, partition, records) in group.assignment.lags() {
                let attributes = [
                    KeyValue::new(TOPIC, topic),
                    KeyValue::new(GROUP, group.name.clone()),
                    KeyValue::new(PARTITION, partition.to_string()),
                ];
                gauge.observe(records, &attributes);
            }
        })
        // Here and below: the callback stays with the meter.
        .build();

    let of: Weak<Group> = Arc::downgrade(group);
    meter
        .f64_observable_gauge("throughline.consumer.lag.age")
        .with_unit("s")
        .with_description("Age of the oldest record that is not finished; zero if there is none.")
        .with_callback(move |gauge| {
            let Some(group) = of.upgrade() else { return };
            for (topic, age) in group.assignment.ages(group.clock.now()) {
                let attributes = [KeyValue::new(TOPIC, topic), KeyValue::new(GROUP, group.name.clone())];
                gauge.observe(age.as_seconds_f64(), &attributes);
            }
        })
        .build();
}
