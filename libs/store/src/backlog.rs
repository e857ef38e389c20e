//! Counts of pending work, for display. Each sample is one function and reads a bounded number of rows.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult};
use throughline_snowflake::NodeId;

use crate::dialect::{Dialect, text};
use crate::error::StoreError;
use crate::index_predicates;
use crate::operation::{Operation, Session};
use crate::requests::number;

/// Deliveries that are due and that a sweeper has to publish.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Due {
    /// How many. Deliveries that a sweeper is publishing count until it has committed.
    pub deliveries: u64,
    /// How long the longest overdue delivery has been due; zero if there is none.
    pub age: Duration,
}

/// Deliveries to one destination that have not ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Open {
    /// How many have no reported attempt.
    pub pending: u64,
    /// How many have a failed attempt.
    pub retrying: u64,
    /// How long ago the oldest of their time windows began; zero if there is none.
    pub age: Duration,
}

/// The leased node ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leases {
    /// How many.
    pub nodes: u64,
    /// The lowest one.
    pub first: Option<NodeId>,
}

/// Counts the deliveries that are due at `now` and wait for their due time alone, up to `most`. Silent deliveries do
/// not count: they first wait for dispatch and the recorder.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn due(session: &impl Session, now: DateTime<Utc>, most: u64) -> Result<Due, StoreError> {
    #[derive(FromQueryResult)]
    struct Row {
        due: i64,
        since: Option<DateTime<Utc>>,
    }
    let connection = &Operation::new(session, "sample_due");
    let dialect = Dialect::of(connection);
    // As in the sweeper's query: a request in the outbox is published from there.
    let sql = format!(
        "SELECT count(*) AS due, min(due_at) AS since FROM ( \
             SELECT request_id, due_at FROM deliveries WHERE due_at <= $1 AND {} \
             ORDER BY due_at, request_id LIMIT $2 \
         ) AS next WHERE NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.request_id = next.request_id)",
        index_predicates::FOR_ITS_TIME
    );
    let statement = dialect.statement(sql, [dialect.time(now), limit(most).into()]);
    let Some(row) = Row::find_by_statement(statement).one(connection).await? else {
        return Ok(Due::default());
    };
    Ok(Due { deliveries: count(row.due)?, age: age(row.since, now) })
}

/// Counts by destination the deliveries that have not ended at `now`. A destination without such deliveries is left
/// out.
///
/// For each way of waiting it reads at most `most` rows, those that are due first. Deliveries that wait for their
/// destination, as in its outage, have that limit for each destination; all others share it.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn open(
    session: &impl Session,
    now: DateTime<Utc>,
    most: u64,
) -> Result<BTreeMap<String, Open>, StoreError> {
    let connection = &Operation::new(session, "sample_open");
    let dialect = Dialect::of(connection);
    let mut destinations = BTreeMap::<String, Open>::new();
    let statement = dialect.statement(open_anywhere(), [limit(most).into()]);
    let mut rows = OpenRow::find_by_statement(statement).all(connection).await?;
    for destination in destinations_with(connection, index_predicates::FOR_ITS_DESTINATION).await? {
        let sql = format!(
            "SELECT $1 AS destination, {COUNTED} FROM ( \
                 SELECT state, window_started_at FROM deliveries WHERE {} AND destination = $1 \
                 ORDER BY due_at, request_id LIMIT $2 \
             ) AS deferred",
            index_predicates::FOR_ITS_DESTINATION
        );
        let statement = dialect.statement(sql, [text(&destination).into(), limit(most).into()]);
        rows.extend(OpenRow::find_by_statement(statement).one(connection).await?);
    }
    for row in rows {
        let open = destinations.entry(row.destination).or_default();
        open.pending += count(row.pending)?;
        open.retrying += count(row.retrying)?;
        open.age = open.age.max(age(row.since, now));
    }
    Ok(destinations)
}

/// Counts dead letters by destination, up to `most` for each. A destination without dead letters is left out.
///
/// # Errors
/// If the database is unreachable or a statement fails.
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

/// Returns the node ids that are leased by the database's clock.
///
/// # Errors
/// If the database is unreachable or a statement fails.
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
     count(*) FILTER (WHERE state = 'retrying') AS retrying, min(window_started_at) AS since";

/// Reads one index for each way of waiting except for the destination: for an outcome, for the due time, for earlier
/// deliveries of the ordering group. Each is read in its own order, so that no other plan looks cheaper than the index.
fn open_anywhere() -> String {
    let next = |condition: &str, order: &str| {
        format!(
            "SELECT destination, state, window_started_at \
             FROM (SELECT destination, state, window_started_at FROM deliveries \
             WHERE {condition} ORDER BY {order} LIMIT $1) AS next"
        )
    };
    format!(
        "SELECT destination, {COUNTED} FROM ({} UNION ALL {} UNION ALL {}) AS open_deliveries GROUP BY destination",
        next("published_at IS NOT NULL AND due_at IS NOT NULL", "due_at, request_id"),
        next(index_predicates::FOR_ITS_TIME, "due_at, request_id"),
        next(
            "deferred_by = 'order' AND ordering_group IS NOT NULL AND due_at IS NOT NULL",
            "ordering_group, destination, request_id"
        ),
    )
}

#[derive(FromQueryResult)]
struct OpenRow {
    destination: String,
    pending: i64,
    retrying: i64,
    since: Option<DateTime<Utc>>,
}

/// Returns the destinations that have such deliveries, with one index probe for each, however many deliveries it has.
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

/// Returns zero if the clocks disagree.
fn age(since: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Duration {
    since.and_then(|since| (now - since).to_std().ok()).unwrap_or_default()
}
