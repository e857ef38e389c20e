//! This node's id: leased in the database, renewed while the process lives, released at its end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use throughline_clock::Bound;
use throughline_settings::{NodeIds, Settings};
use throughline_snowflake::{NodeId, RequestId};
use throughline_store::{Store, StoreError, nodes, outbox};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, Warning};
use crate::error::StartError;
use crate::publisher::QueueState;

const TAKEOVER_FAILED: Warning =
    Warning { event: "outbox.takeover_failed", message: "cannot take over the outboxes of expired nodes" };

/// The right to make ids under a node id, until the lease expires.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    row: nodes::Lease,
    term: Arc<Mutex<Term>>,
}

/// A moment on the clocks of this machine that cannot be set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// On Linux, this clock stops while the machine is suspended.
    process: Instant,
    /// This clock does not stop.
    machine: Duration,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { process: Instant::now(), machine: throughline_clock::since_boot() }
    }

    /// Returns the time elapsed since this moment, by the clock that has advanced further.
    fn elapsed(self) -> Duration {
        let now = Self::now();
        now.process.duration_since(self.process).max(now.machine.saturating_sub(self.machine))
    }
}

/// The last term that the database granted.
#[derive(Debug, Clone, Copy)]
struct Term {
    /// When this process asked for it.
    asked: Moment,
    /// When the answer arrived.
    answered: Moment,
    lasts: Duration,
    /// The database's clock when it granted the term.
    granted_at: DateTime<Utc>,
}

impl Lease {
    fn new(row: nodes::Lease, asked: Moment, lasts: Duration) -> Self {
        let term = Term { asked, answered: Moment::now(), lasts, granted_at: row.granted_at };
        Self { row, term: Arc::new(Mutex::new(term)) }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.row.node
    }

    /// Returns the lease as the database knows it; the database checks it in each statement that writes under it.
    pub(crate) fn row(&self) -> &nodes::Lease {
        &self.row
    }

    /// Returns when the lease of the id's previous holder ended: no id of this process may be older.
    pub(crate) fn not_before(&self) -> DateTime<Utc> {
        self.row.not_before
    }

    /// Returns whether no other process can hold the node id yet.
    pub(crate) fn is_valid(&self) -> bool {
        let Term { asked, lasts, .. } = self.term();
        asked.elapsed() < lasts
    }

    /// Returns whether an id of this time is less than an hour ahead of the database's clock.
    pub(crate) fn allows(&self, id_of: DateTime<Utc>) -> bool {
        self.latest().is_none_or(|now| id_of < now + nodes::AHEAD)
    }

    pub(crate) fn extend(&self, asked: Moment, lasts: Duration, granted_at: DateTime<Utc>) {
        let term = Term { asked, answered: Moment::now(), lasts, granted_at };
        *self.term.lock().unwrap_or_else(PoisonError::into_inner) = term;
    }

    fn term(&self) -> Term {
        *self.term.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the lease three times in a term, until `done`.
    async fn keep<F: Future<Output = Result<Option<DateTime<Utc>>, StoreError>>>(
        &self,
        term: Duration,
        done: &CancellationToken,
        renew: impl Fn() -> F,
    ) -> Result<(), LeaseError> {
        let mut is_failing = false;
        loop {
            let asked = Moment::now();
            // A database that disappears without closing its connection must not end the renewals.
            let answer = match timeout(term, renew()).await {
                Ok(Ok(Some(granted_at))) => Ok(granted_at),
                Ok(Ok(None)) => return Err(LeaseError::Lost(self.node())),
                Ok(Err(error)) if !error.is_about_data() => Err(error.to_string()),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => Err(format!("the database did not answer within {term:?}")),
            };
            match &answer {
                Ok(granted_at) => self.extend(asked, term, *granted_at),
                Err(error) if !is_failing => {
                    tracing::warn!(
                        event = "lease.renewal_failed",
                        error,
                        "cannot renew the lease of the node id; retrying"
                    );
                }
                Err(_) => {}
            }
            if is_failing && answer.is_ok() {
                tracing::info!(event = "lease.renewed", "renewed the lease of the node id again");
            }
            is_failing = answer.is_err();
            // The lease counts from when the renewal was sent: after a slow answer, little of it may be left.
            if done.run_until_cancelled(sleep_until(asked.process + term / 3)).await.is_none() {
                return Ok(());
            }
        }
    }
}

/// The time by the database's clock, derived from the lease: never ahead of it, but behind it by the time that the
/// answer took to arrive.
impl Bound for Lease {
    fn latest(&self) -> Option<DateTime<Utc>> {
        let Term { answered, granted_at, .. } = self.term();
        let elapsed = TimeDelta::from_std(answered.elapsed()).unwrap_or(TimeDelta::MAX);
        granted_at.checked_add_signed(elapsed)
    }
}

/// Why the lease cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error(
        "the lease of node id {0} expired and another process took it over; new ids could collide with those of \
             that process"
    )]
    Lost(NodeId),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Leases one of the configured node ids.
