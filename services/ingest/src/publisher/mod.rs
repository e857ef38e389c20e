//! Publishes committed requests to Kafka, in the order of ids.
//!
//! As a rule from memory. The outbox table is the source at the start, after a failure, when the window of
//! unacknowledged requests is full, and for requests of another node. The publisher reads the table page by page and
//! returns to memory at its end, also while the writer commits ([`handover`] proves that no request falls between the
//! two, or comes from both).

mod handover;
mod removal;
mod send;
#[cfg(test)]
mod tests;
mod window;

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

use self::handover::Fresh;
pub(crate) use self::handover::{Gate, Handover, Source};
use self::removal::{Refused, Remover, Settled};
use self::send::unroutable;
pub(crate) use self::send::{note, outgoing, size_of, stub};
use self::window::Hold;
pub(crate) use self::window::Window;
use crate::backoff::Backoff;
use crate::metrics::Metrics;
use crate::node::Lease;
use crate::refusals::{DeadLetters, Stub};

/// How long a read of the table may keep the writer from committing.
const GATED_READ: Duration = Duration::from_secs(1);

/// What the publisher works with.
pub(crate) struct Terms {
    pub(crate) lease: Lease,
    /// Each route's topic.
    pub(crate) topics: BTreeMap<String, String>,
    pub(crate) keys: Keys,
    /// Most rows read from the table at once, and most bytes of bodies.
    pub(crate) page_rows: u64,
    pub(crate) page_bytes: u64,
    /// How long a delivery may stay silent from its publication on.
    pub(crate) patience: TimeDelta,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    /// Stop at once: what is left in the outbox is published by the next owner.
    pub(crate) hard: CancellationToken,
}

pub(crate) struct Publisher {
    terms: Terms,
    store: Store,
    producer: Producer,
    window: Arc<Window>,
    gate: Arc<Gate>,
    fresh: mpsc::UnboundedReceiver<Fresh>,
    sent: FuturesUnordered<BoxFuture<'static, Sent>>,
    settled: mpsc::UnboundedSender<Settled>,
    /// A record that was not taken although it may be later: what comes after it must wait.
    failure: Option<Failure>,
}

/// Why a record was not taken.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Send(#[from] SendError),
    /// Another node may have taken over what is in the outbox, and publish it.
    #[error("the lease of the node id has run out")]
    Unleased,
}

/// A record that the broker has answered for.
struct Sent {
    id: RequestId,
    accepted_at: DateTime<Utc>,
    stub: Stub,
    hold: Hold,
    result: Result<Position, SendError>,
}

/// What the table gave.
enum Page {
    Rows(Vec<OutboxRequest>),
    /// The rest is published, and commits come from memory.
    End,
}

/// Told to stop at once.
struct Stopped;

/// Makes the publisher, the task that empties the outbox behind it, and the writer's end.
pub(crate) fn publisher(
    terms: Terms,
    store: Store,
    dead_letters: DeadLetters,
    window: Arc<Window>,
) -> (Publisher, impl Future<Output = Result<(), StoreError>> + Send, Handover) {
    let (handover, gate, fresh) = handover::handover(Arc::clone(&window));
    // Bounded by the window: each entry holds a share of it.
    let (sender, settled) = mpsc::unbounded_channel();
    let hard = terms.hard.clone();
    let (clock, patience, metrics) = (terms.clock.clone(), terms.patience, terms.metrics.clone());
    let producer = dead_letters.producer.clone();
    let remover = Remover { settled, store: store.clone(), dead_letters, clock, patience, metrics, hard };
    let sent = FuturesUnordered::new();
    let publisher =
        Publisher { terms, store, producer, window, gate, fresh, sent, settled: sender, failure: None };
    (publisher, remover.run(), handover)
}

impl Publisher {
    /// What has others make the publisher look in the table.
    pub(crate) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// Runs until the writer is gone and all it committed is published, or until told to stop.
    pub(crate) async fn run(mut self) -> Result<(), StoreError> {
        loop {
            self.terms.metrics.publisher_reads(Source::Table);
            let flow = match self.catch_up().await? {
                Ok(()) => {
                    self.terms.metrics.publisher_reads(Source::Memory);
                    self.follow_the_writer().await
                }
                Err(Stopped) => ControlFlow::Break(()),
            };
            if flow.is_break() {
                return Ok(());
            }
        }
    }

