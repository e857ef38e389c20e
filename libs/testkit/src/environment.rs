use std::env::var_os;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use testcontainers_modules::testcontainers::bollard::Docker;
use testcontainers_modules::testcontainers::bollard::errors::Error::RequestTimeoutError;
use tokio::time::timeout;

use crate::broker::Broker;
use crate::composed::{Composed, INSIDE};
use crate::configuration::Configuration;
use crate::database::Database;
use crate::programs::Programs;

/// Set in CI, where tests that cannot run must fail.
const REQUIRE: &str = "REQUIRE_CONTAINERS";

/// The deadline for a Docker engine to answer a ping.
const PING_DEADLINE: Duration = Duration::from_secs(10);

/// The servers that tests share. They end when it is dropped.
pub struct Environment {
    programs: Programs,
    broker: Arc<Broker>,
    parts: Parts,
    stages: AtomicU32,
}

/// Where the servers run.
enum Parts {
    /// In this process and its children.
    Embedded,
    /// In containers of their own.
    Containers(Box<Database>),
    /// In the containers of docker-compose.yml, together with the services.
    Composed(Arc<Composed>),
}

impl Environment {
    /// Starts embedded parts: one SQLite file per stage, and librdkafka's mock cluster.
    ///
    /// # Errors
    /// If the mock cluster does not start.
    pub async fn embedded(programs: Programs) -> anyhow::Result<Self> {
        let broker = Arc::new(Broker::embedded(&programs).await?);
        Ok(Self::new(programs, broker, Parts::Embedded))
    }

    /// Starts PostgreSQL and Apache Kafka in containers.
    ///
    /// # Errors
    /// If one of them does not start.
    pub async fn containers(programs: Programs) -> anyhow::Result<Self> {
        let (postgres, broker) = tokio::try_join!(Database::start(), Broker::container())?;
        Ok(Self::new(programs, Arc::new(broker), Parts::Containers(Box::new(postgres))))
    }

    /// Starts everything in docker-compose.yml, with the images that `docker compose build` makes. It has room for
    /// one stage at a time.
    ///
    /// # Errors
    /// If the containers do not start.
    pub async fn composed(programs: Programs) -> anyhow::Result<Self> {
        let configuration = Configuration { name: "first".to_owned(), database: String::new() };
        let composed = Composed::up(&configuration.text(INSIDE)).await?;
        let broker = Broker::composed(&composed).await?;
        Ok(Self::new(programs, Arc::new(broker), Parts::Composed(Arc::new(composed))))
    }

    fn new(programs: Programs, broker: Arc<Broker>, parts: Parts) -> Self {
        Self { programs, broker, parts, stages: AtomicU32::new(0) }
    }

    /// Checks whether a container engine is available.
    ///
    /// # Errors
    /// If no engine answers.
    pub async fn engine() -> anyhow::Result<()> {
        let ping = async { Docker::connect_with_defaults()?.ping().await };
        let answer = timeout(PING_DEADLINE, ping).await.unwrap_or(Err(RequestTimeoutError));
        answer.map(drop).context("no Docker engine answers")
    }

    /// Returns whether a container engine is available. If not, prints that `what` is skipped.
    ///
    /// # Errors
    /// If no engine answers and `REQUIRE_CONTAINERS=1` is set.
    pub async fn engine_or_skip(what: &str) -> anyhow::Result<bool> {
        let Err(why) = Self::engine().await else { return Ok(true) };
        if var_os(REQUIRE).is_some_and(|value| value == "1") {
            return Err(why);
        }
        // Bypasses the capture of a test's output, which is shown only if the test fails.
        std::io::stderr().write_all(format!("\n*** SKIPPED: {what}: {why:#} ***\n\n").as_bytes())?;
        Ok(false)
    }

    /// Whether the servers run in containers.
    #[must_use]
    pub fn has_containers(&self) -> bool {
        !matches!(self.parts, Parts::Embedded)
    }

    /// Whether the servers and the services are those of docker-compose.yml.
    #[must_use]
    pub fn is_composed(&self) -> bool {
        matches!(self.parts, Parts::Composed(_))
    }

    pub(crate) fn as_composed(&self) -> Option<&Arc<Composed>> {
        match &self.parts {
            Parts::Composed(composed) => Some(composed),
            Parts::Embedded | Parts::Containers(_) => None,
        }
    }

    /// Returns the broker shared by all stages without one of their own.
    pub(crate) fn broker(&self) -> Arc<Broker> {
        Arc::clone(&self.broker)
    }

    /// Starts a broker like the shared one, for a single stage.
    pub(crate) async fn another_broker(&self) -> anyhow::Result<Broker> {
        match &self.parts {
            Parts::Embedded => Broker::embedded(&self.programs).await,
            Parts::Containers(_) => Broker::container().await,
            Parts::Composed(composed) => {
                composed.renew_kafka().await?;
                Broker::composed(composed).await
            }
        }
    }

    /// Returns a name that no other stage has.
    pub(crate) fn name_a_stage(&self) -> String {
        format!("stage{}", self.stages.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Creates an empty database and returns its URL.
    pub(crate) async fn another_database(&self, name: &str, folder: &Path) -> anyhow::Result<String> {
        match &self.parts {
            Parts::Embedded => Ok(format!("sqlite://{}/throughline.db", folder.display())),
            Parts::Containers(postgres) => postgres.create(name).await,
            Parts::Composed(composed) => Ok(composed.database()),
        }
    }
}
