//! Lanes: deliveries that are made one after the other.
//!
//! A delivery that is accepted while another of its lane has not ended, at the same destination, waits as
//! deferred by `order`, and is not published. When nobody is before it any more, it is due.
//!
//! Who adds to a lane and who takes from it must not do so at the same time: either the new one sees that the
//! one before it has ended, or whoever ends that one sees the new one. On PostgreSQL a lock for each lane
//! sees to that, until the transaction ends; on `SQLite` there is one writer at a time anyway.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult};
use throughline_snowflake::RequestId;

use crate::dialect::{self, Dialect};
use crate::error::StoreError;
use crate::requests::{NewRequest, number, request_id};
use crate::rows::Rows;

/// Who waits in which lane, and for which destination.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, FromQueryResult)]
pub(crate) struct Place {
    pub(crate) lane: String,
    pub(crate) destination: String,
}

#[derive(FromQueryResult)]
struct Key {
    request_id: i64,
    destination: String,
}

/// Begins to change lanes, those in which these requests have deliveries. To be called before any row of them
/// is locked, so that two cannot wait for each other.
pub(crate) async fn enter(
    connection: &impl ConnectionTrait,
    requests: &[RequestId],
) -> Result<(), StoreError> {
    if Dialect::of(connection) == Dialect::Sqlite {
        return Ok(());
    }
    let sql = lock(
        "SELECT lane FROM deliveries JOIN r ON deliveries.request_id = r.request_id \
         WHERE lane IS NOT NULL",
    );
    Rows::of(requests).column("request_id", |id| *id).execute(connection, Vec::new(), &sql).await?;
    Ok(())
}

/// Has those of new deliveries wait that are not the first of their lane; gives them.
pub(crate) async fn line_up(
    connection: &impl ConnectionTrait,
    requests: &[NewRequest],
) -> Result<Vec<(RequestId, String)>, StoreError> {
    let new: Vec<_> =
        requests.iter().filter_map(|request| Some((request.id, request.lane.as_deref()?))).collect();
    if new.is_empty() {
        return Ok(Vec::new());
    }
    if Dialect::of(connection) == Dialect::Postgres {
        let sql = lock("SELECT lane FROM r");
        Rows::of(&new).column("lane", |(_, lane)| *lane).execute(connection, Vec::new(), &sql).await?;
    }
    let in_lanes = requests.iter().filter(|request| request.lane.is_some());
    let keys = |request: &NewRequest| {
        let id = request.id;
        request.destinations.clone().into_iter().map(move |destination| (id, destination))
    };
    queue(connection, &in_lanes.flat_map(keys).collect::<Vec<_>>()).await
}

/// Has deliveries wait that begin while another one of their lane has not ended; gives them. Of those that come
/// together, the one with the lowest id is the first.
pub(crate) async fn queue(
    connection: &impl ConnectionTrait,
    deliveries: &[(RequestId, String)],
) -> Result<Vec<(RequestId, String)>, StoreError> {
    let sql = "UPDATE deliveries SET deferred_by = 'order', published_at = NULL \
         WHERE (request_id, destination) IN (SELECT request_id, destination FROM r) AND EXISTS ( \
             SELECT 1 FROM deliveries AS other \
             WHERE other.lane = deliveries.lane AND other.destination = deliveries.destination \
             AND other.lane IS NOT NULL AND other.due_at IS NOT NULL \
             AND (other.request_id < deliveries.request_id \
                  OR (other.request_id, other.destination) NOT IN \
                     (SELECT request_id, destination FROM r))) \
         RETURNING request_id, destination";
    let waiting: Vec<Key> = Rows::of(deliveries)
        .column("request_id", |(id, _)| *id)
        .column("destination", |(_, destination)| destination.as_str())
        .query(connection, Vec::new(), sql)
        .await?;
    waiting.into_iter().map(|key| Ok((request_id(key.request_id)?, key.destination))).collect()
}

