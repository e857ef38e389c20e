use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use throughline_config::Kafka;
use tokio::time::Instant;
use tracing::info;

use crate::{KafkaError, client};

/// The largest record that is produced, and that a topic created here takes: 8 MiB. Bodies are
/// limited by ingest, at 1 MiB by default; headers and a raised limit must fit too.
pub(crate) const MAX_MESSAGE_BYTES: &str = "8388608";

/// How long to wait before looking again for topics that were just created.
const VISIBLE_POLL: Duration = Duration::from_millis(100);

type Admin = AdminClient<DefaultClientContext>;

/// Sees to it that topics are there: creates those that are missing if `kafka.topics.create` says so.
///
/// # Errors
/// [`KafkaError::MissingTopics`] names what is missing and not to be created.
pub async fn ensure_topics(settings: &Kafka, names: &[&str], deadline: Duration) -> Result<(), KafkaError> {
    let deadline = Instant::now() + deadline;
    let admin = client::config(settings, &[])?.create::<Admin>().map_err(client::not_created)?;
    let topics = Topics { admin: Arc::new(admin), settings, deadline };
    let missing = topics.missing(names).await?;
    if missing.is_empty() {
        return Ok(());
    }
    if !settings.topics.create {
        return Err(KafkaError::MissingTopics { names: missing });
    }
    topics.create(&missing).await?;
    topics.wait_for(names).await
}

struct Topics<'a> {
    admin: Arc<Admin>,
    settings: &'a Kafka,
    deadline: Instant,
}

impl Topics<'_> {
    async fn missing(&self, names: &[&str]) -> Result<Vec<String>, KafkaError> {
        let admin = self.admin.clone();
        let left = self.deadline.saturating_duration_since(Instant::now());
        let there = tokio::task::spawn_blocking(move || {
            let metadata = admin.inner().fetch_metadata(None, left)?;
            let usable = metadata.topics().iter().filter(|topic| topic.error().is_none());
            Ok(usable.map(|topic| topic.name().to_owned()).collect::<HashSet<_>>())
        })
        .await
        .map_err(|_| KafkaError::Cancelled)?
        .map_err(|source: Native| self.unreachable(source))?;
        Ok(names.iter().filter(|name| !there.contains(**name)).map(ToString::to_string).collect())
    }

    async fn create(&self, names: &[String]) -> Result<(), KafkaError> {
        let partitions = i32::try_from(self.settings.topics.partitions.get()).unwrap_or(i32::MAX);
        let replication = i32::try_from(self.settings.topics.replication.get()).unwrap_or(i32::MAX);
        let topics: Vec<_> = names
            .iter()
            .map(|name| NewTopic::new(name, partitions, TopicReplication::Fixed(replication)))
            .map(|topic| topic.set("max.message.bytes", MAX_MESSAGE_BYTES))
            .collect();
        let left = self.deadline.saturating_duration_since(Instant::now());
        let options = AdminOptions::new().request_timeout(Some(left)).operation_timeout(Some(left));
        let results = self.admin.create_topics(&topics, &options).await.map_err(|source| {
            KafkaError::TopicNotCreated { name: names.join(", "), source: source.into() }
        })?;
        for result in results {
            match result {
                Ok(name) => info!(topic = name, partitions, replication, "topic created"),
                // Another replica was faster.
                Err((_, Code::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    return Err(KafkaError::TopicNotCreated { name, source: Native::AdminOp(code).into() });
                }
            }
        }
        Ok(())
    }

    /// Waits until new topics are in the metadata; a consumer that subscribes before then would
    /// notice them much later.
    async fn wait_for(&self, names: &[&str]) -> Result<(), KafkaError> {
        loop {
            let names = self.missing(names).await?;
            if names.is_empty() {
                return Ok(());
            }
            if Instant::now() >= self.deadline {
                return Err(KafkaError::MissingTopics { names });
            }
            tokio::time::sleep(VISIBLE_POLL).await;
        }
    }

    fn unreachable(&self, source: Native) -> KafkaError {
        KafkaError::Unreachable { servers: self.settings.bootstrap_servers.clone(), source: source.into() }
    }
}
