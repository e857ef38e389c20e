//! The queue of requests that wait for the writer.

use std::sync::Arc;

use bytes::Bytes;
use throughline_messages::TraceContext;
use throughline_snowflake::RequestId;
use throughline_store::Adopted;
use throughline_store::idempotency::Key;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::waiting::Waiting;

/// The unit of a permit, 1 KiB: a semaphore counts in 32 bits.
const PERMIT_UNIT: u64 = 1 << 10;

/// A payload as a source received it.
pub(crate) struct Payload {
    pub(crate) body: Bytes,
    pub(crate) content_type: String,
    /// The headers that the route keeps.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) trace: Option<TraceContext>,
    /// The record from which the request is adopted.
    pub(crate) origin: Option<Adopted>,
    /// The permit for the body's bytes.
    pub(crate) permit: BodyPermit,
}

/// A request that has passed all checks and is to be stored.
pub(crate) struct Submission {
    pub(crate) route: Arc<Route>,
    pub(crate) payload: Payload,
    /// The name of the client that sent the request.
    pub(crate) client: Option<String>,
    pub(crate) ordering_key: Option<String>,
    /// The idempotency key, and the fingerprint of the body that the key stands for.
    pub(crate) idempotency: Option<(Key, [u8; 32])>,
}

/// A route as its requests are stored.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) name: String,
    pub(crate) destinations: Vec<String>,
    /// Whether a request waits for earlier requests with its ordering key, even while they are retried.
    pub(crate) keeps_order: bool,
}

/// The result of a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommitResult {
    /// The request is durable.
    Accepted(RequestId),
    /// The request was accepted before, under the same idempotency key or from the same record.
    Repeated(RequestId),
    /// The idempotency key stands for another body.
    KeyReused,
    /// Another transaction that claims the idempotency key has not ended.
    InFlight,
    /// More requests arrive than the database commits, and this one has waited longer than others.
    Overloaded,
    /// The database is unreachable; whether the request is stored is unknown.
    Unavailable,
    /// The database refuses the request; the reason is logged.
    Failed,
    /// The database refuses every request; the reason is logged.
    Misconfigured,
}

/// A body's share of the budget, held from before the body is read until the writer is done with it, even if the client
/// disconnects.
#[derive(Debug)]
pub(crate) struct BodyPermit(OwnedSemaphorePermit);

impl BodyPermit {
    /// Grows the share to `bytes` in total; returns false if the budget does not have enough now.
    pub(crate) fn grow(&mut self, bytes: u64) -> bool {
        let units = usize::try_from(bytes.div_ceil(PERMIT_UNIT)).unwrap_or(usize::MAX);
        let Ok(more) = u32::try_from(units.saturating_sub(self.0.num_permits())) else { return false };
        let Ok(more) = Arc::clone(self.0.semaphore()).try_acquire_many_owned(more) else { return false };
        self.0.merge(more);
        true
    }
}

pub(super) struct Queued {
    pub(super) submission: Submission,
    pub(super) answer: oneshot::Sender<CommitResult>,
}

/// The writer's queue, bounded in requests and in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    entries: mpsc::Sender<Queued>,
    budget: Arc<Semaphore>,
}

impl Queue {
    /// Creates a queue for this number of requests and bytes of bodies, and the writer's end, which takes at most
    /// `batch` requests at once.
    pub(super) fn new(requests: usize, bytes: u64, batch: usize) -> (Self, Waiting) {
        let (entries, receiver) = mpsc::channel(requests);
        let budget = usize::try_from(bytes.div_ceil(PERMIT_UNIT)).unwrap_or(Semaphore::MAX_PERMITS);
        (Self { entries, budget: Arc::new(Semaphore::new(budget)) }, Waiting::new(receiver, batch))
    }

    /// Reserves bytes for a body; returns `None` if the budget does not have enough now.
    pub(crate) fn reserve(&self, bytes: u64) -> Option<BodyPermit> {
        let units = u32::try_from(bytes.div_ceil(PERMIT_UNIT)).ok()?;
        Arc::clone(&self.budget).try_acquire_many_owned(units).ok().map(BodyPermit)
    }

    /// Creates a queue without a writer, with a budget of this number of bytes.
    #[cfg(test)]
    pub(crate) fn of_bytes(bytes: u64) -> Self {
        Self::new(1, bytes, 1).0
    }

    /// Creates a queue with a writer that returns the same result for every request.
    #[cfg(test)]
    pub(crate) fn answered(result: CommitResult) -> Self {
        let (queue, mut waiting) = Self::new(1, PERMIT_UNIT, 1);
        tokio::spawn(async move {
            while let Some(batch) = waiting.next_batch().await {
                for queued in batch {
                    // The test may have ended.
                    let _ = queued.answer.send(result);
                }
            }
        });
        queue
    }

    /// Submits a request to the writer and waits for the result; returns `None` if the queue is full. The writer does
    /// not commit a request if its caller drops this future before the writer takes it.
    pub(crate) async fn submit(&self, submission: Submission) -> Option<CommitResult> {
        let (answer, result) = oneshot::channel();
        self.entries.try_send(Queued { submission, answer }).ok()?;
        // A writer that has ended may have committed the request before.
        Some(result.await.unwrap_or(CommitResult::Unavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_for_bytes_is_limited() {
        let (queue, _entries) = Queue::new(1, 4 << 10, 1);
        let held = queue.reserve(3 << 10).unwrap();
        assert!(queue.reserve((1 << 10) + 1).is_none());
        assert!(queue.reserve(1 << 10).is_some());
        drop(held);
        assert!(queue.reserve(4 << 10).is_some());
    }
}