/// Has the next ones be due at `now`, where nobody is before them any more; says whether there are any. The
/// lanes were [entered](enter) before.
pub(crate) async fn move_up(
    connection: &impl ConnectionTrait,
    places: &[Place],
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    if places.is_empty() {
        return Ok(false);
    }
    let dialect = Dialect::of(connection);
    // Its time begins now: it did not wait for the third party.
    let sql = "UPDATE deliveries SET deferred_by = NULL, due_at = $1, since = $1 \
         WHERE deferred_by = 'order' AND (request_id, destination) IN ( \
             SELECT (SELECT min(d.request_id) FROM deliveries AS d \
                 WHERE d.lane = r.lane AND d.destination = r.destination \
                 AND d.lane IS NOT NULL AND d.due_at IS NOT NULL), r.destination \
             FROM r WHERE NOT EXISTS (SELECT 1 FROM deliveries AS d \
                 WHERE d.lane = r.lane AND d.destination = r.destination \
                 AND d.lane IS NOT NULL AND d.due_at IS NOT NULL \
                 AND d.deferred_by IS DISTINCT FROM 'order'))";
    let moved = Rows::of(places)
        .column("lane", |place| place.lane.as_str())
        .column("destination", |place| place.destination.as_str())
        .execute(connection, vec![dialect.time(now)], sql)
        .await?;
    Ok(moved > 0)
}

/// The same behind deliveries of these requests, which have just ended.
pub(crate) async fn move_up_behind(
    connection: &impl ConnectionTrait,
    requests: &[RequestId],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "SELECT DISTINCT lane, destination FROM deliveries \
         WHERE lane IS NOT NULL AND due_at IS NULL AND request_id IN (SELECT request_id FROM r)";
    let places: Vec<Place> =
        Rows::of(requests).column("request_id", |id| *id).query(connection, Vec::new(), sql).await?;
    move_up(connection, &places, now).await?;
    Ok(())
}

/// Who has to end before a delivery may go on that is deferred by `order`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// The request whose turn it is.
    pub first: RequestId,
    /// How many they are, that one included.
    pub count: u64,
}

/// Who is before a delivery in its lane; `None` if it has none, or is the next.
///
/// # Errors
/// If the database cannot be asked.
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
    // One that does not wait for its turn has it, whatever its id: others may have come back from the dead.
    let sql = "SELECT coalesce(min(CASE WHEN other.deferred_by = 'order' THEN NULL ELSE other.request_id END), \
             min(other.request_id)) AS first, count(*) AS count \
         FROM deliveries AS own JOIN deliveries AS other \
         ON other.lane = own.lane AND other.destination = own.destination \
         WHERE own.request_id = $1 AND own.destination = $2 AND other.request_id <> own.request_id \
         AND other.lane IS NOT NULL AND other.due_at IS NOT NULL \
         AND (other.request_id < own.request_id OR coalesce(other.deferred_by, '') <> 'order')";
    let parameters = [id.as_i64().into(), dialect::text(destination).into()];
    let row =
        Row::find_by_statement(Dialect::of(connection).statement(sql, parameters)).one(connection).await?;
    let Some(Row { first: Some(first), count }) = row else { return Ok(None) };
    Ok(Some(Ahead { first: request_id(first)?, count: number("number of deliveries", count)? }))
}

/// Locks the lanes that a query gives, until the transaction ends, in one order, so that two cannot wait for each
/// other. Each lane has a lock of its own, so that lanes do not wait for one another; PostgreSQL has room for
/// `max_locks_per_transaction` × `max_connections` of them.
fn lock(lanes: &str) -> String {
    format!(
        "SELECT pg_advisory_xact_lock(lock) FROM ( \
         SELECT DISTINCT hashtextextended(lane, {LOCKS}) AS lock FROM ({lanes}) AS meant \
         ORDER BY lock) AS locks"
    )
}

/// Seeds the hash, so that other programs in the same database, and other locks of ours, have other numbers.
const LOCKS: i64 = 0x7468_726f_6c61_6e65;
