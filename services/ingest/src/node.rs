//! This node's id: leased in the database, renewed while the process lives, given back at its end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use throughline_clock::Clock;
use throughline_config::Settings;
use throughline_snowflake::{NodeId, RequestId};
use throughline_store::{Store, StoreError, idempotency, nodes, outbox};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::StartError;
use crate::publisher::Gate;

/// Most expired idempotency keys deleted at each renewal: at a lease of 30 s, 1000 a second.
const PURGED_AT_ONCE: u64 = 10_000;

/// The right to make ids under a node id, until it runs out.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    row: nodes::Lease,
    /// By this process's own clock, counted from before the database was asked.
    valid_until: Arc<Mutex<Instant>>,
}

impl Lease {
    pub(crate) fn node(&self) -> NodeId {
        self.row.node
    }

    /// When the lease of the id's former holder ended: no id of ours may be older.
    pub(crate) fn not_before(&self) -> DateTime<Utc> {
        self.row.not_before
    }

    /// Whether nobody else can have the node id yet.
    pub(crate) fn is_valid(&self) -> bool {
        Instant::now() < *self.valid_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn extend(&self, until: Instant) {
        *self.valid_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

/// Why the lease cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error("the lease of node id {0} ran out and was taken over; ids made from now on could clash")]
    Lost(NodeId),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Leases a node id, the configured one if there is one.
///
/// # Errors
/// If none is free, or the database cannot be asked.
pub(crate) async fn acquire(store: &Store, settings: &Settings, holder: &str) -> Result<Lease, StartError> {
    let fixed = settings.ingest.node_id.map(NodeId::try_from).transpose();
    let fixed = fixed.map_err(|error| StartError::NodeId(error.to_string()))?;
    let asked = Instant::now();
    let row = nodes::acquire(store, holder, settings.ingest.node_lease, fixed).await?;
    let row = row.ok_or_else(|| {
        StartError::NodeTaken(match fixed {
            Some(node) => format!("node id {node} is leased to another replica"),
            None => format!("all {} node ids are leased", NodeId::COUNT),
        })
    })?;
    tracing::info!(node = %row.node, epoch = row.epoch, "node id leased");
    Ok(Lease { row, valid_until: Arc::new(Mutex::new(asked + settings.ingest.node_lease)) })
}

/// Keeps the lease, and takes over what nodes that are gone have left in the outbox.
pub(crate) struct Keeper {
    pub(crate) store: Store,
    pub(crate) lease: Lease,
    pub(crate) holder: String,
    pub(crate) term: Duration,
    pub(crate) clock: Clock,
    pub(crate) gate: Arc<Gate>,
    /// Everything that needs the lease is done.
    pub(crate) done: CancellationToken,
}

impl Keeper {
    /// Runs until all is done, and gives the lease back.
    pub(crate) async fn run(self) -> Result<(), LeaseError> {
        let mut oldest = None;
        loop {
            let asked = Instant::now();
            // A database that vanished without a word must not end the renewals.
            match timeout(self.term, self.step(&mut oldest)).await {
                Ok(Ok(())) => {}
                Ok(Err(LeaseError::Store(error))) if error.is_unavailable() => {
                    tracing::warn!(%error, "the lease of the node id cannot be renewed now");
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    tracing::warn!(term = ?self.term, "the database does not answer, the lease has run out");
                }
            }
            // The lease counts from when it was asked for: what a slow answer has left of it may be little.
            if self.done.run_until_cancelled(sleep_until(asked + self.term / 3)).await.is_none() {
                return Ok(nodes::release(self.store.connection(), &self.lease.row, &self.holder).await?);
            }
        }
    }

    /// Renews, takes over, tidies up, and looks for a row that nobody seems to care about.
    async fn step(&self, oldest: &mut Option<RequestId>) -> Result<(), LeaseError> {
        let asked = Instant::now();
        let connection = self.store.connection();
        if !nodes::renew(connection, &self.lease.row, &self.holder, self.term).await? {
            return Err(LeaseError::Lost(self.lease.node()));
        }
        self.lease.extend(asked + self.term);
        let taken_over = outbox::take_over(connection, self.lease.node()).await?;
        if taken_over > 0 {
            tracing::info!(requests = taken_over, "took over the outbox of a node that is gone");
            self.gate.look_in_the_table();
        }
        idempotency::purge(connection, self.clock.now(), PURGED_AT_ONCE).await?;
        // A row that was the oldest a while ago: its commit may have become visible only after its
        // client was told that the database is away.
        let was = std::mem::replace(oldest, outbox::oldest(connection, self.lease.node()).await?);
        if oldest.is_some() && *oldest == was {
            self.gate.look_in_the_table();
        }
        Ok(())
    }
}
