//! The outbox: requests that are committed and not yet acknowledged by the broker.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder};
use throughline_messages::TraceContext;
use throughline_snowflake::{NodeId, RequestId};

use crate::dialect::Dialect;
use crate::entity::{columns, outbox, request};
use crate::error::StoreError;
use crate::nodes::Lease;
use crate::operation::{Operation, Session};
use crate::requests::{NewRequest, number, request_id, trace};
use crate::rows::Rows;

/// The parts of a request that are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRequest {
    /// Its id.
    pub id: RequestId,
    /// The route that accepted it.
    pub route: String,
    /// Requests with the same key are delivered in order.
    pub ordering_key: Option<String>,
    /// The body, byte for byte.
    pub body: Bytes,
    /// The media type of the body.
    pub content_type: String,
    /// The trace it belongs to.
    pub trace: Option<TraceContext>,
    /// When it was accepted.
    pub accepted_at: DateTime<Utc>,
    /// The destinations to call once it is published: not those at which the delivery waits for its due time or for its
    /// ordering group, or has ended.
    pub destinations: Vec<String>,
}

impl From<NewRequest> for OutboxRequest {
    fn from(request: NewRequest) -> Self {
        let NewRequest {
            id, route, ordering_key, body, content_type, trace, accepted_at, destinations, ..
        } = request;
        Self { id, route, ordering_key, body, content_type, trace, accepted_at, destinations }
    }
}

impl TryFrom<request::Model> for OutboxRequest {
    type Error = StoreError;

    fn try_from(row: request::Model) -> Result<Self, Self::Error> {
        Ok(Self {
            id: request_id(row.id)?,
            route: row.route,
            ordering_key: row.ordering_key,
            body: row.body.into(),
            content_type: row.content_type,
            trace: trace(row.traceparent, row.tracestate),
            accepted_at: row.accepted_at,
            destinations: Vec::new(),
        })
    }
}

/// Returns requests that `node` has to publish with ids beyond `after`, in the order of ids. Reads at most `most_rows`,
/// and stops when the bodies reach `most_bytes`.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn pending(
    session: &impl Session,
    node: NodeId,
    after: Option<RequestId>,
    most_rows: u64,
    most_bytes: u64,
) -> Result<Vec<OutboxRequest>, StoreError> {
    let connection = &Operation::new(session, "read_outbox");
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let parameters = [
        i64::from(node.as_u16()).into(),
        after.map_or(-1, RequestId::as_i64).into(),
        number(most_rows).into(),
        number(most_bytes).into(),
    ];
    let sql = pending_sql();
    let statement = Dialect::of(connection).statement(sql, parameters);
    let rows = request::Model::find_by_statement(statement).all(connection).await?;
    let mut page: Vec<_> = rows.into_iter().map(OutboxRequest::try_from).collect::<Result<_, _>>()?;
    let mut destinations = destinations_of(connection, &page).await?;
    for request in &mut page {
        request.destinations = destinations.remove(&request.id.as_i64()).unwrap_or_default();
    }
    Ok(page)
}

/// Returns the destinations to call for each request. A delivery that waits for its due time or for its
/// ordering group, or has ended, has no publication time.
async fn destinations_of(
    connection: &impl ConnectionTrait,
    page: &[OutboxRequest],
) -> Result<HashMap<i64, Vec<String>>, StoreError> {
    #[derive(FromQueryResult)]
    struct Pending {
        request_id: i64,
        destination: String,
    }
    if page.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = "SELECT request_id, destination FROM deliveries \
         WHERE request_id IN (SELECT request_id FROM r) AND published_at IS NOT NULL \
         ORDER BY request_id, destination";
    let all: Vec<Pending> =
        Rows::of(page).column("request_id", |request| request.id).query(connection, Vec::new(), sql).await?;
    let mut destinations: HashMap<i64, Vec<String>> = HashMap::new();
    for Pending { request_id, destination } in all {
        destinations.entry(request_id).or_default().push(destination);
    }
    Ok(destinations)
}

/// The length of a body is known without reading it, so only the bodies of the page are read.
fn pending_sql() -> String {
    format!(
        "SELECT {} FROM ( \
            SELECT id, length(body) AS own, sum(length(body)) OVER (ORDER BY id) AS total \
            FROM (SELECT request_id FROM outbox WHERE node_id = $1 AND request_id > $2 \
                  ORDER BY request_id LIMIT $3) AS next \
            JOIN requests ON id = next.request_id \
        ) AS page JOIN requests ON requests.id = page.id \
        WHERE page.total - page.own < $4 ORDER BY requests.id",
        columns::<request::Entity>("requests")
    )
}

/// Removes requests that the broker has acknowledged or will never accept. That holds whichever node owns the rows by
/// now, so no lease is required: a row left behind would be published again.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn remove(session: &impl Session, ids: &[RequestId]) -> Result<(), StoreError> {
    let connection = &Operation::new(session, "remove_published");
    if ids.is_empty() {
        return Ok(());
    }
    let sql = "DELETE FROM outbox WHERE request_id IN (SELECT id FROM r)";
    Rows::of(ids).column("id", |id| *id).execute(connection, Vec::new(), sql).await?;
    Ok(())
}

/// Maximum number of rows that one statement takes over: it takes a second.
const TAKEN_AT_ONCE: u32 = 50_000;

