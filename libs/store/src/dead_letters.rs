//! Dead letters, the deliveries that ended without success: list, replay and purge.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use throughline_api::{DeadLetter, DeadLetterFilter};
use throughline_messages::{DeadReason, ErrorClass};
use throughline_snowflake::RequestId;

use crate::delivery_key::DeliveryKey;
use crate::dialect::{self, Dialect};
use crate::error::StoreError;
use crate::operation::{Operation, Session};
use crate::order;
use crate::requests::{name, number, optional_name, request_id};

#[derive(FromQueryResult)]
struct Row {
    request_id: i64,
    destination: String,
    route: String,
    accepted_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    reason: String,
    last_error_class: Option<String>,
    last_error: Option<String>,
    last_status: Option<i32>,
    response_excerpt: Option<String>,
    trace_id: Option<String>,
    attempts: i32,
}

/// A page of dead letters, and where the next one begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The dead letters that match the filter.
    pub letters: Vec<DeadLetter>,
    /// Where the next page begins; `None` if there are no more.
    pub next: Option<DeliveryKey>,
}

/// Lists at most `limit` dead letters behind `after` that match the filter, the youngest requests first. One call scans
/// a few thousand dead letters at most, so a page may have fewer, or none, although more match.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn list(
    session: &impl Session,
    filter: &DeadLetterFilter,
    after: Option<&DeliveryKey>,
    limit: u64,
) -> Result<Page, StoreError> {
    let connection = &Operation::new(session, "list_dead_letters");
    let (meant, next) = step(connection, filter, after, Order::YoungestFirst, limit).await?;
    Ok(Page { letters: letters(connection, &meant).await?, next })
}

/// Walks on from `after`; returns at most `limit` dead letters that match the filter, and where the next step begins.
async fn step(
    connection: &impl ConnectionTrait,
    filter: &DeadLetterFilter,
    after: Option<&DeliveryKey>,
    order: Order,
    limit: u64,
) -> Result<(Vec<DeliveryKey>, Option<DeliveryKey>), StoreError> {
    let after = after.map(|key| (key.request_id.as_i64(), key.destination.as_str()));
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let Walked { meant, next, .. } = walk(connection, filter, after, order, limit).await?;
    Ok((meant, next))
}

async fn letters(
    connection: &impl ConnectionTrait,
    keys: &[DeliveryKey],
) -> Result<Vec<DeadLetter>, StoreError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "SELECT d.request_id, d.destination, q.route, q.accepted_at, d.updated_at, d.reason, \
             d.last_error_class, d.last_error, d.last_status, a.response_excerpt, a.trace_id, d.attempts \
         FROM r JOIN deliveries AS d ON d.request_id = r.request_id AND d.destination = r.destination \
         JOIN requests AS q ON q.id = d.request_id \
         LEFT JOIN attempts AS a ON a.request_id = d.request_id AND a.destination = d.destination \
             AND a.number = d.attempts AND a.started_at = (SELECT max(started_at) FROM attempts AS l \
                 WHERE l.request_id = d.request_id AND l.destination = d.destination \
                 AND l.number = d.attempts) \
         WHERE d.state = 'dead' ORDER BY d.request_id DESC, d.destination DESC";
    let found: Vec<Row> = DeliveryKey::rows(keys).query(connection, Vec::new(), sql).await?;
    found.into_iter().map(to_dead_letter).collect()
}

/// Maximum number of dead letters that one step of a walk scans, whether they match or not.
const LOOKED_AT: usize = 5000;

/// The order of a walk, by request and destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    OldestFirst,
    YoungestFirst,
}

/// A step of a walk through dead letters.
pub(crate) struct Walked {
    /// The dead letters that match, in the walk's order.
    pub(crate) meant: Vec<DeliveryKey>,
    /// How many were scanned.
    pub(crate) looked_at: usize,
    /// The last one that was scanned; `None` at the walk's end.
    pub(crate) next: Option<DeliveryKey>,
}

