//! The state of a request at a destination, and when to act on it.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use throughline_messages::{DeadReason, ErrorClass};
use throughline_snowflake::RequestId;

use crate::dialect::{self, Dialect};
use crate::error::StoreError;
use crate::index_predicates;
use crate::operation::{Operation, Session};
use crate::order;
use crate::rows::Rows;

/// Returns when the next delivery that waits for its due time is due, or when a [slow start](crate::slow_starts)
/// releases the next ones, whichever is earlier; `None` if there is neither.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn next_due(session: &impl Session) -> Result<Option<DateTime<Utc>>, StoreError> {
    #[derive(FromQueryResult)]
    struct Next {
        at: Option<DateTime<Utc>>,
    }
    let connection = &Operation::new(session, "find_next_due");
    // Each minimum is the first entry of an index.
    let sql = format!(
        "SELECT min(at) AS at FROM ( \
             SELECT min(due_at) AS at FROM deliveries WHERE {} \
             UNION ALL SELECT min(next_at) FROM slow_starts \
         ) AS next",
        index_predicates::FOR_ITS_TIME
    );
    let statement = Dialect::of(connection).statement(sql, []);
    Ok(Next::find_by_statement(statement).one(connection).await?.and_then(|next| next.at))
}

/// The result of a cancellation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// The deliveries to these destinations were cancelled.
    Some(Vec<String>),
    /// All matching deliveries had already ended.
    AllEnded,
    /// There is no such request, or it has no such delivery.
    Unknown,
}

/// Cancels the deliveries of a request that have not ended: all of them, or the one to `destination`. Unpublished
/// deliveries are not published; a call in flight is completed and recorded.
///
/// Must run in a transaction.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn cancel(
    session: &impl Session,
    id: RequestId,
    destination: Option<&str>,
    now: DateTime<Utc>,
) -> Result<Cancelled, StoreError> {
    let connection = &Operation::new(session, "cancel");
    order::enter(connection, &[id]).await?;
    let dialect = Dialect::of(connection);
    let named = dialect.nullable_text("$2");
    let meant = format!("request_id = $1 AND ({named} IS NULL OR destination = {named})");
    let parameters = || [Value::from(id.as_i64()), destination.map(dialect::text).into()];
    let sql = format!(
        "UPDATE deliveries SET state = 'cancelled', due_at = NULL, published_at = NULL, deferred_by = NULL, \
         claimed_until = NULL, updated_at = $3 WHERE {meant} AND due_at IS NOT NULL RETURNING destination"
    );
    let all = parameters().into_iter().chain([dialect.time(now)]);
    let cancelled = connection.query_all_raw(dialect.statement(sql, all)).await?;
    let cancelled: Vec<String> =
        cancelled.iter().map(|row| row.try_get("", "destination")).collect::<Result<_, _>>()?;
    if cancelled.is_empty() {
        let sql = format!("SELECT 1 FROM deliveries WHERE {meant} LIMIT 1");
        let known = connection.query_one_raw(dialect.statement(sql, parameters())).await?;
        return Ok(if known.is_some() { Cancelled::AllEnded } else { Cancelled::Unknown });
    }
    let nothing_to_publish = "DELETE FROM outbox WHERE request_id = $1 AND NOT EXISTS \
         (SELECT 1 FROM deliveries WHERE request_id = $1 AND due_at IS NOT NULL)";
    connection.execute_raw(dialect.statement(nothing_to_publish, [id.as_i64().into()])).await?;
    order::move_up_behind(connection, &[id], now).await?;
    Ok(Cancelled::Some(cancelled))
}

/// Postpones the published deliveries of these requests: they are due as silent at `due_at` if they were due earlier,
/// because they were published only now.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn postpone_all(
    session: &impl Session,
    ids: &[RequestId],
    due_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    let connection = &Operation::new(session, "postpone");
    if ids.is_empty() {
        return Ok(());
    }
    let sql = "UPDATE deliveries SET due_at = r.due_at FROM r \
         WHERE deliveries.request_id = r.request_id AND deliveries.published_at IS NOT NULL \
         AND deliveries.due_at < r.due_at";
    // In the recorder's order, which prevents deadlocks.
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    Rows::of(&ids)
        .column("request_id", |id| *id)
        .column("due_at", |_| due_at)
        .execute(connection, Vec::new(), sql)
        .await?;
    Ok(())
}

