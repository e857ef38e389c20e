//! Sees what is committed into Kafka, in the order of ids.
//!
//! As a rule straight from memory. After an outage, when memory's bounded tail ran over, and for a
//! node that is gone, from the outbox table until that is empty, then from memory again
//! ([`handover`] says why nothing falls between the two).

mod handover;
mod removal;
mod send;
#[cfg(test)]
mod tests;
mod window;

use std::collections::BTreeMap;
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
use throughline_messages::DeadReason;
use throughline_snowflake::{NodeId, RequestId};
use throughline_store::{OutboxRequest, Store, StoreError, outbox};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::handover::{Fresh, Source};
pub(crate) use self::handover::{Gate, Handover};
use self::removal::{Remover, Settled};
use self::send::unroutable;
pub(crate) use self::send::{note, outgoing};
use self::window::Hold;
pub(crate) use self::window::Window;
use crate::backoff::Backoff;
use crate::metrics::Metrics;
use crate::refusals::{DeadLetters, Stub};

/// How long the writer may be kept waiting for a look into the table.
const GATED_READ: Duration = Duration::from_secs(1);

/// What the publisher works with.
pub(crate) struct Terms {
    pub(crate) node: NodeId,
    /// Each route's topic.
    pub(crate) topics: BTreeMap<String, String>,
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
    failure: Option<SendError>,
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
    /// It is empty, and commits come from memory.
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
            let flow = match self.empty_the_table().await? {
                Ok(()) => self.follow_the_writer().await,
                Err(Stopped) => ControlFlow::Break(()),
            };
            if flow.is_break() {
                return Ok(());
            }
        }
    }

    /// Publishes from memory, as it comes. Ends when it is the table's turn, or for good.
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
        // From here on nothing comes from memory; what is still there is in the table too.
        *gate.source().await = Source::Table;
        while self.fresh.try_recv().is_ok() {}
        ControlFlow::Continue(())
    }

    /// Publishes page after page from the table, the next one while the last is under way, until the
    /// table is empty while nobody commits.
    async fn empty_the_table(&mut self) -> Result<Result<(), Stopped>, StoreError> {
        let mut backoff = Backoff::default();
        let hard = self.terms.hard.clone();
        let mut after = None;
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
            let page = match self.next_page(after).await {
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
            // What was taken over meanwhile may stand before the rows that were read last.
            after = page.last().map(|request| request.id);
            if self.publish(page).await.is_err() {
                return Ok(Err(Stopped));
            }
            if self.failure.is_some() {
                after = None;
            }
        }
    }

    /// The next rows of the table. Its end comes only after it was found empty, from the beginning,
    /// while nobody commits; from then on commits come from memory.
    async fn next_page(&mut self, after: Option<RequestId>) -> Result<Page, StoreError> {
        let rows = self.read_page(after).await?;
        if !rows.is_empty() || after.is_some() {
            return Ok(Page::Rows(rows));
        }
        let gate = Arc::clone(&self.gate);
        let mut source = gate.source().await;
        // The writer waits meanwhile: better to try again than to have it wait for long.
        match timeout(GATED_READ, self.read_page(None)).await {
            Ok(Ok(rows)) if rows.is_empty() => {
                *source = Source::Memory;
                Ok(Page::End)
            }
            Ok(rows) => rows.map(Page::Rows),
            Err(_) => Ok(Page::Rows(Vec::new())),
        }
    }

    async fn read_page(&mut self, after: Option<RequestId>) -> Result<Vec<OutboxRequest>, StoreError> {
        let Terms { node, page_rows, page_bytes, .. } = self.terms;
        outbox::pending(self.store.connection(), node, after, page_rows, page_bytes).await
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

    /// Waits for a share of the window, which what is settled meanwhile sets free.
    async fn hold(&mut self, request: &OutboxRequest) -> Result<Hold, Stopped> {
        let window = Arc::clone(&self.window);
        let mut hold = pin!(window.hold(request.id, request.body.len()));
        loop {
            tokio::select! {
                () = self.terms.hard.cancelled() => return Err(Stopped),
                hold = &mut hold => return hold.ok_or(Stopped),
                Some(sent) = self.sent.next(), if !self.sent.is_empty() => self.settle(sent),
            }
        }
    }

    /// Hands a record to librdkafka, which keeps the order from there. What is not taken now is still
    /// in the table, and nothing may overtake it.
    fn enqueue(&mut self, request: OutboxRequest, hold: Hold) {
        let (id, accepted_at) = (request.id, request.accepted_at);
        let Some(topic) = self.terms.topics.get(&request.route) else {
            let error = format!("the configuration has no route {}", request.route);
            return self.refuse(id, unroutable(request), DeadReason::Unroutable, error, hold);
        };
        let (metrics, route) = (self.terms.metrics.clone(), request.route.clone());
        let (record, span) = outgoing(topic, request, |record| record.to_headers());
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
            Err(error) => self.failure = Some(error),
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
            Err(error) => self.failure = Some(error),
        }
    }

    fn refuse(&self, id: RequestId, stub: Stub, reason: DeadReason, error: String, hold: Hold) {
        tracing::error!(request_id = %id, %error, "a request cannot be published, its deliveries end dead");
        let _ = self.settled.send(Settled::Refused { id, stub, reason, error, hold });
    }
}
