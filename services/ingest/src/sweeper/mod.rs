//! Handles due deliveries: publishes retries and deferred deliveries, ends expired ones, finds lost ones, and replays
//! dead letters. Each of these runs in its own task, so that none delays another.

mod expirer;
mod replayer;
mod republisher;
mod resend;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use throughline_clock::Clock;
use throughline_kafka::{KafkaError, SendError};
use throughline_store::claims::Due;
use throughline_store::{Store, StoreError, deliveries, slow_starts};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub(crate) use self::expirer::Expirer;
pub(crate) use self::replayer::Replayer;
pub(crate) use self::republisher::Republisher;
use self::resend::PUBLISH_DEADLINE;
pub(crate) use self::resend::Resender;
use crate::backoff::{Backoff, Warning};
use crate::metrics::Metrics;

const PUBLISH_FAILED: Warning =
    Warning { event: "deliveries.publish_failed", message: "cannot publish due deliveries" };

/// Longest sleep between two checks: other replicas write due times too.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// Shortest sleep after a check that found nothing: another replica may be publishing the due deliveries.
const SHORTEST_SLEEP: Duration = Duration::from_millis(100);

/// Wakes the sweeper when a delivery is due earlier than it knows, and the replayer when a replay has begun.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    due: Notify,
    replay: Notify,
}

impl Wake {
    /// Announces a delivery that is due at `due_at`. The sweeper's next check finds later ones by itself.
    pub(crate) fn set(&self, due_at: DateTime<Utc>, now: DateTime<Utc>) {
        if due_at < now + LONGEST_SLEEP {
            self.due.notify_one();
        }
    }
}

/// Changes deliveries for API clients, and makes the sweeper check immediately.
#[derive(Debug, Clone)]
pub(crate) struct Operations {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) wake: Arc<Wake>,
    pub(crate) metrics: Metrics,
}

impl Operations {
    /// Wakes the sweeper: a delivery may be due now.
    pub(crate) fn wake_sweeper(&self) {
        self.wake.due.notify_one();
    }

    /// Wakes the replayer: a replay has begun.
    pub(crate) fn wake_replayer(&self) {
        self.wake.replay.notify_one();
    }
}

/// Publishes deliveries that have become due, and lets slow starts release deliveries that wait for their destination.
pub(crate) struct Sweeper {
    pub(crate) resender: Resender,
    pub(crate) wake: Arc<Wake>,
}

#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Broker(#[from] KafkaError),
    #[error("the broker did not acknowledge the records within {PUBLISH_DEADLINE:?}")]
    Late,
    #[error("stopped by the shutdown")]
    Stopped,
}

impl Sweeper {
    /// Runs until shutdown.
    pub(crate) async fn run(self) -> Result<(), std::convert::Infallible> {
        let mut backoff = Backoff::default();
        let soft = self.resender.shutdown.soft().clone();
        loop {
            let goes_on = match self.step(backoff.is_trying()).await {
                Ok(swept) => {
                    backoff.reset();
                    swept > 0 || soft.run_until_cancelled(self.sleep()).await.is_some()
                }
                Err(SweepError::Stopped) => false,
                Err(error) => backoff.pause(&soft, PUBLISH_FAILED, &error).await,
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// Sleeps until a delivery is due, or until [`Wake`] wakes the sweeper.
    async fn sleep(&self) {
        let next = deliveries::next_due(self.resender.store.connection()).await.ok().flatten();
        let left = next.map(|next| (next - self.resender.clock.now()).to_std().unwrap_or_default());
        let sleep = left.unwrap_or(LONGEST_SLEEP).clamp(SHORTEST_SLEEP, LONGEST_SLEEP);
        // Whichever comes first.
        let _ = timeout(sleep, self.wake.due.notified()).await;
    }

    /// Publishes a batch of due deliveries; returns how many.
    async fn step(&self, after_failure: bool) -> Result<usize, SweepError> {
        let Resender { store, clock, shutdown, .. } = &self.resender;
        if after_failure {
            self.resender.probe().await?;
        }
        // Boxed, because the future is large.
        let release = Box::pin(slow_starts::release(store, clock.now()));
        unless_stopped(shutdown.soft(), release).await?;
        self.resender.sweep(Due::Planned, clock.now()).await
    }
}

/// Runs an operation that shutdown may interrupt: unpublished deliveries stay due.
async fn unless_stopped<T, E>(
    stop: &CancellationToken,
    operation: impl Future<Output = Result<T, E>>,
) -> Result<T, SweepError>
where
    SweepError: From<E>,
{
    Ok(stop.run_until_cancelled(operation).await.ok_or(SweepError::Stopped)??)
}
