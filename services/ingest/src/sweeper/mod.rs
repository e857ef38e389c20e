//! Publishes deliveries whose time has come: retries, what was deferred, and those of which nothing was heard
//! for too long.

#[cfg(test)]
mod tests;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use throughline_clock::Clock;
use throughline_kafka::{KafkaError, Outgoing, Position, SendError};
use throughline_lifecycle::Shutdown;
use throughline_messages::{DeadReason, ErrorClass, RetryRecord};
use throughline_snowflake::RequestId;
use throughline_store::deliveries::{self, Claim, Due, DueDelivery, Refusal};
use throughline_store::{Store, StoreError, holds, replays};
use tokio::sync::Notify;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::backoff::Backoff;
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::publisher::{Window, note, outgoing, size_of};
use crate::refusals::{DeadLetters, Stub};

/// Most deliveries claimed at once: with bodies of 1 MiB, what the window holds.
const BATCH: u64 = 64;
/// Longest time without a look: other replicas write due times too.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// Shortest time without a look, when there was nothing to do: what is due may be another's to publish.
const SHORTEST_SLEEP: Duration = Duration::from_millis(100);
/// How long the broker may take to acknowledge a batch before its claim is given up.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(10);
/// How long the broker may take to say something.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// Wakes the sweeper when something is due earlier than it knows.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Notify);

impl Alarm {
    /// Something is due at `due_at`. What comes after the sweeper's next look is none of its business yet.
    pub(crate) fn set(&self, due_at: DateTime<Utc>, now: DateTime<Utc>) {
        if due_at < now + LONGEST_SLEEP {
            self.0.notify_one();
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
        self.alarm.0.notify_one();
    }
}

pub(crate) struct Sweeper {
    pub(crate) store: Store,
    /// They share its producer and its topics.
    pub(crate) dead_letters: DeadLetters,
    pub(crate) clock: Clock,
    pub(crate) patience: TimeDelta,
    pub(crate) window: Arc<Window>,
    pub(crate) alarm: Arc<Alarm>,
    pub(crate) metrics: Metrics,
    pub(crate) listener: Listener,
    /// When to look next for what is silent.
    pub(crate) listen_at: Instant,
    pub(crate) shutdown: Shutdown,
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
    pub(crate) async fn run(mut self) -> Result<(), std::convert::Infallible> {
        let mut backoff = Backoff::default();
        let soft = self.shutdown.soft().clone();
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
        let next = deliveries::next_due(self.store.connection()).await.ok().flatten();
        let left = next.map(|next| (next - self.clock.now()).to_std().unwrap_or_default());
        let sleep = left.unwrap_or(LONGEST_SLEEP).clamp(SHORTEST_SLEEP, LONGEST_SLEEP);
        // Whichever comes first.
        let _ = timeout(sleep, self.alarm.0.notified()).await;
    }

    /// Publishes a batch of what is due; says how many that were.
    async fn step(&mut self, after_trouble: bool) -> Result<usize, SweepError> {
        let stop = self.shutdown.soft().clone();
        if after_trouble {
            // No claim is made for a broker that is away.
            unless_stopped(&stop, self.dead_letters.producer.probe(PROBE_DEADLINE)).await?;
        }
        unless_stopped(&stop, replays::go_on(&self.store, self.clock.now())).await?;
        unless_stopped(&stop, holds::release(&self.store, self.clock.now())).await?;
        let mut swept = self.sweep(Due::Planned, self.clock.now()).await?;
        if Instant::now() >= self.listen_at {
            let silent = self.sweep_the_silent().await?;
            // Silence is no matter of seconds, and to ask how far others have come costs the broker something.
            self.listen_at = Instant::now() + if silent == 0 { LONGEST_SLEEP } else { Duration::ZERO };
            swept += silent;
        }
        Ok(swept)
    }

    /// Publishes again what is lost, if anything is silent at all.
    async fn sweep_the_silent(&mut self) -> Result<usize, SweepError> {
        let stop = self.shutdown.soft().clone();
        let claim = deliveries::claim_due(&self.store, Due::Silent, self.clock.now(), 1);
        let any = unless_stopped(&stop, claim).await?.take();
        if any.is_empty() {
            self.listener.forget();
            return Ok(0);
        }
        let Some(heard) = unless_stopped(&stop, self.listener.heard()).await? else { return Ok(0) };
        let swept = self.sweep(Due::Silent, heard).await?;
        if swept == 0 {
            self.listener.forget();
        }
        Ok(swept)
    }

    /// Claims what was due by then, publishes it, and moves `due_at` once it is acknowledged. A crash before
    /// that leaves it due.
    async fn sweep(&self, due: Due, by: DateTime<Utc>) -> Result<usize, SweepError> {
        let claim = deliveries::claim_due(&self.store, due, by, BATCH);
        let mut claim = unless_stopped(self.shutdown.soft(), claim).await?;
        let claimed = claim.take();
        if claimed.is_empty() {
            return Ok(0);
        }
        match due {
            Due::Planned => tracing::debug!(deliveries = claimed.len(), "deliveries are due"),
            Due::Silent => {
                tracing::warn!(
                    deliveries = claimed.len(),
                    "nothing was heard of deliveries; published again"
                );
            }
        }
        // Seen through also when the process is told to stop: what is published, and not known to be, is published again
        // by whoever claims it next.
        let seen_through = self.see_through(due, claim, claimed);
        self.shutdown.hard().run_until_cancelled(seen_through).await.unwrap_or(Err(SweepError::Stopped))
    }

