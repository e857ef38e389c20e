//! Group commit: the writer commits together the requests that queued up during its previous commit.
//!
//! A request waits for at most one commit besides its own, except in a burst ([`waiting`] bounds the wait in overload).
//! If the database refuses a batch, the writer halves it until each bad request is alone, so that a bad request fails
//! no other.

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
use throughline_store::{DeliveryKey, NewRequest, OutboxRequest, Store, StoreError, Transaction, requests};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use self::plan::{Plan, Rows};
use self::queue::Queued;
pub(crate) use self::queue::{BodyPermit, CommitResult, Payload, Queue, Route, Submission};
use self::waiting::Waiting;
use crate::liveness::Pulse;
use crate::metrics::Metrics;
use crate::node::Lease;
use crate::publisher::PublishQueue;

/// Budget for bodies in memory, in bytes. Above it, ingest answers 503.
const BODY_BUDGET: u64 = 256 << 20;

/// The writer's settings, metrics and pulse.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// Maximum number of requests in one commit.
    pub(crate) batch: usize,
    /// Maximum number of queued requests.
    pub(crate) queue: usize,
    /// Maximum size of a body, in bytes.
    pub(crate) body_limit: u64,
    /// Maximum duration of a commit.
    pub(crate) deadline: Duration,
    /// How long an idempotency key is valid.
    pub(crate) idempotency_window: TimeDelta,
    /// Redelivery timeout: how long a delivery may go without an outcome.
    pub(crate) redelivery_timeout: TimeDelta,
    pub(crate) metrics: Metrics,
    pub(crate) pulse: Pulse,
}

/// Commits requests in the order of their ids.
pub(crate) struct Writer {
    waiting: Waiting,
    store: Store,
    lease: Lease,
    /// Why the last check permitted no new ids; `None` if it permitted them.
    refuses: Option<Refuses>,
    ids: Generator,
    clock: Clock,
    /// Never ahead of the database's clock: it decides whether an idempotency key that another ingest has set is
    /// expired.
    keys_clock: Clock,
    context: Context,
    publish_queue: PublishQueue,
}

impl Writer {
    pub(crate) fn new(
        store: Store,
        lease: Lease,
        clock: Clock,
        context: Context,
        publish_queue: PublishQueue,
    ) -> (Queue, Self) {
        let (queue, waiting) = Queue::new(context.queue, BODY_BUDGET.max(context.body_limit), context.batch);
        let ids = Generator::new(lease.node(), clock.clone(), lease.not_before());
        let keys_clock = clock.clone().bounded(lease.clone());
        (queue, Self { waiting, store, lease, refuses: None, ids, clock, keys_clock, context, publish_queue })
    }

    /// Runs until every [`Queue`] is dropped, so until all sources have ended, and all queued requests are answered.
    pub(crate) async fn run(mut self) -> Result<(), std::convert::Infallible> {
        while let Some(batch) = self.waiting.next_batch().await {
            self.step(batch).await;
        }
        Ok(())
    }

