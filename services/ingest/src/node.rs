//! This node's id: leased in the database, renewed while the process lives, given back at its end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use throughline_config::{NodeIds, Settings};
use throughline_snowflake::{NodeId, RequestId};
use throughline_store::{Store, StoreError, nodes, outbox};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::error::StartError;
use crate::publisher::Gate;

/// The right to make ids under a node id, until it runs out.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    row: nodes::Lease,
    term: Arc<Mutex<Term>>,
}

/// A moment by the clocks of this machine that no one sets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// On Linux it stands still while the machine is suspended.
    process: Instant,
    /// It does not.
    machine: Duration,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { process: Instant::now(), machine: throughline_clock::since_boot() }
    }

    /// How long ago it was: by the clock that has gone further.
    fn elapsed(self) -> Duration {
        let now = Self::now();
        now.process.duration_since(self.process).max(now.machine.saturating_sub(self.machine))
    }
}

/// What the database has granted last.
#[derive(Debug, Clone, Copy)]
struct Term {
    /// When it was asked to.
    asked: Moment,
    lasts: Duration,
    /// Its clock, when it did.
    granted_at: DateTime<Utc>,
}

impl Lease {
    fn new(row: nodes::Lease, asked: Moment, lasts: Duration) -> Self {
        let granted_at = row.granted_at;
        Self { row, term: Arc::new(Mutex::new(Term { asked, lasts, granted_at })) }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.row.node
    }

    /// The lease as the database knows it, which checks it in each statement that writes under it.
    pub(crate) fn row(&self) -> &nodes::Lease {
        &self.row
    }

    /// When the lease of the id's former holder ended: no id of ours may be older.
    pub(crate) fn not_before(&self) -> DateTime<Utc> {
        self.row.not_before
    }

    /// Whether no other process can have the node id yet.
    pub(crate) fn is_valid(&self) -> bool {
        let Term { asked, lasts, .. } = self.term();
        asked.elapsed() < lasts
    }

    /// Whether an id of this time is less than an hour ahead of the database's clock.
    pub(crate) fn allows(&self, id_of: DateTime<Utc>) -> bool {
        let Term { asked, granted_at, .. } = self.term();
        let elapsed = TimeDelta::from_std(asked.elapsed()).unwrap_or(TimeDelta::MAX);
        granted_at.checked_add_signed(elapsed).is_none_or(|now| id_of < now + nodes::AHEAD)
    }

    pub(crate) fn extend(&self, asked: Moment, lasts: Duration, granted_at: DateTime<Utc>) {
        *self.term.lock().unwrap_or_else(PoisonError::into_inner) = Term { asked, lasts, granted_at };
    }

    fn term(&self) -> Term {
        *self.term.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has it renewed again and again, three times in a term, until all is done.
    async fn keep<F: Future<Output = Result<Option<DateTime<Utc>>, StoreError>>>(
        &self,
        term: Duration,
        done: &CancellationToken,
        renew: impl Fn() -> F,
    ) -> Result<(), LeaseError> {
        let mut is_away = false;
        loop {
            let asked = Moment::now();
            // A database that vanished without a word must not end the renewals.
            let answer = match timeout(term, renew()).await {
                Ok(Ok(Some(granted_at))) => Ok(granted_at),
                Ok(Ok(None)) => return Err(LeaseError::Lost(self.node())),
                Ok(Err(error)) if error.is_unavailable() => Err(error.to_string()),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => Err(format!("the database does not answer within {term:?}")),
            };
            match &answer {
                Ok(granted_at) => self.extend(asked, term, *granted_at),
                Err(error) if !is_away => {
                    tracing::warn!(
                        error,
                        "the lease of the node id cannot be renewed, trying until it can be"
                    );
                }
                Err(_) => {}
            }
            if is_away && answer.is_ok() {
                tracing::info!("the lease of the node id is renewed again");
            }
            is_away = answer.is_err();
            // The lease counts from when it was asked for: what a slow answer has left of it may be little.
            if done.run_until_cancelled(sleep_until(asked.process + term / 3)).await.is_none() {
                return Ok(());
            }
        }
    }
}

/// Why the lease cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error("the lease of node id {0} ran out and was taken over; ids made from now on could clash")]
    Lost(NodeId),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Leases one of the configured node ids.
///
/// # Errors
/// If none is free, or the database cannot be asked.
pub(crate) async fn acquire(store: &Store, settings: &Settings, holder: &str) -> Result<Lease, StartError> {
    let NodeIds { first, last } = settings.ingest.node_ids;
    let id = |number: u16| NodeId::try_from(number).map_err(|error| StartError::NodeIds(error.to_string()));
    let asked = Moment::now();
    let row = nodes::acquire(store, holder, settings.ingest.node_lease, &(id(first)?..=id(last)?)).await?;
    let row = row.ok_or_else(|| StartError::NodesTaken(settings.ingest.node_ids.to_string()))?;
    tracing::info!(node = %row.node, epoch = row.epoch, "node id leased");
    Ok(Lease::new(row, asked, settings.ingest.node_lease))
}

/// Keeps the lease, and takes over what nodes that are gone have left in the outbox.
pub(crate) struct Keeper {
    pub(crate) store: Store,
    /// The same database on a connection that nothing else uses: whatever keeps the others busy, the lease is renewed.
    pub(crate) renewals: Store,
    pub(crate) lease: Lease,
    pub(crate) holder: String,
    pub(crate) term: Duration,
    pub(crate) gate: Arc<Gate>,
    /// Everything that needs the lease is done.
    pub(crate) done: CancellationToken,
}

impl Keeper {
    /// Runs until all is done, and gives the lease back.
    pub(crate) async fn run(self) -> Result<(), LeaseError> {
        let connection = self.renewals.connection();
        let renew = || nodes::renew(connection, &self.lease.row, &self.holder, self.term);
        tokio::try_join!(self.lease.keep(self.term, &self.done, renew), self.tidy())?;
        Ok(nodes::release(connection, &self.lease.row, &self.holder).await?)
    }

