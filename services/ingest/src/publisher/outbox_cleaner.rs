//! Removes acknowledged requests from the outbox, in batches.

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use throughline_clock::Clock;
use throughline_messages::{DeadReason, ErrorClass};
use throughline_snowflake::RequestId;
use throughline_store::{Refusal, Store, StoreError, deliveries, outbox};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::in_flight::InFlightPermit;
use crate::backoff::{Backoff, Warning};
use crate::metrics::Metrics;
use crate::refusals::{DeadLetters, Stub};

const REMOVAL_FAILED: Warning =
    Warning { event: "outbox.removal_failed", message: "cannot delete published requests from the outbox" };

/// Maximum number of rows that one statement deletes.
const BATCH: usize = 1024;

pub(super) enum Finished {
    /// Kafka has acknowledged the request, which was accepted at this time.
    Published(RequestId, DateTime<Utc>, InFlightPermit),
    Refused(Refused),
    /// Answers once everything settled earlier is removed from the table.
    Flush(oneshot::Sender<()>),
}

/// A request that Kafka refuses, or that has no topic: its deliveries end dead.
pub(super) struct Refused {
    pub(super) id: RequestId,
    pub(super) stub: Stub,
    pub(super) reason: DeadReason,
    pub(super) error: String,
    pub(super) permit: InFlightPermit,
}

/// A refused request whose dead letter Kafka has accepted.
struct DeadLettered {
    id: RequestId,
    reason: DeadReason,
    error: String,
    permit: InFlightPermit,
}

type PendingDeadLetters = FuturesUnordered<BoxFuture<'static, Option<DeadLettered>>>;

pub(super) struct OutboxCleaner {
    pub(super) settled: mpsc::UnboundedReceiver<Finished>,
    pub(super) store: Store,
    pub(super) dead_letters: DeadLetters,
    pub(super) clock: Clock,
    /// Redelivery timeout: how long a delivery may go without an outcome after its publication.
    pub(super) redelivery_timeout: TimeDelta,
    pub(super) metrics: Metrics,
    pub(super) hard: CancellationToken,
}

impl OutboxCleaner {
    /// Runs until the publisher has ended and everything that it settled is removed from the table.
    pub(super) async fn run(mut self) -> Result<(), StoreError> {
        let mut batch = Vec::with_capacity(BATCH);
        // Requests whose dead letters Kafka has not accepted yet; the in-flight limit bounds their number. A
        // partition of the dead letters without a leader delays its own requests, and a flush.
        let mut refused = FuturesUnordered::new();
        let mut flushes = Vec::new();
        let mut is_open = true;
        while is_open || !refused.is_empty() {
            let continues = tokio::select! {
                Some(first) = refused.next(), if !refused.is_empty() => self.end(first, &mut refused).await?,
                count = self.settled.recv_many(&mut batch, BATCH), if is_open => {
                    is_open = count > 0;
                    self.step(std::mem::take(&mut batch), &mut refused, &mut flushes).await?
                }
            };
            if !continues {
                break;
            }
            if refused.is_empty() {
                for flush in flushes.drain(..) {
                    // The publisher may have stopped.
                    let _ = oneshot::Sender::send(flush, ());
                }
            }
        }
        Ok(())
    }

    /// Removes the published requests of a batch, and begins to publish the dead letters of its refused requests;
    /// returns whether to continue.
    async fn step(
        &self,
        batch: Vec<Finished>,
        refused: &mut PendingDeadLetters,
        flushes: &mut Vec<oneshot::Sender<()>>,
    ) -> Result<bool, StoreError> {
        let mut published = CleanupBatch::default();
        let mut permits = Vec::with_capacity(batch.len());
        let mut new = Vec::new();
        for settled in batch {
            match settled {
                Finished::Published(id, accepted_at, permit) => {
                    published.ids.push(id);
                    published.published.push((id, accepted_at));
                    permits.push(permit);
                }
                Finished::Refused(request) => new.push(request),
                Finished::Flush(answer) => flushes.push(answer),
            }
        }
        log(&new);
        refused.extend(new.into_iter().map(|request| self.dead_letter(request)));
        let continues = self.remove(&published).await?;
        drop(permits);
        Ok(continues)
    }

