//! Publishes committed requests to Kafka, in the order of their ids.
//!
//! Normally the publisher takes requests from memory. It reads the outbox table at start, after a failure, when the
//! in-flight limit is reached, and for requests of another node. It reads the table page by page and
//! returns to memory at its end, even while the writer commits ([`publish_queue`] proves that no request falls between
//! the two sources or comes from both).

mod in_flight;
mod outbox_cleaner;
mod publish_queue;
mod send;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::iter;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use throughline_clock::Clock;
use throughline_kafka::{Position, Producer, SendError};
use throughline_messages::{DeadReason, Keys, Kind};
use throughline_snowflake::RequestId;
use throughline_store::{OutboxRequest, Store, StoreError, outbox};
use tokio::sync::{MutexGuard, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub(crate) use self::in_flight::InFlightLimit;
use self::in_flight::InFlightPermit;
use self::outbox_cleaner::{Finished, OutboxCleaner, Refused};
use self::publish_queue::Queued;
pub(crate) use self::publish_queue::{PublishQueue, QueueState, ReadFrom};
use self::send::unroutable;
pub(crate) use self::send::{note, outgoing, size_of, stub};
use crate::backoff::{Backoff, Warning};
use crate::metrics::Metrics;
use crate::node::Lease;
use crate::refusals::{DeadLetters, Stub};

const PUBLISH_FAILED: Warning =
    Warning { event: "requests.publish_failed", message: "cannot publish requests" };
const READ_FAILED: Warning = Warning { event: "outbox.read_failed", message: "cannot read the outbox" };

/// How long a read of the table may block the writer's commits.
const BLOCKING_READ: Duration = Duration::from_secs(1);

/// The publisher's settings and dependencies.
pub(crate) struct Context {
    pub(crate) lease: Lease,
    /// The topic of each route.
    pub(crate) topics: BTreeMap<String, String>,
    pub(crate) keys: Keys,
    /// Maximum number of rows, and of bytes of bodies, in one page of the table.
    pub(crate) page_rows: u64,
    pub(crate) page_bytes: u64,
    /// Redelivery timeout: how long a delivery may go without an outcome after its publication.
    pub(crate) redelivery_timeout: TimeDelta,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    /// Stops the publisher immediately: the next owner publishes the rows left in the outbox.
    pub(crate) hard: CancellationToken,
}

pub(crate) struct Publisher {
    context: Context,
    store: Store,
    producer: Producer,
    in_flight: Arc<InFlightLimit>,
    queue_state: Arc<QueueState>,
    fresh: mpsc::UnboundedReceiver<Queued>,
    sent: FuturesUnordered<BoxFuture<'static, Sent>>,
    settled: mpsc::UnboundedSender<Finished>,
    /// A record was not taken, but may be taken later: the records after it must wait.
    failure: Option<Failure>,
}

/// Why a record was not taken.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Send(#[from] SendError),
    /// Another node may have taken over the rows of the outbox and may publish them.
    #[error("the lease of the node id has expired")]
    Unleased,
}

/// A record, with the broker's answer.
struct Sent {
    id: RequestId,
    accepted_at: DateTime<Utc>,
    stub: Stub,
    permit: InFlightPermit,
    result: Result<Position, SendError>,
}

/// The result of reading the table.
enum Page {
    Rows(Vec<OutboxRequest>),
    /// The remaining rows are published, and commits come from memory.
    End,
}

/// The publisher must stop immediately.
struct Stopped;

/// Creates the publisher, the outbox cleaner, and the writer's end of the publish queue.
pub(crate) fn publisher(
    context: Context,
    store: Store,
    dead_letters: DeadLetters,
    in_flight: Arc<InFlightLimit>,
) -> (Publisher, impl Future<Output = Result<(), StoreError>> + Send, PublishQueue) {
    let (publish_queue, queue_state, fresh) = publish_queue::publish_queue(Arc::clone(&in_flight));
    // Bounded by the in-flight limit: each entry has a permit.
    let (sender, settled) = mpsc::unbounded_channel();
    let hard = context.hard.clone();
    let (clock, redelivery_timeout, metrics) =
        (context.clock.clone(), context.redelivery_timeout, context.metrics.clone());
    let producer = dead_letters.producer.clone();
    let outbox_cleaner = OutboxCleaner {
        settled,
        store: store.clone(),
        dead_letters,
        clock,
        redelivery_timeout,
        metrics,
        hard,
    };
    let sent = FuturesUnordered::new();
    let publisher = Publisher {
        context,
        store,
        producer,
        in_flight,
        queue_state,
        fresh,
        sent,
        settled: sender,
        failure: None,
    };
    (publisher, outbox_cleaner.run(), publish_queue)
}

