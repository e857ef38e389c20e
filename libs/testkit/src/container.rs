use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context as _;
use testcontainers_modules::testcontainers::bollard::Docker;
use testcontainers_modules::testcontainers::{ContainerAsync, Image};

/// A server's container, which may die and freeze, and be brought back.
///
/// It keeps its data and its address: what it has acknowledged it still has when it is back.
pub struct Container {
    name: &'static str,
    docker: Docker,
    id: String,
}

impl Container {
    /// The one with an id.
    pub(crate) fn with_id(name: &'static str, id: String) -> anyhow::Result<Self> {
        Ok(Self { name, docker: Docker::connect_with_defaults()?, id })
    }

    pub(crate) fn of<I: Image>(name: &'static str, container: &ContainerAsync<I>) -> anyhow::Result<Self> {
        Self::with_id(name, container.id().to_owned())
    }

    /// SIGKILL for all that runs in it: connections break, new ones are refused.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn kill(&self) -> anyhow::Result<()> {
        let killed = self.docker.kill_container(&self.id, None).await;
        killed.with_context(|| format!("cannot kill {}", self.name))
    }

    /// Starts again what was killed. The server needs a moment more.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(&self) -> anyhow::Result<()> {
        let started = self.docker.start_container(&self.id, None).await;
        started.with_context(|| format!("cannot start {} again", self.name))
    }

    /// Freezes all that runs in it: connections stay, and nobody answers.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn freeze(&self) -> anyhow::Result<()> {
        let frozen = self.docker.pause_container(&self.id).await;
        frozen.with_context(|| format!("cannot freeze {}", self.name))
    }

    /// Lets what was frozen go on, as if no time had passed.
    ///
    /// # Errors
    /// If it was not frozen.
    pub async fn thaw(&self) -> anyhow::Result<()> {
        let thawed = self.docker.unpause_container(&self.id).await;
        thawed.with_context(|| format!("cannot thaw {}", self.name))
    }
}

/// A port that was free just now: Docker's own choice would be another when a container starts again.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}