    /// As often as the lease is renewed, beside it: what is slow here must not hold up a renewal.
    async fn tidy(&self) -> Result<(), LeaseError> {
        let mut oldest = None;
        let mut backoff = Backoff::default();
        loop {
            let trouble = match timeout(self.term, self.step(&mut oldest)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) if error.is_unavailable() => Some(error.to_string()),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => Some(format!("the database does not answer within {:?}", self.term)),
            };
            let goes_on = if let Some(error) = trouble {
                backoff
                    .pause(&self.done, "nobody can look for what nodes that are gone have left", &error)
                    .await
            } else {
                backoff.reset();
                self.done.run_until_cancelled(sleep(self.term / 3)).await.is_some()
            };
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Takes over, and looks for a row that nobody seems to care about.
    async fn step(&self, oldest: &mut Option<RequestId>) -> Result<(), StoreError> {
        if !self.lease.is_valid() {
            return Ok(());
        }
        let connection = self.store.connection();
        for gone in outbox::nodes_that_are_gone(connection, self.lease.row()).await? {
            while let taken_over @ 1.. = outbox::take_over(connection, self.lease.row(), gone).await? {
                tracing::info!(requests = taken_over, node = %gone, "took over the outbox of a node that is gone");
                self.gate.look_in_the_table();
            }
        }
        // A row that was the oldest a while ago: its commit may have become visible only after its
        // client was told that the database is away.
        let was = std::mem::replace(oldest, outbox::oldest(connection, self.lease.node()).await?);
        if oldest.is_some() && *oldest == was {
            self.gate.look_in_the_table();
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

    /// A lease that runs out at once.
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
    fn a_lease_runs_out_while_the_machine_is_suspended() {
        let lease = lease();
        let (now, hour) = (Moment::now(), Duration::from_hours(1));
        lease.extend(now, hour, DateTime::UNIX_EPOCH);
        assert!(lease.is_valid());
        // The machine's clock has gone on, that of the process has not.
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

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// When a database is asked for renewals that takes so many seconds for each answer, and then never answers
    /// again; and whether the lease is valid at `end`.
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
    async fn after_a_late_answer_a_lease_is_renewed_before_it_runs_out() {
        assert_eq!(kept(&[0, 28, 0], 45).await, (vec![0, 10, 38], true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_counts_from_when_it_was_asked_for() {
        assert_eq!(kept(&[0, 28], 39).await, (vec![0, 10, 38], true));
        assert_eq!(kept(&[0, 28], 41).await, (vec![0, 10, 38], false));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_never_comes_does_not_end_the_renewals() {
        assert_eq!(kept(&[0, 1000, 0], 39).await, (vec![0, 10], false));
        assert_eq!(kept(&[0, 1000, 0], 45).await, (vec![0, 10, 40], true));
    }

    #[tokio::test(start_paused = true)]
    async fn renewals_end_when_all_is_done_or_the_lease_is_somebody_elses() {
        let done = CancellationToken::new();
        done.cancel();
        let keep = async |renewed| lease().keep(TERM, &done, async || Ok(renewed)).await;
        assert!(keep(Some(DateTime::UNIX_EPOCH)).await.is_ok());
        assert!(matches!(keep(None).await, Err(LeaseError::Lost(_))));
    }
}
