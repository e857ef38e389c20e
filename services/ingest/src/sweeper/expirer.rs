//! Ends expired deliveries that wait for their destination, without publishing them first.
//!
//! A destination that was down for longer than its window has very many of them, ahead of the deliveries that it can
//! still receive. Dispatch would end each one as it arrives, but a slow start releases only a few at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use throughline_clock::Clock;
use throughline_lifecycle::Shutdown;
use throughline_messages::{DeadReason, ErrorClass};
use throughline_store::claims::{self, Claim, DueDelivery};
use throughline_store::{Refusal, Store, StoreError, slow_starts};
use tokio::time::{Instant, timeout_at};

use super::resend::retry;
use super::{LONGEST_SLEEP, PUBLISH_DEADLINE, Wake};
use crate::backoff::{Backoff, Warning};
use crate::metrics::Metrics;
use crate::publisher::stub;
use crate::refusals::DeadLetters;

const EXPIRY_FAILED: Warning =
    Warning { event: "deliveries.expiry_failed", message: "cannot end expired deliveries" };

/// Maximum number of deliveries that wait for Kafka at once: some hundred bytes each, because their bodies are not
/// read.
const BATCH: u64 = 1000;

pub(crate) struct Expirer {
    pub(crate) store: Store,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) clock: Clock,
    /// The delivery window of each destination.
    pub(crate) windows: BTreeMap<String, Duration>,
    pub(crate) wake: Arc<Wake>,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
}

impl Expirer {
    /// Runs until shutdown, and completes the batches that it has begun, as long as Kafka accepts their dead letters.
    /// Deliveries that have not ended by then keep waiting.
    pub(crate) async fn run(self) -> Result<(), std::convert::Infallible> {
        let mut backoff = Backoff::default();
        let mut batches = Vec::new();
        let soft = self.shutdown.soft();
        while !soft.is_cancelled() {
            let goes_on = match self.step(&mut batches).await {
                Ok(ended) => {
                    backoff.reset();
                    ended > 0 || soft.run_until_cancelled(tokio::time::sleep(LONGEST_SLEEP)).await.is_some()
                }
                Err(error) => backoff.pause(soft, EXPIRY_FAILED, &error).await,
            };
            if !goes_on {
                break;
            }
        }
        // One more round, so that the next ingest does not publish these dead letters again.
        let deadline = Instant::now() + PUBLISH_DEADLINE;
        for batch in &mut batches {
            if let Err(error) = self.settle(batch, deadline).await {
                tracing::warn!(%error, "expired deliveries cannot be ended");
            }
        }
        Ok(())
    }

    /// Ends a batch for each destination, and the deliveries of earlier batches whose dead letters Kafka has accepted;
    /// returns how many deliveries ended.
    ///
    /// A batch waits for Kafka at most [`PUBLISH_DEADLINE`] and then continues beside the next ones: a partition of the
    /// dead letters without a leader delays its own deliveries and no others for longer.
    async fn step<'a>(&'a self, batches: &mut Vec<Batch<'a>>) -> Result<usize, StoreError> {
        let mut ended = 0;
        for batch in batches.iter_mut() {
            ended += self.settle(batch, Instant::now()).await?;
        }
        batches.retain(|batch| !batch.is_over());
        // Deliveries wait only at destinations in a slow start.
        for destination in slow_starts::destinations(self.store.connection()).await? {
            let unsettled: usize = batches.iter().map(Batch::unsettled).sum();
            let limit = BATCH.saturating_sub(unsettled as u64);
            if self.shutdown.soft().is_cancelled() || limit == 0 {
                break;
            }
            let Some(window) = self.windows.get(&destination) else { continue };
            if let Some(mut batch) = self.claim(destination, *window, limit).await? {
                let settled = self.settle(&mut batch, Instant::now() + PUBLISH_DEADLINE).await;
                if !batch.is_over() {
                    batches.push(batch);
                }
                ended += settled?;
            }
        }
        Ok(ended)
    }

    /// Claims expired deliveries, and begins to publish their dead letters.
    async fn claim(
        &self,
        destination: String,
        window: Duration,
        limit: u64,
    ) -> Result<Option<Batch<'_>>, StoreError> {
        let Some(begun_by) =
            TimeDelta::from_std(window).ok().and_then(|window| self.clock.now().checked_sub_signed(window))
        else {
            return Ok(None);
        };
        let mut claim = claims::claim_expired(&self.store, &destination, begun_by, limit).await?;
        let expired = claim.take();
        if expired.is_empty() {
            return Ok(None);
        }
        // The text that dispatch uses when it ends an expired delivery.
        let error = format!("not delivered within {window:?}");
        let pending =
            expired.into_iter().map(|due| self.publish_dead_letter(due, error.clone()).boxed()).collect();
        Ok(Some(Batch { destination, error, claim, pending, dead_lettered: Vec::new() }))
    }

    /// Ends the deliveries whose dead letters Kafka accepts by the deadline, and keeps the claim on the rest; returns
    /// how many ended.
    async fn settle(&self, batch: &mut Batch<'_>, deadline: Instant) -> Result<usize, StoreError> {
        while let Ok(Some(refusal)) = timeout_at(deadline, batch.pending.next()).await {
            batch.dead_lettered.extend(refusal);
        }
        let now = self.clock.now();
        let ended = batch.claim.end(&batch.dead_lettered, now).await?;
        batch.dead_lettered.clear();
        if !ended.is_empty() {
            tracing::warn!(
                event = "deliveries.expired",
                destination = batch.destination,
                deliveries = ended.len(),
                reason = DeadReason::Expired.as_str(),
                error = batch.error,
                "deliveries expired while they waited"
            );
            self.metrics.ended(&ended);
            // Other deliveries may have waited for their turn behind these.
            self.wake.set(now, now);
        }
        if batch.is_over() {
            batch.claim.release().await?;
        } else {
            batch.claim.renew().await?;
        }
        Ok(ended.len())
    }

    /// Publishes the dead letter of a delivery; `None` if it is stopped before Kafka has accepted it.
    ///
    /// No deadline applies while the broker is unreachable: the record stays in the producer's queue, and a second
    /// round would queue the same dead letter behind it. The claim is renewed meanwhile, so that no other ingest
    /// publishes the dead letter too.
    async fn publish_dead_letter(&self, due: DueDelivery, error: String) -> Option<Refusal> {
        let destination = Some(due.destination.clone());
        let request_id = due.request.id;
        let (request, headers) = retry(due);
        let stub = stub(request, headers);
        let is_published =
            self.dead_letters.put_stub(stub, destination.clone(), DeadReason::Expired, &error).await;
        let (reason, class) = (DeadReason::Expired, ErrorClass::Timeout);
        is_published.then_some(Refusal { request_id, destination, reason, class, error })
    }
}

/// Deliveries of one destination that end together.
struct Batch<'a> {
    destination: String,
    error: String,
    claim: Claim,
    /// Dead letters that Kafka has not accepted yet.
    pending: FuturesUnordered<BoxFuture<'a, Option<Refusal>>>,
    /// Deliveries whose dead letters Kafka has accepted, and that have not ended in the database yet.
    dead_lettered: Vec<Refusal>,
}

impl Batch<'_> {
    fn unsettled(&self) -> usize {
        self.pending.len() + self.dead_lettered.len()
    }

    fn is_over(&self) -> bool {
        self.unsettled() == 0
    }
}
