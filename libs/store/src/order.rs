//! Ordering groups: deliveries that are made one after the other.
//!
//! If a delivery is accepted while another one of its ordering group to the same destination has not ended, it waits as
//! deferred by `order` and is not published. When no earlier delivery is left, it becomes due.
//!
//! A transaction that adds to an ordering group and one that removes from it must not overlap: either the new delivery
//! sees that the earlier one has ended, or the transaction that ends the earlier one sees the new one. On PostgreSQL
//! one lock for each ordering group, held until the transaction ends, ensures this; on `SQLite` there is a single
//! writer anyway.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult};
use throughline_snowflake::RequestId;

use crate::delivery_key::DeliveryKey;
use crate::dialect::{self, Dialect};
use crate::error::StoreError;
use crate::requests::{NewRequest, number, request_id};
use crate::rows::Rows;

/// An ordering group at a destination.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, FromQueryResult)]
pub(crate) struct Group {
    pub(crate) ordering_group: String,
    pub(crate) destination: String,
}

/// Locks the ordering groups in which these requests have deliveries. Must be called before any of their rows is
/// locked, which prevents deadlocks.
pub(crate) async fn enter(
    connection: &impl ConnectionTrait,
    requests: &[RequestId],
) -> Result<(), StoreError> {
    if Dialect::of(connection) == Dialect::Sqlite {
        return Ok(());
    }
    let sql = lock(
        "SELECT ordering_group FROM deliveries JOIN r ON deliveries.request_id = r.request_id \
         WHERE ordering_group IS NOT NULL",
    );
    Rows::of(requests).column("request_id", |id| *id).execute(connection, Vec::new(), &sql).await?;
    Ok(())
}

/// Defers the new deliveries that are not first in their ordering group, and returns them.
pub(crate) async fn line_up(
    connection: &impl ConnectionTrait,
    requests: &[NewRequest],
) -> Result<Vec<DeliveryKey>, StoreError> {
    let new: Vec<_> = requests
        .iter()
        .filter_map(|request| Some((request.id, request.ordering_group.as_deref()?)))
        .collect();
    if new.is_empty() {
        return Ok(Vec::new());
    }
    if Dialect::of(connection) == Dialect::Postgres {
        let sql = lock("SELECT ordering_group FROM r");
        Rows::of(&new)
            .column("ordering_group", |(_, ordering_group)| *ordering_group)
            .execute(connection, Vec::new(), &sql)
            .await?;
    }
    let in_groups = requests.iter().filter(|request| request.ordering_group.is_some());
    let keys = |request: &NewRequest| {
        let id = request.id;
        request.destinations.clone().into_iter().map(move |destination| DeliveryKey::new(id, destination))
    };
    queue(connection, &in_groups.flat_map(keys).collect::<Vec<_>>()).await
}

/// Defers the deliveries that begin while another one of their ordering group has not ended, and returns them. Among
/// deliveries that begin together, the one with the lowest id is first.
pub(crate) async fn queue(
    connection: &impl ConnectionTrait,
    deliveries: &[DeliveryKey],
) -> Result<Vec<DeliveryKey>, StoreError> {
    let sql = "UPDATE deliveries SET deferred_by = 'order', published_at = NULL \
         WHERE (request_id, destination) IN (SELECT request_id, destination FROM r) AND EXISTS ( \
             SELECT 1 FROM deliveries AS other \
             WHERE other.ordering_group = deliveries.ordering_group AND other.destination = deliveries.destination \
             AND other.ordering_group IS NOT NULL AND other.due_at IS NOT NULL \
             AND (other.request_id < deliveries.request_id \
                  OR (other.request_id, other.destination) NOT IN \
                     (SELECT request_id, destination FROM r))) \
         RETURNING request_id, destination";
    DeliveryKey::rows(deliveries).query(connection, Vec::new(), sql).await
}

