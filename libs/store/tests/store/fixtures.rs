use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
use throughline_messages::{
    AttemptReport, DeadReason, DeferralCause, ErrorClass, Failure, Outcome, TraceContext,
};
use throughline_snowflake::{NodeId, RequestId};
use throughline_store::{NewRequest, Store, StoredDelivery, StoredStatus, outbox, requests};
use throughline_testkit::leased;

pub(crate) fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_767_225_600, 123_456_000).unwrap() + TimeDelta::seconds(seconds)
}

pub(crate) fn id(number: i64) -> RequestId {
    RequestId::from_i64(number).unwrap()
}

pub(crate) fn node(number: u16) -> NodeId {
    NodeId::try_from(number).unwrap()
}

/// Accepted at 0, due at 900 s.
pub(crate) fn request(number: i64) -> NewRequest {
    NewRequest {
        id: id(number),
        route: "one".to_owned(),
        ordering_key: None,
        body: Bytes::from_static(b"{\"a\": 1.0}"),
        content_type: "application/json".to_owned(),
        headers: vec![("x-kept".to_owned(), "1".to_owned()), ("x-kept".to_owned(), "2".to_owned())],
        trace: Some(TraceContext {
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            tracestate: None,
        }),
        client: None,
        origin: None,
        accepted_at: at(0),
        destinations: vec!["three".to_owned()],
        due_at: at(900),
        ordering_group: None,
    }
}

pub(crate) async fn insert(store: &Store, requests: &[NewRequest]) {
    let lease = leased(store, node(1)).await.unwrap();
    let transaction = store.begin().await.unwrap();
    requests::insert(&transaction, &lease, requests).await.unwrap();
    transaction.commit().await.unwrap();
}

/// Inserted, and acknowledged by the broker.
pub(crate) async fn publish(store: &Store, requests: &[NewRequest]) {
    insert(store, requests).await;
    let ids: Vec<_> = requests.iter().map(|request| request.id).collect();
    outbox::remove(store.connection(), &ids).await.unwrap();
}

pub(crate) async fn status(store: &Store, number: i64) -> StoredStatus {
    requests::find(store.connection(), id(number)).await.unwrap().unwrap()
}

pub(crate) async fn delivery(store: &Store, number: i64) -> StoredDelivery {
    status(store, number).await.deliveries.remove(0)
}

pub(crate) fn report(number: i64, attempt: u32, outcome: Outcome) -> AttemptReport {
    let is_delivered = outcome == Outcome::Delivered;
    AttemptReport {
        request_id: id(number),
        destination: "three".to_owned(),
        attempt,
        called: true,
        counted_attempts: attempt,
        started_at: at(attempt.into()),
        duration_ms: 12,
        trace_id: Some("0af7651916cd43dd8448eb211c80319c".to_owned()),
        origin: Some("throughline.retries/2/17".parse().unwrap()),
        status: Some(if is_delivered { 200 } else { 400 }),
        response_excerpt: Some("{\"said\": \"no\"}".to_owned()),
        outcome,
    }
}

pub(crate) fn rejected() -> Outcome {
    Outcome::Dead {
        reason: DeadReason::Rejected,
        failure: Failure { class: ErrorClass::ClientError, error: "400 Bad Request".to_owned() },
    }
}

pub(crate) fn retry(due: Option<i64>) -> Outcome {
    let failure = Failure { class: ErrorClass::ServerError, error: "503 Service Unavailable".to_owned() };
    Outcome::Retry { due_at: due.map(at), failure }
}

pub(crate) fn deferred(cause: DeferralCause, due: i64) -> Outcome {
    Outcome::Deferred { due_at: at(due), cause }
}

/// A time in SQL.
pub(crate) fn time(seconds: i64) -> String {
    format!("'{}'", at(seconds).format("%Y-%m-%dT%H:%M:%S%.6f+00:00"))
}

/// Ends all claims, as time does.
pub(crate) async fn end_claims(store: &Store) {
    let sql =
        format!("UPDATE deliveries SET claimed_until = {} WHERE claimed_until IS NOT NULL", time(LONG_AGO));
    store.connection().execute_unprepared(&sql).await.unwrap();
}

/// Before any time of a database's clock.
const LONG_AGO: i64 = -1_000_000_000;

/// An empty body in SQL.
pub(crate) fn empty(store: &Store) -> &'static str {
    if store.connection().get_database_backend() == DbBackend::Sqlite { "x''" } else { "''" }
}

/// How many deliveries there are of which this holds, in SQL.
pub(crate) async fn count(store: &Store, what: &str) -> i64 {
    let sql = format!("SELECT count(*) AS count FROM deliveries WHERE {what}");
    let statement = Statement::from_string(store.connection().get_database_backend(), sql);
    store.connection().query_one_raw(statement).await.unwrap().unwrap().try_get("", "count").unwrap()
}
