//! The queue of requests that wait for the writer.

use std::sync::Arc;

use bytes::Bytes;
use throughline_messages::TraceContext;
use throughline_snowflake::RequestId;
use throughline_store::Adopted;
use throughline_store::idempotency::Key;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::waiting::Waiting;

/// Room is counted in KiB, because a semaphore counts in 32 bits.
const ROOM_UNIT: u64 = 1 << 10;

/// A request that was checked and is to be kept.
pub(crate) struct Submission {
    pub(crate) route: String,
    pub(crate) destinations: Arc<[String]>,
    pub(crate) body: Bytes,
    pub(crate) content_type: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) ordering_key: Option<String>,
    /// Whether it waits for those before it with its ordering key, even while they are tried again.
    pub(crate) keeps_order: bool,
    pub(crate) trace: Option<TraceContext>,
    /// The name of the client that sent it.
    pub(crate) client: Option<String>,
    /// The record that it is adopted from.
    pub(crate) origin: Option<Adopted>,
    /// The idempotency key, and the fingerprint of the body that it stands for.
    pub(crate) idempotency: Option<(Key, [u8; 32])>,
    /// The room that the body takes.
    pub(crate) room: Room,
}

/// What became of a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is durable.
    Accepted(RequestId),
    /// It was accepted before, under the same idempotency key or from the same record.
    Repeated(RequestId),
    /// The idempotency key stands for another body.
    KeyReused,
    /// Another transaction that claims the idempotency key has not ended.
    InFlight,
    /// More requests come than the database commits, and this one has waited longer than others.
    Overloaded,
    /// The database cannot be reached; what became of it is not known.
    Unavailable,
    /// The database refuses it; the reason was logged.
    Failed,
    /// The database refuses any request; the reason was logged.
    Misconfigured,
}

/// Room for a body, from before it is read until the writer is done with it, whether or not its client
/// still waits.
#[derive(Debug)]
pub(crate) struct Room(OwnedSemaphorePermit);

impl Room {
    /// Grows to that many bytes in all, and says whether there is room for them now.
    pub(crate) fn grow(&mut self, bytes: u64) -> bool {
        let units = usize::try_from(bytes.div_ceil(ROOM_UNIT)).unwrap_or(usize::MAX);
        let Ok(more) = u32::try_from(units.saturating_sub(self.0.num_permits())) else { return false };
        let Ok(more) = Arc::clone(self.0.semaphore()).try_acquire_many_owned(more) else { return false };
        self.0.merge(more);
        true
    }
}

pub(super) struct Queued {
    pub(super) submission: Submission,
    pub(super) answer: oneshot::Sender<Verdict>,
}

/// The writer's queue, bounded in number and in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    entries: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
}

impl Queue {
    /// A queue for so many requests and bytes of bodies, and the writer's end, which takes at most `batch` at once.
    pub(super) fn new(requests: usize, bytes: u64, batch: usize) -> (Self, Waiting) {
        let (entries, receiver) = mpsc::channel(requests);
        let room = usize::try_from(bytes.div_ceil(ROOM_UNIT)).unwrap_or(Semaphore::MAX_PERMITS);
        (Self { entries, room: Arc::new(Semaphore::new(room)) }, Waiting::new(receiver, batch))
    }

    /// Sets bytes aside for a body; `None` when there is no room now.
    pub(crate) fn reserve(&self, bytes: u64) -> Option<Room> {
        let units = u32::try_from(bytes.div_ceil(ROOM_UNIT)).ok()?;
        Arc::clone(&self.room).try_acquire_many_owned(units).ok().map(Room)
    }

    /// A queue without a writer, with room for that many bytes.
    #[cfg(test)]
    pub(crate) fn of_bytes(bytes: u64) -> Self {
        Self::new(1, bytes, 1).0
    }

    /// Hands a request to the writer and waits for what becomes of it; `None` when the queue is full. A request whose
    /// caller drops this future before the writer takes it is not committed.
    pub(crate) async fn submit(&self, submission: Submission) -> Option<Verdict> {
        let (answer, verdict) = oneshot::channel();
        self.entries.try_send(Queued { submission, answer }).ok()?;
        // A writer that is gone may have committed before it went.
        Some(verdict.await.unwrap_or(Verdict::Unavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_so_many_bytes_and_no_more() {
        let (queue, _entries) = Queue::new(1, 4 << 10, 1);
        let held = queue.reserve(3 << 10).unwrap();
        assert!(queue.reserve((1 << 10) + 1).is_none());
        assert!(queue.reserve(1 << 10).is_some());
        drop(held);
        assert!(queue.reserve(4 << 10).is_some());
    }
}