    /// Publishes the dead letter of a refused request; `None` if it is stopped first.
    fn dead_letter(&self, request: Refused) -> BoxFuture<'static, Option<DeadLettered>> {
        let dead_letters = self.dead_letters.clone();
        let Refused { id, stub, reason, error, permit } = request;
        let dead_letter = async move {
            let is_published = dead_letters.put_stub(stub, None, reason, &error).await;
            is_published.then_some(DeadLettered { id, reason, error, permit })
        };
        dead_letter.boxed()
    }

    /// Ends the deliveries of a request whose dead letter Kafka has accepted, together with all other requests whose
    /// dead letters Kafka has accepted by now; returns whether to continue.
    async fn end(
        &self,
        first: Option<DeadLettered>,
        refused: &mut PendingDeadLetters,
    ) -> Result<bool, StoreError> {
        let mut gone = CleanupBatch::default();
        let mut permits = Vec::new();
        let mut next = Some(first);
        while let Some(dead_lettered) = next {
            // Dead letters come before the deliveries end: a crash in between publishes them twice, and loses none.
            let Some(DeadLettered { id, reason, error, permit }) = dead_lettered else { return Ok(false) };
            gone.refuse(id, reason, error);
            permits.push(permit);
            next = refused.next().now_or_never().flatten();
        }
        let continues = self.remove(&gone).await?;
        drop(permits);
        Ok(continues)
    }

    /// Retries until the rows are removed, or until a hard stop: then the rows stay and are published again.
    async fn remove(&self, gone: &CleanupBatch) -> Result<bool, StoreError> {
        let mut backoff = Backoff::default();
        loop {
            match self.try_remove(gone).await {
                Ok(()) => return Ok(true),
                Err(error) if !error.is_about_data() => {
                    if !backoff.pause(&self.hard, REMOVAL_FAILED, &error).await {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_remove(&self, gone: &CleanupBatch) -> Result<(), StoreError> {
        let now = self.clock.now();
        let late = gone.late(now, self.redelivery_timeout);
        if gone.refused.is_empty() && late.is_empty() {
            return outbox::remove(self.store.connection(), &gone.ids).await;
        }
        let transaction = self.store.begin().await?;
        let ended = deliveries::refuse(&transaction, &gone.refused, now).await?;
        deliveries::postpone_all(&transaction, &late, now + self.redelivery_timeout).await?;
        outbox::remove(&transaction, &gone.ids).await?;
        transaction.commit().await?;
        self.metrics.ended(&ended);
        Ok(())
    }
}

/// Logs one line for consecutive requests with the same error: a route removed from the configuration may leave many.
fn log(refused: &[Refused]) {
    for same in refused.chunk_by(|one, next| one.reason == next.reason && one.error == next.error) {
        let (requests, Refused { id, error, .. }) = (same.len(), &same[0]);
        tracing::error!(
            event = "requests.refused", requests, request_id = %id, error,
            "cannot publish requests, so their deliveries end dead; request_id is the first of them"
        );
    }
}

/// The requests to remove from the table.
#[derive(Default)]
struct CleanupBatch {
    ids: Vec<RequestId>,
    /// The requests that Kafka has acknowledged, and when each was accepted.
    published: Vec<(RequestId, DateTime<Utc>)>,
    refused: Vec<Refusal>,
}

impl CleanupBatch {
    fn refuse(&mut self, request_id: RequestId, reason: DeadReason, error: String) {
        let class = match reason {
            DeadReason::Unroutable => ErrorClass::Configuration,
            _ => ErrorClass::Broker,
        };
        self.ids.push(request_id);
        self.refused.push(Refusal { request_id, destination: None, reason, class, error });
    }

    /// Returns the requests that were published long after they were accepted: their redelivery timeout starts now,
    /// because counted from acceptance it may already have passed.
    fn late(&self, now: DateTime<Utc>, redelivery_timeout: TimeDelta) -> Vec<RequestId> {
        // Ids do not show this: after the clock was set back, they are ahead of it.
        let is_late = |(_, accepted_at): &&(_, DateTime<Utc>)| now - *accepted_at > redelivery_timeout / 2;
        self.published.iter().filter(is_late).map(|(id, _)| *id).collect()
    }
}
