//! How much waits in the database, to be shown. Each sample is one function, and reads a bounded number of rows.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult};
use throughline_snowflake::NodeId;

use crate::dialect::{Dialect, text};
use crate::error::StoreError;
use crate::operation::{Operation, Session};
use crate::requests::number;
use crate::waits;

/// Deliveries whose time has come, and that a sweeper has to publish.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Due {
    /// How many; until a sweeper has committed, also those that it has in hand.
    pub deliveries: u64,
    /// For how long the longest overdue of them has been due; zero if there is none.
    pub age: Duration,
}

/// Deliveries to one destination that have not ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unended {
    /// Those of which no attempt was reported.
    pub pending: u64,
    /// Those of which an attempt failed.
    pub retrying: u64,
    /// How long ago the time of the oldest of both began; zero if there is none.
    pub age: Duration,
}

/// The node ids that are leased.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leases {
    /// How many.
    pub nodes: u64,
    /// The lowest of them.
    pub first: Option<NodeId>,
}

/// Counts the deliveries that are due at `now` and wait for their time alone, `most` of them at most. Silent ones do not
/// count: they wait for dispatch and the recorder first.
///
/// # Errors
/// If the database cannot be asked.
pub async fn due(session: &impl Session, now: DateTime<Utc>, most: u64) -> Result<Due, StoreError> {
    #[derive(FromQueryResult)]
    struct Row {
        due: i64,
        since: Option<DateTime<Utc>>,
    }
    let connection = &Operation::new(session, "sample_due");
    let dialect = Dialect::of(connection);
    // As the sweeper sees it: a request in the outbox is published from there.
    let sql = format!(
        "SELECT count(*) AS due, min(due_at) AS since FROM ( \
             SELECT request_id, due_at FROM deliveries WHERE due_at <= $1 AND {} \
             ORDER BY due_at, request_id LIMIT $2 \
         ) AS next WHERE NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.request_id = next.request_id)",
        waits::FOR_ITS_TIME
    );
    let statement = dialect.statement(sql, [dialect.time(now), limit(most).into()]);
    let Some(row) = Row::find_by_statement(statement).one(connection).await? else {
        return Ok(Due::default());
    };
    Ok(Due { deliveries: count(row.due)?, age: age(row.since, now) })
}

/// Counts by destination the deliveries that have not ended at `now`. A destination is missing for which none waits.
///
/// Of each way to wait it reads `most` rows at most, those that are due first: of deliveries that wait for their
/// destination, as in its outage, `most` for each destination; of all others `most` altogether.
///
/// # Errors
/// If the database cannot be asked.
pub async fn unended(
    session: &impl Session,
    now: DateTime<Utc>,
    most: u64,
) -> Result<BTreeMap<String, Unended>, StoreError> {
    let connection = &Operation::new(session, "sample_unended");
    let dialect = Dialect::of(connection);
    let mut destinations = BTreeMap::<String, Unended>::new();
    let statement = dialect.statement(unended_anywhere(), [limit(most).into()]);
    let mut rows = UnendedRow::find_by_statement(statement).all(connection).await?;
    for destination in destinations_with(connection, waits::FOR_ITS_DESTINATION).await? {
        let sql = format!(
            "SELECT $1 AS destination, {COUNTED} FROM ( \
                 SELECT state, since FROM deliveries WHERE {} AND destination = $1 \
                 ORDER BY due_at, request_id LIMIT $2 \
             ) AS deferred",
            waits::FOR_ITS_DESTINATION
        );
        let statement = dialect.statement(sql, [text(&destination).into(), limit(most).into()]);
        rows.extend(UnendedRow::find_by_statement(statement).one(connection).await?);
    }
    for row in rows {
        let unended = destinations.entry(row.destination).or_default();
        unended.pending += count(row.pending)?;
        unended.retrying += count(row.retrying)?;
        unended.age = unended.age.max(age(row.since, now));
    }
    Ok(destinations)
}