/// Scans the dead letters behind `after` until `most` of them match, or one step is complete. A partial index holds
/// exactly the dead deliveries, another one those of each destination.
pub(crate) async fn walk(
    connection: &impl ConnectionTrait,
    filter: &DeadLetterFilter,
    after: Option<(i64, &str)>,
    order: Order,
    most: usize,
) -> Result<Walked, StoreError> {
    #[derive(FromQueryResult)]
    struct Seen {
        request_id: i64,
        destination: String,
        is_meant: i32,
    }
    let dialect = Dialect::of(connection);
    let mut meant = Conditions::new(dialect, filter);
    let (comparison, direction) = match order {
        Order::OldestFirst => (">", "ASC"),
        Order::YoungestFirst => ("<", "DESC"),
    };
    let mut within = "d.state = 'dead'".to_owned();
    if let Some(destination) = &filter.destination {
        let destination = meant.parameter(dialect::text(destination));
        let _ = write!(within, " AND d.destination = {destination}");
    }
    if let Some((id, destination)) = after {
        let (id, destination) = (meant.parameter(id), meant.parameter(destination));
        // The first condition alone is enough for the index of one destination.
        let _ = write!(
            within,
            " AND d.request_id {comparison}= {id} \
             AND (d.request_id, d.destination) {comparison} ({id}, {destination})"
        );
    }
    let sql = format!(
        "SELECT d.request_id, d.destination, CASE WHEN {} THEN 1 ELSE 0 END AS is_meant \
         FROM deliveries AS d WHERE {within} \
         ORDER BY d.request_id {direction}, d.destination {direction} LIMIT {LOOKED_AT}",
        meant.sql
    );
    let page = Seen::find_by_statement(dialect.statement(sql, meant.parameters)).all(connection).await?;
    let is_end = page.len() < LOOKED_AT;
    let mut walked = Walked { meant: Vec::new(), looked_at: 0, next: None };
    let mut rest = page.into_iter();
    for Seen { request_id, destination, is_meant } in rest.by_ref() {
        walked.looked_at += 1;
        let key = DeliveryKey::new(self::request_id(request_id)?, destination);
        walked.next = Some(key.clone());
        if is_meant != 0 {
            walked.meant.push(key);
        }
        if walked.meant.len() == most {
            break;
        }
    }
    if is_end && rest.all(|seen| seen.is_meant == 0) {
        walked.next = None;
    }
    Ok(walked)
}

fn to_dead_letter(row: Row) -> Result<DeadLetter, StoreError> {
    Ok(DeadLetter {
        request_id: request_id(row.request_id)?,
        destination: row.destination,
        route: row.route,
        accepted_at: row.accepted_at,
        died_at: row.updated_at,
        reason: name("reason", &row.reason)?,
        attempts: number("number of attempts", row.attempts)?,
        error_class: optional_name("error class", row.last_error_class.as_deref())?,
        error: row.last_error,
        status: row.last_status.map(|status| number("status", status)).transpose()?,
        response_excerpt: row.response_excerpt,
        trace_id: row.trace_id,
    })
}

/// The result of a purge, and where the next step begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purged {
    /// How many dead letters were deleted.
    pub purged: u64,
    /// Where the next step begins; `None` if there are no more.
    pub next: Option<DeliveryKey>,
}

/// Deletes at most `limit` dead letters behind `after` that match the filter, with their attempts, the oldest requests
/// first. One call scans a few thousand dead letters at most, as [`list`] does.
///
/// A request is deleted with its last delivery, unless Kafka has not acknowledged it or an idempotency key stands for
/// it at `now`: a client that repeats the request under that key gets an id that exists. Must run in a transaction.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn purge(
    session: &impl Session,
    filter: &DeadLetterFilter,
    after: Option<&DeliveryKey>,
    limit: u64,
    now: DateTime<Utc>,
) -> Result<Purged, StoreError> {
    let connection = &Operation::new(session, "purge_dead_letters");
    let dialect = Dialect::of(connection);
    let (found, next) = step(connection, filter, after, Order::OldestFirst, limit).await?;
    if found.is_empty() {
        return Ok(Purged { purged: 0, next });
    }
    // A replay may have revived some since the step read them.
    let meant = Conditions::new(dialect, filter);
    let sql = format!(
        "SELECT d.request_id, d.destination FROM deliveries AS d \
         WHERE (d.request_id, d.destination) IN (SELECT request_id, destination FROM r) AND {} \
         ORDER BY d.request_id, d.destination {}",
        meant.sql,
        dialect.lock_rows_of("d")
    );
    let keys: Vec<DeliveryKey> = DeliveryKey::rows(&found).query(connection, meant.parameters, &sql).await?;
    if keys.is_empty() {
        return Ok(Purged { purged: 0, next });
    }
    let sql =
        "DELETE FROM deliveries WHERE (request_id, destination) IN (SELECT request_id, destination FROM r)";
    let purged = DeliveryKey::rows(&keys).execute(connection, Vec::new(), sql).await?;
    let sql = "DELETE FROM requests WHERE id IN (SELECT request_id FROM r) \
         AND NOT EXISTS (SELECT 1 FROM deliveries WHERE deliveries.request_id = requests.id) \
         AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.request_id = requests.id) \
         AND NOT EXISTS (SELECT 1 FROM idempotency_keys AS k \
             WHERE k.request_id = requests.id AND k.expires_at > $1)";
    DeliveryKey::rows(&keys).execute(connection, vec![dialect.time(now)], sql).await?;
    Ok(Purged { purged, next })
}

