//! Deliveries whose time has come: retries and what was deferred are published, what has expired is ended, what was
//! lost is found, and dead letters are replayed. Each in a task of its own, so that none keeps another one waiting.

mod expirer;
mod replayer;
mod resend;
mod seeker;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use throughline_clock::Clock;
use throughline_kafka::{KafkaError, SendError};
use throughline_store::claims::Due;
use throughline_store::{Store, StoreError, deliveries, holds};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub(crate) use self::expirer::Expirer;
pub(crate) use self::replayer::Replayer;
use self::resend::PUBLISH_DEADLINE;
pub(crate) use self::resend::Resender;
pub(crate) use self::seeker::Seeker;
use crate::backoff::Backoff;
use crate::metrics::Metrics;

/// Longest time without a look: other replicas write due times too.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// Shortest time without a look, when there was nothing to do: what is due may be another's to publish.
const SHORTEST_SLEEP: Duration = Duration::from_millis(100);
/// Wakes the sweeper when something is due earlier than it knows, and the replayer when a replay has begun.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    due: Notify,
    replay: Notify,
}

impl Alarm {
    /// Something is due at `due_at`. What comes after the sweeper's next look is none of its business yet.
    pub(crate) fn set(&self, due_at: DateTime<Utc>, now: DateTime<Utc>) {
        if due_at < now + LONGEST_SLEEP {
            self.due.notify_one();
        }
    }
}

/// What changes deliveries at somebody's wish, and has the sweeper look at once.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) alarm: Arc<Alarm>,
    pub(crate) metrics: Metrics,
}

impl Desk {
    /// Something may be due now.
    pub(crate) fn ring(&self) {
        self.alarm.due.notify_one();
    }

    /// A replay has begun.
    pub(crate) fn replay(&self) {
        self.alarm.replay.notify_one();
    }
}

/// Publishes what waited for its time, and lets holds release what waits for its destination.
pub(crate) struct Sweeper {
    pub(crate) resender: Resender,
    pub(crate) alarm: Arc<Alarm>,
}

#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Broker(#[from] KafkaError),
    #[error("the broker has not acknowledged them within {PUBLISH_DEADLINE:?}")]
    Late,
    #[error("told to stop")]
    Stopped,
}

impl Sweeper {
    /// Runs until told to stop.
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
                Err(error) => backoff.pause(&soft, "due deliveries cannot be published", &error).await,
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// Until something is due, or the alarm goes off.
    async fn sleep(&self) {
        let next = deliveries::next_due(self.resender.store.connection()).await.ok().flatten();
        let left = next.map(|next| (next - self.resender.clock.now()).to_std().unwrap_or_default());
        let sleep = left.unwrap_or(LONGEST_SLEEP).clamp(SHORTEST_SLEEP, LONGEST_SLEEP);
        // Whichever comes first.
        let _ = timeout(sleep, self.alarm.due.notified()).await;
    }

    /// Publishes a batch of what is due; says how many that were.
    async fn step(&self, after_trouble: bool) -> Result<usize, SweepError> {
        let Resender { store, clock, shutdown, .. } = &self.resender;
        if after_trouble {
            self.resender.probe().await?;
        }
        // In a box: it is large.
        let release = Box::pin(holds::release(store, clock.now()));
        unless_stopped(shutdown.soft(), release).await?;
        self.resender.sweep(Due::Planned, clock.now()).await
    }
}

/// Does something that may be cut short when the process is told to stop: what is not published yet stays due.
async fn unless_stopped<T, E>(
    stop: &CancellationToken,
    what: impl Future<Output = Result<T, E>>,
) -> Result<T, SweepError>
where
    SweepError: From<E>,
{
    Ok(stop.run_until_cancelled(what).await.ok_or(SweepError::Stopped)??)
}
