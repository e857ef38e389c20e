//! How far another group has come.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError as Native;
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

/// How far topics had come at some moment: the end of each partition.
///
/// Counted in records and not in time: records that were produced while a clock was wrong are not in the order of
/// their times.
#[derive(Debug, Clone)]
pub struct Mark(Vec<(String, i32, i64)>);

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

    /// Where these topics end now.
    ///
    /// # Errors
    /// If the broker does not say so by the deadline.
    pub async fn mark(&self, topics: &[String], deadline: Duration) -> Result<Mark, KafkaError> {
        let topics = topics.to_vec();
        self.look(move |onlooker| mark(onlooker, &topics, deadline)).await
    }

    /// Whether the group has finished everything that was there at a mark.
    ///
    /// # Errors
    /// If the broker does not say so by the deadline.
    pub async fn has_passed(&self, mark: &Mark, deadline: Duration) -> Result<bool, KafkaError> {
        let mark = mark.clone();
        self.look(move |onlooker| has_passed(onlooker, &mark, deadline)).await
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&BaseConsumer) -> Result<T, Native> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let config = self.config.clone();
        tokio::task::spawn_blocking(move || look(&config.create()?))
            .await
            .map_err(|_| KafkaError::Cancelled)?
            .map_err(|silence| KafkaError::Unreachable {
                servers: self.servers.clone(),
                reason: silence.to_string(),
            })
    }
}

fn mark(onlooker: &BaseConsumer, topics: &[String], deadline: Duration) -> Result<Mark, Native> {
    let mut ends = Vec::new();
    for topic in topics {
        let metadata = onlooker.fetch_metadata(Some(topic), deadline)?;
        for found in metadata.topics() {
            // One that is not there has no end, which is not to say that nothing is to come.
            if let Some(error) = found.error() {
                return Err(Native::MetadataFetch(error.into()));
            }
            for partition in found.partitions() {
                let (_, end) = onlooker.fetch_watermarks(topic, partition.id(), deadline)?;
                ends.push((topic.clone(), partition.id(), end));
            }
        }
    }
    Ok(Mark(ends))
}

fn has_passed(onlooker: &BaseConsumer, mark: &Mark, deadline: Duration) -> Result<bool, Native> {
    let mut partitions = TopicPartitionList::new();
    for (topic, partition, _) in &mark.0 {
        partitions.add_partition(topic, *partition);
    }
    let committed = onlooker.committed_offsets(partitions, deadline)?;
    for (topic, partition, marked) in &mark.0 {
        let (first, end) = onlooker.fetch_watermarks(topic, *partition, deadline)?;
        let finished = match committed.find_partition(topic, *partition).map(|found| found.offset()) {
            Some(Offset::Offset(offset)) => offset,
            // Nothing was ever finished.
            _ => first,
        };
        // It ends before its mark if it was deleted and created again: what was there at the mark is gone.
        if finished < *marked && end >= *marked {
            return Ok(false);
        }
    }
    Ok(true)
}
