//! Slow starts: destinations that cannot take all deliveries that wait for them, and the rate at which these are
//! released.
//!
//! A deferred delivery waits until its destination's slow start releases it. The exception is a delivery with a busy
//! key: it waits for its due time alone, because a busy key says nothing about the destination. A slow start that comes
//! from an open breaker or a failing token endpoint releases one delivery as a probe when its time comes. If the
//! destination answers meanwhile, the next batch is twice as large; if a limit is reached, half as large. For each
//! delivery that ends without a call, the slow start releases another one immediately. A slow start ends when no
//! delivery waits for it.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, RuntimeErr};
use throughline_messages::DeferralCause;

use crate::delivery_key::DeliveryKey;
use crate::dialect::{self, Dialect};
use crate::error::StoreError;
use crate::index_predicates;
use crate::operation::{Operation, Session};
use crate::requests::number;
use crate::rows::Rows;
use crate::store::Store;

/// Size of the first batch after a limit was reached. It is large because the destination is healthy and takes as many
/// as it can.
const BATCH_AT_LIMIT: i32 = 64;
/// Maximum size of one batch.
const MOST: i32 = 4096;
/// How long it takes until the outcomes of a batch are known.
const PACE: TimeDelta = TimeDelta::seconds(1);

/// The effects of one batch of reports on their destinations.
#[derive(Debug, Default)]
pub(crate) struct Signals(BTreeMap<String, Item>);

#[derive(Debug, Clone, Copy, Default)]
struct Item {
    /// The earliest time at which a deferred delivery may be tried again.
    failing_until: Option<DateTime<Utc>>,
    full_until: Option<DateTime<Utc>>,
    /// The destination has answered a call.
    answered: bool,
    /// How many deliveries ended without a call.
    returned: i32,
}

impl Item {
    fn defers(&self) -> bool {
        self.failing_until.is_some() || self.full_until.is_some()
    }
}

impl Signals {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes that the destination has answered a call, whatever the answer.
    pub(crate) fn answered(&mut self, destination: &str) {
        self.0.entry(destination.to_owned()).or_default().answered = true;
    }

    /// Notes that a delivery ended without a call, which says nothing about the destination: the slow start may
    /// release another one instead.
    pub(crate) fn ended_without_a_call(&mut self, destination: &str) {
        self.0.entry(destination.to_owned()).or_default().returned += 1;
    }

    pub(crate) fn deferred(&mut self, destination: &str, cause: DeferralCause, due_at: DateTime<Utc>) {
        // Only this key waits, for its due time; that says nothing about the destination.
        if cause == DeferralCause::KeyBusy {
            return;
        }
        let item = self.0.entry(destination.to_owned()).or_default();
        let until =
            if cause == DeferralCause::Limit { &mut item.full_until } else { &mut item.failing_until };
        *until = Some(until.map_or(due_at, |until| until.min(due_at)));
    }
}

/// Starts, tightens and loosens slow starts.
pub(crate) async fn apply(connection: &impl ConnectionTrait, signals: &Signals) -> Result<(), StoreError> {
    let items: Vec<_> = signals.0.iter().map(|(name, item)| (name.as_str(), *item)).collect();
    let of = |is: fn(&Item) -> bool| items.iter().filter(|(_, item)| is(item)).copied().collect::<Vec<_>>();
    lock(connection, &of(|item| item.defers() || item.returned > 0)).await?;
    slow_start(connection, &of(Item::defers)).await?;
    give_back(connection, &of(|item| item.returned > 0 && item.failing_until.is_none())).await?;
    loosen(connection, &of(|item| item.answered && !item.defers())).await
}

/// Locks the rows that are about to change. Every transaction locks them in the order of destinations, which prevents
/// deadlocks.
async fn lock(connection: &impl ConnectionTrait, items: &[(&str, Item)]) -> Result<(), StoreError> {
    if items.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "SELECT 1 FROM slow_starts WHERE destination IN (SELECT destination FROM r) ORDER BY destination {}",
        Dialect::of(connection).lock_rows_of("slow_starts")
    );
    names(items).execute(connection, Vec::new(), &sql).await?;
    Ok(())
}

