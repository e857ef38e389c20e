//! Destinations that cannot take all that waits for them, and how much of it is let go.
//!
//! A deferred delivery waits until its destination's hold lets it go; but for one whose key was busy, which waits
//! for its time alone, as it says nothing of its destination. A hold that comes from an open breaker
//! or a token endpoint that fails lets one delivery go, as a probe, once the time has come for it. When
//! the destination has answered since, twice as many are let go the next time; when a limit was met, half as
//! many. For each that ends without a call, another one goes at once in its place. A hold ends when nothing waits
//! behind it.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, RuntimeErr};
use throughline_messages::DeferralCause;

use crate::dialect::{self, Dialect};
use crate::error::StoreError;
use crate::operation::{Operation, Session};
use crate::requests::number;
use crate::rows::Rows;
use crate::store::Store;
use crate::waits;

/// How many are let go at first after a limit was met: there is no reason to be timid, it takes what it can.
const ALLOWANCE_AT_LIMIT: i32 = 64;
/// Most that are let go at once.
const MOST: i32 = 4096;
/// How long it takes to hear of what was let go.
const PACE: TimeDelta = TimeDelta::seconds(1);

/// What reports say of their destinations, in one batch.
#[derive(Debug, Default)]
pub(crate) struct News(BTreeMap<String, Item>);

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

impl News {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The destination has answered a call, whatever it said.
    pub(crate) fn answered(&mut self, destination: &str) {
        self.0.entry(destination.to_owned()).or_default().answered = true;
    }

    /// A delivery ended without a call, which says nothing of the destination: another one may go in its place.
    pub(crate) fn ended_without_a_call(&mut self, destination: &str) {
        self.0.entry(destination.to_owned()).or_default().returned += 1;
    }

    pub(crate) fn deferred(&mut self, destination: &str, cause: DeferralCause, due_at: DateTime<Utc>) {
        // It is one key that waits, for its time; of the destination that says nothing.
        if cause == DeferralCause::KeyBusy {
            return;
        }
        let item = self.0.entry(destination.to_owned()).or_default();
        let until =
            if cause == DeferralCause::Limit { &mut item.full_until } else { &mut item.failing_until };
        *until = Some(until.map_or(due_at, |until| until.min(due_at)));
    }
}

/// Has holds begin, tighten and loosen.
pub(crate) async fn hear(connection: &impl ConnectionTrait, news: &News) -> Result<(), StoreError> {
    let items: Vec<_> = news.0.iter().map(|(name, item)| (name.as_str(), *item)).collect();
    let of = |is: fn(&Item) -> bool| items.iter().filter(|(_, item)| is(item)).copied().collect::<Vec<_>>();
    lock(connection, &of(|item| item.defers() || item.returned > 0)).await?;
    hold(connection, &of(Item::defers)).await?;
    give_back(connection, &of(|item| item.returned > 0 && item.failing_until.is_none())).await?;
    loosen(connection, &of(|item| item.answered && !item.defers())).await
}

/// Locks the rows that are to be changed. Each transaction locks them in the order of destinations, so that two
/// cannot wait for each other.
async fn lock(connection: &impl ConnectionTrait, items: &[(&str, Item)]) -> Result<(), StoreError> {
    if items.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "SELECT 1 FROM holds WHERE destination IN (SELECT destination FROM r) ORDER BY destination {}",
        Dialect::of(connection).lock_rows_of("holds")
    );
    names(items).execute(connection, Vec::new(), &sql).await?;
    Ok(())
}

/// The row stays locked until the transaction ends: [`release`] must not find that none waits, and delete the hold,
/// before it can see the delivery that is deferred here.
async fn hold(connection: &impl ConnectionTrait, items: &[(&str, Item)]) -> Result<(), StoreError> {
    if items.is_empty() {
        return Ok(());
    }
    // An allowance of one says that the destination fails.
    let ending = "ON CONFLICT (destination) DO UPDATE SET \
         allowance = CASE WHEN excluded.allowance = 1 THEN 1 ELSE holds.allowance END, \
         next_at = CASE WHEN excluded.allowance = 1 THEN excluded.next_at ELSE holds.next_at END, \
         news = CASE WHEN excluded.allowance = 1 THEN NULL ELSE 'limit' END, \
         returned = CASE WHEN excluded.allowance = 1 THEN 0 ELSE holds.returned END";
    Rows::of(items)
        .column("destination", |(name, _)| *name)
        .column("allowance", |(_, item)| item.failing_until.map_or(ALLOWANCE_AT_LIMIT, |_| 1))
        .column("next_at", |(_, item)| item.failing_until.or(item.full_until))
        .insert(connection, "holds", ending)
        .await
}

