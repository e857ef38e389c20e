//! Group commit: one writer commits together the requests that have queued up during its last commit.
//!
//! A request waits for at most one commit besides its own, unless requests come in bursts ([`waiting`] bounds the wait
//! in overload). A batch that the database refuses is halved until the bad requests are alone, so that a bad request
//! harms only itself.

mod plan;
mod queue;
mod span;
#[cfg(test)]
mod tests;
mod waiting;

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use throughline_clock::Clock;
use throughline_snowflake::{Generator, RequestId};
use throughline_store::idempotency::{self, Claim};
use throughline_store::{NewRequest, OutboxRequest, Store, StoreError, Transaction, requests};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::plan::{Plan, Rows};
use self::queue::Queued;
pub(crate) use self::queue::{Queue, Room, Submission, Verdict};
use self::waiting::Waiting;
use crate::liveness::Pulse;
use crate::metrics::Metrics;
use crate::node::Lease;
use crate::publisher::Handover;

/// Bytes of bodies that ingest holds for clients at once. Beyond, it answers 503.
const ROOM: u64 = 256 << 20;

/// How the writer works, from the configuration.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// Most requests in one commit.
    pub(crate) batch: usize,
    /// Most requests that wait.
    pub(crate) queue: usize,
    /// The largest body.
    pub(crate) body_limit: u64,
    /// How long a commit may take.
    pub(crate) deadline: Duration,
    /// How long an idempotency key stands.
    pub(crate) idempotency_window: TimeDelta,
    /// How long a delivery may stay silent.
    pub(crate) patience: TimeDelta,
    pub(crate) metrics: Metrics,
    pub(crate) pulse: Pulse,
}

/// Commits requests, in the order of their ids.
pub(crate) struct Writer {
    waiting: Waiting,
    store: Store,
    lease: Lease,
    /// Why no ids could be made when that was last looked at.
    refuses: Option<Refuses>,
    ids: Generator,
    clock: Clock,
    terms: Terms,
    handover: Handover,
}

impl Writer {
    pub(crate) fn new(
        store: Store,
        lease: Lease,
        clock: Clock,
        terms: Terms,
        handover: Handover,
    ) -> (Queue, Self) {
        let (queue, waiting) = Queue::new(terms.queue, ROOM.max(terms.body_limit), terms.batch);
        let ids = Generator::new(lease.node(), clock.clone(), lease.not_before());
        (queue, Self { waiting, store, lease, refuses: None, ids, clock, terms, handover })
    }

    /// Runs until every [`Queue`] is gone, or `closing` says that no client is served any more, and
    /// the requests that were queued by then are answered.
    pub(crate) async fn run(mut self, closing: CancellationToken) -> Result<(), std::convert::Infallible> {
        loop {
            let batch = if let Some(batch) = closing.run_until_cancelled(self.waiting.next_batch()).await {
                batch
            } else {
                self.waiting.close();
                self.waiting.next_batch().await
            };
            let Some(batch) = batch else { return Ok(()) };
            self.step(batch).await;
        }
    }

