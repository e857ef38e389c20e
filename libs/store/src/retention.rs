//! Deletes requests that ended long ago, for good, one batch at a time.
//!
//! Requests are scanned in the order of their ids, which is the order of their acceptance. The scan ends at the first
//! request that is too young to have ended long ago, so it needs no index of its own. A request is deleted with its
//! deliveries and their attempts, or all of them stay.
//!
//! A batch is one short transaction that waits for no lock: on PostgreSQL it skips locked rows until the next run. It
//! therefore blocks other transactions for no longer than its own duration and cannot deadlock. Old requests are
//! checked again once they are locked.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use throughline_snowflake::RequestId;

use crate::dialect::Dialect;
use crate::error::StoreError;
use crate::operation::{Operation, Session};
use crate::requests::{number, request_id};
use crate::rows::Rows;
use crate::store::Store;

/// Maximum number of requests that are scanned and deleted at once, which takes some 40 ms.
const MOST: usize = 500;
/// Bodies of this many bytes fill a batch: PostgreSQL deletes a large body piece by piece.
const MOST_BYTES: u64 = 16 << 20;

/// The times before which requests are old.
#[derive(Debug, Clone, Copy)]
pub struct Cutoff {
    /// Deliveries that were delivered or cancelled before this time are old.
    pub delivered_before: DateTime<Utc>,
    /// Deliveries that died before this time are old.
    pub dead_before: DateTime<Utc>,
    /// The current time. Idempotency keys that have not expired keep their requests.
    pub now: DateTime<Utc>,
}

/// How many rows were deleted, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    /// How many requests.
    pub requests: u64,
    /// How many deliveries.
    pub deliveries: u64,
    /// How many attempts.
    pub attempts: u64,
}

impl std::ops::AddAssign for Purged {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.deliveries += other.deliveries;
        self.attempts += other.attempts;
    }
}

/// The result of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// The rows that it deleted.
    pub purged: Purged,
    /// The request behind which the next batch begins; `None` if no more can be old.
    pub next: Option<RequestId>,
}

/// Deletes the old requests among the next ones behind `after`. A request stays if it has not ended, if the broker has
/// not acknowledged it, if an idempotency key stands for it, or if a running replay will reach it.
///
/// # Errors
/// If the database is unreachable or a statement fails. Earlier batches stay deleted.
pub async fn purge(store: &Store, cutoff: &Cutoff, after: Option<RequestId>) -> Result<Batch, StoreError> {
    let page = look(store.connection(), cutoff, after).await?;
    // On SQLite an open transaction blocks all other work, so it begins only if there are old requests.
    if page.old.is_empty() {
        return Ok(Batch { purged: Purged::default(), next: page.next });
    }
    let transaction = store.begin().await?;
    let operation = Operation::new(&transaction, "purge_requests");
    let locked = lock(&operation, &page.old).await?;
    let old = still_old(&operation, cutoff, &locked).await?;
    let purged = delete(&operation, &old).await?;
    drop(operation);
    transaction.commit().await?;
    Ok(Batch { purged, next: page.next })
}

/// Counts the rows that [`purge`] would delete, without deleting them.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn count(
    session: &impl Session,
    cutoff: &Cutoff,
    after: Option<RequestId>,
) -> Result<Batch, StoreError> {
    #[derive(FromQueryResult)]
    struct Counted {
        deliveries: i64,
        attempts: i64,
    }
    let page = look(session, cutoff, after).await?;
    let connection = &Operation::new(session, "count_old_requests");
    let sql = "SELECT (SELECT count(*) FROM deliveries WHERE request_id IN (SELECT id FROM r)) AS deliveries, \
         (SELECT count(*) FROM attempts WHERE request_id IN (SELECT id FROM r)) AS attempts";
    let mut purged = Purged { requests: page.old.len() as u64, ..Purged::default() };
    for Counted { deliveries, attempts } in ids(&page.old).query(connection, Vec::new(), sql).await? {
        purged.deliveries = number("number of deliveries", deliveries)?;
        purged.attempts = number("number of attempts", attempts)?;
    }
    Ok(Batch { purged, next: page.next })
}

/// Returns the oldest stored request.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn oldest(session: &impl Session) -> Result<Option<RequestId>, StoreError> {
    #[derive(FromQueryResult)]
    struct Oldest {
        id: Option<i64>,
    }
    let connection = &Operation::new(session, "find_oldest_request");
    let statement = Dialect::of(connection).statement("SELECT min(id) AS id FROM requests", []);
    let oldest = Oldest::find_by_statement(statement).one(connection).await?;
    oldest.and_then(|oldest| oldest.id).map(request_id).transpose()
}

/// The scanned requests that are old, and where the next scan begins.
struct Page {
    old: Vec<i64>,
    next: Option<RequestId>,
}