/// No more than were let go.
async fn give_back(connection: &impl ConnectionTrait, items: &[(&str, Item)]) -> Result<(), StoreError> {
    if items.is_empty() {
        return Ok(());
    }
    let sql = "UPDATE holds SET returned = CASE WHEN holds.returned + r.returned < holds.allowance \
             THEN holds.returned + r.returned ELSE holds.allowance END \
         FROM r WHERE holds.destination = r.destination";
    names(items).column("returned", |(_, item)| item.returned).execute(connection, Vec::new(), sql).await?;
    Ok(())
}

/// Locks nothing where progress is known already, and waits for no lock: another transaction that holds it is about
/// to say the same, or knows better.
async fn loosen(connection: &impl ConnectionTrait, items: &[(&str, Item)]) -> Result<(), StoreError> {
    if items.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "UPDATE holds SET news = 'progress' WHERE destination IN ( \
             SELECT destination FROM holds WHERE news IS NULL AND destination IN (SELECT destination FROM r) {})",
        Dialect::of(connection).lock_free_rows()
    );
    names(items).execute(connection, Vec::new(), &sql).await?;
    Ok(())
}

fn names<'a>(items: &'a [(&str, Item)]) -> Rows<'a, (&'a str, Item)> {
    Rows::of(items).column("destination", |(name, _)| *name)
}

/// When a hold lets some of those go that wait behind it, the longest overdue first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// When.
    pub at: DateTime<Utc>,
    /// How many, if nothing else is heard until then.
    pub count: u32,
}

/// When and how many a destination's hold lets go next; `None` if there is no hold.
///
/// # Errors
/// If the database cannot be asked.
pub async fn next(
    connection: &impl ConnectionTrait,
    destination: &str,
) -> Result<Option<Release>, StoreError> {
    let dialect = Dialect::of(connection);
    let sql = format!("SELECT {} FROM holds WHERE destination = $1", Hold::COLUMNS);
    let statement = dialect.statement(sql, [dialect::text(destination).into()]);
    let hold = Hold::find_by_statement(statement).one(connection).await?;
    let release =
        |hold: Hold| Ok(Release { at: hold.next_at, count: number("allowance", hold.next_allowance())? });
    hold.map(release).transpose()
}

/// The destinations that have a hold.
///
/// # Errors
/// If the database cannot be asked.
pub async fn destinations(session: &impl Session) -> Result<Vec<String>, StoreError> {
    let connection = &Operation::new(session, "list_holds");
    let statement =
        Dialect::of(connection).statement("SELECT destination FROM holds ORDER BY destination", []);
    let rows = connection.query_all_raw(statement).await?;
    Ok(rows.iter().map(|row| row.try_get("", "destination")).collect::<Result<_, _>>()?)
}

#[derive(Debug, FromQueryResult)]
struct Hold {
    allowance: i32,
    news: Option<String>,
    next_at: DateTime<Utc>,
    returned: i32,
}

impl Hold {
    const COLUMNS: &str = "allowance, news, next_at, returned";

    fn next_allowance(&self) -> i32 {
        match self.news.as_deref() {
            Some("progress") => (self.allowance * 2).min(MOST),
            Some("limit") => (self.allowance / 2).max(1),
            _ => self.allowance,
        }
    }
}

/// A hold lets some go at this time.
const IS_DUE: &str = "(next_at <= $1 OR returned > 0)";

/// Lets go what the holds allow whose time has come: what is let go is due at `now`. Says how many were.
/// Several may call it at once and share the holds. A hold that another transaction keeps locked is left out.
///
/// # Errors
/// If the database cannot be asked.
pub async fn release(store: &Store, now: DateTime<Utc>) -> Result<u64, StoreError> {
    let dialect = Dialect::of(store.connection());
    // On SQLite a transaction keeps everybody else waiting, so it is not begun for nothing.
    let due = dialect.statement(format!("SELECT destination FROM holds WHERE {IS_DUE}"), [dialect.time(now)]);
    let connection = Operation::new(store.connection(), "look_at_holds");
    let due = connection.query_all_raw(due).await?;
    drop(connection);
    let mut released = 0;
    for hold in due {
        let destination: String = hold.try_get("", "destination")?;
        released += release_one(store, dialect, &destination, now).await?;
    }
    Ok(released)
}

