//! Leases of node ids: who may make request ids under which node id, and until when.
//!
//! All times are of the database's own clock, so that replicas whose clocks differ agree.

use std::ops::RangeInclusive;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use throughline_snowflake::{NodeId, RequestId};

use crate::dialect::{self, Dialect};
use crate::entity::node;
use crate::error::StoreError;
use crate::operation::{Operation, Session};
use crate::requests::{number, request_id};
use crate::store::Store;

/// The right to make ids under a node id, for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The node id.
    pub node: NodeId,
    /// How many leases of this node id there were, this one included.
    pub epoch: i64,
    /// Ids must be younger than the end of the lease before this one, and than all that are there, whatever clock
    /// they were made by. The Unix epoch if there is none.
    pub not_before: DateTime<Utc>,
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
         RETURNING node_id, holder, epoch, expires_at",
        dialect.later("$3")
    );
    let values = [i64::from(free.node_id).into(), dialect::text(holder).into(), millis(ttl)];
    let statement = dialect.statement(sql, values);
    let row = node::Model::find_by_statement(statement).one(&operation).await?;
    let row = row.ok_or_else(|| StoreError::foreign("lease", "it was not returned"))?;
    let newest = newest_id(&operation).await?;
    drop(operation);
    transaction.commit().await?;
    let node = NodeId::try_from(number::<_, u16>("node id", row.node_id)?)
        .map_err(|error| StoreError::foreign("node id", error.to_string()))?;
    let not_before = free.expires_at.max(newest.map(RequestId::created_at)).unwrap_or(DateTime::UNIX_EPOCH);
    Ok(Some(Lease { node, epoch: row.epoch, not_before, expires_at: row.expires_at }))
}

/// Has a lease end `ttl` from now; false if somebody else has taken the node id over.
///
/// # Errors
/// If the database cannot be asked.
pub async fn renew(
    session: &impl Session,
    lease: &Lease,
    holder: &str,
    ttl: Duration,
) -> Result<bool, StoreError> {
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

async fn newest_id(connection: &impl ConnectionTrait) -> Result<Option<RequestId>, StoreError> {
    #[derive(FromQueryResult)]
    struct Newest {
        id: Option<i64>,
    }
    let statement = Dialect::of(connection).statement("SELECT max(id) AS id FROM requests", []);
    let newest = Newest::find_by_statement(statement).one(connection).await?;
    newest.and_then(|newest| newest.id).map(request_id).transpose()
}

/// Whether the lease was still the holder's.
async fn end_at(
    connection: &impl ConnectionTrait,
    lease: &Lease,
    holder: &str,
    expires_at: &str,
    parameter: Option<Value>,
) -> Result<bool, StoreError> {
    let sql = format!(
        "UPDATE nodes SET expires_at = {expires_at} WHERE node_id = $1 AND holder = $2 AND epoch = $3"
    );
    let mut values =
        vec![i64::from(lease.node.as_u16()).into(), dialect::text(holder).into(), lease.epoch.into()];
    values.extend(parameter);
    let statement = Dialect::of(connection).statement(sql, values);
    Ok(connection.execute_raw(statement).await?.rows_affected() == 1)
}

/// At most some centuries, which is for good.
fn millis(duration: Duration) -> Value {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).into()
}