/// A delivery that can never be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The request.
    pub request_id: RequestId,
    /// The destination of the delivery; `None` for all deliveries of the request that have not ended.
    pub destination: Option<String>,
    /// Why it is dead.
    pub reason: DeadReason,
    /// The class of the error.
    pub class: ErrorClass,
    /// The error, as text.
    pub error: String,
}

/// A delivery that has ended, because of a report or because it cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult)]
pub struct Ended {
    /// Its destination.
    pub destination: String,
    /// Why it is dead; `None` if it was delivered.
    pub reason: Option<String>,
    /// The class of the error that ended it.
    pub error_class: Option<String>,
}

/// Ends deliveries that cannot be published, and returns them. Must run in a transaction.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn refuse(
    session: &impl Session,
    refusals: &[Refusal],
    now: DateTime<Utc>,
) -> Result<Vec<Ended>, StoreError> {
    if refusals.is_empty() {
        return Ok(Vec::new());
    }
    end_refused(&Operation::new(session, "refuse"), refusals, None, now).await
}

/// Ends the refused deliveries. With `claimed_until`, ends only those that still carry that claim.
pub(crate) async fn end_refused(
    connection: &impl ConnectionTrait,
    refusals: &[Refusal],
    claimed_until: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<Vec<Ended>, StoreError> {
    let dialect = Dialect::of(connection);
    let ids: Vec<_> = refusals.iter().map(|refusal| refusal.request_id).collect();
    order::enter(connection, &ids).await?;
    // Locks the rows in the recorder's order, which prevents deadlocks.
    let sql = format!(
        ", own AS MATERIALIZED ( \
             SELECT d.request_id, d.destination, r.reason, r.class, r.error FROM deliveries AS d \
             JOIN r ON d.request_id = r.request_id AND (r.destination IS NULL OR d.destination = r.destination) \
             WHERE d.due_at IS NOT NULL AND (r.claimed_until IS NULL OR d.claimed_until = r.claimed_until) \
             ORDER BY d.request_id, d.destination {}) \
         UPDATE deliveries SET state = 'dead', due_at = NULL, published_at = NULL, deferred_by = NULL, \
         claimed_until = NULL, reason = own.reason, last_error_class = own.class, last_error = own.error, \
         updated_at = $1 FROM own \
         WHERE deliveries.request_id = own.request_id AND deliveries.destination = own.destination \
         RETURNING deliveries.destination, deliveries.reason, deliveries.last_error_class AS error_class",
        dialect.lock_rows_of("d")
    );
    let ended = Rows::of(refusals)
        .column("request_id", |refusal| refusal.request_id)
        .column("destination", |refusal| refusal.destination.as_deref())
        .column("reason", |refusal| refusal.reason.as_str())
        .column("class", |refusal| refusal.class.as_str())
        .column("error", |refusal| refusal.error.as_str())
        .column("claimed_until", |_| claimed_until)
        .query(connection, vec![dialect.time(now)], &sql)
        .await?;
    order::move_up_behind(connection, &ids, now).await?;
    Ok(ended)
}

/// Makes every published delivery that has not ended due at `now`, except those of requests in the outbox, which are
/// published from there. Returns their number. Also removes the claims of these deliveries and of those that wait for
/// their due time alone. Intended for a broker that loses its records when it stops, and for a single ingest.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn make_published_due(session: &impl Session, now: DateTime<Utc>) -> Result<u64, StoreError> {
    let connection = &Operation::new(session, "make_published_due");
    let dialect = Dialect::of(connection);
    let free = format!(
        "UPDATE deliveries SET claimed_until = NULL WHERE {} AND claimed_until IS NOT NULL",
        index_predicates::FOR_ITS_TIME
    );
    connection.execute_raw(dialect.statement(free, [])).await?;
    let sql = "UPDATE deliveries SET due_at = $1, claimed_until = NULL \
         WHERE published_at IS NOT NULL AND (due_at > $1 OR claimed_until IS NOT NULL) \
         AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.request_id = deliveries.request_id)";
    let statement = dialect.statement(sql, [dialect.time(now)]);
    Ok(connection.execute_raw(statement).await?.rows_affected())
}