impl Publisher {
    /// Returns the state of the publish queue, through which other tasks make the publisher read the table.
    pub(crate) fn queue_state(&self) -> Arc<QueueState> {
        Arc::clone(&self.queue_state)
    }

    /// Runs until the writer has ended and all its commits are published, or until a hard stop.
    pub(crate) async fn run(mut self) -> Result<(), StoreError> {
        loop {
            self.context.metrics.publisher_reads(ReadFrom::Table);
            let flow = match self.catch_up().await? {
                Ok(()) => {
                    self.context.metrics.publisher_reads(ReadFrom::Memory);
                    self.follow_the_writer().await
                }
                Err(Stopped) => ControlFlow::Break(()),
            };
            if flow.is_break() {
                return Ok(());
            }
        }
    }

    /// Publishes from memory as the writer commits. Returns when the table is the source again, or when the publisher
    /// must end.
    async fn follow_the_writer(&mut self) -> ControlFlow<()> {
        let queue_state = Arc::clone(&self.queue_state);
        loop {
            tokio::select! {
                biased;
                () = self.context.hard.cancelled() => return ControlFlow::Break(()),
                // Checked before the writer's end: requests that the writer left to the table must be published too.
                () = queue_state.look.notified() => break,
                Some(sent) = self.sent.next(), if !self.sent.is_empty() => self.settle(sent),
                fresh = self.fresh.recv() => match fresh {
                    Some((request, permit)) => self.enqueue(request, permit),
                    None if self.settle_all().await.is_err() => return ControlFlow::Break(()),
                    None if self.failure.is_none() => return ControlFlow::Break(()),
                    None => {}
                },
            }
            if self.failure.is_some() {
                break;
            }
        }
        // From here on, no request comes from memory; requests still in the channel are in the table too.
        *queue_state.source().await = ReadFrom::Table;
        while self.fresh.try_recv().is_ok() {}
        ControlFlow::Continue(())
    }