/// The result of a replay of one dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replayed {
    /// It is due.
    Yes,
    /// It is not dead.
    NotDead,
    /// There is no such delivery.
    Unknown,
}

/// Makes one dead delivery due at `now`, or once it is the first of its ordering group, with its full number of
/// attempts. Must run in a transaction.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn replay(
    session: &impl Session,
    id: RequestId,
    destination: &str,
    now: DateTime<Utc>,
) -> Result<Replayed, StoreError> {
    let connection = &Operation::new(session, "replay_dead_letter");
    order::enter(connection, &[id]).await?;
    let dialect = Dialect::of(connection);
    let key = || [Value::from(id.as_i64()), dialect::text(destination).into()];
    let sql = format!("{REPLAYED} WHERE request_id = $2 AND destination = $3 AND state = 'dead'");
    let parameters = [dialect.time(now)].into_iter().chain(key());
    let replayed = connection.execute_raw(dialect.statement(sql, parameters)).await?.rows_affected();
    if replayed > 0 {
        order::queue(connection, &[DeliveryKey::new(id, dialect::text(destination))]).await?;
        return Ok(Replayed::Yes);
    }
    let sql = "SELECT 1 FROM deliveries WHERE request_id = $1 AND destination = $2";
    let known = connection.query_one_raw(dialect.statement(sql, key())).await?.is_some();
    Ok(if known { Replayed::NotDead } else { Replayed::Unknown })
}

/// Revives a dead delivery: its time window begins at `$1`. Earlier attempts are kept.
pub(crate) const REPLAYED: &str = "UPDATE deliveries SET state = 'pending', reason = NULL, counted_attempts = 0, \
     window_started_at = $1, due_at = $1, published_at = NULL, deferred_by = NULL, updated_at = $1";

/// The conditions of a filter, with `d` as the alias of the deliveries.
pub(crate) struct Conditions {
    pub(crate) sql: String,
    pub(crate) parameters: Vec<Value>,
}

impl Conditions {
    pub(crate) fn new(dialect: Dialect, filter: &DeadLetterFilter) -> Self {
        let mut meant = Self { sql: "d.state = 'dead'".to_owned(), parameters: Vec::new() };
        let texts = [
            // A subquery for each dead letter: a join might read all requests.
            ("(SELECT route FROM requests WHERE id = d.request_id) =", filter.route.as_deref()),
            ("d.destination =", filter.destination.as_deref()),
            ("d.reason =", filter.reason.as_ref().map(DeadReason::as_str)),
            ("d.last_error_class =", filter.error_class.as_ref().map(ErrorClass::as_str)),
        ];
        for (column, text) in texts {
            if let Some(text) = text {
                let text = meant.parameter(dialect::text(text));
                meant.condition(&format!("{column} {text}"));
            }
        }
        let times = [("d.updated_at >=", filter.since), ("d.updated_at <", filter.before)];
        for (column, time) in times {
            if let Some(time) = time {
                let time = meant.parameter(dialect.time(time));
                meant.condition(&format!("{column} {time}"));
            }
        }
        meant
    }

    pub(crate) fn parameter(&mut self, value: impl Into<Value>) -> String {
        self.parameters.push(value.into());
        format!("${}", self.parameters.len())
    }

    pub(crate) fn condition(&mut self, condition: &str) {
        self.sql.push_str(" AND ");
        self.sql.push_str(condition);
    }
}
