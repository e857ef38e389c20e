//! What ended long ago, deleted for good, a batch at a time.
//!
//! Requests are looked through in the order of their ids, which is that of their acceptance, until they are too
//! young to have ended long ago: no index is kept for it. A request goes with its deliveries and their attempts, or
//! stays with all of them.
//!
//! A batch is one short transaction that waits for nobody: on PostgreSQL it leaves rows that somebody has locked
//! for the next time. So it stands in nobody's way for longer than that, and no two can wait for each other. What
//! was found to be old is looked at again once it is locked.

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

/// Most requests that are looked at, and deleted, at once: some 40 ms.
const MOST: usize = 500;
/// Bodies of that many bytes fill a batch: PostgreSQL deletes a large one piece by piece.
const MOST_BYTES: u64 = 16 << 20;

/// What is old.
#[derive(Debug, Clone, Copy)]
pub struct Cutoff {
    /// What was delivered or cancelled before.
    pub delivered_before: DateTime<Utc>,
    /// What died before.
    pub dead_before: DateTime<Utc>,
    /// Idempotency keys that have not expired by then keep their requests.
    pub now: DateTime<Utc>,
}

/// What was deleted, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    /// How many requests.
    pub requests: u64,
    /// How many deliveries they had.
    pub deliveries: u64,
    /// How many attempts these took.
    pub attempts: u64,
}

impl std::ops::AddAssign for Purged {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.deliveries += other.deliveries;
        self.attempts += other.attempts;
    }
}

/// One batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// What went with it.
    pub purged: Purged,
    /// Behind which request the next one begins; `None` if no more can be old.
    pub next: Option<RequestId>,
}

/// Deletes what is old of the next requests behind `after`. What has not ended stays, and so do requests that the
/// broker has not acknowledged, that an idempotency key stands for, and that a replay is to come to.
///
/// # Errors
/// If the database cannot be asked; what batches before have deleted is gone.
pub async fn purge(store: &Store, cutoff: &Cutoff, after: Option<RequestId>) -> Result<Batch, StoreError> {
    let page = look(store.connection(), cutoff, after).await?;
    // On SQLite a transaction keeps everybody else waiting, so it is not begun for nothing.
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

/// Counts what [`purge`] would delete, and deletes nothing.
///
/// # Errors
/// If the database cannot be asked.
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

/// The oldest request that is there.
///
/// # Errors
/// If the database cannot be asked.
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

/// The next requests, and which of them are old.
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

    // What was accepted later cannot have ended before.
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
    /// `$1` to `$3` of [`is_old`].
    fn parameters(&self, dialect: Dialect) -> Vec<Value> {
        [self.delivered_before, self.dead_before, self.now].map(|at| dialect.time(at)).into()
    }
}

/// Whether all of a request ended long ago, and nobody needs it any more. A dead letter that a replay has yet to come
/// to is on its way.
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

/// A request that nobody else can change, nor so many of its deliveries.
struct Locked {
    id: i64,
    deliveries: i64,
}

/// Locks those of the requests that are free, and their deliveries that are.
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

/// Those that are old now that they cannot change any more, with all their deliveries.
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

/// One table after the other, from the leaves: set by set, and counted.
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
