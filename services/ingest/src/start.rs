//! The composition root: listens, builds every part of ingest and starts it.

use std::net::SocketAddr;

use opentelemetry::metrics::Meter;
use throughline_clock::Clock;
use throughline_lifecycle::{Shutdown, TaskFailed, Tasks};
use throughline_settings::Settings;
use tokio::net::{TcpListener, TcpSocket};

use crate::Broker;
use crate::error::StartError;
use crate::parts::Parts;

/// Maximum number of connections that wait to be accepted: as many as Linux permits (`net.core.somaxconn`). Above it,
/// Linux drops the packets of clients, which retry after a second at the earliest.
const BACKLOG: u32 = 4096;

/// A running ingest.
#[derive(Debug)]
pub struct Ingest {
    address: SocketAddr,
    health_address: SocketAddr,
    tasks: Tasks,
}

impl Ingest {
    /// Returns the address that ingest listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address for health checks, which is separate from the one for clients.
    #[must_use]
    pub fn health_address(&self) -> SocketAddr {
        self.health_address
    }

    /// Waits until ingest has ended.
    ///
    /// # Errors
    /// If a part of ingest failed, or did not end within the shutdown deadline.
    pub async fn join(self) -> Result<(), TaskFailed> {
        self.tasks.join().await
    }
}

/// Starts ingest and returns once it listens. `meter` records its metrics.
///
/// # Errors
/// [`StartError`], which names the change to make.
pub async fn start(
    settings: Settings,
    broker: Broker,
    clock: Clock,
    shutdown: Shutdown,
    meter: &Meter,
) -> Result<Ingest, StartError> {
    let (address, health_address) = (settings.http.address, settings.http.health_address);
    let clients = listen(address).map_err(|source| StartError::Listen { address, source })?;
    let health_checks = listen(health_address)
        .map_err(|source| StartError::ListenForHealthChecks { address: health_address, source })?;
    let (address, health_address) = (clients.1, health_checks.1);
    log_access(&settings);
    let parts = Parts::connect(settings, broker, clock, shutdown, meter).await?;
    let tasks = parts.assemble(clients.0, health_checks.0).await?;
    tracing::info!(event = "program.started", %address, %health_address, "listening");
    Ok(Ingest { address, health_address, tasks })
}

/// Logs which callers have access if no clients are configured.
fn log_access(settings: &Settings) {
    if settings.insecure && settings.clients.is_empty() {
        tracing::warn!(
            event = "config.insecure",
            "`insecure: true` without clients: every caller may post requests, read bodies, cancel, replay and purge"
        );
    } else if settings.clients.is_empty() {
        tracing::info!(
            event = "config.local_only",
            "no clients are configured: every caller may post requests, and only this machine may manage them"
        );
    }
}

/// Listens on an address and returns the actual one: the configured port may be 0.
fn listen(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As `TcpListener::bind` does: a restart need not wait until the system forgets connections of the last run.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}