///
/// # Errors
/// If no id is free, or if the database cannot be queried.
pub(crate) async fn acquire(store: &Store, settings: &Settings, holder: &str) -> Result<Lease, StartError> {
    let NodeIds { first, last } = settings.ingest.node_ids;
    let id = |number: u16| NodeId::try_from(number).map_err(|error| StartError::NodeIds(error.to_string()));
    let asked = Moment::now();
    let row = nodes::acquire(store, holder, settings.ingest.node_lease, &(id(first)?..=id(last)?)).await?;
    let row = row.ok_or_else(|| StartError::NodesTaken(settings.ingest.node_ids.to_string()))?;
    tracing::info!(event = "lease.acquired", node = %row.node, epoch = row.epoch, "leased a node id");
    Ok(Lease::new(row, asked, settings.ingest.node_lease))
}

/// Keeps the lease, and takes over the outbox rows of expired nodes.
pub(crate) struct LeaseKeeper {
    pub(crate) store: Store,
    /// The same database on a connection that nothing else uses: the lease is renewed even while all other connections
    /// are busy.
    pub(crate) renewals: Store,
    pub(crate) lease: Lease,
    pub(crate) holder: String,
    pub(crate) term: Duration,
    pub(crate) queue_state: Arc<QueueState>,
    /// Cancelled once everything that needs the lease is done.
    pub(crate) done: CancellationToken,
}

impl LeaseKeeper {
    /// Runs until everything is done, then releases the lease.
    pub(crate) async fn run(self) -> Result<(), LeaseError> {
        let connection = self.renewals.connection();
        let renew = || nodes::renew(connection, &self.lease.row, &self.holder, self.term);
        tokio::try_join!(self.lease.keep(self.term, &self.done, renew), self.take_over_expired())?;
        Ok(nodes::release(connection, &self.lease.row, &self.holder).await?)
    }