/// Returns the nodes that have requests to publish but no lease, or one that has expired by the database's clock;
/// excludes the node of `lease`. The cost grows with the number of such nodes, not with their requests.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn nodes_that_are_gone(session: &impl Session, lease: &Lease) -> Result<Vec<NodeId>, StoreError> {
    #[derive(FromQueryResult)]
    struct Row {
        node_id: i16,
    }
    let connection = &Operation::new(session, "find_nodes_that_are_gone");
    let dialect = Dialect::of(connection);
    let sql = format!(
        "WITH RECURSIVE owners (node_id) AS ( \
             SELECT min(node_id) FROM outbox \
             UNION ALL SELECT (SELECT min(o.node_id) FROM outbox AS o WHERE o.node_id > owners.node_id) \
                 FROM owners WHERE owners.node_id IS NOT NULL) \
         SELECT owners.node_id FROM owners WHERE owners.node_id IS NOT NULL AND owners.node_id <> $1 \
         AND NOT EXISTS (SELECT 1 FROM nodes \
             WHERE nodes.node_id = owners.node_id AND nodes.expires_at > {}) \
         ORDER BY owners.node_id",
        dialect.now()
    );
    let statement = dialect.statement(sql, [i64::from(lease.node.as_u16()).into()]);
    let rows = Row::find_by_statement(statement).all(connection).await?;
    rows.into_iter().map(|row| node_id(row.node_id)).collect()
}

/// Assigns the next rows of an expired node to the node of `lease`, in the order of ids, while that lease holds.
/// Returns their number, which is zero once all rows are taken over.
///
/// A process that leases that node id meanwhile waits until the statement is done. If two nodes take over at the same
/// time, the second waits for the rows, finds that they belong to another node, and takes none.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn take_over(session: &impl Session, lease: &Lease, gone: NodeId) -> Result<u64, StoreError> {
    let connection = &Operation::new(session, "take_over_outbox");
    let dialect = Dialect::of(connection);
    let (holds, [node, epoch]) = lease.condition(dialect, 1);
    let share = if dialect == Dialect::Postgres { "FOR SHARE" } else { "" };
    let sql = format!(
        "WITH ended AS MATERIALIZED (SELECT nodes.node_id FROM nodes \
             WHERE nodes.node_id = $3 AND nodes.expires_at <= {} {share}) \
         UPDATE outbox SET node_id = CAST($1 AS smallint) WHERE node_id = $3 AND request_id IN ( \
             SELECT o.request_id FROM outbox AS o WHERE o.node_id = $3 \
             ORDER BY o.request_id LIMIT {TAKEN_AT_ONCE}) \
         AND (EXISTS (SELECT 1 FROM ended) OR NOT EXISTS (SELECT 1 FROM nodes WHERE nodes.node_id = $3)) \
         AND {holds}",
        dialect.now()
    );
    let parameters = [node, epoch, i64::from(gone.as_u16()).into()];
    Ok(connection.execute_raw(dialect.statement(sql, parameters)).await?.rows_affected())
}

fn node_id(number_of: i16) -> Result<NodeId, StoreError> {
    NodeId::try_from(number::<_, u16>("node id", number_of)?)
        .map_err(|error| StoreError::foreign("node id", error.to_string()))
}

/// Returns the node that has a request to publish; `None` once the broker has acknowledged it.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn node_of(connection: &impl ConnectionTrait, id: RequestId) -> Result<Option<NodeId>, StoreError> {
    let row = outbox::Entity::find_by_id(id.as_i64()).one(connection).await?;
    row.map(|row| node_id(row.node_id)).transpose()
}

/// The requests that a node has not yet published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// How many requests.
    pub requests: u64,
    /// How long ago the first one was accepted; zero if there is none.
    pub age: Duration,
}

/// Counts the requests that `node` has to publish at `now`, up to `most`.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn lag(
    session: &impl Session,
    node: NodeId,
    now: DateTime<Utc>,
    most: u64,
) -> Result<Lag, StoreError> {
    #[derive(FromQueryResult)]
    struct Row {
        requests: i64,
        since: Option<DateTime<Utc>>,
    }
    let connection = &Operation::new(session, "sample_outbox");
    let sql = "SELECT lag.requests, requests.accepted_at AS since FROM ( \
             SELECT count(*) AS requests, min(request_id) AS oldest FROM ( \
                 SELECT request_id FROM outbox WHERE node_id = $1 ORDER BY request_id LIMIT $2 \
             ) AS next \
         ) AS lag LEFT JOIN requests ON requests.id = lag.oldest";
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let statement = Dialect::of(connection).statement(sql, [i64::from(node.as_u16()).into(), most.into()]);
    let row = Row::find_by_statement(statement).one(connection).await?;
    let row = row.ok_or_else(|| StoreError::foreign("outbox", "the statement returned no count"))?;
    let age = row.since.map(|since| (now - since).to_std().unwrap_or_default());
    Ok(Lag { requests: number("number of requests", row.requests)?, age: age.unwrap_or_default() })
}

/// Returns the oldest request that `node` has to publish.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn oldest(session: &impl Session, node: NodeId) -> Result<Option<RequestId>, StoreError> {
    let connection = &Operation::new(session, "find_oldest_in_outbox");
    let row = outbox::Entity::find()
        .filter(outbox::Column::NodeId.eq(node.as_u16()))
        .order_by_asc(outbox::Column::RequestId)
        .one(connection)
        .await?;
    row.map(|row| request_id(row.request_id)).transpose()
}
