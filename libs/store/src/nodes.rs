//! Leases of node ids: the right to make request ids under a node id until a given time.
//!
//! All times are of the database's own clock, so that replicas with different clocks agree.

use std::ops::RangeInclusive;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use throughline_snowflake::{NodeId, RequestId};

use crate::dialect::{self, Dialect};
use crate::error::StoreError;
use crate::operation::{Operation, Session};
use crate::requests::{number, request_id};
use crate::store::Store;

/// How far ids may be ahead of the database's clock. If an id were further ahead, all later ids would have to be too,
/// and retention, which goes by ids, would find no old requests.
pub const AHEAD: TimeDelta = TimeDelta::hours(1);

/// The right to make ids under a node id for a limited time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The node id.
    pub node: NodeId,
    /// How many leases of this node id have been granted, including this one.
    pub epoch: i64,
    /// Ids under this lease must be later than this time. It is the end of the node id's previous lease, or the time of
    /// the newest request id in the database, whatever clock made it, if that is later. Request ids that are further
    /// [ahead](AHEAD) than allowed do not count. The Unix epoch if there is neither.
    pub not_before: DateTime<Utc>,
    /// The database's time when the lease was granted.
    pub granted_at: DateTime<Utc>,
    /// When the lease expires unless it is renewed.
    pub expires_at: DateTime<Utc>,
}

/// Leases one of these node ids to `holder`: the lowest that was never leased, otherwise the one that has been free for
/// longest. Returns `None` if all of them are leased.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn acquire(
    store: &Store,
    holder: &str,
    ttl: Duration,
    ids: &RangeInclusive<NodeId>,
) -> Result<Option<Lease>, StoreError> {
    let transaction = store.begin().await?;
    let operation = Operation::new(&transaction, "lease_node");
    let dialect = Dialect::of(&operation);
    if dialect == Dialect::Postgres {
        // Concurrent calls wait here, so that no two choose the same id. SQLite has a single writer anyway.
        operation.execute_unprepared("LOCK TABLE nodes IN SHARE ROW EXCLUSIVE MODE").await?;
    }
    let Some(free) = find_free(&operation, ids).await? else { return Ok(None) };
    let sql = format!(
        "INSERT INTO nodes (node_id, holder, epoch, expires_at) VALUES ($1, $2, 1, {}) \
         ON CONFLICT (node_id) DO UPDATE SET \
         holder = excluded.holder, epoch = nodes.epoch + 1, expires_at = excluded.expires_at \
         RETURNING node_id, epoch, expires_at, {} AS granted_at",
        dialect.later("$3"),
        dialect.now()
    );
    let values = [i64::from(free.node_id).into(), dialect::text(holder).into(), millis(ttl)];
    let statement = dialect.statement(sql, values);
    let row = Fresh::find_by_statement(statement).one(&operation).await?;
    let row = row.ok_or_else(|| StoreError::foreign("lease", "the statement returned none"))?;
    let newest = newest_id(&operation, row.granted_at + AHEAD).await?;
    drop(operation);
    transaction.commit().await?;
    let node = NodeId::try_from(number::<_, u16>("node id", row.node_id)?)
        .map_err(|error| StoreError::foreign("node id", error.to_string()))?;
    let not_before = free.expires_at.max(newest.map(RequestId::created_at)).unwrap_or(DateTime::UNIX_EPOCH);
    let Fresh { epoch, expires_at, granted_at, .. } = row;
    Ok(Some(Lease { node, epoch, not_before, granted_at, expires_at }))
}

/// Extends a lease to `ttl` from now, and returns the database's time; `None` if another process has taken the node id
/// over.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn renew(
    session: &impl Session,
    lease: &Lease,
    holder: &str,
    ttl: Duration,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    let connection = &Operation::new(session, "renew_lease");
    let expires_at = Dialect::of(connection).later("$4");
    end_at(connection, lease, holder, &expires_at, Some(millis(ttl))).await
}

