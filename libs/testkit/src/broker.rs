use anyhow::{Context as _, bail};
use testcontainers_modules::kafka::apache;
use testcontainers_modules::testcontainers::core::{CmdWaitFor, ExecCommand};
use testcontainers_modules::testcontainers::runners::AsyncRunner as _;
use testcontainers_modules::testcontainers::{ContainerAsync, ImageExt as _};

use crate::composed::Composed;
use crate::container::{Container, free_port};
use crate::embedded_broker::EmbeddedBroker;
use crate::programs::Programs;

const KAFKA_TAG: &str = "4.3.1";

/// A Kafka broker, which may be stopped and restarted.
pub struct Broker(Kind);

enum Kind {
    Embedded(Box<EmbeddedBroker>),
    Container {
        container: Container,
        port: u16,
        /// Ends the container when dropped; `None` if the container belongs to docker-compose.yml.
        kafka: Option<Box<ContainerAsync<apache::Kafka>>>,
    },
}

impl Broker {
    /// Starts librdkafka's mock cluster.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn embedded(programs: &Programs) -> anyhow::Result<Self> {
        Ok(Self(Kind::Embedded(Box::new(EmbeddedBroker::start(programs).await?))))
    }

    /// Starts Apache Kafka in a container.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn container() -> anyhow::Result<Self> {
        let port = free_port()?;
        let kafka = apache::Kafka::default()
            .with_tag(KAFKA_TAG)
            .with_mapped_port(port, apache::KAFKA_PORT)
            // Otherwise the first member of each consumer group waits 3 s for others.
            .with_env_var("KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS", "0")
            // Otherwise the very first consumer group waits for fifty partitions.
            .with_env_var("KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS", "1")
            // Otherwise the controller regards a killed broker as alive for 9 s, and delays its successor.
            .with_env_var("KAFKA_BROKER_SESSION_TIMEOUT_MS", "3000")
            .start()
            .await
            .context("cannot start Kafka")?;
        Ok(Self(Kind::Container {
            container: Container::of("Kafka", &kafka)?,
            port,
            kafka: Some(Box::new(kafka)),
        }))
    }

    /// Returns the broker of docker-compose.yml.
    pub(crate) async fn composed(composed: &Composed) -> anyhow::Result<Self> {
        let container = Container::with_id("Kafka", composed.kafka().await?)?;
        Ok(Self(Kind::Container { container, port: composed.kafka_port(), kafka: None }))
    }

    /// Returns the bootstrap servers for clients.
    #[must_use]
    pub fn bootstrap_servers(&self) -> String {
        match &self.0 {
            Kind::Embedded(broker) => broker.bootstrap_servers().to_owned(),
            Kind::Container { port, .. } => format!("127.0.0.1:{port}"),
        }
    }

    /// Creates topics if the programs cannot: librdkafka's mock cluster supports no administration.
    pub(crate) async fn create_topics(&self, names: &[String]) -> anyhow::Result<()> {
        match &self.0 {
            Kind::Embedded(broker) => broker.create_topics(names).await,
            Kind::Container { .. } => Ok(()),
        }
    }

    /// Stops the broker: connections break, new ones are refused. After its restart it still has everything that it
    /// acknowledged.
    ///
    /// # Errors
    /// If the broker cannot be stopped.
    pub async fn go_away(&self) -> anyhow::Result<()> {
        match &self.0 {
            Kind::Embedded(broker) => broker.go_away().await,
            Kind::Container { container, .. } => container.kill().await,
        }
    }

    /// Restarts the broker at the same address.
    ///
    /// # Errors
    /// If the broker cannot be restarted.
    pub async fn come_back(&self) -> anyhow::Result<()> {
        match &self.0 {
            Kind::Embedded(broker) => broker.come_back().await,
            Kind::Container { container, .. } => container.start().await,
        }
    }

    /// Sets configuration of a topic: `name=value`, or several of them with commas in between.
    ///
    /// # Errors
    /// If Kafka does not run in a container of its own, or refuses the configuration.
    pub async fn configure_topic(&self, topic: &str, entries: &str) -> anyhow::Result<()> {
        let Kind::Container { kafka: Some(kafka), .. } = &self.0 else { bail!("not a container of its own") };
        let script = "/opt/kafka/bin/kafka-configs.sh";
        let to = ["--bootstrap-server", "localhost:9093", "--entity-type", "topics", "--entity-name", topic];
        let command = [&[script][..], &to, &["--alter", "--add-config", entries]].concat();
        let command = ExecCommand::new(command).with_cmd_ready_condition(CmdWaitFor::exit_code(0));
        kafka.exec(command).await.with_context(|| format!("cannot configure {topic}"))?;
        Ok(())
    }

    /// Returns the container, unless the broker is embedded.
    #[must_use]
    pub fn as_container(&self) -> Option<&Container> {
        match &self.0 {
            Kind::Embedded(_) => None,
            Kind::Container { container, .. } => Some(container),
        }
    }
}
