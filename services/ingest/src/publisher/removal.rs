//! Takes what the broker has acknowledged out of the outbox, in batches.

use chrono::TimeDelta;
use throughline_clock::Clock;
use throughline_messages::{DeadReason, ErrorClass};
use throughline_snowflake::RequestId;
use throughline_store::{Refusal, Store, StoreError, deliveries, outbox};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::window::Hold;
use crate::backoff::Backoff;

/// Most rows deleted by one statement.
const BATCH: usize = 1024;

pub(super) enum Settled {
    /// Kafka has it.
    Published(RequestId, Hold),
    /// Kafka will never take it, or nobody knows where to publish it: its deliveries end dead.
    Refused(RequestId, DeadReason, String, Hold),
    /// Answers once all that came before is out of the table.
    Flush(oneshot::Sender<()>),
}

pub(super) struct Remover {
    pub(super) settled: mpsc::UnboundedReceiver<Settled>,
    pub(super) store: Store,
    pub(super) clock: Clock,
    /// How long a delivery may stay silent from its publication on.
    pub(super) patience: TimeDelta,
    pub(super) hard: CancellationToken,
}

impl Remover {
    /// Runs until the publisher is gone and all it settled is out of the table.
    pub(super) async fn run(mut self) -> Result<(), StoreError> {
        let mut batch = Vec::with_capacity(BATCH);
        while self.settled.recv_many(&mut batch, BATCH).await > 0 {
            if !self.step(std::mem::take(&mut batch)).await? {
                break;
            }
        }
        Ok(())
    }

    /// Whether to go on.
    async fn step(&self, batch: Vec<Settled>) -> Result<bool, StoreError> {
        let mut gone = Vec::with_capacity(batch.len());
        let mut refused = Vec::new();
        let mut holds = Vec::with_capacity(batch.len());
        let mut flushed = Vec::new();
        for settled in batch {
            match settled {
                Settled::Published(id, hold) => {
                    gone.push(id);
                    holds.push(hold);
                }
                Settled::Refused(id, reason, error, hold) => {
                    gone.push(id);
                    let class = match reason {
                        DeadReason::Unroutable => ErrorClass::Configuration,
                        _ => ErrorClass::Broker,
                    };
                    refused.push(Refusal { request_id: id, destination: None, reason, class, error });
                    drop(hold);
                }
                Settled::Flush(answer) => flushed.push(answer),
            }
        }
        if !self.remove(&gone, &refused).await? {
            return Ok(false);
        }
        drop(holds);
        for answer in flushed {
            // Whoever asked may have been told to stop.
            let _ = answer.send(());
        }
        Ok(true)
    }

    /// Tries until it is done, or until it must stop: then the rows stay, and are published again.
    async fn remove(&self, gone: &[RequestId], refused: &[Refusal]) -> Result<bool, StoreError> {
        let mut backoff = Backoff::default();
        loop {
            match self.try_remove(gone, refused).await {
                Ok(()) => return Ok(true),
                Err(error) if error.is_unavailable() => {
                    if !backoff.pause(&self.hard, "the outbox cannot be emptied", &error).await {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_remove(&self, gone: &[RequestId], refused: &[Refusal]) -> Result<(), StoreError> {
        let now = self.clock.now();
        // Published long after it was accepted: its patience begins now, not at an end that has come.
        let is_late = |id: &&RequestId| id.created_at() + self.patience / 2 < now;
        let late: Vec<_> = gone.iter().filter(is_late).copied().collect();
        if refused.is_empty() && late.is_empty() {
            return outbox::remove(self.store.connection(), gone).await;
        }
        let transaction = self.store.begin().await?;
        deliveries::refuse(&transaction, refused, now).await?;
        deliveries::postpone_all(&transaction, &late, now + self.patience).await?;
        outbox::remove(&transaction, gone).await?;
        transaction.commit().await
    }
}
