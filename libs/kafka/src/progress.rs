//! How far another group has come.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError as Native;
use rdkafka::metadata::MetadataTopic;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use throughline_config::Kafka;

use crate::{KafkaError, client};

/// Looks at what a consumer group has finished, without being its member.
///
/// It has a client only while it looks: one that nobody polls would gather what librdkafka has to say.
#[derive(Clone)]
pub struct Progress {
    config: ClientConfig,
    servers: String,
}

impl Progress {
    /// Of this group.
    ///
    /// # Errors
    /// If the settings are not taken.
    pub fn of(settings: &Kafka, group: &str) -> Result<Self, KafkaError> {
        let mut config = client::config(settings, &[])?;
        config.set("group.id", group);
        config.create::<BaseConsumer>().map_err(client::not_created)?;
        Ok(Self { config, servers: settings.bootstrap_servers.clone() })
    }

    /// Whether the group has finished everything that was produced to these topics before `at`.
    ///
    /// # Errors
    /// If the broker does not say so by the deadline.
    pub async fn has_passed(
        &self,
        topics: &[String],
        at: DateTime<Utc>,
        deadline: Duration,
    ) -> Result<bool, KafkaError> {
        let (config, topics) = (self.config.clone(), topics.to_vec());
        tokio::task::spawn_blocking(move || has_passed(&config.create()?, &topics, at, deadline))
            .await
            .map_err(|_| KafkaError::Cancelled)?
            .map_err(|silence| KafkaError::Unreachable {
                servers: self.servers.clone(),
                reason: silence.to_string(),
            })
    }
}

fn has_passed(
    onlooker: &BaseConsumer,
    topics: &[String],
    at: DateTime<Utc>,
    deadline: Duration,
) -> Result<bool, Native> {
    let mut partitions = TopicPartitionList::new();
    for topic in topics {
        let metadata = onlooker.fetch_metadata(Some(topic), deadline)?;
        for partition in metadata.topics().iter().flat_map(MetadataTopic::partitions) {
            partitions.add_partition_offset(topic, partition.id(), Offset::Offset(at.timestamp_millis()))?;
        }
    }
    // Of each partition the first record that is not older.
    let bounds = onlooker.offsets_for_times(partitions.clone(), deadline)?;
    let committed = onlooker.committed_offsets(partitions, deadline)?;
    for bound in bounds.elements() {
        let (topic, partition) = (bound.topic(), bound.partition());
        let (first, end) = onlooker.fetch_watermarks(topic, partition, deadline)?;
        let bound = match bound.offset() {
            Offset::Offset(offset) => offset,
            // All of them are older.
            _ => end,
        };
        let finished = match committed.find_partition(topic, partition).map(|found| found.offset()) {
            Some(Offset::Offset(offset)) => offset,
            // Nothing was ever finished.
            _ => first,
        };
        if finished < bound {
            return Ok(false);
        }
    }
    Ok(true)
}
