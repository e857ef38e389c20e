//! Requests as received, and their status.

use std::collections::HashMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, DerivePartialModel, EntityTrait, FromQueryResult, QueryFilter, QueryOrder};
use serde::de::value::{self, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer as _};
use throughline_api::{Attempt, DeliveryState};
use throughline_messages::{DeadReason, DeferralCause, ErrorClass, Origin, TraceContext};
use throughline_snowflake::RequestId;

use crate::delivery_key::DeliveryKey;
use crate::dialect::Dialect;
use crate::entity::delivery::State;
use crate::entity::{attempt, delivery, request};
use crate::error::StoreError;
use crate::nodes::Lease;
use crate::operation::{Operation, Session};
use crate::order;
use crate::rows::Rows;

/// A request to store, with one delivery to each destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRequest {
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
    /// The headers that the route keeps, in order; a name may repeat.
    pub headers: Vec<(String, String)>,
    /// The trace it belongs to.
    pub trace: Option<TraceContext>,
    /// The name of the client that sent it, if clients are configured.
    pub client: Option<String>,
    /// The record from which it was adopted.
    pub origin: Option<Adopted>,
    /// When it was accepted.
    pub accepted_at: DateTime<Utc>,
    /// Names of its destinations, each once.
    pub destinations: Vec<String>,
    /// When to act on a delivery without a reported outcome.
    pub due_at: DateTime<Utc>,
    /// The ordering group, if any: its deliveries are made after those of the same ordering group that were accepted
    /// before and have not ended.
    pub ordering_group: Option<String>,
}

/// An adopted record. It is adopted once, for as long as its request is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// Its position in Kafka.
    pub origin: Origin,
    /// A digest that distinguishes it from all other records.
    pub identity: [u8; 32],
}

/// A request with its deliveries and their attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredStatus {
    /// The request.
    pub request: StoredRequest,
    /// Its deliveries, ordered by destination.
    pub deliveries: Vec<StoredDelivery>,
}

/// The stored data of a request, except its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRequest {
    /// Its id.
    pub id: RequestId,
    /// The route that accepted it.
    pub route: String,
    /// Requests with the same key are delivered in order.
    pub ordering_key: Option<String>,
    /// The media type of the body.
    pub content_type: String,
    /// The length of the body.
    pub body_bytes: u64,
    /// The headers that the route keeps, in order.
    pub headers: Vec<(String, String)>,
    /// The trace it belongs to.
    pub trace: Option<TraceContext>,
    /// The name of the client that sent it, if clients are configured.
    pub client: Option<String>,
    /// `topic/partition/offset` of the record from which it was adopted.
    pub origin: Option<String>,
    /// When it was accepted.
    pub accepted_at: DateTime<Utc>,
}

/// A request at one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDelivery {
    /// The destination's name.
    pub destination: String,
    /// Its state.
    pub state: DeliveryState,
    /// How many attempts were made.
    pub attempt_count: u32,
    /// When its time window began: when its request was accepted, when it was replayed, or when it became the first of
    /// its ordering group.
    pub window_started_at: DateTime<Utc>,
    /// When it continues, or is published again if no outcome is reported before; `None` once it has ended.
    pub due_at: Option<DateTime<Utc>>,
    /// When it was last published; `None` while it waits for its due time. The ingest that accepts a request also
    /// publishes it, so this is set from the start.
    pub published_at: Option<DateTime<Utc>>,
    /// Why it was deferred.
    pub deferred_by: Option<DeferralCause>,
    /// The ordering group, if any: it is made after those of the same ordering group that were accepted before and have
    /// not ended.
    pub ordering_group: Option<String>,
    /// The status of the last response.
    pub last_status: Option<u16>,
    /// Why it is dead.
    pub reason: Option<DeadReason>,
    /// The class of the last attempt's error.
    pub last_error_class: Option<ErrorClass>,
    /// The last error, as text.
    pub last_error: Option<String>,
    /// When its state last changed.
    pub updated_at: DateTime<Utc>,
    /// Its attempts, in order.
    pub attempts: Vec<Attempt>,
}

