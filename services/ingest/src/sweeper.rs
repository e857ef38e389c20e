//! Publishes deliveries that are due: those that nothing was heard of for too long.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::try_join_all;
use throughline_clock::Clock;
use throughline_kafka::{Producer, SendError};
use throughline_lifecycle::Shutdown;
use throughline_messages::{RetryRecord, Topics};
use throughline_store::deliveries::{self, DueDelivery};
use throughline_store::{Store, StoreError};

use crate::backoff::Backoff;
use crate::publisher::{Window, note, outgoing};

/// Most deliveries claimed at once: with bodies of 1 MiB, what the window holds.
const BATCH: u64 = 64;
/// How often it is asked whether something is due.
const INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct Sweeper {
    pub(crate) store: Store,
    pub(crate) producer: Producer,
    pub(crate) topics: Topics,
    pub(crate) clock: Clock,
    pub(crate) patience: TimeDelta,
    pub(crate) window: Arc<Window>,
    pub(crate) shutdown: Shutdown,
}

#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Send(#[from] SendError),
}

impl Sweeper {
    /// Runs until told to stop.
    pub(crate) async fn run(self) -> Result<(), std::convert::Infallible> {
        let mut backoff = Backoff::default();
        let soft = self.shutdown.soft().clone();
        // Cut short, a claim is dropped, and what it held stays due.
        while let Some(swept) = soft.run_until_cancelled(self.step()).await {
            let goes_on = match swept {
                Ok(0) => soft.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some(),
                Ok(_) => {
                    backoff.reset();
                    true
                }
                Err(error) => backoff.pause(&soft, "due deliveries cannot be published", &error).await,
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// Claims what is due, publishes it, and moves `due_at` once it is acknowledged. A crash before
    /// that leaves it due.
    async fn step(&self) -> Result<usize, SweepError> {
        let now = self.clock.now();
        let mut claim = deliveries::claim_due(&self.store, now, BATCH).await?;
        let due = claim.take();
        if due.is_empty() {
            return Ok(0);
        }
        let claimed: Vec<_> =
            due.iter().map(|delivery| (delivery.request.id, delivery.destination.clone())).collect();
        tracing::info!(deliveries = due.len(), "deliveries are due and published again");
        try_join_all(due.into_iter().map(|delivery| self.publish(delivery))).await?;
        claim.postpone(&claimed, self.clock.now() + self.patience).await?;
        Ok(claimed.len())
    }

    async fn publish(&self, due: DueDelivery) -> Result<(), SendError> {
        let _hold = self.window.hold(due.request.id, due.request.body.len()).await;
        let (destination, attempt) = (due.destination, due.attempts + 1);
        let (record, span) = outgoing(&self.topics.retries, due.request, |request| {
            RetryRecord { request, destination, attempt }.to_headers()
        });
        let sent = self.producer.send(&record).await;
        note(&span, &sent);
        sent.map(drop)
    }
}