    /// Commits a batch and answers it.
    async fn step(&mut self, batch: Vec<Queued>) {
        let (submissions, answers): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|queued| (queued.submission, queued.answer)).unzip();
        for (verdict, answer) in self.commit(submissions).await.into_iter().zip(answers) {
            // A client that has gone away does not undo what was committed.
            let _ = answer.send(verdict);
        }
    }

    async fn commit(&mut self, submissions: Vec<Submission>) -> Vec<Verdict> {
        if !self.may_make_ids() {
            return vec![Verdict::Unavailable; submissions.len()];
        }
        let mut plan = Plan::new(submissions, &self.ids, self.clock.now(), &self.terms);
        let rows = std::mem::take(&mut plan.rows);
        let verdicts = self.commit_all(rows).await;
        plan.spread(&verdicts)
    }

    /// Whether ids may be made; says once why not, and once that they may again.
    fn may_make_ids(&mut self) -> bool {
        let refuses = if !self.lease.is_valid() {
            Some(Refuses::Unleased)
        } else if !self.lease.allows(self.ids.next_at()) {
            Some(Refuses::Ahead)
        } else {
            None
        };
        if self.refuses != refuses {
            if let Some(refuses) = refuses {
                tracing::warn!("{refuses}");
            } else {
                tracing::info!("the lease of the node id is valid, requests are accepted again");
            }
        }
        self.refuses = refuses;
        refuses.is_none()
    }

    /// Commits rows in as few transactions as it takes for a bad row to harm only itself: those that the database
    /// refuses together are halved, in order. Once the database does not answer, the rest is not tried.
    async fn commit_all(&self, rows: Rows) -> Vec<Verdict> {
        let mut verdicts = Vec::with_capacity(rows.requests.len());
        let mut left = vec![rows];
        while let Some(mut rows) = left.pop() {
            let requests = rows.requests.len();
            match self.commit_rows(&mut rows).await {
                Ok(committed) => verdicts.extend(committed),
                Err(error @ NotCommitted::Refused(_)) if requests > 1 => {
                    tracing::warn!(%error, requests, "the database refuses a batch, its halves are tried");
                    let second = rows.split_off(requests / 2);
                    left.extend([second, rows]);
                }
                Err(error) => {
                    let verdict = error.verdict();
                    let untried = left.iter().map(|rows| rows.requests.len()).sum::<usize>();
                    let failed = if verdict == Verdict::Unavailable { untried } else { 0 } + requests;
                    verdicts.extend(std::iter::repeat_n(verdict, failed));
                    if verdict == Verdict::Unavailable {
                        break;
                    }
                }
            }
        }
        verdicts
    }

    /// Commits rows in one transaction, and hands their requests to the publisher, unless it fails.
    async fn commit_rows(&self, rows: &mut Rows) -> Result<Vec<Verdict>, NotCommitted> {
        // Held over the commit, so that the publisher knows of every commit either from memory or
        // from the table.
        let attempt = self.terms.pulse.attempt();
        let mut turn = self.handover.turn().await;
        let traces = rows.requests.iter().filter_map(|request| request.trace.as_ref());
        let span = span::commit(self.store.system(), rows.requests.len(), traces);
        let committed = self.transact(rows).instrument(span.clone()).await;
        if committed.as_ref().err().is_none_or(NotCommitted::was_answered) {
            attempt.answered();
        }
        match committed {
            Ok((verdicts, held)) => {
                let new = to_publish(std::mem::take(&mut rows.requests), &verdicts, held);
                self.terms.metrics.committed(&new);
                turn.committed(new);
                Ok(verdicts)
            }
            Err(error) => {
                span::note(&span, &error);
                if matches!(error, NotCommitted::Unknown(_)) {
                    // They may be durable although no answer says so: only the table knows.
                    turn.look_in_the_table();
                }
                Err(error)
            }
        }
    }

    async fn transact(&self, rows: &Rows) -> Result<(Vec<Verdict>, Vec<Held>), NotCommitted> {
        let deadline = Instant::now() + self.terms.deadline;
        let overdue = |_| Cause::Overdue(self.terms.deadline);
        let prepared = timeout_at(deadline, self.prepare(rows)).await.map_err(overdue);
        let (transaction, verdicts, held) =
            prepared.map_err(NotCommitted::Unavailable)?.map_err(NotCommitted::before_commit)?;
        let committed = timeout_at(deadline, transaction.commit()).await.map_err(overdue);
        committed.map_err(NotCommitted::Unknown)?.map_err(NotCommitted::at_commit)?;
        Ok((verdicts, held))
    }

    /// Claims the idempotency keys and inserts the new requests; says also which of them are held, and where.
    async fn prepare(&self, rows: &Rows) -> Result<(Transaction, Vec<Verdict>, Vec<Held>), StoreError> {
        let transaction = self.store.begin_within(self.terms.deadline).await?;
        let verdicts = claim(&transaction, rows, self.clock.now()).await?;
        let new = new_of(&rows.requests, &verdicts);
        let held = requests::insert(&transaction, self.lease.row(), &new).await?;
        Ok((transaction, verdicts, held))
    }
}

/// Why no ids may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Refuses {
    /// Another node may own this node's id from then on.
    #[error("the lease of the node id has run out, requests are refused until it is renewed")]
    Unleased,
    /// All later ids have to be greater, and what is purged is found by them.
    #[error(
        "this clock is more than an hour ahead of the database's, requests are refused until it is not: set the clocks"
    )]
    Ahead,
}

/// A request, and a destination at which its turn has not come.
type Held = (RequestId, String);

/// What is new among requests. Repetitions are rare: without them, nothing is copied.
fn new_of<'a>(requests: &'a [NewRequest], verdicts: &[Verdict]) -> Cow<'a, [NewRequest]> {
    if verdicts.iter().all(is_new) {
        return requests.into();
    }
    let new = requests.iter().zip(verdicts).filter(|(_, verdict)| is_new(verdict));
    new.map(|(request, _)| request.clone()).collect()
}

fn is_new(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Accepted(_))
}