/// Stores requests, their deliveries as `pending`, and their outbox rows, which belong to the node of `lease`. Returns
/// the deliveries that wait for earlier ones of their ordering group.
///
/// # Errors
/// [`StoreError::LeaseOver`] if the lease has ended; or if one of the requests cannot be stored. In both cases none is
/// stored, once the caller's transaction is rolled back.
pub async fn insert(
    session: &impl Session,
    lease: &Lease,
    requests: &[NewRequest],
) -> Result<Vec<DeliveryKey>, StoreError> {
    let connection = &Operation::new(session, "accept");
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    Rows::of(requests)
        .column("id", |request| request.id)
        .column("route", |request| request.route.as_str())
        .column("ordering_key", |request| request.ordering_key.as_deref())
        .column("body", |request| request.body.clone())
        .column("content_type", |request| request.content_type.as_str())
        .column("headers", |request| serde_json::json!(request.headers))
        .column("traceparent", |request| Some(request.trace.as_ref()?.traceparent.as_str()))
        .column("tracestate", |request| request.trace.as_ref()?.tracestate.as_deref())
        .column("client", |request| request.client.as_deref())
        .column("origin", |request| request.origin.as_ref().map(|adopted| &adopted.origin))
        .column("adoption", |request| request.origin.as_ref().map(|adopted| &adopted.identity))
        .column("accepted_at", |request| request.accepted_at)
        .insert(connection, "requests", "")
        .await?;
    let deliveries: Vec<_> = requests
        .iter()
        .flat_map(|request| request.destinations.iter().map(move |destination| (request, destination)))
        .collect();
    Rows::of(&deliveries)
        .column("request_id", |(request, _)| request.id)
        .column("destination", |(_, destination)| destination.as_str())
        .column("state", |_| State::Pending)
        .column("attempts", |_| 0)
        .column("window_started_at", |(request, _)| request.accepted_at)
        .column("due_at", |(request, _)| request.due_at)
        .column("published_at", |(request, _)| request.accepted_at)
        .column("ordering_group", |(request, _)| request.ordering_group.as_deref())
        .column("updated_at", |(request, _)| request.accepted_at)
        .insert(connection, "deliveries", "")
        .await?;
    let (holds, [node, epoch]) = lease.condition(Dialect::of(connection), 1);
    let sql = format!(
        "INSERT INTO outbox (request_id, node_id) SELECT r.request_id, CAST($1 AS smallint) FROM r WHERE {holds}"
    );
    let ids = Rows::of(requests).column("request_id", |request| request.id);
    if ids.execute(connection, vec![node, epoch], &sql).await? == 0 {
        return Err(StoreError::LeaseOver { node: lease.node });
    }
    order::line_up(connection, requests).await
}

/// Returns the requests as which some of these records are already adopted, by the records' identities.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn adopted(
    session: &impl Session,
    identities: &[[u8; 32]],
) -> Result<HashMap<[u8; 32], RequestId>, StoreError> {
    #[derive(FromQueryResult)]
    struct Found {
        id: i64,
        adoption: Vec<u8>,
    }

    let connection = &Operation::new(session, "find_adopted");
    // SQLite joins the tables of a CROSS JOIN in this order.
    let sql = "SELECT requests.id, requests.adoption FROM r CROSS JOIN requests WHERE requests.adoption = r.identity";
    let found: Vec<Found> = Rows::of(identities)
        .column("identity", |identity| identity)
        .query(connection, Vec::new(), sql)
        .await?;
    let pair = |Found { id, adoption }: Found| {
        let identity = <[u8; 32]>::try_from(adoption)
            .map_err(|other| StoreError::foreign("digest", format!("{} bytes", other.len())))?;
        Ok((identity, request_id(id)?))
    };
    found.into_iter().map(pair).collect()
}

/// Returns the status of a request; `None` if no request has this id.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn find(session: &impl Session, id: RequestId) -> Result<Option<StoredStatus>, StoreError> {
    let connection = &Operation::new(session, "find_request");
    let request =
        request::Entity::find_by_id(id.as_i64()).into_partial_model::<WithoutBody>().one(connection).await?;
    let Some(request) = request else { return Ok(None) };
    let deliveries = delivery::Entity::find()
        .filter(delivery::Column::RequestId.eq(id.as_i64()))
        .order_by_asc(delivery::Column::Destination)
        .all(connection)
        .await?;
    let mut attempts = attempt::Entity::find()
        .filter(attempt::Column::RequestId.eq(id.as_i64()))
        .order_by_asc(attempt::Column::Number)
        .order_by_asc(attempt::Column::StartedAt)
        .all(connection)
        .await?;
    let mut stored = Vec::with_capacity(deliveries.len());
    for delivery in deliveries {
        let of_it = attempts.extract_if(.., |attempt| attempt.destination == delivery.destination).collect();
        stored.push(StoredDelivery::new(delivery, of_it)?);
    }
    Ok(Some(StoredStatus { request: request.try_into()?, deliveries: stored }))
}