    /// Runs as often as the lease is renewed, in parallel: a slow statement here must not delay a renewal.
    async fn take_over_expired(&self) -> Result<(), LeaseError> {
        let mut oldest = None;
        let mut backoff = Backoff::default();
        loop {
            let failure = match timeout(self.term, self.step(&mut oldest)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) if !error.is_about_data() => Some(error.to_string()),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => Some(format!("the database did not answer within {:?}", self.term)),
            };
            let goes_on = if let Some(error) = failure {
                backoff.pause(&self.done, TAKEOVER_FAILED, &error).await
            } else {
                backoff.reset();
                self.done.run_until_cancelled(sleep(self.term / 3)).await.is_some()
            };
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Takes over the outboxes of expired nodes, and looks for a row of this node that the publisher may have missed.
    async fn step(&self, oldest: &mut Option<RequestId>) -> Result<(), StoreError> {
        if !self.lease.is_valid() {
            return Ok(());
        }
        let connection = self.store.connection();
        for gone in outbox::nodes_that_are_gone(connection, self.lease.row()).await? {
            while let taken_over @ 1.. = outbox::take_over(connection, self.lease.row(), gone).await? {
                tracing::info!(
                    event = "outbox.taken_over", requests = taken_over, node = %gone,
                    "took over the outbox of an expired node"
                );
                self.queue_state.look_in_the_table();
            }
        }
        // The row was already the oldest at the previous check: its commit may have become visible only after its
        // client got the answer that the database is unreachable.
        let was = std::mem::replace(oldest, outbox::oldest(connection, self.lease.node()).await?);
        if oldest.is_some() && *oldest == was {
            self.queue_state.look_in_the_table();
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::future::pending;

    use throughline_clock::Clock;

    use super::*;

    const TERM: Duration = Duration::from_secs(30);

    /// A lease that expires immediately.
    pub(crate) fn lease() -> Lease {
        let at = Clock::system().now();
        let lease = nodes::Lease {
            granted_at: at,
            expires_at: at,
            ..throughline_testkit::lease(7.try_into().unwrap())
        };
        Lease::new(lease, Moment::now(), Duration::ZERO)
    }

    #[test]
    fn a_lease_expires_while_the_machine_is_suspended() {
        let lease = lease();
        let (now, hour) = (Moment::now(), Duration::from_hours(1));
        lease.extend(now, hour, DateTime::UNIX_EPOCH);
        assert!(lease.is_valid());
        // The machine's clock has advanced, that of the process has not.
        let Some(machine) = now.machine.checked_sub(hour) else { return };
        lease.extend(Moment { machine, ..now }, hour, DateTime::UNIX_EPOCH);
        assert!(!lease.is_valid());
    }

    #[test]
    fn ids_may_be_less_than_an_hour_ahead_of_the_database() {
        let lease = lease();
        let at = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        lease.extend(Moment::now(), TERM, at);
        assert!(lease.allows(at - TimeDelta::days(300)) && lease.allows(at + TimeDelta::minutes(59)));
        assert!(!lease.allows(at + TimeDelta::minutes(61)));
    }

    #[test]
    fn a_clock_that_is_ahead_shows_the_time_of_the_database() {
        let (lease, at) = (lease(), DateTime::from_timestamp(1_767_225_600, 0).unwrap());
        lease.extend(Moment::now(), TERM, at);
        let behind = Clock::manual(at - TimeDelta::hours(1));
        assert_eq!(behind.clone().bounded(lease.clone()).now(), behind.now());
        let ahead = Clock::manual(at + TimeDelta::minutes(15)).bounded(lease.clone());
        assert!((at..at + TimeDelta::minutes(1)).contains(&ahead.now()));
        // The database's clock is put forward.
        lease.extend(Moment::now(), TERM, at + TimeDelta::minutes(10));
        assert!(ahead.now() >= at + TimeDelta::minutes(10));
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// Returns when the lease asks for renewals, and whether it is valid at `end`. The database takes `answers` seconds
    /// for each answer, and then never answers again.
    async fn kept(answers: &[u64], end: u64) -> (Vec<u64>, bool) {
        let (lease, began, asked) = (lease(), Instant::now(), RefCell::new(Vec::new()));
        let renew = || {
            let answer = answers.get(asked.borrow().len());
            asked.borrow_mut().push(began.elapsed().as_secs());
            async move {
                match answer {
                    Some(&after) => sleep(seconds(after)).await,
                    None => pending().await,
                }
                Ok(Some(DateTime::UNIX_EPOCH))
            }
        };
        let done = CancellationToken::new();
        let kept = timeout(seconds(end), lease.keep(TERM, &done, renew)).await;
        assert!(kept.is_err(), "it goes on");
        (asked.take(), lease.is_valid())
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_renewed_three_times_in_a_term() {
        assert_eq!(kept(&[0; 5], 45).await, (vec![0, 10, 20, 30, 40], true));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_late_response_a_lease_is_renewed_before_it_expires() {
        assert_eq!(kept(&[0, 28, 0], 45).await, (vec![0, 10, 38], true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_counts_from_its_request() {
        assert_eq!(kept(&[0, 28], 39).await, (vec![0, 10, 38], true));
        assert_eq!(kept(&[0, 28], 41).await, (vec![0, 10, 38], false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_response_does_not_end_the_renewals() {
        assert_eq!(kept(&[0, 1000, 0], 39).await, (vec![0, 10], false));
        assert_eq!(kept(&[0, 1000, 0], 45).await, (vec![0, 10, 40], true));
    }

    #[tokio::test(start_paused = true)]
    async fn renewals_end_at_shutdown_or_when_another_process_has_the_lease() {
        let done = CancellationToken::new();
        done.cancel();
        let keep = async |renewed| lease().keep(TERM, &done, async || Ok(renewed)).await;
        assert!(keep(Some(DateTime::UNIX_EPOCH)).await.is_ok());
        assert!(matches!(keep(None).await, Err(LeaseError::Lost(_))));
    }
}