/// Ends a lease now, unless another process has taken the node id over.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn release(session: &impl Session, lease: &Lease, holder: &str) -> Result<(), StoreError> {
    let connection = &Operation::new(session, "release_lease");
    let now = Dialect::of(connection).now();
    end_at(connection, lease, holder, now, None).await?;
    Ok(())
}

impl Lease {
    /// Returns a condition that is true while the lease holds, and the values of its two parameters, numbered from
    /// `$first`.
    ///
    /// It is part of the statement that writes under the lease. A process that was frozen therefore cannot write after
    /// another one has taken over its node id.
    pub(crate) fn condition(&self, dialect: Dialect, first: usize) -> (String, [Value; 2]) {
        let sql = format!(
            "EXISTS (SELECT 1 FROM nodes WHERE nodes.node_id = ${first} AND nodes.epoch = ${} \
             AND nodes.expires_at > {})",
            first + 1,
            dialect.now()
        );
        (sql, [i64::from(self.node.as_u16()).into(), self.epoch.into()])
    }
}

#[derive(FromQueryResult)]
struct Fresh {
    node_id: i16,
    epoch: i64,
    expires_at: DateTime<Utc>,
    granted_at: DateTime<Utc>,
}

#[derive(FromQueryResult)]
struct Free {
    node_id: i32,
    /// When its last lease ended; `None` if it was never leased.
    expires_at: Option<DateTime<Utc>>,
}

async fn find_free(
    connection: &impl ConnectionTrait,
    ids: &RangeInclusive<NodeId>,
) -> Result<Option<Free>, StoreError> {
    let dialect = Dialect::of(connection);
    let sql = format!(
        "WITH RECURSIVE ids (node_id) AS \
             (SELECT CAST($1 AS integer) UNION ALL SELECT node_id + 1 FROM ids WHERE node_id < $2) \
         SELECT ids.node_id, nodes.expires_at FROM ids LEFT JOIN nodes ON nodes.node_id = ids.node_id \
         WHERE nodes.node_id IS NULL OR nodes.expires_at <= {} \
         ORDER BY nodes.expires_at NULLS FIRST, ids.node_id LIMIT 1",
        dialect.now(),
    );
    let bounds = [ids.start(), ids.end()].map(|node| i64::from(node.as_u16()).into());
    let statement = dialect.statement(sql, bounds);
    Ok(Free::find_by_statement(statement).one(connection).await?)
}

async fn newest_id(
    connection: &impl ConnectionTrait,
    before: DateTime<Utc>,
) -> Result<Option<RequestId>, StoreError> {
    #[derive(FromQueryResult)]
    struct Newest {
        id: Option<i64>,
    }
    let before = RequestId::first_at(before).as_i64().into();
    let sql = "SELECT max(id) AS id FROM requests WHERE id < $1";
    let statement = Dialect::of(connection).statement(sql, [before]);
    let newest = Newest::find_by_statement(statement).one(connection).await?;
    newest.and_then(|newest| newest.id).map(request_id).transpose()
}

/// Sets the end of a lease. Returns the database's time, or `None` if the lease is no longer the holder's.
async fn end_at(
    connection: &impl ConnectionTrait,
    lease: &Lease,
    holder: &str,
    expires_at: &str,
    parameter: Option<Value>,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    #[derive(FromQueryResult)]
    struct Ended {
        at: DateTime<Utc>,
    }
    let dialect = Dialect::of(connection);
    let sql = format!(
        "UPDATE nodes SET expires_at = {expires_at} WHERE node_id = $1 AND holder = $2 AND epoch = $3 \
         RETURNING {} AS at",
        dialect.now()
    );
    let mut values =
        vec![i64::from(lease.node.as_u16()).into(), dialect::text(holder).into(), lease.epoch.into()];
    values.extend(parameter);
    let ended = Ended::find_by_statement(dialect.statement(sql, values)).one(connection).await?;
    Ok(ended.map(|ended| ended.at))
}

/// Returns milliseconds, capped at `i64::MAX`, which is practically forever.
fn millis(duration: Duration) -> Value {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).into()
}