    async fn see_through(
        &self,
        due: Due,
        claim: Claim,
        claimed: Vec<DueDelivery>,
    ) -> Result<usize, SweepError> {
        let deadline = Instant::now() + PUBLISH_DEADLINE;
        let Sent { published, refused, trouble } = self.publish(claimed, deadline).await;
        let refused = self.tell(refused, deadline).await;
        let now = self.clock.now();
        let ended = claim.published(&published, &refused, now, now + self.patience).await?;
        self.metrics.swept(due, published.len());
        self.metrics.ended(&ended);
        match trouble {
            Some(trouble) => Err(trouble),
            None => Ok(published.len() + refused.len()),
        }
    }

    /// Tells dead letters of what the broker refuses, and gives it. What could not be told of stays due.
    async fn tell(&self, refused: Vec<(Refusal, Stub)>, deadline: Instant) -> Vec<Refusal> {
        let mut told = Vec::with_capacity(refused.len());
        for (refusal, stub) in refused {
            let destination = refusal.destination.clone();
            let tell = self.dead_letters.tell(stub, destination, refusal.reason, &refusal.error);
            if timeout_at(deadline, tell).await == Ok(true) {
                told.push(refusal);
            }
        }
        told
    }

    /// Hands all to the producer, and waits for the acknowledgements.
    async fn publish(&self, claimed: Vec<DueDelivery>, deadline: Instant) -> Sent {
        let mut sent = Sent::default();
        let mut under_way = FuturesUnordered::new();
        for delivery in claimed {
            let key = (delivery.request.id, delivery.destination.clone());
            let size = size_of(&delivery.request);
            let mut hold = pin!(timeout_at(deadline, self.window.hold(key.0, size)));
            let hold = loop {
                tokio::select! {
                    hold = &mut hold => break hold,
                    // Sets a share of the window free.
                    Some(answered) = under_way.next(), if !under_way.is_empty() => sent.answered(answered),
                }
            };
            let Ok(hold) = hold else {
                sent.trouble = Some(SweepError::Late);
                break;
            };
            let (record, span) = self.record(delivery);
            match self.dead_letters.producer.enqueue(&record) {
                Ok(acknowledgement) => {
                    let acknowledged = timeout_at(deadline, acknowledgement).inspect(move |in_time| {
                        if let Ok(result) = in_time {
                            note(&span, result);
                        }
                    });
                    let stub = record.into();
                    under_way.push(acknowledged.map(move |in_time| {
                        drop(hold);
                        Answered { key, stub, in_time }
                    }));
                }
                Err(error) => sent.failed(key, record.into(), error),
            }
        }
        while let Some(answered) = under_way.next().await {
            sent.answered(answered);
        }
        sent
    }

    fn record(&self, due: DueDelivery) -> (Outgoing, Span) {
        let DueDelivery { request, destination, attempts, spent, since } = due;
        outgoing(&self.dead_letters.topics.retries, request, |request| {
            RetryRecord { request, destination, attempt: attempts + 1, spent, since }.to_headers()
        })
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

/// A record that the broker has answered for, or has not in time.
struct Answered {
    key: (RequestId, String),
    stub: Stub,
    in_time: Result<Result<Position, SendError>, Elapsed>,
}

/// What became of a batch.
#[derive(Default)]
struct Sent {
    published: Vec<(RequestId, String)>,
    refused: Vec<(Refusal, Stub)>,
    /// Why the rest is not published, and stays due.
    trouble: Option<SweepError>,
}

impl Sent {
    fn answered(&mut self, Answered { key, stub, in_time }: Answered) {
        match in_time {
            Ok(Ok(_)) => self.published.push(key),
            Ok(Err(error)) => self.failed(key, stub, error),
            // It is in the producer's queue and goes out when the broker is back. Nobody else is to publish
            // it too meanwhile; if this process ends before, it is silent, and found as such.
            Err(_) => {
                self.published.push(key);
                self.trouble = Some(SweepError::Late);
            }
        }
    }

    fn failed(&mut self, (request_id, destination): (RequestId, String), stub: Stub, error: SendError) {
        if !error.is_refusal() {
            self.trouble = Some(error.into());
            return;
        }
        tracing::error!(%request_id, destination, %error, "a delivery cannot be published, it ends dead");
        let refusal = Refusal {
            request_id,
            destination: Some(destination),
            reason: DeadReason::Unpublishable,
            class: ErrorClass::Broker,
            error: error.to_string(),
        };
        self.refused.push((refusal, stub));
    }
}
