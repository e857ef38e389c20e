use anyhow::Context as _;
use testcontainers_modules::postgres::Postgres;
use testcontainers_modules::testcontainers::core::{CmdWaitFor, ExecCommand, IntoContainerPort as _};
use testcontainers_modules::testcontainers::runners::AsyncRunner as _;
use testcontainers_modules::testcontainers::{ContainerAsync, ImageExt as _};

use crate::container::{Container, free_port};

const POSTGRES_TAG: &str = "18";
const POSTGRES_PORT: u16 = 5432;

/// PostgreSQL in a container, which ends with it.
pub struct Database {
    postgres: ContainerAsync<Postgres>,
    container: Container,
    port: u16,
}

impl Database {
    /// Starts it.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start() -> anyhow::Result<Self> {
        let port = free_port()?;
        let postgres = Postgres::default()
            .with_tag(POSTGRES_TAG)
            .with_mapped_port(port, POSTGRES_PORT.tcp())
            .start()
            .await
            .context("cannot start PostgreSQL")?;
        Ok(Self { container: Container::of("PostgreSQL", &postgres)?, postgres, port })
    }

    /// Creates an empty database, and says its URL.
    ///
    /// # Errors
    /// If it cannot.
    pub async fn create(&self, name: &str) -> anyhow::Result<String> {
        let create = ExecCommand::new(["createdb", "--username", "postgres", name]);
        self.postgres
            .exec(create.with_cmd_ready_condition(CmdWaitFor::exit_code(0)))
            .await
            .context("cannot create a database")?;
        Ok(format!("postgres://postgres:postgres@127.0.0.1:{}/{name}", self.port))
    }

    /// What it runs in.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }
}
