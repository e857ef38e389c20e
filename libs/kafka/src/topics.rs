use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use rdkafka::producer::Producer as _;
use throughline_config::Kafka;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::info;

use crate::producer::{self, Client};
use crate::{KafkaError, client};

/// How long to wait before looking again for topics that were just created.
const VISIBLE_POLL: Duration = Duration::from_millis(100);

/// How long after one broker's refusal another may still answer.
const SECOND_OPINION: Duration = Duration::from_secs(1);

type Admin = AdminClient<DefaultClientContext>;

/// Sees to it that topics are there: creates those that are missing if `kafka.topics.create` says so.
///
/// # Errors
/// [`KafkaError::MissingTopics`] names what is missing and not to be created. A broker that refuses us
/// is not asked until the deadline.
pub async fn ensure_topics(settings: &Kafka, names: &[&str], deadline: Duration) -> Result<(), KafkaError> {
    let deadline = Instant::now() + deadline;
    // A broker that wants TLS closes the connections of who does not speak it.
    let config = client::config(settings, &[("log.connection.close", "true")])?;
    let client = producer::connect(&config).map_err(client::not_created)?;
    let topics = Topics { client, settings, deadline };
    let seen_to = topics.see_to(names).await;
    client::let_go(topics.client);
    seen_to
}

struct Topics<'a> {
    /// To ask with: unlike an admin client, it hears why a broker does not answer.
    client: Client,
    settings: &'a Kafka,
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
        // Not one of the runtime's threads, which a process that gives up would have to wait for.
        thread::Builder::new()
            .name("kafka-topics".to_owned())
            .spawn(move || {
                // Nobody listens any more when a broker has refused us.
                let _ = report.send(producer::ask(&client, &servers, left).map(|all| usable(&all)));
            })
            .map_err(KafkaError::Thread)?;
        let refusal = async {
            let error = self.client.context().trouble.refusal().await;
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
}

/// How topics are created.
fn configuration(settings: &Kafka) -> Vec<(&'static str, String)> {
    let mut configuration = vec![
        ("max.message.bytes", settings.largest_record().to_string()),
        // With the producer's time, Kafka refuses records of a producer whose clock is an hour ahead
        // (`message.timestamp.after.max.ms`).
        ("message.timestamp.type", "LogAppendTime".to_owned()),
    ];
    // By default one replica may lead alone, and lose what it has acknowledged. With two, none could be restarted.
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

    use throughline_config::Topics;

    use super::*;

    #[test]
    fn of_three_replicas_two_have_each_record() {
        for (replication, expected) in [(1, None), (2, None), (3, Some("2")), (5, Some("2"))] {
            let topics = Topics { replication: NonZeroU32::new(replication).unwrap(), ..Topics::default() };
            let configuration = configuration(&Kafka { topics, ..Kafka::default() });
            let found = configuration.iter().find(|(name, _)| *name == "min.insync.replicas");
            assert_eq!(found.map(|(_, value)| value.as_str()), expected, "{replication} replicas");
        }
    }
}