/// Starts or tightens slow starts. The rows stay locked until the transaction ends: otherwise [`release`] could find no
/// waiting delivery, and delete the slow start, before it sees the delivery that is deferred here.
async fn slow_start(connection: &impl ConnectionTrait, items: &[(&str, Item)]) -> Result<(), StoreError> {
    if items.is_empty() {
        return Ok(());
    }
    // A batch of one means that the destination fails.
    let ending = "ON CONFLICT (destination) DO UPDATE SET \
         batch = CASE WHEN excluded.batch = 1 THEN 1 ELSE slow_starts.batch END, \
         next_at = CASE WHEN excluded.batch = 1 THEN excluded.next_at ELSE slow_starts.next_at END, \
         signal = CASE WHEN excluded.batch = 1 THEN NULL ELSE 'limit' END, \
         returned = CASE WHEN excluded.batch = 1 THEN 0 ELSE slow_starts.returned END";
    Rows::of(items)
        .column("destination", |(name, _)| *name)
        .column("batch", |(_, item)| item.failing_until.map_or(BATCH_AT_LIMIT, |_| 1))
        .column("next_at", |(_, item)| item.failing_until.or(item.full_until))
        .insert(connection, "slow_starts", ending)
        .await
}

/// Adds deliveries to the batches of slow starts, at most as many as the last batch had.
async fn give_back(connection: &impl ConnectionTrait, items: &[(&str, Item)]) -> Result<(), StoreError> {
    if items.is_empty() {
        return Ok(());
    }
    let sql = "UPDATE slow_starts SET returned = CASE WHEN slow_starts.returned + r.returned < slow_starts.batch \
             THEN slow_starts.returned + r.returned ELSE slow_starts.batch END \
         FROM r WHERE slow_starts.destination = r.destination";
    names(items).column("returned", |(_, item)| item.returned).execute(connection, Vec::new(), sql).await?;
    Ok(())
}

/// Loosens slow starts. Locks no row in which progress is already noted, and waits for no lock: a transaction that has
/// locked the row is about to note the same, or has newer information.
async fn loosen(connection: &impl ConnectionTrait, items: &[(&str, Item)]) -> Result<(), StoreError> {
    if items.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "UPDATE slow_starts SET signal = 'progress' WHERE destination IN ( \
             SELECT destination FROM slow_starts \
             WHERE signal IS NULL AND destination IN (SELECT destination FROM r) {})",
        Dialect::of(connection).lock_free_rows()
    );
    names(items).execute(connection, Vec::new(), &sql).await?;
    Ok(())
}

fn names<'a>(items: &'a [(&str, Item)]) -> Rows<'a, (&'a str, Item)> {
    Rows::of(items).column("destination", |(name, _)| *name)
}

/// The next release of a slow start. It takes the longest overdue deliveries first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// When it takes place.
    pub at: DateTime<Utc>,
    /// How many deliveries it releases, unless a report changes that before.
    pub count: u32,
}

/// Returns the next release of a destination's slow start; `None` if there is no slow start.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn next(
    connection: &impl ConnectionTrait,
    destination: &str,
) -> Result<Option<Release>, StoreError> {
    let dialect = Dialect::of(connection);
    let sql = format!("SELECT {} FROM slow_starts WHERE destination = $1", SlowStart::COLUMNS);
    let statement = dialect.statement(sql, [dialect::text(destination).into()]);
    let slow_start = SlowStart::find_by_statement(statement).one(connection).await?;
    let release = |slow_start: SlowStart| {
        Ok(Release { at: slow_start.next_at, count: number("batch", slow_start.next_batch())? })
    };
    slow_start.map(release).transpose()
}

/// Returns the destinations that have a slow start.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn destinations(session: &impl Session) -> Result<Vec<String>, StoreError> {
    let connection = &Operation::new(session, "list_slow_starts");
    let statement =
        Dialect::of(connection).statement("SELECT destination FROM slow_starts ORDER BY destination", []);
    let rows = connection.query_all_raw(statement).await?;
    Ok(rows.iter().map(|row| row.try_get("", "destination")).collect::<Result<_, _>>()?)
}

#[derive(Debug, FromQueryResult)]
struct SlowStart {
    batch: i32,
    signal: Option<String>,
    next_at: DateTime<Utc>,
    returned: i32,
}

impl SlowStart {
    const COLUMNS: &str = "batch, signal, next_at, returned";

    fn next_batch(&self) -> i32 {
        match self.signal.as_deref() {
            Some("progress") => (self.batch * 2).min(MOST),
            Some("limit") => (self.batch / 2).max(1),
            _ => self.batch,
        }
    }
}

/// The slow start has a release due.
const IS_DUE: &str = "(next_at <= $1 OR returned > 0)";