/// Counts dead letters by destination, `most` for each at most. A destination is missing that has none.
///
/// # Errors
/// If the database cannot be asked.
pub async fn dead_letters(session: &impl Session, most: u64) -> Result<BTreeMap<String, u64>, StoreError> {
    #[derive(FromQueryResult)]
    struct Row {
        dead: i64,
    }
    let connection = &Operation::new(session, "sample_dead_letters");
    let mut dead_letters = BTreeMap::new();
    for destination in destinations_with(connection, DEAD).await? {
        let sql = format!(
            "SELECT count(*) AS dead FROM (SELECT request_id FROM deliveries WHERE {DEAD} AND destination = $1 \
             ORDER BY request_id LIMIT $2) AS dead"
        );
        let parameters = [text(&destination).into(), limit(most).into()];
        let statement = Dialect::of(connection).statement(sql, parameters);
        if let Some(row) = Row::find_by_statement(statement).one(connection).await? {
            dead_letters.insert(destination, count(row.dead)?);
        }
    }
    Ok(dead_letters)
}

/// The node ids that are leased by the database's clock.
///
/// # Errors
/// If the database cannot be asked.
pub async fn leases(session: &impl Session) -> Result<Leases, StoreError> {
    #[derive(FromQueryResult)]
    struct Row {
        nodes: i64,
        first: Option<i32>,
    }
    let connection = &Operation::new(session, "sample_leases");
    let dialect = Dialect::of(connection);
    let sql = format!(
        "SELECT count(*) AS nodes, CAST(min(node_id) AS integer) AS first FROM nodes WHERE expires_at > {}",
        dialect.now()
    );
    let statement = dialect.statement(sql, []);
    let Some(row) = Row::find_by_statement(statement).one(connection).await? else {
        return Ok(Leases::default());
    };
    let node = |first: i32| {
        NodeId::try_from(number::<_, u16>("node id", first)?)
            .map_err(|error| StoreError::foreign("node id", error.to_string()))
    };
    Ok(Leases { nodes: count(row.nodes)?, first: row.first.map(node).transpose()? })
}

const DEAD: &str = "state = 'dead'";

const COUNTED: &str = "count(*) FILTER (WHERE state = 'pending') AS pending, \
     count(*) FILTER (WHERE state = 'retrying') AS retrying, min(since) AS since";

/// One index for each way in which a delivery waits, but for its destination: for an outcome, for its time, for its turn.
/// Each is read in its own order, so that no other plan looks cheaper than the index.
fn unended_anywhere() -> String {
    let next = |condition: &str, order: &str| {
        format!(
            "SELECT destination, state, since FROM (SELECT destination, state, since FROM deliveries \
             WHERE {condition} ORDER BY {order} LIMIT $1) AS next"
        )
    };
    format!(
        "SELECT destination, {COUNTED} FROM ({} UNION ALL {} UNION ALL {}) AS unended GROUP BY destination",
        next("published_at IS NOT NULL AND due_at IS NOT NULL", "due_at, request_id"),
        next(waits::FOR_ITS_TIME, "due_at, request_id"),
        next(
            "deferred_by = 'order' AND lane IS NOT NULL AND due_at IS NOT NULL",
            "lane, destination, request_id"
        ),
    )
}

#[derive(FromQueryResult)]
struct UnendedRow {
    destination: String,
    pending: i64,
    retrying: i64,
    since: Option<DateTime<Utc>>,
}

/// The destinations that have such deliveries: one index probe for each, however many deliveries it has.
async fn destinations_with(
    connection: &impl ConnectionTrait,
    condition: &str,
) -> Result<Vec<String>, StoreError> {
    #[derive(FromQueryResult)]
    struct Row {
        destination: String,
    }
    let sql = format!(
        "WITH RECURSIVE found (destination) AS ( \
             SELECT (SELECT min(destination) FROM deliveries WHERE {condition}) \
             UNION ALL SELECT ( \
                 SELECT min(deliveries.destination) FROM deliveries \
                 WHERE {condition} AND deliveries.destination > found.destination \
             ) FROM found WHERE found.destination IS NOT NULL \
         ) SELECT destination FROM found WHERE destination IS NOT NULL"
    );
    let statement = Dialect::of(connection).statement(sql, []);
    let rows = Row::find_by_statement(statement).all(connection).await?;
    Ok(rows.into_iter().map(|row| row.destination).collect())
}

fn limit(most: u64) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}

fn count(rows: i64) -> Result<u64, StoreError> {
    number("number of rows", rows)
}

/// Zero if clocks do not agree.
fn age(since: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Duration {
    since.and_then(|since| (now - since).to_std().ok()).unwrap_or_default()
}
