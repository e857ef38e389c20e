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

use crate::dialect::Dialect;
use crate::error::StoreError;
use crate::requests::{NewRequest, request_id};
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
             SELECT min(d.request_id), d.destination FROM deliveries AS d \
             JOIN r ON d.lane = r.lane AND d.destination = r.destination \
             WHERE d.lane IS NOT NULL AND d.due_at IS NOT NULL GROUP BY d.lane, d.destination \
             HAVING min(CASE WHEN d.deferred_by = 'order' THEN 1 ELSE 0 END) = 1)";
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

/// Locks the lanes that a query gives, until the transaction ends. In one order whoever does. There are many
/// more lanes than PostgreSQL has room for locks, so some share one.
fn lock(lanes: &str) -> String {
    format!(
        "SELECT pg_advisory_xact_lock({LOCKS}, bucket) FROM ( \
         SELECT DISTINCT (hashtextextended(lane, 0) & 255)::int AS bucket FROM ({lanes}) AS meant \
         ORDER BY bucket) AS buckets"
    )
}

/// Tells our advisory locks from those of others in the same database.
const LOCKS: i32 = 0x7468_726f;
