use std::sync::{Arc, Weak};

use chrono::{DateTime, TimeDelta, Utc};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use super::group::Group;
use crate::metrics::{GROUP, PARTITION, TOPIC};
use crate::partition::Partition;

/// Registers gauges that report, whenever metrics are collected, how far the group's partitions on this member are
/// behind.
pub(super) fn observe(meter: &Meter, group: &Arc<Group>) {
    // Weak, because a member that has left the group is not behind.
    let of: Weak<Group> = Arc::downgrade(group);
    meter
        .u64_observable_gauge("throughline.consumer.lag")
        .with_unit("{record}")
        .with_description("Records of the partition that are not finished.")
        .with_callback(move |gauge| {
            let Some(group) = of.upgrade() else { return };
            for (name, records) in group.assignment.lags() {
                let attributes = [
                    KeyValue::new(TOPIC, name.topic),
                    KeyValue::new(GROUP, group.name.clone()),
                    KeyValue::new(PARTITION, name.number.to_string()),
                ];
                gauge.observe(records, &attributes);
            }
        })
        // Here and below: the meter owns the callback.
        .build();

    observe_age(
        meter,
        group,
        "throughline.consumer.lag.age",
        "Age of the oldest record that is not finished; zero if there is none.",
        Partition::age,
    );
    observe_age(
        meter,
        group,
        "throughline.consumer.waiting.age",
        "Age of the oldest record whose processing has not started; zero if there is none.",
        Partition::waiting,
    );
}

fn observe_age(
    meter: &Meter,
    group: &Arc<Group>,
    name: &'static str,
    description: &'static str,
    age: fn(&Partition, DateTime<Utc>) -> Option<TimeDelta>,
) {
    let of: Weak<Group> = Arc::downgrade(group);
    meter
        .f64_observable_gauge(name)
        .with_unit("s")
        .with_description(description)
        .with_callback(move |gauge| {
            let Some(group) = of.upgrade() else { return };
            let now = group.clock.now();
            for (topic, age) in group.assignment.ages(|partition| age(partition, now)) {
                let attributes = [KeyValue::new(TOPIC, topic), KeyValue::new(GROUP, group.name.clone())];
                gauge.observe(age.as_seconds_f64(), &attributes);
            }
        })
        .build();
}
