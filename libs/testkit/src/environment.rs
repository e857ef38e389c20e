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
    postgres: Option<Database>,
    stages: AtomicU32,
}

impl Environment {
    /// Parts that need no server: a SQLite file a stage, librdkafka's mock cluster.
    ///
    /// # Errors
    /// If the mock cluster does not start.
    pub async fn embedded(programs: Programs) -> anyhow::Result<Self> {
        let broker = Arc::new(Broker::embedded(&programs).await?);
        Ok(Self { programs, broker, postgres: None, stages: AtomicU32::new(0) })
    }

    /// PostgreSQL and Apache Kafka, in containers.
    ///
    /// # Errors
    /// If one of them does not start.
    pub async fn containers(programs: Programs) -> anyhow::Result<Self> {
        let (postgres, broker) = tokio::try_join!(Database::start(), Broker::container())?;
        Ok(Self { programs, broker: Arc::new(broker), postgres: Some(postgres), stages: AtomicU32::new(0) })
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
        self.postgres.is_some()
    }

    /// The broker that all stages share that have none of their own.
    pub(crate) fn broker(&self) -> Arc<Broker> {
        Arc::clone(&self.broker)
    }

    /// A broker like the shared one, for one stage alone.
    pub(crate) async fn another_broker(&self) -> anyhow::Result<Broker> {
        if self.has_containers() { Broker::container().await } else { Broker::embedded(&self.programs).await }
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
        match &self.postgres {
            Some(postgres) => postgres.create(name).await,
            None => Ok(format!("sqlite://{}/throughline.db", folder.display())),
        }
    }
}
