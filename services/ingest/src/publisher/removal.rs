//! Takes what the broker has acknowledged out of the outbox, in batches.

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use throughline_clock::Clock;
use throughline_messages::{DeadReason, ErrorClass};
use throughline_snowflake::RequestId;
use throughline_store::{Refusal, Store, StoreError, deliveries, outbox};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::window::Hold;
use crate::backoff::Backoff;
use crate::metrics::Metrics;
use crate::refusals::{DeadLetters, Stub};

/// Most rows deleted by one statement.
const BATCH: usize = 1024;

pub(super) enum Settled {
    /// Kafka has it, which was accepted then.
    Published(RequestId, DateTime<Utc>, Hold),
    Refused(Refused),
    /// Answers once all that came before is out of the table.
    Flush(oneshot::Sender<()>),
}

/// A request that Kafka refuses, or whose route has no topic: its deliveries end dead.
pub(super) struct Refused {
    pub(super) id: RequestId,
    pub(super) stub: Stub,
    pub(super) reason: DeadReason,
    pub(super) error: String,
    pub(super) hold: Hold,
}

pub(super) struct Remover {
    pub(super) settled: mpsc::UnboundedReceiver<Settled>,
    pub(super) store: Store,
    pub(super) dead_letters: DeadLetters,
    pub(super) clock: Clock,
    /// How long a delivery may stay silent from its publication on.
    pub(super) patience: TimeDelta,
    pub(super) metrics: Metrics,
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
        let mut published = Gone::default();
        let mut holds = Vec::with_capacity(batch.len());
        let mut refused = Vec::new();
        let mut flushed = Vec::new();
        for settled in batch {
            match settled {
                Settled::Published(id, accepted_at, hold) => {
                    published.ids.push(id);
                    published.published.push((id, accepted_at));
                    holds.push(hold);
                }
                Settled::Refused(request) => refused.push(request),
                Settled::Flush(answer) => flushed.push(answer),
            }
        }
        if !self.remove(&published).await? {
            return Ok(false);
        }
        drop(holds);
        if !refused.is_empty() && !self.refuse(refused).await? {
            return Ok(false);
        }
        for answer in flushed {
            // The publisher may have been told to stop.
            let _ = answer.send(());
        }
        Ok(true)
    }

    /// Reports refused requests to dead letters, all of them at once, and ends their deliveries. Whether to go on.
    async fn refuse(&self, refused: Vec<Refused>) -> Result<bool, StoreError> {
        log(&refused);
        let mut gone = Gone::default();
        let mut holds = Vec::with_capacity(refused.len());
        let mut letters = Vec::with_capacity(refused.len());
        for Refused { id, stub, reason, error, hold } in refused {
            gone.refuse(id, reason, error.clone());
            holds.push(hold);
            letters.push(async move { self.dead_letters.tell(stub, None, reason, &error).await });
        }
        // Before their deliveries end: a crash in between writes the dead letters twice, and loses none.
        if join_all(letters).await.contains(&false) {
            return Ok(false);
        }
        let goes_on = self.remove(&gone).await?;
        drop(holds);
        Ok(goes_on)
    }

    /// Tries until it is done, or until it must stop: then the rows stay, and are published again.
    async fn remove(&self, gone: &Gone) -> Result<bool, StoreError> {
        let mut backoff = Backoff::default();
        loop {
            match self.try_remove(gone).await {
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

    async fn try_remove(&self, gone: &Gone) -> Result<(), StoreError> {
        let now = self.clock.now();
        let late = gone.late(now, self.patience);
        if gone.refused.is_empty() && late.is_empty() {
            return outbox::remove(self.store.connection(), &gone.ids).await;
        }
        let transaction = self.store.begin().await?;
        let ended = deliveries::refuse(&transaction, &gone.refused, now).await?;
        deliveries::postpone_all(&transaction, &late, now + self.patience).await?;
        outbox::remove(&transaction, &gone.ids).await?;
        transaction.commit().await?;
        self.metrics.ended(&ended);
        Ok(())
    }
}

/// One line for neighbours with the same error: a route that is removed from the configuration may leave many.
fn log(refused: &[Refused]) {
    for same in refused.chunk_by(|one, next| one.reason == next.reason && one.error == next.error) {
        let (requests, Refused { id, error, .. }) = (same.len(), &same[0]);
        tracing::error!(
            requests, request_id = %id, error,
            "requests cannot be published, their deliveries end dead; request_id is the first of them"
        );
    }
}

/// What is to be taken out of the table.
#[derive(Default)]
struct Gone {
    ids: Vec<RequestId>,
    /// Those that Kafka has, and when they were accepted.
    published: Vec<(RequestId, DateTime<Utc>)>,
    refused: Vec<Refusal>,
}

impl Gone {
    fn refuse(&mut self, request_id: RequestId, reason: DeadReason, error: String) {
        let class = match reason {
            DeadReason::Unroutable => ErrorClass::Configuration,
            _ => ErrorClass::Broker,
        };
        self.ids.push(request_id);
        self.refused.push(Refusal { request_id, destination: None, reason, class, error });
    }

    /// What was published long after it was accepted: its patience begins now, not at an end that has come.
    fn late(&self, now: DateTime<Utc>, patience: TimeDelta) -> Vec<RequestId> {
        // Ids do not tell: after a clock has stepped back, they are ahead of it.
        let is_late = |(_, accepted_at): &&(_, DateTime<Utc>)| now - *accepted_at > patience / 2;
        self.published.iter().filter(is_late).map(|(id, _)| *id).collect()
    }
}
