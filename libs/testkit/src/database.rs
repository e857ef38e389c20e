use anyhow::Context as _;
use testcontainers_modules::postgres::Postgres;
use testcontainers_modules::testcontainers::core::{CmdWaitFor, ExecCommand, IntoContainerPort as _, Mount};
use testcontainers_modules::testcontainers::runners::AsyncRunner as _;
use testcontainers_modules::testcontainers::{ContainerAsync, ContainerRequest, ImageExt as _};

use crate::container::{Container, free_port};

const POSTGRES_TAG: &str = "18";
const POSTGRES_PORT: u16 = 5432;

/// The folder of all data.
const DATA: &str = "/var/lib/postgresql";
/// The file that fills the disk.
const FILLER: &str = "/var/lib/postgresql/filler";
/// Restarts PostgreSQL whenever it exits, as orchestrators do.
const SUPERVISOR: &str = "while :; do docker-entrypoint.sh postgres -c fsync=off; sleep 0.2; done";
/// Starts one WAL file after another, until there is no room for the next.
const BEGIN_LOG_FILES: &str = "while psql --quiet --username postgres \
    --command \"SELECT pg_logical_emit_message(true, 'filler', ''), pg_switch_wal()\"; do :; done";

/// PostgreSQL in a container, which ends when dropped.
pub struct Database {
    postgres: ContainerAsync<Postgres>,
    container: Container,
    port: u16,
}

impl Database {
    /// Starts PostgreSQL.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_as(|postgres| postgres).await
    }

    /// Starts PostgreSQL on a disk of `bytes` bytes, and restarts it whenever it exits.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start_on_disk(bytes: i64) -> anyhow::Result<Self> {
        Self::start_as(|postgres| {
            postgres
                .with_mount(Mount::tmpfs_mount(DATA).with_size_bytes(bytes))
                .with_cmd(["bash", "-c", SUPERVISOR])
        })
        .await
    }

    async fn start_as(
        how: impl FnOnce(ContainerRequest<Postgres>) -> ContainerRequest<Postgres>,
    ) -> anyhow::Result<Self> {
        let port = free_port()?;
        let postgres = Postgres::default().with_tag(POSTGRES_TAG).with_mapped_port(port, POSTGRES_PORT.tcp());
        let postgres = how(postgres).start().await.context("cannot start PostgreSQL")?;
        Ok(Self { container: Container::of("PostgreSQL", &postgres)?, postgres, port })
    }

    /// Creates an empty database and returns its URL.
    ///
    /// # Errors
    /// If the database cannot be created.
    pub async fn create(&self, name: &str) -> anyhow::Result<String> {
        self.execute(["createdb", "--username", "postgres", name], 0).await?;
        Ok(format!("postgres://postgres:postgres@127.0.0.1:{}/{name}", self.port))
    }

    /// Fills the disk completely.
    ///
    /// # Errors
    /// If the disk still has room.
    pub async fn fill_disk(&self) -> anyhow::Result<()> {
        self.execute(["dd", "if=/dev/zero", &format!("of={FILLER}"), "bs=64k"], 1).await
    }

    /// Makes PostgreSQL extend its WAL on a full disk. It panics, and exits again after each restart.
    ///
    /// # Errors
    /// If the command cannot be run.
    pub async fn fill_log(&self) -> anyhow::Result<()> {
        self.execute(["bash", "-c", BEGIN_LOG_FILES], 0).await
    }

    /// Frees the space on the disk.
    ///
    /// # Errors
    /// If the disk was not filled.
    pub async fn clear_disk(&self) -> anyhow::Result<()> {
        self.execute(["rm", FILLER], 0).await
    }

    /// Runs a command in the container of PostgreSQL, which must exit with `code`.
    async fn execute<const WORDS: usize>(&self, command: [&str; WORDS], code: i64) -> anyhow::Result<()> {
        let what = command.join(" ");
        let command = ExecCommand::new(command).with_cmd_ready_condition(CmdWaitFor::exit_code(code));
        self.postgres
            .exec(command)
            .await
            .with_context(|| format!("cannot run `{what}` beside PostgreSQL"))?;
        Ok(())
    }

    /// Returns the container.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }
}