    /// Publishes the table page by page, the next page while the previous one is in flight, until commits come from
    /// memory again.
    async fn catch_up(&mut self) -> Result<Result<(), Stopped>, StoreError> {
        let mut backoff = Backoff::default();
        let hard = self.context.hard.clone();
        let mut after = None;
        let mut is_near_end = false;
        loop {
            if after.is_none() {
                // Before a read from the beginning: rows of records in flight would be published twice.
                if self.settle_all().await.is_err() {
                    return Ok(Err(Stopped));
                }
                if let Some(error) = self.failure.take()
                    && !backoff.pause(&hard, PUBLISH_FAILED, &error).await
                {
                    return Ok(Err(Stopped));
                }
            }
            let page = if is_near_end {
                let queue_state = Arc::clone(&self.queue_state);
                let Ok(source) = self.settling(queue_state.source()).await else { return Ok(Err(Stopped)) };
                self.finish(after, source).await
            } else {
                self.read_page(after).await.map(Page::Rows)
            };
            let rows = match page {
                Ok(Page::End) => {
                    backoff.reset();
                    return Ok(Ok(()));
                }
                Ok(Page::Rows(rows)) => rows,
                Err(error) if !error.is_about_data() => {
                    if !backoff.pause(&hard, READ_FAILED, &error).await {
                        return Ok(Err(Stopped));
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Between two reads that block the writer, at least one read does not.
            is_near_end = !is_near_end && self.is_all(&rows);
            after = rows.last().map(|request| request.id).or(after);
            if self.publish(rows).await.is_err() {
                return Ok(Err(Stopped));
            }
            if self.failure.is_some() {
                (after, is_near_end) = (None, false);
            }
        }
    }

    /// Publishes the rest of the table while no commit is in progress, and makes memory the source from then on. If the
    /// rest is more than a page, or than the in-flight limit allows, returns the rows that remain to be published.
    async fn finish(
        &mut self,
        after: Option<RequestId>,
        mut source: MutexGuard<'_, ReadFrom>,
    ) -> Result<Page, StoreError> {
        let Ok(rows) = timeout(BLOCKING_READ, self.read_page(after)).await else {
            return Ok(Page::Rows(Vec::new()));
        };
        let rows = rows?;
        if !self.is_all(&rows) {
            return Ok(Page::Rows(rows));
        }
        let mut rows = rows.into_iter();
        while self.failure.is_none() {
            let Some(request) = rows.next() else {
                *source = ReadFrom::Memory;
                return Ok(Page::End);
            };
            let Some(permit) = self.in_flight.try_acquire(request.id, size_of(&request)) else {
                return Ok(Page::Rows(iter::once(request).chain(rows).collect()));
            };
            self.enqueue(request, permit);
        }
        Ok(Page::Rows(Vec::new()))
    }

    /// Returns whether a page holds all rows after its predecessor, that is, whether neither limit cut it short.
    fn is_all(&self, page: &[OutboxRequest]) -> bool {
        let bytes: u64 = page.iter().map(|request| request.body.len() as u64).sum();
        (page.len() as u64) < self.context.page_rows && bytes < self.context.page_bytes
    }

    async fn read_page(&mut self, after: Option<RequestId>) -> Result<Vec<OutboxRequest>, StoreError> {
        let Context { page_rows, page_bytes, .. } = self.context;
        outbox::pending(self.store.connection(), self.context.lease.node(), after, page_rows, page_bytes)
            .await
    }

    /// Publishes rows of the table until one is not taken; the remaining rows are read again.
    async fn publish(&mut self, page: Vec<OutboxRequest>) -> Result<(), Stopped> {
        for request in page {
            let permit = self.acquire(&request).await?;
            if self.failure.is_some() {
                break;
            }
            self.enqueue(request, permit);
        }
        Ok(())
    }

    /// Waits for an in-flight permit.
    async fn acquire(&mut self, request: &OutboxRequest) -> Result<InFlightPermit, Stopped> {
        let in_flight = Arc::clone(&self.in_flight);
        self.settling(in_flight.acquire(request.id, size_of(request))).await?.ok_or(Stopped)
    }

    /// Waits for a future, and meanwhile settles records that the broker answers.
    async fn settling<T>(&mut self, awaited: impl Future<Output = T>) -> Result<T, Stopped> {
        let hard = self.context.hard.clone();
        let mut awaited = pin!(awaited);
        loop {
            tokio::select! {
                () = hard.cancelled() => return Err(Stopped),
                output = &mut awaited => return Ok(output),
                Some(sent) = self.sent.next(), if !self.sent.is_empty() => self.settle(sent),
            }
        }
    }

    /// Passes a record to librdkafka, which keeps the order from there. A record that is not taken now is still in the
    /// table, and no other record may overtake it.
    fn enqueue(&mut self, request: OutboxRequest, permit: InFlightPermit) {
        if !self.context.lease.is_valid() {
            self.failure = Some(Failure::Unleased);
            return;
        }
        let (id, accepted_at) = (request.id, request.accepted_at);
        let Some(topic) = self.context.topics.get(&request.route) else {
            let error = format!("the configuration has no route {}", request.route);
            return self.refuse(id, unroutable(request), DeadReason::Unroutable, error, permit);
        };
        let (metrics, route) = (self.context.metrics.clone(), request.route.clone());
        let signature = (&self.context.keys, Kind::Request);
        let (record, span) = outgoing(topic, request, signature, |record| record.to_headers());
        match self.producer.enqueue(&record) {
            Ok(acknowledgement) => {
                let stub = record.into();
                let sent = acknowledgement.map(move |result| {
                    note(&span, &result);
                    if result.is_ok() {
                        metrics.published(&route);
                    }
                    Sent { id, accepted_at, stub, permit, result }
                });
                self.sent.push(sent.boxed());
            }
            Err(error) if error.is_refusal() => {
                self.refuse(id, record.into(), DeadReason::Unpublishable, error.to_string(), permit);
            }
            Err(error) => self.failure = Some(error.into()),
        }
    }

    /// Waits until no record is in flight and all published rows are removed from the table.
    async fn settle_all(&mut self) -> Result<(), Stopped> {
        let hard = self.context.hard.clone();
        while !self.sent.is_empty() {
            if let Some(sent) = hard.run_until_cancelled(self.sent.next()).await.ok_or(Stopped)? {
                self.settle(sent);
            }
        }
        let (answer, flushed) = oneshot::channel();
        self.settled.send(Finished::Flush(answer)).map_err(|_| Stopped)?;
        hard.run_until_cancelled(flushed).await.and_then(Result::ok).ok_or(Stopped)
    }

    fn settle(&mut self, sent: Sent) {
        match sent.result {
            Ok(_) => {
                // If the outbox cleaner has ended, the process is ending, and the row stays.
                let _ = self.settled.send(Finished::Published(sent.id, sent.accepted_at, sent.permit));
            }
            Err(error) if error.is_refusal() => {
                self.refuse(sent.id, sent.stub, DeadReason::Unpublishable, error.to_string(), sent.permit);
            }
            Err(error) => self.failure = Some(error.into()),
        }
    }

    fn refuse(&self, id: RequestId, stub: Stub, reason: DeadReason, error: String, permit: InFlightPermit) {
        let _ = self.settled.send(Finished::Refused(Refused { id, stub, reason, error, permit }));
    }
}
