//! Ends deliveries that wait for their destination when their time is over, without publishing them first.
//!
//! A destination that was down for longer than its window has very many of them, in front of all that it can still
//! get. Dispatch would end each as it comes, but a hold lets few go at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::join_all;
use throughline_clock::Clock;
use throughline_lifecycle::Shutdown;
use throughline_messages::{DeadReason, ErrorClass, RetryRecord};
use throughline_store::claims::{self, DueDelivery};
use throughline_store::{Refusal, Store, StoreError, holds};
use tokio::time::{Instant, timeout_at};

use super::{Alarm, LONGEST_SLEEP, PUBLISH_DEADLINE};
use crate::backoff::Backoff;
use crate::metrics::Metrics;
use crate::publisher::stub;
use crate::refusals::{DeadLetters, Stub};

/// Most deliveries ended at once: some hundred bytes each, as their bodies are not read.
const BATCH: u64 = 1000;

pub(crate) struct Expirer {
    pub(crate) store: Store,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) clock: Clock,
    /// How long each destination may take for a delivery.
    pub(crate) windows: BTreeMap<String, Duration>,
    pub(crate) alarm: Arc<Alarm>,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
}

impl Expirer {
    /// Runs until told to stop. What it has not ended by then waits on.
    pub(crate) async fn run(self) -> Result<(), std::convert::Infallible> {
        let mut backoff = Backoff::default();
        let soft = self.shutdown.soft();
        while let Some(step) = soft.run_until_cancelled(self.step()).await {
            let goes_on = match step {
                Ok(ended) => {
                    backoff.reset();
                    ended > 0 || soft.run_until_cancelled(tokio::time::sleep(LONGEST_SLEEP)).await.is_some()
                }
                Err(error) => backoff.pause(soft, "expired deliveries cannot be ended", &error).await,
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// Ends a batch for each destination; says how many that were.
    pub(super) async fn step(&self) -> Result<usize, StoreError> {
        let mut ended = 0;
        // Only where there is a hold does anything wait.
        for destination in holds::destinations(self.store.connection()).await? {
            if let Some(window) = self.windows.get(&destination) {
                ended += self.end(&destination, *window).await?;
            }
        }
        Ok(ended)
    }

    async fn end(&self, destination: &str, window: Duration) -> Result<usize, StoreError> {
        let now = self.clock.now();
        let Some(begun_by) =
            TimeDelta::from_std(window).ok().and_then(|window| now.checked_sub_signed(window))
        else {
            return Ok(0);
        };
        let mut claim = claims::claim_expired(&self.store, destination, begun_by, now, BATCH).await?;
        let expired = claim.take();
        if expired.is_empty() {
            return Ok(0);
        }
        // The words of dispatch, which ends those that it meets.
        let error = format!("not delivered within {window:?}");
        let told = self.tell(expired, &error).await;
        let ended = claim.ended(&told, self.clock.now()).await?;
        tracing::warn!(
            destination,
            deliveries = ended.len(),
            reason = DeadReason::Expired.as_str(),
            error,
            "deliveries ended where they waited"
        );
        self.metrics.ended(&ended);
        // Others may have waited behind them for their turn.
        self.alarm.set(now, now);
        Ok(ended.len())
    }

    /// Tells dead letters of them all at once, and gives what it has told. The rest waits on.
    async fn tell(&self, expired: Vec<DueDelivery>, error: &str) -> Vec<Refusal> {
        let deadline = Instant::now() + PUBLISH_DEADLINE;
        let tell = |due: DueDelivery| async move {
            let refusal = Refusal {
                request_id: due.request.id,
                destination: Some(due.destination.clone()),
                reason: DeadReason::Expired,
                class: ErrorClass::Timeout,
                error: error.to_owned(),
            };
            let destination = Some(due.destination.clone());
            let tell = self.dead_letters.tell(told_of(due), destination, DeadReason::Expired, error);
            (timeout_at(deadline, tell).await == Ok(true)).then_some(refusal)
        };
        join_all(expired.into_iter().map(tell)).await.into_iter().flatten().collect()
    }
}

fn told_of(due: DueDelivery) -> Stub {
    let DueDelivery { request, destination, attempts, spent, since } = due;
    stub(request, |request| {
        RetryRecord { request, destination, attempt: attempts + 1, spent, since }.to_headers()
    })
}