    /// Commits a batch and answers its requests.
    async fn step(&mut self, batch: Vec<Queued>) {
        let (submissions, answers): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|queued| (queued.submission, queued.answer)).unzip();
        for (result, answer) in self.commit(submissions).await.into_iter().zip(answers) {
            // A client that has disconnected does not undo its commit.
            let _ = answer.send(result);
        }
    }

    async fn commit(&mut self, submissions: Vec<Submission>) -> Vec<CommitResult> {
        if !self.may_make_ids() {
            return vec![CommitResult::Unavailable; submissions.len()];
        }
        let mut plan = Plan::new(submissions, &self.ids, self.clock.now(), &self.context);
        let rows = std::mem::take(&mut plan.rows);
        let results = self.commit_all(rows).await;
        plan.spread(&results)
    }

    /// Returns whether the writer may make ids; logs once when it may not, and once when it may again.
    fn may_make_ids(&mut self) -> bool {
        let refuses = if !self.lease.is_valid() {
            Some(Refuses::Unleased)
        } else if !self.lease.allows(self.ids.next_at()) {
            Some(Refuses::Ahead)
        } else {
            None
        };
        if self.refuses != refuses {
            log(refuses);
        }
        self.refuses = refuses;
        refuses.is_none()
    }

    /// Commits rows in as few transactions as possible while a bad row fails only itself: halves, in order, rows with
    /// data that the database refuses. An error that every row would meet ends the batch: the remaining rows are not
    /// tried.
    async fn commit_all(&self, rows: Rows) -> Vec<CommitResult> {
        let mut results = Vec::with_capacity(rows.requests.len());
        let mut left = vec![rows];
        while let Some(mut rows) = left.pop() {
            let requests = rows.requests.len();
            match self.commit_rows(&mut rows).await {
                Ok(committed) => results.extend(committed),
                Err(error) if requests > 1 && error.is_about_data() => {
                    tracing::warn!(
                        event = "requests.split", %error, requests,
                        "the database rejected a batch; committing its halves"
                    );
                    let second = rows.split_off(requests / 2);
                    left.extend([second, rows]);
                }
                Err(error) => {
                    let result = error.result();
                    results.extend(std::iter::repeat_n(result, requests));
                    if result != CommitResult::Failed {
                        let untried = left.iter().map(|rows| rows.requests.len()).sum();
                        results.extend(std::iter::repeat_n(result, untried));
                        break;
                    }
                }
            }
        }
        results
    }

    /// Commits rows in one transaction and, if it succeeds, queues their requests for the publisher.
    async fn commit_rows(&self, rows: &mut Rows) -> Result<Vec<CommitResult>, NotCommitted> {
        // The guard is held over the commit, so that the publisher learns of every commit either from memory or from
        // the table.
        let attempt = self.context.pulse.attempt();
        let mut commit_guard = self.publish_queue.commit_guard().await;
        let traces = rows.requests.iter().filter_map(|request| request.trace.as_ref());
        let span = span::commit(self.store.system(), rows.requests.len(), traces);
        let committed = self.transact(rows).instrument(span.clone()).await;
        if committed.as_ref().err().is_none_or(NotCommitted::was_answered) {
            attempt.answered();
        }
        match committed {
            Ok((results, deferred)) => {
                let new = to_publish(std::mem::take(&mut rows.requests), &results, deferred);
                self.context.metrics.committed(&new);
                commit_guard.committed(new);
                Ok(results)
            }
            Err(error) => {
                span::note(&span, &error);
                if matches!(error, NotCommitted::Unknown(_)) {
                    // The rows may be durable although the COMMIT was not answered: only the table shows it.
                    commit_guard.look_in_the_table();
                }
                Err(error)
            }
        }
    }

    async fn transact(&self, rows: &Rows) -> Result<(Vec<CommitResult>, Vec<DeliveryKey>), NotCommitted> {
        let deadline = Instant::now() + self.context.deadline;
        let overdue = |_| Cause::Overdue(self.context.deadline);
        let prepared = timeout_at(deadline, self.prepare(rows)).await.map_err(overdue);
        let (transaction, results, deferred) =
            prepared.map_err(NotCommitted::Unavailable)?.map_err(NotCommitted::before_commit)?;
        let committed = timeout_at(deadline, transaction.commit()).await.map_err(overdue);
        committed.map_err(NotCommitted::Unknown)?.map_err(NotCommitted::at_commit)?;
        Ok((results, deferred))
    }

    /// Claims the idempotency keys and inserts the new requests; also returns the deliveries that are deferred by
    /// the order.
    async fn prepare(
        &self,
        rows: &Rows,
    ) -> Result<(Transaction, Vec<CommitResult>, Vec<DeliveryKey>), StoreError> {
        let transaction = self.store.begin_within(self.context.deadline).await?;
        let results = claim(&transaction, rows, self.keys_clock.now()).await?;
        let new = new_of(&rows.requests, &results);
        let deferred = requests::insert(&transaction, self.lease.row(), &new).await?;
        Ok((transaction, results, deferred))
    }
}

/// Why the writer may not make ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refuses {
    /// Another process may own this node id once the lease has expired.
    Unleased,
    /// All later ids would have to be greater, and retention finds old rows by their ids.
    Ahead,
}

fn log(refuses: Option<Refuses>) {
    match refuses {
        Some(Refuses::Unleased) => tracing::warn!(
            event = "lease.expired",
            "the lease of the node id has expired; requests are refused until it is renewed"
        ),
        Some(Refuses::Ahead) => tracing::warn!(
            event = "clock.ahead",
            "this machine's clock is more than an hour ahead of the database's clock; requests are refused meanwhile: \
             correct the clocks"
        ),
        None => tracing::info!(
            event = "writer.resumed",
            "the lease of the node id is valid; requests are accepted again"
        ),
    }
}

/// Returns the new requests. Repeated ones are rare: without any, nothing is cloned.
fn new_of<'a>(requests: &'a [NewRequest], results: &[CommitResult]) -> Cow<'a, [NewRequest]> {
    if results.iter().all(is_new) {
        return requests.into();
    }
    let new = requests.iter().zip(results).filter(|(_, result)| is_new(result));
    new.map(|(request, _)| request.clone()).collect()
}

fn is_new(result: &CommitResult) -> bool {
    matches!(result, CommitResult::Accepted(_))
}