/// Makes the deliveries that the due slow starts release due at `now`, and returns their number. Concurrent calls share
/// the slow starts. A slow start that another transaction keeps locked is skipped.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn release(store: &Store, now: DateTime<Utc>) -> Result<u64, StoreError> {
    let dialect = Dialect::of(store.connection());
    // On SQLite an open transaction blocks all other work, so it begins only if a slow start is due.
    let due =
        dialect.statement(format!("SELECT destination FROM slow_starts WHERE {IS_DUE}"), [dialect.time(now)]);
    let connection = Operation::new(store.connection(), "check_slow_starts");
    let due = connection.query_all_raw(due).await?;
    drop(connection);
    let mut released = 0;
    for slow_start in due {
        let destination: String = slow_start.try_get("", "destination")?;
        released += release_one(store, dialect, &destination, now).await?;
    }
    Ok(released)
}

/// Runs in a transaction of its own, so that no slow start delays another.
async fn release_one(
    store: &Store,
    dialect: Dialect,
    destination: &str,
    now: DateTime<Utc>,
) -> Result<u64, StoreError> {
    let transaction = store.begin().await?;
    let operation = Operation::new(&transaction, "release_deferred");
    let slow_start = match lock_due(&operation, dialect, destination, now).await {
        Ok(Some(slow_start)) => slow_start,
        Ok(None) => return Ok(0),
        Err(error) if is_locked(&error) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let is_due = slow_start.next_at <= now;
    let batch = if is_due { slow_start.next_batch() } else { slow_start.batch };
    let count = if is_due { batch.saturating_add(slow_start.returned) } else { slow_start.returned };
    let released = release_deliveries(&operation, dialect, destination, count, now).await?;
    // The minimum is the first entry of an index; for a test of existence PostgreSQL would search the table.
    let delete_unused = format!(
        "DELETE FROM slow_starts WHERE destination = $1 AND (SELECT min(due_at) FROM deliveries \
         WHERE deliveries.destination = $1 AND {}) IS NULL",
        index_predicates::FOR_ITS_DESTINATION
    );
    operation.execute_raw(dialect.statement(delete_unused, [destination.into()])).await?;
    let next_at = if is_due { now + PACE } else { slow_start.next_at };
    let signal = if is_due { None } else { slow_start.signal };
    let update =
        "UPDATE slow_starts SET batch = $2, signal = $3, next_at = $4, returned = 0 WHERE destination = $1";
    let parameters = [destination.into(), i64::from(batch).into(), signal.into(), dialect.time(next_at)];
    operation.execute_raw(dialect.statement(update, parameters)).await?;
    drop(operation);
    transaction.commit().await?;
    Ok(released)
}

/// Locks the slow start and reads it, unless it is no longer due. Waits for a recorder that is about to commit, for at
/// most [`LOCK_WAIT`]: if it skipped a locked row at once, it would skip the row for as long as outcomes keep arriving.
async fn lock_due(
    connection: &impl ConnectionTrait,
    dialect: Dialect,
    destination: &str,
    now: DateTime<Utc>,
) -> Result<Option<SlowStart>, DbErr> {
    if dialect == Dialect::Postgres {
        connection.execute_unprepared(LOCK_WAIT).await?;
    }
    let sql = format!(
        "SELECT {} FROM slow_starts WHERE {IS_DUE} AND destination = $2 {}",
        SlowStart::COLUMNS,
        dialect.lock_rows_of("slow_starts")
    );
    let statement = dialect.statement(sql, [dialect.time(now), destination.into()]);
    SlowStart::find_by_statement(statement).one(connection).await
}

/// Long enough for several recorders one after another. Applies until the end of the transaction, which waits for no
/// other lock.
const LOCK_WAIT: &str = "SET LOCAL lock_timeout = '200ms'";

/// Returns whether the wait for a lock timed out.
fn is_locked(error: &DbErr) -> bool {
    let DbErr::Query(RuntimeErr::SqlxError(error)) = error else { return false };
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}

/// Releases at most `count` deliveries, the longest overdue first.
async fn release_deliveries(
    connection: &impl ConnectionTrait,
    dialect: Dialect,
    destination: &str,
    count: i32,
    now: DateTime<Utc>,
) -> Result<u64, StoreError> {
    let sql = format!(
        "SELECT request_id, destination FROM deliveries \
         WHERE destination = $1 AND {} AND due_at <= $2 AND {} \
         ORDER BY due_at, request_id LIMIT {count} {}",
        index_predicates::FOR_ITS_DESTINATION,
        index_predicates::is_free(dialect),
        dialect.lock_free_rows()
    );
    let next =
        DeliveryKey::find_by_statement(dialect.statement(sql, [destination.into(), dialect.time(now)]));
    let next = next.all(connection).await?;
    let sql = "UPDATE deliveries SET deferred_by = NULL, due_at = $1, claimed_until = NULL \
         WHERE (request_id, destination) IN (SELECT request_id, destination FROM r)";
    DeliveryKey::rows(&next).execute(connection, vec![dialect.time(now)], sql).await
}
