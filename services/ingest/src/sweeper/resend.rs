//! Publishes deliveries once more, and notes it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use throughline_clock::Clock;
use throughline_kafka::{Outgoing, Position, SendError};
use throughline_lifecycle::Shutdown;
use throughline_messages::{DeadReason, ErrorClass, Keys, Kind, RetryRecord};
use throughline_snowflake::RequestId;
use throughline_store::claims::{self, Claim, Due, DueDelivery};
use throughline_store::{Refusal, Store};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};
use tracing::Span;

use super::{SweepError, unless_stopped};
use crate::metrics::Metrics;
use crate::publisher::{Window, note, outgoing, size_of};
use crate::refusals::{DeadLetters, Stub};

/// Most deliveries claimed at once: with bodies of 1 MiB, what the window holds.
pub(super) const BATCH: u64 = 64;
/// How long the broker may take to acknowledge a batch before its claim is given up.
pub(super) const PUBLISH_DEADLINE: Duration = Duration::from_secs(10);

/// How long the broker may take to say something.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// Publishes what is due onto the topic of retries.
#[derive(Clone)]
pub(crate) struct Resender {
    pub(crate) store: Store,
    /// They share its producer and its topics.
    pub(crate) dead_letters: DeadLetters,
    pub(crate) keys: Keys,
    pub(crate) clock: Clock,
    pub(crate) patience: TimeDelta,
    pub(crate) window: Arc<Window>,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
}

impl Resender {
    /// Waits until the broker answers: no claim is made for one that is away.
    pub(super) async fn probe(&self) -> Result<(), SweepError> {
        unless_stopped(self.shutdown.soft(), self.dead_letters.producer.probe(PROBE_DEADLINE)).await
    }

    /// Claims what was due by then, publishes it, and moves `due_at` once it is acknowledged. A crash before
    /// that leaves it due.
    pub(super) async fn sweep(&self, due: Due, by: DateTime<Utc>) -> Result<usize, SweepError> {
        let claim = claims::claim_due(&self.store, due, by, BATCH);
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
        outgoing(&self.dead_letters.topics.retries, request, (&self.keys, Kind::Retry), |request| {
            RetryRecord { request, destination, attempt: attempts + 1, spent, since }.to_headers()
        })
    }
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
