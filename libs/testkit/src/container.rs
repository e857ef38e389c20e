use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context as _;
use testcontainers_modules::testcontainers::bollard::Docker;
use testcontainers_modules::testcontainers::{ContainerAsync, Image};

/// A server's container, which may be killed, frozen and restarted.
///
/// It keeps its data and its address: a restarted server still has everything that it acknowledged.
pub struct Container {
    name: &'static str,
    docker: Docker,
    id: String,
}

impl Container {
    /// Refers to the container with an id.
    pub(crate) fn with_id(name: &'static str, id: String) -> anyhow::Result<Self> {
        Ok(Self { name, docker: Docker::connect_with_defaults()?, id })
    }

    pub(crate) fn of<I: Image>(name: &'static str, container: &ContainerAsync<I>) -> anyhow::Result<Self> {
        Self::with_id(name, container.id().to_owned())
    }

    /// Sends SIGKILL to all processes in the container: connections break, new ones are refused.
    ///
    /// # Errors
    /// If the container does not run.
    pub async fn kill(&self) -> anyhow::Result<()> {
        let killed = self.docker.kill_container(&self.id, None).await;
        killed.with_context(|| format!("cannot kill {}", self.name))
    }

    /// Restarts a killed container. The server needs a moment longer.
    ///
    /// # Errors
    /// If the container does not start.
    pub async fn start(&self) -> anyhow::Result<()> {
        let started = self.docker.start_container(&self.id, None).await;
        started.with_context(|| format!("cannot start {} again", self.name))
    }

    /// Freezes all processes in the container: connections stay open, and no request is answered.
    ///
    /// # Errors
    /// If the container does not run.
    pub async fn freeze(&self) -> anyhow::Result<()> {
        let frozen = self.docker.pause_container(&self.id).await;
        frozen.with_context(|| format!("cannot freeze {}", self.name))
    }

    /// Resumes frozen processes, as if no time had passed.
    ///
    /// # Errors
    /// If the container was not frozen.
    pub async fn thaw(&self) -> anyhow::Result<()> {
        let thawed = self.docker.unpause_container(&self.id).await;
        thawed.with_context(|| format!("cannot thaw {}", self.name))
    }
}

/// Returns a port that is free at the moment: Docker would choose a different port each time a container starts.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}
