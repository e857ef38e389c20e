//! Leases of node ids: who may make request ids under which node id, and until when.
//!
//! All times are of the database's own clock, so that replicas whose clocks differ agree.

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

/// How far ids may be ahead of the database's clock. Were they further ahead, all later ones would have to be too,
/// and retention, which goes by ids, would find nothing old.
pub const AHEAD: TimeDelta = TimeDelta::hours(1);

/// The right to make ids under a node id, for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The node id.
    pub node: NodeId,
    /// How many leases of this node id there were, this one included.
    pub epoch: i64,
    /// Ids must be younger than the end of the lease before this one, and than all that are there, whatever clock
    /// they were made by; but for those that are further [ahead](AHEAD) than ids may be. The Unix epoch if there is
    /// none.
    pub not_before: DateTime<Utc>,
    /// The database's clock when it was granted.
    pub granted_at: DateTime<Utc>,
    /// When it runs out, as long as it is not renewed.
    pub expires_at: DateTime<Utc>,
}

/// Leases one of these node ids to `holder`: the lowest that nobody ever had, else the one that is free for longest.
/// `None` if all of them are taken.
///
/// # Errors
/// If the database cannot be asked.
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
        // Who else acquires waits, so that no two choose the same id; SQLite has one writer anyway.
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
    let row = row.ok_or_else(|| StoreError::foreign("lease", "it was not returned"))?;
    let newest = newest_id(&operation, row.granted_at + AHEAD).await?;
    drop(operation);
    transaction.commit().await?;
    let node = NodeId::try_from(number::<_, u16>("node id", row.node_id)?)
        .map_err(|error| StoreError::foreign("node id", error.to_string()))?;
    let not_before = free.expires_at.max(newest.map(RequestId::created_at)).unwrap_or(DateTime::UNIX_EPOCH);
    let Fresh { epoch, expires_at, granted_at, .. } = row;
    Ok(Some(Lease { node, epoch, not_before, granted_at, expires_at }))
}

/// Has a lease end `ttl` from now, and gives that now; `None` if another process has taken the node id over.
///
/// # Errors
/// If the database cannot be asked.
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

/// Ends a lease now, unless somebody else has taken the node id over.
///
/// # Errors
/// If the database cannot be asked.
pub async fn release(session: &impl Session, lease: &Lease, holder: &str) -> Result<(), StoreError> {
    let connection = &Operation::new(session, "release_lease");
    let now = Dialect::of(connection).now();
    end_at(connection, lease, holder, now, None).await?;
    Ok(())
}

impl Lease {
    /// A condition that holds as long as the lease does, and the values of the two parameters in it, from `$first` on.
    ///
    /// It is part of the statement that writes under the lease, so that no process writes after another one has taken
    /// its node id over, however long it stood still in between.
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
    /// When its last lease ended, if there ever was one.
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

/// When that was, if the lease was still the holder's.
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

/// At most some centuries, which is for good.
fn millis(duration: Duration) -> Value {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).into()
}
