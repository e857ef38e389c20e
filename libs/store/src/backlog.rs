//! How much waits in the database, to be shown.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{FromQueryResult, Statement};

use crate::dialect::Dialect;
use crate::error::StoreError;
use crate::operation::{Operation, Session};
use crate::requests::number;
use crate::waits;

/// What waits at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backlog {
    /// By destination; one is missing for which nothing waits.
    pub destinations: BTreeMap<String, Waiting>,
    /// How many deliveries wait for a time that has come, and are to be published by a sweeper; until it has committed that, also those
    /// that one has in hand.
    pub due: u64,
    /// For how long the longest overdue of them has been due; zero if there is none.
    pub due_for: Duration,
    /// How many node ids are leased.
    pub nodes_leased: u64,
}

/// What waits for one destination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Deliveries that have not ended, and of which no attempt was heard.
    pub pending: u64,
    /// Deliveries that have not ended, and of which an attempt failed.
    pub retrying: u64,
    /// How long ago the time of the oldest of both began; zero if there is none.
    pub age: Duration,
    /// Deliveries that are dead.
    pub dead_letters: u64,
}

/// Counts what waits at `now`. What has ended long ago costs nothing: each statement reads the indexes that hold
/// just what waits. With 100,000 deliveries that have not ended it takes PostgreSQL some 0.2 s.
///
/// # Errors
/// If the database cannot be asked.
pub async fn sample(session: &impl Session, now: DateTime<Utc>) -> Result<Backlog, StoreError> {
    let connection = &Operation::new(session, "sample_backlog");
    let dialect = Dialect::of(connection);
    let mut backlog = Backlog::default();
    for row in Unended::find_by_statement(dialect.statement(unended(), [])).all(connection).await? {
        let waiting = backlog.destinations.entry(row.destination).or_default();
        waiting.pending = count(row.pending)?;
        waiting.retrying = count(row.retrying)?;
        waiting.age = age(row.since, now);
    }
    for row in Dead::find_by_statement(dialect.statement(DEAD, [])).all(connection).await? {
        let waiting = backlog.destinations.entry(row.destination).or_default();
        waiting.dead_letters = count(row.dead)?;
    }
    let due = dialect.statement(due(), [dialect.time(now)]);
    if let Some(row) = Overdue::find_by_statement(due).one(connection).await? {
        backlog.due = count(row.due)?;
        backlog.due_for = age(row.since, now);
    }
    if let Some(row) = Leased::find_by_statement(leased(dialect)).one(connection).await? {
        backlog.nodes_leased = count(row.nodes)?;
    }
    Ok(backlog)
}

/// One index for each way in which a delivery waits: for news, for its time, for its destination, for its turn.
fn unended() -> String {
    format!(
        "SELECT destination, count(*) FILTER (WHERE state = 'pending') AS pending, \
             count(*) FILTER (WHERE state = 'retrying') AS retrying, min(since) AS since FROM ( \
             SELECT destination, state, since FROM deliveries WHERE published_at IS NOT NULL \
             UNION ALL SELECT destination, state, since FROM deliveries WHERE {} \
             UNION ALL SELECT destination, state, since FROM deliveries WHERE {} \
             UNION ALL SELECT destination, state, since FROM deliveries \
                 WHERE deferred_by = 'order' AND lane IS NOT NULL AND due_at IS NOT NULL \
         ) AS unended GROUP BY destination",
        waits::FOR_ITS_TIME,
        waits::FOR_ITS_DESTINATION
    )
}

#[derive(FromQueryResult)]
struct Unended {
    destination: String,
    pending: i64,
    retrying: i64,
    since: Option<DateTime<Utc>>,
}

const DEAD: &str =
    "SELECT destination, count(*) AS dead FROM deliveries WHERE state = 'dead' GROUP BY destination";

#[derive(FromQueryResult)]
struct Dead {
    destination: String,
    dead: i64,
}

/// As the sweeper sees it: what is in the outbox is published from there. Silence is no matter for it before dispatch
/// and the recorder have come that far.
fn due() -> String {
    format!(
        "SELECT count(*) AS due, min(due_at) AS since FROM deliveries WHERE due_at <= $1 AND {} \
         AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.request_id = deliveries.request_id)",
        waits::FOR_ITS_TIME
    )
}

#[derive(FromQueryResult)]
struct Overdue {
    due: i64,
    since: Option<DateTime<Utc>>,
}

fn leased(dialect: Dialect) -> Statement {
    let sql = format!("SELECT count(*) AS nodes FROM nodes WHERE expires_at > {}", dialect.now());
    dialect.statement(sql, [])
}

#[derive(FromQueryResult)]
struct Leased {
    nodes: i64,
}

fn count(rows: i64) -> Result<u64, StoreError> {
    number("number of rows", rows)
}

/// Zero if clocks do not agree.
fn age(since: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Duration {
    since.and_then(|since| (now - since).to_std().ok()).unwrap_or_default()
}