/// Returns the requests to publish: the new ones, each for the destinations at which its turn has come.
fn to_publish(
    requests: Vec<NewRequest>,
    results: &[CommitResult],
    deferred: Vec<DeliveryKey>,
) -> Vec<OutboxRequest> {
    let mut deferred_of: HashMap<RequestId, Vec<String>> = HashMap::new();
    for DeliveryKey { request_id, destination } in deferred {
        deferred_of.entry(request_id).or_default().push(destination);
    }
    let to_publish = |request: NewRequest| {
        let mut request = OutboxRequest::from(request);
        if let Some(deferred) = deferred_of.remove(&request.id) {
            request.destinations.retain(|destination| !deferred.contains(destination));
        }
        request
    };
    let new = requests.into_iter().zip(results).filter(|(_, result)| is_new(result));
    new.map(|(request, _)| request).map(to_publish).collect()
}

/// Why rows are not known to be committed.
#[derive(Debug, thiserror::Error)]
enum NotCommitted {
    /// The database refuses the rows. They are not committed, and a retry of all of them together would fail again.
    #[error(transparent)]
    Refused(StoreError),
    /// The database does not take the rows now. They are not committed: no COMMIT was sent.
    #[error(transparent)]
    Unavailable(Cause),
    /// A COMMIT was sent and not answered. The rows may be durable.
    #[error(transparent)]
    Unknown(Cause),
}

/// Why the database did not execute a statement.
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

    /// Returns whether a part of the rows may still be accepted.
    fn is_about_data(&self) -> bool {
        matches!(self, Self::Refused(error) if error.is_about_data())
    }

    fn was_answered(&self) -> bool {
        match self {
            Self::Refused(error)
            | Self::Unavailable(Cause::Store(error))
            | Self::Unknown(Cause::Store(error)) => error.was_answered(),
            Self::Unavailable(Cause::Overdue(_)) | Self::Unknown(Cause::Overdue(_)) => false,
        }
    }

    /// Returns the error class, for the span.
    fn kind(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Unavailable(Cause::Store(_)) | Self::Unknown(Cause::Store(_)) => "unavailable",
            Self::Unavailable(Cause::Overdue(_)) | Self::Unknown(Cause::Overdue(_)) => "timeout",
        }
    }

    /// Returns the result of the requests, and logs the error, once.
    fn result(&self) -> CommitResult {
        match self {
            Self::Refused(error) => {
                tracing::error!(event = "requests.store_failed", %error, "cannot store requests");
                if error.is_about_data() { CommitResult::Failed } else { CommitResult::Misconfigured }
            }
            Self::Unavailable(cause) | Self::Unknown(cause) => {
                tracing::warn!(
                    event = "requests.commit_failed", error = %cause,
                    "cannot commit requests: the database is unavailable"
                );
                CommitResult::Unavailable
            }
        }
    }
}

/// Finds records that are already adopted, so that they are not adopted again. If two ingests adopt the same record at
/// the same time, the second cannot insert its row; its retry finds the first row.
async fn find_adopted(
    session: &impl throughline_store::Session,
    new: &[NewRequest],
    results: &mut [CommitResult],
) -> Result<(), StoreError> {
    let identity = |request: &NewRequest| request.origin.as_ref().map(|adopted| adopted.identity);
    let identities: Vec<_> = new.iter().filter_map(identity).collect();
    if identities.is_empty() {
        return Ok(());
    }
    let adopted = requests::adopted(session, &identities).await?;
    for (request, result) in new.iter().zip(results) {
        if let Some(id) = identity(request).and_then(|identity| adopted.get(&identity)) {
            *result = CommitResult::Repeated(*id);
        }
    }
    Ok(())
}

async fn claim(
    session: &impl throughline_store::Session,
    rows: &Rows,
    now: DateTime<Utc>,
) -> Result<Vec<CommitResult>, StoreError> {
    let mut results: Vec<_> =
        rows.requests.iter().map(|request| CommitResult::Accepted(request.id)).collect();
    let (claimants, claims): (Vec<usize>, Vec<Claim>) =
        rows.claims.iter().enumerate().filter_map(|(index, claim)| Some((index, claim.clone()?))).unzip();
    find_adopted(session, &rows.requests, &mut results).await?;
    if claims.is_empty() {
        return Ok(results);
    }
    let decided = idempotency::claim(session, &claims, now).await?;
    for (index, decision) in claimants.into_iter().zip(decided) {
        results[index] = match decision {
            idempotency::ClaimResult::New => CommitResult::Accepted(rows.requests[index].id),
            idempotency::ClaimResult::Repeats(id) => CommitResult::Repeated(id),
            idempotency::ClaimResult::Conflicts => CommitResult::KeyReused,
            idempotency::ClaimResult::InFlight => CommitResult::InFlight,
        };
    }
    Ok(results)
}