/// Makes the next delivery of each group due at `now` if no earlier one is left; returns whether there was any. The
/// ordering groups must be [entered](enter) before.
pub(crate) async fn move_up(
    connection: &impl ConnectionTrait,
    groups: &[Group],
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    if groups.is_empty() {
        return Ok(false);
    }
    let dialect = Dialect::of(connection);
    // The time window begins now: the delivery did not wait for the third party.
    let sql = "UPDATE deliveries SET deferred_by = NULL, due_at = $1, window_started_at = $1 \
         WHERE deferred_by = 'order' AND (request_id, destination) IN ( \
             SELECT (SELECT min(d.request_id) FROM deliveries AS d \
                 WHERE d.ordering_group = r.ordering_group AND d.destination = r.destination \
                 AND d.ordering_group IS NOT NULL AND d.due_at IS NOT NULL), r.destination \
             FROM r WHERE NOT EXISTS (SELECT 1 FROM deliveries AS d \
                 WHERE d.ordering_group = r.ordering_group AND d.destination = r.destination \
                 AND d.ordering_group IS NOT NULL AND d.due_at IS NOT NULL \
                 AND d.deferred_by IS DISTINCT FROM 'order'))";
    let moved = Rows::of(groups)
        .column("ordering_group", |group| group.ordering_group.as_str())
        .column("destination", |group| group.destination.as_str())
        .execute(connection, vec![dialect.time(now)], sql)
        .await?;
    Ok(moved > 0)
}

/// Makes the next deliveries due behind the deliveries of these requests that have just ended.
pub(crate) async fn move_up_behind(
    connection: &impl ConnectionTrait,
    requests: &[RequestId],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "SELECT DISTINCT ordering_group, destination FROM deliveries \
         WHERE ordering_group IS NOT NULL AND due_at IS NULL AND request_id IN (SELECT request_id FROM r)";
    let groups: Vec<Group> =
        Rows::of(requests).column("request_id", |id| *id).query(connection, Vec::new(), sql).await?;
    move_up(connection, &groups, now).await?;
    Ok(())
}

/// The deliveries that have to end before a delivery that is deferred by `order` can continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// The request that is delivered now.
    pub first: RequestId,
    /// How many there are, including that one.
    pub count: u64,
}

/// Returns the deliveries ahead of a delivery in its ordering group; `None` if it has no ordering group or is next.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn ahead(
    connection: &impl ConnectionTrait,
    id: RequestId,
    destination: &str,
) -> Result<Option<Ahead>, StoreError> {
    #[derive(FromQueryResult)]
    struct Row {
        first: Option<i64>,
        count: i64,
    }
    // A delivery that is not deferred by `order` is the first, whatever its id: others may be replayed dead letters.
    let sql = "SELECT coalesce(min(CASE WHEN other.deferred_by = 'order' THEN NULL ELSE other.request_id END), \
             min(other.request_id)) AS first, count(*) AS count \
         FROM deliveries AS own JOIN deliveries AS other \
         ON other.ordering_group = own.ordering_group AND other.destination = own.destination \
         WHERE own.request_id = $1 AND own.destination = $2 AND other.request_id <> own.request_id \
         AND other.ordering_group IS NOT NULL AND other.due_at IS NOT NULL \
         AND (other.request_id < own.request_id OR coalesce(other.deferred_by, '') <> 'order')";
    let parameters = [id.as_i64().into(), dialect::text(destination).into()];
    let row =
        Row::find_by_statement(Dialect::of(connection).statement(sql, parameters)).one(connection).await?;
    let Some(Row { first: Some(first), count }) = row else { return Ok(None) };
    Ok(Some(Ahead { first: request_id(first)?, count: number("number of deliveries", count)? }))
}

/// Returns SQL that locks the ordering groups of a query until the transaction ends, in a fixed order, which prevents
/// deadlocks. Each ordering group has a lock of its own, so that ordering groups do not wait for one another;
/// PostgreSQL keeps up to `max_locks_per_transaction` × `max_connections` of them.
fn lock(ordering_groups: &str) -> String {
    format!(
        "SELECT pg_advisory_xact_lock(lock) FROM ( \
         SELECT DISTINCT hashtextextended(ordering_group, {LOCKS}) AS lock FROM ({ordering_groups}) AS meant \
         ORDER BY lock) AS locks"
    )
}

/// Seeds the hash, so that the numbers differ from those of other programs in the same database and from our other
/// locks.
const LOCKS: i64 = 0x7468_726f_6c61_6e65;
