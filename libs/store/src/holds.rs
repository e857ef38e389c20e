//! Destinations that cannot take all that waits for them, and how much of it is let go.
//!
//! A deferred delivery waits until its destination's hold lets it go; but for one whose key was busy, which waits
//! for its time alone, as it says nothing of its destination. A hold that comes from an open breaker
//! or a token endpoint that fails lets one delivery go, as a probe, once the time has come for it. When
//! the destination has answered since, twice as many are let go the next time; when a limit was met, half as
//! many. A hold ends when nothing waits behind it.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult};
use throughline_messages::DeferralCause;

use crate::dialect::{self, Dialect};
use crate::error::StoreError;
use crate::operation::Operation;
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
}

impl News {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The destination has answered a call, whatever it said.
    pub(crate) fn answered(&mut self, destination: &str) {
        self.0.entry(destination.to_owned()).or_default();
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
    let items = || news.0.iter().map(|(name, item)| (name.as_str(), item));
    let all: Vec<_> = items().map(|(name, _)| name).collect();
    lock(connection, &all).await?;
    let failing: Vec<_> = items().filter_map(|(name, item)| Some((name, item.failing_until?))).collect();
    let on_failing = "DO UPDATE SET allowance = 1, news = NULL, next_at = excluded.next_at";
    hold(connection, &failing, 1, on_failing).await?;
    let full: Vec<_> = items()
        .filter(|(_, item)| item.failing_until.is_none())
        .filter_map(|(name, item)| Some((name, item.full_until?)))
        .collect();
    hold(connection, &full, ALLOWANCE_AT_LIMIT, "DO UPDATE SET news = 'limit'").await?;
    let answered: Vec<_> = items()
        .filter(|(_, item)| item.failing_until.is_none() && item.full_until.is_none())
        .map(|(name, _)| name)
        .collect();
    loosen(connection, &answered).await
}

/// In one order whoever does, so that two cannot wait for each other.
async fn lock(connection: &impl ConnectionTrait, destinations: &[&str]) -> Result<(), StoreError> {
    let sql = format!(
        "SELECT 1 FROM holds WHERE destination IN (SELECT destination FROM r) ORDER BY destination {}",
        Dialect::of(connection).lock_rows_of("holds")
    );
    Rows::of(destinations).column("destination", |name| *name).execute(connection, Vec::new(), &sql).await?;
    Ok(())
}

async fn loosen(connection: &impl ConnectionTrait, destinations: &[&str]) -> Result<(), StoreError> {
    if destinations.is_empty() {
        return Ok(());
    }
    let sql = "UPDATE holds SET news = 'progress' \
         WHERE destination IN (SELECT destination FROM r) AND news IS NULL";
    Rows::of(destinations).column("destination", |name| *name).execute(connection, Vec::new(), sql).await?;
    Ok(())
}

async fn hold(
    connection: &impl ConnectionTrait,
    held: &[(&str, DateTime<Utc>)],
    allowance: i32,
    if_held: &str,
) -> Result<(), StoreError> {
    if held.is_empty() {
        return Ok(());
    }
    Rows::of(held)
        .column("destination", |(name, _)| *name)
        .column("allowance", |_| allowance)
        .column("next_at", |(_, until)| *until)
        .insert(connection, "holds", &format!("ON CONFLICT (destination) {if_held}"))
        .await
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
    let sql = "SELECT destination, allowance, news, next_at FROM holds WHERE destination = $1";
    let statement = dialect.statement(sql, [dialect::text(destination).into()]);
    let hold = Hold::find_by_statement(statement).one(connection).await?;
    let release =
        |hold: Hold| Ok(Release { at: hold.next_at, count: number("allowance", hold.next_allowance())? });
    hold.map(release).transpose()
}

#[derive(Debug, FromQueryResult)]
struct Hold {
    destination: String,
    allowance: i32,
    news: Option<String>,
    next_at: DateTime<Utc>,
}

impl Hold {
    fn next_allowance(&self) -> i32 {
        match self.news.as_deref() {
            Some("progress") => (self.allowance * 2).min(MOST),
            Some("limit") => (self.allowance / 2).max(1),
            _ => self.allowance,
        }
    }
}

/// Lets go what the holds allow whose time has come: what is let go is due at `now`. Says how many were.
/// Several may call it at once and share the holds.
///
/// # Errors
/// If the database cannot be asked.
pub async fn release(store: &Store, now: DateTime<Utc>) -> Result<u64, StoreError> {
    let dialect = Dialect::of(store.connection());
    let due = "SELECT destination, allowance, news, next_at FROM holds WHERE next_at <= $1";
    // On SQLite a transaction keeps everybody else waiting, so it is not begun for nothing.
    let statement = dialect.statement(due, [dialect.time(now)]);
    let connection = Operation::new(store.connection(), "look_at_holds");
    if connection.query_one_raw(statement).await?.is_none() {
        return Ok(0);
    }
    drop(connection);
    let transaction = store.begin().await?;
    let operation = Operation::new(&transaction, "release_held");
    let statement = dialect.statement(format!("{due} {}", dialect.lock_free_rows()), [dialect.time(now)]);
    let mut released = 0;
    for hold in Hold::find_by_statement(statement).all(&operation).await? {
        released += release_one(&operation, dialect, &hold, now).await?;
    }
    drop(operation);
    transaction.commit().await?;
    Ok(released)
}

#[derive(Debug, FromQueryResult)]
struct Key {
    request_id: i64,
    destination: String,
}

async fn release_one(
    connection: &impl ConnectionTrait,
    dialect: Dialect,
    hold: &Hold,
    now: DateTime<Utc>,
) -> Result<u64, StoreError> {
    let (name, allowance) = (hold.destination.as_str(), hold.next_allowance());
    let sql = format!(
        "SELECT request_id, destination FROM deliveries \
         WHERE destination = $1 AND {} AND due_at <= $2 \
         ORDER BY due_at, request_id LIMIT {allowance} {}",
        waits::FOR_ITS_DESTINATION,
        dialect.lock_free_rows()
    );
    let next = Key::find_by_statement(dialect.statement(sql, [name.into(), dialect.time(now)]));
    let next = next.all(connection).await?;
    let sql = "UPDATE deliveries SET deferred_by = NULL, due_at = $1 \
         WHERE (request_id, destination) IN (SELECT request_id, destination FROM r)";
    let released = Rows::of(&next)
        .column("request_id", |key| key.request_id)
        .column("destination", |key| key.destination.as_str())
        .execute(connection, vec![dialect.time(now)], sql)
        .await?;

    // The smallest one is the first of an index; whether there is any, PostgreSQL would look for in the table.
    let nobody_waits = format!(
        "DELETE FROM holds WHERE destination = $1 AND (SELECT min(due_at) FROM deliveries \
         WHERE deliveries.destination = $1 AND {}) IS NULL",
        waits::FOR_ITS_DESTINATION
    );
    connection.execute_raw(dialect.statement(nobody_waits, [name.into()])).await?;
    let goes_on = "UPDATE holds SET allowance = $2, news = NULL, next_at = $3 WHERE destination = $1";
    let parameters = [name.into(), i64::from(allowance).into(), dialect.time(now + PACE)];
    connection.execute_raw(dialect.statement(goes_on, parameters)).await?;
    Ok(released)
}