/// Returns the media type and the body of a request, byte for byte; `None` if no request has this id.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn body(session: &impl Session, id: RequestId) -> Result<Option<(String, Bytes)>, StoreError> {
    let connection = &Operation::new(session, "find_body");
    let request = request::Entity::find_by_id(id.as_i64()).one(connection).await?;
    Ok(request.map(|request| (request.content_type, request.body.into())))
}

/// The columns except the body, which may be large and is not part of the status.
#[derive(DerivePartialModel)]
#[sea_orm(entity = "request::Entity")]
struct WithoutBody {
    id: i64,
    route: String,
    ordering_key: Option<String>,
    content_type: String,
    #[sea_orm(from_expr = "Expr::cust(BODY_BYTES)")]
    body_bytes: i64,
    headers: serde_json::Value,
    traceparent: Option<String>,
    tracestate: Option<String>,
    client: Option<String>,
    origin: Option<String>,
    accepted_at: DateTime<Utc>,
}

/// Both databases compute it without reading the body.
const BODY_BYTES: &str = "CAST(length(body) AS bigint)";

impl TryFrom<WithoutBody> for StoredRequest {
    type Error = StoreError;

    fn try_from(row: WithoutBody) -> Result<Self, Self::Error> {
        Ok(Self {
            id: request_id(row.id)?,
            route: row.route,
            ordering_key: row.ordering_key,
            content_type: row.content_type,
            body_bytes: number("length of a body", row.body_bytes)?,
            headers: serde_json::from_value(row.headers)
                .map_err(|error| StoreError::foreign("list of headers", error.to_string()))?,
            trace: trace(row.traceparent, row.tracestate),
            client: row.client,
            origin: row.origin,
            accepted_at: row.accepted_at,
        })
    }
}

impl StoredDelivery {
    fn new(row: delivery::Model, attempts: Vec<attempt::Model>) -> Result<Self, StoreError> {
        Ok(Self {
            destination: row.destination,
            state: row.state.into(),
            attempt_count: number("number of attempts", row.attempts)?,
            window_started_at: row.window_started_at,
            due_at: row.due_at,
            published_at: row.published_at,
            deferred_by: optional_name("cause of a deferral", row.deferred_by.as_deref())?,
            ordering_group: row.ordering_group,
            last_status: row.last_status.map(|status| number("status", status)).transpose()?,
            reason: optional_name("reason", row.reason.as_deref())?,
            last_error_class: optional_name("error class", row.last_error_class.as_deref())?,
            last_error: row.last_error,
            updated_at: row.updated_at,
            attempts: attempts.into_iter().map(to_attempt).collect::<Result<_, _>>()?,
        })
    }
}

fn to_attempt(row: attempt::Model) -> Result<Attempt, StoreError> {
    Ok(Attempt {
        number: number("number of an attempt", row.number)?,
        started_at: row.started_at,
        duration_ms: number("duration", row.duration_ms)?,
        outcome: name("outcome", &row.outcome)?,
        status: row.status.map(|status| number("status", status)).transpose()?,
        error_class: optional_name("error class", row.error_class.as_deref())?,
        error: row.error,
        response_excerpt: row.response_excerpt,
        trace_id: row.trace_id,
        origin: row.origin,
    })
}

/// Parses a name, as serde writes it. Names of later versions are kept by the types that may have such.
pub(crate) fn name<T: DeserializeOwned>(what: &'static str, name: &str) -> Result<T, StoreError> {
    let text: StrDeserializer<'_, value::Error> = name.into_deserializer();
    T::deserialize(text).map_err(|error| StoreError::foreign(what, format!("{error}; found `{name}`")))
}

pub(crate) fn optional_name<T: DeserializeOwned>(
    what: &'static str,
    text: Option<&str>,
) -> Result<Option<T>, StoreError> {
    text.map(|text| name(what, text)).transpose()
}

/// Converts a number from the database, which has no unsigned types.
pub(crate) fn number<N, T>(what: &'static str, number: N) -> Result<T, StoreError>
where
    T: TryFrom<N, Error: std::fmt::Display>,
{
    T::try_from(number).map_err(|error| StoreError::foreign(what, error.to_string()))
}

pub(crate) fn request_id(id: i64) -> Result<RequestId, StoreError> {
    RequestId::from_i64(id).map_err(|error| StoreError::foreign("request id", error.to_string()))
}

pub(crate) fn trace(traceparent: Option<String>, tracestate: Option<String>) -> Option<TraceContext> {
    Some(TraceContext { traceparent: traceparent?, tracestate })
}