async fn look(session: &impl Session, cutoff: &Cutoff, after: Option<RequestId>) -> Result<Page, StoreError> {
    #[derive(FromQueryResult)]
    struct Row {
        id: i64,
        bytes: i64,
        is_old: bool,
    }
    let connection = &Operation::new(session, "find_old_requests");
    let dialect = Dialect::of(connection);
    let sql = format!(
        "SELECT page.id, page.bytes, ({}) AS is_old FROM ( \
             SELECT id, route, CAST(length(body) AS bigint) AS bytes FROM requests WHERE id > $4 \
             ORDER BY id LIMIT {MOST} \
         ) AS page ORDER BY page.id",
        is_old("page")
    );
    let mut parameters = cutoff.parameters(dialect);
    parameters.push(after.map_or(-1, RequestId::as_i64).into());
    let rows = Row::find_by_statement(dialect.statement(sql, parameters)).all(connection).await?;

    // Requests that were accepted later cannot have ended before.
    let youngest = cutoff.delivered_before.max(cutoff.dead_before);
    let mut more = rows.len() == MOST;
    let mut page = Page { old: Vec::new(), next: None };
    let mut bytes = 0;
    for row in rows {
        let id = request_id(row.id)?;
        if id.created_at() >= youngest {
            more = false;
            break;
        }
        page.next = Some(id);
        if row.is_old {
            page.old.push(row.id);
            bytes += number::<_, u64>("length of a body", row.bytes)?;
        }
        if bytes >= MOST_BYTES {
            more = true;
            break;
        }
    }
    page.next = page.next.filter(|_| more);
    Ok(page)
}

impl Cutoff {
    /// Returns the parameters `$1` to `$3` of [`is_old`].
    fn parameters(&self, dialect: Dialect) -> Vec<Value> {
        [self.delivered_before, self.dead_before, self.now].map(|at| dialect.time(at)).into()
    }
}

/// Returns the condition that all deliveries of a request ended long ago and that nothing refers to it any more. A dead
/// letter that a running replay has not reached yet counts as pending.
fn is_old(request: &str) -> String {
    format!(
        "NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.request_id = {request}.id) \
         AND NOT EXISTS (SELECT 1 FROM idempotency_keys AS k \
             WHERE k.request_id = {request}.id AND k.expires_at > $3) \
         AND NOT EXISTS (SELECT 1 FROM deliveries AS d WHERE d.request_id = {request}.id AND ( \
             d.due_at IS NOT NULL \
             OR (d.state <> 'dead' AND d.updated_at >= $1) \
             OR (d.state = 'dead' AND (d.updated_at >= $2 OR EXISTS ( \
                 SELECT 1 FROM replays AS p WHERE p.state = 'running' \
                 AND (d.request_id, d.destination) > (p.last_request_id, p.last_destination) \
                 AND d.updated_at < p.died_before \
                 AND (p.died_since IS NULL OR d.updated_at >= p.died_since) \
                 AND (p.route IS NULL OR p.route = {request}.route) \
                 AND (p.destination IS NULL OR p.destination = d.destination) \
                 AND (p.reason IS NULL OR p.reason = d.reason) \
                 AND (p.error_class IS NULL OR p.error_class = d.last_error_class))))))"
    )
}

/// A locked request, and how many of its deliveries are locked.
struct Locked {
    id: i64,
    deliveries: i64,
}

/// Locks the requests that no other transaction has locked, and likewise their deliveries.
async fn lock(connection: &impl ConnectionTrait, old: &[i64]) -> Result<Vec<Locked>, StoreError> {
    #[derive(FromQueryResult)]
    struct Row {
        id: i64,
    }
    let lock = Dialect::of(connection).lock_free_rows();
    let sql = format!("SELECT id FROM requests WHERE id IN (SELECT id FROM r) {lock}");
    let requests: Vec<Row> = ids(old).query(connection, Vec::new(), &sql).await?;
    let requests: Vec<_> = requests.into_iter().map(|row| row.id).collect();
    let sql =
        format!("SELECT request_id AS id FROM deliveries WHERE request_id IN (SELECT id FROM r) {lock}");
    let mut deliveries: HashMap<i64, i64> = HashMap::new();
    for Row { id } in ids(&requests).query(connection, Vec::new(), &sql).await? {
        *deliveries.entry(id).or_default() += 1;
    }
    let locked = |id| Locked { id, deliveries: deliveries.get(&id).copied().unwrap_or_default() };
    Ok(requests.into_iter().map(locked).collect())
}

/// Returns the requests that are still old now that they and all their deliveries are locked.
async fn still_old(
    connection: &impl ConnectionTrait,
    cutoff: &Cutoff,
    locked: &[Locked],
) -> Result<Vec<i64>, StoreError> {
    #[derive(FromQueryResult)]
    struct Row {
        id: i64,
    }
    let sql = format!(
        "SELECT q.id FROM r JOIN requests AS q ON q.id = r.id WHERE {} \
         AND r.deliveries = (SELECT count(*) FROM deliveries AS d WHERE d.request_id = q.id)",
        is_old("q")
    );
    let old: Vec<Row> = Rows::of(locked)
        .column("id", |locked| locked.id)
        .column("deliveries", |locked| locked.deliveries)
        .query(connection, cutoff.parameters(Dialect::of(connection)), &sql)
        .await?;
    Ok(old.into_iter().map(|row| row.id).collect())
}

/// Deletes from one table after the other, leaves first, one statement each, and counts the rows.
async fn delete(connection: &impl ConnectionTrait, old: &[i64]) -> Result<Purged, StoreError> {
    let delete = async |table: &str, column: &str| {
        let sql = format!("DELETE FROM {table} WHERE {column} IN (SELECT id FROM r)");
        ids(old).execute(connection, Vec::new(), &sql).await
    };
    Ok(Purged {
        attempts: delete("attempts", "request_id").await?,
        deliveries: delete("deliveries", "request_id").await?,
        requests: delete("requests", "id").await?,
    })
}

fn ids(ids: &[i64]) -> Rows<'_, i64> {
    Rows::of(ids).column("id", |id| *id)
}