/// In a transaction of its own, so that no hold keeps another one waiting.
async fn release_one(
    store: &Store,
    dialect: Dialect,
    destination: &str,
    now: DateTime<Utc>,
) -> Result<u64, StoreError> {
    let transaction = store.begin().await?;
    let operation = Operation::new(&transaction, "release_held");
    let hold = match lock_due(&operation, dialect, destination, now).await {
        Ok(Some(hold)) => hold,
        Ok(None) => return Ok(0),
        Err(error) if is_locked(&error) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let is_due = hold.next_at <= now;
    let allowance = if is_due { hold.next_allowance() } else { hold.allowance };
    let count = if is_due { allowance.saturating_add(hold.returned) } else { hold.returned };
    let released = let_go(&operation, dialect, destination, count, now).await?;
    // The smallest one is the first of an index; whether there is any, PostgreSQL would look for in the table.
    let nobody_waits = format!(
        "DELETE FROM holds WHERE destination = $1 AND (SELECT min(due_at) FROM deliveries \
         WHERE deliveries.destination = $1 AND {}) IS NULL",
        waits::FOR_ITS_DESTINATION
    );
    operation.execute_raw(dialect.statement(nobody_waits, [destination.into()])).await?;
    let next_at = if is_due { now + PACE } else { hold.next_at };
    let news = if is_due { None } else { hold.news };
    let goes_on =
        "UPDATE holds SET allowance = $2, news = $3, next_at = $4, returned = 0 WHERE destination = $1";
    let parameters = [destination.into(), i64::from(allowance).into(), news.into(), dialect.time(next_at)];
    operation.execute_raw(dialect.statement(goes_on, parameters)).await?;
    drop(operation);
    transaction.commit().await?;
    Ok(released)
}

/// Locks the hold and reads it, unless it is not due any more. Waits for a recorder that is about to commit, but no
/// longer than [`LOCK_WAIT`]: to leave the row out at once would be to leave it out for as long as outcomes pour in.
async fn lock_due(
    connection: &impl ConnectionTrait,
    dialect: Dialect,
    destination: &str,
    now: DateTime<Utc>,
) -> Result<Option<Hold>, DbErr> {
    if dialect == Dialect::Postgres {
        connection.execute_unprepared(LOCK_WAIT).await?;
    }
    let sql = format!(
        "SELECT {} FROM holds WHERE {IS_DUE} AND destination = $2 {}",
        Hold::COLUMNS,
        dialect.lock_rows_of("holds")
    );
    let statement = dialect.statement(sql, [dialect.time(now), destination.into()]);
    Hold::find_by_statement(statement).one(connection).await
}

/// Some recorders one after the other; until the end of the transaction, which waits for no other lock.
const LOCK_WAIT: &str = "SET LOCAL lock_timeout = '200ms'";

/// The time for a lock was over.
fn is_locked(error: &DbErr) -> bool {
    let DbErr::Query(RuntimeErr::SqlxError(error)) = error else { return false };
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}

#[derive(Debug, FromQueryResult)]
struct Key {
    request_id: i64,
    destination: String,
}

/// Lets go so many, the longest overdue first.
async fn let_go(
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
        waits::FOR_ITS_DESTINATION,
        waits::is_free("$2"),
        dialect.lock_free_rows()
    );
    let next = Key::find_by_statement(dialect.statement(sql, [destination.into(), dialect.time(now)]));
    let next = next.all(connection).await?;
    let sql = "UPDATE deliveries SET deferred_by = NULL, due_at = $1, claimed_until = NULL \
         WHERE (request_id, destination) IN (SELECT request_id, destination FROM r)";
    Rows::of(&next)
        .column("request_id", |key| key.request_id)
        .column("destination", |key| key.destination.as_str())
        .execute(connection, vec![dialect.time(now)], sql)
        .await
}
