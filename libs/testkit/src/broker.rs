use anyhow::Context as _;
use testcontainers_modules::kafka::apache;
use testcontainers_modules::testcontainers::runners::AsyncRunner as _;
use testcontainers_modules::testcontainers::{ContainerAsync, ImageExt as _};

use crate::composed::Composed;
use crate::container::{Container, free_port};
use crate::embedded_broker::EmbeddedBroker;
use crate::programs::Programs;

const KAFKA_TAG: &str = "4.3.1";

/// A Kafka broker, which may go away and come back.
pub struct Broker(Kind);

enum Kind {
    Embedded(Box<EmbeddedBroker>),
    Container {
        container: Container,
        port: u16,
        /// Ends when dropped, unless it is somebody else's.
        _kafka: Option<Box<ContainerAsync<apache::Kafka>>>,
    },
}

impl Broker {
    /// librdkafka's mock cluster.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn embedded(programs: &Programs) -> anyhow::Result<Self> {
        Ok(Self(Kind::Embedded(Box::new(EmbeddedBroker::start(programs).await?))))
    }

    /// Apache Kafka in a container.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn container() -> anyhow::Result<Self> {
        let port = free_port()?;
        let kafka = apache::Kafka::default()
            .with_tag(KAFKA_TAG)
            .with_mapped_port(port, apache::KAFKA_PORT)
            // Else the first member of each consumer group waits 3 s for others.
            .with_env_var("KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS", "0")
            // Else the first consumer group of all waits for fifty.
            .with_env_var("KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS", "1")
            // Else the controller holds a broker that was killed for alive for 9 s, and its successor back.
            .with_env_var("KAFKA_BROKER_SESSION_TIMEOUT_MS", "3000")
            .start()
            .await
            .context("cannot start Kafka")?;
        Ok(Self(Kind::Container {
            container: Container::of("Kafka", &kafka)?,
            port,
            _kafka: Some(Box::new(kafka)),
        }))
    }

    /// The one of docker-compose.yml.
    pub(crate) async fn composed(composed: &Composed) -> anyhow::Result<Self> {
        let container = Container::with_id("Kafka", composed.kafka().await?)?;
        Ok(Self(Kind::Container { container, port: composed.kafka_port(), _kafka: None }))
    }

    /// Where clients find it.
    #[must_use]
    pub fn bootstrap_servers(&self) -> String {
        match &self.0 {
            Kind::Embedded(broker) => broker.bootstrap_servers().to_owned(),
            Kind::Container { port, .. } => format!("127.0.0.1:{port}"),
        }
    }

    /// Creates topics where the programs cannot: librdkafka's mock cluster knows no administration.
    pub(crate) async fn create_topics(&self, names: &[String]) -> anyhow::Result<()> {
        match &self.0 {
            Kind::Embedded(broker) => broker.create_topics(names).await,
            Kind::Container { .. } => Ok(()),
        }
    }

    /// Goes away: connections break, new ones are refused. What it has acknowledged it still has when
    /// it is back.
    ///
    /// # Errors
    /// If it cannot.
    pub async fn go_away(&self) -> anyhow::Result<()> {
        match &self.0 {
            Kind::Embedded(broker) => broker.go_away().await,
            Kind::Container { container, .. } => container.kill().await,
        }
    }

    /// Comes back, at the same address.
    ///
    /// # Errors
    /// If it cannot.
    pub async fn come_back(&self) -> anyhow::Result<()> {
        match &self.0 {
            Kind::Embedded(broker) => broker.come_back().await,
            Kind::Container { container, .. } => container.start().await,
        }
    }

    /// What it runs in, unless it is the embedded one.
    #[must_use]
    pub fn as_container(&self) -> Option<&Container> {
        match &self.0 {
            Kind::Embedded(_) => None,
            Kind::Container { container, .. } => Some(container),
        }
    }
}
