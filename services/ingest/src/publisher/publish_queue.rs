//! The queue through which the writer passes committed requests to the publisher.
//!
//! The publisher learns of a commit either from memory or from the outbox table: never from both, never from neither,
//! and always in the order of ids. The writer holds its [`CommitGuard`] while it commits and queues; the publisher
//! takes the same lock to change the source.
//!
//! *From the table to memory.* The publisher reads the table in the order of ids, each page after the one before, so at
//! any time it has published exactly the rows up to its position. While it holds the lock, no commit is in progress. It
//! reads the rows after its position, publishes all of them and sets [`ReadFrom::Memory`] before it releases the lock.
//! Every earlier commit is then published, from the table, before any later one, which comes from memory: neither both
//! nor neither, and in order. If the publisher cannot publish all of them immediately, the source stays the table.
//!
//! *From memory to the table.* Whichever side sets [`ReadFrom::Table`] holds the lock, so each commit is entirely
//! before or after the change. The publisher then discards the requests that memory still holds (they are in the table
//! as well), waits until all records in flight are settled and removed from the table, and reads from the beginning.
//!
//! A row may also appear before the publisher's position: from another node's outbox that was taken over, or from a
//! commit that was interrupted and took effect later. In both cases [`QueueState::look_in_the_table`] is called after
//! the row is visible; the publisher remembers the call until it next reads from the beginning.

use std::sync::Arc;

use throughline_store::OutboxRequest;
use tokio::sync::{Mutex, MutexGuard, Notify, mpsc};

use super::in_flight::{InFlightLimit, InFlightPermit};
use super::send::size_of;

/// The source from which the publisher learns of commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadFrom {
    Memory,
    Table,
}

/// A request from memory, with its in-flight permit.
pub(super) type Queued = (OutboxRequest, InFlightPermit);

/// The writer's end of the publish queue.
#[derive(Debug, Clone)]
pub(crate) struct PublishQueue {
    queue_state: Arc<QueueState>,
    fresh: mpsc::UnboundedSender<Queued>,
    in_flight: Arc<InFlightLimit>,
}

/// The state that both ends share.
#[derive(Debug)]
pub(crate) struct QueueState {
    source: Mutex<ReadFrom>,
    /// Notified when the table must be read from its beginning.
    pub(super) look: Notify,
}

impl QueueState {
    pub(super) async fn source(&self) -> MutexGuard<'_, ReadFrom> {
        self.source.lock().await
    }

    /// Makes the publisher read the table: rows were taken over, or the result of a commit is unknown.
    pub(crate) fn look_in_the_table(&self) {
        self.look.notify_one();
    }
}

/// The exclusive right to commit.
pub(crate) struct CommitGuard<'a> {
    source: MutexGuard<'a, ReadFrom>,
    publish_queue: &'a PublishQueue,
}

/// Creates both ends. The publisher begins with the table, where a previous process may have left rows.
pub(super) fn publish_queue(
    in_flight: Arc<InFlightLimit>,
) -> (PublishQueue, Arc<QueueState>, mpsc::UnboundedReceiver<Queued>) {
    // Bounded by the in-flight limit: each request in the channel has a permit.
    let (sender, fresh) = mpsc::unbounded_channel();
    let queue_state = Arc::new(QueueState { source: Mutex::new(ReadFrom::Table), look: Notify::new() });
    (PublishQueue { queue_state: Arc::clone(&queue_state), fresh: sender, in_flight }, queue_state, fresh)
}

impl PublishQueue {
    /// Creates a publish queue without a publisher: committed requests are left to the table.
    #[cfg(test)]
    pub(crate) fn unread() -> Self {
        let in_flight = InFlightLimit::new(1, 1 << 20, crate::Broker::Durable, std::time::Duration::ZERO);
        publish_queue(Arc::new(in_flight)).0
    }

    /// Creates a publish queue to a publisher that learns of commits from memory.
    #[cfg(test)]
    pub(crate) async fn read_from_memory() -> (Self, impl FnMut() -> Option<OutboxRequest>) {
        let in_flight = InFlightLimit::new(1000, 1 << 20, crate::Broker::Durable, std::time::Duration::ZERO);
        let (publish_queue, queue_state, mut fresh) = publish_queue(Arc::new(in_flight));
        *queue_state.source().await = ReadFrom::Memory;
        (publish_queue, move || fresh.try_recv().ok().map(|(request, _)| request))
    }

    /// Waits for the right to commit.
    pub(crate) async fn commit_guard(&self) -> CommitGuard<'_> {
        CommitGuard { source: self.queue_state.source().await, publish_queue: self }
    }
}

impl CommitGuard<'_> {
    /// Queues committed requests, in the order of their ids.
    pub(crate) fn committed(&mut self, requests: Vec<OutboxRequest>) {
        for request in requests {
            if *self.source == ReadFrom::Table {
                return;
            }
            let permit = self.publish_queue.in_flight.try_acquire(request.id, size_of(&request));
            let is_queued =
                permit.is_some_and(|permit| self.publish_queue.fresh.send((request, permit)).is_ok());
            if !is_queued {
                // The in-flight limit is reached: later requests must not overtake this one, which is left to the
                // table.
                self.look_in_the_table();
            }
        }
    }

    /// Makes the table the source from here on.
    pub(crate) fn look_in_the_table(&mut self) {
        *self.source = ReadFrom::Table;
        self.publish_queue.queue_state.look_in_the_table();
    }
}