    /// Publishes from memory as the writer commits. Ends when the table is the source again, or for good.
    async fn follow_the_writer(&mut self) -> ControlFlow<()> {
        let gate = Arc::clone(&self.gate);
        loop {
            tokio::select! {
                biased;
                () = self.terms.hard.cancelled() => return ControlFlow::Break(()),
                // Before the writer's end: what it left to the table is to be published too.
                () = gate.look.notified() => break,
                Some(sent) = self.sent.next(), if !self.sent.is_empty() => self.settle(sent),
                fresh = self.fresh.recv() => match fresh {
                    Some((request, hold)) => self.enqueue(request, hold),
                    None if self.settle_all().await.is_err() => return ControlFlow::Break(()),
                    None if self.failure.is_none() => return ControlFlow::Break(()),
                    None => {}
                },
            }
            if self.failure.is_some() {
                break;
            }
        }
        // From here on nothing comes from memory; requests that are still there are in the table too.
        *gate.source().await = Source::Table;
        while self.fresh.try_recv().is_ok() {}
        ControlFlow::Continue(())
    }

    /// Publishes page after page from the table, the next one while the last is under way, until commits come from
    /// memory again.
    async fn catch_up(&mut self) -> Result<Result<(), Stopped>, StoreError> {
        let mut backoff = Backoff::default();
        let hard = self.terms.hard.clone();
        let mut after = None;
        let mut is_near_end = false;
        loop {
            if after.is_none() {
                // From the beginning: rows of records that are under way would be published twice.
                if self.settle_all().await.is_err() {
                    return Ok(Err(Stopped));
                }
                if let Some(error) = self.failure.take()
                    && !backoff.pause(&hard, "records cannot be published", &error).await
                {
                    return Ok(Err(Stopped));
                }
            }
            let page = if is_near_end {
                let gate = Arc::clone(&self.gate);
                let Ok(source) = self.settling(gate.source()).await else { return Ok(Err(Stopped)) };
                self.finish(after, source).await
            } else {
                self.read_page(after).await.map(Page::Rows)
            };
            let rows = match page {
                Ok(Page::End) => return Ok(Ok(())),
                Ok(Page::Rows(rows)) => rows,
                Err(error) if error.is_unavailable() => {
                    if !backoff.pause(&hard, "the outbox cannot be read", &error).await {
                        return Ok(Err(Stopped));
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Between two reads that keep the writer waiting there is one that does not.
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

    /// Publishes the rest of the table while no commit is under way, and has commits come from memory from then on. If
    /// the rest is more than a page, or than the window has room for, gives what of it is still to be published.
    async fn finish(
        &mut self,
        after: Option<RequestId>,
        mut source: MutexGuard<'_, Source>,
    ) -> Result<Page, StoreError> {
        let Ok(rows) = timeout(GATED_READ, self.read_page(after)).await else {
            return Ok(Page::Rows(Vec::new()));
        };
        let rows = rows?;
        if !self.is_all(&rows) {
            return Ok(Page::Rows(rows));
        }
        let mut rows = rows.into_iter();
        while self.failure.is_none() {
            let Some(request) = rows.next() else {
                *source = Source::Memory;
                return Ok(Page::End);
            };
            let Some(hold) = self.window.try_hold(request.id, size_of(&request)) else {
                return Ok(Page::Rows(iter::once(request).chain(rows).collect()));
            };
            self.enqueue(request, hold);
        }
        Ok(Page::Rows(Vec::new()))
    }

    /// Whether a page holds all rows that there were after its predecessor: neither bound cut it short.
    fn is_all(&self, page: &[OutboxRequest]) -> bool {
        let bytes: u64 = page.iter().map(|request| request.body.len() as u64).sum();
        (page.len() as u64) < self.terms.page_rows && bytes < self.terms.page_bytes
    }

    async fn read_page(&mut self, after: Option<RequestId>) -> Result<Vec<OutboxRequest>, StoreError> {
        let Terms { page_rows, page_bytes, .. } = self.terms;
        outbox::pending(self.store.connection(), self.terms.lease.node(), after, page_rows, page_bytes).await
    }

    /// Publishes rows of the table as far as they are taken; the rest comes again.
    async fn publish(&mut self, page: Vec<OutboxRequest>) -> Result<(), Stopped> {
        for request in page {
            let hold = self.hold(&request).await?;
            if self.failure.is_some() {
                break;
            }
            self.enqueue(request, hold);
        }
        Ok(())
    }

    /// Waits for a share of the window.
    async fn hold(&mut self, request: &OutboxRequest) -> Result<Hold, Stopped> {
        let window = Arc::clone(&self.window);
        self.settling(window.hold(request.id, size_of(request))).await?.ok_or(Stopped)
    }

    /// Waits for something, and meanwhile settles records that the broker answers for.
    async fn settling<T>(&mut self, awaited: impl Future<Output = T>) -> Result<T, Stopped> {
        let hard = self.terms.hard.clone();
        let mut awaited = pin!(awaited);
        loop {
            tokio::select! {
                () = hard.cancelled() => return Err(Stopped),
                output = &mut awaited => return Ok(output),
                Some(sent) = self.sent.next(), if !self.sent.is_empty() => self.settle(sent),
            }
        }
    }

    /// Hands a record to librdkafka, which keeps the order from there. What is not taken now is still
    /// in the table, and nothing may overtake it.
    fn enqueue(&mut self, request: OutboxRequest, hold: Hold) {
        if !self.terms.lease.is_valid() {
            self.failure = Some(Failure::Unleased);
            return;
        }
        let (id, accepted_at) = (request.id, request.accepted_at);
        let Some(topic) = self.terms.topics.get(&request.route) else {
            let error = format!("the configuration has no route {}", request.route);
            return self.refuse(id, unroutable(request), DeadReason::Unroutable, error, hold);
        };
        let (metrics, route) = (self.terms.metrics.clone(), request.route.clone());
        let signature = (&self.terms.keys, Kind::Request);
        let (record, span) = outgoing(topic, request, signature, |record| record.to_headers());
        match self.producer.enqueue(&record) {
            Ok(acknowledgement) => {
                let stub = record.into();
                let sent = acknowledgement.map(move |result| {
                    note(&span, &result);
                    if result.is_ok() {
                        metrics.published(&route);
                    }
                    Sent { id, accepted_at, stub, hold, result }
                });
                self.sent.push(sent.boxed());
            }
            Err(error) if error.is_refusal() => {
                self.refuse(id, record.into(), DeadReason::Unpublishable, error.to_string(), hold);
            }
            Err(error) => self.failure = Some(error.into()),
        }
    }

    /// Waits until nothing is under way and all that was published is out of the table.
    async fn settle_all(&mut self) -> Result<(), Stopped> {
        let hard = self.terms.hard.clone();
        while !self.sent.is_empty() {
            if let Some(sent) = hard.run_until_cancelled(self.sent.next()).await.ok_or(Stopped)? {
                self.settle(sent);
            }
        }
        let (answer, flushed) = oneshot::channel();
        self.settled.send(Settled::Flush(answer)).map_err(|_| Stopped)?;
        hard.run_until_cancelled(flushed).await.and_then(Result::ok).ok_or(Stopped)
    }

    fn settle(&mut self, sent: Sent) {
        match sent.result {
            Ok(_) => {
                // Without a remover the process is ending, and the row stays.
                let _ = self.settled.send(Settled::Published(sent.id, sent.accepted_at, sent.hold));
            }
            Err(error) if error.is_refusal() => {
                self.refuse(sent.id, sent.stub, DeadReason::Unpublishable, error.to_string(), sent.hold);
            }
            Err(error) => self.failure = Some(error.into()),
        }
    }

    fn refuse(&self, id: RequestId, stub: Stub, reason: DeadReason, error: String, hold: Hold) {
        let _ = self.settled.send(Settled::Refused(Refused { id, stub, reason, error, hold }));
    }
}
