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

/// Set in CI: there, what cannot run has failed.
const REQUIRE: &str = "REQUIRE_CONTAINERS";

/// For a Docker engine to answer a ping.
const PING_DEADLINE: Duration = Duration::from_secs(10);

/// The servers that tests share. They end with it.
pub struct Environment {
    programs: Programs,
    broker: Arc<Broker>,
    parts: Parts,
    stages: AtomicU32,
}

/// What the servers run in.
enum Parts {
    /// This process and its children.
    Embedded,
    /// Containers of their own.
    Containers(Box<Database>),
    /// The containers of docker-compose.yml, and the services with them.
    Composed(Arc<Composed>),
}

impl Environment {
    /// Parts that need no server: a SQLite file a stage, librdkafka's mock cluster.
    ///
    /// # Errors
    /// If the mock cluster does not start.
    pub async fn embedded(programs: Programs) -> anyhow::Result<Self> {
        let broker = Arc::new(Broker::embedded(&programs).await?);
        Ok(Self::new(programs, broker, Parts::Embedded))
    }

    /// PostgreSQL and Apache Kafka, in containers.
    ///
    /// # Errors
    /// If one of them does not start.
    pub async fn containers(programs: Programs) -> anyhow::Result<Self> {
        let (postgres, broker) = tokio::try_join!(Database::start(), Broker::container())?;
        Ok(Self::new(programs, Arc::new(broker), Parts::Containers(Box::new(postgres))))
    }

    /// All that docker-compose.yml starts, with the images that `docker compose build` makes. It has room for one
    /// stage at a time.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn composed(programs: Programs) -> anyhow::Result<Self> {
        let configuration = Configuration { name: "first".to_owned(), database: String::new() };
        let composed = Composed::up(&configuration.text(INSIDE)).await?;
        let broker = Broker::composed(&composed).await?;
        Ok(Self::new(programs, Arc::new(broker), Parts::Composed(Arc::new(composed))))
    }

    fn new(programs: Programs, broker: Arc<Broker>, parts: Parts) -> Self {
        Self { programs, broker, parts, stages: AtomicU32::new(0) }
    }

    /// Asks whether there is an engine for containers.
    ///
    /// # Errors
    /// If none answers.
    pub async fn engine() -> anyhow::Result<()> {
        let ping = async { Docker::connect_with_defaults()?.ping().await };
        let answer = timeout(PING_DEADLINE, ping).await.unwrap_or(Err(RequestTimeoutError));
        answer.map(drop).context("no Docker engine answers")
    }

    /// Whether there is an engine for containers. Where none answers, says that `what` is skipped.
    ///
    /// # Errors
    /// If none answers, and `REQUIRE_CONTAINERS=1`.
    pub async fn engine_or_skip(what: &str) -> anyhow::Result<bool> {
        let Err(why) = Self::engine().await else { return Ok(true) };
        if var_os(REQUIRE).is_some_and(|value| value == "1") {
            return Err(why);
        }
        // Past the capture of a test's output, which is shown only when it fails.
        std::io::stderr().write_all(format!("\n*** SKIPPED: {what}: {why:#} ***\n\n").as_bytes())?;
        Ok(false)
    }

    /// Whether its servers run in containers.
    #[must_use]
    pub fn has_containers(&self) -> bool {
        !matches!(self.parts, Parts::Embedded)
    }

    /// Whether its servers and the services are those of docker-compose.yml.
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

    /// The broker that all stages share that have none of their own.
    pub(crate) fn broker(&self) -> Arc<Broker> {
        Arc::clone(&self.broker)
    }

    /// A broker like the shared one, for one stage alone.
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

    /// A name that no other stage has.
    pub(crate) fn name_a_stage(&self) -> String {
        format!("stage{}", self.stages.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// An empty database, and its URL.
    pub(crate) async fn another_database(&self, name: &str, folder: &Path) -> anyhow::Result<String> {
        match &self.parts {
            Parts::Embedded => Ok(format!("sqlite://{}/throughline.db", folder.display())),
            Parts::Containers(postgres) => postgres.create(name).await,
            Parts::Composed(composed) => Ok(composed.database()),
        }
    }
}
