use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use crate::Settings;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use rdkafka::producer::Producer as _;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::info;

use crate::producer::{self, Client};
use crate::{KafkaError, client};

/// How long to wait before looking again for topics that were just created.
const VISIBLE_POLL: Duration = Duration::from_millis(100);

/// How long another broker may still answer after one has refused us.
const SECOND_OPINION: Duration = Duration::from_secs(1);

type Admin = AdminClient<DefaultClientContext>;

/// Ensures that topics exist: creates the missing ones if `kafka.topics.create` is set.
///
/// # Errors
/// [`KafkaError::MissingTopics`] names the topics that are missing and are not to be created. A broker that refuses
/// us is not retried until the deadline.
pub async fn ensure_topics(
    settings: &Settings,
    names: &[&str],
    deadline: Duration,
) -> Result<(), KafkaError> {
    let deadline = Instant::now() + deadline;
    // A broker that requires TLS closes plaintext connections; this logs it.
    let config = client::config(settings, &[("log.connection.close", "true")])?;
    let client = producer::connect(&config).map_err(client::not_created)?;
    let topics = Topics { client, settings, deadline };
    let seen_to = topics.see_to(names).await;
    client::drop_in_background(topics.client);
    seen_to
}

struct Topics<'a> {
    /// The client to ask with: unlike an admin client, it learns why a broker does not answer.
    client: Client,
    settings: &'a Settings,
    deadline: Instant,
}

impl Topics<'_> {
    async fn see_to(&self, names: &[&str]) -> Result<(), KafkaError> {
        let missing = self.missing(names).await?;
        if missing.is_empty() {
            return Ok(());
        }
        if !self.settings.topics.create {
            return Err(KafkaError::MissingTopics { names: missing });
        }
        self.create(&missing).await?;
        self.wait_for(names).await
    }

    async fn missing(&self, names: &[&str]) -> Result<Vec<String>, KafkaError> {
        let there = self.there().await?;
        Ok(names.iter().filter(|name| !there.contains(**name)).map(ToString::to_string).collect())
    }

    async fn there(&self) -> Result<HashSet<String>, KafkaError> {
        let (client, servers) = (self.client.clone(), self.settings.bootstrap_servers.clone());
        let left = self.deadline.saturating_duration_since(Instant::now());
        let (report, answer) = oneshot::channel();
        // Not one of the runtime's threads: a process that gives up would have to wait for it.
        thread::Builder::new()
            .name("kafka-topics".to_owned())
            .spawn(move || {
                // The receiver is gone if a broker has refused us.
                let _ = report.send(producer::ask(&client, &servers, left).map(|all| usable(&all)));
            })
            .map_err(KafkaError::Thread)?;
        let refusal = async {
            let error = self.client.context().broker_error.refusal().await;
            tokio::time::sleep(SECOND_OPINION).await;
            error
        };
        tokio::select! {
            there = answer => there.map_err(|_| KafkaError::Cancelled)?,
            error = refusal => Err(error),
        }
    }

    async fn create(&self, names: &[String]) -> Result<(), KafkaError> {
        let partitions = i32::try_from(self.settings.topics.partitions.get()).unwrap_or(i32::MAX);
        let replication = i32::try_from(self.settings.topics.replication.get()).unwrap_or(i32::MAX);
        let configuration = configuration(self.settings);
        let topics: Vec<_> = names
            .iter()
            .map(|name| NewTopic::new(name, partitions, TopicReplication::Fixed(replication)))
            .map(|topic| configuration.iter().fold(topic, |topic, (name, value)| topic.set(name, value)))
            .collect();
        let left = self.deadline.saturating_duration_since(Instant::now());
        let options = AdminOptions::new().request_timeout(Some(left)).operation_timeout(Some(left));
        let admin = client::config(self.settings, &[])?.create::<Admin>().map_err(client::not_created)?;
        let results = admin.create_topics(&topics, &options).await.map_err(|source| {
            KafkaError::TopicNotCreated { name: names.join(", "), source: source.into() }
        })?;
        for result in results {
            match result {
                Ok(name) => {
                    info!(event = "topic.created", topic = name, partitions, replication, "topic created");
                }
                // Another replica has already created the topic.
                Err((_, Code::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    return Err(KafkaError::TopicNotCreated { name, source: Native::AdminOp(code).into() });
                }
            }
        }
        Ok(())
    }

    /// Waits until new topics are in the metadata; a consumer that subscribed earlier would notice them much later.
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
}

/// Returns the configuration of topics that are created.
fn configuration(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut configuration = vec![
        ("max.message.bytes", settings.largest_record().to_string()),
        // With producer timestamps, Kafka refuses records if the producer's clock is an hour ahead
        // (`message.timestamp.after.max.ms`).
        ("message.timestamp.type", "LogAppendTime".to_owned()),
    ];
    // By default one replica may lead alone, and lose records that it has acknowledged. With two replicas, the
    // setting would prevent a restart of either.
    if settings.topics.replication.get() >= 3 {
        configuration.push(("min.insync.replicas", "2".to_owned()));
    }
    configuration
}

fn usable(metadata: &Metadata) -> HashSet<String> {
    let usable = metadata.topics().iter().filter(|topic| topic.error().is_none());
    usable.map(|topic| topic.name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use crate::Topics;

    use super::*;

    #[test]
    fn each_record_is_acknowledged_by_two_of_three_replicas() {
        for (replication, expected) in [(1, None), (2, None), (3, Some("2")), (5, Some("2"))] {
            let topics = Topics { replication: NonZeroU32::new(replication).unwrap(), ..Topics::default() };
            let configuration = configuration(&Settings { topics, ..Settings::default() });
            let found = configuration.iter().find(|(name, _)| *name == "min.insync.replicas");
            assert_eq!(found.map(|(_, value)| value.as_str()), expected, "{replication} replicas");
        }
    }
}