/// What is published of requests: the new ones; not for the destinations at which their turn has not come.
fn to_publish(requests: Vec<NewRequest>, verdicts: &[Verdict], held: Vec<Held>) -> Vec<OutboxRequest> {
    let mut held_of: HashMap<RequestId, Vec<String>> = HashMap::new();
    for (id, destination) in held {
        held_of.entry(id).or_default().push(destination);
    }
    let to_publish = |request: NewRequest| {
        let held = held_of.remove(&request.id).unwrap_or_default();
        OutboxRequest { held, ..OutboxRequest::from(request) }
    };
    let new = requests.into_iter().zip(verdicts).filter(|(_, verdict)| is_new(verdict));
    new.map(|(request, _)| request).map(to_publish).collect()
}

/// Why rows are not known to be committed.
#[derive(Debug, thiserror::Error)]
enum NotCommitted {
    /// The database refuses them. They are not committed, and never will be together.
    #[error(transparent)]
    Refused(StoreError),
    /// The database does not take them now. They are not committed: no COMMIT was sent.
    #[error(transparent)]
    Unavailable(Cause),
    /// A COMMIT was sent, and not answered. They may be durable.
    #[error(transparent)]
    Unknown(Cause),
}

/// Why the database does not do what it is asked.
#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Store(StoreError),
    #[error("the database did not answer within {0:?}")]
    Overdue(Duration),
}

impl NotCommitted {
    fn before_commit(error: StoreError) -> Self {
        if error.is_unavailable() { Self::Unavailable(Cause::Store(error)) } else { Self::Refused(error) }
    }

    fn at_commit(error: StoreError) -> Self {
        if error.is_unavailable() { Self::Unknown(Cause::Store(error)) } else { Self::Refused(error) }
    }

    fn was_answered(&self) -> bool {
        match self {
            Self::Refused(error)
            | Self::Unavailable(Cause::Store(error))
            | Self::Unknown(Cause::Store(error)) => error.was_answered(),
            Self::Unavailable(Cause::Overdue(_)) | Self::Unknown(Cause::Overdue(_)) => false,
        }
    }

    /// Its class, for the span.
    fn kind(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Unavailable(Cause::Store(_)) | Self::Unknown(Cause::Store(_)) => "unavailable",
            Self::Unavailable(Cause::Overdue(_)) | Self::Unknown(Cause::Overdue(_)) => "timeout",
        }
    }

    /// What becomes of the requests; logged here, once.
    fn verdict(&self) -> Verdict {
        match self {
            Self::Refused(error) => {
                tracing::error!(%error, "a request cannot be stored");
                if error.is_about_data() { Verdict::Failed } else { Verdict::Misconfigured }
            }
            Self::Unavailable(cause) | Self::Unknown(cause) => {
                tracing::warn!(error = %cause, "the database does not take requests");
                Verdict::Unavailable
            }
        }
    }
}

/// A record that is adopted already is not adopted again. Of two that adopt the same one at the same time, the second
/// cannot insert its row; tried once more, it finds the first.
async fn find_adopted(
    session: &impl throughline_store::Session,
    new: &[NewRequest],
    verdicts: &mut [Verdict],
) -> Result<(), StoreError> {
    let identity = |request: &NewRequest| request.origin.as_ref().map(|adopted| adopted.identity);
    let identities: Vec<_> = new.iter().filter_map(identity).collect();
    if identities.is_empty() {
        return Ok(());
    }
    let adopted = requests::adopted(session, &identities).await?;
    for (request, verdict) in new.iter().zip(verdicts) {
        if let Some(id) = identity(request).and_then(|identity| adopted.get(&identity)) {
            *verdict = Verdict::Repeated(*id);
        }
    }
    Ok(())
}

async fn claim(
    session: &impl throughline_store::Session,
    rows: &Rows,
    now: DateTime<Utc>,
) -> Result<Vec<Verdict>, StoreError> {
    let mut verdicts: Vec<_> = rows.requests.iter().map(|request| Verdict::Accepted(request.id)).collect();
    let (claimants, claims): (Vec<usize>, Vec<Claim>) =
        rows.claims.iter().enumerate().filter_map(|(index, claim)| Some((index, claim.clone()?))).unzip();
    find_adopted(session, &rows.requests, &mut verdicts).await?;
    if claims.is_empty() {
        return Ok(verdicts);
    }
    let decided = idempotency::claim(session, &claims, now).await?;
    for (index, decision) in claimants.into_iter().zip(decided) {
        verdicts[index] = match decision {
            idempotency::Verdict::New => Verdict::Accepted(rows.requests[index].id),
            idempotency::Verdict::Repeats(id) => Verdict::Repeated(id),
            idempotency::Verdict::Conflicts => Verdict::KeyReused,
            idempotency::Verdict::InFlight => Verdict::InFlight,
        };
    }
    Ok(verdicts)
}
